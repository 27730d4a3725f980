"""What each of several workers does: torchrun starts this file once a worker.

    torchrun --standalone --nproc_per_node=2 -m utils.jobs.several FOLDER

`utils.jobs.workers.run_workers` writes the order into FOLDER and calls torchrun. From
torchrun a worker learns its number (RANK) and how many there are (WORLD_SIZE). That is
all by which the workers differ: each builds the same model from the same seed, and
takes other rows of the same batch.

The loop is our own, because transformers' Trainer does not do FSDP on a processor:
`utils/jobs/wrapping.py` says why.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_file, write_json
from utils.jobs.shares import (
    batch_of_step,
    counted_tokens,
    evaluate,
    loss_of,
    padded,
    share_of,
)
from utils.jobs.workers import (
    FAILURE,
    REPORT,
    Order,
    WorkerError,
    WorkerReport,
    read_order,
)
from utils.jobs.wrapping import build_model, count_parameters, require_wrapped, wrap
from utils.temporary import temporary_folder

WARM_UP = 2  # steps whose seconds do not count
NO_PARENT = 3  # exit code


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one worker's part of an order; return the exit code."""
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank = int(os.environ["RANK"])
    try:
        report = work(read_order(folder))
        write_json(folder / REPORT.format(rank), dataclasses.asdict(report))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = Path(__file__).parent
        own = [frame for frame in frames if Path(frame.filename).parent == here][-1]
        failure = {
            "rank": rank,
            "time": time.time(),
            "error": f"{type(error).__name__}: {error}",
            "where": f"in `{own.name}` ({Path(own.filename).name}, line {own.lineno})",
        }
        write_json(folder / FAILURE.format(rank), failure)
        raise
    return 0


def _end_with_parent() -> None:
    """End this process when its standard input ends: nobody waits for it any more."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(NO_PARENT)


# --- a worker's part ------------------------------------------------------------------


def work(order: Order) -> WorkerReport:
    """Train, evaluate and measure as one of several workers, and report."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(order.threads)
    dist.init_process_group("gloo")
    try:
        model = build_model(order)
        bare = copy.deepcopy(model) if order.measured_rounds else None
        model = wrap(model, order.how)
        require_wrapped(model, order.how)
        losses, seconds, busy = train(model, order)
        evaluated = evaluate(model, order.held_out, order.batch_size)
        parts = time_parts(bare, model, order) if bare else (None, None, None)
        wraps = ask_trainer(order) if order.ask_trainer else None
        counts = count_parameters(model)
        dist.barrier()  # nobody leaves while another still needs an answer
    finally:
        dist.destroy_process_group()
    return WorkerReport(
        rank=int(os.environ["RANK"]),
        count=int(os.environ["WORLD_SIZE"]),
        how=order.how,
        wrapped=type(model).__name__,
        threads=torch.get_num_threads(),
        losses=tuple(losses),
        **evaluated,
        **counts,
        seconds_a_step=_settled(seconds),
        processor_seconds_a_step=_settled(busy),
        compute=parts[0],
        waiting=parts[1],
        communication=parts[2],
        trainer_wraps=wraps,
    )


def _settled(seconds: list[float]) -> float | None:
    """Return the median without the first steps; None if there was no step."""
    return statistics.median(seconds[WARM_UP:] or seconds) if seconds else None


# --- training -------------------------------------------------------------------------


def train(model: Any, order: Order) -> tuple[list[float], list[float], list[float]]:
    """Train to the order's last step, from its checkpoint if there is one.

    Returns:
        Of each step: the loss of all workers, the seconds here, and those in which a
        core worked for this process.
    """
    import torch
    import torch.distributed as dist

    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=order.learning_rate)
    first = load_checkpoint(order, model, optimizer)
    rank, count = dist.get_rank(), dist.get_world_size()
    losses, seconds, busy = [], [], []
    for step in range(first, order.steps):
        started, worked = time.perf_counter(), time.process_time()
        batch = batch_of_step(order.rows, order.batch_size, step, order.seed)
        loss = loss_of(model, share_of(batch, rank, count), counted_tokens(batch))
        # Both DDP and FSDP average gradients over the workers. This loss is already
        # divided by the tokens of all of them, so a sum is wanted.
        (count * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
        if order.save_every and (step + 1) % order.save_every == 0:
            save_checkpoint(order, model, optimizer, step + 1)
    save_checkpoint(order, model, optimizer, max(first, order.steps))
    if not losses:
        return [], [], []
    together = torch.stack(losses).double()
    dist.all_reduce(together)
    return together.tolist(), seconds, busy


def load_checkpoint(order: Order, model: Any, optimizer: Any) -> int:
    """Take up weights and optimizer where a checkpoint left them; return its step."""
    import torch
    from torch.distributed.checkpoint.state_dict import set_state_dict

    if order.checkpoint is None or not Path(order.checkpoint).is_file():
        return 0
    try:
        saved = torch.load(order.checkpoint, weights_only=True)
        weights, state, step = (saved[name] for name in ("model", "optimizer", "step"))
    except Exception as error:
        raise WorkerError(
            f"{Path(order.checkpoint).name} cannot be read as a checkpoint of these "
            f"workers ({error}): remove it to start afresh."
        ) from error
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict=state,
        options=_whole_state(strict=False),  # the frozen base is not in it
    )
    return step


def save_checkpoint(order: Order, model: Any, optimizer: Any, step: int) -> None:
    """Write what was trained, whole, also where each worker holds only its share.

    All workers take part in gathering it, and the first one writes.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_state_dict

    if order.checkpoint is None:
        return
    weights, state = get_state_dict(model, optimizer, options=_whole_state())
    if dist.get_rank() == 0:
        content = {"model": weights, "optimizer": state, "step": step}
        write_file(order.checkpoint, lambda file: torch.save(content, file))
    dist.barrier()


def _whole_state(strict: bool = True) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(
        full_state_dict=True, ignore_frozen_params=True, strict=strict
    )


# --- where the time goes --------------------------------------------------------------


def time_parts(bare: Any, model: Any, order: Order) -> tuple[float, float, float]:
    """Take forward and backward apart: computing, waiting, communicating.

    Each round computes the same batch twice. Once by the model without any wrapping, on
    all workers at the same time: computing; then this worker waits until the last one
    is done: waiting. And once by the wrapped model: what this takes longer is
    communication that is not hidden behind computing, with the wrapping's own work.
    Which comes first changes from round to round.

    Args:
        bare: a copy of the model that is not wrapped.
        model: the wrapped model.
        order: of the workers.

    Returns:
        Seconds of the three parts: medians over the rounds, and for communication the
        difference of medians, which may be a little below 0 where there is none.
    """
    import torch.distributed as dist

    count = dist.get_world_size()
    batch = batch_of_step(order.rows, order.batch_size, 0, order.seed)
    own, tokens = share_of(batch, dist.get_rank(), count), counted_tokens(batch)
    compute, waiting, together = [], [], []

    def alone() -> None:
        with _timed(compute), _cleared(bare):
            (count * loss_of(bare, own, tokens)).backward()
        with _timed(waiting):
            dist.barrier()

    def wrapped() -> None:
        with _timed(together), _cleared(model):
            (count * loss_of(model, own, tokens)).backward()
            dist.barrier()

    for number in range(1 + order.measured_rounds):
        for part in (alone, wrapped) if number % 2 else (wrapped, alone):
            dist.barrier()
            part()
    # The first round warms up.
    medians = [statistics.median(one[1:]) for one in (compute, waiting, together)]
    return medians[0], medians[1], medians[2] - medians[0] - medians[1]


@contextlib.contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


@contextlib.contextmanager
def _cleared(model: Any) -> Iterator[None]:
    yield
    model.zero_grad()


# --- what the Trainer does ------------------------------------------------------------


def ask_trainer(order: Order) -> str:
    """Let the Trainer train one step with `fsdp=True`; return the type it trains.

    On this processor that is DistributedDataParallel (accelerate 1.15).
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seen: list[str] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            seen.append(type(trainer.model_wrapped).__name__)

    with temporary_folder() as folder:
        arguments = TrainingArguments(
            output_dir=str(folder),
            fsdp=True,
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            build_model(order),
            arguments,
            train_dataset=order.rows[:2],
            data_collator=padded,
            callbacks=[Look()],
        )
        trainer.train()
    return seen[0]


if __name__ == "__main__":
    raise SystemExit(main())
