"""Checks of the learners' answers to the exercises.

Each `check_…` function takes the answer first, then what it needs to judge it. It
returns a `Verdict`, which a cell's last line shows. An untouched stub (`...`) gets a
hint and the notebook runs on; a wrong answer gets the hint for that mistake.

To add an exercise, write a function that raises `Wrong` with a hint or returns what a
right answer deserves to hear. Decorate it with `@exercise("what to replace ... with")`.
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
        return bool(self.passed)

    def __repr__(self) -> str:
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
    """`...` itself, or a list or dictionary in which one is left."""
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return any(part is ... for part in answer)
    return answer is ...


def _require(kind: type | tuple[type, ...], answer: Any, wanted: str) -> None:
    if not isinstance(answer, kind) or isinstance(answer, bool):
        raise Wrong(f"expected {wanted}, found {type(answer).__name__}.")


def _number(answer: Any, wanted: str) -> float:
    """The answer as a number; numpy's and torch's are accepted."""
    answer = answer.item() if hasattr(answer, "item") else answer
    _require((int, float), answer, wanted)
    return answer


# 01_language_models, first half


# 01_language_models, second half


# 02_prompting


# 03_dataset_templating


# 04_lora_training


# 05_evaluation


# 06_djl_deployment
