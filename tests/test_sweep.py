"""What a learner sees of a sweep: its table and its curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from support.job_folder import HYPERPARAMETERS, ROWS
from support.tiny_artifact import save_chat_base
from support.training import packed
from support.tuning import IMAGE, PROGRAM, new_name, request, wait
from utils.jobs.source import METRICS, hyperparameters, job_source
from utils.jobs.sweep import (
    SweepError,
    _value,
    held_out_curves,
    results,
)

# A script that writes what the entry script writes: the loss falls, and turns up.
SCRIPT = """
import argparse, sys

parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--rank", type=int)
parser.add_argument("--kind")
given = parser.parse_args()
if given.rank == 8:
    sys.exit("rank 8 breaks it")
for epoch in range(1, 5):
    loss = 2 - 0.5 * epoch + given.rate * epoch**2
    print(f"step={3 * epoch - 1} train_loss=9.000000", flush=True)
    print(f"step={3 * epoch} held_out_loss={loss:.6f}", flush=True)
"""
RANGES = {
    "CategoricalParameterRanges": [
        {"Name": "rate", "Values": ["0.01", "0.1"]},
        {"Name": "rank", "Values": ["4", "8"]},
        {"Name": "kind", "Values": ['"it\'s"']},
    ]
}


@pytest.fixture(scope="module")
def sweep(aws) -> str:
    """A tuning job that has ended, of which half of the jobs have failed."""
    s3 = aws.session.client("s3")
    s3.put_object(
        Bucket=aws.bucket,
        Key="tuned/sourcedir.tar.gz",
        Body=packed({PROGRAM: SCRIPT}),
    )
    client = aws.session.client("sagemaker")
    given = request(
        aws.role,
        aws.bucket,
        strategy="Grid",
        jobs=4,
        at_once=4,
        ranges=RANGES,
        pattern=METRICS["validation:loss"],
    )
    client.create_hyper_parameter_tuning_job(**given)
    wait(client, given["HyperParameterTuningJobName"])
    return given["HyperParameterTuningJobName"]


def test_the_table_has_a_row_a_job_and_numbers_as_numbers(aws, sweep) -> None:
    table = results(aws, sweep)
    assert list(table.columns) == [
        *("job", "rate", "rank", "kind", "objective", "status", "seconds", "note")
    ]
    assert table.job.str.startswith(sweep).all() and len(table) == 4
    assert table.rate.tolist() == [0.01, 0.01, 0.1, 0.1]
    assert table["rank"].tolist() == [4, 8, 4, 8]
    assert table["rank"].dtype == "int64" and table.rate.dtype == "float64"
    assert set(table.kind) == {"it's"}
    assert table.status.tolist() == ["Completed", "Failed"] * 2
    assert table.objective.tolist()[::2] == [0.16, 1.6]
    assert table.objective.isna().tolist() == [False, True] * 2
    assert (table.seconds >= 1).all()
    assert table.note.tolist()[::2] == ["", ""]
    assert "rank 8 breaks it" in table.note[1]


def test_the_curves_are_those_of_the_log(aws, sweep) -> None:
    table = results(aws, sweep)
    curves = held_out_curves(aws, table.job)
    assert list(curves) == table.job.tolist()
    first, failed, third, _ = curves.values()
    assert [step for step, _ in first] == [3, 6, 9, 12]
    assert [loss for _, loss in first] == [1.51, 1.04, 0.59, 0.16]
    assert failed == []
    assert [loss for _, loss in third] == [1.6, 1.4, 1.4, 1.6]  # it turns up
    assert held_out_curves(aws, table.job[0]) == {table.job[0]: first}


def test_what_is_not_there_is_said(aws) -> None:
    with pytest.raises(SweepError, match="There is no tuning job 'Nobody-1'"):
        results(aws, "Nobody-1")
    assert held_out_curves(aws, ["nobody-001"]) == {"nobody-001": []}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-05),
        ("16", 16),
        ("adam", "adam"),
        ('"adam"', "adam"),
        ('"it\'s"', "it's"),
        ("[1, 2]", "[1, 2]"),
        (hyperparameters(kind="it's")["kind"], "it's"),
        (hyperparameters(kind="7")["kind"], "7"),
        (hyperparameters(rate=2e-4)["rate"], 2e-4),
    ],
)
def test_values_are_what_was_given(text, value) -> None:
    found = _value(text)
    assert (found, type(found)) == (value, type(value))


class Listed:
    """A client whose tuning job has one training job."""

    def __init__(self, tuned: dict[str, str]):
        self.tuned = tuned

    def client(self, name: str) -> Listed:
        return self

    session = property(lambda self: self)

    def get_paginator(self, name: str) -> Listed:
        return self

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        job = {"TrainingJobName": "one-001-ab", "TrainingJobStatus": "InProgress"}
        return [{"TrainingJobSummaries": [job | {"TunedHyperParameters": self.tuned}]}]

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        return {}


def test_a_job_that_runs_has_no_results_yet() -> None:
    [row] = results(Listed({"rate": "0.1"}), "one").to_dict("records")
    assert math.isnan(row["objective"]) and math.isnan(row["seconds"])
    assert (row["status"], row["note"], row["rate"]) == ("InProgress", "", 0.1)


def test_a_hyperparameter_called_as_a_column_is_named() -> None:
    with pytest.raises(SweepError, match="'seconds' has the name of a column"):
        results(Listed({"seconds": "3"}), "one")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_chat_base(tmp_path_factory.mktemp("base") / "plain", "plain")


@pytest.mark.slow
def test_the_tuner_tunes_the_entry_script(aws, base, tmp_path) -> None:
    """A sweep of the course's own training, from ModelTrainer to table and curves."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.parameter import CategoricalParameter
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, InputData, OutputDataConfig, SourceCode
    from sagemaker.train.tuner import HyperparameterTuner

    s3 = aws.session.client("s3")
    channels = []
    for name, rows in (("train", ROWS[:-3]), ("validation", ROWS[-3:])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        s3.put_object(
            Bucket=aws.bucket, Key=f"rows/{name}/{name}.jsonl", Body=text.encode()
        )
        channels.append((name, f"s3://{aws.bucket}/rows/{name}"))
    for file in base.iterdir():
        s3.upload_file(str(file), aws.bucket, f"rows/model/{file.name}")
    channels.append(("model", f"s3://{aws.bucket}/rows/model"))
    trainer = ModelTrainer(
        training_image=IMAGE,
        source_code=SourceCode(
            source_dir=str(job_source(tmp_path / "source")),
            entry_script="entry.py",
            requirements="requirements.txt",
        ),
        compute=Compute(instance_type="ml.m5.xlarge", instance_count=1),
        role=aws.role,
        sagemaker_session=Session(boto_session=aws.session, default_bucket=aws.bucket),
        base_job_name="course",
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{aws.bucket}/swept"),
        hyperparameters=hyperparameters(
            **{k: v for k, v in HYPERPARAMETERS.items() if k != "learning_rate"},
            early_stopping_patience=1,
        ),
    )
    tuner = HyperparameterTuner(
        model_trainer=trainer,
        objective_metric_name="validation:loss",
        metric_definitions=[{"Name": k, "Regex": v} for k, v in METRICS.items()],
        hyperparameter_ranges={"learning_rate": CategoricalParameter([1e-5, 1e-2])},
        objective_type="Minimize",
        strategy="Grid",
        max_jobs=2,
        max_parallel_jobs=2,
    )
    name = new_name()
    inputs = [InputData(channel_name=n, data_source=place) for n, place in channels]
    tuner.tune(inputs, job_name=name, wait=False)
    wait(aws.session.client("sagemaker"), name, timeout=240)
    table = results(aws, name)
    assert table.status.tolist() == ["Completed", "Completed"], table.note.tolist()
    assert table.learning_rate.tolist() == [1e-5, 1e-2]
    assert table.objective[1] < table.objective[0]
    assert tuner.best_training_job() == table.job[1]
    curves = held_out_curves(aws, table.job)
    for row in table.itertuples():
        assert curves[row.job][-1][1] == pytest.approx(row.objective)
