"""What CreateHyperParameterTuningJob refuses, and what of it is not played.

Texts of AWS are cited with the thread in which people met them; the others are ours.
Default limits: "Resource Limits for Automatic Model Tuning" in SageMaker's guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from utils.offline_aws.errors import AwsFault, invalid, not_played
from utils.offline_aws.training_metrics import compiled
from utils.offline_aws.tuning_search import Range, combinations, ranges_of

MOST_JOBS = 750
MOST_JOBS_AT_ONCE = 10
MOST_HYPERPARAMETERS = 30
# "Hyperparameter tuning automatically sends an additional hyperparameter" of this name:
# "Define metrics and environment variables" in SageMaker's guide.
OBJECTIVE_PARAMETER = "_tuning_objective_metric"
PLAYED_STRATEGIES = ("Bayesian", "Random", "Grid")


def check_tuning_job(parameters: dict[str, Any]) -> None:
    """Refuse a tuning job that AWS would refuse, or that is not played.

    Args:
        parameters: of CreateHyperParameterTuningJob, which fit botocore's model.

    Raises:
        AwsFault: a ValidationException, ResourceLimitExceeded or NotImplemented.
    """
    for what in _unplayed(parameters):
        raise not_played(f"{what} of tuning jobs")
    config = parameters["HyperParameterTuningJobConfig"]
    definition = parameters.get("TrainingJobDefinition")
    if definition is None:
        raise invalid("TrainingJobDefinition is missing: say what each job runs.")
    _check_objective(config, definition)
    ranges = read_ranges(config)
    _check_names(ranges, definition)
    _check_limits(config, ranges)


def _unplayed(parameters: dict[str, Any]) -> Iterator[str]:
    config = parameters["HyperParameterTuningJobConfig"]
    if config["Strategy"] not in PLAYED_STRATEGIES:
        yield f"the strategy {config['Strategy']}"
    for name in ("TrainingJobDefinitions", "WarmStartConfig", "Autotune"):
        if parameters.get(name):
            yield name
    if (config.get("ParameterRanges") or {}).get("AutoParameters"):
        yield "AutoParameters"
    criteria = config.get("TuningJobCompletionCriteria") or {}
    convergence = criteria.get("ConvergenceDetected") or {}
    if convergence.get("CompleteOnConvergence") == "Enabled":
        yield "ConvergenceDetected"


def _check_objective(config: dict[str, Any], definition: dict[str, Any]) -> None:
    """Refuse an objective that no pattern finds.

    Text: aws/amazon-sagemaker-examples, issue 1207.
    """
    objective = config.get("HyperParameterTuningJobObjective")
    if objective is None:
        raise invalid("HyperParameterTuningJobObjective is missing.")
    metrics = definition["AlgorithmSpecification"].get("MetricDefinitions") or []
    patterns = {metric["Name"]: metric["Regex"] for metric in metrics}
    if objective["MetricName"] not in patterns:
        raise invalid(
            "A metric is required for this hyperparameter tuning job objective. "
            "Provide a metric in the metric definitions."
        )
    for name, pattern in patterns.items():
        if compiled(pattern) is None:
            raise invalid(
                f"The pattern {pattern!r} of the metric {name!r} is no regular "
                "expression, or one that Python cannot read."
            )


def read_ranges(config: dict[str, Any]) -> list[Range]:
    """Return the ranges of a tuning job's configuration.

    Raises:
        AwsFault: a ValidationException that names the wrong one.
    """
    try:
        return ranges_of(config.get("ParameterRanges") or {})
    except ValueError as error:
        raise invalid(str(error)) from error


def _check_names(ranges: list[Range], definition: dict[str, Any]) -> None:
    """Refuse a hyperparameter that is given twice, and too many or none of them."""
    if not ranges:
        raise invalid("ParameterRanges holds no range: name what is to be tuned.")
    if len(ranges) > MOST_HYPERPARAMETERS:
        raise _beyond("hyperparameters", MOST_HYPERPARAMETERS, len(ranges))
    names = [one.name for one in ranges]
    for name in names:
        if names.count(name) > 1:
            raise invalid(f"The hyperparameter {name!r} has more than one range.")
        if name in (definition.get("StaticHyperParameters") or {}):
            raise invalid(
                f"The hyperparameter {name!r} stands in StaticHyperParameters and in "
                "ParameterRanges: it is either kept or tuned."
            )


def _check_limits(config: dict[str, Any], ranges: list[Range]) -> None:
    """Refuse more jobs than are allowed, or than there are combinations.

    Text for too few combinations: aws/amazon-sagemaker-operator-for-k8s, issue 123.
    Rules of a grid: "How Hyperparameter Tuning Works" in SageMaker's guide: "Only
    categorical parameters are supported", and a number of jobs "should equal the total
    number of distinct categorical combinations possible".
    """
    at_once = config["ResourceLimits"]["MaxParallelTrainingJobs"]
    most, available = number_of_jobs(config, ranges), combinations(ranges)
    if at_once > MOST_JOBS_AT_ONCE:
        raise _beyond("training jobs at a time", MOST_JOBS_AT_ONCE, at_once)
    if most is None:
        raise invalid(
            "ResourceLimits names no MaxNumberOfTrainingJobs, and nothing else ends "
            "the tuning job: give it, MaxRuntimeInSeconds or "
            "TuningJobCompletionCriteria."
        )
    if most > MOST_JOBS:
        raise _beyond("training jobs", MOST_JOBS, most)
    if at_once > most:
        raise invalid(
            f"MaxParallelTrainingJobs is {at_once}, and MaxNumberOfTrainingJobs is "
            f"{most}: there cannot be more jobs at a time than in all."
        )
    if config["Strategy"] == "Grid":
        for one in ranges:
            if one.kind != "Categorical":
                raise invalid(
                    f"The range of {one.name!r} is {one.kind.lower()}: only "
                    "categorical parameters are supported when using the grid search "
                    "strategy."
                )
        if most != available:
            raise invalid(
                f"A grid search tries all {available} combinations: "
                f"MaxNumberOfTrainingJobs must be {available} or be left out, not "
                f"{most}."
            )
    elif most > available:
        raise invalid(
            "You don't have enough combinations of hyperparameter ranges. The total "
            "number of hyperparameter combinations for the provided ranges "
            f"[{float(available)}] must be equal or greater than the value of "
            f"MaxNumberOfJobs, [{most}]. Provide additional ranges."
        )


def number_of_jobs(config: dict[str, Any], ranges: list[Range]) -> int | None:
    """Return how many training jobs there are at most; None if nothing limits them."""
    limits = config["ResourceLimits"]
    given = limits.get("MaxNumberOfTrainingJobs")
    if given is not None:
        return given
    available = combinations(ranges)
    if config["Strategy"] == "Grid":
        return int(available) if available != float("inf") else MOST_JOBS
    if limits.get("MaxRuntimeInSeconds") or config.get("TuningJobCompletionCriteria"):
        return int(min(MOST_JOBS, available))
    return None


def _beyond(what: str, most: int, wanted: int) -> AwsFault:
    """Return the refusal of more than the default limits allow; the text is ours."""
    return AwsFault(
        400,
        "ResourceLimitExceeded",
        f"A hyperparameter tuning job may have {most} {what}, and {wanted} are asked "
        "for. Please use AWS Service Quotas to request an increase for this quota.",
    )
