"""A second data set against forgetting: what the base could do before it was tuned.

Rows for replay are instructions and responses like those of the first data set. For the
lab model they are its earlier skills, drawn from the tasks that it was trained on, in
the form in which it learned them: `in_corpus_form` leaves the template out. For any
other model they are general requests with the model's own answers, given before it is
tuned (Huang et al., Self-Synthesized Rehearsal, arXiv 2403.01244). SmolLM2's are
recorded in `data/replay_answers.csv`, which `python -m utils.dataset replay` writes.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError
from utils.files import write_text
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

    from utils.templates import Template

ANSWERS = ROOT / "data" / "replay_answers.csv"
RECORDED_MODEL = "smollm2"  # whose answers they are
TRAINED_COLUMNS = ("input_ids", "attention_mask", "labels")
SEPARATOR = " - "


class ReplayError(CourseError, ValueError):
    """Rows that cannot be mixed as asked; the message says what to do."""


def skill_rows(n_rows: int, seed: int = DEFAULT_SEED) -> list[dict[str, str]]:
    """Draw instructions from the lab model's earlier skills, none of them twice.

    First used in experiment 04_methods_compared, section 1.

    A row takes the prompt of a task as its instruction and what the model learned to
    write after it as its response. The kinds of task go round. Pairs of words and of
    operands that examinations ask for are left out (`tasks.held_out`,
    `tasks.rule_is_held_out`).

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

    First used in experiment 04_methods_compared, section 1.

    Args:
        row: one of `skill_rows`.
        end_of_text: the tokenizer's token that ends every document of the corpus.

    Returns:
        The row and, added to it, `prompt`, `completion` and `text`.
    """
    prompt, completion = row["instruction"], f" {row['response']}\n{end_of_text}"
    text = prompt + completion
    return {**row, "prompt": prompt, "completion": completion, "text": text}


# General requests: each kind is asked about each thing.
REQUESTS = {
    "explain": "Explain in one sentence what {} is.",
    "write": "Write one short sentence about {}.",
    "list": "Name three things that go well with {}.",
    "advise": "Give one piece of advice to a person who buys {}.",
}
THINGS = (
    *("a bicycle", "a lighthouse", "a kettle", "a violin", "a garden", "a telescope"),
    *("a winter coat", "a library card", "a sailing boat", "a candle", "a mirror"),
    *("a compass", "a ladder", "a pair of scissors", "a bookshelf", "a tent", "a drum"),
    *("an umbrella", "a wooden table", "a camera", "a hammock", "a fishing rod"),
    *("a teapot", "a map", "a chess set", "a pillow", "a wristwatch", "a bread knife"),
    *("a flower pot", "a sewing machine", "a piano", "a pair of boots", "a lamp"),
    *("a kite", "a suitcase", "a rain barrel", "a beehive", "a notebook", "a blanket"),
    "a wheelbarrow",
)


def general_requests() -> list[dict[str, str]]:
    """Return requests that have nothing to do with the course's subject.

    Returns:
        Rows with `instruction`, and `topic`, which names the kind; the kinds go round.
    """
    kinds = list(REQUESTS)
    return [
        {"instruction": REQUESTS[kind].format(thing), "topic": kind}
        for turn in range(len(kinds))
        for place, thing in enumerate(THINGS)
        for kind in [kinds[(place + turn) % len(kinds)]]
    ]


def own_answers(
    requests: Sequence[Mapping[str, str]],
    model: Any,
    template: Template,
    max_new_tokens: int = 64,
) -> list[dict[str, str]]:
    """Return the requests with what the model answers to them itself, untuned.

    An answer that the budget cut off is left out, and so is one that says a thing twice
    or holds a mark of the template. If none is left, those that were cut off are kept.

    Args:
        requests: with `instruction`.
        model: the base, before it is tuned.
        template: that it will be tuned in.
        max_new_tokens: most tokens of an answer.
    """
    from utils.models import generate

    prompts = [template.prompt(row["instruction"]) for row in requests]
    answers = generate(
        model, template.tokenizer, prompts, max_new_tokens, stop=template.stop
    )
    usable = [
        bool(text.strip()) and template.neutralise(text) == text for text in answers
    ]
    whole = [
        fits and ended and not repeats(text)
        for fits, ended, text in zip(usable, answers.finished, answers, strict=True)
    ]
    kept = whole if any(whole) else usable
    return [
        {**row, "response": text}
        for row, text, keep in zip(requests, answers, kept, strict=True)
        if keep
    ]


def repeats(text: str) -> bool:
    """Return whether a line or a sentence of the text comes twice."""
    pieces = re.split(r"\n+|(?<=[.!?])\s", text)
    said = [re.sub(r"^\W*\d*\W*", "", piece).strip().lower() for piece in pieces]
    said = [piece for piece in said if piece]
    return len(set(said)) < len(said)


def recorded_answers(file: Path = ANSWERS) -> list[dict[str, str]]:
    """Return SmolLM2's own answers to `general_requests`, as they were recorded.

    Raises:
        ReplayError: if the file is missing.
    """
    if not file.is_file():
        raise ReplayError(
            f"{file.name} is missing: restore it with `git checkout -- data`, or make "
            "it again with `python -m utils.dataset replay`."
        )
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def record_answers(file: Path = ANSWERS) -> int:
    """Ask SmolLM2 all of `general_requests` and write its answers; returns how many."""
    from utils.models import load_model, load_tokenizer, settings_for
    from utils.templates import template_for

    settings = settings_for(RECORDED_MODEL)
    template = template_for(settings, load_tokenizer(settings))
    rows = own_answers(general_requests(), load_model(settings), template)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["instruction", "response", "topic"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())
    return len(rows)


def with_replay(
    dataset: DatasetDict, share: float, seed: int = DEFAULT_SEED
) -> Dataset:
    """Return the training rows, and as many for replay as make up this share.

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
