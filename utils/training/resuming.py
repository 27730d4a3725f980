"""Run a Trainer so that a killed run can go on, and failures say what to do.

Checkpoints are marked when they are whole, and remembered with the run they belong to.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from utils.course import portable_name, wanted_dtype
from utils.files import is_disk_full, write_json
from utils.machine import cpu_has_bf16
from utils.training.recipe import TrainingError
from utils.training.tracking import continue_tracking, tracked_run

if TYPE_CHECKING:
    from transformers import Trainer
    from transformers.trainer_utils import TrainOutput

WHOLE = "complete.json"  # in a checkpoint's folder: everything before it was written


def train(trainer: Trainer, resume: bool = True) -> TrainOutput:
    """Run a Trainer to its end, from where a killed run of the same kind was stopped.

    The same kind means the same settings, rows, base and starting weights. A checkpoint
    counts once it is marked as whole: a run that was killed while it wrote one goes on
    from the one before. The resumed run ends with the weights, bit for bit, of a run
    that was never stopped, if it saves between epochs, on the same machine.

    First used in lesson 04, section 4.

    Args:
        trainer: ready to train. Its output folder is used for nothing else: checkpoints
            of runs of another kind are deleted there.
        resume: whether to look for a checkpoint.

    Raises:
        TrainingError: if the loss diverges, memory runs out or the disk is full, or
            if the killed run was trained in another precision because its process
            raced to another result.
    """
    folder, run = Path(trainer.args.output_dir), _fingerprint(trainer)
    if resume:
        _keep_other_precision(trainer)
    last = _clear_checkpoints(folder, run, keep_newest=resume)
    callbacks = [
        _MarkWhole(run),
        _StopIfDiverging(),
        *([_NoSecondStart()] if last else []),
    ]
    for callback in callbacks:
        trainer.add_callback(callback)
    measures_start = trainer.args.eval_on_start
    try:
        run_id = _mark_of(last).get("tracked") if last else None
        with continue_tracking(trainer, run_id), _explained(trainer):
            checkpoint = str(last) if last else None
            return trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        trainer.args.eval_on_start = measures_start
        for callback in callbacks:
            trainer.remove_callback(callback)


class _MarkWhole(TrainerCallback):
    """Marks a checkpoint after its last file is written."""

    def __init__(self, run: str) -> None:
        self.run = run

    def on_save(self, args, state, control, **_) -> None:
        mark = {"run": self.run, "tracked": tracked_run(args)}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_json(folder / WHOLE, mark)


class _NoSecondStart(TrainerCallback):
    """Keeps a resumed run from measuring its start again.

    Early stopping would take that for an epoch without progress. What is tracked was
    noted before this.
    """

    def on_train_begin(self, args, state, control, **_) -> None:
        args.eval_on_start = False


class _StopIfDiverging(TrainerCallback):
    """Ends a run whose loss diverges.

    It does where it is no number, or exceeds the first loss by a fifth or by one nat,
    whichever is more.
    """

    def __init__(self) -> None:
        self.first: float | None = None

    def on_log(self, args, state, control, logs=None, **_) -> None:
        loss = (logs or {}).get("loss", (logs or {}).get("eval_loss"))
        if loss is None:
            return
        first = self.first = loss if self.first is None else self.first
        if math.isfinite(loss) and loss <= max(1.2 * first, first + 1):
            return
        rate = args.learning_rate
        raise TrainingError(
            f"The loss went from {first:.3g} to {loss:.3g} by step "
            f"{state.global_step}: it diverges. The learning rate of {rate:g} is too "
            f"high here; try {rate / 10:g}. What was saved before is unchanged."
        )


def _keep_other_precision(trainer: Trainer) -> None:
    """Raise rather than delete the unfinished run of a race that ended otherwise.

    Near a tie two processes may decide differently, and hours of work would be lost
    for nothing. A precision that was asked for is another run, as any other setting.
    """
    bf16 = trainer.args.bf16
    if wanted_dtype() or not (trainer.args.use_cpu and cpu_has_bf16()):
        return
    folder = Path(trainer.args.output_dir)
    marked = [one for one in folder.glob("checkpoint-*") if _mark_of(one)]
    other = _fingerprint(trainer, bf16=not bf16) if marked else None
    found = [one for one in marked if _mark_of(one).get("run") == other]
    if not found or any(map(_is_finished, found)):
        return
    ours, theirs = ("bfloat16", "float32")[:: 1 if bf16 else -1]
    raise TrainingError(
        f"{portable_name(folder)} holds a run that was stopped halfway and trained in "
        f"{theirs}, but in this process the race was won by {ours}: set "
        f"COURSE_DTYPE={theirs} and restart the kernel to go on with it, or "
        f"COURSE_DTYPE={ours} to start afresh."
    )


def _is_finished(checkpoint: Path) -> bool:
    """Return whether it was written after a run's last step."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        return state["global_step"] >= state["max_steps"]
    except (OSError, ValueError, KeyError):
        return True


def _fingerprint(trainer: Trainer, **otherwise: Any) -> str:
    """Hash what a checkpoint must agree with: settings, rows and starting weights.

    Args:
        trainer: of the run.
        **otherwise: values of arguments to take in place of the trainer's.
    """
    arguments = trainer.args
    names = (
        *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type"),
        *("warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed"),
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
        *("train_sampling_strategy", "bf16", "fp16"),
    )
    seen = hashlib.sha256(
        str([otherwise.get(name, getattr(arguments, name)) for name in names]).encode()
    )
    for config in getattr(trainer.model, "peft_config", {}).values():
        parts = config.to_dict().items()
        seen.update(
            str(
                [(k, sorted(v) if isinstance(v, set) else v) for k, v in parts]
            ).encode()
        )
    for name, weights in trainer.model.named_parameters():
        start = weights.detach().flatten()[:64].float().cpu()
        seen.update(f"{name} {tuple(weights.shape)} {start.tolist()}".encode())
    for row in trainer.train_dataset:
        seen.update(str([list(row["input_ids"]), list(row["labels"])]).encode())
    return seen.hexdigest()


def _clear_checkpoints(folder: Path, run: str, keep_newest: bool) -> Path | None:
    """Delete the folder's checkpoints that cannot be resumed.

    Those are the unfinished ones and the checkpoints of other runs.

    Returns:
        The newest checkpoint that can be, or None.
    """
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if keep_newest and _mark_of(checkpoint).get("run") == run:
            whole.append((int(checkpoint.name.rpartition("-")[2]), checkpoint))
        else:
            shutil.rmtree(checkpoint)
    return max(whole)[1] if whole else None


def _mark_of(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def _explained(trainer: Trainer) -> Iterator[None]:
    """Turn failures that a learner can mend into one sentence that says how."""
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error):
            rows = trainer.args.per_device_train_batch_size
            raise TrainingError(
                f"Memory ran out with {rows} rows in a batch: halve "
                "per_device_train_batch_size and double gradient_accumulation_steps, "
                "shorten max_length, or hold the base in 8 bits. What was saved before "
                "is unchanged."
            ) from error
        if is_disk_full(error):
            raise TrainingError(
                "The disk is full: a checkpoint could not be written to "
                f"{portable_name(Path(trainer.args.output_dir))}. Free some space and "
                "run this again: it goes on from the last whole checkpoint. What was "
                "saved before is unchanged."
            ) from error
        raise


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text
