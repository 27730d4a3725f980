"""What CloudFront and API Gateway do before the app, played on this machine.

`Gateway` is an ASGI application that stands before another one. At `/` it serves the
page's files, as CloudFront does from a private bucket. What begins with `/api/` is for
the app's routes only: any other path or method is 404, whatever the key, a preflight
and HEAD included. A route needs an API key and counts against the key's usage plan, as
in a REST API; only what passes both reaches the app. `LambdaApp` puts a Lambda handler
in the app's place: the request becomes the event that API Gateway would send, the
handler's result the reply.

Differences that remain: throttling by AWS is "best effort" over many machines and may
let more through; `Retry-After` is a fixed text there, while here it is computed; and
what CloudFront itself refuses (methods such as TRACE, files that are not there) comes
from there as HTML or XML.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import math
import re
import time
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.course import CourseError
from utils.web.expansion import ACCOUNT
from utils.web.runtime_api import MEMORY, NAME
from utils.web.service.schema import PROBLEMS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Route = tuple[str, str]
"""A method in capitals, and a path."""

# "Amazon API Gateway quotas": payload 10 MB, integration time-out 29 seconds.
MOST_BYTES = 10 * 1024**2
INTEGRATION_SECONDS = 29.0
DRAINED_BYTES = 4 * MOST_BYTES  # of a refused body; a browser reads no reply before
SECONDS_A_DAY = 86_400
API = "/api/"
# What the template's distribution lets through, for the page and for the API.
PAGE_METHODS = frozenset({"GET", "HEAD"})
API_METHODS = PAGE_METHODS | {"OPTIONS", "PUT", "PATCH", "POST", "DELETE"}
STAGE = "prod"
# CloudFront puts the API's own name in the place of Host (origin request policy
# AllViewerExceptHostHeader), so that nothing can reflect the one that a client made up.
API_ID = "a1b2c3d4e5"
API_HOST = f"{API_ID}.execute-api.us-east-1.amazonaws.com"
# Only letters, digits and "-._~", each part beginning with none of the dots: proxies,
# frameworks and file systems read anything else in different ways ("//host", "%2F",
# "\", "..").
PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")
KEY = re.compile(r"[!-~]{20,128}")  # API Gateway's CreateApiKey: 20 to 128 characters
# A client could make up where it comes from, and to which name it was sent.
NOT_PASSED_ON = re.compile(rb"host|forwarded|x-forwarded-.*|x-real-ip|x-request-id")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}


class GatewayError(CourseError):
    """A gateway that cannot be set up as it was asked for."""


def security_headers(framed_by: str = "'self'") -> dict[str, str]:
    """Return the headers that the distribution adds to every reply.

    They are those of `PageHeaders` in the template but for Strict-Transport-Security:
    over plain HTTP browsers have to ignore it (RFC 6797, section 8.1).

    Args:
        framed_by: sources of the Content-Security-Policy that may show the page in a
            frame, such as a notebook's.
    """
    policy = (
        f"default-src 'self'; frame-ancestors {framed_by}; base-uri 'none'; "
        "form-action 'none'; object-src 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    if framed_by == "'self'":  # of others this header can say nothing
        headers["x-frame-options"] = "SAMEORIGIN"
    return headers


# --- keys and plans -------------------------------------------------------------------


@dataclass(frozen=True)
class UsagePlan:
    """What one key may ask for.

    First used in lesson 07, section 3.

    Attributes:
        rate: requests a second, on average over time.
        burst: requests at once, after a pause.
        quota: requests a day; None is no limit.
    """

    rate: float = 10
    burst: int = 20
    quota: int | None = None

    def __post_init__(self) -> None:
        for name, found, least in (
            ("rate", self.rate, 0),
            ("burst", self.burst, 1),
            ("quota", 1 if self.quota is None else self.quota, 1),
        ):
            if not least <= found < math.inf or not found:
                raise GatewayError(
                    f"The usage plan's {name} is {found!r}. Give a number above 0."
                )


class Allowance:
    """What is left of a usage plan.

    The rate is held by a token bucket: it holds at most `burst` tokens and gets `rate`
    of them a second, and each request takes one ("Throttle requests to your REST APIs",
    API Gateway's developer guide). A request that it refuses costs none of the quota.
    The days of the quota are those of UTC.
    """

    def __init__(
        self,
        plan: UsagePlan,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ):
        self.plan = plan
        self._clock, self._calendar = clock, calendar
        self._tokens, self._seen = float(plan.burst), clock()
        self._day, self._used = 0, 0

    def take(self) -> int | None:
        """Take one request.

        Returns:
            None if it is allowed, else the seconds after which it may be.
        """
        now = self._clock()
        grown = self._tokens + (now - self._seen) * self.plan.rate
        self._tokens, self._seen = min(float(self.plan.burst), grown), now
        if self._tokens < 1:
            return max(1, math.ceil((1 - self._tokens) / self.plan.rate))
        day, since = divmod(self._calendar(), SECONDS_A_DAY)
        if day != self._day:
            self._day, self._used = int(day), 0
        if self.plan.quota is not None and self._used >= self.plan.quota:
            return math.ceil(SECONDS_A_DAY - since)
        self._tokens -= 1
        self._used += 1
        return None


@dataclass
class Holder:
    """A key with its plan; AWS's logs name the id, which does not give the key away."""

    digest: bytes = field(repr=False)
    key_id: str
    allowance: Allowance = field(repr=False)


# --- what is refused ------------------------------------------------------------------


class Refusal(Exception):
    """A reply of the gateway's own, in the shape of the app's errors.

    Codes and statuses are the app's, texts are the gateway's: it knows more.
    """

    def __init__(self, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after

    def reply(self) -> Reply:
        """Return the reply, with an id of its own."""
        request_id = uuid.uuid4().hex
        error = {
            "code": self.code,
            "message": self.message,
            "request_id": request_id,
            "fields": [],
        }
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id.encode()),
        ]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        body = json.dumps({"error": error}).encode()
        return Reply(PROBLEMS[self.code][0], headers, body)


@dataclass(frozen=True)
class Reply:
    """A whole reply.

    Attributes:
        status: of HTTP.
        headers: without the length of the body.
        body: all of it.
    """

    status: int
    headers: Headers
    body: bytes


def _forbidden() -> Refusal:
    return Refusal("forbidden", "The header x-api-key is missing or wrong.")


def _no_route() -> Refusal:
    # A preflight ends here, too: browsers send it without the key, and what answers it
    # would open the API to other pages.
    return Refusal("not_found", "There is no such path or method.")


def _refused_by_distribution() -> Refusal:
    # CloudFront answers 403 to a method that a behaviour does not allow.
    return Refusal("forbidden", "This method is not allowed here.")


def _not_found() -> Refusal:
    return Refusal("not_found", "There is nothing at this address.")


# --- the gateway ----------------------------------------------------------------------


def routes_of(app: Any) -> frozenset[Route]:
    """Return the routes of a FastAPI app: those that it describes, and that of this.

    HEAD is none of them. API Gateway does not derive it from GET.
    """
    paths = app.openapi()["paths"].items()
    described = {(method.upper(), path) for path, given in paths for method in given}
    return frozenset(described | {("GET", app.openapi_url)})


class Gateway:
    """The ASGI application that lets requests through to another, or refuses them."""

    def __init__(
        self,
        app: AsgiApp,
        keys: Mapping[str, UsagePlan],
        page: Path | None = None,
        *,
        routes: Iterable[Route],
        timeout: float = INTEGRATION_SECONDS,
        framed_by: str = "'self'",
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ):
        """Stand before an app.

        Args:
            app: what answers under `/api/`.
            keys: each with its plan; without any, nobody gets in.
            page: the folder whose files are served at `/`; None serves none.
            routes: what there is under `/api/`, as `routes_of` gives it.
            timeout: seconds for a request to come in and be answered; for a stream,
                until it begins.
            framed_by: who may show the page in a frame; see `security_headers`.
            clock: seconds from anywhere, for the rate.
            calendar: seconds since 1970, for the quota.

        Raises:
            GatewayError: if a key is none that API Gateway would take.
        """
        self.app = app
        self.page = None if page is None else Path(page).resolve()
        self.routes = frozenset(routes)
        self._timeout = timeout
        self._security = [
            (name.encode(), value.encode())
            for name, value in security_headers(framed_by).items()
        ]
        self._holders = []
        for number, (key, plan) in enumerate(keys.items(), 1):
            if not KEY.fullmatch(key):
                raise GatewayError(
                    f"Key {number} has {len(key)} characters, or some beyond ASCII. "
                    "Give 20 to 128 printable ASCII characters without a space."
                )
            digest = _digest(key.encode())
            allowance = Allowance(plan, clock, calendar)
            self._holders.append(Holder(digest, digest.hex()[:10], allowance))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        outgoing = _Outgoing(send, self._security, scope["method"] == "HEAD")
        incoming = _Incoming(receive)
        try:
            async with asyncio.timeout(self._timeout) as limit:
                outgoing.limit = limit
                try:
                    await self._answer(scope, incoming, outgoing)
                finally:
                    outgoing.limit = None
        except Refusal as refusal:
            await incoming.drain()
            await outgoing.instead(refusal)
        except _Gone:
            return
        except TimeoutError:
            message = "The request took longer than the gateway waits."
            await outgoing.instead(Refusal("timeout", message))
        except Exception:
            # Not raised again: a server's log would show its text, in which a question
            # may stand.
            message = "The app failed without an answer."
            await outgoing.instead(Refusal("internal", message))

    async def _answer(
        self, scope: Scope, incoming: _Incoming, outgoing: _Outgoing
    ) -> None:
        """Answer one request.

        Raises:
            Refusal: in place of an answer.
        """
        raw = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1")
        if not path.startswith(API):
            await outgoing.whole(self._file(scope, path))
            return
        if scope["method"] not in API_METHODS:
            raise _refused_by_distribution()
        if (scope["method"], path) not in self.routes:
            raise _no_route()
        holder = self._admit(scope["headers"])
        await incoming.read()
        passed = _passed_on(scope, path, holder.key_id)
        await self.app(passed, incoming.receive, outgoing.send)
        if not outgoing.complete:
            raise Refusal("internal", "The app gave no whole answer.")

    def _admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Holder:
        """Return whose key a request carries, and take it from the plan.

        Raises:
            Refusal: without a key, with a wrong one, or over rate or quota.
        """
        given = [value for name, value in headers if name.lower() == b"x-api-key"]
        digest = _digest(given[0]) if len(given) == 1 else b""
        found = None
        for holder in self._holders:  # all of them, so that the time tells nothing
            if hmac.compare_digest(holder.digest, digest):
                found = holder
        if found is None:
            raise _forbidden()
        wait = found.allowance.take()
        if wait is not None:
            message = f"Too many requests: try again in {wait} s."
            raise Refusal("throttled", message, wait)
        return found

    def _file(self, scope: Scope, path: str) -> Reply:
        """Return a file of the page.

        Raises:
            Refusal: if there is no such file, or it is not asked for by GET or HEAD.
        """
        if not PLAIN_PATH.fullmatch(path):
            raise _not_found()
        if scope["method"] not in PAGE_METHODS:
            raise _refused_by_distribution()
        name = path[1:] or "index.html"
        if name.endswith("/"):
            raise _not_found()
        content_type = TYPES.get(Path(name).suffix)
        if self.page is None or content_type is None:
            raise _not_found()
        try:
            file = (self.page / name).resolve()
            if not file.is_relative_to(self.page):
                raise _not_found()
            body = file.read_bytes()
        except OSError:  # not there, a folder, or too long a name
            raise _not_found() from None
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
        headers = [
            (b"content-type", content_type.encode()),
            # Names stay while contents change: browsers ask each time, and get 304.
            (b"cache-control", b"no-cache"),
            (b"etag", tag),
        ]
        asked = [v for n, v in scope["headers"] if n.lower() == b"if-none-match"]
        if any(tag in value for value in asked):
            return Reply(304, headers, b"")
        return Reply(200, headers, body)


class _Gone(Exception):
    """The client has left before its request was all there."""


class _Incoming:
    """The body of a request, read as a whole before the app sees any of it."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._body: bytes | None = None
        self._more = True

    async def read(self) -> None:
        """Read the body.

        Raises:
            Refusal: if it is too long.
        """
        parts, size = [], 0
        while self._more:
            part = await self._part()
            size += len(part)
            if size > MOST_BYTES:
                raise Refusal(
                    "too_large", f"The body has more than {MOST_BYTES} bytes."
                )
            parts.append(part)
        self._body = b"".join(parts)

    async def _part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._more = False
            raise _Gone
        self._more = message.get("more_body", False)
        return message.get("body", b"")

    async def drain(self) -> None:
        """Read what is left of a refused body, up to a limit, and forget it.

        A client that is still sending when its connection is closed sees a broken
        connection, and not the reply.
        """
        left = DRAINED_BYTES
        try:
            async with asyncio.timeout(2):
                while self._more and left > 0:
                    left -= len(await self._part())
        except (TimeoutError, _Gone):
            return

    async def receive(self) -> Message:
        """Give the app the body, then whatever else comes."""
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Outgoing:
    """The reply: streams pass as they come, everything else as a whole."""

    def __init__(self, send: Send, security: Headers, only_head: bool):
        self.limit: asyncio.Timeout | None = None
        self.complete = False
        self._send, self._security, self._only_head = send, security, only_head
        self._status = 0
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._streams = self._begun = False

    async def send(self, message: Message) -> None:
        """Take a message of the app's."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = self._closed(message.get("headers", []))
            types = [v for n, v in self._headers if n.lower() == b"content-type"]
            self._streams = any(v.startswith(b"text/event-stream") for v in types)
            return
        if message["type"] != "http.response.body":
            return
        more = message.get("more_body", False)
        part = message.get("body", b"")
        if self._streams:
            await self._start()
            await self._send(
                {"type": "http.response.body", "body": part, "more_body": more}
            )
            self.complete = not more
            return
        self._parts.append(part)
        if not more:
            await self._whole(self._status, self._headers, b"".join(self._parts))

    def _closed(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Return an app's headers, without what would open it to other pages."""
        own = {name for name, _ in self._security}
        return [
            (name, value)
            for name, value in headers
            if not name.lower().startswith(b"access-control-")
            and name.lower() not in own
        ]

    async def _start(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self.limit is not None:
            self.limit.reschedule(None)
        await self._send(
            {
                "type": "http.response.start",
                "status": self._status,
                "headers": [*self._headers, *self._security],
            }
        )

    async def whole(self, reply: Reply) -> None:
        """Send a reply of the gateway's own."""
        await self._whole(reply.status, reply.headers, reply.body)

    async def instead(self, refusal: Refusal) -> None:
        """Send a refusal, if nothing has been sent; else leave the reply cut off."""
        if not self._begun:
            await self.whole(refusal.reply())

    async def _whole(self, status: int, headers: Headers, body: bytes) -> None:
        kept = [pair for pair in headers if pair[0].lower() != b"content-length"]
        if status not in (204, 304):
            kept.append((b"content-length", str(len(body)).encode()))
        self._status, self._headers = status, kept
        await self._start()
        body = b"" if self._only_head else body
        await self._send({"type": "http.response.body", "body": body})
        self.complete = True


def _digest(key: bytes) -> bytes:
    """Return what keys are compared by: of one length, whatever was sent."""
    return hashlib.sha256(key).digest()


def _passed_on(scope: Scope, path: str, key_id: str) -> Scope:
    """Return the scope that the app gets, as CloudFront and API Gateway change it."""
    client = (scope.get("client") or ("127.0.0.1", 0))[0]
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if not NOT_PASSED_ON.fullmatch(name.lower())
    ]
    headers += [
        (b"host", API_HOST.encode()),
        (b"x-forwarded-for", client.encode()),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-port", b"443"),
    ]
    return {
        **scope,
        "headers": headers,
        "path": path,
        "scheme": "https",
        "server": (API_HOST, 443),
        "gateway.key_id": key_id,
    }


# --- the same request for a Lambda function -------------------------------------------


def event_of(scope: Scope, body: bytes = b"", *, binary: bool = False) -> dict:
    """Return the event that a REST API sends a Lambda function for a request.

    Form: "Input format of a Lambda function for proxy integration" in API Gateway's
    developer guide (payload format 1.0).

    First used in lesson 07, section 7.

    Args:
        scope: of ASGI, as `Gateway` hands it on.
        body: of the request.
        binary: whether the API's binary media types hold this one, such as `*/*`: then
            the body comes as base64. A body that is no UTF-8 does so here in any case.
    """
    path, method = scope["path"], scope["method"]
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    query: dict[str, list[str]] = {}
    asked = scope.get("query_string", b"").decode("latin-1")
    for name, value in urllib.parse.parse_qsl(asked, keep_blank_values=True):
        query.setdefault(name, []).append(value)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        binary, text = True, ""
    if binary:
        text = base64.b64encode(body).decode()
    now = time.time()
    moment = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now))
    client = (scope.get("client") or ("127.0.0.1", 0))[0]
    key_id = scope.get("gateway.key_id")
    agents = [value for name, value in headers.items() if name.lower() == "user-agent"]
    return {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": _last(headers),
        "multiValueHeaders": headers,
        "queryStringParameters": _last(query) or None,
        "multiValueQueryStringParameters": query or None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": API_ID,
            "domainName": API_HOST,
            "domainPrefix": API_ID,
            "extendedRequestId": base64.b64encode(uuid.uuid4().bytes[:10]).decode(),
            "httpMethod": method,
            "identity": {
                "apiKey": _last(headers).get("x-api-key"),
                "apiKeyId": key_id,
                "sourceIp": client,
                "userAgent": agents[0][-1] if agents else None,
            },
            "path": f"/{STAGE}{path}",
            "protocol": "HTTP/1.1",
            "requestId": str(uuid.uuid4()),
            "requestTime": moment,
            "requestTimeEpoch": int(now * 1000),
            "resourceId": "route0",
            "resourcePath": path,
            "stage": STAGE,
        },
        "body": text if body else None,
        "isBase64Encoded": binary and bool(body),
    }


def _last(values: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: found[-1] for name, found in values.items()}


def reply_of(result: Any) -> Reply:
    """Return the reply that API Gateway makes of a Lambda function's result.

    Form: "Output format of a Lambda function for proxy integration", as above.

    Raises:
        Refusal: with status 502, if the result has another form ("malformed Lambda
            proxy response").
    """
    try:
        status = int(result["statusCode"])
        if not 100 <= status <= 599:
            raise ValueError(status)
        headers = dict(result.get("multiValueHeaders") or {})
        for name, value in (result.get("headers") or {}).items():
            headers.setdefault(name, [value])
        body = result.get("body") or ""
        content = (
            base64.b64decode(body, validate=True)
            if result.get("isBase64Encoded")
            else body.encode("utf-8")
        )
        pairs = [
            (str(name).lower().encode("latin-1"), str(value).encode("latin-1"))
            for name, values in headers.items()
            for value in values
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        message = "The function's result is no reply that a REST API can give."
        raise Refusal("internal", message) from None
    return Reply(status, pairs, content)


@dataclass(frozen=True)
class LambdaContext:
    """What Lambda tells a function of its own call, as far as libraries read it."""

    aws_request_id: str
    deadline: float
    function_name: str = NAME
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = MEMORY
    invoked_function_arn: str = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{NAME}"
    log_group_name: str = f"/aws/lambda/{NAME}"
    log_stream_name: str = "local"

    def get_remaining_time_in_millis(self) -> int:
        """Return what is left of the function's time."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


class LambdaApp:
    """The ASGI application that has a Lambda handler answer each request.

    It is one instance of a function: it answers one request at a time, as Lambda has
    it. AWS starts further instances for requests at the same time; here they wait.
    """

    def __init__(
        self,
        handler: Callable[[dict, Any], Any],
        *,
        binary: bool = False,
        timeout: float = INTEGRATION_SECONDS,
    ):
        """Put a handler in the place of an app.

        Args:
            handler: such as `utils.web.service.lambda_function.handler`.
            binary: whether bodies come as base64; see `event_of`.
            timeout: seconds that the function is told it has.
        """
        self.handler = handler
        self._binary, self._timeout = binary, timeout
        # An event loop of its own: Mangum asks for its thread's.
        self._instance = ThreadPoolExecutor(1, "lambda", _give_event_loop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            Refusal: if the handler fails or its result is no reply.
        """
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        event = event_of(scope, body, binary=self._binary)
        deadline = time.monotonic() + self._timeout
        context = LambdaContext(event["requestContext"]["requestId"], deadline)
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(
                self._instance, self.handler, event, context
            )
        except Exception:
            raise Refusal("internal", "The function failed.") from None
        reply = reply_of(result)
        await send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": reply.headers,
            }
        )
        await send({"type": "http.response.body", "body": reply.body})


def _give_event_loop() -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
