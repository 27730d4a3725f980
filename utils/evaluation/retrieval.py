"""Documents to look answers up in, and two ways to find them: by words, by meaning.

`Retriever` counts words (BM25; the library is bm25s), `MeaningRetriever` compares the
vectors of a sentence encoder (MiniLM), and `SumRetriever` adds up what both say. All
three have the same methods. `notes` writes the documents from a file's training rows.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from utils.course import CourseError
from utils.dataset.open_book import Mix, context, with_notes
from utils.evaluation.answers import groups_of
from utils.evaluation.scores import Proportion, proportion

if TYPE_CHECKING:
    from utils.encoder import Encoder

FAR = 0.3
"""A document whose cosine with the question is lower is about something else.

So are 4% of the right notes for the course's free questions. It keeps away questions on
other matters; among questions on one matter no cosine tells right from wrong notes."""
WEIGHTS = (0.1, 1.0)
"""Of BM25 and of MiniLM. On the course's 507 free questions over 169 notes MiniLM alone
puts the right one first for 79% and among three for 92%, BM25 for 55% and 71%, and this
sum for 79% and 93%; with equal weights, BM25 spoils more than it finds."""
TRAINED = "trained"
"""What the column `wording` says of rows to train with, and to write notes from."""
RANKED = 50  # notes that are ranked for a question whose row gets some
RANKS_BEFORE = 60
"""Cormack, Clarke and Buettcher, Reciprocal Rank Fusion, SIGIR 2009."""

Fusion = Literal["scores", "ranks"]


class RetrievalError(CourseError, ValueError):
    """Documents that cannot be searched; the message says what to do."""


# --- documents ---


@dataclass(frozen=True)
class Note:
    """What a file says on one thing: a document that holds an answer.

    Attributes:
        group: what it is about, as `answers.groups_of` names it.
        questions: the trained wordings.
        answer: what a model is given to read.
    """

    group: str
    questions: tuple[str, ...]
    answer: str

    def key(self, answer_only: bool = False) -> str:
        """Return the text by which the note is found.

        Questions and answer together are found best: on the course's free questions,
        MiniLM puts the right note first for 79%, for 77% if each question stands with
        the answer in a text of its own, and for 58% by the answers alone.

        Args:
            answer_only: without the questions, as a text that was not written as
                questions and answers would be.
        """
        return self.answer if answer_only else " ".join((*self.questions, self.answer))


def notes(
    rows: Sequence[Mapping[str, Any]], examined: Collection[str] = ()
) -> list[Note]:
    """Write one note for each thing that the rows answer.

    Rows are about one thing if their `fact` or `group` is the same or, without such a
    column, their answer. Where a column `wording` says that a row is not "trained", it
    is left out: a note that holds a test question would be found by itself.

    First used in lesson 03, section 7.

    Args:
        rows: with `instruction` and `response`; of a file without the column
            `wording`, its training part alone, or all with `examined`.
        examined: questions that test or validate. Their rows give the answer, and the
            note is not found by them.

    Raises:
        RetrievalError: if no row is left.
    """
    kept = [row for row in rows if (row.get("wording") or TRAINED) == TRAINED]
    if not kept:
        raise RetrievalError(
            f"None of {len(rows)} rows can become a note: give the training rows (if "
            f"they have a column `wording`, it must say {TRAINED!r})."
        )
    found: dict[str, list[Mapping[str, Any]]] = {}
    hidden = set(examined)
    for group, row in zip(groups_of(kept), kept, strict=True):
        found.setdefault(group, []).append(row)
    return [
        Note(
            group,
            tuple(
                question
                for question in dict.fromkeys(str(r["instruction"]) for r in of_group)
                if question not in hidden
            ),
            str(of_group[0]["response"]),
        )
        for group, of_group in found.items()
    ]


# --- search ---


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        document: its text.
        score: how well it fits; what it means depends on the retriever.
        number: its place among the retriever's documents.
        far: whether it fits so badly that it should not be shown: the best one of the
            documents, but none that answers.
    """

    document: str
    score: float
    number: int
    far: bool = False


class Search(ABC):
    """What all retrievers can do.

    Attributes:
        documents: the texts that are returned.
    """

    documents: list[str]

    def __init__(
        self, documents: Sequence[str], keys: Sequence[Sequence[str]] | None = None
    ) -> None:
        """Take the documents, and the texts by which each is found.

        Raises:
            RetrievalError: (a `ValueError`) if there are none, none has a word, or
                there are not as many keys.
        """
        self.documents = list(documents)
        keys = [[text] for text in self.documents] if keys is None else keys
        self._keys = [list(of_one) for of_one in keys]
        if len(self._keys) != len(self.documents):
            raise RetrievalError(
                f"{len(self._keys)} keys for {len(self.documents)} documents: give as "
                "many of each, in the same order."
            )
        if not any(any(map(str.isalnum, t)) for of_one in self._keys for t in of_one):
            raise RetrievalError(
                "There is no text to search: give documents with words."
            )

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """Return how well each document fits each question.

        Returns:
            Array of shape (questions, documents); more is better.
        """
        return self._judged(questions)[0]

    @abstractmethod
    def _judged(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores, and which documents are too far away to answer."""

    def search_all(self, questions: Sequence[str], k: int = 3) -> list[list[Hit]]:
        """Return the k best documents for each question, the best first.

        Documents of equal score keep their order.

        Raises:
            RetrievalError: if k is less than 1.
        """
        if k < 1:
            raise RetrievalError(f"k is {k}: ask for at least one document.")
        scores, far = self._judged(questions)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [
            [Hit(self.documents[i], float(row[i]), int(i), bool(off[i])) for i in best]
            for row, off, best in zip(scores, far, order, strict=True)
        ]

    def search(self, question: str, k: int = 3) -> list[Hit]:
        """Return the k best documents for one question, the best first."""
        return self.search_all([question], k)[0]

    def best(self, questions: Sequence[str]) -> list[str]:
        """Return the document that is ranked first, for each question."""
        return [hits[0].document for hits in self.search_all(questions, k=1)]


class Retriever(Search):
    """BM25 over documents: words in common with the question count, rare ones more.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond,
    Foundations and Trends in Information Retrieval 3, 2009.
    """

    def __init__(
        self, documents: Sequence[str], keys: Sequence[Sequence[str]] | None = None
    ) -> None:
        """Index the documents, or the texts by which each is found.

        Raises:
            RetrievalError: (a `ValueError`) if there are none, or none has a word.
        """
        import bm25s

        super().__init__(documents, keys)
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every step
        texts = [" ".join(dict.fromkeys(of_one)) for of_one in self._keys]
        self._index = bm25s.BM25()
        self._index.index(self._tokens(texts), show_progress=False)

    @staticmethod
    def _tokens(texts: Sequence[str], ids: bool = True) -> Any:
        import bm25s

        # Words of one letter and English stop words count, too: where every document
        # is about the same product, "how" and "who" are what tells them apart.
        return bm25s.tokenize(
            list(texts),
            token_pattern=r"(?u)\b\w+\b",
            stopwords=[],
            return_ids=ids,
            show_progress=False,
        )

    def _judged(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        none = np.zeros(len(self.documents))
        found = [
            self._index.get_scores(tokens) if tokens else none
            for tokens in self._tokens(questions, ids=False)
        ]
        scores = np.array(found).reshape(len(questions), len(self.documents))
        return scores, scores <= 0  # no word in common

    def best(self, questions: Sequence[str]) -> list[str]:
        """Return the document that BM25 ranks first, for each question."""
        found, _ = self._index.retrieve(
            self._tokens(questions), k=1, show_progress=False
        )
        return [self.documents[int(row[0])] for row in found]


class MeaningRetriever(Search):
    """Nearest vectors: texts of like meaning are found, whatever their words.

    A document longer than the encoder reads is cut into passages (`Encoder.passages`),
    and counts as much as its best one. Reimers and Gurevych, Sentence-BERT,
    arXiv 1908.10084.
    """

    def __init__(
        self,
        documents: Sequence[str],
        keys: Sequence[Sequence[str]] | None = None,
        encoder: Encoder | None = None,
        least: float = FAR,
    ) -> None:
        """Embed the documents, or the texts by which each is found.

        Args:
            documents: what is returned.
            keys: for each document the texts by which it is found; None for itself.
            encoder: None to load the course's.
            least: a document whose cosine is lower is far.

        Raises:
            RetrievalError: (a `ValueError`) if there are none, or none has a word.
            EncoderError: if the encoder is not installed.
        """
        from utils.encoder import load_encoder

        super().__init__(documents, keys)
        self.least = least
        self._encoder = load_encoder() if encoder is None else encoder
        passages, owners = [], []
        for number, of_one in enumerate(self._keys):
            for text in dict.fromkeys(of_one):
                for passage in self._encoder.passages(text):
                    passages.append(passage)
                    owners.append(number)
        self._vectors = self._encoder.embed(passages)
        self._owners = np.array(owners)

    def _judged(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        cosines = self._encoder.embed(questions) @ self._vectors.T
        best = np.full((len(questions), len(self.documents)), -1.0)
        for number, column in zip(self._owners, cosines.T, strict=True):
            np.maximum(best[:, number], column, out=best[:, number])
        return best, best < self.least


class SumRetriever(Search):
    """What several retrievers say, added up.

    Their scores have different scales. So either each one's are standardised for each
    question (mean 0, standard deviation 1) and weighed, or only the ranks count, as
    weight / (60 + rank).
    """

    def __init__(
        self,
        retrievers: Sequence[Search],
        weights: Sequence[float],
        fusion: Fusion = "scores",
    ) -> None:
        """Take retrievers over the same documents.

        Args:
            retrievers: at least one.
            weights: what each counts.
            fusion: "scores" or "ranks".

        Raises:
            RetrievalError: if the documents differ, the weights are not as many, not
                positive or all zero, or the fusion is another.
        """
        if not retrievers or len(weights) != len(retrievers):
            raise RetrievalError(
                f"{len(weights)} weights for {len(retrievers)} retrievers: give one "
                "for each of at least one."
            )
        if any(one.documents != retrievers[0].documents for one in retrievers):
            raise RetrievalError(
                "The retrievers have different documents: give all of them the same, "
                "in the same order."
            )
        if min(weights) < 0 or not any(weights):
            raise RetrievalError(
                f"The weights are {list(weights)}: none may be negative, and one must "
                "be above zero."
            )
        if fusion not in ("scores", "ranks"):
            raise RetrievalError(f"fusion is {fusion!r}: choose 'scores' or 'ranks'.")
        self.documents = retrievers[0].documents
        self.retrievers, self.weights = list(retrievers), list(weights)
        self.fusion: Fusion = fusion

    def _judged(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # BM25 knows no distance: nearly every document shares a word such as "the"
        # with a question. It is asked only if there is no other.
        knowing = [r for r in self.retrievers if not isinstance(r, Retriever)]
        comparable = _standard if self.fusion == "scores" else _of_ranks
        total = np.zeros((len(questions), len(self.documents)))
        far = np.ones(total.shape, dtype=bool)
        for one, weight in zip(self.retrievers, self.weights, strict=True):
            scores, off = one._judged(questions)
            total += weight * comparable(scores)
            if one in (knowing or self.retrievers):
                far &= off
        return total, far


def _standard(scores: np.ndarray) -> np.ndarray:
    """Return scores with mean 0 and deviation 1 in each row; 0 if all are equal."""
    spread = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread, spread, 1)


def _of_ranks(scores: np.ndarray) -> np.ndarray:
    """Return 1 / (60 + rank); the best rank is 1, and equal scores share one."""
    from scipy.stats import rankdata

    return 1 / (RANKS_BEFORE + rankdata(-scores, method="min", axis=1))


def note_search(
    written: Sequence[Note],
    encoder: Encoder | None = None,
    weights: tuple[float, float] = WEIGHTS,
    fusion: Fusion = "scores",
    answer_only: bool = False,
) -> Search:
    """Make a search over notes, by words, by meaning, or by both.

    First used in lesson 03, section 7.

    Args:
        written: as `notes` returns them; a hit's `number` is the note's place.
        encoder: None to load the course's.
        weights: of BM25 and of MiniLM; with a zero the other one stands alone.
        fusion: how both are added, see `SumRetriever`.
        answer_only: search in the answers alone, without the trained questions.

    Raises:
        RetrievalError: if there are no notes, or both weights are zero.
    """
    documents = [note.answer for note in written]
    keys = [[note.key(answer_only)] for note in written]
    by_words, by_meaning = weights
    if not by_meaning and by_words:
        return Retriever(documents, keys)
    meaning = MeaningRetriever(documents, keys, encoder)
    if not by_words and by_meaning:
        return meaning
    return SumRetriever([Retriever(documents, keys), meaning], weights, fusion)


# --- rows with notes ---


def rows_with_notes(
    parts: Mapping[str, Any], written: Sequence[Note], search: Search, mix: Mix
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of all parts, each with notes to answer from as its `context`.

    Rows of `train` get them as the mix says, and see notes on trained facts only. All
    other rows get what a user would get: the note that the search finds first.

    Shown in lesson 03, section 7.

    Args:
        parts: as `splits.split` returns them.
        written: notes on all that the parts ask for.
        search: over these notes.
        mix: how often a training row is met in each form.
    """
    made, answers = {}, {note.group: note.answer for note in written}
    for name, part in parts.items():
        rows = part.to_list()
        hits = search.search_all(part["instruction"], k=min(RANKED, len(written)))
        ranked = [[written[hit.number].group for hit in found] for found in hits]
        if name != "train":
            first = [context([answers[order[0]]]) for order in ranked]
            pairs = zip(rows, first, strict=True)
            made[name] = [{**row, "context": text} for row, text in pairs]
            continue
        about = groups_of(rows)  # the fact that each row asks for
        known = {fact: text for fact, text in answers.items() if fact in set(about)}
        # The right note counts also where the search does not find it.
        pairs = zip(ranked, about, strict=True)
        ranked = [[*dict.fromkeys([*order, right])] for order, right in pairs]
        size = min(3, len(known))
        made[name] = with_notes(rows, known, ranked, mix, size, about=about)
    return made


# --- how good a search is ---


def right_notes(
    rows: Sequence[Mapping[str, Any]], written: Sequence[Note]
) -> list[int]:
    """Return the place of the note that answers each row.

    Raises:
        RetrievalError: if there is none, naming the row.
    """
    places = {note.group: number for number, note in enumerate(written)}
    found = []
    for number, (group, row) in enumerate(zip(groups_of(rows), rows, strict=True)):
        if group not in places:
            raise RetrievalError(
                f"Row {number} ({str(row['instruction'])[:50]!r}) has no note: its "
                f"{group} was not trained. Ask only what the notes answer."
            )
        found.append(places[group])
    return found


def found_at(
    search: Search, questions: Sequence[str], wanted: Sequence[int], k: int
) -> list[bool]:
    """Return for each question whether its document is among the first k.

    Args:
        search: over the documents.
        questions: what is asked.
        wanted: the place of each question's document.
        k: how many documents are looked at.

    Raises:
        RetrievalError: if there are not as many of each.
    """
    if len(questions) != len(wanted):
        raise RetrievalError(
            f"{len(wanted)} documents for {len(questions)} questions: name one each."
        )
    hits = search.search_all(questions, k)
    return [
        number in {hit.number for hit in found}
        for number, found in zip(wanted, hits, strict=True)
    ]


def recall_at(
    search: Search,
    rows: Sequence[Mapping[str, Any]],
    written: Sequence[Note],
    k: int = 1,
) -> Proportion:
    """Return the share of questions whose note is among the first k.

    Its interval draws all wordings of a fact together.

    Args:
        search: over the notes, in their order.
        rows: questions, each of which a note answers.
        written: the notes.
        k: how many notes are looked at.

    Raises:
        RetrievalError: if a row has no note.
    """
    questions = [str(row["instruction"]) for row in rows]
    found = found_at(search, questions, right_notes(rows, written), k)
    return proportion(found, groups_of(rows))
