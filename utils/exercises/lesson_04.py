"""Checks for the exercises of lesson 04, training with LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.exercises.frame import Wrong, exercise, read_number

if TYPE_CHECKING:
    import torch


@exercise("the number of parameters that LoRA would train")
def check_lora_parameters(count: int, model: Any, rank: int, target: str) -> str:
    """Check the trainable parameters of LoRA at a rank, on the layers of one name only.

    First used in lesson 04, section 3.

    Args:
        count: the learner's answer.
        model: the base or a peft model of it; peft counts on an empty copy.
        rank: of the matrices.
        target: the layers' name, as peft takes it in `target_modules`.
    """
    count = read_number(count, "a whole number")
    shapes = _linear_shapes(model, target)
    right = _count_by_peft(model, rank, target)
    if count == right:
        return "peft counts the same."
    if count == sum(inputs * outputs for inputs, outputs in shapes):
        raise Wrong("that is what the layers hold themselves: LoRA leaves those alone.")
    if count in (
        sum(rank * inputs for inputs, _ in shapes),
        sum(rank * outputs for _, outputs in shapes),
    ):
        raise Wrong("that is one of the two matrices: A and B both are trained.")
    if count == sum(rank * inputs * outputs for inputs, outputs in shapes):
        raise Wrong(
            "the two matrices are narrow: A is rank x inputs and B is outputs x rank, "
            "so add them, do not multiply inputs by outputs."
        )
    everywhere = _linear_shapes(model)
    if count == sum(rank * (inputs + outputs) for inputs, outputs in everywhere):
        raise Wrong(f"that is for every linear layer: here only {target} gets LoRA.")
    if count == len(shapes) * rank * rank or count == rank * rank:
        raise Wrong("the rank is one side only of each matrix, the layer's the other.")
    if count * len(shapes) == right:
        raise Wrong(f"that is one block; the model has {len(shapes)} of them.")
    if count and count * rank % right == 0:
        other = count * rank // right
        raise Wrong(f"that is for the rank {other}: here it is {rank}.")
    raise Wrong(
        f"for each layer named {target} count rank x (inputs + outputs), then add up."
    )


def _count_by_peft(model: Any, rank: int, target: str) -> int:
    """Count what peft would train on a copy of the model that takes no memory."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
        lora = LoraConfig(r=rank, target_modules=[target], task_type="CAUSAL_LM")
        return get_peft_model(empty, lora).get_nb_trainable_parameters()[0]


def _linear_shapes(model: Any, target: str | None = None) -> list[tuple[int, int]]:
    """Return the sizes of the linear layers of one name, or of all but the output."""
    from torch import nn

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    output = base.get_output_embeddings()
    return [
        (layer.in_features, layer.out_features)
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
        and layer is not output
        and ".lora_" not in name
        and target in (None, name.removesuffix(".base_layer").rpartition(".")[2])
    ]


@exercise("a function accumulate(model, parts)")
def check_accumulation(
    accumulate: Callable[[Any, Sequence[Mapping[str, torch.Tensor]]], Any],
    model: Any,
    parts: Sequence[Mapping[str, torch.Tensor]],
) -> str:
    """Run the learner's function, and compare its gradient with the whole batch's.

    First used in lesson 04, section 4.

    Args:
        accumulate: the learner's function: takes the model and the parts of a batch.
        model: some of whose parameters are trained; its gradients are cleared.
        parts: batches with `labels`, with different numbers of labelled tokens.
    """
    import torch

    if not callable(accumulate):
        raise Wrong("expected a function: def accumulate(model, parts): …")
    trained = [one for one in model.parameters() if one.requires_grad]

    def gradient() -> torch.Tensor | None:
        some = [one.grad for one in trained]
        if all(one is None for one in some):
            return None
        pairs = zip(some, trained, strict=True)
        flat = [(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs]
        return torch.cat(flat).clone()

    alone = []
    for part in parts:
        model.zero_grad()
        model(**part).loss.backward()
        alone.append(gradient())
    model.zero_grad()
    before = [one.detach().clone() for one in trained]
    try:
        accumulate(model, parts)
        found = gradient()
    except Exception as error:
        raise Wrong(f"it stopped with {type(error).__name__}: {error}") from None
    finally:
        changed = not all(map(torch.equal, before, trained))
        for weight, value in zip(trained, before, strict=True):
            weight.data.copy_(value)
        model.zero_grad()
    if changed:
        raise Wrong(
            "it changed the weights: the optimizer steps once, after all parts."
        )
    if found is None:
        raise Wrong(
            "no gradient is there after it: call backward() on a loss of a part."
        )
    return _judge_gradient(found, alone, parts)


def _judge_gradient(
    found: torch.Tensor,
    alone: Sequence[torch.Tensor],
    parts: Sequence[Mapping[str, torch.Tensor]],
) -> str:
    """Tell the right gradient from those of known mistakes."""
    labels = [part["labels"] for part in parts]
    learned = [int((one[:, 1:] != -100).sum()) for one in labels]

    def weighed(weights: Sequence[float], whole: float | None = None) -> torch.Tensor:
        total = whole or sum(weights)
        return sum(w / total * g for w, g in zip(weights, alone, strict=True))

    def is_like(other: torch.Tensor) -> bool:
        return bool((found - other).norm() < 1e-3 * other.norm())

    right = weighed(learned)
    if is_like(right):
        return "the gradient is that of the whole batch, in the memory of its parts."
    ones = [1.0] * len(parts)
    if is_like(weighed(ones, 1)):
        raise Wrong(
            f"that adds up {len(parts)} means, so it is too long: each part counts "
            "by its share of the batch only."
        )
    if is_like(weighed(ones)):
        raise Wrong(
            "every part counts the same in it, though they have "
            f"{' and '.join(map(str, learned))} labelled tokens."
        )
    if is_like(weighed([len(one) for one in labels])):
        raise Wrong("that weighs parts by rows: a loss is a mean over labelled tokens.")
    if is_like(weighed([one.numel() for one in labels])):
        raise Wrong("that weighs by all tokens: count those whose label is not -100.")

    def points_along(other: torch.Tensor) -> bool:
        return bool(found @ other > 0.9999 * found.norm() * other.norm())

    if points_along(alone[-1]):
        raise Wrong("only the last part is left in it: do not clear gradients between.")
    if points_along(right):
        length = (found.norm() / right.norm()).item()
        raise Wrong(f"it is {length:.3g} times as long as it should be.")
    raise Wrong(
        "it is another gradient than the batch's: call backward() once for each part, "
        "on its loss times its share of the labelled tokens."
    )


HELD_OUT = {"eval_loss": "other facts", "eval_reworded_loss": "other words"}
"""Names of losses in a log, and what was asked."""


@exercise("a function best_epoch(history, name)")
def check_best_epoch(
    best_epoch: Callable[[Sequence[Mapping[str, float]], str], float],
    history: Sequence[Mapping[str, float]],
) -> str:
    """Check that a function finds the epoch after which a held-out loss was lowest.

    First used in lesson 04, section 5.

    Args:
        best_epoch: the learner's function: takes a log, and the name of a loss.
        history: a Trainer's log with `loss` and `eval_loss`, perhaps with
            `eval_reworded_loss`.
    """
    if not callable(best_epoch):
        raise Wrong("expected a function: def best_epoch(history, name): …")
    training = {row["epoch"]: row["loss"] for row in history if "loss" in row}
    found = {}
    for name, asked in HELD_OUT.items():
        held_out = {row["epoch"]: row[name] for row in history if name in row}
        if not held_out:
            continue
        try:
            epoch = best_epoch([dict(row) for row in history], name)
        except KeyError as error:
            raise Wrong(
                f"it stopped with KeyError: {error}. Most rows have one of the losses "
                "only: take those that have it."
            ) from None
        except Exception as error:
            raise Wrong(f"it stopped with {type(error).__name__}: {error}") from None
        if epoch is None:
            raise Wrong("it returns nothing: end it with return.")
        _judge_epoch(read_number(epoch, "an epoch's number"), name, held_out, training)
        found[asked] = min(held_out, key=held_out.__getitem__)
    listed = " and ".join(f"for {asked} epoch {n:g}" for asked, n in found.items())
    return f"it keeps {listed}."


def _judge_epoch(
    epoch: float,
    name: str,
    held_out: Mapping[float, float],
    training: Mapping[float, float],
) -> None:
    """Raise Wrong, with the likely reason, if another epoch has the lowest loss."""
    if epoch == min(held_out, key=held_out.__getitem__):
        return
    if epoch in held_out.values() and epoch not in held_out:
        raise Wrong("it returns the loss: which epoch does that belong to?")
    if training and epoch == min(training, key=training.__getitem__):
        raise Wrong(
            f"for {name!r} it gives the epoch of the lowest training loss, which goes "
            "on falling: look at the rows that have the loss of the given name."
        )
    if epoch not in held_out:
        first, last = min(held_out), max(held_out)
        raise Wrong(
            f"no {name!r} has the epoch {epoch:g}: they go from {first:g} to {last:g}."
        )
    raise Wrong(
        f"another epoch has a lower {name!r}: compare all rows that have it, and "
        "return the row's 'epoch', not its place in a list."
    )
