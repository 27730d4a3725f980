"""What a handler is called with."""

import csv
import io
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

    def __init__(self):
        self.function_name: str | None = None
        self.properties: dict[str, str] = {}
        self.content = PairList()

    def __str__(self) -> str:
        return f"Input(properties={self.properties}, content={self.content.keys})"

    def is_empty(self) -> bool:
        """True for the warm-up request only: an empty POST has one empty content."""
        return self.content.is_empty()

    def is_batch(self) -> bool:
        """True when more than one request came together."""
        return "batch_size" in self.properties

    def get_batch_size(self) -> int:
        return int(self.properties.get("batch_size", "1"))

    def get_batches(self) -> list["Input"]:
        """The requests of this batch, in the order in which replies are expected."""
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
        return self.function_name

    def get_properties(self) -> dict[str, str]:
        return self.properties

    def get_property(self, key: str) -> str | None:
        """A property, found without regard to case, as HTTP headers are."""
        for name, value in self.properties.items():
            if name.lower() == key.lower():
                return value
        return None

    def get_content(self) -> PairList:
        return self.content

    def contains_key(self, key: str) -> bool:
        return self.content.get(key) is not None

    def get_as_bytes(self, key: str | None = None) -> bytes | None:
        """The body: of `key`, else of "data", else the first content; None if empty.

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
        return self.get_as_bytes(key).decode("utf-8")

    def get_as_json(self, key: str | None = None) -> Any:
        """The body as JSON.

        Raises:
            json.JSONDecodeError: for a body that is none, an empty one included.
        """
        return json.loads(self.get_as_string(key))

    def get_as_npz(self, key: str | None = None) -> list:
        import numpy

        archive = numpy.load(io.BytesIO(self.get_as_bytes(key)))
        return [archive[name] for name in archive.files]

    def get_as_numpy(self, key: str | None = None) -> list:
        """The body as a list of arrays, sent in DJL's own `tensor/ndlist` format."""
        from .ndlist import decode

        return decode(self.get_as_bytes(key))

    def get_as_image(self, key: str | None = None) -> Any:
        from PIL import Image

        return Image.open(io.BytesIO(self.get_as_bytes(key)))

    def get_as_csv(self, key: str | None = None) -> list[dict]:
        return list(csv.DictReader(io.StringIO(self.get_as_string(key))))

    def get_data(self, key: str | None = None) -> Any:
        """The body, decoded as its content type says."""
        content_type = self.get_property("content-type") or ""
        readers = {
            "tensor/ndlist": self.get_as_numpy,
            "tensor/npz": self.get_as_npz,
            "application/json": self.get_as_json,
            "text/": self.get_as_string,
            "image/": self.get_as_image,
        }
        for prefix, reader in readers.items():
            if content_type.startswith(prefix):
                return reader(key)
        return self.get_as_bytes(key)
