"""From votes on answers to pairs of a better and a worse one, for `dpo` to learn from.

A vote is a record of lesson 07's table: `question`, `answer`, `version`, `thumb` ("up"
or "down"), `request_id`, and when (`feedback_at`). Texts are there only if the service
kept them (WEB_KEEP_TEXTS=1). Who voted is not there: a `voter` that an export adds,
such as a salted hash of the reader's id, lets one voter count once.

    found = pairs(read_votes(build / "votes.jsonl"), rows, without=test_questions)
    print(found)  # and why other votes make no pair
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import CourseError, portable_name
from utils.dataset.personal import emails, keys, phone_numbers
from utils.dataset.table import question_key
from utils.helpers import DEFAULT_SEED
from utils.jobs.source import write_json_lines

if TYPE_CHECKING:
    from utils.evaluation.answers import Judge

THUMBS = ("up", "down")
MOST_OF_ONE_VOTER = 20
"""Votes of one voter that count: nobody should steer a model alone."""
Votes = Sequence[Mapping[str, Any]]


class PreferenceError(CourseError, ValueError):
    """Votes or pairs that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a question, of which one was preferred.

    Attributes:
        question: as it was asked.
        chosen: the better answer.
        rejected: the worse answer.
        origin: of the better one: "votes", or "data set" where nobody liked any.
        votes: how many stand behind the pair.
    """

    question: str
    chosen: str
    rejected: str
    origin: str
    votes: int


@dataclass(frozen=True)
class Pairs(Sequence[AnswerPair]):
    """The pairs that votes give, and why other votes give none.

    Attributes:
        found: the pairs, in the order in which the questions first came.
        votes: how many records there were.
        left_out: reason → how many records.
        voters: how many voters counted; None if no record names one.
    """

    found: list[AnswerPair]
    votes: int
    left_out: Counter[str]
    voters: int | None

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, place: Any) -> Any:
        return self.found[place]

    def __repr__(self) -> str:
        origins = Counter(pair.origin for pair in self.found)
        of = ", ".join(f"{n} with the better from the {o}" for o, n in origins.items())
        used = self.votes - self.left_out.total()
        pairs = f"{len(self)} pair{'s' * (len(self) != 1)} of {used} votes"
        lines = [pairs + (f": {of}" if of else "")]
        if self.voters is None:
            lines.append("no vote names its voter: who voted often counts often")
        else:
            lines.append(f"{self.voters} voters")
        left = self.left_out.most_common()
        lines += [f"{n:4d} left out: {reason}" for reason, n in left]
        return "\n".join(lines)


@dataclass
class _Answer:
    """An answer to a question, and the votes on it."""

    text: str
    up: int = 0
    down: int = 0

    @property
    def net(self) -> int:
        return self.up - self.down

    @property
    def given(self) -> int:
        return max(self.up, self.down)


@dataclass
class _Question:
    text: str
    answers: dict[str, _Answer] = field(default_factory=dict)


# --- votes to pairs ---


def read_votes(file: str | Path) -> list[dict[str, Any]]:
    """Read records of lesson 07's table, one JSON object a line.

    Raises:
        PreferenceError: naming the line that is none, or a file that cannot be read.
    """
    name = portable_name(Path(file))
    try:
        # Some ends of lines, as Python counts them, may stand within a JSON text.
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise PreferenceError(
            f"{name} cannot be read ({error}): lesson 07 leaves its votes in the build "
            "folder, and `write_votes` writes such a file of other records."
        ) from None
    votes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            vote = json.loads(line)
        except ValueError:
            vote = None
        if not isinstance(vote, dict) or not isinstance(vote.get("request_id"), str):
            raise PreferenceError(
                f"{name}, line {number} is no record with a request_id: {line[:60]!r}. "
                "Correct or delete it."
            )
        votes.append(vote)
    return votes


def write_votes(file: str | Path, votes: Votes) -> Path:
    """Write records that bear a vote, one JSON object a line; the others stay away.

    First used in lesson 07, section 8.

    Args:
        file: to write, whole or not at all.
        votes: such as `Records.all()` returns.
    """
    return write_json_lines(file, [vote for vote in votes if vote.get("thumb")])


def pairs(
    votes: Votes,
    references: Iterable[Mapping[str, Any]] = (),
    without: Iterable[str] = (),
    most_of_one_voter: int = MOST_OF_ONE_VOTER,
) -> Pairs:
    """Return pairs of a better and a worse answer to the same question.

    1. What cannot count is left out: no vote, an answer that broke off, texts that were
       not kept, personal data or keys in question or answer, questions of the test.
    2. One voter has one vote on an answer, the latest, and `most_of_one_voter` in all.
       Where no voter is named, a request is one.
    3. Votes on the same answer, whichever version gave it, are counted together. The
       majority decides; as many for as against decide nothing.
    4. Each answer voted down is paired with the one that is liked best. Where none is
       liked, the data set's answer takes its place, unless it is the same. An answer
       that stands alone teaches DPO nothing: it learns from differences.

    Questions and answers are compared by `question_key`: case, white space and final
    punctuation make no other answer.

    First used in experiment 08_several_workers, section 6.

    Args:
        votes: records, as `read_votes` returns them.
        references: rows of the data set with `instruction` and `response`.
        without: questions that no pair may be about, because they test the model.
        most_of_one_voter: further votes of a voter are left out.

    Raises:
        PreferenceError: if a thumb is neither "up" nor "down", naming the record.
    """
    left_out: Counter[str] = Counter()
    usable = _usable(votes, {question_key(text) for text in without}, left_out)
    counted, voters = _one_each(usable, most_of_one_voter, left_out)
    known: dict[str, str] = {}
    for row in references:
        known.setdefault(question_key(row["instruction"]), row["response"].strip())
    found = []
    for key, question in _by_question(counted).items():
        found += _pairs_of(question, known.get(key), left_out)
    return Pairs(found, len(votes), left_out, voters)


def _usable(
    votes: Votes, tests: set[str], left_out: Counter[str]
) -> list[Mapping[str, Any]]:
    """Return the votes that can count; the reasons against others are counted."""
    usable = []
    for vote in votes:
        reason = _objection(vote, tests)
        if reason:
            left_out[reason] += 1
        else:
            usable.append(vote)
    return usable


def _objection(vote: Mapping[str, Any], tests: set[str]) -> str:
    thumb = vote.get("thumb")
    if thumb is None:
        return "no vote"
    if thumb not in THUMBS:
        raise PreferenceError(
            f"The thumb of record {vote.get('request_id')!r} is {thumb!r}: give 'up' "
            "or 'down'."
        )
    if vote.get("status", 200) != 200:
        return "the answer broke off"
    texts = [vote.get(name) for name in ("question", "answer")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "question or answer was not kept"
    for text in texts:
        if emails(text) or phone_numbers(text):
            return "personal data: an address or a number"
        if kinds := keys(text):
            return f"holds {kinds[0]}"
    if question_key(texts[0]) in tests:
        return "the question tests the model"
    return ""


def _one_each(
    votes: Votes, most: int, left_out: Counter[str]
) -> tuple[list[Mapping[str, Any]], int | None]:
    """Return each voter's latest vote on each answer, and how many voters there are."""
    latest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    # Votes without a time keep the order in which they stand.
    for vote in sorted(votes, key=lambda one: str(one.get("feedback_at", ""))):
        voter = vote.get("voter") or f"request {vote['request_id']}"
        place = voter, question_key(vote["question"]), question_key(vote["answer"])
        if latest.pop(place, None):
            left_out["the same voter voted again on this answer"] += 1
        latest[place] = vote
    given: Counter[str] = Counter()
    counted = []
    for (voter, *_), vote in latest.items():
        given[voter] += 1
        if given[voter] > most:
            left_out[f"more than {most} votes by one voter"] += 1
        else:
            counted.append(vote)
    return counted, len(given) if any(vote.get("voter") for vote in votes) else None


def _by_question(votes: Votes) -> dict[str, _Question]:
    questions: dict[str, _Question] = {}
    for vote in votes:
        key = question_key(vote["question"])
        question = questions.setdefault(key, _Question(vote["question"].strip()))
        text = vote["answer"].strip()
        answer = question.answers.setdefault(question_key(text), _Answer(text))
        if vote["thumb"] == "up":
            answer.up += 1
        else:
            answer.down += 1
    return questions


def _pairs_of(
    question: _Question, reference: str | None, left_out: Counter[str]
) -> list[AnswerPair]:
    """Return the pairs of a question; votes that are behind none are counted."""
    for answer in question.answers.values():
        outvoted = min(answer.up, answer.down)
        if answer.net:
            left_out["outvoted on the same answer"] += outvoted
        else:
            left_out["as many for as against the same answer"] += 2 * outvoted
    liked = [one for one in question.answers.values() if one.net > 0]
    disliked = [one for one in question.answers.values() if one.net < 0]
    # Of equally liked ones the shorter: whoever takes the longer teaches length.
    liked.sort(key=lambda one: (-one.net, len(one.text)))
    spare = "another answer is liked better" if disliked else "nothing worse is known"
    left_out[spare] += sum(one.given for one in liked[bool(disliked) :])
    found = []
    for place, worse in enumerate(disliked):
        if liked:
            better, origin = liked[0].text, "votes"
            behind = worse.given + (0 if place else liked[0].given)
        elif reference and question_key(reference) == question_key(worse.text):
            left_out["voted down, but it is the data set's answer"] += worse.given
            continue
        elif reference:
            better, origin, behind = reference, "data set", worse.given
        else:
            left_out["nothing better is known"] += worse.given
            continue
        found.append(AnswerPair(question.text, better, worse.text, origin, behind))
    left_out += Counter()  # drops what was counted as zero
    return found


# --- votes where nobody voted ---


def simulated_votes(
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[str]],
    judge: Judge,
    noise: float = 0.1,
    voters: int = 200,
    seed: int = DEFAULT_SEED,
) -> list[dict[str, Any]]:
    """Return votes of simulated readers on real answers, as lesson 07's table has them.

    A reader likes what the course's judge finds right, and errs on a share of the
    answers, whatever the question. Real readers are not so: they do not know the
    answer, like long and sure ones, and vote when they are annoyed.

    First used in experiment 08_several_workers, section 6.

    Args:
        rows: what was asked, with what the judge needs.
        answers: version → its answers, in the order of the rows.
        judge: of the answers.
        noise: share of votes that say the opposite.
        voters: how many readers there are; each vote is one's, drawn at random.
        seed: of the draws.

    Raises:
        PreferenceError: if a version's answers are not as many as the rows, or the
            noise is no share below a half.
    """
    if not 0 <= noise < 0.5:
        raise PreferenceError(
            f"noise is {noise}: give a share from 0 to below 0.5, at which votes would "
            "say nothing."
        )
    generator = random.Random(seed)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    votes: list[dict[str, Any]] = []
    for version, said in answers.items():
        if len(said) != len(rows):
            raise PreferenceError(
                f"Version {version!r} has {len(said)} answers to {len(rows)} questions:"
                " give one each, in order."
            )
        right = judge.right(said, rows)
        for row, answer, is_right in zip(rows, said, right, strict=True):
            errs = generator.random() < noise
            now = (start + timedelta(minutes=len(votes))).isoformat()
            votes.append(
                {
                    "request_id": f"simulated-{len(votes)}",
                    "at": now,
                    "version": version,
                    "status": 200,
                    "question": row["instruction"],
                    "answer": answer,
                    "thumb": THUMBS[is_right == errs],
                    "feedback_at": now,
                    "voter": f"reader-{generator.randrange(voters)}",
                }
            )
    return votes
