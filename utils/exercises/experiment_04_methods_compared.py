"""Checks for the exercises of experiment 04, methods compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from utils.exercises.frame import NotTried, Wrong, exercise

GRIDS: tuple[tuple[dict[float, float], float | str], ...] = (
    ({1e-4: 1.9, 1e-3: 0.4, 1e-2: 0.9}, 1e-3),
    ({1e-4: 0.3, 1e-3: 0.4, 1e-2: 0.9}, "lower"),
    ({1e-4: 1.9, 1e-3: 0.4, 1e-2: 0.2}, "higher"),
    ({1e-2: 0.9, 1e-4: 1.9, 1e-3: 0.4}, 1e-3),
    ({1e-2: 0.9, 1e-3: 0.4, 1e-4: 0.3}, "lower"),
    ({1e-4: 1.9, 1e-3: 0.4, 1e-2: math.nan}, 1e-3),
)
"""Rate → loss of searches, some of which went too far, and what is to be said."""


@exercise("a class whose layer is scaled by trained numbers")
def check_scaled(scaled: type, model: Any, batch: Mapping[str, Any]) -> str:
    """Check a layer that multiplies what it gives out by trained numbers, as IA3 does.

    It is put around each feed-forward network of a model, and has to change nothing at
    first, to be trained alone, and to multiply.

    First used in experiment 04_methods_compared, section 2.

    Args:
        scaled: the learner's class; it gets a layer and the width of its output.
        model: a base model, which is changed.
        batch: of rows with labels, to run it on.
    """
    import torch

    if not isinstance(scaled, type):
        raise Wrong("expected a class: `class Scaled(torch.nn.Module): ...`.")
    width, blocks = model.config.hidden_size, _blocks(model)
    try:
        first = scaled(blocks[0].mlp, width)
    except Exception as error:
        raise Wrong(
            f"Scaled(layer, width) stops with {type(error).__name__}: {error}."
        ) from error
    if getattr(first, "scale", None) is ...:
        raise NotTried("replace ... with the numbers that are trained, and use them.")
    model.requires_grad_(False).eval()
    with torch.no_grad():
        before = model(**batch).loss
    for block in blocks:
        block.mlp = scaled(block.mlp, width)
    try:
        loss = model(**batch).loss
    except Exception as error:
        raise Wrong(f"the model stops with {type(error).__name__}: {error}.") from error
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise Wrong("nothing would be trained: a torch.nn.Parameter is, a tensor not.")
    count = sum(part.numel() for part in trained.values())
    if count == len(blocks):
        raise Wrong("one number scales the whole output: give each place its own.")
    if count != len(blocks) * width:
        raise Wrong(
            f"{count:,} numbers would be trained, and {len(blocks)} layers of width "
            f"{width} have {len(blocks) * width:,}."
        )
    if not torch.isclose(loss, before, rtol=1e-4):
        raise Wrong(
            f"at first nothing may change, and the loss goes from {before.item():.2f} "
            f"to {loss.item():.2f}: which number leaves a product as it is?"
        )
    if not loss.requires_grad:
        raise Wrong("the trained numbers are never used in forward.")
    x = torch.randn(2, 3, width)
    with torch.no_grad():
        for part in trained.values():
            part.zero_()
        if blocks[0].mlp(x).abs().max() > 0:
            raise Wrong("with all numbers at zero something is left: multiply by them.")
    return f"nothing changes at first, and {count:,} numbers are trained."


def _blocks(model: Any) -> list[Any]:
    return [part for part in model.modules() if hasattr(part, "mlp")]


@exercise("a function that looks where the lowest loss lies")
def check_choose(
    choose: Callable[[dict[float, float]], Any], found: Mapping[float, float]
) -> str:
    """Check a function that reads a search for a learning rate.

    First used in experiment 04_methods_compared, section 3.

    Args:
        choose: the learner's: rate → loss in; the best rate out, or "lower" or
            "higher" where the best one lies at the end of the grid.
        found: such a search of the notebook's.
    """
    if not callable(choose):
        raise Wrong("expected a function: `def choose(tried): ...`.")
    for tried, right in GRIDS:
        try:
            said = choose(dict(tried))
        except Exception as error:
            raise Wrong(
                f"choose({tried}) stops with {type(error).__name__}: {error}."
            ) from error
        if said == right:
            continue
        case = f"for {tried} it says {said!r}"
        if said is None:
            raise Wrong(f"{case}: return what you found.")
        if said in tried.values():
            raise Wrong(f"{case}, a loss: return the rate that has it.")
        if isinstance(said, float) and math.isnan(tried.get(said, 0)):
            raise Wrong(f"{case}, a run that diverged: leave those out.")
        if isinstance(right, str) and said in tried:
            raise Wrong(f"{case}, at the end of the grid: the best may lie beyond it.")
        if any(map(math.isnan, tried.values())):
            raise Wrong(
                f"{case}. A run that diverged was tried as well: beyond it there is "
                f"nothing to look for, so {right!r} is right."
            )
        if list(tried) != sorted(tried):
            raise Wrong(f"{case}: the rates need not come in order.")
        raise Wrong(f"{case}, and {right!r} is right: look for the lowest loss.")
    said = choose(dict(found))
    return f"right for all {len(GRIDS)} searches; for yours it says {said!r}."
