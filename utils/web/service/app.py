"""The FastAPI app: routes, limits, request ids, and one form of errors.

uvicorn serves it on this machine and Mangum in Lambda; neither knows of the other. The
calls of AWS block, so they run in threads; logs and metrics are written by the event
loop alone.
"""

import json
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from email.message import Message as Header
from typing import Any, TypeVar

import anyio
import pydantic_core
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .endpoint import MOST_AT_ONCE, Answer, EndpointClient, Question, Stream
from .observe import CLIENT_LEFT, FEEDBACK, GENERATE, Observer, Seen
from .records import Records
from .schema import (
    AnswerReply,
    Feedback,
    FeedbackReply,
    HealthReply,
    Problem,
    ProblemReply,
    VersionsReply,
    describe,
    question_model,
)
from .settings import WHOLE_REQUEST, Settings

HEADERS = (("cache-control", "no-store"),)
SEEN = "course.seen"  # where the request's `Seen` stands in the scope
STORING = 5.0  # seconds that a record may take
SPARE = 1.0  # seconds for recording what has run out of time, and for saying so
LONGEST_WAIT = WHOLE_REQUEST - 2 * SPARE  # seconds for the body and the model
OF_HTTP = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
T = TypeVar("T")


def create_app(
    settings: Settings,
    endpoint: EndpointClient | None = None,
    records: Records | None = None,
) -> FastAPI:
    """Return the app.

    Args:
        settings: of the service.
        endpoint: the way to the model; by default with boto3's credentials.
        records: the table; by default with boto3's credentials.
    """
    endpoint = endpoint or EndpointClient(settings)
    records = records or Records.of(settings)
    observer = Observer(settings.log_texts)
    asked = question_model(settings)
    app = FastAPI(
        title="Course web API",
        summary="Questions to the tuned model, and feedback on its answers.",
        version="1.0.0",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the gateway's own host
        telemetry={"tracing": False, "metrics": False, "logs": False},  # hold bodies
        responses=_described(403, 405, 429, 502),
    )
    app.router.route_class = _route_class(settings)
    fields = {GENERATE: asked.model_fields, FEEDBACK: Feedback.model_fields}
    _add_errors(app, {path: list(names) for path, names in fields.items()})
    desk = _Desk(endpoint, records, observer)
    _add_generate(app, settings, asked, desk)
    _add_feedback(app, records)

    @app.get("/api/health")
    async def health() -> HealthReply:
        """Say whether the service lets questions through; asks nobody."""
        state = endpoint.breaker
        status = "ok" if state == "closed" else "degraded"
        return HealthReply(status=status, breaker=state)

    @app.get("/api/versions")
    async def versions() -> VersionsReply:
        """List the versions that can be asked by name."""
        return VersionsReply(
            versions=[
                {"name": one.name, "description": one.description}
                for one in settings.versions
            ],
            live=[one.name for one in settings.live],
        )

    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(_Frame, observer=observer, paths=frozenset(paths))
    return app


# --- routes ---------------------------------------------------------------------------


# What each status means in the API's description. The gateway sends 403 and 429. It
# answers 404 to a method that a path does not take: 405 is seen without it only.
STATUSES = {
    400: "The body is not JSON in UTF-8.",
    403: "The key is missing or wrong.",
    404: "There is nothing there.",
    405: "The path does not take this method.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "Fields cannot be used as they are, or there is no such version.",
    429: "The key's rate or quota is used up.",
    502: "The model, or the service, failed.",
    503: "The model or the table is not available now.",
    504: "The model, the table or the client took too long.",
}
OF_BODIES = (400, 413, 415, 422, 503, 504)
# One event of a stream.
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["start", "piece", "end", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


def _described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": ProblemReply, "description": STATUSES[status]}
        for status in statuses
    }


def _add_generate(
    app: FastAPI, settings: Settings, Asked: type[BaseModel], desk: "_Desk"
) -> None:
    described = _described(*OF_BODIES)
    described[200] = {
        "description": "The answer, whole or as server-sent events.",
        "content": {"text/event-stream": {"schema": EVENT}},
    }

    @app.post(GENERATE, response_model=AnswerReply, responses=described)
    async def generate(request: Request, asked: Asked) -> Any:
        """Answer a question."""
        seen: Seen = request.scope[SEEN]
        seen.texts["question"] = asked.question
        version = settings.live[0]
        if asked.version is not None:
            found = settings.version(asked.version)
            if found is None:
                known = ", ".join(one.name for one in settings.versions)
                raise Problem(
                    "unknown_version", fields=[("version", f"Known: {known}.")]
                )
            version, seen.version = found, found.name
        question = Question(
            text=asked.question,
            adapter=version.adapter,
            # The endpoint's own weights share out the live traffic.
            variant=None if asked.version is None else version.variant,
            retrieve=asked.retrieve,
            max_tokens=asked.max_tokens,
            deadline=seen.started + LONGEST_WAIT,
        )
        seen.asked = True

        def named(variant: str) -> None:
            if asked.version is None:
                seen.version = settings.live_version(variant)

        if asked.stream:
            return await desk.events(seen, question, named)
        before = time.monotonic()
        answer = await desk.ask(question)
        seen.endpoint_ms = _milliseconds(before)
        named(answer.variant)
        await desk.store(seen, question, answer, 200)
        return AnswerReply(
            request_id=seen.request_id,
            answer=answer.text,
            version=seen.version,
            variant=answer.variant,
            sources=[{"id": source} for source in answer.sources],
            finish_reason=answer.finish_reason,
            tokens=_tokens(answer),
            latency_ms=seen.latency_ms,
        )


def _add_feedback(app: FastAPI, records: Records) -> None:
    @app.post(FEEDBACK, responses=_described(404, *OF_BODIES))
    async def feedback(request: Request, given: Feedback) -> FeedbackReply:
        """Store what a reader thinks of an answer."""
        seen: Seen = request.scope[SEEN]
        seen.texts["comment"] = given.comment
        version = await _in_thread(
            seen.started + LONGEST_WAIT,
            records.put_feedback,
            given.request_id,
            given.thumb,
            given.comment,
        )
        if not version:
            raise Problem("unknown_request")
        seen.version, seen.thumb = version, given.thumb
        return FeedbackReply(request_id=given.request_id, stored=True)


async def _in_thread(
    deadline: float,
    call: Callable[..., T],
    *arguments: Any,
    limiter: anyio.CapacityLimiter | None = None,
) -> T:
    """Run a call that blocks; leave it to itself when the request's time is over.

    Raises:
        Problem: "timeout", if it is not back by then.
    """
    try:
        with anyio.fail_after(max(0.0, deadline - time.monotonic())):
            return await to_thread.run_sync(
                call, *arguments, abandon_on_cancel=True, limiter=limiter
            )
    except TimeoutError:
        raise Problem("timeout", cause="deadline") from None


class _Desk:
    """Has questions answered and answers recorded, by threads."""

    def __init__(self, endpoint: EndpointClient, records: Records, observer: Observer):
        self._endpoint, self._records, self.observer = endpoint, records, observer
        # Their own, so that feedback never waits for the model.
        self._places = anyio.CapacityLimiter(MOST_AT_ONCE)

    async def ask(self, question: Question) -> Answer:
        """Return the whole answer."""
        return await _in_thread(
            question.deadline, self._endpoint.ask, question, limiter=self._places
        )

    async def events(
        self, seen: Seen, question: Question, named: Callable[[str], None]
    ) -> StreamingResponse:
        """Return the reply once the model has begun, so that errors have a status."""
        before = time.monotonic()
        stream = await self._opened(question)
        named(stream.answer.variant)
        return _EventResponse(
            _events(self, seen, question, stream, before), stream, question.deadline
        )

    async def _opened(self, question: Question) -> Stream:
        """Open a stream; one that nobody waits for any more is closed."""
        opened: list[Stream] = []
        left = threading.Event()

        def open_stream() -> Stream:
            stream = self._endpoint.stream(question)
            opened.append(stream)
            if left.is_set():
                stream.close()
            return stream

        try:
            return await _in_thread(
                question.deadline, open_stream, limiter=self._places
            )
        except BaseException:
            left.set()
            for stream in opened:
                stream.close()
            raise

    async def next_piece(self, question: Question, stream: Stream) -> str | None:
        """Return the next piece of an answer; None at its end."""
        return await _in_thread(
            question.deadline, stream.next_piece, limiter=self._places
        )

    async def store(
        self, seen: Seen, question: Question, answer: Answer, status: int
    ) -> None:
        """Put an answer on record; without a table the reader still gets it."""
        seen.texts["answer"] = answer.text
        seen.prompt_tokens = answer.prompt_tokens
        seen.completion_tokens = answer.completion_tokens

        def put() -> None:
            self._records.put_answer(
                request_id=seen.request_id,
                version=seen.version,
                variant=answer.variant,
                status=status,
                latency_ms=seen.latency_ms,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                sources=answer.sources,
                question=question.text,
                answer=answer.text,
            )

        now = time.monotonic()
        # What broke off at its deadline is to be recorded as well.
        until = min(now + STORING, max(question.deadline, now + SPARE))
        try:
            await _in_thread(until, put)
        except Problem as problem:
            self.observer.trouble(seen.request_id, "answer not recorded", problem.cause)


def _tokens(answer: Answer) -> dict[str, int]:
    return {"prompt": answer.prompt_tokens, "completion": answer.completion_tokens}


def _milliseconds(since: float) -> float:
    return round((time.monotonic() - since) * 1000, 1)


# --- streams --------------------------------------------------------------------------


class _EventResponse(StreamingResponse):
    """A stream whose source is closed when it ends, however it does."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], source: Stream, deadline: float):
        super().__init__(content, headers={"x-accel-buffering": "no"})
        self._source = source
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A generator that never began has no `finally` to run.
            self._source.close()

    async def stream_response(self, send: Send) -> None:
        # A client that does not read would keep the endpoint waiting for ever.
        left = self._deadline + 2 * SPARE - time.monotonic()
        async with aclosing(self.body_iterator):
            with anyio.move_on_after(max(0.0, left)):
                await super().stream_response(send)


async def _events(
    desk: _Desk, seen: Seen, question: Question, stream: Stream, before: float
) -> AsyncIterator[str]:
    """Yield an answer as server-sent events.

    Data is JSON in one line of ASCII, so that no text of the model can end an event.
    """
    answer = stream.answer
    status = CLIENT_LEFT  # until one of the endings below is reached
    stored = False
    try:
        yield _event(
            "start",
            {
                "request_id": seen.request_id,
                "version": seen.version,
                "variant": answer.variant,
                "sources": [{"id": source} for source in answer.sources],
            },
        )
        while (piece := await desk.next_piece(question, stream)) is not None:
            yield _event("piece", {"text": piece})
        seen.endpoint_ms = _milliseconds(before)
        status, stored = 200, True
        # Before the end, so that feedback finds it.
        await desk.store(seen, question, answer, status)
        yield _event(
            "end",
            {
                "finish_reason": answer.finish_reason,
                "tokens": _tokens(answer),
                "latency_ms": seen.latency_ms,
            },
        )
    except Exception as error:
        problem = error
        if not isinstance(error, Problem):
            desk.observer.exception(seen.request_id, error)
            problem = Problem("internal", cause=type(error).__name__)
        status, seen.code, seen.cause = problem.status, problem.code, problem.cause
        # At once: a piece that came during the record would hide that it was late.
        stream.close(late=problem.cause == "deadline")
        if not stored:
            stored = True
            try:
                await desk.store(seen, question, answer, status)
            except Exception as second:  # the reader gets the end of it all the same
                desk.observer.exception(seen.request_id, second)
        yield _event("error", problem.body(seen.request_id))
    finally:
        seen.status = status
        stream.close()
        if not stored:
            # Feedback on what there was is welcome.
            with anyio.CancelScope(shield=True):
                await desk.store(seen, question, answer, status)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


# --- what comes in --------------------------------------------------------------------


class _JsonRequest(Request):
    """A request whose body is small, JSON and read already."""

    async def read(self, limit: int) -> None:
        """Read and check the body.

        Args:
            limit: in bytes.

        Raises:
            Problem: if it has another type, is too large or cannot be read.
        """
        header = Header()
        header["content-type"] = self.headers.get("content-type", "none/none")
        try:
            charset = str(header.get_param("charset") or "utf-8").lower()
        except (ValueError, TypeError):  # parts of RFC 2231 that do not fit together
            raise Problem("unsupported_media_type") from None
        json_type = header.get_content_type() == "application/json"
        if not json_type or charset not in ("utf-8", "utf8", "us-ascii"):
            raise Problem("unsupported_media_type")
        promised = self.headers.get("content-length", "")
        if promised.isascii() and promised.isdigit() and int(promised[:12]) > limit:
            raise Problem("too_large")
        body = bytearray()
        async for part in self.stream():  # the header may lie, or be missing
            body += part
            if len(body) > limit:
                raise Problem("too_large")
        self._whole = bytes(body)
        try:
            # Strict where Python's is not: surrogates, depth, NaN.
            self._parsed = pydantic_core.from_json(self._whole, allow_inf_nan=False)
        except ValueError:
            raise Problem("bad_json") from None

    async def body(self) -> bytes:
        """Return the body."""
        return self._whole

    async def json(self) -> Any:
        """Return what the body says."""
        return self._parsed


def _route_class(settings: Settings) -> type[APIRoute]:
    class JsonRoute(APIRoute):
        """A route that reads its body within the limits, before FastAPI does.

        See https://fastapi.tiangolo.com/how-to/custom-request-and-route/.
        """

        def get_route_handler(self) -> Callable:
            handle = super().get_route_handler()
            if "POST" not in self.methods:
                return handle

            async def checked(request: Request) -> Any:
                wrapped = _JsonRequest(request.scope, request.receive)
                left = request.scope[SEEN].started + LONGEST_WAIT - time.monotonic()
                try:
                    with anyio.fail_after(max(0.0, left)):
                        await wrapped.read(settings.max_body)
                except TimeoutError:
                    raise Problem("timeout", cause="body") from None
                return await handle(wrapped)

            return checked

    return JsonRoute


# --- what goes out --------------------------------------------------------------------


def _reply(request_id: str, problem: Problem) -> JSONResponse:
    headers = problem.headers
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after)))
    return JSONResponse(problem.body(request_id), problem.status, headers)


def _add_errors(app: FastAPI, fields: Mapping[str, list[str]]) -> None:
    """Answer every error in one form.

    Args:
        app: to add to.
        fields: of the requests to each path.
    """

    def refused(request: Request, problem: Problem) -> JSONResponse:
        seen: Seen = request.scope[SEEN]
        seen.code, seen.cause = problem.code, problem.cause
        return _reply(seen.request_id, problem)

    @app.exception_handler(Problem)
    async def known(request: Request, problem: Problem) -> JSONResponse:
        return refused(request, problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Its own body would hold `input`.
        known = fields[request.scope["path"]]
        return refused(
            request, Problem("invalid", fields=describe(error.errors(), known))
        )

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        code = OF_HTTP.get(error.status_code, "bad_json")
        return refused(request, Problem(code, headers=error.headers))


class _Frame:
    """What holds for every request: an id, its headers, an end, a line in the log."""

    def __init__(self, app: ASGIApp, observer: Observer, paths: frozenset[str]):
        self._app, self._observer, self._paths = app, observer, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = scope[SEEN] = Seen(uuid.uuid4().hex)  # an incoming id is not trusted
        if scope["path"] in self._paths:
            seen.route = scope["path"]

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                own = [("x-request-id", seen.request_id), *HEADERS]
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in own),
                ]
            await send(message)

        try:
            await self._app(scope, receive, framed)
        except ClientDisconnect:
            seen.status = CLIENT_LEFT
        except Exception as error:
            self._observer.exception(seen.request_id, error)
            begun = seen.status
            seen.status, seen.code = 502, "internal"
            if not begun:
                reply = _reply(seen.request_id, Problem("internal"))
                await reply(scope, receive, framed)
        finally:
            seen.status = seen.status or CLIENT_LEFT
            self._observer.request(seen)
