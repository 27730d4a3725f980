"""Prices: the snapshot, AWS's own price list, and which of them is asked."""

from __future__ import annotations

import ast
import csv
import json
import re
from types import SimpleNamespace
from typing import Any

import boto3
import nbformat
import pytest
from botocore.stub import Stubber

from utils.course import ROOT
from utils.deployment import prices
from utils.deployment.prices import (
    COLUMNS,
    SNAPSHOT,
    Price,
    PriceError,
    PriceList,
    ask_price_list,
    price_table,
    read_snapshot,
)


def account(session: Any = None, region: str = "us-east-1") -> SimpleNamespace:
    """What a price list needs to know of an account: a real one has a session."""
    return SimpleNamespace(region=region, session=session, real=session is not None)


def snapshot_price(item: str) -> Price:
    return next(found for found in read_snapshot() if found.item == item)


def test_a_price_holds_in_its_region_only() -> None:
    assert PriceList(account()).of("ml.g5.xlarge") == snapshot_price("ml.g5.xlarge")
    assert PriceList(account(region="eu-west-1")).of("ml.g5.xlarge") is None


def test_the_table_says_where_a_price_is_from_and_where_there_is_none() -> None:
    known = snapshot_price("ml.g5.xlarge")
    table = price_table(PriceList(account()), ["ml.g5.xlarge", "ml.p5.48xlarge"])
    first, last = table.splitlines()[2:]
    assert first == (
        f"| ml.g5.xlarge | ${known.usd:g} per hour in us-east-1 | {known.read_on} | "
        f"{known.source} |"
    )
    assert last == "| ml.p5.48xlarge | not known in us-east-1 | | |"


def test_snapshot_says_of_each_price_when_and_where_it_was_read() -> None:
    found = read_snapshot()
    assert {"ml.g5.xlarge", "ml.g4dn.xlarge", "S3 Standard"} <= {p.item for p in found}
    assert len({(one.item, one.region) for one in found}) == len(found)
    for one in found:
        assert one.read_on.startswith("20") and len(one.source) > 20
    assert {one.per for one in found} == set(prices.UNITS)


def test_notebook_shows_the_snapshot_as_it_is() -> None:
    """Its prices and the days of reading are written in one place, the table."""
    path = ROOT / "notebooks" / "06_djl_deployment.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    cell = next(cell for cell in cells if cell.id == "prices-run")
    shown = cell.outputs[0]["data"]["text/markdown"]
    items = [line.split(" | ")[0].strip("| ") for line in shown.splitlines()[2:]]
    assert shown == price_table(PriceList(account()), items)


def test_the_experiment_says_of_each_price_when_and_where_it_was_read() -> None:
    """Each that its code names is shown in full, and its prose types none."""
    path = ROOT / "notebooks" / "experiments" / "06_production.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    strings = {
        node.value
        for cell in code
        if "prices.of" in cell.source
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Constant)
    }
    used = [price for price in read_snapshot() if price.item in strings]
    assert len(used) >= 6
    shown = [o.get("text", "") for cell in code for o in cell.outputs]
    lines = "".join(shown).splitlines()
    assert [str(price) for price in used if str(price) not in lines] == []
    for cell in cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"(US)?\$ ?\d|\d ?(USD|dollars)", cell.source), cell.id


def test_a_price_is_told_with_its_day_and_source() -> None:
    price = snapshot_price("ml.g5.xlarge")
    for part in (price.item, f"${price.usd:g}", price.read_on, price.source):
        assert part in str(price)


@pytest.mark.parametrize("column", ["read_on", "source"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_no_row_may_lack_its_day_or_source(tmp_path, column, empty) -> None:
    """Each row of the shipped table in turn is robbed of it, and that is noticed."""
    with SNAPSHOT.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", row["read_on"]) for row in rows)
    for number in range(len(rows)):
        planted = [dict(row) for row in rows]
        planted[number][column] = empty
        path = tmp_path / "prices.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(planted)
        with pytest.raises(PriceError, match=f"line {number + 2}: {column} is missing"):
            read_snapshot(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ml.g5.xlarge,us-east-1,cheap,hour,2026-01-01,here", "line 2: .*'cheap'"),
        ("ml.g5.xlarge,us-east-1,1.4,day,2026-01-01,here", "line 2: .*'day'"),
        ("ml.g5.xlarge,us-east-1,1.4,hour,,here", "line 2: read_on is missing"),
        ("ml.g5.xlarge,us-east-1,1.4,hour,2026-01-01", "line 2: source is missing"),
    ],
)
def test_snapshot_that_cannot_be_read(tmp_path, line, complaint) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("item,region,usd,per,read_on,source\n" + line + "\n")
    with pytest.raises(PriceError, match=complaint):
        read_snapshot(path)


def product(usd, unit="Hrs", on_demand=True, published="2026-11-02T18:17:12Z"):
    """One product as pricing:GetProducts sends it: a text that holds JSON."""
    sku, term, rate = "2ZTBT3DNV5BNWVZ9", "JRTCKXETXF", "6YS6EN2CT7"
    dimension = {
        "unit": unit,
        "endRange": "Inf",
        "description": f"${usd} per Hosting ml.g5.xlarge hour in US East (N. Virginia)",
        "appliesTo": [],
        "rateCode": f"{sku}.{term}.{rate}",
        "beginRange": "0",
        "pricePerUnit": {"USD": usd},
    }
    terms = {
        f"{sku}.{term}": {
            "priceDimensions": {f"{sku}.{term}.{rate}": dimension},
            "sku": sku,
            "effectiveDate": "2026-11-01T00:00:00Z",
            "offerTermCode": term,
            "termAttributes": {},
        }
    }
    return json.dumps(
        {
            "product": {
                "productFamily": "ML Instance",
                "attributes": {
                    "servicecode": "AmazonSageMaker",
                    "servicename": "Amazon SageMaker",
                    "regionCode": "us-east-1",
                    "location": "US East (N. Virginia)",
                    "locationType": "AWS Region",
                    "component": "Hosting",
                    "instanceName": "ml.g5.xlarge",
                    "instanceType": "ml.g5.xlarge-Hosting",
                    "usagetype": "USE1-Host:ml.g5.xlarge",
                    "operation": "RunInstance",
                },
                "sku": sku,
            },
            "serviceCode": "AmazonSageMaker",
            "terms": {"OnDemand": terms} if on_demand else {"Reserved": terms},
            "version": "20261102181712",
            "publicationDate": published,
        }
    )


class StubbedSession:
    """A session whose price list answers with these pages."""

    def __init__(self, *pages):
        self._client = boto3.Session().client(
            "pricing",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
        self.stubber = Stubber(self._client)
        for number, page in enumerate(pages):
            if isinstance(page, str):
                self.stubber.add_client_error("get_products", page)
                continue
            answer = {"FormatVersion": "aws_v1", "PriceList": page}
            if number + 1 < len(pages):
                answer["NextToken"] = f"page {number + 1}"
            self.stubber.add_response("get_products", answer)
        self.asked = []
        self._client.meta.events.register(
            "provide-client-params.pricing.GetProducts", self._keep
        )

    def _keep(self, params, **_):
        self.asked.append(params)

    def client(self, service, region_name):
        assert (service, region_name) == ("pricing", prices.PRICE_LIST_REGION)
        self.stubber.activate()
        return self._client


def test_price_list_of_aws_is_not_asked_for_what_is_no_instance() -> None:
    session = StubbedSession([product("1.5000000000")])
    known = PriceList(account(session))
    for item in ("S3 Standard", "Bedrock Llama 3 8B Instruct, output"):
        assert known.of(item) == snapshot_price(item)
    assert session.asked == []


def test_price_list_of_aws_is_asked_once_and_goes_before_the_snapshot() -> None:
    session = StubbedSession([product("1.5000000000")])
    known = PriceList(account(session))
    for _ in range(2):
        found = known.of("ml.g5.xlarge")
        assert (found.usd, found.per, found.read_on) == (1.5, "hour", "2026-11-02")
        assert "price list" in found.source
    asked = session.asked[0]
    assert len(session.asked) == 1
    assert asked["ServiceCode"] == "AmazonSageMaker"
    assert {one["Field"]: one["Value"] for one in asked["Filters"]} == {
        "instanceName": "ml.g5.xlarge",
        "component": "Hosting",
        "regionCode": "us-east-1",
    }
    assert known.of("S3 Standard") == snapshot_price("S3 Standard")


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([[product("1.4080000000")], [product("1.4080000000")]], 1.408),
        ([[product("1.4080000000"), product("0.0000000000")]], 1.408),
        ([[product("1.4080000000"), product("7.0", unit="Quantity")]], 1.408),
        ([[product("1.4080000000"), product("1.2", on_demand=False)]], 1.408),
        ([[product("1.4080000000"), product("2.0")]], None),  # which of them?
        ([[]], None),
        (["AccessDeniedException"], None),
    ],
)
def test_price_list_gives_one_price_or_none(pages, expected) -> None:
    found = ask_price_list(StubbedSession(*pages), "ml.g5.xlarge", "us-east-1")
    assert (found and found.usd) == expected


def test_where_the_price_list_is_not_allowed_the_snapshot_serves() -> None:
    session = StubbedSession("AccessDeniedException")
    known = PriceList(account(session))
    assert known.of("ml.g5.xlarge") == snapshot_price("ml.g5.xlarge")
