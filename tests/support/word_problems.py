"""Reads problems with numbers and their solutions back from the text alone."""

from __future__ import annotations

import operator
import re
from fractions import Fraction
from functools import cache

Operation = tuple[int, str, int]
"""Such as (47, "+", 12)."""


def solve(question: str) -> tuple[list[Operation], str]:
    """The operations that lead to a result, and it, from a problem's words alone."""
    if product := re.fullmatch(r"What is (\d+) x (\d+)\?", question):
        first, second = map(int, product.groups())
        return [(first, "x", second)], str(first * second)
    legs = re.findall(r"(\d+) km in ([\d.]+) hours?", question)
    if legs:
        ways, times = [int(way) for way, _ in legs], [Fraction(t) for _, t in legs]
        speed = sum(ways) / sum(times)
        if len(legs) == 1:  # reckoned by the half hour
            return [(ways[0], "/", int(2 * times[0]))], str(speed)
        total = (sum(ways), "/", int(sum(times)))
        return [(ways[0], "+", ways[1]), total], str(speed)
    total = int(re.match(r"\w+ has (\d+) ", question)[1])
    operations = []
    changes = r"(buys|finds|gets|gives away|loses|sells) (\d+)"
    for verb, number in re.findall(changes, question):
        sign = "+" if verb in ("buys", "finds", "gets") else "-"
        operations.append((total, sign, int(number)))
        total += int(f"{sign}{number}")
    assert operations, question
    return operations, str(total)


def operands(operation: Operation) -> tuple[int, int]:
    """The pair that is held out or not: of a division, divisor and quotient."""
    left, sign, right = operation
    return (right, left // right) if sign == "/" else (left, right)


def check_step(step: str) -> None:
    """Recompute one line of a solution."""
    if match := re.fullmatch(r"(\d+) / (\d+) = (\d+) rest (\d+)", step):
        dividend, divisor, quotient, rest = map(int, match.groups())
        assert (quotient, rest) == divmod(dividend, divisor), step
    elif match := re.fullmatch(r"([\d.]+) hours? is (\d+) half hours", step):
        assert Fraction(match[1]) * 2 == int(match[2]), step
    else:
        match = re.fullmatch(r"(\d+) ([+\-x/]) (\d+) = (\d+)(?: km| hours)?", step)
        left, sign, right, result = match.groups()
        operation = {
            "+": operator.add,
            "-": operator.sub,
            "x": operator.mul,
            "/": operator.truediv,
        }[sign]
        assert operation(int(left), int(right)) == int(result), step


QUESTION = re.compile(r"(?:Question:|User:\n ) (.+\?)\n")
OPERATION = re.compile(r"(\d+) ([+\-x/]) (\d+) = ")
LARGEST_TOTAL = 160  # of the problems of some steps; beyond it are a trip's sums


def operations_in(text: str) -> list[Operation]:
    """All operations that are written out."""
    found = OPERATION.findall(text)
    return [(int(left), sign, int(right)) for left, sign, right in found]


@cache
def what_it_asks(document: str) -> tuple[str, list[Operation]]:
    """The kind of a document with numbers, and the operations that it is about.

    A list of sums or divisions is about every line of it, a problem about what leads
    to its result. For any other document the kind is "".
    """
    if question := QUESTION.search(document):
        asked = question[1]
        words = {"What is": "product", " and then ": "trip", " travels ": "speed"}
        kinds = [kind for word, kind in words.items() if word in asked]
        return (*kinds, "steps")[0], solve(asked)[0]
    lines = document.splitlines()
    if not all(map(OPERATION.match, lines)):
        return "", []
    found = operations_in(document)
    if any(sign == "/" for _, sign, _ in found):
        return "short divisions", found
    large = any(max(left, right) > LARGEST_TOTAL for left, _, right in found)
    return ("large sums" if large else "small sums"), found
