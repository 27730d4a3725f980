"""The handler of the Lambda function.

Mangum hands each event of API Gateway to the app. Here is what it does not do: events
that are no requests, requests that it cannot read, and a stage in the path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from typing import Any

from mangum import Mangum

from .app import HEADERS, create_app
from .observe import Observer, Seen
from .schema import Problem
from .settings import Settings

# At import: clients are built once per process, not once per request.
settings = Settings.from_environment()
app = create_app(settings)
observer = Observer(settings.log_texts)
# Its default would start and stop the app's lifespan at each request.
adapter = Mangum(app, lifespan="off")
# It logs paths, and exceptions with their texts; the app logs its own.
logging.getLogger("mangum").setLevel(logging.CRITICAL)
loop = asyncio.new_event_loop()

IGNORED = {"ignored": "not a request of API Gateway"}


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer an event of API Gateway; anything else, such as a warm-up, is ignored.

    Args:
        event: of a REST API, or of an HTTP API in either format.
        context: Lambda's.
    """
    path = _path(event)
    if path is None:
        return IGNORED
    asyncio.set_event_loop(loop)  # the one that Mangum takes
    try:
        return adapter(_readable(event, path), context)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # The app lets no exception out, so this is about reading the event: base64
        # that is none, or half a surrogate pair in body or headers.
        seen = Seen(uuid.uuid4().hex, status=400, code="bad_json")
        seen.cause = f"event: {type(error).__name__}"
        observer.request(seen)
        return _refusal(Problem("bad_json"), seen.request_id)


def _path(event: Any) -> str | None:
    """Return the path of a request; None if the event is none."""
    if not isinstance(event, dict):
        return None
    context = event.get("requestContext")
    if not isinstance(context, dict):
        return None
    http = context.get("http")
    path = event.get("path")
    if event.get("version") == "2.0":
        if not isinstance(http, dict) or not isinstance(http.get("method"), str):
            return None
        path = http.get("path")
    elif not isinstance(event.get("httpMethod"), str) or "resource" not in event:
        return None
    return path if isinstance(path, str) else None


def _readable(event: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the event without its stage in the path, and without its host.

    The app needs no host, and Mangum fails on one with a second colon.
    """
    context = event["requestContext"]
    stage = context.get("stage")
    # With the API's own address the path has no stage; behind a domain name of one's
    # own, and in format 2.0, it has.
    if not path.startswith("/api/") and path.startswith(f"/{stage}/"):
        path = path[len(f"/{stage}") :]
    changed: dict[str, Any] = {"path": path}
    for name in ("headers", "multiValueHeaders"):
        headers = event.get(name) or {}
        changed[name] = {k: v for k, v in headers.items() if k.lower() != "host"}
    if event.get("version") == "2.0":
        http = {**context["http"], "path": path}
        changed["requestContext"] = {**context, "http": http}
    return {**event, **changed}


def _refusal(problem: Problem, request_id: str) -> dict[str, Any]:
    headers = {"content-type": "application/json", "x-request-id": request_id}
    return {
        "statusCode": problem.status,
        "headers": headers | dict(HEADERS),
        "multiValueHeaders": {},
        "body": json.dumps(problem.body(request_id)),
        "isBase64Encoded": False,
    }
