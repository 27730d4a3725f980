"""Of a job nothing is left, whoever ends it, and at whatever moment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support import training_run
from support.training import LONG, Jobs
from utils.course import ROOT
from utils.offline_aws.training_supervisor import PREFIX
from utils.temporary import clear_dead

# Who is killed, by a part of a command line.
PROGRAM, SUPERVISOR = "training_run.py", "utils.offline_aws.training_supervisor"
SCRIPT, CHILD = "train.py", "the job's child"
MOMENTS = [
    ("connect", 0.0),
    ("create", 0.0),
    ("create", 0.05),
    ("create", 0.1),
    ("create", 0.2),
    ("create", 0.3),
    ("train", 0.0),
    ("train", 0.1),
    ("train", 0.5),
    ("train", 1.2),
]


class Run:
    """A run with a temporary folder of its own, and all processes that it starts."""

    def __init__(self, temporary: Path):
        self.temporary = temporary
        self.process: subprocess.Popen | None = None

    def start(self, order: str = "wait") -> None:
        tests = Path(training_run.__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, training_run.__file__, order],
            cwd=ROOT,
            env={
                **os.environ,
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": f"{ROOT}:{tests}",
            },
            stdout=subprocess.PIPE,
            text=True,
        )

    def until(self, stage: str) -> None:
        for line in self.process.stdout:
            if line == f"stage {stage}\n":
                return
        pytest.fail(f"{stage} never began")

    def processes(self) -> list[psutil.Process]:
        """Return all processes of this run: they have its temporary folder."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                place = one.environ().get("TMPDIR", "")
                dead = one.status() == psutil.STATUS_ZOMBIE
                if place.startswith(str(self.temporary)) and not dead:
                    found.append(one)
        return found

    def named(self, part: str) -> list[psutil.Process]:
        found = []
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                words = one.cmdline()
                # The supervisor's own command line holds the job's.
                if any(part in word for word in words) and (
                    part == SUPERVISOR or SUPERVISOR not in words
                ):
                    found.append(one)
        return found

    def kill(self, part: str, how: signal.Signals = signal.SIGKILL) -> int:
        found = self.named(part)
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.send_signal(how)
        return len(found)

    def wait_until_nothing_is_left(self) -> None:
        ends = time.monotonic() + LONG
        while self.processes():
            assert time.monotonic() < ends, [one.cmdline() for one in self.processes()]
            time.sleep(0.05)

    def left(self) -> list[str]:
        """Return what is left in the temporary folder, once the next run has begun."""
        clear_dead(self.temporary, PREFIX)
        return [
            path.name
            for path in self.temporary.iterdir()
            if path.name.startswith(PREFIX)
        ]


@pytest.fixture
def run(tmp_path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    for one in run.processes():
        with contextlib.suppress(psutil.Error):
            one.kill()
    run.process.wait()
    run.process.stdout.close()


@pytest.mark.parametrize(
    ("order", "jobs"), [("wait", 1), ("tuning", 2), ("processing", 1)]
)
def test_a_killed_program_takes_its_jobs_with_it(run, order, jobs) -> None:
    run.start(order)
    run.until("train")
    assert len(run.named(SUPERVISOR)) == jobs
    assert len(run.named(SCRIPT)) >= jobs
    assert len(run.named(CHILD)) == jobs
    assert run.kill(PROGRAM) == 1
    run.wait_until_nothing_is_left()
    # The supervisor has removed the folder, before any other run begins.
    assert not [
        path for path in run.temporary.iterdir() if path.name.startswith(PREFIX)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [SUPERVISOR, SCRIPT])
def test_a_killed_part_of_a_job_ends_it_all(run, victim) -> None:
    run.start()
    run.until("train")
    assert run.kill(victim) >= 1
    run.until("ended")
    run.wait_until_nothing_is_left()
    assert run.left() == []


@pytest.mark.slow
def test_closing_ends_a_job_at_once(run) -> None:
    run.start("close")
    run.until("closed")
    run.wait_until_nothing_is_left()
    assert run.left() == []
    assert run.process.wait(LONG) == 0


@pytest.mark.slow
def test_a_program_killed_while_its_job_stops(run) -> None:
    run.start("stop")
    run.until("stop")
    assert run.kill(PROGRAM) == 1
    run.wait_until_nothing_is_left()
    assert run.left() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, how",
    [
        (PROGRAM, signal.SIGKILL),
        (PROGRAM, signal.SIGINT),
        (PROGRAM, signal.SIGTERM),
        (SUPERVISOR, signal.SIGKILL),
        (SCRIPT, signal.SIGKILL),
    ],
)
def test_killed_at_ten_moments_nothing_is_left(run, victim, how) -> None:
    hits = 0
    for stage, delay in MOMENTS:
        run.start()
        run.until(stage)
        time.sleep(delay)
        hit = run.kill(victim, how)
        hits += hit > 0
        if not hit:  # too early for this victim
            run.kill(PROGRAM)
        run.wait_until_nothing_is_left()
        assert run.left() == []
        run.process.wait(LONG)
        run.process.stdout.close()
    assert hits >= (len(MOMENTS) if victim == PROGRAM else 4)


def test_the_offline_aws_closes_with_a_job_in_each_state(aws, monkeypatch) -> None:
    """Downloading, training, stopping, interrupted: afterwards there is no process."""
    from utils.offline_aws import training_jobs, training_process
    from utils.offline_aws.training_jobs import TRAINING_JOBS, stop_all

    monkeypatch.setattr("utils.offline_aws.training_jobs.SYNC_INTERVAL", 0.1)
    monkeypatch.setattr("utils.offline_aws.training_spot.CAPACITY_WAIT", 600)
    jobs = Jobs(aws)
    deaf = training_run.SCRIPT
    saved = {"CheckpointConfig": {"S3Uri": f"s3://{aws.bucket}/states"}}
    training, stopping = jobs.start(deaf, **saved), jobs.start(deaf, **saved)
    with monkeypatch.context() as patch:
        patch.setenv("COURSE_SPOT", "0")
        interrupted = jobs.start(
            deaf,
            **saved,
            EnableManagedSpotTraining=True,
            StoppingCondition={"MaxWaitTimeInSeconds": 600},
        )
    jobs.wait_for_line(training, "trains")
    jobs.wait_for_line(stopping, "trains")
    stopping.stop()
    held = []

    def hold(*_: object) -> None:
        held.append(True)
        while not downloading._to_close.is_set():
            time.sleep(0.01)

    monkeypatch.setattr(training_jobs, "fetch_channel", hold)
    downloading = jobs.start(deaf)
    ends = time.monotonic() + LONG
    while not held or interrupted.secondary != "Interrupted":
        assert time.monotonic() < ends
        time.sleep(0.02)
    folders = {one._processes[0].folder for one in (training, stopping)}
    assert all(folder.exists() for folder in folders)
    started = time.monotonic()
    stop_all()
    assert time.monotonic() - started < LONG < training_process.STOP_GRACE
    assert TRAINING_JOBS == {}
    assert not any(folder.exists() for folder in folders)
    places = [str(folder) for folder in folders]
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            own = one.environ().get("SAGEMAKER_BASE_DIR", "")
            assert not own.startswith(tuple(places))
