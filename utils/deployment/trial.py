"""Run an artifact once, and see whether its answers depend on its adapter.

Everything else that `validate` does only reads. This runs the code in the archive, in
a process that is given the variables that `utils.djl_python.server` keeps (no key, no
token of this machine) and a home folder of its own. It is the user's process all the
same and no prison: load what you would also run.
"""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from utils.deployment.findings import VLLM_HANDLER, Finding, LoadError
from utils.deployment.packing import copy_file
from utils.djl_python.server import Server

PROMPTS = (
    "What is Amazon SageMaker?",
    "Write one sentence about the sea.",
    "How do I reset my password?",
)
NEW_TOKENS = 8
ANSWER_TIMEOUT = 300  # seconds
SCRAMBLED_SCALE = 0.5  # standard deviation, large beside any trained matrix
QUOTED = 200  # characters of a reply
Ask = Callable[[Mapping[str, object]], list[str]]


class NoAnswerError(Exception):
    """A reply that is no answer; the text says what it was."""


def try_to_load(
    store: Path, trial: Path, adapters: Mapping[str, Path], base: Path | None
) -> Iterator[Finding]:
    """Load a copy of the artifact as the server would, and ask it.

    Args:
        store: the folder of the unpacked archive.
        trial: a folder for the copy.
        adapters: the folder of each adapter that a request can name, in `store`.
        base: the base's folder; None if it comes from the hub.
    """
    shutil.copytree(store, trial / "model", copy_function=copy_file)
    first = _ask_served(trial, adapters)
    if isinstance(first, Finding):
        yield first
        return
    for name, answers in first.items():
        if answers.with_adapter != answers.without:
            continue
        where = adapters[name].relative_to(store).as_posix()
        if base is not None and not scores_differ(base, adapters[name]):
            yield Finding(
                where,
                "changes nothing: every next-token score is the same with it and "
                "without it",
                "Pack the adapter that was trained; look at its lora_alpha, too",
            )
        elif not answers.chosen:
            _scramble(trial / "model" / where / "adapter_model.safetensors")
            second = _ask_served(trial, adapters)
            if isinstance(second, Finding):
                yield second
            elif second[name].with_adapter == answers.with_adapter:
                yield Finding(
                    where,
                    "is not used: the answers stay the same whatever numbers stand in "
                    "it, so that the handler does not load it",
                    "Load it in the handler, or take the course's entry point",
                )


class Answers:
    """What a served artifact answered to the prompts.

    Attributes:
        with_adapter: its answers.
        without: its answers when it was asked to leave the adapter out.
        chosen: whether it is the image's own handler, which is known to load it.
    """

    def __init__(self, ask: Ask, name: str, of_image: bool):
        chosen = {"adapters": name} if of_image else {}
        self.chosen = of_image
        self.with_adapter = ask(chosen)
        self.without = ask({} if of_image else {"adapter": "base"})


def _ask_served(
    trial: Path, adapters: Mapping[str, Path]
) -> dict[str, Answers] | Finding:
    """Serve the copy and ask it about each adapter; return what is wrong instead."""
    server = Server(
        trial / "model", environment=_own_home(trial), allow_requirements=True
    )
    try:
        server.load(give_up_after=1)
        if not adapters:
            return {}
        port = server.listen()
        (runner,) = server.models.values()
        of_image = runner.model.entry_point == VLLM_HANDLER

        def ask(more: Mapping[str, object]) -> list[str]:
            return [_answer(port, prompt, more) for prompt in PROMPTS]

        return {name: Answers(ask, name, of_image) for name in adapters}
    except LoadError as broken:
        last = next((x.strip() for x in reversed(server.log_tail) if x.strip()), "")
        what = str(broken).rstrip(".")
        if last and last not in what:
            what += f" (the worker's last words: {last})"
        return Finding("loading", what, "Correct what the worker's log says")
    except NoAnswerError as problem:
        return Finding("answering", str(problem), "Correct what the reply says")
    finally:
        server.stop()


def _own_home(trial: Path) -> dict[str, str]:
    """Return variables that leave the user's key files and tokens out of reach.

    What was downloaded from the hub before is found all the same.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    home = trial / "home"
    home.mkdir(exist_ok=True)
    return {"HOME": str(home), "HF_HOME": str(home), "HF_HUB_CACHE": HF_HUB_CACHE}


def _answer(port: int, prompt: str, more: Mapping[str, object]) -> str:
    """Return the text of the reply to a greedy request.

    Raises:
        NoAnswerError: if the reply is none.
    """
    parameters: dict[str, object] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    body = json.dumps({"inputs": prompt, "parameters": parameters, **more})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT)
    try:
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/invocations", body.encode(), head)
        reply = connection.getresponse()
        text = reply.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as problem:
        raise NoAnswerError(f"{prompt!r} got no reply: {problem}") from None
    finally:
        connection.close()
    if reply.status >= 300:
        said = text[:QUOTED].strip()
        raise NoAnswerError(f"{prompt!r} got status {reply.status}: {said}")
    return text


def scores_differ(base: Path, adapter: Path) -> bool:
    """Return whether the adapter changes a next-token score of any of the prompts."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(base), dtype="float32", trust_remote_code=False
    )
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    rows = tuned.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        for prompt in PROMPTS:
            # Bytes as ids: any input will do, and no tokenizer has to be found.
            ids = torch.tensor([[byte % rows for byte in prompt.encode()]])
            scores = tuned(input_ids=ids).logits
            with tuned.disable_adapter():
                if not torch.equal(scores, tuned(input_ids=ids).logits):
                    return True
    return False


def _scramble(weights: Path) -> None:
    """Replace an adapter's numbers by large random ones of the same shapes."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    scrambled = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        * SCRAMBLED_SCALE
        for name, tensor in load_file(weights).items()
    }
    save_file(scrambled, weights)
