"""A model before and after it learned from votes: is it right, and as brief?

DPO lowers a loss on pairs. Whether answers get better is another question, and that
they get longer a known side effect (Park et al., arXiv 2403.19159). The margin may grow
while both answers become less likely (Razin et al., arXiv 2410.08847). All of it is
measured, on questions and pairs that trained nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.evaluation.scores import (
    Difference,
    paired_difference,
    token_losses,
)
from utils.models import generate
from utils.training.rehearsals import bare_rows

if TYPE_CHECKING:
    import pandas

    from utils.evaluation.answers import Judge
    from utils.jobs.preference import AnswerPair
    from utils.templates import Template


@dataclass(frozen=True)
class Measured:
    """What a model does with test questions and held-out pairs.

    Attributes:
        answers: to the questions, greedy.
        right: whether each is.
        lengths: tokens of each answer, without what ends it.
        chosen, rejected: log probability of each pair's answers with their end, in
            nats, summed over tokens.
        about: the question of each pair; pairs of one question are drawn together.
    """

    answers: list[str]
    right: list[bool]
    lengths: list[int]
    chosen: list[float]
    rejected: list[float]
    about: list[str] = field(default_factory=list)

    @property
    def margins(self) -> list[float]:
        """How much likelier each chosen answer is than the rejected one, in nats."""
        return [c - r for c, r in zip(self.chosen, self.rejected, strict=True)]


def measure(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Mapping[str, Any]],
    judge: Judge,
    held_out: Sequence[AnswerPair],
    max_new_tokens: int = 64,
) -> Measured:
    """Ask a model the test questions, and score the held-out pairs with it.

    First used in experiment 08_several_workers, section 6.

    Args:
        model: to measure.
        tokenizer: of the model.
        template: that it was tuned in.
        rows: test questions, with what the judge needs.
        judge: of the answers.
        held_out: pairs that trained nothing.
        max_new_tokens: most tokens of an answer.
    """
    prompts = [template.prompt(row["instruction"]) for row in rows]
    answers = generate(model, tokenizer, prompts, max_new_tokens, stop=template.stop)
    ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    sums = {}
    for name in ("chosen", "rejected"):
        texts = [(pair.question, getattr(pair, name)) for pair in held_out]
        sums[name] = log_probabilities(model, tokenizer, template, texts)
    right = list(map(bool, judge.right(answers, rows)))
    return Measured(
        answers=list(answers),
        right=right,
        lengths=[len(one) for one in ids],
        about=[pair.question for pair in held_out],
        **sums,
    )


def log_probabilities(
    model: Any,
    tokenizer: Any,
    template: Template,
    texts: Sequence[tuple[str, str]],
) -> list[float]:
    """Return the log probability of each answer to its question, in nats.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        template: that it is asked in.
        texts: question and answer; what ends the answer counts as well.
    """
    if not texts:
        return []
    records = [{"instruction": q, "response": a} for q, a in texts]
    rows = bare_rows(records, template, None)
    was_training = model.training
    model.eval()
    losses = token_losses(model, tokenizer, rows)
    model.train(was_training)
    return [-float(row.sum()) for row in losses]


@dataclass(frozen=True)
class Change:
    """A figure before and after, and the paired difference with its 95% interval."""

    before: float
    after: float
    difference: Difference

    @property
    def seen(self) -> bool:
        """Whether the interval of the difference leaves out zero.

        The interval says how other questions would have come out, with these weights.
        Another seed of the training may differ by more than it is wide.
        """
        return not self.difference.low <= 0 <= self.difference.high


def changes(
    before: Measured, after: Measured, groups: Sequence[Hashable] | None = None
) -> dict[str, Change]:
    """Return what changed, each figure on the same questions or pairs.

    First used in experiment 08_several_workers, section 6.

    Args:
        before: what was measured first.
        after: the same questions and pairs, later.
        groups: what each question is about; drawn whole. None if each stands alone.
    """
    figures: dict[str, tuple[Sequence[float], Sequence[float], Any]] = {
        "right": (after.right, before.right, groups),
        "tokens of an answer": (after.lengths, before.lengths, groups),
    }
    if before.chosen:
        pairs = before.about or None
        figures |= {
            "margin, nats": (after.margins, before.margins, pairs),
            "log p of the chosen": (after.chosen, before.chosen, pairs),
            "log p of the rejected": (after.rejected, before.rejected, pairs),
        }
    return {
        name: Change(
            sum(base) / len(base),
            sum(scores) / len(scores),
            paired_difference(scores, base, groups=together),
        )
        for name, (scores, base, together) in figures.items()
    }


def changes_table(found: Mapping[str, Change]) -> pandas.DataFrame:
    """Return changes as a table: before, after, difference, interval, whether seen.

    First used in experiment 08_several_workers, section 6.
    """
    import pandas

    rows = {
        name: {
            "before": one.before,
            "after": one.after,
            "difference": one.difference.value,
            "from": one.difference.low,
            "to": one.difference.high,
            "seen": "yes" if one.seen else "no",
        }
        for name, one in found.items()
    }
    return pandas.DataFrame(rows).T
