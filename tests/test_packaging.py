"""What installs the course: exact pins for every import, 3.12, Makefile, top level."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from conftest import CALLERS_ENVIRONMENT, LONGEST_FILES
from utils.course import ROOT

FOLDERS = ("utils", "tests", "notebooks")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for pattern in ("*.py", "*.ipynb")
    for path in (ROOT / folder).rglob(pattern)
    if ".ipynb_checkpoints" not in path.parts
)
# Modules that only the serving container has; utils/djl_python stands in for them.
# What lies in a container or in a job's source folder, beside what imports it.
CONTAINER_ONLY = {"djl_python", "train_lora", "entry_checkpoints"}
FIRST_PARTY = {"utils", "support"}


def requirement_lines() -> list[str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def pins() -> list[Requirement]:
    return [Requirement(line) for line in requirement_lines() if line != "-e ."]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def code_of(path: Path) -> str:
    """Return a file's Python code; a notebook's cells one below the other."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(cells)


def imported(code: str) -> set[str]:
    """Return the top-level names that a piece of code imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_every_pin_is_exact_and_the_course_comes_last() -> None:
    assert requirement_lines()[-1] == "-e ."
    for pin in pins():
        specifiers = list(pin.specifier)
        assert len(specifiers) == 1, f"{pin}: one exact version, please"
        assert specifiers[0].operator == "==", f"{pin} is not exact"
        assert "*" not in specifiers[0].version, f"{pin} is not exact"
    names = [normalised(pin.name) for pin in pins()]
    assert len(set(names)) == len(names)


def test_installed_versions_are_the_pinned_ones() -> None:
    for pin in pins():
        installed = metadata.version(pin.name).partition("+")[0]
        assert installed in pin.specifier, f"{pin}, but {installed} is installed"


def test_every_import_is_declared() -> None:
    providers = metadata.packages_distributions()
    declared = {normalised(pin.name) for pin in pins()}
    missing: dict[str, list[str]] = {}
    for path in SOURCES:
        if "data" in path.relative_to(ROOT).parts[1:]:
            continue
        siblings = path.parent.iterdir()
        local = {one.stem for one in siblings if one.is_dir() or one.suffix == ".py"}
        for name in imported(code_of(path)) - FIRST_PARTY - CONTAINER_ONLY - local:
            if name in sys.stdlib_module_names:
                continue
            packages = {normalised(found) for found in providers.get(name, [name])}
            if not packages & declared:
                missing.setdefault(name, []).append(path.name)
    assert not missing, f"not in requirements.txt: {missing}"


def test_nothing_is_declared_for_nobody() -> None:
    used = set().union(*(imported(code_of(path)) for path in SOURCES))
    commands = (ROOT / "Makefile").read_text() + "pytest pytest-xdist nbval"
    providers = metadata.packages_distributions()
    packages = {normalised(p) for name in used for p in providers.get(name, [])}
    # Used by others: peft and transformers load them, sagemaker asks for any s3fs,
    # flask is moto's server, ruff is the linter that pyproject.toml configures, and
    # sagemaker the umbrella of the SDK, whose modules (sagemaker.core, …) come in
    # packages of their own.
    indirect = {"accelerate", "bitsandbytes", "s3fs", "ruff", "sagemaker"}
    indirect |= {"flask", "flask-cors"}
    # parliament imports a part of setuptools that later versions lack.
    indirect |= {"setuptools"}
    # A program of its own, which utils/web/runtime_api.py starts.
    indirect |= {"awslambdaric"}
    # Sphinx loads them by the names that utils/site/conf.py gives.
    indirect |= {"myst-nb", "sphinx-book-theme"}
    for pin in pins():
        name = normalised(pin.name)
        assert name in packages | indirect or name in commands, f"who uses {name}?"


@pytest.mark.parametrize("version", [(3, 11), (3, 12)], ids=["3.11", "3.12"])
def test_code_compiles(version: tuple[int, int]) -> None:
    for path in SOURCES:
        ast.parse(code_of(path), filename=str(path), feature_version=version)


def test_pins_fit_together_on_312() -> None:
    """Compare the pins with each other's metadata, as a resolver on 3.12 would."""
    versions = {
        normalised(pin.name): next(iter(pin.specifier)).version for pin in pins()
    }
    for pin in pins():
        found = metadata.metadata(pin.name)
        supported = SpecifierSet(found["Requires-Python"] or "")
        assert "3.12" in supported, f"{pin} does not support 3.12: {supported}"
        for extra in ["", *pin.extras]:
            python = {"python_version": "3.12", "python_full_version": "3.12.1"}
            for line in found.get_all("Requires-Dist") or []:
                needed = Requirement(line)
                name = normalised(needed.name)
                if needed.marker and not needed.marker.evaluate(
                    {**python, "extra": extra}
                ):
                    continue
                if name in versions:
                    assert versions[name] in needed.specifier, f"{pin} needs {needed}"


@pytest.mark.slow
def test_pins_resolve_on_312(tmp_path: Path) -> None:
    """Ask the index; wheels that are not in pip's cache are downloaded."""
    wanted = [line for line in requirement_lines() if line != "-e ."]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"),
            *("--disable-pip-version-check", "--ignore-installed"),
            *("--only-binary=:all:", "--python-version=3.12"),
            *("--target", str(tmp_path / "unused"), *wanted),
        ],
        env=CALLERS_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if re.search(r"NewConnectionError|ConnectTimeout|NameResolution", done.stderr):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-3000:]


# --- Makefile -------------------------------------------------------------------------

# Stands in for python3.11: makes a .venv whose python records what it is asked to do.
FAKE_PYTHON = """\
#!/bin/sh
if [ "$1" = "-c" ]; then exit 0; fi
if [ "$1" = "--version" ]; then echo "Python 3.11.0"; exit 0; fi
for folder; do :; done
rm -rf "$folder"
mkdir -p "$folder/bin"
echo venv >> calls
cat > "$folder/bin/python" <<'END'
#!/bin/sh
echo "$@" >> calls
case "$*" in
  *"check --packages"*) [ ! -e other-version ] || { rm other-version; exit 1; } ;;
  *"pip install"*) echo "$PIP_USER" > pip-user; [ ! -e pip-fails ] || exit 1 ;;
  *"utils.models fetch"*)
    echo "PIP_ARGS=$PIP_ARGS" >> calls
    [ ! -e fetch-fails ] || exit 1 ;;
esac
END
chmod +x "$folder/bin/python"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the Makefile and a python that only notes its calls."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / "fake-python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "utils" / "fetch.py").touch()
    return tmp_path


def make(checkout: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run make; return its exit code and the calls that it made."""
    calls = checkout / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["make", "PYTHON=./fake-python", *arguments],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [line for line in lines if line != "-m pip --version"]


LOOK = "-m utils.course check --packages"
FETCH = ["-m utils.models fetch all", "PIP_ARGS=--extra-index-url https://a.test"]


def test_make_installs_once(checkout: Path) -> None:
    code, calls = make(checkout, "run", "PIP_ARGS=--extra-index-url https://a.test")
    assert code == 0
    assert calls[0] == "venv"
    assert calls[1].startswith("-m pip install")
    assert "--extra-index-url https://a.test -r requirements.txt" in calls[1]
    assert calls[2:] == [*FETCH, "-m utils.run"]
    assert make(checkout, "run") == (0, ["-m utils.run"])


TARGETS = ["run", "test", "test-all", "lab", "kernel", "site", "newest"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_fetches_the_models_once(checkout: Path, target: str) -> None:
    assert "-m utils.models fetch all" in make(checkout, target)[1]
    assert "-m utils.models fetch all" not in make(checkout, target)[1]


def test_make_fetches_for_an_installation_of_an_older_course(checkout: Path) -> None:
    make(checkout, "run")
    (checkout / ".venv" / "fetched").unlink()
    assert make(checkout, "run") == (0, [*FETCH[:1], "PIP_ARGS=", "-m utils.run"])


def test_a_fetch_that_was_interrupted_goes_on_without_installing(
    checkout: Path,
) -> None:
    (checkout / "fetch-fails").touch()
    code, calls = make(checkout, "run")
    assert code != 0
    assert "-m utils.run" not in calls
    (checkout / "fetch-fails").unlink()
    code, calls = make(checkout, "run")
    assert code == 0
    assert calls == [FETCH[0], "PIP_ARGS=", "-m utils.run"]


def test_the_models_are_looked_at_again_when_their_list_changes(
    checkout: Path,
) -> None:
    make(checkout, "run")
    later = time.time() + 5
    os.utime(checkout / "utils" / "fetch.py", (later, later))
    assert make(checkout, "run")[1] == [FETCH[0], "PIP_ARGS=", "-m utils.run"]


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_make_installs_again_when_the_lists_change(checkout: Path, name: str) -> None:
    make(checkout, "test")
    later = time.time() + 5
    os.utime(checkout / name, (later, later))
    code, calls = make(checkout, "test")
    assert code == 0
    assert [call.split()[2:3] for call in calls[:1]] == [["install"]]
    assert "venv" not in calls


def test_make_install_puts_right_what_pip_changed_by_hand(checkout: Path) -> None:
    make(checkout, "install")
    (checkout / "other-version").touch()
    code, calls = make(checkout, "install")
    assert code == 0 and calls[0] == LOOK
    assert calls[1].startswith("-m pip install") and "venv" not in calls
    assert make(checkout, "install") == (0, [LOOK])


def test_make_starts_afresh_after_an_unfinished_installation(checkout: Path) -> None:
    (checkout / "pip-fails").touch()
    code, calls = make(checkout, "run")
    assert code != 0
    assert "-m utils.run" not in calls
    (checkout / "pip-fails").unlink()
    code, calls = make(checkout, "run")
    assert code == 0
    assert calls[0] == "venv"
    assert calls[-1] == "-m utils.run"


def test_the_files_that_come_first_exist() -> None:
    assert all((ROOT / "tests" / name).is_file() for name in LONGEST_FILES)


def test_make_targets(checkout: Path) -> None:
    make(checkout, "run")
    side_by_side = "-n 2 --dist loadfile --no-loadscope-reorder"
    assert make(checkout, "test")[1] == [f"-m pytest {side_by_side}"]
    assert make(checkout, "test-all")[1] == ["-m pytest -m slow or not slow"]
    assert make(checkout, "install")[1] == [LOOK]
    first = sorted((ROOT / "notebooks").glob("*.ipynb"))[0].name
    lab = "-m jupyterlab --notebook-dir=notebooks "
    lab += f"--LabApp.default_url=/lab/tree/{first}"
    assert [call.strip() for call in make(checkout, "lab")[1]] == [lab]
    as_root = make(checkout, "lab", "LAB_ARGS=--allow-root")[1]
    assert as_root == [f"{lab} --allow-root"]
    assert make(checkout, "site")[1] == ["-m utils.site"]
    assert make(checkout, "newest")[1] == ["-m utils.classroom newest"]
    assert make(checkout, "kernel")[1][0].startswith("-m ipykernel install --user")
    (checkout / "build").mkdir()
    (checkout / "utils" / "__pycache__").mkdir()
    (checkout / ".venv" / "course_models").mkdir()
    assert make(checkout, "clean") == (0, [])
    assert not (checkout / "build").exists()
    assert not (checkout / "utils" / "__pycache__").exists()
    assert (checkout / ".venv" / "course_models").exists()


def test_make_installs_into_its_environment_whatever_pip_is_set_to(
    checkout: Path, monkeypatch
) -> None:
    """PIP_USER and `user = true` in a pip.conf, before which a variable goes."""
    monkeypatch.setenv("PIP_USER", "1")
    assert make(checkout, "install")[0] == 0
    assert (checkout / "pip-user").read_text().strip() == "0"


def test_the_kernel_has_an_environment_of_its_own(tmp_path: Path) -> None:
    """Also where a place, such as Studio, has other versions in its PYTHONPATH."""
    makefile = (ROOT / "Makefile").read_text()
    assert "-m venv --clear" in makefile and "system-site-packages" not in makefile
    recipe = re.search(r"^kernel: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    command = shlex.split(recipe.replace("\\\n", ""))[1:]
    place = command.index("--user")
    command[place : place + 1] = ["--prefix", str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    folder = tmp_path / "share" / "jupyter" / "kernels" / "course"
    kernel = json.loads((folder / "kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable
    (tmp_path / "of_the_place.py").touch()
    code = "import importlib.util as u; print(u.find_spec('of_the_place'))"
    for more, seen in (({}, True), (kernel["env"], False)):
        done = subprocess.run(
            [kernel["argv"][0], "-c", code],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(tmp_path), **more},
            capture_output=True,
            text=True,
        )
        assert ("None" not in done.stdout) == seen, done


def test_make_says_which_python_it_needs(checkout: Path) -> None:
    done = subprocess.run(
        ["make", "run", "PYTHON="],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "No Python 3.11 or 3.12 found" in done.stdout


# --- the rest -------------------------------------------------------------------------


def test_ci_runs_make_test(checkout: Path) -> None:
    (checkout / ".ci").mkdir()
    script = checkout / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (checkout / "Makefile").write_text(
        "test:\n\t@echo '=== 1 failed, 2 passed in 3.00s ==='\n\t@echo more\n"
        "\t@exit 3\n"
    )
    done = subprocess.run(
        ["bash", str(script)], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    closing = done.stdout.splitlines()[-1]
    assert closing == "=== 1 failed, 2 passed in 3.00s ==="


def test_ruff_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_project_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


def test_tracked_text_names_no_other_machine() -> None:
    """Paths of the machine that the course was written on must not be in its files."""
    here = re.compile(rf"{re.escape(str(ROOT))}\b|{re.escape(str(Path.home()))}/")
    suffixes = {".py", ".ipynb", ".md", ".toml", ".txt", ".csv", ".json", ".yaml"}
    folders = [ROOT / name for name in (*FOLDERS, "data")]
    paths = [path for folder in folders for path in folder.rglob("*")]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    for path in paths:
        if path.suffix in suffixes or path.name in ("Makefile", ".gitignore"):
            found = here.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.name}: {found}"
