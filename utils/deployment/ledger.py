"""What a run's ledger holds: entries, machines, and the bill made from them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from utils.deployment.prices import Price

Machines = tuple[tuple[str, int], ...]  # instance types and how many of each


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

    @property
    def bills_by_the_hour(self) -> bool:
        """Whether it costs money just by being there."""
        return self.kind == "endpoint"

    @property
    def seconds(self) -> float:
        """How long it has existed, or did exist."""
        return (self.deleted or time.time()) - self.created

    @property
    def hours_of(self) -> list[tuple[Machines | None, float]]:
        """Its machines and for how many hours they ran, in the order of time."""
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
        return "\n".join([*rows, "", str(self), "", *map(_source, self.prices)])


def dollars(usd: float) -> str:
    """Write an amount as it is read: "$1.4084", "under $0.001"."""
    return f"${usd:.4f}" if usd >= 0.001 or usd == 0 else "under $0.001"


def _source(price: Price) -> str:
    return (
        f"- {price.item}: ${price.usd:g} per {price.per} in {price.region}, read "
        f"{price.read_on} in {price.source}"
    )
