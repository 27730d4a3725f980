"""What the readers of all formats share: a table of cells, and how rows are named.

A row number is the one that a person sees: the row of a spreadsheet or of a CSV file
opened in one (the first line is row 1), the line of a JSON Lines file, and the position
in a JSON list, a Parquet file or a data set of the hub, counted from 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas

from utils.course import CourseError

MOST_ROWS_NAMED = 5


class DataError(CourseError, ValueError):
    """A file that cannot be used; the message names it, the row and the remedy."""


@dataclass
class Table:
    """Cells as they stand in a file, before anybody knows what the columns mean.

    Attributes:
        name: of the file or data set, for messages.
        cells: text, or what JSON and Parquet hold (lists, dictionaries, None). The
            index is the row number; the columns are names, or places from 0 on.
        named: whether the format itself names the columns, as JSON and Parquet do.
        notes: one sentence for each thing that was repaired or that a person should
            know.
    """

    name: str
    cells: pandas.DataFrame
    named: bool
    notes: list[str] = field(default_factory=list)


def rows_text(numbers: Iterable[int]) -> str:
    """Name rows, as in "row 3" or "rows 3, 4, 5, 6, 7 and 12 more"."""
    numbers = list(dict.fromkeys(int(number) for number in numbers))
    shown = ", ".join(str(number) for number in numbers[:MOST_ROWS_NAMED])
    more = len(numbers) - MOST_ROWS_NAMED
    more_text = f" and {more} more" if more > 0 else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more_text}"


def normal_name(name: str) -> str:
    """Return a column's name in lower case, with single spaces for `_`, `-` and `.`."""
    name = unicodedata.normalize("NFKC", name).strip().strip("\ufeff\"'").casefold()
    return re.sub(r"[\s_\-.:]+", " ", name).strip()


def plain(value: Any) -> str:
    """Return a simple value as a person writes it; nothing is an empty text."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else str(value)
    # Half of a letter beyond 16 bits, as JSON can hold it, cannot be written to a file.
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def question_key(text: str) -> str:
    """Return a text as it is compared with others, in any script.

    Case, white space, quotation marks, hyphens between letters and the punctuation at
    the ends of words do not count; other signs do, for C, C++ and C# differ.
    """
    key = unicodedata.normalize("NFKC", text).casefold()
    key = re.sub(r"[\"“”„«»]", "", key).replace("’", "'").replace("‘", "'")
    key = re.sub(r"(?<=[^\W\d_])[-‐-―_](?=[^\W\d_])", " ", key)
    key = re.sub(r"[?!.,;:…。、，；：？！؟،।]+(?=\s|$)", " ", key)
    return " ".join(key.split()) or text.strip()
