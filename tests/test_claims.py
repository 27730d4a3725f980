"""Claims about learned skills hold because of training: random weights have none.

Lessons 01 and 02 run on a model of the lab model's shape and tokenizer that has learned
nothing. Every claim must fail there but those listed in `NEED_NO_SKILL`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXForCausalLM

from support.lessons import claims_of, run_lessons
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
        "turning leaves every vector as long as it was",
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
        "a gap is filled better from both sides",
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
        "asked for five words, hardly any answer keeps to them",
        "hardly a mistake is noticed",
        "the five rules gain nothing",
        "most lies about the word are not believed",
        "the order in words is not obeyed",
        "the right product does not stand there",
        "half the reasoning is worth nothing",
        "on three sums it doubts, and rightly",
        # That two ways come to about the same.
        "after three, more change little",
        "their order hardly matters",
        "the examples alone do as well as all six parts",
        "a conversation does as well as a list",
        "asked for a tone, most answers stay as they were",
        "the fact survives the extra sentence",
        "yet they add little to the one sentence",
        "beams gain little over greedy",
    ],
}


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
        return dict(zip(NEED_NO_SKILL, pool.map(run, NEED_NO_SKILL), strict=True))


def claimed(name: str) -> dict[str, bool]:
    """What a notebook claims as it is stored."""
    return claims_of(NOTEBOOKS / f"{name}.ipynb")


@pytest.mark.parametrize("name", NEED_NO_SKILL)
def test_the_list_of_exempt_claims_is_up_to_date(name: str) -> None:
    exempt, made = NEED_NO_SKILL[name], claimed(name)
    assert len(set(exempt)) == len(exempt)
    assert not set(exempt) - made.keys(), "no longer claimed: take them off the list"
    assert len(made) > len(exempt) + 10, "too little is claimed of skills"


@pytest.mark.parametrize("name", NEED_NO_SKILL)
def test_random_weights_make_every_claim_about_a_learned_skill_fail(
    name: str, claimed_by_random_weights: Claims
) -> None:
    held = claimed_by_random_weights[name]
    assert held.keys() == claimed(name).keys(), "not the same claims were made"
    unearned = {sentence for sentence, holds in held.items() if holds}
    unearned -= set(NEED_NO_SKILL[name])
    assert not unearned, "these are claimed of random weights as well"
