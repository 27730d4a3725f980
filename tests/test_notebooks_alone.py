"""Strict nbval, and exercises that are proven, in notebooks that stand alone.

The rules are those of test_notebooks.py; here they run beside the road from file to
endpoint, on a core of their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import test_notebooks as rules
from test_notebooks import shared  # noqa: F401 - a fixture

from utils.run import name_of

ALONE = [path for path in rules.NOTEBOOKS if path not in rules.ROAD]
each_alone = pytest.mark.parametrize("path", ALONE, ids=name_of)


def test_every_notebook_is_run_once() -> None:
    assert {path.name[:2] for path in rules.ROAD} == {
        "03",
        "04",
        "05",
        "06",
        "07",
        "08",
        "09",
    }
    assert not any(path.parent.name == "experiments" for path in rules.ROAD)
    assert sorted([*ALONE, *rules.ROAD]) == sorted(rules.NOTEBOOKS)


@each_alone
def test_strict_nbval_and_exercises(path: Path, shared: Path) -> None:  # noqa: F811
    rules.test_strict_nbval_and_exercises(path, shared)


@pytest.mark.slow
@each_alone
def test_strict_nbval_fails_when_an_output_is_altered(
    path: Path,
    shared: Path,  # noqa: F811
) -> None:
    rules.test_strict_nbval_fails_when_an_output_is_altered(path, shared)
