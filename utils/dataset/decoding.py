"""From the bytes of a file to its text, or to the reason why it holds none.

UTF-8 and UTF-16 are recognised by their form. Anything else is read as Windows-1252,
the usual encoding of Western spreadsheets, and refused where that gives no words: which
of the other encodings it is, only the person who made the file knows.
"""

from __future__ import annotations

import re
import unicodedata

from utils.dataset.table import DataError

# First bytes of files that are mistaken for tables of text → what they are, the remedy.
OTHER_FORMATS = {
    b"%PDF": ("a PDF document", "copy the texts into a spreadsheet"),
    b"{\\rtf": ("a rich-text document", "save it as plain text, with UTF-8"),
    b"SQLite format 3\x00": ("an SQLite database", "export the table as CSV"),
    b"BZh": ("compressed with bzip2", "unpack it with `bunzip2`"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it with `unxz`"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "unpack it with `unzstd`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"ARROW1": ("an Arrow file", "load it with `datasets` and save it as Parquet"),
    b"\xff\xff\xff\xff": (
        "an Arrow stream, one file of a saved data set",
        "give the folder that it lies in",
    ),
    b"\x89PNG": ("a picture", "type the texts into a spreadsheet"),
    b"\xff\xd8\xff": ("a picture", "type the texts into a spreadsheet"),
}
# What no Western text has behind small letters, but Mac Roman, the encodings of DOS and
# of Central Europe become: capitals and upside-down marks; other signs between letters.
MISPLACED = re.compile(
    r"(?<=[a-zß-ÿ])[À-ÖØ-ÞŠŽŸŒ¿¡](?![A-ZÀ-Þ])"
    r"|(?<=[a-zß-ÿ])[‡†ˆ‰§¢£¤¥¦¨¬¯±´µ¶¸„”‚ƒ›‹™](?=[a-zß-ÿ])"
    r"|(?<=[a-z]{2})[¹²³ºª¼½¾](?=[a-z]|\b)"
)
TYPOGRAPHY = set("’‘“”–—…•·«»„€£°§©®™ \u00a0¿¡")
LIKELY_ENCODINGS = ("mac_roman", "cp850", "cp437")
SAMPLE_BYTES = 20_000
MOST_BROKEN = 0.05  # of the letters beyond ASCII, in a file that is UTF-8 but for them


def decode(
    name: str, raw: bytes, encoding: str | None, notes: list[str]
) -> tuple[str, str]:
    """Return a file's text, and the name of the encoding that it was read in.

    Args:
        name: of the file, for messages.
        raw: the whole file.
        encoding: the one that a person names; found out if there is none.
        notes: gets a sentence unless it is plain UTF-8.

    Raises:
        DataError: if there is no text in it, or if the encoding is not clear.
    """
    for start, (kind, remedy) in OTHER_FORMATS.items():
        if raw.startswith(start):
            raise DataError(
                f"{name} is {kind}, no table of questions and answers: {remedy}, "
                "then give that file."
            )
    if not raw.strip():
        raise DataError(f"{name} is empty: it needs questions and answers.")
    if encoding:
        notes.append(f"The file was read as {encoding}, as you asked.")
        return _strictly(name, raw, encoding).removeprefix("\ufeff"), encoding
    if raw.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        notes.append("The file is in UTF-32 and was read as such.")
        return _strictly(name, raw, "utf-32"), "utf-32"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        notes.append("The file is in UTF-16 and was read as such.")
        return _strictly(name, raw, "utf-16"), "utf-16"
    if raw[:200].count(0) > len(raw[:200]) // 4:
        notes.append("The file is in UTF-16 without a mark and was read as such.")
        order = "utf-16-be" if raw[0] == 0 else "utf-16-le"
        return _strictly(name, raw, order), order
    if raw.startswith(b"\xef\xbb\xbf"):
        notes.append("A byte-order mark at the start was removed.")
        return _strictly(name, raw, "utf-8-sig"), "utf-8"
    try:
        return raw.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        text = _western(name, raw, error)
    notes.append("The file is not in UTF-8; it was read as Windows-1252.")
    return text, "cp1252"


def _strictly(name: str, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}, line {line}: the bytes {raw[error.start : error.end]!r} are not "
            f"{encoding}. {_remedy(name, raw)}"
        ) from None


def _western(name: str, raw: bytes, first: UnicodeDecodeError) -> str:
    """Read as Windows-1252; raise if that gives no words."""
    line = raw[: first.start].count(b"\n") + 1
    almost = raw.decode("utf-8", errors="replace")
    beyond = sum(not character.isascii() for character in almost)
    if almost.count("\ufffd") <= MOST_BROKEN * beyond and is_letter_salad(
        raw.decode("cp1252", errors="replace")
    ):
        raise DataError(
            f"{name}, line {line}: the bytes {raw[first.start : first.end]!r} are not "
            "UTF-8, but the rest of the file is. Mend this line, or save the file as "
            "UTF-8 in the program it comes from."
        )
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        found = raw[error.start : error.end]
        raise DataError(
            f"{name}, line {line}: the bytes {found!r} are neither UTF-8 nor "
            f"Windows-1252. {_remedy(name, raw)}"
        ) from None
    if is_letter_salad(text):
        sample = next(w for w in text.split() if not w.isascii())[:20]
        raise DataError(
            f"{name}, line {line}: the file is not in UTF-8, and Windows-1252 makes "
            f"letter salad of it, such as {sample!r}. {_remedy(name, raw)}"
        )
    return text


def is_letter_salad(text: str) -> bool:
    """Return whether a text read as Windows-1252 was written in another encoding.

    Two signs count. Most of the words with letters beyond ASCII hold hardly any other
    letters (scripts such as Cyrillic or Chinese); or letters and signs stand where no
    Western language has them, such as a capital behind small letters (Mac Roman, DOS).
    """
    words = [word for word in re.findall(r"\S+", text) if not word.isascii()]
    foreign = strange = marked = 0
    for word in words:
        letters = [c for c in word if c.isalpha() or not (c.isascii() or c.isspace())]
        beyond = [c for c in letters if not c.isascii() and c not in TYPOGRAPHY]
        if not beyond:
            strange += bool(MISPLACED.search(word))
            marked += bool(MISPLACED.search(word))
            continue
        marked += 1
        foreign += len(beyond) >= 3 and len(beyond) > 0.6 * len(letters)
        strange += bool(MISPLACED.search(word))
    return bool(marked) and (foreign > 0.3 * marked or strange > 0.3 * marked)


def _remedy(name: str, raw: bytes) -> str:
    """Say how to name the encoding, with the likely one as an example."""
    likely = likely_encoding(raw)
    example = likely or "gb18030"
    start = ""
    if likely:
        words = raw.decode(likely, errors="replace").split()
        beyond = [word for word in words if not word.isascii()][:3]
        start = f" It may be {likely}, which reads {' '.join(beyond)[:40]!r}."
    return (
        f"Save the file as UTF-8, or name its encoding:{start} "
        f"`load_faqs(path, encoding={example!r})`, COURSE_ENCODING={example} for the "
        f"notebooks, `python -m utils.dataset check {name} --encoding {example}`."
    )


def likely_encoding(raw: bytes) -> str | None:
    """Return Python's name of the encoding that the bytes may be in, or None."""
    from charset_normalizer import from_bytes

    sample = raw[:SAMPLE_BYTES]
    guesses = [match.encoding for match in from_bytes(sample)]
    east = [g for g in guesses if not g.startswith(("mac_", "cp85", "cp43", "cp125"))]
    try:
        salad = is_letter_salad(sample.decode("cp1252", errors="replace"))
    except UnicodeDecodeError:
        salad = True
    if salad and not east and "cp1251" not in guesses[:1]:
        for encoding in LIKELY_ENCODINGS:
            text = sample.decode(encoding, errors="replace")
            if not is_letter_salad(text) and not _has_symbols(text):
                return encoding
    return guesses[0] if guesses else None


def _has_symbols(text: str) -> bool:
    """Whether signs stand directly beside letters, as a wrong encoding leaves them."""
    beside = re.findall(r"(?<=[a-z])[^\x00-\x7f](?=[a-z])", text)
    signs = [c for c in beside if not c.isalpha() and c not in "’‘–—·\u00ad"]
    names = [unicodedata.name(c, "") for c in beside]
    capitals = [n for n in names if "CAPITAL" in n]
    return len(signs) + len(capitals) > 0.1 * max(len(beside), 1)
