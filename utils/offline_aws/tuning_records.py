"""What a tuning job is, and how AWS describes it: its training jobs, counters, results.

`utils.offline_aws.tuning_jobs` moves it on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION
from utils.offline_aws.training_states import arn_of
from utils.offline_aws.tuning_checks import OBJECTIVE_PARAMETER
from utils.offline_aws.tuning_metrics import Captured

ENDED = ("Completed", "Failed", "Stopped")
IMPROVEMENT = 0.01  # botocore's model of BestObjectiveNotImproving: "by 1% or greater"
LONGEST_REASON = 1024  # FailureReason in botocore's model


@dataclass
class Trial:
    """A training job of a tuning job.

    Attributes:
        name: of the training job.
        tuned: its tuned hyperparameters.
        created: when.
        description: what DescribeTrainingJob last said of it.
        captured: what the objective's pattern found in its log.
        stopping: whether the tuning job has asked it to stop.
    """

    name: str
    tuned: dict[str, str]
    created: datetime
    description: dict[str, Any] = field(default_factory=dict)
    captured: Captured = field(default_factory=Captured)
    stopping: bool = False

    @property
    def status(self) -> str:
        """Its status: InProgress until it is known."""
        return self.description.get("TrainingJobStatus", "InProgress")

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED

    @property
    def objective(self) -> float | None:
        """What it reached when it ended; None for one that failed or reached none."""
        if self.status not in ("Completed", "Stopped"):
            return None
        return self.captured.last

    @property
    def objective_status(self) -> str:
        """What botocore's model calls ObjectiveStatus."""
        if not self.over:
            return "Pending"
        return "Failed" if self.objective is None else "Succeeded"

    @property
    def reason(self) -> str | None:
        """Why it failed, or what is wrong with its metric."""
        if self.status == "Failed":
            return self.description.get("FailureReason")
        return self.captured.trouble if self.over else None


class TuningRecord:
    """A tuning job, as far as it can be read.

    It has the attributes and methods by which moto lists and describes its own.
    """

    def __init__(self, parameters: dict[str, Any], clock: Callable[[], float]):
        """Note a tuning job.

        Args:
            parameters: of CreateHyperParameterTuningJob, already checked.
            clock: in seconds.
        """
        self.hyper_parameter_tuning_job_name = parameters["HyperParameterTuningJobName"]
        self.arn = (
            f"arn:aws:sagemaker:{OFFLINE_REGION}:{OFFLINE_ACCOUNT}"
            f":hyper-parameter-tuning-job/{self.name}"
        )
        self.config = with_defaults(parameters["HyperParameterTuningJobConfig"])
        self.definition = dict(parameters["TrainingJobDefinition"])
        self.tags = parameters.get("Tags") or []
        objective = self.config["HyperParameterTuningJobObjective"]
        self.metric = objective["MetricName"]
        self.minimise = objective["Type"] == "Minimize"
        self.trials: list[Trial] = []
        self.ended: list[Trial] = []  # in the order in which they did
        self.hyper_parameter_tuning_job_status = "InProgress"
        self.failure_reason: str | None = None
        self.created = self.modified = now()
        self.end_time: datetime | None = None
        self.clock, self.started = clock, clock()
        self.runtime: float | None = None  # seconds, once it has ended
        self.lock = threading.RLock()

    @property
    def name(self) -> str:
        """Its name."""
        return self.hyper_parameter_tuning_job_name

    @property
    def creation_time(self) -> datetime:
        """When it was created, in UTC without saying so, as moto compares it."""
        return self.created.replace(tzinfo=None)

    @property
    def last_modified_time(self) -> datetime:
        """When its status last changed, likewise."""
        return self.modified.replace(tzinfo=None)

    @property
    def status(self) -> str:
        """Its status."""
        return self.hyper_parameter_tuning_job_status

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED

    @property
    def best(self) -> Trial | None:
        """The training job that completed with the best objective so far.

        One that was stopped is not among them: botocore's model says "completed". Of
        equal ones it is the first that was started.
        """
        done = [
            trial
            for trial in self.trials
            if trial in self.ended
            and trial.status == "Completed"
            and trial.objective is not None
        ]
        choose = min if self.minimise else max
        return choose(done, key=lambda one: one.objective) if done else None

    @property
    def not_improving(self) -> int:
        """How many jobs have ended since one improved the objective by 1% or more."""
        best: float | None = None
        count = 0
        for trial in self.ended:
            reached = trial.objective
            if reached is None:
                continue
            gain = 0.0 if best is None else best - reached
            if not self.minimise:
                gain = -gain
            if best is None or (gain > 0 and gain >= IMPROVEMENT * abs(best)):
                best, count = reached, 0
            else:
                count += 1
        return count

    def describe(self) -> dict[str, Any]:
        """Return what DescribeHyperParameterTuningJob answers."""
        with self.lock:
            definition = dict(self.definition)
            static = definition.get("StaticHyperParameters") or {}
            definition["StaticHyperParameters"] = static | {
                OBJECTIVE_PARAMETER: self.metric
            }
            runtime = self.runtime
            if runtime is None:
                runtime = self.clock() - self.started
            answer = self.summary() | {
                "HyperParameterTuningJobConfig": self.config,
                "TrainingJobDefinition": definition,
                "ConsumedResources": {"RuntimeInSeconds": int(runtime)},
                "TuningJobCompletionDetails": {
                    "NumberOfTrainingJobsObjectiveNotImproving": self.not_improving
                },
            }
            del answer["Strategy"], answer["ResourceLimits"]
            if (best := self.best) is not None:
                answer["BestTrainingJob"] = self.summary_of(best)
            if self.failure_reason:
                answer["FailureReason"] = self.failure_reason
            return answer

    def summary(self) -> dict[str, Any]:
        """Return what ListHyperParameterTuningJobs says of it."""
        with self.lock:
            statuses = [trial.status for trial in self.trials]
            objectives = [trial.objective_status for trial in self.trials]
            answer = {
                "HyperParameterTuningJobName": self.name,
                "HyperParameterTuningJobArn": self.arn,
                "HyperParameterTuningJobStatus": self.status,
                "Strategy": self.config["Strategy"],
                "ResourceLimits": self.config["ResourceLimits"],
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
                "TrainingJobStatusCounters": {
                    "Completed": statuses.count("Completed"),
                    "InProgress": sum(status not in ENDED for status in statuses),
                    "RetryableError": 0,
                    "NonRetryableError": statuses.count("Failed"),
                    "Stopped": statuses.count("Stopped"),
                },
                "ObjectiveStatusCounters": {
                    status: objectives.count(status)
                    for status in ("Succeeded", "Pending", "Failed")
                },
            }
            if self.end_time is not None:
                answer["HyperParameterTuningEndTime"] = self.end_time
            return answer

    def summary_of(self, trial: Trial) -> dict[str, Any]:
        """Return a training job as ListTrainingJobsForHyperParameterTuningJob does."""
        said = trial.description
        answer = {
            "TrainingJobName": trial.name,
            "TrainingJobArn": arn_of(trial.name),
            "TuningJobName": self.name,
            "CreationTime": said.get("CreationTime", trial.created),
            "TrainingJobStatus": trial.status,
            "TunedHyperParameters": dict(trial.tuned),
            "ObjectiveStatus": trial.objective_status,
        }
        for key in ("TrainingStartTime", "TrainingEndTime"):
            if said.get(key):
                answer[key] = said[key]
        if name := self.definition.get("DefinitionName"):
            answer["TrainingJobDefinitionName"] = name
        if trial.reason:
            answer["FailureReason"] = trial.reason[:LONGEST_REASON]
        if trial.objective is not None:
            answer["FinalHyperParameterTuningJobObjectiveMetric"] = {
                "Type": "Minimize" if self.minimise else "Maximize",
                "MetricName": self.metric,
                "Value": trial.objective,
            }
        return answer

    def list_trials(
        self,
        status: str | None = None,
        sort_by: str | None = None,
        order: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return its training jobs as ListTrainingJobsForHyperParameterTuningJob does.

        Args:
            status: only jobs in this one.
            sort_by: Name, CreationTime, Status or FinalObjectiveMetricValue; jobs
                without a value are then not listed (botocore's model of SortBy).
            order: Ascending or Descending.
        """
        keys: dict[str, Callable[[Trial], Any]] = {
            "Name": lambda one: one.name,
            "CreationTime": lambda one: one.created,
            "Status": lambda one: one.status,
            "FinalObjectiveMetricValue": lambda one: one.objective,
        }
        with self.lock:
            chosen = [one for one in self.trials if status in (None, one.status)]
            if sort_by == "FinalObjectiveMetricValue":
                chosen = [one for one in chosen if one.objective is not None]
            chosen.sort(key=keys[sort_by or "Name"], reverse=order == "Descending")
            return [self.summary_of(trial) for trial in chosen]


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with what AWS takes for what was left out."""
    return {"TrainingJobEarlyStoppingType": "Off"} | config


def now() -> datetime:
    """Return the moment, as answers have it."""
    return datetime.now(UTC)
