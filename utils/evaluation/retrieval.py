"""Documents to look answers up in, and BM25 to find them (the library is bm25s)."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from utils.dataset import facts as wordings
from utils.dataset.facts import known_fact, load_facts
from utils.helpers import DEFAULT_SEED


def product_pages(seed: int = DEFAULT_SEED) -> dict[str, list[str]]:
    """Write a page of documentation on each feature, one sentence for each fact.

    They state all facts of the course's table, also those that the lab model has never
    read.

    Returns:
        feature → sentences.
    """
    generator = random.Random(seed)
    pages: dict[str, list[str]] = {}
    for fact in load_facts():
        wording = generator.randrange(wordings.wording_count(fact.relation))
        sentence = wordings.statement(fact, wording) + "."
        pages.setdefault(fact.feature, []).append(sentence)
    return pages


def documentation(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return pages that should answer questions like these.

    First used in lesson 05, section 10.

    Args:
        rows: training rows. Where they name facts of the course's table, these are the
            course's product pages; else every answer is a page, under its question.
    """
    if rows and known_fact(rows[0].get("fact")):
        return product_pages()
    return {row["instruction"]: [row["response"]] for row in rows}


class Retriever:
    """BM25 over documents: words in common with the question count, rare ones more.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond,
    Foundations and Trends in Information Retrieval 3, 2009.

    First used in lesson 05, section 10.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        """Index the documents.

        Raises:
            ValueError: if there are none, or none has a word.
        """
        import bm25s

        self.documents = list(documents)
        if not any(any(map(str.isalnum, text)) for text in self.documents):
            raise ValueError("There is no text to search: give documents with words.")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every step
        self._index = bm25s.BM25()
        self._index.index(self._tokens(self.documents), show_progress=False)

    @staticmethod
    def _tokens(texts: Sequence[str]) -> Any:
        import bm25s

        # Words of one letter and English stop words count, too: where every document
        # is about the same product, "how" and "who" are what tells them apart.
        return bm25s.tokenize(
            list(texts), token_pattern=r"(?u)\b\w+\b", stopwords=[], show_progress=False
        )

    def best(self, questions: Sequence[str]) -> list[str]:
        """Return the document that BM25 ranks first, for each question."""
        found, _ = self._index.retrieve(
            self._tokens(questions), k=1, show_progress=False
        )
        return [self.documents[int(row[0])] for row in found]
