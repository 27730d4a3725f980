"""A stop that lives in the account: AWS deletes an endpoint at a stated hour.

A guard ends with its kernel. What is to delete an endpoint after the kernel was killed,
or the laptop lost, has to be where the endpoint is. EventBridge Scheduler calls
SageMaker's DeleteEndpoint once, at a time that is set when the endpoint is created, and
then deletes its own schedule. `stop_after` again moves that time.

It goes by the clock and not by use: it is a dead man's switch, not a measure of
idleness. At the stated hour an endpoint ends that answers requests just then, and one
that nobody asks goes on until then. What is left, the endpoint's configuration, model,
uploads and log, costs nothing or little; `python -m utils.deployment bill` lists it.

Sources: botocore's model of `scheduler`; AWS's User Guide of EventBridge Scheduler,
"Using universal targets" (the target's ARN; DeleteEndpoint is none of the reading
actions that it excludes), "Schedule types" (`at`, to within 60 seconds), "Confused
deputy prevention" (the role's trust). It has not been run on AWS.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.deployment.asking import PREFIX
from utils.deployment.aws import Aws, AwsError

ROLE = "course-idle-stop"  # which the caller's policy lets hand on to Scheduler
FEWEST_HOURS, MOST_HOURS = 0.5, 7 * 24
MINUTE = 60  # seconds; Scheduler is no more precise
# What Scheduler does by default, written down because UpdateSchedule resets what is
# not given: an endpoint in transition refuses to be deleted.
RETRIES = {"MaximumEventAgeInSeconds": 24 * 3600, "MaximumRetryAttempts": 185}
DESCRIPTION = "Deletes an endpoint of the course, used or not."


@dataclass(frozen=True)
class Stop:
    """When AWS will delete an endpoint.

    Attributes:
        endpoint: its name, and the schedule's.
        at: the time, in seconds since 1970.
        real: whether this is the AWS that bills.
    """

    endpoint: str
    at: float
    real: bool

    def __str__(self) -> str:
        when = datetime.datetime.fromtimestamp(self.at, datetime.UTC)
        lives = (
            "whatever becomes of this kernel"
            if self.real
            else "as long as this kernel lives, with which the offline AWS ends"
        )
        return (
            f"The endpoint {self.endpoint} is deleted at {when:%Y-%m-%d %H:%M} UTC, in "
            f"use or not, {lives}. Call stop_after again to move that."
        )

    __repr__ = __str__


def stop_after(
    aws: Aws, endpoint: str, hours: float, clock: Callable[[], float] = time.time
) -> Stop:
    """Have AWS delete an endpoint some hours from now; called again, it moves that.

    The endpoint need not exist yet, so that nothing ever bills without it. A guard
    deletes the schedule once it has deleted the endpoint.

    First used in lesson 06, section 7.

    Args:
        aws: the account.
        endpoint: the name of an endpoint of the course.
        hours: from now, 0.5 to 168.
        clock: gives the time, in seconds since 1970.

    Raises:
        AwsError: if the role may not delete an endpoint of that name, the hours are out
            of range, or AWS refuses: nothing is scheduled then.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    if not FEWEST_HOURS <= hours <= MOST_HOURS:
        raise AwsError(
            f"hours is {hours}. Give {FEWEST_HOURS} to {MOST_HOURS}: sooner, an "
            "endpoint may still be starting, and would refuse to be deleted."
        )
    at = math.ceil((clock() + hours * 3600) / MINUTE) * MINUTE
    request = schedule(aws, endpoint, at)
    client = aws.session.client("scheduler")
    try:
        try:
            client.create_schedule(**request)
        except client.exceptions.ConflictException:
            client.update_schedule(**request)
    except (BotoCoreError, ClientError) as error:
        raise AwsError(
            f"The stop of {endpoint} could not be scheduled ({error}). It needs the "
            f"role {stop_role(aws)} with data/aws/idle_stop_role_trust.json as its "
            "trust policy and data/aws/idle_stop_role_policy.json as its rights, and "
            "for you the rights of data/aws/iam_policy.json. Without it, nothing but "
            "you deletes the endpoint once this kernel is gone."
        ) from error
    return Stop(endpoint, at, aws.real)


def schedule(aws: Aws, endpoint: str, at: float) -> dict[str, Any]:
    """Return the parameters of CreateSchedule, and of UpdateSchedule.

    Args:
        aws: the account.
        endpoint: the name of an endpoint of the course.
        at: when to delete it, in seconds since 1970.

    Raises:
        AwsError: if it has no name of the course.
    """
    if not endpoint.startswith(PREFIX):
        raise AwsError(
            f"The endpoint {endpoint!r} has no name that begins with {PREFIX!r}, and "
            f"the role {ROLE} may delete no other. Take `guard.name(…)`."
        )
    when = datetime.datetime.fromtimestamp(at, datetime.UTC)
    partition = aws.session.get_partition_for_region(aws.region)
    return {
        "Name": endpoint,
        "Description": DESCRIPTION,
        "ScheduleExpression": f"at({when:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{partition}:scheduler:::aws-sdk:sagemaker:deleteEndpoint",
            "RoleArn": stop_role(aws),
            "Input": json.dumps({"EndpointName": endpoint}),
            "RetryPolicy": RETRIES,
        },
    }


def stop_role(aws: Aws) -> str:
    """Return the ARN of the role under which Scheduler deletes the endpoint."""
    partition = aws.session.get_partition_for_region(aws.region)
    return f"arn:{partition}:iam::{aws.role.split(':')[4]}:role/{ROLE}"
