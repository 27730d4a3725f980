"""Alarms of the offline AWS have the state that their metric has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from utils.offline_aws import alarms
from utils.offline_aws.metrics import METRICS

NAME = "course-alarms"
PLACE = [
    {"Name": "EndpointName", "Value": NAME},
    {"Name": "VariantName", "Value": "AllTraffic"},
]
ALARM: dict[str, Any] = {
    "AlarmName": f"{NAME}-5xx",
    "Namespace": "AWS/SageMaker",
    "MetricName": "Invocation5XXErrors",
    "Dimensions": PLACE,
    "Statistic": "Sum",
    "Period": 60,
    "EvaluationPeriods": 1,
    "Threshold": 2,
    "ComparisonOperator": "GreaterThanOrEqualToThreshold",
}


@pytest.fixture
def cloudwatch(aws):
    """CloudWatch, with nothing observed before and no alarm left."""
    METRICS.clear()
    client = aws.session.client("cloudwatch")
    yield client
    found = client.describe_alarms()["MetricAlarms"]
    client.delete_alarms(AlarmNames=[one["AlarmName"] for one in found])
    METRICS.clear()


def observe(*statuses: int, latency: float = 0.25) -> None:
    for status in statuses:
        METRICS.observe(NAME, "AllTraffic", status, latency, 0.01)


def state_of(client: Any, **changes: Any) -> str:
    """Put an alarm, and return the state that AWS would describe."""
    alarm = {**ALARM, **changes}
    alarm = {key: value for key, value in alarm.items() if value is not None}
    client.put_metric_alarm(**alarm)
    found = client.describe_alarms(AlarmNames=[alarm["AlarmName"]])["MetricAlarms"]
    return found[0]["StateValue"]


def test_a_new_alarm_without_data_is_neither_well_nor_wrong(cloudwatch) -> None:
    assert state_of(cloudwatch) == "INSUFFICIENT_DATA"
    assert state_of(cloudwatch, TreatMissingData="notBreaching") == "OK"
    assert state_of(cloudwatch, TreatMissingData="breaching") == "ALARM"
    assert state_of(cloudwatch, TreatMissingData="ignore") == "OK"


def test_it_goes_off_as_soon_as_the_metric_crosses_and_says_why(cloudwatch) -> None:
    observe(200, 503, 200)
    assert state_of(cloudwatch) == "OK"
    observe(500)
    found = cloudwatch.describe_alarms(StateValue="ALARM")["MetricAlarms"]
    assert [one["AlarmName"] for one in found] == [ALARM["AlarmName"]]
    assert "1 of 1 datapoints [2.0] breach" in found[0]["StateReason"]


@pytest.mark.parametrize(
    ("statistic", "threshold", "state"),
    [
        ({"Statistic": "Average"}, 1_200_000, "OK"),
        ({"Statistic": "Average"}, 1_000_000, "ALARM"),
        ({"Statistic": "Maximum"}, 2_000_000, "ALARM"),
        ({"Statistic": "Minimum"}, 300_000, "OK"),
        ({"Statistic": "SampleCount"}, 2, "ALARM"),
        ({"ExtendedStatistic": "p50", "Statistic": None}, 300_000, "OK"),
        ({"ExtendedStatistic": "p99", "Statistic": None}, 300_000, "ALARM"),
    ],
)
def test_latencies_are_compared_in_microseconds(
    cloudwatch, statistic, threshold, state
) -> None:
    observe(200, latency=0.2)
    observe(200, latency=2.0)
    given = {"MetricName": "ModelLatency", "Threshold": threshold, **statistic}
    assert state_of(cloudwatch, **given) == state


def test_a_unit_that_the_metric_does_not_have_finds_no_data(cloudwatch) -> None:
    """Milliseconds on a metric in microseconds: such an alarm never goes off."""
    observe(200, latency=9.0)
    latency = {"MetricName": "ModelLatency", "Statistic": "Average", "Threshold": 1}
    assert state_of(cloudwatch, **latency, Unit="Microseconds") == "ALARM"
    assert state_of(cloudwatch, **latency, Unit="Milliseconds") == "INSUFFICIENT_DATA"


def test_other_dimensions_are_another_metric(cloudwatch) -> None:
    observe(500, 500)
    assert state_of(cloudwatch, Dimensions=PLACE[:1]) == "INSUFFICIENT_DATA"
    other = [{"Name": "EndpointName", "Value": f"{NAME}-2"}, PLACE[1]]
    assert state_of(cloudwatch, Dimensions=other) == "INSUFFICIENT_DATA"
    assert state_of(cloudwatch, Dimensions=PLACE[::-1]) == "ALARM"


def moto_alarm(**changes: Any) -> SimpleNamespace:
    """An alarm as moto keeps it, to evaluate at a moment of choice."""
    named = [SimpleNamespace(name=one["Name"], value=one["Value"]) for one in PLACE]
    given: dict[str, Any] = {
        "metric_name": "Invocation5XXErrors",
        "dimensions": named,
        "unit": None,
        "period": 60,
        "evaluation_periods": 3,
        "datapoints_to_alarm": 2,
        "statistic": "Sum",
        "extended_statistic": None,
        "threshold": 1.0,
        "comparison_operator": "GreaterThanOrEqualToThreshold",
        "treat_missing_data": None,
        "metric_data_queries": [],
        "state_value": "OK",
        "state_reason": "",
    }
    alarm = SimpleNamespace(**given | changes)
    alarm.update_state = lambda reason, data, state: vars(alarm).update(
        state_value=state, state_reason=reason
    )
    return alarm


@pytest.mark.parametrize(
    ("ages", "needed", "state"),
    [
        ((10,), 2, "OK"),
        ((10, 20), 2, "OK"),  # both in one period
        ((10, 70), 2, "ALARM"),
        ((70, 130), 2, "ALARM"),
        ((70, 190), 2, "OK"),  # the second is too old
        ((10, 70), 3, "OK"),
        ((10, 70, 130), None, "ALARM"),
    ],
)
def test_as_many_periods_have_to_breach_as_it_says(
    monkeypatch, ages, needed, state
) -> None:
    place = {one["Name"]: one["Value"] for one in PLACE}
    samples = [(1000.0 - age, ALARM["MetricName"], 1.0, place, "None") for age in ages]
    monkeypatch.setattr(METRICS, "samples", lambda: samples)
    alarm = moto_alarm(datapoints_to_alarm=needed)
    alarms.evaluate(alarm, now=1000.0)
    assert alarm.state_value == state


def test_a_state_set_by_hand_is_kept_for_a_while(cloudwatch, monkeypatch) -> None:
    """Thus a rollback can be rehearsed, as on AWS."""
    assert state_of(cloudwatch) == "INSUFFICIENT_DATA"
    cloudwatch.set_alarm_state(
        AlarmName=ALARM["AlarmName"], StateValue="ALARM", StateReason="a rehearsal"
    )

    def described() -> str:
        found = cloudwatch.describe_alarms(AlarmNames=[ALARM["AlarmName"]])
        return found["MetricAlarms"][0]["StateValue"]

    assert described() == "ALARM"
    monkeypatch.setattr(alarms, "SET_BY_HAND", 0)
    assert described() == "INSUFFICIENT_DATA"


def test_what_is_not_evaluated_stays_as_it_is(cloudwatch) -> None:
    observe(500, 500)
    assert state_of(cloudwatch, Namespace="Custom") == "OK"
    outside = {"ComparisonOperator": "GreaterThanUpperThreshold"}
    assert state_of(cloudwatch, **outside) == "OK"
