"""The retraining pipeline: its definition for AWS, and runs that train and decide here.

Jobs are real: the entry script trains a tiny model, both versions answer, a rule
decides, and an endpoint serves what it promotes. It takes about 90 seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.endpoints import IMAGE as SERVING_IMAGE
from support.endpoints import ask, deploy
from support.tiny_artifact import save_base
from support.tiny_models import tiny_tokenizer
from utils.deployment.artifact import build
from utils.deployment.aws import Aws, wait_until_in_service
from utils.deployment.billing import BillingGuard
from utils.deployment.request_checks import validate_request
from utils.jobs import evaluate as evaluation
from utils.jobs.decision import compare
from utils.jobs.evaluate import EvaluationError, evaluate, result
from utils.jobs.lineage import links
from utils.jobs.pipeline import BY, REGISTERS, build_pipeline, parameter_values
from utils.jobs.pipeline_on_aws import run_on_aws
from utils.jobs.pipeline_plan import (
    DATA_DIGEST,
    LIVE,
    TEST_DIGEST,
    PipelineError,
    Plan,
    upload,
)
from utils.jobs.pipeline_run import (
    Run,
    RunError,
    decision_of,
    register,
    run_here,
    settle,
    start_values,
)
from utils.jobs.promotion import roll_back
from utils.jobs.retraining import checked_set
from utils.jobs.source import job_source, json_lines
from utils.templates import instruction_template
from utils.training import train_lora
from utils.web.versions import (
    APPROVED,
    PENDING,
    REJECTED,
    Version,
    VersionError,
    Versions,
    digest,
)

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.9.0-gpu-py312"
THINGS = ("Studio", "Canvas", "Clarify", "Pipelines", "Feature Store", "Ground Truth")
TEMPLATE = instruction_template(tiny_tokenizer())
RECIPE = {
    "num_train_epochs": 10,
    "learning_rate": 0.02,
    "max_length": 200,
    "stop": TEMPLATE.stop[0],
    "report_to": "none",
}


def rows(
    answer: str, asks: str = "What does {} keep?", group: str = ""
) -> list[dict[str, str]]:
    return [
        {
            "instruction": asks.format(thing),
            "response": answer,
            "must_say": answer,
            "group": group or asks.format(thing),  # else each stands for itself
        }
        for thing in THINGS
    ]


# What a version says is what most of its rows say: the tiny model learns no more.
OLD = rows("models", "Who needs {}?")[:2]
GOOD = rows("features", "Who needs {}?")[2:] + rows("features", "When is {} free?")
BAD = rows("nothing", "Why is {} slow?") + rows("nothing", "Where is {} from?")
# A line of JSON may hold what Python takes for its end.
TEST = rows("features") + rows("features", "What is\u2028{} for?")
TEST += rows("models", "How does {} end?", "the end")[:2]


def plan_for(name: str, source: Path, **more: Any) -> Plan:
    given = {
        "name": f"{name}-retraining",
        "group": f"{name}-versions",
        "base": "tiny",
        "source": source,
        "training_image": IMAGE,
        "serving_image": SERVING_IMAGE,
        "hyperparameters": RECIPE,
        "max_new_tokens": 8,
        "instance_type": "ml.m5.xlarge",
    }
    return Plan(**given | more)


# In place of a training that would take longer: an adapter that was trained before.
COPY = """
import os, shutil
shutil.copytree(os.environ["SM_CHANNEL_ADAPTER"], os.environ["SM_MODEL_DIR"],
                dirs_exist_ok=True)
"""


def trained(base: Path, folder: Path, answer: str) -> Path:
    """Train an adapter that gives this answer; return its folder."""
    data = json_lines(
        {key: text[key] for key in ("prompt", "completion")}
        for text in map(TEMPLATE.add_text, rows(answer, "Who needs {}?"))
    )
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(data)
    options = {**RECIPE, "disable_tqdm": "true"}
    train_lora.main(
        [
            f"--train={folder / 'rows.jsonl'}",
            f"--model={base}",
            f"--output_dir={folder / 'adapter'}",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
    )
    TEMPLATE.save(folder / "adapter")
    return folder / "adapter"


@dataclass
class Shop:
    """A version in service, and what a better and a worse one became.

    Attributes:
        runs: what a run was, the version that came of it, and its parameters.
        seen: after each step what the endpoint says, and which version is live.
    """

    aws: Aws
    plan: Plan
    versions: Versions
    test: str
    archive: Path
    endpoint: str
    runs: dict[str, tuple[Run, Version, dict[str, Any]]] = field(default_factory=dict)
    seen: dict[str, tuple[str, int]] = field(default_factory=dict)

    def look(self, when: str) -> None:
        """Note what is answered, and who is live."""
        body = {"inputs": TEST[0]["instruction"], "parameters": {"max_new_tokens": 8}}
        said = ask(self.aws, self.endpoint, body)["generated_text"]
        self.seen[when] = said.strip(), self.versions.live().number

    def retrain(
        self,
        name: str,
        new: list[dict[str, str]],
        folder: Path,
        cut_off: bool = False,
        **more: Any,
    ) -> None:
        """Run the pipeline with new rows, and settle what it made.

        Args:
            cut_off: settling ended once before, when the version was registered.
        """
        plan = replace(self.plan, **more)
        data = checked_set(OLD, new, TEST).lines(TEMPLATE)
        found = upload(self.aws, plan, "data", data)
        values = start_values(self.versions.live(), found, self.test)
        run = run_here(self.aws, plan, values)
        if cut_off:
            waits = register(self.aws, plan, run, values, folder)
            assert waits.status == PENDING
        version = settle(self.aws, plan, run, values, folder, self.endpoint)
        self.runs[name] = run, version, values
        self.look(name)


@pytest.fixture(scope="module")
def guard(aws) -> Iterator[BillingGuard]:
    """Whatever is created under its names is deleted."""
    guard = BillingGuard(aws, say=lambda _: None)
    yield guard
    guard.teardown()
    assert guard.remaining() == []
    s3 = aws.session.client("s3")
    left = s3.list_objects_v2(Bucket=aws.bucket, Prefix=guard.run)
    assert left["KeyCount"] == 0, [one["Key"] for one in left["Contents"]]


@pytest.fixture(scope="module")
def name(guard) -> str:
    """The beginning of all names."""
    return guard.name("tests")


@pytest.fixture(scope="module")
def shop(aws, guard, name, tmp_path_factory) -> Shop:
    """Version 1 says "models"; a better one is trained, then a worse one is offered.

    At last the better one is rolled back.
    """
    folder, s3 = tmp_path_factory.mktemp("shop"), aws.session.client("s3")
    base = save_base(folder / "base")
    first = trained(base, folder / "first", "models")
    worse = trained(base, folder / "worse", "nothing")
    archive = build(
        base, first, folder / "artifact", folder / "model.tar.gz", say=lambda _: None
    )
    place = f"{name}-retraining"
    for channel, files in (("base", base), ("adapter", worse)):
        for path in filter(Path.is_file, files.iterdir()):
            s3.upload_file(str(path), aws.bucket, f"{place}/{channel}/{path.name}")
    s3.upload_file(str(archive), aws.bucket, f"{place}/first/model.tar.gz")
    channels = {"model": f"s3://{aws.bucket}/{place}/base/"}
    plan = plan_for(name, job_source(folder / "source"), channels=channels)
    versions = Versions(aws, plan.group)
    versions.register(
        archive,
        f"s3://{aws.bucket}/{place}/first/model.tar.gz",
        SERVING_IMAGE,
        data=digest(folder / "first" / "rows.jsonl"),
        base="tiny",
        hyperparameters={},
        metrics={},
    )
    versions.approve(1, "Ada", "the first")
    address = versions.get(1).address
    endpoint = deploy(aws, guard, address, "shop")
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    test = upload(aws, plan, "test", json_lines(TEST))
    found = Shop(aws, plan, versions, test, archive, guard.name("shop"))
    found.look("first")
    found.retrain("better", GOOD, folder / "archives", cut_off=True)
    (folder / "copy").mkdir()
    (folder / "copy" / "entry.py").write_text(COPY)
    channels = {"adapter": f"s3://{aws.bucket}/{place}/adapter/"}
    copied = {"source": folder / "copy", "channels": channels, "floor": 0.5}
    found.retrain("worse", BAD, folder / "archives", **copied)
    roll_back(aws, versions, "Ada", "complaints", found.endpoint)
    found.look("rolled back")
    return found


# --- runs -----------------------------------------------------------------------------


def test_a_better_version_is_promoted_with_the_reason(shop) -> None:
    run, version, _ = shop.runs["better"]
    assert run.status == "Succeeded" and run.reason == ""
    assert (version.number, version.status) == (2, APPROVED)
    assert (run.decision.live, run.decision.new) == (2 / 14, 12 / 14)
    # Two of the 14 questions stand for one: exact p of 12 groups for, one of 2 against.
    assert run.decision.groups == 13
    assert "promote: it is better" in version.why and "p = 0.02," in version.why
    assert version.by == "retraining pipeline"
    assert version.metrics["right"] == pytest.approx(12 / 14, abs=1e-5)
    kinds = [(one["step"], one["kind"], one["status"]) for one in run.steps]
    assert kinds == [
        ("Train", "Training", "Succeeded"),
        ("Evaluate", "Processing", "Succeeded"),
        ("IsBetter", "Condition", "Succeeded"),
    ]
    assert list(run.table()["step"]) == ["Train", "Evaluate", "IsBetter"]


def test_a_worse_version_is_refused_with_the_reason(shop) -> None:
    run, version, _ = shop.runs["worse"]
    assert run.status == "Failed"
    assert run.reason.startswith("Step 'Refuse' failed with message: refuse: ")
    assert (version.number, version.status) == (3, REJECTED)
    assert "it is worse" in version.why and version.why in run.reason
    assert (run.decision.live, run.decision.new) == (12 / 14, 0.0)
    assert "0.0% right is below the floor of 50.0%" in version.why
    assert run.steps[-1]["step"] == "Refuse"


# When → what the endpoint says, and which version is live.
SEEN = {
    "first": ("models", 1),
    "better": ("features", 2),
    "worse": ("features", 2),
    "rolled back": ("models", 1),
}


@pytest.mark.parametrize("when", SEEN)
def test_the_endpoint_says_what_the_live_version_says(shop, when) -> None:
    assert shop.seen[when] == SEEN[when]


def test_what_is_settled_stays_so(shop, tmp_path) -> None:
    """A repetition makes no further version, and brings no old one back."""
    numbers = [one.number for one in shop.versions.all()]
    assert numbers == [1, 2, 3]
    for name, status in (("better", REJECTED), ("worse", REJECTED)):
        run, version, values = shop.runs[name]
        again = settle(shop.aws, shop.plan, run, values, tmp_path, shop.endpoint)
        assert (again.number, again.status) == (version.number, status)
    run, _, values = shop.runs["better"]
    for number in (2, 3):
        shop.versions.approve(number, "Ada", "after all")
    with pytest.raises(VersionError, match="Version 3 is live and later than 2"):
        settle(shop.aws, shop.plan, run, values, tmp_path, shop.endpoint)
    for number in (2, 3):
        shop.versions.reject(number, "Ada", "after all, no")
    shop.look("again")
    assert shop.seen["again"] == SEEN["rolled back"]
    assert [one.number for one in shop.versions.all()] == numbers


def test_the_answers_can_be_read(shop) -> None:
    run, _, _ = shop.runs["better"]
    told = {one["question"]: one for one in run.answers}
    assert list(told) == [row["instruction"] for row in TEST]
    one = told["What does Studio keep?"]
    assert (one["live"], one["live_right"]) == ("models", False)
    assert (one["new"], one["new_right"]) == ("features", True)


@pytest.mark.parametrize("which", ["better", "worse"])
def test_the_chain_from_data_to_archive_is_whole(shop, which) -> None:
    run, version, values = shop.runs[which]
    (link,) = links(shop.aws, values[DATA_DIGEST], shop.plan.group)
    assert link.version.number == version.number
    assert link.data == values[DATA_DIGEST]
    assert link.job == run.job.rpartition("/")[2]
    assert link.adapter == run.digests["adapter"]
    assert link.doubts == ()
    assert version.origin["execution"] == run.execution
    client, s3 = shop.aws.session.client("sagemaker"), shop.aws.session.client("s3")
    job = client.describe_training_job(TrainingJobName=link.job)
    assert job["HyperParameters"]["num_train_epochs"] == "10"
    places = {
        job["ModelArtifacts"]["S3ModelArtifacts"]: link.adapter,
        version.address: version.archive,
        f"{shop.plan.place(shop.aws, 'data', link.data)}/data.jsonl": link.data,
    }
    for address, expected in places.items():
        bucket, _, key = address.removeprefix("s3://").partition("/")
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert sha256(content).hexdigest() == expected


def test_the_worse_one_was_compared_with_the_better_one(shop) -> None:
    better, worse = shop.runs["better"], shop.runs["worse"]
    assert better[0].digests["live"] == digest(shop.archive)
    assert worse[0].digests["live"] == better[1].archive
    assert worse[2][LIVE] == better[1].address


def test_another_archive_than_was_evaluated_is_not_registered(shop, tmp_path) -> None:
    run, _, values = shop.runs["better"]
    address = f"s3://{shop.aws.bucket}/{shop.plan.name}/first/model.tar.gz"
    with pytest.raises(RunError, match="it was written over"):
        register(shop.aws, shop.plan, replace(run, archive=address), values, tmp_path)
    assert len(shop.versions.all()) == 3


# --- parameters -----------------------------------------------------------------------

ECHO = """
import sys
print("given", sys.argv[1:], flush=True)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def echo(aws, name, tmp_path_factory) -> Plan:
    """A plan whose job prints what it is given, and fails."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "entry.py").write_text(ECHO)
    plan = plan_for(f"{name}-echo", folder)
    for kind in ("data", "test"):
        upload(aws, plan, kind, b"{}\n")
    return plan


def job_of(aws: Aws, plan: Plan) -> dict[str, Any]:
    """Return the one job that a plan has run."""
    client = aws.session.client("sagemaker")
    found = client.list_training_jobs(NameContains=plan.name)["TrainingJobSummaries"]
    (name,) = [one["TrainingJobName"] for one in found]
    return client.describe_training_job(TrainingJobName=name)


def test_parameters_reach_the_job_as_texts_and_its_failure_ends_the_run(
    aws, echo
) -> None:
    kinds = {"word": "it's", "whole": 3, "part": 0.5, "yes": True, "no": False}
    plan = replace(echo, hyperparameters=kinds)
    found = sha256(b"{}\n").hexdigest()
    values = {DATA_DIGEST: found, TEST_DIGEST: found, LIVE: "s3://bucket/key"}
    more = {"whole": 4, "part": 1, "no": True, "Floor": 1}
    with pytest.raises(RunError) as failure:
        run_here(aws, plan, values | more)
    job = job_of(aws, plan)
    texts = job["HyperParameters"]
    assert {name: texts[name] for name in ("whole", "part", "yes", "no")} == {
        "whole": "4",
        "part": "1.0",
        "yes": "true",
        "no": "true",
    }
    assert json.loads(json.loads(texts["word"])) == "it's"
    name = job["TrainingJobName"]
    assert "Nothing was decided. Step 'Train' failed" in str(failure.value)
    assert f"The job {name} is Failed. AlgorithmError" in str(failure.value)


# Values → what is said of them.
WRONG = {
    "unknown": ({"Rate": 1.0}, RunError, "Unknown parameter 'Rate'"),
    "another kind": ({"num_train_epochs": 1.5}, PipelineError, "give one, too"),
    "a number for a text": ({"stop": 3}, PipelineError, "default is a str"),
    "empty": ({LIVE: ""}, RunError, "too short"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_parameters_start_nothing(aws, echo, kind) -> None:
    changes, error, message = WRONG[kind]
    values = {DATA_DIGEST: "a" * 64, TEST_DIGEST: "b" * 64, LIVE: "s3://bucket/key"}
    other = replace(echo, name=f"{echo.name}-not")
    with pytest.raises(error, match=message):
        run_here(aws, other, values | changes)
    client = aws.session.client("sagemaker")
    before = client.list_training_jobs()["TrainingJobSummaries"]
    assert not any(f"{other.name}-" in one["TrainingJobName"] for one in before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Floor": 0.5}, "under another name"),
        ({"modules": ["a"]}, "give a text, a number"),
        ({"stop": ""}, "leave it out"),
    ],
)
def test_a_plan_whose_hyperparameters_are_no_parameters(given, message) -> None:
    with pytest.raises(PipelineError, match=message):
        plan_for("name", Path("source"), hyperparameters=given)


def test_a_source_without_its_script_is_refused(aws, tmp_path) -> None:
    with pytest.raises(PipelineError, match="has no entry.py"):
        build_pipeline(aws, plan_for("name", tmp_path))
    (tmp_path / "entry.py").write_text("")
    with pytest.raises(PipelineError, match="has no more.txt"):
        build_pipeline(aws, plan_for("name", tmp_path, requirements="more.txt"))


def test_what_a_source_needs_is_what_it_brings(tmp_path) -> None:
    assert plan_for("name", tmp_path).needed is None
    (tmp_path / "requirements.txt").write_text("")
    assert plan_for("name", tmp_path).needed == "requirements.txt"
    assert plan_for("name", tmp_path, requirements="more.txt").needed == "more.txt"


# --- the definition for AWS -----------------------------------------------------------


@pytest.fixture(scope="module")
def definition(aws, echo) -> dict[str, Any]:
    kinds = {**RECIPE, "packing": True}
    plan = replace(echo, hyperparameters=kinds, channels={"model": "s3://bucket/base/"})
    return json.loads(build_pipeline(aws, plan).definition())


def resolved(content: Any, given: dict[str, Any]) -> Any:
    """Put values in the place of references, as the service does."""
    if isinstance(content, list):
        return [resolved(one, given) for one in content]
    if not isinstance(content, dict):
        return content
    if set(content) == {"Get"}:
        return given[content["Get"]]
    if set(content) == {"Std:Join"}:
        parts = content["Std:Join"]
        return parts["On"].join(str(resolved(one, given)) for one in parts["Values"])
    if set(content) == {"Std:JsonGet"}:
        found = content["Std:JsonGet"]
        assert found["PropertyFile"] == {
            "Get": "Steps.Evaluate.PropertyFiles.Evaluation"
        }
        value = given["evaluation.json"]
        for key in found["Path"].split("."):
            value = value[key]
        return value
    return {key: resolved(one, given) for key, one in content.items()}


def values_of(definition: dict[str, Any], decision: Any) -> dict[str, Any]:
    """Return values for all references of a definition."""
    digests = {"archive": "a" * 64, "adapter": "b" * 64, "live": "c" * 64}
    given: dict[str, Any] = {
        f"Parameters.{one['Name']}": one.get("DefaultValue", "d" * 64)
        for one in definition["Parameters"]
    }
    job = "arn:aws:sagemaker:us-east-1:123456789012:training-job/pipelines-abc-Train"
    outputs = "Steps.Evaluate.ProcessingOutputConfig.Outputs['archive']"
    return given | {
        f"Parameters.{LIVE}": "s3://bucket/live/model.tar.gz",
        "Execution.PipelineExecutionId": "abc123",
        "Execution.CurrentDateTime": "2026-11-30T03:00:00.000Z",
        "Steps.Train.TrainingJobArn": job,
        "Steps.Train.ModelArtifacts.S3ModelArtifacts": "s3://bucket/j/model.tar.gz",
        f"{outputs}.S3Output.S3Uri": "s3://bucket/runs/abc123/archive",
        "evaluation.json": result(decision, digests),
    }


def test_the_definition_has_these_steps(definition) -> None:
    assert definition["Version"] == "2020-12-01"
    train, evaluates, decides = definition["Steps"]
    kinds = [(one["Name"], one["Type"]) for one in definition["Steps"]]
    assert kinds == [
        ("Train", "Training"),
        ("Evaluate", "Processing"),
        ("IsBetter", "Condition"),
    ]
    assert evaluates["PropertyFiles"] == [
        {
            "PropertyFileName": "Evaluation",
            "OutputName": "evaluation",
            "FilePath": "evaluation.json",
        }
    ]
    (condition,) = decides["Arguments"]["Conditions"]
    assert condition["Type"] == "GreaterThanOrEqualTo" and condition["RightValue"] == 1
    (accepts,) = decides["Arguments"]["IfSteps"]
    rejects, refuses = decides["Arguments"]["ElseSteps"]
    assert [one["Type"] for one in (accepts, rejects, refuses)] == [
        "RegisterModel",
        "RegisterModel",
        "Fail",
    ]
    assert refuses["DependsOn"] == [rejects["Name"]]
    types = {one["Name"]: one["Type"] for one in definition["Parameters"]}
    assert types == {
        **dict.fromkeys((DATA_DIGEST, TEST_DIGEST, LIVE), "String"),
        **{"num_train_epochs": "Integer", "learning_rate": "Float"},
        **{"max_length": "Integer", "stop": "String", "report_to": "String"},
        **{"packing": "String", "MinGain": "Float", "Alpha": "Float"},
        "Floor": "Float",
    }
    assert len(json.dumps(definition)) < 1024 * 1024  # botocore's PipelineDefinition


@pytest.mark.parametrize("better", [True, False])
def test_what_the_steps_send_is_taken_by_aws(definition, better) -> None:
    """Each request is held to botocore's model, all references resolved."""
    decision = compare([not better] * 20, [better] * 20)
    given = values_of(definition, decision)
    given |= {"Parameters.MinGain": 0.25, "Parameters.Floor": 0.5}
    train, evaluates, decides = definition["Steps"]
    arguments = resolved(train["Arguments"], given)
    assert all(isinstance(one, str) for one in arguments["HyperParameters"].values())
    validate_request(
        "sagemaker", "create_training_job", TrainingJobName="one", **arguments
    )
    address = arguments["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert address.endswith(f"/data/{'d' * 64}/data.jsonl")
    arguments = resolved(evaluates["Arguments"], given)
    validate_request(
        "sagemaker", "create_processing_job", ProcessingJobName="one", **arguments
    )
    words = arguments["AppSpecification"]["ContainerArguments"]
    told = dict(zip(words[::2], words[1::2], strict=True))
    rules = {"--min-gain": "0.25", "--alpha": "0.05", "--floor": "0.5"}
    assert rules.items() <= told.items()
    places = [one["S3Input"]["S3Uri"] for one in arguments["ProcessingInputs"]]
    assert places[:2] == ["s3://bucket/j/model.tar.gz", "s3://bucket/live/model.tar.gz"]
    steps = decides["Arguments"]["IfSteps" if better else "ElseSteps"]
    arguments = resolved(steps[0]["Arguments"], given)
    validate_request("sagemaker", "create_model_package", **arguments)
    assert arguments["ModelApprovalStatus"] == (APPROVED if better else REJECTED)
    assert arguments["ModelPackageDescription"] == decision.why
    notes = arguments["CustomerMetadataProperties"]
    assert notes["archive"] == "a" * 64 and notes["data"] == "d" * 64
    assert notes["origin.job"] == given["Steps.Train.TrainingJobArn"]
    assert notes["metric.right"] == ("1" if better else "0")
    if not better:
        message = resolved(steps[1]["Arguments"]["ErrorMessage"], given)
        assert message == decision.why


def test_what_aws_registers_is_a_version_as_any_other(aws, definition) -> None:
    """The registry reads the notes of the pipeline's own step as its own."""
    decision = compare([False] * 20, [True] * 20)
    given = values_of(definition, decision)
    step = definition["Steps"][2]["Arguments"]["IfSteps"][0]
    arguments = resolved(step["Arguments"], given)
    client = aws.session.client("sagemaker")
    group = arguments["ModelPackageGroupName"]
    client.create_model_package_group(ModelPackageGroupName=group)
    client.create_model_package(**arguments)
    found = Versions(aws, group).live()
    assert (found.archive, found.data, found.base) == ("a" * 64, "d" * 64, "tiny")
    assert (found.by, found.why) == ("retraining pipeline", decision.why)
    assert found.hyperparameters["learning_rate"] == "0.02"
    assert found.hyperparameters["packing"] == "true" and "stop" not in (
        found.hyperparameters
    )
    assert found.metrics["p"] == pytest.approx(decision.p, rel=1e-4)
    assert found.address == "s3://bucket/runs/abc123/archive/model.tar.gz"


# --- a run on AWS ---------------------------------------------------------------------

START = datetime(2026, 11, 30, tzinfo=UTC)
TOKEN = {"ClientRequestToken": "a" * 36}  # which botocore itself puts in


class Service:
    """SageMaker's client, whose service runs pipelines as AWS describes it.

    Args:
        client: that answers all else.
        run: what comes of the steps.
        last: the step that ends the execution: one that fails, or registers.
    """

    def __init__(self, client: Any, run: Run, last: str):
        self._client, self.run, self.last = client, run, last
        self.created: dict[str, Any] = {}
        self.started: dict[str, Any] = {}
        self.looks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_pipeline(self, **given: Any) -> dict[str, str]:
        validate_request("sagemaker", "create_pipeline", **TOKEN, **given)
        self.created = given
        return {"PipelineArn": "arn:aws:sagemaker:us-east-1:123456789012:pipeline/one"}

    def start_pipeline_execution(self, **given: Any) -> dict[str, str]:
        validate_request("sagemaker", "start_pipeline_execution", **TOKEN, **given)
        self.started = given
        return {"PipelineExecutionArn": f"{given['PipelineName']}/execution/abc123"}

    def describe_pipeline_execution(self, **given: str) -> dict[str, Any]:
        self.looks += 1
        if self.looks < 3:
            return {**given, "PipelineExecutionStatus": "Executing"}
        if self.last == REGISTERS:
            return {**given, "PipelineExecutionStatus": "Succeeded"}
        failed = {"PipelineExecutionStatus": "Failed", "FailureReason": "Refused."}
        return given | failed

    def get_paginator(self, name: str) -> Any:
        if name != "list_pipeline_execution_steps":
            return self._client.get_paginator(name)
        arn = "arn:aws:sagemaker:us-east-1:123456789012:processing-job/evaluated"
        metadata = {
            "Train": {"TrainingJob": {"Arn": self.run.job}},
            "Evaluate": {"ProcessingJob": {"Arn": arn}},
            "IsBetter": {"Condition": {"Outcome": str(self.last == REGISTERS)}},
            REGISTERS: {"RegisterModel": {"Arn": "a"}},
            "Refuse": {"Fail": {"ErrorMessage": "Refused."}},
        }
        if self.last == "Refuse":
            del metadata[REGISTERS]
        steps = []
        for step in metadata:
            ok = step != self.last or step == REGISTERS
            steps.append(
                {
                    "StepName": step,
                    "StepStatus": "Succeeded" if ok else "Failed",
                    "Metadata": metadata[step],
                    "StartTime": START,
                    "EndTime": START + timedelta(seconds=90),
                    **({} if ok else {"FailureReason": "No capacity."}),
                }
            )
            if step == self.last:
                break
        pages = [{"PipelineExecutionSteps": [one]} for one in steps]
        return SimpleNamespace(paginate=lambda **_: pages)

    def describe_processing_job(self, ProcessingJobName: str) -> Any:  # noqa: N803
        assert ProcessingJobName == "evaluated"
        place = self.run.archive.rpartition("/archive/")[0]
        return {
            "ProcessingOutputConfig": {
                "Outputs": [
                    {"OutputName": one, "S3Output": {"S3Uri": f"{place}/{one}"}}
                    for one in ("evaluation", "archive")
                ]
            }
        }


class OnAws:
    """A session whose SageMaker client is that service."""

    def __init__(self, session: Any, service: Service):
        self._session, self._service = session, service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def client(self, name: str, *given: Any, **named: Any) -> Any:
        if name == "sagemaker":
            return self._service
        return self._session.client(name, *given, **named)


@pytest.mark.parametrize("which", ["better", "worse"])
def test_on_aws_the_same_comes_of_it(shop, tmp_path, monkeypatch, which) -> None:
    """A version that is promoted and one that is refused, each with its reason."""
    run, version, values = shop.runs[which]
    better = which == "better"
    service = Service(
        shop.aws.session.client("sagemaker"), run, REGISTERS if better else "Refuse"
    )
    aws = replace(shop.aws, session=OnAws(shop.aws.session, service))
    plan = replace(shop.plan, group=f"{shop.plan.group}-{which}-there")
    more = {"num_train_epochs": 3, "Floor": 1}
    found = run_on_aws(aws, plan, values | more, first_poll=0.01)
    assert service.looks == 3
    assert found.execution == "abc123"
    assert found.status == run.status == ("Succeeded" if better else "Failed")
    assert found.reason == ("" if better else "Refused.")
    assert found.decision.promote == better
    for name in ("decision", "digests", "archive", "job", "answers"):
        assert getattr(found, name) == getattr(run, name)
    steps = ["Train", "Evaluate", "IsBetter", REGISTERS if better else "Refuse"]
    assert [one["step"] for one in found.steps] == steps
    assert [one["kind"] for one in found.steps[:2]] == ["TrainingJob", "ProcessingJob"]
    assert [one["status"] for one in found.steps[:3]] == ["Succeeded"] * 3
    assert found.steps[3]["status"] == found.status
    assert [one["seconds"] for one in found.steps] == [90.0] * 4
    sent = {one["Name"]: one["Value"] for one in service.started["PipelineParameters"]}
    assert sent["num_train_epochs"] == "3" and sent["Floor"] == "1.0"
    assert sent[LIVE] == values[LIVE] and sent[DATA_DIGEST] == values[DATA_DIGEST]
    steps = json.loads(service.created["PipelineDefinition"])["Steps"]
    assert len(steps[2]["Arguments"]["ElseSteps"]) == 2  # it registers by itself
    (accepts,) = steps[2]["Arguments"]["IfSteps"]
    assert accepts["Name"] == REGISTERS
    # The version that the pipeline's own step has registered is found by the run.
    versions = Versions(shop.aws, plan.group)
    archive = tmp_path / "model.tar.gz"
    bucket, _, key = version.address.removeprefix("s3://").partition("/")
    shop.aws.session.client("s3").download_file(bucket, key, str(archive))
    versions.register(
        archive,
        version.address,
        SERVING_IMAGE,
        data=version.data,
        base="tiny",
        hyperparameters={},
        metrics={},
        origin={"execution": "abc123"},
    )
    settled = (versions.approve if better else versions.reject)(1, BY, version.why)
    served = []
    monkeypatch.setattr(
        "utils.jobs.pipeline_run.serve", lambda _, *given: served.append(given)
    )
    found = settle(shop.aws, plan, found, values, tmp_path, endpoint="faq")
    assert (found.number, found.status) == (1, version.status)
    assert len(versions.all()) == 1
    # Only the endpoint was left to do, and only for a version that was promoted.
    assert served == ([("faq", settled)] if better else [])


def test_on_aws_a_step_that_fails_is_named(shop) -> None:
    run, _, values = shop.runs["worse"]
    client = shop.aws.session.client("sagemaker")
    service = Service(client, run, "Train")
    aws = replace(shop.aws, session=OnAws(shop.aws.session, service))
    with pytest.raises(RunError, match="decided. Step Train: No capacity."):
        run_on_aws(aws, shop.plan, values, first_poll=0.01)


# --- the evaluation job ---------------------------------------------------------------


def test_a_decision_survives_its_file() -> None:
    for decision in (compare([True] * 9, [False] * 9), compare(None, [True])):
        text = json.dumps(result(decision, {"archive": "a"}))
        assert decision_of(json.loads(text)) == decision


def laid_out(shop: Shop, folder: Path) -> list[str]:
    """Lay out what the job is given, but for the candidate; return its words."""
    for name in ("candidate", "live", "test"):
        (folder / name).mkdir()
    (folder / "test" / "test.jsonl").write_bytes(json_lines(TEST))
    (folder / "live" / "model.tar.gz").write_bytes(shop.archive.read_bytes())
    return [
        word
        for name in ("candidate", "live", "test", "evaluation", "archive", "message")
        for word in (f"--{name}", str(folder / name))
    ]


def test_the_rules_that_a_job_is_given_decide(shop, tmp_path) -> None:
    """The better version, held to rules that it does not meet."""
    words = [*laid_out(shop, tmp_path), "--max-new-tokens", "8"]
    run, _, _ = shop.runs["better"]
    name = run.job.rpartition("/")[2]
    client, s3 = shop.aws.session.client("sagemaker"), shop.aws.session.client("s3")
    job = client.describe_training_job(TrainingJobName=name)
    address = job["ModelArtifacts"]["S3ModelArtifacts"]
    bucket, _, key = address.removeprefix("s3://").partition("/")
    s3.download_file(bucket, key, str(tmp_path / "candidate" / "model.tar.gz"))
    assert evaluation.main([*words, "--floor", "0.95", "--min-gain", "0.9"]) == 0
    told = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert told["promote"] == 0 and told["gain"] == run.decision.gain
    assert told["why"].startswith(
        "refuse: 85.7% right is below the floor of 95.0%; the gain is below 90.0 points"
    )
    assert told["groups"] == 13


def test_a_job_that_cannot_compare_says_why(shop, tmp_path) -> None:
    words = laid_out(shop, tmp_path)
    assert evaluation.main(words) == 1
    said = (tmp_path / "message").read_text()
    assert said == "The input candidate holds 0 files *.tar.gz, expected one."
    (tmp_path / "candidate" / "model.tar.gz").write_bytes(b"no archive")
    assert evaluation.main(words) == 1
    assert "cannot be unpacked" in (tmp_path / "message").read_text()
    assert not (tmp_path / "evaluation").exists()


def test_an_archive_without_an_adapter_is_no_candidate(shop, tmp_path) -> None:
    from utils.deployment.artifact import pack

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.txt").write_text("x")
    empty = pack(tmp_path / "folder", tmp_path / "empty.tar.gz")
    with pytest.raises(EvaluationError, match="holds 0 adapters.*other.txt"):
        evaluate(empty, shop.archive, TEST, tmp_path / "new.tar.gz")


def test_parameter_values_are_of_their_kind() -> None:
    plan = plan_for("name", Path("source"), hyperparameters={"a": 0.5, "b": False})
    found = parameter_values(plan, {"a": 1, "b": True, "Floor": 0, LIVE: "s3://a/b"})
    assert found == {"a": 1.0, "b": "true", "Floor": 0.0, LIVE: "s3://a/b"}
    assert isinstance(found["a"], float)
