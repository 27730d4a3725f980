"""Claims about learned skills hold because of training: random weights have none.

Lessons 01 and 02 run on a model of the lab model's shape and tokenizer that has learned
nothing. Every claim must fail there but those listed in `NEED_NO_SKILL`.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import GPTNeoXForCausalLM

from utils import run
from utils.lab_model.train import save_model
from utils.models import load_model, load_tokenizer, settings_for
from utils.run import NOTEBOOKS

# Claims that are true of any weights, in the words of the notebook. What a notebook
# does not claim any longer must go: a test says so.
NEED_NO_SKILL: dict[str, list[str]] = {
    "01_language_models": [
        # How something works, or what it costs.
        "temperature by hand is the library's",
        "top-k by hand is the library's",
        "top-p by hand is the library's",
        "the loop writes what the library writes",
        "every word has the same output in both sentences",
        "with positions the cat differs",
        "turned, two words meet by their distance alone",
        "the attention weights equal the model's own to 1e-5",
        "so does the output of the whole attention",
        "it equals the model's own feed-forward network to 1e-5",
        "input + attention + feed-forward is the next layer's input",
        "without GELU, two linear layers are one",
        "in a decoder a later token changes nothing before it",
        "in an encoder it changes what came before",
        "one token with the cache scores like the whole text",
        "on short texts the RNN is slowest",
        "attention's time grows fastest",
        "twice the text is twice the work for RNN and CNN",
        "for attention it is nearly four times",
        "the retriever finds the right record every time",
        # About n-gram models.
        "the probabilities still add up to one",
        "no token is impossible any more",
        "a second token of history makes counting much better",
        "the trigram model does not know what Ana counts",
        "a gap is guessed far better from both sides",
        # About tokenizers.
        "the library learns the same merges",
        "both vocabularies have the same size",
        "characters take the most tokens",
        "characters and WordPiece lose something",
        "bytes give the very text back",
        "so does the model's own tokenizer",
        "the most frequent words are nearly always one token",
        "words read once take more than two",
        "in the model's own tokenizer, too, rare words are cut finer",
        "each doubling saves fewer tokens than the last",
        "most of the words are one token each",
        # About small networks that the notebook trains itself.
        "without positions most answers are wrong",
        "sinusoidal: nearly all are right",
        "learned: nearly all are right",
        "rotary: nearly all are right",
        "with GELU all four are learned",
        "without, at least one is missed by a half",
    ],
    "02_prompting": [
        # How something works, or what it costs.
        "every prompt got an answer",
        "for less than a third of the tokens",
        "the steps make a question dearer",
        "and make prompt and answer twice as long or more",
        "its numbers were not kept out of the training",
        "a probability it is",
        "greedy answers the same twice",
        "sampling does not",
        # What cannot be done, or does not help.
        "without, none has even half the probability",
        "at once, most longer problems are wrong",
        "examples of results alone do not do it",
        "hardly a mistake is noticed",
        "the five rules gain nothing",
        "most lies about the word are not believed",
        "the order in words is not obeyed",
        "the right product does not stand there",
        "on three sums it doubts, and rightly",
        # That two ways come to about the same.
        "after three, more change little",
        "their order hardly matters",
        "the examples alone do as well as all six parts",
        "asked for a tone, most answers stay as they were",
        "the fact survives the extra sentence",
        "yet they add little to the one sentence",
        "beams gain little over greedy",
    ],
}

# Runs before the notebook in its kernel: keeps what is claimed. With `few`, no function
# draws more prompts than that, and answers are short.
RECORD = """\
import functools
import utils.course
import utils.lab_model.tasks
import utils.models

claims_made = []
_claim = utils.course.claim


def recording_claim(sentence, holds, config=None):
    claims_made.append((sentence, bool(holds)))
    return _claim(sentence, holds, config)


def fewer(draw):
    return functools.wraps(draw)(lambda *a, **k: draw(*a, **k)[:{few}])


def shorter(model, tokenizer, prompts, max_new_tokens=96, **options):
    return _generate(model, tokenizer, prompts, min(max_new_tokens, 16), **options)


utils.course.claim = recording_claim
_generate = utils.models.generate
if {few} is not None:
    utils.models.generate = shorter
    for _name in ("few_shot_tasks", "rule_tasks", "problems"):
        _draw = getattr(utils.lab_model.tasks, _name)
        setattr(utils.lab_model.tasks, _name, fewer(_draw))
"""
REPORT = "import json\nprint(json.dumps(claims_made))"
FEW = 6


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lab model's configuration, tokenizer, and random weights."""
    settings = settings_for("lab")
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(load_model(settings).config)
    folder = tmp_path_factory.mktemp("untrained") / "model"
    save_model(model, load_tokenizer(settings), folder)
    return folder


def claims_made(
    path: Path, model: Path, folder: Path, few: int | None
) -> dict[str, bool]:
    """What a notebook claims with this model, and whether it held.

    Args:
        path: of the notebook, which is executed from its first to its last cell.
        model: folder of the model.
        folder: where a copy of the notebook and what it builds may lie.
        few: how many prompts at most are drawn at a time; None for all.
    """
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    new_cell = nbformat.v4.new_code_cell
    notebook.cells.insert(0, new_cell(RECORD.format(few=few), id="record-claims"))
    notebook.cells.append(new_cell(REPORT, id="report-claims"))
    copy = folder / path.name
    nbformat.write(notebook, copy)
    environ = {
        **os.environ,
        "COURSE_MODEL": str(model),
        "COURSE_BUILD": str(folder / "build"),
    }
    executed = asyncio.run(run.execute(copy, environ))
    made = json.loads(executed.cells[-1].outputs[0].text)
    held: dict[str, bool] = {}
    for sentence, holds in made:  # a sentence claimed twice holds if one of them does
        held[sentence] = holds or held.get(sentence, False)
    return held


@pytest.mark.parametrize("name", NEED_NO_SKILL)
def test_the_list_of_exempt_claims_is_up_to_date(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", nbformat.NO_CONVERT)
    stored = {
        output.data.get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    }
    made = {text.removeprefix("✓ ") for text in stored if text.startswith("✓ ")}
    assert set(NEED_NO_SKILL[name]) <= made, "no longer claimed: take it off the list"
    assert len(made) > len(NEED_NO_SKILL[name]) + 10, "too little is claimed of skills"


# As long as with the lab model or longer, for random weights never end an answer. The
# first lesson mostly trains models of its own, which fewer prompts do not shorten.
@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("02_prompting", FEW),
        pytest.param("01_language_models", None, marks=pytest.mark.slow),
        pytest.param("02_prompting", None, marks=pytest.mark.slow),
    ],
)
def test_random_weights_make_every_claim_about_a_learned_skill_fail(
    name: str, few: int | None, untrained: Path, tmp_path: Path
) -> None:
    held = claims_made(NOTEBOOKS / f"{name}.ipynb", untrained, tmp_path, few)
    unearned = {sentence for sentence, holds in held.items() if holds}
    unearned -= set(NEED_NO_SKILL[name])
    assert not unearned, "these are claimed of random weights as well"
    assert not set(NEED_NO_SKILL[name]) - set(held)
