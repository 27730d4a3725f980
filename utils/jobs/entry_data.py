"""The channels of a training job: rows to train on, rows to measure, a base model.

Each is a folder that SageMaker filled from S3. What is wrong with a file is said with
its name and line. Part of the job's entry script, `entry.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from entry_orders import JobError, opt_ml, say


def channel_files() -> dict[str, Path]:
    """Return the file of the channel train, and of validation if the job has it.

    Raises:
        JobError: if there is no channel train, or nothing to read in one.
    """
    found = {name: channel_file(name) for name in ("train", "validation")}
    if found["train"] is None:
        raise JobError(
            "The job has no channel train: add InputData(channel_name='train', "
            "data_source='s3://…') to its input_data_config."
        )
    return {name: file for name, file in found.items() if file}


def channel_file(name: str) -> Path | None:
    """Return the JSON Lines file of a channel; None if the job has no such channel.

    Where there are several, they are put together, in the order of their names. Empty
    files are passed over: S3 has some that stand for folders.

    Raises:
        JobError: if there is nothing to read in it.
    """
    place = os.getenv(f"SM_CHANNEL_{name.upper()}")
    if not place:
        return None
    if not Path(place).exists():
        raise JobError(f"The channel {name} was not found at {place}: {_how(name)}")
    there = [one for one in sorted(Path(place).rglob("*")) if one.is_file()]
    there = [one for one in there if not one.name.startswith((".", "_"))] or there
    files = [one for one in there if one.suffix.lower() in (".jsonl", ".ndjson")]
    if not files and len(there) == 1 and there[0].suffix.lower() in ("", ".json"):
        files = there
    full = [one for one in files if one.stat().st_size]
    if full:
        return full[0] if len(full) == 1 else _joined(full)
    if files:
        raise JobError(f"{files[0].name} of the channel {name} is empty: {_how(name)}")
    names = ", ".join(one.name for one in there[:5]) or "nothing"
    raise JobError(f"The channel {name} holds {names}, no .jsonl file: {_how(name)}")


def _how(name: str) -> str:
    return f"upload a file such as {name}.jsonl, with a line of JSON for each row."


def _joined(files: list[Path]) -> Path:
    handle, name = tempfile.mkstemp(suffix=".jsonl")
    with open(handle, "w", encoding="utf-8", newline="") as stream:
        for file in files:
            stream.write(_text(file).rstrip("\n") + "\n")
    return Path(name)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(
            f"{file.name} is no text in UTF-8 ({error.reason} at byte {error.start}): "
            "save it as UTF-8, with a line of JSON for each row."
        ) from None


def check_rows(file: Path) -> int:
    """Return how many rows a file has.

    Raises:
        JobError: naming the line that is no row that `train_lora` can read.
    """
    count = 0
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        count += 1
        where = f"Line {number} of {file.name}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise JobError(
                f"{where} is no JSON ({error}): {line[:60]!r}. Each line must be one "
                'object, such as {"prompt": "…", "completion": "…"}.'
            ) from None
        if problem := _problem(row):
            raise JobError(
                f"{where} {problem}: each row needs a text `prompt` and a text "
                "`completion`, or `messages`, of which the last is the answer."
            )
    if not count:
        raise JobError(f"{file.name} has no rows, only blank lines: fill it.")
    return count


def _problem(row: Any) -> str | None:
    """Say what `train_lora.to_row` could not read in a row."""
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, no object"
    if row.get("messages"):
        turns = row["messages"]
        fine = isinstance(turns, list) and len(turns) > 1
        fine = fine and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in turns
        )
        return None if fine else "has messages without `role` and `content`"
    for name in ("prompt", "completion"):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            found = f"{value!r:.40}" if name in row else f"only {', '.join(row)}"
            return f"has no {name}, found {found or 'nothing'}"
    return None


def find_base(options: Any) -> str:
    """Return the base model: of the channel `model`, or the hyperparameter's.

    Raises:
        JobError: if the channel holds none.
    """
    place = os.getenv("SM_CHANNEL_MODEL")
    if not place:
        return options.model
    folder = Path(place)
    archives = sorted(folder.rglob("*.tar.gz"))
    if not list(folder.rglob("config.json")) and archives:
        folder = _unpacked(archives[0])
    found = sorted(folder.rglob("config.json"), key=lambda one: len(one.parts))
    if not found:
        names = ", ".join(sorted(one.name for one in folder.rglob("*"))[:5])
        raise JobError(
            f"The channel model is no model folder: it holds {names or 'nothing'}, and "
            "no config.json. Upload the folder that `save_pretrained` wrote, or "
            "leave the channel out and give the hyperparameter `model`."
        )
    base = str(found[0].parent)
    say(f"The base model is that of the channel model, at {base}.")
    return base


def _unpacked(archive: Path) -> Path:
    """Unpack an archive; of several workers on a machine, the first does it."""
    folder = opt_ml() / "base_model"
    if os.getenv("LOCAL_RANK", "0") != "0":
        while not folder.exists():  # torchrun ends this worker if the first one fails
            time.sleep(0.2)
        return folder
    if not folder.exists():
        half = folder.with_name("base_model.unpacking")
        shutil.rmtree(half, ignore_errors=True)
        try:
            with tarfile.open(archive) as stream:
                stream.extractall(half, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise JobError(
                f"{archive.name} of the channel model cannot be unpacked ({error}): "
                "pack it anew with `tar czf`, and upload it."
            ) from error
        half.rename(folder)
    return folder


def digest_of_base(base: str) -> str:
    """Return what tells a base from another, without reading gigabytes.

    Names and sizes of its files, its configuration, and where each tensor begins.
    """
    folder = Path(base)
    if not folder.is_dir():
        return base
    seen = hashlib.sha256()
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        with open(file, "rb") as stream:
            begins = stream.read(1 << 20)
        seen.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        seen.update(begins)
    return seen.hexdigest()
