"""A training run in a process of its own, which may be killed at any moment."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from support.tiny_models import tiny_gpt_neox, tiny_tokenizer
from utils.helpers import add_text, preprocess_batch
from utils.machine import cpu_has_bf16
from utils.models import MODELS
from utils.training.adapters import save_adapter
from utils.training.recipe import add_lora, completion_trainer, training_arguments
from utils.training.resuming import train

# Dropout draws random numbers in every step: they must go on where they stopped.
SETTINGS = replace(
    MODELS["lab"], lora_r=4, lora_alpha=8, lora_dropout=0.1, epochs=4, batch_size=2
)
STEPS_AN_EPOCH = 3


def tiny_rows(words: str = "features models measures security rest transit") -> list:
    """One templated and tokenised row a word; answers of different lengths."""
    texts = [
        add_text({"instruction": f"What keeps {w}?", "response": f"It keeps {w}."})
        for w in words.split()
    ]
    columns = {key: [text[key] for text in texts] for key in ("prompt", "completion")}
    encoded = preprocess_batch(columns, tiny_tokenizer(), 256)
    return [
        dict(zip(encoded, row, strict=True))
        for row in zip(*encoded.values(), strict=True)
    ]


def tiny_trainer(folder: Path, settings=SETTINGS, **changes) -> Trainer:
    """A Trainer of a tiny base with LoRA; always the same starting weights."""
    torch.manual_seed(0)
    rows = tiny_rows()
    return completion_trainer(
        add_lora(tiny_gpt_neox(len(tiny_tokenizer())), settings),
        tiny_tokenizer(),
        training_arguments(settings, folder, disable_tqdm=True, **changes),
        rows,
        held_out=rows[:2],
    )


class DieAtStep(TrainerCallback):
    """kill -9 after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(step: int) -> None:
    """kill -9 when half of the optimizer's state is written, in a step's checkpoint."""
    save = torch.save

    def save_half(content, file, *arguments, **options):
        save(content, file, *arguments, **options)
        if f"checkpoint-{step}{os.sep}optimizer" in str(file):
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half


def run(
    folder: Path, die: tuple[str, int] | None = None, started: Connection | None = None
) -> None:
    """Train to the end, or to the death, and save the adapter.

    Args:
        folder: holds `checkpoints` and, in the end, `adapter`.
        die: ("step", number) or ("writing", number of a step).
        started: is told when training is about to begin.
    """
    torch.set_num_threads(1)
    # Bits are compared between processes: none may race to a precision of its own.
    os.environ["COURSE_DTYPE"] = "bfloat16" if cpu_has_bf16() else "float32"
    trainer = tiny_trainer(folder / "checkpoints")
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    if die and die[0] == "step":
        trainer.add_callback(DieAtStep(die[1]))
    elif die:
        die_while_writing(die[1])
    if started:
        started.send("ready")
    train(trainer)
    save_adapter(trainer.model, tiny_tokenizer(), folder / "adapter")
