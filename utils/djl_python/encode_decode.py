"""Reads a request's body by its content type, as the image's own handlers do."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

from .inputs import Input


def decode(inputs: Input, content_type: str | None, key: str | None = None) -> Any:
    """Return what a body stands for; without a content type it is read as JSON.

    Of the types that the real function knows these are here: JSON, CSV with a header,
    plain text and forms. Any other body comes as {"inputs": bytes}.

    Raises:
        json.JSONDecodeError: if a body that must be JSON is none.
        ValueError: if CSV has no header that names question, context or inputs.
    """
    if not content_type:
        return inputs.get_as_json(key) if inputs.get_as_bytes(key) else {"inputs": ""}
    if "application/json" in content_type:
        return inputs.get_as_json(key)
    if "text/csv" in content_type:
        return _decode_csv(inputs.get_as_string(key))
    if "text/plain" in content_type:
        return {"inputs": [inputs.get_as_string(key)]}
    if content_type == "application/x-www-form-urlencoded":
        return {"inputs": inputs.get_as_string(key)}
    return {"inputs": inputs.get_as_bytes(key)}


def _decode_csv(text: str) -> dict[str, list]:
    head = (text.splitlines() or [""])[0].lower()
    if not any(name in head for name in ("question", "context", "inputs")):
        raise ValueError(
            f"CSV: expected a first line that names question, context or inputs; "
            f"found {head!r}"
        )
    rows = list(csv.DictReader(StringIO(text)))
    if rows and "inputs" in rows[0]:
        return {"inputs": [row["inputs"] for row in rows]}
    return {"inputs": rows}
