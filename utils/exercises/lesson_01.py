"""Checks for the exercises of lesson 01, language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.exercises.frame import NotTried, Wrong, exercise

if TYPE_CHECKING:
    import torch


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


@exercise("a function of queries, keys, values and `window`")
def check_window(
    attend: Callable[..., torch.Tensor], next_word: Callable[[Callable[..., Any]], str]
) -> str:
    """Check a causal attention that sees only the nearest tokens, and let it speak.

    First used in lesson 01, section 6.

    Args:
        attend: the learner's function of queries, keys and values, each of the shape
            (heads, tokens, width), and `window`.
        next_word: runs the model with such a function, and returns its next word.
    """
    import torch

    if not callable(attend):
        raise Wrong(f"expected a function, found {type(attend).__name__}.")
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, 2, 6, 4, generator=generator)
    distance = torch.arange(6)[:, None] - torch.arange(6)

    def outputs(hidden: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        scores = tensors[0] @ tensors[1].mT / scale
        return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ tensors[2]

    def run(window: int) -> torch.Tensor:
        try:
            found = attend(*tensors.clone(), window=window)
        except Exception as error:
            raise Wrong(
                f"attend_nearby(…, window={window}) raises {type(error).__name__}: "
                f"{error}"
            ) from None
        if getattr(found, "shape", None) != tensors[2].shape:
            raise Wrong(
                "return one output for each token: a tensor of the same shape as the "
                "values."
            )
        return found

    def same(window: int, expected: torch.Tensor) -> bool:
        return torch.allclose(run(window), expected, atol=1e-4, equal_nan=True)

    later = distance < 0
    right = {w: outputs(later | (distance >= w)) for w in (1, 2, 3, 6)}
    if all(same(window, expected) for window, expected in right.items()):
        word = next_word(lambda q, k, v: attend(q, k, v, window=3))
        return f"with a window of three tokens the model goes on with {word!r}."
    if same(3, right[3]) and same(2, right[3]):
        raise Wrong("3 is right, but only 3: use `window` in the mask.")
    if same(2, outputs(distance >= 2)):
        raise Wrong("the nearest tokens are right, but later ones are visible again.")
    if same(2, outputs(distance.abs() >= 2)):
        raise Wrong("your window looks ahead as well: hide what comes later, too.")
    if same(2, outputs(later)):
        raise NotTried("change the mask, so that it hides what the window leaves out.")
    if same(2, outputs(later | (distance > 2))):
        raise Wrong(
            "your window is one token too wide: it counts the token itself, so with "
            "window=2 there is room for one other."
        )
    if same(2, outputs(later | (distance >= 2), scale=1.0)):
        raise Wrong("the scores are not divided by the root of the width any more.")
    if run(2).isnan().any():
        raise Wrong(
            "some tokens see nothing at all, not even themselves, so the softmax has "
            "nothing to share out."
        )
    raise Wrong(
        "put minus infinity, before the softmax, on what comes later and on what lies "
        "`window` places back or more."
    )


@exercise("a function of scores and ids")
def check_loss(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: Any,
    ids: torch.Tensor,
) -> str:
    """Check a next-token loss against what the library computes on a model.

    First used in lesson 01, section 8.

    Args:
        loss: the learner's function of scores (tokens, vocabulary) and ids (tokens,).
        model: a causal language model.
        ids: of one text, shape (1, tokens).
    """
    import torch
    from torch.nn.functional import cross_entropy

    if not callable(loss):
        raise Wrong(f"expected a function, found {type(loss).__name__}.")
    with torch.no_grad():
        output = model(ids, labels=ids)
    scores, text = output.logits[0].float(), ids[0]
    try:
        given = loss(scores.clone(), text.clone())
    except Exception as error:
        raise Wrong(
            f"next_token_loss(scores, ids) raises {type(error).__name__}: {error}"
        ) from None
    given = given if hasattr(given, "item") else torch.tensor(given)
    if given.numel() != 1:
        raise Wrong(f"that is {given.numel()} numbers: the loss is their mean.")
    found, expected = given.item(), cross_entropy(scores[:-1], text[1:]).item()

    def close(other: Any) -> bool:
        return abs(found - float(other)) < 1e-3 * max(1.0, abs(float(other)))

    if close(expected):
        return "the library computes the same. `labels=ids` makes it shift by itself."
    if close(cross_entropy(scores, text)):
        raise Wrong(
            "this scores how well each token predicts *itself*: shift by one, so that "
            "the scores at one place meet the next id."
        )
    if close(cross_entropy(scores[1:], text[:-1])):
        raise Wrong("shifted the wrong way: this asks for the token *before*.")
    if close(cross_entropy(scores, text.roll(-1))):
        raise Wrong(
            "the last scores meet the first id here: leave out the last scores, which "
            "have no next token."
        )
    if close(-expected):
        raise Wrong("the sign: a loss is *minus* the log probability.")
    if close(expected * (len(text) - 1)):
        raise Wrong("that is the sum: take the mean.")
    chances = scores.softmax(dim=-1)[:-1].gather(1, text[1:, None])
    if close(-chances.mean().log()):
        raise Wrong("the mean of the logarithms, not the logarithm of the mean.")
    if close(chances.mean()) or close(-chances.mean()):
        raise Wrong("that is the mean probability: take logarithms first.")
    raise Wrong("leave out the last scores and the first id, and take the mean −log P.")
