"""A run's jobs are stopped, proved to have ended, and deleted with what they started.

SageMaker's side is played by `support.job_service`, as moto's jobs never run.
"""

from __future__ import annotations

import boto3
import pytest
from botocore.exceptions import ClientError

from support.job_requests import IMAGE, MAKERS, log, machine, make, streams, training
from support.job_service import arn
from utils.deployment import running
from utils.deployment.aws import DeploymentError
from utils.deployment.billing import TAG

ALL = pytest.mark.parametrize("operation", MAKERS)
# AWS keeps the record of a transform job, so it is never deleted.
DELETED = pytest.mark.parametrize(
    "operation", [one for one in MAKERS if "form" not in one]
)


# --- stopping and deleting ------------------------------------------------------------


@ALL
def test_what_runs_is_noted_tagged_stopped_and_deleted(
    aws, service, watch, operation
) -> None:
    name = watch.name("tune")
    make(aws, operation, name)
    if operation == "Pipeline":
        aws.session.client("sagemaker").start_pipeline_execution(PipelineName=name)
    assert {"Key": TAG, "Value": watch.run} in service.tags[arn(operation, name)]
    assert any(name in left for left in watch.remaining())
    assert service.running()
    watch.teardown()
    watch.teardown()
    assert service.running() == [] and watch.remaining() == []
    assert bool(service.things) == (operation == "TransformJob")
    assert all(entry.deleted for entry in watch.entries)


@ALL
def test_what_others_run_goes_on(aws, service, watch, operation) -> None:
    """Also one whose name the run tried to take, and one with another run's tag."""
    for name in ("by-hand", "course-1-a"):
        service.put(operation, name)
    service.tags[arn(operation, "course-1-a")] = [{"Key": TAG, "Value": "another"}]
    with pytest.raises(ClientError):
        make(aws, operation, "by-hand")
    watch.teardown()
    assert len(service.things) == 2
    assert all(
        thing.get(f"{operation}Status") in ("InProgress", "Active")
        for thing in service.things.values()
    )
    service.things.clear()


@ALL
def test_a_creation_whose_answer_is_lost_is_found(
    aws, service, watch, operation
) -> None:
    """It took effect, and no answer came: neither name nor state was confirmed."""
    name = watch.name("lost")
    create = service._create

    def lose(operation, request):
        create(operation, request)
        service._create = create
        raise KeyboardInterrupt

    service._create = lose
    with pytest.raises(KeyboardInterrupt):
        make(aws, operation, name)
    assert (operation, name) in service.things
    watch.teardown()
    assert service.running() == []
    assert bool(service.things) == (operation == "TransformJob")


@DELETED
def test_a_job_that_no_entry_names_is_found_by_its_tag(
    aws, service, watch, operation
) -> None:
    """Such as one made by a process of its own, which was killed."""
    name = watch.name("unseen")
    service.put(operation, name)
    service.tags[arn(operation, name)] = [{"Key": TAG, "Value": watch.run}]
    for number in range(5):  # more than a page before it
        service.put(operation, f"course-0-{number}")
    watch.teardown()
    assert (operation, name) not in service.things
    assert len(service.things) == 5
    service.things.clear()


@pytest.mark.parametrize("status", ["Completed", "Failed", "Stopped"])
def test_one_that_has_ended_is_not_stopped(aws, service, watch, status) -> None:
    make(aws, "TrainingJob", watch.name("a"))
    service.end("TrainingJob", watch.name("a"), status)
    watch.teardown()
    assert "StopTrainingJob" not in service.calls
    assert service.things == {}


def test_all_are_asked_to_stop_before_one_is_waited_for(aws, service, watch) -> None:
    for number in range(3):
        make(aws, "TrainingJob", watch.name(str(number)))
    service.calls.clear()
    watch.teardown()
    stops = [at for at, call in enumerate(service.calls) if call == "StopTrainingJob"]
    assert len(stops) == 3
    assert stops[-1] < service.calls.index("DeleteTrainingJob")


@DELETED
def test_a_stop_that_fails_is_said_and_the_others_go_on(
    aws, service, watch, operation
) -> None:
    if operation == "Pipeline":
        pytest.skip("it is its execution that is stopped; see the next test")
    names = [watch.name("one"), watch.name("two")]
    make(aws, operation, names[0])
    other = "ProcessingJob" if operation == "TrainingJob" else "TrainingJob"
    make(aws, other, names[1])
    service.refused[f"Stop{operation}"] = ("AccessDeniedException", "no right")
    with pytest.raises(DeploymentError, match=f"{names[0]}: .*no right"):
        watch.teardown()
    assert service.running() == [names[0]]
    assert any(names[0] in left for left in watch.remaining())


def test_a_pipeline_that_cannot_be_stopped_is_said(aws, service, watch) -> None:
    name = watch.name("whole")
    make(aws, "Pipeline", name)
    aws.session.client("sagemaker").start_pipeline_execution(PipelineName=name)
    service.refused["StopPipelineExecution"] = ("AccessDeniedException", "no right")
    with pytest.raises(DeploymentError, match=f"pipeline {name}: .*no right"):
        watch.teardown()
    assert len(service.running()) == 1


def test_one_that_never_stops_is_said(aws, service, watch, monkeypatch) -> None:
    monkeypatch.setattr(running, "STOP_TIMEOUT", 0.05)
    make(aws, "TrainingJob", watch.name("a"))
    service.looks = 10**6
    with pytest.raises(DeploymentError, match="still Stopping 0.05 s after the stop"):
        watch.teardown()
    service.end("TrainingJob", watch.name("a"), "Stopped")


def test_a_failed_cell_stops_jobs_and_keeps_their_log(
    aws, service, watch, said
) -> None:
    class Failed:
        success = False

    name = watch.name("a")
    make(aws, "TrainingJob", name)
    log(aws, f"{name}/algo-1-1")
    watch._after_cell(Failed)
    assert service.things == {} and "logs of its endpoints and jobs" in said[-1]
    assert streams(aws) == [f"{name}/algo-1-1"]
    said.clear()
    watch._after_cell(Failed)  # there is nothing more to be said of
    assert said == []
    watch.teardown()
    assert streams(aws) == []


# --- what others have started ---------------------------------------------------------


def test_the_training_jobs_of_a_tuning_are_stopped_billed_and_deleted(
    aws, service, watch
) -> None:
    name = watch.name("sweep")
    make(aws, "HyperParameterTuningJob", name)
    service.children[name] = [f"{name}-00{number}-ab" for number in range(3)]
    s3 = boto3.Session(region_name=aws.region).client("s3")
    for child in service.children[name]:
        request = training(aws, child)
        request["OutputDataConfig"]["S3OutputPath"] = f"s3://{aws.bucket}/{name}"
        service.put("TrainingJob", **{"name": child}, **without_name(request))
        key = f"{name}/{child}/output/model.tar.gz"
        s3.put_object(Bucket=aws.bucket, Key=key, Body=b"x")
    service.end("TrainingJob", service.children[name][0], BillableTimeInSeconds=36)
    bill = watch.bill()
    assert len(bill.lines) == 3
    assert ("1 × ml.g5.2xlarge, training", 0.01, 1.515) in bill.lines
    watch.teardown()
    assert service.things == {}
    assert "KeyCount" in (found := s3.list_objects_v2(Bucket=aws.bucket))
    assert found["KeyCount"] == 0
    assert len(watch.bill().lines) == 3


def without_name(request: dict) -> dict:
    return {key: value for key, value in request.items() if key != "TrainingJobName"}


def test_what_a_pipeline_has_started_and_made_goes_with_it(aws, service, watch) -> None:
    name = watch.name("whole")
    make(aws, "Pipeline", name)
    client = aws.session.client("sagemaker")
    client.start_pipeline_execution(PipelineName=name)
    execution = service.executions[name][0]["PipelineExecutionArn"]
    unwatched = boto3.Session(region_name=aws.region).client("sagemaker")
    unwatched.create_model(
        ModelName="pipelines-x-model",
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": IMAGE},
    )
    model = unwatched.describe_model(ModelName="pipelines-x-model")["ModelArn"]
    made = {"Model": model}
    for key, operation in (
        ("TrainingJob", "TrainingJob"),
        ("ProcessingJob", "ProcessingJob"),
        ("TuningJob", "HyperParameterTuningJob"),
    ):
        service.put(operation, f"pipelines-x-{key}")
        made[key] = arn(operation, f"pipelines-x-{key}")
    child = "pipelines-x-TuningJob-001"
    service.children["pipelines-x-TuningJob"] = [child]
    service.put("TrainingJob", child, ResourceConfig=machine())
    service.steps[execution] = [
        {"StepName": key, "Metadata": {key: {"Arn": value}}}
        for key, value in made.items()
    ] + [{"StepName": "Better", "Metadata": {"Condition": {"Outcome": "True"}}}]
    watch.teardown()
    assert service.things == {} and service.running() == []
    assert [m["ModelName"] for m in unwatched.list_models()["Models"]] == []


def test_only_the_runs_executions_of_anothers_pipeline_are_stopped(
    aws, service, watch
) -> None:
    service.put("Pipeline", "by-hand")
    theirs = service.start("by-hand", PipelineExecutionDescription="mine")
    client = aws.session.client("sagemaker")
    client.start_pipeline_execution(
        PipelineName="by-hand", PipelineExecutionDescription="a test"
    )
    ours = service.executions["by-hand"][1]
    assert ours["PipelineExecutionDescription"] == f"{TAG}={watch.run}. a test"
    assert f"pipeline execution {ours['PipelineExecutionArn']}" in watch.remaining()
    watch.teardown()
    assert ours["PipelineExecutionStatus"] == "Stopped"
    assert theirs["PipelineExecutionStatus"] == "Executing"
    assert ("Pipeline", "by-hand") in service.things
    theirs["PipelineExecutionStatus"] = "Succeeded"
