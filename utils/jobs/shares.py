"""Which rows belong to which worker, and losses that count each of them once.

Two things go wrong where a batch, or an evaluation, does not divide evenly. A mean of
the workers' means weighs a token by how few others its worker has. And a worker without
rows, or with one batch fewer, leaves the others waiting: all must take part in each
exchange. So sums are divided by one number for all, and a row may be computed that
counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.helpers import IGNORED

if TYPE_CHECKING:
    import torch

Row = dict[str, list[int]]


def batch_of_step(rows: Sequence[Row], batch_size: int, step: int, seed: int) -> list:
    """Return the rows of a step: of all workers, in an order drawn for each pass.

    It depends on the step alone. So a resumed run takes the rows that it would have
    taken, also in its second pass. The last batch of a pass may be smaller.
    """
    import torch

    steps_a_pass = -(-len(rows) // batch_size)
    passes, place = divmod(step, steps_a_pass)
    generator = torch.Generator().manual_seed(seed + passes)
    drawn = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in drawn[place * batch_size : (place + 1) * batch_size]]


def share_of(batch: list[Row], rank: int, count: int) -> list[Row]:
    """Return one worker's rows of a batch.

    A worker without any takes a row that counts for nothing: the others wait for its
    part in each exchange, and it must take part.
    """
    own = batch[rank::count]
    return own or [{**batch[0], "labels": [IGNORED] * len(batch[0]["labels"])}]


def counted_tokens(rows: Sequence[Row]) -> int:
    """Count the labels that are learned; nothing comes before the first token."""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


def padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Make one batch of rows: ids, mask and labels, each (rows, longest)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    mask = [torch.ones_like(one) for one in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def loss_of(model: Any, rows: Sequence[Row], tokens: int) -> torch.Tensor:
    """Return the sum of the rows' token losses over `tokens`, those of all workers.

    The mean of the workers' means would weigh a token by how few others its worker
    has. A sum over one number for all does not.
    """
    return model(**padded(rows), num_items_in_batch=tokens, use_cache=False).loss


def evaluate(model: Any, rows: Sequence[Row], batch_size: int) -> dict[str, Any]:
    """Measure the loss on rows that the workers divide among them, each counted once.

    All workers must compute as often, or one would wait for ever. So PyTorch's
    DistributedSampler repeats rows from the start where the number of rows does not
    divide. They are computed, and must not count.

    Returns:
        `held_out_loss`, `repeated_loss`, `held_out_rows` and `computed_rows`, as
        `WorkerReport` explains them.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import FSDPModule
    from torch.utils.data import DistributedSampler

    names = ("held_out_loss", "repeated_loss", "held_out_rows", "computed_rows")
    if not rows:
        return dict(zip(names, (None, None, 0, 0), strict=True))
    rank, count = dist.get_rank(), dist.get_world_size()
    sampler = DistributedSampler(range(len(rows)), count, rank, shuffle=False)
    # The sampler deals rows out like cards: this worker's are rank, rank + count, …
    places = [(rank + n * count, index) for n, index in enumerate(sampler)]
    sums = torch.zeros(6, dtype=torch.float64)  # loss, tokens, rows: once, as computed
    model.eval()
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        found = _row_sums(model, [rows[index] for _, index in part])
        once = torch.tensor([place < len(rows) for place, _ in part])  # not repeated
        sums += torch.cat([found[once].sum(0), found.sum(0)])
    model.train()
    if isinstance(model, FSDPModule):
        # A backward pass would have; until then the outermost weights stay gathered.
        model.reshard()
    dist.all_reduce(sums)
    once, computed = sums[:3].tolist(), sums[3:].tolist()
    values = (
        once[0] / once[1],
        computed[0] / computed[1],
        int(once[2]),
        int(computed[2]),
    )
    return dict(zip(names, values, strict=True))


def _row_sums(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Return loss, counted tokens and 1 for each row: (rows, 3)."""
    import torch
    from torch.nn.functional import cross_entropy

    batch = padded(rows)
    wanted = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1]
    losses = cross_entropy(
        logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
    )
    sums = losses.sum(1), (wanted != IGNORED).sum(1), torch.ones(len(rows))
    return torch.stack([one.double() for one in sums], 1)
