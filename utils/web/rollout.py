"""From an old version to a new one: share the traffic, compare, decide, move, go back.

Both versions are production variants of one endpoint, so that a share of the traffic
is a weight. What decides is a comparison on the same questions, by a rule that is
fixed before the first answer:

- Whether the new version is better is looked at once, after the planned number of
  pairs. Whoever looks after each answer and stops at the first p < 0.05 promotes far
  more than one in twenty versions that are no better (Armitage, McPherson and Rowe,
  JRSS A 132, 1969; Johari et al., KDD 2017, on A/B tests).
- Before that the comparison may only stop for harm. That test may be looked at after
  each answer: its evidence exceeds 1/α at any time with probability α at most (Ville's
  inequality; Robbins, Ann. Math. Stat. 41, 1970).
- Questions about one fact stand and fall together, so a fact counts as one.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import betainc, betaln
from scipy.stats import fisher_exact

from utils.course import CourseError
from utils.deployment.aws import FIRST_POLL
from utils.deployment.request_checks import validate_request
from utils.evaluation.answers import groups_of
from utils.evaluation.scores import (
    Difference,
    Proportion,
    paired_difference,
    proportion,
    questions_needed,
)
from utils.helpers import DEFAULT_SEED

if TYPE_CHECKING:
    from utils.deployment.aws import Aws
    from utils.web.versions import Versions

PROMOTE, KEEP, ROLL_BACK, WAIT = "promote", "keep the old", "roll back", "wait"
LONGEST_POLL = 15  # seconds between looks at an endpoint
SHIFT_TIMEOUT = 1800  # seconds; on AWS new weights take minutes
LARGEST_CANARY = 50  # per cent of the fleet: CanarySize in botocore's model, in prose
SHORTEST_EXECUTION = 600  # seconds: MaximumExecutionTimeoutInSeconds, likewise


class RolloutError(CourseError, ValueError):
    """A comparison or a shift that cannot be as asked; the message says what to do."""


# --- what is compared -----------------------------------------------------------------


@dataclass(frozen=True)
class JudgedPair:
    """One question, answered by both versions, and whether each answer is right.

    Attributes:
        question: as it was asked.
        old: whether the old version's answer is right.
        new: likewise.
        group: what the question is about, such as its fact; None if it stands alone.
        unanswered: the versions that gave no answer; none counts as right.
    """

    question: str
    old: bool
    new: bool
    group: Hashable = None
    unanswered: tuple[str, ...] = ()


def gather(
    rows: Sequence[Mapping[str, Any]],
    versions: tuple[str, str],
    ask: Callable[[str, str], str | None],
    judge: Callable[[Sequence[str], Sequence[Mapping[str, Any]]], Sequence[bool]],
    seed: int = DEFAULT_SEED,
    at_once: int = 1,
) -> list[JudgedPair]:
    """Ask both versions each question, and have the answers judged.

    Which of the two is asked first is drawn for each question, so that neither has the
    warmer cache or the quieter hour.

    First used in lesson 07, section 9.

    Args:
        rows: with `instruction`, and what the judge needs; their groups are those of
            lesson 05 (`utils.evaluation.answers.groups_of`).
        versions: names of the old one and of the new one.
        ask: takes a question and a version's name, such as the `TargetVariant`;
            returns the answer, or None if there was none.
        judge: takes answers and their rows, such as `Judge.right`.
        seed: of the draw.
        at_once: how many are asked together; `ask` is then called by threads.
    """
    draw = random.Random(seed)
    asked = [
        (name, str(row["instruction"]))
        for row in rows
        for name in draw.sample(versions, 2)
    ]
    answers: dict[str, list[str | None]] = {name: [] for name in versions}
    with ThreadPoolExecutor(at_once) as people:
        given = people.map(lambda one: ask(one[1], one[0]), asked)
        for (name, _), answer in zip(asked, given, strict=True):
            answers[name].append(answer)
    right = {
        name: [
            verdict and answer is not None
            for verdict, answer in zip(
                judge([answer or "" for answer in given], rows), given, strict=True
            )
        ]
        for name, given in answers.items()
    }
    old, new = versions
    return [
        JudgedPair(
            str(row["instruction"]),
            right[old][number],
            right[new][number],
            group,
            tuple(name for name in versions if answers[name][number] is None),
        )
        for number, (row, group) in enumerate(zip(rows, groups_of(rows), strict=True))
    ]


def pairs_of(
    judged: Iterable[Mapping[str, Any]], versions: tuple[str, str]
) -> list[JudgedPair]:
    """Pair judged answers of the live traffic, where both versions got a question.

    Most live questions reach one version only. They make no pair; see `compare_live`.
    The pairs come in the order in which they became pairs, so that no later answer
    puts one before another.

    Args:
        judged: with `question`, `version` and `right`, and `group` where it is known,
            in the order of time. Of several answers of one version the first counts.
        versions: names of the old one and of the new one.
    """
    old, new = versions
    first: dict[str, dict[str, Mapping[str, Any]]] = {}
    pairs = []
    for row in judged:
        by = first.setdefault(row["question"], {})
        if row["version"] not in versions or row["version"] in by:
            continue
        by[row["version"]] = row
        if len(by) == 2:
            right = {name: bool(by[name]["right"]) for name in versions}
            group = by[old].get("group")
            pairs.append(JudgedPair(row["question"], right[old], right[new], group))
    return pairs


# --- the rule, and what it decides ----------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What decides, written down before the first answer is seen.

    First used in lesson 07, section 9.

    Attributes:
        min_pairs: after how many pairs the decision is taken. Later ones do not count,
            so that nobody can go on until the result is welcome.
        min_gain: the smallest gain worth a new version, as a difference of shares.
        max_harm: the observed loss from which on a proven one ends the comparison
            early. That there is a loss is proven, not that it is this large.
        alpha: how often a version that is no better may be promoted, at most.
    """

    min_pairs: int
    min_gain: float = 0.0
    max_harm: float = 0.05
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse a rule that decides nothing."""
        for name, right, wanted in (
            ("min_pairs", self.min_pairs >= 1, "1 or more"),
            ("min_gain", 0 <= self.min_gain < 1, "a share from 0, below 1"),
            ("max_harm", 0 <= self.max_harm < 1, "a share from 0, below 1"),
            ("alpha", 0 < self.alpha < 0.5, "a share between 0 and 0.5"),
        ):
            if not right:
                found = getattr(self, name)
                raise RolloutError(f"{name} is {found}: give {wanted}.")

    def __str__(self) -> str:
        return (
            f"after {self.min_pairs} pairs promote a gain of at least "
            f"{_points(self.min_gain)} with p up to {self.alpha:g}; before that, stop "
            f"if a loss is proven and at least {_points(self.max_harm)} are observed"
        )


@dataclass(frozen=True)
class Decision:
    """What a rule says of the pairs that there are.

    Attributes:
        better: whether the new version is shown to be better by enough.
        action: `PROMOTE`, `KEEP`, `ROLL_BACK` or `WAIT`.
        difference: share of right answers, new minus old.
        interval: of the difference at 95%; None before the planned number of pairs,
            where one would be read as if it had been the only look.
        p: of no difference, two-sided; before the planned number the p-value of no
            harm, valid however often it is looked at.
        pairs: how many counted.
        text: all of it in words.
    """

    better: bool
    action: str
    difference: float
    interval: tuple[float, float] | None
    p: float
    pairs: int
    text: str

    def __str__(self) -> str:
        return self.text


def decide(
    pairs: Sequence[JudgedPair], rule: Rule, seed: int = DEFAULT_SEED
) -> Decision:
    """Apply a rule to the pairs gathered so far, in the order in which they came.

    At the planned number: p is the exact sign-flip test over groups. Where each
    question stands alone, that is McNemar's exact test. The interval is the bootstrap
    over groups (`paired_difference`), or Newcombe's where each question stands alone
    or nothing varies. A promotion needs both, and the least gain of the rule.

    First used in lesson 07, section 9.

    Args:
        pairs: all of them, in the order of time.
        rule: fixed beforehand.
        seed: of the bootstrap.

    Raises:
        RolloutError: if there are no pairs.
    """
    if not pairs:
        raise RolloutError("There are no pairs to decide by: gather some first.")
    if len(pairs) < rule.min_pairs:
        return _look_for_harm(pairs, rule)
    pairs = pairs[: rule.min_pairs]
    groups = _groups(pairs)
    p = sign_flip_p(_sums(pairs, groups))
    difference = _interval(pairs, groups, seed)
    low, high = difference.low, difference.high
    gain, proven = difference.value, p <= rule.alpha
    better = proven and low > 0 and gain >= rule.min_gain
    action = PROMOTE if better else ROLL_BACK if proven and gain < 0 else KEEP
    reasons = {
        PROMOTE: "it is better",
        ROLL_BACK: "it is worse",
        KEEP: "it is not shown to be better"
        if not proven or low <= 0
        else f"the gain is below {_points(rule.min_gain)}",
    }
    text = (
        f"{action}: {reasons[action]}. Right answers, new minus old: {_signed(gain)} "
        f"({_signed(low)} to {_signed(high)}), p = {p:.2g}, from {len(pairs)} "
        f"questions in {len(set(groups))} groups"
    )
    if action == KEEP and low < -rule.max_harm:
        text += f"; a loss of more than {_points(rule.max_harm)} cannot be ruled out"
    return Decision(better, action, gain, (low, high), p, len(pairs), text + ".")


def _look_for_harm(pairs: Sequence[JudgedPair], rule: Rule) -> Decision:
    """Decide before the planned number of pairs: to wait, or to stop for harm."""
    signs = _first_differences(pairs)
    losses = sum(sign < 0 for sign in signs)
    p = min(1.0, 1 / max(harm_evidence(losses, len(signs)), 1e-300))
    gain = float(np.mean([pair.new - pair.old for pair in pairs]))
    harmful = p <= rule.alpha and gain < 0 and gain <= -rule.max_harm
    action = ROLL_BACK if harmful else WAIT
    text = f"{action}: {len(pairs)} of {rule.min_pairs} pairs"
    if harmful:
        text += (
            f", and the new version lost in {losses} of the {len(signs)} groups that "
            f"tell them apart (p = {p:.2g}, however often one looks)."
        )
    else:
        text += ". Nothing else can be decided yet."
    return Decision(False, action, gain, None, p, len(pairs), text)


def _groups(pairs: Sequence[JudgedPair]) -> list[Hashable]:
    """Return the groups; a question without one is a group of its own."""
    return [
        ("alone", number) if pair.group is None else ("group", pair.group)
        for number, pair in enumerate(pairs)
    ]


def _sums(pairs: Sequence[JudgedPair], groups: Sequence[Hashable]) -> list[int]:
    """Return for each group by how many right answers the new version is ahead."""
    sums: dict[Hashable, int] = {}
    for pair, group in zip(pairs, groups, strict=True):
        sums[group] = sums.get(group, 0) + int(pair.new) - int(pair.old)
    return list(sums.values())


def _first_differences(pairs: Sequence[JudgedPair]) -> list[int]:
    """Return the sign of each group's first pair that tells the versions apart.

    A group's sum may still change its sign when more of its questions come; the first
    difference does not, as a test that is looked at again and again needs it.
    """
    first: dict[Hashable, int] = {}
    for pair, group in zip(pairs, _groups(pairs), strict=True):
        if pair.new != pair.old:
            first.setdefault(group, 1 if pair.new else -1)
    return list(first.values())


def _interval(
    pairs: Sequence[JudgedPair], groups: Sequence[Hashable], seed: int
) -> Difference:
    """Return the difference with its interval at 95%."""
    old, new = [pair.old for pair in pairs], [pair.new for pair in pairs]
    number = len(set(groups))
    if number < len(pairs):
        found = paired_difference(new, old, seed, groups)
        if found.low < found.high:
            return found
    # As many pairs as there are groups, should they all be alike.
    counts = {
        (b, a): sum((pair.old, pair.new) == (b, a) for pair in pairs)
        for b in (True, False)
        for a in (True, False)
    }
    parts = [
        divmod(counts[key] * number, len(pairs)) for key in sorted(counts, reverse=True)
    ]
    whole = [part for part, _ in parts]
    # What is left goes to the largest remainders, so that the sum is right.
    places = sorted(range(len(parts)), key=lambda place: -parts[place][1])
    for place in places[: number - sum(whole)]:
        whole[place] += 1
    low, high = newcombe_interval(*whole)
    gain = (counts[False, True] - counts[True, False]) / len(pairs)
    return Difference(gain, min(low, gain), max(high, gain), len(pairs))


def sign_flip_p(sums: Iterable[int]) -> float:
    """Return how likely a difference at least as large is if the versions are alike.

    If they are, each group could as well have come out the other way round. The sum
    over groups is compared with those of all ways to turn some of them, counted
    exactly (Fisher, The Design of Experiments, 1935, section 21; for groups Canay,
    Romano and Shaikh, Econometrica 85, 2017). Where each group has one question, it is
    McNemar's exact test.

    Args:
        sums: for each group, by how many right answers one version is ahead.
    """
    sums = [int(one) for one in sums if one]
    chances = np.ones(1)  # of each sum, from the least to the most
    for size in map(abs, sums):
        turned = np.zeros(len(chances) + 2 * size)
        turned[: len(chances)] += chances / 2
        turned[2 * size :] += chances / 2
        chances = turned
    most = sum(map(abs, sums))
    reached = np.abs(np.arange(-most, most + 1)) >= abs(sum(sums))
    return min(1.0, float(chances[reached].sum()))


def harm_evidence(losses: int, decided: int) -> float:
    """Return how much better harm explains the losses than a fair coin does.

    The likelihood of a loss's chance p, averaged over p from 1/2 to 1, against that of
    1/2: ∫ 2 p^x (1-p)^(n-x) dp / 2^-n. Whatever the chance is up to 1/2, the ratio is a
    supermartingale that begins at 1, so that it ever reaches 1/α with probability α at
    most (Ville, 1939; the mixture is Robbins's, Ann. Math. Stat. 41, 1970).

    Args:
        losses: groups in which the new version is the worse one.
        decided: groups in which the two differ.
    """
    a, b = losses + 1, decided - losses + 1
    above_half = 1 - betainc(a, b, 0.5)
    if above_half <= 0:
        return 0.0
    log = (decided + 1) * math.log(2) + betaln(a, b) + math.log(above_half)
    return math.exp(min(log, 700.0))


def newcombe_interval(
    both: int, old_only: int, new_only: int, neither: int
) -> tuple[float, float]:
    """Return the interval at 95% of a difference of two shares on the same questions.

    Method 10 of Newcombe, Statistics in Medicine 17, 1998, pages 2635-2650: Wilson's
    limits of both shares, and the correlation between them. It has a width even where
    no question tells the two apart.

    Args:
        both: questions that both versions answered rightly.
        old_only: only the old one.
        new_only: only the new one.
        neither: none of them.

    Raises:
        RolloutError: if there are no questions.
    """
    n = both + old_only + new_only + neither
    if not n:
        raise RolloutError("There are no questions to compare: gather some first.")
    new, old = both + new_only, both + old_only
    a, b, c, d = both, new_only, old_only, neither
    product = new * (n - new) * old * (n - old)
    excess = a * d - b * c
    if excess > 0:
        excess = max(excess - n / 2, 0)
    correlation = excess / math.sqrt(product) if product else 0.0
    one, other = _wilson(new, n), _wilson(old, n)
    below, above = one.value - one.low, other.high - other.value
    left = math.sqrt(below**2 - 2 * correlation * below * above + above**2)
    above, below = one.high - one.value, other.value - other.low
    right = math.sqrt(above**2 - 2 * correlation * above * below + below**2)
    gain = one.value - other.value
    return gain - left, gain + right


@functools.lru_cache(maxsize=4096)
def _wilson(hits: int, n: int) -> Proportion:
    return proportion([True] * hits + [False] * (n - hits))


def pairs_needed(
    gain: float, disagreement: float, power: float = 0.8, design_effect: float = 1.0
) -> int:
    """Return how many pairs a rule should plan for, to find a gain that is there.

    That of `questions_needed`, and 2/gain more, by which the exact test is the
    stricter one: what the correction for continuity adds, to the first order (Fleiss,
    Levin and Paik, Statistical Methods for Rates and Proportions, 2003).

    Args:
        gain: the difference of shares that is worth finding.
        disagreement: share of questions that only one version answers rightly.
        power: how often it should be found.
        design_effect: 1 + (m - 1)·r for m questions in a group, alike by r (Kish,
            Survey Sampling, 1965); 1 if each question stands alone.

    Raises:
        RolloutError: if the disagreement is not at least the gain.
    """
    if not 0 < gain <= disagreement <= 1:
        raise RolloutError(
            f"gain is {gain} and disagreement {disagreement}: a gain lies above 0, and "
            "the versions disagree at least as often as one is better."
        )
    spread = math.sqrt(disagreement - gain**2)
    least = questions_needed(spread, gain, power) if spread else 0
    return math.ceil((least + 2 / gain) * design_effect)


# --- a second look: the live traffic and its thumbs -----------------------------------


@dataclass(frozen=True)
class LiveComparison:
    """Two versions' shares, each from questions of its own.

    Attributes:
        old: share and interval at 95%; None if there is nothing to count.
        new: likewise.
        interval: of the difference, new minus old; None if one of them is.
        p: Fisher's exact test, two-sided.
        text: all of it in words.
    """

    old: Proportion | None
    new: Proportion | None
    interval: tuple[float, float] | None
    p: float
    text: str

    def __str__(self) -> str:
        return self.text


def compare_live(
    hits: Mapping[str, Sequence[bool]], versions: tuple[str, str], what: str = "right"
) -> LiveComparison:
    """Compare shares of the live traffic, where each question reached one version.

    Without pairs it takes several times as many answers. The interval is Newcombe's
    for independent shares (method 10 of Statistics in Medicine 17, 1998, pages
    873-890).

    Args:
        hits: name of a version → whether each of its answers counts.
        versions: names of the old one and of the new one.
        what: an answer counts as.
    """
    shares = [proportion(hits[name]) if hits.get(name) else None for name in versions]
    old, new = shares
    said = "; ".join(
        f"{name}: {share.value:.0%} of {share.n} {what}" if share else f"{name}: none"
        for name, share in zip(versions, shares, strict=True)
    )
    if old is None or new is None:
        return LiveComparison(old, new, None, 1.0, f"{said}. Not to be compared.")
    gain = new.value - old.value
    low = gain - math.hypot(new.value - new.low, old.high - old.value)
    high = gain + math.hypot(new.high - new.value, old.value - old.low)
    counts = [[sum(hits[name]), len(hits[name]) - sum(hits[name])] for name in versions]
    p = float(fisher_exact(counts).pvalue)
    text = f"{said}. Difference {_signed(gain)} ({_signed(low)} to {_signed(high)})"
    return LiveComparison(old, new, (low, high), p, f"{text}, p = {p:.2g}.")


def compare_feedback(
    records: Iterable[Mapping[str, Any]], versions: tuple[str, str]
) -> LiveComparison:
    """Compare the thumbs of two versions; it is a second look and decides nothing.

    Only who was moved to click is counted, and not at random.

    Args:
        records: items of the table of answers, with `version` and, where there was
            feedback, `thumb`.
        versions: names of the old one and of the new one.
    """
    rows = [row for row in records if row.get("version") in versions]
    thumbs = {
        name: [
            row["thumb"] == "up"
            for row in rows
            if row["version"] == name and row.get("thumb")
        ]
        for name in versions
    }
    found = compare_live(thumbs, versions, "thumbs up")
    given, n = sum(map(len, thumbs.values())), len(rows)
    text = f"{found.text} {given} of {n} answers had feedback."
    return LiveComparison(found.old, found.new, found.interval, found.p, text)


# --- the traffic ----------------------------------------------------------------------


def shift(aws: Aws, endpoint: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Share the traffic out by new weights, and wait until AWS does so.

    No container starts or stops, so that no request fails. A variant with weight 0
    goes on billing, and answers who names it as `TargetVariant`.

    Args:
        aws: the account.
        endpoint: its name.
        weights: one for each variant; only their ratio counts.

    Returns:
        Name of a variant → its share of the traffic.

    Raises:
        RolloutError: if a variant is missing or unknown, the weights share nothing
            out, or AWS does not do it.
    """
    client = aws.session.client("sagemaker")
    there = set(_variants(client, endpoint))
    if set(weights) != there:
        raise RolloutError(
            f"The weights are for {_named(weights)}, and {endpoint} has the variants "
            f"{_named(there)}: give each of them a weight."
        )
    usable = all(math.isfinite(one) and one >= 0 for one in weights.values())
    total = sum(weights.values())
    if not usable or not total:
        raise RolloutError(
            f"The weights are {dict(weights)}: give numbers from 0, one above 0."
        )
    client.update_endpoint_weights_and_capacities(
        EndpointName=endpoint,
        DesiredWeightsAndCapacities=[
            {"VariantName": name, "DesiredWeight": float(weight)}
            for name, weight in weights.items()
        ],
    )
    _wait_for(client, endpoint, weights)
    return {name: weight / total for name, weight in weights.items()}


def promote(
    aws: Aws,
    endpoint: str,
    variant: str,
    decision: Decision,
    versions: Versions,
    number: int,
    by: str,
) -> dict[str, float]:
    """Give a variant all of the traffic, and approve its version in the registry.

    The traffic goes first: should the registry fail, its error says so, and the call
    can be repeated.

    First used in lesson 07, section 9.

    Args:
        aws: the account.
        endpoint: its name.
        variant: of the new version.
        decision: that the new version is better; noted as the reason.
        versions: the registry.
        number: of the new version there.
        by: whose decision it is.

    Returns:
        Name of a variant → its share of the traffic.

    Raises:
        RolloutError: if the decision is another one. Nothing is changed then.
        VersionError: if a later version is live; likewise.
    """
    if not decision.better:
        raise RolloutError(f"Nothing to promote. The decision was: {decision.text}")
    versions.require_latest(number)
    shares = _all_to(aws, endpoint, variant)
    versions.approve(number, by, decision.text)
    return shares


def roll_back(
    aws: Aws,
    endpoint: str,
    variant: str,
    why: str,
    versions: Versions,
    number: int,
    by: str,
) -> dict[str, float]:
    """Give the old variant all of the traffic, and reject the new version.

    First used in lesson 07, section 9.

    Args:
        aws: the account.
        endpoint: its name.
        variant: of the old version.
        why: the reason, for the registry.
        versions: the registry.
        number: of the new version there.
        by: whose decision it is.

    Returns:
        Name of a variant → its share of the traffic.
    """
    shares = _all_to(aws, endpoint, variant)  # first of all, users are served
    versions.reject(number, by, why)
    return shares


def deployment_config(
    alarms: Sequence[str], percent: int = 10, wait: int = 300, linger: int = 300
) -> dict[str, Any]:
    """Return the DeploymentConfig of a canary that its alarms take back.

    It is SageMaker's own guardrail: `update_endpoint` starts a second fleet, which
    costs as much as the first for as long as it lasts.

    Args:
        alarms: names of CloudWatch alarms, at least one.
        percent: of the traffic that goes to the new fleet first, 1 to 50.
        wait: seconds in which the alarms are watched, after each of the two steps.
        linger: seconds for which the old fleet stays, to go back to.

    Raises:
        RolloutError: if nothing watches, or the canary is too large.
        RequestError: if botocore's model refuses a value.
    """
    if not alarms:
        raise RolloutError("A canary without an alarm is never taken back: name one.")
    if not 1 <= percent <= LARGEST_CANARY:
        raise RolloutError(f"percent is {percent}: give 1 to {LARGEST_CANARY}.")
    size = {"Type": "CAPACITY_PERCENT", "Value": percent}
    routing = {"Type": "CANARY", "CanarySize": size, "WaitIntervalInSeconds": wait}
    config = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": linger,
            # Twice the waits, so that AWS has as much time for the machines.
            "MaximumExecutionTimeoutInSeconds": max(
                SHORTEST_EXECUTION, 2 * (2 * wait + linger)
            ),
        },
        "AutoRollbackConfiguration": {
            "Alarms": [{"AlarmName": name} for name in alarms]
        },
    }
    names = {"EndpointName": "endpoint", "EndpointConfigName": "configuration"}
    validate_request("sagemaker", "update_endpoint", **names, DeploymentConfig=config)
    return config


def _all_to(aws: Aws, endpoint: str, variant: str) -> dict[str, float]:
    names = _variants(aws.session.client("sagemaker"), endpoint)
    if variant not in names:
        raise RolloutError(
            f"{endpoint} has no variant {variant!r}. There are: {_named(names)}."
        )
    return shift(aws, endpoint, {name: 100.0 * (name == variant) for name in names})


def _variants(client: Any, endpoint: str) -> dict[str, float]:
    """Return the weight of each variant."""
    found = client.describe_endpoint(EndpointName=endpoint)
    return {
        one["VariantName"]: one.get("CurrentWeight", 0.0)
        for one in found.get("ProductionVariants", [])
    }


def _wait_for(client: Any, endpoint: str, weights: Mapping[str, float]) -> None:
    """Wait until an endpoint is in service with these weights."""
    deadline, pause = time.monotonic() + SHIFT_TIMEOUT, FIRST_POLL
    while True:
        found = client.describe_endpoint(EndpointName=endpoint)
        status = found["EndpointStatus"]
        now = _variants(client, endpoint)
        # AWS keeps weights with the seven digits of a 32-bit number.
        moved = all(
            math.isclose(now[name], weight, rel_tol=1e-5)
            for name, weight in weights.items()
        )
        if status == "InService" and moved:
            return
        if status in ("Failed", "OutOfService") or time.monotonic() > deadline:
            raise RolloutError(
                f"{endpoint} is {status} with the weights {now}, not {dict(weights)}: "
                f"{found.get('FailureReason', 'no reason is given')}. Look at it in "
                "the console before you ask again."
            )
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_POLL)


def _named(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} points"
