"""Is the AWS account ready for the class? `python -m utils.course check --aws`.

Rights are asked of IAM's simulation, which says whether a call would be allowed and
makes none. Quotas come from Service Quotas, prices from the price list or the snapshot.
Whoever checks needs data/aws/check_policy.json.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.classroom.machine_check import Line, few
from utils.course import CourseError
from utils.deployment.aws import (
    EXECUTION_POLICY,
    JOBS_POLICY,
    JOBS_ROLE_POLICY,
    POLICY,
    PRODUCTION_POLICY,
    PRODUCTION_ROLE_POLICY,
    Aws,
    connect_real,
)
from utils.deployment.prices import PriceList
from utils.web.stack import LESSON_POLICY, STACK_POLICY

SHOWN = 4  # denied actions in a line
# What the lessons ask for on the real AWS, by the quota's name: instance type, what it
# is used for, how many a learner needs at a time, and in which notebook.
NEEDED = (
    ("ml.g5.xlarge", "endpoint usage", 1, "06"),
    ("ml.g5.xlarge", "endpoint usage", 2, "07"),
    ("ml.g5.xlarge", "endpoint usage", 1, "08"),
    ("ml.g5.xlarge", "training job usage", 2, "08"),
    ("ml.g5.xlarge", "spot training job usage", 1, "08"),
    ("ml.g5.12xlarge", "training job usage", 1, "08"),
    ("ml.g5.xlarge", "endpoint usage", 1, "09"),
    # Two endpoints of two machines each, and two more while a version is released.
    ("ml.g5.xlarge", "endpoint usage", 6, "experiments/06_production"),
)
# What for → the policy of which the caller needs every right.
OF_THE_CALLER = {
    "lesson 06": POLICY,
    "lesson 07": LESSON_POLICY,
    "lesson 07's stack": STACK_POLICY,
    "lesson 08": JOBS_POLICY,
    "experiments/06_production": PRODUCTION_POLICY,
}
OF_THE_ROLE = {
    "lesson 06": EXECUTION_POLICY,
    "lesson 08": JOBS_ROLE_POLICY,
    "experiments/06_production": PRODUCTION_ROLE_POLICY,
}
NAME = "check"  # stands for what a pattern leaves open, such as model/course-*


@dataclass(frozen=True)
class Question:
    """One statement of a policy, as IAM's simulation is asked about it.

    Attributes:
        actions: such as "sagemaker:CreateModel".
        resources: ARNs, without wildcards.
        context: keys of its conditions, with a value that fulfils them.
    """

    actions: tuple[str, ...]
    resources: tuple[str, ...]
    context: tuple[tuple[str, str], ...] = ()


def account_lines(aws: Aws | None = None, learners: int = 1) -> Iterator[Line]:
    """Yield what was found in the account.

    Args:
        aws: the account; the one behind the usual credentials by default.
        learners: how many work in it at the same time.
    """
    try:
        aws = aws or connect_real()
        caller = aws.session.client("sts").get_caller_identity()["Arn"]
    except CourseError as error:
        yield Line("AWS", "not connected", str(error))
        return
    yield Line("AWS", f"{caller} in {aws.region}")
    yield Line("role and bucket", f"{aws.role}, {aws.bucket}")
    yield from _rights_lines(aws, caller)
    yield from quota_lines(aws.session, learners)
    yield price_line(aws)


# --- rights ---------------------------------------------------------------------------


def placeholders(
    account: str, region: str, bucket: str = "", role: str = ""
) -> dict[str, str]:
    """Return the values of the placeholders in the policies of data/aws.

    Args:
        account: its twelve digits.
        region: such as "us-east-1"; the partition follows from it.
        bucket: the one that SageMaker's SDK makes by default.
        role: ARN of the role that SageMaker assumes; "" where none is needed.

    Raises:
        CourseError: if one of them cannot be what it should be.
    """
    import boto3

    if not re.fullmatch(r"\d{12}", account):
        raise CourseError(f"The account is {account!r}: give its twelve digits.")
    try:
        partition = boto3.Session().get_partition_for_region(region)
    except Exception as error:
        raise CourseError(f"The region is {region!r}: {error}") from error
    return {
        "Partition": partition,
        "Region": region,
        "Account": account,
        "Bucket": bucket or f"sagemaker-{region}-{account}",
        **({"Role": role} if role else {}),
    }


def filled_in(policy: str | Path, values: Mapping[str, str]) -> str:
    """Return a policy of data/aws with its placeholders filled in.

    Args:
        policy: its path, or its name there.
        values: what `placeholders` returns.

    Raises:
        CourseError: if there is no such policy, or it names a role and none is given.
    """
    file = POLICY.parent / policy
    if not file.is_file():
        known = ", ".join(sorted(one.name for one in POLICY.parent.glob("*.json")))
        raise CourseError(f"data/aws has no {file.name}: give one of {known}.")
    try:
        return string.Template(file.read_text("utf-8")).substitute(values)
    except KeyError as error:
        raise CourseError(f"{file.name} needs a {error.args[0]}: give it.") from error


def questions(policy: Path, values: Mapping[str, str]) -> list[Question]:
    """Return what to ask about a policy, one question for each of its statements.

    Args:
        policy: a file of data/aws.
        values: what `placeholders` returns.
    """
    found = []
    for statement in json.loads(filled_in(policy, values))["Statement"]:
        actions, resources = (
            (one,) if isinstance(one, str) else tuple(one)
            for one in (statement["Action"], statement["Resource"])
        )
        concrete = tuple(
            one if one == "*" else one.replace("*", NAME) for one in resources
        )
        context = tuple(_context(statement.get("Condition", {})))
        found.append(Question(actions, concrete, context))
    return found


def _context(condition: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield keys with a value under which a statement's conditions hold."""
    for keys in condition.values():
        for key, wanted in keys.items():
            value = wanted if isinstance(wanted, str) else wanted[0]
            is_null = value in ("true", "false")  # Null: the key has to be there
            yield key, NAME if is_null else value.replace("*", NAME)


def denied(iam: Any, principal: str, question: Question) -> list[str]:
    """Return the actions that a user or role would be refused, in order.

    Nothing is called but IAM's simulation.

    Args:
        iam: a client of boto3.
        principal: ARN of a user or role.
        question: what to ask.
    """
    pages = iam.get_paginator("simulate_principal_policy").paginate(
        PolicySourceArn=principal,
        ActionNames=list(question.actions),
        ResourceArns=list(question.resources),
        ContextEntries=[
            {
                "ContextKeyName": key,
                "ContextKeyValues": [value],
                "ContextKeyType": "string",
            }
            for key, value in question.context
        ],
    )
    found: dict[str, None] = {}
    for page in pages:
        for result in page["EvaluationResults"]:
            if not _is_allowed(result, len(question.resources)):
                found[result["EvalActionName"]] = None
    return list(found)


def _is_allowed(result: Mapping[str, Any], resources: int) -> bool:
    """Whether an action is allowed; one that knows fewer kinds, for one at least.

    A statement names models and endpoints, and CreateModel knows models only: for what
    an action does not know IAM answers with an implicit denial.
    """
    if result["EvalDecision"] == "allowed":
        return True
    if result["EvalDecision"] == "explicitDeny" or resources == 1:
        return False
    of_each = [
        one["EvalResourceDecision"] for one in result.get("ResourceSpecificResults", [])
    ]
    return "allowed" in of_each and "explicitDeny" not in of_each


def principal_of(session: Any, arn: str) -> str:
    """Return the user or role behind a caller's ARN, which may name a session.

    Raises:
        CourseError: for the root user, about whom IAM simulates nothing.
    """
    kind, _, name = arn.split(":", 5)[5].partition("/")
    if kind == "root":
        raise CourseError(
            "You are the account's root user, whom no policy limits: teach with a user "
            "or role that has data/aws/iam_policy.json."
        )
    if kind != "assumed-role":
        return arn
    role = session.client("iam").get_role(RoleName=name.partition("/")[0])
    return role["Role"]["Arn"]


def rights_line(session: Any, name: str, principal: str, asked: list[Question]) -> Line:
    """Say what a principal may not do of all that is asked.

    Args:
        session: of boto3.
        name: of the line.
        principal: ARN of a user or role.
        asked: what to ask.
    """
    iam = session.client("iam")
    missing: dict[str, None] = {}
    for question in asked:
        missing |= dict.fromkeys(denied(iam, principal, question))
    count = len({action for question in asked for action in question.actions})
    if not missing:
        return Line(name, f"all {count} actions are allowed to {principal}")
    told = few(list(missing), SHOWN)
    return Line(
        name,
        f"{len(missing)} of {count} actions are refused to {principal}: {told}",
        "Attach the policy that the README names for it.",
    )


def _rights_lines(aws: Aws, caller: str) -> Iterator[Line]:
    from botocore.exceptions import BotoCoreError, ClientError

    account = aws.role.split(":")[4]
    values = placeholders(account, aws.region, aws.bucket, aws.role)
    try:
        of = {"your": principal_of(aws.session, caller), "the role's": aws.role}
        for who, policies in (("your", OF_THE_CALLER), ("the role's", OF_THE_ROLE)):
            for what, policy in policies.items():
                name = f"{who} rights for {what}"
                asked = questions(policy, values)
                yield rights_line(aws.session, name, of[who], asked)
    except CourseError as error:
        yield Line("rights", "cannot be simulated", str(error))
    except ClientError as error:
        code = error.response["Error"]["Code"]
        yield Line(
            "rights",
            f"{error.operation_name} answers {code}",
            "Attach data/aws/check_policy.json to whoever checks, and try again.",
        )
    except BotoCoreError as error:
        remedy = "Let this machine reach iam.amazonaws.com: look at network and proxy."
        yield Line("rights", str(error), remedy)


# --- quotas and prices ----------------------------------------------------------------


def quotas(session: Any) -> dict[str, float]:
    """Return the account's quotas of SageMaker: name → how many.

    What was never changed for this account is not among the applied quotas: AWS's
    default holds then.
    """
    client = session.client("service-quotas")
    found: dict[str, float] = {}
    for call in ("list_aws_default_service_quotas", "list_service_quotas"):
        for page in client.get_paginator(call).paginate(ServiceCode="sagemaker"):
            found |= {one["QuotaName"]: one["Value"] for one in page["Quotas"]}
    return found


def quota_lines(session: Any, learners: int = 1) -> Iterator[Line]:
    """Yield a line for each quota that a notebook needs.

    Args:
        session: of boto3.
        learners: how many work at the same time.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = quotas(session)
    except (BotoCoreError, ClientError) as error:
        remedy = "Attach data/aws/check_policy.json to whoever checks, and try again."
        yield Line("quotas", str(error), remedy)
        return
    for kind, use, each, notebook in NEEDED:
        name = f"{kind} for {use}"
        has, needed = found.get(name, 0.0), each * learners
        line = Line(f"quota for {notebook}", f"{has:g} of {name}, {needed} needed")
        if has < needed:
            remedy = f"Ask for {needed} under Service Quotas; it can take days."
            line = Line(line.name, line.found, remedy)
        yield line


def price_line(aws: Aws) -> Line:
    """Say whether the prices of what the lessons start are known in this region."""
    prices = PriceList(aws)
    unknown, known = [], []
    uses = ((kind, _use_of(quota)) for kind, quota, *_ in NEEDED)
    for kind, use in dict.fromkeys(uses):
        price = prices.of(kind, use)
        (known if price else unknown).append(str(price or f"{kind}, {use}"))
    if not unknown:
        return Line("prices", "; ".join(known))
    found = f"not known in {aws.region}: {', '.join(unknown)}"
    remedy = "Allow pricing:GetProducts, or add a line to data/aws/prices.csv."
    return Line("prices", found, remedy)


def _use_of(quota: str) -> str:
    return "training" if "training" in quota else "hosting"
