"""Inference components of a run are deleted with it, before their endpoint.

The offline AWS plays no components. `Fleet` answers their calls in place of it, holds
each request to botocore's model, and refuses what AWS refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from typing import Any

import boto3
import pytest
from botocore import xform_name
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from support.endpoints import AMI, IMAGE
from utils.deployment import tagged
from utils.deployment.aws import DeploymentError
from utils.deployment.billing import TAG, BillingGuard
from utils.deployment.request_checks import validate_request

ARN = "arn:aws:sagemaker:us-east-1:123456789012:inference-component/"
ROOM = {"ComputeResourceRequirements": {"MinMemoryRequiredInMb": 1024}}
TARGET = {
    "ServiceNamespace": "sagemaker",
    "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
}


class Body(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


class Fleet:
    """The inference components of an account, and what scales them."""

    def __init__(self) -> None:
        self.components: dict[str, dict] = {}
        self.targets: list[dict] = []
        self.deletes: list[str] = []  # endpoints too, in the order of the calls
        self.looks_until_gone = 2

    def answer(self, request: Any, **_: Any) -> AWSResponse | None:
        """Answer a call that concerns components; None leaves it to the offline AWS."""
        service, _, operation = request.headers["X-Amz-Target"].decode().partition(".")
        body = json.loads(request.body or b"{}")
        method = getattr(self, xform_name(operation), None)
        if method is None or body.get("ResourceArn", ARN).startswith(ARN) is False:
            return None
        found = method(**body)
        if found is None:
            return None
        name = "sagemaker" if service == "SageMaker" else "application-autoscaling"
        validate_request(name, xform_name(operation), **body)
        status = 400 if "__type" in found else 200
        text = Body(json.dumps(found).encode())
        return AWSResponse(request.url, status, {}, text)

    def create_inference_component(self, **given: Any) -> dict:
        name = given["InferenceComponentName"]
        if name in self.components:
            return invalid(f"Cannot create already existing component {name}")
        self.components[name] = given
        return {"InferenceComponentArn": ARN + name}

    def describe_inference_component(self, InferenceComponentName: str) -> dict:
        name = InferenceComponentName
        component = self.components.get(name)
        if component is not None and "left" in component:
            component["left"] -= 1
            if component["left"] < 0:
                del self.components[name]
        if name not in self.components:
            return invalid(f"Could not find inference component {name}")
        return {
            "InferenceComponentArn": ARN + name,
            "InferenceComponentName": name,
            "EndpointName": component["EndpointName"],
            "EndpointArn": "arn",
            "CreationTime": 0,
            "LastModifiedTime": 0,
        }

    def delete_inference_component(self, InferenceComponentName: str) -> dict:
        name = InferenceComponentName
        if "left" in self.components[name]:
            return invalid(f"{name} is in status Deleting")
        for other in self.components.values():
            if other["Specification"].get("BaseInferenceComponentName") == name:
                return invalid(f"{name} has adapters")
        self.components[name]["left"] = self.looks_until_gone
        self.deletes.append(name)
        return {}

    def list_inference_components(self, NameContains: str = "", **_: Any) -> dict:
        listed = [
            {
                "InferenceComponentName": name,
                "InferenceComponentArn": ARN + name,
                "EndpointName": one["EndpointName"],
                "EndpointArn": "arn",
                "VariantName": "a",
                "CreationTime": 0,
                "LastModifiedTime": 0,
            }
            for name, one in self.components.items()
            if NameContains in name
        ]
        return {"InferenceComponents": listed}

    def list_tags(self, ResourceArn: str) -> dict:
        one = self.components[ResourceArn.removeprefix(ARN)]
        return {"Tags": one.get("Tags", [])}

    def delete_endpoint(self, EndpointName: str) -> dict | None:
        for name, one in self.components.items():
            if one["EndpointName"] == EndpointName:
                return invalid(f"{EndpointName} has the component {name}")
        self.deletes.append(EndpointName)
        return None  # the offline AWS deletes it

    def register_scalable_target(self, **given: Any) -> dict:
        self.targets.append(given)
        return {}

    def describe_scalable_targets(self, ServiceNamespace: str, **_: Any) -> dict:
        limits = {"MinCapacity": 0, "MaxCapacity": 1, "RoleARN": "r", "CreationTime": 0}
        return {"ScalableTargets": [one | limits for one in self.targets]}

    def deregister_scalable_target(self, **given: Any) -> dict:
        self.targets = [one for one in self.targets if not given.items() <= one.items()]
        return {}


def invalid(message: str) -> dict[str, str]:
    return {"__type": "ValidationException", "message": message}


@pytest.fixture
def fleet(monkeypatch) -> Fleet:
    monkeypatch.setattr(tagged, "FIRST_POLL", 0.01)
    return Fleet()


def watched(aws, fleet: Fleet) -> Any:
    """An account whose components are those of a fleet."""
    session = boto3.Session(region_name=aws.region)
    for service in ("sagemaker", "application-auto-scaling"):
        session.events.register(f"before-send.{service}", fleet.answer)
    return dataclasses.replace(aws, session=session)


def create_endpoint(session, aws, name: str) -> None:
    """An endpoint whose model has no archive: it fails at once."""
    client = session.client("sagemaker")
    client.create_model(
        ModelName=name, ExecutionRoleArn=aws.role, PrimaryContainer={"Image": IMAGE}
    )
    variant = {"VariantName": "a", "ModelName": name, "InstanceType": "ml.g5.xlarge"}
    variant |= {"InferenceAmiVersion": AMI, "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)


def place(session, name: str, endpoint: str, base: str | None = None, **more) -> None:
    """Create a component: of a base, or of an adapter beside one."""
    specification = {"ModelName": endpoint, **ROOM}
    if base is not None:
        specification = {"BaseInferenceComponentName": base}
        specification["Container"] = {"ArtifactUrl": "s3://b/course-a.tar.gz"}
    session.client("sagemaker").create_inference_component(
        InferenceComponentName=name,
        EndpointName=endpoint,
        VariantName="a",
        Specification=specification,
        **more,
    )


def test_components_go_before_their_endpoint_and_adapters_before_their_base(
    aws, fleet
) -> None:
    account = watched(aws, fleet)
    with BillingGuard(account, lambda _: None) as guard:
        name, session = guard.name("zero"), account.session
        create_endpoint(session, aws, name)
        place(session, "base", name)
        place(session, guard.name("billing"), name, base="base")
        assert fleet.components["base"]["Tags"] == [{"Key": TAG, "Value": guard.run}]
        assert "| inference component | `base` | with its endpoint | exists |" in (
            guard._repr_markdown_()
        )
        assert "inference component base" in guard.remaining()
        guard.teardown()
        guard.teardown()
        assert fleet.deletes == [guard.name("billing"), "base", name]
        assert guard.remaining() == []


@pytest.mark.parametrize("tags", [[], [{"Key": TAG, "Value": "another"}]])
def test_a_component_of_others_stays_though_the_run_tried_its_name(
    aws, fleet, tags
) -> None:
    account = watched(aws, fleet)
    theirs = boto3.Session(region_name=aws.region)
    theirs.events.register("before-send.sagemaker", fleet.answer)
    place(theirs, "base", "their-endpoint", Tags=tags)
    with BillingGuard(account, lambda _: None) as guard:
        with pytest.raises(ClientError, match="already existing component"):
            place(account.session, "base", "their-endpoint")
        assert guard.remaining() == []
    assert set(fleet.components) == {"base"} and fleet.deletes == []


def test_what_scales_a_component_goes_with_it_and_anothers_stays(aws, fleet) -> None:
    """Under an endpoint's name, too, a component is the run's by its own tag only."""
    account = watched(aws, fleet)
    with BillingGuard(account, lambda _: None) as guard:
        name, session = guard.name("zero"), account.session
        create_endpoint(session, aws, name)
        place(session, "base", name)
        client = session.client("application-autoscaling")
        for component in ("base", "their-component"):
            client.register_scalable_target(
                **TARGET, ResourceId=f"inference-component/{component}", MinCapacity=0
            )
        guard.teardown()
    left = [one["ResourceId"] for one in fleet.targets]
    assert left == ["inference-component/their-component"]


def test_a_component_that_stays_is_named_and_not_waited_for_for_ever(
    aws, fleet, monkeypatch
) -> None:
    monkeypatch.setattr(tagged, "DELETE_TIMEOUT", 0.1)
    fleet.looks_until_gone = 10**9
    account = watched(aws, fleet)
    guard = BillingGuard(account, lambda _: None)
    create_endpoint(account.session, aws, guard.name("zero"))
    place(account.session, "base", guard.name("zero"))
    with pytest.raises(DeploymentError) as failure:
        guard.teardown()
    assert "inference component base: " in str(failure.value)
    assert f"endpoint {guard.name('zero')}: " in str(failure.value)
    fleet.components.clear()
    guard.close()
    assert fleet.deletes == ["base", guard.name("zero")]


def test_where_components_are_not_played_nothing_is_left_of_one(aws) -> None:
    with BillingGuard(aws, lambda _: None) as guard:
        with contextlib.suppress(ClientError):
            place(aws.session, guard.name("base"), guard.name("zero"))
        assert [entry.kind for entry in guard.entries] == [tagged.COMPONENT]
        guard.teardown()
        assert guard.remaining() == []
