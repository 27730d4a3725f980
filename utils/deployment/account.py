"""What bills in the account, whoever created it, and what of the course is left there.

A ledger knows what its own session created. A client made before it, another kernel,
another notebook or a colleague create what it never sees, and that bills as well. So
the account itself is asked: `look` lists what runs by the hour in one region, and what
has a name of the course. It reads only. What could not be looked at is named.

First used in lesson 06, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.deployment import running
from utils.deployment.asking import NOT_PLAYED, UNKNOWN, Asker, Found
from utils.deployment.aws import BUCKET_VARIABLE, Aws
from utils.deployment.ledger import HOSTING, Machines, dollars
from utils.deployment.left_behind import LeftBehind
from utils.deployment.prices import PriceList

ENDED = {"Stopped", "Failed", "Deleting", "Deleted", "Completed"}
DENIED = {"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation"}
NEVER_LOOKED_AT = (
    "other regions; SageMaker's other kinds, such as HyperPod clusters; other services"
)


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

    prices = prices or PriceList(aws)
    questions = Running(aws, prices).questions | LeftBehind(aws, prices).questions
    found: list[Found] = []
    looked, unplayed = [], []
    unseen: dict[str, str] = {}
    for kind, ask in questions.items():
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


class Running(Asker):
    """What bills by the hour in the region, whoever created it."""

    def __init__(self, aws: Aws, prices: PriceList):
        super().__init__(aws, prices)
        self.questions = {
            "endpoints": self._endpoints,
            "inference components": self._components,
            "training jobs": lambda: self._jobs("training", "Training"),
            "tuning jobs": self._tunings,
            "pipeline executions": self._executions,
            "warm pools": self._warm_pools,
            "processing jobs": lambda: self._jobs("processing", "Processing"),
            "transform jobs": lambda: self._jobs("transform", "Transform"),
            "notebook instances": self._notebooks,
            "Studio apps": self._apps,
        }

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

    def _costs(self, machines: Machines | None, use: str = HOSTING) -> str:
        if machines is None:
            return UNKNOWN
        parts = []
        for instance_type, count in machines:
            price = self.prices.of(instance_type, use)
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
                    machines = self._optional(self._job, kind, word, name)
                    costs = self._costs(machines, kind)
                    run = self._run(item[f"{word}JobArn"])
                    job = f"{kind} job"
                    found.append(Found(job, name, status, costs, True, end, run))
        return found

    def _tunings(self) -> list[Found]:
        """List tuning jobs that run: each goes on starting training jobs."""
        found = []
        for status in ("InProgress", "Stopping"):
            for item in self._list(
                "sagemaker",
                "list_hyper_parameter_tuning_jobs",
                "HyperParameterTuningJobSummaries",
                StatusEquals=status,
            ):
                name = item["HyperParameterTuningJobName"]
                end = self._command(
                    "sagemaker",
                    "stop-hyper-parameter-tuning-job",
                    {"hyper-parameter-tuning-job-name": name},
                )
                run = self._run(item["HyperParameterTuningJobArn"])
                costs = "billed by its training jobs"
                found.append(Found("tuning job", name, status, costs, True, end, run))
        return found

    def _executions(self) -> list[Found]:
        """List executions of pipelines that run."""
        found = []
        for pipeline in self._list("sagemaker", "list_pipelines", "PipelineSummaries"):
            for item in self._list(
                "sagemaker",
                "list_pipeline_executions",
                "PipelineExecutionSummaries",
                PipelineName=pipeline["PipelineName"],
            ):
                status = item["PipelineExecutionStatus"]
                if status in ("Executing", "Stopping"):
                    arn = item["PipelineExecutionArn"]
                    end = self._command(
                        "sagemaker",
                        "stop-pipeline-execution",
                        {"pipeline-execution-arn": arn},
                    )
                    costs = "billed by what its steps run on"
                    kind = "pipeline execution"
                    run = self._run(pipeline["PipelineArn"])
                    found.append(Found(kind, arn, status, costs, True, end, run))
        return found

    def _job(self, kind: str, word: str, name: str) -> Machines | None:
        """Return the machines of a job."""
        describe = getattr(self._client("sagemaker"), f"describe_{kind}_job")
        return running.machines(f"{kind} job", describe(**{f"{word}JobName": name}))

    def _unpriced(self, machines: Machines | None) -> str:
        """Say what runs; for notebooks and apps the course knows no prices."""
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
                costs = self._costs(machines, "training")
                run = self._run(item["TrainingJobArn"])
                found.append(Found("warm pool", name, status, costs, True, end, run))
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
