"""Nothing that a client sends is repeated: not in logs, metrics or errors; 10 seconds.

Each case sends a canary on a way that fails, and looks for it in all that comes out.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from support.web import (
    CANARY,
    SETTINGS,
    FakeEndpoint,
    NearbySession,
    answers,
    as_lines,
    chunks,
    completion,
    dies,
    events,
    is_silent,
    log_lines,
    model_fails,
    refuses,
    served,
    streams,
    throttles,
    web_app,
)
from utils.web.service.records import Records, table_client
from utils.web.service.settings import Settings

JSON = {"content-type": "application/json"}
ASK, RATE = "/api/generate", "/api/feedback"
QUESTION = {"question": f"What is {CANARY}?"}
SAID = [as_lines(chunks(CANARY, "more")[:1])]
ERROR = json.dumps({"error": CANARY, "code": 424}).encode() + b"\n"

FAULTS = {
    "model 400": model_fails(400),
    "model 424": model_fails(424),
    "model 500": model_fails(500),
    "model 503": model_fails(503),
    "model time-out": model_fails(0),
    "throttled": throttles(),
    "no endpoint": refuses("ValidationError", 400),
    "no permission": refuses("AccessDeniedException", 403),
    "unknown code": refuses("WhoKnowsException", 418),
    "AWS failed": refuses("InternalFailure", 500),
    "silent": is_silent(),
    "dead": dies(),
    "no HTTP": dies(f"{CANARY}\r\n\r\n".encode()),
    "no JSON": lambda handler: handler.whole(200, CANARY.encode()),
    "other JSON": lambda handler: handler.whole(200, f'{{"{CANARY}": 1}}'.encode()),
}
BREAKS = {
    "die": streams(SAID, ending="die"),
    "end": streams(SAID, ending="end"),
    "fault": streams(SAID, ending="fault"),
    "timeout": streams(SAID, ending="timeout"),
    "silent": streams(SAID, ending="wait"),
    "error": streams([*SAID, ERROR]),
    "no JSON": streams([*SAID, CANARY.encode() + b"\n"]),
}
# What is sent: method, path, and the rest of httpx's arguments.
SENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cut off": ("POST", ASK, {"content": f'{{"question": "{CANARY}'.encode()}),
    "no JSON": ("POST", ASK, {"content": CANARY.encode()}),
    "Latin-1": (
        "POST",
        ASK,
        {"content": f'{{"question": "{CANARY}é"}}'.encode("latin-1")},
    ),
    "half a pair": ("POST", ASK, {"content": f'"{CANARY}\\ud83d"'.encode()}),
    "too large": ("POST", ASK, {"content": CANARY.encode() * 10_000}),
    "too long": ("POST", ASK, {"json": {"question": CANARY * 1000}}),
    "number": ("POST", ASK, {"json": {"question": 1, "max_tokens": CANARY}}),
    "list": ("POST", ASK, {"json": [CANARY]}),
    "text": ("POST", ASK, {"json": CANARY}),
    "nested": ("POST", ASK, {"json": {"question": {CANARY: [CANARY]}}}),
    "field": ("POST", ASK, {"json": {"question": "a", CANARY: 1}}),
    "version": ("POST", ASK, {"json": {"question": "a", "version": CANARY}}),
    "boolean": ("POST", ASK, {"json": {"question": "a", "stream": CANARY}}),
    "type": (
        "POST",
        ASK,
        {"content": CANARY.encode(), "headers": {"content-type": f"text/{CANARY}"}},
    ),
    "charset": (
        "POST",
        ASK,
        {
            "content": CANARY.encode(),
            "headers": {"content-type": f"application/json; charset={CANARY}"},
        },
    ),
    "header": ("GET", "/nowhere", {"headers": {CANARY: CANARY, "x-api-key": CANARY}}),
    "id": ("POST", ASK, {"content": b"", "headers": JSON | {"x-request-id": CANARY}}),
    "host": ("GET", "/nowhere", {"headers": {"host": CANARY}}),
    "cookie": ("GET", "/nowhere", {"headers": {"cookie": f"a={CANARY}"}}),
    "path": ("GET", f"/api/{CANARY}", {}),
    "double path": ("GET", f"//{CANARY}/api/health/", {}),
    "query": ("GET", f"/nowhere?{CANARY}={CANARY}", {}),
    "query of a question": ("POST", f"{ASK}?question={CANARY}", {"json": {}}),
    "method": (CANARY.upper(), ASK, {}),
    "request id": ("POST", RATE, {"json": {"request_id": CANARY, "thumb": "up"}}),
    "thumb": ("POST", RATE, {"json": {"request_id": "a", "thumb": CANARY}}),
    "comment": (
        "POST",
        RATE,
        {"json": {"request_id": "a", "thumb": "up", "comment": CANARY}},
    ),
    "comment too long": (
        "POST",
        RATE,
        {"json": {"request_id": "a", "thumb": "up", "comment": CANARY * 200}},
    ),
    "comment's type": (
        "POST",
        RATE,
        {"json": {"request_id": "a", "thumb": "up", "comment": [CANARY]}},
    ),
}


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as fake:
        yield fake


@pytest.fixture
def is_silent_about(capfd, caplog) -> Callable[..., list[dict[str, Any]]]:
    """Return a check that nothing holds the canary; it returns the log's lines."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.WARNING, "httpx")  # the client's own

    def check(*shown: Any) -> list[dict[str, Any]]:
        out, err = capfd.readouterr()
        records = [str(vars(record)) for record in caplog.records]
        for text in (out, err, caplog.text, *records, *map(str, shown)):
            assert CANARY not in text.lower(), text
        logs, _ = log_lines(out)
        assert logs
        return logs

    return check


def app_client(endpoint: FakeEndpoint, records: Any = None, **changes: Any) -> Any:
    changes = {"timeout": 0.2, "breaker_failures": 100} | changes
    return TestClient(web_app(endpoint, records, **changes), follow_redirects=False)


def shown(response: Any) -> tuple[str, dict[str, str]]:
    return response.text, dict(response.headers)


@pytest.mark.parametrize("name", SENT)
def test_what_is_refused_is_not_repeated(endpoint, is_silent_about, name) -> None:
    method, path, sent = SENT[name]
    client = app_client(endpoint)
    url = f"http://testserver{path}"
    headers = (JSON if "content" in sent else {}) | sent.get("headers", {})
    response = client.request(method, url, **sent | {"headers": headers})
    assert 400 <= response.status_code < 500
    is_silent_about(shown(response))
    assert not endpoint.asked


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_endpoint_tell_nothing(
    endpoint, is_silent_about, name, stream
) -> None:
    endpoint.does(usual=FAULTS[name])
    if name == "other JSON" and stream:
        endpoint.does(usual=streams([b"[" + CANARY.encode() + b"]\n"]))
    response = app_client(endpoint).post(ASK, json=QUESTION | {"stream": stream})
    assert response.status_code in (502, 503, 504)
    assert endpoint.asked
    (line,) = is_silent_about(shown(response))
    assert line["cause"]


@pytest.mark.parametrize("name", BREAKS)
def test_streams_that_break_off_tell_nothing(endpoint, is_silent_about, name) -> None:
    endpoint.does(usual=BREAKS[name])
    response = app_client(endpoint).post(ASK, json=QUESTION | {"stream": True})
    *_, (piece, _), (kind, error) = events(response.text)
    assert (piece, kind) == ("piece", "error")
    is_silent_about(error, dict(response.headers))


def test_an_open_breaker_and_an_answer_tell_nothing(endpoint, is_silent_about) -> None:
    client = app_client(endpoint, breaker_failures=1, breaker_seconds=60)
    endpoint.does(answers(completion(CANARY)), model_fails(500))
    responses = [client.post(ASK, json=QUESTION) for _ in range(3)]
    assert [one.status_code for one in responses] == [200, 502, 503]
    assert CANARY in responses[0].text  # the reader's own answer
    is_silent_about(*map(shown, responses[1:]))


def test_a_table_that_fails_tells_nothing(endpoint, is_silent_about) -> None:
    nowhere = NearbySession({"dynamodb": "http://127.0.0.1:9"})
    records = Records("answers", table_client(nowhere), keep_texts=True)
    client = app_client(endpoint, records)
    assert client.post(ASK, json=QUESTION).status_code == 200
    body = {"request_id": CANARY, "thumb": "up", "comment": CANARY}
    response = client.post(RATE, json=body)
    assert response.status_code == 503
    is_silent_about(shown(response))


class Careless(Records):
    """Records with a mistake of ours, whose exceptions hold what a client sent."""

    def __init__(self) -> None:
        pass

    def put_answer(self, **row: Any) -> None:
        try:
            raise KeyError(row["question"])
        except KeyError as error:
            raise RuntimeError(f"{CANARY}: {row}") from error

    def put_feedback(self, request_id: str, thumb: str, comment: str) -> str | None:
        raise ValueError(comment)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_exceptions_are_logged_without_their_text(
    endpoint, is_silent_about, stream
) -> None:
    client = app_client(endpoint, Careless())
    response = client.post(ASK, json=QUESTION | {"stream": stream})
    feedback = client.post(
        RATE, json={"request_id": "a", "thumb": "up", "comment": CANARY}
    )
    assert feedback.status_code == 502
    logs = is_silent_about(shown(response), shown(feedback))
    found = [line for line in logs if line["message"] == "exception"]
    assert [line["kind"] for line in found] == ["RuntimeError", "ValueError"]
    assert found[0]["caused_by"] == ["KeyError"]
    assert found[0]["place"].startswith("test_web_silence.py:")


def test_a_server_before_the_app_tells_nothing(endpoint, is_silent_about) -> None:
    """What uvicorn itself refuses, and a client that leaves."""
    head = (
        f"POST {ASK}?{CANARY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    )
    with served(web_app(endpoint)) as url:
        port = int(url.rpartition(":")[2])
        for sent in (
            f"{CANARY}\r\n\r\n",
            f"GET /{CANARY} HTTP/9.9\r\n\r\n",
            f"{head}Content-Length: {CANARY}\r\n\r\n",
            f"{head}Content-Length: 5\r\n\r\n{CANARY}",
            f"{head}Transfer-Encoding: chunked\r\n\r\n{CANARY}\r\n",
            f"{head}Content-Length: 500\r\n\r\n{CANARY}",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(sent.encode())
                connection.shutdown(socket.SHUT_WR)
                assert CANARY.encode() not in connection.recv(65536)
    is_silent_about()


def test_texts_are_in_the_log_where_the_setting_lets_them(endpoint, capsys) -> None:
    """In the log, and still in no error."""
    variables = {"WEB_ENDPOINT": "fake", "WEB_TABLE": "answers", "WEB_LOG_TEXTS": "1"}
    settings = Settings.from_environment(variables)
    client = TestClient(web_app(endpoint, settings=settings))
    endpoint.does(answers(completion(f"It is {CANARY}.")), model_fails(500))
    request_id = client.post(ASK, json=QUESTION).json()["request_id"]
    failed = client.post(ASK, json=QUESTION)
    body = {"request_id": request_id, "thumb": "up", "comment": f"Well, {CANARY}"}
    client.post(RATE, json=body)
    logs, metrics = log_lines(capsys.readouterr().out)
    answered, refused, rated = logs
    assert answered["question"] == refused["question"] == QUESTION["question"]
    assert answered["answer"] == f"It is {CANARY}."
    assert rated["comment"] == f"Well, {CANARY}"
    assert CANARY not in failed.text + json.dumps(metrics)
    client = TestClient(web_app(endpoint, Careless(), settings=settings))
    assert CANARY not in client.post(ASK, json=QUESTION).text
    exception, _ = log_lines(capsys.readouterr().out)[0]
    assert CANARY in exception["text"] and "Traceback" in exception["text"]


def test_no_text_is_logged_by_default() -> None:
    assert SETTINGS.log_texts is False and SETTINGS.keep_texts is False
