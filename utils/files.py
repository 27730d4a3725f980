"""Write files and folders whole or not at all.

One promise for everything that the course stores: whoever reads a name finds what stood
there before or all of what was written, also when the program is killed in between
(`kill -9`, a lost kernel) or the disk is full. What such a program had begun to write
is removed the next time that something is written under that name. Against a loss of
power nothing is promised: that would need `fsync`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.course import CourseError
from utils.temporary import temporary_file, temporary_folder

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
AT_THE_WORKING_FOLDER = -100  # AT_FDCWD of Linux's <fcntl.h>
# RENAME_EXCHANGE of Linux's <linux/fs.h>, RENAME_SWAP of macOS's <stdio.h>
EXCHANGE = 2


class FileError(CourseError):
    """Something could not be stored; what was there is unchanged."""


def write_text(file: str | Path, text: str) -> Path:
    """Write a text file as UTF-8, whole or not at all; its folder is made if need be.

    Raises:
        FileError: if the disk is full or may not be written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)

    return write_file(file, write)


def write_json(file: str | Path, content: Any) -> Path:
    """Write JSON with an indent of two spaces, whole or not at all.

    Raises:
        FileError: if the disk is full or may not be written.
        TypeError: if `content` holds something that JSON has no form for.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return write_text(file, text + "\n")


def write_file(file: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let `write(temporary file)` write a file, then put it in the place of `file`.

    Args:
        file: where it belongs; its folder is made if need be.
        write: gets the path of an empty file beside it.

    Raises:
        FileError: if the disk is full or may not be written.
    """
    file = Path(file)
    with _explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(file.parent, f".{file.name}.") as temporary:
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(file)
    return file


def replace_folder(folder: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let `write(temporary folder)` fill a folder, then put it in `folder`'s place.

    Linux and macOS exchange two folders in one step. On a file system that cannot, the
    old folder is set aside first, and a kill between these two steps leaves it in a
    folder `.NAME-…` beside the place where it was.

    First used in lesson 03, section 10.

    Args:
        folder: where it belongs; the folder around it is made if need be.
        write: gets the path of an empty folder beside it.

    Raises:
        FileError: if the disk is full or may not be written.
    """
    folder = Path(folder)
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, f".{folder.name}-") as new:
            write(new)
            new.chmod(0o755)
            if not folder.exists():
                new.rename(folder)
            elif not _exchange(new, folder):
                aside = tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
                folder.rename(Path(aside) / "old")
                new.rename(folder)
                shutil.rmtree(aside)
    return folder


def is_disk_full(error: Exception) -> bool:
    """Return whether writing failed for want of space.

    torch and safetensors have errors of their own for that, told by their text alone.
    """
    if isinstance(error, OSError):
        return error.errno in DISK_ERRORS
    texts = ("No space left", "File too large", "file write failed", "inline_container")
    return any(text in str(error) for text in texts)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CourseError):
            raise
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"{path.name} could not be written ({reason}): free some space or check "
            f"who may write to {path.parent.name}/. What was there is unchanged."
        ) from error


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return whether this system can do that."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, ctypes.c_uint(EXCHANGE))
    elif sys.platform == "linux" and hasattr(library, "renameat2"):
        here = AT_THE_WORKING_FOLDER
        failed = library.renameat2(
            here, names[0], here, names[1], ctypes.c_uint(EXCHANGE)
        )
    else:
        return False
    return not failed
