"""Alarms and scaling that a run made are deleted with it, and no neighbour's."""

from __future__ import annotations

import contextlib

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from utils.deployment import attached
from utils.deployment.billing import BillingGuard

LIMITS = {"MinCapacity": 1, "MaxCapacity": 2}


def target(endpoint: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def scale(session, endpoint: str) -> None:
    client = session.client("application-autoscaling")
    client.register_scalable_target(**target(endpoint), **LIMITS)
    client.put_scaling_policy(
        **target(endpoint),
        PolicyName="by-invocations",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 60.0,
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
            },
        },
    )


def put_alarm(session, name: str, threshold: float = 1) -> None:
    session.client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=threshold,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
    )


def alarms(session) -> set[str]:
    found = session.client("cloudwatch").describe_alarms()["MetricAlarms"]
    return {one["AlarmName"] for one in found}


def targets(session) -> set[str]:
    client = session.client("application-autoscaling")
    found = client.describe_scalable_targets(ServiceNamespace="sagemaker")
    return {one["ResourceId"] for one in found["ScalableTargets"]}


@pytest.fixture
def other(aws, echo):
    """Somebody else's session, which no guard watches, and its things."""
    session = boto3.Session(region_name=aws.region)
    yield session
    client = session.client("application-autoscaling")
    for _ in targets(session):
        client.deregister_scalable_target(**target(echo.endpoint_name))
    session.client("cloudwatch").delete_alarms(AlarmNames=sorted(alarms(session)))


def test_what_a_run_attached_is_noted_and_goes_with_it(aws, guard, echo) -> None:
    from support.endpoints import ECHO, deploy, upload
    from utils.deployment.aws import wait_until_in_service

    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": ECHO}))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    for _ in range(2):  # a cell that is run twice
        scale(aws.session, name)
        put_alarm(aws.session, f"{name}-5xx")
    kinds = [entry.kind for entry in guard.entries if entry.kind in attached.KINDS]
    assert kinds == [attached.TARGET, attached.POLICY, attached.ALARM]
    assert len(alarms(aws.session)) == 3  # with the two of target tracking
    left = " ".join(guard.remaining())
    assert f"scaling target endpoint/{name}/variant/AllTraffic" in left
    assert f"alarm {name}-5xx" in left
    assert (
        f"| alarm | `{name.replace(guard.run, '…')}-5xx` |" in guard._repr_markdown_()
    )
    guard.teardown()
    assert guard.remaining() == []
    assert alarms(aws.session) == targets(aws.session) == set()


def test_names_that_begin_alike_are_not_taken_along(aws, guard, other) -> None:
    name = guard.name("faq")
    put_alarm(aws.session, name)
    put_alarm(other, f"{name}-2")
    put_alarm(other, name[:-1])
    guard.teardown()
    assert alarms(other) == {f"{name}-2", name[:-1]}


def test_what_was_there_before_is_not_deleted(aws, guard, echo, other) -> None:
    """An alarm that the run only changed, a policy for somebody else's endpoint."""
    put_alarm(other, "by-hand")
    put_alarm(aws.session, "by-hand", threshold=5)
    scale(aws.session, echo.endpoint_name)
    guard.teardown()
    assert "by-hand" in alarms(other)
    assert len(alarms(other)) == 3
    assert len(targets(other)) == 1


def test_a_failed_cell_deletes_them_as_well(aws, other) -> None:
    class Failed:
        success = False

    with BillingGuard(aws, lambda _: None) as guard:
        put_alarm(aws.session, guard.name("a"))
        guard._after_cell(Failed)
        assert alarms(other) == set()


def test_an_entry_knows_all_that_names_it() -> None:
    params = {**target("faq"), "PolicyName": "p", "PolicyType": "StepScaling"}
    entry = attached.noted(attached.POLICY, params)
    assert entry.place == {**target("faq"), "PolicyName": "p"}
    assert entry.name == "endpoint/faq/variant/AllTraffic p"


# --- the model registry ---------------------------------------------------------------


def add_package(client, group: str) -> str:
    specification = {
        "Containers": [{"Image": "image", "ModelDataUrl": "s3://bucket/model.tar.gz"}],
        "SupportedContentTypes": ["application/json"],
        "SupportedResponseMIMETypes": ["application/json"],
    }
    return client.create_model_package(
        ModelPackageGroupName=group, InferenceSpecification=specification
    )["ModelPackageArn"]


def packages(client, group: str) -> set[str]:
    found = client.list_model_packages(ModelPackageGroupName=group)
    return {one["ModelPackageArn"] for one in found["ModelPackageSummaryList"]}


def groups(client) -> set[str]:
    found = client.list_model_package_groups()["ModelPackageGroupSummaryList"]
    return {one["ModelPackageGroupName"] for one in found}


def test_a_group_of_versions_goes_with_all_that_is_in_it(aws, guard) -> None:
    client = aws.session.client("sagemaker")
    name = guard.name("versions")
    client.create_model_package_group(ModelPackageGroupName=name)
    add_package(client, name)
    # By a session that no guard watches: in the run's own group all the same.
    add_package(boto3.Session(region_name=aws.region).client("sagemaker"), name)
    assert f"model package group {name}" in guard.remaining()
    guard.teardown()
    assert guard.remaining() == []
    assert name not in groups(client)


def test_of_a_neighbours_group_only_the_runs_own_versions_go(aws, guard) -> None:
    neighbour = boto3.Session(region_name=aws.region).client("sagemaker")
    name = "a-neighbours-versions"
    neighbour.create_model_package_group(ModelPackageGroupName=name)
    theirs = add_package(neighbour, name)
    client = aws.session.client("sagemaker")
    ours = add_package(client, name)
    assert packages(client, name) == {theirs, ours}
    guard.teardown()
    assert packages(neighbour, name) == {theirs}
    neighbour.delete_model_package(ModelPackageName=theirs)
    neighbour.delete_model_package_group(ModelPackageGroupName=name)


def test_what_was_deleted_by_hand_is_no_failure(aws, guard) -> None:
    client = aws.session.client("sagemaker")
    name = guard.name("versions")
    client.create_model_package_group(ModelPackageGroupName=name)
    client.delete_model_package(ModelPackageName=add_package(client, name))
    client.delete_model_package_group(ModelPackageGroupName=name)
    guard.teardown()
    assert guard.remaining() == []


ARN = "arn:aws:sagemaker:us-east-1:123456789012:model-package"


def test_all_versions_are_listed_before_one_is_deleted() -> None:
    client = boto3.Session("a", "b", region_name="us-east-1").client("sagemaker")
    tag, made = {"Key": "course-run", "Value": "run"}, {"CreationTime": 0}
    group = {"ModelPackageGroupName": "g", "ModelPackageGroupArn": f"{ARN}-group/g"}
    group |= {"CreatedBy": {}, "ModelPackageGroupStatus": "Completed"}
    with Stubber(client) as stub:
        stub.add_response("describe_model_package_group", group | made)
        stub.add_response("list_tags", {"Tags": [tag]})
        for number, more in ((1, {"NextToken": "more"}), (2, {})):
            version = {"ModelPackageArn": f"{ARN}/g/{number}"}
            version |= {"ModelPackageStatus": "Completed"}
            listed = {"ModelPackageSummaryList": [version | made]}
            stub.add_response("list_model_packages", listed | more)
        for number in (1, 2):
            wanted = {"ModelPackageName": f"{ARN}/g/{number}"}
            stub.add_response("delete_model_package", {}, wanted)
        stub.add_response("delete_model_package_group", {})
        attached._delete_group(client, "g", tag)
        stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (f"ModelPackage {ARN}/g/1 does not exist.", True),
        (f"Could not find model package '{ARN}/g/1'.", True),
        ("1 validation error detected: Member must satisfy a pattern", False),
        ("ARN should be scoped to correct region: us-west-2", False),
    ],
)
def test_only_what_is_not_there_is_taken_for_gone(message, missing) -> None:
    client = boto3.Session("a", "b", region_name="us-east-1").client("sagemaker")
    with Stubber(client) as stub:
        stub.add_client_error("delete_model_package", "ValidationException", message)
        refused = contextlib.nullcontext() if missing else pytest.raises(ClientError)
        with refused:
            attached._delete_package(client, f"{ARN}/g/1")
