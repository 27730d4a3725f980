"""What to look at in questions and answers before a model is trained on them.

Nothing is changed here. Each finding says what was found, in which rows, and what to
do; most can be meant as they are, so a person decides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import pandas

from utils.course import CourseError
from utils.dataset.faqs import Faqs
from utils.dataset.groups import (
    MOST_EMBEDDED,
    cosine,
    has_free_wordings,
    is_classes,
    like_rows,
    vectors_of,
)
from utils.dataset.languages import language_of
from utils.dataset.leftovers import leftover_notes
from utils.dataset.meaning import (
    content_words,
    differing_answers,
    needs_question,
    same_question,
)
from utils.dataset.personal import emails, keys, phone_numbers
from utils.dataset.splits import Plan, plan_split
from utils.dataset.table import DataError, rows_text
from utils.templates import Template, template_for

END_TOKENS = 3  # of the template behind an answer, about
LEAST_SCORE = 0.8  # of a language that is not the file's, from 0 to 1
FEW_TESTED = 30  # questions: the interval (Wilson) of one half is 33 to 67%
BILINGUAL = 0.25  # of the texts, from which a second language is no exception
NEAR_QUESTIONS = 0.85  # cosine from which two questions are compared word by word
MARKS = re.compile(
    r"### ?(?:Instruction|Response|Input|End|Context|Human|Assistant)\b"
    r"|<\|[\w ]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad)>"
    r"|\[(?:PAD|CLS|SEP|BOS|EOS)\]|Below is an instruction that describes a task"
)


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        kind: in a few words, such as "contradicting answers".
        sentence: what was found and what to do.
        rows: the row numbers that it is about, in the file's order.
    """

    kind: str
    sentence: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return the sentence with its rows."""
        told = not self.rows or re.search(r"\brows? \d", self.sentence)
        where = "" if told else f": {rows_text(self.rows)}"
        return f"{self.sentence.rstrip('.')}{where}."


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        rows: how many pairs there are.
        parts: part → how many rows the split gives it; empty if it cannot be split.
        notes: what was repaired, and how the file is split.
        findings: what to look at, the gravest first.
    """

    rows: int
    parts: dict[str, int]
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    @property
    def exit_code(self) -> int:
        """0 if there is nothing to look at, else 1."""
        return int(bool(self.findings))

    def _lines(self) -> list[tuple[str, list[str]]]:
        sizes = ", ".join(f"{name} {count}" for name, count in self.parts.items())
        split = [f"The split: {sizes}."] if sizes else []
        tested = self.parts.get("test", 0)
        if 0 < tested < FEW_TESTED:
            split.append(
                f"Few questions to test with ({tested}): each one moves the share of "
                f"right answers by {1 / tested:.0%}. Some hundred rows make a result "
                "that can be trusted."
            )
        told = [f"{finding.kind}: {finding}" for finding in self.findings]
        return [
            ("As it was read", [*self.notes, *split]),
            ("To look at", told or ["Nothing."]),
        ]

    def _title(self) -> str:
        pairs = "pair" if self.rows == 1 else "pairs"
        count = len(self.findings)
        things = "thing" if count == 1 else "things"
        return (
            f"{self.rows} {pairs} of question and answer, {count} {things} to look at"
        )

    def __str__(self) -> str:
        """Return the report as plain text."""
        lines = [self._title()]
        for heading, told in self._lines():
            lines += ["", heading, *(f"  - {line}" for line in told)]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        lines = [f"**{self._title()}**"]
        for heading, told in self._lines():
            lines += ["", f"*{heading}*", "", *(f"- {_escaped(line)}" for line in told)]
        return "\n".join(lines)


def _escaped(text: str) -> str:
    """Keep marks such as <|im_end|> from being taken for HTML or a table."""
    return text.replace("<", "&lt;").replace("|", "&#124;")


def check(
    faqs: Faqs,
    template: Template | None = None,
    max_length: int | None = None,
    encoder: Any = None,
) -> Report:
    """Look for what spoils training, with the rows it is in.

    First used in lesson 03, section 2.

    Args:
        faqs: what `load_faqs` returns.
        template: of the model that is to be tuned; without it and a limit, no row is
            called too long.
        max_length: most tokens of a row, question, answer and template together.
        encoder: compares texts by meaning; MiniLM by default, and letters in its place
            where there are too many rows for it.

    Raises:
        EncoderError: if the encoder is not installed.
    """
    frame = faqs.frame
    leftovers = leftover_notes(frame)
    notes = [note for note in faqs.notes if note not in leftovers]
    plan: Plan | None = None
    findings: list[Finding] = []
    if encoder is None and len(frame) <= MOST_EMBEDDED:
        from utils.encoder import load_encoder

        encoder = load_encoder()
    encoder = _Remembering(encoder) if encoder else None
    try:
        plan = plan_split(faqs, encoder=encoder)
        notes += plan.notes
    except DataError as error:
        findings.append(Finding("too few rows", str(error)))
    findings += _secrets(frame)
    findings += _contradictions(faqs, encoder)
    findings += _leaks(frame, plan, encoder)
    findings += _marks(frame)
    findings += _needs_question(frame)
    findings += _lengths(frame, template, max_length)
    findings += _languages(frame)
    findings += [Finding("leftovers", note) for note in leftovers]
    parts = Counter(plan.parts) if plan else Counter()
    sizes = {name or "unused": count for name, count in parts.items()}
    return Report(len(frame), sizes, notes, findings)


class _Remembering:
    """An encoder that embeds each text once."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._known: dict[str, numpy.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> numpy.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.embed(new), strict=True))
        return numpy.array([self._known[text] for text in texts])


def _found(
    frame: pandas.DataFrame, test: Callable[[str], Any], columns: Iterable[str]
) -> tuple[int, ...]:
    """Return the rows in which a test holds of one of the texts."""
    present = [column for column in columns if column in frame.columns]
    hit = frame[present].map(lambda text: bool(test(text))).any(axis=1)
    return tuple(frame.index[hit])


TEXTS = ("instruction", "response", "context", "system")


# --- personal data, template marks ----------------------------------------------------


def _secrets(frame: pandas.DataFrame) -> list[Finding]:
    findings = []
    kinds: dict[str, list[int]] = {}
    for row, *texts in frame[[c for c in TEXTS if c in frame]].itertuples():
        for kind in dict.fromkeys(kind for text in texts for kind in keys(text)):
            kinds.setdefault(kind, []).append(row)
    for kind, rows in kinds.items():
        findings.append(
            Finding(
                "keys",
                f"There is {kind} in the text; remove it, and revoke it where it was "
                "issued",
                tuple(rows),
            )
        )
    for kind, test in (("e-mail addresses", emails), ("phone numbers", phone_numbers)):
        if rows := _found(frame, test, TEXTS):
            findings.append(
                Finding(
                    kind,
                    f"There are {kind}, which a tuned model repeats; remove them "
                    "unless they are meant for everybody",
                    rows,
                )
            )
    return findings


def _marks(frame: pandas.DataFrame) -> list[Finding]:
    rows = _found(frame, MARKS.search, TEXTS)
    if not rows:
        return []
    first = frame.loc[[rows[0]]].iloc[0]
    mark = next(
        found[0]
        for column in TEXTS
        if column in frame.columns and (found := MARKS.search(first[column]))
    )
    return [
        Finding(
            "template marks",
            f"Marks of a template, such as {mark!r}, stand inside texts; remove them, "
            "the course writes its own",
            rows,
        )
    ]


# --- contradictions and leaks ---------------------------------------------------------


def _near_questions(
    frame: pandas.DataFrame, encoder: Any
) -> Iterable[tuple[int, int, float, float]]:
    """Yield places of rows with alike questions, and the cosines of both texts."""
    vectors = vectors_of([*frame["instruction"], *frame["response"]], encoder)
    ask, tell = vectors[: len(frame)], vectors[len(frame) :]
    pairs = set(like_rows(ask, NEAR_QUESTIONS))
    by_words: dict[frozenset[str], list[int]] = {}
    for place, text in enumerate(frame["instruction"]):
        by_words.setdefault(frozenset(content_words(text)), []).append(place)
    for places in by_words.values():
        pairs |= {(places[0], other) for other in places[1:]}
    for one, other in sorted(pairs):
        yield one, other, cosine(ask, one, other), cosine(tell, one, other)


def _contradictions(faqs: Faqs, encoder: Any) -> list[Finding]:
    frame = faqs.frame
    pairs = list(faqs.differing)
    notes = [
        frame[column] if column in frame.columns else None
        for column in ("context", "system")
    ]
    for one, other, asked, told in _near_questions(frame, encoder):
        if any(n is not None and n.iloc[one] != n.iloc[other] for n in notes):
            continue
        questions = frame["instruction"].iloc[one], frame["instruction"].iloc[other]
        answers = frame["response"].iloc[one], frame["response"].iloc[other]
        if same_question(*questions, asked) and differing_answers(*answers, told):
            pairs.append((frame.index[one], frame.index[other]))
    if not pairs:
        return []
    shown = ", ".join(f"{one} and {other}" for one, other in pairs[:5])
    more = f" and {len(pairs) - 5} more pairs" if len(pairs) > 5 else ""
    return [
        Finding(
            "contradicting answers",
            "One question has answers that differ, and the model would learn both; "
            f"choose one (rows {shown}{more})",
            tuple(sorted({row for pair in pairs for row in pair})),
        )
    ]


def _leaks(frame: pandas.DataFrame, plan: Plan | None, encoder: Any) -> list[Finding]:
    """Find questions that are trained and, nearly word by word, held out as well."""
    if plan is None or has_free_wordings(frame) or "" in plan.parts:
        return []
    rows: set[int] = set()
    for one, other, asked, _ in _near_questions(frame, encoder):
        parts = {plan.parts[one], plan.parts[other]}
        if len(parts) < 2 or "train" not in parts or "wording" in parts:
            continue
        if plan.groups[one] == plan.groups[other]:
            continue
        questions = frame["instruction"].iloc[one], frame["instruction"].iloc[other]
        contexts = frame["context"] if "context" in frame.columns else None
        if contexts is not None and contexts.iloc[one] != contexts.iloc[other]:
            continue
        if same_question(*questions, asked):
            rows |= {frame.index[one], frame.index[other]}
    if not rows:
        return []
    return [
        Finding(
            "leaks between parts",
            "The column that groups the rows parts questions that ask for the same, so "
            "a held-out one is trained; give them one group",
            tuple(sorted(rows)),
        )
    ]


# --- answers --------------------------------------------------------------------------


def _needs_question(frame: pandas.DataFrame) -> list[Finding]:
    if is_classes(list(frame["response"])):
        return []
    rows = _found(frame, needs_question, ["response"])
    if not rows:
        return []
    first = frame.loc[[rows[0]], "response"].iloc[0]
    return [
        Finding(
            "answers that need the question",
            f"Answers such as {first[:40]!r} refer to something outside of them; name "
            "it, so that the answer can be understood and judged alone",
            rows,
        )
    ]


def _lengths(
    frame: pandas.DataFrame, template: Template | None, max_length: int | None
) -> list[Finding]:
    findings = []
    if not is_classes(list(frame["response"])):
        words = frame["response"].str.split().map(len)
        no_value = ~frame["response"].str.contains(r"\d")
        cjk = frame["response"].str.contains(
            r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
        )
        short = (words <= 2) & no_value & ~cjk
        if short.any():
            findings.append(
                Finding(
                    "answers too short",
                    "Answers have one or two words; a sentence teaches more, unless "
                    "the answer is meant to be that short",
                    tuple(frame.index[short]),
                )
            )
    if template is None or max_length is None:
        return findings
    notes = frame["context"] if "context" in frame.columns else [None] * len(frame)
    pairs = zip(frame["instruction"], notes, strict=True)
    prompts = [template.prompt(question, context) for question, context in pairs]
    tokenizer = template.tokenizer
    counts = [
        [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for texts in (prompts, list(frame["response"]))
    ]
    lengths = numpy.array(counts).sum(axis=0) + END_TOKENS
    long = lengths > max_length
    if long.any():
        findings.append(
            Finding(
                "answers too long",
                f"Rows have up to {lengths.max():,} tokens with the template, and the "
                f"model's limit is {max_length:,}; shorten or split them, raise "
                "max_length in utils/models.py, or they will lose the end of their "
                "notes, and not be trained on where they have none",
                tuple(frame.index[long]),
            )
        )
    return findings


# --- languages ------------------------------------------------------------------------


def _languages(frame: pandas.DataFrame) -> list[Finding]:
    texts = [c for c in ("instruction", "response") if c in frame.columns]
    found = {column: frame[column].map(language_of) for column in texts}
    votes: Counter[str] = Counter()
    for column in texts:
        votes.update(code for code, score in found[column] if score >= 0.5)
    if not votes:
        return []
    usual = {
        code for code, count in votes.items() if count >= BILINGUAL * votes.total()
    } or {votes.most_common(1)[0][0]}
    rows: dict[str, list[int]] = {}
    for place, row in enumerate(frame.index):
        for column in texts:
            code, score = found[column].iloc[place]
            if code and code not in usual and score >= LEAST_SCORE:
                rows.setdefault(code, []).append(row)
                break
    if not rows:
        return []
    named = ", ".join(f"{code} ({len(of)})" for code, of in rows.items())
    return [
        Finding(
            "other languages",
            f"Most texts are in {' and '.join(sorted(usual))}, but some seem to be in "
            f"{named}; leave them out unless they are meant",
            tuple(sorted({row for of in rows.values() for row in of})),
        )
    ]


def template_of(model: str) -> tuple[Template | None, int | None, str]:
    """Return template and limit of a model, or a sentence why there are none.

    First used in lesson 09, section 1.

    Args:
        model: a name, hub id or folder, as COURSE_MODEL takes it.
    """
    from utils.models import load_tokenizer, settings_for

    try:
        settings = settings_for(model)
        template = template_for(settings, load_tokenizer(settings))
    except (CourseError, OSError) as error:
        reason = str(error).splitlines()[0]
        return None, None, f"The length of rows was not checked: {reason}"
    return template, settings.max_length, ""
