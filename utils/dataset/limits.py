"""Rows that are longer than a model takes: notes are cut, and what goes is named.

A row that lost its answer has nothing to teach, and one that lost its end teaches the
model not to stop. So an answer is never cut: only the notes that a row brings are, at
their end, and a row that is too long even so is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from utils.dataset.faqs import Faqs
from utils.dataset.table import DataError, rows_text
from utils.helpers import context_of
from utils.templates import Template, TemplateError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Row = dict[str, Any]
TEXTS = ("instruction", "response", "context")
REMEDY = "or raise max_length (utils/models.py)"


def within_limit(
    parts: DatasetDict,
    template: Template,
    max_length: int,
    faqs: Faqs | None = None,
    say: Callable[[str], Any] = print,
) -> DatasetDict:
    """Return the parts with no row over the limit, and say what that has cost.

    First used in lesson 03, section 8.

    Args:
        parts: rows as `add_text` and `preprocess_batch` of the template make them.
        template: that they were made with.
        max_length: most tokens of a row, prompt and answer together.
        faqs: the file that they come from, whose row numbers are named; without it, a
            row is named by its place in its part, counted from 0.
        say: gets a sentence for rows whose notes were cut, and one for rows that were
            left out; none where all rows fit.

    Raises:
        DataError: if nothing is left of a part.
    """
    from datasets import DatasetDict

    numbers = {} if faqs is None else _numbers(faqs)
    kept = {
        name: _fitting(name, part, template, max_length, numbers, say)
        for name, part in parts.items()
    }
    return DatasetDict(kept)


def _fitting(
    name: str,
    part: Dataset,
    template: Template,
    max_length: int,
    numbers: Mapping[tuple[str, ...], int],
    say: Callable[[str], Any],
) -> Dataset:
    """Return a part without rows over the limit, and say which were cut or went."""
    sizes = [len(ids) for ids in part["input_ids"]]
    if max(sizes, default=0) <= max_length:
        return part
    rows: list[Row] = []
    cut: list[int | None] = []
    gone: list[int | None] = []
    for place, (row, size) in enumerate(zip(part.to_list(), sizes, strict=True)):
        number = _number(row, numbers) if numbers else place
        fitted = row if size <= max_length else _fitted(row, template, max_length)
        if fitted is None:
            gone.append(number)
            continue
        if fitted is not row:
            cut.append(number)
        rows.append(fitted)
    counted = "" if numbers else ", counted from 0"
    if cut:
        say(
            f"Notes were cut at their end to fit {max_length} tokens: {_named(cut)} "
            f"({name}{counted}). Where the answer stood in what was cut, the model "
            f"learns to guess: shorten the notes, {REMEDY}."
        )
    if gone:
        sentence = (
            f"Left out, because question and answer alone are longer than {max_length} "
            f"tokens: {_named(gone)} ({name}{counted}). Shorten them, {REMEDY}."
        )
        if not rows:
            raise DataError(f"Nothing is left of {name}. {sentence}")
        say(sentence)
    return type(part).from_list(rows, features=part.features)


def _fitted(row: Row, template: Template, max_length: int) -> Row | None:
    """Return a row with shorter notes, made anew; None where that does not help."""
    if not context_of(row):
        return None
    try:
        made = template.add_text(template.fit(row, max_length))
        batch = {name: [value] for name, value in made.items()}
        ids = template.preprocess_batch(batch, max_length, "drop")
    except TemplateError:
        return None
    if not ids["input_ids"]:
        return None
    return {**made, **{name: values[0] for name, values in ids.items()}}


def _numbers(faqs: Faqs) -> dict[tuple[str, ...], int]:
    """Return the row number in the file of each question with answer, and with notes.

    Rows get their notes from a search as well, so that each is known without them, too.
    """
    frame = faqs.frame
    numbers: dict[tuple[str, ...], int] = {}
    for number, row in zip(frame.index, frame.to_dict("records"), strict=True):
        for names in (TEXTS, TEXTS[:2]):
            numbers.setdefault(_key(row, names), int(number))
    return numbers


def _number(row: Row, numbers: Mapping[tuple[str, ...], int]) -> int | None:
    """Return a row's number in the file; None for one from elsewhere."""
    known = numbers.get(_key(row, TEXTS))
    return numbers.get(_key(row, TEXTS[:2])) if known is None else known


def _key(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(row.get(name) or "") for name in names)


def _named(rows: list[int | None]) -> str:
    """Name rows by their numbers, and count those that are not of the file."""
    known = [number for number in rows if number is not None]
    others = len(rows) - len(known)
    parts = [rows_text(known)] if known else []
    if others:
        parts.append(f"{others} row{'s' * (others > 1)} from elsewhere")
    return " and ".join(parts)
