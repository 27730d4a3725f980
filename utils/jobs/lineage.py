"""Which data made which adapter, which archive, which version, and where it serves.

It is one query, and it may begin at any place of the chain: a digest, a version, a
job, an endpoint. Nothing is kept for it that could go out of step: the registry says
what a version was made from, the job says which data it read, and an endpoint's
configuration says what it serves. The data lie at an address that holds their digest,
so that the job itself is the witness.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.course import CourseError
from utils.web.versions import SHORTEST_DIGEST, Version, Versions

if TYPE_CHECKING:
    import pandas

    from utils.deployment.aws import Aws

DIGEST = re.compile(r"[0-9a-f]{64}")
START = re.compile(rf"[0-9a-f]{{{SHORTEST_DIGEST},64}}")
JOB_ARN = ":training-job/"
SHOWN = 8  # characters of a digest in the table
JOB, ADAPTER, EXECUTION = "job", "adapter", "execution"  # in a version's origin
TRAIN = "train"  # the channel of the data


class LineageError(CourseError, LookupError):
    """Nothing is known of what was asked for; the message says what there is."""


@dataclass(frozen=True)
class Serving:
    """A variant of an endpoint, and what it serves.

    Attributes:
        endpoint: its name.
        variant: its name.
        package: ARN of the model package; "" if the model was not made from one.
        address: of its archive; "" if the model names none.
    """

    endpoint: str
    variant: str
    package: str
    address: str

    def serves(self, version: Version) -> bool:
        """Return whether it is this version that is served."""
        return version.arn == self.package or version.address == self.address != ""


@dataclass(frozen=True)
class Link:
    """One version with all that led to it and follows from it.

    Attributes:
        group: of the registry; "" for a job that no version names.
        version: as the registry knows it; None likewise.
        job: name of the training job; "" if none is noted.
        data: SHA-256 of the data.
        adapter: SHA-256 of the job's own model.tar.gz; "" if it was not noted.
        served: where it serves.
        doubts: what does not fit together, in sentences.
    """

    group: str
    version: Version | None
    job: str
    data: str
    adapter: str
    served: tuple[Serving, ...] = ()
    doubts: tuple[str, ...] = field(default=())


def lineage(aws: Aws, start: str | int, group: str | None = None) -> pandas.DataFrame:
    """Return the chain that something belongs to, as a table.

    First used in lesson 08, section 7.

    Args:
        aws: the account.
        start: a version's number or ARN, the name or ARN of a training job, the name
            of an endpoint, or a digest of data, adapter, archive or base, of which six
            characters are enough.
        group: of the registry; None for all groups, where a number may find several.

    Returns:
        A row for each version, and for each place where it serves: data, job, adapter,
        version with status, archive, endpoint and variant, and what does not fit.
        Digests are cut to eight characters.

    Raises:
        LineageError: if nothing in the account fits.
    """
    import pandas

    columns = {
        "data": "data",
        "job": "training job",
        "adapter": "adapter",
        "archive": "archive",
        "version": "version",
        "status": "status",
        "endpoint": "endpoint",
        "variant": "variant",
        "doubts": "doubts",
    }
    rows = [row for link in links(aws, start, group) for row in _rows(link)]
    return pandas.DataFrame(rows)[list(columns)].rename(columns=columns)


def links(aws: Aws, start: str | int, group: str | None = None) -> list[Link]:
    """Return what `lineage` shows, with whole digests, by group and number.

    Raises:
        LineageError: if nothing in the account fits.
    """
    client = aws.session.client("sagemaker")
    groups = _groups(client) if group is None else [group]
    serving = list(_serving(client))
    found: list[Link] = []
    known: list[str] = []
    for name in groups:
        for version in Versions(aws, name).all():
            served = tuple(one for one in serving if one.serves(version))
            known.append(f"{name}/{version.number}")
            if _fits(str(start), version, served):
                found.append(_link(client, name, version, served))
    if not found and (job := _job(client, str(start).rpartition("/")[2])):
        name = job["TrainingJobName"]
        doubt = f"no version names this job, which is {job['TrainingJobStatus']}"
        found.append(Link("", None, name, _data_of(job), "", doubts=(doubt,)))
    if not found:
        endpoints = ", ".join(sorted({one.endpoint for one in serving})) or "none"
        raise LineageError(
            f"Nothing here comes from {start!r} or leads to it. There are the versions "
            f"{', '.join(known) or 'none'} and the endpoints {endpoints}; a digest "
            f"takes {SHORTEST_DIGEST} characters at least."
        )
    return found


def _fits(start: str, version: Version, served: tuple[Serving, ...]) -> bool:
    """Return whether a version is on the chain of what was asked for."""
    job = version.origin.get(JOB, "")
    if start in (str(version.number), version.arn, job, _name(job), version.base):
        return bool(start)
    if any(start == one.endpoint for one in served):
        return True
    if not START.fullmatch(start):
        return False
    texts = (
        version.data,
        version.archive,
        version.origin.get(ADAPTER, ""),
        version.base,
    )
    return any(text.startswith(start) for text in texts)


def _link(
    client: Any, group: str, version: Version, served: tuple[Serving, ...]
) -> Link:
    """Add to a version what its job says."""
    name, doubts = _name(version.origin.get(JOB, "")), []
    if name:
        job = _job(client, name)
        data = _data_of(job) if job else ""
        if not job:
            doubts.append(f"the job {name} is not there any more")
        elif data and data != version.data:
            doubts.append(
                f"the job read the data {data[:SHOWN]}, and the registry says "
                f"{version.data[:SHOWN]}"
            )
    doubts += [
        f"{one.endpoint} serves {one.address}, which is not the address that "
        f"version {version.number} was registered with"
        for one in served
        if one.address and one.address != version.address
    ]
    adapter = version.origin.get(ADAPTER, "")
    return Link(group, version, name, version.data, adapter, served, tuple(doubts))


def _rows(link: Link) -> Iterator[dict[str, Any]]:
    """Yield a row for each place where a version serves; one if there is none."""
    version = link.version
    for one in link.served or (None,):
        yield {
            "data": link.data[:SHOWN],
            "job": link.job,
            "adapter": link.adapter[:SHOWN],
            "archive": version.archive[:SHOWN] if version else "",
            "version": f"{link.group}/{version.number}" if version else "",
            "status": version.status if version else "",
            "endpoint": one.endpoint if one else "",
            "variant": one.variant if one else "",
            "doubts": "; ".join(link.doubts),
        }


# --- asking AWS -----------------------------------------------------------------------


def _groups(client: Any) -> list[str]:
    pages = client.get_paginator("list_model_package_groups").paginate()
    return sorted(
        one["ModelPackageGroupName"]
        for page in pages
        for one in page["ModelPackageGroupSummaryList"]
    )


def _serving(client: Any) -> Iterator[Serving]:
    """Yield each variant of each endpoint with what it serves."""
    pages = client.get_paginator("list_endpoints").paginate()
    for name in [one["EndpointName"] for page in pages for one in page["Endpoints"]]:
        endpoint = client.describe_endpoint(EndpointName=name)
        config = _there(
            client.describe_endpoint_config,
            EndpointConfigName=endpoint["EndpointConfigName"],
        )
        for variant in config.get("ProductionVariants", []):
            model = _there(client.describe_model, ModelName=variant["ModelName"])
            containers = [model.get("PrimaryContainer"), *model.get("Containers", [])]
            for container in filter(None, containers):
                yield Serving(
                    name,
                    variant["VariantName"],
                    container.get("ModelPackageName", ""),
                    _address(container),
                )


def _address(container: Mapping[str, Any]) -> str:
    """Return where a container's archive lies; the SDK may name it either way."""
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return container.get("ModelDataUrl") or source.get("S3Uri", "")


def _job(client: Any, name: str) -> dict[str, Any]:
    """Return a training job; nothing if there is none of that name."""
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name):  # botocore's model
        return {}
    return _there(client.describe_training_job, TrainingJobName=name)


def _data_of(job: Mapping[str, Any]) -> str:
    """Return the digest that stands in the address of a job's data."""
    for channel in job.get("InputDataConfig", []):
        source = channel["DataSource"].get("S3DataSource", {})
        if channel["ChannelName"] == TRAIN and (
            found := DIGEST.search(source.get("S3Uri", ""))
        ):
            return found[0]
    return ""


def _there(describe: Any, **named: str) -> dict[str, Any]:
    """Describe something that may have been deleted; nothing if it was."""
    from botocore.exceptions import ClientError

    try:
        return describe(**named)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code.startswith(("Validation", "ResourceNotFound")):
            return {}
        raise


def _name(arn: str) -> str:
    return arn.partition(JOB_ARN)[2] or arn
