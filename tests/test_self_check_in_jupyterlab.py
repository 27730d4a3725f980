"""A self-check in JupyterLab, in a notebook as it was cloned: not trusted, not run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from support.page_server import browser, chromium
from utils.course import ROOT

LESSON = "05_evaluation.ipynb"
START = 60  # seconds for the server


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab of an account that has never run one; yields its address."""
    home = tmp_path_factory.mktemp("lab")
    notebooks = home / "notebooks"
    notebooks.mkdir()
    shutil.copy(ROOT / "notebooks" / LESSON, notebooks)
    runtime = home / "runtime"
    variables = {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
    }
    options = ["--no-browser", "--allow-root", "--port=0", "--ServerApp.ip=127.0.0.1"]
    options += ["--IdentityProvider.token=", f"--ServerApp.root_dir={notebooks}"]
    log = open(home / "log", "wb")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=os.environ | variables,
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


@pytest.mark.slow  # starting JupyterLab takes most of half a minute
@pytest.mark.skipif(not chromium(), reason="no Chromium on this machine")
def test_it_is_answered_by_keyboard_before_anything_is_trusted(lab: str) -> None:
    with urllib.request.urlopen(f"{lab}/api/contents/{LESSON}") as reply:
        cells = json.load(reply)["content"]["cells"]
    trusted = [cell["metadata"].get("trusted") for cell in cells if "outputs" in cell]
    assert trusted and not any(trusted)
    with browser() as started:
        page = started.new_context(viewport={"width": 1300, "height": 900}).new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{lab}/lab/tree/{LESSON}")
        check = page.locator(
            ".jp-MarkdownCell", has=page.locator("h2", has_text="Self-check")
        )
        # JupyterLab draws the cells that are in view.
        panel = page.locator(".jp-WindowedPanel-outer")
        panel.wait_for()
        end = time.monotonic() + 30
        while not check.count() and time.monotonic() < end:
            panel.evaluate("box => { box.scrollTop = box.scrollHeight }")
            page.wait_for_timeout(100)
        choices = check.locator("details")
        expect(choices).to_have_count(len(_summaries(cells)))
        assert choices.locator("summary").all_inner_texts() == _summaries(cells)
        first = check.locator("summary").first
        first.focus()
        for number, verdict in enumerate(("Right.", "No.", "No.")):
            page.keyboard.press("Space")
            said = choices.nth(number).locator("p")
            expect(said).to_be_visible()
            expect(said).to_contain_text(verdict)
            page.keyboard.press("Tab")
        # The links of the cell lead to headings and pages, without ids of its own.
        assert check.get_by_role("link", name="glossary").count() == 1
        page.context.close()


def _summaries(cells: list[dict]) -> list[str]:
    """What the closed answers show, as stored."""
    (source,) = [cell["source"] for cell in cells if cell.get("id") == "self-check"]
    return [
        line.partition("<summary>")[2].partition("</summary>")[0]
        for line in source.splitlines()
        if "<summary>" in line
    ]
