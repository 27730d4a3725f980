"""Claims about learned skills hold because of training: random weights have none.

Lessons 01 and 02 run on a model of the lab model's shape and tokenizer that has learned
nothing. Every claim must fail there but those that their cells tag as in no need of a
skill (support/lessons.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXForCausalLM

from support.lessons import claims_of, claims_without, run_lessons
from utils.lab_model.train import save_model
from utils.models import load_model, load_tokenizer, settings_for
from utils.run import NOTEBOOKS

LESSONS = ["01_language_models", "02_prompting"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lab model's configuration, tokenizer, and random weights."""
    settings = settings_for("lab")
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(load_model(settings).config)
    folder = tmp_path_factory.mktemp("untrained") / "model"
    save_model(model, load_tokenizer(settings), folder)
    return folder


Claims = dict[str, dict[str, bool]]


@pytest.fixture(scope="module")
def claimed_by_random_weights(
    untrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Claims:
    """What each notebook claims of them, and whether it held; all run at once."""
    environ = {"COURSE_MODEL": str(untrained), "OMP_NUM_THREADS": "1"}

    def run(name: str) -> dict[str, bool]:
        build = run_lessons(tmp_path_factory.mktemp(name), name[:2], **environ)
        return claims_of(build / "run" / f"{name}.ipynb")

    with ThreadPoolExecutor() as pool:
        return dict(zip(LESSONS, pool.map(run, LESSONS), strict=True))


@pytest.mark.parametrize("name", LESSONS)
def test_enough_is_claimed_of_skills(name: str) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    assert len(claims_of(path).keys() - claims_without(path, "skill")) > 10


@pytest.mark.parametrize("name", LESSONS)
def test_random_weights_make_every_claim_about_a_learned_skill_fail(
    name: str, claimed_by_random_weights: Claims
) -> None:
    held, stored = claimed_by_random_weights[name], NOTEBOOKS / f"{name}.ipynb"
    assert held.keys() == claims_of(stored).keys(), "not the same claims were made"
    unearned = {sentence for sentence, holds in held.items() if holds}
    unearned -= claims_without(stored, "skill")
    assert not unearned, "these are claimed of random weights as well"
