"""Endpoints of the offline AWS: containers that start, serve, are replaced and stop."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from utils.djl_python.archives import DAMAGED, member_faults
from utils.offline_aws.images import cannot_start
from utils.offline_aws.logs import LoggedContainer, LogShipper
from utils.offline_aws.names import LOG_GROUPS, OFFLINE_REGION
from utils.offline_aws.quotas import instances
from utils.offline_aws.shifting import Shift
from utils.temporary import clear_dead

__all__ = ["ENDPOINTS", "LocalEndpoint", "Variant", "clear_dead"]

HEALTH_CHECK_TIMEOUT = 480  # seconds, when the variant names none
HEALTH_CHECK_INTERVAL = 0.5
DRAIN_TIMEOUT = 60  # seconds that replaced containers have to answer what they have
ALARM_INTERVAL = 0.2  # seconds between looks at the alarms of an update
JOIN_TIMEOUT = 30  # seconds; a busy machine may take its time

# The endpoints of this process by their names. They stand here, and not on an object,
# because moto's classes are patched once for the whole process; there is at most one
# offline AWS, which empties this when it starts.
ENDPOINTS: dict[str, LocalEndpoint] = {}


@dataclass
class Variant:
    """A production variant: a share of the traffic, and the container that gets it."""

    name: str
    weight: float
    container: LoggedContainer
    health_check_timeout: float
    running: int = 0  # requests that it has not answered yet
    async_configuration: dict[str, Any] | None = None
    instances: Counter[str] = field(default_factory=Counter)  # by their types
    cannot_start: str | None = None  # why its machines do not run the image

    @classmethod
    def of(cls, variant: dict, model: Any, configuration: dict) -> Variant:
        """Make one from what CreateEndpointConfig and CreateModel were given."""
        container = model.primary_container or (model.containers or [{}])[0]
        source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
        address = container.get("ModelDataUrl") or ""
        if source.get("CompressionType") == "Gzip":
            address = address or source["S3Uri"]
        named = container.get("Environment") or {}
        fleets = len(configuration.get("ProductionVariants") or [variant])
        return cls(
            name=variant["VariantName"],
            weight=float(variant.get("InitialVariantWeight", 1)),
            container=LoggedContainer(address, _threads(fleets) | named),
            health_check_timeout=variant.get(
                "ContainerStartupHealthCheckTimeoutInSeconds", HEALTH_CHECK_TIMEOUT
            ),
            async_configuration=configuration.get("AsyncInferenceConfig"),
            instances=instances([variant]),
            cannot_start=cannot_start(container, variant),
        )

    def refusal(self) -> str | None:
        """Say why its archive must not be unpacked; None if it may be.

        On AWS such an archive fails in the same place and with these words
        (aws/deep-learning-containers, pull request 569), symbolic links included (AWS
        re:Post, "sagemaker-endpoint-creation-fail").
        """
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        address = self.container.model_data
        if not address.startswith("s3://"):
            # Never a folder: the container would serve the one that this runs in.
            return (
                f"The model of production variant {self.name} has no archive, and the "
                "offline AWS serves nothing else: give it a ModelDataUrl."
            )
        bucket, _, key = address.removeprefix("s3://").partition("/")
        try:
            client = boto3.Session(region_name=OFFLINE_REGION).client("s3")
            found = client.get_object(Bucket=bucket, Key=key)
        except (BotoCoreError, ClientError):
            return None  # the container says itself that it is not there
        name = key.rpartition("/")[2]
        with contextlib.closing(found["Body"]) as body, contextlib.suppress(*DAMAGED):
            # What is no such archive passes: the container says so itself.
            for fault in member_faults(body, name, found["ContentLength"]):
                return (
                    f'Failed to extract model data archive for container "{self.name}" '
                    f'from URL "{address}": {fault.sentences}'
                )
        return None


def _threads(fleets: int) -> dict[str, str]:
    """Return what keeps several fleets from taking one another's cores.

    On AWS each has machines of its own. Here they share this one, and two processes
    whose threads are as many as the cores wait for one another at each step.
    """
    cores = os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // fleets))} if fleets > 1 else {}


class LocalEndpoint:
    """An endpoint with its containers, from Creating to InService or Failed.

    An update starts the new containers beside the old ones. Once all of them serve, new
    requests go to them, at once or step by step; the old ones answer what they have and
    stop. If one does not serve, or an alarm of the update goes off, the new ones stop,
    the old ones stay, and `failure_reason` says why.
    """

    def __init__(self, name: str, config_name: str, variants: list[Variant]):
        self.name = name
        self.config_name = config_name
        self.variants = variants
        self.status = "Creating"
        self.failure_reason: str | None = None
        self._traffic = threading.Condition()
        self._stopped = threading.Event()
        self._starting: list[Variant] = []
        self._share = 0.0  # of the requests that those get
        self.shift = Shift()  # how the last update moved the traffic
        self._threads = [threading.Thread(target=self._supervise, daemon=True)]
        self.logs = LogShipper(LOG_GROUPS + name)

    def start(self) -> None:
        """Start the containers, in a thread."""
        self.logs.start()
        self._threads[0].start()

    @property
    def serves(self) -> bool:
        """Whether it takes requests."""
        return self.status in ("InService", "Updating", "RollingBack")

    @property
    def instances(self) -> Counter[str]:
        """How many instances of each type it has, those that are starting included."""
        variants = [*self.variants, *self._starting]
        return sum((variant.instances for variant in variants), Counter())

    @property
    def ended(self) -> threading.Event:
        """Set once it is being deleted."""
        return self._stopped

    @property
    def async_configuration(self) -> dict[str, Any] | None:
        """Its AsyncInferenceConfig; None if it answers at once."""
        return self.variants[0].async_configuration

    def _supervise(self) -> None:
        """Start the containers, then replace whichever stops answering /ping."""
        reason = self._start(self.variants)
        if self._stopped.is_set():
            return
        if reason is not None:
            self._end(self.variants)
            self.failure_reason = reason
            self.status = "Failed"
            return
        self.status = "InService"
        while not self._stopped.wait(HEALTH_CHECK_INTERVAL):
            for variant in self.variants:
                if not variant.container.healthy and not self._stopped.is_set():
                    variant.container.stop(for_good=False)
                    variant.container.start(variant.health_check_timeout)

    def _start(self, variants: list[Variant]) -> str | None:
        """Start containers, all at once; return why one does not serve, or None."""
        reasons: list[str] = []
        for variant in variants:
            self.logs.watch(variant.name, variant.container)

        def start(variant: Variant) -> None:
            reason = variant.cannot_start or variant.refusal()
            if reason is None:
                reason = variant.container.start(variant.health_check_timeout)
                if reason is None:
                    return
                reason = (
                    f"The primary container for production variant {variant.name} did "
                    "not pass the ping health check. Please check CloudWatch logs for "
                    f"this endpoint. The worker's log says: {reason}"
                )
            elif not variant.cannot_start:  # which leaves no log
                variant.container.note(reason)
            reasons.append(reason)
            for other in variants:
                other.container.stop()

        threads = [
            threading.Thread(target=start, args=(variant,), daemon=True)
            for variant in variants
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return reasons[0] if reasons else None

    def _end(self, variants: list[Variant]) -> None:
        """Stop containers, and ship the end of their logs."""
        for variant in variants:
            variant.container.stop()
        for variant in variants:
            self.logs.leave(variant.container)

    def update(
        self, config_name: str, variants: list[Variant], shift: Shift | None = None
    ) -> None:
        """Move the traffic to other containers, in a thread.

        Args:
            config_name: of the configuration that they come from.
            variants: the new ones.
            shift: how the traffic moves; all at once by default.
        """
        self.status = "Updating"
        self.shift = shift or Shift()
        self.failure_reason = None
        self._starting = variants
        thread = threading.Thread(target=self._move, args=(config_name, variants))
        thread.daemon = True
        self._threads.append(thread)
        thread.start()

    def _move(self, config_name: str, new: list[Variant]) -> None:
        """Start new containers, give them the traffic, and stop the old ones."""
        reason = self._start(new)
        if reason is None:
            reason = self._move_by_steps()
        with self._traffic:
            self._starting, self._share = [], 0.0
            to_stop = new
            if reason is None and not self._stopped.is_set():
                to_stop, self.variants = self.variants, new
                self.config_name = config_name
            self._traffic.wait_for(
                lambda: (
                    self._stopped.is_set()
                    or not any(variant.running for variant in to_stop)
                ),
                DRAIN_TIMEOUT,
            )
        self._end(to_stop)
        if not self._stopped.is_set():
            self.failure_reason = reason
            self.status = "InService"

    def _move_by_steps(self) -> str | None:
        """Give the new containers their shares; return why they lose them, or None."""
        for share in self.shift.shares:
            with self._traffic:
                self._share = share
            ends = time.monotonic() + self.shift.wait
            while True:
                if reason := self.shift.tripped():
                    self.status = "RollingBack"
                    return reason
                left = ends - time.monotonic()
                if left <= 0 or self._stopped.wait(min(left, ALARM_INTERVAL)):
                    break
        self._stopped.wait(self.shift.linger)
        return None

    @contextlib.contextmanager
    def lease(self, name: str | None) -> Iterator[Variant | None]:
        """Hold the variant that answers a request; it is not stopped before the end.

        Args:
            name: the variant asked for; None for one drawn by weight.
        """
        with self._traffic:
            fleet = self._starting if random.random() < self._share else self.variants
            if name is None:
                weights = [variant.weight for variant in fleet]
                if not any(weights):
                    weights = [1.0] * len(fleet)
                variant = random.choices(fleet, weights)[0]
            else:
                named = (one for one in fleet if one.name == name)
                variant = next(named, None)
            if variant is not None:
                variant.running += 1
        try:
            yield variant
        finally:
            if variant is not None:
                with self._traffic:
                    variant.running -= 1
                    self._traffic.notify_all()

    def stop(self) -> None:
        """Stop the containers, also those that are only just starting."""
        with self._traffic:
            self._stopped.set()
            self._traffic.notify_all()
        self.status = "Deleting"
        for variant in [*self.variants, *self._starting]:
            variant.container.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_TIMEOUT)  # it may be starting or stopping others
        self.logs.stop()
