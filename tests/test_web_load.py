"""A load on the app, while the endpoint's worker is killed: nothing is lost.

32 clients at once ask through gateway and app, and in turn the endpoint directly. The
model behind it takes a fixed time for each answer and gives one at a time, so that the
clients wait for each other in both: far less time than a real model takes, which makes
the app's own share larger than it is.
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from botocore.config import Config

from support.endpoints import LONG, deploy, upload, wait_for_worker
from support.web import create_table
from utils.deployment.aws import wait_until_in_service
from utils.deployment.billing import BillingGuard
from utils.deployment.serving import percentile
from utils.offline_aws.control_plane import OfflineAws
from utils.offline_aws.metrics import METRICS
from utils.web.gateway import UsagePlan
from utils.web.serving import WebServer, serve_web

AT_ONCE = 32
MOST_RATIO = 1.3
MOST_PAIRS = 9
KEY = "a-key-of-the-tests-0123456789"
SLOW_KEY, FEW_KEY = "a-slow" + KEY, "a-few" + KEY
MODEL_SECONDS = 0.025
MODEL = f"""
import json
import time
from djl_python import Input, Output

def pieces():
    for text in ["Line 1\\n", "event: end", "[DONE] é"]:
        choice = {{"index": 0, "delta": {{"content": text}}, "finish_reason": None}}
        yield "data: " + json.dumps({{"choices": [choice]}}) + "\\n\\n"
        time.sleep(0.3)
    last = {{"index": 0, "delta": {{}}, "finish_reason": "stop"}}
    usage = {{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
    yield "data: " + json.dumps({{"choices": [last], "usage": usage}}) + "\\n\\n"
    yield "data: [DONE]\\n\\n"

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    asked = inputs.get_as_json()
    if asked.get("stream"):
        output = Output().add_property("content-type", "text/event-stream")
        return output.add_stream_content(pieces(), lambda item: item)
    time.sleep({MODEL_SECONDS})
    text = asked["messages"][-1]["content"]
    message = {{"role": "assistant", "content": "Answer to: " + text}}
    reply = {{
        "object": "chat.completion",
        "model": "tuned",
        "choices": [{{"index": 0, "message": message, "finish_reason": "stop"}}],
        "usage": {{"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}},
        "notes": ["faq-1"],
    }}
    return Output().add_property("content-type", "application/json").add_as_json(reply)
"""
DOCUMENTED = {502: "model_error", 503: "unavailable", 504: "timeout"}
Ask = Callable[[int], "Reply"]


@dataclass
class Reply:
    """What came of one question.

    Attributes:
        status: of HTTP; 200 for an answer.
        request_id: of an answer.
        wait: seconds after which the client may ask again.
    """

    status: int
    request_id: str = ""
    wait: float = 0.0


@dataclass
class Block:
    """Questions that 32 clients have asked together."""

    seconds: list[float] = field(default_factory=list)
    replies: dict[int, Reply] = field(default_factory=dict)
    total: float = 0.0

    @property
    def p95(self) -> float:
        return percentile(self.seconds, 0.95)

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.total


def ask_many(clients: list[Ask], numbers: range, meanwhile: Any = None) -> Block:
    """Let each client ask one question after the other, until all are asked."""
    block = Block()
    turns = iter(numbers)

    def one(ask: Ask) -> None:
        for number in turns:  # range's iterator hands out each number once
            started = time.perf_counter()
            reply = block.replies[number] = ask(number)
            if reply.status == 200:
                block.seconds.append(time.perf_counter() - started)
            time.sleep(reply.wait)

    started = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        running = [pool.submit(one, ask) for ask in clients]
        if meanwhile is not None:
            running.append(pool.submit(meanwhile))
        for future in running:
            future.result()
    block.total = time.perf_counter() - started
    return block


# --- two ways to ask ------------------------------------------------------------------


def question(number: int) -> str:
    return f"What does question {number} cost?"


class AppClient:
    """One user: keeps a connection, and gives feedback on each fourth answer."""

    def __init__(self, web: WebServer):
        address = web.url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(address, timeout=LONG)

    def __call__(self, number: int) -> Reply:
        asked = {"question": question(number), "version": None, "max_tokens": 16}
        status, headers, found = self._post("/api/generate", asked)
        if status == 200:
            assert found["answer"] == f"Answer to: {question(number)}"
            assert found["sources"] == [{"id": "faq-1"}]
            return Reply(200, found["request_id"])
        error = found["error"]
        assert set(error) == {"code", "message", "request_id", "fields"}
        assert DOCUMENTED.get(status) == error["code"], (status, error)
        assert status != 503 or "retry-after" in headers
        return Reply(status, wait=float(headers.get("retry-after", 0)))

    def feedback(self, request_id: str, thumb: str) -> None:
        given = {"request_id": request_id, "thumb": thumb, "comment": "é"}
        status, _, found = self._post("/api/feedback", given)
        assert (status, found) == (200, {"request_id": request_id, "stored": True})

    def _post(self, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
        headers = {"x-api-key": KEY, "content-type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        reply = self._connection.getresponse()
        content = json.loads(reply.read())
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, content


def direct_client(runtime: Any, name: str) -> Ask:
    """Ask the endpoint as the app does, without the app."""

    def ask(number: int) -> Reply:
        asked = {
            "messages": [{"role": "user", "content": question(number)}],
            "max_tokens": 16,
            "retrieve": 1,
        }
        reply = runtime.invoke_endpoint(
            EndpointName=name,
            Body=json.dumps(asked),
            ContentType="application/json",
        )
        found = json.loads(reply["Body"].read())
        text = found["choices"][0]["message"]["content"]
        assert text == f"Answer to: {question(number)}"
        return Reply(200)

    return ask


# --- the load -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(aws) -> Iterator[tuple[str, str]]:
    """An endpoint and a table, by their names, which the tests share."""
    guard = BillingGuard(aws, say=lambda _: None)
    made = deploy(aws, guard, upload(aws, guard, {"model.py": MODEL}), "load")
    table = guard.name("load")
    create_table(aws.session, table)
    wait_until_in_service(aws, made, say=lambda _: None)
    yield made.endpoint_name, table
    guard.close()
    assert guard.remaining() == []


@pytest.fixture(scope="module")
def web(place, tmp_path_factory) -> Iterator[WebServer]:
    endpoint, table = place
    settings = {
        "WEB_ENDPOINT": endpoint,
        "WEB_TABLE": table,
        "WEB_BREAKER_SECONDS": "1",  # the worker is back soon
    }
    plans = {
        KEY: UsagePlan(rate=10_000, burst=10_000),
        SLOW_KEY: UsagePlan(rate=0.01, burst=2),
        FEW_KEY: UsagePlan(rate=10_000, burst=10_000, quota=3),
    }
    folder = tmp_path_factory.mktemp("web")
    with serve_web(settings, folder, plans, log=folder / "log") as server:
        yield server


def kill_worker(endpoint: str) -> None:
    """Kill the process in which the model is, in the midst of the load."""
    time.sleep(0.5)
    (variant,) = OfflineAws.running().endpoints[endpoint].variants
    _, worker = wait_for_worker(variant.container)
    worker.kill()


def put_load(aws, web, endpoint: str, table: str, count: int, rounds: int) -> None:
    """Ask `count` questions through the app in `rounds`, two of them with a kill."""
    runtime = aws.session.client(
        "sagemaker-runtime", config=Config(max_pool_connections=AT_ONCE)
    )
    direct = [direct_client(runtime, endpoint) for _ in range(AT_ONCE)]
    users = [AppClient(web) for _ in range(AT_ONCE)]
    size = count // rounds
    ask_many(users, range(-AT_ONCE, 0))  # connections, imports
    ask_many(direct, range(AT_ONCE))
    kills = {rounds // 3, 2 * rounds // 3}
    asked: list[Block] = []
    quiet: list[Pair] = []
    thumbs: dict[str, str] = {}

    def compare(numbers: range) -> Block:
        # By turns, since the machine has other work as well.
        if len(quiet) % 2:
            through, beside = ask_many(users, numbers), ask_many(direct, numbers)
        else:
            beside, through = ask_many(direct, numbers), ask_many(users, numbers)
        quiet.append(Pair(through, beside))
        return through

    for number in range(rounds):
        numbers = range(number * size, (number + 1) * size)
        if number in kills:
            asked.append(ask_many(users, numbers, lambda: kill_worker(endpoint)))
            settle(users[0])
        else:
            asked.append(compare(numbers))
        give_feedback(users, asked[-1], thumbs)
    check_outcomes(asked, count)
    check_records(aws, table, asked, thumbs)
    check_log(web, count + AT_ONCE, len(thumbs))
    while slower(quiet) > MOST_RATIO and len(quiet) < MOST_PAIRS:
        compare(range(count, count + size))  # three are few on a busy machine
    show(quiet)
    assert slower(quiet) <= MOST_RATIO


@dataclass
class Pair:
    """The same questions, asked through the app and directly, one after the other."""

    through: Block
    beside: Block


def slower(pairs: list[Pair]) -> float:
    """The app's p95 by the endpoint's own, each the median of all blocks."""
    through = statistics.median(pair.through.p95 for pair in pairs)
    return through / statistics.median(pair.beside.p95 for pair in pairs)


def show(pairs: list[Pair]) -> None:
    each = sorted(pair.through.p95 / pair.beside.p95 for pair in pairs)
    throughput = statistics.median(
        pair.through.per_second / pair.beside.per_second for pair in pairs
    )
    p95 = statistics.median(pair.beside.p95 for pair in pairs)
    print(
        f"p95 {slower(pairs):.2f} times the endpoint's own {p95:.3f} s ({each[0]:.2f} "
        f"to {each[-1]:.2f} in {len(pairs)} pairs), throughput {throughput:.2f} times"
    )


def settle(user: AppClient) -> None:
    """Wait until the endpoint answers again, and the breaker lets it."""
    deadline = time.monotonic() + LONG
    while user(-AT_ONCE - 1).status != 200:
        assert time.monotonic() < deadline, "the worker does not come back"
        time.sleep(0.2)


def give_feedback(users: list[AppClient], block: Block, thumbs: dict[str, str]) -> None:
    """Rate each answer of a block, a third of them twice."""
    given = [one.request_id for one in block.replies.values() if one.status == 200]
    jobs = []
    for number, request_id in enumerate(given):
        thumb = "up" if number % 2 else "down"
        jobs.append([(request_id, thumb)])
        if number % 3 == 0:
            jobs[-1].insert(0, (request_id, "down" if thumb == "up" else "up"))
        thumbs[request_id] = thumb
    turns = iter(jobs)

    def one(user: AppClient) -> None:
        for job in turns:
            for request_id, thumb in job:
                user.feedback(request_id, thumb)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for future in [pool.submit(one, user) for user in users]:
            future.result()


def check_outcomes(asked: list[Block], count: int) -> None:
    """Hold every request to an answer or a documented error, few of them errors."""
    replies = list(itertools.chain(*(block.replies.values() for block in asked)))
    outcomes = Counter(reply.status for reply in replies)
    print(dict(outcomes))
    assert len(replies) == count
    assert set(outcomes) <= {200, *DOCUMENTED}
    assert outcomes[200] > 0.5 * count
    assert sum(outcomes[status] for status in DOCUMENTED) > 0  # it was noticed
    answered = [reply.request_id for reply in replies if reply.status == 200]
    assert len(set(answered)) == len(answered)


def check_records(aws, table: str, asked: list[Block], thumbs: dict[str, str]) -> None:
    """Find each answer in the table, with the last feedback on it."""
    pages = aws.session.client("dynamodb").get_paginator("scan")
    rows = {}
    for page in pages.paginate(TableName=table):
        rows |= {row["request_id"]["S"]: row for row in page["Items"]}
    for block in asked:
        for reply in block.replies.values():
            if reply.status == 200:
                row = rows[reply.request_id]
                assert row["status"] == {"N": "200"}
                assert row["thumb"] == {"S": thumbs[reply.request_id]}
                assert "question" not in row and "comment" not in row


def check_log(web: WebServer, least: int, feedback: int) -> None:
    """Find one line for each request, and no text of a client."""
    requests = [line for line in web.lines() if line.get("message") == "request"]
    assert len({line["request_id"] for line in requests}) == len(requests)
    routes = Counter(line["route"] for line in requests)
    assert routes["/api/generate"] >= least
    assert routes["/api/feedback"] >= feedback
    assert "What does question" not in web.log.read_text()


# --- who gets to the endpoint ---------------------------------------------------------


def invocations(endpoint: str) -> int:
    """How many requests the endpoint has had, by what CloudWatch is told of them."""
    time.sleep(0.3)  # it is told when the reply has gone
    return sum(
        1
        for _, name, _, place, _ in METRICS.samples()
        if name == "Invocations" and place["EndpointName"] == endpoint
    )


@pytest.mark.parametrize(
    "key, statuses",
    [
        (None, [403] * 3),
        ("x" * 30, [403] * 3),
        (SLOW_KEY, [200, 200, 429, 429]),
        (FEW_KEY, [200, 200, 200, 429, 429]),
    ],
)
def test_who_is_refused_does_not_reach_the_endpoint(web, place, key, statuses) -> None:
    endpoint, _ = place
    before, lines = invocations(endpoint), len(web.lines())
    headers = {} if key is None else {"x-api-key": key}
    for expected in statuses:
        asked = {"question": "May I?"}
        reply = httpx.post(f"{web.url}/api/generate", json=asked, headers=headers)
        assert reply.status_code == expected, reply.text
        if expected != 200:
            code = "forbidden" if expected == 403 else "throttled"
            assert reply.json()["error"]["code"] == code
            assert ("retry-after" in reply.headers) == (expected == 429)
    answered = statuses.count(200)
    assert invocations(endpoint) - before == answered
    assert (len(web.lines()) > lines) == (answered > 0)


def test_a_stream_comes_piece_by_piece(web) -> None:
    """Through model, event stream, app, gateway and server, none of which waits."""
    asked = {"question": "Well?", "stream": True}
    headers = {"x-api-key": KEY}
    came: list[tuple[float, str, Any]] = []
    with httpx.stream(
        "POST", f"{web.url}/api/generate", json=asked, headers=headers
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in reply.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                came.append((time.monotonic(), name, json.loads(value)))
    assert [name for _, name, _ in came] == ["start", *["piece"] * 3, "end"]
    texts = [data["text"] for _, name, data in came if name == "piece"]
    assert texts == ["Line 1\n", "event: end", "[DONE] é"]
    assert came[-1][0] - came[1][0] > 0.6  # three pauses of 0.3 s
    assert came[-1][2]["finish_reason"] == "stop"


# --- the tests ------------------------------------------------------------------------


def test_a_load_with_kills_loses_nothing(aws, web, place) -> None:
    put_load(aws, web, *place, count=260, rounds=5)


@pytest.mark.slow
def test_two_thousand_requests_with_kills(aws, web, place) -> None:
    put_load(aws, web, *place, count=2000, rounds=10)
