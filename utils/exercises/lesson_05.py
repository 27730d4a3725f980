"""Checks for the exercises of lesson 05, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from utils.exercises.frame import Wrong, exercise, read_number


@exercise("the loss of a token")
def check_held_out_loss(
    loss: float, batch_losses: Sequence[float], batch_tokens: Sequence[int]
) -> str:
    """Check the token-weighted loss, from the mean loss and the tokens of each batch.

    First used in lesson 05, section 2.

    Args:
        loss: the learner's answer.
        batch_losses: mean loss of a token in each batch, in nats.
        batch_tokens: labelled tokens of each batch.
    """
    loss = read_number(loss, "a loss")
    pairs = list(zip(batch_losses, batch_tokens, strict=True))
    total, tokens = sum(one * n for one, n in pairs), sum(batch_tokens)

    def close(other: float) -> bool:
        return math.isclose(loss, other, rel_tol=1e-3)

    if close(total / tokens):
        return "every token counts once, whatever batch it came in."
    if close(sum(batch_losses) / len(pairs)):
        raise Wrong(
            "that is the mean of the batches: the short one counts as much as the "
            "long one. Weigh each by its tokens."
        )
    if close(total):
        raise Wrong(
            "that is the loss of all tokens together: divide it by their count."
        )
    if close(total / len(pairs)):
        raise Wrong("divide by the number of tokens, not by the number of batches.")
    if close(math.exp(total / tokens)):
        raise Wrong("that is the perplexity: the loss is its logarithm.")
    raise Wrong(
        "multiply each batch's mean by its tokens, add up, divide by all tokens."
    )


@exercise("a function of an answer and the expected text")
def check_token_f1(f1: Callable[[str, str], float]) -> str:
    """Check a function for the token F1 of two texts, by words as `scores.words`.

    First used in lesson 05, section 3.
    """
    from utils.evaluation.scores import token_f1, words

    if not callable(f1):
        raise Wrong(f"expected a function, found {type(f1).__name__}.")
    cases = (
        ("one two three", "one two four five"),
        ("one one one", "one two"),
        ("The one, two!", "one two"),
        ("three", "one two"),
    )
    for answer, expected in cases:
        try:
            found = f1(answer, expected)
        except ZeroDivisionError:
            raise Wrong(
                f"{answer!r} and {expected!r} share no word: return 0 before you "
                "divide."
            ) from None
        except Exception as problem:
            raise Wrong(
                f"f1({answer!r}, {expected!r}) raises {type(problem).__name__}: "
                f"{problem}."
            ) from None
        found = read_number(found, f"a number from f1({answer!r}, {expected!r})")
        right = token_f1(answer, expected)
        if math.isclose(found, right, abs_tol=1e-6):
            continue
        said, wanted = words(answer), words(expected)
        if answer == "one one one":
            raise Wrong(
                "'one one one' shares one word with 'one two', not three: a word "
                "counts as often as it is in both."
            )
        if answer.startswith("The"):
            raise Wrong("case, punctuation and articles should not count: use `words`.")
        shared = len(set(said) & set(wanted))
        if math.isclose(found, shared / len(said), abs_tol=1e-6):
            raise Wrong(
                "that is the precision alone: a long answer has to be complete."
            )
        if math.isclose(found, shared / len(wanted), abs_tol=1e-6):
            raise Wrong("that is the recall alone: rambling would raise it.")
        if math.isclose(found, shared / len(set(said + wanted)), abs_tol=1e-6):
            raise Wrong("that is the share of all words that both have, not F1.")
        if math.isclose(
            found, (shared / len(said) + shared / len(wanted)) / 2, abs_tol=1e-6
        ):
            raise Wrong(
                "that is their plain mean: F1 is the harmonic one, 2PR / (P + R)."
            )
        raise Wrong(
            f"f1({answer!r}, {expected!r}) should be {right:.3f}, not {found:.3f}."
        )
    return "both shares count, and a word only as often as both have it."


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


@exercise("a number of questions")
def check_questions(n_questions: int, differences: Sequence[float], gain: float) -> str:
    """Check how many questions show a gain of this size four times in five.

    First used in lesson 05, section 7.

    Args:
        n_questions: the learner's answer.
        differences: tuned minus base on each of the questions asked so far.
        gain: the mean difference to be found.
    """
    from utils.evaluation.scores import questions_needed

    n_questions = read_number(n_questions, "a number of questions")
    count = len(differences)
    mean = sum(differences) / count
    spread = math.sqrt(sum((one - mean) ** 2 for one in differences) / count)
    right = questions_needed(spread, gain)
    if abs(n_questions - right) <= max(1, 0.02 * right):
        return "half the gain would take four times as many."
    if n_questions == questions_needed(spread, 100 * gain):
        raise Wrong("five points are 0.05 where a right answer counts 1.")
    if n_questions == questions_needed(spread / math.sqrt(count), gain):
        raise Wrong(
            "that took the standard error of the mean: the formula wants the spread "
            "from question to question."
        )
    if n_questions == questions_needed(spread**2, gain):
        raise Wrong("that took the variance: the spread is its square root.")
    if n_questions == questions_needed(spread, mean or gain):
        raise Wrong(
            "that finds the difference measured here. Which gain was asked for?"
        )
    raise Wrong(
        "give `questions_needed` the standard deviation of `differences` and the gain."
    )
