"""What CreateTrainingJob refuses, before a job begins.

Lengths, patterns, instance types and the like are held to botocore's model by
`parameters`. Here is what the model does not say. That an image or data are missing is
seen later, by the job, which fails. Texts are AWS's where a thread is named, else ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from utils.offline_aws.errors import invalid, not_played
from utils.offline_aws.images import ECR_ADDRESS, not_of_ecr
from utils.offline_aws.job_thread import DEFAULT_RUNTIME
from utils.offline_aws.quotas import check_instances
from utils.offline_aws.references import check_role
from utils.offline_aws.training_contract import has_program
from utils.offline_aws.training_files import OPT_ML
from utils.offline_aws.training_jobs import TRAINING_JOBS, require_free_name
from utils.offline_aws.training_spot import read_interruptions

LONGEST_RUNTIME = 28 * 24 * 3600  # seconds; botocore's model of StoppingCondition
NEEDED = ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition")
MOST_INSTANCES = 8  # processes on this machine
S3 = "s3://"


def check_training_job(parameters: dict[str, Any]) -> None:
    """Refuse a job that AWS refuses, and one that is not played.

    Args:
        parameters: of CreateTrainingJob, held to its model already.

    Raises:
        AwsFault: ValidationException, ResourceInUse, ResourceLimitExceeded, or
            NotImplemented.
    """
    require_free_name(parameters["TrainingJobName"])
    for what in _unplayed_kinds(parameters):
        raise not_played(what)
    for name in NEEDED:
        if not parameters.get(name):
            raise invalid(
                f"{name} is missing: a training job needs {', '.join(NEEDED)}."
            )
    _check_algorithm(parameters)
    check_role(parameters["RoleArn"])
    _check_resources(parameters)
    _check_stopping(parameters)
    _check_addresses(parameters)
    for what in _unplayed(parameters):
        raise not_played(what)
    read_interruptions()
    _check_quotas(parameters)


def _unplayed_kinds(parameters: dict[str, Any]) -> Iterator[str]:
    """Yield which kind of job this is, if it is none that is played."""
    if parameters.get("ServerlessJobConfig"):
        yield "serverless training jobs"
    if parameters.get("ModelPackageConfig"):
        yield "training jobs that make a model package"
    if parameters.get("TensorBoardOutputConfig"):
        yield "TensorBoardOutputConfig: it would store nothing"


def _check_algorithm(parameters: dict[str, Any]) -> None:
    """Refuse a job without an image, or whose image has an impossible address."""
    given = parameters["AlgorithmSpecification"]
    image, algorithm = given.get("TrainingImage"), given.get("AlgorithmName")
    if bool(image) == bool(algorithm):
        raise invalid(
            "Give exactly one of TrainingImage and AlgorithmName in "
            "AlgorithmSpecification."
        )
    if algorithm:
        raise not_played("algorithms of the marketplace")
    access = (given.get("TrainingImageConfig") or {}).get(
        "TrainingRepositoryAccessMode"
    )
    if not ECR_ADDRESS.fullmatch(image):
        if access == "Vpc":
            raise not_played("images of other registries")
        raise not_of_ecr(image)


def _check_resources(parameters: dict[str, Any]) -> None:
    """Refuse resources that name no instance."""
    given = parameters["ResourceConfig"]
    for name in ("InstanceGroups", "InstancePreferences", "TrainingPlanArn"):
        if given.get(name):
            raise not_played(f"{name} of training jobs")
    if given.get("KeepAlivePeriodInSeconds"):
        raise not_played("warm pools (KeepAlivePeriodInSeconds)")
    if (given.get("InstanceCount") or 0) > MOST_INSTANCES:
        raise not_played(f"more than {MOST_INSTANCES} instances of a training job")
    for name in ("InstanceType", "InstanceCount"):
        if not given.get(name):
            raise invalid(
                f"ResourceConfig.{name} is missing: give 1 or more instances."
            )


def _check_stopping(parameters: dict[str, Any]) -> None:
    """Refuse limits that contradict one another.

    Texts: Kenza-AI/sagify, issue 111, for MaxWaitTimeInSeconds without spot training.
    That it must not be shorter is in botocore's model; that sentence is ours.

    Raises:
        AwsFault: a ValidationException.
    """
    given = parameters["StoppingCondition"]
    runtime = given.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME)
    wait = given.get("MaxWaitTimeInSeconds")
    if runtime > LONGEST_RUNTIME:
        raise invalid(
            f"Invalid MaxRuntimeInSeconds. {runtime} is more than {LONGEST_RUNTIME}, "
            "which are 28 days."
        )
    spot = parameters.get("EnableManagedSpotTraining")
    if wait is not None and not spot:
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It is only supported when "
            "EnableManagedSpotTraining is set to true"
        )
    if spot and (wait is None or wait < runtime):
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or "
            f"equal to MaxRuntimeInSeconds: {wait} against {runtime}"
        )


def _check_addresses(parameters: dict[str, Any]) -> None:
    """Refuse channels with one name, and addresses that are none of S3."""
    channels = parameters.get("InputDataConfig") or []
    names = [one["ChannelName"] for one in channels]
    for name, count in Counter(names).items():
        if count > 1:
            raise invalid(f"{count} channels are called {name}. Rename one of them.")
        if name in (".", ".."):
            raise invalid(f"A channel cannot be called {name!r}.")
    for channel in channels:
        kinds = [key for key, one in channel["DataSource"].items() if one]
        if len(kinds) != 1:
            raise invalid(
                f"Channel {channel['ChannelName']} has {len(kinds)} data sources: give "
                "exactly one, such as S3DataSource."
            )
    places = {"OutputDataConfig": parameters["OutputDataConfig"]["S3OutputPath"]}
    if checkpoints := parameters.get("CheckpointConfig"):
        places["CheckpointConfig"] = checkpoints["S3Uri"]
    for name, address in places.items():
        if not address.startswith(S3):
            raise invalid(f"{name}: {address} is no address s3://bucket/prefix.")


def _unplayed(parameters: dict[str, Any]) -> Iterator[str]:
    """Yield which part of a job is not played, if any."""
    specification = parameters["AlgorithmSpecification"]
    mode = specification["TrainingInputMode"]
    for channel in parameters.get("InputDataConfig") or []:
        name = channel["ChannelName"]
        source = channel["DataSource"].get("S3DataSource")
        if source is None:
            yield f"channel {name}: data that do not come from S3"
            continue
        if source["S3DataType"] != "S3Prefix":
            yield f"channel {name}: S3DataType {source['S3DataType']}, only S3Prefix"
        if not source["S3Uri"].startswith(S3):
            yield f"channel {name}: an address other than s3://bucket/prefix"
        if (channel.get("InputMode") or mode) == "Pipe":
            yield f"channel {name}: the input mode Pipe"
        for key, plain in (("CompressionType", "None"), ("RecordWrapperType", "None")):
            if channel.get(key, plain) != plain:
                yield f"channel {name}: {key} {channel[key]}"
        if channel.get("ShuffleConfig"):
            yield f"channel {name}: ShuffleConfig"
    checkpoints = parameters.get("CheckpointConfig") or {}
    if place := checkpoints.get("LocalPath"):
        path = PurePosixPath(place)
        if not path.is_relative_to(OPT_ML) or ".." in path.parts:
            yield f"checkpoints in {place}, only below {OPT_ML}"
    program = has_program(parameters)
    if not program and not specification.get("ContainerEntrypoint"):
        yield (
            "programs that are in the image: give ContainerEntrypoint, as ModelTrainer "
            "does, or the hyperparameters sagemaker_program and "
            "sagemaker_submit_directory"
        )
    # The toolkit leaves it to the program to find the other instances by their names,
    # which only AWS's network knows.
    if program and parameters["ResourceConfig"]["InstanceCount"] > 1:
        yield "several instances of a job without ContainerEntrypoint"


def _check_quotas(parameters: dict[str, Any]) -> None:
    """Refuse more instances than COURSE_QUOTAS allows."""
    spot = bool(parameters.get("EnableManagedSpotTraining"))
    used: Counter[str] = Counter()
    for job in list(TRAINING_JOBS.values()):
        if not job.ended and job.spot == spot:
            used[job.instance_type] += job.instances
    given = parameters["ResourceConfig"]
    wanted = Counter({given["InstanceType"]: given["InstanceCount"]})
    use = "spot training job" if spot else "training job"
    check_instances(used, wanted, use)
