"""Training jobs of the offline AWS run: how they begin, end, fail and are refused."""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.training import IMAGE, LONG, Jobs, channel, packed, states
from utils.offline_aws import logs, training_checkpoints, training_process
from utils.offline_aws.errors import AwsFault
from utils.offline_aws.training_checks import MOST_INSTANCES
from utils.offline_aws.training_errors import JobFailure, upload_failed
from utils.offline_aws.training_jobs import TRAINING_JOBS
from utils.offline_aws.training_spot import read_interruptions
from utils.offline_aws.training_states import JobStates

UPLOAD_FAILED = "ClientError: Artifact upload failed:full"
INTERNAL_ERROR = "InternalServerError: We encountered an internal error."
GOOD = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
WRITES = """
import os
print("it trains", flush=True)
with open("/opt/ml/model/weights.txt", "w") as file:
    file.write("1 2 3")
"""
WAITS = """
import signal, sys, time
def stop(*_):
    print("asked to stop", flush=True)
    open("/opt/ml/model/partial.txt", "w").write("half")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("/opt/ml/model/partial.txt", "w").write("half")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def jobs(aws) -> Jobs:
    return Jobs(aws)


def test_boto3_alone_runs_a_job_and_fetches_what_it_left(jobs) -> None:
    data = jobs.put({"a.csv": "x,y"})
    script = WRITES + 'print(open("/opt/ml/input/data/train/a.csv").read())\n'
    request = jobs.request(script, InputDataConfig=[channel("train", data)])
    arn = jobs.client.create_training_job(**request)["TrainingJobArn"]
    name = request["TrainingJobName"]
    waiter = jobs.client.get_waiter("training_job_completed_or_stopped")
    waiter.wait(TrainingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    found = jobs.describe(name)
    assert found["TrainingJobArn"] == arn
    assert found["TrainingJobStatus"] == found["SecondaryStatus"] == "Completed"
    assert states(found) == GOOD
    assert jobs.log(name) == ["it trains", "x,y"]
    assert jobs.artifact(found) == {"weights.txt": b"1 2 3"}
    assert found["CreationTime"] <= found["TrainingStartTime"]
    assert found["TrainingStartTime"] < found["TrainingEndTime"]
    assert 1 <= found["BillableTimeInSeconds"] == found["TrainingTimeInSeconds"] < 60
    for key, value in request.items():
        assert found[key] == value
    assert "FailureReason" not in found
    times = found["SecondaryStatusTransitions"]
    for one, following in zip(times, times[1:], strict=False):
        assert one["EndTime"] == following["StartTime"]


def test_what_the_sdk_asks_before_an_upload_is_allowed(aws) -> None:
    answer = aws.session.client("iam").simulate_principal_policy(
        PolicySourceArn=aws.role,
        ActionNames=["s3:PutObject", "s3:GetObject"],
        ResourceArns=[f"arn:aws:s3:::{aws.bucket}/*"],
    )
    decided = {
        one["EvalActionName"]: one["EvalDecision"]
        for one in answer["EvaluationResults"]
    }
    assert decided == {"s3:PutObject": "allowed", "s3:GetObject": "allowed"}


@pytest.mark.parametrize(
    "script, changes, reason",
    [
        ("import sys; sys.exit(3)", {}, "AlgorithmError: , exit code: 3"),
        (
            "open('/opt/ml/output/failure', 'w').write('no rows in train.csv')\n"
            "raise SystemExit(1)",
            {},
            "AlgorithmError: no rows in train.csv, exit code: 1",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            {},
            "ClientError: Please use an instance type with more memory, or reduce the "
            "size of job data processed on an instance., exit code: 137",
        ),
        (  # what the SDK's driver makes of a script that SIGKILL has ended
            "raise SystemExit(247)",
            {},
            "ClientError: Please use an instance type with more memory, or reduce the "
            "size of job data processed on an instance., exit code: 247",
        ),
        # Python's own error is one of the script: nobody has killed it.
        ("bytearray(1 << 60)", {}, "AlgorithmError: , exit code: 1"),
        (
            "open('/opt/ml/model/large', 'wb').truncate(2 * 1024**3)",
            {},
            "ClientError: Artifact upload failed:Insufficient disk space",
        ),
        (
            "import errno, os\n"
            "error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
            "open('/opt/ml/output/failure', 'w').write(str(error))\n"
            "raise error",
            {},
            "AlgorithmError: [Errno 28] No space left on device, exit code: 1",
        ),
        (
            WRITES,
            {"InputDataConfig": [channel("train", "s3://course-on-this-machine/no/")]},
            'ClientError: Data download failed:No S3 objects found under S3 URL "s3://'
            'course-on-this-machine/no/" given in input data source. Please ensure',
        ),
        (
            WRITES,
            {"InputDataConfig": [channel("train", "s3://no-such-bucket/no")]},
            "ClientError: Data download failed:The bucket of s3://no-such-bucket/no",
        ),
        (
            WRITES,
            {"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket/out"}},
            "ClientError: Artifact upload failed:The bucket no-such-bucket",
        ),
        (
            WRITES,
            {
                "AlgorithmSpecification": {
                    "TrainingImage": IMAGE.replace("huggingface-pytorch", "no-such")
                }
            },
            "ClientError: Cannot pull algorithm container. Either the image does not "
            "exist or its permissions are incorrect.",
        ),
        (
            WRITES,
            {"AlgorithmSpecification": {"ContainerEntrypoint": ["/no/such/program"]}},
            "AlgorithmError: , exit code: 127",
        ),
    ],
)
def test_a_job_that_fails_says_why(jobs, script, changes, reason) -> None:
    found = jobs.run(script, **changes)
    assert found["TrainingJobStatus"] == found["SecondaryStatus"] == "Failed"
    assert found["FailureReason"].startswith(reason)


@pytest.mark.parametrize(
    ("part", "error", "script", "reason"),
    [
        ("Checkpoints.store", upload_failed("full"), "", UPLOAD_FAILED),
        (
            "Checkpoints.store",
            upload_failed("full"),
            "exit(3)",
            "AlgorithmError: , exit",
        ),
        ("Checkpoints.store", KeyError("x"), "", INTERNAL_ERROR),
        ("LogShipper.stop", KeyError("x"), "", INTERNAL_ERROR),
    ],
)
def test_what_fails_at_the_end_of_a_job_ends_it(
    jobs, monkeypatch, part, error, script, reason
) -> None:
    kind, _, method = part.partition(".")
    module = training_checkpoints if kind == "Checkpoints" else logs
    raised = []

    def fail(_: object) -> None:
        raised.append(error)
        raise error

    monkeypatch.setattr(getattr(module, kind), method, fail)
    saved = {"S3Uri": f"s3://{jobs.aws.bucket}/failing"}
    found = jobs.run(WRITES + script, CheckpointConfig=saved)
    assert raised and found["TrainingJobStatus"] == "Failed"
    assert found["FailureReason"].startswith(reason)
    if isinstance(error, JobFailure):
        assert jobs.artifact(found) == {"weights.txt": b"1 2 3"}  # stored all the same


def test_a_long_reason_is_cut_where_aws_cuts_it(jobs) -> None:
    script = (
        "open('/opt/ml/output/failure', 'w').write('x' * 5000); raise SystemExit(1)"
    )
    reason = jobs.run(script)["FailureReason"]
    assert reason.startswith("AlgorithmError: xxx")
    assert reason.endswith("xxx, exit code: 1")
    assert len(reason) == 1024


def test_a_bad_hyperparameter_fails_with_the_words_of_the_script(jobs) -> None:
    script = """
import json
given = json.load(open("/opt/ml/input/config/hyperparameters.json"))
try:
    float(given["learning_rate"])
except ValueError as error:
    open("/opt/ml/output/failure", "w").write(f"learning_rate: {error}")
    raise
"""
    found = jobs.run(script, HyperParameters={"learning_rate": "fast"})
    assert found["FailureReason"] == (
        "AlgorithmError: learning_rate: could not convert string to float: 'fast', "
        "exit code: 1"
    )
    assert found["HyperParameters"] == {"learning_rate": "fast"}


def test_a_stopped_job_keeps_what_it_has(jobs) -> None:
    job = jobs.start(WAITS)
    jobs.wait_for_line(job, "ready")
    jobs.client.stop_training_job(TrainingJobName=job.name)
    assert jobs.describe(job.name)["TrainingJobStatus"] in ("Stopping", "Stopped")
    assert job.wait(30)
    found = jobs.describe(job.name)
    assert found["TrainingJobStatus"] == found["SecondaryStatus"] == "Stopped"
    assert states(found) == [*GOOD[:3], "Stopping", "Uploading", "Stopped"]
    assert jobs.artifact(found) == {"partial.txt": b"half"}
    assert "asked to stop" in jobs.log(job.name)
    assert "FailureReason" not in found
    with pytest.raises(ClientError, match="rejected because .* in status Stopped"):
        jobs.client.stop_training_job(TrainingJobName=job.name)


def test_who_does_not_listen_is_killed_and_its_model_kept(jobs, monkeypatch) -> None:
    monkeypatch.setattr(training_process, "STOP_GRACE", 0.3)
    job = jobs.start(DEAF)
    jobs.wait_for_line(job, "ready")
    jobs.client.stop_training_job(TrainingJobName=job.name)
    assert job.wait(30)
    found = jobs.describe(job.name)
    assert found["TrainingJobStatus"] == "Stopped"
    assert jobs.artifact(found) == {"partial.txt": b"half"}


def test_the_time_limit_ends_a_job(jobs) -> None:
    job = jobs.start(WAITS)
    jobs.wait_for_line(job, "ready")
    # As if the time were over now: on a busy machine a second may pass before "ready".
    job.request["StoppingCondition"]["MaxRuntimeInSeconds"] = 0
    assert job.wait(30)
    found = jobs.describe(job.name)
    assert found["TrainingJobStatus"] == "Stopped"
    assert found["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert states(found)[-3:] == ["Stopping", "Uploading", "MaxRuntimeExceeded"]
    assert jobs.artifact(found) == {"partial.txt": b"half"}
    assert "FailureReason" not in found


def test_a_job_can_be_stopped_before_it_trains(jobs, monkeypatch) -> None:
    from utils.offline_aws import training_jobs

    fetch = training_jobs.fetch_channel
    stopped = []

    def slowly(*given: Any) -> None:
        fetch(*given)
        jobs.client.stop_training_job(TrainingJobName=stopped[0])

    monkeypatch.setattr(training_jobs, "fetch_channel", slowly)
    request = jobs.request(WRITES)
    stopped.append(request["TrainingJobName"])
    jobs.client.create_training_job(**request)
    job = training_jobs.TRAINING_JOBS[request["TrainingJobName"]]
    assert job.wait(30)
    found = jobs.describe(job.name)
    assert states(found) == ["Starting", "Downloading", "Stopping", "Stopped"]
    assert "ModelArtifacts" not in found


SPECIFICATION = {"TrainingImage": IMAGE, "TrainingInputMode": "File"}
PLAYED = "does not play"


@pytest.mark.parametrize(
    "changes, code, text",
    [
        ({"RoleArn": "arn:aws:iam::123456789012:role/nobody"}, "Validation", "assume"),
        ({"AlgorithmSpecification": None}, "Validation", "AlgorithmSpecification is"),
        ({"ResourceConfig": None}, "Validation", "ResourceConfig is missing"),
        ({"StoppingCondition": None}, "Validation", "StoppingCondition is missing"),
        (
            {"AlgorithmSpecification": {"TrainingImage": None}},
            "Validation",
            "exactly one of TrainingImage and AlgorithmName",
        ),
        (
            {"AlgorithmSpecification": {"TrainingImage": "python:3.12"}},
            "Validation",
            'Using non-ECR image "python:3.12" without Vpc',
        ),
        (
            {"ResourceConfig": {"InstanceType": "ml.no.such"}},
            "Validation",
            "Value 'ml.no.such' at 'resourceConfig.instanceType' failed to satisfy",
        ),
        ({"ResourceConfig": {"InstanceCount": 0}}, "Validation", "InstanceCount is"),
        (
            {"ResourceConfig": {"InstanceCount": MOST_INSTANCES + 1}},
            "NotImpl",
            f"more than {MOST_INSTANCES} instances",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 28 * 24 * 3600 + 1}},
            "Validation",
            "28 days",
        ),
        (
            {"StoppingCondition": {"MaxWaitTimeInSeconds": 700}},
            "Validation",
            "only supported when EnableManagedSpotTraining is set to true",
        ),
        ({"EnableManagedSpotTraining": True}, "Validation", "must be present"),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxWaitTimeInSeconds": 599},
            },
            "Validation",
            "equal to MaxRuntimeInSeconds: 599 against 600",
        ),
        (
            {"HyperParameters": {"a": "1\n2"}},
            "Validation",
            "at 'hyperParameters.a.value' failed to satisfy constraint: Member must "
            "satisfy regular expression pattern: .*",
        ),
        ({"HyperParameters": {"a": "x" * 2501}}, "Validation", "equal to 2500"),
        ({"HyperParameters": {f"k{n}": "1" for n in range(101)}}, "Validation", "100"),
        ({"TrainingJobName": "a_b"}, "Validation", "regular expression pattern"),
        (
            {"InputDataConfig": [channel("code", "s3://course-on-this-machine/b")]},
            "Validation",
            "2 channels are called code",
        ),
        (
            {"InputDataConfig": [channel("m", "s3://b/m", S3DataType="ManifestFile")]},
            "NotImpl",
            PLAYED,
        ),
        (
            {"AlgorithmSpecification": {"TrainingInputMode": "Pipe"}},
            "NotImpl",
            "the input mode Pipe",
        ),
        (
            {"AlgorithmSpecification": {"ContainerEntrypoint": None}},
            "NotImpl",
            "sagemaker_program",
        ),
        (
            {
                "CheckpointConfig": {
                    "S3Uri": "s3://course-on-this-machine/c",
                    "LocalPath": "/opt/ml/../../etc",
                }
            },
            "NotImpl",
            "only below /opt/ml",
        ),
    ],
)
def test_what_aws_refuses_is_refused(jobs, changes, code, text) -> None:
    request = jobs.request(WRITES, **changes)
    with pytest.raises(ClientError) as caught:
        jobs.client.create_training_job(**request)
    error = caught.value.response["Error"]
    assert error["Code"].startswith(code)
    assert text in error["Message"]
    assert request["TrainingJobName"] not in TRAINING_JOBS


def test_a_name_is_taken_until_its_job_is_deleted(jobs) -> None:
    job = jobs.start(WAITS)
    request = jobs.request(WRITES, TrainingJobName=job.name)
    with pytest.raises(ClientError, match="names must be unique") as caught:
        jobs.client.create_training_job(**request)
    assert caught.value.response["Error"]["Code"] == "ResourceInUse"
    with pytest.raises(ClientError, match="stop it first"):
        jobs.client.delete_training_job(TrainingJobName=job.name)
    job.stop()
    assert job.wait(30)
    jobs.client.delete_training_job(TrainingJobName=job.name)
    with pytest.raises(ClientError, match="Requested resource not found"):
        jobs.describe(job.name)
    jobs.client.create_training_job(**request)


def test_quotas_of_jobs_are_rehearsed(jobs, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_QUOTAS", "ml.g5.xlarge=0,ml.m5.xlarge=2")
    for kind, count, spot in (
        ("ml.g5.xlarge", 1, False),
        ("ml.m5.xlarge", 3, False),
        ("ml.g5.xlarge", 1, True),
    ):
        request = jobs.request(
            WRITES, ResourceConfig={"InstanceType": kind, "InstanceCount": count}
        )
        if spot:
            request["EnableManagedSpotTraining"] = True
            request["StoppingCondition"]["MaxWaitTimeInSeconds"] = 600
        with pytest.raises(ClientError) as caught:
            jobs.client.create_training_job(**request)
        use = "spot training job" if spot else "training job"
        message = caught.value.response["Error"]["Message"]
        assert f"'{kind} for {use} usage'" in message
        assert caught.value.response["Error"]["Code"] == "ResourceLimitExceeded"


def test_what_runs_counts_against_a_quota_until_it_has_ended(jobs, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_QUOTAS", "ml.c5.xlarge=3")
    machines = {"InstanceType": "ml.c5.xlarge", "InstanceCount": 2}
    job = jobs.start(WAITS, ResourceConfig=machines)
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxWaitTimeInSeconds": 600},
    }
    jobs.run(WRITES, ResourceConfig=machines, **spot)  # which has a quota of its own
    with pytest.raises(ClientError) as caught:
        jobs.start(WRITES, ResourceConfig=machines)
    message = caught.value.response["Error"]["Message"]
    assert "current utilization of 2 Instances and a request delta of 2" in message
    job.stop()
    assert job.wait(30)
    jobs.run(WRITES, ResourceConfig=machines)


def test_jobs_are_listed_by_name_time_and_state(jobs) -> None:
    mark = f"list{time.time_ns()}"
    before = datetime.datetime.now(datetime.UTC)
    for number, script in enumerate((WRITES, "raise SystemExit(1)", WRITES)):
        jobs.run(script, TrainingJobName=f"{mark}-{number}")

    def listed(**given: Any) -> list[str]:
        pages = jobs.client.get_paginator("list_training_jobs")
        found = pages.paginate(NameContains=mark, **given)
        names = [one for page in found for one in page["TrainingJobSummaries"]]
        return [one["TrainingJobName"].partition("-")[2] for one in names]

    assert listed() == ["2", "1", "0"]
    for text, count in ((mark[2:], 3), (f"{mark}-1", 1), (f"no{mark}", 0)):
        found = jobs.client.list_training_jobs(NameContains=text)
        assert len(found["TrainingJobSummaries"]) == count
    assert listed(SortOrder="Ascending") == ["0", "1", "2"]
    assert listed(SortBy="Name") == ["2", "1", "0"]
    assert listed(StatusEquals="Failed") == ["1"]
    assert listed(PaginationConfig={"PageSize": 2}) == ["2", "1", "0"]
    assert listed(CreationTimeBefore=before) == []
    assert listed(CreationTimeAfter=before) == ["2", "1", "0"]
    assert listed(WarmPoolStatusEquals="Available") == []
    found = jobs.client.search(Resource="TrainingJob")["Results"]
    names = {one["TrainingJob"]["TrainingJobName"] for one in found}
    assert f"{mark}-1" in names


def test_an_update_is_not_played_and_tags_are(jobs) -> None:
    request = jobs.request(WRITES, Tags=[{"Key": "course", "Value": "1"}])
    arn = jobs.client.create_training_job(**request)["TrainingJobArn"]
    assert jobs.client.list_tags(ResourceArn=arn)["Tags"] == request["Tags"]
    with pytest.raises(ClientError, match=PLAYED):
        jobs.client.update_training_job(TrainingJobName=request["TrainingJobName"])


def test_the_second_contract_gives_arguments_and_variables(jobs) -> None:
    script = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]))
open(os.environ["SM_MODEL_DIR"] + "/m", "w").write("m")
"""
    data = jobs.put({"a.csv": "x"})
    source = jobs.put({"sourcedir.tar.gz": packed({"train.py": script, "more.py": ""})})
    given = {
        "sagemaker_program": json.dumps("train.py"),
        "sagemaker_submit_directory": json.dumps(f"{source}/sourcedir.tar.gz"),
        "sagemaker_container_log_level": "20",
        "epochs": "3",
        "flag": "true",
        "name": json.dumps('it\'s a "name"'),
        "bare": "not json",
        "list": "[1, 2]",
    }
    specification = {"ContainerEntrypoint": None}
    found = jobs.run(
        HyperParameters=given,
        AlgorithmSpecification=specification,
        InputDataConfig=[channel("train", data)],
    )
    assert found["TrainingJobStatus"] == "Completed", found.get("FailureReason")
    line = next(one for one in jobs.log(found["TrainingJobName"]) if one[0] == "[")
    arguments, folder, environment = json.loads(line)
    assert arguments == [
        *("train.py", "--bare", "not json", "--epochs", "3", "--flag", "True"),
        *("--list", "[1, 2]", "--name", 'it\'s a "name"'),
    ]
    assert folder.endswith("/opt/ml/code")
    assert json.loads(environment["SM_HPS"])["name"] == 'it\'s a "name"'
    assert environment["SM_HP_EPOCHS"] == "3"
    assert environment["SM_HP_FLAG"] == "true"
    assert environment["SM_CHANNEL_TRAIN"].endswith("/opt/ml/input/data/train")
    assert environment["SM_NUM_GPUS"].isdecimal()
    assert jobs.artifact(found) == {"m": b"m"}


@pytest.mark.parametrize(
    "files, address, reason",
    [
        ({"other.py": ""}, "sourcedir.tar.gz", "train.py is not in s3://"),
        ({"train.py": ""}, "missing.tar.gz", "An error occurred (404) when calling"),
        ({"../train.py": ""}, "sourcedir.tar.gz", "cannot be unpacked"),
        (
            {"train.py": "raise ValueError('no rows')"},
            "sourcedir.tar.gz",
            'ExecuteUserScriptError:\nExitCode 1\nErrorMessage "Traceback',
        ),
        ({"train.py": "bytearray(1 << 60)"}, "sourcedir.tar.gz", "MemoryError"),
        (
            {"train.py": "", "requirements.txt": "no-such-package-at-all>=1\n"},
            "sourcedir.tar.gz",
            "no-such-package-at-all>=1 is not installed",
        ),
    ],
)
def test_the_second_contract_says_what_is_wrong(jobs, files, address, reason) -> None:
    source = jobs.put({"sourcedir.tar.gz": packed(files)})
    found = jobs.run(
        HyperParameters={
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": f'"{source}/{address}"',
        },
        AlgorithmSpecification={"ContainerEntrypoint": None},
    )
    assert found["TrainingJobStatus"] == "Failed"
    assert found["FailureReason"].startswith("AlgorithmError: ")
    assert reason in found["FailureReason"]


def test_the_second_contract_stops_as_the_first_does(jobs) -> None:
    source = jobs.put({"sourcedir.tar.gz": packed({"train.py": WAITS})})
    job = jobs.start(
        HyperParameters={
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"{source}/sourcedir.tar.gz",
        },
        AlgorithmSpecification={"ContainerEntrypoint": None},
    )
    jobs.wait_for_line(job, "ready")
    job.stop()
    assert job.wait(30)
    assert jobs.artifact(jobs.describe(job.name)) == {"partial.txt": b"half"}
    assert "asked to stop" in jobs.log(job.name)


METRICS = """
print("epoch 1 loss: 0.5")
print("epoch 2 loss: 2.5e-05 and 1e3")
print("accuracy=nan; words=many")
"""


def test_metrics_are_what_the_patterns_capture(jobs, aws) -> None:
    patterns = {
        "loss": r"loss: ([0-9.e+-]+)",
        "cut": r"loss: ([0-9.]+)",
        "epoch": r"epoch (\d+)",
        "groupless": r"loss: [0-9.]+",
        "nothing": r"no such line (\d+)",
        "nan": r"accuracy=(\w+)",
        "words": r"words=(\w+)",
        "broken": r"loss: ([0-9.",
        "optional": r"epoch( \d+ \d+)?",
        "java": r"loss: (?<value>[0-9.e+-]+)",
    }
    definitions = [{"Name": key, "Regex": text} for key, text in patterns.items()]
    specification = {"MetricDefinitions": definitions}
    found = jobs.run(METRICS, AlgorithmSpecification=specification)
    assert found["TrainingJobStatus"] == "Completed"
    final = {one["MetricName"]: one["Value"] for one in found["FinalMetricDataList"]}
    assert final == pytest.approx(
        {"loss": 2.5e-05, "cut": 2.5, "epoch": 2.0, "java": 2.5e-05}
    )
    assert found["AlgorithmSpecification"]["MetricDefinitions"] == definitions
    now = datetime.datetime.now(datetime.UTC)
    read = aws.session.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="loss",
        Dimensions=[{"Name": "TrainingJobName", "Value": found["TrainingJobName"]}],
        StartTime=now - datetime.timedelta(minutes=5),
        EndTime=now + datetime.timedelta(minutes=5),
        Period=3600,
        Statistics=["Maximum", "SampleCount"],
    )["Datapoints"]
    assert sum(one["SampleCount"] for one in read) == 2
    assert max(one["Maximum"] for one in read) == 0.5


def test_several_instances_have_disks_and_data_of_their_own(jobs) -> None:
    script = """
import json, os
config = json.load(open("/opt/ml/input/config/resourceconfig.json"))
assert config["hosts"] == ["algo-1", "algo-2"]
assert config["instance_groups"][0]["hosts"] == config["hosts"]
assert config["current_group_name"] == "homogeneousCluster"
host = config["current_host"]
print(host, sorted(os.listdir("/opt/ml/input/data/train")), flush=True)
for name in (host, "shared"):
    open(f"/opt/ml/model/{name}", "w").write(host)
"""
    data = jobs.put({f"{n}.csv": "x" for n in range(3)})
    sharded = channel("train", data, S3DataDistributionType="ShardedByS3Key")
    found = jobs.run(
        script, ResourceConfig={"InstanceCount": 2}, InputDataConfig=[sharded]
    )
    assert found["TrainingJobStatus"] == "Completed", found.get("FailureReason")
    assert sorted(jobs.log(found["TrainingJobName"])) == [
        "algo-1 ['0.csv', '2.csv']",
        "algo-2 ['1.csv']",
    ]
    assert jobs.artifact(found) == {
        "algo-1": b"algo-1",
        "algo-2": b"algo-2",
        "shared": b"algo-1",
    }


def test_one_instance_that_fails_ends_the_others(jobs) -> None:
    script = """
import json, time
config = json.load(open("/opt/ml/input/config/resourceconfig.json"))
if config["current_host"] == "algo-2":
    raise SystemExit(4)
time.sleep(600)
"""
    found = jobs.run(script, ResourceConfig={"InstanceCount": 2})
    assert found["FailureReason"] == "AlgorithmError: , exit code: 4"


def test_a_spot_job_goes_on_from_its_checkpoint(jobs, monkeypatch) -> None:
    """What a script keeps in its folder only is gone, and checkpoints are not."""
    monkeypatch.setenv("COURSE_SPOT", "checkpoint")
    monkeypatch.setattr("utils.offline_aws.training_spot.CAPACITY_WAIT", 0.1)
    monkeypatch.setattr("utils.offline_aws.training_jobs.SYNC_INTERVAL", 0.1)
    script = """
import os, pathlib, time
saved = pathlib.Path("/opt/ml/checkpoints/step.txt")
scratch = pathlib.Path("/opt/ml/model/scratch.txt")
step = int(saved.read_text()) if saved.exists() else 0
print(f"begins at {step}, scratch {scratch.exists()}", flush=True)
scratch.write_text(str(step))
if step == 0:
    saved.write_text("7")
    time.sleep(600)
pathlib.Path("/opt/ml/model/end.txt").write_text(f"from {step}")
"""
    place = f"s3://course-on-this-machine/spot-{time.time_ns()}"
    found = jobs.run(
        script,
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxWaitTimeInSeconds": 3600},
        CheckpointConfig={"S3Uri": place},
    )
    assert found["TrainingJobStatus"] == "Completed", found.get("FailureReason")
    assert states(found) == [*GOOD[:3], "Interrupted", *GOOD]
    log = jobs.log(found["TrainingJobName"])
    assert log == ["begins at 0, scratch False", "begins at 7, scratch False"]
    assert jobs.artifact(found)["end.txt"] == b"from 7"
    assert found["BillableTimeInSeconds"] <= found["TrainingTimeInSeconds"]
    assert jobs.read(f"{place}/step.txt") == b"7"


def test_an_interruption_costs_runtime_that_was_used(jobs, monkeypatch) -> None:
    """MaxRuntimeInSeconds counts all attempts together."""
    monkeypatch.setenv("COURSE_SPOT", "0.5")
    monkeypatch.setattr("utils.offline_aws.training_spot.CAPACITY_WAIT", 0.1)
    limits = {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 3600}
    job = jobs.start(WAITS, EnableManagedSpotTraining=True, StoppingCondition=limits)
    ends = time.monotonic() + LONG
    while states(job.description()).count("Training") < 2:
        assert time.monotonic() < ends
        time.sleep(0.02)
    job.request["StoppingCondition"]["MaxRuntimeInSeconds"] = 0.4
    assert job._due(0.0) == "MaxRuntimeExceeded"  # before it has run again at all
    assert job.wait(30)
    assert job.secondary == "MaxRuntimeExceeded"


# State → seconds in it; 85 s of them with a machine.
SPENT = [
    *(("Starting", 7), ("Downloading", 10), ("Training", 40), ("Interrupted", 100)),
    *(("Starting", 9), ("Downloading", 5), ("Training", 20), ("Stopping", 6)),
    ("Uploading", 4),
]


@pytest.mark.parametrize("spot", [False, True])
def test_billed_are_the_seconds_with_a_machine_and_less_of_spot_ones(
    jobs, spot
) -> None:
    request = jobs.request(EnableManagedSpotTraining=spot or None)
    job = JobStates(request, {})
    at = job.created
    job.transitions.clear()
    for state, seconds in SPENT:
        end = at + datetime.timedelta(seconds=seconds)
        job.transitions.append({"Status": state, "StartTime": at, "EndTime": end})
        at = end
    job.started = job.created
    job.move("Stopped", "Stopped")
    job.transitions[-2]["EndTime"] = at
    found = job.description()
    assert found["TrainingTimeInSeconds"] == 85
    # AWS names no share; that of a spot job is less, and not nothing.
    assert 0 < found["BillableTimeInSeconds"] <= 85
    assert (found["BillableTimeInSeconds"] < 85) == spot


def test_a_spot_job_waits_no_longer_than_it_may(jobs, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_SPOT", "0")
    monkeypatch.setattr("utils.offline_aws.training_spot.CAPACITY_WAIT", 1.0)
    limits = {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}
    found = jobs.run(WAITS, EnableManagedSpotTraining=True, StoppingCondition=limits)
    assert found["TrainingJobStatus"] == "Stopped"
    assert found["SecondaryStatus"] == "MaxWaitTimeExceeded"


@pytest.mark.parametrize(
    "text, found",
    [
        ("", []),
        ("5", [5.0]),
        ("0.5, checkpoint,3", [0.5, "checkpoint", 3.0]),
        ("soon", None),
        ("-1", None),
    ],
)
def test_what_course_spot_may_hold(monkeypatch, text, found) -> None:
    monkeypatch.setenv("COURSE_SPOT", text)
    if found is None:
        with pytest.raises(AwsFault, match=f"COURSE_SPOT holds '{text}': expected"):
            read_interruptions()
    else:
        assert read_interruptions() == found


def test_a_supervisor_that_is_killed_is_a_machine_that_is_gone(jobs) -> None:
    job = jobs.start(WAITS + "# no more\n")
    jobs.wait_for_line(job, "ready")
    os.kill(job._processes[0].process.pid, signal.SIGKILL)
    assert job.wait(30)
    assert job.status == "Failed"
    assert "exit code: 137" in job.failure_reason
