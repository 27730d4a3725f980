"""From chat messages to rows: each answer becomes a row of its own.

OpenAI writes `messages` with `role` and `content`, ShareGPT writes `conversations` with
`from` and `value`, Gemini `contents` with `parts`. An answer's row takes the user's
turn before it as `instruction`. What was said before that turn stands in `context`, as
"User: …" and "Assistant: …", since a follow-up question cannot be understood without
it. The system's turn stands in `system`. All rows of one conversation have its number
in the column `conversation`, so that a split keeps them together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from utils.dataset.columns import known_columns, message_column
from utils.dataset.table import DataError, Table, normal_name, plain, rows_text

CONVERSATION = "conversation"
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "parts")
ROLES = {
    "system": ("system", "developer", "system prompt"),
    "user": ("user", "human", "customer", "client", "prompter", "question"),
    "assistant": (
        *("assistant", "gpt", "chatgpt", "bot", "model", "agent", "ai", "answer"),
        *("chatbot", "bard", "bing", "claude", "llm"),
    ),
}
TOOL_ROLES = (
    "tool",
    "function",
    "observation",
    "function call",
    "tool call",
    "ipython",
)
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


@dataclass
class _Notes:
    """Rows of which something has to be said."""

    several: list[int] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=list)
    untrained: list[int] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Return one sentence for each thing that occurred."""
        told = {
            "Conversations of several turns: each answer became a row, with the turns "
            "before it in the column 'context'": self.several,
            "Turns of one role that follow each other were joined": self.joined,
            "A conversation that the assistant opens keeps that turn in 'context'": (
                self.opened
            ),
            "Turns of a user at the end, without an answer, were left out": (
                self.unanswered
            ),
            "Answers with weight 0 teach nothing and were left out": self.untrained,
        }
        return [f"{text}: {rows_text(rows)}." for text, rows in told.items() if rows]


def unfold(table: Table) -> Table:
    """Return a row for each answer, where the table holds conversations.

    A table of questions and answers is returned as it is.

    Raises:
        DataError: if a conversation cannot be read; the message names the row.
    """
    if not table.named:
        return table
    columns = _columns_of_turns(table)
    if not columns:
        return table
    used = [table.cells.columns[place] for place in columns]
    kept = [name for name in table.cells.columns if name not in used]
    notes, rows, numbers = _Notes(), [], []
    for number, record in zip(
        table.cells.index, table.cells.to_dict("records"), strict=True
    ):
        turns = [
            turn
            for name in used
            for turn in _turns(table.name, number, record[name], alone=len(used) == 1)
        ]
        others = {name: record[name] for name in kept}
        for pair in _pairs(table.name, number, turns, notes):
            rows.append({**others, **_merged(others, pair)})
            numbers.append(number)
    cells = pandas.DataFrame(rows, dtype=object)
    cells.index = pandas.Index(numbers)
    for optional in ("context", "system"):
        if optional in cells and not cells[optional].fillna("").astype(bool).any():
            cells = cells.drop(columns=optional)
    if len(set(numbers)) < len(numbers):
        cells[CONVERSATION] = [f"conversation {number}" for number in numbers]
    named = ", ".join(repr(str(name)) for name in used)
    first = f"Chat messages were read from the column {named}."
    if len(used) > 1:
        first = f"Chat messages were read from the columns {named}."
    system = []
    if "system" in cells:
        system = ["System turns were kept in the column 'system'."]
    return Table(
        table.name,
        cells,
        named=True,
        notes=[*table.notes, first, *notes.sentences(), *system],
    )


def _merged(others: Mapping[str, Any], pair: Mapping[str, str]) -> dict[str, str]:
    """Keep a row's own context and system text beside those of the conversation."""
    merged = dict(pair)
    for name in ("system", "context"):
        own = others.get(name)
        if isinstance(own, str) and own.strip():
            merged[name] = "\n\n".join(text for text in (own, pair[name]) if text)
    return merged


def _columns_of_turns(table: Table) -> list[int]:
    """Return the places of the columns that hold messages, in their order."""
    names = [str(name) for name in table.cells.columns]
    known = known_columns(names)
    pair = [known.get("instruction"), known.get("response")]
    if None not in pair:
        # TRL's form: the prompt and the completion are lists of messages each.
        held = [_holds_turns(table.cells.iloc[:, place]) for place in pair]
        return pair if any(held) else []
    place = message_column(names)
    if place is not None and _holds_turns(table.cells.iloc[:, place]):
        return [place]
    return []


def _holds_turns(cells: pandas.Series) -> bool:
    filled = [cell for cell in cells if cell is not None and cell != ""]
    return bool(filled) and _is_list_of_turns(filled[0])


def _is_list_of_turns(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.lstrip().startswith(("[{", "[ {", "{")) and any(
            f"{quote}{key}{quote}" in cell for key in ROLE_KEYS for quote in "\"'"
        )
    if isinstance(cell, Mapping):
        return any(isinstance(cell.get(key), Sequence) for key in ROLE_KEYS)
    return isinstance(cell, Sequence) and any(isinstance(t, Mapping) for t in cell)


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str
    trained: bool = True


def _turns(name: str, row: int, cell: Any, alone: bool) -> list[_Turn]:
    """Read the turns of one conversation."""
    if isinstance(cell, str):
        if not cell.strip():
            return []
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError:
            raise DataError(
                f"{name}, row {row}: expected messages as JSON, found {cell[:60]!r}. "
                "Printed Python lists cannot be read: write them with `json.dumps`."
            ) from None
    if isinstance(cell, Mapping):  # one list for each key, as Arrow may store it
        lengths = {len(value) for value in cell.values() if isinstance(value, list)}
        if len(lengths) == 1:
            lists = {key: value for key, value in cell.items() if value is not None}
            cell = [
                {key: value[i] for key, value in lists.items()}
                for i in range(lengths.pop())
            ]
    if cell is None or not isinstance(cell, Sequence) or not len(cell):
        if alone:
            raise DataError(
                f"{name}, row {row}: the conversation is empty. Fill it in or delete "
                "the row."
            )
        return []
    return [_turn(name, row, number, turn) for number, turn in enumerate(cell, 1)]


def _turn(name: str, row: int, number: int, turn: Any) -> _Turn:
    where = f"{name}, row {row}, turn {number}"
    if not isinstance(turn, Mapping):
        raise DataError(
            f"{where}: expected an object with a role and a text, found {turn!r:.60}. "
            'Write it as {"role": "user", "content": …}.'
        )
    role_key = next((key for key in ROLE_KEYS if turn.get(key)), None)
    if role_key is None:
        raise DataError(
            f"{where}: it names no role, only {', '.join(map(repr, turn))}. Add "
            '"role": "user" or "assistant".'
        )
    role_name = turn[role_key]
    if isinstance(role_name, Mapping):  # ChatGPT's own export: {"role": "user"}
        role_name = role_name.get("role", "")
    role = ROLE_OF.get(normal_name(str(role_name)))
    calls = turn.get("tool_calls") or turn.get("function_call")
    if normal_name(str(role_name)) in TOOL_ROLES or calls:
        raise DataError(
            f"{where}: it calls a tool or is the answer of one, which the course "
            "cannot train. Delete the row, or write the answer without the tool."
        )
    if role is None:
        known = ", ".join(names[0] for names in ROLES.values())
        raise DataError(
            f"{where}: the role {str(role_name)!r} is not known. Rename it to one of "
            f"{known}."
        )
    content_key = next((key for key in CONTENT_KEYS if turn.get(key) is not None), None)
    text = _content(where, turn[content_key]) if content_key else ""
    weight = turn.get("weight")
    return _Turn(
        role, text, trained=weight is None or plain(weight) not in ("0", "0.0")
    )


def _content(where: str, content: Any) -> str:
    """Return the text of a turn, which may come in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = content.get("parts", [content])
    if not isinstance(content, Sequence):
        return plain(content)
    texts = []
    for part in content:
        if part is None or isinstance(part, str):
            texts.append(part or "")
            continue
        kind = str(part.get("type") or "text")
        text = part.get("text")
        if isinstance(text, Mapping):
            text = text.get("value")
        if "text" not in kind or not isinstance(text, str):
            raise DataError(
                f"{where}: a part of it is no text but {kind!r} "
                f"({', '.join(k for k, v in part.items() if v is not None)}). The "
                "course trains on text alone: delete the row or describe the part."
            )
        texts.append(text)
    return "\n".join(text for text in texts if text)


def _pairs(
    name: str, row: int, turns: list[_Turn], notes: _Notes
) -> list[dict[str, str]]:
    """Return instruction, response, context and system of each answer."""
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    talk: list[_Turn] = []
    for turn in turns:
        if turn.role == "system":
            continue
        if talk and talk[-1].role == turn.role:
            notes.joined.append(row)
            both = "\n\n".join(text for text in (talk[-1].text, turn.text) if text)
            talk[-1] = _Turn(turn.role, both, talk[-1].trained and turn.trained)
        else:
            talk.append(turn)
    pairs = []
    for place, (asked, answer) in enumerate(zip(talk, talk[1:], strict=False)):
        if (asked.role, answer.role) != ("user", "assistant"):
            continue
        if not answer.trained:
            notes.untrained.append(row)
            continue
        before = "\n".join(
            f"{turn.role.capitalize()}: {turn.text.strip()}" for turn in talk[:place]
        )
        pairs.append(
            {
                "instruction": asked.text,
                "response": answer.text,
                "context": before,
                "system": system,
            }
        )
    if not pairs and not any(not turn.trained for turn in talk):
        order = ", ".join(turn.role for turn in turns) or "none"
        raise DataError(
            f"{name}, row {row}: no turn of an assistant follows one of a user; the "
            f"turns are: {order}. Put them in order, or delete the row."
        )
    if len(pairs) > 1:
        notes.several.append(row)
    if talk and talk[0].role == "assistant":
        notes.opened.append(row)
    if talk and talk[-1].role == "user":
        notes.unanswered.append(row)
    return pairs
