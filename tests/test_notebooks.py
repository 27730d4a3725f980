"""Rules that hold for all notebooks, strict nbval, and exercises that are proven.

The notebooks run in order in a build folder of their own: a later one reads what an
earlier one wrote. Those that stand alone run in test_notebooks_alone.py.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
import os
import re
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from support.lessons import CLAIM_TAG, claims_in
from support.reading_time import check_call, minutes_of, stated_in
from support.second_edition import (
    EVIDENCE,
    cited_without_link,
    dead_links,
    general_without_evidence,
    is_second_edition,
    near_the_ends,
    plots_without_a_note,
    plotted_shares,
    silent_cells,
)
from support.wrong_answers import module_of, wrong_answers
from utils.course import ROOT
from utils.run import find_notebooks, is_experiment, name_of

NOTEBOOKS = find_notebooks(ROOT / "notebooks")
CELL_TIMEOUT = 600  # one thread, beside another test
LONGEST_CELL = 25
MOST_CELLS = 90
LONGEST_READING = 60  # minutes
MOST_SILENT = 0.15  # of the code cells
MOST_NEAR = 0.30  # of the plotted shares, within five points of 0 or 100%
WIDEST_LINE = 88
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)

# Paths that belong to the course's subject, not to the machine it ran on.
KNOWN_PATHS = re.compile(r"/(opt/(ml|djl)|dev|ping|invocations|models|predictions)\b")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<~-])/(?:[A-Za-z0-9_.-]+/)+[A-Za-z0-9_.-]*")
SECRET = re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}|-----BEGIN ")


@functools.cache
def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "markdown"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def is_compared(cell: nbformat.NotebookNode) -> bool:
    """Whether strict nbval compares something of this cell's output."""
    if cell.cell_type != "code" or "nbval-ignore-output" in tags(cell):
        return False
    return any(
        output.output_type == "stream"
        or set(output.get("data", {})) - {"image/png", "image/jpeg"}
        for output in cell.outputs
    )


def exercises(path: Path) -> list[tuple[int, ast.Call, str]]:
    """Return each exercise's cell number, check and solution as code."""
    cells = read(path).cells
    found = []
    for number, cell in enumerate(cells):
        call = check_call(cell)
        if call is None:
            continue
        below = cells[number + 1] if number + 1 < len(cells) else None
        text = below.source if below and below.cell_type == "markdown" else ""
        solution = re.search(
            r"<details>.*?```python\n(.*?)```.*?</details>", text, re.DOTALL
        )
        assert solution, f"{path.name}: no solution below cell {number} ({cell.id})"
        found.append((number, call, solution[1]))
    return found


# --- rules ----------------------------------------------------------------------------


@each_notebook
def test_name_format_and_ids(path: Path) -> None:
    assert re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*\.ipynb", path.name)
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell_id in ids:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", cell_id), cell_id
        assert not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4})*.*", cell_id), cell_id


@each_notebook
def test_metadata_names_no_machine(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id


@each_notebook
def test_opening(path: Path) -> None:
    title = read(path).cells[0]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    for row in ("needs", "time", "cost", "reads"):
        assert re.search(rf"^\|\W*{row}", title.source, re.MULTILINE | re.IGNORECASE), (
            row
        )
    objectives = re.findall(r"^(?:[-*]|\d\.) \S", title.source, re.MULTILINE)
    assert 3 <= len(objectives) <= 5
    first, second = code_cells(path)[:2]
    assert "run_config(" in first.source
    assert "set_seed()" in first.source
    assert "preflight(" in second.source
    if is_experiment(path):
        assert re.search(r"\]\(\.\./\d\d_\w+\.ipynb", title.source), "no way back"
        return
    number = path.name[:2]
    assert (
        f"figures/road_map_{number}.svg" in title.source
        or f'road_map("{number}")' in first.source
    )


@each_notebook
def test_ending(path: Path) -> None:
    ending = "\n".join(cell.source for cell in prose_cells(path)[-3:])
    assert "You can now" in ending


@each_notebook
def test_prose_names_only_notebooks_that_exist(path: Path) -> None:
    known = {known.name for known in NOTEBOOKS}
    for cell in prose_cells(path):
        assert set(re.findall(r"\b\d\d_[a-z_]+\.ipynb", cell.source)) <= known, cell.id
        for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", cell.source):
            assert (path.parent / image).is_file(), f"{cell.id}: {image}"


@each_notebook
def test_code_between_prose(path: Path) -> None:
    cells = read(path).cells
    for above, below in zip(cells, cells[1:], strict=False):
        both = (above.cell_type, below.cell_type)
        assert both != ("code", "code"), f"{above.id} and {below.id}"


@each_notebook
def test_what_it_asks_of_a_whole_account_is_narrowed_to_its_run(path: Path) -> None:
    """On a real account others have endpoints and alarms, too."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and re.search(
            r"\.(list|describe)_\w+\(\)", cell.source
        ):
            assert "guard.run" in cell.source, cell.id


@each_notebook
def test_code_is_short_and_plain(path: Path) -> None:
    for cell in code_cells(path):
        lines = cell.source.splitlines()
        assert lines, f"{cell.id} is empty"
        assert len(lines) <= LONGEST_CELL, f"{cell.id}: {len(lines)} lines"
        widest = max(map(len, lines))
        assert widest <= WIDEST_LINE, f"{cell.id}: {widest} columns"
        for line in lines:
            assert not re.match(r"\s*[!%]", line), f"{cell.id}: {line}"
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("input", "eval"), cell.id
            if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
                pytest.fail(f"{cell.id}: if {node.test.value}")


@each_notebook
def test_code_is_the_same_for_local_and_real_aws(path: Path) -> None:
    forbidden = re.compile(
        r"moto|offline_aws|endpoint_url|COURSE_AWS|https?://|127\.0\.0\.1|localhost"
    )
    for cell in code_cells(path):
        found = forbidden.search(cell.source)
        assert not found, f"{cell.id}: {found}"
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.If | ast.IfExp | ast.Compare | ast.Match):
                attributes = {
                    inner.attr
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.Attribute)
                }
                found = attributes & {"aws", "real"}
                assert not found, f"{cell.id} branches on {found}"


@each_notebook
def test_every_cell_was_executed_in_order(path: Path) -> None:
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_outputs_are_clean(path: Path) -> None:
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id
            data = {
                kind: value
                for kind, value in output.get("data", {}).items()
                if not kind.startswith("image/p")
            }
            text = json.dumps(data, ensure_ascii=False) + str(output.get("text", ""))
            text = re.sub(r"(https?|s3)://\S+|\\[nt]", " ", text)
            assert not SECRET.search(text), cell.id
            assert str(ROOT) not in text, cell.id
            assert str(Path.home()) + "/" not in text, cell.id
            text = re.sub(r"</?\w+[^>]*>", " ", text)
            paths = [
                found
                for found in ABSOLUTE_PATH.findall(text)
                if not KNOWN_PATHS.match(found)
            ]
            assert not paths, f"{cell.id}: {paths}"


@each_notebook
def test_few_outputs_are_ignored(path: Path) -> None:
    shown = [cell for cell in code_cells(path) if cell.outputs]
    ignored = [cell for cell in shown if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) <= len(shown) / 4
    assert any(is_compared(cell) for cell in shown)
    for cell in code_cells(path):
        assert not set(tags(cell)) & {"nbval-skip", "raises-exception"}, cell.id
        assert "NBVAL" not in cell.source, cell.id


@each_notebook
def test_tags_are_known_and_name_claims_of_their_cell(path: Path) -> None:
    """Those of claims are explained in support/lessons.py."""
    for cell in read(path).cells:
        of_claims = [tag for tag in tags(cell) if CLAIM_TAG.fullmatch(tag)]
        prose = cell.cell_type == "markdown"
        others = set(EVIDENCE) if prose else {"nbval-ignore-output"}
        assert set(tags(cell)) - set(of_claims) <= others, cell.id
        numbers = [CLAIM_TAG.fullmatch(tag)[1] for tag in of_claims]
        claims = [str(number) for number in range(1, len(claims_in(cell)) + 1)]
        all_at_once = numbers == [None] and claims
        one_by_one = len(set(numbers)) == len(numbers) and set(numbers) <= set(claims)
        assert all_at_once or one_by_one, f"{cell.id}: {of_claims}"


@each_notebook
def test_claims_and_key_figure(path: Path) -> None:
    source = "\n".join(cell.source for cell in code_cells(path))
    assert "claim(" in source
    assert source.count("key_figure(") == 1


@each_notebook
def test_exercises_have_solution_and_planted_mistakes(path: Path) -> None:
    found = exercises(path)
    assert len(found) >= 2
    checks = re.findall(
        r"^(?!def ).*\bcheck_\w+\(",
        "\n".join(cell.source for cell in code_cells(path)),
        re.MULTILINE,
    )
    assert len(checks) == len(found), "a check must be the last line of its cell"
    planted = wrong_answers(path)
    assert planted.keys() == {call.func.id for _, call, _ in found}, (
        f"see tests/support/wrong_answers/{module_of(path)}.py"
    )
    for _, call, solution in found:
        ast.parse(solution)
        assert "..." not in solution
        mistakes = planted[call.func.id]
        assert len(mistakes) >= 2, f"plant two mistakes for {call.func.id}"
        hints = {hint for _, hint in mistakes}
        assert len(hints) == len(mistakes)


# A model of another make than the notebook's own, and one generator of random numbers
# for another.
EXCHANGED = {
    ("01_language_models", "next", "parts"),
    ("experiments/05_statistics", "exercise-clusters-try", "many"),
}


def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """A cell's names, then those of its functions and comprehensions."""
    yield table
    for inner in table.get_children():
        yield from tables(inner)


def assigned_in(source: str) -> set[str]:
    """The names that a cell gives a value, imports left out."""
    names = symtable.symtable(source, "cell", "exec").get_symbols()
    return {name.get_name() for name in names if name.is_assigned()}


def needed_by(source: str) -> set[str]:
    """The names that a cell takes from the cells before it."""
    top = symtable.symtable(source, "cell", "exec")
    used = {
        name.get_name()
        for table in tables(top)
        for name in table.get_symbols()
        if name.is_referenced() and (table is top or name.is_global())
    }
    own = {
        name.get_name()
        for name in top.get_symbols()
        if name.is_assigned() or name.is_imported()
    }
    return used - own


@each_notebook
def test_exercises_and_guesses_can_be_run_again_after_all_cells(path: Path) -> None:
    """Many run all cells first: no later cell may change what these need."""
    cells = code_cells(path)
    for number, cell in enumerate(cells):
        if check_call(cell) is None and "my_guess" not in cell.source:
            continue
        for later in cells[number + 1 :]:
            if (name_of(path), cell.id, later.id) not in EXCHANGED:
                changed = needed_by(cell.source) & assigned_in(later.source)
                changed -= {"my_guess"}
                assert not changed, f"{later.id} changes {changed} of {cell.id}"


def test_names_that_a_later_cell_changes_are_noticed() -> None:
    cell = "def vote(x):\n    return Counter(x)\n\ncheck([y for y in rows], vote)"
    assert needed_by(cell) == {"Counter", "check", "rows"}
    assert assigned_in("for y in z:\n    rows = y\nimport q") == {"y", "rows"}


@each_notebook
def test_links_lead_somewhere(path: Path) -> None:
    assert not dead_links(path, path.parents[2 if is_experiment(path) else 1])


# --- rules of the second edition: of lessons that state how long reading them takes ---


def second_editions() -> list[Path]:
    """The notebooks whose title states the reading time."""
    return [path for path in NOTEBOOKS if is_second_edition(read(path))]


each_second_edition = pytest.mark.parametrize("path", second_editions(), ids=name_of)


@each_second_edition
def test_it_is_short_and_states_how_long_it_takes(path: Path) -> None:
    assert len(read(path).cells) <= MOST_CELLS
    remedy = "run tests/support/reading_time.py"
    sections, whole = minutes_of(read(path))
    assert stated_in(read(path)) == (sections, whole), remedy
    assert whole <= LONGEST_READING


@each_second_edition
def test_most_cells_show_more_than_ticks(path: Path) -> None:
    silent, count = silent_cells(read(path))
    assert len(silent) <= MOST_SILENT * count, f"{len(silent)} of {count}: {silent}"


@each_second_edition
def test_few_plotted_shares_lie_near_the_ends(path: Path) -> None:
    missing = plots_without_a_note(read(path))
    assert not missing, f"store the outputs of {missing} again"
    shares = plotted_shares(read(path))
    near = near_the_ends(shares)
    assert near <= MOST_NEAR * len(shares), f"{near} of {len(shares)}: write sentences"


@each_second_edition
def test_it_has_enough_exercises(path: Path) -> None:
    assert len(exercises(path)) >= (2 if is_experiment(path) else 3)


@each_second_edition
def test_statements_about_models_in_general_name_their_evidence(path: Path) -> None:
    bare = general_without_evidence(read(path))
    assert not bare, f"tag these cells with one of {', '.join(EVIDENCE)}: {bare}"
    assert not cited_without_link(read(path)), "a cited statement has its link"


# --- running them ---------------------------------------------------------------------

# Runs in the notebook's kernel, below an exercise, in a copy of its variables.
PROOF = """\
def prove_exercise(answer, check, expected):
    import re
    from IPython.utils.capture import capture_output
    import torch
    variables = dict(globals())
    with capture_output() as shown, torch.random.fork_rng():
        exec(answer, variables)
        said = eval(check, variables)
    texts = [str(output) for output in shown.outputs]
    for output in shown.outputs:
        texts += [str(value) for value in (output.data or {{}}).values()]
    text = "\\n".join([shown.stdout, *texts, "" if said is None else str(said)])
    if expected is None:
        assert "✓" in text, f"the solution is not accepted: {{text}}"
    else:
        assert "✓" not in text, f"{{answer!r}} is accepted: {{text}}"
        assert "Not tried yet" not in text, f"{{answer!r}} counts as not tried"
        assert re.search(expected, text), f"{{answer!r}} gets: {{text}}"
for case in {cases!r}:
    prove_exercise(*case)
del prove_exercise, case
"""


def stub_says_not_tried(cell: nbformat.NotebookNode) -> bool:
    return any(
        "Not tried yet" in str(output.get("data", "")) + str(output.get("text", ""))
        for output in cell.outputs
    )


def with_proofs(path: Path) -> nbformat.NotebookNode:
    """Return a copy that proves each exercise right below it.

    A cell without output is not compared by nbval, but fails when it raises.
    """
    notebook = copy.deepcopy(read(path))
    for number, call, solution in reversed(exercises(path)):
        check = ast.unparse(call)
        cases = [(solution, check, None)]
        for answer, hint in wrong_answers(path)[call.func.id]:
            cases.append((answer, check, hint))
        proof = nbformat.v4.new_code_cell(
            PROOF.format(cases=cases), id=f"proof-{number}"
        )
        notebook.cells.insert(number + 1, proof)
    return notebook


def strict_nbval(
    path: Path, build: Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run nbval on one notebook in a kernel of this interpreter."""
    command = [
        *(sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"),
        *(f"--nbval-cell-timeout={CELL_TIMEOUT}", "-p", "no:cacheprovider"),
        *("-c", os.devnull, f"--rootdir={path.parent}", "-q", "-x", str(path)),
    ]
    return subprocess.run(
        command,
        env={**os.environ, "COURSE_BUILD": str(build), **environ},
        capture_output=True,
        text=True,
        timeout=2400,
    )


def on_the_road(path: Path) -> bool:
    """Whether a notebook writes into `build/`, or reads there what another wrote."""
    row = re.search(r"^\|.*reads → writes.*$", read(path).cells[0].source, re.MULTILINE)
    return "`build/" in row[0]


# They run in order, and side by side with those of test_notebooks_alone.py.
ROAD = [path for path in NOTEBOOKS if on_the_road(path)]
each_on_the_road = pytest.mark.parametrize("path", ROAD, ids=name_of)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for copies; `build` in it is where the notebooks write."""
    return tmp_path_factory.mktemp("notebooks")


def copy_of(path: Path, shared: Path, prefix: str = "") -> Path:
    """Return where a notebook's copy belongs; an experiment in a folder again."""
    target = (shared / f"{name_of(path)}.ipynb").with_name(prefix + path.name)
    target.parent.mkdir(exist_ok=True)
    return target


@each_on_the_road
def test_strict_nbval_and_exercises(path: Path, shared: Path) -> None:
    for number, _, _ in exercises(path):
        assert stub_says_not_tried(read(path).cells[number])
    target = copy_of(path, shared)
    nbformat.write(with_proofs(path), target)
    done = strict_nbval(target, shared / "build")
    assert done.returncode == 0, done.stdout[-6000:]


def altered(output: nbformat.NotebookNode) -> bool:
    """Change one compared value of an output; say whether there was one."""
    if output.output_type == "stream":
        output.text = "altered\n" + output.text
        return True
    for kind in output.get("data", {}):
        if kind not in ("image/png", "image/jpeg"):
            output.data[kind] = f"altered {output.data[kind]}"
            return True
    return False


def once(paths: list[Path]) -> list:
    """The first notebook, and the others as slow tests.

    That nbval compares is a fact about nbval and how it is called. What could switch it
    off in one notebook, a tag or a comment, the rules above forbid.
    """
    return [
        paths[0],
        *(pytest.param(path, marks=pytest.mark.slow) for path in paths[1:]),
    ]


@pytest.mark.parametrize("path", once(ROAD), ids=name_of)
def test_strict_nbval_fails_when_an_output_is_altered(path: Path, shared: Path) -> None:
    # The part of the notebook down to its first compared output is enough.
    notebook = copy.deepcopy(read(path))
    number = next(n for n, cell in enumerate(notebook.cells) if is_compared(cell))
    assert any(altered(output) for output in notebook.cells[number].outputs)
    notebook.cells = notebook.cells[: number + 1]
    target = copy_of(path, shared, "altered_")
    nbformat.write(notebook, target)
    done = strict_nbval(target, shared / "build")
    assert done.returncode == 1, done.stdout[-3000:]
    assert "altered" in done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.slow
@each_notebook
@pytest.mark.parametrize("turn", ["first", "second"])
def test_strict_nbval_again_in_the_same_folder(
    path: Path, turn: str, shared: Path
) -> None:
    done = strict_nbval(path, shared / "build")
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.slow
@each_notebook
def test_strict_nbval_with_one_thread(path: Path, shared: Path) -> None:
    build = shared / "one" / "build"  # its name is shown, so it must be the same
    done = strict_nbval(path, build, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.slow
@each_notebook
def test_strict_nbval_without_bf16_in_hardware(path: Path, shared: Path) -> None:
    # PyTorch's and oneDNN's own switches make an older processor of this one.
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = strict_nbval(path, shared / "older" / "build", **older)
    assert done.returncode == 0, done.stdout[-6000:]
