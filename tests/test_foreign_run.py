"""Lessons 03 to 06 with a model and a file that the course has never seen.

Claims may say "did not hold here" there; nothing else may fail.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.tiny_models import tiny_tokenizer
from utils.models import settings_for
from utils.training.recipe import add_lora

LESSONS = ("03", "04", "05", "06")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "brown")
THINGS = ("roof", "door", "wall", "gate", "boat")


def save_llama(folder: Path) -> Path:
    """An untrained Llama whose tokenizer puts <s> before every text."""
    tokenizer = tiny_tokenizer(adds_bos=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
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


@pytest.mark.slow
def test_lessons_run_with_another_kind_of_model_and_a_foreign_file(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "utils.run", *LESSONS],
        env={
            **os.environ,
            "COURSE_MODEL": str(save_llama(tmp_path / "llama")),
            "COURSE_DATA": str(save_questions(tmp_path / "questions.csv")),
            "COURSE_BUILD": str(tmp_path / "build"),
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
