"""Examines the lab model: every skill with its number of prompts and 95% interval.

python -m utils.lab_model.evaluate [--prompts 200] [--model FOLDER]

Operands and facts asked for are those that the corpus keeps apart: see `tasks` and
`utils.facts`. What fine-tuning adds is measured in lesson 04, not here.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.evaluation import Proportion, proportion
from utils.facts import assign_parts, is_right
from utils.helpers import INFERENCE_PROMPT
from utils.lab_model.corpus import FAQS_FILE
from utils.lab_model.tasks import (
    Problem,
    Task,
    few_shot_tasks,
    final_answer,
    first_line,
    problems,
    system_prompt,
)
from utils.models import generate, load_model, load_tokenizer, settings_for

EXAMPLES = (0, 1, 3)
KINDS = ("1 steps", "2 steps", "3 steps", "speed", "product")
WORKED_TOKENS, DIRECT_TOKENS, WORD_TOKENS, ANSWER_TOKENS = 96, 8, 8, 64

Generate = Callable[[Sequence[str], int], list[str]]
"""(prompts, token budget) → the continuations."""


def generator_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Generate:
    """Greedy continuations of a model."""

    def continuations(prompts: Sequence[str], budget: int) -> list[str]:
        return generate(model, tokenizer, prompts, max_new_tokens=budget)

    return continuations


def score_relations(ask: Generate, tasks: Sequence[Task]) -> list[bool]:
    """Which relation prompts are completed with the right word."""
    answers = ask([task.prompt for task in tasks], WORD_TOKENS)
    return [
        first_line(answer) == task.answer
        for answer, task in zip(answers, tasks, strict=True)
    ]


def score_valid(ask: Generate, tasks: Sequence[Task]) -> list[bool]:
    """Which prompts are completed with an answer that some relation allows."""
    answers = ask([task.prompt for task in tasks], WORD_TOKENS)
    return [
        first_line(answer) in task.also_valid | {task.answer}
        for answer, task in zip(answers, tasks, strict=True)
    ]


def score_problems(
    ask: Generate, asked: Sequence[Problem], worked: bool, style: str = "plain"
) -> list[bool]:
    """Which problems end in the right number, with or without worked steps."""
    prompts = [problem.prompt(worked, style) for problem in asked]
    answers = ask(prompts, WORKED_TOKENS if worked else DIRECT_TOKENS)
    return [
        final_answer(answer) == problem.result
        for answer, problem in zip(answers, asked, strict=True)
    ]


def score_facts(ask: Generate, part: str, prompt: str) -> list[bool]:
    """Which questions of a part are answered right.

    Args:
        part: one of `utils.facts.PARTS`.
        prompt: the text around the question, with the field `{instruction}`.
    """
    with open(FAQS_FILE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = assign_parts([row["fact"] for row in rows])
    asked = [row for row, found in zip(rows, parts, strict=True) if found == part]
    prompts = [prompt.format(instruction=row["instruction"]) for row in asked]
    return [
        is_right(answer, row["fact"])
        for answer, row in zip(ask(prompts, ANSWER_TOKENS), asked, strict=True)
    ]


def conversation_tasks(n_prompts: int) -> list[Task]:
    """Three-shot prompts in the form of a conversation."""
    tasks = []
    for task in few_shot_tasks(3, n_prompts):
        *examples, last = task.prompt.splitlines()
        pairs = [tuple(line.split(" - ")) for line in examples]
        prompt = system_prompt(pairs, " - ", last.removesuffix(" -"))
        tasks.append(Task(prompt, task.answer, task.kind, task.also_valid))
    return tasks


def examine(ask: Generate, n_prompts: int) -> dict[str, Proportion]:
    """Every skill with its score."""
    scores: dict[str, Any] = {}
    for count in EXAMPLES:
        tasks = few_shot_tasks(count, n_prompts)
        scores[f"relations, {count}-shot"] = score_relations(ask, tasks)
        if not count:
            scores["relations, 0-shot, valid"] = score_valid(ask, tasks)
    conversations = conversation_tasks(n_prompts)
    scores["relations, 3-shot, conversation"] = score_relations(ask, conversations)
    for kind in KINDS:
        asked = problems(kind, n_prompts)
        scores[f"{kind}, direct"] = score_problems(ask, asked, worked=False)
        scores[f"{kind}, worked"] = score_problems(ask, asked, worked=True)
    for part in ("train", "wording", "fact", "unread"):
        form = "Q: {instruction}\nA:"
        scores[f"facts, {part}, as Q: and A:"] = score_facts(ask, part, form)
        scores[f"facts, {part}, in the template"] = score_facts(
            ask, part, INFERENCE_PROMPT
        )
    return {name: proportion(hits) for name, hits in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    settings = settings_for(str(options.model.resolve()) if options.model else "lab")
    ask = generator_of(load_model(settings), load_tokenizer(settings))
    for name, score in examine(ask, options.prompts).items():
        print(
            f"{name:34} {score.value:7.1%}  [{score.low:.1%}, {score.high:.1%}]  "
            f"n={score.n}"
        )


if __name__ == "__main__":
    main()
