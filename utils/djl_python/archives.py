"""Looks through a model.tar.gz before anything of it is unpacked.

The table of its members tells what unpacking would do: write outside of its folder,
follow a link, make a device, fill the disk. A member's size counts before its bytes
are read, so that an archive of zeros is refused at once.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from .layout import STORE_NAME, Finding, LoadError

GZIP_MAGIC = b"\x1f\x8b"
# Weights shrink to a half at best, zeros to a thousandth. What is small may be either.
# These limits are this project's own; AWS names none for what an archive unpacks to.
MOST_TIMES_AS_LARGE = 20
ALWAYS_ALLOWED = 256 * 2**20  # bytes
SHARE_OF_FREE_DISK = 0.9
MOST_MEMBERS = 100_000
DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)


class _TooMuch(Exception):
    """A stream unzips to more than is allowed."""


class _Counted:
    """Reads what a stream unzips to, up to a limit: a header may be a bomb, too."""

    def __init__(self, source: IO[bytes], limit: int):
        self._unzipped, self._limit = gzip.GzipFile(fileobj=source), limit
        self._read = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        data = self._unzipped.read(size)
        self._read += len(data)
        if self._read > self._limit:
            raise _TooMuch
        return data


def member_faults(
    source: IO[bytes],
    name: str,
    packed: int,
    seen: list[tarfile.TarInfo] | None = None,
) -> Iterator[Finding]:
    """Find why a gzipped tar must not be unpacked, without keeping any of it.

    Args:
        source: yields the archive's bytes once.
        name: of the archive.
        packed: how many bytes there are.
        seen: takes the members up to the fault that ends the search, if any.

    Raises:
        OSError, EOFError, tarfile.TarError, zlib.error: those of `DAMAGED`, if it is
            no whole gzipped tar.
    """
    limit = most_unpacked(packed)
    total = 0
    try:
        with tarfile.open(fileobj=_Counted(source, limit), mode="r|") as tar:
            for number, member in enumerate(tar, 1):
                total += member.size
                if total > limit:
                    raise _TooMuch
                if number > MOST_MEMBERS:
                    yield Finding(
                        name,
                        f"holds more than {MOST_MEMBERS:,} files",
                        "Pack what the model needs only",
                    )
                    return
                if seen is not None:
                    seen.append(member)
                yield from _leaving(member)
    except _TooMuch:
        yield _too_large(name, packed, limit)


def archive_faults(
    archive: Path, seen: list[tarfile.TarInfo] | None = None
) -> Iterator[Finding]:
    """Find why an archive must not be unpacked, or cannot be.

    Args:
        archive: the file.
        seen: takes the members up to the fault that ends the search, if any.
    """
    try:
        with archive.open("rb") as source:
            packed = archive.stat().st_size
            yield from member_faults(source, archive.name, packed, seen)
    except DAMAGED as problem:
        yield Finding(
            archive.name,
            _instead_of_an_archive(archive, problem),
            "Pack it with `tar -C artifact -czf model.tar.gz .`",
        )


def most_unpacked(packed: int) -> int:
    """Return how many bytes an archive of `packed` bytes may unpack to."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    allowed = max(ALWAYS_ALLOWED, MOST_TIMES_AS_LARGE * packed)
    return int(min(allowed, SHARE_OF_FREE_DISK * free))


def _too_large(name: str, packed: int, limit: int) -> Finding:
    return Finding(
        name,
        f"its {packed:,} bytes would unpack to more than {limit:,}, the limit here: "
        f"{MOST_TIMES_AS_LARGE} times the archive, {ALWAYS_ALLOWED // 2**20} MiB for a "
        f"small one, and {SHARE_OF_FREE_DISK:.0%} of the free disk at most",
        "Leave out what is no model, or make room on the disk",
    )


def _leaving(member: tarfile.TarInfo) -> Iterator[Finding]:
    """Find a member that is no plain file or folder inside the archive."""
    name = PurePosixPath(member.name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        yield Finding(
            member.name,
            "the path leaves the archive",
            "Pack the folder's content with relative names",
        )
    elif member.issym() or member.islnk():
        yield Finding(
            member.name,
            f"is a link to {member.linkname}, which the container does not have",
            "Pack the file itself (tar -h follows links)",
        )
    elif not (member.isfile() or member.isdir()):
        yield Finding(member.name, "is neither file nor folder", "Leave it out")


def _instead_of_an_archive(path: Path, problem: Exception) -> str:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"PK":
        return "is a zip archive, which SageMaker does not unpack"
    if magic[:2] == GZIP_MAGIC:
        return f"is no gzipped tar: cut off or damaged ({problem})"
    if not magic:
        return "is no gzipped tar: the file is empty"
    if tarfile.is_tarfile(path):
        return "is a tar that is not gzipped"
    return f"is no gzipped tar ({problem})"


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a model.tar.gz into `target`/model, as SageMaker does.

    Returns:
        the folder.

    Raises:
        LoadError: if the file is no gzipped tar, or must not be unpacked: then nothing
            of it is written.
    """
    for fault in archive_faults(archive):
        raise LoadError(fault)
    store = target / STORE_NAME
    store.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(store, filter="data")
    except DAMAGED as error:
        shutil.rmtree(store, ignore_errors=True)
        finding = Finding(
            archive.name, f"could not be unpacked ({error})", "Pack it again"
        )
        raise LoadError(finding) from error
    return store
