"""Run notebook 06 in this process, break off at cells, and print what is left.

usage: python tests/support/interrupted_notebook.py WAY[,WAY…] [CELL…]

The ways to break off: `error` raises at the end of the cell, `interrupt` raises what
Ctrl-C raises there, `signal` sends Ctrl-C while the cell runs. The cells are given by
their ids; without any, every cell is tried. After each from the guard on the notebook
goes on again from the guard, as it tells its reader to. At last it runs to its end.

A small entry point stands in for the model, so that an endpoint is up in a second; the
rest is the notebook as it is. The last line printed is JSON: what was left after each
case, and the calls to AWS of the run to the end.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import botocore.client
import nbformat
import psutil
from IPython.core.interactiveshell import InteractiveShell

from utils.course import ROOT
from utils.deployment import artifact
from utils.deployment.billing import TAG
from utils.offline_aws.control_plane import OfflineAws

NOTEBOOK = ROOT / "notebooks" / "06_djl_deployment.ipynb"
TIME_TO_END = 60  # seconds; one that ends takes a few, more on a busy machine
FIRST = "guard"  # before it nothing is created on AWS
ENTRY_POINT = """
import json

from djl_python.async_utils import create_non_stream_output, create_stream_chunk_output

ANSWER = {"generated_text": "an answer"}


async def handle(inputs):
    if inputs.is_empty():
        return None
    body = inputs.get_as_json()
    hot = body.get("parameters", {}).get("temperature") == "hot"
    if hot or body.get("context") == 3:
        return create_non_stream_output("", error="parameters.temperature", code=400)
    if body.get("stream"):
        return pieces()
    return create_non_stream_output(reply(body))


def reply(body):
    if "messages" in body:
        message = {"role": "assistant", "content": "an answer"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "choices": [choice]}
    if isinstance(body["inputs"], list):
        return json.dumps([ANSWER for _ in body["inputs"]])
    return {**ANSWER, "notes": []} if "retrieve" in body else ANSWER


async def pieces():
    try:
        yield create_stream_chunk_output({"outputs": "an "}, False)
        yield create_stream_chunk_output({"outputs": "answer"}, True)
    except Exception as error:
        yield create_stream_chunk_output("", True, error=str(error), code=424)
"""


def reuse_artifact(entry_point: Path) -> None:
    """Build with the small entry point, and validate without loading."""
    artifact.build = functools.partial(artifact.build, entry_point=entry_point)
    validate = artifact.validate
    artifact.validate = lambda path, load=True: validate(path, load=False)


def record_calls() -> tuple[list[dict[str, Any]], list[str]]:
    """Keep every call to AWS of this process, whichever library makes it.

    Returns:
        The calls with their parameters; and the operations whose request, as it was
        sent, held the course's tag.
    """
    calls: list[dict[str, Any]] = []
    tagged: list[str] = []
    make = botocore.client.BaseClient._make_api_call
    send = botocore.client.BaseClient._make_request

    def keep(self: Any, operation: str, params: dict) -> Any:
        names = named(params)
        service = self.meta.service_model.service_name
        calls.append({"service": service, "operation": operation, "params": names})
        return make(self, operation, params)

    def look(self: Any, operation: Any, request: dict, context: dict) -> Any:
        # A file would be read to its end, and sent empty.
        body = request["body"] if isinstance(request["body"], bytes) else b""
        if f'"{TAG}"'.encode() in body:
            tagged.append(operation.name)
        return send(self, operation, request, context)

    botocore.client.BaseClient._make_api_call = keep
    botocore.client.BaseClient._make_request = look
    return calls, tagged


def named(params: dict[str, Any]) -> dict[str, Any]:
    """Return a request's texts and lists of texts, in which the names stand."""
    return {
        key: value
        for key, value in params.items()
        if isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    }


class Notebook:
    """A notebook's code cells, run in this process."""

    def __init__(self, path: Path = NOTEBOOK) -> None:
        cells = nbformat.read(path, as_version=4).cells
        self.cells = {
            cell.id: cell.source for cell in cells if cell.cell_type == "code"
        }
        self.shell = InteractiveShell.instance()
        self.shell.showtraceback = lambda *_, **__: None

    def run(self, first: str | None, last: str | None) -> None:
        """Run the cells from `first` up to, and without, `last`.

        Raises:
            SystemExit: if one of them fails.
        """
        ids = list(self.cells)
        start = ids.index(first) if first else 0
        for name in ids[start : ids.index(last) if last else None]:
            result = self.shell.run_cell(self.cells[name])
            if not result.success:
                error = result.error_before_exec or result.error_in_exec
                sys.exit(f"The cell {name} failed: {error!r}")

    def break_off(self, name: str, way: str) -> None:
        """Run a cell that does not get through."""
        ends = {
            "error": "raise RuntimeError('planted')",
            "interrupt": "raise KeyboardInterrupt",
            "signal": "import time; time.sleep(60)",
        }
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        if way == "signal":
            timer.start()
        try:
            result = self.shell.run_cell(f"{self.cells[name]}\n{ends[way]}")
        finally:
            timer.cancel()
        if result.success:
            sys.exit(f"The cell {name} was to break off and did not.")


def what_is_left() -> list[str]:
    """List what the account holds, asked anew, and the processes that serve."""
    return (what_aws_holds() if OfflineAws.current else []) + processes()


def what_aws_holds() -> list[str]:
    """List endpoints, configurations, models and uploads of whatever run."""
    import boto3

    client = boto3.client("sagemaker")
    left = [
        f"{kind} {item[key]}"
        for kind, listed, key in (
            ("endpoint", client.list_endpoints()["Endpoints"], "EndpointName"),
            (
                "endpoint configuration",
                client.list_endpoint_configs()["EndpointConfigs"],
                "EndpointConfigName",
            ),
            ("model", client.list_models()["Models"], "ModelName"),
        )
        for item in listed
    ]
    s3 = boto3.client("s3")
    for bucket in s3.list_buckets()["Buckets"]:
        for item in s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
            left.append(f"S3 object {item['Key']}")
    return left


def processes() -> list[str]:
    """List the processes below this one that do not end, given the time."""
    deadline = time.monotonic() + TIME_TO_END
    while workers := [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
    ]:
        if time.monotonic() > deadline:
            return [f"process {worker.pid}" for worker in workers]
        time.sleep(0.05)
    return []


def main() -> None:
    """Break off as the command line says, run to the end, and print what was left."""
    ways, *cells = sys.argv[1:]
    entry_point = Path(os.environ["COURSE_BUILD"]) / "entry_point.py"
    entry_point.write_text(ENTRY_POINT)
    reuse_artifact(entry_point)
    notebook = Notebook()
    ids = list(notebook.cells)
    guard = ids.index(FIRST)
    left = {}

    def break_off(name: str) -> None:
        for way in ways.split(","):
            if ids.index(name) > guard:
                notebook.run(FIRST, name)
            notebook.break_off(name, way)
            left[f"{name}, {way}"] = what_is_left()

    for name, after in zip(ids[:guard], ids[1:], strict=False):
        notebook.run(name, after)
        if not cells:
            break_off(name)  # not before: half an import cannot be done again
            notebook.run(name, after)
    for name in cells or ids[guard:]:
        break_off(name)
    calls, tagged = record_calls()
    notebook.run("connect", None)
    calls = list(calls)  # without those that look for what is left
    left["the end"] = what_is_left()
    print("\n" + json.dumps({"left": left, "calls": calls, "tagged": tagged}))


if __name__ == "__main__":
    main()
