"""Writes what the lab model reads, and the course's questions and answers.

    python -m utils.lab_model.corpus          # rewrites data/lab_questions.csv
    python -m utils.lab_model.corpus sample   # prints some documents of the corpus

The corpus is endless and seeded. It never holds a fact of the part "unread", a question
about a fact that is not in "train", the course's template, or two operands for which
`tasks.held_out` is true.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.dataset import facts as wordings
from utils.dataset.facts import FACTS_FILE, Fact, load_facts
from utils.dataset.splits import assign_parts, fact_parts
from utils.files import write_text
from utils.tasks import (
    LARGEST_OPERAND,
    MOST_EXAMPLES,
    PROBLEM_KINDS,
    RELATIONS,
    RULES,
    SEPARATORS,
    WORD_CLASSES,
    draw_operands,
    held_out,
    mapping_lines,
    problem,
    seen_and_held_out,
    system_prompt,
)

LAB_QUESTIONS = FACTS_FILE.with_name("lab_questions.csv")
FAQ_COLUMNS = ("instruction", "response", "topic", "fact")

TRAINING_SEEDS = (0, 1)
SHORTEST_DOCUMENTS = 30  # tokens on average; the corpus has more
WINDOW, BATCH = 256, 32
TOKENS = 30e6
STEPS_PER_SHARD = 64
_PHRASES = {
    "nouns": "{word} is a noun: one {word}.\n",
    "verbs": "{word} is a verb: to {word}.\n",
    "adjectives": "{word} is an adjective: very {word}.\n",
}

MIX = {
    "prose": 0.15,
    "questions": 0.07,
    "quizzes": 0.06,
    "relations": 0.11,
    "rules": 0.09,
    "sums": 0.12,
    "problems": 0.40,
}
"""Share of each kind of document, counted in documents."""


def faq_wordings(facts: list[Fact]) -> dict[str, tuple[int, int]]:
    """Choose the two wordings in which the question-and-answer file asks for a fact.

    They go round, so that every wording of a relation is used about equally often.
    """
    position: Counter[str] = Counter()
    chosen = {}
    for fact in facts:
        count = wordings.wording_count(fact.relation)
        first = position[fact.relation]
        chosen[fact.id] = (first % count, (first + 2) % count)
        position[fact.relation] += 1
    return chosen


def faq_rows(facts: list[Fact]) -> list[dict[str, str]]:
    """Return the rows of `data/lab_questions.csv`, two a fact."""
    chosen = faq_wordings(facts)
    return [
        {
            "instruction": wordings.question(fact, wording),
            "response": wordings.answer(fact, wording),
            "topic": fact.relation,
            "fact": fact.id,
        }
        for fact in facts
        for wording in chosen[fact.id]
    ]


def write_faqs(path: str | Path = LAB_QUESTIONS) -> int:
    """Write the question-and-answer file, whole or not at all; count its rows."""
    rows = faq_rows(load_facts())
    text = io.StringIO()
    writer = csv.DictWriter(text, FAQ_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return len(rows)


def prose_documents(generator: random.Random, facts: list[Fact]) -> Iterator[str]:
    """Yield paragraphs without end, each on a feature: its facts in any order."""
    features: dict[str, list[Fact]] = {}
    for fact in facts:
        features.setdefault(fact.feature, []).append(fact)
    # A feature is drawn as often as it has facts: every fact is read equally often.
    names = [fact.feature for fact in facts]
    while True:
        about = features[generator.choice(names)]
        about = generator.sample(about, min(len(about), generator.randint(1, 4)))
        sentences = []
        for fact in about:
            wording = generator.randrange(wordings.wording_count(fact.relation))
            whole = generator.random() < 0.5
            sentences.append(
                wordings.answer(fact, wording)
                if whole
                else wordings.statement(fact, wording) + "."
            )
        yield " ".join(sentences) + "\n"


def training_questions(
    generator: random.Random, facts: list[Fact]
) -> Iterator[tuple[str, str]]:
    """Yield questions and answers without end, about training facts only.

    The wordings of the file's rows that are held out stay held out here.
    """
    rows = faq_rows(facts)
    parts = assign_parts([row["fact"] for row in rows])
    kept_out = {
        row["instruction"]
        for row, part in zip(rows, parts, strict=True)
        if part == "wording"
    }
    fact_part = fact_parts(facts)
    train = [fact for fact in facts if fact_part[fact.id] == "train"]
    while True:
        fact = generator.choice(train)
        wording = generator.randrange(wordings.wording_count(fact.relation))
        question = wordings.question(fact, wording)
        if question not in kept_out:
            yield question, wordings.answer(fact, wording)


def question_documents(generator: random.Random, facts: list[Fact]) -> Iterator[str]:
    """Yield questions with answers, without end."""
    for question, answer in training_questions(generator, facts):
        yield f"Q: {question}\nA: {answer}\n"


def quiz_documents(generator: random.Random, facts: list[Fact]) -> Iterator[str]:
    """Yield lists of questions that nobody answers, without end.

    From them a model learns what any base model has learned from the web: what follows
    a bare question is more often another question than its answer.
    """
    questions = training_questions(generator, facts)
    while True:
        count, gap = generator.randint(2, 5), generator.choice(("\n", "\n\n"))
        yield gap.join(next(questions)[0] for _ in range(count)) + "\n"


def repeated(
    document: Callable[[random.Random], str], generator: random.Random
) -> Iterator[str]:
    """Yield what `document` writes, without end."""
    while True:
        yield document(generator)


def documents(seed: int) -> Iterator[str]:
    """Yield the corpus: documents in the shares of `MIX`, seeded and without end.

    First used in lesson 01, section 2.
    """
    facts = load_facts()
    parts = fact_parts(facts)
    read = [fact for fact in facts if parts[fact.id] != "unread"]
    generator = random.Random(seed)
    streams = {
        "prose": prose_documents(generator, read),
        "questions": question_documents(generator, facts),
        "quizzes": quiz_documents(generator, facts),
        "relations": repeated(relation_document, generator),
        "rules": repeated(rule_document, generator),
        "sums": sum_documents(generator),
        "problems": problem_documents(generator),
    }
    names, shares = list(MIX), list(MIX.values())
    while True:
        yield next(streams[generator.choices(names, shares)[0]])


def training_documents(seed: int) -> Iterator[str]:
    """Yield all documents that `train.train` reads with this seed, and some more."""
    tokens = STEPS_PER_SHARD * BATCH * WINDOW
    for number in range(math.ceil(TOKENS / tokens)):
        stream = documents(seed * 1_000_003 + number + 1)  # as in `train.shard`
        yield from itertools.islice(stream, tokens // SHORTEST_DOCUMENTS)


def relation_document(generator: random.Random) -> str:
    """Show one relation by one to seven pairs, as lines or as a conversation."""
    relation = RELATIONS[generator.choice(sorted(RELATIONS))]
    return _pairs_document(generator, sorted(relation.items()))


def rule_document(generator: random.Random) -> str:
    """Show one rule by one to seven pairs, or some words of a class as they are.

    In the latter, every word is read, also those whose forms are held out.
    """
    if generator.random() < 0.3:
        word_class = generator.choice(sorted(WORD_CLASSES))
        words = generator.sample(WORD_CLASSES[word_class], generator.randint(2, 5))
        return "".join(_PHRASES[word_class].format(word=word) for word in words)
    seen, _ = seen_and_held_out(generator.choice(sorted(RULES)))
    return _pairs_document(generator, seen)


def _pairs_document(generator: random.Random, known: list[tuple[str, str]]) -> str:
    count = generator.randint(1, MOST_EXAMPLES + 1)
    pairs = generator.sample(known, count)
    separator = generator.choice(SEPARATORS)
    if count > 1 and generator.random() < 0.35:
        *examples, (word, answer) = pairs
        return system_prompt(examples, separator, word) + f"\n  {answer}\n"
    return mapping_lines(pairs, separator)


def problem_documents(generator: random.Random) -> Iterator[str]:
    """Yield problems without end, as many worked as answered directly."""
    kinds, shares = list(PROBLEM_KINDS), list(PROBLEM_KINDS.values())
    while True:
        kind = generator.choices(kinds, shares)[0]
        worked = generator.random() < 0.5
        style = "system" if generator.random() < 0.15 else "plain"
        yield problem(generator, kind, held=False).document(worked, style)


def sum_documents(generator: random.Random) -> Iterator[str]:
    """Yield documents of a few sums, differences or short divisions, without end."""
    kinds = {_small_sum: 0.55, _large_sum: 0.25, _short_division: 0.2}
    while True:
        line = generator.choices(list(kinds), list(kinds.values()))[0]
        yield "".join(line(generator) for _ in range(generator.randint(2, 6)))


def _small_sum(generator: random.Random) -> str:
    """Write a sum or a difference, as in the problems of some steps."""
    if generator.random() < 0.5:
        first = generator.randint(2, 99)
        _, second = draw_operands(generator, False, 2, LARGEST_OPERAND, first)
        return f"{first} + {second} = {first + second}\n"
    first = generator.randint(5, 160)
    high = min(first - 1, LARGEST_OPERAND)
    _, second = draw_operands(generator, False, 2, high, first)
    return f"{first} - {second} = {first - second}\n"


def _large_sum(generator: random.Random) -> str:
    """Write a sum such as those of a trip's two ways or of partial products."""
    while True:
        if generator.random() < 0.5:
            total = generator.randint(30, 999)
            first = generator.randint(10, total - 10)
            second = total - first
        else:
            first = 10 * generator.randint(11, 891)
            second = generator.randint(11, 891)
        if not held_out(first, second):
            return f"{first} + {second} = {first + second}\n"


def _short_division(generator: random.Random) -> str:
    """Write a step of a long division: a quotient of one digit and the remainder."""
    divisor = generator.randint(2, 10)
    dividend = generator.randint(1, 10 * divisor - 1)
    quotient, rest = divmod(dividend, divisor)
    return f"{dividend} / {divisor} = {quotient} rest {rest}\n"


def main(arguments: list[str]) -> None:
    """Run the command line; see the module's docstring."""
    if arguments == ["sample"]:
        stream = documents(seed=0)
        print("\n".join(next(stream) for _ in range(20)))
    else:
        print(f"{LAB_QUESTIONS.name}: {write_faqs()} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
