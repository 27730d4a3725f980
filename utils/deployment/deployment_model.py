"""Entry point of the endpoint: packed into the artifact as `model.py`.

DJL Serving imports this file three times and calls `handle` once without content: the
warm-up, which brings the options of `serving.properties` and loads base and adapter.
Afterwards every call is a request, in one of two schemas. The course's own:

    {"inputs": "a question", "parameters": {"max_new_tokens": 64}}

    inputs      text, or a list of texts
    context     notes to answer from: a text, or a list with one for each of inputs
    retrieve    1 to 5: answer from so many notes of the archive, found for each text
    parameters  see `PARAMETERS`; without any the answer is greedy
    adapter     the adapter's name, or "base" to leave it out
    stream      true sends the answer piece by piece, each a line {"outputs": …}

is answered by {"generated_text": …}, or by a list of such for a list. OpenAI's, as it
is described in https://platform.openai.com/docs/api-reference/chat/create:

    {"messages": [{"role": "user", "content": "a question"}], "max_tokens": 64}

is answered by a `chat.completion`, or by lines that each hold a
`chat.completion.chunk`, which is what the image's own handler sends. `model` names the
adapter, `context` may hold notes here, too, and without a temperature the answer is
greedy. A field that would have no effect is refused in both.

With `retrieve` (in a chat for the last turn of the user) a reply says in `notes` which
notes were shown, by their ids, the best first, perhaps none: {"generated_text": …,
"notes": […]}; a completion has it beside `choices`. A stream says it first: the
course's in a line of its own, {"notes": […]}, OpenAI's in the first chunk. The notes
and the search, `notes_search.py`, are in archives that were built with some.

A bad request gets status 400 and {"error": …, "code": 400}, where the error names the
field. Nothing that a client sends may end this process: the server would not start it
again.

The server's asynchronous mode (option.async_mode=true) hands over each request as it
comes, and `Desk` has the model continue many of them together: texts join and leave
between two steps, so that each has its own status, type and stream.

The file stands alone: in the container nothing of this repository is at hand. It works
with transformers 4.56 to 5.x and peft 0.19 upward.
"""

import asyncio
import contextlib
import importlib.util
import inspect
import json
import logging
import math
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from djl_python import Input, Output
from djl_python.async_utils import create_non_stream_output, create_stream_chunk_output

# The template of training, up to where the answer begins: what this file beside the
# adapter says (utils/templates.py writes it), or the one for base models.
TEMPLATE_FILE = "course_template.json"
TEMPLATE_VERSION = 1
INSTRUCTION = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}"
)
INSTRUCTION_TEMPLATE = {
    "version": TEMPLATE_VERSION,
    "name": "instruction",
    "system_prompt": "",
    "prompt": INSTRUCTION + "\n\n### Response:\n",
    "prompt_with_context": INSTRUCTION + "\n\nInput:\n{context}\n\n### Response:\n",
    "stop": ["### End"],
    "marks": [],  # none but the tokenizer's special tokens
}
PLACE = re.compile(r"\{(instruction|context)\}")
# What would end the instruction early, if a user wrote it.
TEMPLATE_KEY = re.compile(r"#{3,}(?=\s*(?:instruction:|response:|end))", re.I)

SEARCH_FILE = "notes_search.py"  # beside this file, where there are notes to search

MAX_INPUTS = 64  # texts in one request
MAX_NOTES = 5  # that are shown for one text
MAX_CHARACTERS = 20_000  # of one text
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 100
MAX_ROWS = 32  # texts that are continued at a time
MAX_WAITING = 256  # texts; the server itself bounds nothing in asynchronous mode
MAX_READ = 8192  # tokens of prompts, padding included, that are read in one go
ALIKE = 4  # texts up to this many times as long as others are continued with them
SHORT = 64  # tokens; below that all lengths are alike
SPARE = 32  # tokens of padding that no row needs any more, and that may stay
MAX_NEW_TOKENS = 2048  # however long the model's context is
DEFAULT_NEW_TOKENS = 96
DEFAULT_CONTEXT = 2048  # where the model's configuration does not say
PREDICT_TIMEOUT = 120  # seconds, the server's own limit where no option names another
SHARE_OF_TIMEOUT = 0.75  # after which generating stops: past the limit all is lost
# SageMaker ends a reply after 60 s ("InvokeEndpoint" in its API reference); an error
# that comes later reaches nobody, and the client asks again.
LONGEST_REPLY = 55  # seconds
LONGEST_QUOTE = 60  # characters of a wrong value that an error repeats
LONGEST_ERROR = 1000  # characters: the text of an error stands in the head of a reply

# name → (kind, least, most)
PARAMETERS: dict[str, tuple[str, float, float]] = {
    "max_new_tokens": ("whole number", 1, MAX_NEW_TOKENS),
    "do_sample": ("boolean", 0, 1),
    "temperature": ("number", 0.01, 10),
    "top_p": ("number", 0.001, 1),
    "top_k": ("whole number", 1, 1_000_000),
    "repetition_penalty": ("number", 0.1, 10),
    "seed": ("whole number", 0, 2**63 - 1),
    "stop": ("text or a list of texts", 1, MAX_STOPS),
    "return_full_text": ("boolean", 0, 1),
    "ignore_eos_token": ("boolean", 0, 1),  # answers of fixed length, for measuring
}
SAMPLING = ("temperature", "top_p", "top_k")
FIELDS = ("inputs", "context", "retrieve", "parameters", "adapter", "stream")
# OpenAI's name → the course's
CHAT_PARAMETERS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
}
# What this server cannot do → the value that asks for nothing.
CHAT_NEUTRAL = {
    "n": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "response_format": {"type": "text"},
    "tools": [],
    "store": False,
}
CHAT_FIELDS = (
    *("messages", "model", "context", "retrieve", "stream", "stream_options", "user"),
    *CHAT_PARAMETERS,
    *CHAT_NEUTRAL,
)
DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}

log = logging.getLogger(__name__)
desk: "Desk | None" = None


async def handle(inputs: Input) -> Output | AsyncIterator[Output] | None:
    """Answer DJL Serving: the warm-up first, then each request on its own."""
    global desk
    if desk is None and inputs.is_empty():
        # Options come only now; later requests carry HTTP headers in their place.
        desk = Desk(Service(inputs.get_properties()))
        return None
    if desk is None:
        return _refusal(503, "the model is not loaded yet")
    return await desk.answer(inputs)


class Busy(RuntimeError):
    """As many texts wait already as may."""


class BadRequest(ValueError):
    """What is wrong with a request; the text begins with the field's name."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")


@dataclass(frozen=True)
class Decoding:
    """How one text is to be continued."""

    max_new_tokens: int
    chosen_budget: bool = False  # the client named max_new_tokens
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool = False
    ignore_eos_token: bool = False


@dataclass(frozen=True)
class Request:
    """A request that has been checked."""

    texts: tuple[str, ...]
    contexts: tuple[str, ...]  # notes for each; "" for none
    is_list: bool
    decoding: Decoding
    adapter: str
    stream: bool
    before: tuple[dict[str, str], ...] = ()  # turns of a chat, up to the last question
    is_chat: bool = False  # in OpenAI's schema, and to be answered in it
    counts: bool = False  # whether a stream of a chat ends with its numbers of tokens
    retrieve: int = 0  # notes to find for each text
    notes: tuple[tuple[str, ...], ...] = ()  # ids of those that were found for each


@dataclass(frozen=True)
class Row:
    """One text to be continued: its tokens, and how."""

    text: str
    ids: tuple[int, ...]
    decoding: Decoding
    adapter: str


@dataclass(frozen=True)
class Answer:
    """What a text was continued with."""

    text: str
    tokens: int
    reason: str  # "stop", or "length" if it was cut off


class Service:
    """The loaded model."""

    def __init__(self, options: dict[str, str]):
        """Load tokenizer, base and adapter.

        Args:
            options: of serving.properties. `base_model` is a folder of the artifact or
                a hub id (with `base_revision`); `adapter_checkpoint` a folder, without
                which the base answers alone; `adapter_name`, `dtype`,
                `max_new_tokens` (when a request names none), `predict_timeout` (the
                server's, in seconds), `notes` and `encoder` (folders of the artifact)
                are optional.

        Raises:
            ValueError: if an option is missing or has a value that cannot be used.
        """
        self.folder = Path(options.get("model_dir") or os.getcwd())
        self.default_new_tokens = _option_number(
            options, "max_new_tokens", DEFAULT_NEW_TOKENS
        )
        self.adapter_name = options.get("adapter_name") or "adapter"
        timeout = _option_number(options, "predict_timeout", PREDICT_TIMEOUT, 10**9)
        self.seconds = min(timeout * SHARE_OF_TIMEOUT, LONGEST_REPLY)
        base = options.get("base_model")
        if not base:
            raise ValueError(
                "option.base_model is missing from serving.properties: name a folder "
                "of the artifact, or a model on the Hugging Face hub"
            )
        source = str(self.folder / base) if (self.folder / base).is_dir() else base
        adapter = self._adapter_folder(options.get("adapter_checkpoint"))
        self.device = _device(options.get("device_id", "-1"))
        self._load(source, options.get("base_revision"), adapter, _dtype(options))
        self.notes = self._load_notes(options.get("notes"), options.get("encoder"))

    def _adapter_folder(self, name: str | None) -> Path | None:
        if not name:
            return None
        folder = self.folder / name
        if not folder.is_dir():
            log.warning(
                "option.adapter_checkpoint=%s: there is no such folder in the "
                "artifact; the base model answers without an adapter",
                name,
            )
            return None
        return folder

    def _load(
        self,
        source: str,
        revision: str | None,
        adapter: Path | None,
        dtype: torch.dtype | None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        version = {"revision": revision} if revision else {}
        has_tokenizer = adapter is not None and (adapter / "tokenizer.json").is_file()
        if has_tokenizer:
            self.tokenizer = AutoTokenizer.from_pretrained(str(adapter))
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(source, **version)
        if dtype is None:
            dtype = _usual_dtype(self.device)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **version)
        # What a checkpoint brings must not change answers: `generate` would take from
        # it whatever the configuration of a call leaves open.
        model.generation_config = GenerationConfig()
        self.has_adapter = adapter is not None
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
        self.model = model.to(self.device).eval()
        context = getattr(self.model.config, "max_position_embeddings", None)
        self.context = context or DEFAULT_CONTEXT
        tokenizer = self.tokenizer
        self.bos = _bos(tokenizer)
        self.template = self._template(adapter, Path(source))
        stops = {
            text: tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in self.template["stop"]
        }
        self.end_ids = [ids[0] for ids in stops.values() if len(ids) == 1]
        if tokenizer.eos_token_id is not None:
            self.end_ids.insert(0, tokenizer.eos_token_id)
        self.end_texts = (*stops, tokenizer.eos_token, tokenizer.pad_token)
        self.end_texts = tuple(text for text in self.end_texts if text)
        # Stops of several tokens are looked for in the text.
        self.stop_texts = tuple(text for text, ids in stops.items() if len(ids) > 1)
        pad = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else (self.end_ids or [0])[0]
        plain = self.model.get_base_model() if adapter is not None else self.model
        self.keywords = frozenset(inspect.signature(plain.forward).parameters)

    def _load_notes(self, name: str | None, encoder: str | None) -> Any:
        """Load the notes of the archive with their search; None if there are none.

        Raises:
            ValueError: if they cannot be searched.
        """
        if not name:
            if encoder:
                raise ValueError("option.encoder has no effect without option.notes")
            return None
        path = self.folder / SEARCH_FILE
        if not path.is_file():
            raise ValueError(
                f"option.notes={name}: {SEARCH_FILE}, which searches them, is not in "
                "the artifact: build it with artifact.build(…, notes=…)"
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module.Notes(
            self.folder / name, self.folder / encoder if encoder else None
        )

    def _template(self, adapter: Path | None, base: Path) -> dict[str, Any]:
        """Return the template that the model was tuned in.

        Raises:
            ValueError: if the file that names it cannot be used.
        """
        for folder in filter(None, (adapter, base, self.folder)):
            path = folder / TEMPLATE_FILE
            if path.is_file():
                saved = json.loads(path.read_text("utf-8"))
                if saved.get("version") != TEMPLATE_VERSION:
                    raise ValueError(
                        f"{path.name} is not of version {TEMPLATE_VERSION}: save the "
                        "adapter again and build the artifact anew"
                    )
                return saved
        if self.tokenizer.chat_template:
            log.warning(
                "there is no %s: questions are asked in the instruction template, and "
                "not in the chat template of the tokenizer",
                TEMPLATE_FILE,
            )
        return INSTRUCTION_TEMPLATE

    def deadline(self) -> float:
        """Return the time at which an answer has to be complete.

        A call that outlasts the server's own limit costs it the model, for good.
        """
        return time.monotonic() + self.seconds

    def out_of_time(self) -> str:
        """Return what a client is told whose answer was not complete in time."""
        return (
            f"the answer was not complete after {self.seconds:g} s: ask for fewer "
            "texts, or for less with max_new_tokens"
        )

    # --- reading a request -----------------------------------------------------------

    def read(self, item: Input) -> Request:
        """Read a request and its parameters, and refuse what cannot be answered.

        Raises:
            BadRequest: naming the field.
        """
        keys = item.get_content().get_keys()
        if keys and "data" not in keys:
            found = _short(repr(item.get_property("content-type") or ""))
            raise BadRequest(
                "Content-Type",
                f"is {found}, so the body was read as a form; "
                "expected application/json",
            )
        body = _read_json(item.get_as_bytes() or b"")
        if not isinstance(body, dict):
            raise BadRequest(
                "body", f'expected an object such as {{"inputs": "…"}}{_found(body)}'
            )
        if "messages" in body and "inputs" in body:
            raise BadRequest("messages", "stands beside inputs: send one of the two")
        if "messages" in body:
            return self._read_chat(body)
        _check_fields(body, FIELDS)
        if "inputs" not in body:
            raise BadRequest(
                "inputs", "missing; expected text, a list of texts, or messages instead"
            )
        texts, is_list = self._read_inputs(body["inputs"])
        stream = _read_switch("stream", body.get("stream"))
        if stream and is_list:
            raise BadRequest("stream", "works for one text, not for a list")
        contexts = _read_contexts(body.get("context"), len(texts), is_list)
        return Request(
            texts=texts,
            contexts=contexts,
            is_list=is_list,
            decoding=self._read_parameters(body.get("parameters")),
            adapter=self._read_adapter(body.get("adapter")),
            stream=stream,
            retrieve=self._read_retrieve(body.get("retrieve"), contexts),
        )

    def _read_chat(self, body: Mapping[str, Any]) -> Request:
        """Read a request in OpenAI's schema.

        Raises:
            BadRequest: naming the field.
        """
        _check_fields(body, CHAT_FIELDS)
        for name, nothing in CHAT_NEUTRAL.items():
            if body.get(name) is not None and body[name] != nothing:
                raise BadRequest(
                    name,
                    f"this server knows {json.dumps(nothing)} only{_found(body[name])}",
                )
        if body.get("user") is not None:
            _check_text("user", body["user"], MAX_CHARACTERS, blank=True)
        turns = _read_messages(body["messages"])
        one_question = len(turns) == 1
        if self.template["name"] != "chat" and not one_question:
            raise BadRequest(
                "messages",
                "this model was tuned on single questions: send one turn of the user",
            )
        chosen: dict[str, Any] = {}
        for name, own in CHAT_PARAMETERS.items():
            value = body.get(name)
            if value is None:
                continue
            if own in chosen:
                raise BadRequest(name, f"means the same as another field: {own}")
            if name == "temperature" and not isinstance(value, bool) and value == 0:
                chosen["do_sample"] = False
                continue
            chosen[own] = _read_parameter(name, own, value)
        if "do_sample" in chosen:  # temperature 0: the likeliest token, whatever top_p
            chosen = {k: v for k, v in chosen.items() if k not in SAMPLING}
        stream = _read_switch("stream", body.get("stream"))
        contexts = _read_contexts(body.get("context"), 1, is_list=False)
        return Request(
            texts=(turns[-1]["content"],),
            contexts=contexts,
            is_list=False,
            decoding=self._decoding(chosen),
            adapter=self._read_adapter(body.get("model"), "model"),
            stream=stream,
            before=tuple(turns[:-1]),
            is_chat=True,
            counts=_read_stream_options(body.get("stream_options"), stream),
            retrieve=self._read_retrieve(body.get("retrieve"), contexts),
        )

    def _read_inputs(self, value: Any) -> tuple[tuple[str, ...], bool]:
        if isinstance(value, str):
            _check_text("inputs", value, MAX_CHARACTERS)
            return (value,), False
        if not isinstance(value, list):
            raise BadRequest(
                "inputs", f"expected text or a list of texts{_found(value)}"
            )
        if not 1 <= len(value) <= MAX_INPUTS:
            raise BadRequest(
                "inputs", f"expected 1 to {MAX_INPUTS} texts, found {len(value)}"
            )
        for index, text in enumerate(value):
            _check_text(f"inputs[{index}]", text, MAX_CHARACTERS)
        return tuple(value), True

    def _read_parameters(self, value: Any) -> Decoding:
        if value is None:
            return self._decoding({})
        if not isinstance(value, dict):
            raise BadRequest("parameters", f"expected an object{_found(value)}")
        chosen: dict[str, Any] = {}
        for name, given in value.items():
            field = f"parameters.{_short(name)}"
            if name not in PARAMETERS:
                known = ", ".join(PARAMETERS)
                raise BadRequest(field, f"unknown parameter; known are {known}")
            if given is not None:
                chosen[name] = _read_parameter(field, name, given)
        sampling = [name for name in SAMPLING if name in chosen]
        if sampling and chosen.get("do_sample") is False:
            raise BadRequest(
                f"parameters.{sampling[0]}",
                "has no effect with do_sample=false: leave out one of the two",
            )
        return self._decoding(chosen)

    def _decoding(self, chosen: dict[str, Any]) -> Decoding:
        """Return how to continue, where a client has chosen so much."""
        if any(name in chosen for name in SAMPLING):
            chosen["do_sample"] = True
        if "max_new_tokens" in chosen:
            chosen["chosen_budget"] = True
        return replace(Decoding(max_new_tokens=self.default_new_tokens), **chosen)

    def _read_adapter(self, value: Any, field: str = "adapter") -> str:
        known = ["base", *([self.adapter_name] if self.has_adapter else [])]
        if value is None:
            return known[-1]
        if not isinstance(value, str) or value not in known:
            raise BadRequest(
                field, f"expected one of {', '.join(known)}{_found(value)}"
            )
        return value

    def _read_retrieve(self, value: Any, contexts: Sequence[str]) -> int:
        """Return how many notes are to be found for each text; 0 for none.

        Raises:
            BadRequest: if it is no such number, or there is nothing to search.
        """
        if value is None:
            return 0
        wrong = _wrong_number(value, "whole number", 0, MAX_NOTES)
        if wrong:
            raise BadRequest(
                "retrieve", f"expected a whole number from 0 to {MAX_NOTES}, {wrong}"
            )
        if value and any(contexts):
            raise BadRequest(
                "retrieve",
                "and context both say what the notes are: leave out one of the two",
            )
        if value and self.notes is None:
            raise BadRequest(
                "retrieve",
                "this archive holds no notes to search: build it with "
                "artifact.build(…, notes=…), or send notes as context",
            )
        return value

    def with_notes(self, request: Request) -> Request:
        """Find notes for each text of a request, and return it with them."""
        found = [self.notes.find(text, request.retrieve) for text in request.texts]
        # As in training: each note on a line of its own (utils/dataset/open_book.py).
        contexts = (
            "\n".join(f"- {' '.join(note.text.split())}" for note in notes)
            for notes in found
        )
        ids = tuple(tuple(note.id for note in notes) for notes in found)
        return replace(request, contexts=tuple(contexts), notes=ids)

    def prepare(self, request: Request) -> list[Row]:
        """Template and tokenise the texts of a request.

        Raises:
            BadRequest: if one leaves no room for an answer.
        """
        rows = []
        together = zip(request.texts, request.contexts, strict=True)
        for index, (text, context) in enumerate(together):
            ids = self.prompt_ids(text, context, request.before)
            decoding = request.decoding
            room = self.context - len(ids)
            if decoding.max_new_tokens > room:
                if room < 1 or decoding.chosen_budget:
                    field = "messages" if request.is_chat else "inputs"
                    field = "context" if context else field
                    field += f"[{index}]" if request.is_list else ""
                    what, remedy = "tokens with the template", "shorten the text"
                    if request.retrieve and context:
                        shown = ", ".join(map(repr, request.notes[index]))
                        field = "retrieve"
                        what = f"tokens of {request.texts[index][:LONGEST_QUOTE]!r} "
                        what += f"with the notes {shown}, the template"
                        remedy = "ask for fewer notes"
                    raise BadRequest(
                        field,
                        f"{len(ids)} {what} and max_new_tokens="
                        f"{decoding.max_new_tokens} exceed the model's "
                        f"{self.context}: {remedy} or lower max_new_tokens",
                    )
                decoding = replace(decoding, max_new_tokens=room)
            rows.append(Row(text, tuple(ids), decoding, request.adapter))
        return rows

    def prompt_ids(
        self, text: str, context: str = "", before: Sequence[dict[str, str]] = ()
    ) -> list[int]:
        """Return the tokens that the model reads: those that it was trained on.

        Args:
            text: the question.
            context: notes to answer from; "" for none.
            before: earlier turns of a chat; a system turn takes the template's place.
        """
        template = self.template
        texts = {
            "instruction": self.escape_template(text),
            "context": self.escape_template(context),
        }
        form = template["prompt_with_context" if context.strip() else "prompt"]
        prompt = PLACE.sub(lambda place: texts[place[1]], form)
        if template["name"] != "chat":
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            return [*self.bos, *ids]
        turns = [
            *(
                {**turn, "content": self.escape_template(turn["content"])}
                for turn in before
            ),
            {"role": "user", "content": prompt},
        ]
        if template["writes_system"] and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": template["system_prompt"]})
        try:
            prompt = self.tokenizer.apply_chat_template(
                turns,
                chat_template=template["chat_template"],
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:
            if not before:  # it is no fault of the client's
                raise
            problem = f"the model's chat template refuses them ({_short(str(error))})"
            raise BadRequest("messages", problem) from None
        # A chat template writes the beginning-of-sequence token itself.
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def escape_template(self, text: str) -> str:
        """Return the text with the template's marks made ordinary text.

        Otherwise a user could end the question and write the answer's beginning.
        Text that holds none is returned as it is.
        """
        if self.template["name"] == "instruction":
            text = TEMPLATE_KEY.sub("#", text)
        for mark in self.template["marks"] or self.tokenizer.all_special_tokens:
            if len(mark) > 1:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    # --- ending ----------------------------------------------------------------------

    def ends(self, row: Row, ids: Sequence[int]) -> str:
        """Return why an answer ends with these tokens; "" if it goes on.

        "stop" for the end of text or a stop text, "length" for the client's budget.
        """
        goes_on = row.decoding.ignore_eos_token
        if ids[-1] in self.end_ids and not goes_on:
            return "stop"
        stops = row.decoding.stop
        if not goes_on:
            stops = (*stops, *self.stop_texts)
        if stops:
            text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
            if any(stop in text for stop in stops):
                return "stop"
        return "length" if len(ids) >= row.decoding.max_new_tokens else ""

    def decode(self, row: Row, ids: Sequence[int]) -> str:
        """Turn new tokens into text, cut where the answer ends; not yet stripped."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        ends = () if row.decoding.ignore_eos_token else self.end_texts
        for stop in (*ends, *row.decoding.stop):
            text = text.partition(stop)[0]
        return text

    def finish(self, row: Row, ids: Sequence[int]) -> str:
        """Turn new tokens into the text that the client gets."""
        answer = self.decode(row, ids).strip()
        return f"{row.text}{answer}" if row.decoding.return_full_text else answer


class _Pieces:
    """Cuts an answer that grows into pieces, none of which is taken back."""

    def __init__(self, service: Service, row: Row):
        self.service, self.row, self.sent = service, row, ""
        self.start = row.text if row.decoding.return_full_text else ""
        self.longest = max(map(len, (*service.end_texts, *row.decoding.stop)))

    def new(self, ids: Sequence[int]) -> str:
        """Return what can be sent since the last piece, often nothing.

        Args:
            ids: all new tokens up to now.
        """
        text = self.start + self.service.decode(self.row, ids).lstrip()
        # The last characters may yet turn out to begin a stop text.
        safe = text[: max(len(self.sent), len(text) - self.longest)]
        return self.rest(safe.rstrip("\ufffd \n\t"))

    def rest(self, text: str) -> str:
        """Return what is left to send of `text`."""
        piece = text[len(self.sent) :]
        self.sent += piece
        return piece


class _Ticket:
    """One text on its way through the model, and the news for whoever waits for it.

    News are ("ids", new tokens), for a stream only; then ("end", an `Answer`) or
    ("error", an exception). The model's thread brings them, the event loop reads them.
    """

    def __init__(self, service: "Service", row: Row, is_stream: bool, deadline: float):
        self.service, self.row, self.is_stream = service, row, is_stream
        self.deadline = deadline
        self.new: list[int] = []  # tokens
        self.over = False  # has its last news
        self.left = False  # nobody waits any more
        self.alone = False  # company that it was in has failed
        self.generator = torch.Generator()
        if row.decoding.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(row.decoding.seed)
        decoding = row.decoding
        self.chooses = decoding.do_sample or decoding.repetition_penalty != 1
        self._news: asyncio.Queue = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def ids(self) -> list[int]:
        """All tokens up to now."""
        return [*self.row.ids, *self.new]

    def choose(self, scores: torch.Tensor) -> int:
        """Return the next token, by temperature, penalty and the text's own seed.

        Every text draws from a generator of its own, so that its answer does not
        depend on its company.

        Args:
            scores: of each token, shape (vocabulary,).
        """
        decoding, penalty = self.row.decoding, self.row.decoding.repetition_penalty
        if penalty != 1:
            scores = scores.clone()
            seen = torch.tensor(sorted(set(self.ids)), device=scores.device)
            values = scores[seen]
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if not decoding.do_sample:
            return int(scores.argmax())
        values, tokens = (scores.double().cpu() / decoding.temperature).sort(
            descending=True, stable=True
        )
        if decoding.top_k:
            values = values[: decoding.top_k]
        shares = values.softmax(dim=0)
        if decoding.top_p < 1:
            before = shares.cumsum(dim=0) - shares
            shares = shares * (before < decoding.top_p)
        return int(tokens[torch.multinomial(shares, 1, generator=self.generator)])

    def take(self, token: int) -> None:
        """Add a token, and say so; the text is over if it ends or nobody waits.

        Whoever waits leaves at the deadline (`next`).
        """
        if self.over:
            return
        self.new.append(token)
        if self.left:
            self.over = True
        elif reason := self.service.ends(self.row, self.new):
            text = self.service.finish(self.row, self.new)
            self.tell("end", Answer(text, len(self.new), reason))
        elif self.is_stream:
            self.tell("ids", list(self.new))

    def tell(self, kind: str, value: Any) -> None:
        """Bring news, from whatever thread."""
        self.over = self.over or kind != "ids"
        if kind == "error" and not isinstance(value, Exception):
            value = RuntimeError(repr(value))  # it must not end the event loop
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._news.put_nowait, (kind, value))

    async def next(self) -> tuple[str, Any]:
        """Wait for news.

        Raises:
            TimeoutError: if the request's time is over first.
            Exception: whatever went wrong in the model.
        """
        left = self.deadline - time.monotonic()
        kind, value = await asyncio.wait_for(self._news.get(), max(left, 0))
        if kind == "error":
            raise value
        return kind, value


class _Batch:
    """Texts of one adapter that the model continues together, a token a step.

    What the model has computed of the tokens so far, its keys and values, is kept. All
    rows are padded on the left to the longest, so that their last tokens are in line.
    """

    def __init__(self, service: Service, tickets: Sequence[_Ticket]):
        """Read the texts; the first step continues them.

        Args:
            service: with the model.
            tickets: of one adapter.
        """
        self.service, self.tickets = service, list(tickets)
        self.adapter = tickets[0].row.adapter
        texts = [ticket.ids for ticket in tickets]
        self._lengths = [len(ids) for ids in texts]
        width = max(self._lengths)
        padded = [[service.pad_id] * (width - len(ids)) + ids for ids in texts]
        self._cache: Any = None
        self._compute(padded)

    @property
    def goes_on(self) -> bool:
        """Whether any text is not over."""
        return not all(ticket.over for ticket in self.tickets)

    def suits(self, other: "_Batch") -> bool:
        """Whether another batch can join, without too much padding on either side."""
        lengths = [*self._lengths, *other._lengths]
        return (
            self.adapter == other.adapter
            and len(lengths) <= MAX_ROWS
            and max(lengths) <= ALIKE * max(SHORT, min(lengths))
            and not any(ticket.alone for ticket in (*self.tickets, *other.tickets))
            and self._can_change()
        )

    def join(self, other: "_Batch") -> None:
        """Take in the texts of another batch, which must not be used any more."""
        for mine, new in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = _stacked(mine.keys, new.keys)
            mine.values = _stacked(mine.values, new.values)
        self._scores = torch.cat([self._scores, other._scores])
        self._lengths += other._lengths
        self.tickets += other.tickets

    def step(self) -> None:
        """Add a token to each text, and compute the scores of the one after it."""
        tokens = self._scores.argmax(dim=-1).tolist()
        for place, ticket in enumerate(self.tickets):
            try:
                if ticket.chooses and not ticket.over:
                    tokens[place] = ticket.choose(self._scores[place])
                ticket.take(tokens[place])
            except Exception as error:  # it is this text's own
                ticket.tell("error", error)
        if not self.goes_on:
            return
        if self._can_change():
            tokens = self._drop(tokens)
        self._lengths = [length + 1 for length in self._lengths]
        self._compute([[token] for token in tokens])

    def _drop(self, tokens: list[int]) -> list[int]:
        """Let go of texts that are over; return the tokens of those that are left."""
        kept = [i for i, ticket in enumerate(self.tickets) if not ticket.over]
        spare = self._cache.get_seq_length() - max(self._lengths[i] for i in kept)
        if len(kept) == len(self.tickets) and spare < SPARE:
            return tokens
        rows = torch.tensor(kept, device=self.service.device)
        for layer in self._cache.layers:
            layer.keys = layer.keys[rows, :, spare:]
            layer.values = layer.values[rows, :, spare:]
        self.tickets = [self.tickets[i] for i in kept]
        self._lengths = [self._lengths[i] for i in kept]
        return [tokens[i] for i in kept]

    def _can_change(self) -> bool:
        """Whether rows can join and leave.

        Not where the model keeps anything but all keys and values, such as a window.
        """
        layers = getattr(self._cache, "layers", ())
        return bool(layers) and all(
            type(layer).__name__ == "DynamicLayer" for layer in layers
        )

    def _compute(self, ids: list[list[int]]) -> None:
        """Have the model read tokens, as many in each row; keep the next one's scores.

        `self._lengths` counts the tokens of each row, these included.
        """
        service, cache = self.service, self._cache
        read = torch.tensor(ids, device=service.device)
        width = read.shape[1] + (cache.get_seq_length() if cache is not None else 0)
        lengths = torch.tensor(self._lengths, device=service.device)
        places = torch.arange(width, device=service.device)
        mask = (places >= width - lengths[:, None]).long()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -read.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        options = {k: v for k, v in options.items() if k in service.keywords}
        on_base = service.has_adapter and self.adapter == "base"
        model = service.model
        plain = model.disable_adapter() if on_base else contextlib.nullcontext()
        with torch.inference_mode(), plain:
            output = model(
                input_ids=read,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **options,
            )
            self._scores = output.logits[:, -1].float()
        self._cache = output.past_key_values


def _stacked(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return keys or values of two batches as one, padded on the left.

    Args:
        some: shape (rows, heads, tokens, size of a head).
        others: the same, with rows and tokens of their own.
    """
    longest = max(some.shape[2], others.shape[2])
    padded = [
        torch.nn.functional.pad(one, (0, 0, longest - one.shape[2], 0))
        for one in (some, others)
    ]
    return torch.cat(padded)


class Desk:
    """Takes requests as they come and has the model continue them together.

    One thread works for the model. Between two steps it lets texts that wait join, and
    those that have ended leave (*continuous batching*).
    """

    def __init__(self, service: Service):
        self.service = service
        self._batches: list[_Batch] = []  # of the model's thread
        self._waiting: list[_Ticket] = []
        self._changed = threading.Condition()
        self._searcher = ThreadPoolExecutor(1, "search")  # starts no thread yet
        self._searching = 0  # texts
        threading.Thread(target=self._work, daemon=True, name="model").start()

    async def answer(self, item: Input) -> Output | AsyncIterator[Output]:
        """Reply to one request, whatever others there are."""
        tickets: list[_Ticket] = []
        try:
            deadline = self.service.deadline()
            request = self.service.read(item)
            if request.retrieve:
                request = await self._with_notes(request, deadline)
            rows = self.service.prepare(request)
            tickets = [
                _Ticket(self.service, row, request.stream, deadline) for row in rows
            ]
            if not self._enter(tickets):
                raise Busy
            if request.stream:
                return self._stream(request, tickets[0])
            answers = [(await ticket.next())[1] for ticket in tickets]
            reply = json.dumps(_reply(request, rows, answers), ensure_ascii=False)
            return create_non_stream_output(reply)
        except Exception as error:
            for ticket in tickets:
                ticket.left = True
            return _refusal(*self._status(error))

    async def _with_notes(self, request: Request, deadline: float) -> Request:
        """Find the notes in a thread of their own: the model and the loop go on.

        Raises:
            Busy: if too many texts wait for the search.
            TimeoutError: if the request's time is over first.
        """
        count = len(request.texts)
        with self._changed:
            if self._searching + count > MAX_WAITING:
                raise Busy
            self._searching += count
        work = self._searcher.submit(self.service.with_notes, request)
        # Counted until it ends: a search that nobody waits for any more takes its time.
        work.add_done_callback(lambda _: self._found(count))
        left = deadline - time.monotonic()
        return await asyncio.wait_for(asyncio.wrap_future(work), max(left, 0))

    def _found(self, count: int) -> None:
        with self._changed:
            self._searching -= count

    async def _stream(self, request: Request, ticket: _Ticket) -> AsyncIterator[Output]:
        """Yield an answer in pieces; the last is marked so, whatever happens.

        Without such a piece the client would wait for two minutes.
        """
        pieces = _Pieces(self.service, ticket.row)
        form = _Chunks(request) if request.is_chat else None
        try:
            if request.retrieve and form is None:
                yield create_stream_chunk_output(_shown(request, 0), False)
            kind = "ids"
            while kind == "ids":
                kind, value = await ticket.next()
                if kind == "ids":
                    if piece := pieces.new(value):
                        chunk = form.piece(piece) if form else {"outputs": piece}
                        yield create_stream_chunk_output(chunk, False)
                    continue
                piece = pieces.rest(value.text)
                if form is None:
                    yield create_stream_chunk_output({"outputs": piece}, True)
                    continue
                *others, last = form.ending(piece, value, len(ticket.row.ids))
                for chunk in others:
                    yield create_stream_chunk_output(chunk, False)
                yield create_stream_chunk_output(last, True)
        except Exception as error:
            code, text = self._status(error)
            yield create_stream_chunk_output("", True, error=_one_line(text), code=code)
        finally:
            ticket.left = True

    def _status(self, error: Exception) -> tuple[int, str]:
        """Return the status and the text of a reply to a request that failed."""
        if isinstance(error, BadRequest):
            return 400, str(error)
        if isinstance(error, Busy):
            return 503, f"more than {MAX_WAITING} texts would wait: ask again later"
        if isinstance(error, TimeoutError):
            return 503, self.service.out_of_time()
        log.error("a request failed", exc_info=error)
        return 424, str(error) or type(error).__name__

    # --- the model's thread ---

    def _enter(self, tickets: Sequence[_Ticket]) -> bool:
        """Let texts wait for the model, all or none; return whether there is room."""
        with self._changed:
            self._waiting = [ticket for ticket in self._waiting if not ticket.left]
            if len(self._waiting) + len(tickets) > MAX_WAITING:
                return False
            self._waiting += tickets
            self._changed.notify_all()
            return True

    def _work(self) -> None:
        while True:
            for group in self._groups(self._take()):
                self._start(group)
            for batch in list(self._batches):
                try:
                    batch.step()
                except (
                    BaseException
                ) as error:  # this thread must outlive whatever it was
                    self._batches.remove(batch)
                    self._separate(batch.tickets, error)
            self._batches = [batch for batch in self._batches if batch.goes_on]

    def _take(self) -> list[_Ticket]:
        """Return the texts that wait longest, as many as there is room for.

        Waits for some if the model has nothing to do.
        """
        running = sum(len(batch.tickets) for batch in self._batches)
        with self._changed:
            while not (self._waiting or self._batches):
                self._changed.wait()
            waiting = [ticket for ticket in self._waiting if not ticket.left]
            room = max(0, MAX_ROWS - running)
            self._waiting = waiting[room:]
            return waiting[:room]

    @staticmethod
    def _groups(tickets: Sequence[_Ticket]) -> list[list[_Ticket]]:
        """Return texts in groups of one adapter and like length, to read together."""
        groups: list[list[_Ticket]] = []
        for ticket in sorted(tickets, key=lambda one: (one.row.adapter, len(one.ids))):
            length = len(ticket.ids)
            group = groups[-1] if groups else []
            if (
                group
                and group[0].row.adapter == ticket.row.adapter
                and length <= ALIKE * max(SHORT, len(group[0].ids))
                and length * (len(group) + 1) <= MAX_READ
            ):
                group.append(ticket)
            else:
                groups.append([ticket])
        return groups

    def _start(self, tickets: Sequence[_Ticket]) -> None:
        """Read texts of one group, and let them join those that are being continued."""
        together = list(tickets)
        try:
            batch = _Batch(self.service, tickets)
            host = next((one for one in self._batches if one.suits(batch)), None)
            if host is None:
                self._batches.append(batch)
                return
            self._batches.remove(host)
            together += host.tickets
            host.join(batch)
            self._batches.append(host)
        except BaseException as error:
            self._separate(together, error)

    def _separate(self, tickets: Sequence[_Ticket], error: BaseException) -> None:
        """Continue each text of a batch that failed alone; one alone has failed."""
        tickets = [ticket for ticket in tickets if not ticket.over]
        if len(tickets) > 1:
            log.error("a batch failed: continuing its texts one by one", exc_info=error)
        for ticket in tickets:
            if len(tickets) == 1:
                ticket.tell("error", error)
            else:
                ticket.alone = True
                self._start([ticket])


class _Chunks:
    """Makes the pieces of a chat's stream, in OpenAI's form."""

    def __init__(self, request: Request):
        self.request, self.head = request, _chat_head(request, ".chunk")
        # Of the first piece only.
        self.role: dict[str, str] = {"role": "assistant"}
        self.notes = _shown(request, 0)

    def piece(self, text: str) -> dict[str, Any]:
        """Return a piece of the answer."""
        return self._chunk({"content": text}, None)

    def ending(self, text: str, answer: Answer, read: int) -> list[dict[str, Any]]:
        """Return what comes last: the rest, why the answer ends, and the counts.

        Args:
            text: what is left of the answer; may be empty.
            answer: the whole of it.
            read: the prompt's number of tokens.
        """
        chunks = [self._chunk({"content": text}, answer.reason)]
        if self.request.counts:
            chunks.append({**self.head, "choices": [], "usage": _usage(read, answer)})
        return chunks

    def _chunk(self, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": {**self.role, **delta},
            "logprobs": None,
            "finish_reason": reason,
        }
        chunk = {**self.head, "choices": [choice], **self.notes}
        self.role, self.notes = {}, {}
        return chunk


def _chat_head(request: Request, kind: str = "") -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": f"chat.completion{kind}",
        "created": int(time.time()),
        "model": request.adapter,
    }


def _shown(request: Request, index: int) -> dict[str, list[str]]:
    """Return what a reply says of a text's notes; nothing if none were asked for."""
    return {"notes": list(request.notes[index])} if request.retrieve else {}


def _usage(read: int, answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": read,
        "completion_tokens": answer.tokens,
        "total_tokens": read + answer.tokens,
    }


def _reply(request: Request, rows: Sequence[Row], answers: Sequence[Answer]) -> Any:
    """Return what a request is answered with, in its own schema."""
    if request.is_chat:
        (answer,), (row,) = answers, rows
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": None,
            "finish_reason": answer.reason,
        }
        usage = _usage(len(row.ids), answer)
        whole = {**_chat_head(request), "choices": [choice], "usage": usage}
        return whole | _shown(request, 0)
    replies = [
        {"generated_text": answer.text, **_shown(request, index)}
        for index, answer in enumerate(answers)
    ]
    return replies if request.is_list else replies[0]


def _refusal(code: int, text: str) -> Output:
    """Return an error; its text becomes the reason in the reply's head, too."""
    return create_non_stream_output("", error=_one_line(text), code=code)


def _one_line(text: str) -> str:
    """Return text that the head of a reply can hold: short, one line, all visible."""
    visible = "".join(one if one.isprintable() else " " for one in text)
    line = " ".join(visible.split())
    return line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + "…"


def _read_json(data: bytes) -> Any:
    """Read a body as JSON.

    Raises:
        BadRequest: if the body is no JSON.
    """
    if not data:
        raise BadRequest("body", 'is empty; expected an object such as {"inputs": "…"}')
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(
            "body", f"is not UTF-8 (byte {error.start}): send JSON as UTF-8"
        ) from None
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise BadRequest("body", "is nested too deeply") from None
    except BadRequest:
        raise
    except ValueError as error:
        raise BadRequest(
            "body", f"expected a JSON object in UTF-8 ({_short(str(error))})"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of two equal names JSON would silently keep the last.

    Raises:
        BadRequest: naming the field that is there twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(_short(name), "is there twice: send it once")
        found[name] = value
    return found


def _check_fields(body: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse what would be ignored.

    Raises:
        BadRequest: naming the field.
    """
    for name in body:
        if name not in known:
            raise BadRequest(
                _short(name), f"unknown field; known are {', '.join(known)}"
            )


def _read_switch(field: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadRequest(field, f"expected true or false{_found(value)}")
    return bool(value)


def _read_stream_options(value: Any, stream: bool) -> bool:
    """Return whether a stream is to end with its numbers of tokens.

    Raises:
        BadRequest: if the options are others, or there is no stream.
    """
    if value is None:
        return False
    if not stream:
        raise BadRequest("stream_options", "has no effect without stream=true")
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        known = '{"include_usage": true}'
        raise BadRequest("stream_options", f"expected {known}{_found(value)}")
    return _read_switch("stream_options.include_usage", value.get("include_usage"))


def _read_messages(value: Any) -> list[dict[str, str]]:
    """Read the turns of a chat: perhaps a system's, then user and assistant by turns.

    Raises:
        BadRequest: naming the turn.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS:
        raise BadRequest("messages", f"expected 1 to {MAX_INPUTS} turns{_found(value)}")
    turns: list[dict[str, str]] = []
    for index, turn in enumerate(value):
        field = f"messages[{index}]"
        if not isinstance(turn, dict):
            raise BadRequest(
                field, f'expected {{"role": …, "content": …}}{_found(turn)}'
            )
        for name in turn:
            if name not in ("role", "content", "name") and turn[name] is not None:
                raise BadRequest(field, f"has an unknown field {_short(repr(name))}")
        role = turn.get("role")
        role = "system" if role == "developer" else role  # the newer name for the same
        last = turns[-1]["role"] if turns else ""
        expected = {"": ("system", "user"), "user": ("assistant",)}.get(last, ("user",))
        if role not in expected:
            raise BadRequest(
                f"{field}.role", f"expected {' or '.join(expected)}{_found(role)}"
            )
        content = _read_content(f"{field}.content", turn.get("content"), role)
        turns.append({"role": role, "content": content})
    if turns[-1]["role"] != "user":
        raise BadRequest("messages", "the last turn must be the user's")
    return turns


def _read_content(field: str, value: Any, role: str) -> str:
    """Read the text of a turn, which may come in parts.

    Raises:
        BadRequest: if it is no text, or the user's is empty.
    """
    if isinstance(value, list):
        for index, part in enumerate(value):
            is_text = isinstance(part, dict) and part.get("type") == "text"
            if not is_text or not isinstance(part.get("text"), str):
                known = '{"type": "text", "text": …}'
                raise BadRequest(f"{field}[{index}]", f"expected {known}{_found(part)}")
        value = "".join(part["text"] for part in value)
    if not (role != "user" and value == ""):  # others may have nothing to say
        _check_text(field, value, MAX_CHARACTERS, blank=role != "user")
    return value


def _read_contexts(value: Any, count: int, is_list: bool) -> tuple[str, ...]:
    """Read the notes for each text of a request.

    Raises:
        BadRequest: if they are neither text nor, for a list of texts, as many texts.
    """
    if value is None:
        return ("",) * count
    if isinstance(value, str):
        if value:
            _check_text("context", value, MAX_CHARACTERS, blank=True)
        return (value,) * count
    if not is_list or not isinstance(value, list) or len(value) != count:
        wanted = f"a text, or a list of {count} texts" if is_list else "a text"
        raise BadRequest("context", f"expected {wanted}{_found(value)}")
    for index, text in enumerate(value):
        if text not in (None, ""):
            _check_text(f"context[{index}]", text, MAX_CHARACTERS, blank=True)
    return tuple(text or "" for text in value)


def _read_parameter(field: str, name: str, value: Any) -> Any:
    """Check a parameter's value and return it as it is used.

    Raises:
        BadRequest: if the value is of another kind, or out of bounds.
    """
    kind, least, most = PARAMETERS[name]
    if kind == "boolean":
        if not isinstance(value, bool):
            raise BadRequest(field, f"expected true or false{_found(value)}")
        return value
    if name == "stop":
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not least <= len(stops) <= most:
            raise BadRequest(
                field, f"expected a text or a list of 1 to {most} texts{_found(value)}"
            )
        for stop in stops:
            _check_text(field, stop, MAX_STOP_CHARACTERS, blank=True)
        return tuple(stops)
    wrong = _wrong_number(value, kind, least, most)
    if wrong:
        raise BadRequest(field, f"expected a {kind} from {least} to {most}, {wrong}")
    return value


def _wrong_number(value: Any, kind: str, least: float, most: float) -> str | None:
    """Say what is wrong with a number; None if nothing is."""
    if isinstance(value, bool):
        return f"found {json.dumps(value)}, which is no number"
    if isinstance(value, str):
        return f"found {_short(repr(value))}"
    if not isinstance(value, (int, float)):
        return f"found {_kind(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        kind = "no number" if math.isnan(value) else "not finite"
        return f"found {json.dumps(value)}, which is {kind}"
    if kind == "whole number" and not isinstance(value, int):
        return f"found {_short(repr(value))}, which is written as a fraction"
    if value < least:
        return f"found {_short(repr(value))}, which is too small"
    if value > most:
        return f"found {_short(repr(value))}, which is too large"
    return None


def _kind(value: Any) -> str:
    """Name a value that is neither text nor number as JSON does."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else json.dumps(value)


def _check_text(field: str, value: Any, most: int, blank: bool = False) -> None:
    """Check a text that a client sent.

    Raises:
        BadRequest: if it is no text, empty, too long, or cannot be encoded.
    """
    if not isinstance(value, str):
        raise BadRequest(field, f"expected text{_found(value)}")
    if not (value if blank else value.strip()):
        raise BadRequest(field, "is empty")
    if len(value) > most:
        raise BadRequest(field, f"has {len(value)} characters; expected at most {most}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(
            field, f"holds half a surrogate pair at character {error.start}"
        ) from None


def _found(value: Any) -> str:
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value)
        return f", found {_short(text)}"
    except RecursionError:
        return ", found something nested too deeply"


def _short(text: str) -> str:
    """Make a client's text safe to send back: short, and without lone surrogates."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"


def _option_number(
    options: dict[str, str], name: str, default: int, most: int = MAX_NEW_TOKENS
) -> int:
    value = options.get(name, str(default))
    if not value.strip().isdecimal() or not 1 <= int(value) <= most:
        raise ValueError(
            f"option.{name}={value!r}: expected a whole number from 1 to {most}"
        )
    return int(value)


def _dtype(options: dict[str, str]) -> torch.dtype | None:
    name = options.get("dtype")
    if name and name not in DTYPES:
        raise ValueError(f"option.dtype={name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name] if name else None


def _usual_dtype(device: str) -> torch.dtype:
    """Return the shortest type that this device computes with at full speed."""
    if device == "cpu":
        return torch.float32
    # Cards before compute capability 8 (such as the T4) only emulate bfloat16.
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if modern else torch.float16


def _device(device_id: str) -> str:
    """DJL says which GPU this worker has; -1 is none."""
    if not device_id.isdigit():
        return "cpu"
    if torch.cuda.is_available():
        return f"cuda:{device_id}"
    log.warning(
        "this worker has GPU %s, but PyTorch finds no CUDA: the model runs on the CPU "
        "in float32, many times slower. Does the image's CUDA version fit the "
        "instance's driver (InferenceAmiVersion)?",
        device_id,
    )
    return "cpu"


def _bos(tokenizer: Any) -> list[int]:
    """List the beginning-of-sequence id if this tokenizer adds one, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("a")["input_ids"][:1] else []
