"""Which rows train, which choose the epoch, and which test.

`split` is what lessons call. The parts of the course's own questions come from their
facts (`assign_parts`), so the lab model's corpus and its questions agree on them.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.dataset.facts import Fact, get_fact, load_facts
from utils.dataset.faqs import Faqs
from utils.dataset.groups import find_groups, has_free_wordings
from utils.dataset.table import DataError, question_key

if TYPE_CHECKING:
    import pandas
    from datasets import DatasetDict

PARTS = ("train", "validation", "wording", "fact", "unread")
"""Names of the parts: two to train with, three to test with (see `assign_parts`)."""
OWN_PARTS = ("train", "validation", "test")
"""Parts of a file of one's own: to train with, to choose the epoch, to report."""
HELD_OUT = ("test", "validation")
FEWEST_ROWS = 10  # of a file of one's own
HELD_OUT_SHARE = 0.15  # of its rows, for each of the two parts above
FEWEST_HELD_OUT = 2
MOST_HELD_OUT = 300
INVENTED = "kestrel/"  # begins the facts that were invented for the course
WORDING_SHARES = {"validation": 0.1, "fact": 0.25}  # of the facts, the rest trains
VALIDATION_FACTS = 7  # two rows each
HELD_OUT_FACTS = 45  # each of "fact" and "unread"
HELD_OUT_WORDINGS = 60
SPLIT_SEED = 0
SHOWN_FACT = "amazon-sagemaker/security"
"""The fact that lessons 04 and 06 ask about, in the words of the original lab. It is
always in the part "train", and that wording (its first row) always in "wording"."""


@dataclass(frozen=True)
class Plan:
    """Which row goes to which part.

    Attributes:
        parts: of each row, in the rows' order; "" for one that no part takes.
        groups: of each row; rows of one group never stand in two parts, except that
            `wording` asks for facts of `train` on purpose.
        notes: one sentence for each thing that a person should know.
    """

    parts: list[str]
    groups: list[int]
    notes: list[str]


def split(faqs: Faqs, seed: int = SPLIT_SEED) -> DatasetDict:
    """Split questions and answers into parts, seeded; see `plan_split`.

    First used in lesson 03, section 6.

    Raises:
        DataError: if there are too few rows, or too few that differ.
    """
    from datasets import Dataset, DatasetDict

    plan = plan_split(faqs, seed)
    frame = faqs.frame.reset_index(drop=True)
    names = PARTS if faqs.has_facts else (*OWN_PARTS, "wording", "fact")
    rows = {
        name: frame[[part == name for part in plan.parts]].reset_index(drop=True)
        for name in names
    }
    return DatasetDict(
        {
            name: Dataset.from_pandas(part, preserve_index=False)
            for name, part in rows.items()
            if len(part)
        }
    )


def plan_split(faqs: Faqs, seed: int = SPLIT_SEED, encoder: Any = None) -> Plan:
    """Choose the part of each row.

    - The lab model's file is split by fact into five parts (`assign_parts`).
    - A file with the columns `fact` and `wording` is split by fact: most facts train,
      in their trained wordings, and `wording` asks for them in the free ones. The
      facts of `validation` (a tenth) and `fact` (a quarter) are held out wholly; they
      are asked in free wordings, and their trained ones are used nowhere. Invented
      facts (`kestrel/…`) have the same share of each part.
    - Any other file is split into `train`, `validation`, which chooses the epoch, and
      `test`, which is reported: 15% of the rows each, at most 300. Rows that belong
      together (`groups.find_groups`) stay together.

    A group's part follows from the seed and the text of its first row. So rows that are
    added at the end change no row's part, unless they join two groups or a part would
    hold less than half or more than one and a half times its share; then as few
    groups as possible move. A group larger than a part's share trains.

    First used in lesson 03, section 6.

    Args:
        faqs: what `load_faqs` returns.
        seed: another one chooses other rows.
        encoder: compares texts where no column groups them; MiniLM by default.

    Raises:
        DataError: if there are too few rows, or too few that differ.
        EncoderError: if likeness has to decide and the encoder is not installed.
    """
    frame = faqs.frame
    if faqs.has_facts:
        if len(faqs) < 2:
            raise _too_few(len(faqs))
        parts = assign_parts(list(frame["fact"]), seed)
        return Plan(parts, _numbered(frame["fact"]), [])
    if len(faqs) < FEWEST_ROWS:
        raise _too_few(len(faqs))
    if has_free_wordings(frame):
        return Plan(_by_wording(frame, seed), _numbered(frame["fact"]), [])
    groups = find_groups(frame, encoder)
    count = len(set(groups.labels))
    if count < len(OWN_PARTS):
        by = f"by the column {groups.column!r}" if groups.column else "by likeness"
        raise DataError(
            f"The {len(frame)} rows are {count} group{'s' * (count > 1)} {by}, too few "
            "to split into training, validation and test: add questions on other "
            "subjects."
        )
    return Plan(_own_parts(frame, groups.labels, seed), groups.labels, groups.notes)


def _too_few(count: int) -> DataError:
    questions = "question is" if count == 1 else "questions are"
    return DataError(
        f"{count} {questions} too few to split into training, validation and test: "
        f"{FEWEST_ROWS} are the least, a few hundred are useful. Add rows to the file."
    )


def _numbered(column: pandas.Series) -> list[int]:
    order = {value: place for place, value in enumerate(dict.fromkeys(column))}
    return [order[value] for value in column]


def _draw(seed: int, text: str) -> float:
    """Return a number from 0 to 1 that follows from the seed and a text alone."""
    digest = hashlib.sha256(f"{seed}|{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_wording(frame: pandas.DataFrame, seed: int) -> list[str]:
    """Return the part of each row of a file with trained and free wordings."""
    part_of: dict[str, str] = {}
    facts = list(dict.fromkeys(frame["fact"]))
    for invented in (True, False):
        drawn = sorted(
            (fact for fact in facts if fact.startswith(INVENTED) == invented),
            key=lambda fact: _draw(seed, fact),
        )
        start = 0
        for name, share in WORDING_SHARES.items():
            size = round(share * len(drawn))
            part_of.update((fact, name) for fact in drawn[start : start + size])
            start += size
        part_of.update((fact, "train") for fact in drawn[start:])
    parts = []
    for fact, wording in zip(frame["fact"], frame["wording"], strict=True):
        free = wording.strip().casefold() == "free"
        if part_of[fact] == "train":
            parts.append("wording" if free else "train")
        else:
            parts.append(part_of[fact] if free else "")
    return parts


def held_out_rows(count: int) -> int:
    """Return how many rows of a file of one's own validate, and how many test."""
    return min(max(round(HELD_OUT_SHARE * count), FEWEST_HELD_OUT), MOST_HELD_OUT)


def _own_parts(frame: pandas.DataFrame, labels: list[int], seed: int) -> list[str]:
    """Return the part of each row of a file without known facts."""
    sizes, draws = Counter(labels), {}
    for row, label in zip(frame["instruction"], labels, strict=True):
        draws.setdefault(label, _draw(seed, question_key(row)))
    target = held_out_rows(len(frame))
    share = min(HELD_OUT_SHARE, MOST_HELD_OUT / len(frame))
    part_of: dict[int, str] = {}
    for label, draw in draws.items():
        small = sizes[label] <= max(target, 2)
        place = int(draw / share) if small else len(HELD_OUT)
        part_of[label] = HELD_OUT[place] if place < len(HELD_OUT) else "train"
    least, most = max(1, target // 2), -(-3 * target // 2)
    for name in HELD_OUT:
        _mend_size(name, part_of, sizes, draws, least, most)
    return [part_of[label] for label in labels]


def _mend_size(
    name: str,
    part_of: dict[int, str],
    sizes: Mapping[int, int],
    draws: Mapping[int, float],
    least: int,
    most: int,
) -> None:
    """Move as few groups as possible between a part and `train`."""

    def inside(part: str) -> list[int]:
        return sorted((g for g in part_of if part_of[g] == part), key=draws.__getitem__)

    def rows(part: str) -> int:
        return sum(sizes[label] for label in inside(part))

    while rows(name) > most and len(inside(name)) > 1:
        part_of[inside(name)[-1]] = "train"
    while rows(name) < least and len(inside("train")) > 1:
        room = most - rows(name)
        fitting = [label for label in inside("train") if sizes[label] <= room]
        smallest = min(inside("train"), key=lambda label: sizes[label])
        part_of[fitting[0] if fitting else smallest] = name


def assign_parts(fact_ids: Sequence[str], seed: int = SPLIT_SEED) -> list[str]:
    """Return the part of each row of the course's questions, in their order.

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


def fact_parts(
    facts: Sequence[Fact] | None = None, seed: int = SPLIT_SEED
) -> dict[str, str]:
    """Return the part of each fact: "train", "validation", "fact" or "unread".

    The lab model has read the facts of all parts but "unread", whose facts appear
    nowhere in its corpus. A part depends on the table and the seed
    alone, never on the rows at hand.
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
    """Return which row of which training facts goes to the test set "wording".

    Returns:
        Fact → 0 for the fact's first row in the file, 1 for its second.
    """
    generator = random.Random(seed)
    train = sorted(
        fact for fact, part in fact_parts(seed=seed).items() if part == "train"
    )
    train.remove(SHOWN_FACT)
    chosen = generator.sample(train, HELD_OUT_WORDINGS - 1)
    return {SHOWN_FACT: 0, **{fact: generator.randrange(2) for fact in sorted(chosen)}}
