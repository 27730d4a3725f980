"""What an answer costs: from measured throughput and a price, against a managed API.

Arithmetic only. Prices come from `utils.deployment.prices`, throughput from a
measurement; what is assumed is the caller's to name as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from utils.course import CourseError

SECONDS_AN_HOUR = 3600
MILLION = 1_000_000


class CostError(CourseError, ValueError):
    """A number with which a cost cannot be computed; the message names it."""


def dollars_per_million_tokens(
    price_per_hour: float, tokens_per_second: float, utilisation: float = 1.0
) -> float:
    """Return what a million generated tokens cost on a machine that bills by the hour.

    First used in experiment 06_production, section 6.

    Args:
        price_per_hour: US dollars, of all machines that run for it.
        tokens_per_second: that they generate together at full load, as measured.
        utilisation: share of that load which really comes, above 0 up to 1.

    Raises:
        CostError: if one of them is not a number of its range.
    """
    _require("price_per_hour", price_per_hour, "US dollars an hour, 0 or more", 0)
    _require("tokens_per_second", tokens_per_second, "a number above 0", 0, above=True)
    _require("utilisation", utilisation, "a share above 0 up to 1", 0, 1, above=True)
    an_hour = tokens_per_second * utilisation * SECONDS_AN_HOUR
    return price_per_hour / an_hour * MILLION


def price_per_request(
    tokens_in: float, tokens_out: float, usd_in: float, usd_out: float
) -> float:
    """Return the US dollars that an API asks for a request that it bills by the token.

    Args:
        tokens_in: of the prompt.
        tokens_out: of the answer.
        usd_in: US dollars per million tokens of the prompt.
        usd_out: likewise, of the answer.

    Raises:
        CostError: if one of them is not a number, or negative.
    """
    for name, value in locals().copy().items():
        _require(name, value, "a number, 0 or more", 0)
    return (tokens_in * usd_in + tokens_out * usd_out) / MILLION


@dataclass(frozen=True)
class BreakEven:
    """From which load on a machine is cheaper than paying for each request.

    Attributes:
        requests: an hour, at which both cost the same.
        most: requests an hour that the machine can answer.
    """

    requests: float
    most: float

    @property
    def reachable(self) -> bool:
        """Whether the machine can answer as many as it would have to."""
        return self.requests <= self.most

    def __str__(self) -> str:
        """Return it as one sentence."""
        share = self.requests / self.most
        if self.reachable:
            return (
                f"the machine is cheaper from {self.requests:,.0f} requests an hour on:"
                f" {share:.0%} of the {self.most:,.0f} that it can answer"
            )
        return (
            f"the machine is never cheaper: it would need {self.requests:,.0f} requests"
            f" an hour, and can answer {self.most:,.0f}"
        )


def break_even(
    price_per_hour: float,
    price_per_request: float,
    tokens_per_second: float,
    tokens_out: float,
) -> BreakEven:
    """Compare a machine that bills by the hour with an API that bills by the request.

    First used in experiment 06_production, section 6.

    Args:
        price_per_hour: US dollars, of the machine.
        price_per_request: US dollars, of the API.
        tokens_per_second: that the machine generates at full load, as measured.
        tokens_out: of an answer; they are what a machine is busy with, if prompts are
            short.

    Raises:
        CostError: if one of them is not a number of its range.
    """
    _require("price_per_hour", price_per_hour, "US dollars an hour, 0 or more", 0)
    for name, value in (
        ("price_per_request", price_per_request),
        ("tokens_per_second", tokens_per_second),
        ("tokens_out", tokens_out),
    ):
        _require(name, value, "a number above 0", 0, above=True)
    most = tokens_per_second * SECONDS_AN_HOUR / tokens_out
    return BreakEven(price_per_hour / price_per_request, most)


def _require(
    name: str,
    value: float,
    expected: str,
    least: float,
    most: float = math.inf,
    above: bool = False,
) -> None:
    """Refuse what is no finite number of a range, whose least may be left out."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not number
        or not math.isfinite(value)
        or not least <= value <= most
        or (above and value == least)
    ):
        raise CostError(f"{name}: expected {expected}, found {value!r}.")
