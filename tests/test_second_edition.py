"""The rules of the second edition notice what they should; tests/test_notebooks.py."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from support.second_edition import (
    anchors,
    cited_without_link,
    dead_links,
    general_without_evidence,
    is_second_edition,
    near_the_ends,
    plots_without_a_note,
    plotted_shares,
    silent_cells,
)
from utils.display import PLOTTED_SHARES


def prose(text: str, *tags: str) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_markdown_cell(text)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def code(source: str, metadata: dict | None = None, **data) -> nbformat.NotebookNode:
    """A cell with one output of this data, or none."""
    names = {"plain": "text/plain", "markdown": "text/markdown", "png": "image/png"}
    data = {names[kind]: value for kind, value in data.items()}
    output = nbformat.v4.new_output("display_data", data, metadata=metadata or {})
    return nbformat.v4.new_code_cell(source, outputs=[output] if data else [])


def notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


def ids(*cells: nbformat.NotebookNode) -> list[str]:
    return [cell.id for cell in cells]


def test_the_row_of_the_time_makes_a_second_edition() -> None:
    first = "# Title\n\n| **time** | a minute |"
    second = (
        "# Title\n\n| **time** | 50 minutes to read and try; a minute of computing |"
    )
    assert not is_second_edition(notebook(prose(first)))
    assert is_second_edition(notebook(prose(second)))


def test_cells_that_show_only_ticks_or_nothing_are_counted() -> None:
    silent = [
        code("x = 1"),
        code("claim('it holds', True)", plain="✓ it holds"),
        code("preflight(config)", markdown="✓ ready: torch"),
        code("print()", plain="\n"),
    ]
    loud = [
        code("x", plain="42"),
        code("claim('it holds', True)\nx", plain="✓ it holds\n42"),
        code("plot()", png="…"),
    ]
    left_out = [
        code("my_guess = ...  # a share"),
        code("answer = ...\ncheck_it(answer)", plain="Not tried yet: …"),
    ]
    found, count = silent_cells(notebook(*silent, *loud, *left_out))
    assert found == ids(*silent)
    assert count == len(silent) + len(loud)


def test_plotted_shares_are_read_from_the_outputs() -> None:
    note = {"image/png": {"alt": "…", PLOTTED_SHARES: [0.0, 0.05, 0.5, 0.96]}}
    noted = code("plot_proportions(scores)", note, png="…")
    bare = code("plot_curves(curves)", {"image/png": {"alt": "…"}}, png="…")
    made = notebook(noted, bare, code("plot_loss_panels(histories)", png="…"))
    assert plotted_shares(made) == [0.0, 0.05, 0.5, 0.96]
    assert near_the_ends(plotted_shares(made)) == 3
    assert plots_without_a_note(made) == ids(bare)


@pytest.mark.parametrize(
    "text",
    [
        "Language models guess.",
        "What larger models do is another matter.",
        "Most models fail here.",
        "Models usually end with a full stop.",
        "An LLM has no memory.",
        "[Large models](https://example.org) do better.",
    ],
)
def test_a_statement_about_models_in_general_needs_its_evidence(text: str) -> None:
    bare, title = prose(text), prose(f"# Title\n\n{text}")
    assert list(general_without_evidence(notebook(title, bare))) == ids(bare)
    for tag in ("lab", "real", "cited"):
        assert not general_without_evidence(notebook(title, prose(text, tag)))


@pytest.mark.parametrize(
    "text",
    [
        "The model guesses, and both models fail.",
        "## 1 · Language models\n\nHere is one.",
        "![Large models as boxes](figures/map.svg)",
        "`language models` is a string.",
        "## You can now\n\n- open any model.",
    ],
)
def test_what_is_said_of_the_models_at_hand_needs_none(text: str) -> None:
    assert not general_without_evidence(notebook(prose("# Title"), prose(text)))


def test_a_cited_statement_has_a_link() -> None:
    linked = prose("[Most models](https://example.org/paper) fail.", "cited")
    bare = prose("Most models [fail](#1-·-First).", "cited")
    assert cited_without_link(notebook(linked, bare)) == ids(bare)


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A repository with a notebook of two headings, a card and a figure."""
    folder = tmp_path / "repository" / "notebooks"
    (folder / "experiments").mkdir(parents=True)
    (folder / "map.svg").touch()
    (tmp_path / "outside.md").touch()
    made = notebook(
        prose("# Title\n\n## 1 · What `it` *is*"),
        prose("```\n# no heading\n```\n\n### A [link](x) in it\n\n<a id='own'></a>"),
    )
    nbformat.write(made, folder / "01_first.ipynb")
    (folder.parent / "README.md").write_text("## What is where?\n", encoding="utf-8")
    return folder


def test_anchors_are_those_of_jupyterlab_and_github(course: Path) -> None:
    first = {"Title", "1-·-What-it-is", "A-link-in-it", "own"}
    assert anchors(course / "01_first.ipynb") == first
    assert anchors(course.parent / "README.md") == {"what-is-where"}


def test_links_are_followed_within_the_repository(course: Path) -> None:
    good = [
        "[a](https://example.org/none)",
        "[a](../01_first.ipynb)",
        "[a](../01_first.ipynb#1-·-What-it-is)",
        "[a](../01_first.ipynb#1-%C2%B7-What-it-is)",
        "[a](#2-·-Here)\n\n## 2 · Here",
        "[a](../../README.md#what-is-where)",
        "![a map](../map.svg)",
        "[`code`](../map.svg)",
        "`[a](none.md)` and\n\n```\n[a](none.md)\n```",
        '<a href="#own">a</a> <a id="own"></a>',
    ]
    bad = [
        "[a](01_first.ipynb)",
        "[a](../01_first.ipynb#1-·-what-it-is)",
        "[a](#3-·-Here)",
        "[a](../../README.md#What-is-where?)",
        "![a map](map.svg)",
        "[a](../../../outside.md)",
        '<img src="none.png">',
    ]
    path = course / "experiments" / "01_more.ipynb"
    nbformat.write(notebook(*map(prose, good)), path)
    assert dead_links(path, course.parent) == []
    for text in bad:
        cell = prose(text)
        nbformat.write(notebook(cell), path)
        assert len(dead_links(path, course.parent)) == 1, text
