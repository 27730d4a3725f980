"""The offline AWS's HTTP server: bounded threads, and a limit to each wait.

moto's own `ThreadedMotoServer` starts a thread for each connection and waits for ever
for what a client does not send.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import ThreadedWSGIServer

# Far more than a notebook's clients open; each takes a thread while it is answered.
MOST_CONNECTIONS = 128
HEADER_SECONDS = 10  # to send request line and headers
IDLE_SECONDS = 20  # between two pieces of a body
BODY_SECONDS = 600  # for all of it
REFUSED_SECONDS = 2  # for the rest of what is refused
WRITE_SECONDS = 120  # for one piece of an answer to be taken


class DeadlineReader(io.RawIOBase):
    """What comes in through a socket, until a deadline."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.allow(HEADER_SECONDS, HEADER_SECONDS)

    def allow(self, all_in_all: float, at_once: float) -> None:
        """Set the limits, in seconds from now and for each wait."""
        self._deadline, self._at_once = time.monotonic() + all_in_all, at_once

    def readable(self) -> bool:
        """Say that it can be read; `io` asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there.

        Raises:
            TimeoutError: if nothing comes within the limits.
        """
        rest = self._deadline - time.monotonic()
        if rest <= 0:
            raise TimeoutError("the request came too slowly")
        self._connection.settimeout(min(rest, self._at_once))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(WRITE_SECONDS)


class Handler(MotoRequestHandler):
    """Reads one request within the limits."""

    def setup(self) -> None:
        """Put the deadline between socket and parser."""
        self.timeout = WRITE_SECONDS
        super().setup()
        self.rfile.close()
        self._incoming = DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def make_environ(self) -> dict[str, Any]:
        """Let the application say that it wants no more of the request."""
        environ = super().make_environ()
        environ["offline_aws.hurry"] = self._hurry
        return environ

    def _hurry(self) -> None:
        """Give the rest of a refused request little time.

        It is read at all so that its sender sees the answer, and no broken connection.
        """
        self._incoming.allow(REFUSED_SECONDS, REFUSED_SECONDS)

    def run_wsgi(self) -> None:
        """Answer; from here on it is the body that comes in."""
        self._incoming.allow(BODY_SECONDS, IDLE_SECONDS)
        super().run_wsgi()

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing: what goes wrong is in the answer."""


class Server(ThreadedWSGIServer):
    """Serves an application on 127.0.0.1, on a free port, in a thread."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 0, self._not_ready, Handler)
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.1,), daemon=True
        )
        self.address = f"127.0.0.1:{self.port}"

    @staticmethod
    def _not_ready(environ: dict, start_response: Callable) -> list[bytes]:
        start_response("503 Service Unavailable", [("Content-Length", "0")])
        return []

    def start(self, application: Callable) -> None:
        """Serve this application."""
        self.app = application
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread as soon as there is a place for one."""
        while not self._places.acquire(timeout=0.5):
            if self._BaseServer__shutdown_request:
                self.shutdown_request(request)
                return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place up."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break off."""

    def stop(self) -> None:
        """Take no more connections, and end the thread."""
        with contextlib.suppress(RuntimeError):
            self.shutdown()
            self._thread.join()
        self.server_close()
