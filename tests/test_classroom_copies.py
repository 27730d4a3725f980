"""The first cell of a hosted notebook, the README's button, and copies to teach with.

The cell runs in an empty home, against a clone of this repository.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from test_packaging import code_of, imported, normalised, requirement_lines

from utils.classroom import hosted
from utils.classroom.__main__ import main
from utils.classroom.address import (
    BUTTON,
    FOLDER,
    README,
    AddressError,
    button,
    first_cell,
    repository,
    with_address,
)
from utils.classroom.copies import (
    FIRST_ID,
    SOLUTION,
    CopyError,
    for_live_teaching,
    with_first_cell,
    write_copies,
)
from utils.course import ROOT

NOTEBOOKS = sorted(
    path
    for pattern in ("[0-9][0-9]_*.ipynb", "experiments/[0-9][0-9]_*.ipynb")
    for path in (ROOT / "notebooks").glob(pattern)
)

# --- the button -----------------------------------------------------------------------


def test_the_button_leads_to_a_notebook_that_exists() -> None:
    text = README.read_text("utf-8")
    line = button(text)
    assert (ROOT / line["path"]).is_file() and line["path"].endswith(".ipynb")
    assert len(BUTTON.findall(text)) == 1
    assert re.search(r"\[!\[[^]]+\]\([^)]+\)\]\[colab\]", text), "the button itself"


def test_button_and_cell_name_one_repository_and_a_fork_changes_both() -> None:
    text = README.read_text("utf-8")
    assert with_address(text) == text, "run `python -m utils.classroom address …`"
    assert first_cell(repository()) in text
    forked = with_address(text, "https://github.com/ana/kurs.git")
    assert "github.com/ana/kurs" in forked and repository() not in forked
    assert repository(forked) == "https://github.com/ana/kurs"
    assert forked.count("ana/kurs") == 2
    assert with_address(forked, repository()) == text
    with pytest.raises(AddressError, match="no repository on GitHub"):
        with_address(text, "https://example.com/ana")
    with pytest.raises(AddressError, match="restore it"):
        button(text.replace("[colab]: ", "[colab] "))


# --- the first cell -------------------------------------------------------------------

TINY = "course-tiny-package"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with what the cell needs, one package to install among it."""
    folder = tmp_path / "origin with a space"
    for name in ("utils", "notebooks", "requirements.txt", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "figures", "page")
            shutil.copytree(source, folder / name, ignore=left_out)
        else:
            shutil.copy(source, folder / name)
    pins = folder / "requirements.txt"
    text = pins.read_text("utf-8")
    pins.write_text(text.replace("# AWS, and", f"{TINY}==1.0\n\n# AWS, and"), "utf-8")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "course"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def tiny_wheel(folder: Path) -> Path:
    """Write a wheel that pip can install without any index."""
    name = TINY.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "HERE = True\n")
        metadata = f"Metadata-Version: 2.1\nName: {TINY}\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def run_cells(
    code: str, place: Path, home: Path, **environ: str
) -> subprocess.CompletedProcess:
    """Run code as a kernel does that knows nothing of the course."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
    # The course that is installed here would be found without the cell.
    hidden = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path "
    hidden += "if '__editable__' not in str(f)]\n"
    hidden += f"sys.path[:] = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
    return subprocess.run(
        [sys.executable, "-c", hidden + code],
        cwd=place,
        env={**kept, "HOME": str(home), **environ},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_the_cell_makes_a_lone_notebook_run_and_a_second_run_changes_nothing(
    tmp_path: Path, origin: Path
) -> None:
    """In an empty home: clone, install, fetch; then the lesson's own second cell.

    The second run starts where the first one went, within the clone: it must not clone
    again, into itself.
    """
    home, place, site = (tmp_path / name for name in ("home", "content", "site"))
    home.mkdir(), place.mkdir(), site.mkdir()
    alone = run_cells("import utils", place, home)
    assert "No module named 'utils'" in alone.stderr
    cell = first_cell(origin.as_uri().replace("%20", " "))
    second = "from utils.course import ROOT, run_config\nprint(ROOT, run_config())"
    wheels = tiny_wheel(tmp_path / "wheels")
    # pip installs into a folder of the test's, and PIP_USER would lead elsewhere.
    environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_USER": "1"}
    environ |= {"PIP_TARGET": str(site), "PYTHONPATH": str(site)}
    done = run_cells(f"{cell}\n{cell}\n{second}", place, home, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Installing 1 packages") == 1, done.stdout
    assert (site / "course_tiny_package.py").is_file()
    clone = home / FOLDER
    assert done.stdout.count(f"Ready: the course lies in {clone}") == 2
    assert done.stdout.splitlines()[-1].startswith(f"{clone} model lab")
    assert [path.name for path in home.iterdir() if path.name == FOLDER] == [FOLDER]
    assert not list(clone.rglob(FOLDER)) and not (place / FOLDER).exists()
    # A notebook that was opened within a clone uses that one.
    other = tmp_path / "elsewhere"
    shutil.copytree(clone, other)
    (tmp_path / "empty").mkdir()
    again = run_cells(cell, other / "notebooks", tmp_path / "empty", **environ)
    assert f"the course lies in {other}" in again.stdout, again.stderr
    assert not (tmp_path / "empty" / FOLDER).exists()


def test_a_clone_that_fails_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    cell = first_cell((tmp_path / "none").as_uri())
    done = run_cells(cell, tmp_path, tmp_path)
    assert done.returncode != 0 and "CalledProcessError" in done.stderr
    assert not (tmp_path / FOLDER).exists()


def test_what_is_missing_is_what_lessons_need_in_the_pinned_version() -> None:
    text = (ROOT / "requirements.txt").read_text("utf-8")
    everything = hosted.missing(text, lambda name: None)
    names = {re.split(r"[\[=]", line)[0] for line in everything}
    assert {"torch", "moto", "fastapi", *hosted.ANY_VERSION} <= names
    assert not {"jupyterlab", "ipykernel", "pytest", "sphinx"} & names
    pins = dict(re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^\s;]+)", text, re.MULTILINE))
    assert hosted.missing(text, pins.get) == []
    # The place's own IPython stays, an older torch does not.
    there = {**pins, "ipython": "7.34.0", "torch": "2.8.0"}
    assert [line.split("==")[0] for line in hosted.missing(text, there.get)] == [
        "torch"
    ]


def test_what_the_lessons_import_is_installed_in_a_hosted_place() -> None:
    """From the sections that are left out, whatever `utils` or a lesson imports."""
    text = (ROOT / "requirements.txt").read_text("utf-8")
    lines = hosted.missing(text, lambda name: None)
    here = {normalised(re.split(r"[\[=]", line)[0]) for line in lines}
    left_out = {
        normalised(re.split(r"[\[=]", line)[0]) for line in requirement_lines()
    } - here
    # The commands of an installation, which no lesson imports.
    commands = {"run.py", "record.py", "site", "classroom", "lab_model"}
    sources = [
        path
        for path in (ROOT / "utils").rglob("*.py")
        if not commands & set(path.relative_to(ROOT / "utils").parts)
    ]
    used = set().union(*(imported(code_of(path)) for path in [*sources, *NOTEBOOKS]))
    providers = importlib.metadata.packages_distributions()
    wanted = {normalised(one) for name in used for one in providers.get(name, [])}
    assert not wanted & left_out


def test_a_module_loaded_before_its_package_changed_is_named() -> None:
    import yaml  # noqa: F401

    assert "yaml" in hosted.imported_already(["pyyaml==6.0.4"])
    assert hosted.imported_already(["no-such-package==1.0"]) == []


def test_an_old_python_is_refused_with_a_way_out(monkeypatch) -> None:
    class Old(tuple):
        pass

    monkeypatch.setattr(sys, "version_info", Old((3, 10, 4)))
    with pytest.raises(RuntimeError, match="make kernel PYTHON="):
        hosted.main()


def test_the_script_imports_nothing_of_ours_and_nothing_to_install() -> None:
    names = imported(Path(hosted.__file__).read_text("utf-8"))
    assert names <= set(sys.stdlib_module_names)


# --- copies ---------------------------------------------------------------------------


def headings(notebook: nbformat.NotebookNode) -> list[str]:
    """Headings of the prose, outside of code and of folded text."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
            text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
            found += re.findall(r"^#{1,6} .+$", text, re.MULTILINE)
    return found


def code(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [
        (cell.id, cell.source, cell.metadata.get("tags", []))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_live_copy_keeps_code_headings_and_exercises_only(path: Path) -> None:
    lesson = nbformat.read(path, as_version=4)
    made = for_live_teaching(lesson)
    assert lesson == nbformat.read(path, as_version=4), "the lesson was changed"
    nbformat.validate(made)
    assert code(made) == code(lesson)
    assert headings(made) == headings(lesson)
    ids = [cell.id for cell in lesson.cells]
    places = [ids.index(cell.id) for cell in made.cells]
    assert places == sorted(places)
    for cell in made.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        else:
            assert "<details>" not in cell.source
    # Above each check of an exercise stands its task, word for word.
    by_id = {cell.id: cell for cell in made.cells}
    solved = [n for n, c in enumerate(lesson.cells) if SOLUTION.search(c.source)]
    for number in solved:
        task = next(c for c in lesson.cells[number::-1] if "### Exercise" in c.source)
        words = task.source[task.source.index("### Exercise") :]
        words = re.sub(r"<details>.*?</details>", "", words, flags=re.DOTALL).strip()
        assert words in by_id[task.id].source
    before = sum(len(c.source) for c in lesson.cells if c.cell_type == "markdown")
    after = sum(len(c.source) for c in made.cells if c.cell_type == "markdown")
    assert after < before / 3


def test_solutions_and_prose_are_left_out(make_notebook) -> None:
    new = nbformat.v4
    lesson = new.new_notebook(
        cells=[
            new.new_markdown_cell("# Title\n\nProse.\n\n```bash\n# no heading\n```"),
            new.new_markdown_cell(
                "Why.\n\n### Exercise 1 · Add\n\nAdd two.", id="task"
            ),
            new.new_code_cell("ask = 1", id="given"),
            new.new_markdown_cell("Then add three.", id="more"),
            new.new_code_cell("answer = ...\ncheck_sum(answer)", id="stub"),
            new.new_markdown_cell(
                "<details><summary>Solution</summary>\n\n5</details>"
            ),
            new.new_markdown_cell("What you saw."),
            new.new_markdown_cell("So.\n\n## 2 · Next\n\nMore prose.", id="next"),
        ]
    )
    texts = [c.source for c in for_live_teaching(lesson).cells if c.cell_type != "code"]
    assert texts == [
        "# Title",
        "### Exercise 1 · Add\n\nAdd two.",
        "Then add three.",
        "## 2 · Next",
    ]


def test_the_command_writes_copies_and_replaces_only_copies(tmp_path, capsys) -> None:
    place = tmp_path / "copies"
    assert main(["copies", str(place)]) == 0
    assert f"{len(NOTEBOOKS)} notebooks" in capsys.readouterr().out
    names = {path.relative_to(place).as_posix() for path in place.rglob("*.ipynb")}
    root = ROOT / "notebooks"
    assert names == {path.relative_to(root).as_posix() for path in NOTEBOOKS}
    assert (place / "figures" / "page.png").is_file()
    (place / "mine.txt").write_text("of last week")
    assert main(["hosted", str(place)]) == 0, "copies may be replaced"
    assert not (place / "mine.txt").exists()
    first = nbformat.read(place / "02_prompting.ipynb", as_version=4).cells[0]
    assert (first.id, first.source) == (FIRST_ID, first_cell(repository()).rstrip("\n"))
    ast.parse(first.source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main(["copies", str(tmp_path / "mine")]) == 1
    assert "holds something that is no copy" in capsys.readouterr().err
    for place in (ROOT, tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(CopyError, match="holds something that is no copy"):
            write_copies(place, for_live_teaching)


def test_a_hosted_copy_is_the_lesson_below_the_first_cell() -> None:
    lesson = nbformat.read(NOTEBOOKS[0], as_version=4)
    made = with_first_cell(lesson, "https://github.com/ana/kurs")
    nbformat.validate(made)
    assert made.cells[1:] == lesson.cells
    assert "https://github.com/ana/kurs" in made.cells[0].source
