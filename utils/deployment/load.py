"""Load on an endpoint, as its users meet it: waiting, throughput, and where it bends.

    python -m utils.deployment load --url http://127.0.0.1:8080/invocations \
        requests.jsonl --clients 1 2 4 8 16 --seconds 20 --stream

Closed loop (`closed_loop`): so many clients, each of which sends its next request when
it has the reply to its last. A server that slows down is asked less.

Open loop (`open_loop`): requests arrive at a rate, at random times (Poisson), whether
or not the earlier ones are answered: as from users who know nothing of each other. A
latency counts from the time at which the request was *due*. Counting from when it was
at last sent would leave out the waiting that a slow server causes ("coordinated
omission": Gil Tene, README of wrk2).

Terms as in vLLM's benchmark (`vllm bench serve`): time to first token (TTFT),
inter-token latency (ITL), end-to-end latency. What a client sees, however, are the
pieces of a stream. A piece is not exactly a token: a server holds back what may yet
become a stop text, or half a character, and then sends several tokens at once. So the
tables say "piece".

This measures requests of any form, by boto3 or by port. Servers that speak the schema
of OpenAI are measured by `vllm bench serve` and GuideLLM as well. The clients are
threads of one process: up to some hundred requests a second. Above that this program
is what is slow, which `Load.late` shows for the open loop.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from utils.deployment.replies import MOST_AT_ONCE, LoadError, Reply, Send, Target
from utils.deployment.serving import Timing, percentile

PAUSE = 0.1  # seconds after a request that nobody answered
LATE = 0.05  # seconds; what the report mentions
MILLISECONDS = 1000


# --- what is found --------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What came of a load.

    Attributes:
        replies: to all requests, in the order in which they ended.
        total: seconds from the beginning to the end of the last reply.
        clients: of a closed loop.
        rate: requests a second of an open loop.
    """

    replies: tuple[Reply, ...]
    total: float
    clients: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """Return what load it was."""
        if self.rate is not None:
            return f"{self.rate:g} a second"
        return f"{self.clients} client{'s' if self.clients != 1 else ''}"

    @cached_property
    def good(self) -> tuple[Reply, ...]:
        """Return the whole answers."""
        return tuple(reply for reply in self.replies if not reply.failure)

    @cached_property
    def outcomes(self) -> Counter[str]:
        """Count the replies by status, and failures by their kind."""
        return Counter(reply.failure or str(reply.status) for reply in self.replies)

    @cached_property
    def latency(self) -> Timing | None:
        """Return how long whole answers took, and how many a second; None if none.

        The seconds run to the last reply, not to the last request: in a closed loop
        nothing is cut off, and an overloaded open loop shows what the server can do.
        """
        seconds = tuple(reply.latency for reply in self.good)
        return Timing(seconds, self.total, len(seconds)) if seconds else None

    @cached_property
    def first_piece(self) -> tuple[float, ...]:
        """Return the seconds to the first piece of each answer that was a stream."""
        found = (reply.first_piece for reply in self.good)
        return tuple(seconds for seconds in found if seconds is not None)

    @cached_property
    def gaps(self) -> tuple[float, ...]:
        """Return the seconds between pieces, of all answers that were streams."""
        return tuple(gap for reply in self.good for gap in reply.gaps)

    @property
    def late(self) -> float:
        """Return by how many seconds requests were sent late, at the 99th percentile.

        More than some milliseconds: this program was too slow, or had MOST_AT_ONCE
        requests under way.
        """
        return percentile([reply.sent - reply.due for reply in self.replies], 0.99)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for a file of JSON; times in seconds."""
        taken = self.latency
        pieces = sum(len(reply.piece_times) for reply in self.good)
        return {
            "clients": self.clients,
            "rate": self.rate,
            "requests": len(self.replies),
            "seconds": self.total,
            "outcomes": dict(self.outcomes),
            "bytes": sum(reply.size for reply in self.replies),
            "answers_per_second": taken.per_second if taken else 0.0,
            "pieces_per_second": pieces / self.total,
            "latency": _percentiles(taken.seconds if taken else ()),
            "first_piece": _percentiles(self.first_piece),
            "between_pieces": _percentiles(self.gaps),
            "sent_late_p99": self.late,
        }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{round(100 * p)}": percentile(seconds, p) for p in (0.5, 0.95, 0.99)}


# --- load -----------------------------------------------------------------------------


def _exchange(send: Send, body: bytes, due: float | None, started: float) -> Reply:
    """Send one request; `started` is the load's beginning by `perf_counter`."""
    sent = time.perf_counter()
    status, content_type, parts, problem = send(body)
    ended = time.perf_counter() - started
    return Reply(
        sent - started if due is None else due,
        sent - started,
        ended,
        status,
        content_type,
        tuple((at - started, part) for at, part in parts),
        problem,
    )


def closed_loop(
    target: Target, bodies: Sequence[bytes], clients: int, seconds: float
) -> Load:
    """Let clients ask, each one request after the other, for some seconds.

    Args:
        target: what is asked.
        bodies: the requests, which are taken by turns.
        clients: how many ask at once.
        seconds: after which none begins another request.

    Raises:
        LoadError: if there is nothing to send, or no time.
    """
    check_load(bodies, [clients], [], seconds)
    turns = itertools.cycle(bodies)
    replies: list[Reply] = []
    taking = threading.Lock()
    started = time.perf_counter()

    over = threading.Event()

    def ask(send: Send) -> None:
        while time.perf_counter() - started < seconds and not over.is_set():
            with taking:
                body = next(turns)
            reply = _exchange(send, body, None, started)
            replies.append(reply)
            if not reply.status:
                time.sleep(PAUSE)

    with ThreadPoolExecutor(clients) as pool:
        try:
            for one in [pool.submit(ask, target.client(True)) for _ in range(clients)]:
                one.result()
        finally:
            over.set()  # an interrupt ends the others, too
    return _load(replies, clients=clients)


def arrivals(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Yield the times, in seconds, at which requests of a Poisson process arrive."""
    draw = random.Random(seed)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def open_loop(
    target: Target,
    bodies: Sequence[bytes],
    rate: float,
    seconds: float,
    seed: int = 0,
    at_once: int = MOST_AT_ONCE,
) -> Load:
    """Let requests arrive at a rate, whatever the server does with the earlier ones.

    Each has a connection of its own, as each new user has.

    Args:
        target: what is asked.
        bodies: the requests, which are taken by turns.
        rate: requests a second, on average.
        seconds: in which requests arrive; the last replies may come later.
        seed: of the arrivals.
        at_once: requests that can be under way. One above them is sent when another
            has ended, and its latency still counts from when it was due.

    Raises:
        LoadError: if there is nothing to send, or none arrives in this time.
    """
    check_load(bodies, [], [rate], seconds)
    due = list(arrivals(rate, seconds, seed))
    if not due:
        raise LoadError(
            f"--rate {rate:g} --seconds {seconds:g}: no request arrives in this time. "
            "Give more of either."
        )
    replies: list[Reply] = []
    send = threading.local()
    started = time.perf_counter()

    def ask(body: bytes, at: float) -> None:
        if not hasattr(send, "send"):
            send.send = target.client(False)
        replies.append(_exchange(send.send, body, at, started))

    with ThreadPoolExecutor(at_once) as pool:
        running: list[Future] = []
        try:
            for body, at in zip(itertools.cycle(bodies), due, strict=False):
                time.sleep(max(0.0, started + at - time.perf_counter()))
                running.append(pool.submit(ask, body, at))
            for one in running:
                one.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return _load(replies, rate=rate)


def check_load(
    bodies: Sequence[bytes],
    clients: Sequence[int],
    rates: Sequence[float],
    seconds: float,
) -> None:
    """Refuse a load that cannot be put on anything, before any is.

    Raises:
        LoadError: if there is nothing to send, or a number is out of bounds.
    """
    if not bodies:
        raise LoadError("There is no request to send.")
    numbers = [("--clients", one) for one in clients] + [
        ("--rate", one) for one in rates
    ]
    for name, found in [*numbers, ("--seconds", seconds)]:
        if not 0 < found < float("inf"):
            raise LoadError(f"{name}: found {found:g}, expected a number above 0.")
    if max(clients, default=0) > MOST_AT_ONCE:
        raise LoadError(
            f"--clients: found {max(clients)}, expected at most {MOST_AT_ONCE}: each "
            "is a thread of this process. Start it several times."
        )


def _load(replies: list[Reply], **kind: Any) -> Load:
    return Load(tuple(replies), max(reply.ended for reply in replies), **kind)


def curve(
    target: Target, bodies: Sequence[bytes], clients: Sequence[int], seconds: float
) -> list[Load]:
    """Measure a closed loop for each number of clients, after one request to warm up.

    Raises:
        LoadError: if nothing answers that one, with whatever status.
    """
    check_load(bodies, clients, [], seconds)
    warm_up(target, bodies)
    return [closed_loop(target, bodies, count, seconds) for count in clients]


def warm_up(target: Target, bodies: Sequence[bytes]) -> None:
    """Send the first request, which is not counted.

    Raises:
        LoadError: if nothing answers.
    """
    reply = _exchange(target.client(False), bodies[0], 0.0, time.perf_counter())
    if not reply.status or (reply.problem and reply.status != 200):
        raise LoadError(
            f"{target.name}: the first request got no answer ({reply.problem}). Is it "
            "in service, and is this its address or name?"
        )


def knee(loads: Sequence[Load]) -> Load:
    """Return the load with the highest power: throughput over mean latency.

    The rule is Kleinrock's ("Power and deterministic rules of thumb for probabilistic
    problems in computer communications", ICC 1979). Up to this point more load gains
    more in throughput than it costs in latency, in proportion; beyond it, less. Of
    equals it is the first. Failures count neither as throughput nor in the latency.
    The knee is one of the measured loads: the true one may lie between them, or beyond
    the last.

    Args:
        loads: of several numbers of clients or rates, but not of both.

    Raises:
        LoadError: if none of them got an answer.
    """
    known = [load for load in loads if load.latency is not None]
    if not known:
        raise LoadError("No request was answered: there is no knee.")
    return max(known, key=_power)


def _power(load: Load) -> float:
    taken = load.latency
    return taken.per_second / (sum(taken.seconds) / len(taken.seconds))


# --- what is shown --------------------------------------------------------------------


def load_table(loads: Sequence[Load]) -> str:
    """Return a table in Markdown, one line a load; times in milliseconds."""
    streams = any(load.first_piece for load in loads)
    heads = ["load", "answers/s", "p50", "p95", "p99"]
    if streams:
        heads += ["pieces/s", "first p50", "p95", "p99", "gap p50", "p95", "p99"]
    lines = [" | ".join(["", *heads, "failed", ""]).strip()]
    lines.append("|:--|" + "--:|" * len(heads))
    for load in loads:
        found = load.as_dict()
        cells = [load.name, f"{found['answers_per_second']:.1f}"]
        cells += _cells(found["latency"])
        if streams:
            cells.append(f"{found['pieces_per_second']:.1f}")
            cells += _cells(found["first_piece"]) + _cells(found["between_pieces"])
        cells.append(f"{len(load.replies) - len(load.good)} of {len(load.replies)}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return ["–"] * 3
    return [f"{MILLISECONDS * seconds:.0f}" for seconds in found.values()]


def report(loads: Sequence[Load]) -> str:
    """Return the table, what its columns mean, the failures by kind, and the knee."""
    lines = [load_table(loads), "", "Times in milliseconds, of whole answers."]
    if any(load.first_piece for load in loads):
        lines.append(
            "Pieces are the lines of a stream (first: to the first of them; gap: from "
            "one to the next): about tokens, but a piece can hold several."
        )
    for load in loads:
        if len(load.outcomes) > 1 or not load.good:
            counted = ", ".join(f"{n} × {what}" for what, n in load.outcomes.items())
            lines.append(f"{load.name}: {counted}.")
        if load.rate is not None and load.late > LATE:
            lines.append(
                f"{load.name}: one request in a hundred was sent {load.late:.2f} s or "
                "more too late. Its wait counts, but this program is at its limit."
            )
    for kind in ("clients", "rate"):
        alike = [load for load in loads if getattr(load, kind) is not None]
        if len(alike) > 1 and any(load.good for load in alike):
            name = knee(alike).name
            lines.append(f"Knee (highest throughput / mean latency): {name}.")
    return "\n".join(lines)
