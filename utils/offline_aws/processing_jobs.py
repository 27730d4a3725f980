"""Processing jobs of the offline AWS: a command with folders that come from S3 and go.

A job has a thread: it fetches the inputs, runs the command under the supervisor of
training jobs, and stores the outputs. moto keeps the record, which calls a job
Completed before anything has run; the thread writes into it what is true.

A script that names /opt/ml finds its folders here as it does on AWS: the path is
written anew in the command, in the variables, and in the scripts of each input whose
folder the command names. It is not written anew in an archive that the command unpacks.

The contract: "How to Build Your Own Processing Container" and "Save and Access Metadata
Information About Your Processing Job" in the developer guide.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import time
from pathlib import Path
from typing import Any

from utils.offline_aws.errors import AwsFault, invalid, not_played
from utils.offline_aws.images import ECR_ADDRESS, not_of_ecr
from utils.offline_aws.job_thread import (
    COMPLETED,
    DEFAULT_RUNTIME,
    POLL,
    STOPPED,
    JobThread,
    end_all,
    pull,
)
from utils.offline_aws.references import check_role, split_address
from utils.offline_aws.training_contract import (
    environment_of,
    install_stand_ins,
    words_of,
)
from utils.offline_aws.training_data import copy_objects, objects
from utils.offline_aws.training_errors import JobFailure, download_failed
from utils.offline_aws.training_files import Root, rewrite_folder
from utils.offline_aws.training_process import JobProcess
from utils.offline_aws.training_results import store_files, together
from utils.offline_aws.training_supervisor import PREFIX
from utils.offline_aws.wrapping import wrap
from utils.temporary import temporary_folder

LOG_GROUP = "/aws/sagemaker/ProcessingJobs"  # of all processing jobs
IN_PROGRESS, STOPPING = "InProgress", "Stopping"
LONGEST_MESSAGE = 1024  # bytes of ExitMessage
OPT_ML = "/opt/ml/"

# The jobs of this process by their names; see ENDPOINTS.
PROCESSING_JOBS: dict[str, ProcessingJob] = {}
# Of the jobs and of moto's records of them: a job is there with its record or not at
# all, and nobody sees a status without what belongs to it.
_CHANGING = threading.RLock()


def patch_processing_jobs() -> None:
    """Give moto processing jobs that run."""
    from moto.sagemaker.models import SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    wrap(SageMakerResponse, "create_processing_job", _with_process)
    wrap(SageMakerModelBackend, "stop_processing_job", _with_true_stop)
    for name in ("describe_processing_job", "list_processing_jobs"):
        wrap(SageMakerResponse, name, _at_rest)
    SageMakerResponse.delete_processing_job = _delete


def stop_all() -> None:
    """End all jobs at once, and forget them: the offline AWS ends, or starts anew."""
    end_all(PROCESSING_JOBS)
    PROCESSING_JOBS.clear()


def check_processing_job(parameters: dict[str, Any]) -> None:
    """Refuse a job that AWS refuses, and one that is not played.

    Texts are ours, but for the one on images.

    Args:
        parameters: of CreateProcessingJob, held to its model already.

    Raises:
        AwsFault: ValidationException, ResourceInUse or NotImplemented.
    """
    _require_free_name(parameters["ProcessingJobName"])
    check_role(parameters["RoleArn"])
    specification = parameters["AppSpecification"]
    if not ECR_ADDRESS.fullmatch(specification["ImageUri"]):
        raise not_of_ecr(specification["ImageUri"])
    if not specification.get("ContainerEntrypoint"):
        raise not_played("processing jobs that run their image's own command")
    cluster = parameters["ProcessingResources"].get("ClusterConfig") or {}
    if cluster.get("InstanceCount", 1) != 1:
        raise not_played("processing jobs on several instances")
    for one in _inputs(parameters):
        given = one.get("S3Input")
        if not given:
            raise not_played("inputs of processing jobs that do not come from S3")
        _check_folder(one["InputName"], given)
        if given.get("S3DataType") != "S3Prefix" or given.get("S3InputMode") == "Pipe":
            raise not_played("inputs of processing jobs but files under a prefix")
        if given.get("S3CompressionType") == "Gzip":
            raise not_played("inputs of processing jobs that are unpacked")
    for one in _outputs(parameters):
        if not one.get("S3Output"):
            raise not_played("outputs of processing jobs that do not go to S3")
        _check_folder(one["OutputName"], one["S3Output"])
        if one["S3Output"]["S3UploadMode"] == "Continuous":
            raise not_played("outputs of processing jobs before they end")


def _require_free_name(name: str) -> None:
    if name in PROCESSING_JOBS:
        raise AwsFault(
            400,
            "ResourceInUse",
            f"There is a processing job {name} already. Take another name.",
        )


def _check_folder(name: str, given: dict[str, Any]) -> None:
    path = given.get("LocalPath") or ""
    if not path.startswith(OPT_ML) or ".." in path.split("/"):
        raise invalid(f"{name}: LocalPath is {path!r}: name a folder below {OPT_ML}.")


def _inputs(request: dict[str, Any]) -> list[dict[str, Any]]:
    return request.get("ProcessingInputs") or []


def _outputs(request: dict[str, Any]) -> list[dict[str, Any]]:
    return (request.get("ProcessingOutputConfig") or {}).get("Outputs") or []


def _with_process(create: Any, response: Any) -> Any:
    """Create a job's record, and start the job."""
    request = json.loads(response.body)
    name = request["ProcessingJobName"]
    with _CHANGING:
        _require_free_name(name)
        answer = create(response)
        record = response.sagemaker_backend.processing_jobs[name]
        # moto forgets these.
        record.environment = request.get("Environment") or None
        record.processing_resources = request["ProcessingResources"]
        job = PROCESSING_JOBS[name] = ProcessingJob(request, record)
    job.start()
    return answer


def _at_rest(read: Any, response: Any) -> Any:
    """Answer while no job changes."""
    with _CHANGING:
        return read(response)


def _with_true_stop(stop: Any, backend: Any, processing_job_name: str) -> None:
    """Stop a job, which takes a while."""
    with _CHANGING:
        job = PROCESSING_JOBS.get(processing_job_name)
        if job is None:
            stop(backend, processing_job_name)  # moto says that there is none
        elif not job.stop():
            raise invalid(
                "The request was rejected because the processing job is in status "
                f"{job.record.processing_job_status}."
            )


def _delete(response: Any) -> Any:
    """Answer DeleteProcessingJob: only of a job that has ended; its name is free again.

    The rule: botocore's model of the operation. The texts are ours.
    """
    from moto.core.responses import EmptyResult

    name = response._get_param("ProcessingJobName")
    with _CHANGING:
        job = PROCESSING_JOBS.get(name)
        if job is None:
            raise AwsFault(
                400, "ResourceNotFound", f"Could not find the processing job {name}."
            )
        status = job.record.processing_job_status
        if status in (IN_PROGRESS, STOPPING):
            raise AwsFault(
                400,
                "ResourceInUse",
                f"The processing job {name} is in status {status}. Only a job that is "
                "Completed, Failed or Stopped can be deleted: stop it first.",
            )
        PROCESSING_JOBS.pop(name)
        response.sagemaker_backend.processing_jobs.pop(name, None)
    return EmptyResult()


def _now() -> datetime.datetime:
    """Return the moment as moto's records have it."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


class ProcessingJob(JobThread):
    """A processing job with its thread and its process.

    Attributes:
        request: of CreateProcessingJob.
        record: moto's, from which DescribeProcessingJob is answered.
    """

    def __init__(self, request: dict[str, Any], record: Any):
        super().__init__(LOG_GROUP)
        self.request, self.record = request, record
        record.processing_job_status = IN_PROGRESS
        record.processing_end_time = None

    def stop(self) -> bool:
        """Let it end, as StopProcessingJob does; say whether it was in progress."""
        if moved := self._move(STOPPING, only_from=IN_PROGRESS):
            self._to_stop.set()
        return moved

    def _move(self, status: str, only_from: str) -> bool:
        """Go into a status from another one; say whether it has gone there."""
        with _CHANGING:
            if self.record.processing_job_status != only_from:
                return False
            self.record.processing_job_status = status
            return True

    def _end(self, last: str, reason: str | None) -> None:
        record = self.record
        with _CHANGING:
            record.failure_reason = reason
            record.processing_end_time = record.last_modified_time = _now()
            record.processing_job_status = last

    def _work(self) -> str:
        with temporary_folder(prefix=PREFIX) as folder:
            return self._go_through(folder)

    def _go_through(self, folder: Path) -> str:
        """Do the job's work; return its last status."""
        root = Root(folder, "algo-1")
        for one in _inputs(self.request):
            self._check_closed()
            self._fetch(root, one)
        pull(self.request["AppSpecification"]["ImageUri"])
        for one in _outputs(self.request):
            place = root.place(one["S3Output"]["LocalPath"])
            place.mkdir(parents=True, exist_ok=True)
        self._write_configuration(root)
        install_stand_ins(root)
        if self._to_stop.is_set():
            return STOPPED
        self.record.processing_start_time = _now()
        code = self._process(folder, root)
        self.record.exit_message = _message(root)
        if code is None:
            return STOPPED
        if code:
            # Text: aws/sagemaker-python-sdk, issue 1378; the code is ours.
            raise JobFailure(
                f"AlgorithmError: See job logs for more information, exit code: {code}"
            )
        for one in _outputs(self.request):
            given = one["S3Output"]
            found = together([root.place(given["LocalPath"])])
            store_files(found, given["S3Uri"].rstrip("/"))
        return COMPLETED

    def _fetch(self, root: Root, given: dict[str, Any]) -> None:
        source = given["S3Input"]
        address = source["S3Uri"]
        found = objects(address)
        if not found:
            raise download_failed(
                f'No S3 objects found under S3 URL "{address}". It is the input '
                f"{given['InputName']}."
            )
        place = root.place(source["LocalPath"])
        copy_objects(found, split_address(address)[1], place)
        words = words_of(self.request["AppSpecification"])
        if any(source["LocalPath"].rstrip("/") in word for word in words):
            rewrite_folder(root, place)

    def _write_configuration(self, root: Root) -> None:
        config = root.ml / "config"
        config.mkdir(parents=True, exist_ok=True)
        given = {**self.request, "ProcessingJobArn": self.record.arn}
        hosts = {"current_host": "algo-1", "hosts": ["algo-1"]}
        for name, content in (("processingjob", given), ("resource", hosts)):
            text = root.mapped(json.dumps(content))
            (config / f"{name}config.json").write_text(text, encoding="utf-8")

    def _process(self, folder: Path, root: Root) -> int | None:
        """Run the command; return its code, or None if it was stopped."""
        words = words_of(self.request["AppSpecification"])
        process = JobProcess(lambda moment, text: None)
        self._logs.watch(self.request["ProcessingJobName"], process)
        limits = self.request.get("StoppingCondition") or {}
        ends = time.monotonic() + limits.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME)
        stopping = False
        try:
            process.start(
                [root.mapped(word) for word in words],
                environment_of(root, self.request.get("Environment") or {}),
                root.home,
                folder,
                f"algo-1-{int(time.time())}",
            )
            while (code := process.poll()) is None:
                self._check_closed()
                late = time.monotonic() > ends
                if not stopping and (late or self._to_stop.is_set()):
                    stopping = True
                    self._move(STOPPING, only_from=IN_PROGRESS)
                    process.stop()
                time.sleep(POLL)
            return None if stopping else code
        finally:
            if process.process is not None and process.poll() is None:
                process.kill()
            process.close()
            self._logs.leave(process)


def _message(root: Root) -> str | None:
    """Return what the job has left for ExitMessage."""
    with contextlib.suppress(OSError):
        found = (root.ml / "output" / "message").read_bytes()[:LONGEST_MESSAGE]
        return found.decode("utf-8", "replace") or None
    return None
