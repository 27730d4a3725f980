"""What training costs grows with the tokens: twice the rows, twice the work.

Work is counted in operations, which no neighbour disturbs; a slow test takes the time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from support.job_folder import ROWS
from support.tiny_artifact import save_chat_base
from utils.training import train_lora

TIMES = (1, 2, 4)  # as many rows as at first
ROUNDS = 3
ROWS_A_STEP = 16
WARM_UP = 2  # steps that also reserve memory
TOLERANCE = 0.15


class Clock(TrainerCallback):
    """Measures processor time and tokens of a run's steps, after the first few.

    The time of this process, not that of the day: other programs slow a run down, and
    change less what it computes.
    """

    steps = 8  # that count, of the smallest run

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step == WARM_UP:
            self.before = self.now(), state.num_input_tokens_seen

    def on_train_end(self, args, state, control, **_) -> None:
        self.cost = self.now() - self.before[0]
        self.tokens = state.num_input_tokens_seen - self.before[1]

    def now(self) -> float:
        return time.process_time()


class Operations(Clock):
    """Counts what multiplies matrices, forward and backward, in place of seconds."""

    steps = 2

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)

    def now(self) -> float:
        return self.counter.get_total_flops()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other would count as work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(base: Path, folder: Path, times: int, clock: Clock) -> Clock:
    """Train on so many times the rows, each as long as the others, once."""
    count = ROWS_A_STEP * (WARM_UP + clock.steps * times)
    rows = [{**ROWS[4], "prompt": ROWS[4]["prompt"] * 2} for _ in range(count)]
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train_lora.main(
        [
            *("--train", str(file), "--model", str(base)),
            *("--output_dir", str(folder / "adapter"), "--use_cpu", "true"),
            *("--num_train_epochs", "1", "--disable_tqdm", "true"),
            *("--per_device_train_batch_size", str(ROWS_A_STEP)),
            *("--include_num_input_tokens_seen", "true", "--logging_strategy", "no"),
        ],
        [clock],
    )
    return clock


def require_linear(found: dict[int, Clock]) -> None:
    """Require that tokens grow with the rows, and their cost with the tokens."""
    for times, clock in found.items():
        assert clock.tokens == times * found[1].tokens > 0
        assert clock.cost / found[1].cost == pytest.approx(times, rel=TOLERANCE)


def test_the_operations_grow_with_the_tokens(tmp_path) -> None:
    base = save_chat_base(tmp_path / "base", "plain")
    found = {}
    for times in TIMES:
        clock = Operations()
        with clock.counter:
            found[times] = run(base, tmp_path, times, clock)
    require_linear(found)


@pytest.mark.slow  # a neighbour on the other core disturbs it
def test_the_seconds_grow_with_the_tokens(one_thread, tmp_path) -> None:
    """The sizes take turns, and the least counts: what disturbs a run only adds."""
    base = save_chat_base(tmp_path / "base", "plain")
    clocks: dict[int, list[Clock]] = {times: [] for times in TIMES}
    for _ in range(ROUNDS):
        for times, found in clocks.items():
            found.append(run(base, tmp_path, times, Clock()))
    for times, found in clocks.items():
        print(times, found[0].tokens, [f"{one.cost:.3f}" for one in found])
    require_linear(
        {times: min(found, key=lambda one: one.cost) for times, found in clocks.items()}
    )
