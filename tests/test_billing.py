"""The ledger of what bills: everything is recorded, and nothing else is deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from support.endpoints import AMI, IMAGE
from utils.deployment import billing, ledger, tagged
from utils.deployment.aws import DeploymentError
from utils.deployment.billing import TAG, BillingGuard
from utils.deployment.prices import Price, read_snapshot


def create_model(session, aws, name, **more):
    session.client("sagemaker").create_model(
        ModelName=name,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": IMAGE},
        **more,
    )


def models(aws):
    return {
        item["ModelName"]
        for item in aws.session.client("sagemaker").list_models()["Models"]
    }


def silent(_):
    pass


def test_what_is_created_is_recorded_tagged_and_deleted(aws) -> None:
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


def test_teardown_can_be_repeated_and_follows_a_deletion_by_hand(aws) -> None:
    with BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        aws.session.client("sagemaker").delete_model(ModelName=guard.name("a"))
        guard.teardown()
        guard.teardown()
        assert all(entry.deleted for entry in guard.entries)


def test_an_error_inside_deletes_everything(aws) -> None:
    with pytest.raises(ZeroDivisionError), BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        raise ZeroDivisionError
    assert models(aws) == set()


def test_what_others_created_is_never_touched(aws) -> None:
    other = boto3.Session(region_name=aws.region)
    create_model(other, aws, "by-hand")
    create_model(other, aws, "other-run", Tags=[{"Key": TAG, "Value": "another"}])
    create_model(other, aws, "course-1-a", Tags=[{"Key": TAG, "Value": "lost"}])
    with BillingGuard(aws, silent) as guard:
        create_model(aws.session, aws, guard.name("a"))
        with pytest.raises(ClientError, match="already existing"):
            create_model(aws.session, aws, "by-hand")
    assert models(aws) == {"by-hand", "other-run", "course-1-a"}
    assert guard.remaining() == []
    assert guard.tagged() == [("model course-1-a", "lost")]
    for name in ("by-hand", "other-run", "course-1-a"):
        other.client("sagemaker").delete_model(ModelName=name)


def test_a_second_guard_closes_the_first(aws) -> None:
    first = BillingGuard(aws, silent)
    create_model(aws.session, aws, first.name("a"))
    with BillingGuard(aws, silent) as second:
        assert models(aws) == set()
        create_model(aws.session, aws, second.name("a"))
        assert len(first.entries) == 1
    assert models(aws) == set()


def test_what_cannot_be_deleted_is_named(aws, monkeypatch) -> None:
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


class Refused(io.BytesIO):
    """The body of AWS's answer to a call that a policy does not allow."""

    def __init__(self):
        super().__init__(b'{"__type": "AccessDeniedException", "message": "no right"}')

    def stream(self, **_):
        yield self.read()


def test_a_missing_right_is_told_at_once(aws) -> None:
    """It is not taken for an endpoint in transition, which is waited for."""

    tries = []

    def refuse(request, **_):
        tries.append(request)
        return AWSResponse(request.url, 403, {}, Refused())

    event = "before-send.sagemaker.DeleteModel"
    guard = BillingGuard(aws, silent)
    create_model(aws.session, aws, guard.name("a"))
    aws.session.events.register(event, refuse)
    with pytest.raises(DeploymentError, match="AccessDenied.*Delete them in the AWS"):
        guard.teardown()
    assert len(tries) == 1
    aws.session.events.unregister(event, refuse)
    guard.close()
    assert models(aws) == set()


def test_a_failing_cell_deletes_everything(aws) -> None:
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
    assert sum(line.startswith("The cell failed") for line in said) == 1


def test_a_failing_cell_ends_what_runs_on_this_machine(aws) -> None:
    """Also what was begun under an earlier guard, and though nothing was created."""

    class Failed:
        success = False

    said, ended = [], []

    def refuse() -> None:
        raise OSError("it is stuck")

    first = BillingGuard(aws, said.append)
    first.also_end("the server a", lambda: ended.append("a"))
    forget = first.also_end("the server b", lambda: ended.append("b"))
    with BillingGuard(aws, said.append) as guard:
        guard.also_end("the server c", refuse)
        forget()
        guard._after_cell(Failed)
        guard._after_cell(Failed)
        assert ended == ["a"]
        told = [line for line in said if line.startswith("The cell failed")]
        assert told == [
            "The cell failed, and the server c could not be ended: it is stuck",
            "The cell failed: the server a has been ended.",
        ]


def test_a_later_guard_watches_what_the_sdk_creates(aws) -> None:
    """The SDK keeps its client, which has copied the handlers of its time."""
    from sagemaker.core.resources import Model
    from sagemaker.core.shapes import ContainerDefinition

    where = {"session": aws.session, "region": aws.region}
    for _ in range(3):
        with BillingGuard(aws, silent) as guard:
            Model.create(
                model_name=guard.name("a"),
                execution_role_arn=aws.role,
                primary_container=ContainerDefinition(image=IMAGE),
                **where,
            )
            assert [entry.name for entry in guard.entries] == [guard.name("a")]
            assert guard.remaining() == [f"model {guard.name('a')}"]
        assert models(aws) == set()


def test_log_group_stays_when_a_cell_fails_and_goes_with_the_teardown(aws) -> None:
    class Failed:
        success = False

    logs = aws.session.client("logs")
    with BillingGuard(aws, silent) as guard:
        name = guard.name("a")
        create_endpoint(aws.session, aws, name)
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{name}")
        guard._after_cell(Failed)
        left = [f"log group /aws/sagemaker/Endpoints/{name}"]
        assert guard.remaining() == left
        guard.teardown()
        guard.teardown()
        assert guard.remaining() == []


def create_endpoint(session, aws, name, instance_type="ml.g5.xlarge", count=1):
    """A model without an archive, which fails at once, behind an endpoint."""
    create_model(session, aws, name)
    create_config(session, name, instance_type, count)
    session.client("sagemaker").create_endpoint(
        EndpointName=name, EndpointConfigName=name
    )


def create_config(session, name, instance_type="ml.g5.xlarge", count=1):
    variant = {"VariantName": "a", "ModelName": name, "InstanceType": instance_type}
    variant["InferenceAmiVersion"] = AMI
    session.client("sagemaker").create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{**variant, "InitialInstanceCount": count}],
    )


def names(session, kind):
    client = session.client("sagemaker")
    listed = getattr(client, f"list_{kind}s")()
    key = "".join(word.capitalize() for word in kind.split("_"))
    return {item[f"{key}Name"] for item in listed[f"{key}s"]}


def everything(session):
    kinds = ("endpoint", "endpoint_config", "model")
    return set().union(*(names(session, kind) for kind in kinds))


def wait_for_log(logs, group):
    """Wait for the log, which is written once the endpoint has failed."""
    deadline = time.monotonic() + 60
    while not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def delete_log(session, endpoint):
    logs, group = session.client("logs"), f"/aws/sagemaker/Endpoints/{endpoint}"
    wait_for_log(logs, group)
    logs.delete_log_group(logGroupName=group)


@pytest.fixture
def by_hand(aws):
    """What a learner made without the guard; it must be there at the end."""
    session = boto3.Session(region_name=aws.region)
    create_endpoint(session, aws, "course-by-hand")
    s3, logs = session.client("s3"), session.client("logs")
    s3.put_object(Bucket=aws.bucket, Key="by-hand", Body=b"mine")
    group = "/aws/sagemaker/Endpoints/course-by-hand"
    wait_for_log(logs, group)
    yield session
    assert everything(session) == {"course-by-hand"}
    assert names(session, "endpoint") == {"course-by-hand"}
    assert s3.get_object(Bucket=aws.bucket, Key="by-hand")["Body"].read() == b"mine"
    found = logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]
    assert [item["logGroupName"] for item in found] == [group]
    client = session.client("sagemaker")
    client.delete_endpoint(EndpointName="course-by-hand")
    client.delete_endpoint_config(EndpointConfigName="course-by-hand")
    client.delete_model(ModelName="course-by-hand")
    logs.delete_log_group(logGroupName=group)
    s3.delete_object(Bucket=aws.bucket, Key="by-hand")


def test_what_was_made_by_hand_survives_even_under_the_same_names(aws, by_hand) -> None:
    """A create that fails because the name is taken must not lead to a deletion."""
    guard = BillingGuard(aws, silent)
    client = aws.session.client("sagemaker")
    with pytest.raises(ClientError, match="already existing model"):
        create_model(aws.session, aws, "course-by-hand")
    with pytest.raises(ClientError, match="already existing endpoint configuration"):
        create_config(aws.session, "course-by-hand")
    with pytest.raises(ClientError, match="already existing endpoint"):
        client.create_endpoint(
            EndpointName="course-by-hand", EndpointConfigName="course-by-hand"
        )
    aws.session.client("s3").put_object(Bucket=aws.bucket, Key="by-hand", Body=b"run's")
    by_hand.client("s3").put_object(Bucket=aws.bucket, Key="by-hand", Body=b"mine")
    assert len(guard.entries) == 5
    guard.close()


def test_two_learners_in_one_account(aws, by_hand) -> None:
    """Each deletes what is its own, in whatever order they end."""
    anna = BillingGuard(aws, silent)
    BillingGuard.active = None  # in her process there is no other guard
    session = boto3.Session(region_name=aws.region)
    ben = BillingGuard(dataclasses.replace(aws, session=session), silent)
    for guard in (anna, ben):
        session, name = guard.aws.session, guard.name("faq")
        create_endpoint(session, aws, name)
        session.client("s3").put_object(Bucket=aws.bucket, Key=name, Body=b"x")
    assert anna.remaining() != ben.remaining()
    anna.close()
    assert everything(session) == {ben.name("faq"), "course-by-hand"}
    assert names(session, "endpoint") == {ben.name("faq"), "course-by-hand"}
    listed = session.client("s3").list_objects_v2(Bucket=aws.bucket)["Contents"]
    assert {item["Key"] for item in listed} == {ben.name("faq"), "by-hand"}
    assert {run for _, run in anna.tagged()} == {ben.run}
    ben.close()


def test_what_is_left_is_listed_at_the_end(aws) -> None:
    said = []
    other = boto3.Session(region_name=aws.region)
    lost = [{"Key": TAG, "Value": "lost"}]
    create_model(other, aws, "course-lost-a", Tags=lost)
    with BillingGuard(aws, said.append) as guard:
        create_model(aws.session, aws, guard.name("a"))
        said.clear()
        guard.teardown()
        assert said[1] == "  model course-lost-a, course-run lost: nothing"
        assert said[2].split()[:3] == ["aws", "sagemaker", "delete-model"]
        assert not any(guard.run in line for line in said)
        other.client("sagemaker").delete_model(ModelName="course-lost-a")
        said.clear()
        guard.teardown()
        assert "nothing of the course is left, of what was looked at" in said[0]


# --- what no handler of this guard sees -----------------------------------------------


def test_a_client_of_the_guard_before_creates_for_the_guard_after(aws) -> None:
    """A guard's cell that is run twice: a client keeps the handlers of its time."""
    first = BillingGuard(aws, silent)
    client = aws.session.client("sagemaker")
    with BillingGuard(aws, silent) as second:
        client.create_model(
            ModelName=second.name("a"),
            ExecutionRoleArn=aws.role,
            PrimaryContainer={"Image": IMAGE},
        )
        assert first.entries == []
        assert guard_names(second) == [second.name("a")]
        assert second.tagged() == [(f"model {second.name('a')}", second.run)]
    assert models(aws) == set()


def guard_names(guard):
    return [entry.name for entry in guard.entries]


def test_what_a_client_from_before_the_guard_creates_is_listed_not_deleted(aws) -> None:
    """Neither the tag nor the ledger knows of it; the account does."""
    session = boto3.Session(region_name=aws.region)
    before = session.client("sagemaker")
    said = []
    with BillingGuard(aws, said.append) as guard:
        plain, strange = guard.name("b"), "my-llm-endpoint"
        create_model(session, aws, plain)
        create_config(session, plain)
        for name in (plain, strange):
            before.create_endpoint(EndpointName=name, EndpointConfigName=plain)
        assert guard.entries == []
        assert f"endpoint {plain}" in guard.remaining()
        said.clear()
        guard.teardown()
        for name in (plain, strange):
            line = next(n for n, line in enumerate(said) if f"endpoint {name} " in line)
            assert f"${price('ml.g5.xlarge'):.4f} an hour" in said[line]
            end = f"delete-endpoint --endpoint-name {name} --region {aws.region}"
            assert said[line + 1] == f"    aws sagemaker {end}"
        assert not any("nothing bills" in line for line in said)
        assert names(session, "endpoint") == {plain, strange}
        for name in (plain, strange):
            wait_for_log(session.client("logs"), f"/aws/sagemaker/Endpoints/{name}")
            before.delete_endpoint(EndpointName=name)
        before.delete_endpoint_config(EndpointConfigName=plain)
        before.delete_model(ModelName=plain)
        delete_log(session, plain)
    assert guard.remaining() == []


def test_a_guard_lists_at_its_start_what_another_runs(aws) -> None:
    """Another kernel has an endpoint up: it is named, with its run, and stays."""
    other = BillingGuard(aws, silent)
    create_endpoint(aws.session, aws, other.name("faq"))
    BillingGuard.active = None  # in that kernel's process there is no other guard
    said = []
    session = boto3.Session(region_name=aws.region)
    with BillingGuard(dataclasses.replace(aws, session=session), said.append):
        start = "\n".join(said)
        assert "this bills by the hour. No guard deletes it; you can:" in said[0]
        assert f"  endpoint {other.name('faq')} " in start
        assert f"{TAG} {other.run}: 1 × ml.g5.xlarge, $" in start
    assert names(session, "endpoint") == {other.name("faq")}
    other.close()
    assert names(session, "endpoint") == set()


# --- deleting -------------------------------------------------------------------------


@pytest.fixture
def versioned(aws):
    """A bucket that keeps the versions of its objects."""
    s3 = aws.session.client("s3")
    s3.create_bucket(Bucket="versioned")
    s3.put_bucket_versioning(
        Bucket="versioned", VersioningConfiguration={"Status": "Enabled"}
    )
    yield dataclasses.replace(aws, bucket="versioned")
    listed = s3.list_object_versions(Bucket="versioned")
    for item in (*listed.get("Versions", []), *listed.get("DeleteMarkers", [])):
        s3.delete_object(
            Bucket="versioned", Key=item["Key"], VersionId=item["VersionId"]
        )
    s3.delete_bucket(Bucket="versioned")


def test_all_versions_of_an_upload_go_and_a_neighbour_stays(versioned) -> None:
    theirs = boto3.Session(region_name=versioned.region).client("s3")
    with BillingGuard(versioned, silent) as guard:
        s3, key = versioned.session.client("s3"), guard.name("faq")
        theirs.put_object(Bucket="versioned", Key=f"{key}-2", Body=b"neighbour")
        for body in (b"one", b"two"):
            s3.put_object(Bucket="versioned", Key=key, Body=body)
        s3.delete_object(Bucket="versioned", Key=key)  # leaves a marker
        assert f"S3 objects s3://versioned/{key}" in guard.remaining()
        guard.teardown()
        assert guard.remaining() == [f"S3 objects s3://versioned/{key}-2"]
    listed = theirs.list_object_versions(Bucket="versioned")
    assert [item["Key"] for item in listed["Versions"]] == [f"{key}-2"]
    assert "DeleteMarkers" not in listed


def test_what_others_wrote_under_the_same_key_stays(versioned) -> None:
    theirs = boto3.Session(region_name=versioned.region).client("s3")
    theirs.put_object(Bucket="versioned", Key="k", Body=b"theirs")
    with BillingGuard(versioned, silent):
        versioned.session.client("s3").put_object(
            Bucket="versioned", Key="k", Body=b"ours"
        )
    listed = theirs.list_object_versions(Bucket="versioned")["Versions"]
    assert len(listed) == 1
    found = theirs.get_object(Bucket="versioned", Key="k")["Body"].read()
    assert found == b"theirs"


def test_an_upload_in_parts_that_broke_off_is_ended_and_anothers_is_not(aws) -> None:
    theirs = boto3.Session(region_name=aws.region).client("s3")
    with BillingGuard(aws, silent) as guard:
        where = {"Bucket": aws.bucket, "Key": guard.name("big")}
        mine = aws.session.client("s3").create_multipart_upload(**where)["UploadId"]
        other = theirs.create_multipart_upload(**where)["UploadId"]
        assert mine != other
        guard.teardown()
        left = theirs.list_multipart_uploads(Bucket=aws.bucket)["Uploads"]
        assert [item["UploadId"] for item in left] == [other]
        address = f"s3://{aws.bucket}/{guard.name('big')}"
        assert guard.remaining() == [f"incomplete upload {address}"]
        theirs.abort_multipart_upload(**where, UploadId=other)
    assert guard.remaining() == []


def test_teardown_waits_for_an_endpoint_that_is_being_created(aws, monkeypatch) -> None:
    """SageMaker refuses to delete it until then; the refusal is not the end."""
    answers = []

    class Busy(io.BytesIO):
        def stream(self, **_):
            yield self.read()

    def refuse(request, **_):
        answers.append(request)
        if len(answers) > 2:
            return None
        text = b'{"__type": "ValidationException", "message": "in-progress endpoint"}'
        return AWSResponse(request.url, 400, {}, Busy(text))

    monkeypatch.setattr(tagged, "FIRST_POLL", 0.01)
    event = "before-send.sagemaker.DeleteEndpoint"
    with BillingGuard(aws, silent) as guard:
        create_endpoint(aws.session, aws, guard.name("faq"))
        aws.session.events.register(event, refuse)
        guard.teardown()
        aws.session.events.unregister(event, refuse)
        assert len(answers) >= 3
    assert names(aws.session, "endpoint") == set()


# --- what it costs --------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time that only moves when told to."""

    class Clock:
        now = 1_800_000_000.0

        def time(self):
            return self.now

        def __getattr__(self, name):
            return getattr(time, name)

    clock = Clock()
    monkeypatch.setattr(billing, "time", clock)
    monkeypatch.setattr(ledger, "time", clock)
    return clock


def snapshot_price(item: str) -> Price:
    return next(found for found in read_snapshot() if found.item == item)


def price(item: str) -> float:
    return snapshot_price(item).usd


def test_cost_an_hour_and_in_total(aws, clock) -> None:
    said = []
    guard = BillingGuard(aws, said.append)
    create_endpoint(aws.session, aws, guard.name("faq"), count=2)
    usd = 2 * price("ml.g5.xlarge")
    rate = f"2 × ml.g5.xlarge, ${usd:.4f} an hour"
    assert said[-1] == f"On AWS this bills from now on: {rate}."
    assert rate in guard._repr_markdown_()
    clock.now += 1800
    bill = guard.bill()
    assert bill.total == pytest.approx(usd / 2)
    assert "would have cost" in str(bill)
    shown = bill._repr_markdown_()
    assert f"2 × ml.g5.xlarge | 0.5000 | ${usd:.4f} | ${usd / 2:.4f} |" in shown
    assert f"read {snapshot_price('ml.g5.xlarge').read_on} in aws-samples" in shown
    guard.teardown()
    clock.now += 7200  # nothing is billed after the deletion
    assert guard.bill().total == pytest.approx(usd / 2)
    guard.close()


def test_update_bills_old_and_new_until_it_is_over(aws, clock) -> None:
    with BillingGuard(aws, silent) as guard:
        entry = guard._noter("endpoint", "EndpointName")
        for name, machine in (("old", "ml.g5.xlarge"), ("new", "ml.g4dn.xlarge")):
            guard._configurations[name] = ((machine, 1),)
        entry({"EndpointName": "e", "EndpointConfigName": "old"})
        clock.now += 3600
        guard._note_update({"EndpointName": "e", "EndpointConfigName": "new"})
        seen = {"EndpointName": "e", "EndpointConfigName": "old"}
        guard._see_end_of_update({**seen, "EndpointStatus": "Updating"})
        clock.now += 3600
        seen["EndpointConfigName"] = "new"
        for _ in range(2):
            guard._see_end_of_update({**seen, "EndpointStatus": "InService"})
        clock.now += 3600
        expected = 2 * price("ml.g5.xlarge") + 2 * price("ml.g4dn.xlarge")
        assert guard.bill().total == pytest.approx(expected)


def test_price_that_is_not_known_is_said_to_be_unknown(aws) -> None:
    with BillingGuard(aws, silent) as guard:
        create_endpoint(aws.session, aws, guard.name("faq"), "ml.p5.48xlarge")
        assert "price not known" in guard._repr_markdown_()
        bill = guard.bill()
        assert bill.total == 0
        assert "without 1 × ml.p5.48xlarge: no price known" in str(bill)


def test_uploads_cost_by_size(aws, clock) -> None:
    with BillingGuard(aws, silent) as guard:
        body = bytes(2_000_000)
        aws.session.client("s3").put_object(Bucket=aws.bucket, Key="k", Body=body)
        clock.now += 730 * 3600
        cost = guard.bill().total
        assert cost == pytest.approx(0.002 * price("S3 Standard"))
        guard.teardown()
        assert guard.bill().total == pytest.approx(cost)
