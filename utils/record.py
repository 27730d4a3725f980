"""Measure the main road with one model, and write what came out.

    python -m utils.record smollm2                          all stages, three seeds
    python -m utils.record smollm2 --stages search untuned
    python -m utils.record smollm2 --name trial --seeds 1
    python -m utils.record smollm2 --ship                   the first seed's adapter

The result is `data/recorded/NAME.json`: each figure with its sample size and interval,
the command, the date, versions and the machine. Each part is kept in
`COURSE_BUILD/record/NAME` once it is measured, so a run that was stopped goes on there.
With `--stages`, the others stay as the record has them, if data and settings are the
same.
`--ship` measures nothing: it puts the recorded adapter that answers from notes into
`data/`, in 16 bits, for lessons that do not train (`adapters.adapter_for`).

Exit codes: 0 all is measured, 1 a setting is wrong or a run failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import gc
import hashlib
import importlib.metadata
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError, portable_name, run_config, set_seed
from utils.dataset.faqs import load_faqs
from utils.dataset.open_book import Mix, context, says_nothing, with_notes
from utils.dataset.splits import split
from utils.evaluation import json_format
from utils.evaluation.answers import Judge, groups_of, judge_for
from utils.evaluation.retrieval import (
    Note,
    Search,
    note_search,
    notes,
    recall_at,
    right_notes,
)
from utils.evaluation.scores import Estimate, held_out_loss, proportion, token_losses
from utils.files import write_json
from utils.models import (
    Answers,
    ModelSettings,
    generate,
    load_model,
    load_tokenizer,
    settings_for,
    this_machine,
)
from utils.templates import Template, template_for
from utils.training.adapters import SHIPPED, save_adapter, ship_adapter
from utils.training.recipe import (
    add_lora,
    choose_attention,
    completion_trainer,
    training_arguments,
)
from utils.training.resuming import train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = json_format.PARTS
RECORDED = ROOT / "data" / "recorded"
PROSE = ROOT / "data" / "general_prose.txt"
SKILLS = ROOT / "data" / "general_questions.csv"
PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes")
SHOWN = 3  # notes of a question that is asked with several
PASSES = (1, 2, 4)  # of the closed book, each measured
# To choose among notes in any order, and to say that none answers, is learned slowly.
CHOOSING = Mix(alone=1, among=3, unanswered=2, without=0)
CHOOSING_PASSES = (1, 2)
FORMAT_PASSES = (1, 2, 3)
# Of each part, as many messages are put to the model that is not tuned: its prompts are
# long, and what it gets right is soon clear.
FORMAT_ASKED = {"validation": 40, "test": 80}
CHOOSING_FORMS = (
    "the right note",
    "three notes, the right one among them, shuffled",
    "three notes that do not answer",
)
# Asked of every model; the first seed is asked in all forms.
MAIN_FORMS = (
    "no notes",
    "the right note",
    "the note found first",
    "the three notes found",
    "three notes, the right one among them, shuffled",
)
PROSE_TOKENS = 256  # most of a paragraph

Row = Mapping[str, Any]
Figures = dict[str, dict[str, float]]


class RecordError(CourseError):
    """A measurement that cannot be made; the message says what to do."""


def figure(score: Estimate, groups: Sequence[Any] | None = None) -> dict[str, float]:
    """Return a score as numbers: value, bounds of the 95% interval, sample sizes.

    Args:
        score: to write down.
        groups: what each question belongs to; their number is noted as well.
    """
    made = {name: round(number, 4) for name, number in asdict(score).items()}
    return made if groups is None else {**made, "groups": len(set(groups))}


@dataclass
class Road:
    """What all stages work with: one model, the questions, a search, a judge.

    Attributes:
        settings: of the model.
        data: the file of questions and answers.
        folder: for what is measured, and for checkpoints.
        seeds: of the runs that are repeated.
        say: gets a line for each thing that is done.
    """

    settings: ModelSettings
    data: Path | str
    folder: Path
    seeds: Sequence[int] = (0, 1, 2)
    say: Callable[[str], Any] = field(default=print, repr=False)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model."""
        return load_tokenizer(self.settings)

    @cached_property
    def template(self) -> Template:
        """What the model is tuned and asked in."""
        return template_for(self.settings, self.tokenizer)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of the file."""
        return load_faqs(self.data).frame.to_dict("records")

    @cached_property
    def parts(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each part."""
        missing = [name for name in ("fact", "wording") if name not in self.rows[0]]
        if missing:
            raise RecordError(
                f"{portable_name(self.data)} has no column {missing[0]!r}: the main "
                "road is measured on a file with `fact` and `wording`, such as "
                "data/amazon_sagemaker_faqs.csv."
            )
        found = split(load_faqs(self.data))
        return {name: part.to_list() for name, part in found.items()}

    @cached_property
    def notes(self) -> list[Note]:
        """A note for each fact, from its trained wordings and its answer."""
        return notes(self.rows)

    @cached_property
    def search(self) -> Search:
        """The search over the notes."""
        return note_search(self.notes)

    @cached_property
    def judge(self) -> Judge:
        """The judge of answers."""
        return judge_for(self.rows)

    def ranked(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the places of all notes for each row, the likeliest first."""
        questions = [row["instruction"] for row in rows]
        hits = self.search.search_all(questions, k=len(self.notes))
        return [[hit.number for hit in found] for found in hits]

    def with_notes(
        self, rows: Sequence[Row], seed: int, mix: Mix | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Return training rows with notes, which hold nothing of any other part."""
        about = groups_of(rows)
        trained = set(about)
        texts = {one.group: one.answer for one in self.notes if one.group in trained}
        names = [one.group for one in self.notes]
        ranked = [[names[place] for place in order] for order in self.ranked(rows)]
        return with_notes(rows, texts, ranked, mix, seed=seed, about=about, **options)

    def fine_tune(
        self, name: str, rows: Sequence[Row], seed: int, **changes: Any
    ) -> tuple[PreTrainedModel, dict[str, float]]:
        """Train an adapter, and return the model with it and what the training took."""
        set_seed(seed)
        settings, machine = self.settings, this_machine()
        texts = [self.template.add_text(row, i) for i, row in enumerate(rows)]
        columns = {name: [text[name] for text in texts] for name in texts[0]}
        encoded = self.template.preprocess_batch(
            columns, settings.max_length, too_long="cut_prompt"
        )
        encoded = [
            dict(zip(encoded, values, strict=True))
            for values in zip(*encoded.values(), strict=True)
        ]
        longest = max(len(row["input_ids"]) for row in encoded)
        attention = choose_attention(settings, machine, longest)
        base = load_model(settings, attn_implementation=attention)
        model = add_lora(base, settings)
        options: dict[str, Any] = {
            "eval_strategy": "no",
            "seed": seed,
            "save_strategy": "epoch",
            "disable_tqdm": True,
        } | changes
        callbacks = options.pop("callbacks", [])
        folder = self.folder / "checkpoints" / name
        arguments = training_arguments(settings, folder, machine, **options)
        trainer = completion_trainer(model, self.tokenizer, arguments, encoded)
        for callback in callbacks:
            trainer.add_callback(callback)
        start = time.perf_counter()
        result = train(trainer)
        labels = [row["labels"] for row in encoded]
        took = {
            "seconds": round(time.perf_counter() - start, 1),
            "rows": len(encoded),
            "tokens": sum(map(len, labels)),
            "answer tokens": sum(label >= 0 for row in labels for label in row),
            "epochs": float(arguments.num_train_epochs),
            "loss": round(result.training_loss, 4),
        }
        # A run that was stopped after its training only loads what it has learned.
        kept = self.folder / f"{name}_training.json"
        if kept.exists():
            took = json.loads(kept.read_text("utf-8"))
        else:
            write_json(kept, took)
        self.say(f"  {name}: {took}")
        return model.eval(), took

    def ask(
        self, model: PreTrainedModel, prompts: Sequence[str], stop: Any = None
    ) -> Any:
        """Answer prompts, each text once."""
        once = list(dict.fromkeys(prompts))
        budget = self.settings.max_new_tokens
        answers = generate(
            model, self.tokenizer, once, budget, stop=stop or self.template.stop
        )
        place = {prompt: number for number, prompt in enumerate(once)}
        order = [place[prompt] for prompt in prompts]
        return type(answers)(
            [answers[i] for i in order], [answers.finished[i] for i in order]
        )


# --- what is measured ---


def search_stage(road: Road) -> Figures:
    """Measure how often the right note is found, in free wordings only."""
    asked = [row for row in road.rows if row["wording"] == "free"]
    invented = [row for row in asked if row["fact"].startswith("kestrel/")]
    ways = {
        "BM25, answers only": note_search(road.notes, None, (1, 0), answer_only=True),
        "MiniLM, answers only": note_search(road.notes, None, (0, 1), answer_only=True),
        "BM25": note_search(road.notes, None, (1, 0)),
        "MiniLM": note_search(road.notes, None, (0, 1)),
        "the course's": road.search,
    }
    figures: Figures = {}
    for name, search in ways.items():
        for k, place in ((1, "first"), (SHOWN, "among three")):
            for rows, what in ((asked, ""), (invented, ", invented facts")):
                found = recall_at(search, rows, road.notes, k)
                figures[f"right note {place}: {name}{what}"] = figure(
                    found, groups_of(rows)
                )
    return figures


def shares(road: Road, answers: Any, rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return the shares of right, of cut off and of refusing answers."""
    groups = groups_of(rows)
    right = road.judge.right(answers, rows, answers.finished)
    refused = [says_nothing(answer) for answer in answers]
    return {
        "right": proportion(right, groups),
        "refused": proportion(refused, groups),
        "cut off": proportion([not end for end in answers.finished], groups),
    }


def open_book_prompts(road: Road, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the prompts for facts that were never trained, under all conditions."""
    wanted, ranked = right_notes(rows, road.notes), road.ranked(rows)
    generator = random.Random(0)
    texts = [note.answer for note in road.notes]

    def ask(row: Row, places: Sequence[int]) -> str:
        shown = context([texts[place] for place in places])
        return road.template.prompt(row["instruction"], shown)

    made: dict[str, list[str]] = {}
    for row, right, order in zip(rows, wanted, ranked, strict=True):
        wrong = [place for place in order if place != right]
        three = [right, *wrong[: SHOWN - 1]]
        shuffled = generator.sample(three, len(three))
        forms = {
            "no notes": [],
            "the right note": [right],
            "the note found first": order[:1],
            "the three notes found": order[:SHOWN],
            "three notes, the right one among them, as ranked": sorted(
                three, key=order.index
            ),
            "three notes, the right one among them, shuffled": shuffled,
            "one note that does not answer": wrong[:1],
            "three notes that do not answer": wrong[:SHOWN],
        }
        for form, places in forms.items():
            made.setdefault(form, []).append(ask(row, places))
    return made


def open_book_figures(
    road: Road, model: PreTrainedModel, forms: Sequence[str] | None = None
) -> Figures:
    """Ask about facts that were never trained, in free wordings, with notes."""
    rows = road.parts["fact"]
    groups = groups_of(rows)
    figures: Figures = {}
    given: dict[str, tuple[str, bool]] = {}  # forms share prompts
    for form, prompts in open_book_prompts(road, rows).items():
        if forms is not None and form not in forms:
            continue
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in given]
        found = road.ask(model, new)
        given |= zip(new, zip(found, found.finished, strict=True), strict=True)
        texts, ends = zip(*(given[prompt] for prompt in prompts), strict=True)
        answers = Answers(texts, ends)
        found = shares(road, answers, rows)
        for what, score in found.items():
            figures[f"{what}: {form}"] = figure(score, groups)
        road.say(
            f"    {form}: " + ", ".join(f"{w} {s.value:.2f}" for w, s in found.items())
        )
        invented = [
            i for i, row in enumerate(rows) if row["fact"].startswith("kestrel")
        ]
        right = road.judge.right(answers, rows, answers.finished)
        figures[f"right: {form}, invented facts"] = figure(
            proportion([right[i] for i in invented], [groups[i] for i in invented]),
            [groups[i] for i in invented],
        )
    return figures


def printed_note(road: Road) -> Figures:
    """Measure the page that prints the note found first, without any model."""
    rows = road.parts["fact"]
    texts = [note.answer for note in road.notes]
    answers = [texts[order[0]] for order in road.ranked(rows)]
    groups = groups_of(rows)
    right = road.judge.right(answers, rows)
    return {
        "right: the note found first, printed": figure(
            proportion(right, groups), groups
        )
    }


def general_figures(road: Road, model: PreTrainedModel) -> Figures:
    """Measure what tuning may cost: held-out prose, and two skills."""
    paragraphs = [
        text for text in PROSE.read_text("utf-8").split("\n\n") if text.strip()
    ]
    ids = road.tokenizer(paragraphs, add_special_tokens=False)["input_ids"]
    rows = [
        {"input_ids": row[:PROSE_TOKENS], "labels": row[:PROSE_TOKENS]} for row in ids
    ]
    figures = {
        "prose, nats a token": figure(
            held_out_loss(token_losses(model, road.tokenizer, rows, batch_size=4))
        )
    }
    with SKILLS.open(encoding="utf-8", newline="") as file:
        asked = list(csv.DictReader(file))
    judge = judge_for(asked)
    for skill in dict.fromkeys(row["skill"] for row in asked):
        some = [row for row in asked if row["skill"] == skill]
        prompts = [road.template.prompt(row["instruction"]) for row in some]
        answers = road.ask(model, prompts)
        right = judge.right(answers, some)
        figures[f"right: {skill}"] = figure(proportion(right))
    return figures


def one_of_each(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each fact, drawn with a fixed seed."""
    drawn = random.Random(0).sample(list(rows), len(rows))
    return list(dict(zip(groups_of(drawn), drawn, strict=True)).values())


def closed_book_figures(road: Road, model: PreTrainedModel) -> Figures:
    """Ask about trained facts without notes, in trained and in free wordings."""
    trained, free = road.parts["train"], road.parts["wording"]
    # A fact's wordings stand and fall together: one of each says nearly as much.
    trained, free = (one_of_each(rows) for rows in (trained, free))
    figures: Figures = {}
    for name, rows in (("trained wordings", trained), ("free wordings", free)):
        prompts = [road.template.prompt(row["instruction"]) for row in rows]
        found = shares(road, road.ask(model, prompts), rows)
        del found["refused"]  # without notes there is nothing to say that of
        for what, score in found.items():
            figures[f"{what}: {name}"] = figure(score, groups_of(rows))
        road.say(f"    closed book, {name}: right {found['right'].value:.2f}")
    return figures


def untuned_stage(road: Road) -> Figures:
    """Measure the base: without notes, with notes, and what it can do in general."""
    model = load_model(road.settings)
    closed = {
        f"closed book, {n}": f for n, f in closed_book_figures(road, model).items()
    }
    opened = open_book_figures(road, model, MAIN_FORMS)
    opened = {f"open book, {name}": found for name, found in opened.items()}
    general = {f"general, {n}": f for n, f in general_figures(road, model).items()}
    return closed | opened | general | printed_note(road)


def open_book_stage(road: Road, seed: int) -> Figures:
    """Tune to answer from notes, and ask about facts that were never trained."""
    name = f"open_book_{seed}"
    rows = road.with_notes(road.parts["train"], seed)
    model, took = road.fine_tune(name, rows, seed)
    save_adapter(model, road.tokenizer, road.folder / name, road.template)
    opened = open_book_figures(road, model, MAIN_FORMS if seed else None)
    opened = {f"open book, {name}": found for name, found in opened.items()}
    closed = {
        f"closed book, {n}": f for n, f in closed_book_figures(road, model).items()
    }
    general = {f"general, {n}": f for n, f in general_figures(road, model).items()}
    return opened | closed | general | {"training": took}


def curve(
    road: Road,
    name: str,
    rows: Sequence[Row],
    seed: int,
    passes: Sequence[int],
    measure: Callable[[PreTrainedModel], Figures],
    **changes: Any,
) -> Figures:
    """Train for many passes, at one rate by default, and measure after some of them.

    A run that was stopped goes on from its last pass, with what was measured before.
    """
    from transformers import TrainerCallback

    kept = road.folder / f"{name}_passes.json"
    figures: Figures = json.loads(kept.read_text("utf-8")) if kept.exists() else {}

    class Ask(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **_) -> None:
            done = round(state.epoch)
            if done in passes:
                road.say(f"    after {done} passes:")
                found = measure(model)
                figures.update(
                    {f"after {done} passes, {n}": f for n, f in found.items()}
                )
                write_json(kept, figures)

    options = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.02}
    options |= changes
    _, took = road.fine_tune(
        name,
        rows,
        seed,
        num_train_epochs=max(passes),
        callbacks=[Ask()],
        **options,
    )
    kept.unlink(missing_ok=True)
    return figures | {"training": took}


def closed_book_stage(road: Road, seed: int) -> Figures:
    """Tune on bare questions, and ask after so many passes."""

    def measure(model: PreTrainedModel) -> Figures:
        found = closed_book_figures(road, model)
        return {f"closed book, {name}": one for name, one in found.items()}

    rows = road.parts["train"]
    return curve(road, f"closed_book_{seed}", rows, seed, PASSES, measure)


def choosing_stage(road: Road, seed: int) -> Figures:
    """Tune to choose among notes in any order, and to say that none answers."""

    def measure(model: PreTrainedModel) -> Figures:
        found = open_book_figures(road, model, CHOOSING_FORMS)
        return {f"open book, {name}": one for name, one in found.items()}

    rows = road.with_notes(road.parts["train"], seed, CHOOSING, shuffled=True)
    return curve(road, f"choosing_{seed}", rows, seed, CHOOSING_PASSES, measure)


def untuned_format_stage(road: Road) -> Figures:
    """Ask for JSON without tuning, with the prompt that does best on the validation."""
    rows = json_format.load_messages().to_dict("records")
    parts = {}
    for part, count in FORMAT_ASKED.items():
        some = [row for row in rows if row["part"] == part]
        parts[part] = random.Random(0).sample(some, min(count, len(some)))
    model = load_model(road.settings)

    def score(part: str, turns: Callable[[str], list[dict[str, str]]]) -> Any:
        prompts = [chat(road, turns(row["instruction"])) for row in parts[part]]
        return json_format.format_scores(road.ask(model, prompts), parts[part])

    tried, figures = {}, {}
    for name, turns in json_format.candidates(rows).items():
        tried[name] = score("validation", turns)
        road.say(f"    {name}: {tried[name].mean().round(3).to_dict()}")
        for what in ("valid", "exact"):
            label = f"format, validation, {what}: {name}"
            figures[label] = figure(proportion(list(tried[name][what])))
    best = max(tried, key=lambda name: tuple(tried[name][["exact", "valid"]].mean()))
    scores = score("test", json_format.candidates(rows)[best])
    road.say(f"    format, {best}: {scores.mean().round(3).to_dict()}")
    chosen = {f"format, {what}": scores[what] for what in scores}
    return figures | {
        name: figure(proportion(list(values))) for name, values in chosen.items()
    }


def chat(road: Road, turns: list[dict[str, str]]) -> str:
    """Return a prompt of several turns, in the model's chat template if it has one."""
    if road.template.name == "chat":
        return road.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    return road.template.prompt("\n\n".join(turn["content"] for turn in turns))


def format_stage(road: Road, seed: int) -> Figures:
    """Tune to answer in JSON, and ask about messages that were never trained.

    One run, whose rate falls to zero; it is asked after each of `FORMAT_PASSES`. What
    counts is the pass that does best on the validation part, of equals the first.
    """
    rows = json_format.load_messages().to_dict("records")
    parts = {part: [row for row in rows if row["part"] == part] for part in PARTS}

    def measure(model: PreTrainedModel) -> Figures:
        figures: Figures = {}
        for part in PARTS[1:]:
            messages = [row["instruction"] for row in parts[part]]
            asked = map(json_format.tuned_prompt, messages)
            answers = road.ask(model, [road.template.prompt(text) for text in asked])
            scores = json_format.format_scores(answers, parts[part])
            road.say(f"    {part}: {scores.mean().round(3).to_dict()}")
            for what in scores:
                score = figure(proportion(list(scores[what])))
                figures[f"format, {part}, {what}"] = score
        return figures

    made = json_format.training_rows(parts["train"])
    figures = curve(
        road,
        f"format_{seed}",
        made,
        seed,
        FORMAT_PASSES,
        measure,
        lr_scheduler_type="linear",
    )

    def after(passes: int, part: str) -> Figures:
        start = f"after {passes} passes, format, {part}, "
        named = ((name.removeprefix(start), one) for name, one in figures.items())
        return {what: one for what, one in named if f"{start}{what}" in figures}

    def validated(passes: int) -> list[float]:
        found = after(passes, "validation")
        return [found[what]["value"] for what in ("exact", "valid")]

    chosen = max(FORMAT_PASSES, key=validated)
    figures["training"]["passes chosen"] = chosen
    best = {f"format, {what}": one for what, one in after(chosen, "test").items()}
    return best | figures


def stages(road: Road) -> dict[str, Callable[[], Figures]]:
    """Return all that can be measured, by name, in order."""
    made: dict[str, Callable[[], Figures]] = {
        "search": lambda: search_stage(road),
        "untuned": lambda: untuned_stage(road),
        "untuned_format": lambda: untuned_format_stage(road),
    }
    for seed in road.seeds:
        made[f"open_book_{seed}"] = functools.partial(open_book_stage, road, seed)
        made[f"format_{seed}"] = functools.partial(format_stage, road, seed)
    first = road.seeds[0]
    made[f"closed_book_{first}"] = functools.partial(closed_book_stage, road, first)
    made[f"choosing_{first}"] = functools.partial(choosing_stage, road, first)
    return made


# --- the run, and what is written ---


def peak_gigabytes() -> float:
    """Return the most memory that this process has held so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def digest(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def data_files(road: Road, stage: str = "") -> dict[str, str]:
    """Return the SHA-256 of each file that is measured with, by its name.

    Args:
        road: what is measured with.
        stage: whose files are wanted; by default those of all stages.
    """
    questions = (Path(road.data), PROSE, SKILLS)
    files = (*questions, json_format.MESSAGES_DATA)
    if stage:
        files = (json_format.MESSAGES_DATA,) if "format" in stage else questions
    return {portable_name(file): digest(file) for file in files}


def fingerprint(road: Road, stage: str) -> str:
    """Return what tells a stage with other data or settings apart."""
    text = json.dumps([data_files(road, stage), repr(road.settings)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(
    road: Road,
    wanted: Sequence[str] = (),
    before: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measure what is not measured yet, and return all that is.

    Args:
        road: what to measure with.
        wanted: beginnings of the stages' names; all by default.
        before: stages of an earlier record; one that is not wanted is taken from it.

    Raises:
        RecordError: if a name begins no stage's.
    """
    todo = stages(road)
    for start in wanted:
        if not any(name.startswith(start) for name in todo):
            raise RecordError(
                f"No stage begins with {start!r}: there are {list(todo)}."
            )
    found: dict[str, Any] = {}
    for name, measure in todo.items():
        file, made_with = road.folder / f"{name}.json", fingerprint(road, name)
        chosen = not wanted or name.startswith(tuple(wanted))
        kept = json.loads(file.read_text("utf-8")) if file.exists() else None
        if kept is None and not chosen:
            kept = (before or {}).get(name)
        if kept and kept.get("made with") != made_with:
            road.say(
                f"{name} was measured with other data or settings, and is left out."
            )
            kept = None
        if kept is None and chosen:
            road.say(f"{name} …")
            start = time.perf_counter()
            figures = measure()
            gc.collect()
            kept = {
                "date": datetime.date.today().isoformat(),
                "seconds": round(time.perf_counter() - start, 1),
                "machine": str(this_machine(race=False)),
                "peak memory, GB": peak_gigabytes(),
                "made with": made_with,
                "figures": figures,
            }
            write_json(file, kept)
            road.say(f"{name}: {time.perf_counter() - start:.0f} s")
        if kept:
            found[name] = kept
    return found


def record(road: Road, name: str, command: str, wanted: Sequence[str] = ()) -> Path:
    """Measure, and write `data/recorded/NAME.json`.

    Args:
        road: what to measure with.
        name: of the record.
        command: that measures all stages; if some are missing, the file names the rest.
        wanted: beginnings of the stages' names; all by default.

    Returns:
        The file.
    """
    file = RECORDED / f"{name}.json"
    before = _read(file)["stages"] if file.exists() else {}
    found = run(road, wanted, before)
    if missing := [stage for stage in stages(road) if stage not in found]:
        road.say(f"Not in the record: {', '.join(missing)}.")
        command = f"{command} --stages {' '.join(found)}"
    settings = {
        key: portable_name(Path(value))
        if key == "source" and Path(value).is_absolute()
        else value
        for key, value in asdict(road.settings).items()
    }
    return write_json(
        file,
        {
            "name": name,
            "command": command,
            "date": datetime.date.today().isoformat(),
            "versions": versions(),
            "settings": settings,
            "data": data_files(road),
            "stages": found,
        },
    )


def ship(road: Road) -> Path:
    """Put the recorded adapter of the first seed where the lessons look for one.

    Raises:
        RecordError: if there is none of this data and these settings, or the course
            ships none for this model.
    """
    stage = f"open_book_{road.seeds[0]}"
    target, file = SHIPPED.get(road.settings.name), road.folder / f"{stage}.json"
    if target is None:
        raise RecordError(
            f"The course ships no adapter for {road.settings.name}, only for "
            f"{', '.join(SHIPPED)}."
        )
    kept = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if kept.get("made with") != fingerprint(road, stage):
        raise RecordError(
            f"{stage} is not measured with this data and these settings: run `python "
            f"-m utils.record {road.settings.name} --stages {stage}` first."
        )
    return ship_adapter(road.folder / stage, target)


# --- what a record says, for people ---

# What it is → the figure, and the stages in which it is measured untuned and tuned.
NOTES_TUNED, FORMAT_TUNED = ("untuned", "open_book"), ("untuned_format", "format")
TABLE = {
    "with the note that answers": ("open book, right: the right note", NOTES_TUNED),
    "with the note found first": (
        "open book, right: the note found first",
        NOTES_TUNED,
    ),
    "with the three notes found": (
        "open book, right: the three notes found",
        NOTES_TUNED,
    ),
    "with three notes in any order, one of which answers": (
        "open book, right: three notes, the right one among them, shuffled",
        NOTES_TUNED,
    ),
    "without notes": ("open book, right: no notes", NOTES_TUNED),
    "trained facts, without notes": (
        "closed book, right: free wordings",
        NOTES_TUNED,
    ),
    "messages to JSON: valid": ("format, valid", FORMAT_TUNED),
    "messages to JSON: all fields right": ("format, exact", FORMAT_TUNED),
    "general knowledge": ("general, right: knowledge", NOTES_TUNED),
    "positive or negative": ("general, right: sentiment", NOTES_TUNED),
}
PRINTED = "right: the note found first, printed"


CASES = {
    "trained fact and wording, no note": "closed book, right: trained wordings",
    "trained fact, free wording, no note": "closed book, right: free wordings",
    "never trained, no note": "open book, right: no notes",
    "never trained, the right note": "open book, right: the right note",
    "never trained, the note found": "open book, right: the note found first",
    "invented, the note found": (
        "open book, right: the note found first, invented facts"
    ),
    "never trained, three notes shuffled": (
        "open book, right: three notes, the right one among them, shuffled"
    ),
    "the note does not answer: refused": (
        "open book, refused: one note that does not answer"
    ),
}
"""What matters where questions are answered → the figure that says how it went."""


@functools.cache
def _read(file: Path) -> dict[str, Any]:
    """Read a record, as `record` wrote it."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{portable_name(file)} cannot be read ({type(error).__name__}): restore "
            f"it from the repository, or run `python -m utils.record {file.stem}`."
        ) from None


def recorded(run: str, name: str, model: str = "smollm2") -> Estimate | None:
    """Return a figure of a record with its interval; None if it was not recorded.

    First used in lesson 05, section 2.

    Args:
        run: the stage that measured it, such as "open_book_0".
        name: of the figure.
        model: whose record is read.

    Raises:
        RecordError: if there is no record, or it is damaged.
    """
    stages = _read(RECORDED / f"{model}.json")["stages"]
    numbers = stages.get(run, {}).get("figures", {}).get(name)
    if numbers is None:
        return None
    return Estimate(*(numbers[key] for key in ("value", "low", "high", "n")))


def cases(model: str = "smollm2") -> dict[str, dict[str, Estimate | None]]:
    """Return system → what is asked (`CASES`) → its share, of the systems recorded.

    The tuned model is there once for each seed that it was trained with.

    First used in lesson 05, section 2.

    Args:
        model: whose record is read.

    Raises:
        RecordError: if there is no record, or it is damaged.
    """
    stages = _read(RECORDED / f"{model}.json")["stages"]
    runs = {"untuned": "untuned"}
    tuned = (stage for stage in sorted(stages) if stage.startswith("open_book"))
    runs |= {f"tuned, seed {stage.rpartition('_')[2]}": stage for stage in tuned}
    return {
        system: {case: recorded(run, name, model) for case, name in CASES.items()}
        for system, run in runs.items()
        if run in stages
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the main figures of a record as a Markdown table.

    Tuned figures are the mean over seeds, with the lowest and the highest; a figure of
    one run has its 95% interval.

    Args:
        found: as `data/recorded/NAME.json` holds it.
    """
    stages = {name: stage["figures"] for name, stage in found["stages"].items()}
    lines = ["| asked | questions | untuned | tuned |", "|:--|--:|--:|--:|"]
    for label, (name, kinds) in TABLE.items():
        cells, counts = [], set()
        for kind in kinds:
            some = [
                figures[name]
                for stage, figures in stages.items()
                if name in figures and kind in (stage, stage.rpartition("_")[0])
            ]
            cells.append(_shown(some))
            counts |= {figure["n"] for figure in some}
        asked = " or ".join(map(str, sorted(counts)))
        lines.append(f"| {label} | {asked} | {' | '.join(cells)} |")
    if printed := stages.get("untuned", {}).get(PRINTED):
        shown = _shown([printed])
        label = "no model: the note found first is printed"
        lines.insert(4, f"| {label} | {printed['n']} | {shown} | |")
    return "\n".join(lines)


# Stage → what is asked → the figure, which is measured after several passes.
CURVES = {
    "closed_book_0": {
        "trained facts in trained wordings": "closed book, right: trained wordings",
        "trained facts in free wordings": "closed book, right: free wordings",
    },
    "choosing_0": {
        "the right note": "open book, right: the right note",
        "the right note: refused": "open book, refused: the right note",
        "three notes in any order, one of which answers": (
            "open book, right: three notes, the right one among them, shuffled"
        ),
        "three notes that do not answer: refused": (
            "open book, refused: three notes that do not answer"
        ),
    },
}


def curves(found: Mapping[str, Any], stage: str) -> str:
    """Return what a record measured after several passes as a Markdown table.

    Args:
        found: as `data/recorded/NAME.json` holds it.
        stage: one of `CURVES`.

    Raises:
        KeyError: if the stage is not in the record.
    """
    figures = found["stages"][stage]["figures"]
    passes = sorted({int(n.split()[1]) for n in figures if n.startswith("after ")})
    heads = [f"{n} pass{'es' * (n > 1)}" for n in passes]
    lines = [f"| asked | {' | '.join(heads)} |", f"|:--|{'--:|' * len(passes)}"]
    for label, name in CURVES[stage].items():
        shown = [_shown([figures[f"after {n} passes, {name}"]]) for n in passes]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(runs: Sequence[Mapping[str, float]]) -> str:
    if not runs:
        return ""
    values = [run["value"] for run in runs]
    low, high = min(values), max(values)
    if len(runs) == 1:
        low, high = runs[0]["low"], runs[0]["high"]
    mean = sum(values) / len(values)
    return f"{mean:.0%} ({100 * low:.0f} to {100 * high:.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m utils.record")
    parser.add_argument("model", help="as in COURSE_MODEL")
    parser.add_argument("--name", help="of the record; by default the model's")
    parser.add_argument("--stages", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--ship", action="store_true", help="the recorded adapter")
    chosen = parser.parse_args(arguments)
    try:
        config = run_config({"COURSE_MODEL": chosen.model})
        settings = settings_for(config.model)
        name = chosen.name or settings.name.replace("/", "_")
        folder = run_config().build / "record" / name
        folder.mkdir(parents=True, exist_ok=True)
        road = Road(
            settings,
            config.data,
            folder,
            range(chosen.seeds),
            functools.partial(print, flush=True),
        )
        if chosen.ship:
            print(ship(road))
            return 0
        command = f"python -m utils.record {chosen.model}"
        if chosen.name:
            command += f" --name {chosen.name}"
        if chosen.seeds != parser.get_default("seeds"):
            command += f" --seeds {chosen.seeds}"
        print(record(road, name, command, chosen.stages))
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
