"""Serve an artifact on this machine, and measure how fast something answers.

`serve_locally` starts what the offline AWS starts for an endpoint: a process that
unpacks the archive and serves it under DJL Serving's rules, on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.course import CourseError
from utils.djl_python.process import Container

START_TIMEOUT = 900  # seconds; a large model takes its time
LOG_LINES = 12
JSON = {"Content-Type": "application/json"}


class ServingError(CourseError):
    """A server that did not start, or a reply that is an error."""


class LocalServer:
    """A served artifact; made by `serve_locally`."""

    def __init__(self, container: Container):
        self._container = container

    def ping(self) -> dict[str, Any]:
        """Return what the server says of its models, as the health check sees it."""
        with self._container.open(b"", {}, "GET", "/ping") as reply:
            return json.loads(reply.read())

    def ask(self, payload: Any) -> Any:
        """Send a request and return its reply.

        Raises:
            ServingError: if it is an error, with its status and body.
        """
        with self._container.open(json.dumps(payload).encode(), JSON) as reply:
            body = reply.read().decode("utf-8")
            if reply.status >= 300:
                raise ServingError(
                    f"The server answered with status {reply.status}: {body}"
                )
        return json.loads(body)


@contextlib.contextmanager
def serve_locally(artifact: Path) -> Iterator[LocalServer]:
    """Serve a folder or an archive until the block ends, however it ends.

    First used in lesson 06, section 4.

    Raises:
        ServingError: if it does not load, with the reason and the end of its log.
    """
    container = Container(str(artifact), {})
    try:
        reason = container.start(START_TIMEOUT)
        if reason is not None:
            log = list(container.log)[-LOG_LINES:]
            raise ServingError("\n".join([reason, "Its log ends:", *log]))
        yield LocalServer(container)
    finally:
        container.stop()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of all values, say 0.95, reach at most."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@dataclass(frozen=True)
class Timing:
    """How long answers took.

    Attributes:
        seconds: of each request, in their order.
        total: seconds from the first request to the last answer.
        answers: how many texts were answered; a request may ask for several.
        replies: to the requests, in their order.
    """

    seconds: tuple[float, ...]
    total: float
    answers: int
    replies: tuple[Any, ...] = ()

    @property
    def p50(self) -> float:
        """The seconds that half of the requests took at most."""
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The seconds that nineteen of twenty requests took at most."""
        return percentile(self.seconds, 0.95)

    @property
    def per_second(self) -> float:
        """How many texts were answered a second."""
        return self.answers / self.total


def measure(
    ask: Callable[[Any], Any], payloads: Sequence[Any], at_once: int = 1
) -> Timing:
    """Send requests and take the time of each.

    First used in lesson 06, section 10.

    Args:
        ask: sends one and waits for its reply.
        payloads: the requests; "inputs" of each is a text or a list of texts.
        at_once: how many wait for their reply at the same time.

    Raises:
        ValueError: if there is nothing to send.
    """
    if not payloads or at_once < 1:
        raise ValueError(
            f"Found {len(payloads)} requests, {at_once} at once. Give at least one."
        )

    def timed(payload: Any) -> tuple[float, Any]:
        asked = time.perf_counter()
        reply = ask(payload)
        return time.perf_counter() - asked, reply

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        seconds, replies = zip(*pool.map(timed, payloads), strict=True)
    inputs = [payload["inputs"] for payload in payloads]
    answers = sum(1 if isinstance(text, str) else len(text) for text in inputs)
    return Timing(seconds, time.perf_counter() - started, answers, replies)


def timing_table(timings: dict[str, Timing]) -> str:
    """Return a table in Markdown: p50, p95 and answers a second of each.

    First used in lesson 06, section 10.
    """
    lines = ["| | p50 | p95 | answers a second |", "|:--|--:|--:|--:|"]
    for name, timing in timings.items():
        lines.append(
            f"| {name} | {timing.p50:.3f} s | {timing.p95:.3f} s | "
            f"{timing.per_second:.1f} |"
        )
    return "\n".join(lines)
