"""Chat messages of all usual forms become rows."""

from __future__ import annotations

import json

import pandas
import pytest

from utils.dataset.faqs import Faqs, load_faqs
from utils.dataset.table import DataError

ASK = {"role": "user", "content": "What is it?"}
TELL = {"role": "assistant", "content": "A store."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def load(tmp_path):
    def load(*rows) -> Faqs:
        path = tmp_path / "chat.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return load_faqs(path)

    return load


def pairs(faqs: Faqs) -> list[tuple[str, str]]:
    return list(zip(faqs.frame["instruction"], faqs.frame["response"], strict=True))


def noted(faqs: Faqs, text: str) -> bool:
    return any(text in note for note in faqs.notes)


def share_gpt(*turns: tuple[str, str]) -> dict:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


FORMS = {
    "openai": {"messages": [ASK, TELL]},
    "sharegpt": share_gpt(("human", "What is it?"), ("gpt", "A store.")),
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A store."}]},
        ]
    },
    "gemini": {
        "contents": [
            {"role": "user", "parts": [{"text": "What is it?"}]},
            {"role": "model", "parts": [{"text": "A store."}]},
        ]
    },
    "trl": {"prompt": [ASK], "completion": [TELL]},
    "lists by key": {
        "messages": {
            "role": ["user", "assistant"],
            "content": ["What is it?", "A store."],
        }
    },
    "keys filled with null": {
        "messages": [
            {**ASK, "name": None, "tool_calls": None, "weight": None},
            {**TELL, "name": None, "tool_calls": None, "weight": 1},
        ]
    },
    "json in a text": {"messages": json.dumps([ASK, TELL])},
    "speakers": {
        "turns": [
            {"speaker": "Customer", "text": "What is it?"},
            {"speaker": "Agent", "text": "A store."},
        ]
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_pair(load, form) -> None:
    faqs = load(FORMS[form])
    assert pairs(faqs) == [("What is it?", "A store.")]
    assert noted(faqs, "Chat messages were read")


@pytest.mark.parametrize("user", ["user", "human", "Customer", "prompter", "USER"])
@pytest.mark.parametrize("assistant", ["assistant", "gpt", "bot", "model", "agent"])
def test_usual_names_of_roles(load, user, assistant) -> None:
    faqs = load(share_gpt((user, "What is it?"), (assistant, "A store.")))
    assert pairs(faqs) == [("What is it?", "A store.")]


def test_a_conversation_in_a_list_of_its_own(tmp_path) -> None:
    (tmp_path / "one.json").write_text(json.dumps([ASK, TELL]), encoding="utf-8")
    assert pairs(load_faqs(tmp_path / "one.json")) == [("What is it?", "A store.")]


def test_conversations_in_parquet_with_null_keys(tmp_path) -> None:
    frame = pandas.DataFrame(
        {"messages": [[{**ASK, "weight": None}, {**TELL, "weight": 1}]], "id": [7]}
    )
    frame.to_parquet(tmp_path / "chat.parquet")
    faqs = load_faqs(tmp_path / "chat.parquet")
    assert pairs(faqs) == [("What is it?", "A store.")]
    assert list(faqs.frame["id"]) == ["7"]


def test_conversations_in_a_csv(tmp_path) -> None:
    cell = json.dumps([ASK, TELL]).replace('"', '""')
    path = tmp_path / "chat.csv"
    path.write_text(f'id,messages\n1,"{cell}"\n', encoding="utf-8")
    assert pairs(load_faqs(path)) == [("What is it?", "A store.")]
    path.write_text(f'messages\n"{cell}"\n', encoding="utf-8")
    assert pairs(load_faqs(path)) == [("What is it?", "A store.")]
    path.write_text("id,messages\n1,\"[{'role': 'user'}]\"\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2.*json.dumps"):
        load_faqs(path)


def test_each_answer_of_a_long_conversation_is_a_row_with_what_came_before(
    load,
) -> None:
    more = [{"role": "user", "content": "Where?"}, {**TELL, "content": "There."}]
    faqs = load({"messages": [SYSTEM, ASK, TELL, *more]}, {"messages": [ASK, TELL]})
    assert pairs(faqs) == [
        ("What is it?", "A store."),
        ("Where?", "There."),
        ("What is it?", "A store."),
    ]
    assert list(faqs.frame["context"]) == [
        "",
        "User: What is it?\nAssistant: A store.",
        "",
    ]
    assert list(faqs.frame.index) == [1, 1, 2]
    assert list(faqs.frame["system"]) == ["Be brief.", "Be brief.", ""]
    assert faqs.frame["conversation"].nunique() == 2
    assert noted(faqs, "several turns: each answer became a row")
    assert noted(faqs, "System turns were kept")


def test_turns_out_of_order_are_told(load) -> None:
    faqs = load(
        share_gpt(("gpt", "Hello."), ("human", "What?"), ("gpt", "That.")),
        share_gpt(("human", "Who"), ("human", "is it?"), ("gpt", "We.")),
        share_gpt(("human", "Where?"), ("gpt", "Here."), ("human", "Thanks.")),
    )
    assert pairs(faqs) == [
        ("What?", "That."),
        ("Who\n\nis it?", "We."),
        ("Where?", "Here."),
    ]
    assert faqs.frame["context"].iloc[0] == "Assistant: Hello."
    assert noted(faqs, "that the assistant opens keeps that turn in 'context': row 1")
    assert noted(faqs, "follow each other were joined: row 2")
    assert noted(faqs, "without an answer, were left out: row 3")


def test_an_answer_with_weight_zero_is_not_trained(load) -> None:
    again = [{"role": "user", "content": "Sure?"}, {**TELL, "content": "Yes, sure."}]
    faqs = load({"messages": [ASK, {**TELL, "weight": 0}, *again]})
    assert pairs(faqs) == [("Sure?", "Yes, sure.")]
    assert noted(faqs, "weight 0")


@pytest.mark.parametrize(
    "messages, message",
    [
        ([TELL, ASK], "row 2.*no turn of an assistant follows.*assistant, user"),
        ([ASK], "row 2.*no turn of an assistant"),
        ([], "row 2: the conversation is empty"),
        ([ASK, {"role": "narrator", "content": "x"}], "turn 2: the role 'narrator'"),
        ([ASK, {"content": "x"}], "turn 2: it names no role"),
        (["What is it?", "A store."], "turn 1: expected an object"),
        ([ASK, {"role": "tool", "content": "5"}, TELL], "turn 2: it calls a tool"),
        ([ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
         "turn 2: it calls a tool"),
        ([{"role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:..."}}]}, TELL],
         "turn 1: a part of it is no text but 'image_url'"),
        ([ASK, {"role": "assistant", "content": ""}], "row 2: expected a response"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_row_and_turn(load, messages, message) -> None:
    with pytest.raises(DataError, match="chat.jsonl.*" + message):
        load({"messages": [ASK, TELL]}, {"messages": messages})


def test_different_system_texts_make_different_rows(load) -> None:
    other = {**SYSTEM, "content": "Be polite."}
    faqs = load({"messages": [SYSTEM, ASK, TELL]}, {"messages": [other, ASK, TELL]})
    assert len(faqs) == 2
