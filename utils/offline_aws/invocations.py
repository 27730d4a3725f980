"""Invocations of the offline AWS's endpoints, whole or as an event stream."""

from __future__ import annotations

import http.client
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from utils.offline_aws.asynchronous import Asynchronous
from utils.offline_aws.endpoints import LocalEndpoint
from utils.offline_aws.errors import AwsFault
from utils.offline_aws.metrics import METRICS, NO_REPLY
from utils.offline_aws.names import LOG_GROUPS, OFFLINE_ACCOUNT, OFFLINE_REGION

RUNTIME = "sagemaker-runtime"
INVOKE, LATER = "InvokeEndpoint", "InvokeEndpointAsync"
STREAM = "InvokeEndpointWithResponseStream"
# parameter → what an endpoint of one model in one container lacks for it
NOT_ON_SUCH_AN_ENDPOINT = {
    "InferenceComponentName": "has no inference components",
    "TargetContainerHostname": "has one container and no direct invocation of several",
    "SessionId": "keeps no sessions",
    "EnableExplanations": "has no explainer",
}
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
MOST_BYTES_IN_AN_EVENT = 64 * 1024
EVENT_HEADER_IS_TEXT = 7
PAYLOAD_PART = {
    ":event-type": "PayloadPart",
    ":content-type": "application/octet-stream",
}
TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. "
    "Review the latency metrics for each container in Amazon CloudWatch, resolve the "
    "issue, and try again."
)


class DataPlane:
    """The WSGI application that answers invocations and hands the rest on to moto.

    It stands before moto's server, because moto answers with a fixed text, and only
    when all of it is there: a stream has to be passed on as it comes.
    """

    def __init__(
        self, control_plane: Callable, endpoints: Mapping[str, LocalEndpoint]
    ) -> None:
        self.control_plane = control_plane
        self.endpoints = endpoints
        self._asynchronous = Asynchronous()

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer one request.

        Raises:
            AwsFault: with what AWS answers in place of the container's reply.
        """
        call = environ["offline_aws.call"]
        if call.name not in (INVOKE, STREAM, LATER) or call.service != RUNTIME:
            return self.control_plane(environ, start_response)
        parameters = environ["offline_aws.parameters"]
        if call.name == LATER:
            endpoint = self._find(parameters["EndpointName"])
            return self._asynchronous.invoke(endpoint, parameters, start_response)
        with ExitStack() as stack:
            headers, answer = self._invoke(parameters, call.name == STREAM, stack)
            # The request counts as running until its last byte is passed on.
            answer = ClosingIterator(answer, stack.pop_all())
        start_response("200 OK", list(headers.items()))
        return answer

    def _find(self, name: str) -> LocalEndpoint:
        """Return an endpoint that takes requests.

        Raises:
            AwsFault: if there is none of this name.
        """
        endpoint = self.endpoints.get(name)
        if endpoint is None or not endpoint.serves:
            raise refused(f"Endpoint {name} of account {OFFLINE_ACCOUNT} not found.")
        return endpoint

    def _invoke(
        self, parameters: dict[str, Any], wants_stream: bool, stack: ExitStack
    ) -> tuple[dict[str, str], Iterable[bytes]]:
        """Hand a request to the endpoint's container; return headers and body.

        Raises:
            AwsFault: with what AWS answers in its place.
        """
        received = time.monotonic()
        name = parameters["EndpointName"]
        endpoint = self._find(name)
        if endpoint.async_configuration is not None:
            raise refused(
                f"Endpoint {name} is asynchronous and answers InvokeEndpointAsync only."
            )
        check_targets(name, parameters)
        variant = stack.enter_context(endpoint.lease(parameters.get("TargetVariant")))
        if variant is None:
            raise refused("Could not find the requested production variant.")
        forwarded = {
            "Content-Type": parameters.get("ContentType"),
            "Accept": parameters.get("Accept"),
            CUSTOM_ATTRIBUTES: parameters.get("CustomAttributes"),
        }
        forwarded = {key: value for key, value in forwarded.items() if value}
        watch = stack.enter_context(Stopwatch(name, variant.name, received))
        try:
            container = variant.container
            reply = stack.enter_context(container.open(parameters["Body"], forwarded))
            if reply.status >= 300:
                text = reply.read()
                watch.answered(reply.status)
                raise model_error(name, reply.status, text)
            whole = None if wants_stream else reply.read()
            watch.answered(reply.status, ends_later=wants_stream)
        except TimeoutError:
            watch.answered(NO_REPLY)
            raise model_error(name, 0, TIMED_OUT.encode()) from None
        except (OSError, http.client.HTTPException):
            watch.answered(NO_REPLY)
            message = "The service is unavailable. Try your call again."
            raise AwsFault(503, "ServiceUnavailable", message) from None
        kept = {"x-Amzn-Invoked-Production-Variant": variant.name}
        if attributes := reply.headers.get(CUSTOM_ATTRIBUTES):
            kept[CUSTOM_ATTRIBUTES] = attributes
        content_type = reply.headers.get("content-type")
        if whole is None:
            kept["Content-Type"] = "application/vnd.amazon.eventstream"
            if content_type:
                kept["X-Amzn-SageMaker-Content-Type"] = content_type
            return kept, _as_events(reply)
        if content_type:
            kept["Content-Type"] = content_type
        return kept | {"Content-Length": str(len(whole))}, [whole]


class Stopwatch:
    """Measures a request for CloudWatch, until its last byte is passed on."""

    def __init__(self, endpoint: str, variant: str, received: float):
        self._where = endpoint, variant
        self._received, self._sent = received, time.monotonic()
        self._latency: float | None = None
        self._status = NO_REPLY

    def answered(self, status: int, ends_later: bool = False) -> None:
        """Note the model's answer, and that it is all there unless it is a stream."""
        self._status = status
        if not ends_later:
            self._latency = time.monotonic() - self._sent

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: Any) -> None:
        now = time.monotonic()
        latency = now - self._sent if self._latency is None else self._latency
        overhead = max(0.0, now - self._received - latency)
        METRICS.observe(*self._where, self._status, latency, overhead)


def check_targets(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a request for a part that such an endpoint does not have.

    The text for TargetModel: aws/amazon-sagemaker-examples, issue 1026. For the others
    AWS's own are not known; these are ours. What each is for stands in botocore's model
    of the service, under InvokeEndpointInput.

    Raises:
        AwsFault: a ValidationError.
    """
    if "TargetModel" in parameters:
        raise refused(
            f"Endpoint {name} is not a multi-model endpoint and does not support "
            "target model header."
        )
    for parameter, lacks in NOT_ON_SUCH_AN_ENDPOINT.items():
        if parameter in parameters:
            raise refused(f"Endpoint {name} {lacks}: leave out {parameter}.")


class ClosingIterator:
    """The parts of an answer; closes what it came from when they are through."""

    def __init__(self, parts: Iterable[bytes], resources: ExitStack):
        self._parts = iter(parts)
        self._resources = resources

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        """Give up what the answer came from; the server calls this at the end."""
        self._resources.close()


def refused(message: str) -> AwsFault:
    """Return what the runtime answers to what it cannot accept."""
    return AwsFault(400, "ValidationError", message)


def model_error(name: str, status: int, answer: bytes) -> AwsFault:
    """Return what AWS makes of a container's own error; status 0 is a time-out."""
    kind = "client" if 400 <= status < 500 else "server"
    text = answer.decode("utf-8", "replace")
    group = LOG_GROUPS + name
    return AwsFault(
        424,
        "ModelError",
        f'Received {kind} error ({status}) from primary with message "{text}". See '
        f"CloudWatch log group {group} in account {OFFLINE_ACCOUNT} for more "
        "information.",
        OriginalMessage=text,
        OriginalStatusCode=status,
        LogStreamArn=f"arn:aws:logs:{OFFLINE_REGION}:{OFFLINE_ACCOUNT}:"
        f"log-group:{group}",
    )


def _as_events(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield a container's reply as it comes, in AWS's encoding of event streams."""
    try:
        while part := reply.read1(MOST_BYTES_IN_AN_EVENT):
            yield encode_event({":message-type": "event", **PAYLOAD_PART}, part)
    except (OSError, http.client.HTTPException) as error:
        slow = isinstance(error, TimeoutError)
        problem = {
            "ErrorCode": "ModelInvocationTimeExceeded" if slow else "StreamBroken",
            "Message": TIMED_OUT if slow else "The model's connection was closed.",
        }
        headers = {
            ":message-type": "exception",
            ":exception-type": "ModelStreamError",
            ":content-type": "application/json",
        }
        yield encode_event(headers, json.dumps(problem).encode())


def encode_event(headers: dict[str, str], payload: bytes) -> bytes:
    """Encode one message of `application/vnd.amazon.eventstream`.

    Lengths of message and headers with their checksum, the headers, the payload, and
    the checksum of it all. AWS describes it under "Event stream encoding" in the guide
    to Amazon Transcribe; botocore.eventstream decodes it.
    """
    encoded = b"".join(
        struct.pack("!B", len(name))
        + name.encode()
        + struct.pack("!BH", EVENT_HEADER_IS_TEXT, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    around = 16  # two lengths and two checksums of four bytes
    prelude = struct.pack("!II", around + len(encoded) + len(payload), len(encoded))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))
