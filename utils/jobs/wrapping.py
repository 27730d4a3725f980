"""One model, wrapped so that several workers train it together, and its shares.

**For the lesson only**: FSDP on a processor. transformers' Trainer gives
`fsdp=True` no effect there: accelerate turns FSDP on for several GPUs, and for several
CPUs it takes DDP, without a word (`AcceleratorState` in accelerate/state.py). So
`wrap` calls PyTorch's `fully_shard` itself. On GPUs let the Trainer do it: data/jobs/
has the configurations. Either way look at the type that trains.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from utils.jobs.workers import Order, WorkerError


def build_model(order: Order) -> Any:
    """Load or make the base, and put LoRA on top: the same numbers for each worker."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from utils.models import ModelSettings, load_model, settings_for
    from utils.training.recipe import add_lora

    torch.manual_seed(order.seed)
    if isinstance(order.model, str):
        settings = settings_for(order.model)
        base = load_model(settings, dtype=torch.float32)
    else:
        settings = ModelSettings("of random weights", source="", machine="")
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**order.model))
    # Dropout would draw other numbers for each worker, and no two ways would agree.
    settings = dataclasses.replace(settings, lora_dropout=0.0)
    return add_lora(base, settings).train()


def wrap(model: Any, how: str) -> Any:
    """Make a model that several workers train together.

    FSDP takes one block of the model after the other: what is gathered at a time is
    one block, and what is outside of the blocks (embeddings, head) is the last.

    Shown in experiment 08_several_workers, section 1.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    if how == "one":
        return model
    if how == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (get_world_size(),))
    kinds = set(model.get_base_model()._no_split_modules)
    for part in list(model.modules()):
        if type(part).__name__ in kinds:
            fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def require_wrapped(model: Any, how: str) -> None:
    """Refuse to train with another type than was asked for.

    Raises:
        WorkerError: naming the type, or the weight that is not shared out.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    is_ddp, is_fsdp = (
        isinstance(model, kind) for kind in (DistributedDataParallel, FSDPModule)
    )
    if (is_ddp, is_fsdp) != (how == "ddp", how == "fsdp"):
        raise WorkerError(
            f"how={how!r} was asked for, and the model is a {type(model).__name__}: it "
            "would train in another way than it says. Wrap it with `wrap`."
        )
    whole = [
        name
        for name, one in model.named_parameters()
        if is_fsdp
        and not (isinstance(one, DTensor) and any(p.is_shard() for p in one.placements))
    ]
    if whole:
        raise WorkerError(
            f"{len(whole)} weights are not sharded, {whole[0]} among them: each worker "
            "would hold all of them. Wrap their module with `fully_shard`."
        )


def count_parameters(model: Any) -> dict[str, int]:
    """Count numbers: of the whole model, and what this worker holds of them."""
    from torch.distributed.tensor import DTensor

    counts = dict.fromkeys(
        ("parameters", "trained", "parameters_held", "trained_held"), 0
    )
    for one in model.parameters():
        held = one.to_local().numel() if isinstance(one, DTensor) else one.numel()
        counts["parameters"] += one.numel()
        counts["parameters_held"] += held
        if one.requires_grad:
            counts["trained"] += one.numel()
            counts["trained_held"] += held
    return counts
