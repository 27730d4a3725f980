"""Checks for the exercises of experiment 05, the statistics of evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from utils.exercises.frame import NotTried, Wrong, exercise

WORDS, FORMATS = 60, 4
CANDIDATES, ASKED, REPORTS = 16, 80, 400
SHARE = 0.6  # of candidates that are all equally good
TOLERANCE = 0.02  # in shares; five to six standard errors of the mean of all reports


def _copies() -> tuple[np.ndarray, np.ndarray]:
    """Return gains that are the same in all formats of a word, and their words."""
    generator = np.random.default_rng(0)
    gains = generator.choice([-1.0, 0.0, 1.0], size=WORDS, p=[0.15, 0.5, 0.35])
    order = generator.permutation(WORDS * FORMATS)
    words = np.repeat(np.arange(WORDS), FORMATS)[order]
    return gains[words], np.array([f"word {number}" for number in words])


@exercise("a function that draws whole words")
def check_cluster_interval(cluster_interval: Callable[..., Any]) -> str:
    """Check a bootstrap of clusters on data whose clusters are copies.

    First used in experiment 05_statistics, section 3.

    Args:
        cluster_interval: the learner's; it gets the gains and the word of each.
    """
    if not callable(cluster_interval):
        raise Wrong("expected a function: `def cluster_interval(gains, words): ...`.")
    gains, words = _copies()
    try:
        bounds = np.asarray(cluster_interval(gains, words), float)
    except Exception as error:
        raise Wrong(
            f"cluster_interval stops with {type(error).__name__}: {error}."
        ) from error
    if bounds.shape != (2,):
        raise Wrong("expected two bounds: return np.percentile(means, [2.5, 97.5]).")
    middle, width = float(bounds.mean()), float(np.ptp(bounds))
    error = float(gains[np.unique(words, return_index=True)[1]].std() / WORDS**0.5)
    wanted, naive = 3.92 * error, 3.92 * error / FORMATS**0.5
    if abs(middle - gains.mean()) > error / 2:
        raise Wrong(
            f"the interval is around {middle:.2f}, but the mean gain is "
            f"{gains.mean():.2f}: take the mean of all answers of the words drawn."
        )
    if width < naive / 4:
        raise Wrong(
            "the interval has hardly a width: draw words with replacement, so that "
            "some come twice and some not at all."
        )
    if abs(width / naive - 1) < 0.25:
        raise NotTried(
            "cluster_interval still draws single answers; let it draw words, each with "
            "all its answers."
        )
    if abs(width / wanted - 1) > 0.25:
        raise Wrong(
            f"the interval is {width:.2f} wide, where {wanted:.2f} is right: draw as "
            "many words as there are, and take the percentiles 2.5 and 97.5."
        )
    return (
        f"it draws words: {width:.2f} wide where single answers would give {naive:.2f}."
    )


@exercise("a function that scores the winner on other questions")
def check_report(report: Callable[[np.ndarray], float]) -> str:
    """Check that a reported score is what the winner is worth, on simulated hits.

    First used in experiment 05_statistics, section 5.

    Args:
        report: the learner's; it gets one row of hits a candidate.
    """
    if not callable(report):
        raise Wrong("expected a function: `def report(hits): ...`.")
    alike = _mean_report(report, np.full(CANDIDATES, SHARE), REPORTS)
    greatest = _mean_report(_of_the_best, np.full(CANDIDATES, SHARE), REPORTS)
    if abs(alike - greatest) < TOLERANCE / 2:
        raise NotTried(
            f"of {CANDIDATES} candidates that are all right on {SHARE:.0%}, report "
            f"says {alike:.0%}; score the winner on questions that did not choose it."
        )
    if alike > SHARE + TOLERANCE:
        raise Wrong(
            f"of candidates that are all right on {SHARE:.0%}, report still says "
            f"{alike:.0%}: some questions both choose the winner and score it."
        )
    if alike < SHARE - TOLERANCE:
        raise Wrong(
            f"of candidates that are all right on {SHARE:.0%}, report says "
            f"{alike:.0%}: score the winner, and by the share of its hits."
        )
    one_better = np.full(CANDIDATES, SHARE)
    one_better[-1] = 0.9
    found = _mean_report(report, one_better, REPORTS // 4)
    if found < 0.85:
        raise Wrong(
            f"with one candidate that is right on 90%, report says {found:.0%}: it "
            "has to choose the best one before it scores."
        )
    return (
        f"equals of {SHARE:.0%} are reported as {alike:.0%}, and one of 90% as "
        f"{found:.0%}."
    )


def _of_the_best(hits: np.ndarray) -> float:
    """Return the greatest share of all candidates: what the exercise begins with."""
    return float(hits.mean(axis=1).max())


def _mean_report(
    report: Callable[[np.ndarray], Any], shares: np.ndarray, reports: int
) -> float:
    """Return the mean of what is reported of candidates with these true shares."""
    generator = np.random.default_rng(0)
    said = []
    for _ in range(reports):
        hits = generator.random((len(shares), ASKED)) < shares[:, None]
        try:
            said.append(float(report(hits)))
        except Exception as error:
            raise Wrong(
                f"report stops with {type(error).__name__}: {error}."
            ) from error
    return float(np.mean(said))
