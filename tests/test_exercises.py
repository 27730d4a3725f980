import numpy
import pytest
import torch

from support.tiny_models import tiny_gpt_neox
from utils.evaluation import questions_needed, token_f1, words
from utils.exercises import (
    Verdict,
    Wrong,
    check_adaptation,
    check_attention_weights,
    check_best_epoch,
    check_budget,
    check_encode,
    check_forgotten_endpoint,
    check_guard,
    check_held_out_loss,
    check_labels,
    check_lora_parameters,
    check_padding_share,
    check_questions,
    check_record,
    check_replay_rows,
    check_steering_prompt,
    check_survivors,
    check_token_f1,
    check_votes,
    exercise,
)
from utils.judging import blind_pairs
from utils.models import MODELS
from utils.training import lora_config


def rejected(verdict: Verdict, hint: str) -> bool:
    return verdict.passed is False and hint in verdict.message


# The frame


@exercise("a number")
def check_seven(answer, wanted=7):
    """Is it seven?"""
    if answer == wanted + 1:
        raise Wrong("one too many.")
    return "well counted."


def test_a_stub_gets_a_hint_and_does_not_raise():
    verdict = check_seven(...)
    assert repr(verdict) == "Not tried yet: replace ... with a number."
    assert verdict.passed is None
    assert not verdict


@pytest.mark.parametrize("answer", [[1, ...], {"a": ..., "b": 2}, (...,)])
def test_a_stub_inside_the_answer_counts_as_untouched(answer):
    assert check_seven(answer).passed is None


def test_right_and_wrong_answers():
    assert repr(check_seven(7)) == "✓ well counted."
    assert repr(check_seven(8)) == "✗ Not yet: one too many."
    assert check_seven(9, wanted=8).passed is False
    assert check_seven(7)
    assert not check_seven(8)


def test_a_fault_in_a_check_itself_is_not_hidden():
    @exercise("anything")
    def check_broken(answer):
        raise KeyError("fault")

    with pytest.raises(KeyError):
        check_broken(1)


# 02


def test_a_right_steering_prompt():
    verdict = check_steering_prompt("horse - stable\nduck -", lambda prompt: "pond")
    assert verdict.passed


@pytest.mark.parametrize(
    "prompt, hint",
    [
        ("horse - stable\nduck - ", "ends in white space"),
        ("duck -", "below an example"),
        ("cow - barn\nhorse - stable\nduck -", "2 lines above the question"),
        ("duck - pond\nduck -", "gives the answer away"),
        ("dragon - cave\nduck -", "an animal of the lists"),
        ("cow - moo\nduck -", "'moo' is the sound of cow"),
        ("cow - garage\nduck -", "try 'barn'"),
        ("horse - stable\nduck -", "this model answers 'quack'"),
        (["duck -"], "expected a prompt"),
    ],
)
def test_wrong_steering_prompts_get_their_hint(prompt, hint):
    assert rejected(check_steering_prompt(prompt, lambda prompt: "quack"), hint)


@pytest.mark.parametrize("budget", [60, 60.0, 119, torch.tensor(60)])
def test_right_budgets(budget):
    assert check_budget(budget, [40, 50, 60]).passed


@pytest.mark.parametrize(
    "budget, hint",
    [
        (50, "the average length, and 1 of 3"),
        (8, "3 of 3 solutions are cut off"),
        (121, "does not stop by itself"),
        (60.5, "round up"),
        ("60", "expected a whole number"),
    ],
)
def test_wrong_budgets_get_their_hint(budget, hint):
    assert rejected(check_budget(budget, [40, 50, 60]), hint)


def test_a_right_guard():
    def guard(text):
        words = text.split(" ")
        return len(words) <= 2 and all(word.isalpha() for word in words)

    assert check_guard(guard).passed


@pytest.mark.parametrize(
    "guard, hint",
    [
        ("duck", "expected a function"),
        (lambda text: True, "everything gets through"),
        (lambda text: False, "nothing gets through"),
        (lambda text: text.isalpha(), "'polar bear' is refused"),
        (lambda text: "\n" not in text, "an order on one line"),
        (lambda text: bool(text) and "-" not in text, "an order in words"),
        (lambda text: len(text.split()) < 3, "'cow: calf' gets through"),
        (lambda text: text.replace(" ", "") or 1, "return True or False"),
        (lambda text: text[0].isalpha(), "stops with IndexError"),
    ],
)
def test_wrong_guards_get_their_hint(guard, hint):
    assert rejected(check_guard(guard), hint)


# 01, first half

SCORES = torch.tensor([4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, *[-9.0] * 8])


def kept(temperature):
    chances = torch.softmax(SCORES / temperature, -1)
    return int((chances.cumsum(-1) - chances < 0.9).sum())


def test_survivors():
    assert check_survivors(kept(2), SCORES).passed
    assert check_survivors(torch.tensor(kept(2)), SCORES).passed
    others = {kept(2) - 1, kept(1), kept(0.5), len(SCORES) - kept(2)}
    assert len(others | {kept(2)}) == 5


@pytest.mark.parametrize(
    "answer, hint",
    [
        (kept(2) - 1, "one is missing"),
        (len(SCORES) - kept(2), "cut off"),
        (kept(1), "top-p at temperature 1"),
        (kept(0.5), "multiplied by 2"),
        (99, "not minus infinity"),
        ("six", "expected a number"),
    ],
)
def test_wrong_survivors_get_their_hint(answer, hint):
    assert rejected(check_survivors(answer, SCORES), hint)


def joined(symbols, pair):
    """Every such pair of neighbours as one symbol."""
    result = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def in_order(word, merges):
    symbols = list(word)
    for pair in merges:
        symbols = joined(symbols, pair)
    return symbols


def longest_piece(word, merges):
    pieces, result = {a + b for a, b in merges}, []
    while word:
        size = next(n for n in range(len(word), 0, -1) if n == 1 or word[:n] in pieces)
        result.append(word[:size])
        word = word[size:]
    return result


def first_place_only(word, merges):
    symbols = list(word)
    for first, second in merges:
        for place in range(len(symbols) - 1):
            if symbols[place : place + 2] == [first, second]:
                symbols[place : place + 2] = [first + second]
                break
    return symbols


def test_encode():
    assert check_encode(in_order).passed
    assert check_encode(lambda word, merges: tuple(in_order(word, merges))).passed


@pytest.mark.parametrize(
    "encode, hint",
    [
        (lambda word, merges: in_order(word, merges[::-1]), "the first merge"),
        (longest_piece, "the first merge"),
        (first_place_only, "wherever it stands"),
        (lambda word, merges: in_order(word, merges[:1]), "keep each result"),
        (lambda word, merges: in_order(word, merges[:2]), "what earlier ones"),
        (lambda word, merges: word, "returns str"),
        (lambda word, merges: [word], "its characters"),
        (lambda word, merges: merges[0], "IndexError"),
        (lambda word: [word], "TypeError"),
        (["h", "e"], "expected a function"),
    ],
)
def test_wrong_encode_gets_its_hint(encode, hint):
    assert rejected(check_encode(encode), hint)


# 01, second half

DOTS, HEAD_WIDTH = [0.0, 2.0, 6.0], 4
RIGHT_WEIGHTS = [0.2689, 0.7311, 0.0]


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, numpy.array])
def test_right_attention_weights(kind):
    assert check_attention_weights(kind(RIGHT_WEIGHTS), DOTS, HEAD_WIDTH).passed


def test_attention_weights_may_be_a_list_of_tensors():
    weights = [torch.tensor(weight) for weight in RIGHT_WEIGHTS]
    assert check_attention_weights(weights, torch.tensor(DOTS), HEAD_WIDTH).passed


@pytest.mark.parametrize(
    "weights, hint",
    [
        ([0.0420, 0.1142, 0.8438], "comes later"),
        ([0.0420, 0.1142, 0.0], "mask before the softmax"),
        ([0.2119, 0.5761, 0.2119], "use minus infinity"),
        ([0.1192, 0.8808, 0.0], "not scaled"),
        ([0.0024, 0.0179, 0.9796], "not scaled"),
        ([0.3775, 0.6225, 0.0], "divide by its root"),
        ([0.0, 0.1192, 0.8808], "hides what came before"),
        ([0.3, 0.3, 0.3], "add up to 1"),
        ([1.0, 0.0, 0.0], "take the softmax"),
        ([0.27, 0.73], "2 weights for 3 tokens"),
        (["a", "b", "c"], "expected numbers"),
        (0.5, "expected a list"),
    ],
)
def test_wrong_attention_weights_get_their_hint(weights, hint):
    assert rejected(check_attention_weights(weights, DOTS, HEAD_WIDTH), hint)


WAYS = {
    "prices": "retrieve",
    "summaries": "prompt",
    "tickets": "fine-tune",
    "scripts": "pre-train",
}


def test_right_adaptation():
    assert check_adaptation(WAYS).passed
    assert check_adaptation(dict.fromkeys(WAYS, ...)).passed is None


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"prices": "prompt"}, "old next week"),
        ({"prices": "fine-tune"}, "last week's prices"),
        ({"prices": "pre-train"}, "far cheaper"),
        ({"summaries": "fine-tune"}, "ten letters"),
        ({"tickets": "prompt"}, "is what costs"),
        ({"tickets": "retrieve"}, "no fact is missing"),
        ({"scripts": "fine-tune"}, "no model can read"),
        ({"scripts": "RAG"}, "'RAG' is not one of"),
        ({"scripts": ["prompt"]}, "is not one of"),
    ],
)
def test_wrong_adaptations_get_their_hint(change, hint):
    assert rejected(check_adaptation(WAYS | change), hint)


def test_an_adaptation_that_leaves_out_a_team():
    assert rejected(check_adaptation({"prices": "retrieve"}), "no way for 'summaries'")
    assert rejected(check_adaptation("retrieve"), "expected a dictionary")


# 03

PROMPT_IDS, COMPLETION_IDS = [5, 6, 7, 8], [11, 12, 13]
RIGHT_LABELS = [-100] * 4 + [11, 12, 13]


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, numpy.array])
def test_right_labels(kind):
    assert check_labels(kind(RIGHT_LABELS), PROMPT_IDS, COMPLETION_IDS).passed


@pytest.mark.parametrize(
    "labels, hint",
    [
        ([5, 6, 7, 8, 11, 12, 13], "learn to write questions"),
        ([11, 12, 13], "3 labels for 7 tokens"),
        ([-100] * 3 + [11, 12, 13, -100], "shifted by one"),
        ([0] * 4 + [11, 12, 13], "0 is a token"),
        ([-100] * 4 + [11, 12, -100], "how the model learns to stop"),
        ([-100] * 3 + [11, 12], "5 labels for 7"),
        ([-100] * 2 + [7, 8, 11, 12, 13], "start with -100"),
        ("-100", "expected a list"),
    ],
)
def test_wrong_labels_get_their_hint(labels, hint):
    assert rejected(check_labels(labels, PROMPT_IDS, COMPLETION_IDS), hint)


@pytest.mark.parametrize("share", [0.375, numpy.float64(0.375), torch.tensor(0.375)])
def test_right_padding_share(share):
    assert check_padding_share(share, [10, 20, 20, 30, 40, 30]).passed is True


@pytest.mark.parametrize(
    "share, hint",
    [
        (37.5, "percentage"),
        (0.625, "share of real tokens"),
        (0.6, "divided by the real"),
        (90, "number of padding tokens"),
        (0.1, "padded to the longest"),
        ("0.375", "expected a number"),
        (True, "expected a number"),
    ],
)
def test_wrong_padding_share_gets_its_hint(share, hint):
    assert rejected(check_padding_share(share, [10, 20, 20, 30, 40, 30]), hint)


REVIEW = "It broke on the second day."
TASK = f"Is this review positive or negative? {REVIEW}"


def test_right_record():
    assert check_record({"instruction": TASK, "response": "negative"}, REVIEW).passed


@pytest.mark.parametrize(
    "record, hint",
    [
        ({"instruction": TASK}, "under the key 'response'"),
        ({"instruction": "", "response": "negative"}, "under the key 'instruction'"),
        (
            {"instruction": f"### Instruction:\n{TASK}", "response": "negative"},
            "`add_text` writes them",
        ),
        ({"instruction": TASK, "response": "negative\n\n### End"}, "'### End' is in"),
        ({"instruction": "Is it good?", "response": "negative"}, "word for word"),
        ({"instruction": TASK, "response": "Positive"}, "not happy"),
        ({"instruction": TASK, "response": "bad"}, "to the letter"),
        ({"instruction": TASK, "response": "Negative"}, "to the letter"),
        ({"instruction": TASK, "response": "non-negative"}, "to the letter"),
        ({"instruction": TASK, "response": "positive/negative"}, "to the letter"),
        ({"instruction": f"Positive? {REVIEW}", "response": "negative"}, "'negative'"),
        ({"instruction": f"Sort: {REVIEW}", "response": "negative"}, "'positive'"),
        ({"instruction": f"- {REVIEW} -", "response": "negative"}, "no task"),
        ({"instruction": REVIEW, "response": "negative"}, "no task"),
        ({"instruction": TASK, "response": "It is negative."}, "as one word"),
        ([TASK, "negative"], "expected a dictionary"),
    ],
)
def test_wrong_records_get_their_hint(record, hint):
    assert rejected(check_record(record, REVIEW), hint)


@pytest.mark.parametrize("count", [50, 50.0, numpy.int64(50), 49.6])
def test_right_rows_for_replay(count):
    assert check_replay_rows(count, 200, 0.2).passed


@pytest.mark.parametrize(
    "count, hint",
    [
        (40, "share of the training rows"),
        (250, "rows there are in all"),
        (160, "leaves training rows out"),
        (800, "turned the shares round"),
        (7, "solve for r"),
        ("50", "expected a number"),
    ],
)
def test_wrong_rows_for_replay_get_their_hint(count, hint):
    assert rejected(check_replay_rows(count, 200, 0.2), hint)


# 04

# hidden 32, feed-forward 64: query_key_value, dense, dense_h_to_4h, dense_4h_to_h
SHAPES = [(32, 96), (32, 32), (32, 64), (64, 32)]
RANK, TARGET = 4, "query_key_value"
ONE_BLOCK = RANK * (32 + 96)


def test_right_lora_parameters_are_what_peft_counts():
    from peft import LoraConfig, get_peft_model

    base = tiny_gpt_neox()
    assert check_lora_parameters(2 * ONE_BLOCK, base, RANK, TARGET).passed
    config = LoraConfig(r=RANK, target_modules=[TARGET], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    assert model.get_nb_trainable_parameters()[0] == 2 * ONE_BLOCK


def test_a_model_that_has_other_lora_matrices_is_counted_anew():
    from peft import get_peft_model

    model = get_peft_model(tiny_gpt_neox(), lora_config(MODELS["lab"]))
    before = model.get_nb_trainable_parameters()
    assert check_lora_parameters(2 * ONE_BLOCK, model, RANK, TARGET).passed
    everywhere = 2 * sum(RANK * (i + o) for i, o in SHAPES)
    verdict = check_lora_parameters(everywhere, model, RANK, TARGET)
    assert rejected(verdict, "for every linear layer")
    assert model.get_nb_trainable_parameters() == before


def test_dense_alone_is_not_all_layers_whose_names_begin_so():
    count = 2 * RANK * (32 + 32)
    assert check_lora_parameters(count, tiny_gpt_neox(), RANK, "dense").passed


@pytest.mark.parametrize(
    "count, hint",
    [
        (2 * 32 * 96, "LoRA leaves those alone"),
        (2 * RANK * 32, "one of the two matrices"),
        (2 * RANK * 96, "one of the two matrices"),
        (2 * RANK * 32 * 96, "are narrow"),
        (2 * sum(RANK * (i + o) for i, o in SHAPES), "for every linear layer"),
        (2 * RANK * RANK, "one side only"),
        (ONE_BLOCK, "that is one block; the model has 2"),
        (7, "rank x (inputs + outputs)"),
        ("7", "expected a whole number"),
    ],
)
def test_wrong_lora_parameters_get_their_hint(count, hint):
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
def test_right_best_epoch(epoch):
    assert check_best_epoch(epoch, HISTORY).passed


@pytest.mark.parametrize(
    "epoch, hint",
    [
        (1.9, "that is the loss"),
        (2, "epochs from 1"),
        (5, "training loss is lowest"),
        (9, "they go from 1 to 5"),
        (4, "compare all rows"),
        ("3", "expected the number"),
    ],
)
def test_wrong_best_epochs_get_their_hint(epoch, hint):
    assert rejected(check_best_epoch(epoch, HISTORY), hint)


@pytest.mark.parametrize("price", [1.5, 0.7364, 37.688])
def test_right_cost_of_a_weekend(price):
    assert check_forgotten_endpoint(62 * price, price).passed
    assert check_forgotten_endpoint(round(62 * price, 2), price).passed


@pytest.mark.parametrize("price", [1.5, 0.7364])
@pytest.mark.parametrize(
    "hours, hint",
    [
        (14, "Saturday and Sunday are billed too"),
        (38, "one day too few"),
        (48, "Friday evening and Monday morning"),
        (86, "one day too many"),
        (1, "a whole weekend"),
        (50, "would be 50.0 hours"),
        (0.002, "not the questions are billed"),
    ],
)
def test_wrong_costs_of_a_weekend_get_their_hint(hours, hint, price):
    assert rejected(check_forgotten_endpoint(hours * price, price), hint)


def test_hours_are_not_dollars():
    assert rejected(check_forgotten_endpoint(62, 1.5), "each has a price")
    assert rejected(check_forgotten_endpoint("much", 1.5), "an amount in US dollars")


# 05_evaluation

BATCHES = ([0.5, 2.0], [90, 10])


@pytest.mark.parametrize("loss", [0.65, torch.tensor(0.65), numpy.float64(0.65)])
def test_right_held_out_loss(loss):
    assert check_held_out_loss(loss, *BATCHES).passed


@pytest.mark.parametrize(
    ("loss", "hint"),
    [
        (1.25, "the mean of the batches"),
        (65.0, "all tokens together"),
        (32.5, "not by the number of batches"),
        (1.9155, "its logarithm"),
        (0.1, "multiply each batch's mean"),
        ("0.65", "expected a loss"),
    ],
)
def test_wrong_held_out_losses_get_their_hint(loss, hint):
    assert rejected(check_held_out_loss(loss, *BATCHES), hint)


def shared_words(answer, expected):
    return len(set(words(answer)) & set(words(expected)))


def test_right_token_f1():
    assert check_token_f1(token_f1).passed


@pytest.mark.parametrize(
    ("f1", "hint"),
    [
        (lambda a, e: shared_words(a, e) / len(words(a)), "the precision alone"),
        (lambda a, e: shared_words(a, e) / len(words(e)), "the recall alone"),
        (
            lambda a, e: shared_words(a, e) / len(set(words(a) + words(e))),
            "the share of all words",
        ),
        (
            lambda a, e: (
                shared_words(a, e) * (1 / len(words(a)) + 1 / len(words(e))) / 2
            ),
            "the harmonic one",
        ),
        (lambda a, e: 0.0, "should be 0.571, not 0.000"),
        (lambda a, e: "high", "expected a number from f1"),
        (lambda a: 1.0, "raises TypeError"),
        (lambda a, e: token_f1(a, e) if shared_words(a, e) else 1 / 0, "share no word"),
        (0.5, "expected a function"),
    ],
)
def test_wrong_token_f1_gets_its_hint(f1, hint):
    assert rejected(check_token_f1(f1), hint)


JUDGED = blind_pairs(
    ["a", "b", "c"], {"base": ["1", "2", "3"], "tuned": ["4", "5", "6"]}, 3
)


def test_any_honest_votes_are_right():
    assert check_votes(["A", "B", "="], JUDGED).passed
    assert check_votes(("=", "=", "="), JUDGED).passed
    assert check_votes([..., "A", "B"], JUDGED).passed is None


@pytest.mark.parametrize(
    ("votes", "hint"),
    [
        (["A", "B"], "2 votes for 3 pairs"),
        (["A", "B", "tuned"], "vote 3 names a system"),
        (["A", "a", "B"], "vote 2 is 'a'"),
        (["B", "B", "B"], "prefers nobody"),
        ("ABA", "expected a list"),
    ],
)
def test_votes_that_are_none_get_their_hint(votes, hint):
    assert rejected(check_votes(votes, JUDGED), hint)


DIFFERENCES = [1.0] * 40 + [0.0] * 50 + [-1.0] * 10
SPREAD = float(numpy.std(DIFFERENCES))


@pytest.mark.parametrize("spread", [SPREAD, float(numpy.std(DIFFERENCES, ddof=1))])
def test_right_number_of_questions(spread):
    count = questions_needed(spread, 0.05)
    assert check_questions(count, DIFFERENCES, gain=0.05).passed


@pytest.mark.parametrize(
    ("count", "hint"),
    [
        (questions_needed(SPREAD / 10, 0.05), "the standard error"),
        (questions_needed(SPREAD**2, 0.05), "the variance"),
        (questions_needed(SPREAD, 5), "five points"),
        (questions_needed(SPREAD, 0.3), "the difference measured here"),
        (100, "standard deviation of `differences`"),
        ("100", "expected a number"),
    ],
)
def test_wrong_numbers_of_questions_get_their_hint(count, hint):
    assert rejected(check_questions(count, DIFFERENCES, gain=0.05), hint)
