"""Building artifacts, and finding what is wrong with them before they are deployed."""

import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest
from tiny_artifact import build_tiny, save_adapter, save_base

from utils import artifact

RECORDED = Path(__file__).parent / "data" / "djl_conformance.json"
SCENARIOS = json.loads(RECORDED.read_text("utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    build_tiny(folder)
    return folder


@pytest.fixture
def copied(built, tmp_path):
    """A copy of the artifact's folder, to break."""
    return Path(shutil.copytree(built / "artifact", tmp_path / "artifact"))


# --- building -------------------------------------------------------------------------


def test_what_is_packed(built):
    with tarfile.open(built / "model.tar.gz") as tar:
        names = {member.name for member in tar if member.isfile()}
    assert names == {
        "serving.properties",
        "model.py",
        "base/config.json",
        "base/generation_config.json",
        "base/model.safetensors",
        "base/tokenizer.json",
        "base/tokenizer_config.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
    }


def test_same_input_same_bytes(built, tmp_path):
    for path in (built / "saved_base").iterdir():
        os.utime(path, (time.time(), time.time() - 1000))
    again = artifact.build(
        built / "saved_base",
        built / "saved_adapter",
        tmp_path / "artifact",
        tmp_path / "model.tar.gz",
        options={"option.max_new_tokens": 16},
    )
    assert again.read_bytes() == (built / "model.tar.gz").read_bytes()


def test_no_path_of_this_machine_is_packed(built):
    for path in (built / "artifact").rglob("*.json"):
        assert str(built) not in path.read_text("utf-8"), path.name


def test_older_readers_find_what_they_look_for(built):
    folder = built / "artifact"
    for part in ("base", "adapter"):
        tokenizer = json.loads((folder / part / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    config = json.loads((folder / "base" / "config.json").read_text())
    share = config["rope_parameters"]["partial_rotary_factor"]
    assert config["rotary_pct"] == share


def test_base_of_the_hub_is_named_not_packed(built, tmp_path):
    artifact.build(
        "owner/name",
        built / "saved_adapter",
        tmp_path / "artifact",
        tmp_path / "model.tar.gz",
        base_revision="abc",
    )
    properties = (tmp_path / "artifact" / "serving.properties").read_text()
    assert "option.base_model=owner/name\n" in properties
    assert "option.base_revision=abc\n" in properties
    assert not (tmp_path / "artifact" / "base").exists()
    assert artifact.validate(tmp_path / "model.tar.gz", load=False).ok


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_incomplete_adapter_is_refused_and_nothing_is_written(built, tmp_path, name):
    adapter = Path(shutil.copytree(built / "saved_adapter", tmp_path / "adapter"))
    (adapter / name).unlink()
    with pytest.raises(artifact.ArtifactError, match=f"adapter/{name} is missing"):
        artifact.build(
            built / "saved_base", adapter, tmp_path / "out", tmp_path / "out.tar.gz"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_failed_build_keeps_the_last_one(built, tmp_path):
    target, archive = tmp_path / "artifact", tmp_path / "model.tar.gz"
    artifact.build(built / "saved_base", None, target, archive)
    before = archive.read_bytes()
    with pytest.raises(artifact.ArtifactError, match=r"config.json is missing"):
        artifact.build(tmp_path, None, target, archive)
    assert archive.read_bytes() == before
    assert (target / "model.py").is_file()


def test_source_of_one_function():
    assert artifact.entry_point_source("handle").startswith("def handle(inputs: Input)")
    assert artifact.entry_point_source("defuse").startswith("def defuse(self")
    with pytest.raises(artifact.ArtifactError, match="no function nosuch"):
        artifact.entry_point_source("nosuch")


# --- checking -------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_recorded_artifacts_that_do_not_start_are_found(scenario, tmp_path):
    for name, text in scenario["files"].items():
        path = tmp_path / "artifact" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "artifact").mkdir(exist_ok=True)
    report = artifact.validate(tmp_path / "artifact")
    answers = [step.get("got") for step in scenario["steps"]]
    needs_name = any(
        isinstance(got, dict) and "model_name is required" in got.get("body", "")
        for got in answers
    )
    assert report.ok is (scenario["starts"] and not needs_name), str(report)


def test_a_good_artifact_has_no_findings(built):
    report = artifact.validate(built / "model.tar.gz")
    assert report.ok and report.findings == []
    assert report.require_ok() is report
    assert "can be deployed" in str(report)


def edit(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text("utf-8")), encoding="utf-8")


def line(old, new):
    def change(folder):
        edit(folder, "serving.properties", lambda text: text.replace(old, new))

    return change


def put(name, text):
    def change(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def remove(*names):
    def change(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def nest(folder):
    inner = folder / "lora_model"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)
    (folder / "README.md").write_text("hello")


def two_models(folder):
    nest(folder)
    (folder / "README.md").unlink()
    shutil.copytree(folder / "lora_model", folder / "other")


def other_base(folder):
    config = json.loads((folder / "base" / "config.json").read_text())
    from tiny_models import tiny_gpt_neox
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    wider = {**tiny_gpt_neox().config.to_dict(), "hidden_size": 64}
    GPTNeoXForCausalLM(GPTNeoXConfig(**wider)).save_pretrained(folder / "base")
    assert config["hidden_size"] == 32


def more(text):
    """Lines at the end of serving.properties."""
    return lambda folder: edit(folder, "serving.properties", lambda old: old + text)


def as_json(name, **changes):
    def change(folder):
        value = json.loads((folder / name).read_text("utf-8")) | changes
        (folder / name).write_text(json.dumps(value))

    return change


def both(*changes):
    def change(folder):
        for one in changes:
            one(folder)

    return change


def cut(name, count):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-count])

    return change


def link(name, target):
    return lambda folder: (folder / name).symlink_to(target)


INDEX = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
BROKEN = {
    "file beside the folder": (nest, "hides it"),
    "two folders": (two_models, "model_name is required"),
    "empty": (
        remove("base", "adapter", "model.py", "serving.properties"),
        "every request gets 400",
    ),
    "engine in lower case": (line("engine=Python", "engine=python"), "engine=Python"),
    "unknown engine": (line("engine=Python", "engine=DeepSpeed"), "'DeepSpeed'"),
    "mpi": (line("engine=Python", "engine=MPI"), "mpirun"),
    "trailing space": (line("engine=Python", "engine=Python "), "trailing space"),
    "quotes": (line("=base", '="base"'), "quotes are part of the value"),
    "no number": (line("batch_size=8", "batch_size=eight"), "whole number"),
    "bad escape": (line("engine=Python", r"engine=\uzzzz"), "Unicode escape"),
    "entry point missing": (remove("model.py"), "model.py is not in the archive"),
    "other entry point": (line("=model.py", "=serve.py"), "serve.py is not in"),
    "syntax": (put("model.py", "def handle(inputs:"), "does not parse"),
    "foreign import": (put("model.py", "import nosuch\n"), "`nosuch`"),
    "import of the course": (
        put("model.py", "from utils.helpers import PROMPT\n"),
        "imports `utils`",
    ),
    "no handler": (put("model.py", "x = 1\n"), "has no function `handle`"),
    "other handler": (
        line("engine=Python", "engine=Python\noption.handler=predict"),
        "has no function `predict`",
    ),
    "asynchronous handler": (
        put("model.py", "async def handle(inputs):\n    return None\n"),
        "needs option.async_mode",
    ),
    "asynchronous mode": (
        line("engine=Python", "engine=Python\noption.async_mode=true"),
        "never gets ready",
    ),
    "config.json at the root": (
        lambda folder: (
            shutil.copy(folder / "base" / "config.json", folder),
            edit(
                folder,
                "serving.properties",
                lambda text: text.replace("option.rolling_batch=disable\n", "").replace(
                    "batch_size=8\n", ""
                ),
            ),
        ),
        "never gets ready",
    ),
    "base missing": (remove("base"), "is no folder of the archive"),
    "base without weights": (remove("base/model.safetensors"), "has no *.safetensors"),
    "base without configuration": (remove("base/config.json"), "has no config.json"),
    "adapter missing": (remove("adapter"), "would answer untuned"),
    "adapter without weights": (
        remove("adapter/adapter_model.safetensors"),
        "adapter_model.safetensors",
    ),
    "no tokenizer": (
        remove("adapter/tokenizer.json", "base/tokenizer.json"),
        "neither with the base nor with the adapter",
    ),
    "another base": (other_base, "does not fit the base"),
    "cut weights": (
        put("adapter/adapter_model.safetensors", "cut"),
        "cannot be read as safetensors",
    ),
    "byte-order mark": (
        lambda folder: edit(folder, "serving.properties", lambda t: "\ufeff" + t),
        "byte-order mark",
    ),
    "other name of the properties": (
        lambda folder: (folder / "serving.properties").rename(
            folder / "serving.property"
        ),
        "the server looks for serving.properties",
    ),
    "batches of none": (line("batch_size=8", "batch_size=0"), "0 is too small"),
    "more workers than allowed": (
        more("minWorkers=3\nmaxWorkers=2\n"),
        "3 is more than maxWorkers=2",
    ),
    "link": (link("weights", "/models/base"), "is a link to /models/base"),
    "adapter's settings cut": (
        cut("adapter/adapter_config.json", 10),
        "is no JSON",
    ),
    "configuration that is a list": (
        put("base/config.json", "[]"),
        "holds a list where an object was expected",
    ),
    "part of the weights missing": (
        put("base/model.safetensors.index.json", INDEX),
        "is named by model.safetensors.index.json",
    ),
    "upload cut": (
        cut("base/model.safetensors", 100),
        "100 bytes are missing at its end",
    ),
    "file that hides a package": (
        put("transformers.py", "VERSION = 1\n"),
        "would find the artifact's own transformers",
    ),
    "handler without argument": (
        put("model.py", "def handle():\n    return None\n"),
        "`handle` takes 0 arguments",
    ),
    "warm-up that raises": (
        put("model.py", "def handle(inputs):\n    raise OSError('weights are gone')\n"),
        "weights are gone",
    ),
}
WARNED = {
    "no base": (line("option.base_model=base\n", ""), "is missing beside option.adap"),
    "key twice": (more("batch_size=4\n"), "is there twice"),
    "space in an unread value": (
        more("option.mine=padded \n"),
        "'padded ' keeps its trailing space",
    ),
    "misspelt option": (more("option.predict_timeuot=9\n"), "mean predict_timeout"),
    "prefix too many": (more("option.minWorkers=1\n"), "Write minWorkers, without"),
    "option.adapters": (more("option.adapters=a\n"), "option.enable_lora=true"),
    "requirement that is none": (
        put("requirements.txt", "transformers=4.57.6\n"),
        "is no requirement",
    ),
    "requirements that clash": (
        put("requirements.txt", "numpy>=2\nNumPy==1.26.4  # old\n"),
        "cannot both be met",
    ),
    "requirement older than the image": (
        put("requirements.txt", "transformers==4.27.4\npeft\n"),
        "is older than the image's transformers",
    ),
    "wheel that is not packed": (
        put("requirements.txt", "./mine-1.0-py3-none-any.whl\n"),
        "whl is not in the archive",
    ),
    "loading at import": (
        lambda folder: edit(
            folder, "model.py", lambda t: t + "\nmodel = Auto.from_pretrained('x')\n"
        ),
        "which happens three times",
    ),
    "ending the process": (
        lambda folder: edit(
            folder, "model.py", lambda t: t + "\ndef end():\n    os._exit(1)\n"
        ),
        "leaves the model FAILED for good",
    ),
    "no rotary share for older readers": (
        lambda folder: edit(
            folder, "base/config.json", lambda t: t.replace('"rotary_pct"', '"other"')
        ),
        "has no rotary_pct",
    ),
    "tokenizer of version 5 only": (
        as_json("adapter/tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        "a class that transformers 4 does not have",
    ),
    "adapter that is no LoRA": (
        as_json("adapter/adapter_config.json", peft_type="IA3"),
        "peft_type IA3 is not LORA",
    ),
    "pickled weights": (put("adapter/adapter_model.bin", "x"), "run code"),
    "requirements": (put("requirements.txt", "transformers==4.27.4\n"), "only logged"),
    "unknown option": (
        line("engine=Python", "engine=Python\noption.adpater=x"),
        "nothing here reads",
    ),
    "missing prefix": (
        line("option.base_model=base", "option.base_model=base\nhandler=handle"),
        "Write option.handler",
    ),
    "model_id": (
        line("engine=Python", "engine=Python\noption.model_id=base"),
        "asynchronous mode",
    ),
    "dot files": (put("._model.py", "x"), "macOS"),
}


def findings_of(table, name, built, folder, load=False):
    """What `validate` finds in a copy with this mistake, and not in the original."""
    folder = Path(shutil.copytree(built / "artifact", folder))
    table[name][0](folder)
    return artifact.validate(folder, load=load)


def test_broken_artifacts_are_all_told_apart(built, tmp_path):
    """No two mistakes get the same message, and each names its place and remedy."""
    assert len(BROKEN) >= 25
    messages: dict[str, str] = {}
    for table in (BROKEN, WARNED):
        for number, (name, (_, hint)) in enumerate(table.items()):
            if name == "warm-up that raises":
                continue  # found by loading only
            folder = tmp_path / f"{len(table)}-{number}"
            report = findings_of(table, name, built, folder)
            shutil.rmtree(folder)
            (found, *_) = [f for f in report.findings if hint in str(f)] or [None]
            assert found, f"{name}: {report}"
            assert found.where and found.what and found.remedy
            assert report.ok is (table is WARNED), f"{name}: {report}"
            messages[name] = str(found)
    texts = list(messages.values())
    assert len(set(texts)) == len(texts), [t for t in texts if texts.count(t) > 1]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_artifact_is_found(built, tmp_path, name):
    load = name == "warm-up that raises"
    report = findings_of(BROKEN, name, built, tmp_path / "artifact", load)
    assert not report.ok
    assert any(BROKEN[name][1] in str(finding) for finding in report.errors), report
    assert all(finding.remedy for finding in report.findings)
    with pytest.raises(artifact.ArtifactError):
        report.require_ok()


@pytest.mark.parametrize("name", WARNED)
def test_doubtful_artifact_is_warned_of(built, tmp_path, name):
    report = findings_of(WARNED, name, built, tmp_path / "artifact")
    assert report.ok
    assert any(WARNED[name][1] in str(finding) for finding in report.findings), report
    assert "| warning |" in report._repr_markdown_()


def add_member(tar, name, **attributes):
    member = tarfile.TarInfo(name)
    data = b"x"
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data if member.isreg() else b""))


@pytest.mark.parametrize(
    ("name", "attributes", "hint"),
    [
        ("../evil.py", {}, "leaves the archive"),
        ("/etc/evil.py", {}, "leaves the archive"),
        (
            "link",
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
            "link",
        ),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "model.py", "size": 0}, "link"),
        ("pipe", {"type": tarfile.FIFOTYPE, "size": 0}, "neither file nor folder"),
    ],
)
def test_members_that_leave_the_archive(built, tmp_path, name, attributes, hint):
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(built / "artifact", arcname=".")
        add_member(tar, name, **attributes)
    report = artifact.validate(archive, load=False)
    assert hint in str(report) and not report.ok


def plain_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_member(tar, "model.py")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "the file is empty"),
        (b"no archive", "is no gzipped tar ("),
        (b"\x1f\x8b\x08cut", "cut off or damaged"),
        (b"PK\x03\x04zipped", "is a zip archive"),
        (plain_tar(), "is a tar that is not gzipped"),
    ],
)
def test_what_is_no_archive(tmp_path, content, hint):
    path = tmp_path / "model.tar.gz"
    path.write_bytes(content)
    report = artifact.validate(path)
    assert hint in str(report) and not report.ok


def test_file_over_the_limit_and_file_packed_twice(built, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "FILE_LIMIT", 30_000)
    path = Path(shutil.copytree(built / "artifact", tmp_path / "artifact"))
    (path / "notes.txt").write_bytes(bytes(40_000))
    assert "notes.txt: has 0.0 GiB" in str(artifact.validate(path, load=False))
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, arcname=".")
        add_member(tar, "./model.py")
    report = str(artifact.validate(archive, load=False))
    assert "notes.txt: has 0.0 GiB" in report
    assert "model.py: is in the archive twice" in report


def test_command_line(built, copied, capsys):
    archive = str(built / "model.tar.gz")
    assert artifact.main(["check", archive, "--no-load"]) == 0
    assert "can be deployed" in capsys.readouterr().out
    (copied / "model.py").unlink()
    assert artifact.main(["check", str(copied)]) == 1
    assert "model.py is not in the archive" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        artifact.main(["check", str(built / "nosuch.tar.gz")])
    assert ended.value.code == 2


def test_adapter_on_the_wrong_base_would_not_load_either(built, copied):
    """The check by shapes agrees with what happens when it is loaded."""
    other_base(copied)
    report = artifact.Report("copy")
    artifact._try_to_load(copied, copied.parent / "trial", report)
    assert "size mismatch" in str(report)


def test_saved_parts_are_untouched_by_building(built, tmp_path):
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    artifact.build(base, adapter, tmp_path / "out", tmp_path / "out.tar.gz")
    assert all(path.read_bytes() == data for path, data in before.items())
