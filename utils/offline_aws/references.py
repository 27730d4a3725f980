"""What a call refers to must be there: model data, role, image.

AWS checks it when it is named, not when it is used. Its texts are cited as people have
met them, with the thread they stand in; where none is known, the text is ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from utils.offline_aws.errors import invalid, not_played
from utils.offline_aws.images import check_image
from utils.offline_aws.names import OFFLINE_ACCOUNT


def containers_of(parameters: dict) -> Iterator[tuple[str, dict]]:
    """Yield each container definition of CreateModel, and what it is called."""
    if container := parameters.get("PrimaryContainer"):
        yield "primaryContainer", container
    for number, container in enumerate(parameters.get("Containers") or [], 1):
        yield f"containers.{number}.member", container


def check_model(parameters: dict) -> None:
    """Refuse a model whose role, images or data there are not.

    Args:
        parameters: of CreateModel.

    Raises:
        AwsFault: a ValidationException.
    """
    if not list(containers_of(parameters)):
        raise invalid(
            "A model needs a container: give PrimaryContainer, or Containers."
        )
    check_role(parameters.get("ExecutionRoleArn"))
    for _, container in containers_of(parameters):
        check_image(container)
    check_model_data(parameters)


def check_async_configuration(parameters: dict) -> None:
    """Say at once which part of an asynchronous configuration is not played.

    Args:
        parameters: of CreateEndpointConfig.

    Raises:
        AwsFault: NotImplemented.
    """
    given = parameters.get("AsyncInferenceConfig") or {}
    notified = (given.get("OutputConfig") or {}).get("NotificationConfig") or {}
    if notified.get("SuccessTopic") or notified.get("ErrorTopic"):
        raise not_played("notifications of asynchronous endpoints")


def check_role(arn: str | None) -> None:
    """Refuse a role that does not exist, or that SageMaker may not assume.

    Text: awslabs/predictive-maintenance-using-machine-learning, issue 3. The one for a
    model without a role is ours.

    Args:
        arn: of the role.

    Raises:
        AwsFault: a ValidationException.
    """
    from moto.iam.models import iam_backends

    if arn is None:
        raise invalid(
            "ExecutionRoleArn is missing. Give the role under which SageMaker reads "
            "the model data and pulls the image."
        )
    roles = list(iam_backends[OFFLINE_ACCOUNT]["aws"].roles.values())
    role = next((one for one in roles if one.arn == arn), None)
    if role is None or not _trusts_sagemaker(role.assume_role_policy_document):
        raise invalid(
            f"Could not assume role {arn}. Please ensure that the role exists and "
            "allows principal 'sagemaker.amazonaws.com' to assume the role."
        )


def _trusts_sagemaker(document: str | None) -> bool:
    """Say whether a trust policy allows SageMaker to assume its role."""
    try:
        statements = json.loads(document or "{}").get("Statement", [])
    except ValueError:
        return False
    for statement in statements if isinstance(statements, list) else [statements]:
        principals = (statement.get("Principal") or {}).get("Service", [])
        if isinstance(principals, str):
            principals = [principals]
        if statement.get("Effect") == "Allow" and (
            "sagemaker.amazonaws.com" in principals
        ):
            return True
    return False


def check_model_data(parameters: dict) -> None:
    """Refuse model data that this account's S3 does not hold.

    A path of this machine, or an address elsewhere, is never read: whoever could name
    one would have this process read it.

    Raises:
        AwsFault: a ValidationException.
    """
    for _, container in containers_of(parameters):
        source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
        for address in (container.get("ModelDataUrl"), source.get("S3Uri")):
            if address is not None:
                require_object(address, source.get("S3DataType", "S3Object"))


def require_object(address: str, kind: str = "S3Object") -> None:
    """Refuse an address under which the offline S3 holds nothing.

    The text for what is not there: aws/aws-step-functions-data-science-sdk-python,
    issue 61. That for other addresses is ours: AWS takes an https address of S3, too.

    Args:
        address: s3://bucket/key.
        kind: S3Object, or S3Prefix for all that begin with the key.

    Raises:
        AwsFault: a ValidationException.
    """
    bucket, key = split_address(address)
    found = bucket and key and _holds(bucket, key, kind)
    if not found:
        raise invalid(f"Could not find model data at {address}.")


def split_address(address: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// address.

    Raises:
        AwsFault: a ValidationException, if it is another one.
    """
    scheme, _, rest = address.partition("://")
    if scheme != "s3" or not rest:
        raise invalid(
            f"{address} is no address of the offline AWS's S3. Upload the object and "
            "give s3://bucket/key."
        )
    bucket, _, key = rest.partition("/")
    return bucket, key


def _holds(bucket: str, key: str, kind: str) -> bool:
    from moto.s3.exceptions import S3ClientError

    backend = s3_backend()
    if bucket not in backend.buckets:
        return False
    if kind == "S3Prefix":
        names = list(dict.keys(backend.buckets[bucket].keys))
        return any(name.startswith(key) for name in names)
    try:
        return backend.get_object(bucket, key) is not None
    except S3ClientError:
        return False


def s3_backend() -> Any:
    """Return moto's S3 of the account."""
    from moto.s3.models import s3_backends

    return s3_backends[OFFLINE_ACCOUNT]["aws"]
