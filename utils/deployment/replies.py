"""One request to an endpoint or a server, and what its client sees of the reply.

`Url` asks a server's port, `Endpoint` asks SageMaker by boto3; a `Reply` holds what
came, piece by piece, with its times. `utils.deployment.load` asks many of them.
"""

from __future__ import annotations

import http.client
import itertools
import json
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from utils.course import CourseError
from utils.deployment.serving import JSON

TIMEOUT = 70  # seconds of silence; SageMaker itself ends a reply after 60
MOST_AT_ONCE = 256  # requests under way; each has a thread and a connection
LONGEST_READ = 64 * 1024
# Content types of streams whose pieces are lines: DJL Serving's, and those of OpenAI's
# schema (server-sent events).
LINES = ("application/jsonlines", "application/x-ndjson", "text/event-stream")
EVENT = b"data:"
LAST_EVENT = b"[DONE]"


class LoadError(CourseError):
    """Load that cannot be put on anything, as it was asked for."""


# --- one request ----------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What came of one request; times in seconds from the beginning of the load.

    Attributes:
        due: when the request was to be sent.
        sent: when it was.
        ended: when its reply was complete, or had failed.
        status: the model's, also if the endpoint hides it in a ModelError; 0 if there
            was no reply.
        content_type: of the reply.
        parts: what came, each part with its time.
        problem: why there is no (whole) reply; "" if there is one.
    """

    due: float
    sent: float
    ended: float
    status: int
    content_type: str
    parts: tuple[tuple[float, bytes], ...]
    problem: str = ""

    @property
    def latency(self) -> float:
        """Return the seconds from when the request was due to the end of its reply."""
        return self.ended - self.due

    @property
    def size(self) -> int:
        """Return the bytes of the body."""
        return sum(len(part) for _, part in self.parts)

    @property
    def is_stream(self) -> bool:
        """Return whether the reply comes in pieces."""
        return self.content_type.partition(";")[0].strip().lower() in LINES

    @cached_property
    def _pieces(self) -> tuple[tuple[float, bytes], ...]:
        """Return the lines of a stream with the times of their ends, or the body."""
        if not self.is_stream:
            return ((self.ended, b"".join(part for _, part in self.parts)),)
        lines: list[tuple[float, bytes]] = []
        begun = b""
        for at, part in self.parts:
            # A part may hold several lines, or end within one.
            *whole, begun = (begun + part).split(b"\n")
            lines += [(at, line) for line in whole]
        lines.append((self.ended, begun))
        pieces = [(at, line.strip().removeprefix(EVENT).strip()) for at, line in lines]
        return tuple((at, line) for at, line in pieces if line not in (b"", LAST_EVENT))

    @cached_property
    def failure(self) -> str:
        """Return what kind of failure this is; "" if it is a whole answer.

        A status of 200 does not settle it: in a batch of the server an item's own error
        stands in its body, and so it does in a stream that has begun.
        """
        if self.problem:
            return self.problem
        if self.status != 200:
            return str(self.status)
        hidden = _error_code(self._pieces[-1][1]) if self._pieces else None
        if hidden is None:
            return ""
        return (
            f"200 with error {hidden} in its {'stream' if self.is_stream else 'body'}"
        )

    @cached_property
    def piece_times(self) -> tuple[float, ...]:
        """Return when each piece with content of a stream was complete."""
        if not self.is_stream:
            return ()
        pieces = self._pieces
        return tuple(
            at for at, line in pieces if line.replace(b" ", b"") != b'{"outputs":""}'
        )

    @property
    def first_piece(self) -> float | None:
        """Return the seconds to the first piece, counted as `latency`; None if none."""
        return self.piece_times[0] - self.due if self.piece_times else None

    @property
    def gaps(self) -> list[float]:
        """Return the seconds between one piece of a stream and the next."""
        times = self.piece_times
        return [later - earlier for earlier, later in itertools.pairwise(times)]


def _error_code(text: bytes) -> int | None:
    """Return the status that an error's body names, as DJL Serving writes them."""
    if b'"error"' not in text or b'"code"' not in text:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    code = found.get("code") if isinstance(found, dict) and "error" in found else None
    return code if isinstance(code, int) and code >= 300 else None


# --- what is asked --------------------------------------------------------------------

# Sends a body; returns status, content type, parts with their times, and the problem.
Answer = tuple[int, str, list[tuple[float, bytes]], str]
Send = Callable[[bytes], Answer]


class Target(Protocol):
    """Something that answers requests."""

    def client(self, keeps: bool) -> Send:
        """Return a function that sends one request at a time.

        Args:
            keeps: whether its requests share a connection.
        """


class Url:
    """A server's address."""

    def __init__(self, url: str, timeout: float = TIMEOUT):
        """Take the address of a server that is asked by POST.

        Args:
            url: such as http://127.0.0.1:8080/invocations.
            timeout: seconds of silence after which a request has failed.

        Raises:
            LoadError: if it is no such address.
        """
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise LoadError(
                f"--url: found {url!r}, expected an address such as "
                "http://127.0.0.1:8080/invocations"
            )
        secure = parts.scheme == "https"
        self._kind = (
            http.client.HTTPSConnection if secure else http.client.HTTPConnection
        )
        self._where = parts.hostname, port
        query = f"?{parts.query}" if parts.query else ""
        self._path = (parts.path or "/invocations") + query
        self._timeout = timeout
        self.name = url

    def client(self, keeps: bool) -> Send:
        """Return a function that sends a request; see `Target`."""
        connection = self._kind(*self._where, timeout=self._timeout)

        def send(body: bytes) -> Answer:
            parts: list[tuple[float, bytes]] = []
            status, content_type, problem = 0, "", ""
            whole = False
            try:
                connection.request("POST", self._path, body, JSON)
                reply = connection.getresponse()
                status, content_type = reply.status, reply.getheader("Content-Type", "")
                while part := reply.read1(LONGEST_READ):
                    parts.append((time.perf_counter(), part))
                if reply.length:  # of which `read1` says nothing
                    raise http.client.IncompleteRead(b"", reply.length)
                reply.close()  # its connection can be used again
                whole = True
            except (OSError, http.client.HTTPException) as error:
                problem = _no_reply(status, error)
            if not (whole and keeps):
                connection.close()  # the next request opens it again
            return status, content_type, parts, problem

        return send


class Endpoint:
    """An endpoint of SageMaker, asked by boto3."""

    def __init__(self, session: Any, name: str, stream: bool = False):
        """Take an endpoint of the account behind a session.

        Args:
            session: of boto3; `connect_aws` returns one whose clients ask only once.
            name: the endpoint's.
            stream: whether to ask by InvokeEndpointWithResponseStream.
        """
        from botocore.config import Config

        # Threads share a client; each needs a connection of its own.
        self._client = session.client(
            "sagemaker-runtime", config=Config(max_pool_connections=MOST_AT_ONCE)
        )
        self.name, self.stream = name, stream

    def client(self, keeps: bool) -> Send:
        """Return a function that sends a request; connections are boto3's affair."""
        return self._send

    def _send(self, body: bytes) -> Answer:
        from botocore.exceptions import ClientError

        parts: list[tuple[float, bytes]] = []
        status, content_type, problem = 0, "", ""
        asked = {
            "EndpointName": self.name,
            "Body": body,
            "ContentType": "application/json",
        }
        try:
            if self.stream:
                reply = self._client.invoke_endpoint_with_response_stream(**asked)
                status, content_type = 200, reply.get("ContentType", "")
                for event in reply["Body"]:
                    parts.append((time.perf_counter(), event["PayloadPart"]["Bytes"]))
            else:
                reply = self._client.invoke_endpoint(**asked)
                status, content_type = 200, reply.get("ContentType", "")
                parts.append((time.perf_counter(), reply["Body"].read()))
        except ClientError as error:
            if status:
                problem = _no_reply(status, error)
            else:
                sent = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
                status = error.response.get("OriginalStatusCode", sent)
                kind = error.response["Error"]["Code"]
                # A ModelError is the model's own answer. Any other is the service's.
                problem = "" if kind == "ModelError" and status else kind
        except Exception as error:  # of botocore, urllib3, the socket: it is counted
            problem = _no_reply(status, error)
        return status, content_type, parts, problem


def _no_reply(status: int, error: Exception) -> str:
    """Say how a request failed that has no whole reply."""
    kind = type(error).__name__
    return f"{status}, broken off: {kind}" if status else f"no reply: {kind}"


def read_requests(path: Path, stream: bool = False) -> list[bytes]:
    """Read the bodies of requests, one JSON text a line; blank lines do not count.

    Args:
        path: of the file.
        stream: set "stream" to true in each.

    Raises:
        LoadError: naming the file, and the line that cannot be sent.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise LoadError(
            f"{path}: cannot be read ({reason}). Name a file of requests, one JSON "
            'object a line, such as {"inputs": "What is Amazon S3?"}'
        ) from None
    bodies = []
    for number, line in enumerate(lines, 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            found = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise LoadError(
                f"{path}, line {number}: byte {error.start + 1} is not UTF-8. Save the "
                "file as UTF-8."
            ) from None
        except (ValueError, RecursionError) as error:
            raise LoadError(
                f"{path}, line {number}: found {_quoted(line)}, expected one JSON "
                f"object ({error}). Write each request on a line of its own."
            ) from None
        if stream:
            if not isinstance(found, dict):
                raise LoadError(
                    f"{path}, line {number}: found {_quoted(line)}, expected an object "
                    'in which to set "stream". Write {"inputs": …}, or leave out '
                    "--stream."
                )
            line = json.dumps(found | {"stream": True}, ensure_ascii=False).encode()
        bodies.append(line.strip())
    if not bodies:
        raise LoadError(
            f"{path}: holds no request. Write one JSON object a line, such as "
            '{"inputs": "What is Amazon S3?"}'
        )
    return bodies


def _quoted(line: bytes) -> str:
    text = repr(line.strip().decode("utf-8", "replace"))
    return text if len(text) <= 60 else text[:60] + "…'"
