"""Jobs and pipelines: each call that they need has a right, and each right a use.

What is called is recorded from a run of each kind of job against `support.job_service`:
by the guard, by the SDK that waits, and by what reads logs. A slow test records what
notebook 08 calls.
"""

from __future__ import annotations

import fnmatch
import json
from typing import Any

import botocore.client
import pytest
from test_production_rights import (
    ARN,
    action_of,
    reached,
    resources_of,
    rights,
    statements,
)

from support import job_requests
from support.interrupted_notebook import record_calls
from support.job_service import JobService, arn
from support.recorded_notebook import recorded_calls
from utils.course import ROOT
from utils.deployment import running
from utils.deployment.aws import (
    EXECUTION_POLICY,
    JOBS_POLICY,
    JOBS_ROLE_POLICY,
    POLICY,
)
from utils.deployment.billing import BillingGuard

NOTEBOOK = ROOT / "notebooks" / "08_training_jobs.ipynb"
WEB_POLICY = ROOT / "data" / "aws" / "web_policy.json"  # the model registry
# What the policy allows beyond the calls, and why.
NOT_CALLED_HERE = {"sagemaker:UpdatePipeline": "only where a pipeline is made anew"}
KINDS = {
    "TrainingJobName": "training-job",
    "HyperParameterTuningJobName": "hyper-parameter-tuning-job",
    "ProcessingJobName": "processing-job",
    "PipelineName": "pipeline",
    "ModelPackageGroupName": "model-package-group",
}
GROUP = "/aws/sagemaker/TrainingJobs"


def about(call: dict[str, Any]) -> list[str]:
    """What a call is about, as ARNs; "*" where its request does not name it."""
    service, params = call["service"], call["params"]
    if service == "iam":
        return [params["PolicySourceArn"]]
    if service == "logs" and "logGroupName" in params:
        group = f"log-group:{params['logGroupName']}"
        if stream := params.get("logStreamName"):
            group += f":log-stream:{stream}"
        return [ARN.format(service, group)]
    if service == "sagemaker" and "ResourceArn" not in params:
        package = params.get("ModelPackageName") or params.get("ModelPackageArn")
        if package:
            return [package]
        if execution := params.get("PipelineExecutionArn"):
            return [execution]
        if named := [key for key in KINDS if key in params]:
            key = named[0]
            return [ARN.format(service, f"{KINDS[key]}/{params[key]}")]
    return resources_of(call)


def run_each_kind(aws: Any, service: JobService) -> None:
    """Start each kind of job, look on as the SDK does, and let the guard end it."""
    session = aws.session
    logs, client = session.client("logs"), session.client("sagemaker")
    with BillingGuard(aws, lambda _: None) as guard:
        keep = {"ResourceConfig": job_requests.machine(KeepAlivePeriodInSeconds=600)}
        for operation in job_requests.MAKERS:
            if operation != "TransformJob":
                job_requests.make(aws, operation, guard.name("a"))
        job_requests.make(aws, "TrainingJob", guard.name("warm"), **keep)
        service.end("TrainingJob", guard.name("warm"), BillableTimeInSeconds=1)
        # As `sagemaker.core.resources.TrainingJob.wait(logs=True)` reads the log.
        stream = f"{guard.name('a')}/algo-1-1"
        logs.create_log_group(logGroupName=GROUP)
        logs.create_log_stream(logGroupName=GROUP, logStreamName=stream)
        logs.get_log_events(logGroupName=GROUP, logStreamName=stream)
        # As the lesson searches it.
        logs.filter_log_events(logGroupName=GROUP, logStreamNamePrefix=guard.name("a"))
        # As `ModelTrainer` asks whether its role can write to the bucket.
        session.client("iam").simulate_principal_policy(
            PolicySourceArn=aws.role, ActionNames=["s3:PutObject"]
        )
        client.start_pipeline_execution(PipelineName=guard.name("a"))
        execution = service.executions[guard.name("a")][0]["PipelineExecutionArn"]
        client.describe_pipeline_execution(PipelineExecutionArn=execution)
        steps = []
        for operation in ("TrainingJob", "ProcessingJob"):
            name = f"pipelines-x-{operation}"
            service.put(operation, name)
            steps.append({"Metadata": {operation: {"Arn": arn(operation, name)}}})
        service.steps[execution] = steps
        guard.remaining()
        guard.teardown()
    logs.delete_log_group(logGroupName=GROUP)


@pytest.fixture(scope="module")
def recorded(aws) -> list[dict[str, Any]]:
    """The calls that jobs need."""
    base = botocore.client.BaseClient
    before = (base._make_api_call, base._make_request)
    poll, running.FIRST_POLL = running.FIRST_POLL, 0.01
    service = JobService(aws.session)
    aws.session.events.register("before-call.iam", lambda **_: (OK, {}))
    calls, _ = record_calls()
    try:
        run_each_kind(aws, service)
    finally:
        base._make_api_call, base._make_request = before
        running.FIRST_POLL = poll
        service.close()
    assert service.running() == [] and service.things == {}
    ends = ("CreateLogGroup", "CreateLogStream", "DeleteLogGroup")  # the test's own
    return [call for call in calls if call["operation"] not in ends]


OK = type("Answer", (), {"status_code": 200, "headers": {}})()


def test_each_call_has_a_right_for_what_it_is_about(recorded) -> None:
    assert covered(recorded) > 100


@pytest.mark.slow
def test_each_call_of_the_notebook_has_a_right(tmp_path) -> None:
    found = recorded_calls(NOTEBOOK, tmp_path)
    assert covered(found["calls"] + found["checked"]) > 100


def covered(calls: list[dict[str, Any]]) -> int:
    """Return how many resources the policies' rights reach; all have to be."""
    # Those of S3 are lesson 06's own, and tested there.
    calls = [call for call in calls if action_of(call) and call["service"] != "s3"]
    needed = [(action_of(call), about(call)) for call in calls]
    return reached(needed, POLICY, JOBS_POLICY, WEB_POLICY)


def test_each_right_has_a_use(recorded) -> None:
    called = {action_of(call) for call in recorded}
    allowed = {action for action, _ in rights(JOBS_POLICY)}
    assert allowed - called == set(NOT_CALLED_HERE)


@pytest.mark.parametrize(
    ("policy", "before"), [(JOBS_POLICY, POLICY), (JOBS_ROLE_POLICY, EXECUTION_POLICY)]
)
def test_nothing_is_allowed_twice(policy, before) -> None:
    assert not set(rights(policy)) & set(rights(before))
    assert len(rights(policy)) == len(set(rights(policy)))


@pytest.mark.parametrize("policy", [JOBS_POLICY, JOBS_ROLE_POLICY])
def test_rights_reach_the_courses_names_only(policy) -> None:
    """But for the jobs of pipelines, which SageMaker names, and for the role itself."""
    role = "arn:aws:iam::123456789012:role/course-sagemaker-execution"
    for statement in statements(policy):
        resources = statement["Resource"]
        resources = [resources] if isinstance(resources, str) else resources
        condition = json.dumps(statement.get("Condition", {}))
        for one in resources:
            # FilterLogEvents is granted for whole groups only: service authorization
            # reference of CloudWatch Logs.
            whole = statement["Action"] == ["logs:FilterLogEvents"]
            log = "log-group:/aws/sagemaker/" in one
            log = log and (policy == JOBS_ROLE_POLICY or whole)
            image = one.endswith(":repository/huggingface-pytorch-training")
            if "/pipelines-" in one and policy == JOBS_POLICY:
                assert "pipeline/course-*/execution/*" in condition
            elif ":pipelines-" not in one and "/pipelines-" not in one:
                assert "course-" in one or log or image or one == role, one
        creates = [a for a in statement["Action"] if a.startswith("sagemaker:Create")]
        if policy == JOBS_POLICY and creates:
            assert "aws:RequestTag/course-run" in condition


def test_the_role_can_do_what_a_training_job_needs(aws) -> None:
    """As AWS's page on execution roles lists it for CreateTrainingJob."""
    bucket, group = f"arn:aws:s3:::bucket/{'course-1-a'}", "log-group:" + GROUP
    image = "arn:aws:ecr:us-east-1:763104351884:repository/huggingface-pytorch-training"
    stream = ARN.format("logs", f"{group}:log-stream:course-1-a/algo-1-1")
    needed = {
        "s3:GetObject": f"{bucket}/data/train.jsonl",
        "s3:PutObject": f"{bucket}/output/model.tar.gz",
        "s3:ListBucket": "arn:aws:s3:::bucket",
        "logs:CreateLogGroup": ARN.format("logs", group),
        "logs:CreateLogStream": stream,
        "logs:DescribeLogStreams": ARN.format("logs", group),
        "logs:PutLogEvents": stream,
        "cloudwatch:PutMetricData": "*",
        "ecr:GetAuthorizationToken": "*",
        "ecr:BatchCheckLayerAvailability": image,
        "ecr:GetDownloadUrlForLayer": image,
        "ecr:BatchGetImage": image,
    }
    allowed = rights(EXECUTION_POLICY, JOBS_ROLE_POLICY)
    for action, resource in needed.items():
        patterns = [one for name, one in allowed if name == action]
        assert any(fnmatch.fnmatchcase(resource, one) for one in patterns), action
