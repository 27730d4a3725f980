"""Checks for the exercises of experiment 01, inside attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from utils.exercises.frame import Wrong, exercise, require_type
from utils.tasks import RELATIONS

if TYPE_CHECKING:
    import torch

Head = tuple[int, int]


@exercise("a donor prompt, and a group of heads")
def check_transplant(
    answer: Sequence[Any],
    transplant: Callable[[list[str], list[str], torch.Tensor], list[str]],
    prompt: str,
    wanted: str,
) -> str:
    """Check a donor and heads by what the model answers with them.

    First used in experiment 01_inside_attention, section 5.

    Args:
        answer: the donor prompt and the heads, as a tensor of truth values.
        transplant: runs the model; takes prompts, donors and heads.
        prompt: the prompt that is to be answered otherwise.
        wanted: the answer that the exercise asks for.
    """
    donor, heads = answer
    require_type(str, donor, "a donor prompt, as text")
    if not hasattr(heads, "any"):
        raise Wrong("give one of the groups, such as answer_readers.")
    if wanted in donor:
        raise Wrong(f"the donor holds {wanted!r} itself: show the relation without it.")
    if not donor.endswith(" -"):
        raise Wrong('end the donor in " -", with no space behind it, like the prompt.')
    said = transplant([prompt], [donor], heads)[0]
    if said == wanted:
        return f"the prompt is the same, and the model answers {wanted!r}."
    word = prompt.rpartition("\n")[2].removesuffix(" -")
    of_word = {name for name, r in RELATIONS.items() if r.get(word) == said}
    usual = transplant([prompt], [prompt], heads)[0]
    if said == usual:
        raise Wrong(
            f"the model still answers {said!r}: take the heads that carry the relation."
        )
    if of_word:
        raise Wrong(
            f"the model answers {said!r}, which is another relation of the {word}: "
            f"which relation does your donor have to show for {wanted!r}?"
        )
    raise Wrong(
        f"the model answers {said!r}, which does not fit the {word}: you took over the "
        "donor's word as well."
    )


@exercise("a function of a group and the heads to draw from")
def check_matched(matched: Callable[[list[Head], list[Head]], list[Head]]) -> str:
    """Check a function that draws a control with as many heads from each layer.

    First used in experiment 01_inside_attention, section 6.
    """
    if not callable(matched):
        raise Wrong(f"expected a function, found {type(matched).__name__}.")
    group = [(1, 0), (2, 0), (2, 1), (3, 0)]
    others = [(layer, head) for layer in range(5) for head in range(2, 6)]
    drawn = []
    for _ in range(20):
        try:
            control = matched(list(group), list(others))
        except Exception as error:
            raise Wrong(f"matched(…) raises {type(error).__name__}: {error}") from None
        if not isinstance(control, list | tuple):
            raise Wrong(f"matched(…) returns {type(control).__name__}: return a list.")
        drawn.append(sorted(control))
    for control in drawn:
        if set(control) & set(group):
            raise Wrong("a control holds none of the group's own heads.")
        if not set(control) <= set(others):
            raise Wrong("draw only from the heads that you are given.")
        if len(set(control)) != len(control):
            raise Wrong("a head was drawn twice: draw without putting back.")
        if len(control) != len(group):
            raise Wrong(
                f"the group has {len(group)} heads, this control {len(control)}."
            )
        layers = sorted(layer for layer, _ in control)
        if layers != [1, 2, 2, 3]:
            raise Wrong(
                f"as many heads, but from the layers {layers}; the group's are in "
                "[1, 2, 2, 3]."
            )
    if all(control == drawn[0] for control in drawn):
        raise Wrong("always the same heads: draw them, with random.sample.")
    return "as many heads, from the same layers, drawn anew each time."
