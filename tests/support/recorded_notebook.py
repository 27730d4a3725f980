"""Run a notebook in this process, and print its calls to AWS.

usage: python tests/support/recorded_notebook.py NOTEBOOK

The last line printed is JSON: the calls that were sent, and the requests that were held
to a service's model only. `recorded_calls` starts this and reads that line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.interrupted_notebook import Notebook, named, record_calls
from utils.course import ROOT, run_config
from utils.deployment import request_checks
from utils.deployment.aws import connect_aws

TIME_TO_END = 900  # seconds; the longest takes five minutes


def recorded_calls(
    notebook: Path, folder: Path, **more: str
) -> dict[str, list[dict[str, Any]]]:
    """Run a notebook in a process of its own, and return its calls to AWS.

    Args:
        notebook: to run.
        folder: gets what IPython writes.
        **more: variables of its environment.

    Returns:
        "calls", those that were sent, and "checked", requests that were held to a
        service's model only; each with `service`, `operation` and `params`.
    """
    done = subprocess.run(
        [sys.executable, __file__, str(notebook)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "IPYTHONDIR": str(folder / "ipython"),
            "MPLBACKEND": "agg",
            **more,
        },
        cwd=notebook.parent,
        capture_output=True,
        text=True,
        timeout=TIME_TO_END,
    )
    assert done.returncode == 0, (done.stderr or done.stdout)[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def record_checked() -> list[dict[str, Any]]:
    """Keep each request that the notebook has checked and that fits."""
    checked: list[dict[str, Any]] = []
    check = request_checks.validate_request

    def keep(service: str, operation: str, **request: Any) -> str:
        said = check(service, operation, **request)
        call = {"service": service, "operation": operation, "params": named(request)}
        checked.append(call)
        return said

    request_checks.validate_request = keep
    return checked


def main() -> None:
    """Run the notebook that the command line names, from its first cell to its last."""
    connect_aws(run_config())  # the offline AWS makes bucket and roles at its start
    calls, _ = record_calls()
    checked = record_checked()
    Notebook(Path(sys.argv[1])).run(None, None)
    print("\n" + json.dumps({"calls": calls, "checked": checked}))


if __name__ == "__main__":
    main()
