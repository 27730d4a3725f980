"""What jobs cost: by the seconds that AWS bills, warm pools included."""

from __future__ import annotations

import datetime

import pytest
from botocore.exceptions import ClientError

from support.job_requests import machine, make
from utils.deployment import running

NOW = datetime.datetime.now(datetime.UTC)


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({}, [("training", 0.0)]),  # its machines are not there yet
        ({"TrainingStartTime": ago(7200)}, [("training", 2.0)]),
        (  # a spot job: fewer seconds than it ran
            {
                "TrainingJobStatus": "Completed",
                "TrainingStartTime": ago(7200),
                "TrainingEndTime": ago(3600),
                "BillableTimeInSeconds": 900,
            },
            [("training", 0.25)],
        ),
        (  # failed so early that AWS says no billable seconds
            {
                "TrainingJobStatus": "Failed",
                "TrainingStartTime": ago(7200),
                "TrainingEndTime": ago(3600),
            },
            [("training", 1.0)],
        ),
        ({"TrainingJobStatus": "Failed"}, [("training", 0.0)]),
        (
            {
                "TrainingJobStatus": "Completed",
                "TrainingStartTime": ago(7200),
                "TrainingEndTime": ago(3600),
                "BillableTimeInSeconds": 3600,
                "WarmPoolStatus": {"Status": "Available"},
            },
            [("training", 1.0), ("warm pool", 1.0)],
        ),
        (
            {
                "TrainingJobStatus": "Completed",
                "BillableTimeInSeconds": 3600,
                "WarmPoolStatus": {
                    "Status": "Reused",
                    "ResourceRetainedBillableTimeInSeconds": 1800,
                },
            },
            [("training", 1.0), ("warm pool", 0.5)],
        ),
    ],
)
def test_hours_of_a_training_job(job, expected) -> None:
    found = running.uses(
        running.TRAINING,
        {"TrainingJobStatus": "InProgress", "ResourceConfig": machine(2), **job},
        NOW.timestamp(),
    )
    assert [(use.what, round(use.hours, 2)) for use in found] == expected
    assert all(use.machines == (("ml.g5.2xlarge", 2),) for use in found)


@pytest.mark.parametrize(
    ("kind", "job", "expected"),
    [
        (running.TRAINING, {"ResourceConfig": machine(4)}, (("ml.g5.2xlarge", 4),)),
        (
            running.TRAINING,
            {
                "ResourceConfig": {
                    "InstanceGroups": [
                        {"InstanceType": "ml.a", "InstanceCount": 2},
                        {"InstanceType": "ml.b", "InstanceCount": 1},
                    ]
                }
            },
            (("ml.a", 2), ("ml.b", 1)),
        ),
        (
            running.TRAINING,
            {
                "ResourceConfig": {
                    "SelectedInstanceType": "ml.c",
                    "InstancePreferences": [],
                }
            },
            (("ml.c", 1),),
        ),
        (running.TRAINING, {"ServerlessJobConfig": {}}, None),
        (
            running.PROCESSING,
            {"ProcessingResources": {"ClusterConfig": machine()}},
            (("ml.g5.2xlarge", 1),),
        ),
        (running.TRANSFORM, {"TransformResources": machine()}, (("ml.g5.2xlarge", 1),)),
        (running.TUNING, {}, None),
    ],
)
def test_machines_of_a_job(kind, job, expected) -> None:
    assert running.machines(kind, job) == expected


def test_the_bill_counts_machines_and_stays_after_the_deletion(
    aws, service, watch, said
) -> None:
    name = watch.name("a")
    make(aws, "TrainingJob", name, ResourceConfig=machine(4))
    assert said[-1] == (
        "On AWS this bills from its start to its end: 4 × ml.g5.2xlarge, $6.0600 an "
        "hour."
    )
    service.end("TrainingJob", name, BillableTimeInSeconds=1800)
    before = watch.bill()
    assert before.lines == (("4 × ml.g5.2xlarge, training", 0.5, 6.06),)
    assert before.total == pytest.approx(3.03)
    watch.teardown()
    assert watch.bill().lines == before.lines
    shown = watch.bill()._repr_markdown_()
    assert "ml.g5.2xlarge, training: $1.515 per hour in us-east-1, read" in shown


def test_a_warm_pool_is_counted_given_back_and_found(aws, service, watch) -> None:
    name = watch.name("a")
    config = machine(KeepAlivePeriodInSeconds=1800)
    make(aws, "TrainingJob", name, ResourceConfig=config)
    service.end("TrainingJob", name, BillableTimeInSeconds=60)
    hour = datetime.timedelta(hours=1)
    service.things["TrainingJob", name]["TrainingEndTime"] -= hour
    assert f"warm pool {name}" in watch.remaining()
    warm = {what: hours for what, hours, _ in watch.bill().lines}
    assert warm["1 × ml.g5.2xlarge, warm pool"] == pytest.approx(1, abs=0.01)
    watch.teardown()
    calls = service.calls
    assert calls.index("UpdateTrainingJob") < calls.index("DeleteTrainingJob")
    warm = {what: hours for what, hours, _ in watch.bill().lines}
    assert warm["1 × ml.g5.2xlarge, warm pool"] == pytest.approx(1, abs=0.01)


def test_a_job_that_aws_refused_costs_nothing(aws, service, watch) -> None:
    service.refused["CreateTrainingJob"] = ("ResourceLimitExceeded", "0 of them")
    with pytest.raises(ClientError):
        make(aws, "TrainingJob", watch.name("a"))
    assert watch.bill().lines == ()
    watch.teardown()
    assert watch.bill().lines == ()


def test_where_aws_does_not_say_the_clock_counts(aws, service, watch) -> None:
    make(aws, "TrainingJob", watch.name("a"))
    service.refused["DescribeTrainingJob"] = ("AccessDeniedException", "no right")
    watch.entries[0].created -= 3600
    watch.entries[0].machines = [
        (since - 3600, machines) for since, machines in watch.entries[0].machines
    ]
    ((what, hours, usd),) = watch.bill().lines
    assert (what, usd) == ("1 × ml.g5.2xlarge, training", 1.515)
    assert hours == pytest.approx(1, abs=0.01)


def test_the_table_shows_jobs(aws, service, watch) -> None:
    make(aws, "TrainingJob", watch.name("a"))
    make(aws, "HyperParameterTuningJob", watch.name("b"))
    shown = watch._repr_markdown_()
    cost = "**1 × ml.g5.2xlarge, $1.5150 an hour**"
    assert f"| training job | `course-…-a` | {cost} | exists |" in shown
    assert "| tuning job | `course-…-b` | by its training jobs | exists |" in shown


def test_the_table_says_what_executions_cost(aws, service, watch) -> None:
    """The steps of another's pipeline run on machines that this run has started."""
    service.put("Pipeline", "by-hand")
    client = aws.session.client("sagemaker")
    client.start_pipeline_execution(PipelineName="by-hand")
    cost = "by what their steps run on"
    line = f"| executions of the pipeline | `by-hand` | {cost} | exists |"
    assert line in watch._repr_markdown_()
    (running_one,) = [one for one in watch.account().running if "by-hand" in one.name]
    assert (running_one.kind, running_one.status) == ("pipeline execution", "Executing")
    watch.teardown()
    assert line.replace("exists", "deleted") in watch._repr_markdown_()
    service.things.clear()


def test_a_bill_asks_for_each_job_once(aws, service, watch) -> None:
    for number in range(3):
        make(aws, "TrainingJob", watch.name(str(number)))
    service.calls.clear()
    watch.bill()
    assert service.calls.count("DescribeTrainingJob") == 3
    assert service.calls.count("ListTags") == 3
