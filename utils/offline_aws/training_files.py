"""The disk of a training job: /opt/ml with its configuration, before the job starts.

A container has /opt/ml to itself; here it is a folder "algo-1/opt/ml" in a temporary
one. So wherever the path is written in what the job gets (the SDK's drivers, its own
scripts, command, environment, hyperparameters), the folder's is written instead, and a
script that names /opt/ml/checkpoints runs here and on AWS.

The rules for names, contents and places: "Amazon SageMaker AI Training Storage Folders"
and "How Amazon SageMaker AI Provides Training Information" in the developer guide.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from utils.offline_aws.training_errors import JobFailure

OPT_ML = "/opt/ml"
GROUP = "homogeneousCluster"  # what AWS calls the instances of a job without groups
LOOPBACK = "lo0" if os.uname().sysname == "Darwin" else "lo"
SCRIPTS = (".py", ".sh")  # in which a channel may name /opt/ml
CODE, DRIVERS = "code", "sm_drivers"  # the channels of the SDK that hold scripts
# In the driver `environment.py`: where the first instance is, which has no such name.
MASTER = 'SM_MASTER_ADDR = "algo-1"', 'SM_MASTER_ADDR = "127.0.0.1"'
MASTER_PORT = "SM_MASTER_PORT = 7777"
GIGABYTE = 1024**3


class Root:
    """The disk of one instance.

    Attributes:
        path: the folder that stands for "/".
        host: algo-1, algo-2, …
        ml: the folder that stands for /opt/ml.
        home: that of the user.
    """

    def __init__(self, folder: Path, host: str):
        self.path, self.host = folder / host, host
        self.ml = self.path / "opt" / "ml"
        self.home = self.path / "root"
        self.temporary = self.path / "tmp"
        self.data = self.ml / "input" / "data"
        self.config = self.ml / "input" / "config"
        self.model = self.ml / "model"
        self.output_data = self.ml / "output" / "data"
        self.failure = self.ml / "output" / "failure"
        self.code = self.ml / "code"
        for made in (self.home, self.temporary, self.data, self.config, self.model):
            made.mkdir(parents=True)
        for made in (self.output_data, self.code):
            made.mkdir(parents=True)

    def mapped(self, text: str) -> str:
        """Write this disk's folder where a text says /opt/ml."""
        return text.replace(OPT_ML, str(self.ml))

    def place(self, path: str) -> Path:
        """Return the folder that stands for an absolute path of the container."""
        return self.path / PurePosixPath(path).relative_to("/")

    @property
    def size(self) -> int:
        """Bytes of all that lies in /opt/ml."""
        total = 0
        for folder, _, names in os.walk(self.ml):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total


def check_volume(
    root: Root, gigabytes: int | None, failed: Callable[[str], JobFailure]
) -> None:
    """Refuse what is more than the volume of the job holds.

    Args:
        root: the disk.
        gigabytes: its VolumeSizeInGB; None if it was not given.
        failed: makes the failure of a text.

    Raises:
        JobFailure: if it does not fit.
    """
    if gigabytes and root.size > gigabytes * GIGABYTE:
        raise failed("Insufficient disk space")


def rewrite_scripts(root: Root, port: int) -> None:
    """Write this disk's folder, and this machine's address, into scripts.

    Args:
        root: the disk.
        port: where the instances meet; two jobs can run here at a time.
    """
    rewrite_folder(root, root.data / CODE)
    rewrite_folder(root, root.data / DRIVERS, port)
    rewrite_folder(root, root.code)


def rewrite_folder(root: Root, folder: Path, port: int | None = None) -> None:
    """Write this disk's folder into the scripts of a folder.

    Args:
        root: the disk.
        folder: in it.
        port: where the instances meet, in drivers of the SDK.
    """
    for path in folder.rglob("*"):
        _rewrite(root, path, port)


def _rewrite(root: Root, path: Path, port: int | None) -> None:
    if path.suffix not in SCRIPTS or not path.is_file() or path.is_symlink():
        return
    data = path.read_bytes()
    written = data.replace(OPT_ML.encode(), str(root.ml).encode())
    if port is not None:
        written = written.replace(*(part.encode() for part in MASTER))
        ours = MASTER_PORT.replace("7777", str(port))
        written = written.replace(MASTER_PORT.encode(), ours.encode())
    if written != data:
        path.write_bytes(written)


def write_configuration(root: Root, request: dict[str, Any], hosts: list[str]) -> None:
    """Write the three files of /opt/ml/input/config.

    Args:
        root: the disk.
        request: of CreateTrainingJob.
        hosts: the names of all instances.
    """
    kind = request["ResourceConfig"]["InstanceType"]
    group = {"instance_group_name": GROUP, "instance_type": kind, "hosts": hosts}
    specification = request["AlgorithmSpecification"]
    channels = {}
    for channel in request.get("InputDataConfig") or []:
        source = channel["DataSource"]["S3DataSource"]
        described = {
            "ContentType": channel.get("ContentType"),
            "TrainingInputMode": channel.get("InputMode")
            or specification["TrainingInputMode"],
            "S3DistributionType": source.get("S3DataDistributionType")
            or "FullyReplicated",
            "RecordWrapperType": channel.get("RecordWrapperType") or "None",
        }
        channels[channel["ChannelName"]] = {k: v for k, v in described.items() if v}
    given = request.get("HyperParameters") or {}
    files = {
        "hyperparameters": {key: root.mapped(text) for key, text in given.items()},
        "inputdataconfig": channels,
        "resourceconfig": {
            "current_host": root.host,
            "current_instance_type": kind,
            "current_group_name": GROUP,
            "hosts": hosts,
            "instance_groups": [group],
            "network_interface_name": LOOPBACK,
        },
    }
    for name, content in files.items():
        text = json.dumps(content)
        (root.config / f"{name}.json").write_text(text, "utf-8")
