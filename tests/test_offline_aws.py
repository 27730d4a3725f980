"""The offline AWS: control plane, endpoints, and that nothing leaves this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import urllib.parse
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from support.tiny_artifact import QUESTIONS, build_tiny
from utils.course import ROOT, run_config
from utils.deployment.aws import (
    AwsError,
    DeploymentError,
    artifact_bucket,
    connect_aws,
    execution_role,
    wait_until_in_service,
)
from utils.deployment.billing import BillingGuard
from utils.djl_python import process
from utils.djl_python.process import Container
from utils.helpers import INFERENCE_PROMPT
from utils.models import ModelSettings, generate, load_model, load_tokenizer
from utils.offline_aws.control_plane import OfflineAws
from utils.offline_aws.endpoints import HEALTH_CHECK_INTERVAL
from utils.offline_aws.invocations import encode_event

ECHO = """
import os
import time
from djl_python import Input, Output

def count(breaks=False, folder=None):
    for number in range(3):
        yield f"{number} of 3 \\u00e9\\n"
        time.sleep(0.3)
        while folder and not os.path.exists(f"{folder}/{number + 1}"):
            time.sleep(0.01)
        if breaks:
            os._exit(1)

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
    if body == "slow":
        time.sleep(1.5)
    if body == "count":
        return Output().add_stream_content(count(), lambda item: item)
    if str(body).startswith("count "):
        parts = count(folder=body.partition(" ")[2])
        return Output().add_stream_content(parts, lambda item: item)
    if body == "break":
        return Output().add_stream_content(count(breaks=True), lambda item: item)
    return Output().add_property("content-type", "application/json").add_as_json(body)
"""


@pytest.fixture(scope="module")
def aws():
    before = dict(os.environ)
    yield connect_aws(run_config({}))
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
    """Those of all services that the course names, from whatever session."""
    from sagemaker.core.utils.utils import SageMakerClient

    sources = [*ROOT.glob("utils/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    named = re.compile(r'\.client\(\s*\\?"([a-z0-9-]+)')
    services = {
        service
        for path in sources
        for service in named.findall(path.read_text(encoding="utf-8"))
    }
    assert {"s3", "sagemaker", "sagemaker-runtime", "logs", "pricing"} <= services
    clients = [
        session.client(service)
        for session in (aws.session, boto3.Session(), boto3)
        for service in services | {"sts", "iam", "ecr", "cloudwatch", "service-quotas"}
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
        from utils.course import run_config
        from utils.deployment.aws import connect_aws
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


DEPLOY = """
import json, tarfile, io
from utils.deployment.aws import wait_until_in_service
from utils.deployment.billing import BillingGuard
from utils.course import run_config
from utils.deployment.aws import connect_aws
aws = connect_aws(run_config({}))
source = MODEL
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w:gz") as tar:
    member = tarfile.TarInfo("model.py")
    member.size = len(source)
    tar.addfile(member, io.BytesIO(source))
from sagemaker.core import image_uris
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import ContainerDefinition, ProductionVariant
where = {"session": aws.session, "region": aws.region}
with BillingGuard(aws) as guard:
    s3 = aws.session.client("s3")
    s3.put_object(Bucket=aws.bucket, Key="m.tar.gz", Body=data.getvalue())
    name = guard.name("a")
    image = image_uris.retrieve("djl-lmi", region=aws.region, version="0.36.0")
    Model.create(
        model_name=name,
        execution_role_arn=aws.role,
        primary_container=ContainerDefinition(
            image=image, model_data_url=f"s3://{aws.bucket}/m.tar.gz"
        ),
        **where,
    )
    EndpointConfig.create(
        endpoint_config_name=name,
        production_variants=[
            ProductionVariant(
                variant_name="a", model_name=name, instance_type="ml.g5.xlarge",
                initial_instance_count=1,
            )
        ],
        **where,
    )
    endpoint = Endpoint.create(endpoint_name=name, endpoint_config_name=name, **where)
    wait_until_in_service(aws, endpoint)
    reply = endpoint.invoke(body=b"[1]", content_type="application/json", **where)
    assert json.loads(reply.body.read()) == [1]
    runtime = aws.session.client("sagemaker-runtime")
    stream = runtime.invoke_endpoint_with_response_stream(EndpointName=name, Body=b"1")
    assert len(list(stream["Body"])) == 1
print("done")
"""

# Imported by every Python process that finds it on its path: writes down whatever name
# is looked up and whatever address is called that is not this machine's.
WATCH = """
import os, socket

def note(what):
    with open(os.environ["WATCH_LOG"], "a") as log:
        log.write(f"{os.getpid()} {what}\\n")

HERE = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", None)
connect, look_up = socket.socket.connect, socket.getaddrinfo

def watched_connect(self, address):
    if isinstance(address, tuple) and address[0] not in HERE:
        note(f"connects to {address}")
        raise OSError("watched")
    return connect(self, address)

def watched_look_up(host, *rest, **more):
    if host not in HERE:
        note(f"looks up {host}")
        raise OSError("watched")
    return look_up(host, *rest, **more)

socket.socket.connect = watched_connect
socket.getaddrinfo = watched_look_up
note("started") if os.environ.get("WATCH_STARTS") else None
"""


def test_a_whole_deployment_sends_nothing_away(tmp_path):
    """Not this process, nor one that it starts, with credentials that look real."""
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(WATCH))
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        **REAL_LOOKING,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "WATCH_LOG": str(log),
        "WATCH_STARTS": "yes",
    }
    done = run_python(DEPLOY.replace("MODEL", repr(ECHO.encode())), environment)
    assert done.stdout.endswith("done\n"), done.stderr
    lines = log.read_text().splitlines()
    started = [line for line in lines if line.endswith("started")]
    assert len(started) >= 3  # this one, the container, its worker
    assert [line for line in lines if not line.endswith("started")] == []


def test_sdk_calls_that_ignore_the_endpoint_variable_are_not_used():
    """They would ask the real STS, whatever AWS_ENDPOINT_URL says."""
    forbidden = ("default_bucket(", "get_caller_identity_arn(", "get_execution_role(")
    for path in [*ROOT.glob("utils/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], path.name


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
    assert connect_aws(run_config({"COURSE_AWS": "local"})) == aws
    assert aws.role.endswith(":role/course-sagemaker-execution")
    aws.session.client("s3").head_bucket(Bucket=aws.bucket)
    role = aws.session.client("iam").get_role(RoleName=aws.role.split("/")[-1])["Role"]
    principal = role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]
    assert principal == {"Service": "sagemaker.amazonaws.com"}


def test_changing_to_the_real_aws_needs_a_new_process(aws):
    with pytest.raises(AwsError, match="restart the kernel"):
        connect_aws(run_config({"COURSE_AWS": "real"}))


# --- the real AWS, as far as moto can stand in ----------------------------------------

CALLER = "arn:aws:sts::123456789012:assumed-role/Studio/learner"


def test_role_from_the_variable(aws, monkeypatch):
    given = "arn:aws:iam::123456789012:role/path/Execution"
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", f" {given} ")
    assert execution_role(aws.session, CALLER) == given
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", "Execution")
    with pytest.raises(AwsError, match="expected a role's ARN"):
        execution_role(aws.session, CALLER)


def test_role_of_studio_is_looked_up_and_a_user_is_refused(aws):
    aws.session.client("iam").create_role(
        RoleName="Studio", Path="/service-role/", AssumeRolePolicyDocument="{}"
    )
    role = execution_role(aws.session, CALLER)
    assert role == "arn:aws:iam::123456789012:role/service-role/Studio"
    with pytest.raises(AwsError, match="SageMaker cannot assume"):
        execution_role(aws.session, "arn:aws:iam::123456789012:user/me")
    with pytest.raises(AwsError, match="cannot be read"):
        execution_role(aws.session, CALLER.replace("Studio", "Gone"))


def test_bucket_is_named_never_guessed(aws, monkeypatch):
    with pytest.raises(AwsError, match="sagemaker-us-east-1-123456789012"):
        artifact_bucket(aws.session, "123456789012")
    monkeypatch.setenv("SAGEMAKER_BUCKET", aws.bucket)
    assert artifact_bucket(aws.session, "123456789012") == aws.bucket


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

    from utils.deployment import artifact

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


def wait_for(call, seconds=60):
    """The call's result, as soon as it raises no more."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def stream(aws, name, body):
    reply = aws.session.client(
        "sagemaker-runtime"
    ).invoke_endpoint_with_response_stream(
        EndpointName=name, Body=json.dumps(body), ContentType="application/json"
    )
    return reply["Body"]


def test_stream_comes_in_parts_as_they_are_made(aws, echo, tmp_path):
    """The handler goes on only when what it has made has come."""
    parts = []
    for event in stream(aws, echo.endpoint_name, f"count {tmp_path}"):
        parts.append(event["PayloadPart"]["Bytes"].decode())
        (tmp_path / str(len(parts))).touch()
    assert parts == ["0 of 3 é\n", "1 of 3 é\n", "2 of 3 é\n"]


def test_answer_that_is_no_stream_is_one_part(aws, echo):
    events = list(stream(aws, echo.endpoint_name, {"a": "é" * 100}))
    assert json.loads(b"".join(event["PayloadPart"]["Bytes"] for event in events)) == {
        "a": "é" * 100
    }


def test_stream_says_its_variant_and_the_content_type_of_the_answer(aws, echo):
    """By boto3: the SageMaker SDK's own call fails on any event stream."""
    client = aws.session.client("sagemaker-runtime")
    reply = client.invoke_endpoint_with_response_stream(
        EndpointName=echo.endpoint_name, Body=b"[1]"
    )
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    assert reply["ContentType"] == "application/json"
    assert len(list(reply["Body"])) == 1


def test_errors_of_a_stream(aws, echo):
    """Before the first part the usual ones; after it, one within the stream."""
    from botocore.exceptions import EventStreamError

    client = aws.session.client("sagemaker-runtime")
    with pytest.raises(ClientError, match=r"Endpoint nosuch of account \d+ not found"):
        stream(aws, "nosuch", "count")
    with pytest.raises(client.exceptions.ModelError, match="Received client error"):
        client.invoke_endpoint_with_response_stream(
            EndpointName=echo.endpoint_name, Body=b"no json"
        )
    seen = []
    with pytest.raises(EventStreamError, match="StreamBroken|connection was closed"):
        for event in stream(aws, echo.endpoint_name, "break"):
            seen.append(event["PayloadPart"]["Bytes"].decode())
    assert seen == ["0 of 3 é\n"]
    assert wait_for(lambda: ask(aws, echo.endpoint_name, [1])) == [1]


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_events_are_encoded_as_botocore_decodes_them(size):
    from botocore.eventstream import EventStreamBuffer

    headers = {":message-type": "event", "a-name": "größer"}
    encoded = [encode_event(headers, bytes([n]) * size) for n in range(2)]
    buffer = EventStreamBuffer()
    whole = b"".join(encoded)
    for start in range(0, len(whole), 1000):
        buffer.add_data(whole[start : start + 1000])
    events = list(buffer)
    assert [event.payload for event in events] == [bytes([n]) * size for n in range(2)]
    assert all(event.headers == headers for event in events)


def test_invocation_that_takes_too_long_is_a_model_error(aws, echo, monkeypatch):
    monkeypatch.setattr(process, "INVOKE_TIMEOUT", 0.5)
    client = aws.session.client("sagemaker-runtime")
    with pytest.raises(client.exceptions.ModelError, match="timed out") as failure:
        ask(aws, echo.endpoint_name, "slow")
    assert failure.value.response["OriginalStatusCode"] == 0


# --- replacing what is behind an endpoint ---------------------------------------------


def new_config(aws, guard, files, what, variants=None):
    """Creates model and configuration with this artifact; returns their name."""
    client = aws.session.client("sagemaker")
    name = guard.name(what)
    address = upload(aws, guard, files, f"{what}.tar.gz")
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": "x", "ModelDataUrl": address},
    )
    client.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {
                "VariantName": variant,
                "ModelName": name,
                "InstanceType": "ml.g5.xlarge",
                "InitialInstanceCount": 1,
                "InitialVariantWeight": weight,
            }
            for variant, weight in (variants or {"AllTraffic": 1}).items()
        ],
    )
    return name


def answering(text):
    return {"model.py": ECHO.replace("body = os.getpid()", f"body = {text!r}")}


class Traffic:
    """Requests without a pause, from four clients; what they got is kept."""

    def __init__(self, aws, name):
        self.answers, self.errors = [], []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(aws, name)) for _ in range(4)
        ]

    def _ask(self, aws, name):
        while not self._ended.is_set():
            try:
                self.answers.append(ask(aws, name, "pid"))
            except Exception as error:
                self.errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_update_moves_the_traffic_without_a_failed_request(aws, guard):
    endpoint = deploy(aws, guard, upload(aws, guard, answering("old")))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name, old = endpoint.endpoint_name, endpoint.endpoint_config_name
    new = new_config(aws, guard, answering("new"), "new")
    client = aws.session.client("sagemaker")
    before = OfflineAws.running().endpoints[name].variants
    with Traffic(aws, name) as traffic:
        running = threading.Thread(target=ask, args=(aws, name, "slow"))
        running.start()
        client.update_endpoint(EndpointName=name, EndpointConfigName=new)
        found = client.describe_endpoint(EndpointName=name)
        assert found["EndpointStatus"] == "Updating"
        assert found["EndpointConfigName"] == old  # until the new one serves
        with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
            client.update_endpoint(EndpointName=name, EndpointConfigName=new)
        statuses = []
        wait_until_in_service(aws, endpoint, say=statuses.append)
        running.join()
        time.sleep(0.2)
    assert statuses == ["Updating", "InService"]
    assert traffic.errors == []
    assert set(traffic.answers) == {"old", "new"}
    assert traffic.answers[-1] == "new"
    found = client.describe_endpoint(EndpointName=name)
    assert found["EndpointConfigName"] == new
    assert "FailureReason" not in found
    assert all(variant.container.process.returncode is not None for variant in before)


def test_update_that_fails_rolls_back_with_the_reason(aws, guard):
    endpoint = deploy(aws, guard, upload(aws, guard, answering("old")))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    name, old = endpoint.endpoint_name, endpoint.endpoint_config_name
    bad = new_config(aws, guard, {"model.py": "import nosuch_module"}, "bad")
    client = aws.session.client("sagemaker")
    with Traffic(aws, name) as traffic:
        client.update_endpoint(EndpointName=name, EndpointConfigName=bad)
        with pytest.raises(DeploymentError, match="nosuch_module") as failure:
            wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert "the previous configuration" in str(failure.value)
    assert traffic.errors == []
    assert set(traffic.answers) == {"old"}
    found = client.describe_endpoint(EndpointName=name)
    assert found["EndpointStatus"] == "InService"
    assert found["EndpointConfigName"] == old
    assert "nosuch_module" in found["FailureReason"]
    assert ask(aws, name, "pid") == "old"
    # A further update that succeeds takes the reason away.
    good = new_config(aws, guard, answering("new"), "good")
    client.update_endpoint(EndpointName=name, EndpointConfigName=good)
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert ask(aws, name, "pid") == "new"


def test_failed_endpoint_cannot_be_updated(aws, guard):
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": "import nosuch"}))
    with pytest.raises(DeploymentError):
        wait_until_in_service(aws, endpoint, say=lambda _: None)
    client = aws.session.client("sagemaker")
    with pytest.raises(ClientError, match="Cannot update failed endpoint"):
        client.update_endpoint(
            EndpointName=endpoint.endpoint_name,
            EndpointConfigName=endpoint.endpoint_config_name,
        )
    with pytest.raises(ClientError, match="Could not find endpoint"):
        client.update_endpoint(EndpointName="nosuch", EndpointConfigName="nosuch")


def test_deleting_while_updating_leaves_nothing(aws, guard):
    endpoint = deploy(aws, guard, upload(aws, guard, answering("old")))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    slow = ECHO.replace("return None", "time.sleep(30)")
    new = new_config(aws, guard, {"model.py": slow}, "new")
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    client = aws.session.client("sagemaker")
    client.update_endpoint(EndpointName=endpoint.endpoint_name, EndpointConfigName=new)
    containers = [variant.container for variant in (*own.variants, *own._coming)]
    assert len(containers) == 2
    below = [one for container in containers for one in wait_for_worker(container)]
    endpoint.delete()
    assert all(gone_within(process.pid, 60) for process in below)
    assert not any(thread.is_alive() for thread in own._threads)


def test_weights_can_be_changed_and_are_kept_by_an_update(aws, guard):
    address = upload(aws, guard, {"model.py": ECHO})
    endpoint = deploy(aws, guard, address, variants={"a": 1, "b": 1})
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    client = aws.session.client("sagemaker")
    runtime = aws.session.client("sagemaker-runtime")
    name = endpoint.endpoint_name

    def served():
        return {
            runtime.invoke_endpoint(EndpointName=name, Body=b"1")[
                "InvokedProductionVariant"
            ]
            for _ in range(20)
        }

    client.update_endpoint_weights_and_capacities(
        EndpointName=name,
        DesiredWeightsAndCapacities=[
            {"VariantName": "a", "DesiredWeight": 0},
            {"VariantName": "b", "DesiredWeight": 1},
        ],
    )
    assert served() == {"b"}
    new = new_config(aws, guard, {"model.py": ECHO}, "new", {"a": 1, "b": 0})
    client.update_endpoint(
        EndpointName=name, EndpointConfigName=new, RetainAllVariantProperties=True
    )
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert served() == {"b"}


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
    assert gone_within(pid, 60)
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
    assert all(gone_within(process.pid, 60) for process in (server, worker))
    time.sleep(2 * HEALTH_CHECK_INTERVAL)
    assert container.process.pid == server.pid  # nothing was started in its place


def test_container_that_is_killed_while_loading_is_failed(aws, guard):
    slow = ECHO.replace("return None", "__import__('time').sleep(60)")
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": slow}))
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    server, worker = wait_for_worker(own.variants[0].container)
    server.kill()
    with pytest.raises(DeploymentError, match="ended before it was ready, .*-9"):
        wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert gone_within(worker.pid, 60)


def test_container_that_takes_too_long_is_ended(tmp_path):
    slow = ECHO.replace("return None", "__import__('time').sleep(60)")
    (tmp_path / "model.py").write_text(slow)
    container = Container(str(tmp_path), {})
    assert container.start(3) == "the container was not ready after 3 s"
    container.stop()
    assert container.process.returncode is not None


def wait_for_worker(container, seconds=60):
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
    assert not any(thread.is_alive() for thread in own._threads)
    assert container.process is None or container.process.returncode is not None
    assert all(gone_within(process.pid, 60) for process in below)


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
from utils.course import run_config
from utils.deployment.aws import connect_aws
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
    process.wait(60)
    assert all(gone_within(pid, 60) for pid in workers)
