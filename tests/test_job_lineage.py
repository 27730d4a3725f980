"""Promote, refuse and roll back on an endpoint that answers; lineage from each end.

It takes about 15 seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError

from support.endpoints import AMI, IMAGE, answering, ask, deploy
from utils.deployment.artifact import pack
from utils.deployment.aws import Aws, wait_until_in_service
from utils.deployment.billing import BillingGuard
from utils.deployment.request_checks import validate_request
from utils.jobs.decision import compare
from utils.jobs.lineage import LineageError, lineage, links
from utils.jobs.pipeline_run import JobsOfAccount
from utils.jobs.promotion import (
    KEPT,
    LONGEST_NAME,
    PromotionError,
    joined_name,
    promote,
    roll_back,
    serve,
)
from utils.web.versions import (
    APPROVED,
    REJECTED,
    Version,
    VersionError,
    Versions,
    digest,
)

BETTER = compare([False] * 20, [True] * 20)
WORSE = compare([True] * 20, [False] * 20)
DATA = {name: digit * 64 for name, digit in (("one", "a"), ("two", "b"), ("bad", "c"))}
ADAPTERS = {
    name: digit * 64 for name, digit in (("one", "1"), ("two", "2"), ("bad", "3"))
}


class Sent(Exception):
    """What a configuration was to be made of, in place of an update."""


class Jobs:
    """SageMaker's client, for which three training jobs have run."""

    def __init__(
        self,
        client: Any,
        gone: str = "",
        read: str = "",
        variants: str = "",
        settings: dict[str, Any] | None = None,
    ):
        self._client, self._gone, self._read = client, gone, read
        self._variants, self._settings = variants.split(), settings or {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
        names = [f"job-{name}" for name in (*DATA, "lost") if name != self._gone]
        if TrainingJobName not in names:
            error = {"Code": "ValidationException", "Message": "not found"}
            raise ClientError({"Error": error}, "DescribeTrainingJob")
        data = self._read or DATA.get(TrainingJobName[4:], "d" * 64)
        source = {"S3Uri": f"s3://bucket/data/{data}/train.jsonl"}
        channel = {"ChannelName": "train", "DataSource": {"S3DataSource": source}}
        return {
            "TrainingJobName": TrainingJobName,
            "TrainingJobStatus": "Failed" if "lost" in TrainingJobName else "Completed",
            "InputDataConfig": [channel],
        }

    def describe_endpoint_config(self, EndpointConfigName: str) -> Any:  # noqa: N803
        found = self._client.describe_endpoint_config(
            EndpointConfigName=EndpointConfigName
        )
        (variant,) = found["ProductionVariants"]
        several = [{**variant, "VariantName": name} for name in self._variants]
        return found | {"ProductionVariants": several or [variant]} | self._settings

    def create_model(self, **given: Any) -> None:
        validate_request("sagemaker", "create_model", **given)

    def create_endpoint_config(self, **given: Any) -> None:
        validate_request("sagemaker", "create_endpoint_config", **given)
        raise Sent(given)


@dataclass
class Session:
    """A session whose SageMaker client knows those jobs."""

    session: Any
    given: dict[str, Any]

    def client(self, name: str) -> Any:
        client = self.session.client(name)
        return Jobs(client, **self.given) if name == "sagemaker" else client


def with_jobs(aws: Aws, **given: Any) -> Aws:
    return replace(aws, session=Session(aws.session, given))


@dataclass
class Registered:
    versions: Versions
    endpoint: str
    folder: Path
    seen: dict[str, tuple[Version, str, int]] = field(default_factory=dict)

    def after(self, when: str, version: Version) -> None:
        """Keep what a call returned, what is answered then, and who is live."""
        self.seen[when] = version, self.answer(), self.versions.live().number

    def add(self, name: str) -> Version:
        content = self.folder / name
        content.mkdir()
        for file, text in answering(f"This is {name}.").items():
            (content / file).write_text(text)
        archive = pack(content, self.folder / f"{name}.tar.gz")
        aws, key = self.versions.aws, f"{self.versions.group}/{name}.tar.gz"
        aws.session.client("s3").upload_file(str(archive), aws.bucket, key)
        job = f"arn:aws:sagemaker:us-east-1:123456789012:training-job/job-{name}"
        return self.versions.register(
            archive,
            f"s3://{aws.bucket}/{key}",
            IMAGE,
            data=DATA[name],
            base="lab",
            hyperparameters={"epochs": 2},
            metrics={"right": 0.5},
            origin={"job": job, "adapter": ADAPTERS[name]},
        )

    def answer(self) -> str:
        return ask(self.versions.aws, self.endpoint, "pid")


@pytest.fixture(scope="module")
def registered(aws, tmp_path_factory) -> Iterator[Registered]:
    """Version 1 served, 2 promoted, 3 refused, 2 rolled back: what was seen is kept."""
    guard = BillingGuard(aws, say=lambda _: None)
    versions = Versions(aws, guard.name("versions"))
    name = guard.name("answers")
    found = Registered(versions, name, tmp_path_factory.mktemp("versions"))
    first = found.add("one")
    endpoint = deploy(aws, guard, first.address, "answers", environment={"MINE": "yes"})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    found.after("first", promote(aws, versions, 1, BETTER, "Ada"))
    found.add("two")
    found.after("better", promote(aws, versions, 2, BETTER, "retraining", name))
    found.add("bad")
    found.after("worse", promote(aws, versions, 3, WORSE, "retraining", name))
    found.after("rolled back", roll_back(aws, versions, "Ada", "complaints", name))
    guard._stop_watching()
    BillingGuard.active = None
    yield found
    guard.teardown()
    assert guard.remaining() == []


# When → the version that the call returned, its status, and which one answers.
SEEN = {
    "first": (1, APPROVED, "one", BETTER.why),
    "better": (2, APPROVED, "two", BETTER.why),
    "worse": (3, REJECTED, "two", WORSE.why),
    "rolled back": (1, APPROVED, "one", BETTER.why),
}


@pytest.mark.parametrize("when", SEEN)
def test_promote_refuse_and_roll_back(registered, when) -> None:
    number, status, name, why = SEEN[when]
    version, answer, live = registered.seen[when]
    assert (version.number, version.status, version.why) == (number, status, why)
    assert answer == f"This is {name}."
    assert live == 1 + (name == "two")


def test_the_reasons_stand_in_the_registry(registered) -> None:
    one, two, bad = registered.versions.all()
    assert (one.by, two.by, bad.by) == ("Ada", "Ada", "retraining")
    assert "it is better" in one.why and "it is worse" in bad.why
    assert two.why == "complaints" and two.status == REJECTED


def test_an_endpoint_keeps_its_own_settings(aws, registered) -> None:
    client = aws.session.client("sagemaker")
    found = client.describe_endpoint(EndpointName=registered.endpoint)
    config = client.describe_endpoint_config(
        EndpointConfigName=found["EndpointConfigName"]
    )
    (variant,) = config["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == AMI
    model = client.describe_model(ModelName=variant["ModelName"])
    assert model["PrimaryContainer"]["Environment"] == {"MINE": "yes"}
    assert model["ModelName"].startswith(f"{registered.endpoint}-v1-")


# What is asked for → the versions on its chain.
STARTS = {
    "a number": (lambda one: 2, [2]),
    "a number as text": (lambda one: "2", [2]),
    "data": (lambda one: DATA["two"][:8], [2]),
    "an adapter": (lambda one: ADAPTERS["bad"], [3]),
    "an archive": (lambda one: one.versions.get(1).archive[:12], [1]),
    "a job": (lambda one: "job-two", [2]),
    "a job's ARN": (lambda one: one.versions.get(2).origin["job"], [2]),
    "an endpoint": (lambda one: one.endpoint, [1]),
    "a version's ARN": (lambda one: one.versions.get(3).arn, [3]),
    "a base": (lambda one: "lab", [1, 2, 3]),
}


@pytest.mark.parametrize("kind", STARTS)
def test_lineage_begins_anywhere(aws, registered, kind) -> None:
    start, expected = STARTS[kind]
    group = registered.versions.group
    table = lineage(with_jobs(aws), start(registered), group)
    assert list(table["version"]) == [f"{group}/{number}" for number in expected]
    assert not any(table["doubts"])
    names = ["one", "two", "bad"]
    for _, row in table.iterrows():
        name = names[int(row["version"][-1]) - 1]
        assert row["data"] == DATA[name][:8]
        assert row["adapter"] == ADAPTERS[name][:8]
        assert row["training job"] == f"job-{name}"
        assert row["archive"] == digest(registered.folder / f"{name}.tar.gz")[:8]
        serves = name == "one"
        assert row["endpoint"] == (registered.endpoint if serves else "")
        assert row["status"] == (APPROVED if serves else REJECTED)


def test_lineage_asks_all_groups(aws, registered) -> None:
    (link,) = links(with_jobs(aws), DATA["two"])
    assert (link.group, link.version.number) == (registered.versions.group, 2)


@pytest.mark.parametrize("start", ["4", "job-four", "e" * 64, "abcde", "nowhere", ""])
def test_what_is_not_there_is_said(aws, registered, start) -> None:
    with pytest.raises(LineageError) as failure:
        lineage(with_jobs(aws), start)
    assert f"{registered.versions.group}/3" in str(failure.value)
    assert registered.endpoint in str(failure.value)


# What the job says → the doubt.
DOUBTS = {
    "gone": ({"gone": "two"}, "job-two is not there any more"),
    "read other data": ({"read": "9" * 64}, "the job read the data 99999999"),
}


@pytest.mark.parametrize("kind", DOUBTS)
def test_what_does_not_fit_is_said(aws, registered, kind) -> None:
    given, doubt = DOUBTS[kind]
    table = lineage(with_jobs(aws, **given), 2)
    assert doubt in table["doubts"][0]


def test_a_job_without_a_version_is_found(aws, registered) -> None:
    table = lineage(with_jobs(aws), "job-lost")
    assert list(table["data"]) == ["dddddddd"]
    assert "no version names this job, which is Failed" in table["doubts"][0]


def test_what_cannot_go_into_service_changes_nothing(aws, registered) -> None:
    versions = registered.versions
    with pytest.raises(PromotionError, match="no approved version before"):
        roll_back(aws, versions, "Ada", "again", registered.endpoint)
    versions.approve(3, "Ada", "after all")
    with pytest.raises(VersionError, match="Version 3 is live and later"):
        promote(aws, versions, 2, BETTER, "Ada", registered.endpoint)
    versions.reject(3, "Ada", "no")
    assert versions.get(2).status == REJECTED
    assert registered.answer() == "This is one."


def test_an_endpoint_under_comparison_is_left_alone(aws, registered) -> None:
    compared = with_jobs(aws, variants="old new")
    with pytest.raises(PromotionError, match="the variants old, new"):
        serve(compared, registered.endpoint, registered.versions.get(1))


SETTINGS = {
    "KmsKeyId": "key",
    "DataCaptureConfig": {
        "InitialSamplingPercentage": 10,
        "DestinationS3Uri": "s3://bucket/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}],
    },
    "AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://bucket/replies"}},
    "ExplainerConfig": {
        "ClarifyExplainerConfig": {
            "ShapConfig": {"ShapBaselineConfig": {"ShapBaseline": "1,2"}}
        }
    },
    "MetricsConfig": {"EnableEnhancedMetrics": True},
    "ExecutionRoleArn": "arn:aws:iam::123456789012:role/service-role/endpoint",
    "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
    "EnableNetworkIsolation": True,
}


def test_all_settings_of_a_configuration_stay(aws, registered) -> None:
    asked = with_jobs(aws, settings=SETTINGS)
    with pytest.raises(Sent) as sent:
        serve(asked, registered.endpoint, registered.versions.get(2))
    (given,) = sent.value.args
    assert {name: given[name] for name in SETTINGS} == SETTINGS
    assert SETTINGS.keys() == set(KEPT)


def test_no_setting_of_a_configuration_is_forgotten() -> None:
    """Whatever AWS describes and takes."""
    service = botocore.session.get_session().get_service_model("sagemaker")
    described = service.operation_model("DescribeEndpointConfig").output_shape.members
    taken = service.operation_model("CreateEndpointConfig").input_shape.members
    variants = {"ProductionVariants", "ShadowProductionVariants"}
    assert set(KEPT) == (set(described) & set(taken)) - variants - {
        "EndpointConfigName"
    }


def test_an_endpoint_with_a_shadow_is_left_alone(aws, registered) -> None:
    shadows = {"ShadowProductionVariants": [{"VariantName": "next"}]}
    shadowed = with_jobs(aws, settings=shadows)
    with pytest.raises(PromotionError, match="has the shadow variant next"):
        serve(shadowed, registered.endpoint, registered.versions.get(2))


def test_an_endpoint_that_serves_a_version_is_not_updated(aws, registered) -> None:
    client = aws.session.client("sagemaker")

    def present() -> str:
        found = client.describe_endpoint(EndpointName=registered.endpoint)
        return found["EndpointConfigName"]

    before = present()
    serve(aws, registered.endpoint, registered.versions.get(1))
    assert present() == before


BEGINNINGS = {
    "short": "a",
    "long": "a" * 80,
    "cut at a hyphen": "a" * 40 + "-" * 30,
    "of hyphens": "a-" * 40,
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_the_end_of_a_name_stays(kind) -> None:
    """It alone tells one from another."""
    beginning = BEGINNINGS[kind]
    ends = ["Train-1733000000-abcd", "Train-1733000000-abce", "E" * 70]
    names = [joined_name(beginning, end) for end in ends]
    assert all(re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", one) for one in names)
    assert [one.endswith(end) for one, end in zip(names, ends, strict=True)] == [
        *(True, True),
        False,
    ]
    assert all(one.startswith("a") for one in names[:2])
    assert len(names[2]) == LONGEST_NAME
    assert [JobsOfAccount(None, beginning)._name(end) for end in ends] == names
