"""Ordered pairs of a key and a value; keys may repeat or be None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class PairList:
    """The content of an `Input` or `Output`: an ordered list of (key, value) pairs."""

    def __init__(
        self,
        keys: list | None = None,
        values: list | None = None,
        pair_list: Iterable[tuple[Any, Any]] = (),
        pair_map: Mapping[Any, Any] | None = None,
    ):
        if keys is not None and values is not None and len(keys) != len(values):
            raise ValueError(
                f"key value size mismatch: {len(keys)} keys, {len(values)} values"
            )
        self.keys: list = list(keys or [])
        self.values: list = list(values or [])
        for pair in [*pair_list, *(pair_map or {}).items()]:
            self.add(pair=pair)

    def add(
        self,
        key: str | None = None,
        value: Any = None,
        index: int | None = None,
        pair: tuple[Any, Any] | None = None,
    ) -> None:
        """Append a pair, or insert it at `index`."""
        if pair is not None:
            key, value = pair
        position = len(self.keys) if index is None else index
        self.keys.insert(position, key)
        self.values.insert(position, value)

    def add_all(self, other: PairList | None) -> None:
        """Append every pair of another list."""
        if other is not None:
            self.keys.extend(other.keys)
            self.values.extend(other.values)

    def size(self) -> int:
        """Return the number of pairs."""
        return len(self.keys)

    def is_empty(self) -> bool:
        """Return whether there is no pair."""
        return not self.keys

    def get(self, key: str) -> Any:
        """Return the value of the first pair with this key, or None."""
        return self.values[self.keys.index(key)] if key in self.keys else None

    def key_at(self, index: int) -> Any:
        """Return the key of a pair."""
        return self.keys[index]

    def value_at(self, index: int) -> Any:
        """Return the value of a pair."""
        return self.values[index]

    def get_keys(self) -> list:
        """Return the keys in order."""
        return self.keys

    def get_values(self) -> list:
        """Return the values in order."""
        return self.values
