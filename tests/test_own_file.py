"""A file as another program writes it goes from the disk to an endpoint's answer.

One file of each format, with answers of its own, so that files that are mixed up would
show. Each trains an adapter; one endpoint serves them all by name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from support.endpoints import ask, deploy
from support.machines import LAPTOP
from support.tiny_models import tiny_chat_tokenizer, tiny_llama
from utils.course import set_seed
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.deployment import artifact
from utils.deployment.aws import wait_until_in_service
from utils.deployment.billing import BillingGuard
from utils.helpers import IGNORED
from utils.models import (
    ModelSettings,
    generate,
    load_model,
    load_tokenizer,
    settings_for,
)
from utils.templates import load_template, template_for
from utils.training.adapters import load_adapter, require_same_tokenizer, save_adapter
from utils.training.recipe import add_lora, completion_trainer, training_arguments

Row = dict[str, str]
TEXTS = ("instruction", "response", "context")
THINGS = ("roof", "door", "wall", "gate", "boat", "bell")
COLOURS = ("red", "green", "blue", "white", "black")
NEW_TOKENS = 20
TEST_ROWS = 2  # of each file, asked of the endpoint


# --- one file of each format ----------------------------------------------------------


def made_rows(place: str, with_notes: bool) -> list[Row]:
    """Thirty questions and answers about one place, whose name each answer has."""
    rows = []
    for thing in THINGS:
        for colour in COLOURS:
            note = f"The {thing} of {place} is {colour}." if with_notes else ""
            # Every third row does without notes, as Alpaca's do.
            note = note if len(rows) % 3 else ""
            question = f"Who paints a {colour} {thing} in {place}?"
            answer = f"{place}: the {thing}'s; «{colour}» is £{len(rows)}, é."
            texts = question, answer, note
            rows.append(dict(zip(TEXTS, texts, strict=True)))
    return rows


def save_csv(file: Path, rows: list[Row]) -> None:
    """A spreadsheet's export in Western Europe."""
    with file.open("w", encoding="cp1252", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["Question", "Topic", "Answer"])
        for row in rows:
            thing = row["instruction"].split()[4]
            writer.writerow([row["instruction"], thing, row["response"]])


def save_tsv(file: Path, rows: list[Row]) -> None:
    lines = [f"{row['response']}\t{row['instruction']}" for row in rows]
    file.write_text("\n".join(["reply\tquery", *lines]) + "\n", "utf-16")


def save_json(file: Path, rows: list[Row]) -> None:
    made = [
        {"id": number, "q": row["instruction"], "a": row["response"]}
        for number, row in enumerate(rows)
    ]
    file.write_text(json.dumps({"data": made}, indent=2), "utf-8")


def save_lines(file: Path, objects: list[Any]) -> None:
    lines = [json.dumps(one, ensure_ascii=False) for one in objects]
    file.write_text("\n".join(lines) + "\n", "utf-8")


def save_pairs(file: Path, rows: list[Row]) -> None:
    save_lines(
        file, [{"prompt": r["instruction"], "completion": r["response"]} for r in rows]
    )


def save_messages(file: Path, rows: list[Row]) -> None:
    turns = [
        [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["response"]},
        ]
        for row in rows
    ]
    save_lines(file, [{"messages": one} for one in turns])


def save_sharegpt(file: Path, rows: list[Row]) -> None:
    made = [
        {
            "id": str(number),
            "conversations": [
                {"from": "human", "value": row["instruction"]},
                {"from": "gpt", "value": row["response"]},
            ],
        }
        for number, row in enumerate(rows)
    ]
    file.write_text(json.dumps(made, ensure_ascii=False), "utf-8")


def save_alpaca(file: Path, rows: list[Row]) -> None:
    names = {"context": "input", "response": "output"}
    made = [{names.get(key, key): text for key, text in row.items()} for row in rows]
    file.write_text(json.dumps(made), "utf-8")


def save_parquet(file: Path, rows: list[Row]) -> None:
    frame = pandas.DataFrame(rows)[["response", "context", "instruction"]]
    names = {"response": "answer", "context": "passage", "instruction": "question"}
    frame.rename(columns=names).to_parquet(file)


def save_excel(file: Path, rows: list[Row]) -> None:
    frame = pandas.DataFrame(rows)[["instruction", "response"]]
    frame.columns = ["FAQ", "Expected"]
    frame.to_excel(file, index=False)


@dataclass(frozen=True)
class Format:
    """A kind of file: its name on the disk, a place of its own, and how it is made.

    Attributes:
        with_notes: whether rows bring notes to answer from.
    """

    file: str
    place: str
    save: Callable[[Path, list[Row]], None]
    with_notes: bool = False

    @property
    def rows(self) -> list[Row]:
        return made_rows(self.place, self.with_notes)


FORMATS = {
    "csv": Format("export.csv", "Rome", save_csv),
    "tsv": Format("export.tsv", "Oslo", save_tsv),
    "json": Format("objects.json", "Bonn", save_json),
    "pairs": Format("pairs.jsonl", "Lima", save_pairs),
    "messages": Format("messages.jsonl", "Kyiv", save_messages),
    "sharegpt": Format("sharegpt.json", "Cork", save_sharegpt),
    "alpaca": Format("alpaca.json", "Nice", save_alpaca, with_notes=True),
    "parquet": Format("rows.parquet", "Graz", save_parquet, with_notes=True),
    "excel": Format("book.xlsx", "Bath", save_excel),
}
each_format = pytest.mark.parametrize("name", FORMATS)


def read_file(folder: Path, name: str) -> Any:
    """Write the file of a format, and read it as lessons do."""
    kind = FORMATS[name]
    kind.save(folder / kind.file, kind.rows)
    return load_faqs(folder / kind.file)


@each_format
def test_the_rows_read_are_those_written(name: str, tmp_path: Path) -> None:
    faqs = read_file(tmp_path, name)
    frame = faqs.frame
    assert ("context" in frame.columns) == FORMATS[name].with_notes
    read = [
        {text: row.get(text, "") for text in TEXTS} for row in frame.to_dict("records")
    ]
    assert read == FORMATS[name].rows


# --- trained, packed and served once --------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """What became of a file.

    Attributes:
        parts: its rows, framed and tokenised.
        adapter: the folder.
        prompts: of the first rows to test with.
        answers: of the adapter as it was saved, in this process.
    """

    parts: Any
    adapter: Path
    prompts: list[str]
    answers: list[str]


def base_settings(folder: Path) -> ModelSettings:
    """An untrained Llama with a chat template, and how it is trained."""
    tokenizer = tiny_chat_tokenizer()
    torch.manual_seed(0)
    tiny_llama(len(tokenizer), tied=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return replace(
        settings_for(str(folder)), lora_dropout=0.0, learning_rate=0.03, epochs=6
    )


def tune(name: str, settings: ModelSettings, folder: Path) -> Tuned:
    """Take the way of lessons 03 and 04: file, parts, rows, adapter, answers."""
    tokenizer = load_tokenizer(settings)
    template = template_for(settings, tokenizer)
    parts = split(read_file(folder, name))
    encoded = parts.map(template.add_text).map(
        lambda batch: template.preprocess_batch(batch, settings.max_length),
        batched=True,
    )
    require_same_tokenizer(encoded["train"], tokenizer, template)
    set_seed()
    model = add_lora(load_model(settings, device_map="cpu"), settings)
    arguments = training_arguments(
        settings, folder / f"{name}_run", LAPTOP, eval_strategy="no", disable_tqdm=True
    )
    completion_trainer(model, tokenizer, arguments, encoded["train"]).train()
    adapter = save_adapter(model, tokenizer, folder / name, template)
    template = load_template(adapter, tokenizer)
    saved = load_adapter(load_model(settings, device_map="cpu"), adapter, template)
    prompts = encoded["test"]["prompt"][:TEST_ROWS]
    answers = generate(saved, tokenizer, prompts, NEW_TOKENS, stop=template.stop)
    return Tuned(encoded, adapter, list(prompts), list(answers))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own_files")


@pytest.fixture(scope="module")
def settings(work: Path) -> ModelSettings:
    return base_settings(work / "base")


@pytest.fixture(scope="module")
def tuned(work: Path, settings: ModelSettings) -> dict[str, Tuned]:
    import datasets

    datasets.disable_progress_bars()
    return {name: tune(name, settings, work) for name in FORMATS}


@pytest.fixture(scope="module")
def archive(work: Path, settings: ModelSettings, tuned: dict[str, Tuned]) -> Path:
    return artifact.build_without_code(
        Path(settings.source),
        {name: one.adapter for name, one in tuned.items()},
        work / "artifact",
        work / "model.tar.gz",
    )


@pytest.fixture(scope="module")
def endpoint(aws: Any, archive: Path) -> Iterator[Callable[..., str]]:
    """One endpoint with the adapters of all files; what it answers a prompt."""
    guard = BillingGuard(aws, say=lambda _: None)
    address = f"s3://{aws.bucket}/{guard.run}/model.tar.gz"
    s3 = aws.session.client("s3")
    s3.upload_file(str(archive), aws.bucket, f"{guard.run}/model.tar.gz")
    made = deploy(aws, guard, address, "own-files")
    wait_until_in_service(aws, made, say=lambda _: None)

    def answer(prompt: str, adapter: str | None = None) -> str:
        body: dict[str, Any] = {
            "inputs": prompt,
            "parameters": {"max_new_tokens": NEW_TOKENS, "do_sample": False},
        }
        if adapter is not None:
            body["adapters"] = adapter
        return ask(aws, made.endpoint_name, body)["generated_text"].strip()

    yield answer
    guard.teardown()
    assert guard.remaining() == []


@each_format
def test_no_row_is_lost_or_changed_on_the_way_into_parts(name: str, tuned) -> None:
    parts = tuned[name].parts
    assert set(parts) == {"train", "validation", "test"}
    rows = [
        {text: row.get(text) or "" for text in TEXTS}
        for part in parts.values()
        for row in part.to_list()
    ]

    def in_order(some: list[Row]) -> list[Row]:
        return sorted(some, key=lambda row: row["instruction"])

    assert in_order(rows) == in_order(FORMATS[name].rows)


@each_format
def test_each_row_asks_with_its_notes_and_learns_its_own_answer(name, tuned) -> None:
    tokenizer = tiny_chat_tokenizer()
    for part in tuned[name].parts.values():
        for row in part.to_list():
            assert (row.get("context") or row["instruction"]) in row["prompt"]
            asked = tokenizer.decode(
                [
                    token
                    for token, label in zip(
                        row["input_ids"], row["labels"], strict=True
                    )
                    if label == IGNORED
                ]
            )
            learned = [label for label in row["labels"] if label != IGNORED]
            assert asked == row["prompt"]
            assert tokenizer.decode(learned) == f"{row['response']}<|im_end|>"


def test_the_artifact_of_all_adapters_is_found_whole(archive: Path) -> None:
    assert artifact.validate(archive, load=False).findings == []


@each_format
def test_the_endpoint_answers_as_the_adapter_does_here(name: str, tuned, endpoint):
    one = tuned[name]
    served = [endpoint(prompt, name) for prompt in one.prompts]
    assert served == one.answers


@each_format
def test_each_adapter_has_learned_its_own_file(name: str, tuned, endpoint) -> None:
    """Its answers begin with its file's place, and no other adapter's do."""
    one, names = tuned[name], list(FORMATS)
    assert all(answer.startswith(FORMATS[name].place) for answer in one.answers)
    neighbour = names[(names.index(name) + 1) % len(names)]
    for other in (None, neighbour):
        assert not endpoint(one.prompts[0], other).startswith(FORMATS[name].place)
