"""The offline AWS: nothing leaves this machine, and moto is patched where it lacks."""

from __future__ import annotations

import ast
import gc
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import urllib.parse
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from support.endpoints import ECHO, IMAGE, LONG, is_gone, upload
from utils.course import ROOT
from utils.deployment.artifact import DJL_VERSION

# --- nothing leaves this machine ------------------------------------------------------


def test_every_client_talks_to_this_machine(aws) -> None:
    """Those of all services that the course names, from whatever session."""
    from sagemaker.core.utils.utils import SageMakerClient

    sources = [*ROOT.glob("utils/**/*.py"), *ROOT.glob("notebooks/**/*.ipynb")]
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


def test_real_credentials_in_the_environment_are_not_used(tmp_path) -> None:
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
            assert key.startswith("OFFLINE"), key
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
    image = image_uris.retrieve("djl-lmi", region=aws.region, version=VERSION)
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
                inference_ami_version="al2023-ami-sagemaker-inference-gpu-4-1",
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
    with open(LOG, "a") as log:
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
note("started")
"""


def test_a_whole_deployment_sends_nothing_away(tmp_path) -> None:
    """Not this process, nor one that it starts, with credentials that look real."""
    log = tmp_path / "log"
    # In the file, as a container gets no variable but those that are named for it.
    watch = WATCH.replace("LOG", repr(str(log)))
    (tmp_path / "sitecustomize.py").write_text(watch)
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        **REAL_LOOKING,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    code = DEPLOY.replace("MODEL", repr(ECHO.encode()))
    done = run_python(code.replace("VERSION", repr(DJL_VERSION)), environment)
    assert done.stdout.endswith("done\n"), done.stderr
    lines = log.read_text().splitlines()
    started = [line for line in lines if line.endswith("started")]
    assert len(started) >= 3  # this one, the container, its worker
    assert [line for line in lines if not line.endswith("started")] == []


def test_sdk_calls_that_ignore_the_endpoint_variable_are_not_used() -> None:
    """They would ask the real STS, whatever AWS_ENDPOINT_URL says."""
    forbidden = ("default_bucket(", "get_caller_identity_arn(", "get_execution_role(")
    for path in [*ROOT.glob("utils/**/*.py"), *ROOT.glob("notebooks/**/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], path.name


def run_python(
    code: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=5 * LONG,
    )


# --- what moto lacks ------------------------------------------------------------------


def test_names_are_taken_once(aws, guard, echo) -> None:
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
            ModelName=name, ExecutionRoleArn=aws.role, PrimaryContainer={"Image": IMAGE}
        )


@pytest.mark.parametrize("instance", ["ml.g5.xlarge", "ml.g6e.12xlarge", "ml.m5.large"])
def test_instance_types_of_today(aws, guard, echo, instance) -> None:
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
    with pytest.raises(ClientError, match="Member must satisfy enum value set"):
        client.create_endpoint_config(
            EndpointConfigName=guard.name("wrong"),
            ProductionVariants=[{**variant, "InstanceType": "g5.xlarge"}],
        )


def test_plain_boto3_waits_and_asks(aws, guard, echo) -> None:
    client = boto3.client("sagemaker")
    client.get_waiter("endpoint_in_service").wait(EndpointName=echo.endpoint_name)
    found = client.describe_endpoint(EndpointName=echo.endpoint_name)
    assert found["EndpointStatus"] == "InService"
    listed = client.list_endpoints(StatusEquals="InService")["Endpoints"]
    assert echo.endpoint_name in [item["EndpointName"] for item in listed]


def test_a_listing_of_versions_copies_no_content(aws) -> None:
    """moto copied the whole bucket for each object that a teardown deletes."""
    s3, content = aws.session.client("s3"), bytes(range(256)) * 60_000  # 15 MB
    s3.create_bucket(Bucket="listed")
    for key in ("one", "two"):
        s3.put_object(Bucket="listed", Key=key, Body=content, Metadata={"a": "b"})
    s3.list_object_versions(Bucket="listed")  # computes the ETags
    tracemalloc.start()
    listed = s3.list_object_versions(Bucket="listed")["Versions"]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(content)  # the server takes 10 MB for a request
    digest = hashlib.md5(content).hexdigest()
    found = [(one["Key"], one["Size"], one["ETag"].strip('"')) for one in listed]
    assert found == [(key, len(content), digest) for key in ("one", "two")]
    del listed
    gc.collect()
    for key in ("one", "two"):
        said = s3.get_object(Bucket="listed", Key=key)
        assert (said["Body"].read(), said["Metadata"]) == (content, {"a": "b"})
        s3.delete_object(Bucket="listed", Key=key)
    s3.delete_bucket(Bucket="listed")


@pytest.mark.slow
def test_the_sdk_s_builder_and_trainer_pass(aws, guard, tmp_path) -> None:
    """Besides boto3 and sagemaker-core, which the other tests use."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.serve.model_builder import ModelBuilder
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, SourceCode

    session = Session(boto_session=aws.session, default_bucket=aws.bucket)
    builder = ModelBuilder(
        s3_model_data_url=upload(aws, guard, {"model.py": ECHO}),
        image_uri=IMAGE,
        role_arn=aws.role,
        instance_type="ml.g5.xlarge",
        sagemaker_session=session,
    )
    name = guard.name("built")
    builder.build(model_name=name)
    endpoint = builder.deploy(endpoint_name=name, initial_instance_count=1)
    reply = endpoint.invoke(body=b"[1]", content_type="application/json")
    assert json.loads(reply.body.read()) == [1]
    (tmp_path / "train.py").write_text("print(1)")
    trainer = ModelTrainer(
        training_image=IMAGE,
        role=aws.role,
        base_job_name="course-job",
        sagemaker_session=session,
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="train.py"),
        compute=Compute(instance_type="ml.g5.xlarge", instance_count=1),
    )
    trainer.train(wait=False, logs=False)
    jobs = aws.session.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]
    assert [job["TrainingJobName"][:10] for job in jobs] == ["course-job"]


# --- ending ---------------------------------------------------------------------------


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
    PrimaryContainer={
        "Image": IMAGE, "ModelDataUrl": f"s3://{aws.bucket}/m.tar.gz"
    },
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
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_parent_leaves_no_worker(number) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT.replace("MODEL", repr(ECHO.encode())).replace("IMAGE", repr(IMAGE)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    workers = [child.pid for child in psutil.Process(process.pid).children(True)]
    assert len(workers) >= 2  # the front end and the worker behind it
    process.send_signal(number)
    process.wait(LONG)
    assert all(is_gone(pid) for pid in workers)


# --- its doors ------------------------------------------------------------------------


# package of `utils` → the files that may import it from outside
DOORS = {
    "offline_aws": {"deployment/aws.py"},
    "djl_python": {
        "deployment/findings.py",
        "deployment/trial.py",
        "deployment/serving.py",
        "offline_aws/endpoints.py",
        "offline_aws/logs.py",
        "exercises/lesson_06.py",
        "files.py",
    },
}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, at whatever depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", DOORS)
def test_a_stand_in_is_reached_by_its_doors_only(package) -> None:
    """The course must not come to depend on how its stand-ins are made."""
    users = {
        path.relative_to(ROOT / "utils").as_posix()
        for path in (ROOT / "utils").rglob("*.py")
        if any(name.startswith(f"utils.{package}") for name in imports(path))
    }
    outside = {user for user in users if not user.startswith(package)}
    assert outside <= DOORS[package]


def test_the_offline_aws_knows_nothing_of_the_deployment() -> None:
    for path in (ROOT / "utils" / "offline_aws").glob("*.py"):
        used = {name.split(".")[1] for name in imports(path) if "utils." in name}
        assert used <= {"offline_aws", "djl_python", "temporary"}, path.name


def test_the_server_stand_in_uses_its_own_code_only() -> None:
    """What it unpacks is cleared as all such folders are; a worker has no `utils`."""
    for path in (ROOT / "utils" / "djl_python").rglob("*.py"):
        used = {name for name in imports(path) if name.startswith("utils")}
        shared = {"utils.temporary", "utils.temporary.temporary_folder"}
        assert used <= (shared if path.name == "__main__.py" else set()), path.name
