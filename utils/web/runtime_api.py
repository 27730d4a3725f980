"""Lambda's Runtime API on this machine, under which AWS's own Python client runs.

In Lambda, a process of `awslambdaric` asks the Runtime API for the next event, calls
the handler, and posts what it returns. That process is the same here, and so is what
it asks of the API: an HTTP server on 127.0.0.1. What a handler may not do shows here as
on AWS: return what is no JSON, end its process, take longer than its time-out.

Source: AWS's Developer Guide of Lambda, "Using the Lambda runtime API" and "Defined
runtime environment variables".
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from utils.course import CourseError
from utils.web.expansion import ACCOUNT

HANDLER = "service.lambda_function.handler"
FOLDER = Path(__file__).parent  # where `service` lies, as in the packed function
VERSION = "/2018-06-01/runtime/"
LOOK = 0.05  # seconds between looks at whether the process lives
START_TIMEOUT = 60  # seconds; Lambda itself gives up after 10
NAME = "course-web"
MEMORY = 1024  # MB, as MemorySize in the template
LOG_LINES = 12
# The function's process: AWS's client, and a thread that ends it with its parent,
# whatever the handler is doing then. Its parent holds the other end of its input.
RUN = """
import os, runpy, threading

parent = os.dup(0)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

def end_with_parent():
    os.read(parent, 1)
    os._exit(1)

threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
"""
# What Lambda sets. Its credentials are those of the function's role.
VARIABLES = {
    "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(MEMORY),
    "AWS_LAMBDA_FUNCTION_NAME": NAME,
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{NAME}",
    "AWS_LAMBDA_LOG_STREAM_NAME": "here",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "TZ": ":UTC",
}


class RuntimeApiError(CourseError):
    """A function that does not start, crashed, or took too long."""


class FunctionError(RuntimeApiError):
    """What a handler raised, in Lambda's words.

    Attributes:
        report: errorType, errorMessage and stackTrace.
    """

    def __init__(self, report: dict[str, Any]):
        super().__init__(f"{report.get('errorType')}: {report.get('errorMessage')}")
        self.report = report


@dataclass
class _Call:
    """An event on its way, and what came of it."""

    event: bytes
    deadline: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    done: threading.Event = field(default_factory=threading.Event)
    body: bytes = b""
    failed: bool = False


class LambdaRuntime:
    """Calls a handler as Lambda does, in a process of its own, one event at a time.

    Use it as a context. A process that crashed, or was ended for its time-out, is
    started anew at the next call, as Lambda does.

    First used in lesson 07, section 7.

    Attributes:
        log: the file that the handler's standard output and errors go to.
    """

    def __init__(
        self,
        handler: str = HANDLER,
        environment: Mapping[str, str] | None = None,
        folder: Path = FOLDER,
        timeout: float = 28,
    ):
        self._handler, self._folder, self._timeout = handler, folder, timeout
        self._environment = dict(environment or {})
        self._calls: queue.Queue[_Call | None] = queue.Queue()
        self._current: _Call | None = None
        self._refused: bytes | None = None  # what the process says of its start
        self._ready = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory()
        self.log = Path(self._temporary.name) / "log.txt"
        self._server = _Server(("127.0.0.1", 0), _handler_for(self))

    def __enter__(self) -> LambdaRuntime:
        threading.Thread(
            target=self._server.serve_forever, args=[LOOK], daemon=True
        ).start()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()
        self._server.shutdown()
        self._server.server_close()
        self._temporary.cleanup()

    def invoke(self, event: Any) -> Any:
        """Return what the handler makes of an event.

        Raises:
            FunctionError: what the handler raised.
            RuntimeApiError: if its process ended, or took longer than the time-out.
        """
        with self._one_at_a_time:
            if self._process is None or self._process.poll() is not None:
                self._start()
            call = _Call(json.dumps(event).encode(), time.time() + self._timeout)
            self._calls.put(call)
            while not call.done.wait(LOOK):
                if self._process.poll() is not None:
                    raise self._ended("The function's process ended")
                if time.time() > call.deadline:
                    self._stop()
                    raise self._ended(f"Task timed out after {self._timeout:.2f} s")
            found = json.loads(call.body)
            if call.failed:
                raise FunctionError(found)
            return found

    def _start(self) -> None:
        """Start the process and wait until it asks for an event."""
        host, port = self._server.server_address[:2]
        self._refused = None
        self._ready.clear()
        self._stop()
        self._calls = queue.Queue()
        environment = {
            **{key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ},
            **VARIABLES,
            "_HANDLER": self._handler,
            "LAMBDA_TASK_ROOT": str(self._folder),
            "AWS_LAMBDA_RUNTIME_API": f"{host}:{port}",
            **self._environment,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN, self._handler],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # An interrupt in the notebook is not meant for it.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._ready.wait(LOOK):
            if self._process.poll() is not None:
                if self._refused is not None:
                    raise FunctionError(json.loads(self._refused))
                raise self._ended("The function's process ended at its start")
            if time.monotonic() > deadline:
                self._stop()
                raise self._ended(f"The function did not start in {START_TIMEOUT} s")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
        self._calls.put(None)  # to the thread that waits for a process that is gone

    def _ended(self, what: str) -> RuntimeApiError:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        return RuntimeApiError("\n".join([f"{what}. Its log ends:", *lines]))

    # What the HTTP server calls, from its threads.

    def _next(self) -> _Call | None:
        self._ready.set()
        self._current = self._calls.get()
        return self._current

    def _take(self, name: str, failed: bool, body: bytes) -> None:
        call = self._current
        if call is not None and call.id == name:
            call.body, call.failed = body, failed
            call.done.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the function's process may be killed while it asks."""


def _handler_for(runtime: LambdaRuntime) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one packet: two wait 40 ms for each other.
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            if self.path != f"{VERSION}invocation/next":
                self._answer(404, b"{}")
                return
            call = runtime._next()
            if call is None:  # nobody is there any more to be answered
                self.close_connection = True
                return
            arn = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{NAME}"
            headers = {
                "Lambda-Runtime-Aws-Request-Id": call.id,
                "Lambda-Runtime-Deadline-Ms": str(int(call.deadline * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": arn,
            }
            self._answer(200, call.event, headers)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.removeprefix(VERSION).split("/")
            if parts == ["init", "error"]:
                runtime._refused = body
            elif parts[0] == "invocation" and parts[2:] in (["response"], ["error"]):
                runtime._take(parts[1], parts[2] == "error", body)
            self._answer(202, b'{"status": "OK"}')

        def _answer(
            self, status: int, body: bytes, headers: Mapping[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # to a process that is gone
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().finish()

        def log_message(self, format: str, *given: Any) -> None:
            pass  # the function's log holds what is of interest

    return Handler
