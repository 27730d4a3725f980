"""What containers write goes to CloudWatch Logs while they run, line by line.

SageMaker keeps one group for each endpoint, and in it a stream for each instance of a
variant ("Logs and Metrics" in the SageMaker developer guide). All training jobs share
one group, with a stream for each instance. A group that someone has deleted comes back
with the next line, as on AWS.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from typing import Any

from utils.djl_python.process import LOG_LINES, Container
from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION

SHIPPING_INTERVAL = 0.5  # seconds
END_OF_LOG_TIMEOUT = 2  # seconds for the last lines of a process that has ended
NOT_STARTED = "not-started"  # the stream of a container that is not even started
LONGEST_LINE = 256 * 1024  # bytes of an event; CloudWatch Logs quotas
_WRITING = threading.Lock()  # several jobs make one group, which moto refuses


class KeptLines:
    """Lines that processes write, kept until they are shipped, with their moments."""

    def __init__(self) -> None:
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._lines: deque[tuple[int, str, str]] = deque()
        self._open_logs = 0
        self._all_read = threading.Condition()
        self._deaf = threading.Event()

    def keep_lines(self, stream: Any, name: str) -> None:
        """Read one process's log to its end, and close it.

        The reader closes it and nobody else: `close` waits for a read that goes on, and
        a process that nobody finds may hold the pipe for ever.

        Args:
            stream: of bytes.
            name: of the stream of events that its lines belong to.
        """
        with self._all_read:
            self._open_logs += 1
        try:
            for line in stream:
                if self._deaf.is_set():
                    break
                text = line.decode("utf-8", "replace").rstrip()
                self.log.append(text)
                if text:
                    moment = int(time.time() * 1000)
                    self._lines.append((moment, name, text[:LONGEST_LINE]))
                    self.heard(moment, text)
        finally:
            stream.close()
            with self._all_read:
                self._open_logs -= 1
                self._all_read.notify_all()

    def stop_listening(self) -> None:
        """Keep no line that comes from now on; whoever still writes loses the pipe."""
        self._deaf.set()

    def heard(self, moment: int, text: str) -> None:
        """Look at a line when it comes; `moment` is in milliseconds."""

    def note(self, text: str) -> None:
        """Write a line of one's own: of a container that is not even started."""
        self._lines.append((int(time.time() * 1000), NOT_STARTED, text))

    def wait_for_end_of_log(self) -> None:
        """Wait until what ended processes have written is read."""
        with self._all_read:
            self._all_read.wait_for(lambda: not self._open_logs, END_OF_LOG_TIMEOUT)

    def take_lines(self) -> list[tuple[int, str, str]]:
        """Return moment in milliseconds, name and text of each line so far."""
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._lines.popleft())
        return lines


class LoggedContainer(KeptLines, Container):
    """A container of which each line is kept until it is shipped."""

    def __init__(self, model_data: str, environment: dict[str, str]):
        KeptLines.__init__(self)
        Container.__init__(self, model_data, environment)

    def _read_log(self, stream: Any) -> None:
        """Read one process's log to its end; each has a stream of its own."""
        self.keep_lines(stream, f"i-{secrets.token_hex(8)}")


class LogShipper:
    """Writes to one group of CloudWatch Logs what several sources write."""

    def __init__(self, group: str):
        self.group = group
        self._containers: list[tuple[str, KeptLines]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ship_for_ever, daemon=True)

    def start(self) -> None:
        """Begin; lines are shipped from now on, until `stop`."""
        self._thread.start()

    def watch(self, variant: str, container: KeptLines) -> None:
        """Ship what this container writes, too, to streams "variant/name"."""
        with self._lock:
            self._containers.append((variant, container))

    def leave(self, container: KeptLines) -> None:
        """Ship what is left of a container that has stopped, and forget it."""
        container.wait_for_end_of_log()
        self.ship()
        with self._lock:
            self._containers = [
                one for one in self._containers if one[1] is not container
            ]

    def stop(self) -> None:
        """Ship what is left, and end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            containers = list(self._containers)
        for _, container in containers:
            container.wait_for_end_of_log()
        self.ship()

    def _ship_for_ever(self) -> None:
        while not self._ended.wait(SHIPPING_INTERVAL):
            self.ship()

    def ship(self) -> None:
        """Write the lines that came since the last time, in their order."""
        with self._lock:
            for variant, container in self._containers:
                streams: dict[str, list[dict[str, Any]]] = {}
                for moment, instance, text in container.take_lines():
                    event = {"timestamp": moment, "message": text}
                    streams.setdefault(f"{variant}/{instance}", []).append(event)
                for stream, events in streams.items():
                    put_events(self.group, stream, events)


def put_events(group: str, stream: str, events: list[dict[str, Any]]) -> None:
    """Write events into a stream of moto's CloudWatch Logs, made if it is missing.

    Args:
        group: its name.
        stream: its name.
        events: of `timestamp`, in milliseconds, and `message`.
    """
    from moto.logs.exceptions import ResourceNotFoundException
    from moto.logs.models import logs_backends

    backend = logs_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]
    for last_try in (False, True):
        try:
            with _WRITING:
                if group not in backend.groups:
                    backend.create_log_group(group, {})
                backend.ensure_log_stream(group, stream)
                backend.put_log_events(group, stream, events)
            return
        except ResourceNotFoundException:  # deleted in between
            if last_try:
                raise
