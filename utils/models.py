"""The models that the course knows, what each needs, and how to load and ask them.

`MODELS` is the only place where settings depend on the model; the notebooks show it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from utils.course import (
    ROOT,
    ConfigError,
    CourseError,
    portable_name,
    run_config,
    wanted_dtype,
)
from utils.helpers import END_KEY, encode_prompts
from utils.machine import (
    LAB_SHAPES,
    Machine,
    Shape,
    cpu_has_bf16,
    openmp_setting,
    precision_race,
)
from utils.templates import SYSTEM_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GPT_NEOX_LINEAR_LAYERS = (
    "query_key_value",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
)

Quantisation = Literal["none", "8bit", "4bit"]

# A base is held in 16 bits on a card with so many times the memory that it takes then:
# the rest is for adapter, optimizer and what the backward pass needs (an estimate).
ROOM = 3


class ModelError(CourseError, ValueError):
    """A model that cannot be loaded or asked; the message says what to do."""


@dataclass(frozen=True, repr=False)
class ModelSettings:
    """Everything that depends on which model is fine-tuned.

    Attributes:
        name: what COURSE_MODEL said.
        source: a folder, or an id on the Hugging Face hub.
        machine: what it takes to train it, in a few words.
        revision: the hub's version; None for the newest, or for a folder.
        parameters: how many weights the base has; None if not known before loading.
        quantisation: how the frozen base is held on a GPU that is short of memory,
            "8bit" or "none".
        gpu_gigabytes: memory of the smallest card that will do; 0 where a CPU will.
        max_length: most tokens of a training row, prompt and answer together.
        max_new_tokens: most tokens of an answer.
        target_modules: the layers that get LoRA matrices; "all-linear" lets peft look.
        lora_r, lora_alpha, lora_dropout: rank, scale and dropout of those matrices.
        learning_rate, epochs, batch_size: of the training run.
        template: what the model is tuned and asked in: the course's "instruction"
            template, its own "chat" template, or "auto", which is chat where the
            tokenizer has one.
        system_prompt: what a chat begins with; "" for none.
    """

    name: str
    source: str
    machine: str
    revision: str | None = None
    parameters: int | None = None
    quantisation: Literal["8bit", "none"] = "none"
    gpu_gigabytes: float = 0
    max_length: int = 256
    max_new_tokens: int = 128
    target_modules: tuple[str, ...] | str = "all-linear"
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    learning_rate: float = 2e-4
    epochs: int = 10
    batch_size: int = 8
    template: Literal["instruction", "chat", "auto"] = "instruction"
    system_prompt: str = ""

    def _rows(self) -> list[tuple[str, str]]:
        return [(f.name, _shown(getattr(self, f.name))) for f in fields(self)]

    def __repr__(self) -> str:
        """Show all settings, without paths of this machine: outputs are committed."""
        inner = ", ".join(f"{name}={value}" for name, value in self._rows())
        return f"ModelSettings({inner})"

    def _repr_markdown_(self) -> str:
        rows = [f"| {name} | {value} |" for name, value in self._rows()]
        return "\n".join(["| setting | value |", "|:--|:--|", *rows])


MODELS = {
    "lab": ModelSettings(
        name="lab",
        source=str(ROOT / "data" / "lab_model"),
        machine="two CPU cores",
        parameters=2_369_664,
        max_new_tokens=64,
        target_modules=GPT_NEOX_LINEAR_LAYERS,
        lora_dropout=0.0,
        learning_rate=5e-3,
        epochs=6,
        batch_size=16,
    ),
    "small": ModelSettings(
        name="small",
        source="EleutherAI/pythia-410m",
        machine="a GPU with 8 GB, or patience",
        parameters=405_334_016,
        target_modules=GPT_NEOX_LINEAR_LAYERS,
        learning_rate=1e-3,
    ),
    "dolly": ModelSettings(
        name="dolly",
        source="databricks/dolly-v2-3b",
        machine="a GPU with 16 GB (ml.g4dn.xlarge, ml.g5.xlarge)",
        parameters=2_775_086_080,
        quantisation="8bit",
        gpu_gigabytes=14,
        target_modules=GPT_NEOX_LINEAR_LAYERS,
    ),
}


ORIGINAL_LAB = replace(
    MODELS["dolly"],
    name="original lab",
    machine="a GPU with 16 GB",
    target_modules=("query_key_value",),
    lora_r=256,
    lora_alpha=512,
    learning_rate=1e-4,
)
"""How the lab that this course descends from trained the same base."""

ORIGINAL_RUN = {
    "steps": 170,
    "seconds": 612.99,
    "samples a second": 2.17,
    "mean training loss": 0.8137,
}
"""What it reports of its run."""


def settings_for(name: str) -> ModelSettings:
    """Return a known model's settings, or general ones for any hub id or folder.

    First used in lesson 01, section 1.
    """
    if name in MODELS:
        return MODELS[name]
    return ModelSettings(
        name=Path(name).name if Path(name).is_absolute() else name,
        source=name,
        machine="not known: a GPU if it has more than a few million parameters",
        template="auto",
        system_prompt=SYSTEM_PROMPT,
    )


def this_machine(race: bool = True) -> Machine:
    """Ask PyTorch what this machine has: the facts that `nvidia-smi` prints.

    First used in lesson 04, section 1.

    Args:
        race: decide between float32 and bfloat16 where nothing else does, which takes
            half a second once per process. Without it, `bf16` is False there.

    Raises:
        ConfigError: if COURSE_DTYPE names a type that is no choice on this machine.
    """
    wanted, threads = wanted_dtype(), torch.get_num_threads()
    asked = f"{wanted}, as COURSE_DTYPE says"
    if not torch.cuda.is_available():
        if wanted == "float16":
            raise ConfigError(
                "COURSE_DTYPE is 'float16', which no CPU trains in: give 'float32' or "
                "'bfloat16', or unset it to let a race decide."
            )
        if wanted:
            bf16, precision = wanted == "bfloat16", asked
        elif race and cpu_has_bf16():
            result = precision_race(model_shapes())
            bf16, precision = result.winner == "bfloat16", str(result)
        else:
            bf16, precision = False, ""
            if cpu_has_bf16():
                precision = "bfloat16 in hardware"
        waiting = openmp_setting()
        return Machine(
            None, 0.0, 0.0, bf16, threads, precision=precision, waiting=waiting
        )
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    if wanted == "float32":
        raise ConfigError(
            f"COURSE_DTYPE is 'float32', but on a GPU ({name}) the course trains in 16 "
            "bits: give 'bfloat16' or 'float16', or unset it."
        )
    # Cards before compute capability 8 (such as the T4) only emulate bfloat16.
    capability = torch.cuda.get_device_capability()
    return Machine(
        name,
        total / 1e9,
        free / 1e9,
        bf16=wanted == "bfloat16" if wanted else capability >= (8, 0),
        threads=threads,
        capability="{}.{}".format(*capability),
        cuda=torch.version.cuda,
        precision=asked if wanted else "",
    )


def model_shapes(model: str | None = None) -> tuple[Shape, ...]:
    """Return the shapes of the linear layers in one block of a model.

    Args:
        model: as in COURSE_MODEL, which is the default. Where its config.json is
            neither in a folder nor in the cache, the lab model's shapes are given:
            this downloads nothing.
    """
    from huggingface_hub import try_to_load_from_cache

    settings = settings_for(model or run_config().model)
    file: object = Path(settings.source) / "config.json"
    if not Path(settings.source).is_dir():
        file = try_to_load_from_cache(
            settings.source, "config.json", revision=settings.revision
        )
    try:
        config = json.loads(Path(file).read_text("utf-8"))
        hidden = int(config.get("hidden_size") or config["n_embd"])
        wide = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
        wide = int(wide)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return LAB_SHAPES
    return ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden))


def choose_quantisation(
    settings: ModelSettings, machine: Machine
) -> tuple[Literal["8bit", "none"], str]:
    """Choose how to hold the frozen base on this machine, and say why.

    First used in lesson 04, section 1.
    """
    if not machine.gpu:
        return "none", (
            "no GPU: bitsandbytes has no fast 8-bit kernels for training on a CPU, so "
            "8 bits would save memory that is not short and cost time"
        )
    weights = 2 * (settings.parameters or 0) / 1e9  # GB in 16 bits
    if settings.quantisation == "none" or machine.gpu_gigabytes >= ROOM * weights:
        return "none", f"{settings.name} fits the card as it is, and plain is faster"
    return settings.quantisation, (
        f"{settings.name} leaves this card too little room for training in 16 bits; "
        "in 8 bits the frozen base takes half of that"
    )


def choose_dtype(machine: Machine) -> torch.dtype:
    """Return the type to load a base in: the shortest that is safe and fast here.

    On a CPU that is float32; training may still multiply in
    bfloat16 (`utils/training/recipe.py`).
    """
    if not machine.gpu:
        return torch.float32
    return torch.bfloat16 if machine.bf16 else torch.float16


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer; padding is its end-of-text token where it has none.

    First used in lesson 01, section 1.

    Raises:
        ModelError: if there is none at `settings.source`.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, settings)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    settings: ModelSettings,
    quantisation: Quantisation = "none",
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load the base model, on the GPU if there is one, ready to answer.

    First used in lesson 01, section 1.

    Args:
        settings: which model.
        quantisation: of the linear layers, through bitsandbytes: "8bit", or "4bit" in
            the type NF4 (QLoRA, arXiv 2305.14314).
        dtype: of what is not quantised; by default what `choose_dtype` says.
        **options: further arguments of `from_pretrained`.

    Raises:
        ModelError: if there is none at `settings.source`, or no memory for it.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _quieten_libraries()
    machine = this_machine(race=quantisation == "4bit")
    if quantisation == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        # Without a GPU bitsandbytes multiplies what it unpacks as bfloat16.
        dtype = dtype or (torch.bfloat16 if not machine.gpu else None)
    elif quantisation == "4bit":
        dtype = dtype or (torch.bfloat16 if machine.bf16 else choose_dtype(machine))
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
    options.setdefault("device_map", {"": machine.device})
    try:
        model = _from_pretrained(
            AutoModelForCausalLM,
            settings,
            dtype=dtype or choose_dtype(machine),
            **options,
        )
    except torch.cuda.OutOfMemoryError:
        raise ModelError(
            f"{settings.name} does not fit the {machine.gpu} with "
            f"{machine.gpu_free_gigabytes:.1f} GB free: restart other notebooks' "
            "kernels, choose a smaller COURSE_MODEL, or a larger instance."
        ) from None
    keep_4bit_trainable(model)
    return model.eval()


def keep_4bit_trainable(model: torch.nn.Module) -> None:
    """Switch off what bitsandbytes 0.50 does to 4-bit weights on some CPUs.

    Where the processor multiplies bfloat16 itself, a layer's first forward pass without
    gradients repacks its weights for a kernel that has no backward pass, for good. Any
    training after that fails (layers with biases) or follows wrong gradients (without),
    and merging an adapter makes the weights useless.

    Shown in lesson 04, section 1.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _from_pretrained(kind: Any, settings: ModelSettings, **options: Any) -> Any:
    from transformers.utils import logging as bars

    if settings.revision:
        options["revision"] = settings.revision
    # A folder on this disk loads in a moment; a download takes minutes.
    hide = Path(settings.source).is_dir() and bars.is_progress_bar_enabled()
    if hide:
        bars.disable_progress_bar()
    try:
        return kind.from_pretrained(settings.source, **options)
    except (OSError, ValueError) as error:
        source = settings.source
        if Path(source).is_absolute():
            source = portable_name(Path(source))
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{kind.__name__} finds nothing to load at {source!r} ({reason}). Check "
            "COURSE_MODEL and the network; a gated model needs HF_TOKEN as well."
        ) from error
    finally:
        if hide:
            bars.enable_progress_bar()


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the positions of rows, batch by batch, those of the shortest rows first.

    Rows of like length share a batch, so that little is padded.

    Args:
        lengths: of the rows.
        size: of a batch; the last one may be smaller.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


class Answers(list[str]):
    """Answers, and for each whether it came to an end.

    Attributes:
        finished: False where the budget cut an answer off.
    """

    def __init__(self, texts: Iterable[str] = (), finished: Iterable[bool] = ()):
        super().__init__(texts)
        self.finished = list(finished)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 96,
    batch_size: int = 32,
    seed: int | None = None,
    stop: Sequence[str] = (END_KEY,),
    **decoding: Any,
) -> Answers:
    """Continue each prompt until a stop text, the end of text, or the budget.

    Greedy, so the same prompt gets the same answer, unless `decoding` says otherwise.

    First used in lesson 01, section 1.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        prompts: whole prompts, such as `template.prompt(question)`.
        max_new_tokens: most tokens of an answer.
        batch_size: prompts that are continued together.
        seed: makes sampling repeatable; the global random state is left alone.
        stop: where an answer ends, beside the end of text: `template.stop`.
        **decoding: arguments of transformers' `generate`, such as `do_sample=True`,
            `temperature=0.7`.

    Returns:
        The new text of each, in the order of the prompts, without what ended it. The
        list's `finished` says of each whether it ended, or the budget cut it off.

    Raises:
        ModelError: if a prompt and its answer do not fit the model's context.
    """
    if isinstance(prompts, str):
        raise TypeError("`prompts` is one string: put it into a list.")
    prompts = list(prompts)
    encoded = encode_prompts(prompts, tokenizer) if prompts else []
    _require_room(model, encoded, prompts, max_new_tokens)
    answers = Answers([""] * len(encoded), [False] * len(encoded))
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for chosen in batches_by_length(list(map(len, encoded)), batch_size):
            some = [encoded[i] for i in chosen]
            results = _continue(model, tokenizer, some, max_new_tokens, stop, decoding)
            for i, (text, finished) in zip(chosen, results, strict=True):
                answers[i], answers.finished[i] = text, finished
    model.train(was_training)
    return answers


def _require_room(
    model: Any, encoded: list[list[int]], prompts: Sequence[str], max_new_tokens: int
) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    for ids, prompt in zip(encoded, prompts, strict=True):
        if not ids:
            raise ModelError("A prompt is empty: give it some text to continue.")
        if context and len(ids) + max_new_tokens > context:
            raise ModelError(
                f"A prompt of {len(ids)} tokens and {max_new_tokens} new ones exceed "
                f"the model's context of {context}: shorten the prompt, which begins "
                f"{prompt[:60]!r}, or lower max_new_tokens."
            )


def _continue(
    model: Any,
    tokenizer: Any,
    encoded: list[list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    decoding: dict[str, Any],
) -> list[tuple[str, bool]]:
    """Continue prompts together; return each text, and whether it came to an end."""
    from transformers import GenerationConfig

    length = max(map(len, encoded))
    pad_id = tokenizer.pad_token_id
    pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
    ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in encoded])
    ends, stop_texts = {tokenizer.eos_token_id} - {None}, []
    for text in stop:
        end = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(end) == 1:
            ends |= {*end}
        else:
            stop_texts.append(text)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id,
        eos_token_id=sorted(ends) or None,
        stop_strings=stop_texts or None,
        **({"do_sample": False} | decoding),
    )
    with torch.inference_mode(), _without_generation_defaults(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            tokenizer=tokenizer if stop_texts else None,
        )
    return [_cut(row, tokenizer, ends, stop) for row in output[:, length:].tolist()]


@contextmanager
def _without_generation_defaults(model: Any) -> Iterator[None]:
    """Keep a checkpoint's own sampling and penalties out of the answers."""
    from transformers import GenerationConfig

    holders = [model, model.get_base_model()] if _is_peft(model) else [model]
    defaults = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = GenerationConfig()
        yield
    finally:
        for holder, default in zip(holders, defaults, strict=True):
            holder.generation_config = default


def _is_peft(model: Any) -> bool:
    return hasattr(model, "get_base_model")


def _cut(
    ids: list[int], tokenizer: Any, ends: set[int], stop: Sequence[str]
) -> tuple[str, bool]:
    """Return the text of new tokens up to where it ends, and whether it does."""
    last = next((place for place, one in enumerate(ids) if one in ends), None)
    text = tokenizer.decode(ids[:last], skip_special_tokens=False)
    finished = last is not None or any(one in text for one in stop)
    for one in (*stop, tokenizer.eos_token, tokenizer.pad_token):
        if one:
            text = text.partition(one)[0]
    return text.strip(), finished


def _quieten_libraries() -> None:
    """Silence messages that say nothing to a learner, and nothing else."""
    # A faster 4-bit kernel that no course model needs; a cast that 8 bits imply.
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    # Checkpoints that are written within a second are told apart by their numbers.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    # peft 0.21 asks for an attribute that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
    # TRL 1.16 does not know the new name yet.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
    # With tokens in front, peft counts positions itself.
    warnings.filterwarnings("ignore", message="Position ids are not supported")


def _shown(value: Any) -> str:
    if isinstance(value, str) and Path(value).is_absolute():
        return portable_name(Path(value))
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
