"""What an answer costs, and from which load on a machine of one's own is cheaper."""

from __future__ import annotations

import pytest

from utils.deployment.costs import (
    BreakEven,
    CostError,
    break_even,
    dollars_per_million_tokens,
    price_per_request,
)


def test_a_million_tokens_at_full_load_and_below() -> None:
    # 1,000 tokens a second are 3.6 million an hour.
    assert dollars_per_million_tokens(3.6, 1_000) == pytest.approx(1.0)
    assert dollars_per_million_tokens(3.6, 1_000, 0.1) == pytest.approx(10.0)
    assert dollars_per_million_tokens(0, 5) == 0


def test_an_api_bills_prompt_and_answer_each_at_its_price() -> None:
    assert price_per_request(1_000, 100, 0.4, 0.6) == pytest.approx(460e-6)
    assert price_per_request(0, 0, 1, 1) == 0


def test_break_even_is_where_both_cost_the_same() -> None:
    found = break_even(1.5, 0.0005, tokens_per_second=1_000, tokens_out=100)
    assert found == BreakEven(requests=pytest.approx(3_000), most=36_000)
    assert found.reachable
    assert found.requests * 0.0005 == pytest.approx(1.5)
    assert "from 3,000 requests an hour on: 8% of the 36,000" in str(found)


def test_a_machine_that_is_too_slow_is_never_cheaper() -> None:
    found = break_even(1.5, 0.0005, tokens_per_second=10, tokens_out=100)
    assert not found.reachable
    assert "never cheaper: it would need 3,000" in str(found)
    assert "can answer 360" in str(found)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 10), "price_per_hour: expected US dollars an hour, 0 or more, found -1"),
        ((1, 0), "tokens_per_second: expected a number above 0, found 0"),
        ((1, 10, 0), "utilisation: expected a share above 0 up to 1, found 0"),
        ((1, 10, 50), "utilisation: .*found 50"),
        ((1, "10"), "tokens_per_second: .*found '10'"),
        ((1, float("nan")), "tokens_per_second: .*found nan"),
        ((float("inf"), 10), "price_per_hour: .*found inf"),
        ((1, True), "tokens_per_second: .*found True"),
    ],
)
def test_what_is_no_number_of_its_range_is_named(arguments, named) -> None:
    with pytest.raises(CostError, match=named):
        dollars_per_million_tokens(*arguments)


def test_the_other_functions_name_it_as_well() -> None:
    with pytest.raises(CostError, match="usd_out: .*found -0.6"):
        price_per_request(1, 1, 0.4, -0.6)
    with pytest.raises(CostError, match="price_per_request: .*above 0, found 0"):
        break_even(1, 0, 10, 10)
    with pytest.raises(CostError, match="tokens_out: .*found None"):
        break_even(1, 1, 10, None)
