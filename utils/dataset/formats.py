"""Read a table from a file of any usual format, or from the Hugging Face hub.

The content decides what a file is, its name does not: files called .csv that hold JSON
are common. pandas, pyarrow and datasets do the reading; what stands here is what
people's files need before it, and errors that name the row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas

from utils.course import is_dataset_folder, is_hub_data
from utils.dataset.columns import KNOWN_NAMES, is_header, message_column
from utils.dataset.decoding import decode
from utils.dataset.sheets import HEADER_SEARCH, read_sheet
from utils.dataset.table import DataError, Table, normal_name, plain

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
MOST_COLUMNS = 40
SNIFFED_LINES = 50
SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".json": "JSON",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".parquet": "Parquet",
    ".xlsx": "Excel",
    ".xlsm": "Excel",
}
NOT_THERE = re.compile(
    r"\s*(?:error:?\s*)?(?:40[0-9]|5\d\d)?\W*"
    r"(?:not found|access denied|forbidden|unauthorized|bad gateway|invalid request"
    r"|service unavailable|rate limit exceeded|entry not found|repository not found)"
    r"\W*.{0,200}\s*",
    re.IGNORECASE | re.DOTALL,
)


def read_table(source: str | Path, encoding: str | None = None) -> Table:
    """Read a file, a folder of `datasets`, or a data set of the hub.

    Args:
        source: a path, or a hub id such as "databricks/databricks-dolly-15k"; a
            configuration follows a colon, as in "openai/gsm8k:main".
        encoding: of a text file, where a person knows it.

    Raises:
        FileNotFoundError: if there is no such file and this is no hub id.
        DataError: if it cannot be read as a table.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        if is_hub_data(str(source)):
            return _read_hub(str(source))
        raise FileNotFoundError(
            f"There is no file {path}: check the path, or the variable COURSE_DATA."
        )
    return read_bytes(path.name, path.read_bytes(), encoding)


def read_bytes(name: str, raw: bytes, encoding: str | None = None) -> Table:
    """Read what a file holds, whatever its name says; see `read_table`."""
    notes: list[str] = []
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise DataError(
                f"{name} is a gzip archive that cannot be unpacked ({error}): the "
                "download broke off; fetch it again."
            ) from None
        notes.append("The file is compressed with gzip and was unpacked.")
    if raw.startswith(b"PK\x03\x04"):
        kind, table = "Excel", _read_zip(name, raw)
    elif raw.startswith(b"\xd0\xcf\x11\xe0"):
        raise DataError(
            f"{name} is an old Excel workbook, or one with a password: open it and "
            "save it as 'Excel workbook (.xlsx)' or 'CSV UTF-8', without a password."
        )
    elif raw.startswith(b"PAR1"):
        kind, table = "Parquet", _read_parquet(name, raw)
    else:
        text, _ = decode(name, raw, encoding, notes)
        kind, table = _read_text(name, text, notes)
    table.notes = notes + table.notes
    _note_wrong_suffix(table, kind)
    return table


def _note_wrong_suffix(table: Table, kind: str) -> None:
    suffix = Path(table.name.lower().removesuffix(".gz")).suffix
    promised = SUFFIXES.get(suffix)
    if promised and promised.split()[0] != kind.split()[0]:
        table.notes.append(
            f"The file's name ends in {suffix}, but it holds {kind} and was read as "
            "such."
        )


# --- text: what it is -----------------------------------------------------------------


def _read_text(name: str, text: str, notes: list[str]) -> tuple[str, Table]:
    text = text.replace("\x00", "")
    _require_data(name, text)
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith(("[", "{")) and (found := _read_json(name, text)):
        return found
    _require_no_json_below(name, text)
    return "CSV", Table(name, _read_cells(name, text, notes), named=False)


def _require_no_json_below(name: str, text: str) -> None:
    """Raise if all lines but the first ones are JSON: they were meant to be as well."""
    lines = list(_first_lines(text))
    objects = [
        bool(re.match(r"\s*\{\s*\"[^\"]*\"\s*:.*\}\s*$", line)) for line in lines
    ]
    if objects and sum(objects) > len(objects) / 2 and not all(objects):
        wrong = lines[objects.index(False)]
        row = re.split(r"\r\n|\r|\n", text).index(wrong) + 1
        raise DataError(
            f"{name}, row {row}: most lines are JSON, and this one is not: "
            f"{wrong.strip()[:60]!r}. Delete it, or write it as an object."
        )


def _require_data(name: str, text: str) -> None:
    """Raise if the file is what a failed download leaves."""
    start = text.lstrip("\ufeff \t\r\n")[:2000]
    low = start.lower()
    if start.startswith("version https://git-lfs"):
        raise DataError(
            f"{name} is a Git LFS pointer, not the data themselves: run `git lfs pull` "
            "in its repository, or download the file from its page."
        )
    if low.startswith(("<!doctype html", "<html", "<head", "<body")):
        title = re.search(r"<title[^>]*>(.*?)</title>", start, re.I | re.S)
        shown = f" with the title {title[1].strip()[:60]!r}" if title else ""
        raise DataError(
            f"{name} is a web page{shown} that was saved in place of the data: "
            "download the file itself (on GitHub with 'Raw', on the hub with "
            "'download'), after signing in where that is needed."
        )
    if low.startswith(("<?xml", "<error>")):
        code = re.search(r"<Code>(.*?)</Code>", start)
        if code:
            raise DataError(
                f"{name} is the answer of a server, {code[1]!r}, and not the data: the "
                "link has expired or needs rights. Get a new link and download again."
            )
        raise DataError(
            f"{name} is an XML file, no table of questions and answers: save it as "
            "CSV or Excel in the program it comes from."
        )
    lines = [line for line in start.splitlines() if line.strip()]
    if len(lines) <= 3 and len(text) < 500 and NOT_THERE.fullmatch(start.rstrip()):
        raise DataError(
            f"{name} holds only {lines[0].strip()[:60]!r}, the answer of a server that "
            "did not find or give the file: check the link and download again."
        )


# --- JSON -----------------------------------------------------------------------------


class _Repeated(ValueError):
    """A key stands twice in one JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise _Repeated(twice)
    return found


# Numbers and truth values stay as the file writes them: they are texts here.
DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=str,
    parse_int=str,
    parse_constant=lambda name: None,
)


def _read_json(name: str, text: str) -> tuple[str, Table] | None:
    """Read a JSON document or JSON Lines; None if the text is neither.

    Several documents may follow each other, as in JSON Lines, also over several lines
    each. Line ends are those that JSON knows: U+2028 and its kin stand inside texts.
    """
    text = text.lstrip("\ufeff")
    documents: list[tuple[int, Any]] = []
    line, counted, place = 1, 0, _skip_space(text, 0)
    while place < len(text):
        line += text.count("\n", counted, place)
        counted = place
        try:
            value, place = DECODER.raw_decode(text, place)
        except _Repeated as error:
            raise DataError(
                f"{name}, row {line}: the key {str(error)!r} stands twice in one "
                "object. Rename or delete one of them."
            ) from None
        except json.JSONDecodeError as error:
            if not documents and not _meant_as_json(text):
                return None
            raise DataError(_explain_json(name, text, error)) from None
        documents.append((line, value))
        place = _skip_space(text, place)
    if len(documents) > 1:
        return "JSON Lines", _from_records(name, documents)
    return "JSON", _from_document(name, documents[0][1])


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n\x1e":
        place += 1
    return place


def _meant_as_json(text: str) -> bool:
    """Whether a text that is no JSON was meant to be: it begins as JSON does."""
    return bool(re.match(r"\s*(?:\{\s*[\"'}]|\[\s*(?:[\[{\"'\]]|$))", text))


def _explain_json(name: str, text: str, error: json.JSONDecodeError) -> str:
    """Return where JSON is broken, as a person looks for it, and what to do."""
    line = text.count("\n", 0, error.pos) + 1
    near = text[max(0, error.pos - 30) : error.pos + 10].strip()
    where = f"{name}, row {line}: the JSON breaks off or is not valid near {near!r}"
    if re.match(r"\s*[\[{]\s*(?:\{\s*)?'", text[error.pos - 1 :][:40]) or re.search(
        r"[{,]\s*'\w+'\s*:", text[error.pos - 1 : error.pos + 60]
    ):
        return (
            f"{where}. These are printed Python dictionaries, with single quotes: "
            "write them with `json.dumps` instead."
        )
    if (
        re.match(r",\s*\{", text[error.pos :])
        and text[: error.pos].rstrip()[-1:] == "}"
    ):
        return (
            f"{where}. A comma stands between two rows, which JSON Lines does not "
            "have: delete these commas, or put all rows between [ and ]."
        )
    if "control character" in error.msg:
        return (
            f"{where}. A text holds a line end or a tab as it is, or its quotation "
            "mark is not closed: write \\n or \\t, or close it."
        )
    if re.match(r"\s*,?\s*[\]}]", text[error.pos :]) or "trailing comma" in error.msg:
        return f"{where}. A comma stands before a closing bracket: delete it."
    if "\n" not in text[error.pos :].strip() and not text.rstrip().endswith(("}", "]")):
        return f"{where}. The file is cut off: download or export it again."
    return f"{where} ({error.msg}). Mend this place, or export the file again."


def _is_turns(value: Any) -> bool:
    """Whether a value is a conversation: a list of objects with a role each."""
    roles = {"role", "from", "speaker", "author", "sender"}
    return _is_objects(value) and all(roles & set(item) for item in value)


def _is_objects(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
    )


def _from_document(name: str, value: Any) -> Table:
    """Find the rows of one JSON document, in the layouts that programs write."""
    if isinstance(value, dict):
        return _from_object(name, value)
    if not isinstance(value, list):
        raise DataError(f"{name} holds one JSON value, {value!r}: give a list of rows.")
    if _is_turns(value):
        return _from_rows(name, [{"messages": value}])
    if value and all(isinstance(row, list) for row in value):
        texts = [[plain(cell) for cell in row] for row in value]
        cells = pandas.DataFrame(texts, index=range(1, len(texts) + 1), dtype=object)
        return Table(name, cells.fillna(""), named=False)
    return _from_rows(name, value)


def _from_object(name: str, value: dict[str, Any]) -> Table:
    """Find the rows in one object: a list inside, columns, rows by key, or one row."""
    parts, names = list(value.values()), list(value)
    one_row = is_header(names) or message_column(names) is not None
    message = value.get("message") or value.get("error")
    if isinstance(message, str) and len(value) <= 4 and not one_row:
        raise DataError(
            f"{name} is the answer of a server, {message[:60]!r}, and not the data: "
            "check the link and your rights, and download again."
        )
    if {"columns", "data"} <= set(value) and isinstance(value["data"], list):
        rows = [dict(zip(value["columns"], r, strict=False)) for r in value["data"]]
        return _from_rows(name, rows)
    lists = {
        key: rows
        for key, rows in value.items()
        if _is_objects(rows) and not _is_turns(rows)
    }
    if lists and not one_row:
        return _from_list_inside(name, lists)
    if len(parts) > 1 and all(isinstance(part, list) for part in parts) and one_row:
        if len({len(part) for part in parts}) > 1:
            raise DataError(
                f"{name} holds columns of different lengths, "
                f"{dict(zip(value, map(len, parts), strict=True))}: save it row by row."
            )
        rows = [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
        if not all(_is_turns(part) for part in parts):
            return _from_rows(name, rows)
    if len(parts) > 1 and all(isinstance(part, dict) for part in parts):
        keys = list(parts[0])
        if one_row and all(list(part) == keys for part in parts):
            rows = [{n: part[key] for n, part in value.items()} for key in keys]
            return _from_rows(name, rows)
        return _from_rows(name, parts)
    asked_by_key = not {normal_name(key) for key in names} & KNOWN_NAMES
    if asked_by_key and len(parts) > 1 and all(isinstance(p, str) for p in parts):
        rows = [{"instruction": key, "response": text} for key, text in value.items()]
        table = _from_rows(name, rows)
        table.notes.append(
            "The object's keys were read as instruction, its values as response."
        )
        return table
    return _from_rows(name, [value])


def _from_list_inside(name: str, lists: dict[str, list[Any]]) -> Table:
    """Take the list of rows that an object holds, "train" where there are several."""
    if len(lists) > 1 and "train" not in lists:
        raise DataError(
            f"{name} holds several lists of rows, {', '.join(map(repr, lists))}: "
            "save the one to train on as a file of its own."
        )
    key = "train" if "train" in lists else next(iter(lists))
    table = _from_rows(name, lists[key])
    table.notes.append(f"The rows were read from the list {key!r} of the file.")
    if left := [repr(other) for other in lists if other != key]:
        table.notes.append(f"The lists {', '.join(left)} of the file were left out.")
    return table


def _from_rows(name: str, rows: list[Any]) -> Table:
    return _from_records(name, list(enumerate(rows, start=1)))


def _from_records(name: str, records: list[tuple[int, Any]]) -> Table:
    """Return the objects as a table; a column may appear late or be missing."""
    if not records:
        raise DataError(f"{name} holds an empty list: it needs questions and answers.")
    for row, record in records:
        if not isinstance(record, dict):
            shown = json.dumps(record, ensure_ascii=False)[:60]
            raise DataError(
                f"{name}, row {row}: expected an object such as "
                f'{{"instruction": …, "response": …}}, found {shown}. Write each row '
                "as an object."
            )
    if all(record and set(record) <= {"role", "content"} for _, record in records):
        raise DataError(
            f"{name}, row {records[0][0]}: each row is one message. Put the messages "
            'of one conversation into one row, as {"messages": [ … ]}.'
        )
    names = list(dict.fromkeys(key for _, record in records for key in record))
    columns = {
        key: pandas.Series([record.get(key) for _, record in records], dtype=object)
        for key in names
    }
    cells = pandas.DataFrame(columns, dtype=object)
    cells.index = pandas.Index([row for row, _ in records])
    return Table(name, cells, named=True)


# --- Parquet, folders, the hub --------------------------------------------------------


def _read_parquet(name: str, raw: bytes) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(raw)).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{name} is a Parquet file that cannot be read "
            f"({str(error).splitlines()[0][:100]}): it is cut off or damaged; download "
            "or export it again."
        ) from None
    return _from_rows(name, rows)


def _read_folder(path: Path) -> Table:
    """Read a data set that `save_to_disk` wrote or that was cloned from the hub."""
    if not is_dataset_folder(path):
        raise DataError(
            f"{path} is a folder: give the file of questions and answers itself."
        )
    import datasets

    parquet = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    if parquet:
        train = [file for file in parquet if "train" in file.name] or parquet
        found = _load(path.name, "parquet", data_files=[str(file) for file in train])
    else:
        try:
            found = datasets.load_from_disk(str(path))
        except Exception as error:  # whatever is wrong, the folder is not readable
            raise DataError(_cannot_load(path.name, error)) from None
    return _from_dataset(path.name, found)


def _read_hub(name: str) -> Table:
    repository, _, configuration = name.partition(":")
    options = {"name": configuration} if configuration else {}
    return _from_dataset(name, _load(name, repository, **options))


def _load(shown_name: str, path: str, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, split="train", **options)
    except Exception as error:  # of half a dozen libraries: network, rights, formats
        raise DataError(_cannot_load(shown_name, error)) from None


def _cannot_load(name: str, error: Exception) -> str:
    """Return why a data set of the hub cannot be loaded, and what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    text = str(error)
    if "onfig name is missing" in text or "BuilderConfig" in text:
        names = re.search(r"\[[^\]]*\]", text)
        shown = f" {names[0][:120]}" if names else ""
        return (
            f"{name} has several configurations{shown}: name one after a colon, such "
            f"as {name.partition(':')[0]}:default."
        )
    if "Unknown split" in text:
        return (
            f"{name} has no split 'train' ({reason}): save the one that you want with "
            "`to_parquet` and give that file."
        )
    kind = type(error).__name__
    if kind in ("GatedRepoError", "DatasetNotFoundError") or "gated" in text.lower():
        return (
            f"{name} is neither a file here nor a data set of the hub that can be "
            f"read ({reason}): check the name; for one behind a form, accept it on its "
            "page and set HF_TOKEN."
        )
    if isinstance(error, OSError) or "offline" in text.lower():
        return (
            f"{name} is no file here, and the hub cannot be reached ({reason}): check "
            "the path; or download the data set elsewhere, save it with `to_parquet`, "
            "and give that file."
        )
    return f"{name} cannot be loaded as a data set ({kind}: {reason}): give a file."


def _from_dataset(name: str, found: Any) -> Table:
    """Take the training rows of what `datasets` loaded."""
    notes: list[str] = []
    if isinstance(found, Mapping):
        key = "train" if "train" in found else next(iter(found))
        if others := [repr(other) for other in found if other != key]:
            notes.append(f"Read was {key!r}; left out were {', '.join(others)}.")
        found = found[key]
    table = _from_rows(name, list(found))
    table.notes += notes
    return table


# --- zip: Excel -----------------------------------------------------------------------


def _read_zip(name: str, raw: bytes) -> Table:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile:
        raise DataError(
            f"{name} is an Excel workbook or another zip archive that is cut off or "
            "damaged: download it again, or save it as 'CSV UTF-8'."
        ) from None
    if "xl/workbook.xml" in members:
        return read_sheet(name, raw)
    kinds = {
        "word/document.xml": "a Word document",
        "content.xml": "an OpenDocument file",
        "xl/workbook.bin": "a binary Excel workbook",
        "ppt/presentation.xml": "a presentation",
    }
    kind = next((kinds[member] for member in kinds if member in members), None)
    if kind:
        raise DataError(
            f"{name} is {kind}: save its table as 'Excel workbook (.xlsx)' or as "
            "'CSV UTF-8'."
        )
    raise DataError(
        f"{name} is a zip archive with {', '.join(map(repr, members[:3]))}: unpack it "
        "and give the file inside."
    )


# --- CSV ------------------------------------------------------------------------------


def _read_cells(name: str, text: str, notes: list[str]) -> pandas.DataFrame:
    """Return all cells as text, without names; the index counts rows from 1."""
    hint = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    if hint:  # the line Excel writes for itself; its row number stays counted
        text = "\n" + text[hint.end() :]
    delimiter = hint.group(1) if hint else _delimiter(name, text)
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
        raise DataError(_explain(name, str(error))) from None
    if delimiter != ",":
        mark = DELIMITERS.get(delimiter, repr(delimiter))
        notes.append(f"The columns are separated by {mark} instead of comma.")
    cells.index += 1
    cells = cells.fillna("")
    _require_no_swallowed_rows(name, cells, delimiter)
    return cells


def _explain(name: str, message: str) -> str:
    """Return the parser's error with the row as a spreadsheet counts, and a remedy."""
    start = re.search(r"EOF inside string starting at row (\d+)", message)
    if start:
        return (
            f"{name}, row {int(start.group(1)) + 1}: a double quote opens a text "
            'here and never closes it. Close it, or write a quote inside a text as "".'
        )
    line = re.search(r"in line (\d+), saw (\d+)", message)
    if line:
        return (
            f"{name}, row {line.group(1)}: {line.group(2)} columns, expected 2. "
            "Put texts that contain the delimiter into double quotes."
        )
    return f"{name} cannot be read ({message.strip()}): save it anew as CSV."


def _require_no_swallowed_rows(
    name: str, cells: pandas.DataFrame, delimiter: str
) -> None:
    """Raise if a cell holds further rows: a quotation mark was not closed.

    In prose a space follows the delimiter; between two columns it does not. A line in a
    cell counts as a row if a question or three words stand before such a delimiter and
    two words behind it.
    """
    mark = re.escape(delimiter)
    row_like = re.compile(
        rf"\n\s*\"?(?:[^\n]*\?|[^\n{mark}]*\w+ [^\n{mark}]*\w+ [^\n{mark}]*\S)\"?"
        rf"{mark}(?=\S)(?!\d)\"?\w[^\n]*\s+\w"
    )
    for place in cells.columns:
        column = cells[place]
        for row in column.index[column.str.contains("\n", regex=False)]:
            cell = column[row]
            found = row_like.search(cell)
            if found:
                line = found[0].strip()[:60]
                raise DataError(
                    f"{name}, row {row}: the cell beginning {cell[:30].strip()!r} goes "
                    f"on over {cell.count(chr(10)) + 1} lines, and one of them looks "
                    f"like a row of its own: {line!r}. A double quote opens a text "
                    "here and does not close it: close it, or write a quote inside a "
                    'text as "".'
                )


def _fields(line: str, mark: str) -> list[str]:
    return next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])


def _delimiter(name: str, text: str) -> str:
    """Return the delimiter that gives the header known names, else the steadiest.

    Raises:
        DataError: if two delimiters cut all rows of a file without header into two
            columns, and nothing tells which of them is meant.
    """
    lines = list(_first_lines(text))

    for mark in DELIMITERS:
        for line in lines[:HEADER_SEARCH]:
            fields = _fields(line, mark)
            if len(fields) > 1 and is_header(fields):
                return mark
    rows = {mark: list(_records(lines, mark)) for mark in DELIMITERS}
    steady = {
        mark: cut
        for mark, cut in rows.items()
        if cut and len(cut[0]) >= 2 and all(len(row) == len(cut[0]) for row in cut)
    }
    if len(steady) > 1:
        return _decide(name, steady)
    if steady:
        return next(iter(steady))
    return max(DELIMITERS, key=lambda mark: sum(len(row) >= 2 for row in rows[mark]))


def _first_lines(text: str) -> Iterator[str]:
    """Yield the first lines that are not empty; only CR and LF end a line."""
    count = 0
    for line in re.split(r"\r\n|\r|\n", text[:200_000]):
        if line.strip():
            yield line
            count += 1
        if count == SNIFFED_LINES:
            return


def _records(lines: list[str], mark: str) -> Iterator[list[str]]:
    """Cut lines as CSV with quoted texts over several lines does."""
    try:
        yield from csv.reader(lines, delimiter=mark, skipinitialspace=True)
    except csv.Error:
        return


def _decide(name: str, steady: Mapping[str, list[list[str]]]) -> str:
    """Choose among delimiters that all cut every row into equally many columns."""
    if "\t" in steady:  # no prose holds exactly one tab a line
        return "\t"
    two = {mark: rows for mark, rows in steady.items() if len(rows[0]) == 2}
    asks = {
        mark
        for mark, rows in two.items()
        if all(row[0].rstrip().endswith(("?", "？", "؟", "¿")) for row in rows)
    }
    if len(asks) == 1:
        return asks.pop()
    first, second = list(steady)[:2]
    readings = " or ".join(
        f"{steady[mark][0]} (separated by {DELIMITERS[mark]})"
        for mark in (first, second)
    )
    raise DataError(
        f"{name}, row 1: there is no header, and the columns can be read in two ways: "
        f"{readings}. Write a first row with the names instruction and response, "
        "separated like the others."
    )
