"""Shapes of published models: how many numbers they have, and where.

What a training run needs follows from a few whole numbers in a model's configuration.
data/jobs/models.json holds them for models that the lesson talks of, and this module
counts. A test compares the counts with what transformers builds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.course import ROOT, CourseError

SHAPES = ROOT / "data" / "jobs" / "models.json"
# The layers that get LoRA matrices: by default all linear ones of a block.
ALL_LINEAR = "all-linear"


class ShapeError(CourseError, ValueError):
    """A model or a layer that is not known; the message names those that are."""


@dataclass(frozen=True)
class Shape:
    """The numbers that decide what a model costs.

    Attributes:
        name: in data/jobs/models.json.
        title: for people.
        source: where the numbers were read.
        config: they themselves, as transformers' configuration of `model_type` has
            them.
        hidden: numbers in the vector of a token.
        layers: blocks.
        key_values: numbers of a token's keys, and of its values, in a block.
        wide: numbers of a token in the middle of a block's feed-forward part.
        vocabulary: tokens.
        gated: whether that part has a gate, as Llama's has.
    """

    name: str
    title: str
    source: str
    config: dict[str, Any]
    hidden: int
    layers: int
    key_values: int
    wide: int
    vocabulary: int
    gated: bool

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """A block's linear layers: name → numbers in and out."""
        hidden, wide = self.hidden, self.wide
        kind = self.config["model_type"]
        if kind == "llama":
            return {
                "q_proj": (hidden, hidden),
                "k_proj": (hidden, self.key_values),
                "v_proj": (hidden, self.key_values),
                "o_proj": (hidden, hidden),
                "gate_proj": (hidden, wide),
                "up_proj": (hidden, wide),
                "down_proj": (wide, hidden),
            }
        if kind == "gpt_neox":
            return {
                "query_key_value": (hidden, 3 * hidden),
                "dense": (hidden, hidden),
                "dense_h_to_4h": (hidden, wide),
                "dense_4h_to_h": (wide, hidden),
            }
        return {  # GPT-3's, as the papers name them; GPT-2's code joins the first three
            "query": (hidden, hidden),
            "key": (hidden, hidden),
            "value": (hidden, hidden),
            "out": (hidden, hidden),
            "up": (hidden, wide),
            "down": (wide, hidden),
        }

    @property
    def block(self) -> int:
        """Numbers of one block, norms and biases included."""
        weights = sum(a * b for a, b in self.linear.values())
        if self.gated:  # Llama: no biases, two norms that only scale
            return weights + 2 * self.hidden
        biases = sum(out for _, out in self.linear.values())
        return weights + biases + 4 * self.hidden

    @property
    def linear_weights(self) -> int:
        """Weights of all blocks' linear layers: what 4-bit quantisation packs."""
        return self.layers * sum(a * b for a, b in self.linear.values())

    @property
    def embedding(self) -> int:
        """Numbers of the table that turns tokens into vectors."""
        return self.vocabulary * self.hidden

    @property
    def head(self) -> int:
        """Numbers of the last layer; 0 where it is the table of the embeddings."""
        return 0 if self.config["tie_word_embeddings"] else self.embedding

    @property
    def parameters(self) -> int:
        """All numbers of the model."""
        norm = self.hidden if self.gated else 2 * self.hidden
        positions = self.config.get("n_positions", 0) * self.hidden
        return self.layers * self.block + self.embedding + self.head + norm + positions

    def lora(self, rank: int, modules: str | Iterable[str] = ALL_LINEAR) -> int:
        """Count the numbers of LoRA matrices: rank times (in + out) for each layer.

        Args:
            rank: LoRA's r.
            modules: names of a block's layers, or "all-linear".

        Raises:
            ShapeError: if a block has no such layer.
        """
        layers = self.linear
        chosen = layers if modules == ALL_LINEAR else modules
        unknown = [name for name in chosen if name not in layers]
        if unknown:
            raise ShapeError(
                f"{self.title} has no linear layer {unknown[0]!r} in a block, only "
                f"{', '.join(layers)}."
            )
        return self.layers * rank * sum(sum(layers[name]) for name in chosen)


def shape_of(name: str, path: Path = SHAPES) -> Shape:
    """Return the shape of a model that data/jobs/models.json knows.

    Raises:
        ShapeError: naming those that it knows.
    """
    known = json.loads(path.read_text("utf-8"))
    if name not in known:
        raise ShapeError(f"{name!r} is not known: give one of {', '.join(known)}.")
    entry = known[name]
    config = entry["config"]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads", heads)
    return Shape(
        name=name,
        title=entry["title"],
        source=entry["source"],
        config=config,
        hidden=hidden,
        layers=config["num_hidden_layers"],
        key_values=hidden // heads * key_heads,
        wide=config.get("intermediate_size", 4 * hidden),
        vocabulary=config["vocab_size"],
        gated=config["model_type"] == "llama",
    )


def known_shapes(path: Path = SHAPES) -> list[str]:
    """Return the names that `shape_of` knows."""
    return list(json.loads(path.read_text("utf-8")))
