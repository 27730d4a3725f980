"""DynamoDB of the offline AWS: what an app needs of it, and no more than is played."""

from __future__ import annotations

import time
from collections.abc import Iterator

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from utils.deployment import attached, tables
from utils.deployment.asking import TAG
from utils.deployment.billing import BillingGuard

KEY = "request_id"


def create(session, name: str, **more) -> None:
    session.client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        **more,
    )


def names(session) -> list[str]:
    return session.client("dynamodb").list_tables()["TableNames"]


@pytest.fixture
def client(aws):
    return aws.session.client("dynamodb")


@pytest.fixture
def table(aws, client) -> Iterator[str]:
    """A table that no guard watches, which takes long to look around."""
    create(boto3.Session(region_name=aws.region), "items")
    yield "items"
    client.delete_table(TableName="items")


@pytest.fixture
def watched(aws, guard) -> str:
    name = guard.name("web")
    create(aws.session, name)
    return name


def refused(call, **given) -> tuple[str, str]:
    """Return code and message of a refusal, which comes at once."""
    started = time.monotonic()
    with pytest.raises(ClientError) as failure:
        call(**given)
    assert time.monotonic() - started < 1
    error = failure.value.response["Error"]
    return error["Code"], error["Message"]


# --- items ----------------------------------------------------------------------------


def test_an_answer_is_stored_read_and_listed(client, table) -> None:
    item = {
        KEY: {"S": "a1"},
        "latency_ms": {"N": "12.5"},
        "sources": {"L": [{"S": "faq-1"}]},
        "expires": {"N": "1900000000"},
    }
    client.put_item(TableName=table, Item=item)
    assert client.get_item(TableName=table, Key={KEY: {"S": "a1"}})["Item"] == item
    assert "Item" not in client.get_item(TableName=table, Key={KEY: {"S": "a2"}})
    assert client.scan(TableName=table)["Items"] == [item]


def test_feedback_needs_its_answer(client, table) -> None:
    def update(request_id: str, thumb: str) -> None:
        client.update_item(
            TableName=table,
            Key={KEY: {"S": request_id}},
            UpdateExpression="SET thumb = :thumb",
            ConditionExpression=f"attribute_exists({KEY})",
            ExpressionAttributeValues={":thumb": {"S": thumb}},
        )

    client.put_item(TableName=table, Item={KEY: {"S": "a1"}})
    for thumb in ("up", "down"):
        update("a1", thumb)
    (item,) = client.scan(TableName=table)["Items"]
    assert item == {KEY: {"S": "a1"}, "thumb": {"S": "down"}}
    code, _ = refused(update, request_id="a2", thumb="up")
    assert code == "ConditionalCheckFailedException"
    assert len(client.scan(TableName=table)["Items"]) == 1


def test_a_scan_ends_after_a_megabyte_and_goes_on_from_there(client, table) -> None:
    for number in range(4):
        text = {"S": "a" * 390_000}
        client.put_item(TableName=table, Item={KEY: {"S": f"{number}"}, "text": text})
    first = client.scan(TableName=table)
    assert first["Count"] < 4 and "LastEvaluatedKey" in first
    pages = client.get_paginator("scan").paginate(TableName=table)
    found = [item[KEY]["S"] for page in pages for item in page["Items"]]
    assert sorted(found) == ["0", "1", "2", "3"]


def test_time_to_live_is_kept(client, table) -> None:
    wanted = {"Enabled": True, "AttributeName": "expires"}
    client.update_time_to_live(TableName=table, TimeToLiveSpecification=wanted)
    found = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    assert found == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}


WRONG_ITEMS = {
    "no key": {"text": {"S": "a"}},
    "an empty key": {KEY: {"S": ""}},
    "a key of another type": {KEY: {"N": "1"}},
    "a value without a type": {KEY: {"S": "a"}, "text": {}},
    "one within a list": {KEY: {"S": "a"}, "texts": {"L": [{"S": "a"}, {}]}},
    "one within a map": {KEY: {"S": "a"}, "texts": {"M": {"b": {}}}},
    "no number": {KEY: {"S": "a"}, "n": {"N": "12 ms"}},
    "39 digits": {KEY: {"S": "a"}, "n": {"N": "1" * 39}},
    "39 digits in a set": {KEY: {"S": "a"}, "n": {"NS": ["1", "-0." + "1" * 39]}},
    "more than 400 KB": {KEY: {"S": "a"}, "text": {"S": "a" * 410_000}},
}


@pytest.mark.parametrize("kind", WRONG_ITEMS)
def test_an_item_that_aws_refuses_is_refused(client, table, kind) -> None:
    given = {"TableName": table, "Item": WRONG_ITEMS[kind]}
    assert refused(client.put_item, **given)[0] == "ValidationException"
    assert client.scan(TableName=table)["Items"] == []


@pytest.mark.parametrize("number", ["1" * 38, "1" + "0" * 60, "0.000" + "1" * 38])
def test_a_number_of_38_digits_is_taken(client, table, number) -> None:
    item = {KEY: {"S": "a"}, "n": {"N": number}}
    client.put_item(TableName=table, Item=item)


@pytest.mark.parametrize("word", ["status", "comment", "at"])
def test_reserved_words_need_another_name(client, table, word) -> None:
    """Code that passes here must not fail on AWS: `status` and `comment` are words."""
    client.put_item(TableName=table, Item={KEY: {"S": "a"}})
    given = {
        "TableName": table,
        "Key": {KEY: {"S": "a"}},
        "UpdateExpression": f"SET {word} = :value",
        "ExpressionAttributeValues": {":value": {"S": "a"}},
    }
    code, message = refused(client.update_item, **given)
    assert code == "ValidationException" and word in message
    given["UpdateExpression"] = "SET #name = :value"
    client.update_item(**given, ExpressionAttributeNames={"#name": word})


# --- tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ab", "a b c", "a/b", "caf\u00e9", "a" * 256])
def test_a_name_that_aws_refuses_is_refused(aws, name) -> None:
    code, message = refused(create, session=aws.session, name=name)
    assert code == "ValidationException" and "'tableName'" in message
    assert names(aws.session) == []


def test_a_table_that_is_not_there_is_said_so(client, table) -> None:
    missing = {"TableName": f"{table}-2"}
    for call, more in (
        (client.describe_table, {}),
        (client.put_item, {"Item": {KEY: {"S": "a"}}}),
        (client.get_item, {"Key": {KEY: {"S": "a"}}}),
        (client.scan, {}),
        (client.delete_table, {}),
    ):
        assert refused(call, **missing, **more)[0] == "ResourceNotFoundException"


NOT_PLAYED = {
    "moto has it": ("update_table", {"TableName": "TABLE", "TableClass": "STANDARD"}),
    "moto stores it only": (
        "put_resource_policy",
        {"ResourceArn": "arn:aws:dynamodb:us-east-1:1:table/a", "Policy": "{}"},
    ),
    "another language": ("execute_statement", {"Statement": "SELECT * FROM a"}),
    "unknown to moto": ("list_global_tables", {}),
}


@pytest.mark.parametrize("kind", NOT_PLAYED)
def test_what_is_not_played_is_said_at_once(client, table, kind) -> None:
    method, given = NOT_PLAYED[kind]
    given = {key: table if value == "TABLE" else value for key, value in given.items()}
    code, message = refused(getattr(client, method), **given)
    assert code == "NotImplemented"
    assert message.startswith("The offline AWS does not play dynamodb's ")


def test_quotas_of_sagemaker_do_not_count_for_it(client, table, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_QUOTAS", "calls=1")
    for _ in range(5):
        client.scan(TableName=table)


# --- the billing guard ----------------------------------------------------------------


def test_a_table_is_noted_tagged_and_deleted(aws, guard, watched, client) -> None:
    (entry,) = [entry for entry in guard.entries if entry.kind == attached.TABLE]
    assert entry.name == watched
    arn = client.describe_table(TableName=watched)["Table"]["TableArn"]
    tags = client.list_tags_of_resource(ResourceArn=arn)["Tags"]
    assert {"Key": TAG, "Value": guard.run} in tags
    assert f"table {watched}" in guard.remaining()
    left = [item for item in guard.account().left if item.kind == "table"]
    assert [item.name for item in left] == [watched]
    assert f"delete-table --table-name {watched}" in left[0].end
    shown = watched.replace(guard.run, "…")
    assert f"| table | `{shown}` | by the request" in guard._repr_markdown_()
    guard.teardown()
    assert names(aws.session) == [] and guard.remaining() == []
    guard.teardown()


def test_a_table_made_by_the_resource_api_is_noted(aws, guard) -> None:
    aws.session.resource("dynamodb").create_table(
        TableName=guard.name("web"),
        KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        Tags=[{"Key": "mine", "Value": "yes"}],
    )
    guard.teardown()
    assert names(aws.session) == []


def test_a_neighbours_table_stays(aws, guard, watched) -> None:
    """One of a like name, and one that the run tried to create and found there."""
    other = boto3.Session(region_name=aws.region)
    create(other, f"{watched}-2")
    create(other, "course-others")
    assert refused(lambda: create(aws.session, "course-others"))[0] == (
        "ResourceInUseException"
    )
    guard.teardown()
    assert names(other) == [f"{watched}-2", "course-others"]
    for name in names(other):
        other.client("dynamodb").delete_table(TableName=name)


def test_a_table_that_was_never_made_keeps_nobody_waiting(aws, guard) -> None:
    refused(lambda: create(aws.session, guard.name("a b")))
    started = time.monotonic()
    guard.teardown()
    assert time.monotonic() - started < 10


def test_a_failed_cell_deletes_it(aws) -> None:
    class Failed:
        success = False

    with BillingGuard(aws, lambda _: None) as guard:
        create(aws.session, guard.name("web"))
        guard._after_cell(Failed)
        assert names(aws.session) == []


def test_a_table_that_is_going_already_is_waited_for() -> None:
    """And not until it is there, which it never will be again."""
    client = boto3.Session("a", "b", region_name="us-east-1").client("dynamodb")
    with Stubber(client) as stub:
        for _ in range(2):
            table = {"TableName": "items", "TableStatus": "DELETING"}
            stub.add_response("describe_table", {"Table": table})
        stub.add_client_error("describe_table", "ResourceNotFoundException")
        tables.delete(client, "items", {"Key": TAG, "Value": "run"})
        stub.assert_no_pending_responses()
