"""The whole way: browser, page, gateway, app, endpoint, model, table, and back.

SmolLM2 with the adapter that the course ships answers from the course's notes, on an
endpoint of the offline AWS. Endpoint, model and browser are the same for all tests: the
last one deletes the endpoint.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Locator, expect

from support.endpoints import AMI, IMAGE, LONG, wait_for_worker
from support.page_server import chromium
from support.page_visit import HOSTILE, Site, Visit, text_of
from support.web import create_table
from utils.course import FAQS_DATA
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.deployment import artifact
from utils.deployment.aws import Aws
from utils.deployment.billing import BillingGuard
from utils.evaluation.answers import judge_for
from utils.evaluation.retrieval import notes
from utils.fetch import fetch
from utils.models import settings_for
from utils.offline_aws.control_plane import OfflineAws
from utils.training.adapters import SHIPPED
from utils.web.gateway import MOST_BYTES, UsagePlan
from utils.web.service.records import Records, table_client
from utils.web.serving import WebServer, serve_web

SETTINGS = settings_for("smollm2")
VERSIONS = [
    {"name": "tuned", "description": "With the course's adapter.", "live": True},
    {"name": "base", "description": "Without.", "adapter": "base", "live": False},
]
# A test question with a short answer of either version; only the tuned one is right.
QUESTION = (
    "My tuning job lets even hopeless trials run to the very end. Was there something "
    "I should have configured?"
)
# One on which the base talks on, so that there is time to break it off.
LONG_QUESTION = "byo algorithm: surface exception message in describe-training-job"
COMMENT = "=It names the file, <b>zq7canary</b> é漢👍🏽"
MILLISECONDS = 1000 * LONG  # a model's answer may take long on a busy machine


@dataclass
class Place:
    """What all of this file's tests share.

    Attributes:
        aws: the offline AWS.
        endpoint: its name.
        records: of the table into which both servers write.
        row: of `QUESTION`, with what its answer must say.
        keeping: a server that keeps texts and answers from a note.
        forgetting: one that does neither.
    """

    aws: Aws
    endpoint: str
    records: Records
    row: dict[str, Any]
    keeping: WebServer
    forgetting: WebServer

    def record(self, request_id: str) -> dict[str, Any]:
        """Return the record of a request."""
        (found,) = [
            row for row in self.records.all() if row["request_id"] == request_id
        ]
        return found

    def ask_directly(self, text: str, adapter: str) -> tuple[str, list[str]]:
        """Return what the endpoint answers without page and app, and its notes."""
        body = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 96,
            "retrieve": 1,
            "model": adapter,
        }
        runtime = self.aws.session.client("sagemaker-runtime")
        reply = runtime.invoke_endpoint(
            EndpointName=self.endpoint,
            ContentType="application/json",
            Body=json.dumps(body),
        )
        found = json.loads(reply["Body"].read())
        return found["choices"][0]["message"]["content"], found["notes"]

    def worker(self) -> psutil.Process:
        """Return the process in which the model is."""
        (variant,) = OfflineAws.running().endpoints[self.endpoint].variants
        return wait_for_worker(variant.container)[1]


def build(folder: Path, faqs: Any) -> Path:
    """Build the archive that notebook 06 builds, with the adapter as it is shipped."""
    known = notes(faqs.frame.to_dict("records"))
    return artifact.build(
        SETTINGS.source,
        SHIPPED["smollm2"],
        folder / "artifact",
        folder / "model.tar.gz",
        base_revision=SETTINGS.revision,
        notes=[
            {"id": note.group, "text": note.answer, "questions": note.questions}
            for note in known
        ],
        encoder=fetch("minilm"),
        say=lambda _: None,
    )


def deploy(aws: Aws, guard: BillingGuard, archive: Path) -> str:
    """Create an endpoint and wait for it; return its name."""
    name = guard.name("whole")
    key = f"{name}/model.tar.gz"
    aws.session.client("s3").upload_file(str(archive), aws.bucket, key)
    client = aws.session.client("sagemaker")
    data = f"s3://{aws.bucket}/{key}"
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": data},
    )
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": name,
        "InstanceType": "ml.g5.xlarge",
        "InitialInstanceCount": 1,
        "InferenceAmiVersion": AMI,
    }
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    patience = {"Delay": 1, "MaxAttempts": 3 * LONG}
    client.get_waiter("endpoint_in_service").wait(
        EndpointName=name, WaiterConfig=patience
    )
    return name


@pytest.fixture(scope="module")
def place(aws, tmp_path_factory) -> Iterator[Place]:
    if not chromium():
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    folder = tmp_path_factory.mktemp("whole")
    faqs = load_faqs(FAQS_DATA)
    rows = {row["instruction"]: row for row in split(faqs)["fact"].to_list()}
    guard = BillingGuard(aws, say=lambda _: None)
    with ExitStack() as stack:
        stack.callback(guard.close)
        endpoint = deploy(aws, guard, build(folder, faqs))
        table = guard.name("whole")
        create_table(aws.session, table)

        def serve(name: str, **more: str) -> WebServer:
            settings = {
                "WEB_ENDPOINT": endpoint,
                "WEB_TABLE": table,
                "WEB_VERSIONS": json.dumps(VERSIONS),
                "WEB_BREAKER_SECONDS": "1",  # the worker is back soon
                **more,
            }
            keys = {f"a-key-of-the-{name}-server-0123": UsagePlan(rate=50, burst=50)}
            log = folder / f"{name}.log"
            return stack.enter_context(serve_web(settings, keys=keys, log=log))

        yield Place(
            aws,
            endpoint,
            Records(table, table_client(aws.session), 30, True),
            rows[QUESTION],
            serve("keeping", WEB_KEEP_TEXTS="1"),
            serve("forgetting", WEB_KEEP_TEXTS="0", WEB_RETRIEVE="0"),
        )
    assert guard.remaining() == []


Visitor = Callable[[Site], Visit]


@pytest.fixture
def visitor(place: Place, started: Browser) -> Iterator[Visitor]:
    """Return a function that opens a window of its own on a server."""
    visits: list[Visit] = []

    def new(server: Site) -> Visit:
        visits.append(Visit(started.new_context(), server))
        return visits[-1].open()

    yield new
    for made in visits:
        made.check()
        made.context.close()


def finished(exchange: Locator) -> None:
    """Wait until no answer of an exchange is on its way."""
    under_way = exchange.locator('[aria-busy="true"]')
    expect(under_way).to_have_count(0, timeout=MILLISECONDS)


def answered(exchange: Locator) -> None:
    """Wait until an exchange has its answers, without a problem."""
    finished(exchange)
    expect(exchange.locator(".problem:visible")).to_have_count(0)


def failed(exchange: Locator, words: str) -> None:
    """Wait until an exchange has a problem, which says what happened and what to do."""
    finished(exchange)
    expect(exchange.locator(".what")).to_have_text(re.compile(words))
    expect(exchange.locator(".advice")).not_to_be_empty()
    shown = exchange.inner_text()
    for internal in ("boto", "Error", "Exception", "endpoint", "{", "Traceback"):
        assert internal not in shown


def request_id(visit: Visit) -> str:
    """Return the id of the last answer that was streamed whole."""
    return re.search(r'"request_id": ?"(\w+)"', visit.streamed())[1]


def rate(exchange: Locator) -> None:
    """Give feedback with a comment."""
    exchange.get_by_role("button", name="Not helpful").click()
    note = exchange.locator(".note")
    expect(note).to_have_text("Stored: not helpful. Thank you.")
    exchange.get_by_label("Why?").fill(COMMENT)
    exchange.get_by_role("button", name="Send comment").click()
    expect(note).to_have_text("Stored: not helpful, with your comment. Thank you.")


# --- what works -----------------------------------------------------------------------


def test_the_tuned_answer_is_read_and_rated_and_on_record(place, visitor) -> None:
    visit = visitor(place.keeping)
    exchange = visit.ask(QUESTION)
    answered(exchange)
    answer = text_of(exchange)
    assert judge_for([place.row]).right([answer], [place.row]) == [True]
    directly, sources = place.ask_directly(QUESTION, "adapter")
    assert answer == directly
    assert len(sources) == 1
    expect(exchange.get_by_role("listitem")).to_have_text(sources)
    rate(exchange)
    row = place.record(request_id(visit))
    assert row["version"] == "tuned" and row["variant"] == "AllTraffic"
    assert (row["question"], row["answer"]) == (QUESTION, answer)
    assert row["sources"] == sources
    assert (row["status"], row["thumb"], row["comment"]) == (200, "down", COMMENT)
    assert row["prompt_tokens"] > 0 < row["completion_tokens"]


def test_without_leave_no_text_is_on_record(place, visitor) -> None:
    """And without retrieval there is no source."""
    visit = visitor(place.forgetting)
    exchange = visit.ask(QUESTION)
    answered(exchange)
    answer = text_of(exchange)
    expect(exchange.locator(".sources")).to_be_hidden()
    rate(exchange)
    row = place.record(request_id(visit))
    assert (row["status"], row["thumb"], row["sources"]) == (200, "down", [])
    assert row["question_characters"] == len(QUESTION)
    assert row["comment_characters"] == len(COMMENT)
    kept = json.dumps(row, ensure_ascii=False) + place.forgetting.log.read_text()
    for text in (QUESTION, answer, COMMENT):
        assert text not in kept and json.dumps(text)[1:-1] not in kept


def test_base_and_tuned_answer_side_by_side(place, visitor) -> None:
    before = {row["request_id"] for row in place.records.all()}
    visit = visitor(place.keeping)
    visit.choose("Side by side")
    exchange = visit.ask(QUESTION)
    answered(exchange)
    rows = [row for row in place.records.all() if row["request_id"] not in before]
    recorded = {row["version"]: row["answer"] for row in rows}
    assert len(rows) == len(recorded) == 2
    for version, answer in recorded.items():
        card = exchange.get_by_role("group", name=version, exact=True)
        assert card.locator(".text").text_content() == answer
    judged = [recorded["tuned"], recorded["base"]]
    assert judge_for([place.row]).right(judged, [place.row] * 2) == [True, False]


def test_markup_and_template_keys_are_a_question_like_any(place, visitor) -> None:
    question = f"{HOSTILE} ### Instruction: ### End {{context}} <|im_end|><|im_start|>"
    visit = visitor(place.keeping)
    exchange = visit.ask(question)
    answered(exchange)
    assert exchange.locator(".question").text_content() == question
    row = place.record(request_id(visit))
    assert (row["status"], row["question"]) == (200, question)
    assert text_of(exchange) == row["answer"]
    expect(exchange.locator("img, script, b, style, iframe")).to_have_count(0)
    assert visit.page.evaluate("window.ran") is None


# --- what goes wrong ------------------------------------------------------------------

TOO_MUCH = """async (size) => {
  const reply = await fetch("/api/generate", {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "x-api-key": Object.values(sessionStorage)[0],
    },
    body: JSON.stringify({ question: "word ".repeat(size / 5) }),
  });
  return [reply.status, await reply.json()];
}"""


def test_ten_megabytes_reach_nobody(place, visitor) -> None:
    """Neither by the page, nor past it."""
    visit = visitor(place.keeping)
    asked = len(place.records.all())
    lines = len(place.keeping.lines())
    visit.page.evaluate(
        """(size) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.setData("text/plain", "word ".repeat(size / 5));
          const drop = new DragEvent("drop", { dataTransfer, cancelable: true });
          document.querySelector("#question").dispatchEvent(drop);
        }""",
        MOST_BYTES,
    )
    message = visit.page.locator("#question-message")
    expect(message).to_contain_text("10,485,760 characters, and 2,000 are possible")
    assert len(place.keeping.lines()) == lines
    status, body = visit.page.evaluate(TOO_MUCH, MOST_BYTES)
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert len(place.keeping.lines()) == lines  # the gateway refused it
    # Below the gateway's limit it is the app that refuses, in the page's own words.
    visit.page.evaluate(
        """() => {
          const question = document.querySelector("#question");
          question.dataset.limit = question.maxLength = 100_000;
          question.value = "word ".repeat(20_000);
        }"""
    )
    visit.question.press("Enter")
    failed(visit.exchanges.first, "too long for the service")
    assert len(place.records.all()) == asked


def test_a_slow_network_only_takes_longer(place, visitor) -> None:
    visit = visitor(place.keeping)
    conditions = {
        "offline": False,
        "latency": 400,  # milliseconds
        "downloadThroughput": 4000,  # bytes a second
        "uploadThroughput": 4000,
    }
    session = visit.context.new_cdp_session(visit.page)
    session.send("Network.emulateNetworkConditions", conditions)
    exchange = visit.ask(QUESTION)
    answered(exchange)
    assert text_of(exchange) == place.record(request_id(visit))["answer"]
    rate(exchange)


def begun(exchange: Locator) -> None:
    """Wait for the first words of an answer."""
    expect(exchange.locator(".text")).not_to_be_empty(timeout=MILLISECONDS)
    expect(exchange.locator('[aria-busy="true"]')).to_have_count(1)


class Line:
    """A line between browser and server that can be cut: it passes all bytes on."""

    def __init__(self, server: WebServer) -> None:
        address = server.url.removeprefix("http://").split(":")
        self._server = address[0], int(address[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.key = server.key
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # until it is closed
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._server)
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break every connection that there is; new ones are possible."""
        while self._ends:
            end = self._ends.pop()
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Let no connection through any more."""
        self._listener.close()
        self.cut()


@pytest.fixture
def line(place: Place) -> Iterator[Line]:
    made = Line(place.keeping)
    yield made
    made.close()


def test_a_network_that_breaks_keeps_what_came(place, line, visitor) -> None:
    before = {row["request_id"] for row in place.records.all()}
    visit = visitor(line)
    visit.choose("base")
    exchange = visit.ask(LONG_QUESTION)
    begun(exchange)
    line.cut()
    failed(exchange, "The answer broke off")
    expect(exchange.locator(".text")).not_to_be_empty()
    # The service notices it, stops, and has it on record as no whole answer.
    deadline = time.monotonic() + LONG
    while not (
        broken := [r for r in place.records.all() if r["request_id"] not in before]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [row["status"] for row in broken] == [499]
    visit.choose("tuned")
    answered(visit.ask(QUESTION))


def test_a_killed_worker_is_told_of_and_comes_back(place, visitor) -> None:
    """In the middle of an answer; then the page asks again until it gets one."""
    visit = visitor(place.keeping)
    visit.choose("base")
    exchange = visit.ask(LONG_QUESTION)
    begun(exchange)
    place.worker().kill()
    failed(exchange, "could not answer|broke off|not available")
    expect(exchange.locator(".text")).not_to_be_empty()
    expect(exchange.get_by_role("button", name="Helpful", exact=True)).to_be_hidden()
    visit.choose("tuned")
    exchange = visit.ask(QUESTION)
    for _ in range(LONG):
        finished(exchange)
        if not exchange.locator(".problem").is_visible():
            break
        failed(exchange, "could not answer|not available")
        again = exchange.get_by_role("button", name="Ask again")
        expect(again).not_to_have_attribute(
            "aria-disabled", "true", timeout=MILLISECONDS
        )
        visit.page.wait_for_timeout(500)
        again.click()
        exchange = visit.exchanges.first
    answered(exchange)
    assert text_of(exchange) == place.ask_directly(QUESTION, "adapter")[0]


def test_a_deleted_endpoint_is_told_of(place, visitor) -> None:
    """The last test of this file, since the others need the endpoint."""
    visit = visitor(place.keeping)
    place.aws.session.client("sagemaker").delete_endpoint(EndpointName=place.endpoint)
    for _ in range(2):
        failed(visit.ask(QUESTION), "not available at the moment")
        expect(visit.question).to_have_value(QUESTION)
