"""The way to the model: time-outs, retries for throttling only, and a circuit breaker.

The request is in OpenAI's schema
(https://platform.openai.com/docs/api-reference/chat/create), greedy, for SageMaker's
InvokeEndpoint or InvokeEndpointWithResponseStream. Whatever fails becomes a `Fault`,
which is a problem that the app can answer with.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import boto3
import pybreaker
import tenacity
from botocore.config import Config
from botocore.eventstream import ParserError
from botocore.exceptions import (
    ClientError,
    EventStreamError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from .schema import Problem
from .settings import WHOLE_REQUEST, Settings

CONNECT_TIMEOUT = 2  # seconds
ATTEMPTS = 3
# Seconds of the waits' upper bound: 0.25, then 0.5. Full jitter, as in
# https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
FIRST_WAIT, LONGEST_WAIT = 0.25, 2.0
RETRY_AFTER = 2  # seconds that a client is told to wait where nothing better is known
MOST_AT_ONCE = 64  # connections, each of which a thread may need
MOST_BYTES = 1024 * 1024  # of a reply, or of one line of a stream
MOST_TOKENS = 2**53  # up to which readers of JSON agree on integers
EVENT, LAST_EVENT = b"data:", b"[DONE]"
# Lines of server-sent events that hold no data.
NO_DATA = (b":", b"event:", b"id:", b"retry:")
# Codes of throttling in AWS's services (botocore/retries/standard.py has the list).
THROTTLING = {
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "SlowDown",
}
# There is no such endpoint or variant, or it does not take requests yet.
NOT_THERE = {"ValidationError", "ValidationException", "ModelNotReadyException"}
# The entry point's and DJL Serving's status for a request that failed inside.
FAILED_INSIDE = 424
T = TypeVar("T")


class Fault(Problem):
    """Why the endpoint gave no answer.

    Attributes:
        counts: whether it speaks against the endpoint's health.
        throttled: whether asking again soon may help.
    """

    def __init__(
        self,
        code: str,
        cause: str,
        *,
        counts: bool = False,
        throttled: bool = False,
        retry_after: float | None = None,
    ):
        if code == "unavailable" and retry_after is None:
            retry_after = RETRY_AFTER
        super().__init__(code, cause=cause, retry_after=retry_after)
        self.counts, self.throttled = counts, throttled


@dataclass(frozen=True)
class Question:
    """What the endpoint is asked.

    Attributes:
        text: of the question.
        adapter: the entry point's `model`; None leaves it to the endpoint.
        variant: that is to answer; None leaves it to the endpoint.
        retrieve: notes to answer from.
        max_tokens: after which the answer is cut off.
        deadline: time.monotonic() at which nobody waits for an answer any more.
    """

    text: str
    adapter: str | None
    variant: str | None
    retrieve: int
    max_tokens: int
    deadline: float


@dataclass
class Answer:
    """What the endpoint answered; a stream fills it as it comes.

    Attributes:
        variant: that answered.
        text: of the answer.
        sources: ids of the notes it rests on.
        finish_reason: "stop" or "length"; "" while a stream goes on.
        prompt_tokens: that were read.
        completion_tokens: that were written.
    """

    variant: str
    text: str = ""
    sources: list[str] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def runtime_client(settings: Settings, session: Any = boto3) -> Any:
    """Return boto3's client for endpoints; it asks once, and waits no longer than told.

    Args:
        settings: of the service.
        session: of boto3.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=settings.timeout,
        # boto3's own retries would also repeat what timed out: the model's work twice.
        retries={"total_max_attempts": 1},
        max_pool_connections=MOST_AT_ONCE,
    )
    return session.client("sagemaker-runtime", config=config)


class EndpointClient:
    """Asks one endpoint; threads share it."""

    def __init__(
        self,
        settings: Settings,
        client: Any = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Take the settings.

        Args:
            settings: of the service.
            client: of boto3, such as `runtime_client` returns; that one by default.
            sleep: waits between attempts.
        """
        self._settings = settings
        self._client = client or runtime_client(settings)
        self._sleep = sleep
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)

    @property
    def breaker(self) -> str:
        """Return the circuit breaker's state: closed, open or half-open."""
        return self._breaker.state

    def ask(self, question: Question) -> Answer:
        """Return the whole answer.

        Raises:
            Fault: why there is none.
        """
        with self._breaker.admit() as admission:
            answer = self._tried(question, self._ask)
            if time.monotonic() > question.deadline:  # nobody got it
                raise _too_late()
            admission.settle(None)
            return answer

    def stream(self, question: Question) -> Stream:
        """Return an answer that comes piece by piece, once it has begun.

        Raises:
            Fault: why there is none.
        """
        with self._breaker.admit() as admission:
            stream = self._tried(question, self._open)
            if time.monotonic() > question.deadline:
                stream.close()  # nobody is there any more to do it
                raise _too_late()
            stream.admission = admission
            return stream

    def _tried(self, question: Question, call: Callable[[Question], T]) -> T:
        """Make a call, again after throttling while a whole call is within the time."""
        left = question.deadline - time.monotonic() - self._settings.timeout
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, Fault) and error.throttled
            ),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(ATTEMPTS),
                tenacity.stop_before_delay(max(0.0, left)),
            ),
            wait=tenacity.wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(call, question)

    def _parameters(self, question: Question, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": question.max_tokens,
        }
        if question.retrieve:
            body["retrieve"] = question.retrieve
        if question.adapter is not None:
            body["model"] = question.adapter
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        parameters = {
            "EndpointName": self._settings.endpoint,
            "ContentType": "application/json",
            "Body": json.dumps(body).encode(),
        }
        if question.variant is not None:
            parameters["TargetVariant"] = question.variant
        return parameters

    def _ask(self, question: Question) -> Answer:
        with _faults():
            reply = self._client.invoke_endpoint(**self._parameters(question, False))
            data = bytearray()
            with contextlib.closing(reply["Body"]) as body:
                # Up to the empty part, with which botocore compares the length.
                while part := body.read(MOST_BYTES):
                    data += part
                    if len(data) > MOST_BYTES:
                        raise Fault("model_error", "reply too long")
            return _whole_answer(data, reply.get("InvokedProductionVariant", ""))

    def _open(self, question: Question) -> Stream:
        with _faults():
            reply = self._client.invoke_endpoint_with_response_stream(
                **self._parameters(question, True)
            )
            stream = Stream(reply["Body"], reply.get("InvokedProductionVariant", ""))
        try:
            stream.begin()
        except BaseException:
            stream.close()
            raise
        return stream


# --- faults ---------------------------------------------------------------------------


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turn what boto3, urllib3 and the socket raise into faults."""
    try:
        yield
    except ClientError as error:
        raise _aws_fault(error) from None
    except (
        ReadTimeoutError,  # of botocore, and urllib3's as well
        Urllib3TimeoutError,
        TimeoutError,
    ) as error:
        raise Fault("timeout", _kind(error), counts=True) from None
    except (
        NoConnectionError,  # also in time
        HTTPClientError,  # closed
        IncompleteReadError,
        HTTPError,
        ParserError,  # an event stream that is none
        OSError,
    ) as error:
        raise Fault("unavailable", _kind(error), counts=True) from None


def _too_late() -> Fault:
    return Fault("timeout", "deadline", counts=True)


def _kind(error: BaseException) -> str:
    return type(error).__name__


def _aws_fault(error: ClientError) -> Fault:
    """Say what an error that AWS has answered means; its text may hold the model's."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLING:
        return Fault("unavailable", code, throttled=True)
    if code == "ModelError":
        return _model_fault(error.response.get("OriginalStatusCode", 0))
    if isinstance(error, EventStreamError):
        # Its ErrorCode does not reach us; the text of a time-out is AWS's own.
        text = str(error.response.get("Error", {}).get("Message", ""))
        kind = "timeout" if "timed out" in text else "model_error"
        return Fault(kind, code or "EventStreamError", counts=True)
    if code in NOT_THERE:
        return Fault("unavailable", code)
    if status == 429:
        return Fault("unavailable", code, throttled=True)
    if status == 503:
        return Fault("unavailable", code, counts=True)
    return Fault("model_error", f"{code} {status}", counts=status >= 500)


def _model_fault(status: Any) -> Fault:
    """Say what an error of the model itself means."""
    cause = f"model {status}" if isinstance(status, int) else "model"
    if not status:  # AWS has waited for the model in vain
        return Fault("timeout", cause, counts=True)
    if status == 429:
        return Fault("unavailable", cause, throttled=True)
    if status == 503:  # busy, or its process is starting again
        return Fault("unavailable", cause, throttled=True, counts=True)
    counts = isinstance(status, int) and (status >= 500 or status == FAILED_INSIDE)
    return Fault("model_error", cause, counts=counts)


# --- reading replies ------------------------------------------------------------------


def _whole_answer(data: bytes | bytearray, variant: str) -> Answer:
    answer = Answer(variant)
    chunk = _chunk(data)
    with _shape():
        answer.text = _mended(chunk["choices"][0]["message"]["content"])
        answer.finish_reason = _reason(chunk["choices"][0].get("finish_reason"))
        _count(answer, chunk)
    return answer


def _chunk(data: bytes | bytearray) -> dict[str, Any]:
    """Read a reply, or a line of one; an error in it is raised.

    Raises:
        Fault: the model's own, or that it cannot be read.
    """
    with _shape():
        # A byte that is not UTF-8 costs a letter, not the answer.
        chunk = json.loads(data.decode("utf-8", "replace"))
        if not isinstance(chunk, dict):
            raise TypeError
    if "error" in chunk:
        inner = chunk["error"] if isinstance(chunk["error"], dict) else {}
        raise _model_fault(chunk.get("code") or inner.get("code") or 500)
    return chunk


@contextlib.contextmanager
def _shape() -> Iterator[None]:
    try:
        yield
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,  # int(1e400)
    ) as error:
        cause = f"reply in another form: {_kind(error)}"
        raise Fault("model_error", cause) from None
    except RecursionError:
        raise Fault("model_error", "reply in another form: depth") from None


def _count(answer: Answer, chunk: dict[str, Any]) -> None:
    """Take notes and numbers of tokens from a reply, or from a part of it."""
    if usage := chunk.get("usage"):
        answer.prompt_tokens = _tokens(usage.get("prompt_tokens", 0))
        answer.completion_tokens = _tokens(usage.get("completion_tokens", 0))
    if notes := chunk.get("notes"):
        answer.sources = [_mended(str(note)) for note in notes]


def _tokens(found: Any) -> int:
    """Return a count that JSON, metrics and the table can hold."""
    count = int(found)
    if not 0 <= count <= MOST_TOKENS:
        raise ValueError
    return count


def _reason(found: Any) -> str:
    return "length" if found == "length" else "stop"


def _mended(text: str) -> str:
    """Return text with halves of surrogate pairs joined, or replaced where alone."""
    if not isinstance(text, str):
        raise TypeError
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Stream:
    """An answer that comes piece by piece.

    One thread reads, any thread may close: then the connection to the endpoint ends at
    once, also while the reader waits for more.
    """

    def __init__(self, body: Any, variant: str):
        """Take botocore's event stream, and the variant that sends it."""
        self.answer = Answer(variant)
        self.admission: Admission | None = None
        # botocore passes on nothing that ends a read that waits; urllib3 does.
        self._connection = body._raw_stream
        self._chunks = self._read(body)
        self._begun: str | None = None
        self._half = ""  # of a surrogate pair
        self._reading = threading.Lock()
        self._left = False
        self._late: Fault | None = None
        self._over = False

    def begin(self) -> None:
        """Read up to the first chunk, in which the sources are.

        Raises:
            Fault: if the model answers with an error instead.
        """
        with self._reading, _faults():
            chunks = next(self._chunks, None)
            if chunks is None:
                raise Fault("unavailable", "stream without content", counts=True)
            self._begun = self._taken(chunks)

    def next_piece(self) -> str | None:
        """Return the next piece of the answer; None at its end.

        Raises:
            Fault: if the answer breaks off.
        """
        with self._reading:
            try:
                with _faults():
                    piece = self._next()
            except BaseException as error:
                self._end(self._late if self._left else error)
                raise
            if piece is None:
                self._end(None)
        if self._left:  # by a `close` that found this thread reading
            self._end_unless_read(self._late)
        return piece

    def close(self, late: bool = False) -> None:
        """Give up the rest of the answer; the endpoint's connection ends.

        Args:
            late: whether the time ran out. If a thread still waits for the endpoint
                then, this speaks against the endpoint; else against the client.
        """
        if late:
            self._late = _too_late()
        self._left = True
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            # Wakes a thread that waits for more. Closing would wait for that thread.
            self._connection.shutdown()
        self._end_unless_read(None)

    def _end_unless_read(self, error: BaseException | None) -> None:
        if self._reading.acquire(blocking=False):
            try:
                self._end(error)
            finally:
                self._reading.release()

    def _end(self, error: BaseException | None) -> None:
        """Close the connection and say how it went, once."""
        if self._over:
            return
        self._over = True
        self._chunks.close()
        self._connection.close()
        if self.admission is not None:
            if self._left and error is None and not self.answer.finish_reason:
                self.admission.release()
            else:
                self.admission.settle(error)

    def _next(self) -> str | None:
        if self._over:
            return None
        if self._begun:
            piece, self._begun = self._begun, None
            return self._kept(piece)
        for chunks in self._chunks:
            if piece := self._taken(chunks):
                return self._kept(piece)
        if not self.answer.finish_reason:
            raise Fault("unavailable", "stream broken off", counts=True)
        rest, self._half = self._half, ""
        return self._kept(_mended(rest)) if rest else None

    def _kept(self, piece: str) -> str:
        self.answer.text += piece
        return piece

    def _read(self, body: Any) -> Iterator[list[dict[str, Any]]]:
        """Yield what each event of AWS brings: no, one or many chunks, parsed."""
        begun = b""
        for event in body:
            begun += event.get("PayloadPart", {}).get("Bytes", b"")
            *lines, begun = begun.split(b"\n")
            if len(begun) > MOST_BYTES:
                raise Fault("model_error", "line too long")
            last = False
            chunks = []
            for line in lines:
                data = _data(line)
                if data == LAST_EVENT:
                    last = True
                    break
                if data:
                    chunks.append(_chunk(data))
            if chunks:
                yield chunks
            if last:
                self.answer.finish_reason = self.answer.finish_reason or "stop"
                return
        if (data := _data(begun)) and data != LAST_EVENT:
            yield [_chunk(data)]

    def _taken(self, chunks: list[dict[str, Any]]) -> str:
        """Return the text of chunks, and note what else they say."""
        text = self._half
        with _shape():
            for chunk in chunks:
                _count(self.answer, chunk)
                for choice in (chunk.get("choices") or [])[:1]:
                    text += (choice.get("delta") or {}).get("content") or ""
                    if reason := choice.get("finish_reason"):
                        self.answer.finish_reason = _reason(reason)
        half = text[-1:]
        self._half = half if "\ud800" <= half <= "\udbff" else ""
        return _mended(text[: -1 if self._half else None])


def _data(line: bytes) -> bytes:
    """Return what a line of a stream holds, as JSON lines or as server-sent events."""
    line = line.strip()
    if line.startswith(NO_DATA):
        return b""
    return line.removeprefix(EVENT).strip()


# --- the circuit breaker --------------------------------------------------------------


class Breaker:
    """A circuit breaker for threads that ask at the same time.

    pybreaker decides when it opens and closes. Its `call` holds a lock as long as the
    call takes, so that requests would wait for each other, and without the lock it lets
    many probes through at once. So requests are admitted here, and pybreaker is told
    how they ended.
    """

    def __init__(self, failures: int, seconds: float):
        """Take how many failures in a row open it, and for how many seconds."""
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=failures, reset_timeout=seconds, throw_new_error_on_trip=False
        )
        self._lock = threading.Lock()
        self._probe: Admission | None = None
        self._opened = 0.0  # time.monotonic() when it did last

    @property
    def state(self) -> str:
        """Return closed, open or half-open."""
        return self._breaker.current_state

    def admit(self) -> Admission:
        """Let a request pass.

        Raises:
            Fault: "unavailable", if it is open, or half-open with a probe under way.
        """
        with self._lock:
            admission = Admission(self)
            if self.state == pybreaker.STATE_OPEN:
                left = self._seconds_left()
                if left > 0:
                    raise Fault("unavailable", "breaker open", retry_after=left)
                self._breaker.half_open()
                self._probe = None
            if self.state == pybreaker.STATE_HALF_OPEN:
                if self._probe is not None and not self._probe.is_lost:
                    raise Fault("unavailable", "breaker half-open")
                self._probe = admission
            return admission

    def _seconds_left(self) -> float:
        # Not by pybreaker's own note, which is of a clock that can be put back.
        return self._opened + self._breaker.reset_timeout - time.monotonic()

    def note(self, admission: Admission, failed: bool | None) -> None:
        """Take how a request ended; None: nobody knows."""
        with self._lock:
            is_probe = admission is self._probe
            if is_probe:
                self._probe = None
            # What was admitted before it opened is no news.
            closed = self.state == pybreaker.STATE_CLOSED
            if failed is None or not (closed or is_probe):
                return
            with contextlib.suppress(_Failed):
                self._breaker.call(_fail if failed else _succeed)
            if self.state == pybreaker.STATE_OPEN:
                self._opened = time.monotonic()


class Admission:
    """A request that the breaker let pass, and that has to say how it ended."""

    def __init__(self, breaker: Breaker):
        self._breaker = breaker
        self._since = time.monotonic()

    @property
    def is_lost(self) -> bool:
        """Return whether it is older than a request can be."""
        return time.monotonic() - self._since > WHOLE_REQUEST

    def settle(self, error: BaseException | None) -> None:
        """Say how the request ended: with an answer, a fault, or something of ours."""
        if error is None or isinstance(error, Fault):
            self._breaker.note(self, error is not None and error.counts)
        else:
            self.release()

    def release(self) -> None:
        """Say that the request was given up."""
        self._breaker.note(self, None)

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.settle(error)


class _Failed(Exception):
    """Tells pybreaker of a failure."""


def _fail() -> None:
    raise _Failed


def _succeed() -> None:
    pass
