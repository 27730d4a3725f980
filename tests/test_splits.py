"""What belongs together stays together, and the parts have the right sizes."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import combinations

import numpy
import pandas
import pytest

from utils.course import ROOT
from utils.dataset.faqs import Faqs
from utils.dataset.groups import find_groups, group_column
from utils.dataset.splits import held_out_rows, plan_split, split
from utils.dataset.table import DataError
from utils.encoder import load_encoder

LABELLED = ROOT / "tests" / "support" / "grouped_questions.csv"


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def labelled() -> pandas.DataFrame:
    with open(LABELLED, encoding="utf-8", newline="") as file:
        return pandas.DataFrame(list(csv.DictReader(file)))


def frame_of(rows: int, per_group: int = 1) -> pandas.DataFrame:
    """Questions of which a column says what belongs together."""
    return pandas.DataFrame(
        {
            "instruction": [f"Question {i}?" for i in range(rows)],
            "response": [f"Answer {i}." for i in range(rows)],
            "group": [f"group {i // per_group}" for i in range(rows)],
        },
        index=range(2, rows + 2),
    )


def natural(facts: int, invented: int) -> pandas.DataFrame:
    """A file as the course's own: four trained and three free wordings a fact."""
    rows = []
    for i in range(facts + invented):
        fact = f"kestrel/{i}" if i < invented else f"training/{i}"
        for k in range(7):
            wording = "trained" if k < 4 else "free"
            rows.append(
                {
                    "instruction": f"Wording {k} of {fact}?",
                    "response": f"It is {fact}.",
                    "fact": fact,
                    "wording": wording,
                }
            )
    return pandas.DataFrame(rows)


# Which rows belong together


def scores(labels: list[int], truth: list[str]) -> tuple[float, float]:
    """Precision and recall of the pairs of rows that were linked."""
    pairs = list(combinations(range(len(labels)), 2))
    linked = {pair for pair in pairs if labels[pair[0]] == labels[pair[1]]}
    real = {pair for pair in pairs if truth[pair[0]] == truth[pair[1]]}
    both = len(linked & real)
    return both / max(len(linked), 1), both / len(real)


def test_likeness_finds_what_was_labelled_by_hand(encoder, labelled) -> None:
    groups = find_groups(labelled.drop(columns="group"), encoder)
    precision, recall = scores(groups.labels, list(labelled["group"]))
    assert precision >= 0.98
    assert recall >= 0.9
    assert groups.column is None


def test_a_stock_answer_chains_nothing_and_is_named(encoder, labelled) -> None:
    groups = find_groups(labelled.drop(columns="group"), encoder)
    stock = labelled["response"] == "Please contact the help desk."
    found = Counter(numpy.array(groups.labels)[stock.to_numpy()].tolist())
    assert sorted(found.values()) == [1, 1, 1, 1, 1, 2]
    assert "'Please contact the help desk.' (7 rows)" in groups.notes[0]


def test_a_chain_of_paraphrases_is_one_group(encoder) -> None:
    frame = pandas.DataFrame(
        {
            "instruction": [
                "How do I delete an endpoint?",
                "How do I delete or remove an endpoint?",
                "How do I remove or take down an endpoint?",
                "How do I take down an endpoint?",
                *(f"Which of the {thing} is the best one?" for thing in
                  ("apples", "trains", "novels", "rivers", "chairs", "kings",
                   "songs", "shoes", "boats", "games")),
            ],
            "response": [
                "Call delete_endpoint.", "With delete_endpoint.",
                "delete_endpoint does it.", "Use delete_endpoint for that.",
                "Red Kuri", "The Canadian", "Middlemarch", "The Loire", "Number 14",
                "Alfred", "Gloomy Sunday", "Those of felt", "A dory", "Go",
            ],
        }
    )  # fmt: skip
    labels = find_groups(frame, encoder).labels
    assert len(set(labels[:4])) == 1
    assert not set(labels[:4]) & set(labels[4:])


def test_templated_questions_do_not_become_one_group(encoder) -> None:
    things = ("roof", "door", "wall", "gate", "boat")
    colours = ("red", "green", "blue", "yellow", "white", "black", "grey", "brown")
    frame = pandas.DataFrame(
        [
            {
                "instruction": f"How much is a {colour} {thing}?",
                "response": f"A {colour} {thing} is £{len(colour) * len(thing)}.",
            }
            for thing in things
            for colour in colours
        ]
    )
    groups = find_groups(frame, encoder)
    assert max(Counter(groups.labels).values()) <= 12
    assert set(split(Faqs(frame))) == {"train", "validation", "test"}


def test_classes_as_answers_do_not_group(encoder) -> None:
    reviews = [
        "The soup was cold.", "A fine hotel by the lake.", "My parcel never came.",
        "The film made us cry.", "Great shoes!", "The lamp broke on day one.",
        "Friendly staff at the bank.", "The app crashes daily.", "Sweet apples.",
        "A dull lecture on tax law.", "The dentist was gentle.", "Noisy neighbours.",
    ]  # fmt: skip
    frame = pandas.DataFrame(
        {
            "instruction": [f"Is it positive or negative? {text}" for text in reviews],
            "response": ["negative", "positive"] * 6,
        }
    )
    groups = find_groups(frame, encoder)
    assert len(set(groups.labels)) >= 8
    assert "are 2 classes" in groups.notes[0]


def test_questions_on_one_passage_belong_together(encoder) -> None:
    passages = [f"Passage number {word}." for word in ("ant", "bee", "cow", "doe")] * 3
    frame = pandas.DataFrame(
        {
            "instruction": [f"What does it say about {i}?" for i in range(12)],
            "response": [f"It says {i * 7}." for i in range(12)],
            "context": passages,
        }
    )
    labels = find_groups(frame, encoder).labels
    for one, other in combinations(range(12), 2):
        if passages[one] == passages[other]:
            assert labels[one] == labels[other]


def test_many_rows_are_compared_by_letters(monkeypatch) -> None:
    monkeypatch.setattr("utils.dataset.groups.MOST_EMBEDDED", 10)
    frame = pandas.DataFrame(
        {
            "instruction": [
                "How do I delete an endpoint?",
                "How do I delete an endpoint now?",
                *(f"{word} {word}?" for word in
                  ("apple", "train", "novel", "river", "chair", "king", "song", "shoe",
                   "boat", "game", "lamp")),
            ],
            "response": [f"{word} is it" for word in "abcdefghijklm"],
        }
    )  # fmt: skip
    groups = find_groups(frame)
    assert groups.labels[0] == groups.labels[1]
    assert len(set(groups.labels)) == 12
    assert "likeness is one of letters" in groups.notes[0]


# A column that says what belongs together


@pytest.mark.parametrize(
    "name", ["fact", "Group", "group_id", "Question ID", "intent", "conversation"]
)
def test_a_column_under_a_usual_name_groups(name) -> None:
    frame = frame_of(40, per_group=4).rename(columns={"group": name})
    assert group_column(frame) == name
    groups = find_groups(frame)  # needs no encoder
    assert groups.column == name
    assert len(set(groups.labels)) == 10


@pytest.mark.parametrize(
    "name, per_group, rows, groups",
    [
        ("topic", 4, 40, True),
        ("topic", 20, 200, False),
        ("category", 5, 60, True),
        ("id", 1, 40, False),
        ("id", 3, 60, True),
        ("group", 20, 40, False),
        ("fact", 1, 40, False),
        ("colour", 4, 40, False),
    ],
)
def test_what_counts_as_a_group(name, per_group, rows, groups) -> None:
    frame = frame_of(rows, per_group).rename(columns={"group": name})
    assert (group_column(frame) == name) == groups


def test_rows_without_a_group_stand_alone() -> None:
    frame = frame_of(40, per_group=4)
    frame.loc[frame.index[:3], "group"] = ""
    labels = find_groups(frame).labels
    assert len(set(labels[:3])) == 3


def test_the_same_question_in_two_groups_is_one_group() -> None:
    frame = frame_of(40, per_group=4)
    frame.loc[frame.index[39], "instruction"] = "question 0"
    labels = find_groups(frame).labels
    assert labels[39] == labels[0]


# Parts


@pytest.mark.parametrize(
    "rows, held_out",
    [(10, 2), (14, 2), (20, 3), (100, 15), (500, 75), (2000, 300), (50_000, 300)],
)
def test_sizes_follow_the_file(rows, held_out) -> None:
    assert held_out_rows(rows) == held_out


@pytest.mark.parametrize("rows", [10, 11, 14, 20, 37, 70, 150, 400, 1000])
@pytest.mark.parametrize("per_group", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_parts_near_their_sizes_and_no_group_in_two(
    rows, per_group, seed
) -> None:
    frame = frame_of(rows, per_group)
    if per_group == 1:
        frame["group"] = [f"group {max(i, 1)}" for i in range(rows)]
    if group_column(frame) is None:
        pytest.skip("too few groups in so few rows")
    plan = plan_split(Faqs(frame), seed)
    sizes = Counter(plan.parts)
    target = held_out_rows(rows)
    for name in ("validation", "test"):
        assert max(1, target // 2) <= sizes[name] <= max(1.5 * target + 1, per_group)
    assert sizes["train"] >= rows / 2
    assert sum(sizes.values()) == rows
    about = dict(zip(plan.groups, plan.parts, strict=True))
    assert [about[group] for group in plan.groups] == list(plan.parts)


def test_no_labelled_paraphrase_leaks(encoder, labelled) -> None:
    plan = plan_split(Faqs(labelled.drop(columns="group")), encoder=encoder)
    parts: dict[str, set[str]] = {}
    for group, part in zip(labelled["group"], plan.parts, strict=True):
        parts.setdefault(group, set()).add(part)
    leaked = [group for group, found in parts.items() if len(found) > 1]
    # Questions and answers that have hardly a word in common: known to be missed.
    assert set(leaked) <= {"parking", "backup-when"}


def test_rows_added_at_the_end_move_no_other() -> None:
    before = plan_split(Faqs(frame_of(200, per_group=2))).parts
    for more in (2, 20, 60):
        after = plan_split(Faqs(frame_of(200 + more, per_group=2))).parts
        assert after[:200] == before


def test_the_split_follows_the_seed() -> None:
    frame = frame_of(100, per_group=2)
    first, again = plan_split(Faqs(frame)), plan_split(Faqs(frame))
    assert first.parts == again.parts
    assert first.parts != plan_split(Faqs(frame), seed=1).parts


def test_a_group_larger_than_a_part_trains() -> None:
    frame = frame_of(60, per_group=2)
    frame.loc[frame.index[:15], "group"] = "large"
    plan = plan_split(Faqs(frame))
    assert set(plan.parts[:15]) == {"train"}


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_too_few_rows_name_the_minimum(rows) -> None:
    with pytest.raises(DataError, match=f"{rows} question.* too few to split.*10 are"):
        split(Faqs(frame_of(rows)))


def test_rows_of_one_group_cannot_be_split(encoder) -> None:
    frame = pandas.DataFrame(
        {
            "instruction": [f"How is it, {i}?" for i in range(10)],
            "response": "It is fine.",
        }
    )
    frame["conversation"] = "one"
    with pytest.raises(DataError, match="too few.*other subjects"):
        plan_split(Faqs(frame), encoder=encoder)


# Trained and free wordings


def test_a_file_with_free_wordings_is_split_by_fact() -> None:
    frame = natural(facts=100, invented=50)
    parts = split(Faqs(frame))
    assert list(parts) == ["train", "validation", "wording", "fact"]
    facts = {name: set(part["fact"]) for name, part in parts.items()}
    assert facts["wording"] == facts["train"]
    assert not facts["train"] & (facts["fact"] | facts["validation"])
    assert not facts["fact"] & facts["validation"]
    assert set(parts["train"]["wording"]) == {"trained"}
    for name in ("validation", "wording", "fact"):
        assert set(parts[name]["wording"]) == {"free"}
    for found in facts.values():
        invented = sum(fact.startswith("kestrel/") for fact in found)
        assert abs(invented / len(found) - 1 / 3) < 0.05
    # The trained wordings of facts that are held out are used nowhere.
    held_out = len(facts["fact"]) + len(facts["validation"])
    assert sum(map(len, parts.values())) == len(frame) - 4 * held_out


def test_free_wordings_follow_the_seed() -> None:
    faqs = Faqs(natural(facts=40, invented=20))
    assert plan_split(faqs).parts == plan_split(faqs).parts
    assert plan_split(faqs).parts != plan_split(faqs, seed=1).parts
