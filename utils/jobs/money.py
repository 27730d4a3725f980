"""Which machine holds a training run, how many of them, and what they cost.

Machines stand in data/jobs/machines.csv, prices in data/aws/prices.csv, each with its
source. AWS prices "ml." instances for training apart from hosting; the snapshot's price
for hosting stands in where it has none. "EC2" prices hold without SageMaker, which asks
more.

Two assumptions have a name and can be replaced: what share of its speed a GPU reaches,
and what share of its memory a run may plan with.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.course import ROOT
from utils.deployment.costs import dollars_per_million_tokens
from utils.deployment.prices import Price, read_snapshot
from utils.jobs.arithmetic import (
    GB,
    METHODS,
    Job,
    PaperError,
    base_bytes,
    flops_per_token,
    gigabytes,
    gpu_hours,
)

if TYPE_CHECKING:
    import pandas

MACHINES = ROOT / "data" / "jobs" / "machines.csv"
# Assumed, not measured: below what Llama 3 405B reached (`gpu_hours` says where).
ASSUMED_MFU = 0.3
# The rest is for the CUDA context, buffers of communication, and gaps between tensors.
USABLE = 0.9
MOST_MACHINES = 64


@dataclass(frozen=True)
class Machine:
    """An instance type with accelerators.

    Attributes:
        name: as in data/aws/prices.csv.
        accelerator: which.
        count: how many.
        gigabytes: memory of each.
        teraflops: of each at its best, in 10¹² operations a second, in 16 bits.
        methods: of `METHODS` that run on it; bitsandbytes knows no Trainium.
        source: of the two figures.
        price: US dollars an hour, or None if not known.
    """

    name: str
    accelerator: str
    count: int
    gigabytes: float
    teraflops: float
    methods: tuple[str, ...]
    source: str
    price: Price | None


def machines(path: Path = MACHINES) -> list[Machine]:
    """Return the machines of data/jobs/machines.csv with their prices."""
    prices = {price.item: price for price in read_snapshot()}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Machine(
                name=row["machine"],
                accelerator=row["accelerator"],
                count=int(row["count"]),
                gigabytes=float(row["gigabytes"]),
                teraflops=float(row["teraflops"]),
                methods=tuple(row["methods"].split()),
                source=row["source"],
                price=prices.get(f"{row['machine']}, training")
                or prices.get(row["machine"]),
            )
            for row in csv.DictReader(file)
        ]


def machine(name: str) -> Machine:
    """Return one of `machines`.

    Raises:
        PaperError: naming those that there are.
    """
    known = {one.name: one for one in machines()}
    if name not in known:
        raise PaperError(f"{name!r} is not known: give one of {', '.join(known)}.")
    return known[name]


def smallest(
    job: Job, one: Machine, usable: float = USABLE, shared_loading: bool = False
) -> int | None:
    """Return the smallest number of accelerators of a kind that hold a run.

    FSDP shares the model among them. Up to one machine any number is tried, above it
    whole machines.

    Args:
        job: the run.
        one: the kind of machine.
        usable: share of its memory that a run may plan with.
        shared_loading: whether a base in 4 bits comes to each accelerator already
            shared out. With accelerate 1.15 it does not: each loads all of it
            (utils/fsdp_utils.py).

    Returns:
        The number; None if the machine cannot run this method, or if no number does:
        then what is not shared, activations above all, or the base that is loaded, is
        too large for one. Fewer rows at once, shorter ones, or checkpointing help with
        activations, and more accelerators do not.
    """
    if job.method not in one.methods:
        return None
    room = usable * one.gigabytes
    whole = job.method == "QLoRA" and not shared_loading
    if whole and base_bytes(job.shape, job.method) / GB > room:
        return None
    several = (one.count * number for number in range(2, MOST_MACHINES + 1))
    for gpus in (*range(1, one.count + 1), *several):
        if gigabytes(job, gpus) <= room:
            return gpus
    return None


def smallest_table(
    models: Sequence[str],
    methods: Sequence[str] = METHODS,
    usable: float = USABLE,
    **more,
) -> pandas.DataFrame:
    """Return for each model and method the smallest number of each accelerator.

    First used in experiment 08_several_workers, section 4.

    Args:
        models: names of data/jobs/models.json.
        methods: some of `METHODS`.
        usable: share of an accelerator's memory that a run may plan with.
        **more: further arguments of `Job`.
    """
    import pandas

    largest = {one.accelerator: one for one in machines()}  # the last has most
    rows = []
    for model in models:
        for method in methods:
            job = Job(model, method, **more)
            row: dict[str, object] = {"model": job.shape.title, "method": method}
            for name, one in largest.items():
                found = smallest(job, one, usable)
                row[f"{name}, {one.gigabytes:g} GB (number)"] = found
            rows.append(row)
    return pandas.DataFrame(rows).convert_dtypes()


def tokens_per_second(
    job: Job, one: Machine, number: int = 1, mfu: float = ASSUMED_MFU
) -> float:
    """Return how many tokens a number of machines train in a second.

    Args:
        job: the run.
        one: the kind of machine, all of whose accelerators are used.
        number: of machines.
        mfu: the share of their speed that is assumed; see `gpu_hours`.
    """
    return number * one.count * one.teraflops * 1e12 * mfu / flops_per_token(job)


def cost_table(
    models: Sequence[str],
    tokens: float,
    methods: Sequence[str] = METHODS,
    mfu: float = ASSUMED_MFU,
    usable: float = USABLE,
    **more,
) -> pandas.DataFrame:
    """Return what a run costs on each machine that holds it.

    First used in lesson 08, section 8.

    Args:
        models: names of data/jobs/models.json.
        tokens: trained on in all, all passes together, padding included.
        methods: some of `METHODS`.
        mfu: the share of a machine's speed that is assumed; see `gpu_hours`.
        usable: share of its memory that a run may plan with.
        **more: further arguments of `Job`.

    Returns:
        A row for each model, method and machine: how many of it, hours, US dollars,
        and the day on which the price was read. The dollars are those of the hours
        alone: starting, loading the base, evaluating and failed runs come on top.
    """
    import pandas

    rows = []
    for model in models:
        for method in methods:
            job = Job(model, method, **more)
            for one in machines():
                gpus = smallest(job, one, usable)
                if gpus is None:
                    continue
                number = math.ceil(gpus / one.count)
                hours = gpu_hours(job, tokens, one.teraflops, mfu)
                hours /= number * one.count
                dollars = number * hours * one.price.usd if one.price else None
                rows.append(
                    {
                        "model": job.shape.title,
                        "method": method,
                        "machine": one.name,
                        "accelerators": f"{one.count} × {one.accelerator}",
                        "machines (number)": number,
                        "each accelerator (GB)": gigabytes(job, number * one.count),
                        "time (hours)": hours,
                        "cost (US dollars)": dollars,
                        "price read": one.price.read_on if one.price else None,
                    }
                )
    return pandas.DataFrame(rows)


@dataclass(frozen=True)
class TrainingBreakEven:
    """From how many tokens on machines are cheaper than a price for each token.

    Attributes:
        api: US dollars that a managed API asks per million training tokens.
        own: US dollars that machines cost per million tokens while they train.
        fixed: US dollars that one's own way costs beside, whatever is trained.
        million_tokens: at which both cost the same; infinite if machines never win.
    """

    api: float
    own: float
    fixed: float
    million_tokens: float

    def __str__(self) -> str:
        """Return it as one sentence."""
        if math.isinf(self.million_tokens):
            return (
                f"the API is the better buy at any size: it asks ${self.api:,.2f} per "
                f"million tokens, and the machines alone cost ${self.own:,.2f}"
            )
        return (
            f"your own machines are cheaper from {self.million_tokens:,.1f} million "
            f"training tokens on: ${self.own:,.2f} per million against "
            f"${self.api:,.2f}, and ${self.fixed:,.2f} beside"
        )


def training_break_even(
    api_price: float, price_per_hour: float, tokens_a_second: float, fixed: float
) -> TrainingBreakEven:
    """Compare machines by the hour with an API that bills by the training token.

    A managed fine-tuning API or serverless customisation asks for each token, all
    passes counted, and costs nothing beside. (It may ask more for answers afterwards:
    that is not compared here.) JumpStart bills machines by the hour as any training
    job does, and saves a part of `fixed`.

    Args:
        api_price: US dollars per million training tokens, from your provider's page.
        price_per_hour: US dollars, of all machines.
        tokens_a_second: that they train together, measured or as `tokens_per_second`.
        fixed: US dollars that one's own way costs once: hours of people who prepare
            it, runs that fail, machines that start and load.

    Raises:
        PaperError: if `api_price` or `fixed` is not a number of its range.
        CostError: likewise for the other two.
    """
    for name, given in (("api_price", api_price), ("fixed", fixed)):
        if not 0 <= given < float("inf"):
            raise PaperError(f"{name}: found {given!r}. Give US dollars, 0 or more.")
    own = dollars_per_million_tokens(price_per_hour, tokens_a_second)
    million = fixed / (api_price - own) if api_price > own else math.inf
    return TrainingBreakEven(api_price, own, fixed, million)
