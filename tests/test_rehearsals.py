"""Small runs beside the one that counts."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from support.tiny_models import tiny_gpt_neox, tiny_tokenizer
from utils.course import LAB_DATA
from utils.models import settings_for
from utils.templates import instruction_template
from utils.training.rehearsals import (
    PulledPlug,
    noted_rows,
    question_rows,
    reworded_rows,
    side_run,
    small_trainer,
    wrapped_shapes,
)

LAB = settings_for("lab")
THINGS = ("features", "models", "measures", "logs")
TRAINED = [
    {
        "instruction": f"What keeps {thing}?",
        "response": f"It keeps {thing}.",
        "fact": thing,
        "context": f"- It keeps {thing}.",
        "input_ids": [1],
        "attention_mask": [1],
        "labels": [number],
    }
    for number, thing in enumerate(THINGS)
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    base = tiny_gpt_neox(len(tiny_tokenizer()))
    return get_peft_model(base, lora)


# --- rows ---


def test_rows_count_as_noted_if_the_note_holds_the_answer() -> None:
    wrong = {**TRAINED[3], "context": "- Something else."}
    without = {**TRAINED[2], "context": None}
    found = noted_rows([*TRAINED[:2], without, wrong])
    assert found == [
        {"input_ids": [1], "attention_mask": [1], "labels": [number]}
        for number in (0, 1)
    ]


def test_where_no_row_has_a_note_all_are_taken() -> None:
    without = [{k: v for k, v in row.items() if k != "context"} for row in TRAINED]
    assert len(noted_rows(without)) == len(THINGS)


def test_each_thing_is_chosen_once_and_asked_in_other_words() -> None:
    again = [{**row, "instruction": "Other words?"} for row in TRAINED[1:]]
    twice = [TRAINED[2], TRAINED[0], TRAINED[2], TRAINED[1], TRAINED[3]]
    few, reworded = reworded_rows({"wording": again}, twice, count=2)
    assert [row["fact"] for row in few] == ["measures", "models"]
    assert [row["fact"] for row in reworded] == ["measures", "models"]
    assert {row["instruction"] for row in reworded} == {"Other words?"}


def test_without_other_wordings_nothing_is_asked_again() -> None:
    few, again = reworded_rows({"test": TRAINED[3:]}, TRAINED, count=3)
    assert few == TRAINED[:3]
    assert again == []


def test_questions_of_a_file_become_rows() -> None:
    tokenizer, rows = question_rows(LAB, LAB_DATA, count=5)
    assert len(rows) == 5
    assert all(len(row["labels"]) <= LAB.max_length for row in rows)
    assert "Response" in tokenizer.decode(rows[0]["input_ids"])


def test_shapes_are_those_of_the_wrapped_layers(model) -> None:
    shapes = wrapped_shapes(model)
    assert {name.rpartition(".")[2] for name in shapes} == {
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    }
    trained = sum(4 * (inputs + outputs) for inputs, outputs in shapes.values())
    assert trained == model.get_nb_trainable_parameters()[0]


# --- runs ---


@pytest.mark.parametrize("again", [[], TRAINED[2:]])
def test_a_further_adapter_is_trained_and_the_first_is_not(model, again) -> None:
    before = get_peft_model_state_dict(model, adapter_name="default")
    before = {name: weight.clone() for name, weight in before.items()}
    template = instruction_template(tiny_tokenizer())
    run = (LAB, template, TRAINED, TRAINED[:1], again)
    log = side_run(model, "other", *run, 0.01, epochs=2)
    assert model.active_adapters == ["other"]
    assert [row["epoch"] for row in log if "eval_loss" in row] == [0, 1, 2]
    twice = [row["epoch"] for row in log if "eval_reworded_loss" in row]
    assert twice == ([0, 1, 2] if again else [])
    first = {name: row[name] for row in log[:2] for name in row if "loss" in name}
    assert not again or first["eval_loss"] != first["eval_reworded_loss"]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[1] < losses[0]
    after = get_peft_model_state_dict(model, adapter_name="default")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_killed_and_goes_on_to_the_same_weights(tmp_path) -> None:
    run = (LAB, *question_rows(LAB, LAB_DATA, count=18))
    with pytest.raises(KeyboardInterrupt):
        small_trainer(*run, tmp_path / "killed", PulledPlug(step=3), epochs=2).train()
    assert [one.name for one in (tmp_path / "killed").iterdir()] == ["checkpoint-2"]
    resumed = small_trainer(*run, tmp_path / "killed", epochs=2)
    resumed.train(resume_from_checkpoint=True)
    whole = small_trainer(*run, tmp_path / "whole", epochs=2)
    whole.train()
    one, other = (get_peft_model_state_dict(t.model) for t in (resumed, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
