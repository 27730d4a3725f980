"""What the image's own handler, vLLM, would not serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.tiny_artifact import save_chat_adapter, save_chat_base
from utils.deployment import artifact, image

ADAPTER = "adapters/faq/adapter_config.json"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of Llama's kind, an adapter beside the base; not to be changed."""
    folder = tmp_path_factory.mktemp("several")
    base = save_chat_base(folder / "base", "names itself")
    adapter = save_chat_adapter(folder / "adapter", base, "names itself")
    artifact.build_without_code(
        base, {"faq": adapter}, folder / "out", folder / "out.tar.gz"
    )
    return folder / "out"


def as_json(name: str, **changes: object) -> Change:
    """Change values in a JSON file."""

    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8")) | changes
        (folder / name).write_text(json.dumps(value))

    return change


def option(key: str, value: object) -> Change:
    """Set an option of serving.properties."""

    def change(folder: Path) -> None:
        path = folder / "serving.properties"
        lines = path.read_text().splitlines()
        lines = [line for line in lines if not line.startswith(f"option.{key}=")]
        path.write_text("\n".join([*lines, f"option.{key}={value}"]) + "\n")

    return change


BROKEN = {
    "family without LoRA": (
        as_json("config.json", architectures=["GPTNeoXForCausalLM"]),
        '"GPTNeoXForCausalLM does not support LoRA yet"',
    ),
    "rank that is none of vLLM's": (
        as_json(ADAPTER, r=24),
        "r=24, above the limit of 8. Write option.max_lora_rank=32",
    ),
    "one layer of a higher rank": (
        as_json(ADAPTER, rank_pattern={"q_proj": 300}),
        "r=300, above the limit of 8. Write option.max_lora_rank=320",
    ),
    "rank above all": (as_json(ADAPTER, r=1024), "above 512, the highest"),
    "limit that is none of vLLM's": (
        option("max_lora_rank", 24),
        "vLLM takes no 24: one of 1, 8, 16, 32",
    ),
    "DoRA": (as_json(ADAPTER, use_dora=True), "has DoRA, which vLLM refuses"),
    "whole layers": (
        as_json(ADAPTER, modules_to_save=["lm_head"]),
        "(modules_to_save), which vLLM refuses",
    ),
    "biases": (as_json(ADAPTER, bias="lora_only"), "has trained biases"),
    "another method": (as_json(ADAPTER, peft_type="IA3"), "peft_type IA3 is not LORA"),
    "less room in memory": (
        option("max_cpu_loras", 0),
        "0 is less than max_loras=1, which vLLM refuses",
    ),
    "batches": (
        lambda folder: (folder / "serving.properties").write_text(
            (folder / "serving.properties").read_text() + "batch_size=4\n"
        ),
        "batch_size: 4 in asynchronous mode",
    ),
}
WARNED = {
    "base in four bits": (
        as_json("config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "the base is quantised by bitsandbytes",
    ),
}


def report_of(folder: Path, several: Path, change: Change) -> artifact.Report:
    """Return what is found in a copy with one change."""
    copy = Path(shutil.copytree(several, folder / "copy"))
    change(copy)
    return artifact.validate(copy)


def test_the_artifact_without_a_change_is_sound(several) -> None:
    report = artifact.validate(several)
    assert report.findings == []
    assert "not checked: vLLM itself" in str(report)


@pytest.mark.parametrize("name", [*BROKEN, *WARNED])
def test_what_vllm_does_not_serve_is_found(several, tmp_path, name) -> None:
    change, hint = (BROKEN | WARNED)[name]
    report = report_of(tmp_path, several, change)
    assert report.ok is (name in WARNED)
    found = [finding for finding in report.findings if hint in str(finding)]
    assert len(found) == 1, report


def test_rows_of_the_embedding_may_be_left_out(several, tmp_path) -> None:
    change = as_json(ADAPTER, trainable_token_indices=[1, 2])
    report = report_of(tmp_path, several, change)
    assert "rows trained in the embedding (trainable_token_indices)" in str(report)


def test_what_vllm_reads_itself_is_no_finding(several, tmp_path) -> None:
    stored = {"quant_method": "awq", "bits": 4}
    change = as_json("config.json", quantization_config=stored)
    assert "quantised" not in str(report_of(tmp_path, several, change))


@pytest.mark.parametrize(
    ("rank", "least"), [(1, 1), (2, 8), (24, 32), (257, 320), (512, 512), (513, None)]
)
def test_ranks_are_rounded_up(rank: int, least: int | None) -> None:
    assert image.least_rank(rank) == least


def test_the_same_family_merged_or_with_own_code_is_fine(built, tmp_path) -> None:
    parts = (built / "saved_base", built / "saved_adapter")
    merged = artifact.build_without_code(*parts, tmp_path / "m", tmp_path / "m.tar.gz")
    assert artifact.validate(merged).findings == []
    assert artifact.validate(built / "artifact").findings == []
