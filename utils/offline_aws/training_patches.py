"""What moto lacks of training jobs: that they run.

moto calls a job Completed at once, gives it metrics that nobody has measured, and can
neither stop nor delete it. Its record stays, for tags and for Search; what is told of a
job comes from `training_jobs`.
"""

from __future__ import annotations

import json
from typing import Any

from utils.offline_aws.errors import invalid, not_played
from utils.offline_aws.training_jobs import (
    TRAINING_JOBS,
    TrainingJob,
    delete_training_job,
    start_training_job,
)
from utils.offline_aws.training_metrics import publish_training_metrics
from utils.offline_aws.training_states import arn_of

USUAL_RESULTS = 10  # "The default value is 10", as of other lists of SageMaker
SUMMARY = (
    *("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime"),
    *("LastModifiedTime", "TrainingJobStatus", "SecondaryStatus"),
)
OF_UNPLAYED = ("WarmPoolStatusEquals", "TrainingPlanArnEquals")
SORTED_BY = {
    "Name": "TrainingJobName",
    "CreationTime": "CreationTime",
    "Status": "TrainingJobStatus",
}


def patch_training_jobs() -> None:
    """Give moto training jobs that run, and the answers about them."""
    from moto.iam.responses import IamResponse
    from moto.sagemaker.models import FakeTrainingJob
    from moto.sagemaker.responses import SageMakerResponse

    SageMakerResponse.create_training_job = _create
    SageMakerResponse.describe_training_job = _describe
    SageMakerResponse.list_training_jobs = _list
    SageMakerResponse.stop_training_job = _stop
    SageMakerResponse.delete_training_job = _delete
    SageMakerResponse.update_training_job = _update
    FakeTrainingJob.gen_response_object = _record_as_answer
    IamResponse.simulate_principal_policy = _simulate
    publish_training_metrics()


def _create(response: Any) -> Any:
    """Answer CreateTrainingJob."""
    from moto.core.responses import ActionResult

    job = start_training_job(json.loads(response.body))
    return ActionResult({"TrainingJobArn": job.arn})


def _record_as_answer(record: Any) -> dict[str, Any]:
    """Return what Search says of a job."""
    job = TRAINING_JOBS.get(record.training_job_name)
    return job.description() if job is not None else {}


def _describe(response: Any) -> Any:
    """Answer DescribeTrainingJob."""
    from moto.core.responses import ActionResult

    return ActionResult(_find(response).description())


def _stop(response: Any) -> Any:
    """Answer StopTrainingJob.

    Text for a job that has ended: awslabs/benchmark-ai, issue 928.
    """
    from moto.core.responses import EmptyResult

    job = _find(response)
    if job.ended:
        raise invalid(
            "The request was rejected because the training job is in status "
            f"{job.status}."
        )
    job.stop()
    return EmptyResult()


def _delete(response: Any) -> Any:
    """Answer DeleteTrainingJob."""
    from moto.core.responses import EmptyResult

    delete_training_job(_find(response))
    return EmptyResult()


def _update(response: Any) -> Any:
    """Refuse UpdateTrainingJob: profilers and warm pools are not played."""
    raise not_played("sagemaker's UpdateTrainingJob")


def _find(response: Any) -> TrainingJob:
    """Return the job that a call names.

    Text: AWS's, as DIAGNijmegen/rse-grand-challenge looks for it in
    `components/backends/amazon_sagemaker_base.py`. The name is ours.
    """
    name = response._get_param("TrainingJobName")
    job = TRAINING_JOBS.get(name)
    if job is None:
        raise invalid(f"Requested resource not found. There is no {arn_of(name)}.")
    return job


def _list(response: Any) -> Any:
    """Answer ListTrainingJobs.

    As botocore's model says, the newest come first, and a status is looked for among
    the MaxResults that have been taken.
    """
    from moto.core.responses import ActionResult

    given = json.loads(response.body or "{}")
    found = [job.description() for job in list(TRAINING_JOBS.values())]
    if any(given.get(name) for name in OF_UNPLAYED):
        found = []  # no job has such a thing
    text = given.get("NameContains")
    found = [one for one in found if text is None or text in one["TrainingJobName"]]
    for key in ("CreationTime", "LastModifiedTime"):
        after, before = given.get(f"{key}After"), given.get(f"{key}Before")
        if after is not None:
            found = [one for one in found if one[key].timestamp() > after]
        if before is not None:
            found = [one for one in found if one[key].timestamp() < before]
    key = SORTED_BY[given.get("SortBy") or "CreationTime"]
    descending = given.get("SortOrder", "Descending") == "Descending"
    found.sort(key=lambda one: one[key], reverse=descending)
    start = _start_of_page(given.get("NextToken"))
    end = start + int(given.get("MaxResults") or USUAL_RESULTS)
    page, more = found[start:end], end < len(found)
    status = given.get("StatusEquals")
    answer: dict[str, Any] = {
        "TrainingJobSummaries": [
            {name: one[name] for name in SUMMARY if name in one}
            for one in page
            if status in (None, one["TrainingJobStatus"])
        ]
    }
    if more:
        answer["NextToken"] = str(end)
    return ActionResult(answer)


def _start_of_page(token: str | None) -> int:
    if token is None:
        return 0
    if not token.isdecimal():
        raise invalid(f"Invalid pagination token {token!r}.")
    return int(token)


def _simulate(response: Any) -> Any:
    """Answer SimulatePrincipalPolicy: there are no policies here that forbid a thing.

    The SDK asks it before it uploads a job's sources.
    """
    from moto.core.responses import ActionResult

    actions = response._get_param("ActionNames") or []
    resources = response._get_param("ResourceArns") or ["*"]
    results = [
        {
            "EvalActionName": action,
            "EvalResourceName": resource,
            "EvalDecision": "allowed",
            "MatchedStatements": [],
            "MissingContextValues": [],
        }
        for action in actions
        for resource in resources
    ]
    return ActionResult({"EvaluationResults": results, "IsTruncated": False})
