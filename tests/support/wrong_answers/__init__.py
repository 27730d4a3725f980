"""Mistakes planted in the exercises, each with the hint that it must get.

Each lesson has a file of its own, `lesson_01.py` and so on. Its `WRONG_ANSWERS` maps
the name of a check function to pairs: code that assigns a wrong answer, and a regular
expression that the hint must match. Add at least two for each new exercise.

The code runs where the exercise stands, with all that the notebook has defined so far.
"""

from __future__ import annotations

from importlib import import_module


def wrong_answers(lesson: str) -> dict[str, list[tuple[str, str]]]:
    """The planted mistakes of a lesson, by the name of the check function.

    Args:
        lesson: number of the lesson, such as "03".
    """
    return import_module(f"{__name__}.lesson_{lesson}").WRONG_ANSWERS
