"""The stand-in answers as the real DJL Serving was recorded to answer."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import math
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from utils.djl_python import Input, Output, PairList
from utils.djl_python import server as server_module
from utils.djl_python.async_replies import binary_decode
from utils.djl_python.encode_decode import decode
from utils.djl_python.layout import (
    LoadError,
    ServedModel,
    find_models,
    parse_properties,
    read_properties,
)
from utils.djl_python.process import Container
from utils.djl_python.server import FrontEnd, Server, Worker

RECORDED = Path(__file__).parent / "data" / "djl_conformance.json"
# A handler that takes 3 s with predict_timeout=2 shows as much as the recorded 6 s.
SCENARIOS = json.loads(RECORDED.read_text("utf-8").replace(r"\"s\": 6", r"\"s\": 3"))
COMPARED_HEADERS = ("content-type", "transfer-encoding", "x-mine")

# Where the stand-in differs on purpose: scenario -> what is different, and why.
DELIBERATE = {
    "requirements_bad": "A requirements.txt is refused unless allowed, because nothing "
    "is installed here; allowed, it answers as recorded.",
    "worker_dies_long": "The minute's wait is shortened: nothing here heals a model, "
    "so that time changes nothing.",
}
LONGEST_WAIT = 0.2
LONGEST_RECORDED, KEPT_OF_LONG = 10_000, 60  # characters of a body
SILENCE = 0.5  # seconds of a stream until its connection is cut; recorded with 120


def write_store(folder: Path, files: dict[str, str]) -> Path:
    store = folder / "model"
    store.mkdir()
    for name, text in files.items():
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return store


def send(port: int, request: dict) -> dict:
    """One exchange, in the form in which the recorded ones are written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    if "big" in request:
        request = {"method": "POST", "headers": {}, "body": "x" * request["big"]} | {
            "path": request["path"]
        }
    connection.request(
        request["method"],
        request["path"],
        request["body"].encode("utf-8"),
        request["headers"],
    )
    reply = connection.getresponse()
    cut = {}
    try:
        body = reply.read()
    except http.client.IncompleteRead:
        # What came before the cut was not recorded.
        body, cut = b"", {"cut": True}
    connection.close()
    headers = {
        name.lower(): value
        for name, value in reply.getheaders()
        if name.lower() in COMPARED_HEADERS
    }
    got = {"status": reply.status, "reason": reply.reason, "headers": headers}
    try:
        return got | {"body": body.decode("utf-8")} | cut
    except UnicodeDecodeError:
        return got | {"body_hex": body.hex()}


def comparable(reply: dict) -> dict:
    """A reply with its JSON as values, and without what differs by nature.

    How many pieces of a stream a worker that dies has sent before is a matter of time,
    and so is whether the first of many requests is still there when the last one comes:
    how many were there at once is compared as a power of two.
    """
    text = reply.get("body", "")
    if len(text) > LONGEST_RECORDED:
        kept = text[:KEPT_OF_LONG]
        return reply | {"body": f"{kept}… ({len(text)} characters)"}
    pieces, failure, rest = text.rpartition('{"code":500,')
    if pieces and failure:
        first = pieces.splitlines(keepends=True)[0]
        return reply | {"body": first + failure + rest}
    try:
        body = json.loads(reply["body"])
    except (KeyError, ValueError):
        return reply
    if isinstance(body, dict) and body.get("most_at_once"):
        body["most_at_once"] = round(math.log2(body["most_at_once"]))
    return reply | {"body": body}


def play(port: int, step: dict) -> tuple[list, list]:
    """What was got and what was recorded, in an order that can be compared."""
    request = step["send"]
    if "wait" in request:
        time.sleep(min(request["wait"], LONGEST_WAIT))
        return [], []
    if "concurrent" in request:
        at_once = len(request["concurrent"])
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            got = list(pool.map(lambda one: send(port, one), request["concurrent"]))
        # Which of several requests is refused is a matter of chance.
        got, recorded = (
            sorted((comparable(one) for one in replies), key=json.dumps)
            for replies in (got, step["got"])
        )
        return got, recorded
    got, recorded = [send(port, request)], [step["got"]]
    return [comparable(one) for one in got], [comparable(one) for one in recorded]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_recorded_scenario(scenario, tmp_path, monkeypatch) -> None:
    # One that blocks for 3 s is not silent for too long: on a busy machine others wait.
    silence = 30 if scenario["name"] == "async_block" else SILENCE
    monkeypatch.setattr(server_module, "CHUNK_TIMEOUT", silence)
    store = write_store(tmp_path, scenario["files"])
    server = Server(
        store,
        environment=scenario.get("env"),
        allow_requirements=scenario["name"] == "requirements_bad",
    )
    if not scenario["starts"]:
        with pytest.raises(LoadError) as failure:
            server.load(give_up_after=2)
        never_opens = "never opens its port" in str(failure.value)
        assert never_opens is not scenario["server_exits"]
        return
    with server:
        ping = send(
            server.port, {"method": "GET", "path": "/ping", "headers": {}, "body": ""}
        )
        assert comparable(ping) == comparable(scenario["ping"])
        for step in scenario["steps"]:
            got, recorded = play(server.port, step)
            assert got == recorded, step["send"]


def test_deliberate_differences_name_recorded_scenarios() -> None:
    assert set(DELIBERATE) <= {scenario["name"] for scenario in SCENARIOS}
    assert all(DELIBERATE.values())


# --- what the recordings do not cover -------------------------------------------------

ECHO = """
from djl_python import Input, Output

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    return Output().add_as_json(inputs.get_as_json())
"""
PROPERTIES = "engine=Python\noption.entryPoint=model.py\n"
POST = {"method": "POST", "path": "/invocations", "headers": {}}


def test_requirements_are_refused_unless_allowed(tmp_path) -> None:
    files = {"model.py": ECHO, "requirements.txt": "numpy\n"}
    server = Server(write_store(tmp_path, files))
    with pytest.raises(LoadError, match="--allow-requirements"):
        server.load()


@pytest.mark.parametrize("name", ["utils", "helpers", "layout", "support"])
def test_entry_point_cannot_import_this_repository(tmp_path, name) -> None:
    server = Server(write_store(tmp_path, {"model.py": f"import {name}\n" + ECHO}))
    with pytest.raises(LoadError, match=f"No module named '{name}'"):
        server.load()


def test_log_of_a_failed_load_is_kept(tmp_path) -> None:
    source = (
        "def handle(inputs):\n    print('weights: 3 of 4')\n    raise OSError('gone')"
    )
    server = Server(write_store(tmp_path, {"model.py": source}))
    with pytest.raises(LoadError, match="gone"):
        server.load()
    assert "weights: 3 of 4" in server.log_tail


def start_command(store: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "utils.djl_python", str(store), "--port=0", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=RECORDED.parents[2],
        text=True,
    )


def test_command_line_serves_a_tar(tmp_path) -> None:
    store = write_store(tmp_path, {"serving.properties": PROPERTIES, "model.py": ECHO})
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(store, arcname=".")
    process = start_command(archive, "--announce")
    try:
        port = json.loads(process.stdout.readline())["port"]
        assert send(port, POST | {"body": '{"a": 1}'})["body"] == '{\n  "a":1\n}'
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_command_line_ends_with_code_1_and_the_reason(tmp_path) -> None:
    store = write_store(tmp_path, {"model.py": "import nosuch_module"})
    process = start_command(store, "--announce")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No module named 'nosuch_module'" in json.loads(output)["error"]


@pytest.mark.parametrize("busy", [False, True])
def test_killed_server_leaves_no_worker(tmp_path, busy) -> None:
    source = "import os\nopen('pid', 'w').write(str(os.getpid()))\nimport time\n" + ECHO
    if busy:
        source = source.replace("inputs.get_as_json()", "time.sleep(60)")
    store = write_store(tmp_path, {"model.py": source})
    process = start_command(store, "--announce")
    port = json.loads(process.stdout.readline())["port"]
    worker = int((store / "pid").read_text())
    assert is_alive(worker)
    if busy:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/invocations", b"{}")
        time.sleep(0.3)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert gone_within(worker, 60)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but is not yet waited for does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", {"a": "1"}),
        ("a = 1", {"a": "1"}),
        ("a: 1", {"a": "1"}),
        ("a 1", {"a": "1"}),
        ("a=1 ", {"a": "1 "}),
        ("a='1'", {"a": "'1'"}),
        ("a==1", {"a": "=1"}),
        ("a", {"a": ""}),
        ("# a=1\n  ! b=2\nc=3", {"c": "3"}),
        ("a=1\r\nb=2\r\n", {"a": "1", "b": "2"}),
        ("a=1\na=2", {"a": "2"}),
        ("a=1,\\\n   2", {"a": "1,2"}),
        ("a=x\\\\\nb=2", {"a": "x\\", "b": "2"}),
        ("a\\=b=c", {"a=b": "c"}),
        ("a=\\u00e9\\n", {"a": "é\n"}),
        ("a=1 # no comment", {"a": "1 # no comment"}),
        ("a=1\\\n#2", {"a": "1#2"}),
        ("a=1\\", {"a": "1"}),
        ("a=\\ud83d\\ude00", {"a": "😀"}),
        ("a\\ b\\:c d", {"a b:c": "d"}),
        ("a\t=\f1", {"a": "1"}),
        ("\ufeffa=1", {"\ufeffa": "1"}),
    ],
)
def test_java_properties(text, expected) -> None:
    assert parse_properties(text) == expected


CAUSAL = '{"architectures": ["GPTNeoXForCausalLM"]}'
REMOTE = '{"auto_map": {"AutoModelForCausalLM": "model.Mine"}}'


@pytest.mark.parametrize(
    ("description", "properties", "expected"),
    [
        (CAUSAL, {}, True),
        (REMOTE, {}, True),
        ('{"architectures": ["BertModel"]}', {}, False),
        ("", {}, False),
        (CAUSAL, {"option.async_mode": "false"}, True),
        (CAUSAL, {"option.rolling_batch": "auto"}, True),
        (CAUSAL, {"option.rolling_batch": "disable"}, False),
        (CAUSAL, {"option.rolling_batch": "vllm"}, False),
        (CAUSAL, {"batch_size": "2"}, False),
        (CAUSAL, {"option.batch_size": "2"}, True),
        (CAUSAL, {"batch_size": "2", "option.async_mode": "True"}, True),
        ("{}", {"option.async_mode": "true "}, False),
    ],
)
def test_what_switches_on_asynchronous_mode(
    tmp_path, description, properties, expected
) -> None:
    (tmp_path / "config.json").write_text(description)
    assert ServedModel("model", tmp_path, properties).async_mode is expected


@pytest.mark.parametrize("value", ["8 ", "eight", "", "8.0", "1_000", "2147483648"])
def test_numbers_are_read_as_java_reads_them(tmp_path, value) -> None:
    for key in ("batch_size", "max_batch_delay", "job_queue_size"):
        model = ServedModel("model", tmp_path, {key: value})
        with pytest.raises(LoadError, match=f"{key}: .*NumberFormatException"):
            getattr(model, key)
    model = ServedModel("model", tmp_path, {"option.predict_timeout": value})
    assert model.predict_timeout == 240
    assert ServedModel("model", tmp_path, {"batch_size": "+8"}).batch_size == 8


@pytest.mark.parametrize(
    ("files", "properties", "expected"),
    [
        (["model.py", "config.json"], {}, "model.py"),
        (["config.json"], {}, "djl_python.lmi_vllm.vllm_async_service"),
        ([], {"option.model_id": "owner/name"}, "djl_python.huggingface"),
        (["model.py"], {"option.entryPoint": "serve.py"}, "serve.py"),
    ],
)
def test_entry_point_where_none_is_named(tmp_path, files, properties, expected) -> None:
    for name in files:
        (tmp_path / name).write_text(CAUSAL)
    model = ServedModel("model", tmp_path, properties)
    assert (model.engine, model.entry_point) == ("Python", expected)


def test_properties_file_is_latin_1_and_has_one_name_only(tmp_path) -> None:
    (tmp_path / "Serving.Properties").write_text("a=1")
    assert read_properties(tmp_path) == {}
    (tmp_path / "serving.properties").write_text("a=é", encoding="utf-8")
    assert read_properties(tmp_path) == {"a": "Ã©"}


@pytest.mark.parametrize("escape", [r"\uzzzz", r"\u12", r"\u-123", r"\u"])
def test_broken_unicode_escape_is_an_error_of_its_line(escape: str) -> None:
    with pytest.raises(LoadError) as refusal:
        parse_properties(f"# first\r\n\r\na=\\\n  1\nb={escape}")
    text = str(refusal.value)
    assert text.startswith(f"serving.properties, line 5: {escape} is no Unicode escape")


@pytest.mark.parametrize("name", ["batch_size", "job_queue_size", "minWorkers"])
def test_a_number_that_is_none_ends_the_server(tmp_path, name) -> None:
    store = write_store(tmp_path, {"model.py": ECHO, "serving.properties": f"{name}=x"})
    with pytest.raises(LoadError, match=f"{name}: expected a whole number, found 'x'"):
        Server(store).load()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_configuration_at_the_root_that_is_none_ends_the_server(tmp_path, text) -> None:
    store = write_store(tmp_path, {"model.py": ECHO, "config.json": text})
    with pytest.raises(LoadError, match="Invalid huggingface model id: null"):
        Server(store).load()


def test_options_of_the_environment_fill_gaps(tmp_path) -> None:
    store = write_store(
        tmp_path, {"model.py": ECHO, "serving.properties": "option.a=file\n"}
    )
    environment = {"OPTION_A": "env", "OPTION_B": "env", "OPTION_ENTRYPOINT": "m.py"}
    (model,) = find_models(store, environment)
    assert model.options == {"a": "file", "b": "env", "entryPoint": "m.py"}


def test_input_and_output() -> None:
    inputs = Input()
    assert inputs.is_empty()
    assert inputs.get_as_bytes() is None
    inputs.content.add("other", b"1")
    inputs.content.add("data", b'{"a": "\xc3\xa9"}')
    inputs.properties["Content-Type"] = "application/json"
    assert inputs.get_as_json() == {"a": "é"}
    assert inputs.get_as_string("other") == "1"
    with pytest.raises(KeyError, match="absent"):
        inputs.get_as_bytes("absent")
    output = Output().add("text").add_property("x", "1").error("no", code=400)
    assert (output.code, output.properties["content-type"]) == (400, "application/json")
    assert output.content.value_at(0) == b"text"


def test_pair_list() -> None:
    pairs = PairList(["a"], [1])
    pairs.add("c", 3)
    pairs.add("b", 2, index=1)
    pairs.add_all(PairList(pair_map={"d": 4}))
    assert list(zip(pairs.get_keys(), pairs.get_values(), strict=True)) == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
    ]
    assert pairs.get("nothing") is None
    with pytest.raises(ValueError, match="mismatch"):
        PairList(["a"], [])


def test_form_fields_are_contents(tmp_path) -> None:
    source = ECHO.replace("inputs.get_as_json()", "inputs.content.get_keys()")
    body = (
        '--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        '--x\r\nContent-Disposition: form-data; name="b"\r\n\r\n2\r\n--x--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with Server(write_store(tmp_path, {"model.py": source})) as server:
        reply = send(server.port, POST | {"headers": headers, "body": body})
    assert json.loads(reply["body"]) == ["a", "b"]


def test_asynchronous_handler_in_asynchronous_mode(tmp_path) -> None:
    files = {
        "serving.properties": "engine=Python\noption.async_mode=true\n",
        "model.py": "from djl_python.async_utils import create_non_stream_output\n"
        + ECHO.replace("def handle", "async def handle").replace(
            "Output().add_as_json(", "create_non_stream_output("
        ),
    }
    with Server(write_store(tmp_path, files)) as server:
        reply = send(server.port, POST | {"body": '{"a": 1}'})
    assert (reply["status"], reply["body"]) == (200, '{"a": 1}\n')


STREAMS = """
import asyncio
from djl_python.async_utils import create_non_stream_output, create_stream_chunk_output

async def pieces(lasts, after):
    for last in lasts:
        yield create_stream_chunk_output({"last": last}, last)
    await asyncio.sleep(after)

async def handle(inputs):
    if inputs.is_empty():
        return None
    body = inputs.get_as_json()
    if "whole" in body:
        return create_non_stream_output(body["whole"])
    return pieces(body["lasts"], body.get("after", 0))
"""


def test_streams_of_asynchronous_mode(tmp_path, monkeypatch) -> None:
    """One piece is a whole reply; the last ends a stream; none, and it is cut."""
    monkeypatch.setattr(server_module, "CHUNK_TIMEOUT", 0.3)
    properties = PROPERTIES + "option.async_mode=true\n"
    files = {"serving.properties": properties, "model.py": STREAMS}

    def ask(body: dict) -> dict:
        return send(server.port, POST | {"body": json.dumps(body)})

    with Server(write_store(tmp_path, files)) as server:
        lines = ['{"last": false}\n', '{"last": true}\n']
        assert ask({"lasts": [True]})["body"] == lines[1]
        ended = ask({"lasts": [False, True, False], "after": 60})
        assert ended["body"] == "".join(lines) and "cut" not in ended
        assert "cut" in ask({"lasts": [False]})
        with pytest.raises(http.client.RemoteDisconnected):
            ask({"lasts": []})
        assert ask({"whole": "still here"})["body"] == "still here\n"


SLOW_STREAM = """
import asyncio
from djl_python.async_utils import create_stream_chunk_output

async def handle(inputs):
    return None if inputs.is_empty() else pieces()

async def pieces():
    try:
        yield create_stream_chunk_output({"n": 0}, False)
        await asyncio.sleep(0.15)
        yield create_stream_chunk_output({"n": 1}, True)
    except Exception as error:
        yield create_stream_chunk_output("", True, error=str(error), code=424)
"""


def test_a_piece_is_sent_when_it_is_there(tmp_path) -> None:
    """With Nagle's algorithm on the way, each would come 40 ms late."""
    files = {"serving.properties": "option.async_mode=true\n", "model.py": SLOW_STREAM}
    waits = []
    with Server(write_store(tmp_path, files)) as server:
        for _ in range(12):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            asked = time.perf_counter()
            connection.request("POST", "/invocations", b"{}")
            connection.getresponse().read1(100)
            waits.append(time.perf_counter() - asked)
            connection.close()
    assert min(waits[4:]) < 0.03, waits  # a new connection is never made to wait


def test_fields_of_a_reply_are_read_as_they_were_written() -> None:
    fields = {"data": "größe\n", "last": True, "code": 400}
    data = Output.binary_encode(fields)
    assert binary_decode(data) == {key: str(value) for key, value in fields.items()}
    for broken in (b"", data[:-1], b'{\n  "a":1\n}'):
        with pytest.raises(ValueError, match="exceed"):
            binary_decode(broken)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (None, "", {"inputs": ""}),
        (None, "[1]", [1]),
        ("application/json; charset=utf-8", "[1]", [1]),
        ("text/plain", "a", {"inputs": ["a"]}),
        ("text/csv", "inputs\na\nb\n", {"inputs": ["a", "b"]}),
        ("text/csv", "question\na\n", {"inputs": [{"question": "a"}]}),
        ("application/x-www-form-urlencoded", "a=1", {"inputs": "a=1"}),
        ("application/octet-stream", "a", {"inputs": b"a"}),
    ],
)
def test_decode_reads_by_the_content_type(content_type, body, expected) -> None:
    inputs = Input()
    inputs.content.add("data", body.encode())
    assert decode(inputs, content_type) == expected


def test_port_is_open_on_this_machine_only(tmp_path) -> None:
    with Server(write_store(tmp_path, {"model.py": ECHO})) as server:
        addresses = {
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.laddr.port == server.port and connection.status == "LISTEN"
        }
    assert addresses == {"127.0.0.1"}


# --- what clients do wrong ------------------------------------------------------------


def exchange(port: int, text: str, finish: bool = False) -> bytes:
    """Send bytes as they are and read until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(text.encode("latin-1"))
        if finish:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


HEAD = "POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def echo_port(tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("echo"), {"model.py": ECHO})
    with Server(store) as server:
        yield server.port


@pytest.mark.parametrize(
    ("rest", "finish", "expected"),
    [
        ("Content-Length: 9\r\n\r\n{}", True, "after 2 of 9 bytes"),
        ("Content-Length: 9\r\n\r\n{}", False, "did not arrive whole"),
        ("Content-Length: -1\r\n\r\n", False, "found '-1'"),
        ("Content-Length: x\r\n\r\n", False, "found 'x'"),
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", False, "Chunk size"),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nab", True, "2 of 5 bytes"),
    ],
)
def test_body_that_is_not_as_announced(
    monkeypatch, echo_port, rest, finish, expected
) -> None:
    monkeypatch.setattr(FrontEnd, "timeout", 0.5)
    reply = exchange(echo_port, HEAD + rest, finish).decode()
    assert reply.startswith("HTTP/1.1 400 Bad Request\r\n")
    assert "connection: close" in reply and expected in reply


def test_threads_are_bounded_and_come_free_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    request = POST | {"body": "{}"}
    with Server(write_store(tmp_path, {"model.py": ECHO})) as server:
        address = ("127.0.0.1", server.port)
        held = [socket.create_connection(address, timeout=30) for _ in range(3)]
        for one in held:  # in its thread for sure, once it was answered
            one.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(1000).startswith(b"HTTP/1.1 200")
        with socket.create_connection(address, timeout=30) as refused:
            assert refused.recv(1) == b""
        for one in held:
            one.close()
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert send(server.port, request)["status"] == 200
                break
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "example.org"}, 403),
        ({"Origin": "http://127.0.0.1:8888", "Host": "localhost:1"}, 200),
    ],
)
def test_web_pages_get_no_answer(echo_port, header, status) -> None:
    reply = send(echo_port, POST | {"headers": header, "body": "{}"})
    assert reply["status"] == status


def test_what_a_handler_writes_into_the_head_stays_one_line(tmp_path) -> None:
    source = (
        "from djl_python import Output\n"
        "def handle(inputs):\n"
        "    out = Output(200 if inputs.is_empty() else 400, 'Łódź\\r\\nx-a: 1')\n"
        "    return out.add('x').add_property('x-mine', 'Ł\\r\\nx-b: 2')\n"
    )
    with Server(write_store(tmp_path, {"model.py": source})) as server:
        text = HEAD + "Connection: close\r\nContent-Length: 2\r\n\r\n{}"
        reply = exchange(server.port, text).decode("latin-1")
    assert reply.startswith("HTTP/1.1 400 ?ód? x-a: 1\r\n")
    assert "\r\nx-mine: ? x-b: 2\r\n" in reply


def test_whatever_ends_a_worker_is_answered_and_seen(monkeypatch, tmp_path) -> None:
    def broken(*_):
        raise TypeError("no such key")

    monkeypatch.setattr(Worker, "_request", broken)
    with Server(write_store(tmp_path, {"model.py": ECHO})) as server:
        first = send(server.port, POST | {"body": "{}"})
        second = send(server.port, POST | {"body": "{}"})
        ping = send(server.port, POST | {"path": "/ping", "body": ""})
    assert (first["status"], second["status"], ping["status"]) == (503, 503, 500)
    assert "no such key" in first["body"] and "not ready" in second["body"]


def test_container_gets_the_variables_named_for_it_only(monkeypatch, tmp_path) -> None:
    source = ECHO.replace("inputs.get_as_json()", "dict(os.environ)")
    store = write_store(tmp_path, {"model.py": "import os\n" + source})
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OPTION_DTYPE", "fp16")
    container = Container(str(store), {"MINE": "yes"})
    try:
        assert container.start(60) is None
        with container.open(b"{}", {}) as reply:
            found = json.loads(reply.read())
    finally:
        container.stop()
    assert found["MINE"] == "yes" and "PATH" in found
    assert "secret" not in found.values() and "OPTION_DTYPE" not in found
