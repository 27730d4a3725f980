"""Writes what the lab model reads, and the course's questions and answers.

    python -m utils.lab_model.corpus          # rewrites data/amazon_sagemaker_faqs.csv
    python -m utils.lab_model.corpus sample   # prints some documents of the corpus

The corpus is endless and seeded. It never holds a fact of the part "unread", a question
about a fact that is not in "train", the course's template, or two operands for which
`tasks.held_out` is true.
"""

import csv
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from utils.facts import FACTS_FILE, Fact, assign_parts, fact_parts, load_facts
from utils.lab_model import wordings
from utils.lab_model.tasks import (
    problem_documents,
    relation_document,
    rule_document,
    sum_documents,
)

FAQS_FILE = FACTS_FILE.with_name("amazon_sagemaker_faqs.csv")
FAQ_COLUMNS = ("instruction", "response", "topic", "fact")

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
    """The two wordings in which the question-and-answer file asks for each fact.

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
    """The rows of `data/amazon_sagemaker_faqs.csv`, two a fact."""
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


def write_faqs(path=FAQS_FILE) -> int:
    """Write the question-and-answer file, whole or not at all; returns its rows."""
    rows = faq_rows(load_facts())
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FAQ_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)
    return len(rows)


def prose_documents(generator: random.Random, facts: list[Fact]) -> Iterator[str]:
    """Endless paragraphs, each on one feature: its facts in any order and wording."""
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
    """Endless questions with their answers, about training facts only.

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
    """Endless questions with answers."""
    for question, answer in training_questions(generator, facts):
        yield f"Q: {question}\nA: {answer}\n"


def quiz_documents(generator: random.Random, facts: list[Fact]) -> Iterator[str]:
    """Endless lists of questions that nobody answers.

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
    """What `document` writes, without end."""
    while True:
        yield document(generator)


def documents(seed: int) -> Iterator[str]:
    """The corpus: an endless, seeded stream of documents in the shares of `MIX`."""
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


def main(arguments: list[str]) -> None:
    if arguments == ["sample"]:
        stream = documents(seed=0)
        print("\n".join(next(stream) for _ in range(20)))
    else:
        print(f"{FAQS_FILE.name}: {write_faqs()} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
