"""The offline AWS's model registry and its shares of traffic forget nothing.

It takes about 10 seconds.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.endpoints import ECHO, IMAGE, deploy, upload
from utils.deployment.aws import wait_until_in_service

SPECIFICATION = {
    "Containers": [{"Image": IMAGE, "ModelDataUrl": "s3://bucket/model.tar.gz"}],
    "SupportedContentTypes": ["application/json"],
    "SupportedResponseMIMETypes": ["application/json"],
}


@pytest.fixture(scope="module")
def client(aws) -> Any:
    return aws.session.client("sagemaker")


@pytest.fixture
def group(client) -> Iterator[str]:
    name = f"course-{uuid.uuid4().hex[:8]}-versions"
    client.create_model_package_group(ModelPackageGroupName=name)
    yield name
    listed = client.list_model_packages(ModelPackageGroupName=name)
    for package in listed["ModelPackageSummaryList"]:
        client.delete_model_package(ModelPackageName=package["ModelPackageArn"])
    with contextlib.suppress(ClientError):  # a test has deleted it
        client.delete_model_package_group(ModelPackageGroupName=name)


def add(client: Any, group: str, **more: Any) -> str:
    given = {"InferenceSpecification": SPECIFICATION} | more
    return client.create_model_package(ModelPackageGroupName=group, **given)[
        "ModelPackageArn"
    ]


def described(client: Any, name: str) -> dict[str, Any]:
    return client.describe_model_package(ModelPackageName=name)


@pytest.mark.parametrize(
    "change",
    [
        {"ModelApprovalStatus": "Approved"},
        {"ModelApprovalStatus": "Rejected", "ApprovalDescription": "too slow"},
        {"ApprovalDescription": "looked at"},
        {"CustomerMetadataProperties": {"more": "1"}},
        {"CustomerMetadataPropertiesToRemove": ["seed"]},
    ],
)
def test_an_update_changes_what_it_names_and_nothing_else(
    client, group, change
) -> None:
    arn = add(client, group, CustomerMetadataProperties={"data": "ab12", "seed": "1"})
    before = described(client, arn)
    client.update_model_package(ModelPackageArn=arn, **change)
    after = described(client, arn)
    properties = before["CustomerMetadataProperties"]
    properties |= change.get("CustomerMetadataProperties", {})
    for name in change.get("CustomerMetadataPropertiesToRemove", ()):
        del properties[name]
    expected = before | change | {"CustomerMetadataProperties": properties}
    expected.pop("CustomerMetadataPropertiesToRemove", None)
    for when in ("LastModifiedTime", "LastModifiedBy", "ResponseMetadata"):
        expected.pop(when, None)
        after.pop(when, None)
    assert after == expected


def test_a_second_update_keeps_what_the_first_said(client, group) -> None:
    arn = add(client, group)
    client.update_model_package(
        ModelPackageArn=arn,
        ModelApprovalStatus="Approved",
        ApprovalDescription="better by 4 points",
    )
    client.update_model_package(
        ModelPackageArn=arn, CustomerMetadataProperties={"by": "Ada"}
    )
    found = described(client, arn)
    assert found["ModelApprovalStatus"] == "Approved"
    assert found["ApprovalDescription"] == "better by 4 points"


def test_a_new_version_waits_for_its_approval(client, group) -> None:
    found = described(client, add(client, group))
    assert found["ModelApprovalStatus"] == "PendingManualApproval"
    assert found["ModelPackageStatus"] == "Completed"
    assert found["ModelPackageVersion"] == 1


def test_a_number_is_never_given_again(client, group) -> None:
    arns = [add(client, group) for _ in range(3)]
    assert [arn.rpartition("/")[2] for arn in arns] == ["1", "2", "3"]
    client.delete_model_package(ModelPackageName=arns[1])
    client.delete_model_package(ModelPackageName=f"{group}/3")
    assert add(client, group).endswith("/4")
    listed = client.list_model_packages(ModelPackageGroupName=group)
    found = [one["ModelPackageVersion"] for one in listed["ModelPackageSummaryList"]]
    assert sorted(found) == [1, 4]


def test_a_group_is_deleted_once_it_is_empty(client, group) -> None:
    arn = add(client, group)
    with pytest.raises(client.exceptions.ConflictException, match="1 model packages"):
        client.delete_model_package_group(ModelPackageGroupName=group)
    client.delete_model_package(ModelPackageName=arn)
    client.delete_model_package_group(ModelPackageGroupName=group)
    with pytest.raises(ClientError, match="does not exist"):
        client.describe_model_package_group(ModelPackageGroupName=group)


@pytest.mark.parametrize(
    "call",
    [
        lambda client, group: client.describe_model_package(
            ModelPackageName=f"{group}/7"
        ),
        lambda client, group: client.delete_model_package(
            ModelPackageName=f"{group}/7"
        ),
        lambda client, group: client.update_model_package(
            ModelPackageArn="arn:aws:sagemaker:us-east-1:123456789012:model-package/"
            f"{group}/7",
            ModelApprovalStatus="Approved",
        ),
        lambda client, group: add(client, "course-nosuch"),
        lambda client, group: client.delete_model_package_group(
            ModelPackageGroupName="course-nosuch"
        ),
    ],
)
def test_what_there_is_not_is_said_to_be_missing(client, group, call) -> None:
    with pytest.raises(ClientError, match=r"ValidationException.*does not exist"):
        call(client, group)


def test_a_name_is_taken_once(client, group) -> None:
    with pytest.raises(ClientError, match="already exists"):
        client.create_model_package_group(ModelPackageGroupName=group)


def test_tags_belong_to_the_group(client, group) -> None:
    with pytest.raises(ClientError, match="tags of its group"):
        add(client, group, Tags=[{"Key": "a", "Value": "b"}])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"ModelApprovalStatus": "Accepted"}, "enum value set"),
        ({"ModelApprovalStatus": "approved"}, "enum value set"),
        ({"CustomerMetadataProperties": {"a": "b" * 257}}, "length less than or"),
        ({"CustomerMetadataProperties": {"a": "83%"}}, "regular expression"),
        ({"CustomerMetadataProperties": {"a,b": "1"}}, "regular expression"),
        (
            {"CustomerMetadataProperties": {str(i): "1" for i in range(51)}},
            "length less than or equal to 50",
        ),
    ],
)
def test_limits_of_aws_hold(client, group, given, complaint) -> None:
    with pytest.raises(ClientError, match=complaint):
        add(client, group, **given)
    arn = add(client, group)
    with pytest.raises(ClientError, match=complaint):
        client.update_model_package(ModelPackageArn=arn, **given)


def test_properties_added_one_by_one_are_limited_as_well(client, group) -> None:
    many = {str(number): "1" for number in range(50)}
    arn = add(client, group, CustomerMetadataProperties=many)
    with pytest.raises(ClientError, match="51 entries"):
        client.update_model_package(
            ModelPackageArn=arn, CustomerMetadataProperties={"more": "1"}
        )


# --- shares of the traffic ------------------------------------------------------------


def test_new_weights_keep_counts_and_new_counts_keep_weights(aws, guard) -> None:
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address, variants={"base": 1, "tuned": 5})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    client = aws.session.client("sagemaker")
    name = {"EndpointName": endpoint.endpoint_name}

    def state() -> dict[str, tuple[float, int]]:
        found = client.describe_endpoint(**name)["ProductionVariants"]
        assert all(
            one["DesiredInstanceCount"] == one["CurrentInstanceCount"] for one in found
        )
        return {
            one["VariantName"]: (one["CurrentWeight"], one["CurrentInstanceCount"])
            for one in found
        }

    assert state() == {"base": (1.0, 1), "tuned": (5.0, 1)}
    for change, expected in (
        ({"DesiredWeight": 3.0}, {"base": (1.0, 1), "tuned": (3.0, 1)}),
        ({"DesiredInstanceCount": 2}, {"base": (1.0, 1), "tuned": (3.0, 2)}),
        ({"DesiredWeight": 0.0}, {"base": (1.0, 1), "tuned": (0.0, 2)}),
    ):
        client.update_endpoint_weights_and_capacities(
            **name,
            DesiredWeightsAndCapacities=[{"VariantName": "tuned", **change}],
        )
        assert state() == expected
