"""Thousands of requests of all kinds to the course's artifact: each its own reply.

By port and by boto3, 16 at a time: no 5xx that the real server does not give, no hang,
no reply to another's request, and at the end no more threads and memory than after the
first tenth.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.endpoints import deploy
from support.fuzzed_requests import ADAPTER, JSON, KINDS, MARK, Fuzzed, fuzzed
from support.tiny_artifact import build_tiny
from utils.deployment.aws import wait_until_in_service
from utils.djl_python.process import Container
from utils.offline_aws.control_plane import OfflineAws

AT_ONCE = 16
TIMEOUT = 60  # seconds; what takes longer hangs
AGAIN = 100  # how many are asked once more, alone
MOST_GROWTH = 1.05  # of all processes of an endpoint together
# Of each alone: one of 30 MB comes to 1.07 by the fragments that malloc leaves. With an
# arena for each thread it came to 1.8.
MOST_GROWTH_ALONE = 1.15

# Status, content type, body. boto3 does not say an error's content type.
Reply = tuple[int, str | None, bytes]
Send = Callable[[Fuzzed], Reply]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The course's artifact, with a tiny model."""
    folder = tmp_path_factory.mktemp("fuzzed")
    return build_tiny(folder, **{"option.adapter_name": ADAPTER})


# --- two ways to ask ------------------------------------------------------------------


def by_port(port: int) -> Send:
    """Each request has a connection of its own, as each new client has."""

    def send(request: Fuzzed) -> Reply:
        headers = dict(request.headers)
        if request.content_type is not None:
            headers["Content-Type"] = request.content_type
        body: Any = request.body
        if request.in_chunks:
            body = iter([request.body[:7], request.body[7:]])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            path = "/invocations" + request.query
            connection.request(request.method, path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        return reply.status, reply.getheader("Content-Type"), content

    return send


def by_boto3(client: Any, name: str) -> Send:
    def send(request: Fuzzed) -> Reply:
        asked = {"EndpointName": name, "Body": request.body}
        if request.content_type is not None:
            asked["ContentType"] = request.content_type
        try:
            if not request.stream:
                reply = client.invoke_endpoint(**asked)
                return 200, reply["ContentType"], reply["Body"].read()
            reply = client.invoke_endpoint_with_response_stream(**asked)
            parts = [event["PayloadPart"]["Bytes"] for event in reply["Body"]]
            return 200, reply["ContentType"], b"".join(parts)
        except client.exceptions.ModelError as error:
            found = error.response
            return found["OriginalStatusCode"], None, found["OriginalMessage"].encode()

    return send


# --- what a reply must be -------------------------------------------------------------


def answers(request: Fuzzed, reply: Reply) -> list[str]:
    """The texts of an answer, whichever form it has."""
    _, content_type, content = reply
    if content_type == "application/jsonlines":
        assert request.stream
        lines = [json.loads(line) for line in content.splitlines()]
        assert all(set(line) == {"outputs"} for line in lines), content
        return ["".join(line["outputs"] for line in lines)]
    assert content_type == JSON
    assert not request.stream
    found = json.loads(content)
    assert isinstance(found, list) == request.is_list
    found = found if request.is_list else [found]
    assert all(set(one) == {"generated_text"} for one in found), found
    return [one["generated_text"] for one in found]


def refusal(reply: Reply) -> str | None:
    """The error of a request that was refused, or None."""
    status, content_type, content = reply
    if status == 400:
        assert content_type in (JSON, None)
        found = json.loads(content)
        assert found["code"] == 400
        return found["error"]
    return None


def check(request: Fuzzed, reply: Reply) -> str:
    """Hold a reply to its request; return of which class it is."""
    status, _, content = reply
    own = MARK.findall(request.body.decode("utf-8", "replace"))
    text = content.decode("utf-8")
    assert set(MARK.findall(text)) <= set(own), "a reply to another's request"
    if request.status is not None:
        assert status == request.status
        return str(status)
    error = refusal(reply)
    if request.refused_at is not None:
        assert error is not None and error.startswith(request.refused_at)
        return "refused"
    if error is not None:
        assert request.texts is None
        return "refused"
    assert status == 200
    if request.texts is not None:
        found = answers(request, reply)
        assert len(found) == len(request.texts)
        for begun, answer in zip(request.texts, found, strict=True):
            assert answer.startswith(begun)
    return "answered"


def ask_many(send: Send, numbers: range, outcomes: Counter) -> dict[int, list[str]]:
    """Send requests, 16 at a time; return the greedy answers by number.

    Args:
        send: asks and returns the reply.
        numbers: of the requests.
        outcomes: counts kind and class of each reply.
    """
    kept = {}

    def one(number: int) -> None:
        request = fuzzed(number)
        reply = send(request)
        try:
            outcomes[request.kind, check(request, reply)] += 1
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            shown = f"{request.body[:200]!r} got {reply[0]} {reply[2][:300]!r}"
            raise AssertionError(f"{number} ({request.kind}): {shown}") from error
        if request.is_greedy and request.texts is not None:
            kept[number] = answers(request, reply)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(one, numbers):
            pass
    return kept


def used(root: psutil.Process) -> tuple[int, dict[int, int]]:
    """Threads of a process and all below it, and the bytes of each.

    A connection's thread ends shortly after its client has the reply.
    """
    threads = []
    for _ in range(8):
        time.sleep(0.25)
        everything = [root, *root.children(recursive=True)]
        threads.append(sum(process.num_threads() for process in everything))
    return min(threads), {one.pid: one.memory_info().rss for one in everything}


def fuzz(send: Send, count: int, root: psutil.Process) -> None:
    """Send `count` requests, 16 at a time, and hold every reply to its request.

    If there are thousands, neither threads nor memory may grow from the first tenth to
    the end, in `root` and all processes below it.
    """
    outcomes: Counter = Counter()
    first, many = count // 10, count >= 1000
    kept = ask_many(send, range(first), outcomes)
    before = used(root) if many else None
    kept |= ask_many(send, range(first, count), outcomes)
    # Alone each gets what it got among the others.
    for number in sorted(kept)[:: max(1, len(kept) // min(AGAIN, first))]:
        request = fuzzed(number)
        assert answers(request, send(request)) == kept[number], number
    classes = Counter(found for _, found in outcomes.elements())
    assert classes.total() == count
    assert min(classes["answered"], classes["refused"]) > count / 4
    if before is None:
        return
    assert {kind for kind, _ in outcomes} == set(KINDS)
    (threads, memory), (threads_then, memory_then) = before, used(root)
    grown = {pid: memory_then[pid] / memory[pid] for pid in memory}
    together = sum(memory_then.values()) / sum(memory.values())
    alone = ", ".join(f"{growth:.3f}" for growth in grown.values())
    shown = f"threads {threads} to {threads_then}, memory {together:.3f} ({alone})"
    print(dict(classes), shown)
    assert threads_then <= MOST_GROWTH * threads, shown
    assert set(memory_then) == set(memory), shown
    assert together <= MOST_GROWTH and max(grown.values()) <= MOST_GROWTH_ALONE, shown


# --- by port --------------------------------------------------------------------------


@contextlib.contextmanager
def serving(archive: Path) -> Iterator[Container]:
    container = Container(str(archive), {})
    try:
        assert container.start(300) is None
        yield container
    finally:
        container.stop()


def fuzz_by_port(container: Container, count: int) -> None:
    process = psutil.Process(container.process.pid)
    worker = process.children()
    fuzz(by_port(container.port), count, process)
    assert process.children() == worker and container.healthy


def test_requests_of_all_kinds_by_port(archive) -> None:
    with serving(archive) as container:
        fuzz_by_port(container, 200)


@pytest.mark.slow
def test_ten_thousand_requests_by_port(archive) -> None:
    with serving(archive) as container:
        fuzz_by_port(container, 10_000)


# --- by boto3 -------------------------------------------------------------------------


def fuzz_by_boto3(aws, guard, archive, count: int) -> None:
    from botocore.config import Config

    key = f"{guard.run}/fuzz.tar.gz"
    aws.session.client("s3").upload_file(str(archive), aws.bucket, key)
    endpoint = deploy(aws, guard, f"s3://{aws.bucket}/{key}", "fuzz")
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    client = aws.session.client(
        "sagemaker-runtime", config=Config(max_pool_connections=AT_ONCE)
    )
    (variant,) = OfflineAws.running().endpoints[name].variants
    process = psutil.Process(variant.container.process.pid)
    worker = process.children()
    fuzz(by_boto3(client, name), count, psutil.Process())
    assert process.children() == worker  # and not a restarted one


def test_requests_of_all_kinds_by_boto3(aws, guard, archive) -> None:
    fuzz_by_boto3(aws, guard, archive, 100)


@pytest.mark.slow
def test_ten_thousand_requests_by_boto3(aws, guard, archive) -> None:
    fuzz_by_boto3(aws, guard, archive, 10_000)


# --- the requests themselves ----------------------------------------------------------


def test_requests_are_the_same_each_time_and_of_all_kinds() -> None:
    made = [fuzzed(number) for number in range(1000)]
    assert made == [fuzzed(number) for number in range(1000)]
    assert {one.kind for one in made} == set(KINDS)
    expected = Counter(
        "answered"
        if one.texts
        else "refused"
        if one.refused_at is not None
        else "either"
        for one in made
    )
    assert min(expected.values()) > 50


def test_a_reply_to_another_is_noticed() -> None:
    """And a refusal for another's field, an answer in its place, and a 5xx."""
    asked = next(one for n in range(99) if (one := fuzzed(n)).kind == "plain")
    other = fuzzed(next(n for n in range(99, 200) if fuzzed(n).kind == "plain"))
    own, foreign = (
        json.dumps({"generated_text": one.texts[0] + " yes"}).encode()
        for one in (asked, other)
    )
    assert check(asked, (200, JSON, own)) == "answered"
    bad = json.dumps({"code": 400, "error": "inputs: is empty"}).encode()
    wrong = [(200, JSON, foreign), (400, JSON, bad), (503, JSON, own), (424, JSON, bad)]
    for reply in [*wrong, (200, JSON, bad), (200, "application/jsonlines", own)]:
        with pytest.raises((AssertionError, KeyError)):
            check(asked, reply)
