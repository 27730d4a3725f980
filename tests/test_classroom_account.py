"""For a class in an AWS account: spaces that stop by themselves, an alarm, rights.

The script runs as a lifecycle configuration does, against a JupyterLab and an `aws` of
the test's. Policies are also examined in test_web_template, with those of the lessons.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from utils.classroom.account_check import filled_in, placeholders
from utils.course import ROOT

DATA = ROOT / "data" / "aws"
SCRIPT = DATA / "studio_auto_stop.sh"
BUDGET = DATA / "budget_alarm.yaml"
LONGEST_SCRIPT = 16_384  # characters, by AWS's page on lifecycle configurations
METADATA = {
    "AppType": "JupyterLab",
    "DomainId": "d-1",
    "SpaceName": "anas-space",
    "ResourceName": "default",
    "ResourceArn": "arn:aws:sagemaker:eu-west-1:123456789012:app/d-1/x/JupyterLab/y",
}
DELETES = (
    "sagemaker delete-app --domain-id d-1 --app-type JupyterLab --app-name default "
    "--region eu-west-1 --space-name anas-space"
)


def minutes_ago(minutes: float) -> str:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)
    return then.isoformat().replace("+00:00", "Z")


class Lab:
    """A JupyterLab that says when something has happened, and an `aws` that notes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0
        self.replies: dict[str, Any] = {}
        self.calls, self.log = folder / "calls", folder / "log"
        program = folder / "bin" / "aws"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$@" >> "{self.calls}"\n')
        program.chmod(0o755)
        # The place's own python3 may put other programs before these.
        python = folder / "bin" / "python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        (folder / "metadata.json").write_text(json.dumps(METADATA))
        lab = self

        class Reply(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lab.asked += 1
                found = lab.replies.get(self.path.rpartition("/api/")[2])
                body = json.dumps(found).encode()
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Reply)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, look: str = "0.05") -> subprocess.Popen:
        """Start the script; it goes on in the background, in its own group."""
        environ = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "SERVER": f"http://127.0.0.1:{self.server.server_port}/jupyterlab/default",
            "METADATA": str(self.folder / "metadata.json"),
            "LOG": str(self.log),
            "LOOK_SECONDS": look,
            # What a place may have set must not be asked about its own machine.
            "http_proxy": "http://127.0.0.1:9",
            "TMPDIR": str(self.folder),
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT)],
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait(self, seen: Any, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not seen():
            said = self.log.read_text() if self.log.exists() else "nothing"
            assert time.monotonic() < end, said
            time.sleep(0.02)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.server.shutdown()
    lab.server.server_close()


def end(script: subprocess.Popen) -> None:
    """End the script and what it left in the background: its own group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(script.pid, signal.SIGKILL)
    script.wait(10)
    script.stdout.close()


def test_the_shell_reads_it_and_a_lifecycle_configuration_takes_it() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(SCRIPT.read_text("utf-8")) < LONGEST_SCRIPT


def test_an_idle_space_is_stopped_once_and_its_start_does_not_wait(lab: Lab) -> None:
    """JupyterLab without terminals has no such part of the API: that is no activity."""
    lab.replies = {
        "status": {"started": minutes_ago(90), "last_activity": minutes_ago(70)},
        "kernels": [{"execution_state": "idle", "last_activity": minutes_ago(65)}],
    }
    script = lab.run()
    try:
        assert script.wait(10) == 0, "the start of the space waits for the script"
        lab.wait(lab.calls.exists)
        lab.wait(lambda: lab.calls.read_text().endswith("\n"))
        assert lab.calls.read_text() == DELETES + "\n"
        assert "for 65 minutes: stopping" in lab.log.read_text()
        asked = lab.asked
        time.sleep(0.3)
        assert lab.asked == asked, "it goes on after the space was stopped"
    finally:
        end(script)


@pytest.mark.parametrize("busy", ["kernel", "terminal", "browser", "computing"])
def test_a_space_in_use_is_left_alone(lab: Lab, busy: str) -> None:
    now, before = minutes_ago(5), minutes_ago(200)
    computing = "busy" if busy == "computing" else "idle"
    kernel = {"execution_state": computing, "last_activity": before}
    lab.replies = {
        "status": {
            "started": before,
            "last_activity": now if busy == "browser" else before,
        },
        "kernels": [{**kernel, **({"last_activity": now} if busy == "kernel" else {})}],
        "terminals": [{"last_activity": now if busy == "terminal" else before}],
    }
    script = lab.run()
    try:
        lab.wait(lambda: lab.asked >= 8)  # two looks at least
        assert not lab.calls.exists()
    finally:
        end(script)


def test_a_server_that_does_not_answer_is_asked_again(lab: Lab) -> None:
    script = lab.run()
    try:
        lab.wait(lambda: lab.log.exists() and "no answer" in lab.log.read_text())
        old = {"started": minutes_ago(90)}
        lab.replies = {"status": old, "kernels": []}
        lab.wait(lab.calls.exists)
    finally:
        end(script)


def test_a_refusal_is_logged_and_tried_again(lab: Lab) -> None:
    refuses = "#!/bin/sh\necho AccessDeniedException >&2\nexit 254\n"
    (lab.folder / "bin" / "aws").write_text(refuses)
    lab.replies = {"status": {"started": minutes_ago(90)}, "kernels": []}
    script = lab.run()
    try:
        said = "it could not be stopped: AccessDeniedException"
        lab.wait(lambda: lab.log.exists() and lab.log.read_text().count(said) >= 2)
    finally:
        end(script)


# --- the budget -----------------------------------------------------------------------


def lint(text: str) -> list[str]:
    from cfnlint.api import ManualArgs, lint

    config = ManualArgs(regions=["us-east-1", "eu-central-1"])
    return [str(match) for match in lint(text, config=config)]


class Tags(yaml.SafeLoader):
    """Reads CloudFormation's short forms as the text behind them."""


Tags.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def test_cfn_lint_accepts_the_budget_and_finds_what_is_planted() -> None:
    assert lint(BUDGET.read_text("utf-8")) == []
    text = BUDGET.read_text("utf-8").replace("            Threshold: 50\n", "")
    found = " ".join(lint(text.replace("BudgetType: COST", "BudgetTyp: COST")))
    assert "'Threshold' is a required property" in found
    assert "'BudgetTyp' was unexpected" in found


def test_the_budget_tells_the_instructor_before_it_is_spent() -> None:
    template = yaml.load(BUDGET.read_text("utf-8"), Tags)
    properties = template["Resources"]["Budget"]["Properties"]
    assert properties["Budget"]["BudgetLimit"] == {"Amount": "Limit", "Unit": "USD"}
    alarms = properties["NotificationsWithSubscribers"]
    shares = [
        (one["Notification"]["NotificationType"], one["Notification"]["Threshold"])
        for one in alarms
    ]
    assert shares == [("ACTUAL", 50), ("ACTUAL", 90), ("FORECASTED", 100)]
    for one in alarms:
        assert one["Subscribers"] == [{"SubscriptionType": "EMAIL", "Address": "Email"}]


# --- what learners may do -------------------------------------------------------------


def test_learners_reach_only_their_own_and_only_the_courses_machines() -> None:
    values = placeholders("123456789012", "us-east-1")
    policy = json.loads(filled_in("studio_learner_policy.json", values))
    by_action = {
        action: statement
        for statement in policy["Statement"]
        for action in statement["Action"]
    }
    starred = {a for a, statement in by_action.items() if statement["Resource"] == "*"}
    assert {action.split(":")[1][:4] for action in starred} == {"List"}
    owner = (
        "arn:aws:sagemaker:us-east-1:123456789012:user-profile/${sagemaker:DomainId}/"
        "${sagemaker:UserProfileName}"
    )
    assert by_action["sagemaker:CreatePresignedDomainUrl"]["Resource"] == owner
    for action in (
        "CreateSpace",
        "UpdateSpace",
        "DeleteSpace",
        "CreateApp",
        "DeleteApp",
    ):
        condition = by_action[f"sagemaker:{action}"]["Condition"]
        assert condition["ArnLike"] == {"sagemaker:OwnerUserProfileArn": owner}
        assert condition["StringEquals"] == {"sagemaker:SpaceSharingType": "Private"}
    machines = by_action["sagemaker:CreateApp"]["Condition"]
    allowed = machines["ForAllValues:StringEquals"]["sagemaker:InstanceTypes"]
    readme = (ROOT / "README.md").read_text("utf-8")
    named = (ROOT / "notebooks" / "guide.md").read_text("utf-8") + readme
    assert all(kind in named for kind in allowed if kind != "system")
