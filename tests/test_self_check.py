"""The questions at the end of each notebook, as they stand there."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml

from support.second_edition import dead_links
from utils.course import ROOT
from utils.exercises import self_check
from utils.exercises.self_check import (
    CELL,
    LETTERS,
    SelfCheck,
    SelfCheckError,
    cell_source,
    minutes_of,
    read_questions,
    self_checks,
    with_self_check,
)
from utils.run import find_notebooks

SELF_CHECKS = self_checks()
each_notebook = pytest.mark.parametrize(
    "one", SELF_CHECKS, ids=[one.name for one in SELF_CHECKS]
)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def folded(source: str) -> list[tuple[str, str]]:
    """What can be opened in a cell: its summary, and what it then shows."""
    pattern = r"<details><summary>(.+)</summary>\n\n(.+)\n\n</details>"
    return re.findall(pattern, source)


def without_html(source: str) -> str:
    """The text where HTML is stripped."""
    return re.sub(r"</?[a-z][^>]*>", "", source)


def test_each_notebook_has_questions() -> None:
    assert [one.path for one in SELF_CHECKS] == find_notebooks(ROOT / "notebooks")
    files = sorted(self_check.FOLDER.iterdir())
    assert sorted(one.file for one in SELF_CHECKS) == files, "one has no notebook"


@each_notebook
def test_the_cell_is_what_the_command_writes(one: SelfCheck) -> None:
    notebook, questions = read(one.path), read_questions(one.file)
    remedy = f"run `python -m utils.exercises.self_check {one.name}`"
    assert [cell.id for cell in notebook.cells][-2] == CELL, remedy
    assert notebook.cells[-2].source == cell_source(questions, notebook, one.up), remedy
    before = nbformat.writes(notebook)
    assert nbformat.writes(with_self_check(notebook, questions, one.up)) == before
    # Its links lead to sections, the glossary and the page of errors.
    dead = dead_links(one.path, ROOT)
    assert not [fault for fault in dead if fault.startswith(CELL)]


@each_notebook
def test_each_answer_says_what_it_is_worth(one: SelfCheck) -> None:
    """And nothing in the cell could be taken out by JupyterLab's sanitiser."""
    questions, source = read_questions(one.file), read(one.path).cells[-2].source
    opened = folded(source)
    assert len(opened) == source.count("<details>") == source.count("</details>")
    letters = [
        LETTERS[number] for each in questions for number, _ in enumerate(each.answers)
    ]
    assert [summary[:2] for summary, _ in opened] == [
        f"{letter}." for letter in letters
    ]
    told = [feedback for _, feedback in opened]
    assert len(set(told)) == len(told)
    right = [answer.right for each in questions for answer in each.answers]
    assert [text.startswith("**Right.**") for text in told] == right
    assert [text.startswith("**No.**") for text in told] == [
        not is_right for is_right in right
    ]
    tags = set(re.findall(r"<(/?[\w-]+)([^>]*)>", source))
    known = {"details", "summary", "code", "em"}
    assert {tag.lstrip("/") for tag, _ in tags} <= known
    assert not any(attributes for _, attributes in tags)


@each_notebook
def test_it_reads_in_order_where_html_is_stripped(one: SelfCheck) -> None:
    text = without_html(read(one.path).cells[-2].source)
    place = 0
    for number, question in enumerate(read_questions(one.file), start=1):
        pieces = [f"**{number}.** {question.text}"]
        for letter, answer in zip(LETTERS, question.answers, strict=False):
            plain = re.sub(r"[`*]", "", answer.text)
            pieces += [f"{letter}. {plain}", answer.feedback]
        for piece in pieces:
            found = text.find(piece, place)
            assert found >= place, piece
            place = found + len(piece)


def test_right_answers_are_not_told_by_place_or_length() -> None:
    places: Counter[int] = Counter()
    longest = shortest = count = 0
    for check in SELF_CHECKS:
        here = []
        for question in read_questions(check.file):
            lengths = [len(answer.text) for answer in question.answers]
            (right,) = [n for n, one in enumerate(question.answers) if one.right]
            here.append(right)
            longest += lengths[right] == max(lengths)
            shortest += lengths[right] == min(lengths)
            count += 1
        assert len(set(here)) > 2, f"{check.name}: {here}"
        places.update(here)
    assert max(places.values()) < count / 2
    assert longest < count / 2 and shortest < count / 2


# --- parts ----------------------------------------------------------------------------


def written(folder: Path, change: dict, number: int = 0) -> Path:
    """The questions of lesson 01, one of them changed."""
    found = yaml.safe_load(SELF_CHECKS[0].file.read_text(encoding="utf-8"))
    found[number] |= change
    file = folder / "lesson_01.yaml"
    file.write_text(yaml.safe_dump(found), encoding="utf-8")
    return file


def choices(*right: bool) -> dict:
    return {
        "choices": [
            {"answer": f"answer {n}", "feedback": f"feedback {n}", "right": one}
            for n, one in enumerate(right)
        ]
    }


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (choices(True, True, False), "question 1: 2 answers are right, not one"),
        (choices(False, False, False), "question 1: 0 answers are right, not one"),
        (choices(True, False), "it has 2 answers, not three or four"),
        ({"question": "Does it cost $5 or $6?"}, "it has a dollar sign"),
        (
            {"choices": choices(True, False, False)["choices"][:2] * 2},
            "2 answers are right, not one",
        ),
        ({"choices": [{"answer": "A"}]}, "cannot be read"),
        ({"choices": [{"answer": 12, "feedback": "no"}]}, "cannot be read"),
        ({"section": "one"}, "cannot be read"),
    ],
)
def test_a_question_with_a_fault_is_refused(
    tmp_path: Path, change: dict, fault: str
) -> None:
    with pytest.raises(SelfCheckError, match=re.escape(fault)):
        read_questions(written(tmp_path, change))


def test_the_same_feedback_twice_is_refused(tmp_path: Path) -> None:
    found = choices(True, False, False)
    found["choices"][2]["feedback"] = found["choices"][1]["feedback"]
    with pytest.raises(SelfCheckError, match="two answers have the same feedback"):
        read_questions(written(tmp_path, found))
    file = written(tmp_path, {})
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text())[:4]))
    with pytest.raises(SelfCheckError, match="there are 4 questions, not 5"):
        read_questions(file)


def test_a_section_that_is_not_there_is_refused(tmp_path: Path) -> None:
    questions = read_questions(written(tmp_path, {"section": 99}))
    with pytest.raises(SelfCheckError, match="Question 1 names section 99"):
        cell_source(questions, read(SELF_CHECKS[0].path))


def test_code_and_signs_of_html_in_an_answer() -> None:
    assert (
        self_check._as_html("`a < b` & *B*") == "<code>a &lt; b</code> &amp; <em>B</em>"
    )


def test_the_minutes_are_those_of_the_rule() -> None:
    answers = (self_check.Answer("word " * 25, "word " * 25),) * 3
    question = self_check.Question(1, "word " * 150, answers)
    assert minutes_of([question] * 2) == round((2 * 300) / 150 + 2 * 0.5)


def test_the_command_writes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the cell is missing or was edited; nothing else changes."""
    path = tmp_path / SELF_CHECKS[0].path.name
    shutil.copy(SELF_CHECKS[0].path, path)
    monkeypatch.setattr(self_check, "NOTEBOOKS", tmp_path)
    original = path.read_bytes()
    notebook = read(path)
    without = nbformat.from_dict(notebook)
    without.cells = [cell for cell in notebook.cells if cell.id != CELL]
    edited = nbformat.from_dict(notebook)
    edited.cells[-2].source = "edited"
    for changed in (notebook, without, edited):
        path.write_text(nbformat.writes(changed) + "\n", encoding="utf-8")
        assert self_check.main(["01"]) == 0
        assert path.read_bytes() == original
    stamp = path.stat().st_mtime_ns
    assert self_check.main(["01"]) == 0
    assert path.stat().st_mtime_ns == stamp
    assert "5 questions, 6 minutes" in capsys.readouterr().out
    assert self_check.main(["99"]) == 1
    assert "There is no notebook '99'" in capsys.readouterr().err
