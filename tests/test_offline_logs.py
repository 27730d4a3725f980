"""CloudWatch of the offline AWS: every line of a container in time, and its metrics."""

from __future__ import annotations

import datetime
import time

import pytest
from botocore.exceptions import ClientError

from support.endpoints import ECHO, LONG, ask, deploy, new_config, upload
from utils.deployment.aws import LOG_GROUPS, DeploymentError, wait_until_in_service

SOON = 5  # seconds in which a line has to be there
TALKING = ECHO.replace(
    "    body = inputs.get_as_json()\n",
    """    body = inputs.get_as_json()
    if str(body).startswith("say "):
        _, word, times = body.split()
        for number in range(int(times)):
            print(f"{word} {number}", flush=True)
    if body == "bad":
        return Output().error("bad", code=400)
    if body == "worse":
        return Output().error("worse", code=500)
""",
)


def messages(aws, name: str) -> list[str]:
    """Return all lines of an endpoint's log, page by page, as boto3 pages them."""
    pages = aws.session.client("logs").get_paginator("filter_log_events")
    try:
        return [
            event["message"]
            for page in pages.paginate(logGroupName=LOG_GROUPS + name)
            for event in page["events"]
        ]
    except ClientError:
        return []


def wait_for_line(aws, name: str, text: str, seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not any(text in line for line in messages(aws, name)):
        assert time.monotonic() < deadline, f"{text} is not in the log"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def talking(aws):
    """An endpoint that writes what it is told to."""
    from utils.deployment.billing import BillingGuard

    guard = BillingGuard(aws, say=lambda _: None)
    address = upload(aws, guard, {"model.py": TALKING})
    endpoint = deploy(aws, guard, address, "talking")
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    guard._stop_watching()
    BillingGuard.active = None
    yield endpoint.endpoint_name
    guard.teardown()


# --- logs -----------------------------------------------------------------------------


def test_lines_written_at_a_request_are_there_soon(aws, talking) -> None:
    ask(aws, talking, "say early 1")
    wait_for_line(aws, talking, "early 0")
    ask(aws, talking, "say later 2")
    wait_for_line(aws, talking, "later 1")


def test_every_line_is_there_once_in_order_over_many_pages(aws, talking) -> None:
    ask(aws, talking, "say many 12000")
    wait_for_line(aws, talking, "many 11999", LONG)
    numbers = [
        int(line.rpartition(" ")[2])
        for line in messages(aws, talking)
        if "many " in line
    ]
    assert numbers == list(range(12_000))
    logs = aws.session.client("logs")
    group = LOG_GROUPS + talking
    streams = logs.describe_log_streams(logGroupName=group)["logStreams"]
    assert [one["logStreamName"].split("/")[0] for one in streams] == ["AllTraffic"]
    where = {"logGroupName": group, "logStreamName": streams[0]["logStreamName"]}
    last = logs.get_log_events(**where, limit=3)["events"]
    assert [event["message"].rpartition(" ")[2] for event in last][-1] == "11999"
    found, token = [], None
    while True:
        page = logs.get_log_events(
            **where, startFromHead=True, **({"nextToken": token} if token else {})
        )
        found += page["events"]
        if page["nextForwardToken"] == token:
            break
        token = page["nextForwardToken"]
    assert len(found) >= 12_000


def test_lines_of_several_variants_come_in_the_order_of_time(aws, guard) -> None:
    address = upload(aws, guard, {"model.py": TALKING})
    endpoint = deploy(aws, guard, address, variants={"a": 1, "b": 1})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    for number, variant in enumerate("abab"):
        ask(aws, name, f"say turn{number} 1", TargetVariant=variant)
        time.sleep(0.01)
    wait_for_line(aws, name, "turn3 0")
    turns = [line[-6:-2] for line in messages(aws, name) if "turn" in line]
    assert turns == [f"urn{n}" for n in range(4)]
    logs = aws.session.client("logs")
    streams = logs.describe_log_streams(logGroupName=LOG_GROUPS + name)["logStreams"]
    assert {one["logStreamName"].split("/")[0] for one in streams} == {"a", "b"}


def test_the_last_lines_before_the_end_are_there(aws, guard) -> None:
    """Of one that does not start, and of one that an update replaces."""
    words = 'print("last words", flush=True)\nimport nosuch_module'
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": words}))
    with pytest.raises(DeploymentError, match="nosuch_module"):
        wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert any("last words" in line for line in messages(aws, endpoint.endpoint_name))

    address = upload(aws, guard, {"model.py": TALKING})
    endpoint = deploy(aws, guard, address, "replaced")
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    new = new_config(aws, guard, {"model.py": TALKING}, "new")
    ask(aws, name, "say old 300")
    aws.session.client("sagemaker").update_endpoint(
        EndpointName=name, EndpointConfigName=new
    )
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert sum("old " in line for line in messages(aws, name)) == 300
    ask(aws, name, "say end 300")
    endpoint.delete()
    assert sum("end " in line for line in messages(aws, name)) == 300


# --- metrics --------------------------------------------------------------------------


def statistics(aws, endpoint: str, name: str, statistic: str, variant="AllTraffic"):
    """Return a metric's statistic of the last minutes, by both calls that read it."""
    client = aws.session.client("cloudwatch")
    now = datetime.datetime.now(datetime.UTC)
    where = {
        "Namespace": "AWS/SageMaker",
        "MetricName": name,
        "Dimensions": [
            {"Name": "EndpointName", "Value": endpoint},
            {"Name": "VariantName", "Value": variant},
        ],
    }
    start = now - datetime.timedelta(minutes=10)
    points = client.get_metric_statistics(
        **where,
        StartTime=start,
        EndTime=now + datetime.timedelta(minutes=1),
        Period=3600,
        Statistics=[statistic],
    )["Datapoints"]
    query = {
        "Id": "a",
        "MetricStat": {"Metric": where, "Period": 3600, "Stat": statistic},
    }
    results = client.get_metric_data(
        MetricDataQueries=[query],
        StartTime=start,
        EndTime=now + datetime.timedelta(minutes=1),
    )["MetricDataResults"]
    values = results[0]["Values"]
    assert [point[statistic] for point in points] == pytest.approx(values)
    return values[0] if values else None


def test_requests_errors_and_latencies_are_counted(aws, guard) -> None:
    address = upload(aws, guard, {"model.py": TALKING})
    endpoint = deploy(aws, guard, address, variants={"a": 1, "b": 1})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    for body, times in ((1, 3), ("slow", 1), ("bad", 2), ("worse", 1)):
        for _ in range(times):
            try:
                ask(aws, name, body, TargetVariant="a")
            except ClientError as error:
                status = {"bad": 400, "worse": 500}[body]
                assert error.response["OriginalStatusCode"] == status
    ask(aws, name, 1, TargetVariant="b")
    for wrong in ({"TargetVariant": "nosuch"}, {"TargetModel": "a"}):
        with pytest.raises(ClientError):  # never reached a model
            ask(aws, name, 1, **wrong)
    reply = aws.session.client(
        "sagemaker-runtime"
    ).invoke_endpoint_with_response_stream(
        EndpointName=name, Body=b'"count"', TargetVariant="a"
    )
    assert len(list(reply["Body"])) == 3

    def of_a(metric: str, statistic: str) -> float:
        return statistics(aws, name, metric, statistic, "a")

    assert of_a("Invocations", "Sum") == 8
    assert of_a("Invocations", "SampleCount") == 8
    assert of_a("InvocationsPerInstance", "Sum") == 8
    assert of_a("Invocation4XXErrors", "Sum") == 2
    assert of_a("Invocation4XXErrors", "Average") == pytest.approx(2 / 8)
    assert of_a("Invocation5XXErrors", "Sum") == 1
    assert of_a("InvocationModelErrors", "Sum") == 3
    # In microseconds: one takes a second and a half.
    assert 1.5e6 < of_a("ModelLatency", "Maximum") < 10e6
    assert 100 < of_a("ModelLatency", "Minimum") < 1.5e6
    assert 0 <= of_a("OverheadLatency", "Minimum") < of_a("ModelLatency", "Maximum")
    assert statistics(aws, name, "Invocations", "Sum", "b") == 1
    assert statistics(aws, name, "Invocations", "Sum", "c") is None
    assert statistics(aws, "other", "Invocations", "Sum", "a") is None


def test_metrics_are_listed_with_their_dimensions(aws, talking) -> None:
    ask(aws, talking, 1)
    found = aws.session.client("cloudwatch").list_metrics(
        Namespace="AWS/SageMaker",
        Dimensions=[{"Name": "EndpointName", "Value": talking}],
    )["Metrics"]
    assert {metric["MetricName"] for metric in found} >= {
        "Invocations",
        "Invocation4XXErrors",
        "Invocation5XXErrors",
        "ModelLatency",
        "OverheadLatency",
    }
    names = [one["Name"] for one in found[0]["Dimensions"]]
    assert names == ["EndpointName", "VariantName"]


def test_percentiles_of_latency_can_be_read(aws, talking) -> None:
    for _ in range(3):
        ask(aws, talking, 1)
    now = datetime.datetime.now(datetime.UTC)
    metric = {
        "Namespace": "AWS/SageMaker",
        "MetricName": "ModelLatency",
        "Dimensions": [
            {"Name": "EndpointName", "Value": talking},
            {"Name": "VariantName", "Value": "AllTraffic"},
        ],
    }
    values = {}
    for stat in ("p50", "p99.9", "Minimum", "Maximum"):
        query = {
            "Id": "a",
            "MetricStat": {"Metric": metric, "Period": 3600, "Stat": stat},
        }
        values[stat] = aws.session.client("cloudwatch").get_metric_data(
            MetricDataQueries=[query],
            StartTime=now - datetime.timedelta(minutes=30),
            EndTime=now + datetime.timedelta(minutes=1),
        )["MetricDataResults"][0]["Values"][0]
    assert values["Minimum"] <= values["p50"] <= values["p99.9"]
    assert values["p99.9"] == values["Maximum"]
