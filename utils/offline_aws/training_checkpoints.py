"""Checkpoints of a training job: fetched before it starts, stored while it runs.

SageMaker keeps the local folder and the address in S3 alike in both directions ("Use
checkpoints in Amazon SageMaker AI" in the developer guide). What is new or changed is
stored; what the script deletes stays in S3. A file that was stored half written has
changed when it is looked at again, and is then replaced.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from utils.offline_aws.training_data import copy_objects, objects
from utils.offline_aws.training_errors import FULL_DISK, upload_failed
from utils.offline_aws.training_files import Root
from utils.offline_aws.training_results import store

DEFAULT_PLACE = "/opt/ml/checkpoints"  # botocore's model of CheckpointConfig


class Checkpoints:
    """The checkpoints of one instance; nothing is done without a configuration."""

    def __init__(self, root: Root, configuration: dict[str, Any] | None):
        """Make the folder.

        Args:
            root: the disk of the instance. Several instances share one address: what
                they write needs names of its own.
            configuration: the request's CheckpointConfig.
        """
        self._folder: Path | None = None
        self._address = ""
        self._seen: dict[Path, tuple[int, int]] = {}
        if configuration is not None:
            place = configuration.get("LocalPath") or DEFAULT_PLACE
            self._folder = root.place(place)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._address = configuration["S3Uri"].rstrip("/")

    def fetch(self) -> None:
        """Copy what S3 holds into the folder.

        Raises:
            JobFailure: if it cannot be done.
        """
        if self._folder is None:
            return
        prefix = f"{self._address}/"
        copy_objects(objects(prefix), prefix.split("/", 3)[3], self._folder)
        for path, state in self._states():
            self._seen[path] = state

    def _states(self) -> list[tuple[Path, tuple[int, int]]]:
        found = []
        for path in sorted(self._folder.rglob("*")):
            with contextlib.suppress(OSError):  # gone in between
                if path.is_file():
                    known = path.stat()
                    found.append((path, (known.st_mtime_ns, known.st_size)))
        return found

    def store(self) -> int:
        """Store what is new or has changed; return how many files that was.

        Raises:
            JobFailure: if it cannot be done.
        """
        if self._folder is None:
            return 0
        stored = 0
        for path, state in self._states():
            if self._seen.get(path) == state:
                continue
            try:
                content = path.read_bytes()
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise upload_failed("Insufficient disk space") from None
                continue  # gone in between, or not to be read
            key = path.relative_to(self._folder).as_posix()
            store(f"{self._address}/{key}", content)
            self._seen[path] = state  # as it was before it was read
            stored += 1
        return stored
