"""The course's artifact behind the stand-in: the server's contract, load, and no code.

The clauses are those of DJL Serving's contract with a handler; the artifact is built as
the notebook builds it, with a tiny model.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import utils.djl_python
from support.entry_point import ALL_BAD, answers_in_process
from support.tiny_artifact import QUESTIONS, build_tiny, save_adapter
from utils.deployment import artifact
from utils.djl_python import Input
from utils.djl_python.layout import ServedModel, find_models
from utils.djl_python.server import Server
from utils.helpers import INFERENCE_PROMPT

QUESTION = QUESTIONS[0]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    build_tiny(folder, **{"option.adapter_name": "faq"})
    return folder


@pytest.fixture(scope="module")
def in_process(built):
    return answers_in_process(built)


@pytest.fixture(scope="module")
def server(built):
    with Server(built / "artifact") as server:
        yield server


def send(port, body, method="POST", path="/invocations", headers=JSON):
    """Status, headers and body of one exchange."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, data, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    names = {key.lower(): value for key, value in reply.getheaders()}
    return reply.status, names, content


def together(port, bodies):
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: send(port, body), bodies))


def worker_of(server):
    (runner,) = server.models.values()
    (worker,) = runner._workers
    return psutil.Process(worker.process.pid)


# --- the contract, clause by clause ---------------------------------------------------


def test_root_of_the_archive_is_the_model(built) -> None:
    """Any visible plain file at the root makes the root the model: it must be ours."""
    (model,) = find_models(built / "artifact", {})
    assert model.folder == built / "artifact"
    root = {path.name for path in (built / "artifact").iterdir() if path.is_file()}
    assert root == {"serving.properties", "model.py"}


def test_no_packages_are_asked_for(built) -> None:
    """A failed requirements.txt is only logged: there is none."""
    assert not list((built / "artifact").rglob("requirements*"))


@pytest.mark.parametrize("without", [(), ("option.rolling_batch",)])
def test_asynchronous_mode_is_on(built, without) -> None:
    """The option says so; the server must not gather requests then."""
    (model,) = find_models(built / "artifact", {})
    kept = {k: v for k, v in model.properties.items() if k not in without}
    served = ServedModel("model", model.folder, kept)
    assert served.async_mode and served.batch_size == 1
    assert not (model.folder / "config.json").exists()
    assert "model_id" not in model.options


def test_values_have_no_blanks_or_quotes_at_their_ends(built) -> None:
    (model,) = find_models(built / "artifact", {})
    for key, value in model.properties.items():
        assert value == value.strip(" \t'\""), key
    assert model.engine == "Python"


def test_three_imports_load_no_model(built) -> None:
    """The file is imported three times: service, output and input formatter."""
    code = """
import importlib.util, sys
sys.path.insert(0, "utils")
import utils.djl_python
sys.modules["djl_python"] = utils.djl_python
before = set(sys.modules)
for name in ("a", "b", "c"):
    spec = importlib.util.spec_from_file_location(name, sys.argv[1])
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.desk is None
print({"transformers", "peft", "utils.helpers"} & (set(sys.modules) - before))
"""
    path = str(built / "artifact" / "model.py")
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=artifact.ENTRY_POINT.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_options_come_at_the_warm_up_only(server, in_process) -> None:
    """Later the properties are what the client sent as headers: they change nothing."""
    headers = JSON | {"base_model": "gone", "adapter_checkpoint": "", "dtype": "no"}
    status, _, content = send(server.port, {"inputs": QUESTION}, headers=headers)
    assert (status, json.loads(content)) == (
        200,
        {"generated_text": in_process[0][0]},
    )


def test_empty_post_is_not_the_warm_up(server) -> None:
    """It has one content of no bytes; an empty form has none at all."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    pid = worker_of(server).pid
    for headers in (JSON, form, form | {"base_model": "someone/else"}):
        status, _, content = send(server.port, b"", headers=headers)
        assert status == 400
        assert json.loads(content)["error"].startswith("body: is empty")
    assert worker_of(server).pid == pid


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_any_method_reaches_the_handler(server, in_process, method) -> None:
    status, _, content = send(server.port, {"inputs": QUESTION}, method)
    assert (status, json.loads(content)["generated_text"]) == (200, in_process[0][0])


def test_query_parameters_come_before_the_body(server, in_process) -> None:
    path = "/invocations?a=1&inputs=b"
    status, _, content = send(server.port, {"inputs": QUESTION}, path=path)
    assert (status, json.loads(content)["generated_text"]) == (200, in_process[0][0])


def test_form_is_no_json(server) -> None:
    body, headers = b"inputs=x", {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, content = send(server.port, body, headers=headers)
    assert status == 400
    assert json.loads(content)["error"].startswith("Content-Type: is ")


def test_requests_at_once_get_each_its_own_status(server, in_process) -> None:
    bodies = [{"inputs": text} for text in QUESTIONS[:7]]
    bodies[3] = {"inputs": QUESTION, "parameters": {"top_p": 7}}
    for index, (status, headers, content) in enumerate(together(server.port, bodies)):
        reply = json.loads(content)
        assert headers["content-type"] == "application/json"
        if index == 3:
            assert (status, reply["code"]) == (400, 400)
            assert reply["error"].startswith("parameters.top_p:")
        else:
            assert (status, reply) == (200, {"generated_text": in_process[0][index]})


def test_reply_is_json_and_says_so(server) -> None:
    """The server sets no content type; it writes characters as they are."""
    body = {"inputs": "größe 你好", "parameters": {"return_full_text": True}}
    status, headers, content = send(server.port, body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert "größe 你好" in content.decode("utf-8")
    assert content.startswith(b'{"generated_text": "')


def test_bad_request_is_400_with_error_and_code(server) -> None:
    status, headers, content = send(server.port, {"inputs": 3})
    assert (status, headers["content-type"]) == (400, "application/json")
    reply = json.loads(content)
    assert set(reply) == {"error", "code"} and reply["code"] == 400


def test_stream_is_chunks_of_json_lines(server, in_process) -> None:
    body = {"inputs": QUESTION, "stream": True}
    status, headers, content = send(server.port, body)
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert headers["content-type"] == "application/jsonlines"
    lines = [json.loads(line) for line in content.decode().splitlines()]
    assert "".join(line["outputs"] for line in lines) == in_process[0][0]
    assert all(set(line) == {"outputs"} for line in lines)


def test_nothing_a_client_sends_ends_the_worker(server, in_process) -> None:
    """A worker that ends costs the real server its model: it stays FAILED."""
    worker = worker_of(server)
    for field, reason, body in ALL_BAD:
        status, _, content = send(server.port, body)
        error = json.loads(content)["error"]
        assert status == 400 and error.startswith(field), error
        assert reason in error, error
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert send(server.port, b"", headers=form)[0] == 400
    for headers in ({"batch_size": "999999999"}, {"handler": "x", "model_dir": "/"}):
        assert send(server.port, {"inputs": QUESTION}, headers=headers)[0] == 200
    assert worker_of(server).pid == worker.pid and worker.is_running()
    assert send(server.port, b"", "GET", "/ping")[0] == 200
    assert json.loads(send(server.port, {"inputs": QUESTION})[2]) == {
        "generated_text": in_process[0][0]
    }


def test_generating_stops_before_the_server_gives_up(built) -> None:
    """What outlasts predict_timeout ends as 503, and the model is lost."""
    (model,) = find_models(built / "artifact", {"OPTION_PREDICT_TIMEOUT": "60"})
    spec = importlib.util.spec_from_file_location("entry", artifact.ENTRY_POINT)
    sys.modules["djl_python"] = utils.djl_python
    sys.modules["entry"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = Input()
    inputs.properties = {**model.options, "model_dir": str(model.folder)}
    asyncio.run(module.handle(inputs))
    assert module.desk.service.seconds < model.predict_timeout == 60
    unset = ServedModel("model", model.folder)
    assert unset.predict_timeout >= module.PREDICT_TIMEOUT


# --- load -----------------------------------------------------------------------------


def numbered(number):
    """A request whose reply tells whom it belongs to."""
    parameters = {"max_new_tokens": 4, "return_full_text": True}
    return {"inputs": f"Request {number}: {QUESTION}", "parameters": parameters}


def ask_all(port, numbers):
    """How many requests were answered, all checked, at 16 at a time."""

    def one(number):
        status, _, content = send(port, numbered(number))
        text = json.loads(content)["generated_text"]
        assert (status, text.partition(":")[0]) == (200, f"Request {number}")
        return number

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return len(set(pool.map(one, numbers)))


def test_a_thousand_requests(server) -> None:
    """None is lost, none gets another's reply, and memory does not grow."""
    worker = worker_of(server)
    assert ask_all(server.port, range(200)) == 200
    after_200 = worker.memory_info().rss
    assert ask_all(server.port, range(200, 1000)) == 800
    assert worker.memory_info().rss <= 1.05 * after_200


def mixed(number):
    """A request: every third is wrong, every third streams, and the last is plain."""
    text = QUESTIONS[number % len(QUESTIONS)]
    kind, again = number % 3, number // 3
    if kind == 0:
        _, _, body = ALL_BAD[again % len(ALL_BAD)]
        return body
    parameters = {"max_new_tokens": (4, 16, 40)[again % 3]}
    if again % 4 == 1:
        parameters |= {"seed": number % 5, "temperature": 1.2}
    body = {"inputs": text, "parameters": parameters, "stream": kind == 1}
    if again % 5 == 1:
        body["adapter"] = "base"
    return body


def seen(reply):
    """What a client sees, with the pieces of a stream put together."""
    status, headers, content = reply
    text = content.decode("utf-8")
    if status == 200 and headers["content-type"] == "application/jsonlines":
        lines = [json.loads(line) for line in text.splitlines()]
        assert ("transfer-encoding" in headers) is (len(lines) > 1)
        assert all(set(line) == {"outputs"} for line in lines)
        text = "".join(line["outputs"] for line in lines)
    return status, headers["content-type"], text


def ask_mixed(port, count):
    """Each of `count` requests, 16 at once, gets what it gets alone."""
    bodies = [mixed(number) for number in range(count)]
    names = [body if isinstance(body, bytes) else json.dumps(body) for body in bodies]
    different = dict(zip(names, bodies, strict=True))
    alone = {name: seen(send(port, body)) for name, body in different.items()}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda body: seen(send(port, body)), bodies))
    for name, reply in zip(names, replies, strict=True):
        assert reply == alone[name], name
    found = {(status, kind) for status, kind, _ in replies}
    wanted = [(400, "json"), (200, "json"), (200, "jsonlines")]
    assert found == {(status, f"application/{kind}") for status, kind in wanted}


def test_under_load_errors_are_errors_and_streams_stream(server) -> None:
    ask_mixed(server.port, 48)
    assert send(server.port, b"", "GET", "/ping")[0] == 200


@pytest.mark.slow
def test_two_thousand_mixed_requests(server) -> None:
    ask_mixed(server.port, 2000)


def test_answers_are_those_of_the_course(server, in_process) -> None:
    """Those of `generate`: token by token, alone and in company."""
    replies = together(server.port, [{"inputs": text} for text in QUESTIONS])
    found = [json.loads(content)["generated_text"] for _, _, content in replies]
    assert found == in_process[0]
    body = {"inputs": QUESTIONS, "adapter": "base"}
    found = json.loads(send(server.port, body)[2])
    assert [one["generated_text"] for one in found] == in_process[1]


def test_the_openai_schema_over_http(server, in_process) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    status, headers, content = send(server.port, body)
    assert (status, headers["content-type"]) == (200, "application/json")
    (choice,) = json.loads(content)["choices"]
    assert choice["message"]["content"] == in_process[0][0]
    status, headers, content = send(server.port, body | {"stream": True})
    assert (status, headers["content-type"]) == (200, "application/jsonlines")
    chunks = [json.loads(line) for line in content.decode().splitlines() if line]
    deltas = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert "".join(deltas) == in_process[0][0]


SLOW_ECHO = """
import time
from djl_python import Input, Output

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    time.sleep(0.02)
    output = Output()
    for index, item in enumerate(inputs.get_batches()):
        position = index if inputs.is_batch() else None
        output.add_as_json(item.get_as_json(), batch_index=position)
    return output
"""


def test_killing_the_worker_under_load_loses_nothing_silently(tmp_path) -> None:
    """Every request ends in its own answer, or in 503 and the reason."""
    (tmp_path / "model.py").write_text(SLOW_ECHO)
    (tmp_path / "serving.properties").write_text("batch_size=4\nmax_batch_delay=5\n")
    with Server(tmp_path) as server:
        worker = worker_of(server)

        def one(number):
            if number == 100:
                worker.kill()
            status, _, content = send(server.port, {"id": number})
            return status, json.loads(content)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(one, range(300)))
        assert len(replies) == 300
        for number, (status, reply) in enumerate(replies):
            if status == 200:
                assert reply == {"id": number}
            else:
                assert status == reply["code"] == 503
                assert (
                    "disconnected" in reply["message"]
                    or "not ready" in (reply["message"])
                )
        statuses = [status for status, _ in replies]
        assert 50 <= statuses.count(200) < 300
        # As on the real server: it does not heal, SageMaker replaces the container.
        assert send(server.port, b"", "GET", "/ping")[0] == 500


# --- no code --------------------------------------------------------------------------


def test_merged_model_without_code_answers_the_same(
    built,
    tmp_path,
    in_process,
) -> None:
    """The client builds the prompt; the answer is that of base and adapter."""
    archive = artifact.build_without_code(
        built / "saved_base",
        built / "saved_adapter",
        tmp_path / "merged",
        tmp_path / "merged.tar.gz",
    )
    assert artifact.validate(archive, load=False).findings == []
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert "serving.properties" in files
    assert not [name for name in files if name.endswith(".py") or "adapter" in name]
    # What stands in serving.properties is what the image would assume anyway.
    (tmp_path / "merged" / "serving.properties").rename(tmp_path / "properties")
    assert artifact.validate(tmp_path / "merged", load=False).findings == []
    with Server(tmp_path / "merged") as server:
        for text, expected in zip(QUESTIONS, in_process[0], strict=True):
            prompt = INFERENCE_PROMPT.format(instruction=text)
            parameters = {"max_new_tokens": 16, "do_sample": False}
            body = {"inputs": prompt, "parameters": parameters}
            status, _, content = send(server.port, body)
            answer = json.loads(content)["generated_text"].strip()
            assert (status, answer) == (200, expected)
        assert send(server.port, {"inputs": 3})[0] == 424
        assert send(server.port, b"", "GET", "/ping")[0] == 200


def test_merged_archive_has_the_same_bytes_again(built, tmp_path) -> None:
    parts = (built / "saved_base", built / "saved_adapter")
    first, second = (
        artifact.build_without_code(*parts, tmp_path / name, tmp_path / f"{name}.tar")
        for name in ("one", "two")
    )
    assert first.read_bytes() == second.read_bytes()


def vllm_stand_in():
    """The handler that takes vLLM's place, as a worker would import it."""
    sys.modules["djl_python"] = utils.djl_python
    path = Path(utils.djl_python.__file__).parent / "lmi_vllm" / "vllm_async_service.py"
    spec = importlib.util.spec_from_file_location("vllm_async_service", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_several_adapters_without_code(built, tmp_path, in_process) -> None:
    second = save_adapter(tmp_path / "second", built / "saved_base")
    artifact.build_without_code(
        built / "saved_base",
        {"faq": built / "saved_adapter", "other": second},
        tmp_path / "several",
        tmp_path / "several.tar.gz",
    )
    # The stand-in serves it; vLLM runs this family without LoRA.
    (found,) = artifact.validate(tmp_path / "several.tar.gz").findings
    assert "does not support LoRA yet" in found.what
    (model,) = find_models(tmp_path / "several", {})
    assert model.options["max_lora_rank"] == "8"
    assert model.async_mode
    service = vllm_stand_in().Service({**model.options, "model_dir": str(model.folder)})
    prompt = INFERENCE_PROMPT.format(instruction=QUESTION)
    body = {
        "inputs": prompt,
        "parameters": {"max_new_tokens": 16, "do_sample": False},
    }
    tuned = service.answer({**body, "adapters": "faq"})["generated_text"].strip()
    plain = service.answer(body)["generated_text"].strip()
    assert (tuned, plain) == (in_process[0][0], in_process[1][0])
    with pytest.raises(ValueError, match="nosuch is not registered"):
        service.answer({**body, "adapters": "nosuch"})


NO_CODE_MISTAKES = {
    "not told to be asynchronous": (
        lambda text: text.replace("option.async_mode=true\n", ""),
        "Write option.async_mode=true",
    ),
    "adapters not enabled": (
        lambda text: text.replace("option.enable_lora=true\n", ""),
        "adapters/ is there and would not be read",
    ),
    "rank above the limit": (
        lambda text: text.replace("max_lora_rank=8", "max_lora_rank=2"),
        "has r=4, above the limit of 2",
    ),
}


def test_mistakes_without_code_are_found(built, tmp_path) -> None:
    folder = tmp_path / "several"
    adapters = {"faq": built / "saved_adapter"}
    artifact.build_without_code(
        built / "saved_base", adapters, folder, tmp_path / "several.tar.gz"
    )
    good = (folder / "serving.properties").read_text()
    for change, hint in NO_CODE_MISTAKES.values():
        (folder / "serving.properties").write_text(change(good))
        report = artifact.validate(folder, load=False)
        assert hint in str(report) and not report.ok
    (folder / "serving.properties").write_text(good)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).rename(folder / "kept")
        report = artifact.validate(folder, load=False)
        assert not report.ok and "at the root" in str(report)
        (folder / "kept").rename(folder / name)
