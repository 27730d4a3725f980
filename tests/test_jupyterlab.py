"""JupyterLab in a browser: a lesson run by the menu, exercises, a self-check."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from support.jupyterlab import OpenNotebook, asked, jupyterlab
from support.page_server import browser, chromium
from support.wrong_answers import wrong_answers
from utils.course import ROOT

pytestmark = pytest.mark.skipif(not chromium(), reason="no Chromium on this machine")

LONGEST_RUN = 1200  # seconds; lesson 02 on one thread, beside another test
# The lesson, and the check of one exercise.
LESSONS = [
    pytest.param("01_language_models", "check_encode", id="01"),
    pytest.param("02_prompting", "check_vote", id="02", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab with all lessons, as they were cloned; yields its address."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    with jupyterlab(home, COURSE_BUILD=str(home / "build")) as address:
        yield address


@pytest.fixture
def page() -> Iterator[Page]:
    """A window of a browser that has no memory."""
    with browser() as started:
        context = started.new_context(viewport={"width": 1300, "height": 900})
        yield context.new_page()
        context.close()


@pytest.mark.parametrize(("lesson", "check"), LESSONS)
def test_a_lesson_runs_by_the_menu_and_its_exercise_answers(
    lesson: str, check: str, lab: str, page: Page
) -> None:
    opened = OpenNotebook(page, lab, f"{lesson}.ipynb")
    opened.run_all(LONGEST_RUN)

    cells = opened.saved().cells
    run = [cell for cell in cells if cell.cell_type == "code"]
    # Each in its place: run in this kernel, from top to bottom.
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
    outputs = [output for cell in run for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    _plots_are_drawn(opened, run)

    wrong, hint = wrong_answers(Path(f"{lesson}.ipynb"))[check][0]
    (place,) = [
        number for number, cell in enumerate(cells) if f"{check}(" in cell.source
    ]
    call = cells[place].source.splitlines()[-1]
    right = re.search(r"```python\n(.*?)```", cells[place + 1].source, re.DOTALL)[1]
    cell = opened.cell(call)
    expect(cell.locator(".jp-OutputArea-output").last).to_contain_text("Not tried yet")
    imports = f"from utils.exercises.lesson_{lesson[:2]} import *\n"
    opened.answer(cell, f"{imports}{wrong}\n{call}", re.compile(hint))
    opened.answer(cell, f"{imports}{right}\n{call}", re.compile("^✓"))


def _plots_are_drawn(opened: OpenNotebook, run: list) -> None:
    """See that the browser shows a notebook's plots, each with its pixels."""
    plotted = [
        cell
        for cell in run
        if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    assert plotted
    for cell in plotted:
        shown = opened.cell(max(cell.source.splitlines(), key=len).strip())
        image = shown.locator(".jp-OutputArea-output img").first
        expect(image).to_be_visible()
        assert image.evaluate("img => img.complete && img.naturalWidth") > 100


def test_a_self_check_is_answered_by_keyboard_before_anything_is_trusted(
    lab: str, page: Page
) -> None:
    name = "05_evaluation.ipynb"
    cells = asked(f"{lab}/api/contents/{name}")["content"]["cells"]
    trusted = [cell["metadata"].get("trusted") for cell in cells if "outputs" in cell]
    assert trusted and not any(trusted)
    check = OpenNotebook(page, lab, name).cell("Self-check", kind="jp-MarkdownCell")
    choices = check.locator("details")
    expect(choices).to_have_count(len(_summaries(cells)))
    assert choices.locator("summary").all_inner_texts() == _summaries(cells)
    check.locator("summary").first.focus()
    for number, verdict in enumerate(("Right.", "No.", "No.")):
        page.keyboard.press("Space")
        said = choices.nth(number).locator("p")
        expect(said).to_be_visible()
        expect(said).to_contain_text(verdict)
        page.keyboard.press("Tab")
    # The links of the cell lead to headings and pages, without ids of its own.
    assert check.get_by_role("link", name="glossary").count() == 1


def _summaries(cells: list[dict]) -> list[str]:
    """What the closed answers show, as stored."""
    (source,) = [cell["source"] for cell in cells if cell.get("id") == "self-check"]
    return [
        line.partition("<summary>")[2].partition("</summary>")[0]
        for line in source.splitlines()
        if "<summary>" in line
    ]
