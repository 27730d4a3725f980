"""Read a sheet of an Excel workbook as a person sees it.

openpyxl reads the file. It gives numbers and dates as values; what stands in the cell
is decided by the cell's number format, so "0049" and "50%" would become 49 and 0.5.
"""

from __future__ import annotations

import datetime
import io
import re
from typing import Any

import pandas

from utils.dataset.columns import is_header
from utils.dataset.table import DataError, Table, rows_text

# Excel shows a number without a format with at most this many digits.
GENERAL_DIGITS = 11
HEADER_SEARCH = 10  # rows in which a header may stand, below a title
# Parts of a date's format in Excel → those of strftime; longer ones first.
DATE_PARTS = {
    "yyyy": "%Y",
    "yy": "%y",
    "mmmm": "%B",
    "mmm": "%b",
    "mm": "%m",
    "dddd": "%A",
    "ddd": "%a",
    "dd": "%d",
    "hh": "%H",
    "ss": "%S",
    "am/pm": "%p",
}


def read_sheet(name: str, raw: bytes) -> Table:
    """Return the cells of the sheet that holds the questions; see `formats`.

    A merged cell counts for each of the rows that it spans. Hidden rows are read.

    Raises:
        DataError: if the workbook is damaged or empty, or if a formula has no result.
    """
    import openpyxl

    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), data_only=True)
    except Exception as error:  # openpyxl lets many kinds of errors through
        raise DataError(
            f"{name} is an Excel workbook that cannot be read ({error}): open it, and "
            "save it as 'CSV UTF-8'."
        ) from None
    sheets = [sheet for sheet in book.worksheets if sheet.max_row and _has_text(sheet)]
    if not sheets:
        raise DataError(f"{name} has no text: it needs questions and answers.")
    notes: list[str] = []
    sheet = _choose(sheets)
    _note_other_sheets(book.sheetnames, sheets, sheet, notes)
    _require_results(name, raw, sheet)
    rows = {
        row[0].row: [shown(cell.value, cell.number_format or "General") for cell in row]
        for row in sheet.iter_rows()
    }
    cells = pandas.DataFrame.from_dict(rows, orient="index", dtype=object)
    _fill_merged(sheet, cells, notes)
    hidden = [
        row
        for row, size in sheet.row_dimensions.items()
        if size.hidden and row in cells.index and (cells.loc[row] != "").any()
    ]
    if hidden:
        notes.append(f"Hidden rows were read as well: {rows_text(sorted(hidden))}.")
    return Table(name, cells, named=False, notes=notes)


def _has_text(sheet: Any) -> bool:
    return any(
        cell is not None and str(cell).strip()
        for row in sheet.iter_rows(values_only=True)
        for cell in row
    )


def _has_header(sheet: Any) -> bool:
    rows = sheet.iter_rows(max_row=HEADER_SEARCH, values_only=True)
    return any(is_header([c for c in row if isinstance(c, str)]) for row in rows)


def _choose(sheets: list[Any]) -> Any:
    """Return the first sheet with known names, else the first that is not hidden."""
    named = [sheet for sheet in sheets if _has_header(sheet)]
    visible = [sheet for sheet in sheets if sheet.sheet_state == "visible"]
    shown = [sheet for sheet in named if sheet in visible]
    return (shown or named or visible or sheets)[0]


def _note_other_sheets(
    names: list[str], sheets: list[Any], chosen: Any, notes: list[str]
) -> None:
    others = [sheet for sheet in sheets if sheet is not chosen]
    if others:
        listed = ", ".join(f"{s.title!r} ({s.max_row} rows)" for s in others)
        notes.append(
            f"Read was the sheet {chosen.title!r}; left out: {listed}. Put all "
            "questions into one sheet if they belong to the data."
        )
    elif len(names) > 1 and chosen.title != names[0]:
        notes.append(f"Read was the sheet {chosen.title!r}; the others are empty.")


def _require_results(name: str, raw: bytes, chosen: Any) -> None:
    """Raise if a formula was never computed: its cell would be read as empty."""
    import openpyxl

    formulas = openpyxl.load_workbook(io.BytesIO(raw), data_only=False)[chosen.title]
    for row in formulas.iter_rows():
        for cell in row:
            if cell.data_type == "f" and chosen[cell.coordinate].value is None:
                raise DataError(
                    f"{name}, row {cell.row}: the cell {cell.coordinate} of the sheet "
                    f"{chosen.title!r} holds a formula without a saved result. Open "
                    "the workbook in Excel or LibreOffice and save it again."
                )


def _fill_merged(sheet: Any, cells: pandas.DataFrame, notes: list[str]) -> None:
    """Write the text of a cell merged over several rows into each of them."""
    filled: list[int] = []
    for area in sheet.merged_cells.ranges:
        if area.max_row == area.min_row:
            continue
        text = cells.at[area.min_row, area.min_col - 1]
        if text:
            rows = range(area.min_row + 1, area.max_row + 1)
            cells.loc[list(rows), area.min_col - 1] = text
            filled += rows
    if filled:
        notes.append(
            "Cells merged over several rows count for each of them: "
            f"{rows_text(sorted(filled))}."
        )


# --- what a cell shows ----------------------------------------------------------------


def shown(value: Any, number_format: str = "General") -> str:
    """Return a cell's text as Excel shows it, for the usual formats.

    Args:
        value: what openpyxl reads: text, number, truth value, date or None.
        number_format: the cell's, such as "0.00", "0%", "0000" or "dd.mm.yyyy".
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return _date(value, number_format)
    if isinstance(value, datetime.timedelta):
        minutes, seconds = divmod(int(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if isinstance(value, int | float):
        return _number(value, number_format)
    return str(value)


def _date(
    value: datetime.datetime | datetime.date | datetime.time, number_format: str
) -> str:
    pattern = re.sub(r"\[\$[^\]]*\]|\\(?=.)|[\"@*_]", "", number_format.split(";")[0])
    pattern = pattern.strip().lower()
    if pattern in ("general", "") or "[" in pattern:
        iso = value.isoformat(sep=" ") if isinstance(value, datetime.datetime) else None
        return (iso or value.isoformat()).removesuffix(" 00:00:00")

    def part(found: re.Match[str]) -> str:
        token = found[0]
        before, after = pattern[: found.start()], pattern[found.end() :]
        if set(token) == {"m"} and len(token) <= 2:
            minutes = re.search(r"h\W*$", before) or re.match(r"\W*s", after)
            if minutes:
                return f"{value.minute:02}" if len(token) == 2 else str(value.minute)
            return f"{value.month:02}" if len(token) == 2 else str(value.month)
        if token == "d":
            return str(value.day)
        if token == "h":
            hour = value.hour % 12 or 12 if "am/pm" in pattern else value.hour
            return str(hour)
        if token == "s":
            return str(value.second)
        if token == "hh" and "am/pm" in pattern:
            return value.strftime("%I")
        return value.strftime(DATE_PARTS[token])

    tokens = "am/pm|yyyy|yy|mmmm|mmm|mm?|dddd|ddd|dd?|hh?|ss?"
    return re.sub(tokens, part, pattern)


FORMAT_PARTS = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.|_.|\*.|[#0?][#0?,.]*|.')


def _number(value: float, number_format: str) -> str:
    sections = number_format.split(";")
    pattern = sections[1] if value < 0 and len(sections) > 1 else sections[0]
    parts = FORMAT_PARTS.findall(pattern)
    digits = next((part for part in parts if part[0] in "#0?"), None)
    scientific = re.search(r"[eE][+-]|\?/|#/", pattern)
    if digits is None or scientific or "general" in pattern.lower():
        return _general(value)
    number = _digits(abs(value) * (100 if "%" in parts else 1), digits)
    sign = "-" if value < 0 and len(sections) == 1 else ""
    texts = [number if part is digits else _literal(part) for part in parts]
    return sign + "".join(texts).strip()


def _literal(part: str) -> str:
    """Return what a part of a format that is no digit shows."""
    if part.startswith("[$"):
        return part[2:-1].partition("-")[0]
    if part[0] in "[_*#0?":
        return ""
    return part.strip('"') if part[0] == '"' else part.removeprefix("\\")


def _digits(number: float, pattern: str) -> str:
    """Write a number with the decimals, zeros and separators of "#,##0.0#"."""
    before, _, decimals = pattern.partition(".")
    whole, _, fraction = f"{number:.{len(decimals)}f}".partition(".")
    least = decimals.count("0")
    fraction = fraction[:least] + fraction[least:].rstrip("0")
    whole = f"{int(whole):,}" if "," in before else whole.zfill(before.count("0"))
    return whole + ("." + fraction if fraction else "")


def _general(value: float) -> str:
    if isinstance(value, int) or float(value).is_integer() and abs(value) < 1e11:
        return str(int(value))
    return f"{value:.{GENERAL_DIGITS - 1}g}"
