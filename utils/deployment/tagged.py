"""What a run makes on SageMaker: known by its tag, listed, and deleted.

A name says nothing about whose a thing is: a call that fails because the name is taken
has named another's. So what is here is looked up and its tags are read before each
deletion.
"""

from __future__ import annotations

import time
from typing import Any

from utils.deployment.asking import NOT_PLAYED, PREFIX, TAG
from utils.deployment.aws import FIRST_POLL, DeploymentError
from utils.deployment.ledger import Entry

COMPONENT = "inference component"
ENDPOINT = "endpoint"
CONFIGURATION = "endpoint configuration"
# kind → (operation, key of the name in its request), in the order of deletion
KINDS = {
    COMPONENT: ("InferenceComponent", "InferenceComponentName"),
    ENDPOINT: ("Endpoint", "EndpointName"),
    CONFIGURATION: ("EndpointConfig", "EndpointConfigName"),
    "model": ("Model", "ModelName"),
}
TRAINING, TUNING = "training job", "tuning job"
PROCESSING, TRANSFORM = "processing job", "transform job"
PIPELINE = "pipeline"
# likewise, of what runs by itself; see `utils.deployment.running`
JOBS = {
    PIPELINE: ("Pipeline", "PipelineName"),
    TUNING: ("HyperParameterTuningJob", "HyperParameterTuningJobName"),
    TRAINING: ("TrainingJob", "TrainingJobName"),
    PROCESSING: ("ProcessingJob", "ProcessingJobName"),
    TRANSFORM: ("TransformJob", "TransformJobName"),
}
DELETE_TIMEOUT = 900  # an endpoint in transition refuses to be deleted for a while


def delete(client: Any, entry: Entry, run: str) -> None:
    """Delete what an entry names if it carries the run's tag, and wait where need be.

    Until an endpoint is really gone, it is billed; until its components are, it cannot
    be deleted.

    Args:
        client: of SageMaker.
        entry: of one of `KINDS`; it is confirmed if there is such a thing of the run.
        run: the tag's value.

    Raises:
        DeploymentError: if it is still there after `DELETE_TIMEOUT`.
        ClientError: of botocore, if AWS refuses.
    """
    from botocore.exceptions import ClientError

    operation, key = KINDS[entry.kind]
    deadline = time.monotonic() + DELETE_TIMEOUT
    while run in runs_of(client, entry.kind, entry.name):
        entry.confirmed = True
        try:
            getattr(client, f"delete_{method(operation)}")(**{key: entry.name})
        except ClientError as error:
            # One in transition is refused for a while; a missing right for ever.
            if not is_missing(error) or time.monotonic() > deadline:
                raise
            time.sleep(FIRST_POLL)
            continue
        if entry.kind not in (COMPONENT, ENDPOINT):
            break
        if time.monotonic() > deadline:
            raise DeploymentError(f"still there {DELETE_TIMEOUT} s after the call")
        time.sleep(FIRST_POLL)


def described(client: Any, kind: str, name: str) -> dict[str, Any] | None:
    """Return something as AWS describes it; None if it is not there.

    Args:
        client: of SageMaker.
        kind: one of `KINDS` or `JOBS`.
        name: of what is looked for.
    """
    from botocore.exceptions import ClientError

    operation, key = (KINDS | JOBS)[kind]
    try:
        return getattr(client, f"describe_{method(operation)}")(**{key: name})
    except ClientError as error:
        if is_missing(error) or is_unplayed(error):
            return None
        raise


def runs_of(client: Any, kind: str, name: str) -> list[str]:
    """Return the runs that something is tagged with; none if it is not there."""
    found = described(client, kind, name)
    return [] if found is None else runs_in(client, kind, found)


def runs_in(client: Any, kind: str, found: dict[str, Any]) -> list[str]:
    """Return likewise the runs of something that AWS has described already."""
    from botocore.exceptions import ClientError

    try:
        arn = found[f"{(KINDS | JOBS)[kind][0]}Arn"]
        tags = client.list_tags(ResourceArn=arn)["Tags"]
    except ClientError as error:
        if is_missing(error) or is_unplayed(error):
            return []
        raise
    return [tag["Value"] for tag in tags if tag["Key"] == TAG]


def listed(client: Any, kind: str, beginning: str = PREFIX) -> set[str]:
    """Return the names of a kind that are such as the guard gives.

    Args:
        client: of SageMaker.
        kind: one of `KINDS` or `JOBS`.
        beginning: of the names.
    """
    from botocore.exceptions import ClientError

    operation, key = (KINDS | JOBS)[kind]
    pages = client.get_paginator(f"list_{method(operation)}s")
    only = {"NameContains": beginning}
    if kind == PIPELINE:  # whose pattern lets no dash be the last
        only = {"PipelineNamePrefix": beginning.rstrip("-")}
    under = f"{operation}Summaries" if kind in JOBS else f"{operation}s"
    names = set()
    try:
        for page in pages.paginate(**only):
            names |= {item[key] for item in page[under]}
    except ClientError as error:
        if not is_unplayed(error):
            raise
    return {name for name in names if name.startswith(beginning)}


def method(operation: str) -> str:
    """Spell an operation as boto3 does at the end of its methods."""
    from botocore import xform_name

    return xform_name(operation)


def is_missing(error: Any) -> bool:
    """Say whether SageMaker finds what was named missing, or in transition.

    Most of its calls answer ValidationException; the model has ResourceNotFound too.
    """
    code = error.response["Error"]["Code"]
    return code.startswith(("Validation", "ResourceNotFound"))


def is_in_use(error: Any) -> bool:
    """Say whether SageMaker refuses because of the state in which something is."""
    return error.response["Error"]["Code"] in ("ResourceInUse", "ConflictException")


def is_unplayed(error: Any) -> bool:
    """Say whether the offline AWS does not have the call, so that it has no such."""
    return error.response["Error"]["Code"] == NOT_PLAYED
