"""What AWS refuses is refused: parameters by botocore's models, and references."""

from __future__ import annotations

import json
import re

import pytest
from botocore.exceptions import ClientError, WaiterError

from support.endpoints import AMI, ECHO, IMAGE, ask, new_config, upload
from utils.deployment.aws import LOG_GROUPS
from utils.offline_aws.errors import AwsFault
from utils.offline_aws.images import cannot_start, check_image
from utils.offline_aws.operations import service_model
from utils.offline_aws.parameters import check_parameters

REGISTRY = "763104351884.dkr.ecr.us-east-1.amazonaws.com"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": 1,
            "digest": f"sha256:{'0' * 64}",
        },
        "layers": [],
    }
)
VARIANT = {
    "VariantName": "a",
    "ModelName": "m",
    "InstanceType": "ml.g5.xlarge",
    "InitialInstanceCount": 1,
}
ERROR = re.compile(
    r"\d+ validation errors? detected: Value .+ at '[\w.]+' failed to satisfy "
    r"constraint: Member must .+"
)


def check(operation: str, service: str = "sagemaker", **parameters) -> str:
    """Return what is wrong with an operation's parameters; "" if nothing is."""
    model = service_model(service).operation_model(operation)
    try:
        check_parameters(model, parameters)
    except AwsFault as fault:
        assert ERROR.fullmatch(fault.message), fault.message
        return fault.message
    return ""


# --- by the models --------------------------------------------------------------------


def test_sound_parameters_pass() -> None:
    variant = {
        **VARIANT,
        "ContainerStartupHealthCheckTimeoutInSeconds": 900,
        "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
    }
    tags = [{"Key": "course-run", "Value": "1a2b é"}]
    name = "a-1" * 21  # 63 characters
    for given in (
        check("CreateModel", ModelName=name, Tags=tags),
        check("CreateEndpoint", EndpointName=name, EndpointConfigName="b", Tags=tags),
        check(
            "CreateEndpointConfig",
            EndpointConfigName=name,
            ProductionVariants=[variant],
        ),
        check("UpdateEndpoint", EndpointName=name, EndpointConfigName="b"),
    ):
        assert given == ""


@pytest.mark.parametrize(
    ("changed", "place", "constraint"),
    [
        ({"InstanceType": "ml.g99.xlarge"}, "instanceType", "enum value set: [ml.t2"),
        ({"InstanceType": "g5.xlarge"}, "instanceType", "enum value set: [ml.t2.med"),
        (
            {"InferenceAmiVersion": "nonsense"},
            "inferenceAmiVersion",
            "enum value set: [al2-ami",
        ),
        (
            {"ContainerStartupHealthCheckTimeoutInSeconds": 4000},
            "containerStartupHealthCheckTimeoutInSeconds",
            "value less than or equal to 3600",
        ),
        (
            {"ModelDataDownloadTimeoutInSeconds": 59},
            "modelDataDownloadTimeoutInSeconds",
            "value greater than or equal to 60",
        ),
        ({"InitialVariantWeight": -1}, "initialVariantWeight", "greater than or equal"),
        ({"InitialInstanceCount": -1}, "initialInstanceCount", "greater than or equal"),
        ({"VariantName": "a_b"}, "variantName", "regular expression pattern: "),
        (
            {"ServerlessConfig": {"MemorySizeInMB": 1000, "MaxConcurrency": 201}},
            "serverlessConfig.maxConcurrency",
            "value less than or equal to 200",
        ),
        (
            {"RoutingConfig": {"RoutingStrategy": "FIRST"}},
            "routingConfig.routingStrategy",
            "enum value set: [LEAST_OUTSTANDING_REQUESTS, RANDOM",
        ),
    ],
)
def test_a_variant_is_held_to_the_model(changed, place, constraint) -> None:
    found = check(
        "CreateEndpointConfig",
        EndpointConfigName="c",
        ProductionVariants=[VARIANT, {**VARIANT, **changed}],
    )
    value = next(iter(changed.values()))
    if not isinstance(value, dict):
        assert f"Value '{value}' at" in found
    assert f"at 'productionVariants.2.member.{place}'" in found
    assert constraint in found


@pytest.mark.parametrize("name", ["my_model_v1", "ENTER MODEL NAME", "a" * 80, "-a"])
@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("CreateModel", "ModelName"),
        ("CreateEndpointConfig", "EndpointConfigName"),
        ("CreateEndpoint", "EndpointName"),
        ("CreateEndpoint", "EndpointConfigName"),
        ("UpdateEndpoint", "EndpointConfigName"),
    ],
)
def test_names_are_held_to_the_model(operation, key, name) -> None:
    sound = {
        "CreateModel": {},
        "CreateEndpointConfig": {"ProductionVariants": [VARIANT]},
        "CreateEndpoint": {"EndpointName": "a", "EndpointConfigName": "b"},
        "UpdateEndpoint": {"EndpointName": "a", "EndpointConfigName": "b"},
    }
    found = check(operation, **{**sound[operation], key: name})
    assert f"Value '{name}' at '{key[0].lower()}{key[1:]}'" in found


@pytest.mark.parametrize("operation", ["CreateModel", "CreateEndpointConfig"])
def test_each_constraint_of_the_model_is_kept(operation) -> None:
    """Walk all strings and numbers of an operation: one beyond each limit fails."""
    checked = 0

    def beyond(shape):
        """Yield values, sound but for one place, and the constraint that it breaks."""
        kind, limits = shape.type_name, shape.metadata
        if kind == "string" and shape.metadata.get("enum"):
            yield "no such value", "enum"
        elif kind == "string" and limits.get("max", 10**6) < 10**5:
            yield "a" * (limits["max"] + 1), "length less than"
        elif kind in ("integer", "long", "float", "double"):
            if "max" in limits:
                yield limits["max"] + 1, "value less than"
            if "min" in limits:
                yield limits["min"] - 1, "value greater than"
        elif kind == "list":
            for value, why in beyond(shape.member):
                yield [value], why
        elif kind == "map":
            for value, why in beyond(shape.value):
                yield {"a": value}, why
        elif kind == "structure":
            for name, member in shape.members.items():
                for value, why in beyond(member):
                    yield {name: value}, why

    model = service_model("sagemaker").operation_model(operation)
    for name, member in model.input_shape.members.items():
        for value, why in beyond(member):
            checked += 1
            assert f"Member must have {why}" in check(operation, **{name: value}) or (
                why == "enum" and "enum value set" in check(operation, **{name: value})
            )
    assert checked > 20


def test_missing_and_mistyped_members() -> None:
    assert "Value null at 'endpointName' failed" in check(
        "CreateEndpoint", EndpointConfigName="b"
    )
    model = service_model("sagemaker").operation_model("CreateEndpointConfig")
    for wrong in ({"EndpointConfigName": 7}, {"ProductionVariants": "a"}):
        with pytest.raises(AwsFault, match="expected a (string|list), found") as found:
            check_parameters(model, wrong)
        assert found.value.code == "SerializationException"


def test_all_errors_are_told_at_once() -> None:
    found = check("CreateEndpoint", EndpointName="a_b", EndpointConfigName="c d")
    assert found.startswith("2 validation errors detected: ")
    assert "'endpointName'" in found and "'endpointConfigName'" in found


def test_the_server_refuses_what_botocore_lets_pass(aws, guard) -> None:
    client = aws.session.client("sagemaker")
    for call in (
        lambda: client.create_model(ModelName="my_model", ExecutionRoleArn=aws.role),
        lambda: client.create_endpoint_config(
            EndpointConfigName="c",
            ProductionVariants=[{**VARIANT, "InstanceType": "ml.g99.xlarge"}],
        ),
        lambda: client.create_endpoint(EndpointName="a" * 80, EndpointConfigName="c"),
        lambda: client.describe_endpoint(EndpointName="a_b"),
    ):
        with pytest.raises(ClientError) as failure:
            call()
        error = failure.value.response["Error"]
        assert error["Code"] == "ValidationException"
        assert ERROR.fullmatch(error["Message"])


# --- references -----------------------------------------------------------------------


def refusal(aws, guard, **changed) -> str:
    """Return why a model cannot be created."""
    parameters = {
        "ModelName": guard.name("m"),
        "ExecutionRoleArn": aws.role,
        "PrimaryContainer": {"Image": IMAGE},
        **changed,
    }
    with pytest.raises(ClientError) as failure:
        aws.session.client("sagemaker").create_model(
            **{key: value for key, value in parameters.items() if value is not None}
        )
    error = failure.value.response["Error"]
    assert error["Code"] == "ValidationException"
    return error["Message"]


def test_the_role_of_a_model_must_exist_and_trust_sagemaker(aws, guard) -> None:
    assert "ExecutionRoleArn is missing" in refusal(aws, guard, ExecutionRoleArn=None)
    arn = aws.role.replace("course-", "another-")
    assert refusal(aws, guard, ExecutionRoleArn=arn) == (
        f"Could not assume role {arn}. Please ensure that the role exists and allows "
        "principal 'sagemaker.amazonaws.com' to assume the role."
    )
    for wrong in (
        "Execution" * 3,
        "arn:aws:iam::123456789012:user/me",
        aws.role + " x",
    ):
        assert "at 'executionRoleArn'" in refusal(aws, guard, ExecutionRoleArn=wrong)
    iam = aws.session.client("iam")
    trust = {
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": ["lambda.amazonaws.com"]},
                "Action": "sts:AssumeRole",
            }
        ]
    }
    role = iam.create_role(
        RoleName="of-another-service", AssumeRolePolicyDocument=json.dumps(trust)
    )["Role"]
    assert "Could not assume role" in refusal(aws, guard, ExecutionRoleArn=role["Arn"])
    iam.delete_role(RoleName="of-another-service")


def test_a_model_needs_a_container(aws, guard) -> None:
    assert "needs a container" in refusal(aws, guard, PrimaryContainer=None)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("python:3.11", "Using non-ECR image"),
        ("public.ecr.aws/bitnami/python:3.9", "Using non-ECR image"),
        (f"{REGISTRY}/djl-inference", "is invalid: it has no tag"),
        (f"{REGISTRY}/djl-inference:", "Using non-ECR image"),
        (f"{REGISTRY}/djl-inference:0.36.0", "not found: this SDK's newest tags are"),
        (f"{REGISTRY}/nosuch:1", "not found: AWS has no nosuch for SageMaker"),
        (IMAGE.replace("us-east-1", "eu-west-1"), "its registry is in eu-west-1"),
        (IMAGE.replace("763104351884", "626614931356"), "images for us-east-1 lie"),
        (IMAGE.replace("763104351884", "123456789012"), "push it to the account's ECR"),
    ],
)
def test_images_that_cannot_be(image, message) -> None:
    with pytest.raises(AwsFault, match=re.escape(message)):
        check_image({"Image": image})


def test_images_that_can_be(aws) -> None:
    from sagemaker.core import image_uris

    for version in ("0.36.0", "latest"):
        image = image_uris.retrieve("djl-lmi", region="us-east-1", version=version)
        check_image({"Image": image})
    image = image_uris.retrieve(
        "huggingface",
        region="us-east-1",
        version="5.3.0",
        base_framework_version="pytorch2.9.0",
        py_version="py312",
        instance_type="ml.g5.xlarge",
        image_scope="training",
    )
    check_image({"Image": image})
    check_image({"Image": f"{REGISTRY}/djl-inference@sha256:{'0' * 64}"})
    check_image({"Image": "111122223333.dkr.ecr.us-east-1.amazonaws.com/theirs:1"})
    access = {"RepositoryAccessMode": "Vpc"}
    check_image({"Image": "registry.example/mine:1", "ImageConfig": access})
    ecr = aws.session.client("ecr")
    ecr.create_repository(repositoryName="mine")
    ecr.put_image(repositoryName="mine", imageManifest=MANIFEST, imageTag="1")
    own = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mine"
    check_image({"Image": f"{own}:1"})
    with pytest.raises(AwsFault, match="not found"):
        check_image({"Image": f"{own}:2"})
    ecr.delete_repository(repositoryName="mine", force=True)


@pytest.mark.parametrize(
    ("instance", "tag", "ami", "starts"),
    [
        ("ml.g5.xlarge", "0.36.0-lmi27.0.0-cu130", None, False),
        ("ml.g4dn.xlarge", "0.38.0-lmi29.0.0-cu130", None, False),
        ("ml.p4d.24xlarge", "0.36.0-lmi27.0.0-cu130", None, False),
        ("ml.g5.xlarge", "0.36.0-lmi27.0.0-cu130", AMI, True),
        (
            "ml.g5.xlarge",
            "0.36.0-lmi27.0.0-cu130",
            "al2-ami-sagemaker-inference-gpu-3-1",
            False,
        ),
        ("ml.g5.xlarge", "0.34.0-lmi16.0.0-cu128", None, True),
        ("ml.g6.xlarge", "0.36.0-lmi27.0.0-cu130", None, True),
        ("ml.m5.large", "0.36.0-lmi27.0.0-cu130", None, True),
        (
            "ml.g5.xlarge",
            "2.9.0-transformers5.3.0-gpu-py312-cu130-ubuntu22.04",
            "",
            False,
        ),
    ],
)
def test_an_image_of_cuda_13_needs_a_driver_that_runs_it(
    instance, tag, ami, starts
) -> None:
    variant = {"VariantName": "a", "InstanceType": instance}
    if ami:
        variant["InferenceAmiVersion"] = ami
    why = cannot_start({"Image": f"{REGISTRY}/djl-inference:{tag}"}, variant)
    assert (why is None) == starts
    if why is not None:
        assert why.startswith("CannotStartContainerError. Please ensure the model")
        assert f"Set InferenceAmiVersion to {AMI} in" in why


def test_such_an_endpoint_fails_and_writes_no_log(aws, guard) -> None:
    name = new_config(aws, guard, {"model.py": ECHO}, "old-driver")
    client = aws.session.client("sagemaker")
    config = client.describe_endpoint_config(EndpointConfigName=name)
    (variant,) = config["ProductionVariants"]
    del variant["InferenceAmiVersion"]
    name = guard.name("without")
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    waiter = client.get_waiter("endpoint_in_service")
    with pytest.raises(WaiterError, match="Failed"):
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1})
    found = client.describe_endpoint(EndpointName=name)
    assert found["FailureReason"].startswith("CannotStartContainerError")
    groups = aws.session.client("logs").describe_log_groups(
        logGroupNamePrefix=LOG_GROUPS + name
    )["logGroups"]
    assert groups == []


def test_a_configuration_names_models_that_exist(aws, guard) -> None:
    client = aws.session.client("sagemaker")
    with pytest.raises(ClientError, match="Could not find model"):
        client.create_endpoint_config(
            EndpointConfigName=guard.name("c"), ProductionVariants=[VARIANT]
        )
    with pytest.raises(ClientError, match="Could not find endpoint configuration"):
        client.create_endpoint(
            EndpointName=guard.name("e"), EndpointConfigName="nosuch"
        )
    address = upload(aws, guard, {"model.py": ECHO})
    assert address.startswith("s3://")
    name = new_config(aws, guard, {"model.py": ECHO}, "sound")
    client.delete_model(ModelName=name)
    with pytest.raises(ClientError, match="Could not find model"):
        client.create_endpoint(EndpointName=guard.name("e"), EndpointConfigName=name)


# --- invocations ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("TargetModel", "a.tar.gz", "is not a multi-model endpoint and does not"),
        ("InferenceComponentName", "a", "has no inference components"),
        ("TargetContainerHostname", "a", "has one container"),
        ("SessionId", "NEW_SESSION", "keeps no sessions"),
        ("EnableExplanations", "`true`", "has no explainer"),
        ("TargetVariant", "nosuch", "Could not find the requested production variant"),
        ("TargetVariant", "a_b", "at 'targetVariant' failed to satisfy constraint"),
        ("CustomAttributes", "a" * 1025, "at 'customAttributes' failed to satisfy"),
        ("InferenceId", "a" * 65, "at 'inferenceId' failed to satisfy constraint"),
    ],
)
def test_what_such_an_endpoint_does_not_have(
    aws, echo, parameter, value, message
) -> None:
    with pytest.raises(ClientError) as failure:
        ask(aws, echo.endpoint_name, 1, **{parameter: value})
    assert failure.value.response["Error"]["Code"] == "ValidationError"
    assert message in failure.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    "call", ["invoke_endpoint", "invoke_endpoint_with_response_stream"]
)
@pytest.mark.parametrize("size", [6_291_457, 17 * 1024**2])
def test_a_body_beyond_six_mebibytes_is_refused(aws, echo, call, size) -> None:
    client = aws.session.client("sagemaker-runtime")
    with pytest.raises(ClientError, match="HTTP content length exceeded") as failure:
        getattr(client, call)(EndpointName=echo.endpoint_name, Body=b"1" * size)
    assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert failure.value.response["Error"]["Code"] == "413"


def test_a_body_of_six_mebibytes_is_answered(aws, echo) -> None:
    text = "a" * (6_291_456 - 2)
    assert ask(aws, echo.endpoint_name, text) == text
