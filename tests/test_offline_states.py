"""States, order and quotas: what AWS allows when, and to whom."""

from __future__ import annotations

import time

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from support.endpoints import (
    ECHO,
    FOR_EVER,
    answering,
    ask,
    deploy,
    new_config,
    upload,
    wait_for_worker,
)
from utils.deployment.aws import wait_until_in_service
from utils.offline_aws.control_plane import OfflineAws

IN_PROGRESS = (
    r"Cannot update in-progress endpoint \"arn:aws:sagemaker:us-east-1:123456789012:"
    r"endpoint/[a-z0-9-]+\""
)
SLOW = {"model.py": ECHO.replace("return None", f"time.sleep({FOR_EVER})")}


def error_of(call) -> dict:
    with pytest.raises(ClientError) as failure:
        call()
    return failure.value.response["Error"]


# --- states ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["Creating", "Updating"])
def test_an_endpoint_in_transition_cannot_be_changed_nor_deleted(
    aws, guard, state
) -> None:
    client = aws.session.client("sagemaker")
    files = SLOW if state == "Creating" else {"model.py": ECHO}
    endpoint = deploy(aws, guard, upload(aws, guard, files))
    name = endpoint.endpoint_name
    own = OfflineAws.running().endpoints[name]
    if state == "Updating":
        wait_until_in_service(aws, endpoint, say=lambda _: None)
        slow = new_config(aws, guard, SLOW, "slow")
        client.update_endpoint(EndpointName=name, EndpointConfigName=slow)
    found = client.describe_endpoint(EndpointName=name)
    assert found["EndpointStatus"] == state
    where = {"EndpointName": name}
    config = endpoint.endpoint_config_name
    weights = [{"VariantName": "AllTraffic", "DesiredWeight": 1}]
    for call in (
        lambda: client.update_endpoint(**where, EndpointConfigName=config),
        lambda: client.delete_endpoint(**where),
        lambda: client.update_endpoint_weights_and_capacities(
            **where, DesiredWeightsAndCapacities=weights
        ),
    ):
        error = error_of(call)
        assert error["Code"] == "ValidationException"
        with pytest.raises(ClientError, match=IN_PROGRESS):
            call()
    assert client.describe_endpoint(**where)["EndpointStatus"] == state
    if state == "Updating":
        assert ask(aws, name, [1]) == [1]  # the old container goes on
    else:
        assert "not found" in error_of(lambda: ask(aws, name, 1))["Message"]
        wait_for_worker(own.variants[0].container)
    own.stop()  # or it would take for ever


def test_a_failed_endpoint_can_only_be_deleted(aws, guard) -> None:
    client = aws.session.client("sagemaker")
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": "import nosuch"}))
    name = endpoint.endpoint_name
    while client.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating":
        time.sleep(0.1)
    error = error_of(
        lambda: client.update_endpoint(EndpointName=name, EndpointConfigName=name)
    )
    assert "Cannot update failed endpoint" in error["Message"]
    client.delete_endpoint(EndpointName=name)
    error = error_of(lambda: client.delete_endpoint(EndpointName=name))
    assert error["Code"] == "ValidationException"
    assert error["Message"] == (
        'Could not find endpoint "arn:aws:sagemaker:us-east-1:123456789012:endpoint/'
        f'{name}".'
    )


# --- order ----------------------------------------------------------------------------


def test_configuration_and_model_go_first_and_the_endpoint_serves_on(
    aws, guard
) -> None:
    """AWS advises against it and does not refuse it; then no update is possible."""
    client = aws.session.client("sagemaker")
    endpoint = deploy(aws, guard, upload(aws, guard, answering("old")))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    new = new_config(aws, guard, answering("new"), "new")
    client.delete_model(ModelName=name)
    client.delete_endpoint_config(EndpointConfigName=name)
    assert ask(aws, name, "pid") == "old"
    found = client.describe_endpoint(EndpointName=name)
    assert found["EndpointStatus"] == "InService"
    error = error_of(
        lambda: client.update_endpoint(EndpointName=name, EndpointConfigName=new)
    )
    assert error["Message"].startswith('Could not find endpoint configuration "arn:')
    client.delete_endpoint(EndpointName=name)
    assert "not found" in error_of(lambda: ask(aws, name, 1))["Message"]


# --- quotas ---------------------------------------------------------------------------


def test_a_quota_of_zero_is_a_new_account(aws, guard, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_QUOTAS", "ml.g5.xlarge=0")
    address = upload(aws, guard, {"model.py": ECHO})
    error = error_of(lambda: deploy(aws, guard, address))
    assert error["Code"] == "ResourceLimitExceeded"
    assert error["Message"] == (
        "The account-level service limit 'ml.g5.xlarge for endpoint usage' is 0 "
        "Instances, with current utilization of 0 Instances and a request delta of 1 "
        "Instances. Please use AWS Service Quotas to request an increase for this "
        "quota."
    )
    client = aws.session.client("sagemaker")
    assert client.list_endpoints()["Endpoints"] == []
    # Model and configuration exist, as on AWS; with the quota the endpoint does.
    monkeypatch.setenv("COURSE_QUOTAS", "ml.g5.xlarge=1, ml.m5.large=0")
    name = guard.name("echo")
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)


def test_an_update_needs_room_beside_what_runs(aws, guard, monkeypatch) -> None:
    client = aws.session.client("sagemaker")
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address, variants={"a": 1, "b": 1})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    new = new_config(aws, guard, {"model.py": ECHO}, "new")
    monkeypatch.setenv("COURSE_QUOTAS", "ml.g5.xlarge=2")
    error = error_of(
        lambda: client.update_endpoint(EndpointName=name, EndpointConfigName=new)
    )
    assert (
        "current utilization of 2 Instances and a request delta of 1"
        in (error["Message"])
    )
    monkeypatch.setenv("COURSE_QUOTAS", "ml.g5.xlarge=3")
    client.update_endpoint(EndpointName=name, EndpointConfigName=new)
    wait_until_in_service(aws, endpoint, say=lambda _: None)


def test_calls_beyond_the_rate_are_throttled(aws, monkeypatch) -> None:
    once = Config(retries={"total_max_attempts": 1})
    client = aws.session.client("sagemaker", config=once)
    time.sleep(1.1)
    monkeypatch.setenv("COURSE_QUOTAS", "calls=3")
    for _ in range(3):
        client.list_models()
    error = error_of(client.list_models)
    assert error == {"Code": "ThrottlingException", "Message": "Rate exceeded"}
    runtime = aws.session.client("sagemaker-runtime", config=once)
    assert error_of(lambda: runtime.invoke_endpoint(EndpointName="a", Body=b"1")) == {
        "Code": "ThrottlingException",
        "Message": "Rate exceeded",
    }
    aws.session.client("s3").list_buckets()  # of SageMaker only
    # The SDK's own retries come through.
    assert aws.session.client("sagemaker").list_models()["Models"] == []


@pytest.mark.parametrize("wrong", ["ml.g5.xlarge", "g5.xlarge=1", "calls=-1", "a=b"])
def test_a_mistake_in_the_variable_is_told(aws, monkeypatch, wrong) -> None:
    monkeypatch.setenv("COURSE_QUOTAS", f"ml.m5.large=1,{wrong}")
    error = error_of(aws.session.client("sagemaker").list_models)
    assert (
        f"COURSE_QUOTAS holds {wrong!r}: expected an instance type"
        in (error["Message"])
    )
