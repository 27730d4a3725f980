"""Parameters held to botocore's own service models, as AWS's servers hold them.

botocore checks types and required members before it sends, and little else: lengths,
ranges, patterns and enumerations stand in its models (`service-2.json`) for the server
to check. Here they are walked, whatever the operation. The texts are those of AWS's
framework, as people meet them: "1 validation error detected: Value '…' at '…' failed to
satisfy constraint: Member must …" (aws/amazon-sagemaker-examples, issue 2236).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from utils.offline_aws.errors import AwsFault

ERRORS_SHOWN = 10
# Classes of Java's regular expressions that Python's lack, for use in brackets. Letters
# and numbers of all scripts are both words in Python.
JAVA_CLASSES = {
    r"\p{ASCII}": r"\x00-\x7f",
    r"\p{Print}": r"\x20-\x7e",
    r"\p{Alnum}": "A-Za-z0-9",
    r"\p{L}": r"\w",
    r"\p{N}": r"\w",
    r"\p{Z}": r"\s",
}
ANCHORS = {r"\z": r"\Z"}
# Java takes a repeated end for an end; CustomerMetadataKey has "…*)${1,128}".
REPEATED_END = re.compile(r"\$\{\d+,\d+\}")
TOKENS = re.compile(r"\\p\{\w+\}|\\.|[\[\]]", re.DOTALL)
TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
}


def check_parameters(
    operation: Any, parameters: Mapping[str, Any], code: str = "ValidationException"
) -> None:
    """Refuse parameters that the operation's model does not allow.

    Args:
        operation: botocore's model of it.
        parameters: by the names of the input's members; a blob as its bytes.
        code: of the error.

    Raises:
        AwsFault: with all that is wrong, in AWS's words.
    """
    shape = operation.input_shape
    if shape is None:
        return
    found = list(violations(shape, parameters))
    if not found:
        return
    errors = "error" if len(found) == 1 else "errors"
    text = "; ".join(found[:ERRORS_SHOWN])
    raise AwsFault(400, code, f"{len(found)} validation {errors} detected: {text}")


def read_rest(operation: Any, labels: Mapping[str, str], environ: dict) -> dict:
    """Return the parameters of a call whose path and headers hold them.

    Args:
        operation: botocore's model of one of the protocol rest-json.
        labels: what stands in the path.
        environ: of WSGI; its body is not read.

    Raises:
        AwsFault: a SerializationException, where a number is none.
    """
    found: dict[str, Any] = {}
    for name, member in operation.input_shape.members.items():
        place = member.serialization.get("location")
        key = member.serialization.get("name", name)
        value = None
        if place == "uri":
            value = labels.get(key)
        elif place == "header":
            header = key.upper().replace("-", "_")
            if header not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                header = f"HTTP_{header}"
            value = environ.get(header)
        if value is not None and member.type_name in ("integer", "long"):
            if not re.fullmatch(r"-?\d+", value):
                message = f"{key}: expected a whole number, found {value!r}."
                raise AwsFault(400, "SerializationException", message)
            value = int(value)
        if value is not None:
            found[name] = value
    return found


def violations(shape: Any, value: Any, place: str = "") -> Iterator[str]:
    """Yield what is wrong with a value, one sentence for each constraint.

    Args:
        shape: botocore's.
        value: of the parameter, as it came.
        place: where it stands, such as "productionVariants.1.member.instanceType".

    Raises:
        AwsFault: a SerializationException, if its type is another one.
    """
    _require_type(shape, value, place)
    kind = shape.type_name
    if kind == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield _failed(None, _below(place, name), "Member must not be null")
        for name, member in shape.members.items():
            if value.get(name) is not None:
                yield from violations(member, value[name], _below(place, name))
        return
    if kind == "list":
        yield from _sizes(shape, value, place, value)
        for number, item in enumerate(value, 1):
            yield from violations(shape.member, item, f"{place}.{number}.member")
        return
    if kind == "map":
        yield from _sizes(shape, value, place, value)
        for key, item in value.items():
            yield from violations(shape.key, key, f"{place}.{key}.key")
            yield from violations(shape.value, item, f"{place}.{key}.value")
        return
    shown = None if shape.metadata.get("sensitive") or kind == "blob" else value
    if kind in ("string", "blob"):
        yield from _sizes(shape, value, place, shown)
    elif kind in ("integer", "long", "float", "double"):
        yield from _range(shape, value, place)
    if kind == "string":
        if getattr(shape, "enum", None) and value not in shape.enum:
            allowed = ", ".join(shape.enum)
            yield _failed(
                value, place, f"Member must satisfy enum value set: [{allowed}]"
            )
        pattern = shape.metadata.get("pattern")
        if pattern and not _fits(pattern, value):
            yield _failed(
                shown,
                place,
                f"Member must satisfy regular expression pattern: {pattern}",
            )


def _require_type(shape: Any, value: Any, place: str) -> None:
    expected = TYPES.get(shape.type_name)
    if expected is None:
        return
    if not isinstance(value, expected) or (
        isinstance(value, bool) and shape.type_name != "boolean"
    ):
        raise AwsFault(
            400,
            "SerializationException",
            f"{place or 'The body'}: expected a {shape.type_name}, found "
            f"{type(value).__name__}.",
        )


def _sizes(shape: Any, value: Sequence, place: str, shown: Any) -> Iterator[str]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if most is not None and len(value) > most:
        yield _failed(
            shown, place, f"Member must have length less than or equal to {most}"
        )
    if least is not None and len(value) < least:
        yield _failed(
            shown, place, f"Member must have length greater than or equal to {least}"
        )


def _range(shape: Any, value: float, place: str) -> Iterator[str]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if most is not None and value > most:
        yield _failed(
            value, place, f"Member must have value less than or equal to {most}"
        )
    if least is not None and value < least:
        yield _failed(
            value, place, f"Member must have value greater than or equal to {least}"
        )


def _failed(value: Any, place: str, constraint: str) -> str:
    """Write one violation; a value that must not be shown, or is long, is left out."""
    if value is None and constraint != "Member must not be null":
        what = "Value"
    elif value is None:
        what = "Value null"
    else:
        what = f"Value '{value}'"
    return f"{what} at '{place}' failed to satisfy constraint: {constraint}"


def _below(place: str, name: str) -> str:
    """Write a member's place: AWS begins each name with a small letter."""
    name = name[:1].lower() + name[1:]
    return f"{place}.{name}" if place else name


def _fits(pattern: str, value: str) -> bool:
    """Say whether all of a text is as a pattern of the models has it."""
    compiled = _compiled(pattern)
    return compiled is None or compiled.fullmatch(value) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern | None:
    """Return a pattern of Java's as Python's; None if it cannot be said in it."""
    pattern = REPEATED_END.sub("$", pattern)
    translated, end, within = "", 0, False
    for token in TOKENS.finditer(pattern):
        between, text = pattern[end : token.start()], token[0]
        translated, end = translated + between, token.end()
        if text.startswith(r"\p"):
            members = JAVA_CLASSES.get(text)
            if members is None:
                return None
            text = members if within else f"[{members}]"
        elif text in "[]":
            within = text == "["
        translated += ANCHORS.get(text, text)
    try:
        # Without DOTALL, as in Java: what may hold line ends is written [\s\S]*.
        return re.compile(translated + pattern[end:])
    except re.error:
        return None
