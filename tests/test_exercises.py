"""The frame of the exercises, and what their checks say beyond the planted mistakes.

Solutions and the mistakes of `support/wrong_answers` are tried in the notebooks' own
kernels (test_notebooks.py). Here stand answers of other types, limits, and the hints
for mistakes that are not planted there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch

from support.tiny_models import tiny_gpt_neox
from utils.evaluation.answers import judge_for
from utils.evaluation.judging import blind_pairs, labelled_answers
from utils.evaluation.scores import paired_difference, questions_needed
from utils.exercises.frame import Verdict, Wrong, exercise
from utils.exercises.lesson_01 import (
    check_adaptation,
    check_attention_weights,
    check_encode,
    check_survivors,
)
from utils.exercises.lesson_02 import check_budget, check_guard, check_steering_prompt
from utils.exercises.lesson_03 import (
    check_labels,
    check_padding_share,
    check_record,
    check_replay_rows,
)
from utils.exercises.lesson_04 import check_best_epoch, check_lora_parameters
from utils.exercises.lesson_05 import (
    check_interval,
    check_judge,
    check_questions,
    check_votes,
)
from utils.exercises.lesson_06 import check_forgotten_endpoint
from utils.models import MODELS
from utils.training.recipe import lora_config

Merges = list[tuple[str, str]]


def rejected(verdict: Verdict, hint: str) -> bool:
    return verdict.passed is False and hint in verdict.message


# --- the frame ---


@exercise("a number")
def check_seven(answer: int, wanted: int = 7) -> str:
    """Is it seven?"""
    if answer == wanted + 1:
        raise Wrong("one too many.")
    return "well counted."


def test_a_stub_gets_a_hint_and_does_not_raise() -> None:
    verdict = check_seven(...)
    assert repr(verdict) == "Not tried yet: replace ... with a number."
    assert verdict.passed is None
    assert not verdict


@pytest.mark.parametrize("answer", [[1, ...], {"a": ..., "b": 2}, (...,)])
def test_a_stub_inside_the_answer_counts_as_untouched(answer) -> None:
    assert check_seven(answer).passed is None


def test_right_and_wrong_answers() -> None:
    assert repr(check_seven(7)) == "✓ well counted."
    assert repr(check_seven(8)) == "✗ Not yet: one too many."
    assert check_seven(9, wanted=8).passed is False
    assert check_seven(7)
    assert not check_seven(8)


def test_a_fault_in_a_check_itself_is_not_hidden() -> None:
    @exercise("anything")
    def check_broken(answer):
        raise KeyError("fault")

    with pytest.raises(KeyError):
        check_broken(1)


# --- 01 ---

SCORES = torch.tensor([4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, *[-9.0] * 8])
SURVIVORS = 7


@pytest.mark.parametrize("answer", [SURVIVORS, torch.tensor(SURVIVORS)])
def test_right_survivors(answer) -> None:
    assert check_survivors(answer, SCORES).passed


@pytest.mark.parametrize(
    ("answer", "hint"), [(99, "not minus infinity"), ("six", "expected a number")]
)
def test_wrong_survivors_get_their_hint(answer, hint: str) -> None:
    assert rejected(check_survivors(answer, SCORES), hint)


def in_order(word: str, merges: Merges) -> list[str]:
    """The right way: each merge joins every such pair of neighbours."""
    symbols = list(word)
    for pair in merges:
        joined: list[str] = []
        for symbol in symbols:
            if joined and (joined[-1], symbol) == pair:
                joined[-1] += symbol
            else:
                joined.append(symbol)
        symbols = joined
    return symbols


def longest_piece(word: str, merges: Merges) -> list[str]:
    pieces, result = {a + b for a, b in merges}, []
    while word:
        size = next(n for n in range(len(word), 0, -1) if n == 1 or word[:n] in pieces)
        result.append(word[:size])
        word = word[size:]
    return result


def first_place_only(word: str, merges: Merges) -> list[str]:
    symbols = list(word)
    for first, second in merges:
        for place in range(len(symbols) - 1):
            if symbols[place : place + 2] == [first, second]:
                symbols[place : place + 2] = [first + second]
                break
    return symbols


def test_symbols_may_come_as_a_tuple() -> None:
    assert check_encode(lambda word, merges: tuple(in_order(word, merges))).passed


@pytest.mark.parametrize(
    ("encode", "hint"),
    [
        (longest_piece, "the first merge"),
        (first_place_only, "wherever it stands"),
        (lambda word, merges: in_order(word, merges[:2]), "what earlier ones"),
        (lambda word, merges: [word], "its characters"),
        (lambda word: [word], "TypeError"),
    ],
)
def test_wrong_encode_gets_its_hint(encode: Callable, hint: str) -> None:
    assert rejected(check_encode(encode), hint)


DOTS, HEAD_WIDTH = [0.0, 2.0, 6.0], 4
RIGHT_WEIGHTS = [0.2689, 0.7311, 0.0]


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, numpy.array])
def test_right_attention_weights(kind: Callable) -> None:
    assert check_attention_weights(kind(RIGHT_WEIGHTS), DOTS, HEAD_WIDTH).passed


def test_attention_weights_may_be_a_list_of_tensors() -> None:
    weights = [torch.tensor(weight) for weight in RIGHT_WEIGHTS]
    assert check_attention_weights(weights, torch.tensor(DOTS), HEAD_WIDTH).passed


@pytest.mark.parametrize(
    ("weights", "hint"),
    [
        ([0.0024, 0.0179, 0.9796], "not scaled"),  # and no mask
        ([0.0, 0.1192, 0.8808], "hides what came before"),
        ([0.3, 0.3, 0.3], "add up to 1"),
        ([1.0, 0.0, 0.0], "take the softmax"),
        (["a", "b", "c"], "expected numbers"),
        (0.5, "expected a list"),
    ],
)
def test_wrong_attention_weights_get_their_hint(weights, hint: str) -> None:
    assert rejected(check_attention_weights(weights, DOTS, HEAD_WIDTH), hint)


WAYS = {
    "prices": "retrieve",
    "summaries": "prompt",
    "tickets": "fine-tune",
    "scripts": "pre-train",
}


def test_an_untouched_adaptation() -> None:
    assert check_adaptation(dict.fromkeys(WAYS, ...)).passed is None


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"prices": "prompt"}, "old next week"),
        ({"summaries": "fine-tune"}, "ten letters"),
        ({"tickets": "retrieve"}, "no fact is missing"),
        ({"scripts": "fine-tune"}, "no model can read"),
        ({"scripts": ["prompt"]}, "is not one of"),
    ],
)
def test_wrong_adaptations_get_their_hint(change: dict, hint: str) -> None:
    assert rejected(check_adaptation(WAYS | change), hint)


def test_an_adaptation_that_leaves_out_a_team() -> None:
    assert rejected(check_adaptation({"prices": "retrieve"}), "no way for 'summaries'")
    assert rejected(check_adaptation("retrieve"), "expected a dictionary")


# --- 02 ---


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("cow - barn\nhorse - stable\nduck -", "2 lines above the question"),
        ("cow - garage\nduck -", "try 'barn'"),
        ("horse - stable\nduck -", "this model answers 'quack'"),
        (["duck -"], "expected a prompt"),
    ],
)
def test_wrong_steering_prompts_get_their_hint(prompt, hint: str) -> None:
    assert rejected(check_steering_prompt(prompt, lambda prompt: "quack"), hint)


@pytest.mark.parametrize("budget", [60, 60.0, 119, torch.tensor(60)])
def test_right_budgets(budget) -> None:
    assert check_budget(budget, [40, 50, 60]).passed


@pytest.mark.parametrize(
    ("budget", "hint"),
    [
        (121, "does not stop by itself"),
        (60.5, "round up"),
        ("60", "expected a whole number"),
    ],
)
def test_wrong_budgets_get_their_hint(budget, hint: str) -> None:
    assert rejected(check_budget(budget, [40, 50, 60]), hint)


@pytest.mark.parametrize(
    ("guard", "hint"),
    [
        (lambda text: bool(text) and "-" not in text, "an order in words"),
        (lambda text: text.replace(" ", "") or 1, "return True or False"),
        (lambda text: text[0].isalpha(), "stops with IndexError"),
    ],
)
def test_wrong_guards_get_their_hint(guard: Callable, hint: str) -> None:
    assert rejected(check_guard(guard), hint)


# --- 03 ---

PROMPT_IDS, COMPLETION_IDS = [5, 6, 7, 8], [11, 12, 13]
RIGHT_LABELS = [-100] * 4 + [11, 12, 13]


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, numpy.array])
def test_right_labels(kind: Callable) -> None:
    assert check_labels(kind(RIGHT_LABELS), PROMPT_IDS, COMPLETION_IDS).passed


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ([-100] * 4 + [11, 12, -100], "how the model learns to stop"),
        ([-100] * 3 + [11, 12], "5 labels for 7"),
        ([-100] * 2 + [7, 8, 11, 12, 13], "start with -100"),
        ("-100", "expected a list"),
    ],
)
def test_wrong_labels_get_their_hint(labels, hint: str) -> None:
    assert rejected(check_labels(labels, PROMPT_IDS, COMPLETION_IDS), hint)


@pytest.mark.parametrize("share", [0.375, numpy.float64(0.375), torch.tensor(0.375)])
def test_right_padding_share(share) -> None:
    assert check_padding_share(share, [10, 20, 20, 30, 40, 30]).passed is True


@pytest.mark.parametrize(
    ("share", "hint"),
    [
        (0.6, "divided by the real"),
        (0.1, "padded to the longest"),
        ("0.375", "expected a number"),
        (True, "expected a number"),
    ],
)
def test_wrong_padding_share_gets_its_hint(share, hint: str) -> None:
    assert rejected(check_padding_share(share, [10, 20, 20, 30, 40, 30]), hint)


REVIEW = "It broke on the second day."
TASK = f"Is this review positive or negative? {REVIEW}"


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"instruction": TASK}, "under the key 'response'"),
        ({"instruction": "", "response": "negative"}, "under the key 'instruction'"),
        (
            {"instruction": f"### Instruction:\n{TASK}", "response": "negative"},
            "`add_text` writes them",
        ),
        ({"instruction": TASK, "response": "negative\n\n### End"}, "'### End' is in"),
        ({"instruction": TASK, "response": "Negative"}, "to the letter"),
        ({"instruction": TASK, "response": "positive/negative"}, "to the letter"),
        ({"instruction": f"Positive? {REVIEW}", "response": "negative"}, "'negative'"),
        ({"instruction": f"- {REVIEW} -", "response": "negative"}, "no task"),
        ([TASK, "negative"], "expected a dictionary"),
    ],
)
def test_wrong_records_get_their_hint(record, hint: str) -> None:
    assert rejected(check_record(record, REVIEW), hint)


@pytest.mark.parametrize("count", [50, 50.0, numpy.int64(50), 49.6])
def test_right_rows_for_replay(count) -> None:
    assert check_replay_rows(count, 200, 0.2).passed


@pytest.mark.parametrize(
    ("count", "hint"), [(7, "solve for r"), ("50", "expected a number")]
)
def test_wrong_rows_for_replay_get_their_hint(count, hint: str) -> None:
    assert rejected(check_replay_rows(count, 200, 0.2), hint)


# --- 04 ---

# hidden 32, feed-forward 64: query_key_value, dense, dense_h_to_4h, dense_4h_to_h
SHAPES = [(32, 96), (32, 32), (32, 64), (64, 32)]
RANK, TARGET = 4, "query_key_value"
ONE_BLOCK = RANK * (32 + 96)


def test_right_lora_parameters_are_what_peft_counts() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_gpt_neox()
    assert check_lora_parameters(2 * ONE_BLOCK, base, RANK, TARGET).passed
    config = LoraConfig(r=RANK, target_modules=[TARGET], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    assert model.get_nb_trainable_parameters()[0] == 2 * ONE_BLOCK


def test_a_model_that_has_other_lora_matrices_is_counted_anew() -> None:
    from peft import get_peft_model

    model = get_peft_model(tiny_gpt_neox(), lora_config(MODELS["lab"]))
    before = model.get_nb_trainable_parameters()
    assert check_lora_parameters(2 * ONE_BLOCK, model, RANK, TARGET).passed
    everywhere = 2 * sum(RANK * (i + o) for i, o in SHAPES)
    verdict = check_lora_parameters(everywhere, model, RANK, TARGET)
    assert rejected(verdict, "for every linear layer")
    assert model.get_nb_trainable_parameters() == before


def test_dense_alone_is_not_all_layers_whose_names_begin_so() -> None:
    count = 2 * RANK * (32 + 32)
    assert check_lora_parameters(count, tiny_gpt_neox(), RANK, "dense").passed


@pytest.mark.parametrize(
    ("count", "hint"),
    [
        (2 * 32 * 96, "LoRA leaves those alone"),
        (2 * RANK * 96, "one of the two matrices"),  # B; A is planted
        (2 * RANK * RANK, "one side only"),
        (ONE_BLOCK, "that is one block; the model has 2"),
        (7, "rank x (inputs + outputs)"),
        ("7", "expected a whole number"),
    ],
)
def test_wrong_lora_parameters_get_their_hint(count, hint: str) -> None:
    assert rejected(check_lora_parameters(count, tiny_gpt_neox(), RANK, TARGET), hint)


HISTORY = [
    {"epoch": 1.0, "loss": 3.0},
    {"epoch": 1.0, "eval_loss": 2.9},
    {"epoch": 2.0, "loss": 2.0},
    {"epoch": 2.0, "eval_loss": 2.1},
    {"epoch": 3.0, "loss": 1.5},
    {"epoch": 3.0, "eval_loss": 1.9},
    {"epoch": 4.0, "loss": 1.0},
    {"epoch": 4.0, "eval_loss": 2.0},
    {"epoch": 5.0, "loss": 0.9},
    {"epoch": 5.0, "eval_loss": 2.2},
    {"epoch": 5.0, "train_runtime": 9.0},
]


@pytest.mark.parametrize("epoch", [3, 3.0])
def test_right_best_epoch(epoch: float) -> None:
    assert check_best_epoch(epoch, HISTORY).passed


@pytest.mark.parametrize(
    ("epoch", "hint"),
    [
        (9, "they go from 1 to 5"),
        (4, "compare all rows"),
        ("3", "expected the number"),
    ],
)
def test_wrong_best_epochs_get_their_hint(epoch, hint: str) -> None:
    assert rejected(check_best_epoch(epoch, HISTORY), hint)


# --- 05 ---


def test_the_courses_judge_passes() -> None:
    def judged(answer: str, row: dict[str, str]) -> bool:
        return judge_for([row]).right([answer], [row])[0]

    assert check_judge(judged).passed


def test_a_judge_sees_neither_the_answer_in_its_row_nor_the_label() -> None:
    seen = []

    def judged(answer: str, row: dict[str, str]) -> bool:
        seen.append(set(row))
        return False

    assert rejected(check_judge(judged), "calls every answer wrong")
    assert len(seen) == len(labelled_answers())
    assert not set.union(*seen) & {"answer", "right", "kind"}


def test_a_judge_of_no_obvious_fault_is_sent_to_look() -> None:
    turns = iter(range(10_000))
    assert rejected(check_judge(lambda *_: next(turns) % 2 == 1), "another rule")


def test_an_interval_that_draws_facts_passes_whatever_draws_it() -> None:
    def whole(gains, facts, share=0.95):
        if share != 0.95:
            middle = float(numpy.mean(gains))
            return middle - 0.05, middle + 0.05
        found = paired_difference(gains, numpy.zeros(len(gains)), groups=facts)
        return found.low, found.high

    assert check_interval(whole).passed


@pytest.mark.parametrize(
    ("interval", "hint"),
    [
        ("wide", "expected a function"),
        (lambda gains, facts: (0.1,), "raises ValueError"),
        (lambda gains, facts, share=0.95: (5.0, 6.0), "does not hold it"),
        (lambda gains, facts, share=0.95: (-9.0, 9.0), "wide and should be about"),
    ],
)
def test_wrong_intervals_get_their_hint(interval, hint: str) -> None:
    assert rejected(check_interval(interval), hint)


JUDGED = blind_pairs(
    ["a", "b", "c"], {"base": ["1", "2", "3"], "tuned": ["4", "5", "6"]}, 3
)


def test_any_honest_votes_are_right() -> None:
    assert check_votes(["A", "B", "="], JUDGED).passed
    assert check_votes(("=", "=", "="), JUDGED).passed
    assert check_votes([..., "A", "B"], JUDGED).passed is None


def test_votes_in_one_text_are_no_list() -> None:
    assert rejected(check_votes("ABA", JUDGED), "expected a list")


DIFFERENCES = [1.0] * 40 + [0.0] * 50 + [-1.0] * 10
SPREAD = float(numpy.std(DIFFERENCES))


@pytest.mark.parametrize("spread", [SPREAD, float(numpy.std(DIFFERENCES, ddof=1))])
def test_right_number_of_questions(spread: float) -> None:
    count = questions_needed(spread, 0.05)
    assert check_questions(count, DIFFERENCES, gain=0.05).passed


@pytest.mark.parametrize(
    ("count", "hint"),
    [
        (questions_needed(SPREAD, 0.3), "the difference measured here"),
        ("100", "expected a number"),
    ],
)
def test_wrong_numbers_of_questions_get_their_hint(count, hint: str) -> None:
    assert rejected(check_questions(count, DIFFERENCES, gain=0.05), hint)


# --- 06 ---


@pytest.mark.parametrize("price", [1.5, 0.7364, 37.688])
def test_right_cost_of_a_weekend(price: float) -> None:
    assert check_forgotten_endpoint(62 * price, price).passed
    assert check_forgotten_endpoint(round(62 * price, 2), price).passed


@pytest.mark.parametrize("price", [1.5, 0.7364])
@pytest.mark.parametrize(
    ("hours", "hint"),
    [
        (38, "one day too few"),
        (86, "one day too many"),
        (1, "a whole weekend"),
    ],
)
def test_wrong_costs_of_a_weekend_get_their_hint(
    hours: float, hint: str, price: float
) -> None:
    assert rejected(check_forgotten_endpoint(hours * price, price), hint)
