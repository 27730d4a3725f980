"""EventBridge Scheduler of the offline AWS: moto keeps schedules, this runs them.

One kind only: a schedule `at(…)` whose target is SageMaker's DeleteEndpoint. Others are
kept and listed, and nothing comes of them.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
import zoneinfo
from collections.abc import Callable
from typing import Any

from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION

EXPRESSION = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)|(rate|cron)\(.+\)")
DELETES = re.compile(r"arn:aws[\w-]*:scheduler:::aws-sdk:sagemaker:deleteEndpoint")
PRINCIPAL = "scheduler.amazonaws.com"
PAUSE = 1  # seconds between looks; AWS is precise to 60


class Schedules:
    """Carries out what is due, in a thread."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self.clock = clock
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to look at the clock."""
        threading.Thread(target=self._watch, daemon=True, name="schedules").start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(PAUSE):
            self.run_due()

    def run_due(self) -> list[str]:
        """Delete the endpoints whose time has come; return their names.

        One that refuses, because it is in transition, is tried again the next time.
        """
        from moto.sagemaker.exceptions import ValidationError
        from moto.sagemaker.models import sagemaker_backends
        from moto.scheduler.models import scheduler_backends

        deleted = []
        groups = scheduler_backends[OFFLINE_ACCOUNT][OFFLINE_REGION].schedule_groups
        endpoints = sagemaker_backends[OFFLINE_ACCOUNT][OFFLINE_REGION]
        for group in list(groups.values()):
            for kept in list(group.schedules.values()):
                due = due_at(kept)
                if due is None or due > self.clock():
                    continue
                name = json.loads(kept.target["Input"])["EndpointName"]
                if name in endpoints.endpoints:
                    try:
                        endpoints.delete_endpoint(name)
                    except ValidationError:
                        continue
                    deleted.append(name)
                if kept.action_after_completion == "DELETE":
                    group.schedules.pop(kept.name, None)
                else:
                    kept.state = "DISABLED"  # here only: AWS keeps it as it is
        return deleted


def due_at(kept: Any) -> float | None:
    """Return when moto's schedule deletes an endpoint; None if it does not."""
    found = EXPRESSION.fullmatch(kept.schedule_expression)
    wanted = found and found[1] and DELETES.fullmatch(kept.target.get("Arn", ""))
    if not wanted or kept.state == "DISABLED":
        return None
    zone = zoneinfo.ZoneInfo(kept.schedule_expression_timezone)
    return datetime.datetime.fromisoformat(found[1]).replace(tzinfo=zone).timestamp()


def checked(store: Any, backend: Any, **given: Any) -> Any:
    """Create or update a schedule, if its expression and its role can be.

    The words about the role are AWS's own, as quoted in public reports.
    """
    from moto.scheduler.exceptions import ValidationException

    if not EXPRESSION.fullmatch(given["schedule_expression"]):
        expression = given["schedule_expression"]
        raise ValidationException(f"Invalid Schedule Expression {expression}.")
    if not _trusts_scheduler(given["target"]["RoleArn"]):
        raise ValidationException(
            "The execution role you provide must allow AWS EventBridge Scheduler to "
            "assume the role."
        )
    return store(backend, **given)


def _trusts_scheduler(arn: str) -> bool:
    from moto.iam.models import iam_backends

    roles = list(iam_backends[OFFLINE_ACCOUNT]["aws"].roles.values())
    role = next((role for role in roles if role.arn == arn), None)
    return role is not None and PRINCIPAL in role.assume_role_policy_document
