"""The judge of free answers, and how often it is right on answers labelled by hand."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest

from utils.course import FAQS_DATA, ROOT, CourseError
from utils.dataset.facts import is_right, load_facts
from utils.encoder import load_encoder
from utils.evaluation.answers import (
    THRESHOLDS,
    JudgeError,
    _objection,
    check_rules,
    groups_of,
    judge_for,
    news_f1,
    phrases,
    way_of,
)
from utils.evaluation.scores import proportion
from utils.lab_model.evaluate import rows_of

LABELLED = ROOT / "data" / "judged_answers.csv"
HALVES = ("development", "held out")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


def labelled(half: str) -> list[dict[str, str]]:
    """Answers with `right`, "yes" or "no"; the rules were written on the first half."""
    with open(LABELLED, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["half"] == half]


def question_row(row: dict[str, str], rule: bool) -> dict[str, str]:
    """The row of a file of questions to which a labelled answer belongs."""
    made = {
        "instruction": row["question"],
        "response": row["expected"],
        "group": row["question"],
    }
    columns = ("must_say", "must_not_say") if rule else ()
    return made | {name: row[name] for name in columns}


def accuracy(half: str, rule: bool, encoder=None, references=None) -> float:
    rows = labelled(half)
    asked = [question_row(row, rule) for row in rows]
    judge = judge_for(asked, references, encoder)
    verdicts = judge.right([row["answer"] for row in rows], asked)
    agree = [
        v == (row["right"] == "yes") for v, row in zip(verdicts, rows, strict=True)
    ]
    return float(np.mean(agree))


# --- measured on answers labelled by hand ---


def test_the_labelled_answers_are_many_mixed_and_of_all_kinds() -> None:
    rows = labelled(HALVES[0]) + labelled(HALVES[1])
    assert len(rows) >= 160
    assert 0.4 < np.mean([row["right"] == "yes" for row in rows]) < 0.6
    kinds = Counter(row["kind"] for row in rows)
    assert set(kinds) == {
        *("paraphrase", "number in words", "wrong value", "negation", "half answer"),
        *("near miss", "both values", "refusal", "off-topic"),
    }
    assert min(kinds.values()) >= 5
    asked = [{row["question"] for row in labelled(half)} for half in HALVES]
    assert not asked[0] & asked[1]
    assert len({(row["question"], row["answer"]) for row in rows}) == len(rows)


def test_every_row_of_the_courses_questions_is_right_by_its_own_rule() -> None:
    with open(FAQS_DATA, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert check_rules(rows) == []
    assert {way_of(row) for row in rows} == {"rule"}


@pytest.mark.parametrize("half", HALVES)
def test_the_labelled_questions_are_right_by_their_own_rules(half) -> None:
    assert check_rules([question_row(row, rule=True) for row in labelled(half)]) == []


# Measured: 0.99 on the half on which the rules were written, 0.96 on the other.
@pytest.mark.parametrize(("half", "least"), [(HALVES[0], 0.95), (HALVES[1], 0.9)])
def test_the_rule_is_right_on_nine_answers_in_ten(half, least) -> None:
    assert accuracy(half, rule=True) >= least


# Measured: 0.90 and 0.87.
@pytest.mark.parametrize(("half", "least"), [(HALVES[0], 0.85), (HALVES[1], 0.82)])
def test_likeness_is_right_less_often(half, least, encoder) -> None:
    assert least <= accuracy(half, rule=False, encoder=encoder) < 0.95


def test_a_threshold_learned_from_paraphrases_holds_on_other_questions(encoder) -> None:
    # Measured: 0.87. The paraphrases are the right answers of the other half.
    references = [
        {"instruction": r["question"], "response": r["answer"], "group": r["question"]}
        for r in labelled(HALVES[0])
        if r["right"] == "yes"
    ]
    assert accuracy(HALVES[1], False, encoder, references) >= 0.82


def test_likeness_alone_would_let_pass_what_the_judge_does_not(encoder) -> None:
    """Cosines of wrong answers are those of right ones: why there is more to it."""
    rows = labelled(HALVES[0])
    vectors = encoder.embed([row["answer"] for row in rows])
    cosines = (vectors * encoder.embed([row["expected"] for row in rows])).sum(1)

    def median(**wanted: str) -> float:
        chosen = [all(r[n] == v for n, v in wanted.items()) for r in rows]
        return float(np.median(cosines[chosen]))

    for kind in ("wrong value", "negation", "near miss"):
        assert median(right="no", kind=kind) > median(right="yes") - 0.1


# --- by rule ---

ROW = {
    "instruction": "How long may a job run?",
    "response": "A job may run for 28 days.",
    "must_say": "28 days | a fortnight and a fortnight",
    "must_not_say": "5 days | 7 days",
}


@pytest.mark.parametrize(
    ("answer", "right", "reason"),
    [
        ("It may run for twenty-eight days.", True, "states '28 days'"),
        ("28 days, not 5 days.", True, "states '28 days'"),
        ("It may run for long.", False, "does not state '28 days'"),
        ("It may run for 28 days or 5 days.", False, "states another value: '5 days'"),
        ("It may not run for 28 days.", False, "negates '28 days'"),
        ("It may run for 128 days.", False, "does not state '28 days'"),
        ("", False, "empty"),
        (" \n", False, "empty"),
        ("…", False, "empty"),
    ],
)
def test_a_verdict_says_why(answer, right, reason) -> None:
    (verdict,) = judge_for([ROW]).verdicts([answer], [ROW])
    assert (verdict.right, verdict.reason, verdict.by) == (right, reason, "rule")
    assert bool(verdict) is right
    assert float(verdict) == right
    assert not verdict.cut_off


def test_an_answer_that_was_cut_off_is_called_so() -> None:
    answers = ["The limit of a job is given in the", "It is 28 days, and that", "No."]
    finished = [False, False, True]
    verdicts = judge_for([ROW]).verdicts(answers, [ROW] * 3, finished)
    assert [v.cut_off for v in verdicts] == [True, True, False]
    assert [v.right for v in verdicts] == [False, True, False]
    assert verdicts[0].reason.startswith("cut off; does not state")
    assert verdicts[2].reason == "does not state '28 days'"


def test_a_bare_number_counts_what_the_rows_own_answer_counts() -> None:
    row = ROW | {"must_say": "28", "must_not_say": "5"}
    answers = ["28.", "It is 28 days.", "It is 28 GB.", "28 days on 5 GB", "28, not 5"]
    assert judge_for([row]).right(answers, [row] * 5) == [True, True, False, True, True]
    assert not any(judge_for([row]).right(["28 or 5 days", "28 or 5"], [row] * 2))


def test_what_must_not_be_said_may_stand_inside_what_must() -> None:
    row = ROW | {"must_say": "SageMaker AI", "must_not_say": "SageMaker"}
    judge = judge_for([row])
    assert judge.right(["It is SageMaker AI.", "It is SageMaker."], [row, row]) == [
        True,
        False,
    ]


@pytest.mark.parametrize("empty", [None, "", "  ", "|", float("nan")])
def test_empty_cells_say_nothing(empty) -> None:
    assert phrases(empty) == []
    assert way_of(ROW | {"must_say": empty}) == "likeness"
    assert judge_for([ROW]).right(["28 days, 5 days"], [ROW | {"must_not_say": empty}])


def test_cells_hold_strings_between_bars() -> None:
    assert phrases(" no charge|free | $0 ") == ["no charge", "free", "$0"]


def test_a_row_that_contradicts_its_own_rule_is_named() -> None:
    wrong = ROW | {"response": "A job may run for 5 days."}
    judge = judge_for([ROW, wrong])
    (note,) = judge.notes
    assert "Row 1 ('How long may a job run?')" in note
    assert "states another value: '5 days'" in note
    assert "Correct" in note


def test_as_many_answers_as_rows() -> None:
    judge = judge_for([ROW])
    with pytest.raises(JudgeError, match="2 answers for 1 questions") as caught:
        judge.verdicts(["one", "two"], [ROW])
    assert isinstance(caught.value, CourseError)
    with pytest.raises(JudgeError, match="1 answers and 2 ends for 1"):
        judge.verdicts(["one"], [ROW], [True, True])


# --- by fact ---


def test_lab_answers_are_judged_as_before() -> None:
    rows = rows_of("wording")
    judge = judge_for(rows)
    assert judge.threshold is None  # and no encoder was loaded
    answers = [row["response"] for row in rows]
    shifted = answers[1:] + answers[:1]
    both = [f"{one} {other}" for one, other in zip(answers, shifted, strict=True)]
    for given in (answers, shifted, both, [""] * len(rows)):
        assert judge.right(given, rows) == [
            is_right(answer, row["fact"])
            for answer, row in zip(given, rows, strict=True)
        ]
    assert all(judge.right(answers, rows))
    assert {v.by for v in judge.verdicts(answers, rows)} == {"fact"}


def test_a_lab_verdict_names_the_other_value() -> None:
    fact = next(fact for fact in load_facts() if fact.relation == "users")
    others = {f.value for f in load_facts() if f.relation == "users"} - {fact.value}
    other = sorted(others)[0]
    row = {"instruction": "Who?", "response": fact.value, "fact": fact.id}
    judge = judge_for([row])
    (verdict,) = judge.verdicts([f"It is made for {other}."], [row])
    assert verdict.reason == f"states another value: {other!r}"


# --- by likeness ---

PAIRS = [
    ("What colour is the door?", "The door is painted dark green."),
    ("Where do I park?", "Park behind the building, next to the bicycle shed."),
    ("When does lunch start?", "Lunch is served from 12 until 14."),
    ("Who repairs the printer?", "The help desk on the second floor repairs it."),
    ("May I bring my dog?", "Dogs are not allowed in the building."),
    ("How do I get a key?", "Ask the porter for a key card and sign for it."),
    ("What is the password of the guest network?", "It is printed on the badge."),
    ("Which bus stops here?", "Line 7 stops in front of the gate."),
    ("Who waters the plants?", "A gardener comes on Mondays to water them."),
    ("How are travel costs refunded?", "Send the receipts to accounting."),
    ("Where are the fire exits?", "At both ends of each corridor."),
    ("What does coffee cost?", "Coffee is free of charge for all."),
]
ROWS = [{"instruction": question, "response": answer} for question, answer in PAIRS]


@pytest.fixture(scope="module")
def judge(encoder):
    return judge_for(ROWS, encoder=encoder)


def test_the_files_own_answers_are_right_and_those_to_other_questions_wrong(
    judge,
) -> None:
    answers = [row["response"] for row in ROWS]
    assert all(judge.right(answers, ROWS))
    assert not any(judge.right(answers[1:] + answers[:1], ROWS))
    assert THRESHOLDS[0] <= judge.threshold <= THRESHOLDS[1]


@pytest.mark.parametrize(
    ("number", "answer", "right", "reason"),
    [
        (
            1,
            "Behind the building there is parking, by the bicycle shed.",
            True,
            "alike",
        ),
        (2, "Lunch is served from 12 until 15.", False, "another number: 15"),
        (4, "Dogs are allowed in the building.", False, "negates"),
        (4, "No dogs are allowed in the building.", True, "alike"),
        (0, "I am sorry, I do not know.", False, "unlike (0."),
        (7, "Line 17 stops in front of the gate.", False, "another number: 17"),
        (2, "Lunch is served from twelve until fourteen.", True, "alike"),
        (8, "A gardener comes on Fridays to water them.", False, "friday, not monday"),
        (8, "A gardener comes every Monday to water them.", True, "alike"),
    ],
)
def test_likeness_sees_numbers_and_negations(
    judge, number, answer, right, reason
) -> None:
    (verdict,) = judge.verdicts([answer], [ROWS[number]])
    assert verdict.right is right, verdict
    assert reason in verdict.reason
    assert verdict.by == "likeness"


BAKED = "Baguettes bake for 22 minutes, with steam in the first five."


@pytest.mark.parametrize(
    ("answer", "expected", "reason"),
    [
        ("For 22 minutes; there is steam in the first five minutes.", BAKED, ""),
        ("For 22, with steam in the first 5.", BAKED, ""),
        ("For 22 minutes; in the first ten minutes there is steam.", BAKED, "10 min"),
        ("For 22 hours, with steam in the first five.", BAKED, "22 hour"),
        ("One hour.", "It takes 2 hours.", "1 hour"),
        ("At 9 am.", "It opens at 9 pm.", "am, not pm"),
        ("I am sure: at the gate.", "At 9 pm, at the gate.", ""),
        ("In the north.", "In the south.", "north, not south"),
        ("In June or July.", "It is closed in July.", ""),
        ("Not on Fridays but on Mondays.", "On Mondays.", ""),
        ("On Tuesdays.", "By appointment.", ""),
    ],
)
def test_what_likeness_cannot_see(answer: str, expected: str, reason: str) -> None:
    objection = _objection("How is it done?", answer, expected)
    assert reason in objection
    assert bool(reason) == bool(objection)


def test_a_day_of_the_question_may_be_named() -> None:
    question, expected = "Are you open on Fridays?", "Yes, and on Mondays."
    assert not _objection(question, "On Fridays, yes.", expected)
    assert _objection(question, "On Sundays, yes.", expected)


def test_signs_decimals_and_names_count_in_f1() -> None:
    question = "Which one?"
    assert news_f1(question, "C++", "C++") == 1
    assert news_f1(question, "C", "C++") == 0
    assert news_f1(question, "2.5", "25") == 0
    assert news_f1(question, "-5", "5") == 0
    assert news_f1(question, "two weeks", "14 days") == 1


def test_words_of_the_question_are_no_news() -> None:
    question = "What is the limit of a job?"
    assert news_f1(question, "The limit of a job is 28 days.", "28 days.") == 1
    assert news_f1(question, "The limit of a job is 5 days.", "28 days.") == 0
    assert news_f1(question, "The limit of a job.", "A limit.") > 0  # nothing is new


def test_all_answers_of_a_group_count_as_right(encoder) -> None:
    row = {"instruction": "Is it open?", "response": "Yes, from nine.", "group": "open"}
    other = row | {"response": "The gates are unlocked all morning."}
    said = ["All morning the gates are unlocked."]
    assert judge_for([row], [other], encoder).right(said, [row]) == [True]
    assert judge_for([row], [], encoder).right(said, [row]) == [False]


def test_few_answers_leave_the_threshold_a_guess(encoder) -> None:
    judge = judge_for(ROWS[:3], encoder=encoder)
    assert judge.threshold == np.mean(THRESHOLDS)
    assert "a guess: 3 different answers" in judge.describe()


def test_a_judge_says_how_it_decides(judge, encoder) -> None:
    assert f"at least {judge.threshold:.2f}" in judge.describe()
    assert "nearest of 12 other answers alone" in judge.describe()
    assert "must_say" in judge_for([ROW]).describe()
    again = [
        {"instruction": q, "response": f"Well, I think {a.lower()}", "group": q}
        for q, a in PAIRS
    ]
    first = [row | {"group": row["instruction"]} for row in ROWS]
    grouped = judge_for(first, again, encoder).describe()
    assert "Learned from 12 paraphrases of the file, of which it misses" in grouped


def test_a_judge_of_rules_cannot_judge_by_likeness() -> None:
    with pytest.raises(JudgeError, match=r"make it with judge_for\(all rows\)"):
        judge_for([ROW]).right(["Green."], [ROWS[0]])


def test_a_large_file_is_learned_from_in_part(encoder, monkeypatch) -> None:
    monkeypatch.setattr("utils.evaluation.answers.MOST_COMPARED", 11)
    assert "nearest of 11 other answers" in judge_for(ROWS, encoder=encoder).describe()


# --- what belongs together ---


def test_rows_are_grouped_by_what_they_name_or_by_equal_answers() -> None:
    rows = [
        {"response": "a", "fact": "f1"},
        {"response": "b", "fact": "f1"},
        {"response": "c", "fact": None, "group": 3},
        {"response": "c", "fact": float("nan"), "group": ""},
        {"response": "c"},
    ]
    groups = groups_of(rows)
    assert groups[0] == groups[1]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3
    verdicts = judge_for([ROW]).verdicts(["28 days", "28 days", "?"], [ROW] * 3)
    assert proportion(verdicts, groups_of([ROW] * 3)).value == pytest.approx(2 / 3)
