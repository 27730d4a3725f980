"""The account: connecting to the real AWS or the offline one, rights, waiting."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from utils.course import run_config
from utils.deployment import aws as account
from utils.deployment.aws import (
    Aws,
    AwsError,
    DeploymentError,
    artifact_bucket,
    connect_aws,
    execution_role,
    iam_policy,
    wait_until_in_service,
)

# --- connecting -----------------------------------------------------------------------


def test_connecting_again_gives_the_same(aws) -> None:
    assert connect_aws(run_config({"COURSE_AWS": "local"})) == aws
    assert aws.role.endswith(":role/course-sagemaker-execution")
    aws.session.client("s3").head_bucket(Bucket=aws.bucket)
    role = aws.session.client("iam").get_role(RoleName=aws.role.split("/")[-1])["Role"]
    principal = role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]
    assert principal == {"Service": "sagemaker.amazonaws.com"}


def test_changing_to_the_real_aws_needs_a_new_process(aws) -> None:
    with pytest.raises(AwsError, match="Restart the kernel"):
        connect_aws(run_config({"COURSE_AWS": "real"}))


# --- the real AWS, as far as moto can stand in ----------------------------------------

CALLER = "arn:aws:sts::123456789012:assumed-role/Studio/learner"


def test_role_from_the_variable(aws, monkeypatch) -> None:
    given = "arn:aws:iam::123456789012:role/path/Execution"
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", f" {given} ")
    assert execution_role(aws.session, CALLER) == given
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", "Execution")
    with pytest.raises(AwsError, match="Set it to a role's ARN"):
        execution_role(aws.session, CALLER)


def test_role_of_studio_is_looked_up_and_a_user_is_refused(aws) -> None:
    aws.session.client("iam").create_role(
        RoleName="Studio", Path="/service-role/", AssumeRolePolicyDocument="{}"
    )
    role = execution_role(aws.session, CALLER)
    assert role == "arn:aws:iam::123456789012:role/service-role/Studio"
    with pytest.raises(AwsError, match="SageMaker cannot assume"):
        execution_role(aws.session, "arn:aws:iam::123456789012:user/me")
    with pytest.raises(AwsError, match="cannot be read"):
        execution_role(aws.session, CALLER.replace("Studio", "Gone"))


def test_bucket_is_named_never_guessed(aws, monkeypatch) -> None:
    with pytest.raises(AwsError, match="sagemaker-us-east-1-123456789012"):
        artifact_bucket(aws.session, "123456789012")
    monkeypatch.setenv("SAGEMAKER_BUCKET", aws.bucket)
    assert artifact_bucket(aws.session, "123456789012") == aws.bucket


# --- the policy -----------------------------------------------------------------------


def test_policy_is_filled_in_and_grants_nothing_beyond_the_course(aws) -> None:
    text = iam_policy(aws)
    assert "${" not in text
    policy = json.loads(text)
    assert set(policy) == {"Version", "Statement"}
    for statement in policy["Statement"]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        assert not any("*" in action for action in actions), statement["Sid"]
        if statement["Resource"] == "*":
            reads = ("List", "Describe", "Get")
            assert all(action.split(":")[1].startswith(reads) for action in actions)
        if "iam:PassRole" in actions:
            assert statement["Resource"] == aws.role
            assert "iam:PassedToService" in json.dumps(statement["Condition"])


# --- waiting for an endpoint ----------------------------------------------------------


class Endpoint:
    """An endpoint of an account in which every look at it gives the next answer."""

    endpoint_name = "course-1-faq"

    def __init__(self, *answers: dict[str, str]) -> None:
        self.answers = list(answers)
        self.refreshed = False
        self.aws = Aws(self, "us-east-1", "role", "bucket")

    def client(self, service: str) -> Any:
        """Stand in for the session too."""
        events = [{"message": f"line {number}"} for number in range(20)]
        return {
            "sagemaker": SimpleNamespace(
                describe_endpoint=lambda EndpointName: self.answers.pop(0)
            ),
            "logs": SimpleNamespace(
                filter_log_events=lambda logGroupName: {"events": events}
            ),
        }[service]

    def refresh(self) -> None:
        self.refreshed = True


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Return the pauses between looks, none of which takes any time."""
    pauses: list[float] = []
    monkeypatch.setattr(account, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


def test_waiting_says_each_change_and_looks_less_and_less_often(pauses) -> None:
    creating, ready = {"EndpointStatus": "Creating"}, {"EndpointStatus": "InService"}
    endpoint = Endpoint(*[creating] * 30, ready)
    said: list[str] = []
    wait_until_in_service(endpoint.aws, endpoint, said.append)
    assert said == ["Creating", "InService"]
    assert endpoint.refreshed
    assert pauses[0] == account.FIRST_POLL
    assert pauses == sorted(pauses)
    assert pauses[-1] == account.LONGEST_POLL


@pytest.mark.parametrize("status", ["Failed", "OutOfService", "UpdateRollbackFailed"])
def test_waiting_for_what_fails_tells_the_reason_and_the_log(pauses, status) -> None:
    endpoint = Endpoint({"EndpointStatus": status, "FailureReason": "no room"})
    with pytest.raises(DeploymentError) as failure:
        wait_until_in_service(endpoint.aws, endpoint, lambda _: None)
    lines = str(failure.value).splitlines()
    assert lines[:2] == ["no room", "Its log ends:"]
    assert lines[2:] == [f"line {n}" for n in range(20 - account.LOG_LINES, 20)]


def test_waiting_for_an_update_that_fails_says_what_serves(pauses) -> None:
    answer = {"EndpointStatus": "InService", "FailureReason": "no room"}
    endpoint = Endpoint({"EndpointStatus": "Updating"}, answer)
    with pytest.raises(DeploymentError, match="serves the previous configuration"):
        wait_until_in_service(endpoint.aws, endpoint, lambda _: None)
