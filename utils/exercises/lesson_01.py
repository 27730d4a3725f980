"""Checks for the exercises of lesson 01, language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from utils.exercises.frame import Wrong, exercise, read_number, require_type

if TYPE_CHECKING:
    import torch


@exercise("a number of tokens")
def check_survivors(survivors: int, scores: torch.Tensor) -> str:
    """Check how many tokens temperature 2 and then a top-p of 0.9 leave to draw from.

    First used in lesson 01, section 1.

    Args:
        survivors: the learner's answer.
        scores: the model's scores, shape (vocabulary,).
    """

    def kept(temperature: float) -> int:
        chances = (scores / temperature).softmax(-1).sort(descending=True).values
        return int((chances.cumsum(-1) - chances < 0.9).sum())

    count, right = read_number(survivors, "a number of tokens"), kept(2)
    if count == right:
        return "bend first, then cut: that is what stays in the draw."
    if count == right - 1:
        raise Wrong(
            "one is missing: the token with which the sum reaches 0.9 is kept as well."
        )
    if count == len(scores) - right:
        raise Wrong("that many are cut off. How many are left?")
    if count == kept(1):
        raise Wrong(
            "that is top-p at temperature 1. The temperature comes first, and what it "
            "flattens takes more tokens to reach 0.9."
        )
    if count == kept(0.5):
        raise Wrong("these scores were multiplied by 2: a temperature divides them.")
    raise Wrong(
        "divide the scores by 2, cut with a top-p of 0.9, and count the scores that "
        "are not minus infinity."
    )


@exercise("a function of a word and a list of merges")
def check_encode(encode: Callable[[str, list[tuple[str, str]]], list[str]]) -> str:
    """Check a function that cuts a word by byte-pair merges, in their order.

    First used in lesson 01, section 3.
    """
    if not callable(encode):
        raise Wrong(f"expected a function, found {type(encode).__name__}.")

    def cut(word: str, *merges: str) -> list[str]:
        try:
            found = encode(word, [tuple(pair.split("+")) for pair in merges])
        except Exception as error:
            raise Wrong(
                f"encode({word!r}, …) raises {type(error).__name__}: {error}"
            ) from None
        if not isinstance(found, list | tuple):
            raise Wrong(
                f"encode({word!r}, …) returns {type(found).__name__}: return the list "
                "of symbols."
            )
        return list(found)

    if cut("cat") != ["c", "a", "t"]:
        raise Wrong("without merges, a word is the list of its characters.")
    if cut("hehe", "h+e") != ["he", "he"]:
        raise Wrong("a merge joins its pair wherever it stands in the word.")
    if cut("hell", "h+e", "l+l") != ["he", "ll"]:
        raise Wrong(
            "each merge works on what the ones before it have left: go through the "
            "whole list, and keep each result for the next."
        )
    found = cut("abc", "b+c", "a+b")
    if found == ["ab", "c"]:
        raise Wrong(
            'the first merge of the list goes first, as it was learned first: "abc" '
            "with b + c, then a + b, is a, bc. Longer or further left does not count."
        )
    if found != ["a", "bc"]:
        raise Wrong(f'"abc" with the merges b + c, a + b is a, bc; found {found}.')
    if cut("hell", "h+e", "l+l", "he+ll") != ["hell"]:
        raise Wrong("a later merge joins what earlier ones have made.")
    return "words that were never seen are cut by what was learned from others."


@exercise("the second token's three attention weights")
def check_attention_weights(
    weights: Sequence[float], dots: Sequence[float], head_width: int
) -> str:
    """Check the attention weights of the second token, under a causal mask.

    First used in lesson 01, section 5.

    Args:
        weights: the learner's answer.
        dots: products of that token's query with the keys of all tokens, unscaled.
        head_width: the width of the query.
    """
    import torch

    weights = weights.tolist() if hasattr(weights, "tolist") else weights
    require_type((list, tuple), weights, "a list of numbers")
    if len(weights) != len(dots):
        raise Wrong(
            f"{len(weights)} weights for {len(dots)} tokens: give one for each; a "
            "token that is masked gets 0."
        )
    given = torch.tensor([read_number(weight, "numbers") for weight in weights])
    dots = torch.as_tensor(dots, dtype=torch.float)
    scores = dots / head_width**0.5
    earlier = torch.arange(len(dots)) < 2

    def close(scores: torch.Tensor, mask: bool = True) -> bool:
        hidden = scores.masked_fill(~earlier, -torch.inf) if mask else scores
        return torch.allclose(given, hidden.softmax(dim=-1), atol=0.006)

    if close(scores):
        return "the second token sees the first and itself, and nothing that follows."
    if close(scores, mask=False):
        raise Wrong("the third token comes later: a causal mask hides it.")
    if torch.allclose(given, scores.softmax(dim=-1) * earlier, atol=0.006):
        raise Wrong(
            "these do not add up to 1: mask before the softmax, not after it, so that "
            "the shares are shared out anew."
        )
    if close(scores * earlier, mask=False):
        raise Wrong("a score of 0 is not hidden, exp(0) is 1: use minus infinity.")
    if close(dots) or close(dots, mask=False):
        raise Wrong("the products are not scaled: divide by the root of the width.")
    if close(dots / head_width):
        raise Wrong("you divided by the width: divide by its root.")
    if close(scores.masked_fill(torch.arange(len(dots)) < 1, -torch.inf), mask=False):
        raise Wrong("that hides what came before: the mask hides what comes later.")
    if abs(given.sum().item() - 1) > 0.01:
        raise Wrong("attention weights are shares: they add up to 1.")
    raise Wrong(
        "divide the products by the root of the width, put minus infinity where a "
        "later token stands, and take the softmax."
    )


_ADAPTATIONS = {
    "prices": (
        "retrieve",
        {
            "prompt": "a prompt written once is old next week: something must fill it.",
            "fine-tune": "weights would hold last week's prices: facts that change are "
            "looked up.",
        },
    ),
    "summaries": (
        "prompt",
        {
            "fine-tune": "with an example it does well already, and ten letters a week "
            "do not pay for a training run.",
            "retrieve": "the letters themselves hold all that is needed.",
        },
    ),
    "tickets": (
        "fine-tune",
        {
            "prompt": "a million times a day, the long prompt is what costs, and there "
            "are examples enough to do without it.",
            "retrieve": "no fact is missing: a form is to be learned.",
        },
    ),
    "scripts": (
        "pre-train",
        {
            "fine-tune": "tuning shapes what a model can do, and no model can read "
            "this script.",
            "prompt": "a model cannot carry on what it cannot read.",
            "retrieve": "a model cannot use a text that it cannot read.",
        },
    ),
}


@exercise("four ways, one for each team")
def check_adaptation(ways: Mapping[str, str]) -> str:
    """Check the cheapest way to adapt a model that will do, for each of four teams.

    First used in lesson 01, section 9.
    """
    require_type(Mapping, ways, "a dictionary")
    known = {way for way, _ in _ADAPTATIONS.values()}
    for team, (best, hints) in _ADAPTATIONS.items():
        if team not in ways:
            raise Wrong(f"there is no way for {team!r}.")
        way = ways[team]
        if not isinstance(way, str) or way not in known:
            raise Wrong(f"{way!r} is not one of {', '.join(sorted(known))}.")
        if way != best:
            dearer = "that would do, but a far cheaper way does as well."
            raise Wrong(f"{team}: {hints.get(way, dearer)}")
    return "facts are fetched, forms are tuned, and the cheapest way comes first."
