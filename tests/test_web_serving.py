"""The app in a process of its own: it starts soon, answers, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from support.endpoints import is_gone
from utils.course import ROOT
from utils.deployment.billing import BillingGuard
from utils.web.gateway import UsagePlan
from utils.web.serving import PAGE, Lines, WebError, page_about, serve_web

KEY = "a-key-of-the-tests-0123456789"
SETTINGS = {"WEB_ENDPOINT": "course-none", "WEB_TABLE": "course-none"}
# Clients of AWS need some; nothing listens there.
NOWHERE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
}
MOST_START = 3.0  # seconds, on a machine that is not busy


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    return folder


@pytest.fixture(scope="module")
def web(page):
    plan = {KEY: UsagePlan(rate=100, burst=100)}
    with serve_web(SETTINGS, page, plan, NOWHERE) as server:
        yield server


def post(web, path: str, body, key: str | None = KEY) -> httpx.Response:
    headers = {} if key is None else {"x-api-key": key}
    return httpx.post(web.url + path, json=body, headers=headers, timeout=60)


def of_request(web, before: int) -> list[dict]:
    """The log's lines from `before` on, once those of a request are complete."""
    lines = web.lines()[before:]
    said = any(line.get("message") == "request" for line in lines)
    return lines if said and any("_aws" in line for line in lines) else []


# --- what is served -------------------------------------------------------------------


def test_page_and_api_are_served_on_this_machine_only(web) -> None:
    assert "<title>page</title>" in httpx.get(web.url).text
    reply = httpx.get(f"{web.url}/api/health", headers={"x-api-key": web.key})
    assert reply.json() == {"status": "ok", "breaker": "closed"}
    assert web.key == KEY and KEY not in repr(web)
    server = psutil.Process(web.process.pid)
    listening = [c for c in server.net_connections() if c.status == "LISTEN"]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]


def test_no_key_stands_in_the_arguments(web) -> None:
    process = psutil.Process(web.process.pid)
    assert KEY not in " ".join(process.cmdline())
    assert KEY not in str(process.environ())


def test_a_wrong_key_is_refused_by_the_gateway(web) -> None:
    before = web.log.read_text()
    for key in (None, "x" * 20):
        reply = post(web, "/api/generate", {"question": "why?"}, key)
        assert reply.status_code == 403
    assert web.log.read_text() == before  # the app was not asked


def test_the_function_writes_its_lines_to_the_log(web) -> None:
    question = "what is a canary?"
    before = len(web.lines())
    reply = post(web, "/api/generate", {"question": question})
    documented = {502: "model_error", 503: "unavailable"}
    assert reply.json()["error"]["code"] == documented[reply.status_code]
    deadline = time.monotonic() + 10
    while not (lines := of_request(web, before)) and time.monotonic() < deadline:
        time.sleep(0.01)  # they are written when the reply has gone
    (line,) = [line for line in lines if line.get("message") == "request"]
    assert line["request_id"] == reply.headers["x-request-id"]
    assert line["status"] == reply.status_code
    (metrics,) = [line for line in lines if "_aws" in line]
    assert metrics["request_id"] == line["request_id"]
    assert "canary" not in web.log.read_text() + reply.text
    for text in web.log.read_text().splitlines():
        assert isinstance(json.loads(text), dict)


def test_no_answer_leads_to_another_host(web) -> None:
    """A slash too many once redirected to whatever host a client had named."""
    host, port = web.url.removeprefix("http://").split(":")
    for target in (
        "//evil.example/api/generate",
        "/api/generate/",
        "/api/health/",
        "/api//health",
        "/api/%2fhealth",
        "http://evil.example/api/health/",
    ):
        request = (
            f"GET {target} HTTP/1.1\r\nHost: evil.example\r\nX-Api-Key: {KEY}\r\n"
            "X-Forwarded-Host: evil.example\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request.encode())
            reply = b""
            while part := connection.recv(65536):
                reply += part
        assert reply.startswith(b"HTTP/1.1 404 "), reply
        assert b"evil.example" not in reply and b"location" not in reply.lower()


def test_a_kept_connection_is_answered_without_delay(web) -> None:
    """Not 40 ms late: what Nagle's algorithm costs with delayed acknowledgements."""
    seconds = []
    with httpx.Client(headers={"x-api-key": KEY}) as client:
        for _ in range(40):
            started = time.perf_counter()
            client.get(f"{web.url}/api/health")
            seconds.append(time.perf_counter() - started)
    assert statistics.quantiles(seconds, n=4)[0] < 0.03, seconds


def test_an_interrupt_for_this_process_is_not_meant_for_it(web) -> None:
    assert os.getpgid(web.process.pid) != os.getpgid(0)


# --- start and end --------------------------------------------------------------------


def test_it_starts_without_pytorch_and_soon(page) -> None:
    """The least of three: other programs run beside it."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with serve_web(SETTINGS, page, environment=NOWHERE) as server:
            seconds.append(time.perf_counter() - started)
            mapped = Path(f"/proc/{server.process.pid}/maps")
            if mapped.exists():
                assert "libtorch" not in mapped.read_text()
            used = psutil.Process(server.process.pid).cpu_times()
        if min(seconds) < MOST_START:
            break
    # What it computes counts: waiting for a busy machine does not.
    assert min(seconds) < MOST_START or used.user + used.system < MOST_START


def test_when_the_block_ends_everything_is_gone(page, tmp_path) -> None:
    kept = tmp_path / "logs" / "function.log"
    with serve_web(SETTINGS, page, environment=NOWHERE) as server:
        log, pid = server.log, server.process.pid
        assert server.key and log.parent.exists()
    assert server.process.poll() is not None and not psutil.pid_exists(pid)
    assert not log.parent.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)
    with (
        pytest.raises(KeyError),
        serve_web(SETTINGS, page, environment=NOWHERE, log=kept) as server,
    ):
        raise KeyError
    assert server.process.poll() is not None and kept.exists()


def test_a_guard_can_end_it_while_its_block_is_open(page, monkeypatch) -> None:
    """As it does when a cell fails; the block may end later, and nothing is left."""
    noted = {}

    def also_end(what: str, end: Any) -> Any:
        noted[what] = end
        return lambda: noted.pop(what, None)

    monkeypatch.setattr(BillingGuard, "active", SimpleNamespace(also_end=also_end))
    with serve_web(SETTINGS, page, environment=NOWHERE) as server:
        assert list(noted) == [f"the server {server.url}"]
        noted.popitem()[1]()
        assert server.process.poll() is not None
        assert server.log.exists()  # to find out what went wrong
    assert not server.log.exists()
    with serve_web(SETTINGS, page, environment=NOWHERE):
        assert len(noted) == 1
    assert noted == {}


def test_one_that_hangs_is_killed(page) -> None:
    with serve_web(SETTINGS, page, environment=NOWHERE) as server:
        server.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
    assert time.monotonic() - started < 15
    assert server.process.poll() == -signal.SIGKILL


PARENT = """
    import sys, time
    from pathlib import Path
    from utils.web.serving import serve_web

    with serve_web({settings!r}, Path({page!r}), environment={nowhere!r}) as server:
        print(server.process.pid, server.url, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent(page, way) -> None:
    given = {"settings": SETTINGS, "page": str(page), "nowhere": NOWHERE}
    code = textwrap.dedent(PARENT).format(**given)
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        pid, url = parent.stdout.readline().split()
        assert "page" in httpx.get(url).text
        parent.send_signal(way)
        parent.wait(10)
    assert is_gone(int(pid))
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({**SETTINGS, "WEB_ENDPOINT": ""}, "WEB_ENDPOINT"),
        ({**SETTINGS, "WEB_TIMEOUT": "soon"}, "WEB_TIMEOUT"),
        ({**SETTINGS, "WEB_VERSIONS": "[]"}, "WEB_VERSIONS"),
    ],
)
def test_settings_that_are_wrong_are_named(page, settings, named) -> None:
    with (
        pytest.raises(WebError, match=named) as failure,
        serve_web(settings, page, environment=NOWHERE),
    ):
        raise AssertionError("it started")
    assert "Traceback" not in str(failure.value)


def test_a_process_that_ends_says_why(page) -> None:
    broken = {**NOWHERE, "PYTHONPATH": str(page), "PYTHONHOME": "/nowhere"}
    with (
        pytest.raises(WebError, match="ended with code"),
        serve_web(SETTINGS, page, environment=broken),
    ):
        raise AssertionError("it started")


def test_a_process_that_is_gone_before_its_order_is_read_hides_no_error(
    page, monkeypatch
) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", "raise SystemExit('out of memory')"]
    process = subprocess.Popen(command, **pipes)
    process.wait()
    monkeypatch.setattr("utils.web.serving._start", lambda variables: process)
    with pytest.raises(WebError, match="out of memory"), serve_web({}, page):
        pass
    assert process.stdout.closed and process.stderr.closed


# --- lines ----------------------------------------------------------------------------


def test_lines_of_several_threads_do_not_run_together(tmp_path) -> None:
    handle = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lines = Lines(handle)

    def write(name: int) -> None:
        for number in range(200):
            print(json.dumps({"name": name, "number": number}), file=lines)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(handle)
    found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(found) == 1600
    for name in range(8):
        own = [line["number"] for line in found if line["name"] == name]
        assert own == list(range(200))


def test_half_a_surrogate_pair_does_not_end_the_log(tmp_path) -> None:
    handle = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Lines(handle).write("\ud83d\n")
    os.close(handle)
    assert (tmp_path / "log").read_text() == "?\n"


def test_a_page_about_something_else_has_its_title_and_example(tmp_path: Path) -> None:
    folder = page_about("Ask <b>us</b> & them", 'How "wide"?', tmp_path / "page")
    assert page_about("Trams", "Dogs?", tmp_path / "page") == folder
    text = (folder / "index.html").read_text("utf-8")
    assert "<title>Trams</title>" in text and "<h1>Trams</h1>" in text
    assert 'placeholder="Dogs?"' in text and "SageMaker" not in text
    folder = page_about("Ask <b>us</b> & them", 'How "wide"?', tmp_path / "other")
    text = (folder / "index.html").read_text("utf-8")
    assert "<h1>Ask &lt;b&gt;us&lt;/b&gt; &amp; them</h1>" in text
    assert 'placeholder="How &quot;wide&quot;?"' in text
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in PAGE.iterdir()
    )
