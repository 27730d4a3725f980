"""The ways to fine-tune that lesson 04 compares, and what it measures of them."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from support.resumable import tiny_rows
from support.tiny_models import (
    tiny_chat_tokenizer,
    tiny_gpt_neox,
    tiny_llama,
    tiny_tokenizer,
)
from utils.evaluation.answers import judge_for
from utils.helpers import add_text
from utils.models import MODELS, settings_for
from utils.tasks import problems
from utils.templates import chat_template, template_for
from utils.training import methods
from utils.training.methods import (
    METHODS,
    Bottleneck,
    Study,
    add_bottlenecks,
    compare,
    fine_tune,
    loss_on,
    make_study,
    make_trainer,
    sweep,
    training_megabytes,
)
from utils.training.recipe import TrainingError, parameter_counts

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


TRAINED = {
    "full": None,  # all of them
    "LoRA": LAYERS * RANK * (32 + 96 + 32 + 32 + 32 + 64 + 64 + 32),
    "LoRA, replay": LAYERS * RANK * (32 + 96 + 32 + 32 + 32 + 64 + 64 + 32),
    "QLoRA": LAYERS * RANK * (32 + 96 + 32 + 32 + 32 + 64 + 64 + 32),
    "bottleneck": LAYERS * (2 * HIDDEN * methods.BOTTLENECK + methods.BOTTLENECK + 32),
    "prefix": methods.VIRTUAL_TOKENS * LAYERS * 2 * HIDDEN,
    "prompt": methods.VIRTUAL_TOKENS * HIDDEN,
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_what_it_should_and_that_alone(name, study) -> None:
    method = METHODS[name]
    torch.manual_seed(0)
    start = {
        key: weights.detach().clone()
        for key, weights in method.prepare(study.settings).named_parameters()
    }
    model, seconds = fine_tune(method, study, seed=0, num_train_epochs=3)
    trained, total = parameter_counts(model)
    assert trained == (TRAINED[name] or total)
    assert seconds > 0
    for key, weights in model.named_parameters():
        if not weights.requires_grad:
            assert torch.equal(start[key], weights), key
    untrained = method.prepare(study.settings).eval()
    assert loss_on(model, study, study.train) < loss_on(untrained, study, study.train)


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
    held = {name: 0.0 for name in ("full", "LoRA", "prompt")}
    for name in held:
        model = METHODS[name].prepare(study.settings)
        held[name] = training_megabytes(model, study, rows=2)
        trained, total = parameter_counts(model)
        # 4 bytes a weight, 4 for its gradient and 8 for Adam's averages if trained.
        assert held[name] > (4 * total + 12 * trained) / 1e6
    assert held["full"] > held["LoRA"]
    assert training_megabytes(model, study, rows=6) > held["prompt"]


def test_the_comparison_has_one_row_a_run(study) -> None:
    frame = compare(study, ["LoRA", "prompt"], seeds=[0, 1])
    assert list(frame["method"]) == ["LoRA", "LoRA", "prompt", "prompt"]
    assert list(frame["seed"]) == [0, 1, 0, 1]
    assert frame["loss"].nunique() == 4
    assert frame["right"].between(0, 1).all() and frame["kept"].between(0, 1).all()


def test_the_same_seed_gives_the_same_weights(study) -> None:
    runs = [fine_tune(METHODS["LoRA"], study, seed=3)[0] for _ in range(2)]
    pairs = zip(runs[0].parameters(), runs[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_replay_adds_its_share_of_rows_of_those_there_are(study, tmp_path) -> None:
    method = METHODS["LoRA, replay"]
    trainer = make_trainer(method, study, str(tmp_path), seed=0)
    assert trainer.train_dataset == study.train + study.replay
    none = make_trainer(method, replace(study, replay=[]), str(tmp_path), seed=0)
    assert none.train_dataset == study.train


def test_a_sweep_tries_every_combination_at_the_same_scale(study, monkeypatch) -> None:
    seen = []

    def note(method, study, seed, **_):
        seen.append(study.settings)
        return None, 0.0

    monkeypatch.setattr(methods, "fine_tune", note)
    monkeypatch.setattr(methods, "loss_on", lambda *_: 1.0)
    frame = sweep(study, seeds=[0], learning_rate=[1e-3, 1e-2], lora_r=[2, 8])
    assert list(frame["learning_rate"]) == [1e-3, 1e-3, 1e-2, 1e-2]
    assert list(frame["lora_r"]) == [2, 8, 2, 8]
    assert [one.lora_alpha / one.lora_r for one in seen] == [2.0] * 4
    assert [one.learning_rate for one in seen] == list(frame["learning_rate"])


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


def test_a_comparison_leaves_nothing_out_of_later_garbage_collections() -> None:
    before = gc.get_freeze_count()  # Python 3.12 freezes some objects of its own
    assert list(methods.with_progress_bar("ab")) == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        for _ in methods.with_progress_bar([0]):
            raise ZeroDivisionError
    assert gc.get_freeze_count() <= before


def test_full_fine_tuning_takes_a_tenth_of_loras_learning_rate(study, tmp_path) -> None:
    rates = {
        name: make_trainer(METHODS[name], study, str(tmp_path), seed=0)
        for name in ("full", "LoRA")
    }
    rates = {name: trainer.args.learning_rate for name, trainer in rates.items()}
    assert rates["full"] == pytest.approx(rates["LoRA"] / 10)
