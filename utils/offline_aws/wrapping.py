"""Methods of moto that do more than moto's."""

from __future__ import annotations

from typing import Any


def wrap(kind: type, name: str, replacement: Any) -> None:
    """Replace a method by one that gets the original first, then the arguments."""
    original = getattr(kind, name)

    def method(self: Any, *positional: Any, **named: Any) -> Any:
        return replacement(original, self, *positional, **named)

    setattr(kind, name, method)
