"""Scaling of endpoints: what is registered, its alarms, and what it forbids.

Targets, policies and their alarms are played; that an alarm changes the number of
instances is not, as there is one container here whatever that number is. From where it
is known what AWS does:

- An update that changes the instance type of a scalable target, or removes its variant,
  fails: "Update endpoints that use auto scaling" in the developer guide. The text is
  ours.
- Deleting the endpoint deregisters its targets, "without notifying you": "Delete
  endpoints configured for auto scaling".
- Names of the alarms of target tracking: aws-controllers-k8s and public logs have
  TargetTracking-endpoint/NAME/variant/VARIANT-AlarmHigh-UUID. Periods and the lower
  limit are those that moto and public logs show: three minutes above the target, or
  fifteen below nine tenths of it.
- A policy without a target: "No scalable target registered for service namespace: …"
  (gruntwork-io and others).
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterable
from typing import Any

from utils.offline_aws.endpoints import ENDPOINTS, LocalEndpoint, Variant
from utils.offline_aws.errors import AwsFault, invalid, not_played
from utils.offline_aws.metrics import NAMESPACE
from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION
from utils.offline_aws.wrapping import wrap

MODULE = "moto.applicationautoscaling.models"
SERVICE, SAGEMAKER = "application-autoscaling", "sagemaker"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
RESOURCE = re.compile(r"endpoint/(?P<endpoint>[^/]+)/variant/(?P<variant>[^/]+)")
# the predefined metric of target tracking → CloudWatch's name for it
PREDEFINED = {"SageMakerVariantInvocationsPerInstance": "InvocationsPerInstance"}
HIGH_PERIODS, LOW_PERIODS, LOW_SHARE = 3, 15, 0.9


def check_target(parameters: dict) -> None:
    """Refuse a scalable target that there is not, or that is not played.

    Args:
        parameters: of RegisterScalableTarget.

    Raises:
        AwsFault: a ValidationException, or NotImplemented.
    """
    variant = _check_resource(parameters)
    if variant is None:
        return
    if _backend().targets.get(DIMENSION, {}).get(parameters["ResourceId"]) is None:
        for name in ("MinCapacity", "MaxCapacity"):
            if parameters.get(name) is None:
                raise invalid(f"{name} is required to register a new scalable target.")


def check_policy(parameters: dict) -> None:
    """Refuse a policy without a target, or for a metric that is not played.

    Args:
        parameters: of PutScalingPolicy.

    Raises:
        AwsFault: an ObjectNotFoundException, a ValidationException or NotImplemented.
    """
    if _check_resource(parameters) is None:
        return
    resource = parameters["ResourceId"]
    if resource not in _backend().targets.get(DIMENSION, {}):
        raise AwsFault(
            400,
            "ObjectNotFoundException",
            f"No scalable target registered for service namespace: {SAGEMAKER}, "
            f"resource ID: {resource}, scalable dimension: {DIMENSION}",
        )
    tracking = parameters.get("TargetTrackingScalingPolicyConfiguration") or {}
    predefined = tracking.get("PredefinedMetricSpecification") or {}
    kind = predefined.get("PredefinedMetricType")
    if kind is not None and kind not in PREDEFINED:
        raise not_played(f"scaling by {kind}")


def _check_resource(parameters: dict) -> Variant | None:
    """Return the variant that a call is about; None if it is about another service.

    Raises:
        AwsFault: if there is no such variant, or the dimension is not played.
    """
    if parameters["ServiceNamespace"] != SAGEMAKER:
        return None
    if parameters["ScalableDimension"] != DIMENSION:
        raise not_played(f"scaling by {parameters['ScalableDimension']}")
    named = RESOURCE.fullmatch(parameters["ResourceId"])
    endpoint = ENDPOINTS.get(named["endpoint"]) if named else None
    for variant in endpoint.variants if endpoint is not None else ():
        if named is not None and variant.name == named["variant"]:
            return variant
    raise invalid(
        f"There is no {parameters['ResourceId']} to scale. Expected endpoint/NAME/"
        "variant/VARIANT, of an endpoint that exists."
    )


def check_update(endpoint: LocalEndpoint, new: Iterable[Variant]) -> None:
    """Refuse an update that would take a scalable target away, or change its machine.

    Args:
        endpoint: that is to be updated.
        new: its variants after that.

    Raises:
        AwsFault: a ValidationException that names the variants.
    """
    after = {variant.name: set(variant.instances) for variant in new}
    held = [
        variant.name
        for variant in endpoint.variants
        if _resource(endpoint.name, variant.name) in _resources()
        and after.get(variant.name) != set(variant.instances)
    ]
    if held:
        raise invalid(
            f"The variants {', '.join(held)} are scalable targets: their instance type "
            "cannot be changed, nor can they be removed. Delete their scaling policies "
            "and call DeregisterScalableTarget first; register them again afterwards."
        )


def deregister(endpoint: str) -> None:
    """Take away what scales an endpoint, with policies and alarms."""
    gone = [name for name in _resources() if name.startswith(f"endpoint/{endpoint}/")]
    for resource in gone:
        _backend().deregister_scalable_target(SAGEMAKER, resource, DIMENSION)


def deregistered(end: Any, backend: Any, namespace: str, r_id: str, dim: str) -> None:
    """Deregister a target with its policies: botocore's model says that it does so."""
    end(backend, namespace, r_id, dim)
    for key, policy in list(backend.policies.items()):
        if (policy.resource_id, policy.scalable_dimension) == (r_id, dim):
            policy.delete_alarms(OFFLINE_ACCOUNT, OFFLINE_REGION)
            del backend.policies[key]


def tracking_alarms(make: Any, policy: Any) -> None:
    """Make the two alarms by which target tracking works, as AWS does."""
    make(policy)
    tracking = policy.target_tracking_scaling_policy_configuration
    named = RESOURCE.fullmatch(policy.resource_id)
    if policy.service_namespace != SAGEMAKER or not tracking or not named:
        return
    from moto.cloudwatch.models import cloudwatch_backends
    from moto.moto_api._internal import mock_random

    metric = _metric(tracking, named)
    cloudwatch = cloudwatch_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]
    target = float(tracking["TargetValue"])
    for which, comparison, threshold, periods in (
        ("High", "GreaterThanThreshold", target, HIGH_PERIODS),
        ("Low", "LessThanThreshold", LOW_SHARE * target, LOW_PERIODS),
    ):
        alarm = cloudwatch.put_metric_alarm(
            name=f"TargetTracking-{policy.resource_id}-Alarm{which}-"
            f"{mock_random.uuid4()}",
            comparison_operator=comparison,
            evaluation_periods=periods,
            period=60,
            threshold=threshold,
            description="DO NOT EDIT OR DELETE. For TargetTrackingScaling policy "
            f"{policy.policy_arn}.",
            alarm_actions=[policy.policy_arn],
            metric_data_queries=[],
            **metric,
        )
        policy.alarms.append(alarm)


def _metric(tracking: dict, named: re.Match) -> dict[str, Any]:
    """Return what an alarm has to know of the metric that a policy tracks."""
    if given := tracking.get("CustomizedMetricSpecification"):
        return {
            "namespace": given.get("Namespace", ""),
            "metric_name": given.get("MetricName", ""),
            "dimensions": given.get("Dimensions", []),
            "statistic": given.get("Statistic", "Average"),
        }
    kind = tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]
    place = {"EndpointName": named["endpoint"], "VariantName": named["variant"]}
    return {
        "namespace": NAMESPACE,
        "metric_name": PREDEFINED[kind],
        "dimensions": [{"Name": key, "Value": text} for key, text in place.items()],
        "statistic": "Sum",
    }


def replaced_policy(put: Any, backend: Any, *positional: Any, **named: Any) -> Any:
    """Put a policy; one that it replaces takes its alarms with it."""
    before = dict(backend.policies)
    made = put(backend, *positional, **named)
    for key, policy in before.items():
        if backend.policies[key] is not policy:
            policy.delete_alarms(OFFLINE_ACCOUNT, OFFLINE_REGION)
    return made


def _resource(endpoint: str, variant: str) -> str:
    return f"endpoint/{endpoint}/variant/{variant}"


def _resources() -> list[str]:
    """Return the names of the variants that are scalable targets."""
    if MODULE not in sys.modules:
        return []  # nobody has called it, and to load it takes a second
    return list(_backend().targets.get(DIMENSION, {}))


def _backend() -> Any:
    _patch()
    models = importlib.import_module(MODULE)
    return models.applicationautoscaling_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]


@functools.cache
def _patch() -> None:
    """Give moto what it lacks of target tracking.

    Not with the other patches: this part of moto loads EC2, and so asks for an AWS
    profile of the environment, which is gone by the time of the first call.
    """
    models = importlib.import_module(MODULE)
    wrap(models.FakeApplicationAutoscalingPolicy, "create_alarms", tracking_alarms)
    backend = models.ApplicationAutoscalingBackend
    wrap(backend, "put_scaling_policy", replaced_policy)
    wrap(backend, "deregister_scalable_target", deregistered)
