"""utils.files: whole or not at all, also when the writer is killed or the disk full."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils import files
from utils.files import FileError, replace_folder, write_file, write_json, write_text

KILLS = 25
# Writes one generation after the other: each file holds its generation many times over.
WRITER = """
import sys
from pathlib import Path
from utils.files import replace_folder, write_json, write_text

place = Path(sys.argv[1])

def fill(folder, generation):
    for name in "abcd":
        (folder / name).write_text(f"{generation}\\n" * 2000)

generation = int(sys.argv[2])
while True:
    generation += 1
    write_text(place / "text", f"{generation}\\n" * 20_000)
    write_json(place / "json", [generation] * 20_000)
    replace_folder(place / "folder", lambda folder: fill(folder, generation))
    print(generation, flush=True)
"""


def generation_of(place: Path) -> int:
    """Return the generation in a place where everything is whole; fail if it is not."""
    text = (place / "text").read_text().split()
    assert len(text) == 20_000 and len(set(text)) == 1
    content = json.loads((place / "json").read_text())
    assert len(content) == 20_000 and len(set(content)) == 1
    parts = {
        path.name: path.read_text().split() for path in (place / "folder").iterdir()
    }
    assert sorted(parts) == list("abcd")
    assert {len(part) for part in parts.values()} == {2000}
    assert len({line for part in parts.values() for line in part}) == 1
    return int(parts["a"][0])


def test_kill_9_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    generator, generation = random.Random(0), 0
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(generation)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline()
        time.sleep(generator.uniform(0, 0.05))
        writer.kill()
        writer.communicate()
        found = generation_of(tmp_path)
        assert found > generation
        generation = found


@pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"), reason="needs an exchange of two folders"
)
def test_the_folder_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    if not files._exchange(one, other):
        pytest.skip("this file system cannot exchange two folders in one step")
    assert (one / "name").read_text() == "other"
    assert (other / "name").read_text() == "one"


def test_without_an_exchange_the_old_folder_is_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for name in ("old", "new"):
        replace_folder(
            tmp_path / "folder", lambda folder, name=name: (folder / name).touch()
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def halves(target: Path) -> None:
    if target.is_dir():
        target = target / "half"
    target.write_text("half")
    full_disk()


WRITES = {
    "text": (files.os, lambda place: write_text(place / "it", "new")),
    "json": (files.os, lambda place: write_json(place / "it", {"a": 1})),
    "file": (None, lambda place: write_file(place / "it", halves)),
    "folder": (None, lambda place: replace_folder(place / "it", halves)),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_full_disk_leaves_what_was_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "build"
    old = place / "it" / "old" if kind == "folder" else place / "it"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    if kind in ("text", "json"):
        monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(FileError, match=r"it could not.*No space.*build/.*unchanged"):
        WRITES[kind][1](place)
    monkeypatch.undo()
    assert old.read_text() == "old"
    names = ["it", "old"] if kind == "folder" else ["it"]
    assert sorted(path.name for path in place.rglob("*")) == names


@pytest.mark.parametrize("write", [write_file, replace_folder])
def test_other_errors_pass_through_and_leave_nothing(write, tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write(tmp_path / "it", fail)
    assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "it", {"ä": [1]})
    with pytest.raises(TypeError, match="set"):
        write_json(tmp_path / "it", {"a": {1, 2}})
    assert (tmp_path / "it").read_text("utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "it", "a\r\nb")
    assert (tmp_path / "deep" / "it").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "deep" / "it").read_bytes() == b"a\r\nb"
    replace_folder(tmp_path / "folder", lambda folder: None)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileError, match=r"it could not be written .*who may write"):
        write_text(tmp_path / "file" / "it", "text")
    shutil.rmtree(tmp_path)
