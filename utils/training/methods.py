"""Ways to fine-tune, side by side: the same base, rows, epochs and questions for each.

`METHODS` holds how each prepares a base for training. `compare` trains and measures
them; it takes a small model for that, whatever model the course is run with.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import gelu

from utils.course import set_seed
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
    load_model,
    load_tokenizer,
    settings_for,
    this_machine,
)
from utils.templates import Template, TemplateError, template_for
from utils.training.recipe import (
    TrainingError,
    add_lora,
    choose_attention,
    completion_trainer,
    parameter_counts,
    training_arguments,
)
from utils.training.resuming import train

if TYPE_CHECKING:
    import pandas
    from datasets import DatasetDict
    from transformers import PreTrainedModel, Trainer

    from utils.tasks import Problem

VIRTUAL_TOKENS = 20
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


# --- the methods ---


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        prepare: loads the base and says what of it, or beside it, is trained.
        rate: the learning rate, as a multiple of the one that the settings have for
            LoRA. Full fine-tuning wants about a tenth of it (Thinking Machines, LoRA
            Without Regret, 2025), prompts and prefixes more.
        completion_logits_only: the collator may leave out what has no label.
        replay: this share of all rows is of earlier skills, if there are as many.
    """

    prepare: Callable[[ModelSettings], nn.Module]
    rate: float = 1.0
    completion_logits_only: bool = True
    replay: float = 0.0


def load_for_training(settings: ModelSettings, **options: Any) -> PreTrainedModel:
    """Load the base in 32 bits, or as the options say, with its faster attention."""
    attention = choose_attention(settings, this_machine())
    options = {"dtype": torch.float32, "attn_implementation": attention} | options
    return load_model(settings, **options)


def _full(settings: ModelSettings) -> nn.Module:
    return load_for_training(settings).requires_grad_(True)


def _lora(settings: ModelSettings) -> nn.Module:
    return add_lora(load_for_training(settings), settings)


def _qlora(settings: ModelSettings) -> nn.Module:
    from peft import prepare_model_for_kbit_training

    base = load_for_training(settings, quantisation="4bit", dtype=None)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    return add_lora(base, settings)


def _prompt_tuning(settings: ModelSettings) -> nn.Module:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=VIRTUAL_TOKENS,
        prompt_tuning_init="SAMPLE_VOCAB",
    )
    return get_peft_model(load_for_training(settings), config)


def _prefix_tuning(settings: ModelSettings) -> nn.Module:
    from peft import PrefixTuningConfig, get_peft_model

    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS
    )
    return get_peft_model(load_for_training(settings), config)


def _bottleneck(settings: ModelSettings) -> nn.Module:
    return add_bottlenecks(load_for_training(settings))


METHODS: Mapping[str, Method] = {
    "full": Method(_full, rate=0.1),
    "LoRA": Method(_lora),
    "LoRA, replay": Method(_lora, replay=0.2),
    "QLoRA": Method(_qlora),
    "bottleneck": Method(_bottleneck),
    "prefix": Method(_prefix_tuning, rate=60),
    # peft lengthens the labels by the prompt, and so needs them one for each token.
    "prompt": Method(_prompt_tuning, rate=60, completion_logits_only=False),
}


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


# --- training and measuring ---


def make_trainer(
    method: Method, study: Study, folder: str, seed: int, **changes: Any
) -> Trainer:
    """Return a Trainer for one epoch of small batches, which prints nothing.

    Args:
        method: one of `METHODS`.
        study: gives model and rows.
        folder: where it may write.
        seed: of the new weights and of the order of rows.
        **changes: arguments of transformers' `TrainingArguments` to replace; with
            `eval_strategy="epoch"` the held-out loss is measured as well.
    """
    set_seed(seed)
    count = round(len(study.train) * method.replay / (1 - method.replay))
    arguments = {
        "learning_rate": method.rate * study.settings.learning_rate,
        "eval_strategy": "no",
        "disable_tqdm": True,
        "seed": seed,
    }
    return completion_trainer(
        method.prepare(study.settings),
        study.tokenizer,
        training_arguments(study.settings, folder, **(arguments | changes)),
        study.train + study.replay[:count],
        study.held_out,
        method.completion_logits_only,
    )


def fine_tune(
    method: Method, study: Study, seed: int, **changes: Any
) -> tuple[nn.Module, float]:
    """Train by one method; the arguments are those of `make_trainer`.

    Returns:
        The trained model, ready to answer, and the seconds that training took.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(method, study, folder, seed, **changes)
        start = time.perf_counter()
        train(trainer, resume=False)
        seconds = time.perf_counter() - start
    # The Trainer leaves a wrapper for short arithmetic around `forward`.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model.eval(), seconds


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
    weights = {one.untyped_storage().data_ptr() for one in every}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = _batch(model, study, study.train[:rows])
    short = torch.autocast(
        model.device.type, torch.bfloat16, enabled=this_machine().bf16
    )
    was_training = model.training
    # While `loss` lives, no storage is freed and its address used for another.
    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one), short:
        loss = model.train()(**batch).loss
    model.train(was_training)
    del loss
    return (held + sum(kept.values())) / 1e6


def compare(
    study: Study, names: Iterable[str] = tuple(METHODS), seeds: Sequence[int] = range(3)
) -> pandas.DataFrame:
    """Train and measure each method with each seed, under a progress bar.

    Returns:
        One row a run: `method`, `seed`, `trained` (numbers), `MB`, `seconds`, `loss`,
        `right` and `kept` (see `measure`).
    """
    import pandas

    runs = []
    for name, seed in with_progress_bar(list(product(names, seeds))):
        model, seconds = fine_tune(METHODS[name], study, seed)
        runs.append(
            {
                "method": name,
                "seed": seed,
                "trained": parameter_counts(model)[0],
                "MB": training_megabytes(model, study),
                "seconds": seconds,
                **measure(model, study),
            }
        )
    return pandas.DataFrame(runs)


def sweep(
    study: Study, seeds: Sequence[int] = (0,), **values: Sequence[Any]
) -> pandas.DataFrame:
    """Train LoRA with every combination of some settings, under a progress bar.

    Args:
        study: gives model and rows.
        seeds: each combination is trained once with each.
        **values: name of a setting (see `ModelSettings`) → values to try. With another
            rank, alpha changes alike, so that the scale α / r stays.

    Returns:
        One row a run: `seed`, a column a setting, and `loss`, the held-out loss;
        NaN if it diverged.
    """
    import pandas

    known, runs = study.settings, []
    for seed, *chosen in with_progress_bar(list(product(seeds, *values.values()))):
        point = dict(zip(values, chosen, strict=True))
        changes = dict(point)
        if "lora_r" in point and "lora_alpha" not in point:
            changes["lora_alpha"] = known.lora_alpha * point["lora_r"] / known.lora_r
        other = replace(study, settings=replace(known, **changes))
        try:
            model, _ = fine_tune(METHODS["LoRA"], other, seed)
            loss = loss_on(model, study, study.held_out)
        except TrainingError:  # it diverged, which is a result
            loss = math.nan
        runs.append({"seed": seed, **point, "loss": loss})
    return pandas.DataFrame(runs)


def with_progress_bar(things: Sequence[Any]) -> Iterator[Any]:
    """Yield things one by one, under the Trainer's own progress bar in a notebook.

    Every Trainer collects garbage when it starts. What is in memory now is left out of
    that until the end: looking it all through takes about a tenth of so short
    a run.
    """
    from transformers.utils.import_utils import is_in_notebook

    bar = None
    if is_in_notebook():
        from transformers.utils.notebook import NotebookProgressBar

        bar = NotebookProgressBar(len(things))
    gc.collect()
    gc.freeze()
    try:
        for number, thing in enumerate(things):
            if bar is not None:
                bar.update(number, force_update=True)
            yield thing
    finally:
        # With what was there before, as the interpreter's own: it is few and lives on.
        gc.unfreeze()
    if bar is not None:
        bar.update(len(things), force_update=True)
