"""A training job that stops itself when the held-out loss turns up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.job_folder import ROWS, JobFolder
from support.tiny_artifact import save_chat_base

# They ask what the rows to train on ask, and answer something else.
HELD_OUT = [row | {"completion": "No.<|im_end|>"} for row in ROWS[:3]]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_chat_base(tmp_path_factory.mktemp("base") / "plain", "plain")


@pytest.fixture
def overfitting(base, tmp_path) -> JobFolder:
    """A job that learns its rows by heart: a high rate, and answers of other rows."""
    job = JobFolder(tmp_path / "ml", base)
    job.write("validation", HELD_OUT)
    job.given |= {"num_train_epochs": "8", "learning_rate": "0.05"}
    return job


def test_training_ends_when_the_held_out_loss_turns_up(overfitting) -> None:
    job = overfitting
    job.given["early_stopping_patience"] = "2"
    assert job.run() == 0, job.log()
    told = job.metrics()
    curve = [(one["step"], one["loss"]) for one in told["held_out_losses"]]
    best = min(curve, key=lambda point: point[1])
    assert len(curve) < 8
    assert curve.index(best) == len(curve) - 3  # two epochs without a lower loss
    assert told["hyperparameters"]["early_stopping_patience"] == "2"
    # What is saved is the adapter of the best epoch, not of the last one.
    saved = job.root / "checkpoints" / f"checkpoint-{best[0]}"
    assert job.adapter() == (saved / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("moment", "moved"),
    [
        (("on_step_begin", 20), True),  # one epoch without a lower loss is behind it
        (("after on_save", 24), False),  # it had decided to end, and not yet saved
    ],
)
def test_a_run_that_is_taken_away_ends_at_the_same_epoch(
    overfitting, base, tmp_path, moment, moved
) -> None:
    whole = overfitting
    whole.given["early_stopping_patience"] = "2"
    assert whole.run() == 0, whole.log()
    assert [one["step"] for one in whole.metrics()["held_out_losses"]] == [
        6,
        12,
        18,
        24,
    ]
    other = JobFolder(tmp_path / "other", base)
    other.given = dict(whole.given)
    other.write("validation", HELD_OUT)
    assert other.run(moment) == -9
    other.forget()
    if moved:  # the next machine has its folder elsewhere
        resumed = JobFolder(tmp_path / "next", base)
        resumed.given = dict(whole.given)
        resumed.write("validation", HELD_OUT)
        shutil.copytree(other.root / "checkpoints", resumed.root / "checkpoints")
        shutil.rmtree(other.root)
        other = resumed
    assert other.run() == 0, other.log()
    assert "Training goes on from checkpoint-" in other.log()
    assert other.metrics()["held_out_losses"] == whole.metrics()["held_out_losses"]
    assert other.adapter() == whole.adapter()


def test_without_patience_training_goes_on(overfitting) -> None:
    overfitting.given["num_train_epochs"] = "4"
    assert overfitting.run() == 0, overfitting.log()
    assert len(overfitting.metrics()["held_out_losses"]) == 4


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "true"])
def test_a_patience_that_is_no_number_is_refused(base, tmp_path, text) -> None:
    job = JobFolder(tmp_path / "ml", base)
    job.given["early_stopping_patience"] = text
    assert job.run() == 1
    assert f"'early_stopping_patience' cannot be used: found '{text}'" in job.failure()


def test_patience_without_held_out_rows_is_refused(base, tmp_path) -> None:
    job = JobFolder(tmp_path / "ml", base)
    for file in job.channel("validation").iterdir():
        file.unlink()
    job.channel("validation").rmdir()
    job.given["early_stopping_patience"] = "1"
    assert job.run() == 1
    assert "needs the channel validation" in job.failure()
