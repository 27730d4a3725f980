"""Rows answered from notes: the skill that carries over to facts never trained.

A row gets its notes in the column `context`. Some rows get the note that answers them,
alone or among others that look alike, some get notes that do not answer them, and some
none at all, so that one adapter serves with a search and without.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from utils.dataset.table import DataError

NO_ANSWER = "The notes do not say."
"""The answer to a question that none of its notes answers."""
KEY = "fact"


@dataclass(frozen=True)
class Mix:
    """How often a row is met in each form; the shares need not sum to one.

    First used in lesson 03, section 7.

    Attributes:
        alone: with the note that answers it.
        among: with that note among others that a search finds as well.
        unanswered: with notes that do not answer it.
        without: with no notes.
    """

    alone: float = 4
    among: float = 2
    unanswered: float = 0
    without: float = 1

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: if one is negative, or all are zero.
        """
        shares = self.shares()
        if min(shares.values()) < 0 or not any(shares.values()):
            raise ValueError(f"The shares are {shares}: none below 0, one above it.")

    def shares(self) -> dict[str, float]:
        """Return form → share."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def context(notes: Sequence[str]) -> str:
    """Return notes as one text, each on a line of its own."""
    return "\n".join(f"- {' '.join(note.split())}" for note in notes)


def says_nothing(answer: str) -> bool:
    """Return whether an answer says that the notes hold none."""
    words = " ".join(re.findall(r"\w+", answer.casefold().replace("don't", "do not")))
    return "notes do not say" in words


def with_notes(
    rows: Sequence[Mapping[str, Any]],
    notes: Mapping[str, str],
    ranked: Sequence[Sequence[str]],
    mix: Mix | None = None,
    size: int = 3,
    hardest: int = 8,
    seed: int = 0,
    shuffled: bool = False,
    about: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows with notes to answer from, each in one form of the mix.

    The forms are dealt out evenly: their numbers follow the shares to one row, and each
    part of the rows gets all of them.

    Args:
        rows: with `instruction` and `response`.
        notes: fact → its note, for all facts that may be shown.
        ranked: for each row, facts from the likeliest to the least likely, as a search
            for its question finds them.
        mix: how often a row is met in each form.
        size: notes of a row that is met among others.
        hardest: the wrong notes are among so many that the search ranks highest.
        seed: of the dealing and drawing.
        shuffled: notes of a row are drawn from the `hardest` and come in any order. By
            default they are what the search would show: the likeliest ones, in its
            order, so that the first note is the right one most of the time.
        about: the fact of each row, by the name it has in `notes` and `ranked`; by
            default the row's column `fact`.

    Returns:
        Copies of the rows with `context` ("" for none); the response of one whose
        notes do not answer it is `NO_ANSWER`.

    Raises:
        DataError: naming the row whose fact has no note, or for which the search gave
            too few others.
    """
    if len(rows) != len(ranked):
        raise ValueError(f"{len(ranked)} rankings for {len(rows)} rows: give one each.")
    about = [row[KEY] for row in rows] if about is None else about
    generator = random.Random(seed)
    forms = _dealt((mix or Mix()).shares(), generator)
    made = []
    for number, (row, order, right) in enumerate(zip(rows, ranked, about, strict=True)):
        if right not in notes:
            raise DataError(
                f"Row {number} is about {right!r}, which has no note: add one, or "
                "leave the row out."
            )
        wrong = [one for one in order if one != right and one in notes][:hardest]
        form, response = next(forms), row["response"]
        if form == "alone":
            shown = [right]
        elif form == "without":
            shown = []
        else:
            others = size - 1 if form == "among" else generator.randint(1, size)
            if len(wrong) < others:
                raise DataError(
                    f"Row {number} needs {others} notes that do not answer it and the "
                    f"search gave {len(wrong)}: rank more facts for it."
                )
            shown = generator.sample(wrong, others) if shuffled else wrong[:others]
            if form == "among":
                shown.append(right)
            else:
                response = NO_ANSWER
            if shuffled:
                generator.shuffle(shown)
            else:
                shown.sort(key=list(order).index)
        texts = [notes[one] for one in shown]
        made.append({**row, "response": response, "context": context(texts)})
    return made


def _dealt(shares: Mapping[str, float], generator: random.Random) -> Iterator[str]:
    """Yield forms without end, so that their numbers follow the shares.

    The next form is the one that lags behind its share most, and one drawn at random
    where several do.
    """
    total = sum(shares.values())
    given = dict.fromkeys(shares, 0)
    for number in itertools.count(1):
        behind = {
            form: share / total * number - given[form] for form, share in shares.items()
        }
        furthest = max(behind.values())
        form = generator.choice([f for f in behind if behind[f] > furthest - 1e-9])
        given[form] += 1
        yield form
