"""Experiment 06_production: each of its calls has a right, and each right a use.

The experiment runs once, for a minute, and its calls are recorded. The requests that it
only holds to a service's model count as well: on AWS they would be sent.
"""

from __future__ import annotations

import fnmatch
import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session
from test_teardown import ACTIONS

from support.recorded_notebook import recorded_calls
from utils.course import ROOT
from utils.deployment.aws import POLICY, PRODUCTION_POLICY

EXPERIMENT = ROOT / "notebooks" / "experiments" / "06_production.ipynb"
# What the policy allows beyond the experiment's calls, and why.
NOT_CALLED_HERE = {
    "iam:CreateServiceLinkedRole": "no call: RegisterScalableTarget makes the role",
    "cloudwatch:TagResource": "no call: needed to put an alarm with a tag",
    "sagemaker:AddTags": "no call: needed to create a component with a tag",
    # Application Auto Scaling asks whether its caller may do what it will do.
    "sagemaker:UpdateEndpointWeightsAndCapacities": "what scaling an endpoint is",
    "sagemaker:UpdateInferenceComponentRuntimeConfig": "what scaling a component is",
    # The offline AWS plays no components, so that the guard has none to delete.
    "sagemaker:DescribeInferenceComponent": "the guard looks whether it is there",
    "sagemaker:DeleteInferenceComponent": "the guard deletes it",
}
MORE_ACTIONS = {
    ("sagemaker-runtime", "InvokeEndpointAsync"): "sagemaker:InvokeEndpointAsync",
    ("s3", "DeleteObjects"): "s3:DeleteObject",
}
# What is checked stands for a name that the guard would give.
CHECKED_NAMES = {"zero", "base", "billing"}
VALUES = {
    "Partition": "aws",
    "Region": "us-east-1",
    "Account": "123456789012",
    "Bucket": "bucket",
    "Role": "arn:aws:iam::123456789012:role/course-sagemaker-execution",
}
ARN = "arn:aws:{}:us-east-1:123456789012:{}"
KINDS = {
    "ModelName": "model",
    "EndpointConfigName": "endpoint-config",
    "EndpointName": "endpoint",
    "InferenceComponentName": "inference-component",
}


def statements(path) -> list[dict[str, Any]]:
    text = string.Template(path.read_text("utf-8")).substitute(VALUES)
    return json.loads(text)["Statement"]


def rights(*paths) -> list[tuple[str, str]]:
    """Pairs of action and resource that policies allow."""
    found = []
    for path in paths:
        for statement in statements(path):
            resources = statement["Resource"]
            for resource in [resources] if isinstance(resources, str) else resources:
                found += [(action, resource) for action in statement["Action"]]
    return found


def reached(needed: Iterable[tuple[str | None, list[str]]], *policies: Path) -> int:
    """Return how many resources the policies' rights reach; all have to be.

    Args:
        needed: actions, each with what it is about; None for what needs no right.
        policies: files.
    """
    allowed, checked = rights(*policies), 0
    for action, resources in needed:
        if action is None:
            continue
        patterns = [resource for name, resource in allowed if name == action]
        assert patterns, f"{action} is in no policy"
        for resource in resources:
            fits = [fnmatch.fnmatchcase(resource, one) for one in patterns]
            assert any(fits), f"{action} on {resource}"
            checked += 1
    return checked


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """The calls of the experiment, and the requests that it checked."""
    folder = tmp_path_factory.mktemp("recorded")
    return recorded_calls(EXPERIMENT, folder, COURSE_BUILD=str(folder / "build"))


def operation_of(call: dict[str, Any]) -> str:
    """The operation as AWS spells it; what was checked is spelt as boto3 does."""
    if "_" not in call["operation"]:
        return call["operation"]
    names = Session().get_service_model(call["service"]).operation_names
    spelt = call["operation"].replace("_", "")
    return next(name for name in names if name.lower() == spelt)


def action_of(call: dict[str, Any]) -> str | None:
    """The action that a call needs the right to, if any."""
    key = (call["service"], operation_of(call))
    return (ACTIONS | MORE_ACTIONS).get(key, ":".join(key))


def resources_of(call: dict[str, Any]) -> list[str]:
    """What a call is about, as ARNs; "*" where its request does not name it."""
    service, params = call["service"].removesuffix("-runtime"), call["params"]
    if service == "s3":
        bucket = "arn:aws:s3:::bucket"
        return [f"{bucket}/{params['Key']}" if "Key" in params else bucket]
    if arn := params.get("ResourceArn", params.get("ResourceARN")):
        return [arn]
    if service == "sagemaker":
        return [
            ARN.format(service, f"{kind}/{course_name(params[key])}")
            for key, kind in KINDS.items()
            if key in params
        ] or ["*"]
    if service == "cloudwatch":
        alarms = params.get("AlarmNames", [params.get("AlarmName", "*")])
        return [ARN.format(service, f"alarm:{alarm}") for alarm in alarms]
    if service == "application-autoscaling":
        return [ARN.format(service, "scalable-target/0123456789abcdef")]
    if "logGroupName" in params:
        return [ARN.format("logs", f"log-group:{params['logGroupName']}")]
    return ["*"]


def course_name(name: str) -> str:
    return f"course-1-{name}" if name in CHECKED_NAMES else name


def test_each_call_has_a_right_for_what_it_is_about(recorded) -> None:
    needed = []
    for call in recorded["calls"] + recorded["checked"]:
        action = action_of(call)
        # DeleteObjects names them in its body.
        several = action == "s3:DeleteObject" and "Key" not in call["params"]
        needed.append((action, [] if several else resources_of(call)))
    assert reached(needed, POLICY, PRODUCTION_POLICY) > 100


def test_each_right_has_a_use(recorded) -> None:
    called = {action_of(call) for call in recorded["calls"] + recorded["checked"]}
    allowed = {action for action, _ in rights(PRODUCTION_POLICY)}
    assert allowed - called == set(NOT_CALLED_HERE)


def test_nothing_is_allowed_twice() -> None:
    assert not set(rights(PRODUCTION_POLICY)) & set(rights(POLICY))
    found = rights(PRODUCTION_POLICY)
    assert len(found) == len(set(found))


def test_rights_reach_the_courses_names_only() -> None:
    """But for what reads, and what scales: a target's ARN does not say whose it is."""
    for statement in statements(PRODUCTION_POLICY):
        resources = statement["Resource"]
        resources = [resources] if isinstance(resources, str) else resources
        condition = statement.get("Condition", {})
        for action in statement["Action"]:
            what = action.partition(":")[2]
            if what.startswith(("Create", "PutMetric", "AddTags", "TagResource")) and (
                "TargetTracking" not in resources[0] and not action.startswith("iam:")
            ):
                assert condition == {"Null": {"aws:RequestTag/course-run": "false"}}
        if resources == ["*"]:
            continue
        if "scalable-target" in resources[0]:
            key = "application-autoscaling:service-namespace"
            assert condition == {"StringEquals": {key: "sagemaker"}}
            continue
        if statement["Action"] == ["iam:CreateServiceLinkedRole"]:
            role = resources[0].split("/")
            assert condition == {"StringEquals": {"iam:AWSServiceName": role[2]}}
            continue
        assert all("/course-" in one or ":course-" in one for one in resources)


def test_the_experiment_names_both_policies() -> None:
    text = EXPERIMENT.read_text("utf-8")
    for name in ("production_policy.json", "production_role_policy.json"):
        assert f"data/aws/{name}" in text
