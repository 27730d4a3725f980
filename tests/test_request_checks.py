"""Requests that nothing here plays are held to botocore's model of the service."""

from __future__ import annotations

from typing import Any

import pytest

from utils.deployment.request_checks import RequestError, validate_request

VARIANT: dict[str, Any] = {"VariantName": "AllTraffic", "ModelName": "faq"}


def config(**variant: Any) -> dict[str, Any]:
    return {
        "EndpointConfigName": "faq",
        "ProductionVariants": [{**VARIANT, **variant}],
    }


SOUND = {
    "create_endpoint_config": config(
        ServerlessConfig={"MemorySizeInMB": 6144, "MaxConcurrency": 200}
    ),
    "create_inference_component": {
        "InferenceComponentName": "faq-adapter",
        "EndpointName": "faq",
        "Specification": {
            "BaseInferenceComponentName": "faq-base",
            "Container": {"ArtifactUrl": "s3://bucket/adapter.tar.gz"},
        },
    },
    "update_endpoint": {
        "EndpointName": "faq",
        "EndpointConfigName": "faq-2",
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "CANARY",
                    "WaitIntervalInSeconds": 300,
                    "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 10},
                }
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "faq-5xx"}]},
        },
    },
}


@pytest.mark.parametrize("operation", SOUND)
def test_a_sound_request_says_that_nothing_was_sent(operation: str) -> None:
    said = validate_request("sagemaker", operation, **SOUND[operation])
    assert said.startswith(f"{operation}: ")
    assert "fit the model of sagemaker; not sent" in said


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        # what boto3 would find
        (config(RoutingStrategy="RANDOM"), r"RoutingStrategy.*must be one of"),
        ({"EndpointConfigName": "faq"}, "Missing.*ProductionVariants"),
        (config(InitialInstanceCount="2"), "InitialInstanceCount.*'str'|int"),
        # what it leaves to the server
        (
            config(ServerlessConfig={"MemorySizeInMB": 8192, "MaxConcurrency": 2}),
            "memorySizeInMB' .*less than or equal to 6144",
        ),
        (
            config(RoutingConfig={"RoutingStrategy": "LEAST_BUSY"}),
            "routingStrategy' .*LEAST_OUTSTANDING_REQUESTS",
        ),
        (config(InstanceType="ml.g5.tiny"), "instanceType' .*enum"),
        (config(VariantName="All Traffic"), "variantName' .*pattern"),
    ],
)
def test_each_kind_of_mistake_is_named_with_its_field(request_, complaint) -> None:
    with pytest.raises(RequestError, match=complaint) as failure:
        validate_request("sagemaker", "create_endpoint_config", **request_)
    assert "would refuse this create_endpoint_config" in str(failure.value)


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {"WaitIntervalInSeconds": 9999, "Type": "SLOWLY"}
    policy = {"TrafficRoutingConfiguration": wrong, "TerminationWaitInSeconds": 9999}
    with pytest.raises(RequestError) as failure:
        validate_request(
            "sagemaker",
            "update_endpoint",
            EndpointName="faq",
            EndpointConfigName="faq",
            DeploymentConfig={"BlueGreenUpdatePolicy": policy},
        )
    for field in ("waitIntervalInSeconds", "type", "terminationWaitInSeconds"):
        assert f"{field}'" in str(failure.value)


def test_a_service_or_method_that_there_is_not_is_told() -> None:
    with pytest.raises(RequestError, match="no service 'sagemaler'.*'sagemaker'"):
        validate_request("sagemaler", "create_model")
    for name in ("CreateModel", "create_modell"):
        with pytest.raises(RequestError, match=f"no method '{name}'"):
            validate_request("sagemaker", name)


def test_an_operation_without_parameters_takes_none() -> None:
    operation = "enable_sagemaker_servicecatalog_portfolio"
    assert "not sent" in validate_request("sagemaker", operation)
    with pytest.raises(RequestError, match="Unknown parameter|takes no parameters"):
        validate_request("sagemaker", operation, Name="x")


def test_other_services_are_held_to_their_models_as_well() -> None:
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "inference-component/faq",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    service = "application-autoscaling"
    assert validate_request(service, "register_scalable_target", **target)
    wrong = target | {"ScalableDimension": "sagemaker:component:DesiredCopyCount"}
    with pytest.raises(RequestError, match="scalableDimension' .*enum"):
        validate_request(service, "register_scalable_target", **wrong)
