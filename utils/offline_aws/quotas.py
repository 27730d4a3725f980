"""Quotas to rehearse with: what AWS says to an account that may not.

COURSE_QUOTAS names them, such as `ml.g5.xlarge=0,calls=5`: how many instances of a type
endpoints may have in all, and how many calls of SageMaker are answered in a second.
Training jobs may have as many at a time: on AWS each use has a quota of its own, spot
training as well. It is read at each call, so that a notebook can set it between two
cells. Without it there are none: a new account has nearly all of its GPU quotas at
zero.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable

from utils.offline_aws.errors import AwsFault, invalid

VARIABLE = "COURSE_QUOTAS"
CALLS = "calls"
QUOTA = re.compile(r"(?P<name>calls|ml\.[a-z0-9-]+\.[a-z0-9-]+)=(?P<value>\d+)")


def read_quotas() -> dict[str, int]:
    """Return the quotas that the environment names.

    Raises:
        AwsFault: a ValidationException that says what is wrong with the variable.
    """
    quotas = {}
    for part in os.environ.get(VARIABLE, "").split(","):
        if not part.strip():
            continue
        found = QUOTA.fullmatch(part.strip())
        if found is None:
            raise invalid(
                f"{VARIABLE} holds {part.strip()!r}: expected an instance type or "
                "'calls', '=' and a whole number, such as ml.g5.xlarge=0,calls=5."
            )
        quotas[found["name"]] = int(found["value"])
    return quotas


def check_instances(
    used: Counter[str], wanted: Counter[str], use: str = "endpoint"
) -> None:
    """Refuse instances beyond a quota.

    Text: awsdocs/amazon-sagemaker-developer-guide, issue 70; its last sentence as in
    aws-samples/aws-genai-llm-chatbot, issue 244.

    Args:
        used: how many of each type run.
        wanted: how many more are asked for. An update asks for all of the new ones, as
            the old ones run until those serve.
        use: which quota it is, as AWS names it.

    Raises:
        AwsFault: ResourceLimitExceeded.
    """
    quotas = read_quotas()
    for kind, count in wanted.items():
        if kind in quotas and used[kind] + count > quotas[kind]:
            raise AwsFault(
                400,
                "ResourceLimitExceeded",
                f"The account-level service limit '{kind} for {use} usage' is "
                f"{quotas[kind]} Instances, with current utilization of {used[kind]} "
                f"Instances and a request delta of {count} Instances. Please use AWS "
                "Service Quotas to request an increase for this quota.",
            )


def instances(variants: Iterable[dict]) -> Counter[str]:
    """Count the instances of a configuration; a serverless variant has none."""
    found: Counter[str] = Counter()
    for variant in variants:
        if kind := variant.get("InstanceType"):
            found[kind] += int(variant.get("InitialInstanceCount") or 1)
    return found


class Throttle:
    """Counts the calls of the last second."""

    def __init__(self) -> None:
        self._calls: deque[float] = deque()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Refuse a call beyond the quota; SDKs repeat it after a while.

        Code and text: "Common errors" in SageMaker's API reference, and
        `botocore/data/_retry.json` for what is repeated.

        Raises:
            AwsFault: a ThrottlingException.
        """
        most = read_quotas().get(CALLS)
        if most is None:
            return
        with self._lock:
            now = time.monotonic()
            while self._calls and now - self._calls[0] > 1:
                self._calls.popleft()
            if len(self._calls) >= most:
                raise AwsFault(400, "ThrottlingException", "Rate exceeded")
            self._calls.append(now)
