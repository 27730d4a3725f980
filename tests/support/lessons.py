"""Runs lessons as a learner does, and reads what they claimed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

VERDICT = re.compile(r"(✓|✗ did not hold here:) (.+)")


def run_lessons(build: Path, *numbers: str, **environ: str) -> Path:
    """Execute lessons; returns the folder they wrote to.

    Args:
        build: the folder; the executed notebooks lie in its folder `run`.
        numbers: of the lessons, such as "03".
        environ: environment variables beside the caller's.
    """
    done = subprocess.run(
        [sys.executable, "-m", "utils.run", *numbers],
        env={**os.environ, "COURSE_BUILD": str(build), **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return build


def claims_of(path: Path) -> dict[str, bool]:
    """What an executed notebook claims, and whether it held.

    A sentence that is claimed more than once holds if one of them does.
    """
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    held: dict[str, bool] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "display_data":
                text = output.data.get("text/plain", "")
                if found := VERDICT.fullmatch(text):
                    verdict, sentence = found.groups()
                    held[sentence] = verdict == "✓" or held.get(sentence, False)
    return held
