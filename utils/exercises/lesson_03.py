"""Checks for the exercises of lesson 03, data set and template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from utils.exercises.frame import Wrong, exercise, require_type
from utils.helpers import IGNORED

CLOSE = 0.01  # nats by which two losses may differ
COLUMNS = ("input_ids", "attention_mask", "labels")
SHARE = 0.2  # of the rows that are held out
SLACK = 0.08  # by which the share may be missed, because groups stay whole


@exercise("a list of labels, one for each token")
def check_labels(
    labels: Sequence[int], prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> str:
    """Check labels: -100 over the prompt, the token ids over the completion.

    First used in lesson 03, section 4.
    """
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    require_type((list, tuple), labels, "a list of numbers")
    labels, prompt, completion = list(labels), list(prompt_ids), list(completion_ids)
    right = [IGNORED] * len(prompt) + completion
    if labels == right:
        return "the loss sees the answer and its end, and nothing of the prompt."
    if labels == prompt + completion:
        raise Wrong(
            f"the prompt has labels too, so the model would learn to write questions. "
            f"Put {IGNORED} there."
        )
    if labels == completion:
        raise Wrong(
            f"{len(labels)} labels for {len(right)} tokens: the prompt needs labels as "
            f"well, {IGNORED} each."
        )
    if labels == right[1:] + [IGNORED] or labels == right[1:]:
        raise Wrong(
            "these are shifted by one. The model shifts by itself: a label stands at "
            "the place of its own token."
        )
    if labels == [0] * len(prompt) + completion:
        raise Wrong(f"0 is a token like any other. What PyTorch ignores is {IGNORED}.")
    if len(labels) == len(right) and labels[: len(prompt)] == right[: len(prompt)]:
        raise Wrong(
            "some of the completion is masked or changed. All of it is learned, the "
            "end of the turn included: that is how the model learns to stop."
        )
    if len(labels) != len(right):
        raise Wrong(f"{len(labels)} labels for {len(right)} tokens: give one for each.")
    raise Wrong(
        f"start with {IGNORED} as often as the prompt has tokens; then come the "
        "completion's own ids."
    )


@exercise("`my_collate`, once you have corrected it")
def check_collate(
    collate: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    rows: Sequence[Mapping[str, Sequence[int]]],
    model: Any,
) -> str:
    """Check a collator by what the model makes of its batch.

    The loss of the batch must be the loss of the same rows, each read alone: padding
    changes nothing.

    First used in lesson 03, section 5.

    Args:
        collate: the learner's function.
        rows: with `input_ids` and `labels`, of different lengths.
        model: that reads them.
    """
    if not callable(collate):
        raise Wrong(
            f"expected the function itself, found {type(collate).__name__}: write "
            "`answer = my_collate`, without brackets."
        )
    batch = collate([dict(row) for row in rows])
    require_type(Mapping, batch, "a dictionary of tensors from your function")
    missing = [name for name in COLUMNS if name not in batch]
    if missing:
        raise Wrong(f"the batch has no {missing[0]!r}.")
    longest = max(len(row["input_ids"]) for row in rows)
    for name in COLUMNS:
        require_type(torch.Tensor, batch[name], f"a tensor as {name!r}")
        if tuple(batch[name].shape) != (len(rows), longest):
            raise Wrong(
                f"{name!r} has the shape {tuple(batch[name].shape)}: {len(rows)} rows "
                f"and {longest} tokens are ({len(rows)}, {longest})."
            )
    ids, mask, labels = (batch[name] for name in COLUMNS)
    if (ids < 0).any():
        raise Wrong(
            f"no token has the id {int(ids.min())}: pad `input_ids` with a token that "
            f"exists. {IGNORED} is for the labels."
        )
    real = sum(len(row["input_ids"]) for row in rows)
    if int(mask.sum()) > real:
        raise Wrong(
            "the attention mask is 1 over padding, so the model reads it as text."
        )
    if int(mask.sum()) < real:
        raise Wrong(
            "the attention mask is 0 over a token of a row. A row may hold the padding "
            "token itself: go by the length of each row and compare nothing."
        )
    learned = sum(_learned(row["labels"]) for row in rows)
    found = sum(_learned(row) for row in labels.tolist())
    if found > learned:
        raise Wrong(
            f"{found} labels count for the loss where the rows have {learned}: the "
            f"loss sees padding. Pad the labels with {IGNORED}."
        )
    if found < learned:
        raise Wrong(f"{found} labels count for the loss where the rows have {learned}.")
    alone, together = _loss_alone(model, rows), _loss(model, ids, mask, labels)
    if abs(alone - together) > CLOSE:
        raise Wrong(
            f"the model's loss is {together:.3f} on the batch and {alone:.3f} on the "
            "rows one by one: ids, mask and labels must be padded on the same side."
        )
    return (
        f"the loss is {together:.2f} on the batch, and the same on the rows one by one."
    )


def _learned(labels: Sequence[int]) -> int:
    """Return how many labels count; the first one has nothing before it."""
    return sum(label != IGNORED for label in list(labels)[1:])


def _loss(model: Any, ids: Any, mask: Any, labels: Any) -> float:
    with torch.no_grad():
        output = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            labels=labels.to(model.device),
        )
    return float(output.loss)


def _loss_alone(model: Any, rows: Sequence[Mapping[str, Sequence[int]]]) -> float:
    """Return the mean loss over all labelled tokens, of rows that are read alone."""
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([list(row[n])]) for n in ("input_ids", "labels"))
        learned = _learned(row["labels"])
        total += learned * _loss(model, ids, torch.ones_like(ids), labels)
        count += learned
    return total / count


@exercise("`hold_out`, once you have changed it")
def check_hold_out(
    hold_out: Callable[[Sequence[Mapping[str, Any]], int], tuple[list, list]],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """Check a split by what it does to rows: groups whole, a fifth held out.

    First used in lesson 03, section 6.

    Args:
        hold_out: takes rows and a seed, returns rows to train with and rows to test.
        rows: with `instruction` and `group`.
    """
    if not callable(hold_out):
        raise Wrong(
            f"expected the function itself, found {type(hold_out).__name__}: write "
            "`answer = hold_out`, without brackets."
        )
    try:
        train, test = (list(part) for part in hold_out(list(rows), 0))
    except (TypeError, ValueError) as error:
        raise Wrong(
            f"the function must return two lists, train and test ({error})."
        ) from None
    given = sorted(row["instruction"] for row in rows)
    if sorted(row["instruction"] for row in [*train, *test]) != given:
        raise Wrong(
            f"{len(train)} and {len(test)} rows came back of {len(rows)}: each row "
            "belongs in exactly one part."
        )
    groups = {row["group"] for row in train}
    leaked = [row for row in test if row["group"] in groups]
    if leaked:
        raise Wrong(
            f"{len(leaked)} of {len(test)} test questions ask for something that is "
            f"trained, such as {leaked[0]['instruction']!r}: shuffle the groups and "
            "keep each one whole."
        )
    share = len(test) / len(rows)
    if abs(share - SHARE) > SLACK:
        raise Wrong(f"{share:.0%} of the rows are held out: make it about {SHARE:.0%}.")
    again = hold_out(list(rows), 0)[1]
    if [row["instruction"] for row in again] != [row["instruction"] for row in test]:
        raise Wrong(
            "the same seed gives another split: draw with `random.Random(seed)`, and "
            "sort a set before you shuffle it."
        )
    other = hold_out(list(rows), 1)[1]
    if {row["group"] for row in other} == {row["group"] for row in test}:
        raise Wrong("another seed gives the same split: use `seed` in the shuffling.")
    return (
        f"{len(test)} questions held out, and none asks for anything that is trained."
    )
