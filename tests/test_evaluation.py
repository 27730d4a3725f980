"""Shares, differences and their intervals; losses, text measures and classes."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from support.tiny_models import tiny_gpt_neox, tiny_tokenizer
from utils.evaluation.scores import (
    exact_match,
    held_out_loss,
    paired_difference,
    proportion,
    proportions,
    questions_needed,
    same,
    text_scores,
    token_f1,
    token_losses,
    words,
)
from utils.helpers import DataCollatorForCompletionOnlyLM, add_text, preprocess_batch

# --- shares and differences ---


def test_proportion_matches_wilson_by_hand() -> None:
    score = proportion([True] * 8 + [False] * 2)
    z, p, n = 1.959963984540054, 0.8, 10
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert score.value == pytest.approx(0.8)
    assert score.low == pytest.approx(centre - half)
    assert score.high == pytest.approx(centre + half)
    assert score.n == 10
    assert repr(score) == "Proportion(0.800, low=0.490, high=0.943, n=10)"


def test_proportion_of_a_clean_sweep_stays_inside_zero_and_one() -> None:
    assert proportion([True] * 20).high == pytest.approx(1)
    assert proportion([False] * 20).low == pytest.approx(0)
    assert 0 < proportion([False] * 20).high < 0.2


def test_wordings_of_one_fact_are_one_cluster() -> None:
    hits = [True] * 8 + [False] * 2
    # Each answer five times: nothing more is known than from ten.
    repeated, facts = [h for h in hits for _ in range(5)], [*np.repeat(range(10), 5)]
    naive, clustered = proportion(repeated), proportion(repeated, facts)
    assert clustered.value == naive.value == pytest.approx(0.8)
    assert clustered.n == 50
    assert clustered.high - clustered.low > 1.8 * (naive.high - naive.low)
    assert clustered.low == pytest.approx(0.5, abs=0.05)
    # The order of the rows and the names of the groups say nothing.
    order = np.random.default_rng(0).permutation(50)
    mixed = proportion(
        [repeated[i] for i in order], [f"fact {facts[i]}" for i in order]
    )
    assert mixed.low == pytest.approx(clustered.low, abs=0.03)
    assert mixed.high == pytest.approx(clustered.high, abs=0.03)


def test_groups_of_one_each_change_next_to_nothing() -> None:
    hits = [True] * 60 + [False] * 40
    alone, each = proportion(hits), proportion(hits, range(100))
    assert each.value == alone.value
    assert each.low == pytest.approx(alone.low, abs=0.02)
    assert each.high == pytest.approx(alone.high, abs=0.02)


def test_a_clean_sweep_of_few_groups_stays_uncertain() -> None:
    sweep = proportion([True] * 40, [*range(4)] * 10)
    assert (sweep.value, sweep.n) == (1, 40)
    assert sweep.low == proportion([True] * 4).low
    assert proportion([False] * 40, [0] * 40).high == proportion([False]).high


def test_clustered_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # Forty facts in three wordings each, answered all alike; 60% of facts are known.
    generator = np.random.default_rng(0)
    facts, held, naive_held = np.repeat(range(40), 3), 0, 0
    for _ in range(100):
        hits = np.repeat(generator.random(40) < 0.6, 3)
        clustered, naive = proportion(hits, facts), proportion(hits)
        held += clustered.low <= 0.6 <= clustered.high
        naive_held += naive.low <= 0.6 <= naive.high
    assert held >= 88
    assert naive_held < 80


def test_a_clustered_difference_is_less_certain() -> None:
    facts = np.repeat(range(12), 4)
    better, base = np.repeat([1, 0, 1] * 4, 4), np.repeat([0, 0, 1] * 4, 4)
    naive = paired_difference(better, base)
    clustered = paired_difference(better, base, groups=facts)
    assert clustered.value == naive.value == pytest.approx(1 / 3)
    assert clustered.high - clustered.low > 1.7 * (naive.high - naive.low)
    assert paired_difference(better, base, groups=facts) == clustered
    one = paired_difference([1, 0], [0, 0], groups=["a", "a"])
    assert (one.low, one.high) == (0.5, 0.5)


@pytest.mark.parametrize("groups", [["a"], ["a", "b", "c"]])
def test_a_group_for_each_answer(groups) -> None:
    with pytest.raises(ValueError, match="groups for 2 answers"):
        proportion([True, False], groups)
    with pytest.raises(ValueError, match="groups for 2 answers"):
        paired_difference([1, 0], [0, 0], groups=groups)


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="hits is empty"):
        proportion([])


def test_paired_difference_uses_the_pairing() -> None:
    baseline = [False] * 30 + [True] * 30
    better = [True] * 10 + [False] * 20 + [True] * 30  # right wherever the baseline is
    paired = paired_difference(better, baseline)
    assert paired.value == pytest.approx(10 / 60)
    assert 0 < paired.low < 10 / 60 < paired.high < 0.3
    # The same shares in another order are far less certain.
    shuffled = list(np.random.default_rng(0).permutation(better))
    unpaired = paired_difference(shuffled, baseline)
    assert unpaired.high - unpaired.low > 1.5 * (paired.high - paired.low)
    assert paired_difference(better, baseline) == paired


def test_equal_answers_differ_by_exactly_nothing() -> None:
    same = paired_difference([True, False, True], [True, False, True])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_several_series_are_counted_by_name() -> None:
    hits = {0: [True, False], "worked": [True, True]}
    assert proportions(hits) == {n: proportion(series) for n, series in hits.items()}


@pytest.mark.parametrize(("hits", "baseline"), [([True], [True, False]), ([], [])])
def test_unpaired_answers_are_an_error(hits, baseline) -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(hits, baseline)


def test_differences_of_any_numbers_have_an_interval() -> None:
    gain = paired_difference([2.0, 2.5, 3.0, 3.5], [1.0, 1.0, 1.0, 1.0])
    assert gain.value == pytest.approx(1.75)
    assert 1 < gain.low < gain.value < gain.high < 2.5


def test_as_many_questions_as_are_needed_find_the_difference_that_often() -> None:
    # Of the questions, 15% are won and 5% lost: 0.1 on average.
    chances = {1: 0.15, -1: 0.05, 0: 0.8}
    spread = math.sqrt(0.2 - 0.1**2)
    n = questions_needed(spread, 0.1, power=0.8)
    assert n == math.ceil((2.8015852 * spread / 0.1) ** 2)
    drawn = np.random.default_rng(0).choice(
        list(chances), p=list(chances.values()), size=(2000, n)
    )
    errors = drawn.std(axis=1) / math.sqrt(n)
    found = (drawn.mean(axis=1) > 1.96 * errors).mean()
    assert 0.75 < found < 0.87


def test_half_the_difference_takes_four_times_the_questions() -> None:
    assert abs(questions_needed(1, 0.05) - 4 * questions_needed(1, 0.1)) <= 4
    assert questions_needed(0, 0.1) == 1


@pytest.mark.parametrize(("spread", "difference"), [(1, 0), (-1, 0.1)])
def test_a_difference_of_nothing_cannot_be_found(spread, difference) -> None:
    with pytest.raises(ValueError, match="not zero"):
        questions_needed(spread, difference)


# --- losses ---

RECORDS = [
    {"instruction": "What is kept?", "response": "Features."},
    {
        "instruction": "Which measures?",
        "response": "Encryption at rest, and more of it.",
    },
    {"instruction": "What does Feature Store keep for models?", "response": "It is."},
    {
        "instruction": "And at rest?",
        "response": "It keeps features for models at rest.",
    },
]


@pytest.fixture(scope="module")
def rows():
    texts = [add_text(record) for record in RECORDS]
    batch = {name: [text[name] for text in texts] for name in ("prompt", "completion")}
    columns = preprocess_batch(batch, tiny_tokenizer(), max_length=None)
    names = list(columns)
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_gpt_neox().eval()


def test_token_losses_are_those_of_the_labelled_tokens(model, rows) -> None:
    losses = token_losses(model, tiny_tokenizer(), rows)
    for row, found in zip(rows, losses, strict=True):
        labelled = sum(label >= 0 for label in row["labels"])
        assert len(found) == labelled
        tensors = {name: torch.tensor([values]) for name, values in row.items()}
        with torch.no_grad():
            assert found.mean() == pytest.approx(model(**tensors).loss.item(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_held_out_loss_does_not_depend_on_the_batches(
    model, rows, batch_size
) -> None:
    losses = token_losses(model, tiny_tokenizer(), rows)
    again = token_losses(model, tiny_tokenizer(), rows, batch_size)
    for one, other in zip(losses, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    tokens = np.concatenate(losses)
    score = held_out_loss(losses)
    assert score.value == pytest.approx(tokens.mean())
    assert score.low <= score.value <= score.high
    assert score.n == len(rows)


def test_the_trainer_weights_its_batches_by_their_rows(model, rows, tmp_path) -> None:
    # What lesson 05 says of transformers: a change there must be noticed here.
    rows = [*rows[:2], min(rows, key=lambda row: len(row["input_ids"]))]
    losses = token_losses(model, tiny_tokenizer(), rows)
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        eval_dataset=rows,
        data_collator=DataCollatorForCompletionOnlyLM(tiny_tokenizer()),
    )
    batches = [np.concatenate(losses[:2]).mean(), np.concatenate(losses[2:]).mean()]
    theirs = trainer.evaluate()["eval_loss"]
    assert theirs == pytest.approx(np.average(batches, weights=[2, 1]), abs=1e-4)
    assert abs(theirs - np.mean(batches)) > 1e-3
    assert abs(theirs - held_out_loss(losses).value) > 1e-4


def test_no_tokens_have_no_loss() -> None:
    with pytest.raises(ValueError, match="no tokens to score"):
        held_out_loss([np.empty(0)])


def test_one_row_has_a_loss_and_no_interval_around_it() -> None:
    score = held_out_loss([np.array([1.0, 3.0])])
    assert (score.value, score.low, score.high, score.n) == (2.0, 2.0, 2.0, 1)


# --- text measures ---


def test_words_are_compared_without_case_punctuation_and_articles() -> None:
    assert words("The IAM roles, and a VPC.") == ["iam", "roles", "and", "vpc"]
    assert exact_match("IAM roles!", "the iam roles")
    assert not exact_match("IAM roles", "roles IAM")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("-5", "5"), ("2.5", "25"), ("2.5 GB", "2 GB"), ("C++", "C"), ("C#", "C")),
        *((".NET", "net"), ("5%", "5"), ("$5", "5"), ("-$5", "$5"), ("<5", ">5")),
        *(("10+", "10"), ("10:30", "1030"), ("1/2", "12"), ("3-5", "35")),
        *(("A", "The"), ("+", "-"), ("at \u22125 degrees", "at 5 degrees")),
        *(("\u91cd\u91cf6", "\u91cd\u91cf7"), ("\u043d\u0435\u0442", "\u0434\u0430")),
    ],
)
def test_what_changes_a_meaning_is_no_punctuation(one, other) -> None:
    assert not exact_match(one, other)
    assert token_f1(one, other) < 1
    assert text_scores([one], [other])["ROUGE-L"][0] < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("It's 5.", "It\u2019s 5"), ("caf\u00e9", "cafe\u0301"), ("1,000", "1000")),
        *(
            ("(-5)", "\u22125"),
            ("\u201cyes\u201d", "Yes!"),
            ("in\u2010house", "in-house"),
        ),
        *(
            ("word\u2014word", "word word"),
            ("2,5", "2.5"),
            (".5", "0.5"),
            ("5 %", "5%"),
        ),
        (
            "\u6700\u5927\u306f6MB\u3067\u3059\u3002",
            "\u6700\u5927\u306f6MB\u3067\u3059",
        ),
        (
            "\u0647\u0644\u061f \u0646\u0639\u0645\u060c",
            "\u0647\u0644 \u0646\u0639\u0645",
        ),
        ("\u092f\u0939 \u0939\u0948\u0964", "\u092f\u0939 \u0939\u0948"),
        (
            "\u041f\u0440\u0438\u0432\u0435\u0442!",
            "\u043f\u0440\u0438\u0432\u0435\u0442",
        ),
    ],
)
def test_spellings_of_one_text_are_equal(one, other) -> None:
    assert exact_match(one, other)
    assert token_f1(one, other) == 1


@pytest.mark.parametrize(
    "text",
    [
        "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
        "\u6a21\u578b\u5728\u8bad\u7ec3\u3002",
        "\u6700\u5927\u30da\u30a4\u30ed\u30fc\u30c9",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
        "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    ],
)
def test_a_copy_scores_one_in_any_script(text) -> None:
    scores = text_scores([text], [unicodedata.normalize("NFD", text)])
    assert all(score == [pytest.approx(1)] for score in scores.values()), scores


def test_one_character_of_a_script_without_spaces_is_one_word() -> None:
    one, other = "\u6700\u5927\u306f6\u3067\u3059", "\u6700\u5927\u306f7\u3067\u3059"
    scores = text_scores([one], [other])
    assert scores["exact match"] == [0]
    for name in ("token F1", "ROUGE-L", "BLEU"):
        assert 0.2 < scores[name][0] < 1
    assert words("\u0e17\u0e35\u0e48") == [
        "\u0e17\u0e35\u0e48"
    ]  # one letter with its vowel and tone


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("one two", "one two", 1),
        ("one two three four", "one two", 2 / 3),  # precision 1/2, recall 1
        ("one one one", "one two", 2 / 5),  # a word counts as often as it is wanted
        ("three", "one two", 0),
        ("", "one", 0),
        ("", "", 1),
    ],
)
def test_token_f1(answer, expected, f1) -> None:
    assert token_f1(answer, expected) == pytest.approx(f1)


def test_the_measures_of_a_copy_are_one_and_of_something_else_nearly_zero() -> None:
    long = "Training data kept in Amazon S3 goes in."
    copy = text_scores([long], [long])
    other = text_scores(["zzz"], [long])
    assert list(copy) == ["exact match", "token F1", "ROUGE-L", "chrF", "BLEU"]
    assert all(scores == [pytest.approx(1)] for scores in copy.values())
    assert all(scores[0] < 0.05 for scores in other.values())


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # "x y w" is common to both, in that order: 3 of 4 words here and 3 of 3 there.
    score = text_scores(["x y z w"], ["x y w"])["ROUGE-L"][0]
    assert score == pytest.approx(2 * (3 / 4) * 1 / (3 / 4 + 1))


def test_an_answer_for_every_expected_one() -> None:
    with pytest.raises(ValueError, match="1 answers for 2 expected"):
        text_scores(["one"], ["one", "two"])


# --- right and wrong ---

FACT = {"fact": "amazon-sagemaker/users", "response": "For data scientists."}


def test_same_compares_answers_one_by_one() -> None:
    assert same(["5", None], map(str, [5, 7])) == [True, False]
    with pytest.raises(ValueError, match="longer|shorter"):
        same(["5"], ["5", "7"])
