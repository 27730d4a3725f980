"""Pack the function, deploy the template to AWS, and remove all of it with one call.

`package` makes the archive that Lambda runs, `deploy` has CloudFormation make what the
template says and uploads the page, `remove` takes everything back. A billing guard
notes the stack when it is made and removes it with the run's other things, before the
endpoint. The offline AWS does not play CloudFormation: there the same app is called in
this process, in Lambda's own Python client (`utils.web.runtime_api`) or by uvicorn.

Sources: botocore's models; AWS's Developer Guide of Lambda, "Working with .zip file
archives for Python Lambda functions" and "Lambda quotas". It was not run on AWS.
"""

from __future__ import annotations

import hashlib
import json
import string
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.course import ROOT
from utils.deployment import stacks
from utils.deployment.aws import (
    FIRST_POLL,
    LONGEST_POLL,
    Aws,
    DeploymentError,
)
from utils.deployment.billing import BillingGuard
from utils.files import write_file
from utils.web.expansion import TEMPLATE

SERVICE = Path(__file__).with_name("service")
PAGE = Path(__file__).with_name("page")
LESSON_POLICY = ROOT / "data" / "aws" / "web_policy.json"
STACK_POLICY = ROOT / "data" / "aws" / "web_stack_policy.json"
BOUNDARY_POLICY = ROOT / "data" / "aws" / "web_boundary_policy.json"
# The statement that lets its holder make roles.
ROLE_STATEMENT = "MakeItsRole"
# Of the Lambda runtime python3.12 on x86_64; pip takes wheels for it only.
PLATFORM = "manylinux2014_x86_64"
PYTHON = "3.12"
MOST_UNPACKED = 250 * 2**20  # bytes: Lambda's quota for a function with its layers
MOST_TEMPLATE = 51_200  # bytes of a template that is sent and not uploaded
# Neither is read in Lambda; both differ from one machine to the next.
LEFT_OUT = ("__pycache__", "bin")
LEFT_OUT_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can name
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
# Written down, for what Python's own table says differs from one machine to the next.
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
# The page names its files; they must not lag behind it for longer than this.
KEEP = {".html": "no-cache"}
KEEP_OTHERS = "public, max-age=300"
NO_CHANGE = ("didn't contain changes", "No updates are to be performed")


# --- the function's archive -----------------------------------------------------------


def package(folder: Path, service: Path = SERVICE) -> Path:
    """Pack the function with its requirements; the same content makes the same bytes.

    Its handler is `service.lambda_function.handler`. The packages are those that pip
    finds for Lambda's machine, not for this one.

    Args:
        folder: where the archive goes.
        service: the package that Lambda runs, with its requirements.txt.

    Returns:
        The archive, named by the digest of its content.

    Raises:
        DeploymentError: if a requirement has no wheel for Lambda, or all is too large.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        _install(service / "requirements.txt", root)
        members = dict(_members(root, root))
        members |= {
            f"{service.name}/{name}": file for name, file in _members(service, service)
        }
        size = sum(file.stat().st_size for file in members.values())
        if size > MOST_UNPACKED:
            raise DeploymentError(
                f"The function has {size / 2**20:.0f} MiB unpacked, and Lambda takes "
                f"{MOST_UNPACKED // 2**20}. Shorten {service / 'requirements.txt'}."
            )
        digest = hashlib.sha256()
        for name, file in sorted(members.items()):
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
        return write_file(
            folder / f"function-{digest.hexdigest()[:16]}.zip",
            lambda archive: _zip(archive, members),
        )


def _install(requirements: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    command += ["--disable-pip-version-check", "--no-warn-conflicts"]
    command += ["--target", str(target), "--platform", PLATFORM]
    command += ["--implementation", "cp", "--python-version", PYTHON]
    command += ["--only-binary=:all:", "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeploymentError(
            f"pip cannot install {requirements} for Lambda ({PLATFORM}, Python "
            f"{PYTHON}):\n{done.stderr.strip()}"
        )


def _members(root: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder that belong into the archive, with their names."""
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(root)
        skipped = set(LEFT_OUT) & set(inner.parts[:-1])
        info = file.name in LEFT_OUT_FILES and file.parent.suffix == ".dist-info"
        if file.is_file() and not skipped and not info:
            yield inner.as_posix(), file


def _zip(archive: Path, members: dict[str, Path]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, file in sorted(members.items()):
            member = zipfile.ZipInfo(name, EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3  # Unix, whatever this machine is
            member.external_attr = 0o644 << 16  # Lambda runs it as another user
            stream.writestr(member, file.read_bytes())


# --- deploying ------------------------------------------------------------------------


def deploy(
    aws: Aws,
    guard: BillingGuard,
    endpoint: str,
    versions: list[dict[str, Any]],
    hourly_price: float,
    *,
    folder: Path,
    page: Path = PAGE,
    template: Path = TEMPLATE,
    say: Callable[[str], None] = print,
    **parameters: str | float,
) -> dict[str, str]:
    """Make the stack, or change it to what the template now says; upload the page.

    First used in lesson 07, section 10.

    Args:
        aws: the account. The offline one makes no stack, and says so.
        guard: names and watches the stack.
        endpoint: name of the endpoint that answers; it is in service. Its variant with
            the most traffic is the one that is scaled, unless VariantName says another.
        versions: what WEB_VERSIONS holds; see `utils.web.service.settings`.
        hourly_price: US dollars for one of its machines.
        folder: where the function's archive is made.
        page: folder with index.html and what it needs.
        template: of SAM.
        say: gets a line for each new status.
        **parameters: the template's others, such as `Rate=2` or `KeepTexts=1`.

    Returns:
        The template's outputs: PageUrl, ApiUrl, ApiKeyId and so on; none offline.

    Raises:
        DeploymentError: if it fails, with the resources that failed and AWS's reasons.
    """
    if not aws.real:
        say(
            "Nothing is deployed: the offline AWS does not play CloudFormation. Here "
            "utils.web.serving serves the app; COURSE_AWS=real deploys it, and bills."
        )
        return {}
    name = guard.name("web")
    variant = _main_variant(aws, endpoint)
    code = _upload_code(aws, package(folder), name)
    given = {
        "EndpointName": endpoint,
        "VariantName": variant,
        "Versions": json.dumps(versions, ensure_ascii=False),
        "HourlyPrice": hourly_price,
        **code,
        **parameters,
    }
    outputs = create_or_change(aws, name, template, given, say)
    upload_page(aws, page, outputs["BucketName"])
    return outputs


def _main_variant(aws: Aws, endpoint: str) -> str:
    """Return the variant that gets the most traffic; the first of those that do."""
    client = aws.session.client("sagemaker")
    found = client.describe_endpoint(EndpointName=endpoint)["ProductionVariants"]
    return max(found, key=lambda one: one.get("CurrentWeight", 0.0))["VariantName"]


def _upload_code(aws: Aws, archive: Path, name: str) -> dict[str, str]:
    """Upload the archive under a key that names its content; return its parameters."""
    client = aws.session.client("s3")
    key = f"{name}/{archive.name}"
    client.upload_file(str(archive), aws.bucket, key)
    found = client.head_object(Bucket=aws.bucket, Key=key)
    version = found.get("VersionId", "null")
    return {
        "CodeBucket": aws.bucket,
        "CodeKey": key,
        "CodeVersion": "" if version == "null" else version,
    }


def create_or_change(
    aws: Aws,
    name: str,
    template: Path,
    parameters: dict[str, Any],
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Have CloudFormation make a stack, or change it; return its outputs.

    It goes by a change set, as it must for a template of SAM. Where nothing differs,
    nothing happens.

    Raises:
        DeploymentError: if it fails, with the resources that failed and AWS's reasons.
    """
    client = aws.session.client("cloudformation")
    there = stacks.find(client, name)
    new = there is None or there["StackStatus"] == "REVIEW_IN_PROGRESS"
    request = change_set(name, template, parameters, new)
    made = client.create_change_set(**request)
    if _is_ready(client, made["Id"]):
        client.execute_change_set(ChangeSetName=made["Id"])
    else:
        say("no change")
        client.delete_change_set(ChangeSetName=made["Id"])
    found = stacks.settle(client, made["StackId"], say)
    good = ("CREATE_COMPLETE", "UPDATE_COMPLETE")
    if found is None or found["StackStatus"] not in good:
        status = "gone" if found is None else found["StackStatus"]
        why = "" if found is None else f": {stacks.reasons(client, found)}"
        raise DeploymentError(f"The stack {name} is {status}{why}")
    return {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])}


def change_set(
    name: str, template: Path, parameters: dict[str, Any], new: bool
) -> dict[str, Any]:
    """Return the parameters of CreateChangeSet.

    Args:
        name: of the stack.
        template: its file.
        parameters: of the template; what is left out has the template's default.
        new: whether the stack is still to be made.

    Raises:
        DeploymentError: if the template is too long to be sent.
    """
    body = template.read_text("utf-8")
    if len(body.encode()) > MOST_TEMPLATE:
        raise DeploymentError(
            f"{template} has {len(body.encode())} bytes, and CloudFormation takes "
            f"{MOST_TEMPLATE} in a request. Shorten it."
        )
    return {
        "StackName": name,
        "ChangeSetName": f"{name}-{time.time_ns()}",
        "ChangeSetType": "CREATE" if new else "UPDATE",
        "TemplateBody": body,
        "Capabilities": CAPABILITIES,
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": str(value)}
            for key, value in parameters.items()
        ],
    }


def _is_ready(client: Any, change: str) -> bool:
    """Wait for a change set; say whether it changes anything.

    Raises:
        DeploymentError: if CloudFormation or SAM refuses the template or its values.
    """
    pause, deadline = FIRST_POLL, time.monotonic() + stacks.TIMEOUT
    while True:
        found = client.describe_change_set(ChangeSetName=change)
        status, reason = found["Status"], found.get("StatusReason", "")
        if status == "CREATE_COMPLETE":
            return True
        if status == "FAILED" and any(text in reason for text in NO_CHANGE):
            return False
        if status == "FAILED" or time.monotonic() > deadline:
            raise DeploymentError(
                f"CloudFormation does not take the template ({status}): {reason}"
            )
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_POLL)


def upload_page(aws: Aws, page: Path, bucket: str) -> list[str]:
    """Upload the page's files with their types; return their keys.

    Raises:
        DeploymentError: if there is no index.html, or a file's type is not known.
    """
    client = aws.session.client("s3")
    files = dict(_members(page, page))
    if "index.html" not in files:
        raise DeploymentError(f"{page} has no index.html. Name the page's folder.")
    for key, file in files.items():
        if file.suffix not in TYPES:
            raise DeploymentError(
                f"{file} has the suffix {file.suffix!r}, whose type is not known, and "
                f"browsers are told not to guess. Known are {', '.join(TYPES)}."
            )
        client.put_object(
            Bucket=bucket,
            Key=key,
            Body=file.read_bytes(),
            ContentType=TYPES[file.suffix],
            CacheControl=KEEP.get(file.suffix, KEEP_OTHERS),
        )
    return list(files)


def api_key(aws: Aws, outputs: dict[str, str]) -> str:
    """Return the value of the stack's key, which no template or output holds."""
    client = aws.session.client("apigateway")
    return client.get_api_key(apiKey=outputs["ApiKeyId"], includeValue=True)["value"]


# --- who may do this ------------------------------------------------------------------


def lesson_policy(aws: Aws) -> str:
    """Return what lesson 07's own calls need beyond lesson 06's policy, filled in.

    It goes with `utils.deployment.aws.iam_policy` and makes no stack.
    """
    return json.dumps(_filled_in(LESSON_POLICY, aws), indent=2)


def caller_policy(aws: Aws, boundary: str = "") -> str:
    """Return what making and removing the stack needs beyond these two, filled in.

    CloudFormation makes everything under the caller's rights. One of them is to make
    roles of the course's names, with whatever rights: give it to people only who may
    have those rights themselves, or with a boundary.

    Args:
        aws: the account.
        boundary: ARN of a managed policy with the text of `boundary_policy`. Then the
            caller can make roles only that never exceed it, and has to `deploy` with
            `PermissionsBoundary=boundary` (IAM's User Guide, "Permissions boundaries
            for IAM entities", on delegating).
    """
    policy = _filled_in(STACK_POLICY, aws)
    if boundary:
        (roles,) = (one for one in policy["Statement"] if one["Sid"] == ROLE_STATEMENT)
        roles["Condition"] = {"StringEquals": {"iam:PermissionsBoundary": boundary}}
    return json.dumps(policy, indent=2)


def boundary_policy(aws: Aws) -> str:
    """Return the most that a function of the course may ever do, filled in."""
    return json.dumps(_filled_in(BOUNDARY_POLICY, aws), indent=2)


def _filled_in(policy: Path, aws: Aws) -> dict[str, Any]:
    text = string.Template(policy.read_text("utf-8")).substitute(
        Partition=aws.session.get_partition_for_region(aws.region),
        Region=aws.region,
        Account=aws.role.split(":")[4],
    )
    return json.loads(text)


# --- removing -------------------------------------------------------------------------


def remove(aws: Aws, name: str, say: Callable[[str], None] = print) -> None:
    """Remove a stack with its files, table, log and scaling.

    And the archives of its function. Called again, it does nothing.

    Args:
        aws: the account.
        name: `guard.name("web")`.
        say: gets a line for each new status.

    Raises:
        DeploymentError: if it is no stack of the course, or something of it is left.
    """
    stacks.remove(aws.session, name, aws.bucket, say)
