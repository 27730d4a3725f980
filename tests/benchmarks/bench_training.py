"""How fast the course's training recipe is, beside other ways to train the same rows.

    .venv/bin/python tests/benchmarks/bench_training.py               # ratios
    .venv/bin/python tests/benchmarks/bench_training.py --quality     # held-out losses
    .venv/bin/python tests/benchmarks/bench_training.py --gpu         # Dolly-3B's shape

The ratios are of tokens a second without padding, over whole epochs of the course's
training rows on the lab model. All ways train the same LoRA matrices on the same rows
in batches of the same size; they take turns, and a ratio is the median over the rounds.
Close other programs first. COURSE_MODEL chooses another model.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import datasets
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from utils.course import SHIPPED_DATA, run_config, set_seed
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.evaluation.scores import held_out_loss, token_losses
from utils.helpers import DataCollatorForCompletionOnlyLM, add_text, preprocess_batch
from utils.machine import this_machine
from utils.models import (
    MODELS,
    ModelSettings,
    choose_dtype,
    load_model,
    load_tokenizer,
    settings_for,
)
from utils.training.recipe import (
    add_lora,
    choose_attention,
    lora_config,
    training_arguments,
)

GOALS = {  # ours against: with bfloat16 in hardware, without
    "original lab": (2.5, 1.3),
    "TRL, defaults": (3.0, 1.5),
    "TRL, best of the grid": (1.2, 1.05),
    "bare loop": (0.8, 0.8),
}
GRID = {
    "gradient_checkpointing": (False,),
    "train_sampling_strategy": ("random", "group_by_length"),
    "bf16": (False, True),
    "attention": ("sdpa", "eager"),
}
LEARNED = ("input_ids", "attention_mask", "labels")


@dataclass
class Task:
    """What is trained: a model, its rows, and how many tokens an epoch has."""

    settings: ModelSettings
    tokenizer: Any
    parts: datasets.DatasetDict
    folder: str

    @property
    def rows(self) -> datasets.Dataset:
        return self.parts["train"]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows["input_ids"]))


def make_task(settings: ModelSettings, folder: str, rows: int | None = None) -> Task:
    """The course's rows, for this model; with `rows` only that many to train on."""
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(settings)
    parts = split(load_faqs(SHIPPED_DATA)).map(add_text)
    parts = parts.map(
        lambda batch: preprocess_batch(batch, tokenizer, settings.max_length),
        batched=True,
    ).select_columns(list(LEARNED))
    if rows:
        parts["train"] = parts["train"].select(range(rows))
    return Task(settings, tokenizer, parts, folder)


class EpochTimer(TrainerCallback):
    """Seconds from an epoch's first batch to its last step."""

    def on_epoch_begin(self, args, state, control, **_):
        synchronise()
        self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **_):
        synchronise()
        self.seconds = time.perf_counter() - self.start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def one_epoch(trainer: Trainer) -> Callable[[], float]:
    """A function that trains one epoch more and returns its seconds."""
    timer = EpochTimer()
    trainer.add_callback(timer)
    trainer.remove_callback(PrinterCallback)

    def run() -> float:
        trainer.train()
        return timer.seconds

    return run


QUIET = {
    "num_train_epochs": 1,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


# --- the ways to train ---


def course_trainer(task: Task, **changes: Any) -> Trainer:
    """What lesson 04 does."""
    set_seed(changes.get("seed"))
    longest = max(map(len, task.rows["input_ids"]))
    attention = choose_attention(task.settings, this_machine(), longest)
    base = load_model(task.settings, attn_implementation=attention)
    quiet = QUIET | {"eval_strategy": "no"}
    return Trainer(
        model=add_lora(base, task.settings),
        args=training_arguments(task.settings, task.folder, **(quiet | changes)),
        train_dataset=task.rows,
        data_collator=DataCollatorForCompletionOnlyLM(
            task.tokenizer, completion_logits_only=True
        ),
        processing_class=task.tokenizer,
    )


def original_trainer(task: Task, **changes: Any) -> Trainer:
    """What the original lab does: rows in any order, padded to multiples of 8, 32 bits,
    logits for every token, the default attention."""
    set_seed(changes.get("seed"))
    collator = DataCollatorForCompletionOnlyLM(task.tokenizer, pad_to_multiple_of=8)
    arguments = {
        "output_dir": task.folder,
        "per_device_train_batch_size": task.settings.batch_size,
        "learning_rate": task.settings.learning_rate,
        "optim": "adamw_torch",
        "use_cpu": not torch.cuda.is_available(),
    }
    return Trainer(
        model=get_peft_model(load_model(task.settings), lora_config(task.settings)),
        args=TrainingArguments(**(arguments | QUIET | changes)),
        train_dataset=task.rows,
        data_collator=collator,
        processing_class=task.tokenizer,
    )


def trl_trainer(task: Task, attention: str | None = None, **options: Any) -> Trainer:
    """TRL's SFTTrainer on the same rows, already tokenised."""
    from trl import SFTConfig, SFTTrainer

    set_seed()
    attention = {"attn_implementation": attention} if attention else {}
    arguments = {
        "output_dir": task.folder,
        "per_device_train_batch_size": task.settings.batch_size,
        "max_length": task.settings.max_length,
        "use_cpu": not torch.cuda.is_available(),
    }
    return SFTTrainer(
        model=load_model(task.settings, **attention),
        args=SFTConfig(**(arguments | QUIET | options)),
        train_dataset=task.rows.select_columns(["input_ids", "labels"]),
        processing_class=task.tokenizer,
        peft_config=lora_config(task.settings),
    )


def bare_loop(task: Task) -> Callable[[], float]:
    """PyTorch and peft alone: the course's batches, made beforehand, its arithmetic and
    its attention."""
    trainer = course_trainer(task)
    batches = list(trainer.get_train_dataloader())
    model, machine = trainer.model.train(), this_machine()
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimiser = torch.optim.AdamW(trained, task.settings.learning_rate, fused=True)
    short = torch.autocast(machine.device, torch.bfloat16, enabled=machine.bf16)

    def run() -> float:
        synchronise()
        start = time.perf_counter()
        for batch in batches:
            with short:
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()
        synchronise()
        return time.perf_counter() - start

    return run


def best_of_grid(task: Task) -> tuple[dict[str, Any], Callable[[], float]]:
    """The fastest of TRL's settings in `GRID`, by one epoch after a warm-up each."""
    best: tuple[float, dict[str, Any], Callable[[], float]] | None = None
    for values in product(*GRID.values()):
        options = dict(zip(GRID, values, strict=True))
        run = one_epoch(trl_trainer(task, **options))
        run()
        seconds = run()
        print(f"  TRL {options}: {task.tokens / seconds:,.0f} tokens/s", flush=True)
        if best is None or seconds < best[0]:
            best = (seconds, options, run)
    return best[1], best[2]


# --- what is printed ---


def ratios(task: Task, rounds: int) -> None:
    """The table of ratios."""
    print(f"{this_machine()} · {task.settings.name} · {len(task.rows)} rows, ", end="")
    print(f"{task.tokens:,} tokens an epoch, batches of {task.settings.batch_size}")
    print("TRL's settings tried:")
    options, best = best_of_grid(task)
    ways = {
        "course": one_epoch(course_trainer(task)),
        "original lab": one_epoch(original_trainer(task)),
        "TRL, defaults": one_epoch(trl_trainer(task)),
        "TRL, best of the grid": best,
        "bare loop": bare_loop(task),
    }
    for run in ways.values():
        run()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            seconds[name].append(run())
    print(f"best of the grid: {options}")
    print(f"| {rounds} rounds | tokens/s, median (lowest to highest) | ours | goal |")
    print("|:--|--:|--:|--:|")
    for name, times in seconds.items():
        speeds = sorted(task.tokens / one for one in times)
        ours = [
            other / own for other, own in zip(times, seconds["course"], strict=True)
        ]
        goal = GOALS.get(name, (1, 1))[not this_machine().bf16]
        spread = f"({speeds[0]:,.0f} to {speeds[-1]:,.0f})"
        print(
            f"| {name} | {statistics.median(speeds):,.0f} {spread} | "
            f"{statistics.median(ours):.2f} × ({min(ours):.2f} to {max(ours):.2f}) | "
            f"{goal} × |"
        )


def quality(task: Task, seeds: Sequence[int]) -> None:
    """Held-out loss of the original recipe and of ours after as many examples."""
    rows = task.parts["validation"].to_list()
    epochs = {"num_train_epochs": task.settings.epochs}
    print("| seed | original lab | course | difference, nats |\n|--:|--:|--:|--:|")
    for seed in seeds:
        losses = []
        for make in (original_trainer, course_trainer):
            trainer = make(task, seed=seed, **epochs)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            model = trainer.accelerator.unwrap_model(trainer.model, False).eval()
            losses.append(held_out_loss(token_losses(model, task.tokenizer, rows)))
        before, after = (one.value for one in losses)
        print(f"| {seed} | {before:.4f} | {after:.4f} | {after - before:+.4f} |")


def small_costs(task: Task) -> None:
    """Two limits: importing `utils.helpers`, and collating 8 rows."""
    code = (
        "import time, torch, transformers; from torch.nn.utils import rnn; "
        "start = time.perf_counter(); import utils.helpers; "
        "print(time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    print(f"import utils.helpers: {float(done.stdout):.3f} s (goal: below 0.1)")
    rows = task.rows.to_list()[:8]
    for tail in (False, True):
        collator = DataCollatorForCompletionOnlyLM(
            task.tokenizer, completion_logits_only=tail
        )
        times = []
        for _ in range(200):
            start = time.perf_counter()
            collator(rows)
            times.append(time.perf_counter() - start)
        milliseconds = 1000 * statistics.median(times)
        kind = "with" if tail else "without"
        print(f"collator {kind} logits_to_keep: {milliseconds:.2f} ms (goal: 1.5)")


# --- on a GPU ---


def save_shape(folder: str, tokenizer: Any, tiny: bool = False) -> None:
    """A model of Dolly-3B's shape with random weights; `tiny` tries the benchmark."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if not tiny:
        shape = {
            "hidden_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 50_280,
        }
    config = GPTNeoXConfig(
        intermediate_size=4 * shape["hidden_size"],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        **({"vocab_size": len(tokenizer)} | shape),
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = GPTNeoXForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def best_tflops() -> float:
    """What this machine reaches in one large matrix product, in TFLOP/s."""
    machine, size = this_machine(), 8192 if this_machine().gpu else 512
    one = torch.randn(size, size, dtype=choose_dtype(machine), device=machine.device)
    times = []
    for _ in range(10):
        synchronise()
        start = time.perf_counter()
        one @ one
        synchronise()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e12


def gpu(task: Task, rounds: int) -> None:
    """Samples a second, peak memory and share of the card's peak on Dolly-3B's shape.

    The original recipe as the lab ran it (8 bits, fp16, LoRA of rank 256 on
    `query_key_value`) against the course's (16 bits, the table's LoRA), and QLoRA. The
    peak is that of one large matrix product.
    """
    lab = replace(
        task.settings,
        lora_r=256,
        lora_alpha=512,
        lora_dropout=0.05,
        target_modules=("query_key_value",),
    )

    def original() -> Trainer:
        base = load_model(lab, quantisation="8bit", dtype=torch.float16)
        collator = DataCollatorForCompletionOnlyLM(task.tokenizer, pad_to_multiple_of=8)
        fp16 = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=task.folder,
            per_device_train_batch_size=8,
            fp16=fp16,
            use_cpu=not fp16,
            **QUIET,
        )
        base = prepare_model_for_kbit_training(base)
        return Trainer(
            model=get_peft_model(base, lora_config(lab)),
            args=arguments,
            train_dataset=task.rows,
            data_collator=collator,
        )

    def qlora() -> Trainer:
        base = load_model(task.settings, quantisation="4bit")
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True)
        quiet = QUIET | {"eval_strategy": "no"}
        return Trainer(
            model=add_lora(base, task.settings),
            args=training_arguments(task.settings, task.folder, **quiet),
            train_dataset=task.rows,
            data_collator=DataCollatorForCompletionOnlyLM(
                task.tokenizer, completion_logits_only=True
            ),
        )

    ways = {
        "original lab": original,
        "course": lambda: course_trainer(task),
        "QLoRA": qlora,
    }
    best = best_tflops()
    print(f"{this_machine()} · {best:.1f} TFLOP/s in one large product")
    print("| | samples/s, median (lowest to highest) | peak memory, GB | of the peak |")
    print("|:--|--:|--:|--:|")
    for name, make in ways.items():
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer = make()
        run = one_epoch(trainer)
        run()
        speeds = sorted(len(task.rows) / run() for _ in range(rounds))
        peak = torch.cuda.max_memory_allocated() / 1e9 if this_machine().gpu else 0
        # Forward and the backward pass to the inputs: 4 operations a weight and token,
        # for the frozen weights get no gradient of their own.
        weights = sum(p.numel() for p in trainer.model.parameters())
        speed = statistics.median(speeds)
        flops = 4 * weights * task.tokens / len(task.rows) * speed / 1e12
        spread = f"({speeds[0]:.1f} to {speeds[-1]:.1f})"
        share = flops / best
        print(f"| {name} | {speed:.1f} {spread} | {peak:.1f} | {share:.1%} |")
        del trainer, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="train on so many rows only")
    parser.add_argument("--quality", action="store_true", help="held-out losses")
    parser.add_argument("--gpu", action="store_true", help="Dolly-3B's shape")
    parser.add_argument("--tiny", action="store_true", help="a small shape for --gpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on each Trainer
    name = run_config().model
    # A folder has no settings of its own: those of the lab model fit its kind.
    known = settings_for(name)
    settings = known
    if name not in MODELS:
        settings = replace(MODELS["lab"], name=known.name, source=known.source)
    with tempfile.TemporaryDirectory() as folder:
        if options.gpu:
            shape = f"{folder}/shape"
            save_shape(shape, load_tokenizer(settings), options.tiny)
            settings = replace(MODELS["dolly"], name="Dolly-3B's shape", source=shape)
            gpu(make_task(settings, folder, options.rows), options.rounds)
        elif options.quality:
            quality(make_task(settings, folder, options.rows), range(3))
        else:
            task = make_task(settings, folder, options.rows)
            small_costs(task)
            ratios(task, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
