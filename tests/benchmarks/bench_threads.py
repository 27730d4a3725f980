"""How fast the lab model trains beside other programs, by how OpenMP's threads wait.

    .venv/bin/python tests/benchmarks/bench_threads.py              # under five minutes
    .venv/bin/python tests/benchmarks/bench_threads.py --rounds 5
    .venv/bin/python tests/benchmarks/bench_threads.py --preload /…/libiomp5.so

The course looks, when a process starts, whether other programs are busy, and chooses a
long spin or a short one (utils/machine.py): what it chose in each round is printed. The
figures are steps a second of the course's recipe on the lab model and the course's
rows, in a process of its own for each setting. The processes take turns, also within a
round, and wait asleep in between: idle, beside one and beside two busy programs. A busy
program is either a loop in Python, which keeps one core busy for as long as it runs, or
PyTorch multiplying matrices with as many threads as there are cores, as a second
notebook does. Beside the latter half of the machine is all that is fair. Close other
programs first: the line above the table says how busy the machine was.

With --preload another OpenMP library takes the place of PyTorch's own: its threads then
follow KMP_BLOCKTIME.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch  # before utils, which would set how the default waits

from utils.machine import LONG_SPIN, SHORT_SPIN, others_are_busy

DEFAULT, FREE, BUSY = "library default", "long spin", "short spin"
SETTINGS = {
    DEFAULT: {},
    FREE: LONG_SPIN,
    BUSY: SHORT_SPIN,
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
# The variables that decide on threads: none of the caller's may count.
DECIDING = ("OMP_", "GOMP_", "KMP_", "MKL_NUM", "COURSE_")
LOOP = "while True: pass"
MATRICES = "import torch\none = torch.rand(512, 512)\nwhile True: one @ one"
LOADS = {
    "idle": [],
    "1 Python loop": [LOOP],
    "1 PyTorch": [MATRICES],
    "2 Python loops": [LOOP] * 2,
    "2 PyTorch": [MATRICES] * 2,
}
START_SECONDS = 4  # of a busy program, until it is busy
SETTLED = 3  # steps that do not count, each time
MOST_IDLE, MOST_BUSY = 1.1, 2.0  # promised: times as long as the default, idle


def worker() -> None:
    """Train for as many seconds as each line of the input says; print steps a second.

    The batches differ in length: what is counted is tokens, in batches of mean length.
    """
    import random

    from bench_training import course_trainer, make_task

    from utils.models import MODELS

    with tempfile.TemporaryDirectory() as folder:
        trainer = course_trainer(make_task(MODELS["lab"], folder))
    batches = list(trainer.get_train_dataloader())
    random.Random(0).shuffle(batches)
    sizes = [int(batch["attention_mask"].sum()) for batch in batches]
    model = trainer.model.train()
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimiser = torch.optim.AdamW(trained, trainer.args.learning_rate, fused=True)
    short = torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16)

    def step(batch: dict) -> None:
        with short:
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()

    for batch in batches[:SETTLED]:
        step(batch)
    print("ready", flush=True)
    for line in sys.stdin:
        step(batches[0])
        tokens, number, start = 0, 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < float(line):
            step(batches[number % len(batches)])
            tokens += sizes[number % len(batches)]
            number += 1
        print(tokens / statistics.mean(sizes) / seconds, flush=True)


def environment(**variables: str) -> dict[str, str]:
    """Return the caller's environment with these variables in place of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(DECIDING)}
    return kept | variables


@contextmanager
def processes(commands: dict[str, list[str]], **options) -> Iterator[dict]:
    """Run programs until the block ends."""
    running = {}
    try:
        for name, command in commands.items():
            own = options | {"env": options["env"][name]}
            running[name] = subprocess.Popen(command, text=True, **own)
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.wait()


@contextmanager
def busy(programs: list[str]) -> Iterator[None]:
    """Keep the machine busy with these Python programs."""
    commands = {
        str(number): [sys.executable, "-c", code]
        for number, code in enumerate(programs)
    }
    # A neighbour with the defaults of its library: it belongs to somebody else.
    with processes(commands, env=dict.fromkeys(commands, environment())):
        if programs:
            time.sleep(START_SECONDS if MATRICES in programs else 0.5)
        yield


def measured(
    settings: dict, rounds: int, seconds: float
) -> tuple[dict, dict[str, list[str]]]:
    """Return steps a second by setting and load, and what would be chosen under each.

    Both hold one entry a round.
    """
    found: dict = {(name, load): [] for name in settings for load in LOADS}
    chosen: dict = {load: [] for load in LOADS}
    command = [sys.executable, __file__, "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environments = {name: environment(**values) for name, values in settings.items()}
    with processes(
        dict.fromkeys(settings, command),
        env=environments,
        stderr=subprocess.DEVNULL,
        **pipes,
    ) as workers:
        for name, process in workers.items():
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"The process for {name!r} ended before it trained.")
        for number in range(rounds):
            for load, programs in LOADS.items():
                with busy(programs):
                    chosen[load].append(BUSY if others_are_busy({}) else FREE)
                    for name, process in workers.items():
                        process.stdin.write(f"{seconds}\n")
                        process.stdin.flush()
                        found[name, load].append(float(process.stdout.readline()))
                speeds = ", ".join(f"{found[name, load][-1]:.2f}" for name in settings)
                print(
                    f"round {number + 1} of {rounds}, {load}: {speeds}; a process that "
                    f"starts now takes the {chosen[load][-1]}",
                    flush=True,
                )
    return found, chosen


def shown(settings: dict, found: dict, chosen: dict) -> tuple[str, bool]:
    """Return the table with the promised ratios, and whether all are kept."""
    lines = ["| steps/s, median (lowest to highest) | " + " | ".join(LOADS) + " |"]
    lines.append("|:--|" + "--:|" * len(LOADS))
    rows = {name: {load: found[name, load] for load in LOADS} for name in settings}
    rows["chosen at the start"] = {
        load: [found[name, load][i] for i, name in enumerate(names)]
        for load, names in chosen.items()
    }
    for name, speeds in rows.items():
        values = settings.get(name, {}).items()
        what = " ".join(f"{k}={v}" for k, v in values if k != "LD_PRELOAD")
        cells = [
            f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})"
            for one in speeds.values()
        ]
        what = f" `{what}`" if what else ""
        lines.append(f"| {name}{what} | " + " | ".join(cells) + " |")
    lines.append("")
    alone, kept = statistics.median(rows[DEFAULT]["idle"]), True
    goals = {"idle": MOST_IDLE, "1 Python loop": MOST_BUSY, "1 PyTorch": MOST_BUSY}
    for load, most in goals.items():
        ratio = alone / statistics.median(rows["chosen at the start"][load])
        kept = kept and ratio <= most
        lines.append(
            f"chosen, {load}: {ratio:.2f} times the default's time when idle "
            f"(goal: at most {most})"
        )
    return "\n".join(lines), kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="for each number")
    parser.add_argument("--preload", help="another OpenMP library for all settings")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return 0
    settings = SETTINGS
    if options.preload:
        preload = {"LD_PRELOAD": options.preload}
        settings = {name: values | preload for name, values in SETTINGS.items()}
    starts = sum(START_SECONDS if MATRICES in p else 1 for p in LOADS.values())
    one_round = len(LOADS) * len(settings) * (options.seconds + 1) + starts
    minutes = (30 + options.rounds * one_round) / 60
    print(
        f"{len(LOADS)} loads, {len(settings)} settings, {options.rounds} rounds: "
        f"about {minutes:.0f} minutes on two cores. Columns: {', '.join(settings)}."
    )
    before = psutil.cpu_percent(1)
    results = measured(settings, options.rounds, options.seconds)
    table, kept = shown(settings, *results)
    print(
        f"\n{os.cpu_count()} cores, {before:.0f}% busy before and "
        f"{psutil.cpu_percent(1):.0f}% after\n{table}"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
