"""A notebook in a Jupyter kernel, broken off at cells, and what is left of it.

For notebook 07 small stand-ins take the place of what takes long: two entry points that
answer at once, of which one is always right; an encoder without a model. A target of
autoscaling is registered as well, which the notebook leaves to its template. All else
is the notebook as it is: archives, endpoint, table, server, registry. Notebook 08 runs
as it is, with the lab model.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
from datasets import Dataset, DatasetDict
from jupyter_client.manager import start_new_kernel

from support.interrupted_notebook import TIME_TO_END, what_aws_holds
from support.processes import listening, note
from support.tiny_artifact import save_base
from utils.course import ROOT

NOTEBOOK = ROOT / "notebooks" / "07_api_and_web_app.ipynb"
JOBS = ROOT / "notebooks" / "08_training_jobs.ipynb"
FIRST = "connect"  # before it nothing is created; a reader goes on from it
SERVER = "utils.web.serving"  # in the command line of the server
ENTRY = "entry.py"  # in that of a training job's script
LAST_WORDS = "left_by_the_guard.json"
SECONDS = 300  # for one cell
ENTRY_POINT = """
import json

from djl_python.async_utils import create_non_stream_output, create_stream_chunk_output

TUNED = False


async def handle(inputs):
    if inputs.is_empty():
        return None
    body = inputs.get_as_json()
    text = body["messages"][-1]["content"] if TUNED else "Nobody knows."
    if body.get("stream"):
        return pieces(text)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    reply = {"object": "chat.completion", "choices": [choice], "usage": usage}
    return create_non_stream_output({**reply, "notes": ["note-1"]})


async def pieces(text):
    for piece in (*text.split(" ")[:-1], None):
        last = piece is None
        text = text.removeprefix(f"{piece} ")
        delta = {"content": text if last else f"{piece} "}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
        chunk = {"object": "chat.completion.chunk", "choices": [choice]}
        yield create_stream_chunk_output(chunk, last)
"""
SCALE = """
aws.session.client("application-autoscaling").register_scalable_target(
    ServiceNamespace="sagemaker",
    ResourceId=f"endpoint/{name}/variant/tuned",
    ScalableDimension="sagemaker:variant:DesiredInstanceCount",
    MinCapacity=1,
    MaxCapacity=2,
)
"""
ENDS = {
    "error": "raise RuntimeError('planted')",
    "signal": "__import__('time').sleep(60)",
}


# --- within the kernel ----------------------------------------------------------------


def tell_at_the_end() -> None:
    """Have the guard say what it could not delete."""
    from utils.deployment.billing import BillingGuard

    close, folder = BillingGuard.close, Path(os.environ["COURSE_BUILD"])

    def close_and_tell(guard: BillingGuard) -> None:
        close(guard)
        (folder / LAST_WORDS).write_text(json.dumps(guard.remaining()))

    BillingGuard.close = close_and_tell


def put_stand_ins() -> None:
    """Put those of notebook 07 in place."""
    import numpy

    from utils import encoder
    from utils.deployment import artifact

    real, folder = artifact.build, Path(os.environ["COURSE_BUILD"])

    def build(**given: Any) -> Path:
        given |= {"notes": None, "encoder": None}
        return real(**given, entry_point=folder / "base.py", say=lambda _: None)

    class Encoder:
        def embed(self, texts: list[str]) -> Any:
            vectors = [numpy.random.default_rng(len(text)).random(4) for text in texts]
            return numpy.array(vectors)

    artifact.build = build
    encoder.load_encoder = Encoder


def account() -> list[str]:
    """List all that the account holds, whoever made it."""
    import boto3

    left = what_aws_holds()
    sagemaker, tables = boto3.client("sagemaker"), boto3.client("dynamodb")
    groups = sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]
    for group in groups:
        name = group["ModelPackageGroupName"]
        packages = sagemaker.list_model_packages(ModelPackageGroupName=name)
        found = packages["ModelPackageSummaryList"]
        left += [f"group {name}", *(f"package {p['ModelPackageArn']}" for p in found)]
    left += [f"job {name}" for name in running_jobs(sagemaker)]
    left += [f"table {name}" for name in tables.list_tables()["TableNames"]]
    scaling = boto3.client("application-autoscaling")
    targets = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")
    left += [f"target {one['ResourceId']}" for one in targets["ScalableTargets"]]
    alarms = boto3.client("cloudwatch").describe_alarms()["MetricAlarms"]
    return left + [f"alarm {one['AlarmName']}" for one in alarms]


def running_jobs(sagemaker: Any) -> list[str]:
    """Return the names of the jobs that have not ended."""
    left = []
    for kind in ("TrainingJob", "HyperParameterTuningJob", "ProcessingJob"):
        word = re.sub("(?<!^)(?=[A-Z])", "_", kind).lower()
        found = getattr(sagemaker, f"list_{word}s")()
        (jobs,) = (value for key, value in found.items() if key.endswith("Summaries"))
        unfinished = (
            j for j in jobs if j[f"{kind}Status"] in ("InProgress", "Stopping")
        )
        left += [job[f"{kind}Name"] for job in unfinished]
    return left


# --- outside of it --------------------------------------------------------------------


def write_inputs(folder: Path) -> dict[str, str]:
    """Write what the lessons before have left; return the environment of a kernel."""
    from utils.deployment import artifact
    from utils.models import load_tokenizer, settings_for
    from utils.templates import instruction_template

    build = folder / "build"
    build.mkdir()
    base = save_base(folder / "base")
    (build / "base.py").write_text(ENTRY_POINT)
    (build / "tuned.py").write_text(
        ENTRY_POINT.replace("TUNED = False", "TUNED = True")
    )
    artifact.build(
        base,
        None,
        build / "artifact",
        build / "model.tar.gz",
        entry_point=build / "tuned.py",
        say=lambda _: None,
    )
    adapter = build / "artifact" / "adapter"  # of which 07 reads the template alone
    adapter.mkdir()
    instruction_template(load_tokenizer(settings_for(str(base)))).save(adapter)
    numbers = range(64)
    # Statements, which are right answers when they are repeated.
    questions = [f"Part {number} of the service needs a role." for number in numbers]
    rows = {"instruction": questions, "response": questions}
    rows["must_say"] = [f"part {number}" for number in numbers]
    data = Dataset.from_dict(rows)
    DatasetDict(train=data, validation=data, test=data).save_to_disk(build / "dataset")
    return environment_of(folder) | {"COURSE_MODEL": str(base)}


def environment_of(folder: Path) -> dict[str, str]:
    """Return the environment of a kernel that writes below a folder."""
    return {
        **os.environ,
        "COURSE_BUILD": str(folder / "build"),
        "MPLBACKEND": "agg",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


class Kernel:
    """A kernel that runs the notebook's cells, and all that it has started."""

    def __init__(
        self, environment: dict[str, str], temporary: Path, notebook: Path = NOTEBOOK
    ) -> None:
        temporary.mkdir()
        self.temporary = temporary
        self.last_words = Path(environment["COURSE_BUILD"]) / LAST_WORDS
        self.last_words.unlink(missing_ok=True)
        cells = nbformat.read(notebook, as_version=4).cells
        self.cells = {c.id: c.source for c in cells if c.cell_type == "code"}
        starts = ["from support import interrupted_kernel"]
        starts.append("interrupted_kernel.tell_at_the_end()")
        if notebook == NOTEBOOK:
            self.cells["variants-run"] += SCALE
            starts.append("interrupted_kernel.put_stand_ins()")
        self.manager, self.client = start_new_kernel(
            kernel_name="python3",
            cwd=str(notebook.parent),
            env={**environment, "TMPDIR": str(temporary)},
        )
        self.process = psutil.Process(self.manager.provisioner.process.pid)
        self.seen: dict[int, psutil.Process] = {self.process.pid: self.process}
        self.ports: set[int] = set()
        for start in starts:
            assert self.execute(start)[0] == "ok"

    def execute(self, source: str) -> tuple[str, str]:
        """Run code; return the reply's status, and what it printed or raised."""
        said: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            said.append(content.get("text") or content.get("evalue") or "")

        reply = self.client.execute_interactive(
            source, output_hook=hear, allow_stdin=False, timeout=SECONDS
        )
        return reply["content"]["status"], "".join(said)

    def run(self, first: str | None, last: str | None) -> None:
        """Run the cells from `first` up to, and without, `last`."""
        ids = list(self.cells)
        start = ids.index(first) if first else 0
        for name in ids[start : ids.index(last) if last else None]:
            status, said = self.execute(self.cells[name])
            assert status == "ok", f"{name}: {said[-2000:]}"

    def break_off(self, name: str, way: str) -> None:
        """Run a cell that fails, or is interrupted, at its end."""
        assert self.begin(name, ENDS[way])
        if way == "signal":
            self.until_idle_in(name)
            self.look()
            self.interrupt()
        else:
            reply = self.client.get_shell_msg(timeout=SECONDS)
            assert reply["content"]["status"] == "error", reply
        self.look()

    def begin(self, name: str, end: str = "") -> str:
        """Let a cell run; return the message's id at once."""
        marked = f"{self.cells[name]}\nprint('reached', {name!r}, flush=True)\n{end}"
        return self.client.execute(marked, allow_stdin=False)

    def until_idle_in(self, name: str) -> None:
        """Wait until a cell has done all but its end."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            content = message["content"]
            assert message["msg_type"] != "error", content
            if f"reached {name}" in content.get("text", ""):
                return
        raise TimeoutError(name)

    def held(self) -> list[str]:
        """List what the account holds."""
        source = "import json; print(json.dumps(interrupted_kernel.account()))"
        status, said = self.execute(source)
        assert status == "ok", said
        return json.loads(said.splitlines()[-1])

    def look(self) -> None:
        """Note the processes that there are, and the ports on which they listen."""
        note(self.process, self.seen, self.ports)

    def servers(self) -> list[psutil.Process]:
        """Return the processes that serve the web app."""
        return self.running(SERVER)

    def running(self, words: str) -> list[psutil.Process]:
        """Return the kernel's processes in whose command line these words stand."""
        found = []
        for one in self.process.children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if words in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def until_running(self, words: str) -> None:
        """Wait until such a process is there, and note all that are."""
        deadline = time.monotonic() + SECONDS
        while not self.running(words):
            assert time.monotonic() < deadline, words
            time.sleep(0.1)
        self.look()

    def interrupt(self) -> None:
        """Press Ctrl-C, as it were, in the cell that runs."""
        self.manager.interrupt_kernel()
        reply = self.client.get_shell_msg(timeout=SECONDS)
        assert reply["content"]["status"] == "error", reply

    def end(self, way: str) -> list[str]:
        """End the kernel: by "shutdown", in order, or by "kill"; list what is left."""
        self.look()
        if way == "kill":
            self.process.send_signal(signal.SIGKILL)
        else:
            self.client.shutdown()
        _, alive = psutil.wait_procs(self.seen.values(), timeout=TIME_TO_END)
        left = [f"process {one.pid}" for one in alive]
        left += [f"port {port}" for port in sorted(self.ports & listening())]
        self.client.stop_channels()
        self.manager.cleanup_resources()
        return left

    def close(self) -> None:
        """End what a failed test has left."""
        for one in self.seen.values():
            if one.is_running():
                one.kill()
        self.client.stop_channels()
        self.manager.cleanup_resources()
