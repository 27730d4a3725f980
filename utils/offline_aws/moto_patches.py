"""What moto lacks for this course: endpoints with something behind them.

The patches reach into private names of moto; only the exact pin in requirements.txt
makes that tolerable. With another version run tests/test_offline_aws.py and
tests/test_offline_endpoints.py first.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from typing import Any

from utils.offline_aws.alarms import patch_alarms
from utils.offline_aws.endpoints import ENDPOINTS, LocalEndpoint, Variant
from utils.offline_aws.metrics import percentile, publish_to_moto
from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION
from utils.offline_aws.processing_jobs import patch_processing_jobs
from utils.offline_aws.quotas import check_instances, instances
from utils.offline_aws.registry import patch_registry
from utils.offline_aws.scaling import check_update, deregister
from utils.offline_aws.schedules import checked
from utils.offline_aws.shifting import Shift
from utils.offline_aws.training_patches import patch_training_jobs
from utils.offline_aws.tuning_patches import patch_tuning_jobs
from utils.offline_aws.wrapping import wrap


def patch_moto() -> None:
    """Give moto what the course needs and it lacks; a second call changes nothing.

    - It echoes empty VpcConfig and DataCaptureConfig, which the SDK's types reject.
    - It knows no instance types of the last years.
    - It lets a name be taken twice.
    - Its endpoints are in service at once, with nothing behind them.
    - It cannot update an endpoint.
    - It deletes an endpoint in whatever state.
    - It quotes ARNs as AWS does not.
    - It reads the log of a group stream by stream, not in the order of time, and of all
      streams, whatever prefix is asked for.
    - It takes any schedule, and any role for it.
    - It knows no percentiles of metrics, nor those of endpoints.
    - It evaluates no alarm.
    - It forgets network isolation.
    - It has half a model registry, and forgets counts when weights change.
    - To list the versions of one object in S3 it copies the content of all objects.
    - Its training, tuning and processing jobs are Completed at once, and nothing has
      run.
    """
    from moto.cloudwatch.models import Statistics
    from moto.logs.models import LogGroup
    from moto.logs.responses import LogsResponse
    from moto.s3.models import FakeKey
    from moto.sagemaker import models
    from moto.sagemaker.exceptions import ValidationError
    from moto.sagemaker.responses import SageMakerResponse
    from moto.scheduler.models import EventBridgeSchedulerBackend

    if getattr(SageMakerResponse, "update_endpoint", None) is _update_endpoint:
        return
    SageMakerResponse.update_endpoint = _update_endpoint
    # Held to botocore's model already, which is newer than moto's list.
    wrap(ValidationError, "__init__", _with_quotes_of_aws)
    models.FakeEndpointConfig.validate_instance_type = lambda self, instance_type: None
    for name in ("describe_model", "describe_endpoint", "describe_endpoint_config"):
        wrap(SageMakerResponse, name, _without_empty_fields)
    backend = models.SageMakerModelBackend
    wrap(backend, "create_model", _with_free_name)
    wrap(backend, "create_endpoint_config", _with_free_name)
    wrap(backend, "create_endpoint", _with_containers)
    wrap(backend, "describe_endpoint", _with_true_status)
    wrap(backend, "list_endpoints", _with_true_status)
    wrap(backend, "delete_endpoint", _with_containers_stopped)
    wrap(backend, "update_endpoint_weights_and_capacities", _with_new_weights)
    wrap(LogGroup, "filter_log_events", _in_order_of_time)
    wrap(LogsResponse, "filter_log_events", _of_named_streams)
    wrap(Statistics, "get_statistics_for_type", _also_percentiles)
    wrap(SageMakerResponse, "create_model", _with_isolation)
    FakeKey.__deepcopy__ = _without_content
    patch_alarms()
    patch_registry()
    patch_training_jobs()
    patch_tuning_jobs()
    patch_processing_jobs()
    for name in ("create_schedule", "update_schedule"):
        wrap(EventBridgeSchedulerBackend, name, checked)
    publish_to_moto()


def moto_application() -> Any:
    """Return moto as a WSGI application that opens itself to no other origin.

    moto's server lets every web page in: `flask_cors` answers with
    `Access-Control-Allow-Origin: *`.
    """
    from moto.moto_server import werkzeug_app

    werkzeug_app.DISABLE_GLOBAL_CORS = True
    return werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)


def _in_order_of_time(read: Any, group: Any, *positional: Any, **named: Any) -> Any:
    """Read events of all streams in one order.

    botocore's model of FilterLogEvents says of `interleaved`: "As of June 17, 2019,
    this parameter is ignored and the value is assumed to be true."
    """
    *given, _ = positional
    return read(group, *given, True, **named)


def _of_named_streams(answer: Any, response: Any) -> str:
    """Read the streams whose names begin with logStreamNamePrefix, if one is given."""
    prefix = response._get_param("logStreamNamePrefix")
    group = response.logs_backend.groups.get(response._get_param("logGroupName"))
    if prefix is None or group is None:
        return answer(response)
    names = [name for name in list(group.streams) if name.startswith(prefix)]
    if not names:
        return json.dumps({"events": [], "searchedLogStreams": []})
    given = json.loads(response.body)
    response.body = json.dumps({**given, "logStreamNames": names})
    return answer(response)


def _also_percentiles(compute: Any, statistics: Any, name: str) -> Any:
    """Compute a statistic such as p99, too."""
    if found := re.fullmatch(r"p(\d{1,2}(\.\d+)?)", name):
        values = statistics.metric_single_values_list
        return percentile(values, float(found[1]) / 100) if values else None
    return compute(statistics, name)


def _without_empty_fields(describe: Any, response: Any) -> Any:
    """Leave out of a description what was not given when the thing was created."""
    answer = describe(response)
    unwanted = ("VpcConfig", "DataCaptureConfig", "AsyncInferenceConfig")
    content = answer.result
    answer._result = {k: v for k, v in content.items() if v or k not in unwanted}
    return answer


def _with_isolation(create: Any, response: Any) -> Any:
    """Create a model that describes its network isolation as it was given."""
    answer = create(response)
    model = response.sagemaker_backend._models[response._get_param("ModelName")]
    isolated = response._get_param("EnableNetworkIsolation")
    model.enable_network_isolation = bool(isolated)
    return answer


def _with_free_name(create: Any, backend: Any, **given: Any) -> Any:
    """Create a model or a configuration, unless its name is taken."""
    if "model_name" in given:
        _require_free("model", given["model_name"], backend._models)
    else:
        taken = backend.endpoint_configs
        _require_free("endpoint configuration", given["endpoint_config_name"], taken)
    return create(backend, **given)


def _with_containers(
    create: Any, backend: Any, endpoint_name: str, **given: Any
) -> Any:
    """Create an endpoint, and start the containers behind it."""
    _require_free("endpoint", endpoint_name, backend.endpoints)
    config_name = given["endpoint_config_name"]
    variants = _variants_of(backend, config_name)
    _check_quotas(backend, config_name)
    record = create(backend, endpoint_name=endpoint_name, **given)
    record.endpoint_status = "Creating"
    endpoint = LocalEndpoint(endpoint_name, config_name, variants)
    ENDPOINTS[endpoint_name] = endpoint
    endpoint.start()
    return record


def _variants_of(backend: Any, config_name: str) -> list[Variant]:
    """Return the variants of a configuration, with containers not yet started."""
    config = backend.describe_endpoint_config(config_name)
    return [
        Variant.of(variant, backend.describe_model(variant["ModelName"]), config)
        for variant in config["ProductionVariants"]
    ]


def _update_endpoint(response: Any) -> Any:
    """Answer UpdateEndpoint; how the traffic moves, DeploymentConfig says."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.exceptions import ValidationError

    backend = response.sagemaker_backend
    name = response._get_param("EndpointName")
    config_name = response._get_param("EndpointConfigName")
    arn = backend.describe_endpoint(name)["EndpointArn"]
    endpoint = ENDPOINTS[name]
    if endpoint.status == "Failed":
        raise ValidationError(
            message=f'Cannot update failed endpoint "{arn}": it can only be deleted.'
        )
    _require_at_rest(backend, name)
    # AWS looks for the present configuration, too: hashicorp/terraform-provider-aws,
    # issue 40048.
    backend.describe_endpoint_config(endpoint.config_name)
    variants = _variants_of(backend, config_name)
    check_update(endpoint, variants)
    _check_quotas(backend, config_name)
    kept = response._get_param("RetainAllVariantProperties")
    excluded = response._get_param("ExcludeRetainedVariantProperties") or []
    if kept and {"VariantPropertyType": "DesiredWeight"} not in excluded:
        weights = {variant.name: variant.weight for variant in endpoint.variants}
        for variant in variants:
            variant.weight = weights.get(variant.name, variant.weight)
    given = response._get_param("DeploymentConfig")
    if given is None and response._get_param("RetainDeploymentConfig"):
        shift = endpoint.shift
    else:
        shift = Shift.of(given or {})
    endpoint.update(config_name, variants, shift)
    return ActionResult({"EndpointArn": arn})


def _require_at_rest(backend: Any, name: str) -> None:
    """Refuse to change, or to delete, an endpoint in transition.

    AWS says the same of both (the prefix `DeleteEndpointInProgressMessagePrefix` of
    aws/amazon-sagemaker-operator-for-k8s), and of new weights.
    """
    from moto.sagemaker.exceptions import ValidationError

    endpoint, record = ENDPOINTS.get(name), backend.endpoints.get(name)
    if endpoint is None or record is None:
        return
    if endpoint.status in ("Creating", "Updating", "RollingBack"):
        raise ValidationError(
            message=f'Cannot update in-progress endpoint "{record.arn}".'
        )


def _check_quotas(backend: Any, config_name: str) -> None:
    """Refuse more instances than COURSE_QUOTAS allows."""
    used: Counter[str] = Counter()
    for endpoint in list(ENDPOINTS.values()):
        if endpoint.status != "Failed":
            used += endpoint.instances
    config = backend.describe_endpoint_config(config_name)
    check_instances(used, instances(config["ProductionVariants"]))


def _with_quotes_of_aws(make: Any, error: Any, message: str) -> None:
    """Write an error in which an ARN stands in AWS's quotes, not in moto's."""
    make(error, message=re.sub(r"'(arn:[^']*)'", r'"\1"', message))


def _with_new_weights(update: Any, backend: Any, **given: Any) -> str:
    """Change the shares of the traffic, also where it is shared out.

    A variant keeps the count or the weight that the call does not name.
    """
    name = given["endpoint_name"]
    _require_at_rest(backend, name)
    wanted = given["desired_weights_and_capacities"]
    if record := backend.endpoints.get(name):
        _write_weights(record, ENDPOINTS[name])
        now = {one["VariantName"]: one for one in record.production_variants}
        keys = ("DesiredWeight", "DesiredInstanceCount")
        wanted = [
            {key: now.get(one["VariantName"], {}).get(key) for key in keys} | one
            for one in wanted
        ]
    arn = update(backend, **given | {"desired_weights_and_capacities": wanted})
    for variant in ENDPOINTS[name].variants:
        for one in wanted:
            if variant.name == one["VariantName"]:
                variant.weight = float(one["DesiredWeight"])
    return arn


def _write_weights(record: Any, endpoint: LocalEndpoint) -> None:
    """Write the weights by which traffic is shared out into moto's record.

    moto leaves out a weight of 0, and does not know of those that an update retained.
    """
    weights = {variant.name: variant.weight for variant in endpoint.variants}
    for variant in record.production_variants:
        if (weight := weights.get(variant["VariantName"])) is not None:
            variant["CurrentWeight"] = variant["DesiredWeight"] = weight


def _with_true_status(read: Any, backend: Any, *positional: Any, **named: Any) -> Any:
    """Copy the endpoints' status into moto's records before they are read."""
    for name, endpoint in list(ENDPOINTS.items()):
        if record := backend.endpoints.get(name):
            record.endpoint_status = endpoint.status
            record.failure_reason = endpoint.failure_reason
            if record.endpoint_config_name != endpoint.config_name:
                record.endpoint_config_name = endpoint.config_name
                config = backend.endpoint_configs.get(endpoint.config_name)
                if config is not None:
                    record.production_variants = record._process_production_variants(
                        config.production_variants
                    )
            _write_weights(record, endpoint)
    return read(backend, *positional, **named)


def _with_containers_stopped(delete: Any, backend: Any, endpoint_name: str) -> None:
    """Delete an endpoint, and stop the containers behind it.

    Its configuration and its models may be deleted before it: botocore's model of
    DeleteEndpointConfig says that one "must not", and what one then loses sight of, but
    AWS does not refuse it.
    """
    _require_at_rest(backend, endpoint_name)
    delete(backend, endpoint_name)
    deregister(endpoint_name)
    if endpoint := ENDPOINTS.pop(endpoint_name, None):
        endpoint.stop()


def _require_free(kind: str, name: str, taken: Any) -> None:
    from moto.sagemaker.exceptions import ValidationError

    if name in taken:
        path = kind.replace("endpoint configuration", "endpoint-config")
        arn = f"arn:aws:sagemaker:{OFFLINE_REGION}:{OFFLINE_ACCOUNT}:{path}/{name}"
        raise ValidationError(message=f'Cannot create already existing {kind} "{arn}".')


def _without_content(key: Any, memo: dict[int, Any]) -> Any:
    """Return what a listing shows of an object in S3, which is all but its content."""
    _ = key.etag  # is computed from the content once, and then known
    twin = object.__new__(type(key))
    twin.__dict__.update(key.__dict__)
    # When it is collected, the twin closes what is its own.
    twin._value_buffer, twin.multipart, twin.disposed = io.BytesIO(), None, True
    return twin
