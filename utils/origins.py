"""Which model and data the files of the build folder were made from.

A learner changes the file, or COURSE_MODEL, and runs a later lesson again: without a
note, it would go on with what was made from the old one. `course.preflight` compares.
"""

from __future__ import annotations

import json
from pathlib import Path

from utils.course import ORIGINS, RunConfig, origin
from utils.files import write_json


def note_origin(config: RunConfig, name: str) -> Path:
    """Note what something in the build folder was made from, once it is there.

    First used in lesson 03, section 10.

    Args:
        config: of the run that made it.
        name: of the file or folder in the build folder, such as "dataset".

    Returns:
        The file with the notes, one for each name.

    Raises:
        FileError: if the disk is full or may not be written.
    """
    file = config.build / ORIGINS
    try:
        notes = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        notes = {}
    if not isinstance(notes, dict):
        notes = {}
    return write_json(file, notes | {name: origin(config)})
