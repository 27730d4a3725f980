"""What spreadsheets, web pages and programs leave in texts, and what to do about it.

Nothing here is changed: `&amp;` may be what an answer is about. Each kind gets one note
with its rows.
"""

from __future__ import annotations

import re

import pandas

from utils.dataset.table import rows_text

LONGEST_CELL = 32_767  # characters, in Excel
SPREADSHEET_ERRORS = (
    *("#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!"),
    *("#N/A", "#######"),
)
NO_ANSWER = {
    *("n/a", "n.a.", "n.a", "na", "none", "null", "nan", "nil", "-", "--", "—", "–"),
    *("?", "??", ".", "...", "…", "tbd", "tba", "todo", "t.b.d.", "to be defined"),
    *("to be done", "xxx", "x", "test", "lorem ipsum", "undefined", "empty", "blank"),
    *("coming soon", "not available", "unknown"),
}
# Sentence → what in a text calls for it.
IN_TEXTS = {
    "Line ends that Excel wrote as _x000D_ are in the text; replace them": re.compile(
        r"_x[0-9A-Fa-f]{4}_"
    ),
    "HTML entities such as &amp; are in the text; decode them unless they are meant": (
        re.compile(
            r"&(?:amp|lt|gt|quot|apos|nbsp|[aeiou]uml|szlig|#\d{2,5}|#x[\da-f]+);"
        )
    ),
    "HTML tags such as <br/> are in the text; remove them unless they are meant": (
        re.compile(
            r"</?(?:br|p|div|span|b|i|strong|em|ul|ol|li|a|font|table|tr|td|h[1-6])"
            r"(?:\s[^<>]*)?/?>",
            re.IGNORECASE,
        )
    ),
    r"Line ends are written as \n or \r in the text; replace them": re.compile(
        r"(?:[.?!;,)]|\w\w:)\s?(?:\\r)?\\n|\\n\\n|\\r\\n"
    ),
}
PRINTED_PYTHON = re.compile(
    r"^\s*(?:\{\s*'[^']*'\s*:|\[\s*(?:'[^']*'(?:\s*[,\s]\s*'|\s*\]$)|\{\s*')|\[\s*\]\s*$"
    r"|\{\s*\}\s*$|array\(\[|dict_|<[\w.]+ object at 0x)"
)


def leftover_notes(frame: pandas.DataFrame) -> list[str]:
    """Return one note for each kind of leftover, with the rows that hold it.

    Args:
        frame: `instruction` and `response`; the index is the row number.
    """
    notes = []
    texts = frame["instruction"] + "\n" + frame["response"]
    for sentence, pattern in IN_TEXTS.items():
        if (found := texts.str.contains(pattern)).any():
            notes.append(f"{sentence}: {rows_text(frame.index[found])}.")
    answers = frame["response"].str.strip()
    errors = answers.isin(SPREADSHEET_ERRORS) | frame["instruction"].isin(
        SPREADSHEET_ERRORS
    )
    if errors.any():
        notes.append(
            "Cells hold an error of the spreadsheet such as #NAME? in place of text; "
            f"mend the formulas: {rows_text(frame.index[errors])}."
        )
    if (empty := answers.str.casefold().isin(NO_ANSWER)).any():
        kinds = list(dict.fromkeys(answers[empty]))[:3]
        notes.append(
            f"Answers such as {', '.join(map(repr, kinds))} were kept as text; if they "
            "mean that an answer is missing, fill it in or delete the row: "
            f"{rows_text(frame.index[empty])}."
        )
    if (cut := _cut(frame["instruction"]) | _cut(frame["response"])).any():
        notes.append(
            f"Texts are {LONGEST_CELL:,} characters long, where Excel cuts a cell off; "
            f"export them another way: {rows_text(frame.index[cut])}."
        )
    if (printed := answers.str.contains(PRINTED_PYTHON)).any():
        notes.append(
            "Answers are printed Python lists or dictionaries, not sentences; take the "
            f"text out of them: {rows_text(frame.index[printed])}."
        )
    return notes


def _cut(texts: pandas.Series) -> pandas.Series:
    return texts.str.len().between(LONGEST_CELL - 2, LONGEST_CELL)
