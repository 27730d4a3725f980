"""Examines the lab model: every skill with its number of prompts and 95% interval.

    python -m utils.lab_model.evaluate              # the shipped model, a few minutes
    python -m utils.lab_model.evaluate --tuned      # and what the course's LoRA adds
    python -m utils.lab_model.evaluate --model FOLDER --prompts 50   # another, sooner
    python -m utils.lab_model.evaluate --tuned --markdown   # the model card's table

`SKILLS` says what is asked, how it is scored, and what it should come to. Pairs of
words, operands and facts asked for are those that the corpus keeps apart: see `tasks`
and `utils.dataset.facts`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.dataset.facts import get_fact, is_right, load_facts
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import fact_parts, split
from utils.evaluation.scores import (
    Difference,
    Estimate,
    model_log_probabilities,
    paired_difference,
    perplexity_with_interval,
    proportion,
)
from utils.helpers import (
    DEFAULT_SEED,
    INFERENCE_PROMPT,
    INSTRUCTION_KEY,
    add_text,
    preprocess_batch,
)
from utils.lab_model.corpus import (
    LAB_QUESTIONS,
    TRAINING_SEEDS,
    prose_documents,
    training_documents,
)
from utils.models import MODELS, ModelSettings, generate, load_model, load_tokenizer
from utils.ngrams import NGramModel
from utils.tasks import (
    RULES,
    Problem,
    Task,
    few_shot_tasks,
    problems,
    rule_tasks,
    solved,
    system_prompt,
)

WORKED_TOKENS, DIRECT_TOKENS, WORD_TOKENS, ANSWER_TOKENS = 112, 10, 10, 64
"""Budgets, the end-of-text token included: more than the longest right answer."""

Q_AND_A = "Q: {instruction}\nA:"
LOOP = re.compile(r"(\S.{2,}?)\1\1", re.DOTALL)
"""What counts as a loop: three characters or more, three times in a row."""


# --- asking ---


@dataclass(frozen=True)
class Answer:
    """A continuation, and whether it ended by itself within its budget."""

    text: str
    ended: bool

    @property
    def loops(self) -> bool:
        """Whether the text repeats itself; see `LOOP`."""
        return bool(LOOP.search(self.text))


class Examinee:
    """A model that answers greedily, once for each prompt, and keeps its answers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.answers: dict[tuple[str, int, bool], Answer] = {}

    def ask(
        self, prompts: Sequence[str], budget: int, one_line: bool = False
    ) -> list[str]:
        """Return the continuations of the prompts.

        Args:
            prompts: whole prompts.
            budget: most tokens of an answer, the end-of-text token among them.
            one_line: the answer is the first line, which a line break ends as well.
        """
        keys = [(prompt, budget, one_line) for prompt in prompts]
        new = [key for key in dict.fromkeys(keys) if key not in self.answers]
        # A marker in the place of the first token beyond the budget tells an answer
        # that was cut off from one that had ended.
        texts = generate(
            self.model,
            self.tokenizer,
            [prompt for prompt, _, _ in new],
            max_new_tokens=budget + 1,
            batch_size=self.batch_size,
            forced_eos_token_id=self.tokenizer.convert_tokens_to_ids(INSTRUCTION_KEY),
        )
        for key, text in zip(new, texts, strict=True):
            text, cut_off, _ = text.partition(INSTRUCTION_KEY)
            ended = not cut_off
            if one_line:
                text, line_break, _ = text.partition("\n")
                ended = ended or bool(line_break)
            self.answers[key] = Answer(text.strip(), ended)
        return [self.answers[key].text for key in keys]

    def known_forms(self) -> list[Answer]:
        """Return all answers but those in the template, which the base cannot know."""
        return [
            answer
            for (prompt, _, _), answer in self.answers.items()
            if INSTRUCTION_KEY not in prompt
        ]


def score_words(examinee: Examinee, tasks: Sequence[Task]) -> list[bool]:
    """Return which prompts for a word are completed with the right one."""
    answers = examinee.ask([task.prompt for task in tasks], WORD_TOKENS, one_line=True)
    return [answer == task.answer for answer, task in zip(answers, tasks, strict=True)]


def score_valid(examinee: Examinee, tasks: Sequence[Task]) -> list[bool]:
    """Return which prompts are completed with an answer that some relation allows."""
    answers = examinee.ask([task.prompt for task in tasks], WORD_TOKENS, one_line=True)
    return [
        answer in task.also_valid | {task.answer}
        for answer, task in zip(answers, tasks, strict=True)
    ]


def score_problems(
    examinee: Examinee, asked: Sequence[Problem], worked: bool, style: str = "plain"
) -> list[bool]:
    """Return which problems end in the right number, with or without worked steps."""
    prompts = [problem.prompt(worked, style) for problem in asked]
    answers = examinee.ask(prompts, WORKED_TOKENS if worked else DIRECT_TOKENS)
    return solved(answers, asked)


def rows_of(part: str, n_rows: int | None = None) -> list[dict[str, str]]:
    """Return the course's questions that belong to one of `utils.dataset.splits.PARTS`.

    With `n_rows`, a sample of at most so many, always the same.
    """
    rows = split(load_faqs(LAB_QUESTIONS))[part].to_list()
    if n_rows is None or n_rows >= len(rows):
        return rows
    return random.Random(DEFAULT_SEED).sample(rows, n_rows)


def score_facts(
    examinee: Examinee, part: str, form: str, n_rows: int | None = None
) -> list[bool]:
    """Return which questions of a part are answered right.

    Args:
        examinee: who is asked.
        part: one of `utils.dataset.splits.PARTS`.
        form: the text around the question, with the field `{instruction}`.
        n_rows: see `rows_of`.
    """
    rows = rows_of(part, n_rows)
    prompts = [form.format(instruction=row["instruction"]) for row in rows]
    answers = examinee.ask(prompts, ANSWER_TOKENS)
    return [
        is_right(answer, row["fact"]) for answer, row in zip(answers, rows, strict=True)
    ]


def score_guessing(part: str, n_rows: int | None = None) -> list[bool]:
    """Return which questions are right by always guessing what is commonest.

    The guess is the value that most facts of the relation have, among the facts that
    the model has read.
    """
    parts = fact_parts()
    values: dict[str, Counter[str]] = {}
    for fact in load_facts():
        if parts[fact.id] != "unread":
            values.setdefault(fact.relation, Counter())[fact.value] += 1
    asked = [get_fact(row["fact"]) for row in rows_of(part, n_rows)]
    return [values[fact.relation].most_common(1)[0][0] == fact.value for fact in asked]


def conversation_tasks(n_prompts: int) -> list[Task]:
    """Return three-shot prompts in the form of a conversation."""
    tasks = []
    for task in few_shot_tasks(3, n_prompts):
        *examples, last = task.prompt.splitlines()
        pairs = [tuple(line.split(" - ")) for line in examples]
        prompt = system_prompt(pairs, " - ", last.removesuffix(" -"))
        tasks.append(replace(task, prompt=prompt))
    return tasks


# --- what is asked, and what it should come to ---


@dataclass(frozen=True)
class Bound:
    """What an estimate should reach (`at_least`) or not exceed (`at_most`)."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether the value keeps within the bound."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most

    def shown(self, unit: str = "%") -> str:
        """Format the bound, such as "≥ 95%"; the unit is "%", or nothing for points."""
        if self.at_least is not None:
            return f"≥ {100 * self.at_least:.0f}{unit}"
        return "–" if self.at_most is None else f"≤ {100 * self.at_most:.0f}{unit}"


NO_BOUND = Bound()
Measure = Callable[[Examinee, int], Estimate]
"""(who is asked, how many prompts) → the score."""


@dataclass(frozen=True)
class Skill:
    """One row of the table.

    Attributes:
        name: in words.
        measure: asks and scores.
        target: what the model was trained to reach.
        floor: what it must not fall below; `tests/test_lab_model.py` asserts it.
        by_interval: a value that is too high counts only if its whole interval is.
    """

    name: str
    measure: Measure
    target: Bound = NO_BOUND
    floor: Bound = NO_BOUND
    by_interval: bool = False

    def verdict(self, score: Estimate) -> str:
        """Return which of the two is missed, or nothing."""
        value = score.low if self.by_interval else score.value
        if not self.floor.holds(value):
            return "floor missed"
        return "" if self.target.holds(value) else "target missed"


def at_least(share: float) -> Bound:
    """Return the bound of a share that should be reached."""
    return Bound(at_least=share)


def at_most(share: float) -> Bound:
    """Return the bound of a share that should not be exceeded."""
    return Bound(at_most=share)


def _relations(n_examples: int) -> Measure:
    return lambda one, n: proportion(score_words(one, few_shot_tasks(n_examples, n)))


def _valid(one: Examinee, n_prompts: int) -> Estimate:
    return proportion(score_valid(one, few_shot_tasks(0, n_prompts)))


def _conversations(one: Examinee, n_prompts: int) -> Estimate:
    return proportion(score_words(one, conversation_tasks(n_prompts)))


def _rules(one: Examinee, n_prompts: int) -> Estimate:
    return proportion(score_words(one, rule_tasks(3, n_prompts)))


def _rule(name: str) -> Measure:
    def measure(one: Examinee, n_prompts: int) -> Estimate:
        # The rule of a prompt is drawn at random: draw more than are asked.
        drawn = rule_tasks(3, len(RULES) * n_prompts + 100)
        tasks = [task for task in drawn if task.kind == name]
        return proportion(score_words(one, tasks[: n_prompts // 4 + 1]))

    return measure


def _problems(kind: str, worked: bool, style: str = "plain") -> Measure:
    return lambda one, n: proportion(
        score_problems(one, problems(kind, n), worked, style)
    )


def _gain(kind: str) -> Measure:
    def measure(one: Examinee, n_prompts: int) -> Estimate:
        asked = problems(kind, n_prompts)
        return paired_difference(
            score_problems(one, asked, worked=True),
            score_problems(one, asked, worked=False),
        )

    return measure


def _facts(part: str, form: str) -> Measure:
    return lambda one, n: proportion(score_facts(one, part, form, n))


def _guessing(one: Examinee, n_prompts: int) -> Estimate:
    return proportion(score_guessing("unread", n_prompts))


def _more_than_guessing(one: Examinee, n_prompts: int) -> Estimate:
    tuned = score_facts(one, "unread", INFERENCE_PROMPT, n_prompts)
    return paired_difference(tuned, score_guessing("unread", n_prompts))


def _ended(one: Examinee, n_prompts: int) -> Estimate:
    return proportion([answer.ended for answer in one.known_forms()])


def _not_looping(one: Examinee, n_prompts: int) -> Estimate:
    return proportion([not answer.loops for answer in one.known_forms()])


def _template_ended(one: Examinee, n_prompts: int) -> Estimate:
    answers = [a for (p, _, _), a in one.answers.items() if INSTRUCTION_KEY in p]
    return proportion([answer.ended and not answer.loops for answer in answers])


_KINDS = {
    "1 steps": "word problems of one step",
    "2 steps": "word problems of two steps",
    "3 steps": "word problems of three steps",
    "4 steps": "word problems of four steps",
    "speed": "average speed",
    "trip": "average speed, two legs",
    "product": "two-digit products",
}


def _problem_skills(
    kind: str,
    direct: Bound = NO_BOUND,
    worked: Bound = NO_BOUND,
    floor: Bound = NO_BOUND,
    gain: Bound = NO_BOUND,
    gain_floor: Bound = NO_BOUND,
) -> list[Skill]:
    name = _KINDS[kind]
    return [
        Skill(f"{name}, direct", _problems(kind, False), direct),
        Skill(f"{name}, worked", _problems(kind, True), worked, floor),
        Skill(f"{name}, worked less direct", _gain(kind), gain, gain_floor),
    ]


_SEVERAL_STEPS = dict(
    direct=at_most(0.20),
    worked=at_least(0.95),
    floor=at_least(0.85),
    gain_floor=at_least(0.60),
)
SKILLS: tuple[Skill, ...] = (
    Skill("relations, zero-shot", _relations(0), at_most(0.50)),
    Skill("relations, zero-shot, fits some relation", _valid, at_least(0.90)),
    Skill("relations, one-shot", _relations(1), at_least(0.95), at_least(0.90)),
    Skill("relations, three-shot", _relations(3), at_least(0.98)),
    Skill("relations, three-shot, as a conversation", _conversations),
    Skill("rules, three-shot, pairs not read", _rules, at_least(0.70), at_least(0.50)),
    *_problem_skills("1 steps", direct=at_least(0.90)),
    *_problem_skills("2 steps", **_SEVERAL_STEPS),
    *_problem_skills("3 steps", **_SEVERAL_STEPS),
    *_problem_skills("4 steps", **_SEVERAL_STEPS),
    *_problem_skills("speed", worked=at_least(0.95), floor=at_least(0.85)),
    # "Well above" direct answers is taken as 30 points.
    *_problem_skills(
        "trip", worked=at_least(0.95), floor=at_least(0.85), gain=at_least(0.30)
    ),
    *_problem_skills(
        "product", direct=at_most(0.10), worked=at_least(0.97), floor=at_least(0.85)
    ),
    Skill("facts asked about in the corpus, Q: and A:", _facts("train", Q_AND_A)),
    Skill(
        "facts only read, Q: and A:",
        _facts("fact", Q_AND_A),
        at_least(0.95),
        at_least(0.80),
    ),
    Skill("facts never read, Q: and A:", _facts("unread", Q_AND_A)),
    Skill(
        "facts only read, in the template",
        _facts("fact", INFERENCE_PROMPT),
        at_most(0.05),
    ),
    # Over all answers to the prompts above.
    Skill("answers that end by themselves", _ended, at_least(0.98), at_least(0.95)),
    Skill("answers without a loop", _not_looping, at_least(1.0)),
)
RULE_BY_RULE: tuple[Skill, ...] = tuple(
    Skill(f"rules, three-shot: {name}", _rule(name)) for name in RULES
)
TUNED_SKILLS: tuple[Skill, ...] = (
    Skill(
        "tuned: facts of the training questions", _facts("wording", INFERENCE_PROMPT)
    ),
    Skill(
        "tuned: facts only read",
        _facts("fact", INFERENCE_PROMPT),
        at_least(0.90),
        at_least(0.80),
    ),
    Skill("tuned: facts never read", _facts("unread", INFERENCE_PROMPT)),
    Skill("guessing the commonest value of facts never read", _guessing),
    Skill(
        "tuned: facts never read, less guessing",
        _more_than_guessing,
        at_most(0.0),
        by_interval=True,
    ),
    Skill(
        "tuned: answers that end without a loop",
        _template_ended,
        at_least(0.98),
        at_least(0.95),
    ),
)


def examine(
    examinee: Examinee, n_prompts: int, skills: Sequence[Skill] = SKILLS
) -> Iterator[tuple[Skill, Estimate]]:
    """Measure one skill after the other."""
    for skill in skills:
        yield skill, skill.measure(examinee, n_prompts)


# --- fine-tuning ---


def fine_tuned(settings: ModelSettings) -> PreTrainedModel:
    """Train by the course's recipe: lessons 03 and 04 without their words."""
    import datasets

    from utils.course import set_seed
    from utils.models import this_machine
    from utils.training.recipe import (
        add_lora,
        choose_attention,
        completion_trainer,
        training_arguments,
    )

    set_seed()
    tokenizer = load_tokenizer(settings)
    attention = choose_attention(settings, this_machine())
    base = load_model(settings, attn_implementation=attention)

    datasets.disable_progress_bars()
    rows = split(load_faqs(LAB_QUESTIONS))["train"].map(add_text)
    rows = rows.map(
        lambda batch: preprocess_batch(batch, tokenizer, settings.max_length),
        batched=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            settings, folder, eval_strategy="no", disable_tqdm=True
        )
        trainer = completion_trainer(
            add_lora(base, settings), tokenizer, arguments, rows
        )
        trainer.train()
    return trainer.model.merge_and_unload().eval()


# --- reading ---

NGRAM_DOCUMENTS = 20_000


def held_out_paragraphs(n_paragraphs: int) -> list[str]:
    """Return prose on facts that the model has read, in paragraphs that it has not.

    They are drawn as the corpus draws them, with another seed; paragraphs that the
    training seeds contain as a whole (most of those of one sentence) are left out.
    """
    parts = fact_parts()
    read = [fact for fact in load_facts() if parts[fact.id] != "unread"]
    drawn = prose_documents(random.Random("held-out prose"), read)
    paragraphs = dict.fromkeys(itertools.islice(drawn, 3 * n_paragraphs))
    for seed in TRAINING_SEEDS:
        for document in training_documents(seed):
            paragraphs.pop(document, None)
    return list(paragraphs)[:n_paragraphs]


def reading(examinee: Examinee, n_paragraphs: int) -> Iterator[tuple[str, Estimate]]:
    """Measure perplexity on unread paragraphs, compared with n-gram models."""
    tokenizer = examinee.tokenizer
    end, paragraphs = tokenizer.eos_token_id, held_out_paragraphs(n_paragraphs)
    asked = tokenizer(paragraphs).input_ids
    scores = model_log_probabilities(examinee.model, asked, end)
    yield "lab model", perplexity_with_interval(scores)
    texts = list(itertools.islice(training_documents(0), NGRAM_DOCUMENTS))
    read = tokenizer(texts).input_ids
    for name, order in (("trigram model", 3), ("bigram model", 2)):
        counted = NGramModel(order, len(tokenizer), end).fit(read)
        scores = [counted.log_probabilities(ids) for ids in asked]
        yield name, perplexity_with_interval(scores)


# --- speed ---

SPEED_BATCH, SPEED_TOKENS, REPEATS = 32, 40, 5


def seconds_to_load(settings: ModelSettings) -> float:
    """Return the median seconds to load model and tokenizer, libraries apart."""

    def load() -> None:
        load_model(settings)
        load_tokenizer(settings)

    return _median_seconds(load)


def seconds_to_answer(examinee: Examinee) -> float:
    """Return the median seconds for 32 answers of 40 tokens in one batch."""
    return _median_seconds(lambda: answer_a_batch(examinee))


def answer_a_batch(examinee: Examinee) -> None:
    """Let the model answer 32 problems, with 40 tokens each."""
    prompts = [problem.prompt(worked=True) for problem in problems("3 steps", 32)]
    generate(
        examinee.model,
        examinee.tokenizer,
        prompts,
        max_new_tokens=SPEED_TOKENS,
        min_new_tokens=SPEED_TOKENS,
        batch_size=SPEED_BATCH,
    )


def _median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# --- the report ---


@dataclass(frozen=True)
class Row:
    """One line of the report, as text."""

    skill: str
    value: str
    interval: str = ""
    prompts: str = ""
    target: str = "–"
    floor: str = "–"
    verdict: str = ""

    def plain(self) -> str:
        """Return the line for a terminal."""
        return (
            f"{self.skill:49} {self.value:>7}  {self.interval:15} {self.prompts:>5}  "
            f"{self.target:>6} {self.floor:>6}  {self.verdict}"
        ).rstrip()

    def markdown(self) -> str:
        """Return the line for the model card."""
        cells = (self.skill, self.value, self.interval, self.prompts)
        return f"| {' | '.join((*cells, self.target, self.floor))} |"


HEAD = Row("skill", "right", "95% interval", "n", "target", "floor")
RULE = "|:--|--:|:--|--:|--:|--:|"
N_PROMPTS = 200


def score_row(skill: Skill, score: Estimate) -> Row:
    """Format a share in percent, or a difference of shares in points."""
    sign, unit = ("+", "") if isinstance(score, Difference) else ("", "%")
    low, high = f"{100 * score.low:{sign}.1f}", f"{100 * score.high:{sign}.1f}"
    return Row(
        skill.name,
        f"{100 * score.value:{sign}.1f}{unit}",
        f"{low} to {high}{unit}",
        f"{score.n}",
        skill.target.shown(unit),
        skill.floor.shown(unit),
        skill.verdict(score),
    )


def report(
    settings: ModelSettings, n_prompts: int, tuned: bool = False
) -> Iterator[Row]:
    """Run the whole examination, row by row.

    Args:
        settings: of the model; its recipe is used if it is to be fine-tuned.
        n_prompts: for each skill, where there are so many.
        tuned: fine-tune the model as well, and examine what comes out.
    """
    tokenizer = load_tokenizer(settings)
    examinee = Examinee(load_model(settings), tokenizer)
    for skill, score in examine(examinee, n_prompts, (*SKILLS, *RULE_BY_RULE)):
        yield score_row(skill, score)
    for name, found in reading(examinee, n_prompts):
        interval = f"{found.low:.2f} to {found.high:.2f}"
        name = f"perplexity on held-out prose, {name}"
        yield Row(name, f"{found.value:.2f}", interval, f"{found.n}")
    if tuned:
        student = Examinee(fine_tuned(settings), tokenizer)
        for skill, score in examine(student, n_prompts, TUNED_SKILLS):
            yield score_row(skill, score)
    yield Row(
        "seconds to load",
        f"{seconds_to_load(settings):.2f}",
        "median",
        f"{REPEATS}",
        "< 1",
    )
    yield Row(
        f"seconds for {SPEED_BATCH} answers of {SPEED_TOKENS} tokens",
        f"{seconds_to_answer(examinee):.2f}",
        "median",
        f"{REPEATS}",
        "< 2",
    )


def print_report(
    settings: ModelSettings,
    n_prompts: int = N_PROMPTS,
    tuned: bool = False,
    markdown: bool = False,
) -> None:
    """Print the table, each row as soon as it is measured.

    Args:
        settings: see `report`.
        n_prompts: see `report`.
        tuned: see `report`.
        markdown: as in the model card, `data/lab_model/README.md`.
    """
    show = Row.markdown if markdown else Row.plain
    print(show(HEAD))
    if markdown:
        print(RULE)
    for row in report(settings, n_prompts, tuned):
        print(show(row), flush=True)


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=N_PROMPTS, help="for each skill")
    parser.add_argument("--model", type=Path, help="a folder; by default the shipped")
    parser.add_argument("--tuned", action="store_true", help="fine-tune it as well")
    parser.add_argument(
        "--markdown", action="store_true", help="print the model card's table"
    )
    options = parser.parse_args()
    settings = MODELS["lab"]
    if options.model:
        settings = replace(settings, source=str(options.model.resolve()))
    print_report(settings, options.prompts, options.tuned, options.markdown)


if __name__ == "__main__":
    main()
