"""What a run of the course has left in the account, found by its name.

Most of it costs little or nothing by the hour, and none of it goes by itself: models,
configurations and groups of the model registry, objects with all their versions,
uploads that broke off, logs, alarms, tables, and what scales an endpoint.
"""

from __future__ import annotations

from utils.deployment import tables
from utils.deployment.asking import PREFIX, TAG, UNKNOWN, Asker, Found
from utils.deployment.aws import LOG_GROUPS, Aws
from utils.deployment.prices import STORAGE, PriceList
from utils.deployment.stacks import FUNCTION_LOGS
from utils.deployment.written import LOGS_OF


class LeftBehind(Asker):
    """What has a name of the course and does not bill by the hour."""

    def __init__(self, aws: Aws, prices: PriceList):
        super().__init__(aws, prices)
        self.questions = {
            "endpoint configurations": lambda: self._free(
                "endpoint configuration", "EndpointConfig", "endpoint-config"
            ),
            "models": lambda: self._free("model", "Model", "model"),
            "ended training jobs": lambda: self._ended(
                "training job", "TrainingJob", "training-job"
            ),
            "ended tuning jobs": lambda: self._ended(
                "tuning job", "HyperParameterTuningJob", "hyper-parameter-tuning-job"
            ),
            "ended processing jobs": lambda: self._ended(
                "processing job", "ProcessingJob", "processing-job"
            ),
            "pipelines": self._pipelines,
            "stacks": self._stacks,
            "model package groups": self._package_groups,
            "scaling targets": self._targets,
            "alarms": self._alarms,
            "schedules": self._schedules,
            "log groups": self._log_groups,
            "logs of jobs": self._job_logs,
            "tables": self._tables,
            f"objects in s3://{aws.bucket}": self._objects,
            f"incomplete uploads to s3://{aws.bucket}": self._uploads,
        }

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

    def _ended(self, kind: str, word: str, command: str) -> list[Found]:
        """List jobs that have ended; their records cost nothing, by name."""
        found = []
        method = f"list_{command.replace('-', '_')}s"
        key = f"{word}Summaries"
        for item in self._list("sagemaker", method, key, NameContains=PREFIX):
            name, status = item[f"{word}Name"], item[f"{word}Status"]
            if name.startswith(PREFIX) and status not in ("InProgress", "Stopping"):
                flags = {f"{command}-name": name}
                end = self._command("sagemaker", f"delete-{command}", flags)
                run = self._run(item[f"{word}Arn"])
                found.append(Found(kind, name, status, "nothing", False, end, run))
        return found

    def _pipelines(self) -> list[Found]:
        """List the course's pipelines, which cost nothing unless they run."""
        found = []
        for item in self._list(
            "sagemaker",
            "list_pipelines",
            "PipelineSummaries",
            PipelineNamePrefix=PREFIX.rstrip("-"),  # its pattern lets no dash be last
        ):
            name = item["PipelineName"]
            if name.startswith(PREFIX):
                flags = {"pipeline-name": name}
                end = self._command("sagemaker", "delete-pipeline", flags)
                run = self._run(item["PipelineArn"])
                found.append(Found("pipeline", name, "", "nothing", False, end, run))
        return found

    def _job_logs(self) -> list[Found]:
        """List the log streams of the course's jobs, in groups that are all jobs'."""
        from botocore.exceptions import ClientError

        found = []
        for group in LOGS_OF.values():
            try:
                streams = list(
                    self._list(
                        "logs",
                        "describe_log_streams",
                        "logStreams",
                        logGroupName=group,
                        logStreamNamePrefix=PREFIX,
                    )
                )
            except ClientError as error:
                if error.response["Error"]["Code"] != "ResourceNotFoundException":
                    raise
                continue  # no job of that kind has ever written
            for stream in streams:
                name = stream["logStreamName"]
                flags = {"log-group-name": group, "log-stream-name": name}
                end = self._command("logs", "delete-log-stream", flags)
                whole = f"{group}/{name}"
                costs = "by the amount"
                found.append(Found("log stream", whole, "", costs, False, end))
        return found

    def _stacks(self) -> list[Found]:
        """List the course's stacks; `delete-stack` alone fails at a bucket's files."""
        found = []
        for item in self._list("cloudformation", "describe_stacks", "Stacks"):
            name, status = item["StackName"], item["StackStatus"]
            if name.startswith(PREFIX):
                end = f"COURSE_AWS=real python -m utils.deployment remove {name}"
                tags = {tag["Key"]: tag["Value"] for tag in item.get("Tags", [])}
                costs = "by the request, and for its alarms"
                run = tags.get(TAG)
                found.append(Found("stack", name, status, costs, False, end, run))
        return found

    def _package_groups(self) -> list[Found]:
        """List groups of the model registry; AWS deletes one once it is empty."""
        found = []
        for item in self._list(
            "sagemaker",
            "list_model_package_groups",
            "ModelPackageGroupSummaryList",
            NameContains=PREFIX,
        ):
            name = item["ModelPackageGroupName"]
            if name.startswith(PREFIX):
                flags = {"model-package-group-name": name}
                end = self._command("sagemaker", "delete-model-package-group", flags)
                run = self._run(item["ModelPackageGroupArn"])
                kind = "model package group"
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

    def _schedules(self) -> list[Found]:
        """List what is to stop the course's endpoints; see `idle_stop`."""
        found = []
        for item in self._list(
            "scheduler", "list_schedules", "Schedules", NamePrefix=PREFIX
        ):
            name, flags = item["Name"], {"name": item["Name"]}
            if (group := item.get("GroupName", "default")) != "default":
                flags["group-name"] = group
            end = self._command("scheduler", "delete-schedule", flags)
            state = item.get("State", "")
            found.append(Found("schedule", name, state, "nothing", False, end))
        return found

    def _log_groups(self) -> list[Found]:
        found = []
        for prefix in (LOG_GROUPS + PREFIX, FUNCTION_LOGS + PREFIX):
            for item in self._list(
                "logs", "describe_log_groups", "logGroups", logGroupNamePrefix=prefix
            ):
                name = item["logGroupName"]
                flags = {"log-group-name": name}
                end = self._command("logs", "delete-log-group", flags)
                found.append(Found("log group", name, "", "by the amount", False, end))
        return found

    def _tables(self) -> list[Found]:
        """List the tables of apps; ListTables filters by no name."""
        found = []
        for name in self._list("dynamodb", "list_tables", "TableNames"):
            if name.startswith(PREFIX):
                end = self._command("dynamodb", "delete-table", {"table-name": name})
                found.append(Found("table", name, "", tables.COSTS, False, end))
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
