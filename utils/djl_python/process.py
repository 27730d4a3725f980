"""The stand-in for the DJL container as a process: started, asked, stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # where `python -m` finds the package
INVOKE_TIMEOUT = 60  # seconds, as on SageMaker
LOG_LINES = 200
TRIES_OF_A_HANGING_WORKER = 3
# glibc gives threads memory of their own ("arenas"), and each connection has a new
# thread: so the front end grew from 31 to 60 MB over 12,000 requests though Python held
# no more. With one arena it stays at 30. The worker, where the model is, has no such
# line: KEPT_VARIABLES leaves it out.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
NAMED_VARIABLES = "DJL_STAND_IN_ENVIRONMENT"  # holds the container's own, as JSON


class Container:
    """A process that serves one artifact as the DJL container would."""

    def __init__(self, model_data: str, environment: dict[str, str]):
        self.model_data = model_data
        self.environment = environment
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.port: int | None = None
        self.process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def start(self, timeout: float) -> str | None:
        """Start the process and wait until it serves; return why not, or None."""
        with self._lock:
            if self._stopped:
                return "The endpoint was deleted while it was being created."
            self.process = process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "utils.djl_python",
                    self.model_data,
                    "--port=0",
                    f"--give-up-after={TRIES_OF_A_HANGING_WORKER}",
                    "--end-with-parent",
                    "--announce",
                ],
                cwd=ROOT,
                # The server may read the archive with this process's credentials; the
                # model gets only what is named for it.
                env={
                    **ONE_ARENA,
                    **os.environ,
                    NAMED_VARIABLES: json.dumps(self.environment),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # An interrupt in the notebook is not meant for the endpoint.
                start_new_session=True,
            )
        threading.Thread(
            target=self._read_log, args=(process.stderr,), daemon=True
        ).start()
        timer = threading.Timer(timeout, process.kill)
        started = time.monotonic()
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line and time.monotonic() - started < timeout:
            return (
                "The container's process ended before it was ready, with code "
                f"{process.wait()}; -9 is most often a lack of memory."
            )
        if not line:
            return f"The container was not ready after {timeout:.0f} s."
        status = json.loads(line)
        self.port = status.get("port")
        return status.get("error")

    def _read_log(self, stream: Any) -> None:
        for line in stream:
            self.log.append(line.decode("utf-8", "replace").rstrip())

    @contextlib.contextmanager
    def open(
        self,
        body: bytes,
        headers: dict[str, str],
        method: str = "POST",
        path: str = "/invocations",
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; its reply can be read as it comes.

        Raises:
            TimeoutError: if no byte comes for INVOKE_TIMEOUT.
            OSError, http.client.HTTPException: if the container is not there.
        """
        if self.port is None:
            raise ConnectionRefusedError("The container is not started. Call `start`.")
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=INVOKE_TIMEOUT
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            yield connection.getresponse()

    @property
    def healthy(self) -> bool:
        """Whether the container says of itself that it can serve."""
        try:
            with self.open(b"", {}, "GET", "/ping") as reply:
                return reply.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self, for_good: bool = True) -> None:
        """End the process with its workers; unless `for_good`, it may start again."""
        with self._lock:
            self._stopped = self._stopped or for_good
            process, self.port = self.process, None
        if process is not None:
            process.stdin.close()  # the process ends its workers and cleans up
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
