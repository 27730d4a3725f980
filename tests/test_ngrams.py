"""N-gram models, counted by hand."""

from __future__ import annotations

import math
import random

import numpy
import pytest
import torch

from support.tiny_models import tiny_gpt_neox
from utils.evaluation.scores import model_log_probabilities, perplexity_with_interval
from utils.ngrams import NGramModel

END, A, B, C = range(4)
DOCUMENTS = [[A, B, A, C], [A, B, B]]


def fitted(order: int) -> NGramModel:
    return NGramModel(order, vocabulary=4, end=END).fit(DOCUMENTS)


def test_unigram_probabilities_by_hand() -> None:
    # Nine tokens with the two ends, four different ones; equal chances below that.
    chances = fitted(1).probabilities()
    share = 4 / (9 + 4)
    expected = [2 / 13 + share / 4, 3 / 13 + share / 4, 3 / 13 + share / 4]
    assert chances[:3] == pytest.approx(expected)
    assert chances[C] == pytest.approx(1 / 13 + share / 4)


def test_bigram_probabilities_by_hand() -> None:
    # After A came B twice and C once: three tokens, two different ones.
    shorter = fitted(1).probabilities()
    chances = fitted(2).probabilities([C, A])
    assert chances[B] == pytest.approx((2 + 2 * shorter[B]) / 5)
    assert chances[C] == pytest.approx((1 + 2 * shorter[C]) / 5)
    assert chances[END] == pytest.approx(2 * shorter[END] / 5)


def test_trigram_probabilities_by_hand() -> None:
    # After A, B came A once and B once.
    shorter = fitted(2).probabilities([B])
    chances = fitted(3).probabilities([A, B])
    assert chances[A] == pytest.approx((1 + 2 * shorter[A]) / 4)
    assert chances[END] == pytest.approx(2 * shorter[END] / 4)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [[], [A], [A, B], [C, C], [B, A, C, END, A]])
def test_probabilities_are_positive_and_add_up_to_one(order, before) -> None:
    chances = fitted(order).probabilities(before)
    assert chances.shape == (4,)
    assert chances.min() > 0
    assert chances.sum() == pytest.approx(1)


def test_a_document_starts_after_the_end_token() -> None:
    # Both documents begin with A, which otherwise is one of four.
    model = fitted(2)
    assert model.probabilities().argmax() == A
    assert model.probabilities() == pytest.approx(model.probabilities([END]))


def test_a_history_never_seen_falls_back_on_the_shorter_one() -> None:
    model = fitted(3)
    assert model.probabilities([C, B]) == pytest.approx(fitted(2).probabilities([B]))
    # Asking does not make it seen.
    assert (C, B) not in model.followers


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("document", [[], [A], [A, B, A, C], [C, C, B]])
def test_log_probabilities_are_those_of_each_next_token(order, document) -> None:
    model = fitted(order)
    expected = [
        math.log(model.probabilities(document[:place])[token])
        for place, token in enumerate([*document, END])
    ]
    assert model.log_probabilities(document) == pytest.approx(expected)


def test_fitting_twice_is_fitting_both() -> None:
    twice = NGramModel(3, 4, END).fit(DOCUMENTS[:1]).fit(DOCUMENTS[1:])
    assert twice.followers == fitted(3).followers


def perplexity(log_probabilities) -> float:
    return perplexity_with_interval(log_probabilities).value


def test_a_longer_history_fits_what_was_read_better() -> None:
    scores = [
        perplexity([fitted(order).log_probabilities(one) for one in DOCUMENTS])
        for order in (1, 2, 3)
    ]
    assert scores == sorted(scores, reverse=True)


def test_a_model_that_read_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    model = NGramModel(3, 4, END)
    assert perplexity([model.log_probabilities([A, B, C])]) == pytest.approx(4)


def test_samples_are_repeatable_and_keep_to_the_budget() -> None:
    model = fitted(2)
    samples = [model.sample(random.Random(seed), 3) for seed in range(50)]
    assert samples == [model.sample(random.Random(seed), 3) for seed in range(50)]
    assert {len(sample) for sample in samples} >= {2, 3}
    assert max(map(len, samples)) == 3
    assert not any(END in sample for sample in samples)


def test_samples_follow_the_probabilities() -> None:
    model, generator = fitted(2), random.Random(0)
    firsts = [(model.sample(generator, 1) or [END])[0] for _ in range(2000)]
    shares = numpy.bincount(firsts, minlength=4) / len(firsts)
    assert shares == pytest.approx(model.probabilities(), abs=0.05)


@pytest.mark.parametrize("order, end", [(0, END), (2, 4), (2, -1)])
def test_values_out_of_range_are_refused(order, end) -> None:
    with pytest.raises(ValueError, match=r"order is 0|end is -?\d"):
        NGramModel(order, vocabulary=4, end=end)


def test_model_log_probabilities_are_those_of_the_model_one_by_one() -> None:
    torch.manual_seed(0)
    model = tiny_gpt_neox().eval()
    generator = random.Random(0)
    documents = [
        [generator.randrange(20) for _ in range(length)]
        for length in [5, 0, 12, *[3] * 40]
    ]
    found = model_log_probabilities(model, documents, end=1)
    assert [len(one) for one in found] == [len(one) + 1 for one in documents]
    for document, values in zip(documents, found, strict=True):
        ids = torch.tensor([[1, *document, 1]])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        expected = [logs[k, ids[0, k + 1]].item() for k in range(len(document) + 1)]
        assert values == pytest.approx(expected, abs=1e-4)


def test_perplexity_counts_every_token_the_same() -> None:
    logs = [[math.log(0.5)], [math.log(0.125), math.log(0.5), math.log(0.125)]]
    assert perplexity(logs) == pytest.approx(4)


@pytest.mark.parametrize("nothing", [[], [[], []]])
def test_perplexity_of_nothing_is_refused(nothing) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        perplexity(nothing)
