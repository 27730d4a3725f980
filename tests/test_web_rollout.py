"""A rollout: what a rule decides where the truth is known, and traffic that moves.

It takes about 25 seconds.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError
from scipy.stats import binom, binomtest

from support.endpoints import AMI, answering, ask, new_config
from utils.deployment.request_checks import RequestError
from utils.web.rollout import (
    KEEP,
    PROMOTE,
    ROLL_BACK,
    WAIT,
    Decision,
    JudgedPair,
    RolloutError,
    Rule,
    compare_feedback,
    compare_live,
    decide,
    deployment_config,
    gather,
    harm_evidence,
    newcombe_interval,
    pairs_needed,
    pairs_of,
    promote,
    roll_back,
    shift,
    sign_flip_p,
)
from utils.web.versions import VersionError, Versions

SIMULATIONS = 500


def drawn(
    generator: np.random.Generator, n: int, gain: float, disagreement: float
) -> list[JudgedPair]:
    """Pairs of which only one version is right in a share, `gain` more the new one."""
    places = generator.random(n)
    only_new = places < (disagreement + gain) / 2
    only_old = (places >= (disagreement + gain) / 2) & (places < disagreement)
    both = places > (1 + disagreement) / 2
    return [
        JudgedPair("question", bool(old or two), bool(new or two))
        for old, new, two in zip(only_old, only_new, both, strict=True)
    ]


def in_groups(
    generator: np.random.Generator, groups: int, size: int, disagreement: float
) -> list[JudgedPair]:
    """Pairs of versions alike; all questions of a group come out the same way."""
    found = []
    for group in range(groups):
        differs = generator.random() < disagreement
        new = bool(generator.random() < 0.5)
        found += [JudgedPair("q", not new, new if differs else not new, group)] * size
    return found


# --- where the truth is known ---------------------------------------------------------


def test_versions_alike_are_promoted_rarely() -> None:
    """A simulated null: at most α, here α/2, as losses do not promote either."""
    generator, rule = np.random.default_rng(1), Rule(min_pairs=120, alpha=0.05)
    promoted = sum(
        decide(drawn(generator, 120, 0, 0.3), rule).better for _ in range(SIMULATIONS)
    )
    assert promoted <= binom.ppf(0.999, SIMULATIONS, rule.alpha / 2)


def test_groups_that_come_out_alike_are_promoted_as_rarely() -> None:
    """Six wordings of a fact are one fact: counted singly, α would be far exceeded."""
    generator, rule = np.random.default_rng(2), Rule(min_pairs=120)
    grouped = alone = 0
    for _ in range(SIMULATIONS):
        pairs = in_groups(generator, 20, 6, 0.6)
        sums = [6 * (pair.new - pair.old) for pair in pairs[::6]]
        grouped += sign_flip_p(sums) <= rule.alpha and sum(sums) > 0
        singly = [JudgedPair("q", pair.old, pair.new) for pair in pairs]
        alone += decide(singly, rule).better
    assert grouped <= binom.ppf(0.999, SIMULATIONS, rule.alpha / 2)
    assert alone / SIMULATIONS > 3 * rule.alpha
    for _ in range(30):  # what decides is that very test
        pairs = in_groups(generator, 20, 6, 0.6)
        sums = [6 * (pair.new - pair.old) for pair in pairs[::6]]
        assert decide(pairs, rule).p == pytest.approx(sign_flip_p(sums))


@pytest.mark.parametrize(
    ("gain", "disagreement", "power"),
    [(0.15, 0.4, 0.8), (0.2, 0.25, 0.8), (0.2, 0.5, 0.9)],
)
def test_a_gain_is_found_at_the_stated_power(gain, disagreement, power) -> None:
    generator = np.random.default_rng(3)
    rule = Rule(pairs_needed(gain, disagreement, power))
    found = sum(
        decide(drawn(generator, rule.min_pairs, gain, disagreement), rule).better
        for _ in range(SIMULATIONS)
    )
    # The normal approximation of the plan is a point short at most.
    assert found >= binom.ppf(0.001, SIMULATIONS, power - 0.01)
    assert found <= binom.ppf(0.999, SIMULATIONS, power + 0.05)


@pytest.mark.parametrize(
    ("gain", "disagreement", "power"),
    [(0.15, 0.4, 0.8), (0.2, 0.25, 0.8), (0.2, 0.5, 0.9), (0.05, 0.2, 0.8)],
)
def test_the_plan_has_the_power_of_mcnemars_exact_test(
    gain, disagreement, power
) -> None:
    """Without simulation: over all numbers of questions that tell them apart."""
    n = pairs_needed(gain, disagreement, power)
    better, found = (disagreement + gain) / 2 / disagreement, 0.0
    for decided in range(n + 1):
        wins = np.arange(decided // 2 + 1, decided + 1)
        enough = wins[2 * binom.sf(wins - 1, decided, 0.5) <= 0.05]
        if enough.size:
            proven = binom.sf(enough[0] - 1, decided, better)
            found += binom.pmf(decided, n, disagreement) * proven
    assert power - 0.01 <= found <= power + 0.03


def test_who_looks_after_each_answer_is_led_astray_and_the_rule_is_not() -> None:
    """Versions alike, asked 200 questions, looked at after each from the 20th on."""
    generator, rule = np.random.default_rng(4), Rule(200, max_harm=0.0)
    naive, guarded, stopped = [], [], []
    for turn in range(1000):
        pairs = drawn(generator, 200, 0, 0.4)
        wins = np.cumsum([pair.new and not pair.old for pair in pairs])
        losses = np.cumsum([pair.old and not pair.new for pair in pairs])
        p = 2 * binom.cdf(losses, wins + losses, 0.5)  # McNemar's, of so few losses
        naive.append((p[20:] <= rule.alpha).any())
        if turn < 100:  # these take longer
            looks = [decide(pairs[:count], rule) for count in range(20, 201)]
            assert {look.action for look in looks[:-1]} <= {WAIT, ROLL_BACK}
            guarded.append(any(look.better for look in looks))
            stopped.append(any(look.action == ROLL_BACK for look in looks[:-1]))
    assert sum(naive) > binom.ppf(0.999, len(naive), rule.alpha)
    assert sum(guarded) <= binom.ppf(0.999, len(guarded), rule.alpha / 2)
    assert sum(stopped) <= binom.ppf(0.999, len(stopped), rule.alpha)


def test_evidence_of_harm_rarely_grows_where_there_is_none() -> None:
    """At any of 300 looks; also where the new version is the better one."""
    generator = np.random.default_rng(5)
    table = [
        [harm_evidence(x, n) if x <= n else 0 for x in range(301)] for n in range(301)
    ]
    for chance in (0.5, 0.4):
        losses = np.cumsum(generator.random((1000, 300)) < chance, axis=1)
        reached = [
            max(table[n][x] for n, x in enumerate(row, 1)) >= 1 / 0.05 for row in losses
        ]
        assert sum(reached) <= binom.ppf(0.999, 1000, 0.05)


def test_a_version_that_harms_is_stopped_early() -> None:
    generator, rule = np.random.default_rng(6), Rule(400, max_harm=0.05)
    ends = []
    for _ in range(20):
        pairs = drawn(generator, 400, -0.2, 0.4)
        looks = (decide(pairs[:count], rule) for count in range(10, 400, 10))
        stops = (look.pairs for look in looks if look.action == ROLL_BACK)
        ends.append(next(stops, 400))
    assert np.median(ends) < 150


def test_a_small_loss_does_not_end_it_early() -> None:
    """A proven loss below `max_harm` waits for the planned number."""
    pairs = [JudgedPair("q", True, False)] * 12 + [JudgedPair("q", True, True)] * 288
    assert decide(pairs, Rule(400, max_harm=0.03)).action == ROLL_BACK
    assert decide(pairs, Rule(400, max_harm=0.05)).action == WAIT
    assert decide(pairs, Rule(300, max_harm=0.05)).action == ROLL_BACK


# --- the test and the interval --------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(7, 2), (3, 3), (0, 0), (12, 0), (1, 9)])
def test_where_questions_stand_alone_it_is_mcnemars_exact_test(wins, losses) -> None:
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_flip_p([1] * wins + [-1] * losses + [0] * 5) == pytest.approx(expected)


@pytest.mark.parametrize("sums", [[3, -1, 2], [4, 4, -1, 0, 2], [-2, -5, -1, -1, 3]])
def test_for_groups_it_counts_all_ways_to_turn_them(sums) -> None:
    ways = [
        abs(sum(sign * size for sign, size in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    expected = np.mean([way >= abs(sum(sums)) for way in ways])
    assert sign_flip_p(sums) == pytest.approx(expected)


def test_newcombes_own_example() -> None:
    """Table II of the paper: 36, 12, 2 and 0 of 50."""
    low, high = newcombe_interval(36, 2, 12, 0)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)
    low, high = newcombe_interval(36, 12, 2, 0)
    assert (round(low, 4), round(high, 4)) == (-0.3404, -0.0569)


def test_the_interval_covers_the_truth_and_is_never_a_point() -> None:
    generator, covered = np.random.default_rng(7), 0
    for _ in range(SIMULATIONS):
        found = decide(drawn(generator, 60, 0.1, 0.3), Rule(60))
        covered += found.interval[0] <= 0.1 <= found.interval[1]
    assert covered >= binom.ppf(0.001, SIMULATIONS, 0.94)
    for pairs in (
        [JudgedPair("q", True, True)] * 30,
        [JudgedPair("q", False, True)] * 30,
        [JudgedPair("q", True, True, number // 3) for number in range(30)],
        [JudgedPair("q", False, True, number // 3) for number in range(30)],
    ):
        low, high = decide(pairs, Rule(30)).interval
        assert low <= decide(pairs, Rule(30)).difference <= high
        assert high - low > 0.1
    wide = decide(pairs, Rule(30)).interval[0]
    alone = [JudgedPair("q", False, True)] * 30
    assert wide < decide(alone, Rule(30)).interval[0]  # ten groups say less


# --- the rule -------------------------------------------------------------------------

BETTER = [JudgedPair("q", False, True)] * 20 + [JudgedPair("q", True, True)] * 80


def test_later_pairs_do_not_change_a_decision() -> None:
    rule = Rule(100)
    decision = decide(BETTER, rule)
    assert (decision.better, decision.action) == (True, PROMOTE)
    worse = [JudgedPair("q", True, False)] * 100
    assert decide(BETTER + worse, rule) == decision


def test_before_the_planned_number_nothing_is_better() -> None:
    found = decide(BETTER[:99], Rule(100))
    assert (found.better, found.action, found.interval) == (False, WAIT, None)
    assert "99 of 100 pairs" in found.text


def test_a_gain_below_the_least_is_kept_back() -> None:
    found = decide(BETTER, Rule(100, min_gain=0.25))
    assert (found.better, found.action) == (False, KEEP)
    assert "below 25.0 points" in found.text
    assert "new minus old: +20.0 points" in found.text


def test_what_cannot_be_ruled_out_is_said() -> None:
    pairs = [JudgedPair("q", True, False)] * 4 + [JudgedPair("q", False, True)] * 4
    found = decide(pairs + [JudgedPair("q", True, True)] * 12, Rule(20))
    assert found.action == KEEP
    assert "more than 5.0 points cannot be ruled out" in found.text


def test_few_groups_promote_nothing_however_many_questions_they_have() -> None:
    pairs = [JudgedPair("q", False, True, number % 5) for number in range(100)]
    assert decide(pairs, Rule(100)).action == KEEP


@pytest.mark.parametrize("right", [(True, False), (False, True), (True, True)])
def test_two_pairs_about_one_fact_are_enough_to_say_something(right) -> None:
    first = JudgedPair("q", *right, "fact")
    second = JudgedPair("r", not right[0], not right[1], "fact")
    found = decide([first, second], Rule(2))
    assert found.action == KEEP
    assert found.interval[0] <= 0 <= found.interval[1]


def test_the_rule_promises_no_size_of_a_loss() -> None:
    said = str(Rule(100, max_harm=0.1))
    assert said.endswith("a loss is proven and at least 10.0 points are observed")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"min_pairs": 0}, "min_pairs is 0"),
        ({"min_pairs": 9, "alpha": 0}, "alpha is 0"),
        ({"min_pairs": 9, "min_gain": -0.1}, "min_gain is -0.1"),
        ({"min_pairs": 9, "max_harm": float("nan")}, "max_harm is nan"),
    ],
)
def test_a_rule_that_decides_nothing_is_refused(given, complaint) -> None:
    with pytest.raises(RolloutError, match=complaint):
        Rule(**given)


def test_without_pairs_nothing_is_decided() -> None:
    with pytest.raises(RolloutError, match="no pairs"):
        decide([], Rule(10))
    with pytest.raises(RolloutError, match="disagree at least as often"):
        pairs_needed(0.2, 0.1)


# --- gathering ------------------------------------------------------------------------

ROWS = [
    {
        "instruction": f"What is {fact}, in words {wording}?",
        "fact": fact,
        "response": fact,
    }
    for fact in ("one", "two", "three")
    for wording in "ab"
]


def right(answers: Any, rows: Any) -> list[bool]:
    return [
        row["response"] in answer for answer, row in zip(answers, rows, strict=True)
    ]


def test_both_versions_get_each_question_in_an_order_that_is_drawn() -> None:
    asked: list[tuple[str, str]] = []

    def answer(question: str, version: str) -> str | None:
        asked.append((question, version))
        if version == "tuned" and "three" in question:
            return None
        return question if version == "tuned" else "no idea"

    pairs = gather(ROWS, ("base", "tuned"), answer, right)
    assert sorted(asked) == sorted(
        (row["instruction"], name) for row in ROWS for name in ("base", "tuned")
    )
    assert {name for _, name in asked[::2]} == {"base", "tuned"}
    assert [pair.new for pair in pairs] == [True] * 4 + [False] * 2
    assert not any(pair.old for pair in pairs)
    assert [pair.unanswered for pair in pairs] == [()] * 4 + [("tuned",)] * 2
    assert len({pair.group for pair in pairs}) == 3


def test_several_asked_at_once_are_the_same_pairs() -> None:
    """Though the answers come in another order than the questions."""
    waits = itertools.cycle([0.02, 0, 0.01])

    def answer(question: str, version: str) -> str:
        time.sleep(next(waits))
        return question if version == "tuned" or "two" in question else "no idea"

    one_by_one = gather(ROWS, ("base", "tuned"), answer, right)
    assert gather(ROWS, ("base", "tuned"), answer, right, at_once=4) == one_by_one
    assert any(pair.old for pair in one_by_one)


def test_an_answer_that_never_came_is_wrong_even_if_a_judge_likes_silence() -> None:
    pairs = gather(
        ROWS, ("base", "tuned"), lambda question, version: None, lambda a, r: [True] * 6
    )
    assert not any(pair.old or pair.new for pair in pairs)


def test_live_answers_make_pairs_where_both_versions_answered() -> None:
    judged = [
        {"question": "a", "version": "base", "right": False, "group": "one"},
        {"question": "b", "version": "tuned", "right": True},
        {"question": "a", "version": "tuned", "right": True},
        {"question": "a", "version": "tuned", "right": False},
        {"question": "b", "version": "other", "right": True},
    ]
    found = pairs_of(judged, ("base", "tuned"))
    assert found == [JudgedPair("a", False, True, "one")]


def test_no_later_answer_displaces_a_pair() -> None:
    answers = [("a", "base"), ("b", "base"), ("b", "tuned"), ("a", "tuned")]
    judged = [
        {"question": question, "version": version, "right": True}
        for question, version in answers
    ]
    found = [
        [pair.question for pair in pairs_of(judged[:count], ("base", "tuned"))]
        for count in range(1, 5)
    ]
    assert found == [[], [], ["b"], ["b", "a"]]


def test_the_live_traffic_is_compared_without_pairs() -> None:
    hits = {"base": [True] * 40 + [False] * 60, "tuned": [True] * 9 + [False]}
    found = compare_live(hits, ("base", "tuned"))
    assert found.interval[0] > 0 and found.p < 0.01
    assert "base: 40% of 100 right; tuned: 90% of 10 right" in found.text
    nothing = compare_live({"base": [True]}, ("base", "tuned"))
    assert (nothing.new, nothing.interval, nothing.p) == (None, None, 1.0)


def test_thumbs_are_counted_and_so_is_who_gave_none() -> None:
    records = [{"version": "base", "thumb": "down"}] * 3
    records += [{"version": "tuned", "thumb": "up"}] * 4 + [{"version": "tuned"}] * 13
    records += [{"version": "none", "thumb": "up"}, {"thumb": "up"}]
    found = compare_feedback(records, ("base", "tuned"))
    assert (found.old.value, found.new.value) == (0, 1)
    assert "7 of 20 answers had feedback" in found.text


# --- the traffic ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(aws) -> Iterator[str]:
    """An endpoint with the variants `base` and `tuned`, which say who they are."""
    from utils.deployment.billing import BillingGuard

    guard = BillingGuard(aws, say=lambda _: None)
    client = aws.session.client("sagemaker")
    variants = [
        {
            "VariantName": name,
            "ModelName": new_config(aws, guard, answering(name), name, {name: 1}),
            "InstanceType": "ml.g5.xlarge",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": weight,
            "InferenceAmiVersion": AMI,
        }
        for name, weight in (("base", 1.0), ("tuned", 0.0))
    ]
    name = guard.name("both")
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    # Not the SDK's own waiting: importing it takes four seconds.
    ready = client.get_waiter("endpoint_in_service")
    ready.wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    guard._stop_watching()
    BillingGuard.active = None  # the tests' own guards must not close this one
    yield name
    guard.teardown()
    assert guard.remaining() == []


class Stream:
    """Requests that go on in a thread while something else happens."""

    def __init__(self, aws: Any, endpoint: str):
        self.aws, self.endpoint = aws, endpoint
        self.answers: list[str] = []
        self.failed: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.answers.append(ask(self.aws, self.endpoint, "pid"))
            except ClientError as error:
                self.failed.append(str(error))

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def wait_for(self, count: int) -> None:
        while len(self.answers) < count and not self.failed:
            self._ended.wait(0.01)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)


def good(pairs: int = 100) -> Decision:
    return decide(BETTER, Rule(pairs))


def registered(versions: Versions, tmp_path: Any, *numbers: int) -> None:
    """Register versions 1, 2, … and approve these."""
    aws = versions.aws
    for number in range(1, max(numbers) + 2):
        file = tmp_path / f"{number}.tar.gz"
        file.write_text(str(number))
        key = f"{versions.group}/{file.name}"
        aws.session.client("s3").upload_file(str(file), aws.bucket, key)
        versions.register(
            file,
            f"s3://{aws.bucket}/{key}",
            "image",
            data="ab" * 32,
            base="base",
            hyperparameters={},
            metrics={"right": 0.5},
        )
    for number in numbers:
        versions.approve(number, "Ada", "good")


def test_traffic_goes_over_and_back_without_a_failed_request(
    aws, both, guard, tmp_path
) -> None:
    versions = Versions(aws, guard.name("versions"))
    registered(versions, tmp_path, 1)
    assert {ask(aws, both, "pid", TargetVariant="tuned")} == {"tuned"}
    with Stream(aws, both) as stream:
        stream.wait_for(10)
        assert set(stream.answers) == {"base"}
        assert shift(aws, both, {"base": 90, "tuned": 10}) == {
            "base": 0.9,
            "tuned": 0.1,
        }
        stream.wait_for(60)
        shares = promote(aws, both, "tuned", good(), versions, 2, "Ada")
        assert shares == {"base": 0.0, "tuned": 1.0}
        seen = len(stream.answers)
        stream.wait_for(seen + 20)
        assert set(stream.answers[seen + 1 :]) == {"tuned"}
        assert versions.live().number == 2
        assert versions.live().why == good().text
        shares = roll_back(aws, both, "base", "slow", versions, 2, "Ada")
        assert shares == {"base": 1.0, "tuned": 0.0}
        seen = len(stream.answers)
        stream.wait_for(seen + 20)
        assert set(stream.answers[seen + 1 :]) == {"base"}
    assert stream.failed == []
    assert versions.live().number == 1
    assert (versions.get(2).status, versions.get(2).why) == ("Rejected", "slow")


def test_what_was_not_decided_is_not_promoted(aws, both, guard, tmp_path) -> None:
    versions = Versions(aws, guard.name("versions"))
    registered(versions, tmp_path, 1, 2)
    with pytest.raises(RolloutError, match=r"decision was: wait: 99 of 100"):
        promote(aws, both, "tuned", decide(BETTER[:99], Rule(100)), versions, 3, "Ada")
    with pytest.raises(VersionError, match="Version 2 is live and later than 1"):
        promote(aws, both, "tuned", good(), versions, 1, "Ada")
    with pytest.raises(RolloutError, match="no variant 'nosuch'.*base, tuned"):
        promote(aws, both, "nosuch", good(), versions, 3, "Ada")
    assert {ask(aws, both, "pid") for _ in range(10)} == {"base"}
    assert versions.get(3).status == "PendingManualApproval"


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"tuned": 1}, "weights are for tuned, .* base, tuned"),
        ({"base": 1, "tuned": 1, "third": 1}, "base, third, tuned"),
        ({"base": 0, "tuned": 0}, "one above 0"),
        ({"base": -1, "tuned": 2}, "numbers from 0"),
        ({"base": float("nan"), "tuned": 2}, "numbers from 0"),
    ],
)
def test_weights_that_share_nothing_out_are_refused(
    aws, both, weights, complaint
) -> None:
    with pytest.raises(RolloutError, match=complaint):
        shift(aws, both, weights)


class Endpoint:
    """An account whose endpoint answers each look with the next of its states."""

    def __init__(self, *states: tuple[str, float]):
        self.states = list(states)
        self.session = self
        self.asked: list[dict] = []

    def client(self, service: str) -> Any:
        return self

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        status, weight = self.states[0]
        if len(self.states) > 1 and self.asked:
            self.states.pop(0)
        variants = [("base", 1.0), ("tuned", weight)]
        return {
            "EndpointStatus": status,
            "FailureReason": "no room",
            "ProductionVariants": [
                {"VariantName": name, "CurrentWeight": value}
                for name, value in variants
            ],
        }

    def update_endpoint_weights_and_capacities(self, **given: Any) -> None:
        self.asked.append(given)


def test_a_shift_waits_until_aws_has_done_it(monkeypatch) -> None:
    """AWS may say InService before it begins, and keeps 32 bits of a weight."""
    monkeypatch.setattr("utils.web.rollout.FIRST_POLL", 0)
    kept = float(np.float32(0.3))
    account = Endpoint(
        ("InService", 5), ("InService", 5), ("Updating", 5), ("InService", kept)
    )
    assert shift(account, "faq", {"base": 1, "tuned": 0.3})["base"] == 1 / 1.3
    assert len(account.states) == 1
    (asked,) = account.asked
    assert "DesiredInstanceCount" not in str(asked)
    with pytest.raises(RolloutError, match=r"faq is Failed .* no room"):
        shift(Endpoint(("Failed", 5)), "faq", {"base": 1, "tuned": 0.3})
    monkeypatch.setattr("utils.web.rollout.SHIFT_TIMEOUT", 0)
    with pytest.raises(RolloutError, match=r"faq is Updating with the weights"):
        shift(Endpoint(("Updating", 5)), "faq", {"base": 1, "tuned": 0.3})


# --- SageMaker's own guardrail --------------------------------------------------------


def test_a_canary_with_alarms_is_what_aws_takes() -> None:
    from utils.offline_aws.shifting import Shift

    config = deployment_config(["errors", "slow"], percent=10, wait=300, linger=600)
    found = Shift.of(config)
    assert found.shares == (0.1, 1.0)
    assert (found.wait, found.linger) == (300, 600)
    assert found.alarms == ("errors", "slow")
    policy = config["BlueGreenUpdatePolicy"]
    assert policy["MaximumExecutionTimeoutInSeconds"] >= 2 * 300 + 600


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ({"alarms": []}, RolloutError, "without an alarm"),
        ({"alarms": ["a"], "percent": 60}, RolloutError, "percent is 60"),
        ({"alarms": ["a"], "percent": 0}, RolloutError, "percent is 0"),
        ({"alarms": ["a"], "wait": 4000}, RequestError, "less than or equal to 3600"),
        ({"alarms": [str(n) for n in range(11)]}, RequestError, "less than or equal"),
        ({"alarms": ["x" * 256]}, RequestError, "alarmName"),
    ],
)
def test_canaries_that_aws_would_refuse_are_refused(given, error, complaint) -> None:
    with pytest.raises(error, match=complaint):
        deployment_config(**given)
