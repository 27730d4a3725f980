"""The handler, called with events as API Gateway sends them; about 5 seconds.

The fields are those of the events in AWS's documentation of proxy integrations:
https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

from __future__ import annotations

import ast
import asyncio
import base64
import copy
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from support.web import (
    ANSWER,
    CANARY,
    QUESTION,
    TABLE,
    FakeEndpoint,
    create_table,
    events,
    log_lines,
    moto_tables,
)
from utils.course import ROOT

MODULE = "utils.web.service.lambda_function"
EVENT: dict[str, Any] = {
    "resource": "/api/{proxy+}",
    "path": "/api/generate",
    "httpMethod": "POST",
    "headers": {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "Host": "0123456789.execute-api.us-east-1.amazonaws.com",
        "User-Agent": "Amazon CloudFront",
        "X-Amzn-Trace-Id": "Root=1-6925f0a2-0123456789abcdef01234567",
        "X-Forwarded-For": "203.0.113.7, 198.51.100.4",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
        "x-api-key": "a-key",
    },
    "multiValueHeaders": {
        "Accept": ["*/*"],
        "Content-Type": ["application/json"],
        "Host": ["0123456789.execute-api.us-east-1.amazonaws.com"],
        "User-Agent": ["Amazon CloudFront"],
        "X-Forwarded-Port": ["443"],
        "X-Forwarded-Proto": ["https"],
        "x-api-key": ["a-key"],
    },
    "queryStringParameters": None,
    "multiValueQueryStringParameters": None,
    "pathParameters": {"proxy": "generate"},
    "stageVariables": None,
    "requestContext": {
        "resourceId": "abc123",
        "resourcePath": "/api/{proxy+}",
        "httpMethod": "POST",
        "path": "/live/api/generate",
        "accountId": "123456789012",
        "protocol": "HTTP/1.1",
        "stage": "live",
        "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
        "identity": {
            "apiKey": "a-key",
            "apiKeyId": "key-id",
            "sourceIp": "203.0.113.7",
            "userAgent": "Amazon CloudFront",
        },
        "apiId": "0123456789",
    },
    "body": json.dumps({"question": QUESTION}),
    "isBase64Encoded": False,
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as fake:
        yield fake


@pytest.fixture(scope="module")
def function(endpoint) -> Iterator[ModuleType]:
    """The module as Lambda imports it: with the function's variables, once."""
    with moto_tables() as session, pytest.MonkeyPatch.context() as patch:
        create_table(session)
        variables = {
            "WEB_ENDPOINT": "fake",
            "WEB_TABLE": TABLE,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": endpoint.url,
            "AWS_ENDPOINT_URL_DYNAMODB": session._urls["dynamodb"],
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delitem(sys.modules, MODULE, raising=False)
        yield importlib.import_module(MODULE)
        sys.modules.pop(MODULE, None)


def event(body: Any = None, **changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(EVENT) | changes
    if body is not None:
        made["body"] = body if isinstance(body, str) else json.dumps(body)
    return made


def problem_of(reply: dict[str, Any]) -> tuple[int, str]:
    error = json.loads(reply["body"])["error"]
    assert set(error) == {"code", "message", "request_id", "fields"}
    assert reply["headers"]["x-request-id"] == error["request_id"]
    assert reply["headers"]["cache-control"] == "no-store"
    assert reply["headers"]["content-type"] == "application/json"
    assert reply["isBase64Encoded"] is False
    return reply["statusCode"], error["code"]


def test_a_question_is_answered(function, endpoint) -> None:
    reply = function.handler(event(), None)
    assert reply["statusCode"] == 200 and reply["isBase64Encoded"] is False
    assert reply["headers"]["cache-control"] == "no-store"
    body = json.loads(reply["body"])
    assert (body["answer"], body["version"]) == (ANSWER, "live")
    feedback = {"request_id": body["request_id"], "thumb": "up"}
    stored = function.handler(event(feedback, path="/api/feedback"), None)
    assert json.loads(stored["body"])["stored"] is True
    # Lambda sends what a handler returns as JSON.
    json.dumps(reply)


def test_an_answer_in_any_script_comes_whole(function, endpoint) -> None:
    question = "Größe? 東京 🦜"
    before = len(endpoint.asked)
    function.handler(event({"question": question}), None)
    raw = json.dumps({"question": question}, ensure_ascii=False)
    function.handler(event(raw), None)
    encoded = base64.b64encode(raw.encode()).decode()
    function.handler(event(encoded, isBase64Encoded=True), None)
    asked = endpoint.asked[before:]
    assert [one.body["messages"][0]["content"] for one in asked] == [question] * 3


def test_a_stream_arrives_as_a_whole(function) -> None:
    reply = function.handler(event({"question": QUESTION, "stream": True}), None)
    assert reply["headers"]["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events(reply["body"])] == ["start", "piece", "end"]
    assert reply["isBase64Encoded"] is False


@pytest.mark.parametrize(
    ("body", "base64_encoded", "expected"),
    [
        ("not base64!", True, (400, "bad_json")),
        ("abc", True, (400, "bad_json")),
        ("größer", True, (400, "bad_json")),
        (base64.b64encode(b"\xff\xfe").decode(), True, (400, "bad_json")),
        (base64.b64encode(b"{}").decode(), True, (422, "invalid")),
        (base64.b64encode(b" " * 70_000).decode(), True, (413, "too_large")),
        ('{"question": "\ud83d"}', False, (400, "bad_json")),
        ('{"question": "\\ud83d"}', False, (400, "bad_json")),
        ('{"question": "a', False, (400, "bad_json")),
        (" " * 70_000, False, (413, "too_large")),
        ("", False, (400, "bad_json")),
    ],
)
def test_bodies_that_cannot_be_used(function, body, base64_encoded, expected) -> None:
    reply = function.handler(event(body, isBase64Encoded=base64_encoded), None)
    assert problem_of(reply) == expected
    assert (
        problem_of(function.handler(event(body=None) | {"body": None}, None))[0] == 400
    )


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({"x-api-key": "schlüssel"}, {200}),
        ({"x-api-key": "🦜"}, {200}),
        ({"x-api-key": "\ud83d"}, {400}),
        ({"Host": "a:b:c"}, {200}),
        ({"Host": "[::1]:443"}, {200}),
        ({"content-length": "5"}, {200}),
        ({"content-length": "99999999"}, {413}),
        ({"Content-Type": "text/plain"}, {415}),
        ({"X-Request-Id": CANARY}, {200}),
    ],
)
def test_headers_that_are_odd(function, headers, statuses) -> None:
    many = {name: [value] for name, value in headers.items()}
    reply = function.handler(
        event(
            headers=EVENT["headers"] | headers,
            multiValueHeaders=EVENT["multiValueHeaders"] | many,
        ),
        None,
    )
    assert reply["statusCode"] in statuses
    assert CANARY not in json.dumps(reply)
    if reply["statusCode"] != 200:
        problem_of(reply)


@pytest.mark.parametrize(
    ("path", "stage", "status"),
    [
        ("/api/health", "live", 200),
        ("/live/api/health", "live", 200),
        ("/api/api/health", "api", 404),
        ("/other/api/health", "live", 404),
        ("/live//api/health", "live", 404),
        ("//api/health", "live", 404),
        ("/api/health/", "live", 404),
        ("/", "live", 404),
        ("", "live", 404),
        ("/api/%F0%9F%A6%9C", "live", 404),
        ("/api/%ff", "live", 404),
        ("/api/\ud83d", "live", 404),
    ],
)
def test_paths_with_and_without_the_stage(function, path, stage, status) -> None:
    context = EVENT["requestContext"] | {"stage": stage, "httpMethod": "GET"}
    made = event(path=path, httpMethod="GET", body=None, requestContext=context)
    reply = function.handler(made, None)
    assert reply["statusCode"] == status
    assert "location" not in reply["headers"]
    if status != 200:
        assert problem_of(reply) == (404, "not_found")


def test_events_of_an_http_api_are_answered_as_well(function) -> None:
    http = {"method": "POST", "path": "/live/api/generate", "sourceIp": "203.0.113.7"}
    made = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/live/api/generate",
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "x:y:z"},
        "requestContext": {"http": http, "stage": "live"},
        "body": json.dumps({"question": QUESTION}),
        "isBase64Encoded": False,
    }
    reply = function.handler(made, None)
    assert json.loads(reply["body"])["answer"] == ANSWER


@pytest.mark.parametrize(
    "made",
    [
        {},
        None,
        [],
        "warm",
        7,
        {"warmer": True},
        {"source": "serverless-plugin-warmup"},
        {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}},
        {"Records": [{"eventSource": "aws:sqs", "body": CANARY}]},
        {"requestContext": None},
        {"requestContext": {}},
        {"requestContext": {"elb": {"targetGroupArn": "x"}}, "path": 1},
        {"version": "2.0", "requestContext": {"http": {}}},
        {"version": "2.0", "requestContext": {"http": {"method": "GET", "path": 1}}},
        {"httpMethod": "GET", "path": "/api/health"},
        {"httpMethod": None, "path": "/", "resource": "/", "requestContext": {}},
    ],
    ids=str,
)
def test_events_that_are_no_requests_are_ignored(function, capsys, made) -> None:
    assert function.handler(made, None) == {"ignored": "not a request of API Gateway"}
    assert CANARY not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": None, "multiValueHeaders": None},
        {"headers": {"a": None}, "multiValueHeaders": None},
        {"multiValueHeaders": {"Content-Type": None}},
        {"queryStringParameters": {"a": "ü"}, "multiValueQueryStringParameters": 7},
        {"body": 7},
        {"requestContext": {"stage": None}},
        {"requestContext": {"identity": None}},
    ],
    ids=str,
)
def test_events_with_parts_of_another_form_are_the_senders_mistake(
    function, changes
) -> None:
    reply = function.handler(event(**changes), None)
    assert 200 <= reply["statusCode"] < 500
    if reply["statusCode"] != 200:
        problem_of(reply)


def test_an_event_that_cannot_be_read_has_its_line_without_its_text(
    function, capsys, caplog
) -> None:
    made = event("\ud83d" + CANARY, path=f"/api/{CANARY}")
    assert problem_of(function.handler(made, None)) == (400, "bad_json")
    out = capsys.readouterr()
    (line,), (metrics,) = log_lines(out.out)
    assert (line["status"], line["code"]) == (400, "bad_json")
    assert metrics["Refused"] == [1.0]
    assert CANARY not in out.out + out.err + caplog.text


def test_the_handler_needs_no_event_loop_of_others(function) -> None:
    """Lambda's thread has none, and whoever ran one before may have taken it away."""
    asyncio.run(asyncio.sleep(0))
    assert function.handler(event(), None)["statusCode"] == 200
    found = []

    def call() -> None:
        found.append(function.handler(event(), None)["statusCode"])

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [200]


def test_clients_are_built_at_import_and_no_lifespan_runs(function) -> None:
    assert function.adapter.lifespan == "off"
    before = function.app.router.lifespan_context
    started = []

    def lifespan(app: Any) -> Any:
        started.append(app)
        return before(app)

    function.app.router.lifespan_context = lifespan
    try:
        for _ in range(3):
            assert function.handler(event(), None)["statusCode"] == 200
    finally:
        function.app.router.lifespan_context = before
    assert not started


def test_without_its_variables_the_function_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {MODULE}"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "WEB_ENDPOINT: found '', expected a name" in done.stderr


def test_the_service_is_imported_without_anything_else_of_ours(tmp_path) -> None:
    """As the function is packed: the folder alone, by any name."""
    folder = tmp_path / "packed"
    folder.symlink_to(ROOT / "utils" / "web" / "service")
    code = (
        "import sys, packed.lambda_function as one; "
        "print([name for name in sys.modules if name.partition('.')[0] == 'utils'])"
    )
    variables = {
        "WEB_ENDPOINT": "fake",
        "WEB_TABLE": TABLE,
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONPATH": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_function_is_packed_with_what_was_tested() -> None:
    """Each pin is what is installed here, and each import has one."""
    path = ROOT / "utils" / "web" / "service" / "requirements.txt"
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    installed = {name: metadata.version(name) for name in pins}
    assert pins == installed
    for name in pins:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert needed.name.lower().replace("_", "-") in pins, (name, text)
    imported = set()
    for module in path.parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names)
    assert {name.replace("_", "-") for name in foreign} <= set(pins)
