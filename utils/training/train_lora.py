"""Fine-tune a language model with LoRA: all of it in one file, to take home.

A line of data is JSON: {"prompt": "…", "completion": "…"}, texts as the model is to see
them, or {"messages": [{"role": "user", "content": "…"}, …]}, the last turn is learned.
"""

import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.data import DataCollatorForSeq2Seq
from transformers.hf_argparser import HfArgumentParser
from transformers.trainer import Trainer, TrainingArguments


def to_row(line: str, tokenizer, system: str, stop: str) -> dict[str, list[int]]:
    """Return the token ids of a line, with labels for the answer only."""
    row = json.loads(line)
    if turns := row.get("messages"):
        if system and turns[0]["role"] != "system":  # or the template adds its own
            turns = [{"role": "system", "content": system}, *turns]
        chat = tokenizer.apply_chat_template  # with ids it would return a dictionary
        start = chat(turns[:-1], tokenize=False, add_generation_prompt=True)
        row = {"prompt": start, "completion": chat(turns, tokenize=False)[len(start) :]}
    # The model must learn to stop; some tokenizers begin a text, but only once.
    answer = row["completion"].partition(stop)[0] + stop
    begun = row["prompt"].startswith(tokenizer.bos_token or "\0")
    asked = tokenizer(row["prompt"], add_special_tokens=not begun)["input_ids"]
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {"input_ids": asked + said, "labels": [-100] * len(asked) + said}


def main(arguments: list[str] | None = None) -> None:
    """Train, save the adapter, and answer the first question."""
    gpu = torch.cuda.is_available()
    modern = gpu and torch.cuda.get_device_capability() >= (8, 0)  # has bfloat16
    dtype = torch.bfloat16 if modern else torch.float16 if gpu else torch.float32
    parser = HfArgumentParser(TrainingArguments)  # each of them becomes an option
    parser.set_defaults(
        output_dir=os.getenv("SM_MODEL_DIR", "adapter"),
        num_train_epochs=3,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # a share of all steps
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,  # batches to a step
        activation_checkpointing=False,  # True takes less memory, a third more time
        train_sampling_strategy="group_by_length",  # so that little is padded
        bf16=modern,
        fp16=gpu and not modern,
        logging_steps=1,
        save_strategy="no",
    )
    parser.add_argument("--train", default=os.getenv("SM_CHANNEL_TRAIN", "train.jsonl"))
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--system", default="You are a helpful assistant.")
    parser.add_argument("--stop", help="ends an answer; by default the model's own end")
    for name, value in dict(rank=16, alpha=32, max_length=512, four_bit=0).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    training, options = parser.parse_args_into_dataclasses(arguments)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    stop = options.stop or tokenizer.eos_token
    files = sorted(Path(options.train).glob("*.jsonl")) or [Path(options.train)]
    lines = [x for f in files for x in f.read_text("utf-8-sig").split("\n")]
    rows = [to_row(x, tokenizer, options.system, stop) for x in lines if x.strip()]
    long = [n for n, x in enumerate(rows, 1) if len(x["labels"]) > options.max_length]
    kept = [row for row in rows if len(row["labels"]) <= options.max_length]
    print(f"{len(kept)} rows to train on; too long for --max_length: {long or 'none'}")
    bits = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    bits = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=dtype)
    load = {"quantization_config": bits} if options.four_bit else {}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **load)
    torch.manual_seed(training.seed)
    lora = dict(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear")
    model = get_peft_model(model, LoraConfig(**lora, task_type="CAUSAL_LM"))
    Trainer(model, training, DataCollatorForSeq2Seq(tokenizer), kept).train()
    model.save_pretrained(training.output_dir)
    tokenizer.save_pretrained(training.output_dir)
    question = kept[0]["input_ids"][: kept[0]["labels"].count(-100)]
    ids = torch.tensor([question], device=model.device)
    ends = dict(stop_strings=[stop], tokenizer=tokenizer, max_new_tokens=64)
    print(tokenizer.decode(model.eval().generate(input_ids=ids, **ends)[0]))


if __name__ == "__main__":
    main()
