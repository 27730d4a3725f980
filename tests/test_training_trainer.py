"""The SDK's ModelTrainer drives the offline AWS as it is, torchrun included.

Importing the SDK takes about 5 seconds, torchrun as long for each process.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from support.training import IMAGE, LONG, Jobs
from utils.offline_aws.training_jobs import TRAINING_JOBS

SCRIPT = """
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
for name in ("--epochs", "--flag", "--text"):
    parser.add_argument(name)
print("arguments", json.dumps(vars(parser.parse_args())))
print("rows", (pathlib.Path(os.environ["SM_CHANNEL_TRAIN"]) / "a.csv").read_text())
(pathlib.Path(os.environ["SM_MODEL_DIR"]) / "weights").write_text("w")
"""
RANKS = """
import os
import torch
import torch.distributed as distributed
distributed.init_process_group("gloo")
total = torch.tensor([distributed.get_rank() + 1])
distributed.all_reduce(total)
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SM_CURRENT_HOST")
print("rank", *(os.environ[name] for name in names), int(total), flush=True)
distributed.destroy_process_group()
"""

# Variables that a job may have as this process has them.
HARMLESS = {
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    *("KMP_BLOCKTIME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "AWS_EC2_METADATA_DISABLED"),
    # Set anew, perhaps to the same.
    *("LANG", "LC_CTYPE", "SHLVL", "_", "PYTHONUNBUFFERED", "AWS_REGION"),
}


@pytest.fixture(scope="module")
def jobs(aws) -> Jobs:
    return Jobs(aws)


@pytest.fixture(scope="module")
def session(aws) -> Any:
    from sagemaker.core.helper.session_helper import Session

    return Session(boto_session=aws.session, default_bucket=aws.bucket)


@pytest.fixture
def trainer(jobs, session, tmp_path: Path) -> Any:
    """Return a function that makes a ModelTrainer for a script."""
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, SourceCode

    def make(script: str, instances: int = 1, **more: Any) -> Any:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "train.py").write_text(script)
        requirements = more.pop("requirements", None)
        if requirements is not None:
            (source / "requirements.txt").write_text(requirements)
        return ModelTrainer(
            training_image=IMAGE,
            role=jobs.aws.role,
            base_job_name=f"trainer-{tmp_path.name[-12:].replace('_', '-').strip('-')}",
            sagemaker_session=session,
            source_code=SourceCode(
                source_dir=str(source),
                entry_script="train.py",
                requirements="requirements.txt" if requirements else None,
            ),
            compute=Compute(instance_type="ml.m5.xlarge", instance_count=instances),
            **more,
        )

    return make


def run(trainer: Any, **given: Any) -> Any:
    """Run a job to its end and return it; the SDK itself looks each 5 seconds."""
    trainer.train(wait=False, logs=False, **given)
    job = trainer._latest_training_job
    assert TRAINING_JOBS[job.training_job_name].wait(LONG)
    job.wait()
    return job


def test_model_trainer_runs_unchanged(jobs, trainer, caplog) -> None:
    from sagemaker.core.resources import TrainingJob
    from sagemaker.train.configs import InputData

    data = jobs.put({"a.csv": "x,y"})
    given = {"epochs": 3, "flag": True, "text": 'a "b" {c}'}
    made = trainer(SCRIPT, hyperparameters=given)
    channels = [InputData(channel_name="train", data_source=data)]
    assert made.train(input_data_config=channels, dry_run=True) is None
    with caplog.at_level(logging.INFO):
        made.train(input_data_config=channels, wait=True, logs=True)
    job = TrainingJob.get(made._latest_training_job.training_job_name)
    assert job.training_job_status == "Completed"
    assert 'arguments {"epochs": "3", "flag": "true", "text": "a \\"b\\" {c}"}' in (
        caplog.text
    )
    assert "rows x,y" in caplog.text
    assert "Failed to" not in caplog.text
    found = jobs.describe(job.training_job_name)
    assert jobs.artifact(found) == {"weights": b"w"}
    for key in ("VpcConfig", "Environment", "CheckpointConfig", "FinalMetricDataList"):
        assert key not in found


def test_a_script_that_fails_raises_with_its_reason(trainer) -> None:
    from sagemaker.core.utils.exceptions import FailedStatusError

    script = (
        "open('/opt/ml/output/failure', 'w').write('no rows in a.csv')\n"
        "raise SystemExit(1)\n"
    )
    with pytest.raises(FailedStatusError, match="AlgorithmError: no rows in a.csv"):
        run(trainer(script))


def test_a_script_that_is_stopped_can_save_and_say_so(jobs, trainer) -> None:
    """The SDK's drivers stand between it and the log, and stay until it has ended."""
    script = """
import signal, sys, time
def stop(*_):
    print("asked to stop", flush=True)
    time.sleep(0.3)
    open("/opt/ml/model/partial.txt", "w").write("half")
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
    made = trainer(script)
    made.train(wait=False, logs=False)
    name = made._latest_training_job.training_job_name
    job = TRAINING_JOBS[name]
    jobs.wait_for_line(job, "ready")
    made._latest_training_job.stop()
    assert job.wait(30)
    found = jobs.describe(name)
    assert found["TrainingJobStatus"] == "Stopped"
    assert jobs.artifact(found) == {"partial.txt": b"half"}
    assert {"asked to stop", "saved"} <= set(jobs.log(name))


def test_no_secret_reaches_the_log(jobs, trainer, monkeypatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_aaaaaaaaaaaaaaaa",
        "SOME_LOGIN": "open-sesame-11",
        "HTTPS_PROXY": "http://user:word@proxy:1",
        "DATABASE_URL": "postgres://user:pass-word-1@db/a",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    script = (
        "import json, os\n"
        "print('variables', json.dumps(dict(os.environ)))\n"
        "print(open(f'/proc/{os.getppid()}/environ').read())\n"
    )
    job = run(trainer(script, environment={"MINE": "for-the-job"}))
    log = "\n".join(jobs.log(job.training_job_name))
    assert "MINE=for-the-job" in log  # the driver writes every variable
    key = jobs.aws.session.get_credentials()
    found = [*secrets.values(), key.access_key, key.secret_key]
    found += [
        value
        for name, value in os.environ.items()
        if name.startswith("AWS_") and len(value) > 8 and not name.endswith("REGION")
        if value != os.devnull
    ]
    assert [secret for secret in found if secret in log] == []
    # Nor does anything else of this process, but for how threads wait and the like.
    line = next(one for one in log.splitlines() if one.startswith("variables"))
    variables = json.loads(line.partition(" ")[2])
    assert variables["MINE"] == "for-the-job"
    assert variables["KMP_BLOCKTIME"] == "7"
    as_here = {name for name in variables if os.environ.get(name) == variables[name]}
    assert as_here <= HARMLESS


@pytest.mark.parametrize(
    "requirements, reason",
    [
        ("# nothing\npip\nnumpy>=1\npackaging[nothing]; python_version > '3'\n", None),
        ("numpy==0.1\n", "numpy==0.1 is asked for, and numpy"),
        ("no-such-package-at-all\n", "no-such-package-at-all is not installed"),
        ("git+https://github.com/a/b\n", "no package with a version"),
    ],
)
def test_requirements_change_nothing_here(jobs, trainer, requirements, reason) -> None:
    from sagemaker.core.utils.exceptions import FailedStatusError

    made = trainer("print('goes on')", requirements=requirements)
    if reason is None:
        job = run(made)
        assert "goes on" in jobs.log(job.training_job_name)
        return
    with pytest.raises(FailedStatusError) as caught:
        run(made)
    assert reason in str(caught.value)
    assert "cannot install packages" in str(caught.value)


def test_torchrun_starts_two_processes(jobs, trainer) -> None:
    from sagemaker.train.distributed import Torchrun

    # One write a line: both processes share the pipe, and `print` writes word by word.
    script = (
        "import os, sys\n"
        "sys.stdout.write('rank {RANK} {WORLD_SIZE}\\n'.format(**os.environ))\n"
    )
    made = trainer(script, distributed=Torchrun(process_count_per_node=2))
    job = run(made)
    lines = [one for one in jobs.log(job.training_job_name) if one.startswith("rank")]
    assert sorted(lines) == ["rank 0 2", "rank 1 2"]


@pytest.mark.slow
def test_torchrun_joins_two_instances(jobs, trainer) -> None:
    from sagemaker.train.distributed import Torchrun

    job = run(trainer(RANKS, 2, distributed=Torchrun(process_count_per_node=1)))
    lines = [one for one in jobs.log(job.training_job_name) if one.startswith("rank")]
    assert sorted(lines) == ["rank 0 2 0 algo-1 3", "rank 1 2 0 algo-2 3"]
