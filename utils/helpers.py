"""The course's prompt template, and the way from a templated row to a training batch.

The template is Dolly's (databrickslabs/dolly, Apache-2.0). Prompts for training and for
answering are cut from the same string, `PROMPT`, or `PROMPT_WITH_CONTEXT` where a row
brings notes. A model's own chat template takes its place in `utils/templates.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

INTRO_BLURB = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
INSTRUCTION_KEY = "### Instruction:"
INPUT_KEY = "Input:"
RESPONSE_KEY = "### Response:"
RESPONSE_KEY_NL = f"{RESPONSE_KEY}\n"
END_KEY = "### End"
DEFAULT_SEED = 42

PROMPT = (
    f"{INTRO_BLURB}\n\n{INSTRUCTION_KEY}\n{{instruction}}\n\n"
    f"{RESPONSE_KEY_NL}{{response}}\n\n{END_KEY}"
)
INFERENCE_PROMPT = PROMPT[: PROMPT.index(RESPONSE_KEY_NL) + len(RESPONSE_KEY_NL)]
COMPLETION = PROMPT[len(INFERENCE_PROMPT) :]

# A row with notes, as Dolly's data have them in their column `context`.
NOTES = f"\n\n{INPUT_KEY}\n{{context}}"
PROMPT_WITH_CONTEXT = PROMPT.replace("{instruction}", "{instruction}" + NOTES)
INFERENCE_PROMPT_WITH_CONTEXT = PROMPT_WITH_CONTEXT.removesuffix(COMPLETION)

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


def add_text(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with `prompt`, `completion` and `text` (prompt + completion).

    Notes that a record brings as its `context` stand between instruction and response.

    Raises:
        ValueError: if instruction or response is missing, not text, or blank, or if
            there is a context that is no text.
    """
    for field in ("instruction", "response"):
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            article = "an" if field == "instruction" else "a"
            raise ValueError(
                f"Expected {article} {field} in: {dict(record)}. Found {value!r}: "
                f"write the {field} as text, or leave the row out."
            )
    context = context_of(record)
    form = INFERENCE_PROMPT_WITH_CONTEXT if context else INFERENCE_PROMPT
    prompt = form.format(instruction=record["instruction"], context=context)
    completion = COMPLETION.format(response=record["response"])
    text = prompt + completion
    return {**record, "prompt": prompt, "completion": completion, "text": text}


def context_of(record: Mapping[str, Any]) -> str:
    """Return the notes that a record brings; "" where it has none.

    Raises:
        ValueError: if its `context` is something other than text, None or NaN.
    """
    context = record.get("context")
    if isinstance(context, str):
        return context if context.strip() else ""
    if context is None or str(context) in ("nan", "<NA>"):  # how pandas fills gaps
        return ""
    raise ValueError(
        f"Expected a context in: {dict(record)}. Found {context!r}: write the notes as "
        "one text, or leave them out."
    )


def encode_prompts(prompts: Sequence[str], tokenizer) -> list[list[int]]:
    """Token ids of each prompt, as the model sees them in training and in use.

    The template brings its own markers, so the tokenizer adds nothing, except the
    beginning-of-sequence token where the base model was trained with one.

    First used in lesson 03, section 3.
    """
    begins = tokenizer("a")["input_ids"][:1]
    start = begins if begins == [tokenizer.bos_token_id] else []
    ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    return [start + row for row in ids]


def preprocess_batch(
    batch: Mapping[str, Sequence[str]],
    tokenizer,
    max_length: int | None,
    too_long: Literal["raise", "drop", "cut_prompt"] = "raise",
) -> dict[str, list[list[int]]]:
    """Tokenise prompts and completions separately and label the completions.

    Serving tokenises the prompt alone, too: no token can straddle the two.

    First used in experiment 03_new_tokens, section 3.

    Args:
        batch: columns `prompt` and `completion`, as `add_text` makes them.
        tokenizer: of the model that is trained.
        max_length: most tokens in a row; None for no limit.
        too_long: "cut_prompt" takes the excess from the prompt's start; an answer, the
            response key and the beginning-of-sequence token are never cut. Notes and
            chat templates need the `preprocess_batch` of `utils/templates.py`.

    Returns:
        `input_ids`, `attention_mask` and `labels` (-100 over the prompt).

    Raises:
        ValueError: if a column is missing or a row is too long, naming it.
    """
    missing = [name for name in ("prompt", "completion") if name not in batch]
    if missing:
        raise ValueError(
            f"The batch has no column {missing[0]!r}, only {sorted(batch)}: "
            "map `add_text` over the data set first."
        )
    prompts = encode_prompts(batch["prompt"], tokenizer)
    completions = tokenizer(list(batch["completion"]), add_special_tokens=False)
    start, least = encode_prompts(["", RESPONSE_KEY_NL], tokenizer)
    key = least[len(start) :]
    notes = batch.get("context") or [None] * len(prompts)
    rows: dict[str, list] = {"input_ids": [], "attention_mask": [], "labels": []}
    pairs = zip(prompts, completions["input_ids"], strict=True)
    for number, (prompt, completion) in enumerate(pairs):
        excess = len(prompt) + len(completion) - (max_length or float("inf"))
        if excess > 0:
            if too_long == "drop":
                continue
            cut = prompt[len(start) + excess :]
            if too_long == "raise" or cut[-len(key) :] != key or notes[number]:
                raise ValueError(
                    f"Row {number} of the batch has {len(prompt)} prompt and "
                    f"{len(completion)} completion tokens; max_length is {max_length}. "
                    "Shorten it, raise max_length, or pass too_long='drop'. Its "
                    f"completion begins {batch['completion'][number][:60]!r}."
                )
            prompt = start + cut
        rows["input_ids"].append(prompt + completion)
        rows["attention_mask"].append([1] * (len(prompt) + len(completion)))
        rows["labels"].append([IGNORED] * len(prompt) + completion)
    return rows


@dataclass
class DataCollatorForCompletionOnlyLM:
    """Pad rows to one batch in which only the completions count for the loss.

    Rows are dictionaries (or bare ids) of lists, arrays or tensors, padded or not.
    Labels that a row brings are used. A row without any is searched: what follows the
    first response key is the answer, also if it quotes that key; after an end key a
    new instruction may begin another turn.

    First used in lesson 03, section 5.

    Args:
        tokenizer: gives the padding token and side.
        pad_to_multiple_of: pads the batch to a multiple of this many tokens.
        no_answer: for a row with nothing to learn: raise, drop it, or keep it masked.
        completion_logits_only: emit what makes transformers 5 compute logits only where
            they count (`logits_to_keep`): same loss, less work, one device.
        find_answers: makes the labels of a row without any from its ids, where rows
            are in another frame: a template's method of that name.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None
    no_answer: Literal["raise", "drop", "mask"] = "raise"
    completion_logits_only: bool = False
    find_answers: Callable[[list[int]], list[int]] | None = None

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each (rows, length).

        Raises:
            ValueError: if a row has no answer or is malformed, naming it, or if the
                tokenizer has no padding token.
        """
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "The tokenizer has no padding token: set "
                "`tokenizer.pad_token = tokenizer.eos_token`."
            )
        if isinstance(rows, Mapping):
            raise ValueError(
                f"The batch is one dictionary of {sorted(rows)}: give a list of rows, "
                "such as `dataset.select(range(8)).to_list()`."
            )
        kept, keys = [], None
        for number, row in enumerate(rows):
            ids, labels = self._without_padding(number, row)
            if labels is None and self.find_answers:
                labels = torch.tensor(self.find_answers(ids.tolist()))
            elif labels is None:
                keys = keys or _key_ids(self.tokenizer)  # once a batch: it takes time
                labels = torch.tensor(_find_answers(ids.tolist(), self.tokenizer, keys))
            if self.no_answer != "mask" and not _teaches(labels):
                if self.no_answer == "drop":
                    continue
                raise ValueError(
                    f"Row {number} of the batch has no answer to learn from. It begins "
                    f"{self.tokenizer.decode(ids[:40])!r}. Was the answer cut off by "
                    "max_length, or the row not made with `preprocess_batch`?"
                )
            kept.append((ids, labels))
        if not any(_teaches(labels) for _, labels in kept):
            raise ValueError(
                f"None of the {len(rows)} rows of this batch has an answer to learn "
                "from: check that max_length leaves room for the answers."
            )
        labels = self._pad([labels for _, labels in kept], IGNORED)
        batch = {
            "input_ids": self._pad([i for i, _ in kept], self.tokenizer.pad_token_id),
            "attention_mask": self._pad([torch.ones_like(i) for i, _ in kept], 0),
            "labels": labels,
        }
        if self.completion_logits_only:
            following = pad(labels[:, 1:], (0, 1), value=IGNORED)
            batch["logits_to_keep"] = following != IGNORED
            batch["labels"] = batch["shift_labels"] = following[following != IGNORED]
        return batch

    def _without_padding(
        self, number: int, row: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ids of one row, and its labels if it brings some."""
        row = row if isinstance(row, Mapping) else {"input_ids": row}
        given = {
            name: torch.as_tensor(row[name], dtype=torch.long)
            for name in ("input_ids", "attention_mask", "labels")
            if row.get(name) is not None
        }
        ids, pad_id = given.get("input_ids"), self.tokenizer.pad_token_id
        shapes = {name: tuple(values.shape) for name, values in given.items()}
        if ids is None or ids.dim() != 1 or len({*shapes.values()}) != 1:
            raise ValueError(
                f"Row {number} of the batch has the shapes {shapes}: it needs flat "
                "`input_ids`, with one mask value and one label for each, if any."
            )
        real = torch.ones_like(ids, dtype=torch.bool)
        if "attention_mask" in given:
            real = given["attention_mask"].bool()
        elif (ids != pad_id).any():
            text = (ids != pad_id).nonzero().flatten().tolist()
            # Where padding and end-of-text are one token, the first of a run is real.
            last = text[-1] + (pad_id == self.tokenizer.eos_token_id)
            real[: text[0]], real[last + 1 :] = False, False
        return ids[real], given["labels"][real] if "labels" in given else None

    def _pad(self, rows: list[torch.Tensor], filler: int) -> torch.Tensor:
        side = self.tokenizer.padding_side
        batch = pad_sequence(rows, True, filler, padding_side=side)
        more = -batch.shape[1] % (self.pad_to_multiple_of or 1)
        return pad(batch, (more, 0) if side == "left" else (0, more), value=filler)


def _teaches(labels: torch.Tensor) -> bool:
    """Whether any label counts; the first one has nothing before it to predict from."""
    return bool((labels[1:] != IGNORED).any())


def _find(ids: list[int], part: list[int], start: int) -> int:
    """Where `part` begins in `ids` at or after `start`; -1 if nowhere."""
    while part[0] in ids[start:]:
        start = ids.index(part[0], start)
        if ids[start : start + len(part)] == part:
            return start
        start += 1
    return -1


def _key_ids(tokenizer) -> list[list[int]]:
    """Token ids of the keys that begin an answer, end it, and begin another turn."""
    keys = [RESPONSE_KEY_NL, END_KEY, INSTRUCTION_KEY]
    return tokenizer(keys, add_special_tokens=False)["input_ids"]


def _find_answers(ids: list[int], tokenizer, keys: list[list[int]]) -> list[int]:
    """Labels of a row, by searching it for the template's keys."""
    key, end, turn = keys
    labels = [IGNORED] * len(ids)
    place = _find(ids, key, 0)
    while place >= 0:
        start, stop = place + len(key), len(ids)
        end_place = _find(ids, end, start)
        if end_place >= 0 and _find(ids, turn, end_place) >= 0:
            stop = end_place + len(end)
            stop += ids[stop : stop + 1] == [tokenizer.eos_token_id]
        answer = tokenizer.decode(ids[start:stop]).replace(END_KEY, "")
        if answer.replace(tokenizer.eos_token or "", "").strip():
            labels[start:stop] = ids[start:stop]
        place = _find(ids, key, stop)
    return labels
