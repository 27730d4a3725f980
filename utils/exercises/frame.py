"""What the checks of all exercises share: verdicts, hints, and the decorator.

Each `check_…` function takes the answer first, then what it needs to judge it. It
returns a `Verdict`, which a cell's last line shows. An untouched stub (`...`) gets a
hint and the notebook runs on; a wrong answer gets the hint for that mistake.

To add an exercise:

1. Write a function in `lesson_NN` that raises `Wrong` with a hint or returns what a
   right answer deserves to hear. Decorate it with
   `@exercise("what to replace ... with")`.
2. Put the stub, the check and the solution into the notebook of the lesson.
3. Plant at least two mistakes for it in `tests/support/wrong_answers/lesson_NN.py`,
   each with the hint that it must get. Without them, tests fail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Wrong(Exception):
    """The answer has a mistake that the check knows; the message is its hint."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        passed: True or False; None for an untouched stub.
        message: a pass line or a hint.
    """

    passed: bool | None
    message: str

    def __bool__(self) -> bool:
        """Return whether the answer is right."""
        return bool(self.passed)

    def __repr__(self) -> str:
        """Return the line that a notebook shows."""
        sign = {None: "Not tried yet:", True: "✓", False: "✗ Not yet:"}[self.passed]
        return f"{sign} {self.message}"


def exercise(task: str) -> Callable[[Callable[..., str]], Callable[..., Verdict]]:
    """Turn a function that raises `Wrong` or returns praise into a check.

    Args:
        task: completes "Not tried yet: replace ... with".
    """

    def decorate(judge: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(judge)
        def check(answer: Any, *arguments: Any, **options: Any) -> Verdict:
            if _untouched(answer):
                return Verdict(None, f"replace ... with {task}.")
            try:
                return Verdict(True, judge(answer, *arguments, **options))
            except Wrong as hint:
                return Verdict(False, str(hint))

        return check

    return decorate


def _untouched(answer: Any) -> bool:
    """Return whether an answer is `...`, or a list or dictionary that still has one."""
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return any(part is ... for part in answer)
    return answer is ...


def require_type(
    expected: type | tuple[type, ...], answer: Any, description: str
) -> None:
    """Accept an answer of the expected type; True and False are not numbers.

    Args:
        expected: a type or several.
        answer: the learner's answer, or a part of it.
        description: what is expected, in words.

    Raises:
        Wrong: if it is of another type.
    """
    if not isinstance(answer, expected) or isinstance(answer, bool):
        raise Wrong(f"expected {description}, found {type(answer).__name__}.")


def read_number(answer: Any, description: str) -> float:
    """Return the answer as a number; numpy's and torch's are accepted.

    Args:
        answer: the learner's answer, or a part of it.
        description: what is expected, in words.

    Raises:
        Wrong: if it is not a number.
    """
    answer = answer.item() if hasattr(answer, "item") else answer
    require_type((int, float), answer, description)
    return answer
