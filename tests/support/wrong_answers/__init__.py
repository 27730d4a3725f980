"""Mistakes planted in the exercises, each with the hint that it must get.

Each lesson has a file of its own, `lesson_01.py` and so on, and each experiment, such
as `experiment_04_rates.py`. Its `WRONG_ANSWERS` maps the name of a check to pairs: code
that assigns a wrong answer, and a regular expression that the hint must match. Add at
least two for each new exercise.

The code runs where the exercise stands, with all that the notebook has defined so far.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from utils.run import is_experiment


def module_of(path: Path) -> str:
    """The name of the file with a notebook's mistakes, and of that with its checks."""
    return (
        f"experiment_{path.stem}" if is_experiment(path) else f"lesson_{path.stem[:2]}"
    )


def wrong_answers(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The planted mistakes of a notebook, by the name of the check function."""
    return import_module(f"{__name__}.{module_of(path)}").WRONG_ANSWERS
