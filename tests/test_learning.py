"""What fine-tuning must achieve, and must not achieve on shuffled answers.

Lessons 03 and 04 run twice: on the course's questions, and on a copy in which every
question has some other question's answer.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from datasets import load_from_disk
from lessons import run_lessons
from peft import PeftModel

from utils.course import SHIPPED_DATA
from utils.evaluation import paired_difference, proportion
from utils.facts import is_right
from utils.helpers import INFERENCE_PROMPT
from utils.models import generate, load_model, load_tokenizer, settings_for

SETTINGS = settings_for("lab")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_lessons(tmp_path_factory.mktemp("trained") / "build", "03", "04")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shuffled")
    rows = pd.read_csv(SHIPPED_DATA)
    answers = list(rows["response"])
    random.Random(0).shuffle(answers)
    rows.assign(response=answers).to_csv(folder / "faqs.csv", index=False)
    data = str(folder / "faqs.csv")
    return run_lessons(folder / "build", "03", "04", COURSE_DATA=data)


Score = Callable[[Path | None, str], list[bool]]


@pytest.fixture(scope="module")
def score(trained: Path) -> Score:
    """(build folder with an adapter, or None for the base; part) → which are right."""
    tokenizer = load_tokenizer(SETTINGS)
    dataset = load_from_disk(trained / "dataset")
    known: dict[tuple[Path | None, str], list[bool]] = {}

    def right(build: Path | None, part: str) -> list[bool]:
        if (build, part) not in known:
            model = load_model(SETTINGS)
            if build is not None:
                model = PeftModel.from_pretrained(model, build / "adapter")
            rows = dataset[part]
            prompts = [
                INFERENCE_PROMPT.format(instruction=question)
                for question in rows["instruction"]
            ]
            answers = generate(model, tokenizer, prompts, SETTINGS.max_new_tokens)
            known[build, part] = [
                is_right(answer, fact)
                for answer, fact in zip(answers, rows["fact"], strict=True)
            ]
        return known[build, part]

    return right


def test_the_tuned_model_answers_held_out_wordings(score, trained):
    assert proportion(score(trained, "wording")).value >= 0.8


def test_it_beats_the_base(score, trained):
    gain = paired_difference(score(trained, "wording"), score(None, "wording"))
    assert gain.low > 0


def test_it_beats_an_adapter_trained_on_shuffled_answers(score, trained, shuffled):
    gain = paired_difference(score(trained, "wording"), score(shuffled, "wording"))
    assert gain.low > 0


def test_it_answers_from_what_it_has_read_and_not_from_what_it_has_not(score, trained):
    assert proportion(score(trained, "fact")).value >= 0.8
    # Shared values can be guessed; one answer in four is more than guessing gives.
    assert proportion(score(trained, "unread")).value <= 0.25
