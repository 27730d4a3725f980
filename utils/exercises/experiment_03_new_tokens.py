"""Checks for the exercises of the experiment 03, new tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from utils.exercises.frame import Wrong, exercise, read_number, require_type

RATE = 0.1  # of the one step that is taken


@exercise("the megabytes, a number")
def check_megabytes(
    megabytes: float, rows: int, width: int, matrices: int, bytes_each: int = 2
) -> str:
    """Check how much whole embeddings add to an adapter.

    First used in experiment 03_new_tokens, section 3.

    Args:
        megabytes: the learner's answer.
        rows: tokens of the vocabulary.
        width: numbers of a row.
        matrices: 1 where input and output share one, else 2.
        bytes_each: of a number.
    """
    megabytes = read_number(megabytes, "a number of megabytes")
    right = rows * width * matrices * bytes_each / 1e6

    def close(value: float) -> bool:
        return abs(megabytes - value) <= 0.02 * abs(value)

    if close(right):
        return (
            "more than the adapter's own matrices take, for rows that did not change."
        )
    if close(right * 1e6):
        raise Wrong("these are bytes: a megabyte is a million of them.")
    if close(right * 1e6 / 2**20):
        raise Wrong("these are mebibytes (2²⁰ bytes): a megabyte is a million bytes.")
    if close(right / bytes_each):
        raise Wrong(f"that counts the numbers: each takes {bytes_each} bytes.")
    if close(right / matrices) or close(right * 2 / matrices):
        raise Wrong(
            f"the model has {matrices} such "
            f"{'matrix' if matrices == 1 else 'matrices'}: does it share one for "
            "input and output?"
        )
    raise Wrong("rows, times numbers in a row, times matrices, times bytes a number.")


@exercise("a `LoraConfig`")
def check_token_config(
    config: Any, make_model: Callable[[], Any], token: int, limit: int = 200_000
) -> str:
    """Check a configuration by what one step of training changes.

    First used in experiment 03_new_tokens, section 3.

    Args:
        config: the learner's `LoraConfig`.
        make_model: returns the base with a row for the new token.
        token: its id.
        limit: most numbers that may be trained.
    """
    from peft import LoraConfig, get_peft_model

    require_type(LoraConfig, config, "a `LoraConfig`")
    try:
        model = get_peft_model(make_model(), config)
    except ValueError as error:
        raise Wrong(f"peft refuses it: {str(error).splitlines()[0]}") from None
    trained = model.get_nb_trainable_parameters()[0]
    rows = {
        "input embedding": model.get_input_embeddings(),
        "output layer": model.get_output_embeddings(),
    }
    before = {name: _weight(layer) for name, layer in rows.items()}
    ids = torch.tensor([[token - 1, token, token - 1, token]])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(weights, lr=RATE).step()
    for name, layer in rows.items():
        moved = (_weight(layer) != before[name]).any(dim=1).nonzero().flatten().tolist()
        if token not in moved:
            raise Wrong(
                f"after one step the new row of the {name} is as it was: name the "
                "token for this matrix in `trainable_token_indices`."
            )
        if len(moved) > 1:
            raise Wrong(
                f"{len(moved)} rows of the {name} have moved: only the new one should."
            )
    if trained > limit:
        raise Wrong(f"{trained:,} numbers are trained: the new rows need far fewer.")
    return f"both new rows learn, with {trained:,} numbers to train in all."


def _weight(layer: Any) -> torch.Tensor:
    """Return a copy of the matrix as it is used, with what peft adds to single rows."""
    return layer.weight.detach().clone()
