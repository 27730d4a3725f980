"""Endpoints of the offline AWS with a small entry point, and waiting for them."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from utils.deployment.aws import Aws
    from utils.deployment.billing import BillingGuard
    from utils.djl_python.process import Container

# As `image_uris.retrieve("djl-lmi", region="us-east-1", version="0.36.0")` gives it.
IMAGE = (
    "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.36.0-lmi27.0.0-cu130"
)
# With a driver that runs it, on families whose own is too old.
AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
# Seconds for what is done in one on a machine that is not busy. Nothing waits longer
# than it has to.
LONG = 60
FOR_EVER = 10 * LONG  # for what has to be ended from outside
ECHO = """
import os
import time
from djl_python import Input, Output

def count(breaks=False, folder=None):
    for number in range(3):
        yield f"{number} of 3 \\u00e9\\n"
        time.sleep(0.5)
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


def upload(
    aws: Aws, guard: BillingGuard, files: Mapping[str, str], name: str = "model.tar.gz"
) -> str:
    """Pack files, given by path and text, upload them and return their address."""
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


def deploy(
    aws: Aws,
    guard: BillingGuard,
    address: str,
    what: str = "echo",
    variants: Mapping[str, float] | None = None,
    **more: Any,
) -> Any:
    """Create model, configuration and endpoint through the SageMaker SDK."""
    from sagemaker.core.resources import Endpoint, EndpointConfig, Model
    from sagemaker.core.shapes import ContainerDefinition, ProductionVariant

    where = {"session": aws.session, "region": aws.region}
    name = guard.name(what)
    container = ContainerDefinition(image=IMAGE, model_data_url=address, **more)
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
                inference_ami_version=AMI,
            )
            for variant, weight in (variants or {"AllTraffic": 1}).items()
        ],
        **where,
    )
    return Endpoint.create(endpoint_name=name, endpoint_config_name=name, **where)


def ask(aws: Aws, name: str, body: Any, **more: Any) -> Any:
    """Send an endpoint a request by boto3 and return its reply."""
    reply = aws.session.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name,
        Body=json.dumps(body),
        ContentType="application/json",
        **more,
    )
    return json.loads(reply["Body"].read())


def new_config(
    aws: Aws,
    guard: BillingGuard,
    files: Mapping[str, str],
    what: str,
    variants: Mapping[str, float] | None = None,
) -> str:
    """Create model and configuration with this artifact; return their name."""
    client = aws.session.client("sagemaker")
    name = guard.name(what)
    address = upload(aws, guard, files, f"{what}.tar.gz")
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": address},
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
                "InferenceAmiVersion": AMI,
            }
            for variant, weight in (variants or {"AllTraffic": 1}).items()
        ],
    )
    return name


def answering(text: str) -> dict[str, str]:
    """Return the files of an endpoint that says this for its process's number."""
    return {"model.py": ECHO.replace("body = os.getpid()", f"body = {text!r}")}


def wait_for(call: Callable[[], Any]) -> Any:
    """Return the call's result, as soon as it raises no more."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            return call()
        except ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def wait_for_worker(container: Container) -> tuple[psutil.Process, psutil.Process]:
    """Return the container's own process and its worker, once both are there."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if container.process is not None:
            server = psutil.Process(container.process.pid)
            if workers := server.children(True):
                return server, workers[0]
        time.sleep(0.05)
    raise AssertionError(f"no worker after {LONG} s: {list(container.log)}")


def is_gone(pid: int) -> bool:
    """Say whether a process ends, if it is given the time."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
