"""A job's source folder and data: what is in them, and that 04 and the job agree."""

from __future__ import annotations

import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict
from packaging.requirements import Requirement

from support.tiny_models import CHATS, tiny_chat_tokenizer, tiny_tokenizer
from utils.course import ROOT
from utils.jobs.source import (
    SourceError,
    container_requirements,
    job_source,
    json_lines,
    read_json_lines,
    recipe,
    training_files,
    write_json_lines,
)
from utils.models import settings_for
from utils.templates import Template, chat_template, instruction_template
from utils.training import train_lora

FAQS = [
    {"instruction": "Which measures?", "response": "Encryption.", "context": None},
    {"instruction": "What keeps logs?", "response": "It does.", "context": "- A note."},
    {"instruction": "Schön?\u2028Ja?", "response": "Ja.", "context": ""},
]


def test_the_source_folder_holds_what_runs_alone_and_nothing_else(tmp_path) -> None:
    folder = job_source(tmp_path / "source")
    (folder / "__pycache__").mkdir()
    assert job_source(tmp_path / "source") == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        *("entry.py", "entry_checkpoints.py", "entry_data.py", "entry_orders.py"),
        *("requirements.txt", "train_lora.py"),
    ]
    # With nothing of the course to be found, and without orders, it says what it lacks.
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder)],
        env={"SM_OUTPUT_DIR": str(tmp_path), "SM_INPUT_DIR": str(tmp_path / "input")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    said = (tmp_path / "failure").read_text("utf-8")
    assert said.startswith("The job has no channel train")


# What an isolated Python does not do of itself: put the script's folder first.
ALONE = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
    "sys.modules['utils'] = None; "  # importing it fails
    "runpy.run_path(sys.argv[1] + '/entry.py', run_name='__main__')"
)


def test_requirements_are_pins_of_ours_that_the_image_has_too_old() -> None:
    ours = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = container_requirements()
    assert set(pins) <= set(ours)
    found = {Requirement(line).name: Requirement(line).specifier for line in pins}
    # Versions of the image, from its Dockerfile.
    for name, version in {
        "transformers": "5.3.0",
        "huggingface_hub": "1.10.0",
        "accelerate": "1.12.0",
        "peft": "0.18.1",
        "datasets": "4.5.0",
    }.items():
        assert version not in found[name]
    assert not {"torch", "numpy", "sagemaker"} & set(found)


def frames() -> dict[str, Template]:
    chats = {kind: chat_template(tiny_chat_tokenizer(kind), "") for kind in CHATS}
    return {"instruction": instruction_template(tiny_tokenizer()), **chats}


@pytest.mark.parametrize("kind", ["instruction", *CHATS])
def test_the_job_reads_the_tokens_that_lesson_03_made(tmp_path, kind) -> None:
    template = frames()[kind]
    rows = [template.add_text(dict(row), number) for number, row in enumerate(FAQS)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    expected = template.preprocess_batch(columns, 512)
    parts = DatasetDict(
        {name: Dataset.from_list(rows) for name in ("train", "validation", "test")}
    )
    channels = training_files(parts, tmp_path)
    assert list(channels) == ["train", "validation"]
    for name, channel in channels.items():
        assert [file.name for file in channel.iterdir()] == [f"{name}.jsonl"]
        lines = (channel / f"{name}.jsonl").read_text("utf-8").split("\n")
        assert lines.pop() == ""
        for number, line in enumerate(lines):
            stop = template.stop[0]
            row = train_lora.to_row(line, template.tokenizer, "", stop)
            for column in ("input_ids", "labels"):
                assert row[column] == expected[column][number]


def test_lines_end_with_a_line_feed_alone(tmp_path) -> None:
    """Other ends of lines, as Python counts them, may stand within a text."""
    rows = [{"text": f"one{end}two"} for end in "\n\r\x0b\x1c\x85\u2028\u2029é"]
    file = write_json_lines(tmp_path / "rows.jsonl", rows)
    content = file.read_bytes()
    assert content == json_lines(rows) and content.count(b"\n") == len(rows)
    assert read_json_lines(content) == rows
    assert read_json_lines(b'\n{"a": 1}\r\n \n{"a": 2}') == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError):
        read_json_lines(b"{")


def test_rows_that_are_no_rows_are_refused(tmp_path) -> None:
    row = {"prompt": "What?", "completion": "This."}
    for rows, said in (
        ({"test": [row]}, "no part 'train', only test"),
        ({"train": [row, {**row, "completion": " "}]}, "Row 1 of train has no comple"),
        ({"train": [{"instruction": "What?"}]}, "Row 0 of train has no prompt"),
    ):
        parts = {name: Dataset.from_list(part) for name, part in rows.items()}
        with pytest.raises(SourceError, match=said):
            training_files(DatasetDict(parts), tmp_path)


def test_a_models_recipe_is_one_that_train_lora_takes() -> None:
    template = instruction_template(tiny_tokenizer())
    given = recipe(settings_for("lab"), template)
    known = {action.dest for action in train_lora.make_parser()._actions}
    assert set(given) <= known
    assert given["stop"] == template.stop[0]
