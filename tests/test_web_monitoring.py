"""What the log tells, in which lines it may be torn, and questions that drift.

It takes about 15 seconds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit
from scipy.stats import binom

from utils.deployment.costs import CostError
from utils.web.monitoring import (
    COLUMNS,
    DISTANCE,
    LEAST_HELD_OUT,
    NAMESPACE,
    MonitoringError,
    QuestionDrift,
    cost,
    dashboard,
    defuse,
    log_events,
    over_time,
    percentile,
    put_metric,
    read_log,
    summary,
    to_csv,
)

CANARY = "my neighbour's secret"


# What powertools' logger writes; a name of its own, as loggers live on.
WRITTEN = io.StringIO()
LOGGER = Logger(service="course-test", logger_handler=logging.StreamHandler(WRITTEN))


def lines_of(write: Callable[[], None]) -> list[str]:
    """What powertools prints meanwhile: the real form of its lines."""
    WRITTEN.seek(0)
    WRITTEN.truncate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        write()
    return (WRITTEN.getvalue() + printed.getvalue()).rstrip("\n").split("\n")


def request(
    number: int,
    status: int = 200,
    latency: float = 100.0,
    version: str = "tuned",
    route: str = "/api/generate",
    **metrics: float,
) -> list[str]:
    """The two lines of a request."""
    if route == "/api/generate" and status == 200:
        metrics = {"Answers": 1, "PromptTokens": 20, "CompletionTokens": 10} | metrics
    if route == "/api/generate":
        metrics = {"Latency": latency} | metrics

    def write() -> None:
        line = {"route": route, "status": status, "latency_ms": latency}
        line |= {"version": version, "request_id": f"id-{number}"}
        LOGGER.info("request", extra=line)
        emf = EphemeralMetrics(namespace="Course/Web", service="course-web")
        emf.add_dimension("version", version)
        emf.add_metadata("request_id", f"id-{number}")
        emf.add_metadata("status", status)
        for name, value in metrics.items():
            unit = MetricUnit.Milliseconds if "Latency" in name else MetricUnit.Count
            emf.add_metric(name, unit, value)
        if metrics:
            emf.flush_metrics()

    return lines_of(write)


# --- reading --------------------------------------------------------------------------


def test_both_lines_of_a_request_make_one_row() -> None:
    found = read_log(request(1, latency=12.5, EndpointLatency=9.5))
    (row,) = found.requests.to_dict("records")
    assert {name: row[name] for name in COLUMNS if name not in ("at", "code")} == {
        "request_id": "id-1",
        "route": "/api/generate",
        "version": "tuned",
        "status": 200,
        "latency_ms": 12.5,
        "endpoint_ms": 9.5,
        "answers": 1,
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "thumbs_up": row["thumbs_up"],
        "thumbs_down": row["thumbs_down"],
    }
    assert row["at"].tzinfo is not None
    assert abs((pandas.Timestamp.now("UTC") - row["at"]).total_seconds()) < 60
    assert (found.incomplete, found.unreadable, found.repeated) == (0, (), 0)


def test_the_services_own_lines_are_read() -> None:
    observe = pytest.importorskip("utils.web.service.observe")
    seen = observe.Seen("id-7", route="/api/generate", status=200, version="base")
    seen.asked, seen.endpoint_ms, seen.completion_tokens = True, 3.0, 4
    left = observe.Seen("id-8", route="/api/feedback", status=200, version="base")
    left.thumb = "down"

    def write() -> None:
        observer = observe.Observer()
        observer.request(seen)
        observer.request(left)
        observer.exception("id-7", ValueError("x"))

    found = read_log(lines_of(write))
    assert list(found.requests["completion_tokens"])[0] == 4
    assert list(found.requests["thumbs_down"])[1] == 1
    assert (found.incomplete, dict(found.others)) == (0, {"exception": 1})


def test_the_order_of_lines_changes_nothing() -> None:
    lines = [line for number in range(20) for line in request(number, 200 + number)]
    random.Random(1).shuffle(lines)
    found = read_log(lines).requests.sort_values("request_id", ignore_index=True)
    lines.sort()
    again = read_log(lines).requests.sort_values("request_id", ignore_index=True)
    pandas.testing.assert_frame_equal(found, again)
    assert len(found) == 20


@pytest.mark.parametrize("cut", [1, 30, 200, -1])
def test_a_torn_line_is_counted_and_named_and_its_text_is_not_told(cut) -> None:
    first, second = request(1)
    torn = first.replace("tuned", CANARY)[:cut]
    found = read_log([torn, second, *request(2)])
    assert [str(one) for one in found.unreadable] == [
        f"line 1 ({len(torn)} characters): torn JSON"
    ]
    assert CANARY not in repr(found) + str(found)
    assert "1 unreadable lines" in str(found)
    assert (len(found.requests), found.incomplete) == (2, 1)
    assert found.requests["status"].tolist() == [200, 200]


def test_a_request_whose_metrics_are_torn_is_incomplete_and_still_there() -> None:
    first, second = request(1)
    found = read_log([first, second[:50]])
    assert (len(found.requests), found.incomplete) == (1, 1)
    assert len(found.unreadable) == 1


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("INFO:     127.0.0.1:5000 - GET /", "no JSON"),
        ("[1, 2]", "no JSON object"),
        ("null", "no JSON object"),
        ("\ufffd\ufffd", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_record_is_named(line, where) -> None:
    (found,) = read_log([line]).unreadable
    assert found.why == where


@pytest.mark.parametrize(
    "line",
    [
        {"message": "request"},
        {"message": "request", "request_id": 7},
        {"message": ["list"], "request_id": "id-1"},
        {"_aws": {}, "ColdStart": [1]},
        {"level": "INFO"},
        {"message": "exception", "request_id": "id-1"},
    ],
)
def test_other_records_are_counted_by_their_messages(line) -> None:
    found = read_log([json.dumps(line)])
    assert sum(found.others.values()) == 1
    assert len(found.requests) == len(found.unreadable) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"status": "200"},
        {"latency_ms": None},
        {"latency_ms": True},
        {"timestamp": "yesterday"},
        {"route": 3},
        {"_aws": 5},
        {"_aws": {"Timestamp": "now"}},
        {"Latency": []},
        {"Latency": ["fast"]},
    ],
)
def test_a_field_of_another_kind_is_unknown_and_breaks_nothing(change) -> None:
    first, second = map(json.loads, request(1))
    if "_aws" in change or "Latency" in change:
        second |= change
    else:
        first |= change
    found = read_log([json.dumps(first), json.dumps(second)])
    assert len(found.requests) == 1
    summary(found.requests)


def test_a_line_that_comes_twice_counts_once() -> None:
    lines = [*request(1), *request(2)]
    found = read_log([*lines, *lines])
    assert (len(found.requests), found.repeated) == (2, 4)
    assert summary(found.requests).loc["all", "completion_tokens"] == 20


def test_lambdas_own_lines_are_no_mistake() -> None:
    lines = [
        "INIT_START Runtime Version: python:3.12.v1",
        "START RequestId: 1-2 Version: $LATEST",
        *request(1),
        "END RequestId: 1-2",
        "REPORT RequestId: 1-2\tDuration: 12.3 ms",
    ]
    found = read_log([line + "\n" for line in lines])
    assert (found.of_lambda, found.unreadable, len(found.requests)) == (4, (), 1)


def test_a_file_with_bytes_that_are_no_text_is_read(tmp_path) -> None:
    file = tmp_path / "log.jsonl"
    lines = "\n".join([*request(1), *request(2, version="a\u2028b")]) + "\n"
    file.write_bytes(b"\n" + lines.encode() + b'{"message": "\xff\xc3')
    found = read_log(file)
    assert len(found.requests) == 2
    assert [one.number for one in found.unreadable] == [6]
    with pytest.raises(MonitoringError, match="nosuch cannot be read"):
        read_log(tmp_path / "nosuch")
    with pytest.raises(MonitoringError, match="give a Path"):
        read_log(str(file))


def test_events_of_cloudwatch_are_read(aws) -> None:
    client, group = aws.session.client("logs"), "/aws/lambda/course-web"
    client.create_log_group(logGroupName=group)
    client.create_log_stream(logGroupName=group, logStreamName="one")
    now = int(pandas.Timestamp.now("UTC").timestamp() * 1000)
    lines = [line for number in range(30) for line in request(number)]
    client.put_log_events(
        logGroupName=group,
        logStreamName="one",
        logEvents=[{"timestamp": now, "message": line + "\n"} for line in lines],
    )
    found = read_log(log_events(aws, group))
    client.delete_log_group(logGroupName=group)
    assert len(found.requests) == 30
    assert found.incomplete == 0


def test_an_empty_log_has_no_figures_and_no_failure() -> None:
    found = read_log([])
    assert list(found.requests.columns) == list(COLUMNS)
    assert summary(found.requests).loc["all", "requests"] == 0
    assert over_time(found.requests).empty
    assert dashboard(found.requests)["latency"] == {"p50 (ms)": {}, "p95 (ms)": {}}


# --- figures --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed() -> pandas.DataFrame:
    """200 answers of `base`, 40 of `tuned`; errors, refusals and thumbs."""
    lines = []
    for number in range(200):
        lines += request(number, latency=number + 1.0, version="base")
    for number in range(200, 240):
        lines += request(number, latency=10.0, version="tuned")
    for number in range(240, 250):
        lines += request(number, 503, 5.0, "tuned", Errors=1)
    lines += request(250, 422, 1.0, "none", Refused=1)
    lines += request(251, 499, 1.0, "tuned")
    for number, thumb in enumerate(["ThumbsUp"] * 3 + ["ThumbsDown"], start=260):
        lines += request(number, version="tuned", route="/api/feedback", **{thumb: 1})
    lines += request(270, version="none", route="/api/health")
    return read_log(lines).requests


def test_figures_of_each_version(mixed) -> None:
    found = summary(mixed)
    assert list(found.index) == ["base", "none", "tuned", "all"]
    base, tuned = found.loc["base"], found.loc["tuned"]
    assert (base["p50_ms"], base["p95_ms"], base["p99_ms"]) == (100, 190, 198)
    assert (base["errors"], base["refused"]) == (0, 0)
    assert 0 < base["errors_high"] < 0.03  # Wilson's: none of 200 is not never
    assert (tuned["requests"], tuned["answers"]) == (51, 40)
    assert tuned["errors"] == pytest.approx(10 / 51)
    assert tuned["errors_low"] < 10 / 51 < tuned["errors_high"]
    assert tuned["refused"] == 0  # who leaves was not refused
    assert np.isnan(tuned["p99_ms"]) and tuned["p95_ms"] == 10
    assert (tuned["thumbs"], tuned["thumbs_up"]) == (4, 0.75)
    assert np.isnan(base["thumbs_up"])
    assert found.loc["none", "refused"] == 1
    assert found.loc["all", "requests"] == 252
    assert found.loc["all", "completion_tokens"] == 2400


@pytest.mark.parametrize("n", [1, 19, 20, 99, 100, 1000])
def test_a_percentile_needs_somebody_above_it(n) -> None:
    values = [float(number) for number in range(1, n + 1)]
    for share in (0.5, 0.95, 0.99):
        found = percentile(values, share)
        if n * (1 - share) < 0.999:
            assert np.isnan(found)
        else:
            assert sum(value > found for value in values) / n <= 1 - share + 1e-9
            assert sum(value >= found for value in values) / n > 1 - share - 1e-9


def test_the_dashboard_follows_the_clock() -> None:
    found = read_log([line for n in range(40) for line in request(n)]).requests
    start = pandas.Timestamp("2026-01-01", tz="UTC")
    minutes = [0] * 30 + [3] * 10  # and nothing in between
    found["at"] = [start + pandas.Timedelta(minutes=minute) for minute in minutes]
    found.loc[found.index[-4:], "status"] = 503.0
    panels = dashboard(found)
    assert panels["requests"]["requests"] == {0: 30, 1: 0, 2: 0, 3: 10}
    assert panels["requests"]["errors"] == {0: 0, 1: 0, 2: 0, 3: 4}
    assert panels["latency"]["p95 (ms)"] == {0: 100}
    assert panels["latency"]["p50 (ms)"] == {0: 100, 3: 100}
    assert panels["tokens"]["generated tokens"][0] == 300


def test_an_answer_costs_what_the_machines_cost_also_while_they_wait(mixed) -> None:
    found = cost(mixed, price_per_hour=1.2, hours=2)
    assert (found.answers, found.total) == (240, 2.4)
    assert found.per_thousand == pytest.approx(10)
    assert found.per_million_tokens == pytest.approx(2.4 / 2400 * 1e6)
    assert cost(mixed, 1.2, 4).per_thousand == pytest.approx(20)
    with pytest.raises(MonitoringError, match="Nothing was answered"):
        cost(mixed[mixed["status"] != 200], 1.2, 2)
    with pytest.raises(MonitoringError, match="hours is 0"):
        cost(mixed, 1.2, 0)
    with pytest.raises(CostError, match="price_per_hour"):
        cost(mixed, -1, 2)


# --- drift ----------------------------------------------------------------------------


def on_a_circle(texts: Any) -> np.ndarray:
    """A text that is a number becomes the vector at that angle, in degrees."""
    angles = np.radians([float(text) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3


def draw(generator: np.random.Generator, n: int, spread: float = 10) -> list[str]:
    return [f"{angle:.6f}" for angle in np.abs(generator.normal(0, spread, n))]


def test_a_distance_is_one_minus_the_cosine_to_the_nearest() -> None:
    drift = QuestionDrift(["0", "90"], ["10"] * LEAST_HELD_OUT, on_a_circle)
    expected = [0, 1 - np.cos(np.radians(30)), 1 - np.cos(np.radians(45)), 1]
    assert drift.distances(["0", "60", "45", "180"]) == pytest.approx(expected)
    assert drift.threshold == pytest.approx(1 - np.cos(np.radians(10)))


def test_the_threshold_is_what_95_of_100_do_not_exceed() -> None:
    held_out = [str(angle) for angle in range(1, 101)]
    drift = QuestionDrift(["0"], held_out, on_a_circle)
    assert drift.threshold == pytest.approx(1 - np.cos(np.radians(95)))


@pytest.mark.parametrize(("held_out", "batch"), [(20, 200), (60, 30), (60, 600)])
def test_batches_without_drift_sound_the_alarm_rarely(held_out, batch) -> None:
    """However small the held-out sample; the plain binomial test fails here."""
    generator, alpha, runs = np.random.default_rng(1), 0.05, 500
    alarms = plain = 0
    for _ in range(runs):
        drift = QuestionDrift(["0"], draw(generator, held_out), on_a_circle)
        found = drift.check(draw(generator, batch), alpha)
        alarms += found.alarm
        over = round(found.share_over.value * found.share_over.n)
        plain += binom.sf(over - 1, found.share_over.n, 0.05) <= alpha
    assert alarms <= binom.ppf(0.999, runs, alpha)
    if batch > 3 * held_out:
        assert plain > binom.ppf(0.999, runs, 2 * alpha)


def test_drift_sounds_the_alarm_and_names_the_farthest() -> None:
    generator = np.random.default_rng(2)
    drift = QuestionDrift(["0"], draw(generator, 60), on_a_circle)
    found = drift.check([*draw(generator, 60, 25), "170"])
    assert found.alarm and str(found).startswith("ALARM: ")
    assert found.farthest(1)[0][0] == "170"
    assert found.interval[0] > 0.05
    assert "170" not in repr(found)


def test_a_small_batch_does_not_cry_wolf() -> None:
    generator = np.random.default_rng(3)
    drift = QuestionDrift(["0"], draw(generator, 60), on_a_circle)
    assert not drift.check(["100"]).alarm
    assert not drift.check(["0", "100"]).alarm
    assert drift.check(["100", "101", "102", "103", "104"]).alarm


def test_one_question_asked_a_hundred_times_is_one() -> None:
    held_out = draw(np.random.default_rng(4), 60)
    drift = QuestionDrift(["0"], held_out, on_a_circle)
    found = drift.check(["100", " 100 ", "100\n"] * 50 + ["0"])
    assert (found.share_over.n, found.alarm) == (2, False)


def test_a_text_without_a_vector_is_like_nothing() -> None:
    drift = QuestionDrift(
        ["0"], ["1"] * 20, lambda texts: np.array([[float(t), 0.0] for t in texts])
    )
    assert list(drift.distances(["0", "1"])) == [1, 1]


def test_questions_on_another_subject_are_noticed_by_their_meaning() -> None:
    """The course's own: other wordings of what was trained, and general knowledge."""
    from utils.course import ROOT
    from utils.encoder import load_encoder

    course = pandas.read_csv(ROOT / "data" / "amazon_sagemaker_faqs.csv")
    general = pandas.read_csv(ROOT / "data" / "general_questions.csv")["instruction"]
    facts = list(course["fact"].unique()[:40])
    course = course[course["fact"].isin(facts)]
    trained = course[course["wording"] == "trained"]["instruction"]
    free = list(course[course["wording"] == "free"]["instruction"])
    drift = QuestionDrift(list(trained), free[::2], load_encoder().embed)
    assert not drift.check(free[1::2]).alarm
    found = drift.check(general[:20])
    assert found.alarm and found.share_over.value > 0.9


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(MonitoringError, match="1 training questions and 19 held-out"):
        QuestionDrift(["0"], ["1"] * 19, on_a_circle)
    drift = QuestionDrift(["0"], ["1"] * 20, on_a_circle)
    with pytest.raises(MonitoringError, match="no questions"):
        drift.check([])


def test_distances_reach_cloudwatch(aws) -> None:
    generator = np.random.default_rng(5)
    drift = QuestionDrift(["0"], draw(generator, 60), on_a_circle)
    found = drift.check(draw(generator, 320, 60))
    assert put_metric(aws, found) == 320
    client = aws.session.client("cloudwatch")
    now = pandas.Timestamp.now("UTC")
    (point,) = client.get_metric_statistics(
        Namespace=NAMESPACE,
        MetricName=DISTANCE,
        Dimensions=[{"Name": "service", "Value": "course-web"}],
        StartTime=now - pandas.Timedelta(hours=1),
        EndTime=now + pandas.Timedelta(hours=1),
        Period=86400,
        Statistics=["SampleCount", "Maximum"],
    )["Datapoints"]
    assert point["SampleCount"] == 320
    assert point["Maximum"] == pytest.approx(found.distances.max(), abs=1e-3)


# --- for a spreadsheet ----------------------------------------------------------------


@pytest.mark.parametrize(
    "formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\uff1d1", "\u22121"]
)
@pytest.mark.parametrize(
    "before",
    ["", " ", '"', "'", "\t", "\r", "\n", "\ufeff", "\u200b", "\u00a0 ' ", '""  '],
)
def test_a_comment_never_becomes_a_formula(before, formula) -> None:
    assert defuse(before + formula) == "'" + before + formula


@pytest.mark.parametrize("text", ["\tx", "\rx", "\nx", "\x00x", "\ufeffx"])
def test_a_cell_that_begins_unseen_is_defused(text) -> None:
    assert defuse(text) == "'" + text


@pytest.mark.parametrize("text", ["", "fine", "1+1=2", "a@b.example", '"quoted"', "é"])
def test_what_is_harmless_stays(text) -> None:
    assert defuse(text) == text


def test_an_export_opens_as_it_was(tmp_path) -> None:
    rows = [
        {"request_id": "a", "comment": '=HYPERLINK("http://x")', "latency_ms": -1.5},
        {"request_id": "b", "comment": "two; \n=1+1", "=thumb": "up", "n": 3},
        {"request_id": "c", "sources": ["one", "two"], "comment": "half \ud83d, \0é"},
        {"request_id": "d", "latency_ms": float("nan"), "comment": None, "ok": True},
    ]
    file = to_csv(rows, tmp_path / "answers.csv")
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header, *found = csv.reader(stream)
    assert header == [
        *("request_id", "comment", "latency_ms", "'=thumb", "n", "sources", "ok"),
    ]
    assert found[0] == ["a", '\'=HYPERLINK("http://x")', "-1.5", "", "", "", ""]
    assert found[1] == ["b", "two; \n=1+1", "", "up", "3", "", ""]
    assert found[2][1] == "half ?, é"
    assert json.loads(found[2][5]) == ["one", "two"]
    assert found[3] == ["d", "", "", "", "", "", "True"]
    text = file.read_text("utf-8-sig")
    assert '"two; \n=1+1"' in text  # in quotes, so that ";" begins no cell
    frame = pandas.DataFrame(rows[:2])
    again = to_csv(frame, tmp_path / "frame.csv").read_text("utf-8-sig")
    assert "'=HYPERLINK" in again


def test_no_rows_are_no_failure(tmp_path: Path) -> None:
    assert to_csv([], tmp_path / "a.csv").read_text("utf-8-sig").strip() == ""
