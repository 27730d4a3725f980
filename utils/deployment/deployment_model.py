"""Entry point of the endpoint: packed into the artifact as `model.py`.

DJL Serving imports this file three times and calls `handle` once without content: the
warm-up, which brings the options of `serving.properties` and loads base and adapter.
Afterwards every call is a request, or a batch of them:

    {"inputs": "a question", "parameters": {"max_new_tokens": 64}}

    inputs      text, or a list of texts
    context     notes to answer from: a text, or a list with one for each of inputs
    parameters  see `PARAMETERS`; without any the answer is greedy
    adapter     the adapter's name, or "base" to leave it out
    stream      true sends the answer piece by piece

The reply is {"generated_text": …}, or a list of such for a list. A bad request gets
status 400 and an error that names the field; in a batch, where one status covers all,
the body of that item says {"code": 400, "error": …}. Nothing that a client sends may
end this process: the server would not start it again.

With option.async_mode=true, option.handler=handle_async and batch_size=1 each request
has its own status, type and stream, however many come at once (`Desk`); an error's body
is then {"error": …, "code": …}, which is the form that the server gives it.

The file stands alone: in the container nothing of this repository is at hand. It works
with transformers 4.56 to 5.x and peft 0.19 upward.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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

MAX_INPUTS = 64  # texts in one request
MAX_CHARACTERS = 20_000  # of one text
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 100
MAX_ROWS = 32  # texts that are continued together
MAX_WAITING = 256  # texts; the server itself bounds nothing in asynchronous mode
GATHERING = 0.02  # seconds in which other requests may join the first
ALIKE = 4  # budgets up to this many times each other are continued together
MAX_NEW_TOKENS = 2048  # however long the model's context is
DEFAULT_NEW_TOKENS = 96
DEFAULT_CONTEXT = 2048  # where the model's configuration does not say
PREDICT_TIMEOUT = 120  # seconds, the server's own limit where no option names another
SHARE_OF_TIMEOUT = 0.75  # after which generating stops: past the limit all is lost
# SageMaker ends a reply after 60 s ("InvokeEndpoint" in its API reference); an error
# that comes later reaches nobody, and the client asks again.
LONGEST_REPLY = 55  # seconds
LONGEST_QUOTE = 60  # characters of a wrong value that an error repeats

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
FIELDS = ("inputs", "context", "parameters", "adapter", "stream")
DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}

BATCH_KEY = re.compile(r"batch_\d+[._]")
LONGEST_BATCH_SIZE = 3  # digits: the server counts the members from 000

log = logging.getLogger(__name__)
service: "Service | None" = None
desk: "Desk | None" = None


def handle(inputs: Input) -> Output | None:
    """Answer DJL Serving, which sends the warm-up first, then requests and batches."""
    global service
    if inputs.is_empty() and service is None:
        # Options come only now; later requests carry HTTP headers in their place.
        service = Service(inputs.get_properties())
        return None
    if service is None:
        return Output().error("the model is not loaded yet", code=503)
    if not _is_batch(inputs):
        return service.answer_one(inputs)
    output = Output()
    replies = service.answer_batch(inputs.get_batches())
    for index, reply in enumerate(replies):
        output.add_as_json(reply, batch_index=index)
    return output.add_property("content-type", "application/json")


async def handle_async(inputs: Input) -> Any:
    """Answer DJL Serving in asynchronous mode: each call is one request.

    Returns:
        An `Output` of `create_non_stream_output`, or an asynchronous generator of
        `create_stream_chunk_output`; any other would end the server's worker.
    """
    global service, desk
    if inputs.is_empty() and service is None:
        service = Service(inputs.get_properties())
        desk = Desk(service)
        return None
    if desk is None:
        return _refusal(503, "the model is not loaded yet")
    return await desk.answer(inputs)


def _is_batch(inputs: Input) -> bool:
    """Whether several requests came together.

    The server says so by a property `batch_size`; but a client's header of that name
    arrives as a property, too, and must not make one request look like thousands.
    """
    size = inputs.get_properties().get("batch_size", "")
    keys = inputs.get_content().get_keys()
    return (
        size.isdecimal()
        and len(size) <= LONGEST_BATCH_SIZE
        and int(size) > 0
        and all(BATCH_KEY.match(str(key)) for key in keys)
    )


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


@dataclass(frozen=True)
class Row:
    """One text to be continued: its tokens, and how."""

    text: str
    ids: tuple[int, ...]
    decoding: Decoding
    adapter: str


class Service:
    """The loaded model."""

    def __init__(self, options: dict[str, str]):
        """Load tokenizer, base and adapter.

        Args:
            options: of serving.properties. `base_model` is a folder of the artifact or
                a hub id (with `base_revision`); `adapter_checkpoint` a folder, without
                which the base answers alone; `adapter_name`, `dtype`,
                `max_new_tokens` (when a request names none) and `predict_timeout`
                (the server's, in seconds) are optional.

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
        # A model is not made for two threads at a time, and a stream runs in its own.
        self.lock = threading.Lock()

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

    # --- answering -------------------------------------------------------------------

    def answer_one(self, item: Input) -> Output:
        """Reply to a request that came alone."""
        try:
            request = self.read(item)
            rows = self.prepare(request)
        except BadRequest as error:
            return Output().error(str(error), code=400, message="Bad Request")
        if request.stream:
            output = Output().add_property("content-type", "application/jsonlines")
            return output.add_stream_content(self.stream(rows[0]))
        answers = self.generate(rows, self.deadline())
        if None in answers:
            late = self.out_of_time()
            return Output().error(late, code=503, message="Service Unavailable")
        reply = _reply(request, answers)
        output = Output().add_property("content-type", "application/json")
        return output.add_as_json(reply)

    def answer_batch(self, items: Sequence[Input]) -> list[Any]:
        """Reply to each item; what is wrong with one does not touch the others.

        A stream cannot be sent from within a batch: such an item gets its whole answer.
        """
        deadline = self.deadline()
        replies: list[Any] = [None] * len(items)
        accepted: list[tuple[int, Request, list[Row]]] = []
        for index, item in enumerate(items):
            try:
                request = self.read(item)
                accepted.append((index, request, self.prepare(request)))
            except BadRequest as error:
                replies[index] = {"code": 400, "error": str(error)}
            except Exception as error:
                log.exception("an item of a batch failed")
                replies[index] = {"code": 424, "error": str(error)}
        together = [row for *_, rows in accepted for row in rows]
        try:
            answers = iter(self.generate(together, deadline))
            for index, request, rows in accepted:
                replies[index] = self._item(request, [next(answers) for _ in rows])
        except Exception:
            log.exception("the batch failed: answering its items one by one")
            for index, request, rows in accepted:
                try:
                    replies[index] = self._item(request, self.generate(rows, deadline))
                except Exception as error:
                    replies[index] = {"code": 424, "error": str(error)}
        return replies

    def _item(self, request: Request, answers: Sequence[str | None]) -> Any:
        """Reply to an item of a batch."""
        if None in answers:
            return {"code": 503, "error": self.out_of_time()}
        return _reply(request, answers)

    def deadline(self) -> float:
        """Return the time at which generating must stop.

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
        for name in body:
            if name not in FIELDS:
                raise BadRequest(
                    _short(name), f"unknown field; known are {', '.join(FIELDS)}"
                )
        if "inputs" not in body:
            raise BadRequest("inputs", "missing; expected text or a list of texts")
        texts, is_list = self._read_inputs(body["inputs"])
        stream = body.get("stream", False)
        if not isinstance(stream, bool):
            raise BadRequest("stream", f"expected true or false{_found(stream)}")
        if stream and is_list:
            raise BadRequest("stream", "works for one text, not for a list")
        return Request(
            texts=texts,
            contexts=_read_contexts(body.get("context"), len(texts), is_list),
            is_list=is_list,
            decoding=self._read_parameters(body.get("parameters")),
            adapter=self._read_adapter(body.get("adapter")),
            stream=stream,
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
        decoding = Decoding(max_new_tokens=self.default_new_tokens)
        if value is None:
            return decoding
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
        if sampling:
            chosen["do_sample"] = True
        if "max_new_tokens" in chosen:
            chosen["chosen_budget"] = True
        return replace(decoding, **chosen)

    def _read_adapter(self, value: Any) -> str:
        known = ["base", *([self.adapter_name] if self.has_adapter else [])]
        if value is None:
            return known[-1]
        if not isinstance(value, str) or value not in known:
            raise BadRequest(
                "adapter", f"expected one of {', '.join(known)}{_found(value)}"
            )
        return value

    def prepare(self, request: Request) -> list[Row]:
        """Template and tokenise the texts of a request.

        Raises:
            BadRequest: if one leaves no room for an answer.
        """
        rows = []
        together = zip(request.texts, request.contexts, strict=True)
        for index, (text, context) in enumerate(together):
            ids = self.prompt_ids(text, context)
            decoding = request.decoding
            room = self.context - len(ids)
            if decoding.max_new_tokens > room:
                if room < 1 or decoding.chosen_budget:
                    field = "context" if context else "inputs"
                    field += f"[{index}]" if request.is_list else ""
                    raise BadRequest(
                        field,
                        f"{len(ids)} tokens with the template and max_new_tokens="
                        f"{decoding.max_new_tokens} exceed the model's "
                        f"{self.context}: shorten the text or lower max_new_tokens",
                    )
                decoding = replace(decoding, max_new_tokens=room)
            rows.append(Row(text, tuple(ids), decoding, request.adapter))
        return rows

    def prompt_ids(self, text: str, context: str = "") -> list[int]:
        """Return the tokens that the model reads: those that it was trained on."""
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
        turns = [{"role": "user", "content": prompt}]
        if template["writes_system"]:
            turns.insert(0, {"role": "system", "content": template["system_prompt"]})
        prompt = self.tokenizer.apply_chat_template(
            turns,
            chat_template=template["chat_template"],
            tokenize=False,
            add_generation_prompt=True,
        )
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

    # --- generating ------------------------------------------------------------------

    def generate(self, rows: Sequence[Row], deadline: float) -> list[str | None]:
        """Answer each row, in the order of the rows; None where time ran out."""
        answers: list[str | None] = [None] * len(rows)
        # Rows of one adapter and like length go together, so that little is padded;
        # short answers first, so that a long one does not cost them theirs.
        order = sorted(
            range(len(rows)),
            key=lambda i: (
                rows[i].adapter,
                rows[i].decoding.max_new_tokens,
                len(rows[i].ids),
            ),
        )
        while order and time.monotonic() < deadline:
            adapter = rows[order[0]].adapter
            chosen = [i for i in order if rows[i].adapter == adapter][:MAX_ROWS]
            order = [i for i in order if i not in set(chosen)]
            texts = self._continue([rows[i] for i in chosen], deadline)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
        return answers

    def _continue(
        self, rows: Sequence[Row], deadline: float, watch: "Watch | None" = None
    ) -> list[str | None]:
        """Continue rows of one adapter together.

        Args:
            rows: what to continue.
            deadline: when to stop, whatever is missing; on the monotonic clock.
            watch: sees each row's tokens after each step up to its last, by the
                row's index, and whether it was the last; returns whether to give the
                row up.

        Returns:
            The answers; None for one that was not complete in time.
        """
        from transformers import GenerationConfig

        length = max(len(row.ids) for row in rows)
        padding = [length - len(row.ids) for row in rows]
        ids = [[self.pad_id] * p + [*r.ids] for p, r in zip(padding, rows, strict=True)]
        mask = [[0] * p + [1] * len(r.ids) for p, r in zip(padding, rows, strict=True)]
        ending = _Ending(self, rows, length, deadline, watch)
        sampler = _Sampler(rows, padding)
        config = GenerationConfig(
            max_new_tokens=max(row.decoding.max_new_tokens for row in rows),
            do_sample=False,  # the sampler has already chosen, row by row
            pad_token_id=self.pad_id,  # no eos_token_id: `ending` sees to that
        )
        on_base = self.has_adapter and rows[0].adapter == "base"
        plain = self.model.disable_adapter() if on_base else contextlib.nullcontext()
        with self.lock, torch.inference_mode(), plain:
            output = self.model.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                generation_config=config,
                logits_processor=[sampler] if sampler.active else [],
                stopping_criteria=[ending],
            )
        new = output[:, length:].tolist()
        return [
            self.finish(row, ids[:budget]) if complete else None
            for row, ids, budget, complete in zip(
                rows, new, ending.lengths, ending.done, strict=True
            )
        ]

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

    def stream(self, row: Row) -> Iterator[str]:
        """Yield the answer in pieces; together they are what `generate` returns."""
        steps: queue.Queue = queue.Queue()

        def watch(_: int, ids: list[int], ended: bool) -> bool:
            steps.put(ids)
            return False

        def work() -> None:
            try:
                answer = self._continue([row], self.deadline(), watch)[0]
                if answer is None:
                    raise TimeoutError(self.out_of_time())
                steps.put(("end", answer))
            except BaseException as error:  # whoever waits must hear of any end
                steps.put(("error", error))

        threading.Thread(target=work, daemon=True).start()
        pieces = _Pieces(self, row)
        while True:
            step = steps.get()
            if isinstance(step, tuple):
                kind, value = step
                if kind == "error":
                    # Whatever it was, it must not end the process.
                    raise value if isinstance(value, Exception) else RuntimeError(value)
                if piece := pieces.rest(value):
                    yield piece
                return
            if piece := pieces.new(step):
                yield piece


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


# (index of a row, its new tokens, whether it ends with them) → whether to give it up
Watch = Callable[[int, list[int], bool], bool]


class _Ending:
    """Stops each row at its own budget, end of text, or stop text; all in good time."""

    def __init__(
        self,
        service: Service,
        rows: Sequence[Row],
        start: int,
        deadline: float,
        watch: Watch | None,
    ):
        self.service, self.rows, self.start, self.watch = service, rows, start, watch
        self.deadline = deadline
        self.lengths = [row.decoding.max_new_tokens for row in rows]
        self.done = [False] * len(rows)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        new = input_ids[:, self.start :].tolist()
        for index, (row, ids) in enumerate(zip(self.rows, new, strict=True)):
            if self.done[index]:
                continue
            ended = self._ends(row, ids)
            given_up = self.watch is not None and self.watch(index, ids, ended)
            if ended or given_up:
                self.done[index] = True
                self.lengths[index] = len(ids)
        late = time.monotonic() >= self.deadline
        return torch.tensor([late or one for one in self.done], device=input_ids.device)

    def _ends(self, row: Row, ids: list[int]) -> bool:
        if len(ids) >= row.decoding.max_new_tokens:
            return True
        goes_on = row.decoding.ignore_eos_token
        if ids[-1] in self.service.end_ids and not goes_on:
            return True
        stops = row.decoding.stop
        if not goes_on:
            stops = (*stops, *self.service.stop_texts)
        if not stops:
            return False
        text = self.service.tokenizer.decode(ids, skip_special_tokens=False)
        return any(stop in text for stop in stops)


class _Ticket:
    """One text on its way through the model, and the news for whoever waits for it.

    News are ("ids", new tokens), for a stream only; then ("end", the answer) or
    ("error", an exception). The model's thread brings them, the event loop reads them.
    """

    def __init__(self, row: Row, is_stream: bool, deadline: float):
        self.row, self.is_stream, self.deadline = row, is_stream, deadline
        self.begun = self.over = False  # has news; has its last
        self.left = False  # nobody waits any more
        self._news: asyncio.Queue = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def tell(self, kind: str, value: Any) -> None:
        """Bring news, from whatever thread."""
        self.begun = True
        self.over = self.over or kind != "ids"
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


class Desk:
    """Takes requests as they come and has the model continue them together.

    One thread works for the model: it takes what waits, runs it to its end and takes
    the next. Each text is answered as soon as its own end is reached.
    """

    def __init__(self, service: Service):
        self.service = service
        self._waiting: list[_Ticket] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="model").start()

    async def answer(self, item: Input) -> Output | AsyncIterator[Output]:
        """Reply to one request, whatever others there are."""
        tickets: list[_Ticket] = []
        try:
            request = self.service.read(item)
            rows = self.service.prepare(request)
            deadline = self.service.deadline()
            tickets = [_Ticket(row, request.stream, deadline) for row in rows]
            if not self._enter(tickets):
                waiting = f"more than {MAX_WAITING} texts would wait: ask again later"
                return _refusal(503, waiting)
            if request.stream:
                return self._stream(tickets[0])
            answers = [(await ticket.next())[1] for ticket in tickets]
            reply = json.dumps(_reply(request, answers), ensure_ascii=False)
            return create_non_stream_output(reply)
        except Exception as error:
            for ticket in tickets:
                ticket.left = True
            return _refusal(*self._status(error))

    async def _stream(self, ticket: _Ticket) -> AsyncIterator[Output]:
        """Yield an answer in pieces; the last is marked so, whatever happens.

        Without such a piece the client would wait for two minutes.
        """
        pieces = _Pieces(self.service, ticket.row)
        try:
            kind = "ids"
            while kind == "ids":
                kind, value = await ticket.next()
                piece = pieces.new(value) if kind == "ids" else pieces.rest(value)
                if piece or kind == "end":
                    yield create_stream_chunk_output({"outputs": piece}, kind == "end")
        except Exception as error:
            code, text = self._status(error)
            yield create_stream_chunk_output("", True, error=_one_line(text), code=code)
        finally:
            ticket.left = True

    def _status(self, error: Exception) -> tuple[int, str]:
        """Return the status and the text of a reply to a request that failed."""
        if isinstance(error, BadRequest):
            return 400, str(error)
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

    def _take(self) -> list[_Ticket]:
        """Wait for texts; return the one that waits longest, and what is like it."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            end = time.monotonic() + GATHERING
            while len(self._waiting) < MAX_ROWS and time.monotonic() < end:
                self._changed.wait(max(0.0, end - time.monotonic()))
            waiting = [ticket for ticket in self._waiting if not ticket.left]
            batch = self._alike(waiting) if waiting else []
            self._waiting = [ticket for ticket in waiting if ticket not in batch]
            return batch

    @staticmethod
    def _alike(waiting: Sequence[_Ticket]) -> list[_Ticket]:
        """Return the first text and those of its adapter, budget and length."""
        first = waiting[0].row
        budget, length = first.decoding.max_new_tokens, len(first.ids)
        alike = [
            ticket
            for ticket in waiting
            if ticket.row.adapter == first.adapter
            and ticket.row.decoding.max_new_tokens <= ALIKE * budget
            and budget <= ALIKE * ticket.row.decoding.max_new_tokens
        ]
        # The first is at distance 0, and sorting keeps the order of equals.
        alike.sort(key=lambda ticket: abs(len(ticket.row.ids) - length))
        return alike[:MAX_ROWS]

    def _work(self) -> None:
        while True:
            batch = self._take()
            try:
                self._run(batch)
            except BaseException as error:  # this thread must outlive whatever it was
                alone = len(batch) == 1
                if not alone:
                    log.exception("a batch failed: continuing its texts one by one")
                for ticket in batch:
                    self._run_alone(ticket, error if alone or ticket.begun else None)

    def _run_alone(self, ticket: _Ticket, error: BaseException | None) -> None:
        """Continue one text of a batch that failed, or pass the failure on."""
        if ticket.over or ticket.left:
            return
        if error is None:
            try:
                self._run([ticket])
            except BaseException as failure:
                error = failure
        if error is not None:
            known = isinstance(error, Exception)
            ticket.tell("error", error if known else RuntimeError(repr(error)))

    def _run(self, batch: Sequence[_Ticket]) -> None:
        """Continue texts together and bring each its news."""
        if not batch:
            return

        def watch(index: int, ids: list[int], ended: bool) -> bool:
            ticket = batch[index]
            if ended:
                ticket.tell("end", self.service.finish(ticket.row, ids))
            elif ticket.is_stream:
                ticket.tell("ids", ids)
            return ticket.left

        # Each client's own wait ends at its own deadline; it has left by then.
        deadline = max(ticket.deadline for ticket in batch)
        self.service._continue([ticket.row for ticket in batch], deadline, watch)
        for ticket in batch:
            if not ticket.over:
                ticket.tell("error", TimeoutError())


def _refusal(code: int, text: str) -> Output:
    """Return an error; its text becomes the reason in the reply's head, too."""
    return create_non_stream_output("", error=_one_line(text), code=code)


def _one_line(text: str) -> str:
    """Return text that the head of a reply can hold: no line ends, nothing hidden."""
    visible = "".join(one if one.isprintable() else " " for one in text)
    return " ".join(visible.split())


class _Sampler:
    """Chooses the next token of each row that samples, with that row's own seed.

    Every row draws from a generator of its own, so that its answer does not depend on
    which other requests happen to be in the batch.
    """

    def __init__(self, rows: Sequence[Row], padding: Sequence[int]):
        self.rows, self.padding = rows, padding
        self.generators = []
        for row in rows:
            generator = torch.Generator()
            if row.decoding.seed is None:
                generator.seed()
            else:
                generator.manual_seed(row.decoding.seed)
            self.generators.append(generator)
        self.active = any(
            row.decoding.do_sample or row.decoding.repetition_penalty != 1
            for row in rows
        )

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        for index, row in enumerate(self.rows):
            penalty = row.decoding.repetition_penalty
            if penalty != 1:
                seen = input_ids[index, self.padding[index] :].unique()
                values = scores[index, seen]
                scores[index, seen] = torch.where(
                    values > 0, values / penalty, values * penalty
                )
            if row.decoding.do_sample:
                token = self._draw(scores[index], row.decoding, self.generators[index])
                scores[index] = -math.inf
                scores[index, token] = 0
        return scores

    @staticmethod
    def _draw(scores: Any, decoding: Decoding, generator: Any) -> int:
        """One token: by temperature, of the `top_k` best, from the nucleus `top_p`."""
        values, tokens = (scores.double().cpu() / decoding.temperature).sort(
            descending=True, stable=True
        )
        if decoding.top_k:
            values = values[: decoding.top_k]
        shares = values.softmax(dim=0)
        if decoding.top_p < 1:
            before = shares.cumsum(dim=0) - shares
            shares = shares * (before < decoding.top_p)
        return int(tokens[torch.multinomial(shares, 1, generator=generator)])


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


def _reply(request: Request, answers: Sequence[str]) -> Any:
    replies = [{"generated_text": answer} for answer in answers]
    return replies if request.is_list else replies[0]


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
