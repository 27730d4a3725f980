"""Shares, differences and their intervals."""

import numpy as np
import pytest

from utils.evaluation import paired_difference, proportion


def test_proportion_matches_wilson_by_hand():
    score = proportion([True] * 8 + [False] * 2)
    z, p, n = 1.959963984540054, 0.8, 10
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert score.value == pytest.approx(0.8)
    assert score.low == pytest.approx(centre - half)
    assert score.high == pytest.approx(centre + half)
    assert score.n == 10
    assert repr(score) == "Proportion(0.800, low=0.490, high=0.943, n=10)"


def test_proportion_of_a_clean_sweep_stays_inside_zero_and_one():
    assert proportion([True] * 20).high == pytest.approx(1)
    assert proportion([False] * 20).low == pytest.approx(0)
    assert 0 < proportion([False] * 20).high < 0.2


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="hits is empty"):
        proportion([])


def test_paired_difference_uses_the_pairing():
    baseline = [False] * 30 + [True] * 30
    better = [True] * 10 + [False] * 20 + [True] * 30  # right wherever the baseline is
    paired = paired_difference(better, baseline)
    assert paired.value == pytest.approx(10 / 60)
    assert 0 < paired.low < 10 / 60 < paired.high < 0.3
    # The same shares in another order are far less certain.
    shuffled = list(np.random.default_rng(0).permutation(better))
    unpaired = paired_difference(shuffled, baseline)
    assert unpaired.high - unpaired.low > 1.5 * (paired.high - paired.low)
    assert paired_difference(better, baseline) == paired


def test_equal_answers_differ_by_exactly_nothing():
    same = paired_difference([True, False, True], [True, False, True])
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(("hits", "baseline"), [([True], [True, False]), ([], [])])
def test_unpaired_answers_are_an_error(hits, baseline):
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(hits, baseline)
