"""What costs money on AWS: recorded when it is created, deleted when it is left.

`BillingGuard` watches a session. What the session creates on SageMaker is noted and
tagged with this run, and what it uploads to S3 is marked with it; the log group that an
endpoint writes to is noted by name, and so are alarms, what scales an endpoint, where
an asynchronous one puts its replies, and where jobs write. At the end, when a cell
fails, or when the kernel ends in order, jobs are stopped and all of it is deleted.
What does not carry this run's tag or mark, or lies outside of its own folders, is never
deleted; at its start and at its end the guard lists what else bills in the account.

A kernel that is killed, or a machine that is lost, deletes nothing: then
`python -m utils.deployment bill` lists what is there, and how to delete it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

from utils.deployment import attached, running, tables, tagged, written
from utils.deployment.account import Account, look
from utils.deployment.asking import PREFIX, TAG, UNKNOWN
from utils.deployment.aws import (
    LOG_GROUPS,
    Aws,
    DeploymentError,
    forget_sdk_clients,
)
from utils.deployment.job_notes import JobNotes
from utils.deployment.ledger import UPLOAD, Bill, Entry, Machines, bill_of, rate
from utils.deployment.prices import STORAGE, PriceList

LOG_GROUP = "log group"
SCHEDULE = "schedule"  # the stop that `idle_stop` has set
# What tells why something failed, and is kept when a cell has.
LOGS = (LOG_GROUP, written.STREAMS)
# What costs are said of what is on an endpoint, or comes from it.
ENDPOINTS_OWN = {
    tagged.COMPONENT: "with its endpoint",
    written.REPLIES: "by the amount",
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
        # What runs on this machine by the name under which a failed cell tells of it.
        self._local: dict[str, Callable[[], None]] = {}
        if BillingGuard.active is not None:
            self._local = BillingGuard.active._local
            BillingGuard.active.close()
        self.aws = aws
        self.run = secrets.token_hex(4)
        self.entries: list[Entry] = []
        self.prices = prices or PriceList(aws)
        self._say = say
        self._configurations: dict[str, Machines] = {}
        self._places: dict[str, list[str]] = {}  # of replies, by configuration
        self._elsewhere: list[Entry] = []  # replies outside of this run's folders
        self._jobs = JobNotes(
            aws, self.run, self.name(""), self.entries, self.prices, say
        )
        self._handlers: list[tuple[str, Callable]] = []
        for kind, (operation, key) in tagged.KINDS.items():
            self._on(
                f"provide-client-params.sagemaker.Create{operation}",
                lambda guard, kind=kind, key=key: guard._noter(kind, key),
            )
        ask, answer = "provide-client-params", "after-call"
        for kind, (operation, _) in tagged.JOBS.items():
            self._on(
                f"{ask}.sagemaker.Create{operation}",
                lambda guard, kind=kind: guard._jobs.noter(kind),
            )
            self._on(
                f"{answer}.sagemaker.Create{operation}",
                lambda guard, kind=kind: guard._jobs.confirmer(kind),
            )
        self._on(
            f"{ask}.sagemaker.StartPipelineExecution",
            lambda guard: guard._jobs.note_execution,
        )
        for (service, operation), kind in attached.OPERATIONS.items():
            self._on(
                f"{ask}.{service}.{operation}",
                lambda guard, kind=kind: guard._attached_noter(kind),
            )
        self._on(
            f"{answer}.sagemaker.CreateModelPackage", lambda guard: guard._note_package
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

    def also_end(self, what: str, end: Callable[[], None]) -> Callable[[], None]:
        """Have something on this machine ended as well when a cell fails.

        Args:
            what: is told then, such as "the server http://127.0.0.1:8000".
            end: ends it; it is called once at most.

        Returns:
            What is to be called when it has ended otherwise.
        """
        self._local[what] = end
        return lambda: self._local.pop(what, None)

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
                self._read_configuration(params[key], params)
            elif kind == "endpoint":
                machines = self._machines_of(params.get("EndpointConfigName", ""))
                entry.machines = [(entry.created, machines)]
            self.entries.append(entry)
            if kind == "endpoint":
                self.entries.append(Entry(LOG_GROUP, params[key], entry.created))
                self._note_places(params[key], params.get("EndpointConfigName", ""))
            return {**params, "Tags": [*params.get("Tags", []), self._tag]}

        return note

    def _attached_noter(self, kind: str) -> Callable:
        def note(params: dict, **_: Any) -> dict:
            entry = attached.noted(kind, params)
            if entry is None:
                return params
            known = (other for other in self.entries if not other.deleted)
            if all((one.kind, one.name) != (kind, entry.name) for one in known):
                self.entries.append(entry)
            if kind not in attached.TAGGED:
                return params
            return {**params, "Tags": [*params.get("Tags", []), self._tag]}

        return note

    def _owns(self, endpoint: str) -> bool:
        """Say whether an endpoint is this run's, by its name or by its tag."""
        if endpoint.startswith(self.name("")):
            return True
        entry = self._endpoint(endpoint)
        return entry is not None and self._is_ours(entry)

    def _owns_target(self, resource: str) -> bool:
        """Say likewise whether what scales is this run's.

        Args:
            resource: as Application Auto Scaling names it, such as
                "endpoint/NAME/variant/AllTraffic" or "inference-component/NAME".
        """
        kind, _, name = resource.partition("/")
        if kind == "endpoint":
            return self._owns(name.partition("/")[0])
        if name.startswith(self.name("")):
            return True
        entry = self._last(tagged.COMPONENT, name)
        return entry is not None and self._is_ours(entry)

    def _note_places(self, endpoint: str, configuration: str) -> None:
        """Note where an endpoint writes asynchronous replies; see `written`."""
        if configuration not in self._places:
            self._machines_of(configuration)  # reads the whole configuration
        for place in self._places.get(configuration, []):
            own = place.startswith(f"s3://{self.aws.bucket}/{self.name('')}")
            noted = self.entries if own else self._elsewhere
            entry = Entry(
                written.REPLIES, place, time.time(), place={"EndpointName": endpoint}
            )
            known = (other for other in noted if not other.deleted)
            if all((e.name, e.place) != (entry.name, entry.place) for e in known):
                noted.append(entry)

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
            self._read_configuration(configuration, found)
        return self._configurations[configuration]

    def _read_configuration(self, name: str, configuration: dict) -> None:
        """Keep what will be asked of a configuration: its machines and its places."""
        self._configurations[name] = _machines(configuration)
        self._places[name] = written.places(configuration)

    def _endpoint(self, name: str) -> Entry | None:
        return self._last("endpoint", name)

    def _last(self, kind: str, name: str) -> Entry | None:
        """Return the last entry of a name, which stands in an ARN in lower case."""
        for entry in reversed(self.entries):
            if entry.kind == kind and entry.name.lower() == name.lower():
                return entry
        return None

    def _has_made(self, endpoint: str) -> bool:
        """Say whether AWS has confirmed that this run made an endpoint of that name."""
        return any(
            entry.kind == "endpoint" and entry.name == endpoint and entry.confirmed
            for entry in self.entries
        )

    def _confirm(self, http_response: Any, parsed: dict, **_: Any) -> None:
        """Say what an endpoint costs, as soon as there is one."""
        if http_response.status_code >= 300:
            return
        entry = self._endpoint(parsed["EndpointArn"].rpartition("/")[2])
        if entry is not None:
            entry.confirmed = True
            billed = "This bills" if self.aws.real else "On AWS this bills"
            self._say(f"{billed} from now on: {rate(entry, self.prices)}.")

    def _note_update(self, params: dict, **_: Any) -> None:
        """Note an update: while it lasts, old machines and new ones are billed."""
        entry = self._endpoint(params["EndpointName"])
        if entry is None:
            return
        old = entry.machines[-1][1]
        new = self._machines_of(params["EndpointConfigName"])
        both = old + new if old is not None and new is not None else None
        entry.machines.append((time.time(), both))
        self._note_places(entry.name, params["EndpointConfigName"])

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

    def _note_package(self, parsed: dict, **_: Any) -> None:
        """Note a model package, which has its name from AWS's answer alone."""
        if "ModelPackageArn" in parsed:
            self.entries.append(attached.noted(attached.PACKAGE, parsed))

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
            self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        for entry in self._elsewhere:
            if self._has_made(endpoint := entry.place["EndpointName"]):
                self._say(
                    f"The endpoint {endpoint} wrote its {written.REPLIES} below "
                    f"{entry.name}. That is no folder of this run (s3://"
                    f"{self.aws.bucket}/{self.name('')}…), so nothing there was "
                    "deleted."
                )
        for line in self._jobs.elsewhere_lines():
            self._say(line)
        self._say_account(self.account())

    def _delete_all(self, keep_logs: bool = False) -> None:
        """Stop what runs, then delete what this run created: see `_in_order`.

        Of a kind the last made goes first: an adapter's component before its base's.

        A stop that was scheduled goes once all else is gone: an endpoint that could
        not be deleted keeps it.

        Args:
            keep_logs: leave the logs of endpoints and jobs, to find out what went
                wrong.

        Raises:
            DeploymentError: if something could not be stopped or deleted, with its
                name.
        """
        failures: dict[int, str] = {}
        try:
            self._jobs.find()
        except Exception as error:
            failures[0] = f"what its jobs have started was not found: {error}"
        self._jobs.stop_all()  # what is refused here is tried and named below
        tried: set[int] = set()
        # An ending pipeline may start and make something until its end.
        while untried := self._in_order(keep_logs, tried):
            for entry in untried:
                tried.add(id(entry))
                if self._waits_for_another(entry):
                    continue
                try:
                    self._delete(entry)
                except Exception as error:
                    failures[id(entry)] = f"{entry.kind} {entry.name}: {error}"
        if failures:
            raise DeploymentError(
                "Not deleted, and perhaps still billed: "
                + "; ".join(failures.values())
                + ". Delete them in the AWS console."
            )

    def _in_order(self, keep_logs: bool, tried: set[int]) -> list[Entry]:
        """Return what is there and was not tried, in the order of its deletion.

        What runs has been asked to stop before, so endpoints need not wait for its end;
        the registry does, in which a pipeline may enter something to its end.
        """
        registry = (attached.PACKAGE, attached.GROUP)
        around = [kind for kind in attached.KINDS if kind not in registry]
        logs = () if keep_logs else LOGS
        objects = (UPLOAD, written.REPLIES, written.OUTPUTS)
        kinds = (*around, *tagged.KINDS, *running.KINDS, *registry, *logs, *objects)
        return [
            entry
            for kind in (*kinds, SCHEDULE)
            for entry in reversed(self.entries)
            if entry.kind == kind and entry.deleted is None and id(entry) not in tried
        ]

    def _waits_for_another(self, entry: Entry) -> bool:
        """Say whether an entry stays because of one that could not be deleted."""
        if entry.kind == SCHEDULE:
            return self._still_to_stop(entry.name)
        if entry.kind == written.REPLIES:  # it may still write
            return self._still_to_stop(entry.place.get("EndpointName", ""))
        if entry.kind in (written.OUTPUTS, written.STREAMS):
            return self._jobs.may_still_write(entry)
        return False

    def _still_to_stop(self, endpoint: str) -> bool:
        """Return whether an endpoint of this run is still to be deleted."""
        return any(
            entry.kind == "endpoint" and entry.name == endpoint and not entry.deleted
            for entry in self.entries
        )

    def _delete(self, entry: Entry) -> None:
        if entry.kind == UPLOAD:
            self._delete_upload(entry)
            return
        if entry.kind == LOG_GROUP:
            self._delete_log(entry)
            return
        if entry.kind == written.REPLIES:
            if self._has_made(entry.place["EndpointName"]):
                written.delete(self.aws.session.client("s3"), entry.name)
            entry.deleted = time.time()
            return
        if entry.kind in running.KINDS:
            self._jobs.end(entry)
            return
        if entry.kind in (written.OUTPUTS, written.STREAMS):
            self._jobs.delete_written(entry)
            return
        if entry.kind in attached.KINDS:
            attached.delete(self.aws.session, entry, self._tag, self._owns_target)
            entry.deleted = time.time()
            return
        if entry.kind == SCHEDULE:
            self._delete_schedule(entry)
            return
        client = self.aws.session.client("sagemaker")
        tagged.delete(client, entry, self.run)
        entry.deleted = time.time()

    def _delete_upload(self, entry: Entry) -> None:
        """Delete all versions of an object that this run uploaded, and no others.

        In a bucket that keeps versions, a deletion without a version's id would put a
        marker before the object and leave every byte. The listing is by the beginning
        of the key, so that objects whose keys go on from this one are left out.
        """
        client = self.aws.session.client("s3")
        # A stack's bucket has gone with the stack.
        with contextlib.suppress(client.exceptions.NoSuchBucket):
            self._delete_versions(client, entry)
        entry.deleted = time.time()

    def _delete_versions(self, client: Any, entry: Entry) -> None:
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

    def _delete_log(self, entry: Entry) -> None:
        """Delete an endpoint's log, if the endpoint was this run's."""
        if self._has_made(entry.name):
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

    def _is_ours(self, entry: Entry) -> bool:
        """Say whether the resource exists and carries the tag of this run."""
        client = self.aws.session.client("sagemaker")
        return self.run in tagged.runs_of(client, entry.kind, entry.name)

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
        left += self._jobs.still_running()
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
        for kind in tagged.KINDS | tagged.JOBS:
            if kind == running.TRANSFORM:
                continue  # AWS keeps their records; those that run `account` lists
            own = [e.name for e in self.entries if e.kind == kind and not e.deleted]
            for name in sorted(tagged.listed(client, kind).union(own)):
                runs = tagged.runs_of(client, kind, name)
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
        """End and delete everything if the cell that IPython has just run failed."""
        if result.success:
            return
        self._end_local()
        if all(entry.deleted for entry in self.entries if entry.kind not in LOGS):
            return
        self._delete_all(keep_logs=True)
        self._say(
            "The cell failed: what this run created has been deleted, but for the "
            "logs of its endpoints and jobs. Go on again from the cell that makes the "
            "guard."
        )

    def _end_local(self) -> None:
        """End what runs on this machine; what cannot be ended is told."""
        while self._local:
            what, end = self._local.popitem()
            try:
                end()
            except Exception as error:
                self._say(f"The cell failed, and {what} could not be ended: {error}")
            else:
                self._say(f"The cell failed: {what} has been ended.")

    def __enter__(self) -> BillingGuard:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
        self._say_what_is_left()
        if any(entry.bills_by_the_hour for entry in self.entries):
            self._say(str(self.bill()))

    # --- showing ---------------------------------------------------------------------

    def bill(self) -> Bill:
        """Return what bills, for how long, at which price, and what that comes to."""
        self._jobs.measure()
        s3 = self.aws.session.client("s3")
        return bill_of(self.entries, self.prices, s3, self.aws.real)

    def _repr_markdown_(self) -> str:
        """Return a table without what differs from run to run; uploads in one line."""
        if not self.entries:
            return "Nothing created yet."
        lines = ["| created | name | costs on AWS | state |", "|:--|:--|:--|:--|"]
        uploads = [entry for entry in self.entries if entry.kind == UPLOAD]
        costs = {
            LOG_GROUP: "by the amount",
            written.STREAMS: "by the amount",
            written.OUTPUTS: "by the amount",
            tagged.TUNING: "by its training jobs",
            tagged.PIPELINE: "by what its steps run on",
            running.EXECUTIONS: "by what their steps run on",
            attached.STACK: "by the request, and for its alarms",
            attached.ALARM: UNKNOWN,
            attached.TABLE: tables.COSTS,
        }
        for entry in self.entries:
            if entry.kind != UPLOAD:
                cost = (costs | ENDPOINTS_OWN).get(entry.kind, "nothing")
                if entry.bills_by_the_hour:
                    cost = f"**{rate(entry, self.prices)}**"
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


def _notebook() -> Any:
    """Return the running IPython, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()
