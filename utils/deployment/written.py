"""What a run's endpoints and jobs write by themselves: replies, outputs, logs.

No call of the session uploads them, so no object carries the run's mark. An endpoint's
configuration and a job's request say below which addresses they come. A billing guard
notes these when it sees endpoint or job created, and once that is gone it deletes what
lies there: in the run's own folders, whose names only the guard gives, and nowhere
else. All jobs of an account write into the same log groups. Of these only the streams
that begin with a job's whole name are deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from utils.deployment.aws import DeploymentError

REPLIES = "asynchronous replies"
OUTPUTS = "job's outputs"
STREAMS = "log streams"
# Where the containers of a job write their log: a stream for each, "JOB/algo-1-…".
LOGS_OF = {
    "training job": "/aws/sagemaker/TrainingJobs",
    "processing job": "/aws/sagemaker/ProcessingJobs",
    "transform job": "/aws/sagemaker/TransformJobs",
}
# What a training job writes into a folder of its name below "S3OutputPath".
IN_ITS_FOLDER = (
    "OutputDataConfig",
    "DebugHookConfig",
    "ProfilerConfig",
    "TensorBoardOutputConfig",
)
AT_ONCE = 1000  # objects that one call of DeleteObjects takes (S3's API reference)


def places(configuration: dict[str, Any]) -> list[str]:
    """Return where an endpoint configuration lets replies and failures be written.

    Args:
        configuration: the parameters of CreateEndpointConfig, or what
            DescribeEndpointConfig returns.

    Returns:
        addresses that end with a slash, so that no neighbour's begins alike.
    """
    output = configuration.get("AsyncInferenceConfig", {}).get("OutputConfig", {})
    found = (output.get(key) for key in ("S3OutputPath", "S3FailurePath"))
    return [f"{place.rstrip('/')}/" for place in found if place]


def of_job(kind: str, job: dict[str, Any]) -> list[str]:
    """Return where a job writes: model, outputs and checkpoints.

    A tuning job writes where its training jobs do; of it only the checkpoints are told.

    Args:
        kind: such as "training job".
        job: the parameters of its creation, or what AWS describes.

    Returns:
        addresses that end with a slash, each once.
    """
    found: list[str | None] = []
    if kind == "training job":
        for key in IN_ITS_FOLDER:
            if place := job.get(key, {}).get("S3OutputPath"):
                found.append(f"{place.rstrip('/')}/{job['TrainingJobName']}")
        found.append(job.get("CheckpointConfig", {}).get("S3Uri"))
    elif kind == "tuning job":
        several = job.get("TrainingJobDefinitions", [])
        for definition in (job.get("TrainingJobDefinition", {}), *several):
            found.append(definition.get("CheckpointConfig", {}).get("S3Uri"))
    elif kind == "processing job":
        for output in job.get("ProcessingOutputConfig", {}).get("Outputs", []):
            found.append(output.get("S3Output", {}).get("S3Uri"))
    elif kind == "transform job":
        found.append(job.get("TransformOutput", {}).get("S3OutputPath"))
    ended = (f"{place.rstrip('/')}/" for place in found if place)
    return list(dict.fromkeys(ended))


def delete_streams(client: Any, place: str) -> None:
    """Delete the log streams of a job; the group is all jobs' and stays.

    Args:
        client: of CloudWatch Logs.
        place: the group, a slash and the job's whole name.
    """
    group, _, job = place.rpartition("/")
    pages = client.get_paginator("describe_log_streams")
    try:
        names = [
            stream["logStreamName"]
            for page in pages.paginate(
                logGroupName=group, logStreamNamePrefix=f"{job}/"
            )
            for stream in page["logStreams"]
        ]
    except client.exceptions.ResourceNotFoundException:
        return  # no job of the account has ever written
    for name in names:
        client.delete_log_stream(logGroupName=group, logStreamName=name)


def delete(client: Any, place: str) -> None:
    """Delete all versions of all objects below an address, and what marks them deleted.

    Args:
        client: of S3.
        place: an address that ends with a slash, such as `places` returns.

    Raises:
        DeploymentError: naming the first object that S3 did not delete.
    """
    bucket, _, folder = place.removeprefix("s3://").partition("/")
    pages = client.get_paginator("list_object_versions").paginate(
        Bucket=bucket, Prefix=folder
    )
    found = list(_versions(pages))
    for start in range(0, len(found), AT_ONCE):
        some = found[start : start + AT_ONCE]
        done = client.delete_objects(
            Bucket=bucket, Delete={"Objects": some, "Quiet": True}
        )
        for error in done.get("Errors", []):
            raise DeploymentError(
                f"{error.get('Key')} was not deleted ({error.get('Code')}: "
                f"{error.get('Message')})."
            )


def _versions(pages: Iterable[dict]) -> Iterator[dict[str, str]]:
    for page in pages:
        for one in chain(page.get("Versions", []), page.get("DeleteMarkers", [])):
            yield {"Key": one["Key"], "VersionId": one["VersionId"]}
