"""The handler runs in AWS's own Python client, under our Runtime API and AWS's own.

About 10 seconds; the slow test fetches AWS's emulator.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import CALLERS_ENVIRONMENT
from utils.course import ROOT
from utils.web import runtime_api
from utils.web.runtime_api import FunctionError, LambdaRuntime, RuntimeApiError

CODE = """
import json, os, time

print("started", flush=True)

def handler(event, context):
    what = event.get("do")
    if what == "raise":
        raise ValueError("no such thing")
    if what == "exit":
        os._exit(3)
    if what == "sleep":
        time.sleep(60)
    if what == "object":
        return object()
    print("answered", flush=True)
    return {
        "event": event,
        "id": context.aws_request_id,
        "left": context.get_remaining_time_in_millis(),
        "name": context.function_name,
        "arn": context.invoked_function_arn,
        "own": os.environ.get("OWN"),
        "process": os.getpid(),
        "home": os.environ.get("AWS_ACCESS_KEY_ID"),
    }
"""
# A request as API Gateway's REST APIs hand it on (Developer Guide, "Input format of a
# Lambda function for proxy integration"), with the members that an adapter reads.
EVENT = {
    "resource": "/api/health",
    "path": "/api/health",
    "httpMethod": "GET",
    "headers": {"Accept": "*/*", "x-api-key": "secret"},
    "multiValueHeaders": {"Accept": ["*/*"], "x-api-key": ["secret"]},
    "queryStringParameters": None,
    "multiValueQueryStringParameters": None,
    "pathParameters": None,
    "stageVariables": None,
    "requestContext": {
        "stage": "v1",
        "path": "/v1/api/health",
        "httpMethod": "GET",
        "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
        "identity": {"sourceIp": "192.0.2.1", "userAgent": "test"},
    },
    "body": None,
    "isBase64Encoded": False,
}
SERVICE = {
    "WEB_ENDPOINT": "course-test",
    "WEB_TABLE": "course-test",
    "WEB_VERSIONS": json.dumps(
        [{"name": "tuned", "description": "", "adapter": None, "live": True}]
    ),
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("function")
    (folder / "small.py").write_text(CODE, encoding="utf-8")
    (folder / "broken.py").write_text("import no_such_module\n", encoding="utf-8")
    (folder / "ends.py").write_text("import os; os._exit(4)\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runtime(folder) -> Iterator[LambdaRuntime]:
    with LambdaRuntime("small.handler", {"OWN": "yes"}, folder, timeout=3) as runtime:
        yield runtime


# --- our Runtime API ------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", [{}, {"text": "ü\u2028\U0001f600"}, {"long": "x" * 3_000_000}]
)
def test_an_event_comes_and_its_answer_goes_back(runtime, event) -> None:
    answer = runtime.invoke(event)
    assert answer["event"] == event
    assert answer["name"] in answer["arn"]
    assert answer["own"] == "yes"
    assert 0 < answer["left"] <= 3000
    assert "answered" in runtime.log.read_text("utf-8")


def test_each_call_has_an_id_of_its_own_and_the_process_stays(runtime) -> None:
    first, second = runtime.invoke({}), runtime.invoke({})
    assert first["id"] != second["id"]
    assert first["process"] == second["process"] != os.getpid()


def test_the_function_gets_no_variable_of_ours(folder, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-caller")
    with LambdaRuntime("small.handler", {}, folder) as runtime:
        assert runtime.invoke({})["home"] is None


def test_what_a_handler_raises_is_told_in_lambdas_words(runtime) -> None:
    with pytest.raises(FunctionError, match="ValueError: no such thing") as failure:
        runtime.invoke({"do": "raise"})
    assert any("handler" in line for line in failure.value.report["stackTrace"])
    with pytest.raises(FunctionError, match="Runtime.MarshalError"):
        runtime.invoke({"do": "object"})
    assert runtime.invoke({})["own"] == "yes"


def test_after_a_crash_or_a_time_out_there_is_a_new_process(runtime) -> None:
    process = runtime.invoke({})["process"]
    with pytest.raises(RuntimeApiError, match="process ended"):
        runtime.invoke({"do": "exit"})
    second = runtime.invoke({})["process"]
    started = time.monotonic()
    with pytest.raises(RuntimeApiError, match=r"Task timed out after 3.00 s"):
        runtime.invoke({"do": "sleep"})
    assert time.monotonic() - started < 10
    third = runtime.invoke({})["process"]
    assert len({process, second, third}) == 3


@pytest.mark.parametrize(
    "handler, error, message",
    [
        ("broken.handler", FunctionError, "no_such_module"),
        ("small.missing", FunctionError, "missing"),
        ("ends.handler", RuntimeApiError, "ended at its start"),
    ],
)
def test_a_function_that_does_not_start_says_why(
    folder, handler, error, message
) -> None:
    with pytest.raises(error, match=message), LambdaRuntime(handler, {}, folder):
        pass


def test_calls_do_not_wait_for_each_others_packets(runtime) -> None:
    """Head and body in two packets would take 40 ms each way."""
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        runtime.invoke({})
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.03


def test_nothing_is_left_of_it(folder, capfd) -> None:
    with LambdaRuntime("small.handler", {}, folder) as runtime:
        process, log = runtime.invoke({})["process"], runtime.log
        threads = threading.active_count()
    assert not log.exists()
    assert not is_alive(process)
    deadline = time.monotonic() + 5
    while threading.active_count() >= threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() < threads
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_killed_with_its_parent_nothing_is_left_either(folder, busy) -> None:
    code = (
        "import threading, time\nfrom pathlib import Path\n"
        "from utils.web.runtime_api import LambdaRuntime\n"
        f"runtime = LambdaRuntime('small.handler', {{}}, Path({str(folder)!r}))\n"
        "with runtime:\n    process = runtime.invoke({})['process']\n"
        "    call = dict(target=runtime.invoke, args=[{'do': 'sleep'}], daemon=True)\n"
        f"    if {busy}:\n        threading.Thread(**call).start()\n"
        "        time.sleep(0.5)\n"
        "    print(process, flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = is_alive(child)
    if alive:
        os.kill(child, signal.SIGKILL)
    assert not alive


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --- the app --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app() -> Iterator[LambdaRuntime]:
    with LambdaRuntime(environment=SERVICE) as runtime:
        yield runtime


def test_the_app_answers_an_event_of_api_gateway(app) -> None:
    answer = app.invoke(EVENT)
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["status"] == "ok"
    assert answer["isBase64Encoded"] is False


@pytest.mark.parametrize("event", [{}, {"source": "serverless-plugin-warmup"}, None])
def test_a_warm_up_does_not_crash_it(app, event) -> None:
    app.invoke(event)
    assert app.invoke(EVENT)["statusCode"] == 200


# --- AWS's own emulator ---------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def emulator(file: Path, handler: str, folder: Path) -> Iterator[str]:
    """Run a function in AWS's Runtime Interface Emulator; gives its address."""
    address, api = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = {"PATH": os.environ["PATH"], **runtime_api.VARIABLES, **SERVICE}
    process = subprocess.Popen(
        [
            *[str(file), "--runtime-interface-emulator-address", address],
            *["--runtime-api-address", api],
            *[sys.executable, "-m", "awslambdaric", handler],
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # it starts the function's process itself
    )
    try:
        yield f"http://{address}/2015-03-31/functions/function/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def emulator_file(tmp_path_factory) -> Path:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("The emulator's program is for Linux on x86_64.")
    folder = tmp_path_factory.mktemp("emulator")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "aws-sam-cli"]
    done = subprocess.run(
        command, env=CALLERS_ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    wheels = list(folder.glob("aws_sam_cli-*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"aws-sam-cli cannot be fetched: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract("samcli/local/rapid/aws-lambda-rie-x86_64", folder))
    file.chmod(0o755)
    return file


@pytest.mark.slow
def test_the_app_answers_in_awss_own_emulator(emulator_file) -> None:
    """Two calls of one process, through what Lambda itself runs in its sandbox."""
    with emulator(emulator_file, runtime_api.HANDLER, runtime_api.FOLDER) as url:
        for _ in range(2):
            answer = post(url, EVENT)
            assert answer["statusCode"] == 200
            assert json.loads(answer["body"])["status"] == "ok"


@pytest.mark.slow
def test_our_runtime_api_and_the_emulator_agree(emulator_file, folder, runtime) -> None:
    with emulator(emulator_file, "small.handler", folder) as url:
        theirs = post(url, {"text": "ü"})
        failed = post(url, {"do": "raise"})
    assert theirs.keys() == runtime.invoke({"text": "ü"}).keys()
    with pytest.raises(FunctionError) as failure:
        runtime.invoke({"do": "raise"})
    ours = failure.value.report
    assert (failed["errorType"], failed["errorMessage"]) == (
        ours["errorType"],
        ours["errorMessage"],
    )


def post(url: str, event: object) -> dict:
    """Ask the emulator; it takes a moment until it listens."""
    request = urllib.request.Request(url, json.dumps(event).encode())
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
