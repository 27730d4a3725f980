"""Load questions and answers from a CSV file as people have them.

pandas reads the file, and ftfy restores misread letters. This module adds what people's
files need before and after: the right encoding, delimiter and column names, clean text,
and errors that name the row.
Row numbers are those a spreadsheet shows: the first line of the file is row 1.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import ftfy
import pandas

from utils.course import CourseError
from utils.dataset.facts import known_fact

# Names that people give the two columns, in the order in which they are preferred.
COLUMN_NAMES = {
    "instruction": (
        *("instruction", "question", "prompt", "query", "input", "user", "human"),
        *("instructions", "questions", "user question", "faq", "request", "q"),
    ),
    "response": (
        *("response", "answer", "completion", "output", "reply", "assistant", "bot"),
        *("responses", "answers", "target", "assistant answer", "expected", "a"),
    ),
}
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
MOST_COLUMNS = 40
BLANK_MARKS = {"nan", "null", "#n/a", "<na>"}  # what exports write for "nothing"
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
# First bytes of files that are often mistaken for CSV.
OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
}


class DataError(CourseError, ValueError):
    """A file that cannot be used; the message names it, the row and the remedy."""


@dataclass(frozen=True)
class Faqs:
    """Questions and answers, ready to be templated.

    Attributes:
        frame: columns `instruction` and `response` (clean, never empty) and whatever
            else the file holds; the index is the row number in the file.
        notes: one sentence for each thing that was repaired or that will not work.
    """

    frame: pandas.DataFrame
    notes: list[str] = field(default_factory=list)

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


def load_faqs(path: str | Path) -> Faqs:
    """Read a CSV file of questions and answers; repair what can be repaired.

    First used in lesson 03, section 1.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: (a `ValueError`) if it cannot be read as questions and answers. The
            message names the file, the row where there is one, and what to do.
    """
    path = Path(path)
    notes: list[str] = []
    text = _decode(path, notes)
    cells = _read_cells(path, text, notes)
    frame = _name_columns(path, cells, notes)
    frame = _drop_empty_lines(frame, notes)
    for column in ("instruction", "response"):
        frame[column] = _clean(frame[column], column, notes)
    _require_text(path, frame)
    frame = _drop_repeated(frame, notes)
    faqs = Faqs(frame, notes)
    if not faqs.has_facts:
        notes.append(_why_no_test_sets(frame))
    return faqs


def _decode(path: Path, notes: list[str]) -> str:
    """Return the file's text, whichever of the usual encodings it is in."""
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the CSV file itself.")
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file {path}: check the path, or the variable COURSE_DATA."
        )
    raw = path.read_bytes()
    for start, kind in OTHER_FORMATS.items():
        if raw.startswith(start):
            raise DataError(
                f"{path.name} is {kind}, not CSV: open it in the program it comes from "
                "and save it as 'CSV UTF-8'."
            )
    if not raw.strip():
        raise DataError(f"{path.name} is empty: it needs questions and answers.")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        notes.append("The file is in UTF-16 and was read as such.")
        return _decode_as(path, raw, "utf-16")
    if raw[:200].count(0) > len(raw[:200]) // 4:
        notes.append("The file is in UTF-16 without a mark and was read as such.")
        return _decode_as(path, raw, "utf-16-be" if raw[0] == 0 else "utf-16-le")
    if raw.startswith(b"\xef\xbb\xbf"):
        notes.append("A byte-order mark at the start was removed.")
        return _decode_as(path, raw, "utf-8-sig")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        notes.append("The file is not in UTF-8; it was read as Windows-1252.")
        return _decode_as(path, raw, "cp1252")


def _decode_as(path: Path, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path.name}, line {row}: the bytes {raw[error.start : error.end]!r} are "
            f"neither UTF-8 nor {encoding}. Save the file as UTF-8."
        ) from None


def _read_cells(path: Path, text: str, notes: list[str]) -> pandas.DataFrame:
    """Return all cells as text, without names; the index counts rows from 1."""
    text = text.replace("\x00", "")
    hint = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    if hint:  # the line Excel writes for itself; its row number stays counted
        text = "\n" + text[hint.end() :]
    delimiter = hint.group(1) if hint else _delimiter(text)
    try:
        cells = pandas.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=None,
            names=range(MOST_COLUMNS),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except pandas.errors.ParserError as error:
        raise DataError(_explain(path, str(error))) from None
    if delimiter != ",":
        name = DELIMITERS.get(delimiter, repr(delimiter))
        notes.append(f"The columns are separated by {name} instead of comma.")
    cells.index += 1
    return cells.fillna("")


def _explain(path: Path, message: str) -> str:
    """Return the parser's error with the row as a spreadsheet counts, and a remedy."""
    start = re.search(r"EOF inside string starting at row (\d+)", message)
    if start:
        return (
            f"{path.name}, row {int(start.group(1)) + 1}: a double quote opens a text "
            'here and never closes it. Close it, or write a quote inside a text as "".'
        )
    line = re.search(r"in line (\d+), saw (\d+)", message)
    if line:
        return (
            f"{path.name}, row {line.group(1)}: {line.group(2)} columns, expected 2. "
            "Put texts that contain the delimiter into double quotes."
        )
    return f"{path.name} cannot be read ({message.strip()}): save it anew as CSV."


def _delimiter(text: str) -> str:
    """Return the delimiter that gives the first row known names, else the steadiest."""
    lines = [line for line in text.splitlines() if line.strip()][:50]

    def fields(line: str, mark: str) -> list[str]:
        return next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])

    for mark in DELIMITERS:
        if lines and len(_known_columns(fields(lines[0], mark))) == 2:
            return mark

    def share_with_two(mark: str) -> float:
        return sum(len(fields(line, mark)) >= 2 for line in lines)

    return max(DELIMITERS, key=share_with_two)


def _normal_name(name: str) -> str:
    name = unicodedata.normalize("NFKC", name).strip().strip("\ufeff\"'").casefold()
    return re.sub(r"[\s_\-.:]+", " ", name).strip()


def _known_columns(names: Iterable[str]) -> dict[str, int]:
    """Find which column holds the instruction and which the response, if known."""
    normal = [_normal_name(name) for name in names]
    return {
        ours: normal.index(theirs[0])
        for ours, known in COLUMN_NAMES.items()
        if (theirs := [name for name in known if name in normal])
    }


def _name_columns(
    path: Path, cells: pandas.DataFrame, notes: list[str]
) -> pandas.DataFrame:
    """Find the header, or do without one; the frame's columns get their names."""
    filled = cells[(cells != "").any(axis=1)]
    if not len(filled):
        raise DataError(f"{path.name} has no text: it needs questions and answers.")
    header_row = filled.index[0]
    header = filled.loc[header_row]
    known = _known_columns(header)
    used = [i for i in cells.columns if (filled[i] != "").any()]
    if len(used) < 2:
        raise DataError(
            f"{path.name}, row {header_row}: one column only, {header[0][:60]!r}. "
            "Expected two, named instruction and response, separated by commas."
        )
    if len(known) == 2:
        frame = _with_header(path, filled, cells.loc[header_row + 1 :], known, notes)
    else:
        _require_data_like(path, filled, header_row, known)
        frame = _without_header(path, filled, cells.loc[header_row:], notes)
    if not (frame != "").any(axis=None):
        raise DataError(
            f"{path.name} has a header in row {header_row} but no rows below it: "
            "add questions and answers."
        )
    return frame


def _with_header(
    path: Path,
    filled: pandas.DataFrame,
    rows: pandas.DataFrame,
    known: dict[str, int],
    notes: list[str],
) -> pandas.DataFrame:
    """Return the rows below a header, under its names or the course's own.

    Args:
        path: of the file, for messages.
        filled: the rows that have text, the header first.
        rows: those below the header.
        known: the course's name → its column.
        notes: gets a sentence for each column that is read under another name.
    """
    header_row, header = filled.index[0], filled.iloc[0]
    width = _require_width(path, filled)
    names = [header[i].strip() or f"column {i + 1}" for i in range(width)]
    normal = [_normal_name(name) for name in names]
    if twice := [names[i] for i in range(width) if normal[i] in normal[:i]]:
        raise DataError(
            f"{path.name}, row {header_row}: two columns are named {twice[0]!r}. "
            "Rename or delete one of them."
        )
    for ours, place in known.items():
        if names[place] != ours:
            notes.append(f"Column {names[place]!r} was read as {ours!r}.")
        names = [f"{n} (other)" if n == ours else n for n in names]
        names[place] = ours
    for name in ("topic", "fact"):
        names = [name if _normal_name(n) == name else n for n in names]
    frame = rows.loc[:, : width - 1].copy()
    frame.columns = names
    return frame


def _without_header(
    path: Path, filled: pandas.DataFrame, rows: pandas.DataFrame, notes: list[str]
) -> pandas.DataFrame:
    """Return the first two columns, named."""
    width = _require_width(path, filled)
    frame = rows.loc[:, :1].copy()
    frame.columns = ["instruction", "response"]
    more = f"; {width - 2} further columns are left out" if width > 2 else ""
    notes.append(
        "The file has no header: the first column was read as instruction, "
        f"the second as response{more}."
    )
    return frame


def _require_width(path: Path, filled: pandas.DataFrame) -> int:
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
            f"{path.name}, row {row}: {columns} columns, but row {header_row} has "
            f"{width}. Put texts that contain the delimiter into double quotes, and "
            'write a quote inside a text as "".'
        )
    return width


def _require_data_like(
    path: Path, cells: pandas.DataFrame, header_row: int, known: dict[str, int]
) -> None:
    """Raise if a first row without both known names looks like a header or worse."""
    first, rest = cells.loc[header_row], cells.iloc[1:]
    names = [name.strip() for name in first if name]
    remedy = "Name the two columns instruction and response in the first row."

    def words(texts: Iterable[str]) -> float:
        return float(pandas.Series([len(text.split()) for text in texts]).median())

    short = all(len(name.split()) <= 3 and name[-1:] not in ".?!" for name in names)
    longer = len(rest) and words(rest[0]) + words(rest[1]) > 2 * len(names[:2]) + 2
    if known or (short and longer):
        missing = " and ".join(ours for ours in COLUMN_NAMES if ours not in known)
        raise DataError(
            f"{path.name}, row {header_row}: no column for {missing} among "
            f"{', '.join(map(repr, names))}. {remedy}"
        )
    numbers = [pandas.to_numeric(cells[i], errors="coerce").notna() for i in (0, 1)]
    if any(column.mean() > 0.5 for column in numbers):
        raise DataError(
            f"{path.name}, row {header_row}: there is no header, and the first two "
            f"columns are not question and answer: {names[:2]}. {remedy}"
        )


def _drop_empty_lines(frame: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    blank = frame.map(lambda cell: not _tidy(cell)).all(axis=1)
    last = frame.index[~blank].max() if not blank.all() else 0
    inner = blank & (frame.index < last)  # those at the end of a file are no surprise
    if inner.any():
        notes.append(f"Empty lines were left out: {_rows(frame.index[inner])}.")
    return frame[~blank].copy()


def _clean(cells: pandas.Series, column: str, notes: list[str]) -> pandas.Series:
    """Return text without stray white space, invisible or misread characters."""
    repaired = cells.map(lambda text: ftfy.fix_encoding(text, MISREAD_ONLY))
    if (changed := repaired != cells).any():
        notes.append(
            f"Letters misread in an earlier conversion (such as 'Ã©') were restored in "
            f"{column}: {_rows(cells.index[changed])}."
        )
    tidy = repaired.map(_tidy)
    tidy = tidy.mask(tidy.str.casefold().isin(BLANK_MARKS), "")
    if (changed := (tidy != repaired) & (tidy != "")).any():
        notes.append(
            "Stray white space or invisible characters were removed from "
            f"{column}: {_rows(cells.index[changed])}."
        )
    if (lost := tidy.str.contains("\ufffd")).any():
        notes.append(
            f"Some letters of {column} were lost before the file was saved and read "
            f"as \ufffd: {_rows(cells.index[lost])}."
        )
    return tidy


def _tidy(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\u200b\u2060\ufeff\u00ad]", "", text)
    text = re.sub(r"[^\S\n\t ]", " ", text)  # the no-break space and its kin
    text = re.sub(r"[\x00-\x08\x0e-\x1b\x7f]", "", text)
    text = re.sub(r"(?<=\S)[ \t]+(?=\S)", " ", text)
    return re.sub(r"[ \t]+(?=\n|$)", "", text).strip()


def _require_text(path: Path, frame: pandas.DataFrame) -> None:
    for column in ("instruction", "response"):
        blank = frame.index[frame[column] == ""]
        if len(blank):
            other = "response" if column == "instruction" else "instruction"
            article = "an" if column == "instruction" else "a"
            also = f" (also {_rows(blank[1:])})" if len(blank) > 1 else ""
            raise DataError(
                f"{path.name}, row {blank[0]}{also}: expected {article} {column}, "
                f"found none beside the {other} {frame.at[blank[0], other][:60]!r}. "
                "Fill it in or delete the row."
            )


def _drop_repeated(frame: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    """Keep one answer for each question: the first."""

    def key(texts: pandas.Series) -> pandas.Series:
        return texts.str.casefold().str.replace(r"[\W_]+", " ", regex=True).str.strip()

    questions = key(frame["instruction"])
    # A question of symbols only ("?") has no letters to compare by.
    questions = questions.where(questions != "", frame["instruction"])
    repeated = questions.duplicated()
    answers = key(frame["response"])
    same_answer = repeated & (answers == answers.groupby(questions).transform("first"))
    if same_answer.any():
        notes.append(
            f"Repeated questions were left out: {_rows(frame.index[same_answer])}."
        )
    if (differing := repeated & ~same_answer).any():
        notes.append(
            "Questions that came before with another answer were left out, the first "
            f"answer stays: {_rows(frame.index[differing])}."
        )
    return frame[~repeated].copy()


def _rows(numbers: Iterable[int]) -> str:
    """Name rows, as in "row 3" or "rows 3, 4, 5, 6, 7 and 12 more"."""
    numbers = list(numbers)
    shown = ", ".join(str(number) for number in numbers[:5])
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _unknown_facts(frame: pandas.DataFrame) -> list[int]:
    """Return the rows whose fact is not in the course's table."""
    return list(frame.index[~frame["fact"].map(known_fact)])


def _why_no_test_sets(frame: pandas.DataFrame) -> str:
    if "fact" not in frame.columns:
        reason = "the file has no column 'fact'"
    else:
        unknown = _unknown_facts(frame)
        reason = f"the course's table does not hold the fact of {_rows(unknown)}"
    return (
        f"The three test sets of the course cannot be made, because {reason}; "
        "the split is a plain one, into training and validation."
    )
