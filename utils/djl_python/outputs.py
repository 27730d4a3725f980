"""What a handler returns."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .pair_list import PairList


def stream_line(text: Any) -> bytes:
    """Return one item of a stream in its default form: a JSON object and a newline."""
    return (json.dumps({"outputs": text}, ensure_ascii=False) + "\n").encode("utf-8")


class _Encoder(json.JSONEncoder):
    """JSON that also takes numpy numbers and arrays, and dates."""

    def default(self, value: Any) -> Any:
        if hasattr(value, "tolist") and hasattr(value, "dtype"):
            return value.tolist()
        if hasattr(value, "isoformat"):
            return str(value)
        return super().default(value)


def encode_json(value: Any) -> bytes:
    """Return JSON as DJL writes it: two spaces of indent, no space after a colon.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
        TypeError: for what JSON cannot hold.
    """
    text = json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        indent=2,
        separators=(",", ":"),
        cls=_Encoder,
    )
    return text.encode("utf-8")


class Output:
    """A reply: status code, reason phrase, headers and content.

    Every `add_…` and `error` returns the output itself, so that calls can be chained.
    Only the first content is sent to a client that asked for one reply. No
    content type is set unless `add_property("Content-Type", …)` or `error` sets it.
    """

    def __init__(self, code: int = 200, message: str = "OK"):
        self.code = code
        self.message = message
        self.properties: dict[str, str] = {}
        self.content = PairList()
        self.stream_content: Iterable | None = None
        self.output_formatter: Callable[[Any], bytes] = stream_line
        self._finalizer: tuple[Callable, tuple] | None = None

    def __str__(self) -> str:
        return f"Output(code={self.code}, message={self.message!r})"

    def set_code(self, code: int) -> Output:
        """Set the HTTP status."""
        self.code = code
        return self

    def set_message(self, message: str) -> Output:
        """Set the reason phrase of the HTTP status."""
        self.message = message
        return self

    def error(
        self,
        error: str,
        code: int = 424,
        message: str = "invoke handler failure",
    ) -> Output:
        """Make this reply an error with a JSON body of code, message and error."""
        self.code = code
        self.message = message
        self.add_property("content-type", "application/json")
        return self.add_as_json({"code": code, "message": message, "error": error})

    def add_property(self, key: str, val: str) -> Output:
        """Add an HTTP header to the reply."""
        self.properties[key] = val
        return self

    def add(
        self, value: Any, key: str | None = None, batch_index: int | None = None
    ) -> Output:
        """Add text or bytes as they are, anything else as JSON."""
        if isinstance(value, str):
            value = value.encode("utf-8")
        elif not isinstance(value, bytes | bytearray):
            value = encode_json(value)
        if key is not None:
            key = str(key)
        if batch_index is not None:
            key = f"batch_{batch_index}.{key or 'data'}"
        self.content.add(key, bytes(value))
        return self

    def add_as_json(
        self, val: Any, key: str | None = None, batch_index: int | None = None
    ) -> Output:
        """Add a value as JSON.

        Raises:
            ValueError: for NaN and infinity, which JSON does not have.
            TypeError: for what JSON cannot hold.
        """
        return self.add(encode_json(val), key, batch_index)

    def add_stream_content(
        self,
        stream_content: Iterable,
        output_formatter: Callable[[Any], bytes] | None = stream_line,
    ) -> Output:
        """Send each item as a chunk as soon as the iterable yields it."""
        self.stream_content = stream_content
        self.output_formatter = output_formatter or stream_line
        return self

    @staticmethod
    def binary_encode(fields: Mapping[str, Any]) -> bytes:
        """Return fields in the form that the front end reads in asynchronous mode.

        Their number in two bytes; then each name and value as text in UTF-8, after its
        length in four bytes.
        """
        parts = [struct.pack(">h", len(fields))]
        for pair in fields.items():
            for text in map(str, pair):
                value = text.encode("utf-8")
                parts += [struct.pack(">i", len(value)), value]
        return b"".join(parts)

    def finalize(self, function: Callable, *arguments: Any) -> Output:
        """Call `function` after the reply has been sent."""
        self._finalizer = (function, arguments)
        return self

    def execute_finalize(self) -> Any:
        """Call what `finalize` was given and return its result, None without it."""
        if self._finalizer is None:
            return None
        function, arguments = self._finalizer
        return function(*arguments)
