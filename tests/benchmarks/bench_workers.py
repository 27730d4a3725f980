"""How much two workers gain over one on this machine, and where their time goes.

    .venv/bin/python tests/benchmarks/bench_workers.py              # about five minutes
    .venv/bin/python tests/benchmarks/bench_workers.py --rounds 7

A GPT-NeoX of random weights and 7 million numbers, whose step takes longer than 50 ms,
is trained with LoRA on batches of 8 rows of 64 tokens: by one worker with one thread,
by one with two threads, by two with one thread each under DDP and under FSDP. They take
turns, each in processes of its own (`utils.jobs.workers.run_workers`), and the figures
are medians over the rounds, with the lowest and the highest. A step is forward,
backward and optimizer; its parts are those of forward and backward (`WorkerReport`
explains them). Of two workers the slower one counts.

Processor time is that of one worker, on all its threads; other programs hardly change
it. Close them nevertheless: the line above the table says how busy the machine was.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence

import psutil

from utils.helpers import IGNORED
from utils.jobs.workers import WorkerReport, run_workers

MODEL = {
    "model_type": "gpt_neox",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
ROWS, LENGTH, BATCH, STEPS, PARTS = 64, 64, 8, 12, 8
LEAST_STEP = 0.05  # seconds; a shorter one would measure how processes talk
ONE, MORE_THREADS, DDP, FSDP = "one, 1 thread", "one, 2 threads", "DDP × 2", "FSDP × 2"
WAYS = {ONE: (1, "one", 1), MORE_THREADS: (1, "one", 2), DDP: (2, "ddp", 1)}
WAYS |= {FSDP: (2, "fsdp", 1)}


def rows() -> list[dict[str, list[int]]]:
    """Rows of the same length: what two workers wait for is not their rows."""
    draw = random.Random(0)
    made = []
    for _ in range(ROWS):
        ids = [draw.randrange(3, MODEL["vocab_size"]) for _ in range(LENGTH)]
        labels = [IGNORED] * (LENGTH // 2) + ids[LENGTH // 2 :]
        made.append({"input_ids": ids, "labels": labels})
    return made


def measured(rounds: int) -> dict[str, list[WorkerReport]]:
    """Return the slower worker's report of each way and round."""
    found: dict[str, list[WorkerReport]] = defaultdict(list)
    given = rows()
    for number in range(rounds):
        for way, (count, how, threads) in WAYS.items():
            reports = run_workers(
                *(count, how, given),
                model=MODEL,
                steps=STEPS,
                batch_size=BATCH,
                threads=threads,
                measured_rounds=PARTS,
            )
            found[way].append(max(reports, key=lambda one: one.seconds_a_step))
            print(f"round {number + 1}, {way}: {reports[0].seconds_a_step:.3f} s")
    return found


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return the median with the lowest and the highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(found: dict[str, list[WorkerReport]]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| way | step, ms | against one thread | processor, ms | held, million | "
        "computing, ms | waiting, ms | communication, ms |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    alone = [one.seconds_a_step for one in found[ONE]]
    for way, reports in found.items():
        steps = [one.seconds_a_step for one in reports]
        busy = [1000 * one.processor_seconds_a_step for one in reports]
        gains = [first / step for first, step in zip(alone, steps, strict=True)]
        parts = [
            spread([1000 * getattr(one, part) for one in reports])
            for part in ("compute", "waiting", "communication")
        ]
        held = reports[0].parameters_held / 1e6
        lines.append(
            f"| {way} | {spread([1000 * step for step in steps])} | "
            f"{spread(gains, 2)} × | {spread(busy)} | {held:.1f} | "
            f"{' | '.join(parts)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; fail if a step is too short to say anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    busy = f"{psutil.cpu_percent(1):.0f}% busy before, load {os.getloadavg()[0]:.1f}"
    found = measured(arguments.rounds)
    print(f"{os.cpu_count()} cores, {busy}, load {os.getloadavg()[0]:.1f} after")
    print(table(found))
    shortest = min(one.seconds_a_step for one in found[MORE_THREADS])
    if shortest < LEAST_STEP:
        print(f"A step of {shortest:.3f} s is too short: these ratios say nothing.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
