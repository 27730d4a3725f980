"""Published figures of memory, size and time, beside what the formulas give.

A formula that is taught should give what others have published, or the difference
should have a reason. Each row names its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.jobs.arithmetic import (
    GB,
    PRECISIONS,
    QLORA_BITS,
    Job,
    activation_bytes,
    base_bytes,
    flops_per_token,
    gpu_hours,
    memory_parts,
)
from utils.jobs.shapes import shape_of

if TYPE_CHECKING:
    import pandas

LORA = "LoRA paper (arXiv 2106.09685), section 4.2"
QLORA = "QLoRA paper (arXiv 2305.14314)"
BLOG = "Hugging Face, blog post Llama 3.1 (huggingface.co/blog/llama31), table Training"
CARD = "meta-llama/llama-models at 1b28708, models/llama3_1/MODEL_CARD.md"
LAB = "the lab from which this course descends, output of print_trainable_parameters"
H100 = 989  # 10¹² operations a second in bfloat16, as data/jobs/machines.csv has it


@dataclass(frozen=True)
class Figure:
    """A published figure and ours.

    Attributes:
        what: was counted or measured.
        unit: of both.
        published: the figure.
        computed: what the formulas give.
        reason: how it was computed, and why it differs where it does.
        source: of the published figure.
        bound: "" if it is the figure itself, "above" or "below" if the source says
            that it is more or less than that.
    """

    what: str
    unit: str
    published: float
    computed: float
    reason: str
    source: str
    bound: str = ""

    @property
    def ratio(self) -> float:
        """Computed over published."""
        return self.computed / self.published


def published_table() -> pandas.DataFrame:
    """Return all figures as a table: published, computed, their ratio, the reason."""
    import pandas

    signs = {"": "", "above": "> ", "below": "< "}
    return pandas.DataFrame(
        {
            "figure": figure.what,
            "published": f"{signs[figure.bound]}{figure.published:,g} {figure.unit}",
            "computed": f"{figure.computed:,.4g} {figure.unit}",
            "ratio": figure.ratio,
            "reason": figure.reason,
            "source": figure.source,
        }
        for figure in published_figures()
    )


def published_figures() -> list[Figure]:
    """Return the figures of two papers, a blog post, a model card and the lab."""
    return [*_of_lora(), *_of_qlora(), *_of_the_blog(), *_of_the_card(), *_of_the_lab()]


def states(job: Job) -> float:
    """Return what weights, gradients and Adam's averages take on one GPU, in GB."""
    parts = memory_parts(job)
    names = ("base", "trained weights", "gradients", "Adam")
    return sum(parts[name] for name in names)


def _of_lora() -> list[Figure]:
    shape = shape_of("gpt-3-175b")
    modules = ("query", "value")
    trained = shape.lora(4, modules)
    full = PRECISIONS["16 bits"].all * shape.parameters / GB
    tuned = (2 * shape.parameters + PRECISIONS["mixed"].all * trained) / GB
    speeds = {}
    for method in ("full", "LoRA"):
        more = {"rank": 4, "modules": modules, "length": 2048}
        speeds[method] = flops_per_token(Job("gpt-3-175b", method, **more))
    return [
        Figure(
            "GPT-3 175B, trained numbers: how many times fewer",
            "times",
            10_000,
            shape.parameters / trained,
            "r=4 on two matrices of 96 blocks: 18.9 million; the paper rounds.",
            LORA,
        ),
        Figure(
            "GPT-3 175B, checkpoint of LoRA",
            "MB",
            35,
            2 * trained / 1e6,
            "Two bytes a number; in MiB it is 36.",
            LORA,
        ),
        Figure(
            "GPT-3 175B, checkpoint of the whole",
            "GB",
            350,
            2 * shape.parameters / GB,
            "Two bytes a number.",
            LORA,
        ),
        Figure(
            "GPT-3 175B, memory to train LoRA",
            "GB",
            350,
            tuned,
            "The frozen base in 16 bits; what LoRA adds is 0.3 GB. No activations.",
            LORA,
        ),
        Figure(
            "GPT-3 175B, memory to train the whole",
            "GB",
            1_200,
            full,
            "8 bytes a number: weights, gradients and Adam in 16 bits. The paper gives "
            "no parts. 1.2 TB are 6.9 bytes: without gradients that are kept for all "
            "numbers at once it would be 6, and with weights in 32 bits 16.",
            LORA,
        ),
        Figure(
            "GPT-3 175B, speed of LoRA against the whole",
            "times",
            43.1 / 32.5,
            speeds["full"] / speeds["LoRA"],
            "43.1 against 32.5 tokens a second and V100. Operations: 8 against 6 for "
            "each weight, if blocks are computed twice; 6 against 4 (1.48) if not. The "
            "paper does not say which.",
            LORA + ", footnote 5",
        ),
    ]


def _of_qlora() -> list[Figure]:
    shape = shape_of("llama-65b")
    paged = PRECISIONS["16 bits, Adam in 32"]
    job = Job("llama-65b", "QLoRA", rank=64, rows=1, length=512)
    whole = base_bytes(shape, "QLoRA") + paged.all * job.trained + activation_bytes(job)
    once = 4 + 32 / 64  # bits, with a 32-bit constant for each 64 weights
    return [
        Figure(
            "LLaMA 65B, memory to train the whole",
            "GB",
            780,
            paged.all * shape.parameters / GB,
            "12 bytes a number: weights and gradients in 16 bits, Adam in 32.",
            QLORA + ", section 1",
            bound="above",
        ),
        Figure(
            "LLaMA 65B, memory to train QLoRA",
            "GB",
            48,
            whole / GB,
            "4.127 bits for each packed weight, LoRA of r=64 on all linear layers in "
            "16 bits with Adam in 32, one row of 512 tokens with checkpointing. With "
            "LoRA in 32 bits, as peft has it, 3 GB more: above 48 without paging.",
            QLORA + ", section 1",
            bound="below",
        ),
        Figure(
            "LLaMA 65B, saved by packing the constants too",
            "GB",
            3,
            (once - QLORA_BITS) / 8 * shape.linear_weights / GB,
            "0.373 bits for each packed weight.",
            QLORA + ", section 2",
        ),
    ]


def _of_the_blog() -> list[Figure]:
    published = {
        "llama-3.1-8b": (60, 16, 6),
        "llama-3.1-70b": (500, 160, 48),
        "llama-3.1-405b": (3_250, 950, 250),
    }
    reasons = (
        "8 bytes a number: weights, gradients and Adam in 16 bits. No activations.",
        "The base in 16 bits, and LoRA of r=16 on all linear layers; the post names no "
        "rank. No activations.",
        "Linear layers in 4.127 bits, the rest of the base in 16. No activations.",
    )
    return [
        Figure(
            f"{shape_of(model).title}, memory to train: {method}",
            "GB",
            figure,
            states(Job(model, method, precision="16 bits")),
            reason,
            BLOG,
        )
        for model, figures in published.items()
        for method, figure, reason in zip(
            ("full", "LoRA", "QLoRA"), figures, reasons, strict=True
        )
    ]


def _of_the_card() -> list[Figure]:
    hours = {"llama-3.1-8b": 1.46e6, "llama-3.1-70b": 7.0e6, "llama-3.1-405b": 30.84e6}
    figures = []
    for model, published in hours.items():
        job = Job(model, "full", length=8192, checkpointing=False)
        fastest = gpu_hours(job, 15e12, H100, 1.0)
        figures.append(
            Figure(
                f"{job.shape.title}, hours of H100 to train it from the start",
                "hours",
                published,
                fastest / 0.41,
                "15·10¹² tokens in rows of 8,192 at a share of 0.41 of the GPU's "
                "speed, which the Llama 3 paper (arXiv 2407.21783, table 4) gives for "
                "405B on 16,384 GPUs. The card's hours come to a share of "
                f"{fastest / published:.2f}: it does not say what they include.",
                CARD,
            )
        )
    return figures


def _of_the_lab() -> list[Figure]:
    shape = shape_of("dolly-v2-3b")
    trained = shape.lora(256, ("query_key_value",))
    return [
        Figure(
            "Dolly 2 3B, trained numbers",
            "numbers",
            83_886_080,
            trained,
            "r=256 on query_key_value; r=64 on all linear layers is exactly as many.",
            LAB,
        ),
        Figure(
            "Dolly 2 3B, all numbers with LoRA",
            "numbers",
            2_858_977_280,
            shape.parameters + trained,
            "5,120 fewer: the lab added a padding token, a row of 2,560 numbers in the "
            "embeddings and one in the head.",
            LAB,
        ),
    ]
