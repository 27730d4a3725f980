"""A folder in place of /opt/ml, and the job's entry script started in it.

Processes are forked from one in which PyTorch is loaded already, so that a test can
start, kill and resume a job many times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.jobs.source import job_source

TIME_TO_END = 120  # seconds; a busy machine may take its time
HYPERPARAMETERS = {
    "rank": "4",
    "alpha": "8",
    "learning_rate": "0.01",
    "num_train_epochs": "2",
    "per_device_train_batch_size": "2",
    "save_steps": "4",
}
END = "<|im_end|>"
ROWS = [
    {
        "prompt": f"<|im_start|>user\nWhat is {n}? {'Say it. ' * (n % 5)}{END}\n",
        "completion": f"It is {n}.{END}",
    }
    for n in range(14)
]
HELD_OUT = 3  # of the rows
# Moments at which a process ends itself: around a step, and around a checkpoint's mark.
MOMENTS = ("on_step_begin", "on_step_end", "on_save", "after on_save")


class JobFolder:
    """/opt/ml of a job: its code, its channels, its orders, and what comes out.

    Args:
        root: takes the place of /opt/ml.
        base: a model's folder, for the channel model.
    """

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.given = root, dict(HYPERPARAMETERS)
        self.code = job_source(root / "input" / "data" / "code")
        self.write("train", ROWS[:-HELD_OUT])
        self.write("validation", ROWS[-HELD_OUT:])
        shutil.copytree(base, root / "input" / "data" / "model")
        self.resources = {
            "current_host": "algo-1",
            "current_instance_type": "ml.m5.xlarge",
            "hosts": ["algo-1"],
            "network_interface_name": "eth0",
        }

    def write(self, channel: str, rows: Sequence[Any]) -> Path:
        """Write a channel's file; texts are written as lines, as they are."""
        file = self.channel(channel) / f"{channel}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return file

    def channel(self, name: str) -> Path:
        return self.root / "input" / "data" / name

    def environment(self) -> dict[str, str]:
        """Write the configuration; return what the SDK's environment.py exports."""
        root, config = self.root, self.root / "input" / "config"
        config.mkdir(exist_ok=True)
        (config / "hyperparameters.json").write_text(json.dumps(self.given))
        names = [one.name for one in (root / "input" / "data").iterdir()]
        return {
            "TRAINING_JOB_NAME": "course-job",
            "SM_MODEL_DIR": str(root / "model"),
            "SM_INPUT_DIR": str(root / "input"),
            "SM_INPUT_DATA_DIR": str(root / "input" / "data"),
            "SM_INPUT_CONFIG_DIR": str(config),
            "SM_OUTPUT_DIR": str(root / "output"),
            "SM_OUTPUT_FAILURE": str(root / "output" / "failure"),
            "SM_OUTPUT_DATA_DIR": str(root / "output" / "data"),
            "SM_HPS": json.dumps({k: decoded(v) for k, v in self.given.items()}),
            "SM_RESOURCE_CONFIG": json.dumps(self.resources),
            **{f"SM_CHANNEL_{name.upper()}": str(self.channel(name)) for name in names},
        }

    def run(
        self,
        moment: tuple[str, int] | None = None,
        how: signal.Signals = signal.SIGKILL,
        largest: int | None = None,
        workers: int = 1,
        port: int = 0,
    ) -> int:
        """Run the job to its end; return the exit code, negative after a signal.

        Args:
            moment: one of MOMENTS and the step at which the job, or the first of its
                workers, gets a signal.
            how: the signal.
            largest: bytes that a file may have: a disk that is full.
            workers: as many processes as torchrun would start.
            port: at which they meet.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["utils.training.train_lora"])
        log, environment = str(self.root / "log"), self.environment()
        processes = []
        for rank in range(workers):
            if workers > 1:
                environment |= {
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    **{"WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers)},
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                }
            given = (str(self.code), dict(environment), log, moment, how, largest)
            processes.append(context.Process(target=_entry, args=given))
            processes[-1].start()
        for process in processes:
            process.join(TIME_TO_END)
        late = [process for process in processes if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        assert not late, self.log()
        return processes[0].exitcode

    def forget(self) -> None:
        """Leave what a new machine has: orders, data and checkpoints."""
        for name in ("model", "output", "base_model"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        (self.root / "log").unlink(missing_ok=True)

    def log(self) -> str:
        return (self.root / "log").read_text("utf-8")

    def adapter(self) -> bytes:
        return (self.root / "model" / "adapter_model.safetensors").read_bytes()

    def failure(self) -> str:
        return (self.root / "output" / "failure").read_text("utf-8")

    def metrics(self) -> dict[str, Any]:
        file = self.root / "output" / "data" / "metrics.json"
        return json.loads(file.read_text("utf-8"))

    def checkpoints(self) -> list[str]:
        return sorted(one.name for one in (self.root / "checkpoints").iterdir())


def decoded(text: str) -> Any:
    """The SDK's `safe_deserialize`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _entry(
    code: str,
    environment: Mapping[str, str],
    log: str,
    moment: tuple[str, int] | None,
    how: signal.Signals,
    largest: int | None,
) -> None:
    """Run the entry script in this process, which was forked for it."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    os.chdir(code)
    sys.path.insert(0, code)
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if moment and environment.get("RANK", "0") == "0":
        import entry_checkpoints

        _end_at(entry_checkpoints.Keeper, *moment, how)
    sys.argv = ["entry.py", "--rank", "4"]
    runpy.run_path("entry.py", run_name="__main__")


def _end_at(keeper: type, where: str, step: int, how: signal.Signals) -> None:
    name = where.removeprefix("after ")
    real: Callable[..., Any] = getattr(keeper, name)

    def ending(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        # At the beginning of a step, the count is that of the steps before.
        here = state.global_step + (name == "on_step_begin") == step
        if here and not where.startswith("after"):
            os.kill(os.getpid(), how)
        real(self, args, state, control, **more)
        if here and where.startswith("after"):
            os.kill(os.getpid(), how)

    setattr(keeper, name, ending)
