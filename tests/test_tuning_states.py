"""A tuning job's states, step by step, with training jobs that only pretend to run."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from support.tuning import numbers, request
from utils.offline_aws.tuning_jobs import TuningJob

ROLE, BUCKET = "arn:aws:iam::123456789012:role/course", "bucket"
STATES = ("InProgress", "Completed", "Failed", "Stopped", "Stopping")


class Pretended:
    """Training jobs that do what a test says; stopping one takes a step."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.status: dict[str, str] = {}
        self.logs: dict[str, list[str]] = {}
        self.stopped: list[str] = []
        self.refuses: str | None = None

    def create(self, request: dict[str, Any], tuning_job_arn: str) -> None:
        if self.refuses:
            raise RuntimeError(self.refuses)
        name = request["TrainingJobName"]
        self.requests.append(request)
        self.status[name], self.logs[name] = "InProgress", []

    def describe(self, name: str) -> dict[str, Any]:
        said = {"TrainingJobStatus": self.status[name]}
        if self.status[name] == "Failed":
            said["FailureReason"] = "AlgorithmError: it broke, exit code: 1"
        if self.status[name] == "Stopping":
            self.status[name] = "Stopped"
        return said

    def stop(self, name: str) -> None:
        self.stopped.append(name)
        if self.status[name] == "InProgress":
            self.status[name] = "Stopping"

    def listen(self, name: str) -> Callable[[], list[str]]:
        read = [0]

        def new_lines() -> list[str]:
            new = self.logs[name][read[0] :]
            read[0] += len(new)
            return new

        return new_lines

    @property
    def names(self) -> list[str]:
        return [one["TrainingJobName"] for one in self.requests]

    @property
    def running(self) -> list[str]:
        return [name for name in self.names if self.status[name] == "InProgress"]

    def log(self, name: str, *losses: Any) -> None:
        self.logs[name] += [f"loss={loss}" for loss in losses]

    def end(self, name: str, *losses: Any, status: str = "Completed") -> None:
        self.log(name, *losses)
        self.status[name] = status


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def start(**changed: Any) -> tuple[TuningJob, Pretended, Clock]:
    """Return a tuning job after its first step."""
    runner, clock = Pretended(), Clock()
    job = TuningJob(request(ROLE, BUCKET, **changed), runner, clock)
    job.step()
    return job, runner, clock


def settle(job: TuningJob, steps: int = 5) -> None:
    """Let a few steps pass."""
    for _ in range(steps):
        job.step()


def test_there_are_never_more_jobs_at_a_time_or_in_all_than_allowed() -> None:
    job, runner, _ = start(jobs=7, at_once=3)
    rounds = 0
    while not job.over:
        assert len(runner.running) <= 3
        for name in runner.running[: 1 + rounds % 2]:
            runner.end(name, 1.0)
        job.step()
        rounds += 1
        assert rounds < 20
    assert (len(runner.names), job.status) == (7, "Completed")
    numbers_of = [name.removeprefix(f"{job.name}-")[:3] for name in runner.names]
    assert numbers_of == [f"{number:03d}" for number in range(1, 8)]


def test_a_request_holds_what_was_defined_and_no_more() -> None:
    definition = {
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints/"},
        "Environment": {"MODE": "fast"},
        "EnableNetworkIsolation": False,
    }
    job, runner, _ = start(
        static={"epochs": "3"},
        definition=definition,
        top={"Tags": [{"Key": "course", "Value": "8"}]},
    )
    first, second = runner.requests
    assert first["HyperParameters"] == {
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": "s3://bucket/tuned/sourcedir.tar.gz",
        "epochs": "3",
        "point": first["HyperParameters"]["point"],
        "_tuning_objective_metric": "held-out:loss",
    }
    assert first["HyperParameters"]["point"] != second["HyperParameters"]["point"]
    assert first["Environment"] == {"MODE": "fast"}
    assert first["Tags"] == [{"Key": "course", "Value": "8"}]
    # A shared folder would have the second job resume the first.
    places = [one["CheckpointConfig"]["S3Uri"] for one in runner.requests]
    assert places == [f"s3://bucket/checkpoints/{name}" for name in runner.names]
    from utils.offline_aws.operations import service_model
    from utils.offline_aws.parameters import check_parameters

    operation = service_model("sagemaker").operation_model("CreateTrainingJob")
    check_parameters(operation, first)


@pytest.mark.parametrize(
    ("goal", "ends", "best"),
    [
        ("Minimize", [(3.0,), (1.0,), (2.0,)], 1),
        ("Maximize", [(3.0,), (1.0,), (2.0,)], 0),
        ("Minimize", [(9.0, 3.0), (1.0, 4.0), (2.5,)], 2),  # the last value counts
        ("Minimize", [(3.0,), ("nan",), (0.1, "nan")], 0),  # nan never wins
        ("Maximize", [(3.0,), ("inf",), (9.0, "nan")], 0),
        ("Minimize", [(3.0,), ("-inf",), ("nan",)], 0),
        ("Minimize", [(-1.0,), (-2.0,), (0.0,)], 1),
        ("Minimize", [("2e-05",), ("1e-04",), (1.0,)], 0),
        ("Minimize", [(), (2.0,), ()], 1),
    ],
)
def test_the_best_job_is_the_one_whose_last_value_is(goal, ends, best) -> None:
    job, runner, _ = start(at_once=3, goal=goal)
    for name, losses in zip(runner.names, ends, strict=True):
        runner.end(name, *losses)
    settle(job)
    said = job.describe()
    assert said["BestTrainingJob"]["TrainingJobName"] == runner.names[best]
    assert said["HyperParameterTuningJobStatus"] == "Completed"
    value = said["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]
    assert value["Value"] == float(ends[best][-1])
    assert (value["Type"], value["MetricName"]) == (goal, "held-out:loss")


def test_of_equal_jobs_the_first_that_was_started_is_the_best() -> None:
    job, runner, _ = start(at_once=3)
    for name in reversed(runner.names):
        runner.end(name, 1.0)
        job.step()
    settle(job)
    assert job.describe()["BestTrainingJob"]["TrainingJobName"] == runner.names[0]


def test_a_job_that_stopped_or_failed_is_not_the_best() -> None:
    job, runner, _ = start(at_once=3)
    first, second, third = runner.names
    runner.end(first, 0.1, status="Stopped")
    runner.end(second, 0.2, status="Failed")
    runner.end(third, 3.0)
    settle(job)
    assert job.best.name == third
    reached = {one.name: one.objective for one in job.trials}
    assert reached == {first: 0.1, second: None, third: 3.0}
    counters = job.describe()
    assert counters["TrainingJobStatusCounters"] == {
        "Completed": 1,
        "InProgress": 0,
        "RetryableError": 0,
        "NonRetryableError": 1,
        "Stopped": 1,
    }
    assert counters["ObjectiveStatusCounters"] == {
        "Succeeded": 2,
        "Pending": 0,
        "Failed": 1,
    }


@pytest.mark.parametrize("failing", range(4))
def test_failed_jobs_do_not_end_the_sweep_while_one_succeeds(failing) -> None:
    job, runner, _ = start(jobs=8, at_once=1)
    for number in itertools.count():
        job.step()
        if job.over:
            break
        [name] = runner.running
        if number in range(failing):
            runner.end(name, status="Failed")
        else:
            runner.end(name, 1.0)
    assert (job.status, len(runner.names)) == ("Completed", 8)
    assert job.failure_reason is None


@pytest.mark.parametrize(
    ("jobs", "after", "status", "losses", "said"),
    [
        (8, 5, "Failed", (), "No training job succeeded after 5 attempts"),
        (3, 3, "Failed", (), "No training job succeeded after 3 attempts"),
        (8, 5, "Failed", (), "exit code: 1"),  # the first job's own reason
        (8, 5, "Completed", (), "matches no line of the log"),
        (8, 5, "Completed", ("nan",), "no finite number"),
        (2, 2, "Completed", (), "No training job of 2 has a value of the objective"),
    ],
)
def test_a_sweep_without_any_result_fails_and_says_why(
    jobs, after, status, losses, said
) -> None:
    job, runner, _ = start(jobs=jobs, at_once=1)
    while not job.over:
        for name in runner.running:
            runner.end(name, *losses, status=status)
        job.step()
    assert (job.status, len(runner.names)) == ("Failed", after)
    assert said in job.describe()["FailureReason"]
    assert "BestTrainingJob" not in job.describe()


def test_a_job_that_cannot_be_started_ends_the_sweep_and_what_runs() -> None:
    job, runner, _ = start(jobs=5, at_once=2)
    runner.end(runner.names[0], 1.0)
    runner.refuses = "Could not assume role"
    settle(job)
    assert job.status == "Failed"
    assert "Could not assume role" in job.failure_reason
    assert runner.stopped == [runner.names[1]]


def test_a_stop_ends_its_jobs_first() -> None:
    job, runner, _ = start(jobs=9, at_once=2)
    runner.end(runner.names[0], 1.0)
    job.step()
    job.stop()
    assert job.status == "Stopping"
    assert runner.stopped == runner.names[1:]
    job.step()
    assert job.status == "Stopping"  # its jobs are still at it
    settle(job)
    assert (job.status, len(runner.names)) == ("Stopped", 3)
    assert job.describe()["BestTrainingJob"]["TrainingJobName"] == runner.names[0]
    assert [one.status for one in job.trials] == ["Completed", "Stopped", "Stopped"]


def test_the_runtime_ends_it() -> None:
    limits = {
        "MaxNumberOfTrainingJobs": 9,
        "MaxParallelTrainingJobs": 2,
        "MaxRuntimeInSeconds": 120,
    }
    job, runner, clock = start(config={"ResourceLimits": limits})
    clock.now = 119
    settle(job)
    assert (job.status, runner.stopped) == ("InProgress", [])
    clock.now = 121
    settle(job)
    assert (job.status, runner.stopped) == ("Completed", runner.names)
    assert job.describe()["ConsumedResources"] == {"RuntimeInSeconds": 121}


@pytest.mark.parametrize(
    ("goal", "target", "reached", "ends"),
    [
        ("Minimize", 0.5, 0.4, True),
        ("Minimize", 0.5, 0.6, False),
        ("Maximize", 0.5, 0.6, True),
        ("Maximize", 0.5, 0.4, False),
    ],
)
def test_a_target_ends_it(goal, target, reached, ends) -> None:
    criteria = {"TargetObjectiveMetricValue": target}
    job, runner, _ = start(
        goal=goal, jobs=9, config={"TuningJobCompletionCriteria": criteria}
    )
    runner.end(runner.names[0], reached)
    settle(job)
    assert (job.status == "Completed") is ends
    assert (runner.stopped == [runner.names[1]]) is ends


@pytest.mark.parametrize("goal", ["Minimize", "Maximize"])
def test_it_ends_when_nothing_gets_better_by_a_hundredth(goal) -> None:
    patience = {"MaxNumberOfTrainingJobsNotImproving": 3}
    criteria = {"BestObjectiveNotImproving": patience}
    job, runner, _ = start(
        goal=goal,
        jobs=20,
        at_once=1,
        config={"TuningJobCompletionCriteria": criteria},
    )
    counts = []
    for loss in (5.0, 2.0, 1.99, 1.0, 0.995, 3.0, 0.992):
        runner.end(runner.running[0], loss if goal == "Minimize" else -loss)
        job.step()
        details = job.describe()["TuningJobCompletionDetails"]
        counts.append(details["NumberOfTrainingJobsObjectiveNotImproving"])
    assert counts == [0, 0, 1, 0, 1, 2, 3]
    settle(job)
    assert (job.status, len(runner.names)) == ("Completed", 7)


LOWER = {"first": (4.0, 2.0, 1.0), "second": (6.0, 4.0, 3.0)}  # medians 5, 4, 3.33


@pytest.mark.parametrize(
    ("goal", "third", "stops"),
    [
        ("Minimize", (4.9, 3.9, 3.0), False),
        ("Minimize", (5.1,), True),
        ("Minimize", (4.9, 4.1), True),
        ("Minimize", (4.9, 3.9, 3.4), True),
        ("Minimize", (5.0, 4.0), False),  # as good as the median
        ("Maximize", (5.1, 4.1), False),
        ("Maximize", (4.9,), True),
        ("Minimize", (), False),
    ],
)
def test_early_stopping_follows_the_median_rule(goal, third, stops) -> None:
    config = {"TrainingJobEarlyStoppingType": "Auto"}
    job, runner, _ = start(goal=goal, jobs=3, at_once=1, config=config)
    for losses in LOWER.values():
        runner.end(runner.running[0], *losses)
        job.step()
    [name] = runner.running
    runner.log(name, *third)
    job.step()
    assert (runner.stopped == [name]) is stops
    if not stops:
        runner.end(name)
    settle(job)
    assert job.status == "Completed"
    assert job.trials[-1].status == ("Stopped" if stops else "Completed")
    if third:  # what it had reached is known all the same
        assert job.trials[-1].objective == third[-1]


def test_a_job_that_was_stopped_is_no_measure_for_others() -> None:
    config = {"TrainingJobEarlyStoppingType": "Auto"}
    job, runner, _ = start(jobs=3, at_once=1, config=config)
    runner.end(runner.running[0], 4.0)
    job.step()
    runner.end(runner.running[0], 1.0, status="Stopped")
    job.step()
    runner.log(runner.running[0], 3.0)  # worse than 1 and than the median of both
    job.step()
    assert runner.stopped == []


def test_nothing_is_stopped_early_without_being_asked_or_before_a_job_completed():
    job, runner, _ = start(jobs=3, at_once=1)
    runner.end(runner.running[0], 1.0)
    job.step()
    runner.log(runner.running[0], 99.0)
    settle(job)
    assert runner.stopped == []
    config = {"TrainingJobEarlyStoppingType": "Auto"}
    job, runner, _ = start(jobs=3, at_once=2, config=config)
    runner.log(runner.names[0], 1.0)
    runner.log(runner.names[1], 99.0)
    settle(job)
    assert runner.stopped == []


def test_whatever_happens_the_counters_add_up_and_it_ends() -> None:
    for seed in range(40):
        draw = random.Random(seed)
        most, at_once = draw.randint(1, 9), draw.randint(1, 4)
        job, runner, _ = start(
            jobs=most,
            at_once=min(at_once, most),
            goal=draw.choice(["Minimize", "Maximize"]),
            config={"TrainingJobEarlyStoppingType": draw.choice(["Off", "Auto"])},
        )
        for _ in range(60):
            for name in runner.running:
                if draw.random() < 0.5:
                    runner.log(name, draw.choice([draw.random(), "nan", -3]))
                if draw.random() < 0.3:
                    runner.end(name, status=draw.choice(STATES[1:4]))
            if draw.random() < 0.02:
                job.stop()
            job.step()
            said = job.describe()
            for counters in ("TrainingJobStatusCounters", "ObjectiveStatusCounters"):
                assert sum(said[counters].values()) == len(runner.names)
            json.dumps(said, default=str)
        assert job.over, (seed, job.status)
        assert not runner.running
        assert len(runner.names) <= most
        if job.status == "Completed":
            assert len(runner.names) == most


@pytest.mark.parametrize("broken", ["a look", "the search"])
def test_what_does_not_end_because_of_an_error_of_ours_is_failed(broken) -> None:
    runner = Pretended()
    job = TuningJob(request(ROLE, BUCKET), runner)
    if broken == "a look":
        runner.describe = None  # calling it raises a TypeError
    else:
        job._search.prepare = None
    job.start()
    job._thread.join(10)
    assert job.status == "Failed"
    assert job.failure_reason.startswith(
        "InternalServerError: We encountered an internal error. Please try again."
    )
    assert "TypeError" in job.failure_reason
    assert len(runner.names) == 2 and runner.stopped == runner.names


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, [0, 1, 2]),
        ({"order": "Descending"}, [2, 1, 0]),
        ({"sort_by": "CreationTime", "order": "Descending"}, [2, 1, 0]),
        ({"sort_by": "FinalObjectiveMetricValue"}, [2, 0]),
        ({"sort_by": "FinalObjectiveMetricValue", "order": "Descending"}, [0, 2]),
        ({"status": "Failed"}, [1]),
        ({"status": "InProgress"}, []),
        ({"sort_by": "Status"}, [0, 2, 1]),
    ],
)
def test_its_jobs_are_listed_as_asked(more, names) -> None:
    job, runner, _ = start(at_once=3)
    for name, loss, status in zip(
        runner.names, (5, 1, 2), ("Completed", "Failed", "Completed"), strict=True
    ):
        runner.end(name, loss, status=status)
    settle(job)
    found = [
        runner.names.index(one["TrainingJobName"]) for one in job.list_trials(**more)
    ]
    assert found == names


def test_a_grid_needs_no_number_of_jobs() -> None:
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": "point", "Values": ["1", "2", "3"]},
            {"Name": "kind", "Values": ["a", "b"]},
        ]
    }
    job, runner, _ = start(strategy="Grid", ranges=ranges, jobs=None, at_once=10)
    settle(job)
    given = [one["HyperParameters"] for one in runner.requests]
    assert [(one["point"], one["kind"]) for one in given] == list(
        itertools.product("123", "ab")
    )


def test_a_finite_search_without_a_number_of_jobs_tries_everything() -> None:
    criteria = {"TargetObjectiveMetricValue": -1.0}
    job, runner, _ = start(
        ranges={"IntegerParameterRanges": [numbers("point", 1, 4)]},
        jobs=None,
        config={"TuningJobCompletionCriteria": criteria},
    )
    for _ in range(10):
        for name in runner.running:
            runner.end(name, 1.0)
        job.step()
    assert {one["HyperParameters"]["point"] for one in runner.requests} == set("1234")
    assert job.status == "Completed"
