"""Which rows train, which choose the epoch, and which test.

`split` is what lessons call. The parts of the course's own questions come from their
facts (`assign_parts`), so the lab model's corpus and its questions agree on them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.dataset.facts import Fact, get_fact, load_facts
from utils.dataset.faqs import DataError, Faqs

if TYPE_CHECKING:
    from datasets import DatasetDict

PARTS = ("train", "validation", "wording", "fact", "unread")
"""Names of the parts: two to train with, three to test with (see `assign_parts`)."""
VALIDATION_ROWS = 14  # as in the original lab; for the loss curve only
VALIDATION_FACTS = 7  # two rows each
HELD_OUT_FACTS = 45  # each of "fact" and "unread"
HELD_OUT_WORDINGS = 60
SPLIT_SEED = 0
SHOWN_FACT = "amazon-sagemaker/security"
"""The fact that lessons 04 and 06 ask about, in the words of the original lab. It is
always in the part "train", and that wording (its first row) always in "wording"."""


def split(faqs: Faqs, seed: int = SPLIT_SEED) -> DatasetDict:
    """Split questions and answers into parts, seeded.

    The course's file is split by fact, so that no test question asks for something
    that was trained in other words unless that is what its part is for. Another file
    is shuffled and split into training and validation.

    First used in lesson 03, section 5.

    Raises:
        DataError: if there are fewer than two rows.
    """
    from datasets import Dataset, DatasetDict

    if len(faqs) < 2:
        raise DataError(
            f"{len(faqs)} question is too few to split: training and validation need "
            "at least one each. Add rows to the file."
        )
    frame = faqs.frame.reset_index(drop=True)
    if faqs.has_facts:
        part_names, parts = PARTS, assign_parts(list(frame["fact"]), seed)
    else:
        part_names = ("train", "validation")
        held_out = min(VALIDATION_ROWS, max(1, len(frame) // 5))
        parts = ["validation"] * held_out + ["train"] * (len(frame) - held_out)
        frame = frame.sample(frac=1, random_state=seed)
    rows = {
        name: frame[[part == name for part in parts]].reset_index(drop=True)
        for name in part_names
    }
    return DatasetDict(
        {
            name: Dataset.from_pandas(part, preserve_index=False)
            for name, part in rows.items()
            if len(part)
        }
    )


def assign_parts(fact_ids: Sequence[str], seed: int = SPLIT_SEED) -> list[str]:
    """Return the part of each row of the course's questions, in their order.

    - "train": the questions to fine-tune with;
    - "validation": 14 rows, for the loss curve only;
    - "wording": the fact is in "train", asked in other words;
    - "fact": no question on the fact is in "train", but the lab model read it as prose;
    - "unread": the lab model never read the fact either.

    First used in lesson 02, section 3.

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

    First used in lesson 01, section 2.
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
