"""A job's thread ends the job, and itself, whatever goes wrong in it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from support.training import LONG
from utils.course import ROOT
from utils.offline_aws import training_jobs
from utils.offline_aws.job_thread import Closed, JobThread, end_all
from utils.offline_aws.training_errors import JobFailure
from utils.offline_aws.training_process import JobProcess

INTERNAL = "InternalServerError: We encountered an internal error. Please try again."
# A loop over a dictionary that requests of other threads change meanwhile.
LIVE = re.compile(
    r"for [^:\n]+ in (?:[A-Z_]*JOBS|ENDPOINTS|self\.endpoints|_jobs\(\)"
    r"|[\w.\[\]\"]*\.(?:roles|groups|streams|buckets|alarms|schedules))"
    r"(?:\.(?:values|items|keys)\(\))?[ :\n\])]"
)


class Job(JobThread):
    """A job of which one part raises an error."""

    def __init__(self, part: str = "", error: Exception | None = None):
        super().__init__("/a/group")
        self.ends: list[tuple[str, str | None]] = []

        def fail(*_: object) -> None:
            raise error

        if part == "work":
            self._work = fail
        elif part:
            setattr(self._logs, part, fail)

    def _work(self) -> str:
        return "Completed"

    def _end(self, last: str, reason: str | None) -> None:
        self.ends.append((last, reason))


@pytest.mark.parametrize(
    ("part", "error", "status", "reason"),
    [
        ("", None, "Completed", None),
        ("work", JobFailure("no rows"), "Failed", "no rows"),
        ("work", KeyError("x"), "Failed", f"{INTERNAL} In the offline AWS: KeyError:"),
        ("work", Closed(), "Stopped", None),
        ("start", OSError("no threads"), "Failed", INTERNAL),
        ("stop", OSError("no log"), "Failed", INTERNAL),
    ],
)
def test_whatever_happens_a_job_ends(part, error, status, reason) -> None:
    job = Job(part, error)
    job.start()
    end_all({"job": job})
    ((last, said),) = job.ends
    assert last == status
    assert said is None if reason is None else said.startswith(reason)


def test_a_log_that_is_lost_hides_no_reason() -> None:
    job = Job("work", JobFailure("no rows"))
    job._logs.stop = None  # calling it raises a TypeError
    job.start()
    job.join()
    assert job.ends == [("Failed", "no rows")]


def test_who_holds_the_pipe_and_is_not_found_holds_up_no_end(tmp_path) -> None:
    """It has no variable that tells whose it is, and its supervisor was killed."""
    lines: list[str] = []
    process = JobProcess(lambda moment, text: lines.append(text))
    escaped = "setsid env -i sleep 600 & echo $!; sleep 600"
    environment = {"PATH": os.environ["PATH"], "SAGEMAKER_BASE_DIR": f"{tmp_path}/a"}
    command = ["/bin/sh", "-c", escaped]
    process.start(command, environment, tmp_path, tmp_path, "stream")
    try:
        ends = time.monotonic() + LONG
        while not lines:
            assert time.monotonic() < ends
            time.sleep(0.02)
        os.kill(process.process.pid, signal.SIGKILL)
        process.process.wait()
        started = time.monotonic()
        assert process.poll() == 128 + signal.SIGKILL
        process.close()
        assert time.monotonic() - started < LONG / 2
        os.kill(int(lines[0]), 0)  # it still is there, and holds the pipe
    finally:
        with contextlib.suppress(OSError, IndexError):
            os.kill(int(lines[0]), signal.SIGKILL)


def test_jobs_may_come_while_their_threads_are_counted(monkeypatch) -> None:
    jobs: dict[str, object] = {}

    class Arrives:
        instances = 1

        @property
        def status(self) -> str:
            jobs[f"job {len(jobs)}"] = self
            return "InProgress"

    jobs["first"] = jobs["second"] = Arrives()
    monkeypatch.setattr(training_jobs, "TRAINING_JOBS", jobs)
    count = training_jobs.TrainingJob._threads(None)
    assert count == max(1, (os.cpu_count() or 1) // 2)
    assert len(jobs) == 4


def test_no_loop_of_the_offline_aws_goes_over_what_others_change() -> None:
    found = [
        f"{path.name}: {match[0]!r}"
        for path in sorted(Path(ROOT, "utils", "offline_aws").glob("*.py"))
        for match in LIVE.finditer(path.read_text("utf-8"))
    ]
    assert found == []
    assert LIVE.search("sum(one.n for one in TRAINING_JOBS.values() if one)")
    assert LIVE.search("for name in ENDPOINTS:")
