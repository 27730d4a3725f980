"""Wordings for the facts, from `wordings.csv`: question, statement, and a tail.

A question goes with the statement of its own line: an answer is the statement followed
by the tail. `{f}` stands for the feature, `{v}` for the value.
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from utils.facts import Fact


class Wording(NamedTuple):
    """One way to ask for a relation and to state it."""

    question: str
    statement: str
    tail: str


@cache
def _wordings() -> dict[str, list[Wording]]:
    path = Path(__file__).with_name("wordings.csv")
    found: dict[str, list[Wording]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            relation = row.pop("relation")
            found.setdefault(relation, []).append(Wording(**row))
    return found


def wording_count(relation: str) -> int:
    """How many wordings a relation has."""
    return len(_wordings()[relation])


def question(fact: Fact, wording: int) -> str:
    """The fact asked for, such as "What limit does SageMaker Training have?"."""
    return _wordings()[fact.relation][wording].question.format(f=fact.feature)


def statement(fact: Fact, wording: int) -> str:
    """The fact stated, without a full stop."""
    text = _wordings()[fact.relation][wording].statement
    return text.format(f=fact.feature, v=fact.value)


def answer(fact: Fact, wording: int) -> str:
    """One sentence of 10 to 50 words that answers `question(fact, wording)`."""
    return statement(fact, wording) + _wordings()[fact.relation][wording].tail
