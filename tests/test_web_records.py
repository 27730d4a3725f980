"""Answers and feedback in the table, before moto's DynamoDB; about 5 seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from starlette.testclient import TestClient

from support.web import (
    ANSWER,
    CANARY,
    QUESTION,
    SETTINGS,
    TABLE,
    FakeEndpoint,
    NearbySession,
    create_table,
    delete_table,
    log_lines,
    moto_tables,
    web_app,
)
from utils.web.service.records import Records, table_client
from utils.web.service.schema import Problem

ANSWERED: dict[str, Any] = {
    "request_id": "a" * 32,
    "version": "tuned",
    "variant": "AllTraffic",
    "status": 200,
    "latency_ms": 12.34,
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "sources": ["note-1", "note-2"],
    "question": QUESTION,
    "answer": ANSWER,
}


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[NearbySession]:
    with moto_tables() as session:
        yield session


@pytest.fixture
def table(dynamodb) -> Iterator[NearbySession]:
    create_table(dynamodb)
    yield dynamodb
    delete_table(dynamodb)


def records(session: NearbySession, **changes: Any) -> Records:
    return Records(TABLE, table_client(session), **changes)


def test_an_answer_is_stored_without_its_texts(table) -> None:
    before = time.time()
    kept = records(table, days=7)
    kept.put_answer(**ANSWERED)
    (row,) = kept.all()
    at = datetime.fromisoformat(row.pop("at"))
    assert at.tzinfo == UTC and abs(datetime.now(UTC) - at) < timedelta(seconds=20)
    expires = row.pop("expires")
    assert isinstance(expires, int)
    assert 0 <= expires - int(before) - 7 * 86400 <= 20
    assert row == {
        "request_id": "a" * 32,
        "version": "tuned",
        "variant": "AllTraffic",
        "status": 200,
        "latency_ms": 12.3,
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "sources": ["note-1", "note-2"],
        "question_characters": len(QUESTION),
    }


def test_texts_are_stored_where_the_setting_says_so(table) -> None:
    kept = records(table, keep_texts=True)
    kept.put_answer(**ANSWERED)
    kept.put_feedback("a" * 32, "down", "Wrong.")
    (row,) = kept.all()
    assert (row["question"], row["answer"]) == (QUESTION, ANSWER)
    assert (row["comment"], row["comment_characters"]) == ("Wrong.", 6)


@pytest.mark.parametrize("comment", ["", "Good.", "=1+1", "ü🦜\x00\n", "a" * 1000])
def test_feedback_joins_its_answer_and_the_last_counts(table, comment) -> None:
    kept = records(table)
    kept.put_answer(**ANSWERED)
    assert kept.put_feedback("a" * 32, "up", "first") == "tuned"
    assert kept.put_feedback("a" * 32, "down", comment) == "tuned"
    (row,) = kept.all()
    assert (row["thumb"], row["comment_characters"]) == ("down", len(comment))
    assert "comment" not in row and row["version"] == "tuned"
    assert datetime.fromisoformat(row["feedback_at"]).tzinfo == UTC


@pytest.mark.parametrize("rated", [False, True], ids=["early", "late"])
def test_an_answer_stored_again_erases_nothing(table, rated) -> None:
    """As by a second attempt of boto3's, or by a thread that comes late."""
    kept = records(table)
    kept.put_answer(**ANSWERED)
    if rated:
        kept.put_feedback("a" * 32, "up", "Good.")
    before = kept.all()
    kept.put_answer(**ANSWERED | {"status": 504})
    assert kept.all() == before


@pytest.mark.parametrize("request_id", ["b" * 32, "a" * 31, "ü", "\x00"])
def test_feedback_on_an_unknown_answer_makes_no_item(table, request_id) -> None:
    kept = records(table)
    kept.put_answer(**ANSWERED)
    assert not kept.put_feedback(request_id, "up", "")
    assert len(kept.all()) == 1


def test_all_reads_every_page(table) -> None:
    """A page of a scan ends at a megabyte."""
    kept = records(table, keep_texts=True)
    for number in range(12):
        kept.put_answer(
            **ANSWERED | {"request_id": f"{number}", "answer": "a" * 200_000}
        )
    client = table.client("dynamodb")
    assert "LastEvaluatedKey" in client.scan(TableName=TABLE)
    assert sorted(int(row["request_id"]) for row in kept.all()) == list(range(12))


def test_numbers_come_back_as_they_were(table) -> None:
    kept = records(table)
    latencies = {0.0: 0, 3.0: 3, 0.1: 0.1, 25000.06: 25000.1}
    for latency in latencies:
        own = {"request_id": f"{latency}", "latency_ms": latency}
        kept.put_answer(**ANSWERED | own)
    rows = {row["request_id"]: row["latency_ms"] for row in kept.all()}
    for latency, expected in latencies.items():
        assert rows[f"{latency}"] == expected
        assert type(rows[f"{latency}"]) is type(expected)


def test_many_threads_store_side_by_side(table) -> None:
    kept = records(table)

    def store(number: int) -> str | None:
        kept.put_answer(**ANSWERED | {"request_id": f"{number}"})
        return kept.put_feedback(f"{number}", "up", "")

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(store, range(96))) == ["tuned"] * 96
    rows = kept.all()
    assert len(rows) == 96 and {row["thumb"] for row in rows} == {"up"}


@pytest.mark.parametrize("what", ["missing", "unreachable"])
def test_a_table_that_cannot_be_used_is_unavailable(dynamodb, what) -> None:
    nowhere = NearbySession({"dynamodb": "http://127.0.0.1:9"})
    kept = records(dynamodb if what == "missing" else nowhere)
    cause = "ResourceNotFoundException"
    if what == "unreachable":
        cause = EndpointConnectionError.__name__
    calls = (
        lambda: kept.put_answer(**ANSWERED | {"question": CANARY}),
        lambda: kept.put_feedback("a", "up", CANARY),
        lambda: kept.all(),
    )
    for call in calls:
        with pytest.raises(Problem) as caught:
            call()
        assert (caught.value.code, caught.value.status) == ("unavailable", 503)
        assert caught.value.retry_after
        assert caught.value.cause == f"table: {cause}"
        assert CANARY not in str(caught.value)


def test_the_app_stores_answer_and_feedback(table, capsys) -> None:
    with FakeEndpoint() as endpoint:
        kept = Records.of(SETTINGS, table)
        client = TestClient(web_app(endpoint, kept))
        whole = client.post("/api/generate", json={"question": QUESTION}).json()
        body = {"question": QUESTION, "stream": True, "version": "base"}
        streamed = client.post("/api/generate", json=body)
        ids = whole["request_id"], streamed.headers["x-request-id"]
        for request_id in ids:
            body = {"request_id": request_id, "thumb": "up"}
            assert client.post("/api/feedback", json=body).status_code == 200
    rows = {row["request_id"]: row for row in kept.all()}
    assert set(rows) == set(ids)
    assert [rows[one]["version"] for one in ids] == ["tuned", "base"]
    assert all(row["thumb"] == "up" for row in rows.values())
    assert not any(
        {"question", "answer", "comment"} & set(row) for row in rows.values()
    )
    _, metrics = log_lines(capsys.readouterr().out)
    thumbs = [one["version"] for one in metrics if "ThumbsUp" in one]
    assert thumbs == ["tuned", "base"]
