"""The same question, answers that differ, answers that do not stand alone."""

from __future__ import annotations

import csv

import numpy
import pytest

from utils.course import ROOT
from utils.dataset.languages import language_of
from utils.dataset.meaning import differing_answers, needs_question, same_question
from utils.encoder import load_encoder

LABELLED = ROOT / "tests" / "support" / "contradictions.csv"

NEEDS = [
    "Yes.", "No", "yes!", "No, it does not.", "Yes, you can.", "Of course.", "Never.",
    "See above.", "As mentioned above, the limit is reached.", "Same as above",
    "See the previous answer.", "ditto", "See question 3.", "It depends.",
    "It is a store for features.", "They are billed by the hour.",
    "This is not supported.", "These cost nothing.", "Both.", "He decides.",
    "Their limit is 5 GB.", "It's free.", "None of the above.",
    "Same answer as before.",
    "Those are deleted after a week.", "Correct.",
]  # fmt: skip
STANDS = [
    "Yes, an endpoint bills by the hour until it is deleted.",
    "No, a stopped notebook instance does not bill for compute.",
    "It takes ten minutes to start an endpoint.",
    "It is possible to resume a training job from a checkpoint.",
    "It is best to delete the endpoint first.",
    "Those who have the role of an administrator may delete it.",
    "28 days.", "The limit is 5 GB.", "Item 5 of the list is the price.",
    "Italy and Spain.", "Theirs is a team of two.",
    "Thistle is the name of the cluster.",
    "Neither the endpoint nor the job is billed.", "Never delete the bucket itself.",
    "See the developer guide, chapter 4.", "The value above the line is the mean.",
    "Put the lid on the box above the sink.",
    "Both the job and the endpoint write logs.",
    "Hers was the first model.", "True positives are counted twice.",
    "Always close the valve before you open the tank.",
]  # fmt: skip


@pytest.mark.parametrize("answer", NEEDS)
def test_an_answer_that_needs_its_question(answer) -> None:
    assert needs_question(answer)


@pytest.mark.parametrize("answer", STANDS)
def test_an_answer_that_stands_alone(answer) -> None:
    assert not needs_question(answer)


def test_contradictions_labelled_by_hand() -> None:
    with open(LABELLED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    encoder = load_encoder()
    columns = ("question", "other_question", "answer", "other_answer")
    ask, other_ask, tell, other_tell = (
        encoder.embed([row[column] for row in rows]) for column in columns
    )
    asked, told = (ask * other_ask).sum(1), (tell * other_tell).sum(1)
    found = numpy.array(
        [
            same_question(row["question"], row["other_question"], asked[i])
            and differing_answers(row["answer"], row["other_answer"], told[i])
            for i, row in enumerate(rows)
        ]
    )
    truth = numpy.array([row["contradiction"] == "yes" for row in rows])
    wrong = [rows[i] for i in numpy.flatnonzero(found != truth)]
    precision = (found & truth).sum() / found.sum()
    recall = (found & truth).sum() / truth.sum()
    assert precision >= 0.9, wrong
    assert recall >= 0.8, wrong


@pytest.mark.parametrize(
    "one, other, likeness, same",
    [
        ("How do I delete an endpoint?", "How do I remove an endpoint?", 0.95, True),
        ("How do I delete an endpoint?", "How do I delete a endpoint", 0.99, True),
        ("How do I delete an endpoint?", "How do I create an endpoint?", 0.95, False),
        ("What is the minimum size?", "What is the maximum size?", 0.97, False),
        ("Who is on call on day 5?", "Who is on call on day 6?", 0.99, False),
        ("What is the limit of Studio?", "What is the limit of Canvas?", 0.96, False),
        ("Is it billed?", "Is it not billed?", 0.97, False),
        ("How do I turn JSON into CSV?", "How do I turn CSV into JSON?", 0.99, False),
        ("When was it made?", "Where was it made?", 0.95, False),
        ("What is Studio used for?", "What does Studio produce?", 0.95, False),
        ("What can you do with it?", "What do you get from it?", 0.95, False),
        ("How do I travel to Oslo?", "How do I travel from Oslo?", 0.95, False),
        ("Is C allowed?", "Is C++ allowed?", 0.97, False),
        ("What is a ml.g5.xlarge?", "What is a ml.g6.xlarge?", 0.99, False),
        (
            "How many seats has the hall?",
            "How many seats does the hall have?",
            0.9,
            True,
        ),
    ],
)
def test_questions_word_by_word(one, other, likeness, same) -> None:
    assert same_question(one, other, likeness) == same


@pytest.mark.parametrize(
    "one, other, likeness, differ",
    [
        ("It is 5 GB.", "It is 15 GB.", 0.97, True),
        ("Five days.", "5 days", 0.9, False),
        ("Yes, it is.", "No, it is not.", 0.8, True),
        ("It is billed.", "It is not billed.", 0.95, True),
        ("1,000 rows", "1000 rows", 0.9, False),
        ("At most 28 days.", "28 days, or 2 with a trial.", 0.7, False),
        ("In Oslo.", "Ask the porter.", 0.1, True),
        ("Park in the yard.", "In the yard you can park.", 0.9, False),
    ],
)
def test_answers_that_differ(one, other, likeness, differ) -> None:
    assert differing_answers(one, other, likeness) == differ


@pytest.mark.parametrize(
    "text, code",
    [
        ("Multi-model endpoints host several models behind one endpoint.", "en"),
        ("Der Endpunkt kostet jede Stunde Geld, bis er gelöscht ist.", "de"),
        ("Comment supprimer un point de terminaison dans la console ?", "fr"),
        ("El punto de conexión cuesta dinero cada hora.", "es"),
        ("Как удалить конечную точку?", "ru"),
        ("如何删除终端节点？请打开控制台。", "zh"),
        ("エンドポイントを削除する方法", "ja"),
        ("28 days.", ""),
        ("ml.g5.2xlarge", ""),
        ("`estimator.fit(inputs, wait=True)`", ""),
        ("", ""),
        ("12345 67890", ""),
    ],
)
def test_the_language_of_a_text(text, code) -> None:
    assert language_of(text)[0] == code
