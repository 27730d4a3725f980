"""What TRL's SFTTrainer does unless it is told otherwise, measured against ours.

Both trainings run as their scripts do, on the same rows. First everything is told: the
losses are equal. Then one setting at a time is set back to what the library takes by
itself, and what that changes is a row of `defaults_table`. The library's values are
read from the library, ours from the run, so that the table follows either.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from utils.temporary import temporary_folder

if TYPE_CHECKING:
    import pandas
    import torch
    from transformers import TrainingArguments

EQUAL = 1e-4
"""Nats: below this, two losses are equal. Other sums of the same numbers differ by
about a hundredth of it."""

UNSEEN = {
    *("output_dir", "run_name", "use_cpu", "disable_tqdm", "save_strategy"),
    "gradient_checkpointing",  # the old name of activation_checkpointing
    "per_device_eval_batch_size",  # nothing is evaluated here
}
"""Arguments that say where to write and what to show, that are another's older name, or
that change no training."""


@dataclass(frozen=True)
class Run:
    """What a training did.

    Attributes:
        losses: as reported, in nats a token; one a step where every step is reported.
        steps: how many were made.
        lengths: tokens of each row, after packing and leaving out, without padding.
        trained: of these tokens, those whose loss counts.
        seconds: a step, the median without the first; see `Clock`.
        weights: what was trained, as it was saved.
        dtype: of the base's weights.
        arguments: of the trainer.
        lora: peft's configuration, as attributes; empty where there is no adapter.
    """

    losses: list[float]
    steps: int
    lengths: list[int]
    trained: int
    seconds: float
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    dtype: str
    arguments: TrainingArguments = field(repr=False)
    lora: Mapping[str, Any] = field(repr=False)

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """How many tokens an epoch has."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Compared:
    """How far a run is from another.

    Attributes:
        first: difference of the first losses, in nats a token.
        largest: of all losses that both report.
        from_step: the first loss that differs by more than `EQUAL`, counted from 1; 0
            if none does.
        weights: largest difference of a trained weight; None where others are trained.
        trained: tokens whose loss counts, as a multiple of the other's.
        seconds: a step, as a multiple of the other's.
    """

    first: float
    largest: float
    from_step: int
    weights: float | None
    trained: float
    seconds: float


class Clock(TrainerCallback):
    """Times each step, from its batch to the optimizer's end.

    Without a GPU it counts the processor's time, to which busy neighbours add little.
    """

    def __init__(self) -> None:
        import torch

        self.seconds: list[float] = []
        gpu = torch.cuda.is_available()
        self._now = time.perf_counter if gpu else time.process_time

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note when the step begins."""
        self._started = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note how long it took."""
        self.seconds.append(self._now() - self._started)


# --- running both ---


def run_ours(options: Mapping[str, Any]) -> Run:
    """Train with `train_lora.py` and return what it did.

    Args:
        options: of its command line, such as `{"model": folder, "train": file}`. The
            adapter goes to a folder for a while.
    """
    from utils.training import train_lora

    clock, kept = Clock(), []

    class Watched(train_lora.RowTrainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.add_callback(clock)
            kept.append(self)

    trainer_class = train_lora.RowTrainer
    with temporary_folder() as folder, _silence():
        train_lora.RowTrainer = Watched  # the script returns nothing
        try:
            train_lora.main(command_line({"output_dir": folder, **options}))
        finally:
            train_lora.RowTrainer = trainer_class
        return _run_of(kept[0], clock, Path(folder))


def run_trl(options: Mapping[str, Any]) -> Run:
    """Train with `with_trl.py` and return what it did; see `run_ours`."""
    from utils.jobs import with_trl

    clock = Clock()
    with temporary_folder() as folder, _silence():
        line = command_line({"output_dir": folder, "answer_tokens": 0, **options})
        return _run_of(with_trl.main(line, [clock]), clock, Path(folder))


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Return options as a shell would pass them; truth values as "true" and "false"."""
    line = []
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        line += [f"--{name}", getattr(value, "value", text)]
    return line


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep bars and the dictionaries of losses from the screen."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def _run_of(trainer: Any, clock: Clock, folder: Path) -> Run:
    from safetensors.torch import load_file

    rows = list(trainer.train_dataset)
    files = sorted(folder.glob("*.safetensors"))
    frozen = [one for one in trainer.model.parameters() if not one.requires_grad]
    base = frozen or list(trainer.model.parameters())
    log = trainer.state.log_history
    adapters = getattr(trainer.model, "peft_config", None)
    return Run(
        losses=[entry["loss"] for entry in log if "loss" in entry],
        steps=trainer.state.global_step,
        lengths=[len(row["input_ids"]) for row in rows],
        trained=sum(_counted(row) for row in rows),
        seconds=statistics.median(clock.seconds[1:] or clock.seconds),
        weights={k: v for file in files for k, v in load_file(file).items()},
        dtype=str(base[0].dtype).removeprefix("torch."),
        arguments=trainer.args,
        lora=vars(adapters["default"]) if adapters else {},
    )


def _counted(row: Mapping[str, Any]) -> int:
    """Return how many labels count: of each text, the first has nothing before it."""
    starts, place = set(), 0
    for length in row.get("seq_lengths") or [len(row["labels"])]:
        starts.add(place)
        place += length
    labels = enumerate(row["labels"])
    return sum(label != -100 and place not in starts for place, label in labels)


def compare(run: Run, other: Run) -> Compared:
    """Return how far a run is from another."""
    gaps = [abs(x - y) for x, y in zip(run.losses, other.losses, strict=False)]
    weights = None
    shapes = [{k: v.shape for k, v in one.weights.items()} for one in (run, other)]
    if shapes[0] == shapes[1]:
        apart = [(run.weights[k] - other.weights[k]).abs().max() for k in shapes[0]]
        weights = max(float(one) for one in apart)
    return Compared(
        first=gaps[0] if gaps else float("nan"),
        largest=max(gaps, default=float("nan")),
        from_step=next((n for n, gap in enumerate(gaps, 1) if gap > EQUAL), 0),
        weights=weights,
        trained=run.trained / other.trained,
        seconds=run.seconds / other.seconds,
    )


# --- one setting at a time ---


@dataclass(frozen=True)
class Setting:
    """Something that TRL does, or offers to do, in another way than we do.

    Attributes:
        name: as the library calls it.
        theirs, ours: the two values.
        options: of `with_trl.py`, which bring the library's way.
        unasked: whether the library does so if it is given prompts, completions and a
            `LoraConfig`, and told nothing else.
        both: options that both runs get beside the common ones, so that it can be seen.
    """

    name: str
    theirs: Any
    ours: Any
    options: Mapping[str, Any]
    unasked: bool = True
    both: Mapping[str, Any] = field(default_factory=dict)


def library_defaults() -> dict[str, Any]:
    """Return what each argument of TRL's `SFTConfig` is if nothing is said."""
    from trl import SFTConfig

    # Without a GPU, bfloat16, which is a default, is refused unless the CPU is named.
    config = SFTConfig(output_dir="unused", use_cpu=True)
    return {one.name: getattr(config, one.name) for one in fields(config) if one.init}


def other_arguments(
    ours: TrainingArguments, told: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the arguments of training that TRL would choose otherwise.

    Args:
        ours: as `train_lora.py` trained with them.
        told: arguments that both are told, so that their defaults do not matter.

    Returns:
        Name → the library's value and ours, as far as both have the argument.
    """
    found = {}
    for name, theirs in library_defaults().items():
        if name in UNSEEN or name in told or not hasattr(ours, name):
            continue
        if theirs != (mine := getattr(ours, name)):
            found[name] = theirs, mine
    return found


def settings(ours: Run, told: Collection[str] = ()) -> list[Setting]:
    """Return everything in which the library's way differs from ours.

    Arguments of training are found by comparing, whatever they are. Rows, adapter and
    packing are no arguments of `train_lora.py`, so that each is named here.

    Args:
        ours: a run of `train_lora.py`.
        told: see `other_arguments`.
    """
    from peft import LoraConfig
    from trl import ModelConfig

    library, lora = library_defaults(), LoraConfig()
    of_command = {one.name: one.default for one in fields(ModelConfig)}
    dropout = of_command["lora_dropout"]
    found = [
        Setting(name, theirs, mine, {name: theirs})
        for name, (theirs, mine) in other_arguments(ours.arguments, told).items()
    ]
    shorter = sorted(ours.lengths)[3 * ours.rows // 4]  # than a quarter of the rows
    cut, whole = {"max_length": shorter}, {"padding_free": True, "max_length": 0}
    found += [
        Setting("end of an answer", "stop and eos", "stop", {"rows": "trl"}),
        Setting(
            "truncation_mode",
            library["truncation_mode"],
            "rows left out",
            {"too_long": "cut"},
            both=cut,
        ),
        Setting("dtype", None, ours.dtype, {"dtype": ""}),
        Setting(
            "lora_alpha",
            lora.lora_alpha,
            ours.lora["lora_alpha"],
            {"alpha": lora.lora_alpha},
        ),
        Setting(
            "target_modules",
            lora.target_modules,
            "all-linear",
            {"target_modules": ""},
        ),
        Setting(
            "lora_dropout",
            lora.lora_dropout,
            ours.lora["lora_dropout"],
            {"lora_dropout": lora.lora_dropout},
        ),
        Setting(
            "lora_dropout of `trl sft`",
            dropout,
            ours.lora["lora_dropout"],
            {"lora_dropout": dropout},
            unasked=False,
        ),
        Setting("peft_config", None, "LoraConfig", {"rank": 0}, unasked=False),
        Setting("rows", "messages", "answers", {"rows": "messages"}, unasked=False),
        Setting("packing", True, False, {"packing": True}, unasked=False),
        Setting("padding_free", True, False, whole, unasked=False),
    ]
    return [one for one in found if one.theirs != one.ours]


COLUMNS = (
    *("setting", "TRL's", "ours", "unasked", "effect on the loss"),
    *("first", "largest", "weights", "trained tokens", "seconds"),
)


def defaults_table(options: Mapping[str, Any]) -> pandas.DataFrame:
    """Train with each of the library's ways alone, and say what it changes.

    The first row is the run with everything told, the last one that with nothing told
    but what both are given.

    Args:
        options: for both scripts, such as model, train, stop, rank and epochs. What
            they name is told to both and gets no row. Rows should differ in length.

    Returns:
        A row a setting. `first` and `largest` are differences of losses in nats a
        token, `weights` is the largest of a trained weight, None where others are
        trained; `trained tokens` and `seconds` (of a step) are multiples of ours.
    """
    import pandas

    ours = [run_ours(options) for _ in range(2)][-1]  # the first one warms up
    every = settings(ours, options)
    unasked = {k: v for one in every if one.unasked for k, v in one.options.items()}
    unasked.pop("too_long")  # no row is too long for what both are told
    matched = Setting("everything told", "", "", {}, unasked=False)
    untold = Setting("nothing told", "", "", unasked)
    rows = []
    for setting in (matched, *every, untold):
        run, base = _tried(setting, options, ours)
        found = compare(run, base)
        theirs = run.dtype if setting.name == "dtype" else setting.theirs
        shown = [_shown(theirs), _shown(setting.ours), setting.unasked]
        figures = [found.first, found.largest, found.weights]
        figures += [found.trained, found.seconds]
        rows.append([setting.name, *shown, effect(run, base), *figures])
    return pandas.DataFrame(rows, columns=list(COLUMNS)).set_index("setting")


def left_table(
    options: Mapping[str, Any], ours: Run, names: Sequence[str]
) -> pandas.DataFrame:
    """Train with some of the library's ways, each alone; a quick look at a few.

    Args:
        options: as `defaults_table` has them.
        ours: a run of `train_lora.py` with them.
        names: of the settings that are left to the library, in this order.

    Returns:
        A row a setting: both values, what that does to the loss, and the tokens that
        count as a multiple of ours.
    """
    import pandas

    known = {one.name: one for one in settings(ours, options)}
    rows = {}
    for setting in (known[name] for name in names):
        run, base = _tried(setting, options, ours)
        rows[setting.name] = {
            "TRL's": _shown(setting.theirs),
            "ours": _shown(setting.ours),
            "effect on the loss": effect(run, base),
            "trained tokens": run.trained / base.trained,
        }
    return pandas.DataFrame.from_dict(rows, orient="index")


def _tried(setting: Setting, options: Mapping[str, Any], ours: Run) -> tuple[Run, Run]:
    """Return a run with the library's way, and ours that it is to be compared with."""
    run = run_trl({**options, **setting.both, **setting.options})
    return run, run_ours({**options, **setting.both}) if setting.both else ours


def _shown(value: Any) -> str:
    return str(getattr(value, "value", value))


def effect(run: Run, other: Run) -> str:
    """Say in words what sets a run's losses apart from another's."""
    found = compare(run, other)
    if run.steps != other.steps:
        return f"{run.steps} steps in place of {other.steps}"
    if len(run.losses) != len(other.losses):
        same = found.weights is not None and found.weights < EQUAL
        trained = "same training" if same else "another training"
        return f"{len(run.losses)} means in place of {len(other.losses)}, {trained}"
    if not found.from_step:
        return "none"
    return f"from step {found.from_step}, up to {found.largest:.2g}"
