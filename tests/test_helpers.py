import copy
import statistics
import subprocess
import sys
import time

import numpy
import pytest
import torch
from tiny_models import tiny_gpt_neox, tiny_tokenizer

from utils import helpers
from utils.helpers import (
    END_KEY,
    IGNORED,
    INFERENCE_PROMPT,
    PROMPT,
    RESPONSE_KEY_NL,
    DataCollatorForCompletionOnlyLM,
    add_text,
    encode_prompts,
    preprocess_batch,
)

EXACT_PROMPT = (
    b"Below is an instruction that describes a task. Write a response that "
    b"appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    b"### Response:\n{response}\n\n### End"
)
RECORD = {"instruction": "What is it?", "response": "It is a service."}
LONGER = {"instruction": "Which ones are there?", "response": "Encryption at rest."}


@pytest.fixture
def tokenizer():
    return copy.deepcopy(tiny_tokenizer())


def templated_rows(tokenizer, *records):
    texts = [add_text(record) for record in records]
    columns = {key: [text[key] for text in texts] for key in ("prompt", "completion")}
    encoded = preprocess_batch(columns, tokenizer, max_length=None)
    return [
        dict(zip(encoded, row, strict=True))
        for row in zip(*encoded.values(), strict=True)
    ]


def learned(tokenizer, batch, row=0):
    labels = batch["labels"][row]
    return tokenizer.decode(labels[labels != IGNORED])


def without_labels(row):
    return {"input_ids": row["input_ids"]}


def padded(tokenizer, row, side, amount):
    """The row as a tokenizer pads it: pad ids, and zeros in the mask."""
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
    return {
        key: (
            [fill[key]] * amount + values
            if side == "left"
            else values + [fill[key]] * amount
        )
        for key, values in row.items()
    }


# The template


def test_prompt_is_byte_for_byte_the_agreed_one():
    assert PROMPT.encode() == EXACT_PROMPT


def test_inference_prompt_is_the_prompt_up_to_the_response():
    end = EXACT_PROMPT.index(b"{response}")
    assert INFERENCE_PROMPT.encode() == EXACT_PROMPT[:end]


def test_constants():
    assert helpers.RESPONSE_KEY == "### Response:"
    assert helpers.RESPONSE_KEY_NL == "### Response:\n"
    assert helpers.INSTRUCTION_KEY == "### Instruction:"
    assert helpers.END_KEY == "### End"
    assert helpers.DEFAULT_SEED == 42


def test_add_text_keeps_the_record_and_joins_prompt_and_completion():
    record = {**RECORD, "topic": "purpose"}
    result = add_text(record)
    assert result["topic"] == "purpose"
    assert result["text"] == PROMPT.format(**RECORD)
    assert result["text"] == result["prompt"] + result["completion"]
    assert result["completion"] == "It is a service.\n\n### End"
    assert result["prompt"] == INFERENCE_PROMPT.format(instruction="What is it?")
    assert "text" not in record


def test_braces_and_keys_in_the_users_text_survive():
    record = {"instruction": "What is {x} or {0}?", "response": "{} {response} ### End"}
    result = add_text(record)
    assert "\nWhat is {x} or {0}?\n" in result["prompt"]
    assert result["completion"] == "{} {response} ### End\n\n### End"


@pytest.mark.parametrize("field", ["instruction", "response"])
@pytest.mark.parametrize("value", [None, "", "  \n", float("nan"), 7])
def test_missing_text_is_an_error_that_shows_the_record(field, value):
    with pytest.raises(ValueError, match=f"{field} in: .*instruction.*response"):
        add_text({**RECORD, field: value})


# Tokenising


def test_only_the_completion_is_labelled(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    labelled = [label for label in row["labels"] if label != IGNORED]
    prompt_length = row["labels"].count(IGNORED)
    assert tokenizer.decode(labelled) == "It is a service.\n\n### End"
    assert row["labels"][:prompt_length] == [IGNORED] * prompt_length
    assert row["labels"][prompt_length:] == row["input_ids"][prompt_length:]
    prompt = INFERENCE_PROMPT.format(instruction="What is it?")
    assert encode_prompts([prompt], tokenizer) == [row["input_ids"][:prompt_length]]
    assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_no_token_straddles_prompt_and_completion():
    tokenizer = tiny_tokenizer(key_tokens=False)
    record = {**RECORD, "response": "\n\nIt begins with empty lines."}
    (row,) = templated_rows(tokenizer, record)
    labelled = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(labelled) == add_text(record)["completion"]


def test_a_tokenizer_that_adds_bos_adds_it_once_and_only_to_the_prompt():
    tokenizer = tiny_tokenizer(adds_bos=True)
    (row,) = templated_rows(tokenizer, RECORD)
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    (searched,) = DataCollatorForCompletionOnlyLM(tokenizer)([without_labels(row)])[
        "labels"
    ]
    assert searched.tolist() == row["labels"]


def columns(*records):
    texts = [add_text(record) for record in records]
    return {key: [text[key] for text in texts] for key in ("prompt", "completion")}


def test_a_row_over_the_limit_is_an_error_that_names_it(tokenizer):
    long = {**RECORD, "response": "much " * 50}
    with pytest.raises(ValueError, match=r"Row 1 .* max_length is 100.*'much much"):
        preprocess_batch(columns(RECORD, long), tokenizer, 100)


def test_a_row_over_the_limit_can_be_dropped(tokenizer):
    long = {**RECORD, "response": "much " * 50}
    result = preprocess_batch(columns(long, RECORD), tokenizer, 100, too_long="drop")
    assert {len(rows) for rows in result.values()} == {1}
    assert result["input_ids"][0] == templated_rows(tokenizer, RECORD)[0]["input_ids"]


def test_cutting_the_prompt_never_cuts_the_answer(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    limit = len(row["input_ids"]) - 5
    cut = preprocess_batch(columns(RECORD), tokenizer, limit, too_long="cut_prompt")
    assert cut["input_ids"] == [row["input_ids"][5:]]
    assert cut["labels"] == [row["labels"][5:]]
    with pytest.raises(ValueError, match="max_length is 4"):
        preprocess_batch(columns(RECORD), tokenizer, 4, too_long="cut_prompt")


def test_a_row_of_exactly_the_limit_is_kept(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    limit = len(row["input_ids"])
    assert preprocess_batch(columns(RECORD), tokenizer, limit)["labels"]


def test_an_untemplated_batch_is_an_error_that_says_what_to_do(tokenizer):
    with pytest.raises(ValueError, match="'prompt'.*add_text"):
        preprocess_batch({"instruction": ["What?"]}, tokenizer, 100)


# The collator


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_follows_the_tokenizer_and_carries_no_label(tokenizer, side):
    tokenizer.padding_side = side
    rows = templated_rows(tokenizer, RECORD, LONGER)
    batch = DataCollatorForCompletionOnlyLM(tokenizer)(rows)
    for number, row in enumerate(rows):
        real = batch["attention_mask"][number].bool()
        assert batch["input_ids"][number][real].tolist() == row["input_ids"]
        assert batch["labels"][number][real].tolist() == row["labels"]
        assert set(batch["labels"][number][~real].tolist()) <= {IGNORED}
    shorter = min(range(2), key=lambda i: len(rows[i]["input_ids"]))
    edge = 0 if side == "left" else -1
    assert batch["attention_mask"][shorter][edge] == 0
    assert batch["input_ids"][shorter][edge] == tokenizer.pad_token_id


@pytest.mark.parametrize("side", ["left", "right"])
def test_pad_to_multiple_of(tokenizer, side):
    tokenizer.padding_side = side
    rows = templated_rows(tokenizer, RECORD, LONGER)
    plain = DataCollatorForCompletionOnlyLM(tokenizer)(rows)
    wide = DataCollatorForCompletionOnlyLM(tokenizer, pad_to_multiple_of=64)(rows)
    assert {value.shape[1] % 64 for value in wide.values()} == {0}
    added = wide["input_ids"].shape[1] - plain["input_ids"].shape[1]
    padding = slice(0, added) if side == "left" else slice(-added, None)
    assert added > 0
    assert not wide["attention_mask"][:, padding].any()
    assert (wide["labels"][:, padding] == IGNORED).all()
    assert (wide["input_ids"][:, padding] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<pad>"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_the_real_end_of_text_keeps_its_label(pad, side, with_labels, with_mask):
    tokenizer = tiny_tokenizer(pad=pad)
    (row,) = templated_rows(tokenizer, RECORD)
    row["input_ids"] += [tokenizer.eos_token_id]
    row["labels"] += [tokenizer.eos_token_id]
    row["attention_mask"] += [1]
    given = padded(tokenizer, row, side, 5)
    given = {
        key: values
        for key, values in given.items()
        if key == "input_ids"
        or (key == "labels" and with_labels)
        or (key == "attention_mask" and with_mask)
    }
    batch = DataCollatorForCompletionOnlyLM(tokenizer, pad_to_multiple_of=8)([given])
    assert learned(tokenizer, batch) == "It is a service.\n\n### End<|endoftext|>"
    assert batch["attention_mask"].sum() == len(row["input_ids"])


def test_labels_that_are_there_are_used(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    row["labels"] = [IGNORED] * (len(row["labels"]) - 1) + row["labels"][-1:]
    batch = DataCollatorForCompletionOnlyLM(tokenizer)([row])
    assert learned(tokenizer, batch) == END_KEY


def test_rows_without_labels_get_the_same_ones_by_search(tokenizer):
    rows = templated_rows(tokenizer, RECORD, LONGER)
    collator = DataCollatorForCompletionOnlyLM(tokenizer)
    labelled, searched = collator(rows), collator([without_labels(r) for r in rows])
    for key in labelled:
        assert torch.equal(labelled[key], searched[key])


def test_an_answer_that_quotes_the_keys_is_learned_whole(tokenizer):
    response = f"Write {RESPONSE_KEY_NL}and then {END_KEY} to stop."
    rows = templated_rows(tokenizer, {**RECORD, "response": response})
    collator = DataCollatorForCompletionOnlyLM(tokenizer)
    for row in (rows[0], without_labels(rows[0])):
        assert learned(tokenizer, collator([row])) == f"{response}\n\n{END_KEY}"


def test_several_turns_are_each_learned_up_to_their_end(tokenizer):
    first, second = add_text(RECORD)["text"], add_text(LONGER)["text"]
    ids = tokenizer(first + tokenizer.eos_token + second)["input_ids"]
    batch = DataCollatorForCompletionOnlyLM(tokenizer)([ids])
    expected = "It is a service.\n\n### End<|endoftext|>Encryption at rest.\n\n### End"
    assert learned(tokenizer, batch) == expected


@pytest.mark.parametrize(
    "kind", [list, tuple, numpy.array, torch.tensor], ids=lambda kind: kind.__name__
)
def test_lists_arrays_and_tensors_are_accepted(tokenizer, kind):
    rows = templated_rows(tokenizer, RECORD, LONGER)
    collator = DataCollatorForCompletionOnlyLM(tokenizer)
    expected = collator(rows)
    given = [{key: kind(values) for key, values in row.items()} for row in rows]
    for result in (collator(given), collator([kind(r["input_ids"]) for r in rows])):
        for key in expected:
            assert torch.equal(result[key], expected[key])


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_padded_before_are_padded_anew(tokenizer, side):
    rows = templated_rows(tokenizer, RECORD, LONGER)
    collator = DataCollatorForCompletionOnlyLM(tokenizer)
    result = collator([padded(tokenizer, row, side, 7) for row in rows])
    for key, value in collator(rows).items():
        assert torch.equal(result[key], value)


@pytest.mark.parametrize("keep", [10, -12], ids=["key", "answer"])
def test_a_row_that_lost_its_answer_is_named(tokenizer, keep):
    good, bad = templated_rows(tokenizer, RECORD, RECORD)
    ids = bad["input_ids"][:keep]
    if keep < 0:
        ids = encode_prompts([add_text(RECORD)["prompt"]], tokenizer)[0]
    with pytest.raises(ValueError, match="Row 1 .*no answer.*'Below is an.*max_length"):
        DataCollatorForCompletionOnlyLM(tokenizer)([good, {"input_ids": ids}])


def test_an_empty_answer_is_an_error(tokenizer):
    ids = tokenizer(PROMPT.format(instruction="What?", response=" "))["input_ids"]
    with pytest.raises(ValueError, match="Row 0 .*no answer"):
        DataCollatorForCompletionOnlyLM(tokenizer)([ids])


def test_rows_without_an_answer_can_be_dropped_or_masked(tokenizer):
    good, bad = templated_rows(tokenizer, RECORD, RECORD)
    bad = {"input_ids": bad["input_ids"][:10]}
    drop = DataCollatorForCompletionOnlyLM(tokenizer, no_answer="drop")([bad, good])
    mask = DataCollatorForCompletionOnlyLM(tokenizer, no_answer="mask")([bad, good])
    assert drop["labels"].tolist() == [good["labels"]]
    assert mask["labels"].shape[0] == 2
    assert (mask["labels"][0] == IGNORED).all()


@pytest.mark.parametrize("choice", ["drop", "mask"])
def test_a_batch_in_which_nothing_is_left_is_an_error(tokenizer, choice):
    (row,) = templated_rows(tokenizer, RECORD)
    bad = {"input_ids": row["input_ids"][:10]}
    with pytest.raises(ValueError, match="None of the 2 rows.*max_length"):
        DataCollatorForCompletionOnlyLM(tokenizer, no_answer=choice)([bad, bad])


def test_a_tokenizer_without_padding_token_is_an_error(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token = tokenizer.eos_token"):
        DataCollatorForCompletionOnlyLM(tokenizer)([row])


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_at_completions_only_give_the_same_loss_and_gradient(tokenizer, side):
    tokenizer.padding_side = side
    rows = templated_rows(tokenizer, RECORD, LONGER)
    torch.manual_seed(0)
    model = tiny_gpt_neox(len(tokenizer))
    losses, gradients = [], []
    for short in (False, True):
        collator = DataCollatorForCompletionOnlyLM(
            tokenizer, completion_logits_only=short
        )
        model.zero_grad()
        output = model(**collator(rows))
        output.loss.backward()
        losses.append(output.loss)
        gradients.append(model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.grad.clone())
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    learned_tokens = sum(label != IGNORED for row in rows for label in row["labels"])
    assert output.logits.shape[-2] == learned_tokens


def test_a_batch_of_eight_takes_little_time(tokenizer):
    rows = templated_rows(tokenizer, *[RECORD, LONGER] * 4)
    collator = DataCollatorForCompletionOnlyLM(tokenizer, pad_to_multiple_of=8)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        collator(rows)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.015  # ten times what a quiet machine takes


def test_import_is_light():
    code = (
        "import sys, torch; before = set(sys.modules); import utils.helpers; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"transformers", "datasets", "pandas", "matplotlib", "peft"}
    assert not heavy & set(eval(result.stdout))
