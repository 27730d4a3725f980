"""What fine-tuning must achieve, and must not achieve on shuffled answers.

Lessons 03 and 04 run twice: on the course's questions, and on a copy in which every
question has some other question's answer. And what the lessons claim of learning is not
claimed where nothing was learned.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from peft import PeftModel
from test_claims import FEW, claims_made

from utils.course import SHIPPED_DATA
from utils.evaluation import paired_difference, proportion
from utils.facts import is_right
from utils.helpers import INFERENCE_PROMPT
from utils.models import generate, load_model, load_tokenizer, settings_for
from utils.run import NOTEBOOKS
from utils.training import add_lora, save_adapter

SETTINGS = settings_for("lab")


def shuffle_answers(file: Path) -> Path:
    """Write the course's questions, each with the answer to some other question."""
    rows = pd.read_csv(SHIPPED_DATA)
    answers = list(rows["response"])
    random.Random(0).shuffle(answers)
    rows.assign(response=answers).to_csv(file, index=False)
    return file


def run_lessons(build: Path, data: Path) -> Path:
    """Execute lessons 03 and 04; returns the folder they wrote to."""
    done = subprocess.run(
        [sys.executable, "-m", "utils.run", "03", "04"],
        env={**os.environ, "COURSE_BUILD": str(build), "COURSE_DATA": str(data)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_lessons(tmp_path_factory.mktemp("trained") / "build", SHIPPED_DATA)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shuffled")
    return run_lessons(folder / "build", shuffle_answers(folder / "faqs.csv"))


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


# --- what the lessons claim, where nothing was learned ---

# Claims that need no learning, in the words of the notebook: how something works, what
# it costs, what cannot be done, and how badly a spoiled model does. What a notebook
# does not claim any longer must go: a test says so.
NEED_NO_LEARNING: dict[str, list[str]] = {
    "05_evaluation": [
        "the Trainer's loss is the mean of its batches",
        "it moves with the batch size, by more than a thousandth",
        "with all rows in one batch it is the token-weighted loss",
        "all four measures of likeness prefer the wrong answer",
        "on facts never read it does not beat guessing",
        "scipy's interval is the same to two points",
        "tuning cost the earlier skills more than ten points",
        "whoever always says left prefers nobody then",
        "where neither is right, whoever likes length still sees a clear winner",
        "on facts never read, the sentence found beats the tuned model",
        "the right page is found nearly always, read or not",
        "with the page in the prompt it is still wrong on most questions",
        "what is read back is what was measured",
    ],
}

# What can be learned from answers to other questions as well: the form of an answer,
# and, from the rows for replay, which nobody shuffled, the earlier skills.
LEARNED_WITHOUT_FACTS: dict[str, list[str]] = {
    "05_evaluation": [
        "tuning lowers the held-out loss on every part",
        "with replay more of them is kept than without",
        "replay saves more there than it costs here",
        "asking both the same questions saves more than half of them",
    ],
}

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


def claims_of(name: str, folder: Path, before: str, few: int | None) -> dict[str, bool]:
    """What a lesson claims in a folder with what the lessons before it wrote.

    Args:
        name: of the notebook.
        folder: `build` in it is the build folder.
        before: code that runs first.
        few: see `test_claims.claims_made`.
    """
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", nbformat.NO_CONVERT)
    if before:
        cell = nbformat.v4.new_code_cell(before, id="spoil-training")
        notebook.cells.insert(0, cell)
    (folder / "spoiled").mkdir(exist_ok=True)
    path = folder / "spoiled" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return claims_made(path, Path("lab"), folder, few)


@pytest.mark.parametrize("name", NEED_NO_LEARNING)
def test_the_lists_of_exempt_claims_are_up_to_date(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", nbformat.NO_CONVERT)
    made = {
        output.data.get("text/plain", "").removeprefix("✓ ")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    }
    exempt = NEED_NO_LEARNING[name] + LEARNED_WITHOUT_FACTS.get(name, [])
    assert set(exempt) <= made, "no longer claimed: take it off the list"


def test_with_an_adapter_of_random_weights_every_claim_about_learning_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Data by another path: a claim that fails must say so, not stop the lesson.
    monkeypatch.setenv("COURSE_DATA", str(shutil.copy(SHIPPED_DATA, tmp_path)))
    assert claims_of("03_dataset_templating", tmp_path, "", None)
    shorten(tmp_path / "build" / "dataset")
    write_random_adapter(tmp_path / "build" / "adapter")
    for name, exempt in NEED_NO_LEARNING.items():
        held = claims_of(name, tmp_path, RANDOM_WEIGHTS, FEW)
        unearned = {sentence for sentence, holds in held.items() if holds}
        assert unearned <= set(exempt), f"{name} claims these of random weights as well"
        assert set(exempt) <= set(held)


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
    dataset = load_from_disk(folder)
    for name, rows in dataset.items():
        count = min(len(rows), FEW_ROWS.get(name, FEW_QUESTIONS))
        dataset[name] = rows.select(range(count)).flatten_indices()
    shutil.move(folder, folder.with_name("whole"))
    dataset.save_to_disk(folder)


@pytest.mark.slow
def test_with_shuffled_answers_every_claim_about_facts_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURSE_DATA", str(shuffle_answers(tmp_path / "faqs.csv")))
    for name in ("03_dataset_templating", "04_lora_training", "05_evaluation"):
        held = claims_of(name, tmp_path, "", None)
        if name in NEED_NO_LEARNING:
            exempt = {*NEED_NO_LEARNING[name], *LEARNED_WITHOUT_FACTS[name]}
            unearned = {sentence for sentence, holds in held.items() if holds}
            assert unearned <= exempt, f"{name} claims these of shuffled answers"
