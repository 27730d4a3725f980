"""What a billing guard notes of jobs, tuning jobs and pipelines, and how it ends them.

A training job is noted before AWS is asked for it, so that an answer which gets lost
loses no job: whether there is one, and whose, its tag says. What a tuning job or a
pipeline starts never passes through the session. It is found by asking AWS, gets the
run's tag, and is the run's from then on.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

from utils.deployment import attached, running, tagged, written
from utils.deployment.asking import TAG
from utils.deployment.aws import Aws
from utils.deployment.ledger import USED_AS, Entry, rate
from utils.deployment.prices import PriceList


class JobNotes:
    """The part of a guard that knows what runs by itself.

    Attributes:
        entries: the guard's own, which this reads and adds to.
        elsewhere: where jobs write outside of the run's folders.
    """

    def __init__(
        self,
        aws: Aws,
        run: str,
        prefix: str,
        entries: list[Entry],
        prices: PriceList,
        say: Callable[[str], None],
    ):
        self.aws = aws
        self.entries = entries
        self.elsewhere: list[Entry] = []
        self._run = run
        self._prefix = prefix  # of every name that the guard gives
        self._prices = prices
        self._say = say

    @functools.cached_property
    def _client(self) -> Any:
        return self.aws.session.client("sagemaker")

    @property
    def _tag(self) -> dict[str, str]:
        return {"Key": TAG, "Value": self._run}

    @property
    def _mark(self) -> str:
        return f"{TAG}={self._run}."

    # --- recording -------------------------------------------------------------------

    def noter(self, kind: str) -> Callable:
        """Return what notes a call that creates a job, and gives it the run's tag."""
        operation, key = tagged.JOBS[kind]

        def note(params: dict, **_: Any) -> dict:
            self._note(kind, params[key], params)
            return {**params, "Tags": [*params.get("Tags", []), self._tag]}

        return note

    def confirmer(self, kind: str) -> Callable:
        """Return what reads AWS's answer to such a call."""
        operation, _ = tagged.JOBS[kind]

        def confirm(http_response: Any, parsed: dict, **_: Any) -> None:
            if http_response.status_code >= 300:
                return
            entry = self._last(kind, parsed[f"{operation}Arn"].rpartition("/")[2])
            if entry is not None:
                entry.confirmed = True
                if entry.bills_by_the_hour:
                    billed = "This bills" if self.aws.real else "On AWS this bills"
                    cost = rate(entry, self._prices)
                    self._say(f"{billed} from its start to its end: {cost}.")

        return confirm

    def note_execution(self, params: dict, **_: Any) -> dict:
        """Note that a pipeline is started, and mark it: executions have no tags."""
        name = params["PipelineName"].rpartition("/")[2]
        known = (
            one.kind in (running.PIPELINE, running.EXECUTIONS) for one in self._at(name)
        )
        if not any(known):
            entry = Entry(running.EXECUTIONS, name, time.time(), confirmed=True)
            self.entries.append(entry)
        text = params.get("PipelineExecutionDescription", "")
        marked = f"{self._mark} {text}".strip()
        return {**params, "PipelineExecutionDescription": marked}

    def _note(self, kind: str, name: str, job: dict[str, Any]) -> Entry:
        """Note a job, with what it writes and logs.

        Args:
            kind: of the job.
            name: of the job.
            job: the parameters of its creation, or what AWS describes.
        """
        entry = Entry(kind, name, time.time())
        if entry.bills_by_the_hour:
            entry.machines = [(entry.created, running.machines(kind, job))]
        self.entries.append(entry)
        of = {"Kind": kind, "Name": name}
        for place in written.of_job(kind, job):
            noted = self.entries if self._is_own(place) else self.elsewhere
            noted.append(Entry(written.OUTPUTS, place, entry.created, place=of))
        if group := written.LOGS_OF.get(kind):
            logs = Entry(written.STREAMS, f"{group}/{name}", entry.created, place=of)
            self.entries.append(logs)
        return entry

    def _is_own(self, place: str) -> bool:
        """Say whether an address lies in a folder with a name that the guard gave."""
        bucket, _, key = place.removeprefix("s3://").partition("/")
        own = (part.startswith(self._prefix) for part in key.split("/"))
        return bucket == self.aws.bucket and any(own)

    def _at(self, name: str) -> list[Entry]:
        """Return the entries of a name of what is still there."""
        return [one for one in self.entries if one.name == name and not one.deleted]

    def _last(self, kind: str, name: str) -> Entry | None:
        for entry in reversed(self.entries):
            if entry.kind == kind and entry.name.lower() == name.lower():
                return entry
        return None

    # --- looking ---------------------------------------------------------------------

    def find(self) -> None:
        """Note what the run has running and was never told of.

        That is what its tuning jobs and pipelines have started or made, and whatever
        job carries its tag and a name that the guard gives.
        """
        client = self._client
        for kind in tagged.JOBS:
            for name in sorted(tagged.listed(client, kind, self._prefix)):
                if not self._at_of(kind, name) and self._is_ours(kind, name):
                    self._adopt(kind, name)
        for entry in list(self.entries):
            if entry.kind in running.KINDS and not entry.deleted:
                self._find_started(entry)

    def _find_started(self, entry: Entry) -> None:
        if entry.kind in running.STARTERS and self._owns(entry):
            self._adopt_started(entry)

    def _adopt_started(self, entry: Entry) -> None:
        """Note what one of the run's has started."""
        found = running.started(
            self._client, entry.kind, entry.name, self._mark_of(entry)
        )
        for kind, name, arn in found:
            if self._last(kind, name) is not None:
                continue  # a pipeline's steps tell of what has been deleted, too
            if kind != attached.PACKAGE and not self._is_ours(kind, name):
                self._client.add_tags(ResourceArn=arn, Tags=[self._tag])
            self._find_started(self._adopt(kind, name))  # a pipeline may start a tuning

    def _adopt(self, kind: str, name: str) -> Entry:
        if kind == attached.PACKAGE:
            entry = attached.noted(kind, {"ModelPackageArn": name})
            self.entries.append(entry)
        elif kind in tagged.JOBS:
            entry = self._note(
                kind, name, running.describe(self._client, kind, name) or {}
            )
        else:
            entry = Entry(kind, name, time.time())
            self.entries.append(entry)
        entry.confirmed = True
        return entry

    def _at_of(self, kind: str, name: str) -> bool:
        return any(one.kind == kind for one in self._at(name))

    def _mark_of(self, entry: Entry) -> str:
        return self._mark if entry.kind == running.EXECUTIONS else ""

    def _is_ours(self, kind: str, name: str) -> bool:
        return self._run in tagged.runs_of(self._client, kind, name)

    def _owns(self, entry: Entry) -> bool:
        """Say whether a job is there and the run's; by its tag, as its name may lie."""
        if entry.kind == running.EXECUTIONS:
            return True
        if entry.kind not in tagged.JOBS:
            return False
        ours = self._is_ours(entry.kind, entry.name)
        entry.confirmed = entry.confirmed or ours
        return ours

    def still_running(self) -> list[str]:
        """List the run's executions of others' pipelines that have not ended."""
        return [
            f"pipeline execution {one['PipelineExecutionArn']}"
            for entry in self.entries
            if entry.kind == running.EXECUTIONS
            for one in running.executions(self._client, entry.name, self._mark)
            if one["PipelineExecutionStatus"] not in running.ENDED
        ]

    def measure(self) -> None:
        """Read from AWS what the run's jobs have used up to now."""
        from botocore.exceptions import BotoCoreError, ClientError

        # What may not be asked is counted by the clock.
        with contextlib.suppress(BotoCoreError, ClientError):
            self.find()
        for entry in self.entries:
            if entry.kind in USED_AS.keys() & tagged.JOBS and not entry.deleted:
                with contextlib.suppress(BotoCoreError, ClientError):
                    self._measure(entry)

    def _measure(self, entry: Entry) -> None:
        """Read what a job has used; nothing if there is no such job of the run."""
        found = running.describe(self._client, entry.kind, entry.name)
        if found is None or self._run not in tagged.runs_in(
            self._client, entry.kind, found
        ):
            entry.used = entry.used or []
        else:
            entry.confirmed = True
            entry.used = running.uses(entry.kind, found, time.time())

    # --- ending ----------------------------------------------------------------------

    def stop_all(self) -> None:
        """Ask all that runs to stop; nothing is waited for.

        A refusal is passed over: `end` asks again, and raises it.
        """
        for kind in running.KINDS:
            for entry in self.entries:
                if entry.kind == kind and not entry.deleted:
                    with contextlib.suppress(Exception):
                        if self._owns(entry):
                            self._stop(entry)

    def _stop(self, entry: Entry) -> None:
        mark = self._mark_of(entry)
        running.stop(self._client, entry.kind, entry.name, mark)

    def end(self, entry: Entry) -> None:
        """Stop a job of the run, wait for its end, note what it used, and delete it."""
        if self._owns(entry):
            self._stop(entry)
            kind, name = entry.kind, entry.name
            running.settle(self._client, kind, name, self._mark_of(entry))
            if kind in running.STARTERS:
                self._adopt_started(entry)
            if kind == running.TRAINING:
                running.end_warm_pool(self._client, name)
            if entry.bills_by_the_hour:
                self._measure(entry)
            running.delete(self._client, kind, name)
        elif entry.bills_by_the_hour:
            entry.used = entry.used or []
        entry.deleted = time.time()

    def delete_written(self, entry: Entry) -> None:
        """Delete what a job of the run has written to S3, or logged."""
        kind, name = entry.place["Kind"], entry.place["Name"]
        made = self._last(kind, name)
        if made is not None and made.confirmed:
            if entry.kind == written.OUTPUTS:
                written.delete(self.aws.session.client("s3"), entry.name)
            else:
                written.delete_streams(self.aws.session.client("logs"), entry.name)
        entry.deleted = time.time()

    def may_still_write(self, entry: Entry) -> bool:
        """Say whether the job that writes there has not been ended yet."""
        return self._at_of(entry.place["Kind"], entry.place["Name"])

    def elsewhere_lines(self) -> list[str]:
        """Say what was written outside of the run's folders, and so was not deleted."""
        lines = []
        for entry in self.elsewhere:
            made = self._last(entry.place["Kind"], entry.place["Name"])
            if made is not None and made.confirmed:
                lines.append(
                    f"The {made.kind} {made.name} wrote below {entry.name}. That is no "
                    f"folder of this run (s3://{self.aws.bucket}/{self._prefix}…), so "
                    "nothing there was deleted."
                )
        return lines
