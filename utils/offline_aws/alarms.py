"""Alarms on endpoints' metrics: moto keeps them, and here they are evaluated.

The rules are those of "Alarm evaluation" and "Configuring how CloudWatch alarms treat
missing data" in CloudWatch's user guide: as many periods as `EvaluationPeriods` says,
of which `DatapointsToAlarm` have to breach. CloudWatch looks at whole minutes, some
time later. Here the periods end now, so that nobody has to wait. An alarm whose state
was set by hand keeps it for a while, as CloudWatch's own does until it is evaluated.
Left as moto has them: metric math, anomalies, and metrics that are no endpoint's.
"""

from __future__ import annotations

import datetime
import operator
import re
import time
from collections.abc import Callable
from typing import Any

from utils.offline_aws.metrics import METRICS, NAMESPACE, percentile
from utils.offline_aws.wrapping import wrap

OK, ALARM, NO_DATA = "OK", "ALARM", "INSUFFICIENT_DATA"
SET_BY_HAND = 10  # seconds for which such a state is kept
EVALUATED = "_offline_state"  # attribute of moto's alarm: what was found last
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": operator.ge,
    "GreaterThanThreshold": operator.gt,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}
STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "Sum": sum,
    "Average": lambda values: sum(values) / len(values),
    "Minimum": min,
    "Maximum": max,
    "SampleCount": len,
}


def evaluate_all(backend: Any) -> None:
    """Give each alarm of moto's CloudWatch the state that its metric has now."""
    for alarm in list(backend.alarms.values()):
        if alarm.rule is None and alarm.namespace == NAMESPACE:
            evaluate(alarm)


def evaluate(alarm: Any, now: float | None = None) -> None:
    """Give an alarm the state that its metric has now.

    Args:
        alarm: moto's.
        now: seconds since 1970; the clock's by default.
    """
    now = time.time() if now is None else now
    if alarm.comparison_operator not in COMPARISONS or alarm.metric_data_queries:
        return
    if alarm.state_value != getattr(alarm, EVALUATED, OK):
        changed = alarm.state_updated_timestamp.replace(tzinfo=datetime.UTC)
        if now - changed.timestamp() < SET_BY_HAND:
            return
    state, reason = _state(alarm, _datapoints(alarm, now))
    if state != alarm.state_value:
        alarm.update_state(reason, "{}", state)
    setattr(alarm, EVALUATED, state)


def _datapoints(alarm: Any, now: float) -> list[float | None]:
    """Return the statistic of each period, the newest first; None without data."""
    period, count = int(alarm.period), int(alarm.evaluation_periods)
    wanted = {one.name: one.value for one in alarm.dimensions}
    periods: list[list[float]] = [[] for _ in range(count)]
    for moment, name, value, dimensions, unit in METRICS.samples():
        place = int((now - moment) // period)
        if (
            name == alarm.metric_name
            and dimensions == wanted
            and alarm.unit in (None, "", unit)
            and 0 <= place < count
        ):
            periods[place].append(value)
    return [_statistic(alarm, values) if values else None for values in periods]


def _statistic(alarm: Any, values: list[float]) -> float:
    if alarm.statistic in STATISTICS:
        return float(STATISTICS[alarm.statistic](values))
    found = re.fullmatch(r"p(\d{1,3}(\.\d+)?)", alarm.extended_statistic or "")
    share = float(found[1]) / 100 if found else 1.0
    return percentile(values, share)


def _state(alarm: Any, points: list[float | None]) -> tuple[str, str]:
    """Return the state that datapoints make, and why."""
    breaches = COMPARISONS[alarm.comparison_operator]
    threshold = float(alarm.threshold)
    missing = alarm.treat_missing_data or "missing"
    needed = int(alarm.datapoints_to_alarm or alarm.evaluation_periods)
    known = [point for point in points if point is not None]
    if not known and missing == "missing":
        return NO_DATA, "Insufficient Data: no datapoints were received."
    if not known and missing == "ignore":
        return alarm.state_value, alarm.state_reason
    over = [point for point in known if breaches(point, threshold)]
    filled = len(points) - len(known) if missing == "breaching" else 0
    shown = ", ".join(f"{point:.1f}" for point in known) or "none"
    crossed = len(over) + filled
    reason = (
        f"Threshold Crossed: {crossed} of {len(points)} datapoints [{shown}] breach "
        f"{alarm.comparison_operator} ({threshold}); {needed} make an alarm."
    )
    return (ALARM if crossed >= needed else OK), reason


def states(names: list[str], backend: Any) -> dict[str, str | None]:
    """Return the states of alarms by name; None of one that there is not."""
    evaluate_all(backend)
    found = {name: backend.alarms.get(name) for name in names}
    return {name: alarm and alarm.state_value for name, alarm in found.items()}


def patch_alarms() -> None:
    """Let moto's CloudWatch evaluate its alarms when read, and tag only new ones."""
    from moto.cloudwatch.models import CloudWatchBackend

    def evaluated(read: Any, backend: Any, *positional: Any, **named: Any) -> Any:
        evaluate_all(backend)
        return read(backend, *positional, **named)

    for name in (
        "describe_alarms",
        "get_alarms_by_action_prefix",
        "get_alarms_by_alarm_name_prefix",
        "get_alarms_by_alarm_names",
        "get_alarms_by_state_value",
    ):
        wrap(CloudWatchBackend, name, evaluated)

    def put(original: Any, backend: Any, *positional: Any, **named: Any) -> Any:
        # "any tags you specify in this parameter are ignored" (botocore, on updates)
        if named.get("name") in backend.alarms:
            named["tags"] = None
        return original(backend, *positional, **named)

    wrap(CloudWatchBackend, "put_metric_alarm", put)
