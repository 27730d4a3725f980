"""The Python process of one worker: load the entry point and answer requests.

Run by `server` as a script, in a process that has the model's folder as its working
folder and on its path, and that cannot import this repository: the container could not.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import traceback
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import ModuleType
from typing import Any

OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")


def become_djl_python() -> None:
    """Make this folder importable as `djl_python`, and the repository not at all."""
    here = Path(__file__).resolve().parent
    repository = here.parent.parent
    # The folder of a script is put on the path; ours holds modules named `layout`, …
    sys.path[:] = [
        entry
        for entry in sys.path
        if Path(entry or ".").resolve() not in (here, here.parent, repository)
    ]
    # An editable installation may come as an import hook instead of a path.
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if not str(getattr(finder, "__module__", "")).startswith("__editable__")
    ]
    spec = importlib.util.spec_from_file_location(
        "djl_python", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["djl_python"] = package
    spec.loader.exec_module(package)


def end_with_parent() -> None:
    """End this process when the server is gone, however the server ended.

    The server holds the other end of standard input and never writes to it. The pipe
    is moved aside, so that a handler that reads standard input does not disturb it.
    """
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()


def import_entry_point(entry_point: str, folder: Path) -> ModuleType:
    """Import a file of the model's folder, or an installed module by its name.

    Raises:
        ValueError: if there is no such file.
        ImportError: if there is no such module.
    """
    if not entry_point.endswith(".py"):
        return importlib.import_module(entry_point)
    path = folder / entry_point
    if not path.is_file():
        raise ValueError(f"entry-point file not found {path}.")
    name = f"{path.stem}_{zlib.crc32(os.urandom(8)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def scan_for_formatters(folder: Path) -> None:
    """Import model.py twice more, as DJL does to look for marked formatters.

    This is why an entry point must be cheap and safe to import more than once.
    """
    if not (folder / "model.py").is_file():
        return
    for _ in ("output formatter", "input formatter"):
        try:
            import_entry_point("model.py", folder)
        except Exception:
            traceback.print_exc()


def call(module: ModuleType, handler: str, inputs: Any, async_mode: bool) -> Any:
    """Call the handler and turn whatever happens into an `Output`.

    Raises:
        Exception: of an asynchronous handler at the warm-up, which ends the worker.
    """
    from djl_python import Output

    try:
        outputs = getattr(module, handler)(inputs)
        if async_mode:
            outputs = asyncio.run(_await(outputs))
        if outputs is None:
            return Output(204, "No content")
        if not isinstance(outputs, Output):
            return Output().error(f"Invalid output type: {type(outputs)}")
        return outputs
    except Exception as error:
        traceback.print_exc()
        if async_mode and inputs.is_empty():
            raise
        if type(error).__name__ in OUT_OF_MEMORY or "out of memory" in str(error):
            return Output(507, str(error))
        return Output().error(str(error))


async def _await(result: Any) -> Any:
    """Return the result of an asynchronous handler; gather a stream in its order."""
    if not inspect.isasyncgen(result):
        # A synchronous handler that returned None fails here, as it does in DJL.
        return await result
    from djl_python import Output

    items = [item async for item in result]
    if len(items) == 1 and isinstance(items[0], Output):
        return items[0]
    chunks = [
        item.content.value_at(0) if isinstance(item, Output) else item for item in items
    ]
    return Output().add_stream_content(chunks, lambda chunk: chunk)


def send(connection: Connection, outputs: Any) -> None:
    """Send a reply: whole, or its head and then chunk by chunk."""
    head = (outputs.code, outputs.message, dict(outputs.properties))
    if outputs.stream_content is None:
        pairs = list(zip(outputs.content.keys, outputs.content.values, strict=True))
        connection.send(("whole", *head, pairs))
        return
    connection.send(("stream", *head))
    for chunk in _chunks(outputs):
        connection.send(("chunk", chunk))
    connection.send(("end",))


def _chunks(outputs: Any) -> Iterator[bytes]:
    try:
        for item in outputs.stream_content:
            chunk = outputs.output_formatter(item)
            yield chunk.encode("utf-8") if isinstance(chunk, str) else bytes(chunk)
    except Exception as error:
        # The status has been sent: the text is all that can still tell the client.
        traceback.print_exc()
        yield str(error).encode("utf-8")


def run(connection: Connection) -> None:
    """Load the model named in the first message, then answer until the end."""
    settings = connection.recv()
    folder = Path(settings["folder"])
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        module = import_entry_point(settings["entry_point"], folder)
    except BaseException as error:
        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        sys.exit(1)
    scan_for_formatters(folder)
    connection.send(("started",))

    from djl_python import Input

    while True:
        inputs = Input()
        inputs.properties, pairs = connection.recv()
        for key, value in pairs:
            inputs.content.add(key, value)
        inputs.function_name = inputs.properties["handler"]
        try:
            outputs = call(module, inputs.function_name, inputs, settings["async_mode"])
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))
            sys.exit(1)
        send(connection, outputs)
        try:
            outputs.execute_finalize()
        except Exception:
            traceback.print_exc()


def main() -> None:
    """Become the process of a worker, under the port and key of its server."""
    end_with_parent()
    become_djl_python()
    port, key = sys.argv[1], bytes.fromhex(os.environ.pop("DJL_STAND_IN_KEY"))
    # A closed connection means that the server is done with this process.
    with contextlib.suppress(EOFError, ConnectionError):
        run(Client(("127.0.0.1", int(port)), authkey=key))


if __name__ == "__main__":
    main()
