"""Blind side-by-side judging of two systems' answers, kept as feedback.

Which system stands on which side is drawn for each question and not shown, so that
neither a liking for a system nor for a side decides. Votes are stored as JSON lines.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from utils.course import ROOT, CourseError, portable_name
from utils.evaluation.answers import Judge
from utils.evaluation.scores import Proportion, proportion
from utils.files import write_text
from utils.helpers import DEFAULT_SEED

VOTES = ("A", "B", "=")
"""The answer on the left, the one on the right, or neither is better."""

LABELLED = ROOT / "data" / "judged_answers.csv"
FIELDS = ("question", "A", "B", "A_is", "B_is", "vote", "judge", "time")


def labelled_answers(half: str | None = None) -> list[dict[str, str]]:
    """Return answers that people labelled, to examine a judge with.

    First used in lesson 05, section 3.

    Args:
        half: "development", on which the course's judge was written, "held out", or
            None for both.

    Returns:
        Rows with `instruction`, `response`, `must_say`, `must_not_say`, the `answer`,
        what `kind` it is, and whether it is `right`, "yes" or "no".
    """
    with LABELLED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["instruction"], row["response"] = row.pop("question"), row.pop("expected")
    return [row for row in rows if half in (None, row["half"])]


class FeedbackError(CourseError, ValueError):
    """Votes or a feedback file that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, A on the left; what is shown names no system."""

    question: str
    a: str
    b: str
    a_is: str
    b_is: str

    def __repr__(self) -> str:
        return f"{self.question}\n  A: {self.a}\n  B: {self.b}"

    def turned(self) -> Pair:
        """Return the same pair with the sides exchanged."""
        return Pair(self.question, self.b, self.a, self.b_is, self.a_is)


def blind_pairs(
    questions: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    n_pairs: int,
    seed: int = DEFAULT_SEED,
) -> list[Pair]:
    """Draw questions on which two systems differ, and a side for each answer.

    First used in lesson 05, section 8.

    Args:
        questions: all questions asked.
        answers: name of a system → its answers, in the order of the questions.
        n_pairs: how many at most.
        seed: of both draws.

    Raises:
        ValueError: unless there are two systems with an answer to every question.
    """
    if len(answers) != 2 or any(len(a) != len(questions) for a in answers.values()):
        sizes = {name: len(given) for name, given in answers.items()}
        raise ValueError(
            f"Two systems with {len(questions)} answers each are needed, found {sizes}"
            ": answer every question with both."
        )
    generator = random.Random(seed)
    (one, ones), (other, others) = answers.items()
    rows = [
        row for row in zip(questions, ones, others, strict=True) if row[1] != row[2]
    ]
    pairs = []
    for question, first, second in generator.sample(rows, min(n_pairs, len(rows))):
        pair = Pair(question, first, second, one, other)
        pairs.append(pair.turned() if generator.random() < 0.5 else pair)
    return pairs


def votes_of(
    judge: Judge, pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Let a judge vote: for the answer that alone is right, else for neither.

    First used in lesson 05, section 8.

    Args:
        judge: of answers.
        pairs: as `blind_pairs` drew them.
        rows: the questions, with what the judge needs.
    """
    row_of = {row["instruction"]: row for row in rows}
    votes = []
    for pair in pairs:
        a, b = judge.right([pair.a, pair.b], [row_of[pair.question]] * 2)
        votes.append("=" if a == b else "A" if a else "B")
    return votes


def store_votes(
    file: str | Path, pairs: Sequence[Pair], votes: Sequence[str], judge: str
) -> list[dict[str, str]]:
    """Add votes to a feedback file; a judge's new vote on a question replaces the old.

    First used in lesson 05, section 8.

    Args:
        file: JSON lines, made if there is none; it is replaced as a whole or not at
            all.
        pairs: what was judged.
        votes: one of `VOTES` a pair.
        judge: who judged.

    Returns:
        All feedback in the file, this one's last.

    Raises:
        FeedbackError: if a vote is none of `VOTES`, their number is wrong, or the file
            holds something else; it stays as it is then.
    """
    if len(votes) != len(pairs):
        raise FeedbackError(
            f"{len(votes)} votes on {len(pairs)} pairs: give one a pair, in order."
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = {}
    for number, (pair, vote) in enumerate(zip(pairs, votes, strict=True), start=1):
        if vote not in VOTES:
            known = ", ".join(map(repr, VOTES))
            raise FeedbackError(f"Vote {number} is {vote!r}: give one of {known}.")
        values = (pair.question, pair.a, pair.b, pair.a_is, pair.b_is, vote, judge, now)
        new[pair.question] = dict(zip(FIELDS, values, strict=True))
    old = read_feedback(file) if Path(file).exists() else []
    kept = [r for r in old if r["judge"] != judge or r["question"] not in new]
    rows = kept + list(new.values())
    write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return rows


def read_feedback(file: str | Path) -> list[dict[str, str]]:
    """Read all votes of a feedback file.

    Raises:
        FeedbackError: if the file is no text, or a line no vote, naming it.
    """
    rows = []
    try:
        # Not splitlines: it also cuts at U+2028, which may stand within a text.
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise FeedbackError(
            f"{portable_name(Path(file))} cannot be read ({error}): correct or delete "
            "it."
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [name for name in FIELDS if not isinstance(row[name], str)]
        except (ValueError, KeyError, TypeError):
            missing = FIELDS
        if missing or row["vote"] not in VOTES:
            raise FeedbackError(
                f"{portable_name(Path(file))}, line {number} is no vote with the "
                f"fields {', '.join(FIELDS)}: {line[:60]!r}. Correct or delete it."
            )
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Preference:
    """How often one system was preferred to another.

    Attributes:
        wins, losses, ties: counts of votes, seen from `system`.
        share: of the votes that decided, those for `system`; None if none did.
        chance: how likely a share at least this far from a half is among as many
            tosses of a coin (two-sided sign test).
    """

    system: str
    wins: int
    losses: int
    ties: int
    share: Proportion | None
    chance: float

    def __repr__(self) -> str:
        return (
            f"{self.system} preferred {self.wins} times, the other {self.losses} "
            f"times, neither {self.ties} times"
        )


def preference(feedback: Iterable[Mapping[str, Any]], system: str) -> Preference:
    """Lift the blind: count whose answers were preferred.

    First used in lesson 05, section 8.

    Raises:
        FeedbackError: if a vote is not about this system.
    """
    won = []
    ties = 0
    for row in feedback:
        if system not in (row["A_is"], row["B_is"]):
            raise FeedbackError(
                f"A vote is on {row['A_is']!r} and {row['B_is']!r}, not on {system!r}: "
                "name one of those two."
            )
        if row["vote"] == "=":
            ties += 1
        else:
            won.append(row[f"{row['vote']}_is"] == system)
    wins = sum(won)
    chance = float(binomtest(wins, len(won)).pvalue) if won else 1.0
    share = proportion(won) if won else None
    return Preference(system, wins, len(won) - wins, ties, share, chance)
