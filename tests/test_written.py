"""Asynchronous replies are deleted with their endpoint, in this run's folders only."""

from __future__ import annotations

import dataclasses

import boto3
import pytest
import test_offline_asynchronous as asynchronous
from botocore.exceptions import ClientError

from support.endpoints import AMI, IMAGE
from utils.deployment import written
from utils.deployment.aws import DeploymentError
from utils.deployment.billing import BillingGuard

BUCKET = "course-replies"


@pytest.fixture(params=["kept", "not kept"])
def account(aws, request):
    """An account with a bucket that keeps versions, or does not."""
    s3 = aws.session.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    if request.param == "kept":
        s3.put_bucket_versioning(
            Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"}
        )
    yield dataclasses.replace(aws, bucket=BUCKET)
    written.delete(s3, f"s3://{BUCKET}/")
    s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def sagemaker_itself(aws):
    """A session that no guard watches, as which SageMaker writes the replies."""
    return boto3.Session(region_name=aws.region).client("s3")


def describe(account, name: str, **output: str) -> None:
    client = account.session.client("sagemaker")
    client.create_model(
        ModelName=name, ExecutionRoleArn=account.role, PrimaryContainer={"Image": IMAGE}
    )
    variant = {"VariantName": "a", "ModelName": name, "InstanceType": "ml.g5.xlarge"}
    variant |= {"InferenceAmiVersion": AMI, "InitialInstanceCount": 1}
    more = {"AsyncInferenceConfig": {"OutputConfig": output}} if output else {}
    client.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant], **more
    )


def start(account, name: str, configuration: str | None = None) -> None:
    account.session.client("sagemaker").create_endpoint(
        EndpointName=name, EndpointConfigName=configuration or name
    )


def keys(s3) -> list[str]:
    found = s3.list_object_versions(Bucket=BUCKET)
    listed = (*found.get("Versions", []), *found.get("DeleteMarkers", []))
    return sorted({one["Key"] for one in listed})


@pytest.mark.parametrize("slash", ["", "/"])
def test_replies_and_failures_go_and_neighbours_stay(
    account, sagemaker_itself, slash
) -> None:
    s3 = sagemaker_itself
    with BillingGuard(account, lambda _: None) as guard:
        name = guard.name("later")
        place = f"s3://{BUCKET}/{name}"
        where = {"S3OutputPath": f"{place}/out{slash}", "S3FailurePath": f"{place}/bad"}
        describe(account, name, **where)
        start(account, name)
        for key in ("out/1.out", "out/a/2.out", "bad/3-error.out"):
            for body in (b"old", b"new"):
                s3.put_object(Bucket=BUCKET, Key=f"{name}/{key}", Body=body)
        s3.delete_object(Bucket=BUCKET, Key=f"{name}/out/1.out")  # leaves a marker
        stays = [f"{name}-2/out/keep", f"{name}/bad-2/keep", f"{name}/out"]
        for key in stays:
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        assert f"| `s3://{BUCKET}/course-…-later/out/` |" in guard._repr_markdown_()
        guard.teardown()
        guard.teardown()
        assert keys(s3) == sorted(stays)
        assert all(entry.deleted for entry in guard.entries)


@pytest.mark.parametrize(
    "elsewhere", ["s3://{0}/replies", "s3://{0}/course-other-faq/out", "s3://{1}/out"]
)
def test_a_place_that_is_not_the_runs_own_is_named_and_kept(
    account, sagemaker_itself, elsewhere
) -> None:
    said: list[str] = []
    other_bucket = f"{BUCKET}-2"
    place = elsewhere.format(BUCKET, other_bucket)
    bucket, _, folder = place.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": f"{folder}/1.out"}
    sagemaker_itself.create_bucket(Bucket=other_bucket)
    with BillingGuard(account, said.append) as guard:
        name = guard.name("later")
        describe(account, name, S3OutputPath=place)
        start(account, name)
        sagemaker_itself.put_object(**where, Body=b"x")
        said.clear()
        guard.teardown()
        sagemaker_itself.head_object(**where)
        line = next(line for line in said if f"{place}/." in line)
        assert name in line and "nothing there was deleted" in line
    sagemaker_itself.delete_object(**where)
    sagemaker_itself.delete_bucket(Bucket=other_bucket)


def test_only_an_endpoint_that_the_run_made_counts(account, sagemaker_itself) -> None:
    """One by hand keeps its replies, though the run tried to take its name."""
    theirs = boto3.Session(region_name=account.region)
    said: list[str] = []
    with BillingGuard(account, said.append) as guard:
        mine = guard.name("later")
        describe(account, mine, S3OutputPath=f"s3://{BUCKET}/{mine}/out")
        by_hand = dataclasses.replace(account, session=theirs)
        start(by_hand, "by-hand", mine)
        with pytest.raises(ClientError, match="already existing endpoint"):
            start(account, "by-hand", mine)
        key = f"{mine}/out/1.out"
        sagemaker_itself.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        guard.teardown()
        assert keys(sagemaker_itself) == [key]
    theirs.client("sagemaker").delete_endpoint(EndpointName="by-hand")


def test_a_configuration_from_before_the_guard_is_read_and_so_is_an_update(
    account, sagemaker_itself
) -> None:
    theirs = boto3.Session(region_name=account.region)
    before = dataclasses.replace(account, session=theirs)
    with BillingGuard(account, lambda _: None) as guard:
        mine = guard.name("a")
        places = [f"s3://{BUCKET}/{mine}/{part}" for part in ("one", "two")]
        for configuration, place in zip(("first", "second"), places, strict=True):
            describe(before, configuration, S3OutputPath=place)
        start(account, mine, "first")
        guard._note_update({"EndpointName": mine, "EndpointConfigName": "second"})
        for key in ("one/1.out", "two/2.out"):
            sagemaker_itself.put_object(Bucket=BUCKET, Key=f"{mine}/{key}", Body=b"x")
        guard.teardown()
        assert keys(sagemaker_itself) == []
    client = theirs.client("sagemaker")
    for name in ("first", "second"):
        client.delete_endpoint_config(EndpointConfigName=name)
        client.delete_model(ModelName=name)


def test_while_the_endpoint_stays_its_replies_do(
    account, sagemaker_itself, monkeypatch
) -> None:
    guard = BillingGuard(account, lambda _: None)
    name = guard.name("later")
    describe(account, name, S3OutputPath=f"s3://{BUCKET}/{name}")
    start(account, name)
    key = f"{name}/1.out"
    sagemaker_itself.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    delete = guard._delete

    def refuse(entry):
        if entry.kind == "endpoint":
            raise RuntimeError("access denied")
        delete(entry)

    monkeypatch.setattr(guard, "_delete", refuse)
    with pytest.raises(DeploymentError, match=f"endpoint {name}: access denied"):
        guard.teardown()
    assert keys(sagemaker_itself) == [key]
    monkeypatch.undo()
    guard.close()
    assert keys(sagemaker_itself) == []


def test_more_than_one_call_can_take_and_what_s3_keeps_is_named(
    account, sagemaker_itself, monkeypatch
) -> None:
    monkeypatch.setattr(written, "AT_ONCE", 2)
    for number in range(5):
        sagemaker_itself.put_object(Bucket=BUCKET, Key=f"a/{number}", Body=b"x")
    written.delete(sagemaker_itself, f"s3://{BUCKET}/a/")
    assert keys(sagemaker_itself) == []
    sagemaker_itself.put_object(Bucket=BUCKET, Key="a/kept", Body=b"x")
    error = {"Key": "a/kept", "Code": "AccessDenied", "Message": "no"}
    refused = lambda **_: {"Errors": [error]}  # noqa: E731
    monkeypatch.setattr(sagemaker_itself, "delete_objects", refused)
    with pytest.raises(DeploymentError, match="a/kept was not deleted .AccessDenied"):
        written.delete(sagemaker_itself, f"s3://{BUCKET}/a/")


def test_a_reply_that_the_offline_endpoint_wrote_goes_too(aws) -> None:
    with BillingGuard(aws, lambda _: None) as guard:
        place = f"s3://{aws.bucket}/{guard.name('replies')}"
        endpoint = asynchronous.create(aws, guard, S3OutputPath=place)
        reply = endpoint.invoke(Body=b'"a"')
        endpoint.wait(reply["OutputLocation"])
        assert f"S3 objects {place}/" in guard.remaining()
        guard.teardown()
        assert guard.remaining() == []
