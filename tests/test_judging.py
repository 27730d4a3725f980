"""Blind pairs, votes and what follows from them."""

from __future__ import annotations

import json

import pytest

from utils.evaluation.answers import judge_for
from utils.evaluation.judging import (
    FeedbackError,
    blind_pairs,
    labelled_answers,
    preference,
    read_feedback,
    store_votes,
    votes_of,
)

QUESTIONS = [f"Question {number}?" for number in range(40)]
ANSWERS = {
    "base": [f"base says {number}" for number in range(40)],
    "tuned": [f"tuned says {number}" for number in range(40)],
}


def vote_for(system, pairs):
    return ["A" if pair.a_is == system else "B" for pair in pairs]


def test_sides_are_drawn_and_systems_not_shown() -> None:
    pairs = blind_pairs(QUESTIONS, ANSWERS, 40)
    left = [pair.a_is for pair in pairs]
    assert 10 < left.count("base") < 30
    assert {pair.question for pair in pairs} == set(QUESTIONS)
    for pair in pairs:
        number = pair.question.split()[1].rstrip("?")
        assert pair.a == f"{pair.a_is} says {number}"
        assert pair.b == f"{pair.b_is} says {number}"
        assert pair.a_is != pair.b_is
    hidden = blind_pairs(["Why?"], {"one": ["left"], "other": ["right"]}, 1)[0]
    assert "one" not in repr(hidden)
    assert "other" not in repr(hidden)


def test_the_same_seed_draws_the_same() -> None:
    assert blind_pairs(QUESTIONS, ANSWERS, 5) == blind_pairs(QUESTIONS, ANSWERS, 5)
    assert blind_pairs(QUESTIONS, ANSWERS, 5, 1) != blind_pairs(QUESTIONS, ANSWERS, 5)


def test_equal_answers_are_not_asked_about() -> None:
    same = {"base": ["yes", "yes"], "tuned": ["yes", "no"]}
    assert [p.question for p in blind_pairs(["a", "b"], same, 2)] == ["b"]


@pytest.mark.parametrize("answers", [{"base": ["a"]}, {"base": ["a"], "tuned": []}])
def test_two_systems_have_to_answer_everything(answers) -> None:
    with pytest.raises(ValueError, match="Two systems with 1 answers"):
        blind_pairs(["a"], answers, 1)


def test_votes_are_stored_and_the_blind_is_lifted(tmp_path) -> None:
    # What Python takes for an end of line, and JSON does not.
    said = {name: [f"{one}\u2028\x85" for one in ANSWERS[name]] for name in ANSWERS}
    pairs = blind_pairs(QUESTIONS, said, 10)
    file = tmp_path / "feedback.jsonl"
    stored = store_votes(file, pairs, vote_for("tuned", pairs), "Ada")
    assert read_feedback(file) == stored
    result = preference(stored, "tuned")
    assert (result.wins, result.losses, result.ties) == (10, 0, 0)
    assert result.share.low > 0.6
    assert result.chance == pytest.approx(2 / 2**10)
    assert preference(stored, "base").losses == 10


def test_a_judge_who_always_says_left_prefers_nobody() -> None:
    pairs = blind_pairs(QUESTIONS, ANSWERS, 40)
    rows = [{"A_is": p.a_is, "B_is": p.b_is, "vote": "A"} for p in pairs]
    result = preference(rows, "tuned")
    assert result.chance > 0.05
    turned = [p.turned() for p in pairs]
    rows += [{"A_is": p.a_is, "B_is": p.b_is, "vote": "A"} for p in turned]
    assert preference(rows, "tuned").wins == preference(rows, "base").wins == 40


def test_a_new_vote_of_the_same_judge_replaces_the_old(tmp_path) -> None:
    pairs = blind_pairs(QUESTIONS, ANSWERS, 3)
    file = tmp_path / "feedback.jsonl"
    store_votes(file, pairs, ["A", "A", "A"], "Ada")
    store_votes(file, pairs[:1], ["B"], "Ben")
    rows = store_votes(file, pairs, ["=", "B", "B"], "Ada")
    assert [(row["judge"], row["vote"]) for row in rows] == [
        ("Ben", "B"),
        ("Ada", "="),
        ("Ada", "B"),
        ("Ada", "B"),
    ]
    assert preference(rows, "tuned").ties == 1


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (["A"], "1 votes on 2 pairs"),
        (["A", "tuned"], "Vote 2 is 'tuned'"),
        (["A", ...], "Vote 2 is Ellipsis"),
    ],
)
def test_votes_that_are_none_leave_the_file_as_it_was(tmp_path, votes, message) -> None:
    pairs = blind_pairs(QUESTIONS, ANSWERS, 2)
    file = tmp_path / "feedback.jsonl"
    store_votes(file, pairs, ["A", "B"], "Ada")
    before = file.read_bytes()
    with pytest.raises(FeedbackError, match=message):
        store_votes(file, pairs, votes, "Ada")
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", ["{", "[1]", '{"vote": "A"}', json.dumps({"vote": 3})])
def test_a_line_that_is_no_vote_is_named(tmp_path, line) -> None:
    file = tmp_path / "feedback.jsonl"
    store_votes(file, blind_pairs(QUESTIONS, ANSWERS, 1), ["A"], "Ada")
    before = file.read_text() + line + "\n"
    file.write_text(before)
    with pytest.raises(FeedbackError, match="feedback.jsonl, line 2 is no vote"):
        read_feedback(file)
    with pytest.raises(FeedbackError, match="line 2"):
        store_votes(file, blind_pairs(QUESTIONS, ANSWERS, 1), ["B"], "Ada")
    assert file.read_text() == before


def test_a_file_that_is_no_text_is_refused(tmp_path) -> None:
    file = tmp_path / "feedback.jsonl"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(FeedbackError, match=r"feedback\.jsonl cannot be read"):
        store_votes(file, blind_pairs(QUESTIONS, ANSWERS, 1), ["B"], "Ada")
    assert file.read_bytes() == b"\xff\xfe"


def test_no_decided_vote_gives_no_share() -> None:
    rows = [{"A_is": "base", "B_is": "tuned", "vote": "="}]
    result = preference(rows, "tuned")
    assert (result.share, result.chance, result.ties) == (None, 1.0, 1)
    assert repr(result) == (
        "tuned preferred 0 times, the other 0 times, neither 1 times"
    )
    with pytest.raises(FeedbackError, match="not on 'other'"):
        preference(rows, "other")


def test_a_judge_votes_for_the_answer_that_alone_is_right_on_either_side() -> None:
    rows = [
        {"instruction": question, "response": "7 days.", "must_say": "7 days"}
        for question in ("first", "second", "third")
    ]
    answers = {
        "one": ["7 days.", "5 days.", "5 days."],
        "other": ["6 days.", "7 days.", "8 days."],
    }
    votes: set[str] = set()
    for seed in range(8):
        pairs = blind_pairs([row["instruction"] for row in rows], answers, 3, seed)
        for pair, vote in zip(
            pairs, votes_of(judge_for(rows), pairs, rows), strict=True
        ):
            right = {"A": pair.a, "B": pair.b}.get(vote)
            if pair.question == "third":  # neither is right
                assert vote == "="
            else:
                assert right == "7 days."
            votes.add(vote)
    assert votes == {"A", "B", "="}


def test_labelled_answers_come_in_two_halves_that_ask_other_questions() -> None:
    whole = labelled_answers()
    halves = [labelled_answers(half) for half in ("development", "held out")]
    assert [row["half"] for row in halves[1]] == ["held out"] * 98
    assert sum(map(len, halves)) == len(whole) == 195
    asked = [{row["instruction"] for row in half} for half in halves]
    assert not asked[0] & asked[1]
    assert all(row["response"] and row["right"] in ("yes", "no") for row in whole)
