"""What the tests of the web service stand on.

`FakeEndpoint` is a server on this machine that speaks as SageMaker's runtime does, so
that time-outs, retries, the breaker and the reading of streams are those of production.
What it does with a request is a function; the first below are those that tests need.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import uvicorn
from moto.server import ThreadedMotoServer

from utils.offline_aws.invocations import PAYLOAD_PART, encode_event
from utils.web.service.app import create_app
from utils.web.service.endpoint import EndpointClient, runtime_client
from utils.web.service.records import Records
from utils.web.service.settings import Settings, Version

# Stands for whatever a client sends: it may be found nowhere else.
CANARY = "zq7canary"
QUESTION = "What is Amazon S3?"
ANSWER = "Amazon S3 stores objects."
TABLE = "answers"
SETTINGS = Settings(
    endpoint="fake",
    table=TABLE,
    versions=(
        Version("tuned", "After fine-tuning.", None, "tuned", True),
        Version("base", "Before.", "base", "tuned", False),
    ),
    timeout=1.0,
    breaker_failures=3,
    breaker_seconds=0.3,
)
KEYS = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
# One for all, since its first client takes half a second.
SESSION = boto3.Session(region_name="us-east-1", **KEYS)

Behaviour = Callable[["_Handler"], None]


# --- what an endpoint does with a request ---------------------------------------------


def completion(text: str = ANSWER, **more: Any) -> dict[str, Any]:
    """Return a `chat.completion` as the entry point sends it."""
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        "notes": ["note-1"],
        **more,
    }


def chunks(*texts: str, notes: Iterable[str] = ("note-1",)) -> list[dict[str, Any]]:
    """Return the chunks of a stream as the entry point sends them."""

    def chunk(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        return {"object": "chat.completion.chunk", "choices": [choice], **more}

    first, *others = [chunk(text) for text in texts]
    usage = {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 9}
    return [
        first | {"notes": list(notes)},
        *others,
        chunk("", "stop"),
        {"object": "chat.completion.chunk", "choices": [], "usage": usage},
    ]


def as_lines(parts: Iterable[dict[str, Any]], form: str = "{}\n") -> bytes:
    """Return chunks as lines: of JSON, or in another form such as "data: {}\\n\\n"."""
    return b"".join(
        form.replace("{}", json.dumps(part, ensure_ascii=False)).encode()
        for part in parts
    )


def answers(reply: Any = None, variant: str = "tuned", after: float = 0) -> Behaviour:
    """Answer whole; a stream, where one is asked for, comes in one part."""

    def act(handler: _Handler) -> None:
        time.sleep(after)
        if handler.wants_stream:
            streams([as_lines(chunks(ANSWER))], variant)(handler)
            return
        body = reply if isinstance(reply, bytes) else None
        handler.whole(200, body or json.dumps(reply or completion()).encode(), variant)

    return act


def streams(
    parts: Iterable[bytes],
    variant: str = "tuned",
    gap: float = 0,
    ending: str = "end",
) -> Behaviour:
    """Stream parts, each an event.

    Args:
        parts: of the body.
        variant: that answers.
        gap: seconds between two of them.
        ending: "end"; "wait" for the client to leave; "die" without an end; "fault"
            for an exception of SageMaker; "timeout" for its exception of that kind.
    """

    def act(handler: _Handler) -> None:
        handler.begin(variant)
        for part in parts:
            handler.event(part)
            time.sleep(gap)
        if ending == "wait":
            handler.wait_for_leaving()
        elif ending == "end":
            handler.chunk(b"")
        elif ending == "die":
            handler.close_connection = True
        else:
            text = "Your invocation timed out" if ending == "timeout" else CANARY
            headers = {
                ":message-type": "exception",
                ":exception-type": "ModelStreamError",
                ":content-type": "application/json",
            }
            body = json.dumps({"ErrorCode": "X", "Message": text}).encode()
            handler.chunk(encode_event(headers, body))
            handler.chunk(b"")

    return act


def refuses(code: str, status: int, text: str = CANARY, **more: Any) -> Behaviour:
    """Answer with an error of AWS."""

    def act(handler: _Handler) -> None:
        body = json.dumps({"message": text, "Message": text, **more}).encode()
        handler.whole(status, body, error=code)

    return act


def model_fails(status: int) -> Behaviour:
    """Answer with an error of the model, as AWS passes it on; 0 is a time-out."""
    return refuses(
        "ModelError", 424, OriginalStatusCode=status, OriginalMessage=f"bad {CANARY}"
    )


def throttles() -> Behaviour:
    """Answer that there are too many requests."""
    return refuses("ThrottlingException", 400)


def is_silent(seconds: float = 30) -> Behaviour:
    """Answer nothing, until the client has left."""

    def act(handler: _Handler) -> None:
        handler.wait_for_leaving(seconds)
        handler.close_connection = True

    return act


def dies(sent: bytes = b"") -> Behaviour:
    """Close the connection without an answer, or within its first bytes."""

    def act(handler: _Handler) -> None:
        handler.wfile.write(sent)
        handler.close_connection = True

    return act


def drips(parts: int, gap: float) -> Behaviour:
    """Send a whole answer too slowly, but never silent for long."""

    def act(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(parts))
        handler.end_headers()
        for _ in range(parts):
            if handler.has_left():
                break
            handler.wfile.write(b" ")
            time.sleep(gap)
        handler.close_connection = True

    return act


# --- the endpoint ---------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request that reached the endpoint."""

    at: float
    stream: bool
    variant: str | None
    body: dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each reply takes 40 ms
    server: _Server

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.wants_stream = self.path.endswith("-response-stream")
        variant = self.headers.get("X-Amzn-SageMaker-Target-Variant")
        asked = Asked(time.monotonic(), self.wants_stream, variant, json.loads(body))
        with self.server.lock:
            self.server.asked.append(asked)
            self.server.running += 1
            planned = self.server.planned
            behaviour = planned.pop(0) if planned else self.server.usual
        try:
            behaviour(self)
        except OSError:
            self.server.left.set()
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.running -= 1

    def whole(
        self, status: int, body: bytes, variant: str = "", error: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if variant:
            self.send_header("x-Amzn-Invoked-Production-Variant", variant)
        if error:
            self.send_header("x-amzn-ErrorType", error)
        self.end_headers()
        self.wfile.write(body)

    def begin(self, variant: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.amazon.eventstream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("x-Amzn-Invoked-Production-Variant", variant)
        self.end_headers()

    def event(self, part: bytes) -> None:
        self.chunk(encode_event({":message-type": "event", **PAYLOAD_PART}, part))

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def has_left(self, seconds: float = 0) -> bool:
        readable, _, _ = select.select([self.connection], [], [], seconds)
        return bool(readable)

    def wait_for_leaving(self, seconds: float = 30) -> None:
        if self.has_left(seconds):
            self.server.left.set()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.left = threading.Event()
        self.asked: list[Asked] = []
        self.planned: list[Behaviour] = []
        self.usual: Behaviour = answers()
        self.running = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave are what some tests are about


class FakeEndpoint:
    """An endpoint of SageMaker on this machine."""

    def __init__(self) -> None:
        self._server = _Server()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> FakeEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def does(self, *behaviours: Behaviour, usual: Behaviour | None = None) -> None:
        """Do this with the next requests, and then the usual again.

        Args:
            behaviours: for one request each.
            usual: for all others from now on.
        """
        with self._server.lock:
            self._server.planned[:] = behaviours
            self._server.usual = usual or self._server.usual

    @property
    def asked(self) -> list[Asked]:
        """Return the requests so far."""
        return list(self._server.asked)

    @property
    def running(self) -> int:
        """Return how many requests are under way."""
        return self._server.running

    def client_left(self, seconds: float = 5) -> bool:
        """Wait until a client has left a request unanswered; return whether one has."""
        return self._server.left.wait(seconds)


class NearbySession:
    """A boto3 session whose clients reach servers on this machine only."""

    def __init__(self, urls: dict[str, str]):
        self._urls = urls

    def client(self, name: str, **more: Any) -> Any:
        return SESSION.client(name, endpoint_url=self._urls[name], **more)


def endpoint_client(
    endpoint: FakeEndpoint, settings: Settings = SETTINGS, **more: Any
) -> EndpointClient:
    """Return production's client, of a fake endpoint."""
    session = NearbySession({"sagemaker-runtime": endpoint.url})
    return EndpointClient(settings, runtime_client(settings, session), **more)


# --- the table ------------------------------------------------------------------------


@contextlib.contextmanager
def moto_tables() -> Iterator[NearbySession]:
    """Yield a session with a DynamoDB of moto's, without tables; they end with it.

    moto holds its tables for the whole process, so that another file's would be found.
    """
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    session = NearbySession({"dynamodb": f"http://{host}:{port}"})
    try:
        delete_all_tables(session)
        yield session
        delete_all_tables(session)
    finally:
        server.stop()


def delete_all_tables(session: NearbySession) -> None:
    """Delete each table of the account and region."""
    for name in session.client("dynamodb").list_tables()["TableNames"]:
        delete_table(session, name)


def create_table(session: Any, name: str = TABLE) -> None:
    """Create the table as the template does."""
    session.client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "request_id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "request_id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def delete_table(session: NearbySession, name: str = TABLE) -> None:
    """Delete the table."""
    session.client("dynamodb").delete_table(TableName=name)


class MemoryRecords(Records):
    """Records that a dictionary holds: for tests that are not about the table."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def put_answer(self, **row: Any) -> None:
        self.rows[row["request_id"]] = row

    def put_feedback(self, request_id: str, thumb: str, comment: str) -> str | None:
        row = self.rows.get(request_id)
        if row is None:
            return None
        row |= {"thumb": thumb, "comment": comment}
        return row["version"]

    def all(self) -> list[dict[str, Any]]:
        return list(self.rows.values())


# --- the app --------------------------------------------------------------------------


def web_app(
    endpoint: FakeEndpoint,
    records: Records | None = None,
    settings: Settings = SETTINGS,
    **changes: Any,
) -> Any:
    """Return the app before a fake endpoint.

    Args:
        endpoint: to ask.
        records: to write; in memory by default.
        settings: of the service.
        changes: of the settings.
    """
    settings = replace(settings, **changes)
    client = endpoint_client(endpoint, settings)
    return create_app(settings, client, records or MemoryRecords())


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an app by uvicorn in a thread; yield its address."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_config=None,
        access_log=False,  # it repeats paths
        lifespan="off",
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=20)


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read server-sent events strictly: name, and one line of JSON."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        assert name.startswith("event: ") and data.startswith("data: "), block
        found.append((name.removeprefix("event: "), json.loads(data[6:])))
    return found


def log_lines(out: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what stdout says: lines of the log, and metrics."""
    lines = [json.loads(line) for line in out.splitlines()]
    logs = [line for line in lines if "_aws" not in line]
    return logs, [line for line in lines if "_aws" in line]


def wait_until(holds: Callable[[], bool], seconds: float = 5) -> bool:
    """Wait until something holds; return whether it does."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()
