"""What CloudFront and API Gateway do before the app: who gets in, and as what."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import importlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from utils.web import expansion, runtime_api
from utils.web import gateway as rooms
from utils.web.faults import ROUTES
from utils.web.gateway import (
    MOST_BYTES,
    GatewayError,
    LambdaApp,
    LambdaContext,
    Refusal,
    UsagePlan,
    event_of,
    reply_of,
    routes_of,
)
from utils.web.service.schema import PROBLEMS

KEY = "a-key-of-the-tests-0123456789"
OTHER = "another-key-of-the-tests-01234"
PLENTY = UsagePlan(rate=1000, burst=1000)
METHODS = {path: method for method, path in sorted(ROUTES)}
Gateway = functools.partial(rooms.Gateway, routes=ROUTES)


class App:
    """Stands for the app: notes what it is asked, and answers as the test wants."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json")
        ]
        self.parts = [b'{"status": "ok"}']
        self.status = 200
        self.pause = 0.0
        self.error: Exception | None = None
        self.cancelled = self.left = False

    async def __call__(self, scope, receive, send) -> None:
        message = await receive()
        self.asked.append(dict(scope))
        self.bodies.append(message["body"])
        try:
            await asyncio.sleep(self.pause)
            if self.error is not None:
                raise self.error
            start = {"type": "http.response.start", "status": self.status}
            await send({**start, "headers": self.headers})
            for part in self.parts:
                await send(
                    {"type": "http.response.body", "body": part, "more_body": True}
                )
                await asyncio.sleep(self.pause)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def page(tmp_path) -> Path:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>é</title>", "utf-8")
    (folder / "app.js").write_text("'use strict';")
    (folder / "style.css").write_text("body { margin: 0 }")
    (folder / ".secret.json").write_text("{}")
    (folder / "notes.key").write_text("a key")
    (folder / "inner").mkdir()
    (folder / "inner" / "index.html").write_text("inner")
    (tmp_path / "outside.html").write_text("outside")
    (folder / "link.html").symlink_to(tmp_path / "outside.html")
    return folder


def ask(
    gateway: Gateway,
    path: str = "/api/health",
    method: str = "GET",
    key: Any = KEY,
    headers: Any = (),
    body: bytes = b"",
    query: bytes = b"",
) -> httpx.Response:
    """Send a request as uvicorn hands it on: the path as it came, unlike in clients."""
    return asyncio.run(exchange(gateway, path, method, key, headers, body, query))


async def exchange(
    gateway, path="/api/health", method="GET", key=KEY, headers=(), body=b"", query=b""
) -> httpx.Response:
    pairs = [(b"host", b"evil.example"), *headers]
    if key is not None:
        key = key.encode() if isinstance(key, str) else key
        pairs.append((b"x-api-key", key))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": httpx.URL(f"http://a{path}").path if path.isascii() else path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": pairs,
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
    }
    pieces = [body[i : i + 2**16] for i in range(0, len(body), 2**16)] or [b""]
    incoming = iter(
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    )
    sent: list[dict[str, Any]] = []

    async def receive():
        for message in incoming:
            return message
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await gateway(scope, receive, send)
    start, *rest = sent
    content = b"".join(message.get("body", b"") for message in rest)
    return httpx.Response(start["status"], headers=start["headers"], content=content)


def refused(reply: httpx.Response, status: int, code: str) -> None:
    """Hold a refusal to the form that all errors have."""
    assert reply.status_code == status == PROBLEMS[code][0], reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    (error,) = reply.json().values()
    assert set(error) == {"code", "message", "request_id", "fields"}
    assert error["code"] == code and error["fields"] == []
    assert len(error["request_id"]) == 32
    assert error["request_id"] == reply.headers["x-request-id"]
    closed(reply)


def closed(reply: httpx.Response) -> None:
    """No reply opens itself, leads elsewhere or repeats the host it was sent to."""
    names = [name.lower() for name in reply.headers]
    assert not [name for name in names if name.startswith("access-control-")]
    assert "location" not in names
    assert "evil.example" not in reply.text + str(reply.headers)
    assert reply.headers["x-content-type-options"] == "nosniff"


# --- who gets in ----------------------------------------------------------------------


def test_with_its_key_a_request_reaches_the_app(app) -> None:
    gateway = Gateway(app, {OTHER: PLENTY, KEY: PLENTY})
    reply = ask(gateway, "/api/generate", "POST", body=b"abc")
    assert reply.status_code == 200 and reply.json() == {"status": "ok"}
    assert app.bodies == [b"abc"]
    closed(reply)


WRONG_KEYS = {
    "none": None,
    "an empty one": "",
    "another": "b" + KEY[1:],
    "its beginning": KEY[:-1],
    "more than it": KEY + "0",
    "in capitals": KEY.upper(),
    "beyond ASCII": "schlüssel-é-0123456789",
    "bytes that are no text": b"\xff\xfe\x00\x80" * 8,
    "half a surrogate pair": "\ud83d".encode("utf-8", "surrogatepass"),
    "very long": "k" * 60_000,
}


@pytest.mark.parametrize("kind", WRONG_KEYS)
@pytest.mark.parametrize("path", METHODS)
def test_without_its_key_nothing_does(app, kind, path) -> None:
    method, key = METHODS[path], WRONG_KEYS[kind]
    reply = ask(Gateway(app, {KEY: PLENTY}), path, method, key)
    refused(reply, 403, "forbidden")
    assert KEY not in reply.text
    assert app.asked == []


def test_two_keys_are_none(app) -> None:
    for first in (KEY, "x" * 20):
        given = [(b"X-Api-Key", first.encode())]
        refused(ask(Gateway(app, {KEY: PLENTY}), headers=given), 403, "forbidden")
    assert app.asked == []


def test_the_headers_name_is_read_in_any_case(app) -> None:
    given = [(b"X-API-Key", KEY.encode())]
    assert ask(Gateway(app, {KEY: PLENTY}), key=None, headers=given).is_success


def test_without_any_keys_nobody_gets_in(app) -> None:
    refused(ask(Gateway(app, {})), 403, "forbidden")


@pytest.mark.parametrize("key", ["", "short", "é" * 20, "a" * 129, "a b" * 8])
def test_a_key_that_aws_would_not_take_is_refused(key) -> None:
    with pytest.raises(GatewayError, match="Key 2 has") as failure:
        Gateway(App(), {KEY: PLENTY, key: PLENTY})
    assert not key or key not in str(failure.value)


@pytest.mark.parametrize("path", [*METHODS, "/", "/app.js", "/api/none"])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_preflight_is_refused_and_opens_nothing(app, page, path, key) -> None:
    """Browsers send it without the key: an API for other pages would need it open."""
    given = [
        (b"origin", b"https://evil.example"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"x-api-key"),
    ]
    gateway = Gateway(app, {KEY: PLENTY}, page)
    reply = ask(gateway, path, "OPTIONS", key, given)
    if path.startswith("/api/"):
        refused(reply, 404, "not_found")
    else:
        refused(reply, 403, "forbidden")
    assert app.asked == []


def test_headers_that_open_the_app_are_taken_out(app) -> None:
    app.headers += [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"access-control-allow-credentials", b"true"),
        (b"X-Content-Type-Options", b"sniff"),
    ]
    closed(ask(Gateway(app, {KEY: PLENTY})))


# --- routes, as the template has them -------------------------------------------------


@pytest.fixture(scope="module")
def deployed() -> expansion.Resolved:
    """The template, its references resolved."""
    return expansion.resolve(expansion.load())


NO_ROUTES = ("/api/", "/api/none", "/api/health/", "/api//health", "/api/Health")
NO_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def at_aws(deployed, method: str, path: str, key: str | None) -> str | None:
    """Say by which type of refusal the template's API answers; None: by the app."""
    routes = {(one.method, one.path): one for one in expansion.routes(deployed)}
    route = routes.get((method, path))
    if route is None:
        return "MISSING_AUTHENTICATION_TOKEN"
    return "INVALID_API_KEY" if route.needs_key and key != KEY else None


def test_each_path_and_method_is_answered_as_the_template_does(app, deployed) -> None:
    (api,) = deployed.of("AWS::ApiGateway::RestApi").values()
    refusals = api["Body"]["x-amazon-apigateway-gateway-responses"]
    seen = set()
    paths = (*METHODS, *NO_ROUTES)
    cases = [(m, p, k) for m in NO_METHODS for p in paths for k in (KEY, OTHER, None)]
    for method, path, key in cases:
        app.asked.clear()
        reply = ask(Gateway(app, {KEY: PLENTY}), path, method, key)
        kind = at_aws(deployed, method, path, key)
        seen.add(kind)
        assert len(app.asked) == (kind is None), (method, path, key)
        if kind is None:
            assert reply.status_code == 200
            continue
        expected = refusals[kind]
        assert reply.status_code == int(expected["statusCode"]), (method, path, key)
        fixed = expected["responseParameters"]
        cache = fixed["gatewayresponse.header.Cache-Control"].strip("'")
        assert reply.headers["cache-control"] == cache
        assert "gatewayresponse.header.x-request-id" in fixed
        body = expected["responseTemplates"]["application/json"]
        request_id = reply.headers["x-request-id"]
        body = json.loads(body.replace("$context.requestId", request_id))
        if method == "HEAD":
            assert reply.content == b""
        else:
            assert reply.json() == body
    assert seen == {None, "MISSING_AUTHENTICATION_TOKEN", "INVALID_API_KEY"}


def test_a_function_is_told_of_itself_what_the_template_says(deployed) -> None:
    (function,) = (
        resource["Properties"]
        for resource in deployed.resources.values()
        if resource["Type"] == "AWS::Lambda::Function"
    )
    context = LambdaContext("1", 0.0)
    told = (
        context.memory_limit_in_mb,
        int(runtime_api.VARIABLES["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]),
    )
    assert told == (function["MemorySize"],) * 2
    assert f":{expansion.ACCOUNT}:" in context.invoked_function_arn


def test_app_template_and_interface_have_the_same_routes(service, deployed) -> None:
    found = {(route.method, route.path) for route in expansion.routes(deployed)}
    assert routes_of(service.app) == found == ROUTES


def test_methods_are_those_of_the_templates_distribution(app, page, deployed) -> None:
    (given,) = deployed.of("AWS::CloudFront::Distribution").values()
    page_, api = (
        {*behaviour["AllowedMethods"]}
        for behaviour in sorted(
            expansion.behaviours(given["DistributionConfig"]),
            key=lambda one: "PathPattern" in one,
        )
    )
    assert page_ == rooms.PAGE_METHODS and api == rooms.API_METHODS
    for method in ("TRACE", "CONNECT", "PROPFIND", "get"):
        for path in ("/api/health", "/api/none", "/"):
            reply = ask(Gateway(app, {KEY: PLENTY}, page), path, method)
            refused(reply, 403, "forbidden")
    assert app.asked == []


# --- usage plans ----------------------------------------------------------------------


class Time:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def statuses(gateway: Gateway, count: int, key: str = KEY) -> list[int]:
    return [ask(gateway, key=key).status_code for _ in range(count)]


def test_over_the_rate_nothing_reaches_the_app(app) -> None:
    clock = Time()
    gateway = Gateway(app, {KEY: UsagePlan(rate=2, burst=3)}, clock=clock)
    assert statuses(gateway, 5) == [200, 200, 200, 429, 429]
    assert len(app.asked) == 3
    reply = ask(gateway)
    refused(reply, 429, "throttled")
    assert reply.headers["retry-after"] == "1"
    clock.now += 0.5
    assert statuses(gateway, 2) == [200, 429]
    clock.now += 1000
    assert statuses(gateway, 4) == [200, 200, 200, 429]


def test_a_slow_rate_says_how_long_to_wait(app) -> None:
    clock = Time()
    plan = UsagePlan(rate=1 / 32, burst=1)
    gateway = Gateway(app, {KEY: plan}, clock=clock)
    assert ask(gateway).is_success
    clock.now += 10
    wait = int(ask(gateway).headers["retry-after"])
    assert wait == 22
    clock.now += wait
    assert ask(gateway).is_success


def test_over_the_quota_nothing_reaches_the_app_until_the_next_day(app) -> None:
    calendar = Time()
    calendar.now = 20_000 * 86_400 + 86_400 - 90.5
    plan = UsagePlan(rate=1000, burst=1000, quota=2)
    gateway = Gateway(app, {KEY: plan}, calendar=calendar)
    assert statuses(gateway, 3) == [200, 200, 429]
    reply = ask(gateway)
    refused(reply, 429, "throttled")
    assert reply.headers["retry-after"] == "91"
    assert len(app.asked) == 2
    calendar.now += 91
    assert statuses(gateway, 3) == [200, 200, 429]


def test_one_keys_plan_is_not_anothers(app) -> None:
    plans = {KEY: UsagePlan(rate=1, burst=1), OTHER: UsagePlan(rate=1, burst=2)}
    gateway = Gateway(app, plans, clock=Time())
    assert statuses(gateway, 2) == [200, 429]
    assert statuses(gateway, 3, OTHER) == [200, 200, 429]


def test_what_is_refused_takes_nothing_from_the_plan(app) -> None:
    """Neither strangers, who could use up a key that way, nor throttled requests."""
    clock = Time()
    plan = UsagePlan(rate=1, burst=1, quota=2)
    gateway = Gateway(app, {KEY: plan}, clock=clock)
    assert statuses(gateway, 3, "x" * 20) == [403] * 3
    assert statuses(gateway, 4) == [200, 429, 429, 429]
    clock.now += 1
    assert ask(gateway).is_success


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0},
        {"rate": -1},
        {"rate": math.nan},
        {"burst": 0},
        {"quota": -1},
        {"quota": 0},
    ],
)
def test_a_plan_that_lets_nothing_through_is_refused(wrong) -> None:
    with pytest.raises(GatewayError, match=next(iter(wrong))):
        UsagePlan(**wrong)


# --- paths ----------------------------------------------------------------------------

CROOKED = [
    "//evil.example",
    "//evil.example/api/generate",
    "/api//generate",
    "/api/generate//",
    "//",
    "/%2f%2fevil.example",
    "/api/%2fgenerate",
    "/api%2Fgenerate",
    "/\\evil.example",
    "/%5cevil.example",
    "/api/../index.html",
    "/api/./generate",
    "/api/%2e%2e/index.html",
    "/..",
    "/api/generate%00",
    "/api/generate%0d%0alocation:x",
    "/api/générate",
    "http://evil.example/api/generate",
    "*",
    "/api/generate;a=b",
]


@pytest.mark.parametrize("path", CROOKED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_crooked_path_is_not_found_and_leads_nowhere(app, page, path, method) -> None:
    reply = ask(Gateway(app, {KEY: PLENTY}, page), path, method)
    refused(reply, 404, "not_found")
    assert app.asked == []


def test_host_and_forwarding_are_the_gateways_own(app) -> None:
    given = [
        (b"X-Forwarded-Host", b"evil.example"),
        (b"x-forwarded-for", b"9.9.9.9"),
        (b"forwarded", b"for=9.9.9.9;host=evil.example"),
        (b"x-request-id", b"mine"),
        (b"accept", b"application/json"),
    ]
    ask(Gateway(app, {KEY: PLENTY}), headers=given, query=b"a=1")
    (scope,) = app.asked
    headers = dict(scope["headers"])
    assert b"evil.example" not in b" ".join(headers.values())
    assert headers[b"host"].endswith(b".amazonaws.com")
    assert headers[b"x-forwarded-for"] == b"127.0.0.1"
    assert b"x-request-id" not in headers and b"forwarded" not in headers
    assert headers[b"accept"] == b"application/json"
    assert scope["query_string"] == b"a=1"


# --- the page -------------------------------------------------------------------------


def test_the_pages_files_are_served(app, page) -> None:
    gateway = Gateway(app, {KEY: PLENTY}, page)
    for path, content_type in (
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/inner/index.html", "text/html; charset=utf-8"),
    ):
        reply = ask(gateway, path, key=None)
        name = path[1:] or "index.html"
        assert reply.status_code == 200
        assert reply.headers["content-type"] == content_type
        assert reply.content == (page / name).read_bytes()
        policy = reply.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'self'" in policy
        closed(reply)
    assert app.asked == []


def test_head_gives_the_headers_alone(app, page) -> None:
    gateway = Gateway(app, {KEY: PLENTY}, page)
    whole, head = ask(gateway, "/"), ask(gateway, "/", "HEAD")
    assert head.status_code == 200 and head.content == b""
    assert head.headers == whole.headers


def test_an_unchanged_file_is_not_sent_again(app, page) -> None:
    gateway = Gateway(app, {KEY: PLENTY}, page)
    tag = ask(gateway, "/app.js").headers["etag"]
    given = [(b"if-none-match", tag.encode())]
    reply = ask(gateway, "/app.js", headers=given)
    assert reply.status_code == 304 and reply.content == b""
    (page / "app.js").write_text("changed")
    assert ask(gateway, "/app.js", headers=given).content == b"changed"


@pytest.mark.parametrize(
    "path",
    [
        "/none.html",
        "/inner",
        "/inner/",
        "/.secret.json",
        "/notes.key",
        "/link.html",
        "/outside.html",
        "/api",
        "/app.js/",
        "/favicon.ico",
        "/" + "a" * 300 + ".html",
    ],
)
def test_nothing_else_is(app, page, path) -> None:
    """A missing file is no page with status 200, and no folder is listed."""
    refused(ask(Gateway(app, {KEY: PLENTY}, page), path), 404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_page_is_only_read(app, page, method) -> None:
    gateway = Gateway(app, {KEY: PLENTY}, page)
    refused(ask(gateway, "/", method, body=b"abc"), 403, "forbidden")


def test_errors_of_the_app_stay_errors(app, page) -> None:
    """No distribution turns its 403 and 404 into the page."""
    gateway = Gateway(app, {KEY: PLENTY}, page)
    for status in (403, 404, 422, 503):
        app.status = status
        app.headers = [
            (b"content-type", b"application/json"),
            (b"retry-after", b"7"),
            (b"x-request-id", b"of-the-app"),
        ]
        reply = ask(gateway)
        assert reply.status_code == status and reply.json() == {"status": "ok"}
        assert reply.headers["retry-after"] == "7"
        assert reply.headers["x-request-id"] == "of-the-app"


def test_a_notebook_may_frame_the_page_if_it_is_named(app, page) -> None:
    named = "'self' http://localhost:8888"
    reply = ask(Gateway(app, {}, page), "/")
    assert reply.headers["x-frame-options"] == "SAMEORIGIN"
    reply = ask(Gateway(app, {}, page, framed_by=named), "/")
    assert "x-frame-options" not in reply.headers
    assert f"frame-ancestors {named}" in reply.headers["content-security-policy"]


# --- sizes and times ------------------------------------------------------------------


@pytest.mark.parametrize("more, status", [(0, 200), (1, 413), (MOST_BYTES, 413)])
def test_ten_megabytes_are_the_limit(app, more, status) -> None:
    body = bytes(MOST_BYTES + more)
    reply = ask(Gateway(app, {KEY: PLENTY}), "/api/generate", "POST", body=body)
    assert reply.status_code == status
    if status == 413:
        refused(reply, 413, "too_large")
    assert len(app.asked) == (status == 200)


def test_a_slow_app_is_given_up(app) -> None:
    app.pause = 5
    started = time.monotonic()
    reply = ask(Gateway(app, {KEY: PLENTY}, timeout=0.2))
    refused(reply, 504, "timeout")
    assert time.monotonic() - started < 2 and app.cancelled


def test_a_slow_sender_is_given_up(app) -> None:
    async def never():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"x-api-key", KEY.encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/generate"}
    gateway = Gateway(app, {KEY: PLENTY}, timeout=0.2)
    asyncio.run(gateway({**scope, "headers": headers}, never, send))
    assert sent[0]["status"] == 504 and app.asked == []


def test_a_client_that_leaves_in_its_request_is_not_answered(app) -> None:
    messages = iter(
        [
            {"type": "http.request", "body": b"half", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive():
        return next(messages)

    async def send(message):
        raise AssertionError(message)

    headers = [(b"x-api-key", KEY.encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/generate"}
    asyncio.run(
        Gateway(app, {KEY: PLENTY})({**scope, "headers": headers}, receive, send)
    )
    assert app.asked == []


def test_a_stream_passes_as_it_comes_and_may_take_its_time(app) -> None:
    """Events with line ends, "[DONE]" and half characters, byte by byte the app's."""
    app.headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    app.parts = [b"event: piece\n", b'data: "\xc3', b'\xa9 [DONE]\\n"\n\n', b"data: x"]
    app.pause = 0.1
    came: list[tuple[float, bytes]] = []

    async def send(message):
        if message["type"] == "http.response.body":
            came.append((time.monotonic(), message["body"]))

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"x-api-key", KEY.encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/generate"}
    gateway = Gateway(app, {KEY: PLENTY}, timeout=0.25)
    asyncio.run(gateway({**scope, "headers": headers}, receive, send))
    assert [part for _, part in came] == [*app.parts, b""]
    assert came[-1][0] - came[0][0] > 0.3
    assert not app.cancelled


@pytest.mark.parametrize("error", [RuntimeError("a secret question"), ValueError()])
def test_an_app_that_fails_is_an_error_of_ours(app, error, caplog) -> None:
    app.error = error
    reply = ask(Gateway(app, {KEY: PLENTY}))
    refused(reply, 502, "internal")
    assert "question" not in reply.text + caplog.text


def test_an_app_that_breaks_off_is_no_whole_reply(app) -> None:
    async def breaks_off(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    refused(ask(Gateway(breaks_off, {KEY: PLENTY})), 502, "internal")


@pytest.mark.parametrize("error", [None, RuntimeError("no")], ids=["ends", "fails"])
def test_a_stream_that_breaks_off_is_followed_by_nothing(error) -> None:
    async def app(scope, receive, send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start)
        part = {"type": "http.response.body", "body": b"one\n\n", "more_body": True}
        await send(part)
        if error is not None:
            raise error

    reply = ask(Gateway(app, {KEY: PLENTY}))
    assert (reply.status_code, reply.content) == (200, b"one\n\n")


def test_a_websocket_is_turned_away(app) -> None:
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/api/health", "headers": []}
    asyncio.run(Gateway(app, {KEY: PLENTY})(scope, None, send))
    assert sent[0]["type"] == "websocket.close" and app.asked == []


# --- the same for a Lambda function ---------------------------------------------------


def lambda_gateway(handler: Any, **more: Any) -> Gateway:
    return Gateway(LambdaApp(handler, **more), {KEY: PLENTY})


def test_a_request_becomes_an_event_of_a_rest_api() -> None:
    events = []

    def handler(event, context):
        events.append((event, context))
        return {"statusCode": 201, "headers": {"X-A": "1"}, "body": "é"}

    given = [(b"x-two", b"1"), (b"x-two", b"2"), (b"user-agent", b"test")]
    reply = ask(
        lambda_gateway(handler),
        "/api/generate",
        "POST",
        headers=given,
        body='{"question": "é"}'.encode(),
        query=b"a=1&a=2&b=%C3%A9",
    )
    assert (reply.status_code, reply.text) == (201, "é")
    assert reply.headers["x-a"] == "1"
    ((event, context),) = events
    json.dumps(event)
    assert (event["httpMethod"], event["path"]) == ("POST", "/api/generate")
    assert event["resource"] == "/api/generate"
    assert (event["body"], event["isBase64Encoded"]) == ('{"question": "é"}', False)
    assert event["multiValueHeaders"]["x-two"] == ["1", "2"]
    assert event["headers"]["x-two"] == "2"
    assert event["queryStringParameters"] == {"a": "2", "b": "é"}
    assert event["multiValueQueryStringParameters"] == {"a": ["1", "2"], "b": ["é"]}
    asked = event["requestContext"]
    assert asked["stage"] == "prod" and asked["path"] == "/prod/api/generate"
    assert asked["identity"]["sourceIp"] == "127.0.0.1"
    assert asked["identity"]["userAgent"] == "test"
    assert len(asked["identity"]["apiKeyId"]) == 10
    assert asked["identity"]["apiKeyId"] not in KEY
    assert context.aws_request_id == asked["requestId"]
    assert 0 < context.get_remaining_time_in_millis() <= 29_000


@pytest.mark.parametrize(
    "body, binary, encoded",
    [(b"abc", True, True), (b"\xff\xfe", False, True), (b"", True, False)],
)
def test_a_body_may_come_as_base64(body, binary, encoded) -> None:
    scope = {"method": "POST", "path": "/api/generate", "headers": []}
    event = event_of(scope, body, binary=binary)
    assert event["isBase64Encoded"] == encoded
    assert base64.b64decode(event["body"] or "") == body


def test_a_result_becomes_a_reply() -> None:
    reply = reply_of(
        {
            "statusCode": 200,
            "headers": {"A": "1"},
            "multiValueHeaders": {"Set-Cookie": ["a", "b"]},
            "body": base64.b64encode(b"\xff").decode(),
            "isBase64Encoded": True,
        }
    )
    assert reply.body == b"\xff"
    cookies = [(b"set-cookie", b"a"), (b"set-cookie", b"b")]
    assert sorted(reply.headers) == [(b"a", b"1"), *cookies]


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        {},
        {"ignored": "not a request of API Gateway"},
        {"statusCode": "often"},
        {"statusCode": 99},
        {"statusCode": 200, "body": {"a": 1}},
        {"statusCode": 200, "body": "!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": {"a": "\ud83d"}},
        {"statusCode": 200, "body": "\ud83d"},
    ],
)
def test_another_result_is_a_bad_gateway(result) -> None:
    with pytest.raises(Refusal):
        reply_of(result)
    refused(ask(lambda_gateway(lambda event, context: result)), 502, "internal")


def test_a_function_that_fails_is_a_bad_gateway() -> None:
    def handler(event, context):
        raise RuntimeError("a secret question")

    reply = ask(lambda_gateway(handler))
    refused(reply, 502, "internal")
    assert "question" not in reply.text


def test_an_instance_answers_one_request_at_a_time() -> None:
    running, most = [], []

    def handler(event, context):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return {"statusCode": 200}

    async def several():
        gateway = lambda_gateway(handler)
        return await asyncio.gather(*(exchange(gateway) for _ in range(5)))

    assert [reply.status_code for reply in asyncio.run(several())] == [200] * 5
    assert most == [1] * 5


@pytest.fixture
def service(monkeypatch) -> Iterator[Any]:
    """The service's handler and its app, which find no AWS anywhere."""
    for name, value in {
        "WEB_ENDPOINT": "course-none",
        "WEB_TABLE": "course-none",
        "WEB_TIMEOUT": "1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = "utils.web.service.lambda_function"
    yield importlib.import_module(name)
    del sys.modules[name]


REQUESTS = {
    "health": ("GET", "/api/health", b"", 200),
    "versions": ("GET", "/api/versions", b"", 200),
    "no such path": ("GET", "/api/none", b"", 404),
    "a slash too many": ("POST", "/api/generate/", b"{}", 404),
    "another method": ("PUT", "/api/health", b"", 405),
    "no JSON": ("POST", "/api/generate", b"{", 400),
    "no UTF-8": ("POST", "/api/generate", b'{"question": "\xff"}', 400),
    "half a pair": ("POST", "/api/generate", b'{"question": "\\ud83d"}', 400),
    "a field too many": ("POST", "/api/generate", b'{"question": "a", "b": 1}', 422),
    "too large": ("POST", "/api/generate", b" " * 70_000, 413),
    "feedback": ("POST", "/api/feedback", b'{"request_id": "a", "thumb": "x"}', 422),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_gets_the_same_reply_three_ways(service, kind) -> None:
    """From the app, from its handler, and from it with bodies as base64."""
    method, path, body, status = REQUESTS[kind]
    routes = ROUTES | {(method, path)}  # so that the app is asked in any case
    apps = [
        service.app,
        LambdaApp(service.handler),
        LambdaApp(service.handler, binary=True),
    ]
    given = [(b"content-type", b"application/json")]
    found = []
    for app in apps:
        gateway = Gateway(app, {KEY: PLENTY}, routes=routes)
        reply = ask(gateway, path, method, headers=given, body=body)
        assert reply.status_code == status, reply.text
        assert len(reply.headers["x-request-id"]) == 32
        closed(reply)
        content = reply.json()
        if status >= 400:
            assert content["error"].pop("request_id") == reply.headers["x-request-id"]
        found.append((content, sorted(reply.headers)))
    assert found[0] == found[1] == found[2]


# --- over a real connection -----------------------------------------------------------


@contextlib.contextmanager
def served(gateway: Gateway) -> Iterator[str]:
    import uvicorn

    config = uvicorn.Config(gateway, port=0, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_eleven_megabytes_get_their_answer(app) -> None:
    """The client sees it, though it is still sending when it is refused."""
    with served(Gateway(app, {KEY: PLENTY})) as url:
        body = b"a" * 11 * 1024**2
        reply = httpx.post(
            f"{url}/api/generate", content=body, headers={"x-api-key": KEY}
        )
        refused(reply, 413, "too_large")
        reply = httpx.post(f"{url}/api/generate", content=body)
        refused(reply, 403, "forbidden")
    assert app.asked == []


def test_a_client_that_leaves_is_noticed_by_the_app(app) -> None:
    noticed = threading.Event()

    async def streams(scope, receive, send):
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
        )
        if (await receive())["type"] == "http.disconnect":
            noticed.set()

    with served(Gateway(streams, {KEY: PLENTY})) as url:
        given = {"headers": {"x-api-key": KEY}}
        with httpx.stream("POST", f"{url}/api/generate", **given) as reply:
            assert next(reply.iter_raw()) == b"data: 1\n\n"
        assert noticed.wait(5)


def test_types_and_limits_are_the_documented_ones() -> None:
    assert MOST_BYTES == 10 * 1024**2 and rooms.INTEGRATION_SECONDS == 29
