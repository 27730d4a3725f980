"""What bills in the account, whoever created it, and what of the course is left there.

A ledger knows what its own session created. A client made before it, another kernel,
another notebook or a colleague create what it never sees, and that bills as well. So
the account itself is asked: `look` lists what runs by the hour in one region, and what
has a name of the course. It reads only. What could not be looked at is named.

First used in lesson 06, section 5.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from utils.deployment.aws import BUCKET_VARIABLE, LOG_GROUPS, Aws
from utils.deployment.ledger import Machines, dollars
from utils.deployment.prices import STORAGE, PriceList

TAG = "course-run"
PREFIX = "course-"  # of every name that the guard gives
UNKNOWN = "price not known here"
NOT_PLAYED = "NotImplemented"  # the offline AWS's code for a call that it lacks
ENDED = {"Stopped", "Failed", "Deleting", "Deleted", "Completed"}
DENIED = {"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation"}
NEVER_LOOKED_AT = (
    "other regions; SageMaker's other kinds, such as HyperPod clusters; other services"
)


@dataclass(frozen=True)
class Found:
    """Something that is in the account.

    Attributes:
        kind: such as "endpoint" or "log group".
        name: what AWS calls it.
        status: as AWS gives it; "" if it has none.
        costs: in words; "nothing" if it costs nothing by being there.
        hourly: it runs on machines that bill by the hour.
        run: the run whose tag it carries; None without a tag, or if it is not known.
        end: the command that stops or deletes it.
    """

    kind: str
    name: str
    status: str
    costs: str
    hourly: bool
    end: str
    run: str | None = None

    def __str__(self) -> str:
        """Return one line without the command."""
        status = f" ({self.status})" if self.status else ""
        run = f", {TAG} {self.run}" if self.run else ""
        return f"{self.kind} {self.name}{status}{run}: {self.costs}"


@dataclass(frozen=True)
class Account:
    """What was found in an account and region, and what could not be looked at.

    Attributes:
        region: the one that was looked at.
        found: what runs by the hour first, then what is left of the course.
        looked: the kinds that were looked at.
        unseen: the kinds that could not be looked at, and why.
        unplayed: the kinds that the offline AWS does not have, so that none can be.
    """

    region: str
    found: tuple[Found, ...]
    looked: tuple[str, ...]
    unseen: dict[str, str] = field(default_factory=dict)
    unplayed: tuple[str, ...] = ()

    @property
    def running(self) -> list[Found]:
        """What bills by the hour, whoever created it."""
        return [item for item in self.found if item.hourly]

    @property
    def left(self) -> list[Found]:
        """What has a name of the course and does not bill by the hour."""
        return [item for item in self.found if not item.hourly]

    @property
    def bills(self) -> bool:
        """Whether something that was found costs money by being there."""
        return any(item.costs != "nothing" for item in self.found)

    def lines(self) -> list[str]:
        """Say what was found, how to end it, and what was not looked at."""
        headings = (
            (f"In this account, in {self.region}, this bills by the hour.", True),
            ("This has a name of the course and is still there.", False),
        )
        lines = []
        for heading, hourly in headings:
            items = [item for item in self.found if item.hourly == hourly]
            if items:
                lines.append(f"{heading} No guard deletes it; you can:")
            for item in items:
                lines += [f"  {item}", f"    {item.end}"]
        kinds = ", ".join(self.looked) or "nothing"
        if not self.found:
            lines.append(
                f"In this account, in {self.region}, nothing bills by the hour and "
                f"nothing of the course is left, of what was looked at: {kinds}."
            )
        else:
            lines.append(f"Looked at: {kinds}.")
        lines += [
            f"Not looked at: {kind} ({why})." for kind, why in self.unseen.items()
        ]
        if self.unplayed:
            what = ", ".join(self.unplayed)
            lines.append(f"The offline AWS does not play, so it has none: {what}.")
        lines.append(f"Not looked at either: {NEVER_LOOKED_AT}.")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def look(aws: Aws, prices: PriceList | None = None) -> Account:
    """Ask the account what bills in the region, and what is left of the course.

    It never raises for what AWS refuses: that is named as not looked at.

    Args:
        aws: the account; its bucket is the only one that is looked through.
        prices: for endpoints' machines; the course's own by default.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    eye = _Eye(aws, prices or PriceList(aws))
    found: list[Found] = []
    looked, unplayed = [], []
    unseen: dict[str, str] = {}
    for kind, ask in eye.questions.items():
        try:
            found += ask()
        except ClientError as error:
            if error.response["Error"]["Code"] == NOT_PLAYED:
                unplayed.append(kind)
            else:
                unseen[kind] = _reason(error)
        except BotoCoreError as error:
            unseen[kind] = str(error)
        else:
            looked.append(kind)
    found.sort(key=lambda item: not item.hourly)
    return Account(aws.region, tuple(found), tuple(looked), unseen, tuple(unplayed))


def _reason(error: Any) -> str:
    if error.response["Error"]["Code"] in DENIED:
        return f"{error.operation_name} is not allowed to you"
    if error.response["Error"]["Code"] == "NoSuchBucket":
        return f"there is no such bucket; name yours in {BUCKET_VARIABLE}"
    return " ".join(str(error).split())


class _Eye:
    """The questions that an account is asked, by the plural of what they are for."""

    def __init__(self, aws: Aws, prices: PriceList):
        self.aws = aws
        self.prices = prices
        self._clients: dict[str, Any] = {}
        self.questions: dict[str, Callable[[], list[Found]]] = {
            "endpoints": self._endpoints,
            "inference components": self._components,
            "training jobs": lambda: self._jobs("training", "Training"),
            "warm pools": self._warm_pools,
            "processing jobs": lambda: self._jobs("processing", "Processing"),
            "transform jobs": lambda: self._jobs("transform", "Transform"),
            "notebook instances": self._notebooks,
            "Studio apps": self._apps,
            "endpoint configurations": lambda: self._free(
                "endpoint configuration", "EndpointConfig", "endpoint-config"
            ),
            "models": lambda: self._free("model", "Model", "model"),
            "scaling targets": self._targets,
            "alarms": self._alarms,
            "log groups": self._log_groups,
            f"objects in s3://{aws.bucket}": self._objects,
            f"incomplete uploads to s3://{aws.bucket}": self._uploads,
        }

    # --- by the hour ------------------------------------------------------------------

    def _endpoints(self) -> list[Found]:
        """List every endpoint, also a failed one: it is there until it is deleted."""
        found = []
        for item in self._list("sagemaker", "list_endpoints", "Endpoints"):
            name = item["EndpointName"]
            if item["EndpointStatus"] != "Deleting":
                costs = self._costs(self._optional(self._machines, name))
                end = self._command(
                    "sagemaker", "delete-endpoint", {"endpoint-name": name}
                )
                run = self._run(item["EndpointArn"])
                status = item["EndpointStatus"]
                found.append(Found("endpoint", name, status, costs, True, end, run))
        return found

    def _machines(self, endpoint: str) -> Machines | None:
        """Return the machines behind an endpoint, as many as there are now."""
        client = self._client("sagemaker")
        now = client.describe_endpoint(EndpointName=endpoint)
        config = client.describe_endpoint_config(
            EndpointConfigName=now["EndpointConfigName"]
        )
        counts = {}
        variants = []
        for key in ("ProductionVariants", "ShadowProductionVariants"):
            variants += config.get(key, [])
            for variant in now.get(key, []):
                counts[variant["VariantName"]] = variant.get("CurrentInstanceCount")
        machines = []
        for variant in variants:
            if "InstanceType" in variant:
                count = counts.get(variant["VariantName"])
                count = variant.get("InitialInstanceCount") if count is None else count
                machines.append((variant["InstanceType"], count or 1))
            elif "ServerlessConfig" not in variant:
                return None  # a pool of several types, or what AWS adds one day
        return tuple(machines)

    def _costs(self, machines: Machines | None) -> str:
        if machines is None:
            return UNKNOWN
        parts = []
        for instance_type, count in machines:
            price = self.prices.of(instance_type)
            rate = UNKNOWN if price is None else f"{dollars(count * price.usd)} an hour"
            parts.append(f"{count} × {instance_type}, {rate}")
        return " and ".join(parts) or "by the request, not by the hour"

    def _components(self) -> list[Found]:
        found = []
        key = "InferenceComponents"
        for item in self._list("sagemaker", "list_inference_components", key):
            name = item["InferenceComponentName"]
            end = self._command(
                "sagemaker",
                "delete-inference-component",
                {"inference-component-name": name},
            )
            status = item.get("InferenceComponentStatus", "")
            costs = f"billed with its endpoint {item['EndpointName']}"
            found.append(Found("inference component", name, status, costs, True, end))
        return found

    def _jobs(self, kind: str, word: str) -> list[Found]:
        """List the jobs of a kind that run or are being stopped."""
        found = []
        for status in ("InProgress", "Stopping"):
            for item in self._list(
                "sagemaker",
                f"list_{kind}_jobs",
                f"{word}JobSummaries",
                StatusEquals=status,
            ):
                if item[f"{word}JobStatus"] == status:
                    name = item[f"{word}JobName"]
                    flags = {f"{kind}-job-name": name}
                    end = self._command("sagemaker", f"stop-{kind}-job", flags)
                    costs = self._unpriced(self._optional(self._job, kind, word, name))
                    job = f"{kind} job"
                    found.append(Found(job, name, status, costs, True, end))
        return found

    def _job(self, kind: str, word: str, name: str) -> Machines | None:
        """Return the machines of a job."""
        describe = getattr(self._client("sagemaker"), f"describe_{kind}_job")
        job = describe(**{f"{word}JobName": name})
        where = {
            "training": job.get("ResourceConfig", {}),
            "processing": job.get("ProcessingResources", {}).get("ClusterConfig", {}),
            "transform": job.get("TransformResources", {}),
        }[kind]
        if "InstanceType" not in where:
            return None
        return ((where["InstanceType"], where.get("InstanceCount", 1)),)

    def _unpriced(self, machines: Machines | None) -> str:
        """Say what runs; the prices that the course knows are those of endpoints."""
        shown = [
            f"{count} × {instance_type}" for instance_type, count in machines or ()
        ]
        return ", ".join([*shown, UNKNOWN])

    def _warm_pools(self) -> list[Found]:
        """List the machines that training jobs keep after their end."""
        found = []
        for item in self._list(
            "sagemaker",
            "list_training_jobs",
            "TrainingJobSummaries",
            WarmPoolStatusEquals="Available",
        ):
            status = item.get("WarmPoolStatus", {}).get("Status")
            if status == "Available":
                name = item["TrainingJobName"]
                end = self._command(
                    "sagemaker",
                    "update-training-job",
                    {
                        "training-job-name": name,
                        "resource-config": "KeepAlivePeriodInSeconds=0",
                    },
                )
                machines = self._optional(self._job, "training", "Training", name)
                costs = self._unpriced(machines)
                found.append(Found("warm pool", name, status, costs, True, end))
        return found

    def _notebooks(self) -> list[Found]:
        found = []
        key = "NotebookInstances"
        for item in self._list("sagemaker", "list_notebook_instances", key):
            status = item["NotebookInstanceStatus"]
            if status not in ENDED:
                name = item["NotebookInstanceName"]
                end = self._command(
                    "sagemaker",
                    "stop-notebook-instance",
                    {"notebook-instance-name": name},
                )
                kind = item.get("InstanceType")
                costs = self._unpriced(((kind, 1),) if kind else None)
                found.append(Found("notebook instance", name, status, costs, True, end))
        return found

    def _apps(self) -> list[Found]:
        found = []
        for item in self._list("sagemaker", "list_apps", "Apps"):
            if item["Status"] in ENDED:
                continue
            owner = {
                flag: item[key]
                for flag, key in (
                    ("user-profile-name", "UserProfileName"),
                    ("space-name", "SpaceName"),
                )
                if item.get(key)
            }
            end = self._command(
                "sagemaker",
                "delete-app",
                {
                    "domain-id": item["DomainId"],
                    **owner,
                    "app-type": item["AppType"],
                    "app-name": item["AppName"],
                },
            )
            parts = (item["DomainId"], *owner.values(), item["AppType"])
            name = "/".join((*parts, item["AppName"]))
            machine = item.get("ResourceSpec", {}).get("InstanceType")
            costs = self._unpriced(((machine, 1),) if machine else None)
            found.append(Found("Studio app", name, item["Status"], costs, True, end))
        return found

    # --- of the course ----------------------------------------------------------------

    def _free(self, kind: str, word: str, command: str) -> list[Found]:
        """List models or endpoint configurations, which cost nothing, by name."""
        found = []
        listed = f"list_{command.replace('-', '_')}s"
        for item in self._list("sagemaker", listed, f"{word}s", NameContains=PREFIX):
            name = item[f"{word}Name"]
            if name.startswith(PREFIX):
                flags = {f"{command}-name": name}
                end = self._command("sagemaker", f"delete-{command}", flags)
                run = self._run(item[f"{word}Arn"])
                found.append(Found(kind, name, "", "nothing", False, end, run))
        return found

    def _targets(self) -> list[Found]:
        """List what scales the course's endpoints."""
        found = []
        service = "application-autoscaling"
        for item in self._list(
            service,
            "describe_scalable_targets",
            "ScalableTargets",
            ServiceNamespace="sagemaker",
        ):
            name = item["ResourceId"]
            if name.startswith((f"endpoint/{PREFIX}", f"inference-component/{PREFIX}")):
                flags = {
                    "service-namespace": "sagemaker",
                    "resource-id": name,
                    "scalable-dimension": item["ScalableDimension"],
                }
                end = self._command(service, "deregister-scalable-target", flags)
                found.append(Found("scaling target", name, "", "nothing", False, end))
        return found

    def _alarms(self) -> list[Found]:
        """List alarms by name, those too that target tracking makes for an endpoint."""
        found = []
        for prefix in (PREFIX, f"TargetTracking-endpoint/{PREFIX}"):
            for page in self._pages(
                "cloudwatch", "describe_alarms", AlarmNamePrefix=prefix
            ):
                for key in ("MetricAlarms", "CompositeAlarms"):
                    for item in page.get(key, []):
                        name = item["AlarmName"]
                        flags = {"alarm-names": name}
                        end = self._command("cloudwatch", "delete-alarms", flags)
                        found.append(Found("alarm", name, "", UNKNOWN, False, end))
        return found

    def _log_groups(self) -> list[Found]:
        found = []
        prefix = LOG_GROUPS + PREFIX
        for item in self._list(
            "logs", "describe_log_groups", "logGroups", logGroupNamePrefix=prefix
        ):
            name = item["logGroupName"]
            flags = {"log-group-name": name}
            end = self._command("logs", "delete-log-group", flags)
            found.append(Found("log group", name, "", "by the amount", False, end))
        return found

    def _objects(self) -> list[Found]:
        """List the course's folders in the bucket, with all versions of their objects.

        Where a bucket keeps versions, deleting an object puts a marker before it and
        leaves, and bills, every byte.
        """
        bucket = self.aws.bucket
        folders: dict[str, list[tuple[int, bool]]] = {}
        for page in self._pages(
            "s3", "list_object_versions", Bucket=bucket, Prefix=PREFIX
        ):
            for item in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
                top, slash, _ = item["Key"].partition("/")
                size = item.get("Size")  # a delete marker has none
                latest = size is not None and item["IsLatest"]
                folders.setdefault(top + slash, []).append((size or 0, latest))
        price = self.prices.of(STORAGE)
        rate = UNKNOWN if price is None else f"${price.usd:g} per {price.per}"
        found = []
        for folder, items in folders.items():
            size = sum(size for size, _ in items) / 1e9
            objects = sum(latest for _, latest in items)
            others = len(items) - objects  # older versions and delete markers
            costs = f"{objects} objects, {others} older versions or markers, "
            costs += f"{size:.3f} GB, {rate}"
            name = f"s3://{bucket}/{folder}"
            end = self._delete_versions(folder)
            found.append(Found("S3 objects", name, "", costs, False, end))
        return found

    def _delete_versions(self, prefix: str) -> str:
        """Return the command that deletes versions and markers, 1,000 at a time."""
        # One object's name may begin as another's does; a folder's ends with "/".
        only = "" if prefix.endswith("/") else f" | [?Key=='{prefix}']"
        query = f"{{Objects: [Versions,DeleteMarkers][]{only}"
        query += ".{Key: Key, VersionId: VersionId}}"
        where = {"bucket": self.aws.bucket, "prefix": prefix, "max-items": "1000"}
        where |= {"query": query, "output": "json"}
        inner = self._command("s3api", "list-object-versions", where)
        outer = self._command("s3api", "delete-objects", {"bucket": self.aws.bucket})
        return f'{outer} --delete "$({inner})"'

    def _uploads(self) -> list[Found]:
        """List uploads that broke off: their parts bill and no listing shows them."""
        bucket = self.aws.bucket
        found = []
        for item in self._list(
            "s3", "list_multipart_uploads", "Uploads", Bucket=bucket, Prefix=PREFIX
        ):
            flags = {
                "bucket": bucket,
                "key": item["Key"],
                "upload-id": item["UploadId"],
            }
            if item["Key"].startswith(PREFIX):
                end = self._command("s3api", "abort-multipart-upload", flags)
                name = f"s3://{bucket}/{item['Key']}"
                costs = "its parts by the amount"
                found.append(Found("incomplete upload", name, "", costs, False, end))
        return found

    # --- asking -----------------------------------------------------------------------

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self.aws.session.client(service)
        return self._clients[service]

    def _pages(self, service: str, method: str, **given: Any) -> Iterator[dict]:
        return iter(self._client(service).get_paginator(method).paginate(**given))

    def _list(
        self, service: str, method: str, key: str, **given: Any
    ) -> Iterator[dict]:
        """Yield what all pages of a listing hold under a key."""
        for page in self._pages(service, method, **given):
            yield from page.get(key) or []

    def _optional(self, ask: Callable[..., Machines | None], *given: str) -> Any:
        """Return an answer, or None where it is refused: the listing is not lost."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return ask(*given)
        except (BotoCoreError, ClientError):
            return None

    def _run(self, arn: str) -> str | None:
        """Return the run whose tag something carries."""
        tags = self._optional(
            lambda: self._client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
        )
        runs = [tag["Value"] for tag in tags or [] if tag["Key"] == TAG]
        return runs[0] if runs else None

    def _command(self, service: str, verb: str, flags: dict[str, str]) -> str:
        """Return a command of the AWS CLI, quoted for a shell."""
        parts = [f"aws {service} {verb}"]
        parts += [f"--{flag} {shlex.quote(value)}" for flag, value in flags.items()]
        return " ".join([*parts, f"--region {self.aws.region}"])
