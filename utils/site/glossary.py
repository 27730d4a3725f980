"""The course's terms and their first uses: `python -m utils.site.glossary`.

The definitions stand in `data/glossary.yaml`. The command looks for the place where the
lessons, in their order, first set a term in italics, and writes `notebooks/glossary.md`
with a link to it. The site links that place back to the glossary.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

from utils.course import ROOT, CourseError
from utils.files import write_text
from utils.site.pages import without_code

TERMS = ROOT / "data" / "glossary.yaml"
PAGE = "notebooks/glossary.md"  # from the root
SECTION = re.compile(r"^## ((\d+) · .+)$", re.MULTILINE)
ITALIC = re.compile(
    r"(?<![\w*])\*\[?(?P<text>[^*\[\]\n]+)\]?(?:\([^)\s]*\))?\*(?![\w*])"
)
ENTRY = re.compile(r"^## (?P<term>.+)\n\n.*\]\((?P<to>[\w.]+)[^)]*\)\.$", re.MULTILINE)
INTRODUCTION = """\
# Glossary

The terms of the course, each with the place where a lesson first explains it."""


class GlossaryError(CourseError):
    """A glossary that cannot be written; the message names the term."""


@dataclass(frozen=True)
class Term:
    """A term and what it means.

    Attributes:
        name: as the glossary lists it.
        says: one sentence.
        spellings: in which a lesson sets it in italics, in small letters.
    """

    name: str
    says: str
    spellings: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a term is first used.

    Attributes:
        notebook: the file's name.
        heading: of the section, such as "2 · Tune it"; "" before the first one.
        spelling: in which the term stands there.
    """

    notebook: str
    heading: str
    spelling: str

    def __str__(self) -> str:
        """Return the link to it, as Markdown."""
        lesson = f"lesson {self.notebook[:2]}"
        if not self.heading:
            return f"[{lesson}]({self.notebook})"
        number = self.heading.partition(" ")[0]
        anchor = self.heading.replace(" ", "-")
        return f"[{lesson}, section {number}]({self.notebook}#{anchor})"


def read_terms(file: Path = TERMS) -> list[Term]:
    """Return the terms, in alphabetical order."""
    found = [
        Term(
            one["term"],
            one["says"].strip(),
            tuple(text.lower() for text in (one["term"], *one.get("as", ()))),
        )
        for one in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]
    return sorted(found, key=lambda term: term.name.lower())


@functools.cache
def _italics(folder: Path) -> tuple[Place, ...]:
    """Return what the lessons set in italics, in the order in which they are read."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        heading = ""
        for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells:
            if cell.cell_type != "markdown":
                continue
            for section, text in _pieces(without_code(cell.source), heading):
                heading = section
                for italic in ITALIC.finditer(text):
                    place = Place(path.name, heading, italic["text"].lower())
                    found.append(place)
    return tuple(found)


def _pieces(source: str, heading: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a cell, each with the heading of its section."""
    place = 0
    for found in SECTION.finditer(source):
        yield heading, source[place : found.start()]
        heading, place = found[1], found.end()
    yield heading, source[place:]


def first_use(term: Term, folder: Path = ROOT / "notebooks") -> Place:
    """Return where the lessons first set a term in italics.

    Args:
        term: to look for, in any of its spellings.
        folder: of the lessons.

    Raises:
        GlossaryError: if no lesson does.
    """
    for place in _italics(folder):
        if place.spelling in term.spellings:
            return place
    raise GlossaryError(
        f"No lesson sets {term.name!r} in italics: add the spelling that it has there "
        "under `as`, or take the term out."
    )


def page(terms: Sequence[Term], folder: Path = ROOT / "notebooks") -> str:
    """Return the glossary as Markdown.

    Args:
        terms: in the order in which they are listed.
        folder: of the lessons.

    Raises:
        GlossaryError: if a term is nowhere in italics.
    """
    entries = [
        f"## {term.name}\n\n{term.says} First in {first_use(term, folder)}."
        for term in terms
    ]
    return "\n\n".join([INTRODUCTION, *entries]) + "\n"


def first_uses(glossary: Path, notebook: str) -> Iterator[tuple[str, str]]:
    """Yield the terms that a lesson is the first to use, by each of their spellings.

    Args:
        glossary: the page, as it was written.
        notebook: the lesson's file name.

    Yields:
        a spelling in small letters, and the term as the glossary lists it.
    """
    text = glossary.read_text(encoding="utf-8")
    here = {found["term"] for found in ENTRY.finditer(text) if found["to"] == notebook}
    for term in read_terms():
        if term.name in here:
            yield from ((spelling, term.name) for spelling in term.spellings)


def main() -> int:
    """Write the page; return the exit code."""
    try:
        text = page(read_terms())
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    write_text(ROOT / PAGE, text)
    print(f"{text.count(chr(10) + '## ')} terms in {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
