"""moto's record of a training job: for its tags, and for what Search finds."""

from __future__ import annotations

import copy
from typing import Any

from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION
from utils.offline_aws.training_states import JobStates


def register(job: JobStates) -> None:
    """Note a job where moto looks for tags and for what Search finds."""
    given = copy.deepcopy(job.request)
    _backend().create_training_job(
        training_job_name=job.name,
        hyper_parameters=given.get("HyperParameters") or {},
        algorithm_specification=given["AlgorithmSpecification"],
        role_arn=given["RoleArn"],
        input_data_config=given.get("InputDataConfig") or [],
        output_data_config=given["OutputDataConfig"],
        resource_config=given["ResourceConfig"],
        vpc_config=given.get("VpcConfig"),
        stopping_condition=given["StoppingCondition"],
        tags=given.get("Tags") or [],
        enable_network_isolation=bool(given.get("EnableNetworkIsolation")),
        enable_inter_container_traffic_encryption=bool(
            given.get("EnableInterContainerTrafficEncryption")
        ),
        enable_managed_spot_training=job.spot,
        checkpoint_config=given.get("CheckpointConfig"),
        debug_hook_config=given.get("DebugHookConfig"),
        debug_rule_configurations=given.get("DebugRuleConfigurations"),
        tensor_board_output_config=given.get("TensorBoardOutputConfig"),
        experiment_config=given.get("ExperimentConfig"),
    )


def forget(job: JobStates) -> None:
    """Remove the record of a job."""
    _backend().training_jobs.pop(job.name, None)


def _backend() -> Any:
    """Return moto's SageMaker of the account."""
    from moto.sagemaker.models import sagemaker_backends

    return sagemaker_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]
