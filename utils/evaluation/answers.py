"""Whether an answer in free words is right: one judge for every lesson.

Each row is judged by the best thing it has:

1. *by fact*, if it names a fact of the course's table (the lab model's questions): the
   answer states the fact's value and no other of its relation;
2. *by rule*, if it says what a right answer must say and must not say: the columns
   `must_say`, of whose strings one must be stated, and `must_not_say`, of whose strings
   none may be, separated by " | ";
3. *by likeness* to the answers of the file, where there is nothing but text.

Numbers in words, units and negations are read by `statements`. Likeness cannot see a
negation, another number or another day of the week (to an encoder "28 days" and "5
days" are nearly the same), so these must agree as well. How often each is right is
measured on answers labelled by hand, in data/judged_answers.csv.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.course import CourseError
from utils.dataset.facts import get_fact, known_fact, stated_values
from utils.encoder import Encoder, load_encoder
from utils.evaluation.statements import (
    AFFIRMED,
    DENIED,
    PAST,
    Mention,
    Word,
    mentions,
    occurrences,
    phrase_words,
    stances,
    units_of,
    words,
)

SEPARATOR = "|"
GROUP_COLUMNS = ("fact", "group", "group_id", "cluster")
"""Columns that say which rows are about one thing, the first one that is there."""
FALSE_ALARMS = 0.05
"""Share of the answers to other questions that the threshold may let pass."""
THRESHOLDS = (0.5, 0.8)
"""Bounds of the threshold, whatever the file's answers are like."""
MOST_COMPARED = 300
"""Of a large file, so many answers are enough to learn the threshold from."""
FEW = 10
"""With fewer answers to compare, the threshold is the middle of its bounds."""
DAYS = "monday tuesday wednesday thursday friday saturday sunday"
MONTHS = "january february april june july august september october november december"
ONE_OF = tuple(
    frozenset(names.split())
    for names in (DAYS, MONTHS, "am pm", "north east south west")
)
"""Words of which one takes the other's place, without those that are verbs as well."""


class JudgeError(CourseError, ValueError):
    """Rows or answers that cannot be judged; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one answer.

    Attributes:
        right: whether it is right.
        reason: why, in a few words.
        by: "fact", "rule" or "likeness".
        cut_off: whether the answer had reached its budget of tokens. One that has
            stated the right value by then is right.
    """

    right: bool
    reason: str
    by: str
    cut_off: bool = False

    def __bool__(self) -> bool:
        """Return whether the answer is right, so that verdicts can be counted."""
        return self.right

    def __float__(self) -> float:
        """Return 1 for a right answer and 0 for a wrong one."""
        return float(self.right)


class Judge:
    """Judges answers to rows; `judge_for` makes one.

    Attributes:
        threshold: from which likeness on an answer can be right; None if no row
            needs it.
        notes: a sentence for each row that nobody can answer; see `check_rules`.
    """

    def __init__(
        self,
        references: Sequence[Mapping[str, Any]],
        encoder: Encoder | None,
        likeness_needed: bool,
        notes: Sequence[str] = (),
    ) -> None:
        """Learn the threshold of likeness from the file's own answers, if needed."""
        self.notes = list(notes)
        self._encoder = encoder
        self._known: dict[str, list[str]] = defaultdict(list)
        for row in references:
            key, answer = _group(row), str(row["response"])
            if answer not in self._known[key]:
                self._known[key].append(answer)
        self.threshold: float | None = None
        self._calibration = ""
        if likeness_needed:
            self.threshold, self._calibration = self._calibrate(references)

    def verdicts(
        self,
        answers: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        finished: Sequence[bool] | None = None,
    ) -> list[Verdict]:
        """Judge one answer a row.

        Args:
            answers: what a model said.
            rows: the questions, with `response` and the columns to judge by.
            finished: whether each answer came to its end by itself; None if unknown.

        Raises:
            JudgeError: if there are not as many of each.
        """
        if len(answers) != len(rows) or (
            finished is not None and len(finished) != len(rows)
        ):
            ends = "" if finished is None else f" and {len(finished)} ends"
            raise JudgeError(
                f"{len(answers)} answers{ends} for {len(rows)} questions: give as many "
                "of each, in the same order."
            )
        found: list[Verdict | None] = []
        alike: list[int] = []
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            way = way_of(row)
            if not any(map(str.isalnum, answer)):
                found.append(Verdict(False, "empty", way))
            elif way == "fact":
                found.append(_by_fact(answer, row))
            elif way == "rule":
                found.append(_by_rule(answer, row))
            else:
                found.append(None)
                alike.append(number)
        judged = self._by_likeness(
            [answers[i] for i in alike], [rows[i] for i in alike]
        )
        for number, verdict in zip(alike, judged, strict=True):
            found[number] = verdict
        ended = [True] * len(rows) if finished is None else finished
        return [
            verdict if end else _cut_off(verdict)
            for verdict, end in zip(found, ended, strict=True)
        ]

    def right(
        self,
        answers: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        finished: Sequence[bool] | None = None,
    ) -> list[bool]:
        """Return only whether each answer is right; see `verdicts`."""
        return [verdict.right for verdict in self.verdicts(answers, rows, finished)]

    def describe(self) -> str:
        """Say in a sentence or two how this judge decides."""
        text = (
            "An answer is right if it states the value of its row's fact or one of "
            "must_say, and no other value or nothing of must_not_say."
        )
        if self.threshold is None:
            return text
        return (
            f"{text} A row without them: if it is at least {self.threshold:.2f} like "
            "the expected answer (mean of the cosine of MiniLM's vectors and of token "
            "F1), and numbers and negations agree. "
            f"{self._calibration}"
        )

    # --- likeness ---

    def _by_likeness(
        self, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[Verdict]:
        """Compare answers with all that the file holds on the same thing."""
        if not rows:
            return []
        if self.threshold is None:
            raise JudgeError(
                "This judge was made for rows that a rule can judge, and row "
                f"{dict(rows[0])!r:.80} has none: make it with judge_for(all rows)."
            )
        pairs = []
        for answer, row in zip(answers, rows, strict=True):
            known = self._known.get(_group(row), [])
            for expected in dict.fromkeys([str(row["response"]), *known]):
                pairs.append((_question(row), answer, expected))
        likeness = iter(self._likeness(pairs))
        compared: dict[int, list[tuple[float, str]]] = defaultdict(list)
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            known = self._known.get(_group(row), [])
            for expected in dict.fromkeys([str(row["response"]), *known]):
                objection = _objection(_question(row), answer, expected)
                compared[number].append((next(likeness), objection))
        return [self._compared(compared[number]) for number in range(len(rows))]

    def _compared(self, found: Sequence[tuple[float, str]]) -> Verdict:
        """Decide by the expected answer that is most in favour of what was said."""
        score, objection = max(found, key=lambda one: (not one[1], one[0]))
        if score < self.threshold:
            reason = f"unlike ({score:.2f} < {self.threshold:.2f})"
            return Verdict(False, reason, "likeness")
        if objection:
            return Verdict(False, objection, "likeness")
        return Verdict(True, f"alike ({score:.2f})", "likeness")

    def _likeness(self, triples: Sequence[tuple[str, str, str]]) -> list[float]:
        """Return how alike two answers to a question are, at most 1.

        The mean of two numbers: the cosine of the vectors of question and answer
        together, as short answers ("28 days.") mean nothing alone; and the token F1 of
        the words that are not in the question, as these are what was asked for.

        Args:
            triples: question, answer and expected answer.
        """
        if self._encoder is None:
            self._encoder = load_encoder()
        texts = sorted(
            {f"{q} {text}" for q, *both in triples for text in both}, key=len
        )
        place = {text: number for number, text in enumerate(texts)}
        vectors = self._encoder.embed(texts)
        scores = []
        for question, answer, expected in triples:
            one, other = place[f"{question} {answer}"], place[f"{question} {expected}"]
            cosine = float(vectors[one] @ vectors[other])
            scores.append((cosine + news_f1(question, answer, expected)) / 2)
        return scores

    def _calibrate(self, references: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
        """Find the threshold that tells the file's paraphrases from its other answers.

        Returns:
            The threshold, and a sentence on how it was found.
        """
        low, high = THRESHOLDS
        groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for row in references:
            pair = (_question(row), str(row["response"]))
            if pair[1] not in {answer for _, answer in groups[_group(row)]}:
                groups[_group(row)].append(pair)
        names = evenly_spaced(list(groups), MOST_COMPARED)
        if len(names) < FEW:
            middle = (low + high) / 2
            return middle, (
                f"The threshold is a guess: {len(names)} different answers are too few "
                "to learn it from."
            )
        if self._encoder is None:
            self._encoder = load_encoder()
        firsts = [groups[name][0] for name in names]
        vectors = self._encoder.embed([f"{q} {answer}" for q, answer in firsts])
        alike = vectors @ vectors.T
        np.fill_diagonal(alike, -1)
        nearest = alike.argmax(axis=1)
        others = self._likeness(
            [(firsts[i][0], firsts[j][1], firsts[i][1]) for i, j in enumerate(nearest)]
        )
        same = [
            (group[0][0], answer, group[0][1])
            for group in (groups[name] for name in names)
            for _, answer in group[1:]
        ]
        if len(same) >= FEW:
            paraphrases = np.array(self._likeness(same))
            threshold = _between(paraphrases, np.array(others))
            threshold = float(np.clip(threshold, low, high))
            missed = float(np.mean(paraphrases < threshold))
            passed = float(np.mean(np.array(others) >= threshold))
            return threshold, (
                f"Learned from {len(same)} paraphrases of the file, of which it misses "
                f"{missed:.0%}, and the nearest of {len(names)} other answers, of "
                f"which it lets {passed:.0%} pass."
            )
        threshold = float(np.quantile(others, 1 - FALSE_ALARMS))
        threshold = float(np.clip(threshold, low, high))
        passed = float(np.mean(np.array(others) >= threshold))
        return threshold, (
            "The file words each answer once, so the threshold was learned from the "
            f"nearest of {len(names)} other answers alone, of which it lets "
            f"{passed:.0%} pass."
        )


def judge_for(
    rows: Sequence[Mapping[str, Any]],
    reference_rows: Sequence[Mapping[str, Any]] | None = None,
    encoder: Encoder | None = None,
) -> Judge:
    """Make the judge for answers to these rows.

    First used in lesson 02, section 3.

    Args:
        rows: that will be judged, with `instruction`, `response` and what there is of
            `fact`, `must_say`, `must_not_say` and `group`.
        reference_rows: rows whose answers are known, usually the training rows: they
            say how unlike paraphrases of this file are, and give further right
            answers on the same thing. None for `rows` themselves.
        encoder: for rows that only likeness can judge; None to load it if needed.

    Raises:
        EncoderError: if an encoder is needed and not installed.
    """
    rows = list(rows)
    references = rows if reference_rows is None else [*reference_rows, *rows]
    alike = any(way_of(row) == "likeness" for row in rows)
    return Judge(references, encoder, alike, check_rules(rows))


def way_of(row: Mapping[str, Any]) -> str:
    """Return what a row is judged by: "fact", "rule" or "likeness"."""
    if known_fact(row.get("fact")):
        return "fact"
    return "rule" if phrases(row.get("must_say")) else "likeness"


def phrases(cell: Any) -> list[str]:
    """Return the strings of a cell of `must_say` or `must_not_say`.

    First and last white space does not count; an empty cell has none.
    """
    if not isinstance(cell, str):  # None, or NaN as pandas has it
        return []
    return [part.strip() for part in cell.split(SEPARATOR) if phrase_words(part)]


def check_rules(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each row whose own answer is wrong by its own rule.

    Such a row cannot be answered right: its answer, its `must_say` or its
    `must_not_say` needs a correction.
    """
    found = []
    for number, row in enumerate(rows):
        if way_of(row) == "rule" and not (verdict := _by_rule(row["response"], row)):
            found.append(
                f"Row {number} ({str(row['instruction'])[:60]!r}): its own answer "
                f"{str(row['response'])[:80]!r} {verdict.reason}. Correct the answer, "
                "or must_say and must_not_say."
            )
    return found


# --- by fact and by rule ---


def _by_fact(answer: str, row: Mapping[str, Any]) -> Verdict:
    """Judge by the course's table: the fact's value, and no other of its relation."""
    fact = get_fact(row["fact"])
    stated = stated_values(answer, fact.relation)
    others = sorted(stated - {fact.value})
    if others:
        return Verdict(False, f"states another value: {others[0]!r}", "fact")
    if not stated:
        return Verdict(False, f"does not state {fact.value!r}", "fact")
    return Verdict(True, f"states {fact.value!r}", "fact")


def _by_rule(answer: str, row: Mapping[str, Any]) -> Verdict:
    """Judge by what must be stated, and what must not be."""
    text = words(answer)
    units = units_of(str(row["response"]))
    wanted = phrases(row.get("must_say"))
    stated, denied = [], []
    for phrase in wanted:
        for mention in mentions(phrase, text, units):
            if mention.stance in (AFFIRMED, PAST):
                stated.append((phrase, mention))
            elif mention.stance == DENIED:
                denied.append(phrase)
    spans = [mention for _, mention in stated]
    for phrase in phrases(row.get("must_not_say")):
        for mention in mentions(phrase, text, units):
            # "5 days" inside a right "5 days and 2 hours" is no other value.
            inside = any(_holds(span, mention) for span in spans)
            if mention.stance == AFFIRMED and not inside:
                return Verdict(False, f"states another value: {phrase!r}", "rule")
    if stated:
        return Verdict(True, f"states {stated[0][0]!r}", "rule")
    if denied:
        return Verdict(False, f"negates {denied[0]!r}", "rule")
    return Verdict(False, f"does not state {wanted[0]!r}", "rule")


def _holds(outer: Mention, inner: Mention) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _cut_off(verdict: Verdict) -> Verdict:
    """Mark an answer that had reached its budget before it came to its end."""
    if verdict.right:
        return replace(verdict, cut_off=True)
    return replace(verdict, cut_off=True, reason=f"cut off; {verdict.reason}")


# --- by likeness ---

SAYS_NOTHING = (
    "is are was be been it you they we to of in on at for and or by with that this can "
    "may will would doe do did has have had as from your their there most up"
)
COMMON = frozenset(SAYS_NOTHING.split())
"""Left out of token F1, as `statements.words` spells them. "No" and "not" are not."""


def news(question: str, answer: str) -> list[str]:
    """Return the words of an answer that its question does not have, nor all texts.

    Signs, decimals and names such as "C++" survive; see `statements.words`.
    """
    asked = {word.key for word in words(question)} | COMMON
    return [word.key for word in words(answer) if word.key and word.key not in asked]


def news_f1(question: str, answer: str, expected: str) -> float:
    """Return the token F1 of what two answers add to their question."""
    found, wanted = Counter(news(question, answer)), Counter(news(question, expected))
    if not wanted:  # the expected answer only repeats the question
        found, wanted = (
            Counter(word.key for word in words(text) if word.key)
            for text in (answer, expected)
        )
    shared = sum((found & wanted).values())
    return 2 * shared / (sum(found.values()) + sum(wanted.values())) if shared else 0.0


def _objection(question: str, answer: str, expected: str) -> str:
    """Return what likeness cannot see: another number or day, or a negation; or ""."""
    text, other = words(answer), words(expected)
    known = [word for word in (*words(question), *other) if word.is_number]
    for place, word in enumerate(text):
        if word.is_number and not _stated(word, known):
            (stance,) = stances(text, [(place, place + 1)])
            if stance == AFFIRMED:
                return f"states another number: {word.text or word.key}"
    for kind in ONE_OF:
        said, wanted, asked = (
            kind & _named(some) for some in (text, other, words(question))
        )
        if said and wanted and not said & (wanted | asked):
            return f"states {min(said)}, not {min(wanted)}"
    for key in sorted(set(news(question, answer)) & set(news(question, expected))):
        if _denies(text, key) != _denies(other, key):
            return f"negates {key!r}, or the expected answer does"
    return ""


def _named(text: Sequence[Word]) -> set[str]:
    """Return the words of a text; "am" and "pm" only behind a number."""
    return {
        word.key
        for place, word in enumerate(text)
        if word.key not in ("am", "pm") or (place and text[place - 1].is_number)
    }


def _stated(word: Word, known: Sequence[Word]) -> bool:
    """Whether a number is among the known ones; one of both may lack its unit."""
    if word.key in {"1", *(one.key for one in known)}:  # "one" is mostly no number
        return True
    if word.text:
        return word.text.split()[0] in {one.key for one in known if not one.text}
    return word.key in {one.text.split()[0] for one in known if one.text}


def _denies(text: Sequence[Word], key: str) -> bool:
    """Whether a text denies a word wherever it has it."""
    return all(s == DENIED for s in stances(text, occurrences((Word(key),), text)))


def _between(right: np.ndarray, wrong: np.ndarray) -> float:
    """Return the threshold with the best mean of both shares, right and wrong."""
    candidates = np.unique(np.concatenate([right, wrong]))
    middles = (candidates[1:] + candidates[:-1]) / 2
    shares = [np.mean(right >= t) + np.mean(wrong < t) for t in middles]
    return float(middles[int(np.argmax(shares))])


def _group(row: Mapping[str, Any]) -> str:
    """Return what a row is about: its group, or its answer where none is named."""
    for column in GROUP_COLUMNS:
        value = row.get(column)
        if isinstance(value, str | int) and str(value).strip():
            return f"{column} {value}"
    return f"answer {row['response']}"


def _question(row: Mapping[str, Any]) -> str:
    return str(row.get("instruction") or "")


def groups_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what each row is about, for intervals that keep together what belongs so.

    Rows without a column of `GROUP_COLUMNS` are grouped by equal answers.

    First used in lesson 03, section 7.
    """
    return [_group(row) for row in rows]


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Take so many items at even distances."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
