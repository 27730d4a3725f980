"""Hyperparameter tuning jobs that run: one training job after the other, side by side.

A tuning job moves on in steps: it looks at its training jobs, decides whether it is
over, stops what has no chance and starts what there is room for. What runs the training
jobs is handed in, so that a step can be tried without a process.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from utils.offline_aws.training_errors import internal_error
from utils.offline_aws.tuning_checks import (
    OBJECTIVE_PARAMETER,
    number_of_jobs,
    read_ranges,
)
from utils.offline_aws.tuning_metrics import Capture
from utils.offline_aws.tuning_records import (
    LONGEST_REASON,
    Trial,
    TuningRecord,
    now,
)
from utils.offline_aws.tuning_search import Search, Tried

STEP_INTERVAL = 0.2  # seconds between two steps
# "No training job succeeded after 5 attempts": aws/amazon-sagemaker-examples, 2436.
ATTEMPTS = 5
DAY = 86_400  # seconds
# In the definition of a tuning job but not in CreateTrainingJob, or made anew here.
NOT_PASSED_ON = (
    "DefinitionName",
    "TuningObjective",
    "HyperParameterRanges",
    "StaticHyperParameters",
    "HyperParameterTuningResourceConfig",
)
log = logging.getLogger(__name__)


class Runner(Protocol):
    """What runs training jobs."""

    def create(self, request: dict[str, Any], tuning_job_arn: str) -> None:
        """Start a training job; takes the parameters of CreateTrainingJob."""

    def describe(self, name: str) -> dict[str, Any]:
        """Return what DescribeTrainingJob answers."""

    def stop(self, name: str) -> None:
        """Ask a training job to stop."""

    def listen(self, name: str) -> Callable[[], list[str]]:
        """Return what gives the lines that it has logged since it was last called."""


class TuningJob(TuningRecord):
    """A tuning job and the thread that moves it on."""

    def __init__(
        self,
        parameters: dict[str, Any],
        runner: Runner,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepare a tuning job.

        Args:
            parameters: of CreateHyperParameterTuningJob, already checked.
            runner: of its training jobs.
            clock: in seconds.
        """
        super().__init__(parameters, clock)
        metrics = self.definition["AlgorithmSpecification"]["MetricDefinitions"]
        patterns = {metric["Name"]: metric["Regex"] for metric in metrics}
        self._pattern = patterns[self.metric]
        ranges = read_ranges(self.config)
        seed = self.config.get("RandomSeed")
        self._search = Search(self.config["Strategy"], ranges, self.minimise, seed)
        self._most = number_of_jobs(self.config, ranges)
        self._runner = runner
        # of the training jobs that have not ended
        self._listening: dict[str, tuple[Capture, Callable[[], list[str]]]] = {}
        self._closing: tuple[str, str | None] | None = None
        self._woken = threading.Event()
        self._left = False
        self._thread = threading.Thread(
            target=self._run, name=f"tuning job {self.name}", daemon=True
        )

    def start(self) -> None:
        """Begin to move on by itself."""
        self._thread.start()

    def _run(self) -> None:
        prepared = False
        while not self._left and not self.over:
            try:
                self.step()
                if not prepared:  # while the first jobs run, and nobody waits for it
                    self._search.prepare()
                    prepared = True
            except Exception as error:  # else it would be in progress for ever
                log.exception("The tuning job %s failed.", self.name)
                self._break_off(str(internal_error(error)))
            self._woken.wait(STEP_INTERVAL)
            self._woken.clear()

    def step(self) -> None:
        """Look at the training jobs, and do what is due."""
        with self.lock:
            if self.over:
                return
            for trial in self.trials:
                if not trial.over:
                    self._look_at(trial)
            if self._closing is None and (verdict := self._verdict()):
                self._close(*verdict)
            if self._closing is None:
                self._stop_the_hopeless()
                self._start_trials()
            self._finish_if_idle()

    def _look_at(self, trial: Trial) -> None:
        """Learn how a training job is; when it has ended, what it reached."""
        trial.description = self._runner.describe(trial.name)
        if trial.over or self._stops_early:
            capture, new_lines = self._listening[trial.name]
            capture.read(new_lines())
            trial.captured = capture.result()
        if trial.over:
            del self._listening[trial.name]
            self.ended.append(trial)
            self.modified = now()

    def _verdict(self) -> tuple[str, str | None] | None:
        """Return the status in which the tuning job is to end, and why; else None."""
        if reason := self._hopeless():
            return "Failed", reason
        limit = self.config["ResourceLimits"].get("MaxRuntimeInSeconds")
        if limit is not None and self.clock() - self.started >= limit:
            return "Completed", None  # a completion criterion as the others
        criteria = self.config.get("TuningJobCompletionCriteria") or {}
        target, best = criteria.get("TargetObjectiveMetricValue"), self.best
        if target is not None and best is not None:
            reached = best.objective
            if reached <= target if self.minimise else reached >= target:
                return "Completed", None
        patience = (criteria.get("BestObjectiveNotImproving") or {}).get(
            "MaxNumberOfTrainingJobsNotImproving"
        )
        if patience is not None and self.not_improving >= patience:
            return "Completed", None
        if len(self.trials) >= self._most and all(one.over for one in self.trials):
            return "Completed", None
        return None

    def _hopeless(self) -> str | None:
        """Say why nothing can come of it: the first jobs all ended without a result.

        Text for jobs that failed: aws/amazon-sagemaker-examples, issue 2436. The other
        is ours.
        """
        if len(self.ended) < min(ATTEMPTS, self._most):
            return None
        if any(trial.objective is not None for trial in self.ended):
            return None
        count = len(self.ended)
        if all(trial.status == "Failed" for trial in self.ended):
            text = (
                f"No training job succeeded after {count} attempts. Please take a look "
                "at the training job failures to get more details."
            )
        else:
            text = (
                f"No training job of {count} has a value of the objective metric "
                f"{self.metric!r}. Please ensure that the script writes it to its "
                "output as the regular expression expects it."
            )
        why = next((one.reason for one in self.ended if one.reason), None)
        return f"{text} {self.ended[0].name}: {why}" if why else text

    @property
    def _stops_early(self) -> bool:
        return self.config["TrainingJobEarlyStoppingType"] == "Auto"

    def _stop_the_hopeless(self) -> None:
        """Stop what is worse than the jobs before it, by the median rule.

        "Compute the running average of the objective metric for all previous training
        jobs up to the same epoch, and then compute the median of all of the running
        averages. If the value of the objective metric for the current training job is
        worse … SageMaker stops the current training job" ("Stop Training Jobs Early"
        in SageMaker's guide). Previous are those that have completed; an epoch is a
        value in the log.
        """
        if not self._stops_early:
            return
        before = [
            trial.captured.values
            for trial in self.ended
            if trial.status == "Completed" and trial.captured.values
        ]
        for trial in self.trials:
            values = trial.captured.values
            if trial.over or trial.stopping or not before:
                continue
            for epoch, value in enumerate(values, 1):
                middle = statistics.median(
                    statistics.fmean(others[:epoch]) for others in before
                )
                if value > middle if self.minimise else value < middle:
                    self._stop(trial)
                    break

    def _start_trials(self) -> None:
        """Start training jobs while there is room."""
        at_once = self.config["ResourceLimits"]["MaxParallelTrainingJobs"]
        while (
            len(self.trials) < self._most
            and sum(not trial.over for trial in self.trials) < at_once
        ):
            tried = [Tried(one.tuned, one.objective) for one in self.trials]
            tuned = self._search.next(tried)
            if tuned is None:  # every combination was tried
                self._most = len(self.trials)
                return
            number = len(self.trials) + 1
            name = f"{self.name}-{number:03d}-{secrets.token_hex(4)}"
            trial = Trial(name, tuned, now())
            try:
                self._runner.create(self.request(trial), self.arn)
            except Exception as error:  # of the runner: AWS's refusal of the job
                self._close("Failed", f"{name} could not be started: {error}")
                return
            capture = Capture(self._pattern)
            self._listening[name] = capture, self._runner.listen(name)
            self.trials.append(trial)
            self.modified = now()

    def request(self, trial: Trial) -> dict[str, Any]:
        """Return the parameters of CreateTrainingJob for a training job.

        Each job has a checkpoint folder of its own: from a shared one the second job
        would resume the first.
        """
        given = self.definition
        request = {k: v for k, v in given.items() if k not in NOT_PASSED_ON and v}
        static = given.get("StaticHyperParameters") or {}
        stopping = {"MaxRuntimeInSeconds": DAY} | (given.get("StoppingCondition") or {})
        request |= {
            "TrainingJobName": trial.name,
            "HyperParameters": static
            | trial.tuned
            | {OBJECTIVE_PARAMETER: self.metric},
            "StoppingCondition": stopping,
        }
        if not request.get("ResourceConfig"):
            request["ResourceConfig"] = _resources(given)
        if checkpoints := given.get("CheckpointConfig"):
            folder = f"{checkpoints['S3Uri'].rstrip('/')}/{trial.name}"
            request["CheckpointConfig"] = checkpoints | {"S3Uri": folder}
        if self.tags:
            request["Tags"] = list(self.tags)
        return request

    def _stop(self, trial: Trial) -> None:
        if not trial.over and not trial.stopping:
            trial.stopping = True
            self._runner.stop(trial.name)

    def _close(self, status: str, reason: str | None = None) -> None:
        """Begin to end: nothing new is started, and what runs is stopped."""
        self._closing = status, reason
        for trial in self.trials:
            self._stop(trial)

    def _break_off(self, reason: str) -> None:
        """End at once, whatever the training jobs do."""
        with self.lock:
            if self.over:
                return
            for trial in self.trials:
                with contextlib.suppress(Exception):
                    self._stop(trial)
            self._finish("Failed", reason)

    def _finish_if_idle(self) -> None:
        """End, once the last training job has."""
        if self._closing is not None and all(trial.over for trial in self.trials):
            self._finish(*self._closing)

    def _finish(self, status: str, reason: str | None) -> None:
        self.runtime = self.clock() - self.started
        self.failure_reason = reason and reason[:LONGEST_REASON]
        self.end_time = self.modified = now()
        self.hyper_parameter_tuning_job_status = status

    def stop(self) -> None:
        """Stop it and its training jobs; it is Stopped when they are."""
        with self.lock:
            if self.over or self.status == "Stopping":
                return
            self.hyper_parameter_tuning_job_status = "Stopping"
            self.modified = now()
            self._close("Stopped")
        self._woken.set()

    def leave(self) -> None:
        """Move on no more: the offline AWS ends, and its training jobs with it."""
        self._left = True
        self._woken.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


def _resources(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a ResourceConfig from a HyperParameterTuningResourceConfig."""
    given = definition.get("HyperParameterTuningResourceConfig") or {}
    first = (given.get("InstanceConfigs") or [{}])[0]
    names = ("InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId")
    return {name: v for name in names if (v := given.get(name) or first.get(name))}
