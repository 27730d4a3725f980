"""The offline AWS: control plane, endpoints, and that nothing leaves this machine."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import urllib.parse
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError
from tiny_artifact import QUESTIONS, build_tiny

from utils import local_aws
from utils.billing import BillingGuard, DeploymentError, wait_until_in_service
from utils.course import ROOT, run_config
from utils.helpers import INFERENCE_PROMPT
from utils.local_aws import AwsError, OfflineAws, connect
from utils.models import ModelSettings, generate, load_model, load_tokenizer

ECHO = """
import os
from djl_python import Input, Output

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    body = inputs.get_as_json()
    if body == "die":
        os._exit(1)
    if body == "pid":
        body = os.getpid()
    if body == "mine":
        body = os.environ.get("MINE")
    return Output().add_property("content-type", "application/json").add_as_json(body)
"""


@pytest.fixture(scope="module")
def aws():
    before = dict(os.environ)
    yield connect(run_config({}))
    OfflineAws.running().close()
    assert dict(os.environ) == before
    assert not [p for p in psutil.Process().children(True) if p.status() != "zombie"]


@pytest.fixture
def guard(aws):
    with BillingGuard(aws, say=lambda _: None) as guard:
        yield guard
    assert guard.remaining() == []
    assert guard.run not in " ".join(OfflineAws.running().endpoints)


def upload(aws, guard, files, name="model.tar.gz"):
    archive = Path(os.environ.get("TMPDIR", "/tmp")) / f"{guard.run}-{name}"
    with tarfile.open(archive, "w:gz") as tar:
        for path, text in files.items():
            file = archive.with_suffix(".part")
            file.write_text(text)
            tar.add(file, arcname=path)
            file.unlink()
    key = f"{guard.run}/{name}"
    aws.session.client("s3").upload_file(str(archive), aws.bucket, key)
    archive.unlink()
    return f"s3://{aws.bucket}/{key}"


def deploy(aws, guard, address, what="echo", variants=None, **more):
    """Creates model, configuration and endpoint through the SageMaker SDK."""
    from sagemaker.core.resources import Endpoint, EndpointConfig, Model
    from sagemaker.core.shapes import ContainerDefinition, ProductionVariant

    where = {"session": aws.session, "region": aws.region}
    name = guard.name(what)
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.36.0"
    container = ContainerDefinition(image=image, model_data_url=address, **more)
    Model.create(
        model_name=name,
        execution_role_arn=aws.role,
        primary_container=container,
        **where,
    )
    EndpointConfig.create(
        endpoint_config_name=name,
        production_variants=[
            ProductionVariant(
                variant_name=variant,
                model_name=name,
                instance_type="ml.g5.xlarge",
                initial_instance_count=1,
                initial_variant_weight=weight,
            )
            for variant, weight in (variants or {"AllTraffic": 1}).items()
        ],
        **where,
    )
    return Endpoint.create(endpoint_name=name, endpoint_config_name=name, **where)


def ask(aws, name, body, **more):
    reply = aws.session.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name,
        Body=json.dumps(body),
        ContentType="application/json",
        **more,
    )
    return json.loads(reply["Body"].read())


@pytest.fixture(scope="module")
def echo(aws):
    """An endpoint that several tests share."""
    guard = BillingGuard(aws, say=lambda _: None)
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address, environment={"MINE": "yes"})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    guard._stop_watching()
    BillingGuard.active = None  # the tests' own guards must not close this one
    yield endpoint
    guard.teardown()
    assert guard.remaining() == []


# --- nothing leaves this machine ------------------------------------------------------


def test_every_client_talks_to_this_machine(aws):
    from sagemaker.core.utils.utils import SageMakerClient

    clients = [
        session.client(service)
        for session in (aws.session, boto3.Session(), boto3)
        for service in ("s3", "sts", "iam", "sagemaker", "sagemaker-runtime", "logs")
    ]
    sdk = SageMakerClient(session=aws.session, region_name=aws.region)
    clients += [sdk.sagemaker_client, sdk.sagemaker_runtime_client]
    for client in clients:
        host = urllib.parse.urlsplit(client.meta.endpoint_url).hostname
        assert host == "127.0.0.1", client.meta.service_model.service_name


REAL_LOOKING = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
    "AWS_PROFILE": "work",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL_S3": "http://10.0.0.1",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "HTTP_PROXY": "http://10.0.0.2:3128",
    "HTTPS_PROXY": "http://10.0.0.2:3128",
    "NO_PROXY": "",
}


def test_real_credentials_in_the_environment_are_not_used(tmp_path):
    profile = tmp_path / "config"
    profile.write_text(
        "[profile work]\nregion=eu-west-1\nendpoint_url=http://10.0.0.3\n"
    )
    code = """
        import boto3, socket, urllib.parse
        connect = socket.socket.connect
        def here(self, address):
            assert address[0] == "127.0.0.1", address
            connect(self, address)
        socket.socket.connect = here
        boto3.setup_default_session(profile_name="work")
        from utils.course import connect_aws, run_config
        aws = connect_aws(run_config({}))
        for session in (aws.session, boto3):
            client = session.client("s3")
            assert client.meta.endpoint_url.startswith("http://127.0.0.1:")
            key = client._request_signer._credentials.access_key
            assert key == "offline", key
            assert aws.bucket in [b["Name"] for b in client.list_buckets()["Buckets"]]
        aws.session.client("s3").put_object(Bucket=aws.bucket, Key="k", Body=b"x")
        assert aws.session.client("sts").get_caller_identity()["Account"] in aws.role
        print("done")
    """
    environment = {**os.environ, **REAL_LOOKING, "AWS_CONFIG_FILE": str(profile)}
    done = run_python(code, environment)
    assert done.stdout == "done\n", done.stderr


def run_python(code, environment=None):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_connecting_again_gives_the_same(aws):
    assert connect(run_config({"COURSE_AWS": "local"})) is aws
    assert aws.role.endswith(":role/course-sagemaker-execution")
    aws.session.client("s3").head_bucket(Bucket=aws.bucket)
    role = aws.session.client("iam").get_role(RoleName=aws.role.split("/")[-1])["Role"]
    principal = role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]
    assert principal == {"Service": "sagemaker.amazonaws.com"}


def test_changing_to_the_real_aws_needs_a_new_process(aws):
    with pytest.raises(AwsError, match="restart the kernel"):
        connect(run_config({"COURSE_AWS": "real"}))


# --- the real AWS, as far as moto can stand in ----------------------------------------

CALLER = "arn:aws:sts::123456789012:assumed-role/Studio/learner"


def test_role_from_the_variable(aws, monkeypatch):
    given = "arn:aws:iam::123456789012:role/path/Execution"
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", f" {given} ")
    assert local_aws.execution_role(aws.session, CALLER) == given
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", "Execution")
    with pytest.raises(AwsError, match="expected a role's ARN"):
        local_aws.execution_role(aws.session, CALLER)


def test_role_of_studio_is_looked_up_and_a_user_is_refused(aws):
    aws.session.client("iam").create_role(
        RoleName="Studio", Path="/service-role/", AssumeRolePolicyDocument="{}"
    )
    role = local_aws.execution_role(aws.session, CALLER)
    assert role == "arn:aws:iam::123456789012:role/service-role/Studio"
    with pytest.raises(AwsError, match="SageMaker cannot assume"):
        local_aws.execution_role(aws.session, "arn:aws:iam::123456789012:user/me")
    with pytest.raises(AwsError, match="cannot be read"):
        local_aws.execution_role(aws.session, CALLER.replace("Studio", "Gone"))


def test_bucket_is_named_never_guessed(aws, monkeypatch):
    with pytest.raises(AwsError, match="sagemaker-us-east-1-123456789012"):
        local_aws.artifact_bucket(aws.session, "123456789012")
    monkeypatch.setenv("SAGEMAKER_BUCKET", aws.bucket)
    assert local_aws.artifact_bucket(aws.session, "123456789012") == aws.bucket


# --- endpoints ------------------------------------------------------------------------


def test_answers_of_base_plus_adapter_and_of_the_base_alone(aws, guard, tmp_path):
    """Token for token, on twenty questions; then with the adapter removed."""
    from peft import PeftModel

    archive = build_tiny(tmp_path)
    s3 = aws.session.client("s3")
    s3.upload_file(str(archive), aws.bucket, f"{guard.run}/with.tar.gz")
    settings = ModelSettings("tiny", str(tmp_path / "saved_base"), machine="any")
    tokenizer = load_tokenizer(settings)
    prompts = [INFERENCE_PROMPT.format(instruction=text) for text in QUESTIONS]
    base = generate(load_model(settings), tokenizer, prompts, 16)
    tuned_model = PeftModel.from_pretrained(
        load_model(settings), tmp_path / "saved_adapter"
    )
    tuned = generate(tuned_model, tokenizer, prompts, 16)
    assert tuned != base

    from utils import artifact

    bare = artifact.build(
        tmp_path / "saved_base",
        None,
        tmp_path / "bare",
        tmp_path / "bare.tar.gz",
        options={"option.max_new_tokens": 16},
    )
    s3.upload_file(str(bare), aws.bucket, f"{guard.run}/without.tar.gz")
    statuses = []
    for what, expected in [("with", tuned), ("without", base)]:
        address = f"s3://{aws.bucket}/{guard.run}/{what}.tar.gz"
        endpoint = deploy(aws, guard, address, what)
        wait_until_in_service(aws, endpoint, say=statuses.append)
        answers = ask(aws, endpoint.endpoint_name, {"inputs": QUESTIONS})
        assert [answer["generated_text"] for answer in answers] == expected
    assert statuses == ["Creating", "InService"] * 2


def test_environment_of_the_model_reaches_the_container(aws, echo):
    assert ask(aws, echo.endpoint_name, "mine") == "yes"


def test_error_of_the_container_is_a_model_error(aws, echo):
    client = aws.session.client("sagemaker-runtime")
    with pytest.raises(client.exceptions.ModelError) as failure:
        client.invoke_endpoint(EndpointName=echo.endpoint_name, Body=b"no json")
    response = failure.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 424
    assert "Expecting value" in json.loads(response["OriginalMessage"])["error"]


def test_missing_endpoint(aws):
    with pytest.raises(ClientError, match=r"Endpoint nosuch of account \d+ not found"):
        ask(aws, "nosuch", {})


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.py": "import nosuch_module"}, "nosuch_module"),
        ({"serving.properties": "engine=DeepSpeed", "model.py": ECHO}, "DeepSpeed"),
        (
            {"serving.properties": "option.async_mode=true", "model.py": ECHO},
            "restarts the worker for ever",
        ),
        ({"README.md": "hello", "lora/model.py": ECHO}, "Failed to detect engine"),
    ],
)
def test_broken_artifact_is_failed_with_the_reason(aws, guard, files, reason):
    endpoint = deploy(aws, guard, upload(aws, guard, files))
    statuses = []
    with pytest.raises(DeploymentError, match=reason) as failure:
        wait_until_in_service(aws, endpoint, say=statuses.append)
    assert statuses == ["Creating", "Failed"]
    assert "did not pass the ping health check" in str(failure.value)
    assert "Its log ends:" in str(failure.value)
    with pytest.raises(ClientError, match="not found"):
        ask(aws, endpoint.endpoint_name, {})


def test_missing_archive_is_failed_with_the_reason(aws, guard):
    endpoint = deploy(aws, guard, f"s3://{aws.bucket}/nosuch.tar.gz")
    with pytest.raises(DeploymentError, match="no model data at s3"):
        wait_until_in_service(aws, endpoint, say=lambda _: None)


def test_killed_worker_is_replaced(aws, guard):
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address)
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name = endpoint.endpoint_name
    first = ask(aws, name, "pid")
    with pytest.raises(ClientError, match="Python worker disconnected"):
        ask(aws, name, "die")
    assert wait_for(lambda: ask(aws, name, "pid")) != first
    server = OfflineAws.running().endpoints[name].variants[0].container.process
    server.kill()
    server.wait()
    assert wait_for(lambda: ask(aws, name, [1])) == [1]


def wait_for(call, seconds=20):
    """The call's result, as soon as it raises no more."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_variants_share_the_traffic(aws, guard):
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address, variants={"old": 3, "new": 1})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    client = aws.session.client("sagemaker-runtime")
    name = endpoint.endpoint_name
    served = [
        client.invoke_endpoint(EndpointName=name, Body=b"1")["InvokedProductionVariant"]
        for _ in range(60)
    ]
    assert 30 <= served.count("old") <= 57  # 45 expected; six sigma below
    assert served.count("new") == 60 - served.count("old")
    pids = {ask(aws, name, "pid", TargetVariant=v) for v in ("old", "new", "old")}
    assert len(pids) == 2
    with pytest.raises(ClientError, match="production variant"):
        ask(aws, name, 1, TargetVariant="nosuch")


def test_deleting_stops_the_worker(aws, guard):
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": ECHO}))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    pid = ask(aws, endpoint.endpoint_name, "pid")
    endpoint.delete()
    assert gone_within(pid, 5)
    with pytest.raises(ClientError, match="Could not find"):
        endpoint.refresh()


def test_deleting_while_creating_leaves_nothing(aws, guard):
    slow = ECHO.replace("return None", "__import__('time').sleep(30)")
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": slow}))
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    container = own.variants[0].container
    server, worker = wait_for_worker(container)
    endpoint.delete()
    assert container.process.returncode is not None
    assert all(gone_within(process.pid, 5) for process in (server, worker))
    time.sleep(2 * local_aws.HEALTH_CHECK_INTERVAL)
    assert container.process.pid == server.pid  # nothing was started in its place


def wait_for_worker(container, seconds=20):
    """The container's own process and the worker below it, once both are there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if container.process is not None:
            server = psutil.Process(container.process.pid)
            if workers := server.children(True):
                return server, workers[0]
        time.sleep(0.05)
    raise AssertionError(f"no worker after {seconds} s: {list(container.log)}")


@pytest.mark.parametrize("pause", [0, 0.02, 0.1, 0.3])
def test_deleting_at_once_leaves_nothing(aws, guard, pause):
    """Whether its process exists already, or not yet, or only just."""
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": ECHO}))
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    container = own.variants[0].container
    time.sleep(pause)
    below = []
    if container.process is not None:
        below = psutil.Process(container.process.pid).children(True)
    endpoint.delete()
    own._thread.join(5)
    assert not own._thread.is_alive()
    assert container.process is None or container.process.returncode is not None
    assert all(gone_within(process.pid, 5) for process in below)


def gone_within(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie":
            return True
        time.sleep(0.05)
    return False


def test_names_are_taken_once(aws, guard, echo):
    client = aws.session.client("sagemaker")
    name = echo.endpoint_name
    config = client.describe_endpoint_config(EndpointConfigName=name)
    with pytest.raises(ClientError, match="already existing endpoint"):
        client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    with pytest.raises(ClientError, match="already existing endpoint configuration"):
        client.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=config["ProductionVariants"]
        )
    with pytest.raises(ClientError, match="already existing model"):
        client.create_model(
            ModelName=name, ExecutionRoleArn=aws.role, PrimaryContainer={"Image": "x"}
        )


@pytest.mark.parametrize("instance", ["ml.g5.xlarge", "ml.g6e.12xlarge", "ml.m5.large"])
def test_instance_types_of_today(aws, guard, echo, instance):
    client = aws.session.client("sagemaker")
    variant = {
        "VariantName": "a",
        "ModelName": echo.endpoint_name,
        "InitialInstanceCount": 1,
    }
    client.create_endpoint_config(
        EndpointConfigName=guard.name("types"),
        ProductionVariants=[{**variant, "InstanceType": instance}],
    )
    with pytest.raises(ClientError, match="expected a type such as"):
        client.create_endpoint_config(
            EndpointConfigName=guard.name("wrong"),
            ProductionVariants=[{**variant, "InstanceType": "g5.xlarge"}],
        )


def test_plain_boto3_waits_and_asks(aws, guard, echo):
    client = boto3.client("sagemaker")
    client.get_waiter("endpoint_in_service").wait(EndpointName=echo.endpoint_name)
    found = client.describe_endpoint(EndpointName=echo.endpoint_name)
    assert found["EndpointStatus"] == "InService"
    listed = client.list_endpoints(StatusEquals="InService")["Endpoints"]
    assert echo.endpoint_name in [item["EndpointName"] for item in listed]


SCRIPT = """
import io, sys, tarfile, time, signal
from utils.course import connect_aws, run_config
aws = connect_aws(run_config({}))
source = MODEL
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w:gz") as tar:
    member = tarfile.TarInfo("model.py")
    member.size = len(source)
    tar.addfile(member, io.BytesIO(source))
aws.session.client("s3").put_object(
    Bucket=aws.bucket, Key="m.tar.gz", Body=data.getvalue()
)
client = aws.session.client("sagemaker")
client.create_model(
    ModelName="m",
    ExecutionRoleArn=aws.role,
    PrimaryContainer={"Image": "x", "ModelDataUrl": f"s3://{aws.bucket}/m.tar.gz"},
)
client.create_endpoint_config(
    EndpointConfigName="m",
    ProductionVariants=[{
        "VariantName": "a", "ModelName": "m", "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }],
)
client.create_endpoint(EndpointName="m", EndpointConfigName="m")
client.get_waiter("endpoint_in_service").config.delay = 1
while client.describe_endpoint(EndpointName="m")["EndpointStatus"] == "Creating":
    time.sleep(0.1)
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_parent_leaves_no_worker(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("MODEL", repr(ECHO.encode()))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    workers = [child.pid for child in psutil.Process(process.pid).children(True)]
    assert len(workers) >= 2  # the front end and the worker behind it
    process.send_signal(number)
    process.wait(20)
    assert all(gone_within(pid, 8) for pid in workers)
