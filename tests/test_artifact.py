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

from support.tiny_artifact import (
    build_tiny_chat,
    save_adapter,
    save_base,
    save_chat_adapter,
    save_chat_base,
)
from support.tiny_models import tiny_chat_tokenizer
from utils.course import ROOT
from utils.deployment import artifact
from utils.templates import TEMPLATE_FILE, chat_template, instruction_template


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
        "adapter/course_template.json",
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
    source = artifact.entry_point_source("handle")
    assert source.startswith("async def handle(inputs: Input)")
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
    assert artifact.main(["check", archive]) == 0
    assert "can be deployed" in capsys.readouterr().out
    (copied / "model.py").unlink()
    assert artifact.main(["check", str(copied)]) == 1
    assert "model.py is not in the archive" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        artifact.main(["check", str(built / "nosuch.tar.gz")])
    assert ended.value.code == 2


# --- the template travels along ---


@pytest.fixture(scope="module")
def chat_built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    build_tiny_chat(folder)
    return folder


def test_a_chat_template_is_packed_with_the_adapter(chat_built, tmp_path) -> None:
    adapter = chat_built / "artifact" / "adapter"
    saved = json.loads((adapter / TEMPLATE_FILE).read_text("utf-8"))
    assert saved == chat_template(tiny_chat_tokenizer()).describe()
    jinja = (adapter / "chat_template.jinja").read_text("utf-8")
    assert jinja == saved["chat_template"]
    assert artifact.validate(chat_built / "artifact", load=False).findings == []


@pytest.mark.parametrize("with_adapter", [True, False])
def test_what_no_file_says_the_builder_is_told(
    chat_built, tmp_path, with_adapter
) -> None:
    adapter = Path(shutil.copytree(chat_built / "saved_adapter", tmp_path / "adapter"))
    (adapter / TEMPLATE_FILE).unlink()
    parts = (chat_built / "saved_base", adapter if with_adapter else None)
    artifact.build(*parts, tmp_path / "plain", tmp_path / "plain.tar.gz")
    report = artifact.validate(tmp_path / "plain", load=False)
    assert "would ask in the instruction template" in str(report) and not report.ok
    template = chat_template(tiny_chat_tokenizer())
    told, archive = tmp_path / "told", tmp_path / "told.tar.gz"
    artifact.build(*parts, told, archive, template=template)
    assert artifact.validate(told, load=False).findings == []
    path = told / ("adapter" if with_adapter else "base") / TEMPLATE_FILE
    assert json.loads(path.read_text("utf-8")) == template.describe()


def test_another_template_than_the_adapters_is_refused(chat_built, tmp_path) -> None:
    other = chat_template(tiny_chat_tokenizer(), "Other.")
    with pytest.raises(artifact.ArtifactError, match="another template.*Other"):
        artifact.build(
            chat_built / "saved_base",
            chat_built / "saved_adapter",
            tmp_path / "out",
            tmp_path / "out.tar.gz",
            template=other,
        )


def test_without_code_the_template_stands_at_the_root(chat_built, tmp_path) -> None:
    base, adapter = chat_built / "saved_base", chat_built / "saved_adapter"
    other = save_chat_adapter(tmp_path / "other", base, "names itself", "Other.")
    for name, adapters in {"one": adapter, "two": {"a": adapter, "b": adapter}}.items():
        folder = tmp_path / name
        artifact.build_without_code(base, adapters, folder, tmp_path / f"{name}.tar.gz")
        for file in (TEMPLATE_FILE, "chat_template.jinja"):
            assert (folder / file).read_bytes() == (adapter / file).read_bytes()
        assert artifact.validate(folder, load=False).findings == []
        (folder / "chat_template.jinja").unlink()
        assert "no template for its chat" in str(artifact.validate(folder, load=False))
    with pytest.raises(artifact.ArtifactError, match="adapter, other differ"):
        artifact.build_without_code(
            base, {"a": adapter, "b": other}, tmp_path / "x", tmp_path / "x.tar.gz"
        )


def test_without_code_the_end_of_a_turn_ends_an_answer(tmp_path) -> None:
    kind = "refuses a system turn"  # its end of turn is no end of text
    base = save_chat_base(tmp_path / "base", kind)
    adapter = save_chat_adapter(tmp_path / "adapter", base, kind)
    folder = tmp_path / "merged"
    artifact.build_without_code(base, adapter, folder, tmp_path / "merged.tar.gz")
    saved = json.loads((folder / "generation_config.json").read_text())
    tokenizer = tiny_chat_tokenizer(kind)
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert saved["eos_token_id"] == ends
    # Merged, it is a base like any other, that still knows its template.
    again = tmp_path / "with_handler"
    artifact.build(folder, None, again, tmp_path / "with_handler.tar.gz")
    assert (again / "base" / TEMPLATE_FILE).is_file()
    assert artifact.validate(again, load=False).findings == []


FAULTS = {
    "damaged": (lambda f: (f / TEMPLATE_FILE).write_text("{"), "is no JSON"),
    "of another version": (
        lambda f: (f / TEMPLATE_FILE).write_text('{"version": 7}'),
        "is not of version 1",
    ),
    "another chat template": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
        "would ask otherwise",
    ),
    "instruction template": (
        lambda f: instruction_template(tiny_chat_tokenizer()).save(f),
        "chat route would ask in the other",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_template_is_found(chat_built, tmp_path, name) -> None:
    folder = Path(shutil.copytree(chat_built / "artifact", tmp_path / "artifact"))
    change, hint = FAULTS[name]
    change(folder / "adapter")
    assert hint in str(artifact.validate(folder, load=False))
