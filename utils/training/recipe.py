"""The training recipe: LoRA's configuration, the Trainer's arguments, the Trainer.

Everything follows from the model's settings (`models.MODELS`) and the machine at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.course import CourseError
from utils.helpers import DEFAULT_SEED, IGNORED, DataCollatorForCompletionOnlyLM
from utils.machine import Machine
from utils.models import ModelError, ModelSettings, this_machine
from utils.templates import warn_of_other_frame

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainingArguments,
    )

# Below this many tokens a row, unfused attention in bfloat16 is the faster on CPUs: the
# backward pass of the fused kernel takes most of a step there.
SHORT_ROWS = 512
# What the backward pass needs of a batch takes more memory than the model: SmolLM2 with
# notes in its rows peaks at 5.5 GB with eight rows at once and at 3.4 GB with four
# (tests/benchmarks/bench_training.py --memory). The gradient is that of the batch.
ROWS_AT_ONCE = 4
SMALL = 50_000_000  # parameters, below which memory does not matter
MOST_NAMED = 5  # rows in a message


class TrainingError(CourseError):
    """A training run that cannot go on; the message says what to change."""


# --- what is trained, and how ---


def lora_config(settings: ModelSettings) -> LoraConfig:
    """Configure LoRA: which layers get low-rank matrices, of which rank and scale."""
    from peft import LoraConfig

    modules = settings.target_modules
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_lora(base: PreTrainedModel, settings: ModelSettings) -> PeftModel:
    """Wrap the layers that the settings name, and freeze everything else.

    First used in lesson 09, section 4.

    Raises:
        ModelError: if one of the layers is not in this model; peft alone says so only
            where none of them is.
    """
    from peft import get_peft_model

    names = {
        name.rpartition(".")[2]
        for name, layer in base.named_modules()
        if hasattr(layer, "in_features") and layer is not base.get_output_embeddings()
    }
    wanted = settings.target_modules
    missing = [] if isinstance(wanted, str) else [n for n in wanted if n not in names]
    if missing:
        raise ModelError(
            f"{settings.name} has no linear layer named {missing[0]!r}, only "
            f"{', '.join(sorted(names))}: put those into target_modules "
            '(utils/models.py), or "all-linear".'
        )
    return get_peft_model(base, lora_config(settings))


def training_arguments(
    settings: ModelSettings,
    folder: str | Path,
    machine: Machine | None = None,
    **changes: Any,
) -> TrainingArguments:
    """Return the Trainer's settings for this model on this machine.

    Rows of like length share a batch, so that little is padded; the held-out loss is
    measured after every epoch, and in the end the best epoch is kept; arithmetic is in
    the precision that is the faster on this machine (`Machine.bf16`).

    First used in lesson 09, section 4.

    Args:
        settings: learning rate, epochs and batch size come from here.
        folder: where the Trainer may write its checkpoints. They are made between
            epochs: within one, its order of rows could not be drawn again.
        machine: by default the one this runs on.
        **changes: arguments to replace, such as `num_train_epochs=1`. Without
            measuring (`eval_strategy="no"`) there is no best epoch to save.
    """
    from transformers import TrainingArguments

    machine = machine or this_machine()
    measured = changes.get("eval_strategy") != "no"
    rows = rows_at_once(settings, machine)
    whole = "per_device_train_batch_size" in changes  # which is then what a step takes
    arguments = dict(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1: a share of all steps
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1 if whole else settings.batch_size // rows,
        per_device_eval_batch_size=settings.batch_size,
        train_sampling_strategy="group_by_length",
        bf16=machine.bf16,
        fp16=machine.gpu is not None and not machine.bf16,
        use_cpu=machine.gpu is None,
        eval_strategy="epoch",
        eval_on_start=measured,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # a loss that is no number should be seen
        save_strategy="epoch" if measured else "no",
        save_total_limit=2,
        load_best_model_at_end=measured,
        restore_callback_states_from_checkpoint=True,  # early stopping counts on
        seed=DEFAULT_SEED,
        report_to="none",
        dataloader_pin_memory=machine.gpu is not None,
    )
    return TrainingArguments(**(arguments | changes))


def rows_at_once(settings: ModelSettings, machine: Machine) -> int:
    """Return how many rows of a batch are computed at once: memory depends on it.

    Args:
        settings: of the model.
        machine: that trains.
    """
    small = (settings.parameters or SMALL) < SMALL
    if machine.gpu or small or settings.batch_size % ROWS_AT_ONCE:
        return settings.batch_size
    return ROWS_AT_ONCE


def choose_attention(
    settings: ModelSettings, machine: Machine, longest: int | None = None
) -> str:
    """Choose the attention to load a model with for training: "eager" or "sdpa".

    Args:
        settings: of the model.
        machine: that trains.
        longest: tokens of the longest row; by default what the settings allow.
    """
    short = (longest or settings.max_length) <= SHORT_ROWS
    return "eager" if short and machine.bf16 and not machine.gpu else "sdpa"


def completion_trainer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    train_rows: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]] | None = None,
    completion_logits_only: bool = True,
) -> Trainer:
    """Return a Trainer that learns completions and prints no dictionaries of losses.

    First used in lesson 09, section 4.

    Args:
        model: as `add_lora` returns it, or any other with trainable parameters.
        tokenizer: of the model; gives the padding token.
        arguments: as `training_arguments` returns them.
        train_rows: with `input_ids` and `labels`, as `preprocess_batch` makes them.
        held_out: such rows to measure the loss on.
        completion_logits_only: see `DataCollatorForCompletionOnlyLM`.

    Raises:
        TrainingError: naming the rows that bring labels, none of which counts.
    """
    from transformers import PrinterCallback, Trainer

    _require_answers("train_rows", train_rows)
    _require_answers("held_out", held_out or [])
    if len(train_rows):
        warn_of_other_frame(tokenizer, train_rows[0]["input_ids"])
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=held_out,
        data_collator=DataCollatorForCompletionOnlyLM(
            tokenizer, completion_logits_only=completion_logits_only
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _require_answers(name: str, rows: Any) -> None:
    """Raise before the first step, and not at the batch that a row happens to be in.

    Raises:
        TrainingError: naming the rows without a label that counts.
    """
    if hasattr(rows, "column_names"):  # a data set, of which one column is enough
        column = rows["labels"] if "labels" in rows.column_names else []
    else:
        column = [row.get("labels") for row in rows]
    lost = [
        number
        for number, labels in enumerate(column)
        # Nothing comes before the first token, so that nothing predicts it.
        if labels is not None and all(label == IGNORED for label in labels[1:])
    ]
    if lost:
        some = ", ".join(map(str, lost[:MOST_NAMED]))
        more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        raise TrainingError(
            f"Without an answer to learn, counted from 0: rows {some}{more} of {name}. "
            "A limit may have cut it off, or the prompt pushed it out: make the rows "
            "with `preprocess_batch(…, too_long='cut_prompt')`, shorten them, or raise "
            "max_length."
        )
