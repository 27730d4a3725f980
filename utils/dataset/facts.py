"""The course's table of facts about Amazon SageMaker, and what a right answer is.

`data/sagemaker_facts.csv` holds one fact a line: a feature, a relation and the value
that the relation has for it. The prose that the lab model reads and the questions and
answers of `data/lab_questions.csv` are both written from it, which is why the
course knows for every question whether the model has read the answer. How a relation is
asked for and stated is a line of `data/sagemaker_wordings.csv`: a question, the
statement that goes with it, and a tail. `{f}` stands for the feature, `{v}` for the
value; an answer is the statement followed by the tail.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from utils.course import ROOT

FACTS_FILE = ROOT / "data" / "sagemaker_facts.csv"
WORDINGS_FILE = ROOT / "data" / "sagemaker_wordings.csv"
COLUMNS = ("fact", "feature", "relation", "value")

# --- the table ---


@dataclass(frozen=True)
class Fact:
    """One line of the table, such as SageMaker Training · limit · 28 days."""

    id: str
    feature: str
    relation: str
    value: str


def load_facts(path: Path = FACTS_FILE) -> list[Fact]:
    """Read the table of facts.

    Raises:
        ValueError: if a column is missing, a field is empty, a fact appears twice, or
            one value of a relation contains another (an answer could not be judged
            then); the message names the file and the line.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"{path.name} has the columns {reader.fieldnames}; "
                f"expected {list(COLUMNS)}."
            )
        facts, seen = [], set()
        for row in reader:
            where = f"{path.name}, line {reader.line_num}"
            empty = [column for column in COLUMNS if not (row[column] or "").strip()]
            if empty:
                raise ValueError(f"{where}: {empty[0]} is empty; fill it in.")
            if row["fact"] in seen:
                raise ValueError(f"{where}: {row['fact']} appears twice; keep one.")
            seen.add(row["fact"])
            facts.append(Fact(*(row[column] for column in COLUMNS)))
    _check_values_apart(facts, path)
    return facts


def _check_values_apart(facts: Sequence[Fact], path: Path) -> None:
    """Raise if one value of a relation contains another."""
    values: dict[str, set[str]] = {}
    for fact in facts:
        values.setdefault(fact.relation, set()).add(fact.value)
    for relation, of_relation in values.items():
        for longer, shorter in permutations(sorted(of_relation), 2):
            if _states(longer, shorter):
                raise ValueError(
                    f"{path.name}: of the relation {relation!r}, the value {longer!r} "
                    f"contains {shorter!r}; reword one of them."
                )


@cache
def _table() -> dict[str, Fact]:
    return {fact.id: fact for fact in load_facts()}


@cache
def _values(relation: str) -> frozenset[str]:
    return frozenset(f.value for f in _table().values() if f.relation == relation)


def known_fact(fact_id: str) -> bool:
    """Return whether the course's table has this fact."""
    return fact_id in _table()


def get_fact(fact_id: str) -> Fact:
    """Return the fact with this id.

    Raises:
        KeyError: if the table has no such fact.
    """
    if fact_id not in _table():
        raise KeyError(f"{FACTS_FILE.name} has no fact {fact_id!r}: add it.")
    return _table()[fact_id]


# --- what is right ---


@lru_cache(maxsize=4096)
def _words(text: str) -> str:
    """Return the words of a text in lower case, each between two spaces."""
    # Thousands separators stay inside their number: "2,500" is one word, and not 500.
    text = re.sub(r"(?<=\d)[,.](?=\d)", "", text.lower())
    return " " + " ".join(re.findall(r"\w+", text)) + " "


def _states(text: str, value: str) -> bool:
    """Return whether a text holds a value, word for word."""
    return _words(value) in _words(text)


def stated_values(answer: str, relation: str) -> set[str]:
    """Return the values of a relation that an answer states.

    Case, punctuation and white space do not count; whole words do.
    """
    return {value for value in _values(relation) if _states(answer, value)}


def is_right(answer: str, fact_id: str) -> bool:
    """Return whether an answer states the fact's value and no other of its relation.

    Raises:
        KeyError: if the course's table has no such fact.
    """
    fact = get_fact(fact_id)
    return stated_values(answer, fact.relation) == {fact.value}


# --- wordings ---


class Wording(NamedTuple):
    """One way to ask for a relation and to state it."""

    question: str
    statement: str
    tail: str


@cache
def _wordings() -> dict[str, list[Wording]]:
    wordings: dict[str, list[Wording]] = {}
    with open(WORDINGS_FILE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            relation = row.pop("relation")
            wordings.setdefault(relation, []).append(Wording(**row))
    return wordings


def wording_count(relation: str) -> int:
    """Return how many wordings a relation has."""
    return len(_wordings()[relation])


def question(fact: Fact, wording: int) -> str:
    """Ask for the fact, such as "What limit does SageMaker Training have?"."""
    return _wordings()[fact.relation][wording].question.format(f=fact.feature)


def statement(fact: Fact, wording: int) -> str:
    """State the fact, without a full stop."""
    text = _wordings()[fact.relation][wording].statement
    return text.format(f=fact.feature, v=fact.value)


def answer(fact: Fact, wording: int) -> str:
    """Answer `question(fact, wording)` in one sentence of 10 to 50 words."""
    return statement(fact, wording) + _wordings()[fact.relation][wording].tail
