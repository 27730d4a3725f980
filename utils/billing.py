"""What costs money on AWS: recorded when it is created, deleted when it is left.

`BillingGuard` watches a session. What the session creates on SageMaker is noted and
tagged with this run; uploads to S3, and the log group that an endpoint writes to, are
noted by name. All of it is deleted at the end, when a cell fails, or when the kernel
ends in order. On SageMaker nothing without that tag is ever deleted.

A kernel that is killed, or a machine that is lost, deletes nothing: look in the console
for names that begin with `course-`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from utils.course import CourseError
from utils.local_aws import Aws, forget_sdk_clients

TAG = "course-run"
FIRST_POLL = 0.5  # seconds between looks at an endpoint; the pause grows …
LONGEST_POLL = 15  # … up to this
DELETE_TIMEOUT = 900  # an endpoint in transition refuses to be deleted for a while
LOG_LINES = 12
LOG_GROUPS = "/aws/sagemaker/Endpoints/"  # SageMaker makes one for each endpoint
LOG_GROUP = "log group"

# kind → (operation, key of the name in its request), in the order of deletion
KINDS = {
    "endpoint": ("Endpoint", "EndpointName"),
    "endpoint configuration": ("EndpointConfig", "EndpointConfigName"),
    "model": ("Model", "ModelName"),
}


class DeploymentError(CourseError):
    """An endpoint that did not come into service; the message holds reason and log."""


@dataclass
class Entry:
    """One thing that this run created."""

    kind: str
    name: str
    created: float
    deleted: float | None = None

    @property
    def bills_by_the_hour(self) -> bool:
        return self.kind == "endpoint"

    @property
    def seconds(self) -> float:
        """How long it has existed, or did exist."""
        return (self.deleted or time.time()) - self.created


class BillingGuard:
    """Records what a session creates, and deletes it.

    Works from the moment it is made. In a notebook it tears everything down as soon as
    a cell fails; elsewhere use it as a context: `with BillingGuard(aws) as guard:`.
    """

    active: BillingGuard | None = None

    def __init__(self, aws: Aws, say: Callable[[str], None] = print):
        if BillingGuard.active is not None:
            BillingGuard.active.close()
        self.aws = aws
        self.run = secrets.token_hex(4)
        self.entries: list[Entry] = []
        self._say = say
        self._started = time.time()
        self._handlers: list[tuple[str, Callable]] = []
        for kind, (operation, key) in KINDS.items():
            self._on(
                f"provide-client-params.sagemaker.Create{operation}",
                self._noter(kind, key),
            )
        for operation in ("PutObject", "CreateMultipartUpload"):
            self._on(f"provide-client-params.s3.{operation}", self._note_upload)
        self._renew_sdk_client()
        self._notebook = _notebook()
        if self._notebook is not None:
            self._notebook.events.register("post_run_cell", self._after_cell)
        atexit.register(self.close)
        BillingGuard.active = self

    def name(self, what: str) -> str:
        """A name that no other learner in the account uses."""
        return f"course-{self.run}-{what}"

    # --- recording -------------------------------------------------------------------

    def _on(self, event: str, handler: Callable) -> None:
        self.aws.session.events.register(event, handler)
        self._handlers.append((event, handler))

    def _renew_sdk_client(self) -> None:
        """Makes the SageMaker SDK's one client anew.

        A client copies the handlers of its session when it is made, and the SDK keeps
        its client for as long as the process lives: it would go on calling those of a
        guard before this one, or none, and what it creates would be watched by nobody.
        """
        from sagemaker.core.utils.utils import SageMakerClient

        SageMakerClient.reset()
        SageMakerClient(session=self.aws.session, region_name=self.aws.region)

    def _noter(self, kind: str, key: str) -> Callable:
        def note(params: dict, **_: Any) -> dict:
            # Noted before it exists: an interrupt in between must not lose it.
            self.entries.append(Entry(kind, params[key], time.time()))
            if kind == "endpoint":
                self.entries.append(Entry(LOG_GROUP, params[key], time.time()))
            return {**params, "Tags": [*params.get("Tags", []), self._tag]}

        return note

    def _note_upload(self, params: dict, **_: Any) -> None:
        name = f"s3://{params['Bucket']}/{params['Key']}"
        if all(entry.name != name for entry in self.entries):
            self.entries.append(Entry("S3 object", name, time.time()))

    @property
    def _tag(self) -> dict[str, str]:
        return {"Key": TAG, "Value": self.run}

    # --- deleting --------------------------------------------------------------------

    def teardown(self, keep_logs: bool = False) -> None:
        """Deletes what this run created and is still there; may be called again.

        Args:
            keep_logs: leave the endpoints' log groups, to find out what went wrong.

        Raises:
            DeploymentError: if something could not be deleted, with its name.
        """
        failures = []
        for kind in (*KINDS, *([] if keep_logs else [LOG_GROUP]), "S3 object"):
            for entry in self.entries:
                if entry.kind == kind and entry.deleted is None:
                    try:
                        self._delete(entry)
                    except Exception as error:
                        failures.append(f"{entry.kind} {entry.name}: {error}")
        if failures:
            raise DeploymentError(
                "not deleted, and perhaps still billed: "
                + "; ".join(failures)
                + ". Delete them in the AWS console."
            )

    def _delete(self, entry: Entry) -> None:
        from botocore.exceptions import ClientError

        if entry.kind == "S3 object":
            bucket, _, key = entry.name.removeprefix("s3://").partition("/")
            self.aws.session.client("s3").delete_object(Bucket=bucket, Key=key)
            entry.deleted = time.time()
            return
        if entry.kind == LOG_GROUP:
            logs = self.aws.session.client("logs")
            # An endpoint that never started a container has none.
            with contextlib.suppress(logs.exceptions.ResourceNotFoundException):
                logs.delete_log_group(logGroupName=LOG_GROUPS + entry.name)
            entry.deleted = time.time()
            return
        client = self.aws.session.client("sagemaker")
        operation, key = KINDS[entry.kind]
        suffix = {"EndpointConfig": "endpoint_config"}.get(operation, operation.lower())
        deadline = time.monotonic() + DELETE_TIMEOUT
        while self._is_ours(client, entry):
            try:
                getattr(client, f"delete_{suffix}")(**{key: entry.name})
            except ClientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(FIRST_POLL)
                continue
            if entry.kind != "endpoint":
                break
            time.sleep(FIRST_POLL)  # until it is really gone, it is billed
        entry.deleted = time.time()

    def _is_ours(self, client: Any, entry: Entry) -> bool:
        """Whether the resource exists and carries the tag of this run."""
        from botocore.exceptions import ClientError

        operation, key = KINDS[entry.kind]
        suffix = {"EndpointConfig": "endpoint_config"}.get(operation, operation.lower())
        try:
            arn = getattr(client, f"describe_{suffix}")(**{key: entry.name})[
                f"{operation}Arn"
            ]
            tags = client.list_tags(ResourceArn=arn)["Tags"]
        except ClientError as error:
            if error.response["Error"]["Code"].startswith("Validation"):
                return False  # there is no such thing (any more)
            raise
        return self._tag in tags

    def remaining(self) -> list[str]:
        """What SageMaker has with this run's tag, and CloudWatch with its name.

        Both are freshly listed.
        """
        logs = self.aws.session.client("logs")
        groups = logs.describe_log_groups(logGroupNamePrefix=LOG_GROUPS + self.name(""))
        left = [name for name, run in self.tagged() if run == self.run]
        return left + [
            f"{LOG_GROUP} {group['logGroupName']}" for group in groups["logGroups"]
        ]

    def tagged(self) -> list[tuple[str, str]]:
        """Everything created since the guard that carries the course's tag.

        Returns:
            pairs of "kind name" and the run that created it.
        """
        client = self.aws.session.client("sagemaker")
        found = []
        for kind, (operation, key) in KINDS.items():
            for item in _list(client, operation):
                # A minute's grace for clocks that differ.
                if item["CreationTime"].timestamp() < self._started - 60:
                    continue
                tags = client.list_tags(ResourceArn=item[f"{operation}Arn"])["Tags"]
                runs = [tag["Value"] for tag in tags if tag["Key"] == TAG]
                found += [(f"{kind} {item[key]}", run) for run in runs]
        return found

    def close(self) -> None:
        """Tears down and stops watching."""
        if BillingGuard.active is self:
            BillingGuard.active = None
        try:
            self.teardown()
        finally:
            self._stop_watching()

    def _stop_watching(self) -> None:
        for event, handler in self._handlers:
            self.aws.session.events.unregister(event, handler)
        self._handlers = []
        forget_sdk_clients()
        if self._notebook is not None:
            with contextlib.suppress(ValueError):
                self._notebook.events.unregister("post_run_cell", self._after_cell)
        atexit.unregister(self.close)

    def _after_cell(self, result: Any) -> None:
        """Called by IPython after each cell."""
        if result.success or all(
            entry.deleted for entry in self.entries if entry.kind != LOG_GROUP
        ):
            return
        self.teardown(keep_logs=True)
        self._say(
            "The cell failed: what this run created has been deleted, but for the "
            "endpoint's log. Go on again from the cell that makes the guard."
        )

    def __enter__(self) -> BillingGuard:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- showing ---------------------------------------------------------------------

    def _repr_markdown_(self) -> str:
        """A table without what differs from run to run; uploads in one line."""
        if not self.entries:
            return "Nothing created yet."
        lines = ["| created | name | billed by the hour | state |", "|:--|:--|:--|:--|"]
        uploads = [entry for entry in self.entries if entry.kind == "S3 object"]
        for entry in self.entries:
            if entry.kind != "S3 object":
                bills = "yes" if entry.bills_by_the_hour else "no"
                lines.append(
                    f"| {entry.kind} | `{self._portable(entry.name)}` | {bills} | "
                    f"{_state([entry])} |"
                )
        if uploads:
            folder = os.path.commonpath([entry.name for entry in uploads])
            folder = folder.replace("s3:/", "s3://", 1)
            lines.append(
                f"| {len(uploads)} S3 objects | `{self._portable(folder)}` | no | "
                f"{_state(uploads)} |"
            )
        return "\n".join(lines)

    def _portable(self, name: str) -> str:
        return name.replace(self.run, "…")

    def __repr__(self) -> str:
        exists = sum(entry.deleted is None for entry in self.entries)
        return f"BillingGuard({len(self.entries)} created, {exists} still there)"

    @property
    def instance_seconds(self) -> float:
        """For how long endpoints have been up in this run, which is what is billed."""
        return sum(entry.seconds for entry in self.entries if entry.bills_by_the_hour)


def _state(entries: list[Entry]) -> str:
    return "deleted" if all(entry.deleted for entry in entries) else "exists"


def _list(client: Any, operation: str) -> Iterator[dict]:
    key = {"Endpoint": "Endpoints", "EndpointConfig": "EndpointConfigs"}.get(
        operation, "Models"
    )
    suffix = {"Endpoint": "endpoints", "EndpointConfig": "endpoint_configs"}.get(
        operation, "models"
    )
    for page in client.get_paginator(f"list_{suffix}").paginate():
        yield from page[key]


def _notebook() -> Any:
    """The running IPython, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def wait_until_in_service(
    aws: Aws, endpoint: Any, say: Callable[[str], None] = print
) -> None:
    """Waits for an endpoint, saying each change of its status.

    Args:
        aws: where the log is, should it fail.
        endpoint: a `sagemaker.core.resources.Endpoint`.
        say: gets a line for each new status.

    Raises:
        DeploymentError: if it fails, with the reason and the end of the worker's log.
    """
    status, pause = None, FIRST_POLL
    while status != "InService":
        endpoint.refresh()
        if endpoint.endpoint_status != status:
            status = endpoint.endpoint_status
            say(status)
        if status in ("Failed", "OutOfService"):
            log = endpoint_log(aws, endpoint.endpoint_name)
            raise DeploymentError(
                "\n".join([str(endpoint.failure_reason), "Its log ends:", *log])
            )
        if status != "InService":
            time.sleep(pause)
            pause = min(pause * 1.2, LONGEST_POLL)


def endpoint_log(aws: Aws, name: str, lines: int = LOG_LINES) -> list[str]:
    """The last lines that an endpoint's containers wrote to CloudWatch."""
    from botocore.exceptions import ClientError

    client = aws.session.client("logs")
    try:
        events = client.filter_log_events(logGroupName=LOG_GROUPS + name)["events"]
    except ClientError:
        return []
    return [event["message"] for event in events][-lines:]
