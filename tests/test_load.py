"""Load: closed and open loops, the curve, its knee, and the command."""

from __future__ import annotations

import json
import statistics
import time

import pytest

from support.echo_server import EchoServer
from utils.deployment import __main__ as command
from utils.deployment import load as load_module
from utils.deployment.load import (
    Load,
    arrivals,
    check_load,
    closed_loop,
    curve,
    knee,
    load_table,
    open_loop,
    report,
    warm_up,
)
from utils.deployment.replies import Endpoint, LoadError, Reply, Url


@pytest.fixture
def server():
    with EchoServer() as server:
        yield server


def body(**fields):
    return json.dumps(fields).encode()


# --- closed loop ----------------------------------------------------------------------


def test_clients_ask_one_after_the_other_and_all_at_once(server) -> None:
    found = closed_loop(Url(server.url), [body(seconds=0.05)], 4, 0.4)
    assert server.most == server.connections == 4
    assert found.outcomes == {"200": len(found.replies)} and found.name == "4 clients"
    assert 4 <= len(found.replies) <= 4 * 9
    assert found.latency.p50 >= 0.05
    assert found.total >= 0.4
    # Little's law: clients without pauses are throughput times latency.
    mean = statistics.mean(found.latency.seconds)
    assert found.latency.per_second * mean == pytest.approx(4, rel=0.25)


def test_requests_are_taken_by_turns(server) -> None:
    bodies = [body(number=number) for number in range(3)]
    closed_loop(Url(server.url), bodies, 1, 0.2)
    assert len(server.bodies) > 3
    assert server.bodies == [bodies[n % 3] for n in range(len(server.bodies))]


def test_streams_and_failures_are_counted_apart(server) -> None:
    bodies = [
        body(stream=3, seconds=0.01),
        body(status=503),
        body(stream=3, breaks=True),
        body(code=400, error="inputs: missing"),
    ]
    found = closed_loop(Url(server.url), bodies, 2, 0.5)
    (broken,) = [kind for kind in found.outcomes if "broken off" in kind]
    hidden = "200 with error 400 in its body"
    assert set(found.outcomes) == {"200", "503", broken, hidden}
    assert len(found.good) == found.outcomes["200"]
    assert len(found.first_piece) == len(found.good)
    assert len(found.gaps) == 2 * len(found.good)
    figures = found.as_dict()
    pieces = 3 * len(found.good) / found.total
    assert figures["pieces_per_second"] == pytest.approx(pieces)
    assert figures["answers_per_second"] == pytest.approx(pieces / 3)
    assert figures["between_pieces"]["p50"] >= 0.01
    assert figures["requests"] == len(found.replies)
    assert figures["bytes"] > 0


def test_nobody_there_is_not_asked_without_a_pause() -> None:
    found = closed_loop(Url("http://127.0.0.1:9/"), [b"{}"], 1, 0.3)
    assert found.good == () and found.latency is None
    assert len(found.replies) <= 4
    with pytest.raises(LoadError, match="no knee"):
        knee([found])
    assert "1 client: " in report([found]) and "| – |" in load_table([found])


# --- open loop ------------------------------------------------------------------------


def test_arrivals_are_a_poisson_process() -> None:
    """Its gaps have the mean 1/rate and as large a standard deviation."""
    times = list(arrivals(50, 200, seed=1))
    assert times == list(arrivals(50, 200, seed=1)) != list(arrivals(50, 200, seed=2))
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(times) == pytest.approx(10_000, rel=0.04)
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.04)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.06)
    assert times == sorted(times) and times[-1] < 200


def test_requests_come_when_they_are_due_whatever_the_server_does(server) -> None:
    """A slow server is asked as often as a fast one."""
    due = list(arrivals(40, 0.5))
    for seconds in (0.0, 0.6):
        found = open_loop(Url(server.url), [body(seconds=seconds)], 40, 0.5)
        assert sorted(reply.due for reply in found.replies) == due
        assert found.outcomes == {"200": len(due)} and found.name == "40 a second"
    assert server.most > len(due) / 2


def test_latency_counts_from_when_a_request_was_due(server) -> None:
    """With one request at a time the others wait here, which a user does, too."""
    found = open_loop(Url(server.url), [body(seconds=0.05)], 100, 0.3, at_once=1)
    waits = [reply.ended - reply.sent for reply in found.replies]
    last = found.replies[-1]
    assert len(found.replies) > 10
    assert last.latency > 4 * statistics.median(waits)
    assert found.late > 0.2
    assert "too late. Its wait counts" in report([found])


def test_waiting_in_the_server_is_seen_in_an_open_loop_only(server) -> None:
    """One client never meets a queue; arrivals at twice the capacity do."""
    bodies = [body(seconds=0.02, alone=True)]
    alone = closed_loop(Url(server.url), bodies, 1, 0.3)
    crowded = open_loop(Url(server.url), bodies, 100, 0.5)
    assert crowded.latency.p95 > 3 * alone.latency.p95


def test_no_request_in_this_time() -> None:
    with pytest.raises(LoadError, match="no request arrives"):
        open_loop(Url("http://127.0.0.1:9/"), [b"{}"], 0.001, 0.1)


# --- curve and knee -------------------------------------------------------------------


def loaded(clients, per_second, seconds, rate=None, failed=0):
    """A load with this throughput, all latencies alike."""
    count = round(10 * per_second)
    parts = ((seconds, b"{}"),)
    kind = "application/json"
    replies = [Reply(0.0, 0.0, seconds, 200, kind, parts) for _ in range(count)]
    replies += [Reply(0.0, 0.0, 0.001, 503, kind, parts) for _ in range(failed)]
    return Load(tuple(replies), 10.0, clients=clients, rate=rate)


def test_knee_of_the_real_servers_recorded_curve() -> None:
    """6.3, 40 and 44 requests a second of 1, 8 and 16 clients; latency by Little."""
    recorded = [loaded(n, x, n / x) for n, x in ((1, 6.3), (8, 40), (16, 44))]
    assert knee(recorded).clients == 8
    assert "Knee (highest throughput / mean latency): 8 clients." in report(recorded)


def test_knee_of_what_does_not_scale_and_of_what_scales_on() -> None:
    flat = [loaded(n, 10, n / 10) for n in (1, 2, 4)]
    assert knee(flat).clients == 1
    rising = [loaded(n, 10 * n, 0.1) for n in (1, 2, 4)]
    assert knee(rising).clients == 4


def test_quick_failures_are_no_throughput() -> None:
    loads = [loaded(1, 10, 0.1), loaded(8, 5, 0.1, failed=10_000)]
    assert knee(loads).clients == 1
    assert "8 clients: 50 × 200, 10000 × 503." in report(loads)
    assert "| 10000 of 10050 |" in load_table(loads)


def test_each_kind_of_loop_has_its_knee() -> None:
    loads = [loaded(1, 5, 0.2), loaded(2, 9, 0.22)]
    loads += [loaded(None, 3, 0.2, rate=3), loaded(None, 6, 1.0, rate=6)]
    text = report(loads)
    assert "latency): 2 clients." in text and "latency): 3 a second." in text


def test_curve_warms_up_and_measures_each(server) -> None:
    found = curve(Url(server.url), [body(seconds=0.01, alone=True)], [1, 4], 0.2)
    assert [one.clients for one in found] == [1, 4]
    assert len(server.bodies) == 1 + sum(len(one.replies) for one in found)
    assert found[1].latency.p50 > 2 * found[0].latency.p50
    assert knee(found).clients == 1


def test_warm_up_says_that_nothing_answers(aws) -> None:
    with pytest.raises(LoadError, match=r"127\.0\.0\.1:9.*no answer .no reply: Conn"):
        warm_up(Url("http://127.0.0.1:9/x"), [b"{}"])
    with pytest.raises(LoadError, match=r"nosuch: .*no answer .ValidationError"):
        warm_up(Endpoint(aws.session, "nosuch"), [b"{}"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (([], [1], [], 1.0), "no request to send"),
        (([b"{}"], [1, 0], [], 1.0), "--clients: found 0"),
        (([b"{}"], [257], [], 1.0), "--clients: found 257, expected at most 256"),
        (([b"{}"], [], [-1.0], 1.0), "--rate: found -1"),
        (([b"{}"], [], [float("nan")], 1.0), "--rate: found nan"),
        (([b"{}"], [1], [], float("inf")), "--seconds: found inf"),
    ],
)
def test_load_that_cannot_be(asked, said) -> None:
    with pytest.raises(LoadError, match=said):
        check_load(*asked)


def test_an_endpoint_is_asked_by_boto3(aws, echo) -> None:
    found = closed_loop(Endpoint(aws.session, echo.endpoint_name), [b"[1]"], 3, 0.3)
    assert found.outcomes == {"200": len(found.replies)} and len(found.replies) > 3


def test_an_interrupt_ends_the_clients(server, monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(load_module, "_exchange", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        closed_loop(Url(server.url), [b"{}"], 2, 60)
    assert time.monotonic() - started < 30


# --- python -m utils.deployment load --------------------------------------------------


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"inputs": "a"}\n{"inputs": "b"}\n')
    return path


def run(requests, *arguments):
    return command.main(["load", str(requests), "--seconds", "0.2", *arguments])


def test_command_prints_the_table_and_writes_only_what_is_asked(
    server, requests, tmp_path, capsys
) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(requests, "--url", server.url, "--clients", "1", "2") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| load | answers/s | p50 | p95 | p99 | failed |\n|:--|")
    assert "| 1 client | " in printed and "| 2 clients | " in printed
    assert "first p50" not in printed and "Knee" in printed
    assert sorted(tmp_path.iterdir()) == before
    file = tmp_path / "figures.json"
    given = ("--url", server.url, "--rate", "50", "--json", str(file))
    assert run(requests, *given) == 0
    (figures,) = json.loads(file.read_text())
    assert (figures["rate"], figures["clients"]) == (50, None)
    assert figures["requests"] == figures["outcomes"]["200"]


def test_command_asks_for_streams(server, requests, capsys) -> None:
    assert run(requests, "--url", server.url, "--clients", "1", "--stream") == 0
    assert all(json.loads(one)["stream"] is True for one in server.bodies)
    assert "| first p50 | p95 | p99 | gap p50 |" in capsys.readouterr().out


def test_command_exits_with_1_if_a_request_failed(server, tmp_path, capsys) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"status": 503}\n{"status": 200}\n')
    assert run(path, "--url", server.url, "--clients", "1") == 1
    assert " × 503" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "arguments", "said"),
    [
        ("{}", ("--url", "http://127.0.0.1:9/"), "the first request got no answer"),
        ("{}", ("--url", "nonsense"), "--url: found 'nonsense'"),
        ("{", ("--url", "http://127.0.0.1:9/"), "requests.jsonl, line 1: found '{'"),
        ("{}", ("--url", "http://127.0.0.1:9/", "--rate", "0"), "--rate: found 0"),
    ],
)
def test_command_exits_with_2_if_nothing_can_be_asked(
    tmp_path, capsys, line, arguments, said
) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line)
    assert run(path, *arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""


def test_command_asks_the_endpoint_of_its_account(
    aws, echo, requests, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("COURSE_AWS", "local")
    given = ("--endpoint", echo.endpoint_name, "--clients", "2")
    assert run(requests, *given) == 0
    assert "| 2 clients | " in capsys.readouterr().out
    assert run(requests, "--endpoint", "nosuch") == 2
    assert "nosuch: the first request got no answer" in capsys.readouterr().err
