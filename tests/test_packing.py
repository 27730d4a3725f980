"""Weights on their way into an archive: 16 bits, copied, and only if there is room."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from support.tiny_artifact import QUESTIONS, save_adapter, save_base
from utils.course import ROOT
from utils.deployment import artifact, packing
from utils.deployment.artifact import ArtifactError
from utils.deployment.packing import (
    copy_file,
    model_bytes,
    needed_disk,
    packed_dtype,
    require_room,
)
from utils.deployment.serving import serve_locally
from utils.fetch import fetch
from utils.models import MODELS

README = (ROOT / "README.md").read_text("utf-8")
WEIGHTS = "model.safetensors"


def said_to_be(dtype: str, folder: Path, rounds: bool = True) -> Path:
    """Save a base in float32 whose configuration names another type."""
    save_base(folder)
    if not rounds:
        tensors = load_file(folder / WEIGHTS)
        exact = {k: t.to(getattr(torch, dtype)).float() for k, t in tensors.items()}
        save_file(exact, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return folder


def types_in(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()}


# --- in which type --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_kept_in_float32_is_packed_in_its_own_16_bits(tmp_path, dtype) -> None:
    base = said_to_be(dtype, tmp_path / "base")
    said: list[str] = []
    out, archive = tmp_path / "out", tmp_path / "out.tar.gz"
    artifact.build(base, None, out, archive, say=said.append)
    assert types_in(out / "base") == {getattr(torch, dtype)}
    for name, tensor in load_file(out / "base" / WEIGHTS).items():
        original = load_file(base / WEIGHTS)[name]
        assert torch.equal(tensor, original.to(tensor.dtype))
    assert types_in(base) == {torch.float32}
    assert len(said) == 1 and "16 bits, which rounds them" in said[0]
    assert artifact.validate(archive).ok


def test_dtype_leaves_it_as_it_is_or_shortens_what_names_no_16_bits(tmp_path) -> None:
    base = said_to_be("bfloat16", tmp_path / "base")
    other = save_base(tmp_path / "other")
    for source, dtype, expected in (
        (base, "float32", torch.float32),
        (other, None, torch.float32),
        (other, "float16", torch.float16),
    ):
        out = tmp_path / f"{source.name}-{dtype}"
        artifact.build(
            source, None, out, tmp_path / "out.tar.gz", dtype=dtype, say=[].append
        )
        assert types_in(out / "base") == {expected}
        config = json.loads((out / "base" / "config.json").read_text("utf-8"))
        if dtype == "float16":
            named = config.get("dtype") or config.get("torch_dtype")
            assert named == "float16"
    with pytest.raises(ArtifactError, match="dtype is 'int8'"):
        artifact.build(other, None, tmp_path / "x", tmp_path / "y", dtype="int8")


def test_quantised_and_mixed_bases_were_saved_so_on_purpose(tmp_path) -> None:
    base = said_to_be("bfloat16", tmp_path / "base")
    assert packed_dtype(base) == "bfloat16"
    tensors = load_file(base / WEIGHTS)
    first = next(iter(tensors))
    mixed = {**tensors, first: tensors[first].to(torch.bfloat16)}
    save_file(mixed, base / WEIGHTS, {"format": "pt"})
    assert packed_dtype(base) is None
    save_file(tensors, base / WEIGHTS, {"format": "pt"})
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq"}
    (base / "config.json").write_text(json.dumps(config))
    assert packed_dtype(base) is None


def test_a_number_too_large_for_16_bits_is_named_and_nothing_is_left(tmp_path) -> None:
    base = said_to_be("float16", tmp_path / "base")
    tensors = load_file(base / WEIGHTS)
    name = max(tensors)
    tensors[name].view(-1)[0] = 1e30
    save_file(tensors, base / WEIGHTS, {"format": "pt"})
    with pytest.raises(ArtifactError, match=re.escape(name)):
        artifact.build(base, None, tmp_path / "out", tmp_path / "out.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_sharded_base_keeps_its_index_true(tmp_path) -> None:
    base = tmp_path / "base"
    save_base(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / WEIGHTS).unlink()
    model.save_pretrained(base, max_shard_size="20KB")
    out = tmp_path / "out"
    artifact.build(
        base, None, out, tmp_path / "out.tar.gz", dtype="bfloat16", say=[].append
    )
    index = json.loads((out / "base" / packing.WEIGHTS_INDEX).read_text("utf-8"))
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == 2 * sum(
        parameter.numel() for parameter in model.parameters()
    )
    again = AutoModelForCausalLM.from_pretrained(out / "base")
    assert again.dtype == torch.bfloat16


def test_where_nothing_is_rounded_the_served_answers_are_the_same(tmp_path) -> None:
    base = said_to_be("bfloat16", tmp_path / "base", rounds=False)
    adapter = save_adapter(tmp_path / "adapter", base)
    answers = {}
    for dtype in ("float32", None):
        said: list[str] = []
        archive = artifact.build(
            base,
            adapter,
            tmp_path / "out",
            tmp_path / "out.tar.gz",
            options={"option.max_new_tokens": 8},
            dtype=dtype,
            say=said.append,
        )
        assert said == []
        with serve_locally(archive) as server:
            answers[dtype] = server.ask({"inputs": QUESTIONS[:4]})
    assert types_in(tmp_path / "out" / "base") == {torch.bfloat16}
    assert answers[None] == answers["float32"]


# --- copies ---------------------------------------------------------------------------


def test_what_is_packed_does_not_change_with_its_source(tmp_path) -> None:
    """`save_pretrained` writes over a file in place: with hard links it would."""
    base = save_base(tmp_path / "base")
    out = tmp_path / "out"
    artifact.build(base, None, out, tmp_path / "out.tar.gz")
    before = (out / "base" / WEIGHTS).read_bytes()
    for path in base.iterdir():
        with path.open("r+b") as file:
            file.write(b"another")
    assert (out / "base" / WEIGHTS).read_bytes() == before
    assert b"another" not in (out / "base" / "config.json").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 100_000])
@pytest.mark.parametrize("refused", [False, True])
def test_a_copy_is_whole_also_where_the_disk_shares_nothing(
    tmp_path, monkeypatch, size, refused
) -> None:
    def refuse(*_: int) -> int:
        raise OSError("not on this file system")

    if refused:
        monkeypatch.setattr(packing.os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(packing, "COPIED_AT_ONCE", 4096)
    (tmp_path / "a").write_bytes(
        bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    )
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


# --- the disk -------------------------------------------------------------------------


def size_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_computed_beforehand_is_what_is_written(tmp_path, dtype) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    need = needed_disk(base, adapter, dtype=dtype)
    out, archive = tmp_path / "out", tmp_path / "out.tar.gz"
    artifact.build(base, adapter, out, archive, dtype=dtype, say=[].append)
    added = size_of(out / "model.py") + 20_000  # and what older readers look for
    assert abs(size_of(out) - need.folder) < added
    assert abs(size_of(archive) - need.archive) < added + 30_000  # tar's own
    assert needed_disk(None, adapter).folder < need.folder


@pytest.mark.parametrize("part", ["notes", "encoder"])
def test_notes_and_encoder_count_before_packing(tmp_path, monkeypatch, part) -> None:
    """What fits without them is refused with them, and nothing was written."""
    base = save_base(tmp_path / "base")
    monkeypatch.setattr(packing, "LEFT_FREE", 0)
    rows = [{"id": str(n), "text": "word " * 200} for n in range(1000)]
    alone = needed_disk(base).written + 500_000
    usage = SimpleNamespace(free=alone)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage)
    where = (tmp_path / "out", tmp_path / "out.tar.gz")
    artifact.build(base, None, *where, notes=rows[:1], say=[].append)
    more = {"notes": rows if part == "notes" else rows[:1]}
    if part == "encoder":
        more["encoder"] = fetch("minilm")
    other = (tmp_path / "other", tmp_path / "other.tar.gz")
    with pytest.raises(ArtifactError, match="Nothing was written"):
        artifact.build(base, None, *other, **more)
    assert not any(path.exists() for path in other)


def test_adapters_beside_a_base_count_before_packing(built, tmp_path) -> None:
    base, adapter = built / "saved_base", built / "saved_adapter"
    said: list[packing.Need] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "require_room", lambda need, *_: said.append(need))
        for count in (1, 4):
            adapters = {str(number): adapter for number in range(count)}
            out = tmp_path / str(count)
            artifact.build_without_code(base, adapters, out, out.with_suffix(".gz"))
    more = size_of(tmp_path / "4") - size_of(tmp_path / "1")
    reckoned = said[1].folder - said[0].folder
    assert more <= reckoned < 1.5 * more  # peft writes a README beside, which stays


def test_a_merged_model_takes_what_its_type_takes(tmp_path) -> None:
    base = save_base(tmp_path / "base")
    weights = size_of(base / WEIGHTS)
    kept = needed_disk(base, dtype="float32", merged=True).folder
    short = needed_disk(base, dtype="bfloat16", merged=True).folder
    assert 0.4 * weights < kept - short < 0.5 * weights
    tensors = {k: t.to(torch.bfloat16) for k, t in load_file(base / WEIGHTS).items()}
    save_file(tensors, base / WEIGHTS, {"format": "pt"})
    assert needed_disk(base, dtype="float32", merged=True).folder == pytest.approx(
        kept, rel=0.01
    )


@pytest.fixture
def small_disk(monkeypatch):
    """A disk on which there is hardly anything left."""
    usage = SimpleNamespace(free=packing.LEFT_FREE + 1000)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage)


def test_too_small_a_disk_is_named_before_anything_is_written(
    built, tmp_path, small_disk
) -> None:
    place = tmp_path / "results"
    place.mkdir()
    base, adapter = built / "saved_base", built / "saved_adapter"
    for build in (
        lambda: artifact.build(base, adapter, place / "a", place / "new" / "a.tar.gz"),
        lambda: artifact.build_without_code(
            base, adapter, place / "b", place / "b.tar.gz"
        ),
    ):
        with pytest.raises(ArtifactError) as refused:
            build()
        for part in (str(place), "GB free", "needs", "Nothing was written"):
            assert part in str(refused.value)
    assert list(place.iterdir()) == []


def test_much_is_said_beforehand_with_disk_and_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(packing, "PROBE", 2**20)
    said: list[str] = []
    out, archive = tmp_path / "out", tmp_path / "model.tar.gz"
    require_room(packing.Need(10**9, 10**9, 0), out, archive, said.append)
    assert said[0].startswith("Packing model.tar.gz: 1.0 GB for the folder, 1.0 GB")
    assert re.search(r"about \d+ (s|minutes) here", said[1])
    said.clear()
    require_room(packing.Need(10**9, 10**9, 10**6), out, archive, said.append)
    assert "too little to load the archive here" in said[2]
    said.clear()
    require_room(packing.Need(10**8, 10**8, 2), out, archive, said.append)
    assert said == []
    with pytest.raises(ArtifactError, match=r"needs 2000\.1 GB there"):
        require_room(packing.Need(10**12, 10**12, 0), out, archive)
    assert list(tmp_path.iterdir()) == []


def test_dolly_in_lesson_06_fits_the_disk_that_the_readme_states() -> None:
    """By arithmetic, from the model's parameters and what the lesson builds."""
    config = GPTNeoXConfig(
        vocab_size=50_280,
        hidden_size=2_560,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=10_240,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == MODELS["dolly"].parameters
    once = model_bytes(parameters)
    cells = nbformat.read(ROOT / "notebooks/06_djl_deployment.ipynb", 4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    # The first build names the base by its hub id, and packs the adapter only.
    builds = len(re.findall(r"artifact\.build(?:_without_code)?\(", code)) - 1
    saved = code.count("save_pretrained(base_folder)")
    assert (builds, saved) == (1, 1)
    # What is built without code is not served, so that nothing unpacks it.
    lesson = saved * once + builds * needed_disk(once).written
    stated = re.search(r"Lesson 06 then needs up to (\d+) GB more", README)
    copies = re.search(r"([a-z]+) times the model in 16 bits", README)
    assert lesson <= int(stated[1]) * 1e9 < 1.05 * lesson
    assert copies[1] == {3: "three"}[lesson // once]
    installed = float(re.search(r"([\d.]+) GB of disk on Linux", README)[1])
    download = float(re.search(r"downloads about (\d+) GB", README)[1])
    space = float(re.search(r"with (\d+) GB of storage", README)[1])
    assert int(stated[1]) + installed + download <= space
