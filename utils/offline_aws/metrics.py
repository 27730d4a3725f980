"""What SageMaker tells CloudWatch of an endpoint's requests.

Names, units and dimensions: "Amazon SageMaker AI metrics in Amazon CloudWatch" and
"Alarms and logs for tracking metrics from asynchronous endpoints" in the developer
guide. The latter's list is whole: an asynchronous endpoint publishes no Invocations, no
InvocationsPerInstance and no OverheadLatency. Latencies are in microseconds.
"""

from __future__ import annotations

import datetime
import math
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION

NAMESPACE = "AWS/SageMaker"
RESOLUTION = 60  # seconds; "metrics are available at a 1-minute frequency"
MICROSECONDS = "Microseconds"
# metric → unit, for endpoints that answer at once
OF_INVOCATIONS = {
    "Invocations": "None",
    "InvocationsPerInstance": "None",
    "Invocation4XXErrors": "None",
    "Invocation5XXErrors": "None",
    "InvocationModelErrors": "None",
    "ModelLatency": MICROSECONDS,
    "OverheadLatency": MICROSECONDS,
}
NOT_OF_ASYNCHRONOUS = {"Invocations", "InvocationsPerInstance", "OverheadLatency"}
NO_REPLY = 0  # the status of a request to which the model gave none


class Observations:
    """The requests to one variant of one endpoint, one number each and no object."""

    def __init__(self, asynchronous: bool):
        self.asynchronous = asynchronous
        self.moments = array("d")  # seconds since 1970
        self.statuses = array("h")
        self.latencies = array("d")  # seconds, of the model
        self.overheads = array("d")  # seconds, of all else

    def add(self, status: int, latency: float, overhead: float) -> None:
        """Note a request that was answered now."""
        self.moments.append(time.time())
        self.statuses.append(status)
        self.latencies.append(latency)
        self.overheads.append(overhead)

    def values(self) -> Iterator[tuple[float, str, float]]:
        """Yield moment, metric and value of all that was noted."""
        for moment, status, latency, overhead in zip(
            self.moments, self.statuses, self.latencies, self.overheads, strict=False
        ):
            values = {
                "Invocations": 1.0,
                "InvocationsPerInstance": 1.0,
                "Invocation4XXErrors": float(400 <= status < 500),
                "Invocation5XXErrors": float(status >= 500 or status == NO_REPLY),
                "InvocationModelErrors": float(not 200 <= status < 300),
                "ModelLatency": latency * 1e6,
                "OverheadLatency": overhead * 1e6,
            }
            for name, value in values.items():
                if not (self.asynchronous and name in NOT_OF_ASYNCHRONOUS):
                    yield moment, name, value


class Metrics:
    """All that is observed of this account's endpoints."""

    def __init__(self) -> None:
        self._observed: dict[tuple[str, str], Observations] = {}
        self._counted: list[tuple[float, str, str, float, str]] = []
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._observed.clear()
            self._counted.clear()

    def observe(
        self,
        endpoint: str,
        variant: str,
        status: int,
        latency: float,
        overhead: float,
        asynchronous: bool = False,
    ) -> None:
        """Note a request.

        Args:
            endpoint: its name.
            variant: that answered.
            status: of the model's answer; NO_REPLY if there was none.
            latency: seconds that the model took.
            overhead: seconds that the rest took.
            asynchronous: whether nobody waited for it.
        """
        with self._lock:
            place = self._observed.setdefault(
                (endpoint, variant), Observations(asynchronous)
            )
            place.add(status, latency, overhead)

    def count(
        self, endpoint: str, name: str, value: float = 1.0, unit: str = "None"
    ) -> None:
        """Note a value of a metric that has no variant."""
        with self._lock:
            self._counted.append((time.time(), endpoint, name, value, unit))

    def samples(self) -> list[tuple[float, str, float, dict[str, str], str]]:
        """Return moment, metric, value, dimensions and unit of all that was noted."""
        with self._lock:
            found = [
                (
                    moment,
                    name,
                    value,
                    {"EndpointName": endpoint, "VariantName": variant},
                    OF_INVOCATIONS[name],
                )
                for (endpoint, variant), observed in self._observed.items()
                for moment, name, value in observed.values()
            ]
            found += [
                (moment, name, value, {"EndpointName": endpoint}, unit)
                for moment, endpoint, name, value, unit in self._counted
            ]
        return found

    def as_data(self) -> list[Any]:
        """Return everything as moto's CloudWatch keeps it."""
        from moto.cloudwatch.models import MetricDatum

        def datum(
            moment: float, name: str, value: float, dimensions: dict, unit: str
        ) -> Any:
            whole = moment - moment % RESOLUTION
            return MetricDatum(
                NAMESPACE,
                name,
                value,
                [{"Name": key, "Value": text} for key, text in dimensions.items()],
                datetime.datetime.fromtimestamp(whole, datetime.UTC).replace(
                    tzinfo=None
                ),
                unit,
            )

        return [
            datum(moment, name, value, dimensions, unit)
            for moment, name, value, dimensions, unit in self.samples()
        ]


METRICS = Metrics()


# By what they provide: subclasses are kept weakly, and these are to stay.
_PROVIDERS: dict[str, type] = {}


def publish_to_moto() -> None:
    """Let moto's CloudWatch read the metrics; a second call changes nothing."""
    provide("endpoints", METRICS.as_data)


def provide(what: str, read: Callable[[], list[Any]]) -> None:
    """Let moto's CloudWatch read what a function returns, too.

    moto asks each subclass of its `CloudWatchMetricProvider` whenever it is read.

    Args:
        what: the name under which it is provided once.
        read: returns the metrics as moto keeps them.
    """
    from moto.core.common_models import CloudWatchMetricProvider

    if what in _PROVIDERS:
        return

    class OurMetrics(CloudWatchMetricProvider):
        @staticmethod
        def get_cloudwatch_metrics(account_id: str, region: str) -> list[Any]:
            if (account_id, region) != (OFFLINE_ACCOUNT, OFFLINE_REGION):
                return []
            return read()

    _PROVIDERS[what] = OurMetrics


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the others does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
