"""Training jobs of the offline AWS with tiny scripts, by boto3 alone."""

from __future__ import annotations

import io
import tarfile
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.offline_aws.training_jobs import TRAINING_JOBS

if TYPE_CHECKING:
    from utils.deployment.aws import Aws
    from utils.offline_aws.training_jobs import TrainingJob

# As `image_uris.retrieve("huggingface", …, image_scope="training")` gives it.
IMAGE = (
    "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:"
    "2.9.0-transformers5.3.0-gpu-py312-cu130-ubuntu22.04"
)
GROUP = "/aws/sagemaker/TrainingJobs"
LONG = 60  # seconds; nothing waits longer than it has to
SCRIPT = "/opt/ml/input/data/code/train.py"


class Jobs:
    """Starts jobs in an account, and asks about them."""

    def __init__(self, aws: Aws):
        self.aws = aws
        self.client = aws.session.client("sagemaker")
        self.s3 = aws.session.client("s3")

    def put(self, files: Mapping[str, str | bytes], place: str | None = None) -> str:
        """Upload texts by their keys below a place of their own; return its address."""
        place = place or f"t-{uuid.uuid4().hex[:8]}"
        for key, text in files.items():
            body = text.encode() if isinstance(text, str) else text
            self.s3.put_object(Bucket=self.aws.bucket, Key=f"{place}/{key}", Body=body)
        return f"s3://{self.aws.bucket}/{place}"

    def request(self, script: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return a request for a job that runs a script; None takes a member out."""
        name = f"job-{uuid.uuid4().hex[:8]}"
        found: dict[str, Any] = {
            "TrainingJobName": name,
            "RoleArn": self.aws.role,
            "AlgorithmSpecification": {
                "TrainingImage": IMAGE,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["python3", SCRIPT],
            },
            "OutputDataConfig": {"S3OutputPath": f"s3://{self.aws.bucket}/out"},
            "ResourceConfig": {
                "InstanceType": "ml.m5.xlarge",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        }
        if script is not None:
            code = channel("code", self.put({"train.py": script}))
            found["InputDataConfig"] = [code]
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(found.get(key), dict):
                value = {**found[key], **value}
                value = {k: one for k, one in value.items() if one is not None}
            if isinstance(value, list) and key == "InputDataConfig":
                value = [*found.get(key, []), *value]
            found[key] = value
        return {key: one for key, one in found.items() if one is not None}

    def start(self, script: str | None = None, **changes: Any) -> TrainingJob:
        """Start a job, and return it as the offline AWS holds it."""
        request = self.request(script, **changes)
        self.client.create_training_job(**request)
        return TRAINING_JOBS[request["TrainingJobName"]]

    def run(self, script: str | None = None, **changes: Any) -> dict[str, Any]:
        """Run a job to its end; return its description."""
        job = self.start(script, **changes)
        assert job.wait(LONG), job.description()
        return self.describe(job.name)

    def describe(self, name: str) -> dict[str, Any]:
        """Return what DescribeTrainingJob says."""
        return self.client.describe_training_job(TrainingJobName=name)

    def log(self, name: str) -> list[str]:
        """Return all lines of a job's log."""
        pages = self.aws.session.client("logs").get_paginator("filter_log_events")
        given = {"logGroupName": GROUP, "logStreamNamePrefix": f"{name}/"}
        events = [one for page in pages.paginate(**given) for one in page["events"]]
        return [event["message"] for event in events]

    def wait_for_line(self, job: TrainingJob, text: str) -> None:
        """Wait until a job has written a text."""
        ends = time.monotonic() + LONG
        while not any(text in line for one in job._processes for line in one.log):
            assert time.monotonic() < ends and not job.ended, job.description()
            time.sleep(0.02)

    def read(self, address: str) -> bytes:
        """Return an object."""
        bucket, key = address.removeprefix("s3://").split("/", 1)
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def keys(self, address: str) -> list[str]:
        """Return the keys below an address, as they go on from it."""
        bucket, prefix = address.removeprefix("s3://").split("/", 1)
        listed = self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)
        return [one["Key"].removeprefix(prefix) for one in listed.get("Contents", [])]

    def artifact(self, described: dict[str, Any]) -> dict[str, bytes]:
        """Return the files of a job's model."""
        return unpacked(self.read(described["ModelArtifacts"]["S3ModelArtifacts"]))


def channel(name: str, address: str, **source: Any) -> dict[str, Any]:
    """Return a channel of InputDataConfig."""
    found = {"S3DataType": "S3Prefix", "S3Uri": address, **source}
    return {"ChannelName": name, "DataSource": {"S3DataSource": found}}


def packed(files: Mapping[str, str]) -> bytes:
    """Return an archive of texts."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return archive.getvalue()


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        files = [member for member in tar if member.isfile()]
        return {member.name: tar.extractfile(member).read() for member in files}


def states(described: dict[str, Any]) -> list[str]:
    """Return the secondary states that a job has gone through."""
    return [one["Status"] for one in described["SecondaryStatusTransitions"]]
