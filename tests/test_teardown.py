"""Notebook 06 leaves nothing that bills, at whatever cell it breaks off."""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import nbformat
import psutil
import pytest
from datasets import Dataset, DatasetDict

from support import interrupted_notebook
from support.tiny_artifact import QUESTIONS, save_adapter, save_base
from utils.course import ROOT
from utils.deployment.aws import POLICY

# What the policy allows beyond the calls of an offline run, and why.
NOT_CALLED_HERE = {
    "iam:GetRole": "only in SageMaker Studio, where the role is looked up",
    "iam:PassRole": "no call: CreateModel hands the role on",
    "sagemaker:AddTags": "no call: needed to create something with a tag",
    "pricing:GetProducts": "only on the real AWS",
    "logs:FilterLogEvents": "only when an endpoint fails",
    "sagemaker:UpdateEndpoint": "section 11 tells of it",
    "sagemaker:DescribeTrainingJob": "only when a training job runs in the account",
    "sagemaker:DescribeHyperParameterTuningJob": "only when one has a name of ours",
    "sagemaker:DescribePipeline": "only when one has a name of ours",
    "sagemaker:ListPipelineExecutions": "only when there is a pipeline",
    "sagemaker:DescribeProcessingJob": "only when a processing job does",
    "sagemaker:DescribeTransformJob": "only when a transform job does",
    "scheduler:UpdateSchedule": "only when a scheduled stop is moved",
    "s3:GetObjectVersion": "only in a bucket that keeps versions",
    "s3:DeleteObjectVersion": "only in a bucket that keeps versions",
}
# Calls whose action has another name; None for those that need no right here.
ACTIONS = {
    ("sts", "GetCallerIdentity"): None,
    # SageMaker itself writes the log, under the endpoint's own role.
    ("logs", "CreateLogGroup"): None,
    ("logs", "CreateLogStream"): None,
    ("logs", "PutLogEvents"): None,
    ("s3", "HeadObject"): "s3:GetObject",
    ("s3", "HeadBucket"): "s3:ListBucket",
    ("s3", "ListObjectsV2"): "s3:ListBucket",
    ("s3", "ListObjectVersions"): "s3:ListBucketVersions",
    ("s3", "ListMultipartUploads"): "s3:ListBucketMultipartUploads",
    ("s3", "CreateMultipartUpload"): "s3:PutObject",
    ("s3", "UploadPart"): "s3:PutObject",
    ("s3", "CompleteMultipartUpload"): "s3:PutObject",
    ("sagemaker-runtime", "InvokeEndpoint"): "sagemaker:InvokeEndpoint",
    ("sagemaker-runtime", "InvokeEndpointWithResponseStream"): (
        "sagemaker:InvokeEndpointWithResponseStream"
    ),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A small model with its adapter and data, so that it need not be trained."""
    folder = tmp_path_factory.mktemp("teardown")
    build = folder / "build"
    base = save_base(folder / "base")
    save_adapter(build / "adapter", base)
    rows = Dataset.from_dict({"instruction": QUESTIONS, "response": QUESTIONS})
    DatasetDict(train=rows, validation=rows, test=rows).save_to_disk(build / "dataset")
    return {
        **os.environ,
        "COURSE_BUILD": str(build),
        "COURSE_MODEL": str(base),
        "MPLBACKEND": "agg",
        "IPYTHONDIR": str(folder / "ipython"),
    }


def break_off(environment, ways, *cells, timeout) -> dict[str, Any]:
    """Break the notebook off in these ways at these cells; return what is left."""
    done = subprocess.run(
        [sys.executable, interrupted_notebook.__file__, ways, *cells],
        env=environment,
        cwd=ROOT / "notebooks",
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.stderr or done.stdout)[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sample(environment):
    """Broken off in two ways at the cells that create, and once to the end."""
    cells = ("serve-here-run", "upload-run", "create-model", "create-endpoint")
    return break_off(environment, "error,signal", *cells, timeout=1200)


def test_a_broken_off_notebook_leaves_nothing(sample) -> None:
    assert len(sample["left"]) == 9
    assert {case: left for case, left in sample["left"].items() if left} == {}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["error", "interrupt", "signal"])
def test_broken_off_at_any_cell_it_leaves_nothing(environment, way) -> None:
    left = break_off(environment, way, timeout=2400)["left"]
    cells = nbformat.read(interrupted_notebook.NOTEBOOK, as_version=4).cells
    ids = [cell.id for cell in cells if cell.cell_type == "code"]
    assert list(left) == [*(f"{name}, {way}" for name in ids), "the end"]
    assert {case: found for case, found in left.items() if found} == {}


def allowed() -> dict[str, list[str]]:
    """Return the resources of each action that the policy allows."""
    found: dict[str, list[str]] = {}
    for statement in json.loads(POLICY.read_text("utf-8"))["Statement"]:
        actions, resources = statement["Action"], statement["Resource"]
        for action in [actions] if isinstance(actions, str) else actions:
            found.setdefault(action, []).extend(
                [resources] if isinstance(resources, str) else resources
            )
    return found


def action_of(call: dict[str, Any]) -> str | None:
    """Return the action that a call needs the right to, if any."""
    key = (call["service"], call["operation"])
    return ACTIONS.get(key, ":".join(key))


def test_policy_allows_the_calls_of_the_notebook_and_no_others(sample) -> None:
    called = {action_of(call) for call in sample["calls"]} - {None}
    assert called - set(allowed()) == set()
    assert set(allowed()) - called == set(NOT_CALLED_HERE)


def test_policy_allows_the_names_that_the_notebook_uses(sample) -> None:
    """The resources, not only the actions: each name fits a pattern of the policy."""
    kinds = {"ModelName": "model", "EndpointConfigName": "endpoint-config"}
    kinds["EndpointName"] = "endpoint"
    checked = 0
    for call in sample["calls"]:
        action, params = action_of(call), call["params"]
        if action is None or allowed()[action] == ["*"]:
            continue
        if "Key" in params:
            names = [f"arn:${{Partition}}:s3:::${{Bucket}}/{params['Key']}"]
        elif call["service"] == "s3":
            names = ["arn:${Partition}:s3:::${Bucket}"]
        elif "logGroupName" in params:
            group = params["logGroupName"]
            arn = "arn:${Partition}:logs:${Region}:${Account}"
            names = [f"{arn}:log-group:{group}"]
        elif call["service"] == "scheduler":
            arn = "arn:${Partition}:scheduler:${Region}:${Account}"
            names = [f"{arn}:schedule/default/{params['Name']}"]
        else:
            arn = "arn:${Partition}:sagemaker:${Region}:${Account}"
            names = [
                f"{arn}:{kind}/{params[key]}"
                for key, kind in kinds.items()
                if key in params
            ]
            if "ResourceArn" in params:
                names = [f"{arn}:{params['ResourceArn'].split(':', 5)[5]}"]
        assert names, call
        for name in names:
            checked += 1
            fits = [fnmatch.fnmatchcase(name, one) for one in allowed()[action]]
            assert any(fits), f"{action} on {name}"
    assert checked > 20


def test_all_that_the_notebook_creates_carries_the_tag(sample) -> None:
    creates = {"CreateModel", "CreateEndpointConfig", "CreateEndpoint"}
    called = [call["operation"] for call in sample["calls"]]
    created = [operation for operation in called if operation in creates]
    assert set(created) == creates
    assert sorted(sample["tagged"]) == sorted(created)


@pytest.mark.slow
def test_interrupted_run_leaves_no_process(environment) -> None:
    """`make run` with Ctrl-C while the endpoint is there."""
    run = subprocess.Popen(
        [sys.executable, "-m", "utils.run", "06"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and run.poll() is None:
        for process in psutil.Process(run.pid).children(recursive=True):
            seen[process.pid] = process
        serving = [one for one in seen.values() if serves_from_s3(one)]
        if serving:
            break
        time.sleep(0.1)
    assert run.poll() is None, run.stderr.read()
    time.sleep(3)
    for process in psutil.Process(run.pid).children(recursive=True):
        seen[process.pid] = process
    run.send_signal(signal.SIGINT)
    assert run.wait(120) == 130
    _, alive = psutil.wait_procs(seen.values(), timeout=60)
    assert alive == []


def serves_from_s3(process: psutil.Process) -> bool:
    """Say whether a process is the container of an endpoint."""
    try:
        return any(part.startswith("s3://") for part in process.cmdline())
    except psutil.Error:
        return False
