"""What the tests of tuning jobs share: a script, its archive, requests."""

from __future__ import annotations

import time
import uuid
from typing import Any

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py312"
PROGRAM = "train.py"
PATTERN = r"loss=([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"
# Its loss is the distance of `point` from 1; `says` is how it is written.
SCRIPT = """
import argparse, json, os, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--point", type=float)
parser.add_argument("--kind", default="")
parser.add_argument("--says", default="loss={loss}")
parser.add_argument("--steps", type=int, default=1)
parser.add_argument("--pause", type=float, default=0)
parser.add_argument("--fails-from", type=float, default=1e9)
given = parser.parse_args()  # an argument that it does not know ends it
if given.point >= given.fails_from:
    Path(os.environ["SM_OUTPUT_DIR"], "failure").write_text("The point is too large.")
    sys.exit(3)
Path(os.environ["SM_MODEL_DIR"], "given.json").write_text(json.dumps(vars(given)))
for step in range(1, given.steps + 1):
    loss = abs(given.point - 1)
    print(given.says.format(loss=loss, step=step), flush=True)
    time.sleep(given.pause)
"""


def new_name() -> str:
    """Return a name that no tuning job has."""
    return f"Course-{uuid.uuid4().hex[:8]}"


def numbers(name: str, low: float, high: float, **more: str) -> dict[str, str]:
    """Return a range of numbers."""
    return {"Name": name, "MinValue": str(low), "MaxValue": str(high), **more}


def request(role: str, bucket: str, **changed: Any) -> dict[str, Any]:
    """Return the parameters of CreateHyperParameterTuningJob.

    Args:
        role: its ARN.
        bucket: where the sources lie, and results go to.
        changed: any of `strategy`, `ranges`, `jobs`, `at_once`, `goal`, `pattern`,
            `static`, `config` and `definition`, to be merged, and `top` for the rest.
    """
    ranges = changed.get("ranges") or {
        "ContinuousParameterRanges": [numbers("point", -1, 3)]
    }
    limits: dict[str, int] = {"MaxParallelTrainingJobs": changed.get("at_once", 2)}
    if (jobs := changed.get("jobs", 3)) is not None:
        limits["MaxNumberOfTrainingJobs"] = jobs
    config = {
        "Strategy": changed.get("strategy", "Random"),
        "RandomSeed": 1,
        "HyperParameterTuningJobObjective": {
            "Type": changed.get("goal", "Minimize"),
            "MetricName": "held-out:loss",
        },
        "ResourceLimits": limits,
        "ParameterRanges": ranges,
    }
    metric = {"Name": "held-out:loss", "Regex": changed.get("pattern", PATTERN)}
    definition = {
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [metric],
        },
        "RoleArn": role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{bucket}/tuned"},
        "ResourceConfig": {
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 10,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "StaticHyperParameters": {
            "sagemaker_program": PROGRAM,
            "sagemaker_submit_directory": f"s3://{bucket}/tuned/sourcedir.tar.gz",
            **changed.get("static", {}),
        },
    }
    return {
        "HyperParameterTuningJobName": changed.get("name") or new_name(),
        "HyperParameterTuningJobConfig": config | changed.get("config", {}),
        "TrainingJobDefinition": definition | changed.get("definition", {}),
        **changed.get("top", {}),
    }


def wait(client: Any, name: str, timeout: float = 60) -> dict[str, Any]:
    """Return the description of a tuning job that has ended."""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        said = client.describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=name
        )
        if said["HyperParameterTuningJobStatus"] not in ("InProgress", "Stopping"):
            return said
        time.sleep(0.1)
    raise TimeoutError(f"{name} is still {said['HyperParameterTuningJobStatus']}")


def jobs_of(client: Any, name: str, **more: Any) -> list[dict[str, Any]]:
    """Return the training jobs of a tuning job, in the order of their names."""
    listed = client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, **({"MaxResults": 100} | more)
    )
    return listed["TrainingJobSummaries"]
