"""What the front end makes of a reply in asynchronous mode (option.async_mode=true).

An event of a job is a tuple, as in `server.Job`. Each rule is recorded
(tests/data/djl_conformance.json, `async_…`), but for two: a stream's only piece is sent
as a whole reply, as one that is an error was; and an error always ends its stream.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

UNKNOWN_ERROR = 424  # the status of an error without a code
LOST = "Inference Engine Failure"  # the worker is gone, or what it sent has no meaning


def binary_decode(data: bytes) -> dict[str, str]:
    """Return the fields that `Output.binary_encode` has written.

    Raises:
        ValueError: if the bytes are nothing of that form.
    """
    position = 0

    def take(form: str) -> Any:
        nonlocal position
        size = struct.calcsize(form)
        if len(data) < position + size:
            raise ValueError(f"{size} bytes at {position} exceed the {len(data)}")
        (value,) = struct.unpack_from(form, data, position)
        position += size
        return value

    def text() -> str:
        length = take(">i")
        if length < 0:
            raise ValueError(f"length {length} at {position}")
        return take(f"{length}s").decode("utf-8")

    return {text(): text() for _ in range(take(">h"))}


def failure(code: int, message: str) -> bytes:
    """Return the body by which the front end tells that a worker failed."""
    body = {
        "code": code,
        "message": message,
        "properties": {},
        "content": {"keys": [], "values": []},
        "cancelled": False,
    }
    return _compact(body)


def _compact(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8")


def failed(code: int, message: str, begun: bool) -> list[tuple]:
    """Return the events that end a job whose worker failed.

    Args:
        code: the status, where none has been sent.
        message: what happened.
        begun: whether a piece of a stream has been sent.
    """
    body = failure(code, message)
    if begun:
        return [("chunk", body), ("end",)]
    return [("whole", code, "OK", {}, [("data", body)])]


def events_of(reply: Sequence, begun: bool) -> list[tuple]:
    """Return the events that one message of the handler becomes.

    Args:
        reply: code, message, properties and contents of an `Output`.
        begun: whether a piece of the stream has been sent before.

    Raises:
        ValueError: if the front end cannot read it; the worker is lost with it.
    """
    code, message, properties, pairs = reply
    if code >= 300:
        return failed(code, f"Async Inference Failure {message}", begun)
    if code == 204:
        return [("end",)] if begun else [("whole", 204, "OK", {}, [])]
    if not pairs:
        raise ValueError("the Output is empty")
    fields = binary_decode(pairs[0][1])
    error = fields.get("error")
    status = int(fields.get("code") or (UNKNOWN_ERROR if error else 200))
    is_error = error is not None or status >= 300
    body = fields.get("data", "").encode("utf-8")
    if is_error:
        body = _compact(({"error": error} if error else {}) | {"code": status})
    last = is_error or fields.get("last", "").lower() == "true"
    if not begun and last:
        return [("whole", status, error or "OK", properties, [("data", body)])]
    events = [] if begun else [("stream", status, "OK", properties)]
    events.append(("chunk", body))
    return [*events, ("end",)] if last else events
