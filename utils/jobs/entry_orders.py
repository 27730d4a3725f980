"""What SageMaker tells a training job: folders, workers, hyperparameters.

They arrive in variables named SM_… and in files below /opt/ml. What is wrong with them
is found here, before gigabytes are loaded. Part of the job's entry script, `entry.py`.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
import train_lora

OURS = ("train", "held_out", "output_dir", "save_to", "resume_from_checkpoint")
POSITIVE = ("rank", "alpha", "max_length", "per_device_train_batch_size")
# What makes two runs the same, besides the options of train_lora, which all count.
SETTINGS = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("train_sampling_strategy", "bf16", "fp16"),
)
# A hyperparameter of ours: how many epochs in a row the held-out loss may fail to fall
# before training ends. What is saved is then the adapter of the best epoch.
PATIENCE = "early_stopping_patience"
DEFAULTS = {
    "save_strategy": "steps",
    "save_steps": "0.1",  # a share of all steps
    "disable_tqdm": "true",  # a bar makes a line of the log each second
    "report_to": "none",
    "logging_nan_inf_filter": "false",  # it would hide a loss that is no number
}


class JobError(Exception):
    """What a learner can mend; the message says what was found and what to do."""


# --- what SageMaker tells -------------------------------------------------------------


def opt_ml() -> Path:
    """Return /opt/ml, or the folder that stands in for it."""
    return Path(os.getenv("SM_INPUT_DIR", "/opt/ml/input")).parent


def checkpoints_folder() -> Path:
    """Return the folder that SageMaker keeps in step with S3; no variable names it."""
    return opt_ml() / "checkpoints"


def is_first() -> bool:
    """Return whether this is the first of the workers that torchrun has started."""
    return os.getenv("RANK", "0") == "0"


def say(text: str) -> None:
    """Write a line to the log, once for all workers."""
    if is_first():
        print(text, flush=True)


def read_hyperparameters() -> dict[str, str]:
    """Return the hyperparameters as texts, without those that the SDK adds for itself.

    The file that SageMaker writes is read, and SM_HPS only where there is none: SM_HPS
    was made from it by way of a shell, which takes apostrophes out. The command line
    brings them a third time, through the same shell, and is not read.

    Raises:
        JobError: if they are no JSON.
    """
    config = Path(os.getenv("SM_INPUT_CONFIG_DIR", opt_ml() / "input" / "config"))
    file = config / "hyperparameters.json"
    where, text, layers = "SM_HPS", os.getenv("SM_HPS") or "{}", 1
    if file.is_file():
        where, text, layers = file.name, file.read_text("utf-8"), 2
    try:
        given = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise JobError(
            f"The hyperparameters in {where} are no JSON object ({error}): values with "
            "apostrophes lose them on the way; pass them through `hyperparameters` of "
            "utils/jobs/source.py."
        ) from None
    texts = {name: as_text(value, layers) for name, value in given.items()}
    return {
        name.replace("-", "_"): text
        for name, text in texts.items()
        if text is not None and not name.startswith(("sagemaker_", "_"))
    }


def as_text(value: Any, layers: int) -> str | None:
    r"""Return a hyperparameter as it is written on a command line; None for null.

    All values arrive as texts, and one that is JSON is JSON, as the SDK has it. A text
    in quotes is taken out of them: once for the SDK's own JSON, and once more because
    `hyperparameters` of utils/jobs/source.py puts texts into quotes, in which
    apostrophes (\u0027) and line ends (\n) get through the shell and the API.

    Args:
        value: as the file or SM_HPS has it.
        layers: how many times it may have been put into quotes.
    """
    for _ in range(layers):
        if not isinstance(value, str):
            break
        try:
            decoded = json.loads(value)
        except ValueError:
            break
        if not isinstance(decoded, str):
            # As it was written: 1e-3 stays 1e-3.
            return None if decoded is None else value
        value = decoded
    return value if isinstance(value, str | None) else json.dumps(value)


def to_arguments(given: dict[str, str]) -> list[str]:
    """Return hyperparameters as arguments of `train_lora`.

    Raises:
        JobError: naming one that is unknown or that the job sets itself.
    """
    actions = {one.dest: one for one in train_lora.make_parser()._actions}
    arguments = []
    for name, value in (DEFAULTS | given).items():
        if name in OURS:
            raise JobError(
                f"The hyperparameter {name!r} is set by the job itself: leave it out. "
                "Data come through the channels train and validation."
            )
        if name not in actions or name == "help":
            known = {*actions, PATIENCE} - {*OURS, "help"}
            raise JobError(_unknown(name, known))
        if actions[name].nargs in ("+", "*") and value.startswith("["):
            values = json.loads(value)
            texts = [v if isinstance(v, str) else json.dumps(v) for v in values]
            arguments += [f"--{name}", *texts]
        else:
            arguments.append(f"--{name}={value}")
    return arguments


def _unknown(name: str, known: set[str]) -> str:
    """Name the options of `train_lora`, and of the Trainer's many the usual ones."""
    alike = difflib.get_close_matches(name, known, n=3)
    perhaps = f"did you mean {' or '.join(alike)}? " if alike else ""
    own = known - {*train_lora.TrainingArguments.__dataclass_fields__}
    say("Hyperparameters that there are: " + ", ".join(sorted(known)))
    return (
        f"There is no hyperparameter {name!r}: {perhaps}There are "
        f"{', '.join(sorted(own | {*SETTINGS}))}, and the others of "
        "transformers.TrainingArguments, which the log lists."
    )


def parse(arguments: list[str]) -> tuple[Any, Any]:
    """Return what `train_lora` reads from its arguments: the Trainer's, and its own.

    Raises:
        JobError: naming the hyperparameter with a value that cannot be used.
    """
    parser = train_lora.make_parser()

    def refuse(message: str) -> None:
        found = re.match(r"argument (?:.*/)?--([\w-]+): (.*)", message, re.DOTALL)
        name, why = found.groups() if found else ("?", message)
        raise _unusable(name.replace("-", "_"), why)

    parser.error = refuse
    try:
        training, options = parser.parse_args_into_dataclasses(arguments)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise JobError(f"The hyperparameters cannot be used: {error}") from error
    for name in POSITIVE:
        value = getattr(options if hasattr(options, name) else training, name)
        if value < 1:
            raise _unusable(name, f"found {value}, and it must be at least 1")
    started = int(os.getenv("WORLD_SIZE", "1"))
    if training.world_size != started:
        raise JobError(
            f"{started} workers were started, and this one would train with "
            f"{training.world_size}: each would train alone and overwrite the others. "
            "On a processor give the hyperparameter use_cpu=true, or leave it out."
        )
    rate = training.learning_rate
    if not (math.isfinite(rate) and rate > 0):
        raise _unusable("learning_rate", f"found {rate}; it is a number such as 2e-4")
    if training.max_steps < 1 and not training.num_train_epochs > 0:
        raise _unusable(
            "num_train_epochs", f"found {training.num_train_epochs}; it must be above 0"
        )
    return training, options


def with_checkpoints(given: dict[str, str]) -> dict[str, str]:
    """Return hyperparameters with which checkpoints are saved, and say what changed."""
    if given.get("save_strategy") != "no":
        return given
    say(
        "save_strategy is no, but a job can be taken away at any moment: a checkpoint "
        "is saved at the end of each epoch."
    )
    return given | {"save_strategy": "epoch"}


def with_early_stopping(given: dict[str, str]) -> tuple[dict[str, str], int]:
    """Return hyperparameters for the Trainer, and the patience; 0 for none.

    Raises:
        JobError: if the patience is no number of epochs.
    """
    text = given.get(PATIENCE, "0")
    if not text.isdecimal():
        raise _unusable(PATIENCE, f"found {text!r}; it is a number of epochs such as 2")
    others = {name: value for name, value in given.items() if name != PATIENCE}
    patience = int(text)
    if not patience:
        return others, 0
    # The Trainer loads what it has saved at the best of the epochs that it measured.
    each_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    best = {"load_best_model_at_end": "true", "metric_for_best_model": "eval_loss"}
    return others | each_epoch | best, patience


def parts_of(training: Any, options: Any) -> dict[str, str]:
    """Return what of the orders makes a run another, with its values as texts."""
    parts = {name: str(getattr(training, name)) for name in SETTINGS}
    own = {name: str(value) for name, value in vars(options).items()}
    own = {name: text for name, text in own.items() if name not in (*OURS, "model")}
    return parts | own | {"workers": str(training.world_size)}


def _unusable(name: str, why: str) -> JobError:
    return JobError(f"The hyperparameter {name!r} cannot be used: {why}.")


def check_workers(given: dict[str, str]) -> None:
    """Raise where machines would each train alone, or processes share a GPU.

    Of several machines each would overwrite the others. NCCL refuses two processes on
    one GPU, in words that do not say so, once gigabytes are loaded.

    Args:
        given: the hyperparameters, of which use_cpu counts.

    Raises:
        JobError: saying what to change.
    """
    hosts = json.loads(os.getenv("SM_RESOURCE_CONFIG") or "{}").get("hosts", [])
    if len(hosts) > 1 and "WORLD_SIZE" not in os.environ:
        raise JobError(
            f"The job has {len(hosts)} instances, but each was started alone: pass "
            "`distributed=Torchrun()` to ModelTrainer, or take one instance."
        )
    started = int(os.getenv("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    on_gpus = given.get("use_cpu", "false").lower() in ("false", "no", "f", "n", "0")
    if on_gpus and 0 < gpus < started:
        raise JobError(
            f"{started} processes were started on an instance with {gpus} GPU"
            f"{'s' * (gpus > 1)}, and each needs one: give Torchrun("
            f"process_count_per_node={gpus}), or take a larger instance."
        )
