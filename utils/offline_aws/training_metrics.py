"""The metrics of a training job: what its definitions find in the lines of its log.

Each definition has a pattern, whose first group is the number ("Use Amazon CloudWatch
Metrics for Monitoring and Analyzing Training Jobs" in the developer guide). The number
is what the group has captured: `([0-9.]+)` takes 1.5 of "1.5e-05". A pattern without a
group, one that Python cannot read, and a capture that is no finite number give nothing,
as CloudWatch takes no others.
"""

from __future__ import annotations

import datetime
import math
import re
import threading
from dataclasses import dataclass
from typing import Any

from utils.offline_aws.metrics import provide

NAMESPACE = "/aws/sagemaker/TrainingJobs"
JAVA_NAMED_GROUP = re.compile(r"\(\?<(?=[A-Za-z])")
LONGEST_SEARCHED = 4096  # characters of a line: a slow pattern must not hold up the log


@dataclass(frozen=True)
class Value:
    """A number that a job has written.

    Attributes:
        name: of the metric.
        value: finite.
        moment: when the line came, in seconds since 1970.
    """

    name: str
    value: float
    moment: float

    @property
    def time(self) -> datetime.datetime:
        """The moment, as AWS's answers have it."""
        return datetime.datetime.fromtimestamp(self.moment, datetime.UTC)


class Definitions:
    """The MetricDefinitions of a job."""

    def __init__(self, given: list[dict[str, str]]):
        self._patterns = [(one["Name"], compiled(one["Regex"])) for one in given]

    def values(self, moment: float, line: str) -> list[Value]:
        """Return all that one line of the log says."""
        found = []
        for name, pattern in self._patterns:
            if pattern is None or not pattern.groups:
                continue
            for match in pattern.finditer(line[:LONGEST_SEARCHED]):
                number = as_number(match[1])
                if number is not None:
                    found.append(Value(name, number, moment))
        return found


def compiled(pattern: str) -> re.Pattern | None:
    """Return a pattern as Python reads it; None if it cannot."""
    try:
        return re.compile(JAVA_NAMED_GROUP.sub("(?P<", pattern))
    except re.error:
        return None


def as_number(text: str | None) -> float | None:
    """Return a finite number; None if a text is none."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class TrainingMetrics:
    """The values of all jobs, in the order in which they came."""

    def __init__(self) -> None:
        self._values: dict[str, list[Value]] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()

    def forget(self, job: str) -> None:
        """Forget the values of a job."""
        with self._lock:
            self._values.pop(job, None)

    def add(self, job: str, values: list[Value]) -> None:
        """Note values of a job."""
        with self._lock:
            self._values.setdefault(job, []).extend(values)

    def of(self, job: str) -> list[Value]:
        """Return the values of a job."""
        with self._lock:
            return list(self._values.get(job, ()))

    def final(self, job: str) -> list[dict[str, Any]]:
        """Return the last value of each metric, as FinalMetricDataList."""
        last = {one.name: one for one in self.of(job)}
        return [
            {"MetricName": one.name, "Value": one.value, "Timestamp": one.time}
            for one in last.values()
        ]

    def as_data(self) -> list[Any]:
        """Return everything as moto's CloudWatch keeps it."""
        from moto.cloudwatch.models import MetricDatum

        with self._lock:
            noted = [(job, one) for job, all_ in self._values.items() for one in all_]
        return [
            MetricDatum(
                NAMESPACE,
                one.name,
                one.value,
                [{"Name": "TrainingJobName", "Value": job}],
                one.time.replace(tzinfo=None),
                "None",
            )
            for job, one in noted
        ]


TRAINING_METRICS = TrainingMetrics()


def publish_training_metrics() -> None:
    """Let moto's CloudWatch read the metrics; a second call changes nothing."""
    provide("training jobs", TRAINING_METRICS.as_data)
