"""The template holds together from page to endpoint, and each planted fault is found.

About 20 seconds of a processor, a third of them cfn-lint's.
"""

from __future__ import annotations

import copy
import json
import re
import string
from collections.abc import Callable
from typing import Any

import pytest

from utils.course import ROOT
from utils.web import expansion, faults, graph
from utils.web.expansion import TEMPLATE, TemplateError

# parliament asks for pkg_resources when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:pkg_resources:UserWarning")
Template = dict[str, Any]
DATA = ROOT / "data" / "aws"


@pytest.fixture(scope="module")
def template() -> Template:
    return expansion.load()


@pytest.fixture(scope="module")
def drawn(template) -> graph.Architecture:
    return graph.architecture(template)


# --- the walk -------------------------------------------------------------------------


def test_the_way_leads_from_the_browser_to_the_endpoint_and_the_table(drawn) -> None:
    ways = {node.kind: drawn.path("browser", node.id) for node in drawn.nodes}
    to_function = ["browser", "Distribution", "Api", "Function"]
    assert ways["endpoint"] == [*to_function, "endpoint"]
    assert ways["table"] == [*to_function, "Table"]
    assert ways["bucket"] == ["browser", "Distribution", "Page"]
    assert ways["dashboard"], "alarms see what is on the way"
    # Nobody is sent to what limits and scales.
    assert ways["plan"] == ways["scaling"] == []


def test_edges_say_for_what(drawn) -> None:
    labels = {(edge.source, edge.target): edge.label for edge in drawn.edges}
    assert labels["Distribution", "Api"] == "/api/*"
    assert labels["Distribution", "Page"] == "everything else"
    assert "sagemaker:InvokeEndpoint" in labels["Function", "endpoint"]
    assert labels["Function", "Table"] == "dynamodb:PutItem, dynamodb:UpdateItem"
    assert labels["ScalableTarget", "endpoint"] == "variant AllTraffic"
    assert labels["Api", "Function"] == "5 routes"


def test_nodes_have_names_for_people_and_edges_have_two_ends(drawn) -> None:
    ids = [node.id for node in drawn.nodes]
    assert len(ids) == len(set(ids)) == 12
    assert all(node.name for node in drawn.nodes)
    assert {end for edge in drawn.edges for end in (edge.source, edge.target)} <= {*ids}
    details = {node.kind: node.detail for node in drawn.nodes}
    assert details["api"] == "5 routes, 5 of them need a key"
    assert details["plan"] == "5 a second, 10 at once, 2000 a day"
    assert details["scaling"] == "1 to 2 machines"


def test_a_tie_that_the_template_lacks_is_not_drawn(template) -> None:
    broken = copy.deepcopy(template)
    statements = policy(broken)
    statements[0]["Resource"] = "arn:aws:sagemaker:us-east-1:123456789012:model/other"
    drawn = graph.architecture(broken)
    assert drawn.path("browser", "endpoint") == []
    assert drawn.path("browser", "Table")


# --- what is right with it ------------------------------------------------------------


def test_nothing_is_wrong_with_it(template) -> None:
    assert faults.check(template) == []


@pytest.mark.parametrize(
    "given, path, expected",
    [
        ({"Concurrency": "0"}, ("Function", "ReservedConcurrentExecutions"), None),
        ({"Concurrency": "7"}, ("Function", "ReservedConcurrentExecutions"), "7"),
        ({"AlarmTopic": "arn:topic"}, ("Cost", "AlarmActions"), ["arn:topic"]),
        ({"AlarmTopic": ""}, ("Cost", "AlarmActions"), []),
        ({"CodeVersion": "v"}, ("Function", "Code", "S3ObjectVersion"), "v"),
        ({"CodeVersion": ""}, ("Function", "Code", "S3ObjectVersion"), None),
        (
            {"PermissionsBoundary": "arn"},
            ("FunctionRole", "PermissionsBoundary"),
            "arn",
        ),
        ({"PermissionsBoundary": ""}, ("FunctionRole", "PermissionsBoundary"), None),
        ({"VariantName": "b"}, ("ScalableTarget", "ResourceId"), "/variant/b"),
    ],
)
def test_parameters_reach_what_they_are_for(template, given, path, expected) -> None:
    found = expansion.resolve(template, **given)
    value: Any = found.resources[path[0]]["Properties"]
    for key in path[1:]:
        value = value.get(key)
    if isinstance(expected, str) and expected.startswith("/"):
        assert value.endswith(expected)
    else:
        assert value == expected
    assert not found.faults


def test_outputs_and_parameters_are_those_of_the_contract(template) -> None:
    found = expansion.resolve(template)
    assert found.outputs.keys() == {
        *("PageUrl", "ApiUrl", "ApiKeyId", "BucketName", "TableName", "FunctionName")
    }
    assert found.outputs["PageUrl"].startswith("https://")
    assert found.outputs["ApiUrl"].endswith(".amazonaws.com/v1")
    assert template["Parameters"].keys() >= {
        *("EndpointName", "VariantName", "Versions", "CodeBucket", "CodeKey"),
        *("CodeVersion", "MinInstances", "MaxInstances", "Rate", "Burst", "Quota"),
        *("HourlyPrice", "AlarmLatencyMs", "KeepTexts"),
    }


def test_what_lambda_throttles_is_no_traffic_without_users(template) -> None:
    alarm = expansion.resolve(template).of("AWS::CloudWatch::Alarm")
    (expression, *metrics) = alarm["TrafficWithoutUsers"]["Metrics"]
    sources = {one["Id"]: one["MetricStat"]["Metric"]["MetricName"] for one in metrics}
    sums = {"Count": 300, "Invocations": 120, "Throttles": 150}
    values = {key: sums[name] for key, name in sources.items()}
    values["FILL"] = lambda value, _: value
    assert eval(expression["Expression"], {}, values) == 30
    assert not any(one["ReturnData"] for one in metrics)


def test_the_drift_of_questions_is_each_stacks_own(template) -> None:
    found = expansion.resolve(template)
    name = found.of("AWS::CloudWatch::Dashboard")["Dashboard"]["DashboardName"]
    alarm = found.of("AWS::CloudWatch::Alarm")["QuestionDrift"]
    assert alarm["Dimensions"] == [{"Name": "service", "Value": name}]


def test_the_page_gets_strict_headers(template) -> None:
    headers = expansion.page_headers(template)
    policy = dict(
        part.strip().split(" ", 1)
        for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["strict-transport-security"].startswith("max-age=3")


def test_each_refusal_of_the_gateway_is_an_error_of_the_interface(template) -> None:
    """Every type that API Gateway has falls under one that is given."""
    api = expansion.resolve(template).of("AWS::ApiGateway::RestApi")["Api"]
    given = api["Body"]["x-amazon-apigateway-gateway-responses"]
    # API Gateway's Developer Guide, "Gateway response types".
    fallen_back = {
        *("ACCESS_DENIED", "EXPIRED_TOKEN", "INVALID_SIGNATURE", "UNAUTHORIZED"),
        *("WAF_FILTERED", "API_CONFIGURATION_ERROR", "AUTHORIZER_FAILURE"),
        *("AUTHORIZER_CONFIGURATION_ERROR", "INTEGRATION_FAILURE"),
    }
    assert not fallen_back & given.keys()
    assert len(given) == 12
    for response in given.values():
        body = response["responseTemplates"]["application/json"]
        error = json.loads(body)["error"]
        assert list(error) == ["code", "message", "request_id", "fields"]


# --- planted faults -------------------------------------------------------------------


def of(template: Template, name: str) -> dict[str, Any]:
    return template["Resources"][name]["Properties"]


def policy(template: Template) -> list[dict[str, Any]]:
    return of(template, "FunctionRole")["Policies"][0]["PolicyDocument"]["Statement"]


def distribution(template: Template) -> dict[str, Any]:
    return of(template, "Distribution")["DistributionConfig"]


def answered(code: int, status: int, page: str) -> Callable[[Template], object]:
    """Let the distribution answer an error with a page."""
    how = {"ErrorCode": code, "ResponseCode": status, "ResponsePagePath": page}
    return lambda template: distribution(template).update(CustomErrorResponses=[how])


def to_api(template: Template) -> dict[str, Any]:
    return distribution(template)["CacheBehaviors"][0]


def gone(name: str) -> Callable[[Template], object]:
    return lambda t: t["Resources"].pop(name)


def without(name: str, *keys: str) -> Callable[[Template], object]:
    def remove(template: Template) -> None:
        place = of(template, name)
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return remove


def with_(name: str, *path: Any) -> Callable[[Template], object]:
    """Set what lies under the keys of `path`, the last of which is the value."""

    def change(template: Template) -> None:
        place: Any = of(template, name)
        *keys, last, value = path
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def more_right(**statement: Any) -> Callable[[Template], object]:
    return lambda t: policy(t).append({"Effect": "Allow", **statement})


def route(template: Template, name: str) -> dict[str, Any]:
    return of(template, "Function")["Events"][name]["Properties"]


ERROR = json.dumps({"error": {"code": "x"}})
ALARM_METRIC = ("Metrics", 1, "MetricStat", "Metric", "Dimensions")
PLANTED: dict[str, tuple[Callable[[Template], object], str]] = {
    # keys and routes
    "a route without a key": (
        lambda t: route(t, "Health").update(Auth={"ApiKeyRequired": False}),
        "GET /api/health can be asked without an API key",
    ),
    "no route with a key": (
        without("Api", "Auth"),
        "POST /api/generate can be asked without an API key",
    ),
    "a route that is missing": (
        lambda t: of(t, "Function")["Events"].pop("Feedback"),
        "POST /api/feedback has no route",
    ),
    "a route for whatever comes": (
        lambda t: route(t, "Generate").update(Method="ANY", Path="/{proxy+}"),
        "is not part of the interface",
    ),
    "a route under another path": (
        lambda t: route(t, "Versions").update(Path="/versions"),
        "GET /api/versions has no route",
    ),
    "CORS open by a setting": (
        with_("Api", "Cors", "'*'"),
        "CORS is open",
    ),
    "CORS open on what is refused": (
        lambda t: of(t, "Api")["GatewayResponses"]["THROTTLED"]["ResponseParameters"][
            "Headers"
        ].update({"Access-Control-Allow-Origin": "'*'"}),
        "CORS is open",
    ),
    "a key in the template": (
        with_("ApiKey", "Value", "secret-secret-secret-secret"),
        "has its value in the template",
    ),
    # what the gateway refuses
    "no body for a wrong key": (
        without("Api", "GatewayResponses", "INVALID_API_KEY"),
        "no GatewayResponse INVALID_API_KEY",
    ),
    "no body for the rest": (
        without("Api", "GatewayResponses", "DEFAULT_5XX"),
        "no GatewayResponse DEFAULT_5XX",
    ),
    "a body of another shape": (
        with_(
            *("Api", "GatewayResponses", "THROTTLED", "ResponseTemplates"),
            {"application/json": ERROR},
        ),
        "THROTTLED: its status or body",
    ),
    "a status that is not documented": (
        with_("Api", "GatewayResponses", "DEFAULT_5XX", "StatusCode", 500),
        "500 internal is not what the interface says",
    ),
    "no word on when to try again": (
        without(
            *("Api", "GatewayResponses", "QUOTA_EXCEEDED"),
            *("ResponseParameters", "Headers", "Retry-After"),
        ),
        "does not say when to try again",
    ),
    # the usage plan
    "a plan before its stage": (
        with_("UsagePlan", "ApiStages", 0, "Stage", "v1"),
        "UsagePlan is made before the stage",
    ),
    "a plan of another stage": (
        with_("UsagePlan", "ApiStages", 0, "Stage", "v2"),
        "No usage plan covers the stage",
    ),
    "a plan without a quota": (without("UsagePlan", "Quota"), "lacks a rate"),
    "a plan without a burst": (
        without("UsagePlan", "Throttle", "BurstLimit"),
        "lacks a rate, a burst",
    ),
    "a plan without a key": (gone("UsagePlanKey"), "has no key"),
    # the distribution
    "the API's 403 becomes the page": (
        answered(403, 200, "/index.html"),
        "answers a 403 with a page of its own",
    ),
    "the API's 404 becomes another 404": (
        answered(404, 404, "/404.html"),
        "answers a 404 with a page of its own",
    ),
    "Host forwarded": (
        lambda t: to_api(t).update(
            OriginRequestPolicyId="216adef6-5c7f-47e4-b989-5492eafa07d3"
        ),
        "AllViewerExceptHostHeader",
    ),
    "the key dropped": (
        lambda t: to_api(t).pop("OriginRequestPolicyId"),
        "AllViewerExceptHostHeader",
    ),
    "answers cached": (
        lambda t: to_api(t).update(
            CachePolicyId="658327ea-f89d-4fab-a63d-7e88639e58f6"
        ),
        "may cache answers",
    ),
    "no POST": (
        lambda t: to_api(t).update(AllowedMethods=["GET", "HEAD"]),
        "lets no POST through",
    ),
    "a path that is no stage": (
        lambda t: distribution(t)["Origins"][1].update(OriginPath="/prod"),
        "which is no stage of Api",
    ),
    "an origin that is none": (
        lambda t: to_api(t).update(TargetOriginId="elsewhere"),
        "leads to no bucket and no API",
    ),
    "everything to the API": (
        lambda t: to_api(t).update(PathPattern="*"),
        "does not send /api/*, and nothing else",
    ),
    "no behaviour for the API": (
        lambda t: distribution(t).pop("CacheBehaviors"),
        "does not send /api/*",
    ),
    "no TLS": (
        lambda t: to_api(t).update(ViewerProtocolPolicy="allow-all"),
        "can be asked without TLS",
    ),
    "no security headers": (
        lambda t: distribution(t)["DefaultCacheBehavior"].pop(
            "ResponseHeadersPolicyId"
        ),
        "sets no security headers",
    ),
    "no page at /": (
        lambda t: distribution(t).pop("DefaultRootObject"),
        "no DefaultRootObject",
    ),
    # the bucket
    "a bucket that can be made public": (
        with_("Page", "PublicAccessBlockConfiguration", "BlockPublicPolicy", False),
        "can be made public: BlockPublicPolicy",
    ),
    "a bucket without any block": (
        without("Page", "PublicAccessBlockConfiguration"),
        "can be made public: RestrictPublicBuckets",
    ),
    "a bucket for everybody": (
        with_("PagePolicy", "PolicyDocument", "Statement", 0, "Principal", "*"),
        "lets everybody in",
    ),
    "a bucket for every distribution": (
        lambda t: of(t, "PagePolicy")["PolicyDocument"]["Statement"][0].pop(
            "Condition"
        ),
        "lets in others than CloudFront",
    ),
    "a bucket without TLS": (
        lambda t: of(t, "PagePolicy")["PolicyDocument"]["Statement"].pop(),
        "can be read without TLS",
    ),
    "a bucket that is a website": (
        with_("Page", "WebsiteConfiguration", {"IndexDocument": "index.html"}),
        "serves a website",
    ),
    "a bucket that is kept": (
        lambda t: t["Resources"]["Page"].update(DeletionPolicy="Retain"),
        "Page outlives the stack",
    ),
    "a table that is kept": (
        lambda t: t["Resources"]["Table"].update(DeletionPolicy="Snapshot"),
        "Table outlives the stack",
    ),
    "a distribution without access control": (
        lambda t: distribution(t)["Origins"][0].pop("OriginAccessControlId"),
        "without an origin access control",
    ),
    # the function and its rights
    "every endpoint": (
        lambda t: policy(t)[0].update(Resource="*"),
        "on *: name the one ARN",
    ),
    "every endpoint of a name": (
        lambda t: policy(t)[0].update(
            Resource={
                "Fn::Sub": "arn:aws:sagemaker:${AWS::Region}:${AWS::AccountId}"
                ":endpoint/course-*"
            }
        ),
        "endpoint/course-*: name the one ARN",
    ),
    "another endpoint": (
        lambda t: policy(t)[0].update(
            Resource="arn:aws:sagemaker:us-east-1:123456789012:endpoint/other"
        ),
        "may not sagemaker:InvokeEndpoint on its endpoint",
    ),
    "every action": (
        more_right(Action="dynamodb:*", Resource={"Fn::GetAtt": ["Table", "Arn"]}),
        "name each action",
    ),
    "an action too many": (
        more_right(Action="dynamodb:Scan", Resource={"Fn::GetAtt": ["Table", "Arn"]}),
        "which the app does not need",
    ),
    "every log": (
        lambda t: policy(t)[2].update(Resource="arn:aws:logs:*:*:*"),
        "name the one ARN",
    ),
    "a managed policy": (
        with_("FunctionRole", "ManagedPolicyArns", ["arn:aws:iam::aws:policy/Admin"]),
        "has the managed policy",
    ),
    "SAM's own role": (
        lambda t: (gone("FunctionRole")(t), without("Function", "Role")(t)),
        "has the managed policy",
    ),
    "longer than the gateway waits": (
        with_("Function", "Timeout", 60),
        "longer than the gateway waits",
    ),
    "no cap": (
        without("Function", "ReservedConcurrentExecutions"),
        "no cap on how many calls",
    ),
    "a log for ever": (without("FunctionLog", "RetentionInDays"), "kept for ever"),
    "a log of nobody": (
        with_("Function", "LoggingConfig", {"LogGroup": "/somewhere/else"}),
        "The log of Function is not of the template",
    ),
    # scaling
    "another variant's endpoint": (
        with_("ScalableTarget", "ResourceId", "endpoint/other/variant/AllTraffic"),
        "scales 'other'",
    ),
    "no variant": (
        with_("ScalableTarget", "ResourceId", {"Fn::Sub": "endpoint/${EndpointName}"}),
        "names no variant",
    ),
    "no policy that scales": (gone("ScalingPolicy"), "nothing ever changes"),
    "fewer at most than at least": (
        with_("ScalableTarget", "MaxCapacity", 0),
        "1 to 0 machines",
    ),
    # alarms
    "an empty dimension": (
        with_("FunctionErrors", "Dimensions", 0, "Value", ""),
        "the dimension FunctionName of AWS/Lambda Errors is empty",
    ),
    "an empty dimension in an expression": (
        with_("Cost", *ALARM_METRIC, 1, "Value", ""),
        "the dimension Stage of AWS/ApiGateway Count is empty",
    ),
    "a dimension that the metric lacks": (
        with_("QuestionDrift", "Dimensions", 0, "Name", "variant"),
        "would never see a value",
    ),
    "a dimension too few": (
        lambda t: of(t, "SlowAnswers")["Dimensions"].pop(),
        "would never see a value",
    ),
    "an alarm that stays undecided": (
        without("Unavailable", "TreatMissingData"),
        "undecided",
    ),
    "a metric of a version without it": (
        with_("QuestionDrift", "MetricName", "Latency"),
        "has the dimensions ['service'], and is published with ['service', 'version']",
    ),
    "a distance by version": (
        lambda t: of(t, "QuestionDrift")["Dimensions"].append(
            {"Name": "version", "Value": "tuned"}
        ),
        "and is published with ['service']",
    ),
    "a dashboard that is no JSON": (
        with_("Dashboard", "DashboardBody", "{"),
        "is no JSON",
    ),
    "a dashboard without an alarm": (
        lambda t: of(t, "Dashboard")["DashboardBody"].update(
            {
                "Fn::Sub": of(t, "Dashboard")["DashboardBody"]["Fn::Sub"].replace(
                    ', "${Cost.Arn}"', ""
                )
            }
        ),
        "leaves out Cost",
    ),
    # references
    "a reference to nothing": (
        with_("UsagePlanKey", "KeyId", {"Ref": "Key"}),
        "UsagePlanKey.KeyId refers to Key",
    ),
    "an attribute of nothing": (
        with_("Function", "Environment", "Variables", "WEB_TABLE", {"Ref": "Tabel"}),
        "refers to Tabel",
    ),
    "a text with nothing in it": (
        with_("ScalingPolicy", "PolicyName", {"Fn::Sub": "${Stack}-x"}),
        "refers to Stack",
    ),
    "an output of nothing": (
        lambda t: t["Outputs"]["TableName"].update(Value={"Fn::GetAtt": "Tabel.Arn"}),
        "output TableName refers to Tabel",
    ),
    "a condition that is none": (
        with_(
            *("Function", "ReservedConcurrentExecutions"),
            {"Fn::If": ["HasCop", 1, 2]},
        ),
        "has no condition HasCop",
    ),
    "a parameter for nothing": (
        lambda t: t["Parameters"].update(Unused={"Type": "String", "Default": ""}),
        "The parameter Unused is used nowhere",
    ),
    # whole parts
    "no table": (gone("Table"), "There is no AWS::DynamoDB::Table"),
    "no alarms": (
        lambda t: [
            t["Resources"].pop(name)
            for name, given in list(t["Resources"].items())
            if given["Type"] in ("AWS::CloudWatch::Alarm", "AWS::CloudWatch::Dashboard")
        ],
        "There is no AWS::CloudWatch::Alarm",
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_each_planted_fault_is_found(template, kind) -> None:
    plant, expected = PLANTED[kind]
    broken = copy.deepcopy(template)
    plant(broken)
    assert broken != template
    found = faults.check(broken)
    assert any(expected in fault for fault in found), found


def test_a_plan_may_also_wait_by_depends_on(template) -> None:
    changed = copy.deepcopy(template)
    of(changed, "UsagePlan")["ApiStages"][0]["Stage"] = "v1"
    changed["Resources"]["UsagePlan"]["DependsOn"] = "Apiv1Stage"
    assert faults.check(changed) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("Resources: {A: 1, A: 2}", "cannot be read"),
        ("Resources: [", "cannot be read"),
    ],
)
def test_what_is_no_template_is_said_to_be_none(tmp_path, text, message) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(text)
    with pytest.raises(TemplateError, match=message):
        expansion.load(file)


@pytest.mark.parametrize(
    "plant",
    [
        lambda t: route(t, "Health").update(RestApiId={"Ref": "Nope"}),
        lambda t: of(t, "Function").pop("CodeUri"),
        lambda t: of(t, "Api").pop("StageName"),
    ],
)
def test_what_sam_refuses_is_told_with_its_reason(template, plant) -> None:
    broken = copy.deepcopy(template)
    plant(broken)
    with pytest.raises(TemplateError, match="SAM refuses the template: .+"):
        faults.check(broken)


# --- cfn-lint and parliament ----------------------------------------------------------


def test_cfn_lint_finds_nothing(template) -> None:
    from cfnlint.api import ManualArgs, lint

    def found(text: str) -> list[str]:
        arguments = ManualArgs(regions=["us-east-1", "eu-central-1"])
        return [str(match) for match in lint(text, config=arguments)]

    assert found(TEMPLATE.read_text("utf-8")) == []
    broken = copy.deepcopy(template)
    of(broken, "Table")["BillingMode"] = "PAY"
    distribution(broken)["HttpVersion"] = "http9"
    text = " ".join(found(json.dumps(broken)))
    assert "'PAY'" in text and "'http9'" in text


# What AWS narrows down to no resource, or what only reads to find all that bills.
STARS = {
    "application-autoscaling:DescribeScalingPolicies",
    "cloudfront:CreateOriginAccessControl",
    "cloudformation:DescribeStacks",
    "cloudwatch:DescribeAlarms",
    "sagemaker:DescribeEndpoint",
    "sagemaker:DescribeEndpointConfig",
    "sagemaker:DescribeProcessingJob",
    "sagemaker:DescribeTrainingJob",
    "sagemaker:DescribeTransformJob",
    "sagemaker:ListModelPackages",
    "sagemaker:ListPipelineExecutions",
}
# Of later date than parliament's list of actions; test_aws holds them to botocore's.
NEWER = {"sagemaker:DeleteProcessingJob", "sagemaker:DeleteTrainingJob"}
# Its account is "aws": AWS's own transform, by SAM's Developer Guide.
TRANSFORM = ":aws:transform/Serverless-2016-10-31"


def findings(document: Any) -> list[str]:
    """What parliament has against a policy, but for what is meant to be so."""
    from parliament import analyze_policy_string

    found = []
    for finding in analyze_policy_string(json.dumps(document)).findings:
        if finding.issue == "RESOURCE_STAR" and set(finding.detail) <= STARS:
            continue
        if finding.issue == "UNKNOWN_ACTION" and finding.detail.split()[-1] in NEWER:
            continue
        if finding.issue == "INVALID_ARN" and TRANSFORM in str(finding.location):
            continue
        found.append(f"{finding.issue}: {finding.detail} {finding.location}")
    return found


def filled_in(name: str) -> dict[str, Any]:
    text = string.Template((DATA / name).read_text("utf-8")).substitute(
        Partition="aws",
        Region="us-east-1",
        Account="123456789012",
        Bucket="bucket",
        Role="arn:aws:iam::123456789012:role/execution",
    )
    # parliament takes the colon of a policy variable for one of the ARN.
    return json.loads(re.sub(r"\$\{sagemaker:\w+\}", "x", text))


POLICIES = sorted(file.name for file in DATA.glob("*_policy.json"))


@pytest.mark.parametrize("name", POLICIES)
def test_parliament_has_nothing_against_the_policies_of_people(name) -> None:
    assert findings(filled_in(name)) == []


def test_parliament_has_nothing_against_the_templates_policies(template) -> None:
    documents = expansion.policies(template)
    assert documents.keys() == {"FunctionRole.ask-and-record", "PagePolicy"}
    for document in documents.values():
        assert findings(document) == []


@pytest.mark.parametrize(
    "action, resource, issue",
    [
        ("sagemaker:InvokeEndpoint", "*", "RESOURCE_STAR"),
        ("sagemaker:InvokeEndpiont", "*", "UNKNOWN_ACTION"),
        ("dynamodb:PutItem", "arn:aws:s3:::bucket", "RESOURCE_MISMATCH"),
    ],
)
def test_parliament_finds_what_is_planted(action, resource, issue) -> None:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    found = findings({"Version": "2012-10-17", "Statement": [statement]})
    assert any(issue in one for one in found)


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_is_one_that_iam_takes(name) -> None:
    """6,144 characters without white space: IAM's quota for a managed policy."""
    text = json.dumps(json.loads((DATA / name).read_text("utf-8")))
    given = {"Region": "ap-southeast-1", "Account": "1" * 12, "Partition": "aws"}
    given |= {"Bucket": "b" * 63, "Role": f"arn:aws:iam::{'1' * 12}:role/{'r' * 64}"}
    filled = string.Template(text).substitute(given)
    assert len("".join(filled.split())) < 6144


@pytest.mark.parametrize("name", [one for one in POLICIES if one.startswith("web_")])
def test_the_callers_rights_are_for_names_of_the_course_only(name) -> None:
    for statement in filled_in(name)["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        resources = statement["Resource"]
        for arn in [resources] if isinstance(resources, str) else resources:
            named = "course-" in arn or "Condition" in statement
            # What has a number in place of a name, or no resource at all.
            nameless = (
                *("apigateway:", "origin-access-control/*"),
                *("response-headers-policy/*", "scalable-target/*", TRANSFORM),
            )
            no_resource = arn == "*" and set(statement["Action"]) <= STARS
            # It takes no condition; what it makes is tagged with the same call.
            making = statement["Action"] == ["cloudfront:CreateDistribution"]
            assert (
                named or no_resource or making or any(part in arn for part in nameless)
            ), arn
