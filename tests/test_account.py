"""The account is asked what bills, whoever created it, and says what it did not see."""

from __future__ import annotations

import dataclasses
import io
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.session
import jmespath
from botocore import xform_name
from botocore.awsrequest import AWSResponse

from utils.course import ROOT, run_config
from utils.deployment import __main__ as command
from utils.deployment import account
from utils.deployment import aws as connections
from utils.deployment.account import Account, look
from utils.deployment.aws import Aws


class Listing:
    """A session of an account that holds what is given, in AWS's own words.

    What is asked of it and not given is refused as AWS refuses it.
    """

    def __init__(self, **answers: Any):
        self.answers = answers

    def client(self, service: str) -> Any:
        from botocore.exceptions import ClientError

        def answer(method: str, **given: Any) -> Any:
            if method in self.answers:
                found = self.answers[method]
                return found(**given) if callable(found) else found
            name = "".join(word.capitalize() for word in method.split("_"))
            error = {"Code": "AccessDeniedException", "Message": "no right"}
            raise ClientError({"Error": error}, name)

        class Client:
            def get_paginator(self, method: str) -> Any:
                pages = lambda **given: [answer(method, **given)]  # noqa: E731
                return SimpleNamespace(paginate=pages)

            def __getattr__(self, method: str) -> Any:
                return lambda **given: answer(method, **given)

        return Client()


def seen(**answers: Any) -> Account:
    return look(Aws(Listing(**answers), "us-east-1", "role", "bucket"))


def arn(rest: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:123456789012:{rest}"


ENDPOINT = {
    "EndpointName": "my-llm-endpoint",
    "EndpointArn": arn("endpoint/my-llm-endpoint"),
    "EndpointStatus": "InService",
}
JOB = {
    "TrainingJobName": "tune",
    "TrainingJobStatus": "Completed",
    "TrainingJobArn": arn("training-job/tune"),
}


def trainings(StatusEquals="", WarmPoolStatusEquals="", NameContains="") -> dict:  # noqa: N803 - as AWS spells them
    """What runs, what keeps its machines, what has ended; AWS takes one filter."""
    jobs = [
        {**JOB, "TrainingJobStatus": "InProgress"},
        {**JOB, "TrainingJobName": "kept", "WarmPoolStatus": {"Status": "Available"}},
    ]
    names = ("course-1-sweep-001", "not-course-1") if NameContains else ()
    jobs += [{**JOB, "TrainingJobName": name} for name in names]
    return {"TrainingJobSummaries": jobs}


EVERYTHING = {
    "list_endpoints": {"Endpoints": [ENDPOINT]},
    "describe_endpoint": {
        "EndpointConfigName": "c",
        "ProductionVariants": [{"VariantName": "a", "CurrentInstanceCount": 3}],
    },
    "describe_endpoint_config": {
        "ProductionVariants": [
            {
                "VariantName": "a",
                "InstanceType": "ml.g5.xlarge",
                "InitialInstanceCount": 1,
            }
        ]
    },
    "list_inference_components": {
        "InferenceComponents": [
            {
                "InferenceComponentName": "part",
                "EndpointName": "my-llm-endpoint",
                "InferenceComponentStatus": "InService",
            }
        ]
    },
    "list_training_jobs": trainings,
    "list_hyper_parameter_tuning_jobs": lambda StatusEquals="", NameContains="": {
        "HyperParameterTuningJobSummaries": [
            {
                "HyperParameterTuningJobName": name,
                "HyperParameterTuningJobArn": arn(f"hyper-parameter-tuning-job/{name}"),
                "HyperParameterTuningJobStatus": status,
            }
            for name, status in (("sweep", "InProgress"), ("course-1-s", "Stopped"))
            if StatusEquals in ("", status)
        ]
    },
    "list_pipelines": lambda PipelineNamePrefix="": {
        "PipelineSummaries": [
            {"PipelineName": name, "PipelineArn": arn(f"pipeline/{name}")}
            for name in ("monthly", "course-1-retrain")
            if name.startswith(PipelineNamePrefix)
        ]
    },
    "list_pipeline_executions": lambda PipelineName: {
        "PipelineExecutionSummaries": [
            {
                "PipelineExecutionArn": arn(f"pipeline/{PipelineName}/execution/{n}"),
                "PipelineExecutionStatus": status,
            }
            for n, status in enumerate(("Executing", "Succeeded"))
            if PipelineName == "monthly"
        ]
    },
    "describe_training_job": {
        "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 2}
    },
    "list_processing_jobs": lambda StatusEquals="", NameContains="": {
        "ProcessingJobSummaries": [
            {
                "ProcessingJobName": name,
                "ProcessingJobStatus": status,
                "ProcessingJobArn": arn(f"processing-job/{name}"),
            }
            for name, status in (("clean", "Stopping"), ("course-1-c", "Failed"))
        ]
    },
    "list_transform_jobs": lambda StatusEquals: {
        "TransformJobSummaries": [
            {
                "TransformJobName": "bulk",
                "TransformJobStatus": "InProgress",
                "TransformJobArn": arn("transform-job/bulk"),
            }
        ]
    },
    "list_notebook_instances": {
        "NotebookInstances": [
            {
                "NotebookInstanceName": "old",
                "NotebookInstanceStatus": status,
                "InstanceType": "ml.t3.medium",
            }
            for status in ("InService", "Stopped")
        ]
    },
    "list_apps": {
        "Apps": [
            {
                "DomainId": "d-1",
                "SpaceName": "mine",
                "AppType": "JupyterLab",
                "AppName": "default",
                "Status": status,
                "ResourceSpec": {"InstanceType": "ml.g5.2xlarge"},
            }
            for status in ("InService", "Deleted")
        ]
    },
    "list_models": {
        "Models": [
            {"ModelName": name, "ModelArn": arn(f"model/{name}")}
            for name in ("course-1-faq", "other-course-1")
        ]
    },
    "list_endpoint_configs": {
        "EndpointConfigs": [
            {
                "EndpointConfigName": "course-1-faq",
                "EndpointConfigArn": arn("endpoint-config/course-1-faq"),
            }
        ]
    },
    "list_model_package_groups": {
        "ModelPackageGroupSummaryList": [
            {
                "ModelPackageGroupName": name,
                "ModelPackageGroupArn": arn(f"model-package-group/{name}"),
            }
            for name in ("course-1-versions", "a-course-1")
        ]
    },
    "list_tags": lambda ResourceArn: {
        "Tags": [{"Key": "course-run", "Value": "1"}]
        if "course-" in ResourceArn
        else []
    },
    "describe_scalable_targets": lambda ServiceNamespace: {
        "ScalableTargets": [
            {
                "ResourceId": f"endpoint/{name}/variant/a",
                "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
            }
            for name in ("course-1-faq", "a-course-1")
        ]
    },
    "describe_stacks": {
        "Stacks": [
            {
                "StackName": name,
                "StackStatus": "CREATE_COMPLETE",
                "Tags": [{"Key": "course-run", "Value": "1"}],
            }
            for name in ("course-1-web", "a-course-1")
        ]
    },
    "describe_alarms": lambda AlarmNamePrefix: {
        "MetricAlarms": [{"AlarmName": f"{AlarmNamePrefix}1-faq"}]
    },
    "list_schedules": lambda NamePrefix: {
        "Schedules": [
            {"Name": f"{NamePrefix}1-faq", "GroupName": "default", "State": "ENABLED"},
            {"Name": f"{NamePrefix}2-faq", "GroupName": "mine"},
        ]
    },
    "describe_log_groups": lambda logGroupNamePrefix: {
        "logGroups": [{"logGroupName": f"{logGroupNamePrefix}1-faq"}]
    },
    "describe_log_streams": lambda logGroupName, logStreamNamePrefix: {
        "logStreams": [{"logStreamName": f"{logStreamNamePrefix}1-a/algo-1-1"}]
        if "Training" in logGroupName
        else []
    },
    "list_tables": {"TableNames": ["course-1-web", "not-course-1-web"]},
    "list_object_versions": lambda Bucket, Prefix: {
        "Versions": [
            {"Key": "course-1-faq/model.tar.gz", "IsLatest": False, "Size": 10**9},
            {"Key": "course-2", "IsLatest": True, "Size": 10**9},
        ],
        "DeleteMarkers": [{"Key": "course-1-faq/model.tar.gz", "IsLatest": True}],
    },
    "list_multipart_uploads": lambda Bucket, Prefix: {
        "Uploads": [{"Key": "course-1-faq/it's big", "UploadId": "u"}]
    },
}


def test_all_that_runs_is_listed_and_what_has_ended_is_not() -> None:
    found = seen(**EVERYTHING)
    assert [(item.kind, item.name) for item in found.running] == [
        ("endpoint", "my-llm-endpoint"),
        ("inference component", "part"),
        ("training job", "tune"),
        ("tuning job", "sweep"),
        ("pipeline execution", arn("pipeline/monthly/execution/0")),
        ("warm pool", "kept"),
        ("processing job", "clean"),
        ("transform job", "bulk"),
        ("notebook instance", "old"),
        ("Studio app", "d-1/mine/JupyterLab/default"),
    ]
    endpoint, component, training, *_, app = found.running
    assert re.fullmatch(r"3 × ml.g5.xlarge, \$[\d.]+ an hour", endpoint.costs)
    assert component.costs == "billed with its endpoint my-llm-endpoint"
    assert training.costs == "2 × ml.p4d.24xlarge, price not known here"
    assert app.costs == "1 × ml.g5.2xlarge, price not known here"
    assert found.bills and not found.unseen


def test_what_is_left_of_the_course_is_listed_and_a_like_name_is_not() -> None:
    assert [(item.kind, item.name) for item in seen(**EVERYTHING).left] == [
        ("endpoint configuration", "course-1-faq"),
        ("model", "course-1-faq"),
        ("training job", "course-1-sweep-001"),
        ("tuning job", "course-1-s"),
        ("processing job", "course-1-c"),
        ("pipeline", "course-1-retrain"),
        ("stack", "course-1-web"),
        ("model package group", "course-1-versions"),
        ("scaling target", "endpoint/course-1-faq/variant/a"),
        ("alarm", "course-1-faq"),
        ("alarm", "TargetTracking-endpoint/course-1-faq"),
        ("schedule", "course-1-faq"),
        ("schedule", "course-2-faq"),
        ("log group", "/aws/sagemaker/Endpoints/course-1-faq"),
        ("log group", "/aws/lambda/course-1-faq"),
        ("log stream", "/aws/sagemaker/TrainingJobs/course-1-a/algo-1-1"),
        ("table", "course-1-web"),
        ("S3 objects", "s3://bucket/course-1-faq/"),
        ("S3 objects", "s3://bucket/course-2"),
        ("incomplete upload", "s3://bucket/course-1-faq/it's big"),
    ]
    objects = next(i for i in seen(**EVERYTHING).left if i.kind == "S3 objects")
    assert objects.costs.startswith("0 objects, 2 older versions or markers, 1.000 GB")


def test_each_command_is_one_that_aws_has_with_the_parameters_it_needs() -> None:
    """Held to botocore's model, from which the AWS CLI makes its commands."""
    session = botocore.session.get_session()
    checked = set()
    for item in seen(**EVERYTHING).found:
        for line in re.split(r' --delete "\$\(|\)"$', item.end):
            words = shlex.split(line)
            if not words:
                continue
            if item.kind == "stack":  # ours: AWS's alone fails at a bucket's files
                module = ["COURSE_AWS=real", "python", "-m", "utils.deployment"]
                assert words == [*module, "remove", item.name]
                continue
            assert words[0] == "aws"
            service, verb, flags = words[1], words[2], words[3::2]
            model = session.get_service_model("s3" if service == "s3api" else service)
            named = {xform_name(name, "-"): name for name in model.operation_names}
            shape = model.operation_model(named[verb]).input_shape
            members = {xform_name(name, "-"): name for name in shape.members}
            given = {flag.removeprefix("--") for flag in flags}
            given -= {"region", "query", "output", "max-items"}  # of the CLI itself
            assert given <= set(members), line
            needed = set(shape.required_members) - {members[flag] for flag in given}
            needed -= {"ClientRequestToken"}  # the CLI makes one, as botocore does
            assert needed <= {"Delete"}, line
            checked.add(verb)
    assert len(checked) >= 22


def test_the_command_for_versions_takes_those_of_one_key_only() -> None:
    ends = [item.end for item in seen(**EVERYTHING).left if item.kind == "S3 objects"]
    inner = [end.split('"$(')[1].removesuffix(')"') for end in ends]
    folder, single = (shlex.split(command) for command in inner)
    listed = {
        "Versions": [
            {"Key": key, "VersionId": "1"} for key in ("course-2", "course-20")
        ]
    }
    query = folder[folder.index("--query") + 1]
    assert len(jmespath.search(query, listed)["Objects"]) == 2
    query = single[single.index("--query") + 1]
    wanted = {"Objects": [{"Key": "course-2", "VersionId": "1"}]}
    assert jmespath.search(query, listed) == wanted
    assert jmespath.search(query, {**listed, "DeleteMarkers": None}) == wanted


def test_nothing_is_said_of_what_could_not_be_looked_at() -> None:
    """Each kind is refused in turn: it is named, and the rest is looked at."""
    empty = {
        method: {} if isinstance(answer, dict) else lambda **_: {}
        for method, answer in EVERYTHING.items()
    }
    assert not seen(**empty).unseen and not seen(**empty).bills
    for method in empty:
        if method.startswith("list_tags") or method.startswith("describe_endpoint"):
            continue
        if method in ("describe_training_job", "list_pipeline_executions"):
            continue  # asked of what a listing holds, and these are empty
        found = seen(**{key: value for key, value in empty.items() if key != method})
        name = "".join(word.capitalize() for word in method.split("_"))
        assert found.unseen, method
        lines = found.lines()
        for kind, reason in found.unseen.items():
            assert reason == f"{name} is not allowed to you"
            assert f"Not looked at: {kind} ({reason})." in lines
            assert kind not in found.looked
            assert kind not in lines[0]


def test_executions_that_may_not_be_listed_are_named() -> None:
    found = seen(list_pipelines=EVERYTHING["list_pipelines"])
    reason = "ListPipelineExecutions is not allowed to you"
    assert found.unseen["pipeline executions"] == reason


def test_an_endpoint_that_may_not_be_described_is_still_listed() -> None:
    found = seen(list_endpoints={"Endpoints": [ENDPOINT]})
    assert [item.name for item in found.running] == ["my-llm-endpoint"]
    assert found.running[0].costs == "price not known here"
    assert found.bills


def test_what_the_offline_aws_does_not_play_is_said(aws) -> None:
    found = look(aws)
    assert not found.unseen
    assert set(found.unplayed) == {"inference components", "Studio apps", "stacks"}
    assert "The offline AWS does not play, so it has none" in str(found)
    assert "other regions" in str(found).splitlines()[-1]


class Body(io.BytesIO):
    """The body of an answer."""

    def stream(self, **_: Any) -> Any:
        yield self.read()


def test_a_right_that_is_missing_is_read_from_awss_own_answer(aws) -> None:
    """As SageMaker and S3 answer, in JSON and in XML."""
    session = boto3.Session(region_name=aws.region)

    def refuse(request: Any, **_: Any) -> AWSResponse:
        code = b'{"__type": "AccessDeniedException", "message": "not authorized"}'
        if "versions" in request.url:
            code = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        return AWSResponse(request.url, 403, {}, Body(code))

    session.events.register("before-send.sagemaker.ListEndpoints", refuse)
    session.events.register("before-send.s3.ListObjectVersions", refuse)
    found = look(dataclasses.replace(aws, session=session))
    assert found.unseen == {
        "endpoints": "ListEndpoints is not allowed to you",
        f"objects in s3://{aws.bucket}": "ListObjectVersions is not allowed to you",
    }


def test_a_bucket_that_is_not_there_is_said(aws) -> None:
    found = look(dataclasses.replace(aws, bucket="course-no-such-bucket"))
    assert len(found.unseen) == 2
    assert all(
        "no such bucket; name yours" in reason for reason in found.unseen.values()
    )
    assert account.NEVER_LOOKED_AT in str(found)


# --- python -m utils.deployment bill --------------------------------------------------


def account_with(monkeypatch: Any, **answers: Any) -> None:
    """Let the command find an account that holds this."""
    found = Aws(Listing(**answers), "us-east-1", "", "bucket")
    monkeypatch.setattr(command, "account_to_look_at", lambda _: found)


def test_the_command_exits_with_1_if_something_bills(monkeypatch, capsys) -> None:
    account_with(monkeypatch, list_endpoints={"Endpoints": [ENDPOINT]})
    assert command.main(["bill"]) == 1
    assert "delete-endpoint --endpoint-name my-llm-endpoint" in capsys.readouterr().out


def test_the_command_exits_with_2_if_a_right_is_missing(monkeypatch, capsys) -> None:
    account_with(monkeypatch, list_endpoints={})
    assert command.main(["bill"]) == 2
    assert "Not looked at: models (ListModels is not" in capsys.readouterr().out


def test_the_command_looks_at_the_offline_aws_of_its_process_only(
    aws, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("COURSE_AWS", "local")
    assert command.main(["bill"]) == 0
    assert "nothing bills by the hour" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "utils.deployment", "bill"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "lives only inside the process that started it" in done.stderr
    assert done.stdout == ""


def test_the_real_account_needs_neither_role_nor_bucket(aws, monkeypatch) -> None:
    """As far as moto can stand in: the session is its own, the rest is the code's."""
    identity = {"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:user/me"}
    monkeypatch.setattr(connections, "_real_session", lambda: (aws.session, identity))
    found = connections.account_to_look_at(run_config({"COURSE_AWS": "real"}))
    assert found.real and found.bucket == "sagemaker-us-east-1-123456789012"
    monkeypatch.setenv("SAGEMAKER_BUCKET", "mine")
    found = connections.account_to_look_at(run_config({"COURSE_AWS": "real"}))
    assert found.bucket == "mine"
