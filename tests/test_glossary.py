"""The glossary: a sentence for each term, and the place where a lesson explains it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from support.second_edition import anchors
from utils.course import ROOT
from utils.site.glossary import (
    PAGE,
    GlossaryError,
    Term,
    first_use,
    first_uses,
    page,
    read_terms,
)


def test_the_page_is_what_the_command_writes() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert text == page(read_terms()), "run `python -m utils.site.glossary`"


def test_each_term_has_one_sentence_and_a_section_that_uses_it() -> None:
    terms = read_terms()
    assert len(terms) > 60
    assert len({term.name.lower() for term in terms}) == len(terms)
    for term in terms:
        assert term.says.endswith(".") and ". " not in term.says, term.name
        assert "\n" not in term.says and len(term.says.split()) < 32, term.name
        place = first_use(term)
        heading = place.heading.replace(" ", "-")
        path = ROOT / "notebooks" / place.notebook
        assert not heading or heading in anchors(path), term.name
        assert f"*{place.spelling}" in path.read_text("utf-8").lower(), term.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A course of two lessons."""
    for name, texts in {
        "01_first.ipynb": (
            "# First\n\nA *thing*.",
            "## 1 · One\n\n`*code*` and 3 * 4 * 5.\n\n## 2 · Two\n\nThe *Loss*.",
            "Here [*linked*](https://example.org).",
        ),
        "02_second.ipynb": ("# Second\n\n## 1 · Again\n\nThe *loss*, *code*.",),
    }.items():
        cells = [nbformat.v4.new_markdown_cell(text) for text in texts]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("spelling", "link"),
    [
        ("thing", "[lesson 01](01_first.ipynb)"),
        ("loss", "[lesson 01, section 2](01_first.ipynb#2-·-Two)"),
        ("linked", "[lesson 01, section 2](01_first.ipynb#2-·-Two)"),
        ("code", "[lesson 02, section 1](02_second.ipynb#1-·-Again)"),
    ],
)
def test_the_first_use_is_found(folder: Path, spelling: str, link: str) -> None:
    assert str(first_use(Term(spelling, "It is.", (spelling,)), folder)) == link


def test_a_term_that_no_lesson_uses_is_refused(folder: Path) -> None:
    with pytest.raises(GlossaryError, match="No lesson sets 'nowhere' in italics"):
        page([Term("nowhere", "It is.", ("nowhere",))], folder)


def test_a_lesson_knows_its_terms() -> None:
    here = dict(first_uses(ROOT / PAGE, "04_lora_training.ipynb"))
    assert here["adapter"] == "adapter" and here["merge"] == "merging"
    assert "token" not in here
