"""Execute the notebooks in order and show what came out: `python -m utils.run`.

    python -m utils.run                  all lessons, then all experiments; results, and
                                         the seconds of each cell, in COURSE_BUILD/run
    python -m utils.run 03 04            only these lessons
    python -m utils.run experiments      only the experiments
    python -m utils.run experiments/04   those of lesson 04; a whole name is one of them
    python -m utils.run --in-place 03    store the outputs in notebooks/ itself

Exit codes: 0 all ran, 1 a cell failed or a setting is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import copy
import functools
import mimetypes
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

import nbformat
import psutil

from utils.course import (
    KEY_FIGURE,
    ROOT,
    CourseError,
    RunConfig,
    portable_name,
    run_config,
)
from utils.files import write_text
from utils.machine import openmp_setting

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

NOTEBOOKS = ROOT / "notebooks"
EXPERIMENTS = "experiments"  # a folder in that of the lessons
INTERRUPTED = 130
# What a kernel gets to clean up after itself (delete an endpoint, say), in seconds.
GRACE = 20
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
IMAGE = re.compile(r"!\[(?P<alt>[^]]*)\]\((?P<path>[^):]+)\)")
MATH = re.compile(r"\$[^$\s][^$]*\$")
# The page must open without network. Only formulas need a script from elsewhere; it is
# asked for last and in the background, and without it they are shown as written.
OFFLINE_PAGE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_css -%}{{ super() }}
<style>/* nbconvert shows code within a Markdown output in the font of the text. */
.jp-RenderedMarkdown.jp-OutputArea-output pre {
  font-family: var(--jp-code-font-family); font-size: var(--jp-code-font-size);
}
</style>{%- endblock -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- if resources.has_math -%}
<script type="text/x-mathjax-config">
MathJax.Hub.Config({tex2jax: {inlineMath: [["$", "$"]], processEscapes: true}});
</script>
<script async src="{{ resources.mathjax_url }}"></script>
{%- endif -%}{%- endblock -%}
"""


class RunError(CourseError):
    """A notebook could not be executed to its end."""


class Interrupted(Exception):
    """The run was stopped from outside."""


@dataclass(frozen=True)
class Result:
    """One line of the closing table."""

    notebook: str
    seconds: float
    figure: str


def find_notebooks(folder: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Return the lessons of `folder` in order, then its experiments; or some of them.

    Args:
        folder: of the lessons; the experiments lie in its folder `experiments`.
        wanted: a lesson's number or name, "experiments", or "experiments/" and the
            number or name of an experiment; ".ipynb" at the end does not matter.

    Raises:
        RunError: when there is none, or something wanted fits none.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    paths += sorted((folder / EXPERIMENTS).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise RunError(
            f"There is no notebook named NN_….ipynb in {folder}: give another folder."
        )
    if not wanted:
        return paths
    chosen: set[Path] = set()
    for one in wanted:
        fitting = [path for path in paths if _fits(path, one)]
        if not fitting:
            known = ", ".join(
                name_of(path) if is_experiment(path) else path.name[:2]
                for path in paths
            )
            raise RunError(f"There is no notebook {one!r}: give some of {known}.")
        chosen.update(fitting)
    return [path for path in paths if path in chosen]


def is_experiment(path: Path) -> bool:
    """Return whether a notebook is an experiment, and no lesson."""
    return path.parent.name == EXPERIMENTS


def name_of(path: Path) -> str:
    """Return a notebook's name, such as "experiments/04_quantisation"."""
    return f"{EXPERIMENTS}/{path.stem}" if is_experiment(path) else path.stem


def _fits(path: Path, wanted: str) -> bool:
    """Return whether a notebook is meant; see `find_notebooks`."""
    wanted = wanted.strip("/").removesuffix(".ipynb")
    name = name_of(path)
    folder = EXPERIMENTS if is_experiment(path) else None
    return wanted in (name, path.stem, folder) or name.startswith(f"{wanted}_")


def _home(paths: Sequence[Path]) -> Path:
    """Return the folder of the lessons, which that of the experiments lies in."""
    return paths[0].parent.parent if is_experiment(paths[0]) else paths[0].parent


def key_figure_of(notebook: nbformat.NotebookNode) -> str:
    """Return the last `course.key_figure` among the outputs, or an empty string."""
    figure = ""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found = output.get("metadata", {}).get(KEY_FIGURE)
            if found:
                figure = f"{found['label']}: {found['value']}"
    return figure


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove in place what differs from machine to machine; ids and tags stay."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    return notebook


def as_text(notebook: nbformat.NotebookNode) -> str:
    """Return the notebook as it stands in a file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _embedded(match: re.Match[str], folder: Path) -> str:
    """Return an image of the text as HTML that carries the picture itself."""
    path = folder / match["path"]
    kind = mimetypes.guess_type(path.name)[0]
    if not kind or not path.is_file():
        return match[0]
    picture = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(match["alt"])}" src="data:{kind};base64,{picture}">'


def as_page(notebook: nbformat.NotebookNode, name: str, folder: Path) -> str:
    """Return the notebook as one HTML page that needs no network.

    Args:
        notebook: an executed notebook.
        name: the title of the page.
        folder: where the images lie that the notebook's text names.
    """
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            # nbconvert's own embed_images closes a <details> at its first blank line.
            cell.source = IMAGE.sub(
                functools.partial(_embedded, folder=folder), cell.source
            )
    exporter = HTMLExporter(raw_template=OFFLINE_PAGE)
    has_math = any(
        cell.cell_type == "markdown" and MATH.search(cell.source)
        for cell in notebook.cells
    )
    page, _ = exporter.from_notebook_node(
        notebook, resources={"metadata": {"name": name}, "has_math": has_math}
    )
    return page


def _kernel_manager() -> AsyncKernelManager:
    """Return a manager whose kernel is the running interpreter.

    A kernel specification named python3 may belong to any other installation.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f"]
            return KernelSpec(
                argv=[*command, "{connection_file}"],
                display_name="Python 3 (ipykernel)",
                language="python",
            )

    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=ThisInterpreter()
    )
    manager.shutdown_wait_time = GRACE
    return manager


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End processes that outlived their kernel."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _descendants() -> list[psutil.Process]:
    """Return what this process has started, and what that has."""
    return psutil.Process().children(recursive=True)


async def _stop_kernel(
    manager: AsyncKernelManager, others: Collection[psutil.Process]
) -> None:
    """Stop a kernel, which may not even have started, and whatever it has started.

    Descendants of this process that are among `others` are left alone.

    `shutdown_kernel` interrupts the running cell, so that its `with` and `finally`
    blocks, and the kernel's exit handlers, can clean up. An interrupt of our own before
    it would be a second one, and could strike the cleaning up itself.
    """
    started = _descendants()
    try:
        if manager.has_kernel and await manager.is_alive():
            await manager.shutdown_kernel()
    finally:
        with contextlib.suppress(RuntimeError, OSError):
            await manager.cleanup_resources()
        # A process whose parent has ended is no longer among the descendants.
        _kill([one for one in (*started, *_descendants()) if one not in others])


def _log_tail(log: IO[bytes]) -> str:
    """Return the last lines that a dead kernel wrote, as one sentence, or nothing."""
    log.seek(0)
    lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
    return f" Its last words: {' / '.join(lines[-3:])}" if lines else ""


async def execute(
    path: Path,
    environ: Mapping[str, str],
    on_cell: Callable[[int, int], None] = lambda number, count: None,
    on_failure: Callable[[nbformat.NotebookNode], None] = lambda notebook: None,
) -> nbformat.NotebookNode:
    """Execute one notebook in a kernel of its own, in the notebook's folder.

    Args:
        path: of the notebook; the file is not changed.
        environ: the kernel's environment variables.
        on_cell: called before each cell with its number and the number of cells.
        on_failure: called with the notebook as far as it came.

    Raises:
        RunError: naming the notebook, the cell and the error.
        asyncio.CancelledError: when the task is cancelled; the kernel is gone then.
    """
    from nbclient import NotebookClient

    notebook = _read_without_outputs(path)
    others = set(_descendants())
    manager = _kernel_manager()
    client = NotebookClient(
        notebook, km=manager, timeout=None, record_timing=False, coalesce_streams=True
    )
    client.reset_execution_trackers()
    count = len(notebook.cells)
    with tempfile.TemporaryFile() as log:
        try:
            await client.async_start_new_kernel(
                cwd=str(path.parent), env=dict(environ), stdout=log, stderr=log
            )
            await client.async_start_new_kernel_client()
            for index, cell in enumerate(notebook.cells):
                on_cell(index + 1, count)
                place = f"cell {index + 1} of {count} ({cell.get('id')})"
                where = f"{name_of(path)}.ipynb, {place}"
                try:
                    await _execute_cell(client, index, where, log)
                except RunError:
                    on_failure(notebook)
                    raise
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            await _stop_kernel(manager, others)
    return notebook


def _read_without_outputs(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as if none of its cells had been executed."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:
        raise RunError(
            f"{path.name} is not a notebook that can be read ({error}): restore it "
            f"with `git checkout -- notebooks/{name_of(path)}.ipynb`."
        ) from error
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


async def _execute_cell(
    client: NotebookClient, index: int, where: str, log: IO[bytes]
) -> None:
    """Execute one cell; a failure is told with `where` it was and the kernel's log."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    try:
        await client.async_execute_cell(
            client.nb.cells[index],
            index,
            execution_count=client.code_cells_executed + 1,
        )
    except CellExecutionError as error:
        message = ANSI.sub("", f"{error.ename}: {error.evalue}").strip()
        raise RunError(f"{where} failed.\n  {message}") from error
    except DeadKernelError as error:
        # nbclient takes every cancelled wait for a dead kernel.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise RunError(
            f"{where}: the kernel died, most often for want of memory." + _log_tail(log)
        ) from error


def _shown(path: Path) -> str:
    """Return a path as a reader in the working folder would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def table(results: Sequence[Result]) -> str:
    """Return the closing table: notebook, seconds, key figure."""
    width = max(len("notebook"), *(len(result.notebook) for result in results))
    lines = [f"{'notebook':<{width}}  seconds  key figure"]
    for result in results:
        lines.append(
            f"{result.notebook:<{width}}  {result.seconds:7.1f}  {result.figure}"
        )
    total = sum(result.seconds for result in results)
    return "\n".join([*lines, f"{'total':<{width}}  {total:7.1f}"])


async def run(
    paths: Sequence[Path], config: RunConfig, *, in_place: bool
) -> list[Result]:
    """Execute notebooks one after the other, with a progress line each.

    Args:
        paths: the notebooks in the order to run them.
        config: the run's configuration, handed to the kernels.
        in_place: store the outputs in the notebooks themselves, instead of writing
            copies and pages to the build folder.

    Raises:
        RunError: from the first notebook that fails.
    """
    environ = {
        **os.environ,
        "COURSE_AWS": config.aws,
        "COURSE_BUILD": str(config.build),
        "TQDM_DISABLE": "1",  # a bar would be kept as an output
    }
    # What is not set is for each lesson to choose.
    for name, value in (("COURSE_MODEL", config.model), ("COURSE_DATA", config.data)):
        if _is_set(name):
            environ[name] = str(value)
    folder = config.build / "run"
    if not in_place:
        _prepare(folder, paths)
    results: list[Result] = []
    for position, path in enumerate(paths, start=1):

        def keep_failed(notebook: nbformat.NotebookNode, path: Path = path) -> None:
            if not in_place:
                write_text(_result(folder, path, "ipynb"), as_text(clean(notebook)))

        head = f"[{position}/{len(paths)}] {name_of(path)}.ipynb"
        notebook, seconds, cells = await _execute_with_progress(
            path, environ, head, keep_failed
        )
        write_text(_result(folder, path, "csv"), _cell_table(notebook, cells))
        text = as_text(clean(notebook))
        if in_place:
            write_text(path, text)
        else:
            write_text(_result(folder, path, "ipynb"), text)
            page = as_page(notebook, path.stem, path.parent)
            write_text(_result(folder, path, "html"), page)
        results.append(Result(name_of(path), seconds, key_figure_of(notebook)))
        # Lets a signal through that came while the files were written.
        await asyncio.sleep(0)
    return results


def _cell_table(notebook: nbformat.NotebookNode, seconds: Sequence[float]) -> str:
    """Return what each code cell took, as CSV."""
    lines = [
        f"{cell.id},{taken:.2f}"
        for cell, taken in zip(notebook.cells, seconds, strict=True)
        if cell.cell_type == "code"
    ]
    return "\n".join(["cell,seconds", *lines, ""])


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable, "").strip())


def _settings_line(config: RunConfig) -> str:
    """Return the configuration in one line; what is not set, lessons choose."""
    line = str(config)
    if not _is_set("COURSE_MODEL"):
        line = line.replace(f"model {config.model}", "each lesson's own model", 1)
        if not _is_set("COURSE_DATA"):
            line = line.replace(f" · data {portable_name(config.data)}", " and data", 1)
    return line


def _result(folder: Path, path: Path, kind: str) -> Path:
    """Return where the executed copy, or the page, of a notebook belongs."""
    return folder / f"{name_of(path)}.{kind}"


def _prepare(folder: Path, paths: Sequence[Path]) -> None:
    """Remove what earlier runs left of these notebooks, and copy their figures."""
    for path in paths:
        for kind in ("ipynb", "html", "csv"):
            _result(folder, path, kind).unlink(missing_ok=True)
    figures = _home(paths) / "figures"
    if figures.is_dir():
        shutil.copytree(figures, folder / "figures", dirs_exist_ok=True)


async def _execute_with_progress(
    path: Path,
    environ: Mapping[str, str],
    head: str,
    on_failure: Callable[[nbformat.NotebookNode], None],
) -> tuple[nbformat.NotebookNode, float, list[float]]:
    """Execute one notebook, with its progress on a line that begins with `head`.

    Returns:
        The notebook, the seconds that it took, and those of each cell.
    """
    live = sys.stdout.isatty()
    times: list[float] = []

    def show_cell(number: int, count: int) -> None:
        times.append(time.perf_counter())
        if live:
            print(f"\r{head}  cell {number}/{count} ", end="", flush=True)

    print(head, end="", flush=True)
    start = time.perf_counter()
    try:
        notebook = await execute(path, environ, show_cell, on_failure)
    except BaseException:
        print("\r" + head + "  ✗" + " " * 12 if live else "  ✗", flush=True)
        raise
    end = time.perf_counter()
    seconds = end - start
    done = f"  {seconds:.1f} s"
    print(f"\r{head}{done}{' ' * 12}" if live else done, flush=True)
    each = [after - before for before, after in pairwise([*times, end])]
    return notebook, seconds, each


async def _stoppable(
    paths: Sequence[Path], config: RunConfig, *, in_place: bool
) -> list[Result]:
    """Run; a signal to stop ends the kernel first, a second one ends it at once."""
    task = asyncio.ensure_future(run(paths, config, in_place=in_place))
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            _kill(_descendants())
            os._exit(INTERRUPTED)
        asked = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError as error:
        raise Interrupted from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m utils.run", description="Execute the course's notebooks."
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        metavar="NN",
        help="such as 03 or experiments/04_quantisation; `experiments` is all of those",
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="store the outputs in the notebooks instead of in the build folder",
    )
    parser.add_argument(
        "--notebooks",
        dest="folder",
        type=Path,
        default=NOTEBOOKS,
        help="the folder they lie in",
    )
    return parser.parse_args(argv)


def _stop_on_signal(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the course; return the exit code."""
    arguments = _arguments(argv)
    for number in STOP_SIGNALS:
        signal.signal(number, _stop_on_signal)
    try:
        config = run_config()
        paths = find_notebooks(arguments.folder.resolve(), arguments.notebooks)
        defaults = config.embedded and not _is_set("COURSE_MODEL")
        if arguments.in_place and not (defaults and config.aws == "local"):
            raise RunError(
                f"Outputs are stored from the defaults only, and this is {config}: "
                "unset COURSE_MODEL, COURSE_DATA and COURSE_AWS."
            )
        print(f"{_settings_line(config)} · {openmp_setting()}", flush=True)
        results = asyncio.run(_stoppable(paths, config, in_place=arguments.in_place))
        print("\n" + table(results))
        if arguments.in_place:
            print(f"\nStored in {_shown(_home(paths))}.")
        else:
            print(f"\nExecuted copies and pages: {_shown(config.build / 'run')}")
        return 0
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"\nCould not write {error.filename}: {error.strerror}. Free some space, "
            "or point COURSE_BUILD to a folder that you may write to.",
            file=sys.stderr,
        )
        return 1
    except (Interrupted, KeyboardInterrupt):
        print(
            "\nInterrupted: no kernel is left running. Results of the notebooks that "
            "were finished are kept; the next run starts afresh.",
            file=sys.stderr,
        )
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
