"""Checks for the exercises of experiment 08, several workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from utils.exercises.frame import Wrong, exercise, read_number, require_type

ROWS, BATCHES = "per_device_train_batch_size", "gradient_accumulation_steps"
PAIRS: tuple[tuple[float, float, float, float, float], ...] = (
    (-4.0, -9.0, -5.0, -7.0, 0.1),
    (-6.5, -3.0, -5.0, -3.5, 0.5),
    (-2.0, -2.5, -2.0, -2.5, 0.3),
    (-12.0, -8.0, -9.0, -11.0, 1.0),
)
"""Log probabilities by the model (chosen, rejected) and the reference, and beta."""


@exercise("the rows that a worker computes at once, and the batches to a step")
def check_batch(
    plan: Mapping[str, int], rows_a_step: int, workers: int, fits: int
) -> str:
    """Check how the rows of a step are shared among workers and passes.

    First used in experiment 08_several_workers, section 1.

    Args:
        plan: the learner's, as arguments of the Trainer.
        rows_a_step: of all workers together.
        workers: how many there are.
        fits: rows for which a worker has memory.
    """
    require_type(Mapping, plan, "a dictionary with both arguments")
    if missing := {ROWS, BATCHES} - plan.keys():
        raise Wrong(f"{sorted(missing)[0]} is missing.")
    for name in (ROWS, BATCHES):
        require_type(int, plan[name], f"a whole number as {name}")
        if plan[name] < 1:
            raise Wrong(f"{name} is {plan[name]}: give 1 or more.")
    rows, batches = plan[ROWS], plan[BATCHES]
    if rows * batches == rows_a_step and workers > 1:
        raise Wrong(
            f"that is {rows_a_step} rows on each worker: {workers * rows_a_step} a "
            "step. All workers compute at the same time."
        )
    if rows > fits:
        raise Wrong(f"{rows} rows at once do not fit: there is memory for {fits}.")
    if (made := rows * batches * workers) != rows_a_step:
        raise Wrong(
            f"{rows} rows × {batches} batches × {workers} workers are {made} rows a "
            f"step, and {rows_a_step} are wanted."
        )
    each = rows_a_step // workers
    best = max(n for n in range(1, min(fits, each) + 1) if each % n == 0)
    if rows < best:
        raise Wrong(
            f"the same step, but in {batches} passes; with more rows at once it takes "
            "fewer."
        )
    return f"{rows} × {batches} × {workers} = {rows_a_step} rows: the same step."


@exercise("a function that returns the loss of one pair")
def check_dpo_loss(
    dpo_loss: Callable[[float, float, float, float, float], float],
) -> str:
    """Check the DPO loss of one pair, on several of them.

    First used in experiment 08_several_workers, section 6.

    Args:
        dpo_loss: the learner's; it gets the log probabilities of the chosen and the
            rejected answer by the model, then by the reference, and beta.
    """
    if not callable(dpo_loss):
        raise Wrong("expected a function: `def dpo_loss(chosen, rejected, ...): ...`.")
    said = []
    for pair in PAIRS:
        try:
            value = dpo_loss(*pair)
        except Exception as error:
            raise Wrong(f"dpo_loss stops with {type(error).__name__}: {error}.") from (
                error
            )
        if value is None:
            raise Wrong("dpo_loss returns nothing: end it with `return`.")
        said.append(read_number(value, "a number as the loss"))
    right = [_loss(*pair) for pair in PAIRS]
    if _close(said, right):
        return "log 2 where model and reference agree, and less as the margin grows."
    for hint, other in MISTAKES:
        if _close(said, [other(*pair) for pair in PAIRS]):
            raise Wrong(hint)
    raise Wrong(
        f"for {PAIRS[0]} it says {said[0]:.3f}, and the loss is {right[0]:.3f}: "
        "compute the margin first, then -log of its sigmoid."
    )


def _close(some: list[float], others: list[float]) -> bool:
    return all(abs(x - y) < 1e-4 for x, y in zip(some, others, strict=True))


def _loss(
    chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, beta: float
) -> float:
    """Return the loss of Rafailov et al., arXiv 2305.18290, equation 7."""
    return _log_loss(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def _log_loss(x: float) -> float:
    return math.log1p(math.exp(-x))


def _margin(c: float, r: float, rc: float, rr: float) -> float:
    return (c - rc) - (r - rr)


MISTAKES: tuple[tuple[str, Callable[..., float]], ...] = (
    (
        "the sign is turned: a loss is not negative, so take -log.",
        lambda *pair: -_loss(*pair),
    ),
    (
        "that rewards the rejected answer: its loss falls as the margin shrinks.",
        lambda c, r, rc, rr, b: _log_loss(-b * _margin(c, r, rc, rr)),
    ),
    (
        "the reference is missing: the margin counts from where the training began.",
        lambda c, r, rc, rr, b: _log_loss(b * (c - r)),
    ),
    (
        "beta is missing within the sigmoid.",
        lambda c, r, rc, rr, b: _log_loss(_margin(c, r, rc, rr)),
    ),
    (
        "beta belongs within the sigmoid, where it scales the margin.",
        lambda c, r, rc, rr, b: b * _log_loss(_margin(c, r, rc, rr)),
    ),
    (
        "that is the sigmoid itself, a probability: take -log of it.",
        lambda *pair: math.exp(-_loss(*pair)),
    ),
)
