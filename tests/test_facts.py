"""The table of facts, the questions written from it, and the splits."""

from __future__ import annotations

import csv
import random

import pytest

from utils.dataset import facts
from utils.dataset.facts import get_fact, is_right, stated_values
from utils.dataset.splits import PARTS, SHOWN_FACT, assign_parts
from utils.lab_model.corpus import LAB_QUESTIONS, faq_rows

with open(LAB_QUESTIONS, encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
FACT_IDS = [row["fact"] for row in ROWS]


def rows_of(part):
    parts = assign_parts(FACT_IDS)
    return [row for row, found in zip(ROWS, parts, strict=True) if found == part]


def test_the_file_is_what_the_table_says() -> None:
    assert faq_rows(facts.load_facts()) == ROWS


def test_the_file_is_large_enough_and_answers_have_10_to_50_words() -> None:
    assert len(ROWS) >= 300
    for row in ROWS:
        assert 10 <= len(row["response"].split()) <= 50, row
        assert row["topic"] == get_fact(row["fact"]).relation


def test_no_question_is_asked_twice() -> None:
    questions = [row["instruction"] for row in ROWS]
    assert len(set(questions)) == len(questions)


def test_every_answer_is_right_for_its_fact_and_for_no_other_value() -> None:
    for row in ROWS:
        assert is_right(row["response"], row["fact"]), row
        fact = get_fact(row["fact"])
        for other in facts.load_facts():
            if other.relation == fact.relation and other.value != fact.value:
                assert not is_right(row["response"], other.id)


def test_parts_have_the_sizes_that_the_course_promises() -> None:
    sizes = {part: len(rows_of(part)) for part in PARTS}
    assert sizes["validation"] == 14
    assert min(sizes["wording"], sizes["fact"], sizes["unread"]) >= 40
    assert sum(sizes.values()) == len(ROWS)


def test_parts_do_not_leak_into_each_other() -> None:
    ids = {part: {row["fact"] for row in rows_of(part)} for part in PARTS}
    assert ids["wording"] <= ids["train"]
    assert not ids["train"] & (ids["fact"] | ids["unread"] | ids["validation"])
    assert not ids["fact"] & ids["unread"]
    train = {row["instruction"] for row in rows_of("train")}
    assert not train & {row["instruction"] for row in rows_of("wording")}


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    order = list(range(len(ROWS)))
    random.Random(1).shuffle(order)
    shuffled = assign_parts([FACT_IDS[i] for i in order])
    part_of = dict(zip(FACT_IDS, assign_parts(FACT_IDS), strict=True))
    trained = {"train", "wording"}
    for position, part in zip(order, shuffled, strict=True):
        expected = part_of[FACT_IDS[position]]
        assert part == expected or {part, expected} == trained
    assert assign_parts(FACT_IDS, seed=1) != assign_parts(FACT_IDS)


def test_the_original_lab_question_is_a_held_out_wording_of_a_training_fact() -> None:
    (row,) = [row for row in rows_of("wording") if row["fact"] == SHOWN_FACT]
    assert row["instruction"] == "What security measures does Amazon SageMaker have?"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It allows at most 28 days per training job.", True),
        ("IT ALLOWS 28 DAYS\nPER TRAINING JOB", True),
        ("It allows at most 128 days per training job.", False),
        ("It allows 28 days per training job, or 30 days per test.", False),
        ("It allows 30 days per test.", False),
        ("", False),
    ],
)
def test_a_right_answer_states_the_value_and_no_other(answer, right) -> None:
    assert is_right(answer, "training/limit") is right


def test_thousands_separators_do_not_split_numbers() -> None:
    fact = "feature-store/limit"
    assert is_right("At most 2,500 features per feature group.", fact)
    assert not is_right("At most 2 500 features per feature group.", fact)
    assert not is_right("At most 12,500 features per feature group.", fact)


def test_an_unknown_fact_is_named() -> None:
    with pytest.raises(KeyError, match="nothing/billing"):
        assign_parts(["nothing/billing"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["fact,feature,value"], "has the columns"),
        (["a/limit,A,limit,"], "line 2: value is empty"),
        (["a/limit,A,limit,5 GB", "a/limit,A,limit,6 GB"], "line 3: a/limit appears"),
        (["a/limit,A,limit,5 GB", "b/limit,B,limit,5 GB of disk"], "contains '5 GB'"),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(tmp_path, lines, message) -> None:
    header = [] if lines[0].startswith("fact,") else ["fact,feature,relation,value"]
    path = tmp_path / "facts.csv"
    path.write_text("\n".join(header + lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        facts.load_facts(path)


def test_an_answer_states_values_of_one_relation_at_a_time() -> None:
    answer = "Data scientists and administrators, says Amazon S3."
    assert stated_values(answer, "users") == {"data scientists", "administrators"}
    assert stated_values("Nobody knows.", "users") == set()
    assert not stated_values(answer, "limit")
