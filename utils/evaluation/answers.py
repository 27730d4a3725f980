"""Whether an answer in free words is right: one judge for every lesson.

Each row is judged by the best thing it has:

1. *by fact*, if it names a fact of the course's table (the lab model's questions): the
   answer states the fact's value and no other of its relation;
2. *by rule*, if it says what a right answer must say and must not say: the columns
   `must_say`, of whose strings one must be stated, and `must_not_say`, of whose strings
   none may be, separated by " | ";
3. *by likeness* to the answers of the file, where there is nothing but text.

Numbers in words, units and negations are read by `statements`. Likeness cannot see a
negation or another number ("28 days" and "5 days" are nearly the same to an encoder), so
numbers and negations must agree as well. How often each is right is measured on answers
labelled by hand, in tests/support/judged_answers.csv.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.course import CourseError
from utils.dataset.facts import get_fact, known_fact, stated_values
from utils.encoder import Encoder, load_encoder
from utils.evaluation.statements import (
    AFFIRMED,
    DENIED,
    PAST,
    Mention,
    Word,
    mentions,
    numbers,
    occurrences,
    phrase_words,
    stances,
    words,
)

SEPARATOR = "|"
GROUP_COLUMNS = ("fact", "group", "group_id", "cluster")
"""Columns that say which rows are about one thing, the first one that is there."""
FALSE_ALARMS = 0.05
"""Share of the answers to other questions that the threshold may let pass."""
THRESHOLDS = (0.5, 0.8)
"""Bounds of the threshold, whatever the file's answers are like."""
FEW = 10
"""With fewer answers than this to compare, the threshold is the middle of its bounds."""


class JudgeError(CourseError, ValueError):
    """Rows or answers that cannot be judged; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one answer.

    Attributes:
        right: whether it is right.
        reason: why, in a few words.
        by: "fact", "rule" or "likeness".
        cut_off: whether the answer had reached its budget of tokens. One that has
            stated the right value by then is right.
    """

    right: bool
    reason: str
    by: str
    cut_off: bool = False

    def __bool__(self) -> bool:
        """Return whether the answer is right, so that verdicts can be counted."""
        return self.right

    def __float__(self) -> float:
        """Return 1 for a right answer and 0 for a wrong one."""
        return float(self.right)


class Judge:
    """Judges answers to rows; `judge_for` makes one.

    Attributes:
        threshold: from which likeness on an answer can be right; None if no row
            needs it.
    """

    def __init__(
        self,
        references: Sequence[Mapping[str, Any]],
        encoder: Encoder | None,
        likeness_needed: bool,
    ) -> None:
        """Learn the threshold of likeness from the file's own answers, if needed."""
        self._encoder = encoder
        self._known: dict[str, list[str]] = defaultdict(list)
        for row in references:
            key, answer = _group(row), str(row["response"])
            if answer not in self._known[key]:
                self._known[key].append(answer)
        self.threshold: float | None = None
        self._calibration = ""
        if likeness_needed:
            self.threshold, self._calibration = self._calibrate(references)

    def verdicts(
        self,
        answers: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        finished: Sequence[bool] | None = None,
    ) -> list[Verdict]:
        """Judge one answer a row.

        Args:
            answers: what a model said.
            rows: the questions, with `response` and the columns to judge by.
            finished: whether each answer came to its end by itself; None if unknown.

        Raises:
            JudgeError: if there are not as many of each.
        """
        if len(answers) != len(rows) or (
            finished is not None and len(finished) != len(rows)
        ):
            ends = "" if finished is None else f" and {len(finished)} ends"
            raise JudgeError(
                f"{len(answers)} answers{ends} for {len(rows)} questions: give as many "
                "of each, in the same order."
            )
        found: list[Verdict | None] = []
        alike: list[int] = []
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            way = way_of(row)
            if not any(map(str.isalnum, answer)):
                found.append(Verdict(False, "empty", way))
            elif way == "fact":
                found.append(_by_fact(answer, row))
            elif way == "rule":
                found.append(_by_rule(answer, row))
            else:
                found.append(None)
                alike.append(number)
        judged = self._by_likeness([answers[i] for i in alike], [rows[i] for i in alike])
        for number, verdict in zip(alike, judged, strict=True):
            found[number] = verdict
        ended = [True] * len(rows) if finished is None else finished
        return [
            verdict if end else _cut_off(verdict)
            for verdict, end in zip(found, ended, strict=True)
        ]

    def right(
        self,
        answers: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        finished: Sequence[bool] | None = None,
    ) -> list[bool]:
        """Return only whether each answer is right; see `verdicts`."""
        return [verdict.right for verdict in self.verdicts(answers, rows, finished)]

    def describe(self) -> str:
        """Say in a sentence or two how this judge decides."""
        text = (
            "An answer is right if it states the value of its row's fact or one of "
            "must_say, and no other value or nothing of must_not_say."
        )
        if self.threshold is None:
            return text
        return (
            f"{text} A row without them: if its likeness to the expected answer (mean "
            f"of the cosine of MiniLM's vectors and of token F1) is at least "
            f"{self.threshold:.2f}, and numbers and negations agree. "
            f"{self._calibration}"
        )

    # --- likeness ---

    def _likeness(
        self, pairs: Sequence[tuple[str, str]], questions: Sequence[str] | None = None
    ) -> list[float]:
        """Return the likeness of the two texts of each pair, at most 1."""
        texts = sorted({text for pair in pairs for text in pair})
        if self._encoder is None:
            self._encoder = load_encoder()
        vectors = dict(zip(texts, self._encoder.embed(texts), strict=True))
        return [
            (float(vectors[one] @ vectors[other]) + token_f1(one, other)) / 2
            for one, other in pairs
        ]
