"""What a run's ledger holds: entries, machines, and the bill made from them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from utils.deployment.prices import HOURS_PER_MONTH, STORAGE, Price, PriceList

UPLOAD = "S3 object"
HOSTING = "hosting"
WARM_POOL = "warm pool"
# What bills by the hour or the second → what its machines are used for.
USED_AS = {
    "endpoint": HOSTING,
    "training job": "training",
    "processing job": "processing",
    "transform job": "transform",
}
Machines = tuple[tuple[str, int], ...]  # instance types and how many of each


@dataclass(frozen=True)
class Use:
    """What was used of machines.

    Attributes:
        what: one of `utils.deployment.prices.COMPONENTS`, or "warm pool".
        machines: None where they are not known.
        hours: that are billed for each of them.
    """

    what: str
    machines: Machines | None
    hours: float


@dataclass
class Entry:
    """A resource that this run created.

    Attributes:
        kind: such as "endpoint", "log group" or "S3 object".
        name: what AWS calls it.
        created: when, in seconds since 1970.
        deleted: likewise; None while it exists.
        confirmed: AWS has said that the creation succeeded.
        machines: since when which machines run for it; None where that is not known.
        gigabytes: what it holds on S3.
        uploads: ids of its uploads in parts, ended or not.
        place: what names it to AWS, where its name alone does not.
        used: what a job has used, as AWS has described it last; None until it has, and
            then the clock counts.
    """

    kind: str
    name: str
    created: float
    deleted: float | None = None
    confirmed: bool = False
    machines: list[tuple[float, Machines | None]] = field(default_factory=list)
    gigabytes: float = 0.0
    uploads: list[str] = field(default_factory=list)
    place: dict[str, str] = field(default_factory=dict)
    used: list[Use] | None = None

    @property
    def bills_by_the_hour(self) -> bool:
        """Whether it costs money just by being there, or by running."""
        return self.kind in USED_AS

    @property
    def seconds(self) -> float:
        """How long it has existed, or did exist."""
        return (self.deleted or time.time()) - self.created

    @property
    def uses(self) -> list[Use]:
        """What it has used of its machines, in the order of time."""
        if self.used is not None:
            return self.used
        what = USED_AS.get(self.kind, HOSTING)
        return [Use(what, machines, hours) for machines, hours in self.hours_of]

    @property
    def hours_of(self) -> list[tuple[Machines | None, float]]:
        """Its machines and for how many hours they ran, in the order of time."""
        if not self.machines:
            return []
        ends = [since for since, _ in self.machines[1:]]
        ends.append(self.deleted or time.time())
        return [
            (machines, max(0.0, end - since) / 3600)
            for (since, machines), end in zip(self.machines, ends, strict=True)
        ]


@dataclass(frozen=True)
class Bill:
    """What a run costs on AWS, as far as prices are known.

    Attributes:
        lines: (what, hours, US dollars an hour or None) for each thing that bills.
        prices: those that were used.
        billed: whether this was the AWS that bills.
    """

    lines: tuple[tuple[str, float, float | None], ...]
    prices: tuple[Price, ...]
    billed: bool

    @property
    def total(self) -> float:
        """US dollars, without what has no known price."""
        return sum(hours * (usd or 0) for _, hours, usd in self.lines)

    def __str__(self) -> str:
        """Return the total as one sentence."""
        what = "This run has cost" if self.billed else "On AWS this run would have cost"
        unknown = [name for name, _, usd in self.lines if usd is None]
        more = f", without {', '.join(unknown)}: no price known" if unknown else ""
        return f"{what} about ${self.total:.4f}{more}."

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        """Return a table: a line for each thing that bills, the total, the sources."""
        if not self.lines:
            return "Nothing that bills was created."
        rows = ["| what | hours | an hour | comes to |", "|:--|--:|--:|--:|"]
        for what, hours, usd in self.lines:
            rate = "not known" if usd is None else dollars(usd)
            cost = "not known" if usd is None else dollars(hours * usd)
            rows.append(f"| {what} | {hours:.4f} | {rate} | {cost} |")
        sources = [f"- {price}" for price in self.prices]
        return "\n".join([*rows, "", str(self), "", *sources])


def bill_of(entries: Iterable[Entry], prices: PriceList, s3: Any, billed: bool) -> Bill:
    """Return what bills, for how long, at which price, and what that comes to.

    Args:
        entries: of the run.
        prices: those that are known.
        s3: a client, to ask how large an upload is.
        billed: whether this was the AWS that bills.
    """
    entries = list(entries)
    lines: list[tuple[str, float, float | None]] = []
    used: dict[str, Price] = {}
    for entry in entries:
        for use in entry.uses:
            what = "" if use.what == HOSTING else f", {use.what}"
            if use.machines is None:
                lines.append((f"{entry.kind} `{entry.name}`{what}", use.hours, None))
            for instance_type, count in use.machines or ():
                price = prices.of(instance_type, component_of(use.what))
                usd = None if price is None else count * price.usd
                if price is not None:
                    used[price.item] = price
                lines.append((f"{count} × {instance_type}{what}", use.hours, usd))
    uploads = [entry for entry in entries if entry.kind == UPLOAD]
    if uploads:
        hours = max(entry.seconds for entry in uploads) / 3600
        price = prices.of(STORAGE)
        gigabytes = sum(_measured(entry, s3) for entry in uploads)
        usd = None if price is None else gigabytes * price.usd / HOURS_PER_MONTH
        if price is not None:
            used[price.item] = price
        lines.append((f"{gigabytes:.3f} GB on S3", hours, usd))
    return Bill(tuple(lines), tuple(used.values()), billed)


def _measured(entry: Entry, s3: Any) -> float:
    """Return an upload's gigabytes; 0 if it was deleted before it was measured."""
    from botocore.exceptions import ClientError

    if not entry.gigabytes and entry.deleted is None:
        bucket, _, key = entry.name.removeprefix("s3://").partition("/")
        with contextlib.suppress(ClientError):
            found = s3.head_object(Bucket=bucket, Key=key)
            entry.gigabytes = found["ContentLength"] / 1e9
    return entry.gigabytes


def component_of(what: str) -> str:
    """Return what machines are priced as; a warm pool's as those of training."""
    return "training" if what == WARM_POOL else what


def rate(entry: Entry, prices: PriceList) -> str:
    """Say what an endpoint or a job costs an hour."""
    machines = entry.machines[-1][1] if entry.machines else None
    if machines is None:
        return "by the hour, at a price that is not known"
    what = USED_AS.get(entry.kind, HOSTING)
    parts = []
    for instance_type, count in machines:
        price = prices.of(instance_type, component_of(what))
        amount = "price not known" if price is None else dollars(count * price.usd)
        parts.append(f"{count} × {instance_type}, {amount} an hour")
    return " and ".join(parts) or "by the request, not by the hour"


def dollars(usd: float) -> str:
    """Write an amount as it is read: "$1.4084", "under $0.001"."""
    return f"${usd:.4f}" if usd >= 0.001 or usd == 0 else "under $0.001"
