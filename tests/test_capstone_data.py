"""The three files of the capstone are what their card says."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from utils.course import ROOT
from utils.dataset.__main__ import main
from utils.dataset.checks import check
from utils.dataset.faqs import Faqs, load_faqs
from utils.dataset.splits import split
from utils.evaluation.answers import check_rules, judge_for

FOLDER = ROOT / "data" / "capstone"
CARD = (ROOT / "data" / "README.md").read_text("utf-8")
FILES = sorted(path.name for path in FOLDER.iterdir())
WORDINGS = 4  # of each thing
each_file = pytest.mark.parametrize("name", FILES)


@pytest.fixture(scope="module")
def read() -> dict[str, Faqs]:
    return {name: load_faqs(FOLDER / name) for name in FILES}


def groups_in(faqs: Faqs) -> Any:
    return faqs.frame["fact" if "fact" in faqs.frame else "group"]


@each_file
def test_rows_and_groups_are_as_many_as_the_card_says(name: str, read) -> None:
    stated = re.search(rf"^\| `capstone/{name}` \| (\d+) \| (\d+) \|", CARD, re.M)
    assert stated, f"data/README.md has no line for {name}"
    counts = groups_in(read[name]).value_counts()
    assert (len(read[name]), len(counts)) == tuple(map(int, stated.groups()))
    assert set(counts) == {WORDINGS}
    answers = read[name].frame.groupby(groups_in(read[name]))["response"].nunique()
    assert set(answers) == {1}, "the rows of a group have one answer"


@each_file
def test_nothing_is_repaired_or_left_to_look_at(name: str, read) -> None:
    report = check(read[name])
    assert report.exit_code == 0, report
    # The one note says by which column the file is split.
    assert [note[:11] for note in read[name].notes] == ["The column "]


def test_the_command_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(FOLDER / "messages.csv"), "--model", "lab"]) == 0
    assert "Nothing." in capsys.readouterr().out


def test_the_parts_have_the_sizes_that_the_card_states(read) -> None:
    tested = [len(split(faqs)["test"]) for faqs in read.values()]
    groups = [
        len({row.get("fact") or row["group"] for row in split(faqs)["test"]})
        for faqs in read.values()
    ]
    assert f"{min(tested)} to {max(tested)} rows\nof six or seven groups" in CARD
    assert {min(groups), max(groups)} == {6, 7}


def test_classes_are_balanced(read) -> None:
    counts = Counter(read["messages.csv"].frame["response"])
    assert set(counts.values()) == {32}
    assert all(f"`{name}`" in CARD for name in counts)


@pytest.mark.parametrize("name", [n for n in FILES if n != "messages.csv"])
def test_a_rule_passes_its_own_answer_and_no_other(name: str, read) -> None:
    rows = read[name].frame.to_dict("records")
    assert check_rules(rows) == []
    one_each = list({row["fact"]: row for row in rows}.values())
    judge = judge_for(one_each)
    for shift in range(1, len(one_each)):
        others = [*one_each[shift:], *one_each[:shift]]
        passed = judge.right([row["response"] for row in others], one_each)
        found = zip(one_each, others, passed, strict=True)
        assert not [(a["fact"], b["fact"]) for a, b, right in found if right]
