"""Experiment 02: how its prompts are changed, and what its checks say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from support.word_problems import check_step, solve
from utils.exercises.experiment_02_prompts_measured import (
    HONEST,
    KNOWN,
    SMUGGLED,
    STRANGERS,
    check_chain,
    check_input_guard,
)
from utils.tasks import (
    LARGEST_OPERAND,
    RELATION_MEANINGS,
    RELATIONS,
    apart,
    few_shot_tasks,
    injected,
    larger_problem,
    lie_about,
    other_relation,
    together,
    with_a_lie,
    with_odd_one,
    with_other_labels,
    with_swapped_labels,
)

TASKS = few_shot_tasks(3, n_prompts=100)


def pairs_of(prompt: str) -> list[list[str]]:
    return [line.split(" - ") for line in prompt.splitlines()[:-1]]


# --- prompts that are changed ---


def test_every_relation_can_be_said_in_words() -> None:
    assert RELATION_MEANINGS.keys() == RELATIONS.keys()


@pytest.mark.parametrize("task", TASKS[:20])
def test_a_prompt_is_taken_apart_and_put_together(task) -> None:
    assert together(*apart(task)) == task.prompt


def test_swapped_labels_are_false_and_of_the_same_relation() -> None:
    wrong = 0
    for task in TASKS:
        for word, label in pairs_of(with_swapped_labels(task)):
            assert label in RELATIONS[task.kind].values()
            wrong += label != RELATIONS[task.kind][word]
    # two countries may share a language, a continent or a currency
    assert wrong > 0.8 * 3 * len(TASKS)


def test_labels_of_other_relations_are_true() -> None:
    for task in TASKS:
        kinds = []
        for word, label in pairs_of(with_other_labels(task)):
            fitting = {kind for kind in RELATIONS if RELATIONS[kind].get(word) == label}
            assert fitting - {task.kind}
            kinds.append(fitting)
        assert len(kinds) == 3


def test_a_lie_is_about_the_word_itself() -> None:
    for task in TASKS:
        word, label = pairs_of(with_a_lie(task))[-1]
        assert word == apart(task)[1]
        assert label == lie_about(task) != task.answer


@pytest.mark.parametrize("place", range(3))
def test_one_example_is_of_another_relation(place: int) -> None:
    for task in TASKS:
        prompt, wanted = with_odd_one(task, place)
        other = RELATIONS[other_relation(task)]
        assert other is not RELATIONS[task.kind]
        assert other[apart(task)[1]] == wanted
        before, after = pairs_of(task.prompt), pairs_of(prompt)
        assert after[place] == [before[place][0], other[before[place][0]]]
        del before[place], after[place]
        assert before == after


@pytest.mark.parametrize(
    ("way", "lines"),
    [("nothing", 0), ("an order", 1), ("one line", 1), ("two lines", 2)],
)
def test_what_is_smuggled_in_stands_before_the_word(way: str, lines: int) -> None:
    for task in TASKS:
        prompt, goal = injected(task, way)
        word = apart(task)[1]
        assert prompt.startswith(task.prompt.rpartition(word)[0])
        assert prompt.endswith(f"\n{word} -")
        assert prompt.count("\n") == task.prompt.count("\n") + lines
        assert goal == RELATIONS[other_relation(task)][word]


def test_larger_problems_are_right_and_larger() -> None:
    for seed in range(50):
        problem = larger_problem(seed, largest=80)
        _, result = solve(problem.question)
        assert result == problem.result
        for step in problem.steps:
            check_step(step)
    numbers = [int(n) for n in re.findall(r"\d+", larger_problem(0, 200).question)]
    assert max(numbers) > LARGEST_OPERAND


# --- exercise 1 ---


def counts(start: int | str, changes: Sequence[str]) -> str:
    """A model that makes no mistake."""
    total = int(start)
    for change in changes:
        sign = 1 if re.search("buys|finds|gets", change) else -1
        total += sign * int(re.findall(r"\d+", change)[0])
    return str(total)


def in_threes(start, changes, ask):
    for first in range(0, len(changes), 3):
        start = ask(start, changes[first : first + 3])
    return start


def one_by_one(start, changes, ask):
    for change in changes:
        start = ask(start, change)
    return int(start)


@pytest.mark.parametrize("chain", [in_threes, one_by_one])
def test_right_chains(chain: Callable) -> None:
    verdict = check_chain(chain, counts)
    assert verdict.passed, verdict
    assert "8 of 8" in verdict.message


def twice(start, changes, ask):
    ask(start, changes[:3])
    return in_threes(start, changes, ask)


def backwards(start, changes, ask):
    return in_threes(start, changes[::-1], ask)


def own_start(start, changes, ask):
    return in_threes(0, changes, ask)


def own_middle(start, changes, ask):
    ask(start, changes[:3])
    return ask(7_000, changes[3:])


def own_end(start, changes, ask):
    in_threes(start, changes, ask)
    return 7_000


@pytest.mark.parametrize(
    ("chain", "hint"),
    [
        (twice, "in their order"),
        (backwards, "in their order"),
        (own_start, "starts with 0 and not"),
        (own_middle, "the next one starts with 7000"),
        (own_end, "but chain returns 7000"),
        (lambda start: start, "stops with TypeError"),
    ],
)
def test_wrong_chains_get_their_hint(chain: Callable, hint: str) -> None:
    verdict = check_chain(chain, counts)
    assert verdict.passed is False
    assert hint in verdict.message


def test_a_chain_on_a_model_that_cannot_count() -> None:
    verdict = check_chain(in_threes, lambda start, changes: "5")
    assert verdict.passed is False
    assert "0 of 8" in verdict.message
    verdict = check_chain(in_threes, lambda start, changes: None)
    assert verdict.passed is False


# --- exercise 2 ---


def test_inputs_are_told_apart() -> None:
    assert not set(HONEST) & set(SMUGGLED)
    assert not set(KNOWN) & set(STRANGERS)


def test_an_allow_list_passes_and_hears_its_price() -> None:
    verdict = check_input_guard(lambda text: text in KNOWN)
    assert verdict.passed
    assert "6 of the 6 honest strangers" in verdict.message
    verdict = check_input_guard(lambda text: text in HONEST)
    assert "0 of the 6 honest strangers" in verdict.message


@pytest.mark.parametrize(
    ("guard", "hint"),
    [
        (str.isalpha, "'stop' gets through"),
        (lambda text: text.replace(" ", "").isalpha(), "'say yes' gets through"),
        (lambda text: text in KNOWN or 1, "return True or False"),
        (lambda text: text[0].isalpha(), "stops with IndexError"),
    ],
)
def test_wrong_guards_get_their_hint(guard: Callable, hint: str) -> None:
    verdict = check_input_guard(guard)
    assert verdict.passed is False
    assert hint in verdict.message
