"""Answers and feedback in a DynamoDB table, one item a request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import boto3
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .schema import Problem
from .settings import Settings

DAY = 24 * 60 * 60
RETRY_AFTER = 5  # seconds
MOST_AT_ONCE = 64  # connections
# A record is small: what takes longer is broken. A second attempt, or one that comes
# late, leaves what stands there: see `Records.put_answer`.
CONFIG = Config(
    connect_timeout=1,
    read_timeout=2,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=MOST_AT_ONCE,
)


def table_client(session: Any = boto3) -> Any:
    """Return boto3's client for the table.

    Args:
        session: of boto3.
    """
    return session.client("dynamodb", config=CONFIG)


class Records:
    """What was answered, and what readers think of it.

    First used in lesson 07, section 8.
    """

    def __init__(
        self, table: str, client: Any, days: int = 30, keep_texts: bool = False
    ):
        """Take the table.

        Args:
            table: its name.
            client: of boto3 for DynamoDB, such as `table_client` returns.
            days: after which DynamoDB deletes an item.
            keep_texts: whether questions, answers and comments are stored.
        """
        self.table, self.days, self.keep_texts = table, days, keep_texts
        self._client = client

    @classmethod
    def of(cls, settings: Settings, session: Any = boto3) -> Records:
        """Return the records of a service with these settings."""
        return cls(
            settings.table,
            table_client(session),
            settings.days_kept,
            settings.keep_texts,
        )

    def put_answer(
        self,
        *,
        request_id: str,
        version: str,
        variant: str,
        status: int,
        latency_ms: float,
        prompt_tokens: int,
        completion_tokens: int,
        sources: Sequence[str],
        question: str,
        answer: str,
    ) -> None:
        """Store an answer, unless it is on record.

        Then an earlier attempt came through without our hearing of it, and feedback
        may have joined it since: writing the item again would erase that.

        Args:
            request_id: the key.
            version: that answered.
            variant: of the endpoint that answered.
            status: 200, or what broke the answer off once it had begun.
            latency_ms: milliseconds up to the answer's end.
            prompt_tokens: that were read.
            completion_tokens: that were written.
            sources: ids of the notes that the answer rests on.
            question: stored if texts are kept; its length always.
            answer: stored if texts are kept.

        Raises:
            Problem: "unavailable", if the table does not take it.
        """
        item: dict[str, Any] = {
            "request_id": request_id,
            "at": _now(),
            "version": version,
            "variant": variant,
            "status": status,
            "latency_ms": Decimal(str(round(latency_ms, 1))),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "sources": list(sources),
            "expires": int(time.time()) + self.days * DAY,
            "question_characters": len(question),
        }
        if self.keep_texts:
            item |= {"question": question, "answer": answer}
        with contextlib.suppress(
            self._client.exceptions.ConditionalCheckFailedException
        ):
            self._call(
                "put_item",
                Item=_packed(item),
                ConditionExpression="attribute_not_exists(request_id)",
            )

    def put_feedback(self, request_id: str, thumb: str, comment: str) -> str | None:
        """Store feedback on an answer, over any earlier one.

        Args:
            request_id: of the answer.
            thumb: "up" or "down".
            comment: stored if texts are kept; its length always.

        Returns:
            the version that the feedback is about; None if no such answer is on record.

        Raises:
            Problem: "unavailable", if the table does not take it.
        """
        values: dict[str, Any] = {
            "thumb": thumb,
            "comment_characters": len(comment),
            "feedback_at": _now(),
        }
        if self.keep_texts:
            values["comment"] = comment
        names = {f"#{name}": name for name in values}  # some are reserved words
        try:
            reply = self._call(
                "update_item",
                Key=_packed({"request_id": request_id}),
                UpdateExpression="SET "
                + ", ".join(f"#{name} = :{name}" for name in values),
                ConditionExpression="attribute_exists(request_id)",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=_packed(
                    {f":{name}": value for name, value in values.items()}
                ),
                ReturnValues="ALL_NEW",
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return None
        return _unpacked(reply["Attributes"])["version"]

    def all(self) -> list[dict[str, Any]]:
        """Return all items, numbers as int or float, in no order.

        Raises:
            Problem: "unavailable", if the table cannot be read.
        """
        rows: list[dict[str, Any]] = []
        after: dict[str, Any] = {}
        while True:
            page = self._call("scan", **after)
            rows += [_unpacked(item) for item in page["Items"]]
            if "LastEvaluatedKey" not in page:
                return rows
            after = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        failed = self._client.exceptions.ConditionalCheckFailedException
        try:
            return getattr(self._client, operation)(TableName=self.table, **parameters)
        except failed:
            raise
        except (ClientError, BotoCoreError) as error:
            kind = type(error).__name__
            if isinstance(error, ClientError):
                kind = error.response["Error"]["Code"]
            cause = f"table: {kind}"
            raise Problem("unavailable", retry_after=RETRY_AFTER, cause=cause) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _packed(item: dict[str, Any]) -> dict[str, Any]:
    serializer = TypeSerializer()
    return {name: serializer.serialize(value) for name, value in item.items()}


def _unpacked(item: dict[str, Any]) -> dict[str, Any]:
    deserializer = TypeDeserializer()
    return {name: _plain(deserializer.deserialize(one)) for name, one in item.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
