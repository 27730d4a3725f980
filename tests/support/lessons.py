"""Runs lessons as a learner does, and reads what they claimed.

Tests run lessons 01 to 05 where nothing was learned: there every claim must fail, but
those whose cell has a tag that says what they do not need:

claim-needs-no-skill: in 01 to 03 and experiments; random weights have it as well.
claim-needs-no-training: in 04 and 05; an adapter of random weights does, too.
claim-needs-no-facts: in 04 and 05; it needs training, if only on shuffled answers.

The tag speaks of all claims of its cell; `claim-2-needs-no-skill` of the second alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

VERDICT = re.compile(r"(✓|✗ did not hold here[^:]*:) (.+)")
CLAIM_TAG = re.compile(r"claim(?:-([1-9]))?-needs-no-(skill|training|facts)")


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
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return build


def claims_in(cell: nbformat.NotebookNode) -> list[tuple[str, bool]]:
    """The claims of an executed cell in their order, and whether each held."""
    texts = [
        output.data.get("text/plain", "")
        for output in cell.get("outputs", [])
        if output.output_type == "display_data"
    ]
    verdicts = [found.groups() for text in texts if (found := VERDICT.fullmatch(text))]
    return [(sentence, mark == "✓") for mark, sentence in verdicts]


def claims_of(path: Path) -> dict[str, bool]:
    """What an executed notebook claims, and whether it held.

    A sentence that is claimed more than once holds if one of them does.
    """
    held: dict[str, bool] = {}
    for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells:
        for sentence, holds in claims_in(cell):
            held[sentence] = holds or held.get(sentence, False)
    return held


def claims_without(path: Path, *needs: str) -> set[str]:
    """The claims of an executed notebook that are tagged as not in need of something.

    Args:
        path: of the notebook.
        needs: "skill", "training" or "facts".
    """
    tagged = set()
    for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells:
        sentences = [sentence for sentence, _ in claims_in(cell)]
        for tag in cell.metadata.get("tags", []):
            found = CLAIM_TAG.fullmatch(tag)
            if found and found[2] in needs:
                number = int(found[1] or 0)
                tagged.update(sentences[number - 1 : number] if number else sentences)
    return tagged
