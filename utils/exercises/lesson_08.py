"""Checks for the exercises of lesson 08, training jobs and the next version."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from utils.exercises.frame import Wrong, exercise, read_number

SECONDS = 3600  # of an hour
CLOSE = 0.005  # a relative difference that rounding may make
GIGA = 1e9


# --- what a job costs -----------------------------------------------------------------


@exercise("an amount in US dollars")
def check_bill(cost: float, job: Mapping[str, Any], price: float) -> str:
    """Check what a training job costs.

    "Multiply BillableTimeInSeconds by the number of instances (InstanceCount) in your
    training cluster": botocore's model of DescribeTrainingJob.

    First used in lesson 08, section 4.

    Args:
        cost: the learner's answer, in US dollars.
        job: as DescribeTrainingJob returns it.
        price: of one instance, in US dollars an hour.
    """
    found = read_number(cost, "an amount in US dollars")
    seconds, count = job["BillableTimeInSeconds"], _instances(job)
    right = seconds / SECONDS * count * price
    for amount, hint in (
        (right / count, f"that is one instance, and {count} ran."),
        (right * SECONDS, "the price is that of an hour, and the time is in seconds."),
        (right * 60, "the price is that of an hour, not of a minute."),
        (
            job["TrainingTimeInSeconds"] / SECONDS * count * price,
            "that is TrainingTimeInSeconds. On Spot machines AWS bills less than that: "
            "BillableTimeInSeconds.",
        ),
    ):
        if _is(found, amount) and not _is(amount, right):
            raise Wrong(hint)
    if not _is(found, right):
        raise Wrong(
            f"{found:.2f} is not it. Multiply the billable seconds by the instances "
            "and by the price of a second."
        )
    share = seconds / job["TrainingTimeInSeconds"]
    return f"AWS bills {share:.0%} of the training time, on each of {count} instances."


def _instances(job: Mapping[str, Any]) -> int:
    return job["ResourceConfig"]["InstanceCount"]


def _is(found: float, amount: float) -> bool:
    return math.isclose(found, amount, rel_tol=CLOSE)


# --- how often to save ----------------------------------------------------------------


@exercise("a function that takes the steps between two checkpoints")
def check_extra_seconds(
    extra_seconds: Callable[[int], float],
    steps: int,
    step: float,
    save: float,
    interruptions: float,
) -> str:
    """Check what saving and interruptions add to a run.

    An interruption loses what was computed since the last checkpoint: half an interval
    on average (Young, 1974, https://doi.org/10.1145/361147.361115).

    First used in lesson 08, section 4.

    Args:
        extra_seconds: the learner's answer, a function of the steps between two
            checkpoints.
        steps: of the whole run.
        step: seconds that one takes.
        save: seconds that a checkpoint takes.
        interruptions: how many are expected in the run.
    """
    if not callable(extra_seconds):
        raise Wrong(f"expected a function, found {type(extra_seconds).__name__}.")

    def parts(every: int) -> tuple[float, float]:
        return steps / every * save, interruptions * every / 2 * step

    for every in (steps // 100, steps // 10):
        found = _value(extra_seconds, every)
        saving, lost = parts(every)
        for amount, hint in (
            (saving, "an interruption loses what was computed since the last save."),
            (lost, "each checkpoint takes time as well."),
            (
                saving + 2 * lost,
                "an interruption comes anywhere between two checkpoints, and loses "
                "half of the interval on average, not all of it.",
            ),
            (
                saving + lost / step,
                f"what is lost is steps, and each takes {step:g} seconds.",
            ),
            (saving + lost / interruptions, "that is one interruption."),
        ):
            if _is(found, amount) and not _is(amount, saving + lost):
                raise Wrong(hint)
        if not _is(found, saving + lost):
            raise Wrong(
                f"for {every} steps between checkpoints it returns {found:g}. Add the "
                "time of all checkpoints and the time that interruptions lose."
            )
    best = math.sqrt(2 * steps * save / (interruptions * step))
    return f"the sum is least at about {best:.0f} steps, where both parts are equal."


def _value(function: Callable[[int], float], every: int) -> float:
    try:
        found = function(every)
    except Exception as problem:
        raise Wrong(
            f"your function fails for {every} steps "
            f"({type(problem).__name__}: {problem})."
        ) from None
    return read_number(found, f"a number of seconds for {every} steps")


# --- how many GPUs --------------------------------------------------------------------

# parameters, bytes of each, gigabytes of activations on each GPU, gigabytes of a card
TUNED_IN_FULL = (8.03e9, 16, 10.0, 80)
ADAPTERS = (70.6e9, 0.6, 12.0, 24)
ON_ONE = (2.78e9, 2.2, 3.0, 24)
EXACT = (7e9, 10, 10.0, 80)  # 70 GB in 70 GB


@exercise("a function that returns a whole number of GPUs")
def check_gpus(gpus_needed: Callable[[float, float, float, float], int]) -> str:
    """Check a function that says how many GPUs hold a sharded training run.

    Weights, gradients and the optimizer's states are divided among the GPUs, as FSDP
    does (Zhao et al., 2023, https://arxiv.org/abs/2304.11277); the activations of its
    own rows are each GPU's own.

    First used in lesson 08, section 8.

    Args:
        gpus_needed: the learner's answer, a function of the parameters, the bytes that
            each takes, gigabytes of activations on each GPU, and gigabytes of a GPU.
    """
    if not callable(gpus_needed):
        raise Wrong(f"expected a function, found {type(gpus_needed).__name__}.")
    for given in (TUNED_IN_FULL, ADAPTERS, ON_ONE, EXACT):
        parameters, each, activations, card = given
        divided = parameters * each / GIGA
        right = math.ceil(divided / (card - activations) - 1e-9)
        found = _count(gpus_needed, given)
        what = f"{parameters / GIGA:g} billion parameters of {each:g} bytes"
        for amount, hint in (
            (
                math.ceil(divided / card),
                "the activations of a GPU's own rows need room on each GPU.",
            ),
            (
                math.ceil((divided + activations) / card),
                "each GPU has activations of its own: they are not divided.",
            ),
            (
                int(divided / (card - activations)),
                f"rounded down, so that {what} do not fit: round up.",
            ),
            (
                int(divided / (card - activations)) + 1,
                f"{what} need {right} here, and you add one more.",
            ),
        ):
            if found == amount != right:
                raise Wrong(hint)
        if found != right:
            raise Wrong(f"for {what} it returns {found:g}, and {right} are needed.")
    return "what is divided decides how many, and what is not, how large each must be."


def _count(function: Callable[..., int], given: tuple[float, ...]) -> float:
    try:
        found = function(*given)
    except Exception as problem:
        raise Wrong(
            f"your function fails for {given} ({type(problem).__name__}: {problem})."
        ) from None
    found = read_number(found, "a whole number of GPUs")
    if found != int(found):
        raise Wrong(f"{found:g} GPUs cannot be rented: return a whole number.")
    return found
