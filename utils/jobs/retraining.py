"""What a version is trained on next: old rows, and what came since, checked.

It is decided by rules, so that a pipeline can do so at night. New rows join the old
ones only if nothing speaks against them, and whatever is left out is named with its
reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.course import CourseError
from utils.dataset.leftovers import NO_ANSWER, SPREADSHEET_ERRORS
from utils.dataset.meaning import (
    ASKS,
    DIRECTIONS,
    NEGATIONS,
    content_words,
    differing_answers,
)
from utils.dataset.personal import emails, keys, phone_numbers
from utils.dataset.table import question_key
from utils.jobs.source import json_lines

if TYPE_CHECKING:
    import pandas

    from utils.templates import Template

OLD, NEW, FEEDBACK = "old", "new", "feedback"
NO_TEXT, PERSONAL, IN_TEST = "no text", "personal data", "in the test set"
DUPLICATE, VOTED_DOWN = "duplicate", "voted down"
CONTRADICTION, OTHER_ANSWER = "contradiction", "another answer"
SHOWN = 60  # characters of a text in a reason


class RetrainingError(CourseError, ValueError):
    """Rows of which none is new; the message says what was left out, and why."""


@dataclass(frozen=True)
class LeftOut:
    """A row that is not trained on.

    Attributes:
        question: as it was given; "" if it was not kept.
        origin: "old", "new" or "feedback".
        kind: of the reason, one of a few, to be counted.
        reason: in words; it repeats no personal data.
    """

    question: str
    origin: str
    kind: str
    reason: str


@dataclass(frozen=True)
class CheckedSet:
    """Rows to train the next version on.

    Attributes:
        rows: with `instruction` and `response` and what else they brought.
        added: how many of them the live version was not trained on.
        replaced: how many old answers a new one took the place of.
        left_out: every row that was given and is not among them.
    """

    rows: list[dict[str, Any]]
    added: int
    replaced: int
    left_out: list[LeftOut] = field(repr=False)

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many rows were left out, by origin and kind of the reason."""
        return dict(Counter((one.origin, one.kind) for one in self.left_out))

    def table(self) -> pandas.DataFrame:
        """Return what was left out: a row for each origin and kind, with an example."""
        import pandas

        examples = {(one.origin, one.kind): one for one in reversed(self.left_out)}
        return pandas.DataFrame(
            [
                {
                    "from": origin,
                    "left out": kind,
                    "rows": count,
                    "example": examples[origin, kind].question,
                    "reason": examples[origin, kind].reason,
                }
                for (origin, kind), count in self.counts.items()
            ],
            columns=["from", "left out", "rows", "example", "reason"],
        )

    def lines(self, template: Template) -> bytes:
        """Return the rows as JSON Lines, as `train_lora.py` reads them.

        The same rows give the same bytes, and so the same digest.

        Args:
            template: in which the model is asked.
        """
        texts = (template.add_text(row) for row in self.rows)
        return json_lines(
            {key: text[key] for key in ("prompt", "completion")} for text in texts
        )

    def __str__(self) -> str:
        out = ", ".join(
            f"{count} {origin}: {kind}" for (origin, kind), count in self.counts.items()
        )
        return (
            f"{len(self.rows)} rows, {self.added} of them new, {self.replaced} answers "
            f"replaced; left out: {out or 'none'}"
        )


def checked_set(
    old: Sequence[Mapping[str, Any]],
    new: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    feedback: Sequence[Mapping[str, Any]] = (),
    replaces: Collection[str] = (),
) -> CheckedSet:
    """Merge new rows and feedback with the old rows, and leave out what must not train.

    Left out are, of all rows, those whose question is in the test set: the comparison
    would be decided by them. Of new ones and of feedback, in this order: rows without
    a text; rows with an e-mail address, a telephone number or a key; duplicates; and
    rows with another answer than an old or an earlier row has to the same question.
    Such an answer is called a contradiction where a rule sees that both cannot be right
    (`utils.dataset.meaning.differing_answers`). Which of the two is right, no rule
    knows: a person reads both and names the question in `replaces`. Of two new answers
    that differ, both go.

    A question is the same if its key is (`utils.dataset.table.question_key`), or if its
    words of content are, in their order (`utils.dataset.meaning.content_words`). An
    answer is the same if it has the same words of content.

    First used in lesson 08, section 7.

    Args:
        old: what the live version was trained on: `instruction` and `response`.
        new: rows that came since.
        test: the questions that versions are compared on, with `instruction`.
        feedback: items of lesson 07's table of answers, with `question`, `answer` and
            `thumb`. A thumb up makes a row of question and answer. A thumb down makes
            one if a person added a `correction`, and no other.
        replaces: questions to which the new answer is right and the old one wrong.

    Raises:
        RetrainingError: if no new row is left, or none at all.
    """
    left_out: list[LeftOut] = []
    asked, kept = _Questions(test), _Questions(())
    for row in old:
        if asked.find(row) is not None:
            left_out.append(_out(row, OLD, IN_TEST, "the test set asks it"))
        else:
            kept.add(dict(row))
    before = len(kept.rows)
    wanted = _Questions([{"instruction": question} for question in replaces])
    replaced: set[int] = set()
    origins: dict[int, str] = {}
    disputed = _Questions(())
    for row, origin in _arrived(new, feedback, left_out):
        if reason := _unfit(row):
            left_out.append(_out(row, origin, *reason))
            continue
        if asked.find(row) is not None:
            left_out.append(_out(row, origin, IN_TEST, "the test set asks it"))
            continue
        place = kept.find(row)
        if place is None and disputed.find(row) is None:
            origins[len(kept.rows)] = origin
            kept.add(dict(row))
            continue
        is_old = place is not None and place < before
        known = disputed.first(row) if place is None else kept.rows[place]
        kind = _how_answers_differ(known, row)
        if kind is None:
            left_out.append(_out(row, origin, DUPLICATE, "it is there already"))
        elif is_old and place not in replaced and wanted.find(row) is not None:
            kept.rows[place] = dict(row)
            replaced.add(place)
        else:
            out = _out(row, origin, kind, _other_answer(known, is_old))
            left_out.append(out)
            if place is not None and not is_old:  # neither of two new ones
                out = _out(known, origins[place], kind, _other_answer(row, False))
                left_out.append(out)
                disputed.add(known)
                kept.rows[place] = None
    rows = [row for row in kept.rows if row is not None]
    added = sum(row is not None for row in kept.rows[before:])
    result = CheckedSet(rows, added, len(replaced), left_out)
    if not added and not replaced:
        raise RetrainingError(
            f"There is nothing new to train on. Of {len(new) + len(feedback)} rows "
            f"that came none is left: {result}. Look at what was left out, and collect "
            "more."
        )
    return result


def _arrived(
    new: Sequence[Mapping[str, Any]],
    feedback: Sequence[Mapping[str, Any]],
    left_out: list[LeftOut],
) -> Iterable[tuple[dict[str, Any], str]]:
    """Yield the rows that came since, with their origin."""
    for row in new:
        yield dict(row), NEW
    for item in feedback:
        thumb, correction = item.get("thumb"), str(item.get("correction") or "").strip()
        row = {"instruction": item.get("question") or "", "response": correction}
        if thumb == "up" and not correction:
            row["response"] = item.get("answer") or ""
        elif not correction:
            what = "without a correction" if thumb else "without a vote"
            left_out.append(_out(row, FEEDBACK, VOTED_DOWN if thumb else NO_TEXT, what))
            continue
        yield row, FEEDBACK


def _unfit(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return why a row cannot be trained on by itself: kind and reason."""
    for name in ("instruction", "response"):
        text = str(row.get(name) or "").strip()
        if not text:
            return NO_TEXT, f"{name} is empty"
        if text.casefold() in NO_ANSWER or text in SPREADSHEET_ERRORS:
            return NO_TEXT, f"{name} is {_short(text)!r}"
        found = {
            "an e-mail address": emails(text),
            "a telephone number": phone_numbers(text),
        }
        kinds = [kind for kind, places in found.items() if places] + keys(text)
        if kinds:
            return PERSONAL, f"{name} holds {' and '.join(kinds)}"
    return None


def _how_answers_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the kind of the difference; None if they say the same."""
    first, second = str(one["response"]), str(other["response"])
    if question_key(first) == question_key(second):
        return None
    if differing_answers(first, second, 0.0):
        return CONTRADICTION
    words, others = set(content_words(first)), set(content_words(second))
    return None if words and words == others else OTHER_ANSWER


def _other_answer(row: Mapping[str, Any], is_old: bool) -> str:
    who = "the old row" if is_old else "another new row"
    return f"{who} answers {_short(row['response'])!r}: a person has to choose"


class _Questions:
    """Rows that are found by what they ask."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        self.rows: list[Any] = []  # None for one that was removed
        self._places: dict[Hashable, list[int]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        for key in _keys(row):
            self._places.setdefault(key, []).append(len(self.rows))
        self.rows.append(row)

    def find(self, row: Mapping[str, Any]) -> int | None:
        """Return the place of the first row that asks the same."""
        places = [place for key in _keys(row) for place in self._places.get(key, [])]
        there = [place for place in places if self.rows[place] is not None]
        return min(there, default=None)

    def first(self, row: Mapping[str, Any]) -> Any:
        return self.rows[self.find(row)]


def _keys(row: Mapping[str, Any]) -> list[Hashable]:
    """Return by what a question is found: its key, and its words of content."""
    question = str(row.get("instruction") or "")
    words = content_words(question)
    # These are no words of content, and turn a question round.
    turns = (
        bool(NEGATIONS.search(question)),
        (ASKS.match(question.casefold()) or [None, None])[1],
        tuple(word for word in question.casefold().split() if word in DIRECTIONS),
    )
    more = [(words, turns)] if words else []
    return [question_key(question), *more]


def _out(row: Mapping[str, Any], origin: str, kind: str, reason: str) -> LeftOut:
    question = "" if kind == PERSONAL else str(row.get("instruction") or "")
    return LeftOut(question, origin, kind, reason)


def _short(text: Any) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
