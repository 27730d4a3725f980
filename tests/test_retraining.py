"""The checked set, reason by reason; and what is promoted where the truth is known."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

from support.tiny_models import tiny_tokenizer
from utils.jobs.decision import Decision, DecisionError, compare
from utils.jobs.retraining import (
    CONTRADICTION,
    DUPLICATE,
    FEEDBACK,
    IN_TEST,
    NEW,
    NO_TEXT,
    OLD,
    OTHER_ANSWER,
    PERSONAL,
    VOTED_DOWN,
    RetrainingError,
    checked_set,
)
from utils.templates import instruction_template


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"instruction": question, "response": answer, **more}


LIMIT = row("How many models does a group hold?", "A group holds 50 models.", fact="a")
START = row("Who may start a job?", "Whoever has the role may start a job.")
OLD_ROWS = [LIMIT, START]
TEST = [row("Where are logs kept?", "They are kept in CloudWatch.")]
GOOD = row("What is a channel?", "A channel is a folder of data.")

# A row that came → origin, kind and a part of the reason with which it is left out.
LEFT_OUT = {
    "no question": (row("  ", "Yes."), NO_TEXT, "instruction is empty"),
    "no answer": (row("What is spot?", None), NO_TEXT, "response is empty"),
    "to do": (row("What is spot?", "TBD"), NO_TEXT, "'TBD'"),
    "spreadsheet": (row("What is spot?", "#REF!"), NO_TEXT, "#REF!"),
    "e-mail": (row("Who helps?", "Ask ada@example.org."), PERSONAL, "an e-mail"),
    "telephone": (
        row("Call me at +49 30 901820. What is spot?", "A discount."),
        PERSONAL,
        "instruction holds a telephone number",
    ),
    "key": (
        row("What is mine?", "It is AKIAIOSFODNN7EXAMPLA."),
        PERSONAL,
        "an AWS access key",
    ),
    "tested": (row("where are logs kept", "In a bucket."), IN_TEST, "asks it"),
    "tested in other words": (
        row("Where are the logs actually kept?", "In a bucket."),
        IN_TEST,
        "asks it",
    ),
    "duplicate": (dict(START), DUPLICATE, "already"),
    "duplicate but for signs": (
        row("who may start a job", "Whoever has the role, may start a job"),
        DUPLICATE,
        "already",
    ),
    "another number": (
        row(LIMIT["instruction"], "A group holds 80 models."),
        CONTRADICTION,
        "the old row answers 'A group holds 50 models.'",
    ),
    "another answer": (
        row(START["instruction"], "Whoever has the role and a quota may start a job."),
        OTHER_ANSWER,
        "a person has to choose",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_row_is_left_out_with_its_reason(kind) -> None:
    bad, expected, reason = LEFT_OUT[kind]
    found = checked_set(OLD_ROWS, [bad, GOOD], TEST)
    assert found.rows == [*OLD_ROWS, GOOD]
    assert found.counts == {(NEW, expected): 1}
    (out,) = found.left_out
    assert reason in out.reason
    assert (found.added, found.replaced) == (1, 0)
    if expected == PERSONAL:
        shown = f"{out}{found}{found.table()}"
        assert not any(text in shown for text in ("ada@", "901820", "AKIA"))


NOT_THE_SAME = {
    "another number": row("How many models do 2 groups hold?", "They hold 100."),
    "the other way": row("Who may start from a job?", "Nobody."),
    "denied": row("Who may not start a job?", "Whoever has no role."),
    "asked for something else": row("When may a job start?", "At any time."),
    "another order": row("May a job start who?", "Nobody asks so."),
}


@pytest.mark.parametrize("kind", NOT_THE_SAME)
def test_a_question_that_is_another_one_stays(kind) -> None:
    assert checked_set(OLD_ROWS, [NOT_THE_SAME[kind]], TEST).added == 1


def test_old_rows_that_are_tested_go_too() -> None:
    found = checked_set([*OLD_ROWS, TEST[0]], [GOOD], TEST)
    assert found.counts == {(OLD, IN_TEST): 1}
    assert found.rows == [*OLD_ROWS, GOOD]


def test_a_person_may_choose_the_new_answer() -> None:
    new = row(LIMIT["instruction"], "A group holds 80 models.", fact="a")
    found = checked_set(
        OLD_ROWS, [new], TEST, replaces=["how many models does a group hold"]
    )
    assert found.rows == [new, START]
    assert (found.added, found.replaced, found.left_out) == (0, 1, [])
    twice = row(LIMIT["instruction"], "A group holds 90 models.")
    found = checked_set(OLD_ROWS, [new, twice], TEST, replaces=[LIMIT["instruction"]])
    assert found.rows == [new, START]
    assert found.counts == {(NEW, CONTRADICTION): 1}


def test_of_new_answers_that_differ_none_is_taken() -> None:
    three = [row("What is spot?", f"It saves {n}%.") for n in (70, 80, 90)]
    found = checked_set(OLD_ROWS, [*three, GOOD, three[0]], TEST)
    assert found.rows == [*OLD_ROWS, GOOD]
    assert found.counts == {(NEW, CONTRADICTION): 3, (NEW, DUPLICATE): 1}
    assert "It saves 80%." in found.left_out[1].reason


def test_feedback_becomes_rows() -> None:
    votes = [
        {"question": "What is a role?", "answer": "A right.", "thumb": "up"},
        {"question": "What is a job?", "answer": "No idea.", "thumb": "down"},
        {
            "question": "What is a step?",
            "answer": "No idea.",
            "thumb": "down",
            "correction": "A part of a pipeline.",
        },
        {"question": "What is a tag?", "answer": "A mark."},
        {"thumb": "up", "question_characters": 7},  # texts were not kept
    ]
    found = checked_set(OLD_ROWS, [], TEST, votes)
    assert found.rows[2:] == [
        row("What is a role?", "A right."),
        row("What is a step?", "A part of a pipeline."),
    ]
    assert found.counts == {(FEEDBACK, VOTED_DOWN): 1, (FEEDBACK, NO_TEXT): 2}


@pytest.mark.parametrize("new", [[], [dict(START)], [LEFT_OUT["e-mail"][0]]])
def test_nothing_new_is_refused(new) -> None:
    with pytest.raises(RetrainingError, match=f"Of {len(new)} rows"):
        checked_set(OLD_ROWS, new, TEST)


def test_the_same_rows_are_the_same_bytes() -> None:
    template = instruction_template(tiny_tokenizer())
    lines = [checked_set(OLD_ROWS, [GOOD], TEST).lines(template) for _ in range(2)]
    assert lines[0] == lines[1]
    assert lines[0].count(b"\n") == 3
    other = checked_set(OLD_ROWS, [row("What is é?", "A letter.")], TEST)
    assert other.lines(template) != lines[0]


# --- the decision ---------------------------------------------------------------------


def answers(right: int, n: int = 40) -> list[bool]:
    return [number < right for number in range(n)]


def test_a_better_version_is_promoted() -> None:
    found = compare(answers(20), answers(32))
    assert found.promote
    assert (found.live, found.new, found.gain) == (0.5, 0.8, pytest.approx(0.3))
    # McNemar's exact test: 12 questions are decided, all for the new version.
    assert found.p == pytest.approx(binomtest(12, 12).pvalue)
    assert found.low > 0
    assert "promote: it is better" in found.why
    assert f"p = {found.p:.2g}" in found.why
    assert found.why == str(found)
    assert Decision(**found.describe()) == found
    assert found.metrics() == {"right": 0.8, "live_right": 0.5, "p": found.p}


# live right, new right, what else is given, what the reason says
REFUSED = {
    "worse": (answers(32), answers(20), {}, "it is worse"),
    "alike": (answers(20), answers(20), {}, "not shown to be better"),
    "better by chance": (answers(20), answers(23), {}, "not shown to be better"),
    "too little": (answers(20), answers(32), {"min_gain": 0.4}, "below 40.0 points"),
    "stricter": (answers(20), answers(27), {"alpha": 0.01}, "not shown to be better"),
    "below the floor": (
        answers(2),
        answers(18),
        {"floor": 0.6},
        "45.0% right is below the floor of 60.0%",
    ),
    "first, too low": (None, answers(10), {"floor": 0.5}, "below the floor"),
    # Twelve wordings of one fact are one fact.
    "one fact": (
        answers(20),
        answers(32),
        {"groups": ["the same" if 20 <= n < 32 else n for n in range(40)]},
        "not shown to be better",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_another_is_refused_with_the_reason(kind) -> None:
    live, new, given, reason = REFUSED[kind]
    found = compare(live, new, **given)
    assert not found.promote
    assert found.why.startswith("refuse: ")
    assert reason in found.why
    assert "roll back" not in found.why and "keep the old" not in found.why


def test_the_first_version_needs_the_floor_only() -> None:
    found = compare(None, answers(30), floor=0.5)
    assert found.promote and found.live is None and found.p is None
    assert "none to compare it with" in found.why
    assert found.metrics() == {"right": 0.75}


@pytest.mark.parametrize(
    ("live", "new", "groups"),
    [([], [], None), ([True], [True, True], None), ([True], [True], ["a", "b"])],
)
def test_what_cannot_be_paired_is_refused(live, new, groups) -> None:
    with pytest.raises(DecisionError, match="as many of each"):
        compare(live, new, groups)
