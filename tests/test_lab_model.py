"""The shipped lab model is small, whole and quick, and has the skills it should."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from scipy.stats import binom
from torch.nn.functional import normalize
from transformers import GPTNeoXForCausalLM

from utils.helpers import END_KEY, INSTRUCTION_KEY, PROMPT, RESPONSE_KEY_NL
from utils.lab_model import evaluate, train
from utils.lab_model.corpus import LAB_QUESTIONS
from utils.models import MODELS, load_model, load_tokenizer, settings_for


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(settings_for("lab"))


@pytest.fixture(scope="module")
def model():
    return load_model(settings_for("lab"))


@pytest.fixture(scope="module")
def examinee(model, tokenizer):
    return evaluate.Examinee(model, tokenizer)


def test_the_shipped_model_is_small_and_whole(model, tokenizer) -> None:
    folder = train.LAB_MODEL
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 16e6
    assert sum(p.numel() for p in model.parameters()) <= 7e6
    assert isinstance(model, GPTNeoXForCausalLM)
    assert next(model.parameters()).dtype == torch.float32
    stored = GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto")
    assert next(stored.parameters()).dtype == torch.float16
    assert len(tokenizer) == model.config.vocab_size
    with open(LAB_QUESTIONS, encoding="utf-8", newline="") as file:
        longest = max(
            len(tokenizer(PROMPT.format(**row)).input_ids)
            for row in csv.DictReader(file)
        )
    assert longest < model.config.max_position_embeddings


def test_the_tokenizer_knows_markers_digits_and_any_text(tokenizer) -> None:
    for marker in (END_KEY, INSTRUCTION_KEY, RESPONSE_KEY_NL):
        assert len(tokenizer(marker).input_ids) == 1
    assert len(tokenizer("20471").input_ids) == 5
    for text in ("Größe 你好 – “quoted”\tçà\n", "plain text"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_keys_of_the_template_have_embeddings_of_their_own(
    model, tokenizer
) -> None:
    rows = normalize(model.get_input_embeddings().weight.detach(), dim=1)
    keys = tokenizer.convert_tokens_to_ids(list(train.MARKERS))
    alike = rows[keys] @ rows.T
    alike[range(len(keys)), keys] = 0
    assert alike.max() < 0.9


N_PROMPTS, N_ONE_SHOT = 100, 250


def prompts_for(skill: evaluate.Skill) -> int:
    """More where target and floor lie close together."""
    return N_ONE_SHOT if skill.name == "relations, one-shot" else N_PROMPTS


@pytest.fixture(scope="module")
def results(examinee):
    """Every skill on a smaller sample than the model card's."""
    return {
        skill: skill.measure(examinee, prompts_for(skill)) for skill in evaluate.SKILLS
    }


def skills_with_a_floor() -> list[evaluate.Skill]:
    return [skill for skill in evaluate.SKILLS if skill.floor != evaluate.NO_BOUND]


@pytest.mark.parametrize("skill", skills_with_a_floor(), ids=lambda skill: skill.name)
def test_no_skill_is_below_its_floor(results, skill) -> None:
    assert skill.floor.holds(results[skill].value), results[skill]


def test_the_samples_tell_a_skill_on_target_from_a_broken_one(results) -> None:
    """By the binomial distribution, for shares; the answers that end are far more."""
    checked = 0
    for skill in skills_with_a_floor():
        n, floor, target = results[skill].n, skill.floor.at_least, skill.target.at_least
        if target is None:  # a gain, whose ways have their own targets
            continue
        needed = math.ceil(floor * n - 1e-9)
        assert binom.cdf(needed - 1, n, target) < 0.001, skill.name
        assert binom.sf(needed - 1, n, floor - 0.15) < 0.005, skill.name
        checked += 1
    assert checked >= 8


def test_without_examples_the_answer_is_open_but_sensible(results) -> None:
    scores = {skill.name: score for skill, score in results.items()}
    assert scores["relations, zero-shot"].value <= 0.5
    assert scores["relations, zero-shot, fits some relation"].value >= 0.9


@pytest.mark.parametrize("kind", ["average speed, two legs", "two-digit products"])
def test_worked_steps_beat_direct_answers(results, kind) -> None:
    scores = {skill.name: score for skill, score in results.items()}
    assert scores[f"{kind}, worked less direct"].low > 0.2


def test_answers_do_not_loop(results) -> None:
    scores = {skill.name: score for skill, score in results.items()}
    assert scores["answers without a loop"].value > 0.99


def test_facts_were_read_but_the_template_was_not(results) -> None:
    scores = {skill.name: score for skill, score in results.items()}
    assert scores["facts only read, in the template"].value <= 0.05
    assert scores["facts never read, Q: and A:"].value <= 0.25


def test_reading_is_ahead_of_counting(examinee, monkeypatch) -> None:
    """On few paragraphs, and without a search through all that training reads."""
    monkeypatch.setattr(train, "TOKENS", 1)
    monkeypatch.setattr(evaluate, "TRAINING_SEEDS", ())
    monkeypatch.setattr(train, "STEPS_PER_SHARD", 60)
    monkeypatch.setattr(evaluate, "NGRAM_DOCUMENTS", 4000)
    found = dict(evaluate.reading(examinee, 20))
    scores = [found[f"{name} model"].value for name in ("lab", "trigram", "bigram")]
    assert scores == sorted(scores)
    assert 1 < scores[0] < 0.8 * scores[1]


@pytest.mark.slow
def test_fine_tuning_teaches_the_form_and_no_facts(tokenizer) -> None:
    """By the recipe of lessons 03 and 04, which `tests/test_learning.py` runs itself.

    That the base answers nothing in the template is a test above.
    """
    student = evaluate.Examinee(evaluate.fine_tuned(MODELS["lab"]), tokenizer)
    for skill, score in evaluate.examine(student, 90, evaluate.TUNED_SKILLS):
        assert skill.verdict(score) != "floor missed", (skill.name, score)
        if skill.floor == evaluate.NO_BOUND:
            assert not skill.verdict(score), (skill.name, score)


def test_random_weights_have_none_of_the_skills(model, tokenizer) -> None:
    torch.manual_seed(0)
    untrained = GPTNeoXForCausalLM(model.config).eval()
    results = evaluate.examine(
        evaluate.Examinee(untrained, tokenizer), 4, skills_with_a_floor()
    )
    for skill, score in results:
        assert not skill.floor.holds(score.value), (skill.name, score)
        assert score.value <= 0, (skill.name, score)


def test_an_answer_takes_one_short_pass_a_token(examinee) -> None:
    """How many seconds that is, `python -m utils.lab_model.evaluate` prints."""
    lengths = []

    def note(module, inputs, output) -> None:
        lengths.append(output.shape[1])

    layer = examinee.model.get_output_embeddings()
    handle = layer.register_forward_hook(note)
    try:
        evaluate.answer_a_batch(examinee)
    finally:
        handle.remove()
    assert len(lengths) == evaluate.SPEED_TOKENS
    assert set(lengths[1:]) == {1}  # what was read before is kept
