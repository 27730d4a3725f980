"""What is attached to an endpoint: alarms, what scales it, and the policies of that.

A billing guard notes them when the session makes them, and deletes them here: each by
its whole name, never by a name's beginning, so that no neighbour goes along. An alarm
is the run's if it carries the run's tag; CloudWatch ignores the tags of a call that
only changes an alarm. A policy and a scalable target are the run's if the endpoint is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from utils.deployment.ledger import Entry

ALARM = "alarm"
POLICY = "scaling policy"
TARGET = "scaling target"
KINDS = (POLICY, TARGET, ALARM)  # in the order of deletion
# service, as botocore's events call it, and operation → what it makes
OPERATIONS = {
    ("application-auto-scaling", "PutScalingPolicy"): POLICY,
    ("application-auto-scaling", "RegisterScalableTarget"): TARGET,
    ("cloudwatch", "PutMetricAlarm"): ALARM,
    ("cloudwatch", "PutCompositeAlarm"): ALARM,
}
PLACE = ("ServiceNamespace", "ResourceId", "ScalableDimension")


def noted(kind: str, params: dict[str, Any]) -> Entry:
    """Return the entry of what a call makes, with all that names it to AWS.

    Args:
        kind: one of `KINDS`.
        params: of the call.
    """
    if kind == ALARM:
        return Entry(kind, params["AlarmName"], time.time())
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
        owns: says whether an endpoint, by its name, is the run's.
    """
    if entry.kind == ALARM:
        _delete_alarm(session.client("cloudwatch"), entry.name, tag)
        return
    resource = entry.place.get("ResourceId", "")
    owner = resource.split("/")[1] if resource.count("/") else ""
    if entry.place.get("ServiceNamespace") != "sagemaker" or not owns(owner):
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
