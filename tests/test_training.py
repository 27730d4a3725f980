"""The recipe, resuming, tracking, and adapters that are saved and loaded."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import random
import resource
import time
import warnings
from dataclasses import replace

import bitsandbytes
import mlflow
import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from support import resumable
from support.machines import A10G, LAPTOP, T4, XEON
from support.resumable import STEPS_AN_EPOCH, run, tiny_rows, tiny_trainer
from support.tiny_models import (
    parameter_counts,
    tiny_chat_tokenizer,
    tiny_gpt_neox,
    tiny_llama,
    tiny_tokenizer,
)
from utils import machine, models
from utils.course import FAQS_DATA, LAB_DATA, RunConfig, preflight
from utils.files import FileError
from utils.helpers import add_text
from utils.models import MODELS, ModelError, load_model, settings_for
from utils.templates import (
    TEMPLATE_FILE,
    TemplateError,
    chat_template,
    instruction_template,
    load_template,
)
from utils.training import adapters, resuming
from utils.training.adapters import (
    BASE_SAMPLE,
    adapter_file,
    adapter_for,
    base_sample,
    load_adapter,
    require_same_tokenizer,
    save_adapter,
)
from utils.training.recipe import (
    TrainingError,
    add_lora,
    choose_attention,
    completion_trainer,
    lora_config,
    training_arguments,
)
from utils.training.resuming import train
from utils.training.tracking import (
    EXPERIMENT,
    save_history,
    track_runs,
    tracked_history,
)

SETTINGS = replace(MODELS["lab"], lora_r=4, lora_alpha=8, epochs=2, batch_size=4)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return tiny_gpt_neox(len(tiny_tokenizer()))


@pytest.fixture(scope="module")
def rows():
    return tiny_rows()


def trainer(model, rows, folder, **changes):
    return completion_trainer(
        model,
        tiny_tokenizer(),
        training_arguments(SETTINGS, folder, disable_tqdm=True, **changes),
        rows,
        held_out=rows[:2],
    )


def test_lora_reaches_all_linear_layers_and_only_those(base) -> None:
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
) -> None:
    # transformers refuses a GPU's types where there is none: look at what is asked for.
    asked = {}
    monkeypatch.setattr("transformers.TrainingArguments", lambda **kw: asked.update(kw))
    training_arguments(SETTINGS, tmp_path, machine)
    assert (asked["bf16"], asked["fp16"], asked["use_cpu"]) == (bf16, fp16, cpu)


def test_settings_and_changes_reach_the_trainer(tmp_path) -> None:
    arguments = training_arguments(SETTINGS, tmp_path, learning_rate=0.1)
    assert arguments.train_sampling_strategy == "group_by_length"
    assert arguments.num_train_epochs == 2
    assert arguments.per_device_train_batch_size == 4
    assert arguments.learning_rate == 0.1
    assert arguments.seed == 42


def test_a_large_models_batch_is_computed_in_parts_on_a_processor(tmp_path) -> None:
    def steps(settings, machine=LAPTOP, **changes):
        made = training_arguments(settings, tmp_path, machine, **changes)
        return made.per_device_train_batch_size, made.gradient_accumulation_steps

    large = MODELS["smollm2"]
    assert large.batch_size == 8
    assert steps(large) == (4, 2)
    assert steps(replace(large, parameters=None)) == (4, 2)
    assert steps(replace(large, batch_size=6)) == (6, 1)
    assert steps(MODELS["lab"]) == (16, 1)
    # Who says how many rows a batch has means the whole batch.
    assert steps(large, per_device_train_batch_size=2) == (2, 1)
    assert steps(MODELS["lab"], per_device_train_batch_size=4) == (4, 1)
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert steps(large, **changes) == (2, 4)


def test_attention_follows_machine_and_length() -> None:
    assert choose_attention(SETTINGS, XEON) == "eager"
    assert choose_attention(SETTINGS, LAPTOP) == "sdpa"
    assert choose_attention(SETTINGS, A10G) == "sdpa"
    roomy = replace(SETTINGS, max_length=2048)
    assert choose_attention(roomy, XEON) == "sdpa"
    assert choose_attention(roomy, XEON, longest=150) == "eager"
    assert choose_attention(SETTINGS, XEON, longest=1024) == "sdpa"


def test_a_run_learns_repeatably_and_the_saved_adapter_is_the_trained_one(
    base, rows, tmp_path
) -> None:
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


def test_the_saved_adapter_names_no_place_on_this_machine(base, tmp_path) -> None:
    base.name_or_path = str(tmp_path / "some" / "base")
    model = get_peft_model(base, lora_config(SETTINGS))
    folder = save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == "base"
    assert saved["target_modules"] == sorted(SETTINGS.target_modules)
    for file in folder.glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
        assert file.stat().st_mode & 0o444 == 0o444, f"not for all to read: {file.name}"


def test_a_data_set_for_another_tokenizer_is_an_error() -> None:
    row = add_text({"instruction": "What?", "response": "It."})
    row["input_ids"] = tiny_tokenizer(key_tokens=False)(row["text"])["input_ids"]
    require_same_tokenizer([row], tiny_tokenizer(key_tokens=False))
    with pytest.raises(ModelError, match="another model.*03_dataset_templating"):
        require_same_tokenizer([row], tiny_tokenizer())


def test_a_data_set_in_another_template_is_an_error() -> None:
    tokenizer = tiny_chat_tokenizer()
    template = chat_template(tokenizer, "Be brief.")
    row = {"instruction": "What?", "response": "It.", "context": "Notes."}
    row = template.add_text(row)
    row["input_ids"] = tokenizer(row["text"])["input_ids"]
    require_same_tokenizer([row], tokenizer, template)
    for other in (chat_template(tokenizer, "Other."), instruction_template(tokenizer)):
        with pytest.raises(ModelError, match="another template.*03_.*begins '<.im_"):
            require_same_tokenizer([row], tokenizer, other)


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(
    base, tmp_path
) -> None:
    model = get_peft_model(base, lora_config(SETTINGS))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.txt").write_text("old")
    save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]
    assert not (tmp_path / "adapter" / "old.txt").exists()


def test_history_is_written_whole(tmp_path) -> None:
    file = save_history([{"loss": 1.5, "step": 1}], SETTINGS, tmp_path / "t.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["history"] == [{"loss": 1.5, "step": 1}]
    assert content["settings"]["lora_r"] == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]


# --- which layers ---


def test_a_layer_that_the_model_lacks_is_named_with_those_it_has(base) -> None:
    settings = replace(SETTINGS, target_modules=("query_key_value", "q_proj"))
    with pytest.raises(ModelError, match="'q_proj', only dense, dense_4h_to_h"):
        add_lora(base, settings)


def test_layers_unfrozen_before_lora_is_added_are_frozen_again(base) -> None:
    for weights in base.gpt_neox.layers[-1].parameters():
        weights.requires_grad_(True)
    model = add_lora(base, SETTINGS)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)


# --- killed and resumed ---

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers.trainer", "peft"])


def in_a_process(folder, die=None, kill_after=None):
    """Run `resumable.run`; returns its exit code and the seconds that it trained."""
    here, there = FORKS.Pipe()
    process = FORKS.Process(target=run, args=(folder, die, there))
    process.start()
    there.close()
    with contextlib.suppress(EOFError):
        here.recv()
    start = time.monotonic()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, time.monotonic() - start


def saved_bytes(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run that nobody stops saves, and how long it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, seconds = in_a_process(folder)
    assert code == 0
    return saved_bytes(folder), seconds


@pytest.mark.parametrize(
    "die, whole",
    [
        (("step", 2 * STEPS_AN_EPOCH + 1), 2 * STEPS_AN_EPOCH),
        (("writing", 2 * STEPS_AN_EPOCH), STEPS_AN_EPOCH),
    ],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    die, whole, uninterrupted, tmp_path
) -> None:
    assert in_a_process(tmp_path, die)[0] == -9
    marks = (tmp_path / "checkpoints").glob("*/complete.json")
    steps = [int(mark.parent.name.rpartition("-")[2]) for mark in marks]
    assert max(steps) == whole
    assert not (tmp_path / "adapter").exists()
    assert in_a_process(tmp_path)[0] == 0
    assert saved_bytes(tmp_path) == uninterrupted[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_moment(seed, uninterrupted, tmp_path) -> None:
    moment = random.Random(seed).random() * uninterrupted[1]
    code, _ = in_a_process(tmp_path, kill_after=moment)
    assert code in (-9, 0)  # on a machine that is faster now it may have finished
    assert in_a_process(tmp_path)[0] == 0
    assert saved_bytes(tmp_path) == uninterrupted[0]


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(folder, step, **changes):
    trainer = tiny_trainer(folder, **changes)
    trainer.add_callback(Interrupt(step))
    with pytest.raises(KeyboardInterrupt):
        train(trainer)


def steps_taken(trainer, resume=True):
    """How many steps a run takes from here to its end."""
    taken = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            taken.append(state.global_step)

    trainer.add_callback(Count())
    train(trainer, resume)
    return taken


@pytest.mark.parametrize("kind", ["settings", "rows", "anew", "same"])
def test_only_a_run_of_the_same_kind_is_resumed(kind, tmp_path) -> None:
    interrupted(tmp_path, STEPS_AN_EPOCH + 1)
    changes = {"learning_rate": 1e-3} if kind == "settings" else {}
    trainer = tiny_trainer(tmp_path, **changes)
    if kind == "rows":
        trainer.train_dataset = trainer.train_dataset[::-1]
    first = STEPS_AN_EPOCH + 1 if kind == "same" else 1
    taken = steps_taken(trainer, resume=kind != "anew")
    assert taken == list(range(first, 4 * STEPS_AN_EPOCH + 1))
    if kind == "same":
        assert steps_taken(tiny_trainer(tmp_path)) == []  # nothing is left to do


@pytest.mark.parametrize(
    "changes, settings, told",
    [
        ({"learning_rate": 1e-3}, {}, r"the learning rate \(0.005 before, 0.001 now\)"),
        ({"num_train_epochs": 6}, {}, r"the number of epochs \(4 before, 6 now\)"),
        ({"seed": 7}, {}, r"seed \(42 before, 7 now\)"),
        ({}, {"lora_r": 8}, r"LoRA's rank \(4 before, 8 now\)\. "),
        ({}, {"target_modules": ("dense",)}, "the layers with LoRA"),
    ],
)
def test_other_settings_start_afresh_and_are_named(
    changes, settings, told, tmp_path
) -> None:
    interrupted(tmp_path, STEPS_AN_EPOCH + 1)
    trainer = tiny_trainer(tmp_path, replace(resumable.SETTINGS, **settings), **changes)
    with pytest.warns(UserWarning, match=f"checkpoint-3 belongs.*{told}.*afresh"):
        taken = steps_taken(trainer)
    assert taken[0] == 1
    # A finished run has nothing to go on with, and its own checkpoints are kept.
    trainer = tiny_trainer(tmp_path, replace(resumable.SETTINGS, **settings), **changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*belongs to another run")
        assert steps_taken(trainer) == []


@pytest.mark.parametrize("kind", ["answers", "order", "held-out"])
def test_other_rows_start_afresh_and_are_named(kind, tmp_path) -> None:
    interrupted(tmp_path, STEPS_AN_EPOCH + 1)
    trainer = tiny_trainer(tmp_path)
    told = "the training rows"
    if kind == "order":
        trainer.train_dataset = trainer.train_dataset[::-1]
    elif kind == "answers":
        trainer.train_dataset[-1]["labels"][-1] = 5
    else:
        trainer.eval_dataset, told = trainer.eval_dataset[:1], "the held-out rows"
    with pytest.warns(UserWarning, match=f"what differs is {told}. It is deleted"):
        assert steps_taken(trainer)[0] == 1


def test_another_base_starts_afresh_and_is_named(tmp_path) -> None:
    interrupted(tmp_path, STEPS_AN_EPOCH + 1)
    trainer = tiny_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.mul_(2)
    with pytest.warns(UserWarning, match="the base or its starting weights. It is"):
        assert steps_taken(trainer)[0] == 1


def test_more_epochs_than_a_finished_run_are_a_new_run_and_said(tmp_path) -> None:
    train(tiny_trainer(tmp_path, num_train_epochs=2))
    with pytest.warns(UserWarning, match=r"the number of epochs \(2 before, 4 now\)"):
        assert steps_taken(tiny_trainer(tmp_path))[0] == 1


def test_a_run_goes_on_after_its_base_was_moved(tmp_path) -> None:
    def trainer(folder):
        made = tiny_trainer(tmp_path)
        base = str(tmp_path / folder / ".venv" / "course_models" / "smollm2")
        made.model.peft_config["default"].base_model_name_or_path = base
        return made

    first = trainer("before")
    first.add_callback(Interrupt(4))
    with pytest.raises(KeyboardInterrupt):
        train(first)
    taken = steps_taken(trainer("after"))
    assert taken[0] == STEPS_AN_EPOCH + 1


def test_checkpoints_of_other_programs_are_left_alone(tmp_path) -> None:
    theirs = [tmp_path / "checkpoint-500", tmp_path / "checkpoint-best"]
    for folder in theirs:
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text("theirs")
    (tmp_path / "checkpoint-notes.txt").write_text("theirs")
    for resume in (True, False, True):
        with pytest.warns(UserWarning, match="checkpoint-500, checkpoint-best, which"):
            train(tiny_trainer(tmp_path), resume)
    assert all((one / "adapter_model.safetensors").is_file() for one in theirs)
    assert (tmp_path / "checkpoint-notes.txt").is_file()
    ours = {one.name for one in tmp_path.iterdir()} - {one.name for one in theirs}
    assert len(ours) == 3  # two checkpoints, as the arguments say, and the notes


def test_a_checkpoint_of_another_program_is_not_overwritten(tmp_path) -> None:
    theirs = tmp_path / f"checkpoint-{STEPS_AN_EPOCH}"
    theirs.mkdir()
    (theirs / "adapter_model.safetensors").write_text("theirs")
    with pytest.raises(TrainingError, match="checkpoint-3 was not written.*move it"):
        train(tiny_trainer(tmp_path))
    assert (theirs / "adapter_model.safetensors").read_text() == "theirs"


@pytest.fixture
def raced(monkeypatch):
    """Return a function that makes the race's result what it is told."""
    monkeypatch.delenv("COURSE_DTYPE", raising=False)
    for module in (models, resuming):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)

    def won_by(bfloat16):
        times = machine.Race(1.0, 0.5 if bfloat16 else 2.0)
        monkeypatch.setattr(models, "precision_race", lambda shapes: times)

    return won_by


@pytest.mark.parametrize("before", [True, False])
def test_a_race_that_ends_otherwise_deletes_no_unfinished_run(
    raced, before, tmp_path, monkeypatch
):
    raced(before)
    interrupted(tmp_path, STEPS_AN_EPOCH + 1)
    raced(not before)
    name = "bfloat16" if before else "float32"
    for _ in range(2):
        with pytest.raises(TrainingError, match=f"set COURSE_DTYPE={name} and restart"):
            train(tiny_trainer(tmp_path))
    monkeypatch.setenv("COURSE_DTYPE", name)
    assert steps_taken(tiny_trainer(tmp_path))[0] == STEPS_AN_EPOCH + 1
    monkeypatch.delenv("COURSE_DTYPE")
    # A finished run has nothing to lose.
    assert steps_taken(tiny_trainer(tmp_path))[0] == 1


def test_a_precision_that_is_asked_for_starts_afresh(raced, tmp_path, monkeypatch):
    raced(True)
    interrupted(tmp_path, STEPS_AN_EPOCH + 1)
    monkeypatch.setenv("COURSE_DTYPE", "float32")
    assert steps_taken(tiny_trainer(tmp_path))[0] == 1


def test_a_run_stops_early_and_keeps_its_best_epoch(tmp_path):
    trainer = tiny_trainer(tmp_path, learning_rate=0.0, num_train_epochs=9)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    train(trainer)
    assert trainer.state.epoch == 3  # one to set the mark, two without a gain
    assert trainer.state.best_global_step == STEPS_AN_EPOCH


# --- tracked ---


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track_runs(tmp_path / "build")
    yield tmp_path / "build"
    mlflow.set_tracking_uri(None)


def test_runs_are_tracked_in_one_file_and_a_resumed_run_stays_one(
    tracking, tmp_path, caplog
) -> None:
    changes = dict(report_to="mlflow", run_name="lesson")
    interrupted(tmp_path, STEPS_AN_EPOCH + 1, **changes)
    trainer = tiny_trainer(tmp_path, **changes)
    train(trainer)
    assert (tracking / "mlflow.db").is_file()
    runs = mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list")
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert runs[0].data.params["learning_rate"] == str(SETTINGS.learning_rate)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

    def losses(history, name):
        return [
            (row["step"], row["epoch"], row[name]) for row in history if name in row
        ]

    for name in ("loss", "eval_loss"):
        expected = losses(trainer.state.log_history, name)
        assert len(expected) >= 4
        assert losses(tracked_history("lesson"), name) == expected
    with pytest.raises(TrainingError, match="No run named 'other'"):
        tracked_history("other")


# --- quantised ---


@pytest.mark.parametrize("quantisation", ["8bit", "4bit"])
def test_a_quantised_base_is_trained_saved_and_loaded_again(
    quantisation, base, rows, tmp_path
) -> None:
    base.save_pretrained(tmp_path / "base")
    settings = replace(settings_for(str(tmp_path / "base")), lora_r=4, lora_dropout=0.0)
    ids = torch.tensor([rows[0]["input_ids"]])

    def load():
        model = load_model(settings, quantisation=quantisation)
        with torch.no_grad():  # where 4 bits are repacked, if that is not forbidden
            model(ids)
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    model = add_lora(load(), settings)
    run = trainer(model, rows, tmp_path / "run", max_steps=3, bf16=False)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before
    folder = save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    again = load_adapter(load(), folder)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)

    plain = load_adapter(load_model(settings), folder)
    with torch.no_grad():
        expected = plain(ids).logits
        merged = plain.merge_and_unload()(ids).logits
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


def test_four_bit_layers_are_never_repacked_for_inference(base, tmp_path) -> None:
    base.save_pretrained(tmp_path)
    model = load_model(settings_for(str(tmp_path)), quantisation="4bit")
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 8
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


# --- what goes wrong ---


def test_a_learning_rate_that_diverges_is_named_with_a_better_one(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"to nan .*diverges.* 1e\+30 .*try 1e\+29"):
        train(tiny_trainer(tmp_path, learning_rate=1e30))


@pytest.mark.parametrize("losses, stops", [([1.8, 2.9], True), ([8.0, 9.1], False)])
def test_a_loss_that_rises_far_ends_the_run(losses, stops, tmp_path) -> None:
    trainer = tiny_trainer(tmp_path)

    class Log(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step <= len(losses):
                trainer.log({"loss": losses[state.global_step - 1]})

    trainer.add_callback(Log())
    trainer.args.eval_on_start = False
    expected = pytest.raises(TrainingError, match="from 1.8 to 2.9 by step 2")
    with expected if stops else contextlib.nullcontext():
        train(trainer)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
)
def test_memory_that_runs_out_ends_in_what_to_change(
    tmp_path, error, monkeypatch
) -> None:
    trainer = tiny_trainer(tmp_path)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(TrainingError, match="with 2 rows in a batch: halve"):
        train(trainer)


def test_other_failures_are_not_explained_away(tmp_path, monkeypatch) -> None:
    trainer = tiny_trainer(tmp_path)

    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="^something else$"):
        train(trainer)


@contextlib.contextmanager
def no_file_longer_than(n_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("n_bytes", [2_000, 24_000])  # adapter, optimizer's state
def test_a_full_disk_ends_in_one_sentence_and_the_run_can_go_on(
    tmp_path, n_bytes
) -> None:
    with (
        no_file_longer_than(n_bytes),
        pytest.raises(TrainingError, match="disk is full"),
    ):
        train(tiny_trainer(tmp_path))
    train(tiny_trainer(tmp_path))


def test_an_adapter_that_cannot_be_written_leaves_the_one_before(
    base, tmp_path
) -> None:
    model = add_lora(base, SETTINGS)
    folder = save_adapter(model, tiny_tokenizer(), tmp_path / "adapter")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with (
        no_file_longer_than(2_000),
        pytest.raises(FileError, match="adapter could not be written"),
    ):
        save_adapter(model, tiny_tokenizer(), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# --- an adapter and its base ---


def saved_on(base, folder, name):
    base.save_pretrained(folder / name)
    loaded = load_model(settings_for(str(folder / name)))
    return save_adapter(
        add_lora(loaded, SETTINGS), tiny_tokenizer(), folder / "adapter"
    )


def test_an_adapter_is_loaded_onto_its_base(base, tmp_path) -> None:
    folder = saved_on(base, tmp_path, "base")
    tuned = load_adapter(load_model(settings_for(str(tmp_path / "base"))), folder)
    assert isinstance(tuned, PeftModel) and not tuned.training


@pytest.mark.parametrize("kind", ["name", "weights", "shapes"])
def test_an_adapter_of_another_base_is_refused(kind, base, tmp_path) -> None:
    folder = saved_on(base, tmp_path, "base")
    torch.manual_seed(1)
    place = tmp_path / ("other" if kind == "name" else "base")
    layers = {"layers": 1} if kind == "shapes" else {}
    other = tiny_gpt_neox(len(tiny_tokenizer()), **layers)
    if kind == "shapes":  # the same embeddings, so that only peft can tell
        other.set_input_embeddings(base.get_input_embeddings())
    other.save_pretrained(place)
    with pytest.raises(ModelError, match="does not belong to .*Run 04_lora_training"):
        load_adapter(load_model(settings_for(str(place))), folder)


def test_the_base_of_a_large_vocabulary_can_be_remembered() -> None:
    """Over 2^24 numbers, places counted in 32 bits end beyond the matrix."""
    model = torch.nn.Module()
    embeddings = torch.nn.Embedding(49_152, 576, _weight=torch.zeros(49_152, 576))
    model.get_input_embeddings = lambda: embeddings
    assert len(base_sample(model)) == BASE_SAMPLE


def test_a_folder_without_an_adapter_is_an_error(base, tmp_path) -> None:
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(base, tmp_path)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A shipped adapter of smollm2, and a function that makes a run's configuration."""
    folder = tmp_path / "data" / "smollm2_adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(adapters, "SHIPPED", {"smollm2": folder})

    def config(model="smollm2", data=FAQS_DATA):
        return RunConfig(model, data, "local", tmp_path / "build")

    return folder, config


def own_adapter(config, base):
    folder = config.build / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"base_model_name_or_path": base})
    (folder / "adapter_config.json").write_text(content)
    return folder


def test_the_shipped_adapter_is_taken_where_there_is_no_own_one(shipped) -> None:
    folder, config = shipped
    found, note = adapter_for(config(), MODELS["smollm2"])
    assert found == folder and adapter_file(config(), MODELS["smollm2"]) == folder
    assert "is not there, so the one that the course ships" in note
    assert "not on your file" not in note
    _, note = adapter_for(config(data=LAB_DATA), MODELS["smollm2"])
    assert "not on your file" in note
    assert str(preflight(config(), files={folder: "run 04"})).endswith("adapter")


def test_an_own_adapter_comes_first(shipped) -> None:
    folder, config = shipped
    own = own_adapter(config(), "smollm2")
    assert adapter_for(config(), MODELS["smollm2"]) == (own, "")
    assert adapter_file(config(), MODELS["smollm2"]).as_posix() == "build/adapter"
    own_adapter(config(), "data/lab_model")
    found, note = adapter_for(config(), MODELS["smollm2"])
    assert found == folder and "belongs to another model" in note
    assert adapter_for(config("lab"), MODELS["lab"]) == (own, "")


def test_without_any_adapter_lesson_04_is_named(shipped) -> None:
    folder, config = shipped
    with pytest.raises(ModelError, match="no adapter for lab.*run 04_lora_training"):
        adapter_for(config("lab"), MODELS["lab"])
    assert adapter_file(config("lab"), MODELS["lab"]).as_posix() == "build/adapter"
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="no adapter for smollm2"):
        adapter_for(config(), MODELS["smollm2"])


# --- an adapter and its template ---


def saved_chat(folder, template):
    torch.manual_seed(0)
    base = tiny_llama(len(template.tokenizer))
    model = add_lora(base, replace(SETTINGS, target_modules="all-linear"))
    return save_adapter(model, template.tokenizer, folder, template)


def test_the_template_is_saved_with_the_adapter_and_asked_for(tmp_path) -> None:
    tokenizer = tiny_chat_tokenizer()
    template = chat_template(tokenizer, "Be brief.")
    folder = saved_chat(tmp_path / "adapter", template)
    assert load_template(folder, tokenizer) == template

    def fresh():
        torch.manual_seed(0)
        return tiny_llama(len(tokenizer))

    assert isinstance(load_adapter(fresh(), folder, template), PeftModel)
    for other in (chat_template(tokenizer, "Other."), instruction_template(tokenizer)):
        with pytest.raises(TemplateError, match="'chat'.*'Be brief.'.*load_template"):
            load_adapter(fresh(), folder, other)
    (folder / TEMPLATE_FILE).write_text("{}")
    with pytest.raises(TemplateError, match="not of version"):
        load_adapter(fresh(), folder)
    (folder / TEMPLATE_FILE).unlink()  # as another program saves one
    load_adapter(fresh(), folder)
    with pytest.raises(TemplateError, match="cannot be read"):
        load_adapter(fresh(), folder, template)


def test_without_a_template_only_a_base_model_is_saved(base, tmp_path) -> None:
    folder = save_adapter(
        add_lora(base, SETTINGS), tiny_tokenizer(), tmp_path / "adapter"
    )
    loaded = load_template(folder, tiny_tokenizer())
    assert loaded == instruction_template(tiny_tokenizer())
    torch.manual_seed(0)
    model = add_lora(tiny_llama(), replace(SETTINGS, target_modules="all-linear"))
    with pytest.raises(ModelError, match="has a chat template.*template_for"):
        save_adapter(model, tiny_chat_tokenizer(), tmp_path / "other")


def test_a_plain_server_gets_no_template_that_was_not_trained(tmp_path) -> None:
    template = instruction_template(tiny_chat_tokenizer())
    folder = saved_chat(tmp_path / "adapter", template)
    assert not (folder / "chat_template.jinja").exists()
    assert not AutoTokenizer.from_pretrained(folder).chat_template


def test_training_in_another_frame_than_the_chat_template_warns(tmp_path) -> None:
    tokenizer = tiny_chat_tokenizer()
    model = add_lora(tiny_llama(), replace(SETTINGS, target_modules="all-linear"))
    record = {"instruction": "What?", "response": "It is."}

    def prepare(template):
        made = {key: [text] for key, text in template.add_text(record).items()}
        rows = template.preprocess_batch(made, None)
        rows = [{key: values[0] for key, values in rows.items()}]
        arguments = training_arguments(SETTINGS, tmp_path, eval_strategy="no")
        completion_trainer(model, tokenizer, arguments, rows)

    with pytest.warns(UserWarning, match="in another frame"):
        prepare(instruction_template(tokenizer))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The model has a chat template")
        prepare(chat_template(tokenizer))
