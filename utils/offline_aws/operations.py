"""Which operation of which service a request calls, by botocore's service models."""

from __future__ import annotations

import functools
import gzip
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.offline_aws.errors import CBOR

# As far as the metadata reach, which stand at the top of each model.
BEGINNING = 4000
SIGNS_AS = re.compile(r'"signingName"\s*:\s*"([^"]+)"')
IS_REACHED_AT = re.compile(r'"endpointPrefix"\s*:\s*"([^"]+)"')
LABEL = re.compile(r"\{(\w+)(\+?)\}")
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Call:
    """A request, as far as botocore's models explain it.

    Attributes:
        service: botocore's name, such as sagemaker-runtime; else the signing name.
        operation: botocore's model of it; None if none fits.
        name: of the operation; else method and path.
        protocol: the one that an error has to be written in.
        labels: parameters that stand in the path.
    """

    service: str
    operation: Any
    name: str
    protocol: str
    labels: dict[str, str]

    def __str__(self) -> str:
        return f"{self.service}'s {self.name}"


@functools.cache
def services_by_signing_name() -> dict[str, list[str]]:
    """Return botocore's services by the name under which they sign, newest models."""
    import botocore

    found: dict[str, list[str]] = {}
    for folder in sorted((Path(botocore.__file__).parent / "data").iterdir()):
        models = sorted(folder.glob("*/service-2.json.gz"))
        if not models:
            continue
        with gzip.open(models[-1]) as file:
            top = file.read(BEGINNING).decode("utf-8", "replace")
        if name := SIGNS_AS.search(top) or IS_REACHED_AT.search(top):
            found.setdefault(name[1].lower(), []).append(folder.name)
    return found


@functools.cache
def service_model(service: str) -> Any:
    """Return botocore's model of a service."""
    from botocore.session import Session

    return Session().get_service_model(service)


def identify(environ: dict, signing_name: str, body: bytes) -> Call:
    """Say what a request calls.

    Args:
        environ: of WSGI.
        signing_name: from its signature; "" for an unsigned request.
        body: the beginning of it, for protocols that name the operation there.
    """
    services = services_by_signing_name().get(signing_name, [])
    method = environ.get("REQUEST_METHOD", "")
    path = urllib.parse.unquote(environ.get("REQUEST_URI", "").partition("?")[0])
    unknown = f"{method} {path}"
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        prefix, _, name = target.rpartition(".")
        for service in services:
            model = service_model(service)
            if model.metadata.get("targetPrefix") == prefix:
                return _named(service, name, "json", model)
        return Call(signing_name, None, name, "json", {})
    if environ.get("HTTP_SMITHY_PROTOCOL") == "rpc-v2-cbor":
        name = path.rpartition("/")[2]
        for service in services:
            return _named(service, name, CBOR, service_model(service))
        return Call(signing_name, None, name, CBOR, {})
    if environ.get("CONTENT_TYPE", "").startswith(FORM):
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace")))
        if name := form.get("Action"):
            protocol = "ec2" if signing_name == "ec2" else "query"
            for service in services:
                model = service_model(service)
                if model.api_version == form.get("Version", model.api_version):
                    return _named(service, name, protocol, model)
            return Call(signing_name, None, name, protocol, {})
    for service in services:
        model = service_model(service)
        if not model.protocol.startswith("rest-"):
            continue
        for operation, labels in _matching(model, method, environ):
            return Call(service, operation, operation.name, model.protocol, labels)
    rest = [s for s in services if service_model(s).protocol.startswith("rest-")]
    protocol = service_model(rest[0]).protocol if rest else "rest-json"
    return Call(rest[0] if rest else signing_name, None, unknown, protocol, {})


def _named(service: str, name: str, protocol: str, model: Any) -> Call:
    known = name in model.operation_names
    operation = model.operation_model(name) if known else None
    return Call(service, operation, name, protocol, {})


def _matching(
    model: Any, method: str, environ: dict
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield the operations whose method and path are a request's, the narrowest first.

    Of those with the same path, as S3 has many, the query and the headers tell which is
    meant: the one that requires the most of them.
    """
    path, _, query = environ.get("REQUEST_URI", "").partition("?")
    given = set(urllib.parse.parse_qs(query, keep_blank_values=True))
    given |= {_header(name[5:]) for name in environ if name.startswith("HTTP_")}
    found = []
    for one in _routes(model.service_name):
        match = one.pattern.fullmatch(path)
        if match and one.method == method and one.asked <= given:
            labels = {
                key: urllib.parse.unquote(text)
                for key, text in match.groupdict().items()
            }
            whole = one.required <= given
            narrow = (whole, len(one.required | one.asked), len(one.pattern.pattern))
            found.append((narrow, one.operation, labels))
    for _, name, labels in sorted(found, key=lambda one: one[0], reverse=True):
        yield model.operation_model(name), labels


@dataclass(frozen=True)
class _Route:
    """How a request for an operation looks.

    Attributes:
        operation: its name.
        method: of HTTP.
        pattern: of the path.
        asked: keys of the query without which it is another operation.
        required: further ones, and headers, that a whole request has.
    """

    operation: str
    method: str
    pattern: re.Pattern
    asked: frozenset[str]
    required: frozenset[str]


@functools.cache
def _routes(service: str) -> list[_Route]:
    """Return the routes of all operations of a service."""
    model = service_model(service)
    found = []
    for name in model.operation_names:
        operation = model.operation_model(name)
        path, _, query = operation.http["requestUri"].partition("?")
        pattern, end = "", 0
        for label in LABEL.finditer(path):
            pattern += re.escape(path[end : label.start()])
            pattern += f"(?P<{label[1]}>{'.+' if label[2] else '[^/]+'})"
            end = label.end()
        pattern += re.escape(path[end:]) + ("" if path.endswith("/") else "/?")
        asked = {part.partition("=")[0] for part in query.split("&") if part}
        required = set()
        shape = operation.input_shape
        for member in shape.required_members if shape is not None else ():
            place = shape.members[member].serialization
            key = place.get("name", member)
            if place.get("location") == "querystring":
                required.add(key)
            elif place.get("location") == "header":
                required.add(_header(key))
        method, compiled = operation.http["method"], re.compile(pattern)
        route = _Route(name, method, compiled, frozenset(asked), frozenset(required))
        found.append(route)
    return found


def _header(name: str) -> str:
    """Write a header's name as in the set of what a request gives."""
    return "header " + name.upper().replace("-", "_")
