"""Calls the deployed entry point in this process, and what it must refuse."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import utils.djl_python
from support.tiny_artifact import QUESTIONS
from utils.deployment import artifact
from utils.djl_python import Input
from utils.djl_python.async_replies import binary_decode
from utils.helpers import INFERENCE_PROMPT
from utils.models import ModelSettings, generate, load_model, load_tokenizer


def import_entry_point() -> ModuleType:
    """The file as the server imports it: anew each time."""
    sys.modules["djl_python"] = utils.djl_python
    spec = importlib.util.spec_from_file_location("model", artifact.ENTRY_POINT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def warm_up_input(folder: Path, **options: str) -> Input:
    """What the server hands over first: the properties of an artifact's folder."""
    inputs = Input()
    inputs.properties = {
        "model_dir": str(folder),
        "device_id": "-1",
        "base_model": "base",
        "adapter_checkpoint": "adapter",
        "adapter_name": "faq",
        "max_new_tokens": "16",
        **options,
    }
    return inputs


def request(body: Any) -> Input:
    """One request; what is no bytes is sent as JSON."""
    inputs = Input()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    inputs.content.add("data", data)
    return inputs


@dataclass
class Reply:
    """What a client gets: a status, and a body or the pieces of a stream.

    `error` is the error of the reply, or that which ended the stream.
    """

    status: int = 200
    body: Any = None
    pieces: tuple[Any, ...] = ()
    error: str = ""

    @property
    def text(self) -> str:
        """The answer to one question in the course's schema."""
        return self.body["generated_text"]

    @property
    def streamed(self) -> str:
        """The answer that came in pieces in the course's schema."""
        return "".join(piece["outputs"] for piece in self.pieces)


def start(folder: Path, **options: str) -> ModuleType:
    """The entry point, warmed up with an artifact's folder."""
    module = import_entry_point()
    assert asyncio.run(module.handle(warm_up_input(folder, **options))) is None
    return module


def _read(outputs: list[dict[str, str]]) -> Reply:
    """What the front end makes of a handler's outputs."""
    assert [one["last"] for one in outputs] == [
        *["False"] * (len(outputs) - 1),
        "True",
    ]
    error = outputs[-1].get("error", "")
    code = int(outputs[-1].get("code", 424 if error else 200))
    pieces = tuple(json.loads(one["data"]) for one in outputs if one["data"].strip())
    return Reply(code, None if error else pieces[-1], pieces, error)


def ask(module: ModuleType, *bodies: Any) -> list[Reply]:
    """What each request is answered with, all asked at once.

    Args:
        module: the entry point.
        bodies: objects, bytes, or an `Input`.
    """

    async def one(body: Any) -> Reply:
        asked = body if isinstance(body, Input) else request(body)
        output = await module.handle(asked)
        outputs = [output]
        if hasattr(output, "__aiter__"):
            outputs = [piece async for piece in output]
        return _read([binary_decode(piece.content.value_at(0)) for piece in outputs])

    async def every() -> list[Reply]:
        return await asyncio.gather(*map(one, bodies))

    return asyncio.run(every())


def ask_one(module: ModuleType, body: Any) -> Reply:
    """What a request is answered with that is alone."""
    return ask(module, body)[0]


def answers_in_process(built: Path) -> tuple[list[str], list[str]]:
    """Answers of base plus adapter, and of the base, through the course's functions.

    Args:
        built: the folder that `tiny_artifact.build_tiny` filled.
    """
    from peft import PeftModel

    settings = ModelSettings("tiny", str(built / "saved_base"), machine="any")
    tokenizer = load_tokenizer(settings)
    prompts = [INFERENCE_PROMPT.format(instruction=text) for text in QUESTIONS]
    base = generate(load_model(settings), tokenizer, prompts, 16)
    tuned_model = PeftModel.from_pretrained(
        load_model(settings), built / "saved_adapter"
    )
    return generate(tuned_model, tokenizer, prompts, 16), base


def probe(folder: Path) -> tuple[list[str], list[torch.Tensor]]:
    """Answers of an artifact, and logits of the model with and without the adapter."""
    module = start(folder)
    service = module.desk.service
    replies = ask_one(module, {"inputs": QUESTIONS}).body
    logits = []
    for text in QUESTIONS[:4]:
        (row,) = service.prepare(service.read(request({"inputs": text})))
        ids = torch.tensor([row.ids])
        with torch.inference_mode():
            logits.append(service.model(input_ids=ids).logits)
            with service.model.disable_adapter():
                logits.append(service.model(input_ids=ids).logits)
    return [one["generated_text"] for one in replies], logits


# (field, reason, what stands in the body beside {"inputs": "x"} or the body itself)
TWO = {"inputs": ["x", "y"]}
LONE = '{"inputs": "\\ud800"}'
BAD_REQUESTS = [
    ("body", "is empty", b""),
    ("body", "expected a JSON object in UTF-8 (Expecting prop", b"{not json"),
    ("body", "expected a JSON object in UTF-8 (Unterminated str", b'{"inputs": "x'),
    ("body", "expected a JSON object in UTF-8 (Extra data", b'{"inputs": "x"} {}'),
    ("body", "expected a JSON object in UTF-8 (Exceeds the limit", b"9" * 5000),
    ("body", "is not UTF-8 (byte 1)", b'"\xff"'),
    ("body", "is nested too deeply", b"[" * 100_000),
    ("body", "found null", b"null"),
    ("body", "found []", b"[]"),
    ("body", "found 'text'", b'"text"'),
    ("input", "unknown field", {"input": "y"}),
    ("inputs", "missing", {"inputs": ...}),
    ("inputs", "is there twice", b'{"inputs": "x", "inputs": "y"}'),
    ("inputs", "expected text or a list of texts, found null", {"inputs": None}),
    ("inputs", "expected text or a list of texts, found 3", {"inputs": 3}),
    ("inputs", 'expected text or a list of texts, found {"a"', {"inputs": {"a": 1}}),
    ("inputs", "is empty", {"inputs": " \n"}),
    ("inputs", "expected 1 to 64 texts, found 0", {"inputs": []}),
    ("inputs", "expected 1 to 64 texts, found 65", {"inputs": ["x"] * 65}),
    ("inputs", "has 20001 characters", {"inputs": "x" * 20_001}),
    ("inputs", "tokens with the template", {"inputs": "word " * 2000}),
    ("inputs", "holds half a surrogate pair at character 0", LONE.encode()),
    ("inputs[1]", "expected text, found 3", {"inputs": ["x", 3]}),
    ("inputs[1]", "is empty", {"inputs": ["x", ""]}),
    ("inputs[2]", "has 20001 characters", {"inputs": ["x", "y", "x" * 20_001]}),
    ("inputs[2]", "tokens with the template", {"inputs": ["x", "y", "word " * 2000]}),
    ("context", "expected a text, found 3", {"context": 3}),
    ("context", 'expected a text, found ["x"]', {"context": ["x"]}),
    ("context", "has 20001 characters", {"context": "x" * 20_001}),
    ("context", "a list of 2 texts, found 3", {"inputs": ["x", "y"], "context": 3}),
    ("context", 'a list of 2 texts, found ["z"]', TWO | {"context": ["z"]}),
    ("context", "tokens with the template", {"context": "word " * 2000}),
    ("context[1]", "expected text, found 3", TWO | {"context": [None, 3]}),
    ("context[1]", "tokens with the template", TWO | {"context": ["", "word " * 2000]}),
    ("parameters", "expected an object, found [", {"parameters": [1]}),
    ("parameters", "expected an object, found 'hot'", {"parameters": "hot"}),
    ("adapter", "expected one of base, faq, found 'nosuch'", {"adapter": "nosuch"}),
    ("adapter", 'expected one of base, faq, found ["faq"]', {"adapter": ["faq"]}),
    ("stream", "expected true or false, found 1", {"stream": 1}),
    ("stream", "expected true or false, found 'yes'", {"stream": "yes"}),
    ("stream", "works for one text", {"inputs": ["x"], "stream": True}),
]
BAD_PARAMETERS = [
    ("max_tokens", "unknown parameter; known are max_new_tokens", 3),
    ("max_new_tokens", "found 0, which is too small", 0),
    ("max_new_tokens", "which is too large", 10**30),
    ("max_new_tokens", "found 2.5, which is written as a fraction", 2.5),
    ("max_new_tokens", "found '9'", "9"),
    ("max_new_tokens", "found true, which is no number", True),
    ("temperature", "found 0, which is too small", 0),
    ("temperature", "found 11, which is too large", 11),
    ("temperature", "found NaN, which is no number", float("nan")),
    ("temperature", "found Infinity, which is not finite", float("inf")),
    ("temperature", "found 'hot'", "hot"),
    ("temperature", "found an object", {"celsius": 3}),
    ("temperature", "has no effect with do_sample=false", ("do_sample", False, 1.0)),
    ("top_p", "found 1.1, which is too large", 1.1),
    ("top_p", "found -0.5, which is too small", -0.5),
    ("top_p", "found a list of 1", [0.9]),
    ("top_p", "has no effect with do_sample=false", ("do_sample", False, 0.5)),
    ("top_k", "found 0, which is too small", 0),
    ("top_k", "found 1.0, which is written as a fraction", 1.0),
    ("top_k", "found false, which is no number", False),
    ("repetition_penalty", "found 0, which is too small", 0),
    ("repetition_penalty", "found 100, which is too large", 100),
    ("do_sample", "expected true or false, found 'yes'", "yes"),
    ("seed", "found -1, which is too small", -1),
    ("seed", "which is too large", 2**63),
    ("stop", "expected a text or a list of 1 to 8 texts, found []", []),
    ("stop", 'expected a text or a list of 1 to 8 texts, found ["x"', ["x"] * 9),
    ("stop", "expected text, found 3", [3]),
    ("stop", "is empty", ""),
    ("stop", "has 101 characters", "x" * 101),
    ("stop", "holds half a surrogate pair at character 1", "a\ud800"),
    ("return_full_text", "expected true or false, found 1", 1),
]


def _bodies() -> Iterator[tuple[str, str, bytes]]:
    """(field, reason, body) of every bad request."""
    for field, reason, body in BAD_REQUESTS:
        if isinstance(body, dict):
            body = {"inputs": "x"} | body
            body = {key: value for key, value in body.items() if value is not ...}
            body = json.dumps(body).encode()
        yield field, reason, body
    for name, reason, value in BAD_PARAMETERS:
        parameters = {name: value}
        if isinstance(value, tuple):
            other, other_value, value = value
            parameters = {other: other_value, name: value}
        body = {"inputs": "x", "parameters": parameters}
        yield f"parameters.{name}", reason, json.dumps(body).encode()


ALL_BAD = list(_bodies())
