"""How an account is asked, and what is noted of what was found there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from utils.deployment.aws import Aws
from utils.deployment.prices import PriceList

TAG = "course-run"
PREFIX = "course-"  # of every name that the guard gives
UNKNOWN = "price not known here"
NOT_PLAYED = "NotImplemented"  # the offline AWS's code for a call that it lacks


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


class Asker:
    """Asks an account questions, each of which returns what it found.

    Attributes:
        aws: the account.
        prices: for what is found.
        questions: by the plural of what they are for.
    """

    questions: dict[str, Callable[[], list[Found]]]

    def __init__(self, aws: Aws, prices: PriceList):
        self.aws = aws
        self.prices = prices
        self._clients: dict[str, Any] = {}

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

    def _optional(self, ask: Callable[..., Any], *given: str) -> Any:
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
