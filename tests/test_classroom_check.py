"""The check before a class: what is planted is found, with what to do about it.

The account is played by botocore's stubs: IAM's simulation, quotas, prices.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import nbformat
import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.stub import Stubber

from utils.classroom import account_check
from utils.classroom import check as command
from utils.classroom.account_check import (
    NEEDED,
    OF_THE_CALLER,
    OF_THE_ROLE,
    Question,
    account_lines,
    denied,
    filled_in,
    placeholders,
    price_line,
    principal_of,
    questions,
    quota_lines,
    rights_line,
)
from utils.classroom.guide import read_needs
from utils.classroom.machine_check import (
    DISK_TO_INSTALL,
    MEMORY,
    Line,
    cores_line,
    disk_line,
    folder_line,
    hub_line,
    interpreter_line,
    kernel_command,
    kernel_line,
    memory,
    memory_line,
    models_line,
    packages_line,
    pinned,
    pip_line,
    pip_settings,
    port_line,
    proxy_line,
    python_line,
)
from utils.course import ROOT, CourseError
from utils.deployment.aws import POLICY
from utils.run import NOTEBOOKS, find_notebooks

ROLE = "arn:aws:iam::123456789012:role/Learner"

# --- this machine ---------------------------------------------------------------------

# What is planted → what the line names, and the remedy that it gives.
PLANTED: dict[str, tuple[Callable[[], Line], str, str]] = {
    "an old Python": (
        lambda: python_line((3, 9, 18)),
        "3.9.18",
        "make install PYTHON=",
    ),
    "a new Python": (lambda: python_line((3, 13, 0)), "3.13.0", "3.11 or 3.12"),
    "another interpreter": (
        lambda: interpreter_line("/opt/conda", ROOT / "utils"),
        "is not the course's",
        ".venv/bin/python",
    ),
    "a package is missing": (
        lambda: packages_line({"no-such-package": "1.0"}),
        "1 of 1 are missing (no-such-package)",
        "make install",
    ),
    "another version": (
        lambda: packages_line({"pytest": "1.0"}),
        "instead of 1.0",
        "make install",
    ),
    "no kernel": (lambda: kernel_line(lambda _: None), "there is none", "make kernel"),
    "a kernel of another environment": (
        lambda: kernel_line({"python3": ["/opt/conda/bin/python"]}.get),
        "python3 starts /opt/conda/bin/python",
        "jupyter kernelspec remove python3",
    ),
    "one core": (lambda: cores_line(1), "1", "twice the time"),
    "little memory": (lambda: memory_line(4e9), "4.0 GB", "COURSE_MODEL=lab"),
    "a full disk": (lambda: disk_line(2e9, installed=True), "2.0 GB free", "3 GB"),
    "no room to install": (lambda: disk_line(5e9, installed=False), "5.0 GB", "7 GB"),
    "no room for dolly": (
        lambda: disk_line(2e10, installed=True, model="dolly"),
        "20.0 GB",
        "28 GB",
    ),
    "models that were not fetched": (
        lambda: models_line(lambda name: name != "minilm"),
        "minilm not fetched",
        "utils.models fetch all",
    ),
    "PIP_USER": (lambda: pip_line({"PIP_USER": "1"}, ""), "PIP_USER is set", "unset"),
    "user = true in a pip.conf": (
        lambda: pip_line({}, "global.user='true'\n"),
        "pip.conf says global.user=true",
        "pip config unset",
    ),
    "a target in a pip.conf": (
        lambda: pip_line({}, "install.target='/elsewhere'\n"),
        "install.target=/elsewhere",
        "pip config unset",
    ),
    "a hub that is blocked": (
        lambda: hub_line({"COURSE_MODEL": "small", "HF_HUB_OFFLINE": "1"}),
        "HF_HUB_OFFLINE is set",
        "unset HF_HUB_OFFLINE",
    ),
    "a proxy for everything": (
        lambda: proxy_line({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "intra"}),
        "http_proxy is set for this machine's own servers",
        "NO_PROXY=127.0.0.1,localhost",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_failure_is_found_with_its_remedy(planted: str) -> None:
    look, found, remedy = PLANTED[planted]
    line = look()
    assert not line.ok
    assert found in line.found and remedy in line.remedy
    assert str(line).startswith(f"[FAIL] {line.name}: ")


# What is right → looks like a failure of its kind, and is none.
SOUND: dict[str, Callable[[], Line]] = {
    "Python": lambda: python_line((3, 12, 13)),
    "an interpreter without a .venv": lambda: interpreter_line("/usr", ROOT / "none"),
    "packages": lambda: packages_line(),
    "a kernel": lambda: kernel_line({"python3": [sys.executable, "-m"]}.get),
    "a kernel named only": lambda: kernel_line({"python3": ["python"]}.get),
    "cores": lambda: cores_line(2),
    "a machine sold with 6 GB": lambda: memory_line(5.8e9),
    "disk": lambda: disk_line(4e9, installed=True),
    "models": lambda: models_line(lambda _: True),
    "pip": lambda: pip_line({"PIP_USER": "0"}, "global.user='false'\n:env:.user='0'\n"),
    "the index in a pip.conf": lambda: pip_line({}, "global.index-url='https://x/y'\n"),
    "offline with a model of ours": lambda: hub_line({"HF_HUB_OFFLINE": "1"}),
    "offline with a folder": lambda: hub_line(
        {"COURSE_MODEL": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ),
    "online": lambda: hub_line({"COURSE_MODEL": "dolly", "HF_HUB_OFFLINE": "0"}),
    "a proxy around this machine": lambda: proxy_line(
        {"http_proxy": "http://me:pw@proxy:3128", "no_proxy": "localhost, 127.0.0.1"}
    ),
}


@pytest.mark.parametrize("sound", SOUND)
def test_what_is_right_is_not_called_wrong(sound: str) -> None:
    line = SOUND[sound]()
    assert line.ok, line
    assert str(line).startswith("[OK]   ")


def test_a_port_in_use_is_passed_over_until_there_is_none() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        port = busy.getsockname()[1]
        line = port_line(port, tries=1)
        assert not line.ok
        assert f"none of {port} to {port} is free" in line.found
        assert "LAB_ARGS=--port" in line.remedy
        assert port_line(port, tries=20).ok


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch) -> None:
    assert folder_line(tmp_path / "not" / "yet").ok
    # Whoever runs this may be root, to whom every folder is open.
    monkeypatch.setattr(os, "access", lambda *_: False)
    line = folder_line(tmp_path / "not" / "yet")
    assert str(tmp_path) in line.found and "COURSE_BUILD" in line.remedy


def test_memory_is_what_the_container_may_use(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    everything = memory(limits=[])
    limit.write_text("max\n")
    assert memory([str(limit), str(tmp_path / "none")]) == everything
    limit.write_text("2000000000\n")
    assert memory([str(limit)]) == 2e9


def test_pips_own_settings_are_read(tmp_path, monkeypatch) -> None:
    """With a pip.conf as people have it."""
    config = tmp_path / "pip.conf"
    config.write_text("[install]\nuser = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    line = pip_line({}, pip_settings())
    assert "install.user=true" in line.found


def test_the_pins_are_those_of_this_system() -> None:
    pins = pinned()
    assert {"torch", "moto", "jupyterlab"} <= pins.keys()
    assert ("awslambdaric" in pins) == (sys.platform == "linux")


def test_what_is_asked_of_a_machine_is_what_the_course_says_it_needs() -> None:
    lessons = [needs.memory for needs in read_needs() if len(needs.name) == 2]
    assert max(lessons) * 1e9 == MEMORY
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"{DISK_TO_INSTALL / 1e9:.1f} GB of disk" in readme


def test_jupyters_own_kernels_are_found() -> None:
    assert kernel_command("python3")
    assert kernel_command("no-such-kernel") is None


# --- the command ----------------------------------------------------------------------


def check(*arguments: str, python: tuple[str, ...] = (), **environ: str) -> Any:
    return subprocess.run(
        [sys.executable, *python, "-m", "utils.course", "check", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_the_command_prints_each_line_and_ends_with_its_code() -> None:
    """With a setting that no notebook can use: one failure at least, whatever else."""
    done = check("--json", COURSE_AWS="moon", PIP_USER="1")
    assert done.returncode == 1, done.stderr
    lines = {line["name"]: line for line in json.loads(done.stdout)}
    assert not lines["settings"]["ok"] and "COURSE_AWS" in lines["settings"]["remedy"]
    assert not lines["pip"]["ok"] and lines["Python"]["ok"] and lines["packages"]["ok"]
    wanted = {"interpreter", "kernel", "cores", "memory", "disk", "port", "models"}
    assert wanted | {"hub", "proxy"} <= lines.keys()


def test_without_any_package_it_says_what_to_install() -> None:
    """As on a machine where nothing is installed yet: no site-packages at all."""
    done = check("--aws", python=("-S",))
    assert done.returncode == 1
    assert "[OK]   Python: " in done.stdout, done.stderr
    assert re.search(r"\[FAIL\] packages: \d+ of \d+ are missing", done.stdout)
    assert "[FAIL] kernel: there is none" in done.stdout
    assert re.search(r"\[FAIL\] AWS: \w+ is not installed", done.stdout)
    assert done.stdout.rstrip().endswith("to be done.")


def test_ready_is_said_and_the_code_is_0(monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "machine_lines", lambda: [Line("all", "well")])
    assert command.main(["check"]) == 0
    assert capsys.readouterr().out == "[OK]   all: well\n\nReady.\n"


# --- the account ----------------------------------------------------------------------


class Session:
    """Hands out one stubbed client for each service."""

    region_name = "us-east-1"

    def __init__(self) -> None:
        self._real = boto3.Session("key", "secret", region_name="us-east-1")
        self._clients: dict[str, Any] = {}
        self.stubs: dict[str, Stubber] = {}

    def client(self, service: str, **_: Any) -> Any:
        if service not in self._clients:
            self._clients[service] = self._real.client(service)
            self.stubs[service] = Stubber(self._clients[service])
            self.stubs[service].activate()
        return self._clients[service]

    def stub(self, service: str) -> Stubber:
        self.client(service)
        return self.stubs[service]

    def get_partition_for_region(self, region: str) -> str:
        return self._real.get_partition_for_region(region)


@pytest.fixture
def session() -> Session:
    return Session()


def result(action: str, decision: str, *of_each: str) -> dict[str, Any]:
    """One result of IAM's simulation."""
    return {
        "EvalActionName": action,
        "EvalDecision": decision,
        "ResourceSpecificResults": [
            {"EvalResourceName": "arn", "EvalResourceDecision": one} for one in of_each
        ],
    }


def simulation(stub: Stubber, question: Question, *results: dict[str, Any]) -> None:
    context = [
        {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
        for key, value in question.context
    ]
    stub.add_response(
        "simulate_principal_policy",
        {"EvaluationResults": list(results), "IsTruncated": False},
        {
            "PolicySourceArn": ROLE,
            "ActionNames": list(question.actions),
            "ResourceArns": list(question.resources),
            "ContextEntries": context,
        },
    )


VALUES = placeholders("123456789012", "us-east-1", "bucket", ROLE)


def test_a_policy_becomes_questions_that_can_be_asked() -> None:
    asked = questions(POLICY, VALUES)
    create = next(q for q in asked if "sagemaker:CreateEndpoint" in q.actions)
    assert "arn:aws:sagemaker:us-east-1:123456789012:endpoint/course-check" in (
        create.resources
    )
    assert create.context == (("aws:RequestTag/course-run", "check"),)
    passes = next(q for q in asked if q.actions == ("iam:PassRole",))
    assert passes.context == (("iam:PassedToService", "sagemaker.amazonaws.com"),)
    for policy in {*OF_THE_CALLER.values(), *OF_THE_ROLE.values()}:
        for question in questions(policy, VALUES):
            wild = [one for one in question.resources if "*" in one and one != "*"]
            assert not wild and "$" not in str(question)


def test_all_policies_that_the_readme_asks_for_are_asked_about() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    rights = re.search(r"^- \*\*Rights:.*?(?=^- \*\*)", readme, re.M | re.S)[0]
    role = {"execution_role_policy.json"}  # named below it, with the role
    asked = {*OF_THE_CALLER.values(), *OF_THE_ROLE.values()}
    assert {one.name for one in asked} - role == set(re.findall(r"\w+\.json", rights))


def test_refused_actions_are_named_and_nothing_is_called(session) -> None:
    question = Question(("a:Allowed", "a:Refused", "a:Known"), ("arn:1", "arn:2"))
    simulation(
        session.stub("iam"),
        question,
        result("a:Allowed", "allowed"),
        result("a:Refused", "implicitDeny", "implicitDeny", "implicitDeny"),
        # An action knows one of the two kinds, and the other cannot be allowed.
        result("a:Known", "implicitDeny", "allowed", "implicitDeny"),
    )
    line = rights_line(session, "your rights", ROLE, [question])
    assert not line.ok and "1 of 3 actions are refused" in line.found
    assert "a:Refused" in line.found and "a:Known" not in line.found
    session.stubs["iam"].assert_no_pending_responses()


def test_an_explicit_denial_counts_whatever_else_is_allowed(session) -> None:
    question = Question(("a:Do",), ("arn:1", "arn:2"))
    denial = result("a:Do", "explicitDeny", "allowed", "explicitDeny")
    simulation(session.stub("iam"), question, denial)
    assert denied(session.client("iam"), ROLE, question) == ["a:Do"]


def test_a_long_answer_is_read_to_its_end(session) -> None:
    question = Question(("a:One", "a:Two"), ("*",))
    stub = session.stub("iam")
    for action, marker in (("a:One", "more"), ("a:Two", "")):
        page = {"EvaluationResults": [result(action, "implicitDeny")]}
        page |= {"IsTruncated": bool(marker), **({"Marker": marker} if marker else {})}
        stub.add_response("simulate_principal_policy", page)
    assert denied(session.client("iam"), ROLE, question) == ["a:One", "a:Two"]


def test_the_role_behind_a_session_is_simulated(session) -> None:
    role = {"RoleName": "Learner", "Arn": ROLE, "Path": "/", "RoleId": "A" * 20}
    response = {"Role": {**role, "CreateDate": "2026-01-01T00:00:00Z"}}
    session.stub("iam").add_response("get_role", response, {"RoleName": "Learner"})
    arn = "arn:aws:sts::123456789012:assumed-role/Learner/ana"
    assert principal_of(session, arn) == ROLE
    user = "arn:aws:iam::123456789012:user/ana"
    assert principal_of(session, user) == user
    with pytest.raises(CourseError, match="root user"):
        principal_of(session, "arn:aws:iam::123456789012:root")


def quota_pages(session: Session, **values: float) -> None:
    stub = session.stub("service-quotas")
    # A default, and what was raised for this account.
    defaults = [{"QuotaName": "ml.g5.xlarge for endpoint usage", "Value": 0.0}]
    stub.add_response("list_aws_default_service_quotas", {"Quotas": defaults})
    raised = [{"QuotaName": name, "Value": value} for name, value in values.items()]
    stub.add_response("list_service_quotas", {"Quotas": raised})


def test_quotas_are_compared_with_the_learners(session) -> None:
    quota_pages(
        session,
        **{
            "ml.g5.xlarge for endpoint usage": 60.0,
            "ml.g5.xlarge for training job usage": 40.0,
        },
    )
    lines = list(quota_lines(session, learners=40))
    good = {"06": [True], "07": [False], "09": [True]}
    good["experiments/06_production"] = [False]
    good["08"] = [True, False, False, False]  # endpoint, jobs, Spot, two GPUs
    found: dict[str, list[bool]] = {}
    for line in lines:
        found.setdefault(line.name.removeprefix("quota for "), []).append(line.ok)
    assert found == good
    assert "60 of ml.g5.xlarge for endpoint usage, 80 needed" in lines[1].found
    assert "Ask for 80 under Service Quotas" in lines[1].remedy
    assert "0 of ml.g5.xlarge for spot training job usage" in lines[4].found


def test_quotas_that_cannot_be_read_name_the_policy(session) -> None:
    stub = session.stub("service-quotas")
    stub.add_client_error("list_aws_default_service_quotas", "AccessDeniedException")
    (line,) = quota_lines(session)
    assert "check_policy.json" in line.remedy


def test_a_region_without_prices_is_named() -> None:
    here = SimpleNamespace(region="us-east-1", session=None, real=False)
    assert price_line(here).ok and "read 20" in price_line(here).found
    there = SimpleNamespace(region="eu-west-1", session=None, real=False)
    assert "not known in eu-west-1" in price_line(there).found


def test_all_lines_of_an_account(session, monkeypatch) -> None:
    """A simulation that is not allowed ends the rights, and not the check."""
    identity = {"Arn": ROLE, "Account": "123456789012", "UserId": "ana"}
    session.stub("sts").add_response("get_caller_identity", identity)
    session.stub("iam").add_client_error("simulate_principal_policy", "AccessDenied")
    quota_pages(session)
    aws = SimpleNamespace(
        session=session, region="us-east-1", role=ROLE, bucket="bucket", real=False
    )
    lines = list(account_lines(aws))
    names = [line.name for line in lines]
    assert names[:3] == ["AWS", "role and bucket", "rights"]
    assert "SimulatePrincipalPolicy answers AccessDenied" in lines[2].found
    assert "check_policy.json" in lines[2].remedy
    assert names[3:] == [f"quota for {n}" for *_, n in NEEDED] + ["prices"]

    def no_way(*_: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://iam.amazonaws.com")

    with monkeypatch.context() as patch:
        patch.setattr(account_check, "rights_line", no_way)
        quota_pages(session)
        session.stub("sts").add_response("get_caller_identity", identity)
        lines = list(account_lines(aws))
    assert "Could not connect" in lines[2].found and "network" in lines[2].remedy
    assert [line.name for line in lines[3:]] == names[3:]

    def unreachable() -> None:
        raise CourseError("No AWS region is set. Set AWS_DEFAULT_REGION.")

    monkeypatch.setattr(account_check, "connect_real", unreachable)
    (line,) = account_lines()
    assert not line.ok and "AWS_DEFAULT_REGION" in line.remedy


def test_what_is_asked_for_is_what_the_lessons_start() -> None:
    for kind, _, _, name in NEEDED:
        (path,) = find_notebooks(NOTEBOOKS, [name])
        cells = nbformat.read(path, as_version=4).cells
        assert any(kind in cell.source for cell in cells if cell.cell_type == "code")


def test_a_policy_is_printed_filled_in() -> None:
    values = placeholders("123456789012", "cn-north-1")
    text = filled_in("studio_learner_policy.json", values)
    assert "arn:aws-cn:sagemaker:cn-north-1:123456789012:domain/" in text
    assert "/${sagemaker:DomainId}/" in text and "$$" not in text
    with pytest.raises(CourseError, match="needs a Role"):
        filled_in("iam_policy.json", values)
    with pytest.raises(CourseError, match="give one of"):
        filled_in("none.json", values)
    with pytest.raises(CourseError, match="twelve digits"):
        placeholders("42", "us-east-1")
    with pytest.raises(CourseError, match="The region is 'moon'"):
        placeholders("123456789012", "moon")
