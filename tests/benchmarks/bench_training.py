"""How fast the course's training recipe is, beside other ways to train the same rows.

    .venv/bin/python tests/benchmarks/bench_training.py               # ratios
    .venv/bin/python tests/benchmarks/bench_training.py --quality     # held-out losses
    .venv/bin/python tests/benchmarks/bench_training.py --gpu         # Dolly-3B's shape

The ratios are of tokens a second without padding, over whole epochs of the course's
training rows on the lab model. All ways train the same LoRA matrices on the same rows
in batches of the same size; they take turns, and a ratio is the median over the rounds.
Close other programs first. COURSE_MODEL chooses another model, COURSE_DTYPE another
precision than the race does. It says beforehand how long it takes; `--rounds 1` is the
quickest.
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

import utils  # noqa: F401 - sets how threads wait, before PyTorch is loaded

# isort: split
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
from transformers.utils.logging import tqdm

from utils.course import LAB_DATA, run_config, set_seed
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.evaluation.scores import held_out_loss, token_losses
from utils.helpers import DataCollatorForCompletionOnlyLM, add_text, preprocess_batch
from utils.machine import cpu_has_bf16
from utils.models import (
    MODELS,
    ModelSettings,
    choose_dtype,
    load_model,
    load_tokenizer,
    settings_for,
    this_machine,
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
EMULATED = 12  # times as long as in float32 an epoch takes, about
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
    parts = split(load_faqs(LAB_DATA)).map(add_text)
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
    machine = this_machine()
    machine = replace(machine, bf16=changes.pop("bf16", machine.bf16))
    attention = choose_attention(task.settings, machine, longest)
    base = load_model(task.settings, attn_implementation=attention)
    quiet = QUIET | {"eval_strategy": "no"}
    return Trainer(
        model=add_lora(base, task.settings),
        args=training_arguments(
            task.settings, task.folder, machine, **(quiet | changes)
        ),
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


def best_of_grid(
    task: Task, bar: tqdm
) -> tuple[dict[str, Any], Callable[[], float], list[str]]:
    """The fastest of TRL's settings in `GRID`, by one epoch after a warm-up each.

    Returns:
        The settings, a function that trains an epoch, and a line on each setting.
    """
    best: tuple[float, dict[str, Any], Callable[[], float]] | None = None
    lines = []
    for options in grid():
        bar.set_description("TRL's settings")
        run = one_epoch(trl_trainer(task, **options))
        run()
        seconds = run()
        bar.update(2)
        lines.append(f"  TRL {options}: {task.tokens / seconds:,.0f} tokens/s")
        if best is None or seconds < best[0]:
            best = (seconds, options, run)
    return best[1], best[2], lines


def grid() -> list[dict[str, Any]]:
    """TRL's settings to try: in bfloat16 only where that is not emulated."""
    tried = (dict(zip(GRID, values, strict=True)) for values in product(*GRID.values()))
    return [options for options in tried if fast_bf16() or not options["bf16"]]


def fast_bf16() -> bool:
    """Whether nothing here has to emulate bfloat16."""
    return this_machine().gpu is not None or cpu_has_bf16()


# --- what is printed ---


def ratios(task: Task, rounds: int) -> None:
    """The table of ratios."""
    chosen, other = precisions()
    print(f"{this_machine()} · {task.settings.name} · {len(task.rows)} rows, ", end="")
    print(f"{task.tokens:,} tokens an epoch, batches of {task.settings.batch_size}")
    peaks = {name: best_tflops(getattr(torch, name)) for name in (chosen, other)}
    for name, peak in peaks.items():
        print(f"one large product in {name}: {1000 * peak:,.0f} GFLOP/s")
    trainer = course_trainer(task)
    # Forward and the backward pass to the inputs, as in `gpu`.
    work = 4 * sum(p.numel() for p in trainer.model.parameters()) * task.tokens
    ours = f"course, in {chosen}"
    ways = {
        ours: one_epoch(trainer),
        f"course, in {other}": one_epoch(course_trainer(task, bf16=other != "float32")),
        "original lab": one_epoch(original_trainer(task)),
        "TRL, defaults": one_epoch(trl_trainer(task)),
        "TRL, best of the grid": lambda: 0.0,
        "bare loop": bare_loop(task),
    }
    # Emulated bfloat16, which TRL's defaults ask for too: an epoch each has to do.
    slow = [] if fast_bf16() else [f"course, in {other}", "TRL, defaults"]
    ways[ours]()  # warm-up
    once = ways[ours]()
    many = 2 * len(grid()) + len(ways) - len(slow) - 1
    many += rounds * (len(ways) - len(slow))
    minutes = (2 * many + 2 * EMULATED * len(slow)) * once / 60
    print(
        f"An epoch takes {once:.1f} s: all {many + len(slow)} will take about "
        f"{max(1, minutes):.0f} minutes."
        + (
            f" Emulated bfloat16, trained once only: {'; '.join(slow)}." if slow else ""
        ),
        flush=True,
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tqdm(total=many + len(slow), unit="epoch") as bar:
        options, ways["TRL, best of the grid"], lines = best_of_grid(task, bar)
        for number in range(1 + rounds):
            for name, run in ways.items():
                warm_up = number == 0
                if name in slow and number != 1 or name == ours and warm_up:
                    continue
                bar.set_description(name)
                took = run()
                bar.update()
                if not warm_up:
                    seconds[name].append(took)
    print("TRL's settings tried:", *lines, f"best of the grid: {options}", sep="\n")
    print(f"| {rounds} rounds | tokens/s, median (lowest to highest) | ours | goal |")
    print("|:--|--:|--:|--:|")
    for name, times in seconds.items():
        speeds = sorted(task.tokens / one for one in times)
        ratio = [other / own for other, own in zip(times, seconds[ours], strict=False)]
        goal = f"{GOALS[name][not fast_bf16()]} ×" if name in GOALS else ""
        spread = f"({speeds[0]:,.0f} to {speeds[-1]:,.0f})"
        print(
            f"| {name} | {statistics.median(speeds):,.0f} {spread} | "
            f"{statistics.median(ratio):.2f} × ({min(ratio):.2f} to {max(ratio):.2f}) "
            f"| {goal} |"
        )
    speed = work / statistics.median(seconds[ours]) / 1e12
    print(
        f"The course reaches {speed / peaks[chosen]:.0%} of one large product's speed."
    )


def precisions() -> tuple[str, str]:
    """What training multiplies in here (on CPUs the race decides), and what not."""
    names = ["float32", "bfloat16"]
    if this_machine().gpu and not this_machine().bf16:
        names[0] = "float16"
    chosen = names.pop(this_machine().bf16)
    return chosen, names[0]


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
    unlabelled = [{"input_ids": row["input_ids"]} for row in rows]
    for tail, batch in product((False, True), (rows, unlabelled)):
        collator = DataCollatorForCompletionOnlyLM(
            task.tokenizer, completion_logits_only=tail
        )
        times = []
        for _ in range(200):
            start = time.perf_counter()
            collator(batch)
            times.append(time.perf_counter() - start)
        milliseconds = 1000 * statistics.median(times)
        kind = "with" if tail else "without"
        kind += " logits_to_keep, labels " + ("given" if batch is rows else "searched")
        goal = 1.5 if batch is rows else 3
        print(f"collator {kind}: {milliseconds:.2f} ms (goal: {goal})")


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


def best_tflops(dtype: torch.dtype) -> float:
    """What this machine reaches in one large matrix product, in TFLOP/s."""
    machine, size = this_machine(), 8192 if this_machine().gpu else 512
    one = torch.randn(size, size, device=machine.device).to(dtype)
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
    best = best_tflops(choose_dtype(this_machine()))
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
