"""Processing jobs that run: inputs, command, outputs, log; and how they end.

It takes about 10 seconds.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.endpoints import LONG
from support.processing import PLACE, lines_of, request, source
from utils.offline_aws import processing_jobs
from utils.offline_aws.processing_jobs import PROCESSING_JOBS
from utils.offline_aws.training_process import STOP_GRACE


@pytest.fixture(scope="module")
def client(aws) -> Any:
    s3 = aws.session.client("s3")
    for key in ("rows/a.txt", "rows/deep/b.txt"):
        s3.put_object(Bucket=aws.bucket, Key=f"in/{key}", Body=key.encode())
    return aws.session.client("sagemaker")


def run(client: Any, request: dict) -> dict:
    client.create_processing_job(**request)
    return wait(client, request["ProcessingJobName"])


def wait(client: Any, name: str, *states: str) -> dict:
    states = states or ("Completed", "Failed", "Stopped")
    ends = time.monotonic() + LONG
    while time.monotonic() < ends:
        found = client.describe_processing_job(ProcessingJobName=name)
        if found["ProcessingJobStatus"] in states:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def stored(aws: Any, name: str) -> dict[str, str]:
    s3 = aws.session.client("s3")
    found = s3.list_objects_v2(Bucket=aws.bucket, Prefix=f"out/{name}/")
    return {
        one["Key"].removeprefix(f"out/{name}/"): s3.get_object(
            Bucket=aws.bucket, Key=one["Key"]
        )["Body"]
        .read()
        .decode()
        for one in found.get("Contents", [])
    }


def test_a_job_reads_writes_and_is_heard(aws, client, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret-of-this-process")
    script = (
        f"set -e; env; cd {PLACE}; mkdir out/sub; cat input/a.txt input/deep/* > "
        'out/sub/all; echo "$1 $2" "$MINE" > out/words; cat ../config/resource*'
    )
    given = request(aws, "whole", script, "it's", "two words")
    given["Environment"] = {"MINE": "/opt/ml/mine"}
    found = run(client, given)
    assert found["ProcessingJobStatus"] == "Completed"
    assert found["ProcessingEndTime"] >= found["ProcessingStartTime"]
    assert found["Environment"] == {"MINE": "/opt/ml/mine"}
    assert found["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 1
    out = stored(aws, "whole")
    assert out["sub/all"] == "rows/a.txtrows/deep/b.txt"
    assert out["words"].startswith("it's two words /") and "ml/mine" in out["words"]
    log = "\n".join(lines_of(aws, "whole"))
    assert '"current_host": "algo-1"' in log
    assert "secret-of-this-process" not in log and "AWS_SECRET" not in log


# Script → status, and what is said of it.
ENDS = {
    "fails": ("exit 3", "Failed", "AlgorithmError", "exit code: 3"),
    "says why": (
        "mkdir -p /opt/ml/output; echo No rows. > /opt/ml/output/message; exit 1",
        "Failed",
        "No rows.",
        "",
    ),
    "no such command": ("no-such-command", "Failed", "exit code: 127", ""),
}


@pytest.mark.parametrize("kind", ENDS)
def test_how_a_job_ends(aws, client, kind) -> None:
    script, status, *said = ENDS[kind]
    name = kind.replace(" ", "-")
    written = f"echo half > {PLACE}/out/half; {script}"
    found = run(client, request(aws, name, written))
    assert found["ProcessingJobStatus"] == status
    told = found.get("FailureReason", "") + found.get("ExitMessage", "")
    assert all(one in told for one in said)
    assert stored(aws, name) == {}


def test_a_job_that_takes_too_long_is_asked_to_end(aws, client) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo begun; while :; do sleep 0.1; done"
    limit = {"MaxRuntimeInSeconds": 1}
    found = run(client, request(aws, "too-long", script, StoppingCondition=limit))
    assert found["ProcessingJobStatus"] == "Stopped" and "FailureReason" not in found
    log = lines_of(aws, "too-long")  # the shell may tell of its child between the two
    assert (log[0], log[-1]) == ("begun", "asked")
    ran = found["ProcessingEndTime"] - found["ProcessingStartTime"]
    assert 1 <= ran.total_seconds() < STOP_GRACE


def test_scripts_find_what_they_name_and_data_stay_as_they_are(aws, client) -> None:
    s3 = aws.session.client("s3")
    script = f"cat {PLACE}/input/a.txt; cat {PLACE}/data/other.sh > {PLACE}/out/same"
    s3.put_object(Bucket=aws.bucket, Key="code/run.sh", Body=script.encode())
    s3.put_object(Bucket=aws.bucket, Key="data/other.sh", Body=script.encode())
    given = request(aws, "scripts", "")
    given["AppSpecification"]["ContainerEntrypoint"] = [
        *("/bin/sh", "-c", f"cat {PLACE}/../config/processing*; . {PLACE}/code/run.sh")
    ]
    for name in ("code", "data"):
        given["ProcessingInputs"].append(source(name, f"s3://{aws.bucket}/{name}"))
    found = run(client, given)
    assert found["ProcessingJobStatus"] == "Completed", lines_of(aws, "scripts")
    line = lines_of(aws, "scripts")[0]
    assert line.endswith("rows/a.txt")
    assert stored(aws, "scripts")["same"] == script
    told = json.loads(line.removesuffix("rows/a.txt"))["ProcessingInputs"]
    place = told[0]["S3Input"]["LocalPath"]
    assert place.endswith("/algo-1/opt/ml/processing/input")
    assert found["ProcessingInputs"][0]["S3Input"]["LocalPath"] == f"{PLACE}/input"


def test_a_stop_while_a_job_is_being_made_is_not_lost(aws, client, monkeypatch) -> None:
    other = aws.session.client("sagemaker")
    stops: list[threading.Thread] = []

    class Made(processing_jobs.ProcessingJob):
        def __init__(self, *given: Any):
            stop = threading.Thread(
                target=other.stop_processing_job,
                kwargs={"ProcessingJobName": "early"},
            )
            stops.append(stop)
            stop.start()
            time.sleep(0.3)  # moto has a record already, and there is no job yet
            super().__init__(*given)

    monkeypatch.setattr(processing_jobs, "ProcessingJob", Made)
    client.create_processing_job(**request(aws, "early", "sleep 600"))
    stops[0].join(LONG)
    assert wait(client, "early")["ProcessingJobStatus"] == "Stopped"


def test_a_stop_that_comes_too_late_changes_nothing(aws, client) -> None:
    run(client, request(aws, "late", "true"))
    assert not PROCESSING_JOBS["late"].stop()
    found = client.describe_processing_job(ProcessingJobName="late")
    assert found["ProcessingJobStatus"] == "Completed"


def test_a_job_is_stopped(aws, client) -> None:
    given = request(aws, "stopped", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    client.create_processing_job(**given)
    client.stop_processing_job(ProcessingJobName="stopped")
    assert wait(client, "stopped")["ProcessingJobStatus"] == "Stopped"
    with pytest.raises(ClientError, match="is in status Stopped"):
        client.stop_processing_job(ProcessingJobName="stopped")


def test_only_a_job_that_has_ended_is_deleted(aws, client) -> None:
    given = request(aws, "deleted", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    client.create_processing_job(**given)
    with pytest.raises(ClientError, match="in status InProgress"):
        client.delete_processing_job(ProcessingJobName="deleted")
    client.stop_processing_job(ProcessingJobName="deleted")
    wait(client, "deleted")
    client.delete_processing_job(ProcessingJobName="deleted")
    names = client.list_processing_jobs(NameContains="deleted")
    assert names["ProcessingJobSummaries"] == []
    with pytest.raises(ClientError, match="ResourceNotFound"):
        client.delete_processing_job(ProcessingJobName="deleted")
    run(client, request(aws, "deleted", "true"))


def test_an_input_that_is_not_there_fails_the_job(aws, client) -> None:
    given = request(aws, "no-input", "true")
    place = given["ProcessingInputs"][0]["S3Input"]
    place["S3Uri"] = f"s3://{aws.bucket}/nothing"
    found = run(client, given)
    assert "No S3 objects found under S3 URL" in found["FailureReason"]
    assert "It is the input rows" in found["FailureReason"]


def change(path: str, value: Any) -> Any:
    def made(given: dict) -> dict:
        *way, last = path.split(".")
        there = given
        for key in way:
            there = there[int(key)] if key.isdecimal() else there[key]
        if value is None:
            del there[last]
        else:
            there[last] = value
        return given

    return made


FIRST_INPUT, FIRST_OUTPUT = "ProcessingInputs.0", "ProcessingOutputConfig.Outputs.0"
REFUSED = {
    "another registry": (
        change("AppSpecification.ImageUri", "docker.io/python:3"),
        "Using non-ECR image",
    ),
    "the image's own command": (
        change("AppSpecification.ContainerEntrypoint", None),
        "does not play",
    ),
    "two instances": (
        change("ProcessingResources.ClusterConfig.InstanceCount", 2),
        "several instances",
    ),
    "a folder elsewhere": (
        change(f"{FIRST_INPUT}.S3Input.LocalPath", "/etc"),
        "name a folder below /opt/ml/",
    ),
    "a way out": (
        change(f"{FIRST_OUTPUT}.S3Output.LocalPath", "/opt/ml/../../etc"),
        "name a folder below /opt/ml/",
    ),
    "a pipe": (change(f"{FIRST_INPUT}.S3Input.S3InputMode", "Pipe"), "does not play"),
    "outputs on the way": (
        change(f"{FIRST_OUTPUT}.S3Output.S3UploadMode", "Continuous"),
        "before they end",
    ),
    "a line end": (
        change("AppSpecification.ContainerEntrypoint", ["sh", "-c", "a\nb"]),
        "regular expression pattern",
    ),
    "no role": (change("RoleArn", "arn:aws:iam::123456789012:role/none"), "role"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_at_once(aws, client, kind) -> None:
    spoil, message = REFUSED[kind]
    given = spoil(copy.deepcopy(request(aws, "refused", "true")))
    with pytest.raises(ClientError, match=message):
        client.create_processing_job(**given)


def test_a_name_is_taken_once(aws, client) -> None:
    run(client, request(aws, "twice", "true"))
    with pytest.raises(ClientError, match="There is a processing job twice already"):
        client.create_processing_job(**request(aws, "twice", "true"))
    for text, names in (("wic", ["twice"]), ("wicx", [])):
        listed = client.list_processing_jobs(NameContains=text)
        found = [one["ProcessingJobName"] for one in listed["ProcessingJobSummaries"]]
        assert found == names


def test_pipelines_are_refused_for_nothing_would_run(aws, client) -> None:
    definition = '{"Version": "2020-12-01", "Steps": []}'
    token = "a" * 32
    for call, given in {
        client.create_pipeline: {"RoleArn": aws.role, "PipelineDefinition": definition},
        client.start_pipeline_execution: {},
    }.items():
        with pytest.raises(ClientError, match="LocalPipelineSession") as failure:
            call(PipelineName="one", ClientRequestToken=token, **given)
        assert failure.value.response["Error"]["Code"] == "NotImplemented"
    assert client.list_pipelines()["PipelineSummaries"] == []


def test_what_runs_ends_with_the_offline_aws(aws, client) -> None:
    """The fixture `aws` looks whether a process is left."""
    client.create_processing_job(**request(aws, "left", "sleep 600"))
    ends = time.monotonic() + LONG
    while time.monotonic() < ends:
        found = client.describe_processing_job(ProcessingJobName="left")
        if "ProcessingStartTime" in found:
            return
        time.sleep(0.05)
    raise AssertionError(found)
