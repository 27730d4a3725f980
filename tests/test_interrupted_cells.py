"""A learner who loses patience: each slow cell is interrupted, and run again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from conftest import MakeNotebook
from utils import run
from utils.course import ROOT
from utils.run import find_notebooks, name_of

PATIENCE = 3  # seconds
NOTEBOOKS = find_notebooks(ROOT / "notebooks")


async def impatient(path: Path, environ: dict[str, str]) -> list[str]:
    """Execute a notebook; interrupt each cell that takes longer than a moment once.

    But for those that import: Python leaves a large package that was interrupted half
    imported, and only a new kernel helps (see notebooks/getting_unstuck.md). And not
    below a `BillingGuard`, which deletes what bills when a cell is interrupted:
    test_teardown.py, test_web_interrupted.py and test_jobs_interrupted.py try that.

    Returns:
        The ids of the cells that were interrupted.

    Raises:
        CellExecutionError: if a cell fails when it is run again, or by itself.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, km=run._kernel_manager(), timeout=None)
    interrupted, guarded = [], False
    async with client.async_setup_kernel(cwd=str(path.parent), env=environ):
        for index, cell in enumerate(notebook.cells):
            work = asyncio.ensure_future(client.async_execute_cell(cell, index))
            guarded |= "BillingGuard(" in cell.source
            patience = None if guarded or "import " in cell.source else PATIENCE
            done, _ = await asyncio.wait([work], timeout=patience)
            if not done:
                await client.km.interrupt_kernel()
                try:
                    await work
                except CellExecutionError as error:
                    if error.ename != "KeyboardInterrupt":
                        raise
                    interrupted.append(cell.id)
                    await client.async_execute_cell(cell, index)
            else:
                work.result()
    return interrupted


def test_a_cell_that_is_interrupted_runs_again(
    tmp_path: Path, make_notebook: MakeNotebook
) -> None:
    path = make_notebook(
        "01_first.ipynb", "import time\nseen = []", "seen.append(1)\ntime.sleep(4)"
    )
    assert asyncio.run(impatient(path, dict(os.environ))) == ["cell-1"]
    worse = make_notebook(
        "02_second.ipynb",
        "import time\nseen = []",
        "assert not seen\nseen.append(1)\ntime.sleep(4)",
    )
    with pytest.raises(CellExecutionError, match="AssertionError"):
        asyncio.run(impatient(worse, dict(os.environ)))


@pytest.mark.slow  # a little more than the notebooks themselves take
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_each_slow_cell_can_be_interrupted_and_run_again(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    build = tmp_path_factory.getbasetemp() / "interrupted" / "build"
    environ = {**os.environ, "COURSE_BUILD": str(build)}
    interrupted = asyncio.run(impatient(path, environ))
    print(f"{name_of(path)}: interrupted {', '.join(interrupted) or 'nothing'}")
