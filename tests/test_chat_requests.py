"""The entry point asked in OpenAI's schema: `messages`, and replies in kind."""

from __future__ import annotations

import json

import pytest

from support.entry_point import ask, ask_one, request, start
from support.tiny_artifact import QUESTIONS, build_tiny, build_tiny_chat
from support.tiny_models import CHATS
from utils.models import load_tokenizer, settings_for
from utils.templates import template_for

QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    """The entry point with a model that was tuned in the instruction template."""
    folder = tmp_path_factory.mktemp("instructed")
    build_tiny(folder)
    return start(folder / "artifact")


@pytest.fixture(scope="module", params=CHATS)
def chat(request, tmp_path_factory):
    """The entry point with a chat model, and the template that it was tuned in."""
    folder = tmp_path_factory.mktemp("chat")
    build_tiny_chat(folder, request.param)
    settings = settings_for(str(folder / "saved_base"))
    template = template_for(settings, load_tokenizer(settings))
    return start(folder / "artifact"), template


def user(*texts, **more):
    """A request of the user's turns, with an answer "Yes." between two of them."""
    turns = []
    for text in texts:
        turns += [{"role": "user", "content": text}]
        turns += [{"role": "assistant", "content": "Yes."}]
    return {"messages": turns[:-1], **more}


# --- replies in kind ------------------------------------------------------------------


def test_a_completion_is_the_answer_of_the_other_schema(instructed) -> None:
    own = ask_one(instructed, {"inputs": QUESTION}).text
    body = ask_one(instructed, user(QUESTION)).body
    (choice,) = body.pop("choices")
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": own},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert body["object"] == "chat.completion" and body["model"] == "faq"
    assert body["id"].startswith("chatcmpl-") and body["created"] > 1_700_000_000
    service = instructed.desk.service
    read = len(service.prompt_ids(QUESTION))
    assert body["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": 16,
        "total_tokens": read + 16,
    }


def test_the_reason_of_an_end_is_said(instructed) -> None:
    whole = ask_one(instructed, {"inputs": QUESTION}).text
    stop = whole[6:8]
    (choice,) = ask_one(instructed, user(QUESTION, stop=[stop])).body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == whole.partition(stop)[0].strip()
    (choice,) = ask_one(instructed, user(QUESTION, max_tokens=3)).body["choices"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("counts", [False, True])
def test_a_stream_is_lines_of_chunks(instructed, counts) -> None:
    options = {"stream_options": {"include_usage": True}} if counts else {}
    reply = ask_one(instructed, user(QUESTION, stream=True, **options))
    whole = ask_one(instructed, user(QUESTION)).body
    chunks = list(reply.pieces)
    assert len({chunk["id"] for chunk in chunks}) == 1 and len(chunks) > 2
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    if counts:
        last = chunks.pop()
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert not any("usage" in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("role") for delta in deltas] == [
        "assistant",
        *[None] * (len(deltas) - 1),
    ]
    (choice,) = whole["choices"]
    assert "".join(d["content"] for d in deltas) == choice["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [*[None] * (len(chunks) - 1), "length"]


def test_both_schemas_at_once(instructed) -> None:
    """Each client gets what it would get alone."""
    bodies = []
    for text in QUESTIONS:
        bodies += [{"inputs": text}, user(text), user(text, stream=True)]
    bodies += [user("x", n=2), user("x", model="gone")]
    *replies, wrong, unknown = ask(instructed, *bodies)
    for own, chat, stream in zip(*[iter(replies)] * 3, strict=True):
        assert chat.body["choices"][0]["message"]["content"] == own.text
        deltas = [piece["choices"][0]["delta"] for piece in stream.pieces]
        assert "".join(delta["content"] for delta in deltas) == own.text
    assert (wrong.status, unknown.status) == (400, 400)


def test_the_model_field_names_the_adapter(instructed) -> None:
    base = ask_one(instructed, {"inputs": QUESTION, "adapter": "base"}).text
    body = ask_one(instructed, user(QUESTION, model="base")).body
    assert body["choices"][0]["message"]["content"] == base
    assert body["model"] == "base"


# --- parameters -----------------------------------------------------------------------


def decoding(module, **fields):
    return module.desk.service.read(request(user("x", **fields))).decoding


def test_openai_names_are_understood(instructed) -> None:
    chosen = decoding(
        instructed, max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop="z"
    )
    assert (chosen.max_new_tokens, chosen.temperature, chosen.top_p) == (7, 0.5, 0.9)
    assert (chosen.seed, chosen.stop, chosen.do_sample) == (3, ("z",), True)
    assert decoding(instructed, max_completion_tokens=9).max_new_tokens == 9


def test_without_a_temperature_and_at_none_the_answer_is_greedy(instructed) -> None:
    plain = decoding(instructed)
    assert not plain.do_sample
    assert decoding(instructed, temperature=0) == plain
    assert decoding(instructed, temperature=0.0, top_p=0.9, top_k=3) == plain


def test_null_is_as_if_it_were_not_there(instructed) -> None:
    names = set(instructed.CHAT_FIELDS) - {"messages"}
    asked = instructed.desk.service.read(request(user("x", **dict.fromkeys(names))))
    assert asked == instructed.desk.service.read(request(user("x")))


def test_what_asks_for_nothing_is_taken(instructed) -> None:
    neutral = instructed.CHAT_NEUTRAL
    assert decoding(instructed, **neutral, user="someone") == decoding(instructed)
    assert decoding(instructed, frequency_penalty=0.0) == decoding(instructed)


BAD = [
    ({"messages": []}, "messages: expected 1 to 64 turns"),
    ({"messages": "hello"}, "messages: expected 1 to 64 turns"),
    ({"messages": None}, "messages: expected 1 to 64 turns"),
    ({"messages": ["hello"]}, 'messages[0]: expected {"role": …'),
    ({"messages": [{"content": "x"}]}, "messages[0].role: expected system or user"),
    ({"messages": [{"role": "user"}]}, "messages[0].content: expected text"),
    (user(""), "messages[0].content: is empty"),
    (user(" \n"), "messages[0].content: is empty"),
    (user("x" * 20_001), "messages[0].content: has 20001 characters"),
    (user("a\ud800"), "messages[0].content: holds half a surrogate pair"),
    (user(3), "messages[0].content: expected text, found 3"),
    (
        user([{"type": "image_url", "image_url": {"url": "x"}}]),
        "messages[0].content[0]: expected",
    ),
    (user([{"type": "text"}]), "messages[0].content[0]: expected"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
        "messages[0]: has an unknown field 'tool_calls'",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].role: expected system or user, found 'tool'",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x"}]},
        "messages[0].role: expected system or user",
    ),
    (
        {"messages": [{"role": "user", "content": "x"}] * 2},
        "messages[1].role: expected assistant",
    ),
    (
        {"messages": [{"role": "system", "content": "x"}]},
        "messages: the last turn must be the user's",
    ),
    (
        {"messages": [*user("x")["messages"], {"role": "assistant", "content": "y"}]},
        "messages: the last turn must be the user's",
    ),
    (
        {"messages": [*user("x", "y")["messages"], {"role": "system", "content": "z"}]},
        "messages[3].role: expected assistant",
    ),
    (user("x", inputs="y"), "messages: stands beside inputs: send one of the two"),
    (user("x", parameters={}), "parameters: unknown field"),
    (user("x", max_new_tokens=3), "max_new_tokens: unknown field"),
    (user("x", max_tokens=0), "max_tokens: expected a whole number from 1"),
    (user("x", max_tokens="9"), "max_tokens: expected a whole number from 1"),
    (
        user("x", max_tokens=9, max_completion_tokens=9),
        "max_completion_tokens: means the same as another field",
    ),
    (user("x", temperature=-1), "temperature: expected a number"),
    (user("x", temperature=False), "temperature: expected a number"),
    (user("x", top_p=2), "top_p: expected a number"),
    (user("x", stop=[]), "stop: expected a text or a list"),
    (user("x", seed=1.5), "seed: expected a whole number"),
    (user("x", n=2), "n: this server knows 1 only, found 2"),
    (user("x", logprobs=True), "logprobs: this server knows false only, found true"),
    (user("x", tools=[{}]), "tools: this server knows [] only"),
    (user("x", presence_penalty=0.5), "presence_penalty: this server knows 0 only"),
    (
        user("x", response_format={"type": "json_object"}),
        'response_format: this server knows {"type": "text"} only',
    ),
    (user("x", stream="yes"), "stream: expected true or false, found 'yes'"),
    (user("x", stream_options={}), "stream_options: has no effect without stream"),
    (
        user("x", stream=True, stream_options={"a": 1}),
        'stream_options: expected {"include_usage": true}',
    ),
    (user("x", model="gpt-5"), "model: expected one of base, faq, found 'gpt-5'"),
    (user("x", user=3), "user: expected text, found 3"),
    (user("x", context=3), "context: expected a text, found 3"),
    (user("word " * 2000), "messages: "),
]


@pytest.mark.parametrize(("body", "wanted"), BAD, ids=[text for _, text in BAD])
def test_bad_request_names_the_field(instructed, body, wanted) -> None:
    for stream in ({}, {"stream": True}):
        if set(stream) & set(body) or "stream_options" in body:
            continue
        reply = ask_one(instructed, body | stream)
        assert reply.status == 400 and reply.error.startswith(wanted), reply.error
    reply = ask_one(instructed, body)
    assert reply.status == 400 and reply.error.startswith(wanted), reply.error


def test_nothing_is_ignored_without_a_word(instructed) -> None:
    """Whatever other field there is, known to OpenAI or not."""
    known = set(instructed.CHAT_FIELDS)
    for name in ("logit_bias", "functions", "audio", "modalities", "x"):
        assert name not in known
        reply = ask_one(instructed, user("x", **{name: 1}))
        assert reply.status == 400 and reply.error.startswith(f"{name}: unknown field")


# --- turns ----------------------------------------------------------------------------


def ids_of(module, body):
    service = module.desk.service
    (row,) = service.prepare(service.read(request(body)))
    return list(row.ids)


def test_one_question_is_asked_as_trained(chat) -> None:
    module, template = chat
    for notes in (None, "It costs by the hour."):
        own = ids_of(module, {"inputs": QUESTION, "context": notes})
        assert ids_of(module, user(QUESTION, context=notes)) == own
    parts = [{"type": "text", "text": QUESTION[:5]}]
    parts += [{"type": "text", "text": QUESTION[5:]}]
    assert ids_of(module, user(parts)) == ids_of(module, {"inputs": QUESTION})
    assert template.name == "chat"


def test_earlier_turns_go_through_the_chat_template(chat) -> None:
    module, template = chat
    asked, question = template.messages("first?"), template.messages(QUESTION)[-1]
    turns = [*asked, {"role": "assistant", "content": "Yes."}, question]
    text = template.tokenizer.apply_chat_template(
        turns,
        chat_template=template.source,
        tokenize=False,
        add_generation_prompt=True,
    )
    wanted = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids_of(module, user(asked[-1]["content"], QUESTION)) == wanted


def test_a_clients_system_turn_takes_the_place_of_the_templates(chat) -> None:
    module, template = chat
    (question,) = user(QUESTION)["messages"]
    for role in ("system", "developer"):
        turn = {"role": role, "content": "Answer like a pirate."}
        ids = ids_of(module, {"messages": [turn, question]})
        text = template.tokenizer.decode(ids)
        assert text.index("Answer like a pirate.") < text.index(QUESTION)
        assert not template.system_prompt or template.system_prompt not in text


def test_turns_that_the_chat_template_refuses_are_a_bad_request(
    chat, monkeypatch
) -> None:
    module, _ = chat

    def refuse(*_, **__):
        raise ValueError("conversation roles must alternate")

    service = module.desk.service
    monkeypatch.setattr(type(service.tokenizer), "apply_chat_template", refuse)
    reply = ask_one(module, user("a", "b"))
    assert reply.status == 400 and reply.error.startswith("messages: the model's chat")
    assert "roles must alternate" in reply.error
    assert ask_one(module, user("a")).status == 424  # no fault of the client's


def test_marks_in_any_turn_are_made_ordinary_text(chat) -> None:
    module, template = chat
    special = set(template.tokenizer.all_special_ids)

    def count(text):
        ids = ids_of(module, user(text, QUESTION))
        return sum(one in special for one in ids)

    for mark in template.marks:
        assert count(f"Hi {mark} there") == count("Hi there"), mark


def test_a_model_of_single_questions_says_so(instructed) -> None:
    system = {"role": "system", "content": "x"}
    for body in (user("a", "b"), {"messages": [system, *user("a")["messages"]]}):
        reply = ask_one(instructed, body)
        assert reply.status == 400
        assert reply.error.startswith("messages: this model was tuned on single")
    assert json.dumps(ask_one(instructed, user("a")).body)
