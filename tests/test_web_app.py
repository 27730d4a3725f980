"""The app: routes, limits, request ids, errors, streams, logs; about 15 seconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from support.web import (
    ANSWER,
    CANARY,
    QUESTION,
    SETTINGS,
    FakeEndpoint,
    MemoryRecords,
    answers,
    as_lines,
    chunks,
    completion,
    dies,
    drips,
    events,
    is_silent,
    log_lines,
    model_fails,
    refuses,
    served,
    streams,
    throttles,
    wait_until,
    web_app,
)
from utils.web.service.app import LONGEST_WAIT, SPARE, create_app
from utils.web.service.endpoint import CONNECT_TIMEOUT, Answer, Question
from utils.web.service.schema import PROBLEMS, Problem
from utils.web.service.settings import (
    VARIABLES,
    WHOLE_REQUEST,
    Settings,
    SettingsError,
    Version,
)

JSON = {"content-type": "application/json"}
ASK = "/api/generate"


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as fake:
        yield fake


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords()


@pytest.fixture
def client(endpoint, records) -> TestClient:
    return TestClient(web_app(endpoint, records), follow_redirects=False)


def ask(client: Any, **body: Any) -> httpx.Response:
    return client.post(ASK, json={"question": QUESTION} | body)


def problem_of(response: httpx.Response) -> tuple[int, str]:
    """Check the form of an error; return status and code."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id", "fields"}
    error = body["error"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert PROBLEMS[error["code"]] == (response.status_code, error["message"])
    for field in error["fields"]:
        assert set(field) == {"field", "problem"}
    return response.status_code, error["code"]


# --- answers --------------------------------------------------------------------------


def test_a_question_is_answered_and_recorded(client, records) -> None:
    response = ask(client, question=f"  {QUESTION}\n")
    assert response.status_code == 200
    reply = response.json()
    assert re.fullmatch(r"[0-9a-f]{32}", reply["request_id"])
    assert response.headers["x-request-id"] == reply["request_id"]
    assert response.headers["cache-control"] == "no-store"
    latency = reply.pop("latency_ms")
    assert reply == {
        "request_id": reply["request_id"],
        "answer": ANSWER,
        "version": "tuned",
        "variant": "tuned",
        "sources": [{"id": "note-1"}],
        "finish_reason": "stop",
        "tokens": {"prompt": 7, "completion": 5},
    }
    row = records.rows[reply["request_id"]]
    assert (row["question"], row["answer"], row["status"]) == (QUESTION, ANSWER, 200)
    assert 0 < row["latency_ms"] <= latency


def test_an_incoming_request_id_is_not_trusted(client) -> None:
    headers = {"x-request-id": CANARY}
    first = client.get("/api/health", headers=headers).headers["x-request-id"]
    second = client.get("/api/health", headers=headers).headers["x-request-id"]
    assert CANARY not in first + second and first != second


def test_versions_are_asked_by_adapter_and_variant(client, endpoint) -> None:
    assert ask(client).json()["version"] == "tuned"
    assert ask(client, version=None).json()["version"] == "tuned"
    assert ask(client, version="base", retrieve=3).json()["version"] == "base"
    live, _, base = endpoint.asked
    assert (live.variant, live.body.get("model")) == (None, None)
    assert (base.variant, base.body["model"]) == ("tuned", "base")
    assert (live.body["retrieve"], base.body["retrieve"]) == (SETTINGS.retrieve, 3)
    assert live.body["max_tokens"] == 96
    response = ask(client, version="best")
    assert problem_of(response) == (422, "unknown_version")
    assert "best" not in response.text and len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("variant", "version"), [("one", "base"), ("two", "tuned"), ("three", "three")]
)
def test_live_traffic_is_named_by_the_variant_that_answers(
    endpoint, variant, version
) -> None:
    versions = (Version("base", "", None, "one"), Version("tuned", "", None, "two"))
    endpoint.does(usual=answers(variant=variant))
    client = TestClient(web_app(endpoint, versions=versions))
    reply = ask(client).json()
    assert (reply["version"], reply["variant"]) == (version, variant)
    (_, start), *_ = events(ask(client, stream=True).text)
    assert (start["version"], start["variant"]) == (version, variant)
    found = client.get("/api/versions").json()
    assert found["live"] == ["base", "tuned"]


def test_health_and_versions_ask_nobody(client, endpoint) -> None:
    assert client.get("/api/health").json() == {"status": "ok", "breaker": "closed"}
    assert client.get("/api/versions").json() == {
        "versions": [
            {"name": "tuned", "description": "After fine-tuning."},
            {"name": "base", "description": "Before."},
        ],
        "live": ["tuned"],
    }
    assert not endpoint.asked


# --- streams --------------------------------------------------------------------------


def test_a_stream_has_a_start_pieces_and_an_end(client, endpoint, records) -> None:
    parts = [as_lines([chunk]) for chunk in chunks("Amazon ", "S3.")]
    endpoint.does(streams(parts))
    response = ask(client, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    (_, start), *pieces, (_, end) = found = events(response.text)
    assert [name for name, _ in found] == ["start", "piece", "piece", "end"]
    assert start == {
        "request_id": response.headers["x-request-id"],
        "version": "tuned",
        "variant": "tuned",
        "sources": [{"id": "note-1"}],
    }
    assert [data for _, data in pieces] == [{"text": "Amazon "}, {"text": "S3."}]
    assert end.pop("latency_ms") > 0
    assert end == {"finish_reason": "stop", "tokens": {"prompt": 7, "completion": 2}}
    row = records.rows[start["request_id"]]
    assert (row["answer"], row["status"]) == ("Amazon S3.", 200)


@pytest.mark.parametrize(
    "text",
    [
        "a\nb\r\nc\rd\n\n",
        "data: [DONE]\n\n",
        "\n\nevent: end\ndata: {}\n\n",
        "\u2028\u2029\x85\x0b\x0c\x1c\x00",
        "Zürich 東京 🦜🏽 \ufeff",
        "</script><img src=x onerror=alert(1)> {{7*7}} ${x}",
    ],
)
def test_no_text_ends_an_event(client, endpoint, text) -> None:
    data = as_lines(chunks(text, "!"))
    endpoint.does(streams([data[i : i + 5] for i in range(0, len(data), 5)]))
    response = ask(client, stream=True)
    assert response.text.isascii()
    found = events(response.text)
    assert [name for name, _ in found] == ["start", "piece", "piece", "end"]
    assert "".join(data.get("text", "") for _, data in found) == text + "!"
    endpoint.does(answers(completion(text)))
    assert ask(client).json()["answer"] == text


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("die", "unavailable"),
        ("end", "unavailable"),
        ("fault", "model_error"),
        ("timeout", "timeout"),
        ("wait", "timeout"),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error(
    endpoint, records, capsys, ending, code
) -> None:
    endpoint.does(streams([as_lines(chunks("Ama", "zon")[:1])], ending=ending))
    client = TestClient(web_app(endpoint, records, timeout=0.3))
    response = ask(client, stream=True)
    assert response.status_code == 200
    *others, (name, error) = events(response.text)
    assert [kind for kind, _ in others] == ["start", "piece"]
    assert name == "error" and error["error"]["code"] == code
    assert error["error"]["request_id"] == response.headers["x-request-id"]
    assert records.rows[error["error"]["request_id"]]["status"] == PROBLEMS[code][0]
    (line,), (metrics,) = log_lines(capsys.readouterr().out)
    assert (line["status"], line["code"]) == (PROBLEMS[code][0], code)
    assert metrics["Errors"] == [1.0] and "Answers" not in metrics


def test_an_error_before_the_first_event_has_its_status(client, endpoint) -> None:
    for behaviour, expected in (
        (model_fails(500), (502, "model_error")),
        (streams([b'{"error": "x", "code": 424}\n']), (502, "model_error")),
        (is_silent(), (504, "timeout")),
    ):
        endpoint.does(behaviour)
        assert problem_of(ask(client, stream=True)) == expected
    assert problem_of(ask(client, stream=True)) == (503, "unavailable")  # breaker


def threads_of_calls() -> int:
    names = [thread.name for thread in threading.enumerate()]
    return sum("AnyIO" in name for name in names)


@pytest.mark.parametrize("piece", [True, False], ids=["waiting", "sending"])
def test_a_client_that_leaves_ends_the_call_of_the_endpoint(
    endpoint, records, capsys, piece
) -> None:
    """At once, though the endpoint may be silent for 20 s; and feedback can come."""
    parts = [as_lines([chunk]) for chunk in chunks(*["word "] * 300)]
    gap, parts = (0, parts[:1]) if piece else (0.02, parts)
    endpoint.does(streams(parts, gap=gap, ending="wait"))
    app = web_app(endpoint, records, timeout=20)
    with served(app) as url, httpx.Client(base_url=url, timeout=10) as http:
        body = {"question": QUESTION, "stream": True}
        with http.stream("POST", ASK, json=body) as response:
            for line in response.iter_lines():
                if "word" in line:
                    break
        left = time.monotonic()
        assert endpoint.client_left()
        assert wait_until(lambda: endpoint.running == 0)
        assert wait_until(lambda: len(records.rows) == 1)
        assert time.monotonic() - left < 3
        (row,) = records.rows.values()
        assert row["status"] == 499 and row["answer"].startswith("word ")
        feedback = {"request_id": row["request_id"], "thumb": "down"}
        assert http.post("/api/feedback", json=feedback).status_code == 200
        # The thread is free again: more streams than there are threads can be left.
        endpoint.does(usual=streams(parts[:1], ending="wait"))
        for _ in range(45):
            with http.stream("POST", ASK, json=body) as response:
                next(response.iter_lines())
        assert wait_until(lambda: endpoint.running == 0)
        endpoint.does(usual=answers())
        assert http.post(ASK, json={"question": QUESTION}).status_code == 200
        assert threads_of_calls() <= 40
        assert http.get("/api/health").json()["breaker"] == "closed"
        assert wait_until(lambda: len(records.rows) == 47)
    logs, _ = log_lines(capsys.readouterr().out)
    assert sum(line["status"] == 499 for line in logs) == 46


# --- what comes in --------------------------------------------------------------------

BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"question",
    "cut off": b'{"question": "a',
    "two": b'{"question": "a"} {}',
    "Latin-1": '{"question": "Zürich"}'.encode("latin-1"),
    "UTF-16": '{"question": "a"}'.encode("utf-16"),
    "overlong": b'{"question": "\xc0\xaf"}',
    "half a pair": b'{"question": "\\ud83d"}',
    "other half": b'{"question": "\\udc26 a"}',
    "halves swapped": b'{"question": "\\udc26\\ud83d"}',
    "raw half": b'{"question": "\xed\xa0\xbd"}',
    "half in a key": b'{"question": "a", "\\ud83d": 1}',
    "half in an unknown field": b'{"question": "a", "x": ["\\ud83d"]}',
    "NaN": b'{"question": "a", "max_tokens": NaN}',
    "infinite": b'{"question": "a", "max_tokens": Infinity}',
    "deep": b'{"question": ' + b"[" * 30_000,
    "long number": b'{"question": "a", "max_tokens": ' + b"9" * 20_000 + b"}",
    "control character": b'{"question": "a\nb"}',
    "byte order mark": b'\xef\xbb\xbf{"question": "a"}',
}


@pytest.mark.parametrize("path", [ASK, "/api/feedback"])
@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_is_no_json_is_400(client, endpoint, name, path) -> None:
    response = client.post(path, content=BAD_BODIES[name], headers=JSON)
    # A long number is JSON, if not one of ours.
    expected = {(400, "bad_json")} | ({(422, "invalid")} if "number" in name else set())
    assert problem_of(response) in expected
    assert not endpoint.asked


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "question"),
        ({"question": ""}, "question"),
        ({"question": " \n\t\u3000"}, "question"),
        ({"question": "a" * 2001}, "question"),
        ({"question": None}, "question"),
        ({"question": 7}, "question"),
        ({"question": ["a"]}, "question"),
        ({"question": "a", "max_tokens": 0}, "max_tokens"),
        ({"question": "a", "max_tokens": 257}, "max_tokens"),
        ({"question": "a", "max_tokens": "9"}, "max_tokens"),
        ({"question": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"question": "a", "max_tokens": True}, "max_tokens"),
        ({"question": "a", "max_tokens": 10**40}, "max_tokens"),
        ({"question": "a", "retrieve": 6}, "retrieve"),
        ({"question": "a", "retrieve": -1}, "retrieve"),
        ({"question": "a", "stream": "yes"}, "stream"),
        ({"question": "a", "stream": 1}, "stream"),
        ({"question": "a", "version": 1}, "version"),
        ({"question": "a", "temperature": 1}, "body"),
        ({"question": "a", CANARY: 1}, "body"),
        ([], "body"),
        ("a", "body"),
        (None, "body"),
    ],
)
def test_fields_are_checked_and_not_repeated(client, endpoint, body, field) -> None:
    response = client.post(ASK, content=json.dumps(body), headers=JSON)
    assert problem_of(response) == (422, "invalid")
    (found,) = response.json()["error"]["fields"]
    assert found["field"] == field and found["problem"]
    assert CANARY not in response.text and "temperature" not in response.text
    assert not endpoint.asked


def test_the_longest_question_in_any_script_is_answered(client, endpoint) -> None:
    for letter in ("a", "é", "東", "🦜", "\x00", "\u200b"):
        assert ask(client, question=letter * 2000).status_code == 200
        assert endpoint.asked[-1].body["messages"][0]["content"] == letter * 2000


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ('application/json; charset="utf-8"; x=y', 200),
        ("application/json;charset=utf-16", 415),
        ("application/json, application/json", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/problem+json", 415),
        ("json", 415),
        ("", 415),
        (";;;=", 415),
        ("application/json; charset*=utf-8''%ff", 415),
        ("application/json; charset*=a; charset*0*=b", 415),
        (f"application/json; charset*{'0' * 5000}*=x", 415),
        (f"application/json; charset*{'9' * 5000}=x", 415),
        ("größe/json".encode().decode("latin-1"), 415),
    ],
)
def test_bodies_are_application_json(client, content_type, status) -> None:
    body = json.dumps({"question": QUESTION}).encode()
    headers = {"content-type": content_type.encode("latin-1")}
    response = client.post(ASK, content=body, headers=headers)
    assert response.status_code == status
    if status != 200:
        assert problem_of(response) == (415, "unsupported_media_type")


def test_a_body_without_a_type_is_refused(client) -> None:
    assert problem_of(client.post(ASK, content=b"{}"))[0] == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "schlüssel".encode()},
        {"x-api-key": b"\xff\xfe"},
        {"accept": "🦜".encode()},
        {"cookie": b"\xed\xa0\xbd"},
        {"content-length": b"\xb2"},
        {"content-length": b"-1"},
        {"content-length": b"9" * 5000},
    ],
)
def test_headers_beyond_ascii_do_no_harm(client, headers) -> None:
    body = json.dumps({"question": QUESTION}).encode()
    response = client.post(ASK, content=body, headers=JSON | headers)
    assert response.status_code in (200, 413)
    assert client.get("/api/health", headers=headers).status_code == 200


@pytest.mark.parametrize("length", [None, "0", "10", "70000", "99999999", "much"])
def test_a_body_over_the_limit_is_refused_whatever_its_length_says(
    endpoint, length
) -> None:
    """In the app itself: a server would see to some of these."""
    app = web_app(endpoint)
    read = []

    async def receive() -> dict[str, Any]:
        assert len(read) < 50, "the body is read on and on"
        read.append(1)
        return {"type": "http.request", "body": b" " * 10_000, "more_body": True}

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    if length is not None:
        headers.append((b"content-length", length.encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "POST",
        "path": ASK,
        "raw_path": None,
        "query_string": b"",
        "headers": headers,
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["code"] == "too_large"
    over = length in ("70000", "99999999")
    assert len(read) == (0 if over else SETTINGS.max_body // 10_000 + 1)


def test_a_large_body_is_refused_before_it_is_sent(endpoint) -> None:
    head = (
        "POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 10000000\r\n\r\n"
    )
    with served(web_app(endpoint)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(head.encode() + b'{"question": "')
            reply = connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_costs_no_more_than_a_request_may(
    endpoint, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("utils.web.service.app.LONGEST_WAIT", 0.3)
    head = (
        "POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n"
    )
    with served(web_app(endpoint)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(head.encode() + b'{"question": "')
            assert connection.recv(65536).startswith(b"HTTP/1.1 504 ")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(head.encode() + b'{"question": "')
        lines: list[str] = []

        def is_logged() -> bool:
            lines.append(capsys.readouterr().out)
            return '"status":499' in "".join(lines)

        assert wait_until(is_logged)
    assert not endpoint.asked


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", (404, "not_found")),
        ("GET", "/docs", (404, "not_found")),
        ("GET", "/redoc", (404, "not_found")),
        ("GET", "/openapi.json", (404, "not_found")),
        ("GET", "/api/health/", (404, "not_found")),
        ("GET", "//api/health", (404, "not_found")),
        ("GET", "//evil.example/api/health/", (404, "not_found")),
        ("GET", "/api//health", (404, "not_found")),
        ("POST", "/api/generate/", (404, "not_found")),
        ("GET", "/api/%ff%ed%a0%bd", (404, "not_found")),
        ("GET", "/api/generate", (405, "method_not_allowed")),
        ("PUT", "/api/generate", (405, "method_not_allowed")),
        ("DELETE", "/api/feedback", (405, "method_not_allowed")),
        ("OPTIONS", "/api/generate", (405, "method_not_allowed")),
        ("TRACE", "/api/generate", (405, "method_not_allowed")),
        ("POST", "/api/health", (405, "method_not_allowed")),
        ("POST", "/api/openapi.json", (405, "method_not_allowed")),
    ],
)
def test_other_paths_and_methods(client, method, path, expected) -> None:
    """With no redirect, whose address would be the gateway's own."""
    url = f"http://testserver{path}"
    response = client.request(method, url)
    assert problem_of(response) == expected
    assert not any(name.startswith("access-control") for name in response.headers)
    if expected[0] == 405:
        assert set(response.headers["allow"].split(", ")) & {"GET", "POST"}


# --- what fails -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (model_fails(400), (502, "model_error")),
        (model_fails(424), (502, "model_error")),
        (model_fails(500), (502, "model_error")),
        (refuses("AccessDeniedException", 403), (502, "model_error")),
        (throttles(), (503, "unavailable")),
        (model_fails(429), (503, "unavailable")),
        (model_fails(503), (503, "unavailable")),
        (refuses("ValidationError", 400), (503, "unavailable")),
        (dies(), (503, "unavailable")),
        (is_silent(), (504, "timeout")),
        (model_fails(0), (504, "timeout")),
    ],
)
def test_faults_have_their_status(endpoint, behaviour, expected) -> None:
    endpoint.does(usual=behaviour)
    client = TestClient(web_app(endpoint, timeout=0.3, breaker_failures=100))
    for stream in (False, True):
        response = ask(client, stream=stream)
        assert problem_of(response) == expected
        assert response.headers.get("retry-after", "").isdigit() == (expected[0] == 503)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_no_request_takes_longer_than_it_may(
    endpoint, monkeypatch, capsys, stream
) -> None:
    """Also if the endpoint is never silent long enough for a time-out."""
    monkeypatch.setattr("utils.web.service.app.LONGEST_WAIT", 0.5)
    parts = [b" \n"] * 100
    endpoint.does(usual=streams(parts, gap=0.05) if stream else drips(100, 0.05))
    client = TestClient(web_app(endpoint))
    before = time.monotonic()
    response = ask(client, stream=stream)
    assert time.monotonic() - before < 2
    assert problem_of(response) == (504, "timeout")
    parts = [as_lines([chunk]) for chunk in chunks(*["word "] * 100)]
    endpoint.does(usual=streams(parts, gap=0.05))
    before = time.monotonic()
    *_, (name, error) = events(ask(client, stream=True).text)
    assert time.monotonic() - before < 2
    assert (name, error["error"]["code"]) == ("error", "timeout")
    assert endpoint.client_left()


def test_whole_requests_end_before_the_gateway_gives_up() -> None:
    """And after the longest call: connecting and waiting, by default."""
    assert WHOLE_REQUEST == LONGEST_WAIT + 2 * SPARE == 25 < 29
    assert CONNECT_TIMEOUT + Settings("a", "b").timeout < LONGEST_WAIT


def test_a_client_that_does_not_read_keeps_the_endpoint_no_longer(
    endpoint, records, monkeypatch
) -> None:
    monkeypatch.setattr("utils.web.service.app.LONGEST_WAIT", 0.5)
    monkeypatch.setattr("utils.web.service.app.SPARE", 0.1)
    parts = [as_lines(chunks("word " * 10_000)[:1])] * 1000
    endpoint.does(usual=streams(parts, ending="wait"))
    body = json.dumps({"question": QUESTION, "stream": True})
    head = (
        "POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with served(web_app(endpoint, records)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall((head + body).encode())
            before = time.monotonic()
            assert endpoint.client_left()
            assert wait_until(lambda: len(records.rows) == 1)
            assert 0.4 < time.monotonic() - before < 4
    (row,) = records.rows.values()
    assert row["status"] in (499, 504)


def test_a_dead_endpoint_answers_at_once(endpoint) -> None:
    endpoint.does(usual=is_silent())
    client = TestClient(web_app(endpoint, timeout=0.1))
    for _ in range(SETTINGS.breaker_failures):
        assert problem_of(ask(client)) == (504, "timeout")
    before = time.monotonic()
    response = ask(client)
    assert problem_of(response) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"
    assert time.monotonic() - before < 0.2
    assert client.get("/api/health").json() == {"status": "degraded", "breaker": "open"}
    time.sleep(SETTINGS.breaker_seconds + 0.05)
    endpoint.does(usual=answers())
    assert ask(client).status_code == 200
    assert client.get("/api/health").json()["status"] == "ok"


class BrokenEndpoint:
    """A way to the endpoint with a mistake of ours in it."""

    breaker = "closed"

    def __init__(self, error: Exception, at: str):
        self.error, self.at = error, at
        self.answer = Answer("tuned", sources=[])
        self.closed = False

    def ask(self, question: Question) -> Any:
        raise self.error

    def stream(self, question: Question) -> Any:
        if self.at == "stream":
            raise self.error
        return self

    def next_piece(self) -> str:
        raise self.error

    def close(self, late: bool = False) -> None:
        self.closed = True


class SlowEndpoint(BrokenEndpoint):
    """A way to the endpoint whose streams begin too late for anybody."""

    def __init__(self, seconds: float):
        super().__init__(RuntimeError(), "next_piece")
        self.seconds = seconds

    def stream(self, question: Question) -> Any:
        time.sleep(self.seconds)
        return self


@pytest.mark.parametrize("kind", ["opened late", "opened as the time ran out"])
def test_a_stream_that_nobody_waits_for_is_closed(monkeypatch, kind) -> None:
    """Else its connection stays, and so does the place of a breaker's probe."""
    monkeypatch.setattr("utils.web.service.app.LONGEST_WAIT", 0.1)
    endpoint = SlowEndpoint(0.4)
    if kind != "opened late":
        endpoint.seconds = 0.0

        async def in_thread(deadline: float, call: Any, *given: Any, **_: Any) -> Any:
            call(*given)
            raise Problem("timeout", cause="deadline")

        monkeypatch.setattr("utils.web.service.app._in_thread", in_thread)
    client = TestClient(create_app(SETTINGS, endpoint, MemoryRecords()))
    assert problem_of(ask(client, stream=True)) == (504, "timeout")
    assert wait_until(lambda: endpoint.closed)


@pytest.mark.parametrize("how", ["left", "cancelled"])
def test_a_stream_that_is_cut_before_its_first_event_is_closed(how) -> None:
    """Its generator has not begun then, and would close nothing."""
    endpoint = BrokenEndpoint(RuntimeError(), "next_piece")
    app = create_app(SETTINGS, endpoint, MemoryRecords())
    body = json.dumps({"question": QUESTION, "stream": True}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": ASK,
        "raw_path": ASK.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"here")],
        "client": ("127.0.0.1", 1),
        "server": ("here", 80),
    }
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent = []

    async def run() -> None:
        async def receive() -> Any:
            if message := next(asked, None):
                return message
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            sent.append(message["type"])
            if how == "left":
                raise OSError("the client is gone")
            cut.cancel()
            await anyio.sleep_forever()

        with anyio.CancelScope() as cut, contextlib.suppress(ClientDisconnect):
            await app(scope, receive, send)

    anyio.run(run)
    assert sent == ["http.response.start"]
    assert endpoint.closed


DRIPPING = [as_lines([chunk]) for chunk in chunks(*["word "] * 100)]


@pytest.mark.parametrize(
    ("behaviour", "stream"),
    [
        (answers(after=0.6), False),
        (streams(DRIPPING[:1], ending="wait"), True),
        (streams(DRIPPING, gap=0.15), True),
    ],
    ids=["whole", "a stream that stops", "a stream that drips"],
)
def test_answers_that_come_too_late_open_the_breaker(
    endpoint, monkeypatch, behaviour, stream
) -> None:
    monkeypatch.setattr("utils.web.service.app.LONGEST_WAIT", 0.4)
    endpoint.does(usual=behaviour)
    client = TestClient(web_app(endpoint, breaker_failures=2, breaker_seconds=9))
    for _ in range(2):
        assert '"timeout"' in ask(client, stream=stream).text
    assert wait_until(lambda: client.get("/api/health").json()["breaker"] == "open")


@pytest.mark.parametrize("at", ["ask", "stream", "next_piece"])
@pytest.mark.parametrize("kind", [KeyError, RuntimeError, RecursionError, OSError])
def test_what_nobody_foresaw_is_a_502_of_ours(capsys, kind, at) -> None:
    broken = BrokenEndpoint(kind(f"{QUESTION} {CANARY}"), at)
    client = TestClient(create_app(SETTINGS, broken, MemoryRecords()))
    response = ask(client, stream=at != "ask")
    if at == "next_piece":
        (_, start), (name, error) = events(response.text)
        assert (name, error["error"]["code"]) == ("error", "internal")
        assert broken.closed
    else:
        assert problem_of(response) == (502, "internal")
    logs, (metrics,) = log_lines(capsys.readouterr().out)
    exception, request = logs
    assert (exception["message"], exception["kind"]) == ("exception", kind.__name__)
    assert re.fullmatch(rf"test_web_app\.py:\d+ {at}", exception["place"])
    assert exception["request_id"] == request["request_id"]
    assert (request["status"], request["code"]) == (502, "internal")
    assert metrics["Errors"] == [1.0]
    assert CANARY not in json.dumps([logs, metrics]) + response.text


class BrokenRecords(MemoryRecords):
    """Records with a mistake of ours in them."""

    def put_answer(self, **_: Any) -> None:
        raise ArithmeticError(CANARY)


@pytest.mark.parametrize(
    ("ending", "code"),
    [("end", "internal"), ("die", "unavailable"), ("timeout", "timeout")],
)
def test_a_stream_is_told_its_end_whatever_the_records_do(
    endpoint, capsys, ending, code
) -> None:
    said = chunks("a", "b")
    parts = as_lines(said if ending == "end" else said[:1])
    endpoint.does(streams([parts], ending=ending))
    client = TestClient(web_app(endpoint, BrokenRecords()))
    *_, (name, error) = events(ask(client, stream=True).text)
    assert (name, error["error"]["code"]) == ("error", code)
    out = capsys.readouterr().out
    assert "ArithmeticError" in out and CANARY not in out


# --- feedback -------------------------------------------------------------------------


def test_feedback_belongs_to_its_request_and_the_last_counts(client, records) -> None:
    request_id = ask(client).json()["request_id"]
    for thumb, comment in (("up", ""), ("down", "Wrong."), ("down", "Wrong.")):
        body = {"request_id": request_id, "thumb": thumb, "comment": comment}
        response = client.post("/api/feedback", json=body)
        assert response.json() == {"request_id": request_id, "stored": True}
        assert response.headers["x-request-id"] != request_id
    assert records.rows[request_id]["thumb"] == "down"
    assert len(records.rows) == 1


@pytest.mark.parametrize("request_id", ["0" * 32, "x", "ü", "../..", "\x00"])
def test_feedback_on_an_unknown_request_is_404(client, request_id) -> None:
    body = {"request_id": request_id, "thumb": "up"}
    response = client.post("/api/feedback", json=body)
    assert problem_of(response) == (404, "unknown_request")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"thumb": "sideways"}, "thumb"),
        ({"thumb": None}, "thumb"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a" * 65}, "request_id"),
        ({"comment": "a" * 1001}, "comment"),
        ({"comment": None}, "comment"),
        ({"stars": 5}, "body"),
    ],
)
def test_feedback_is_checked(client, change, field) -> None:
    body = {"request_id": "a", "thumb": "up"} | change
    response = client.post("/api/feedback", json=body)
    assert problem_of(response) == (422, "invalid")
    assert response.json()["error"]["fields"][0]["field"] == field


class NoTable(MemoryRecords):
    """Records whose table is gone."""

    def put_answer(self, **_: Any) -> None:
        raise Problem("unavailable", retry_after=5, cause="table: gone")

    def put_feedback(self, *_: str) -> None:
        raise Problem("unavailable", retry_after=5, cause="table: gone")


def test_without_a_table_there_are_answers_but_no_feedback(endpoint, capsys) -> None:
    client = TestClient(web_app(endpoint, NoTable()))
    assert ask(client).json()["answer"] == ANSWER
    assert events(ask(client, stream=True).text)[-1][0] == "end"
    response = client.post("/api/feedback", json={"request_id": "a", "thumb": "up"})
    assert problem_of(response) == (503, "unavailable")
    assert response.headers["retry-after"] == "5"
    logs, _ = log_lines(capsys.readouterr().out)
    missing = [line for line in logs if line["message"] == "answer not recorded"]
    assert [line["cause"] for line in missing] == ["table: gone"] * 2


# --- logs and metrics -----------------------------------------------------------------

LINE = {
    *("level", "message", "timestamp", "service"),
    *("request_id", "route", "status", "latency_ms", "version"),
}


def test_a_request_has_one_line_and_its_metrics(client, capsys) -> None:
    request_id = ask(client).json()["request_id"]
    (line,), (metrics,) = log_lines(capsys.readouterr().out)
    assert set(line) == LINE
    assert (line["message"], line["service"]) == ("request", "course-web")
    assert (line["route"], line["status"], line["version"]) == (ASK, 200, "tuned")
    assert line["request_id"] == request_id
    (described,) = metrics["_aws"]["CloudWatchMetrics"]
    assert described["Namespace"] == "Course/Web"
    assert sorted(described["Dimensions"][0]) == ["service", "version"]
    assert len(described["Dimensions"]) == 1
    units = {one["Name"]: one["Unit"] for one in described["Metrics"]}
    assert units == {
        "Latency": "Milliseconds",
        "EndpointLatency": "Milliseconds",
        "Answers": "Count",
        "PromptTokens": "Count",
        "CompletionTokens": "Count",
    }
    assert metrics["request_id"] == request_id and metrics["status"] == 200
    assert metrics["Latency"][0] >= metrics["EndpointLatency"][0] > 0
    assert (metrics["PromptTokens"], metrics["CompletionTokens"]) == ([7.0], [5.0])


def test_feedback_counts_for_the_version_it_is_about(client, capsys) -> None:
    request_id = ask(client, version="base").json()["request_id"]
    capsys.readouterr()
    for thumb in ("up", "down"):
        body = {"request_id": request_id, "thumb": thumb}
        client.post("/api/feedback", json=body)
    _, (up, down) = log_lines(capsys.readouterr().out)
    assert (up["ThumbsUp"], up["version"]) == ([1.0], "base")
    assert (down["ThumbsDown"], down["version"]) == ([1.0], "base")


@pytest.mark.parametrize("variant", ["", "tuned", "x" * 60])
def test_no_dimension_is_empty(endpoint, capsys, variant) -> None:
    """CloudWatch drops metrics with an empty one, and powertools the dimension."""
    versions = (Version("a", "", None, "one"), Version("b", "", None, "two"))
    client = TestClient(web_app(endpoint, versions=versions))
    endpoint.does(usual=answers(variant=variant))
    ask(client)
    ask(client, stream=True)
    client.get("/nowhere")
    client.post(ASK, json={})
    endpoint.does(usual=model_fails(400))
    ask(client)
    _, metrics = log_lines(capsys.readouterr().out)
    assert len(metrics) == 5
    for one in metrics:
        assert sorted(one["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0]) == [
            "service",
            "version",
        ]
        assert one["service"] == "course-web" and one["version"].strip()


def test_keys_of_one_request_are_not_in_the_next(client, endpoint, capsys) -> None:
    endpoint.does(model_fails(400))
    ask(client, version="base")
    client.post(ASK, json={})
    ask(client, version="nope")
    client.get("/api/health")
    logs, _ = log_lines(capsys.readouterr().out)
    failed, invalid, unknown, health = logs
    assert set(failed) == LINE | {"code", "cause"} and failed["version"] == "base"
    assert set(invalid) == set(unknown) == LINE | {"code"}
    assert set(health) == LINE
    assert [one["version"] for one in (invalid, unknown, health)] == ["none"] * 3


def test_30_requests_side_by_side_have_lines_of_their_own(endpoint, capsys) -> None:
    """And metrics, whatever order they end in."""
    endpoint.does(usual=answers(after=0.1))
    app = web_app(endpoint)
    kinds: list[dict[str, Any]] = [
        {"question": QUESTION},
        {"question": QUESTION, "version": "base"},
        {"question": QUESTION, "version": "base", "stream": True},
        {"question": QUESTION, "version": "none"},
        {"question": ""},
    ]

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            asked = [http.post(ASK, json=kinds[i % 5]) for i in range(30)]
            return await asyncio.gather(*asked)

    responses = asyncio.run(all_of_them())
    logs, metrics = log_lines(capsys.readouterr().out)
    by_id = {line["request_id"]: line for line in logs}
    measured = {line["request_id"]: line for line in metrics}
    assert len(logs) == len(by_id) == len(metrics) == len(measured) == 30
    expected = [
        (200, "tuned", None),
        (200, "base", None),
        (200, "base", None),
        (422, "none", "unknown_version"),
        (422, "none", "invalid"),
    ]
    for place, response in enumerate(responses):
        status, version, code = expected[place % 5]
        line = by_id[response.headers["x-request-id"]]
        assert (line["status"], line["version"], line.get("code")) == (
            status,
            version,
            code,
        )
        metric = measured[response.headers["x-request-id"]]
        assert (metric["status"], metric["version"]) == (status, version)
        assert ("Answers" in metric) == (status == 200)


# --- description and settings ---------------------------------------------------------


def test_the_description_names_every_error(client) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/api/generate", "/api/feedback", "/api/health", "/api/versions")
    }
    for path in paths.values():
        for operation in path.values():
            documented = set(operation["responses"])
            assert {"200", "403", "405", "429", "502"} <= documented
            assert "500" not in documented
            for status, response in operation["responses"].items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema["$ref"].endswith("/ProblemReply")
    asked = paths[ASK]["post"]["responses"]
    assert {"400", "413", "415", "422", "503", "504"} <= set(asked)
    assert "text/event-stream" in asked["200"]["content"]


NEEDED = {"WEB_ENDPOINT": "course-web", "WEB_TABLE": "course-answers"}


def test_settings_have_their_defaults_and_take_what_is_said() -> None:
    settings = Settings.from_environment(NEEDED)
    assert settings == Settings(endpoint="course-web", table="course-answers")
    assert [version.name for version in settings.live] == ["live"]
    said = {
        "WEB_VERSIONS": '[{"name": "a", "variant": "v"}, {"name": "b", "live": false}]',
        "WEB_LOG_TEXTS": "1",
        "WEB_KEEP_TEXTS": "1",
        "WEB_DAYS_KEPT": "7",
        "WEB_RETRIEVE": "0",
        "WEB_TIMEOUT": "2.5",
        "WEB_MAX_QUESTION": "10",
        "WEB_MAX_BODY": "1000",
        "WEB_BREAKER_FAILURES": "2",
        "WEB_BREAKER_SECONDS": "0.5",
    }
    assert set(said) | set(NEEDED) == set(VARIABLES)
    assert Settings.from_environment(NEEDED | said) == Settings(
        endpoint="course-web",
        table="course-answers",
        versions=(Version("a", variant="v"), Version("b", live=False)),
        log_texts=True,
        keep_texts=True,
        days_kept=7,
        retrieve=0,
        timeout=2.5,
        max_question=10,
        max_body=1000,
        breaker_failures=2,
        breaker_seconds=0.5,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WEB_ENDPOINT", ""),
        ("WEB_ENDPOINT", "no/such"),
        ("WEB_TABLE", " "),
        ("WEB_TABLE", "a"),
        ("WEB_VERSIONS", "tuned"),
        ("WEB_VERSIONS", "[]"),
        ("WEB_VERSIONS", "{}"),
        ("WEB_VERSIONS", '["tuned"]'),
        ("WEB_VERSIONS", "[" * 100_000),
        ("WEB_VERSIONS", '[{"live": true}]'),
        ("WEB_VERSIONS", '[{"name": ""}]'),
        ("WEB_VERSIONS", '[{"name": "größer"}]'),
        ("WEB_VERSIONS", '[{"name": "a", "weight": 1}]'),
        ("WEB_VERSIONS", '[{"name": "a", "live": 1}]'),
        ("WEB_VERSIONS", '[{"name": "a", "variant": "a b"}]'),
        ("WEB_VERSIONS", '[{"name": "a", "adapter": ""}]'),
        ("WEB_VERSIONS", '[{"name": "a", "description": null}]'),
        ("WEB_VERSIONS", '[{"name": "a"}, {"name": "a", "live": false}]'),
        ("WEB_VERSIONS", '[{"name": "a", "live": false}]'),
        ("WEB_VERSIONS", '[{"name": "a"}, {"name": "b", "variant": "v"}]'),
        (
            "WEB_VERSIONS",
            '[{"name": "a", "variant": "v", "adapter": "base"},'
            ' {"name": "b", "variant": "w"}]',
        ),
        ("WEB_LOG_TEXTS", "yes"),
        ("WEB_KEEP_TEXTS", "true"),
        ("WEB_DAYS_KEPT", "0"),
        ("WEB_DAYS_KEPT", "1.5"),
        ("WEB_RETRIEVE", "6"),
        ("WEB_TIMEOUT", "nan"),
        ("WEB_TIMEOUT", "26"),
        ("WEB_MAX_QUESTION", "-1"),
        ("WEB_MAX_BODY", "10 MB"),
        ("WEB_BREAKER_FAILURES", "0"),
        ("WEB_BREAKER_SECONDS", "inf"),
    ],
)
def test_a_wrong_setting_is_named(name, text) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(NEEDED | {name: text})
    message = str(caught.value)
    assert message.startswith(name)
    assert "found " in message and ", expected " in message
    assert len(message) < 300


def test_a_lower_limit_on_questions_is_kept(endpoint) -> None:
    client = TestClient(web_app(endpoint, settings=replace(SETTINGS, max_question=3)))
    assert ask(client, question=" abc ").status_code == 200
    assert problem_of(ask(client, question="abcd")) == (422, "invalid")
