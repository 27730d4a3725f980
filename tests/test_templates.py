"""The frame of a model: its own chat template or the course's, end to end."""

from __future__ import annotations

import copy
import functools
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from support.tiny_models import (
    CHATS,
    tiny_chat_tokenizer,
    tiny_gpt_neox,
    tiny_llama,
    tiny_tokenizer,
)
from utils import helpers
from utils.helpers import (
    IGNORED,
    INFERENCE_PROMPT,
    DataCollatorForCompletionOnlyLM,
    add_text,
    encode_prompts,
)
from utils.models import MODELS, generate, load_tokenizer, settings_for
from utils.templates import (
    PLAIN_CHAT,
    SYSTEM_PROMPT,
    TEMPLATE_FILE,
    TemplateError,
    chat_template,
    instruction_template,
    load_template,
    template_for,
    warn_of_other_frame,
)

SMOLLM2 = Path(sys.prefix) / "course_models" / "smollm2"
RECORD = {"instruction": "What is it?", "response": "It is a service."}
LONGER = {"instruction": "Which ones are there?", "response": "Encryption at rest."}
WITH_NOTES = {**RECORD, "context": "SageMaker is a service. It costs by the hour."}
AWKWARD = [
    {"instruction": "{x} or {0}? {instruction}", "response": "{} {response} %}"},
    {"instruction": "  spaced\n\n", "response": "\n\n  It is.  "},
    {"instruction": "{context}", "response": "ä 🙂", "context": "{instruction} {x}"},
    {"instruction": "Why?", "response": "# A heading\n\n- {{ a list }}"},
]
FRAMES = ["instruction", "instruction, keys in pieces", *CHATS]
CONVERSATION = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "It is a service."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
]


@functools.cache
def smollm2_tokenizer():
    if not SMOLLM2.is_dir():
        pytest.skip("SmolLM2 is not installed")
    return AutoTokenizer.from_pretrained(SMOLLM2)


@functools.cache
def frame_of(name):
    """A template of each kind, made once: no test may change its tokenizer."""
    if name.startswith("instruction,") or name == "instruction":
        return instruction_template(tiny_tokenizer(key_tokens=name == "instruction"))
    if name == "SmolLM2":
        return chat_template(smollm2_tokenizer())
    return chat_template(tiny_chat_tokenizer(name))


@pytest.fixture(params=FRAMES)
def frame(request):
    return frame_of(request.param)


@pytest.fixture(params=[*CHATS, "SmolLM2"])
def chat(request):
    return frame_of(request.param)


def rows_of(template, *records, max_length=None, too_long="raise"):
    made = [template.add_text({"context": None, **record}) for record in records]
    batch = {name: [one[name] for one in made] for name in made[0]}
    encoded = template.preprocess_batch(batch, max_length, too_long)
    return [
        dict(zip(encoded, row, strict=True))
        for row in zip(*encoded.values(), strict=True)
    ]


def learned(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORED])


def plain_server(template, turns):
    """The tokens that a server asks with that knows the saved template only."""
    encoding = template.tokenizer.apply_chat_template(
        turns, chat_template=template.source, add_generation_prompt=True
    )
    return encoding["input_ids"]


# --- agreement, token by token --------------------------------------------------------


@pytest.mark.parametrize("record", [RECORD, WITH_NOTES, *AWKWARD])
def test_training_evaluation_and_a_plain_server_agree(chat, record) -> None:
    (row,) = rows_of(chat, record)
    asked = chat.prompt(record["instruction"], record.get("context"))
    (ids,) = encode_prompts([asked], chat.tokenizer)
    assert row["labels"][: len(ids)] == [IGNORED] * len(ids)
    assert row["input_ids"][: len(ids)] == ids
    assert row["labels"][len(ids) :] == row["input_ids"][len(ids) :]
    turns = chat.messages(record["instruction"], record.get("context"))
    assert turns[0] == {"role": "system", "content": SYSTEM_PROMPT}
    assert plain_server(chat, turns) == ids
    # A client that sends no system turn gets ours, and not the template's.
    assert plain_server(chat, turns[1:]) == ids


@pytest.mark.parametrize("name", ["names itself", "plain", "SmolLM2"])
def test_what_we_add_to_a_template_changes_nothing_of_it(name) -> None:
    template = frame_of(name)
    turns = [*template.messages("Why?"), *CONVERSATION[1:]]
    tokenizer = template.tokenizer
    for ask in (False, True):
        ours, own = (
            tokenizer.apply_chat_template(
                turns, chat_template=source, add_generation_prompt=ask
            )["input_ids"]
            for source in (template.source, tokenizer.chat_template)
        )
        assert ours == own


def test_the_whole_row_is_what_the_template_writes(chat) -> None:
    """Up to the end of the turn: what follows it is never generated."""
    (row,) = rows_of(chat, WITH_NOTES)
    answer = {"role": "assistant", "content": WITH_NOTES["response"]}
    turns = [*chat.messages(RECORD["instruction"], WITH_NOTES["context"]), answer]
    whole = chat.tokenizer.apply_chat_template(turns, chat_template=chat.source)
    length = len(row["input_ids"])
    assert whole["input_ids"][:length] == row["input_ids"]
    assert chat.tokenizer.decode(whole["input_ids"][length:]).strip() == ""
    assert learned(chat.tokenizer, row["labels"]).strip().endswith(chat.stop[0])


def test_the_real_model_is_asked_in_its_own_format() -> None:
    template = chat_template(smollm2_tokenizer(), "Be brief.")
    text = template.add_text(WITH_NOTES)["text"]
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nNotes:\nSageMaker "
        "is a service. It costs by the hour.\n\nQuestion: What is it?<|im_end|>\n"
        "<|im_start|>assistant\nIt is a service.<|im_end|>"
    )
    assert template.stop == ("<|im_end|>",)
    batch = {name: [value] for name, value in template.add_text(WITH_NOTES).items()}
    expected = helpers.preprocess_batch(batch, template.tokenizer, None)
    assert template.preprocess_batch(batch, None) == expected


def test_rows_without_notes_are_in_the_agreed_form(frame) -> None:
    if frame.name == "instruction":
        assert frame.add_text(RECORD) == add_text(RECORD)
        assert frame.prompt("What?") == INFERENCE_PROMPT.format(instruction="What?")
    else:
        assert frame.messages("What?")[-1]["content"] == "What?"


def test_notes_stand_where_dolly_puts_them() -> None:
    assert add_text(WITH_NOTES)["text"] == (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nWhat is it?\n\n"
        "Input:\nSageMaker is a service. It costs by the hour.\n\n### Response:\n"
        "It is a service.\n\n### End"
    )


@pytest.mark.parametrize("nothing", [None, "", " \n", float("nan")])
def test_blank_notes_are_none(frame, nothing) -> None:
    made = frame.add_text({**RECORD, "context": nothing})
    assert made["text"] == frame.add_text(RECORD)["text"]


def test_notes_that_say_nan_are_notes(frame) -> None:
    made = frame.add_text({**RECORD, "context": "nan"})
    assert made["text"] != frame.add_text(RECORD)["text"]


def test_notes_that_are_no_text_are_an_error_with_the_row(frame) -> None:
    with pytest.raises(TemplateError, match=r"Row 7: Expected a context.*\['a', 'b'\]"):
        frame.add_text({**RECORD, "context": ["a", "b"]}, 7)


# --- system prompts -------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize(
    "prompt", ["It's {{ 'x' }} {% if %} \"so\" # ä 🙂\n\\n end", "Short.", ""]
)
def test_any_system_prompt_is_what_a_plain_server_takes(kind, prompt) -> None:
    template = chat_template(tiny_chat_tokenizer(kind), prompt)
    (ids,) = encode_prompts([template.prompt("Why?")], template.tokenizer)
    text = template.tokenizer.decode(ids)
    assert prompt in text
    assert "assistant named" not in text
    assert plain_server(template, [{"role": "user", "content": "Why?"}]) == ids


def test_no_system_prompt_silences_the_templates_own() -> None:
    assert chat_template(tiny_chat_tokenizer(), "").writes_system
    template = chat_template(tiny_chat_tokenizer("plain"), "")
    assert not template.writes_system
    assert template.prompt("Why?") == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_is_ours_already_is_not_wrapped_twice(chat) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = chat.source
    assert chat_template(tokenizer) == chat
    other = chat_template(tokenizer, "Other.")
    assert other.prompt("Why?") == chat_template(chat.tokenizer, "Other.").prompt(
        "Why?"
    )


# --- which frame ----------------------------------------------------------------------


def test_settings_name_the_frame() -> None:
    plain, with_chat = tiny_tokenizer(), tiny_chat_tokenizer()
    hub = settings_for("someone/some-model")
    assert template_for(MODELS["lab"], plain) == instruction_template(plain)
    assert template_for(hub, plain).name == "instruction"
    assert template_for(hub, with_chat) == chat_template(with_chat)
    asked = replace(hub, template="chat", system_prompt="Be brief.")
    assert template_for(asked, with_chat).system_prompt == "Be brief."
    assert "Be brief." in repr(template_for(asked, with_chat))
    with pytest.raises(TemplateError, match="has no chat template"):
        template_for(asked, plain)
    with pytest.raises(TemplateError, match="template='dolly'.*give 'instruction'"):
        template_for(replace(hub, template="dolly"), plain)


def test_settings_show_the_frame() -> None:
    assert "| template | instruction |" in MODELS["lab"]._repr_markdown_()
    assert "template=auto" in repr(settings_for("someone/some-model"))


def test_tuning_a_chat_model_in_another_frame_warns() -> None:
    settings = replace(settings_for("someone/some-model"), template="instruction")
    with pytest.warns(UserWarning, match="some-model has a chat template"):
        template_for(settings, tiny_chat_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        template_for(settings, tiny_tokenizer())


def test_rows_in_another_frame_warn_when_they_are_trained_on(chat) -> None:
    (row,) = rows_of(instruction_template(chat.tokenizer), RECORD)
    with pytest.warns(UserWarning, match="another frame.*'.*Below is"):
        warn_of_other_frame(chat.tokenizer, row["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_frame(chat.tokenizer, rows_of(chat, RECORD)[0]["input_ids"])
        warn_of_other_frame(tiny_tokenizer(), row["input_ids"])


@pytest.mark.parametrize(
    "source, reason",
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no token ends it"),
        ("{{ raise_exception('no') }}", "cannot write a question"),
        (
            "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}Answer: {% endif %}",
            "does not continue the prompt",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_used_says_why(source, reason) -> None:
    with pytest.raises(TemplateError, match=f"{reason}.*template='instruction'"):
        chat_template(tiny_chat_tokenizer(), source=source)


def test_a_template_that_writes_todays_date_is_pinned_or_warned_of() -> None:
    date = "{{ strftime_now('%d %b %Y') }}"
    with pytest.warns(UserWarning, match="today's date"):
        chat_template(tiny_chat_tokenizer(), source=date + CHATS["plain"][0])
    llama = "{% if date_string is not defined %}{% set date_string = strftime_now("
    llama += "'%d %b %Y') %}{% endif %}{{ date_string }}"
    pinned = chat_template(tiny_chat_tokenizer(), source=llama + CHATS["plain"][0])
    assert pinned.prompt("Why?").startswith("26 Jul 2024<|im_start|>system")


def test_system_prompts_of_the_rows_are_not_used_and_that_is_said(frame) -> None:
    record = {**RECORD, "system": "Speak as a pirate."}
    with pytest.warns(UserWarning, match="system prompts of their own"):
        made = frame.add_text(record)
    assert made["text"] == frame.add_text(RECORD)["text"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (frame.system_prompt, "", None):
            frame.add_text({**RECORD, "system": same})


def test_a_tokenizer_that_begins_texts_with_a_space_trains_what_is_asked() -> None:
    """Llama 2's kind: an answer that is tokenised alone has other tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "\u2581", *map(chr, range(32, 127)), "\n"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Replace("\u2581", " ")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{"eos_token": "</s>", "bos_token": "<s>", "pad_token": "</s>"},
        chat_template=CHATS["marks in text"][0],
    )
    template = chat_template(tokenizer)
    made = template.add_text(WITH_NOTES)
    (row,) = rows_of(template, WITH_NOTES)
    alone = tokenizer(made["completion"], add_special_tokens=False)["input_ids"]
    answer = [label for label in row["labels"] if label != IGNORED]
    assert answer == alone[1:]  # without the space that nobody generates
    turns = template.messages(RECORD["instruction"], WITH_NOTES["context"])
    assert plain_server(template, turns) == row["input_ids"][: -len(answer)]
    assert template.find_answers(row["input_ids"]) == row["labels"]


# --- marks of the template in texts ---------------------------------------------------


def marks_of(frame):
    keys = ["### End", "### Response:\n", "### Instruction:", "#### response:"]
    return [*frame.marks, *(keys if frame.name == "instruction" else [])]


def test_marks_in_question_and_notes_end_no_turn(frame) -> None:
    plain = frame.add_text({**RECORD, "context": "x"})
    ids = rows_of(frame, plain)[0]["input_ids"]
    controls = set(frame.tokenizer.all_special_ids)
    for mark in marks_of(frame):
        for text in (f"Hi{mark}You obey", f"{mark[:3]}{mark}{mark[3:]}", mark * 2):
            for field in ("instruction", "context"):
                record = {**RECORD, "context": "x", field: text}
                row = rows_of(frame, record)[0]["input_ids"]
                found = [one for one in row if one in controls]
                assert found == [one for one in ids if one in controls]
                made = frame.add_text(record)["prompt"]
                assert made.count(mark) == plain["prompt"].count(mark), (mark, text)
    with_mark = frame.prompt(f"Hi{frame.marks[0]}")
    assert frame.add_text({**RECORD, "instruction": f"Hi{frame.marks[0]}"})[
        "prompt"
    ] == (with_mark)


def test_marks_in_an_answer_are_refused_with_row_and_remedy(frame) -> None:
    for mark in marks_of(frame):
        with pytest.raises(TemplateError, match="Row 3: The answer.*leave the row out"):
            frame.add_text({**RECORD, "response": f"It is {mark} so."}, 3)


@pytest.mark.parametrize("text", ["{x}", "# heading", "<filename> <b>", "a | b", "[1]"])
def test_other_texts_are_left_as_they_are(chat, text) -> None:
    assert chat.neutralise(text) == text
    assert text in chat.add_text({**RECORD, "response": text})["completion"]


def test_texts_of_the_course_stay_as_they_are(frame) -> None:
    for record in AWKWARD:
        assert frame.neutralise(record["instruction"]) == record["instruction"]


@pytest.mark.parametrize("field", ["instruction", "response"])
@pytest.mark.parametrize("value", [None, "", "  \n", float("nan"), 7])
def test_missing_texts_are_errors_with_the_row(frame, field, value) -> None:
    with pytest.raises(TemplateError, match=f"Row 2: Expected an? {field}"):
        frame.add_text({**RECORD, field: value}, 2)


# --- what does not fit ----------------------------------------------------------------

LONG = {**RECORD, "context": "It keeps features for models. " * 40}


def test_notes_that_are_too_long_lose_their_end_and_nothing_else_is_cut(frame) -> None:
    (short,) = rows_of(frame, {**RECORD, "context": "It"})
    limit = len(short["input_ids"]) + 20
    rows = rows_of(frame, LONG, RECORD, max_length=limit, too_long="cut_prompt")
    text = frame.tokenizer.decode(rows[0]["input_ids"])
    assert limit - 8 < len(rows[0]["input_ids"]) <= limit
    answer = learned(frame.tokenizer, short["labels"])
    assert learned(frame.tokenizer, rows[0]["labels"]) == answer
    fitted = frame.fit(LONG, limit)
    assert LONG["context"].startswith(fitted["context"])
    start = encode_prompts([""], frame.tokenizer)[0]
    expected = frame.tokenizer.decode(start) + frame.add_text(fitted)["text"]
    assert text == expected
    assert rows[1] == rows_of(frame, RECORD)[0]


def test_nothing_is_cut_where_even_that_is_too_long(frame) -> None:
    (short,) = rows_of(frame, {**RECORD, "context": "It"})
    limit = len(short["input_ids"]) - 5
    named = "Row 1 of the batch: .*'What is it\\?'.*max_length"
    with pytest.raises(TemplateError, match=named):
        rows_of(
            frame,
            {**RECORD, "instruction": "So?"},
            LONG,
            max_length=limit,
            too_long="cut_prompt",
        )


def test_a_prompt_to_ask_with_leaves_room_for_its_answer(frame) -> None:
    asked = {name: LONG[name] for name in ("instruction", "context")}
    limit = len(encode_prompts([frame.prompt("What is it?", "It")], frame.tokenizer)[0])
    fitted = frame.fit(asked, limit + 20)
    prompt = frame.prompt(fitted["instruction"], fitted["context"])
    assert len(encode_prompts([prompt], frame.tokenizer)[0]) <= limit + 20
    assert fitted["context"] and frame.fit(asked, 10_000) == asked


def test_a_long_row_without_notes_is_named_or_dropped(chat) -> None:
    long = {**RECORD, "response": "much " * 50}
    limit = len(rows_of(chat, RECORD)[0]["input_ids"]) + 10
    for too_long in ("raise", "cut_prompt"):
        with pytest.raises(TemplateError, match="Row 1 .*max_length is.*'.*much mu"):
            rows_of(chat, RECORD, long, max_length=limit, too_long=too_long)
    (row,) = rows_of(chat, long, RECORD, max_length=limit, too_long="drop")
    assert row == rows_of(chat, RECORD)[0]


@pytest.mark.parametrize("name", ["instruction", "plain"])
def test_the_helper_alone_cuts_no_notes_and_no_chat(name) -> None:
    frame = frame_of(name)
    record = LONG if name == "instruction" else RECORD
    batch = {key: [value] for key, value in frame.add_text(record).items()}
    length = len(frame.tokenizer(batch["text"])["input_ids"][0])
    with pytest.raises(ValueError, match="Row 0 of the batch"):
        helpers.preprocess_batch(batch, frame.tokenizer, length - 2, "cut_prompt")


def test_an_untemplated_batch_is_an_error_that_says_what_to_do(frame) -> None:
    with pytest.raises(TemplateError, match="'prompt'.*add_text"):
        frame.preprocess_batch({"instruction": ["What?"]}, 100)


def test_a_token_that_straddles_prompt_and_answer_is_an_error() -> None:
    tokenizer = copy.deepcopy(tiny_chat_tokenizer("plain"))
    tokenizer.add_tokens(["\nIt"])
    with pytest.raises(TemplateError, match="straddles.*'.*assistant.nIt"):
        rows_of(chat_template(tokenizer, "Brief."), {**RECORD, "response": "It is."})


# --- the collator ---------------------------------------------------------------------


def padded(tokenizer, row, side, amount):
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
    return {
        key: (
            [fill[key]] * amount + values
            if side == "left"
            else values + [fill[key]] * amount
        )
        for key, values in row.items()
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_each_answer_counts_with_its_end_however_rows_are_padded(
    frame, side, with_labels, with_mask, monkeypatch
) -> None:
    """Also where padding, end of text and end of turn are one token."""
    tokenizer = frame.tokenizer
    monkeypatch.setattr(tokenizer, "padding_side", side)
    rows = rows_of(frame, RECORD, {**LONGER, "context": "Some notes."})
    if frame.stop[0] != tokenizer.eos_token:
        for row in rows:
            row["input_ids"] += [tokenizer.eos_token_id]
            learns = frame.name == "instruction"  # that template learns it as well
            row["labels"] += [tokenizer.eos_token_id if learns else IGNORED]
            row["attention_mask"] += [1]
    collator = DataCollatorForCompletionOnlyLM(
        tokenizer, pad_to_multiple_of=16, find_answers=frame.find_answers
    )
    names = ["input_ids", *["labels"] * with_labels, *["attention_mask"] * with_mask]
    given = [padded(tokenizer, row, side, 5) for row in rows]
    batch = collator([{name: row[name] for name in names} for row in given])
    assert batch["input_ids"].shape[1] % 16 == 0
    for number, row in enumerate(rows):
        real = batch["attention_mask"][number].bool()
        assert batch["input_ids"][number][real].tolist() == row["input_ids"]
        assert batch["labels"][number][real].tolist() == row["labels"]
        assert set(batch["labels"][number][~real].tolist()) <= {IGNORED}
        assert frame.stop[0] in learned(tokenizer, row["labels"])


def test_logits_at_answers_only_give_the_same_loss(chat) -> None:
    rows = rows_of(chat, RECORD, WITH_NOTES)
    torch.manual_seed(0)
    model = tiny_llama(len(chat.tokenizer))
    losses = [
        model(
            **DataCollatorForCompletionOnlyLM(
                chat.tokenizer, completion_logits_only=short
            )(rows)
        ).loss
        for short in (False, True)
    ]
    torch.testing.assert_close(*losses)


def test_a_row_that_lost_its_answer_is_named(frame) -> None:
    good, bad = rows_of(frame, RECORD, RECORD)
    bad = {"input_ids": bad["input_ids"][: bad["labels"].count(IGNORED)]}
    collator = DataCollatorForCompletionOnlyLM(
        frame.tokenizer, find_answers=frame.find_answers
    )
    with pytest.raises(ValueError, match="Row 1 .*no answer"):
        collator([good, bad])


def test_an_answer_that_was_cut_off_is_learned_as_far_as_it_goes(chat) -> None:
    (row,) = rows_of(chat, RECORD)
    keep = len(row["input_ids"]) - 3
    assert chat.find_answers(row["input_ids"][:keep]) == row["labels"][:keep]


# --- conversations --------------------------------------------------------------------


def test_each_answer_of_a_conversation_is_learned_up_to_its_end(frame) -> None:
    row = frame.encode_conversation(CONVERSATION)
    ends = "</s>" if frame.stop == ("</s>",) else frame.stop[0]
    said = learned(frame.tokenizer, row["labels"]).replace("<|endoftext|>", "")
    pieces = [piece.strip() for piece in said.split(ends)]
    assert pieces == ["It is a service.", "You are welcome.", ""]
    assert set(row["attention_mask"]) == {1}
    collator = DataCollatorForCompletionOnlyLM(
        frame.tokenizer, find_answers=frame.find_answers
    )
    searched = collator([{"input_ids": row["input_ids"]}])["labels"][0].tolist()
    assert searched == row["labels"]
    first = rows_of(frame, RECORD)[0]
    assert row["input_ids"][: len(first["input_ids"])] == first["input_ids"]
    assert row["labels"][: len(first["labels"])] == first["labels"]


def test_a_conversation_has_the_tokens_of_the_template(chat) -> None:
    row = chat.encode_conversation(CONVERSATION)
    plain = chat.tokenizer.apply_chat_template(CONVERSATION, chat_template=chat.source)
    length = len(row["input_ids"])
    assert plain["input_ids"][:length] == row["input_ids"]


def test_a_system_turn_of_the_conversation_counts(chat) -> None:
    system = {"role": "system", "content": "Speak as a pirate."}
    row = chat.encode_conversation([system, *CONVERSATION])
    text = chat.tokenizer.decode(row["input_ids"])
    assert "Speak as a pirate." in text and SYSTEM_PROMPT not in text


@pytest.mark.parametrize(
    "turns, message",
    [
        (CONVERSATION[1:], "Turn 0 has the role 'assistant', where 'user'"),
        (CONVERSATION[:1] * 2, "Turn 1 has the role 'user', where 'assistant'"),
        ([*CONVERSATION, {"role": "tool", "content": "x"}], "Turn 4 .*'tool'"),
        (CONVERSATION[:3], "does not end with an answer"),
        ([], "0 turns"),
        ([{"role": "user", "content": ""}, CONVERSATION[1]], "Turn 0 says ''"),
        ([CONVERSATION[0], {"role": "assistant", "content": None}], "Turn 1 says None"),
        ([{"role": "user", "content": [{"text": "x"}]}, CONVERSATION[1]], "Turn 0"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_named(frame, turns, message) -> None:
    with pytest.raises(TemplateError, match=message):
        frame.encode_conversation(turns)


def test_marks_in_a_conversation_forge_no_turn(chat) -> None:
    turns = copy.deepcopy(CONVERSATION)
    turns[0]["content"] = f"Hi{chat.marks[0]}{chat.stop[0]}"
    row = chat.encode_conversation(turns)
    assert chat.find_answers(row["input_ids"]) == row["labels"]
    turns[1]["content"] = f"Hi{chat.stop[0]}"
    with pytest.raises(TemplateError, match="Turn 1 holds"):
        chat.encode_conversation(turns)


# --- answers --------------------------------------------------------------------------


class Scripted:
    """Makes a model say given tokens whatever it is asked."""

    def __init__(self, model, script):
        model.register_forward_hook(self.say)
        self.script, self.step = script, 0

    def say(self, module, inputs, output):
        output.logits[:] = 0
        output.logits[:, -1, self.script[min(self.step, len(self.script) - 1)]] = 9
        self.step += 1


def model_for(frame):
    torch.manual_seed(1)
    make = tiny_gpt_neox if frame.name == "instruction" else tiny_llama
    return make(len(frame.tokenizer), tied=False).eval()


def test_the_end_of_a_turn_stops_the_answer_and_is_told_from_a_cut(frame) -> None:
    completion = frame.add_text(RECORD)["completion"] + " and more"
    prompts = [frame.prompt("Why?")]
    ids = frame.tokenizer(completion, add_special_tokens=False)["input_ids"]
    model = model_for(frame)
    script = Scripted(model, ids)
    answers = generate(model, frame.tokenizer, prompts, 90, stop=frame.stop)
    assert answers == ["It is a service."]
    assert answers.finished == [True]
    assert script.step < len(ids)
    script.step = 0
    answers = generate(model, frame.tokenizer, prompts, 3, stop=frame.stop)
    assert answers.finished == [False]
    assert "It is a service.".startswith(answers[0]) and answers[0]


def test_a_heading_in_a_chat_is_no_end() -> None:
    frame = frame_of("plain")
    text = "# A\n### Endpoints\nThey answer."
    ids = frame.tokenizer(text + frame.stop[0], add_special_tokens=False)["input_ids"]
    model = model_for(frame)
    Scripted(model, ids)
    assert generate(
        model, frame.tokenizer, [frame.prompt("Why?")], 60, stop=frame.stop
    ) == [text]


def test_answers_end_each_for_itself_in_a_batch(frame) -> None:
    model, prompts = model_for(frame), [frame.prompt(q) for q in ("Why?", "What so?")]
    together = generate(model, frame.tokenizer, prompts, 12, stop=frame.stop)
    alone = [
        generate(model, frame.tokenizer, [one], 12, stop=frame.stop) for one in prompts
    ]
    assert together == [one[0] for one in alone]
    assert together.finished == [one.finished[0] for one in alone]


# --- the end of a turn, in the ids of the models that the course tunes ----------------

REAL = ["lab", "SmolLM2"]


@functools.cache
def real_frame(name):
    """The template of a model of the course, on its own tokenizer."""
    if name == "lab":
        settings = MODELS["lab"]
        return template_for(settings, load_tokenizer(settings))
    return template_for(MODELS["smollm2"], smollm2_tokenizer())


@pytest.fixture(params=REAL)
def real(request):
    return real_frame(request.param)


def end_ids(template):
    """The ids of what ends an answer, as whoever generates looks for them."""
    (stop,) = template.stop
    return template.tokenizer(stop, add_special_tokens=False)["input_ids"]


def require_end(template, ids, labels):
    """The row's last label is the end of the turn, and only padding follows it."""
    places = [place for place, label in enumerate(labels) if label != IGNORED]
    end = end_ids(template)
    assert labels[places[0] : places[-1] + 1] == ids[places[0] : places[-1] + 1]
    assert [labels[place] for place in places[-len(end) :]] == end
    # The answer before it, with blanks at most between the two.
    answer = template.tokenizer.decode([labels[place] for place in places[: -len(end)]])
    assert answer.strip() and not any(stop in answer for stop in template.stop)
    return places


def test_the_real_models_end_with_one_token_that_is_no_padding(real) -> None:
    assert (
        real.stop == {"instruction": ("### End",), "chat": ("<|im_end|>",)}[real.name]
    )
    (end,) = end_ids(real)
    assert real.tokenizer.decode([end]) == real.stop[0]
    assert end != real.tokenizer.pad_token_id


@pytest.mark.parametrize("record", [RECORD, WITH_NOTES, *AWKWARD])
def test_the_last_label_of_a_real_row_is_the_end_of_the_turn(real, record) -> None:
    (row,) = rows_of(real, record)
    places = require_end(real, row["input_ids"], row["labels"])
    assert places[-1] == len(row["input_ids"]) - 1
    assert real.find_answers(row["input_ids"]) == row["labels"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("pads_with_end", [True, False])
def test_the_end_of_the_turn_survives_padding(
    real, side, with_labels, short, pads_with_end
) -> None:
    """Also where people set the end of the turn as padding, as they often do."""
    tokenizer = copy.deepcopy(real.tokenizer)
    tokenizer.padding_side = side
    if pads_with_end:
        tokenizer.pad_token = real.stop[0]
        assert end_ids(real) == [tokenizer.pad_token_id]
    rows = rows_of(real, RECORD, {**LONGER, "context": "Some notes. " * 9})
    names = ["input_ids", "attention_mask", *["labels"] * with_labels]
    given = [{name: row[name] for name in names} for row in rows]
    collator = DataCollatorForCompletionOnlyLM(
        tokenizer,
        pad_to_multiple_of=64,
        completion_logits_only=short,
        find_answers=real.find_answers,
    )
    batch, (end,) = collator(given), end_ids(real)
    if short:
        assert batch["labels"].tolist().count(end) == len(rows)
        return
    padding = ~batch["attention_mask"].bool()
    assert padding.any()
    for ids, labels, filler in zip(
        batch["input_ids"], batch["labels"], padding, strict=True
    ):
        places = require_end(real, ids.tolist(), labels.tolist())
        assert not filler[places].any()
        assert (labels[filler] == IGNORED).all()


@pytest.mark.parametrize("too_long", ["raise", "drop", "cut_prompt"])
def test_no_way_to_keep_a_limit_costs_the_end_of_the_turn(real, too_long) -> None:
    whole = [len(row["input_ids"]) for row in rows_of(real, RECORD, LONGER, LONG)]
    limit = max(whole[:2])
    records = [RECORD, LONGER, LONG]
    if too_long == "raise":
        with pytest.raises(TemplateError, match="Row 2 of the batch.*max_length"):
            rows_of(real, *records, max_length=limit, too_long=too_long)
        records = records[:2]
    if too_long == "cut_prompt":
        limit += 20
    rows = rows_of(real, *records, max_length=limit, too_long=too_long)
    assert len(rows) == (3 if too_long == "cut_prompt" else 2)
    for row in rows:
        assert len(row["input_ids"]) <= limit
        require_end(real, row["input_ids"], row["labels"])


def test_a_question_that_is_cut_still_has_its_answer_and_end() -> None:
    """In the lab's template, whose long questions lose their beginning."""
    real = real_frame("lab")
    long = {**RECORD, "instruction": "What is it? " * 60}
    (row,) = rows_of(real, long, max_length=90, too_long="cut_prompt")
    assert len(row["input_ids"]) == 90
    require_end(real, row["input_ids"], row["labels"])
    assert learned(real.tokenizer, row["labels"]) == real.add_text(long)["completion"]


@pytest.mark.parametrize("name", REAL)
def test_a_model_with_the_real_vocabulary_stops_at_its_end_of_turn(name) -> None:
    """It is made to say the labels that it would learn, and then some more."""
    real = real_frame(name)
    torch.manual_seed(1)
    model = tiny_llama(len(real.tokenizer), tied=False).eval()
    (row,) = rows_of(real, RECORD)
    said = [label for label in row["labels"] if label != IGNORED]
    more = real.tokenizer("and so on", add_special_tokens=False)["input_ids"]
    script = Scripted(model, said + more)
    prompts = [real.prompt(RECORD["instruction"])]
    answers = generate(model, real.tokenizer, prompts, 40, stop=real.stop)
    assert answers == [RECORD["response"]]
    assert answers.finished == [True]
    assert script.step == len(said)  # not one token more
    script.step = 0
    without = generate(model, real.tokenizer, prompts, len(said) - 1, stop=real.stop)
    assert without.finished == [False]


# --- saved and loaded -----------------------------------------------------------------


def test_a_template_travels_in_a_file(frame, tmp_path) -> None:
    frame.save(tmp_path)
    loaded = load_template(tmp_path, frame.tokenizer)
    assert loaded == frame and hash(loaded) == hash(frame)
    assert loaded.add_text(WITH_NOTES) == frame.add_text(WITH_NOTES)
    other = {**json.loads((tmp_path / TEMPLATE_FILE).read_text()), "stop": ["other"]}
    (tmp_path / TEMPLATE_FILE).write_text(json.dumps(other))
    with pytest.raises(TemplateError, match=r"says stop=.*other.*save_adapter"):
        load_template(tmp_path, frame.tokenizer)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is not of version 1"),
        ({"version": 2}, "is not of version 1"),
        ({"name": "other"}, "names the template 'other'"),
        ({"stop": "### End"}, "has no stop"),
        ({"stop": [""]}, "has a stop that is no list"),
        ({"prompt": None}, "has no prompt"),
        ({"name": "chat"}, "has no chat_template"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(tmp_path, content, message) -> None:
    tokenizer = tiny_tokenizer()
    if isinstance(content, dict):
        content = json.dumps(instruction_template(tokenizer).describe() | content)
    if content is not None:
        (tmp_path / TEMPLATE_FILE).write_text(content)
    with pytest.raises(TemplateError, match=f"{TEMPLATE_FILE}.*{message}"):
        load_template(tmp_path, tokenizer)


def test_a_base_model_can_be_chatted_with_in_plain_turns() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = PLAIN_CHAT
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert text == "System:\nBe brief.\n\nUser:\nHi\n\nAssistant:\n"
