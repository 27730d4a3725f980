"""Pages to look answers up in, and BM25."""

from __future__ import annotations

import numpy as np
import pytest

from utils.dataset.facts import get_fact, load_facts
from utils.evaluation.answers import judge_for
from utils.evaluation.retrieval import Retriever, documentation, product_pages
from utils.lab_model.evaluate import rows_of


def test_the_pages_state_every_fact_once() -> None:
    pages = product_pages()
    assert product_pages() == pages
    assert sum(map(len, pages.values())) == len(load_facts())
    for fact in load_facts():
        assert any(fact.value in sentence for sentence in pages[fact.feature])


def test_facts_bring_the_product_pages_and_other_rows_their_answers() -> None:
    assert documentation(rows_of("train")) == product_pages()
    rows = [{"instruction": "What is S3?", "response": "A store."}]
    assert documentation(rows) == {"What is S3?": ["A store."]}
    assert documentation([]) == {}


def test_rare_words_find_their_document() -> None:
    retriever = Retriever(["the cat sat", "the dog sat", "the cow sat"])
    assert retriever.best(["Where is the dog?", "cow"]) == [
        "the dog sat",
        "the cow sat",
    ]


def test_nearly_every_question_finds_its_page_read_or_not() -> None:
    pages = {feature: " ".join(page) for feature, page in product_pages().items()}
    retriever = Retriever(list(pages.values()))
    for part in ("wording", "unread"):
        rows = rows_of(part)
        found = retriever.best([row["instruction"] for row in rows])
        hits = [
            page == pages[get_fact(row["fact"]).feature]
            for page, row in zip(found, rows, strict=True)
        ]
        assert sum(hits) / len(hits) > 0.85
        # And the page states the fact asked for.
        assert np.mean(judge_for(rows).right(found, rows)) > 0.85


@pytest.mark.parametrize("documents", [[], ["", "…"]])
def test_there_must_be_something_to_search(documents) -> None:
    with pytest.raises(ValueError, match="no text to search"):
        Retriever(documents)
