"""The rule for a lesson's reading time, and the numbers that the command writes."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from support.reading_time import minutes_of, stated_in, with_minutes
from utils.course import ROOT

TITLE = "# A title\n\n| | |\n|:--|:--|\n| **time** | a minute of computing |"
WORDS = " ".join(["word"] * 75)  # half a minute


def notebook(*cells: str | tuple[str, bool]) -> nbformat.NotebookNode:
    """A notebook: a text is prose, a pair is code and whether it has an output."""
    made = nbformat.v4.new_notebook()
    for cell in cells:
        if isinstance(cell, str):
            made.cells.append(nbformat.v4.new_markdown_cell(cell))
        else:
            output = nbformat.v4.new_output("stream", text="42")
            code = nbformat.v4.new_code_cell(cell[0], outputs=[output] * cell[1])
            made.cells.append(code)
    return made


def whole(*cells: str | tuple[str, bool]) -> int:
    """The minutes of such a notebook."""
    return minutes_of(notebook(*cells))[1]


def test_prose_code_outputs_and_exercises_take_time() -> None:
    assert whole(*[WORDS] * 20) == 10
    assert whole(("\n\n".join(["x = 1"] * 100), False)) == 10
    assert whole(*[("x = 1", False)] * 40) == 4
    assert whole(*[("x = 1", True)] * 40) == 14
    assert whole(*[("answer = ...\ncheck_it(answer)", False)] * 5) == 21
    assert whole("short") == 1


def test_what_nobody_reads_takes_no_time() -> None:
    long = " ".join(["word"] * 1500)
    hidden = [
        f"<details>\n<summary>Solution</summary>\n\n```python\n{long}\n```\n</details>",
        f"![{long}](figures/{long}.svg)",
        f"[here](https://example.org/{long})",
        f"<span title='{long}'>here</span>",
        "- — · | |:--|\n" * 900,
        "Train it. " + "(About 20 seconds.) (about half a minute offline) " * 400,
    ]
    for text in hidden:
        assert whole(text) == 1, text[:20]
    assert whole(f"[{long}](https://example.org)") == 10


def test_code_within_prose_counts_by_the_line() -> None:
    block = "```python\n" + "x = 'a b c d e f g h'\n" * 50 + "```"
    assert whole(block) == 5


def test_sections_are_told_apart_also_within_a_cell() -> None:
    made = notebook(
        TITLE,
        *[WORDS] * 4,
        f"## 1 · First\n\n{WORDS}",
        *[WORDS] * 3,
        f"{WORDS} {WORDS}\n\n## 2 · Second",
        ("x = 1", False),
        "```python\n## 3 · A comment\n```",
        "## You can now\n\n" + WORDS * 1,
        *[WORDS] * 5,
    )
    assert minutes_of(made) == ({"## 1 · First": 3, "## 2 · Second": 1}, 8)


def test_the_numbers_are_written_and_written_again() -> None:
    made = notebook(TITLE, f"## 1 · First\n\n{WORDS}", *[WORDS] * 5, "## 2 · Second")
    assert stated_in(made) == ({}, None)
    with_minutes(made)
    assert (
        "| **time** | 3 minutes to read and try; a minute of comp"
        in made.cells[0].source
    )
    assert made.cells[1].source.startswith("## 1 · First\n\n*3 minutes*\n\nword")
    assert made.cells[-1].source == "## 2 · Second\n\n*1 minute*"
    assert stated_in(made) == minutes_of(made)
    first = nbformat.writes(made)
    assert nbformat.writes(with_minutes(made)) == first
    made.cells[1].source += f" {WORDS} {WORDS}"
    assert stated_in(made) != minutes_of(made)
    assert stated_in(with_minutes(made)) == ({"## 1 · First": 4, "## 2 · Second": 1}, 4)
    assert made.cells[1].source.count("minutes*") == 1


def test_a_title_without_the_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row"):
        with_minutes(notebook("# A title"))


def test_the_command_writes_a_notebook_that_stays_valid(tmp_path) -> None:
    path = tmp_path / "01_first.ipynb"
    nbformat.write(notebook(TITLE, f"## 1 · First\n\n{WORDS}"), path)
    command = [sys.executable, ROOT / "tests/support/reading_time.py", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "01_first.ipynb: 1 minutes, 2 cells\n    1  1 · First" in done.stdout
    written = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(written)
    assert stated_in(written) == minutes_of(written) == ({"## 1 · First": 1}, 1)
