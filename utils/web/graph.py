"""The web app as a graph: which part uses which, as the template states it.

The lesson draws its architecture picture from it, and whoever changes the template sees
in it what hangs together. `utils.web.faults.check` says what is wrong with a template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.web.expansion import (
    Resolved,
    behaviours,
    load,
    metrics_of,
    origin_of,
    resolve,
    rights_of,
    routes,
    target_of,
)
from utils.web.faults import check

__all__ = ["Architecture", "Edge", "Node", "architecture", "check", "load"]


@dataclass(frozen=True)
class Node:
    """A part of the app.

    Attributes:
        id: the logical id in the template; of what stands outside of it, a word.
        kind: one of "browser", "distribution", "bucket", "api", "plan", "function",
            "endpoint", "table", "log", "scaling", "alarms", "dashboard".
        name: for people.
        detail: what is worth knowing of it, in a few words.
    """

    id: str
    kind: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Edge:
    """One part uses another; `label` says for what, or under which right."""

    source: str
    target: str
    label: str = ""


@dataclass(frozen=True)
class Architecture:
    """The parts of the app and which uses which."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def path(self, source: str, target: str) -> list[str]:
        """Return the ids on the shortest way between two nodes; [] if there is none."""
        ways = [[source]]
        seen = {source}
        for way in ways:
            if way[-1] == target:
                return way
            for edge in self.edges:
                if edge.source == way[-1] and edge.target not in seen:
                    seen.add(edge.target)
                    ways.append([*way, edge.target])
        return []


def architecture(template: dict[str, Any]) -> Architecture:
    """Return the app's parts and their ties as the template states them.

    What no reference of the template ties together has no edge.

    First used in lesson 07, section 1.
    """
    resolved = resolve(template)
    walk = _Walk(resolved)
    walk.page_and_api()
    walk.function()
    walk.around()
    ids = {node.id for node in walk.nodes}
    edges = dict.fromkeys(walk.edges)
    return Architecture(
        tuple(walk.nodes),
        tuple(edge for edge in edges if {edge.source, edge.target} <= ids),
    )


class _Walk:
    """Goes through a template from the browser on and collects nodes and edges."""

    def __init__(self, resolved: Resolved):
        self.resolved = resolved
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []

    def page_and_api(self) -> None:
        resolved = self.resolved
        self.nodes.append(Node("browser", "browser", "Browser", "the page, with a key"))
        for name, bucket in resolved.of("AWS::S3::Bucket").items():
            closed = "PublicAccessBlockConfiguration" in bucket
            detail = "private, read by CloudFront only" if closed else "open"
            self.nodes.append(Node(name, "bucket", "S3 bucket: the page", detail))
        for name in resolved.of("AWS::ApiGateway::RestApi"):
            here = routes(resolved)
            locked = sum(route.needs_key for route in here)
            detail = f"{len(here)} routes, {locked} of them need a key"
            self.nodes.append(Node(name, "api", "API Gateway (REST API)", detail))
            for function in dict.fromkeys(route.function for route in here):
                number = sum(route.function == function for route in here)
                self.edges.append(Edge(name, function, f"{number} routes"))
        for name, plan in resolved.of("AWS::ApiGateway::UsagePlan").items():
            throttle, quota = plan.get("Throttle", {}), plan.get("Quota", {})
            detail = (
                f"{throttle.get('RateLimit')} a second, {throttle.get('BurstLimit')} "
                f"at once, {quota.get('Limit')} a {quota.get('Period', '').lower()}"
            )
            self.nodes.append(Node(name, "plan", "Usage plan and key", detail))
            for stage in plan.get("ApiStages", []):
                api = resolved.id_of("AWS::ApiGateway::RestApi", stage.get("ApiId"))
                self.edges.append(Edge(name, api, "limits"))
        for name, given in resolved.of("AWS::CloudFront::Distribution").items():
            self.nodes.append(
                Node(name, "distribution", "CloudFront", "HTTPS, headers, cache")
            )
            self.edges.append(Edge("browser", name, "HTTPS"))
            config = given["DistributionConfig"]
            for behaviour in behaviours(config):
                target = target_of(resolved, origin_of(config, behaviour))
                label = behaviour.get("PathPattern", "everything else")
                self.edges.append(Edge(name, target, label))

    def function(self) -> None:
        resolved = self.resolved
        for name in resolved.of("AWS::DynamoDB::Table"):
            self.nodes.append(
                Node(name, "table", "DynamoDB table", "answers and feedback")
            )
        for name, log in resolved.of("AWS::Logs::LogGroup").items():
            detail = f"kept {log.get('RetentionInDays', 'for ever')} days"
            self.nodes.append(Node(name, "log", "CloudWatch Logs", detail))
        for name, given in resolved.of("AWS::Lambda::Function").items():
            cap = given.get("ReservedConcurrentExecutions")
            detail = (
                f"{given.get('Runtime')}, {given.get('MemorySize')} MB, "
                f"{given.get('Timeout')} s, {cap or 'any number'} at a time"
            )
            self.nodes.append(Node(name, "function", "Lambda function", detail))
            for action, resource in rights_of(resolved, given):
                target = self._named_by(resource)
                self.edges.append(Edge(name, target, action))
        # One edge a target, with all rights that lie on it.
        ties: dict[tuple[str, str], list[str]] = {}
        for edge in self.edges:
            ties.setdefault((edge.source, edge.target), []).append(edge.label)
        self.edges = [
            Edge(source, target, ", ".join(dict.fromkeys(labels)))
            for (source, target), labels in ties.items()
        ]

    def _named_by(self, arn: str) -> str:
        """Return the node that an ARN names; the endpoint is one as soon as named."""
        found = self.resolved.by_arn(arn)
        if not found and ":endpoint/" in arn and "*" not in arn:
            self._endpoint(arn.partition(":endpoint/")[2])
            return "endpoint"
        return found

    def _endpoint(self, name: str) -> None:
        if all(node.id != "endpoint" for node in self.nodes):
            self.nodes.append(Node("endpoint", "endpoint", "SageMaker endpoint", name))

    def around(self) -> None:
        resolved = self.resolved
        scaling = resolved.of("AWS::ApplicationAutoScaling::ScalableTarget")
        for name, target in scaling.items():
            detail = f"{target.get('MinCapacity')} to {target.get('MaxCapacity')} "
            self.nodes.append(
                Node(name, "scaling", "Application Auto Scaling", detail + "machines")
            )
            parts = target.get("ResourceId", "").split("/")
            here = [node.detail for node in self.nodes if node.id == "endpoint"]
            if len(parts) == 4 and parts[1] in here:
                self.edges.append(Edge(name, "endpoint", f"variant {parts[3]}"))
        alarms = resolved.of("AWS::CloudWatch::Alarm")
        if alarms:
            names = ", ".join(sorted(alarms))
            label = f"{len(alarms)} CloudWatch alarms"
            self.nodes.append(Node("alarms", "alarms", label, names))
        for alarm in alarms.values():
            for metric in metrics_of(alarm):
                self.edges.append(Edge(self._measured(metric), "alarms", "metrics"))
        for name in resolved.of("AWS::CloudWatch::Dashboard"):
            self.nodes.append(Node(name, "dashboard", "CloudWatch dashboard"))
            self.edges.append(Edge("alarms", name))

    def _measured(self, metric: dict[str, Any]) -> str:
        """Return the node that a metric is of; the app's own come from its log."""
        kinds = {
            "AWS/ApiGateway": "api",
            "AWS/Lambda": "function",
            "AWS/SageMaker": "endpoint",
            "/aws/sagemaker/Endpoints": "endpoint",
        }
        kind = kinds.get(metric.get("Namespace", ""), "log")
        return next((node.id for node in self.nodes if node.kind == kind), "")
