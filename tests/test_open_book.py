"""utils.dataset.open_book: rows with notes, in the shares that were asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from utils.dataset.open_book import (
    NO_ANSWER,
    Mix,
    context,
    says_nothing,
    with_notes,
)
from utils.dataset.table import DataError

FACTS = [f"f{number}" for number in range(12)]
NOTES = {fact: [f"The note of {fact}."] for fact in FACTS}
ROWS = [
    {"instruction": f"{fact}?", "response": f"It is {fact}.", "fact": fact}
    for fact in FACTS
    for _ in range(6)
]
RANKED = [FACTS for _ in ROWS]


def form(row) -> str:
    shown = row["context"].split("\n") if row["context"] else []
    right = f"- {NOTES[row['fact']][0]}" in shown
    if not shown:
        return "without"
    if not right:
        return "unanswered"
    return "alone" if len(shown) == 1 else "among"


def test_the_forms_follow_the_shares_and_each_part_of_the_rows_has_all() -> None:
    made = with_notes(ROWS, NOTES, RANKED, Mix(3, 3, 2, 1))
    assert Counter(map(form, made)) == {
        "alone": 24,
        "among": 24,
        "unanswered": 16,
        "without": 8,
    }
    for start in range(0, len(made) - 9, 9):
        assert len({form(row) for row in made[start : start + 9]}) == 4


def test_the_answer_is_the_rows_own_unless_no_note_holds_it() -> None:
    for row, made in zip(ROWS, with_notes(ROWS, NOTES, RANKED), strict=True):
        expected = NO_ANSWER if form(made) == "unanswered" else row["response"]
        assert made["response"] == expected
        assert made["instruction"] == row["instruction"]


def test_the_right_note_stands_in_every_place() -> None:
    made = with_notes(ROWS, NOTES, RANKED, Mix(0, 1, 0, 0))
    places = Counter(
        row["context"].split("\n").index(f"- {NOTES[row['fact']][0]}") for row in made
    )
    assert set(places) == {0, 1, 2} and min(places.values()) > len(made) / 6
    assert {len(row["context"].split("\n")) for row in made} == {3}


def test_wrong_notes_are_those_that_the_search_ranks_highest() -> None:
    made = with_notes(ROWS, NOTES, RANKED, Mix(0, 0, 1, 0), hardest=4)
    shown = {line for row in made for line in row["context"].split("\n")}
    assert shown == {f"- {NOTES[fact][0]}" for fact in FACTS[:5]}
    sizes = Counter(len(row["context"].split("\n")) for row in made)
    assert set(sizes) == {1, 2, 3}


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    once, again = (with_notes(ROWS, NOTES, RANKED, seed=1) for _ in range(2))
    assert once == again != with_notes(ROWS, NOTES, RANKED, seed=2)


def test_the_rows_given_stay_as_they_are() -> None:
    before = [dict(row) for row in ROWS]
    with_notes(ROWS, NOTES, RANKED)
    assert before == ROWS


def test_a_note_is_one_line() -> None:
    assert context(["One\nnote.", "  Another  one. "]) == "- One note.\n- Another one."
    assert context([]) == ""


def test_a_row_without_a_note_is_named() -> None:
    with pytest.raises(DataError, match="Row 0 is about 'f0', which has no note"):
        with_notes(ROWS[:1], {}, RANKED[:1])


def test_too_few_wrong_notes_are_an_error() -> None:
    with pytest.raises(DataError, match="Row 0 needs 2 notes .* gave 1"):
        with_notes(ROWS[:1], NOTES, [["f0", "f1"]], Mix(0, 1, 0, 0))


def test_rankings_that_do_not_fit_the_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 rankings for 72 rows"):
        with_notes(ROWS, NOTES, RANKED[:1])


@pytest.mark.parametrize("shares", [(0, 0, 0, 0), (1, -1, 0, 0)])
def test_shares_that_deal_nothing_are_refused(shares) -> None:
    with pytest.raises(ValueError, match="The shares are"):
        Mix(*shares)


def test_a_note_never_shows_the_question_that_is_asked() -> None:
    forms = {
        fact: [f"{fact}? It is so.", f"Which {fact}, say! It is so."] for fact in FACTS
    }
    made = with_notes(ROWS, forms, RANKED, Mix(1, 1, 1, 0))
    assert not [row for row in made if row["instruction"] in row["context"]]
    # Of other notes, both forms are met.
    shown = " ".join(row["context"] for row in made)
    assert "f3? It is so." in shown and "Which f3, say!" in shown


def test_a_note_in_the_words_of_the_question_only_is_an_error() -> None:
    with pytest.raises(DataError, match="Row 0: every form of a note holds"):
        with_notes(ROWS[:1], {"f0": ["f0? Yes."]}, RANKED[:1], Mix(1, 0, 0, 0))


@pytest.mark.parametrize(
    ("answer", "nothing"),
    [
        (NO_ANSWER, True),
        ("the notes don't say", True),
        ("Sorry, but the notes do not say.", True),
        ("The notes say 5 days.", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_what_counts_as_saying_nothing(answer, nothing) -> None:
    assert says_nothing(answer) is nothing
