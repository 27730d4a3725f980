"""What came of a hyperparameter tuning job: a table of its jobs, and their curves.

It reads what AWS tells and what the entry script wrote into its log, so that it works
for jobs that run, were stopped or failed, here and on the real AWS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from utils.course import CourseError

if TYPE_CHECKING:
    import pandas

    from utils.deployment.aws import Aws

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
# What `entry_checkpoints.py` writes after each measure on the held-out rows.
HELD_OUT = re.compile(r"\bstep=(\d+) held_out_loss=([0-9.]+)")
OURS = ("job", "objective", "status", "seconds", "note")
MOST_LISTED = 100  # in a page of ListTrainingJobsForHyperParameterTuningJob


class SweepError(CourseError):
    """A tuning job whose results cannot be read; the message says why."""


def results(aws: Aws, tuning_job: str) -> pandas.DataFrame:
    """Return a table with a row for each training job of a tuning job.

    First used in lesson 08, section 6.

    Args:
        aws: the account.
        tuning_job: its name.

    Returns:
        Columns: `job`, the name; each tuned hyperparameter, numbers as numbers and
        texts without the quotes of JSON; `objective`, the last value of the objective
        metric, missing for a job that failed or wrote none; `status`; `seconds`, which
        are billed, missing until the job has ended; `note`, why it failed or what is
        wrong with its metric, else empty. The rows are in the order in which the jobs
        were started.

    Raises:
        SweepError: if there is no such tuning job, or a hyperparameter has the name of
            one of these columns.
    """
    import pandas

    client = aws.session.client("sagemaker")
    rows = []
    for job in _jobs(client, tuning_job):
        tuned = {name: _value(t) for name, t in job["TunedHyperParameters"].items()}
        if taken := sorted(set(tuned) & set(OURS)):
            raise SweepError(
                f"The hyperparameter {taken[0]!r} has the name of a column of this "
                f"table ({', '.join(OURS)}): tune it under another name."
            )
        said = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
        objective = job.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
        row = {"job": job["TrainingJobName"], **tuned}
        row |= {
            "objective": objective.get("Value", float("nan")),
            "status": job["TrainingJobStatus"],
            "seconds": said.get("BillableTimeInSeconds", float("nan")),
            "note": job.get("FailureReason", ""),
        }
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row if name not in OURS)
    columns = ["job", *names, "objective", "status", "seconds", "note"]
    return pandas.DataFrame(rows, columns=columns)


def _jobs(client: Any, tuning_job: str) -> list[dict[str, Any]]:
    """Return all training jobs of a tuning job, the first one first."""
    from botocore.exceptions import ClientError

    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
    try:
        return [
            job
            for page in pages.paginate(
                HyperParameterTuningJobName=tuning_job,
                SortBy="Name",  # which holds its number
                PaginationConfig={"PageSize": MOST_LISTED},
            )
            for job in page["TrainingJobSummaries"]
        ]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFound":
            raise
        raise SweepError(
            f"There is no tuning job {tuning_job!r} in this account: tuner.tune(…) "
            "creates it, and tuner.latest_tuning_job names it."
        ) from error


def _value(text: str) -> Any:
    """Return a hyperparameter's value: a number, or a text out of its quotes.

    `hyperparameters` of utils/jobs/source.py puts some texts into quotes twice.
    """
    value = _decoded(text)
    if isinstance(value, str):
        inner = _decoded(value)
        return inner if isinstance(inner, str) else value
    return value if isinstance(value, int | float) else text


def _decoded(text: str) -> Any:
    """Return what a text is as JSON; itself if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def held_out_curves(
    aws: Aws, jobs: str | Iterable[str]
) -> dict[str, list[tuple[int, float]]]:
    """Return the loss on the held-out rows of each job, as its log has it.

    First used in lesson 08, section 6.

    Args:
        aws: the account.
        jobs: names of training jobs, such as `results(…).job`, or one name.

    Returns:
        For each name pairs of step and loss, in nats a token, in the order of the log;
        none for a job that measured nothing. A job that was interrupted and went on
        measures a step again: the last measure stands.
    """
    client = aws.session.client("logs")
    names = [jobs] if isinstance(jobs, str) else list(jobs)
    return {name: _curve(client, name) for name in names}


def _curve(client: Any, job: str) -> list[tuple[int, float]]:
    from botocore.exceptions import ClientError

    pages = client.get_paginator("filter_log_events")
    losses: dict[int, float] = {}
    try:
        for page in pages.paginate(
            logGroupName=LOG_GROUP, logStreamNamePrefix=f"{job}/"
        ):
            for event in page["events"]:
                for step, loss in HELD_OUT.findall(event["message"]):
                    losses[int(step)] = float(loss)
    except ClientError as error:  # no job has logged anything yet
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise
    return sorted(losses.items())
