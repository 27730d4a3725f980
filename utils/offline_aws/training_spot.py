"""Rehearsed interruptions of spot training: when a job's machine is taken away.

COURSE_SPOT names them, for every job with EnableManagedSpotTraining: `5` interrupts a
job once, five seconds after its script has started; `5,3` also a second time, three
seconds after it has started anew; `checkpoint` waits until a checkpoint has reached S3.
It is read when a job starts, as COURSE_QUOTAS is, so that a notebook can set it between
two cells. Without it no job is interrupted.

An interruption is a SIGKILL here, without a warning; AWS promises none either.
"""

from __future__ import annotations

import os
import re

from utils.offline_aws.errors import invalid

VARIABLE = "COURSE_SPOT"
CHECKPOINT = "checkpoint"
SECONDS = re.compile(r"\d+(\.\d+)?")
# Of the on-demand price. Ours: AWS says "up to 90%" off, and the price of the day is in
# no list that is here.
SHARE_OF_PRICE = 0.3
CAPACITY_WAIT = 1.0  # seconds until there is a machine again


def read_interruptions() -> list[float | str]:
    """Return when a job is interrupted: seconds, or CHECKPOINT.

    Raises:
        AwsFault: a ValidationException that says what is wrong with the variable.
    """
    found: list[float | str] = []
    for part in os.environ.get(VARIABLE, "").split(","):
        part = part.strip()
        if part == CHECKPOINT:
            found.append(part)
        elif SECONDS.fullmatch(part):
            found.append(float(part))
        elif part:
            raise invalid(
                f"{VARIABLE} holds {part!r}: expected seconds, or {CHECKPOINT!r}, "
                "several of them with commas between, such as 5 or checkpoint,3."
            )
    return found
