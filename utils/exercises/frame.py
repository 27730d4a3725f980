"""What the checks of all exercises share: verdicts, hints, and the decorator.

Each `check_…` function takes the answer first, then what it needs to judge it. It
returns a `Verdict`, which a cell's last line shows. An untouched stub (`...`) gets a
hint and the notebook runs on; a wrong answer gets the hint for that mistake.

To add an exercise:

1. Write a function in `lesson_NN` that raises `Wrong` with a hint or returns what a
   right answer deserves to hear. Decorate it with
   `@exercise("what to replace ... with")`.
2. Put the stub, the check and the solution into the notebook of the lesson.
   Where the learner changes a function that runs already, the check raises `NotTried`
   as long as it does what it did; a function whose body is `...` counts as untouched.
3. Plant at least two mistakes for it in `tests/support/wrong_answers/lesson_NN.py`,
   each with the hint that it must get. Without them, tests fail.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Steps of the interpreter that compute nothing; what is left of an empty function is
# that it loads None.
_NO_WORK = ("RESUME", "NOP", "RETURN_VALUE")


class Wrong(Exception):
    """The answer has a mistake that the check knows; the message is its hint."""


class NotTried(Exception):
    """The answer is code that still does what it did before the learner came."""


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
        task: completes "Not tried yet: replace ... with"; `NotTried("…")` says it in
            words of its own.
    """

    def decorate(judge: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(judge)
        def check(answer: Any, *arguments: Any, **options: Any) -> Verdict:
            untouched = Verdict(None, f"replace ... with {task}.")
            if _untouched(answer):
                return untouched
            try:
                return Verdict(True, judge(answer, *arguments, **options))
            except NotTried as task_again:
                return Verdict(None, str(task_again)) if str(task_again) else untouched
            except Wrong as hint:
                return Verdict(False, str(hint))

        return check

    return decorate


def _untouched(answer: Any) -> bool:
    """Return whether an answer is `...`, or still has one.

    A list or a dictionary may hold it; it may be all that a function's body does.
    """
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return any(part is ... for part in answer)
    return answer is ... or (inspect.isfunction(answer) and _does_nothing(answer))


def _does_nothing(function: Callable) -> bool:
    """Return whether a function's body is `...` or `pass`, below a docstring or not."""
    steps = [
        step for step in dis.get_instructions(function) if step.opname not in _NO_WORK
    ]
    return len(steps) == 1 and steps[0].argval is None


def called(function: Callable[[Any], Any], value: Any) -> Any:
    """Return what a learner's function makes of a value.

    Raises:
        Wrong: if it stops with an exception, naming that and the value.
    """
    try:
        return function(value)
    except Exception as error:
        raise Wrong(
            f"your function stops with {type(error).__name__} for {value!r}: {error}."
        ) from error


def verdicts_of(guard: Callable[[str], bool], texts: Iterable[str]) -> dict[str, bool]:
    """Return what a learner's guard of a prompt lets through: text → True or False.

    Raises:
        Wrong: if it is no function, returns anything else, or treats all alike.
    """
    if not callable(guard):
        raise Wrong("expected a function: `def guard(text): ...`.")
    verdicts = {text: called(guard, text) for text in texts}
    for text, verdict in verdicts.items():
        if not isinstance(verdict, bool):
            raise Wrong(f"guard({text!r}) returns {verdict!r}: return True or False.")
    if all(verdicts.values()):
        raise Wrong("everything gets through, also two lines instead of one word.")
    if not any(verdicts.values()):
        raise Wrong("nothing gets through: an honest user may still ask for a duck.")
    return verdicts


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
