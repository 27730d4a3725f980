"""What an archive must answer before it counts as sound, and what it may see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.tiny_artifact import save_chat_adapter, save_chat_base
from utils.deployment import artifact

WEIGHTS = "adapter/adapter_model.safetensors"
START = """
import os
from djl_python import Output
from pathlib import Path

def handle(inputs):
    if inputs.is_empty():
        return None
    asked = inputs.get_as_json()
"""
# Handlers without PyTorch: the first reads the adapter's file, the others do not.
READS = (
    START
    + """
    weights = Path("adapter/adapter_model.safetensors").read_bytes()
    return Output().add_as_json({"generated_text": str(hash(weights) % 1000003)})
""".replace("hash(", "sum(")
)
IGNORES = START + '    return Output().add_as_json({"generated_text": "Yes."})\n'
FAILS = START + '    return Output().error("index out of range in self", code=424)\n'


def replace_handler(folder: Path, source: str) -> None:
    """Write another entry point, which is not asynchronous."""
    (folder / "model.py").write_text(source)
    path = folder / "serving.properties"
    path.write_text(path.read_text().replace("option.async_mode=true\n", ""))


def test_an_adapter_that_the_handler_reads_counts(copied) -> None:
    replace_handler(copied, READS)
    assert artifact.validate(copied, load=True).findings == []


def test_an_adapter_that_nobody_loads_cannot_pass(copied) -> None:
    replace_handler(copied, IGNORES)
    (found,) = artifact.validate(copied, load=True).errors
    assert found.where == "adapter" and "is not used" in found.what


def test_an_adapter_that_changes_no_score_cannot_pass(copied) -> None:
    replace_handler(copied, READS)
    path = copied / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"lora_alpha": 0}
    path.write_text(json.dumps(settings))
    assert artifact.validate(copied).ok  # names, shapes and numbers are in order
    (found,) = artifact.validate(copied, load=True).errors
    assert "changes nothing" in found.what and "lora_alpha" in found.remedy


def test_an_artifact_that_answers_with_an_error_cannot_pass(copied) -> None:
    replace_handler(copied, FAILS)
    (found,) = artifact.validate(copied, load=True).errors
    assert "got status 424" in found.what and "index out of range" in found.what


def test_one_of_several_adapters_that_does_nothing_is_named(tmp_path) -> None:
    kind = "names itself"
    base = save_chat_base(tmp_path / "base", kind)  # vLLM serves it with LoRA
    good = save_chat_adapter(tmp_path / "good", base, kind)
    idle = save_chat_adapter(tmp_path / "idle", base, kind)
    zeros = {
        name: tensor * (".lora_B." not in name)
        for name, tensor in load_file(idle / Path(WEIGHTS).name).items()
    }
    save_file(zeros, idle / Path(WEIGHTS).name)
    folder = tmp_path / "out"
    artifact.build_without_code(
        base, {"good": good, "idle": idle}, folder, tmp_path / "out.tar.gz"
    )
    report = artifact.validate(folder, load=True)
    idle_ones = [f.where for f in report.errors if "changes nothing" in f.what]
    assert idle_ones == ["adapters/idle"]


def test_nothing_is_executed_unless_asked(copied) -> None:
    ran = copied.parent / "ran"
    replace_handler(copied, f"open({str(ran)!r}, 'w').close()\n{IGNORES}")
    artifact.validate(copied)
    assert not ran.exists()
    assert artifact.main(["check", str(copied)]) == 0
    assert not ran.exists()
    assert artifact.main(["check", str(copied), "--load"]) == 1
    assert ran.exists()


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD"])
def test_the_process_sees_no_secret_of_this_machine(
    copied, monkeypatch, tmp_path, name
) -> None:
    home = tmp_path / "my_home"
    home.mkdir()
    monkeypatch.setenv(name, "not-for-strangers")
    monkeypatch.setenv("HOME", str(home))
    spy = (
        "import os\n"
        "if 'not-for-strangers' in os.environ.values():\n"
        "    raise OSError('a secret is seen')\n"
        f"if os.environ['HOME'] == {str(home)!r}:\n"
        "    raise OSError('the home folder is seen')\n"
    )
    replace_handler(copied, spy + READS)
    assert artifact.validate(copied, load=True).findings == []
