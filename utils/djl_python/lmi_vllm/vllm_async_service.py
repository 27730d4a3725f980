"""What an artifact without code names as its entry point: here without vLLM.

The handler of this name in the image serves a model with vLLM. This one takes the same
requests and gives the same replies for what the course uses of them, with transformers
in vLLM's place: one request after the other, no continuous batching. What each of the
two makes of a wrong request is not the same.

    {"inputs": prompt, "parameters": {…}, "adapters": name}

Unlike the course's entry point it adds no template, samples unless `do_sample` is
false, and stops after 30 tokens unless `max_new_tokens` says otherwise.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from djl_python import Input, Output
from djl_python.async_utils import create_non_stream_output

DEFAULT_NEW_TOKENS = 30
SAMPLING = ("temperature", "top_p", "top_k")
PARAMETERS = (
    *SAMPLING,
    "max_new_tokens",
    "do_sample",
    "repetition_penalty",
    "seed",
    "stop",
    "return_full_text",
)

service: Service | None = None


async def handle(inputs: Input) -> Output | None:
    """Answer a request; the first one has no content and loads the model."""
    global service
    if service is None:
        service = Service(inputs.get_properties())
    if inputs.is_empty():
        return None
    try:
        reply = service.answer(inputs.get_as_json())
    except (KeyError, TypeError, ValueError) as error:
        said = f"Input parsing failed: {error}"
        return create_non_stream_output("", error=said, code=424)
    return create_non_stream_output(reply)


class Service:
    """A model in transformers' format, with the adapters beside it."""

    def __init__(self, options: Mapping[str, str]):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(options["model_dir"])
        source = options.get("model_id") or str(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        self.adapters: list[str] = []
        if options.get("enable_lora") == "true":
            self._load_adapters(folder / "adapters", int(options["max_lora_rank"]))
        self.model.eval()

    def _load_adapters(self, folder: Path, most: int) -> None:
        """Load every adapter of a folder.

        Raises:
            ValueError: for an adapter of a rank that vLLM would refuse, too.
        """
        from peft import PeftModel

        for path in sorted(folder.iterdir()):
            rank = json.loads((path / "adapter_config.json").read_text("utf-8"))["r"]
            if rank > most:
                raise ValueError(
                    f"LoRA rank {rank} is greater than max_lora_rank {most}."
                )
            if self.adapters:
                self.model.load_adapter(str(path), adapter_name=path.name)
            else:
                self.model = PeftModel.from_pretrained(
                    self.model, str(path), adapter_name=path.name
                )
            self.adapters.append(path.name)

    def answer(self, body: Mapping[str, Any]) -> dict[str, str]:
        """Return the reply to a request, given as the object of its JSON.

        Raises:
            KeyError: if it has no inputs.
            TypeError: if its values are of the wrong types.
            ValueError: for a parameter or an adapter that is not known.
        """
        import torch

        given = dict(body.get("parameters") or {})
        if unknown := set(given) - set(PARAMETERS):
            raise ValueError(f"unknown parameters {sorted(unknown)}")
        prompt, full = body["inputs"], given.pop("return_full_text", False)
        stops = given.pop("stop", None) or []
        stops = [stops] if isinstance(stops, str) else stops
        if (seed := given.pop("seed", None)) is not None:
            torch.manual_seed(seed)
        greedy = given.pop("do_sample", None) is False or given.get("temperature") == 0
        if greedy:
            given = {k: v for k, v in given.items() if k not in SAMPLING}
        given.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
        stopping = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        with torch.inference_mode(), self._using(body.get("adapters")):
            ids = self.tokenizer(prompt, return_tensors="pt")
            output = self.model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                do_sample=not greedy,
                **stopping,
                **given,
            )
        new = output[0, ids["input_ids"].shape[1] :]
        text = self.tokenizer.decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for stop in stops:
            text = text.partition(stop)[0]
        return {"generated_text": prompt + text if full else text}

    def _using(self, name: str | None) -> Any:
        """Switch to the adapter that a request names, or to the base without one."""
        nothing = contextlib.nullcontext()
        if name is None:
            return self.model.disable_adapter() if self.adapters else nothing
        if name not in self.adapters:
            raise ValueError(f"Adapter {name} is not registered")
        self.model.set_adapter(name)
        return nothing
