"""DynamoDB of the offline AWS: what is played of it, and what moto lets pass.

moto keeps the items, evaluates conditions and knows the reserved words. A table is
active at once, while AWS takes some seconds; and items whose time to live is over stay,
as they do on AWS for up to some days ("Using time to live", developer guide).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from utils.offline_aws.errors import AwsFault, invalid

SERVICE = "dynamodb"
# moto answers many more, of which some change nothing.
PLAYED = frozenset(
    {
        *("CreateTable", "DescribeTable", "ListTables", "DeleteTable"),
        *("UpdateTimeToLive", "DescribeTimeToLive"),
        *("TagResource", "UntagResource", "ListTagsOfResource"),
        *("PutItem", "GetItem", "UpdateItem", "DeleteItem", "Query", "Scan"),
        *("BatchGetItem", "BatchWriteItem"),
    }
)
# "Naming rules" and "Numbers" in the developer guide.
NAME = r"[a-zA-Z0-9_.-]+"
SHORTEST, LONGEST = 3, 255
MOST_DIGITS = 38
VALUE_TYPES = {"S", "N", "B", "SS", "NS", "BS", "M", "L", "NULL", "BOOL"}


def check_table(parameters: dict[str, Any]) -> None:
    """Refuse a table's name that AWS would not take.

    Raises:
        AwsFault: a ValidationException.
    """
    name = parameters["TableName"]
    problem = None
    if not SHORTEST <= len(name) <= LONGEST:
        limit = f"greater than or equal to {SHORTEST}"
        if len(name) > LONGEST:
            limit = f"less than or equal to {LONGEST}"
        problem = f"Member must have length {limit}"
    elif not re.fullmatch(NAME, name):
        problem = f"Member must satisfy regular expression pattern: {NAME}"
    if problem:
        raise invalid(
            f"1 validation error detected: Value '{name}' at 'tableName' failed to "
            f"satisfy constraint: {problem}"
        )


def check_values(parameters: dict[str, Any]) -> None:
    """Refuse values of attributes that have no type, or numbers that are too long.

    Raises:
        AwsFault: a ValidationException.
    """
    for key in ("Item", "Key", "ExpressionAttributeValues"):
        for value in (parameters.get(key) or {}).values():
            for kind, content in _scalars(value):
                if kind in ("N", "NS"):
                    for number in [content] if kind == "N" else content:
                        _check_number(number)


def _scalars(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield type and content of a value and of all within it."""
    if len(value) != 1 or not VALUE_TYPES.issuperset(value):
        raise AwsFault(
            400,
            "ValidationException",
            "Supplied AttributeValue is empty, must contain exactly one of the "
            "supported datatypes",
        )
    ((kind, content),) = value.items()
    yield kind, content
    if kind in ("M", "L"):
        for inner in content.values() if kind == "M" else content:
            yield from _scalars(inner)


def _check_number(text: str) -> None:
    digits = re.sub(r"[eE].*|\D", "", text).strip("0")
    if len(digits) > MOST_DIGITS:
        raise invalid(
            f"Attempting to store more than {MOST_DIGITS} significant digits in a "
            "Number"
        )
