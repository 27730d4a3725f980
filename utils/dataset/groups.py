"""Which rows belong together, so that a split does not part them.

A column of the file says it best. Without one, rows are linked where an answer or a
question says the same, and what is linked over any number of steps is one group (single
linkage): no wording of a trained question is left for the test. Vectors of MiniLM
compare texts by meaning (`utils.encoder`). The thresholds were set on 1,190 questions
about 169 facts, each asked in seven wordings with one answer: all pairs of wordings of
one fact were linked, and 96% of the pairs linked were of one fact. Questions alone
would not do: two wordings of one fact have a cosine of 0.5 there (median), and one pair
in a thousand of different facts reaches 0.63.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import pandas

from utils.dataset.table import normal_name, question_key

# A column under one of these names says what belongs together.
GROUP_NAMES = (
    *("fact", "fact id", "group", "group id", "cluster", "cluster id", "paraphrase of"),
    *("duplicate of", "question id", "faq id", "answer id", "conversation"),
    *("conversation id", "thread", "thread id", "dialog id", "dialogue id", "qid"),
    *("intent", "document id", "doc id", "source id", "passage id", "article id"),
)
# These may: "topic" of five rows is what is asked for, "topic" of a hundred is a shelf.
PERHAPS_NAMES = (
    *("topic", "category", "subject", "section", "title", "id", "tag", "label"),
    *("label (other)",),
)
MOST_ROWS_PERHAPS = 8  # on average in a group, for the names above
FEWEST_GROUPS = 5
LARGEST_SHARE = 0.3  # of all rows, in one group
LARGEST_GROUP = 8  # rows that a group may have in any case

LIKE_QUESTIONS = 0.85  # cosine from which two questions ask for the same
LIKE_ANSWERS = 0.82  # cosine from which two answers say the same
LIKE_ROWS = 0.77  # mean of both, where either is less alike
STRICTER = (0.0, 0.05, 0.1)  # added where all rows are alike and chains would grow
STOCK_ROWS = 3  # one answer for so many questions may be a stock answer
# A stock answer's questions have little to do with it and with each other: the sum of
# the mean cosines is below 0.4 for 95% of "Please contact support." and the like on
# random questions, and above 0.52 for all answers to wordings of one question.
STOCK_LIKENESS = 0.5
LIKE_STOCK_QUESTIONS = 0.5  # cosine from which these are wordings of one question
MOST_EMBEDDED = 5_000  # rows; above, letters are compared in place of meaning
LETTERS_LESS = 0.15  # taken from the thresholds where letters are compared
CLASS_ROWS = 5  # rows for each different answer, on average, from which short answers
CLASS_WORDS = 3  # of at most so many words (median) are classes and not information
BLOCK = 1024  # rows compared with all others at a time


@dataclass(frozen=True)
class Groups:
    """Which rows belong together, and why.

    Attributes:
        labels: a number for each row, the same for rows of one group.
        column: the file's column that says so; None where likeness does.
        notes: one sentence for each thing that a person should know.
    """

    labels: list[int]
    column: str | None
    notes: list[str] = field(default_factory=list)


def has_free_wordings(frame: pandas.DataFrame) -> bool:
    """Return whether each fact is asked in trained and in free wordings, as marked."""
    if not {"fact", "wording"} <= set(frame.columns):
        return False
    kinds = set(frame["wording"].str.strip().str.casefold())
    return kinds == {"trained", "free"} and bool((frame["fact"] != "").all())


def group_column(frame: pandas.DataFrame) -> str | None:
    """Return the column that says which rows belong together, or None.

    Its name decides, and that it groups at all: at least five groups, one of several
    rows, none of more than 30% of the rows. A topic or category counts only where its
    groups are small, eight rows on average: a larger one is a shelf with many
    different questions, and to hold out whole shelves would test something else.
    """
    names = {normal_name(str(column)): column for column in frame.columns}
    for name in (*GROUP_NAMES, *PERHAPS_NAMES):
        if name in names and _groups(frame[names[name]], name in PERHAPS_NAMES):
            return names[name]
    return None


def _groups(column: pandas.Series, perhaps: bool) -> bool:
    counts = column[column != ""].value_counts()
    if len(counts) < FEWEST_GROUPS or counts.iloc[0] < 2:
        return False
    if counts.iloc[0] > max(LARGEST_SHARE * len(column), 2):
        return False
    return not perhaps or counts.mean() <= MOST_ROWS_PERHAPS


def find_groups(frame: pandas.DataFrame, encoder: Any = None) -> Groups:
    """Return which rows belong together, by a column or by likeness.

    Rows of one conversation, and those with the same question, always do.

    Args:
        frame: `instruction`, `response` and, if there are such texts, `context`.
        encoder: has `embed(texts)`; MiniLM by default, loaded only if it is needed.

    Raises:
        EncoderError: if likeness has to decide and the encoder is not installed.
    """
    column = group_column(frame)
    questions = [question_key(text) for text in frame["instruction"]]
    same = [questions] if "context" not in frame else []
    if "conversation" in frame.columns:
        same.append(list(frame["conversation"]))
    if column:
        same.append(list(frame[column]))
        return Groups(_connected(len(frame), _equal_links(same)), column)
    if "context" in frame.columns:
        passages = frame["context"].map(question_key)
        counts = passages.map(passages.value_counts())
        few = counts <= max(LARGEST_SHARE * len(frame), LARGEST_GROUP)
        same.append(list(passages.where(few, "")))
    links, notes = _links_by_likeness(frame, encoder)
    labels = _connected(len(frame), _equal_links(same) + links)
    return Groups(labels, None, notes)


def _equal_links(columns: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Link rows with the same text in one of the columns; an empty one links none."""
    links = []
    for column in columns:
        first: dict[str, int] = {}
        for row, text in enumerate(column):
            if text:
                links.append((first.setdefault(text, row), row))
    return links


def _connected(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """Return the group of each row, numbered in the order of their first rows."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, other = zip(*links, strict=True) if links else ((), ())
    graph = coo_matrix((numpy.ones(len(links)), (one, other)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    order = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [order[label] for label in labels.tolist()]


# --- likeness -------------------------------------------------------------------------


def _links_by_likeness(
    frame: pandas.DataFrame, encoder: Any
) -> tuple[list[tuple[int, int]], list[str]]:
    asked = frame["instruction"]
    if "context" in frame.columns:
        asked = asked + "\n" + frame["context"]
    questions, answers = list(asked), list(frame["response"])
    vectors, notes = _vectors([*questions, *answers], encoder)
    ask, tell = vectors[: len(frame)], vectors[len(frame) :]
    classes = is_classes(answers)
    answer_links, stock = ([], []) if classes else _links_by_answer(answers, ask, tell)
    if classes:
        notes.append(
            f"The answers are {len(set(answers))} classes: that two rows have the same "
            "one does not group them."
        )
    if stock:
        shown = [f"{answers[rows[0]][:50]!r} ({len(rows)} rows)" for rows in stock[:3]]
        more = f" and {len(stock) - 3} more" if len(stock) > 3 else ""
        notes.append(
            "Answers that stand for many different questions do not group them: "
            f"{', '.join(shown)}{more}."
        )
    is_stock = numpy.full(len(frame), classes)
    is_stock[[row for rows in stock for row in rows]] = True
    most = max(LARGEST_SHARE * len(frame), LARGEST_GROUP)
    less = 0.0 if isinstance(ask, numpy.ndarray) else LETTERS_LESS
    for stricter in (more - less for more in STRICTER):
        links = answer_links + _alike(ask, tell, is_stock, stricter)
        if numpy.bincount(_connected(len(frame), links)).max() <= most:
            return links, notes
    notes.append(
        "The questions are so alike that likeness tells nothing: only those with the "
        "same answer are kept together. A column 'group' would say what belongs "
        "together."
    )
    if numpy.bincount(_connected(len(frame), answer_links)).max() <= most:
        return answer_links, notes
    return [], notes


def vectors_of(texts: list[str], encoder: Any) -> Any:
    """Return unit vectors, one a text; row i of the result belongs to text i."""
    return _vectors(texts, encoder)[0]


def cosine(vectors: Any, one: int, other: int) -> float:
    """Return the cosine of two rows of unit vectors."""
    return float(_product(vectors[one : one + 1], vectors[other : other + 1])[0, 0])


def like_rows(vectors: Any, threshold: float) -> list[tuple[int, int]]:
    """Return the pairs of rows, the smaller first, whose cosine is at least so much."""
    pairs = []
    for start in range(0, vectors.shape[0], BLOCK):
        product = _product(vectors[start : start + BLOCK], vectors)
        one, other = numpy.nonzero(numpy.triu(product >= threshold, k=start + 1))
        pairs += list(zip((one + start).tolist(), other.tolist(), strict=True))
    return pairs


def _vectors(texts: list[str], encoder: Any) -> tuple[Any, list[str]]:
    """Return unit vectors, one a text, by meaning or, if there are many, by letters."""
    distinct = list(dict.fromkeys(texts))
    places = {text: place for place, text in enumerate(distinct)}
    order = [places[text] for text in texts]
    if len(texts) > 2 * MOST_EMBEDDED and encoder is None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        cutter = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(3, 4), dtype="float32"
        )
        note = (
            f"With more than {MOST_EMBEDDED:,} rows, likeness is one of letters, not "
            "of meaning: a paraphrase in other words may be in another part of the "
            "split."
        )
        return cutter.fit_transform(distinct)[order], [note]
    if encoder is None:
        from utils.encoder import load_encoder

        encoder = load_encoder()
    return encoder.embed(distinct)[order], []


def _product(one: Any, other: Any) -> numpy.ndarray:
    product = one @ other.T
    return product if isinstance(product, numpy.ndarray) else product.toarray()


def is_classes(answers: Sequence[str]) -> bool:
    """Return whether the answers are classes, such as "positive" and "negative".

    First used in lesson 03, section 7.
    """
    words = sorted(len(answer.split()) for answer in answers)[len(answers) // 2]
    return words <= CLASS_WORDS and len(answers) > CLASS_ROWS * len(set(answers))


def _links_by_answer(
    answers: Sequence[str], ask: Any, tell: Any
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Link rows with the same answer, unless it is a stock answer.

    Returns:
        The links, and the rows of each stock answer.
    """
    rows_of: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        rows_of.setdefault(question_key(answer), []).append(row)
    links, stock = [], []
    for rows in rows_of.values():
        if len(rows) < 2:
            continue
        if len(rows) >= STOCK_ROWS and _is_stock(ask[rows], tell[rows[:1]]):
            stock.append(rows)
            likeness = _product(ask[rows], ask[rows])
            for i, j in zip(
                *numpy.nonzero(likeness >= LIKE_STOCK_QUESTIONS), strict=True
            ):
                if i < j:
                    links.append((rows[i], rows[j]))
        else:
            links += [(rows[0], row) for row in rows[1:]]
    return links, stock


def _is_stock(questions: Any, answer: Any) -> bool:
    """Whether questions have so little in common that the answer says nothing."""
    likeness = _product(questions, questions)
    count = len(likeness)
    among = (likeness.sum() - count) / (count * (count - 1))
    return float(among + _product(questions, answer).mean()) < STOCK_LIKENESS


def _alike(
    ask: Any, tell: Any, is_stock: numpy.ndarray, stricter: float
) -> list[tuple[int, int]]:
    """Link rows whose questions or answers, or both together, are alike."""
    links = []
    count = ask.shape[0]
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        questions, answers = _product(ask[rows], ask), _product(tell[rows], tell)
        either_stock = is_stock[rows, None] | is_stock[None, :]
        alike = questions >= LIKE_QUESTIONS + stricter
        alike |= (answers >= LIKE_ANSWERS + stricter) & ~either_stock
        alike |= ((questions + answers) / 2 >= LIKE_ROWS + stricter) & ~either_stock
        one, other = numpy.nonzero(numpy.triu(alike, k=start + 1))
        links += list(zip((one + start).tolist(), other.tolist(), strict=True))
    return links
