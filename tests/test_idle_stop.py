"""A stop that lives in the account: scheduled, moved, carried out, taken away again."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from botocore.validate import validate_parameters

from utils.deployment import tagged
from utils.deployment.account import look
from utils.deployment.aws import (
    Aws,
    AwsError,
    DeploymentError,
    iam_policy,
    idle_stop_role_policy,
    idle_stop_role_trust,
)
from utils.deployment.billing import BillingGuard
from utils.deployment.idle_stop import ROLE, schedule, stop_after, stop_role
from utils.offline_aws.control_plane import OfflineAws
from utils.offline_aws.endpoints import ENDPOINTS
from utils.offline_aws.schedules import Schedules

NOON = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
NAME = "course-1-faq"
CALLS = ("CreateSchedule", "UpdateSchedule")


@pytest.fixture(autouse=True)
def nothing_scheduled(aws) -> Iterator[None]:
    yield
    client = aws.session.client("scheduler")
    for item in client.list_schedules()["Schedules"]:
        client.delete_schedule(Name=item["Name"])


def kept(aws: Aws, name: str = NAME) -> dict[str, Any]:
    return aws.session.client("scheduler").get_schedule(Name=name)


def names(aws: Aws) -> list[str]:
    listed = aws.session.client("scheduler").list_schedules()["Schedules"]
    return [item["Name"] for item in listed]


# --- the request ----------------------------------------------------------------------


@pytest.mark.parametrize("operation", CALLS)
def test_the_request_is_one_that_aws_has(aws, operation) -> None:
    """Held to botocore's models: of Scheduler, and of the call that it is to make."""
    session = botocore.session.get_session()
    model = session.get_service_model("scheduler").operation_model(operation)
    request = schedule(aws, NAME, NOON)
    validate_parameters({**request, "ClientToken": "once"}, model.input_shape)
    for key, value in request.items():
        shape = model.input_shape.members[key]
        allowed = getattr(shape, "enum", None)
        assert not allowed or value in allowed
    assert request["ScheduleExpression"] == "at(2027-01-15T08:00:00)"
    assert request["ScheduleExpressionTimezone"] == "UTC"
    prefix, service, call = request["Target"]["Arn"].rsplit(":", 2)
    assert prefix == "arn:aws:scheduler:::aws-sdk"
    called = session.get_service_model(service).operation_model(
        call[0].upper() + call[1:]
    )
    validate_parameters(json.loads(request["Target"]["Input"]), called.input_shape)
    assert called.name == "DeleteEndpoint"


def test_the_longest_name_of_an_endpoint_is_a_schedules_too() -> None:
    session = botocore.session.get_session()
    endpoint = session.get_service_model("sagemaker").shape_for("EndpointName")
    one = session.get_service_model("scheduler").shape_for("Name")
    assert endpoint.metadata["max"] <= one.metadata["max"]


@pytest.mark.parametrize("hours", [0, 0.4, -1, 169, float("nan")])
def test_hours_out_of_range_are_refused_and_nothing_is_scheduled(aws, hours) -> None:
    with pytest.raises(AwsError, match=r"hours is .* Give 0.5 to 168"):
        stop_after(aws, NAME, hours)
    assert names(aws) == []


def test_another_endpoint_than_the_courses_is_refused(aws) -> None:
    with pytest.raises(AwsError, match="'payroll' has no name that begins with"):
        stop_after(aws, "payroll", 1)


# --- scheduling and moving ------------------------------------------------------------


def test_called_again_it_moves_the_time_and_nothing_else(aws) -> None:
    first = stop_after(aws, NAME, 2, lambda: NOON + 1)
    assert kept(aws)["ScheduleExpression"] == "at(2027-01-15T10:01:00)"
    assert "2027-01-15 10:01 UTC" in str(first) and "in use or not" in str(first)
    before = kept(aws)
    second = stop_after(aws, NAME, 5, lambda: NOON)
    after = kept(aws)
    assert (second.at - NOON) / 3600 == 5
    assert names(aws) == [NAME]
    for key in ("Target", "ActionAfterCompletion", "FlexibleTimeWindow"):
        assert after[key] == before[key]
    assert after["ActionAfterCompletion"] == "DELETE"


def test_without_the_role_the_error_names_it_and_its_files(aws) -> None:
    iam = aws.session.client("iam")
    trust = iam.get_role(RoleName=ROLE)["Role"]["AssumeRolePolicyDocument"]
    wrong = json.dumps(trust).replace("scheduler.", "events.")
    iam.update_assume_role_policy(RoleName=ROLE, PolicyDocument=wrong)
    try:
        with pytest.raises(AwsError) as refused:
            stop_after(aws, NAME, 1)
    finally:
        document = json.dumps(trust)
        iam.update_assume_role_policy(RoleName=ROLE, PolicyDocument=document)
    for part in ("must allow AWS EventBridge", stop_role(aws), "idle_stop_role_trust"):
        assert part in str(refused.value)
    assert names(aws) == []


def test_its_role_may_delete_the_courses_endpoints_and_nothing_else(aws) -> None:
    (statement,) = json.loads(idle_stop_role_policy(aws))["Statement"]
    assert statement["Action"] == ["sagemaker:DeleteEndpoint"]
    where = f"arn:aws:sagemaker:{aws.region}:{aws.role.split(':')[4]}:endpoint"
    assert fnmatch.fnmatchcase(f"{where}/{NAME}", statement["Resource"])
    assert not fnmatch.fnmatchcase(f"{where}/payroll", statement["Resource"])
    (trust,) = json.loads(idle_stop_role_trust(aws))["Statement"]
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}
    assert trust["Condition"]["StringEquals"]["aws:SourceAccount"] in aws.role


def test_the_caller_may_make_every_call_on_its_own_schedules_only(aws) -> None:
    allowed = {
        action: statement["Resource"]
        for statement in json.loads(iam_policy(aws))["Statement"]
        for action in statement["Action"]
    }
    stop_after(aws, NAME, 1)
    arn = kept(aws)["Arn"]
    for call in (*CALLS, "GetSchedule", "DeleteSchedule"):
        resource = allowed[f"scheduler:{call}"]
        assert fnmatch.fnmatchcase(arn, resource)
        assert not fnmatch.fnmatchcase(arn.replace(NAME, "payroll"), resource)


# --- carried out ----------------------------------------------------------------------


class Endpoint:
    """An endpoint in some state, with nothing behind it."""

    def __init__(self, status: str) -> None:
        self.status, self.failure_reason = status, None
        self.config_name = "none"
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def endpoint(aws, monkeypatch) -> Iterator[Endpoint]:
    """Put an endpoint into the offline AWS, without a container."""
    from moto.sagemaker.models import sagemaker_backends

    known = sagemaker_backends["123456789012"][aws.region].endpoints
    one = Endpoint("InService")

    class Record:
        arn, endpoint_name = f"arn:x:endpoint/{NAME}", NAME
        endpoint_config_name = "none"
        endpoint_status, failure_reason = "InService", None

    known[NAME], ENDPOINTS[NAME] = Record(), one
    yield one
    known.pop(NAME, None)
    ENDPOINTS.pop(NAME, None)


def test_at_its_hour_the_endpoint_goes_and_the_schedule_with_it(aws, endpoint) -> None:
    now = NOON
    schedules = Schedules(lambda: now)
    stop_after(aws, NAME, 2, lambda: NOON)
    now = NOON + 7199
    assert schedules.run_due() == []
    stop_after(aws, NAME, 3, lambda: NOON)  # moved
    now = NOON + 7201
    assert schedules.run_due() == []
    now = NOON + 3 * 3600
    endpoint.status = "Updating"  # refuses, and is asked again
    assert schedules.run_due() == []
    assert names(aws) == [NAME] and not endpoint.stopped
    endpoint.status = "InService"
    assert schedules.run_due() == [NAME]
    assert endpoint.stopped and NAME not in ENDPOINTS
    assert names(aws) == []
    assert schedules.run_due() == []


def test_an_endpoint_that_is_gone_leaves_no_schedule(aws) -> None:
    stop_after(aws, NAME, 1, lambda: NOON)
    assert Schedules(lambda: NOON + 7200).run_due() == []
    assert names(aws) == []


def test_the_offline_aws_looks_at_its_clock(aws, endpoint) -> None:
    stop_after(aws, NAME, 1)
    OfflineAws.current.schedules.clock = lambda: time.time() + 7200
    try:
        deadline = time.monotonic() + 30
        while not endpoint.stopped and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        OfflineAws.current.schedules.clock = time.time
    assert endpoint.stopped


def test_what_is_no_schedule_of_scheduler_is_refused(aws) -> None:
    client = aws.session.client("scheduler")
    request = schedule(aws, NAME, NOON) | {"ScheduleExpression": "tomorrow"}
    with pytest.raises(client.exceptions.ValidationException, match="tomorrow"):
        client.create_schedule(**request)


# --- the ledger -----------------------------------------------------------------------


def test_the_account_lists_it_and_the_guard_takes_its_own_away(aws) -> None:
    said: list[str] = []
    guard = BillingGuard(aws, say=said.append)
    try:
        mine, other = guard.name("faq"), "course-other-faq"
        stop_after(aws, mine, 1)
        stop_after(aws, mine, 2)
        assert [entry.name for entry in guard.entries] == [mine]
        assert kept(aws, mine)["Description"].startswith(f"course-run={guard.run}.")
        request = schedule(aws, other, NOON)
        OfflineAws.current.session.client("scheduler").create_schedule(**request)
        found = {item.name: item for item in look(aws).left if item.kind == "schedule"}
        assert set(found) == {mine, other}
        assert found[mine].end.startswith(
            f"aws scheduler delete-schedule --name {mine}"
        )
        assert guard.remaining() == [f"schedule {mine}"]
        guard.teardown()
        assert names(aws) == [other]
        assert guard.remaining() == []
    finally:
        guard.close()


def test_an_endpoint_that_cannot_be_deleted_keeps_its_stop(
    aws, monkeypatch, endpoint
) -> None:
    with BillingGuard(aws, say=[].append) as guard:
        from utils.deployment.ledger import Entry

        guard.entries.append(Entry("endpoint", NAME, time.time()))
        stop_after(aws, NAME, 1)

        def refuse(*_: Any) -> bool:
            raise RuntimeError("no right")

        with monkeypatch.context() as patched:
            patched.setattr(tagged, "runs_of", refuse)
            with pytest.raises(DeploymentError, match="no right"):
                guard.teardown()
        assert names(aws) == [NAME]
        guard.entries[0].deleted = time.time()
    assert names(aws) == []
