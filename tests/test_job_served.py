"""A training job from its data in S3 to what an endpoint answers, on the lab model.

This process and two jobs train the same adapter: a job of the SDK's ModelTrainer, and a
Spot job of boto3 alone, which loses its machine and finds in S3 one checkpoint that is
torn, and one that is whole. Each start of a job costs seconds of imports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

from support.endpoints import ask, deploy
from support.tiny_artifact import QUESTIONS
from support.training import IMAGE, LONG, Jobs, channel, packed, states, unpacked
from utils.course import run_config
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.deployment import artifact
from utils.deployment.aws import wait_until_in_service
from utils.helpers import INFERENCE_PROMPT
from utils.jobs.source import METRICS, hyperparameters, job_source, training_files
from utils.models import generate, load_model, load_tokenizer, settings_for
from utils.offline_aws.training_checkpoints import Checkpoints
from utils.offline_aws.training_jobs import TRAINING_JOBS
from utils.templates import Template, template_for
from utils.training import train_lora

ROWS, HELD_OUT, STEPS = 48, 4, 24
CHECKPOINTS = (8, 12, 16, 24)  # by the interval, and at the end of each epoch
RECIPE = {
    **{"rank": 4, "alpha": 8, "learning_rate": 0.01, "max_length": 256},
    **{"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1},
}
NEW_TOKENS = 16
GOOD = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
WEIGHTS = "adapter_model.safetensors"


class Losses(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args, state, control, logs, **_) -> None:
        if "loss" in logs:
            self.found.append(logs["loss"])


class Work:
    """What all trainings are told, here and in S3."""

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        self.jobs, self.folder = jobs, folder
        self.settings = settings_for("lab")
        self.tokenizer = load_tokenizer(self.settings)
        self.template: Template = template_for(self.settings, self.tokenizer)
        self.recipe = RECIPE | {"stop": self.template.stop[0]}
        # None is deleted here while it is copied to S3.
        kept = {"save_steps": 8, "save_total_limit": len(CHECKPOINTS)}
        self.given = hyperparameters(**self.recipe, **kept)
        self.source = job_source(folder / "source")
        known = split(load_faqs(run_config({}).data))["train"].to_list()
        rows = [self.template.add_text(row) for row in known[: ROWS + HELD_OUT]]
        parts = {"train": rows[HELD_OUT:], "validation": rows[:HELD_OUT]}
        self.files = training_files(parts, folder)
        folders = {**self.files, "model": Path(self.settings.source)}
        self.places = {name: jobs.put(contents(one)) for name, one in folders.items()}
        # As many threads as here, or sums would be rounded in another order.
        self.threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def train_here(self) -> tuple[Path, list[float]]:
        """Train in this process; return the adapter's folder, and the losses."""
        losses, folder = Losses(), self.folder / "here"
        given = self.recipe | {
            "train": self.files["train"],
            "held_out": self.files["validation"],
            "model": self.settings.source,
            "output_dir": folder,
            "disable_tqdm": "true",
        }
        train_lora.main([f"--{key}={value}" for key, value in given.items()], [losses])
        return folder, losses.found

    def train_by_sdk(self) -> dict[str, Any]:
        """Run a job of the SDK's ModelTrainer; return its description."""
        from sagemaker.core.helper.session_helper import Session
        from sagemaker.train import ModelTrainer
        from sagemaker.train.configs import Compute, InputData, SourceCode

        aws = self.jobs.aws
        trainer = ModelTrainer(
            training_image=IMAGE,
            role=aws.role,
            base_job_name="served",
            sagemaker_session=Session(aws.session, default_bucket=aws.bucket),
            source_code=SourceCode(
                source_dir=str(self.source), entry_script="entry.py"
            ),
            compute=Compute(instance_type="ml.m5.xlarge", instance_count=1),
            hyperparameters=self.given,
            environment=self.threads,
        )
        channels = [
            InputData(channel_name=name, data_source=place)
            for name, place in self.places.items()
        ]
        trainer.train(channels, wait=False, logs=False)
        return self.ended(trainer._latest_training_job.training_job_name)

    def train_by_boto3(self, **changes: Any) -> dict[str, Any]:
        """Run a job of boto3 alone: the toolkit in the image finds script and data."""
        sources = {name: one.decode() for name, one in contents(self.source).items()}
        place = self.jobs.put({"sourcedir.tar.gz": packed(sources)})
        address = f"{place}/sourcedir.tar.gz"
        job = self.jobs.start(
            HyperParameters={
                **self.given,
                "sagemaker_program": '"entry.py"',
                "sagemaker_submit_directory": json.dumps(address),
            },
            AlgorithmSpecification={"ContainerEntrypoint": None},
            InputDataConfig=[channel(*one) for one in self.places.items()],
            Environment=self.threads,
            **changes,
        )
        return self.ended(job.name)

    def ended(self, name: str) -> dict[str, Any]:
        """Wait for a job; return its description."""
        assert TRAINING_JOBS[name].wait(3 * LONG)
        found = self.jobs.describe(name)
        assert found["TrainingJobStatus"] == "Completed", found.get("FailureReason")
        return found

    def adapter(self, described: Mapping[str, Any]) -> bytes:
        """Return the weights that a job has left in S3."""
        return self.jobs.artifact(described)[WEIGHTS]

    def metrics(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the entry script says of a job, in its output.tar.gz."""
        model = described["ModelArtifacts"]["S3ModelArtifacts"]
        output = self.jobs.read(model.replace("model.tar.gz", "output.tar.gz"))
        return json.loads(unpacked(output)["metrics.json"])

    def steps(self, described: Mapping[str, Any]) -> list[int]:
        """Return the steps that CloudWatch has a line of, in their order."""
        log = "\n".join(self.jobs.log(described["TrainingJobName"]))
        return [int(one) for one in re.findall(r"step=(\d+) train_loss=", log)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (one for one in sorted(folder.iterdir()) if one.is_file())
    return {one.name: one.read_bytes() for one in files}


@pytest.fixture(scope="module")
def work(aws, tmp_path_factory) -> Work:
    return Work(Jobs(aws), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def here(work) -> SimpleNamespace:
    folder, losses = work.train_here()
    return SimpleNamespace(folder=folder, losses=losses)


@pytest.fixture(scope="module")
def job(work) -> dict[str, Any]:
    return work.train_by_sdk()


@dataclass
class Spot:
    """A job of boto3 that lost its machine.

    Attributes:
        described: by DescribeTrainingJob.
        torn: the step of the last whole checkpoint in S3, which was then torn.
        sizes: of its torn file, before and since.
    """

    described: dict[str, Any]
    torn: int
    sizes: tuple[int, int]


@pytest.fixture(scope="module")
def spot(work) -> Spot:
    """Take the machine when S3 has two whole checkpoints; then tear the newer one."""
    jobs, torn = work.jobs, []
    place = jobs.put({}) + "/saved"
    key = place.removeprefix(f"s3://{jobs.aws.bucket}/")
    fetch, store = Checkpoints.fetch, Checkpoints.store

    def two_at_least(self: Checkpoints) -> int:
        marks = list(self._folder.glob("checkpoint-*/complete.json"))
        return store(self) if len(marks) > 1 else 0

    def of_torn(self: Checkpoints) -> None:
        marks = [one for one in jobs.keys(f"{place}/") if one.endswith("complete.json")]
        if marks:
            last = max(int(re.search(r"\d+", one)[0]) for one in marks)
            name = f"checkpoint-{last}/optimizer.pt"
            content = jobs.read(f"{place}/{name}")
            half = content[: len(content) // 2]
            jobs.put({name: half}, key)
            torn.append((last, (len(content), len(half))))
        fetch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_SPOT", "checkpoint")
        patch.setattr("utils.offline_aws.training_spot.CAPACITY_WAIT", 0.1)
        patch.setattr("utils.offline_aws.training_jobs.SYNC_INTERVAL", 0.01)
        patch.setattr(Checkpoints, "store", two_at_least)
        patch.setattr(Checkpoints, "fetch", of_torn)
        found = work.train_by_boto3(
            EnableManagedSpotTraining=True,
            StoppingCondition={"MaxWaitTimeInSeconds": 3600},
            CheckpointConfig={"S3Uri": place},
        )
    (one,) = torn
    return Spot(found, *one)


def test_job_and_notebook_train_the_same_adapter(work, here, job) -> None:
    """Bit for bit, by way of S3; and CloudWatch has the losses of each step."""
    assert states(job) == GOOD
    assert work.adapter(job) == (here.folder / WEIGHTS).read_bytes()
    log = "\n".join(work.jobs.log(job["TrainingJobName"]))
    losses = [float(one) for one in re.findall(METRICS["train:loss"], log)]
    assert losses == pytest.approx(here.losses, abs=1e-6)
    assert len(losses) == STEPS and min(losses) < losses[0] - 1
    assert work.steps(job) == list(range(1, STEPS + 1))


def test_an_endpoint_answers_with_the_adapter_of_the_job(
    aws, guard, work, here, job, tmp_path
) -> None:
    """What lesson 06 builds of the job's model.tar.gz says what the adapter says here.

    Expected is what this process trained: the job's own files cannot agree by chance.
    """
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name, content in work.jobs.artifact(job).items():
        (adapter / name).write_bytes(content)
    work.template.save(adapter)
    archive = artifact.build(
        work.settings.source,
        adapter,
        tmp_path / "artifact",
        tmp_path / "model.tar.gz",
        options={"option.max_new_tokens": NEW_TOKENS},
        say=lambda _: None,
    )
    key = f"{guard.run}/model.tar.gz"
    aws.session.client("s3").upload_file(str(archive), aws.bucket, key)
    endpoint = deploy(aws, guard, f"s3://{aws.bucket}/{key}", "served")
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    questions = QUESTIONS[:4]
    replies = ask(aws, endpoint.endpoint_name, {"inputs": questions})
    prompts = [INFERENCE_PROMPT.format(instruction=one) for one in questions]
    model = load_model(work.settings)
    base = generate(model, work.tokenizer, prompts, NEW_TOKENS)
    tuned = PeftModel.from_pretrained(model, here.folder)
    expected = generate(tuned, work.tokenizer, prompts, NEW_TOKENS)
    assert [one["generated_text"] for one in replies] == expected
    assert not set(expected) & set(base)


def test_a_spot_job_goes_on_from_s3_and_ends_with_the_same_adapter(
    work, job, spot
) -> None:
    """By boto3 alone, too. What it went on from it did not compute again."""
    found = spot.described
    assert states(found) == [*GOOD[:3], "Interrupted", *GOOD]
    assert work.adapter(found) == work.adapter(job)
    told = work.metrics(found)
    begun = int(told["resumed_from"].removeprefix("checkpoint-"))
    assert begun in CHECKPOINTS[: CHECKPOINTS.index(spot.torn)]
    steps = work.steps(found)
    before = len(steps) - (STEPS - begun)  # the machine was taken away
    assert steps[:before] == list(range(1, before + 1)) and before >= spot.torn
    assert steps[before:] == list(range(begun + 1, STEPS + 1))
    assert told["losses"] == work.metrics(job)["losses"]


def test_a_torn_checkpoint_in_s3_gives_way_to_the_one_before(work, spot) -> None:
    log = work.jobs.log(spot.described["TrainingJobName"])
    whole, half = spot.sizes
    assert (
        f"checkpoint-{spot.torn} is not used: it is not whole: "
        f"optimizer.pt has {half} of {whole} bytes."
    ) in log
    begun = CHECKPOINTS[CHECKPOINTS.index(spot.torn) - 1]
    assert f"Training goes on from checkpoint-{begun}." in log
    # It was saved anew on the way, so that the next job finds it whole.
    place = spot.described["CheckpointConfig"]["S3Uri"]
    last = work.jobs.read(f"{place}/checkpoint-{STEPS}/optimizer.pt")
    assert len(last) == whole
