"""Checks for the exercises of lesson 07, from endpoint to product."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.exercises.frame import Wrong, exercise, read_number, require_type

# What botocore does where a Config says nothing: its own defaults, "legacy" mode.
BOTOCORE_TIMEOUT, BOTOCORE_ATTEMPTS = 60, 5
SHORTEST_WAIT = 5  # seconds; below that an ordinary answer is cut off
SECONDS = 3600  # of an hour

# Pairs of verdicts (base, tuned) with the p-value of McNemar's exact test.
PLAIN = [(False, True)] * 9 + [(True, False)] * 1 + [(True, True)] * 30
MANY_TIES = [*PLAIN, *[(False, False)] * 200]
OTHER_WAY = [(one, other) for other, one in PLAIN]
ONE_EACH = [(True, False), (False, True), (True, True)]
NONE_DIFFERS = [(True, True), (False, False)]


# --- time-outs ------------------------------------------------------------------------


@exercise("a botocore Config")
def check_patience(config: Any, gateway: float) -> str:
    """Check how long a client waits for the model, and how often it asks.

    First used in lesson 07, section 4.

    Args:
        config: the learner's answer, a `botocore.config.Config`.
        gateway: seconds after which the gateway gives its own answer.
    """
    from botocore.config import Config

    require_type(Config, config, "a botocore.config.Config")
    attempts = attempts_of(config)
    if attempts > 1:
        raise Wrong(
            f"this asks up to {attempts} times, so the model works on the same answer "
            f"{attempts} times. total_max_attempts counts the first time, too, while "
            "max_attempts counts the repetitions only."
        )
    connect, read = config.connect_timeout, config.read_timeout
    for name, seconds in (("connect_timeout", connect), ("read_timeout", read)):
        if seconds is None:
            raise Wrong(f"{name}=None waits for ever.")
    if read < SHORTEST_WAIT:
        raise Wrong(
            f"read_timeout={read} is for people who never want a long answer: give "
            f"the model at least {SHORTEST_WAIT} seconds."
        )
    if connect + read >= gateway:
        raise Wrong(
            f"this waits {connect} + {read} seconds, and after {gateway} the gateway "
            "has given its own answer: yours reaches nobody."
        )
    return f"asked once, and given up after {connect + read} seconds without a reply."


def attempts_of(config: Any) -> int:
    """Return how often botocore sends a request at most, the first time included.

    Source: botocore's documentation of `Config`, parameter `retries`.
    """
    retries = config.retries or {}
    if "total_max_attempts" in retries:
        return retries["total_max_attempts"]
    if "max_attempts" in retries:
        return retries["max_attempts"] + 1
    return BOTOCORE_ATTEMPTS if retries.get("mode", "legacy") == "legacy" else 3


# --- what an hour's abuse costs -------------------------------------------------------


@exercise("an amount in US dollars")
def check_abuse(
    cost: float, rate: float, per_request: float, machines: int, price: float
) -> str:
    """Check the bill of an hour in which somebody sends as much as they can.

    First used in lesson 07, section 5.

    Args:
        cost: the learner's answer, in US dollars.
        rate: requests a second that the usage plan lets through.
        per_request: US dollars that gateway and function cost for one of them.
        machines: to which the endpoint may grow.
        price: of a machine, in US dollars an hour.
    """
    found = read_number(cost, "an amount in US dollars")
    requests, endpoint = rate * SECONDS * per_request, machines * price
    right = requests + endpoint
    near = 0.005 * right
    for amount, hint in (
        (requests, "the machines are missing, and they are the most expensive part."),
        (endpoint, "each request that comes through costs something, too."),
        (requests + price, f"scaling adds machines, up to {machines}."),
        (rate * per_request + endpoint, "an hour has 3,600 seconds."),
        (rate * 60 * per_request + endpoint, "that is a minute of requests."),
        (rate * SECONDS * (per_request + endpoint), "a machine costs by the hour."),
        (24 * right, "that is a day."),
    ):
        if abs(found - amount) <= near and abs(amount - right) > 2 * near:
            raise Wrong(hint)
    if abs(found - right) > near:
        raise Wrong(
            f"{found:.2f} is not it. Add what {rate:g} requests a second cost in an "
            f"hour, and an hour of {machines} machines."
        )
    return "however many requests are sent: the rest is refused, and costs no machine."


# --- a paired test --------------------------------------------------------------------


@exercise("a function that takes pairs of verdicts")
def check_p_value(p_value: Callable[[Sequence[tuple[bool, bool]]], float]) -> str:
    """Check a function that computes the p-value of McNemar's exact test.

    Among the pairs that differ, each direction has probability 1/2 if both versions are
    equally good (McNemar, 1947, https://doi.org/10.1007/BF02295996).

    First used in lesson 07, section 9.
    """
    if not callable(p_value):
        raise Wrong(f"expected a function, found {type(p_value).__name__}.")
    plain = _p(p_value, PLAIN)
    expected = exact_p(PLAIN)
    if math.isclose(plain, expected / 2, rel_tol=1e-6):
        raise Wrong(
            "that is half of it: count both directions, since the tuned version may "
            "also be the worse one."
        )
    with_ties = _p(p_value, MANY_TIES)
    if not math.isclose(plain, with_ties, rel_tol=1e-6):
        raise Wrong(
            "pairs in which both are right, or both are wrong, say nothing about which "
            "is better; 200 more of them changed your value. Count only those that "
            "differ."
        )
    if not math.isclose(plain, expected, rel_tol=1e-6):
        raise Wrong(
            f"nine pairs for the tuned version and one against it give {expected:.4f}, "
            f"found {plain:.4f}."
        )
    for pairs, what in (
        (OTHER_WAY, "with the versions exchanged"),
        (ONE_EACH, "of one pair for each"),
        (NONE_DIFFERS, "where no pair differs"),
    ):
        found, wanted = _p(p_value, pairs), exact_p(pairs)
        if not math.isclose(found, wanted, rel_tol=1e-6):
            raise Wrong(f"the value {what} is {wanted:.4f}, found {found:.4f}.")
    return "only the pairs that differ decide, in both directions."


def exact_p(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return the two-sided p-value of McNemar's exact test; 1 if no pair differs."""
    from scipy.stats import binomtest

    better = sum(tuned and not base for base, tuned in pairs)
    worse = sum(base and not tuned for base, tuned in pairs)
    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse).pvalue)


def _p(function: Callable, pairs: Sequence[tuple[bool, bool]]) -> float:
    try:
        found = function(pairs)
    except Exception as problem:
        raise Wrong(
            f"your function failed on {len(pairs)} pairs, "
            f"{sum(one != other for one, other in pairs)} of which differ: {problem}"
        ) from None
    if isinstance(found, Mapping) or not isinstance(found, (int, float)):
        pvalue = getattr(found, "pvalue", None)
        if pvalue is not None:
            raise Wrong("binomtest returns an object; its attribute is pvalue.")
        raise Wrong(f"expected a number, found {type(found).__name__}.")
    return float(found)
