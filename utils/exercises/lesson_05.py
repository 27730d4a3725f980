"""Checks for the exercises of lesson 05, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.exercises.frame import Wrong, exercise, read_number

AGREEMENT = 0.78
"""Share of the labelled answers on which a learner's judge must agree with people."""
INSIDE = "The limit is 128 days."
"""A labelled answer in which the right one, 28 days, is part of another number."""


@exercise("`my_judge`, once you have changed it")
def check_judge(my_judge: Callable[[str, Mapping[str, str]], bool]) -> str:
    """Check a judge of answers on those that people labelled.

    First used in lesson 05, section 3.

    Args:
        my_judge: says whether an answer is right; its row has `instruction`,
            `response`, `must_say` and `must_not_say`.
    """
    from utils.evaluation.judging import labelled_answers

    if not callable(my_judge):
        raise Wrong(f"expected a function, found {type(my_judge).__name__}.")
    rows = labelled_answers()
    hidden = ("answer", "right", "half", "kind")
    verdicts = []
    for row in rows:
        seen = {name: text for name, text in row.items() if name not in hidden}
        try:
            verdicts.append(bool(my_judge(row["answer"], seen)))
        except Exception as problem:
            raise Wrong(
                f"my_judge raises {type(problem).__name__} for the answer "
                f"{row['answer']!r}: {problem}."
            ) from None
    pairs = list(zip(rows, verdicts, strict=True))
    agreed = [verdict == (row["right"] == "yes") for row, verdict in pairs]
    share = sum(agreed) / len(rows)
    if share >= AGREEMENT:
        return f"your judge agrees with people on {share:.0%} of {len(rows)} answers."
    got = f"it agrees on {share:.0%}, and {AGREEMENT:.0%} are asked for"
    if len(set(verdicts)) == 1:
        same = "right" if verdicts[0] else "wrong"
        raise Wrong(f"{got}. It calls every answer {same}.")
    if not any(verdict for row, verdict in pairs if "|" in row["must_say"]):
        raise Wrong(
            f"{got}. It passes no answer of a row with several strings in must_say: "
            "split the cell at '|'; one of them is enough."
        )
    if any(verdict for row, verdict in pairs if row["answer"] == INSIDE):
        raise Wrong(
            f"{got}. It finds '28 days' in '128 days': look for whole words, with no "
            "letter, digit or point in front, and none behind."
        )
    raise Wrong(f"{got}. Look at what it gets wrong, and try another rule.")


@exercise("`interval`, once you have changed it")
def check_interval(
    interval: Callable[[Any, Sequence[str]], Sequence[float]],
) -> str:
    """Check a bootstrap interval that must draw whole facts.

    First used in lesson 05, section 4.

    Args:
        interval: takes gains, what each is about, and the share that the interval is to
            hold; returns its bounds.
    """
    import numpy as np

    if not callable(interval):
        raise Wrong(f"expected a function, found {type(interval).__name__}.")
    generator = np.random.default_rng(1)
    single = generator.choice([-1.0, 0.0, 0.0, 1.0, 1.0], size=40)
    # One wording a fact, and the same facts with three wordings that agree.
    once = np.array([f"fact {number}" for number in range(40)])
    order = generator.permutation(120)
    gains, facts = np.repeat(single, 3)[order], np.repeat(once, 3)[order]

    def width(gains: Any, facts: Any, **options: float) -> tuple[float, float, float]:
        try:
            low, high = interval(gains, list(facts), **options)
        except Exception as problem:
            raise Wrong(
                f"interval raises {type(problem).__name__}: {problem}."
            ) from None
        low, high = (read_number(one, "two bounds") for one in (low, high))
        return low, high, high - low

    low, high, wide = width(gains, facts)
    if not low <= gains.mean() <= high:
        raise Wrong(
            f"the mean gain is {gains.mean():.2f}, and your interval from {low:.2f} to "
            f"{high:.2f} does not hold it: divide the sum of all drawn gains by their "
            "number."
        )
    expected = 2 * 1.96 * single.std() / math.sqrt(40)
    if wide < 0.01:
        raise Wrong("the interval has no width: draw with replacement.")
    if wide < 0.75 * expected:
        raise Wrong(
            "with each question three times, your interval gets narrower, as if there "
            "were three times as many facts: draw names of facts, and take all "
            "questions of each."
        )
    if wide > 1.3 * expected:
        raise Wrong(
            f"it is {wide:.2f} wide and should be about {expected:.2f}: draw as many "
            "facts as there are, and divide the sum of the drawn gains by their number."
        )
    _, _, narrow = width(gains, facts, share=0.5)
    if narrow > 0.6 * wide:
        raise Wrong("the argument `share` must still decide how much is left outside.")
    return "three wordings of a fact count as one draw, so they add no certainty."


@exercise('a vote on each pair: "A", "B" or "="')
def check_votes(votes: Sequence[str], pairs: Sequence[Any]) -> str:
    """Check that every pair has a vote; which one is for the learner to say.

    First used in lesson 05, section 8.
    """
    from utils.evaluation.judging import VOTES

    if isinstance(votes, str) or not isinstance(votes, Sequence):
        raise Wrong(f"expected a list of votes, found {type(votes).__name__}.")
    if len(votes) != len(pairs):
        raise Wrong(f"{len(votes)} votes for {len(pairs)} pairs: give each pair one.")
    for number, (vote, pair) in enumerate(zip(votes, pairs, strict=True), start=1):
        if vote in (pair.a_is, pair.b_is):
            raise Wrong(
                f"vote {number} names a system. You are not to know which is which: "
                "name the side."
            )
        if vote not in VOTES:
            raise Wrong(f"vote {number} is {vote!r}: it can be 'A', 'B' or '='.")
    if len(votes) > 2 and len(set(votes)) == 1 and votes[0] != "=":
        raise Wrong(
            f"always {votes[0]}? Sides were drawn, so that prefers nobody. Read each "
            "pair."
        )
    return "your votes count; the next cell stores them and lifts the blind."
