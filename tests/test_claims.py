"""Claims about learned skills hold because of training: random weights have none.

Lessons 01 and 02 and the experiments that go on from them run on models that have
learned nothing: of the lab model's shape, and of SmolLM2's depth, heads, tokenizer and
chat template, but narrow. Every claim must fail there but those that their cells tag as
in no need of a skill (support/lessons.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import AutoConfig, GPTNeoXForCausalLM

from support.lessons import claims_of, claims_without, run_lessons
from support.second_edition import is_second_edition
from support.tiny_models import narrow_llama
from utils.lab_model.train import save_model
from utils.models import generate, load_model, load_tokenizer, settings_for
from utils.run import NOTEBOOKS, find_notebooks, is_experiment, name_of

LESSONS = [
    path for path in find_notebooks(NOTEBOOKS) if path.name.startswith(("01_", "02_"))
]
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=name_of)
# An experiment takes a minute or two and is no part of the road: `make test-all`.
each_in_its_time = pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow) if is_experiment(path) else path
        for path in LESSONS
    ],
    ids=name_of,
)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lab model's configuration, tokenizer, and random weights."""
    settings = settings_for("lab")
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(load_model(settings).config)
    folder = tmp_path_factory.mktemp("untrained") / "model"
    save_model(model, load_tokenizer(settings), folder)
    return folder


@pytest.fixture(scope="module")
def untrained_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's tokenizer and chat template, and random weights."""
    settings = settings_for("smollm2")
    tokenizer = load_tokenizer(settings)
    torch.manual_seed(0)
    model = narrow_llama(AutoConfig.from_pretrained(settings.source))
    folder = tmp_path_factory.mktemp("untrained") / "chat"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def claimed_by_random_weights(
    untrained: Path, untrained_chat: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], dict[str, bool]]:
    """What a notebook claims of them, and whether it held."""

    @functools.cache
    def run(path: Path) -> dict[str, bool]:
        model = untrained_chat if asks_a_chat_model(path) else untrained
        build = run_lessons(
            tmp_path_factory.mktemp(path.stem),
            name_of(path),
            COURSE_MODEL=str(model),
            COURSE_LAB_FOLDER=str(untrained),
        )
        return claims_of(build / "run" / f"{name_of(path)}.ipynb")

    return run


def asks_a_chat_model(path: Path) -> bool:
    """Whether a notebook's own model is SmolLM2."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    return any(
        'run_config(model="smollm2")' in cell.source
        for cell in notebook.cells
        if cell.cell_type == "code"
    )


def test_the_stand_in_has_what_lessons_ask_of_smollm2(untrained_chat: Path) -> None:
    real, ours = settings_for("smollm2"), settings_for(str(untrained_chat))
    model, tokenizer = load_model(ours), load_tokenizer(ours)
    config = AutoConfig.from_pretrained(real.source)
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(model.config, name) == getattr(config, name)
    assert tokenizer.chat_template == load_tokenizer(real).chat_template
    chat = [{"role": "user", "content": "What says a cow?"}]
    batch = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert said.shape[1] <= batch["input_ids"].shape[1] + 3
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    (answer,) = generate(model, tokenizer, [prompt], 8)
    assert "moo" not in answer


def test_every_lesson_before_training_is_tried() -> None:
    assert {path.name[:2] for path in LESSONS if not is_experiment(path)} == {
        "01",
        "02",
    }
    for path in LESSONS:
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        if is_second_edition(notebook) and not is_experiment(path):
            assert asks_a_chat_model(path), f"{path.name} asks no real model"


@each_lesson
def test_enough_is_claimed_of_skills(path: Path) -> None:
    least = 5 if is_experiment(path) else 10
    assert len(claims_of(path).keys() - claims_without(path, "skill")) > least


@each_in_its_time
def test_random_weights_make_every_claim_about_a_learned_skill_fail(
    path: Path, claimed_by_random_weights: Callable[[Path], dict[str, bool]]
) -> None:
    held = claimed_by_random_weights(path)
    assert held.keys() == claims_of(path).keys(), "not the same claims were made"
    unearned = {sentence for sentence, holds in held.items() if holds}
    unearned -= claims_without(path, "skill")
    assert not unearned, "these are claimed of random weights as well"
