"""The examination of the lab model: what it asks, counts and reports."""

from __future__ import annotations

import math

import pytest

from utils.dataset.facts import load_facts
from utils.evaluation.scores import Estimate, paired_difference, proportion
from utils.lab_model import evaluate, train
from utils.lab_model.corpus import faq_rows
from utils.models import load_model, load_tokenizer, settings_for
from utils.tasks import (
    PROBLEM_KINDS,
    RELATIONS,
    RULES,
    few_shot_tasks,
    problems,
    rule_is_held_out,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(settings_for("lab"))


def test_an_answer_that_was_cut_off_did_not_end(tokenizer) -> None:
    examinee = evaluate.Examinee(load_model(settings_for("lab")), tokenizer)
    prompt = problems("2 steps", 1)[0].prompt(worked=True)
    whole = examinee.ask([prompt], evaluate.WORKED_TOKENS)[0]
    length = len(examinee.tokenizer(f" {whole}\n").input_ids) + 1  # the end of text
    for budget in (length, length - 1):
        assert whole.startswith(examinee.ask([prompt], budget)[0])
        assert examinee.answers[prompt, budget, False].ended == (budget == length)
    # A list goes on after the answer; the line break ends the answer.
    prompt = few_shot_tasks(3, 1)[0].prompt
    assert "\n" not in examinee.ask([prompt], evaluate.WORD_TOKENS, one_line=True)[0]
    assert examinee.answers[prompt, evaluate.WORD_TOKENS, True].ended


def test_the_budgets_have_room_for_the_right_answers(tokenizer) -> None:
    def tokens(text: str) -> int:
        return len(tokenizer(text).input_ids) + 1

    for kind in PROBLEM_KINDS:
        for one in problems(kind, 50):
            for worked, budget in (
                (True, evaluate.WORKED_TOKENS),
                (False, evaluate.DIRECT_TOKENS),
            ):
                prompt, whole = one.prompt(worked), one.document(worked)
                assert tokens(whole.removeprefix(prompt)) <= budget
    for pairs in (*RELATIONS.values(), *RULES.values()):
        for answer in pairs.values():
            assert tokens(f"\n  {answer}\n") <= evaluate.WORD_TOKENS
    for row in faq_rows(load_facts()):
        assert tokens(f" {row['response']}\n") <= evaluate.ANSWER_TOKENS


def test_each_rule_is_also_asked_for_alone() -> None:
    asked: list[str] = []

    class Silent:
        def ask(self, prompts: list[str], *_: object, **__: object) -> list[str]:
            asked[:] = prompts
            return [""] * len(prompts)

    for rule, skill in zip(RULES, evaluate.RULE_BY_RULE, strict=True):
        score = skill.measure(Silent(), 20)
        assert (score.value, score.n) == (0, 6)
        for prompt in asked:
            *shown, last = prompt.split("\n")
            pairs = {tuple(line.split(" - ")) for line in shown}
            assert pairs <= RULES[rule].items()
            assert rule_is_held_out(rule, last.removesuffix(" -"))


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("moo moo moo moo", True),
        ("Ana has 5. Ana has 5. Ana has 5. ", True),
        ("a line\na line\na line\n", True),
        ("aaaaaaaaa", True),
        ("Ana has 5. Ana has 5. Ben has 5.", False),
        ("12 / 4 = 3 rest 0. 00 / 4 = 0 rest 0.", False),
        ("1000 x 20 = 20000", False),
        ("", False),
    ],
)
def test_what_a_loop_is(text, loops) -> None:
    assert evaluate.Answer(text, ended=True).loops == loops


def test_guessing_is_right_where_the_commonest_value_is() -> None:
    hits = evaluate.score_guessing("unread")
    rows = evaluate.rows_of("unread")
    assert len(hits) == len(rows) == 90
    assert 0 < sum(hits) < 30
    # The two questions on a fact share its value.
    shared = {row["fact"]: hit for row, hit in zip(rows, hits, strict=True)}
    assert [shared[row["fact"]] for row in rows] == hits


def test_bounds_and_verdicts() -> None:
    def measure(examinee: evaluate.Examinee, n_prompts: int) -> Estimate:
        raise NotImplementedError

    target, floor = evaluate.at_least(0.95), evaluate.at_least(0.85)
    skill = evaluate.Skill("a", measure, target, floor)
    found = [skill.verdict(Estimate(v, v, v, 10)) for v in (0.95, 0.9, 0.8)]
    assert found == ["", "target missed", "floor missed"]
    most = evaluate.Skill("b", measure, evaluate.at_most(0), by_interval=True)
    found = [most.verdict(Estimate(0.1, low, 0.2, 10)) for low in (-0.05, 0.05)]
    assert found == ["", "target missed"]
    assert evaluate.at_most(0.2).holds(0.2)
    assert not evaluate.at_most(0.2).holds(0.21)
    assert evaluate.NO_BOUND.holds(0)
    bounds = (evaluate.at_most(0.2), target, evaluate.NO_BOUND)
    assert [bound.shown() for bound in bounds] == ["≤ 20%", "≥ 95%", "–"]


def test_rows_of_the_report() -> None:
    skill = evaluate.Skill("a skill", lambda one, n: None, evaluate.at_least(0.6))
    share = evaluate.score_row(skill, proportion([True, False]))
    assert share.markdown() == "| a skill | 50.0% | 9.5 to 90.5% | 2 | ≥ 60% | – |"
    assert share.plain().endswith("target missed")
    gain = evaluate.score_row(skill, paired_difference([True, True], [False, False]))
    assert gain.markdown() == ("| a skill | +100.0 | +100.0 to +100.0 | 2 | ≥ 60 | – |")


@pytest.mark.parametrize("markdown", [False, True])
def test_the_report_is_a_table(monkeypatch, capsys, markdown) -> None:
    rows = [evaluate.Row("a skill", "98.0%", "95.0 to 99.2%", "200", "≥ 95%", "≥ 85%")]
    asked = []
    monkeypatch.setattr(evaluate, "report", lambda *given: asked.append(given) or rows)
    settings = settings_for("lab")
    evaluate.print_report(settings, 20, markdown=markdown)
    assert asked == [(settings, 20, False)]
    lines = capsys.readouterr().out.splitlines()
    if markdown:
        assert lines[1] == "|:--|--:|:--|--:|--:|--:|"
        assert lines[2] == "| a skill | 98.0% | 95.0 to 99.2% | 200 | ≥ 95% | ≥ 85% |"
        assert len({line.count("|") for line in lines}) == 1
    else:
        assert lines[0].split() == [
            "skill",
            "right",
            "95%",
            "interval",
            "n",
            "target",
            "floor",
        ]
        assert lines[1].startswith("a skill  ")


def test_perplexity_has_an_interval_around_it() -> None:
    found = evaluate.perplexity_with_interval([[-1.0, -1.0], [-2.0], [-1.5] * 3])
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(math.exp(8.5 / 6))
    assert found.n == 3


@pytest.mark.slow
def test_the_documents_of_training_are_those_of_its_shards(
    tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(train, "STEPS_PER_SHARD", 4)
    monkeypatch.setattr(train, "TOKENS", 1.5 * 4 * train.BATCH * train.WINDOW)
    found = list(evaluate.training_documents(seed=1))
    shards = [train.shard(tokenizer, 1, number) for number in (0, 1)]
    position = 0
    for shard in shards:
        texts = tokenizer.decode(shard.flatten()).split(tokenizer.eos_token)
        position = found.index(texts[0], position)
        assert found[position : position + len(texts) - 1] == texts[:-1]
        position += len(texts)


@pytest.mark.slow
def test_held_out_paragraphs_were_never_read() -> None:
    paragraphs = evaluate.held_out_paragraphs(200)
    assert len(set(paragraphs)) == 200
    for seed in evaluate.TRAINING_SEEDS:
        assert not set(paragraphs) & set(evaluate.training_documents(seed))
