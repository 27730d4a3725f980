"""Updates of the offline AWS that move the traffic step by step, and back again."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.endpoints import ECHO, answering, ask, deploy, new_config, upload
from utils.deployment.aws import DeploymentError, wait_until_in_service
from utils.offline_aws.shifting import Shift

BROKEN = {"model.py": ECHO.replace("body = inputs.get_as_json()", "raise ValueError")}


def canary(*alarms: str, wait: int = 30, share: int = 50) -> dict[str, Any]:
    size = {"Type": "CAPACITY_PERCENT", "Value": share}
    routing = {"Type": "CANARY", "WaitIntervalInSeconds": wait, "CanarySize": size}
    given: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}
    }
    if alarms:
        named = [{"AlarmName": alarm} for alarm in alarms]
        given["AutoRollbackConfiguration"] = {"Alarms": named}
    return given


def put_alarm(aws, name: str) -> str:
    aws.session.client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="InvocationModelErrors",
        Dimensions=[
            {"Name": "EndpointName", "Value": name},
            {"Name": "VariantName", "Value": "AllTraffic"},
        ],
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="notBreaching",
    )
    return name


@pytest.fixture
def old(aws, guard):
    """An endpoint that answers "old" and has an alarm of its name."""
    endpoint = deploy(aws, guard, upload(aws, guard, answering("old")))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    put_alarm(aws, endpoint.endpoint_name)
    yield endpoint
    client = aws.session.client("cloudwatch")
    client.delete_alarms(AlarmNames=[endpoint.endpoint_name])


def update(aws, endpoint: Any, config: str, deployment: dict | None = None) -> Any:
    client = aws.session.client("sagemaker")
    given = {"DeploymentConfig": deployment} if deployment else {}
    client.update_endpoint(
        EndpointName=endpoint.endpoint_name, EndpointConfigName=config, **given
    )
    return client


def answers(aws, name: str, count: int) -> list[str]:
    """What the endpoint says; "error" where it fails."""
    found = []
    for _ in range(count):
        try:
            found.append(ask(aws, name, "pid"))
        except ClientError:
            found.append("error")
    return found


def until_both(aws, name: str, other: str) -> set[str]:
    """Ask until the new fleet has answered."""
    deadline, found = time.monotonic() + 60, set()
    while other not in found and time.monotonic() < deadline:
        found |= set(answers(aws, name, 1))
    return found


def test_a_canary_gets_its_share_and_then_everything(aws, guard, old) -> None:
    name = old.endpoint_name
    new = new_config(aws, guard, answering("new"), "new")
    client = update(aws, old, new, canary(name, wait=3))
    until_both(aws, name, "new")
    both = answers(aws, name, 40)
    assert {"old", "new"} == set(both)
    assert client.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Updating"
    wait_until_in_service(aws, old, say=lambda _: None)
    assert answers(aws, name, 5) == ["new"] * 5


def test_an_alarm_takes_the_traffic_back_and_says_which(aws, guard, old) -> None:
    name = old.endpoint_name
    broken = new_config(aws, guard, BROKEN, "broken")
    update(aws, old, broken, canary(name, wait=600))
    until_both(aws, name, "error")
    with pytest.raises(DeploymentError, match=f"rolled back: .*ALARM were {name}"):
        wait_until_in_service(aws, old, say=lambda _: None)
    assert answers(aws, name, 10) == ["old"] * 10
    found = aws.session.client("sagemaker").describe_endpoint(EndpointName=name)
    assert found["EndpointStatus"] == "InService"
    assert found["EndpointConfigName"] == name


def test_without_an_alarm_nobody_takes_it_back(aws, guard, old) -> None:
    broken = new_config(aws, guard, BROKEN, "broken")
    update(aws, old, broken)
    wait_until_in_service(aws, old, say=lambda _: None)
    assert set(answers(aws, old.endpoint_name, 5)) == {"error"}


def test_an_alarm_in_the_last_step_counts_as_well(aws, guard, old) -> None:
    """All at once has a baking period, too."""
    name = old.endpoint_name
    broken = new_config(aws, guard, BROKEN, "broken")
    given = canary(name, wait=600)
    routing = given["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    routing.pop("CanarySize")
    routing["Type"] = "ALL_AT_ONCE"
    update(aws, old, broken, given)
    assert "error" in until_both(aws, name, "error")
    with pytest.raises(DeploymentError, match="rolled back"):
        wait_until_in_service(aws, old, say=lambda _: None)


def test_a_deletion_ends_the_baking_period(aws, guard, old) -> None:
    from utils.offline_aws.control_plane import OfflineAws

    new = new_config(aws, guard, answering("new"), "new")
    client = update(aws, old, new, canary(wait=3600))
    until_both(aws, old.endpoint_name, "new")
    with pytest.raises(ClientError, match="in-progress"):
        client.delete_endpoint(EndpointName=old.endpoint_name)
    # Only the machine's end is left, which the offline AWS sees at its close.
    started = time.monotonic()
    OfflineAws.running().endpoints[old.endpoint_name].stop()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c["CanarySize"].update(Value=60), "1 to 50 per cent.*found 60"),
        (lambda c: c.pop("CanarySize"), "CANARY needs a CanarySize"),
        (lambda c: c["CanarySize"].update(Type="INSTANCE_COUNT"), "does not play"),
        (lambda c: c.update(WaitIntervalInSeconds=4000), "less than or equal to 3600"),
    ],
)
def test_sizes_that_aws_refuses_are_refused(aws, guard, old, change, complaint) -> None:
    given = canary()
    change(given["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"])
    with pytest.raises(ClientError, match=complaint):
        update(aws, old, old.endpoint_name, given)


def test_an_alarm_that_there_is_not_is_refused(aws, guard, old) -> None:
    with pytest.raises(ClientError, match="There is no alarm course-none"):
        update(aws, old, old.endpoint_name, canary("course-none"))


def test_rolling_deployments_are_said_not_to_be_played(aws, guard, old) -> None:
    size = {"Type": "CAPACITY_PERCENT", "Value": 50}
    rolling = {"MaximumBatchSize": size, "WaitIntervalInSeconds": 60}
    with pytest.raises(ClientError, match="NotImplemented.*rolling deployments"):
        update(aws, old, old.endpoint_name, {"RollingUpdatePolicy": rolling})


@pytest.mark.parametrize(
    ("step", "shares"),
    [(50, (0.5, 1.0)), (30, (0.3, 0.6, 0.9, 1.0)), (10, tuple(range(1, 11)))],
)
def test_linear_steps_go_up_to_everything(step, shares) -> None:
    routing = {
        "Type": "LINEAR",
        "WaitIntervalInSeconds": 60,
        "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": step},
    }
    policy = {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 9}
    found = Shift.of({"BlueGreenUpdatePolicy": policy})
    expected = [share / 10 if step == 10 else share for share in shares]
    assert found.shares == pytest.approx(expected)
    assert (found.wait, found.linger) == (60, 9)
