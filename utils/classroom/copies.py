"""Copies of the notebooks to teach with; the notebooks themselves stay as they are.

    python -m utils.classroom copies [folder]    to teach live: code without prose
    python -m utils.classroom hosted [folder]    for Colab: with the first cell

A copy to teach live keeps code, headings and exercises, and lacks prose, pictures,
solutions and outputs. Its cells keep their ids, so that whoever has read the lesson
finds the place.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from utils.classroom.address import first_cell
from utils.course import ROOT, CourseError
from utils.files import replace_folder, write_text

NOTEBOOKS = ROOT / "notebooks"
MARK = "copies.txt"  # by which a folder of copies is known
HEADING = re.compile(r"^#{1,6} .+$", re.MULTILINE)
EXERCISE = re.compile(r"^#{2,6} Exercise\b", re.MULTILINE)
FENCE = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
SOLUTION = re.compile(r"<details>\s*<summary>Solution")
FIRST_ID = "hosted-first"

Change = Callable[[NotebookNode], NotebookNode]


class CopyError(CourseError):
    """Copies cannot be written where they should go."""


def for_live_teaching(notebook: NotebookNode) -> NotebookNode:
    """Return a copy with code, headings and exercises only.

    Args:
        notebook: a lesson; it is not changed.
    """
    made = without_outputs(notebook)
    kept, in_exercise = [], False
    for cell in made.cells:
        if cell.cell_type == "code":
            kept.append(cell)
            continue
        text = _without_prose(cell.source, in_exercise)
        if SOLUTION.search(cell.source):
            in_exercise = False
        elif HEADING.search(FENCE.sub("", cell.source)):
            in_exercise = bool(EXERCISE.search(cell.source))
        if text:
            cell.source = text
            cell.pop("attachments", None)
            kept.append(cell)
    made.cells = kept
    return made


def _without_prose(text: str, in_exercise: bool) -> str:
    """Return the headings of a text, and what it says of an exercise.

    Args:
        text: Markdown of a cell.
        in_exercise: whether an exercise has begun above and has no solution yet.
    """
    if SOLUTION.search(text):
        return ""
    text = FOLDED.sub("", text)
    start = EXERCISE.search(text)
    if start is None and in_exercise and not HEADING.search(FENCE.sub("", text)):
        return text.strip()
    prose = text[: start.start()] if start else text
    task = text[start.start() :] if start else ""
    headings = [one[0] for one in HEADING.finditer(FENCE.sub("", prose))]
    return "\n\n".join(filter(None, [*headings, task.strip()]))


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """Return a copy as if none of its cells had been executed."""
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return made


def with_first_cell(notebook: NotebookNode, repository: str) -> NotebookNode:
    """Return a copy that begins with the cell that installs the course.

    Args:
        notebook: a lesson; it is not changed.
        repository: what that cell clones.
    """
    made = copy.deepcopy(notebook)
    cell = nbformat.v4.new_code_cell(first_cell(repository).rstrip("\n"), id=FIRST_ID)
    made.cells.insert(0, cell)
    return made


def write_copies(
    folder: Path, change: Change, notebooks: Path = NOTEBOOKS
) -> list[Path]:
    """Write a changed copy of each notebook, and the pictures that they show.

    Args:
        folder: where they go; earlier copies there are replaced.
        change: makes the copy of one.
        notebooks: folder of the lessons, with the experiments in a folder below it.

    Returns:
        The paths of the copies.

    Raises:
        CopyError: if the folder holds anything but copies.
        FileError: if the disk is full or may not be written.
    """
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / MARK).is_file():
        raise CopyError(
            f"{folder} holds something that is no copy, and it would be replaced: give "
            "an empty folder or a new one."
        )
    names = sorted(
        path.relative_to(notebooks)
        for pattern in ("[0-9][0-9]_*.ipynb", "experiments/[0-9][0-9]_*.ipynb")
        for path in notebooks.glob(pattern)
    )

    def write(place: Path) -> None:
        for name in names:
            made = change(nbformat.read(notebooks / name, as_version=4))
            nbformat.validate(made)
            write_text(place / name, nbformat.writes(made).rstrip("\n") + "\n")
        if (notebooks / "figures").is_dir():
            shutil.copytree(notebooks / "figures", place / "figures")
        write_text(
            place / MARK, "Copies: change the notebooks of the course instead.\n"
        )

    replace_folder(folder, write)
    return [folder / name for name in names]
