"""Asynchronous invocations: read from S3, answered in turn, written to S3.

What is played, and from where it is known:

- Members, limits and defaults: botocore's model of InvokeEndpointAsync.
- A reply without a length fails, with the text in deepjavalibrary/djl-serving, issue
  2567. The line in the log has the form shown there.
- A container's error is written to S3FailurePath, if the configuration has one, and to
  the log (awsdocs/amazon-sagemaker-developer-guide, issue 203). The names of both
  objects, "ID.out" and "ID-error.out", were not checked against a source: take them
  from the reply.
- That a bucket or an input object is missing is told at the call. AWS's own answers are
  not known; the texts are ours. Notifications are not played.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from utils.offline_aws.endpoints import LocalEndpoint, Variant
from utils.offline_aws.errors import AwsFault
from utils.offline_aws.logs import put_events
from utils.offline_aws.metrics import METRICS, NO_REPLY
from utils.offline_aws.names import LOG_GROUPS, OFFLINE_ACCOUNT
from utils.offline_aws.references import s3_backend, split_address

# Where "SageMaker chooses an optimal value" (MaxConcurrentInvocationsPerInstance).
AT_ONCE = 4
TIME_TO_LIVE = 21_600  # seconds in the queue, unless the request says otherwise
INVOCATION_TIMEOUT = 900  # seconds in the container, likewise
LONGEST_INPUT = 1024**3  # bytes; developer guide, "Asynchronous inference"
NO_LENGTH = (
    "The response from container primary did not specify the required Content-Length "
    "header"
)
# The first divided by the instances, of which there is one here.
BACKLOG = ("ApproximateBacklogSize", "ApproximateBacklogSizePerInstance")
POLL = 0.2  # seconds between looks whether the endpoint is still there


@dataclass(frozen=True)
class Request:
    """An invocation that waits for its turn."""

    inference: str
    parameters: dict[str, Any]
    output: str
    failure: str | None
    received: float = field(default_factory=time.monotonic)


class Asynchronous:
    """Takes invocations of all asynchronous endpoints."""

    def __init__(self) -> None:
        self._backlogs: weakref.WeakKeyDictionary[LocalEndpoint, Backlog] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def invoke(
        self,
        endpoint: LocalEndpoint,
        parameters: dict[str, Any],
        start_response: Callable,
    ) -> Iterable[bytes]:
        """Accept an invocation, and say where its answer will be.

        Raises:
            AwsFault: a ValidationError, if it cannot be answered.
        """
        configuration = endpoint.async_configuration
        if configuration is None:
            raise _refused(
                f"Endpoint {endpoint.name} is not an asynchronous one: its "
                "configuration has no AsyncInferenceConfig. Use InvokeEndpoint."
            )
        check_input(parameters)
        inference = parameters.get("InferenceId") or str(uuid.uuid4())
        output, failure = places(configuration, parameters, inference)
        for address in filter(None, (output, failure)):
            require_bucket(address)
        request = Request(inference, parameters, output, failure)
        with self._lock:
            if endpoint not in self._backlogs:
                self._backlogs[endpoint] = Backlog(endpoint)
            backlog = self._backlogs[endpoint]
        backlog.add(request)
        body = json.dumps({"InferenceId": inference}).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Amzn-SageMaker-OutputLocation": output,
        }
        if failure is not None:
            headers["X-Amzn-SageMaker-FailureLocation"] = failure
        start_response("202 Accepted", list(headers.items()))
        return [body]


def check_input(parameters: dict[str, Any]) -> None:
    """Refuse an invocation without an input, or with two.

    Raises:
        AwsFault: a ValidationError.
    """
    location, body = parameters.get("InputLocation"), parameters.get("Body")
    if bool(location) == bool(body):
        raise _refused("Give exactly one of InputLocation and Body.")
    if location is None:
        return
    bucket, key = _address(location)
    found = s3_backend().buckets.get(bucket)
    entry = found.keys.get(key) if found is not None else None
    if entry is None:
        raise _refused(f"There is no object at {location}. Upload the input first.")
    if entry.size > LONGEST_INPUT:
        raise _refused(f"{location} has more than {LONGEST_INPUT:,} bytes.")


def places(
    configuration: dict[str, Any], parameters: dict[str, Any], inference: str
) -> tuple[str, str | None]:
    """Return the addresses of the answer and of a failure.

    Raises:
        AwsFault: a ValidationError, if the configuration names no place.
    """
    given = configuration["OutputConfig"]
    if not given.get("S3OutputPath"):
        raise _refused(
            "AsyncInferenceConfig.OutputConfig has no S3OutputPath: the offline AWS "
            "has no other place for the answer."
        )
    name = parameters.get("Filename") or f"{inference}.out"
    parts = [given["S3OutputPath"].rstrip("/")]
    if extension := parameters.get("S3OutputPathExtension"):
        parts.append(extension.strip("/"))
    failure = given.get("S3FailurePath")
    if failure is not None:
        failure = f"{failure.rstrip('/')}/{inference}-error.out"
    return "/".join([*parts, name]), failure


def require_bucket(address: str) -> None:
    """Refuse an address in a bucket that does not exist.

    Raises:
        AwsFault: a ValidationError.
    """
    bucket, _ = _address(address)
    if bucket not in s3_backend().buckets:
        raise _refused(
            f"The bucket of {address} does not exist: the answer could not be written. "
            "Create it first."
        )


class Backlog:
    """The invocations of one endpoint that wait or are being answered."""

    def __init__(self, endpoint: LocalEndpoint):
        self._endpoint = weakref.ref(endpoint)
        self._ended = endpoint.ended
        self.name = endpoint.name
        self._waiting: queue.Queue[Request] = queue.Queue()
        self._size = 0
        self._lock = threading.Lock()
        settings = (endpoint.async_configuration or {}).get("ClientConfig") or {}
        at_once = settings.get("MaxConcurrentInvocationsPerInstance") or AT_ONCE
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        self._resize(1)
        self._waiting.put(request)

    def _resize(self, change: int) -> None:
        with self._lock:
            self._size += change
            for name in BACKLOG:
                METRICS.count(self.name, name, float(self._size))

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                request = self._waiting.get(timeout=POLL)
            except queue.Empty:
                continue
            endpoint = self._endpoint()
            if endpoint is None:
                return
            try:
                self._answer(endpoint, request)
            finally:
                self._resize(-1)

    def _answer(self, endpoint: LocalEndpoint, request: Request) -> None:
        """Ask the container, and write what comes of it."""
        waited = time.monotonic() - request.received
        METRICS.count(self.name, "TimeInBacklog", waited * 1000, "Milliseconds")
        if waited > request.parameters.get("RequestTTLSeconds", TIME_TO_LIVE):
            METRICS.count(self.name, "ExpiredRequests")
            self._fail(request, "variant", "The request was too long in the queue.")
            return
        while not endpoint.serves and not self._ended.wait(POLL):
            pass  # until an update is through, or a first start
        with endpoint.lease(None) as variant:
            assert variant is not None
            started = time.monotonic()
            status, answer, problem = self._ask(variant, request)
            latency = time.monotonic() - started
            METRICS.observe(self.name, variant.name, status, latency, 0.0, True)
            if problem is not None:
                self._fail(request, variant.name, problem)
                return
            try:
                content, kind = answer
                _write(request.output, content, kind)
                METRICS.count(self.name, "InvocationsProcessed")
            except Exception as error:
                self._fail(
                    request,
                    variant.name,
                    f"The answer could not be written to {request.output}: {error}",
                )

    def _ask(
        self, variant: Variant, request: Request
    ) -> tuple[int, tuple[bytes, str | None], str | None]:
        """Return status, answer with its type, and what was wrong with it, or None."""
        nothing: tuple[bytes, str | None] = (b"", None)
        try:
            body = _read_input(request.parameters)
        except LookupError as error:
            return NO_REPLY, nothing, str(error)
        headers = {
            "Content-Type": request.parameters.get("ContentType"),
            "Accept": request.parameters.get("Accept"),
            "X-Amzn-SageMaker-Custom-Attributes": request.parameters.get(
                "CustomAttributes"
            ),
            "X-Amzn-SageMaker-Inference-Id": request.inference,
        }
        headers = {key: value for key, value in headers.items() if value}
        limit = request.parameters.get("InvocationTimeoutSeconds", INVOCATION_TIMEOUT)
        port = variant.container.port
        try:
            if port is None:
                raise ConnectionRefusedError
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
            with contextlib.closing(connection):
                connection.request("POST", "/invocations", body, headers)
                reply = connection.getresponse()
                answer, status = reply.read(), reply.status
        except TimeoutError:
            return NO_REPLY, nothing, f"The model did not answer within {limit} s."
        except (OSError, http.client.HTTPException) as error:
            return NO_REPLY, nothing, f"The model's connection was closed ({error})."
        if not 200 <= status < 300:
            kind = "client" if status < 500 else "server"
            text = answer.decode("utf-8", "replace")
            problem = f'Received {kind} error ({status}) from primary with message "'
            return status, nothing, f'{problem}{text}"'
        if reply.headers.get("Content-Length") is None:
            return status, nothing, NO_LENGTH
        return status, (answer, reply.headers.get("Content-Type")), None

    def _fail(self, request: Request, variant: str, problem: str) -> None:
        """Write a failure to S3, if there is a place for it, and to the log."""
        METRICS.count(self.name, "InvocationFailures")
        now = time.gmtime()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", now)
        line = f"{moment}:[sagemaker logs] [{request.inference}] {problem}"
        event = {"timestamp": int(time.time() * 1000), "message": line}
        put_events(LOG_GROUPS + self.name, f"{variant}/data-log", [event])
        if request.failure is not None:
            where = f"See {LOG_GROUPS}{self.name} in account {OFFLINE_ACCOUNT}."
            with contextlib.suppress(Exception):
                _write(request.failure, f"{problem}. {where}".encode(), "text/plain")


def _read_input(parameters: dict[str, Any]) -> bytes:
    """Return the input.

    Raises:
        LookupError: if it is not there any more.
    """
    location = parameters.get("InputLocation")
    if location is None:
        return parameters["Body"]
    bucket, key = _address(location)
    found = s3_backend().buckets.get(bucket)
    entry = found.keys.get(key) if found is not None else None
    if entry is None:
        raise LookupError(f"There is no object at {location} any more.")
    return entry.value


def _write(address: str, content: bytes, kind: str | None) -> None:
    """Write an object, as SageMaker does with the rights of the model's role."""
    bucket, key = _address(address)
    entry = s3_backend().put_object(bucket, key, content)
    if kind is not None:
        entry.set_metadata({"Content-Type": kind})


def _address(location: str) -> tuple[str, str]:
    try:
        return split_address(location)
    except AwsFault as fault:
        raise _refused(fault.message) from None


def _refused(message: str) -> AwsFault:
    return AwsFault(400, "ValidationError", message)
