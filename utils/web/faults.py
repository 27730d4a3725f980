"""What is wrong with the web app's template, found before anything is deployed.

Each fault is one that people meet: a route without a key, a distribution that forwards
Host or turns the API's 404 into the page, a usage plan before its stage, an alarm whose
metric has an empty dimension. No account is asked: what a deployment alone can tell
(quotas, rights, names that are taken) is not found here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from utils.web.expansion import (
    ACCOUNT,
    Resolved,
    Route,
    allowed,
    behaviours,
    listed,
    metrics_of,
    origin_of,
    resolve,
    rights_of,
    role_of,
    routes,
    target_of,
)

# The interface: what has to be there, and nothing else.
ROUTES = {
    ("POST", "/api/generate"),
    ("POST", "/api/feedback"),
    ("GET", "/api/health"),
    ("GET", "/api/versions"),
    ("GET", "/api/openapi.json"),
}
ERRORS = {
    (400, "bad_json"),
    (403, "forbidden"),
    (404, "not_found"),
    (413, "too_large"),
    (415, "unsupported_media_type"),
    (422, "invalid"),
    (429, "throttled"),
    (502, "internal"),
    (504, "timeout"),
}
# Without these, a refusal that people do meet has a body or a status of AWS's own.
REFUSALS = {
    "DEFAULT_4XX": (403, "forbidden"),
    "DEFAULT_5XX": (502, "internal"),
    "INTEGRATION_TIMEOUT": (504, "timeout"),
    "INVALID_API_KEY": (403, "forbidden"),
    "MISSING_AUTHENTICATION_TOKEN": (404, "not_found"),
    "QUOTA_EXCEEDED": (429, "throttled"),
    "REQUEST_TOO_LARGE": (413, "too_large"),
    "THROTTLED": (429, "throttled"),
}
# CloudFront's managed policies: its guide, "Use managed cache policies" and "Use
# managed origin request policies".
CACHING_DISABLED = "4135ea2d-6df8-44a3-9df3-4b5a84be39ad"
ALL_VIEWER_EXCEPT_HOST = "b689b0a8-53d0-40ab-baf2-68738e2966ac"
GATEWAY_TIMEOUT = 29  # seconds; a REST API's own, unless a quota was raised
# What the function may do, and to what.
RIGHTS = {
    "sagemaker:InvokeEndpoint": "endpoint",
    "sagemaker:InvokeEndpointWithResponseStream": "endpoint",
    "dynamodb:PutItem": "table",
    "dynamodb:UpdateItem": "table",
    "logs:CreateLogStream": "log",
    "logs:PutLogEvents": "log",
}


# --- what is wrong with it ------------------------------------------------------------


def check(template: dict[str, Any]) -> list[str]:
    """Return what is wrong with the template, a sentence each; [] if nothing is.

    First used in lesson 07, section 10.

    Args:
        template: that `load` has returned.

    Raises:
        TemplateError: if SAM refuses it, so that there is nothing to look at.
    """
    resolved = resolve(template)
    found = list(resolved.faults)
    for look in CHECKS:
        found += look(resolved)
    return list(dict.fromkeys(found))


def _check_parts(resolved: Resolved) -> Iterator[str]:
    for kind in (
        "AWS::CloudFront::Distribution",
        "AWS::ApiGateway::RestApi",
        "AWS::ApiGateway::UsagePlan",
        "AWS::Lambda::Function",
        "AWS::DynamoDB::Table",
        "AWS::S3::Bucket",
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "AWS::CloudWatch::Alarm",
    ):
        if not resolved.of(kind):
            yield f"There is no {kind}."


def _check_distribution(resolved: Resolved) -> Iterator[str]:
    for name, given in resolved.of("AWS::CloudFront::Distribution").items():
        config = given["DistributionConfig"]
        for response in config.get("CustomErrorResponses", []):
            yield (
                f"{name} answers a {response.get('ErrorCode')} with a page of its own, "
                "for the API as well as for the page: the API's errors are lost."
            )
        if not config.get("DefaultRootObject"):
            yield f"{name} has no DefaultRootObject, so that / is a 403."
        to_api = []
        for behaviour in behaviours(config):
            pattern = behaviour.get("PathPattern", "the default behaviour")
            origin = origin_of(config, behaviour)
            target = target_of(resolved, origin)
            if not target:
                yield f"{name}: {pattern} leads to no bucket and no API of ours."
                continue
            if behaviour.get("ViewerProtocolPolicy") == "allow-all":
                yield f"{name}: {pattern} can be asked without TLS."
            if "ResponseHeadersPolicyId" not in behaviour:
                yield f"{name}: {pattern} sets no security headers."
            if resolved.resources[target]["Type"] == "AWS::S3::Bucket":
                if not origin.get("OriginAccessControlId"):
                    yield f"{name} reads {target} without an origin access control."
                continue
            to_api.append(pattern)
            yield from _check_way_to_api(resolved, name, behaviour, origin, target)
        if to_api != ["/api/*"]:
            yield f"{name} does not send /api/*, and nothing else, to the API."


def _check_way_to_api(
    resolved: Resolved,
    name: str,
    behaviour: dict[str, Any],
    origin: dict[str, Any],
    api: str,
) -> Iterator[str]:
    pattern = behaviour.get("PathPattern", "the default behaviour")
    if behaviour.get("CachePolicyId") != CACHING_DISABLED:
        yield f"{name}: {pattern} may cache answers: one user gets another's."
    if behaviour.get("OriginRequestPolicyId") != ALL_VIEWER_EXCEPT_HOST:
        yield (
            f"{name}: {pattern} does not have the origin request policy "
            "AllViewerExceptHostHeader. Others forward Host, by which API Gateway "
            "looks for another API, or drop x-api-key: all is answered with 403."
        )
    if "POST" not in behaviour.get("AllowedMethods", []):
        yield f"{name}: {pattern} lets no POST through."
    stages = {
        f"/{stage['StageName']}"
        for stage in resolved.of("AWS::ApiGateway::Stage").values()
        if resolved.id_of("AWS::ApiGateway::RestApi", stage.get("RestApiId")) == api
    }
    if origin.get("OriginPath", "") not in stages:
        yield (
            f"{name}: the origin of {pattern} has the path "
            f"{origin.get('OriginPath', '')!r}, which is no stage of {api}."
        )
    if origin.get("CustomOriginConfig", {}).get("OriginProtocolPolicy") != "https-only":
        yield f"{name} may ask {api} without TLS."


def _check_bucket(resolved: Resolved) -> Iterator[str]:
    policed = resolved.of("AWS::S3::BucketPolicy").values()
    for name, bucket in resolved.of("AWS::S3::Bucket").items():
        block = bucket.get("PublicAccessBlockConfiguration", {})
        for key in (
            "BlockPublicAcls",
            "BlockPublicPolicy",
            "IgnorePublicAcls",
            "RestrictPublicBuckets",
        ):
            if block.get(key) is not True:
                yield f"The bucket {name} can be made public: {key} is not true."
        if "WebsiteConfiguration" in bucket or "AccessControl" in bucket:
            yield f"The bucket {name} serves a website or has an ACL of its own."
        if not bucket.get("BucketEncryption"):
            yield f"The bucket {name} is not encrypted."
        statements = [
            statement
            for policy in policed
            if resolved.id_of("AWS::S3::Bucket", policy.get("Bucket")) == name
            for statement in listed(policy["PolicyDocument"]["Statement"])
        ]
        tls = [
            statement
            for statement in statements
            if statement["Effect"] == "Deny"
            and str(
                statement.get("Condition", {})
                .get("Bool", {})
                .get("aws:SecureTransport")
            ).lower()
            == "false"
        ]
        if not tls:
            yield f"The bucket {name} can be read without TLS."
        distributions = {
            f"arn:aws:cloudfront::{ACCOUNT}:distribution/{resolved.names[found]}"
            for found in resolved.of("AWS::CloudFront::Distribution")
        }
        for statement in statements:
            if statement["Effect"] != "Allow":
                continue
            if statement.get("Principal") in ("*", {"AWS": "*"}):
                yield f"The policy of the bucket {name} lets everybody in."
            arn = statement.get("Condition", {}).get("StringEquals", {})
            if arn.get("AWS:SourceArn", arn.get("aws:SourceArn")) not in distributions:
                yield f"The policy of the bucket {name} lets in others than CloudFront."


def _check_routes(resolved: Resolved) -> Iterator[str]:
    found = routes(resolved)
    for route in found:
        place = f"{route.method} {route.path}"
        if route.method == "OPTIONS":
            yield f"{place} answers preflight requests: CORS is open."
            continue
        if not route.needs_key:
            yield f"{place} can be asked without an API key."
        if not route.function:
            yield f"{place} has no function of the template that handles it."
        elif not _may_call(resolved, route):
            yield f"{place}: API Gateway is not allowed to call {route.function}."
        if (route.method, route.path) not in ROUTES:
            yield f"{place} is not part of the interface."
    for method, path in sorted(
        ROUTES - {(route.method, route.path) for route in found}
    ):
        yield f"{method} {path} has no route."


def _may_call(resolved: Resolved, route: Route) -> bool:
    """Say whether a permission lets API Gateway call a route's function for it."""
    return any(
        resolved.id_of("AWS::Lambda::Function", given.get("FunctionName"))
        == route.function
        and given.get("Principal") == "apigateway.amazonaws.com"
        and given.get("SourceArn", "").endswith(f"/{route.method}{route.path}")
        for given in resolved.of("AWS::Lambda::Permission").values()
    )


def _check_refusals(resolved: Resolved) -> Iterator[str]:
    """See that what the gateway refuses has the interface's error body."""
    for name, api in resolved.of("AWS::ApiGateway::RestApi").items():
        given = api["Body"].get("x-amazon-apigateway-gateway-responses", {})
        for kind in sorted(set(REFUSALS) - set(given)):
            yield f"{name} has no GatewayResponse {kind}: AWS's own body is sent."
        for kind, response in given.items():
            yield from _check_refusal(f"{name}, GatewayResponse {kind}", kind, response)


def _check_refusal(place: str, kind: str, response: dict[str, Any]) -> Iterator[str]:
    text = response.get("responseTemplates", {}).get("application/json", "")
    try:
        error = json.loads(text)["error"]
        status = int(response["statusCode"])
        shape = (error["request_id"], error["fields"], bool(error["message"]))
        pair = (status, error["code"])
    except (ValueError, KeyError, TypeError):
        yield f"{place}: its status or body is not that of the interface's errors."
        return
    if shape != ("$context.requestId", [], True):
        yield f"{place}: request_id, fields or message are not as the interface says."
    if pair not in ERRORS or pair != REFUSALS.get(kind, pair):
        yield f"{place}: {status} {error['code']} is not what the interface says."
    headers = {
        key.rpartition(".")[2].lower(): value
        for key, value in response.get("responseParameters", {}).items()
    }
    if status == 429 and "retry-after" not in headers:
        yield f"{place} does not say when to try again (Retry-After)."
    if headers.get("cache-control") != "'no-store'":
        yield f"{place} may be cached."
    for header in headers:
        if header.startswith("access-control-"):
            yield f"{place} sets {header}: CORS is open."


def _check_plan(resolved: Resolved) -> Iterator[str]:
    stages = resolved.of("AWS::ApiGateway::Stage")
    plans = resolved.of("AWS::ApiGateway::UsagePlan")
    for name, stage in stages.items():
        covering = [
            plan
            for plan, given in plans.items()
            for one in given.get("ApiStages", [])
            if one.get("Stage") == stage["StageName"]
            and one.get("ApiId") == stage["RestApiId"]
        ]
        if not covering:
            yield f"No usage plan covers the stage {name}: its keys have no limits."
        for plan in covering:
            if name not in _before(resolved.expanded, plan):
                yield (
                    f"{plan} is made before the stage {name} that it names, and fails. "
                    "Refer to the stage, or add DependsOn."
                )
    for name, plan in plans.items():
        throttle, quota = plan.get("Throttle", {}), plan.get("Quota", {})
        if not {"RateLimit", "BurstLimit"} <= set(throttle) or "Limit" not in quota:
            yield f"The usage plan {name} lacks a rate, a burst or a quota."
        keys = [
            given
            for given in resolved.of("AWS::ApiGateway::UsagePlanKey").values()
            if resolved.id_of("AWS::ApiGateway::UsagePlan", given["UsagePlanId"])
            == name
            and resolved.id_of("AWS::ApiGateway::ApiKey", given["KeyId"])
        ]
        if not keys:
            yield f"The usage plan {name} has no key: nobody gets in."
    for name, key in resolved.of("AWS::ApiGateway::ApiKey").items():
        if "Value" in key:
            yield f"The key {name} has its value in the template, for all to read."


def _before(expanded: dict[str, Any], name: str) -> set[str]:
    """Return what is made before a resource, however many steps away."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        resource = expanded["Resources"].get(waiting.pop(), {})
        text = json.dumps(resource.get("Properties", {}))
        named = set(listed(resource.get("DependsOn", [])))
        for other in expanded["Resources"]:
            quoted = re.escape(other)
            if re.search(
                rf'"Ref": "{quoted}"|"Fn::GetAtt": \["{quoted}"|\${{{quoted}[.}}]', text
            ):
                named.add(other)
        waiting += sorted(named - found)
        found |= named
    return found


def _check_function(resolved: Resolved) -> Iterator[str]:
    logs = resolved.of("AWS::Logs::LogGroup")
    for name, given in resolved.of("AWS::Lambda::Function").items():
        if given.get("Timeout", 3) >= GATEWAY_TIMEOUT:
            yield f"{name} may run longer than the gateway waits ({GATEWAY_TIMEOUT} s)."
        if "ReservedConcurrentExecutions" not in given:
            yield f"{name} has no cap on how many calls run at a time."
        if not role_of(resolved, given):
            yield f"{name} has no role of the template."
        if not _log_of(resolved, given):
            yield (
                f"The log of {name} is not of the template: AWS makes one that is kept "
                "for ever and outlives the stack."
            )
    for name, log in logs.items():
        if "RetentionInDays" not in log:
            yield f"The log group {name} has no RetentionInDays: it is kept for ever."
    for name, resource in resolved.resources.items():
        if resource.get("DeletionPolicy", "Delete") != "Delete":
            yield f"{name} outlives the stack: {resource['DeletionPolicy']}."


def _check_rights(resolved: Resolved) -> Iterator[str]:
    for name, role in resolved.of("AWS::IAM::Role").items():
        for arn in role.get("ManagedPolicyArns", []):
            yield f"{name} has the managed policy {arn}, which grants more than needed."
        for policy in role.get("Policies", []):
            for action, resource in allowed(policy["PolicyDocument"]):
                if "*" in action:
                    yield f"{name} may do {action}: name each action."
                # The ARN of a log group ends with ":*", which stands for its streams.
                if "*" in resource and not resolved.by_arn(resource):
                    yield f"{name} may {action} on {resource}: name the one ARN."
                elif action not in RIGHTS and "*" not in action:
                    yield f"{name} may {action}, which the app does not need."
    for name, given in resolved.of("AWS::Lambda::Function").items():
        variables = given.get("Environment", {}).get("Variables", {})
        endpoint = variables.get("WEB_ENDPOINT", "")
        table = resolved.id_of("AWS::DynamoDB::Table", variables.get("WEB_TABLE"))
        expected = {
            "endpoint": f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/" + endpoint,
            "table": resolved.arns.get(table, ""),
            "log": resolved.arns.get(_log_of(resolved, given), ""),
        }
        had = list(rights_of(resolved, given))
        for action, thing in RIGHTS.items():
            wanted = (action, expected[thing])
            if wanted not in had:
                yield f"{name} may not {action} on its {thing}."
            for action_, resource in had:
                if action_ == action and resource != expected[thing]:
                    yield f"{name} may {action} on {resource}, not its {thing}."
        for target, scaled in _scaled(resolved):
            if endpoint != scaled:
                yield f"{target} scales {scaled!r}, while {name} asks {endpoint!r}."


def _log_of(resolved: Resolved, function: dict[str, Any]) -> str:
    """Return the logical id of a function's log group; "" if the template has none."""
    name = function.get("LoggingConfig", {}).get("LogGroup")
    own = f"/aws/lambda/{function.get('FunctionName')}"
    return resolved.id_of("AWS::Logs::LogGroup", name or own)


def _scaled(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Yield each scalable target and the endpoint that it names."""
    for name, target in resolved.of(
        "AWS::ApplicationAutoScaling::ScalableTarget"
    ).items():
        parts = str(target.get("ResourceId", "")).split("/")
        yield name, parts[1] if len(parts) > 1 else ""


def _check_scaling(resolved: Resolved) -> Iterator[str]:
    targets = resolved.of("AWS::ApplicationAutoScaling::ScalableTarget")
    policed = {
        resolved.id_of(
            "AWS::ApplicationAutoScaling::ScalableTarget",
            policy.get("ScalingTargetId"),
        )
        for policy in resolved.of("AWS::ApplicationAutoScaling::ScalingPolicy").values()
    }
    for name, target in targets.items():
        resource = str(target.get("ResourceId", ""))
        if not re.fullmatch(r"endpoint/[^/]+/variant/[^/]+", resource):
            yield f"{name} names no variant of an endpoint: {resource!r}."
        if target.get("ScalableDimension") != "sagemaker:variant:DesiredInstanceCount":
            yield f"{name} does not scale a variant's instances."
        least, most = (int(target.get(f"{end}Capacity", 0)) for end in ("Min", "Max"))
        if not 1 <= least <= most:
            yield f"{name} lets the variant have {least} to {most} machines."
        if name not in policed:
            yield f"{name} has no scaling policy: nothing ever changes."


def _check_alarms(resolved: Resolved) -> Iterator[str]:
    alarms = resolved.of("AWS::CloudWatch::Alarm")
    for name, alarm in alarms.items():
        if alarm.get("TreatMissingData") != "notBreaching":
            yield f"The alarm {name} is undecided whenever nobody asks anything."
        for metric in metrics_of(alarm):
            yield from _check_metric(f"The alarm {name}", metric)
    for name, board in resolved.of("AWS::CloudWatch::Dashboard").items():
        try:
            body = json.loads(board["DashboardBody"])
        except ValueError as error:
            yield f"The dashboard {name} is no JSON: {error}."
            continue
        for widget in body["widgets"]:
            properties = widget["properties"]
            shown = set(properties.get("alarms", []))
            missing = {one for one in alarms if resolved.arns[one] not in shown}
            if widget["type"] == "alarm" and missing:
                yield f"The dashboard {name} leaves out {', '.join(sorted(missing))}."
            for row in properties.get("metrics", []):
                texts = [part for part in row if not isinstance(part, dict)]
                if texts:
                    pairs = zip(texts[2::2], texts[3::2], strict=False)
                    metric = {
                        "Namespace": texts[0],
                        "MetricName": texts[1],
                        "Dimensions": [{"Name": k, "Value": v} for k, v in pairs],
                    }
                    yield from _check_metric(f"The dashboard {name}", metric)


def _check_metric(place: str, metric: dict[str, Any]) -> Iterator[str]:
    given = {one["Name"]: one.get("Value") for one in metric.get("Dimensions", [])}
    what = f"{metric.get('Namespace')} {metric.get('MetricName')}"
    for name, value in given.items():
        if not str(value or "").strip():
            yield f"{place}: the dimension {name} of {what} is empty."
    namespace = metric.get("Namespace", "")
    expected = OWN_DIMENSIONS.get(
        (namespace, metric.get("MetricName", "")), DIMENSIONS.get(namespace)
    )
    if expected is not None and set(given) != expected:
        yield (
            f"{place}: {what} has the dimensions {sorted(given)}, and is published "
            f"with {sorted(expected)}: it would never see a value."
        )


# Whose metrics have which dimensions; CloudWatch finds nothing under others.
DIMENSIONS = {
    "AWS/ApiGateway": {"ApiName", "Stage"},
    "AWS/Lambda": {"FunctionName"},
    "AWS/SageMaker": {"EndpointName", "VariantName"},
    "/aws/sagemaker/Endpoints": {"EndpointName", "VariantName"},
    "Course/Web": {"service", "version"},
}
# Those of a metric that is sent in another way than its namespace's others.
OWN_DIMENSIONS = {("Course/Web", "QuestionDistance"): {"service"}}
CHECKS: tuple[Callable[[Resolved], Iterator[str]], ...] = (
    _check_parts,
    _check_distribution,
    _check_bucket,
    _check_routes,
    _check_refusals,
    _check_plan,
    _check_function,
    _check_rights,
    _check_scaling,
    _check_alarms,
)
