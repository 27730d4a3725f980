"""A second data set against forgetting: what the base could do before it was tuned.

Rows for replay are instructions and responses like those of the first data set. Here
they are the earlier skills of the lab model, drawn from the tasks that it was trained
on; for another base, write rows of what that base must keep doing. A skill is kept in
the form in which it is replayed: `in_corpus_form` leaves the course's template out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from utils.course import CourseError
from utils.helpers import DEFAULT_SEED
from utils.tasks import (
    MOST_EXAMPLES,
    PROBLEM_KINDS,
    RELATIONS,
    RULES,
    mapping_lines,
    problem,
    rule_is_held_out,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TRAINED_COLUMNS = ("input_ids", "attention_mask", "labels")
SEPARATOR = " - "


class ReplayError(CourseError, ValueError):
    """Rows that cannot be mixed as asked; the message says what to do."""


def skill_rows(n_rows: int, seed: int = DEFAULT_SEED) -> list[dict[str, str]]:
    """Draw instructions from the lab model's earlier skills, none of them twice.

    A row takes the prompt of a task as its instruction and what the model learned to
    write after it as its response. The kinds of task go round. Pairs of words and of
    operands that examinations ask for are left out (`tasks.held_out`,
    `tasks.rule_is_held_out`).

    First used in lesson 03, section 8.

    Args:
        n_rows: how many rows.
        seed: the same one draws the same rows; fewer rows are the first of more.

    Returns:
        Rows with `instruction`, `response` and `topic`, which names the skill.
    """
    generator = random.Random(f"{seed} replay")
    kinds = list(SKILLS)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < n_rows:
        topic = kinds[len(rows) % len(kinds)]
        instruction, response = SKILLS[topic](generator)
        row = {"instruction": instruction, "response": response, "topic": topic}
        rows.setdefault(instruction, row)
    return list(rows.values())


def in_corpus_form(row: Mapping[str, str], end_of_text: str) -> dict[str, str]:
    """Return the row with its texts in the form of the lab model's corpus.

    First used in lesson 03, section 8.

    Args:
        row: one of `skill_rows`.
        end_of_text: the tokenizer's token that ends every document of the corpus.

    Returns:
        The row and, added to it, `prompt`, `completion` and `text`.
    """
    prompt, completion = row["instruction"], f" {row['response']}\n{end_of_text}"
    text = prompt + completion
    return {**row, "prompt": prompt, "completion": completion, "text": text}


def with_replay(
    dataset: DatasetDict, share: float, seed: int = DEFAULT_SEED
) -> Dataset:
    """Return the training rows, and as many for replay as make up this share.

    First used in lesson 03, section 8.

    Args:
        dataset: what 03_dataset_templating.ipynb writes, with `train` and `replay`.
        share: of all rows that are returned, from 0 to below 1.
        seed: which of the rows for replay are taken.

    Returns:
        Rows with `input_ids`, `attention_mask` and `labels`; training rows first.

    Raises:
        ReplayError: if the share is not a share, or there are too few rows for it.
    """
    from datasets import concatenate_datasets

    if not 0 <= share < 1:
        raise ReplayError(
            f"share is {share}: give the part of all rows that is replay, from 0 to "
            "below 1, such as 0.2."
        )
    train = dataset["train"].select_columns(list(TRAINED_COLUMNS))
    count = round(len(train) * share / (1 - share))
    if not count:
        return train
    if "replay" not in dataset:
        raise ReplayError(
            "The data set has no part 'replay': run 03_dataset_templating.ipynb again."
        )
    replay = dataset["replay"].select_columns(list(TRAINED_COLUMNS))
    if count > len(replay):
        raise ReplayError(
            f"A share of {share:g} takes {count} rows for replay with {len(train)} "
            f"training rows, and there are {len(replay)}: lower the share, or write "
            "more with `skill_rows`."
        )
    chosen = random.Random(seed).sample(range(len(replay)), count)
    return concatenate_datasets([train, replay.select(sorted(chosen))])


def _relation(generator: random.Random) -> tuple[str, str]:
    pairs = RELATIONS[generator.choice(sorted(RELATIONS))]
    return _completed(generator, sorted(pairs.items()))


def _rule(generator: random.Random) -> tuple[str, str]:
    return _completed(generator, _seen_pairs(generator.choice(sorted(RULES))))


@cache
def _seen_pairs(rule: str) -> list[tuple[str, str]]:
    pairs = sorted(RULES[rule].items())
    return [pair for pair in pairs if not rule_is_held_out(rule, pair[0])]


def _completed(
    generator: random.Random, known: list[tuple[str, str]]
) -> tuple[str, str]:
    """Write some pairs of a relation, and one more to complete."""
    *shown, (word, answer) = generator.sample(
        known, generator.randint(2, MOST_EXAMPLES)
    )
    return mapping_lines(shown, SEPARATOR) + word + SEPARATOR.rstrip(), answer


def _problem(worked: bool) -> Callable[[random.Random], tuple[str, str]]:
    def write(generator: random.Random) -> tuple[str, str]:
        kinds, shares = list(PROBLEM_KINDS), list(PROBLEM_KINDS.values())
        drawn = problem(generator, generator.choices(kinds, shares)[0], held=False)
        prompt = drawn.prompt(worked)
        return prompt, drawn.document(worked).removeprefix(prompt).strip()

    return write


SKILLS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "relation": _relation,
    "worked problem": _problem(worked=True),
    "rule": _rule,
    "direct answer": _problem(worked=False),
}
"""Skill → function that writes one instruction and its response."""
