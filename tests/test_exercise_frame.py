"""When an exercise counts as not tried, also where the answer is a function."""

from __future__ import annotations

import pytest

from utils.exercises.frame import NotTried, Wrong, exercise


@exercise("a number above two")
def check_number(answer):
    if answer == 0:
        raise NotTried
    if answer == 1:
        raise NotTried("change the line with the rate.")
    if callable(answer):
        answer = answer(3)
    if answer <= 2:
        raise Wrong("too small.")
    return "it is."


def empty(number): ...


def documented(number: int) -> int:
    """Double it."""
    ...


@pytest.mark.parametrize("stub", [..., [1, ...], {"a": ...}, 0, empty, documented])
def test_an_untouched_answer_is_no_mistake(stub) -> None:
    assert repr(check_number(stub)) == (
        "Not tried yet: replace ... with a number above two."
    )


def test_code_that_does_what_it_did_is_told_so() -> None:
    assert repr(check_number(1)) == "Not tried yet: change the line with the rate."


def test_answers_are_judged_functions_too() -> None:
    assert check_number(3).passed
    assert check_number(lambda number: 5).passed
    assert check_number(lambda number: 2 * number).passed
    assert repr(check_number(2)) == "✗ Not yet: too small."
    assert check_number(lambda number: number - 1).passed is False
