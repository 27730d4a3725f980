"""What is computed on paper, held to what the libraries build, count and pack."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from utils.course import ROOT
from utils.deployment.costs import CostError
from utils.jobs import arithmetic, money, published
from utils.jobs.arithmetic import GB, Job, PaperError, memory_parts
from utils.jobs.shapes import Shape, ShapeError, known_shapes, shape_of
from utils.models import MODELS
from utils.training.memory import noted_activations

COLUMN_UNITS = ("GB", "million", "hours", "US dollars", "number")


def built(shape: Shape, device: str = "meta", **more) -> torch.nn.Module:
    """The model as transformers builds it, without memory on the device "meta"."""
    config = AutoConfig.for_model(**shape.config)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, **more)


def numbers(model: torch.nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def narrow(name: str, **changes) -> Shape:
    """A shape of the same kind that computes in a moment."""
    shape = shape_of(name)
    config = {
        **shape.config,
        **{"vocab_size": 320, "hidden_size": 128, "intermediate_size": 384},
        **{"num_hidden_layers": 3, "num_attention_heads": 4},
        **changes,
    }
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = 2
    return Shape(
        **{"name": name, "title": name, "source": "", "config": config},
        **{"hidden": config["hidden_size"], "layers": config["num_hidden_layers"]},
        key_values=64 if "num_key_value_heads" in config else config["hidden_size"],
        wide=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        gated=shape.gated,
    )


# --- counts ---


@pytest.mark.parametrize("name", known_shapes())
def test_a_model_has_as_many_numbers_as_transformers_builds(name) -> None:
    shape = shape_of(name)
    assert shape.parameters == numbers(built(shape))
    assert shape.source


@pytest.mark.parametrize(
    ("course", "name"), [("smollm2", "smollm2-135m"), ("dolly", "dolly-v2-3b")]
)
def test_the_course_s_own_table_agrees(course, name) -> None:
    assert MODELS[course].parameters == shape_of(name).parameters


@pytest.mark.parametrize("name", ["dolly-v2-3b", "llama-3.1-8b", "llama-3.1-70b"])
@pytest.mark.parametrize("modules", ["all-linear", "some"])
def test_lora_has_as_many_numbers_as_peft_builds(name, modules) -> None:
    shape = shape_of(name)
    chosen = modules if modules == "all-linear" else list(shape.linear)[:2]
    lora = LoraConfig(r=8, target_modules=chosen, task_type="CAUSAL_LM")
    model = get_peft_model(built(shape), lora)
    assert shape.lora(8, chosen) == numbers(model, trained=True)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ShapeError, match="Dolly 2 3B has no linear layer 'q_proj'"):
        shape_of("dolly-v2-3b").lora(8, ["q_proj"])
    with pytest.raises(ShapeError, match="'llama' is not known: give one of smollm2"):
        shape_of("llama")


# --- memory ---


def test_a_packed_weight_takes_the_bits_that_bitsandbytes_takes() -> None:
    """Weights, constants in 8 bits, and constants of these: as bnb holds them."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        1024, 2048, bias=False, quant_type="nf4", compress_statistics=True
    )
    layer = layer.to("cpu")
    weight = layer.weight
    if not weight.bnb_quantized:
        weight = weight._quantize("cpu")
    state = weight.quant_state
    held = (weight, state.absmax, state.state2.absmax)
    bits = 8 * sum(one.numel() * one.element_size() for one in held) / (1024 * 2048)
    assert bits == pytest.approx(arithmetic.QLORA_BITS, abs=1e-3)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "dolly-v2-3b"])
@pytest.mark.parametrize("method", ["full", "LoRA"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_blocks_keep_what_pytorch_keeps(
    name, method, checkpointing, monkeypatch
) -> None:
    """The difference between two depths is what the blocks keep."""
    counted, computed = {}, {}
    ids = torch.randint(3, 300, (2, 48), generator=torch.manual_seed(0))
    for layers in (2, 6):
        shape = narrow(name, num_hidden_layers=layers)
        torch.manual_seed(0)
        model = built(shape, "cpu", dtype=torch.bfloat16, attn_implementation="sdpa")
        if method == "LoRA":
            lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with noted_activations(model.train()) as kept:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        counted[layers] = sum(kept.values())
        del loss
        monkeypatch.setattr(arithmetic, "shape_of", lambda _, shape=shape: shape)
        job = Job(name, method, 2, 48, rank=8, checkpointing=checkpointing)
        computed[layers] = arithmetic.activation_bytes(job)
    assert counted[6] - counted[2] == pytest.approx(computed[6] - computed[2], rel=0.02)


def test_the_parts_are_those_of_a_model_counted_by_hand() -> None:
    """Llama 3.1 8B, all of it, mixed precision: 16 bytes for each number."""
    parts = memory_parts(Job("llama-3.1-8b", "full"))
    assert parts["trained weights"] == pytest.approx(4 * 8.030261248)
    assert parts["Adam"] == pytest.approx(8 * 8.030261248)
    assert parts["base"] == parts["gathered"] == 0
    lora = memory_parts(Job("llama-3.1-8b", "LoRA", rank=16))
    assert lora["base"] == pytest.approx(16.060522496)
    assert lora["Adam"] == pytest.approx(8 * 0.041943040)


def test_fsdp_shares_states_and_not_activations() -> None:
    one, eight = (memory_parts(Job("llama-3.1-70b", "LoRA"), n) for n in (1, 8))
    for name in ("base", "trained weights", "gradients", "Adam"):
        assert eight[name] == pytest.approx(one[name] / 8)
    assert eight["activations"] == one["activations"]
    # Two blocks of 0.86 billion, or a block and the embeddings, in 16 bits.
    block, table = 855_654_400, 128_256 * 8_192
    assert shape_of("llama-3.1-70b").block == block
    assert eight["gathered"] * GB == pytest.approx(2 * (block + table))
    assert one["gathered"] == 0


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"checkpointing": True}, {"checkpointing": False}),
        ({"rows": 1}, {"rows": 4}),
        ({"length": 512}, {"length": 1024}),
        ({"answer_share": 0.2}, {"answer_share": 1.0}),
        ({"method": "QLoRA"}, {"method": "LoRA"}),
        ({"method": "LoRA"}, {"method": "full"}),
        ({"precision": "16 bits"}, {"precision": "mixed"}),
    ],
)
def test_what_takes_more_memory(less, more) -> None:
    given = {"model": "llama-3.1-8b", "method": "full"}
    small, large = (arithmetic.gigabytes(Job(**given | one)) for one in (less, more))
    assert small < large


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lora"}, "method: found 'lora'. Give one of full, LoRA, QLoRA"),
        ({"precision": "fp8"}, "precision: found 'fp8'"),
        ({"rows": 0}, "rows: found 0"),
    ],
)
def test_a_job_that_cannot_be_is_refused(arguments, message) -> None:
    with pytest.raises(PaperError, match=message):
        Job(**{"model": "llama-3.1-8b", "method": "full"} | arguments)


def test_a_kind_that_was_not_counted_is_named() -> None:
    with pytest.raises(PaperError, match="GPT-3 175B: what a block of a gpt2 keeps"):
        memory_parts(Job("gpt-3-175b", "full"))
    with pytest.raises(PaperError, match="gpus: found 0"):
        memory_parts(Job("llama-3.1-8b", "full"), 0)


# --- time ---


@pytest.mark.parametrize("name", ["llama-3.1-8b", "dolly-v2-3b"])
@pytest.mark.parametrize("method", ["full", "LoRA"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_operations_are_those_that_pytorch_counts(
    name, method, checkpointing, monkeypatch
) -> None:
    """6 for each weight, 4 if it is frozen, and 2 more if blocks are computed twice.

    The difference between two depths: a first block gives frozen embeddings no
    gradient, which does not matter in deep models.
    """
    counted, computed = {}, {}
    ids = torch.randint(3, 300, (2, 64), generator=torch.manual_seed(0))
    for layers in (2, 4):
        shape = narrow(name, num_hidden_layers=layers)
        torch.manual_seed(0)
        model = built(shape, "cpu", attn_implementation="eager")
        if method == "LoRA":
            lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with FlopCounterMode(display=False) as counter:
            model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        counted[layers] = counter.get_total_flops()
        monkeypatch.setattr(arithmetic, "shape_of", lambda _, shape=shape: shape)
        job = Job(name, method, 2, 64, rank=4, checkpointing=checkpointing)
        computed[layers] = arithmetic.flops_per_token(job) * ids.numel()
    skipped = 0
    if checkpointing and method == "full":
        # PyTorch stops before a block's last product, which nothing needs.
        skipped = 2 * 2 * ids.numel() * math.prod(list(shape.linear.values())[-1])
    assert computed[4] - computed[2] - skipped == pytest.approx(
        counted[4] - counted[2], rel=0.02
    )


def test_hours_by_hand() -> None:
    """8·10⁹ numbers, 6 operations, 10¹² tokens: 4.8·10²² over 10¹⁵ a second."""
    job = Job("llama-3.1-8b", "full", checkpointing=False)
    hours = arithmetic.gpu_hours(job, 1e12, 1000, 1.0)
    assert hours == pytest.approx(6 * 8.03e9 * 1e12 / 1e15 / 3600, rel=0.08)
    assert arithmetic.gpu_hours(job, 1e12, 1000, 0.5) == pytest.approx(2 * hours)
    assert arithmetic.gpu_hours(job, 2e12, 1000, 1.0) == pytest.approx(2 * hours)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"teraflops": -1}, {"mfu": 1.1}, {"tokens": math.inf}]
)
def test_hours_of_nothing_are_refused(wrong) -> None:
    given = {"tokens": 1e6, "teraflops": 100, "mfu": 0.3} | wrong
    with pytest.raises(PaperError, match=f"{next(iter(wrong))}: found"):
        arithmetic.gpu_hours(Job("llama-3.1-8b", "LoRA"), **given)


def test_what_is_sent_in_a_step() -> None:
    full, lora = (Job("llama-3.1-8b", method) for method in ("full", "LoRA"))
    # DDP: each gradient nearly twice; of LoRA a two-hundredth.
    assert arithmetic.traffic(full, 2, "ddp") == pytest.approx(4 * 8.030261248)
    assert arithmetic.traffic(lora, 2, "ddp") < arithmetic.traffic(full, 2, "ddp") / 100
    # FSDP sends the weights twice, also those that are frozen.
    assert arithmetic.traffic(lora, 2, "fsdp") > 16
    assert arithmetic.traffic(full, 1, "fsdp") == 0
    with pytest.raises(PaperError, match="how: found 'zero'"):
        arithmetic.traffic(full, 2, "zero")


# --- money ---


def test_each_machine_has_its_source_and_its_price() -> None:
    found = money.machines()
    assert len(found) >= 8 and "Trainium" in {one.accelerator for one in found}
    for one in found:
        assert len(one.source) > 15
        assert one.price and one.price.per == "hour" and one.price.source
        assert set(one.methods) <= set(arithmetic.METHODS)
    with pytest.raises(PaperError, match="'ml.p9' is not known: give one of ml.g4dn"):
        money.machine("ml.p9")


def test_the_smallest_number_holds_the_run_and_one_fewer_does_not() -> None:
    one = money.machine("EC2 p5.48xlarge")
    for model, method in (("llama-3.1-8b", "full"), ("llama-3.1-70b", "LoRA")):
        job = Job(model, method)
        found = money.smallest(job, one)
        room = money.USABLE * one.gigabytes
        assert arithmetic.gigabytes(job, found) <= room
        assert found == 1 or arithmetic.gigabytes(job, found - 1) > room
    # Above a machine only whole ones are taken.
    assert money.smallest(Job("llama-3.1-70b", "full"), one) % one.count == 0


def test_no_number_of_gpus_holds_activations_that_are_too_large_for_one() -> None:
    one = money.machine("ml.g5.48xlarge")
    long = {"rows": 8, "length": 8192, "checkpointing": False}
    assert money.smallest(Job("llama-3.1-8b", "LoRA", **long), one) is None
    assert money.smallest(Job("llama-3.1-8b", "LoRA", rows=1), one) is not None


def test_a_base_in_4_bits_is_loaded_whole_by_each_gpu() -> None:
    one, job = money.machine("ml.g5.12xlarge"), Job("llama-3.1-70b", "QLoRA")
    assert money.smallest(job, one) is None
    assert money.smallest(job, one, shared_loading=True) == 3
    assert money.smallest(job, money.machine("ml.trn1.32xlarge")) is None


def test_the_cost_is_hours_times_price() -> None:
    table = money.cost_table(["llama-3.1-8b"], 10e6, ["LoRA"])
    row = table[table["machine"] == "ml.g5.12xlarge"].iloc[0]
    one, job = money.machine("ml.g5.12xlarge"), Job("llama-3.1-8b", "LoRA")
    hours = 10e6 / money.tokens_per_second(job, one) / 3600
    assert row["time (hours)"] == pytest.approx(hours)
    assert row["cost (US dollars)"] == pytest.approx(7.09 * hours)
    assert row["machines (number)"] == 1 and row["price read"] == "2026-11-30"
    twice = money.cost_table(["llama-3.1-8b"], 20e6, ["LoRA"])
    dollars = "cost (US dollars)"
    assert list(twice[dollars]) == pytest.approx(list(2 * table[dollars]))


@pytest.mark.parametrize(
    "table",
    [
        lambda: arithmetic.memory_table(["llama-3.1-8b"], gpus=8),
        lambda: money.cost_table(["llama-3.1-8b"], 1e6),
        lambda: money.smallest_table(["llama-3.1-8b"]),
    ],
)
def test_each_column_of_numbers_names_its_unit(table) -> None:
    found = table()
    for name in found.select_dtypes("number").columns:
        assert name.endswith(tuple(f"({unit})" for unit in COLUMN_UNITS)), name
    assert len(found) >= 3


def test_break_even_is_where_both_cost_the_same() -> None:
    found = money.training_break_even(3.0, 3.6, tokens_a_second=1_000, fixed=100)
    assert found.own == pytest.approx(1.0)
    assert found.million_tokens == pytest.approx(50)
    assert found.million_tokens * 3.0 == pytest.approx(100 + 50 * found.own)
    assert "cheaper from 50.0 million training tokens on" in str(found)
    never = money.training_break_even(0.5, 3.6, 1_000, 100)
    assert math.isinf(never.million_tokens)
    assert "the API is the better buy at any size" in str(never)


def test_break_even_of_no_numbers_is_refused() -> None:
    with pytest.raises(PaperError, match="api_price: found nan"):
        money.training_break_even(math.nan, 1, 1, 1)
    with pytest.raises(CostError, match="tokens_per_second"):
        money.training_break_even(1, 1, 0, 1)


# --- published figures ---

# How far the formula may be from a figure; where it is farther, the reason says why.
CLOSE = 0.15
EXPLAINED = {
    "GPT-3 175B, memory to train the whole": (1.1, 1.2, "8 bytes a number"),
    "Llama 3.1 8B, hours of H100": (0.3, 0.5, "come to a share of 0.17"),
    "Llama 3.1 70B, hours of H100": (0.6, 0.8, "come to a share of 0.29"),
}


@pytest.mark.parametrize("figure", published.published_figures(), ids=lambda f: f.what)
def test_a_published_figure_is_reproduced_or_the_difference_explained(figure) -> None:
    low, high, reason = 1 - CLOSE, 1 + CLOSE, ""
    for start, given in EXPLAINED.items():
        if figure.what.startswith(start):
            low, high, reason = given
    assert low <= figure.ratio <= high
    assert reason in figure.reason and len(figure.reason) > 15
    assert len(figure.source) > 20
    if figure.bound:
        assert (figure.bound == "above") == (figure.computed > figure.published)


def test_the_lab_s_count_is_off_by_one_token() -> None:
    figure = published.published_figures()[-1]
    assert figure.published - figure.computed == 2 * 2_560 == 5_120


def test_the_table_shows_all_figures() -> None:
    table = published.published_table()
    assert len(table) == len(published.published_figures())
    assert table["published"].str.startswith("> 780 GB").sum() == 1


def test_the_readme_of_the_data_names_them() -> None:
    text = (ROOT / "data" / "jobs" / "README.md").read_text("utf-8")
    assert "`models.json`" in text and "`machines.csv`" in text
