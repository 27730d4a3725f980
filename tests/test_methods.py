"""What ways to fine-tune are compared on, and what is measured of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.resumable import tiny_rows
from support.tiny_models import (
    parameter_counts,
    tiny_chat_tokenizer,
    tiny_gpt_neox,
    tiny_llama,
    tiny_tokenizer,
)
from utils.evaluation.answers import judge_for
from utils.helpers import add_text
from utils.models import MODELS, load_model, settings_for
from utils.tasks import problems
from utils.templates import chat_template, template_for
from utils.training import methods
from utils.training.methods import (
    Bottleneck,
    Study,
    add_bottlenecks,
    make_study,
    training_megabytes,
)
from utils.training.recipe import TrainingError, add_lora

HIDDEN, LAYERS, RANK = 32, 2, 4


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    tiny_gpt_neox(len(tiny_tokenizer())).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    settings = replace(
        settings_for(str(folder)),
        lora_r=RANK,
        lora_alpha=8,
        learning_rate=5e-3,
        max_new_tokens=4,
        epochs=1,
        batch_size=2,
    )
    rows = tiny_rows()
    questions = [add_text({"instruction": "What?", "response": "It."})]
    return Study(
        settings,
        tiny_tokenizer(),
        train=rows,
        held_out=rows[:2],
        replay=tiny_rows("replay rehearsal"),
        questions=questions,
        judge=judge_for(questions),
        skill=problems("1 steps", 1),
    )


def test_a_bottleneck_changes_nothing_before_it_is_trained(study) -> None:
    torch.manual_seed(0)
    base = tiny_gpt_neox(len(tiny_tokenizer())).eval()
    ids = torch.tensor([study.train[0]["input_ids"]])
    with torch.no_grad():
        before = base(ids).logits
        after = add_bottlenecks(base)(ids).logits
    assert torch.equal(before, after)
    assert sum(isinstance(part, Bottleneck) for part in base.modules()) == LAYERS


def test_memory_is_counted_by_hand(study) -> None:
    base = load_model(study.settings, dtype=torch.float32).requires_grad_(True)
    held, rows = {}, 2
    for name in ("full", "LoRA"):
        model = base if name == "full" else add_lora(base, study.settings)
        held[name] = training_megabytes(model, study, rows=rows)
        trained, total = parameter_counts(model)
        # 4 bytes a weight, 4 for its gradient and 8 for Adam's averages if trained.
        assert held[name] > (4 * total + 12 * trained) / 1e6
    assert held["full"] > held["LoRA"]
    assert training_megabytes(model, study, rows=6) > held["LoRA"]


def dataset_of(answers, add_text=add_text):
    from datasets import Dataset, DatasetDict

    rows = [add_text({"instruction": "What?", "response": one}) for one in answers]
    part = Dataset.from_list(rows)
    return DatasetDict(train=part, validation=part)


def test_a_study_of_a_large_model_takes_the_lab_model() -> None:
    study = make_study(MODELS["dolly"], dataset_of(["It.", "That."]), 2_800_000_000)
    assert study.settings.name == "lab"
    assert (study.settings.epochs, study.settings.batch_size) == (1, 8)
    assert len(study.train) == 2
    assert study.tokenizer.decode(study.train[0]["input_ids"]).endswith("### End")


def test_in_place_of_a_large_chat_model_the_lab_model_reads_its_own_template() -> None:
    chat = chat_template(tiny_chat_tokenizer("names itself"))
    dataset = dataset_of(["It.", "That."], chat.add_text)
    study = make_study(MODELS["smollm2"], dataset, 134_515_008)
    assert study.settings.name == "lab"
    for row in (*study.train, *study.held_out):
        text = study.tokenizer.decode(row["input_ids"])
        assert text.startswith("Below is an instruction")
        assert text.endswith("### End")
    assert study.questions[0]["prompt"].endswith("### Response:\n")
    assert study.stop == ("### End",)


def test_a_study_of_a_small_chat_model_keeps_to_its_chat_template(tmp_path) -> None:
    tokenizer = tiny_chat_tokenizer("names itself")
    torch.manual_seed(0)
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = settings_for(str(tmp_path))
    template = template_for(settings, tokenizer)
    study = make_study(settings, dataset_of(["It."], template.add_text), 30_000)
    assert study.questions[0]["prompt"] == template.prompt("What?")
    assert study.stop == ("<|im_end|>",)
    assert study.train[0]["labels"][-1] == tokenizer.eos_token_id


def test_a_study_takes_rows_from_all_over_the_data_set() -> None:
    dataset = dataset_of([f"It is {number}." for number in range(12)])
    study = make_study(MODELS["lab"], dataset, 1_000, n_rows=4, n_questions=3)
    ends = [study.tokenizer.decode(row["input_ids"]) for row in study.train]
    for number, text in zip((0, 3, 6, 9), ends, strict=True):
        assert f"It is {number}." in text
    assert [row["response"] for row in study.questions] == [
        f"It is {number}." for number in (0, 4, 8)
    ]
    assert len(study.held_out) == 12


def test_long_notes_are_cut_and_rows_that_are_left_out_are_told_of() -> None:
    notes = {"context": "It keeps features for models. " * 90}
    dataset = dataset_of(
        ["It.", "That.", "long " * 900], lambda row: add_text({**row, **notes})
    )
    with pytest.warns(UserWarning, match="1 of 3 rows of train .* raise max_length"):
        study = make_study(MODELS["lab"], dataset, 1_000)
    texts = [study.tokenizer.decode(row["input_ids"]) for row in study.train]
    assert [text.partition("### Response:\n")[2] for text in texts] == [
        "It.\n\n### End",
        "That.\n\n### End",
    ]
    for text, row in zip(texts, study.train, strict=True):
        assert "It keeps features" in text
        assert len(row["input_ids"]) <= study.settings.max_length


def test_rows_that_are_all_too_long_are_an_error() -> None:
    with pytest.raises(TrainingError, match="All rows of train are longer than the"):
        make_study(MODELS["lab"], dataset_of(["long " * 900]), 1_000)


def test_kept_are_the_problems_that_are_still_solved(study, monkeypatch) -> None:
    asked = replace(study, skill=problems("1 steps", 4))
    right = [f" {problem.result}." for problem in asked.skill]
    said = iter([["It."], [right[0], right[1], " 0.5.", "no number"]])
    monkeypatch.setattr(methods, "generate", lambda *_, **__: next(said))
    monkeypatch.setattr(methods, "loss_on", lambda *_: 0.0)
    assert methods.measure(torch.nn.Identity(), asked)["kept"] == 0.5
