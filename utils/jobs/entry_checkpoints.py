"""Checkpoints of a training job: saved often, marked when whole, resumed if they fit.

SageMaker copies their folder to S3 while the job runs, file by file, and back before
the next job begins: what arrives may be half of a checkpoint, or of another run. A mark
that is written last names the run and each file with its size. Part of the job's entry
script, `entry.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from entry_orders import JobError, is_first, say
from transformers import EarlyStoppingCallback, TrainerCallback

MARK = "complete.json"
# SageMaker puts such files beside those that it uploads.
UPLOAD_MARKS = (".sagemaker-uploading", ".sagemaker-uploaded")
NAME = re.compile(r"checkpoint-(\d+)")


def digest(parts: dict[str, str]) -> str:
    """Return the sha256 of what a run consists of, which tells it from others."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find_checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, the newest first."""
    found = {
        int(match[1]): one
        for one in (folder.iterdir() if folder.is_dir() else ())
        if one.is_dir() and (match := NAME.fullmatch(one.name))
    }
    return [found[step] for step in sorted(found, reverse=True)]


def fault(checkpoint: Path, parts: dict[str, str]) -> str | None:
    """Say why a run cannot go on from a checkpoint; None if it can."""
    there = _sizes(checkpoint)
    if not there:
        return "it is empty"
    if MARK not in there:
        return "it is not whole, or of another program"
    try:
        mark = json.loads((checkpoint / MARK).read_text("utf-8"))
        before, files, run = mark["parts"], mark["files"], mark["run"]
    except (ValueError, KeyError, TypeError):
        return f"it is not whole: {MARK} cannot be read"
    for name, size in files.items():
        if name not in there:
            return f"it is not whole: {name} is missing"
        if there[name] != size:
            return f"it is not whole: {name} has {there[name]} of {size} bytes"
    if run == digest(parts):
        return None
    differ = [
        f"{name} ({before.get(name, 'nothing')} before, {parts.get(name, 'nothing')})"
        for name in sorted(before | parts)
        if before.get(name) != parts.get(name)
    ]
    return f"it is of another run, by {', '.join(differ)}"


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Return the sizes of a checkpoint's files, without those of SageMaker."""
    return {
        str(one.relative_to(checkpoint)): one.stat().st_size
        for one in sorted(checkpoint.rglob("*"))
        if one.is_file() and not one.name.endswith(UPLOAD_MARKS)
    }


class Keeper(TrainerCallback):
    """Keeps a run's checkpoints, and ends it in good order when it is told to.

    Args:
        folder: with the checkpoints.
        parts: what the run consists of; see `digest`.
        limit: how many checkpoints to keep; 0 for all, as the Trainer takes it.

    Attributes:
        resumed: the checkpoint that the run can go on from, or None.
        told: whether SIGTERM came.
        stopped: whether the run ended before its last step for it.
        begun: whether it trains.
        log: what the Trainer has logged, step by step.
    """

    def __init__(self, folder: Path, parts: dict[str, str], limit: int) -> None:
        self.folder, self.parts, self.limit = folder, parts, limit
        self.told = self.stopped = self.begun = False
        self.saved = 0  # the step of the last checkpoint
        self.log: list[dict[str, Any]] = []
        self.resumed: Path | None = None
        self.unusable: list[Path] = []
        for one in find_checkpoints(folder):
            why = fault(one, parts)
            if why is None:
                self.resumed = self.resumed or one
            else:
                self.unusable.append(one)
                say(f"{one.name} is not used: {why}.")
        if self.resumed:
            say(f"Training goes on from {self.resumed.name}.")
        elif self.unusable:
            say("No checkpoint can be used: training starts at its first step.")

    def stop(self, number: int, frame: Any) -> None:
        """Take SIGTERM: end after the step at hand, or at once if there is none yet."""
        self.told = True
        if not self.begun:
            raise SystemExit(128 + number)

    def listen(self) -> None:
        """Let SIGTERM stop the run: SageMaker sends it two minutes before the end."""
        signal.signal(signal.SIGTERM, self.stop)

    def make_room(self) -> None:
        """Delete the checkpoint that was being written when the disk was full."""
        for one in find_checkpoints(self.folder) if self.begun else []:
            if not (one / MARK).is_file():
                shutil.rmtree(one, ignore_errors=True)

    def on_train_begin(self, args, state, control, **_) -> None:
        """Make room for the checkpoints to come, and say if there will be few."""
        self.begun, self.saved = True, state.global_step
        if is_first():  # before a step that needs all workers
            for one in self.unusable:
                shutil.rmtree(one)
        interval = state.save_steps if args.save_strategy == "steps" else 0
        if interval >= state.max_steps:
            say(
                f"save_steps is {interval:g}, and the run has {state.max_steps} steps: "
                "a checkpoint is saved at the end of each epoch."
            )

    def on_step_end(self, args, state, control, **_) -> None:
        """Save if it is time to, but at the end of an epoch only once it was measured.

        Otherwise a run that is killed in between would go on without that measure.
        """
        if state.global_step < state.max_steps and _any_worker(self.told, args):
            self.stopped = True
            control.should_save = control.should_training_stop = True
        elif state.epoch == int(state.epoch):
            control.should_save = False

    def on_epoch_end(self, args, state, control, **_) -> None:
        """Save at the end of each epoch, however long the interval is."""
        control.should_save = self.saved != state.global_step
        if self.stopped:
            control.should_evaluate = False  # there is no time for it

    def on_save(self, args, state, control, **_) -> None:
        """Mark what was saved, once all workers have written their part of it."""
        self.saved = state.global_step
        if args.world_size > 1:
            torch.distributed.barrier()
        if not is_first():
            return
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        mark = {"run": digest(self.parts), "parts": self.parts}
        mark["files"] = _sizes(checkpoint)
        half = checkpoint / f"{MARK}.half"
        half.write_text(json.dumps(mark, indent=2), encoding="utf-8")
        half.replace(checkpoint / MARK)
        kept = {checkpoint.name, Path(state.best_model_checkpoint or "").name}
        old_ones = find_checkpoints(self.folder)[self.limit :] if self.limit else []
        for old in old_ones:
            if old.name not in kept:
                shutil.rmtree(old)

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """Write what a metric's pattern can find, and end a run that went wrong.

        Raises:
            JobError: if the loss is no number.
        """
        self.log = state.log_history
        names = {"loss": "train_loss", "eval_loss": "held_out_loss"}
        for name, called in names.items():
            loss = (logs or {}).get(name)
            if loss is None:
                continue
            if not math.isfinite(loss):
                rate = args.learning_rate
                raise JobError(
                    f"The {called.replace('_', ' ')} is {loss} at step "
                    f"{state.global_step}, which is no number: the learning rate of "
                    f"{rate:g} is too high here. Try {rate / 10:g}."
                )
            # Never with an exponent, which patterns for numbers tend to cut off.
            say(f"step={state.global_step} {called}={loss:.6f}")


class Patience(EarlyStoppingCallback):
    """Ends training when the held-out loss has not fallen for some epochs in a row.

    A run that was resumed counts as if nothing had interrupted it, and finds the best
    checkpoint in this machine's folder, wherever the other machine had it.
    """

    was_over = False  # the run was taken away after it had ended, before it had saved

    def on_train_begin(self, args, state, control, **more) -> None:
        """Count anew what the log says."""
        super().on_train_begin(args, state, control, **more)
        lowest = math.inf
        for loss in (x["eval_loss"] for x in state.log_history if "eval_loss" in x):
            fell = loss < lowest
            lowest = min(lowest, loss)
            self.early_stopping_patience_counter = (
                0 if fell else self.early_stopping_patience_counter + 1
            )
        self.was_over = (
            self.early_stopping_patience_counter >= self.early_stopping_patience
        )
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_step_end(self, args, state, control, **_) -> None:
        """End again what had ended: the Trainer has no way to begin with no step."""
        control.should_training_stop |= self.was_over

    def on_epoch_end(self, args, state, control, **_) -> None:
        """Let that step count for nothing."""
        if self.was_over:
            control.should_evaluate = control.should_save = False


def _any_worker(told: bool, args: Any) -> bool:
    """Return whether any worker was told to stop: all have to end at the same step."""
    if args.world_size == 1:
        return told
    flag = torch.tensor(int(told), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
