"""What is attached to an endpoint: alarms, what scales it, stacks around it.

And the table in which an app keeps what an endpoint has answered, and the model
registry. A billing guard notes them when the session makes them, and deletes them here:
each by its whole name, never by a name's beginning, so that no neighbour goes along. An
alarm, a stack or a table is the run's if it carries the run's tag; CloudWatch ignores
the tags of a call that only changes an alarm. A policy and a scalable target are the
run's if the endpoint, or the inference component, is. A group of the registry is the
run's by its tag, and goes with all of its packages. A package in another's group takes
no tag: it is the run's if AWS has given the run its ARN.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from utils.deployment import stacks, tables
from utils.deployment.ledger import Entry

STACK = "stack"
ALARM = "alarm"
POLICY = "scaling policy"
TARGET = "scaling target"
TABLE = "table"
# Of the model registry.
PACKAGE = "model package"
GROUP = "model package group"
# In the order of deletion. A stack may hold what scales an endpoint.
KINDS = (STACK, POLICY, TARGET, ALARM, TABLE, PACKAGE, GROUP)
# kind → key of the name
NAMES = {
    STACK: "StackName",
    ALARM: "AlarmName",
    TABLE: "TableName",
    PACKAGE: "ModelPackageArn",
    GROUP: "ModelPackageGroupName",
}
TAGGED = {STACK, ALARM, TABLE, GROUP}
# service, as botocore's events call it, and operation → what it makes
OPERATIONS = {
    ("application-auto-scaling", "PutScalingPolicy"): POLICY,
    ("application-auto-scaling", "RegisterScalableTarget"): TARGET,
    ("cloudformation", "CreateChangeSet"): STACK,
    ("cloudformation", "CreateStack"): STACK,
    ("cloudwatch", "PutMetricAlarm"): ALARM,
    ("cloudwatch", "PutCompositeAlarm"): ALARM,
    ("dynamodb", "CreateTable"): TABLE,
    ("sagemaker", "CreateModelPackageGroup"): GROUP,
}
# SageMaker's words for what there is none of; all have the code ValidationException.
MISSING = ("does not exist", "Could not find")
PLACE = ("ServiceNamespace", "ResourceId", "ScalableDimension")


def noted(kind: str, params: dict[str, Any]) -> Entry | None:
    """Return the entry of what a call makes, with all that names it to AWS.

    None for a change set that would change a stack: that one was there before, and its
    tags, which say whose it is, must stay.

    Args:
        kind: one of `KINDS`.
        params: of the call; of CreateModelPackage its answer.
    """
    changes = "ChangeSetName" in params and params.get("ChangeSetType") != "CREATE"
    if kind == STACK and changes:
        return None
    if kind in NAMES:
        return Entry(kind, params[NAMES[kind]], time.time())
    place = {key: params[key] for key in PLACE if key in params}
    name = params.get("ResourceId", "")
    if kind == POLICY:
        place["PolicyName"] = params.get("PolicyName", "")
        name += f" {place['PolicyName']}"
    return Entry(kind, name, time.time(), place=place)


def delete(
    session: Any, entry: Entry, tag: dict[str, str], owns: Callable[[str], bool]
) -> None:
    """Delete what an entry names, if it is there and the run's.

    Args:
        session: of boto3.
        entry: that `noted` has made.
        tag: of the run.
        owns: says whether an endpoint or an inference component is the run's; it gets
            the id of what scales, such as "endpoint/NAME/variant/AllTraffic".
    """
    if entry.kind == STACK:
        found = stacks.find(session.client("cloudformation"), entry.name)
        if found is not None and stacks.is_of_run(found, tag["Value"]):
            stacks.delete(session, found)
        return
    if entry.kind == ALARM:
        _delete_alarm(session.client("cloudwatch"), entry.name, tag)
        return
    if entry.kind == TABLE:
        tables.delete(session.client("dynamodb"), entry.name, tag)
        return
    if entry.kind == PACKAGE:
        _delete_package(session.client("sagemaker"), entry.name)
        return
    if entry.kind == GROUP:
        _delete_group(session.client("sagemaker"), entry.name, tag)
        return
    resource = entry.place.get("ResourceId", "")
    if entry.place.get("ServiceNamespace") != "sagemaker" or not owns(resource):
        return
    client = session.client("application-autoscaling")
    if entry.kind == POLICY:
        pages = client.get_paginator("describe_scaling_policies")
        listed, key, end = pages, "ScalingPolicies", client.delete_scaling_policy
    else:
        pages = client.get_paginator("describe_scalable_targets")
        listed, key, end = pages, "ScalableTargets", client.deregister_scalable_target
    for page in listed.paginate(ServiceNamespace="sagemaker"):
        for item in page[key]:
            if all(item.get(name) == value for name, value in entry.place.items()):
                end(**entry.place)


def _delete_alarm(client: Any, name: str, tag: dict[str, str]) -> None:
    found = client.describe_alarms(
        AlarmNames=[name], AlarmTypes=["MetricAlarm", "CompositeAlarm"]
    )
    for alarm in (*found.get("MetricAlarms", []), *found.get("CompositeAlarms", [])):
        tags = client.list_tags_for_resource(ResourceARN=alarm["AlarmArn"])["Tags"]
        if alarm["AlarmName"] == name and tag in tags:
            client.delete_alarms(AlarmNames=[name])


def _delete_package(client: Any, arn: str) -> None:
    from botocore.exceptions import ClientError

    try:
        client.delete_model_package(ModelPackageName=arn)
    except ClientError as error:
        if not _is_missing(error):
            raise


def _delete_group(client: Any, name: str, tag: dict[str, str]) -> None:
    """Delete a group with what is in it: AWS takes an empty one only."""
    from botocore.exceptions import ClientError

    try:
        found = client.describe_model_package_group(ModelPackageGroupName=name)
        tags = client.list_tags(ResourceArn=found["ModelPackageGroupArn"])["Tags"]
    except ClientError as error:
        if _is_missing(error):
            return
        raise
    if tag not in tags:
        return
    pages = client.get_paginator("list_model_packages")
    # All pages before any is deleted: a page's mark counts what was there.
    packages = [
        package["ModelPackageArn"]
        for page in pages.paginate(ModelPackageGroupName=name)
        for package in page["ModelPackageSummaryList"]
    ]
    for arn in packages:
        _delete_package(client, arn)
    client.delete_model_package_group(ModelPackageGroupName=name)


def _is_missing(error: Any) -> bool:
    """Say whether the registry has no such thing: its code alone is any refusal's."""
    fault = error.response["Error"]
    missing = any(text in fault["Message"] for text in MISSING)
    return missing and fault["Code"].startswith("Validation")
