"""Checks for the exercises of experiment 04, quantisation studied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from utils.exercises.frame import NotTried, Wrong, exercise, read_number, require_type

BITS = (4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256))


@exercise("two numbers of bits")
def check_bits(answer: Sequence[float]) -> str:
    """Check how many bits a weight of NF4 takes, without double quantisation and with.

    First used in experiment 04_quantisation, section 2.

    Args:
        answer: the learner's two numbers.
    """
    require_type((list, tuple), answer, "two numbers in a list")
    if len(answer) != 2:
        raise Wrong(f"expected two numbers, found {len(answer)}.")
    without, with_it = (read_number(one, "a number of bits") for one in answer)
    if without == 4:
        raise Wrong("4 bits are the weight alone: add its share of the scale.")
    if math.isclose(without, 4 + 32):
        raise Wrong("64 weights share one scale: each carries 1/64 of it.")
    if not math.isclose(without, BITS[0], abs_tol=0.001):
        raise Wrong(
            f"without double quantisation {without:g} bits are not right: 4, and 32 "
            "bits of scale for 64 weights."
        )
    if math.isclose(with_it, 4 + 8 / 64, abs_tol=1e-6):
        raise Wrong("256 scales share one more number of 32 bits: add its share.")
    if math.isclose(with_it, 4 + 8 / 64 + 32 / 256):
        raise Wrong("256 scales are 64 x 256 weights, which share the 32 bits.")
    if not math.isclose(with_it, BITS[1], abs_tol=0.001):
        raise Wrong(
            f"with double quantisation {with_it:g} bits are not right: a scale takes 8 "
            "bits, and 256 scales share 32 more."
        )
    saved = 1 - with_it / without
    return f"double quantisation saves {saved:.0%} of an NF4 matrix."


@exercise("a function that keeps large inputs apart")
def check_split(
    split: Callable[..., Any], plain: Callable[[Any, Any], Any], weight: Any
) -> str:
    """Check a product in 8 bits that computes places with large inputs exactly.

    First used in experiment 04_quantisation, section 3.

    Args:
        split: the learner's; it gets inputs, a matrix and perhaps a threshold.
        plain: the same without keeping anything apart.
        weight: the matrix, of shape (outputs, inputs).
    """
    import torch

    if not callable(split):
        raise Wrong("expected a function: `def split(x, weight, threshold=6.0): ...`.")
    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for places, rows in (((), 1), ((3,), 1), ((0, 70), 4)):
        x = torch.randn(rows, weight.shape[1], generator=draw).clamp(-4, 4)
        for place, large in zip(places, (60.0, -60.0), strict=False):
            x[0, place] = large
        exact = x @ weight.T
        try:
            found = split(x, weight)
        except Exception as error:
            raise Wrong(f"split stops with {type(error).__name__}: {error}.") from error
        if getattr(found, "shape", None) != exact.shape:
            raise Wrong(f"expected a product of shape {tuple(exact.shape)}.")
        apart = ((found - exact).norm() / exact.norm()).item()
        in_8_bits = ((plain(x, weight) - exact).norm() / exact.norm()).item()
        if not places:
            if apart < in_8_bits / 10:
                raise Wrong("nothing is rounded any more: places below 6 are to be.")
            continue
        if torch.equal(found, plain(x, weight)):
            raise NotTried("split still rounds everything: keep large places apart.")
        if apart < 1e-6:
            raise Wrong("nothing is rounded any more: places below 6 are to be.")
        if apart > in_8_bits / 4 and len(places) > 1:
            raise Wrong("negative inputs can be large as well: compare without sign.")
        if apart > in_8_bits / 4 or apart > 0.05:
            hint = "the two products have to be added" if apart > 0.2 else "look again"
            raise Wrong(
                f"with large places at {list(places)} the error is {apart:.1%}, and "
                f"{in_8_bits:.1%} with everything rounded: {hint}."
            )
        worst = max(worst, apart)
    return f"with large inputs the error stays at {worst:.1%} or less."
