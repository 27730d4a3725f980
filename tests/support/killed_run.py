"""Build, check, serve and deploy a small artifact, so that a test can kill it.

usage: python tests/support/killed_run.py BASE BUILD [STAGE…]

Of the stages `check` and those from `connect` on, only the named ones are gone through.
A line `stage NAME` says what begins. A small entry point stands in for the model; all
else is what lesson 06 calls: the artifact's folder and archive, its check with a
worker, the local server, the offline AWS and an endpoint in it. Where something is
killed besides this program, it asks on until it gets an answer; it ends with code 1 if
there was none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.course import run_config
from utils.deployment import artifact
from utils.deployment.aws import connect_aws
from utils.deployment.serving import ServingError, serve_locally

STAGES = ("build", "check", "serve", "connect", "create", "ask", "delete", "end")
LINGER = 1.0  # seconds in which each stage with a server goes on asking
PATIENCE = 10  # seconds to be answered again after something was killed
NAME = "course-killed"
ENTRY_POINT = """
from djl_python.async_utils import create_non_stream_output


async def handle(inputs):
    if inputs.is_empty():
        return None
    answer = {"generated_text": inputs.get_as_json()["inputs"]}
    return create_non_stream_output(answer)
"""


def stage(name: str) -> None:
    """Say what begins."""
    assert name in STAGES
    print(f"stage {name}", flush=True)


def ask_on(ask: Callable[[dict], Any]) -> None:
    """Ask for a while, and after a failure until there is an answer.

    Raises:
        TimeoutError: if there is none in time.
    """
    started = time.monotonic()
    failed = False
    while failed or time.monotonic() < started + LINGER:
        try:
            assert ask({"inputs": "a"}) == {"generated_text": "a"}
            failed = False
        except Exception as error:
            failed = True
            if time.monotonic() > started + PATIENCE:
                raise TimeoutError("no answer any more") from error
        time.sleep(0.05)


def main() -> None:
    """Go through the stages."""
    base, build, *wanted = sys.argv[1:]
    base, build = Path(base), Path(build)
    build.mkdir(exist_ok=True)
    entry_point = build / "entry_point.py"
    entry_point.write_text(ENTRY_POINT)
    stage("build")
    archive = artifact.build(
        base, None, build / "artifact", build / "model.tar.gz", entry_point=entry_point
    )
    if "check" in wanted:
        stage("check")
        print(artifact.validate(archive, load=True))
    stage("serve")
    answered = True
    try:
        with serve_locally(archive) as server:
            ask_on(server.ask)
    except (TimeoutError, ServingError) as problem:
        print(problem, flush=True)
        answered = False
    if "connect" in wanted:
        answered = deploy(archive) and answered
    stage("end")
    sys.exit(0 if answered else 1)


def deploy(archive: Path) -> bool:
    """Create an endpoint in the offline AWS, ask it, delete it; say if it answered."""
    stage("connect")
    aws = connect_aws(run_config({}))
    aws.session.client("s3").upload_file(str(archive), aws.bucket, f"{NAME}/m.tar.gz")
    stage("create")
    client = aws.session.client("sagemaker")
    registry = "763104351884.dkr.ecr.us-east-1.amazonaws.com"
    image = f"{registry}/djl-inference:0.36.0-lmi27.0.0-cu130"
    data = f"s3://{aws.bucket}/{NAME}/m.tar.gz"
    client.create_model(
        ModelName=NAME,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": image, "ModelDataUrl": data},
    )
    variant = {
        "VariantName": "a",
        "ModelName": NAME,
        "InstanceType": "ml.g5.xlarge",
        "InitialInstanceCount": 1,
        "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
    }
    client.create_endpoint_config(EndpointConfigName=NAME, ProductionVariants=[variant])
    client.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    while True:
        found = client.describe_endpoint(EndpointName=NAME)
        if found["EndpointStatus"] != "Creating":
            break
        time.sleep(0.05)
    stage("ask")
    answered = found["EndpointStatus"] == "InService"
    if found["EndpointStatus"] == "InService":
        runtime = aws.session.client("sagemaker-runtime")

        def ask(payload: dict) -> Any:
            reply = runtime.invoke_endpoint(
                EndpointName=NAME,
                ContentType="application/json",
                Body=json.dumps(payload),
            )
            return json.loads(reply["Body"].read())

        try:
            ask_on(ask)
        except TimeoutError as problem:
            print(problem, flush=True)
            answered = False
    stage("delete")
    client.delete_endpoint(EndpointName=NAME)
    return answered


if __name__ == "__main__":
    main()
