"""Requests generated from the API's own description; 400 of them take 15 seconds.

The endpoint answers, throttles, fails, dies and is silent by turns, so that each
documented error comes up as well.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.web import (
    ANSWER,
    FakeEndpoint,
    MemoryRecords,
    answers,
    as_lines,
    chunks,
    dies,
    events,
    is_silent,
    model_fails,
    refuses,
    streams,
    throttles,
    web_app,
)
from utils.web.service.schema import PROBLEMS

load_all_checks()
CHECKS = [
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
TURNS = [
    *[answers()] * 12,
    throttles(),
    model_fails(400),
    answers(),
    model_fails(500),
    answers(),
    dies(),
    answers(),
    model_fails(0),
    refuses("ValidationError", 400),
    streams([as_lines(chunks(ANSWER, "more")[:1])], ending="die"),
    answers(),
    is_silent(),
    *[model_fails(500)] * 3,  # opens the breaker
]


def by_turns() -> Any:
    turns = itertools.cycle(TURNS)

    def act(handler: Any) -> None:
        next(turns)(handler)

    return act


def is_documented(response: Any) -> str:
    """Check status and form of a reply; return the code of its error, or "ok"."""
    request_id = response.headers["x-request-id"][0]
    assert response.headers["cache-control"] == ["no-store"]
    status, text = response.status_code, response.content.decode()
    if status == 200:
        if response.headers["content-type"][0].startswith("text/event-stream"):
            assert events(text)[-1][0] in ("end", "error")
        return "ok"
    assert status < 500 or status in (502, 503, 504)
    error = response.json()["error"]
    assert set(error) == {"code", "message", "request_id", "fields"}
    assert (status, error["message"]) == PROBLEMS[error["code"]]
    assert error["request_id"] == request_id
    assert (status == 503) == ("retry-after" in response.headers)
    return error["code"]


def generated(examples: int) -> Counter[tuple[str, str]]:
    """Send generated requests; return how often each path answered with what.

    Args:
        examples: for each way to generate requests to each path with a body.
    """
    found: Counter[tuple[str, str]] = Counter()
    records = MemoryRecords()
    with FakeEndpoint() as endpoint:
        endpoint.does(usual=by_turns())
        app = web_app(endpoint, records, timeout=0.1, breaker_seconds=0.1)
        schema = schemathesis.openapi.from_asgi("/api/openapi.json", app)
        for result in schema.get_all_operations():
            operation = result.ok()
            ways = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
            if operation.method.upper() == "GET":
                ways = ways[:1]
            for way in ways:

                @settings(
                    max_examples=examples,
                    derandomize=True,
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=way))
                def send(case: Any) -> None:
                    response = case.call()
                    case.validate_response(response, checks=CHECKS)
                    found[case.path, is_documented(response)] += 1  # noqa: B023

                send()
    return found


def check(found: Counter[tuple[str, str]], requests: int) -> None:
    assert found.total() >= requests
    codes = {code for _, code in found}
    assert "internal" not in codes
    asked = {code for path, code in found if path == "/api/generate"}
    assert {"ok", "invalid", "unknown_version"} <= asked
    assert {"model_error", "unavailable", "timeout"} <= asked
    assert ("/api/feedback", "unknown_request") in found
    assert found["/api/health", "ok"] and found["/api/versions", "ok"]


def test_400_generated_requests_get_documented_replies(capsys) -> None:
    check(generated(105), 400)


@pytest.mark.slow  # three minutes on a busy machine
def test_2000_generated_requests_get_documented_replies(capsys) -> None:
    check(generated(520), 2000)
