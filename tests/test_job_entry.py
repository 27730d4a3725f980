"""The job's entry script: one training function, whatever interrupts it."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.job_folder import MOMENTS, ROWS, JobFolder
from support.tiny_artifact import save_chat_base
from utils.jobs.source import METRICS, job_source
from utils.offline_aws.training_jobs import free_port
from utils.training import train_lora

STEPS, STEPS_AN_EPOCH = 12, 6
CHECKPOINTS = (4, 6, 8, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_chat_base(tmp_path_factory.mktemp("base") / "plain", "plain")


@pytest.fixture
def job(base, tmp_path) -> JobFolder:
    return JobFolder(tmp_path / "ml", base)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> JobFolder:
    """A job that nothing interrupted."""
    job = JobFolder(tmp_path_factory.mktemp("whole") / "ml", base)
    assert job.run() == 0, job.log()
    return job


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The entry script's modules, imported as they are in the source folder."""
    folder = str(job_source(tmp_path_factory.mktemp("source") / "code"))
    names = ("entry", "entry_orders", "entry_data", "entry_checkpoints", "train_lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        found = {name: importlib.import_module(name) for name in names}
        yield SimpleNamespace(
            **{name.removeprefix("entry_"): module for name, module in found.items()}
        )
    for name in names:
        del sys.modules[name]


# --- one training function ---


def test_job_and_notebook_train_the_same_adapter(job, base, tmp_path) -> None:
    """Bit for bit; the job started as its container does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "entry.py", "--rank", "4"],
        cwd=job.code,
        env={**os.environ, **job.environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    train_lora.main(
        [
            *("--train", str(job.channel("train")), "--model", str(base)),
            *("--held_out", str(job.channel("validation"))),
            *("--output_dir", str(tmp_path / "adapter")),
            *("--rank", "4", "--alpha", "8", "--learning_rate", "0.01"),
            *("--num_train_epochs", "2", "--per_device_train_batch_size", "2"),
        ]
    )
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    assert job.adapter() == adapter.read_bytes()
    assert not (job.root / "output" / "failure").exists()


def test_what_was_trained_on_what_is_written_down(whole) -> None:
    told = whole.metrics()
    assert [one["step"] for one in told["losses"]] == list(range(1, STEPS + 1))
    assert told["losses"][-1]["loss"] < told["losses"][0]["loss"]
    assert [one["step"] for one in told["held_out_losses"]] == [STEPS_AN_EPOCH, STEPS]
    assert told["steps"] == STEPS and not told["stopped"]
    train = whole.channel("train") / "train.jsonl"
    sums = subprocess.run(["sha256sum", str(train)], capture_output=True, text=True)
    assert told["data"]["train"] == {"rows": 11, "sha256": sums.stdout.split()[0]}
    assert told["data"]["validation"]["rows"] == 3
    assert told["seed"] == 42 and told["workers"] == 1
    assert set(told["versions"]) > {"python", "torch", "transformers", "peft"}
    assert whole.checkpoints() == ["checkpoint-12", "checkpoint-8"]
    assert "training_args.bin" not in os.listdir(whole.root / "model")  # a pickle


def test_the_log_has_what_metric_patterns_find(whole) -> None:
    """A number without an exponent for each step, and one for each epoch."""
    told = whole.metrics()
    for name, key in (
        ("train:loss", "losses"),
        ("validation:loss", "held_out_losses"),
    ):
        found = [float(text) for text in re.findall(METRICS[name], whole.log())]
        assert found == pytest.approx([x["loss"] for x in told[key]], abs=1e-6)


# --- interruptions ---


def break_off(job: JobFolder, moment: tuple[str, int]) -> None:
    """Kill the job at a moment; start it again until it is done."""
    assert job.run(moment) == -signal.SIGKILL, job.log()
    assert not (job.root / "model").exists()
    job.forget()
    assert job.run() == 0, job.log()


def steps_of(job: JobFolder) -> list[int]:
    """Return the steps that a job has trained, by its log."""
    return [int(one) for one in re.findall(r"step=(\d+) train_loss", job.log())]


@pytest.mark.parametrize(
    ("moment", "resumed"),
    [
        (("on_step_begin", 3), None),
        (("after on_save", 4), 4),
        (("on_step_begin", 11), 8),  # of the second epoch, which began at step 7
        (("on_save", 8), 6),  # written, and not yet marked; the epoch was over
    ],
)
def test_a_killed_job_ends_with_the_same_adapter(job, whole, moment, resumed) -> None:
    break_off(job, moment)
    assert job.adapter() == whole.adapter()
    told = job.metrics()
    assert told["resumed_from"] == (resumed and f"checkpoint-{resumed}")
    # What lies before the checkpoint is not computed again.
    assert steps_of(job) == list(range((resumed or 0) + 1, STEPS + 1))
    for name in ("losses", "held_out_losses"):
        assert told[name] == whole.metrics()[name]


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("where", MOMENTS)
def test_so_it_does_at_any_moment(job, whole, where, step) -> None:
    if "save" in where and step not in CHECKPOINTS:
        pytest.skip("nothing is saved at this step")
    break_off(job, (where, step))
    assert job.adapter() == whole.adapter()
    assert job.metrics()["held_out_losses"] == whole.metrics()["held_out_losses"]


@pytest.mark.slow
def test_a_job_killed_again_and_again_ends_with_the_same_adapter(job, whole) -> None:
    for step in (5, 7, 8, 10, 12):
        assert job.run(("on_step_end", step)) == -signal.SIGKILL, job.log()
        job.forget()
    assert job.run() == 0, job.log()
    assert job.adapter() == whole.adapter()


def test_a_job_that_is_told_to_stop_saves_what_there_is(job, whole) -> None:
    """And another one goes on from there, in the middle of the second epoch."""
    assert job.run(("on_step_begin", 9), signal.SIGTERM) == 0, job.log()
    told = job.metrics()
    assert told["stopped"] and told["steps"] == 9
    assert "checkpoint-9" in job.checkpoints()
    assert len(job.adapter()) == len(whole.adapter())
    assert job.adapter() != whole.adapter()
    job.forget()
    assert job.run() == 0, job.log()
    assert job.metrics()["resumed_from"] == "checkpoint-9"
    assert steps_of(job) == [10, 11, 12]
    assert job.adapter() == whole.adapter()


@pytest.mark.parametrize(
    ("moment", "code", "steps"),
    [
        (("on_train_begin", 0), 128 + signal.SIGTERM, None),  # it loads the model
        (("after on_step_end", 12), 0, 12),  # it is done but for the last save
    ],
)
def test_told_to_stop_before_or_after_the_steps(
    job, whole, moment, code, steps
) -> None:
    assert job.run(moment, signal.SIGTERM) == code, job.log()
    assert not (job.root / "output" / "failure").exists()
    if steps is None:
        assert not (job.root / "model").exists()
        assert "Stopped before there was anything to save." in job.log()
    else:
        assert not job.metrics()["stopped"]
        assert job.adapter() == whole.adapter()


@pytest.mark.parametrize(
    ("given", "said", "kept"),
    [
        ({"save_steps": "500"}, "save_steps is 500, and the run has 12 steps", [12, 6]),
        ({"save_strategy": "no"}, "a checkpoint is saved at the end of each", [12, 6]),
    ],
)
def test_an_interval_longer_than_the_run_does_not_mean_no_checkpoint(
    job, given, said, kept
) -> None:
    job.given |= given
    assert job.run() == 0, job.log()
    assert said in job.log()
    assert job.checkpoints() == [f"checkpoint-{step}" for step in kept]


def test_a_full_disk_leaves_no_half_checkpoint(job) -> None:
    """And room for the failure file."""
    assert job.run(largest=40_000) == 1
    assert job.failure().startswith("The disk is full")
    assert not any((job.root / "checkpoints").iterdir())


# --- checkpoints that cannot be used ---


def torn(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def emptied(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def foreign(checkpoint: Path) -> None:
    (checkpoint / "complete.json").unlink()


def misses_a_file(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").unlink()


def torn_mark(checkpoint: Path) -> None:
    (checkpoint / "complete.json").write_text('{"run"')


def of_other_settings(checkpoint: Path) -> None:
    change_parts(checkpoint, "rank", "8")


def of_other_rows(checkpoint: Path) -> None:
    change_parts(checkpoint, "rows of train", "0")


def change_parts(checkpoint: Path, name: str, value: str) -> None:
    mark = json.loads((checkpoint / "complete.json").read_text())
    mark["parts"][name] = value
    mark["run"] = "0"
    (checkpoint / "complete.json").write_text(json.dumps(mark))


def uploading(checkpoint: Path) -> None:
    """Marks that SageMaker leaves beside what it uploads, which do no harm."""
    for mark in (".sagemaker-uploading", ".sagemaker-uploaded"):
        (checkpoint.parent / f"{checkpoint.name}{mark}").touch()
        (checkpoint.parent / f"checkpoint-13{mark}").mkdir(exist_ok=True)
        (checkpoint / f"optimizer.pt{mark}").touch()


@pytest.mark.parametrize(
    ("damage", "resumed", "said"),
    [
        (torn, 8, r"checkpoint-12 is not used: .* optimizer.pt has \d+ of \d+ bytes"),
        (emptied, 8, "checkpoint-12 is not used: it is empty"),
        (foreign, 8, "checkpoint-12 is not used: it is not whole, or of another"),
        (misses_a_file, 8, "checkpoint-12 is not used: .* scheduler.pt is missing"),
        (torn_mark, 8, "checkpoint-12 is not used: .* complete.json cannot be read"),
        (of_other_settings, 8, r"of another run, by rank \(8 before, 4\)"),
        (of_other_rows, 8, "of another run, by rows of train"),
        (uploading, 12, "Training goes on from checkpoint-12"),
    ],
)
def test_what_is_no_whole_checkpoint_is_said_and_not_used(
    parts, whole, tmp_path, capsys, damage, resumed, said
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole.root / "checkpoints", folder)
    mark = json.loads((folder / "checkpoint-12" / "complete.json").read_text())
    damage(folder / "checkpoint-12")
    keeper = parts.checkpoints.Keeper(folder, mark["parts"], 2)
    assert keeper.resumed == folder / f"checkpoint-{resumed}"
    assert re.search(said, capsys.readouterr().out)


def test_without_a_checkpoint_that_fits_it_starts_afresh(job, whole) -> None:
    """And those of the other run give way to its own."""
    shutil.copytree(whole.root / "checkpoints", job.root / "checkpoints")
    job.given |= {"seed": "7"}
    assert job.run() == 0, job.log()
    assert "seed (42 before, 7)" in job.log()
    assert "No checkpoint can be used: training starts at its first step." in job.log()
    assert job.metrics()["resumed_from"] is None
    assert job.adapter() != whole.adapter()


def test_the_limit_says_how_many_checkpoints_stay(job) -> None:
    """All of them at 0, as in the Trainer; and the orders are written down whole."""
    job.given |= {"save_total_limit": "0"}
    assert job.run() == 0, job.log()
    assert job.checkpoints() == sorted(f"checkpoint-{step}" for step in CHECKPOINTS)
    assert job.metrics()["hyperparameters"] == job.given


# --- several workers ---


def test_two_workers_share_the_work_of_one(job, whole) -> None:
    """The same rows in each step, as long as their number is even; one result."""
    job.write("train", ROWS[:8])
    job.given |= {"per_device_train_batch_size": "1"}
    assert job.run(workers=2, port=free_port()) == 0, job.log()
    two = job.metrics()
    assert two["workers"] == 2
    assert job.log().count("8 rows to train on") == 1
    job.forget()
    shutil.rmtree(job.root / "checkpoints")
    job.given |= {"per_device_train_batch_size": "2"}
    assert job.run() == 0, job.log()
    for name in ("losses", "held_out_losses"):  # of three rows, an odd number
        values = [[x["loss"] for x in of[name]] for of in (two, job.metrics())]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


# Processes, GPUs and hyperparameters → whether the job may go on.
SHARED = {
    "one each": (2, 2, {}, True),
    "two on one": (2, 1, {}, False),
    "eight on four": (8, 4, {"use_cpu": "false"}, False),
    "on the processor": (2, 1, {"use_cpu": "true"}, True),
    "no GPU": (2, 0, {}, True),
}


@pytest.mark.parametrize("kind", SHARED)
def test_processes_that_would_share_a_gpu_are_refused(parts, monkeypatch, kind) -> None:
    started, gpus, given, fine = SHARED[kind]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(started))
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    if fine:
        parts.orders.check_workers(given)
        return
    found = f"{started} processes were started on an instance with {gpus} GPU"
    with pytest.raises(parts.orders.JobError, match=found) as failure:
        parts.orders.check_workers(given)
    assert f"process_count_per_node={gpus}" in str(failure.value)


def test_workers_that_would_train_alone_are_refused(job) -> None:
    """Without a GPU the Trainer leaves each by itself, unless it is told of the CPU."""
    job.given |= {"per_device_train_batch_size": "1", "use_cpu": "false"}
    assert job.run(workers=2, port=free_port()) == 1
    assert "each would train alone and overwrite the others" in job.failure()


def test_two_workers_go_on_from_a_checkpoint(job) -> None:
    job.given |= {"per_device_train_batch_size": "1"}
    assert job.run(workers=2, port=free_port()) == 0, job.log()
    adapter = job.adapter()
    job.forget()
    for name in ("checkpoint-12", "checkpoint-8"):
        assert (job.root / "checkpoints" / name / "rng_state_1.pth").is_file()
    shutil.rmtree(job.root / "checkpoints" / "checkpoint-12")
    assert job.run(workers=2, port=free_port()) == 0, job.log()
    assert job.metrics()["resumed_from"] == "checkpoint-8"
    assert steps_of(job) == list(range(9, STEPS + 1))
    assert job.adapter() == adapter


def test_two_workers_of_which_one_is_told_to_stop_end_together(job) -> None:
    job.given |= {"per_device_train_batch_size": "1"}
    moment = ("on_step_begin", 9)
    assert job.run(moment, signal.SIGTERM, workers=2, port=free_port()) == 0, job.log()
    assert job.metrics()["stopped"] and job.metrics()["steps"] == 9
    assert (job.root / "checkpoints" / "checkpoint-9" / "rng_state_1.pth").is_file()
