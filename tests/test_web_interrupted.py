"""Notebook 07 leaves nothing, at whatever cell and in whatever way it breaks off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from support.endpoints import ECHO, deploy, upload
from support.interrupted_kernel import FIRST, Kernel, write_inputs
from utils.deployment.aws import wait_until_in_service

# Ten cells: during and after each thing that is created.
MOMENTS = (
    "connect",
    "variants-run",
    "table",
    "serve-run",
    "stream-run",
    "dead",
    "lambda-run",
    "register-run",
    "promote-run",
    "teardown-run",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture
def kernel(environment, tmp_path) -> Iterator[Callable[[], Kernel]]:
    """Return a function that starts a kernel with a temporary folder of its own."""
    made: list[Kernel] = []

    def start() -> Kernel:
        made.append(Kernel(environment, tmp_path / str(len(made))))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_broken_off_the_notebook_leaves_nothing(kernel) -> None:
    """By an error and by an interrupt; then the kernel is shut down in its midst."""
    running = kernel()
    running.run(None, "variants-run")
    running.break_off("variants-run", "error")
    assert running.held() == []
    running.run(FIRST, "serve-run")
    held = " ".join(running.held())
    for kind in ("endpoint ", "model ", "S3 object", "table ", "target "):
        assert kind in held
    running.break_off("serve-run", "signal")
    assert running.held() == []
    assert running.servers() == []  # the guard has ended it
    running.run(FIRST, "stream-run")
    running.run("rule", "promote-run")
    assert "package " in " ".join(running.held())
    assert len(running.servers()) == 1  # the earlier one has ended
    assert running.end("shutdown") == []
    assert json.loads(running.last_words.read_text()) == []


def test_killed_its_server_and_its_endpoint_end_with_it(kernel) -> None:
    running = kernel()
    running.run(None, "serve-run")
    running.begin("serve-run", "import time; time.sleep(60)")
    running.until_idle_in("serve-run")
    assert len(running.servers()) == 1
    assert running.end("kill") == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["error", "signal"])
def test_broken_off_at_ten_cells_it_goes_on_and_leaves_nothing(kernel, way) -> None:
    running = kernel()
    running.run(None, FIRST)
    for name in MOMENTS:
        running.run(FIRST, name)
        running.break_off(name, way)
        assert running.held() == [], name
        assert running.servers() == [], name
    running.run(FIRST, None)
    assert running.held() == [] == running.servers()
    assert running.end("shutdown") == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shutdown", "kill"])
@pytest.mark.parametrize("name", MOMENTS)
def test_ended_at_ten_cells_it_leaves_nothing(kernel, name, way) -> None:
    running = kernel()
    running.run(None, name)
    running.begin(name)
    if way == "shutdown":  # a kernel takes it between two cells
        running.until_idle_in(name)
    assert running.end(way) == []
    if way == "shutdown":
        assert json.loads(running.last_words.read_text()) == []


def test_a_target_goes_before_its_endpoint(aws, guard) -> None:
    """Else autoscaling keeps a target that leads nowhere; whichever was noted first."""
    for what, ended in (("teardown", guard.teardown), ("close", guard.close)):
        address = upload(aws, guard, {"model.py": ECHO})
        endpoint = deploy(aws, guard, address, what, {"one": 1, "two": 1})
        wait_until_in_service(aws, endpoint, say=lambda _: None)
        scaling = aws.session.client("application-autoscaling")
        for variant in ("one", "two"):
            scaling.register_scalable_target(
                ServiceNamespace="sagemaker",
                ResourceId=f"endpoint/{endpoint.endpoint_name}/variant/{variant}",
                ScalableDimension="sagemaker:variant:DesiredInstanceCount",
                MinCapacity=1,
                MaxCapacity=2,
            )
        calls: list[str] = []

        def note(event_name: str, calls: list[str] = calls, **_: object) -> None:
            calls.append(event_name.rpartition(".")[2])

        aws.session.events.register("before-call", note)
        ended()
        aws.session.events.unregister("before-call", note)
        changed = [one for one in calls if one.startswith(("Delete", "Deregister"))]
        assert changed.count("DeregisterScalableTarget") == 2
        assert changed.index("DeleteEndpoint") > 1
        assert changed[:2] == ["DeregisterScalableTarget"] * 2
