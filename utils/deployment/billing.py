"""What costs money on AWS: recorded when it is created, deleted when it is left.

`BillingGuard` watches a session. What the session creates on SageMaker is noted and
tagged with this run, and what it uploads to S3 is marked with it; the log group that an
endpoint writes to is noted by name, and so are alarms and what scales an endpoint. All
of it is deleted at the end, when a cell fails, or when the kernel ends in order. What
does not carry this run's tag or mark is never deleted; at its start and at its end the
guard lists what else bills in the account.

A kernel that is killed, or a machine that is lost, deletes nothing: then
`python -m utils.deployment bill` lists what is there, and how to delete it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from utils.deployment import attached
from utils.deployment.account import Account, look
from utils.deployment.asking import PREFIX, TAG, UNKNOWN
from utils.deployment.aws import (
    FIRST_POLL,
    LOG_GROUPS,
    Aws,
    DeploymentError,
    forget_sdk_clients,
)
from utils.deployment.ledger import Bill, Entry, Machines, dollars
from utils.deployment.prices import HOURS_PER_MONTH, STORAGE, Price, PriceList

DELETE_TIMEOUT = 900  # an endpoint in transition refuses to be deleted for a while
LOG_GROUP = "log group"
UPLOAD = "S3 object"
SCHEDULE = "schedule"  # the stop that `idle_stop` has set

# kind → (operation, key of the name in its request), in the order of deletion
KINDS = {
    "endpoint": ("Endpoint", "EndpointName"),
    "endpoint configuration": ("EndpointConfig", "EndpointConfigName"),
    "model": ("Model", "ModelName"),
}


class BillingGuard:
    """Records what a session creates, and deletes it.

    Works from the moment it is made. In a notebook it tears everything down as soon as
    a cell fails; elsewhere use it as a context: `with BillingGuard(aws) as guard:`.

    First used in lesson 06, section 5.
    """

    active: BillingGuard | None = None

    def __init__(
        self,
        aws: Aws,
        say: Callable[[str], None] = print,
        prices: PriceList | None = None,
    ):
        if BillingGuard.active is not None:
            BillingGuard.active.close()
        self.aws = aws
        self.run = secrets.token_hex(4)
        self.entries: list[Entry] = []
        self.prices = prices or PriceList(aws)
        self._say = say
        self._configurations: dict[str, Machines] = {}
        self._handlers: list[tuple[str, Callable]] = []
        for kind, (operation, key) in KINDS.items():
            self._on(
                f"provide-client-params.sagemaker.Create{operation}",
                lambda guard, kind=kind, key=key: guard._noter(kind, key),
            )
        ask, answer = "provide-client-params", "after-call"
        for (service, operation), kind in attached.OPERATIONS.items():
            self._on(
                f"{ask}.{service}.{operation}",
                lambda guard, kind=kind: guard._attached_noter(kind),
            )
        self._on(f"{ask}.sagemaker.UpdateEndpoint", lambda guard: guard._note_update)
        self._on(f"{answer}.sagemaker.CreateEndpoint", lambda guard: guard._confirm)
        self._on(
            f"{answer}.sagemaker.DescribeEndpoint",
            lambda guard: guard._see_end_of_update,
        )
        for operation in ("PutObject", "CreateMultipartUpload"):
            self._on(f"{ask}.s3.{operation}", lambda guard: guard._note_upload)
        self._on(f"{answer}.s3.CreateMultipartUpload", lambda guard: guard._note_parts)
        for operation in ("CreateSchedule", "UpdateSchedule"):
            self._on(f"{ask}.scheduler.{operation}", lambda guard: guard._note_schedule)
        self._renew_sdk_client()
        self._notebook = _notebook()
        if self._notebook is not None:
            self._notebook.events.register("post_run_cell", self._after_cell)
        atexit.register(self.close)
        BillingGuard.active = self
        self._say_account(self.account())

    def account(self) -> Account:
        """Ask AWS what bills in the account, whoever created it, and what is left."""
        return look(self.aws, self.prices)

    def _say_account(self, account: Account) -> None:
        for line in account.lines():
            self._say(line)

    def name(self, what: str) -> str:
        """Return a name that no other learner in the account uses."""
        return f"{PREFIX}{self.run}-{what}"

    # --- recording -------------------------------------------------------------------

    def _on(self, event: str, method: Callable[[BillingGuard], Callable]) -> None:
        def handler(**given: Any) -> Any:
            return method(self._watching())(**given)

        self.aws.session.events.register(event, handler)
        self._handlers.append((event, handler))

    def _watching(self) -> BillingGuard:
        """Return this guard, or the one that has taken its place.

        A client keeps the handlers of the guard in whose time it was made. What it
        creates when the guard's cell has run again is the later guard's to delete.
        """
        later = BillingGuard.active
        if self._handlers or later is None or later.aws.session is not self.aws.session:
            return self
        return later

    def _renew_sdk_client(self) -> None:
        """Make the SageMaker SDK's one client anew.

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
            entry = Entry(kind, params[key], time.time())
            if kind == "endpoint configuration":
                self._configurations[params[key]] = _machines(params)
            elif kind == "endpoint":
                machines = self._machines_of(params.get("EndpointConfigName", ""))
                entry.machines = [(entry.created, machines)]
            self.entries.append(entry)
            if kind == "endpoint":
                self.entries.append(Entry(LOG_GROUP, params[key], entry.created))
            return {**params, "Tags": [*params.get("Tags", []), self._tag]}

        return note

    def _attached_noter(self, kind: str) -> Callable:
        def note(params: dict, **_: Any) -> dict:
            entry = attached.noted(kind, params)
            known = (other for other in self.entries if not other.deleted)
            if all((one.kind, one.name) != (kind, entry.name) for one in known):
                self.entries.append(entry)
            if kind != attached.ALARM:
                return params  # the endpoint says whose it is
            return {**params, "Tags": [*params.get("Tags", []), self._tag]}

        return note

    def _owns(self, endpoint: str) -> bool:
        """Say whether an endpoint is this run's, by its name or by its tag."""
        if endpoint.startswith(self.name("")):
            return True
        entry = self._endpoint(endpoint)
        client = self.aws.session.client("sagemaker")
        return entry is not None and self._is_ours(client, entry)

    def _machines_of(self, configuration: str) -> Machines | None:
        from botocore.exceptions import ClientError

        if configuration not in self._configurations:
            client = self.aws.session.client("sagemaker")
            try:
                found = client.describe_endpoint_config(
                    EndpointConfigName=configuration
                )
            except ClientError:
                return None
            self._configurations[configuration] = _machines(found)
        return self._configurations[configuration]

    def _endpoint(self, name: str) -> Entry | None:
        """Return the last entry of an endpoint; in an ARN its name is in lower case."""
        for entry in reversed(self.entries):
            if entry.kind == "endpoint" and entry.name.lower() == name.lower():
                return entry
        return None

    def _confirm(self, http_response: Any, parsed: dict, **_: Any) -> None:
        """Say what an endpoint costs, as soon as there is one."""
        if http_response.status_code >= 300:
            return
        entry = self._endpoint(parsed["EndpointArn"].rpartition("/")[2])
        if entry is not None:
            entry.confirmed = True
            billed = "This bills" if self.aws.real else "On AWS this bills"
            self._say(f"{billed} from now on: {self._rate(entry)}.")

    def _note_update(self, params: dict, **_: Any) -> None:
        """Note an update: while it lasts, old machines and new ones are billed."""
        entry = self._endpoint(params["EndpointName"])
        if entry is None:
            return
        old = entry.machines[-1][1]
        new = self._machines_of(params["EndpointConfigName"])
        both = old + new if old is not None and new is not None else None
        entry.machines.append((time.time(), both))

    def _see_end_of_update(self, parsed: dict, **_: Any) -> None:
        entry = self._endpoint(parsed.get("EndpointName", ""))
        if entry is None or len(entry.machines) < 2 or entry.deleted:
            return
        if parsed["EndpointStatus"] not in ("Updating", "RollingBack"):
            machines = self._machines_of(parsed["EndpointConfigName"])
            if entry.machines[-1][1] != machines:
                entry.machines.append((time.time(), machines))

    def _note_upload(self, params: dict, **_: Any) -> dict:
        name = f"s3://{params['Bucket']}/{params['Key']}"
        if all(entry.name != name or entry.deleted for entry in self.entries):
            self.entries.append(Entry(UPLOAD, name, time.time()))
        marked = {**params.get("Metadata", {}), TAG: self.run}
        return {**params, "Metadata": marked}

    def _note_schedule(self, params: dict, **_: Any) -> dict:
        """Note a schedule and mark it; schedules have no tags, only their groups do."""
        known = any(
            entry.kind == SCHEDULE and entry.name == params["Name"]
            for entry in self.entries
            if entry.deleted is None
        )
        if not known:
            self.entries.append(Entry(SCHEDULE, params["Name"], time.time()))
        marked = f"{self._mark} {params.get('Description', '')}".strip()
        return {**params, "Description": marked}

    def _note_parts(self, parsed: dict, **_: Any) -> None:
        """Note the upload in parts that S3 has begun, to end it should it break off."""
        if "UploadId" in parsed:
            name = f"s3://{parsed['Bucket']}/{parsed['Key']}"
            for entry in self.entries:
                if entry.name == name and entry.deleted is None:
                    entry.uploads.append(parsed["UploadId"])

    @property
    def _mark(self) -> str:
        return f"{TAG}={self.run}."

    @property
    def _tag(self) -> dict[str, str]:
        return {"Key": TAG, "Value": self.run}

    # --- deleting --------------------------------------------------------------------

    def teardown(self) -> None:
        """Delete what this run created and is still there, then say what is left.

        Said is what bills in the account and what is left of the course, of whatever
        run, asked anew; and what could not be looked at. It may be called again.

        Raises:
            DeploymentError: if something could not be deleted, with its name.
        """
        try:
            self._delete_all()
        finally:
            self._say_account(self.account())

    def _delete_all(self, keep_logs: bool = False) -> None:
        """Delete what this run created: what is attached, then `KINDS`, then uploads.

        A stop that was scheduled goes once all else is gone: an endpoint that could
        not be deleted keeps it.

        Args:
            keep_logs: leave the endpoints' log groups, to find out what went wrong.

        Raises:
            DeploymentError: if something could not be deleted, with its name.
        """
        failures = []
        logs = [] if keep_logs else [LOG_GROUP]
        for kind in (*attached.KINDS, *KINDS, *logs, UPLOAD, SCHEDULE):
            for entry in self.entries:
                if kind == SCHEDULE and self._still_to_stop(entry.name):
                    continue
                if entry.kind == kind and entry.deleted is None:
                    try:
                        self._delete(entry)
                    except Exception as error:
                        failures.append(f"{entry.kind} {entry.name}: {error}")
        if failures:
            raise DeploymentError(
                "Not deleted, and perhaps still billed: "
                + "; ".join(failures)
                + ". Delete them in the AWS console."
            )

    def _still_to_stop(self, endpoint: str) -> bool:
        """Return whether an endpoint of this run is still to be deleted."""
        return any(
            entry.kind == "endpoint" and entry.name == endpoint and not entry.deleted
            for entry in self.entries
        )

    def _delete(self, entry: Entry) -> None:
        from botocore.exceptions import ClientError

        if entry.kind == UPLOAD:
            self._delete_upload(entry)
            return
        if entry.kind == LOG_GROUP:
            self._delete_log(entry)
            return
        if entry.kind in attached.KINDS:
            attached.delete(self.aws.session, entry, self._tag, self._owns)
            entry.deleted = time.time()
            return
        if entry.kind == SCHEDULE:
            self._delete_schedule(entry)
            return
        client = self.aws.session.client("sagemaker")
        operation, key = KINDS[entry.kind]
        deadline = time.monotonic() + DELETE_TIMEOUT
        while self._is_ours(client, entry):
            entry.confirmed = True
            try:
                getattr(client, f"delete_{_suffix(operation)}")(**{key: entry.name})
            except ClientError as error:
                # One in transition is refused for a while; a missing right for ever.
                if not _refused_as_invalid(error) or time.monotonic() > deadline:
                    raise
                time.sleep(FIRST_POLL)
                continue
            if entry.kind != "endpoint":
                break
            time.sleep(FIRST_POLL)  # until it is really gone, it is billed
        entry.deleted = time.time()

    def _delete_upload(self, entry: Entry) -> None:
        """Delete all versions of an object that this run uploaded, and no others.

        In a bucket that keeps versions, a deletion without a version's id would put a
        marker before the object and leave every byte. The listing is by the beginning
        of the key, so that objects whose keys go on from this one are left out.
        """
        client = self.aws.session.client("s3")
        bucket, _, key = entry.name.removeprefix("s3://").partition("/")
        for upload in entry.uploads:
            # One that was completed, or ended by the library, is there no more.
            with contextlib.suppress(client.exceptions.NoSuchUpload):
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        pages = client.get_paginator("list_object_versions").paginate(
            Bucket=bucket, Prefix=key
        )
        versions, markers = [], []
        for page in pages:
            versions += [v for v in page.get("Versions", []) if v["Key"] == key]
            markers += [v for v in page.get("DeleteMarkers", []) if v["Key"] == key]
        ours = []
        for version in versions:
            found = client.head_object(Bucket=bucket, Key=key, **_version(version))
            if found["Metadata"].get(TAG) == self.run:
                ours.append(version)
        if ours and len(ours) == len(versions):
            ours += markers  # which hide nobody else's version
        for version in ours:
            client.delete_object(Bucket=bucket, Key=key, **_version(version))
        entry.deleted = time.time()

    def _delete_log(self, entry: Entry) -> None:
        """Delete an endpoint's log, if the endpoint was this run's."""
        endpoint = self._endpoint(entry.name)
        if endpoint is not None and endpoint.confirmed:
            logs = self.aws.session.client("logs")
            # An endpoint that never started a container has none.
            with contextlib.suppress(logs.exceptions.ResourceNotFoundException):
                logs.delete_log_group(logGroupName=LOG_GROUPS + entry.name)
        entry.deleted = time.time()

    def _delete_schedule(self, entry: Entry) -> None:
        """Delete the stop that this run has set; one that was carried out is gone."""
        client = self.aws.session.client("scheduler")
        with contextlib.suppress(client.exceptions.ResourceNotFoundException):
            found = client.get_schedule(Name=entry.name)
            if found.get("Description", "").startswith(self._mark):
                client.delete_schedule(Name=entry.name)
        entry.deleted = time.time()

    def _is_ours(self, client: Any, entry: Entry) -> bool:
        """Say whether the resource exists and carries the tag of this run."""
        from botocore.exceptions import ClientError

        operation, key = KINDS[entry.kind]
        describe = getattr(client, f"describe_{_suffix(operation)}")
        try:
            arn = describe(**{key: entry.name})[f"{operation}Arn"]
            tags = client.list_tags(ResourceArn=arn)["Tags"]
        except ClientError as error:
            if _refused_as_invalid(error):
                return False  # there is no such thing (any more)
            raise
        return self._tag in tags

    def remaining(self) -> list[str]:
        """List what there is with this run's tag or under its name, asked anew.

        That includes what a client created that this guard does not watch, if it bears
        a name that the guard gave; uploads in the bucket with all their versions;
        alarms, scaling targets and logs.

        Raises:
            DeploymentError: if something could not be looked at.
        """
        account = self.account()
        if account.unseen:
            reasons = [f"{kind} ({why})" for kind, why in account.unseen.items()]
            raise DeploymentError(
                f"What remains cannot be told. Not looked at: {'; '.join(reasons)}."
            )
        left = [name for name, run in self.tagged() if run == self.run]
        mine = self.name("")
        left += [
            f"{item.kind} {item.name}" for item in account.found if mine in item.name
        ]
        return list(dict.fromkeys(left))

    def tagged(self) -> list[tuple[str, str]]:
        """List everything on SageMaker that carries the course's tag, of whatever run.

        Looked through is what has a name that the guard gives, and what this run has
        created under other names.

        Returns:
            Pairs of "kind name" and the run that created it.
        """
        client = self.aws.session.client("sagemaker")
        found = []
        for kind, (operation, key) in KINDS.items():
            names = {item[key] for item in _list(client, operation)}
            own = [e.name for e in self.entries if e.kind == kind and not e.deleted]
            for name in sorted(names.union(own)):
                runs = _runs(client, operation, key, name)
                found += [(f"{kind} {name}", run) for run in runs]
        return found

    def close(self) -> None:
        """Tear down and stop watching."""
        if BillingGuard.active is self:
            BillingGuard.active = None
        try:
            self._delete_all()
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
        """Delete everything if the cell that IPython has just run failed."""
        if result.success or all(
            entry.deleted for entry in self.entries if entry.kind != LOG_GROUP
        ):
            return
        self._delete_all(keep_logs=True)
        self._say(
            "The cell failed: what this run created has been deleted, but for the "
            "endpoint's log. Go on again from the cell that makes the guard."
        )

    def __enter__(self) -> BillingGuard:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
        self._say_account(self.account())
        if any(entry.bills_by_the_hour for entry in self.entries):
            self._say(str(self.bill()))

    # --- showing ---------------------------------------------------------------------

    def bill(self) -> Bill:
        """Return what bills, for how long, at which price, and what that comes to."""
        lines: list[tuple[str, float, float | None]] = []
        used: dict[str, Price] = {}
        for entry in self.entries:
            for machines, hours in entry.hours_of if entry.machines else []:
                if machines is None:
                    lines.append((f"endpoint `{entry.name}`", hours, None))
                for instance_type, count in machines or ():
                    price = self.prices.of(instance_type)
                    usd = None if price is None else count * price.usd
                    if price is not None:
                        used[price.item] = price
                    lines.append((f"{count} × {instance_type}", hours, usd))
        uploads = [entry for entry in self.entries if entry.kind == UPLOAD]
        if uploads:
            hours = max(entry.seconds for entry in uploads) / 3600
            price = self.prices.of(STORAGE)
            gigabytes = sum(self._measured(entry) for entry in uploads)
            usd = None if price is None else gigabytes * price.usd / HOURS_PER_MONTH
            if price is not None:
                used[price.item] = price
            lines.append((f"{gigabytes:.3f} GB on S3", hours, usd))
        return Bill(tuple(lines), tuple(used.values()), self.aws.real)

    def _measured(self, entry: Entry) -> float:
        """Return an upload's gigabytes; 0 if it was deleted before it was measured."""
        from botocore.exceptions import ClientError

        if not entry.gigabytes and entry.deleted is None:
            bucket, _, key = entry.name.removeprefix("s3://").partition("/")
            with contextlib.suppress(ClientError):
                found = self.aws.session.client("s3").head_object(
                    Bucket=bucket, Key=key
                )
                entry.gigabytes = found["ContentLength"] / 1e9
        return entry.gigabytes

    def _rate(self, entry: Entry) -> str:
        """Say what an endpoint costs an hour."""
        machines = entry.machines[-1][1] if entry.machines else None
        if machines is None:
            return "by the hour, at a price that is not known"
        parts = []
        for instance_type, count in machines:
            price = self.prices.of(instance_type)
            rate = "price not known" if price is None else dollars(count * price.usd)
            parts.append(f"{count} × {instance_type}, {rate} an hour")
        return " and ".join(parts) or "by the request, not by the hour"

    def _repr_markdown_(self) -> str:
        """Return a table without what differs from run to run; uploads in one line."""
        if not self.entries:
            return "Nothing created yet."
        lines = ["| created | name | costs on AWS | state |", "|:--|:--|:--|:--|"]
        uploads = [entry for entry in self.entries if entry.kind == UPLOAD]
        costs = {LOG_GROUP: "by the amount", attached.ALARM: UNKNOWN}
        for entry in self.entries:
            if entry.kind != UPLOAD:
                cost = costs.get(entry.kind, "nothing")
                if entry.bills_by_the_hour:
                    cost = f"**{self._rate(entry)}**"
                name = self._portable(entry.name)
                lines.append(
                    f"| {entry.kind} | `{name}` | {cost} | {_state([entry])} |"
                )
        if uploads:
            folder = os.path.commonpath([entry.name for entry in uploads])
            folder = folder.replace("s3:/", "s3://", 1)
            price = self.prices.of(STORAGE)
            cost = "not known" if price is None else f"${price.usd:g} per {price.per}"
            lines.append(
                f"| {len(uploads)} S3 objects | `{self._portable(folder)}` | {cost} | "
                f"{_state(uploads)} |"
            )
        return "\n".join(lines)

    def _portable(self, name: str) -> str:
        return name.replace(self.run, "…")

    def __repr__(self) -> str:
        """Return one line without names."""
        exists = sum(entry.deleted is None for entry in self.entries)
        return f"BillingGuard({len(self.entries)} created, {exists} still there)"


def _state(entries: list[Entry]) -> str:
    return "deleted" if all(entry.deleted for entry in entries) else "exists"


def _machines(configuration: dict) -> Machines:
    """Return the machines of a configuration; a serverless variant has none."""
    return tuple(
        (variant["InstanceType"], variant.get("InitialInstanceCount", 1))
        for variant in configuration["ProductionVariants"]
        if "InstanceType" in variant
    )


def _version(version: dict) -> dict[str, str]:
    """Return what names a version; nothing for the object of a bucket without them."""
    if version["VersionId"] == "null" and version["IsLatest"]:
        return {}
    return {"VersionId": version["VersionId"]}


def _suffix(operation: str) -> str:
    """Spell an operation as boto3 does at the end of its methods."""
    return {"EndpointConfig": "endpoint_config"}.get(operation, operation.lower())


def _list(client: Any, operation: str) -> Iterator[dict]:
    """Yield what has a name such as the guard gives."""
    pages = client.get_paginator(f"list_{_suffix(operation)}s")
    for page in pages.paginate(NameContains=PREFIX):
        for item in page[f"{operation}s"]:
            if item[f"{operation}Name"].startswith(PREFIX):
                yield item


def _runs(client: Any, operation: str, key: str, name: str) -> list[str]:
    """Return the runs that something is tagged with; none if it is gone."""
    from botocore.exceptions import ClientError

    try:
        describe = getattr(client, f"describe_{_suffix(operation)}")
        arn = describe(**{key: name})[f"{operation}Arn"]
        tags = client.list_tags(ResourceArn=arn)["Tags"]
    except ClientError as error:
        if _refused_as_invalid(error):
            return []
        raise
    return [tag["Value"] for tag in tags if tag["Key"] == TAG]


def _refused_as_invalid(error: Any) -> bool:
    """Say whether SageMaker finds what was named missing, or in transition."""
    return error.response["Error"]["Code"].startswith("Validation")


def _notebook() -> Any:
    """Return the running IPython, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()
