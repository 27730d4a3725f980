"""Notebook 08 leaves nothing, at whatever cell and in whatever way it breaks off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.interrupted_kernel import ENTRY, JOBS, Kernel, environment_of

FIRST = "connect-run"  # before it nothing is created on AWS
# While jobs train, share, search and compare, and between them.
MOMENTS = (
    "start-run",
    "fail-run",
    "spot-run",
    "workers-run",
    "tune-run",
    "tune-results",
    "first-version",
    "endpoint-run",
    "pipeline-run",
    "rollback-run",
    "teardown-run",
)


@pytest.fixture
def kernel(tmp_path) -> Iterator[Kernel]:
    running = Kernel(environment_of(tmp_path), tmp_path / "temporary", JOBS)
    yield running
    running.close()


def test_broken_off_while_a_job_trains_nothing_is_left(kernel) -> None:
    """By an interrupt; then it goes on, and is killed while the same job trains."""
    kernel.run(None, "start-run")
    kernel.begin("start-run")
    kernel.until_running(ENTRY)
    kernel.interrupt()
    assert kernel.held() == []
    assert kernel.running(ENTRY) == []
    kernel.run(FIRST, "start-run")
    kernel.begin("start-run")
    kernel.until_running(ENTRY)
    assert kernel.end("kill") == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["error", "signal"])
def test_broken_off_at_eleven_cells_it_goes_on_and_leaves_nothing(kernel, way) -> None:
    kernel.run(None, FIRST)
    for name in MOMENTS:
        kernel.run(FIRST, name)
        kernel.break_off(name, way)
        assert kernel.held() == [], name
        assert kernel.running(ENTRY) == [], name
    assert kernel.end("shutdown") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_killed_at_eleven_cells_it_leaves_nothing(kernel, name) -> None:
    kernel.run(None, name)
    kernel.begin(name)
    kernel.until_idle_in(name)
    assert kernel.end("kill") == []
