"""Looks through an archive before anything of it is unpacked.

The list of its members tells what unpacking would do: write outside of its folder,
follow a link, make a device, fill the disk. Whoever uploads such an archive to this
account gets a failed endpoint, and nothing is written.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import IO

# Weights shrink to a half at best, zeros to a thousandth. What is small may be either.
MOST_TIMES_AS_LARGE = 20
ALWAYS_ALLOWED = 256 * 1024**2
SHARE_OF_FREE_DISK = 0.9
MOST_MEMBERS = 100_000


class ArchiveRefused(Exception):
    """An archive that is not unpacked; the message says what is in it."""


class _Counted:
    """Reads what a stream unzips to, up to a limit."""

    def __init__(self, source: IO[bytes], limit: int, packed: int):
        self._source, self._limit, self._packed = source, limit, packed
        self._read = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            ArchiveRefused: if they are more than allowed.
        """
        data = self._source.read(size)
        self._read += len(data)
        if self._read > self._limit:
            raise too_large(self._limit, self._packed)
        return data


def check_archive(source: IO[bytes], packed: int) -> None:
    """Look through a gzipped tar, without keeping any of it.

    What is no such archive passes: the container says so itself.

    Args:
        source: yields the archive's bytes once.
        packed: how many there are.

    Raises:
        ArchiveRefused: if it must not be unpacked.
    """
    limit = most_unpacked(packed)
    unzipped = gzip.GzipFile(fileobj=source)
    damaged = (tarfile.TarError, OSError, EOFError, zlib.error)
    with (
        contextlib.suppress(*damaged),
        tarfile.open(fileobj=_Counted(unzipped, limit, packed), mode="r|") as tar,
    ):
        check_members(tar, limit, packed)


def most_unpacked(packed: int) -> int:
    """Return how many bytes an archive may unpack to."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    allowed = max(ALWAYS_ALLOWED, MOST_TIMES_AS_LARGE * packed)
    return int(min(allowed, SHARE_OF_FREE_DISK * free))


def check_members(tar: Iterable[tarfile.TarInfo], limit: int, packed: int) -> None:
    """Check each member by its header; sizes count before their bytes are read.

    Raises:
        ArchiveRefused: at the first that is not allowed.
    """
    total = 0
    for number, member in enumerate(tar, 1):
        total += member.size
        if total > limit:
            raise too_large(limit, packed)
        if number > MOST_MEMBERS:
            raise ArchiveRefused(
                f"it holds more than {MOST_MEMBERS:,} files. Pack fewer."
            )
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ArchiveRefused(
                f"{member.name!r} leads out of the model's folder. Pack it with "
                "`tar -C FOLDER -czf model.tar.gz .`."
            )
        if not (member.isfile() or member.isdir()):
            kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
            raise ArchiveRefused(
                f"{member.name!r} is {kind}. Pack files and folders only "
                "(`tar --dereference` packs what a link leads to)."
            )


def too_large(limit: int, packed: int) -> ArchiveRefused:
    """Return the refusal of what would grow beyond the limit."""
    return ArchiveRefused(
        f"its {packed:,} bytes unpack to more than {limit:,}, the limit here: "
        f"{MOST_TIMES_AS_LARGE} times the archive, {ALWAYS_ALLOWED:,} bytes for a "
        f"small one, and {SHARE_OF_FREE_DISK:.0%} of the free disk at most."
    )
