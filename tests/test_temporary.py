"""What is temporary goes with its owner, and with the next run if that was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from utils import temporary
from utils.files import replace_folder, write_file
from utils.temporary import (
    PREFIX,
    clear_dead,
    temporary_file,
    temporary_folder,
)

OWNER = """
import sys, time
from pathlib import Path
from utils.temporary import temporary_file, temporary_folder
place = Path(sys.argv[1])
with temporary_folder(place) as folder, temporary_file(place, ".it.") as file:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("large")
    print(folder.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that holds a folder and a file in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    process.folder = tmp_path / process.stdout.readline().strip()
    yield process
    process.kill()
    process.communicate()


def test_it_lasts_until_the_block_ends_however_it_ends(tmp_path) -> None:
    with pytest.raises(KeyError), temporary_folder(tmp_path) as folder:
        (folder / "a").touch()
        raise KeyError
    with temporary_file(tmp_path, ".it.") as file:
        file.rename(tmp_path / "it")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_what_a_live_run_owns_stays_and_what_a_dead_one_left_goes(
    owner, tmp_path
) -> None:
    before = set(tmp_path.iterdir())
    assert clear_dead(tmp_path) == [] == clear_dead(tmp_path, ".it.")
    with temporary_folder(tmp_path):
        pass
    assert set(tmp_path.iterdir()) == before
    assert (owner.folder / "model" / "weights").read_text() == "large"
    owner.kill()
    owner.wait()
    with temporary_folder(tmp_path) as folder, temporary_file(tmp_path, ".it.") as file:
        assert not owner.folder.exists()
        assert {path.name for path in tmp_path.iterdir()} == {
            folder.name,
            f"{folder.name}.lock",
            file.name,
        }
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_in_the_folder_is_touched(tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    place = tmp_path / "place"
    place.mkdir()
    for name in (f"{PREFIX}abcdefgh", f"{PREFIX}abc.lock", "other.lock", "x"):
        (place / name).mkdir()
    (place / f"{PREFIX}notes.txt").touch()
    (place / f"{PREFIX}12345678.lock").symlink_to(elsewhere / "mine")
    (place / f"{PREFIX}abcdefg1.lock").touch()  # dead, but its folder leads elsewhere
    (place / f"{PREFIX}abcdefg1").symlink_to(elsewhere)
    before = set(place.iterdir())
    assert clear_dead(place) == []
    assert set(place.iterdir()) == before
    assert (elsewhere / "mine").exists()


def test_without_locks_nothing_is_taken_for_dead(owner, tmp_path, monkeypatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError("no locks here")

    owner.kill()
    owner.wait()
    monkeypatch.setattr(temporary.fcntl, "flock", refuse)
    assert clear_dead(tmp_path) == []
    with temporary_folder(tmp_path) as folder:
        assert folder.is_dir() and owner.folder.is_dir()


def test_one_taken_for_dead_before_it_was_locked_is_made_anew(
    tmp_path, monkeypatch
) -> None:
    make = tempfile.mkstemp
    made = []

    def hurried(*given):
        handle, name = make(*given)
        made.append(name)
        if len(made) == 1:
            assert len(clear_dead(tmp_path)) == 1
        return handle, name

    monkeypatch.setattr(temporary.tempfile, "mkstemp", hurried)
    with temporary_folder(tmp_path) as folder:
        assert len(made) == 2
        assert made[1] == f"{folder}.lock" and Path(made[1]).exists()


WRITER = """
import sys, time
from pathlib import Path
from utils.files import replace_folder, write_file

def write(path):
    (path / "half" if path.is_dir() else path).write_text("half")
    print(path.name, flush=True)
    time.sleep(60)

{"file": write_file, "folder": replace_folder}[sys.argv[2]](Path(sys.argv[1]), write)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_had_begun_goes_with_the_next_write(
    tmp_path, kind
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "it"), kind],
        stdout=subprocess.PIPE,
        text=True,
    )
    begun = tmp_path / writer.stdout.readline().strip()
    writer.kill()
    writer.communicate()
    assert begun.exists()
    if kind == "file":
        write_file(tmp_path / "it", lambda path: path.write_text("whole"))
    else:
        replace_folder(tmp_path / "it", lambda path: (path / "it").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
