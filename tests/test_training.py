import copy
import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model
from test_models import A10G, LAPTOP, T4, XEON
from tiny_models import tiny_gpt_neox, tiny_tokenizer
from transformers import Trainer

from utils.helpers import DataCollatorForCompletionOnlyLM, add_text, preprocess_batch
from utils.models import MODELS, ModelError
from utils.training import (
    choose_attention,
    lora_config,
    parameter_counts,
    replace_folder,
    require_same_tokenizer,
    save_adapter,
    save_history,
    training_arguments,
)

SETTINGS = replace(MODELS["lab"], lora_r=4, lora_alpha=8, epochs=2, batch_size=4)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return tiny_gpt_neox(len(tiny_tokenizer()))


@pytest.fixture(scope="module")
def rows():
    tokenizer = tiny_tokenizer()
    words = ["features", "models", "measures", "security", "rest", "transit"]
    texts = [
        add_text({"instruction": f"What keeps {w}?", "response": f"It keeps {w}."})
        for w in words
    ]
    columns = {key: [text[key] for text in texts] for key in ("prompt", "completion")}
    encoded = preprocess_batch(columns, tokenizer, 256)
    return [
        dict(zip(encoded, row, strict=True))
        for row in zip(*encoded.values(), strict=True)
    ]


def trainer(model, rows, folder, **changes):
    return Trainer(
        model=model,
        args=training_arguments(SETTINGS, folder, disable_tqdm=True, **changes),
        train_dataset=rows,
        eval_dataset=rows[:2],
        data_collator=DataCollatorForCompletionOnlyLM(
            tiny_tokenizer(), completion_logits_only=True
        ),
    )


def test_lora_reaches_all_linear_layers_and_only_those(base):
    model = get_peft_model(base, lora_config(SETTINGS))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    for module in SETTINGS.target_modules:
        assert sum(f".{module}.lora_A" in name for name in trained) == 2
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parameter_counts(model)[0] == counted
    assert parameter_counts(base)[1] >= counted


@pytest.mark.parametrize(
    "machine, bf16, fp16, cpu",
    [
        (LAPTOP, False, False, True),
        (XEON, True, False, True),
        (A10G, True, False, False),
        (T4, False, True, False),
    ],
)
def test_arithmetic_follows_the_machine(
    machine, bf16, fp16, cpu, tmp_path, monkeypatch
):
    # transformers refuses a GPU's types where there is none: look at what is asked for.
    asked = {}
    monkeypatch.setattr("transformers.TrainingArguments", lambda **kw: asked.update(kw))
    training_arguments(SETTINGS, tmp_path, machine)
    assert (asked["bf16"], asked["fp16"], asked["use_cpu"]) == (bf16, fp16, cpu)


def test_settings_and_changes_reach_the_trainer(tmp_path):
    arguments = training_arguments(SETTINGS, tmp_path, learning_rate=0.1)
    assert arguments.num_train_epochs == 2
    assert arguments.per_device_train_batch_size == 4
    assert arguments.learning_rate == 0.1
    assert arguments.seed == 42


def test_attention_follows_machine_and_length():
    assert choose_attention(SETTINGS, XEON) == "eager"
    assert choose_attention(SETTINGS, LAPTOP) == "sdpa"
    assert choose_attention(SETTINGS, A10G) == "sdpa"
    assert choose_attention(replace(SETTINGS, max_length=2048), XEON) == "sdpa"


def test_a_run_learns_repeatably_and_the_saved_adapter_is_the_trained_one(
    base, rows, tmp_path
):
    runs, plain = [], copy.deepcopy(base)
    for _ in range(2):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(plain), lora_config(SETTINGS))
        run = trainer(model, rows, tmp_path / "run")
        run.train()
        runs.append(run.state.log_history)
    losses = [[x["eval_loss"] for x in run if "eval_loss" in x] for run in runs]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]

    folder = save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    names = {file.name for file in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert "tokenizer.json" in names
    assert not [name for name in names if name.endswith(".bin")]
    reloaded = PeftModel.from_pretrained(plain, folder).eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    # The Trainer leaves a bfloat16 wrapper around forward where it trained in bfloat16.
    model = run.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model.eval()(ids).logits)


def test_the_saved_adapter_names_no_place_on_this_machine(base, tmp_path):
    base.name_or_path = str(tmp_path / "some" / "base")
    model = get_peft_model(base, lora_config(SETTINGS))
    folder = save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == "base"
    assert saved["target_modules"] == sorted(SETTINGS.target_modules)
    for file in folder.glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_a_data_set_for_another_tokenizer_is_an_error():
    row = add_text({"instruction": "What?", "response": "It."})
    row["input_ids"] = tiny_tokenizer(key_tokens=False)(row["text"])["input_ids"]
    require_same_tokenizer([row], tiny_tokenizer(key_tokens=False))
    with pytest.raises(ModelError, match="another model.*03_dataset_templating"):
        require_same_tokenizer([row], tiny_tokenizer())


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(base, tmp_path):
    model = get_peft_model(base, lora_config(SETTINGS))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.txt").write_text("old")
    save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]
    assert not (tmp_path / "adapter" / "old.txt").exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError]
)
def test_a_failed_save_leaves_what_was_there(tmp_path, error):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.txt").write_text("old")

    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise error

    expected = ModelError if isinstance(error, OSError) else RuntimeError
    with pytest.raises(expected):
        replace_folder(tmp_path / "adapter", fail)
    files = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")]
    assert sorted(files) == ["adapter", "adapter/old.txt"]


def test_history_is_written_whole(tmp_path):
    file = save_history([{"loss": 1.5, "step": 1}], SETTINGS, tmp_path / "t.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["history"] == [{"loss": 1.5, "step": 1}]
    assert content["settings"]["lora_r"] == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]
