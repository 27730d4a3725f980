"""JupyterLab as a learner has it: a server of its own, and a notebook in Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect

START = 60  # seconds for the server
SCROLL = 30  # seconds to find a cell


@contextmanager
def jupyterlab(home: Path, **environ: str) -> Iterator[str]:
    """Serve `home/notebooks` for an account that has never run JupyterLab.

    Args:
        home: the account's folder; it holds a folder `notebooks`.
        environ: environment variables beside the caller's.

    Yields:
        The server's address.
    """
    runtime = home / "runtime"
    variables = {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
    }
    options = ["--no-browser", "--allow-root", "--port=0", "--ServerApp.ip=127.0.0.1"]
    options += ["--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={home / 'notebooks'}"]
    log = open(home / "log", "wb")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=os.environ | variables | environ,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield _address(server, runtime, home / "log")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def _address(server: subprocess.Popen, runtime: Path, log: Path) -> str:
    """The address that a server has noted, once it answers."""
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                port = json.loads(file.read_text())["port"]
                address = f"http://127.0.0.1:{port}"
                urllib.request.urlopen(f"{address}/api").close()
            except (OSError, ValueError):
                continue
            return address
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not start: {log.read_text()[-2000:]}")


def asked(address: str) -> dict:
    """What the server replies, from JSON."""
    with urllib.request.urlopen(address) as reply:
        return json.load(reply)


class OpenNotebook:
    """A notebook that is open in JupyterLab."""

    def __init__(self, page: Page, lab: str, name: str) -> None:
        """Open it, and wait until it is drawn."""
        self.page = page
        self.lab = lab
        self.name = name
        page.set_default_timeout(60_000)
        page.goto(f"{lab}/lab/tree/{name}?reset")
        self.panel = page.locator(".jp-WindowedPanel-outer")
        self.panel.wait_for()
        self._wait_for_state("idle", START)  # the kernel has started

    def menu(self, menu: str, entry: str) -> None:
        """Choose an entry of the menu bar, such as "Run", "Run All Cells"."""
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        # The second column of an entry is its shortcut.
        self.page.get_by_role("menuitem", name=re.compile(rf"^{entry}")).first.click()

    def cell(self, text: str, kind: str = "jp-CodeCell") -> Locator:
        """Scroll down to the first cell with this text: JupyterLab draws what is seen.

        Raises:
            AssertionError: there is none.
        """
        found = self.page.locator(f".{kind}", has_text=text)
        self.panel.evaluate("box => { box.scrollTop = 0 }")
        end = time.monotonic() + SCROLL
        while not found.count() and time.monotonic() < end:
            self.panel.evaluate("box => { box.scrollTop += box.clientHeight / 2 }")
            self.page.wait_for_timeout(100)
        assert found.count(), f"no cell with {text!r} in {self.name}"
        found.first.scroll_into_view_if_needed()
        return found.first

    def run_all(self, seconds: float) -> None:
        """Run all cells by the menu, and wait until the kernel has done them."""
        self.menu("Run", "Run All Cells")
        self._wait_for_state("busy", START)
        self._wait_for_state("idle", seconds)

    def _wait_for_state(self, wanted: str, seconds: float) -> None:
        """Wait for a kernel's state; between two cells it is idle for a moment."""
        end = time.monotonic() + seconds
        times = 0
        while times < (3 if wanted == "idle" else 1):
            assert time.monotonic() < end, f"{self.name}: not {wanted} in {seconds} s"
            self.page.wait_for_timeout(300)
            states = [
                session["kernel"]["execution_state"]
                for session in asked(f"{self.lab}/api/sessions")
                if session["path"] == self.name
            ]
            times = times + 1 if states == [wanted] else 0

    def saved(self) -> nbformat.NotebookNode:
        """Save it by the menu, and return what the file then holds."""
        contents = f"{self.lab}/api/contents/{self.name}"
        before = asked(f"{contents}?content=0")["last_modified"]
        self.menu("File", "Save Notebook")
        end = time.monotonic() + SCROLL
        while asked(f"{contents}?content=0")["last_modified"] == before:
            assert time.monotonic() < end, f"{self.name} is not saved"
            self.page.wait_for_timeout(200)
        return nbformat.from_dict(asked(contents)["content"])

    def answer(self, cell: Locator, source: str, reply: str) -> None:
        """Type into a cell in place of what it holds, run it, and expect a text."""
        editor = cell.locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Control+Enter")
        expect(cell.locator(".jp-OutputArea-output").last).to_contain_text(reply)
