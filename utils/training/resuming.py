"""Run a Trainer so that a killed run can go on, and failures say what to do.

Checkpoints are marked when they are whole, and remembered with the run they belong to.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
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
BEGUN = ".begun.json"  # beside them: names the one that is being written
SETTINGS = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("train_sampling_strategy", "bf16", "fp16"),
)
# What a person calls the parts of a run that are not called by their own name.
PART_NAMES = {
    "learning_rate": "the learning rate",
    "num_train_epochs": "the number of epochs",
    "per_device_train_batch_size": "the batch size",
    "rows": "the training rows",
    "held_out": "the held-out rows",
    "weights": "the base or its starting weights",
    "lora.r": "LoRA's rank",
    "lora.lora_alpha": "LoRA's alpha",
    "lora.target_modules": "the layers with LoRA",
}


def train(trainer: Trainer, resume: bool = True) -> TrainOutput:
    """Run a Trainer to its end, from where a killed run of the same kind was stopped.

    The same kind means the same settings, rows, base and starting weights. After any
    other run training starts afresh, and a warning says what differs. A checkpoint
    counts once it is marked as whole: a run that was killed while it wrote one goes on
    from the one before. The resumed run ends with the weights, bit for bit, of a run
    that was never stopped, if it saves between epochs, on the same machine.

    Args:
        trainer: ready to train. Checkpoints that this function wrote for runs of
            another kind are deleted in its output folder; others are left alone.
        resume: whether to look for a checkpoint.

    Raises:
        TrainingError: if the loss diverges, memory runs out or the disk is full, if a
            checkpoint of another program would be overwritten, or if the killed run
            was trained in another precision because its process raced to another
            result.
    """
    folder, parts = Path(trainer.args.output_dir), _parts(trainer)
    if resume:
        _keep_other_precision(trainer)
    last = _clear_checkpoints(folder, parts, resume)
    callbacks = [
        _MarkWhole(parts, trainer.args.save_total_limit),
        _StopIfDiverging(),
        *([_NoSecondStart()] if last else []),
    ]
    for callback in callbacks:
        trainer.add_callback(callback)
    measures_start = trainer.args.eval_on_start
    limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    try:
        run_id = _mark_of(last).get("tracked") if last else None
        with continue_tracking(trainer, run_id), _explained(trainer):
            checkpoint = str(last) if last else None
            return trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        trainer.args.eval_on_start = measures_start
        trainer.args.save_total_limit = limit
        for callback in callbacks:
            trainer.remove_callback(callback)


class _MarkWhole(TrainerCallback):
    """Marks a checkpoint after its last file is written, and deletes old ones.

    The Trainer itself would count, and delete, checkpoints of other programs.
    """

    def __init__(self, parts: dict[str, str], limit: int | None) -> None:
        self.parts, self.run, self.limit = parts, _hash(parts), limit

    def on_train_begin(self, args, state, control, **_) -> None:
        for checkpoint in _checkpoints(Path(args.output_dir)):
            step = _step_of(checkpoint)
            if step and step <= state.max_steps and not _mark_of(checkpoint):
                raise TrainingError(
                    f"{portable_name(checkpoint)} was not written by this course, and "
                    f"this run of {state.max_steps} steps would overwrite it: move it, "
                    "or give the Trainer another output_dir."
                )

    def on_step_end(self, args, state, control, **_) -> None:
        if control.should_save:
            begun = {"checkpoint": f"checkpoint-{state.global_step}"}
            write_json(Path(args.output_dir) / BEGUN, begun)

    on_epoch_end = on_step_end

    def on_save(self, args, state, control, **_) -> None:
        folder = Path(args.output_dir)
        mark = {"run": self.run, "tracked": tracked_run(args), "parts": self.parts}
        write_json(folder / f"checkpoint-{state.global_step}" / WHOLE, mark)
        (folder / BEGUN).unlink(missing_ok=True)
        if self.limit:
            self._delete_old(folder, state.best_model_checkpoint)

    def _delete_old(self, folder: Path, best: str | None) -> None:
        ours = [
            one for one in _checkpoints(folder) if _mark_of(one).get("run") == self.run
        ]
        ours.sort(key=_step_of)
        kept = {ours[-1]}
        if best:
            kept |= {one for one in ours if one.name == Path(best).name}
        excess = len(ours) - max(self.limit, len(kept))
        for old in [one for one in ours if one not in kept][: max(excess, 0)]:
            shutil.rmtree(old)


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
    marked = [one for one in _checkpoints(folder) if _mark_of(one)]
    other = _hash(_parts(trainer, bf16=not bf16)) if marked else None
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


def _parts(trainer: Trainer, **otherwise: Any) -> dict[str, str]:
    """Return what a checkpoint must agree with: settings, rows and starting weights.

    Args:
        trainer: of the run.
        **otherwise: values of arguments to take in place of the trainer's.
    """
    arguments = trainer.args
    parts = {
        name: str(otherwise.get(name, getattr(arguments, name))) for name in SETTINGS
    }
    for config in getattr(trainer.model, "peft_config", {}).values():
        for name, value in config.to_dict().items():
            value = sorted(value) if isinstance(value, set) else value
            if isinstance(value, str) and Path(value).is_absolute():
                value = portable_name(Path(value))  # a moved base is the same base
            parts[f"lora.{name}"] = str(value)
    parts["weights"] = _hash_of_texts(
        f"{name} {tuple(weights.shape)} "
        f"{weights.detach().flatten()[:64].float().cpu().tolist()}"
        for name, weights in trainer.model.named_parameters()
    )
    for name, rows in (
        ("rows", trainer.train_dataset),
        # They choose the epoch that is kept.
        ("held_out", trainer.eval_dataset),
    ):
        rows = rows.values() if isinstance(rows, dict) else [rows or []]
        parts[name] = _hash_of_texts(
            str([list(row["input_ids"]), list(row["labels"])])
            for part in rows
            for row in part
        )
    return parts


def _hash(parts: Mapping[str, str]) -> str:
    return _hash_of_texts([json.dumps(parts, sort_keys=True)])


def _hash_of_texts(texts: Iterable[str]) -> str:
    seen = hashlib.sha256()
    for text in texts:
        seen.update(text.encode())
    return seen.hexdigest()


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name the parts in which two runs differ, with their values where they are short.

    Another rank also means other starting weights, which then say nothing more.
    """
    names = [name for name in now | before if before.get(name) != now.get(name)]
    if any(name.startswith("lora.") for name in names):
        names = [name for name in names if name != "weights"]
    told = []
    for name in names:
        called = PART_NAMES.get(name, name.removeprefix("lora."))
        if name not in ("rows", "held_out", "weights"):
            called += f" ({before.get(name)} before, {now.get(name)} now)"
        told.append(called)
    return told


def _clear_checkpoints(
    folder: Path, parts: dict[str, str], resume: bool
) -> Path | None:
    """Delete the folder's checkpoints that cannot be resumed, and say which.

    Those are the unfinished one and the checkpoints of other runs. What another
    program wrote stays.

    Args:
        folder: of the Trainer.
        parts: of the run that is about to start.
        resume: whether one is looked for; without, nothing is said of those deleted.

    Returns:
        The newest checkpoint that can be resumed, or None.
    """
    run = _hash(parts)
    whole: list[Path] = []
    others: list[Path] = []
    foreign: list[Path] = []
    for checkpoint in _checkpoints(folder):
        mark = _mark_of(checkpoint)
        if mark and resume and mark.get("run") == run:
            whole.append(checkpoint)
        elif mark:
            others.append(checkpoint)
        elif checkpoint.name == _begun(folder):
            shutil.rmtree(checkpoint)
        else:
            foreign.append(checkpoint)
    (folder / BEGUN).unlink(missing_ok=True)
    if others and resume:
        newest = max(others, key=_step_of)
        before = _mark_of(newest).get("parts")
        told = _differences(before, parts) if before else []
        differs = ", ".join(told) or "settings, rows or weights"
        on = (
            "training goes on from one of its own"
            if whole
            else "training starts afresh"
        )
        _warn(
            f"{portable_name(newest)} belongs to another run: what differs is "
            f"{differs}. It is deleted, and {on}."
        )
    for checkpoint in others:
        shutil.rmtree(checkpoint)
    if foreign:
        names = ", ".join(one.name for one in sorted(foreign))
        _warn(
            f"{portable_name(folder)} also holds {names}, which this course did not "
            "write or cannot read: left as it is, and not resumed."
        )
    return max(whole, key=_step_of) if whole else None


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)  # of what calls `train`


def _checkpoints(folder: Path) -> list[Path]:
    return [one for one in folder.glob("checkpoint-*") if one.is_dir()]


def _step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint's name tells; 0 if it tells none."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else 0


def _begun(folder: Path) -> str | None:
    """Return the name of the checkpoint that a killed run was writing, if any."""
    try:
        return json.loads((folder / BEGUN).read_text("utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
