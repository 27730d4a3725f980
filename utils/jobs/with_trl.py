"""The same training with TRL's SFTTrainer: the options and rows of `train_lora.py`.

With its defaults this file repeats `train_lora.py` step by step. What the library would
do if it were not told otherwise is in reach by an option: `--rows trl`, `--bf16 true`.
`trl_compared` measures what each of them changes. As a script it needs `train_lora.py`
beside it, and nothing else of the course:

    python with_trl.py --train train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from transformers.hf_argparser import HfArgumentParser
from trl import SFTConfig, SFTTrainer

try:
    from utils.training.train_lora import SameOrder, to_row
except ImportError:  # in a training job, where the two files lie side by side
    from train_lora import SameOrder, to_row

ROWS = ("ours", "trl", "messages")
"""Who frames, ends and labels a row: `to_row`; TRL, told which part is the answer; TRL,
given whole conversations, of which it then learns every token."""

RECIPE: dict[str, Any] = dict(
    num_train_epochs=3,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # a share of all steps
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    activation_checkpointing=False,
    train_sampling_strategy="group_by_length",
    max_length=512,
    logging_steps=1,
    save_strategy="no",
)
"""What `train_lora.py` trains with, in TRL's words."""


def read_rows(
    lines: Sequence[str], tokenizer: Any, system: str, stop: str, rows: str
) -> list[dict[str, Any]]:
    """Return rows for `SFTTrainer`.

    Args:
        lines: JSON, as `train_lora.py` reads them: prompt and completion, or messages.
        tokenizer: of the model.
        system: put before messages that bring no system turn; "" for none.
        stop: ends an answer.
        rows: one of `ROWS`. Rows of plain texts are no conversations: "messages" makes
            one text of prompt and completion.

    Raises:
        ValueError: if `rows` is none of `ROWS`.
    """
    if rows not in ROWS:
        raise ValueError(f"rows is {rows!r}: give one of {', '.join(ROWS)}.")
    if rows == "ours":  # with labels, which TRL leaves as they are
        return [to_row(line, tokenizer, system, stop) for line in lines]
    made: list[dict[str, Any]] = []
    for given in map(json.loads, lines):
        if turns := given.get("messages"):
            if system and turns[0]["role"] != "system":
                turns = [{"role": "system", "content": system}, *turns]
            split = {"prompt": turns[:-1], "completion": turns[-1:]}
            made.append({"messages": turns} if rows == "messages" else split)
            continue
        answer = given["completion"].partition(stop)[0] + stop
        split = {"prompt": given["prompt"], "completion": answer}
        whole = {"text": given["prompt"] + answer}
        made.append(whole if rows == "messages" else split)
    return made


def main(
    arguments: list[str] | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> SFTTrainer:
    """Train, save the adapter, and answer the first question.

    Args:
        arguments: of the command line, by default the script's own. Each field of
            `SFTConfig` is an option, and so are those of `train_lora.py`.
        callbacks: for the trainer, to watch it.

    Returns:
        The trainer, trained: `state.log_history` holds the loss of each step.
    """
    gpu = torch.cuda.is_available()
    modern = gpu and torch.cuda.get_device_capability() >= (8, 0)  # has bfloat16
    fitting = "bfloat16" if modern else "float16" if gpu else "float32"
    parser = HfArgumentParser(SFTConfig)
    parser.set_defaults(**RECIPE, output_dir=os.getenv("SM_MODEL_DIR", "adapter"))
    parser.set_defaults(bf16=modern, fp16=gpu and not modern, use_cpu=not gpu)
    parser.add_argument("--train", default=os.getenv("SM_CHANNEL_TRAIN", "train.jsonl"))
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--system", default="You are a helpful assistant.")
    parser.add_argument("--stop", help="ends an answer; by default the model's own end")
    parser.add_argument("--rows", choices=ROWS, default="ours")
    parser.add_argument("--too_long", choices=("leave_out", "cut"), default="leave_out")
    parser.add_argument("--dtype", default=fitting, help='of the base; "" for TRL\'s')
    parser.add_argument("--target_modules", default="all-linear", help='"" for peft\'s')
    parser.add_argument("--lora_dropout", type=float, default=0.0)
    # Rank 0: no adapter, all weights are trained.
    numbers = dict(rank=16, alpha=32, four_bit=0, answer_tokens=64)
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    training, options = parser.parse_args_into_dataclasses(arguments)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    stop = options.stop or tokenizer.eos_token
    files = sorted(Path(options.train).glob("*.jsonl")) or [Path(options.train)]
    lines = [x for f in files for x in f.read_text("utf-8-sig").split("\n")]
    lines = [line for line in lines if line.strip()]
    encoded = [to_row(line, tokenizer, options.system, stop) for line in lines]
    training.max_length = training.max_length or None  # 0: no limit
    limit = training.max_length or max(len(row["labels"]) for row in encoded)
    if options.too_long == "leave_out":  # TRL would cut the end of the answer off
        fits = [len(row["labels"]) <= limit for row in encoded]
        long = [number for number, fit in enumerate(fits, 1) if not fit]
        lines = [line for line, fit in zip(lines, fits, strict=True) if fit]
        encoded = [row for row, fit in zip(encoded, fits, strict=True) if fit]
        long = long or "none"
        print(f"{len(lines)} rows to train on; too long for --max_length: {long}")
    rows = read_rows(lines, tokenizer, options.system, stop, options.rows)
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, fitting),
    )
    lora = LoraConfig(
        r=options.rank or 1,
        lora_alpha=options.alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.target_modules or None,
        task_type="CAUSAL_LM",
    )
    training.model_init_kwargs = {"dtype": options.dtype} if options.dtype else None
    trainer = SFTTrainer(
        model=options.model,  # loaded by TRL, after it has set the seed
        args=training,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        quantization_config=bits if options.four_bit else None,
        peft_config=lora if options.rank else None,
        callbacks=[SameOrder(), *callbacks],  # the rows in our order
    )
    trainer.train()
    trainer.save_model(training.output_dir)  # and the tokenizer with it
    if options.answer_tokens:
        question = encoded[0]["input_ids"][: encoded[0]["labels"].count(-100)]
        model = trainer.model.eval()
        ids = torch.tensor([question], device=model.device)
        ends = dict(stop_strings=[stop], max_new_tokens=options.answer_tokens)
        said = model.generate(input_ids=ids, tokenizer=tokenizer, **ends)[0]
        print(tokenizer.decode(said))
    return trainer


if __name__ == "__main__":
    main()
