"""The course's table of facts about Amazon SageMaker, and what a right answer is.

`data/sagemaker_facts.csv` holds one fact a line: a feature, a relation and the value
that the relation has for it. The prose that the lab model reads and the questions and
answers of `data/amazon_sagemaker_faqs.csv` are both written from it, which is why the
course knows for every question whether the model has read the answer.
"""

import csv
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

FACTS_FILE = Path(__file__).parents[1] / "data" / "sagemaker_facts.csv"
COLUMNS = ("fact", "feature", "relation", "value")

PARTS = ("train", "validation", "wording", "fact", "unread")
"""Names of the parts: two to train with, three to test with (see `assign_parts`)."""

VALIDATION_FACTS = 7  # two rows each: the 14 rows of the original lab's test split
HELD_OUT_FACTS = 45  # each of "fact" and "unread"
HELD_OUT_WORDINGS = 60
SPLIT_SEED = 0
SHOWN_FACT = "amazon-sagemaker/security"
"""The fact that lessons 04 and 06 ask about, in the words of the original lab. It is
always in the part "train", and that wording (its first row) always in "wording"."""


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
    values: dict[str, set[str]] = {}
    for fact in facts:
        values.setdefault(fact.relation, set()).add(fact.value)
    for relation, found in values.items():
        for one in found:
            for other in found:
                if one != other and _states(one, other):
                    raise ValueError(
                        f"{path.name}: of the relation {relation!r}, the value {one!r} "
                        f"contains {other!r}; reword one of them."
                    )


@cache
def _table() -> dict[str, Fact]:
    return {fact.id: fact for fact in load_facts()}


@cache
def _values(relation: str) -> frozenset[str]:
    return frozenset(f.value for f in _table().values() if f.relation == relation)


def known_fact(fact_id: str) -> bool:
    """Whether the course's table has this fact."""
    return fact_id in _table()


def get_fact(fact_id: str) -> Fact:
    """The fact with this id.

    Raises:
        KeyError: if the table has no such fact.
    """
    if fact_id not in _table():
        raise KeyError(f"{FACTS_FILE.name} has no fact {fact_id!r}.")
    return _table()[fact_id]


@lru_cache(maxsize=4096)
def _words(text: str) -> str:
    # Thousands separators stay inside their number: "2,500" is one word, and not 500.
    text = re.sub(r"(?<=\d)[,.](?=\d)", "", text.lower())
    return " " + " ".join(re.findall(r"\w+", text)) + " "


def _states(text: str, value: str) -> bool:
    return _words(value) in _words(text)


def stated_values(answer: str, relation: str) -> set[str]:
    """The values of a relation that an answer states.

    Case, punctuation and white space do not count; whole words do.
    """
    return {value for value in _values(relation) if _states(answer, value)}


def is_right(answer: str, fact_id: str) -> bool:
    """Whether an answer states the fact's value and no other value of that relation.

    Raises:
        KeyError: if the course's table has no such fact.
    """
    fact = get_fact(fact_id)
    return stated_values(answer, fact.relation) == {fact.value}


def fact_parts(
    facts: Sequence[Fact] | None = None, seed: int = SPLIT_SEED
) -> dict[str, str]:
    """The part that each fact belongs to: "train", "validation", "fact" or "unread".

    The lab model has read the facts of all parts but "unread", whose facts appear
    nowhere in its corpus. It depends on the table and the seed alone, never on the rows
    at hand.
    """
    ids = sorted(fact.id for fact in (load_facts() if facts is None else facts))
    random.Random(seed).shuffle(ids)
    ids.sort(key=SHOWN_FACT.__eq__)  # stable: moves the shown fact to the end alone
    parts = {}
    for name, size in (
        ("validation", VALIDATION_FACTS),
        ("fact", HELD_OUT_FACTS),
        ("unread", HELD_OUT_FACTS),
    ):
        parts.update((fact_id, name) for fact_id in ids[:size])
        ids = ids[size:]
    parts.update((fact_id, "train") for fact_id in ids)
    return parts


def held_out_wordings(seed: int = SPLIT_SEED) -> dict[str, int]:
    """For the training facts that give up one of their rows to the test set "wording":
    which row that is (0 for the fact's first row in the file, 1 for its second)."""
    generator = random.Random(seed)
    train = sorted(
        fact for fact, part in fact_parts(seed=seed).items() if part == "train"
    )
    train.remove(SHOWN_FACT)
    chosen = generator.sample(train, HELD_OUT_WORDINGS - 1)
    return {SHOWN_FACT: 0, **{fact: generator.randrange(2) for fact in sorted(chosen)}}


def assign_parts(fact_ids: Sequence[str], seed: int = SPLIT_SEED) -> list[str]:
    """The part of each row of the course's questions and answers, in their order.

    - "train": the questions to fine-tune with;
    - "validation": 14 rows, for the loss curve only;
    - "wording": the fact is in "train", asked in other words;
    - "fact": no question on the fact is in "train", but the lab model read it as prose;
    - "unread": the lab model never read the fact either.

    Args:
        fact_ids: the file's column `fact`.
        seed: the split's seed; the shipped lab model was trained with 0.

    Raises:
        KeyError: if the course's table lacks one of the facts.
    """
    parts, wordings = fact_parts(seed=seed), held_out_wordings(seed)
    assigned, times_seen = [], {}
    for fact_id in fact_ids:
        get_fact(fact_id)
        row = times_seen[fact_id] = times_seen.get(fact_id, -1) + 1
        held_out = wordings.get(fact_id) == row
        assigned.append("wording" if held_out else parts[fact_id])
    return assigned
