"""utils.run: what it shows and leaves behind, also when it fails or is stopped."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from conftest import MakeNotebook
from utils import run
from utils.course import ROOT

FIGURE = "from utils.course import key_figure\nkey_figure('right answers', '93%')"
MARK = "course-test-process"
# A cell that writes a file when it runs, starts a process, and then takes its time.
SLOW = """\
import pathlib, subprocess, sys, time
subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(300)", "{mark}"],
    start_new_session={own_session},
)
pathlib.Path({started!r}).touch()
try:
    time.sleep(300)
finally:
    pathlib.Path({cleaned!r}).touch()
"""


def command(folder: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "utils.run", "--notebooks", str(folder)),
        *arguments,
    ]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "COURSE_BUILD": str(tmp_path / "build")}


def run_course(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(tmp_path, *arguments),
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


def left_over(mark: str) -> list[psutil.Process]:
    """Return the living processes whose command line or environment has the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            text = " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if alive and mark in text and process.pid != os.getpid():
            found.append(process)
    return found


def test_run_shows_progress_and_table_and_leaves_copies(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    source = make_notebook("01_first.ipynb", "40 + 2", FIGURE)
    make_notebook("02_second.ipynb", "import os, sys\nprint(os.getcwd())")
    before = source.read_bytes()
    done = run_course(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "[1/2] 01_first.ipynb" in done.stdout
    assert "[2/2] 02_second.ipynb" in done.stdout
    table = done.stdout[done.stdout.index("\nnotebook") :].splitlines()
    assert table[2].split()[0] == "01_first"
    assert table[2].endswith("right answers: 93%")
    assert float(table[2].split()[1]) > 0
    assert table[4].split()[0] == "total"
    folder = tmp_path / "build" / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "01_first.csv",
        "01_first.html",
        "01_first.ipynb",
        "02_second.csv",
        "02_second.html",
        "02_second.ipynb",
    ]
    executed = nbformat.read(folder / "01_first.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].data["text/plain"] == "42"
    assert source.read_bytes() == before


def test_the_seconds_of_each_cell_are_kept(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "import time", "time.sleep(0.6)", "40 + 2")
    done = run_course(tmp_path)
    assert done.returncode == 0
    total = float(re.search(r"01_first\.ipynb +([\d.]+) s", done.stdout)[1])
    table = (tmp_path / "build" / "run" / "01_first.csv").read_text("utf-8")
    head, *lines = [line.split(",") for line in table.splitlines()]
    assert head == ["cell", "seconds"]
    assert [name for name, _ in lines] == ["cell-0", "cell-1", "cell-2"]
    each = [float(seconds) for _, seconds in lines]
    assert each[1] >= 0.6
    assert sum(each) <= total + 0.1  # starting the kernel belongs to no cell


@pytest.fixture
def course(make_notebook: MakeNotebook) -> list[str]:
    """A course with two lessons and three experiments; their names in order."""
    names = ["01_first", "04_second"]
    names += [f"experiments/{name}" for name in ("01_inside", "04_alike", "04_rates")]
    for name in names:
        make_notebook(f"{name}.ipynb", "40 + 2")
    return names


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["04"], [1]),
        (["experiments"], [2, 3, 4]),
        (["experiments/"], [2, 3, 4]),
        (["experiments/04"], [3, 4]),
        (["experiments/04_rates", "01"], [0, 4]),
        (["experiments/04_rates.ipynb", "04_rates"], [4]),
        (["04_second.ipynb"], [1]),
    ],
)
def test_lessons_and_experiments_are_chosen_by_number_or_name(
    tmp_path: Path, course: list[str], wanted: list[str], found: list[int]
) -> None:
    paths = run.find_notebooks(tmp_path, wanted)
    assert [run.name_of(path) for path in paths] == [course[n] for n in found]


def test_an_unknown_experiment_is_named_with_those_that_exist(
    tmp_path: Path, course: list[str]
) -> None:
    with pytest.raises(
        run.RunError, match="'experiments/02': give some of 01, 04, exp"
    ):
        run.find_notebooks(tmp_path, ["experiments/02"])


def test_experiments_run_after_the_lessons_and_find_the_figures(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "42")
    path = make_notebook(
        "experiments/01_inside.ipynb", "import os\nos.getcwd()", FIGURE
    )
    notebook = nbformat.read(path, as_version=4)
    shown = nbformat.v4.new_markdown_cell("# Inside\n\n![a map](../figures/map.svg)")
    notebook.cells.insert(0, shown)
    nbformat.write(notebook, path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "map.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    )
    done = run_course(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[2/2] experiments/01_inside.ipynb" in done.stdout
    table = done.stdout[done.stdout.index("\nnotebook") :].splitlines()
    assert table[3].split()[0] == "experiments/01_inside"
    assert table[3].endswith("right answers: 93%")
    folder = tmp_path / "build" / "run"
    executed = nbformat.read(folder / "experiments" / "01_inside.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].data["text/plain"] == repr(str(path.parent))
    page = (folder / "experiments" / "01_inside.html").read_text(encoding="utf-8")
    assert 'src="data:image/svg+xml;base64,' in page
    assert (folder / "figures" / "map.svg").is_file()


def test_an_experiment_alone_and_in_place(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    lesson = make_notebook("01_first.ipynb", "1 / 0").read_bytes()
    path = make_notebook("experiments/01_inside.ipynb", "40 + 2")
    done = run_course(tmp_path, "--in-place", "experiments/01_inside")
    assert done.returncode == 0, done.stderr
    assert "[1/1] experiments/01_inside.ipynb" in done.stdout
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].outputs[0].data["text/plain"] == "42"
    assert (tmp_path / "01_first.ipynb").read_bytes() == lesson
    make_notebook("experiments/01_inside.ipynb", "1 / 0")
    done = run_course(tmp_path, "experiments")
    assert done.returncode == 1
    assert "experiments/01_inside.ipynb, cell 1 of 1 (cell-0) failed." in done.stderr


def test_a_lesson_chooses_its_model_where_none_is_set(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    code = "from utils.course import run_config\nprint(run_config(model='smollm2'))"
    make_notebook("01_first.ipynb", code)
    for model, shown, header in (
        (
            None,
            "model smollm2 · data data/amazon",
            "each lesson's own model and data · ",
        ),
        ("small", "model small · data data/amazon", "model small · data data/amazon"),
        ("lab", "model lab · data data/lab_questions", "model lab · data data/lab"),
    ):
        done = subprocess.run(
            command(tmp_path),
            env={**environment(tmp_path), **({"COURSE_MODEL": model} if model else {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.startswith(header), done.stdout + done.stderr
        path = tmp_path / "build" / "run" / "01_first.ipynb"
        executed = nbformat.read(path, as_version=4)
        assert executed.cells[0].outputs[0].text.startswith(shown)


def test_kernel_is_the_running_interpreter_whatever_is_registered(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "import sys\nprint(sys.executable)")
    specification = tmp_path / "jupyter" / "kernels" / "python3"
    specification.mkdir(parents=True)
    (specification / "kernel.json").write_text(
        '{"argv": ["/bin/false"], "display_name": "other", "language": "python"}'
    )
    done = subprocess.run(
        command(tmp_path),
        env={**environment(tmp_path), "JUPYTER_DATA_DIR": str(tmp_path / "jupyter")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    copy = nbformat.read(tmp_path / "build" / "run" / "01_first.ipynb", as_version=4)
    assert copy.cells[0].outputs[0].text.strip() == sys.executable


def test_page_asks_for_nothing_from_elsewhere(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    path = make_notebook("01_first.ipynb", "42")
    notebook = nbformat.read(path, as_version=4)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "map.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    )
    notebook.cells.insert(
        0, nbformat.v4.new_markdown_cell("# Title\n\n![a map](figures/map.svg)")
    )
    solution = "<details><summary>Solution</summary>\n\nwithheld\n\n</details>"
    notebook.cells.append(nbformat.v4.new_markdown_cell(solution))
    page = run.as_page(notebook, "01_first", tmp_path)
    assert "<h1" in page
    assert "<script src=" not in page
    assert 'src="http' not in page
    assert "cdnjs" not in page
    assert 'alt="a map"' in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert page.index("<details>") < page.index("withheld") < page.index("</details>")


def test_page_with_formulas_does_not_wait_for_their_script(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("Here $B = 0$.")]
    page = run.as_page(notebook, "01_first", tmp_path)
    scripts = re.findall(r"<script[^>]* src=[^>]*>", page)
    assert len(scripts) == 1
    assert "async" in scripts[0]
    assert "$B = 0$" in page


def test_only_what_a_kernel_started_ends_with_it(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    """A caller of `execute` may have processes of its own."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    path = make_notebook(
        "01_first.ipynb", f"import subprocess\nsubprocess.Popen({sleep}).pid"
    )
    own = subprocess.Popen(sleep)
    try:
        executed = asyncio.run(run.execute(path, environment(tmp_path)))
        started = int(executed.cells[0].outputs[0].data["text/plain"])
        assert not psutil.pid_exists(started)
        assert own.poll() is None
    finally:
        own.kill()
        own.wait()


def test_bars_know_that_nobody_watches(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "import os\nos.environ['TQDM_DISABLE']")
    assert run_course(tmp_path).returncode == 0
    executed = nbformat.read(tmp_path / "build" / "run" / "01_first.ipynb", 4)
    assert executed.cells[0].outputs[0].data["text/plain"] == "'1'"


def test_failing_cell_stops_the_run_and_is_named(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "42", "1 / 0")
    make_notebook("02_second.ipynb", "42")
    done = run_course(tmp_path)
    assert done.returncode == 1
    assert "01_first.ipynb, cell 2 of 2 (cell-1) failed." in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "Traceback" not in done.stderr
    assert "02_second" not in done.stdout
    folder = tmp_path / "build" / "run"
    assert [path.name for path in folder.iterdir()] == ["01_first.ipynb"]


def test_dead_kernel_is_reported(tmp_path: Path, make_notebook: MakeNotebook) -> None:
    make_notebook("01_first.ipynb", "import os\nos._exit(9)")
    done = run_course(tmp_path)
    assert done.returncode == 1
    assert "cell 1 of 1 (cell-0): the kernel died" in done.stderr
    assert "Traceback" not in done.stderr


def test_results_of_an_earlier_run_do_not_outlive_a_failure(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "42")
    assert run_course(tmp_path).returncode == 0
    make_notebook("01_first.ipynb", "1 / 0")
    assert run_course(tmp_path).returncode == 1
    assert not (tmp_path / "build" / "run" / "01_first.html").exists()


@pytest.mark.parametrize(
    ("variable", "value"), [("COURSE_AWS", "cloud"), ("COURSE_DATA", "none.csv")]
)
def test_wrong_setting_is_one_sentence(
    tmp_path: Path, make_notebook: MakeNotebook, variable: str, value: str
) -> None:
    make_notebook("01_first.ipynb", "42")
    done = subprocess.run(
        command(tmp_path),
        env={**environment(tmp_path), variable: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith(variable)
    assert "Traceback" not in done.stderr


def test_unknown_number_and_broken_file_are_named(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    make_notebook("01_first.ipynb", "42")
    assert "'07'" in run_course(tmp_path, "07").stderr
    (tmp_path / "01_first.ipynb").write_text("{")
    done = run_course(tmp_path)
    assert done.returncode == 1
    assert "01_first.ipynb is not a notebook that can be read" in done.stderr


@pytest.mark.parametrize(
    ("number", "own_session", "whole_group"),
    [
        (signal.SIGINT, False, True),
        (signal.SIGTERM, True, False),
        pytest.param(signal.SIGHUP, False, False, marks=pytest.mark.slow),
    ],
)
def test_stopping_leaves_no_process_and_nothing_half_written(
    tmp_path: Path,
    make_notebook: MakeNotebook,
    number: signal.Signals,
    own_session: bool,
    whole_group: bool,
) -> None:
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    mark = f"{MARK}-{tmp_path.name}-{os.getpid()}"
    make_notebook("01_first.ipynb", "42")
    make_notebook(
        "02_slow.ipynb",
        SLOW.format(
            mark=mark,
            own_session=own_session,
            started=str(started),
            cleaned=str(cleaned),
        ),
    )
    process = subprocess.Popen(
        command(tmp_path),
        env={**environment(tmp_path), "COURSE_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.exists()
    assert len(left_over(mark)) >= 3
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == run.INTERRUPTED
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert left_over(mark) == []
    assert cleaned.exists()
    folder = tmp_path / "build" / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "01_first.csv",
        "01_first.html",
        "01_first.ipynb",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4])
def test_stopping_at_any_moment_leaves_no_process(
    tmp_path: Path, make_notebook: MakeNotebook, delay: float
) -> None:
    mark = f"{MARK}-{tmp_path.name}-{os.getpid()}"
    make_notebook("01_first.ipynb", "42", FIGURE)
    make_notebook("02_second.ipynb", "import time\ntime.sleep(5)")
    process = subprocess.Popen(
        command(tmp_path),
        env={**environment(tmp_path), "COURSE_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert left_over(mark) == []
    for path in tmp_path.glob("build/run/*"):
        assert path.suffix in (".ipynb", ".html", ".csv")
        assert not path.name.startswith(".")


def test_in_place_stores_outputs_without_traces_of_the_machine(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    path = make_notebook(
        "01_first.ipynb",
        "40 + 2",
        metadata={"widgets": {"state": {}}, "title": "mine"},
    )
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata = {
        "tags": ["nbval-ignore-output"],
        "execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"},
    }
    nbformat.write(notebook, path)
    assert run_course(tmp_path, "--in-place").returncode == 0
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].id == "cell-0"
    assert stored.cells[0].metadata == {"tags": ["nbval-ignore-output"]}
    assert stored.cells[0].execution_count == 1
    assert stored.cells[0].outputs[0].data["text/plain"] == "42"
    assert stored.metadata == {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    first = path.read_bytes()
    assert run_course(tmp_path, "--in-place", "01").returncode == 0
    assert path.read_bytes() == first
    # No copy and no page is left, only the seconds of each cell.
    left = [path.name for path in (tmp_path / "build" / "run").iterdir()]
    assert left == ["01_first.csv"]


def test_in_place_keeps_the_notebook_when_a_cell_fails(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    path = make_notebook("01_first.ipynb", "42", "1 / 0")
    before = path.read_bytes()
    assert run_course(tmp_path, "--in-place").returncode == 1
    assert path.read_bytes() == before


def test_in_place_stores_only_what_the_defaults_give(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    path = make_notebook("01_first.ipynb", "42")
    before = path.read_bytes()
    done = subprocess.run(
        command(tmp_path, "--in-place"),
        env={**environment(tmp_path), "COURSE_MODEL": "small"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "unset COURSE_MODEL" in done.stderr
    assert path.read_bytes() == before


def test_default_folder_is_the_course() -> None:
    assert run.NOTEBOOKS == ROOT / "notebooks"
