"""Lessons 03 to 06 with a model and a file that the course has never seen.

Claims may say "did not hold here" there; nothing else may fail.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from transformers import LlamaForCausalLM

from support.tiny_models import tiny_chat_tokenizer, tiny_llama, tiny_tokenizer
from utils.models import settings_for
from utils.templates import load_template, template_for
from utils.training.recipe import add_lora

LESSONS = ("03", "04", "05", "06")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "brown")
THINGS = ("roof", "door", "wall", "gate", "boat")


def save_llama(folder: Path) -> Path:
    """An untrained Llama whose tokenizer puts <s> before every text."""
    tokenizer = tiny_tokenizer(adds_bos=True)
    torch.manual_seed(0)
    model = tiny_llama(tokenizer=tokenizer, tied=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_questions(file: Path) -> Path:
    """Forty questions and answers as another program would export them."""
    with open(file, "w", encoding="cp1252", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["Question", "Topic", "Answer"])
        for thing in THINGS:
            for colour in COLOURS:
                question = f"How much is a {colour} {thing}?"
                price = len(colour) * len(thing)
                writer.writerow([question, thing, f"A {colour} {thing} is £{price}."])
    return file


def test_lora_finds_the_layers_of_a_llama(tmp_path: Path) -> None:
    settings = settings_for(str(save_llama(tmp_path)))
    model = add_lora(LlamaForCausalLM.from_pretrained(tmp_path), settings)
    wrapped = {
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if hasattr(layer, "base_layer")
    }
    assert {"q_proj", "v_proj", "down_proj"} <= wrapped
    assert "lm_head" not in wrapped


def save_chat_llama(folder: Path) -> Path:
    """An untrained Llama of SmolLM2's kind, with a chat template that names itself."""
    tokenizer = tiny_chat_tokenizer("names itself")
    torch.manual_seed(0)
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_conversations(file: Path) -> Path:
    """Forty questions and answers as chat messages, one conversation a line."""
    with open(file, "w", encoding="utf-8") as stream:
        for thing in THINGS:
            for colour in COLOURS:
                question = f"How much is a {colour} {thing}?"
                answer = f"A {colour} {thing} is £{len(colour) * len(thing)}."
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
                stream.write(json.dumps({"messages": messages}) + "\n")
    return file


def run_lessons(model: Path, data: Path, build: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "utils.run", *LESSONS],
        env={
            **os.environ,
            "COURSE_MODEL": str(model),
            "COURSE_DATA": str(data),
            "COURSE_BUILD": str(build),
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_lessons_run_with_another_kind_of_model_and_a_foreign_file(
    tmp_path: Path,
) -> None:
    model = save_llama(tmp_path / "llama")
    run_lessons(model, save_questions(tmp_path / "questions.csv"), tmp_path / "build")


@pytest.mark.slow
def test_lessons_run_with_a_chat_model_in_its_own_template(tmp_path: Path) -> None:
    model, build = save_chat_llama(tmp_path / "chat"), tmp_path / "build"
    run_lessons(model, save_conversations(tmp_path / "chats.jsonl"), build)
    # Tuned in it, saved with it, served with it.
    tokenizer = tiny_chat_tokenizer("names itself")
    expected = template_for(settings_for(str(model)), tokenizer)
    assert expected.name == "chat"
    for folder in (build / "adapter", build / "artifact" / "adapter"):
        assert load_template(folder, tokenizer) == expected
    row = load_from_disk(build / "dataset")["train"][0]
    assert row["prompt"] == expected.prompt(row["instruction"])
    assert row["completion"].endswith(expected.stop[0])
