"""Where people keep a course: odd folders, terminals that lack letters, no home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from utils.course import ROOT
from utils.run import key_figure_of

# Spaces, letters beyond ASCII in two scripts, and what a shell or a URL would read.
ODD = "Kurs für alle (2) – 日本 100%#"
PARTS = ("notebooks", "utils", "data")
FILES = ("pyproject.toml", "requirements.txt")
EXPERIMENT = "experiments/05_statistics"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The course in a folder with an odd name."""
    folder = tmp_path_factory.mktemp("places") / ODD
    folder.mkdir()
    without_caches = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=without_caches)
    for name in FILES:
        shutil.copy2(ROOT / name, folder)
    return folder


def unfriendly(folder: Path) -> dict[str, str]:
    """An environment in which nothing is as on the author's machine."""
    environ = dict(os.environ)
    for name in ("COURSE_BUILD", "PYTHONUTF8", "LANG", "LC_ALL", "LC_CTYPE"):
        environ.pop(name, None)
    return environ | {
        "PYTHONPATH": str(folder),
        "PYTHONIOENCODING": "ascii",
        # Nobody may make a folder here, not even root.
        "HOME": "/sys/kernel/home-of-nobody",
    }


def in_it(folder: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=unfriendly(folder),
        capture_output=True,
        timeout=900,
    )


def test_a_notebook_runs_in_an_odd_folder_of_an_account_without_a_home(
    moved: Path,
) -> None:
    done = in_it(moved, "utils.run", EXPERIMENT)
    said = (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
    assert done.returncode == 0, said
    assert "Traceback" not in said
    written = moved / "build" / "run" / f"{EXPERIMENT}.ipynb"
    executed = nbformat.read(written, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert key_figure_of(executed)
    assert written.with_suffix(".html").stat().st_size > 100_000
    # What the terminal has no letter for is shown as its number.
    assert rb"\xb7" in done.stdout


def test_a_file_with_an_odd_name_is_checked_for_an_ascii_terminal(moved: Path) -> None:
    file = moved / "Fragen & Antworten (für alle) 日本.csv"
    file.write_text(
        "question,answer\n"
        "Wie groß ist das Paket?,Fünf Kilogramm.\n"
        "どこですか,東京です\n",
        encoding="utf-8",
    )
    done = in_it(moved, "utils.dataset", "check", file.name)
    said = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode in (0, 1), said
    assert "Traceback" not in said
    assert "2 pairs of question and answer" in said
    file.rename(file.with_suffix(".csv.old"))
    done = in_it(moved, "utils.dataset", "check", file.name)
    assert done.returncode == 2
    said = (done.stdout + done.stderr).decode("ascii")
    assert r"(f\xfcr alle) \u65e5\u672c.csv" in said


@pytest.mark.parametrize(
    "name", ["run", "models", "dataset", "deployment", "classroom"]
)
def test_help_can_be_read_in_an_ascii_terminal(moved: Path, name: str) -> None:
    done = in_it(moved, f"utils.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert b"usage:" in done.stdout
