"""Tables of DynamoDB, in which an app keeps what an endpoint has answered.

A run's table carries the run's tag, and goes with all that it holds.
"""

from __future__ import annotations

import contextlib
from typing import Any

COSTS = "by the request and the amount"  # on demand, as the course makes them
PATIENCE = {"Delay": 1, "MaxAttempts": 120}  # seconds; botocore's own are 20


def delete(client: Any, name: str, tag: dict[str, str]) -> None:
    """Delete a table, if it is there and carries the tag, and wait until it is gone.

    Args:
        client: of DynamoDB.
        name: of the table.
        tag: of the run.
    """
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        table = client.describe_table(TableName=name)["Table"]
        if table["TableStatus"] == "DELETING":
            waiter = client.get_waiter("table_not_exists")
            waiter.wait(TableName=name, WaiterConfig=PATIENCE)
            return
        if table["TableStatus"] != "ACTIVE":  # one in transition cannot be deleted
            waiter = client.get_waiter("table_exists")
            waiter.wait(TableName=name, WaiterConfig=PATIENCE)
        tags = client.list_tags_of_resource(ResourceArn=table["TableArn"])["Tags"]
        if tag in tags:
            client.delete_table(TableName=name)
            waiter = client.get_waiter("table_not_exists")
            waiter.wait(TableName=name, WaiterConfig=PATIENCE)
