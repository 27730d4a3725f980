"""The files of a training job: keys and paths, configuration, results, checkpoints."""

from __future__ import annotations

import importlib.metadata
import json
import threading
import time
from pathlib import Path

import pytest

from support.training import Jobs, channel, states
from utils.offline_aws import training_checkpoints, training_pip
from utils.offline_aws.training_checkpoints import Checkpoints
from utils.offline_aws.training_data import objects, path_of
from utils.offline_aws.training_errors import JobFailure
from utils.offline_aws.training_files import Root

LISTS = """
import json, os
found = []
for folder, folders, names in os.walk("/opt/ml/input/data/train"):
    place = os.path.relpath(folder, "/opt/ml/input/data/train")
    found += [os.path.normpath(f"{place}/{name}") for name in names]
    found += [os.path.normpath(f"{place}/{name}") + "/" for name in folders]
print("found", json.dumps(sorted(found)))
"""


@pytest.fixture(scope="module")
def jobs(aws) -> Jobs:
    return Jobs(aws)


@pytest.mark.parametrize(
    "keys, below, found",
    [
        (
            ["a.csv", "deep/er/b.csv"],
            "",
            ["a.csv", "deep/", "deep/er/", "deep/er/b.csv"],
        ),
        (
            ["a.csv", "deep/er/b.csv"],
            "/",
            ["a.csv", "deep/", "deep/er/", "deep/er/b.csv"],
        ),
        (["one/a.csv", "two/b.csv"], "/one/a.csv", ["a.csv"]),
        (["part-0", "part-1", "other"], "/part-", ["part-0", "part-1"]),
        (["train/a", "train2/b"], "/train", ["a", "train2/", "train2/b"]),
        (["", "empty/", "a"], "/", ["a", "empty/"]),
        (["empty/"], "/empty/", []),
        (["with space", "ü", "100%", "a+b", "quote'", '"', "-rf"], "/", None),
        (["double//slash"], "/", ["double/", "double/slash"]),
    ],
)
def test_each_object_becomes_a_file(jobs, keys, below, found) -> None:
    place = jobs.put({key: "" if key.endswith("/") or not key else "x" for key in keys})
    job = jobs.run(LISTS, InputDataConfig=[channel("train", place + below)])
    assert job["TrainingJobStatus"] == "Completed", job["FailureReason"]
    line = jobs.log(job["TrainingJobName"])[-1]
    expected = sorted(keys) if found is None else found
    assert json.loads(line.removeprefix("found ")) == expected


@pytest.mark.parametrize(
    "keys, reason",
    [
        (["a", "../../../escaped"], "leads out of its channel's folder"),
        (["deep/../../x"], "leads out of its channel's folder"),
        (["a", "a/b"], "cannot be a file"),
        (["a//b", "a/b"], "would be the same file 'a/b'"),
        (["x" * 300], "cannot be a file"),
        (["."], "cannot be a file"),
    ],
)
def test_a_key_that_cannot_be_a_file_is_named(jobs, keys, reason) -> None:
    place = jobs.put({key: "x" for key in keys})
    job = jobs.run(LISTS, InputDataConfig=[channel("train", f"{place}/")])
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("ClientError: Data download failed:")
    assert reason in job["FailureReason"]
    assert states(job) == ["Starting", "Downloading", "Failed"]


def test_a_deleted_object_of_a_bucket_with_versions_is_not_fetched(jobs) -> None:
    bucket = f"versions-{time.time_ns()}"
    jobs.s3.create_bucket(Bucket=bucket)
    jobs.s3.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    for key, text in (("d/a", "old"), ("d/a", "new"), ("d/b", "x")):
        jobs.s3.put_object(Bucket=bucket, Key=key, Body=text)
    jobs.s3.delete_object(Bucket=bucket, Key="d/b")
    found = objects(f"s3://{bucket}/d")
    assert [(key, item.value) for key, item in found] == [("d/a", b"new")]


def test_a_folder_with_content_is_named(jobs) -> None:
    place = jobs.put({"a": "x", "folder/": "what is it?"})
    job = jobs.run(LISTS, InputDataConfig=[channel("train", f"{place}/")])
    assert "folder/' ends as a folder does, and holds 11 bytes" in job["FailureReason"]


@pytest.mark.parametrize(
    "key, prefix, path",
    [
        ("d/train/a", "d/train", "a"),
        ("d/train/a", "d/train/", "a"),
        ("d/train/a", "d/tr", "train/a"),
        ("d/a.csv", "d/a.csv", "a.csv"),
        ("a.csv", "a.csv", "a.csv"),
        ("a/b", "", "a/b"),
        ("a//b", "a", "b"),
        ("/a", "", "a"),
    ],
)
def test_where_an_object_lies(key, prefix, path) -> None:
    assert str(path_of(key, prefix)) == path


def test_a_path_out_of_the_folder_is_none() -> None:
    with pytest.raises(JobFailure, match="leads out"):
        path_of("a/../../b", "")


def test_more_data_than_the_volume_holds(jobs, monkeypatch) -> None:
    monkeypatch.setattr("utils.offline_aws.training_files.GIGABYTE", 1000)
    place = jobs.put({"a": "x" * 2000})
    job = jobs.run(LISTS, InputDataConfig=[channel("train", f"{place}/")])
    assert job["FailureReason"] == (
        "ClientError: Data download failed:Insufficient disk space"
    )


def test_the_configuration_is_as_aws_writes_it(jobs) -> None:
    script = """
import json, os
for name in ("hyperparameters", "inputdataconfig", "resourceconfig"):
    print(name, open(f"/opt/ml/input/config/{name}.json").read())
print("environment", json.dumps(dict(os.environ)))
"""
    place = jobs.put({"a": "x"})
    given = {"lr": "0.1", "flag": "true", "out": "/opt/ml/model", "empty": ""}
    one = {**channel("train", place), "ContentType": "text/csv"}
    job = jobs.run(
        script,
        InputDataConfig=[one],
        HyperParameters=given,
        Environment={"MINE": "yes", "WHERE": "/opt/ml/checkpoints"},
    )
    lines = [line.split(" ", 1) for line in jobs.log(job["TrainingJobName"])]
    found = {name: json.loads(text) for name, text in lines}
    out = found["hyperparameters"].pop("out")
    assert out.endswith("/algo-1/opt/ml/model")
    assert found["hyperparameters"] == {"lr": "0.1", "flag": "true", "empty": ""}
    usual = {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    assert found["inputdataconfig"] == {
        "code": usual,
        "train": {"ContentType": "text/csv", **usual},
    }
    resources = found["resourceconfig"]
    assert resources.pop("network_interface_name")
    assert resources == {
        "current_host": "algo-1",
        "current_instance_type": "ml.m5.xlarge",
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1"],
        "instance_groups": [
            {
                "instance_group_name": "homogeneousCluster",
                "instance_type": "ml.m5.xlarge",
                "hosts": ["algo-1"],
            }
        ],
    }
    environment = found["environment"]
    assert environment["MINE"] == "yes"
    assert environment["WHERE"].endswith("/algo-1/opt/ml/checkpoints")
    assert environment["TRAINING_JOB_NAME"] == job["TrainingJobName"]
    assert environment["TRAINING_JOB_ARN"] == job["TrainingJobArn"]
    assert Path(environment["HOME"]) != Path.home()
    assert job["HyperParameters"] == given  # as they were asked for
    assert job["Environment"]["WHERE"] == "/opt/ml/checkpoints"


def test_results_are_stored_where_they_belong(jobs) -> None:
    script = """
import os
os.makedirs("/opt/ml/model/deep/empty")
open("/opt/ml/model/deep/m", "w").write("m")
open("/opt/ml/output/data/curve.csv", "w").write("1,2")
"""
    packed = jobs.run(script)
    place = f"s3://{jobs.aws.bucket}/out/{packed['TrainingJobName']}/output/"
    assert jobs.keys(place) == ["model.tar.gz", "output.tar.gz"]
    assert jobs.artifact(packed) == {"deep/m": b"m"}
    loose = jobs.run(script, OutputDataConfig={"CompressionType": "NONE"})
    place = f"s3://{jobs.aws.bucket}/out/{loose['TrainingJobName']}/output/"
    assert jobs.keys(place) == ["model/deep/m", "output/curve.csv"]
    assert loose["ModelArtifacts"] == {"S3ModelArtifacts": f"{place}model/"}
    nothing = jobs.run("print('no model')")
    place = f"s3://{jobs.aws.bucket}/out/{nothing['TrainingJobName']}/output/"
    assert nothing["TrainingJobStatus"] == "Completed"
    assert jobs.keys(place) == []


def test_every_line_reaches_the_log_in_its_order(jobs, aws) -> None:
    script = """
import os, sys
for number in range(500):
    print("line", number, flush=True)
print("to stderr", file=sys.stderr)
os.write(1, b"no line end, \\xff")
"""
    job = jobs.run(script)
    lines = jobs.log(job["TrainingJobName"])
    assert lines[:500] == [f"line {number}" for number in range(500)]
    assert lines[500:] == ["to stderr", "no line end, \ufffd"]
    streams = aws.session.client("logs").describe_log_streams(
        logGroupName="/aws/sagemaker/TrainingJobs",
        logStreamNamePrefix=f"{job['TrainingJobName']}/",
    )["logStreams"]
    (stream,) = streams
    host, _, epoch = stream["logStreamName"].rpartition("/")[2].rpartition("-")
    assert host == "algo-1"
    assert abs(int(epoch) - time.time()) < 60


# --- checkpoints ---


@pytest.fixture
def disk(jobs, tmp_path) -> tuple[Checkpoints, Path, str]:
    """Checkpoints of an instance, their folder, and their address."""
    address = f"s3://{jobs.aws.bucket}/c-{time.time_ns()}"
    made = Checkpoints(Root(tmp_path, "algo-1"), {"S3Uri": address})
    return made, tmp_path / "algo-1" / "opt" / "ml" / "checkpoints", address


def test_only_what_is_new_or_changed_is_stored(jobs, disk) -> None:
    made, folder, address = disk
    (folder / "step-1").mkdir()
    (folder / "step-1" / "a").write_text("1")
    assert made.store() == 1
    assert made.store() == 0
    (folder / "step-1" / "a").write_text("22")
    (folder / "b").write_text("b")
    assert made.store() == 2
    (folder / "b").unlink()
    assert made.store() == 0
    assert jobs.keys(f"{address}/") == ["b", "step-1/a"]
    assert jobs.read(f"{address}/step-1/a") == b"22"


def test_a_file_half_written_is_replaced_later(jobs, disk, monkeypatch) -> None:
    made, folder, address = disk
    path = folder / "large"
    path.write_bytes(b"half")
    store = training_checkpoints.store

    def while_it_is_written(where: str, content: bytes) -> None:
        store(where, content)
        path.write_bytes(b"half and the other half")

    monkeypatch.setattr(training_checkpoints, "store", while_it_is_written)
    made.store()
    assert jobs.read(f"{address}/large") == b"half"
    monkeypatch.setattr(training_checkpoints, "store", store)
    assert made.store() == 1
    assert jobs.read(f"{address}/large") == b"half and the other half"


def test_what_was_fetched_is_not_stored_again(jobs, disk, tmp_path) -> None:
    made, folder, address = disk
    (folder / "a").write_text("1")
    made.store()
    again = Checkpoints(Root(tmp_path / "second", "algo-1"), {"S3Uri": address})
    again.fetch()
    assert again.store() == 0
    place = tmp_path / "second" / "algo-1" / "opt" / "ml" / "checkpoints" / "a"
    assert place.read_text() == "1"


def test_checkpoints_are_stored_while_a_job_runs(jobs, monkeypatch) -> None:
    monkeypatch.setattr("utils.offline_aws.training_jobs.SYNC_INTERVAL", 0.05)
    script = """
import pathlib, time
folder = pathlib.Path("/opt/ml/saved")
(folder / "first").write_text("1")
while not (folder / "seen").exists():
    time.sleep(0.02)
(folder / "last").write_text("2")
"""
    address = f"s3://{jobs.aws.bucket}/live-{time.time_ns()}"
    given = {"S3Uri": address, "LocalPath": "/opt/ml/saved"}
    job = jobs.start(script, CheckpointConfig=given)
    ends = time.monotonic() + 30
    while jobs.keys(f"{address}/") != ["first"]:
        assert time.monotonic() < ends
        time.sleep(0.02)
    folder = Path(job._processes[0].folder) / "algo-1" / "opt" / "ml" / "saved"
    (folder / "seen").touch()
    assert job.wait(30)
    assert jobs.keys(f"{address}/") == ["first", "last", "seen"]


# --- pip ---


@pytest.mark.parametrize(
    "wanted, fault",
    [
        ("numpy", None),
        ("NumPy>=1,<99", None),
        ("numpy<1", "numpy<1 is asked for, and numpy"),
        ("numpy; python_version < '3'", None),
        ("no-such-package-at-all", "is not installed"),
        ("transformers[no-such-extra]", None),
        ("./wheels/a.whl", "cannot be looked up"),
        ("a @ https://example.com/a.whl", "comes from an address"),
    ],
)
def test_what_is_installed_is_enough(wanted, fault) -> None:
    found = training_pip.fault_of(wanted)
    assert (found is None) if fault is None else (fault in found)


@pytest.mark.parametrize(
    "arguments, asked",
    [
        (["a", "b==1"], ["a", "b==1"]),
        (["-U", "--no-cache-dir", "a", "-i", "https://x/simple"], ["a"]),
        (["--index-url=https://x", "a", "--target", "/tmp/x"], ["a"]),
        (["-r", "{file}"], ["numpy>=1", "pandas", "nested"]),
        (["--requirement={file}"], ["numpy>=1", "pandas", "nested"]),
        (["-r", "missing.txt"], ["missing.txt (No such file or directory)"]),
        (["-e", "."], ["."]),
    ],
)
def test_what_a_call_of_pip_asks_for(tmp_path, arguments, asked) -> None:
    (tmp_path / "more.txt").write_text("nested\n")
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# a comment\n--extra-index-url https://x\nnumpy>=1  # why\n"
        "pandas --hash=sha256:00\n-r more.txt\n\n"
    )
    words = [word.format(file=file) for word in arguments]
    assert list(training_pip.asked_for(words)) == asked


def test_pip_answers_questions_and_removes_nothing(jobs) -> None:
    script = """
import subprocess, sys
for words in (["--version"], ["uninstall", "-y", "numpy"]):
    done = subprocess.run(["pip", *words], capture_output=True, text=True)
    print(words[0], done.returncode, (done.stdout or done.stderr).splitlines()[0])
"""
    job = jobs.run(script)
    shown, removed = jobs.log(job["TrainingJobName"])[-2:]
    assert shown.startswith(f"--version 0 pip {importlib.metadata.version('pip')} from")
    assert removed.startswith("uninstall 1 A job of the offline AWS cannot install")


# --- side by side ---


def test_two_jobs_run_side_by_side_and_make_one_group(jobs) -> None:
    threads = []
    found = []
    for number in range(3):
        given = {"TrainingJobName": f"side-{number}-{time.time_ns()}"}
        run = threading.Thread(
            target=lambda given=given: found.append(jobs.run("print('x')", **given))
        )
        threads.append(run)
        run.start()
    for thread in threads:
        thread.join()
    assert [one["TrainingJobStatus"] for one in found] == ["Completed"] * 3
    assert [jobs.log(one["TrainingJobName"]) for one in found] == [["x"]] * 3
