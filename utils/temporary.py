"""Files and folders for a while, which the next run clears if this one is killed.

What is temporary has an owner, and `kill -9` lets the owner tidy up nothing. So each
owner holds a lock (flock(2)) for as long as it lives: the kernel gives it back however
the process ends. A lock that can be had belongs to the dead. A process id would not
tell: it is given out again, and another container that shares the folder counts its
own. On a disk without such locks nothing is ever taken for dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "course-served-"  # of everything in the temporary folder
LOCK = ".lock"  # beside a folder
PART = ".part"  # of a file, which is its own lock
RANDOM = "?" * 8  # what tempfile puts between prefix and suffix


@contextlib.contextmanager
def temporary_folder(
    place: str | Path | None = None, prefix: str = PREFIX
) -> Iterator[Path]:
    """Make a folder that lasts until the block ends, and clear those of dead runs.

    Args:
        place: where; the system's temporary folder by default.
        prefix: what its name begins with, which names no other kind of thing there.
    """
    place = Path(place or tempfile.gettempdir())
    clear_dead(place, prefix)
    with _locked(place, prefix, LOCK) as (_, lock):
        folder = lock.with_name(lock.name.removesuffix(LOCK))
        try:
            folder.mkdir(0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def temporary_file(place: Path, prefix: str) -> Iterator[Path]:
    """Make an empty file that lasts until the block ends, or until it is renamed."""
    clear_dead(place, prefix)
    with _locked(place, prefix, PART) as (_, file):
        yield file


def clear_dead(place: str | Path | None = None, prefix: str = PREFIX) -> list[Path]:
    """Remove what dead runs of this user have left, and nothing else.

    Returns:
        What was removed.
    """
    place = Path(place or tempfile.gettempdir())
    removed = []
    for suffix in (LOCK, PART):
        for path in _named(place, prefix, suffix):
            with _lock_of_the_dead(path) as dead:
                if not dead:
                    continue
                if suffix == LOCK:
                    folder = path.with_name(path.name.removesuffix(LOCK))
                    shutil.rmtree(folder, ignore_errors=True)
                    if os.path.lexists(folder):
                        continue  # not ours to remove: the lock says whose it was
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _named(place: Path, prefix: str, suffix: str) -> list[Path]:
    """List what has a name of that kind, hidden or not."""
    length = len(prefix) + len(RANDOM) + len(suffix)
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    return [
        place / name
        for name in names
        if name.startswith(prefix) and name.endswith(suffix) and len(name) == length
    ]


@contextlib.contextmanager
def _locked(place: Path, prefix: str, suffix: str) -> Iterator[tuple[int, Path]]:
    """Make a file and hold its lock; it is removed again unless it was renamed away."""
    while True:
        handle, name = tempfile.mkstemp(suffix, prefix, place)
        path = Path(name)
        with contextlib.suppress(OSError):  # no locks on this disk
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(path, handle):
            break
        os.close(handle)  # taken for dead in the moment before it was locked
    try:
        yield handle, path
    finally:
        path.unlink(missing_ok=True)  # also what was put in its place
        os.close(handle)


@contextlib.contextmanager
def _lock_of_the_dead(path: Path) -> Iterator[bool]:
    """Hold a lock that nobody holds, if it is this user's; say whether it is held."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        found = os.fstat(handle)
        mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            mine = False
        yield mine and _is(path, handle)
    finally:
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    """Return whether a path still names the file that is open."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(handle))
