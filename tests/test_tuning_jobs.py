"""Tuning jobs of the offline AWS, whose training jobs are real processes.

The scripts do without PyTorch, so that a job takes a second.
"""

from __future__ import annotations

import copy
import re
import time
from datetime import timedelta
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from support.training import LONG, packed
from support.tuning import (
    IMAGE,
    PATTERN,
    PROGRAM,
    SCRIPT,
    jobs_of,
    new_name,
    numbers,
    request,
    wait,
)
from utils.offline_aws.logs import put_events
from utils.offline_aws.names import TRAINING_LOG_GROUP
from utils.offline_aws.tuning_patches import JobsHere

GRID = {"CategoricalParameterRanges": [{"Name": "point", "Values": ["1.5", "4", "2"]}]}


@pytest.fixture(scope="module")
def client(aws) -> Any:
    s3 = aws.session.client("s3")
    sources = packed({PROGRAM: SCRIPT})
    s3.put_object(Bucket=aws.bucket, Key="tuned/sourcedir.tar.gz", Body=sources)
    return aws.session.client("sagemaker")


@pytest.fixture
def tune(aws, client):
    """Return a function that starts a tuning job."""

    def tune(**changed: Any) -> str:
        given = request(aws.role, aws.bucket, **changed)
        client.create_hyper_parameter_tuning_job(**given)
        return given["HyperParameterTuningJobName"]

    return tune


def lines_of(aws: Any, job: str) -> list[str]:
    logs = aws.session.client("logs")
    found = logs.filter_log_events(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{job}/"
    )
    return [event["message"] for event in found["events"]]


def test_a_sweep_from_request_to_best_artifact(aws, client, tune) -> None:
    name = tune(
        strategy="Grid",
        ranges=GRID,
        static={"says": 'epoch 1 loss={loss} it\'s "fine"'},
        top={"Tags": [{"Key": "course", "Value": "8"}]},
    )
    said = wait(client, name)
    assert said["HyperParameterTuningJobStatus"] == "Completed"
    listed = jobs_of(client, name)
    for number, job in enumerate(listed, 1):
        pattern = rf"{name}-{number:03d}-[0-9a-f]{{8}}"
        assert re.fullmatch(pattern, job["TrainingJobName"])
        assert job["TrainingJobStatus"] == "Completed"
        assert job["TrainingStartTime"] <= job["TrainingEndTime"]
    assert [job["TunedHyperParameters"]["point"] for job in listed] == ["1.5", "4", "2"]
    reached = [
        job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for job in listed
    ]
    assert reached == [0.5, 3.0, 1.0]
    best = said["BestTrainingJob"]
    assert best == {**listed[0], "CreationTime": best["CreationTime"]}
    job = client.describe_training_job(TrainingJobName=best["TrainingJobName"])
    assert job["TuningJobArn"] == said["HyperParameterTuningJobArn"]
    assert job["HyperParameters"]["_tuning_objective_metric"] == "held-out:loss"
    for arn in (job["TrainingJobArn"], said["HyperParameterTuningJobArn"]):
        tags = client.list_tags(ResourceArn=arn)["Tags"]
        assert tags == [{"Key": "course", "Value": "8"}]
    address = job["ModelArtifacts"]["S3ModelArtifacts"]
    key = address.removeprefix(f"s3://{aws.bucket}/")
    assert aws.session.client("s3").head_object(Bucket=aws.bucket, Key=key)
    assert 'epoch 1 loss=0.5 it\'s "fine"' in lines_of(aws, best["TrainingJobName"])
    page = client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, MaxResults=2
    )
    rest = client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, NextToken=page["NextToken"]
    )
    both = page["TrainingJobSummaries"] + rest["TrainingJobSummaries"]
    assert both == listed and "NextToken" not in rest


@pytest.fixture(scope="module")
def tuner(aws, client, tmp_path_factory) -> Any:
    """A tuner of the SDK, after its sweep."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, InputData, OutputDataConfig, SourceCode
    from sagemaker.train.tuner import HyperparameterTuner

    sources = tmp_path_factory.mktemp("sources")
    (sources / PROGRAM).write_text(SCRIPT)
    data = tmp_path_factory.mktemp("data") / "rows.txt"
    data.write_text("rows")
    s3 = aws.session.client("s3")
    s3.upload_file(str(data), aws.bucket, "tuned/rows/rows.txt")
    session = Session(
        boto_session=aws.session,
        sagemaker_client=client,
        default_bucket=aws.bucket,
    )
    trainer = ModelTrainer(
        training_image=IMAGE,
        source_code=SourceCode(source_dir=str(sources), entry_script=PROGRAM),
        compute=Compute(instance_type="ml.m5.xlarge", instance_count=1),
        role=aws.role,
        sagemaker_session=session,
        base_job_name="course",
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{aws.bucket}/tuned"),
        hyperparameters={"steps": 2, "point": 0.0},
    )
    tuner = HyperparameterTuner(
        model_trainer=trainer,
        objective_metric_name="held-out:loss",
        metric_definitions=[{"Name": "held-out:loss", "Regex": PATTERN}],
        hyperparameter_ranges={
            "point": ContinuousParameter(-1.0, 3.0),
            "kind": CategoricalParameter(["one two", "it's"]),
        },
        objective_type="Minimize",
        strategy="Random",
        max_jobs=4,
        max_parallel_jobs=2,
        random_seed=7,
    )
    channel = InputData(
        channel_name="rows", data_source=f"s3://{aws.bucket}/tuned/rows"
    )
    tuner.tune([channel], job_name=new_name(), wait=False)
    tuner.latest_tuning_job.wait(poll=1)
    return tuner


def test_the_tuner_of_the_sdk_tunes(aws, client, tuner) -> None:
    said = tuner.describe()
    assert said.hyper_parameter_tuning_job_status == "Completed"
    table = tuner.analytics().dataframe()
    assert len(table) == 4 and set(table.TrainingJobStatus) == {"Completed"}
    assert table.FinalObjectiveValue.tolist() == pytest.approx(
        (table.point - 1).abs().tolist()
    )
    assert set(table.kind) <= {"one two", "it's"}
    best = table.sort_values("FinalObjectiveValue").TrainingJobName.iloc[0]
    assert tuner.best_training_job() == best
    ranges = tuner.analytics().tuning_ranges
    assert set(ranges) == {"point", "kind"}
    job = client.describe_training_job(TrainingJobName=best)
    assert {one["ChannelName"] for one in job["InputDataConfig"]} == {
        "rows",
        "sm_drivers",
    }


def test_the_same_seed_tries_the_same_again(client, tuner) -> None:
    first = tuner.latest_tuning_job.hyper_parameter_tuning_job_name
    second = new_name()
    tuner.tune(None, job_name=second, wait=False)
    wait(client, second)
    tried = [
        [job["TunedHyperParameters"] for job in jobs_of(client, name)]
        for name in (first, second)
    ]
    assert tried[0] == tried[1]


@pytest.mark.parametrize(
    ("changed", "best", "reasons"),
    [
        # one fails, and the sweep goes on
        ({"static": {"fails-from": "4"}}, 0, {1: "The point is too large., exit code"}),
        # the second writes nan: a pattern of digits does not even see it
        (
            {"says": ["{loss}", "nan", "{loss}"], "pattern": r"loss=([0-9.]+)"},
            0,
            {1: "no finite number"},
        ),
        # the exponent is cut: on AWS, too, 1e-05 then counts as 1
        (
            {"says": ["{loss}", "1e-05", "{loss}"], "pattern": r"loss=([0-9.]+)"},
            0,
            {1: "captures '1'"},
        ),
        ({"says": ["{loss}", "1e-05", "{loss}"]}, 1, {}),
    ],
)
def test_what_is_wrong_with_a_job_is_said_and_does_not_win(
    client, tune, changed, best, reasons
) -> None:
    ranges = copy.deepcopy(GRID)
    if written := changed.pop("says", None):
        # Each job writes its own text: the grid's values are the texts.
        values = [f"{number}. loss={text}" for number, text in enumerate(written)]
        ranges = {"CategoricalParameterRanges": [{"Name": "says", "Values": values}]}
        changed["static"] = {"point": "1.6"}
    name = tune(strategy="Grid", ranges=ranges, at_once=3, **changed)
    said = wait(client, name)
    assert said["HyperParameterTuningJobStatus"] == "Completed"
    listed = jobs_of(client, name)
    assert (
        said["BestTrainingJob"]["TrainingJobName"] == (listed[best]["TrainingJobName"])
    )
    for number, job in enumerate(listed):
        assert reasons.get(number, "") in job.get("FailureReason", "")
        assert (number in reasons) == ("FailureReason" in job)


def test_a_pattern_that_matches_nothing_fails_the_sweep_in_words(client, tune) -> None:
    name = tune(jobs=2, pattern="validation-loss: ([0-9.]+)")
    said = wait(client, name)
    assert said["HyperParameterTuningJobStatus"] == "Failed"
    assert "'validation-loss: ([0-9.]+)' matches no line" in said["FailureReason"]
    assert {job["ObjectiveStatus"] for job in jobs_of(client, name)} == {"Failed"}
    assert {job["TrainingJobStatus"] for job in jobs_of(client, name)} == {"Completed"}
    assert "BestTrainingJob" not in said
    listed = jobs_of(client, name, SortBy="FinalObjectiveMetricValue")
    assert listed == []


def test_a_job_without_a_chance_is_stopped_early(aws, client, tune) -> None:
    name = tune(
        strategy="Grid",
        ranges={
            "CategoricalParameterRanges": [
                {"Name": "point", "Values": ["1.5", "9", "1.2"]},
            ]
        },
        at_once=1,
        static={"steps": "8", "pause": "0.3"},
        config={"TrainingJobEarlyStoppingType": "Auto"},
    )
    said = wait(client, name)
    listed = jobs_of(client, name)
    ends = [job["TrainingJobStatus"] for job in listed]
    assert ends == ["Completed", "Stopped", "Completed"]
    written = [len(lines_of(aws, job["TrainingJobName"])) for job in listed]
    assert written[0] == written[2] > written[1] > 0
    assert said["BestTrainingJob"]["TunedHyperParameters"] == {"point": "1.2"}


def test_a_stop_in_the_middle_leaves_nothing_running(client, tune) -> None:
    name = tune(jobs=9, at_once=3, static={"steps": "600", "pause": "0.1"})
    wait_until_one_trains(client, name)
    with pytest.raises(ClientError, match="in status InProgress. Only a job that"):
        client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    said = wait(client, name)
    assert said["HyperParameterTuningJobStatus"] == "Stopped"
    assert {job["TrainingJobStatus"] for job in jobs_of(client, name)} == {"Stopped"}
    assert said["TrainingJobStatusCounters"]["Stopped"] == 3
    assert not processes_of(name)
    with pytest.raises(ClientError, match="tuning job is in status Stopped"):
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    with pytest.raises(ClientError, match="Could not find hyper parameter tuning job"):
        client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    # "It does not delete training jobs": botocore's model.
    found = client.list_training_jobs(NameContains=name)["TrainingJobSummaries"]
    assert len(found) == 3


def test_a_bayesian_search_runs_and_tries_different_values(client, tune) -> None:
    name = tune(strategy="Bayesian", jobs=5, at_once=2)
    said = wait(client, name)
    assert said["HyperParameterTuningJobStatus"] == "Completed"
    listed = jobs_of(client, name)
    points = {job["TunedHyperParameters"]["point"] for job in listed}
    assert len(points) == 5
    losses = {
        job["TrainingJobName"]: job["FinalHyperParameterTuningJobObjectiveMetric"]
        for job in listed
    }
    best = min(losses, key=lambda one: losses[one]["Value"])
    assert said["BestTrainingJob"]["TrainingJobName"] == best


def wait_until_one_trains(client: Any, name: str) -> None:
    """Wait until a training job of a tuning job has got so far."""
    ends = time.monotonic() + LONG
    states: list[str] = []
    while "Training" not in states:
        assert time.monotonic() < ends, states
        states = [
            client.describe_training_job(TrainingJobName=job["TrainingJobName"])[
                "SecondaryStatus"
            ]
            for job in jobs_of(client, name)
        ]
        time.sleep(0.1)


def test_of_a_log_only_the_new_lines_are_read_in_the_order_of_time(aws) -> None:
    name, start = new_name(), int(time.time() * 1000)

    def write(host: str, *moments: int) -> None:
        events = [{"timestamp": start + at, "message": f"{at}"} for at in moments]
        put_events(TRAINING_LOG_GROUP, f"{name}/{host}", events)

    new_lines = JobsHere().listen(name)
    assert new_lines() == []
    write("algo-1", 1, 3)
    write("algo-2", 2)
    put_events(
        TRAINING_LOG_GROUP, f"{name}0/algo-1", [{"timestamp": start, "message": "0"}]
    )
    assert new_lines() == ["1", "2", "3"]
    assert new_lines() == []
    write("algo-2", 4)
    assert new_lines() == ["4"]


def processes_of(name: str) -> list[psutil.Process]:
    """Return the processes of this one that belong to a tuning job."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if one.environ().get("TRAINING_JOB_NAME", "").startswith(name):
                found.append(one)
        except psutil.Error:
            continue
    return found


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"definition": {"AlgorithmSpecification": {"TrainingInputMode": "File"}}},
        "ValidationException",
        "A metric is required for this hyperparameter tuning job objective. Provide a "
        "metric in the metric definitions.",
    ),
    ({"pattern": "loss=([0-9"}, "ValidationException", "is no regular expression"),
    (
        {"ranges": {"IntegerParameterRanges": [numbers("rank", 8, 4)]}},
        "ValidationException",
        "MinValue must be smaller than MaxValue",
    ),
    (
        {"ranges": {"IntegerParameterRanges": [numbers("rank", 1, 3)]}, "jobs": 10},
        "ValidationException",
        "You don't have enough combinations of hyperparameter ranges. The total number "
        "of hyperparameter combinations for the provided ranges [3.0] must be equal or "
        "greater than the value of MaxNumberOfJobs, [10]. Provide additional ranges.",
    ),
    ({"static": {"point": "1"}}, "ValidationException", "either kept or tuned"),
    ({"ranges": {"IntegerParameterRanges": []}}, "ValidationException", "no range"),
    (
        {
            "ranges": {
                "IntegerParameterRanges": [numbers("point", 1, 9)],
                "ContinuousParameterRanges": [numbers("point", 1, 9)],
            }
        },
        "ValidationException",
        "'point' has more than one range",
    ),
    ({"at_once": 11, "jobs": 20}, "ResourceLimitExceeded", "10 training jobs at a"),
    ({"jobs": 751}, "ResourceLimitExceeded", "750 training jobs"),
    ({"at_once": 4, "jobs": 3}, "ValidationException", "more jobs at a time than"),
    ({"jobs": None}, "ValidationException", "MaxNumberOfTrainingJobs"),
    ({"strategy": "Grid"}, "ValidationException", "only categorical parameters"),
    (
        {"strategy": "Grid", "ranges": GRID, "jobs": 2},
        "ValidationException",
        "must be 3 or be left out, not 2",
    ),
    ({"strategy": "Hyperband"}, "NotImplemented", "the strategy Hyperband"),
    ({"top": {"Autotune": {"Mode": "Enabled"}}}, "NotImplemented", "Autotune"),
    (
        {
            "top": {
                "WarmStartConfig": {
                    "ParentHyperParameterTuningJobs": [
                        {"HyperParameterTuningJobName": "before"}
                    ],
                    "WarmStartType": "TransferLearning",
                }
            }
        },
        "NotImplemented",
        "WarmStartConfig",
    ),
    (
        {
            "config": {
                "TuningJobCompletionCriteria": {
                    "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"}
                }
            }
        },
        "NotImplemented",
        "ConvergenceDetected",
    ),
    ({"name": "x" * 33}, "ValidationException", "length less than or equal to 32"),
    ({"name": "-x"}, "ValidationException", "regular expression pattern"),
    # what each training job would be refused for
    (
        {"definition": {"RoleArn": "arn:aws:iam::123456789012:role/nobody-has-it"}},
        "ValidationException",
        "Could not assume role",
    ),
    (
        {"definition": {"StaticHyperParameters": {}}},
        "NotImplemented",
        "programs that are in the image",
    ),
]


@pytest.mark.parametrize(
    ("changed", "code", "said"), REFUSED, ids=[one[2][:30] for one in REFUSED]
)
def test_what_aws_refuses_is_refused(aws, client, changed, code, said) -> None:
    given = request(aws.role, aws.bucket, **changed)
    name = given["HyperParameterTuningJobName"]
    with pytest.raises(ClientError) as error:
        client.create_hyper_parameter_tuning_job(**given)
    answer = error.value.response["Error"]
    assert answer["Code"] == code
    assert said in answer["Message"]
    found = client.list_hyper_parameter_tuning_jobs(NameContains=name[:32].strip("-"))
    assert found["HyperParameterTuningJobSummaries"] == []


def test_names_are_taken_once_and_lists_hold_them(client, tune, aws) -> None:
    name = tune(jobs=1, at_once=1)
    again = request(aws.role, aws.bucket, name=name.upper())
    with pytest.raises(ClientError, match="already exists. Choose a different name"):
        client.create_hyper_parameter_tuning_job(**again)
    wait(client, name)
    [found] = client.list_hyper_parameter_tuning_jobs(
        NameContains=name, StatusEquals="Completed"
    )["HyperParameterTuningJobSummaries"]
    assert found["HyperParameterTuningJobName"] == name
    assert found["Strategy"] == "Random"
    assert found["ObjectiveStatusCounters"]["Succeeded"] == 1
    listed = client.list_hyper_parameter_tuning_jobs(MaxResults=100)
    names = [
        one["HyperParameterTuningJobName"]
        for one in listed["HyperParameterTuningJobSummaries"]
    ]
    assert names == sorted(names) and len(names) > 1
    later = found["CreationTime"] + timedelta(seconds=1)
    for given, holds in (
        ({"CreationTimeAfter": later}, False),
        ({"CreationTimeBefore": later}, True),
        ({"LastModifiedTimeAfter": found["CreationTime"]}, True),
    ):
        some = client.list_hyper_parameter_tuning_jobs(NameContains=name, **given)
        assert bool(some["HyperParameterTuningJobSummaries"]) is holds


def test_the_end_of_the_offline_aws_ends_a_sweep(client, tune) -> None:
    """The fixture `aws` looks for processes that are left: this one leaves some."""
    name = tune(jobs=5, at_once=2, static={"steps": "600", "pause": "0.1"})
    wait_until_one_trains(client, name)
    assert processes_of(name)
