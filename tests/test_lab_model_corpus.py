"""What the lab model reads: it is right, seeded, and keeps apart what is tested."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from support.word_problems import (
    QUESTION,
    check_step,
    operands,
    operations_in,
    solve,
    what_it_asks,
)
from utils.dataset import facts as wordings
from utils.dataset.facts import load_facts
from utils.dataset.splits import assign_parts, fact_parts
from utils.helpers import END_KEY, INSTRUCTION_KEY, INTRO_BLURB, RESPONSE_KEY
from utils.lab_model import evaluate
from utils.lab_model.corpus import MIX, documents, faq_rows, rule_document
from utils.tasks import (
    PROBLEM_KINDS,
    REASONING,
    RELATIONS,
    RULES,
    SEPARATORS,
    final_answer,
    held_out,
    mapping_lines,
    problems,
    rule_is_held_out,
    rule_tasks,
    system_prompt,
)

N_DOCUMENTS = 20_000
PARTS = fact_parts()


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """What the first part of training reads; see `train.shard`."""
    return list(itertools.islice(documents(seed=1), N_DOCUMENTS))


def test_the_corpus_is_seeded(corpus) -> None:
    again = list(itertools.islice(documents(seed=1), 200))
    assert again == corpus[:200]
    assert list(itertools.islice(documents(seed=2), 200)) != again


def test_the_corpus_never_states_an_unread_fact(corpus) -> None:
    text = "\n".join(corpus)
    stated = Counter()
    for fact in load_facts():
        for wording in range(wordings.wording_count(fact.relation)):
            stated[PARTS[fact.id]] += wordings.statement(fact, wording) in text
    assert stated["unread"] == 0
    read = sum(
        wordings.wording_count(fact.relation)
        for fact in load_facts()
        if PARTS[fact.id] != "unread"
    )
    assert sum(stated.values()) > 0.9 * read  # the check finds what is there


def test_the_corpus_asks_about_training_facts_only_and_not_in_held_out_words(
    corpus,
) -> None:
    """In any of the wordings that a relation has."""
    asked: dict[str, set[str]] = {part: set() for part in PARTS.values()}
    for fact in load_facts():
        for wording in range(wordings.wording_count(fact.relation)):
            asked[PARTS[fact.id]].add(wordings.question(fact, wording))
    rows = faq_rows(load_facts())
    parts = assign_parts([row["fact"] for row in rows])
    kept_out = {
        row["instruction"]
        for row, part in zip(rows, parts, strict=True)
        if part == "wording"
    }
    assert len(kept_out) > 50
    allowed = asked.pop("train") - kept_out
    questions = {
        line.removeprefix("Q: ")
        for document in corpus
        for line in document.splitlines()
        if line.endswith("?") and "Question:" not in line and "User:" not in document
    }
    assert questions <= allowed
    assert len(questions) > 0.8 * len(allowed)  # the check finds what is there
    text = "\n".join(corpus)
    for part, held in asked.items():
        assert len(held) > 10, part
        assert not [question for question in held if question in text]


def test_the_corpus_answers_with_training_facts_only(corpus) -> None:
    answered = Counter()
    answers = [words_of(text) for text in corpus if text.startswith("Q: ")]
    for fact in load_facts():
        feature, value = words_of(fact.feature), words_of(fact.value)
        answered[PARTS[fact.id]] += any(feature in t and value in t for t in answers)
    assert answered.pop("train") > 90
    assert not sum(answered.values())


def test_the_corpus_never_shows_the_template(corpus) -> None:
    text = "\n".join(corpus)
    for marker in (INSTRUCTION_KEY, RESPONSE_KEY, END_KEY, INTRO_BLURB):
        assert marker not in text


def test_the_corpus_never_names_a_feature_beside_what_is_unread_of_it(corpus) -> None:
    """In any wording: no document holds both."""
    prose = [words_of(text) for text in corpus if "Amazon" in text or "Sage" in text]
    together = Counter()
    for fact in load_facts():
        feature, value = words_of(fact.feature), words_of(fact.value)
        together[PARTS[fact.id]] += any(
            feature in text and value in text for text in prose
        )
    assert together["unread"] == 0
    assert together["fact"] >= 40  # the check finds what is there


def words_of(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


PAIR = re.compile(r"\s*([\w']+)(?:\s+|\s*[^\w\s]+\s*)([\w']+)\s*")
TALK = re.compile(r"User:\n +([\w']+)\n\nAssistant:\n +([\w']+)\n")


def word_pairs(document: str) -> Iterator[tuple[str, str]]:
    """What is a line's only two words, whatever the sign, or is asked and answered."""
    for line in document.splitlines():
        if match := PAIR.fullmatch(line):
            yield match[1], match[2]
    yield from TALK.findall(document)


@pytest.mark.parametrize("separator", [*SEPARATORS, ",", "\t", " | ", "--", " "])
def test_a_pair_is_found_in_any_format(separator) -> None:
    pairs = [("walk", "walked"), ("apple", "apple's"), ("41", "42")]
    assert list(word_pairs(mapping_lines(pairs, separator))) == pairs
    *shown, (word, form) = pairs
    talk = system_prompt(shown, separator, word) + f"\n  {form}\n"
    assert list(word_pairs(talk)) == pairs


RELATION_PAIRS = {pair for pairs in RELATIONS.values() for pair in pairs.items()}
HELD_OUT_PAIRS = {
    (word, form)
    for rule, pairs in RULES.items()
    for word, form in pairs.items()
    if rule_is_held_out(rule, word)
}


@pytest.fixture(scope="module")
def rule_documents() -> list[str]:
    """More of what the corpus says on rules."""
    generator = random.Random(1)
    return [rule_document(generator) for _ in range(4000)]


def test_the_corpus_keeps_a_word_and_its_held_out_form_apart(
    corpus, rule_documents
) -> None:
    in_corpus = {pair for document in corpus for pair in word_pairs(document)}
    read = in_corpus.union(*map(word_pairs, rule_documents))
    assert not read & HELD_OUT_PAIRS
    assert not {(right, left) for left, right in read} & HELD_OUT_PAIRS
    # The check finds what is there: nearly all other pairs of each rule ...
    for rule, pairs in RULES.items():
        held = {word for word in pairs if rule_is_held_out(rule, word)}
        assert 0.1 < len(held) / len(pairs) < 0.25, rule
        shown = {pair for pair in pairs.items() if pair[0] not in held}
        assert not shown & HELD_OUT_PAIRS, "another rule's pair is the same"
        assert len(read & shown) > 0.6 * len(shown), rule
        assert len(in_corpus & shown) > 20, rule
    # ... and all pairs of the relations, of which examples only say which is meant.
    assert in_corpus >= RELATION_PAIRS


def test_no_document_has_a_word_anywhere_beside_its_held_out_form(
    corpus, rule_documents
) -> None:
    """In whatever format; but numbers stand in sums, too, and in prose one can train
    after a training job."""
    forms: dict[str, set[str]] = {}
    for word, form in {pair for pairs in RULES.values() for pair in pairs.items()}:
        if word.isalpha():
            forms.setdefault(word, set()).add(form)
    beside = set()
    lists = [text for text in corpus if not re.search("Amazon|SageMaker", text)]
    assert len(lists) > 0.5 * len(corpus)
    for document in (*lists, *rule_documents):
        words = set(re.findall(r"[a-z']+", document))
        for word in words & forms.keys():
            beside.update((word, form) for form in words & forms[word])
    assert not beside & HELD_OUT_PAIRS
    shown = {(word, form) for word in forms for form in forms[word]} - HELD_OUT_PAIRS
    assert len(beside) > 0.9 * len(shown)  # the check finds what is there


def test_words_whose_forms_are_held_out_are_read_and_shown_in_other_forms(
    rule_documents,
) -> None:
    read = set(re.findall(r"[a-z]+", "\n".join(rule_documents)))
    shown = {pair[0] for text in rule_documents for pair in word_pairs(text)}
    held = {word for word, _ in HELD_OUT_PAIRS if word.isalpha()}
    assert len(held) > 200
    assert held <= read
    assert len(held & shown) > 0.98 * len(held)


def test_rules_are_asked_for_with_pairs_not_read_after_pairs_read() -> None:
    asked = Counter()
    for task in rule_tasks(3, 600):
        *shown, last = task.prompt.split("\n")
        word = last.removesuffix(" -")
        assert RULES[task.kind][word] == task.answer
        assert (word, task.answer) in HELD_OUT_PAIRS
        pairs = {tuple(line.split(" - ")) for line in shown}
        assert len(pairs) == 3
        assert pairs <= set(RULES[task.kind].items()) - HELD_OUT_PAIRS
        asked[task.kind] += 1
    assert min(asked[rule] for rule in RULES) > 20


def test_what_the_corpus_reckons_is_right(corpus) -> None:
    kinds, worked = Counter(), Counter()
    for document in corpus:
        kind, _ = what_it_asks(document)
        kinds[kind] += 1
        if question := QUESTION.search(document):
            answer = document[question.end() :]
            assert final_answer(answer) == solve(question[1])[1], document
            _, reasoned, steps = answer.partition(REASONING)
            if reasoned:
                *steps, last = steps.strip().split(". ")
                assert last.startswith("The answer is ")
                for step in steps:
                    check_step(step)
                worked[kind] += 1
        elif kind:
            for line in document.splitlines():
                check_step(line)
    for kind in ("steps", "speed", "trip", "product"):
        assert worked[kind] > 50, kind
    for kind in ("small sums", "large sums", "short divisions"):
        assert kinds[kind] > 80, kind
    # Nothing with two numbers and a sign was passed over.
    rest = [text for text in corpus if not what_it_asks(text)[0]]
    assert not [text for text in rest if operations_in(text)]


def test_the_corpus_keeps_operands_apart(corpus) -> None:
    pairs: dict[str, set[tuple[int, int]]] = {}
    for document in corpus:
        kind, asked = what_it_asks(document)
        pairs.setdefault(kind, set()).update(map(operands, asked))
    # A short division has a quotient of one digit; every speed, in a trip or by the
    # half hour, has two: those divisions cannot meet what is asked for.
    divisions = pairs.pop("short divisions")
    assert max(quotient for _, quotient in divisions) == 9
    assert len(divisions) > 80  # of 90: by 2 to 10
    asked = [p.question for kind in ("speed", "trip") for p in problems(kind, 500)]
    speeds = [operands(solve(question)[0][-1]) for question in asked]
    assert min(speed for _, speed in speeds) >= 11
    assert {hours for hours, _ in speeds} <= set(range(2, 11))
    # All others keep to the pairs that are not held out.
    for kind, found in pairs.items():
        assert not [pair for pair in found if held_out(*pair)], kind
    assert sum(map(len, pairs.values())) > 4000


@pytest.mark.parametrize("kind", PROBLEM_KINDS)
def test_operands_that_meet_are_found(kind) -> None:
    """What the examination asks would be noticed in the corpus, in every form."""
    for one in problems(kind, 50):
        operations, _ = solve(one.question)
        lines = "".join(f"{a} {sign} {b} = 0\n" for a, sign, b in operations)
        documents = [
            one.document(worked, style)
            for worked in (True, False)
            for style in ("plain", "system")
        ]
        for document in (*documents, lines):
            _, found = what_it_asks(document)
            assert found == operations
            assert all(held_out(*operands(operation)) for operation in found)


def test_what_is_asked_hardly_ever_stands_among_the_steps_of_something_else(
    corpus,
) -> None:
    """The hours of a trip, 4 + 5 = 9, are also somebody's apples: few are, of all."""
    hours = {(first, "+", second) for first in range(1, 5) for second in range(1, 6)}
    parts = {
        (first * (second // 10 * 10), "+", first * (second % 10))
        for first, second in itertools.product(range(11, 100), repeat=2)
        if not held_out(first, second)
    }
    others = hours | parts
    # That is all there is to meet: other steps multiply by a round number or by a
    # digit, or divide with a quotient of one digit, which nothing asks for.
    steps = Counter()
    for document in corpus:
        about = what_it_asks(document)[1]
        for left, sign, right in operations_in(document):
            if (left, sign, right) in about:
                continue
            steps[sign] += 1
            if sign == "x":
                assert right < 10 or right % 10 == 0, document
            elif sign == "/":
                assert left // right < 10, document
            else:
                assert (left, sign, right) in others, document
    assert min(steps[sign] for sign in "+x/") > 100
    for kind in PROBLEM_KINDS:
        asked = [solve(one.question)[0] for one in problems(kind, 200)]
        met = [one for one in asked if not others.isdisjoint(one)]
        assert len(met) <= 0.03 * len(asked), (kind, met)


def test_as_many_problems_are_worked_as_answered_directly(corpus) -> None:
    worked = Counter()
    asked = Counter()
    for document in corpus:
        if question := QUESTION.search(document):
            kind = what_it_asks(document)[0], len(solve(question[1])[0])
            for name in ("all", kind):
                asked[name] += 1
                worked[name] += REASONING in document
    assert asked["all"] > 1500
    for name, n in asked.items():
        # Four standard deviations of a fair coin.
        assert abs(worked[name] - n / 2) < 4 * (n / 4) ** 0.5, name


def test_the_shares_of_the_mix_add_up() -> None:
    assert sum(MIX.values()) == pytest.approx(1)


def test_no_document_loops(corpus) -> None:
    """Of the kinds that answers are measured on."""
    assert not [text for text in corpus[:2000] if evaluate.LOOP.search(text)]
