"""The entry script of a training job: what SageMaker orders, put to `train_lora`.

SageMaker starts it in a container, where it finds its orders in variables named SM_…
and in folders below /opt/ml. Whoever waits for the job sees two things: the log, and
the first 1,024 characters of a file named `failure`. So it says in that file what was
found and what to do, and leaves the traceback to the log. The SDK's driver would write
a traceback into the file, but only where there is none yet.

It lies in the job's source folder beside `train_lora.py`, which does the training, and
its own three parts. Nothing else of ours is there.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

MOST = 1024  # characters of the failure file that SageMaker shows as FailureReason
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch and safetensors have errors of their own for a full disk, told by their text.
FULL_TEXTS = (
    "No space left",
    "File too large",
    "file write failed",
    "inline_container",
)
MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")
KEPT = 2  # checkpoints, unless save_total_limit says otherwise; 0 keeps all
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")


def main() -> int:
    """Run the job; return 0 if it is done or was stopped in good order, else 1."""
    try:
        run()
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
            print("Stopped before there was anything to save.", flush=True)
            return error.code
        traceback.print_exc()
        reason = explain(error)
        print(reason, flush=True)
        write_failure(reason)
        return 1
    return 0


def run() -> None:
    """Read the orders, train, and write down what was trained on what.

    Raises:
        JobError: if something is wrong that a learner can mend.
    """
    # Here, so that a package that is missing is explained as well.
    import entry_data
    import entry_orders
    import train_lora
    from entry_checkpoints import Keeper, Patience

    ordered = entry_orders.read_hyperparameters()
    entry_orders.check_workers(ordered)
    given, patience = entry_orders.with_early_stopping(ordered)
    training, options = entry_orders.parse(entry_orders.to_arguments(given))
    files = entry_data.channel_files()
    if patience and "validation" not in files:
        raise entry_orders.JobError(
            f"{entry_orders.PATIENCE} needs the channel validation: without held-out "
            "rows nobody sees when their loss turns up."
        )
    data = {
        name: {"rows": entry_data.check_rows(file), "sha256": digest_of(file)}
        for name, file in files.items()
    }
    base = entry_data.find_base(options)
    parts = entry_orders.parts_of(training, options)
    parts |= {f"rows of {name}": one["sha256"] for name, one in data.items()}
    parts["base"] = entry_data.digest_of_base(base)
    if patience:
        parts[entry_orders.PATIENCE] = str(patience)
    parts["train_lora.py"] = digest_of(Path(train_lora.__file__))

    folder = entry_orders.checkpoints_folder()
    model_folder = os.getenv("SM_MODEL_DIR", "/opt/ml/model")
    limit = training.save_total_limit
    keeper = Keeper(folder, parts, KEPT if limit is None else limit)
    keeper.listen()
    # The Trainer would count the checkpoints of other runs as well.
    given = {name: text for name, text in given.items() if name != "save_total_limit"}
    arguments = entry_orders.to_arguments(entry_orders.with_checkpoints(given))
    arguments += [f"--train={files['train']}", f"--model={base}"]
    arguments += [f"--output_dir={folder}", f"--save_to={model_folder}"]
    if "validation" in files:
        arguments.append(f"--held_out={files['validation']}")
    if keeper.resumed:
        arguments.append(f"--resume_from_checkpoint={keeper.resumed}")
    callbacks = [keeper]
    if patience:
        callbacks.append(Patience(patience))
    try:
        train_lora.main(arguments, callbacks)
    except BaseException as error:
        if is_full(error):
            keeper.make_room()
        raise
    if not entry_orders.is_first():
        return
    if keeper.stopped:
        print("Stopped as ordered: what was learned so far is saved.", flush=True)
    adapter = Path(model_folder) / "adapter_model.safetensors"
    write_metrics(
        {
            "losses": _curve(keeper.log, "loss"),
            "held_out_losses": _curve(keeper.log, "eval_loss"),
            "steps": keeper.saved,
            "stopped": keeper.stopped,
            "resumed_from": keeper.resumed.name if keeper.resumed else None,
            "data": data,
            "base": {"name": base, "digest": parts["base"]},
            "adapter": {"sha256": digest_of(adapter)},
            "seed": training.seed,
            "workers": training.world_size,
            "hyperparameters": ordered,
            "run": parts,
            "versions": _versions(),
            "resources": json.loads(os.getenv("SM_RESOURCE_CONFIG") or "{}"),
        }
    )


def write_metrics(content: dict[str, Any]) -> None:
    """Write metrics.json where SageMaker packs it into output.tar.gz."""
    folder = Path(os.getenv("SM_OUTPUT_DATA_DIR", "/opt/ml/output/data"))
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")


def digest_of(file: Path) -> str:
    """Return the sha256 of a file, as `sha256sum` prints it."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _curve(log: list[dict[str, Any]], name: str) -> list[dict[str, float]]:
    return [{"step": x["step"], "loss": x[name]} for x in log if name in x]


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


# --- when it fails --------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """Say in a sentence or two what went wrong and what to do."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind == "JobError":
        return text
    if is_full(error):
        return (
            "The disk is full: raise volume_size_in_gb of the job's Compute, or lower "
            "save_total_limit. The next job goes on from the last whole checkpoint."
        )
    if isinstance(error, MemoryError) or any(x in text for x in MEMORY_TEXTS):
        return (
            "Memory ran out: halve per_device_train_batch_size and double "
            "gradient_accumulation_steps, lower max_length, set four_bit to 1 or "
            "activation_checkpointing to true, or take a larger instance."
        )
    if isinstance(error, ImportError):
        return (
            f"A package is missing or too old ({text}): pass "
            "requirements='requirements.txt' to SourceCode, and list it there."
        )
    if isinstance(error, ValueError) and text:
        return text
    return f"{kind}: {text or 'no message'}. The job's log has the traceback."


def is_full(error: BaseException) -> bool:
    """Return whether writing failed for want of space."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(text in str(error) for text in FULL_TEXTS)


def write_failure(reason: str) -> None:
    """Write the failure file; of several workers that fail, the first one does."""
    folder = os.getenv("SM_OUTPUT_DIR", "/opt/ml/output")
    file = Path(os.getenv("SM_OUTPUT_FAILURE") or Path(folder) / "failure")
    if len(reason) > MOST:
        reason = reason[: MOST - 1].rpartition(" ")[0] + "…"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(reason)
    except FileExistsError:
        pass
    except OSError as error:
        print(f"The failure file could not be written: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
