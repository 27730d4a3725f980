"""Checks of the notes that a request with `retrieve` is answered from.

What a note, its vector and an encoder must be stands in `deployment_search`, which
refuses to load anything else; here it is found before the endpoint is paid for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.deployment.deployment_search import (
    NOTES_FILE,
    VECTORS_FILE,
    Note,
    NotesError,
    check_encoder,
    read_notes,
    read_vectors,
)
from utils.deployment.findings import (
    Finding,
    ServedModel,
    adapter_of,
    error,
    packed_base,
    read_object,
    relative,
    warning,
)
from utils.deployment.notes import SEARCH_FILE

NOTES, ENCODER = "option.notes", "option.encoder"
BUILD = "Build the artifact with artifact.build(…, notes=…)"


def check_notes(model: ServedModel) -> Iterator[Finding]:
    """Find notes that are not named, not there, or cannot be read."""
    if not _of_course(model):
        return
    folder = _folder(model, "notes")
    for path in sorted(model.folder.rglob(NOTES_FILE)):
        if folder is None or path.parent.resolve() != folder.resolve():
            name = relative(path, model)
            place = relative(path.parent, model)
            yield warning(
                name,
                f"is not named by {NOTES}: nothing would search it",
                f"Write {NOTES}={place}, or leave the file out",
            )
    if folder is None:
        return
    yield from _inside(model, "notes")
    if not (model.folder / SEARCH_FILE).is_file():
        yield error(SEARCH_FILE, f"is missing: {NOTES} needs it", BUILD)
    try:
        notes = read_notes(folder / NOTES_FILE)
    except NotesError as problem:
        yield _finding(problem)
        return
    yield from _too_long(model, notes)


def check_note_search(model: ServedModel) -> Iterator[Finding]:
    """Find an encoder that is not whole, and vectors that do not fit."""
    if not _of_course(model):
        return
    folder, encoder = _folder(model, "notes"), _folder(model, "encoder")
    if encoder is None:
        if folder is not None and (folder / VECTORS_FILE).is_file():
            yield warning(
                f"{folder.name}/{VECTORS_FILE}",
                f"is there, and {ENCODER} names no encoder: the search is by words "
                "alone",
                f"Name the encoder in {ENCODER}, or leave the file out",
            )
        return
    if folder is None:
        yield error(ENCODER, f"has no effect without {NOTES}", f"{BUILD}, or delete it")
        return
    yield from _inside(model, "encoder")
    try:
        width, _ = check_encoder(encoder)
    except NotesError as problem:
        yield _finding(problem)
        return
    try:
        notes = read_notes(folder / NOTES_FILE)
    except NotesError:
        return  # `check_notes` says why
    try:
        read_vectors(folder, len(notes), width)
    except NotesError as problem:
        yield _finding(problem)


def _of_course(model: ServedModel) -> bool:
    """Return whether the course's entry point serves it: others have own options."""
    return bool(model.options.get("base_model"))


def _folder(model: ServedModel, option: str) -> Path | None:
    name = model.options.get(option)
    return model.folder / name if name else None


def _inside(model: ServedModel, option: str) -> Iterator[Finding]:
    name = model.options[option]
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        yield error(
            f"option.{option}",
            f"{name} leads out of the archive, to a folder of this machine",
            "Pack the folder, and name it as it is called in the archive",
        )


def _finding(problem: NotesError) -> Finding:
    return error(problem.where, problem.what, problem.remedy)


def _too_long(model: ServedModel, notes: list[Note]) -> Iterator[Finding]:
    """Find notes that alone fill all that the model reads."""
    from tokenizers import Tokenizer

    base, adapter = packed_base(model), adapter_of(model)
    if base is None:
        return
    context = read_object(base / "config.json").get("max_position_embeddings")
    own = adapter and (adapter / "tokenizer.json").is_file()
    path = (adapter if own else base) / "tokenizer.json"
    if not isinstance(context, int) or not path.is_file():
        return
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the library raises no narrower class; `check_fit` reads it, too
        return
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [" ".join(note.text.split()) for note in notes]
    for note, found in zip(notes, tokenizer.encode_batch(texts), strict=True):
        if len(found.ids) >= context:
            yield warning(
                f"{model.options['notes']}/{NOTES_FILE}",
                f"the note {note.id!r} has {len(found.ids)} tokens, and the model "
                f"reads {context}: a request that finds it gets 400",
                "Cut it into several notes",
            )
