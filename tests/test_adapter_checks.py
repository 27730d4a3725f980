"""Whether an adapter fits its base: what peft saves does, what was broken does not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from support.tiny_models import tiny_gpt_neox, tiny_llama
from utils.deployment.adapter_checks import fit_of, safetensors_shapes
from utils.deployment.artifact import validate
from utils.djl_python.layout import Finding

WEIGHTS = "adapter/adapter_model.safetensors"
SETTINGS = "adapter/adapter_config.json"
Tensors = dict[str, torch.Tensor]
A_SUFFIX, B_SUFFIX = "lora_A.weight", "lora_B.weight"


def findings_of(folder: Path) -> list[Finding]:
    """Return what is found in an artifact's folder."""
    base, adapter = folder / "base", folder / "adapter"
    return list(fit_of(base, adapter, adapter / "tokenizer.json"))


def tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    """Change the adapter's tensors."""

    def write(folder: Path) -> None:
        changed = change(load_file(folder / WEIGHTS))
        save_file({k: v.contiguous() for k, v in changed.items()}, folder / WEIGHTS)

    return write


def renamed(name: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the names of the adapter's tensors."""
    return tensors(lambda old: {name(key): value for key, value in old.items()})


def filled(end: str, value: float, first_only: bool = False) -> Callable[[Path], None]:
    """Fill the tensors whose names end so with one value."""

    def change(old: Tensors) -> Tensors:
        names = [name for name in old if name.endswith(end)]
        for name in names[: 1 if first_only else None]:
            old[name] = torch.full_like(old[name], value)
        return old

    return tensors(change)


def kept(choose: Callable[[int, str], bool]) -> Callable[[Path], None]:
    """Keep the tensors with some numbers or names."""
    return tensors(
        lambda old: {
            k: v
            for number, (k, v) in enumerate(sorted(old.items()))
            if choose(number, k)
        }
    )


def settings(name: str, **changes: object) -> Callable[[Path], None]:
    """Change values in a JSON file."""

    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8")) | changes
        (folder / name).write_text(json.dumps(value))

    return change


def more_tokens(folder: Path) -> None:
    """Give the tokenizer a token more than the base has rows for."""
    path = folder / "adapter" / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    rows = json.loads((folder / "base" / "config.json").read_text())["vocab_size"]
    token = {"id": rows, "content": "<<CTX>>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    value["added_tokens"].append(token | flags)
    # Ids go on from the last one, so that the rows between need their tokens as well.
    used = {
        *value["model"]["vocab"].values(),
        *(t["id"] for t in value["added_tokens"]),
    }
    for number in sorted(set(range(rows)) - used):
        value["model"]["vocab"][f"filler{number}"] = number
    path.write_text(json.dumps(value))


BROKEN = {
    "no tensor": (tensors(lambda old: {}), "holds no tensor"),
    "prefix missing": (
        renamed(lambda name: name.removeprefix("base_model.model.")),
        "lack the prefix 'base_model.model.'",
    ),
    "half of the prefix": (
        renamed(lambda name: name.removeprefix("base_model.")),
        "lack the prefix 'base_model.'",
    ),
    "prefix doubled": (
        renamed(lambda name: "base_model.model." + name),
        "begin with 'base_model.model.' twice",
    ),
    "name of the adapter": (
        renamed(lambda name: name.replace(".weight", ".default.weight")),
        "hold the adapter's name 'default'",
    ),
    "compiled": (
        renamed(
            lambda name: (
                name.replace("model.model.", "model.model._orig_mod.")
                if "model.model." in name
                else name.replace("base_model.model.", "base_model.model._orig_mod.")
            )
        ),
        "_orig_mod.",
    ),
    "in parallel": (renamed(lambda name: "module." + name), "begin with 'module.'"),
    "names of another model": (
        renamed(lambda name: name.replace("gpt_neox", "transformer")),
        "none of its",
    ),
    "half of the matrices": (kept(lambda number, _: number % 2 == 0), "lacks "),
    "one layer of two": (kept(lambda _, name: ".layers.0." in name), "lacks "),
    "tensors too many": (
        tensors(lambda old: old | {"base_model.model.score.weight": torch.ones(2, 2)}),
        "1 of its 9 tensors fit nothing",
    ),
    "rank of the settings": (settings(SETTINGS, r=2), "does not fit the base"),
    "turned round": (
        tensors(lambda old: {name: value.T for name, value in old.items()}),
        "has the shape [32, 4]",
    ),
    "other layers": (
        settings(SETTINGS, target_modules=["q_proj"]),
        "peft refuses it",
    ),
    "not a number": (filled(B_SUFFIX, math.nan, True), "holds NaN"),
    "infinite": (filled(A_SUFFIX, math.inf), "holds infinite values"),
    "tokens without rows": (more_tokens, "has rows for"),
    "config.json of another": (
        settings("base/config.json", hidden_size=64),
        "describes another model",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_cannot_be_deployed(copied, name) -> None:
    change, hint = BROKEN[name]
    change(copied)
    found = [f for f in findings_of(copied) if hint in str(f)]
    assert len(found) == 1 and found[0].level == "error", findings_of(copied)
    assert found[0].remedy and found[0].where


def test_validate_asks_for_the_fit(copied) -> None:
    BROKEN["no tensor"][0](copied)
    report = validate(copied, load=False)
    assert [f.where for f in report.errors] == [WEIGHTS]


@pytest.mark.parametrize("matrix", [A_SUFFIX, B_SUFFIX])
def test_what_was_never_trained_is_warned_of(copied, matrix) -> None:
    filled(matrix, 0.0)(copied)
    (found,) = findings_of(copied)
    assert found.level == "warning" and "zeros only" in found.what
    filled(matrix, 0.1, first_only=True)(copied)
    assert findings_of(copied) == []


CONFIGURATIONS = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all linear layers": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*\.layers\.1\..*(q|down)_proj"},
    "ranks by pattern": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2},
    },
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "DoRA": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "rank-stabilised": {"target_modules": ["q_proj"], "use_rslora": True},
    "PiSSA": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "biases": {"target_modules": ["q_proj"], "lora_bias": True},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "some tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [1, 2]},
    },
    "layers twice": {
        "target_modules": ["q_proj"],
        "layer_replication": [[0, 2], [1, 2]],
    },
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A base of Llama's kind."""
    folder = tmp_path_factory.mktemp("llama") / "base"
    tiny_llama(64, tied=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_peft_saves_fits(llama, tmp_path, name) -> None:
    """Whatever the configuration: no rule of ours decides."""
    from transformers import AutoModelForCausalLM

    options = {"r": 4, "task_type": "CAUSAL_LM", **CONFIGURATIONS[name]}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), LoraConfig(**options)
    )
    for key, parameter in model.named_parameters():
        if ".lora_" in key:
            torch.nn.init.normal_(parameter)
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    assert list(fit_of(llama, adapter, adapter / "tokenizer.json")) == []
    shapes = safetensors_shapes(adapter / "adapter_model.safetensors")
    saved = load_file(adapter / "adapter_model.safetensors")
    assert shapes == {key: tuple(value.shape) for key, value in saved.items()}
    least = next(key for key in sorted(saved) if "lora_" in key)
    del saved[least]
    save_file(saved, adapter / "adapter_model.safetensors")
    (found,) = fit_of(llama, adapter, adapter / "tokenizer.json")
    assert least in found.what and found.level == "error"


def test_embeddings_saved_along_fit_as_long_as_they_have_the_bases_rows(
    built, copied
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(copied / "base")
    rows, width = model.get_input_embeddings().weight.shape
    for more, hint in ((0, None), (8, "does not fit the base")):
        shutil.copy(built / "artifact" / WEIGHTS, copied / WEIGHTS)
        name = "base_model.model.gpt_neox.embed_in.weight"
        size = (rows + more, width)
        tensors(lambda old, n=name, s=size: old | {n: torch.ones(s)})(copied)
        assert [hint] * bool(hint) == [
            hint for f in findings_of(copied) if hint and hint in f.what
        ]


def test_a_base_that_needs_code_is_not_built(copied) -> None:
    """Nothing in an archive is executed: the report says what was not checked."""
    settings(
        "base/config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    )(copied)
    (copied / "base" / "mine.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\n")
    (found,) = findings_of(copied)
    assert "was not checked" in found.what and found.level == "warning"
    assert not (copied / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0\xff{"],
)
def test_what_is_no_safetensors_is_told(copied, content) -> None:
    (copied / WEIGHTS).write_bytes(content)
    (found,) = findings_of(copied)
    assert "cannot be read as safetensors" in found.what


def test_the_tiny_models_are_told_apart(copied) -> None:
    tiny_gpt_neox().save_pretrained(copied / "base")
    assert findings_of(copied) == []
    shutil.rmtree(copied / "base")
    tiny_llama(64, tied=False).save_pretrained(copied / "base")
    assert "peft refuses it" in str(findings_of(copied)[-1])


def test_no_two_faults_get_the_same_message(built, tmp_path) -> None:
    messages: dict[str, str] = {}
    for name in BROKEN:
        folder = Path(shutil.copytree(built / "artifact", tmp_path / name))
        BROKEN[name][0](folder)
        messages.setdefault(str(findings_of(folder)[0]), name)
    assert len(messages) == len(BROKEN)


@pytest.mark.parametrize("ids", [5000, [1, 5000]])
def test_an_end_for_which_the_base_has_no_row(copied, ids) -> None:
    settings("base/config.json", eos_token_id=ids)(copied)
    (found,) = findings_of(copied)
    assert found.where == "base/config.json"
    assert "eos_token_id names 5000, and the base has rows for" in found.what
