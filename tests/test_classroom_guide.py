"""The instructors' guide: its figures are computed, its cells exist, its plans fit."""

from __future__ import annotations

import re

import nbformat
import pytest

from support.reading_time import stated_in
from utils.classroom import guide
from utils.classroom.guide import (
    GUIDE,
    LEARNERS,
    GuideError,
    aws_cost,
    known_prices,
    lesson_path,
    read_needs,
    section_of,
    table,
    up_to_date,
    with_links,
)
from utils.course import ROOT

TEXT = GUIDE.read_text(encoding="utf-8")
PLANS = {"90 minutes": 90, "One day": 360, "Two days": 720}
PLAN_ROW = re.compile(r"^\| (?P<minutes>\d+) \| (?P<what>.+?) \| .*\|$", re.MULTILINE)
LESSON = re.compile(r"\[(?P<number>\d\d)\]\((?P<file>[\w.]+)\)")
SECTIONS = re.compile(r"sections? (?P<list>[\d ,to and]+)")


def test_table_and_links_are_as_the_readme_the_notebooks_and_the_prices_say() -> None:
    assert up_to_date(TEXT) == TEXT, "run `python -m utils.classroom guide`"


def test_each_notebook_has_its_row() -> None:
    names = {needs.path for needs in read_needs()}
    root = ROOT / "notebooks"
    numbered = [*root.glob("[0-9][0-9]_*.ipynb"), *root.glob("experiments/*.ipynb")]
    assert names == {p.relative_to(root).with_suffix("").as_posix() for p in numbered}


def test_costs_are_prices_times_machines_times_the_time() -> None:
    needs = {one.name: one for one in read_needs()}
    prices = known_prices()
    hour = prices["ml.g5.xlarge"].usd
    assert aws_cost(needs["02"], prices) is None
    one = aws_cost(needs["06"], prices)
    assert one == pytest.approx(hour * needs["06"].minutes / 60)
    assert aws_cost(needs["07"], prices, 40) == pytest.approx(
        40 * 2 * hour * needs["07"].minutes / 60
    )
    assert f"${one:,.2f} | ${LEARNERS * one:,.2f} |" in table()
    # Each price with its day and its source.
    for price in ("ml.g5.xlarge", "ml.m5.xlarge"):
        assert f"- {prices[price]}." in TEXT


def plan(name: str) -> str:
    """The section of the guide with a plan."""
    found = re.search(rf"^### {name}.*?(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    return found[0]


def sections_in(text: str) -> list[int]:
    """Sections that a row of a plan names: "1 to 3", or "1, 3 and 6"."""
    found = SECTIONS.search(text)
    if found is None:
        return []
    numbers = [int(one) for one in re.findall(r"\d+", found["list"])]
    if "to" in found["list"]:
        first, last = numbers
        return list(range(first, last + 1))
    return numbers


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_takes_its_time_and_each_row_has_enough(name: str) -> None:
    rows = list(PLAN_ROW.finditer(plan(name)))
    assert sum(int(row["minutes"]) for row in rows) == PLANS[name]
    with_sections = 0
    for row in rows:
        lesson = LESSON.search(row["what"])
        if lesson is None:
            continue
        path = lesson_path(lesson["number"])
        assert lesson["file"] == path.name
        notebook = nbformat.read(path, as_version=4)
        sections = stated_in(notebook)[0].items()
        stated = {int(heading.split()[1]): minutes for heading, minutes in sections}
        wanted = sections_in(row["what"])
        assert set(wanted) <= set(stated), f"{row[0]}: {path.name} has {sorted(stated)}"
        taken = sum(stated[number] for number in wanted)
        assert taken <= int(row["minutes"]), f"{row[0]} takes {taken} minutes"
        with_sections += bool(wanted)
    assert with_sections >= 4


def test_misconceptions_lead_to_cells_of_every_lesson() -> None:
    places = list(guide.PLACE.finditer(TEXT))
    assert {place["lesson"] for place in places} == {f"{n:02}" for n in range(1, 9)}
    assert len(places) >= 20
    rows = [line for line in TEXT.splitlines() if line.startswith("| “")]
    assert len(rows) == len(places)


def test_a_cell_is_found_in_its_section(make_notebook, tmp_path) -> None:
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Title", id="title"),
        new.new_markdown_cell("## 1 · First\n\n*4 minutes*\n\nText.", id="first"),
        new.new_markdown_cell(
            "Seen.\n\n## 2 · Second\n\n*1 minute*\n\nMore.", id="seen"
        ),
        new.new_code_cell("1", id="code"),
    ]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = folder / "02_x.ipynb"
    nbformat.write(new.new_notebook(cells=cells), path)
    assert section_of(path, "first") == (1, "1 · First")
    assert section_of(path, "seen") == (1, "1 · First"), "its text begins there"
    assert section_of(path, "code") == (2, "2 · Second")
    text = "| x | [02, section 9](old.ipynb#gone), cell `code` |"
    place = "[02, section 2](02_x.ipynb#2-·-Second), cell `code`"
    assert with_links(text, tmp_path) == f"| x | {place} |"
    for cell in ("title", "gone"):
        with pytest.raises(GuideError, match=f"no cell '{cell}' in a section"):
            section_of(path, cell)
    with pytest.raises(GuideError, match="no lesson 99"):
        lesson_path("99")
    with pytest.raises(GuideError, match="restore it"):
        up_to_date("# A guide")
