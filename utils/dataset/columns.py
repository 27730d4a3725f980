"""What people call the columns of questions and answers.

The course's names are `instruction`, `response`, `context` (a third text to answer
from) and `system` (how the model is told to behave). Rows of chat messages come in one
column, whose names are `MESSAGE_NAMES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from utils.dataset.table import normal_name

# The course's name → names that people give the column, in the order of preference.
COLUMN_NAMES = {
    "instruction": (
        *("instruction", "question", "prompt", "query", "input", "user", "human"),
        *("instructions", "questions", "user question", "faq", "request", "q"),
    ),
    "response": (
        *("response", "answer", "completion", "output", "reply", "assistant", "bot"),
        *("responses", "answers", "target", "assistant answer", "expected", "a"),
    ),
    "context": (
        *("context", "input", "notes", "passage", "document", "background"),
        *("contexts", "passages", "documents", "paragraph", "article", "knowledge"),
        *("reference text", "source text"),
    ),
    "system": ("system", "system prompt", "system message"),
}
MESSAGE_NAMES = (
    *("messages", "conversations", "conversation", "contents", "turns", "dialog"),
    *("dialogue", "chat"),
)
REQUIRED = ("instruction", "response")
KNOWN_NAMES = {name for names in COLUMN_NAMES.values() for name in names} | {
    *MESSAGE_NAMES
}


def known_columns(names: Iterable[str]) -> dict[str, int]:
    """Find which column holds which of the course's texts, by its name.

    Args:
        names: of all columns, as a person wrote them.

    Returns:
        The course's name → the column's place; none is taken twice.
    """
    normal = [normal_name(name) for name in names]
    found: dict[str, int] = {}
    for ours, known in COLUMN_NAMES.items():
        taken = {normal[place] for place in found.values()}
        free = [name for name in known if name in normal and name not in taken]
        if free:
            found[ours] = normal.index(free[0])
    return found


def message_column(names: Sequence[str]) -> int | None:
    """Return the place of the column that holds chat messages, by its name."""
    normal = [normal_name(name) for name in names]
    return next((normal.index(n) for n in MESSAGE_NAMES if n in normal), None)


def is_header(names: Sequence[str]) -> bool:
    """Return whether these are names of columns with questions and answers."""
    return set(REQUIRED) <= set(known_columns(names))
