"""What the forward pass keeps in memory for the backward pass.

On a GPU `torch.cuda.max_memory_allocated` measures the whole; on a CPU nothing does, so
the parts are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def noted_activations(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Note what forward passes in the block keep for the backward pass.

    The loss must outlive the block: while it does, no storage is freed and its address
    used for another.

    Yields:
        Address → bytes of each storage, once, without weights and buffers.
    """
    own = {
        one.untyped_storage().data_ptr()
        for one in (*model.parameters(), *model.buffers())
    }
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
        yield kept


def activation_megabytes(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
) -> tuple[float, torch.Tensor]:
    """Count what a forward pass keeps for the backward pass, and run both.

    With gradient checkpointing that is the input of each block, and what is computed
    outside of the blocks. The backward pass then computes one block at a time again,
    and what it keeps of that one is not counted.

    First used in lesson 04, section 4.

    Args:
        model: in training mode; its gradients are cleared before and after.
        batch: tensors to call it with, among them `labels`.

    Returns:
        Megabytes (10⁶ bytes), and the gradient of all trained numbers as one vector.
    """
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    model.zero_grad()
    with noted_activations(model) as kept:
        loss = model(**batch, use_cache=False).loss
    counted = sum(kept.values()) / 1e6
    loss.backward()
    trained = [one.grad for one in model.parameters() if one.grad is not None]
    gradient = torch.cat([one.flatten() for one in trained])
    model.zero_grad()
    return counted, gradient


def training_parts(base: float, trained: float, activations: float) -> dict[str, float]:
    """Return what training holds in memory, by part, in megabytes.

    Gradients and Adam's two averages are in 32 bits, as PyTorch keeps them for weights
    in 32 bits.

    First used in lesson 04, section 4.

    Args:
        base: the weights, in megabytes.
        trained: how many numbers are trained, in millions.
        activations: as `activation_megabytes` counts them.
    """
    return {
        "base": base,
        "gradients": 4 * trained,
        "Adam": 8 * trained,
        "activations": activations,
    }
