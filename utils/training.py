"""The training recipe: LoRA's configuration, the Trainer's arguments, what is saved.

Everything follows from the model's settings (`models.MODELS`) and the machine at hand.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.course import portable_name
from utils.helpers import DEFAULT_SEED, encode_prompts
from utils.models import Machine, ModelError, ModelSettings, this_machine

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedTokenizerBase, TrainingArguments

# Below this many tokens a row, unfused attention in bfloat16 is the faster on CPUs: the
# backward pass of the fused kernel takes most of a step there.
SHORT_ROWS = 512


def lora_config(settings: ModelSettings) -> LoraConfig:
    """Which layers get a pair of low-rank matrices, and of which rank and scale."""
    from peft import LoraConfig

    modules = settings.target_modules
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def training_arguments(
    settings: ModelSettings,
    folder: str | Path,
    machine: Machine | None = None,
    **changes: Any,
) -> TrainingArguments:
    """The Trainer's settings for this model on this machine.

    Rows of like length share a batch, so that little is padded; the held-out loss is
    measured after every epoch; arithmetic is the shortest that the hardware has.

    Args:
        settings: learning rate, epochs and batch size come from here.
        folder: where the Trainer may write.
        machine: by default the one this runs on.
        **changes: arguments to replace, such as `num_train_epochs=1`.
    """
    from transformers import TrainingArguments

    machine = machine or this_machine()
    arguments = dict(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1: a share of all steps
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        train_sampling_strategy="group_by_length",
        bf16=machine.bf16,
        fp16=machine.gpu is not None and not machine.bf16,
        use_cpu=machine.gpu is None,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        seed=DEFAULT_SEED,
        report_to="none",
        dataloader_pin_memory=machine.gpu is not None,
    )
    return TrainingArguments(**(arguments | changes))


def choose_attention(settings: ModelSettings, machine: Machine) -> str:
    """The attention kernel to load a model with for training: "eager" or "sdpa"."""
    short = settings.max_length <= SHORT_ROWS
    return "eager" if short and machine.bf16 and not machine.gpu else "sdpa"


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> Path:
    """Write adapter and tokenizer, all or nothing, in place of what was there.

    Returns:
        The folder: adapter_config.json, adapter_model.safetensors and the tokenizer.

    Raises:
        ModelError: if the disk is full or may not be written; what was there stays.
    """

    def write(target: Path) -> None:
        # No token was added, so the base's embeddings need no copy in the adapter.
        model.save_pretrained(target, save_embedding_layers=False)
        tokenizer.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)  # peft's form, not filled in
        file = target / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        base = Path(config["base_model_name_or_path"] or "")
        if base.is_absolute():  # which would mean nothing where the adapter is served
            config["base_model_name_or_path"] = portable_name(base)
        if isinstance(config["target_modules"], list):  # a set in peft: any order
            config["target_modules"].sort()
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return replace_folder(folder, write)


def replace_folder(folder: str | Path, write: Any) -> Path:
    """Let `write(temporary folder)` fill a folder, then put it in `folder`'s place.

    A run that is killed leaves the old folder or the new one, never a half.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(new)
        new.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            folder.rename(old / "old")
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    except OSError as error:
        raise ModelError(
            f"{folder.name} could not be saved ({error.strerror or error}): free some "
            f"space or check who may write to {folder.parent.name}/. What was there "
            "is unchanged."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def require_same_tokenizer(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise unless this tokenizer makes the ids that the rows hold.

    Raises:
        ModelError: if the data set was made for another model.
    """
    row = rows[0]
    prompt = encode_prompts([row["prompt"]], tokenizer)[0]
    if list(row["input_ids"][: len(prompt)]) != prompt:
        raise ModelError(
            "The data set was tokenised for another model than COURSE_MODEL names now: "
            "run 03_dataset_templating.ipynb again."
        )


def save_history(
    history: Sequence[Mapping[str, float]], settings: ModelSettings, file: str | Path
) -> Path:
    """Write the Trainer's log and the settings to a JSON file, all or nothing."""
    from dataclasses import asdict

    file = Path(file)
    text = json.dumps(
        {"settings": asdict(settings), "history": list(history)}, indent=1
    )
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(file)
    return file


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    # bitsandbytes packs 4-bit weights two to a number; peft knows how to count them.
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    return sum(n for trained, n in sizes if trained), sum(n for _, n in sizes)
