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
import socket
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


def send_at_once(connection: Connection) -> None:
    """Have a local connection wait for nothing before it sends.

    Without, a second small message waits 40 ms for the first one's acknowledgement
    (Nagle's algorithm), and the pieces of a stream arrive in one heap.
    """
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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


def call(module: ModuleType, handler: str, inputs: Any) -> Any:
    """Call the handler and turn whatever happens into an `Output`."""
    from djl_python import Output

    try:
        outputs = getattr(module, handler)(inputs)
        if outputs is None:
            return Output(204, "No content")
        if not isinstance(outputs, Output):
            return Output().error(f"Invalid output type: {type(outputs)}")
        return outputs
    except Exception as error:
        traceback.print_exc()
        return _out_of_memory(error) or Output().error(str(error))


def _out_of_memory(error: Exception) -> Any:
    from djl_python import Output

    if type(error).__name__ in OUT_OF_MEMORY or "out of memory" in str(error):
        return Output(507, str(error))
    return None


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


def make_input(properties: dict[str, str], pairs: list[tuple[str, bytes]]) -> Any:
    """Return the `Input` that a message of the server stands for."""
    from djl_python import Input

    inputs = Input()
    inputs.properties = properties
    for key, value in pairs:
        inputs.content.add(key, value)
    inputs.function_name = properties["handler"]
    return inputs


class AsyncEngine:
    """Calls an asynchronous handler for each request at once, however many there are.

    Messages have the number of their request before them: (number, properties, pairs)
    come in; (number, "reply", code, message, properties, pairs) go out, one for each
    piece of a stream, after (number, "generator") and before (number, "done").
    """

    def __init__(self, connection: Connection, module: ModuleType):
        self.connection, self.module = connection, module
        self._tasks: set[asyncio.Task] = set()

    async def run(self) -> None:
        """Answer the warm-up, then every request until the server is gone."""
        inputs = make_input(*self.connection.recv())
        try:
            # A synchronous handler that returned None fails here, as it does in DJL.
            await getattr(self.module, inputs.function_name)(inputs)
        except Exception as error:
            traceback.print_exc()
            self.connection.send(("failed", f"{type(error).__name__}: {error}"))
            sys.exit(1)
        self.connection.send(("whole", 200, "OK", {}, []))
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

        def read() -> None:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    message = self.connection.recv()
                    loop.call_soon_threadsafe(arrived.put_nowait, message)
            os._exit(0)  # the server is gone, or done with this process

        threading.Thread(target=read, daemon=True, name="requests").start()
        while True:
            number, *content = await arrived.get()
            task = loop.create_task(self._answer(number, make_input(*content)))
            self._tasks.add(task)  # the loop itself keeps no task alive
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, inputs: Any) -> None:
        from djl_python import Output

        try:
            outputs = await getattr(self.module, inputs.function_name)(inputs)
            if inspect.isasyncgen(outputs):
                await self._stream(number, outputs)
                return
            if outputs is None:
                outputs = Output(204, "No content")
            elif not isinstance(outputs, Output):
                print(f"Invalid type returned from the handler: {type(outputs)}")
                outputs = Output(424, "invoke handler failure")
        except Exception as error:
            traceback.print_exc()
            outputs = _out_of_memory(error) or Output(
                424, "service.invoke_handler_async() failure"
            )
        self._send(number, outputs)
        self.connection.send((number, "done"))

    async def _stream(self, number: int, pieces: Any) -> None:
        """Send each piece; one that raises, or never says "last", leaves all waiting.

        That is what the real server does: the client's connection is cut in the end.
        """
        self.connection.send((number, "generator"))
        try:
            async for piece in pieces:
                self._send(number, piece)
        except Exception:
            traceback.print_exc()
        self.connection.send((number, "done"))

    def _send(self, number: int, outputs: Any) -> None:
        pairs = list(zip(outputs.content.keys, outputs.content.values, strict=True))
        head = (outputs.code, outputs.message, dict(outputs.properties))
        self.connection.send((number, "reply", *head, pairs))


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
    if settings["async_mode"]:
        asyncio.run(AsyncEngine(connection, module).run())
        return
    while True:
        inputs = make_input(*connection.recv())
        outputs = call(module, inputs.function_name, inputs)
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
        connection = Client(("127.0.0.1", int(port)), authkey=key)
        send_at_once(connection)
        run(connection)


if __name__ == "__main__":
    main()
