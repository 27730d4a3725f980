"""The account: connecting to the real AWS or the offline one, rights, waiting."""

from __future__ import annotations

import dataclasses
import fnmatch
import http.server
import json
import re
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ReadTimeoutError
from sagemaker.core import image_uris, resources

from utils.course import run_config
from utils.deployment import aws as account
from utils.deployment.aws import (
    LOG_GROUPS,
    Aws,
    AwsError,
    DeploymentError,
    artifact_bucket,
    connect_aws,
    execution_role,
    execution_role_policy,
    iam_policy,
    idle_stop_role_policy,
    jobs_policy,
    jobs_role_policy,
    production_policy,
    production_role_policy,
    wait_until_in_service,
)
from utils.deployment.idle_stop import stop_role

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


POLICIES = pytest.mark.parametrize(
    "write",
    [
        iam_policy,
        execution_role_policy,
        idle_stop_role_policy,
        jobs_policy,
        jobs_role_policy,
        production_policy,
        production_role_policy,
    ],
)
# What AWS lets nobody narrow down to a resource, and which reads nothing.
WRITES_ANYWHERE = {"cloudwatch:PutMetricData"}


def actions_of(statement: dict[str, Any]) -> list[str]:
    actions = statement["Action"]
    return [actions] if isinstance(actions, str) else actions


@POLICIES
def test_policy_is_filled_in_and_grants_nothing_beyond_the_course(aws, write) -> None:
    text = write(aws)
    assert "${" not in text
    policy = json.loads(text)
    assert set(policy) == {"Version", "Statement"}
    for statement in policy["Statement"]:
        actions = actions_of(statement)
        assert not any("*" in action for action in actions), statement["Sid"]
        if statement["Resource"] == "*":
            reads = ("List", "Describe", "Get")
            beyond = set(actions) - WRITES_ANYWHERE
            assert all(action.split(":")[1].startswith(reads) for action in beyond)
        if "iam:PassRole" in actions:
            to = statement["Condition"]["StringEquals"]["iam:PassedToService"]
            roles = {
                "sagemaker.amazonaws.com": aws.role,
                "scheduler.amazonaws.com": stop_role(aws),
            }
            assert statement["Resource"] == roles[to]


@POLICIES
def test_each_action_is_a_call_that_aws_has(aws, write) -> None:
    """Held to botocore's model, but for what is a right and no call (IAM's pages)."""
    no_calls = {
        "iam:PassRole",
        "sagemaker:InvokeEndpoint",  # of another service model, the runtime's
        "sagemaker:InvokeEndpointAsync",
        "sagemaker:InvokeEndpointWithResponseStream",
        "s3:ListBucket",
        "s3:ListBucketVersions",
        "s3:ListBucketMultipartUploads",
        "s3:GetObjectVersion",
        "s3:DeleteObjectVersion",
    }
    session = botocore.session.get_session()
    for statement in json.loads(write(aws))["Statement"]:
        for action in set(actions_of(statement)) - no_calls:
            service, operation = action.split(":")
            assert operation in session.get_service_model(service).operation_names


def test_execution_role_can_pull_read_and_log(aws) -> None:
    """What SageMaker does under it, on the names that the lesson gives."""
    name, account_id = "course-1-faq", aws.role.split(":")[4]
    image = image_uris.retrieve("djl-lmi", region=aws.region, version="0.36.0")
    registry, repository = image.partition(":")[0].split("/")
    ecr = f"arn:aws:ecr:{aws.region}:{registry.split('.')[0]}:repository/{repository}"
    group = f"arn:aws:logs:{aws.region}:{account_id}:log-group:{LOG_GROUPS}{name}"
    bucket = f"arn:aws:s3:::{aws.bucket}"
    needed = {
        "s3:GetObject": f"{bucket}/{name}/model.tar.gz",
        "s3:ListBucket": bucket,
        "logs:CreateLogGroup": group,
        "logs:CreateLogStream": f"{group}:log-stream:AllTraffic/i-1",
        "logs:DescribeLogStreams": f"{group}:log-stream:",
        "logs:PutLogEvents": f"{group}:log-stream:AllTraffic/i-1",
        "cloudwatch:PutMetricData": "*",
        "ecr:GetAuthorizationToken": "*",
        "ecr:BatchCheckLayerAvailability": ecr,
        "ecr:GetDownloadUrlForLayer": ecr,
        "ecr:BatchGetImage": ecr,
    }
    granted = {
        action: statement["Resource"]
        for statement in json.loads(execution_role_policy(aws))["Statement"]
        for action in actions_of(statement)
    }
    assert set(granted) == set(needed)
    for action, resource in needed.items():
        assert fnmatch.fnmatchcase(resource, granted[action]), action
    assert not fnmatch.fnmatchcase(f"{bucket}/payroll.csv", granted["s3:GetObject"])


@POLICIES
@pytest.mark.parametrize(
    "region, partition",
    [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eu-west-1", "aws")],
)
def test_partition_follows_from_the_region(aws, write, region, partition) -> None:
    role = f"arn:{partition}:iam::123456789012:role/Execution"
    text = write(dataclasses.replace(aws, region=region, role=role))
    found = set(re.findall(r'"arn:([^:]*):', text))
    assert found == {partition}


# --- asking a model -------------------------------------------------------------------


@pytest.fixture
def silent_model() -> Iterator[tuple[str, list[str]]]:
    """A server that takes requests and answers none: its address, and the requests."""
    asked: list[str] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            over.wait(30)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    over.set()
    server.shutdown()
    server.server_close()


def ask_with_boto3(aws: Aws) -> None:
    client = aws.session.client("sagemaker-runtime")
    client.invoke_endpoint(EndpointName="faq", Body=b"{}")


def ask_with_the_sdk(aws: Aws) -> None:
    endpoint = resources.Endpoint(endpoint_name="faq")
    endpoint.invoke(body=b"{}", session=aws.session, region=aws.region)


@pytest.mark.parametrize("ask", [ask_with_boto3, ask_with_the_sdk])
def test_a_model_that_is_too_slow_is_asked_once(
    aws, silent_model, monkeypatch, ask
) -> None:
    url, asked = silent_model
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url)
    monkeypatch.setattr(account, "READ_TIMEOUT", 0.3)
    account.forget_sdk_clients()
    with pytest.raises(ReadTimeoutError):
        ask(aws)
    account.forget_sdk_clients()
    assert asked == ["/endpoints/faq/invocations"]


def test_only_what_asks_a_model_waits_longer_and_never_tries_again(aws) -> None:
    config = aws.session.client("sagemaker-runtime").meta.config
    assert config.read_timeout == account.READ_TIMEOUT == 70
    assert config.retries["total_max_attempts"] == 1
    own = Config(retries={"max_attempts": 10}, user_agent_extra="mine")
    config = aws.session.client("sagemaker-runtime", config=own).meta.config
    assert config.retries["total_max_attempts"] == 1
    assert config.user_agent_extra == "mine"
    for service in ("s3", "sagemaker"):
        config = aws.session.client(service).meta.config
        assert "total_max_attempts" not in config.retries


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
