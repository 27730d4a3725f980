"""Small runs beside the one that counts: to overfit, to be killed, to compare.

What they do is what lesson 04 types out for its own run, with `recipe`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from utils.course import set_seed
from utils.dataset.faqs import load_faqs
from utils.evaluation.answers import groups_of
from utils.helpers import DEFAULT_SEED
from utils.models import ModelSettings, load_model, load_tokenizer, this_machine
from utils.templates import Template, template_for
from utils.training.recipe import add_lora, completion_trainer, training_arguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, Trainer

Rows = list[dict[str, list[int]]]


def bare_rows(
    records: Sequence[Mapping[str, Any]], template: Template, max_length: int | None
) -> Rows:
    """Return rows to train with, framed and labelled, without notes.

    First used in experiment 08_several_workers, section 1.

    Args:
        records: with `instruction` and `response`.
        template: to frame them in.
        max_length: most tokens of a row; None for no limit.
    """
    texts = [template.add_text({**record, "context": ""}) for record in records]
    columns = {
        name: [text[name] for text in texts] for name in ("prompt", "completion")
    }
    encoded = template.preprocess_batch(columns, max_length)
    values = zip(*encoded.values(), strict=True)
    return [dict(zip(encoded, row, strict=True)) for row in values]


def noted_rows(records: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the rows whose notes hold the answer, with what a Trainer needs of them.

    First used in lesson 04, section 2.

    Args:
        records: of a data set that lesson 03 wrote. All are returned where no row has
            a note.
    """
    some = [one for one in records if one["response"] in (one.get("context") or "")]
    names = ("input_ids", "attention_mask", "labels")
    return [{name: one[name] for name in names} for one in some or records]


def reworded_rows(
    dataset: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], count: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return trained rows on different things, and each thing asked in other words.

    First used in lesson 04, section 5.

    Args:
        dataset: with a part `wording`. Without it there are no second rows.
        trained: training rows, in the order in which they are chosen.
        count: how many of each, at most.
    """
    others = list(dataset["wording"]) if "wording" in dataset else []
    by_group = dict(zip(groups_of(others), others, strict=True))
    few = dict(zip(reversed(groups_of(trained)), reversed(trained), strict=True))
    chosen = [group for group in reversed(few) if group in by_group][:count]
    if not chosen:
        return [few[group] for group in reversed(few)][:count], []
    return [few[group] for group in chosen], [by_group[group] for group in chosen]


def wrapped_shapes(model: PeftModel) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every layer that peft has wrapped, by name.

    First used in lesson 04, section 3.
    """
    return {
        name: (layer.in_features, layer.out_features)
        for name, layer in model.named_modules()
        if hasattr(layer, "base_layer")
    }


def question_rows(
    settings: ModelSettings, data: str | Path, count: int, seed: int = DEFAULT_SEED
) -> tuple[PreTrainedTokenizerBase, Rows]:
    """Return a model's tokenizer, and some questions of a file as rows to train with.

    First used in lesson 04, section 3.

    Args:
        settings: of the model.
        data: as `load_faqs` takes it.
        count: how many, drawn at random; all, if there are fewer.
        seed: of the drawing.
    """
    tokenizer = load_tokenizer(settings)
    frame = load_faqs(data).frame
    some = frame.sample(min(count, len(frame)), random_state=seed).to_dict("records")
    template = template_for(settings, tokenizer)
    return tokenizer, bare_rows(some, template, settings.max_length)


def side_run(
    model: PeftModel,
    name: str,
    settings: ModelSettings,
    template: Template,
    trained: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    reworded: Sequence[Mapping[str, Any]],
    rate: float,
    epochs: int,
    batch_size: int = 3,
) -> list[dict[str, float]]:
    """Train a further adapter of a model, without notes, at one steady rate.

    It stays the active one.

    First used in lesson 04, section 5.

    Args:
        model: with an adapter named "default", whose configuration is taken.
        name: of the new adapter.
        settings: of the model.
        template: to frame the records in.
        trained: records to train with.
        held_out: records whose loss is measured before it, and after each epoch.
        reworded: what was trained, in other words, to measure as well; may be empty.
        rate: the learning rate, the same in all steps.
        epochs: how many.
        batch_size: records to a step.

    Returns:
        The Trainer's log: `loss`, `eval_loss` of `held_out`, `eval_reworded_loss`; in
        nats a token.
    """
    set_seed()
    model.add_adapter(name, model.peft_config["default"])
    model.set_adapter(name)
    rows, others, again = (
        bare_rows(some, template, settings.max_length) if some else []
        for some in (trained, held_out, reworded)
    )
    how = {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(settings, folder, this_machine(), **how)
        trainer = completion_trainer(model, template.tokenizer, arguments, rows, others)
        if again:
            trainer.eval_dataset = {"others": others, "reworded": again}
        trainer.train()
    model.eval()
    return [
        {key.replace("eval_others_", "eval_"): value for key, value in row.items()}
        for row in trainer.state.log_history
    ]


def small_trainer(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    folder: str | Path,
    *callbacks: TrainerCallback,
    epochs: int = 3,
) -> Trainer:
    """Return a Trainer for a fresh adapter, which saves a checkpoint after each epoch.

    First used in lesson 04, section 6.

    Args:
        settings: of a small model.
        tokenizer: of the model.
        rows: to train with.
        folder: for the checkpoints.
        *callbacks: called at fixed points of the loop, beside its own.
        epochs: how many.
    """
    set_seed()
    how = {"save_strategy": "epoch", "num_train_epochs": epochs, "disable_tqdm": True}
    arguments = training_arguments(settings, folder, eval_strategy="no", **how)
    model = add_lora(load_model(settings), settings)
    trainer = completion_trainer(model, tokenizer, arguments, rows)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


class PulledPlug(TrainerCallback):
    """Kills a run after a step, as Ctrl-C does.

    First used in lesson 04, section 6.
    """

    def __init__(self, step: int) -> None:
        """Remember after which step."""
        self.step = step

    def on_step_end(self, args, state, control, **_) -> None:
        """Raise KeyboardInterrupt after it."""
        if state.global_step == self.step:
            raise KeyboardInterrupt
