"""A SAM template expanded as CloudFormation would, its references resolved.

SAM's own translator turns `template.yaml` into plain CloudFormation, without a network.
Then every reference gets an example value, so that what refers to the same thing holds
the same text: a policy the ARN of a table, a route that of its function.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.course import CourseError

TEMPLATE = Path(__file__).with_name("template.yaml")
ACCOUNT = "123456789012"  # of examples in AWS's documents
PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "course-example-web",
    "AWS::URLSuffix": "amazonaws.com",
}
# For parameters without a default.
EXAMPLES = {
    "EndpointName": "course-example-faq",
    "Versions": '[{"name": "tuned", "description": "", "live": true}]',
    "CodeBucket": "course-example-code",
    "CodeKey": "course-example/function.zip",
    "HourlyPrice": "1.408",
}
# What CloudFormation calls a thing of ours, where the template names it.
NAMES = {
    "AWS::ApiGateway::Stage": "StageName",
    "AWS::CloudWatch::Alarm": "AlarmName",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
}
# How the attribute Arn of a thing reads, after "arn:aws:".
ARNS = {
    "AWS::CloudWatch::Alarm": f"cloudwatch:us-east-1:{ACCOUNT}:alarm:{{}}",
    "AWS::DynamoDB::Table": f"dynamodb:us-east-1:{ACCOUNT}:table/{{}}",
    "AWS::IAM::Role": f"iam::{ACCOUNT}:role/{{}}",
    "AWS::Lambda::Function": f"lambda:us-east-1:{ACCOUNT}:function:{{}}",
    "AWS::Logs::LogGroup": f"logs:us-east-1:{ACCOUNT}:log-group:{{}}:*",
    "AWS::S3::Bucket": "s3:::{}",
}
OTHER_ATTRIBUTES = {
    "DomainName": "{}.cloudfront.net",
    "RegionalDomainName": "{}.s3.us-east-1.amazonaws.com",
}
SUBSTITUTED = re.compile(r"\$\{([^!][^}]*)\}")


class TemplateError(CourseError):
    """A template that cannot be read or expanded."""


# --- reading and expanding ------------------------------------------------------------


def load(path: Path = TEMPLATE) -> dict[str, Any]:
    """Return a SAM template, its short forms such as !Ref written out.

    First used in lesson 07, section 1.

    Raises:
        TemplateError: if it is no YAML, or names something twice.
    """
    from cfnlint.decode import cfn_yaml

    try:
        found = cfn_yaml.loads(path.read_text("utf-8"))
        return json.loads(json.dumps(found))
    except Exception as error:  # of YAML or of cfn-lint, which share no class
        raise TemplateError(f"{path} cannot be read as a template: {error}") from error


def expand(template: dict[str, Any]) -> dict[str, Any]:
    """Return the CloudFormation that SAM makes of a template; nobody is asked.

    Raises:
        TemplateError: with SAM's reasons, if it refuses the template.
    """
    import boto3
    from samtranslator.metrics.metrics import Metrics
    from samtranslator.model.exceptions import InvalidDocumentException
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    # It says of each feature in trial that it is not switched on.
    logging.getLogger("samtranslator.feature_toggle").setLevel(logging.ERROR)
    session = boto3.Session(region_name=PSEUDO["AWS::Region"])
    metrics = Metrics()
    translator = Translator({}, Parser(), boto_session=session, metrics=metrics)
    copied = json.loads(json.dumps(template))
    try:
        made = translator.translate(copied, parameter_values={})
    except InvalidDocumentException as error:
        reasons = "; ".join(cause.message for cause in error.causes)
        raise TemplateError(f"SAM refuses the template: {reasons}") from error
    finally:
        metrics.publish()  # to nobody; unpublished ones are complained of
    return json.loads(json.dumps(made))


@dataclass
class Resolved:
    """A template whose references have example values.

    Attributes:
        expanded: the CloudFormation with its references.
        resources: the same without; by logical id, with Type and Properties.
        outputs: their values by name.
        names: what Ref gives for each resource.
        arns: its ARN, where it has one.
        faults: references to nothing.
    """

    expanded: dict[str, Any]
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    arns: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the properties of all resources of a type, by logical id."""
        return {
            name: resource["Properties"]
            for name, resource in self.resources.items()
            if resource["Type"] == kind
        }

    def id_of(self, kind: str, name: str | None) -> str:
        """Return the logical id of the resource whose Ref a text is; "" if none."""
        return next((one for one in self.of(kind) if self.names[one] == name), "")

    def by_arn(self, arn: str) -> str:
        """Return the logical id of the resource that an ARN is of; "" if none."""
        return next((name for name, its in self.arns.items() if its == arn), "")


ABSENT = object()  # what AWS::NoValue leaves


class _Resolver:
    """Replaces the intrinsic functions of one template."""

    def __init__(self, expanded: dict[str, Any], given: dict[str, str]):
        self.resources = expanded.get("Resources", {})
        self.conditions = expanded.get("Conditions", {})
        self.faults: list[str] = []
        self.used: set[str] = set()
        self.parameters = dict(PSEUDO)
        for name, parameter in expanded.get("Parameters", {}).items():
            value = {**EXAMPLES, **given}.get(name, parameter.get("Default"))
            if value is None:
                raise TemplateError(
                    f"The parameter {name} has no default. Give an example of it."
                )
            self.parameters[name] = str(value)

    def value(self, found: Any, place: str) -> Any:
        """Return what a part of the template comes to."""
        if isinstance(found, list):
            values = [self.value(item, place) for item in found]
            return [value for value in values if value is not ABSENT]
        if not isinstance(found, dict):
            return found
        if len(found) == 1:
            name, argument = next(iter(found.items()))
            if name == "Ref":
                return self.reference(argument, place)
            if name == "Fn::GetAtt":
                parts = argument if isinstance(argument, list) else argument.split(".")
                return self.attribute(parts[0], ".".join(parts[1:]), place)
            if name == "Fn::Sub":
                return self.substitute(argument, place)
            if name == "Fn::If":
                condition, yes, no = argument
                chosen = yes if self.condition(condition, place) else no
                return self.value(chosen, place)
            if name == "Fn::Join":
                separator, parts = argument
                return separator.join(str(self.value(part, place)) for part in parts)
            if name.startswith("Fn::"):
                self.faults.append(f"{place} uses {name}, which is not known here.")
                return ABSENT
        values = {
            key: self.value(item, f"{place}.{key}") for key, item in found.items()
        }
        return {key: value for key, value in values.items() if value is not ABSENT}

    def reference(self, name: str, place: str) -> Any:
        if name == "AWS::NoValue":
            return ABSENT
        if name in self.parameters:
            self.used.add(name)
            return self.parameters[name]
        if name in self.resources:
            return self.name_of(name)
        self.faults.append(f"{place} refers to {name}, which the template lacks.")
        return f"missing-{name}"

    def name_of(self, name: str) -> str:
        """Return what Ref gives for a resource: its name, or one made up."""
        resource = self.resources[name]
        key = NAMES.get(resource["Type"])
        named = resource.get("Properties", {}).get(key)
        if named is None:
            return f"{PSEUDO['AWS::StackName']}-{name}".lower()
        return self.value(named, name)

    def attribute(self, name: str, attribute: str, place: str) -> str:
        if name not in self.resources:
            self.faults.append(f"{place} refers to {name}, which the template lacks.")
            return f"missing-{name}"
        if attribute == "Arn":
            form = ARNS.get(self.resources[name]["Type"])
            if form is None:
                self.faults.append(f"{place} takes the ARN of {name}, not known here.")
                return f"missing-{name}"
            return f"arn:aws:{form.format(self.name_of(name))}"
        form = OTHER_ATTRIBUTES.get(attribute, f"{{}}-{attribute}")
        return form.format(self.name_of(name))

    def substitute(self, argument: Any, place: str) -> str:
        text, own = argument if isinstance(argument, list) else (argument, {})

        def replace(match: re.Match[str]) -> str:
            name = match[1].strip()
            if name in own:
                return str(self.value(own[name], place))
            if "." in name:
                return self.attribute(*name.split(".", 1), place)
            return str(self.reference(name, place))

        return SUBSTITUTED.sub(replace, text).replace("${!", "${")

    def condition(self, found: Any, place: str) -> bool:
        """Evaluate a condition, by its name or written out."""
        if isinstance(found, str):
            if found not in self.conditions:
                self.faults.append(f"{place} has no condition {found}.")
                return False
            return self.condition(self.conditions[found], f"condition {found}")
        name, argument = next(iter(found.items()))
        if name == "Fn::Not":
            return not self.condition(argument[0], place)
        if name == "Fn::Equals":
            one, other = (str(self.value(part, place)) for part in argument)
            return one == other
        if name == "Condition":
            return self.condition(argument, place)
        every = [self.condition(part, place) for part in argument]
        return all(every) if name == "Fn::And" else any(every)


def resolve(template: dict[str, Any], **parameters: str) -> Resolved:
    """Expand a template and give every reference an example value.

    Args:
        template: that `load` has returned.
        **parameters: values in place of the examples.

    Raises:
        TemplateError: if SAM refuses it, or a parameter has no value.
    """
    expanded = expand(template)
    resolver = _Resolver(expanded, parameters)
    resolved = Resolved(expanded, faults=resolver.faults)
    for name, resource in expanded.get("Resources", {}).items():
        properties = resolver.value(resource.get("Properties", {}), name)
        resolved.resources[name] = {**resource, "Properties": properties}
        resolved.names[name] = resolver.name_of(name)
        if resource["Type"] in ARNS:
            resolved.arns[name] = resolver.attribute(name, "Arn", name)
    for name, output in expanded.get("Outputs", {}).items():
        resolved.outputs[name] = resolver.value(output["Value"], f"output {name}")
    for name in expanded.get("Conditions", {}):
        resolver.condition(name, f"condition {name}")
    unused = set(expanded.get("Parameters", {})) - resolver.used
    for name in sorted(unused):
        resolver.faults.append(f"The parameter {name} is used nowhere.")
    return resolved


def policies(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the policy documents in a template, with example values, by their place.

    What may assume a role is left out: those documents have no resource.
    """
    resolved = resolve(template)
    found = {}
    for name, role in resolved.of("AWS::IAM::Role").items():
        for policy in role.get("Policies", []):
            found[f"{name}.{policy['PolicyName']}"] = policy["PolicyDocument"]
    for name, policy in resolved.of("AWS::S3::BucketPolicy").items():
        found[name] = policy["PolicyDocument"]
    return found


def page_headers(template: dict[str, Any]) -> dict[str, str]:
    """Return the headers that the distribution sets, by their names in lower case."""
    (policy,) = resolve(template).of("AWS::CloudFront::ResponseHeadersPolicy").values()
    set_ = policy["ResponseHeadersPolicyConfig"]["SecurityHeadersConfig"]
    age = set_["StrictTransportSecurity"]["AccessControlMaxAgeSec"]
    return {
        "content-security-policy": set_["ContentSecurityPolicy"][
            "ContentSecurityPolicy"
        ],
        "x-content-type-options": "nosniff",
        "x-frame-options": set_["FrameOptions"]["FrameOption"],
        "referrer-policy": set_["ReferrerPolicy"]["ReferrerPolicy"],
        "strict-transport-security": f"max-age={age}",
    }


# --- what leads where -----------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """A method of the API.

    Attributes:
        method: in capitals.
        path: as the API has it.
        function: the logical id of what handles it; "" if nothing of ours does.
        needs_key: whether the API asks for the header x-api-key.
    """

    method: str
    path: str
    function: str
    needs_key: bool


def routes(resolved: Resolved) -> list[Route]:
    """Return the routes of all APIs."""
    found = []
    functions = resolved.of("AWS::Lambda::Function")
    arns = {
        f":function:{given.get('FunctionName')}/": name
        for name, given in functions.items()
    }
    for api in resolved.of("AWS::ApiGateway::RestApi").values():
        body = api.get("Body", {})
        schemes = body.get("components", {}).get("securitySchemes", {})
        keys = {
            name
            for name, scheme in schemes.items()
            if (scheme.get("type"), scheme.get("in")) == ("apiKey", "header")
            and scheme.get("name", "").lower() == "x-api-key"
        }
        for path, methods in body.get("paths", {}).items():
            for method, given in methods.items():
                uri = str(given.get("x-amazon-apigateway-integration", {}).get("uri"))
                handlers = [name for arn, name in arns.items() if arn in uri]
                # Each entry of the list is enough alone, all keys of one are needed.
                security = given.get("security", body.get("security", []))
                locked = bool(security) and all(keys & set(each) for each in security)
                handler = handlers[0] if handlers else ""
                found.append(Route(method.upper(), path, handler, locked))
    return found


def behaviours(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a distribution's behaviours; that without a PathPattern is the default."""
    return [*config.get("CacheBehaviors", []), config.get("DefaultCacheBehavior", {})]


def origin_of(config: dict[str, Any], behaviour: dict[str, Any]) -> dict[str, Any]:
    """Return the origin that a behaviour names; {} if there is none."""
    wanted = behaviour.get("TargetOriginId")
    return next((o for o in config.get("Origins", []) if o.get("Id") == wanted), {})


def target_of(resolved: Resolved, origin: dict[str, Any]) -> str:
    """Return the logical id of an origin's bucket or API; "" if it is neither."""
    name, _, service = origin.get("DomainName", "").partition(".")
    kind = "AWS::S3::Bucket"
    if service.startswith("execute-api."):
        kind = "AWS::ApiGateway::RestApi"
    return resolved.id_of(kind, name)


def listed(found: Any) -> list[Any]:
    """Return a list as it is, and a single thing as a list of one."""
    return found if isinstance(found, list) else [found]


def role_of(resolved: Resolved, function: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a function's role; {} if it is not of the template."""
    name = resolved.by_arn(function.get("Role", ""))
    return resolved.of("AWS::IAM::Role").get(name, {})


def allowed(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each action and resource that a policy allows."""
    for statement in listed(document.get("Statement", [])):
        if statement.get("Effect") == "Allow":
            for action in listed(statement.get("Action", "*")):
                for resource in listed(statement.get("Resource", "*")):
                    yield action, resource


def rights_of(
    resolved: Resolved, function: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield what a function may do, and to what."""
    for policy in role_of(resolved, function).get("Policies", []):
        yield from allowed(policy["PolicyDocument"])


def metrics_of(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics that an alarm reads, its own or those of its expression."""
    if "MetricName" in alarm:
        return [alarm]
    asked = [query.get("MetricStat", {}) for query in alarm.get("Metrics", [])]
    return [stat["Metric"] for stat in asked if stat]
