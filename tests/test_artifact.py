"""Building artifacts."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from support.tiny_artifact import save_adapter, save_base
from utils.course import ROOT
from utils.deployment import artifact


def test_what_is_packed(built) -> None:
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


def test_same_input_same_bytes(built, tmp_path) -> None:
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


def test_no_path_of_this_machine_is_packed(built) -> None:
    for path in (built / "artifact").rglob("*.json"):
        assert str(built) not in path.read_text("utf-8"), path.name


def test_older_readers_find_what_they_look_for(built) -> None:
    folder = built / "artifact"
    for part in ("base", "adapter"):
        tokenizer = json.loads((folder / part / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    config = json.loads((folder / "base" / "config.json").read_text())
    share = config["rope_parameters"]["partial_rotary_factor"]
    assert config["rotary_pct"] == share


def test_base_of_the_hub_is_named_not_packed(built, tmp_path) -> None:
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
def test_incomplete_adapter_is_refused_and_nothing_is_written(
    built, tmp_path, name
) -> None:
    adapter = Path(shutil.copytree(built / "saved_adapter", tmp_path / "adapter"))
    (adapter / name).unlink()
    with pytest.raises(artifact.ArtifactError, match=f"adapter/{name} is missing"):
        artifact.build(
            built / "saved_base", adapter, tmp_path / "out", tmp_path / "out.tar.gz"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_failed_build_keeps_the_last_one(built, tmp_path) -> None:
    target, archive = tmp_path / "artifact", tmp_path / "model.tar.gz"
    artifact.build(built / "saved_base", None, target, archive)
    before = archive.read_bytes()
    with pytest.raises(artifact.ArtifactError, match=r"config.json is missing"):
        artifact.build(tmp_path, None, target, archive)
    assert archive.read_bytes() == before
    assert (target / "model.py").is_file()


def test_source_of_one_function() -> None:
    assert artifact.entry_point_source("handle").startswith("def handle(inputs: Input)")
    assert artifact.entry_point_source("escape_template").startswith(
        "def escape_template(self"
    )
    with pytest.raises(artifact.ArtifactError, match="no function nosuch. Name one"):
        artifact.entry_point_source("nosuch")


def test_notebook_and_recording_are_of_the_version_that_is_named() -> None:
    notebook = (ROOT / "notebooks" / "06_djl_deployment.ipynb").read_text("utf-8")
    asked = re.findall(r'djl-lmi\\".*?version=\\"([\d.]+)\\"', notebook)
    shown = re.findall(r"djl-inference:(\d+\.\d+\.\d+)", notebook)
    assert set(asked) == set(shown) == {artifact.DJL_VERSION}
    recorded = (ROOT / "tests" / "data" / "djl_conformance.json").read_text("utf-8")
    assert set(re.findall(r"/cache/python/([\d.]+)/", recorded)) == set(asked)
    for path in (ROOT / "utils").rglob("*.py"):
        told = re.findall(r"DJL Serving (\d+\.\d+\.\d+)", path.read_text("utf-8"))
        assert set(told) <= set(asked), path.name


def test_saved_parts_are_untouched_by_building(built, tmp_path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    artifact.build(base, adapter, tmp_path / "out", tmp_path / "out.tar.gz")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_command_line(built, copied, capsys) -> None:
    archive = str(built / "model.tar.gz")
    assert artifact.main(["check", archive, "--no-load"]) == 0
    assert "can be deployed" in capsys.readouterr().out
    (copied / "model.py").unlink()
    assert artifact.main(["check", str(copied)]) == 1
    assert "model.py is not in the archive" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        artifact.main(["check", str(built / "nosuch.tar.gz")])
    assert ended.value.code == 2
