"""A tiny untrained base with a random adapter, and the artifact made of them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from support.tiny_models import (
    tiny_chat_tokenizer,
    tiny_gpt_neox,
    tiny_llama,
    tiny_tokenizer,
)
from utils.deployment import artifact
from utils.templates import SYSTEM_PROMPT, chat_template, instruction_template
from utils.training.adapters import save_adapter as save_with_template

QUESTIONS = [
    f"What does Amazon SageMaker {feature} {verb}?"
    for feature in ("Feature Store", "Pipelines", "Clarify", "Canvas", "Studio")
    for verb in ("keep", "cost", "need", "do")
]


def save_base(folder: Path) -> Path:
    """An untrained base whose answers at least differ from question to question."""
    torch.manual_seed(3)
    model = tiny_gpt_neox()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 0.02 if "embed" in name else 0.4
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path) -> Path:
    """An adapter whose B is not zero, so that it changes the answers."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            r=4,
            target_modules=["query_key_value", "dense_4h_to_h"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        ),
    )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    instruction_template(tiny_tokenizer()).save(folder)
    return folder


def save_chat_base(folder: Path, kind: str) -> Path:
    """An untrained base with a chat template of a kind of `tiny_models.CHATS`."""
    tokenizer = tiny_chat_tokenizer(kind)
    torch.manual_seed(3)
    model = tiny_llama(len(tokenizer), tied=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_chat_adapter(
    folder: Path, base: Path, kind: str, system_prompt: str = SYSTEM_PROMPT
) -> Path:
    """An adapter that was, for all one can tell, tuned in the base's chat template."""
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_chat_tokenizer(kind)
    torch.manual_seed(4)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            r=4,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        ),
    )
    template = chat_template(tokenizer, system_prompt)
    return save_with_template(model, tokenizer, folder, template)


def build_tiny_chat(folder: Path, kind: str = "names itself") -> Path:
    """Base, adapter and artifact of a chat model in `folder`; returns the archive."""
    base = save_chat_base(folder / "saved_base", kind)
    return artifact.build(
        base,
        save_chat_adapter(folder / "saved_adapter", base, kind),
        folder / "artifact",
        folder / "model.tar.gz",
        options={"option.max_new_tokens": 16},
    )


def build_tiny(folder: Path, with_adapter: bool = True, **options: str | int) -> Path:
    """Base, adapter and artifact in `folder`; returns the archive."""
    base = save_base(folder / "saved_base")
    adapter = save_adapter(folder / "saved_adapter", base)
    return artifact.build(
        base,
        adapter if with_adapter else None,
        folder / "artifact",
        folder / "model.tar.gz",
        options={"option.max_new_tokens": 16, **options},
    )
