"""Names and places of the offline AWS."""

from __future__ import annotations

import sys

OFFLINE_REGION = "us-east-1"
OFFLINE_ACCOUNT = "123456789012"
OFFLINE_BUCKET = "course-on-this-machine"
OFFLINE_ROLE = "course-sagemaker-execution"
OFFLINE_STOP_ROLE = "course-idle-stop"
LOG_GROUPS = "/aws/sagemaker/Endpoints/"  # SageMaker makes one for each endpoint
TRAINING_LOG_GROUP = "/aws/sagemaker/TrainingJobs"  # of all training jobs


def forget_sdk_clients() -> None:
    """Have the SageMaker SDK make new clients: those it keeps may point elsewhere."""
    module = sys.modules.get("sagemaker.core.utils.utils")
    if module is not None:
        module.SageMakerClient.reset()
