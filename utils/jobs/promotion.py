"""A decided version goes into service, or does not; and the way back.

Users come first: the endpoint changes before the registry does. Should the registry
then fail, its error says so, and the call can be repeated. An endpoint takes another
version by an update, which keeps the old machines until the new ones answer.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from utils.course import CourseError

if TYPE_CHECKING:
    from utils.deployment.aws import Aws
    from utils.jobs.decision import Decision
    from utils.web.versions import Version, Versions

# What DescribeEndpointConfig returns and CreateEndpointConfig takes (botocore's model),
# besides name and variants.
KEPT = (
    "DataCaptureConfig",
    "KmsKeyId",
    "AsyncInferenceConfig",
    "ExplainerConfig",
    "MetricsConfig",
    "ExecutionRoleArn",
    "VpcConfig",
    "EnableNetworkIsolation",
)
LONGEST_NAME = 63  # of a model, a configuration or a job (botocore's model)


class PromotionError(CourseError):
    """A version that cannot go into service; the message says what to do."""


def promote(
    aws: Aws,
    versions: Versions,
    number: int,
    decision: Decision,
    by: str,
    endpoint: str | None = None,
) -> Version:
    """Put a version into service and approve it, or reject it, as was decided.

    Args:
        aws: the account.
        versions: the registry.
        number: of the version.
        decision: from the comparison; its reason is noted either way.
        by: whose decision it is.
        endpoint: that is to serve it; None to leave that to whoever deploys what the
            registry calls live.

    Returns:
        the version as the registry knows it now.

    Raises:
        VersionError: if a later version is live. This one then stays as it was.
        PromotionError: if the endpoint cannot take it; likewise.
    """
    if not decision.promote:
        return versions.reject(number, by, decision.why)
    version = versions.require_latest(number)
    if endpoint is not None:
        serve(aws, endpoint, version)
    return versions.approve(number, by, decision.why)


def roll_back(
    aws: Aws, versions: Versions, by: str, why: str, endpoint: str | None = None
) -> Version:
    """Put the version before the live one into service, and reject the live one.

    First used in lesson 08, section 7.

    Args:
        aws: the account.
        versions: the registry.
        by: whose decision it is.
        why: the reason, for the registry.
        endpoint: that serves the live version; None as in `promote`.

    Returns:
        the version that is live from now on.

    Raises:
        PromotionError: if there is none to go back to. Nothing is changed then.
    """
    previous = versions.previous()
    if previous is None:
        raise PromotionError(
            f"{versions.group} has no approved version before the live one. Approve "
            "an earlier one first."
        )
    if endpoint is not None:
        serve(aws, endpoint, previous)
    return versions.roll_back(by, why)


def serve(aws: Aws, endpoint: str, version: Version) -> None:
    """Make an endpoint serve a version, and wait until it does.

    Model and configuration are those that it has, with the version's image and
    archive in their place: its machines, settings and environment stay. An endpoint
    that serves the version already is left as it is.

    Args:
        aws: the account.
        endpoint: its name; it is in service and has one variant.
        version: to serve.

    Raises:
        PromotionError: if it has several variants or a shadow variant, or the model
            several containers.
        DeploymentError: if the update fails; the endpoint then serves as before.
    """
    from sagemaker.core.resources import Endpoint

    from utils.deployment.aws import wait_until_in_service

    client = aws.session.client("sagemaker")
    present = client.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    config = client.describe_endpoint_config(EndpointConfigName=present)
    variants = config["ProductionVariants"]
    if len(variants) != 1:
        names = ", ".join(one["VariantName"] for one in variants)
        raise PromotionError(
            f"{endpoint} has the variants {names}: a comparison is running on it. End "
            "it with utils.web.rollout, then give it a single version."
        )
    if shadows := config.get("ShadowProductionVariants"):
        names = ", ".join(one["VariantName"] for one in shadows)
        raise PromotionError(
            f"{endpoint} has the shadow variant {names}: a test on copies of the "
            "traffic is running. End it first, then promote."
        )
    model = client.describe_model(ModelName=variants[0]["ModelName"])
    before = model.get("PrimaryContainer")
    if before is None:
        raise PromotionError(
            f"{endpoint}'s model has a chain of containers, of which a version is one: "
            "deploy it by hand."
        )
    name = joined_name(endpoint, f"v{version.number}-{secrets.token_hex(3)}")
    container: dict[str, Any] = {"Image": version.image}
    container["ModelDataUrl"] = version.address
    if all(before.get(key) == text for key, text in container.items()):
        return
    if environment := before.get("Environment"):
        container["Environment"] = environment
    more = {"VpcConfig": model["VpcConfig"]} if model.get("VpcConfig") else {}
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=model["ExecutionRoleArn"],
        PrimaryContainer=container,
        EnableNetworkIsolation=bool(model.get("EnableNetworkIsolation")),
        **more,
    )
    client.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{**variants[0], "ModelName": name}],
        **{key: config[key] for key in KEPT if config.get(key)},
    )
    client.update_endpoint(EndpointName=endpoint, EndpointConfigName=name)
    found = Endpoint.get(endpoint_name=endpoint, session=aws.session, region=aws.region)
    wait_until_in_service(aws, found, say=lambda _: None)


def joined_name(beginning: str, end: str) -> str:
    """Return a name that AWS takes: what tells it from others, its end, stays whole.

    Args:
        beginning: says whose it is; what is too much of it is cut off.
        end: unlike that of any other name.
    """
    kept = beginning[: max(0, LONGEST_NAME - len(end) - 1)].rstrip("-")
    return f"{kept}-{end}"[-LONGEST_NAME:].lstrip("-")
