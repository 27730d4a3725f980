"""The settings of the service: environment variables of the function, checked.

A wrong value ends the start, not a request: a function that starts can answer.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What is not an answer of a version counts under this name: CloudWatch takes no empty
# dimension.
NO_VERSION = "none"
# Seconds for a whole request: below the 29 that API Gateway waits, so that the error
# is still ours.
WHOLE_REQUEST = 25.0

# CreateEndpoint and CreateTable in AWS's API references.
_AWS_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_TABLE_NAME = re.compile(r"[a-zA-Z0-9_.-]{3,255}")
# It is a dimension of the metrics, which are ASCII.
_VERSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION_FIELDS = {"name", "description", "adapter", "variant", "live"}


class SettingsError(ValueError):
    """A setting that cannot be used: which, what was found, what is expected."""

    def __init__(self, name: str, found: object, expected: str):
        text = repr(found)
        shown = text if len(text) <= 80 else text[:80] + "…"
        super().__init__(f"{name}: found {shown}, expected {expected}")


@dataclass(frozen=True)
class Version:
    """A version of the model that a question can be put to.

    Attributes:
        name: by which the page and the metrics know it.
        description: what people read.
        adapter: the entry point's `model` field; "base" leaves the adapter out, None
            leaves it to the endpoint.
        variant: the production variant that answers; None leaves it to the endpoint.
        live: whether the live traffic may get it.
    """

    name: str
    description: str = ""
    adapter: str | None = None
    variant: str | None = None
    live: bool = True


@dataclass(frozen=True)
class Settings:
    """What the service is told; the names of the variables stand in `VARIABLES`.

    Attributes:
        endpoint: name of the SageMaker endpoint.
        table: name of the DynamoDB table.
        versions: that can be asked by name; at least one is live.
        log_texts: whether questions, answers and comments may stand in the log.
        keep_texts: whether they may stand in the table.
        days_kept: after which DynamoDB deletes a record.
        retrieve: notes that a question is answered from, where it does not say.
        timeout: seconds of silence after which a call of the endpoint has failed.
        max_question: characters.
        max_body: bytes.
        breaker_failures: in a row, that open the circuit breaker.
        breaker_seconds: that it stays open.
    """

    endpoint: str
    table: str
    versions: tuple[Version, ...] = (Version("live", "What the endpoint serves."),)
    log_texts: bool = False
    keep_texts: bool = False
    days_kept: int = 30
    retrieve: int = 1
    timeout: float = 20.0
    max_question: int = 2000
    max_body: int = 64 * 1024
    breaker_failures: int = 5
    breaker_seconds: float = 10.0

    def __post_init__(self) -> None:
        live = [version for version in self.versions if version.live]
        if not live:
            raise SettingsError(
                "WEB_VERSIONS",
                [version.name for version in self.versions],
                'at least one version with "live": true',
            )
        if len(live) > 1 and not all(version.variant for version in live):
            # Without a variant's name nobody could say whose answer it was.
            raise SettingsError(
                "WEB_VERSIONS",
                [version.name for version in live if not version.variant],
                'a "variant" for each version, where several are live',
            )
        if len({version.adapter for version in live}) > 1:
            # The endpoint chooses the variant after the request is written.
            raise SettingsError(
                "WEB_VERSIONS",
                {version.name: version.adapter for version in live},
                'the same "adapter" in all versions that are live',
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings.

        Args:
            environment: variables and their texts; by default the process's own.

        Raises:
            SettingsError: naming the variable, what was found and what is expected.
        """
        variables = os.environ if environment is None else environment
        found: dict[str, Any] = {}
        for name, (field, read) in VARIABLES.items():
            text = variables.get(name, "").strip()
            if text:
                found[field] = read(name, text)
            elif field in ("endpoint", "table"):
                raise SettingsError(name, text, "a name: the service needs it")
        return cls(**found)

    def version(self, name: str) -> Version | None:
        """Return the version of this name; None if there is none."""
        return next((one for one in self.versions if one.name == name), None)

    @property
    def live(self) -> tuple[Version, ...]:
        """Return the versions that the live traffic may get."""
        return tuple(version for version in self.versions if version.live)

    def live_version(self, variant: str) -> str:
        """Return the name of the live version that a variant has answered for.

        Args:
            variant: as the endpoint names it; a variant that no version names, such
                as a new one in a rollout, stands for itself.
        """
        live = self.live
        names = {version.variant: version.name for version in live}
        if variant in names:
            return names[variant]
        if len(live) == 1 and live[0].variant is None:
            return live[0].name
        return variant or NO_VERSION


def _name(pattern: re.Pattern[str], expected: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if not pattern.fullmatch(text):
            raise SettingsError(name, text, expected)
        return text

    return read


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise SettingsError(name, text, "0 or 1")
    return text == "1"


def _number(
    kind: type[int] | type[float], least: float, most: float
) -> Callable[[str, str], float]:
    what = "a whole number" if kind is int else "a number"

    def read(name: str, text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise SettingsError(name, text, f"{what} from {least:g} to {most:g}")
        return value

    return read


def _versions(name: str, text: str) -> tuple[Version, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found:
        raise SettingsError(
            name, text, 'a JSON list such as [{"name": "tuned", "live": true}]'
        )
    versions = tuple(
        _version(f"{name}[{place}]", item) for place, item in enumerate(found)
    )
    names = [version.name for version in versions]
    if len(set(names)) < len(names):
        raise SettingsError(name, names, "each name once")
    return versions


def _version(place: str, item: Any) -> Version:
    if not isinstance(item, dict) or not item.keys() <= _VERSION_FIELDS:
        fields = ", ".join(sorted(_VERSION_FIELDS))
        raise SettingsError(place, item, f"an object with no fields but {fields}")
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "name": (
            lambda one: isinstance(one, str) and bool(_VERSION_NAME.fullmatch(one)),
            "1 to 64 ASCII letters, digits, dots, hyphens or underscores",
        ),
        "description": (lambda one: isinstance(one, str), "a text"),
        "adapter": (
            lambda one: one is None or isinstance(one, str) and bool(one.strip()),
            "an adapter's name or null",
        ),
        "variant": (
            lambda one: (
                one is None or isinstance(one, str) and bool(_AWS_NAME.fullmatch(one))
            ),
            "a production variant's name or null",
        ),
        "live": (lambda one: isinstance(one, bool), "true or false"),
    }
    for field, (holds, expected) in checks.items():
        if (field in item or field == "name") and not holds(item.get(field)):
            raise SettingsError(f"{place}.{field}", item.get(field), expected)
    return Version(**item)


# Each variable → the field of `Settings`, and how it is read.
VARIABLES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "WEB_ENDPOINT": (
        "endpoint",
        _name(_AWS_NAME, "an endpoint's name: letters, digits and hyphens"),
    ),
    "WEB_TABLE": (
        "table",
        _name(_TABLE_NAME, "a table's name: 3 to 255 letters, digits, _ . or -"),
    ),
    "WEB_VERSIONS": ("versions", _versions),
    "WEB_LOG_TEXTS": ("log_texts", _flag),
    "WEB_KEEP_TEXTS": ("keep_texts", _flag),
    "WEB_DAYS_KEPT": ("days_kept", _number(int, 1, 3650)),
    "WEB_RETRIEVE": ("retrieve", _number(int, 0, 5)),
    "WEB_TIMEOUT": ("timeout", _number(float, 0.1, WHOLE_REQUEST)),
    "WEB_MAX_QUESTION": ("max_question", _number(int, 1, 20_000)),
    "WEB_MAX_BODY": ("max_body", _number(int, 256, 6 * 1024 * 1024)),
    "WEB_BREAKER_FAILURES": ("breaker_failures", _number(int, 1, 1000)),
    "WEB_BREAKER_SECONDS": ("breaker_seconds", _number(float, 0.1, 3600)),
}
