"""Requests for jobs, tuning jobs and pipelines, as small as SageMaker takes them."""

from __future__ import annotations

import contextlib
from typing import Any

import boto3

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:2"


def machine(count: int = 1, **more: Any) -> dict[str, Any]:
    """Return the machines of a job."""
    return {
        "InstanceType": "ml.g5.2xlarge",
        "InstanceCount": count,
        "VolumeSizeInGB": 30,
        **more,
    }


def training(aws: Any, name: str, **more: Any) -> dict[str, Any]:
    """Return the request for a training job."""
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        "RoleArn": aws.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{aws.bucket}/{name}-out"},
        "ResourceConfig": machine(),
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        **more,
    }


def tuning(aws: Any, name: str) -> dict[str, Any]:
    """Return the request for a tuning job."""
    job = training(aws, name)
    job.pop("TrainingJobName")
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "ResourceLimits": {"MaxParallelTrainingJobs": 2},
        },
        "TrainingJobDefinition": job,
    }


def processing(aws: Any, name: str) -> dict[str, Any]:
    """Return the request for a processing job."""
    return {
        "ProcessingJobName": name,
        "ProcessingResources": {"ClusterConfig": machine()},
        "AppSpecification": {"ImageUri": IMAGE},
        "RoleArn": aws.role,
    }


def transform(aws: Any, name: str) -> dict[str, Any]:
    """Return the request for a transform job."""
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://a/b"}}
    return {
        "TransformJobName": name,
        "ModelName": "m",
        "TransformInput": {"DataSource": source},
        "TransformOutput": {"S3OutputPath": f"s3://{aws.bucket}/{name}"},
        "TransformResources": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 1},
    }


def pipeline(aws: Any, name: str) -> dict[str, Any]:
    """Return the request for a pipeline."""
    return {"PipelineName": name, "PipelineDefinition": "{}", "RoleArn": aws.role}


MAKERS = {
    "TrainingJob": ("create_training_job", training),
    "HyperParameterTuningJob": ("create_hyper_parameter_tuning_job", tuning),
    "ProcessingJob": ("create_processing_job", processing),
    "TransformJob": ("create_transform_job", transform),
    "Pipeline": ("create_pipeline", pipeline),
}


def make(aws: Any, operation: str, name: str, **more: Any) -> Any:
    """Create a job or a pipeline, as the watched session does."""
    method, request = MAKERS[operation]
    return getattr(aws.session.client("sagemaker"), method)(**request(aws, name) | more)


# --- what SageMaker itself would write ------------------------------------------------

GROUP = "/aws/sagemaker/TrainingJobs"


def log(aws: Any, stream: str) -> None:
    """Let a training job log."""
    logs = boto3.Session(region_name=aws.region).client("logs")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=GROUP)
    logs.create_log_stream(logGroupName=GROUP, logStreamName=stream)


def streams(aws: Any) -> list[str]:
    """Return the log streams of training jobs."""
    logs = boto3.Session(region_name=aws.region).client("logs")
    found = logs.describe_log_streams(logGroupName=GROUP)["logStreams"]
    return [one["logStreamName"] for one in found]


def keys(aws: Any) -> list[str]:
    """Return the keys of all objects in the bucket."""
    s3 = boto3.Session(region_name=aws.region).client("s3")
    found = s3.list_objects_v2(Bucket=aws.bucket).get("Contents", [])
    return [one["Key"] for one in found]
