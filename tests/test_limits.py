"""Rows over the limit: notes are cut, answers never, and nothing goes unnamed.

The whole way: a file with long notes, its rows, a batch, and the trainer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from support.machines import LAPTOP
from support.tiny_models import tiny_chat_tokenizer, tiny_llama, tiny_tokenizer
from utils.dataset.faqs import Faqs, load_faqs
from utils.dataset.limits import within_limit
from utils.dataset.splits import split
from utils.dataset.table import DataError
from utils.helpers import IGNORED, DataCollatorForCompletionOnlyLM
from utils.models import ModelSettings
from utils.templates import Template, chat_template, instruction_template
from utils.training.adapters import require_same_tokenizer
from utils.training.recipe import (
    TrainingError,
    add_lora,
    completion_trainer,
    training_arguments,
)

LIMIT = 200
NOTES = "The gate keeps features for models, and opens at noon. " * 30
ANSWER = "It is shut on day {}."
LONG_NOTES = (4, 13, 17)  # rows of the file, counted from 1
LONG_ANSWERS = (9, 22)  # one of them has notes as well


@pytest.fixture(scope="module", params=["instruction", "chat"])
def template(request) -> Template:
    if request.param == "chat":
        return chat_template(tiny_chat_tokenizer(), "Be brief.")
    return instruction_template(tiny_tokenizer())


def save_rows(file: Path) -> Path:
    """Thirty rows in JSON Lines, of a group each; some are far too long."""
    lines = []
    for number in range(1, 31):
        row = {
            "instruction": f"When is gate {number} shut?",
            "context": "A note." if number % 2 else "",
            "response": ANSWER.format(number),
            "group": f"gate {number}",
        }
        if number in LONG_NOTES or number == LONG_ANSWERS[1]:
            row["context"] = NOTES
        if number in LONG_ANSWERS:
            row["response"] = "It opens at noon and is shut at night. " * 60
        lines.append(json.dumps(row))
    file.write_text("\n".join(lines), "utf-8")
    return file


def framed(faqs: Faqs, template: Template) -> DatasetDict:
    """The parts of a file as lesson 03 makes them, without a limit."""
    return (
        split(faqs)
        .map(template.add_text)
        .map(lambda batch: template.preprocess_batch(batch, None), batched=True)
    )


@pytest.fixture(scope="module")
def faqs(tmp_path_factory: pytest.TempPathFactory) -> Faqs:
    return load_faqs(save_rows(tmp_path_factory.mktemp("gates") / "gates.jsonl"))


@pytest.fixture(scope="module")
def parts(faqs: Faqs, template: Template) -> DatasetDict:
    return framed(faqs, template)


def all_rows(parts: DatasetDict) -> list[dict[str, Any]]:
    return [row for part in parts.values() for row in part.to_list()]


def learned(row: dict[str, Any], tokenizer: Any) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORED])


def test_each_row_keeps_its_whole_answer_or_is_named(faqs, template, parts) -> None:
    said: list[str] = []
    kept = within_limit(parts, template, LIMIT, faqs, said.append)
    rows = {row["instruction"]: row for row in all_rows(kept)}
    numbers = {int(question.split()[3]) for question in rows}
    assert numbers == {*range(1, 31)} - {*LONG_ANSWERS}
    for row in rows.values():
        number = int(row["instruction"].split()[3])
        assert len(row["input_ids"]) <= LIMIT
        assert learned(row, template.tokenizer) == row["completion"]
        assert row["completion"].startswith(ANSWER.format(number))
        assert row["completion"].endswith(template.stop[0])
        # What is asked is what was trained, and what its columns say.
        assert row["prompt"] == template.prompt(row["instruction"], row["context"])
        assert row["text"] == row["prompt"] + row["completion"]
        if number in LONG_NOTES:
            assert NOTES.startswith(row["context"]) and len(row["context"]) > 20
            assert len(row["input_ids"]) > LIMIT - 12
    text = " ".join(said)
    cut = [line for line in said if line.startswith("Notes were cut")]
    gone = [line for line in said if line.startswith("Left out")]
    assert len(cut) + len(gone) == len(said)
    for lines, wanted in ((cut, LONG_NOTES), (gone, LONG_ANSWERS)):
        named = " ".join(line.partition(": ")[2].partition(" (")[0] for line in lines)
        found = [int(word.strip(",")) for word in named.split() if word[0].isdigit()]
        assert sorted(found) == sorted(wanted)
    assert "raise max_length" in text and "shorten" in text.casefold()
    for part in kept.values():
        require_same_tokenizer(part, template.tokenizer, template)


def test_rows_with_notes_from_a_search_are_named_by_the_file(
    template, tmp_path
) -> None:
    """Notes that the file lacks, and a row that does not come from it."""
    file = tmp_path / "gates.csv"
    lines = ["instruction,response", *(f"Gate {n}?,It is gate {n}." for n in range(9))]
    file.write_text("\n".join(lines), "utf-8")
    faqs = load_faqs(file)
    noted = [row | {"context": NOTES} for row in faqs.frame.to_dict("records")]
    replay = {"instruction": "And this?", "response": "It is old.", "context": NOTES}
    rows = [template.add_text(row) for row in [*noted[6:8], noted[2], replay]]
    part = Dataset.from_list(rows)
    part = part.map(lambda batch: template.preprocess_batch(batch, None), batched=True)
    said: list[str] = []
    within_limit(DatasetDict(train=part), template, LIMIT, faqs, said.append)
    assert "rows 8, 9, 4 and 1 row from elsewhere (train)" in said[0]


def test_rows_that_fit_stay_as_they_are_and_nothing_is_said(
    faqs, template, parts
) -> None:
    kept = within_limit(parts, template, 10_000, faqs, pytest.fail)
    assert {name: part.to_list() for name, part in kept.items()} == {
        name: part.to_list() for name, part in parts.items()
    }


def test_without_the_file_a_row_is_named_by_its_place(template, parts) -> None:
    said: list[str] = []
    within_limit(parts, template, LIMIT, say=said.append)
    places = [
        (name, place)
        for name, part in parts.items()
        for place, row in enumerate(part.to_list())
        if len(row["input_ids"]) > LIMIT
    ]
    assert len(places) == len(LONG_NOTES) + len(LONG_ANSWERS)
    for name, place in places:
        assert any(f"({name}, counted from 0)" in s and str(place) in s for s in said)


def test_a_part_of_which_nothing_is_left_is_an_error(faqs, template, parts) -> None:
    with pytest.raises(DataError, match="Nothing is left of train.*raise max_length"):
        within_limit(parts, template, 20, faqs)


def test_a_file_without_notes_has_its_long_rows_named(tmp_path, template) -> None:
    file, said = tmp_path / "rows.csv", []
    lines = [f"Gate {n}?,{'Noon. ' * (1 + 99 * (n == 7))},{n}" for n in range(20)]
    file.write_text("\n".join(["question,answer,group", *lines]), "utf-8")
    faqs = load_faqs(file)
    kept = within_limit(framed(faqs, template), template, LIMIT, faqs, said.append)
    assert len(all_rows(kept)) == 19
    assert len(said) == 1 and "row 9 (" in said[0]  # the header is row 1


# --- on to the batch and the trainer --------------------------------------------------


def trainer_for(template: Template, rows: Any, folder: Path, held_out: Any = None):
    tokenizer = template.tokenizer
    settings = ModelSettings("tiny", "tiny", "any", epochs=1, lora_dropout=0.0)
    torch.manual_seed(0)
    model = add_lora(tiny_llama(len(tokenizer)), settings)
    arguments = training_arguments(
        settings, folder, LAPTOP, eval_strategy="no", disable_tqdm=True
    )
    return completion_trainer(model, tokenizer, arguments, rows, held_out)


def test_all_that_is_kept_is_trained_on(
    faqs, template, parts, tmp_path, monkeypatch
) -> None:
    kept = within_limit(parts, template, LIMIT, faqs, str)["train"]
    seen: list[int] = []
    collate = DataCollatorForCompletionOnlyLM.__call__

    def counted(self, rows):
        batch = collate(self, rows)
        alone = [collate(self, [row])["labels"] for row in rows]
        assert all(len(labels) for labels in alone)
        seen.extend(int((labels != IGNORED).sum()) for labels in alone)
        return batch

    monkeypatch.setattr(DataCollatorForCompletionOnlyLM, "__call__", counted)
    trainer_for(template, kept, tmp_path / "run").train()
    answers = [sum(x != IGNORED for x in labels) for labels in kept["labels"]]
    assert sorted(seen) == sorted(answers)


@pytest.mark.parametrize("as_list", [True, False])
def test_a_row_without_its_answer_stops_the_run_before_it_begins(
    template, parts, tmp_path, as_list
) -> None:
    """As whoever cuts rows at their end makes them."""
    columns = ["input_ids", "attention_mask", "labels"]
    train = parts["train"].select_columns(columns)
    cut = train.map(lambda row: {name: row[name][:LIMIT] for name in columns})
    lost = [
        place
        for place, labels in enumerate(cut["labels"])
        if all(label == IGNORED for label in labels)
    ]
    assert lost
    rows = cut.to_list() if as_list else cut
    named = f"rows {', '.join(map(str, lost))} of"
    with pytest.raises(TrainingError, match=f"{named} train_rows.*max_length"):
        trainer_for(template, rows, tmp_path)
    good = [row for place, row in enumerate(cut.to_list()) if place not in lost]
    with pytest.raises(TrainingError, match=f"{named} held_out"):
        trainer_for(template, good, tmp_path, rows)
    trainer_for(template, good, tmp_path, good)


def test_a_first_label_alone_is_no_answer(template, tmp_path) -> None:
    row = {"input_ids": [5, 6], "labels": [5, IGNORED]}
    with pytest.raises(TrainingError, match="rows 0 of train_rows"):
        trainer_for(template, [row], tmp_path)
