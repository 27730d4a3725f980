"""What the log tells: speed, errors, tokens, thumbs, costs, and questions that drift.

The function writes one or two JSON lines a request (`utils.web.service.observe`): one
for people, and one in CloudWatch's embedded metric format, which AWS makes metrics of:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html.
Here both are read back, from a file, from lines, or from CloudWatch Logs. A line that
cannot be read is counted and named by its number; its text is not repeated, since it
may hold somebody's question.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
from scipy.stats import betabinom

from utils.course import CourseError, portable_name
from utils.deployment.costs import SECONDS_AN_HOUR, dollars_per_million_tokens
from utils.evaluation.scores import Proportion, proportion
from utils.files import write_text

if TYPE_CHECKING:
    from utils.deployment.aws import Aws

NAMESPACE, SERVICE, DISTANCE = "Course/Web", "course-web", "QuestionDistance"
GENERATE = "/api/generate"
CLIENT_LEFT = 499  # neither an error nor refused: nobody waited for the answer
ALL = "all"
# Metric of the embedded format → column
METRICS = {
    "Latency": "latency_ms",
    "EndpointLatency": "endpoint_ms",
    "Answers": "answers",
    "PromptTokens": "prompt_tokens",
    "CompletionTokens": "completion_tokens",
    "ThumbsUp": "thumbs_up",
    "ThumbsDown": "thumbs_down",
}
NUMBERS = ("status", *METRICS.values())
COLUMNS = ("at", "request_id", "route", "version", "code", *NUMBERS)
# What Lambda itself writes about a call: "AWS Lambda's log format" in its guide.
OF_LAMBDA = re.compile(
    r"(START|END|REPORT) RequestId: |INIT_START |INIT_REPORT |XRAY TraceId: "
    r"|EXTENSION\t|LOGS\t|TELEMETRY\t"
)
FAR = 0.95  # share of held-out questions that are no farther than the threshold
LEAST_HELD_OUT = 20  # fewer have no 95th percentile but their largest
VALUES_AT_ONCE = 150  # of a datum of PutMetricData, by botocore's model
QUOTES = "'\"`´‘’‚“”„«»‹›"
FORMULA = "=+-@＝＋－＠−"  # also as wide characters, and the minus sign


class MonitoringError(CourseError, ValueError):
    """A log, a figure or a batch of questions that cannot be used; says what to do."""


# --- reading --------------------------------------------------------------------------


@dataclass(frozen=True)
class Unreadable:
    """A line that is no record, without its text."""

    number: int
    characters: int
    why: str

    def __str__(self) -> str:
        return f"line {self.number} ({self.characters} characters): {self.why}"


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        requests: a row for each request, with `COLUMNS`; what is not known is NaN.
        others: other records by their messages, such as "exception", and how many.
        unreadable: lines that are none.
        of_lambda: lines that Lambda itself wrote.
        repeated: lines that came a second time, as CloudWatch may deliver them.
        incomplete: requests of which one of the two lines is missing.
    """

    requests: pandas.DataFrame = field(repr=False)
    others: Mapping[str, int]
    unreadable: tuple[Unreadable, ...]
    of_lambda: int
    repeated: int
    incomplete: int

    def __str__(self) -> str:
        others = sum(self.others.values())
        text = f"{len(self.requests)} requests, {others} other records"
        for what, count in (
            ("unreadable lines", len(self.unreadable)),
            ("lines that came twice", self.repeated),
            ("requests of which a line is missing", self.incomplete),
        ):
            if count:
                text += f", {count} {what}"
        return text


def read_log(source: Path | Iterable[str | Mapping[str, Any]]) -> Log:
    """Read what the function has logged.

    First used in lesson 07, section 8.

    Args:
        source: a file, its lines, or events of CloudWatch Logs; see `log_events`.

    Raises:
        MonitoringError: if the file cannot be read.
    """
    rows: dict[str, dict[str, Any]] = {}
    seen: dict[str, set[str]] = {}
    others: Counter[str] = Counter()
    unreadable, of_lambda, repeated = [], 0, 0
    for number, line in _lines(source):
        if OF_LAMBDA.match(line):
            of_lambda += 1
            continue
        record, why = _record(line)
        if record is None:
            unreadable.append(Unreadable(number, len(line), why))
            continue
        request = record.get("request_id")
        kind = (
            "metrics" if "_aws" in record else str(record.get("message", "no message"))
        )
        if kind not in ("metrics", "request") or not isinstance(request, str):
            others[kind] += 1
            continue
        kinds = seen.setdefault(request, set())
        if kind in kinds:
            repeated += 1
            continue
        kinds.add(kind)
        found = _of_metrics(record) if kind == "metrics" else _of_request(record)
        row = rows.setdefault(request, {"request_id": request})
        # The line for people comes first, and says more of the whole request.
        rows[request] = row | found if kind == "request" else found | row
    requests = pandas.DataFrame(list(rows.values()), columns=list(COLUMNS))
    requests[list(NUMBERS)] = requests[list(NUMBERS)].astype(float)
    requests["at"] = pandas.to_datetime(requests["at"], utc=True)
    requests["version"] = requests["version"].fillna("none")
    unmeasured = (
        (requests["route"] == GENERATE)
        & (requests["status"] == 200)
        & requests["answers"].isna()
    )
    incomplete = int((requests["route"].isna() | unmeasured).sum())
    return Log(
        requests, dict(others), tuple(unreadable), of_lambda, repeated, incomplete
    )


def log_events(aws: Aws, group: str, **more: Any) -> Iterator[dict[str, Any]]:
    """Yield the events of a log group in the order of time.

    Args:
        aws: the account.
        group: its name, such as "/aws/lambda/NAME".
        **more: of FilterLogEvents, such as `startTime` in milliseconds.
    """
    pages = aws.session.client("logs").get_paginator("filter_log_events")
    for page in pages.paginate(logGroupName=group, **more):
        yield from page["events"]


def _lines(
    source: Path | Iterable[str | Mapping[str, Any]],
) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    if isinstance(source, str):
        raise MonitoringError("source is one text: give a Path, or a list of lines.")
    if isinstance(source, Path):
        try:
            # A torn character is a torn line, and no end of all reading.
            text = source.read_text("utf-8", errors="replace")
        except OSError as error:
            raise MonitoringError(
                f"{portable_name(source)} cannot be read ({error.strerror})."
            ) from error
        source = text.split("\n")  # not splitlines, which also cuts at U+2028
    for number, item in enumerate(source, start=1):
        line = item if isinstance(item, str) else str(item.get("message", ""))
        if line.strip():
            yield number, line.strip()


def _record(line: str) -> tuple[dict[str, Any] | None, str]:
    """Return a line's record, or None and why it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, "torn JSON" if line.startswith("{") else "no JSON"
    return (record, "") if isinstance(record, dict) else (None, "no JSON object")


def _of_request(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that the line for people holds."""
    found: dict[str, Any] = {
        name: record[name]
        for name in ("route", "version", "code")
        if isinstance(record.get(name), str)
    }
    for name in ("status", "latency_ms"):
        if not math.isnan(number := _number(record.get(name))):
            found[name] = number
    try:
        found["at"] = pandas.Timestamp(str(record["timestamp"]).replace(",", "."))
        if found["at"].tzinfo is None:
            found["at"] = found["at"].tz_localize("UTC")
    except (KeyError, ValueError):
        pass  # the other line has its time as well
    return found


def _of_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a line of the embedded metric format holds."""
    found: dict[str, Any] = {
        column: _number(record[name])
        for name, column in METRICS.items()
        if name in record
    }
    if isinstance(record.get("version"), str):
        found["version"] = record["version"]
    if "status" in record:
        found["status"] = _number(record["status"])
    stamp = record["_aws"].get("Timestamp") if isinstance(record["_aws"], dict) else 0
    if isinstance(stamp, int | float) and stamp:
        found["at"] = pandas.Timestamp(stamp, unit="ms", tz="UTC")
    return found


def _number(value: Any) -> float:
    """Return a metric's value: a list holds all that were added to it."""
    values = value if isinstance(value, list) else [value]
    good = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return float(sum(values)) if values and good else math.nan


# --- figures --------------------------------------------------------------------------


def summary(requests: pandas.DataFrame) -> pandas.DataFrame:
    """Return a table: a row for each version, and one for all.

    Counted are requests for answers. Percentiles are of those that were answered, the
    value that such a share does not exceed; with fewer answers than it takes to leave
    one out (20 for p95, 100 for p99) they are NaN. Shares have Wilson's interval at
    95%. Refused are status 400 to 498, errors from 500 on.

    First used in lesson 07, section 8.

    Args:
        requests: of a `Log`.
    """
    asked = requests[requests["route"] == GENERATE]
    rows = {
        name: _figures(asked[asked["version"] == name], _thumbs(requests, name))
        for name in sorted(asked["version"].unique())
    }
    rows[ALL] = _figures(asked, _thumbs(requests, None))
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("version")


def _figures(asked: pandas.DataFrame, thumbs: list[bool]) -> dict[str, float]:
    status = asked["status"]
    answered = asked[status == 200]
    found: dict[str, float] = {"requests": len(asked), "answers": len(answered)}
    for percent in (50, 95, 99):
        found[f"p{percent}_ms"] = percentile(answered["latency_ms"], percent / 100)
    shares = {
        "errors": list(status >= 500),
        "refused": list((status >= 400) & (status < CLIENT_LEFT)),
        "thumbs_up": thumbs,
    }
    for name, hits in shares.items():
        found |= _share(name, proportion(hits) if hits else None)
    found["thumbs"] = len(thumbs)
    for name in ("prompt_tokens", "completion_tokens"):
        found[name] = float(answered[name].sum())
    return found


def _share(name: str, share: Proportion | None) -> dict[str, float]:
    value, low, high = (
        (share.value, share.low, share.high) if share else (math.nan,) * 3
    )
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _thumbs(requests: pandas.DataFrame, version: str | None) -> list[bool]:
    """Return the thumbs that a version got, or all; True is up."""
    rows = requests if version is None else requests[requests["version"] == version]
    up, down = rows["thumbs_up"].sum(), rows["thumbs_down"].sum()
    return [True] * int(up) + [False] * int(down)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that this share of all does not exceed; NaN for too few."""
    known = np.asarray([one for one in values if not math.isnan(one)], float)
    if len(known) * (1 - share) < 1 - 1e-9:
        return math.nan
    return float(np.quantile(known, share, method="inverted_cdf"))


def over_time(requests: pandas.DataFrame, every: str = "1min") -> pandas.DataFrame:
    """Return what happened in each stretch of time: counts, tokens and percentiles.

    Args:
        requests: of a `Log`.
        every: length of a stretch, as pandas writes it.
    """
    asked = requests[requests["route"] == GENERATE].set_index("at").sort_index()
    stretches = asked.groupby(pandas.Grouper(freq=every))
    answered = asked[asked["status"] == 200].groupby(pandas.Grouper(freq=every))
    found = pandas.DataFrame({"requests": stretches.size()})
    found["errors"] = stretches["status"].agg(lambda one: (one >= 500).sum())
    found["completion_tokens"] = stretches["completion_tokens"].sum()
    for percent in (50, 95):
        found[f"p{percent}_ms"] = answered["latency_ms"].agg(
            lambda one, share=percent / 100: percentile(one, share)
        )
    return found


def dashboard(
    requests: pandas.DataFrame, every: str = "1min"
) -> dict[str, dict[str, dict[float, float]]]:
    """Return the lines of a dashboard, as `utils.display.plot_lines` takes them.

    First used in lesson 07, section 8.

    Args:
        requests: of a `Log`.
        every: length of a stretch of time, as pandas writes it.

    Returns:
        Name of a panel → name of a line → minutes since the first request → value. A
        stretch without answers has no latency.
    """
    found = over_time(requests, every)
    minutes = (found.index - found.index[0]).total_seconds() / 60 if len(found) else []
    panels = {
        "latency": {"p50 (ms)": "p50_ms", "p95 (ms)": "p95_ms"},
        "requests": {"requests": "requests", "errors": "errors"},
        "tokens": {"generated tokens": "completion_tokens"},
    }
    return {
        panel: {
            name: {
                float(minute): float(value)
                for minute, value in zip(minutes, found[column], strict=True)
                if not math.isnan(value)
            }
            for name, column in lines.items()
        }
        for panel, lines in panels.items()
    }


@dataclass(frozen=True)
class Cost:
    """What answers have cost on machines that bill by the hour, idle hours included.

    Attributes:
        per_thousand: US dollars per thousand answers.
        per_million_tokens: US dollars per million generated tokens.
        total: US dollars.
        answers: how many.
    """

    per_thousand: float
    per_million_tokens: float
    total: float
    answers: int


def cost(requests: pandas.DataFrame, price_per_hour: float, hours: float) -> Cost:
    """Return what the answers of a log have cost.

    First used in lesson 07, section 8.

    Args:
        requests: of a `Log`.
        price_per_hour: US dollars, of all machines.
        hours: for which they ran, with or without requests.

    Raises:
        MonitoringError: if there were no answers, or no hours.
        CostError: if the price is none.
    """
    answered = requests[(requests["route"] == GENERATE) & (requests["status"] == 200)]
    tokens = float(answered["completion_tokens"].sum())
    if not len(answered) or not tokens:
        raise MonitoringError("Nothing was answered: there is no price of an answer.")
    if not (math.isfinite(hours) and hours > 0):
        raise MonitoringError(f"hours is {hours}: give for how long the machines ran.")
    per_second = tokens / (hours * SECONDS_AN_HOUR)
    per_million = dollars_per_million_tokens(price_per_hour, per_second)
    total = price_per_hour * hours
    return Cost(1000 * total / len(answered), per_million, total, len(answered))


# --- questions that drift -------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """How far a batch of questions lies from what the model was trained on.

    Attributes:
        questions: the different ones, in their order.
        distances: of each to the nearest training question, 0 to 2.
        threshold: that 95% of the held-out questions do not exceed.
        share_over: of the questions, with Wilson's interval at 95%.
        p: how likely so many are over the threshold if nothing has changed.
        alarm: whether p is that small.
    """

    questions: tuple[str, ...] = field(repr=False)
    distances: np.ndarray = field(repr=False)
    threshold: float
    share_over: Proportion
    p: float
    alarm: bool

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the share at 95%."""
        return self.share_over.low, self.share_over.high

    def farthest(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the questions that are like nothing in the training data."""
        order = np.argsort(-self.distances, kind="stable")[:count]
        return [(self.questions[i], float(self.distances[i])) for i in order]

    def __str__(self) -> str:
        share, alarm = self.share_over, "ALARM: " if self.alarm else ""
        return (
            f"{alarm}{share.value:.0%} of {share.n} questions ({share.low:.0%} to "
            f"{share.high:.0%}) are farther from the training questions than 95% of "
            f"the held-out ones (p = {self.p:.2g})"
        )


class QuestionDrift:
    """Compares questions with those that a model was trained on, by their vectors.

    First used in lesson 07, section 8.
    """

    def __init__(
        self,
        train_questions: Sequence[str],
        held_out_questions: Sequence[str],
        encode: Callable[[Sequence[str]], np.ndarray],
    ):
        """Learn how far questions of the same kind lie from the training questions.

        Args:
            train_questions: those that the model was trained on.
            held_out_questions: others of the same kind, as different as live ones are
                expected to be.
            encode: texts → vectors, such as `Encoder.embed`.

        Raises:
            MonitoringError: if there are too few.
        """
        if not train_questions or len(held_out_questions) < LEAST_HELD_OUT:
            raise MonitoringError(
                f"{len(train_questions)} training questions and "
                f"{len(held_out_questions)} held-out ones: give at least 1 and "
                f"{LEAST_HELD_OUT}."
            )
        self._encode = encode
        self._train = _unit(encode(list(train_questions)))
        distances = np.sort(self.distances(held_out_questions))
        self._held_out = len(distances)
        self._rank = math.ceil(FAR * len(distances))
        self.threshold = float(distances[self._rank - 1])

    def distances(self, questions: Sequence[str]) -> np.ndarray:
        """Return one minus the cosine to the nearest training question, for each."""
        vectors = _unit(self._encode(list(questions)))
        return 1 - (vectors @ self._train.T).max(axis=1)

    def check(self, questions: Iterable[str], alpha: float = 0.01) -> Drift:
        """Say whether more questions than 5% lie far away, and whether it is luck.

        A question that is asked again counts once, whatever its spaces and capitals.
        The threshold comes from a sample, too: the share beyond the r-th of m held-out
        distances is Beta(m-r+1, r) (Wilks, Ann. Math. Stat. 12, 1941), so the number
        among n like questions is beta-binomial. With many held-out questions that is
        the binomial test against 5%; with few the binomial would sound the alarm too
        often.

        Args:
            questions: a batch of live ones.
            alpha: how often a batch without drift may sound the alarm.

        Raises:
            MonitoringError: if there are none.
        """
        different = {" ".join(text.split()).casefold(): text for text in questions}
        kept = tuple(different.values())
        if not kept:
            raise MonitoringError(
                "There are no questions in this batch: wait for some."
            )
        distances = self.distances(kept)
        over = distances > self.threshold
        beyond = self._held_out - self._rank + 1
        chance = betabinom.sf(over.sum() - 1, len(kept), beyond, self._rank)
        share = proportion(list(over))
        p = min(1.0, float(chance))
        return Drift(kept, distances, self.threshold, share, p, p <= alpha)


def put_metric(aws: Aws, drift: Drift, service: str = SERVICE) -> int:
    """Send the distances of a batch to CloudWatch, where an alarm can watch them.

    Args:
        aws: the account.
        drift: a batch that was checked.
        service: the metric's only dimension. The alarm QuestionDrift of a stack watches
            the stack's name: `put_metric(aws, drift, service=guard.name("web"))`.

    Returns:
        How many values were sent.
    """
    client = aws.session.client("cloudwatch")
    values = [round(max(0.0, float(one)), 4) for one in drift.distances]
    now = datetime.now(UTC)
    for start in range(0, len(values), VALUES_AT_ONCE):
        datum = {
            "MetricName": DISTANCE,
            "Dimensions": [{"Name": "service", "Value": service}],
            "Timestamp": now,
            "Values": values[start : start + VALUES_AT_ONCE],
            "Unit": "None",
        }
        client.put_metric_data(Namespace=NAMESPACE, MetricData=[datum])
    return len(values)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length one; one of zeros stays, and is like nothing."""
    vectors = np.asarray(vectors, float)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


# --- for people, in a spreadsheet -----------------------------------------------------


def to_csv(rows: Iterable[Mapping[str, Any]] | pandas.DataFrame, path: Path) -> Path:
    """Write rows as CSV that no spreadsheet takes for formulas.

    Whatever a user has typed may begin as a formula does, and would run when the file
    is opened (OWASP, "CSV Injection"). Such a cell gets an apostrophe in front. Texts
    stand in quotes, so that a semicolon does not begin a cell either; the file begins
    with the mark by which Excel knows UTF-8.

    Args:
        rows: such as items of the table of answers; they may lack columns.
        path: of the file.
    """
    if isinstance(rows, pandas.DataFrame):
        rows = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in columns])
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return write_text(path, "\ufeff" + text.getvalue())


def defuse(text: str) -> str:
    """Return a text that is no formula: an apostrophe in front, if it begins as one.

    Quotes, spaces and what is not seen do not count as its beginning.
    """
    start = 0
    while start < len(text) and (
        text[start] in QUOTES or unicodedata.category(text[start])[0] in "ZC"
    ):
        start += 1
    hidden = unicodedata.category(text[0])[0] == "C" if text else False
    risky = hidden or (start < len(text) and text[start] in FORMULA)
    return f"'{text}" if risky else text


def _cell(value: Any) -> Any:
    """Return a value as it may stand in a cell; a number stays one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return value.item() if isinstance(value, np.number) else value
    if isinstance(value, list | tuple | set | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    # Half a pair of surrogates has no UTF-8, and a spreadsheet ends a text at NUL.
    text = str(value).replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    return defuse(text)
