"""Lesson 07: each of its calls has a right, and each right a use; about 15 seconds.

Its notebook needs a trained model and minutes. So its own calls of boto3 are read from
its cells, and those of the functions that it uses are recorded with small stand-ins.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.client
import nbformat
import numpy as np
import pytest
from botocore import xform_name
from botocore.session import Session
from test_production_rights import MORE_ACTIONS, reached, rights
from test_teardown import ACTIONS

from support.endpoints import AMI, IMAGE
from support.interrupted_notebook import record_calls
from support.web import create_table
from utils.course import ROOT
from utils.deployment.artifact import pack
from utils.deployment.aws import POLICY
from utils.web.monitoring import LEAST_HELD_OUT, QuestionDrift, put_metric
from utils.web.rollout import JudgedPair, Rule, decide, promote, roll_back
from utils.web.service.endpoint import EndpointClient, Question
from utils.web.service.records import Records, table_client
from utils.web.service.settings import Settings, Version
from utils.web.stack import BOUNDARY_POLICY, LESSON_POLICY, STACK_POLICY
from utils.web.versions import Versions

NOTEBOOK = ROOT / "notebooks" / "07_api_and_web_app.ipynb"
# What the policy allows beyond the calls, and why.
NOT_CALLED_HERE = {
    "sagemaker:AddTags": "no call: needed to create a group with a tag",
    "dynamodb:TagResource": "no call: needed to create a table with a tag",
}
# Of boto3, made of several calls.
TRANSFERS = {("s3", "upload_file"): "PutObject"}
ARN = "arn:aws:{}:us-east-1:123456789012:{}"
KINDS = {
    "EndpointName": "endpoint",
    "EndpointConfigName": "endpoint-config",
    "ModelName": "model",
    "ModelPackageGroupName": "model-package-group",
    "TableName": "table",
}
REPLY = """
from djl_python import Input, Output

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    message = {"role": "assistant", "content": "an answer"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    body = {"choices": [choice], "usage": usage}
    return Output().add_property("content-type", "application/json").add_as_json(body)
"""


def action_of(service: str, operation: str) -> str | None:
    """The action that a call needs the right to, if any."""
    known: dict[tuple[str, str], str | None] = ACTIONS | MORE_ACTIONS
    return known.get((service, operation), f"{service}:{operation}")


# --- the notebook's own calls ---------------------------------------------------------


def cells() -> Iterator[ast.AST]:
    """The notebook's code."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            yield from ast.walk(ast.parse(cell.source))


def services(code: list[ast.AST]) -> set[str]:
    """Services of which the notebook asks for a client.

    By the name in the call, or by those that a loop gives it.
    """
    found: set[str] = set()
    for node in code:
        calls = [
            one
            for one in ast.walk(node)
            if isinstance(one, ast.Call)
            and isinstance(one.func, ast.Attribute)
            and one.func.attr == "client"
        ]
        if isinstance(node, ast.Assign) and calls:
            names = {
                one.value for one in ast.walk(node) if isinstance(one, ast.Constant)
            }
            found |= {str(name) for name in names}
    return found


def operations(service: str, method: str, given: list[ast.expr]) -> set[str]:
    """Operations that a client's method calls."""
    if operation := TRANSFERS.get((service, method)):
        return {operation}
    if method in ("get_waiter", "get_paginator"):
        name = ast.literal_eval(given[0])
        if method == "get_paginator":
            return operations(service, name, [])
        waiters = Session().get_waiter_model(service)
        known = {xform_name(one): one for one in waiters.waiter_names}
        return {waiters.get_waiter(known[name]).operation}
    names = Session().get_service_model(service).operation_names
    return {one for one in names if xform_name(one) == method}


def own_calls() -> set[tuple[str, str]]:
    """Services and operations that the notebook's cells call."""
    code = list(cells())
    clients, found = services(code), set()
    for node in code:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        client = node.func.value
        # Each client bears the name of its service, which is how it is told here.
        if isinstance(client, ast.Name) and client.id in clients:
            made = operations(client.id, node.func.attr, node.args)
            assert made, f"{client.id}.{node.func.attr} is no call of AWS"
            found |= {(client.id, operation) for operation in made}
    return found


def test_each_call_of_the_notebooks_cells_has_a_right() -> None:
    assert services(list(cells())) >= {"sagemaker", "s3", "dynamodb"}
    found = own_calls()
    assert len(found) >= 8
    allowed = {action for action, _ in rights(POLICY, LESSON_POLICY)}
    needed = {action_of(*call) for call in found} - {None}
    assert needed <= allowed, needed - allowed


# --- the calls of what it uses --------------------------------------------------------


def upload(aws: Any, file: Path, key: str) -> str:
    aws.session.client("s3").upload_file(str(file), aws.bucket, key)
    return f"s3://{aws.bucket}/{key}"


def serve_two_versions(aws: Any, guard: Any, folder: Path) -> str:
    """Make an endpoint with the variants `base` and `tuned`, as the notebook does."""
    client = aws.session.client("sagemaker")
    name = guard.name("faq")
    (folder / "model.py").write_text(REPLY)
    archive = pack(folder, folder.with_suffix(".tar.gz"))
    address = upload(aws, archive, f"{name}/model.tar.gz")
    container = {"Image": IMAGE, "ModelDataUrl": address}
    client.create_model(
        ModelName=name, ExecutionRoleArn=aws.role, PrimaryContainer=container
    )
    machine = {"InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
    machine |= {"InferenceAmiVersion": AMI, "ModelName": name}
    variants = [
        machine | {"VariantName": version, "InitialVariantWeight": share}
        for version, share in (("base", 0.9), ("tuned", 0.1))
    ]
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    client.get_waiter("endpoint_in_service").wait(
        EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    return name


def ask_and_record(aws: Any, guard: Any, endpoint: str) -> None:
    """Do with table and endpoint what the app and the notebook do."""
    client, table = aws.session.client("dynamodb"), guard.name("web")
    create_table(aws.session, table)
    client.get_waiter("table_exists").wait(TableName=table)
    tuned = Version("tuned", variant="tuned")
    settings = Settings(endpoint=endpoint, table=table, versions=(tuned,))
    ways = EndpointClient(settings, aws.session.client("sagemaker-runtime"))
    question = Question("why?", None, "tuned", 0, 8, time.monotonic() + 30)
    answer = ways.ask(question)
    records = Records(table, table_client(aws.session))
    records.put_answer(
        request_id="a",
        version="tuned",
        variant=answer.variant,
        status=200,
        latency_ms=1.0,
        prompt_tokens=1,
        completion_tokens=2,
        sources=[],
        question="why?",
        answer=answer.text,
    )
    assert records.put_feedback("a", "up", "") == "tuned"
    assert len(records.all()) == 1
    client.get_item(TableName=table, Key={"request_id": {"S": "a"}})


def roll_out(aws: Any, guard: Any, endpoint: str, folder: Path) -> None:
    """Enter two versions, promote one, and take it back."""
    registry = Versions(aws, guard.name("versions"))
    for number in (1, 2):
        file = folder / f"{number}.tar.gz"
        file.write_text(str(number))
        address = upload(aws, file, f"{registry.group}/{file.name}")
        more: dict[str, Any] = {"hyperparameters": {}, "metrics": {"right": 0.5}}
        registry.register(file, address, IMAGE, data="ab" * 32, base="base", **more)
    registry.approve(1, "Ada", "the first version")
    decision = decide([JudgedPair("q", False, True)] * 100, Rule(100))
    promote(aws, endpoint, "tuned", decision, registry, 2, "Ada")
    roll_back(aws, endpoint, "base", "slow", registry, 2, "Ada")
    assert len(registry.history()) == 2
    assert registry.live().number == 1


def as_numbers(texts: list[str]) -> np.ndarray:
    """Stands for the encoder."""
    return np.array([[1.0, ord(text[0]) - 90] for text in texts])


def resources_of(call: dict[str, Any]) -> list[str]:
    """What a call is about, as ARNs; "*" where its request does not name it."""
    service, params = call["service"].removesuffix("-runtime"), call["params"]
    if service == "s3":
        bucket = "arn:aws:s3:::bucket"
        return [f"{bucket}/{params['Key']}" if "Key" in params else bucket]
    for key in ("ResourceArn", "ModelPackageArn", "ModelPackageName"):
        if key in params:
            return [params[key]]
    found = [
        ARN.format(service, f"{kind}/{params[key]}")
        for key, kind in KINDS.items()
        if key in params
    ]
    if "logGroupName" in params:
        found = [ARN.format("logs", f"log-group:{params['logGroupName']}")]
    return found or ["*"]


@pytest.fixture(scope="module")
def recorded(aws, tmp_path_factory) -> list[dict[str, Any]]:
    """The calls from the first upload to the teardown."""
    from utils.deployment.billing import BillingGuard

    folders = [tmp_path_factory.mktemp(name) for name in ("model", "versions")]
    with pytest.MonkeyPatch.context() as patched:
        for name in ("_make_api_call", "_make_request"):  # so that they are put back
            of = botocore.client.BaseClient
            patched.setattr(of, name, getattr(of, name))
        calls, _ = record_calls()
        with BillingGuard(aws, say=lambda _: None) as guard:
            endpoint = serve_two_versions(aws, guard, folders[0])
            ask_and_record(aws, guard, endpoint)
            roll_out(aws, guard, endpoint, folders[1])
            drift = QuestionDrift(["a"], ["b"] * LEAST_HELD_OUT, as_numbers)
            put_metric(aws, drift.check(["c"] * 10))
        assert guard.remaining() == []
    return calls


def test_each_call_has_a_right_for_what_it_is_about(recorded) -> None:
    needed = []
    for call in recorded:
        several = call["operation"] == "DeleteObjects"  # which are in its body
        action = action_of(call["service"], call["operation"])
        needed.append((action, [] if several else resources_of(call)))
    assert reached(needed, POLICY, LESSON_POLICY) > 50


def test_each_right_has_a_use(recorded) -> None:
    called = {action_of(call["service"], call["operation"]) for call in recorded}
    allowed = {action for action, _ in rights(LESSON_POLICY)}
    assert allowed - called == set(NOT_CALLED_HERE)


def test_a_missing_right_would_be_found(recorded) -> None:
    """The calls reach what each statement of the policy is for."""
    called = {action_of(call["service"], call["operation"]) for call in recorded}
    statements = json.loads(LESSON_POLICY.read_text("utf-8"))["Statement"]
    for statement in statements:
        assert called & set(statement["Action"]), statement["Sid"]


def test_nothing_is_allowed_twice() -> None:
    """The boundary allows nobody anything, so it stays out."""
    found = rights(POLICY, LESSON_POLICY, STACK_POLICY)
    assert len(found) == len(set(found))
    assert BOUNDARY_POLICY.is_file()
