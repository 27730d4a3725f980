"""What batching gains, and what a thousand requests do to the endpoint.

    .venv/bin/python tests/benchmarks/bench_serving.py
    .venv/bin/python tests/benchmarks/bench_serving.py --curve

Serves the lab model with an adapter, first by the stand-in for DJL Serving alone, with
the course's handler beside one to which the server sends batches, then behind an
endpoint of the offline AWS. Every answer has 32 tokens, so that what is compared is the
same work. Close other programs first.

With `--curve` it measures only what `utils/deployment/load.py` measures, for 1 to 32
clients with answers of 8 tokens, whole and streamed: throughput, latency, time to the
first piece and between pieces, and the knee. Both handlers are asked by turns, three
times; shown is the turn with the median throughput.
"""

import argparse
import concurrent.futures
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from utils.course import ROOT, run_config
from utils.deployment import artifact
from utils.deployment.load import Load, closed_loop, report, warm_up
from utils.deployment.replies import Url
from utils.djl_python.process import Container
from utils.djl_python.server import Server

TOKENS = 32
SHORT_TOKENS, SHORT_REQUESTS, TURNS = 8, 300, 3
CONCURRENCY = 16
CLIENTS, CURVE_SECONDS = (1, 2, 4, 8, 16, 32), 2
REQUESTS = 1000
WARMED_UP = 200  # requests after which memory must not grow any more
LAB_MODEL = ROOT / "data" / "lab_model"
# The server gathers, and one call of `generate` continues all of a batch.
IN_BATCHES = Path(__file__).with_name("batching_model.py")
BATCHES = {"option.async_mode": "false", "batch_size": 8, "max_batch_delay": 20}
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Throughput:
    """Requests a second, one at a time and many at once."""

    alone: float
    at_once: float

    @property
    def ratio(self) -> float:
        return self.at_once / self.alone


def build(folder: Path, in_batches: bool = False) -> Path:
    """The artifact's folder: the lab model with an untrained adapter.

    What it answers does not matter here; how long it takes does not depend on that.

    Args:
        folder: where everything is written.
        in_batches: whether the server gathers the requests.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    lora = LoraConfig(
        r=8,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(LAB_MODEL), lora)
    model.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(LAB_MODEL).save_pretrained(folder / "adapter")
    artifact.build(
        LAB_MODEL,
        folder / "adapter",
        folder / "artifact",
        folder / "model.tar.gz",
        entry_point=IN_BATCHES if in_batches else artifact.ENTRY_POINT,
        options=BATCHES if in_batches else {},
    )
    return folder / "artifact"


def request(number: int, tokens: int = TOKENS, stream: bool = False) -> bytes:
    """A request whose reply begins with its number."""
    parameters = {
        "max_new_tokens": tokens,
        "ignore_eos_token": True,
        "return_full_text": True,
    }
    text = f"Request {number}: what does Amazon SageMaker Feature Store keep?"
    body = {"inputs": text, "parameters": parameters}
    return json.dumps(body | {"stream": True} if stream else body).encode()


def post(port: int, body: bytes) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/invocations", body)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {content.decode()}")
    return content


def ask(
    send: Callable[[bytes], bytes],
    numbers: range,
    at_once: int,
    tokens: int = TOKENS,
) -> float:
    """Requests a second; every reply is checked to be the one to its request."""

    def one(number: int) -> None:
        answer = json.loads(send(request(number, tokens)))["generated_text"]
        if not answer.startswith(f"Request {number}:"):
            raise RuntimeError(f"request {number} was answered with {answer!r}")

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        answered = sum(1 for _ in pool.map(one, numbers))
    if answered != len(numbers):
        raise RuntimeError(f"{len(numbers) - answered} requests were lost")
    return len(numbers) / (time.perf_counter() - started)


def batching(port: int, alone: int, at_once: int) -> Throughput:
    """Measures `alone` requests one at a time, then `at_once` at 16 at a time."""

    def send(body: bytes) -> bytes:
        return post(port, body)

    ask(send, range(2), 1)
    slow = ask(send, range(alone), 1)
    return Throughput(slow, ask(send, range(at_once), CONCURRENCY))


def measure_batches(batches: Path, own: Path) -> float:
    """Short answers to 16 clients, by turns; returns the handlers' middle ratio."""
    ratios = []
    with Server(batches) as one, Server(own) as other:
        for turn in range(TURNS + 1):
            plain, gathered = (
                ask(
                    lambda body, port=server.port: post(port, body),
                    range(SHORT_REQUESTS),
                    CONCURRENCY,
                    SHORT_TOKENS,
                )
                for server in (one, other)
            )
            if turn:  # the first warms both up
                ratios.append(gathered / plain)
                print(
                    f"{SHORT_TOKENS} tokens to {CONCURRENCY} clients: {plain:6.1f} "
                    f"requests/s in the server's batches, {gathered:6.1f} by the "
                    f"asynchronous handler: {ratios[-1]:.2f} times"
                )
    return statistics.median(ratios)


def measure_curves(folders: dict[str, Path]) -> None:
    """Print throughput and waiting against the number of clients, for each handler.

    Args:
        folders: of the artifacts, by the handler's name; each has processes of its own.
    """
    containers = {name: Container(str(path), {}) for name, path in folders.items()}
    try:
        for name, container in containers.items():
            if reason := container.start(300):
                raise RuntimeError(f"{name}: {reason}")
        for stream in (False, True):
            bodies = [request(number, SHORT_TOKENS, stream) for number in range(64)]
            measure_curve(containers, bodies, stream)
    finally:
        for container in containers.values():
            container.stop()


def measure_curve(
    containers: dict[str, Container], bodies: list[bytes], stream: bool
) -> None:
    targets = {
        name: Url(f"http://127.0.0.1:{container.port}/invocations")
        for name, container in containers.items()
    }
    for target in targets.values():
        warm_up(target, bodies)
        closed_loop(target, bodies, CONCURRENCY, CURVE_SECONDS)
    turns = [
        {
            (name, clients): closed_loop(target, bodies, clients, CURVE_SECONDS)
            for clients in CLIENTS
            for name, target in targets.items()
        }
        for _ in range(TURNS)
    ]
    how = "streamed" if stream else "whole"
    for name in targets:
        middle = [median_turn([turn[name, n] for turn in turns]) for n in CLIENTS]
        print(f"\n{name}, {SHORT_TOKENS} tokens, {how}:\n\n{report(middle)}")
        if stream:
            came = [f"{len(one.first_piece)} of {len(one.good)}" for one in middle]
            print(f"Came as streams: {', '.join(came)}.")
    first, second = targets
    ratios = []
    for n in CLIENTS:
        found = sorted(
            turn[second, n].latency.per_second / turn[first, n].latency.per_second
            for turn in turns
        )
        ratios.append(
            f"{n}: {found[TURNS // 2]:.2f} ({found[0]:.2f} to {found[-1]:.2f})"
        )
    print(f"\nanswers a second, {second} / {first}, by clients: {'; '.join(ratios)}")


def median_turn(loads: list[Load]) -> Load:
    """Return the load with the median throughput."""
    ranked = sorted(loads, key=lambda load: load.latency.per_second)
    return ranked[len(ranked) // 2]


def resident(parent: psutil.Process) -> int:
    """Bytes that the processes below this one hold: the endpoint's."""
    return sum(process.memory_info().rss for process in parent.children(True))


def measure_server(folder: Path) -> float:
    with Server(folder) as server:
        found = [batching(server.port, 40, 400) for _ in range(3)]
    for one in found:
        print(
            f"{one.alone:6.1f} requests/s one at a time, {one.at_once:6.1f} at "
            f"{CONCURRENCY} at a time: {one.ratio:.1f} times"
        )
    return sorted(one.ratio for one in found)[1]


def measure_endpoint(archive: Path) -> float:
    """A thousand requests through the AWS SDK; returns the growth of memory."""
    from sagemaker.core import image_uris

    from utils.deployment.aws import connect_aws
    from utils.offline_aws.control_plane import OfflineAws

    aws = connect_aws(run_config({}))
    local = threading.local()
    name = "bench"
    try:
        aws.session.client("s3").upload_file(
            str(archive), aws.bucket, "bench/model.tar.gz"
        )
        sagemaker = aws.session.client("sagemaker")
        sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=aws.role,
            PrimaryContainer={
                "Image": image_uris.retrieve(
                    "djl-lmi", region=aws.region, version=artifact.DJL_VERSION
                ),
                "ModelDataUrl": f"s3://{aws.bucket}/bench/model.tar.gz",
            },
        )
        sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[
                {
                    "VariantName": "AllTraffic",
                    "ModelName": name,
                    "InstanceType": "ml.g5.xlarge",
                    "InitialInstanceCount": 1,
                    "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
                }
            ],
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        waiter = sagemaker.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 300})

        def send(body: bytes) -> bytes:
            if not hasattr(local, "client"):
                local.client = aws.session.client("sagemaker-runtime")
            reply = local.client.invoke_endpoint(
                EndpointName=name, Body=body, ContentType="application/json"
            )
            return reply["Body"].read()

        me = psutil.Process()
        ask(send, range(WARMED_UP), CONCURRENCY)
        before = resident(me)
        speed = ask(send, range(WARMED_UP, REQUESTS), CONCURRENCY)
        after = resident(me)
    finally:
        OfflineAws.running().close()
    print(
        f"{REQUESTS} requests at {CONCURRENCY} at a time through the endpoint: none "
        f"lost, none mixed up, {speed:.1f} a second; memory {before / MEBIBYTE:,.0f} "
        f"MiB after {WARMED_UP}, {after / MEBIBYTE:,.0f} MiB at the end"
    )
    return after / before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curve", action="store_true", help="measure only the curve")
    only_curve = parser.parse_args().curve
    with tempfile.TemporaryDirectory() as scratch:
        folder = build(Path(scratch))
        batches = build(Path(scratch) / "batches", in_batches=True)
        if only_curve:
            measure_curves({"batches": batches, "asynchronous": folder})
            return 0
        side_by_side = measure_batches(batches, folder)
        ratio = measure_server(folder)
        growth = measure_endpoint(Path(scratch) / "model.tar.gz")
    results = [
        (
            "asynchronous against the server's batches",
            side_by_side,
            "at least 0.9",
            side_by_side >= 0.9,
        ),
        ("batching against one at a time", ratio, "at least 5", ratio >= 5),
        ("memory at the end against after 200", growth, "at most 1.05", growth <= 1.05),
    ]
    for name, value, wanted, fine in results:
        print(f"{name:42} {value:5.2f}  ({wanted}: {'yes' if fine else 'no'})")
    return 0 if all(fine for *_, fine in results) else 1


if __name__ == "__main__":
    sys.exit(main())
