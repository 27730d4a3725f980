"""Whether a new version takes the place of the live one, and why.

It is promoted only if it answers the same test questions better than the live one, by
more than chance explains, and well enough. The reason is a sentence with its figures,
for the registry.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from utils.course import CourseError


class DecisionError(CourseError, ValueError):
    """Answers that decide nothing; the message says what to change."""


@dataclass(frozen=True)
class Decision:
    """Whether the new version takes the place of the live one, and why.

    Attributes:
        promote: whether it does.
        why: the reason in plain words, with the figures that it rests on.
        live: the live version's share of right answers; None if there is none.
        new: the new version's.
        gain: new minus live; None if there is no live version.
        low: of the gain's interval at 95%.
        high: likewise.
        p: of no difference, two-sided, by the exact sign-flip test over groups.
        questions: how many were asked.
        groups: how many of them stand for themselves.
    """

    promote: bool
    why: str
    live: float | None
    new: float
    gain: float | None
    low: float | None
    high: float | None
    p: float | None
    questions: int
    groups: int

    def describe(self) -> dict[str, Any]:
        """Return it as JSON takes it; `Decision(**…)` reads it."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """Return the figures that the registry notes."""
        found = {"right": self.new, "live_right": self.live, "p": self.p}
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        return self.why


def compare(
    live_right: Sequence[bool] | None,
    new_right: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    min_gain: float = 0.0,
    alpha: float = 0.05,
    floor: float = 0.0,
) -> Decision:
    """Decide whether a new version is promoted, from answers to the same questions.

    It is if it is shown to be better (`utils.web.rollout.decide`, whose test is exact
    and counts each group once) and reaches the floor. Without a live version only the
    floor decides.

    Args:
        live_right: whether each answer of the live version is right; None if there is
            no live version.
        new_right: likewise of the new one, in the same order.
        groups: what each question is about, such as its fact; None if each stands for
            itself.
        min_gain: the least gain worth a new version, as a difference of shares.
        alpha: how often a version that is no better may be promoted, at most.
        floor: the least share of right answers with which a version may serve.

    Raises:
        DecisionError: if there are no answers, or not as many of each.
    """
    from utils.web.rollout import JudgedPair, Rule, decide

    n = len(new_right)
    groups = list(range(n)) if groups is None else list(groups)
    live = new_right if live_right is None else live_right
    if not n or len(live) != n or len(groups) != n:
        raise DecisionError(
            f"{n} answers of the new version, {len(live)} of the live one and "
            f"{len(groups)} groups: give as many of each, at least one."
        )
    share = sum(map(bool, new_right)) / n
    against = []
    if share < floor:
        against.append(f"{share:.1%} right is below the floor of {floor:.1%}")
    number = len(set(groups))
    if live_right is None:
        why = "promote: the first version, with none to compare it with"
        if against:
            why = "refuse: " + "; ".join(against)
        why += f". {share:.1%} of {n} questions right."
        return Decision(not against, why, None, share, *[None] * 4, n, number)
    pairs = [
        JudgedPair("", bool(old), bool(new), group)
        for old, new, group in zip(live_right, new_right, groups, strict=True)
    ]
    found = decide(pairs, Rule(n, min_gain=min_gain, alpha=alpha))
    promote = found.better and not against
    if found.better:
        why = found.text if promote else f"refuse: {'; '.join(against)}. ({found.text})"
    else:
        # Not "keep" or "roll back": the candidate never served.
        reason = found.text.partition(": ")[2]
        why = "refuse: " + "; ".join([*against, reason])
    old_share = sum(map(bool, live_right)) / n
    low, high = found.interval or (None, None)
    gain, p = found.difference, found.p
    return Decision(promote, why, old_share, share, gain, low, high, p, n, number)
