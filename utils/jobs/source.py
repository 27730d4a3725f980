"""What a training job is given: its source folder, its data, its hyperparameters.

folder = job_source(build / "source")
files = training_files(dataset, build / "channels")
trainer = ModelTrainer(
    source_code=SourceCode(
        source_dir=str(folder),
        entry_script="entry.py",
        requirements="requirements.txt",
    ),
    hyperparameters=hyperparameters(rank=16, stop=template.stop[0]),
    …
)
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError
from utils.files import replace_folder, write_file

if TYPE_CHECKING:
    from datasets import DatasetDict

    from utils.models import ModelSettings
    from utils.templates import Template

SOURCES = (
    ROOT / "utils" / "training" / "train_lora.py",
    *(
        ROOT / "utils" / "jobs" / f"{name}.py"
        for name in ("entry", "entry_orders", "entry_data", "entry_checkpoints")
    ),
)
# What the image huggingface-pytorch-training:2.9.0-transformers5.3.0 has too old for
# train_lora.py (transformers 5.3.0, huggingface_hub 1.10.0, accelerate 1.12.0, peft
# 0.18.1, datasets 4.5.0), by huggingface/pytorch/training/docker/2.9/py3/cu130/
# Dockerfile.gpu of github.com/aws/deep-learning-containers. The Trainer imports
# datasets where it is installed. torch, numpy and bitsandbytes stay the image's own.
CONTAINER_NEEDS = (
    *("transformers", "tokenizers", "huggingface_hub", "safetensors"),
    *("accelerate", "peft", "datasets", "jinja2"),
)
LONGEST = 2500  # characters of a hyperparameter's value, by CreateTrainingJob's model
# For the job's metric_definitions and a tuner: what the entry script writes to the log.
METRICS = {
    "train:loss": r"train_loss=([0-9.]+)",
    "validation:loss": r"held_out_loss=([0-9.]+)",
}


class SourceError(CourseError):
    """What a job cannot be given; the message says what to change."""


def job_source(folder: str | Path) -> Path:
    """Write the source folder of a training job, in place of what was there.

    It holds `entry.py` with its parts, `train_lora.py`, and a requirements.txt with
    what the training container lacks, in the versions of ours.

    First used in lesson 08, section 2.

    Args:
        folder: for `SourceCode(source_dir=…)`.

    Returns:
        The folder.

    Raises:
        FileError: if the disk is full or may not be written.
    """

    def write(new: Path) -> None:
        for source in SOURCES:
            shutil.copy(source, new / source.name)
        text = "\n".join(container_requirements()) + "\n"
        (new / "requirements.txt").write_text(text, encoding="utf-8")

    return replace_folder(folder, write)


def container_requirements() -> list[str]:
    """Return the lines of our requirements.txt that the training container needs."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = {line.partition("==")[0]: line for line in lines if "==" in line}
    return [pins[name] for name in CONTAINER_NEEDS]


def training_files(dataset: DatasetDict, folder: str | Path) -> dict[str, Path]:
    """Write the channels of a job from lesson 03's rows, as `train_lora` reads them.

    First used in lesson 08, section 1.

    Args:
        dataset: with the parts "train" and, if there is one, "validation", whose rows
            have the texts `prompt` and `completion`: `load_from_disk(build/dataset)`.
        folder: gets train/train.jsonl and validation/validation.jsonl.

    Returns:
        The folder of each channel, to be uploaded as it is.

    Raises:
        SourceError: if there is no part "train", or a row lacks one of the texts.
        FileError: if the disk is full or may not be written.
    """
    if "train" not in dataset:
        parts = ", ".join(dataset) or "nothing"
        raise SourceError(f"The data set has no part 'train', only {parts}: run 03.")
    channels = {}
    for name in ("train", "validation"):
        if name not in dataset:
            continue
        rows = [_texts(row, name, number) for number, row in enumerate(dataset[name])]
        channels[name] = Path(folder) / name
        write_json_lines(channels[name] / f"{name}.jsonl", rows)
    return channels


def _texts(row: Mapping[str, Any], part: str, number: int) -> dict[str, Any]:
    texts = {name: row.get(name) for name in ("prompt", "completion")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise SourceError(
                f"Row {number} of {part} has no {name}, found {text!r:.60}: make the "
                "rows with `add_text` of the template, as lesson 03 does."
            )
    return texts


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as JSON Lines in UTF-8; the same rows give the same bytes.

    First used in lesson 08, section 7.
    """
    return b"".join(
        json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows
    )


def write_json_lines(file: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as `json_lines` returns them, whole or not at all.

    Raises:
        FileError: if the disk is full or may not be written.
    """
    content = json_lines(rows)
    return write_file(file, lambda path: path.write_bytes(content))


def read_json_lines(content: bytes) -> list[dict[str, Any]]:
    """Return the rows of JSON Lines; blank lines count for nothing.

    A line ends with a line feed and with nothing else: what `str.splitlines` takes for
    an end, such as U+2028, may stand within a text.

    Raises:
        ValueError: if a line is no JSON.
    """
    return [json.loads(line) for line in content.split(b"\n") if line.strip()]


def recipe(settings: ModelSettings, template: Template) -> dict[str, Any]:
    """Return a model's recipe as hyperparameters of `train_lora`.

    First used in lesson 08, section 1.

    Args:
        settings: of the model.
        template: that the rows were made in; gives what ends an answer.
    """
    return {
        "rank": settings.lora_r,
        "alpha": settings.lora_alpha,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "max_length": settings.max_length,
        "stop": template.stop[0],
    }


def hyperparameters(**values: Any) -> dict[str, str]:
    r"""Return values as texts that arrive at the entry script as they are here.

    A training job takes texts only, without line ends. The SDK reads each as JSON if it
    can, so that the text "007" would arrive as it is and "7" as a number, and puts them
    between apostrophes into a shell script, where one within a text ends the script
    with "unexpected EOF". So texts are sent as JSON within JSON, with \u0027 for an
    apostrophe; the entry script undoes both.

    First used in lesson 08, section 2.

    Args:
        **values: texts, numbers, True or False, None, lists and dictionaries.

    Raises:
        SourceError: if a value is longer than a job takes.
    """
    texts = {name: _safe(value) for name, value in values.items()}
    for name, text in texts.items():
        if len(text) > LONGEST:
            raise SourceError(
                f"The hyperparameter {name!r} takes {len(text):,} characters, and a "
                f"job takes {LONGEST:,}: shorten it, or put it into a channel."
            )
    return texts


def _safe(value: Any) -> str:
    text = json.dumps(value).replace("'", "\\u0027")
    if isinstance(value, str):
        return value if _is_plain(value) else json.dumps(text)
    return json.dumps(text) if "\\u0027" in text else text


def _is_plain(text: str) -> bool:
    """Whether it stays as it is, and so stays readable in the console."""
    try:
        json.loads(text)
    except ValueError:
        return re.fullmatch(r"[\w ./:,-]+", text, re.ASCII) is not None
    return False
