"""utils.origins and course.preflight: what was made from a file that has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from utils.course import LAB_DATA, PreflightError, RunConfig, origin, preflight
from utils.origins import note_origin

FILES = {"build/dataset": "run 03", "build/adapter": "run 04"}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A build folder with a data set and an adapter, both made from one file."""
    data, build = tmp_path / "mine.csv", tmp_path / "build"
    data.write_text("instruction,response\nWhy?,Because.\n")
    made = RunConfig("lab", data, "local", build)
    for name in ("dataset", "adapter"):
        (build / name).mkdir(parents=True)
        note_origin(made, name)
    return made


def changed(config: RunConfig, **changes: object) -> RunConfig:
    return RunConfig(**{**vars(config), **changes})


def test_unchanged_files_are_ready(config: RunConfig) -> None:
    assert preflight(config, files=FILES).found == ("build/dataset", "build/adapter")


def test_a_file_that_changed_is_named_with_what_to_do(config: RunConfig) -> None:
    config.data.write_text("instruction,response\nWhy?,Why not.\n")
    with pytest.raises(PreflightError) as caught:
        preflight(config, files=FILES)
    assert str(caught.value).splitlines() == [
        f"{name} was made from mine.csv, which has changed since: {remedy}, or "
        "`make run`."
        for name, remedy in FILES.items()
    ]


def test_what_was_made_again_is_ready_and_the_rest_is_not(config: RunConfig) -> None:
    config.data.write_text("instruction,response\nWhy?,Why not.\n")
    note_origin(config, "dataset")
    with pytest.raises(PreflightError) as caught:
        preflight(config, files=FILES)
    assert str(caught.value).startswith("build/adapter was made from mine.csv, which")
    assert "dataset" not in str(caught.value)


def test_another_file_or_model_is_named(config: RunConfig, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_bytes(config.data.read_bytes())
    with pytest.raises(PreflightError, match="from mine.csv, and COURSE_DATA is other"):
        preflight(changed(config, data=other), files=FILES)
    with pytest.raises(PreflightError, match="COURSE_MODEL=lab, which is smollm2 now"):
        preflight(changed(config, model="smollm2"), files=FILES)
    with pytest.raises(PreflightError, match="COURSE_DATA is someone/faqs now"):
        preflight(changed(config, data="someone/faqs"), files=FILES)


def test_what_is_missing_is_not_called_old(config: RunConfig) -> None:
    (config.build / "adapter").rmdir()
    config.data.write_text("other")
    with pytest.raises(PreflightError) as caught:
        preflight(config, files={"build/adapter": "run 04"})
    assert str(caught.value) == "build/adapter is missing: run 04, or `make run`."


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{", '{"dataset": 3}', '{"dataset": {"model": "x"}}']
)
def test_damaged_notes_stop_nobody_and_are_written_anew(
    config: RunConfig, content: str
) -> None:
    file = config.build / "origins.json"
    file.write_text(content)
    assert preflight(config, files=FILES).found == ("build/dataset", "build/adapter")
    note_origin(config, "dataset")
    assert json.loads(file.read_text("utf-8"))["dataset"] == origin(config)


def test_what_nobody_noted_is_taken_as_it_is(config: RunConfig) -> None:
    (config.build / "origins.json").unlink()
    config.data.write_text("other")
    assert preflight(config, files=FILES).found == ("build/dataset", "build/adapter")


def test_files_outside_the_build_folder_have_no_origin(config: RunConfig) -> None:
    note_origin(config, "README.md")
    other = changed(config, model="smollm2")
    assert preflight(other, files={"README.md": "restore it"}).found == ("README.md",)


def test_an_origin_names_no_folder_of_this_machine(config: RunConfig) -> None:
    folder = changed(config, model=str(config.build / "dataset"))
    assert origin(folder)["model"] == "dataset"
    assert origin(config)["data"] == "mine.csv"
    assert origin(changed(config, data=LAB_DATA))["data"] == "data/lab_questions.csv"
    assert origin(changed(config, data="someone/faqs"))["sha256"] == ""


def test_a_folder_of_data_changes_with_any_of_its_files(config: RunConfig) -> None:
    data = config.build / "dataset"
    (data / "one").write_text("1")
    before = origin(changed(config, data=data))
    (data / "one").write_text("2")
    assert origin(changed(config, data=data)) != before
