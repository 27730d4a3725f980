"""Outputs, checkpoints and logs of a run's jobs are deleted, and no neighbour's."""

from __future__ import annotations

import boto3
import pytest

from support.job_requests import GROUP, keys, log, make, streams
from utils.deployment import running, written
from utils.deployment.aws import DeploymentError


def test_outputs_checkpoints_and_logs_go_and_neighbours_stay(
    aws, service, watch
) -> None:
    s3 = boto3.Session(region_name=aws.region).client("s3")
    name, bucket = watch.name("a"), f"s3://{aws.bucket}"
    make(
        aws,
        "TrainingJob",
        name,
        OutputDataConfig={
            "S3OutputPath": f"{bucket}/models"
        },  # a folder of everybody's
        CheckpointConfig={"S3Uri": f"{bucket}/{name}/checkpoints"},
        TensorBoardOutputConfig={"S3OutputPath": f"{bucket}/{name}/board/"},
    )
    goes = [
        f"models/{name}/output/model.tar.gz",
        f"models/{name}/output/output.tar.gz",
        f"{name}/checkpoints/checkpoint-10/model.safetensors",
        f"{name}/board/{name}/events",
    ]
    stays = [f"models/{name}-2/output/model.tar.gz", f"{name}/checkpoints-2/x"]
    for key in (*goes, *stays):
        s3.put_object(Bucket=aws.bucket, Key=key, Body=b"x")
    for stream in (f"{name}/algo-1-1", f"{name}/algo-2-1", f"{name}-2/algo-1-1"):
        log(aws, stream)
    watch.teardown()
    assert keys(aws) == sorted(stays)
    assert streams(aws) == [f"{name}-2/algo-1-1"]
    for key in stays:
        s3.delete_object(Bucket=aws.bucket, Key=key)
    boto3.Session(region_name=aws.region).client("logs").delete_log_group(
        logGroupName=GROUP
    )


def test_a_place_that_is_not_the_runs_own_is_named_and_kept(
    aws, service, watch, said
) -> None:
    s3 = boto3.Session(region_name=aws.region).client("s3")
    place = {"Bucket": aws.bucket, "Key": "checkpoints/step-1"}
    s3.put_object(**place, Body=b"x")
    checkpoints = {"S3Uri": f"s3://{aws.bucket}/checkpoints"}
    make(aws, "TrainingJob", watch.name("a"), CheckpointConfig=checkpoints)
    watch.teardown()
    line = next(line for line in said if f"{checkpoints['S3Uri']}/." in line)
    assert watch.name("a") in line and "nothing there was deleted" in line
    assert keys(aws) == ["checkpoints/step-1"]
    s3.delete_object(**place)


def test_while_a_job_may_still_write_its_files_stay(aws, service, watch) -> None:
    name = watch.name("a")
    make(aws, "TrainingJob", name)
    s3 = boto3.Session(region_name=aws.region).client("s3")
    key = f"{name}-out/{name}/output/model.tar.gz"
    s3.put_object(Bucket=aws.bucket, Key=key, Body=b"x")
    service.refused["StopTrainingJob"] = ("AccessDeniedException", "no right")
    with pytest.raises(DeploymentError):
        watch.teardown()
    assert keys(aws) == [key]
    service.refused.clear()
    watch.teardown()
    assert keys(aws) == []


@pytest.mark.parametrize(
    ("kind", "job", "expected"),
    [
        (
            running.PROCESSING,
            {
                "ProcessingOutputConfig": {
                    "Outputs": [{"S3Output": {"S3Uri": "s3://b/p/"}}, {"AppManaged": 1}]
                }
            },
            ["s3://b/p/"],
        ),
        (
            running.TUNING,
            {
                "TrainingJobDefinition": {"CheckpointConfig": {"S3Uri": "s3://b/c"}},
                "TrainingJobDefinitions": [{"CheckpointConfig": {"S3Uri": "s3://b/c"}}],
            },
            ["s3://b/c/"],
        ),
        (
            running.TRANSFORM,
            {"TransformOutput": {"S3OutputPath": "s3://b/t"}},
            ["s3://b/t/"],
        ),
        (running.PIPELINE, {}, []),
    ],
)
def test_places_of_a_job(kind, job, expected) -> None:
    assert written.of_job(kind, job) == expected
