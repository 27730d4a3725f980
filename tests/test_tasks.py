"""Problems and relations that the lessons ask the lab model for."""

from __future__ import annotations

import random
import re

import pytest

from support.word_problems import check_step, operands, solve
from utils.tasks import (
    PROBLEM_KINDS,
    PROMPT_PARTS,
    RELATIONS,
    few_shot_tasks,
    final_answer,
    first_line,
    held_out,
    problem,
    problems,
    prompt_of_parts,
    solved,
)


@pytest.mark.parametrize("kind", PROBLEM_KINDS)
def test_problems_are_right_and_held_out(kind) -> None:
    for one in problems(kind, 200):
        operations, result = solve(one.question)
        assert all(held_out(*operands(each)) for each in operations), one
        assert result == one.result
        for step in one.steps:
            check_step(step)
        assert re.search(rf"= {result}\b", one.steps[-1])
        if kind.endswith("steps"):
            assert f"{len(operations)} steps" == kind
        for style in ("plain", "system"):
            for worked in (True, False):
                prompt, document = (
                    one.prompt(worked, style),
                    one.document(worked, style),
                )
                assert final_answer(document.removeprefix(prompt)) == result


def test_an_unknown_kind_of_problem_is_an_error() -> None:
    with pytest.raises(ValueError, match="'5 steps'"):
        problem(random.Random(0), "5 steps", held=True)


def test_there_are_a_dozen_relations_of_twenty_pairs_and_each_word_has_several() -> (
    None
):
    assert len(RELATIONS) >= 12
    assert min(map(len, RELATIONS.values())) >= 20
    sounds = {"cow": "moo", "dog": "bark", "cat": "meow", "duck": "quack"}
    assert sounds.items() <= RELATIONS["sound"].items()
    for task in few_shot_tasks(0, 50):
        assert len(task.also_valid) >= 3  # without examples any of them may be meant


def test_few_shot_prompts_ask_for_the_same_words_whatever_they_show() -> None:
    zero, three = few_shot_tasks(0, 50), few_shot_tasks(3, 50)
    for bare, shown in zip(zero, three, strict=True):
        assert shown.prompt.endswith(bare.prompt)
        assert shown.answer == bare.answer
        assert shown.prompt.count("\n") == 3
        assert not shown.prompt.endswith(" ")
        shown_pairs = dict(line.split(" - ") for line in shown.prompt.splitlines()[:3])
        assert RELATIONS[shown.kind].items() >= shown_pairs.items()
        assert bare.prompt.removesuffix(" -") not in shown_pairs


def test_a_relation_with_too_few_pairs_is_named() -> None:
    with pytest.raises(ValueError, match="'tiny' has 2 pairs"):
        few_shot_tasks(2, 1, relations={"tiny": {"a": "b", "c": "d"}})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 12 + 3 = 15. The answer is 15.", "15"),
        (" 1.5 hours. The answer is 40.5.", "40.5"),
        (" 15.\n", "15"),
        ("no number", None),
        ("", None),
    ],
)
def test_final_answer(text, number) -> None:
    assert final_answer(text) == number


def test_solved_are_the_texts_that_end_with_their_problems_result() -> None:
    asked = problems("1 steps", 3)
    right = f" The answer is {asked[0].result}."
    assert solved([right, "no number", " 0.5"], asked) == [True, False, False]
    with pytest.raises(ValueError, match="longer"):
        solved([right], asked)


def test_first_line_skips_blank_lines() -> None:
    assert first_line("\n  quack \nmoo") == "quack"
    assert first_line("") == ""


# --- prompts of parts ---

TASKS = few_shot_tasks(3, n_prompts=50)


def test_a_prompt_of_examples_alone_is_the_tasks_own() -> None:
    for task in TASKS:
        assert prompt_of_parts(task, ["examples"]) == task.prompt
        assert prompt_of_parts(task, []) == task.prompt.splitlines()[-1]


def test_a_prompt_has_the_parts_that_are_named() -> None:
    whole = prompt_of_parts(TASKS[0], PROMPT_PARTS)
    assert whole.endswith(TASKS[0].prompt)
    for part in PROMPT_PARTS[:5]:
        some = prompt_of_parts(TASKS[0], [part])
        assert all(line in whole for line in some.splitlines()[:-1])
        assert len(some) < len(whole)
    with pytest.raises(ValueError, match="no parts"):
        prompt_of_parts(TASKS[0], ["tone"])
