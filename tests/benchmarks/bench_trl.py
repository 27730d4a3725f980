"""What TRL's defaults change, how fast it is beside ours, and what a step of DPO does.

    .venv/bin/python tests/benchmarks/bench_trl.py             # the table of defaults
    .venv/bin/python tests/benchmarks/bench_trl.py --speed     # beside train_lora.py
    .venv/bin/python tests/benchmarks/bench_trl.py --votes     # DPO on the lab model

The first two train the lab model on 64 of its questions for two epochs of 8 rows: once
a setting, or by turns, where a ratio is that of the median steps of a turn. On a CPU it
is the processor's time that is counted.

The third tunes the lab model for two epochs, lets it answer each question on trained
facts three times at temperature 1, has simulated readers vote (one in ten errs), and
trains on the pairs for an epoch. It is tested on facts that nobody asked. Each seed
is another tuning and other votes. "by chance" is the control: the same pairs, of
which a coin says which answer is the better one.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import utils  # noqa: F401 - sets how threads wait, before PyTorch is loaded

# isort: split
import pandas
import torch

from utils.course import LAB_DATA
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.evaluation.answers import groups_of, judge_for
from utils.evaluation.scores import proportion
from utils.jobs.dpo import prefer
from utils.jobs.preference import pairs, simulated_votes
from utils.jobs.preference_measured import changes, changes_table, measure
from utils.jobs.trl_compared import defaults_table, run_ours, run_trl
from utils.models import generate, load_model, load_tokenizer, settings_for
from utils.templates import template_for
from utils.training.recipe import add_lora, completion_trainer, training_arguments
from utils.training.rehearsals import bare_rows

ROWS, EPOCHS = 64, 2
SAMPLES = 3
WAYS = {
    "rate 1e-4": {"learning_rate": 1e-4},
    "rate 5e-4": {"learning_rate": 5e-4},
    "rate 1e-4, by chance": {"learning_rate": 1e-4},
}


def lab() -> tuple[Any, Any, Any]:
    settings = settings_for("lab")
    tokenizer = load_tokenizer(settings)
    return settings, tokenizer, template_for(settings, tokenizer)


def compare_trainings(rounds: int) -> None:
    """Print the table of defaults, or with rounds how long a step takes beside ours."""
    settings, _, template = lab()
    frame = load_faqs(LAB_DATA).frame.sample(ROWS, random_state=0)
    framed = [template.add_text(row) for row in frame.to_dict("records")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        lines = [
            json.dumps({key: row[key] for key in ("prompt", "completion")})
            for row in framed
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        told = {"model": settings.source, "train": file, "stop": template.stop[0]}
        told |= {"num_train_epochs": EPOCHS, "use_cpu": not torch.cuda.is_available()}
        if not rounds:
            print(defaults_table(told).to_string())
            return
        ways = {
            "told everything": {},
            "its checkpointing": {"activation_checkpointing": True},
            "its order of rows": {"train_sampling_strategy": "random"},
            "its bf16": {"bf16": True},
            "packing": {"packing": True},
        }
        print(f"Seconds a trained token beside ours, {rounds} turns")
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            ours = run_ours(told)
            for name, options in ways.items():
                run = run_trl(told | options)
                ratios[name].append(pace(run) / pace(ours))
        for name, found in ratios.items():
            low, high = min(found), max(found)
            print(
                f"{name:20s} {statistics.median(found):.2f} ({low:.2f} to {high:.2f})"
            )


def pace(run: Any) -> float:
    """Seconds a trained token: steps of packed rows hold more of them."""
    a_step = run.trained * run.arguments.num_train_epochs / run.steps
    return run.seconds / a_step


def tuned(settings: Any, template: Any, rows: list, seed: int) -> Any:
    model = load_model(settings, device_map="cpu")
    torch.manual_seed(seed)
    model = add_lora(model, settings)
    with tempfile.TemporaryDirectory() as folder:
        how = dict(eval_strategy="no", seed=seed, disable_tqdm=True, bf16=False)
        completion_trainer(
            model,
            template.tokenizer,
            training_arguments(replace(settings, epochs=EPOCHS), folder, **how),
            bare_rows(rows, template, settings.max_length),
        ).train()
    return model


def learn_from_votes(seeds: int) -> None:
    """Print what DPO changes, seed by seed and way by way."""
    settings, tokenizer, template = lab()
    parts = split(load_faqs(LAB_DATA))
    asked = parts["train"].to_list() + parts["wording"].to_list()
    tests = parts["fact"].to_list()
    judge = judge_for(asked + tests, parts["train"].to_list())
    groups = groups_of(tests)
    questions = [row["instruction"] for row in tests]

    def sampled(model: Any, rows: list, first: int, count: int) -> dict[str, list[str]]:
        prompts = [template.prompt(row["instruction"]) for row in rows]
        how = dict(stop=template.stop, do_sample=True, temperature=1.0)
        return {
            f"sample {n}": generate(
                model, tokenizer, prompts, 48, seed=first + n, **how
            )
            for n in range(count)
        }

    for seed in range(seeds):
        began = time.process_time()
        model = tuned(settings, template, parts["train"].to_list(), seed)
        start = {k: v.clone() for k, v in model.state_dict().items() if "lora_" in k}
        answers = sampled(model, asked, 100 * seed, SAMPLES)
        votes = simulated_votes(asked, answers, judge, seed=seed)
        found = pairs(votes, asked, without=questions)
        fresh = simulated_votes(tests, sampled(model, tests, 1000, 2), judge, 0.0)
        held_out = pairs(fresh, tests)
        some = (tokenizer, template, tests, judge, held_out)
        before = measure(model, *some)
        print(f"\n=== seed {seed}: {proportion(before.right, groups)} right\n{found}")
        print(f"held out: {len(held_out)} pairs; {time.process_time() - began:.0f} s")
        coin = random.Random(seed)
        tossed = [
            replace(pair, chosen=pair.rejected, rejected=pair.chosen)
            if coin.random() < 0.5
            else pair
            for pair in found
        ]
        for name, how in WAYS.items():
            model.load_state_dict(start, strict=False)
            began = time.process_time()
            taught = tossed if "chance" in name else list(found)
            with tempfile.TemporaryDirectory() as folder:
                trainer = prefer(
                    model, tokenizer, template, taught, folder, bf16=False, **how
                )
            losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
            took = time.process_time() - began
            print(
                f"--- {name}: {len(losses)} steps, {took:.0f} s of processor,", end=""
            )
            print(f" loss {losses[0]:.3f} to {statistics.mean(losses[-5:]):.3f}")
            show(changes_table(changes(before, measure(model, *some), groups)))


def show(table: pandas.DataFrame) -> None:
    rounded: Mapping[str, Any] = {
        column: table[column].map(lambda one: f"{one:.3f}")
        for column in table.columns[:-1]
    }
    print(table.assign(**rounded).to_string(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--votes", action="store_true", help="what DPO changes")
    parser.add_argument("--speed", action="store_true", help="seconds beside ours")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed")
    parser.add_argument("--seeds", type=int, default=3, help="of the votes")
    options = parser.parse_args()
    pandas.set_option("display.width", 200)
    if options.votes:
        learn_from_votes(options.seeds)
    else:
        compare_trainings(options.rounds if options.speed else 0)


if __name__ == "__main__":
    main()
