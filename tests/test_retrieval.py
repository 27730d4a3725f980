"""Notes to look answers up in; BM25, MiniLM and their sum."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from utils.course import FAQS_DATA, CourseError
from utils.dataset.faqs import load_faqs
from utils.dataset.open_book import Mix, with_notes
from utils.dataset.splits import split
from utils.encoder import load_encoder
from utils.evaluation.answers import groups_of
from utils.evaluation.retrieval import (
    MeaningRetriever,
    RetrievalError,
    Retriever,
    SumRetriever,
    found_at,
    note_search,
    notes,
    recall_at,
    right_notes,
    rows_with_notes,
)
from utils.evaluation.scores import proportion

DOCUMENTS = [
    "Training jobs are stopped after nineteen hours.",
    "Cats sleep most of the day and hunt at night.",
    "Invoices are paid within a month of their arrival.",
    "The canteen serves lunch from noon.",
]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def by_meaning(encoder):
    return MeaningRetriever(DOCUMENTS, encoder=encoder)


# --- by words ---


def test_rare_words_find_their_document() -> None:
    retriever = Retriever(["the cat sat", "the dog sat", "the cow sat"])
    assert retriever.best(["Where is the dog?", "cow"]) == [
        "the dog sat",
        "the cow sat",
    ]


def test_words_find_hits_in_the_order_of_their_scores() -> None:
    hits = Retriever(["a dog", "a cat", "a dog and a cat", "a cow"]).search("cat", k=3)
    assert [hit.number for hit in hits[:2]] == [1, 2]
    assert hits[0].document == "a cat"
    assert hits[0].score > hits[1].score > hits[2].score == 0
    assert [hit.far for hit in hits] == [False, False, True]


@pytest.mark.parametrize("question", ["", "???", "zebra"])
def test_a_question_without_a_known_word_finds_nothing_near(question) -> None:
    assert all(hit.far for hit in Retriever(DOCUMENTS).search(question))


@pytest.mark.parametrize("documents", [[], ["", "…"]])
@pytest.mark.parametrize("kind", [Retriever, MeaningRetriever])
def test_there_must_be_something_to_search(documents, kind) -> None:
    with pytest.raises(ValueError, match="no text to search") as caught:
        kind(documents)
    assert isinstance(caught.value, CourseError)


def test_keys_and_documents_are_as_many() -> None:
    with pytest.raises(RetrievalError, match="1 keys for 2 documents"):
        Retriever(["one", "two"], [["one"]])


def test_at_least_one_document_is_asked_for() -> None:
    with pytest.raises(RetrievalError, match="k is 0"):
        Retriever(DOCUMENTS).search("cat", k=0)
    assert len(Retriever(DOCUMENTS).search("cat", k=99)) == len(DOCUMENTS)


# --- by meaning ---


def test_meaning_finds_what_shares_no_word(by_meaning) -> None:
    question = "Eating time?"
    assert by_meaning.search(question, k=1)[0].number == 3
    assert Retriever(DOCUMENTS).search(question, k=1)[0].far


def test_a_nearest_note_that_is_far_away_is_called_so(by_meaning) -> None:
    near = by_meaning.search("How long may a training job run?")
    assert not near[0].far
    assert near[1].far
    (nearest, *others) = by_meaning.search("What is the capital of France?")
    assert nearest.far
    assert nearest.score >= others[0].score
    for question in ("", "   "):
        assert all(hit.far for hit in by_meaning.search(question))


def test_the_distance_can_be_chosen(encoder) -> None:
    generous = MeaningRetriever(DOCUMENTS, encoder=encoder, least=-1)
    assert not any(hit.far for hit in generous.search("What is the capital of France?"))


def test_a_sentence_inside_a_long_document_is_found(encoder) -> None:
    filler = "The office is open on weekdays and the coffee is free for all. " * 60
    documents = [filler, filler + DOCUMENTS[0] + filler, DOCUMENTS[1]]
    (hit,) = MeaningRetriever(documents, encoder=encoder).search(
        "When are training jobs stopped?", k=1
    )
    assert (hit.number, hit.far) == (1, False)
    assert hit.document == documents[1]


def test_a_document_counts_as_much_as_its_best_key(encoder) -> None:
    retriever = MeaningRetriever(
        ["first", "second"],
        [["Cats sleep.", "When is lunch?"], ["Who pays invoices?"]],
        encoder,
    )
    scores = retriever.scores(["When is lunch?", "Who pays invoices?"])
    assert scores.shape == (2, 2)
    np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-5)
    assert retriever.best(["When is lunch?"]) == ["first"]


def test_no_question_finds_nothing(by_meaning) -> None:
    assert by_meaning.search_all([]) == []
    assert Retriever(DOCUMENTS).search_all([]) == []


# --- their sum ---


@pytest.mark.parametrize("fusion", ["scores", "ranks"])
def test_the_sum_lies_between_its_parts(by_meaning, fusion) -> None:
    by_words = Retriever(DOCUMENTS)
    questions = ["When do cats hunt?", "At what time can I eat?", ""]
    for weights, alone in (((1, 0), by_words), ((0, 1), by_meaning)):
        both = SumRetriever([by_words, by_meaning], weights, fusion)
        assert both.best(questions[:2]) == alone.best(questions[:2])
    both = SumRetriever([by_words, by_meaning], (0.5, 1), fusion)
    assert both.best(questions[:2]) == [DOCUMENTS[1], DOCUMENTS[3]]
    hits = both.search_all(questions)
    assert not hits[0][0].far
    assert all(hit.far for hit in hits[2])
    assert np.isfinite(both.scores(questions)).all()


def test_the_sum_is_as_far_as_its_meaning(by_meaning) -> None:
    both = SumRetriever([Retriever(DOCUMENTS), by_meaning], (1, 1))
    assert both.search("What is the capital of the day?", k=1)[0].far
    assert not SumRetriever([Retriever(DOCUMENTS)], (1,)).search("the day", k=1)[0].far


@pytest.mark.parametrize(
    ("weights", "fusion", "message"),
    [
        ((1,), "scores", "1 weights for 2 retrievers"),
        ((0, 0), "scores", "one must be above zero"),
        ((-1, 1), "scores", "none may be negative"),
        ((1, 1), "votes", "fusion is 'votes'"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(weights, fusion, message) -> None:
    parts = [Retriever(DOCUMENTS), Retriever(DOCUMENTS)]
    with pytest.raises(RetrievalError, match=message):
        SumRetriever(parts, weights, fusion)


def test_a_sum_is_over_the_same_documents() -> None:
    with pytest.raises(RetrievalError, match="different documents"):
        SumRetriever([Retriever(DOCUMENTS), Retriever(DOCUMENTS[::-1])], (1, 1))


# --- notes ---

ROWS = [
    {"instruction": "Q1?", "response": "A1.", "fact": "one", "wording": "trained"},
    {"instruction": "Q2?", "response": "A1.", "fact": "one", "wording": "trained"},
    {"instruction": "test?", "response": "A1.", "fact": "one", "wording": "free"},
    {"instruction": "Q3?", "response": "A2.", "fact": "two", "wording": "trained"},
    {"instruction": "hidden?", "response": "A3.", "fact": "three", "wording": "free"},
]


def test_a_note_holds_trained_wordings_and_the_answer_and_no_test_question() -> None:
    first, second = notes(ROWS)
    assert first.questions == ("Q1?", "Q2?")
    assert first.answer == "A1."
    assert first.key() == "Q1? Q2? A1."
    assert first.key(answer_only=True) == "A1."
    assert second.questions == ("Q3?",)
    assert not any("test" in n.key() or "hidden" in n.key() for n in (first, second))


def test_rows_without_columns_are_grouped_by_their_answers() -> None:
    rows = [{"instruction": f"Q{i}?", "response": f"A{i // 2}."} for i in range(4)]
    assert [note.questions for note in notes(rows)] == [("Q0?", "Q1?"), ("Q2?", "Q3?")]


def test_a_question_that_examines_does_not_help_to_find_its_note() -> None:
    rows = [{"instruction": f"Q{i}?", "response": f"A{i // 2}."} for i in range(4)]
    one, other = notes(rows, examined={"Q0?", "Q2?", "Q3?"})
    assert one.questions == ("Q1?",)
    assert (other.questions, other.key()) == ((), "A1.")


@pytest.mark.parametrize("rows", [[], ROWS[4:]])
def test_notes_need_training_rows(rows) -> None:
    with pytest.raises(RetrievalError, match="can become a note"):
        notes(rows)


def test_a_question_without_a_note_is_named() -> None:
    with pytest.raises(RetrievalError, match=r"Row 0 \('hidden\?'\).*fact three"):
        right_notes(ROWS[4:], notes(ROWS))


def test_what_is_found_is_counted_by_clusters() -> None:
    written = notes(ROWS)
    search = note_search(written, weights=(1, 0))
    asked = [
        ROWS[0] | {"instruction": "Q1"},
        ROWS[0] | {"instruction": "Q3"},  # finds the other note
        ROWS[3] | {"instruction": "Q3"},
    ]
    questions = [row["instruction"] for row in asked]
    hits = found_at(search, questions, right_notes(asked, written), k=1)
    assert hits == [True, False, True]
    share = recall_at(search, asked, written, k=1)
    assert share == proportion(hits, ["one", "one", "two"])
    assert recall_at(search, asked, written, k=2).value == 1
    with pytest.raises(RetrievalError, match="1 documents for 2 questions"):
        found_at(search, ["a", "b"], [0], k=1)


def test_the_weights_choose_the_search(encoder) -> None:
    written = notes(ROWS)
    assert isinstance(note_search(written, encoder, (1, 0)), Retriever)
    assert isinstance(note_search(written, encoder, (0, 1)), MeaningRetriever)
    assert isinstance(note_search(written, encoder), SumRetriever)
    with pytest.raises(RetrievalError, match="above zero"):
        note_search(written, encoder, (0, 0))


def test_free_questions_find_their_notes(encoder) -> None:
    """On one in five of the course's free questions, over all notes.

    Measured on all 507: BM25 55% first and 71% among three, MiniLM 79% and 92%, their
    sum 79% and 93%.
    """
    with open(FAQS_DATA, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    written = notes(rows)
    free = [row for row in rows if row["wording"] == "free"][::5]
    by_words = note_search(written, weights=(1, 0))
    both = note_search(written, encoder)
    assert recall_at(both, free, written, k=1).value >= 0.75
    assert recall_at(both, free, written, k=3).value >= 0.88
    assert recall_at(by_words, free, written, k=1).value < 0.65
    questions = ["What is the capital of France?", "Who won the match last night?"]
    assert all(hits[0].far for hits in both.search_all(questions))


# --- rows with notes ---


def by_words(written):
    return note_search(written, weights=(1, 0))


def test_training_rows_get_the_notes_that_the_record_trains_with() -> None:
    faqs = load_faqs(FAQS_DATA)
    parts = split(faqs)
    written = notes(faqs.frame.to_dict("records"), examined_in(parts))
    search = by_words(written)
    made = rows_with_notes(parts, written, search, Mix())
    train = parts["train"].to_list()
    ranked = search.search_all(parts["train"]["instruction"], k=len(written))
    assert made["train"] == with_notes(
        train,
        {n.group: n.answer for n in written if n.group in set(groups_of(train))},
        [[written[hit.number].group for hit in hits] for hits in ranked],
        about=groups_of(train),
    )
    # The others get what is found first.
    for name in set(parts) - {"train"}:
        first = search.best(parts[name]["instruction"])
        assert [row["context"] for row in made[name]] == [f"- {n}" for n in first]


def examined_in(parts) -> set[str]:
    return {q for name in set(parts) - {"train"} for q in parts[name]["instruction"]}


def test_a_small_file_without_columns_gets_notes_as_well(tmp_path) -> None:
    facts = ["opens at nine", "lends twelve books", "prints upstairs", "bans dogs"]
    lines = [f"{i} {fact}?,The library {fact}." for fact in facts for i in range(3)]
    file = tmp_path / "own.csv"
    file.write_text("\n".join(["question,answer", *lines]), encoding="utf-8")
    faqs = load_faqs(file)
    parts = split(faqs)
    written = notes(faqs.frame.to_dict("records"), examined_in(parts))
    made = rows_with_notes(parts, written, by_words(written), Mix(1, 0, 0, 0))
    assert {row["context"] for row in made["train"]} == {
        f"- {row['response']}" for row in made["train"]
    }
    asked = {name: len(part) for name, part in parts.items()}
    assert {name: len(rows) for name, rows in made.items()} == asked
