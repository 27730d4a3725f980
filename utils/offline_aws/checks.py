"""Checks of calls before moto sees them: what AWS refuses is refused.

Each check takes the call and its parameters and raises an `AwsFault`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

from utils.offline_aws.errors import AwsFault, too_long
from utils.offline_aws.operations import Call
from utils.offline_aws.parameters import check_parameters, read_rest
from utils.offline_aws.processing_jobs import check_processing_job
from utils.offline_aws.quotas import Throttle
from utils.offline_aws.references import check_async_configuration, check_model
from utils.offline_aws.scaling import SERVICE, check_policy, check_target
from utils.offline_aws.shifting import check_deployment
from utils.offline_aws.tables import SERVICE as TABLES
from utils.offline_aws.tables import check_table, check_values
from utils.offline_aws.training_checks import check_training_job
from utils.offline_aws.tuning_patches import check_new_tuning_job

# service and operation → what else it has to pass
CHECKS: dict[tuple[str, str], Callable[[dict], None]] = {
    ("sagemaker", "CreateModel"): check_model,
    ("sagemaker", "CreateEndpointConfig"): check_async_configuration,
    ("sagemaker", "UpdateEndpoint"): check_deployment,
    ("sagemaker", "CreateTrainingJob"): check_training_job,
    ("sagemaker", "CreateHyperParameterTuningJob"): check_new_tuning_job,
    ("sagemaker", "CreateProcessingJob"): check_processing_job,
    (SERVICE, "RegisterScalableTarget"): check_target,
    (SERVICE, "PutScalingPolicy"): check_policy,
    (TABLES, "CreateTable"): check_table,
    (TABLES, "PutItem"): check_values,
    (TABLES, "UpdateItem"): check_values,
}
# Whose parameters are held to their models, with the code of the error.
HELD = {
    "sagemaker": "ValidationException",
    "sagemaker-runtime": "ValidationError",
    SERVICE: "ValidationException",
    TABLES: "ValidationException",
}
THROTTLED = {"sagemaker", "sagemaker-runtime"}  # whose calls COURSE_QUOTAS counts


class Checks:
    """The WSGI application that checks the parameters of calls for endpoints."""

    def __init__(self, application: Callable):
        self.application = application
        self._throttle = Throttle()

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer a request.

        Raises:
            AwsFault: if its parameters are refused.
        """
        call: Call = environ["offline_aws.call"]
        code = HELD.get(call.service)
        if call.service in THROTTLED:
            self._throttle.check()
        if code is not None and call.operation is not None:
            if call.protocol == "json":
                parameters = read_json(environ)
            else:
                parameters = read_rest(call.operation, call.labels, environ)
                _check_body(call, environ, parameters)
            check_parameters(call.operation, parameters, code)
            environ["offline_aws.parameters"] = parameters
            if check := CHECKS.get((call.service, call.name)):
                check(parameters)
        return self.application(environ, start_response)


def _check_body(call: Call, environ: dict, parameters: dict) -> None:
    """Note the body, if the call has one, and refuse one that is too long.

    The answer names no code, so that SDKs take the status for one: "An error occurred
    (413) when calling the InvokeEndpoint operation: HTTP content length exceeded …
    bytes." (aws/sagemaker-python-sdk, issue 171; the limit of today is botocore's).
    """
    name = call.operation.input_shape.serialization.get("payload")
    if name is None:
        return
    body = call.operation.input_shape.members[name]
    length, most = int(environ.get("CONTENT_LENGTH") or 0), body.metadata["max"]
    if length > most:
        raise too_long(most)
    parameters[name] = environ["wsgi.input"].read()
    environ["wsgi.input"] = io.BytesIO(parameters[name])


def read_json(environ: dict) -> dict[str, Any]:
    """Read a call's parameters from its body, which stays to be read again.

    Raises:
        AwsFault: if it is no JSON object.
    """
    body = environ["wsgi.input"].read()
    environ["wsgi.input"] = io.BytesIO(body)
    try:
        parameters = json.loads(body or b"{}")
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict):
        raise AwsFault(400, "SerializationException", "The body is no JSON object.")
    return parameters
