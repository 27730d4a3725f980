"""The ledger of what bills: everything is recorded, and nothing else is deleted."""

import pytest
from botocore.exceptions import ClientError

from utils.billing import TAG, BillingGuard, DeploymentError
from utils.course import run_config
from utils.local_aws import OfflineAws, connect


@pytest.fixture(scope="module")
def aws():
    yield connect(run_config({}))
    OfflineAws.running().close()


def create_model(session, aws, name, **more):
    session.client("sagemaker").create_model(
        ModelName=name,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": "x"},
        **more,
    )


def models(aws):
    return {
        item["ModelName"]
        for item in aws.session.client("sagemaker").list_models()["Models"]
    }


def silent(_):
    pass


def test_what_is_created_is_recorded_tagged_and_deleted(aws):
    with BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        aws.session.client("s3").put_object(Bucket=aws.bucket, Key="k", Body=b"x")
        assert [entry.kind for entry in guard.entries] == ["model", "S3 object"]
        assert guard.remaining() == [f"model {guard.name('a')}"]
        assert guard.run not in guard._repr_markdown_()
    assert guard.remaining() == []
    assert models(aws) == set()
    listed = aws.session.client("s3").list_objects_v2(Bucket=aws.bucket)
    assert listed["KeyCount"] == 0


def test_teardown_can_be_repeated_and_follows_a_deletion_by_hand(aws):
    with BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        aws.session.client("sagemaker").delete_model(ModelName=guard.name("a"))
        guard.teardown()
        guard.teardown()
        assert all(entry.deleted for entry in guard.entries)


def test_an_error_inside_deletes_everything(aws):
    with pytest.raises(ZeroDivisionError), BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        raise ZeroDivisionError
    assert models(aws) == set()


def test_what_others_created_is_never_touched(aws):
    import boto3

    other = boto3.Session(region_name=aws.region)
    create_model(other, aws, "by-hand")
    create_model(other, aws, "other-run", Tags=[{"Key": TAG, "Value": "another"}])
    with BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        with pytest.raises(ClientError, match="already existing"):
            create_model(aws.session, aws, "by-hand")
    assert models(aws) == {"by-hand", "other-run"}
    assert guard.remaining() == []
    assert ("model other-run", "another") in guard.tagged()
    for name in ("by-hand", "other-run"):
        other.client("sagemaker").delete_model(ModelName=name)


def test_a_second_guard_closes_the_first(aws):
    first = BillingGuard(aws, silent)
    create_model(aws.session, aws, first.name("a"))
    with BillingGuard(aws, silent) as second:
        assert models(aws) == set()
        create_model(aws.session, aws, second.name("a"))
        assert len(first.entries) == 1
    assert models(aws) == set()


def test_what_cannot_be_deleted_is_named(aws, monkeypatch):
    guard = BillingGuard(aws, silent)
    create_model(aws.session, aws, guard.name("a"))

    def refuse(entry):
        raise RuntimeError("access denied")

    monkeypatch.setattr(guard, "_delete", refuse)
    with pytest.raises(DeploymentError, match=f"{guard.name('a')}: access denied"):
        guard.teardown()
    monkeypatch.undo()
    guard.close()
    assert models(aws) == set()


def test_a_failing_cell_deletes_everything(aws):
    class Result:
        success = False

    said = []
    with BillingGuard(aws, said.append) as guard:
        create_model(aws.session, aws, guard.name("a"))
        Result.success = True
        guard._after_cell(Result)
        assert models(aws) == {guard.name("a")}
        Result.success = False
        guard._after_cell(Result)
        assert models(aws) == set()
        guard._after_cell(Result)
    assert len(said) == 1


def test_a_later_guard_watches_what_the_sdk_creates(aws):
    """The SDK keeps its client, which has copied the handlers of its time."""
    from sagemaker.core.resources import Model
    from sagemaker.core.shapes import ContainerDefinition

    where = {"session": aws.session, "region": aws.region}
    for _ in range(3):
        with BillingGuard(aws, silent) as guard:
            Model.create(
                model_name=guard.name("a"),
                execution_role_arn=aws.role,
                primary_container=ContainerDefinition(image="x"),
                **where,
            )
            assert [entry.name for entry in guard.entries] == [guard.name("a")]
            assert guard.remaining() == [f"model {guard.name('a')}"]
        assert models(aws) == set()


def test_log_group_stays_when_a_cell_fails_and_goes_with_the_teardown(aws):
    class Failed:
        success = False

    logs = aws.session.client("logs")
    with BillingGuard(aws, silent) as guard:
        name = guard.name("a")
        create_model(aws.session, aws, name)
        guard._noter("endpoint", "EndpointName")({"EndpointName": name})
        logs.create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{name}")
        guard._after_cell(Failed)
        left = [f"log group /aws/sagemaker/Endpoints/{name}"]
        assert guard.remaining() == left
        guard.teardown()
        guard.teardown()
        assert guard.remaining() == []
