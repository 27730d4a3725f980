"""The front end: `/ping`, `/invocations`, the queue, the batches, and the workers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import queue
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from . import async_replies
from .layout import (
    STARTING_RULES,
    HangError,
    LoadError,
    ServedModel,
    find_models,
    never_ready,
    no_requirements,
)
from .worker import send_at_once

log = logging.getLogger("djl_serving")

MAX_REQUEST_BYTES = 64 * 1024 * 1024
LOG_LINES_KEPT = 200
HIDDEN_HEADERS = ("x-amzn-sagemaker-custom-attributes",)
PYTHON_START_TIMEOUT = 120  # seconds until a new process must have connected
# Variables of this machine that a container gets, too: where programs and caches are,
# how many threads there are, and whether the network may be used. No token, no key.
KEPT_VARIABLES = re.compile(
    r"PATH|PYTHONPATH|VIRTUAL_ENV|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT"
    r"|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)|(OMP|MKL|OPENBLAS)_NUM_THREADS"
    # How threads wait: beside other programs, six times the speed hangs on it.
    r"|GOMP_SPINCOUNT|KMP_BLOCKTIME|OMP_WAIT_POLICY"
    r"|CUDA_VISIBLE_DEVICES|TOKENIZERS_PARALLELISM|XDG_CACHE_HOME"
    r"|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE"
)
READ_TIMEOUT = 60  # seconds for a request to arrive whole, and for each write
MAX_CONNECTIONS = 256  # each has a thread
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
NO_PART_NAME = (
    'Cannot invoke "io.netty.handler.codec.http.multipart.Attribute.getValue()" '
    'because "nameAttribute" is null'
)
CHUNK_TIMEOUT = 120  # seconds; the real server's chunked_read_timeout
RESTART_PAUSE = 0.5  # seconds between tries of a worker that never gets ready


class FrontEndError(Exception):
    """A reply that the front end gives in the handler's place."""

    def __init__(self, status: int, kind: str, message: str, reason: str | None = None):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.reason = reason or _reason(status)

    @property
    def body(self) -> bytes:
        """Return the reply as JSON."""
        return front_end_json(
            {"code": self.status, "type": self.kind, "message": self.message}
        )


def front_end_json(value: Any) -> bytes:
    """Return JSON as the front end writes it, with spaces and a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _one_line(text: object) -> str:
    """Return text as a line of HTTP's head can hold it: Latin-1, no line ends."""
    return " ".join(str(text).split()).encode("latin-1", "replace").decode("latin-1")


def kept_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a process needs to run here, and nothing that could be a secret."""
    return {
        name: value
        for name, value in environment.items()
        if KEPT_VARIABLES.fullmatch(name)
    }


@dataclass
class Job:
    """One request on its way through the queue; `events` carry the reply back.

    Events are tuples: ("whole", code, message, properties, pairs), or ("stream", code,
    message, properties) followed by ("chunk", bytes) … ("end",), or ("error", error);
    ("wait",) says that a stream is to follow, and changes nothing else.
    """

    properties: dict[str, str]
    content: list[tuple[str, bytes]]
    events: queue.Queue = field(default_factory=queue.Queue)
    chunk_timeout: float | None = None  # seconds for each event after the first

    def next_event(self) -> tuple:
        """Wait for the next event.

        Raises:
            BrokenPipeError: if a stream stays silent; the connection is to be cut.
        """
        try:
            return self.events.get(timeout=self.chunk_timeout)
        except queue.Empty:
            log.error("java.lang.IllegalStateException: Read chunk timeout.")
            raise BrokenPipeError("a stream has stayed silent") from None


class Worker:
    """A Python process with its own copy of the model."""

    def __init__(self, model: ServedModel, log_tail: deque):
        self.model = model
        self.options = model.options
        self.device_id = "0" if os.path.exists("/dev/nvidia0") else "-1"
        self.fixed = {
            "device_id": self.device_id,
            "handler": model.handler,
            "cluster_size": "1",
            "model_dir": str(model.folder),
        }
        if "tensor_parallel_degree" in self.options:
            self.fixed["tensor_parallel_degree"] = self.options[
                "tensor_parallel_degree"
            ]
        self._log_tail = log_tail
        self.process: subprocess.Popen | None = None
        self.connection: Connection | None = None

    def start(self) -> None:
        """Start the process, import the entry point, and send the warm-up request.

        Raises:
            LoadError: if the model does not load; it says why.
            HangError: if DJL would try again for ever.
        """
        self._spawn()
        kind, *rest = self._receive(PYTHON_START_TIMEOUT, "importing the entry point")
        if kind == "failed":
            self.stop()
            raise LoadError(f"{rest[0]} (Python stream closed unexpectedly).")
        properties = {**self.options, "engine": self.model.engine, **self.fixed}
        self.connection.send((properties, []))
        kind, *rest = self._receive(
            self.model.model_loading_timeout, "the warm-up request"
        )
        if kind == "failed":
            self.stop()
            failure = HangError if self.model.async_mode else LoadError
            awaited = "'await' expression" in rest[0]
            raise failure(never_ready(self.model) if awaited else _sentence(rest[0]))
        if kind == "stream":
            while self._receive(self.model.predict_timeout, "the warm-up")[0] != "end":
                pass
        if rest[0] >= 300:
            self.stop()
            raise LoadError(
                _sentence(
                    f"Failed to initialize model: {rest[1]}{_error_text(kind, rest)}"
                )
            )

    def _spawn(self) -> None:
        key = secrets.token_bytes(32)
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            # Private, but the only way to bound the wait for a process that died early.
            listener._listener._socket.settimeout(1)
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-u",
                    str(Path(__file__).with_name("worker.py")),
                    str(listener.address[1]),
                ],
                env={
                    **self.model.environment,
                    "DJL_STAND_IN_KEY": key.hex(),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A signal for the server's group is the server's to handle.
                start_new_session=True,
            )
            threading.Thread(target=self._copy_log, daemon=True).start()
            deadline = time.monotonic() + PYTHON_START_TIMEOUT
            while True:
                try:
                    self.connection = listener.accept()
                    send_at_once(self.connection)
                    break
                except TimeoutError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        self.stop()
                        raise LoadError(
                            "The Python process did not start. Look at its log."
                        ) from None
        self.connection.send(
            {
                "folder": str(self.model.folder),
                "entry_point": self.model.entry_point,
                "async_mode": self.model.async_mode,
            }
        )

    def _copy_log(self) -> None:
        for line in self.process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            self._log_tail.append(text)
            log.info("W-%s %s", self.process.pid, text)

    def _receive(self, timeout: float, doing: str) -> tuple:
        """Wait for the next message of the process.

        Args:
            timeout: in seconds.
            doing: what the process is doing, for the error.

        Raises:
            LoadError: if the process ended or took too long.
        """
        try:
            if self.connection.poll(timeout):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            self.stop()
            raise LoadError(
                f"Python worker disconnected during {doing}"
                f" (exit code {self.process.returncode})."
            ) from None
        self.stop()
        raise LoadError(
            f"java.util.concurrent.TimeoutException: {doing} took longer "
            f"than {timeout} s."
        )

    def predict(self, jobs: Sequence[Job]) -> None:
        """Answer the jobs, one alone or several as a batch.

        Raises:
            FrontEndError: if the process ended or took too long; it is gone then.
        """
        timeout = self.model.predict_timeout
        try:
            self.connection.send(self._request(jobs))
            self._forward(jobs, timeout)
        except (EOFError, ConnectionError):
            self.stop()
            raise FrontEndError(
                503,
                "WlmException",
                "java.util.concurrent.ExecutionException: java.io.IOException: "
                "Python worker disconnected.",
            ) from None
        except TimeoutError:
            self.stop()
            raise FrontEndError(
                503, "WlmException", "java.util.concurrent.TimeoutException"
            ) from None

    def _request(self, jobs: Sequence[Job]) -> tuple[dict, list]:
        if len(jobs) == 1:
            return {**jobs[0].properties, **self.fixed}, jobs[0].content
        properties = {"batch_size": str(len(jobs)), **self.fixed}
        content = []
        for index, job in enumerate(jobs):
            prefix = f"batch_{index:03d}."
            properties |= {prefix + key: val for key, val in job.properties.items()}
            content += [(prefix + key, value) for key, value in job.content]
        return properties, content

    def _forward(self, jobs: Sequence[Job], timeout: float) -> None:
        """Pass what the process sends on to the jobs, until it is complete.

        Raises:
            TimeoutError: if nothing comes for `timeout` seconds.
        """
        while True:
            if not self.connection.poll(timeout):
                raise TimeoutError
            event = self.connection.recv()
            if event[0] == "whole" and len(jobs) > 1:
                _share(event, jobs)
            else:
                for job in jobs:
                    job.events.put(event)
            if event[0] in ("whole", "end"):
                return

    def stop(self) -> None:
        """End the process at once, even if it is busy."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()


class AsyncWorker(Worker):
    """A process whose handler has all requests at once (option.async_mode=true).

    Neither the size of the queue nor `predict_timeout` bounds it, as recorded.
    """

    def __init__(self, model: ServedModel, log_tail: deque):
        super().__init__(model, log_tail)
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._begun: set[int] = set()  # streams of which a piece has been sent
        self._changing = threading.Lock()
        self._lost = self._stopping = False
        self._listener: threading.Thread | None = None

    def predict(self, jobs: Sequence[Job]) -> None:
        """Hand a job to the process; `listen` hears of the reply.

        A batch is refused: an asynchronous handler makes one reply.
        """
        if len(jobs) > 1:
            fault = f"Batch output size mismatch, expected: {len(jobs)}, actual: 1"
            for job in jobs:
                error = FrontEndError(400, "TranslateException", fault)
                job.events.put(("error", error))
            return
        (job,) = jobs
        job.properties["request_tracking_id"] = str(uuid.uuid4())
        with self._changing:
            if self._lost:
                self._end(job, begun=False)
                return
            number = next(self._numbers)
            self._jobs[number] = job
            # If the process is gone, `listen` answers this job with the others.
            with contextlib.suppress(OSError):
                self.connection.send((number, *self._request(jobs)))

    def listen(self, on_loss: Callable[[], None]) -> None:
        """Pass on what the process sends until it ends or sends what has no meaning.

        Args:
            on_loss: called before the jobs that are left get their error.
        """
        self._listener = threading.current_thread()
        try:
            while True:
                self._pass_on(*self.connection.recv())
        except (EOFError, OSError):
            if not self._stopping:
                log.error("Python worker disconnected.")
        except Exception:
            log.exception("%s", async_replies.LOST)
        self.process.kill()
        on_loss()
        with self._changing:
            self._lost = True
            for number, job in self._jobs.items():
                self._end(job, number in self._begun)
            self._jobs.clear()

    def _pass_on(self, number: int, kind: str, *reply: Any) -> None:
        if kind == "done":
            self._jobs.pop(number, None)
            self._begun.discard(number)
            return
        job = self._jobs.get(number)
        if job is None:
            return
        if kind == "generator":
            job.chunk_timeout = CHUNK_TIMEOUT
            job.events.put(("wait",))
            return
        events = async_replies.events_of(reply, number in self._begun)
        for event in events:
            job.events.put(event)
        if events[0][0] == "stream":
            self._begun.add(number)
        if events[-1][0] in ("whole", "end"):
            self._jobs.pop(number)  # what comes after the last piece is not sent

    @staticmethod
    def _end(job: Job, begun: bool) -> None:
        for event in async_replies.failed(500, async_replies.LOST, begun):
            job.events.put(event)

    def stop(self) -> None:
        """End the process at once, and with it the thread that listens."""
        self._stopping = True
        if self.process is not None:
            self.process.kill()
        if self._listener not in (None, threading.current_thread()):
            self._listener.join()
        super().stop()


def _error_text(kind: str, rest: Sequence) -> str:
    """Return the field `error` of a reply, after a colon, if it has one."""
    try:
        return ": " + json.loads(rest[3][0][1])["error"] if kind == "whole" else ""
    except (IndexError, KeyError, ValueError, TypeError):
        return ""


def _sentence(text: object) -> str:
    """Return what another program said, with a full stop at its end."""
    said = str(text).strip()
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _share(event: tuple, jobs: Sequence[Job]) -> None:
    """Hand each member of a batch its own entry of the reply."""
    _, code, message, properties, pairs = event
    if code >= 300:
        for job in jobs:
            job.events.put(event)
        return
    contents: dict[int, list] = {index: [] for index in range(len(jobs))}
    fault = None
    if len(pairs) != len(jobs):
        fault = (
            f"Batch output size mismatch, expected: {len(jobs)}, actual: {len(pairs)}"
        )
    for key, value in pairs:
        prefix, _, name = str(key).partition(".")
        number = prefix.removeprefix("batch_")
        if fault is None and number.isdigit() and int(number) in contents:
            contents[int(number)].append((name, value))
        else:
            fault = fault or f"Unexpected batch output key: {key}"
    for index, job in enumerate(jobs):
        if fault:
            job.events.put(("error", FrontEndError(400, "TranslateException", fault)))
        else:
            job.events.put(("whole", code, message, properties, contents[index]))


class ModelRunner:
    """A model with its queue and its workers."""

    def __init__(self, model: ServedModel):
        self.model = model
        self.failed = False
        self.log_tail: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._workers: list[Worker] = []
        self._queue_size = self._batch_size = 1
        self._batch_delay = 0.0

    def start(self) -> None:
        """Start the workers and let them take jobs from the queue.

        Raises:
            LoadError: if the model breaks a rule of the server, or does not load.
        """
        for rule in STARTING_RULES:
            for finding in rule(self.model):
                if finding.level == "error":
                    raise LoadError(finding)
        self._queue_size = self.model.job_queue_size
        self._batch_size = self.model.batch_size
        self._batch_delay = self.model.max_batch_delay
        for _ in range(self.model.workers):
            kind = AsyncWorker if self.model.async_mode else Worker
            worker = kind(self.model, self.log_tail)
            self._workers.append(worker)
            worker.start()
        self._idle = len(self._workers)
        for worker in self._workers:
            threading.Thread(target=self._work, args=(worker,), daemon=True).start()
            if isinstance(worker, AsyncWorker):
                listen, loss = worker.listen, (self._fail,)
                threading.Thread(target=listen, args=loss, daemon=True).start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            FrontEndError: if the model has failed or its queue is full.
        """
        with self._changed:
            if self.failed:
                raise self._not_ready()
            room = self._queue_size - len(self._jobs)
            # As in DJL, the last place in the queue is kept free while all are busy.
            full = room <= 0 or (room == 1 and self._idle == 0)
            if full and not self.model.async_mode:
                raise FrontEndError(
                    503,
                    "WlmCapacityException",
                    f"Worker queue capacity exceeded for model: {self.model.name}",
                )
            self._jobs.append(job)
            self._changed.notify_all()

    def _not_ready(self) -> FrontEndError:
        return FrontEndError(
            503, "WlmException", f"Model is not ready: {self.model.name}"
        )

    def _next_batch(self) -> list[Job]:
        """Wait for a job, then up to `max_batch_delay` for others to join it.

        Returns:
            the jobs; none if the model has failed.
        """
        with self._changed:
            while not self._jobs:
                if self.failed:
                    return []
                self._changed.wait()
            self._idle -= 1
            batch = [self._jobs.popleft()]
            deadline = time.monotonic() + self._batch_delay
            while len(batch) < self._batch_size:
                if self._jobs:
                    batch.append(self._jobs.popleft())
                    continue
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self.failed:
                    break
                self._changed.wait(remaining)
            return batch

    def _work(self, worker: Worker) -> None:
        """Give a worker batch after batch until the model fails."""
        while batch := self._next_batch():
            try:
                worker.predict(batch)
            except Exception as failure:
                error = failure
                if not isinstance(failure, FrontEndError):
                    # Whatever it was: who waits is told, and the model counts as lost.
                    log.exception("the thread of a worker failed")
                    worker.stop()
                    said = f"{type(failure).__name__}: {failure}"
                    error = FrontEndError(503, "WlmException", said)
                log.error("%s", error)
                for job in batch:
                    job.events.put(("error", error))
                self._fail()
                return
            with self._changed:
                self._idle += 1

    def _fail(self) -> None:
        """Refuse all jobs: DJL does not heal a model that has lost one worker."""
        with self._changed:
            self.failed = True
            while self._jobs:
                self._jobs.popleft().events.put(("error", self._not_ready()))
            self._changed.notify_all()

    def stop(self) -> None:
        """End the workers and take no more jobs."""
        with self._changed:
            self.failed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.stop()


class Server:
    """What the container runs: the models of a store behind one port.

    Use it as a context manager, or call `load`, `listen` and `stop`.
    """

    def __init__(
        self,
        store: Path,
        port: int = 0,
        environment: dict[str, str] | None = None,
        allow_requirements: bool = False,
    ):
        """Prepare a server; nothing starts before `load`.

        Args:
            store: folder with the unpacked archive.
            port: to listen on, of 127.0.0.1 only; 0 takes a free one.
            environment: variables of the container; of this process's own it gets
                `kept_variables` only.
            allow_requirements: serve a model with requirements.txt, whose packages
                are never installed here; without it such a model is refused.
        """
        self.store = store.resolve()
        self.port = port
        self.environment = {**kept_variables(os.environ), **(environment or {})}
        self.allow_requirements = allow_requirements
        self.models: dict[str, ModelRunner] = {}
        self._http: ThreadingHTTPServer | None = None

    def load(self, give_up_after: int | None = None) -> None:
        """Start every model of the store.

        Args:
            give_up_after: tries of a model that DJL would try again for ever; None
                for as many as it takes.

        Raises:
            LoadError: if one does not load; the server ends then.
        """
        tries = 0
        while True:
            try:
                self._load_once()
                return
            except HangError as error:
                tries += 1
                self.stop()
                log.error("worker restarts, try %d: %s", tries, error)
                if tries == give_up_after:
                    raise LoadError(
                        f"{_sentence(error)} The server restarts the worker for ever "
                        "and never opens its port."
                    ) from error
                time.sleep(RESTART_PAUSE)
            except LoadError:
                self.stop()
                raise

    def _load_once(self) -> None:
        self.models = {}
        for model in find_models(self.store, self.environment):
            self._check_requirements(model)
            runner = self.models[model.name] = ModelRunner(model)
            runner.start()

    def _check_requirements(self, model: ServedModel) -> None:
        """Refuse a requirements.txt unless allowed: nothing is installed here."""
        for finding in no_requirements(model):
            if not self.allow_requirements:
                allow = "or allow it with --allow-requirements: nothing is installed"
                remedy = f"{finding.remedy}, {allow} here"
                raise LoadError(dataclasses.replace(finding, remedy=remedy))
            log.warning("%s Nothing is installed here.", finding)

    def listen(self) -> int:
        """Open the port and answer in threads; return the port."""
        server = self

        class Handler(FrontEnd):
            server_state = server

        self._http = _HttpServer(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self.port

    @property
    def log_tail(self) -> list[str]:
        """Return the last lines that the workers wrote."""
        return [line for runner in self.models.values() for line in runner.log_tail]

    def stop(self) -> None:
        """Close the port and end the workers."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
        for runner in self.models.values():
            runner.stop()

    def __enter__(self) -> Server:
        self.load(give_up_after=1)
        self.listen()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def find(self, name: str | None) -> ModelRunner:
        """Return the model of a name, or the only one.

        Raises:
            FrontEndError: 400 if no name is given and there is not just one model;
                404 for an unknown name.
        """
        if name is None:
            if len(self.models) != 1:
                message = "Parameter model_name is required."
                raise FrontEndError(400, "BadRequestException", message, message)
            return next(iter(self.models.values()))
        if name not in self.models:
            raise FrontEndError(
                404, "ModelNotFoundException", f"Model or workflow not found: {name}"
            )
        return self.models[name]

    def health(self) -> tuple[int, dict]:
        """Return the status and the body of a reply to /ping."""
        status = {
            name: {"status": "FAILED" if runner.failed else "Healthy"}
            for name, runner in self.models.items()
        }
        failed = any(runner.failed for runner in self.models.values())
        return (500 if failed else 200), status


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, *arguments: Any):
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, if there is one left."""
        if not self._places.acquire(blocking=False):
            log.warning("refused a connection: %d are open", MAX_CONNECTIONS)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection, then give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection from %s broke", client_address, exc_info=True)


class FrontEnd(BaseHTTPRequestHandler):
    """One connection to the server."""

    server_state: Server
    timeout = READ_TIMEOUT
    protocol_version = "HTTP/1.1"
    server_version = "djl_python"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024

    def __getattr__(self, name: str) -> Any:
        # The real front end takes any method on /ping and /invocations.
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log a request, where debugging is on."""
        log.debug(format, *arguments)

    def _answer(self) -> None:
        try:
            self._refuse_foreign()
            body = self._read_body()
            if body is None:
                return
            self._route(body)
        except FrontEndError as error:
            self._reply(
                error.status,
                error.reason,
                {"content-type": "application/json"},
                error.body,
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse_foreign(self) -> None:
        """Refuse what a web page in a browser on this machine could send.

        A page of another site names itself in `Origin`; one whose name was made to
        mean 127.0.0.1 (DNS rebinding) gives that name as `Host`.

        Raises:
            FrontEndError: 403; the connection ends with it.
        """
        for name, prefix in (("Host", "//"), ("Origin", "")):
            value = self.headers.get(name)
            if value is None:
                continue
            try:
                host = urllib.parse.urlsplit(prefix + value).hostname
            except ValueError:
                host = None
            if host not in LOCAL_HOSTS:
                self.close_connection = True
                message = f"{name} {value!r} is not of this machine: use 127.0.0.1."
                raise FrontEndError(403, "ForbiddenException", message)

    def _bad(self, problem: str) -> FrontEndError:
        """Return the reply to a request whose end is unknown; close after it."""
        self.close_connection = True
        return FrontEndError(400, "BadRequestException", problem)

    def _read_body(self) -> bytes | None:
        """Read the body; return None if it was too long and has been answered.

        Raises:
            FrontEndError: 400 if the body is not as announced or does not arrive.
        """
        deadline = time.monotonic() + self.timeout
        try:
            if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
                return self._read_chunks(deadline)
            announced = (self.headers.get("Content-Length") or "0").strip()
            if not (announced.isascii() and announced.isdigit()):
                raise self._bad(
                    f"Content-Length: expected a number of bytes, found {announced!r}"
                )
            length = int(announced)
            if length <= MAX_REQUEST_BYTES:
                return self._read(length, deadline)
            self._skip(length, deadline)
        except TimeoutError:
            raise self._bad(
                f"The request did not arrive whole within {self.timeout:g} s: send as "
                "many bytes as Content-Length announces."
            ) from None
        return self._too_large()

    def _too_large(self) -> None:
        self.close_connection = True
        # Python 3.13 knows this status under another phrase than the real server.
        self._reply(413, "Request Entity Too Large", {}, b"")

    def _parts(self, length: int, deadline: float) -> Iterator[bytes]:
        """Yield what arrives of `length` bytes.

        Raises:
            FrontEndError: 400 if the client stops sending before the end.
            TimeoutError: if the bytes are not there in time.
        """
        left = length
        while left:
            if time.monotonic() > deadline:
                raise TimeoutError
            part = self.rfile.read1(min(left, 1 << 20))
            if not part:
                raise self._bad(
                    f"The body ended after {length - left} of {length} bytes."
                )
            left -= len(part)
            yield part

    def _read(self, length: int, deadline: float) -> bytes:
        return b"".join(self._parts(length, deadline))

    def _skip(self, length: int, deadline: float) -> None:
        """Read and drop: a client that is still sending would not read a reply."""
        for _ in self._parts(length, deadline):
            pass

    def _read_chunks(self, deadline: float) -> bytes | None:
        """Read a body in chunks; return None if it was too long and is answered.

        Raises:
            FrontEndError: 400 if it is not made of chunks.
            TimeoutError: if it is not there in time.
        """
        parts: list[bytes] = []
        total = 0
        while True:
            line = self.rfile.readline(1024).split(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                size = -1
            if size < 0:
                raise self._bad(f"Chunk size: expected a number, found {line!r}")
            if not size:
                break
            total += size
            if total > MAX_REQUEST_BYTES:
                self._skip(size, deadline)
                return self._too_large()
            parts.append(self._read(size, deadline))
            self.rfile.readline(1024)
        while self.rfile.readline(1024).strip():
            pass
        return b"".join(parts)

    def _route(self, body: bytes) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = parts.path.rstrip("/")
        query = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
        if self.command == "OPTIONS":
            self._json(200, {})
        elif path == "/ping":
            self._json(*self.server_state.health())
        elif path == "/invocations":
            self._invoke(None, query, body)
        elif path.startswith("/predictions/"):
            self._invoke(path.split("/")[2], query, body)
        else:
            raise FrontEndError(
                404,
                "ResourceNotFoundException",
                "Requested resource is not found, please refer to API document.",
            )

    def _invoke(self, name: str | None, query: list, body: bytes) -> None:
        content = [(key, value.encode("utf-8")) for key, value in query]
        content += self._parse_body(body)
        properties = {
            key: value
            for key, value in self.headers.items()
            if key.lower() not in HIDDEN_HEADERS
        }
        if name is None:
            name = dict(query).get("model_name") or properties.get("model_name")
        runner = self.server_state.find(name)
        job = Job({**properties, "requestId": str(uuid.uuid4())}, content)
        runner.submit(job)
        kind, *rest = job.next_event()
        while kind == "wait":
            kind, *rest = job.next_event()
        if kind == "error":
            raise rest[0]
        code, message, headers = rest[:3]
        reason = "OK" if code == 200 else message
        if kind == "whole":
            self._reply(code, reason, headers, rest[3][0][1] if rest[3] else b"")
        else:
            self._stream(job, code, reason, headers)

    def _parse_body(self, body: bytes) -> list[tuple[str, bytes]]:
        """Return the contents of a body: the fields of a form, or else one, "data"."""
        content_type = self.headers.get("Content-Type", "")
        if content_type.startswith("application/x-www-form-urlencoded"):
            fields = urllib.parse.parse_qsl(
                body.decode("utf-8", "replace"), keep_blank_values=True
            )
            return [(key, value.encode("utf-8")) for key, value in fields]
        if content_type.startswith("multipart/form-data"):
            head = f"Content-Type: {content_type}\r\n\r\n".encode()
            message = BytesParser(policy=HTTP).parsebytes(head + body)
            fields = []
            for part in message.iter_parts():
                name = part.get_param("name", header="content-disposition")
                if name is None:
                    raise FrontEndError(500, "ErrorDataDecoderException", NO_PART_NAME)
                fields.append((name, part.get_payload(decode=True) or b""))
            return fields
        return [("data", body)]

    def _stream(self, job: Job, code: int, reason: str, headers: dict) -> None:
        event = job.next_event()
        if event[0] == "end":
            self._reply(code, reason, headers, b"")
            return
        self._head(code, reason, {**headers, "transfer-encoding": "chunked"})
        while event[0] == "chunk":
            if event[1]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event[1]), event[1]))
                self.wfile.flush()
            event = job.next_event()
        if event[0] == "error":
            self.close_connection = True  # no last chunk: the client sees it broke off
            return
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _json(self, status: int, value: Any) -> None:
        headers = {"content-type": "application/json"}
        self._reply(status, _reason(status), headers, front_end_json(value))

    def _head(self, status: int, reason: str, headers: dict) -> None:
        self.send_response(status, _one_line(reason))
        for key, value in headers.items():
            self.send_header(_one_line(key), _one_line(value))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def _reply(self, status: int, reason: str, headers: dict, body: bytes) -> None:
        if status == HTTPStatus.NO_CONTENT:
            body = b""
        else:
            headers = {**headers, "content-length": str(len(body))}
        self._head(status, reason, headers)
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
