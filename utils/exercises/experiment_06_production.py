"""Checks for the exercises of experiment 06, what production adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.exercises.frame import NotTried, Wrong, exercise, read_number, require_type

NAMESPACE = "AWS/SageMaker"
PER_INSTANCE = "ApproximateBacklogSizePerInstance"
BACKLOG = "ApproximateBacklogSize"
SECONDS_AN_HOUR = 3600


@exercise("a dictionary with TargetValue and a metric")
def check_async_policy(
    policy: Mapping[str, Any], published: Sequence[Mapping[str, Any]]
) -> str:
    """Check what an asynchronous endpoint is to be scaled by.

    First used in experiment 06_production, section 3.

    Args:
        policy: the learner's TargetTrackingScalingPolicyConfiguration.
        published: the endpoint's metrics, as CloudWatch's ListMetrics names them.
    """
    require_type(Mapping, policy, "a dictionary")
    if "PredefinedMetricSpecification" in policy:
        raise Wrong(
            "the predefined metrics count invocations, which an asynchronous endpoint "
            "never publishes: nothing would ever scale. Name a metric of the list."
        )
    if read_number(policy.get("TargetValue"), "a number as TargetValue") <= 0:
        raise Wrong("TargetValue is how many requests may wait: a number above 0.")
    metric = policy.get("CustomizedMetricSpecification")
    if not isinstance(metric, Mapping):
        raise Wrong("a metric of your own goes under CustomizedMetricSpecification.")
    if metric.get("Namespace") != NAMESPACE:
        raise Wrong(f"Namespace: SageMaker's metrics are in {NAMESPACE!r}.")
    name = metric.get("MetricName")
    known = {one["MetricName"] for one in published}
    if name not in known:
        raise Wrong(f"{name} is never published here: {', '.join(sorted(known))} are.")
    if name == BACKLOG:
        raise Wrong(
            f"{name} is that of all machines: two need not work off half of it each. "
            "There is one per instance."
        )
    if name != PER_INSTANCE:
        raise Wrong(f"{name} does not say how many requests wait for a machine.")
    dimensions = _pairs(metric.get("Dimensions", ()))
    places = [
        _pairs(one["Dimensions"]) for one in published if one["MetricName"] == name
    ]
    if dimensions not in places:
        wanted = " or ".join(str(sorted(key for key, _ in place)) for place in places)
        raise Wrong(
            f"with other dimensions it is another metric: this one has {wanted} only, "
            "with the endpoint's name."
        )
    if metric.get("Statistic") != "Average":
        raise Wrong(
            "the Statistic of a backlog is its Average: a Sum grows with the looks."
        )
    return "it is published, falls as machines are added, and so can be tracked."


def _pairs(dimensions: Any) -> set[tuple[str, str]]:
    try:
        return {(one["Name"], one["Value"]) for one in dimensions}
    except (TypeError, KeyError):
        raise Wrong(
            'Dimensions is a list of {"Name": …, "Value": …}, one for each.'
        ) from None


@exercise("a function that returns an alarm for p95 in microseconds")
def check_latency_alarm(latency_alarm: Callable[[float], Mapping[str, Any]]) -> str:
    """Check an alarm for the slow twentieth of replies, on several limits.

    First used in experiment 06_production, section 4.

    Args:
        latency_alarm: the learner's; it gets milliseconds and returns the arguments of
            `put_metric_alarm` that hold the statistic and its limit.
    """
    if not callable(latency_alarm):
        raise Wrong("expected a function: `def latency_alarm(milliseconds): ...`.")
    for limit in (250, 800):
        try:
            alarm = latency_alarm(limit)
        except Exception as error:
            raise Wrong(
                f"latency_alarm stops with {type(error).__name__}: {error}."
            ) from error
        require_type(Mapping, alarm, "a dictionary of put_metric_alarm's arguments")
        threshold = read_number(alarm.get("Threshold"), "a number as Threshold")
        average = alarm.get("Statistic") == "Average"
        extended = alarm.get("ExtendedStatistic")
        if threshold == limit and average and extended is None:
            raise NotTried(
                "the alarm still compares the mean, which is in microseconds, with "
                "milliseconds: it is always on. Let it take p95, in its unit."
            )
        if alarm.get("Unit", "Microseconds") != "Microseconds":
            raise Wrong(
                f"with Unit {alarm['Unit']} the alarm looks for a metric that is not "
                "published, and never goes off."
            )
        if threshold == limit:
            raise Wrong("Threshold is in milliseconds, the metric in microseconds.")
        if threshold != 1000 * limit:
            raise Wrong(
                f"for {limit} ms the Threshold should be {1000 * limit}, found "
                f"{threshold:g}."
            )
        if "Statistic" in alarm and extended is not None:
            raise Wrong("AWS takes Statistic or ExtendedStatistic, not both.")
        if extended != "p95":
            raise Wrong(
                "one slow reply in twenty is what p95 shows; the statistic here is "
                f"{extended or alarm.get('Statistic')}. Percentiles go into "
                "ExtendedStatistic."
            )
        if not str(alarm.get("ComparisonOperator")).startswith("GreaterThan"):
            raise Wrong("the alarm is to go off above the limit: GreaterThanThreshold.")
    return "it goes off when one reply in twenty is too slow, in the metric's own unit."


@exercise("a share between 0 and 1")
def check_utilisation(
    share: float, price: float, tokens_per_second: float, api_price: float
) -> str:
    """Check at which utilisation a machine costs what an API asks.

    First used in experiment 06_production, section 6.

    Args:
        share: the learner's answer.
        price: US dollars an hour, of the machine.
        tokens_per_second: that it generates at full load.
        api_price: US dollars per million tokens.
    """
    share = read_number(share, "a share")
    right = price / (tokens_per_second * SECONDS_AN_HOUR * api_price / 1_000_000)
    if abs(share / 100 - right) < 0.01 * right:
        raise Wrong("that is in per cent; give a share between 0 and 1.")
    if abs(share * right - 1) < 0.01:
        raise Wrong("that is the other way round: the machine's price goes on top.")
    if abs(share / SECONDS_AN_HOUR - right) < 0.01 * right:
        raise Wrong("the price is by the hour, the tokens by the second.")
    if abs(share - right) > 0.01 * right:
        raise Wrong(
            "compare an hour of both: what the machine costs, and what the API would "
            "ask for all tokens that the machine can generate in that hour."
        )
    return f"from {right:.0%} of full load on, the machine is the cheaper one."
