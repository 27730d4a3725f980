"""A cell that takes long says so beforehand: measured seconds against the text.

`python -m utils.run` writes what each cell took into `build/run`, and
`python tests/test_long_cells.py NAME …` takes it from there into the record, for the
notebooks that ran on idle cores.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import nbformat
import pytest

from utils.course import ROOT
from utils.run import NOTEBOOKS, find_notebooks, name_of

RECORD = ROOT / "tests" / "data" / "cell_seconds.csv"
LONG = 5.0  # seconds, from which a cell says how long it takes
FACTOR = 2.5  # between machines, and between hours of one machine
NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4, "five": 5}
NUMBERS |= {"ten": 10, "twenty": 20, "thirty": 30, "forty": 40}
STATED = re.compile(r"[Aa]bout (half a|\w+) (second|minute)s?\b")
IMPORTS = ("configuration", "config")  # the first cell, which loads the libraries
UNITS = {"second": 1, "minute": 60}


def recorded() -> list[tuple[str, str, float]]:
    """Notebook, cell and seconds of each long cell."""
    with RECORD.open(encoding="utf-8", newline="") as file:
        return [
            (row["notebook"], row["cell"], float(row["seconds"]))
            for row in csv.DictReader(file)
        ]


def stated_in(text: str) -> float | None:
    """The seconds that the last statement of a text gives."""
    found = STATED.findall(text)
    if not found:
        return None
    number, unit = found[-1]
    count = 0.5 if number == "half a" else NUMBERS.get(number) or float(number)
    return count * UNITS[unit]


def above(notebook: str, cell: str) -> str:
    """The prose directly above a cell."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (place,) = [number for number, one in enumerate(cells) if one.id == cell]
    assert cells[place - 1].cell_type == "markdown"
    return cells[place - 1].source


@pytest.mark.parametrize(("notebook", "cell", "seconds"), recorded())
def test_a_long_cell_says_how_long(notebook: str, cell: str, seconds: float) -> None:
    assert seconds >= LONG
    stated = stated_in(above(notebook, cell))
    assert stated, f"{notebook}, above {cell}: add (About {round(seconds)} seconds.)"
    assert seconds / FACTOR <= stated <= seconds * FACTOR


def test_each_notebook_with_a_long_cell_is_recorded() -> None:
    """The others had none when they were last timed."""
    short = ("01_language_models", "experiments/01_inside_attention")
    short += ("experiments/03_new_tokens", "experiments/05_statistics")
    names = {name_of(path) for path in find_notebooks(NOTEBOOKS)}
    assert names - set(short) == {notebook for notebook, *_ in recorded()}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Train it. (About a minute here.)", 60),
        ("About two minutes, then about 25 seconds.", 25),
        ("It takes about half a minute.", 30),
        ("(About twenty seconds.)", 20),
        ("It takes a while.", None),
    ],
)
def test_what_a_text_states(text: str, seconds: float | None) -> None:
    assert stated_in(text) == seconds


def main(names: list[str]) -> None:
    """Replace what the record says of these notebooks by what `build/run` says."""
    rows = [row for row in recorded() if row[0] not in names]
    for name in names:
        with Path(ROOT / "build" / "run" / f"{name}.csv").open(
            encoding="utf-8"
        ) as file:
            for row in csv.DictReader(file):
                if float(row["seconds"]) > LONG and row["cell"] not in IMPORTS:
                    rows.append((name, row["cell"], float(row["seconds"])))
    lines = [f"{name},{cell},{seconds:.1f}" for name, cell, seconds in sorted(rows)]
    text = "\n".join(["notebook,cell,seconds", *lines, ""])
    RECORD.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
