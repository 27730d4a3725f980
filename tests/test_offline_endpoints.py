"""Endpoints of the offline AWS: they start, answer, are replaced and stop."""

from __future__ import annotations

import json
import os
import threading
import time

import psutil
import pytest
from botocore.exceptions import ClientError

from support.endpoints import (
    ECHO,
    FOR_EVER,
    answering,
    ask,
    deploy,
    is_gone,
    new_config,
    upload,
    wait_for,
    wait_for_worker,
)
from support.tiny_artifact import QUESTIONS, build_tiny
from utils.deployment.aws import DeploymentError, wait_until_in_service
from utils.djl_python import process
from utils.djl_python.process import Container
from utils.helpers import INFERENCE_PROMPT
from utils.models import ModelSettings, generate, load_model, load_tokenizer
from utils.offline_aws.control_plane import OfflineAws
from utils.offline_aws.endpoints import HEALTH_CHECK_INTERVAL, _threads
from utils.offline_aws.invocations import encode_event

# --- starting and answering -----------------------------------------------------------


def test_answers_of_base_plus_adapter_and_of_the_base_alone(
    aws, guard, tmp_path
) -> None:
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


def test_environment_of_the_model_reaches_the_container(aws, echo) -> None:
    assert ask(aws, echo.endpoint_name, "mine") == "yes"


def test_error_of_the_container_is_a_model_error(aws, echo) -> None:
    client = aws.session.client("sagemaker-runtime")
    with pytest.raises(client.exceptions.ModelError) as failure:
        client.invoke_endpoint(EndpointName=echo.endpoint_name, Body=b"no json")
    response = failure.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 424
    assert "Expecting value" in json.loads(response["OriginalMessage"])["error"]


def test_invocation_that_takes_too_long_is_a_model_error(
    aws, echo, monkeypatch
) -> None:
    monkeypatch.setattr(process, "INVOKE_TIMEOUT", 1)  # pings are to keep it
    client = aws.session.client("sagemaker-runtime")
    with pytest.raises(client.exceptions.ModelError, match="timed out") as failure:
        ask(aws, echo.endpoint_name, "slow")
    assert failure.value.response["OriginalStatusCode"] == 0


def test_missing_endpoint(aws) -> None:
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
def test_broken_artifact_is_failed_with_the_reason(aws, guard, files, reason) -> None:
    endpoint = deploy(aws, guard, upload(aws, guard, files))
    statuses = []
    with pytest.raises(DeploymentError, match=reason) as failure:
        wait_until_in_service(aws, endpoint, say=statuses.append)
    assert statuses == ["Creating", "Failed"]
    assert "did not pass the ping health check" in str(failure.value)
    assert "Its log ends:" in str(failure.value)
    with pytest.raises(ClientError, match="not found"):
        ask(aws, endpoint.endpoint_name, {})


def test_archive_that_is_gone_again_is_failed_with_the_reason(aws, guard) -> None:
    """AWS looks for it when the model is created, and fetches it for the endpoint."""
    with pytest.raises(ClientError, match="Could not find model data at s3://"):
        deploy(aws, guard, f"s3://{aws.bucket}/nosuch.tar.gz")
    name = new_config(aws, guard, {"model.py": ECHO}, "gone")
    address = f"{guard.run}/gone.tar.gz"
    aws.session.client("s3").delete_object(Bucket=aws.bucket, Key=address)
    from sagemaker.core.resources import Endpoint

    endpoint = Endpoint.create(
        endpoint_name=name,
        endpoint_config_name=name,
        session=aws.session,
        region=aws.region,
    )
    with pytest.raises(DeploymentError, match="no model data at s3"):
        wait_until_in_service(aws, endpoint, say=lambda _: None)


def test_killed_worker_is_replaced(aws, guard) -> None:
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


def test_variants_share_the_traffic(aws, guard) -> None:
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
    # Not so many threads that they would wait for one another. (What the container is
    # told, since the environment of the tests may say the same.)
    half = str(max(1, (os.cpu_count() or 1) // 2))
    for variant in OfflineAws.running().endpoints[name].variants:
        assert variant.container.environment["OMP_NUM_THREADS"] == half
    assert _threads(1) == {}  # one has all of them
    with pytest.raises(ClientError, match="production variant"):
        ask(aws, name, 1, TargetVariant="nosuch")


# --- streaming ------------------------------------------------------------------------


def stream(aws, name, body):
    """Send a request and return the events of its reply."""
    reply = aws.session.client(
        "sagemaker-runtime"
    ).invoke_endpoint_with_response_stream(
        EndpointName=name, Body=json.dumps(body), ContentType="application/json"
    )
    return reply["Body"]


def test_stream_comes_in_parts_as_they_are_made(aws, echo, tmp_path) -> None:
    """The handler goes on only when what it has made has come."""
    parts = []
    for event in stream(aws, echo.endpoint_name, f"count {tmp_path}"):
        parts.append(event["PayloadPart"]["Bytes"].decode())
        (tmp_path / str(len(parts))).touch()
    assert parts == ["0 of 3 é\n", "1 of 3 é\n", "2 of 3 é\n"]


def test_answer_that_is_no_stream_is_one_part(aws, echo) -> None:
    events = list(stream(aws, echo.endpoint_name, {"a": "é" * 100}))
    assert json.loads(b"".join(event["PayloadPart"]["Bytes"] for event in events)) == {
        "a": "é" * 100
    }


def test_stream_says_its_variant_and_the_content_type_of_the_answer(aws, echo) -> None:
    """By boto3: the SageMaker SDK's own call fails on any event stream."""
    client = aws.session.client("sagemaker-runtime")
    reply = client.invoke_endpoint_with_response_stream(
        EndpointName=echo.endpoint_name, Body=b"[1]"
    )
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    assert reply["ContentType"] == "application/json"
    assert len(list(reply["Body"])) == 1


def test_errors_of_a_stream(aws, echo) -> None:
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
def test_events_are_encoded_as_botocore_decodes_them(size) -> None:
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


# --- replacing what is behind an endpoint ---------------------------------------------


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


def test_update_moves_the_traffic_without_a_failed_request(aws, guard) -> None:
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
        assert ask(aws, name, "pid") == "new"
    assert statuses == ["Updating", "InService"]
    assert traffic.errors == []
    assert set(traffic.answers) == {"old", "new"}
    assert ask(aws, name, "pid") == "new"
    found = client.describe_endpoint(EndpointName=name)
    assert found["EndpointConfigName"] == new
    assert "FailureReason" not in found
    assert all(variant.container.process.returncode is not None for variant in before)


def test_update_that_fails_rolls_back_with_the_reason(aws, guard) -> None:
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


def test_failed_endpoint_cannot_be_updated(aws, guard) -> None:
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


def test_weights_can_be_changed_and_are_kept_by_an_update(aws, guard) -> None:
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


# --- ending ---------------------------------------------------------------------------


def test_deleting_stops_the_worker(aws, guard) -> None:
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": ECHO}))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    pid = ask(aws, endpoint.endpoint_name, "pid")
    endpoint.delete()
    assert is_gone(pid)
    with pytest.raises(ClientError, match="Could not find"):
        endpoint.refresh()


def test_stopping_while_creating_leaves_nothing(aws, guard) -> None:
    """As at the end of this process: DeleteEndpoint is refused until it serves."""
    slow = ECHO.replace("return None", f"time.sleep({FOR_EVER})")
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": slow}))
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    container = own.variants[0].container
    server, worker = wait_for_worker(container)
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        endpoint.delete()
    own.stop()
    assert container.process.returncode is not None
    assert all(is_gone(process.pid) for process in (server, worker))
    time.sleep(2 * HEALTH_CHECK_INTERVAL)
    assert container.process.pid == server.pid  # nothing was started in its place


def test_stopping_while_updating_leaves_nothing(aws, guard) -> None:
    endpoint = deploy(aws, guard, upload(aws, guard, answering("old")))
    wait_until_in_service(aws, endpoint, say=lambda _: None)
    slow = ECHO.replace("return None", f"time.sleep({FOR_EVER})")
    new = new_config(aws, guard, {"model.py": slow}, "new")
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    client = aws.session.client("sagemaker")
    client.update_endpoint(EndpointName=endpoint.endpoint_name, EndpointConfigName=new)
    containers = [variant.container for variant in (*own.variants, *own._starting)]
    assert len(containers) == 2
    below = [one for container in containers for one in wait_for_worker(container)]
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        endpoint.delete()
    own.stop()
    assert all(is_gone(process.pid) for process in below)
    assert not any(thread.is_alive() for thread in own._threads)


@pytest.mark.parametrize("pause", [0, 0.02, 0.1, 0.3])
def test_stopping_at_once_leaves_nothing(aws, guard, pause) -> None:
    """Whether its process exists already, or not yet, or only just."""
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": ECHO}))
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    container = own.variants[0].container
    time.sleep(pause)
    below = []
    if container.process is not None:
        below = psutil.Process(container.process.pid).children(True)
    own.stop()
    assert not any(thread.is_alive() for thread in own._threads)
    assert container.process is None or container.process.returncode is not None
    assert all(is_gone(process.pid) for process in below)


def test_container_that_is_killed_while_loading_is_failed(aws, guard) -> None:
    slow = ECHO.replace("return None", f"time.sleep({FOR_EVER})")
    endpoint = deploy(aws, guard, upload(aws, guard, {"model.py": slow}))
    own = OfflineAws.running().endpoints[endpoint.endpoint_name]
    server, worker = wait_for_worker(own.variants[0].container)
    server.kill()
    with pytest.raises(DeploymentError, match="ended before it was ready, .*-9"):
        wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert is_gone(worker.pid)


def test_container_that_takes_too_long_is_ended(tmp_path) -> None:
    slow = ECHO.replace("return None", f"time.sleep({FOR_EVER})")
    (tmp_path / "model.py").write_text(slow)
    container = Container(str(tmp_path), {})
    assert container.start(3) == "The container was not ready after 3 s."
    container.stop()
    assert container.process.returncode is not None
