"""AWS's prices for what the course creates: a snapshot, or AWS's own price list.

The snapshot (data/aws/prices.csv) holds on-demand prices of one region, each with the
day on which it was read and where. On the real AWS its price list is asked first.
Nothing is estimated: a price that is not known is None.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError

if TYPE_CHECKING:
    from utils.deployment.aws import Aws

SNAPSHOT = ROOT / "data" / "aws" / "prices.csv"
PRICE_LIST_REGION = "us-east-1"  # the price list answers in few regions, for all
STORAGE = "S3 Standard"
HOURS_PER_MONTH = 730
UNITS = ("hour", "GB-month", "GB-second", "million tokens", "million requests")
# What an instance is used for → the price list's word. In the snapshot the word goes
# behind the instance type, but for hosting: "ml.g5.2xlarge, training".
COMPONENTS = {"hosting": "Hosting", "training": "Training", "processing": "Processing"}
COLUMNS = ("item", "region", "usd", "per", "read_on", "source")


class PriceError(CourseError, ValueError):
    """A table of prices that cannot be used; the message names row and column."""


@dataclass(frozen=True)
class Price:
    """What one thing costs.

    Attributes:
        item: an endpoint's instance type such as "ml.g5.xlarge", a job's such as
            "ml.g5.2xlarge, training", "S3 Standard", or a model of a managed API.
        usd: US dollars per `per`.
        per: one of `UNITS`.
        region: where it holds.
        read_on: day on which it was read.
        source: where it was read.
    """

    item: str
    usd: float
    per: str
    region: str
    read_on: str
    source: str

    def __str__(self) -> str:
        """Return one line: what it costs, where, and when and where that was read."""
        return (
            f"{self.item}: ${self.usd:g} per {self.per} in {self.region}, read "
            f"{self.read_on} in {self.source}"
        )


def read_snapshot(path: Path = SNAPSHOT) -> list[Price]:
    """Read the prices of a table in CSV.

    Raises:
        PriceError: naming the row and the column that cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    prices = []
    for number, row in enumerate(rows, start=2):
        for column in COLUMNS:
            if not (row.get(column) or "").strip():
                raise PriceError(
                    f"{path.name}, line {number}: {column} is missing. Fill it in."
                )
        try:
            usd = float(row["usd"])
        except ValueError:
            usd = -1
        if not 0 < usd < 1000 or row["per"] not in UNITS:
            raise PriceError(
                f"{path.name}, line {number}: found usd {row['usd']!r} and per "
                f"{row['per']!r}. Give US dollars per {', '.join(UNITS)}."
            )
        fields = {column: row[column] for column in COLUMNS if column != "usd"}
        prices.append(Price(usd=usd, **fields))
    return prices


class PriceList:
    """Prices in one region, looked up when they are first needed."""

    def __init__(self, aws: Aws, snapshot: Path = SNAPSHOT):
        self.region = aws.region
        self._session = aws.session if aws.real else None
        self._known: dict[str, Price | None] = {
            price.item: price
            for price in read_snapshot(snapshot)
            if price.region == aws.region
        }
        self._asked: set[str] = set()

    def of(self, item: str, use: str = "hosting") -> Price | None:
        """Return the price of an instance type, storage or API; None if not known.

        Args:
            item: such as "ml.g5.xlarge" or "S3 Standard".
            use: of an instance; AWS prices it for each of `COMPONENTS`.
        """
        instance = item.startswith("ml.")
        key = f"{item}, {use}" if instance and use != "hosting" else item
        asks = self._session is not None and instance and use in COMPONENTS
        if asks and key not in self._asked:
            self._asked.add(key)
            found = ask_price_list(self._session, item, self.region, use)
            if found is not None:
                self._known[key] = found
        return self._known.get(key)


def ask_price_list(
    session: Any, instance_type: str, region: str, use: str = "hosting"
) -> Price | None:
    """Ask AWS's price list for an instance's price an hour.

    Args:
        session: of boto3.
        instance_type: such as "ml.g5.xlarge".
        region: where it runs.
        use: what for, one of `COMPONENTS`.

    Returns:
        The price; None if the list may not be read (it needs `pricing:GetProducts`), or
        does not hold exactly one price.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    wanted = {
        "instanceName": instance_type,
        "component": COMPONENTS[use],
        "regionCode": region,
    }
    client = session.client("pricing", region_name=PRICE_LIST_REGION)
    try:
        pages = client.get_paginator("get_products").paginate(
            ServiceCode="AmazonSageMaker",
            FormatVersion="aws_v1",
            Filters=[
                {"Type": "TERM_MATCH", "Field": field, "Value": value}
                for field, value in wanted.items()
            ],
        )
        products = [json.loads(text) for page in pages for text in page["PriceList"]]
    except (BotoCoreError, ClientError):
        return None
    found = {
        (float(dimension["pricePerUnit"]["USD"]), product["publicationDate"][:10])
        for product in products
        for term in product["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension["unit"] == "Hrs" and "USD" in dimension["pricePerUnit"]
    }
    found = {(usd, published) for usd, published in found if usd > 0}
    if len(found) != 1:
        return None
    usd, published = found.pop()
    source = "AWS price list (pricing:GetProducts)"
    item = instance_type if use == "hosting" else f"{instance_type}, {use}"
    return Price(item, usd, "hour", region, published, source)


def price_table(prices: PriceList, items: list[str]) -> str:
    """Return a table in Markdown: each price, and when and where it was read.

    First used in lesson 06, section 5.
    """
    lines = ["| | price | read | source |", "|:--|--:|:--|:--|"]
    for item in items:
        price = prices.of(item)
        if price is None:
            lines.append(f"| {item} | not known in {prices.region} | | |")
        else:
            lines.append(
                f"| {item} | ${price.usd:g} per {price.per} in {price.region} | "
                f"{price.read_on} | {price.source} |"
            )
    return "\n".join(lines)
