"""What fine-tuning must achieve, and must not achieve on shuffled answers.

Lessons 03 and 04 run twice with the lab model: on its questions, and on a copy in which
every question has some other question's answer. And what the lessons claim of learning
is not claimed where nothing was learned; tags of the cells say which claims need no
learning (support/lessons.py).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from peft import PeftModel

from support.lessons import claims_of, claims_without
from utils import run
from utils.course import LAB_DATA
from utils.dataset.facts import is_right
from utils.evaluation.scores import paired_difference, proportion
from utils.helpers import INFERENCE_PROMPT
from utils.models import generate, load_model, load_tokenizer, settings_for
from utils.run import NOTEBOOKS
from utils.training.adapters import save_adapter
from utils.training.recipe import add_lora

SETTINGS = settings_for("lab")


def shuffle_answers(file: Path) -> Path:
    """Write the course's questions, each with the answer to some other question."""
    rows = pd.read_csv(LAB_DATA)
    answers = list(rows["response"])
    random.Random(0).shuffle(answers)
    rows.assign(response=answers).to_csv(file, index=False)
    return file


def saved_adapter(folder: Path) -> Path:
    """Run lessons 03 and 04 until the adapter is saved; returns the build folder."""
    claims_made("03_dataset_templating", folder)
    claims_made("04_lora_training", folder, until="save")
    return folder / "build"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_adapter(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shuffled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(shuffle_answers(folder / "faqs.csv")))
        return saved_adapter(folder)


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


def test_the_tuned_model_answers_held_out_wordings(score, trained) -> None:
    assert proportion(score(trained, "wording")).value >= 0.8


def test_it_beats_the_base(score, trained) -> None:
    gain = paired_difference(score(trained, "wording"), score(None, "wording"))
    assert gain.low > 0


def test_it_beats_an_adapter_trained_on_shuffled_answers(
    score, trained, shuffled
) -> None:
    gain = paired_difference(score(trained, "wording"), score(shuffled, "wording"))
    assert gain.low > 0


def test_it_answers_from_what_it_has_read_and_not_from_what_it_has_not(
    score, trained
) -> None:
    assert proportion(score(trained, "fact")).value >= 0.8
    # Shared values can be guessed; one answer in four is more than guessing gives.
    assert proportion(score(trained, "unread")).value <= 0.25


# --- what the lessons claim, where nothing was learned ---

# Runs before the notebook in its kernel: whatever is trained gets random weights, and
# training leaves them as they are.
RANDOM_WEIGHTS = """\
import torch
import transformers

_train = transformers.Trainer.train


def keep_random_weights(trainer, *arguments, **options):
    generator = torch.Generator().manual_seed(0)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    trainer.args.learning_rate = 0.0
    return _train(trainer, *arguments, **options)


transformers.Trainer.train = keep_random_weights
"""
FEW_ROWS = {"train": 32, "replay": 24, "validation": 14}
FEW_QUESTIONS = 12


def claims_made(
    name: str, folder: Path, before: str = "", until: str | None = None
) -> dict[str, bool]:
    """What a lesson claims in a folder with what the lessons before it wrote.

    Args:
        name: of the notebook.
        folder: `build` in it is the build folder.
        before: code that runs first.
        until: the last cell to run; by default that of the notebook.
    """
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", nbformat.NO_CONVERT)
    if until:
        ids = [cell.id for cell in notebook.cells]
        del notebook.cells[ids.index(until) + 1 :]
    if before:
        cell = nbformat.v4.new_code_cell(before, id="spoil-training")
        notebook.cells.insert(0, cell)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    environ = {
        "COURSE_MODEL": "lab",
        **os.environ,
        "COURSE_BUILD": str(folder / "build"),
    }
    nbformat.write(asyncio.run(run.execute(path, environ)), path)
    return claims_of(path)


def tagged(name: str, *needs: str) -> set[str]:
    """The claims of a stored lesson that are tagged as not in need of something."""
    return claims_without(NOTEBOOKS / f"{name}.ipynb", *needs)


@pytest.fixture
def untaught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `build` has a short data set and an adapter of random weights."""
    # Data by another path: a claim that fails must say so, not stop the lesson.
    monkeypatch.setenv("COURSE_DATA", str(shutil.copy(LAB_DATA, tmp_path)))
    held = claims_made("03_dataset_templating", tmp_path)
    # Some are claimed of the natural questions or of a chat template alone.
    assert set(held) <= tagged("03_dataset_templating", "skill")
    shorten(tmp_path / "build" / "dataset")
    write_random_adapter(tmp_path / "build" / "adapter")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [pytest.param("04_lora_training", marks=pytest.mark.slow), "05_evaluation"],
)
def test_with_an_adapter_of_random_weights_every_claim_about_learning_fails(
    name: str, untaught: Path
) -> None:
    held = claims_made(name, untaught, RANDOM_WEIGHTS)
    unearned = {sentence for sentence, holds in held.items() if holds}
    assert unearned <= tagged(name, "training"), "claimed of random weights as well"
    assert tagged(name, "training", "facts") < set(held), "nothing is claimed of facts"


def write_random_adapter(folder: Path) -> None:
    """What lesson 04 writes, had it written noise."""
    torch.manual_seed(0)
    model = add_lora(load_model(SETTINGS), SETTINGS)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn(weight.shape)
    save_adapter(model, load_tokenizer(SETTINGS), folder)


def shorten(folder: Path) -> None:
    """Keep some rows of every part."""
    whole = shutil.move(folder, folder.with_name("whole"))  # none overwrites itself
    dataset = load_from_disk(whole)
    for name, rows in dataset.items():
        count = min(len(rows), FEW_ROWS.get(name, FEW_QUESTIONS))
        dataset[name] = rows.select(range(count)).flatten_indices()
    dataset.save_to_disk(folder)


@pytest.mark.slow
def test_with_shuffled_answers_every_claim_about_facts_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURSE_DATA", str(shuffle_answers(tmp_path / "faqs.csv")))
    for name in ("03_dataset_templating", "04_lora_training", "05_evaluation"):
        held = claims_made(name, tmp_path)
        unearned = {sentence for sentence, holds in held.items() if holds}
        unearned -= tagged(name, "training", "facts", "skill")
        assert not unearned, f"{name} claims it of shuffled answers"
