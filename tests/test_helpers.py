import copy
import inspect
import subprocess
import sys
import types

import numpy
import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from support.tiny_models import tiny_gpt_neox, tiny_tokenizer
from utils import helpers
from utils.course import LAB_DATA
from utils.dataset.faqs import load_faqs
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
from utils.models import load_tokenizer, settings_for

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


def lab_tokenizer():
    return load_tokenizer(settings_for("lab"))


def straddling_tokenizer():
    """Two line breaks are one token, wherever they stand."""
    tokenizer = copy.deepcopy(tiny_tokenizer(key_tokens=False))
    tokenizer.add_tokens(["\n\n"])
    return tokenizer


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
    tokenizer = straddling_tokenizer()
    record = {**RECORD, "response": "\n\nIt begins with empty lines."}
    (row,) = templated_rows(tokenizer, record)
    assert row["input_ids"] != tokenizer(add_text(record)["text"])["input_ids"]
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


@pytest.mark.parametrize("adds_bos", [False, True])
def test_cutting_the_prompt_leaves_its_key_and_its_beginning(adds_bos):
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    bos = [tokenizer.bos_token_id] if adds_bos else []
    (row,) = templated_rows(tokenizer, RECORD)
    answer = [label for label in row["labels"] if label != IGNORED]
    key = tokenizer(RESPONSE_KEY_NL, add_special_tokens=False)["input_ids"]
    least = bos + key + answer
    cut = preprocess_batch(
        columns(RECORD), tokenizer, len(least), too_long="cut_prompt"
    )
    assert cut["input_ids"] == [least]
    assert cut["labels"] == [[IGNORED] * len(bos + key) + answer]
    with pytest.raises(ValueError, match=f"max_length is {len(least) - 1}"):
        preprocess_batch(columns(RECORD), tokenizer, len(least) - 1, "cut_prompt")


def test_a_row_of_exactly_the_limit_is_kept(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    limit = len(row["input_ids"])
    assert preprocess_batch(columns(RECORD), tokenizer, limit)["labels"]


def test_an_untemplated_batch_is_an_error_that_says_what_to_do(tokenizer):
    with pytest.raises(ValueError, match="'prompt'.*add_text"):
        preprocess_batch({"instruction": ["What?"]}, tokenizer, 100)


# The collator: labels that were made at tokenising, or are searched for


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


@pytest.mark.parametrize(("learned", "same"), [(False, True), (True, False)])
def test_the_side_of_padding_matters_where_positions_are_learned(learned, same):
    """What lesson 03 says of it, section 5."""
    shape = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}
    shape |= {"num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    if learned:
        model = GPT2LMHeadModel(GPT2Config(**shape, loss_type="ForCausalLM"))
    text, gap = torch.arange(1, 13), torch.zeros(4, dtype=torch.long)
    losses = []
    for pieces in ((gap, text), (text, gap)):
        ids = torch.cat(pieces)[None]
        labels = ids.masked_fill(ids < 6, -100)
        found = model.eval()(ids, attention_mask=(ids > 0).long(), labels=labels)
        losses.append(found.loss.item())
    assert (abs(losses[0] - losses[1]) < 1e-4) is same


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


def test_a_question_that_quotes_the_key_is_not_learned(tokenizer):
    question = f"What comes after {RESPONSE_KEY_NL}?"
    rows = templated_rows(tokenizer, {**RECORD, "instruction": question})
    batch = DataCollatorForCompletionOnlyLM(tokenizer)(rows)
    assert learned(tokenizer, batch) == "It is a service.\n\n### End"


@pytest.mark.parametrize("between", ["<|endoftext|>", "\n\n", ""])
@pytest.mark.parametrize("key_tokens", [True, False])
def test_several_turns_are_each_learned_up_to_their_end(between, key_tokens):
    tokenizer = tiny_tokenizer(key_tokens=key_tokens)
    turns = [add_text(record)["text"] for record in (RECORD, LONGER, RECORD)]
    ids = tokenizer(between.join(turns) + "<|endoftext|>")["input_ids"]
    batch = DataCollatorForCompletionOnlyLM(tokenizer)([ids])
    stop = END_KEY + (between if between == "<|endoftext|>" else "")
    expected = (
        f"It is a service.\n\n{stop}Encryption at rest.\n\n{stop}"
        f"It is a service.\n\n{END_KEY}<|endoftext|>"
    )
    assert learned(tokenizer, batch) == expected


def test_a_token_that_straddles_the_key_is_an_error_and_not_a_wrong_label():
    tokenizer = straddling_tokenizer()
    ids = tokenizer(PROMPT.format(instruction="Why?", response="\n\nSo."))["input_ids"]
    pieces = [tokenizer.decode(piece) for piece in ids]
    assert pieces[pieces.index(":", pieces.index(":") + 1) + 1] == "\n\n"
    with pytest.raises(ValueError, match="Row 0 .*no answer.*preprocess_batch"):
        DataCollatorForCompletionOnlyLM(tokenizer)([ids])


def short_integers(values):
    return numpy.array(values, dtype=numpy.int32)


@pytest.mark.parametrize(
    "kind",
    [list, tuple, numpy.array, short_integers, torch.tensor],
    ids=lambda kind: kind.__name__,
)
def test_lists_arrays_and_tensors_are_accepted(tokenizer, kind):
    rows = templated_rows(tokenizer, RECORD, LONGER)
    collator = DataCollatorForCompletionOnlyLM(tokenizer)
    expected = collator(rows)
    given = [{key: kind(values) for key, values in row.items()} for row in rows]
    for result in (collator(given), collator([kind(r["input_ids"]) for r in rows])):
        for key in expected:
            assert torch.equal(result[key], expected[key])


def test_rows_as_a_tokenizer_returns_them_are_accepted(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    batch = DataCollatorForCompletionOnlyLM(tokenizer)(
        [tokenizer(add_text(RECORD)["text"])]
    )
    assert batch["labels"].tolist() == [row["labels"]]


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


def test_a_label_that_nothing_can_predict_is_no_answer(tokenizer):
    (row,) = templated_rows(tokenizer, RECORD)
    row["labels"] = row["input_ids"][:1] + [IGNORED] * (len(row["labels"]) - 1)
    with pytest.raises(ValueError, match="Row 0 .*no answer"):
        DataCollatorForCompletionOnlyLM(tokenizer)([row])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": [1, 2]}, r"Row 1 .*'labels': \(2,\)"),
        ({"attention_mask": [1]}, r"Row 1 .*'attention_mask': \(1,\)"),
        ({"input_ids": [[5, 6]]}, r"Row 1 .*'input_ids': \(1, 2\).*flat"),
        ({"input_ids": None}, r"Row 1 .*it needs flat `input_ids`"),
    ],
)
def test_a_malformed_row_is_named(tokenizer, change, message):
    good, bad = templated_rows(tokenizer, RECORD, LONGER)
    with pytest.raises(ValueError, match=message):
        DataCollatorForCompletionOnlyLM(tokenizer)([good, bad | change])


def test_columns_in_place_of_rows_are_an_error(tokenizer):
    rows = Dataset.from_list(templated_rows(tokenizer, RECORD, LONGER))
    with pytest.raises(ValueError, match="give a list of rows"):
        DataCollatorForCompletionOnlyLM(tokenizer)(rows[:2])


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


def test_a_plain_trainer_scores_completions_only_and_learns_the_same(
    tokenizer, tmp_path
):
    rows = templated_rows(tokenizer, RECORD, LONGER, LONGER, RECORD)
    runs = []
    for short in (False, True):
        torch.manual_seed(0)
        model = tiny_gpt_neox(len(tokenizer))
        scored = []
        model.get_output_embeddings().register_forward_hook(
            lambda layer, inputs, output, scored=scored: scored.append(
                output.numel() // output.shape[-1]
            )
        )
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=3,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                learning_rate=1e-2,
                logging_steps=1,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=DataCollatorForCompletionOnlyLM(
                tokenizer, completion_logits_only=short
            ),
        )
        trainer.train()
        held_out = trainer.evaluate()["eval_loss"]
        log = trainer.state.log_history
        losses = [
            row[name] for row in log for name in ("loss", "grad_norm") if name in row
        ]
        runs.append((sum(scored), [*losses, held_out]))
    (everywhere, plain), (at_completions, short) = runs
    assert len(plain) == 7
    assert short == pytest.approx(plain, rel=1e-4)
    answers = sum(label != IGNORED for row in rows for label in row["labels"])
    assert at_completions == 4 * answers  # three epochs and one evaluation
    assert everywhere >= 4 * sum(len(row["labels"]) for row in rows)


TOKENIZERS = {
    "the lab model's": lab_tokenizer,
    "keys in pieces": lambda: tiny_tokenizer(key_tokens=False),
    "adds bos": lambda: tiny_tokenizer(adds_bos=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_labels_are_trls_but_for_the_end_of_text_that_it_appends(name, tmp_path):
    from trl import SFTConfig, SFTTrainer

    tokenizer = TOKENIZERS[name]()
    records = load_faqs(LAB_DATA).frame.to_dict("records")[::4]
    ours = templated_rows(tokenizer, *records)
    trainer = SFTTrainer(
        model=tiny_gpt_neox(len(tokenizer)),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns(*records)),
        processing_class=tokenizer,
    )
    theirs = trainer.train_dataset.select_columns(["input_ids", "labels"]).to_list()
    end = [tokenizer.eos_token_id]
    assert theirs == [
        {name: row[name] + end for name in ("input_ids", "labels")} for row in ours
    ]
    tokenizer.padding_side = "right"  # TRL always pads there
    batch = DataCollatorForCompletionOnlyLM(tokenizer)(theirs[:8])
    for key, value in trainer.data_collator(theirs[:8]).items():
        assert torch.equal(batch[key], value), key


class CountOperations(TorchDispatchMode):
    """Counts PyTorch's operations and the lines of `utils.helpers` that run."""

    def __enter__(self):
        self.count, self.traced = 0, sys.gettrace()
        sys.settrace(self._call)
        return super().__enter__()

    def __exit__(self, *raised):
        sys.settrace(self.traced)
        return super().__exit__(*raised)

    def _call(self, frame, event, argument):
        return self._line if frame.f_code.co_filename == helpers.__file__ else None

    def _line(self, frame, event, argument):
        self.count += event == "line"
        return self._line

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("searched", [False, True])
def test_collating_takes_work_in_proportion_to_the_rows(searched):
    """How long that is, tests/benchmarks/bench_training.py measures."""
    tokenizer = lab_tokenizer()
    records = load_faqs(LAB_DATA).frame.to_dict("records")[:1]
    short, long = (
        [dict(one, response=f"{one['response']} " * n) for one in records]
        for n in (1, 8)
    )
    short, long = templated_rows(tokenizer, *short), templated_rows(tokenizer, *long)
    if searched:
        short, long = ([without_labels(row) for row in rows] for rows in (short, long))
    collator = DataCollatorForCompletionOnlyLM(tokenizer, pad_to_multiple_of=8)

    def work(rows):
        with CountOperations() as counted:
            collator(rows)
        return counted.count

    eight = work(8 * short)
    assert work(16 * short) <= 2 * eight
    assert work(8 * long) <= 1.1 * eight, "the work grows with the tokens"
    assert eight < 8 * 120


def test_import_is_light():
    code = (
        "import sys, torch, transformers; before = set(sys.modules); "
        "import utils.helpers; print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["utils", "utils.helpers", "utils.machine"]


# Deliberate breaks: the tests above must catch each

LABELS = 'rows["labels"].append([IGNORED] * len(prompt) + completion)'
FOUND = "start, stop = place + len(key), len(ids)"
PADDED_LABELS = "labels = self._pad([labels for _, labels in kept], IGNORED)"
BREAKS = [
    ("mask off by one", LABELS, LABELS.replace("(prompt)", "(prompt[:-1])")),
    (
        "mask off by one",
        LABELS,
        'rows["labels"].append([IGNORED] * len(prompt + [0]) + completion[1:])',
    ),
    ("mask off by one", FOUND, FOUND.replace("len(key)", "len(key) + 1")),
    ("eos unmasked", "real[: text[0]], real[last + 1 :] = False, False", "pass"),
    ("eos unmasked", "last = text[-1] + (", "last = text[-1] + 2 * ("),
    ("eos masked", "last = text[-1] + (", "last = text[-1] + 0 * ("),
    ("eos masked", "real = given[", "real = (ids != pad_id) & given["),
    ("eos masked", "stop += ids[stop", "stop += 0 * ids[stop"),
    (
        "key included",
        LABELS,
        'rows["labels"].append([IGNORED] * len(prompt[: -len(least)])'
        " + prompt[-len(least) :] + completion)",
    ),
    ("key included", FOUND, FOUND.replace("place + len(key)", "place")),
    ("padding counted", PADDED_LABELS, PADDED_LABELS.replace("IGNORED", "0")),
    ("padding counted", "for i, _ in kept], 0)", "for i, _ in kept], 1)"),
    (
        "second key",
        "place = _find(ids, key, 0)",
        "place = max(_find(ids, key, i) for i in (0, _find(ids, key, 0) + 1))",
    ),
    ("logits off by one", "pad(labels[:, 1:], (0, 1)", "pad(labels, (0, 0)"),
]
SLOW_OR_OTHER = "trl or trainer or millisecond or light or broken"


class Failures:
    """A plugin of pytest that keeps the reports of tests that fail."""

    def __init__(self):
        self.reports = []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.reports.append(report)


@pytest.mark.parametrize("name, old, new", [("nothing", "", ""), *BREAKS])
def test_a_collator_broken_on_purpose_makes_a_test_fail(monkeypatch, name, old, new):
    source = inspect.getsource(helpers)
    assert not old or source.count(old) == 1, f"helpers.py no longer has {old!r}"
    broken = types.ModuleType("utils.helpers")
    exec(compile(source.replace(old, new), broken.__name__, "exec"), broken.__dict__)
    for function in (preprocess_batch, DataCollatorForCompletionOnlyLM):
        changed = getattr(broken, function.__name__)
        monkeypatch.setattr(sys.modules[__name__], function.__name__, changed)
    failures = Failures()
    options = ["--noconftest", "-x", "-q", "-p", "no:cacheprovider"]
    verdict = pytest.main(
        [*options, "-k", f"not ({SLOW_OR_OTHER})", __file__], plugins=[failures]
    )
    if name == "nothing":
        assert verdict == pytest.ExitCode.OK
    else:
        assert verdict == pytest.ExitCode.TESTS_FAILED
        (report,) = failures.reports
        assert report.when == "call"
        assert "AssertionError" in report.longreprtext or "Failed: " in (
            report.longreprtext
        ), f"it breaks down instead of going wrong: {report.longreprtext}"
