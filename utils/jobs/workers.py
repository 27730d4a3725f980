"""Several workers on this machine that train one model together.

A SageMaker training job starts its workers with torchrun, one process for each GPU.
`run_workers` starts them in the same way on this machine's processor, where they talk
through gloo as GPUs do through NCCL. What is learned is real: the arithmetic, the
wrapped types, the shares and where the time goes. What differs is the speed: workers
on one processor share its cores and its memory.

Three ways. "one": no wrapping. "ddp": each worker holds the whole model and its own
rows, and the gradients are averaged (DistributedDataParallel). "fsdp": each worker
holds a share of every weight and gathers a block's weights when it needs them
(FSDP2, `fully_shard`). All take the same rows at each step, so all reach the same loss.

What each worker does stands in `utils/jobs/several.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError
from utils.files import write_json
from utils.helpers import DEFAULT_SEED, IGNORED
from utils.temporary import temporary_folder

if TYPE_CHECKING:
    import pandas

WAYS = ("one", "ddp", "fsdp")
TEMPORARY = "course-workers-"
ORDER = "order.json"
REPORT, FAILURE = "report-{}.json", "failure-{}.json"  # of each worker, by its rank
LOG = "log.txt"
LAST_LINES = 12
END_SECONDS = 5  # for a stop that was asked for; then they are killed
# This machine's own network, which needs no name of the machine to be known.
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class WorkerError(CourseError):
    """Workers that did not come to their end; the message says which, and why."""


@dataclass(frozen=True)
class Order:
    """What all workers are told; the arguments of `run_workers` explain it."""

    how: str
    rows: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]
    model: str | dict[str, Any]
    steps: int
    batch_size: int
    learning_rate: float
    threads: int
    seed: int
    measured_rounds: int
    checkpoint: str | None
    save_every: int | None
    ask_trainer: bool


@dataclass(frozen=True)
class WorkerReport:
    """What one worker did.

    Attributes:
        rank: the worker's number, from 0.
        count: how many workers there were.
        how: "one", "ddp" or "fsdp".
        wrapped: the type that really trained, such as "DistributedDataParallel".
        threads: that this worker computed with.
        losses: of each step, the mean over the answer tokens of the whole batch, of
            all workers. After a resumed start only the steps since.
        held_out_loss: the mean over the answer tokens of the held-out rows, each
            counted once; None without such rows.
        repeated_loss: the same if the rows count that the sampler repeats to give all
            workers as many: what a mean of the workers' means would be wrong by.
        held_out_rows: rows that counted, of all workers.
        computed_rows: rows that were computed for it, of all workers.
        parameters: numbers in the whole model, LoRA's included.
        trained: those of them that are trained.
        parameters_held: numbers that this worker keeps between steps.
        trained_held: those of them that are trained; Adam holds two more for each.
        seconds_a_step: the median, without the first two.
        processor_seconds_a_step: likewise, the time in which a core worked for this
            worker, on all its threads. Other programs hardly change it, so that on a
            busy machine it says what several workers could gain.
        compute: seconds of forward and backward of the worker's rows by a model that
            is not wrapped, while the other workers compute theirs: the median.
        waiting: seconds in which this worker then waited for the slowest.
        communication: seconds by which the same with the wrapped model takes longer:
            what is sent and received and is not hidden behind computing, and the
            wrapping's own work. A little below 0 where there is none. These three are
            None unless `measured_rounds` asked for them.
        trainer_wraps: the type that transformers' Trainer trains with here if it is
            told `fsdp=True`; None unless asked for.
    """

    rank: int
    count: int
    how: str
    wrapped: str
    threads: int
    losses: tuple[float, ...]
    held_out_loss: float | None
    repeated_loss: float | None
    held_out_rows: int
    computed_rows: int
    parameters: int
    trained: int
    parameters_held: int
    trained_held: int
    seconds_a_step: float | None
    processor_seconds_a_step: float | None
    compute: float | None
    waiting: float | None
    communication: float | None
    trainer_wraps: str | None

    @property
    def share(self) -> float:
        """The share of the model's numbers that this worker holds."""
        return self.parameters_held / self.parameters


def run_workers(
    count: int,
    how: str,
    rows: Sequence[Mapping[str, Sequence[int]]],
    held_out: Sequence[Mapping[str, Sequence[int]]] = (),
    *,
    model: str | Mapping[str, Any] = "lab",
    steps: int | None = None,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    threads: int = 1,
    seed: int = DEFAULT_SEED,
    measured_rounds: int = 0,
    checkpoint: Path | None = None,
    save_every: int | None = None,
    ask_trainer: bool = False,
    timeout: float = 300,
) -> list[WorkerReport]:
    """Train LoRA on this machine's processor with one or several workers.

    The workers end with this process, however it ends.

    First used in experiment 08_several_workers, section 1.

    Args:
        count: of workers; 1 if `how` is "one".
        how: "one", "ddp" or "fsdp".
        rows: to train on, with `input_ids` and `labels`, as `preprocess_batch` makes
            them.
        held_out: rows to measure the loss on in the end.
        model: as in COURSE_MODEL, or a configuration with its `model_type`, of which a
            model of random weights is made.
        steps: of the optimizer; by default one pass over the rows.
        batch_size: rows of a step, of all workers together. The last batch of a pass
            may be smaller.
        learning_rate: of AdamW, the same at each step.
        threads: of each worker.
        seed: of LoRA's first weights, of the order of the rows, and of a model made
            from a configuration.
        measured_rounds: how often to take apart where the time goes, after training.
        checkpoint: a file that is written in the end: trained weights, optimizer, step.
            If it is there when the workers start, they go on from it, up to `steps`.
        save_every: also write it every so many steps.
        ask_trainer: also let transformers' Trainer train a step with `fsdp=True`, and
            report the type that it wraps the model in.
        timeout: seconds after which the workers are stopped.

    Returns:
        A report of each worker, by rank.

    Raises:
        WorkerError: if an argument is not of its kind; if a worker fails, with the
            message of the one that failed first; if the time is over.
    """
    order = Order(
        how=how,
        rows=_checked("rows", rows),
        held_out=_checked("held_out", held_out),
        model=model if isinstance(model, str) else dict(model),
        steps=steps if steps is not None else -(-len(rows) // max(batch_size, 1)),
        batch_size=batch_size,
        learning_rate=learning_rate,
        threads=threads,
        seed=seed,
        measured_rounds=measured_rounds,
        checkpoint=str(Path(checkpoint).resolve()) if checkpoint else None,
        save_every=save_every,
        ask_trainer=ask_trainer,
    )
    _require(order, count)
    with temporary_folder(prefix=TEMPORARY) as folder:
        write_json(folder / ORDER, dataclasses.asdict(order))
        _run(folder, count, threads, timeout)
        return [_report(folder, rank) for rank in range(count)]


def worker_table(reports: Sequence[WorkerReport]) -> pandas.DataFrame:
    """Return one row a worker: what it is, what it holds, and where its time goes.

    First used in experiment 08_several_workers, section 1.
    """
    import pandas

    return pandas.DataFrame(
        {
            "how": report.how,
            "worker": f"{report.rank + 1} of {report.count}",
            "wrapped in": report.wrapped,
            "threads": report.threads,
            "last loss (nats)": report.losses[-1] if report.losses else None,
            "held (million numbers)": report.parameters_held / 1e6,
            "share held": report.share,
            "step (ms)": _milliseconds(report.seconds_a_step),
            "processor (ms)": _milliseconds(report.processor_seconds_a_step),
            "compute (ms)": _milliseconds(report.compute),
            "waiting (ms)": _milliseconds(report.waiting),
            "communication (ms)": _milliseconds(report.communication),
        }
        for report in reports
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


# --- what is asked for ----------------------------------------------------------------


def _require(order: Order, count: int) -> None:
    """Refuse an order that no worker could follow."""
    if order.how not in WAYS:
        raise WorkerError(f"how: found {order.how!r}. Give one of {', '.join(WAYS)}.")
    if count < 1 or (order.how == "one" and count != 1):
        raise WorkerError(
            f"count: found {count} with how={order.how!r}. Give 1 for 'one', and 1 or "
            "more for 'ddp' and 'fsdp'."
        )
    if not order.rows:
        raise WorkerError("rows: there are none. Give at least one row to train on.")
    for name in ("steps", "batch_size", "threads"):
        if getattr(order, name) < 1:
            raise WorkerError(
                f"{name}: found {getattr(order, name)}. Give a whole number above 0."
            )


def _checked(
    name: str, rows: Sequence[Mapping[str, Sequence[int]]]
) -> list[dict[str, list[int]]]:
    """Return rows with their two columns as plain lists of whole numbers."""
    checked = []
    for number, row in enumerate(rows):
        if "input_ids" not in row or "labels" not in row:
            raise WorkerError(
                f"{name}, row {number} counted from 0: found the columns "
                f"{sorted(row)}. It needs input_ids and labels: make the rows with "
                "`preprocess_batch`."
            )
        ids = [int(one) for one in row["input_ids"]]
        labels = [int(one) for one in row["labels"]]
        if len(ids) != len(labels) or all(one == IGNORED for one in labels[1:]):
            raise WorkerError(
                f"{name}, row {number} counted from 0: {len(ids)} ids and "
                f"{len(labels)} labels, of which "
                f"{sum(one != IGNORED for one in labels[1:])} count. Give a label for "
                "each id, and at least one that counts."
            )
        checked.append({"input_ids": ids, "labels": labels})
    return checked


def read_order(folder: Path) -> Order:
    """Read what a worker of `run_workers` is told to do."""
    return Order(**json.loads((folder / ORDER).read_text("utf-8")))


# --- the processes --------------------------------------------------------------------


def _run(folder: Path, count: int, threads: int, timeout: float) -> None:
    """Start the workers with torchrun and wait for their end."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        # One machine: torchrun takes a free port itself.
        *("--standalone", "--local-addr=127.0.0.1", f"--nproc_per_node={count}"),
        f"--log-dir={folder / 'torchrun'}",
        *("-m", "utils.jobs.several", str(folder)),
    ]
    variables = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",  # the processor, also where there is a GPU
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            # torchrun hands it on to the workers, who end when it does.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # An interrupt in the notebook is not meant for them.
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise WorkerError(
                f"The {count} workers were not done after {timeout:g} s and were "
                "stopped. Give fewer steps or rows, or more time (`timeout`). The log "
                "ends:\n" + _end_of_log(folder)
            ) from None
        finally:
            _stop(process)
    if code != 0:
        raise WorkerError(_failure(folder, count, code))


def _stop(process: subprocess.Popen) -> None:
    """End torchrun and its workers: asked first, killed if they do not."""
    import psutil

    try:
        workers = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        workers = []
    process.stdin.close()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    _, alive = psutil.wait_procs(workers, END_SECONDS if workers else 0)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    if process.poll() is None:
        process.kill()
        process.wait()


def _failure(folder: Path, count: int, code: int) -> str:
    """Say which worker failed first, and why."""
    found = []
    for rank in range(count):
        file = folder / FAILURE.format(rank)
        if file.is_file():
            found.append(json.loads(file.read_text("utf-8")))
    if not found:
        return (
            f"The workers ended with code {code} and none of them said why. If one was "
            "killed (signal 9), memory most often ran out. The log ends:\n"
            + _end_of_log(folder)
        )
    # The others fail as well, soon after, because this one no longer answers them.
    first = min(found, key=lambda failure: failure["time"])
    return (
        f"Worker {first['rank'] + 1} of {count} (rank {first['rank']}) failed"
        f" {first['where']}: {first['error']}"
    )


def _end_of_log(folder: Path) -> str:
    text = (folder / LOG).read_text("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _report(folder: Path, rank: int) -> WorkerReport:
    read = json.loads((folder / REPORT.format(rank)).read_text("utf-8"))
    return WorkerReport(**{**read, "losses": tuple(read["losses"])})
