"""Killed at whatever moment, a run leaves nothing once the next has been there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support import killed_run
from support.processes import listening, note
from support.tiny_artifact import save_base
from utils.course import ROOT
from utils.temporary import temporary_folder

TIME_TO_END = 60  # seconds; a busy machine may take its time
WHOLE = {"artifact", "model.tar.gz", "entry_point.py"}  # in the folder build/
# What is killed, by the part of a command line that tells it.
KERNEL, CONTAINER, WORKER = "killed_run.py", "utils.djl_python", "worker.py"
# Ten moments of a run: the stage, and seconds after its beginning.
MOMENTS = [
    ("build", 0.0),
    ("build", 0.1),
    ("check", 0.5),
    ("check", 1.5),
    ("serve", 0.3),
    ("serve", 1.5),
    ("create", 0.2),
    ("create", 1.0),
    ("ask", 0.0),
    ("ask", 0.6),
]


class Run:
    """A run with a temporary folder and a build folder of its own."""

    def __init__(self, base: Path, place: Path):
        self.base, self.build = base, place / "build"
        self.temporary = place / "temporary"
        self.temporary.mkdir()
        self.process: subprocess.Popen | None = None
        self.seen: dict[int, psutil.Process] = {}
        self.ports: set[int] = set()

    def start(self, *stages: str) -> None:
        """Start it; what it says is read by `until`."""
        self.seen.clear()
        self.ports.clear()
        self.process = subprocess.Popen(
            [
                *(sys.executable, killed_run.__file__),
                *(str(self.base), str(self.build), *stages),
            ],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, stage: str) -> None:
        """Read until a stage begins."""
        said = []
        for line in self.process.stdout:
            said.append(line)
            if line == f"stage {stage}\n":
                return
        pytest.fail(f"{stage} never began: {''.join(said)}")

    def look(self) -> None:
        """Note the processes that there are, and the ports on which they listen."""
        note(psutil.Process(self.process.pid), self.seen, self.ports)

    def kill(self, victim: str, how: signal.Signals) -> bool:
        """Send a signal to what is meant; say whether there was any."""
        self.look()
        hit = [one for one in self.seen.values() if _is(one, victim)]
        for one in hit:
            one.send_signal(how)
        return bool(hit)

    def end(self) -> int:
        """Wait until the run has ended, and with it all that it had started."""
        self.process.stdout.read()
        code = self.process.wait(TIME_TO_END)
        _, alive = psutil.wait_procs(self.seen.values(), timeout=TIME_TO_END)
        assert alive == []
        assert self.ports & listening() == set()
        return code

    def left(self) -> set[str]:
        """Return what it has left in the two folders, besides what it is to write."""
        there = {path.name for path in self.temporary.iterdir()}
        if self.build.is_dir():
            there |= {path.name for path in self.build.iterdir()} - WHOLE
        return there

    def again(self) -> None:
        """Let another run go through to its end, which leaves nothing."""
        self.start("check", "connect")
        self.until("ask")
        self.look()
        self.until("end")
        assert self.end() == 0
        assert self.left() == set()


def _is(process: psutil.Process, victim: str) -> bool:
    try:
        return any(part.endswith(victim) for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("killed") / "base")


@pytest.fixture
def run(base, tmp_path) -> Iterator[Run]:
    run = Run(base, tmp_path)
    yield run
    if run.process is not None and run.process.poll() is None:
        run.process.kill()
        run.process.communicate()


def break_off(
    run: Run, victim: str, how: signal.Signals, moment: tuple[str, float]
) -> bool:
    """Kill at a moment and wait for the end; say whether there was what to kill."""
    stage, delay = moment
    run.start("check", "connect")
    run.until(stage)
    time.sleep(delay)
    hit = run.kill(victim, how)
    code = run.end()
    # An interrupt that a library swallows lets the run go on to its end.
    if victim == KERNEL and how == signal.SIGKILL:
        assert code != 0
    return hit


def test_a_killed_kernel_and_a_killed_container_leave_nothing(run) -> None:
    """Two moments; the second run clears what the first left, and what its own did."""
    run.start()
    run.until("build")
    assert run.kill(KERNEL, signal.SIGKILL)
    assert run.end() != 0
    begun = {path.name for path in run.build.iterdir()} - WHOLE
    run.start()
    run.until("serve")
    while not any(run.temporary.iterdir()):  # the container unpacks
        time.sleep(0.01)
    assert run.kill(CONTAINER, signal.SIGKILL)
    run.until("end")
    assert run.end() == 1  # it got no answer
    assert {path.name for path in run.build.iterdir()} == WHOLE, begun
    assert any(run.temporary.iterdir())  # a killed container cannot tidy up, so that …
    with temporary_folder(run.temporary):
        pass  # … the next start does
    assert run.left() == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, how",
    [
        (KERNEL, signal.SIGKILL),
        (KERNEL, signal.SIGINT),
        (CONTAINER, signal.SIGKILL),
        (WORKER, signal.SIGKILL),
    ],
)
def test_killed_at_ten_moments_the_next_run_is_clean(run, victim, how) -> None:
    hits = [break_off(run, victim, how, moment) for moment in MOMENTS]
    # Before the check there is neither worker nor container.
    assert sum(hits) == len(MOMENTS) if victim == KERNEL else sum(hits) >= 3
    run.again()
