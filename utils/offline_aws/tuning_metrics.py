"""What a metric's pattern finds in the log of a training job, and what it cuts off.

botocore's model of FinalHyperParameterTuningJobObjectiveMetric says that the objective
is "the latest objective metric emitted by a training job". A pattern that cannot read
what the script writes is not refused by AWS: it captures a part of the number, or the
number before the loss became nan, and the wrong job wins. Here the value is the same,
and the trouble is said in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from utils.offline_aws.training_metrics import LONGEST_SEARCHED, compiled

EXPONENT = re.compile(r"[eE][-+]?\d")
# Written by Python, NumPy and PyTorch for what is no number any more.
NOT_FINITE = r"\s*[-+]?(?i:nan|inf(?:inity)?)\b"
LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Captured:
    """What a pattern found in a log.

    Attributes:
        values: finite numbers, in the order of the log.
        last: the last of them; None if there is none, or if nan or infinity came later.
        trouble: what a person should know of the pattern; None if all is well.
    """

    values: list[float] = field(default_factory=list)
    last: float | None = None
    trouble: str | None = None


class Capture:
    """Searches a log for a metric, as it grows."""

    def __init__(self, pattern: str):
        """Begin.

        Args:
            pattern: a regular expression, whose first group is the number.
        """
        self._pattern = pattern
        self._expression = compiled(pattern)
        self._lost = _of_lost_numbers(pattern)
        self._values: list[float] = []
        self._gone: str | None = None  # the line after which there is no number
        self._cut: tuple[str, str] | None = None
        self._other: str | None = None

    def read(self, lines: Iterable[str]) -> None:
        """Search the next lines of the log."""
        if self._expression is None or not self._expression.groups:
            return
        for line in lines:
            line = line[:LONGEST_SEARCHED]
            matches = list(self._expression.finditer(line))
            for found in matches:
                self._take(line, found)
            end = matches[-1].end() if matches else -1
            lost = self._lost.finditer(line) if self._lost is not None else ()
            if any(one.end() > end for one in lost):
                self._gone = line

    def _take(self, line: str, found: re.Match) -> None:
        number = _number(found[1])
        if number is None:
            self._other = found[1] or ""
        elif not math.isfinite(number):
            self._gone = line
        else:
            self._values.append(number)
            self._gone = None
            if _is_cut(line, found.start(1), found.end(1)):
                self._cut = self._cut or (line, found[1])

    def result(self) -> Captured:
        """Return what was found so far."""
        values, last = list(self._values), None
        if self._values and self._gone is None:
            last = values[-1]
        return Captured(values, last, self._trouble())

    def _trouble(self) -> str | None:
        pattern = self._pattern
        if self._expression is None:
            return f"The pattern {pattern!r} is no regular expression."
        if not self._expression.groups:
            return (
                f"The pattern {pattern!r} has no group. Put the number in brackets: "
                "(…)."
            )
        if self._gone is not None:
            return (
                f"The last value in the log is no finite number: "
                f"{_short(self._gone)!r}. It counts as no objective."
            )
        if self._cut is not None:
            line, number = self._cut
            return (
                f"The pattern {pattern!r} cuts the number in {_short(line)!r}: it "
                f"captures {number!r}. Write one that takes signs and exponents, such "
                r"as '([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)'."
            )
        if self._values:
            return None
        if self._other is None:
            return f"The pattern {pattern!r} matches no line of the log."
        return (
            f"The pattern {pattern!r} captures {_short(self._other)!r}, which is no "
            "number."
        )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _is_cut(line: str, start: int, end: int) -> bool:
    """Say whether a number goes on to the left or right of what was captured."""
    before = line[max(0, start - 2) : start]
    negative = before.endswith("-") and not before[:-1].isalnum()
    return negative or EXPONENT.match(line, end) is not None


def _of_lost_numbers(pattern: str) -> re.Pattern | None:
    """Return a pattern for a nan where the metric's own expects a number."""
    start = _first_group(pattern)
    if not start:
        return None
    return compiled(pattern[:start] + NOT_FINITE)  # None if it stands in another one


def _first_group(pattern: str) -> int | None:
    """Return where the first group that captures begins; None if there is none."""
    in_class = escaped = False
    for place, sign in enumerate(pattern):
        if escaped:
            escaped = False
        elif sign == "\\":
            escaped = True
        elif in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign == "(":
            rest = pattern[place + 1 :]
            if not rest.startswith("?") or rest.startswith("?P<"):
                return place
    return None


def _short(text: str) -> str:
    text = text.strip()
    if len(text) <= LONGEST_SHOWN:
        return text
    return text[:LONGEST_SHOWN] + "…"
