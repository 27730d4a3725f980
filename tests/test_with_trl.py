"""TRL's SFTTrainer, told everything, trains as train_lora.py; and what is a default."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train_lora import (
    PAIRS,
    SYSTEM,
    course_frame,
    save_llama,
    save_rows,
)

from support.tiny_models import tiny_gpt_neox, tiny_tokenizer
from utils.course import ROOT
from utils.helpers import END_KEY
from utils.jobs import trl_compared, with_trl
from utils.jobs.trl_compared import (
    EQUAL,
    compare,
    defaults_table,
    effect,
    left_table,
    library_defaults,
    run_ours,
    run_trl,
)

# What TRL 1.16 does if nothing is said. A line that fails here is a default that has
# changed: lesson 08's table changes with it, and its sentences have to follow.
TRL_DEFAULTS = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "seed": 42,
    "bf16": True,
    "activation_checkpointing": True,
    "logging_steps": 10,
    "save_strategy": "steps",
    "train_sampling_strategy": "random",
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "packing": False,
    "packing_strategy": "bfd",
    "padding_free": False,
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "shuffle_dataset": False,
    "eos_token": None,
    "pad_to_multiple_of": None,
    "loss_type": "nll",
}
# Of these `train_lora.py` does the following otherwise.
OTHERWISE = {
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "bf16", "logging_steps"),
    *("activation_checkpointing", "train_sampling_strategy"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX with the course's keys as tokens, as the lab model is one."""
    folder = tmp_path_factory.mktemp("neox")
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tiny_gpt_neox(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def common(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What both scripts are told: 12 rows in the course's frame, six steps of two."""
    rows = [course_frame(*pair) for pair in PAIRS]
    rows += [course_frame(f"Now: {question}", answer) for question, answer in PAIRS]
    file = save_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", rows)
    told = {"model": base, "train": file, "stop": END_KEY, "rank": 4, "alpha": 16}
    small = {"per_device_train_batch_size": 2, "num_train_epochs": 1}
    return told | small | {"learning_rate": 0.01, "use_cpu": True}


@pytest.fixture(scope="module")
def ours(common: dict) -> trl_compared.Run:
    return run_ours(common)


@pytest.fixture(scope="module")
def matched(common: dict) -> trl_compared.Run:
    return run_trl(common)


# --- told everything, the two are one ---


def test_told_everything_losses_and_adapters_are_equal(ours, matched) -> None:
    assert len(ours.losses) == ours.steps == 6
    assert matched.losses == pytest.approx(ours.losses, abs=EQUAL)
    assert matched.weights.keys() == ours.weights.keys()
    found = compare(matched, ours)
    assert found.from_step == 0
    assert found.weights < EQUAL < max(abs(w).max() for w in ours.weights.values())
    assert matched.trained == ours.trained < ours.tokens == matched.tokens
    assert ours.losses[-1] < ours.losses[0]


def test_trl_frames_and_labels_texts_as_we_do_if_it_knows_the_end(
    common, ours, base
) -> None:
    """TRL's own tokens, not ours: the stop as its eos, so that it appends no other."""
    run = run_trl(common | {"rows": "trl", "eos_token": END_KEY})
    assert run.losses == pytest.approx(ours.losses, abs=EQUAL)
    assert run.trained == ours.trained
    appended = run_trl(common | {"rows": "trl"})
    assert appended.trained == ours.trained + ours.rows  # one token an answer
    assert compare(appended, ours).from_step == 1


def test_they_are_equal_where_two_batches_make_a_step(common) -> None:
    """Both count each token once, whichever batch it is in."""
    halves = common | {"gradient_accumulation_steps": 2}
    mine, theirs = run_ours(halves), run_trl(halves)
    assert mine.steps == 3
    assert theirs.losses == pytest.approx(mine.losses, abs=EQUAL)


def test_equality_can_fail(common, ours) -> None:
    other = run_trl(common | {"seed": 7})
    assert compare(other, ours).largest > EQUAL
    assert effect(other, ours).startswith("from step")


def conversations() -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in PAIRS
    ]


@pytest.fixture(scope="module")
def chats(chat_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    file = save_rows(tmp_path_factory.mktemp("chats") / "rows.jsonl", conversations())
    told = {"model": chat_base, "train": file, "system": SYSTEM, "rank": 4, "alpha": 8}
    small = {"per_device_train_batch_size": 2, "num_train_epochs": 1}
    return told | small | {"learning_rate": 0.01, "use_cpu": True}


def test_conversations_are_equal_as_well_with_our_labels(chats) -> None:
    mine, theirs = run_ours(chats), run_trl(chats)
    assert theirs.losses == pytest.approx(mine.losses, abs=EQUAL)
    framed = run_trl(chats | {"rows": "trl"})
    # The template ends a turn with a line end, which TRL has the model learn too.
    newline = framed.trained - mine.trained
    assert newline == mine.rows
    whole = run_trl(chats | {"rows": "messages"})
    assert whole.trained == whole.tokens - whole.rows > framed.trained
    assert compare(whole, mine).first > EQUAL


def test_trl_finds_answers_only_in_templates_that_mark_them(chats) -> None:
    """SmolLM2's does not either; `--rows ours` labels them whatever the template."""
    told = {"rows": "messages", "assistant_only_loss": True}
    with pytest.raises(ValueError, match="not training-compatible"):
        run_trl(chats | told)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("trl", {"prompt": "Q", "completion": "A<|im_end|>"}),
        ("messages", {"text": "QA<|im_end|>"}),
    ],
)
def test_rows_of_texts_end_once(rows, expected) -> None:
    line = json.dumps({"prompt": "Q", "completion": "A<|im_end|>\n"})
    assert with_trl.read_rows([line], None, "", "<|im_end|>", rows) == [expected]


def test_an_unknown_kind_of_rows_is_named() -> None:
    with pytest.raises(ValueError, match="rows is 'theirs': give one of ours, trl"):
        with_trl.read_rows([], None, "", "", "theirs")


def test_rows_too_long_are_left_out_as_ours_or_cut(common, ours) -> None:
    limit = sorted(ours.lengths)[8]
    short = common | {"max_length": limit}
    mine, theirs = run_ours(short), run_trl(short)
    assert theirs.losses == pytest.approx(mine.losses, abs=EQUAL)
    assert theirs.rows == mine.rows < ours.rows
    cut = run_trl(short | {"too_long": "cut"})
    assert max(cut.lengths) == limit
    # Where a prompt alone fills the limit, the row is dropped, and nothing says so.
    assert theirs.rows < cut.rows < ours.rows


# --- the library's defaults ---


def test_defaults_are_those_that_the_lesson_knows() -> None:
    library = library_defaults()
    found = {name: getattr(library[name], "value", library[name]) for name in library}
    assert {name: found[name] for name in TRL_DEFAULTS} == TRL_DEFAULTS


def test_every_argument_that_differs_is_found(chats, common, ours) -> None:
    told = common.keys() - {"learning_rate"}
    found = trl_compared.other_arguments(ours.arguments, told)
    assert found.keys() == OTHERWISE
    assert found["learning_rate"] == (2e-5, 0.01)
    assert "learning_rate" not in trl_compared.other_arguments(
        ours.arguments, {"learning_rate"}
    )


def test_recipe_is_that_of_the_script(base, common) -> None:
    """Nothing but model and rows is told: the two files' own defaults are the same."""
    told = {name: common[name] for name in ("model", "train", "stop", "use_cpu")}
    mine, theirs = run_ours(told), run_trl(told)
    assert theirs.losses == pytest.approx(mine.losses, abs=EQUAL)
    for name in with_trl.RECIPE.keys() - {"max_length"}:
        assert getattr(theirs.arguments, name) == getattr(mine.arguments, name), name


@pytest.fixture(scope="module")
def table(common: dict):
    return defaults_table({k: v for k, v in common.items() if k != "learning_rate"})


def test_table_says_what_each_default_does(table) -> None:
    words = table["effect on the loss"]
    assert words["everything told"] == "none"
    assert "lora_dropout" not in words  # peft's own is ours
    for name in ("activation_checkpointing", "dtype", "padding_free"):
        assert words[name] == "none", name
    for name in ("bf16", "train_sampling_strategy", "end of an answer", "rows"):
        assert words[name].startswith("from step 1,"), name
    for name in ("learning_rate", "lr_scheduler_type", "warmup_steps", "lora_alpha"):
        first = int(words[name].split()[2].rstrip(","))
        assert first > 1, name  # the first loss is that of the base
    assert words["logging_steps"] == "0 means in place of 6, same training"
    assert "steps in place of 6" in words["packing"]
    assert {*OTHERWISE} <= {*table.index}
    assert words["nothing told"] != "none"


def test_table_shows_the_values_read_from_the_libraries(table) -> None:
    assert table.loc["learning_rate", "TRL's"] == "2e-05"
    assert table.loc["lr_scheduler_type", "TRL's":"ours"].tolist() == [
        "linear",
        "cosine",
    ]
    assert table.loc["dtype", "TRL's":"ours"].tolist() == ["float32", "float32"]
    assert table.loc["lora_alpha", "TRL's":"ours"].tolist() == ["8", "16"]
    assert table.loc["lora_dropout of `trl sft`", "TRL's"] == "0.05"
    assert table.loc["end of an answer", "trained tokens"] > 1
    assert table.loc["everything told", "weights"] < EQUAL
    assert table.loc["learning_rate", "weights"] > EQUAL
    assert table.loc[["peft_config", "target_modules"], "weights"].isna().all()
    assert table.loc["rows", "trained tokens"] > 1


def test_a_few_settings_can_be_looked_at_alone(common, ours) -> None:
    names = ["end of an answer", "lora_alpha", "truncation_mode"]
    table = left_table(common, ours, names)
    assert table.index.tolist() == names
    # Seen only where rows are too long, which both are given for that.
    assert table.loc["truncation_mode", "effect on the loss"] != "none"
    table = table.drop("truncation_mode")
    assert table["effect on the loss"].str.startswith("from step").all()
    assert table.loc["end of an answer", "trained tokens"] > 1
    assert table.loc["lora_alpha", "TRL's":"ours"].tolist() == ["8", "16"]


# --- as a script ---


def beside_the_other(folder: Path) -> Path:
    """Copy the two scripts into one folder, as a job gets them."""
    for wing, name in (("jobs", "with_trl.py"), ("training", "train_lora.py")):
        text = (ROOT / "utils" / wing / name).read_text("utf-8")
        (folder / name).write_text(text, "utf-8")
    return folder / "with_trl.py"


def test_it_needs_one_file_beside_it_and_nothing_of_the_course(
    common, matched, tmp_path, monkeypatch, capsys
) -> None:
    script = beside_the_other(tmp_path)
    for name in [one for one in sys.modules if one.partition(".")[0] == "utils"]:
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    monkeypatch.syspath_prepend(tmp_path)
    alone = runpy.run_path(str(script))
    assert alone["to_row"].__module__ == "train_lora"
    out = tmp_path / "adapter"
    trainer = alone["main"](trl_compared.command_line({**common, "output_dir": out}))
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert losses == matched.losses
    assert (out / "adapter_model.safetensors").is_file()
    said = capsys.readouterr().out
    assert "12 rows to train on; too long for --max_length: none" in said
    assert PAIRS[0][0].strip() in said


@pytest.mark.slow
def test_a_training_job_runs_it_as_a_process(common, tmp_path) -> None:
    beside_the_other(tmp_path)
    line = trl_compared.command_line({**common, "max_steps": 1})
    done = subprocess.run(
        [sys.executable, "with_trl.py", *line, "--output_dir", "adapter"],
        cwd=tmp_path,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "12 rows to train on" in done.stdout
