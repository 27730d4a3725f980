"""The training recipe: LoRA's configuration, the Trainer's arguments, what is saved.

Everything follows from the model's settings (`models.MODELS`) and the machine at hand.
`train` runs a Trainer so that a killed run can go on, and failures say what to do.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from utils.course import CourseError, portable_name, wanted_dtype
from utils.helpers import DEFAULT_SEED, encode_prompts
from utils.machine import Machine, cpu_has_bf16, this_machine
from utils.models import ModelError, ModelSettings

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainingArguments,
    )
    from transformers.trainer_utils import TrainOutput

# Below this many tokens a row, unfused attention in bfloat16 is the faster on CPUs: the
# backward pass of the fused kernel takes most of a step there.
SHORT_ROWS = 512
WHOLE = "complete.json"  # in a checkpoint's folder: everything before it was written
EXPERIMENT = "fine-tuning"
BASE_SAMPLE = 32  # numbers of the base's embeddings that an adapter's file remembers
BASE_KEY = "base"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TrainingError(CourseError):
    """A training run that cannot go on; the message says what to change."""


# --- what is trained, and how ---


def lora_config(settings: ModelSettings) -> LoraConfig:
    """Which layers get a pair of low-rank matrices, and of which rank and scale."""
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
    """The Trainer's settings for this model on this machine.

    Rows of like length share a batch, so that little is padded; the held-out loss is
    measured after every epoch, and in the end the best epoch is kept; arithmetic is the
    shortest that the hardware has.

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
    arguments = dict(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1: a share of all steps
        per_device_train_batch_size=settings.batch_size,
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


def choose_attention(
    settings: ModelSettings, machine: Machine, longest: int | None = None
) -> str:
    """The attention kernel to load a model with for training: "eager" or "sdpa".

    Args:
        settings: of the model.
        machine: that trains.
        longest: tokens of the longest row; by default what the settings allow.
    """
    short = (longest or settings.max_length) <= SHORT_ROWS
    return "eager" if short and machine.bf16 and not machine.gpu else "sdpa"


# --- running ---


def train(trainer: Trainer, resume: bool = True) -> TrainOutput:
    """Run a Trainer to its end, from where a killed run of the same kind was stopped.

    The same kind means the same settings, rows, base and starting weights. A checkpoint
    counts once it is marked as whole: a run that was killed while it wrote one goes on
    from the one before. The resumed run ends with the weights, bit for bit, of a run
    that was never stopped, if it saves between epochs, on the same machine.

    Args:
        trainer: ready to train; its output folder is used for nothing else.
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
        with _tracking(trainer, last), _explained(trainer):
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
        mark = {"run": self.run, "tracked": None}
        if "mlflow" in args.report_to:
            import mlflow

            tracked = mlflow.active_run()
            mark["tracked"] = tracked.info.run_id if tracked else None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _write_json(folder / WHOLE, mark)


class _NoSecondStart(TrainerCallback):
    """Keeps a resumed run from measuring its start again, which early stopping would
    take for an epoch without progress. (What is tracked was noted before this.)"""

    def on_train_begin(self, args, state, control, **_) -> None:
        args.eval_on_start = False


class _StopIfDiverging(TrainerCallback):
    """Ends a run whose loss rises by a nat and a fifth, or is no number."""

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
    for checkpoint in folder.glob("checkpoint-*"):
        if not (mark := _mark_of(checkpoint)) or _is_finished(checkpoint):
            continue
        if mark.get("run") == _fingerprint(trainer, bf16=not bf16):
            ours, theirs = ("bfloat16", "float32")[:: 1 if bf16 else -1]
            raise TrainingError(
                f"{portable_name(folder)} holds a run that was stopped halfway and "
                f"trained in {theirs}, but in this process the race was won by {ours}: "
                f"set COURSE_DTYPE={theirs} and restart the kernel to go on with it, "
                f"or COURSE_DTYPE={ours} to start afresh."
            )


def _is_finished(checkpoint: Path) -> bool:
    """Whether it was written after a run's last step."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        return state["global_step"] >= state["max_steps"]
    except (OSError, ValueError, KeyError):
        return True


def _fingerprint(trainer: Trainer, **otherwise: Any) -> str:
    """What a checkpoint must agree with: settings, rows, base and starting weights.

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
    """Remove what cannot be resumed: halves, and checkpoints of other runs.

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
        if _is_disk_full(error):
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


def _is_disk_full(error: Exception) -> bool:
    """Whether writing failed for want of space; torch and safetensors have their own
    errors for that, told by their text alone."""
    if isinstance(error, OSError):
        return error.errno in DISK_ERRORS
    texts = ("No space left", "File too large", "file write failed", "inline_container")
    return any(text in str(error) for text in texts)


# --- keeping track of runs ---


def track_runs(build: Path) -> None:
    """Let every Trainer with `report_to="mlflow"` record its run in build/mlflow.db.

    Where the variable MLFLOW_TRACKING_URI is set, such as to the ARN of an MLflow
    server on SageMaker, the runs go there instead.
    """
    # Neither reports on its use to its makers nor on the tables that it creates.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    build.mkdir(parents=True, exist_ok=True)
    local = f"sqlite:///{(build / 'mlflow.db').as_posix()}"
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or local)
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        here = mlflow.get_tracking_uri() == local
        place = (build / "mlflow").as_uri() if here else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=place)
    mlflow.set_experiment(EXPERIMENT)


def tracked_history(run_name: str) -> list[dict[str, float]]:
    """The losses of the newest run of this name, as `trainer.state.log_history` holds
    them: rows with `epoch`, `step`, and `loss` or `eval_loss`.

    Raises:
        TrainingError: if no run of this name is recorded.
    """
    import mlflow

    mlflow.flush_async_logging()
    found = mlflow.search_runs(
        experiment_names=[EXPERIMENT],
        filter_string=f"attributes.run_name = '{run_name}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    if not found:
        raise TrainingError(
            f"No run named {run_name!r} is recorded in {mlflow.get_tracking_uri()}: "
            "call track_runs before the Trainer is made, and train."
        )
    client, run = mlflow.MlflowClient(), found[0].info.run_id
    # A step that was logged before and after a resume holds the same number twice.
    logged = {
        name: {one.step: one.value for one in client.get_metric_history(run, name)}
        for name in ("epoch", "loss", "eval_loss")
    }
    return [
        {"epoch": logged["epoch"][step], "step": step, name: value}
        for name in ("loss", "eval_loss")
        for step, value in sorted(logged[name].items())
    ]


@contextmanager
def _tracking(trainer: Trainer, checkpoint: Path | None) -> Iterator[None]:
    """Go on in the MLflow run that the checkpoint belongs to; close a failed one."""
    if "mlflow" not in trainer.args.report_to:
        yield
        return
    import mlflow
    from mlflow.exceptions import MlflowException
    from transformers.integrations import MLflowCallback

    tracked = _mark_of(checkpoint).get("tracked") if checkpoint else None
    if tracked:
        try:
            mlflow.get_run(tracked)
            os.environ["MLFLOW_RUN_ID"] = tracked
        except MlflowException:  # its file was deleted: a new run it is
            tracked = None
    try:
        yield
    except BaseException:
        mlflow.end_run("FAILED")
        raise
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, MLflowCallback):
                # Or it ends whatever run is active when it is garbage one day.
                callback._auto_end_run = False


# --- what is kept ---


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> Path:
    """Write adapter and tokenizer, all or nothing, in place of what was there.

    Returns:
        The folder: adapter_config.json, adapter_model.safetensors and the tokenizer.

    Raises:
        ModelError: if the disk is full or may not be written; what was there stays.
    """

    def write(target: Path) -> None:
        # No token was added, so the base's embeddings need no copy in the adapter.
        model.save_pretrained(target, save_embedding_layers=False)
        tokenizer.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)  # peft's form, not filled in
        file = target / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        base = Path(config["base_model_name_or_path"] or "")
        if base.is_absolute():  # which would mean nothing where the adapter is served
            config["base_model_name_or_path"] = portable_name(base)
        if isinstance(config["target_modules"], list):  # a set in peft: any order
            config["target_modules"].sort()
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = target / "adapter_model.safetensors"
        # One entry only: several would be written in any order, and the same adapter
        # would not always be the same file.
        remembered = {BASE_KEY: json.dumps(_base_sample(model))}
        save_file(load_file(weights), weights, metadata=remembered)

    from safetensors.torch import load_file, save_file

    return replace_folder(folder, write)


def load_adapter(base: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved adapter on the base that it was trained on, ready to answer.

    Raises:
        ModelError: if there is none in the folder, or it belongs to another base: one
            with another name, other shapes, or, under the same name, other weights.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder = Path(folder)
    weights = folder / "adapter_model.safetensors"
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        with safe_open(weights, "pt") as file:
            remembered = json.loads((file.metadata() or {}).get(BASE_KEY, "null"))
            names = set(file.keys())
    except Exception as error:
        raise ModelError(
            f"{folder.name} holds no adapter that can be read ({error}): run "
            "04_lora_training.ipynb, or save the adapter again with save_adapter."
        ) from error
    trained_on = config.get("base_model_name_or_path") or ""
    here = portable_name(Path(base.name_or_path))
    here = here if Path(base.name_or_path).is_absolute() else base.name_or_path
    if trained_on and here and trained_on != here:
        reason = f"it was trained on {trained_on}"
    elif remembered and not _alike(remembered, _base_sample(base)):
        reason = "it was trained on other weights of that name"
    else:
        try:
            model = PeftModel.from_pretrained(base, folder).eval()
            found = get_peft_model_state_dict(model, save_embedding_layers=False)
            if names == set(found):
                return model
            reason = "it has matrices for other layers"
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".:")
    raise ModelError(
        f"The adapter in {folder.name} does not belong to {here or 'this base'}: "
        f"{reason}. Run 04_lora_training.ipynb with this COURSE_MODEL, or set "
        "COURSE_MODEL to the base that it was trained on."
    )


def _base_sample(model: torch.nn.Module) -> list[float]:
    """A few numbers of the embeddings: neither 8 bits nor an adapter change them."""
    weights = model.get_input_embeddings().weight.detach().flatten()
    places = torch.linspace(0, len(weights) - 1, BASE_SAMPLE).long()
    return weights[places.to(weights.device)].float().tolist()


def _alike(one: list[float], other: list[float]) -> bool:
    """Equal but for rounding to 16 bits."""
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=0.01, atol=1e-5)


def replace_folder(folder: str | Path, write: Any) -> Path:
    """Let `write(temporary folder)` fill a folder, then put it in `folder`'s place.

    A run that is killed leaves the old folder or the new one, never a half.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(new)
        new.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            folder.rename(old / "old")
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    except Exception as error:
        if not isinstance(error, OSError) and not _is_disk_full(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{folder.name} could not be saved ({reason}): free some space or check "
            f"who may write to {folder.parent.name}/. What was there is unchanged."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def require_same_tokenizer(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise unless this tokenizer makes the ids that the rows hold.

    Raises:
        ModelError: if the data set was made for another model.
    """
    row = rows[0]
    prompt = encode_prompts([row["prompt"]], tokenizer)[0]
    if list(row["input_ids"][: len(prompt)]) != prompt:
        raise ModelError(
            "The data set was tokenised for another model than COURSE_MODEL names now: "
            "run 03_dataset_templating.ipynb again."
        )


def save_history(
    history: Sequence[Mapping[str, float]], settings: ModelSettings, file: str | Path
) -> Path:
    """Write the Trainer's log and the settings to a JSON file, all or nothing."""
    from dataclasses import asdict

    content = {"settings": asdict(settings), "history": list(history)}
    return _write_json(Path(file), content)


def _write_json(file: Path, content: Any) -> Path:
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
    return file


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    # bitsandbytes packs 4-bit weights two to a number; peft knows how to count them.
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    return sum(n for trained, n in sizes if trained), sum(n for _, n in sizes)
