"""Training jobs of the offline AWS: from InProgress to Completed, Failed or Stopped.

A job has a thread, which goes through what SageMaker goes through: it fetches the
channels, runs the script, stores the results. Of several instances each is a process
with a disk of its own. They meet at 127.0.0.1, since the names algo-1, algo-2, … mean
nothing to this machine's resolver: the SDK's drivers get that address written in.

`start_training_job` starts one from a request. Tuning jobs start theirs by it as well,
and look at them in TRAINING_JOBS.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.offline_aws import training_spot
from utils.offline_aws.errors import AwsFault
from utils.offline_aws.job_thread import (
    COMPLETED,
    DEFAULT_RUNTIME,
    FAILED,
    POLL,
    STOPPED,
    JobThread,
    end_all,
    pull,
)
from utils.offline_aws.names import TRAINING_LOG_GROUP
from utils.offline_aws.training_checkpoints import Checkpoints
from utils.offline_aws.training_contract import (
    command_of,
    environment_of,
    has_program,
    install_stand_ins,
    source_address,
    working_folder,
)
from utils.offline_aws.training_data import fetch_channel, unpack_source
from utils.offline_aws.training_errors import (
    JobFailure,
    algorithm_failed,
    download_failed,
)
from utils.offline_aws.training_files import (
    Root,
    check_volume,
    rewrite_scripts,
    write_configuration,
)
from utils.offline_aws.training_metrics import TRAINING_METRICS, Definitions
from utils.offline_aws.training_process import JobProcess
from utils.offline_aws.training_records import forget, register
from utils.offline_aws.training_results import read_failure, store_results
from utils.offline_aws.training_states import (
    IN_PROGRESS,
    STOPPING,
    JobStates,
    arn_of,
    now,
)
from utils.offline_aws.training_supervisor import PREFIX
from utils.temporary import temporary_folder

SYNC_INTERVAL = 1.0  # seconds between looks at a job's checkpoints

# The jobs of this process by their names, which is emptied by the offline AWS when it
# starts: see ENDPOINTS.
TRAINING_JOBS: dict[str, TrainingJob] = {}
_CHANGING = threading.Lock()


def start_training_job(request: dict[str, Any], **more: Any) -> TrainingJob:
    """Start a job, in a thread.

    Args:
        request: of CreateTrainingJob, which `training_checks.check_training_job` has
            let through.
        more: what DescribeTrainingJob says besides, such as TuningJobArn.

    Returns:
        the job; it also stands in TRAINING_JOBS.

    Raises:
        AwsFault: ResourceInUse, if the name is taken.
    """
    name = request["TrainingJobName"]
    with _CHANGING:
        require_free_name(name)
        job = TRAINING_JOBS[name] = TrainingJob(request, more)
        register(job)
    job.start()
    return job


def delete_training_job(job: TrainingJob) -> None:
    """Forget a job; its name is free again.

    Raises:
        AwsFault: ResourceInUse, if it has not ended.
    """
    if not job.ended:
        raise AwsFault(
            400,
            "ResourceInUse",
            f"The training job {job.arn} is in status {job.status}. Only a job that "
            "is Completed, Failed or Stopped can be deleted: stop it first.",
        )
    with _CHANGING:
        TRAINING_JOBS.pop(job.name, None)
        TRAINING_METRICS.forget(job.name)
        forget(job)


def require_free_name(name: str) -> None:
    """Refuse a name that a job has.

    Text: SuperCowPowers/workbench, issue 384.

    Raises:
        AwsFault: ResourceInUse.
    """
    if name in TRAINING_JOBS:
        raise AwsFault(
            400,
            "ResourceInUse",
            "Training job names must be unique within an AWS account and region, and "
            f"a training job with this name already exists ({arn_of(name)})",
        )


def stop_all() -> None:
    """End all jobs at once, and forget them: the offline AWS ends, or starts anew."""
    end_all(TRAINING_JOBS)
    TRAINING_JOBS.clear()
    TRAINING_METRICS.clear()


class TrainingJob(JobStates, JobThread):
    """A training job with its thread and its processes."""

    def __init__(self, request: dict[str, Any], more: dict[str, Any]):
        JobStates.__init__(self, request, more)
        JobThread.__init__(self, TRAINING_LOG_GROUP)
        self._processes: list[JobProcess] = []
        self._ran = 0.0  # seconds that earlier attempts have trained
        self._interruptions = training_spot.read_interruptions() if self.spot else []
        specification = request["AlgorithmSpecification"]
        self._definitions = Definitions(specification.get("MetricDefinitions") or [])

    def stop(self) -> None:
        """Let it end, its results stored, as StopTrainingJob does."""
        if self.move("Stopping", STOPPING, only_from=IN_PROGRESS):
            self._to_stop.set()

    # --- the thread ---

    def _end(self, last: str, reason: str | None) -> None:
        self.move(last, last if last in (COMPLETED, FAILED) else STOPPED, reason)

    def _work(self) -> str:
        """Train until the job is not interrupted any more; return its last state."""
        while True:
            with temporary_folder(prefix=PREFIX) as folder:
                secondary = self._attempt(folder)
            if secondary != "Interrupted":
                return secondary
            self.move("Interrupted")
            if self._to_stop.wait(training_spot.CAPACITY_WAIT):
                self._check_closed()
                return "Stopped"
            if self._waited_too_long():
                return "MaxWaitTimeExceeded"
            self.move("Starting")

    def _attempt(self, folder: Path) -> str:
        """Train once, on fresh machines; return the state in which that has ended."""
        count = self.instances
        hosts = [f"algo-{number + 1}" for number in range(count)]
        if self._to_stop.is_set():
            self._check_closed()
            return "Stopped"
        self.move("Downloading", only_from=IN_PROGRESS)
        port = free_port()
        roots, checkpoints = [], []
        for number, host in enumerate(hosts):
            root = Root(folder, host)
            roots.append(root)
            checkpoints.append(Checkpoints(root, self.request.get("CheckpointConfig")))
            self._download(root, number, port, hosts)
            checkpoints[-1].fetch()
        if self._to_stop.is_set():
            self._check_closed()
            return "Stopped"
        pull(self.request["AlgorithmSpecification"]["TrainingImage"])
        self.move("Training", only_from=IN_PROGRESS)
        secondary, failure = self._train(folder, roots, checkpoints)
        if secondary == "Interrupted":
            return secondary
        self._check_closed()
        self.move("Uploading")
        self.has_results = True
        # All is stored that can be, and the first reason is told.
        reasons = [failure, *(_failure_of(one.store) for one in checkpoints)]
        reasons.append(_failure_of(store_results, roots, self.request))
        for reason in reasons:
            if reason is not None:
                raise reason
        return secondary

    def _download(self, root: Root, number: int, port: int, hosts: list[str]) -> None:
        """Lay out the disk of one instance."""
        for channel in self.request.get("InputDataConfig") or []:
            self._check_closed()
            fetch_channel(root, channel, number, len(hosts))
        volume = self.request["ResourceConfig"].get("VolumeSizeInGB")
        check_volume(root, volume, download_failed)
        if has_program(self.request):
            unpack_source(root, source_address(self.request))
        rewrite_scripts(root, port)
        write_configuration(root, self.request, hosts)
        install_stand_ins(root)

    # --- training ---

    def _train(
        self, folder: Path, roots: list[Root], checkpoints: list[Checkpoints]
    ) -> tuple[str, JobFailure | None]:
        """Run the processes to their end; return the state, and why they failed."""
        epoch = int(time.time())
        self._processes = []
        threads = self._threads()
        try:
            for root in roots:
                process = JobProcess(self._hear)
                self._logs.watch(self.name, process)
                self._processes.append(process)
                process.start(
                    command_of(self.request, root),
                    environment_of(root, self._variables(), threads),
                    working_folder(self.request, root),
                    folder,
                    f"{root.host}-{epoch}",
                )
            return self._watch(roots, checkpoints)
        finally:
            for process in self._processes:
                if process.process is not None and process.poll() is None:
                    process.kill()
            for process in self._processes:
                process.close()
                self._logs.leave(process)

    def _variables(self) -> dict[str, str]:
        """Return the variables that the job has besides those of every job."""
        own = {"TRAINING_JOB_NAME": self.name, "TRAINING_JOB_ARN": self.arn}
        return own | (self.request.get("Environment") or {})

    def _watch(
        self, roots: list[Root], checkpoints: list[Checkpoints]
    ) -> tuple[str, JobFailure | None]:
        """Wait for the end of the processes, and bring it about where it is due."""
        started = last_look = time.monotonic()
        wanted: str | None = None  # the state in which the job is to end
        stored = 0
        while True:
            codes = [process.poll() for process in self._processes]
            # One instance that fails ends them all; who is asked to stop may take long.
            if None not in codes or (wanted is None and any(codes)):
                break
            moment = time.monotonic()
            self._check_closed()
            if wanted is None:
                wanted = self._due(moment - started)
                if wanted is not None:
                    self.move("Stopping", only_from=IN_PROGRESS)
                    for process in self._processes:
                        process.stop()
            if moment - last_look > SYNC_INTERVAL:
                stored += sum(one.store() for one in checkpoints)
                last_look = time.monotonic()
            if wanted is None and self._is_interrupted(moment - started, stored):
                self._ran += moment - started
                for process in self._processes:
                    process.kill()
                return "Interrupted", None
            time.sleep(POLL)
        if wanted is not None:
            return wanted, None
        self._check_closed()
        for process, root, code in zip(self._processes, roots, codes, strict=True):
            if code:
                process.wait_for_end_of_log()
                return "Failed", algorithm_failed(read_failure(root), code)
        return "Completed", None

    def _due(self, running: float) -> str | None:
        """Return the state in which the job is to end now; None if it may go on."""
        if self._to_stop.is_set():
            return "Stopped"
        limits = self.request.get("StoppingCondition") or {}
        if self._ran + running > limits.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME):
            return "MaxRuntimeExceeded"
        return "MaxWaitTimeExceeded" if self._waited_too_long() else None

    def _waited_too_long(self) -> bool:
        limits = self.request.get("StoppingCondition") or {}
        limit = limits.get("MaxWaitTimeInSeconds")
        waited = (now() - self.created).total_seconds()
        return self.spot and limit is not None and waited > limit

    def _is_interrupted(self, running: float, stored: int) -> bool:
        """Say whether the machines are taken away now."""
        if not self._interruptions:
            return False
        when = self._interruptions[0]
        due = stored > 0 if when == training_spot.CHECKPOINT else running >= when
        if due:
            self._interruptions.pop(0)
        return due

    def _hear(self, moment: int, line: str) -> None:
        """Look for metrics in a line of the log."""
        values = self._definitions.values(moment / 1000, line)
        if values:
            TRAINING_METRICS.add(self.name, values)

    def _threads(self) -> int | None:
        """Return how many threads each process may use, where several share cores."""
        running = sum(
            one.instances
            for one in list(TRAINING_JOBS.values())
            if one.status == IN_PROGRESS
        )
        cores = os.cpu_count() or 1
        return max(1, cores // running) if running > 1 else None


def _failure_of(store: Callable[..., Any], *given: Any) -> JobFailure | None:
    """Store something; return why it cannot be stored."""
    try:
        store(*given)
    except JobFailure as failure:
        return failure
    return None


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
