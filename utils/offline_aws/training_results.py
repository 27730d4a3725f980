"""What a training job leaves: its model and further output, stored in the offline S3.

Places and names: "Amazon SageMaker AI Training Storage Folders" in the developer guide.
Of several instances all folders are stored as one. Where two have left a file of the
same name, that of the first instance is taken; this order is ours.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from utils.offline_aws.errors import AwsFault
from utils.offline_aws.references import s3_backend, split_address
from utils.offline_aws.training_errors import FULL_DISK, upload_failed
from utils.offline_aws.training_files import Root, check_volume

LONGEST_FAILURE = 1024  # characters; "Training Storage Folders", as above


def read_failure(root: Root) -> str:
    """Return what the job has written of its failure; "" if it wrote nothing."""
    try:
        with root.failure.open(encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST_FAILURE)
    except OSError:
        return ""


def output_address(request: dict[str, Any]) -> str:
    """Return where a job's results go."""
    path = request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
    return f"{path}/{request['TrainingJobName']}/output"


def model_address(request: dict[str, Any]) -> str:
    """Return where a job's model goes."""
    packed = request["OutputDataConfig"].get("CompressionType") != "NONE"
    return f"{output_address(request)}/model{'.tar.gz' if packed else '/'}"


def store_results(roots: list[Root], request: dict[str, Any]) -> None:
    """Put model and further output of a job into S3, if it has left any.

    A job without a model stores none (aws/sagemaker-python-sdk, issue 3455).

    Raises:
        JobFailure: if they cannot be stored.
    """
    address = output_address(request)
    volume = request["ResourceConfig"].get("VolumeSizeInGB")
    for root in roots:
        check_volume(root, volume, upload_failed)
    packed = request["OutputDataConfig"].get("CompressionType") != "NONE"
    temporary = roots[0].temporary
    places = {"model": [root.model for root in roots]}
    places["output"] = [root.output_data for root in roots]
    for name, folders in places.items():
        found = together(folders)
        if not found:
            continue
        try:
            if packed:
                _store_packed(found, f"{address}/{name}.tar.gz", temporary)
                continue
            store_files(found, f"{address}/{name}")
        except OSError as error:
            full = error.errno in FULL_DISK
            what = "Insufficient disk space" if full else str(error)
            raise upload_failed(what) from None


def together(folders: list[Path]) -> dict[str, Path]:
    """Return all that lies in several folders by its path there, the first one's."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def _store_packed(found: dict[str, Path], address: str, temporary: Path) -> None:
    """Pack files and folders and put them into S3."""
    temporary.mkdir(exist_ok=True)
    archive = temporary / "artifact.tar.gz"
    with tarfile.open(archive, "w:gz", dereference=True) as tar:
        for name, path in sorted(found.items()):
            tar.add(path, name, recursive=False)
    store(address, archive.read_bytes())
    archive.unlink()


def store_files(found: dict[str, Path], address: str) -> None:
    """Put files into S3, each under its path below an address.

    Raises:
        JobFailure: if the bucket does not exist.
        OSError: if a file cannot be read.
    """
    for key, path in found.items():
        if path.is_file():
            store(f"{address}/{key}", path.read_bytes())


def store(address: str, content: bytes) -> None:
    """Put an object into the offline S3.

    Raises:
        JobFailure: if the bucket does not exist.
    """
    try:
        bucket, key = split_address(address)
    except AwsFault as fault:
        raise upload_failed(fault.message) from None
    if bucket not in s3_backend().buckets:
        raise upload_failed(
            f"The bucket {bucket} does not exist. Create it before the job ends."
        )
    s3_backend().put_object(bucket, key, content)
