"""Checks for the exercises of lesson 09, the capstone; its ten are in `capstone`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.evaluation.answers import groups_of
from utils.evaluation.scores import Difference
from utils.exercises.frame import Wrong, called, exercise, require_type

# Of a word that promises more than an interval can.
PROMISES = re.compile(
    r"\b(always|never (wrong|fails?|errs?)|guaranteed?|certainly|perfect(ly)?)\b", re.I
)
# Shares are compared in points: from 22% to 55% is 33 points, and 150% more.
RELATIVE = re.compile(
    r"\d\s*(%|per ?cent\b)\s+(more|better|higher|fewer|less|worse|lower)\b", re.I
)
# Of a gain that is none, so that its number needs no sign.
LOSS = re.compile(r"\b(fewer|less|lower|worse|loses|lost|behind)\b", re.I)


@exercise("a function that takes two lists of rows")
def check_leaks(
    leaks: Callable[[Sequence[Any], Sequence[Any]], int],
    train: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
) -> str:
    """Check a count of held-out rows whose group is trained.

    First used in lesson 09, section 1.

    Args:
        leaks: the learner's answer.
        train: rows that train.
        held_out: rows that do not.
    """
    if not callable(leaks):
        raise Wrong("expected a function: `def leaks(train, held_out): ...`.")
    trained, held = list(train), list(held_out)
    known = set(groups_of(trained))
    again = [{**row, "instruction": "again?"} for row in trained[:3]]
    mixed = [*held, *again, *({**row, "instruction": "and again?"} for row in again)]
    for rows in (held, mixed):
        right = sum(group in known for group in groups_of(rows))
        try:
            found = leaks(trained, rows)
        except Exception as error:
            raise Wrong(
                f"your function stops with {type(error).__name__}: {error}."
            ) from error
        if found == right:
            continue
        if right and found == 0:
            raise Wrong(
                "some rows ask for trained things in other words, and you count none: "
                "compare groups (`groups_of`), not questions."
            )
        if found == len(known & set(groups_of(rows))):
            raise Wrong("you count groups: count the held-out rows.")
        raise Wrong(f"{right} of {len(rows)} rows have a trained group; you: {found}.")
    return "it counts rows whose group is trained, in whatever words they ask."


@exercise("a function that takes a gain")
def check_rule(rule: Callable[[Difference], str]) -> str:
    """Check a rule that says what to serve.

    First used in lesson 09, section 5.

    Args:
        rule: the learner's answer: a `Difference` in, "tuned" or "baseline" out.
    """
    if not callable(rule):
        raise Wrong("expected a function: `def rule(gain): ...`.")
    proven, lucky, worse = (
        Difference(0.3, 0.1, 0.5, 30),
        Difference(0.2, -0.1, 0.5, 30),
        Difference(-0.2, -0.4, -0.1, 30),
    )
    said = {gain.value: called(rule, gain) for gain in (proven, lucky, worse)}
    for answer in said.values():
        if answer not in ("tuned", "baseline"):
            raise Wrong(f"it says {answer!r}: return 'tuned' or 'baseline'.")
    if said[worse.value] == "tuned":
        raise Wrong("it serves a model that is worse: the whole interval is below 0.")
    if said[lucky.value] == "tuned":
        raise Wrong(
            "it serves on a gain of 20 points whose interval begins below 0: look at "
            "`low`, and neither at `value` nor at `high`."
        )
    if said[proven.value] == "baseline":
        raise Wrong("it refuses a gain whose whole interval is above 0.")
    return "a gain counts when its whole interval is above zero."


@exercise("a sentence for the report")
def check_sentence(sentence: str, gain: Difference) -> str:
    """Check what a learner says of the result.

    First used in lesson 09, section 10.

    Args:
        sentence: the learner's answer; it states the gain in whole points, both bounds
            of its interval and the number of questions.
        gain: as measured.
    """
    require_type(str, sentence, "a sentence")
    if promise := PROMISES.search(sentence):
        raise Wrong(f"{promise[0]!r} promises more than an interval can.")
    if relative := RELATIVE.search(sentence):
        raise Wrong(
            f"{relative[0]!r} would be a share of the baseline's right answers: the "
            "gain is in percentage points."
        )
    # A dash between two numbers, as in "5-9", is no minus.
    numbers = {
        int(text.replace("−", "-"))
        for text in re.findall(r"(?:(?<!\w)[-−])?\d+", sentence)
    }
    value, low, high = (round(100 * x) for x in (gain.value, gain.low, gain.high))
    lost = value < 0 and LOSS.search(sentence) and -value in numbers
    if value not in numbers and not lost:
        raise Wrong(f"it does not state the measured gain in whole points: {value:+}.")
    if low not in numbers or high not in numbers:
        raise Wrong(
            "it states the gain without both bounds of its interval, each with its "
            f"sign: {low:+} to {high:+}."
        )
    if gain.n not in numbers:
        raise Wrong(f"it does not say on how many questions: {gain.n}.")
    return "it says what was measured, and how sure that is."
