"""What the rules for the second edition of the lessons look at.

A notebook is second edition when its title states the reading time. Each function
returns what it found; tests/test_notebooks.py says what is allowed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat

from support.reading_time import FENCED, check_call, stated_in
from utils.display import PLOTTED_SHARES

EVIDENCE = ("lab", "real", "cited")
# Who writes these speaks of models in general, not of the output above.
GENERAL = re.compile(
    r"\blanguage models\b"
    r"|\b(?:large|larger|big|bigger|small|smaller|modern|today's|most|many|all|chat) "
    r"models\b"
    r"|\bmodels (?:usually|often|typically|generally|tend|mostly|rarely|never|always)\b"
    r"|\b(?:LLMs?|any model|every model|models in general|models of this size)\b",
    re.IGNORECASE,
)
PLOTS_OF_SHARES = ("plot_proportions", "plot_curves")
NEAR = 0.05

LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^][]|\[[^]]*\])*)\]\((?P<to>[^)\s]+)[^)]*\)")
IMAGE = re.compile(r"!\[[^]]*\]\((?P<to>[^)\s]+)[^)]*\)")
ATTRIBUTE = re.compile(r"\b(?:href|src)=[\"'](?P<to>[^\"']+)[\"']")
OWN_ID = re.compile(r"\b(?:id|name)=[\"']([^\"']+)[\"']")
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]+`")


def is_second_edition(notebook: nbformat.NotebookNode) -> bool:
    """Whether its title states the reading time."""
    return stated_in(notebook)[1] is not None


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The Markdown cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


# --- what cells show ---


def silent_cells(notebook: nbformat.NotebookNode) -> tuple[list[str], int]:
    """Ids of code cells that show only ticks or nothing, and of how many cells.

    Stubs of exercises and cells for the reader's guess are left out.
    """
    counted = [
        cell
        for cell in code_cells(notebook)
        if check_call(cell) is None and not takes_a_guess(cell)
    ]
    return [cell.id for cell in counted if not _shows(cell)], len(counted)


def takes_a_guess(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is there for the reader to write `my_guess = …`."""
    targets = [
        target
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return bool(names) and all(name.startswith("my_guess") for name in names)


def _shows(cell: nbformat.NotebookNode) -> bool:
    """Whether there is an output that is more than ticks."""
    for output in cell.outputs:
        data = output.get("data", {})
        if any(kind.startswith("image/") or kind == "text/html" for kind in data):
            return True
        text = output.get("text") or data.get("text/markdown", data.get("text/plain"))
        lines = [line.strip(" *>") for line in (text or "").splitlines()]
        if any(line and line[0] not in "✓✗" for line in lines):
            return True
    return False


def plotted_shares(notebook: nbformat.NotebookNode) -> list[float]:
    """The shares in its figures, as `utils.display` noted them in the outputs."""
    return [
        share
        for cell in code_cells(notebook)
        for output in cell.outputs
        for data in output.get("metadata", {}).values()
        if isinstance(data, dict)
        for share in data.get(PLOTTED_SHARES, [])
    ]


def near_the_ends(shares: list[float]) -> int:
    """How many lie within five points of 0 or 100%."""
    return sum(not NEAR < share < 1 - NEAR for share in shares)


def plots_without_a_note(notebook: nbformat.NotebookNode) -> list[str]:
    """Cells that plot shares, but whose outputs were stored before they were noted."""
    return [
        cell.id
        for cell in code_cells(notebook)
        if any(f"{name}(" in cell.source for name in PLOTS_OF_SHARES)
        and not any(PLOTTED_SHARES in str(o.get("metadata")) for o in cell.outputs)
    ]


# --- what statements rest on ---


def general_without_evidence(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Cells that speak of models in general without a tag → the words.

    Headings, the title cell, descriptions of pictures and what the reader can now do
    state nothing.
    """
    found = {}
    for cell in prose_cells(notebook)[1:]:
        if "You can now" in cell.source:
            continue
        text = re.sub(r"^#.*$", "", _read(cell.source), flags=re.MULTILINE)
        general = GENERAL.search(IMAGE.sub("", text))
        if general and not set(cell.metadata.get("tags", [])) & set(EVIDENCE):
            found[cell.id] = general[0]
    return found


def cited_without_link(notebook: nbformat.NotebookNode) -> list[str]:
    """Cells with the tag `cited` and no link to elsewhere."""
    return [
        cell.id
        for cell in prose_cells(notebook)
        if "cited" in cell.metadata.get("tags", [])
        and not re.search(r"\]\(https?://|<https?://|href=.https?://", cell.source)
    ]


# --- links ---


def dead_links(path: Path, root: Path) -> list[str]:
    """Links of a notebook that lead nowhere in the repository.

    Args:
        path: of the notebook.
        root: of the repository, which links must not leave.
    """
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    dead = []
    for cell in prose_cells(notebook):
        text = INLINE_CODE.sub("`code`", FENCED.sub("", cell.source))
        for pattern in (LINK, IMAGE, ATTRIBUTE):
            for found in pattern.finditer(text):
                to = found["to"]
                if not re.match(r"[a-z]+:", to) and not _resolves(to, path, root):
                    dead.append(f"{cell.id}: {to}")
    return dead


def _resolves(to: str, path: Path, root: Path) -> bool:
    """Whether a link of a file leads to a file, and its anchor to a heading there."""
    place, _, anchor = unquote(to).partition("#")
    target = (path.parent / place).resolve() if place else path.resolve()
    if not target.is_relative_to(root.resolve()) or not target.exists():
        return False
    return not anchor or anchor in anchors(target)


def anchors(path: Path) -> set[str]:
    """What a link to a heading of a notebook or Markdown file may name.

    JupyterLab, nbconvert and GitHub's notebooks take the heading as it reads, with `-`
    for each space; GitHub's Markdown pages take it in small letters without its signs.
    """
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        texts = [cell.source for cell in prose_cells(notebook)]
    elif path.suffix == ".md":
        texts = [path.read_text(encoding="utf-8")]
    else:
        return set()
    found: set[str] = set()
    for text in texts:
        text = FENCED.sub("", text)
        found.update(OWN_ID.findall(text))
        for heading in HEADING.findall(text):
            shown = _as_read(heading)
            if path.suffix == ".ipynb":
                found.add(shown.replace(" ", "-"))
            else:
                found.add(re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-"))
    return found


def _as_read(markdown: str) -> str:
    """A heading's text without the marks of Markdown."""
    text = LINK.sub(lambda found: found["text"], markdown)
    return re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", text).strip()


def _read(source: str) -> str:
    """A cell's prose: no code, no addresses."""
    text = INLINE_CODE.sub("`code`", FENCED.sub("", source))
    return LINK.sub(lambda found: found["text"], text)
