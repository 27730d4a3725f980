"""An artifact served on this machine, and what is measured of it."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from utils.deployment.serving import (
    ServingError,
    Timing,
    measure,
    serve_locally,
    timing_table,
)

ENTRY_POINT = """
from djl_python import Input, Output

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    body = inputs.get_as_json()
    if body == "wrong":
        return Output().error("inputs: what is that?", code=400)
    return Output().add_as_json({"echo": body})
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(ENTRY_POINT)
    return tmp_path


def below():
    return [p for p in psutil.Process().children(True) if p.status() != "zombie"]


def test_serves_until_the_block_ends(folder) -> None:
    before = len(below())
    with serve_locally(folder) as server:
        assert list(server.ping().values()) == [{"status": "Healthy"}]
        assert server.ask({"inputs": "é"}) == {"echo": {"inputs": "é"}}
        with pytest.raises(ServingError, match=r"status 400: [\s\S]*what is that"):
            server.ask("wrong")
        assert len(below()) > before
    assert len(below()) == before


def test_stops_when_the_block_fails(folder) -> None:
    before = len(below())
    with pytest.raises(KeyboardInterrupt), serve_locally(folder):
        raise KeyboardInterrupt
    assert len(below()) == before


def test_artifact_that_does_not_load_says_why(folder) -> None:
    (folder / "model.py").write_text("import nosuch_module")
    before = len(below())
    said = pytest.raises(ServingError, match=r"nosuch_module[\s\S]*Its log ends:")
    with said, serve_locally(folder):
        pytest.fail("it serves")
    assert len(below()) == before


def test_times_of_each_request_and_of_all() -> None:
    together_there = threading.Barrier(3)

    def ask(payload):
        time.sleep(0.05)
        return payload["inputs"]

    def ask_together(payload):
        together_there.wait(60)  # breaks, and fails, if the others are not asked too
        return payload["inputs"]

    texts = [{"inputs": "a"}, {"inputs": ["b", "c", "d"]}, {"inputs": "e"}]
    alone = measure(ask, texts)
    together = measure(ask_together, texts, at_once=3)
    assert alone.answers == together.answers == 5
    assert len(alone.seconds) == 3 and min(alone.seconds) >= 0.05
    assert alone.total >= sum(alone.seconds) >= 0.15
    assert together.total >= max(together.seconds)
    assert alone.replies == together.replies == ("a", ["b", "c", "d"], "e")


def test_percentiles() -> None:
    timing = Timing(tuple(n / 100 for n in range(100, 0, -1)), 4.0, 100)
    assert timing.p50 == pytest.approx(0.505)
    assert timing.p95 == pytest.approx(0.96)
    assert timing.per_second == 25
    assert "| one by one | 0.505 s | 0.960 s | 25.0 |" in timing_table(
        {"one by one": timing}
    )


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="Found 0 requests"):
        measure(print, [])
