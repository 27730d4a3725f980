"""Checks of base, adapter and tokenizer, as the course's entry point finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.deployment.adapter_checks import fit_of
from utils.deployment.findings import (
    ADAPTER_SETTINGS,
    CHAT_TEMPLATE,
    SAVED_JSON,
    TEMPLATE_FILE,
    TOKENIZER_SETTINGS,
    VLLM_HANDLER,
    WEIGHTS_INDEX,
    Finding,
    ServedModel,
    adapter_of,
    adapters_of,
    check_adapter_files,
    error,
    layout,
    packed_base,
    read_object,
    relative,
    saved_folders,
    warning,
)
from utils.deployment.image import VLLM_QUANTISED


def check_base(model: ServedModel) -> Iterator[Finding]:
    """Find a base that is not named, or not there, or not complete."""
    name = model.options.get("base_model")
    if model.options.get("adapter_checkpoint") and not name:
        yield warning(
            "option.base_model",
            "is missing beside option.adapter_checkpoint: the course's entry point "
            "would not load, and another one was not checked",
            "Name the folder of the base, or its id on the hub",
        )
    base = packed_base(model)
    if name:
        yield from _inside("option.base_model", name)
    if name and not base and name.count("/") != 1:
        yield error(
            "option.base_model",
            f"{name} is no folder of the archive and no id of the hub",
            "Pack the base, or name it as owner/name",
        )
    if base and not any(base.glob("*.safetensors")):
        yield error(name, "has no *.safetensors", "Pack the base's weights")
    if base and not (base / "config.json").is_file():
        yield error(name, "has no config.json", "Pack the base's configuration")


def _inside(key: str, name: str) -> Iterator[Finding]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        yield error(
            key,
            f"{name} leads out of the archive, to a folder of this machine",
            "Pack the folder, and name it as it is called in the archive",
        )


def check_adapter(model: ServedModel) -> Iterator[Finding]:
    """Find an adapter that is not complete, or that vLLM could not serve."""
    adapter, name = adapter_of(model), model.options.get("adapter_checkpoint")
    yield from _unnamed_adapters(model, adapter)
    if not adapter:
        return
    yield from _inside("option.adapter_checkpoint", name)
    yield from check_adapter_files(adapter, name)
    kind = read_object(adapter / ADAPTER_SETTINGS).get("peft_type", "LORA")
    if kind != "LORA":
        yield warning(
            f"{name}/{ADAPTER_SETTINGS}",
            f"peft_type {kind} is not LORA: vLLM cannot serve it, and whether it fits "
            "the base was not checked",
            "Compare its answers before you deploy",
        )


def _unnamed_adapters(model: ServedModel, named: Path | None) -> Iterator[Finding]:
    """Find adapters that the course's entry point would not read."""
    if not model.options.get("base_model"):
        return  # another entry point may look for its adapter itself
    for settings in sorted(model.folder.rglob(ADAPTER_SETTINGS)):
        folder = settings.parent
        if named is None or folder.resolve() != named.resolve():
            name = relative(folder, model)
            yield error(
                name,
                "holds an adapter that option.adapter_checkpoint does not name: the "
                "answers would be given without it",
                f"Write option.adapter_checkpoint={name}, or leave the folder out",
            )


def check_tokenizer(model: ServedModel) -> Iterator[Finding]:
    """Find that neither base nor adapter brings a tokenizer."""
    base, adapter = packed_base(model), adapter_of(model)
    places = [folder for folder in (base, adapter) if folder]
    if base and not any((place / "tokenizer.json").is_file() for place in places):
        yield error(
            "tokenizer.json",
            "is neither with the base nor with the adapter",
            "Save the tokenizer beside the adapter",
        )


def check_template(model: ServedModel) -> Iterator[Finding]:
    """Find that questions would be asked in another template than was trained."""
    from utils.templates import wrong_description

    folders = [folder for folder in (adapter_of(model), packed_base(model)) if folder]
    own_code = bool(folders)
    folders = folders or [model.folder]
    chats = [f / CHAT_TEMPLATE for f in folders if (f / CHAT_TEMPLATE).is_file()]
    places = [folder / TEMPLATE_FILE for folder in (*folders, model.folder)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if chats and own_code:
            yield error(
                relative(places[0], model),
                "is missing, and the tokenizer has a chat template: the entry point "
                "would ask in the instruction template",
                "Save the adapter with save_adapter, or pass `template` to build",
            )
        return
    saved, where = read_object(path), relative(path, model)
    problem = wrong_description(saved)
    if problem and saved:  # `check_json` speaks of what is no object
        yield error(where, problem, "Save the adapter again with save_adapter")
    if problem:
        return
    if not chats:
        if saved["name"] == "chat":
            yield warning(
                relative(path.parent / CHAT_TEMPLATE, model),
                "is missing, so that a plain server has no template for its chat route",
                "Save the adapter again with save_adapter",
            )
    elif saved["name"] == "instruction":
        yield warning(
            relative(chats[0], model),
            "is there, and the model was tuned in the instruction template: a plain "
            "server's chat route would ask in the other",
            "Tune it in its chat template",
        )
    elif chats[0].read_text("utf-8") != saved["chat_template"]:
        yield warning(
            relative(chats[0], model),
            f"is another chat template than {TEMPLATE_FILE} holds: a plain server "
            "would ask otherwise than was trained",
            "Save the adapter again with save_adapter",
        )


def check_json(model: ServedModel) -> Iterator[Finding]:
    """Find settings that are no JSON object."""
    saved = [folder / name for folder in saved_folders(model) for name in SAVED_JSON]
    saved += [adapter / ADAPTER_SETTINGS for adapter in adapters_of(model)]
    for path in saved:
        # What describes the model at the root is the server's to refuse.
        if not path.is_file() or path == layout.description_file(model.folder):
            continue
        try:
            value = json.loads(path.read_text("utf-8"))
        except ValueError as problem:
            found = f"is no JSON ({problem})"
        else:
            if isinstance(value, dict):
                continue
            found = f"holds a {type(value).__name__} where an object was expected"
        yield error(relative(path, model), found, "Save it again")


def check_saved(model: ServedModel) -> Iterator[Finding]:
    """Find what older versions of transformers would misread, and missing weights."""
    for folder in saved_folders(model):
        config = read_object(folder / "config.json")
        rope = config.get("rope_parameters")
        is_neox = config.get("model_type") == "gpt_neox"
        if is_neox and rope and "rotary_pct" not in config:
            yield warning(
                relative(folder / "config.json", model),
                "has no rotary_pct, without which transformers 4 computes other logits "
                "and says nothing",
                "Write rotary_pct beside rope_parameters (`build` does)",
            )
        tokenizer = read_object(folder / TOKENIZER_SETTINGS)
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            yield warning(
                relative(folder / TOKENIZER_SETTINGS, model),
                "names TokenizersBackend, a class that transformers 4 does not have",
                "Write PreTrainedTokenizerFast (`build` does)",
            )
        weights = read_object(folder / WEIGHTS_INDEX).get("weight_map", {})
        for name in sorted(set(weights.values())):
            if not (folder / name).is_file():
                yield error(
                    relative(folder / name, model),
                    f"is named by {WEIGHTS_INDEX} and is not there",
                    "Pack every part of the weights",
                )


def check_fit(model: ServedModel) -> Iterator[Finding]:
    """Find base, adapters and tokenizer that do not fit together."""
    if model.entry_point == VLLM_HANDLER:
        base = model.folder
        pairs = [(adapter, base) for adapter in adapters_of(model)]
        described = (base / "config.json").is_file()
        pairs = pairs or ([(None, base)] if described else [])
    else:
        base, adapter = packed_base(model), adapter_of(model)
        # The entry point takes the adapter's tokenizer where there is one.
        own = adapter and (adapter / "tokenizer.json").is_file()
        pairs = [(adapter, adapter if own else base)] if base else []
    for adapter, tokenizer in pairs:
        yield from fit_of(base, adapter, tokenizer / "tokenizer.json")


def check_quantised(model: ServedModel) -> Iterator[Finding]:
    """Find a base that is stored in a way which needs a package to be read."""
    of_image = model.entry_point == VLLM_HANDLER
    base = model.folder if of_image else packed_base(model)
    settings = read_object(base / "config.json") if base else {}
    stored = settings.get("quantization_config")
    if not isinstance(stored, dict):
        return
    kind = str(stored.get("quant_method", "an unnamed method"))
    if of_image and kind in VLLM_QUANTISED:
        return
    yield warning(
        relative(base / "config.json", model),
        f"the base is quantised by {kind}: the image is not known to have the package "
        "that reads it",
        "Pack the base in 16 bits, or try it in the container",
    )
