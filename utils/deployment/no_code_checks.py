"""Checks of artifacts without code, which the image's own handler serves with vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from utils.deployment.findings import (
    ADAPTER_SETTINGS,
    ADAPTERS_FOLDER,
    VLLM_HANDLER,
    Finding,
    ServedModel,
    adapters_of,
    check_adapter_files,
    error,
    read_object,
    warning,
)
from utils.deployment.image import (
    LORA_IGNORED,
    LORA_RANK_LIMIT,
    LORA_RANKS,
    LORA_REFUSED,
    VLLM_VERSION,
    WITHOUT_LORA,
    least_rank,
)

# Where the image's own handler looks for a model.
AT_THE_ROOT = "at the root, where the image's own handler looks"
WITH_CODE = "Serve it with the course's entry point (`build`), or merged into the base"


def check_no_code(model: ServedModel) -> Iterator[Finding]:
    """Find what the image's own handler would miss."""
    if model.entry_point != VLLM_HANDLER:
        return
    if not model.async_mode:
        yield error(
            "option.async_mode",
            f"{model.entry_point} is an asynchronous handler and is not told so",
            "Write option.async_mode=true",
        )
    if "model_id" in model.options:
        return
    remedy = "Put the merged model beside serving.properties"
    for name in ("config.json", "tokenizer.json"):
        if not (model.folder / name).is_file():
            yield error(name, f"is missing {AT_THE_ROOT}", remedy)
    if not any(model.folder.glob("*.safetensors")):
        yield error("*.safetensors", f"there are none {AT_THE_ROOT}", remedy)


def check_adapters(model: ServedModel) -> Iterator[Finding]:
    """Find adapters that the image's own handler would not load."""
    if model.entry_point != VLLM_HANDLER:
        return
    adapters = adapters_of(model)
    if adapters and model.options.get("enable_lora", "").lower() != "true":
        yield error(
            "option.enable_lora",
            f"{ADAPTERS_FOLDER}/ is there and would not be read",
            "Write option.enable_lora=true",
        )
    for adapter in adapters:
        yield from check_adapter_files(adapter, f"{ADAPTERS_FOLDER}/{adapter.name}")
    yield from _check_ranks(model, adapters)


def _check_ranks(model: ServedModel, adapters: list[Path]) -> Iterator[Finding]:
    """Find ranks above the limit, and a limit that vLLM does not take."""
    given = model.options.get("max_lora_rank", str(LORA_RANK_LIMIT))
    if not given.isdecimal():
        return  # vLLM's own reading of it is not known
    limit = int(given)
    ranks = {adapter.name: _rank(adapter) for adapter in adapters}
    highest = max(ranks, key=ranks.__getitem__, default="")
    rank = ranks.get(highest, 0)
    least = least_rank(max(rank, limit))
    allowed = ", ".join(map(str, LORA_RANKS))
    if least_rank(rank) is None:
        yield error(
            f"{ADAPTERS_FOLDER}/{highest}/{ADAPTER_SETTINGS}",
            f"r={rank} is above {max(LORA_RANKS)}, the highest that vLLM serves",
            WITH_CODE,
        )
    elif rank > limit:
        yield error(
            "option.max_lora_rank",
            f"the adapter {highest} has r={rank}, above the limit of {limit}",
            f"Write option.max_lora_rank={least}",
        )
    elif limit not in LORA_RANKS and model.options.get("enable_lora"):
        yield error(
            "option.max_lora_rank",
            f"vLLM takes no {limit}: one of {allowed} only",
            f"Write option.max_lora_rank={least or max(LORA_RANKS)}",
        )


def _rank(adapter: Path) -> int:
    """Return the highest rank of an adapter's matrices."""
    settings = read_object(adapter / ADAPTER_SETTINGS)
    pattern = settings.get("rank_pattern")
    others = pattern.values() if isinstance(pattern, dict) else ()
    ranks = [settings.get("r"), *others]
    return max((rank for rank in ranks if isinstance(rank, int)), default=0)


def check_lora(model: ServedModel) -> Iterator[Finding]:
    """Find bases and adapters that the image's vLLM does not serve with LoRA."""
    if model.entry_point != VLLM_HANDLER:
        return
    adapters = adapters_of(model)
    if model.options.get("enable_lora", "").lower() == "true":
        classes = read_object(model.folder / "config.json").get("architectures") or []
        refused = [name for name in classes if name in WITHOUT_LORA]
        if refused:
            yield error(
                "config.json",
                f"{refused[0]} is served by vLLM {VLLM_VERSION} without LoRA only: "
                f'"{refused[0]} does not support LoRA yet"',
                WITH_CODE,
            )
        yield from _check_room(model)
    for adapter in adapters:
        where = f"{ADAPTERS_FOLDER}/{adapter.name}/{ADAPTER_SETTINGS}"
        settings = read_object(adapter / ADAPTER_SETTINGS)
        for key, meaning in LORA_REFUSED.items():
            if settings.get(key) not in (None, False, [], "none"):
                yield error(where, f"has {meaning}, which vLLM refuses", WITH_CODE)
        for key, meaning in LORA_IGNORED.items():
            if settings.get(key):
                yield warning(
                    where,
                    f"has {meaning} ({key}), which vLLM {VLLM_VERSION} is not known "
                    "to read: the answers may be others than were tuned",
                    WITH_CODE,
                )
        if settings.get("peft_type", "LORA") != "LORA":
            kind = settings["peft_type"]
            yield error(where, f"peft_type {kind} is not LORA, the only one", WITH_CODE)


def _check_room(model: ServedModel) -> Iterator[Finding]:
    """Find less room for adapters in memory than on the GPU, which vLLM refuses."""
    most, held = (model.options.get(k, "") for k in ("max_loras", "max_cpu_loras"))
    if held.isdecimal() and int(held) < int(most if most.isdecimal() else 1):
        yield error(
            "option.max_cpu_loras",
            f"{held} is less than max_loras={most or 1}, which vLLM refuses",
            f"Write {most or 1} or more, or leave it out",
        )
