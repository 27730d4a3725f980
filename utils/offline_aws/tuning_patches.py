"""What moto lacks of tuning jobs: that they run, stop, and list their training jobs.

moto calls a tuning job Completed at once, and its best job FakeTrainingJobName. Its
list, its pages and its tags stay: the records in it are `TuningJob`s.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from utils.offline_aws.errors import invalid
from utils.offline_aws.names import (
    OFFLINE_ACCOUNT,
    OFFLINE_REGION,
    TRAINING_LOG_GROUP,
)
from utils.offline_aws.training_checks import check_training_job
from utils.offline_aws.training_jobs import TRAINING_JOBS, start_training_job
from utils.offline_aws.tuning_checks import check_tuning_job
from utils.offline_aws.tuning_jobs import TuningJob
from utils.offline_aws.tuning_records import Trial, now
from utils.offline_aws.wrapping import wrap

_CREATING = threading.Lock()  # of two jobs with one name the second is refused
USUAL_RESULTS = 10  # botocore's model of MaxResults: "The default value is 10"


def patch_tuning_jobs() -> None:
    """Give moto tuning jobs that run, and the answers about them."""
    from moto.sagemaker.models import SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    SageMakerResponse.create_hyper_parameter_tuning_job = _create
    SageMakerResponse.stop_hyper_parameter_tuning_job = _stop
    SageMakerResponse.list_training_jobs_for_hyper_parameter_tuning_job = _list_jobs
    wrap(SageMakerModelBackend, "list_hyper_parameter_tuning_jobs", _by_name)
    wrap(SageMakerModelBackend, "delete_hyper_parameter_tuning_job", _only_ended)


def leave_tuning_jobs() -> None:
    """Let all tuning jobs rest: the offline AWS ends, or starts anew.

    What they have started is ended by `training_jobs.stop_all`.
    """
    from moto.sagemaker.models import sagemaker_backends

    # Asking for a backend makes a session, which an AWS_PROFILE may not allow yet.
    if OFFLINE_ACCOUNT not in sagemaker_backends:
        return
    for job in list(_jobs().values()):
        job.leave()


class JobsHere:
    """Runs the training jobs of tuning jobs as those of CreateTrainingJob."""

    def create(self, request: dict[str, Any], tuning_job_arn: str) -> None:
        """Start a training job.

        Raises:
            AwsFault: as CreateTrainingJob refuses it.
        """
        check_training_job(request)
        start_training_job(request, TuningJobArn=tuning_job_arn)

    def describe(self, name: str) -> dict[str, Any]:
        """Return what DescribeTrainingJob answers."""
        if (job := TRAINING_JOBS.get(name)) is None:
            reason = "ClientError: The training job was deleted"
            return {"TrainingJobStatus": "Failed", "FailureReason": reason}
        return job.description()

    def stop(self, name: str) -> None:
        """Ask a training job to stop."""
        if (job := TRAINING_JOBS.get(name)) is not None:
            job.stop()

    def listen(self, name: str) -> Callable[[], list[str]]:
        """Return what gives the new lines of its log in CloudWatch, by their time."""
        from moto.logs.models import logs_backends

        groups = logs_backends[OFFLINE_ACCOUNT][OFFLINE_REGION].groups
        read: Counter[str] = Counter()  # events, by their stream

        def new_lines() -> list[str]:
            group = groups.get(TRAINING_LOG_GROUP)
            found = []
            for stream, held in list(group.streams.items()) if group else ():
                if stream.startswith(f"{name}/"):
                    events = held.events[read[stream] :]
                    read[stream] += len(events)
                    found += events
            found.sort(key=lambda one: one.timestamp)
            return [one.message for one in found]

        return new_lines


def check_new_tuning_job(parameters: dict[str, Any]) -> None:
    """Refuse a tuning job, or one whose training jobs would be refused.

    Args:
        parameters: of CreateHyperParameterTuningJob, held to its model already.

    Raises:
        AwsFault: as AWS would, or NotImplemented.
    """
    check_tuning_job(parameters)
    job = TuningJob(parameters, JobsHere())
    check_training_job(job.request(Trial(f"{job.name}-001-00000000", {}, now())))


def _create(response: Any) -> Any:
    """Answer CreateHyperParameterTuningJob: note the job, and start it."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.exceptions import ResourceInUseException

    parameters = json.loads(response.body)
    job = TuningJob(parameters, JobsHere())
    jobs = response.sagemaker_backend.hyper_parameter_tuning_jobs
    with _CREATING:
        # "The name is not case sensitive": botocore's model. The text is moto's.
        if job.name.lower() in {name.lower() for name in list(jobs)}:
            raise ResourceInUseException(
                message="Resource Already Exists: Hyper Parameter Tuning Job with name "
                f"{job.name} already exists. Choose a different name."
            )
        jobs[job.name] = job
    job.start()
    return ActionResult({"HyperParameterTuningJobArn": job.arn})


def _stop(response: Any) -> Any:
    """Answer StopHyperParameterTuningJob.

    Text for a job that has ended: as of training jobs, awslabs/benchmark-ai, issue 928.
    """
    from moto.core.responses import EmptyResult

    job = _find(response)
    if job.over:
        raise invalid(
            "The request was rejected because the hyperparameter tuning job is in "
            f"status {job.status}."
        )
    job.stop()
    return EmptyResult()


def _list_jobs(response: Any) -> Any:
    """Answer ListTrainingJobsForHyperParameterTuningJob."""
    from moto.core.responses import ActionResult

    given = json.loads(response.body)
    found = _find(response).list_trials(
        given.get("StatusEquals"), given.get("SortBy"), given.get("SortOrder")
    )
    token = given.get("NextToken") or "0"
    if not token.isdecimal():
        raise invalid(f"Invalid pagination token {token!r}.")
    start = int(token)
    end = start + int(given.get("MaxResults") or USUAL_RESULTS)
    answer: dict[str, Any] = {"TrainingJobSummaries": found[start:end]}
    if end < len(found):
        answer["NextToken"] = str(end)
    return ActionResult(answer)


def _by_name(list_: Any, backend: Any, **given: Any) -> Any:
    """List tuning jobs; botocore's model of SortBy: "The default is Name"."""
    return list_(backend, **given | {"sort_by": given.get("sort_by") or "Name"})


def _only_ended(delete: Any, backend: Any, **given: Any) -> None:
    """Delete a tuning job that has ended; the text of the refusal is ours."""
    job = backend.hyper_parameter_tuning_jobs.get(
        given["hyper_parameter_tuning_job_name"]
    )
    if job is not None and not job.over:
        raise invalid(
            f"The hyperparameter tuning job {job.arn} is in status {job.status}. Only "
            "a job that is Completed, Failed or Stopped can be deleted: stop it first."
        )
    delete(backend, **given)


def _find(response: Any) -> TuningJob:
    """Return the tuning job that a call names."""
    name = response._get_param("HyperParameterTuningJobName")
    backend = response.sagemaker_backend
    backend.describe_hyper_parameter_tuning_job(hyper_parameter_tuning_job_name=name)
    return backend.hyper_parameter_tuning_jobs[name]


def _jobs() -> dict[str, TuningJob]:
    return _backend().hyper_parameter_tuning_jobs


def _backend() -> Any:
    """Return moto's SageMaker of the account."""
    from moto.sagemaker.models import sagemaker_backends

    return sagemaker_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]
