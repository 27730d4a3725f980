"""Sentences as vectors: texts of like meaning point the same way (MiniLM).

The model is all-MiniLM-L6-v2 (Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084;
Wang et al., MiniLM, arXiv 2002.10957). Its authors run it with the library
sentence-transformers. The three steps of its `modules.json` are short, so they stand
here and spare a package: the model, the mean over all tokens that are no padding, and a
division by the length. https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.course import CourseError
from utils.fetch import fetch
from utils.models import batches_by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIMENSIONS = 384
FETCH = "python -m utils.models fetch minilm"
NEEDED = ("config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json")
SPECIAL_PIECES = 2  # [CLS] before a text and [SEP] behind it
OVERLAP = 0.25  # of a window with the one before it


class EncoderError(CourseError, ValueError):
    """An encoder that cannot be loaded, or what is no text; says what to do."""


class Encoder:
    """Turns texts into vectors of length one; their dot product is the cosine.

    Attributes:
        max_pieces: the most word pieces of one text that the model reads at once,
            without the two that mark its ends.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        """Use a loaded model; `load_encoder` loads the course's.

        Args:
            model: reads word pieces in both directions, as BERT does.
            tokenizer: of the model.
            max_length: the most word pieces of one text, the two at its ends included.
        """
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.max_pieces = max_length - SPECIAL_PIECES

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return the vector of each text.

        A text longer than the model reads at once is cut into windows that overlap by
        a quarter. Its vector is their mean, so that no part of it is left out; to find
        a passage inside a long document, embed its `passages` instead. A text without
        any word piece has the zero vector: it is like nothing, not even itself.

        Args:
            texts: in any order and of any length.
            batch_size: windows computed together; it changes no result by more than
                1e-5.

        Returns:
            Array of shape (texts, 384), float32, rows of length one, in the texts'
            order.

        Raises:
            EncoderError: if `texts` is one string, or one of them is no string.
        """
        windows: list[list[int]] = []
        owners: list[int] = []
        for number, ids in enumerate(self._ids(texts)):
            for start, end in self._spans(len(ids), self.max_pieces):
                windows.append(ids[start:end])
                owners.append(number)
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float64)
        for chosen in batches_by_length([len(ids) for ids in windows], batch_size):
            found = self._forward([windows[i] for i in chosen])
            for i, vector in zip(chosen, found, strict=True):
                vectors[owners[i]] += vector
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def passages(self, text: str) -> list[str]:
        """Cut a text that the model does not read at once into overlapping pieces.

        The pieces are half as long as what it reads: the shorter a passage, the less
        its other sentences hide the one that is looked for. (The model was trained on
        texts of up to 128 word pieces.)

        Returns:
            The text itself if it is short enough; else pieces of it in their order.
            A cut may fall inside a word, which the overlap repeats whole.

        Raises:
            EncoderError: if it is no string.
        """
        (ids,) = self._ids([text])
        if len(ids) <= self.max_pieces:
            return [text]
        spans = self._spans(len(ids), self.max_pieces // 2)
        offsets = self._tokenizer(
            text,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )["offset_mapping"]
        return [text[offsets[start][0] : offsets[end - 1][1]] for start, end in spans]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the word pieces of each text, all of them and without marks."""
        if isinstance(texts, str):
            raise EncoderError(
                f"texts is one text, {texts[:40]!r}: give a list of texts."
            )
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise EncoderError(
                    f"Text {number} is {text!r}, not a string: leave it out or convert "
                    "it to text."
                )
        if not len(texts):
            return []
        # tokenizer.json would pad to 128 pieces, and cut there.
        return self._tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,  # windows take care of what is too long
        )["input_ids"]

    @staticmethod
    def _spans(count: int, width: int) -> list[tuple[int, int]]:
        """Return where the windows of a text of so many word pieces begin and end."""
        if count <= width:
            return [(0, count)] if count else []
        step = width - int(width * OVERLAP)
        number = -(-(count - width) // step) + 1
        # Spread evenly: a short last window would weigh as much as the others.
        starts = np.linspace(0, count - width, number).round().astype(int)
        return [(int(start), int(start) + width) for start in starts]

    def _forward(self, windows: Sequence[list[int]]) -> np.ndarray:
        """Return the unit vectors of a batch of windows, each of at least one piece."""
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        rows = [[start, *ids, end] for ids in windows]
        width = max(map(len, rows))
        padding = self._tokenizer.pad_token_id
        device = self._model.device
        ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        ids, mask = ids.to(device), mask.to(device)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        # Padding takes no part, or a vector would depend on its neighbours' lengths.
        weights = mask[..., None].to(states.dtype)
        means = (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(means.float(), dim=1).cpu().numpy()


def load_encoder(folder: Path | None = None) -> Encoder:
    """Load the sentence encoder that belongs to the installation.

    First used in lesson 07, section 8.

    Args:
        folder: holds the model as its authors publish it; None for all-MiniLM-L6-v2 in
            `course_models/minilm` of this Python installation, where it is fetched to
            if need be.

    Raises:
        EncoderError: if it is not there and cannot be fetched, is not whole, or pools
            in another way than by the mean.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    if folder is None:
        try:
            folder = fetch("minilm")
        except CourseError as error:
            raise EncoderError(
                f"The sentence encoder is not installed, and could not be fetched now: "
                f"{error} By hand: `{FETCH}`."
            ) from error
    missing = [name for name in NEEDED if not (Path(folder) / name).is_file()]
    if missing:
        raise EncoderError(
            f"The sentence encoder is not installed: {Path(folder).name}/{missing[0]} "
            f"is missing. Run `{FETCH}`."
        )
    settings = _settings(Path(folder))
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
    except Exception as error:  # safetensors, tokenizers and json have their own kinds
        raise EncoderError(
            f"The sentence encoder in {Path(folder).name} cannot be loaded "
            f"({type(error).__name__}: {str(error)[:80]}). Delete that folder and run "
            f"`{FETCH}`."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if torch.cuda.is_available():
        model = model.to("cuda")
    return Encoder(model, tokenizer, settings["max_seq_length"])


def _settings(folder: Path) -> dict[str, Any]:
    """Read how the encoder was published: how it pools, and how much it reads."""
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text("utf-8"))
    modes = [name for name, on in pooling.items() if name.startswith("pooling") and on]
    if modes != ["pooling_mode_mean_tokens"]:
        raise EncoderError(
            f"{folder.name}/1_Pooling/config.json asks for {modes}: only encoders that "
            "take the mean over tokens (pooling_mode_mean_tokens) can be used."
        )
    lengths = folder / "sentence_bert_config.json"
    settings = json.loads(lengths.read_text("utf-8")) if lengths.is_file() else {}
    return {"max_seq_length": 256} | settings
