"""The function's archive, and what is asked of AWS to make a stack and to remove it.

Nothing here plays CloudFormation. Requests are held to botocore's models, and what AWS
answers is put together from its documentation. About 15 seconds.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from conftest import CALLERS_ENVIRONMENT
from support.wheels import save_wheel
from utils.deployment import __main__ as command
from utils.deployment import attached, stacks
from utils.deployment.aws import Aws, DeploymentError
from utils.deployment.billing import BillingGuard
from utils.deployment.request_checks import validate_request
from utils.web import expansion, stack

NAME = "course-1a2b3c4d-web"
RUN = {"Key": "course-run", "Value": "1a2b3c4d"}
STACK_ID = f"arn:aws:cloudformation:us-east-1:123456789012:stack/{NAME}/1"
TARGET = "endpoint/course-e/variant/AllTraffic"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
BUCKET = f"{NAME}-page-abc"
NEIGHBOURS = (f"{NAME}-2/function-1.zip", "null")  # whose name begins alike


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> None:
    """Let the pauses between two looks last no time."""
    monkeypatch.setattr(stacks, "FIRST_POLL", 0)
    monkeypatch.setattr(stack, "FIRST_POLL", 0)


# --- the archive ----------------------------------------------------------------------


def save_service(folder: Path, requirement: str = "tiny-model==1.0") -> Path:
    """Write a small package, whose one requirement is a wheel in a folder."""
    service = folder / "service"
    (service / "__pycache__").mkdir(parents=True)
    (service / "__pycache__" / "app.pyc").write_bytes(os.urandom(8))
    (service / "__init__.py").write_text("")
    (service / "lambda_function.py").write_text("def handler(*_): return 'here'\n")
    save_wheel(folder / "wheels", {"weights": b"1" * 1000})
    (service / "requirements.txt").write_text(
        f"--no-index\n--find-links {folder / 'wheels'}\n{requirement}\n"
    )
    return service


@pytest.fixture(autouse=True)
def no_dependencies(monkeypatch) -> None:
    """Let pip take the small wheel without what it says to need."""
    monkeypatch.setenv("PIP_NO_DEPS", "1")


def test_the_same_content_makes_the_same_archive(tmp_path) -> None:
    one, two = (save_service(tmp_path / name) for name in ("one", "two"))
    os.utime(two / "lambda_function.py", (1, 1))
    (two / "lambda_function.py").chmod(0o600)
    for service in (one, two):
        (service / "requirements.txt").write_text(
            f"--no-index\n--find-links {tmp_path / 'one' / 'wheels'}\ntiny-model==1.0\n"
        )
    first, second = (stack.package(service.parent, service) for service in (one, two))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        members = {member.filename: member for member in archive.infolist()}
    assert "tiny_model/model/weights" in members
    assert any(name.endswith(".dist-info/METADATA") for name in members)
    assert not any("__pycache__" in name or "RECORD" in name for name in members)
    # Lambda runs as a user who owns nothing of it.
    modes = {member.external_attr >> 16 for member in members.values()}
    assert modes == {0o644}
    handler = expansion.load()["Resources"]["Function"]["Properties"]["Handler"]
    assert f"{handler.rpartition('.')[0].replace('.', '/')}.py" in members


def test_another_content_has_another_name_and_too_much_is_said(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(stack, "_install", lambda *_: None)
    service = save_service(tmp_path)
    first = stack.package(tmp_path, service)
    (service / "lambda_function.py").write_text("def handler(*_): return 'new'\n")
    assert stack.package(tmp_path, service).name != first.name
    monkeypatch.setattr(stack, "MOST_UNPACKED", 50)
    with pytest.raises(DeploymentError, match=r"MiB unpacked, and Lambda takes"):
        stack.package(tmp_path / "out", service)
    assert not list(tmp_path.glob("out/*"))


def test_what_pip_cannot_install_is_said(tmp_path) -> None:
    service = save_service(tmp_path, "tiny-model==2.0")
    with pytest.raises(DeploymentError, match="pip cannot install") as failure:
        stack.package(tmp_path, service)
    assert "tiny-model==2.0" in str(failure.value)


@pytest.mark.slow
def test_the_real_function_is_packed_for_lambda(tmp_path, monkeypatch) -> None:
    """From the package index: wheels of Lambda's machine, within its quota."""
    monkeypatch.delenv("PIP_NO_DEPS")
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        if name in CALLERS_ENVIRONMENT:
            monkeypatch.setenv(name, CALLERS_ENVIRONMENT[name])
    try:
        archive = stack.package(tmp_path)
    except DeploymentError as error:
        if "onnection" in str(error) or "resolution" in str(error):
            pytest.skip(f"The package index cannot be asked: {str(error)[-200:]}")
        raise
    with zipfile.ZipFile(archive) as stream:
        names = stream.namelist()
    assert "service/lambda_function.py" in names and "mangum/__init__.py" in names
    compiled = [name for name in names if name.endswith(".so")]
    assert compiled and all("x86_64-linux" in name for name in compiled)
    assert archive.stat().st_size < 50 * 2**20


# --- an account to ask ----------------------------------------------------------------


@functools.cache
def real_client(service: str) -> Any:
    """One for all, as each has classes of its own for its exceptions."""
    return boto3.Session("a", "b", region_name="us-east-1").client(service)


def refused(operation: str, code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


class Account:
    """What a stack needs of AWS; each request is held to botocore's model.

    Attributes:
        calls: method and parameters of each, in their order.
        status: of the stack; None if there is none.
        files: keys and versions in the page's bucket.
        stuck: how many deletions of the stack fail.
        answers: in place of what is answered here, by method.
    """

    def __init__(self, status: str | None = None, **answers: Any):
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.status, self.answers = status, answers
        self.tags = [RUN]
        self.files = [("index.html", "v1"), ("index.html", "v2"), ("app.js", "null")]
        self.archives = [
            *((f"{NAME}/function-1.zip", "v1"), (f"{NAME}/function-1.zip", "v2")),
            *((f"{NAME}/function-2.zip", "null"), NEIGHBOURS),
        ]
        self.targets, self.table, self.log = {TARGET}, False, True
        self.variants = [{"VariantName": "AllTraffic", "CurrentWeight": 1.0}]
        self.stuck = 0
        self.events: list[dict[str, Any]] = []

    def client(self, service: str) -> Any:
        real = real_client(service)

        def call(method: str, **given: Any) -> Any:
            validate_request(service, method, **given)
            self.calls.append((method, given))
            answer = self.answers.get(method) or getattr(self, f"_{method}", None)
            return answer(**given) if answer else {}

        class Client:
            exceptions = real.exceptions

            def get_paginator(self, method: str) -> Any:
                assert real.can_paginate(method)

                def paginate(PaginationConfig: Any = None, **given: Any) -> Any:
                    yield call(method, **given)

                return SimpleNamespace(paginate=paginate)

            def upload_file(self, file: str, bucket: str, key: str) -> None:
                call("put_object", Bucket=bucket, Key=key, Body=Path(file).read_bytes())

            def __getattr__(self, method: str) -> Any:
                assert hasattr(real, method)
                return lambda **given: call(method, **given)

        return Client()

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.calls))

    def given(self, method: str) -> list[dict[str, Any]]:
        return [given for name, given in self.calls if name == method]

    # CloudFormation: in progress for one look each time.

    def _describe_stacks(self, StackName: str) -> Any:
        if self.status is None:
            raise refused(
                *("DescribeStacks", "ValidationError"),
                f"Stack with id {StackName} does not exist",
            )
        found = {
            "StackName": NAME,
            "StackId": STACK_ID,
            "StackStatus": self.status,
            "CreationTime": 0,
            "Tags": self.tags,
            "Outputs": [
                {"OutputKey": "BucketName", "OutputValue": BUCKET},
                {"OutputKey": "ApiKeyId", "OutputValue": "k1"},
            ],
        }
        if self.status.endswith("_IN_PROGRESS") and self.status[0] != "R":
            self.status = self.status.replace("IN_PROGRESS", "COMPLETE")
            if self.status == "DELETE_COMPLETE" and (self.stuck or self.files):
                self.stuck -= self.stuck > 0
                self.status = "DELETE_FAILED"
                self._fail("Page", "AWS::S3::Bucket", "The bucket is not empty")
        return {"Stacks": [found]}

    def _fail(self, name: str, kind: str, reason: str) -> None:
        action = "DELETE" if "DELETE" in str(self.status) else "CREATE"
        self.events.insert(0, event(name, kind, f"{action}_FAILED", reason))

    def _create_change_set(self, **given: Any) -> Any:
        if given["ChangeSetType"] == "CREATE":
            self.status = "REVIEW_IN_PROGRESS"
        return {"Id": f"{STACK_ID}/change", "StackId": STACK_ID}

    def _describe_change_set(self, ChangeSetName: str) -> Any:
        return {"Status": "CREATE_COMPLETE"}

    def _execute_change_set(self, ChangeSetName: str) -> Any:
        new = self.status == "REVIEW_IN_PROGRESS"
        self.status = f"{'CREATE' if new else 'UPDATE'}_IN_PROGRESS"

    def _describe_stack_events(self, StackName: str) -> Any:
        return {"StackEvents": self.events}

    def _list_stack_resources(self, StackName: str) -> Any:
        made = [
            ("AWS::S3::Bucket", BUCKET),
            ("AWS::Lambda::Function", NAME),
            ("AWS::DynamoDB::Table", f"{NAME}-Table-abc"),
            (
                "AWS::ApplicationAutoScaling::ScalableTarget",
                f"{TARGET}|{DIMENSION}|sagemaker",
            ),
        ]
        summaries = [
            {
                "ResourceType": kind,
                "PhysicalResourceId": name,
                "ResourceStatus": "CREATE_COMPLETE",
            }
            for kind, name in made
        ]
        # Before it exists, a resource has no name.
        begun = {"ResourceType": "AWS::Lambda::Function", "ResourceStatus": "X_FAILED"}
        return {"StackResourceSummaries": [*summaries, begun]}

    def _delete_stack(self, StackName: str) -> Any:
        assert not str(self.status).startswith("UPDATE_") or "PROGRESS" not in str(
            self.status
        ), "AWS deletes no stack that is being changed"
        self.status = "DELETE_IN_PROGRESS"

    # what it made

    def _list_object_versions(self, Bucket: str, Prefix: str = "") -> Any:
        there = self.files if Bucket == BUCKET else self.archives
        versions = [
            {"Key": key, "VersionId": version, "IsLatest": False, "Size": 1}
            for key, version in there
            if key.startswith(Prefix)
        ]
        return {"Versions": versions[:2], "DeleteMarkers": versions[2:]}

    def _delete_objects(self, Bucket: str, Delete: Any) -> Any:
        gone = {(one["Key"], one["VersionId"]) for one in Delete["Objects"]}
        there = self.files if Bucket == BUCKET else self.archives
        there[:] = [one for one in there if one not in gone]
        return {}

    def _deregister_scalable_target(self, ResourceId: str, **_: Any) -> Any:
        if ResourceId not in self.targets:
            raise self._exception("application-autoscaling", "ObjectNotFoundException")
        self.targets.remove(ResourceId)

    def _describe_table(self, TableName: str) -> Any:
        if not self.table:
            raise self._exception("dynamodb", "ResourceNotFoundException")
        return {"Table": {}}

    def _delete_log_group(self, logGroupName: str) -> Any:
        if not self.log:
            raise self._exception("logs", "ResourceNotFoundException")
        self.log = False

    def _describe_endpoint(self, EndpointName: str) -> Any:
        return {"ProductionVariants": self.variants}

    def _head_object(self, **_: Any) -> Any:
        return {"ContentLength": 1}

    def _get_api_key(self, **_: Any) -> Any:
        return {"value": "secret"}

    @staticmethod
    def _exception(service: str, name: str) -> Exception:
        found = getattr(real_client(service).exceptions, name)
        return found({"Error": {"Code": name}}, name)


def event(name: str, kind: str, status: str, reason: str, of: str = "x") -> Any:
    return {
        "LogicalResourceId": name,
        "PhysicalResourceId": of,
        "ResourceType": kind,
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
    }


def connected(account: Account, real: bool = True) -> Aws:
    return Aws(account, "us-east-1", "role", "bucket", real=real)  # type: ignore


@pytest.fixture
def page(tmp_path) -> Path:
    folder = tmp_path / "page"
    folder.mkdir()
    for name in ("index.html", "app.js", "style.css", "icon.svg"):
        (folder / name).write_text(f"{name}\n")
    return folder


def deploy(account: Account, tmp_path: Path, page: Path, **parameters: Any) -> Any:
    archive = tmp_path / "function-0123.zip"
    archive.write_bytes(b"zip")
    guard = SimpleNamespace(name=lambda what: f"course-1a2b3c4d-{what}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "package", lambda folder: archive)
        return stack.deploy(
            connected(account),
            guard,  # type: ignore
            "course-e",
            [{"name": "tuned", "description": "ü", "live": True}],
            1.408,
            folder=tmp_path,
            page=page,
            say=lambda _: None,
            **parameters,
        )


# --- deploying ------------------------------------------------------------------------


def test_a_stack_is_made_with_all_that_the_template_needs(tmp_path, page) -> None:
    account = Account()
    outputs = deploy(account, tmp_path, page, Rate=2)
    assert outputs == {"BucketName": BUCKET, "ApiKeyId": "k1"}
    (request,) = account.given("create_change_set")
    given = {
        one["ParameterKey"]: one["ParameterValue"] for one in request["Parameters"]
    }
    template = expansion.load()
    assert given.keys() <= template["Parameters"].keys()
    needed = {
        name for name, one in template["Parameters"].items() if "Default" not in one
    }
    assert needed <= given.keys()
    assert given["HourlyPrice"] == "1.408" and given["Rate"] == "2"
    assert given["Versions"] == (
        '[{"name": "tuned", "description": "ü", "live": true}]'
    )
    assert given["CodeKey"] == f"{NAME}/function-0123.zip"
    assert request["ChangeSetType"] == "CREATE"
    assert set(request["Capabilities"]) == {"CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"}
    assert [name for name in account.methods if "change_set" in name] == [
        *("create_change_set", "describe_change_set", "execute_change_set")
    ]
    validate_request("cloudformation", "create_change_set", Tags=[RUN], **request)


def test_the_page_goes_up_with_types_and_is_asked_for_anew(tmp_path, page) -> None:
    account = Account()
    deploy(account, tmp_path, page)
    files = {
        one["Key"]: one
        for one in account.given("put_object")
        if one["Bucket"] == BUCKET
    }
    assert files.keys() == {"index.html", "app.js", "style.css", "icon.svg"}
    assert files["index.html"]["ContentType"] == "text/html; charset=utf-8"
    assert files["index.html"]["CacheControl"] == "no-cache"
    assert files["app.js"]["ContentType"] == "text/javascript; charset=utf-8"
    assert "max-age" in files["app.js"]["CacheControl"]
    assert not any("ACL" in one for one in files.values())


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda page: (page / "index.html").unlink(), "has no index.html"),
        (lambda page: (page / "a.wasm").touch(), "suffix '.wasm'"),
    ],
)
def test_a_page_that_would_not_be_shown_is_refused(page, spoil, message) -> None:
    spoil(page)
    with pytest.raises(DeploymentError, match=message):
        stack.upload_page(connected(Account()), page, BUCKET)


def test_a_version_of_the_code_is_named_where_there_are_versions(
    tmp_path, page
) -> None:
    for head, expected in (({"VersionId": "v7"}, "v7"), ({"VersionId": "null"}, "")):
        account = Account(head_object=lambda head=head, **_: head)
        deploy(account, tmp_path, page)
        (request,) = account.given("create_change_set")
        assert {
            "ParameterKey": "CodeVersion",
            "ParameterValue": expected,
        } in request["Parameters"]


@pytest.mark.parametrize(
    "weights, given, expected",
    [
        ({"base": 9, "tuned": 1}, {}, "base"),
        ({"base": 0, "tuned": 1}, {}, "tuned"),
        ({"AllTraffic": 1}, {}, "AllTraffic"),
        ({"base": 9, "tuned": 1}, {"VariantName": "tuned"}, "tuned"),
    ],
)
def test_the_variant_with_the_most_traffic_is_scaled(
    tmp_path, page, weights, given, expected
) -> None:
    account = Account()
    account.variants = [
        {"VariantName": name, "CurrentWeight": weight}
        for name, weight in weights.items()
    ]
    deploy(account, tmp_path, page, **given)
    (request,) = account.given("create_change_set")
    scaled = {"ParameterKey": "VariantName", "ParameterValue": expected}
    assert scaled in request["Parameters"]


def test_called_again_it_changes_the_stack(tmp_path, page) -> None:
    account = Account("CREATE_COMPLETE")
    deploy(account, tmp_path, page)
    (request,) = account.given("create_change_set")
    assert request["ChangeSetType"] == "UPDATE"
    assert account.status == "UPDATE_COMPLETE"


def test_a_stack_that_was_only_planned_is_made(tmp_path, page) -> None:
    account = Account("REVIEW_IN_PROGRESS")
    deploy(account, tmp_path, page)
    assert account.given("create_change_set")[0]["ChangeSetType"] == "CREATE"


@pytest.mark.parametrize("reason", stack.NO_CHANGE)
def test_where_nothing_differs_only_the_page_goes_up(tmp_path, page, reason) -> None:
    answer = {"Status": "FAILED", "StatusReason": f"The submitted {reason}."}
    account = Account("CREATE_COMPLETE", describe_change_set=lambda **_: answer)
    assert deploy(account, tmp_path, page)["BucketName"] == BUCKET
    assert "execute_change_set" not in account.methods
    assert "delete_change_set" in account.methods
    assert any(one["Bucket"] == BUCKET for one in account.given("put_object"))


def test_a_template_that_is_refused_is_told_with_the_reason(tmp_path, page) -> None:
    reason = "Transform AWS::Serverless-2016-10-31 failed with: Invalid"
    answer = {"Status": "FAILED", "StatusReason": reason}
    account = Account(describe_change_set=lambda **_: answer)
    with pytest.raises(DeploymentError, match="failed with: Invalid"):
        deploy(account, tmp_path, page)


def test_what_failed_is_named_with_its_reason_and_what_fell_with_it_is_not(
    tmp_path, page
) -> None:
    account = Account()
    account.events = [
        event(NAME, "AWS::CloudFormation::Stack", "ROLLBACK_IN_PROGRESS", "", STACK_ID),
        event(
            *("Table", "AWS::DynamoDB::Table", "CREATE_FAILED"),
            "Resource creation cancelled",
        ),
        event(
            *("Function", "AWS::Lambda::Function", "CREATE_FAILED"),
            "UnreservedConcurrentExecution below its minimum value of [10]",
        ),
        event(
            *(NAME, "AWS::CloudFormation::Stack", "CREATE_IN_PROGRESS"),
            *("User Initiated", STACK_ID),
        ),
        event("Page", "AWS::S3::Bucket", "CREATE_FAILED", "of an earlier try"),
    ]

    def execute(ChangeSetName: str) -> None:
        account.status = "ROLLBACK_IN_PROGRESS"

    def describe(StackName: str) -> Any:
        found = account._describe_stacks(StackName)
        if account.status == "ROLLBACK_IN_PROGRESS":
            account.status = "ROLLBACK_COMPLETE"
        return found

    account.answers = {"execute_change_set": execute, "describe_stacks": describe}
    with pytest.raises(DeploymentError) as failure:
        deploy(account, tmp_path, page)
    text = str(failure.value)
    assert f"{NAME} is ROLLBACK_COMPLETE: Function (AWS::Lambda::Function)" in text
    assert "minimum value of [10]" in text
    assert "cancelled" not in text and "earlier" not in text


def test_a_template_that_is_too_long_is_not_sent(tmp_path) -> None:
    file = tmp_path / "template.yaml"
    file.write_text("#" * 60_000)
    with pytest.raises(DeploymentError, match="60000 bytes, and CloudFormation takes"):
        stack.change_set(NAME, file, {}, new=True)
    assert len(expansion.TEMPLATE.read_bytes()) < stack.MOST_TEMPLATE * 0.8


def test_offline_there_is_no_stack(tmp_path) -> None:
    account, said = Account(), []
    made = stack.deploy(
        connected(account, real=False),
        SimpleNamespace(),  # type: ignore
        *("course-e", [], 1.0),
        folder=tmp_path,
        say=said.append,
    )
    assert made == {} and account.calls == []
    assert "does not play CloudFormation" in said[0]


@pytest.mark.parametrize(
    "policy", [stack.caller_policy, stack.lesson_policy, stack.boundary_policy]
)
def test_policies_are_filled_in_and_name_calls_of_aws(aws, policy) -> None:
    """Held to botocore's models, but for rights that are no calls of that name."""
    text = policy(aws)
    assert "${" not in text and ":123456789012:" in text
    others = {
        "iam:PassRole",
        *("s3:ListBucketVersions", "s3:GetObjectVersion", "s3:DeleteObjectVersion"),
        *("s3:PutBucketPublicAccessBlock", "s3:GetBucketPublicAccessBlock"),
        *("s3:PutEncryptionConfiguration", "s3:GetEncryptionConfiguration"),
        *(f"apigateway:{verb}" for verb in ("GET", "POST", "PUT", "PATCH", "DELETE")),
    }
    for statement in json.loads(text)["Statement"]:
        for action in set(statement["Action"]) - others:
            service, operation = action.split(":")
            names = set(real_client(service).meta.service_model.operation_names)
            if service == "sagemaker":
                names |= {
                    *real_client(
                        f"{service}-runtime"
                    ).meta.method_to_api_mapping.values()
                }
            # CloudFormation tags by a right that is no call.
            if (service, operation) != ("cloudformation", "TagResource"):
                assert operation in names, action


def test_the_stacks_policy_scales_endpoints_only_and_lets_their_alarms_be_made(
    aws,
) -> None:
    statements = json.loads(stack.caller_policy(aws))["Statement"]

    def holding(action: str) -> list[dict[str, Any]]:
        return [one for one in statements if action in one["Action"]]

    for verb in ("RegisterScalableTarget", "DeregisterScalableTarget"):
        (scaling,) = holding(f"application-autoscaling:{verb}")
        assert scaling["Condition"] == {
            "StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}
        }
    (tagging,) = holding("application-autoscaling:TagResource")
    assert "Condition" not in tagging  # it has no such key
    alarm = (
        "arn:aws:cloudwatch:us-east-1:123456789012:alarm:"
        "TargetTracking-endpoint/course-e/variant/base-AlarmHigh-1"
    )
    for verb in ("PutMetricAlarm", "DeleteAlarms"):
        (alarms,) = holding(f"cloudwatch:{verb}")
        assert any(fnmatch.fnmatchcase(alarm, one) for one in alarms["Resource"])
    # Service Authorization Reference: CreateDistribution has no condition keys.
    (making,) = holding("cloudfront:CreateDistribution")
    assert "Condition" not in making
    (naming,) = holding("cloudfront:TagResource")
    assert naming["Condition"] == {"Null": {"aws:RequestTag/course-run": "false"}}


def test_with_a_boundary_no_role_can_be_made_without_it(aws) -> None:
    """And the template's own function stays within the one that the course has."""
    boundary = "arn:aws:iam::123456789012:policy/course-web-boundary"
    text = "".join(stack.caller_policy(aws, boundary).split())
    assert len(text) < 6144  # IAM's quota
    without, with_it = (
        json.loads(stack.caller_policy(aws, given))["Statement"]
        for given in ("", boundary)
    )
    held = [one for one in with_it if one not in without]
    assert [one["Action"] for one in held] == [["iam:CreateRole", "iam:PutRolePolicy"]]
    assert held[0]["Condition"] == {
        "StringEquals": {"iam:PermissionsBoundary": boundary}
    }
    # No right to take it off again, or to hang another policy on.
    actions = {action for one in with_it for action in one["Action"]}
    assert not [one for one in actions if "Boundary" in one or "AttachRole" in one]
    assert not {"iam:UpdateAssumeRolePolicy", "iam:CreatePolicyVersion"} & actions
    most = list(expansion.allowed(json.loads(stack.boundary_policy(aws))))
    function = expansion.policies(expansion.load())["FunctionRole.ask-and-record"]
    rights = list(expansion.allowed(function))
    assert len(rights) == len(most) == 6
    for action, resource in rights:
        fits = [
            fnmatch.fnmatchcase(resource, arn) for one, arn in most if one == action
        ]
        assert any(fits), f"{action} on {resource}"


def test_the_boundary_reaches_the_template(tmp_path, page) -> None:
    account = Account()
    deploy(account, tmp_path, page, PermissionsBoundary="arn:aws:iam::1:policy/b")
    (request,) = account.given("create_change_set")
    given = {p["ParameterKey"]: p["ParameterValue"] for p in request["Parameters"]}
    assert given["PermissionsBoundary"] == "arn:aws:iam::1:policy/b"
    assert set(given) <= set(expansion.load()["Parameters"])


def test_the_keys_value_is_asked_for() -> None:
    account = Account()
    assert stack.api_key(connected(account), {"ApiKeyId": "k1"}) == "secret"
    assert account.given("get_api_key") == [{"apiKey": "k1", "includeValue": True}]


# --- removing -------------------------------------------------------------------------


def remove(account: Account, name: str = NAME) -> list[str]:
    said: list[str] = []
    stack.remove(connected(account), name, said.append)
    return said


def test_a_stack_goes_with_its_files_scaling_table_and_log() -> None:
    account = Account("CREATE_COMPLETE")
    assert remove(account) == ["DELETE_IN_PROGRESS", "DELETE_COMPLETE"]
    assert not account.files and not account.targets and not account.log
    order = account.methods
    for first, second in (
        ("deregister_scalable_target", "delete_stack"),
        ("delete_objects", "delete_stack"),
        ("delete_stack", "delete_log_group"),
        ("delete_stack", "describe_table"),
    ):
        assert order.index(first) < order.index(second)
    files, _ = account.given("delete_objects")
    assert len(files["Delete"]["Objects"]) == 3  # versions and markers
    assert account.archives == [NEIGHBOURS]
    assert account.given("delete_stack") == [{"StackName": STACK_ID}]
    assert account.given("delete_log_group") == [
        {"logGroupName": f"/aws/lambda/{NAME}"}
    ]


def test_again_it_does_nothing_but_look_for_a_late_log() -> None:
    account = Account()
    assert remove(account) == ["gone"]
    assert not account.log and account.archives == [NEIGHBOURS]
    assert remove(account) == ["gone"]
    assert set(account.methods) == {
        *("describe_stacks", "delete_log_group"),
        *("list_object_versions", "delete_objects"),
    }


def test_a_bucket_that_is_gone_holds_no_archive() -> None:
    def no_bucket(**_: Any) -> None:
        raise Account._exception("s3", "NoSuchBucket")

    assert remove(Account(list_object_versions=no_bucket)) == ["gone"]


@pytest.mark.parametrize(
    "status",
    [
        *("UPDATE_IN_PROGRESS", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"),
        *("UPDATE_ROLLBACK_IN_PROGRESS",),
    ],
)
def test_a_stack_that_is_being_changed_is_deleted_afterwards(status) -> None:
    account = Account("CREATE_COMPLETE")
    found = account._describe_stacks(NAME)["Stacks"][0]
    account.status = status
    stacks.delete(connected(account).session, {**found, "StackStatus": status})
    assert account.status == "DELETE_COMPLETE"


def test_a_file_that_comes_in_between_is_deleted_with_the_next_try() -> None:
    account = Account("CREATE_COMPLETE")
    account.stuck = 1
    remove(account)
    assert len(account.given("delete_stack")) == 2
    assert account.status == "DELETE_COMPLETE"


def test_what_cannot_be_deleted_is_named() -> None:
    account = Account("CREATE_COMPLETE")
    account.stuck = 9
    with pytest.raises(
        DeploymentError, match=r"DELETE_FAILED\): Page \(AWS::S3::Bucket\): The bucket"
    ):
        remove(account)
    assert len(account.given("delete_stack")) == stacks.ATTEMPTS


def test_a_bucket_that_keeps_a_file_and_a_table_that_stays_are_named() -> None:
    denied = {"Errors": [{"Key": "index.html", "Message": "Access Denied"}]}
    account = Account("CREATE_COMPLETE", delete_objects=lambda **_: denied)
    with pytest.raises(DeploymentError, match=r"emptied: index.html: Access Denied"):
        remove(account)
    assert "delete_stack" not in account.methods
    account = Account("CREATE_COMPLETE")
    account.table = True
    with pytest.raises(DeploymentError, match="is still there, though its stack"):
        remove(account)


@pytest.mark.parametrize("tags", [[], [{"Key": "course-run", "Value": "other"}]])
def test_a_stack_without_the_runs_tag_is_left_alone(tags) -> None:
    account = Account("CREATE_COMPLETE")
    account.tags = tags
    with pytest.raises(DeploymentError, match="Nothing was deleted"):
        remove(account)
    assert account.methods == ["describe_stacks"]


@pytest.mark.parametrize(
    "name",
    [
        *("production", "course", "course-", "", "course-x-y", "course-1a2b3c4d-"),
        *("course-1a2b3c4-web", "course-1A2B3C4D-web", "course-1a2b3c4d-web/x"),
    ],
)
def test_a_name_of_nobodys_run_is_refused_before_anything_is_asked(name) -> None:
    account = Account("CREATE_COMPLETE")
    with pytest.raises(DeploymentError, match="no name that a guard gives"):
        remove(account, name)
    assert account.calls == []


def test_a_stack_that_was_only_planned_goes_by_its_name() -> None:
    account = Account("REVIEW_IN_PROGRESS")
    account.tags = []
    remove(account)
    assert account.status == "DELETE_COMPLETE"


def test_the_command_removes_it(monkeypatch) -> None:
    account = Account("CREATE_COMPLETE")
    monkeypatch.setattr(command, "account_to_look_at", lambda _: connected(account))
    assert command.main(["remove", NAME]) == 0
    assert account.archives == [NEIGHBOURS]
    assert account.status == "DELETE_COMPLETE"
    assert command.main(["remove", "production"]) == 2


# --- waiting, against botocore's own answers ------------------------------------------


@contextlib.contextmanager
def stubbed() -> Iterator[tuple[Any, Stubber]]:
    client = boto3.Session("a", "b", region_name="us-east-1").client("cloudformation")
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()


def described(status: str) -> dict[str, Any]:
    made = {"StackName": NAME, "StackId": STACK_ID, "CreationTime": 0}
    return {"Stacks": [{**made, "StackStatus": status}]}


def test_it_waits_as_long_as_something_is_in_progress() -> None:
    said: list[str] = []
    with stubbed() as (client, stub):
        for status in ["CREATE_IN_PROGRESS"] * 3 + ["CREATE_COMPLETE"]:
            stub.add_response("describe_stacks", described(status), {"StackName": NAME})
        assert stacks.settle(client, NAME, said.append)["StackStatus"] == said[-1]
    assert said == ["CREATE_IN_PROGRESS", "CREATE_COMPLETE"]


def test_it_does_not_wait_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(stacks, "TIMEOUT", -1)
    with stubbed() as (client, stub):
        stub.add_response("describe_stacks", described("CREATE_IN_PROGRESS"))
        with pytest.raises(DeploymentError, match="CREATE_IN_PROGRESS after"):
            stacks.settle(client, NAME)


def test_no_stack_is_no_error_and_a_missing_right_is_one() -> None:
    with stubbed() as (client, stub):
        stub.add_client_error(
            *("describe_stacks", "ValidationError"),
            f"Stack with id {NAME} does not exist",
        )
        assert stacks.find(client, NAME) is None
        for code, message in (
            ("AccessDenied", "not authorized"),
            ("ValidationError", "1 validation error detected"),
        ):
            stub.add_client_error("describe_stacks", code, message)
            with pytest.raises(ClientError, match=message):
                stacks.find(client, NAME)


def test_a_change_set_is_waited_for() -> None:
    with stubbed() as (client, stub):
        for status in ("CREATE_PENDING", "CREATE_IN_PROGRESS", "CREATE_COMPLETE"):
            stub.add_response("describe_change_set", {"Status": status})
        assert stack._is_ready(client, "change")


# --- the guard ------------------------------------------------------------------------


@pytest.fixture
def watched(aws) -> Iterator[BillingGuard]:
    guard = BillingGuard(aws, say=lambda _: None)
    yield guard
    guard.close()


def change_set(guard: BillingGuard, **more: Any) -> dict[str, Any]:
    """What reaches CloudFormation when the session asks for a change set."""
    sent: dict[str, Any] = {}
    client = guard.aws.session.client("cloudformation")

    def keep(params: dict[str, Any], **_: Any) -> None:
        sent.update(params)

    client.meta.events.register(
        "before-parameter-build.cloudformation.CreateChangeSet", keep
    )
    request = stack.change_set(guard.name("web"), expansion.TEMPLATE, {}, new=True)
    with Stubber(client) as stub:
        stub.add_response("create_change_set", {"Id": "a:b/c"}, None)
        client.create_change_set(**{**request, **more})
    return sent


def test_a_stack_is_noted_and_tagged_when_it_is_made(watched) -> None:
    for _ in range(2):  # a cell that is run twice
        sent = change_set(watched)
        assert sent["Tags"] == [{"Key": "course-run", "Value": watched.run}]
    entries = [entry for entry in watched.entries if entry.kind == attached.STACK]
    assert [entry.name for entry in entries] == [watched.name("web")]
    assert "| stack | `course-…-web` | by the request" in watched._repr_markdown_()


@pytest.mark.parametrize("kind", ["UPDATE", "IMPORT", None])
def test_a_stack_that_is_changed_keeps_its_tags(watched, kind) -> None:
    """Ours would say that it is this run's to delete."""
    more = {"ChangeSetType": kind} if kind else {}
    request = {"StackName": "somebody-elses", **more}
    client = watched.aws.session.client("cloudformation")
    with Stubber(client) as stub:
        # Without Tags, or the stub refuses it.
        expected = {**request, "ChangeSetName": "c", "TemplateBody": "{}"}
        stub.add_response("create_change_set", {}, expected)
        client.create_change_set(**expected)
    assert not [entry for entry in watched.entries if entry.kind == attached.STACK]


@pytest.mark.parametrize(
    "tags, gone",
    [([], False), (["other"], False), (["mine"], True)],
)
def test_the_guard_removes_its_own_stack_only(watched, monkeypatch, tags, gone) -> None:
    account = Account("CREATE_COMPLETE")
    values = {"mine": watched.run}
    account.tags = [
        {"Key": "course-run", "Value": values.get(tag, tag)} for tag in tags
    ]
    change_set(watched)
    other = watched.aws.session.client

    def client(service: str, **given: Any) -> Any:
        if service in ("cloudformation", "application-autoscaling", "s3", "dynamodb"):
            return account.client(service)
        return other(service, **given)

    monkeypatch.setattr(watched.aws.session, "client", client)
    watched._delete_all()
    assert ("delete_stack" in account.methods) == gone
    assert bool(account.targets) != gone


def test_a_stack_goes_before_the_endpoint_that_it_scales(watched, monkeypatch) -> None:
    from utils.deployment.ledger import Entry

    kinds = ["endpoint", attached.ALARM, "model", attached.STACK, "S3 object"]
    watched.entries += [Entry(kind, f"{kind}-1", time.time()) for kind in kinds]
    order: list[str] = []

    def delete(entry: Entry) -> None:
        order.append(entry.kind)
        entry.deleted = time.time()

    monkeypatch.setattr(watched, "_delete", delete)
    watched._delete_all()
    assert order[0] == attached.STACK
    assert order.index("endpoint") < order.index("S3 object")


def test_a_file_in_a_bucket_that_went_with_its_stack_is_no_failure(
    aws, watched
) -> None:
    client = aws.session.client("s3")
    client.create_bucket(Bucket="course-page")
    client.put_object(Bucket="course-page", Key="index.html", Body=b"1")
    assert [entry.kind for entry in watched.entries] == ["S3 object"]
    client.delete_object(Bucket="course-page", Key="index.html")
    client.delete_bucket(Bucket="course-page")
    watched._delete_all()
    assert all(entry.deleted for entry in watched.entries)


def test_offline_a_stack_that_was_asked_for_is_no_failure(watched) -> None:
    client = watched.aws.session.client("cloudformation")
    request = stack.change_set(watched.name("web"), expansion.TEMPLATE, {}, new=True)
    with pytest.raises(ClientError, match="does not play"):
        client.create_change_set(**request)
    watched.teardown()
    assert watched.remaining() == []
