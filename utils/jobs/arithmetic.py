"""Memory and time of a training run, on paper.

Nothing here is measured on a GPU. The counts of numbers are exact (`shapes`), and what
a block keeps for the backward pass was counted in PyTorch (a test counts again). The
rest is arithmetic whose assumptions are arguments: how many bytes a number takes, what
share of a GPU's speed a run reaches.

A GB is 10⁹ bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from utils.course import CourseError
from utils.jobs.shapes import ALL_LINEAR, Shape, shape_of

if TYPE_CHECKING:
    import pandas

GB = 1e9
METHODS = ("full", "LoRA", "QLoRA")


class PaperError(CourseError, ValueError):
    """A number with which nothing can be computed; the message names it."""


class Bytes(NamedTuple):
    """Bytes for each number that is trained."""

    weights: float
    gradients: float
    adam: float  # its two averages together

    @property
    def all(self) -> float:
        """Their sum."""
        return sum(self)


# How a model that is trained as a whole is held.
PRECISIONS = {
    # A model loaded in bfloat16 and given to AdamW as it is. Small updates get lost.
    "16 bits": Bytes(2, 2, 4),
    # The count behind the QLoRA paper's 780 GB for 65B.
    "16 bits, Adam in 32": Bytes(2, 2, 8),
    # Weights in 32 bits that are multiplied in 16: autocast, FSDP's mixed precision.
    "mixed": Bytes(4, 4, 8),
}
BASE_BYTES = 2  # of a frozen weight in 16 bits
# peft holds LoRA's matrices in 32 bits, and so are their gradients and averages.
LORA_BYTES = PRECISIONS["mixed"]
# QLoRA (arXiv 2305.14314, section 3): 4 bits, an 8-bit constant for each 64 weights,
# and a 32-bit one for each 256 of those.
QLORA_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# Bytes that a block keeps of each token for the backward pass, in bfloat16 with fused
# attention (PyTorch's "sdpa"): of each number of the hidden state, of keys and values
# (of one of them), of the wide middle; and of each rank of each LoRA layer. Counted in
# torch 2.13 and transformers 5.23; with LoRA peft 0.21 also keeps 32-bit copies.
KEPT = {
    ("llama", False): (20, 4, 8, 0),
    ("llama", True): (36, 4, 10, 4),
    ("gpt_neox", False): (20, 0, 4, 0),
    ("gpt_neox", True): (26, 0, 6, 4),
}
# Of each token and word of the vocabulary, where the loss is computed: logits in 16
# bits, in 32 bits, and their log-softmax.
LOGIT_BYTES = 2 + 4 + 4


@dataclass(frozen=True)
class Job:
    """A training run, as far as its memory and time depend on it.

    First used in experiment 08_several_workers, section 4.

    Attributes:
        model: a name of data/jobs/models.json.
        method: "full", "LoRA" or "QLoRA".
        rows: that one GPU computes at once.
        length: tokens of a row.
        rank: of LoRA.
        modules: layers with LoRA; "all-linear" or names.
        precision: of a full run, one of `PRECISIONS`.
        checkpointing: whether a block keeps only its input, and is computed twice.
        answer_share: of the tokens for which logits are computed.
    """

    model: str
    method: str
    rows: int = 1
    length: int = 1024
    rank: int = 16
    modules: str | tuple[str, ...] = ALL_LINEAR
    precision: str = "mixed"
    checkpointing: bool = True
    answer_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed with."""
        for name, given, allowed in (
            ("method", self.method, METHODS),
            ("precision", self.precision, tuple(PRECISIONS)),
        ):
            if given not in allowed:
                raise PaperError(
                    f"{name}: found {given!r}. Give one of {', '.join(allowed)}."
                )
        for name in ("rows", "length", "rank"):
            if getattr(self, name) < 1:
                raise PaperError(
                    f"{name}: found {getattr(self, name)}. Give a whole number above 0."
                )

    @property
    def shape(self) -> Shape:
        """The model's shape."""
        return shape_of(self.model)

    @property
    def tokens(self) -> int:
        """Tokens that one GPU computes at once."""
        return self.rows * self.length

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        if self.method == "full":
            return self.shape.parameters
        return self.shape.lora(self.rank, self.modules)


# --- memory ---------------------------------------------------------------------------


def base_bytes(shape: Shape, method: str) -> float:
    """Return the bytes of the frozen base; 0 for a full run, which has none.

    With QLoRA the linear layers of the blocks are packed. Embeddings, head and norms
    stay in 16 bits.
    """
    if method == "full":
        return 0.0
    packed = shape.linear_weights if method == "QLoRA" else 0
    return packed * QLORA_BITS / 8 + (shape.parameters - packed) * BASE_BYTES


def activation_bytes(job: Job) -> float:
    """Return what a forward pass keeps for the backward pass, in the blocks.

    With checkpointing that is the input of each block in 16 bits, and all of the one
    that is computed again.

    Raises:
        PaperError: for a kind of model that was not counted.
    """
    shape = job.shape
    kind = shape.config["model_type"]
    if (kind, False) not in KEPT:
        raise PaperError(
            f"{shape.title}: what a block of a {kind} keeps was not counted, only of "
            f"{', '.join(sorted({one for one, _ in KEPT}))}."
        )
    lora = job.method != "full"
    hidden, keys, wide, rank = KEPT[kind, lora]
    layers = len(shape.linear if job.modules == ALL_LINEAR else job.modules)
    block = job.tokens * (
        hidden * shape.hidden
        + keys * shape.key_values
        + wide * shape.wide
        + (rank * job.rank * layers if lora else 0)
    )
    if not job.checkpointing:
        return shape.layers * block
    return shape.layers * 2 * job.tokens * shape.hidden + block


def gathered_bytes(job: Job, gpus: int) -> float:
    """Return what FSDP gathers at a time: the unit computed, and the one fetched next.

    A unit is a block, or the table of the embeddings. On one GPU nothing is gathered.
    """
    if gpus == 1:
        return 0.0
    shape = job.shape
    share = 1.0
    if job.method == "QLoRA":
        packed = shape.linear_weights / shape.layers / shape.block
        share = packed * QLORA_BITS / 8 / BASE_BYTES + (1 - packed)
    units = [shape.block * share, shape.block * share, shape.embedding]
    return BASE_BYTES * sum(sorted(units)[-2:])


def memory_parts(job: Job, gpus: int = 1) -> dict[str, float]:
    """Return what each GPU holds at the peak, by part, in GB.

    FSDP shares out weights, gradients and Adam's averages. Activations belong to the
    rows of a GPU and are not shared.

    Args:
        job: the run.
        gpus: among which FSDP shares the model; 1 for no sharing.

    Raises:
        PaperError: if `gpus` is below 1, or the model's kind was not counted.
    """
    if gpus < 1:
        raise PaperError(f"gpus: found {gpus}. Give a whole number above 0.")
    states = PRECISIONS[job.precision] if job.method == "full" else LORA_BYTES
    shape = job.shape
    parts = {
        "base": base_bytes(shape, job.method) / gpus,
        "trained weights": states.weights * job.trained / gpus,
        "gradients": states.gradients * job.trained / gpus,
        "Adam": states.adam * job.trained / gpus,
        "gathered": gathered_bytes(job, gpus),
        "activations": activation_bytes(job),
        "logits": LOGIT_BYTES * job.tokens * job.answer_share * shape.vocabulary,
    }
    return {name: found / GB for name, found in parts.items()}


def gigabytes(job: Job, gpus: int = 1) -> float:
    """Return what each GPU holds at the peak, in GB."""
    return sum(memory_parts(job, gpus).values())


def memory_table(
    models: Sequence[str], methods: Sequence[str] = METHODS, gpus: int = 1, **more
) -> pandas.DataFrame:
    """Return a row for each model and method: what each GPU holds, by part, in GB.

    First used in lesson 08, section 8.

    Args:
        models: names of data/jobs/models.json.
        methods: some of `METHODS`.
        gpus: among which FSDP shares the model.
        **more: further arguments of `Job`.
    """
    import pandas

    rows = []
    for model in models:
        for method in methods:
            job = Job(model, method, **more)
            parts = memory_parts(job, gpus)
            rows.append(
                {
                    "model": job.shape.title,
                    "method": method,
                    "trained (million)": job.trained / 1e6,
                    **{f"{name} (GB)": found for name, found in parts.items()},
                    "each GPU (GB)": sum(parts.values()),
                }
            )
    return pandas.DataFrame(rows)


# --- time -----------------------------------------------------------------------------


def flops_per_token(job: Job) -> float:
    """Return the floating-point operations of a trained token.

    A multiplication with a weight is 2 operations (multiply, add). Forward: 2 for each
    weight. Backward: 2 for the gradient of what came in, and 2 for the weight's own.
    So 6 in all (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). A frozen weight
    has no gradient of its own: 4. Checkpointing computes the blocks once more: 2 more
    (in a full run PyTorch spares a block's last product of them).
    Attention adds 12 · layers · hidden · length, counted as if each token saw the
    whole row (PaLM, arXiv 2204.02311, appendix B), and a third of it again.

    With QLoRA unpacking the weights costs time that is not counted here.
    """
    shape = job.shape
    again = 2 if job.checkpointing else 0
    blocks = shape.layers * shape.block
    frozen = 4 if job.method != "full" else 6
    weights = (frozen + again) * blocks + frozen * shape.embedding  # the head
    lora = (6 + again) * job.trained if job.method != "full" else 0
    attention = 12 * shape.layers * shape.hidden * job.length
    return weights + lora + attention * (1 + again / 6)


def gpu_hours(job: Job, tokens: float, teraflops: float, mfu: float) -> float:
    """Return the hours of one GPU that training takes; share them among GPUs.

    Args:
        job: the run.
        tokens: trained on in all, all passes together, padding included.
        teraflops: of the GPU at its best, in 10¹² operations a second, in the
            precision that is multiplied in.
        mfu: model FLOPs utilisation, the share of that which a run reaches. An
            assumption: Llama 3 405B reached 0.38 to 0.43 on thousands of H100s
            (arXiv 2407.21783, table 4); small batches and slow links reach less.

    Raises:
        PaperError: if a number is not above 0, or `mfu` is above 1.
    """
    for name, given in (("tokens", tokens), ("teraflops", teraflops), ("mfu", mfu)):
        if not 0 < given < float("inf") or (name == "mfu" and given > 1):
            raise PaperError(
                f"{name}: found {given!r}. Give a number above 0"
                + (", up to 1." if name == "mfu" else ".")
            )
    return flops_per_token(job) * tokens / (teraflops * 1e12 * mfu) / 3600


# --- traffic --------------------------------------------------------------------------


def traffic(job: Job, gpus: int, how: str) -> float:
    """Return the GB that each GPU sends in a step, by ring algorithms.

    "ddp" averages the gradients of what is trained (an all-reduce sends each number
    nearly twice). "fsdp" gathers all weights for the forward pass and again for the
    backward pass, and sends each gradient to the one who holds that number.

    First used in experiment 08_several_workers, section 4.

    Args:
        job: the run; gradients as its precision holds them.
        gpus: how many.
        how: "ddp" or "fsdp".

    Raises:
        PaperError: for another `how`.
    """
    if how not in ("ddp", "fsdp"):
        raise PaperError(f"how: found {how!r}. Give 'ddp' or 'fsdp'.")
    states = PRECISIONS[job.precision] if job.method == "full" else LORA_BYTES
    around = (gpus - 1) / gpus
    gradients = states.gradients * job.trained
    if how == "ddp":
        return 2 * around * gradients / GB
    shape = job.shape
    if job.method == "full":
        weights = BASE_BYTES * shape.parameters
    else:
        weights = base_bytes(shape, job.method) + LORA_BYTES.weights * job.trained
    return around * (2 * weights + gradients) / GB
