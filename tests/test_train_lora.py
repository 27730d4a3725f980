"""train_lora.py: alone, and with the same losses as the course's own recipe."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from support.machines import LAPTOP
from support.tiny_models import (
    CHATS,
    END_OF_TEXT,
    tiny_chat_tokenizer,
    tiny_llama,
    tiny_tokenizer,
)
from utils.course import ROOT
from utils.helpers import END_KEY, preprocess_batch
from utils.models import ModelSettings, load_model, load_tokenizer, settings_for
from utils.templates import chat_template
from utils.training import train_lora
from utils.training.recipe import add_lora, completion_trainer, training_arguments

SCRIPT = ROOT / "utils" / "training" / "train_lora.py"
MOST_LINES = 145
# SmolLM2's: it adds a system turn of its own where there is none.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Tiny<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = "Answer in one sentence."
THINGS = ("features", "models", "measures", "encryption at rest", "transit", "logs")
PAIRS = [
    (f"What keeps {t}? " * (1 + i % 3), f"It keeps {t}.") for i, t in enumerate(THINGS)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base") / "llama")


def save_llama(folder: Path, **given: int) -> Path:
    """Save an untrained Llama with a chat template, as SmolLM2 is one."""
    tokenizer = copy.deepcopy(tiny_tokenizer(key_tokens=False))
    marks = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    tokenizer.add_special_tokens({**marks, "pad_token": END_OF_TEXT})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = tiny_llama(tokenizer=tokenizer, **given)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_frame(question: str, answer: str) -> dict[str, str]:
    """A question in the frame of the chat template, as texts."""
    prompt = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>"
        "\n<|im_start|>assistant\n"
    )
    return {"prompt": prompt, "completion": f"{answer}<|im_end|>"}


def course_frame(question: str, answer: str) -> dict[str, str]:
    """The same in the course's instruction template, shortened."""
    prompt = f"### Instruction:\n{question}\n\n### Response:\n"
    return {"prompt": prompt, "completion": f"{answer}\n\n{END_KEY}"}


def save_rows(file: Path, rows: list[dict], begin: str = "") -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(begin + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def run_script(folder: Path, out: Path, rows: list[dict], *options: str) -> list[float]:
    """Run the script on rows in this process; return the loss of each step."""
    trainers = []

    class Kept(train_lora.RowTrainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lora, "RowTrainer", Kept)
        train_lora.main(
            [
                *("--model", str(folder), "--output_dir", str(out)),
                *("--train", str(save_rows(out / "train.jsonl", rows))),
                *("--rank", "4", "--alpha", "8", "--use_cpu", "true"),
                *("--per_device_train_batch_size", "2", "--disable_tqdm", "true"),
                *("--num_train_epochs", "2", "--learning_rate", "0.01"),
                *("--system", SYSTEM, *options),
            ]
        )
    return losses_of(trainers[-1])


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory) -> list[float]:
    """The script's losses on texts in the frame of the chat template."""
    out = tmp_path_factory.mktemp("plain")
    return run_script(folder, out, [chat_frame(*pair) for pair in PAIRS])


def losses_of(trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def recipe_losses(
    folder: Path, out: Path, rows: list[dict[str, str]], accumulation: int = 1
) -> list[float]:
    """What the course's own training reports for these rows, step by step."""
    settings: ModelSettings = ModelSettings(
        **{
            **vars(settings_for(str(folder))),
            **dict(lora_r=4, lora_alpha=8, lora_dropout=0.0),
            **dict(learning_rate=0.01, epochs=2, batch_size=2),
        }
    )
    tokenizer = load_tokenizer(settings)
    columns = {key: [row[key] for row in rows] for key in ("prompt", "completion")}
    encoded = preprocess_batch(columns, tokenizer, 512)
    train_rows = [
        dict(zip(encoded, row, strict=True))
        for row in zip(*encoded.values(), strict=True)
    ]
    base = load_model(settings, device_map="cpu")
    torch.manual_seed(42)
    trainer = completion_trainer(
        add_lora(base, settings),
        tokenizer,
        training_arguments(
            settings,
            out,
            machine=LAPTOP,
            eval_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            disable_tqdm=True,
            gradient_accumulation_steps=accumulation,
        ),
        train_rows,
    )
    trainer.add_callback(train_lora.SameOrder())
    trainer.train()
    return losses_of(trainer)


# --- the course's recipe and the script ---


def test_script_and_recipe_give_the_same_losses(plain, folder, tmp_path) -> None:
    expected = recipe_losses(folder, tmp_path, [chat_frame(*pair) for pair in PAIRS])
    assert len(plain) == 6
    assert plain == pytest.approx(expected, rel=1e-4)
    assert plain[-1] < plain[0]


def test_they_do_so_in_the_courses_own_template(folder, tmp_path) -> None:
    """Also where a step has four rows in two batches: each token counts the same."""
    rows = [course_frame(*pair) for pair in PAIRS]
    more = ("--stop", END_KEY, "--gradient_accumulation_steps", "2")
    losses = run_script(folder, tmp_path / "script", rows, *more)
    expected = recipe_losses(folder, tmp_path / "recipe", rows, accumulation=2)
    assert losses == pytest.approx(expected, rel=1e-4)


def test_messages_are_framed_by_the_models_template(plain, folder, tmp_path) -> None:
    messages = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in PAIRS
    ]
    assert run_script(folder, tmp_path, messages) == plain


# --- rows ---


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(settings_for(str(folder)))


def learned(row: dict, tokenizer) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def test_the_system_prompt_is_the_one_given_and_not_the_templates(tokenizer) -> None:
    turns = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "This."},
    ]
    line = json.dumps({"messages": turns})
    row = train_lora.to_row(line, tokenizer, SYSTEM, "<|im_end|>")
    text = tokenizer.decode(row["input_ids"])
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>")
    assert "Tiny" not in text
    own = json.dumps({"messages": [{"role": "system", "content": "Be brief."}, *turns]})
    text = tokenizer.decode(
        train_lora.to_row(own, tokenizer, SYSTEM, "<|im_end|>")["input_ids"]
    )
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert SYSTEM not in text


@pytest.mark.parametrize("kind", list(CHATS))
@pytest.mark.parametrize("system", [SYSTEM, ""])
def test_a_chat_has_the_tokens_and_labels_of_the_courses_template(kind, system) -> None:
    tokenizer = tiny_chat_tokenizer(kind)
    course = chat_template(copy.deepcopy(tokenizer), system)
    # The script says what is wrong: "System role not supported"; --system "" helps.
    refuses = kind == "refuses a system turn" and system
    if refuses or course.writes_system != bool(system):
        pytest.skip("this template decides about the system turn itself")
    row = course.add_text({"instruction": "Which measures?", "response": "Encryption."})
    columns = {"prompt": [row["prompt"]], "completion": [row["completion"]]}
    expected = course.preprocess_batch(columns, 512)
    turns = [
        {"role": "user", "content": "Which measures?"},
        {"role": "assistant", "content": "Encryption."},
    ]
    line, stop = json.dumps({"messages": turns}), course.stop[0]
    found = train_lora.to_row(line, tokenizer, system, stop)
    assert found["input_ids"] == expected["input_ids"][0]
    assert found["labels"] == expected["labels"][0]


def test_only_the_last_answer_is_learned_and_its_end_with_it(tokenizer) -> None:
    turns = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "That."},
    ]
    line = json.dumps({"messages": turns})
    row = train_lora.to_row(line, tokenizer, SYSTEM, "<|im_end|>")
    assert learned(row, tokenizer) == "That.<|im_end|>"
    assert len(row["labels"]) == len(row["input_ids"])
    assert row["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "completion", ["It ends.", "It ends.<|im_end|>", "It ends.<|im_end|>\n"]
)
def test_every_answer_ends_with_the_stop_once(tokenizer, completion) -> None:
    line = json.dumps({"prompt": "Does it?\n", "completion": completion})
    row = train_lora.to_row(line, tokenizer, "", "<|im_end|>")
    assert learned(row, tokenizer) == "It ends.<|im_end|>"


def test_a_text_begins_once(tokenizer) -> None:
    """With the token that some tokenizers put before every text, written or not."""
    adding = tiny_tokenizer(adds_bos=True)
    for prompt in ("Does it?", "<s>Does it?"):
        line = json.dumps({"prompt": prompt, "completion": " It does."})
        row = train_lora.to_row(line, adding, "", END_OF_TEXT)
        assert row["input_ids"][0] == adding.bos_token_id
        assert row["input_ids"].count(adding.bos_token_id) == 1
    line = json.dumps({"prompt": "Does it?", "completion": " It does."})
    row = train_lora.to_row(line, tokenizer, "", "<|im_end|>")
    assert tokenizer.bos_token_id not in row["input_ids"]


def test_line_ends_within_a_text_and_a_byte_order_mark_do_no_harm(
    folder, tmp_path, capsys
) -> None:
    rows = [chat_frame(question, f"{answer}\u2028Yes.") for question, answer in PAIRS]
    data = tmp_path / "data"
    save_rows(data / "first.jsonl", rows[:3], begin="\ufeff")
    save_rows(data / "second.jsonl", [*rows[3:], chat_frame("long " * 600, "No.")])
    more = ("--train", str(data), "--max_steps", "1")
    run_script(folder, tmp_path / "adapter", rows, *more)
    said = capsys.readouterr().out
    assert "6 rows to train on; too long for --max_length: [7]\n" in said


def test_rows_whose_notes_push_the_answer_out_are_named_and_never_cut(
    folder, tmp_path, capsys
) -> None:
    notes = "It keeps features for models. " * 200
    long = chat_frame(f"Notes:\n{notes}\n\nQuestion: What?", "This.")
    rows = [chat_frame(*PAIRS[0]), long, chat_frame(*PAIRS[1]), long]
    run_script(folder, tmp_path / "some", rows, "--max_steps", "1")
    said = capsys.readouterr().out
    assert "2 rows to train on; too long for --max_length: [2, 4]\n" in said
    with pytest.raises((IndexError, ValueError)):
        run_script(folder, tmp_path / "none", [long], "--max_steps", "1")
    said = capsys.readouterr().out
    assert "0 rows to train on; too long for --max_length: [1]\n" in said


# --- what comes out ---


def test_the_adapter_is_saved_and_the_first_question_answered(
    folder, tmp_path, capsys
) -> None:
    rows, out = [chat_frame(*pair) for pair in PAIRS], tmp_path / "adapter"
    run_script(folder, out, rows, "--num_train_epochs", "30")
    said = capsys.readouterr().out
    assert PAIRS[0][0].strip() in said
    assert f"assistant\n{PAIRS[0][1]}<|im_end|>" in said
    assert said.rstrip().endswith("<|im_end|>")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), out)
    assert tuned.peft_config["default"].r == 4
    assert load_tokenizer(settings_for(str(out))).chat_template == TEMPLATE


def test_checkpointing_saves_memory_at_the_same_loss(plain, folder, tmp_path) -> None:
    rows = [chat_frame(*pair) for pair in PAIRS]
    sparing = run_script(folder, tmp_path, rows, "--activation_checkpointing", "true")
    assert sparing == pytest.approx(plain, rel=1e-4)


def test_four_bits_save_memory_at_nearly_the_same_loss(tmp_path) -> None:
    """With widths of 64 and its multiples, as every processor's kernels take them.

    Held-out rows are measured in between, after which some processors' kernels would
    give wrong gradients.
    """
    folder = save_llama(tmp_path / "wide", width=128)
    rows = [chat_frame(*pair) for pair in PAIRS]
    plain = run_script(folder, tmp_path / "plain", rows)
    bits = ("--four_bit", "1")
    sparing = run_script(folder, tmp_path / "sparing", rows, *bits)
    held_out = str(save_rows(tmp_path / "held_out.jsonl", rows[:1]))
    more = (*bits, "--held_out", held_out)
    assert run_script(folder, tmp_path / "measured", rows, *more) == sparing
    assert sparing[0] == pytest.approx(plain[0], rel=0.1)
    assert sparing == pytest.approx(plain, rel=0.2)  # the steps take them apart
    assert sparing[-1] < sparing[0]


def test_held_out_rows_are_measured_after_each_epoch(folder, tmp_path) -> None:
    """Each row counts the same, whatever shares a batch with it."""
    rows, held_out = [chat_frame(*pair) for pair in PAIRS[2:]], PAIRS[:2]
    file = save_rows(tmp_path / "held.jsonl", [chat_frame(*x) for x in held_out])
    seen = []

    class Listener(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_) -> None:
            seen.extend(value for name, value in logs.items() if name == "eval_loss")

    train_lora.main(
        [
            *("--model", str(folder), "--output_dir", str(tmp_path / "adapter")),
            *("--train", str(save_rows(tmp_path / "train.jsonl", rows))),
            *("--held_out", str(file), "--use_cpu", "true", "--system", SYSTEM),
        ],
        [Listener()],
    )
    assert len(seen) == 3
    assert seen[-1] < seen[0]
    base = AutoModelForCausalLM.from_pretrained(folder)
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = load_tokenizer(settings_for(str(folder)))
    losses = []
    for line in file.read_text("utf-8").splitlines():
        row = train_lora.to_row(line, tokenizer, SYSTEM, "<|im_end|>")
        batch = {name: torch.tensor([values]) for name, values in row.items()}
        with torch.inference_mode():
            losses.append(tuned(**batch).loss.item())
    assert seen[-1] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_run_goes_on_from_a_checkpoint(folder, tmp_path, step) -> None:
    """Bit for bit, also in the middle of its second epoch, from step 4 on."""
    rows, out = [chat_frame(*pair) for pair in PAIRS], tmp_path / "adapter"
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    losses = run_script(folder, out, rows, *saving)
    file = out / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    checkpoint = str(out / f"checkpoint-{step}")
    more = (*saving, "--resume_from_checkpoint", checkpoint)
    assert run_script(folder, out, rows, *more) == losses
    assert file.read_bytes() == whole


def test_two_workers_weigh_each_held_out_row_as_one_does(folder, tmp_path) -> None:
    """Of three rows the two workers hold unlike numbers, and of unlike length."""
    rows = [chat_frame(*pair) for pair in PAIRS]
    long = chat_frame("Why?", "Because " + "it is so, and " * 20 + "that is all.")
    held_out = [rows[0], long, rows[1]]
    options = ["--model", str(folder), "--use_cpu", "true", "--max_steps", "1"]
    options += ["--train", str(save_rows(tmp_path / "train.jsonl", rows))]
    options += ["--held_out", str(save_rows(tmp_path / "held_out.jsonl", held_out))]
    options += ["--eval_strategy", "steps", "--eval_steps", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    found = []
    for workers in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, *torchrun, str(workers), str(SCRIPT), *options),
                *("--output_dir", str(tmp_path / str(workers))),
                *("--per_device_train_batch_size", str(2 // workers)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(re.findall(r"'eval_loss': '([0-9.]+)'", done.stdout))
    one, two = (float(losses[0]) for losses in found)
    assert two == pytest.approx(one, rel=1e-3)


def test_a_training_job_runs_it_alone(folder, tmp_path) -> None:
    """Folders come from the job's environment, and nothing of the course is there."""
    script = tmp_path / "code" / "train_lora.py"
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    save_rows(tmp_path / "channel" / "train.jsonl", [chat_frame(*p) for p in PAIRS])
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "SM_CHANNEL_TRAIN": str(tmp_path / "channel"),
        "SM_MODEL_DIR": str(tmp_path / "model"),
    }
    options = ["--max_steps", "1", "--use_cpu", "true"]
    done = subprocess.run(
        [sys.executable, "-I", str(script), "--model", str(folder), *options],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    assert "'loss'" in done.stdout


def test_it_is_short_and_names_what_a_practitioner_types() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for name in (
        "AutoTokenizer.from_pretrained",
        "AutoModelForCausalLM.from_pretrained",
        "BitsAndBytesConfig(",
        "LoraConfig(",
        "TrainingArguments",
        "Trainer(",
        "save_pretrained",
        "generate(",
    ):
        assert name in text
    assert "utils" not in text
