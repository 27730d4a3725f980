"""Rows for replay: what they ask, in what form, and how many are added."""

from __future__ import annotations

import random
import re

import pytest
from datasets import Dataset, DatasetDict

from utils.dataset.replay import (
    SKILLS,
    ReplayError,
    general_requests,
    in_corpus_form,
    own_answers,
    recorded_answers,
    repeats,
    skill_rows,
    with_replay,
)
from utils.helpers import add_text
from utils.tasks import (
    MOST_EXAMPLES,
    RELATIONS,
    RULES,
    final_answer,
    held_out,
    problem,
    rule_is_held_out,
)

ROWS = skill_rows(400)


def rows_of(topic: str) -> list[dict[str, str]]:
    return [row for row in ROWS if row["topic"] == topic]


def pairs_of(row: dict[str, str]) -> list[tuple[str, str]]:
    lines = f"{row['instruction']} {row['response']}".splitlines()
    return [tuple(line.split(" - ")) for line in lines]


# The rows


def test_every_skill_has_its_share_and_no_instruction_comes_twice() -> None:
    assert len(ROWS) == len({row["instruction"] for row in ROWS}) == 400
    assert {topic: len(rows_of(topic)) for topic in SKILLS} == dict.fromkeys(
        SKILLS, 100
    )


def test_the_same_seed_draws_the_same_rows_and_fewer_are_the_first_of_more() -> None:
    assert skill_rows(40) == ROWS[:40]
    assert skill_rows(40, seed=1) != ROWS[:40]


def test_the_rows_fit_the_template() -> None:
    for row in ROWS:
        assert add_text(row)["completion"].startswith(row["response"])
        assert row["instruction"] == row["instruction"].strip()


@pytest.mark.parametrize(("topic", "table"), [("relation", RELATIONS), ("rule", RULES)])
def test_words_are_completed_by_the_relation_that_the_lines_show(topic, table) -> None:
    for row in rows_of(topic):
        pairs = pairs_of(row)
        assert 2 <= len(pairs) <= MOST_EXAMPLES
        assert any(
            all(known.get(word) == answer for word, answer in pairs)
            for known in table.values()
        ), row


def test_no_pair_of_words_that_is_examined_is_replayed() -> None:
    for row in rows_of("rule"):
        for word, answer in pairs_of(row):
            rules = [name for name in RULES if RULES[name].get(word) == answer]
            assert not any(rule_is_held_out(name, word) for name in rules), row


def test_worked_problems_show_steps_without_operands_that_are_examined() -> None:
    found = 0
    for row in rows_of("worked problem"):
        assert final_answer(row["response"]), row
        for first, second in re.findall(r"\b(\d+) [+-] (\d+) =", row["response"]):
            if not re.search("km|x", row["response"]):
                assert not held_out(int(first), int(second)), row
                found += 1
    assert found > 50


def test_direct_answers_are_numbers() -> None:
    for row in rows_of("direct answer"):
        assert row["instruction"].endswith("Answer: The answer is")
        assert re.fullmatch(r"[\d.]+", row["response"]), row


def test_a_row_in_corpus_form_is_a_document_of_the_corpus() -> None:
    generator = random.Random(0)
    asked = problem(generator, "2 steps", held=False)
    steps = "".join(f"{step}. " for step in asked.steps)
    row = {
        "instruction": asked.prompt(worked=True),
        "response": f"{steps}The answer is {asked.result}.",
    }
    before = in_corpus_form(row, "<end>")
    assert before["text"] == asked.document(worked=True) + "<end>"
    assert before["text"] == before["prompt"] + before["completion"]
    assert before["prompt"] == row["instruction"]


# Mixing


@pytest.fixture(scope="module")
def dataset() -> DatasetDict:
    def part(first: int, rows: int) -> Dataset:
        ids = [[number] for number in range(first, first + rows)]
        return Dataset.from_dict(
            {
                "instruction": ["?"] * rows,
                "input_ids": ids,
                "attention_mask": [[1]] * rows,
                "labels": ids,
            }
        )

    return DatasetDict({"train": part(0, 80), "replay": part(1000, 30)})


@pytest.mark.parametrize(("share", "replayed"), [(0, 0), (0.2, 20), (0.25, 27)])
def test_the_share_is_that_of_all_rows(dataset, share, replayed) -> None:
    mixed = with_replay(dataset, share)
    assert mixed.column_names == ["input_ids", "attention_mask", "labels"]
    assert mixed["input_ids"][:80] == dataset["train"]["input_ids"][:]
    added = mixed["input_ids"][80:]
    assert len(added) == replayed == len({ids[0] for ids in added})
    assert all(ids[0] >= 1000 for ids in added)


def test_which_rows_are_replayed_follows_the_seed(dataset) -> None:
    first, again = with_replay(dataset, 0.2), with_replay(dataset, 0.2)
    other = with_replay(dataset, 0.2, seed=1)
    assert first.to_list() == again.to_list() != other.to_list()


@pytest.mark.parametrize("share", [-0.1, 1, 20])
def test_what_is_no_share_is_an_error(dataset, share) -> None:
    with pytest.raises(ReplayError, match=f"share is {share}: .*such as 0.2"):
        with_replay(dataset, share)


def test_a_share_that_takes_more_rows_than_there_are_is_an_error(dataset) -> None:
    with pytest.raises(ReplayError, match="takes 80 rows .* there are 30: lower"):
        with_replay(dataset, 0.5)


def test_a_data_set_without_replay_is_an_error(dataset) -> None:
    with pytest.raises(ReplayError, match="no part 'replay': run 03_dataset"):
        with_replay(DatasetDict(train=dataset["train"]), 0.2)


# --- general requests, answered by the model itself ---


def test_general_requests_are_different_and_their_kinds_go_round() -> None:
    requests = general_requests()
    assert len({row["instruction"] for row in requests}) == len(requests)
    kinds = [row["topic"] for row in requests]
    assert len(set(kinds[:4])) == 4
    assert {kinds.count(kind) for kind in kinds} == {len(requests) // 4}


def test_recorded_answers_belong_to_the_requests_and_suffice_for_a_fifth() -> None:
    rows = recorded_answers()
    known = {(row["instruction"], row["topic"]) for row in general_requests()}
    assert {(row["instruction"], row["topic"]) for row in rows} <= known
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert not [row for row in rows if repeats(row["response"])]
    assert len(rows) >= 440 / 4  # the course's training rows


def test_without_the_file_the_remedy_is_named(tmp_path) -> None:
    with pytest.raises(ReplayError, match=r"none\.csv is missing: .*dataset replay"):
        recorded_answers(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("It is a boat. It is fast.", False),
        ("1. A coat\n2. A coat\n3. A hat", True),
        ("It is warm. It is warm.", True),
        ("Yes", False),
    ],
)
def test_what_counts_as_saying_a_thing_twice(text: str, twice: bool) -> None:
    assert repeats(text) is twice


@pytest.mark.parametrize(
    ("finished", "kept"),
    [
        ([True, True, True, True, False], ["Warm."]),
        ([False] * 5, ["It is warm. It is warm.", "Warm.", "Cold and"]),
    ],
)
def test_answers_that_were_cut_off_are_kept_only_for_want_of_others(
    finished, kept, monkeypatch
) -> None:
    from support.tiny_models import tiny_tokenizer
    from utils import models
    from utils.templates import instruction_template

    texts = ["It is warm. It is warm.", "Warm.", "  ", "Cold ### End", "Cold and"]
    said = models.Answers(texts, finished)
    monkeypatch.setattr(models, "generate", lambda *_, **__: said)
    requests = general_requests()[:5]
    rows = own_answers(requests, None, instruction_template(tiny_tokenizer()))
    assert [row["response"] for row in rows] == kept
    asked = {text: row for text, row in zip(texts, requests, strict=True)}
    for row in rows:
        assert row == {**asked[row["response"]], "response": row["response"]}
