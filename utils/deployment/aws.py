"""The account that a notebook works with: the real one, or the offline one.

Session, role and bucket; the rights that the course needs; waiting for an endpoint, and
reading its log. The offline AWS is reached through this module only.
"""

from __future__ import annotations

import functools
import os
import re
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError, RunConfig
from utils.offline_aws.control_plane import OfflineAws
from utils.offline_aws.names import LOG_GROUPS, forget_sdk_clients
from utils.offline_aws.parameters import violations

if TYPE_CHECKING:
    import boto3

__all__ = [
    "EXECUTION_POLICY",
    "FIRST_POLL",
    "JOBS_POLICY",
    "JOBS_ROLE_POLICY",
    "LOG_GROUPS",
    "POLICY",
    "PRODUCTION_POLICY",
    "Aws",
    "AwsError",
    "DeploymentError",
    "account_to_look_at",
    "artifact_bucket",
    "connect_aws",
    "connect_real",
    "endpoint_log",
    "execution_role",
    "execution_role_policy",
    "forget_sdk_clients",
    "iam_policy",
    "idle_stop_role_policy",
    "idle_stop_role_trust",
    "jobs_policy",
    "jobs_role_policy",
    "production_policy",
    "production_role_policy",
    "violations",
    "wait_until_in_service",
]

ROLE_VARIABLE = "SAGEMAKER_ROLE_ARN"
BUCKET_VARIABLE = "SAGEMAKER_BUCKET"
FIRST_POLL = 0.5  # seconds between looks at an endpoint; the pause grows …
LONGEST_POLL = 15  # … up to this
LOG_LINES = 12
# SageMaker ends a reply after 60 seconds; botocore's own description of InvokeEndpoint
# says that the SDK's socket should wait 70 where a model takes nearly as long.
READ_TIMEOUT = 70
POLICY = ROOT / "data" / "aws" / "iam_policy.json"
EXECUTION_POLICY = ROOT / "data" / "aws" / "execution_role_policy.json"
PRODUCTION_POLICY = ROOT / "data" / "aws" / "production_policy.json"
PRODUCTION_ROLE_POLICY = ROOT / "data" / "aws" / "production_role_policy.json"
JOBS_POLICY = ROOT / "data" / "aws" / "jobs_policy.json"
JOBS_ROLE_POLICY = ROOT / "data" / "aws" / "jobs_role_policy.json"
STOP_POLICY = ROOT / "data" / "aws" / "idle_stop_role_policy.json"
STOP_TRUST = ROOT / "data" / "aws" / "idle_stop_role_trust.json"


class AwsError(CourseError):
    """AWS that cannot be used as it is set up; the message says what to change."""


class DeploymentError(CourseError):
    """An endpoint that did not come into service, or something not deleted."""


# --- connecting -----------------------------------------------------------------------


@dataclass(frozen=True)
class Aws:
    """What a notebook needs of AWS.

    Attributes:
        session: pass it to boto3 and, as `session=`, to the SageMaker SDK.
        region: where everything is created.
        role: ARN of the role that SageMaker assumes to read the artifact.
        bucket: where artifact and data go.
        real: whether this is the AWS that bills.
    """

    session: boto3.Session = field(repr=False)
    region: str
    role: str
    bucket: str
    real: bool = field(default=False, repr=False)


def connect_aws(config: RunConfig) -> Aws:
    """Connect to AWS as `config.aws` says: offline on this machine, or the real one.

    Local: starts the offline AWS of this process, or returns the one that runs. From
    then on every AWS client of this process talks to it, whatever credentials the
    environment holds.

    Real: the account behind the usual boto3 credentials. The execution role comes from
    SAGEMAKER_ROLE_ARN, or is the role under which SageMaker Studio runs this; the
    bucket comes from SAGEMAKER_BUCKET, or is SageMaker's default one if it exists.

    First used in lesson 06, section 5.

    Raises:
        AwsError: if credentials, region, role or bucket are missing.
    """
    if config.aws == "local":
        offline = OfflineAws.running()
        key = offline.session.get_credentials()
        session = _session_with(key.access_key, key.secret_key, offline.region)
        return Aws(session, offline.region, offline.role, offline.bucket)
    return connect_real()


def connect_real() -> Aws:
    """Connect to the account behind the usual credentials; see `connect_aws`."""
    session, identity = _real_session()
    role = execution_role(session, identity["Arn"])
    bucket = artifact_bucket(session, identity["Account"])
    return Aws(session, session.region_name, role, bucket, real=True)


def account_to_look_at(config: RunConfig) -> Aws:
    """Return the account that `config.aws` names, to be read only.

    It needs neither role nor bucket: whoever has lost both may still be billed.

    Raises:
        AwsError: if the real account cannot be reached, or no offline AWS runs here.
    """
    if config.aws == "local":
        if OfflineAws.current is None:
            raise AwsError(
                "COURSE_AWS=local: an offline AWS lives only inside the process that "
                "started it, such as a notebook's kernel, and ends with it. It costs "
                "nothing, and from here nothing of it can be seen. To look at the "
                "account behind your credentials, set COURSE_AWS=real."
            )
        return connect_aws(config)
    session, identity = _real_session()
    named = os.environ.get(BUCKET_VARIABLE, "").strip()
    bucket = named or _sdk_bucket(session, identity["Account"])
    return Aws(session, session.region_name, "", bucket, real=True)


@functools.cache
def _patient_session() -> type[boto3.Session]:
    """Return the class of the course's sessions, whose clients ask a model once.

    A model that takes longer than botocore's 60 seconds is not asked again while it
    still works on the first request. By default boto3 asks up to five times, the
    SageMaker SDK up to eleven: its `Config(retries={"max_attempts": 10})` counts
    without the first. Both make their client for InvokeEndpoint here, through
    `Session.client`. Clients for all else try again as ever.
    """
    import boto3
    from botocore.config import Config

    class PatientSession(boto3.Session):
        def client(self, service_name: str, *given: Any, **named: Any) -> Any:
            if service_name == "sagemaker-runtime":
                patient = Config(
                    read_timeout=READ_TIMEOUT, retries={"total_max_attempts": 1}
                )
                config = named.get("config") or Config()
                named["config"] = config.merge(patient)
            return super().client(service_name, *given, **named)

    return PatientSession


@functools.cache
def _session_with(access: str, secret: str, region: str) -> boto3.Session:
    """Return the course's session with a key, the same each time."""
    return _patient_session()(access, secret, region_name=region)


def _real_session() -> tuple[boto3.Session, dict[str, str]]:
    """Return a session with the usual credentials, and who that is."""
    from botocore.exceptions import BotoCoreError, ClientError

    if OfflineAws.current is not None:
        raise AwsError(
            "This process is connected to the offline AWS. Restart the kernel to "
            "change to COURSE_AWS=real."
        )
    session = _patient_session()()
    if session.region_name is None:
        raise AwsError("No AWS region is set. Set AWS_DEFAULT_REGION, say us-east-1.")
    try:
        identity = session.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        raise AwsError(
            f"COURSE_AWS=real needs AWS credentials, and there are none that work "
            f"({error}). Run `aws configure sso`, or set COURSE_AWS=local."
        ) from error
    return session, identity


def execution_role(session: boto3.Session, caller: str) -> str:
    """Return the ARN of the role that SageMaker is to assume.

    The caller's own ARN would not do: a user cannot be assumed, and for a role under
    which someone is logged in it names the session, not the role.

    Raises:
        AwsError: if SAGEMAKER_ROLE_ARN is not set and the caller runs under no role.
    """
    from botocore.exceptions import ClientError

    given = os.environ.get(ROLE_VARIABLE, "").strip()
    if given:
        if not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/.+", given):
            raise AwsError(
                f"{ROLE_VARIABLE} is {given!r}. Set it to a role's ARN, such as "
                "arn:aws:iam::123456789012:role/SageMakerExecution."
            )
        return given
    assumed = re.fullmatch(r"arn:aws[\w-]*:sts::\d+:assumed-role/([^/]+)/.+", caller)
    if not assumed:
        raise AwsError(
            f"You are {caller}, which SageMaker cannot assume. Set {ROLE_VARIABLE} to "
            "the ARN of a role that trusts sagemaker.amazonaws.com."
        )
    try:
        return session.client("iam").get_role(RoleName=assumed[1])["Role"]["Arn"]
    except ClientError as error:
        raise AwsError(
            f"The ARN of the role {assumed[1]} cannot be read ({error}). Set "
            f"{ROLE_VARIABLE} to it."
        ) from error


def artifact_bucket(session: boto3.Session, account: str) -> str:
    """Return the bucket for artifact and data: a named one, never a guessed one.

    Raises:
        AwsError: if it does not exist, or belongs to another account.
    """
    from botocore.exceptions import ClientError

    default = _sdk_bucket(session, account)
    name = os.environ.get(BUCKET_VARIABLE, "").strip() or default
    try:
        session.client("s3").head_bucket(Bucket=name, ExpectedBucketOwner=account)
    except ClientError as error:
        raise AwsError(
            f"The bucket {name} cannot be used ({error}). Create a bucket in "
            f"{session.region_name} and name it in {BUCKET_VARIABLE}."
        ) from error
    return name


def _sdk_bucket(session: boto3.Session, account: str) -> str:
    """Return the name of the bucket that SageMaker's SDK makes by default."""
    return f"sagemaker-{session.region_name}-{account}"


# --- what the course may do there -----------------------------------------------------


def iam_policy(aws: Aws) -> str:
    """Return the caller's policy with the course's rights, filled in for this account.

    First used in lesson 06, section 5.
    """
    return _filled_in(POLICY, aws)


def execution_role_policy(aws: Aws) -> str:
    """Return the policy of the role that SageMaker assumes, filled in likewise.

    With it SageMaker pulls the image, reads the archive, and writes logs and metrics.
    Without the four actions of ECR an endpoint fails before its container starts
    (aws/deep-learning-containers #759, sagemaker-python-sdk #2002).
    """
    return _filled_in(EXECUTION_POLICY, aws)


def production_policy(aws: Aws) -> str:
    """Return what experiment 06_production needs beyond `iam_policy`, filled in.

    Its statements on scaling are those of AWS's page "Auto scaling prerequisites"
    (SageMaker AI's developer guide), narrowed to SageMaker and the course's names.
    """
    return _filled_in(PRODUCTION_POLICY, aws)


def production_role_policy(aws: Aws) -> str:
    """Return what the role needs there beyond `execution_role_policy`, filled in.

    SageMaker writes asynchronous replies under it, and watches the alarms of an update
    ("Auto-Rollback Configuration and Monitoring", developer guide).
    """
    return _filled_in(PRODUCTION_ROLE_POLICY, aws)


def jobs_policy(aws: Aws) -> str:
    """Return what jobs and pipelines need beyond `iam_policy`, filled in.

    What a pipeline of the course has started is known by the tag that SageMaker puts on
    it, as such a job has a name of SageMaker's.
    """
    return _filled_in(JOBS_POLICY, aws)


def jobs_role_policy(aws: Aws) -> str:
    """Return what the role needs for them beyond `execution_role_policy`, filled in.

    Jobs write outputs, checkpoints and logs under it, and pipelines start jobs ("How to
    use SageMaker AI execution roles", developer guide, on CreateTrainingJob).
    """
    return _filled_in(JOBS_ROLE_POLICY, aws)


def idle_stop_role_policy(aws: Aws) -> str:
    """Return the rights of the role under which Scheduler deletes an endpoint.

    See `utils.deployment.idle_stop`.
    """
    return _filled_in(STOP_POLICY, aws)


def idle_stop_role_trust(aws: Aws) -> str:
    """Return that role's trust policy: Scheduler, for this account's schedules."""
    return _filled_in(STOP_TRUST, aws)


def _filled_in(policy: Path, aws: Aws) -> str:
    """Fill in a policy; the partition (China's, GovCloud's) follows from the region."""
    return string.Template(policy.read_text("utf-8")).substitute(
        Partition=aws.session.get_partition_for_region(aws.region),
        Region=aws.region,
        Account=aws.role.split(":")[4],
        Bucket=aws.bucket,
        Role=aws.role,
    )


# --- waiting for an endpoint ----------------------------------------------------------


def wait_until_in_service(
    aws: Aws, endpoint: Any, say: Callable[[str], None] = print
) -> None:
    """Wait until an endpoint is created or updated, saying each change of its status.

    First used in lesson 06, section 7.

    Args:
        aws: where the log is, should it fail.
        endpoint: a `sagemaker.core.resources.Endpoint`.
        say: gets a line for each new status.

    Raises:
        DeploymentError: if it fails, with the reason and the end of the worker's log;
            also if an update fails, and the endpoint serves as before.
    """
    status, pause = None, FIRST_POLL
    client = aws.session.client("sagemaker")
    while status != "InService":
        # Not `endpoint.refresh`, which keeps an old failure's reason.
        found = client.describe_endpoint(EndpointName=endpoint.endpoint_name)
        if found["EndpointStatus"] != status:
            status = found["EndpointStatus"]
            say(status)
        reason = found.get("FailureReason")
        if status in ("Failed", "OutOfService", "UpdateRollbackFailed") or (
            status == "InService" and reason
        ):
            lines = [str(reason)]
            if status == "InService":
                lines.append(
                    "The update failed: the endpoint serves the previous configuration."
                )
            log = endpoint_log(aws, endpoint.endpoint_name)
            raise DeploymentError("\n".join([*lines, "Its log ends:", *log]))
        if status != "InService":
            time.sleep(pause)
            pause = min(pause * 1.2, LONGEST_POLL)
    endpoint.refresh()


def endpoint_log(aws: Aws, name: str, lines: int = LOG_LINES) -> list[str]:
    """Return the last lines that an endpoint's containers wrote to CloudWatch."""
    from botocore.exceptions import ClientError

    client = aws.session.client("logs")
    try:
        events = client.filter_log_events(logGroupName=LOG_GROUPS + name)["events"]
    except ClientError:
        return []
    return [event["message"] for event in events][-lines:]
