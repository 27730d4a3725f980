"""Serve the app and its page on this machine, in a process of their own.

`serve_web` starts `python -m utils.web.serving`: the app as Lambda would run it, behind
the gateway of `utils.web.gateway`, in uvicorn, on 127.0.0.1 only. What it needs comes
in through standard input, API keys included, since arguments can be read by every user
of the machine. AWS is reached as the environment says: `connect_aws` has pointed it at
the offline AWS, or left it as it was.

Once the app answers, the process writes one line of JSON on standard output. From then
on whatever the function writes there goes to the log, as in Lambda it goes to
CloudWatch. It ends when standard input does: also when its parent was killed.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from utils.course import ROOT, CourseError
from utils.files import replace_folder, write_text
from utils.temporary import temporary_folder
from utils.web.gateway import AsgiApp, Gateway, UsagePlan, routes_of

PAGE = Path(__file__).resolve().parent / "page"
# What index.html says; `page_about` puts something else there.
TITLE = "Ask about Amazon SageMaker"
EXAMPLE = "What is a SageMaker endpoint?"
START_SECONDS = 60
END_SECONDS = 5  # for requests under way; then it is killed
# Longer than clients keep a connection, or one would be closed in the moment in which
# its next request is sent.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024  # connections that wait to be taken
LAST_LINES = 12
TEMPORARY = "course-web-"
HEALTH = "/api/health"
# Pages of servers on this machine, such as JupyterLab's; for `framed_by`.
THIS_MACHINE = "http://127.0.0.1:* http://localhost:*"
# An environment in which SageMaker has an address where nothing answers.
NOWHERE = {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": "http://127.0.0.1:9"}


class WebError(CourseError):
    """A server of the app that did not start."""


# --- this side ------------------------------------------------------------------------


@dataclass(frozen=True)
class WebServer:
    """The app, served; made by `serve_web`.

    Attributes:
        url: where the page is, without a slash at the end.
        key: an API key that is let in.
        log: what the function has written on standard output, line by line.
        process: the one that serves.
    """

    url: str
    key: str = field(repr=False)
    log: Path
    process: subprocess.Popen = field(repr=False)

    def lines(self) -> list[dict[str, Any]]:
        """Return the log's lines that are JSON objects, in their order."""
        found = []
        for line in self.log.read_text("utf-8").split("\n"):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    found.append(entry)
        return found


def page_about(title: str, question: str, folder: Path) -> Path:
    """Write the page with a title and an example question of your own.

    First used in lesson 09, section 8.

    Args:
        title: what stands at its top, such as "Ask about our handbook".
        question: shown where a question is typed, until one is.
        folder: for the page; what it held is replaced.

    Returns:
        The folder.

    Raises:
        FileError: if it cannot be written.
    """

    def write(new: Path) -> None:
        shutil.copytree(PAGE, new, dirs_exist_ok=True)
        text = (new / "index.html").read_text(encoding="utf-8")
        for ours, yours in ((TITLE, title), (EXAMPLE, question)):
            text = text.replace(ours, escape(yours))
        write_text(new / "index.html", text)

    return replace_folder(folder, write)


@contextlib.contextmanager
def serve_web(
    settings: Mapping[str, str],
    page: Path = PAGE,
    keys: Mapping[str, UsagePlan] | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    log: Path | None = None,
    framed_by: str = "'self'",
) -> Iterator[WebServer]:
    """Serve app and page until the block ends, or a cell fails under a guard.

    First used in lesson 07, section 3.

    Args:
        settings: the function's variables, by their names (`WEB_ENDPOINT` …).
        page: the folder of the page.
        keys: API keys with their plans; by default one is made, with the plan that
            `UsagePlan()` has.
        environment: further variables of the process.
        log: where its standard output goes, to be kept; by default a file that is
            removed when the block ends.
        framed_by: who may show the page in a frame; see `security_headers`.

    Raises:
        WebError: if it does not start, with the reason.
    """
    keys = dict(keys or {secrets.token_urlsafe(24): UsagePlan()})
    with contextlib.ExitStack() as stack:
        if log is None:
            folder = stack.enter_context(temporary_folder(prefix=TEMPORARY))
            log = folder / "function.log"
        log = Path(log).resolve()
        log.parent.mkdir(parents=True, exist_ok=True)
        order = {
            "keys": {key: asdict(plan) for key, plan in keys.items()},
            "page": str(Path(page).resolve()),
            "log": str(log),
            "framed_by": framed_by,
        }
        variables = {**os.environ, **(environment or {}), **settings}
        process = _start(variables)
        stack.callback(_end, process)
        url = f"http://127.0.0.1:{_ready(process, order)}"
        if (guard := _guard()) is not None:
            # In a notebook a block may stay open when a cell fails.
            end = functools.partial(_end, process)
            stack.callback(guard.also_end(f"the server {url}", end))
        yield WebServer(url, next(iter(keys)), log, process)


def _guard() -> Any:
    """Return the guard that watches this process, if there is one."""
    from utils.deployment.billing import BillingGuard

    return BillingGuard.active


def _start(variables: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "utils.web.serving"],
        cwd=ROOT,
        env=dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # An interrupt in the notebook is not meant for it.
        start_new_session=True,
    )


def _ready(process: subprocess.Popen, order: dict[str, Any]) -> int:
    """Send a process its order and wait until it serves; return its port.

    Raises:
        WebError: with its reason, or with the end of what it wrote.
    """
    complaints: collections.deque[str] = collections.deque(maxlen=LAST_LINES)

    def listen() -> None:
        for line in process.stderr:
            complaints.append(line.decode("utf-8", "replace").rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
    finally:
        timer.cancel()
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        answer = json.loads(line)
    if "port" in answer:
        return answer["port"]
    if "error" in answer:
        raise WebError(f"The app does not start: {answer['error']}")
    process.kill()
    code = process.wait()
    listener.join(1)
    raise WebError(
        "\n".join([f"The app's process ended with code {code}. It said:", *complaints])
    )


def _end(process: subprocess.Popen) -> None:
    """End the process: asked first, killed if it does not."""
    with contextlib.suppress(BrokenPipeError):  # it is gone, its order unread
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS + 1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    process.stderr.close()


# --- the other side -------------------------------------------------------------------


class Lines:
    """Standard output in whole lines, whichever threads write to it.

    `print` writes a text and its line end one after the other: of two threads the lines
    could run together, and neither would be JSON.
    """

    encoding = "utf-8"

    def __init__(self, handle: int):
        self._handle = handle
        self._begun = threading.local()

    def write(self, text: str) -> int:
        """Take a text; each line is written as soon as it ends."""
        begun = getattr(self._begun, "text", "") + text
        whole, end, rest = begun.rpartition("\n")
        self._begun.text = rest
        if end:
            os.write(self._handle, f"{whole}\n".encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line that has not ended is not written."""

    def isatty(self) -> bool:
        """Say that nobody watches."""
        return False


def main() -> None:
    """Serve as the line on standard input says, until standard input ends."""
    order = json.loads(sys.stdin.buffer.readline())
    announce = os.fdopen(os.dup(1), "w")
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    sys.stdout = Lines(log)
    listener = _listener()

    def say(answer: dict[str, Any]) -> None:
        announce.write(json.dumps(answer) + "\n")
        announce.flush()

    try:
        app = _app()
        keys = {key: UsagePlan(**plan) for key, plan in order["keys"].items()}
        page, framed_by = Path(order["page"]), order["framed_by"]
        gateway = Gateway(app, keys, page, routes=routes_of(app), framed_by=framed_by)
        asyncio.run(_serve(gateway, app, listener, say))
    except Exception as error:
        # Our own text only: settings say what is wrong with them, and hold no secret.
        say({"error": f"{type(error).__name__}: {error}"})
    # Threads that wait for a model's answer have nobody to give it to.
    os._exit(0)


def _listener() -> socket.socket:
    """Return a socket on a free port of this machine.

    It names its protocol: asyncio turns off Nagle's algorithm for such sockets only,
    and with it each reply on a kept connection comes 40 ms late (its body waits until
    the client has acknowledged its head).
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    return listener


def _app() -> AsgiApp:
    from utils.web.service.app import create_app
    from utils.web.service.settings import Settings

    return create_app(Settings.from_environment())


async def _serve(gateway: AsgiApp, app: AsgiApp, listener: Any, say: Any) -> None:
    import uvicorn

    config = uvicorn.Config(
        gateway,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could say that it is another one
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    server = uvicorn.Server(config)
    _end_with_parent(server)
    await _require_health(app)
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    say({"port": listener.getsockname()[1]})
    await serving


def _end_with_parent(server: Any) -> None:
    """Stop serving when standard input ends, however the other side ended."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        server.should_exit = True
        threading.Timer(END_SECONDS, os._exit, (1,)).start()

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()


async def _require_health(app: AsgiApp) -> None:
    """Ask the app how it is, past the gateway, whose plans count requests.

    Raises:
        WebError: if it does not answer with status 200.
    """
    statuses = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": HEALTH,
        "raw_path": HEALTH.encode(),
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    if statuses != [200]:
        raise WebError(f"{HEALTH} answered with {statuses or 'nothing'}, not 200.")


if __name__ == "__main__":
    main()
