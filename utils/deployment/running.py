"""Jobs, tuning jobs and pipelines on SageMaker: stopped, waited for, and deleted.

An endpoint ends when it is deleted. A job is stopped first: AWS deletes none that still
runs, and a stopped one may take two minutes to end. So all of a run's jobs are asked to
stop before one of them is waited for. What starts jobs is waited for before its jobs
are counted: a tuning job, and an execution of a pipeline.

Sources: botocore's model of `sagemaker`. DeleteTrainingJob takes a job that is Stopped,
Failed or Completed and that keeps no warm pool; DeleteHyperParameterTuningJob leaves
the training jobs; DeletePipeline wants no execution that runs. A transform job cannot
be deleted at all.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from typing import Any

from utils.deployment import attached, tagged
from utils.deployment.aws import FIRST_POLL, LONGEST_POLL, DeploymentError
from utils.deployment.ledger import Machines, Use

TRAINING, TUNING = tagged.TRAINING, tagged.TUNING
PROCESSING, TRANSFORM = tagged.PROCESSING, tagged.TRANSFORM
PIPELINE = tagged.PIPELINE
EXECUTIONS = "executions of the pipeline"  # somebody else's, that this run has started
# In the order of stopping and deletion: first what starts others.
KINDS = (EXECUTIONS, PIPELINE, TUNING, TRAINING, PROCESSING, TRANSFORM)
ENDED = {"Completed", "Failed", "Stopped", "Succeeded", "CompletedWithFailures"}
STARTERS = (EXECUTIONS, PIPELINE, TUNING)  # of jobs that the session never asks for
# Seconds. SageMaker ends a training 120 s after it was asked to stop; then it uploads.
STOP_TIMEOUT = 900
SECONDS_AN_HOUR = 3600
# What a pipeline's step made → its kind, by the keys of PipelineExecutionStepMetadata.
STEPS = {
    "TrainingJob": TRAINING,
    "TuningJob": TUNING,
    "ProcessingJob": PROCESSING,
    "TransformJob": TRANSFORM,
    "Model": "model",
    "RegisterModel": attached.PACKAGE,
    "EndpointConfig": tagged.CONFIGURATION,
    "Endpoint": tagged.ENDPOINT,
    "InferenceComponent": tagged.COMPONENT,
}


def describe(client: Any, kind: str, name: str) -> dict[str, Any] | None:
    """Return a job, tuning job or pipeline as AWS describes it; None if it is gone."""
    return tagged.described(client, kind, name)


def status(kind: str, description: dict[str, Any]) -> str:
    """Return the status in a description."""
    return description.get(f"{tagged.JOBS[kind][0]}Status", "")


# --- stopping -------------------------------------------------------------------------


def stop(client: Any, kind: str, name: str, mark: str = "") -> None:
    """Ask for the end of what runs; what has ended, or is gone, is left as it is.

    Args:
        client: of SageMaker.
        kind: one of `KINDS`.
        name: of the job, or of the pipeline whose executions are stopped.
        mark: of the executions that are meant, in their description; "" for all.

    Raises:
        ClientError: of botocore, if AWS refuses, though it runs.
    """
    from botocore.exceptions import ClientError

    if kind in (PIPELINE, EXECUTIONS):
        for execution in executions(client, name, mark):
            if execution["PipelineExecutionStatus"] == "Executing":
                arn = execution["PipelineExecutionArn"]
                client.stop_pipeline_execution(PipelineExecutionArn=arn)
        return
    operation, key = tagged.JOBS[kind]
    if _runs(client, kind, name):
        try:
            getattr(client, f"stop_{tagged.method(operation)}")(**{key: name})
        except ClientError:
            # One that has just ended refuses: whether it has, its status says.
            if _runs(client, kind, name):
                raise


def _runs(client: Any, kind: str, name: str) -> bool:
    found = describe(client, kind, name)
    return found is not None and status(kind, found) == "InProgress"


def settle(client: Any, kind: str, name: str, mark: str = "") -> None:
    """Wait until what was asked to stop has ended.

    Raises:
        DeploymentError: if it has not after `STOP_TIMEOUT`, with its status.
    """
    deadline, pause = time.monotonic() + STOP_TIMEOUT, FIRST_POLL
    while left := _statuses(client, kind, name, mark) - ENDED:
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"still {', '.join(sorted(left))} {STOP_TIMEOUT} s after the stop"
            )
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_POLL)


def _statuses(client: Any, kind: str, name: str, mark: str) -> set[str]:
    if kind in (PIPELINE, EXECUTIONS):
        found = executions(client, name, mark)
        return {one["PipelineExecutionStatus"] for one in found}
    described = describe(client, kind, name)
    return set() if described is None else {status(kind, described)}


def end_warm_pool(client: Any, name: str) -> None:
    """Give back the machines that a training job keeps after its end, and wait.

    Raises:
        DeploymentError: if they are still kept after `STOP_TIMEOUT`.
    """
    deadline = time.monotonic() + STOP_TIMEOUT
    asked = False
    while _keeps(describe(client, TRAINING, name) or {}):
        if not asked:
            client.update_training_job(
                TrainingJobName=name, ResourceConfig={"KeepAlivePeriodInSeconds": 0}
            )
            asked = True
            continue
        if time.monotonic() > deadline:
            raise DeploymentError(f"its warm pool is there {STOP_TIMEOUT} s later")
        time.sleep(FIRST_POLL)


def _keeps(description: dict[str, Any]) -> bool:
    return description.get("WarmPoolStatus", {}).get("Status") == "Available"


def delete(client: Any, kind: str, name: str) -> None:
    """Delete what has ended, and wait until it is gone.

    Raises:
        DeploymentError: if it is still there after `STOP_TIMEOUT`.
        ClientError: of botocore, if AWS refuses for good.
    """
    from botocore.exceptions import ClientError

    if kind in (TRANSFORM, EXECUTIONS):
        return  # AWS keeps the record, which costs nothing
    operation, key = tagged.JOBS[kind]
    deadline, pause = time.monotonic() + STOP_TIMEOUT, FIRST_POLL
    while describe(client, kind, name) is not None:
        try:
            getattr(client, f"delete_{tagged.method(operation)}")(**{key: name})
        except ClientError as error:
            # Just stopped, or being deleted: refused for a while.
            passing = tagged.is_missing(error) or tagged.is_in_use(error)
            if not passing or time.monotonic() > deadline:
                raise
        else:
            if describe(client, kind, name) is None:
                return
        if time.monotonic() > deadline:
            raise DeploymentError(f"still there {STOP_TIMEOUT} s after the call")
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_POLL)


# --- what others have started ---------------------------------------------------------


def executions(client: Any, pipeline: str, mark: str = "") -> list[dict[str, Any]]:
    """Return a pipeline's executions; none if there is no such pipeline.

    Args:
        client: of SageMaker.
        pipeline: its name.
        mark: with which the descriptions of those begin that are meant; "" for all.
    """
    from botocore.exceptions import ClientError

    pages = client.get_paginator("list_pipeline_executions")
    try:
        found = [
            one
            for page in pages.paginate(PipelineName=pipeline)
            for one in page["PipelineExecutionSummaries"]
        ]
    except ClientError as error:
        if tagged.is_missing(error) or tagged.is_unplayed(error):
            return []
        raise
    texts = (one.get("PipelineExecutionDescription", "") for one in found)
    return [
        one for one, text in zip(found, texts, strict=True) if text.startswith(mark)
    ]


def started(
    client: Any, kind: str, name: str, mark: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield what a tuning job or a pipeline has started or made by itself.

    Yields:
        kind, name and ARN of each; a model package's name is its ARN.
    """
    from botocore.exceptions import ClientError

    try:
        if kind == TUNING:
            method = "list_training_jobs_for_hyper_parameter_tuning_job"
            pages = client.get_paginator(method)
            for page in pages.paginate(HyperParameterTuningJobName=name):
                for job in page["TrainingJobSummaries"]:
                    yield TRAINING, job["TrainingJobName"], job["TrainingJobArn"]
        elif kind in (PIPELINE, EXECUTIONS):
            for execution in executions(client, name, mark):
                yield from _of_steps(client, execution["PipelineExecutionArn"])
    except ClientError as error:
        if not (tagged.is_missing(error) or tagged.is_unplayed(error)):
            raise


def _of_steps(client: Any, execution: str) -> Iterator[tuple[str, str, str]]:
    pages = client.get_paginator("list_pipeline_execution_steps")
    for page in pages.paginate(PipelineExecutionArn=execution):
        for step in page["PipelineExecutionSteps"]:
            for key, made in step.get("Metadata", {}).items():
                if key in STEPS and (arn := made.get("Arn")):
                    whole = STEPS[key] == attached.PACKAGE
                    name = arn if whole else arn.rpartition("/")[2]
                    yield STEPS[key], name, arn


# --- what it costs --------------------------------------------------------------------


def machines(kind: str, job: dict[str, Any]) -> Machines | None:
    """Return the machines of a job, as it was asked for or as AWS describes it.

    None for what AWS may choose itself, and for what has none of its own: a tuning job
    bills by its training jobs, a pipeline by its steps.
    """
    where = {
        TRAINING: job.get("ResourceConfig", {}),
        PROCESSING: job.get("ProcessingResources", {}).get("ClusterConfig", {}),
        TRANSFORM: job.get("TransformResources", {}),
    }.get(kind, {})
    groups = where.get("InstanceGroups") or [where]
    chosen = "SelectedInstanceType" in where
    if chosen:
        return ((where["SelectedInstanceType"], where.get("SelectedInstanceCount", 1)),)
    if any("InstanceType" not in group for group in groups):
        return None
    return tuple((one["InstanceType"], one.get("InstanceCount", 1)) for one in groups)


def uses(kind: str, job: dict[str, Any], now: float) -> list[Use]:
    """Return what a job has used of its machines up to now, by its description.

    A training job that has ended says its billable seconds, which for spot machines are
    fewer than it ran. Until then the clock counts, from the start on its machines on.
    That a warm pool costs what training does is assumed.

    Args:
        kind: of the job.
        job: as AWS describes it.
        now: in seconds since 1970.
    """
    if kind not in (TRAINING, PROCESSING, TRANSFORM):
        return []
    word = {TRAINING: "Training", PROCESSING: "Processing", TRANSFORM: "Transform"}[
        kind
    ]
    ran = machines(kind, job)
    start, end = (job.get(f"{word}{moment}Time") for moment in ("Start", "End"))
    ended = status(kind, job) in ENDED
    seconds = job.get("BillableTimeInSeconds") if ended else None
    if seconds is None:
        seconds = 0.0 if start is None else _clock(end, now) - _clock(start, now)
    found = [Use(word.lower(), ran, max(0.0, seconds) / SECONDS_AN_HOUR)]
    pool = job.get("WarmPoolStatus", {})
    kept = pool.get("ResourceRetainedBillableTimeInSeconds", 0)
    if _keeps(job) and end is not None:
        kept = max(kept, now - _clock(end, now))
    if kept:
        found.append(Use("warm pool", ran, kept / SECONDS_AN_HOUR))
    return found


def _clock(moment: datetime.datetime | None, now: float) -> float:
    return now if moment is None else moment.timestamp()
