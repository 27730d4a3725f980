"""The frame of the exercises, and what their checks say beyond the planted mistakes.

Solutions and the mistakes of `support/wrong_answers` are tried in the notebooks' own
kernels (test_notebooks.py). Here stand answers of other types, limits, and the hints
for mistakes that are not planted there.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import boto3
import numpy
import pytest
import torch
from botocore.config import Config
from botocore.exceptions import ClientError
from torch.nn.utils.rnn import pad_sequence

from support.tiny_models import tiny_gpt_neox
from utils.evaluation.answers import judge_for
from utils.evaluation.judging import blind_pairs, labelled_answers
from utils.evaluation.scores import paired_difference
from utils.exercises.experiment_03_new_tokens import (
    check_megabytes,
    check_token_config,
)
from utils.exercises.frame import Verdict, Wrong, exercise
from utils.exercises.lesson_01 import (
    check_encode,
    check_loss,
    check_window,
)
from utils.exercises.lesson_02 import check_guard, check_steering, check_vote
from utils.exercises.lesson_03 import check_collate, check_hold_out, check_labels
from utils.exercises.lesson_04 import (
    check_accumulation,
    check_best_epoch,
    check_lora_parameters,
)
from utils.exercises.lesson_05 import (
    check_interval,
    check_judge,
    check_votes,
)
from utils.exercises.lesson_06 import check_forgotten_endpoint
from utils.exercises.lesson_07 import attempts_of, check_abuse, check_patience
from utils.models import MODELS
from utils.tasks import RELATIONS
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


def nearby(queries, keys, values, window=3):
    """The right way: itself and the tokens before it, `window` in all."""
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    every = torch.ones(scores.shape[-2:], dtype=torch.bool)
    hidden = every.triu(1) | every.tril(-window)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values


def with_holes(queries, keys, values, window=3):
    hidden = torch.ones(6, 6, dtype=torch.bool).triu()  # itself as well
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values


def test_a_right_window_runs_in_the_model() -> None:
    def next_word(attend: Callable) -> str:
        tensors = torch.randn(3, 2, 5, 4)
        assert torch.equal(attend(*tensors), nearby(*tensors, window=3))
        return " word"

    verdict = check_window(nearby, next_word)
    assert verdict.passed
    assert "' word'" in str(verdict)


def test_attention_that_was_not_changed_counts_as_not_tried() -> None:
    def unchanged(queries, keys, values, window=3):
        return nearby(queries, keys, values, window=99)

    assert check_window(unchanged, lambda attend: "word").passed is None


@pytest.mark.parametrize(
    ("attend", "hint"),
    [
        (7, "expected a function"),
        (lambda queries, keys, values: values, "TypeError"),
        (lambda queries, keys, values, window: values[0], "the same shape"),
        (lambda queries, keys, values, window: values, "put minus infinity"),
        (with_holes, "not even themselves"),
    ],
)
def test_a_wrong_window_gets_its_hint(attend, hint: str) -> None:
    assert rejected(check_window(attend, lambda attend: "word"), hint)


class Scorer:
    """Answers as a language model does, with fixed scores."""

    def __call__(self, ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        scores = torch.randn(1, 5, 9, generator=torch.Generator().manual_seed(0))
        return SimpleNamespace(logits=3 * scores)


TEXT = torch.tensor([[4, 1, 8, 2, 7]])


def test_a_right_loss_may_be_a_number() -> None:
    def loss(scores: torch.Tensor, ids: torch.Tensor) -> float:
        return torch.nn.functional.cross_entropy(scores[:-1], ids[1:]).item()

    assert check_loss(loss, Scorer(), TEXT).passed


@pytest.mark.parametrize(
    ("loss", "hint"),
    [
        (lambda scores: scores, "TypeError"),
        (lambda scores, ids: scores[:-1, 0], "4 numbers"),
        (lambda scores, ids: 99.0, "leave out the last scores"),
        (
            lambda scores, ids: scores.softmax(-1)[:-1].gather(1, ids[1:, None]).mean(),
            "take logarithms",
        ),
    ],
)
def test_a_wrong_loss_gets_its_hint(loss: Callable, hint: str) -> None:
    assert rejected(check_loss(loss, Scorer(), TEXT), hint)


# --- 02 ---


def home_of(prompts: list[str]) -> list[str]:
    return [RELATIONS["home"][text.splitlines()[-1][:-2]] for text in prompts]


def test_steering_is_judged_by_what_the_model_answers() -> None:
    def prompt_for(animal: str) -> str:
        return f"horse - stable\n{animal} -"

    assert "19 of 19" in check_steering(prompt_for, home_of).message
    nothing = check_steering(prompt_for, lambda prompts: [""] * len(prompts))
    assert rejected(nothing, "only 0 of 19")


@pytest.mark.parametrize(
    ("prompt_for", "hint"),
    [
        (lambda animal: ["horse - stable", f"{animal} -"], "returns list"),
        (lambda animal: {}[animal], "stops with KeyError"),
    ],
)
def test_wrong_steering_functions_get_their_hint(prompt_for, hint: str) -> None:
    assert rejected(check_steering(prompt_for, home_of), hint)


SAMPLES, RESULTS = [["5", "7", "5"], ["8", None, "8"], ["1", "2", "2"]], ["5", "8", "2"]


def most_common(answers: list[str | None]) -> str | None:
    given = [answer for answer in answers if answer]
    return max(given, key=given.count) if given else None


def test_a_vote_is_compared_with_the_first_sample() -> None:
    message = check_vote(most_common, SAMPLES, RESULTS).message
    assert "3 of 3 problems right" in message
    assert "alone gets 2" in message


@pytest.mark.parametrize(
    ("vote", "hint"),
    [
        (lambda answers: sum(map(float, filter(None, answers))), "returns 26.0"),
        (lambda answers: most_common(answers) or "0", "return None"),
        ("5", "expected a function"),
    ],
)
def test_wrong_votes_get_their_hint(vote, hint: str) -> None:
    assert rejected(check_vote(vote, SAMPLES, RESULTS), hint)


@pytest.mark.parametrize(
    ("guard", "hint"),
    [
        (lambda text: bool(text) and "-" not in text, "an order and a line"),
        (lambda text: text.replace(" ", "") or 1, "return True or False"),
        (lambda text: text[0].isalpha(), "stops with IndexError"),
        (lambda text: text in ("duck", "DUCK", " duck\n"), "'cow' is refused"),
    ],
)
def test_wrong_guards_get_their_hint(guard: Callable, hint: str) -> None:
    assert rejected(check_guard(guard, ["cow", "duck"]), hint)


def test_a_right_guard_is_told_its_rates() -> None:
    known = ["cow", "Egypt"]

    def guard(text: str) -> bool:
        return text.strip().lower() in map(str.lower, known)

    assert "0 of 14 attacks pass and 0 of 6" in check_guard(guard, known).message


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


LAB_ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [5, 6, 9], "labels": [-100, 6, 9]},
]


def padded(rows, filler: int, name: str, side: str = "right") -> torch.Tensor:
    values = [torch.tensor(row[name]) for row in rows]
    return pad_sequence(values, True, filler, padding_side=side)


def good_batch(rows, side: str = "right") -> dict[str, torch.Tensor]:
    ones = [{"ones": [1] * len(row["input_ids"])} for row in rows]
    return {
        "input_ids": padded(rows, 9, "input_ids", side),
        "attention_mask": padded(ones, 0, "ones", side),
        "labels": padded(rows, -100, "labels", side),
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_collator_that_changes_nothing_is_right_on_either_side(side: str) -> None:
    model = tiny_gpt_neox().eval()
    assert check_collate(lambda rows: good_batch(rows, side), LAB_ROWS, model).passed


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda b: b | {"labels": b["input_ids"]}, "the loss sees padding"),
        (
            lambda b: b | {"labels": padded(LAB_ROWS, -100, "labels", "left")},
            "on the same side",
        ),
        (lambda b: b | {"labels": 0 * b["labels"] - 100}, "0 labels count"),
        (lambda b: {"input_ids": b["input_ids"]}, "has no 'attention_mask'"),
        (lambda b: {n: v[:, :4] for n, v in b.items()}, "has the shape"),
        (lambda b: b | {"labels": b["labels"].tolist()}, "a tensor as 'labels'"),
        (
            lambda b: b | {"attention_mask": (b["input_ids"] != 9).long()},
            "compare nothing",
        ),
        (list, "a dictionary of tensors"),
    ],
)
def test_wrong_collators_get_their_hint(change, hint: str) -> None:
    model = tiny_gpt_neox().eval()
    verdict = check_collate(lambda rows: change(good_batch(rows)), LAB_ROWS, model)
    assert rejected(verdict, hint)


ASKED = [
    {"instruction": f"{fact} {wording}", "group": fact}
    for fact in range(20)
    for wording in range(3)
]


def by_group(rows, seed, order=random.Random, share=5):
    groups = sorted({row["group"] for row in rows})
    order(seed).shuffle(groups)
    held = set(groups[: len(groups) // share])
    train = [row for row in rows if row["group"] not in held]
    return train, [row for row in rows if row["group"] in held]


def test_a_split_by_group_is_right() -> None:
    assert check_hold_out(by_group, ASKED).passed


@pytest.mark.parametrize(
    ("split", "hint"),
    [
        (lambda rows, seed: (rows[12:], rows[:11]), "exactly one part"),
        (lambda rows, seed: (rows[10:], rows[:10]), "is trained, such as"),
        (lambda rows, seed: (rows[:0], rows), "are held out"),
        (lambda rows, seed: rows, "must return two lists"),
        (lambda rows, seed: (rows[12:], rows[:12]), "another seed"),
        (lambda rows, seed: by_group(rows, None), "the same seed gives another"),
        (7, "expected the function itself"),
    ],
)
def test_wrong_splits_get_their_hint(split, hint: str) -> None:
    assert rejected(check_hold_out(split, ASKED), hint)


@pytest.mark.parametrize(
    ("megabytes", "hint"),
    [
        (100, "rows, times numbers"),
        (4e6, "these are bytes"),
        (4e6 / 2**20, "these are mebibytes"),
        (2, "each takes 2 bytes"),
        ("4", "expected a number"),
    ],
)
def test_wrong_megabytes_get_their_hint(megabytes, hint: str) -> None:
    assert check_megabytes(4, 1000, 1000, 2).passed
    assert rejected(check_megabytes(megabytes, 1000, 1000, 2), hint)


def test_a_row_that_learns_in_one_of_two_matrices_is_not_enough() -> None:
    from peft import LoraConfig

    options = {"task_type": "CAUSAL_LM", "target_modules": ["query_key_value"]}
    base = functools.partial(tiny_gpt_neox, tied=False)

    def config(**rows: list[int]) -> LoraConfig:
        return LoraConfig(**options, trainable_token_indices=rows)

    both = config(embed_in=[7], lm_head=[7])
    assert check_token_config(both, base, 7).passed
    one = config(embed_in=[7])
    assert rejected(check_token_config(one, base, 7), "of the output layer")
    more = config(embed_in=[6, 7], lm_head=[6, 7])
    assert rejected(check_token_config(more, base, 7), "only the new one")
    assert rejected(check_token_config("r=8", base, 7), "a `LoraConfig`")


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
        (2 * 16 * (32 + 96), "that is for the rank 16: here it is 4"),
        (7, "rank x (inputs + outputs)"),
        ("7", "expected a whole number"),
    ],
)
def test_wrong_lora_parameters_get_their_hint(count, hint: str) -> None:
    assert rejected(check_lora_parameters(count, tiny_gpt_neox(), RANK, TARGET), hint)


@pytest.fixture(scope="module")
def parts() -> list[dict[str, torch.Tensor]]:
    """Two parts of a batch, of three rows and one, with 2, 2, 2 and 5 labels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for rows, learned in ((3, 2), (1, 5)):
        ids = torch.randint(3, 90, (rows, 8), generator=generator)
        labels = ids.masked_fill(torch.arange(8) < 8 - learned, -100)
        made.append({"input_ids": ids, "labels": labels})
    return made


def weighed(*weights: float) -> Callable:
    def accumulate(model, parts) -> None:
        for weight, part in zip(weights, parts, strict=True):
            (weight * model(**part).loss).backward()

    return accumulate


def test_the_right_accumulation_is_accepted_and_leaves_no_trace(parts) -> None:
    model = tiny_gpt_neox().eval()
    before = [one.clone() for one in model.parameters()]
    assert check_accumulation(weighed(6 / 11, 5 / 11), model, parts).passed
    assert all(map(torch.equal, before, model.parameters()))
    assert all(one.grad is None for one in model.parameters())


def steps(model, parts) -> None:
    weighed(6 / 11, 5 / 11)(model, parts)
    with torch.no_grad():
        for one in model.parameters():
            one -= one.grad


@pytest.mark.parametrize(
    ("accumulate", "hint"),
    [
        (weighed(3 / 4, 1 / 4), "weighs parts by rows"),
        (weighed(12 / 11, 10 / 11), "2 times as long"),
        (weighed(0.9, 0.1), "another gradient"),
        (steps, "after all parts"),
        (lambda model, parts: len(parts), "no gradient is there"),
        (lambda model: model, "stopped with TypeError"),
        (5 / 11, "expected a function"),
    ],
)
def test_wrong_accumulations_get_their_hint(parts, accumulate, hint: str) -> None:
    model = tiny_gpt_neox().eval()
    before = [one.clone() for one in model.parameters()]
    assert rejected(check_accumulation(accumulate, model, parts), hint)
    assert all(map(torch.equal, before, model.parameters()))


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


REWORDED = [
    *HISTORY,
    *({"epoch": float(n), "eval_reworded_loss": 3 - n / 2} for n in (1, 2, 3, 4, 5)),
]


def lowest(history, name: str) -> float:
    held = [row for row in history if name in row]
    return min(held, key=lambda row: row[name])["epoch"]


def test_right_best_epoch() -> None:
    assert "for other facts epoch 3." in check_best_epoch(lowest, HISTORY).message
    found = check_best_epoch(lowest, REWORDED)
    assert found.passed
    assert "for other facts epoch 3 and for other words epoch 5" in found.message


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (9, "they go from 1 to 5"),
        (3.5, "no 'eval_loss' has the epoch 3.5"),
        (2, "not its place in a list"),
        (4, "compare all rows"),
        (5, "of the lowest training loss"),
        (1.9, "it returns the loss"),
        ("3", "expected an epoch's number"),
        (None, "returns nothing"),
    ],
)
def test_wrong_best_epochs_get_their_hint(answer, hint: str) -> None:
    assert rejected(check_best_epoch(lambda history, name: answer, HISTORY), hint)


def test_a_function_is_expected_and_one_that_stops_says_where() -> None:
    assert rejected(check_best_epoch(3, HISTORY), "expected a function")
    by_name = check_best_epoch(lambda history, name: history[0][name], HISTORY)
    assert rejected(by_name, "KeyError: 'eval_loss'. Most rows")
    other = check_best_epoch(lambda history: 3, HISTORY)
    assert rejected(other, "it stopped with TypeError")


def test_one_loss_for_all_names_is_not_enough() -> None:
    same = check_best_epoch(lambda history, _: lowest(history, "eval_loss"), REWORDED)
    assert rejected(same, "another epoch has a lower 'eval_reworded_loss'")


def test_the_learners_function_cannot_change_the_log() -> None:
    def emptied(history, name: str) -> float:
        epoch = lowest(history, name)
        for row in history:
            row.clear()
        history.clear()
        return epoch

    before = [dict(row) for row in REWORDED]
    assert check_best_epoch(emptied, REWORDED).passed
    assert before == REWORDED


def test_the_loss_before_the_first_epoch_counts_as_well() -> None:
    history = [{"epoch": 0, "eval_loss": 2.0}, *HISTORY]
    assert rejected(check_best_epoch(lambda *_: 9, history), "they go from 0 to 5")
    worse = [{"epoch": 0, "eval_loss": 1.0}, *HISTORY]
    assert check_best_epoch(lowest, worse).passed


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


# --- lesson 07 ---


@pytest.mark.parametrize(
    ("retries", "expected"),
    [
        (None, 5),
        ({"max_attempts": 1}, 2),
        ({"max_attempts": 0}, 1),
        ({"total_max_attempts": 1}, 1),
        ({"mode": "standard"}, 3),
        ({"mode": "standard", "max_attempts": 4}, 5),
        ({"mode": "adaptive", "total_max_attempts": 2}, 2),
    ],
)
def test_attempts_are_those_that_botocore_makes(
    retries: dict | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by a server that fails each time."""
    asked = []

    class Failing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    config = Config(retries=retries)
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        client = boto3.client(
            "sagemaker-runtime",
            config=config,
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
        )
        with pytest.raises(ClientError):
            client.invoke_endpoint(EndpointName="any", Body=b"{}")
        server.shutdown()
    assert len(asked) == attempts_of(config) == expected


def test_patience_ends_before_the_gateway() -> None:
    def judged(read: float, connect: float = 2) -> Verdict:
        retries = {"total_max_attempts": 1}
        config = Config(read_timeout=read, connect_timeout=connect, retries=retries)
        return check_patience(config, 29)

    assert judged(5) and judged(26.9)
    assert rejected(judged(27), "reaches nobody")
    assert rejected(judged(20, connect=9), "reaches nobody")
    assert rejected(judged(4.9), "at least 5 seconds")


def test_an_abuse_is_priced_by_requests_and_machines() -> None:
    given = {"rate": 2, "per_request": 1e-5, "machines": 3, "price": 1.5}
    right = 2 * 3600 * 1e-5 + 3 * 1.5
    assert check_abuse(right, **given) and check_abuse(numpy.float64(right), **given)
    assert rejected(check_abuse(right * 1.02, **given), "is not it")
    assert rejected(check_abuse(4.5, **given), "costs something, too")
