"""What a handler is called with."""

from __future__ import annotations

import json
import re
from typing import Any

from .pair_list import PairList

BATCH_KEY = re.compile(r"batch_(\d+)\.(.*)", re.DOTALL)


class Input:
    """One request, or one batch of requests.

    `properties` hold the options at the warm-up request and the HTTP headers later;
    `content` holds the body under the key "data", or one pair for each form field.
    """

    def __init__(self) -> None:
        self.function_name: str | None = None
        self.properties: dict[str, str] = {}
        self.content = PairList()

    def __str__(self) -> str:
        return f"Input(properties={self.properties}, content={self.content.keys})"

    def is_empty(self) -> bool:
        """Return whether this is the warm-up: an empty POST has one empty content."""
        return self.content.is_empty()

    def is_batch(self) -> bool:
        """Return whether more than one request came together."""
        return "batch_size" in self.properties

    def get_batch_size(self) -> int:
        """Return the number of requests that came together."""
        return int(self.properties.get("batch_size", "1"))

    def get_batches(self) -> list[Input]:
        """Return the requests of this batch, in the order that replies must have.

        Raises:
            ValueError: if a content belongs to no request.
        """
        if not self.is_batch():
            return [self]
        items = [Input() for _ in range(self.get_batch_size())]
        for key, value in self.properties.items():
            match = BATCH_KEY.fullmatch(key)
            if match:
                items[int(match[1])].properties[match[2]] = value
            elif key != "batch_size":
                for item in items:
                    item.properties[key] = value
        for key, value in zip(self.content.keys, self.content.values, strict=True):
            match = BATCH_KEY.fullmatch(key)
            if match is None:
                raise ValueError(f"Unexpected key in batch input: {key}")
            items[int(match[1])].content.add(match[2], value)
        return items

    def get_function_name(self) -> str | None:
        """Return the name of the function that is called."""
        return self.function_name

    def get_properties(self) -> dict[str, str]:
        """Return the options at the warm-up, and the HTTP headers later."""
        return self.properties

    def get_property(self, key: str) -> str | None:
        """Return a property, found without regard to case, as HTTP headers are."""
        for name, value in self.properties.items():
            if name.lower() == key.lower():
                return value
        return None

    def get_content(self) -> PairList:
        """Return the contents by their keys."""
        return self.content

    def contains_key(self, key: str) -> bool:
        """Return whether there is a content of this key."""
        return self.content.get(key) is not None

    def get_as_bytes(self, key: str | None = None) -> bytes | None:
        """Return the content of `key`, else of "data", else the first; None if empty.

        Raises:
            KeyError: if `key` is given and there is no such content.
        """
        if self.content.is_empty():
            return None
        if key:
            value = self.content.get(key)
            if value is None:
                raise KeyError(f"requested data for key:{key} is not found!")
            return value
        value = self.content.get("data")
        return self.content.value_at(0) if value is None else value

    def get_as_string(self, key: str | None = None) -> str:
        """Return the body as text."""
        return self.get_as_bytes(key).decode("utf-8")

    def get_as_json(self, key: str | None = None) -> Any:
        """Return the body as the value that its JSON stands for.

        Raises:
            json.JSONDecodeError: if the body is no JSON; an empty one is none.
        """
        return json.loads(self.get_as_string(key))
