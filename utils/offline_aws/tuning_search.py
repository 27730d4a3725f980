"""Which hyperparameters the next training job of a tuning job gets.

Three strategies are played: Grid takes all combinations in their order, Random draws,
and Bayesian fits a Gaussian process to the results so far and takes the candidate whose
expected improvement is the largest. AWS does not say how its own Bayesian search works
in detail: this one is the textbook's, on scikit-learn.

With a random seed the n-th draw is the same in every run, whatever the jobs return. A
Bayesian choice depends on the results that are known when it is made, so it can be
repeated only when one job runs at a time.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("Integer", "Continuous", "Categorical")
# Ours: AWS says of Auto that it "chooses the best scale for the hyperparameter".
AUTO_IS_LOGARITHMIC_FROM = 100  # the largest value as a multiple of the smallest
DRAWS = 200  # before the combinations that are left are counted out
COUNTED_OUT = 10_000  # combinations, at most
CANDIDATES = 500  # of which a Bayesian search takes the best
MOST_SEEDS = 2**32


@dataclass(frozen=True)
class Range:
    """What a hyperparameter may be.

    Attributes:
        name: of the hyperparameter.
        kind: one of `KINDS`.
        low: the smallest value of a number.
        high: the largest; both may be taken.
        scaling: Linear, Logarithmic or ReverseLogarithmic.
        values: of a category, as they were given.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    scaling: str = "Linear"
    values: tuple[str, ...] = ()

    @property
    def count(self) -> float:
        """How many values there are; infinite for a continuous range."""
        if self.kind == "Categorical":
            return len(self.values)
        return self.high - self.low + 1 if self.kind == "Integer" else math.inf

    def value(self, share: float) -> str:
        """Return the value at a share of the range, as a hyperparameter's text.

        Args:
            share: from 0 to 1; equal shares of the scaled range are equally wide.
        """
        if self.kind == "Categorical":
            place = min(int(share * len(self.values)), len(self.values) - 1)
            return self.values[place]
        high = self.high + 1 if self.kind == "Integer" else self.high
        start, end = self._scaled(self.low), self._scaled(high)
        number = self._unscaled(start + share * (end - start))
        if self.kind == "Integer":
            return str(int(min(max(math.floor(number), self.low), self.high)))
        return repr(float(min(max(number, self.low), self.high)))

    def share(self, value: str) -> float:
        """Return where a number lies in the scaled range, from 0 to 1."""
        number = float(value)
        high = self.high
        if self.kind == "Integer":  # its middle, as `value` gives it a whole step
            number, high = number + 0.5, self.high + 1
        start, end = self._scaled(self.low), self._scaled(high)
        return (self._scaled(number) - start) / (end - start)

    def _scaled(self, number: float) -> float:
        if self.scaling == "Logarithmic":
            return math.log(number)
        if self.scaling == "ReverseLogarithmic":
            return -math.log(1 - number)
        return number

    def _unscaled(self, number: float) -> float:
        if self.scaling == "Logarithmic":
            return math.exp(number)
        if self.scaling == "ReverseLogarithmic":
            return 1 - math.exp(-number)
        return number


def ranges_of(
    parameter_ranges: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Range]:
    """Read the ranges of a tuning job.

    Args:
        parameter_ranges: `ParameterRanges` of CreateHyperParameterTuningJob.

    Raises:
        ValueError: says which range is wrong, and why.
    """
    found = []
    for kind in KINDS:
        for given in parameter_ranges.get(f"{kind}ParameterRanges") or ():
            if kind == "Categorical":
                found.append(_category(given))
            else:
                found.append(_numbers(kind, given))
    return found


def _category(given: Mapping[str, Any]) -> Range:
    values = tuple(given["Values"])
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(
            f"The categorical range of {given['Name']!r} holds {twice[0]!r} more than "
            "once. Give each value once."
        )
    return Range(given["Name"], "Categorical", values=values)


def _numbers(kind: str, given: Mapping[str, Any]) -> Range:
    name, scaling = given["Name"], given.get("ScalingType", "Auto")
    texts = given["MinValue"], given["MaxValue"]
    try:
        low, high = (int(t) if kind == "Integer" else float(t) for t in texts)
    except ValueError:
        low = high = math.nan
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(
            f"The {kind.lower()} range of {name!r} goes from {texts[0]!r} to "
            f"{texts[1]!r}: both ends must be "
            f"{'whole numbers' if kind == 'Integer' else 'numbers'}."
        )
    if low >= high:  # a range of one value too: aws/amazon-sagemaker-feedback, 195
        raise ValueError(
            f"The range of {name!r} goes from {texts[0]} to {texts[1]}: MinValue must "
            "be smaller than MaxValue. A value that is not searched belongs in "
            "StaticHyperParameters."
        )
    if scaling == "Auto":
        wide = low > 0 and high / low >= AUTO_IS_LOGARITHMIC_FROM
        scaling = "Logarithmic" if wide else "Linear"
    # botocore's model of ContinuousParameterRange says where each scale works.
    if scaling == "Logarithmic" and low <= 0:
        raise ValueError(
            f"The range of {name!r} begins at {texts[0]}: logarithmic scaling works "
            "only for ranges that have only values greater than 0."
        )
    if scaling == "ReverseLogarithmic" and not 0 <= low < high < 1:
        raise ValueError(
            f"The range of {name!r} goes from {texts[0]} to {texts[1]}: reverse "
            "logarithmic scaling works only for ranges that are entirely within the "
            "range 0<=x<1.0."
        )
    return Range(name, kind, low, high, scaling)


def combinations(ranges: Sequence[Range]) -> float:
    """Return how many combinations of values there are; may be infinite."""
    return math.prod(one.count for one in ranges)


@dataclass(frozen=True)
class Tried:
    """A training job that was started, for the search.

    Attributes:
        values: its tuned hyperparameters.
        objective: what it reached; None while it runs, or if it reached none.
    """

    values: Mapping[str, str]
    objective: float | None = None


class Search:
    """Chooses hyperparameters, one training job after the other."""

    def __init__(
        self, strategy: str, ranges: Sequence[Range], minimise: bool, seed: int | None
    ):
        """Prepare a search.

        Args:
            strategy: Grid, Random or Bayesian.
            ranges: of the hyperparameters.
            minimise: whether a smaller objective is better.
            seed: of the draws; None for another one each time.
        """
        self.strategy, self.ranges = strategy, list(ranges)
        self.minimise = minimise
        self.seed = random.SystemRandom().randrange(2**31) if seed is None else seed

    def prepare(self) -> None:
        """Load what the search needs; it takes a second or two."""
        if self.strategy == "Bayesian":
            _process(1, 0)

    def next(self, tried: Sequence[Tried]) -> dict[str, str] | None:
        """Return the hyperparameters of the next job; None when all were tried."""
        if self.strategy == "Grid":
            rest = itertools.islice(self._all(), len(tried), None)
            return next(rest, None)
        draw = random.Random(f"{self.seed}:{len(tried)}")
        taken = {_key(one.values) for one in tried}
        known = [one for one in tried if one.objective is not None]
        if self.strategy == "Bayesian" and len(known) > len(self.ranges):
            candidates = list(itertools.islice(self._new(draw, taken), CANDIDATES))
            if candidates:
                return self._most_promising(candidates, tried, draw)
        return next(self._new(draw, taken), None)

    def _all(self) -> Iterator[dict[str, str]]:
        """Yield all combinations of finite ranges, the last one varying fastest."""
        names = [one.name for one in self.ranges]
        for values in itertools.product(*(_values(one) for one in self.ranges)):
            yield dict(zip(names, values, strict=True))

    def _new(self, draw: random.Random, taken: set[tuple]) -> Iterator[dict[str, str]]:
        """Yield combinations that are not taken, each once, in random order."""
        taken = set(taken)
        for _ in range(DRAWS + CANDIDATES):
            drawn = {one.name: one.value(draw.random()) for one in self.ranges}
            if (key := _key(drawn)) not in taken:
                taken.add(key)
                yield drawn
        if combinations(self.ranges) <= COUNTED_OUT:
            left = [one for one in self._all() if _key(one) not in taken]
            draw.shuffle(left)
            yield from left

    def _most_promising(
        self,
        candidates: list[dict[str, str]],
        tried: Sequence[Tried],
        draw: random.Random,
    ) -> dict[str, str]:
        """Return the candidate with the largest expected improvement.

        The formula: Jones, Schonlau and Welch, "Efficient Global Optimization of
        Expensive Black-Box Functions" (1998). A job that still runs is taken to reach
        what the process expects of it, so that jobs side by side differ: the "Kriging
        believer" of Ginsbourger, Le Riche and Carraro (2010).
        """
        import numpy as np
        from scipy.stats import norm

        known = [one for one in tried if one.objective is not None]
        waiting = [one for one in tried if one.objective is None]
        sign = 1.0 if self.minimise else -1.0
        places = np.array([self._place(one.values) for one in known])
        results = np.array([sign * one.objective for one in known])
        process = _process(places.shape[1], draw.randrange(MOST_SEEDS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bound of the kernel was reached
            process.fit(places, results)
            if waiting:
                more = np.array([self._place(one.values) for one in waiting])
                believed = process.predict(more)
                process.fit(
                    np.vstack([places, more]), np.concatenate([results, believed])
                )
            mean, deviation = process.predict(
                np.array([self._place(one) for one in candidates]), return_std=True
            )
        better = results.min() - mean
        deviation = np.maximum(deviation, 1e-12)
        z = better / deviation
        improvement = better * norm.cdf(z) + deviation * norm.pdf(z)
        return candidates[int(np.argmax(improvement))]

    def _place(self, values: Mapping[str, str]) -> list[float]:
        """Return a combination as a point: shares of numbers, a one for a category."""
        point: list[float] = []
        for one in self.ranges:
            if one.kind == "Categorical":
                point += [float(values[one.name] == value) for value in one.values]
            else:
                point.append(one.share(values[one.name]))
        return point


def _process(dimensions: int, seed: int) -> Any:
    """Return a Gaussian process that is not yet fitted."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = Matern([0.5] * dimensions, (0.05, 10.0), nu=2.5)
    noise = WhiteKernel(1e-3, (1e-6, 1e-1))
    return GaussianProcessRegressor(
        ConstantKernel(1.0, (1e-2, 1e2)) * smooth + noise,
        normalize_y=True,
        random_state=seed,
    )


@functools.cache
def _values(one: Range) -> tuple[str, ...]:
    """Return all values of a finite range."""
    if one.kind == "Categorical":
        return one.values
    return tuple(str(number) for number in range(int(one.low), int(one.high) + 1))


def _key(values: Mapping[str, str]) -> tuple:
    return tuple(sorted(values.items()))
