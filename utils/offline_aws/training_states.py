"""The states of a training job, and what is told of it.

Primary and secondary states, their order and their messages: botocore's model of
DescribeTrainingJob, and the logs of jobs that people have shown
(aws/sagemaker-python-sdk, issue 835).
"""

from __future__ import annotations

import copy
import datetime
import math
import threading
from typing import Any

from utils.offline_aws import training_spot
from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION
from utils.offline_aws.training_metrics import TRAINING_METRICS, Value
from utils.offline_aws.training_results import model_address

IN_PROGRESS, STOPPING = "InProgress", "Stopping"
ENDED = ("Completed", "Failed", "Stopped")
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted: its spot capacity was taken away",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": (
        "Training job runtime exceeded MaxRuntimeInSeconds provided"
    ),
    "MaxWaitTimeExceeded": (
        "Training job wait time exceeded MaxWaitTimeInSeconds provided"
    ),
}
PAID = ("Downloading", "Training", "Stopping", "Uploading")  # states with a machine


def arn_of(name: str) -> str:
    """Return the ARN of a job."""
    return f"arn:aws:sagemaker:{OFFLINE_REGION}:{OFFLINE_ACCOUNT}:training-job/{name}"


def now() -> datetime.datetime:
    """Return the moment, as answers have it."""
    return datetime.datetime.now(datetime.UTC)


class JobStates:
    """What is known of a training job from its request to its end.

    Attributes:
        status: TrainingJobStatus.
        secondary: SecondaryStatus.
        transitions: of the latter.
        failure_reason: None unless it has failed.
    """

    def __init__(self, request: dict[str, Any], more: dict[str, Any]):
        self.request, self.more = copy.deepcopy(request), more
        self.name = request["TrainingJobName"]
        self.arn = arn_of(self.name)
        self.status, self.secondary = IN_PROGRESS, "Starting"
        self.created = self.modified = now()
        self.started: datetime.datetime | None = None
        self.finished: datetime.datetime | None = None
        self.transitions: list[dict[str, Any]] = []
        self.failure_reason: str | None = None
        self.has_results = False
        self.change = threading.Condition()
        self.move("Starting")

    @property
    def spot(self) -> bool:
        """Whether its machines may be taken away."""
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def instances(self) -> int:
        """How many instances it has."""
        return int(self.request["ResourceConfig"].get("InstanceCount") or 1)

    @property
    def instance_type(self) -> str:
        """Of which type they are."""
        return self.request["ResourceConfig"]["InstanceType"]

    @property
    def ended(self) -> bool:
        """Whether it is in a state that it never leaves."""
        return self.status in ENDED

    @property
    def metrics(self) -> list[Value]:
        """The values that its log has given so far."""
        return TRAINING_METRICS.of(self.name)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; say whether it has."""
        with self.change:
            return self.change.wait_for(lambda: self.ended, timeout)

    def seconds(self) -> int | None:
        """Return TrainingTimeInSeconds; None before it has a machine."""
        if self.started is None:
            return None
        total = 0.0
        for one in self.transitions:
            if one["Status"] in PAID:
                end = one.get("EndTime") or now()
                total += (end - one["StartTime"]).total_seconds()
        return max(1, math.ceil(total))

    def description(self) -> dict[str, Any]:
        """Return what DescribeTrainingJob says of it, without empty members."""
        with self.change:
            seconds = self.seconds() if self.ended else None
            share = training_spot.SHARE_OF_PRICE if self.spot else 1
            billed = None if seconds is None else max(1, math.ceil(seconds * share))
            address = model_address(self.request) if self.has_results else None
            found = {
                **{key: one for key, one in self.request.items() if key != "Tags"},
                "TrainingJobArn": self.arn,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary,
                "FailureReason": self.failure_reason,
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
                "TrainingStartTime": self.started,
                "TrainingEndTime": self.finished,
                "SecondaryStatusTransitions": copy.deepcopy(self.transitions),
                "FinalMetricDataList": TRAINING_METRICS.final(self.name),
                "TrainingTimeInSeconds": seconds,
                "BillableTimeInSeconds": billed,
                "ModelArtifacts": address and {"S3ModelArtifacts": address},
                **self.more,
            }
        flags = (
            "EnableNetworkIsolation",
            "EnableInterContainerTrafficEncryption",
            "EnableManagedSpotTraining",
        )
        found |= {flag: bool(self.request.get(flag)) for flag in flags}
        return {key: one for key, one in found.items() if one not in (None, {}, [], "")}

    def move(
        self,
        secondary: str,
        status: str | None = None,
        reason: str | None = None,
        only_from: str | None = None,
    ) -> bool:
        """Go into a state.

        Args:
            secondary: the state.
            status: the primary one, if it changes.
            reason: why the job has failed.
            only_from: the primary state that it has to be in now, if one is named.

        Returns:
            whether it has gone there.
        """
        with self.change:
            if only_from is not None and self.status != only_from:
                return False
            self.failure_reason = reason
            self.status = status or self.status
            self._note(secondary)
            return True

    def _note(self, secondary: str) -> None:
        moment = now()
        if self.transitions:
            self.transitions[-1]["EndTime"] = moment
        one = {
            "Status": secondary,
            "StartTime": moment,
            "StatusMessage": MESSAGES[secondary],
        }
        self.transitions.append(one)
        self.secondary, self.modified = secondary, moment
        if self.started is None and secondary == "Downloading":
            self.started = moment
        if self.status in ENDED:
            one["EndTime"] = moment
            self.finished = moment if self.started is not None else None
        self.change.notify_all()
