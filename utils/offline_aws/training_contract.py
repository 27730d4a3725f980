"""What a training job runs, and the environment that it runs in.

There are two contracts. A job of the SDK's ModelTrainer has an entrypoint, which runs
the drivers that the SDK has uploaded. A tuning job, and SDK v2, name a program and its
sources in the hyperparameters, and leave the rest to the toolkit in the image, for
which `training_toolkit` stands.

The environment is made from nothing. What this process has in its own, such as keys and
tokens, does not reach the job, and so not its log, into which the SDK's driver writes
every variable. A job has no credentials: here it needs none, as its channels lie before
it and its results are stored for it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from utils.offline_aws import training_pip, training_toolkit
from utils.offline_aws.names import OFFLINE_REGION
from utils.offline_aws.training_files import Root
from utils.offline_aws.training_supervisor import TOOLKIT
from utils.offline_aws.training_toolkit import PROGRAM, SOURCE, decoded

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of this process's variables, those that a container's image or machine would set.
PASSED_ON = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"),
    *("GOMP_SPINCOUNT", "KMP_BLOCKTIME"),  # how threads wait; see `utils.machine`
    *("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
)
OF_OWN = str(PurePosixPath(TOOLKIT).parent)  # what stands in for parts of an image
PIP = '#!/bin/sh\nexec python3 -m pip "$@"\n'


def has_program(request: dict[str, Any]) -> bool:
    """Say whether a job follows the second contract."""
    given = request.get("HyperParameters") or {}
    entrypoint = request["AlgorithmSpecification"].get("ContainerEntrypoint")
    return not entrypoint and PROGRAM in given and SOURCE in given


def source_address(request: dict[str, Any]) -> str:
    """Return where the sources of the second contract lie."""
    return str(decoded(request["HyperParameters"][SOURCE]))


def command_of(request: dict[str, Any], root: Root) -> list[str]:
    """Return what a job runs."""
    if has_program(request):
        return [python(), str(root.path / TOOLKIT)]
    return [root.mapped(word) for word in words_of(request["AlgorithmSpecification"])]


def words_of(specification: dict[str, Any]) -> list[str]:
    """Return a container's command, as the request has it."""
    arguments = specification.get("ContainerArguments") or []
    return [*specification["ContainerEntrypoint"], *arguments]


def working_folder(request: dict[str, Any], root: Root) -> Path:
    """Return the folder that a job runs in."""
    return root.code if has_program(request) else root.home


def python() -> str:
    """Return the interpreter of this environment."""
    return sys.executable


def install_stand_ins(root: Root) -> None:
    """Write what stands in for parts of an image: its pip and its toolkit."""
    folder = root.path / OF_OWN
    (folder / "pip").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "pip" / "__init__.py").touch()
    places = {folder / "pip" / "__main__.py": training_pip}
    places[root.path / TOOLKIT] = training_toolkit
    for place, module in places.items():
        text = Path(module.__file__).read_text("utf-8")
        place.write_text(root.mapped(text), "utf-8")
    for name in ("pip", "pip3"):
        command = folder / "bin" / name
        command.write_text(PIP)
        command.chmod(0o755)


def environment_of(
    root: Root, given: dict[str, str], threads: int | None = None
) -> dict[str, str]:
    """Return all variables of a training or a processing job.

    Args:
        root: its disk.
        given: those that are the job's own.
        threads: that OpenMP may use, where several share this machine.
    """
    own = root.path / OF_OWN
    found = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if threads is not None:
        found.setdefault("OMP_NUM_THREADS", str(threads))
    found |= {
        "PATH": f"{own / 'bin'}:{Path(python()).parent}:{SYSTEM_PATH}",
        "HOME": str(root.home),
        "TMPDIR": str(root.temporary),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(own),
        "PYTHONUNBUFFERED": "1",  # as in AWS's images
        "AWS_REGION": OFFLINE_REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_BASE_DIR": str(root.ml),  # by which orphans are found
    }
    return found | {name: root.mapped(text) for name, text in given.items()}
