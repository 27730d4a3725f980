"""The way to the endpoint: time-outs, retries, breaker, streams; about 10 seconds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from support.web import (
    ANSWER,
    CANARY,
    QUESTION,
    SETTINGS,
    FakeEndpoint,
    answers,
    as_lines,
    chunks,
    completion,
    dies,
    drips,
    endpoint_client,
    is_silent,
    model_fails,
    refuses,
    streams,
    throttles,
    wait_until,
)
from utils.web.service.endpoint import (
    ATTEMPTS,
    Breaker,
    EndpointClient,
    Fault,
    Question,
)

SSE = "data: {}\n\n"
# Texts that break whoever splits a stream at the wrong places.
AWKWARD = (
    "line\nends\r\nand\rreturns\n\n",
    "data: [DONE]",
    "[DONE]",
    "event: end\ndata: {}\n\n",
    "\u2028 \u2029 \x85 \x0b \x1c",
    "Zürich, 東京, 🦜🏽, e\u0301",
    '"}\\n{"',
    "\ufeff: id: retry:",
)


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as fake:
        yield fake


def question(seconds: float = 25, **changes: Any) -> Question:
    asked = Question(QUESTION, None, None, 1, 96, time.monotonic() + seconds)
    return replace(asked, **changes)


def no_wait(_: float) -> None:
    """Stand for the waits between attempts."""


def fault_of(client: EndpointClient, stream: bool = False, **changes: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        if stream:
            read(client.stream(question(**changes)))
        else:
            client.ask(question(**changes))
    return caught.value


def read(stream: Any) -> list[str]:
    pieces = []
    while (piece := stream.next_piece()) is not None:
        pieces.append(piece)
    return pieces


# --- what is asked, and what is answered ----------------------------------------------


def test_a_question_is_asked_in_the_schema_of_the_entry_point(endpoint) -> None:
    client = endpoint_client(endpoint)
    answer = client.ask(question(adapter="base", variant="one", max_tokens=9))
    assert (answer.text, answer.variant, answer.finish_reason) == (
        ANSWER,
        "tuned",
        "stop",
    )
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 5)
    assert answer.sources == ["note-1"]
    (asked,) = endpoint.asked
    assert asked.variant == "one" and not asked.stream
    assert asked.body == {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 9,
        "retrieve": 1,
        "model": "base",
    }


def test_a_stream_is_asked_with_its_counts(endpoint) -> None:
    stream = endpoint_client(endpoint).stream(question(retrieve=0))
    assert "".join(read(stream)) == ANSWER == stream.answer.text
    assert stream.answer.sources == ["note-1"]
    assert (stream.answer.prompt_tokens, stream.answer.completion_tokens) == (7, 1)
    (asked,) = endpoint.asked
    assert asked.stream and asked.variant is None
    assert asked.body["stream_options"] == {"include_usage": True}
    assert asked.body["stream"] is True
    assert not {"retrieve", "model"} & set(asked.body)


@pytest.mark.parametrize(
    ("found", "kept"),
    [("stop", "stop"), ("length", "length"), ("eos_token", "stop"), (None, "stop")],
)
def test_reasons_are_two(endpoint, found, kept) -> None:
    reply = completion()
    reply["choices"][0]["finish_reason"] = found
    endpoint.does(answers(reply))
    assert endpoint_client(endpoint).ask(question()).finish_reason == kept


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": {"0": 1}}',
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "a"}}], "usage": "many"}',
        *[
            b'{"choices": [{"message": {"content": "a"}}], "usage": {"%b_tokens": %b}}'
            % count
            for count in (
                (b"prompt", b"1e400"),
                (b"completion", b"1e400"),
                (b"prompt", b"9" * 40),
                (b"completion", b"-1"),
            )
        ],
        b'{"a": "' + b"a" * 1_100_000 + b'"}',
    ],
    ids=lambda body: body[:40].decode(),
)
def test_a_reply_in_another_form_is_the_models_error(endpoint, body) -> None:
    endpoint.does(lambda handler: handler.whole(200, body))
    fault = fault_of(endpoint_client(endpoint))
    assert (fault.code, fault.counts, len(endpoint.asked)) == ("model_error", False, 1)


def test_halves_of_surrogate_pairs_do_no_harm(endpoint) -> None:
    endpoint.does(answers(completion("a \ud83d\udc26 b \ud83d")))
    text = endpoint_client(endpoint).ask(question()).text
    assert text == "a 🐦 b \ufffd"
    halves = [
        b'{"choices":[{"delta":{"content":"a \\ud83d"}}]}\n',
        b'{"choices":[{"delta":{"content":"\\udc26 b"}}]}\n',
        b'{"choices":[{"delta":{"content":"\\udc26 \\ud83d"}}]}\n',
        b'{"choices":[{"delta":{},"finish_reason":"stop"}]}\n',
    ]
    endpoint.does(streams(halves))
    pieces = read(endpoint_client(endpoint).stream(question()))
    assert "".join(pieces) == "a 🐦 b\ufffd \ufffd"
    "".join(pieces).encode()


# --- streams in awkward pieces --------------------------------------------------------


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize(
    "form", ["{}\n", "{}\r\n", SSE, "data:{}\r\n\r\n", ": hm\nevent: x\nid: 1\n" + SSE]
)
def test_a_stream_arrives_however_it_is_cut(endpoint, size, form) -> None:
    """Half lines, several lines, and halves of letters in an event."""
    data = as_lines(chunks(*AWKWARD), form)
    if "data" in form:
        data += form.replace("{}", "[DONE]").encode()
    endpoint.does(streams(cut(data, size)))
    stream = endpoint_client(endpoint).stream(question())
    assert "".join(read(stream)) == "".join(AWKWARD)
    assert stream.answer.finish_reason == "stop"
    assert stream.answer.completion_tokens == len(AWKWARD)
    assert stream.next_piece() is None


def test_a_line_without_its_end_is_the_last(endpoint) -> None:
    data = as_lines(chunks("a", "b")).removesuffix(b"\n")
    endpoint.does(streams([data]))
    assert "".join(read(endpoint_client(endpoint).stream(question()))) == "ab"


def test_bytes_that_are_not_utf_8_cost_a_letter(endpoint) -> None:
    data = as_lines(chunks("aäb", "c")).replace("ä".encode(), b"\xe4")
    endpoint.does(streams(cut(data, 5)))
    assert "".join(read(endpoint_client(endpoint).stream(question()))) == "a\ufffdbc"


def test_pieces_come_while_the_model_goes_on(endpoint) -> None:
    first, rest = as_lines(chunks("a", "b")).split(b"\n", 1)
    endpoint.does(streams([first + b"\n", rest], gap=0.3))
    stream = endpoint_client(endpoint).stream(question())
    assert stream.next_piece() == "a"
    assert endpoint.running == 1
    assert read(stream) == ["b"]


@pytest.mark.parametrize(
    ("ending", "parts", "code"),
    [
        ("die", 1, "unavailable"),
        ("end", 1, "unavailable"),
        ("fault", 1, "model_error"),
        ("timeout", 1, "timeout"),
        ("wait", 1, "timeout"),
        ("die", 0, "unavailable"),
        ("end", 0, "unavailable"),
        ("fault", 0, "model_error"),
        ("timeout", 0, "timeout"),
    ],
)
def test_a_stream_that_breaks_off_is_a_fault(endpoint, ending, parts, code) -> None:
    endpoint.does(streams([as_lines(chunks("a", "b")[:1])] * parts, ending=ending))
    client = endpoint_client(endpoint, replace(SETTINGS, timeout=0.3))
    if not parts:
        fault = fault_of(client, stream=True)
    else:
        stream = client.stream(question())
        assert stream.next_piece() == "a"
        with pytest.raises(Fault) as caught:
            stream.next_piece()
        fault = caught.value
        assert stream.next_piece() is None
    assert (fault.code, fault.counts, len(endpoint.asked)) == (code, True, 1)
    assert CANARY not in f"{fault} {fault.cause} {fault.message}"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"error": "bad", "code": 424}', "model_error"),
        (b'{"error": "bad", "code": 400}', "model_error"),
        (b'{"error": {"message": "bad", "code": 500}}', "model_error"),
        (b'{"error": "busy", "code": 503}', "unavailable"),
        (b'{"error": "bad"}', "model_error"),
        (b"no JSON", "model_error"),
        (b'{"choices": [{"delta": {"content": 7}}]}', "model_error"),
        (b"a" * 1_100_000, "model_error"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_error_within_a_stream_is_no_piece_of_the_answer(
    endpoint, line, code
) -> None:
    endpoint.does(streams([as_lines(chunks("a", "b")[:1]), line + b"\n"]))
    stream = endpoint_client(endpoint).stream(question())
    assert stream.next_piece() == "a"
    with pytest.raises(Fault) as caught:
        stream.next_piece()
    assert caught.value.code == code
    assert len(endpoint.asked) == 1
    assert stream.answer.text == "a"


def test_whoever_closes_a_stream_frees_thread_and_connection(endpoint) -> None:
    """Also while the thread waits for more: its read ends at once."""
    endpoint.does(streams([as_lines(chunks("a", "b")[:1])], ending="wait"))
    client = endpoint_client(endpoint, replace(SETTINGS, timeout=20))
    stream = client.stream(question())
    assert stream.next_piece() == "a"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.next_piece)
        time.sleep(0.1)
        assert not waiting.done()
        before = time.monotonic()
        stream.close()
        assert isinstance(waiting.exception(timeout=5), Fault)
    assert time.monotonic() - before < 1
    assert endpoint.client_left()
    assert wait_until(lambda: endpoint.running == 0)
    assert stream.next_piece() is None
    # Nobody's fault.
    assert client.breaker == "closed"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("waits", [False, True], ids=["between pieces", "waiting"])
def test_only_a_wait_that_took_too_long_speaks_against_the_endpoint(
    endpoint, waits, late
) -> None:
    endpoint.does(streams([as_lines(chunks("a", "b")[:1])], ending="wait"))
    client = endpoint_client(endpoint, replace(SETTINGS, timeout=9, breaker_failures=1))
    stream = client.stream(question())
    assert stream.next_piece() == "a"
    with ThreadPoolExecutor(1) as pool:
        if waits:
            waiting = pool.submit(stream.next_piece)
            time.sleep(0.1)
        stream.close(late=late)
        if waits:
            assert isinstance(waiting.exception(timeout=5), Fault)
    assert client.breaker == ("open" if waits and late else "closed")


def test_a_stream_closed_as_a_piece_comes_is_ended_by_its_reader(endpoint) -> None:
    endpoint.does(streams([as_lines(chunks("a", "b")[:1])], ending="wait"))
    stream = endpoint_client(endpoint).stream(question())
    kept = stream._kept

    def close_meanwhile(piece: str) -> str:
        stream.close()
        return kept(piece)

    stream._kept = close_meanwhile
    assert stream.next_piece() == "a"
    assert stream._over


def test_a_stream_closed_between_two_pieces_ends_its_connection(endpoint) -> None:
    endpoint.does(streams([as_lines(chunks("a", "b")[:1])], ending="wait"))
    stream = endpoint_client(endpoint).stream(question())
    stream.close()
    stream.close()
    assert endpoint.client_left()


# --- what fails, and what is asked again ----------------------------------------------

# behaviour → code, whether it counts against the endpoint, how often it is asked
FAILURES = {
    "throttled": (throttles(), "unavailable", False, ATTEMPTS),
    "throttled by 429": (refuses("TooMany", 429), "unavailable", False, ATTEMPTS),
    "model's own 429": (model_fails(429), "unavailable", False, ATTEMPTS),
    "model busy": (model_fails(503), "unavailable", True, ATTEMPTS),
    "model's 400": (model_fails(400), "model_error", False, 1),
    "model's 404": (model_fails(404), "model_error", False, 1),
    "model's 424": (model_fails(424), "model_error", True, 1),
    "model's 500": (model_fails(500), "model_error", True, 1),
    "model's 507": (model_fails(507), "model_error", True, 1),
    "model's time-out": (model_fails(0), "timeout", True, 1),
    "no endpoint": (refuses("ValidationError", 400), "unavailable", False, 1),
    "not ready": (refuses("ModelNotReadyException", 429), "unavailable", False, 1),
    "AWS out of order": (refuses("ServiceUnavailable", 503), "unavailable", True, 1),
    "AWS failed": (refuses("InternalFailure", 500), "model_error", True, 1),
    "no permission": (refuses("AccessDeniedException", 403), "model_error", False, 1),
    "silent": (is_silent(), "timeout", True, 1),
    "dead": (dies(), "unavailable", True, 1),
    "dead in its head": (dies(b"HTTP/1."), "unavailable", True, 1),
    "no HTTP": (dies(b"what?\r\n\r\n"), "unavailable", True, 1),
    "dead in its body": (
        dies(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
        "unavailable",
        True,
        1,
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", FAILURES)
def test_only_throttling_is_asked_again(endpoint, name, stream) -> None:
    behaviour, code, counts, times = FAILURES[name]
    endpoint.does(usual=behaviour)
    settings = replace(SETTINGS, timeout=0.3)
    client = endpoint_client(endpoint, settings, sleep=no_wait)
    fault = fault_of(client, stream)
    assert (fault.code, fault.counts, len(endpoint.asked)) == (code, counts, times)
    assert (fault.retry_after is not None) == (code == "unavailable")
    assert CANARY not in f"{fault} {fault.cause} {fault.message}"


def test_an_endpoint_that_nobody_serves_is_unavailable() -> None:
    with FakeEndpoint() as endpoint:
        client = endpoint_client(endpoint)
    for stream in (False, True):
        fault = fault_of(client, stream)
        assert (fault.code, fault.counts) == ("unavailable", True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("times", range(1, ATTEMPTS))
def test_throttling_that_passes_is_not_seen(endpoint, times, stream) -> None:
    endpoint.does(*[throttles()] * times)
    client = endpoint_client(endpoint, sleep=no_wait)
    if stream:
        assert "".join(read(client.stream(question()))) == ANSWER
    else:
        assert client.ask(question()).text == ANSWER
    assert len(endpoint.asked) == times + 1


def test_waits_between_attempts_have_full_jitter(endpoint) -> None:
    """Between nothing and a bound that doubles, and no two alike."""
    endpoint.does(usual=throttles())
    waits: list[float] = []
    client = endpoint_client(endpoint, sleep=waits.append)
    for _ in range(20):
        fault_of(client)
    first, second = waits[::2], waits[1::2]
    assert len(first) == len(second) == 20
    assert min(waits) >= 0 and max(first) <= 0.25 and max(second) <= 0.5
    assert max(second) > 0.25 > 0.1 > min(waits)
    assert len(set(waits)) == 40


@pytest.mark.parametrize(
    ("seconds", "times"), [(0.9, {1}), (1.05, {1, 2, 3}), (1.2, {1, 2, 3}), (25, {3})]
)
def test_nothing_is_asked_again_that_could_not_end_in_time(
    endpoint, seconds, times
) -> None:
    """A call may take a second, so the last begins a second before the deadline."""
    endpoint.does(usual=throttles())
    client = endpoint_client(endpoint, replace(SETTINGS, timeout=1.0))
    for _ in range(3):
        before, asked = len(endpoint.asked), question(seconds)
        with pytest.raises(Fault):
            client.ask(asked)
        attempts = [one.at for one in endpoint.asked[before:]]
        assert len(attempts) in times
        assert all(at < asked.deadline - 1.0 + 0.1 for at in attempts[1:])


def test_a_throttled_stream_that_begins_too_late_is_let_go(endpoint) -> None:
    endpoint.does(streams([b"\n", as_lines(chunks("a"))], gap=0.4, ending="wait"))
    client = endpoint_client(endpoint)
    fault = fault_of(client, stream=True, deadline=time.monotonic() + 0.2)
    assert (fault.code, fault.counts) == ("timeout", True)
    assert endpoint.client_left()


def test_threads_share_a_client(endpoint) -> None:
    endpoint.does(usual=answers(after=0.2))
    client = endpoint_client(endpoint)
    client.ask(question())
    before = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(lambda _: client.ask(question()).text, range(32)))
    assert texts == [ANSWER] * 32
    assert time.monotonic() - before < 3  # one after the other would take 6.4 s


# --- the circuit breaker --------------------------------------------------------------


def test_it_opens_after_failures_in_a_row_and_answers_at_once(endpoint) -> None:
    endpoint.does(usual=model_fails(500))
    client = endpoint_client(endpoint)
    for _ in range(SETTINGS.breaker_failures):
        assert client.breaker == "closed"
        assert fault_of(client).code == "model_error"
    assert client.breaker == "open"
    before = time.monotonic()
    for stream in (False, True) * 10:
        fault = fault_of(client, stream)
        assert (fault.code, fault.cause) == ("unavailable", "breaker open")
        assert 0 < fault.retry_after <= SETTINGS.breaker_seconds
    assert time.monotonic() - before < 0.2
    assert len(endpoint.asked) == SETTINGS.breaker_failures


def opened(endpoint: FakeEndpoint) -> EndpointClient:
    endpoint.does(usual=dies())
    client = endpoint_client(endpoint)
    for _ in range(SETTINGS.breaker_failures):
        fault_of(client)
    assert client.breaker == "open"
    time.sleep(SETTINGS.breaker_seconds + 0.05)
    return client


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_one_probe_closes_it(endpoint, stream) -> None:
    client = opened(endpoint)
    before = len(endpoint.asked)
    endpoint.does(usual=answers(after=0.5))
    with ThreadPoolExecutor(32) as pool:
        probe = pool.submit(
            lambda: (
                read(client.stream(question())) if stream else client.ask(question())
            )
        )
        assert wait_until(lambda: len(endpoint.asked) == before + 1)
        assert client.breaker == "half-open"
        others = list(pool.map(lambda _: fault_of(client), range(31)))
        assert {fault.cause for fault in others} == {"breaker half-open"}
        assert len(endpoint.asked) == before + 1
        probe.result(timeout=5)
    assert client.breaker == "closed"
    assert client.ask(question()).text == ANSWER


def test_a_probe_that_fails_opens_it_anew(endpoint) -> None:
    client = opened(endpoint)
    assert fault_of(client).cause != "breaker open"
    assert client.breaker == "open"
    assert fault_of(client).cause == "breaker open"


def test_a_probe_that_is_given_up_is_followed_by_another(endpoint) -> None:
    client = opened(endpoint)
    endpoint.does(streams([as_lines(chunks("a", "b")[:1])], ending="wait"))
    endpoint.does(*[], usual=streams([as_lines(chunks("a", "b")[:1])], ending="wait"))
    stream = client.stream(question())
    assert client.breaker == "half-open"
    stream.close()
    assert client.breaker == "half-open"
    endpoint.does(usual=answers())
    client.ask(question())
    assert client.breaker == "closed"


def test_a_probe_whose_answer_breaks_off_opens_it_anew(endpoint) -> None:
    client = opened(endpoint)
    endpoint.does(usual=streams([as_lines(chunks("a", "b")[:1])], ending="die"))
    with pytest.raises(Fault):
        read(client.stream(question()))
    assert client.breaker == "open"


@pytest.mark.parametrize(
    "behaviour",
    [model_fails(400), throttles(), refuses("ValidationError", 400), answers(b"{}")],
)
def test_what_is_not_the_endpoints_failure_leaves_it_closed(
    endpoint, behaviour
) -> None:
    endpoint.does(usual=behaviour)
    client = endpoint_client(endpoint, sleep=no_wait)
    for _ in range(3 * SETTINGS.breaker_failures):
        fault_of(client)
    assert client.breaker == "closed"


def test_an_answer_in_between_starts_the_count_anew(endpoint) -> None:
    client = endpoint_client(endpoint)
    for _ in range(4):
        endpoint.does(*[model_fails(500)] * (SETTINGS.breaker_failures - 1))
        for _ in range(SETTINGS.breaker_failures - 1):
            fault_of(client)
        assert client.ask(question()).text == ANSWER
    assert client.breaker == "closed"


def test_streams_that_always_break_off_open_it(endpoint) -> None:
    """Though each of them begins well."""
    endpoint.does(usual=streams([as_lines(chunks("a", "b")[:1])], ending="die"))
    client = endpoint_client(endpoint)
    for _ in range(SETTINGS.breaker_failures):
        with pytest.raises(Fault):
            read(client.stream(question()))
    assert client.breaker == "open"


def test_what_began_before_it_opened_neither_closes_nor_prolongs_it() -> None:
    breaker = Breaker(2, 0.2)
    early = [breaker.admit() for _ in range(6)]
    failed = Fault("timeout", "x", counts=True)
    for admission in early[:2]:
        admission.settle(failed)
    assert breaker.state == "open"
    time.sleep(0.25)
    early[2].settle(None)
    early[3].settle(failed)
    assert breaker.state == "open"
    probe = breaker.admit()
    early[4].settle(failed)
    early[5].settle(None)
    assert breaker.state == "half-open"
    probe.settle(None)
    assert breaker.state == "closed"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_anew_neither_shortens_nor_prolongs_it(
    monkeypatch, hours
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime:
            return datetime.now(zone) + timedelta(hours=hours)

    breaker = Breaker(1, 0.2)
    with monkeypatch.context() as then:
        then.setattr("pybreaker.datetime", Clock)
        breaker.admit().settle(Fault("timeout", "x", counts=True))
    with pytest.raises(Fault) as caught:
        breaker.admit()
    assert 0 < caught.value.retry_after <= 0.2
    time.sleep(0.25)
    breaker.admit().settle(None)
    assert breaker.state == "closed"


def test_a_probe_that_is_never_heard_of_again_is_replaced(monkeypatch) -> None:
    breaker = Breaker(1, 0.1)
    breaker.admit().settle(Fault("timeout", "x", counts=True))
    time.sleep(0.15)
    lost = breaker.admit()
    with pytest.raises(Fault):
        breaker.admit()
    monkeypatch.setattr("utils.web.service.endpoint.WHOLE_REQUEST", 0.0)
    second = breaker.admit()
    lost.settle(Fault("timeout", "x", counts=True))
    assert breaker.state == "half-open"
    second.settle(None)
    assert breaker.state == "closed"


def test_32_threads_leave_its_state_whole() -> None:
    """It opens at the right count, lets one probe through, and ends closed."""
    breaker = Breaker(32, 0.2)
    failed = Fault("timeout", "x", counts=True)
    together = threading.Barrier(32)

    def fail(_: int) -> None:
        admission = breaker.admit()
        together.wait(timeout=10)
        admission.settle(failed)

    for _ in range(5):
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(fail, range(32)))
        assert breaker.state == "open"
        time.sleep(0.25)
        admitted: list[Any] = []

        def probe(_: int, admitted: list[Any] = admitted) -> None:
            together.wait(timeout=10)
            try:
                admitted.append(breaker.admit())
            except Fault as fault:
                assert fault.code == "unavailable"

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(probe, range(32)))
        assert len(admitted) == 1
        admitted[0].settle(None)
        assert breaker.state == "closed"


def test_an_answer_that_drips_is_read_while_it_is_not_silent(endpoint) -> None:
    """The app ends the wait at the request's deadline (tests/test_web_app.py)."""
    body = json.dumps(completion()).encode()
    endpoint.does(drips(8, 0.1))
    fault = fault_of(endpoint_client(endpoint, replace(SETTINGS, timeout=0.3)))
    assert fault.code == "model_error"
    assert len(body) > 8
