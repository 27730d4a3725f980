"""Run the retraining pipeline, here by the SDK's own executor, or on AWS.

`LocalPipelineSession` knows how a pipeline goes: which step comes next, what a
condition makes of a file, what a parameter is worth. It would run each job in Docker.
Here it is given another client, which sends the jobs to the account instead: to the
offline AWS, which runs them as processes. That client is all that is ours.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import CourseError
from utils.jobs.decision import Decision
from utils.jobs.evaluate import ANSWERS, ARCHIVE, RESULT
from utils.jobs.lineage import ADAPTER, EXECUTION, JOB
from utils.jobs.pipeline import (
    BY,
    EVALUATES,
    TRAINS,
    build_pipeline,
    parameter_values,
)
from utils.jobs.pipeline_plan import DATA_DIGEST, LIVE, TEST_DIGEST, Plan
from utils.jobs.promotion import joined_name, promote, serve
from utils.jobs.source import read_json_lines
from utils.web.versions import APPROVED, PENDING, Version, Versions, digest

if TYPE_CHECKING:
    import pandas

    from utils.deployment.aws import Aws

FIRST_POLL, LONGEST_POLL = 0.1, 15.0  # seconds between looks at a job
LOGGERS = ("sagemaker", "sagemaker.mlops.local", "sagemaker.core.workflow.utilities")


class RunError(CourseError):
    """A run that came to no decision; the message says which step failed, and why."""


@dataclass(frozen=True)
class Run:
    """One execution of the pipeline that came to a decision.

    Attributes:
        execution: its id.
        status: "Succeeded", or "Failed" if the version was refused.
        reason: that the execution gives for a failure; "" without one.
        decision: of the comparison.
        job: ARN of the training job.
        digests: of the live archive, the job's model.tar.gz and the new archive.
        archive: address of the new archive.
        steps: name, kind, status and seconds of each step that ran.
        answers: each test question with both answers.
    """

    execution: str
    status: str
    reason: str
    decision: Decision
    job: str
    digests: Mapping[str, str]
    archive: str
    steps: Sequence[Mapping[str, Any]] = field(repr=False)
    answers: Sequence[Mapping[str, Any]] = field(repr=False)

    def table(self) -> pandas.DataFrame:
        """Return the steps that ran, as a table."""
        import pandas

        return pandas.DataFrame(list(self.steps))


def start_values(live: Version, data: str, test: str, **changes: Any) -> dict[str, Any]:
    """Return the parameters of a run.

    First used in lesson 08, section 7.

    Args:
        live: the version in service.
        data: digest of the rows, as `utils.jobs.pipeline_plan.upload` returns it.
        test: digest of the test questions, likewise.
        **changes: hyperparameters and rules other than the plan's.
    """
    return {DATA_DIGEST: data, TEST_DIGEST: test, LIVE: live.address, **changes}


def run_here(aws: Aws, plan: Plan, values: Mapping[str, Any]) -> Run:
    """Run the pipeline to its decision by the SDK's local executor.

    First used in lesson 08, section 7.

    Args:
        aws: the account that runs the jobs, offline or real.
        plan: of the pipeline.
        values: of its parameters; see `start_values`.

    Raises:
        RunError: if a job failed, so that nothing was decided.
    """
    from botocore.exceptions import ClientError

    with _root_logger_as_it_was():
        from sagemaker.mlops.local import LocalPipelineSession

    session = LocalPipelineSession(
        boto_session=aws.session, default_bucket=aws.bucket, disable_local_code=True
    )
    client = aws.session.client("sagemaker")
    session.sagemaker_client = JobsOfAccount(client, plan.name)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        given = parameter_values(plan, values)
        pipeline = build_pipeline(aws, plan, registers=False)
        # Pipeline.create and Pipeline.start ask the client for what only the session
        # has (sagemaker 3.27.0).
        session.create_pipeline(pipeline, "Retraining")
        execution = session.start_pipeline_execution(
            plan.name, PipelineParameters=given
        )
    except ClientError as error:
        # The SDK's own, for a parameter that is unknown, missing or of another type.
        raise RunError(f"The pipeline was not started: {error}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return _read(aws, execution)


@contextmanager
def _root_logger_as_it_was() -> Iterator[None]:
    """Undo what a module of the SDK does when it is imported: it logs all, everywhere.

    `sagemaker.core.experiments` calls logging.basicConfig(level=INFO).
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _read(aws: Aws, execution: Any) -> Run:
    """Return what an execution came to."""
    described = execution.describe()
    reason = described.get("FailureReason", "")
    steps = execution.step_execution
    evaluated = steps[EVALUATES].properties
    if not evaluated:
        raise RunError(f"Nothing was decided. {reason}")
    outputs = evaluated["ProcessingOutputConfig"]["Outputs"]
    return read_run(
        aws,
        execution=described["PipelineExecutionArn"],
        status=described["PipelineExecutionStatus"],
        reason=reason,
        job=steps[TRAINS].properties["TrainingJobArn"],
        places={name: one["S3Output"]["S3Uri"] for name, one in outputs.items()},
        steps=[
            {
                "step": name,
                "kind": one.type.value,
                "status": one.status,
                "seconds": round(one.end_time - one.start_time, 1),
            }
            for name, one in steps.items()
            if one.status is not None
        ],
    )


def read_run(aws: Aws, places: Mapping[str, str], **known: Any) -> Run:
    """Return a run with what its evaluation has written.

    Args:
        aws: the account.
        places: addresses of the outputs "evaluation" and "archive".
        **known: the other attributes of the run.
    """
    found = json.loads(_object(aws, f"{places['evaluation']}/{RESULT}"))
    answers = _object(aws, f"{places['evaluation']}/{ANSWERS}")
    return Run(
        decision=decision_of(found),
        digests=found["digests"],
        archive=f"{places['archive']}/{ARCHIVE}",
        answers=read_json_lines(answers),
        **known,
    )


def decision_of(found: Mapping[str, Any]) -> Decision:
    """Return the decision that evaluation.json states."""
    from dataclasses import fields

    given = {one.name: found[one.name] for one in fields(Decision)}
    return Decision(**given | {"promote": bool(found["promote"])})


def _object(aws: Aws, address: str) -> bytes:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return aws.session.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()


# --- the registry ---------------------------------------------------------------------


def register(
    aws: Aws, plan: Plan, run: Run, values: Mapping[str, Any], folder: Path
) -> Version:
    """Register what a run has made, by the same notes as the pipeline's own step.

    Args:
        aws: the account.
        plan: of the pipeline.
        run: as it ended, promoted or refused.
        values: of its parameters.
        folder: gets the archive, whose digest is checked.

    Returns:
        the version, which waits for its approval; see `promote`.

    Raises:
        RunError: if the archive is not the one that was evaluated.
    """
    archive = folder / f"{run.execution}-{ARCHIVE}"
    folder.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(_object(aws, run.archive))
    if digest(archive) != run.digests["archive"]:
        raise RunError(
            f"{run.archive} is {digest(archive)[:8]}, and evaluated was "
            f"{run.digests['archive'][:8]}: it was written over. Run the pipeline anew."
        )
    hyperparameters = {
        name: values.get(name, plan.hyperparameters[name]) for name in plan.noted
    }
    return Versions(aws, plan.group).register(
        archive,
        run.archive,
        plan.serving_image,
        data=values[DATA_DIGEST],
        base=plan.base,
        hyperparameters=hyperparameters,
        metrics=run.decision.metrics(),
        instance_types=plan.serving_types,
        origin={
            JOB: run.job,
            ADAPTER: run.digests["adapter"],
            "live": run.digests["live"],
            EXECUTION: run.execution,
        },
    )


def settle(
    aws: Aws,
    plan: Plan,
    run: Run,
    values: Mapping[str, Any],
    folder: Path,
    endpoint: str | None = None,
) -> Version:
    """Register what a run has made, then promote or reject it as was decided.

    What was done already is not done again: the version is found by the run. A
    repetition promotes one that waits because the first call was cut off. On AWS the
    pipeline's own step has registered and decided, so that the endpoint alone is left.

    First used in lesson 08, section 7.

    Args:
        aws: the account.
        plan: of the pipeline.
        run: as it ended.
        values: of its parameters.
        folder: gets the archive.
        endpoint: that is to serve a promoted version; None for none.

    Returns:
        the version, "Approved" or "Rejected", with the reason.

    Raises:
        VersionError: if it is to be served, and a later version is live.
    """
    versions = Versions(aws, plan.group)
    made = (one for one in versions.all() if one.origin.get(EXECUTION) == run.execution)
    version = next(made, None) or register(aws, plan, run, values, folder)
    if version.status == PENDING:
        return promote(aws, versions, version.number, run.decision, BY, endpoint)
    if version.status == APPROVED and endpoint is not None:
        serve(aws, endpoint, versions.require_latest(version.number))
    return version


# --- the client -----------------------------------------------------------------------


class JobsOfAccount:
    """What the local executor asks of a client, sent to the account.

    The executor calls `create_training_job(name, **request)`, which has to return when
    the job has ended, then `describe_training_job(name)`; likewise for processing.
    """

    def __init__(self, client: Any, prefix: str):
        """Stand before a client.

        Args:
            client: boto3's, of SageMaker.
            prefix: of the jobs' names, by which one sees whose they are. The executor
                names them by their steps alone.
        """
        self._client, self._prefix = client, prefix

    def create_training_job(self, name: str, **request: Any) -> None:
        """Run a training job to its end.

        Raises:
            RunError: if it did not complete, with its reason.
        """
        name = self._name(name)
        self._client.create_training_job(TrainingJobName=name, **request)
        self._wait("TrainingJob", self._client.describe_training_job, name)

    def describe_training_job(self, name: str) -> dict[str, Any]:
        """Describe it."""
        return self._client.describe_training_job(TrainingJobName=self._name(name))

    def create_processing_job(self, name: str, **request: Any) -> None:
        """Run a processing job to its end.

        Raises:
            RunError: if it did not complete, with its reason.
        """
        name = self._name(name)
        self._client.create_processing_job(ProcessingJobName=name, **request)
        self._wait("ProcessingJob", self._client.describe_processing_job, name)

    def describe_processing_job(self, name: str) -> dict[str, Any]:
        """Describe it."""
        return self._client.describe_processing_job(ProcessingJobName=self._name(name))

    def _name(self, name: str) -> str:
        return joined_name(self._prefix, name)

    def _wait(self, kind: str, describe: Any, name: str) -> None:
        pause = FIRST_POLL
        while True:
            found = describe(**{f"{kind}Name": name})
            status = found[f"{kind}Status"]
            if status == "Completed":
                return
            if status in ("Failed", "Stopped"):
                said = [found.get("ExitMessage"), found.get("FailureReason")]
                why = " ".join(filter(None, said))
                raise RunError(f"The job {name} is {status}. {why}".strip())
            time.sleep(pause)
            pause = min(pause * 1.2, LONGEST_POLL)
