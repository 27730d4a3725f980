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
from transformers.trainer_callback import TrainerCallback

GPU = torch.cuda.is_available()
MODERN = GPU and torch.cuda.get_device_capability() >= (8, 0)  # has bfloat16
DTYPE = torch.bfloat16 if MODERN else torch.float16 if GPU else torch.float32


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


def read_rows(place: str, use: str, tokenizer, options, stop: str) -> list[dict]:
    """Return the rows of a file, or of a folder's files, that fit; say which do not."""
    files = sorted(Path(place).glob("*.jsonl")) or [Path(place)]
    lines = [x for f in files for x in f.read_text("utf-8-sig").split("\n")]
    rows = [to_row(x, tokenizer, options.system, stop) for x in lines if x.strip()]
    long = [n for n, x in enumerate(rows, 1) if len(x["labels"]) > options.max_length]
    kept = [row for row in rows if len(row["labels"]) <= options.max_length]
    if os.getenv("RANK", "0") == "0":  # the first, if there are several workers
        print(f"{len(kept)} rows to {use}; too long for --max_length: {long or 'none'}")
    if not kept:
        raise ValueError(f"No row of {place} fits: shorten them, or raise --max_length")
    return kept


class RowTrainer(Trainer):
    """Weighs each held-out row alike, however many workers share them."""

    def compute_loss(self, model, inputs, *rest, num_items_in_batch=None, **options):
        """Return the loss; in measuring, the mean of this worker's own tokens."""
        options["num_items_in_batch"] = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, *rest, **options)


class SameOrder(TrainerCallback):
    """Draws an epoch's order of rows from the seed: resumed or shared out, the same."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **_) -> None:
        """Seed what draws it; a step takes as many rows, however many workers share."""
        batches = train_dataloader.batch_sampler
        sampler = getattr(batches, "batch_sampler", batches).sampler
        step = args.train_batch_size * args.gradient_accumulation_steps
        sampler.batch_size = step * args.world_size
        sampler.generator = torch.Generator().manual_seed(args.seed + int(state.epoch))


def make_parser() -> HfArgumentParser:
    """Return the options: all of the Trainer's, with our defaults, and a few more."""
    parser = HfArgumentParser(TrainingArguments)  # each of them becomes an option
    parser.set_defaults(
        output_dir=os.getenv("SM_MODEL_DIR", "adapter"),
        num_train_epochs=3,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # a share of all steps
        per_device_train_batch_size=8,
        per_device_eval_batch_size=1,  # so that the held-out loss is a mean of rows
        gradient_accumulation_steps=1,  # batches to a step
        activation_checkpointing=False,  # True takes less memory, a third more time
        train_sampling_strategy="group_by_length",  # so that little is padded
        bf16=MODERN,
        fp16=GPU and not MODERN,
        use_cpu=not GPU and "WORLD_SIZE" in os.environ,  # or each worker trains alone
        logging_steps=1,
        save_strategy="no",  # with "epoch", --resume_from_checkpoint goes on from one
    )
    parser.add_argument("--train", default=os.getenv("SM_CHANNEL_TRAIN", "train.jsonl"))
    parser.add_argument("--held_out", default=os.getenv("SM_CHANNEL_VALIDATION"))
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--save_to", help="the adapter's folder, if not --output_dir")
    parser.add_argument("--system", default="You are a helpful assistant.")
    parser.add_argument("--stop", help="ends an answer; by default the model's own end")
    for name, value in dict(rank=16, alpha=32, max_length=512, four_bit=0).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser


def main(arguments: list[str] | None = None, callbacks=()) -> None:
    """Train, save the adapter, and answer the first question."""
    training, options = make_parser().parse_args_into_dataclasses(arguments)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    stop = options.stop or tokenizer.eos_token
    kept = read_rows(options.train, "train on", tokenizer, options, stop)
    held_out = None
    if options.held_out:
        held_out = read_rows(options.held_out, "measure", tokenizer, options, stop)
        if training.eval_strategy == "no":
            training.eval_strategy = "epoch"
    bits = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    bits = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=DTYPE)
    load = {"quantization_config": bits} if options.four_bit else {}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPE, **load)
    torch.manual_seed(training.seed)
    lora = dict(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear")
    model = get_peft_model(model, LoraConfig(**lora, task_type="CAUSAL_LM"))
    for layer in model.modules():  # or a processor's 4 bits, once measured, learn wrong
        layer.support_avx512bf16_for_cpu = False
    collator, callbacks = DataCollatorForSeq2Seq(tokenizer), [SameOrder(), *callbacks]
    trainer = RowTrainer(model, training, collator, kept, held_out, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if training.process_index:  # of several workers, the first does the rest
        return
    folder = options.save_to or training.output_dir
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    question = kept[0]["input_ids"][: kept[0]["labels"].count(-100)]
    ids = torch.tensor([question], device=model.device)
    ends = dict(stop_strings=[stop], tokenizer=tokenizer, max_new_tokens=64)
    print(tokenizer.decode(model.eval().generate(input_ids=ids, **ends)[0]))


if __name__ == "__main__":
    main()
