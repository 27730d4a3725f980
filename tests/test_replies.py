"""One request and what its client sees of the reply: pieces, times, failures."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from support.echo_server import EchoServer
from utils.deployment.replies import Endpoint, LoadError, Reply, Url, read_requests

JSON_LINES = "application/jsonlines"


@pytest.fixture(scope="module")
def server():
    with EchoServer() as server:
        yield server


def reply(*parts, status=200, kind=JSON_LINES, problem="", due=1.0, ended=9.0):
    return Reply(due, 1.5, ended, status, kind, parts, problem)


# --- pieces ---------------------------------------------------------------------------


def test_a_piece_is_a_line_however_the_parts_are_cut() -> None:
    """A part may hold two lines, half of one, or half of a character."""
    text = '{"outputs": "é"}\n{"outputs": "b"}\n'.encode()
    for cut in range(1, len(text)):
        found = reply((2.0, text[:cut]), (3.0, text[cut:]))
        first = 2.0 if b"\n" in text[:cut] else 3.0
        second = 2.0 if text[:cut].count(b"\n") == 2 else 3.0
        assert found.piece_times == (first, second), cut
        assert found.first_piece == first - 1.0 and found.gaps == [second - first]
        assert (found.failure, found.size, found.latency) == ("", len(text), 8.0)


def test_last_line_needs_no_end_and_empty_pieces_do_not_count() -> None:
    found = reply((2.0, b'{"outputs": "a"}\n{"outputs": ""}\n\n{"outputs": "b"}'))
    assert found.piece_times == (2.0, 9.0)
    assert reply((2.0, b'{"outputs":""}\n')).first_piece is None


def test_server_sent_events_are_pieces_but_for_the_mark_of_the_end() -> None:
    events = b'data: {"choices": []}\n\ndata: {"choices": [1]}\n\ndata: [DONE]\n\n'
    found = reply((2.0, events), kind="text/event-stream; charset=utf-8")
    assert len(found.piece_times) == 2 and found.failure == ""


def test_reply_that_is_no_stream_has_no_first_piece() -> None:
    found = reply((2.0, b'{\n "generated_text": "a"\n}'), kind="application/json")
    assert (found.first_piece, found.gaps, found.failure) == (None, [], "")


# --- failures -------------------------------------------------------------------------


def test_error_under_status_200_is_a_failure() -> None:
    """An item of a batch says so in its body, a begun stream in its last line."""
    body = json.dumps({"code": 400, "error": "inputs: missing"}).encode()
    found = reply((2.0, body), kind="application/json")
    assert found.failure == "200 with error 400 in its body"
    lines = b'{"outputs": "a"}\n{"error": "too late", "code": 503}\n'
    assert reply((2.0, lines)).failure == "200 with error 503 in its stream"


@pytest.mark.parametrize(
    "text",
    [
        {"generated_text": 'the words "error" and "code"'},
        {"error": "none", "code": 200},
        {"code": 400, "error_rate": 1},
        {"code": "400", "error": "x"},
        [{"code": 400, "error": "x"}],
    ],
)
def test_answer_that_only_looks_like_an_error_is_none(text) -> None:
    found = reply((2.0, json.dumps(text).encode()), kind="application/json")
    assert found.failure == ""


def test_status_and_broken_replies_are_failures() -> None:
    assert reply(status=503).failure == "503"
    assert reply(status=0, problem="no reply: TimeoutError").failure[:8] == "no reply"
    broken = reply((2.0, b'{"outputs": "a"}\n'), problem="200, broken off: X")
    assert broken.failure == "200, broken off: X"


# --- by port --------------------------------------------------------------------------


def seen(answer):
    status, kind, parts, problem = answer
    return status, kind, b"".join(part for _, part in parts), problem


@pytest.mark.parametrize("keeps", [True, False])
def test_asks_by_port(server, keeps) -> None:
    send = Url(server.url).client(keeps)
    for body in (b'{"a": "\xc3\xa9"}', b'{"status": 503}', b"[1]"):
        status = 503 if b"503" in body else 200
        assert seen(send(body)) == (status, "application/json", body, "")


def test_connection_is_kept_where_it_is_to_be(server) -> None:
    for keeps, opened in ((True, 1), (False, 3)):
        before = server.connections
        send = Url(server.url).client(keeps)
        for _ in range(3):
            send(b"{}")
        assert server.connections - before == opened


def test_pieces_are_timed_as_they_come(server) -> None:
    send = Url(server.url).client(True)
    started = time.perf_counter()
    _, kind, parts, problem = send(b'{"stream": 3, "seconds": 0.1}')
    ended = time.perf_counter()
    found = Reply(started, started, ended, 200, kind, tuple(parts), problem)
    assert found.failure == "" and len(found.piece_times) == 3
    assert min(found.gaps) >= 0.05
    assert found.first_piece <= found.latency - 0.15


def test_stream_that_breaks_off_is_told_and_the_next_request_is_sound(server) -> None:
    send = Url(server.url).client(True)
    status, _, parts, problem = send(b'{"stream": 3, "breaks": true}')
    assert (status, bool(parts)) == (200, True)
    assert problem.startswith("200, broken off: ")
    assert seen(send(b"{}"))[0] == 200
    status, _, parts, problem = send(b'{"breaks": true}')
    assert (status, problem) == (200, "200, broken off: IncompleteRead")
    assert seen(send(b"{}"))[0] == 200


def test_server_that_is_not_there_or_silent_is_a_failure() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/invocations"
        refused = seen(Url(url).client(True)(b"{}"))
        assert refused == (0, "", b"", "no reply: ConnectionRefusedError")
        listening.listen()
        silent = seen(Url(url, timeout=0.1).client(True)(b"{}"))
        assert silent == (0, "", b"", "no reply: TimeoutError")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://here/x", "http://", "http://a:b/", "/invocations"]
)
def test_address_that_is_none(url) -> None:
    with pytest.raises(LoadError, match="--url: found"):
        Url(url)


def test_path_of_an_address_may_be_left_out(server) -> None:
    short = Url(server.url.removesuffix("/invocations"))
    assert seen(short.client(False)(b"{}"))[0] == 200
    assert server.paths[-1] == "/invocations"
    Url(server.url + "?a=1").client(False)(b"{}")
    assert server.paths[-1] == "/invocations?a=1"


# --- by boto3 -------------------------------------------------------------------------


def test_asks_by_boto3_whole_and_in_pieces(aws, echo, tmp_path) -> None:
    send = Endpoint(aws.session, echo.endpoint_name).client(True)
    status, kind, body, problem = seen(send(b'{"a": 1}'))
    assert (status, kind, problem) == (200, "application/json", "")
    assert json.loads(body) == {"a": 1}
    send = Endpoint(aws.session, echo.endpoint_name, stream=True).client(True)
    for number in (1, 2, 3):
        (tmp_path / str(number)).touch()  # what the handler waits for between parts
    status, _, body, problem = seen(send(json.dumps(f"count {tmp_path}").encode()))
    assert (status, body.decode(), problem) == (
        200,
        "0 of 3 é\n1 of 3 é\n2 of 3 é\n",
        "",
    )


def test_errors_by_boto3_have_the_models_status(aws, echo) -> None:
    """Not the 424 of ModelError; what the service itself refuses has its name."""
    for stream in (False, True):
        send = Endpoint(aws.session, echo.endpoint_name, stream).client(True)
        assert seen(send(b"no json")) == (424, "", b"", "")
        missing = Endpoint(aws.session, "nosuch", stream).client(True)
        assert seen(missing(b"{}")) == (400, "", b"", "ValidationError")
        wrong = Endpoint(aws.session, "not a name!", stream).client(True)
        assert seen(wrong(b"{}"))[0] in (0, 400)


def test_many_threads_share_a_client(aws, echo, caplog) -> None:
    """Each has a connection; boto3 would say that it throws some away."""
    send = Endpoint(aws.session, echo.endpoint_name).client(True)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(seen(send(b"[1]"))[0]))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 16
    assert "pool is full" not in caplog.text


# --- the file of requests -------------------------------------------------------------


def test_requests_of_a_file_are_sent_as_they_are(tmp_path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes('\ufeff{"inputs": "é"}\r\n\n  [1]\n{"inputs":"b"}'.encode())
    assert read_requests(path) == [
        '{"inputs": "é"}'.encode(),
        b"[1]",
        b'{"inputs":"b"}',
    ]


def test_stream_is_set_in_each(tmp_path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"inputs": "é", "stream": false}\n', encoding="utf-8")
    (body,) = read_requests(path, stream=True)
    assert json.loads(body) == {"inputs": "é", "stream": True}
    path.write_text('{"inputs": "a"}\n"text"\n')
    with pytest.raises(LoadError, match=r"requests\.jsonl, line 2: found '\"text\"'"):
        read_requests(path, stream=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"inputs": "a"}\n{"inputs": \n',
            "line 2: found '{\"inputs\":', expected one",
        ),
        (b'{"inputs": "a"} {}\n', "line 1: found .*Extra data"),
        (b'{}\n\n"\xff"\n', "line 3: byte 2 is not UTF-8"),
        (b"[" * 100_000, r"line 1: found '\[\[\["),
        (b" \n\n", "holds no request"),
        (None, "cannot be read .No such file"),
    ],
)
def test_file_that_cannot_be_sent(tmp_path, content, said) -> None:
    path = tmp_path / "requests.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=rf"requests\.jsonl.*{said}"):
        read_requests(path)
