"""Whether an adapter fits its base, as peft itself would lay it out.

Which tensors an adapter must have follows from its own adapter_config.json and from the
base's config.json. peft builds that adapter here on PyTorch's "meta" device, which
keeps names and shapes and no numbers, so no rule of peft's is written down again: any
LoRA configuration is understood that the installed peft understands. Nothing of the
archive is executed, and the base's weights are not read beyond the headers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.deployment.findings import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # which peft's save_pretrained puts before each name
SAVE_AGAIN = "Save it again with peft's save_pretrained"
TRAINED_ON = "Pack the base on which the adapter was trained"

Shapes = Mapping[str, tuple[int, ...]]
# What other ways of saving make of a name, and how to undo it.
WRONG_NAMES: tuple[tuple[str, Callable[[str], str]], ...] = (
    (f"begin with {PREFIX!r} twice", lambda name: name.removeprefix(PREFIX)),
    (f"lack the prefix {PREFIX!r}", lambda name: PREFIX + name),
    ("lack the prefix 'base_model.'", lambda name: "base_model." + name),
    ("lack the prefix 'model.'", lambda name: "base_model.model.model." + name),
    ("hold the adapter's name 'default'", lambda name: name.replace(".default.", ".")),
    (
        "hold '_orig_mod.' of torch.compile",
        lambda name: name.replace("_orig_mod.", ""),
    ),
    ("begin with 'module.' of DataParallel", lambda name: name.removeprefix("module.")),
    (
        "begin with 'module.' inside the prefix",
        lambda name: name.replace("model.module.", "model.", 1),
    ),
)


class CannotBuildError(Exception):
    """Base or adapter cannot be built from their settings; the text says why."""


def build_base(base: Path) -> PreTrainedModel:
    """Let transformers build a base from its config.json, without any numbers.

    Raises:
        CannotBuildError: if transformers refuses the settings, or would have to run
            code that lies beside them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with _quietly(), torch.device("meta"):
            config = AutoConfig.from_pretrained(str(base), trust_remote_code=False)
            # How the base is stored or computed changes no name and no shape here.
            vars(config).pop("quantization_config", None)
            return AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", trust_remote_code=False
            )
    except Exception as problem:  # the library raises many kinds
        raise CannotBuildError(_first_line(problem)) from problem


def adapter_shapes(model: PreTrainedModel, adapter: Path) -> Shapes:
    """Let peft build an adapter on a base of `build_base`, which it changes.

    Returns:
        the shape of each tensor that adapter_model.safetensors must have.

    Raises:
        CannotBuildError: if peft refuses adapter_config.json on this base.
    """
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    try:
        with _quietly(), torch.device("meta"):
            settings = PeftConfig.from_pretrained(str(adapter))
            # Starting values such as PiSSA's need numbers; the shapes do not.
            settings.init_lora_weights = False
            wrapped = get_peft_model(model, settings)
            # Whether the hub's base has other embeddings is not to be asked there.
            saved = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except Exception as problem:  # the library raises many kinds
        raise CannotBuildError(_first_line(problem)) from problem
    return _shapes(saved)


def _embedding_shapes(model: PreTrainedModel) -> Shapes:
    """Return the shapes of the base's embeddings, which peft may save along."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    ids = {id(module) for module in both if module is not None}
    # Where the embedding itself has an adapter, peft calls it its base_layer.
    return {
        f"{PREFIX}{name}.{layer}weight": tuple(module.weight.shape)
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in ids
        for layer in ("", "base_layer.")
    }


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the libraries' advice, meant for training, out of a learner's report."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _first_line(problem: Exception) -> str:
    text = str(problem).strip() or type(problem).__name__
    return text.splitlines()[0].rstrip(".")


def fit_of(base: Path, adapter: Path | None, tokenizer: Path) -> Iterator[Finding]:
    """Find what does not fit together: base, adapter and tokenizer.

    Args:
        base: a folder with config.json and weights.
        adapter: the folder of a LoRA adapter; None for the base alone.
        tokenizer: the tokenizer.json that the endpoint would use.
    """
    headers: dict[Path, dict[str, tuple[int, ...]]] = {}
    weights = adapter / ADAPTER_WEIGHTS if adapter else None
    paths = sorted(base.glob("*.safetensors"))
    for path in [*paths, *([weights] if weights and weights.is_file() else [])]:
        try:
            headers[path] = safetensors_shapes(path)
        except (OSError, ValueError) as problem:
            what = f"cannot be read as safetensors ({problem})"
            yield Finding(path.name, what, "Save it again")
            return
    settings = adapter and _json_object(adapter / "adapter_config.json")
    is_lora = bool(settings) and settings.get("peft_type", "LORA") == "LORA"
    if not _json_object(base / "config.json"):
        return  # `check_base` and `check_json` say why
    try:
        model = build_base(base)
    except CannotBuildError as problem:
        yield Finding(
            f"{base.name}/config.json",
            f"transformers builds no model from it ({problem}), so that the adapter's "
            "fit was not checked",
            "Correct it, or try the artifact in the container",
            "warning",
        )
        return
    packed = {name: s for path in paths for name, s in headers[path].items()}
    expected = _shapes(model.state_dict())
    optional = _embedding_shapes(model)
    rows = model.get_input_embeddings().weight.shape[0]
    yield from _base_is_another(f"{base.name}/config.json", expected, packed)
    yield from _tokens_without_rows(tokenizer, rows)
    yield from _named_without_rows(base, rows)
    if not (is_lora and weights in headers):
        return
    where = f"{adapter.name}/{ADAPTER_WEIGHTS}"
    try:
        needed = adapter_shapes(model, adapter)
    except CannotBuildError as problem:
        yield Finding(
            f"{adapter.name}/adapter_config.json",
            f"does not fit the base: peft refuses it ({problem})",
            TRAINED_ON,
        )
        return
    misfits = list(_misfits(where, headers[weights], needed, optional))
    yield from misfits
    if not misfits:
        yield from _numbers(where, weights)


def _base_is_another(where: str, expected: Shapes, packed: Shapes) -> Iterator[Finding]:
    """Find weights of another size than the base's config.json says."""
    for name, shape in packed.items():
        if name in expected and expected[name] != shape:
            yield Finding(
                where,
                f"describes another model than the weights beside it: {name} has the "
                f"shape {list(shape)} and would need {list(expected[name])}",
                "Pack config.json and weights of one model",
            )
            return


def _misfits(
    where: str, found: Shapes, needed: Shapes, optional: Shapes
) -> Iterator[Finding]:
    """Compare the file's names and shapes with those that peft would load."""
    if not found:
        yield Finding(
            where,
            "holds no tensor, so that the base would answer untuned",
            f"{SAVE_AGAIN}, of the trained model",
        )
        return
    missing = [name for name in needed if name not in found]
    known = {**optional, **needed}
    unknown = [name for name in found if name not in known]
    for name, shape in found.items():
        if name in known and tuple(known[name]) != tuple(shape):
            yield Finding(
                where,
                f"does not fit the base: {name} has the shape {list(shape)}, and "
                f"adapter_config.json and base need {list(known[name])}",
                TRAINED_ON,
            )
            return
    for fault, mended in WRONG_NAMES:
        if missing and any(mended(name) in missing for name in unknown):
            names = [name for name in unknown if mended(name) in missing]
            yield Finding(
                where,
                f"{len(names)} of {len(found)} names {fault}, such as {names[0]}: peft "
                "would leave them out in silence",
                SAVE_AGAIN,
            )
            return
    if missing and len(missing) == len(needed):
        yield Finding(
            where,
            f"does not fit the base: none of its {len(found)} tensors is one that "
            f"adapter_config.json asks for; it has {unknown[0] if unknown else '…'}, "
            f"and {missing[0]} is not there",
            TRAINED_ON,
        )
    elif missing:
        yield Finding(
            where,
            f"lacks {len(missing)} of the {len(needed)} tensors that "
            f"adapter_config.json asks for, such as {missing[0]}: peft would leave "
            "these layers untuned in silence",
            SAVE_AGAIN,
        )
    elif unknown:
        yield Finding(
            where,
            f"{len(unknown)} of its {len(found)} tensors fit nothing, such as "
            f"{unknown[0]}: peft would leave them out in silence",
            "Pack the adapter_config.json that was saved with these weights",
        )


def _numbers(where: str, weights: Path) -> Iterator[Finding]:
    """Read the tensors one at a time: what is no number, what was never trained."""
    import torch
    from safetensors import safe_open

    zero: dict[str, list[bool]] = {}
    with safe_open(str(weights), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the reader is no dictionary
            tensor = file.get_tensor(name).float()
            if not torch.isfinite(tensor).all():
                kind = "NaN" if tensor.isnan().any() else "infinite values"
                yield Finding(
                    where,
                    f"{name} holds {kind}, with which every answer is empty or noise",
                    "Pack an earlier checkpoint, or train with a lower learning rate",
                )
                return
            layer, is_matrix, _ = name.partition(".lora_")
            if is_matrix:
                zero.setdefault(layer, []).append(not tensor.any())
    if zero and all(any(matrices) for matrices in zero.values()):
        yield Finding(
            where,
            "every lora_B, or its lora_A, holds zeros only, as before the first step "
            "of training: LoRA changes nothing",
            "Pack the adapter that was trained",
            "warning",
        )


def _tokens_without_rows(tokenizer: Path, rows: int) -> Iterator[Finding]:
    """Find tokens for which the base has no row in its embedding."""
    ids = _token_ids(tokenizer)
    highest = max(ids.values(), default=0)
    if highest >= rows:
        beyond = sorted((number, text) for text, number in ids.items())
        text = next(text for number, text in beyond if number >= rows)
        yield Finding(
            f"{tokenizer.parent.name}/{tokenizer.name}",
            f"has token ids up to {highest}, that of {text!r} among them, and the base "
            f"has rows for {rows} only: a question with such a token gets 424 "
            '"index out of range in self"',
            "Pack the base's own tokenizer, or the base with its embedding resized",
        )


def _named_without_rows(base: Path, rows: int) -> Iterator[Finding]:
    """Find special ids for which the base has no row: no answer would end by them."""
    for name in ("config.json", "generation_config.json"):
        settings = _json_object(base / name)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = settings.get(key)
            ids = value if isinstance(value, list) else [value]
            for number in ids:
                if isinstance(number, int) and number >= rows:
                    yield Finding(
                        f"{base.name}/{name}",
                        f"{key} names {number}, and the base has rows for {rows} only",
                        "Pack the settings that were saved with these weights",
                        "warning",
                    )


def _token_ids(path: Path) -> dict[str, int]:
    """Return each token's id as transformers would give it; none if unreadable."""
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception:  # the library raises no narrower class
        return {}
    added = _json_object(path.with_name("tokenizer_config.json"))
    for number, token in (added.get("added_tokens_decoder") or {}).items():
        if str(number).isdecimal() and isinstance(token, dict):
            ids.setdefault(str(token.get("content")), int(number))
    return ids


def _json_object(path: Path) -> dict:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor, read from the file's header alone.

    Raises:
        ValueError: if the file has no such header, or is shorter than it says.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError("no header")
        header = json.loads(file.read(length))
    try:
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (AttributeError, TypeError, KeyError, IndexError):
        raise ValueError("its header is no table of tensors") from None
    missing = 8 + length + max(ends, default=0) - path.stat().st_size
    if missing > 0:
        raise ValueError(f"{missing} bytes are missing at its end")
    return shapes
