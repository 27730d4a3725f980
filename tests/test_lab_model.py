"""The corpus keeps apart what is tested; the shipped model has the skills it should."""

import csv
import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXForCausalLM

from utils.evaluation import proportion
from utils.facts import assign_parts, fact_parts, load_facts
from utils.helpers import (
    END_KEY,
    INFERENCE_PROMPT,
    INSTRUCTION_KEY,
    INTRO_BLURB,
    PROMPT,
    RESPONSE_KEY,
    RESPONSE_KEY_NL,
)
from utils.lab_model import evaluate, train, wordings
from utils.lab_model.corpus import FAQS_FILE, MIX, documents, faq_rows
from utils.lab_model.tasks import (
    RELATIONS,
    few_shot_tasks,
    final_answer,
    first_line,
    held_out,
    problem,
    problems,
)
from utils.models import load_model, load_tokenizer, settings_for

N_DOCUMENTS = 6000
PARTS = fact_parts()


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(itertools.islice(documents(seed=1), N_DOCUMENTS))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(settings_for("lab"))


@pytest.fixture(scope="module")
def model():
    return load_model(settings_for("lab"))


@pytest.fixture(scope="module")
def ask(model, tokenizer):
    return evaluate.generator_of(model, tokenizer)


# --- the corpus ---


def test_the_corpus_is_seeded(corpus):
    again = list(itertools.islice(documents(seed=1), 200))
    assert again == corpus[:200]
    assert list(itertools.islice(documents(seed=2), 200)) != again


def test_the_corpus_never_states_an_unread_fact(corpus):
    text = "\n".join(corpus)
    stated = Counter()
    for fact in load_facts():
        for wording in range(wordings.wording_count(fact.relation)):
            stated[PARTS[fact.id]] += wordings.statement(fact, wording) in text
    assert stated["unread"] == 0
    read = sum(
        wordings.wording_count(fact.relation)
        for fact in load_facts()
        if PARTS[fact.id] != "unread"
    )
    assert sum(stated.values()) > 0.9 * read  # the check finds what is there


def test_the_corpus_asks_about_training_facts_only_and_not_in_held_out_words(corpus):
    questions = {
        line.removeprefix("Q: ")
        for document in corpus
        for line in document.splitlines()
        if line.endswith("?")
    }
    rows = faq_rows(load_facts())
    parts = assign_parts([row["fact"] for row in rows])
    in_part = {
        part: {r["instruction"] for r, p in zip(rows, parts, strict=True) if p == part}
        for part in set(parts)
    }
    assert len(questions & in_part["train"]) > 100
    for part in ("wording", "fact", "unread", "validation"):
        assert not questions & in_part[part]


def test_the_corpus_never_shows_the_template(corpus):
    text = "\n".join(corpus)
    for marker in (INSTRUCTION_KEY, RESPONSE_KEY, END_KEY, INTRO_BLURB):
        assert marker not in text


def test_the_corpus_keeps_operands_apart(corpus):
    pairs = set()
    for document in corpus:
        if match := re.search(r"What is (\d+) x (\d+)", document):
            pairs.add((int(match[1]), int(match[2])))
        elif "half hours. " in document:
            match = re.search(r"is (\d+) half hours?\. \d+ / \d+ = (\d+)", document)
            pairs.add((int(match[1]), int(match[2])))
        else:
            work = re.findall(r"(\d+) [+-] (\d+) =", document)
            pairs |= {(int(a), int(b)) for a, b in work}
    assert len(pairs) > 1000
    assert not [pair for pair in pairs if held_out(*pair)]


@pytest.mark.parametrize("kind", ["1 steps", "3 steps", "speed", "product"])
def test_problems_are_right_and_held_out(kind):
    for one in problems(kind, 100):
        for step in one.steps:
            if match := re.fullmatch(r"(\d+) ([+\-x/]) (\d+) = (\d+).*", step):
                left, sign, right, result = match.groups()
                operation = {
                    "+": int.__add__,
                    "-": int.__sub__,
                    "x": int.__mul__,
                    "/": int.__floordiv__,
                }[sign]
                assert operation(int(left), int(right)) == int(result), one
        assert one.steps[-1].endswith(f"= {one.result}")
        assert final_answer(one.document(worked=True)) == one.result
        first, second = (int(n) for n in re.findall(r"\d+", one.steps[0])[:2])
        if kind != "speed":
            tens = re.findall(r"\d+", one.question)
            pair = (
                (int(tens[0]), int(tens[1])) if kind == "product" else (first, second)
            )
            assert held_out(*pair)


def test_an_unknown_kind_of_problem_is_an_error():
    with pytest.raises(ValueError, match="'5 steps'"):
        problem(random.Random(0), "5 steps", held=True)


def test_few_shot_prompts_ask_for_the_same_words_whatever_they_show():
    zero, three = few_shot_tasks(0, 50), few_shot_tasks(3, 50)
    for bare, shown in zip(zero, three, strict=True):
        assert shown.prompt.endswith(bare.prompt)
        assert shown.answer == bare.answer
        assert shown.prompt.count("\n") == 3
        assert not shown.prompt.endswith(" ")
        shown_pairs = dict(line.split(" - ") for line in shown.prompt.splitlines()[:3])
        assert RELATIONS[shown.kind].items() >= shown_pairs.items()
        assert bare.prompt.removesuffix(" -") not in shown_pairs


def test_a_relation_with_too_few_pairs_is_named():
    with pytest.raises(ValueError, match="'tiny' has 2 pairs"):
        few_shot_tasks(2, 1, relations={"tiny": {"a": "b", "c": "d"}})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 12 + 3 = 15. The answer is 15.", "15"),
        (" 1.5 hours. The answer is 40.5.", "40.5"),
        (" 15.\n", "15"),
        ("no number", None),
        ("", None),
    ],
)
def test_final_answer(text, number):
    assert final_answer(text) == number


def test_first_line_skips_blank_lines():
    assert first_line("\n  quack \nmoo") == "quack"
    assert first_line("") == ""


def test_the_shares_of_the_mix_add_up():
    assert sum(MIX.values()) == pytest.approx(1)


# --- training ---


def test_training_resumes_after_a_kill_as_if_nothing_had_happened(
    tmp_path, monkeypatch
):
    for name, value in {"BATCH": 2, "WINDOW": 32, "STEPS_PER_SHARD": 2}.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1)
    small = train.train_tokenizer(n_documents=300)
    monkeypatch.setattr(train, "train_tokenizer", lambda: small)
    tokens = 5 * 2 * 32
    train.train(tmp_path / "whole", tmp_path / "w1", tokens, seed=0, compiled=False)

    save = train.save_checkpoint

    def save_then_die(path: Path, **state: object) -> None:
        save(path, **state)
        if state["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_checkpoint", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "cut", tmp_path / "w2", tokens, seed=0, compiled=False)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(train, "save_checkpoint", save)
    train.train(tmp_path / "cut", tmp_path / "w2", tokens, seed=0, compiled=False)

    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == whole
    assert not list(tmp_path.rglob("*.partial"))


# --- the shipped model ---


def test_the_shipped_model_is_small_and_whole(model, tokenizer):
    folder = train.LAB_MODEL
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 16e6
    assert sum(p.numel() for p in model.parameters()) <= 7e6
    assert isinstance(model, GPTNeoXForCausalLM)
    assert next(model.parameters()).dtype == torch.float32
    stored = GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto")
    assert next(stored.parameters()).dtype == torch.float16
    assert len(tokenizer) == model.config.vocab_size
    with open(FAQS_FILE, encoding="utf-8", newline="") as file:
        longest = max(
            len(tokenizer(PROMPT.format(**row)).input_ids)
            for row in csv.DictReader(file)
        )
    assert longest < model.config.max_position_embeddings


def test_the_tokenizer_knows_markers_digits_and_any_text(tokenizer):
    for marker in (END_KEY, INSTRUCTION_KEY, RESPONSE_KEY_NL):
        assert len(tokenizer(marker).input_ids) == 1
    assert len(tokenizer("20471").input_ids) == 5
    for text in ("Größe 你好 – “quoted”\tçà\n", "plain text"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(("examples", "floor"), [(1, 0.90), (3, 0.95)])
def test_examples_in_the_prompt_are_understood(ask, examples, floor):
    hits = evaluate.score_relations(ask, few_shot_tasks(examples, 100))
    assert proportion(hits).value >= floor


def test_without_examples_the_answer_is_open_but_sensible(ask):
    tasks = few_shot_tasks(0, 100)
    assert proportion(evaluate.score_relations(ask, tasks)).value <= 0.5
    assert proportion(evaluate.score_valid(ask, tasks)).value >= 0.9


def test_worked_steps_beat_direct_answers(ask):
    asked = problems("2 steps", 50)
    worked = proportion(evaluate.score_problems(ask, asked, worked=True))
    direct = proportion(evaluate.score_problems(ask, asked, worked=False))
    assert worked.low > direct.high


def test_facts_were_read_but_the_template_was_not(ask):
    assert sum(evaluate.score_facts(ask, "fact", "Q: {instruction}\nA:")) >= 60
    assert sum(evaluate.score_facts(ask, "fact", INFERENCE_PROMPT)) <= 4


def test_random_weights_have_none_of_the_skills(model, tokenizer):
    torch.manual_seed(0)
    random_model = GPTNeoXForCausalLM(model.config)
    ask = evaluate.generator_of(random_model, tokenizer)
    assert not any(evaluate.score_relations(ask, few_shot_tasks(3, 50)))
    assert not any(evaluate.score_problems(ask, problems("1 steps", 50), worked=True))
    assert not any(evaluate.score_facts(ask, "wording", "Q: {instruction}\nA:"))
