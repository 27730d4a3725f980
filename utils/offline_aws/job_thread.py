"""What training jobs and processing jobs share: a thread that goes through the work.

Whatever goes wrong in the thread ends the job as Failed, with a reason. No job stays
InProgress because the offline AWS itself had a fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from utils.offline_aws.errors import AwsFault
from utils.offline_aws.images import check_image
from utils.offline_aws.logs import LogShipper
from utils.offline_aws.training_errors import JobFailure, internal_error, no_image

COMPLETED, FAILED, STOPPED = "Completed", "Failed", "Stopped"
POLL = 0.05  # seconds between looks at a running job
DEFAULT_RUNTIME = 24 * 3600  # seconds; botocore's models of both StoppingConditions
JOIN_TIMEOUT = 60  # seconds; a busy machine may take its time


class Closed(Exception):
    """The offline AWS ends, and the job with it."""


class JobThread:
    """A job with a thread; a kind of job says what is done in `_work` and `_end`."""

    def __init__(self, group: str):
        """Prepare a job.

        Args:
            group: of CloudWatch Logs, to which it writes.
        """
        self._to_stop = threading.Event()
        self._to_close = threading.Event()
        self._logs = LogShipper(group)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Let it end at once, and store nothing."""
        self._to_close.set()
        self._to_stop.set()

    def join(self) -> None:
        """Wait until it holds no process, thread or file any more."""
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT)

    def _run(self) -> None:
        """Go through all states."""
        last, reason = self._outcome(self._go)
        # The last state comes when all that the job has written can be read.
        _, lost = self._outcome(self._logs.stop)
        if lost is not None:
            last, reason = FAILED, reason or lost
        self._end(last, reason)

    def _outcome(self, do: Callable[[], Any]) -> tuple[Any, str | None]:
        """Do a part of the work; return what it returns, and why the job fails."""
        try:
            return do(), None
        except Closed:
            return STOPPED, None
        except JobFailure as failure:
            return FAILED, str(failure)
        except Exception as error:
            return FAILED, str(internal_error(error))

    def _go(self) -> str:
        self._logs.start()
        return self._work()

    def _work(self) -> str:
        """Do the work; return the last state.

        Raises:
            JobFailure: if the job fails.
            Closed: if it was told to end at once.
        """
        raise NotImplementedError

    def _end(self, last: str, reason: str | None) -> None:
        """Note the last state, and why the job has failed."""
        raise NotImplementedError

    def _check_closed(self) -> None:
        """End at once if it is to.

        Raises:
            Closed: if it is.
        """
        if self._to_close.is_set():
            raise Closed


def end_all(jobs: Mapping[str, JobThread]) -> None:
    """End jobs at once, and wait until they hold nothing any more."""
    all_ = list(jobs.values())
    for job in all_:
        job.close()
    for job in all_:
        job.join()


def pull(image: str) -> None:
    """Fail if there is no such image: AWS sees that when it is pulled.

    Raises:
        JobFailure: with AWS's words.
    """
    try:
        check_image({"Image": image})
    except AwsFault as fault:
        raise no_image(image, fault.message) from None
