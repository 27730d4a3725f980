"""Direct preference optimisation with TRL: an adapter learns from pairs of answers.

    trainer = prefer(model, tokenizer, template, found, folder)

What that changed is for `preference_measured` to say: a falling loss does not.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.helpers import DEFAULT_SEED
from utils.jobs.preference import AnswerPair, PreferenceError
from utils.models import generate, this_machine

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase
    from trl import DPOTrainer

    from utils.machine import Machine
    from utils.templates import Template

BETA = 0.1
"""How much a step away from the reference costs: TRL's default, and that of the paper
(Rafailov et al., arXiv 2305.18290, appendix B)."""
LEARNING_RATE = 1e-4
"""On the lab model, for a step of 20 batches. With five times as much, or many more
batches, the margin grows further while right answers are lost, in some runs
(tests/benchmarks/bench_trl.py --votes)."""
REFERENCE = "ref"  # TRL's name for its copy of the adapter


def sampled_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: Sequence[Mapping[str, Any]],
    count: int,
    max_new_tokens: int = 48,
    seed: int = DEFAULT_SEED,
) -> dict[str, list[str]]:
    """Draw answers at temperature 1, so that readers have different ones to vote on.

    First used in experiment 08_several_workers, section 6.

    Args:
        model: that answers.
        tokenizer: of the model.
        template: that it was tuned in.
        rows: with the question as `instruction`.
        count: of answers to each question.
        max_new_tokens: most tokens of an answer.
        seed: of the first draw; each further one adds 1.

    Returns:
        "sample 0", "sample 1", … → the answers, in the order of the rows.
    """
    prompts = [template.prompt(row["instruction"]) for row in rows]
    how = dict(stop=template.stop, do_sample=True, temperature=1.0)
    return {
        f"sample {number}": generate(
            model, tokenizer, prompts, max_new_tokens, seed=seed + number, **how
        )
        for number in range(count)
    }


def pair_rows(some: Iterable[AnswerPair], template: Template) -> list[dict[str, str]]:
    """Return pairs as `DPOTrainer` reads them: `prompt`, `chosen`, `rejected`.

    Args:
        some: pairs.
        template: that the model was tuned in; it frames question and answers.
    """
    rows = []
    for pair in some:
        texts = {}
        for name in ("chosen", "rejected"):
            record = {"instruction": pair.question, "response": getattr(pair, name)}
            made = template.add_text(record)
            texts |= {"prompt": made["prompt"], name: made["completion"]}
        rows.append(texts)
    return rows


def prefer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    some: Sequence[AnswerPair],
    folder: str | Path,
    machine: Machine | None = None,
    **changes: Any,
) -> DPOTrainer:
    """Train a tuned adapter on by direct preference optimisation, with TRL.

    DPO (Rafailov et al., arXiv 2305.18290) raises the probability of the chosen answer
    over the rejected one, relative to a reference that stands still:
    loss = -log sigmoid(beta * ((log p/p_ref)(chosen) - (log p/p_ref)(rejected))).

    The reference is the adapter as it stands when the training begins: TRL copies it
    into a second, frozen adapter of the same base, which costs the adapter's size and
    no second model. With the adapter disabled the reference would be the untuned base,
    towards which the loss would then pull. The first loss tells them apart: while model
    and reference agree it is log 2.

    First used in experiment 08_several_workers, section 6.

    Args:
        model: base and tuned adapter; the adapter is trained in place.
        tokenizer: of the model; it is not changed.
        template: that the adapter was tuned in.
        some: pairs.
        folder: where the trainer may write.
        machine: by default the one this runs on.
        **changes: arguments of `DPOConfig` to replace, such as `max_steps=4`.

    Returns:
        The trainer, trained; `state.log_history` holds loss, rewards and margins. The
        reference is gone: it cannot train on or evaluate.

    Raises:
        PreferenceError: if there are no pairs.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    if not len(some):
        raise PreferenceError(
            "There are no pairs to learn from: gather votes on at least two answers to "
            "a question, or give `references` to `pairs`."
        )
    machine = machine or this_machine()
    arguments = dict(
        output_dir=str(folder),
        beta=BETA,
        learning_rate=LEARNING_RATE,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        max_length=None,
        activation_checkpointing=False,
        bf16=machine.bf16,
        fp16=machine.gpu is not None and not machine.bf16,
        use_cpu=machine.gpu is None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=DEFAULT_SEED,
    )
    tokenizer = copy.deepcopy(tokenizer)
    if template.stop[0] in tokenizer.get_vocab():
        # Else TRL would append another end of text to each answer, and teach it.
        tokenizer.eos_token = template.stop[0]
    with _without_bars():
        trainer = DPOTrainer(
            model,
            args=DPOConfig(**(arguments | changes)),
            train_dataset=Dataset.from_list(pair_rows(some, template)),
            processing_class=tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        model.set_adapter("default")
        model.delete_adapter(REFERENCE)
        vars(model.get_base_model()).pop("forward", None)  # TRL's, in place of its own
    return trainer


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the bars of preparing rows from the screen."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
