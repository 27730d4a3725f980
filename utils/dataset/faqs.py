"""Load questions and answers from a file as people have them.

`formats` reads the cells, whatever the format is, and `conversations` makes rows of
chat messages. This module finds out what the columns mean, cleans the texts with ftfy,
and leaves repetitions out; errors name the row. Row numbers are those a person sees:
see `table`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ftfy
import pandas

from utils.course import wanted_encoding
from utils.dataset.columns import (
    COLUMN_NAMES,
    REQUIRED,
    is_header,
    known_columns,
    message_column,
)
from utils.dataset.conversations import unfold
from utils.dataset.facts import known_fact
from utils.dataset.formats import read_table
from utils.dataset.groups import group_column, has_free_wordings
from utils.dataset.leftovers import leftover_notes
from utils.dataset.sheets import HEADER_SEARCH
from utils.dataset.table import (
    DataError,
    Table,
    normal_name,
    plain,
    question_key,
    rows_text,
)

# Columns that the course uses beside the texts, under these names whatever their case.
OWN_COLUMNS = ("topic", "fact", "must_say", "must_not_say", "wording")
# A column of the data under one of these names would be taken for the trainer's own, or
# be overwritten on the way to it.
RESERVED = (
    *("length", "lengths", "label", "labels", "label_ids", "input_ids", "text"),
    *("attention_mask", "token_type_ids", "position_ids", "prompt", "completion"),
)
# What exports write for "nothing", and nobody as an answer.
BLANK_MARKS = {"#n/a", "<na>"}
# The same where a text may be missing. As an answer they may be meant as they stand.
NO_TEXT = BLANK_MARKS | {"nan", "null", "none", "n/a"}
MANY_WORDS = 4  # on average: a column of texts, not of names and numbers
# Of what ftfy can mend, only text that was decoded with the wrong encoding: quotation
# marks, HTML entities, widths and control characters stay as the file has them.
MISREAD_ONLY = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_encoding=True,
    restore_byte_a0=True,
    replace_lossy_sequences=False,
    decode_inconsistent_utf8=True,
    fix_c1_controls=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


@dataclass(frozen=True)
class Faqs:
    """Questions and answers, ready to be templated.

    Attributes:
        frame: columns `instruction` and `response` (clean, never empty), `context` and
            `system` where the file has such texts, and whatever else it holds, as
            text; the index is the row number in the file, which several answers of
            one conversation share.
        notes: one sentence for each thing that was repaired or that will not work.
        differing: (row that stays, row that was left out) of each question that came
            twice with different answers.
    """

    frame: pandas.DataFrame
    notes: list[str] = field(default_factory=list)
    differing: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    @property
    def has_facts(self) -> bool:
        """Whether every row names a fact of the course's table, as test sets need."""
        if "fact" not in self.frame.columns:
            return False
        return not _unknown_facts(self.frame)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.frame)

    def _repr_markdown_(self) -> str:
        pairs = "pair" if len(self) == 1 else "pairs"
        lines = [f"**{len(self)} {pairs} of question and answer**", ""]
        return "\n".join(lines + [f"- {note}" for note in self.notes])


def load_faqs(source: str | Path, encoding: str | None = None) -> Faqs:
    """Read a file of questions and answers; repair what can be repaired.

    It may be CSV (with any delimiter), JSON Lines or JSON, Parquet or Excel, and hold
    pairs, pairs with a text to answer from, or chat messages. Its content decides how
    it is read, not its name.

    First used in lesson 03, section 2.

    Args:
        source: a file, a folder that `datasets` has saved, or a hub id such as
            "databricks/databricks-dolly-15k".
        encoding: of a text file; COURSE_ENCODING or the bytes decide by default.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: (a `ValueError`) if it cannot be read as questions and answers. The
            message names the file, the row where there is one, and what to do.
    """
    table = read_table(source, encoding or wanted_encoding())
    if not table.named:
        table = _name_cells(table)
    table = unfold(table)
    notes, name = table.notes, table.name
    frame = _course_columns(table)
    frame = _drop_empty_lines(frame, notes)
    if frame.empty:
        raise DataError(f"{name} has no text: it needs questions and answers.")
    for column in [c for c in COLUMN_NAMES if c in frame.columns]:
        frame[column] = _clean(frame[column], column, notes)
    for column in [c for c in frame.columns if c not in COLUMN_NAMES]:
        frame[column] = frame[column].map(_tidy)
    _require_text(name, frame)
    frame, differing = _drop_repeated(frame, notes)
    notes += leftover_notes(frame)
    faqs = Faqs(frame, notes, differing)
    if not faqs.has_facts and not has_free_wordings(frame):
        notes.append(_how_it_is_split(frame))
    return faqs


# --- names for the columns of CSV and Excel -------------------------------------------


def _name_cells(table: Table) -> Table:
    """Find the header of a table without names, or do without one."""
    name, cells = table.name, table.cells
    filled = cells[(cells != "").any(axis=1)]
    if not len(filled):
        raise DataError(f"{name} has no text: it needs questions and answers.")
    header_row = _header_row(filled)
    header = filled.loc[header_row]
    used = [i for i in cells.columns if (filled[i] != "").any()]
    if len(used) < 2 and message_column(list(header)) is None:
        raise DataError(
            f"{name}, row {header_row}: one column only, {header[0][:60]!r}. "
            "Expected two, named instruction and response, separated by commas."
        )
    above = filled.index[: filled.index.get_loc(header_row)]
    if _is_header(filled, header_row):
        if len(above):
            table.notes.append(
                f"The header stands in row {header_row}; what is above it was left "
                f"out: {rows_text(above)}."
            )
        found = _with_header(name, filled.loc[header_row:], cells.loc[header_row + 1 :])
    else:
        _require_data_like(name, filled, header_row)
        found = _without_header(name, filled, cells.loc[header_row:], table.notes)
    if not (found != "").any(axis=None):
        raise DataError(
            f"{name} has a header in row {header_row} but no rows below it: "
            "add questions and answers."
        )
    return Table(name, found, named=True, notes=table.notes)


def _is_header(filled: pandas.DataFrame, row: int) -> bool:
    """Whether a row names the columns: the pair, or one that holds messages."""
    names = list(filled.loc[row])
    if is_header(names):
        return True
    place = message_column(names)
    below = (
        filled[place].iloc[filled.index.get_loc(row) + 1 :] if place is not None else []
    )
    return any(str(cell).lstrip().startswith(("[", "{")) for cell in below)


def _header_row(filled: pandas.DataFrame) -> int:
    """Return the row that names the columns, also below a title; else the first."""
    for row in filled.index[:HEADER_SEARCH]:
        if _is_header(filled, row):
            above = filled.loc[: row - 1]
            width = (filled.loc[row] != "").sum()
            if ((above != "").sum(axis=1) < width).all():
                return row
    return filled.index[0]


def _with_header(
    name: str, filled: pandas.DataFrame, rows: pandas.DataFrame
) -> pandas.DataFrame:
    """Return the rows below a header, under its names.

    Args:
        name: of the file, for messages.
        filled: the rows that have text, the header first.
        rows: those below the header.
    """
    width = _require_width(name, filled)
    header = filled.iloc[0]
    names = [header[i].strip() or f"column {i + 1}" for i in range(width)]
    _require_names_once(f"{name}, row {filled.index[0]}", names)
    frame = rows.iloc[:, :width].copy()
    frame.columns = names
    return frame


def _require_names_once(where: str, names: Sequence[str]) -> None:
    normal = [normal_name(name) for name in names]
    if twice := [names[i] for i in range(len(names)) if normal[i] in normal[:i]]:
        raise DataError(
            f"{where}: two columns are named {twice[0]!r}. Rename or delete one of "
            "them."
        )


def _without_header(
    name: str, filled: pandas.DataFrame, rows: pandas.DataFrame, notes: list[str]
) -> pandas.DataFrame:
    """Return the two columns, named; more than two are not to be guessed at."""
    width = _require_width(name, filled)
    first = [cell for cell in filled.iloc[0][:width]]
    if width > 2:
        raise DataError(
            f"{name}, row {filled.index[0]}: there is no header, and {width} columns "
            f"begin {[cell[:30] for cell in first]}. Which of them are question and "
            "answer is not clear: write a first row with their names, such as "
            "instruction and response."
        )
    _require_questions_first(name, filled)
    frame = rows.iloc[:, :2].copy()
    frame.columns = list(REQUIRED)
    notes.append(
        "The file has no header: the first column was read as instruction, "
        "the second as response."
    )
    return frame


def _require_questions_first(name: str, filled: pandas.DataFrame) -> None:
    """Raise if the first of two columns without names holds classes or answers."""
    remedy = "Write a first row with the names of the columns."
    first, second = filled.iloc[:, 0].str.strip(), filled.iloc[:, 1].str.strip()
    where = f"{name}, row {filled.index[0]}: there is no header, and"
    few = first.nunique() <= len(first) / 2 and first.str.split().map(len).mean() <= 3
    if len(first) >= 4 and few:
        raise DataError(
            f"{where} the first column has only {first.nunique()} different texts in "
            f"{len(first)} rows, such as {first.iloc[0][:40]!r}: it names classes "
            f"rather than asks. {remedy}"
        )
    asks = [column.str.contains(r"[?？؟]\s*$").mean() for column in (first, second)]
    if len(first) >= 2 and asks[0] == 0 and asks[1] > 0.8:
        raise DataError(
            f"{where} the second column asks the questions, such as "
            f"{second.iloc[0][:40]!r}. {remedy}"
        )


def _require_width(name: str, filled: pandas.DataFrame) -> int:
    """Return how many columns the first row has; no other row may have more.

    Raises:
        DataError: if a row has text beyond them: its texts have shifted.
    """
    header_row, first = filled.index[0], filled.iloc[0]
    width = max(i for i in filled.columns if first[i] != "") + 1
    beyond = filled.loc[:, width:]
    for row in beyond.index[(beyond != "").any(axis=1)]:
        columns = max(i for i in filled.columns if filled.at[row, i] != "") + 1
        raise DataError(
            f"{name}, row {row}: {columns} columns, but row {header_row} has "
            f"{width}. Put texts that contain the delimiter into double quotes, and "
            'write a quote inside a text as "".'
        )
    return width


def _require_data_like(name: str, cells: pandas.DataFrame, header_row: int) -> None:
    """Raise if a first row without both known names looks like a header or worse."""
    first, rest = cells.loc[header_row], cells.iloc[1:]
    known = known_columns(first)
    names = [cell.strip() for cell in first if cell]
    remedy = "Name the two columns instruction and response in the first row."

    def words(texts: Iterable[str]) -> float:
        return float(pandas.Series([len(text.split()) for text in texts]).median())

    short = all(len(text.split()) <= 3 and text[-1:] not in ".?!" for text in names)
    longer = len(rest) and words(rest[0]) + words(rest[1]) > 2 * len(names[:2]) + 2
    if set(known) & set(REQUIRED) or (short and longer):
        raise DataError(_no_column(f"{name}, row {header_row}", known, names))
    numbers = [pandas.to_numeric(cells[i], errors="coerce").notna() for i in (0, 1)]
    if any(column.mean() > 0.5 for column in numbers):
        raise DataError(
            f"{name}, row {header_row}: there is no header, and the first two "
            f"columns are not question and answer: {names[:2]}. {remedy}"
        )


def _no_column(where: str, known: Mapping[str, int], names: Sequence[str]) -> str:
    missing = " and ".join(ours for ours in REQUIRED if ours not in known)
    return (
        f"{where}: no column for {missing} among {', '.join(map(repr, names))}. "
        "Name the two columns instruction and response in the first row."
    )


# --- the course's names, and text in every cell ---------------------------------------


def _course_columns(table: Table) -> pandas.DataFrame:
    """Return all cells as text, the columns under the course's names.

    Raises:
        DataError: if there is no pair of question and answer, or a cell that should
            hold one of the texts holds a list or an object.
    """
    cells, notes, name = table.cells, table.notes, table.name
    names = [str(column) for column in cells.columns]
    _require_names_once(name, names)
    known = known_columns(names)
    if not set(REQUIRED) <= set(known):
        message = _no_column(name, known, names)
        raise DataError(message.replace(" in the first row", "") + _hint(names))
    known = _other_questions(cells, names, known, notes)
    frame = pandas.DataFrame(index=cells.index)
    ours_at = {place: ours for ours, place in known.items()}
    one_text: list[int] = []
    for place, theirs in enumerate(names):
        column = cells.iloc[:, place]
        ours = ours_at.get(place)
        if ours:
            texts = [
                _one_text(name, row, theirs, value, one_text)
                for row, value in zip(column.index, column, strict=True)
            ]
            if ours in ("context", "system") and not any(t.strip() for t in texts):
                ours = None  # an empty column is no third text
        else:
            texts = [_any_text(value) for value in column]
        if ours and theirs != ours:
            notes.append(f"Column {theirs!r} was read as {ours!r}.")
        own = next((own for own in OWN_COLUMNS if _same_name(theirs, own)), None)
        label = ours or own or theirs
        if not ours and (label in COLUMN_NAMES or normal_name(label) in _RESERVED):
            label = f"{label} (other)"
        frame[label] = texts
    if one_text:
        notes.append(
            f"A list with one text was read as that text: {rows_text(one_text)}."
        )
    _note_unused_texts(frame, notes)
    return frame


_RESERVED = {normal_name(name) for name in RESERVED}


def _same_name(theirs: str, ours: str) -> bool:
    return normal_name(theirs) == normal_name(ours)


def _hint(names: Sequence[str]) -> str:
    """Say what a file without the pair may be, where its columns tell."""
    normal = {normal_name(name) for name in names}
    if {"chosen", "rejected"} <= normal:
        return " It holds preferences: rename 'chosen' to response."
    if normal == {"text"}:
        return " It holds finished texts: question and answer are needed apart."
    if "paragraphs" in normal:
        return " It is in the layout of SQuAD: write each of its questions as a row."
    if message_column(list(names)) is not None:
        return " Its messages are no lists of objects with a role and a text."
    return ""


def _other_questions(
    cells: pandas.DataFrame,
    names: Sequence[str],
    known: Mapping[str, int],
    notes: list[str],
) -> dict[str, int]:
    """Take along a second column that asks, which the pair alone would lose.

    Where the column read as instruction says the same in every row, it tells the model
    how to behave, and the other one asks.
    """
    known = dict(known)
    normal = [normal_name(name) for name in names]
    others = [
        normal.index(name)
        for name in COLUMN_NAMES["instruction"]
        if name in normal and normal.index(name) not in known.values()
    ]
    for place in others:
        texts = cells.iloc[:, place].map(_any_text)
        first = cells.iloc[:, known["instruction"]].map(_any_text)
        if texts.str.split().map(len).mean() < 2 or (texts == first).all():
            continue
        asked = names[known["instruction"]]
        if len(cells) > 1 and first.nunique() == 1 and texts.nunique() > 1:
            notes.append(
                f"Column {asked!r} is the same in every row: it was read as 'system', "
                f"and {names[place]!r} as the question."
            )
            if "system" not in known:
                known["system"] = known["instruction"]
            known["instruction"] = place
        elif "context" not in known:
            known["context"] = place
        break
    return known


def _one_text(name: str, row: int, column: str, value: Any, one_text: list[int]) -> str:
    """Return the text of a cell that is trained on."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        texts = {plain(item).strip() for item in value if item is not None}
        simple = all(isinstance(item, str | int | float | None) for item in value)
        if not value:
            return ""
        if simple and len(texts) == 1:
            one_text.append(row)
            return plain(value[0])
        kind = f"a list of {len(value)}"
    elif isinstance(value, dict):
        kind = "an object"
    else:
        return plain(value)
    shown = json.dumps(value, ensure_ascii=False, default=str)[:60]
    raise DataError(
        f"{name}, row {row}: {column!r} holds {kind}, {shown}. Expected one text: "
        "choose it when you write the file."
    )


def _any_text(value: Any) -> str:
    """Return the text of a cell that is only kept."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return plain(" | ".join(value))
    if isinstance(value, list | dict | tuple):
        return plain(json.dumps(value, ensure_ascii=False, default=str))
    return plain(value)


def _note_unused_texts(frame: pandas.DataFrame, notes: list[str]) -> None:
    """Name columns of whole sentences that the course does not train on."""
    used = {*COLUMN_NAMES, *OWN_COLUMNS, "conversation"}
    unused = []
    for column in frame.columns:
        texts = frame[column][frame[column] != ""]
        if column in used or not len(texts):
            continue
        if texts.str.split().map(len).mean() >= MANY_WORDS and texts.nunique() > 1:
            unused.append(f"{column!r} ({len(texts)} rows)")
    if unused:
        notes.append(
            f"Not trained on, though they hold texts: {', '.join(unused)}. Name a "
            "column context if the answers refer to it."
        )


# --- clean texts ----------------------------------------------------------------------


def _drop_empty_lines(frame: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    blank = frame.map(lambda cell: not _tidy(cell)).all(axis=1)
    last = frame.index[~blank].max() if not blank.all() else 0
    inner = blank & (frame.index < last)  # those at the end of a file are no surprise
    if inner.any():
        notes.append(f"Empty lines were left out: {rows_text(frame.index[inner])}.")
    return frame[~blank].copy()


def _clean(cells: pandas.Series, column: str, notes: list[str]) -> pandas.Series:
    """Return text without stray white space, invisible or misread characters."""
    repaired = cells.map(lambda text: ftfy.fix_encoding(_next_line(text), MISREAD_ONLY))
    if (changed := repaired != cells).any():
        notes.append(
            f"Letters misread in an earlier conversion (such as 'Ã©') were restored in "
            f"{column}: {rows_text(cells.index[changed])}."
        )
    tidy = repaired.map(_tidy)
    marks = BLANK_MARKS if column == "response" else NO_TEXT
    tidy = tidy.mask(tidy.str.casefold().isin(marks), "")
    if (changed := (tidy != repaired) & (tidy != "")).any():
        notes.append(
            "Stray white space or invisible characters were removed from "
            f"{column}: {rows_text(cells.index[changed])}."
        )
    if (lost := tidy.str.contains("\ufffd")).any():
        notes.append(
            f"Some letters of {column} were lost before the file was saved and read "
            f"as \ufffd: {rows_text(cells.index[lost])}."
        )
    return tidy


def _next_line(text: str) -> str:
    """Write U+0085 as a line end, unless it is one of several misread characters."""
    if "\u0085" in text and not re.search("[\u0080-\u0084\u0086-\u009f]", text):
        return text.replace("\u0085", "\n")
    return text


def _tidy(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace("\u2028", "\n").replace("\u2029", "\n\n")
    text = re.sub(r"[\u200b\u2060\ufeff\u00ad]", "", text)
    text = re.sub(r"[^\S\n\t ]", " ", text)  # the no-break space and its kin
    text = re.sub(r"[\x00-\x08\x0e-\x1b\x7f]", "", text)
    text = re.sub(r"(?<=\S)[ \t]+(?=\S)", " ", text)
    return re.sub(r"[ \t]+(?=\n|$)", "", text).strip()


def _require_text(name: str, frame: pandas.DataFrame) -> None:
    for column in REQUIRED:
        blank = (frame[column] == "").to_numpy()
        if not blank.any():
            continue
        numbers = frame.index[blank]
        other = "response" if column == "instruction" else "instruction"
        article = "an" if column == "instruction" else "a"
        also = f" (also {rows_text(numbers[1:])})" if len(numbers) > 1 else ""
        first = frame[blank].iloc[0]
        instead = [
            repr(label)
            for label in frame.columns
            if normal_name(label.removesuffix(" (other)")) in COLUMN_NAMES[column]
            and label != column
            and first[label]
        ]
        hint = f" Its text may be in the column {instead[0]}." if instead else ""
        raise DataError(
            f"{name}, row {numbers[0]}{also}: expected {article} {column}, "
            f"found none beside the {other} {first[other][:60]!r}. "
            f"Fill it in or delete the row.{hint}"
        )


def _drop_repeated(
    frame: pandas.DataFrame, notes: list[str]
) -> tuple[pandas.DataFrame, tuple[tuple[int, int], ...]]:
    """Keep one answer for each question (with its context): the first."""
    asked = [c for c in ("instruction", "context", "system") if c in frame.columns]
    questions = pandas.Series(
        ["\x00".join(map(question_key, row)) for row in frame[asked].to_numpy()],
        index=range(len(frame)),
    )
    repeated = questions.duplicated()
    answers = pandas.Series(
        map(question_key, frame["response"]), index=range(len(frame))
    )
    numbers = pandas.Series(frame.index, index=range(len(frame)))
    same_answer = repeated & (answers == answers.groupby(questions).transform("first"))
    if same_answer.any():
        notes.append(
            f"Repeated questions were left out: {rows_text(numbers[same_answer])}."
        )
    differing = repeated & ~same_answer
    if differing.any():
        notes.append(
            "Questions that came before with another answer were left out, the first "
            f"answer stays: {rows_text(numbers[differing])}."
        )
    first = numbers.groupby(questions).transform("first")
    pairs = tuple(zip(first[differing], numbers[differing], strict=True))
    return frame[~repeated.to_numpy()].copy(), pairs


def _unknown_facts(frame: pandas.DataFrame) -> list[int]:
    """Return the rows whose fact is not in the course's table."""
    return list(frame.index[~frame["fact"].map(known_fact)])


def _how_it_is_split(frame: pandas.DataFrame) -> str:
    unknown = _unknown_facts(frame) if "fact" in frame.columns else []
    if unknown and len(unknown) < len(frame) / 2:
        return (
            "The three test sets of the course cannot be made, because the course's "
            f"table does not hold the fact of {rows_text(unknown)}: the split is that "
            "of a file of your own, into train, validation and test."
        )
    if column := group_column(frame):
        return (
            f"The column {column!r} says which rows belong together: the split into "
            "train, validation and test keeps them in one part."
        )
    return (
        "No column says which questions belong together (such as 'fact' or 'group'): "
        "the split into train, validation and test keeps those in one part that are "
        "alike."
    )
