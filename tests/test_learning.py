"""What fine-tuning must achieve, and must not achieve on shuffled answers.

Lessons 03 and 04 run twice: on the course's questions, and on a copy in which every
question has some other question's answer. And what the lessons claim of learning is not
claimed where nothing was learned.
"""

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

from support.lessons import claims_of
from utils import run
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
# it costs, what the base can do, what cannot be done, and how badly a spoiled model
# does. What a notebook does not claim any longer must go: a test says so.
NEED_NO_LEARNING: dict[str, list[str]] = {
    # The only model that it trains is a random one, to see which numbers are saved.
    "03_dataset_templating": [
        "the labels spell the completion, end marker included",
        "the row begins with exactly the tokens that a server sends",
        "saved without its new row, another model is served",
        "saved whole, it is the same model, with a row that nothing has trained",
        "trained and saved alone, the row is learned and kept",
        "and the file hardly grows",
        "more than half of a random test set asks for trained facts",
        "every fact of `wording` is trained",
        "no fact of `fact` or `unread` is trained",
        "no question is in two parts",
        "the copy is the pair most alike",
        "none of the next ten asks for one fact",
        "hundreds of such pairs are more alike than any two wordings",
        "no row is lost to the limit",
        "a mask made by comparing loses the real end of text",
        "it makes the batch that you made",
        "the loss is the same",
        "with scores at fewer than two in three positions",
        "batches of like length waste less",
        "a fifth of all rows is replay",
        "what is read back is what was written",
    ],
    "04_lora_training": [
        "bitsandbytes stores the same numbers, but for rounding",
        "8 bits save at least a third against 16 bits",
        "4 bits save more, and move the scores more",
        "8 bits move the held-out loss by less than 2%",
        "the base is right on fewer than one in ten",
        "asked as Q: and A:, the same base is right on at least nine in ten",
        "with B = 0, nothing changes yet",
        "peft computes the same",
        "merged, too",
        "with B = 0 no logit has changed",
        "rank 64 on all linear layers trains exactly as many parameters",
        "and it does not turn up again by more than 2% of what it was at first",
        "it was stopped before its last epoch",
        "the epoch with the lowest held-out loss was kept",
        "not by a single bit",
        "the saved adapter is the trained one, number for number",
        "merged, it gives the same scores",
        "prompt tuning trains the fewest numbers",
        "LoRA pays with the earlier skill",
        "LoRA holds less in memory than full fine-tuning, QLoRA less again",
        "the same loss on the same rows",
    ],
    "05_evaluation": [
        "three tokens hold most of an answer's loss",
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
    "04_lora_training": [
        "training more than halved the held-out loss",
        "prompts and prefixes hardly get going in so few steps",
        "LoRA learns as much as all weights, and halves the loss at the least",
        "with replay it pays less",
        "spread over all layers, the same number learns more, with every seed",
        "the learning rate matters more than the rank",
        "in one epoch, small batches get further",
        "either way, seen rows have less than half the loss",
    ],
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
    environ = {**os.environ, "COURSE_BUILD": str(folder / "build")}
    nbformat.write(asyncio.run(run.execute(path, environ)), path)
    return claims_of(path)


def exempt_claims(name: str) -> set[str]:
    return {*NEED_NO_LEARNING[name], *LEARNED_WITHOUT_FACTS.get(name, [])}


@pytest.mark.parametrize("name", NEED_NO_LEARNING)
def test_the_lists_of_exempt_claims_are_up_to_date(name: str) -> None:
    made = claims_of(NOTEBOOKS / f"{name}.ipynb")
    assert exempt_claims(name) <= made.keys(), "no longer claimed: take it off the list"


@pytest.fixture
def untaught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `build` has a short data set and an adapter of random weights."""
    # Data by another path: a claim that fails must say so, not stop the lesson.
    monkeypatch.setenv("COURSE_DATA", str(shutil.copy(SHIPPED_DATA, tmp_path)))
    held = claims_made("03_dataset_templating", tmp_path)
    assert set(held) == exempt_claims("03_dataset_templating")
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
    assert unearned <= set(NEED_NO_LEARNING[name]), "claimed of random weights as well"
    assert exempt_claims(name) < set(held), "nothing is claimed of facts"


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
    for name in NEED_NO_LEARNING:
        held = claims_made(name, tmp_path)
        unearned = {sentence for sentence, holds in held.items() if holds}
        assert unearned <= exempt_claims(name), f"{name} claims it of shuffled answers"
