"""What scales endpoints of the offline AWS: targets, policies, and what they forbid."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.endpoints import AMI, ask

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
CODE = {
    "PredefinedMetricSpecification": {
        "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
    }
}


def where(name: str, variant: str = "AllTraffic") -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/{variant}",
        "ScalableDimension": DIMENSION,
    }


def policy(name: str, tracking: dict | None = None) -> dict[str, Any]:
    return {
        **where(name),
        "PolicyName": "by-invocations",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": 60.0,
            **(tracking or CODE),
        },
    }


@pytest.fixture
def scaler(aws, echo):
    """Application Auto Scaling, with the endpoint as a target, and clean afterwards."""
    client = aws.session.client("application-autoscaling")
    name = echo.endpoint_name
    client.register_scalable_target(**where(name), MinCapacity=1, MaxCapacity=4)
    yield client
    for found in policies(client):
        client.delete_scaling_policy(**where(name), PolicyName=found["PolicyName"])
    for target in targets(client):
        client.deregister_scalable_target(
            ServiceNamespace="sagemaker",
            ResourceId=target["ResourceId"],
            ScalableDimension=target["ScalableDimension"],
        )


def targets(client: Any) -> list[dict]:
    found = client.describe_scalable_targets(ServiceNamespace="sagemaker")
    return found["ScalableTargets"]


def policies(client: Any) -> list[dict]:
    found = client.describe_scaling_policies(ServiceNamespace="sagemaker")
    return found["ScalingPolicies"]


def tracking_alarms(aws) -> list[dict]:
    found = aws.session.client("cloudwatch").describe_alarms()["MetricAlarms"]
    return [one for one in found if one["AlarmName"].startswith("TargetTracking-")]


def refused(call) -> dict:
    with pytest.raises(ClientError) as failure:
        call()
    return failure.value.response["Error"]


def test_target_tracking_makes_its_two_alarms_and_takes_them_away(
    aws, echo, scaler
) -> None:
    made = scaler.put_scaling_policy(**policy(echo.endpoint_name))
    names = {one["AlarmName"] for one in made["Alarms"]}
    found = tracking_alarms(aws)
    assert {one["AlarmName"] for one in found} == names
    beginning = f"TargetTracking-endpoint/{echo.endpoint_name}/variant/AllTraffic-Alarm"
    assert all(name.startswith(beginning) for name in names)
    high, low = sorted(found, key=lambda one: one["AlarmName"])
    assert (high["Threshold"], low["Threshold"]) == (60, 54)
    assert high["MetricName"] == "InvocationsPerInstance"
    assert high["AlarmActions"] == [made["PolicyARN"]]
    # Putting it again makes two others in their place.
    again = scaler.put_scaling_policy(**policy(echo.endpoint_name))
    assert {one["AlarmName"] for one in again["Alarms"]}.isdisjoint(names)
    assert len(tracking_alarms(aws)) == 2
    scaler.delete_scaling_policy(
        **where(echo.endpoint_name), PolicyName="by-invocations"
    )
    assert tracking_alarms(aws) == []


def test_a_target_takes_its_policies_and_their_alarms_along(aws, echo, scaler) -> None:
    scaler.put_scaling_policy(**policy(echo.endpoint_name))
    scaler.deregister_scalable_target(**where(echo.endpoint_name))
    assert policies(scaler) == tracking_alarms(aws) == []


def test_the_alarm_of_a_metric_that_is_never_published_has_no_data(
    aws, echo, scaler
) -> None:
    """The kind of trouble: such an endpoint never scales, and nothing says so."""

    def high_alarm(metric: str) -> str:
        dimension = {"Name": "EndpointName", "Value": echo.endpoint_name}
        variant = {"Name": "VariantName", "Value": "AllTraffic"}
        tracking = {
            "CustomizedMetricSpecification": {
                "MetricName": metric,
                "Namespace": "AWS/SageMaker",
                "Dimensions": [dimension, variant],
                "Statistic": "Sum",
            }
        }
        scaler.put_scaling_policy(**policy(echo.endpoint_name, tracking))
        found = [one for one in tracking_alarms(aws) if "High" in one["AlarmName"]]
        return found[0]["StateValue"]

    ask(aws, echo.endpoint_name, 1)
    assert high_alarm("InvocationsPerInstance") == "OK"
    assert high_alarm("ApproximateBacklogSizePerInstance") == "INSUFFICIENT_DATA"


def test_what_is_no_variant_of_an_endpoint_cannot_be_scaled(scaler, echo) -> None:
    limits = {"MinCapacity": 1, "MaxCapacity": 2}
    for target in (
        where("course-nowhere"),
        where(echo.endpoint_name, "Other"),
        where(echo.endpoint_name) | {"ResourceId": f"endpoint/{echo.endpoint_name}"},
    ):
        error = refused(lambda t=target: scaler.register_scalable_target(**t, **limits))
        assert error["Code"] == "ValidationException"
        assert target["ResourceId"] in error["Message"]
    assert len(targets(scaler)) == 1


def test_a_target_needs_its_limits_and_a_policy_its_target(scaler, echo) -> None:
    target = where(echo.endpoint_name)
    scaler.register_scalable_target(**target, MaxCapacity=8)  # it is there: a change
    scaler.deregister_scalable_target(**target)
    error = refused(lambda: scaler.register_scalable_target(**target, MaxCapacity=8))
    assert error["Message"].startswith("MinCapacity is required")
    error = refused(lambda: scaler.put_scaling_policy(**policy(echo.endpoint_name)))
    assert error["Code"] == "ObjectNotFoundException"
    assert error["Message"].startswith("No scalable target registered for service")


def test_parameters_are_held_to_the_model(scaler, echo) -> None:
    target = where(echo.endpoint_name) | {"ServiceNamespace": "sagemaker-endpoints"}
    error = refused(lambda: scaler.register_scalable_target(**target))
    assert error["Code"] == "ValidationException"
    assert "serviceNamespace" in error["Message"]


@pytest.mark.parametrize("what", ["component", "metric"])
def test_what_is_not_played_says_so(scaler, echo, what) -> None:
    """AWS has both: a plain refusal would be a lie."""
    if what == "component":
        error = refused(
            lambda: scaler.register_scalable_target(
                ServiceNamespace="sagemaker",
                ResourceId="inference-component/faq",
                ScalableDimension="sagemaker:inference-component:DesiredCopyCount",
                MinCapacity=0,
                MaxCapacity=2,
            )
        )
    else:
        kind = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
        tracking = {"PredefinedMetricSpecification": {"PredefinedMetricType": kind}}
        error = refused(
            lambda: scaler.put_scaling_policy(**policy(echo.endpoint_name, tracking))
        )
    assert error["Code"] == "NotImplemented"


def test_a_scalable_variant_keeps_its_machine_until_it_is_deregistered(
    aws, echo, scaler
) -> None:
    """The kind of trouble: a variant changed while it is a scalable target."""
    client = aws.session.client("sagemaker")
    name = echo.endpoint_name

    def config(what: str, **changes: Any) -> str:
        found = client.describe_endpoint_config(EndpointConfigName=name)
        variant = {**found["ProductionVariants"][0], **changes}
        own = f"{name}-{what}"
        client.create_endpoint_config(
            EndpointConfigName=own, ProductionVariants=[variant]
        )
        return own

    types = config("type", InstanceType="ml.g5.2xlarge", InferenceAmiVersion=AMI)
    gone = config("gone", VariantName="Other")
    same = config("same")

    def update(own: str) -> None:
        client.update_endpoint(EndpointName=name, EndpointConfigName=own)
        waiter = client.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    try:
        for own in (types, gone):
            error = refused(lambda o=own: update(o))
            assert error["Code"] == "ValidationException"
            assert "AllTraffic are scalable targets" in error["Message"]
            assert "DeregisterScalableTarget" in error["Message"]
        update(same)  # another model on the same machine may come
        scaler.deregister_scalable_target(**where(name))
        update(types)
    finally:
        update(name)
        for own in (types, gone, same):
            client.delete_endpoint_config(EndpointConfigName=own)


def test_an_endpoint_takes_its_own_targets_along_and_no_neighbours(
    aws, guard, echo, scaler
) -> None:
    """Names that begin alike are the trap: `faq` and `faq-2`."""
    from support.endpoints import answering, new_config

    client = aws.session.client("sagemaker")
    name = new_config(aws, guard, answering("a"), "a")
    for own in (name, f"{name}-2"):
        client.create_endpoint(EndpointName=own, EndpointConfigName=name)
        scaler.register_scalable_target(**where(own), MinCapacity=1, MaxCapacity=2)
        scaler.put_scaling_policy(**policy(own))
    waiter = client.get_waiter("endpoint_in_service")
    for own in (name, f"{name}-2"):
        waiter.wait(EndpointName=own, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    client.delete_endpoint(EndpointName=name)
    left = {target["ResourceId"] for target in targets(scaler)}
    assert left == {
        where(echo.endpoint_name)["ResourceId"],
        where(f"{name}-2")["ResourceId"],
    }
    assert len(policies(scaler)) == 1
    assert {name in one["AlarmName"] for one in tracking_alarms(aws)} == {True}
    assert all(f"{name}-2/" in one["AlarmName"] for one in tracking_alarms(aws))
    client.delete_endpoint(EndpointName=f"{name}-2")
    assert len(targets(scaler)) == 1
    assert policies(scaler) == tracking_alarms(aws) == []
