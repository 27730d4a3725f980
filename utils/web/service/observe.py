"""A log line and metrics for each request, as CloudWatch reads them.

Lines are JSON on stdout. Metrics are in the embedded metric format
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
Whatever belongs to one request is an argument, never a key of the logger: requests run
side by side, and a key would stand in the lines of others.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from .settings import NO_VERSION

SERVICE = "course-web"
NAMESPACE = "Course/Web"
CLIENT_LEFT = 499  # as nginx calls it; no client sees it
GENERATE, FEEDBACK = "/api/generate", "/api/feedback"


@dataclass
class Seen:
    """What there is to say of a request once it is over.

    Attributes:
        request_id: our own.
        started: time.monotonic() when it began.
        route: its path, if it is one of the app's; `NO_VERSION` if not.
        status: of the reply, or what it would have been had it not begun.
        version: that answered, or was to.
        code: the problem's.
        cause: of the problem, by kinds and statuses.
        asked: whether the question reached the way to the endpoint.
        endpoint_ms: milliseconds that the endpoint took for a whole answer.
        prompt_tokens: of the answer.
        completion_tokens: of the answer.
        thumb: of feedback that was stored.
        texts: the client's and the model's, which stay out of the log unless the
            setting lets them in.
    """

    request_id: str
    started: float = field(default_factory=time.monotonic)
    route: str = NO_VERSION
    status: int = 0
    version: str = NO_VERSION
    code: str = ""
    cause: str = ""
    asked: bool = False
    endpoint_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thumb: str = ""
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float:
        """Return the milliseconds since the request began."""
        return round((time.monotonic() - self.started) * 1000, 1)


class _Stdout(logging.StreamHandler):
    """Writes to what `sys.stdout` is when a line is written, not when it was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Return the stream of the moment."""
        return sys.stdout


class Observer:
    """Writes what was seen."""

    def __init__(self, log_texts: bool = False):
        """Take whether the texts of clients and model may stand in the log."""
        self.log_texts = log_texts
        self._log = Logger(
            service=SERVICE,
            level="INFO",
            logger_handler=_Stdout(),
            # ASCII, so that no encoding of stdout can fail.
            json_serializer=partial(json.dumps, default=str, separators=(",", ":")),
            use_rfc3339=True,
            utc=True,
            location=None,
        )
        # Whatever handlers others give the root logger: one line a record.
        logging.getLogger(SERVICE).propagate = False

    def request(self, seen: Seen) -> None:
        """Write the line and the metrics of a request that is over."""
        latency = seen.latency_ms
        more = {name: getattr(seen, name) for name in ("code", "cause")}
        line = {
            "request_id": seen.request_id,
            "route": seen.route,
            "status": seen.status,
            "latency_ms": latency,
            "version": seen.version,
            **{name: text for name, text in more.items() if text},
        }
        if self.log_texts:
            line |= seen.texts
        self._log.info("request", extra=line)
        self._measure(seen, latency)

    def _measure(self, seen: Seen, latency: float) -> None:
        count, milliseconds = MetricUnit.Count, MetricUnit.Milliseconds
        answered = seen.route == GENERATE and seen.status == 200
        values: list[tuple[str, MetricUnit, float]] = []
        if seen.asked and seen.status != CLIENT_LEFT:
            values.append(("Latency", milliseconds, latency))
        if seen.endpoint_ms is not None:
            values.append(("EndpointLatency", milliseconds, seen.endpoint_ms))
        if answered:
            values += [
                ("Answers", count, 1),
                ("PromptTokens", count, seen.prompt_tokens),
                ("CompletionTokens", count, seen.completion_tokens),
            ]
        if seen.status >= 500:
            values.append(("Errors", count, 1))
        elif 400 <= seen.status < CLIENT_LEFT:
            values.append(("Refused", count, 1))
        if seen.thumb:
            values.append(
                ("ThumbsUp" if seen.thumb == "up" else "ThumbsDown", count, 1)
            )
        if not values:
            return
        # Not `Metrics`, all of which share what was added.
        metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
        metrics.add_dimension("version", seen.version)
        metrics.add_metadata("request_id", seen.request_id)
        metrics.add_metadata("status", seen.status)
        for name, unit, value in values:
            metrics.add_metric(name, unit, value)
        metrics.flush_metrics()

    def exception(self, request_id: str, error: BaseException) -> None:
        """Write which exception came from where; its text only if texts may be logged.

        `Logger.exception` would write the text, which may hold the question.
        """
        kinds = []
        cause: BaseException | None = error
        while cause is not None and len(kinds) < 5:
            kinds.append(type(cause).__name__)
            cause = cause.__cause__ or cause.__context__
        places = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        line: dict[str, Any] = {
            "request_id": request_id,
            "kind": kinds[0],
            "caused_by": kinds[1:],
            "place": places[-1] if places else "",
            "places": places[-8:],
        }
        if self.log_texts:
            line["text"] = "".join(traceback.format_exception(error))
        self._log.error("exception", extra=line)

    def trouble(self, request_id: str, what: str, cause: str) -> None:
        """Write what went wrong beside the answer.

        Args:
            request_id: of the request.
            what: in a few words of ours.
            cause: by kinds and statuses.
        """
        self._log.error(what, extra={"request_id": request_id, "cause": cause})
