"""CloudFormation stacks that a run has made: waiting for them, and their end.

A stack deletes what it made, with three exceptions that are seen to here. A bucket with
files refuses to be deleted, so it is emptied first, all versions included. What scales
an endpoint is deregistered first, and so before the endpoint goes. A table and the log
group of a function are looked for last: the stack deletes them, and the function's role
cannot make a log group anew, but what stays would cost.

Sources: botocore's model of `cloudformation`; AWS's User Guide of CloudFormation on
stack statuses and on AWS::ApplicationAutoScaling::ScalableTarget (what Ref returns). It
has not been run on AWS.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from utils.deployment import written
from utils.deployment.asking import PREFIX, TAG
from utils.deployment.aws import FIRST_POLL, LONGEST_POLL, DeploymentError

RUN = "[0-9a-f]{8}"  # as `BillingGuard.run`
REST = "[a-zA-Z0-9-]+"  # what CloudFormation takes in a name
FUNCTION_LOGS = "/aws/lambda/"
TIMEOUT = 1800  # seconds; a distribution takes some minutes to come and to go
ATTEMPTS = 2  # a file may arrive between the emptying and the deletion
PAGES = {"PageSize": 1000}  # as many objects as DeleteObjects takes
REASONS_SHOWN = 5
# CloudFormation's words for what it stopped because something else had failed.
CANCELLED = "cancelled"
BEGUN = "User Initiated"
INVALID = "ValidationError"  # also the code for a stack that there is none of
NO_STACKS = "NotImplemented"  # the offline AWS's, which does not play them


def find(client: Any, name: str) -> dict[str, Any] | None:
    """Return a stack as DescribeStacks has it; None if there is none (any more).

    Args:
        client: of CloudFormation.
        name: of the stack, or its id.
    """
    from botocore.exceptions import ClientError

    try:
        return client.describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        fault = error.response["Error"]
        missing = "does not exist" in fault["Message"]
        if fault["Code"] == NO_STACKS or (fault["Code"] == INVALID and missing):
            return None
        raise


def is_of_run(stack: dict[str, Any], run: str) -> bool:
    """Say whether a stack is a run's, by its tag.

    One whose change set was never executed has no tags yet, and goes by its name.
    """
    if {"Key": TAG, "Value": run} in stack.get("Tags", []):
        return True
    begun = stack["StackStatus"] == "REVIEW_IN_PROGRESS"
    return begun and stack["StackName"].startswith(f"{PREFIX}{run}-")


def settle(
    client: Any, name: str, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any] | None:
    """Wait until a stack is no more in progress, and return it; None if it is gone.

    Args:
        client: of CloudFormation.
        name: of the stack; by its id one that was deleted is still seen.
        say: gets a line for each new status.

    Raises:
        DeploymentError: if it takes longer than `TIMEOUT`.
    """
    status, pause, deadline = None, FIRST_POLL, time.monotonic() + TIMEOUT
    while True:
        found = find(client, name)
        if found is None or found["StackStatus"] != status:
            status = found and found["StackStatus"]
            say(status or "gone")
        if found is None or not found["StackStatus"].endswith("_IN_PROGRESS"):
            return found
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"The stack {found['StackName']} is {status} after {TIMEOUT // 60} "
                "minutes. Look at its events in the AWS console."
            )
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_POLL)


def reasons(client: Any, stack: dict[str, Any]) -> str:
    """Say which resources of a stack failed last, and why, in the order of time."""
    found = []
    pages = client.get_paginator("describe_stack_events")
    for event in (
        event
        for page in pages.paginate(StackName=stack["StackId"])
        for event in page["StackEvents"]  # the newest first
    ):
        reason = event.get("ResourceStatusReason", "")
        own = event.get("PhysicalResourceId") == stack["StackId"]
        if own and reason == BEGUN:
            break  # what is older was another operation's
        failed = event.get("ResourceStatus", "").endswith("_FAILED")
        if failed and not own and CANCELLED not in reason:
            kind = event.get("ResourceType", "")
            found.append(f"{event.get('LogicalResourceId')} ({kind}): {reason}")
    found = found[::-1][:REASONS_SHOWN]
    return "; ".join(found) or stack.get("StackStatusReason", "AWS gives no reason")


def remove(
    session: Any, name: str, bucket: str, say: Callable[[str], None] = print
) -> None:
    """Delete a stack of the course with all that it made; again, it does nothing.

    Args:
        session: of boto3.
        name: that a guard has given it, such as "course-1a2b3c4d-web".
        bucket: where its function's archives lie, below its name.
        say: gets a line for each new status.

    Raises:
        DeploymentError: if it is no stack of the course, or not all could be deleted.
    """
    given = re.fullmatch(rf"{PREFIX}({RUN})-{REST}", name)
    if not given:
        raise DeploymentError(
            f"{name!r} is no name that a guard gives a stack: those begin with "
            f"{PREFIX!r} and the run's eight digits. Nothing was deleted."
        )
    run = given[1]
    found = find(session.client("cloudformation"), name)
    if found is None:
        say("gone")
        delete_log(session, name)
        _delete_archives(session.client("s3"), bucket, name)
        return
    if not is_of_run(found, run):
        raise DeploymentError(
            f"The stack {name} does not carry the tag {TAG}={run}, so no run of the "
            "course has made it. Nothing was deleted."
        )
    delete(session, found, say)
    _delete_archives(session.client("s3"), bucket, name)


def delete(
    session: Any, stack: dict[str, Any], say: Callable[[str], None] = lambda _: None
) -> None:
    """Delete a stack with all that it made, and wait until it is gone.

    Args:
        session: of boto3.
        stack: that `find` has returned; whose it is, is for the caller to know.
        say: gets a line for each new status.

    Raises:
        DeploymentError: if something of it could not be deleted, with its name.
    """
    client = session.client("cloudformation")
    status = stack["StackStatus"]
    if status.startswith("UPDATE_") and status.endswith("_IN_PROGRESS"):
        # AWS deletes no stack that is being changed.
        stack = settle(client, stack["StackId"], say) or stack
    made: dict[str, list[str]] = {}
    left: dict[str, Any] | None = stack
    for _ in range(ATTEMPTS):
        for kind, name in _resources(client, stack["StackId"]):
            made.setdefault(kind, []).append(name)
        for name in made.get("AWS::ApplicationAutoScaling::ScalableTarget", []):
            _deregister(session.client("application-autoscaling"), name)
        for name in made.get("AWS::S3::Bucket", []):
            _empty(session.client("s3"), name)
        client.delete_stack(StackName=stack["StackId"])
        left = settle(client, stack["StackId"], say)
        if left is None or left["StackStatus"] == "DELETE_COMPLETE":
            break
    else:
        raise DeploymentError(
            f"The stack {stack['StackName']} was not deleted ({left['StackStatus']}): "
            f"{reasons(client, left)}. Delete it in the AWS console."
        )
    for name in dict.fromkeys(made.get("AWS::Lambda::Function", [])):
        delete_log(session, name)
    for name in dict.fromkeys(made.get("AWS::DynamoDB::Table", [])):
        _expect_no_table(session.client("dynamodb"), name)


def delete_log(session: Any, function: str) -> None:
    """Delete the log group of a function, if there is one."""
    client = session.client("logs")
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        client.delete_log_group(logGroupName=FUNCTION_LOGS + function)


def _resources(client: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield type and physical id of what a stack has made and not yet deleted."""
    for page in client.get_paginator("list_stack_resources").paginate(StackName=name):
        for item in page["StackResourceSummaries"]:
            there = item["ResourceStatus"] != "DELETE_COMPLETE"
            if there and item.get("PhysicalResourceId"):
                yield item["ResourceType"], item["PhysicalResourceId"]


def _deregister(client: Any, name: str) -> None:
    """Deregister a scalable target by the id that CloudFormation gives it."""
    resource, dimension, service = name.split("|")
    with contextlib.suppress(client.exceptions.ObjectNotFoundException):
        client.deregister_scalable_target(
            ServiceNamespace=service,
            ResourceId=resource,
            ScalableDimension=dimension,
        )


def _empty(client: Any, bucket: str) -> None:
    """Delete all versions and delete markers in a bucket."""
    pages = client.get_paginator("list_object_versions")
    with contextlib.suppress(client.exceptions.NoSuchBucket):
        for page in pages.paginate(Bucket=bucket, PaginationConfig=PAGES):
            found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            keys = [{key: one[key] for key in ("Key", "VersionId")} for one in found]
            if not keys:
                continue
            answer = client.delete_objects(
                Bucket=bucket, Delete={"Objects": keys, "Quiet": True}
            )
            if errors := answer.get("Errors"):
                raise DeploymentError(
                    f"The bucket {bucket} could not be emptied: "
                    f"{errors[0].get('Key')}: {errors[0].get('Message')}"
                )


def _delete_archives(client: Any, bucket: str, name: str) -> None:
    """Delete the archives of a stack's function with all of their versions."""
    with contextlib.suppress(client.exceptions.NoSuchBucket):
        written.delete(client, f"s3://{bucket}/{name}/")


def _expect_no_table(client: Any, name: str) -> None:
    try:
        client.describe_table(TableName=name)
    except client.exceptions.ResourceNotFoundException:
        return
    raise DeploymentError(
        f"The table {name} is still there, though its stack is gone. Delete it with "
        f"`aws dynamodb delete-table --table-name {name}`."
    )
