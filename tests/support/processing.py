"""What the tests of processing jobs share: requests, and what a job logs."""

from __future__ import annotations

from typing import Any

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.9.0-gpu-py312"
PLACE = "/opt/ml/processing"
GROUP = "/aws/sagemaker/ProcessingJobs"


def source(name: str, address: str) -> dict[str, Any]:
    """Return an input that is fetched from S3 into a folder of its name."""
    found = {"S3Uri": address, "LocalPath": f"{PLACE}/{name}"}
    found |= {"S3DataType": "S3Prefix", "S3InputMode": "File"}
    return {"InputName": name, "S3Input": found}


def request(aws: Any, name: str, script: str, *more: str, **given: Any) -> dict:
    """Return a request for a job that runs a line of the shell."""
    rows = source("rows", f"s3://{aws.bucket}/in/rows")
    rows["S3Input"]["LocalPath"] = f"{PLACE}/input"
    target = {"S3Uri": f"s3://{aws.bucket}/out/{name}", "LocalPath": f"{PLACE}/out"}
    return {
        "ProcessingJobName": name,
        "RoleArn": aws.role,
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 1,
                "InstanceType": "ml.m5.xlarge",
                "VolumeSizeInGB": 10,
            }
        },
        "AppSpecification": {
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["/bin/sh", "-c", script, "name"],
            **({"ContainerArguments": list(more)} if more else {}),
        },
        "ProcessingInputs": [rows],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "out",
                    "S3Output": {**target, "S3UploadMode": "EndOfJob"},
                }
            ]
        },
        **given,
    }


def lines_of(aws: Any, name: str) -> list[str]:
    """Return what a job has logged so far; there may be no group yet."""
    client = aws.session.client("logs")
    try:
        found = client.filter_log_events(
            logGroupName=GROUP, logStreamNamePrefix=f"{name}/"
        )
    except client.exceptions.ResourceNotFoundException:
        return []
    return [event["message"] for event in found["events"]]
