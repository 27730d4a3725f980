"""What holds for all tests: a build folder of their own, no network, no credentials."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

import utils  # noqa: F401 - sets how threads wait, before a test loads PyTorch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from utils.deployment.aws import Aws
    from utils.deployment.billing import BillingGuard

BUILD = Path(tempfile.mkdtemp(prefix="course-tests-")) / "build"
NOWHERE = "http://127.0.0.1:9"
# For the one test that asks the package index.
CALLERS_ENVIRONMENT = dict(os.environ)
for _name in list(os.environ):
    # No test may reach an account or a gated model through its caller's settings.
    if _name.startswith(("AWS_", "COURSE_", "HF_", "HUGGING_FACE_")):
        del os.environ[_name]
os.environ |= {
    "COURSE_BUILD": str(BUILD),
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": str(BUILD.parent / "no-credentials"),
    "AWS_CONFIG_FILE": str(BUILD.parent / "no-config"),
    # Processes that a test starts: requests to other machines fail at once.
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "NO_PROXY": "127.0.0.1,localhost",
}
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests side by side have a core each.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# A shell that starts the tests in the background lets them ignore interrupts, and the
# programs that they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Bytes by which this process may grow until garbage is looked for.
GROWTH = 300 * 1024**2
_memory_at_last_collection = 0

# Of two files at a time the longest come first, so that none is alone at the end.
LONGEST_FILES = (
    "test_notebooks.py",
    "test_notebooks_alone.py",
    "test_claims.py",
    "test_learning.py",
    "test_record.py",
    "test_train_lora.py",
    "test_job_entry.py",
    "test_web_whole.py",
    "test_web_interrupted.py",
    "test_web_page.py",
    "test_web_load.py",
    "test_web_rollout.py",
    "test_web_versions.py",
    "test_web_stack.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file the order stays."""
    places = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tests have built."""
    shutil.rmtree(BUILD.parent, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process connect to this machine only."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to connect to {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def build() -> Path:
    """Return the build folder that the tests share."""
    return BUILD


MakeNotebook = Callable[..., Path]


@pytest.fixture
def make_notebook(tmp_path: Path) -> MakeNotebook:
    """Return a function that writes a notebook of code cells into `tmp_path`.

    A name such as "experiments/01_first.ipynb" puts it into a folder.
    """

    def make(name: str, *sources: str, metadata: dict | None = None) -> Path:
        notebook = nbformat.v4.new_notebook(metadata=metadata or {})
        for number, source in enumerate(sources):
            cell = nbformat.v4.new_code_cell(source, id=f"cell-{number}")
            notebook.cells.append(cell)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return make


@pytest.fixture(scope="module", autouse=True)
def less_to_collect() -> Iterator[None]:
    """Let nobody look for garbage in what is there already.

    Each training collects it, and looks at all modules and tests to do so: that took
    more than half of the time of some files.
    """
    gc.freeze()
    yield
    gc.unfreeze()
    global _memory_at_last_collection
    if psutil.Process().memory_info().rss > _memory_at_last_collection + GROWTH:
        gc.collect()
        _memory_at_last_collection = psutil.Process().memory_info().rss


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    """Start Chromium; tests that need it are skipped where there is none."""
    from support.page_server import browser, chromium

    if not chromium():
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, an adapter and their artifact; not to be changed."""
    from support.tiny_artifact import build_tiny  # PyTorch, which few files need

    folder = tmp_path_factory.mktemp("artifact")
    build_tiny(folder)
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of the artifact's folder, to break."""
    return Path(shutil.copytree(built / "artifact", tmp_path / "artifact"))


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """Connect to the offline AWS, which must leave no trace when it ends."""
    from utils.course import run_config
    from utils.deployment.aws import connect_aws
    from utils.deployment.billing import BillingGuard
    from utils.offline_aws.control_plane import OfflineAws

    before = dict(os.environ)
    # Other test files may have left helpers of multiprocessing in this process.
    others = set(psutil.Process().children(True))
    yield connect_aws(run_config({}))
    if BillingGuard.active is not None:  # or the next file's guard would look for it
        BillingGuard.active.close()
    OfflineAws.running().close()
    assert dict(os.environ) == before
    left = set(psutil.Process().children(True)) - others
    assert not [process for process in left if process.status() != "zombie"]


@pytest.fixture
def guard(aws: Aws) -> Iterator[BillingGuard]:
    """Watch what a test creates, and delete it."""
    from utils.deployment.billing import BillingGuard
    from utils.offline_aws.control_plane import OfflineAws

    guard = BillingGuard(aws, say=lambda _: None)
    try:
        yield guard
    finally:
        guard.close()  # and not what a `with` says at its end, which nobody hears
    assert guard.remaining() == []
    assert guard.run not in " ".join(OfflineAws.running().endpoints)


@pytest.fixture
def service(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Jobs that run until they are stopped, in place of the offline AWS's."""
    from support.job_service import JobService
    from utils.deployment import asking, running

    monkeypatch.setattr(running, "FIRST_POLL", 0.01)
    ask = asking.Asker._pages

    def only_jobs(self: Any, name: str, method: str, **given: Any) -> Any:
        """Ask about jobs and objects only; test_account asks about all."""
        about = any(word in method for word in ("job", "pipeline", "stream", "object"))
        return ask(self, name, method, **given) if about else iter([])

    monkeypatch.setattr(asking.Asker, "_pages", only_jobs)
    service = JobService(aws.session)
    yield service
    service.close()


@pytest.fixture
def said() -> list[str]:
    """Return what the guard `watch` says."""
    return []


@pytest.fixture
def watch(aws: Aws, service: Any, said: list[str]) -> Iterator[BillingGuard]:
    """Watch the jobs that a test creates, and end them, whatever was refused before."""
    from utils.deployment.billing import BillingGuard

    guard = BillingGuard(aws, said.append)
    yield guard
    service.refused.clear()
    guard.close()
    assert guard.remaining() == []
    assert service.running() == []


@pytest.fixture(scope="module")
def echo(aws: Aws) -> Iterator[Any]:
    """Return an endpoint that the tests of a file share."""
    from support.endpoints import ECHO, deploy, upload
    from utils.deployment.aws import wait_until_in_service
    from utils.deployment.billing import BillingGuard

    guard = BillingGuard(aws, say=lambda _: None)
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address, environment={"MINE": "yes"})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    guard._stop_watching()
    BillingGuard.active = None  # the tests' own guards must not close this one
    yield endpoint
    guard.teardown()
    assert guard.remaining() == []
