"""The table of models, what the machine decides, loading and answering."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from support.machines import A10G, LAPTOP, T4, XEON
from support.tiny_models import tiny_gpt_neox, tiny_tokenizer
from utils.course import ENCODER_NAMES, MODEL_NAMES, ROOT
from utils.fetch import WHEELS, model_folder
from utils.helpers import END_KEY, INFERENCE_PROMPT
from utils.models import (
    ENCODERS,
    MODELS,
    ModelError,
    batches_by_length,
    choose_dtype,
    choose_quantisation,
    generate,
    load_model,
    load_tokenizer,
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


def test_a_model_from_the_hub_has_its_revision() -> None:
    for name in ("small", "dolly"):
        assert re.fullmatch("[0-9a-f]{40}", MODELS[name].revision)


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


@pytest.mark.parametrize(
    "name, machine, expected, reason",
    [
        ("lab", LAPTOP, "none", "no GPU"),
        ("dolly", XEON, "none", "no GPU"),
        ("lab", T4, "none", "lab fits the card"),
        ("dolly", T4, "8bit", "half"),
        ("dolly", A10G, "none", "dolly fits the card"),
    ],
)
def test_quantisation_follows_model_and_machine(
    name, machine, expected, reason
) -> None:
    choice, why = choose_quantisation(MODELS[name], machine)
    assert choice == expected
    assert reason in why


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
