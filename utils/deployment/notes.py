"""Write the notes that an endpoint searches, and their vectors, into an artifact.

How they are read and searched stands in `deployment_search`, which is packed with them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.deployment.deployment_search import (
    ENCODER_FILES,
    MADE_OF,
    NOTES_FILE,
    OVERLAP,
    OWNERS,
    READS_FILE,
    SPECIAL_PIECES,
    VECTORS,
    VECTORS_FILE,
    Note,
    NotesError,
    check_encoder,
    check_notes,
    fingerprint,
    read_note,
    read_notes,
)
from utils.deployment.findings import ArtifactError

SEARCH = Path(__file__).with_name("deployment_search.py")
SEARCH_FILE = "notes_search.py"
NOTES_FOLDER = "notes"
ENCODER_FOLDER = "encoder"
NUMBER, PLACE = 4, 8  # bytes of a vector's number, and of the note that a passage is of
# What a tokenizer may bring beside tokenizer.json, and how much the encoder reads.
MORE_ENCODER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    READS_FILE,
)


def add_notes(
    notes: Sequence[Mapping[str, Any]] | Path, encoder: Path | None, folder: Path
) -> dict[str, str]:
    """Write notes, vectors, encoder and search into the folder of an artifact.

    Args:
        notes: rows with `id`, `text` and perhaps `questions`, by which the note is
            found, too; or a .jsonl file of such rows.
        encoder: the folder of a sentence encoder, which is packed; None to search by
            words alone.
        folder: of the artifact.

    Returns:
        the options of serving.properties that name all this.

    Raises:
        ArtifactError: naming the row, file or encoder that cannot be used.
    """
    target = folder / NOTES_FOLDER
    target.mkdir()
    try:
        found = _read(notes)
        (target / NOTES_FILE).write_bytes(_lines(found))
        shutil.copyfile(SEARCH, folder / SEARCH_FILE)
        options = {"option.notes": NOTES_FOLDER}
        if encoder is not None:
            check_encoder(encoder)
            _copy_encoder(encoder, folder / ENCODER_FOLDER)
            _write_vectors(found, folder / ENCODER_FOLDER, target)
            options["option.encoder"] = ENCODER_FOLDER
    except NotesError as problem:
        raise ArtifactError(str(problem)) from problem
    return options


def packed_bytes(
    notes: Sequence[Mapping[str, Any]] | Path, encoder: Path | None
) -> int:
    """Compute what `add_notes` will write, before any of it is written.

    Of long notes' vectors it is the most that they can take: a word piece has one
    character or more.

    Args:
        notes: as for `add_notes`.
        encoder: likewise.

    Raises:
        ArtifactError: naming the row, file or encoder that cannot be used.
    """
    try:
        found = _read(notes)
        size = len(_lines(found)) + SEARCH.stat().st_size
        if encoder is None:
            return size
        width, reads = check_encoder(encoder)
    except NotesError as problem:
        raise ArtifactError(str(problem)) from problem
    size += sum(path.stat().st_size for path in _encoder_files(encoder))
    at_once = reads - SPECIAL_PIECES
    step = at_once // 2 - int(at_once // 2 * OVERLAP)  # as `Encoder.passages` cuts
    passages = sum(
        1 if len(note.key) <= at_once else 1 + len(note.key) // step for note in found
    )
    return size + passages * (width * NUMBER + PLACE)


def _read(notes: Sequence[Mapping[str, Any]] | Path) -> list[Note]:
    if isinstance(notes, str | Path):
        return read_notes(Path(notes))
    rows = [dict(row) if isinstance(row, Mapping) else row for row in notes]
    found = [read_note(row, f"notes[{number}]") for number, row in enumerate(rows)]
    check_notes(found, "notes")
    return found


def _lines(notes: Sequence[Note]) -> bytes:
    """Return the content of the file of notes."""
    lines = [json.dumps(_row(note), ensure_ascii=False) for note in notes]
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _row(note: Note) -> dict[str, Any]:
    row = {"id": note.id, "text": note.text}
    return row | ({"questions": list(note.questions)} if note.questions else {})


def _encoder_files(folder: Path) -> list[Path]:
    """Return those of an encoder's files that are packed, where it has them."""
    files = (folder / name for name in (*ENCODER_FILES, *MORE_ENCODER_FILES))
    return [file for file in files if file.is_file()]


def _copy_encoder(source: Path, target: Path) -> None:
    for file in _encoder_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _write_vectors(notes: Sequence[Note], encoder: Path, target: Path) -> None:
    """Embed each note's passages with the encoder as it is packed.

    In 16 bits the order of some notes would change, and 169 notes need 260 kB in 32.
    """
    import torch
    from safetensors.torch import save_file

    from utils.encoder import DIMENSIONS, EncoderError, load_encoder

    width, _ = check_encoder(encoder)
    if width != DIMENSIONS:
        raise ArtifactError(
            f"The encoder's vectors have {width} numbers; the course's code computes "
            f"such of {DIMENSIONS}. Give all-MiniLM-L6-v2, or one of its width."
        )
    try:
        loaded = load_encoder(encoder)
    except EncoderError as problem:
        raise ArtifactError(str(problem)) from problem
    passages, owners = [], []
    for place, note in enumerate(notes):
        for passage in loaded.passages(note.key):
            passages.append(passage)
            owners.append(place)
    vectors = torch.from_numpy(loaded.embed(passages))
    save_file(
        {VECTORS: vectors, OWNERS: torch.tensor(owners)},
        target / VECTORS_FILE,
        metadata={MADE_OF: fingerprint(target / NOTES_FILE)},
    )
