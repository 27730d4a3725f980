"""A call that is not played says so at once, whatever its service and its protocol."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from utils.offline_aws.operations import identify, service_model

# One of each protocol, of services that moto has and of others.
NOT_PLAYED = {
    "json, service unknown": ("pricing", "get_products", {"ServiceCode": "AmazonEC2"}),
    "json, operation unknown": ("sagemaker", "list_inference_components", {}),
    "query": ("elb", "describe_account_limits", {}),
    "ec2": ("ec2", "describe_aggregate_id_format", {}),
    "rest-json, service unknown": ("imagebuilder", "list_images", {}),
    "rest-json, operation unknown": ("lambda", "list_code_signing_configs", {}),
    "with a prefix to its host": ("omics", "list_runs", {}),
    "rest-xml": ("route53", "list_cidr_collections", {}),
    "s3": ("s3", "get_bucket_metadata_table_configuration", {"Bucket": "BUCKET"}),
    "s3, put": (
        "s3",
        "put_bucket_analytics_configuration",
        {
            "Bucket": "BUCKET",
            "Id": "a",
            "AnalyticsConfiguration": {"Id": "a", "StorageClassAnalysis": {}},
        },
    ),
    "cbor": ("cloudwatch", "get_metric_widget_image", {"MetricWidget": "{}"}),
    "sagemaker's other runtime": (
        "sagemaker-featurestore-runtime",
        "get_record",
        {"FeatureGroupName": "a", "RecordIdentifierValueAsString": "b"},
    ),
    "rest-json, stranger": (
        "bedrock-runtime",
        "converse",
        {"modelId": "a", "messages": [{"role": "user", "content": [{"text": "a"}]}]},
    ),
}


def count_requests(client: Any) -> list[str]:
    """Return a list that grows by each request that a client sends, each retry too."""
    sent: list[str] = []
    client.meta.events.register(
        "before-send", lambda event_name, **_: sent.append(event_name)
    )
    return sent


@pytest.mark.parametrize("kind", NOT_PLAYED)
def test_it_is_said_at_once_and_not_tried_again(aws, kind) -> None:
    service, method, parameters = NOT_PLAYED[kind]
    client = aws.session.client(service)  # with the retries that everybody has
    parameters = {
        key: aws.bucket if value == "BUCKET" else value
        for key, value in parameters.items()
    }
    sent = count_requests(client)
    with pytest.raises(ClientError) as failure:
        getattr(client, method)(**parameters)
    assert len(sent) == 1
    response = failure.value.response
    assert response["Error"]["Code"] == "NotImplemented"
    name = client.meta.method_to_api_mapping[method]
    message = f"The offline AWS does not play {service}'s {name}"
    assert response["Error"]["Message"].startswith(message)
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 501


@pytest.mark.parametrize("service", ["sagemaker", "logs", "application-autoscaling"])
def test_every_operation_is_played_or_says_that_it_is_not(aws, service) -> None:
    """No page of HTML, no silent repetition: each answers in its protocol."""
    client = aws.session.client(service)
    operations = client.meta.method_to_api_mapping
    sent = count_requests(client)
    reading = [name for name in operations if name.startswith(("list_", "describe_"))]
    played = 0
    for method in reading:
        model = service_model(service).operation_model(operations[method])
        parameters = {
            name: sample(model.input_shape.members[name])
            for name in (
                model.input_shape.required_members if model.input_shape else ()
            )
        }
        sent.clear()
        try:
            getattr(client, method)(**parameters)
            played += 1
        except ParamValidationError:
            continue
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            code = error.response["Error"]["Code"]
            assert status in (400, 404, 501), (method, error)
            assert code and not code.isdigit(), (method, error)
            assert "<" not in error.response["Error"]["Message"], method
        assert len(sent) == 1, (method, sent)
    assert played


def sample(shape):
    """Return a value of a parameter that is of the right kind."""
    if shape.type_name == "structure":
        return {n: sample(shape.members[n]) for n in shape.required_members}
    values = {"list": [], "map": {}, "integer": 1, "long": 1, "boolean": True}
    if getattr(shape, "enum", None):
        return shape.enum[0]
    return values.get(shape.type_name, "a" * max(1, shape.metadata.get("min", 1)))


def test_what_fails_within_moto_is_not_tried_again(aws, monkeypatch) -> None:
    from moto.sagemaker.models import SageMakerModelBackend

    def fail(self):
        raise KeyError("planted")

    monkeypatch.setattr(SageMakerModelBackend, "list_models", fail)
    client = aws.session.client("sagemaker")
    sent = count_requests(client)
    with pytest.raises(ClientError, match=r"with these parameters \(KeyError.*planted"):
        client.list_models()
    assert len(sent) == 1


def test_own_errors_of_moto_pass_as_they_are(aws) -> None:
    s3 = aws.session.client("s3")
    for call, code in (
        (lambda: s3.get_object(Bucket=aws.bucket, Key="nosuch"), "NoSuchKey"),
        (lambda: s3.head_object(Bucket=aws.bucket, Key="nosuch"), "404"),
        (lambda: s3.head_bucket(Bucket="no-such-bucket-x"), "404"),
        (
            lambda: aws.session.client("iam").get_role(RoleName="nosuch"),
            "NoSuchEntity",
        ),
        (
            lambda: aws.session.client("sagemaker").describe_model(ModelName="nosuch"),
            "ValidationException",
        ),
        (
            lambda: aws.session.client("logs").delete_log_group(logGroupName="nosuch"),
            "ResourceNotFoundException",
        ),
    ):
        with pytest.raises(ClientError) as failure:
            call()
        assert failure.value.response["Error"]["Code"] == code


@pytest.mark.parametrize(
    ("service", "operation", "uri", "method"),
    [
        ("s3", "PutObject", "/bucket/a/key", "PUT"),
        ("s3", "GetBucketTagging", "/bucket?tagging", "GET"),
        ("s3", "ListObjectsV2", "/bucket?list-type=2&prefix=a", "GET"),
        ("s3", "ListBuckets", "/", "GET"),
        ("s3", "UploadPartCopy", "/bucket/a/key?partNumber=1&uploadId=b", "PUT"),
        ("s3", "UploadPart", "/bucket/a/key?partNumber=1&uploadId=b", "PUT"),
        ("sagemaker", "InvokeEndpoint", "/endpoints/a-b/invocations", "POST"),
        (
            "sagemaker",
            "InvokeEndpointAsync",
            "/endpoints/a-b/async-invocations",
            "POST",
        ),
    ],
)
def test_operations_are_recognised_by_method_and_path(
    service, operation, uri, method
) -> None:
    environ = {"REQUEST_METHOD": method, "REQUEST_URI": uri}
    if operation.endswith("Copy"):
        environ["HTTP_X_AMZ_COPY_SOURCE"] = "bucket/other"
    call = identify(environ, service, b"")
    assert call.name == operation
