"""The values that a tuning job tries, and what its metric's pattern finds in a log."""

from __future__ import annotations

import itertools
import math

import pytest

from utils.offline_aws.tuning_metrics import Capture, Captured
from utils.offline_aws.tuning_search import (
    Range,
    Search,
    Tried,
    combinations,
    ranges_of,
)

RATE = Range("rate", "Continuous", 1e-5, 1e-2, "Logarithmic")
RANK = Range("rank", "Integer", 2, 5)
KIND = Range("kind", "Categorical", values=('"adam"', '"sgd"'))
SLOPE = Range("slope", "Continuous", -1.0, 3.0)
DECAY = Range("decay", "Continuous", 0.9, 0.999, "ReverseLogarithmic")
WIDTH = Range("width", "Integer", 1, 1000, "Logarithmic")


@pytest.mark.parametrize("one", [RATE, RANK, KIND, SLOPE, DECAY, WIDTH])
def test_values_lie_within_their_range_and_reach_both_ends(one) -> None:
    shares = [step / 400 for step in range(401)]
    values = [one.value(share) for share in shares]
    if one.kind == "Categorical":
        assert list(dict.fromkeys(values)) == list(one.values)
        return
    numbers = [float(value) for value in values]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (one.low, one.high)
    for value in values:
        if one.kind == "Integer":
            assert value == str(int(value))
        back = one.share(value)
        assert 0 <= back <= 1
        assert float(one.value(back)) == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("one", "middle"),
    [
        (RATE, 10**-3.5),
        (SLOPE, 1.0),
        (DECAY, 1 - math.sqrt(0.1 * 0.001)),
    ],
)
def test_half_of_the_draws_lie_below_the_middle_of_the_scale(one, middle) -> None:
    assert float(one.value(0.5)) == pytest.approx(middle)


def test_each_whole_number_has_the_same_share() -> None:
    drawn = [RANK.value(step / 1000) for step in range(1000)]
    assert {value: drawn.count(value) for value in drawn} == dict.fromkeys("2345", 250)


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        ("0.00001", "0.01", "Logarithmic"),
        ("1e-5", "1e-3", "Logarithmic"),
        ("0.1", "0.5", "Linear"),
        ("0", "1000", "Linear"),
        ("-1", "1", "Linear"),
    ],
)
def test_auto_is_logarithmic_where_a_range_is_wide_and_positive(low, high, scale):
    given = {"Name": "x", "MinValue": low, "MaxValue": high}
    for more in ({}, {"ScalingType": "Auto"}):
        [one] = ranges_of({"ContinuousParameterRanges": [given | more]})
        assert one.scaling == scale


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("Integer", ("8", "4"), "MinValue must be smaller than MaxValue"),
        ("Integer", ("4", "4"), "belongs in StaticHyperParameters"),
        ("Integer", ("1.5", "4"), "whole numbers"),
        ("Continuous", ("a", "4"), "must be numbers"),
        ("Continuous", ("nan", "4"), "must be numbers"),
        ("Continuous", ("0", "inf"), "must be numbers"),
        ("Continuous", ("0", "1", "Logarithmic"), "greater than 0"),
        ("Continuous", ("-1", "1", "Logarithmic"), "greater than 0"),
        ("Continuous", ("0.5", "1", "ReverseLogarithmic"), "0<=x<1.0"),
    ],
)
def test_ranges_that_mean_nothing_are_named(kind, given, said) -> None:
    low, high, *scale = given
    one = {"Name": "the-range", "MinValue": low, "MaxValue": high}
    if scale:
        one["ScalingType"] = scale[0]
    with pytest.raises(ValueError, match=said) as error:
        ranges_of({f"{kind}ParameterRanges": [one]})
    assert "the-range" in str(error.value)


def test_a_category_holds_each_value_once() -> None:
    given = {"Name": "kind", "Values": ["a", "b", "a"]}
    with pytest.raises(ValueError, match="'kind' holds 'a' more than once"):
        ranges_of({"CategoricalParameterRanges": [given]})


def drawn(search: Search, count: int, objective=lambda values: None) -> list[dict]:
    """Return the first values of a search whose jobs run one after the other."""
    tried: list[Tried] = []
    for _ in range(count):
        values = search.next(tried)
        if values is None:
            break
        tried.append(Tried(values, objective(values)))
    return [dict(one.values) for one in tried]


def test_a_grid_takes_all_combinations_in_their_order() -> None:
    other = Range("rank", "Categorical", values=("4", "8", "16"))
    found = drawn(Search("Grid", [KIND, other], True, None), 99)
    expected = itertools.product(KIND.values, other.values)
    assert [(one["kind"], one["rank"]) for one in found] == list(expected)


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_a_finite_space_is_tried_once_and_wholly(strategy) -> None:
    ranges = [RANK, KIND]
    found = drawn(Search(strategy, ranges, True, 3), 99, lambda one: float(one["rank"]))
    assert len({tuple(one.items()) for one in found}) == len(found) == 8
    assert combinations(ranges) == 8


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_the_same_seed_gives_the_same_values(strategy) -> None:
    def search(seed: int) -> list[dict]:
        return drawn(Search(strategy, [RATE, RANK], True, seed), 6, loss)

    def loss(values: dict) -> float:
        return abs(math.log10(float(values["rate"])) + 3)

    assert search(1) == search(1)
    assert search(1) != search(2)
    assert search(0) == search(0)


def test_without_a_seed_the_values_differ() -> None:
    assert drawn(Search("Random", [RATE], True, None), 3) != drawn(
        Search("Random", [RATE], True, None), 3
    )


def test_a_random_draw_does_not_depend_on_results() -> None:
    search = Search("Random", [RATE, RANK], True, 5)
    assert drawn(search, 6) == drawn(search, 6, lambda one: float(one["rate"]))


@pytest.mark.parametrize("minimise", [True, False])
def test_a_bayesian_search_comes_closer_than_a_random_one(minimise) -> None:
    """In the median of seeds: the best of 12 jobs on a smooth loss of two numbers."""

    def loss(values: dict) -> float:
        distance = (math.log10(float(values["rate"])) + 3.2) ** 2
        distance += (float(values["slope"]) - 0.7) ** 2
        return distance if minimise else -distance

    def best(strategy: str, seed: int) -> float:
        search = Search(strategy, [RATE, SLOPE], minimise, seed)
        return min(abs(loss(one)) for one in drawn(search, 12, loss))

    pairs = [(best("Bayesian", seed), best("Random", seed)) for seed in range(5)]
    assert sum(bayesian < random for bayesian, random in pairs) >= 4
    assert sorted(one for one, _ in pairs)[2] < 0.05


def test_jobs_side_by_side_do_not_get_the_same_values() -> None:
    known = [Tried({"slope": str(x)}, (x - 1) ** 2) for x in (-1.0, 0.0, 2.0, 3.0)]
    search = Search("Bayesian", [SLOPE], True, 1)
    first = search.next(known)
    second = search.next([*known, Tried(first)])
    assert abs(float(first["slope"]) - float(second["slope"])) > 0.01


NUMBER = r"loss=([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"


def captured(pattern: str, lines: list[str]) -> Captured:
    """Return what is found, which is the same line by line and all at once."""
    whole, grows = Capture(pattern), Capture(pattern)
    whole.read(lines)
    for line in lines:
        grows.read([line])
    assert whole.result() == grows.result()
    return whole.result()


@pytest.mark.parametrize(
    ("pattern", "lines", "values", "last", "said"),
    [
        (NUMBER, ["loss=2.5", "x", "loss=1.5"], [2.5, 1.5], 1.5, None),
        (NUMBER, ["loss=1e-05"], [1e-05], 1e-05, None),
        (NUMBER, ["loss=-3.5"], [-3.5], -3.5, None),
        ("loss: (.*?);", ["loss: 0.25; step: 3;"], [0.25], 0.25, None),
        (r"loss=(?P<v>[0-9.]+)", ["loss=0.5"], [0.5], 0.5, None),
        (r"a=([0-9.]+)", ["a=1 a=2"], [1, 2], 2, None),
        # the exponent and the sign are cut off
        ("loss=([0-9.]+)", ["loss=1e-05"], [1.0], 1.0, "captures '1'"),
        ("loss=([0-9.]+)", ["loss=2.5E-7", "loss=3"], [2.5, 3], 3, "captures '2.5'"),
        (r"loss=-?([0-9.]+)", ["loss=-3.5"], [3.5], 3.5, "takes signs"),
        # the last number counts, unless it was none
        ("loss=(.*)", ["loss=0.5", "loss=nan"], [0.5], None, "no finite number"),
        ("loss=(.*)", ["loss=0.5", "loss=-inf"], [0.5], None, "no finite number"),
        ("loss=([0-9.]+)", ["loss=0.5", "loss=nan"], [0.5], None, "'loss=nan'"),
        ("loss=([0-9.]+)", ["loss= NaN", "loss=0.5"], [0.5], 0.5, None),
        ("loss=([0-9.]+)", ["loss=1 loss=nan"], [1.0], None, "no finite number"),
        ("loss=([0-9.]+)", ["loss=nan loss=1"], [1.0], 1.0, None),
        ("([0-9.]+) loss", ["0.5 loss", "nan loss"], [0.5], 0.5, None),
        # nothing is found
        ("loss=([0-9.]+)", ["Loss: 0.5"], [], None, "matches no line"),
        ("loss=([0-9.]+)", [], [], None, "matches no line"),
        ("loss=(.*?)", ["loss=0.5"], [], None, "captures '', which is no number"),
        ("loss=([0-9.]+)", ["loss=...", "x"], [], None, "captures '...'"),
        ("loss=[0-9.]+", ["loss=0.5"], [], None, "has no group"),
    ],
)
def test_a_pattern_finds_what_it_captures_and_says_what_it_cuts(
    pattern, lines, values, last, said
) -> None:
    found = captured(pattern, lines)
    assert (found.values, found.last) == (values, last)
    if said is None:
        assert found.trouble is None
    else:
        assert said in found.trouble


@pytest.mark.parametrize("word", ["nano=1", "info", "inflation 3"])
def test_words_that_begin_like_nan_are_none(word) -> None:
    found = captured("loss=([0-9.]+)", ["loss=0.5", f"loss={word}"])
    assert (found.last, found.trouble) == (0.5, None)
