"""How an update moves the traffic: at once, by a canary or in steps, and back again.

From "Deployment guardrails" in the developer guide: blue/green deployments start the
new fleet beside the old one, give it its share of the traffic, and wait a *baking
period* after each step. An alarm in state ALARM meanwhile takes all traffic back to the
old fleet. Here a fleet is one container for each variant, so that a share is one of the
requests. Not played: rolling deployments, and the time-out of the whole. AWS's text for
a rollback is not known; it is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from utils.offline_aws.alarms import ALARM, states
from utils.offline_aws.errors import invalid, not_played
from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION

LARGEST_CANARY = 50  # per cent; CanarySize in botocore's model of TrafficRoutingConfig
SMALLEST_STEP = 10  # likewise, of LinearStepSize


@dataclass(frozen=True)
class Shift:
    """How traffic goes to a new fleet.

    Attributes:
        shares: of the requests that the new fleet gets, step by step, up to 1.
        wait: seconds after each step in which the alarms are watched.
        linger: seconds for which the old fleet stays after that.
        alarms: names of those that take the traffic back.
    """

    shares: tuple[float, ...] = (1.0,)
    wait: float = 0.0
    linger: float = 0.0
    alarms: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: dict[str, Any]) -> Shift:
        """Read a DeploymentConfig, which `check_deployment` has let pass."""
        policy = given.get("BlueGreenUpdatePolicy") or {}
        routing = policy.get("TrafficRoutingConfiguration") or {}
        rollback = given.get("AutoRollbackConfiguration") or {}
        shares = [1.0]
        if routing.get("Type") == "CANARY":
            shares = [_share(routing["CanarySize"]), 1.0]
        elif routing.get("Type") == "LINEAR":
            step = _share(routing["LinearStepSize"])
            shares = [min(1.0, step * n) for n in range(1, math.ceil(1 / step) + 1)]
        return cls(
            tuple(shares),
            float(routing.get("WaitIntervalInSeconds", 0)),
            float(policy.get("TerminationWaitInSeconds", 0)),
            tuple(alarm["AlarmName"] for alarm in rollback.get("Alarms") or ()),
        )

    def tripped(self) -> str | None:
        """Return why the traffic has to go back; None if it need not."""
        found = states(list(self.alarms), _cloudwatch()) if self.alarms else {}
        over = [name for name, state in found.items() if state == ALARM]
        if not over:
            return None
        return f"The update was rolled back: in state ALARM were {', '.join(over)}."


def check_deployment(parameters: dict) -> None:
    """Refuse a DeploymentConfig whose sizes or alarms cannot be.

    Args:
        parameters: of UpdateEndpoint.

    Raises:
        AwsFault: a ValidationException, or NotImplemented.
    """
    given = parameters.get("DeploymentConfig") or {}
    if given.get("RollingUpdatePolicy"):
        raise not_played("rolling deployments")
    policy = given.get("BlueGreenUpdatePolicy") or {}
    routing = policy.get("TrafficRoutingConfiguration") or {}
    for kind, key, least in (
        ("CANARY", "CanarySize", 1),
        ("LINEAR", "LinearStepSize", SMALLEST_STEP),
    ):
        if routing.get("Type") != kind:
            continue
        size = routing.get(key)
        if size is None:
            raise invalid(f"TrafficRoutingConfiguration of type {kind} needs a {key}.")
        if size["Type"] != "CAPACITY_PERCENT":
            raise not_played(f"a {key} in instances: give CAPACITY_PERCENT")
        if not least <= size["Value"] <= LARGEST_CANARY:
            raise invalid(
                f"{key}: expected {least} to {LARGEST_CANARY} per cent of the fleet, "
                f"found {size['Value']}."
            )
    rollback = given.get("AutoRollbackConfiguration") or {}
    for alarm in rollback.get("Alarms") or ():
        if alarm["AlarmName"] not in _cloudwatch().alarms:
            raise invalid(f"There is no alarm {alarm['AlarmName']}. Make it first.")


def _share(size: dict[str, Any]) -> float:
    return size["Value"] / 100


def _cloudwatch() -> Any:
    from moto.cloudwatch.models import cloudwatch_backends

    return cloudwatch_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]
