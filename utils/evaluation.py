"""Scores with their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

from utils.helpers import DEFAULT_SEED

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95% interval and the sample size behind it."""

    value: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.value:.3f}, low={self.low:.3f}, "
            f"high={self.high:.3f}, n={self.n})"
        )


class Proportion(Estimate):
    """A share of right answers, between 0 and 1; see `proportion`."""


class Difference(Estimate):
    """A difference of two shares on the same questions; see `paired_difference`."""


def proportion(hits: Sequence[bool]) -> Proportion:
    """Share of hits with Wilson's interval at 95% (Wilson, JASA 22, 1927).

    Raises:
        ValueError: if there are no hits or misses to count.
    """
    n = len(hits)
    if not n:
        raise ValueError("hits is empty: score some answers before you count.")
    test = binomtest(sum(map(bool, hits)), n)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(test.statistic, float(interval.low), float(interval.high), n)


def paired_difference(
    hits: Sequence[bool], baseline: Sequence[bool], seed: int = DEFAULT_SEED
) -> Difference:
    """How much larger a share of hits is than a baseline's on the same questions.

    The interval is the percentile bootstrap over questions at 95% (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), 10,000 resamples.

    Args:
        hits: one boolean a question.
        baseline: the other model's, in the same order.
        seed: of the resamples.

    Raises:
        ValueError: if the two differ in length or are empty.
    """
    if len(hits) != len(baseline) or not len(hits):
        raise ValueError(
            f"{len(hits)} answers against {len(baseline)}: a paired comparison needs "
            "the same questions, in the same order, and at least one."
        )
    deltas = np.asarray(hits, float) - np.asarray(baseline, float)
    mean = float(deltas.mean())
    if np.all(deltas == deltas[0]):  # resampling cannot vary, and scipy returns nan
        return Difference(mean, mean, mean, len(deltas))
    interval = bootstrap(
        (deltas,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), len(deltas))
