"""What this machine offers to a training run, and how its threads wait for each other.

And what libraries say on some machines only, which is kept from the notebooks.

Importing this module imports no torch: what `openmp_environment` gives must stand in
the environment before PyTorch loads its OpenMP library, which reads it once.
"""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# How long a thread that has nothing to do looks for work before it sleeps: in looks
# (libgomp, PyTorch's on Linux) or milliseconds (libomp and libiomp5, elsewhere). No one
# setting does for all. On two free cores of a virtual machine, anything much shorter
# than LONG_SPIN costs more than a tenth, since waking a sleeping thread takes long.
# Beside a busy program, anything much longer than SHORT_SPIN costs more than half,
# since the threads spend their share of the processor on looking: libgomp's own 300,000
# looks are as long as such a share. So what is seen at the start decides.
# Measured by tests/benchmarks/bench_threads.py.
LONG_SPIN = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
SHORT_SPIN = {"GOMP_SPINCOUNT": "100", "KMP_BLOCKTIME": "0"}
LOOK_SECONDS = 0.1  # at the processors, to see whether they are free

# Words of lines that libraries log on some machines only, by the logger, which is named
# for the module. They ask nothing of a learner, and a notebook's stored outputs, stderr
# among them, must hold on every machine.
MACHINE_LINES: tuple[tuple[str, str], ...] = (
    # A processor with AVX512-BF16: a faster 4-bit kernel, which no course model needs.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
    # A Linux before 5.5, such as RHEL 8: processes may wait for each other in vain. The
    # course trains in one process.
    ("accelerate.utils.other", "which is below the recommended minimum of"),
    # No git: MLflow's runs do not name the commit. It says so three times, at length.
    ("mlflow.utils.git_utils", "Failed to import Git"),
    # The first plot on a machine with many fonts, or a slow one.
    ("matplotlib.font_manager", "Matplotlib is building the font cache"),
    # A home folder that cannot be written to, three lines: fonts are looked up anew.
    ("matplotlib", "mkdir -p failed for path"),
    ("matplotlib", "is not a writable directory"),
    ("matplotlib", "Matplotlib created a temporary cache directory"),
)
# The same for Python's warnings. NVIDIA's driver on a machine without a card, such as a
# CPU instance with an image for GPUs. Of a card with a wrong driver PyTorch has
# another warning, which stays.
MACHINE_WARNINGS = ("Can't initialize NVML",)

# bfloat16 must be faster than float32 by so much: it rounds more coarsely, and where
# the two are about as fast, the choice should not change from one run to the next.
MARGIN = 1.15
ROUNDS = 8  # of the race, after a round that does not count
TOKENS = 800  # in a batch of the course's training rows, about
# Floating-point operations of one pass, so that all rounds take about half a second.
# Wide layers are cut to a slice that fits: the speed of a slice is that of the layer.
MOST_OPERATIONS = 2.5e9
NARROWEST = 64
RANK = 16

Shape = tuple[int, int]
# (inputs, outputs) of the linear layers in a block of the lab model.
LAB_SHAPES: tuple[Shape, ...] = ((192, 576), (192, 192), (192, 768), (768, 192))


# --- threads ---


def openmp_environment(
    environ: Mapping[str, str], busy: bool | None = None
) -> dict[str, str]:
    """Return variables that say how long waiting OpenMP threads look for work.

    Args:
        environ: the variables that are set. What they say on waiting threads stays.
        busy: whether other programs leave too few processors; found out if needed.
    """
    if "OMP_WAIT_POLICY" in environ or all(name in environ for name in SHORT_SPIN):
        return {}
    busy = others_are_busy(environ) if busy is None else busy
    chosen = SHORT_SPIN if busy else LONG_SPIN
    return {name: value for name, value in chosen.items() if name not in environ}


def others_are_busy(environ: Mapping[str, str] = os.environ) -> bool:
    """Look for a moment whether fewer processors are free than PyTorch has threads.

    Without psutil there is no PyTorch yet: `utils.course check` then says what to do.
    """
    try:
        import psutil
    except ImportError:
        return False

    loads = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        loads = [load for cpu, load in enumerate(loads) if cpu in allowed] or loads
    threads = environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if threads.isdecimal():
        needed = int(threads)
    else:
        needed = psutil.cpu_count(logical=False) or len(loads)
    free = sum(1 - load / 100 for load in loads)
    return free < min(needed, len(loads)) - 0.5


def prepare_openmp() -> None:
    """Set those variables for this process and all that it starts.

    Do nothing where torch is already loaded: it would not notice, and `Machine` would
    name a setting that does not hold.
    """
    if "torch" not in sys.modules:
        os.environ.update(openmp_environment(os.environ))


def openmp_setting(environ: Mapping[str, str] = os.environ) -> str:
    """Return how waiting threads are set, such as "OMP_WAIT_POLICY=passive"."""
    names = ("OMP_WAIT_POLICY", *SHORT_SPIN)
    found = [f"{name}={environ[name]}" for name in names if name in environ]
    return ", ".join(found) or "waiting threads as OpenMP has it"


# --- what libraries say of a machine ---


def prepare_output() -> None:
    """Let no text stop a program whose terminal or log has no code for it.

    A terminal may be ASCII alone, or of another country; a path may hold bytes that are
    no letters. Such a character is shown as its number, as Python does on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def hide_machine_lines() -> None:
    """Drop MACHINE_LINES and MACHINE_WARNINGS; all else that libraries say is shown.

    The libraries need not be loaded: a logger is found again by its name.
    """
    for name, words in MACHINE_LINES:
        logging.getLogger(name).addFilter(_without(words))
    for words in MACHINE_WARNINGS:
        warnings.filterwarnings("ignore", message=words)


def _without(words: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: words not in str(record.msg)


# --- the machine ---


@dataclass(frozen=True, repr=False)
class Machine:
    """What this machine offers to a training run.

    Attributes:
        gpu: the card's name, or None.
        gpu_gigabytes: its memory; 0 without a card.
        gpu_free_gigabytes: how much of it is free now.
        bf16: training multiplies in bfloat16 here: a card has it in hardware, on a CPU
            it has won the race against float32, or COURSE_DTYPE says so.
        threads: how many CPU threads PyTorch uses.
        capability: the card's compute capability, such as "8.6"; None without one.
        cuda: the CUDA version that PyTorch was built with; None without a card.
        precision: what decided on bfloat16, in a few words.
        waiting: how waiting CPU threads are set.
    """

    gpu: str | None
    gpu_gigabytes: float
    gpu_free_gigabytes: float
    bf16: bool
    threads: int
    capability: str | None = None
    cuda: str | None = None
    precision: str = ""
    waiting: str = ""

    @property
    def device(self) -> str:
        """Return "cuda" or "cpu", as PyTorch calls them."""
        return "cuda" if self.gpu else "cpu"

    def __str__(self) -> str:
        """Return one line."""
        arithmetic = self.precision or (
            "bfloat16 in hardware" if self.bf16 else "no bfloat16 in hardware"
        )
        if not self.gpu:
            threads = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}"
            waiting = f" ({self.waiting})" if self.waiting else ""
            return f"no GPU · {threads}{waiting} · {arithmetic}"
        parts = [
            self.gpu,
            f"{self.gpu_gigabytes:.1f} GB, {self.gpu_free_gigabytes:.1f} GB free",
            arithmetic,
        ]
        if self.capability:
            parts.append(f"compute capability {self.capability}")
        if self.cuda:
            parts.append(f"CUDA {self.cuda}")
        return " · ".join(parts)

    __repr__ = __str__


# --- the precision race ---


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself (AVX512-BF16 or AMX).

    PyTorch's own switch ATEN_CPU_CAPABILITY=avx2 makes an older processor of it.
    """
    import torch

    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


@dataclass(frozen=True)
class Race:
    """Seconds of a training pass in either precision, the shortest of all rounds."""

    float32: float
    bfloat16: float

    @property
    def ratio(self) -> float:
        """How many times as fast as float32 bfloat16 is."""
        return self.float32 / self.bfloat16

    @property
    def winner(self) -> str:
        """Return "bfloat16" if it is faster by the margin, else "float32"."""
        return "bfloat16" if self.ratio >= MARGIN else "float32"

    def __str__(self) -> str:
        """Return the winner, and by how much."""
        return (
            f"trains in {self.winner}: in a race bfloat16 was {self.ratio:.2f} times "
            "as fast as float32"
        )


def fastest_cpu_dtype(shapes: Sequence[Shape] = LAB_SHAPES) -> torch.dtype:
    """Return the type in which this CPU trains linear layers of these shapes faster.

    A CPU without instructions for bfloat16 emulates them, a dozen times as slowly, and
    runs no race.

    Args:
        shapes: (inputs, outputs) of each layer.
    """
    import torch

    if not cpu_has_bf16():
        return torch.float32
    return getattr(torch, precision_race(tuple(shapes)).winner)


@cache
def precision_race(shapes: tuple[Shape, ...]) -> Race:
    """Time a training pass in float32 and in bfloat16, by turns.

    The pass is what the recipe does in a linear layer: frozen weights in 32 bits, a
    pair of LoRA matrices, forward and backward, and under autocast every conversion
    that this takes. The shortest time counts, since whatever else the machine does can
    only add to it. The state of the random number generators stays as it is.
    """
    passes = _training_passes(shapes)
    times: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(1 + ROUNDS):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    return Race(**{name: min(seconds) for name, seconds in times.items()})


def _slices(shapes: Sequence[Shape]) -> list[Shape]:
    """Return the shapes, cut so that a pass has at most MOST_OPERATIONS."""
    # Two products, forward and to the inputs, with two operations a weight and token.
    operations = 4 * TOKENS * sum(inputs * outputs for inputs, outputs in shapes)
    parts = max(1, math.ceil(operations / MOST_OPERATIONS))
    return [
        (inputs, min(outputs, max(NARROWEST, outputs // parts)))
        for inputs, outputs in shapes
    ]


def _training_passes(shapes: Sequence[Shape]) -> dict:
    """Return a function for each precision that does one pass through the layers."""
    import torch
    from torch.nn.functional import linear

    generator = torch.Generator().manual_seed(0)

    def numbers(*size: int, trained: bool = False) -> torch.Tensor:
        values = torch.randn(*size, generator=generator, dtype=torch.float32)
        return values.requires_grad_(trained)

    layers = [
        (
            numbers(TOKENS, inputs, trained=True),
            numbers(outputs, inputs),
            numbers(RANK, inputs, trained=True),
            numbers(outputs, RANK, trained=True),
        )
        for inputs, outputs in _slices(shapes)
    ]

    def run(short: bool) -> None:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=short),
        ):
            outputs = [
                linear(states, weights) + linear(linear(states, down), up)
                for states, weights, down, up in layers
            ]
        trained = [one for layer in layers for one in layer if one.requires_grad]
        torch.autograd.grad(outputs, trained, [torch.ones_like(o) for o in outputs])

    return {"float32": lambda: run(False), "bfloat16": lambda: run(True)}
