"""What ways to fine-tune are compared on: rows, questions, measures; and a bottleneck.

`make_study` takes a small model for that, whatever model the course is run with.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import gelu

from utils.evaluation.answers import Judge, judge_for
from utils.helpers import (
    END_KEY,
    DataCollatorForCompletionOnlyLM,
    context_of,
    preprocess_batch,
)
from utils.models import (
    ModelSettings,
    generate,
    load_tokenizer,
    settings_for,
    this_machine,
)
from utils.templates import Template, TemplateError, template_for
from utils.training.memory import noted_activations
from utils.training.recipe import TrainingError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedModel

    from utils.tasks import Problem

BOTTLENECK = 64
SMALL = 20_000_000  # parameters: a larger model would take hours for all the runs
STUDY_BATCH = 8
RESULT_TOKENS = 8  # a number and its full stop, with room
ADAM_BYTES = 8  # two averages in 32 bits for each trained number


# --- an adapter from scratch ---


class Bottleneck(nn.Module):
    """A frozen layer, and after it a narrow detour that is trained.

    output + up(gelu(down(output))), as in Houlsby et al., arXiv 1902.00751. `up` starts
    as zeros, so at first nothing changes.

    Shown in experiment 04_methods_compared, section 2.

    Args:
        layer: whose output has the shape (…, width).
        width: of the model.
        narrow: how many numbers pass the detour.
    """

    def __init__(self, layer: nn.Module, width: int, narrow: int) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
        """Return the layer's output with the detour's correction added."""
        output = self.layer(*inputs, **options)
        return output + self.up(gelu(self.down(output)))


def add_bottlenecks(base: PreTrainedModel, narrow: int = BOTTLENECK) -> PreTrainedModel:
    """Freeze a model and put a `Bottleneck` after each feed-forward network.

    First used in experiment 04_methods_compared, section 2.
    """
    base.requires_grad_(False)
    for block in [part for part in base.modules() if hasattr(part, "mlp")]:
        detour = Bottleneck(block.mlp, base.config.hidden_size, narrow)
        block.mlp = detour.to(base.device)
    return base


# --- what they are compared on ---


@dataclass(frozen=True)
class Study:
    """A model, rows to train on, and what is measured afterwards.

    Attributes:
        settings: of the model, for one epoch of small batches.
        tokenizer: of the model.
        train, held_out: rows with `input_ids`, `attention_mask` and `labels`.
        replay: such rows of earlier skills.
        questions: rows with `prompt` and what `judge` needs.
        judge: of answers to them.
        skill: problems in one step, which the lab model could solve before.
        stop: the texts at which an answer ends.
    """

    settings: ModelSettings
    tokenizer: Any
    train: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]
    replay: list[dict[str, list[int]]]
    questions: list[dict[str, Any]]
    judge: Judge
    skill: list[Problem]
    stop: tuple[str, ...] = (END_KEY,)


def make_study(
    settings: ModelSettings,
    dataset: DatasetDict,
    n_parameters: int,
    n_rows: int = 160,
    n_questions: int = 30,
) -> Study:
    """Take rows and questions from all over a templated data set for a comparison.

    First used in experiment 04_methods_compared, section 1.

    Args:
        settings: of the model at hand; a large one is replaced by the lab model.
        dataset: with the columns `instruction` and `response`, and a part `replay`
            with `prompt` and `completion` for the methods that replay.
        n_parameters: of the model at hand.
        n_rows: how many rows to train on, at most.
        n_questions: how many questions at most, and problems of the earlier skill.

    Raises:
        TrainingError: if all rows are too long for the model.
    """
    from utils.tasks import problems

    settings = settings if n_parameters <= SMALL else settings_for("lab")
    settings = replace(settings, epochs=1, batch_size=STUDY_BATCH)
    tokenizer = load_tokenizer(settings)
    template = template_for(settings, tokenizer)
    parts = ("wording", "test", "validation")
    part = next(name for name in parts if name in dataset)

    def framed(name: str) -> list[dict[str, Any]]:
        rows = dataset[name].to_list()
        # Rows for replay keep the form of their own; the others may have been made in
        # the template of a large model, in whose place another one stands here.
        return rows if name == "replay" else [template.add_text(row) for row in rows]

    def encoded(name: str) -> list[dict[str, list[int]]]:
        given = framed(name)
        if name != "replay":
            given = [_fitting(row, template, settings.max_length) for row in given]
        columns = {key: [row[key] for row in given] for key in ("prompt", "completion")}
        batch = preprocess_batch(columns, tokenizer, settings.max_length, "drop")
        rows = zip(*batch.values(), strict=True)
        rows = [dict(zip(batch, row, strict=True)) for row in rows]
        if rows and len(rows) < len(given):
            warnings.warn(
                f"{len(given) - len(rows)} of {len(given)} rows of {name} are longer "
                f"than the {settings.max_length} tokens of {settings.name} and are "
                "left out: shorten the answers, or raise max_length (utils/models.py).",
                stacklevel=3,
            )
        if not rows and name != "replay":
            raise TrainingError(
                f"All rows of {name} are longer than the {settings.max_length} tokens "
                f"of {settings.name}: shorten the answers, or raise max_length "
                "(utils/models.py)."
            )
        return rows

    questions = evenly_spaced(framed(part), n_questions)
    return Study(
        settings=settings,
        tokenizer=tokenizer,
        train=evenly_spaced(encoded("train"), n_rows),
        held_out=encoded("validation"),
        replay=encoded("replay") if "replay" in dataset else [],
        questions=questions,
        judge=judge_for(questions, dataset["train"].to_list()),
        skill=problems("1 steps", n_questions),
        stop=template.stop,
    )


def _fitting(
    row: dict[str, Any], template: Template, max_length: int
) -> dict[str, Any]:
    """Return a row with shorter notes where it is too long; else as it is."""
    if not context_of(row):
        return row
    try:
        return template.add_text(template.fit(row, max_length))
    except TemplateError:
        return row


def evenly_spaced(rows: list[Any], count: int) -> list[Any]:
    """Take so many rows at even distances: neighbours are about the same thing."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


# --- measuring ---


def measure(model: nn.Module, study: Study) -> dict[str, float]:
    """Measure what a study asks of a model.

    First used in experiment 04_methods_compared, section 4.

    Returns:
        `loss`, the held-out loss in nats a token; `right`, the share of right answers
        to the study's questions; `kept`, the share of solved problems of its earlier
        skill.
    """
    from utils.tasks import solved

    prompts = [row["prompt"] for row in study.questions]
    budget = study.settings.max_new_tokens
    answers = generate(model, study.tokenizer, prompts, budget, stop=study.stop)
    right = study.judge.right(answers, study.questions)
    asked = [problem.prompt(worked=False) for problem in study.skill]
    results = generate(model, study.tokenizer, asked, RESULT_TOKENS)
    kept = solved(results, study.skill)
    return {
        "loss": loss_on(model, study, study.held_out),
        "right": sum(right) / len(right),
        "kept": sum(kept) / len(kept),
    }


def loss_on(model: nn.Module, study: Study, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean loss of a token of these rows, in nats, in one batch: take few.

    Unlike `scores.token_losses` it asks the model for it, and so counts right where
    a method puts tokens of its own in front.

    First used in experiment 04_methods_compared, section 1.
    """
    batch = _batch(model, study, rows)
    with torch.inference_mode():
        return model(**batch).loss.item()


def _batch(
    model: nn.Module, study: Study, rows: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    batch = DataCollatorForCompletionOnlyLM(study.tokenizer)(rows)
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def training_megabytes(
    model: nn.Module, study: Study, rows: int = STUDY_BATCH
) -> float:
    """Count what training holds in memory, in MB; nothing is measured.

    First used in experiment 04_methods_compared, section 2.

    Weights, for each trained number its gradient and Adam's two averages, and what one
    forward pass keeps for the backward pass.
    """
    every = [*model.parameters(), *model.buffers()]
    held = sum(one.numel() * one.element_size() for one in every)
    held += sum(
        one.numel() * (one.element_size() + ADAM_BYTES)
        for one in model.parameters()
        if one.requires_grad
    )
    batch = _batch(model, study, study.train[:rows])
    short = torch.autocast(
        model.device.type, torch.bfloat16, enabled=this_machine().bf16
    )
    was_training = model.training
    with noted_activations(model) as kept, short:
        loss = model.train()(**batch).loss
    model.train(was_training)
    del loss
    return (held + sum(kept.values())) / 1e6
