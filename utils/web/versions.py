"""A registry of versions: what each was made from, how good it is, and who approved it.

SageMaker's Model Registry keeps it, on AWS and offline by the same calls. A version is
a model package of a group. Its archive and its data stand there by their SHA-256, so
that a version can be told by what it serves. Live is what every deployment by the
registry takes: the approved version with the highest number. Hence a roll-back rejects
the live version, and the one approved before it is live again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import CourseError, portable_name

if TYPE_CHECKING:
    import pandas

    from utils.deployment.aws import Aws

APPROVED, REJECTED, PENDING = "Approved", "Rejected", "PendingManualApproval"
# Limits from botocore's model of SageMaker: EntityName, CustomerMetadataMap with its
# key and value, ApprovalDescription.
GROUP_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
MOST_ENTRIES, LONGEST_KEY, LONGEST_VALUE = 50, 128, 256
LONGEST_REASON = 1024
KINDS_OF_CHARACTERS = "LZN"  # letters, separators and numbers, by Unicode
FURTHER_CHARACTERS = "_.:/=+-@"
DECISIONS_KEPT = 10  # of a version; room for them is left when it is registered
SHORTEST_DIGEST = 6  # characters of one that is looked for
HYPERPARAMETER, METRIC, DECISION = "hyperparameter.", "metric.", "decision."
ORIGIN = "origin."
JSON = "application/json"


class VersionError(CourseError, ValueError):
    """A version that cannot be registered, found or rolled back; says what to do."""


@dataclass(frozen=True)
class Version:
    """A version of a model, as the registry knows it.

    Attributes:
        number: in its group, from 1; never given twice.
        status: "Approved", "Rejected" or "PendingManualApproval".
        archive: SHA-256 of model.tar.gz, in hexadecimal digits.
        address: where the archive lies, s3://bucket/key.
        image: of the container that serves it.
        data: SHA-256 of the data that it was trained with.
        base: what it was tuned from: a model's name, or the archive of a version.
        hyperparameters: name → value, as text.
        metrics: name → value.
        decisions: "Approved 2026-01-31T12:00:00+00:00 Ada", the last one at the end.
        why: the reason of the last decision.
        registered: when.
        arn: AWS's name of it.
        origin: what made it, such as the ARN of its training job: name → text.
    """

    number: int
    status: str
    archive: str
    address: str
    image: str
    data: str
    base: str
    hyperparameters: Mapping[str, str]
    metrics: Mapping[str, float]
    decisions: tuple[str, ...]
    why: str
    registered: datetime
    arn: str = field(repr=False)
    origin: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def by(self) -> str:
        """Who took the last decision; "" before there is one."""
        return self.decisions[-1].split(" ", 2)[2] if self.decisions else ""

    def __str__(self) -> str:
        decided = f" by {self.by}: {self.why}" if self.decisions else ""
        return f"version {self.number} ({self.archive[:8]}), {self.status}{decided}"


class Versions:
    """The versions in one group of SageMaker's Model Registry.

    First used in lesson 07, section 9.
    """

    def __init__(self, aws: Aws, group: str):
        """Name the group; it is made when its first version is registered.

        Args:
            aws: the account.
            group: its name, such as `guard.name("versions")`.

        Raises:
            VersionError: if AWS takes no such name.
        """
        if not GROUP_NAME.fullmatch(group):
            raise VersionError(
                f"The group's name is {group!r}. Use 1 to 63 letters, digits and "
                "hyphens, with no hyphen at either end."
            )
        self.aws = aws
        self.group = group
        self._client = aws.session.client("sagemaker")

    # --- writing ---------------------------------------------------------------------

    def register(
        self,
        archive: Path,
        address: str,
        image: str,
        *,
        data: str,
        base: str,
        hyperparameters: Mapping[str, Any],
        metrics: Mapping[str, float],
        instance_types: Sequence[str] = ("ml.g5.xlarge",),
        origin: Mapping[str, str] | None = None,
    ) -> Version:
        """Register an archive that was uploaded; it then waits for its approval.

        The metrics are written to S3 as well, where AWS's console reads them.

        Args:
            archive: model.tar.gz on this machine; its digest is noted.
            address: where it was uploaded to, s3://bucket/key.
            image: of the container that serves it.
            data: SHA-256 of the training data; see `digest`.
            base: what was tuned: a model's name, or the digest of a version's archive.
            hyperparameters: of the training; values may be nested or lists.
            metrics: on the test questions, finite numbers.
            instance_types: that can serve it.
            origin: what made it: name → text, such as the ARN of its training job.

        Raises:
            VersionError: if the registry does not take one of them, or another archive
                lies at the address.
        """
        notes = {"archive": digest(archive), "data": data, "base": base}
        notes |= _flat(HYPERPARAMETER, hyperparameters) | _flat(ORIGIN, origin or {})
        for name, value in metrics.items():
            if isinstance(value, bool) or not math.isfinite(value):
                raise VersionError(f"metric {name} is {value!r}: give a finite number.")
            notes[METRIC + name] = f"{value:.6g}"
        _check_notes(notes, MOST_ENTRIES - DECISIONS_KEPT)
        self._check_upload(archive, address)
        if not self._exists():
            self._client.create_model_package_group(ModelPackageGroupName=self.group)
        created = self._client.create_model_package(
            ModelPackageGroupName=self.group,
            ModelApprovalStatus=PENDING,
            InferenceSpecification={
                "Containers": [{"Image": image, "ModelDataUrl": address}],
                "SupportedRealtimeInferenceInstanceTypes": list(instance_types),
                "SupportedContentTypes": [JSON],
                "SupportedResponseMIMETypes": [JSON],
            },
            ModelMetrics=self._metrics_on_s3(notes["archive"], metrics),
            CustomerMetadataProperties=notes,
        )
        return self._describe(created["ModelPackageArn"])

    def approve(self, number: int, by: str, why: str) -> Version:
        """Approve a version; it is live unless a later one is approved as well.

        Args:
            number: of the version.
            by: whose decision it is.
            why: the reason; cut after 1,024 characters.

        Raises:
            VersionError: if there is no such version, or the name cannot be noted.
        """
        return self._decide(number, APPROVED, by, why)

    def reject(self, number: int, by: str, why: str) -> Version:
        """Reject a version; see `approve`."""
        return self._decide(number, REJECTED, by, why)

    def roll_back(self, by: str, why: str) -> Version:
        """Reject the live version; return the one that is live from then on.

        Raises:
            VersionError: if no other version is approved; nothing is changed then.
        """
        approved = self._approved()
        if len(approved) < 2:
            raise VersionError(
                f"{self.group} has {len(approved)} approved versions: there is none to "
                "go back to. Approve an earlier one first."
            )
        self.reject(approved[0], by, why)
        return self.get(approved[1])

    # --- reading ---------------------------------------------------------------------

    def get(self, number: int) -> Version:
        """Return a version by its number.

        Raises:
            VersionError: if there is none.
        """
        numbers = self._numbers()
        if number not in numbers:
            there = ", ".join(map(str, sorted(numbers))) or "none"
            raise VersionError(
                f"{self.group} has no version {number}. There are: {there}."
            )
        return self._describe(numbers[number])

    def all(self) -> list[Version]:
        """Return all versions by their numbers."""
        return [self._describe(arn) for _, arn in sorted(self._numbers().items())]

    def live(self) -> Version | None:
        """Return the approved version with the highest number; None without one."""
        approved = self._approved()
        return self.get(approved[0]) if approved else None

    def previous(self) -> Version | None:
        """Return the version that a roll-back would make live; None without one."""
        approved = self._approved()
        return self.get(approved[1]) if len(approved) > 1 else None

    def require_latest(self, number: int) -> Version:
        """Return a version that will be live once it is approved.

        Raises:
            VersionError: if there is no such version, or a later one is approved, which
                the registry would go on naming.
        """
        version, live = self.get(number), self.live()
        if live is not None and live.number > number:
            raise VersionError(
                f"Version {live.number} is live and later than {number}: the registry "
                "would go on naming it. Roll it back first."
            )
        return version

    def find(self, start: str) -> list[Version]:
        """Return the versions whose archive, data or base is this digest.

        Args:
            start: the digest or its first characters, six at least; for a base also
                its whole name.

        Raises:
            VersionError: if it is too short to tell digests apart.
        """
        if len(start) < SHORTEST_DIGEST:
            raise VersionError(
                f"{start!r} is too short: give {SHORTEST_DIGEST} characters of the "
                "digest at least."
            )
        return [
            version
            for version in self.all()
            if version.base == start
            or any(
                text.startswith(start)
                for text in (version.archive, version.data, version.base)
            )
        ]

    def lineage(self, number: int) -> list[Version]:
        """Return a version, the version that it was tuned from, and so on.

        Raises:
            VersionError: if there is no such version.
        """
        chain = [self.get(number)]
        earlier = {v.archive: v for v in self.all() if v.number < number}
        while (parent := earlier.pop(chain[-1].base, None)) is not None:
            chain.append(parent)
        return chain

    def history(self) -> pandas.DataFrame:
        """Return a table: a row for each version, the metrics in columns of their own.

        Digests are cut to eight characters.
        """
        import pandas

        rows = [
            {
                "version": version.number,
                "status": version.status,
                "by": version.by,
                "why": version.why,
                "archive": version.archive[:8],
                "data": version.data[:8],
                "base": version.base,
                **version.metrics,
            }
            for version in self.all()
        ]
        return pandas.DataFrame(rows)

    # --- asking AWS ------------------------------------------------------------------

    def _decide(self, number: int, status: str, by: str, why: str) -> Version:
        version = self.get(number)
        described = self._client.describe_model_package(ModelPackageName=version.arn)
        notes = dict(described.get("CustomerMetadataProperties") or {})
        past = sorted(key for key in notes if key.startswith(DECISION))
        last = int(past[-1].removeprefix(DECISION)) if past else 0
        now = datetime.now(UTC).isoformat(timespec="seconds")
        notes[f"{DECISION}{last + 1:04d}"] = f"{status} {now} {by}"
        _check_text("by", by)
        dropped = past[: max(0, len(past) + 1 - DECISIONS_KEPT)]
        notes = {key: text for key, text in notes.items() if key not in dropped}
        _check_notes(notes, MOST_ENTRIES)
        given: dict[str, Any] = {"CustomerMetadataPropertiesToRemove": dropped}
        self._client.update_model_package(
            ModelPackageArn=version.arn,
            ModelApprovalStatus=status,
            ApprovalDescription=" ".join(why.split())[:LONGEST_REASON],
            # All of them: AWS does not say whether those not named would stay.
            CustomerMetadataProperties=notes,
            **(given if dropped else {}),
        )
        return self._describe(version.arn)

    def _exists(self) -> bool:
        """Say whether the group is there."""
        from botocore.exceptions import ClientError

        try:
            self._client.describe_model_package_group(ModelPackageGroupName=self.group)
        except ClientError as error:
            if error.response["Error"]["Code"].startswith("Validation"):
                return False
            raise
        return True

    def _listed(self, **more: str) -> Iterator[dict[str, Any]]:
        if not self._exists():
            return
        pages = self._client.get_paginator("list_model_packages")
        for page in pages.paginate(ModelPackageGroupName=self.group, **more):
            yield from page["ModelPackageSummaryList"]

    def _numbers(self) -> dict[int, str]:
        """Return the ARN of each version by its number."""
        return {
            one["ModelPackageVersion"]: one["ModelPackageArn"] for one in self._listed()
        }

    def _approved(self) -> list[int]:
        """Return the numbers of the approved versions, the highest first."""
        listed = self._listed(ModelApprovalStatus=APPROVED)
        return sorted((one["ModelPackageVersion"] for one in listed), reverse=True)

    def _describe(self, arn: str) -> Version:
        found = self._client.describe_model_package(ModelPackageName=arn)
        notes = found.get("CustomerMetadataProperties") or {}
        decisions = sorted(_below(DECISION, notes).items())
        container = found["InferenceSpecification"]["Containers"][0]
        return Version(
            number=found["ModelPackageVersion"],
            status=found.get("ModelApprovalStatus", PENDING),
            archive=notes.get("archive", ""),
            address=container.get("ModelDataUrl", ""),
            image=container.get("Image", ""),
            data=notes.get("data", ""),
            base=notes.get("base", ""),
            hyperparameters=_below(HYPERPARAMETER, notes),
            metrics={k: float(text) for k, text in _below(METRIC, notes).items()},
            decisions=tuple(text for _, text in decisions),
            # A pipeline's step that registers cannot give the former.
            why=found.get("ApprovalDescription")
            or found.get("ModelPackageDescription", ""),
            registered=found["CreationTime"],
            arn=arn,
            origin=_below(ORIGIN, notes),
        )

    def _check_upload(self, archive: Path, address: str) -> None:
        """Refuse an address at which nothing lies, or something of another size."""
        from botocore.exceptions import ClientError

        bucket, _, key = address.removeprefix("s3://").partition("/")
        if not address.startswith("s3://") or not key:
            raise VersionError(f"address is {address!r}: give s3://bucket/key.")
        try:
            found = self.aws.session.client("s3").head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise
            raise VersionError(
                f"There is nothing at {address}. Upload {portable_name(archive)} first."
            ) from error
        size = archive.stat().st_size
        if found["ContentLength"] != size:
            raise VersionError(
                f"{address} has {found['ContentLength']} bytes, and "
                f"{portable_name(archive)} has {size}: upload this archive anew."
            )

    def _metrics_on_s3(self, archive: str, metrics: Mapping[str, float]) -> dict:
        """Write the metrics to S3; return them as CreateModelPackage takes them."""
        text = json.dumps(dict(metrics), sort_keys=True).encode()
        key = f"{self.group}/{archive[:12]}-metrics.json"
        self.aws.session.client("s3").put_object(
            Bucket=self.aws.bucket, Key=key, Body=text, ContentType=JSON
        )
        source = {
            "ContentType": JSON,
            "S3Uri": f"s3://{self.aws.bucket}/{key}",
            "ContentDigest": f"sha256:{hashlib.sha256(text).hexdigest()}",
        }
        return {"ModelQuality": {"Statistics": source}}


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits.

    The course packs archives with fixed times and owners, so that the same content has
    the same digest (`utils.deployment.artifact.pack`).

    First used in lesson 07, section 9.

    Raises:
        VersionError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VersionError(
            f"{portable_name(path)} cannot be read ({error.strerror}): name a file."
        ) from error


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values as text, each under the names that lead to it."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}{name}.", value)
        elif isinstance(value, list | tuple | set | frozenset):
            ordered = value if isinstance(value, list | tuple) else sorted(value)
            found[prefix + name] = " ".join(map(str, ordered))
        else:
            found[prefix + name] = str(value)
    return found


def _below(prefix: str, notes: Mapping[str, str]) -> dict[str, str]:
    return {
        key.removeprefix(prefix): text
        for key, text in notes.items()
        if key.startswith(prefix)
    }


def _check_notes(notes: Mapping[str, str], most: int) -> None:
    """Hold notes to the limits of CustomerMetadataProperties.

    Raises:
        VersionError: naming the note, what was found, and what is taken.
    """
    if len(notes) > most:
        raise VersionError(
            f"{len(notes)} notes: the registry takes {MOST_ENTRIES} a version, "
            f"{DECISIONS_KEPT} of them for decisions. Leave out hyperparameters or "
            "metrics."
        )
    for key, text in notes.items():
        _check_text(f"The name {key!r}", key, LONGEST_KEY)
        _check_text(key, text)


def _check_text(what: str, text: str, longest: int = LONGEST_VALUE) -> None:
    if not isinstance(text, str) or not 1 <= len(text) <= longest:
        found = f"{len(text)} characters" if isinstance(text, str) else repr(text)
        raise VersionError(f"{what}: found {found}, expected a text of 1 to {longest}.")
    for character in text:
        if (
            unicodedata.category(character)[0] not in KINDS_OF_CHARACTERS
            and character not in FURTHER_CHARACTERS
        ):
            raise VersionError(
                f"{what}: found {character!r} in {text[:60]!r}. The registry takes "
                f"letters, numbers, spaces and {' '.join(FURTHER_CHARACTERS)} only: "
                "write it with those."
            )
