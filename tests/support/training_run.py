"""Run a job in an offline AWS of its own, so that a test can kill it.

usage: python tests/support/training_run.py [ORDER]

A line `stage NAME` says what begins. The script starts a process in a session of its
own, as torchrun does, and both ignore SIGTERM. ORDER is what is done to a training job
while it trains: `stop`, `close` or `wait`, which is until someone kills it. `tuning`
and `processing` run such a job instead, likewise until someone kills it.
"""

from __future__ import annotations

import sys
import time

from support import processing, tuning
from support.training import LONG, Jobs, packed
from utils.course import run_config
from utils.deployment.aws import connect_aws
from utils.offline_aws import training_jobs
from utils.offline_aws.control_plane import OfflineAws

SCRIPT = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
child += "time.sleep(600)  # the job's child"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
for number in range(6000):
    pathlib.Path("/opt/ml/checkpoints/step").write_text(str(number))
    print("trains", number, flush=True)
    time.sleep(0.1)
"""
FILES = 200  # in the channel, so that the download takes a moment


def stage(name: str) -> None:
    """Say what begins."""
    print(f"stage {name}", flush=True)


def main() -> None:
    """Go through the stages."""
    order = (sys.argv[1:] or ["wait"])[0]
    stage("connect")
    jobs = Jobs(connect_aws(run_config({})))
    training_jobs.SYNC_INTERVAL = 0.1
    if order in OTHERS:
        OTHERS[order](jobs)
        return
    data = jobs.put({f"{number}.csv": "x" for number in range(FILES)})
    stage("create")
    request = jobs.request(SCRIPT, CheckpointConfig={"S3Uri": f"{data}-saved"})
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": data}},
    }
    request["InputDataConfig"].append(channel)
    jobs.client.create_training_job(**request)
    job = training_jobs.TRAINING_JOBS[request["TrainingJobName"]]
    jobs.wait_for_line(job, "trains 0")
    stage("train")
    if order == "stop":
        job.stop()
        stage("stop")
    elif order == "close":
        OfflineAws.running().close()
        stage("closed")
        return
    while not job.ended:
        time.sleep(0.05)
    stage("ended")


def tune(jobs: Jobs) -> None:
    """Run a tuning job, two training jobs at a time."""
    script = SCRIPT.replace("checkpoints", "model")
    archive = packed({tuning.PROGRAM: script})
    jobs.put({"sourcedir.tar.gz": archive}, "tuned")
    stage("create")
    request = tuning.request(jobs.aws.role, jobs.aws.bucket)
    jobs.client.create_hyper_parameter_tuning_job(**request)
    ends = time.monotonic() + LONG
    while len(training_jobs.TRAINING_JOBS) < 2 and time.monotonic() < ends:
        time.sleep(0.05)
    for job in list(training_jobs.TRAINING_JOBS.values()):
        jobs.wait_for_line(job, "trains 0")
    stage("train")
    time.sleep(600)


def process(jobs: Jobs) -> None:
    """Run a processing job."""
    place = f"{processing.PLACE}/code"
    code = jobs.put({"train.py": SCRIPT.replace("checkpoints", "processing/code")})
    stage("create")
    request = processing.request(jobs.aws, "killed", f"exec python3 {place}/train.py")
    request["ProcessingInputs"] = [processing.source("code", code)]
    jobs.client.create_processing_job(**request)
    ends = time.monotonic() + LONG
    while not any("trains" in line for line in processing.lines_of(jobs.aws, "killed")):
        if time.monotonic() > ends:
            raise TimeoutError("The job has written nothing.")
        time.sleep(0.1)
    stage("train")
    time.sleep(600)


OTHERS = {"tuning": tune, "processing": process}

if __name__ == "__main__":
    main()
