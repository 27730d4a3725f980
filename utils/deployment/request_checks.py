"""Requests held to botocore's model of a service, where nothing here plays the call.

The model (`service-2.json`, which comes with botocore) names each parameter of an
operation, its type, and often its least and most, its pattern and its allowed values.
What stands in the model's prose only is not checked: that serverless memory comes in
steps of 1,024 MB, say, or that a canary takes half of the fleet at most. Nor is what
the account has: names, rights, quotas.
"""

from __future__ import annotations

import functools
from typing import Any

from utils.course import CourseError
from utils.deployment.aws import violations


class RequestError(CourseError, ValueError):
    """A request that the service's model does not allow; the field is named.

    First used in experiment 06_production, section 5.
    """


def validate_request(service: str, operation: str, **request: Any) -> str:
    """Hold a request to botocore's model of the operation, and send it to nobody.

    First used in experiment 06_production, section 2.

    Args:
        service: as boto3 names it, such as "sagemaker".
        operation: the method of boto3's client, such as "create_endpoint_config".
        **request: what the method would be given.

    Returns:
        A sentence that says so.

    Raises:
        RequestError: with every field that is unknown, missing, of another type, or
            outside of what the model allows.
    """
    shape = _input_shape(service, operation)
    found = _wrong(shape, request)
    if found:
        raise RequestError(
            f"{service} would refuse this {operation}: {'; '.join(found)}. Compare it "
            f"with boto3's documentation of {operation}."
        )
    return f"{operation}: {', '.join(request)} fit the model of {service}; not sent"


def _wrong(shape: Any, request: dict[str, Any]) -> list[str]:
    """Return what is wrong with a request, one sentence each."""
    from botocore.validate import ParamValidator

    if shape is None:
        return [f"it takes no parameters, found {', '.join(request)}"] * bool(request)
    # Unknown names, missing ones and types: what boto3 itself says before it sends.
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        return report.generate_report().splitlines()
    # Maxima, patterns and enumerations, which boto3 leaves to the server.
    return list(violations(shape, request))


@functools.cache
def _input_shape(service: str, operation: str) -> Any:
    """Return botocore's shape of an operation's input; None if it has none.

    Raises:
        RequestError: if there is no such service or operation.
    """
    from botocore import xform_name
    from botocore.exceptions import UnknownServiceError
    from botocore.session import Session

    try:
        model = Session().get_service_model(service)
    except UnknownServiceError:
        raise RequestError(
            f"boto3 knows no service {service!r}. Name it as `session.client` takes "
            "it, such as 'sagemaker' or 'application-autoscaling'."
        ) from None
    names = {xform_name(name): name for name in model.operation_names}
    if operation not in names:
        raise RequestError(
            f"boto3's client of {service} has no method {operation!r}. Write it as "
            "boto3 does, such as 'create_endpoint_config'."
        )
    return model.operation_model(names[operation]).input_shape
