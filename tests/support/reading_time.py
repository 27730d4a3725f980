"""How long a lesson takes to read and try, by a stated rule, and the numbers in it.

.venv/bin/python tests/support/reading_time.py notebooks/NN_name.ipynb …

The rule: 150 words of prose a minute, 6 seconds a line of code, 15 seconds a cell with
output, 4 minutes an exercise. A folded `<details>` block (a solution) takes no time,
nor do blank lines, the addresses of links, the alt text of pictures, a wait that is
announced, such as "(About 20 seconds.)", and the numbers that this command writes. The
time of computing is not in it.

The questions in the cell `self-check` are counted apart, as nobody has to answer them:
that cell states its own minutes, which utils/exercises/self_check.py counts, folded
feedback included.

The command writes the numbers into the notebook: into the row `| **time** | … |` of its
title, and as a line `*N minutes*` under each heading `## N · Title`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

from utils.exercises import self_check
from utils.files import write_text

WORDS_A_MINUTE = 150
MINUTES_A_LINE = 6 / 60
MINUTES_AN_OUTPUT = 15 / 60
MINUTES_AN_EXERCISE = 4.0

HEADING = re.compile(r"^## .+$", re.MULTILINE)
NUMBERED = re.compile(r"## \d+ · .+")
STATED = re.compile(r"^\*(\d+) minutes?\*$", re.MULTILINE)
STATED_WHOLE = re.compile(r"\b(\d+) minutes to read and try")
TIME_ROW = re.compile(r"^(\|\W*time\W*\|\s*)(.*)$", re.MULTILINE)
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
NOT_READ = (
    STATED,
    re.compile(r"\b\d+ minutes to read and try;?"),
    re.compile(r"\([Aa]bout (half a|\w+) (second|minute)s?( offline)?\.?\)"),
    re.compile(r"!\[[^]]*\]\([^)]*\)"),  # a picture
    re.compile(r"(?<=\])\([^)]*\)"),  # where a link leads
    re.compile(r"<[^>\n]+>"),
)


def check_call(cell: nbformat.NotebookNode) -> ast.Call | None:
    """The `check_…` call that ends an exercise's cell; None in another cell."""
    if cell.cell_type != "code":
        return None
    body = ast.parse(cell.source).body
    last = body[-1] if body else None
    if not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)):
        return None
    function = last.value.func
    if isinstance(function, ast.Name) and function.id.startswith("check_"):
        return last.value
    return None


def minutes_of(notebook: nbformat.NotebookNode) -> tuple[dict[str, int], int]:
    """How long the sections of a notebook take, and the whole of it.

    Returns:
        Heading, such as "## 3 · Templates", → whole minutes, at least one, in the order
        of the notebook; and the minutes of the whole, with what stands outside of
        numbered sections. The whole is rounded by itself: it need not be the sum.
    """
    exact: dict[str, float] = {}
    for heading, minutes in _parts(notebook):
        exact[heading] = exact.get(heading, 0.0) + minutes
    sections = {
        heading: max(1, _rounded(minutes))
        for heading, minutes in exact.items()
        if NUMBERED.fullmatch(heading)
    }
    return sections, max(1, _rounded(sum(exact.values())))


def stated_in(notebook: nbformat.NotebookNode) -> tuple[dict[str, int], int | None]:
    """The numbers that a notebook states, as `minutes_of` returns them.

    A section without such a line has none, nor has a title without the row.
    """
    sections = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading, text in _by_heading(cell.source, ""):
                lines = text.strip().splitlines()
                stated = STATED.fullmatch(lines[0].strip()) if lines else None
                if stated and NUMBERED.fullmatch(heading):
                    sections[heading] = int(stated[1])
    row = TIME_ROW.search(notebook.cells[0].source) if notebook.cells else None
    whole = STATED_WHOLE.search(row[2]) if row else None
    return sections, int(whole[1]) if whole else None


def with_minutes(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Write the numbers into a notebook, in place, and return it.

    Raises:
        ValueError: when the title's table has no row `time`.
    """
    sections, whole = minutes_of(notebook)
    title = notebook.cells[0]
    row = TIME_ROW.search(title.source)
    if not row:
        raise ValueError(
            "The first cell has no row `| **time** | … |` to write the minutes into: "
            "add it to the table of the title."
        )
    told = re.sub(r"^\d+ minutes to read and try;?\s*", "", row[2])
    stated = f"{row[1]}{whole} minutes to read and try; {told}"
    title.source = title.source[: row.start()] + stated + title.source[row.end() :]
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for heading in HEADING.findall(cell.source):
            if heading in sections:
                cell.source = _state(cell.source, heading, sections[heading])
    return notebook


def _state(source: str, heading: str, minutes: int) -> str:
    """The text with the line under this heading, in place of an old one."""
    before, _, after = source.partition(heading)
    lines = after.strip("\n").split("\n")
    if STATED.fullmatch(lines[0].strip()):
        lines = lines[1:]
    below = "\n".join(lines).strip("\n")
    stated = f"*{minutes} minute{'' if minutes == 1 else 's'}*"
    return before + "\n\n".join(filter(None, [heading, stated, below]))


def _parts(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, float]]:
    """Yield what there is to read or try: its section's heading and its minutes."""
    heading = ""
    for cell in notebook.cells:
        if cell.get("id") == self_check.CELL:
            continue
        if cell.cell_type == "markdown":
            for heading, text in list(_by_heading(cell.source, heading)):  # noqa: B020
                yield heading, _prose_minutes(text)
        elif cell.cell_type == "code":
            minutes = MINUTES_A_LINE * _lines(cell.source)
            minutes += MINUTES_AN_OUTPUT * bool(cell.get("outputs"))
            minutes += MINUTES_AN_EXERCISE * (check_call(cell) is not None)
            yield heading, minutes


def _by_heading(source: str, heading: str) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a text, each with the heading above it, which is read too."""
    place = 0
    # What looks like a heading in a block of code is a comment.
    hidden = [block.span() for block in FENCED.finditer(source)]
    for found in HEADING.finditer(source):
        if any(start <= found.start() < end for start, end in hidden):
            continue
        if source[place : found.start()].strip():
            yield heading, source[place : found.start()]
        heading, place = found[0].strip(), found.end()
    yield heading, source[place:]


def _prose_minutes(text: str) -> float:
    text = FOLDED.sub(" ", text)
    lines = sum(_lines(code) for code in FENCED.findall(text))
    text = FENCED.sub(" ", text)
    for hidden in NOT_READ:
        text = hidden.sub(" ", text)
    words = [word for word in text.split() if re.search(r"\w", word)]
    return len(words) / WORDS_A_MINUTE + MINUTES_A_LINE * lines


def _lines(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def _rounded(minutes: float) -> int:
    return int(minutes + 0.5)


def main() -> None:
    """Write the numbers into the notebooks that the command line names."""
    if not sys.argv[1:]:
        raise SystemExit("Give the notebooks: notebooks/NN_name.ipynb …")
    for name in sys.argv[1:]:
        notebook = nbformat.read(name, as_version=nbformat.NO_CONVERT)
        write_text(Path(name), nbformat.writes(with_minutes(notebook)).rstrip() + "\n")
        sections, whole = minutes_of(notebook)
        print(f"{Path(name).name}: {whole} minutes, {len(notebook.cells)} cells")
        for heading, minutes in sections.items():
            print(f"  {minutes:3d}  {heading[3:]}")


if __name__ == "__main__":
    main()
