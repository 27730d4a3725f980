"""The channels of a training job: fetched from the offline S3, each object a file.

A key that no file can have, or two keys for one file, fail the job with a reason:
nothing is lost in silence, and nothing lands outside its folder.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from utils.offline_aws.errors import AwsFault
from utils.offline_aws.names import OFFLINE_REGION
from utils.offline_aws.references import s3_backend, split_address
from utils.offline_aws.training_errors import FULL_DISK, JobFailure, download_failed
from utils.offline_aws.training_files import Root


def objects(address: str) -> list[tuple[str, Any]]:
    """Return key and object of all that the offline S3 holds under a prefix, in order.

    Raises:
        JobFailure: if the bucket does not exist.
    """
    bucket, prefix = _split(address)
    backend = s3_backend()
    if bucket not in backend.buckets:
        raise download_failed(f"The bucket of {address} does not exist. Create it.")
    # A copy of the names, made at once: others may store while this goes on.
    names = sorted(dict.keys(backend.buckets[bucket].keys))
    found = []
    for name in names:
        if name.startswith(prefix):
            item = backend.get_object(bucket, name)
            if item is not None:  # a deleted one, in a bucket with versions
                found.append((name, item))
    return found


def _split(address: str) -> tuple[str, str]:
    try:
        return split_address(address)
    except AwsFault as fault:
        raise download_failed(fault.message) from None


def fetch_channel(
    root: Root, channel: dict[str, Any], number: int = 0, instances: int = 1
) -> None:
    """Copy a channel's objects from S3 into its folder.

    Args:
        root: the disk of the instance.
        channel: one of InputDataConfig.
        number: of the instance, from 0.
        instances: of the job; with ShardedByS3Key each gets its share of the objects.

    Raises:
        JobFailure: if there are none, or they cannot be files.
    """
    source = channel["DataSource"]["S3DataSource"]
    address = source["S3Uri"]
    found = objects(address)
    if not found:
        bucket, _ = _split(address)
        raise download_failed(
            f'No S3 objects found under S3 URL "{address}" given in input data source. '
            "Please ensure that the bucket exists in the selected region "
            f"({OFFLINE_REGION}), that objects exist under that S3 prefix, and that "
            f'the role has "s3:ListBucket" permissions on bucket "{bucket}". '
            f"It is the channel {channel['ChannelName']}."
        )
    if source.get("S3DataDistributionType") == "ShardedByS3Key":
        found = found[number::instances]
    folder = root.data / channel["ChannelName"]
    copy_objects(found, _split(address)[1], folder)


def copy_objects(found: list[tuple[str, Any]], prefix: str, folder: Path) -> None:
    """Write objects as files into a folder, each under the path that its key has there.

    Raises:
        JobFailure: if a key cannot be a path in it, or another has taken the place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: dict[PurePosixPath, str] = {}
    for key, item in found:
        relative = path_of(key, prefix)
        target = folder / relative
        if key.endswith("/"):  # a marker, as consoles make for folders
            if item.size:
                raise download_failed(
                    f"The key {key!r} ends as a folder does, and holds {item.size} "
                    "bytes: no file can have this name. Copy it to another key."
                )
            with _said(key):
                target.mkdir(parents=True, exist_ok=True)
            continue
        if relative in taken:
            raise download_failed(
                f"The keys {taken[relative]!r} and {key!r} would be the same file "
                f"{str(relative)!r}. Rename one of them."
            )
        taken[relative] = key
        with _said(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:  # of names that differ in case only, one
                file.write(item.value)


@contextlib.contextmanager
def _said(key: str) -> Iterator[None]:
    """Say of which key it was that no file could be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in FULL_DISK:
            raise download_failed("Insufficient disk space") from None
        raise download_failed(
            f"The key {key!r} cannot be a file ({error}). Rename the object."
        ) from None


def path_of(key: str, prefix: str) -> PurePosixPath:
    """Return where in its channel's folder an object lies.

    Below a prefix that is a folder, the rest of the key; else from the last folder that
    the prefix names, so that a single object keeps its name.

    Raises:
        JobFailure: if the path would leave the folder.
    """
    below = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    start = len(below) if key.startswith(below) else prefix.rfind("/") + 1
    rest = key[start:]
    path = PurePosixPath(rest.lstrip("/"))
    if ".." in path.parts or "\0" in rest:
        raise download_failed(
            f"The key {key!r} leads out of its channel's folder. Rename the object."
        )
    return path


def unpack_source(root: Root, address: str) -> None:
    """Unpack the archive of sources that the second contract names into /opt/ml/code.

    On AWS the toolkit in the image fetches it, with boto3; the text for one that is not
    there: aws/sagemaker-python-sdk, issue 835. What follows it is ours.

    Raises:
        JobFailure: if there is none, or it must not be unpacked.
    """
    start = "AlgorithmError: framework error: "
    bucket, key = _split(address)
    backend = s3_backend()
    item = backend.get_object(bucket, key) if bucket in backend.buckets else None
    if item is None:
        raise JobFailure(
            f"{start}An error occurred (404) when calling the HeadObject operation: "
            f"Not Found. There is nothing at {address}, exit code: 1"
        )
    archive = root.temporary / "sourcedir.tar.gz"
    archive.write_bytes(item.value)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(root.code, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise JobFailure(
            f"{start}{address} cannot be unpacked: {error}. Pack the source folder "
            "with `tar -C source -czf sourcedir.tar.gz .`, exit code: 1"
        ) from None
    finally:
        archive.unlink()
