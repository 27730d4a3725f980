"""What an archive would do, told before anything of it is unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from utils.deployment import artifact
from utils.djl_python import archives
from utils.djl_python.archives import unpack
from utils.djl_python.layout import LoadError


def packed(path: Path, members: dict[str, bytes | dict], level: int = 9) -> Path:
    """Write an archive: of each name the content, or the attributes of its header."""
    with tarfile.open(path, "w:gz", compresslevel=level) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            member.size = len(data)
            for key, value in ({} if data else content or {}).items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return path


KINDS = {
    "link": {"evil": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}},
    "link within": {"evil": {"type": tarfile.SYMTYPE, "linkname": "model.py"}},
    "hard link": {"evil": {"type": tarfile.LNKTYPE, "linkname": "../x"}},
    "device": {"evil": {"type": tarfile.CHRTYPE}},
    "pipe": {"evil": {"type": tarfile.FIFOTYPE}},
    "path up": {"a/../../evil": b"x"},
    "absolute path": {"/evil": b"x"},
    "path of Windows": {"..\\evil": b"x"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_of_an_archive_that_breaks_out(kind, tmp_path) -> None:
    archive = packed(tmp_path / "model.tar.gz", {"model.py": b"x = 1\n", **KINDS[kind]})
    with pytest.raises(LoadError, match="evil"):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    report = artifact.validate(archive)
    assert not report.ok and "evil" in report.errors[0].where
    assert "not checked: what is inside" in str(report)


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    archive = packed(tmp_path / "model.tar.gz", {"zeros.bin": bytes(3_000_000)})
    (found,) = artifact.validate(archive).errors
    assert "would unpack to more than 100,000, the limit here: 20 times" in found.what
    with pytest.raises(LoadError, match="the limit here"):
        unpack(archive, tmp_path / "target")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])  # nothing behind the header is read
    assert "the limit here" in str(artifact.validate(archive))


def test_a_bomb_in_a_header_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    archive = tmp_path / "model.tar.gz"
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 3_000_000  # its bytes go to memory
    with gzip.open(archive, "wb") as file:
        file.write(header.tobuf() + bytes(header.size))
    (found,) = archives.archive_faults(archive)
    assert "would unpack to more than 100,000" in found.what


def test_many_small_files_and_too_many(tmp_path, monkeypatch) -> None:
    files = {f"{number}.txt": b"x" for number in range(30)}
    archive = packed(tmp_path / "model.tar.gz", files)
    assert list(archives.archive_faults(archive)) == []
    monkeypatch.setattr(archives, "MOST_MEMBERS", 20)
    (found,) = archives.archive_faults(archive)
    assert "holds more than 20 files" in found.what
