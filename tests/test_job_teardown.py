"""The guard against jobs that run: none is left, and none of their files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from support import processing, tuning
from support.job_requests import keys, streams
from support.training import IMAGE, LONG, Jobs, packed
from utils.deployment.billing import BillingGuard
from utils.offline_aws.processing_jobs import PROCESSING_JOBS
from utils.offline_aws.training_jobs import TRAINING_JOBS

WAITS = """
import signal, sys, time
def stop(*_):
    open("/opt/ml/model/partial.txt", "w").write("half")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open("/opt/ml/checkpoints/step-1", "w").write("1")
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
ENDS = 'open("/opt/ml/model/weights.txt", "w").write("1 2 3")'


class Failed:
    """What IPython says of a cell that raised."""

    success = False


@pytest.fixture
def jobs(aws, guard) -> Jobs:
    """Clients that were made under the guard, which watches no others."""
    return Jobs(aws)


@pytest.fixture
def start(jobs, guard) -> Any:
    """Start a job under the guard, below folders of its own."""

    def start(script: str, what: str) -> Any:
        name = guard.name(what)
        place = f"s3://{jobs.aws.bucket}/{name}"
        channel = jobs.put({"train.py": script}, f"{name}/code")
        request = jobs.request(script)
        # The guard has marked the uploads; a folder outside of its own it would name.
        assert channel.startswith(place)
        return jobs.start(
            script,
            TrainingJobName=name,
            OutputDataConfig={"S3OutputPath": f"{place}/out"},
            CheckpointConfig={"S3Uri": f"{place}/checkpoints"},
            ResourceConfig={**request["ResourceConfig"], "InstanceCount": 1},
        )

    return start


def test_a_running_job_is_stopped_and_nothing_of_it_is_left(
    jobs, guard, start, aws
) -> None:
    job = start(WAITS, "a")
    jobs.wait_for_line(job, "ready")
    assert f"training job {job.name}" in guard.remaining()
    (what, hours, _), *_ = guard.bill().lines
    assert what == "1 × ml.m5.xlarge, training" and 0 < hours < LONG / 3600
    guard.teardown()
    assert guard.remaining() == []
    assert job.ended and job.name not in TRAINING_JOBS
    assert not [key for key in keys(aws) if guard.name("") in key]
    assert not [one for one in streams(aws) if one.startswith(job.name)]
    assert guard.bill().lines[0][1] >= hours


def test_a_job_that_has_ended_is_billed_by_its_description(jobs, guard, start) -> None:
    job = start(ENDS, "a")
    assert job.wait(LONG)
    seconds = jobs.describe(job.name)["BillableTimeInSeconds"]
    (_, hours, _), *_ = guard.bill().lines
    assert hours == seconds / 3600
    guard.teardown()
    assert guard.bill().lines[0][1] == hours


def test_a_failing_cell_stops_the_job_and_keeps_its_log(
    jobs, guard, start, aws
) -> None:
    job = start(WAITS, "a")
    jobs.wait_for_line(job, "ready")
    guard._after_cell(Failed)
    assert job.ended
    assert [one for one in streams(aws) if one.startswith(job.name)]
    assert not [key for key in keys(aws) if guard.name("") in key]


def test_a_new_guard_ends_what_the_one_before_has_running(aws) -> None:
    first = BillingGuard(aws, lambda _: None)
    out = {"S3OutputPath": f"s3://{aws.bucket}/{first.name('a')}"}
    job = Jobs(aws).start(
        WAITS.replace("/opt/ml/checkpoints", "/opt/ml/model"),
        TrainingJobName=first.name("a"),
        OutputDataConfig=out,
    )
    with BillingGuard(aws, lambda _: None):
        assert job.ended and first.remaining() == []


def wait_until(holds: Callable[[], Any]) -> None:
    ends = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_of_a_sweep_that_runs_nothing_is_left(jobs, guard, aws) -> None:
    name = guard.name("t")
    place = f"s3://{aws.bucket}/{name}"
    archive = packed({tuning.PROGRAM: tuning.SCRIPT})
    jobs.put({"sourcedir.tar.gz": archive}, name)
    static = {"steps": "6000", "pause": "0.1"}
    static["sagemaker_submit_directory"] = f"{place}/sourcedir.tar.gz"
    out = {"OutputDataConfig": {"S3OutputPath": f"{place}/out"}}
    given = tuning.request(aws.role, aws.bucket, name=name, static=static)
    given["TrainingJobDefinition"] |= out
    jobs.client.create_hyper_parameter_tuning_job(**given)
    wait_until(lambda: [one for one in list(TRAINING_JOBS) if one.startswith(name)])
    for one in list(TRAINING_JOBS.values()):
        if one.name.startswith(name):
            jobs.wait_for_line(one, "loss=")
    assert f"tuning job {name}" in guard.remaining()
    assert any(one[0].endswith("training") for one in guard.bill().lines)
    guard.teardown()
    assert guard.remaining() == []
    assert not [one for one in TRAINING_JOBS if one.startswith(name)]
    assert not [key for key in keys(aws) if name in key]
    assert not [one for one in streams(aws) if one.startswith(name)]
    listed = jobs.client.list_hyper_parameter_tuning_jobs(NameContains=name)
    assert listed["HyperParameterTuningJobSummaries"] == []


def test_of_a_processing_job_that_runs_nothing_is_left(jobs, guard, aws) -> None:
    name = guard.name("p")
    code = jobs.put({"run.sh": "echo ready; sleep 600"}, f"{name}/code")
    place = f"{processing.PLACE}/code/run.sh"
    given = processing.request(aws, name, f"exec /bin/sh {place}")
    given["ProcessingInputs"] = [processing.source("code", code)]
    output = given["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]
    output["S3Uri"] = f"s3://{aws.bucket}/{name}/out"
    jobs.client.create_processing_job(**given)
    wait_until(lambda: processing.lines_of(aws, name))
    assert f"processing job {name}" in guard.remaining()
    (what, hours, _), *_ = guard.bill().lines
    assert what == "1 × ml.m5.xlarge, processing" and 0 < hours < LONG / 3600
    guard.teardown()
    assert guard.remaining() == [] and name not in PROCESSING_JOBS
    assert not [key for key in keys(aws) if name in key]
    assert processing.lines_of(aws, name) == []


def test_a_job_of_the_sdk_is_watched_with_all_that_it_uploads(
    jobs, guard, aws, tmp_path
) -> None:
    """Its source, its drivers, and what SageMaker writes where the SDK says."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, SourceCode

    (tmp_path / "train.py").write_text(ENDS)
    trainer = ModelTrainer(
        training_image=IMAGE,
        role=aws.role,
        base_job_name=guard.name("sdk"),
        sagemaker_session=Session(boto_session=aws.session, default_bucket=aws.bucket),
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.xlarge", instance_count=1),
    )
    trainer.train(wait=False, logs=False)
    name = trainer._latest_training_job.training_job_name
    assert TRAINING_JOBS[name].wait(LONG)
    assert jobs.describe(name)["TrainingJobStatus"] == "Completed"
    made = [key for key in keys(aws) if guard.name("") in key]
    for part in ("/input/code/train.py", "/sm_train.sh", "/output/model.tar.gz"):
        assert any(key.endswith(part) for key in made), made
    assert guard.bill().lines[0][0] == "1 × ml.m5.xlarge, training"
    guard.teardown()
    assert guard.remaining() == [] and name not in TRAINING_JOBS
    assert not [key for key in keys(aws) if guard.name("") in key]
