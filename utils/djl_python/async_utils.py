"""How a handler in asynchronous mode (option.async_mode=true) makes its replies.

The front end reads no other form: an `Output` filled by `add_as_json`, or left empty,
ends the worker for good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .outputs import Output


def create_non_stream_output(
    data: str | dict[str, Any],
    properties: Mapping[str, str] | None = None,
    error: str | None = None,
    code: int | None = None,
) -> Output:
    """Return a whole reply.

    Args:
        data: the body; an object is sent as JSON, and a line end follows.
        properties: HTTP headers beside the content type, which is JSON's.
        error: makes the body {"error": error, "code": code}, and the status's reason.
        code: the HTTP status of an error; without `error` the body is {"code": code}.
    """
    return _output(data, True, "application/json", properties, error, code)


def create_stream_chunk_output(
    data: str | dict[str, Any],
    last_chunk: bool,
    error: str | None = None,
    code: int | None = None,
) -> Output:
    """Return a piece of a stream; one that is marked last must end each stream.

    Args:
        data: the piece; an object is sent as JSON, and a line end follows.
        last_chunk: whether the stream ends with it.
        error: sent in the data's place, as {"error": error, "code": code}.
        code: the HTTP status, if nothing has been sent yet.
    """
    return _output(data, last_chunk, "application/jsonlines", None, error, code)


def _output(
    data: str | dict[str, Any],
    last: bool,
    content_type: str,
    properties: Mapping[str, str] | None,
    error: str | None,
    code: int | None,
) -> Output:
    text = json.dumps(data, ensure_ascii=False) if isinstance(data, dict) else data
    fields = {"data": text + "\n", "last": last}
    if error:
        fields["error"] = error
    if code:
        fields["code"] = code
    output = Output().add_property("Content-Type", content_type)
    for key, value in (properties or {}).items():
        output.add_property(key, value)
    return output.add(Output.binary_encode(fields))
