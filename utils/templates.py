"""The frame that a model is tuned and asked in, and that travels with its adapter.

A base model is tuned in the course's instruction template (`utils/helpers.py`), an
instruct model in its own chat template, with a system prompt that we choose. Training,
evaluation, the endpoint and a plain server build prompts from one description of it,
`course_template.json`, so that they agree token by token.

    template = template_for(settings, tokenizer)
    rows = faqs.map(template.add_text)
    rows = rows.map(lambda batch: template.preprocess_batch(batch, 256), batched=True)
    answers = generate(model, tokenizer, rows["prompt"], stop=template.stop)
    save_adapter(model, tokenizer, folder, template)
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from utils import helpers
from utils.course import CourseError
from utils.files import write_json, write_text
from utils.helpers import END_KEY, IGNORED, context_of, encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_FILE = "course_template.json"
CHAT_FILE = "chat_template.jinja"  # where transformers and vLLM look for one
TEMPLATE_VERSION = 1
SYSTEM_PROMPT = (
    "Answer the question in one or two sentences. "
    "If notes are given, answer from the notes."
)
# The user's turn in a chat.
USER_TURN = "{instruction}"
USER_TURN_WITH_CONTEXT = "Notes:\n{context}\n\nQuestion: {instruction}"

# The keys of the instruction template, however they are written.
TEMPLATE_KEY = re.compile(r"#{3,}(?=\s*(?:instruction:|response:|end))", re.I)
# Marks that a chat template writes: <|user|>, </s>, <start_of_turn>, [INST], [/INST].
TAG = re.compile(r"<\|[^|<>\s]+\|>|</?[A-Za-z_]+>|\[/?[A-Z_]+\]|<<[A-Z/]+>>")

PLAIN_CHAT = (
    "{% for message in messages %}{{ message.role.capitalize() }}:\n"
    "{{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""Turns in plain words, to chat with a base model, which has no template of its own."""

# What stands in front of a model's own chat template in ours.
OWN_BEGINS = "{#- The model's own template: -#}"
TEXTS = ("instruction", "response", "context")
# Llama's template writes today's date unless it is given one; this is its own default.
DATE = "{%- set date_string = '26 Jul 2024' -%}\n"
SLACK = 3  # tokens that may be left unused where notes are cut
QUOTE = 60  # characters of a text that an error shows


class TemplateError(CourseError, ValueError):
    """A template that cannot be used, or a text that must not go into it."""


class HasTemplate(Protocol):
    """What is needed of `utils.models.ModelSettings`."""

    name: str
    template: str
    system_prompt: str


@dataclass(frozen=True, repr=False)
class Template:
    """A frame: what stands around question, notes and answer, and what ends an answer.

    Attributes:
        name: "instruction" or "chat".
        tokenizer: of the model.
        system_prompt: what a chat begins with; "" where there is none.
        stop: the texts at which an answer ends.
        marks: what ends or begins a turn, so that no text may hold it.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    system_prompt: str
    stop: tuple[str, ...]
    marks: tuple[str, ...]

    def __repr__(self) -> str:
        begins = f", system prompt {self.system_prompt!r}" if self.system_prompt else ""
        return f"Template({self.name}{begins}, stops at {', '.join(self.stop)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(json.dumps(self.describe()))

    # --- what the kinds of frame differ in ---

    def describe(self) -> dict[str, Any]:
        """Return what course_template.json holds: all that is needed to build prompts.

        The entry point of the endpoint reads it without this module.
        """
        return {
            "version": TEMPLATE_VERSION,
            "name": self.name,
            "system_prompt": self.system_prompt,
            "stop": list(self.stop),
            "marks": list(self.marks),
        }

    def _render(self, instruction: str, context: str) -> str:
        raise NotImplementedError

    def _completion(self, instruction: str, context: str, response: str) -> str:
        raise NotImplementedError

    def _encode(
        self, batch: Mapping[str, Sequence[Any]], max_length: int | None, too_long: str
    ) -> dict[str, list[list[int]]]:
        raise NotImplementedError

    def find_answers(self, ids: list[int]) -> list[int]:
        """Return the labels of a row by searching its ids for the answers.

        For `DataCollatorForCompletionOnlyLM(find_answers=…)`, where rows bring none.
        """
        raise NotImplementedError

    def encode_conversation(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[int]]:
        """Tokenise a conversation and label each answer of the assistant, with its end.

        Args:
            messages: `role` and `content` of each turn: at most one system turn, then
                user and assistant by turns, the assistant last. A system turn of the
                conversation takes the place of the template's.

        Returns:
            `input_ids`, `attention_mask` and `labels`, as a row to train with.

        Raises:
            TemplateError: naming the turn that is out of order, no text, or blank, or
                that holds a mark of the template and is the assistant's.
        """
        raise NotImplementedError

    # --- what they have in common ---

    def neutralise(self, text: str) -> str:
        """Return the text with the template's marks made ordinary text.

        Otherwise a question or a note could end its turn and forge the answer's
        beginning. A text without marks is returned as it is. The endpoint does the
        same, so that it asks what was trained.
        """
        for mark in self.marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def prompt(self, instruction: str, context: str | None = None) -> str:
        """Return all that the model reads before it answers.

        Args:
            instruction: the question.
            context: notes to answer from, if any.
        """
        notes = context_of({"context": context})
        return self._render(self.neutralise(instruction), self.neutralise(notes))

    def add_text(
        self, record: Mapping[str, Any], number: int | None = None
    ) -> dict[str, Any]:
        """Return the record with `prompt`, `completion` and `text`, in this frame.

        The completion is the answer and what ends it. Marks of the template are made
        harmless in question and notes, and refused in an answer: trained on, they would
        teach the model to end early or to write the next question itself.

        Args:
            record: `instruction` and `response`; `context` is optional.
            number: of the row, for messages; `map(…, with_indices=True)` gives it.

        Raises:
            TemplateError: if a text is missing or blank, or the answer holds a mark.
        """
        where = "" if number is None else f"Row {number}: "
        try:
            record = helpers.add_text(record)  # checks the texts as well
        except ValueError as error:
            raise TemplateError(f"{where}{error}") from None
        instruction, response = record["instruction"], record["response"]
        own = record.get("system")
        if isinstance(own, str) and own.strip() and own != self.system_prompt:
            warnings.warn(
                "The rows bring system prompts of their own, which are not used: all "
                "questions are asked with one, also when they are served. Choose it "
                "with `system_prompt` in the model's settings.",
                stacklevel=2,
            )
        self._refuse_marks(response, f"{where}The answer to {_short(instruction)}")
        instruction = self.neutralise(instruction)
        context = self.neutralise(context_of(record))
        prompt = self._render(instruction, context)
        completion = self._completion(instruction, context, response)
        text = prompt + completion
        return {**record, "prompt": prompt, "completion": completion, "text": text}

    def _refuse_marks(self, answer: str, where: str) -> None:
        if self.neutralise(answer) == answer:
            return
        found = [mark for mark in self.marks if mark in answer]
        raise TemplateError(
            f"{where} holds {found[0] if found else 'a key'!r}, with which the "
            f"{self.name} template ends or begins a turn. Write it another way, for "
            f"example with a space in it, or leave the row out: {_short(answer)}."
        )

    def fit(self, record: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        """Return the record with notes short enough for prompt and answer to fit.

        Notes lose words at their end. Question, answer and template stay whole.

        Args:
            record: `instruction`, and `response` where the answer is to fit as well.
            tokens: most that may be used; to ask with, leave room for the answer.

        Raises:
            TemplateError: if it is too long even with a single word of the notes.
        """
        context, room = context_of(record), tokens
        if record.get("response"):
            completion = self.add_text(record)["completion"]
            ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
            room -= len(ids)

        def size(end: int) -> int:
            prompt = self.prompt(record["instruction"], context[:end])
            return len(encode_prompts([prompt], self.tokenizer)[0])

        ends = [0, *(word.end() for word in re.finditer(r"\S+", context))]
        fits, exceeds = (0, size(0)), (len(ends) - 1, size(len(context)))
        if exceeds[1] <= room:
            return dict(record)
        # Tokens grow about evenly with words, so that a few guesses find the place.
        while exceeds[0] - fits[0] > 1 and room - fits[1] >= SLACK:
            share = (room - fits[1]) / (exceeds[1] - fits[1])
            middle = fits[0] + round(share * (exceeds[0] - fits[0]))
            middle = min(max(middle, fits[0] + 1), exceeds[0] - 1)
            found = middle, size(ends[middle])
            fits, exceeds = (found, exceeds) if found[1] <= room else (fits, found)
        if not fits[0]:
            raise TemplateError(
                f"The row that asks {_short(record['instruction'])} is too long for "
                f"{tokens} tokens, however much its notes are cut: shorten it, or "
                "raise max_length."
            )
        return {**record, "context": context[: ends[fits[0]]]}

    def preprocess_batch(
        self,
        batch: Mapping[str, Sequence[Any]],
        max_length: int | None,
        too_long: Literal["raise", "drop", "cut_prompt"] = "raise",
    ) -> dict[str, list[list[int]]]:
        """Tokenise rows and label their completions, like the helper of that name.

        Args:
            batch: columns as `add_text` makes them.
            max_length: most tokens in a row; None for no limit.
            too_long: "cut_prompt" shortens the notes (`fit`) where a row has some.

        Raises:
            TemplateError: if a row is too long, or a token straddles prompt and answer,
                so that the model would be asked other tokens than it was trained on.
        """
        if too_long == "cut_prompt" and max_length and batch.keys() >= {*TEXTS}:
            batch = self._cut_notes(batch, max_length)
        try:
            return self._encode(batch, max_length, too_long)
        except TemplateError:
            raise
        except ValueError as error:
            raise TemplateError(str(error)) from None

    def _cut_notes(
        self, batch: Mapping[str, Sequence[Any]], max_length: int
    ) -> dict[str, list[Any]]:
        changed = {name: list(values) for name, values in batch.items()}
        for number, values in enumerate(zip(*(batch[n] for n in TEXTS), strict=True)):
            record = dict(zip(TEXTS, values, strict=True))
            if not context_of(record):
                continue
            try:
                fitted = self.fit(record, max_length)
            except TemplateError as error:
                raise TemplateError(f"Row {number} of the batch: {error}") from None
            fitted = self.add_text(fitted, number)
            # Emptied, because nothing of it may be cut any more.
            fitted["context"] = None
            for name in ("prompt", "completion", "context"):
                changed[name][number] = fitted[name]
        return changed

    def save(self, folder: Path) -> Path:
        """Write course_template.json into a folder, beside adapter and tokenizer.

        A plain server reads chat_template.jinja: it is written, too, and deleted where
        the frame is another, because nobody must be asked in a template by accident.
        """
        (folder / CHAT_FILE).unlink(missing_ok=True)
        return write_json(folder / TEMPLATE_FILE, self.describe())


@dataclass(frozen=True, repr=False, eq=False)
class InstructionTemplate(Template):
    """The course's own frame, Dolly's; see `utils/helpers.py`."""

    def describe(self) -> dict[str, Any]:
        """Return what course_template.json holds."""
        return super().describe() | {
            "prompt": helpers.INFERENCE_PROMPT,
            "prompt_with_context": helpers.INFERENCE_PROMPT_WITH_CONTEXT,
        }

    def neutralise(self, text: str) -> str:
        """Return the text with the template's keys made ordinary text."""
        return super().neutralise(TEMPLATE_KEY.sub("#", text))

    def _render(self, instruction: str, context: str) -> str:
        form = helpers.INFERENCE_PROMPT
        if context:
            form = helpers.INFERENCE_PROMPT_WITH_CONTEXT
        return form.format(instruction=instruction, context=context)

    def _completion(self, instruction: str, context: str, response: str) -> str:
        return helpers.COMPLETION.format(response=response)

    def _encode(
        self, batch: Mapping[str, Sequence[Any]], max_length: int | None, too_long: str
    ) -> dict[str, list[list[int]]]:
        return helpers.preprocess_batch(batch, self.tokenizer, max_length, too_long)

    def find_answers(self, ids: list[int]) -> list[int]:
        """Return the labels of a row by searching it for the template's keys."""
        keys = helpers._key_ids(self.tokenizer)
        return helpers._find_answers(ids, self.tokenizer, keys)

    def encode_conversation(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[int]]:
        """Tokenise a conversation; an end-of-text token stands between the turns.

        A system turn is left out: this template has no place for one.
        """
        turns = _checked(messages)
        turns = turns[turns[0]["role"] == "system" :]
        row: dict[str, list[int]] = {"input_ids": [], "labels": []}
        end = [self.tokenizer.eos_token_id]
        for place in range(0, len(turns), 2):
            pair = turns[place]["content"], turns[place + 1]["content"]
            names = ("instruction", "response")
            one = self.add_text(dict(zip(names, pair, strict=True)))
            columns = {name: [one[name]] for name in ("prompt", "completion")}
            made = self._encode(columns, None, "raise")
            start = len(encode_prompts([""], self.tokenizer)[0]) if place else 0
            for name in row:
                row[name] += (end if place else []) + made[name][0][start:]
        return _row(row["input_ids"], row["labels"])


@dataclass(frozen=True, repr=False, eq=False)
class ChatTemplate(Template):
    """A model's own chat template, with our system prompt.

    Attributes:
        source: the template in Jinja: the model's own, in front of which stands what
            adds our system prompt where a chat brings none. A plain server that reads
            it asks as we do.
        answer_begins: what stands between a question and its answer.
        answer_ends: what the template writes after an answer, to the end-of-turn token.
        tail: the same, with what follows that token.
        writes_system: whether the chat begins with a system turn.
    """

    source: str = ""
    answer_begins: str = ""
    answer_ends: str = ""
    tail: str = ""
    writes_system: bool = True
    _start: str = field(default="")

    def describe(self) -> dict[str, Any]:
        """Return what course_template.json holds."""
        return super().describe() | {
            "prompt": USER_TURN,
            "prompt_with_context": USER_TURN_WITH_CONTEXT,
            "chat_template": self.source,
            "writes_system": self.writes_system,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be found again: data sets tell templates apart by it."""
        return {k: v for k, v in self.__dict__.items() if k != "_search_keys"}

    def save(self, folder: Path) -> Path:
        """Write course_template.json and chat_template.jinja into a folder."""
        path = super().save(folder)
        write_text(folder / CHAT_FILE, self.source)
        return path

    def messages(
        self, instruction: str, context: str | None = None
    ) -> list[dict[str, str]]:
        """Return system and user turn, as a client sends them to a plain server."""
        notes = context_of({"context": context})
        form = USER_TURN_WITH_CONTEXT if notes else USER_TURN
        return self._turns(self.neutralise(instruction), self.neutralise(notes), form)

    def _turns(self, instruction: str, context: str, form: str) -> list[dict[str, str]]:
        content = form.format(instruction=instruction, context=context)
        turns = [{"role": "user", "content": content}]
        if self.writes_system:
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        return turns

    def _chat(self, turns: Sequence[Mapping[str, str]], ask: bool) -> str:
        """Return turns as the template writes them, without what the tokenizer adds."""
        text = render_chat(self.tokenizer, turns, self.source, ask)
        return text.removeprefix(self._start)

    def _render(self, instruction: str, context: str) -> str:
        form = USER_TURN_WITH_CONTEXT if context else USER_TURN
        return self._chat(self._turns(instruction, context, form), ask=True)

    def _completion(self, instruction: str, context: str, response: str) -> str:
        form = USER_TURN_WITH_CONTEXT if context else USER_TURN
        turns = self._turns(instruction, context, form)
        prompt = self._chat(turns, ask=True)
        answer = {"role": "assistant", "content": response.strip()}
        return self._answer_after(prompt, self._chat([*turns, answer], ask=False))

    def _answer_after(self, prompt: str, whole: str) -> str:
        """Return what follows the prompt, up to and with the end of the turn."""
        if not (whole.startswith(prompt) and whole.endswith(self.tail)):
            raise TemplateError(
                "The chat template writes a question that is answered otherwise than "
                f"one that is asked: {_short(whole)} does not begin with the prompt "
                "and end with the end of a turn. Set template='instruction'."
            )
        return whole[len(prompt) : len(whole) - len(self.tail)] + self.answer_ends

    def _encode(
        self, batch: Mapping[str, Sequence[Any]], max_length: int | None, too_long: str
    ) -> dict[str, list[list[int]]]:
        missing = [name for name in ("prompt", "completion") if name not in batch]
        if missing:
            raise TemplateError(
                f"The batch has no column {missing[0]!r}, only {sorted(batch)}: map "
                "the template's `add_text` over the data set first."
            )
        rows: dict[str, list] = {"input_ids": [], "attention_mask": [], "labels": []}
        pairs = list(zip(batch["prompt"], batch["completion"], strict=True))
        asked = encode_prompts([prompt for prompt, _ in pairs], self.tokenizer)
        whole = encode_prompts(["".join(pair) for pair in pairs], self.tokenizer)
        for number, (prompt, completion) in enumerate(pairs):
            ids, start = whole[number], asked[number]
            if ids[: len(start)] != start:
                raise _straddles(f"Row {number} of the batch", prompt, completion)
            if len(ids) > (max_length or len(ids)):
                if too_long == "drop":
                    continue
                raise TemplateError(
                    f"Row {number} of the batch has {len(ids)} tokens; max_length is "
                    f"{max_length}. Shorten it, raise max_length, or pass "
                    "too_long='drop' ('cut_prompt' cuts notes only). Its completion "
                    f"begins {completion[:QUOTE]!r}."
                )
            labels = [IGNORED] * len(start) + ids[len(start) :]
            for name, values in _row(ids, labels).items():
                rows[name].append(values)
        return rows

    def find_answers(self, ids: list[int]) -> list[int]:
        """Return the labels of a row by searching it for where answers begin and end.

        An answer that was cut off is labelled up to the end of the row.
        """
        key, end = self._search_keys
        labels = [IGNORED] * len(ids)
        place = helpers._find(ids, key, 0)
        while place >= 0:
            start = place + len(key)
            found = helpers._find(ids, end, start)
            stop = found + len(end) if found >= 0 else len(ids)
            answer = ids[start : found if found >= 0 else stop]
            if self.tokenizer.decode(answer).strip():
                labels[start:stop] = ids[start:stop]
            place = helpers._find(ids, key, stop)
        return labels

    @functools.cached_property
    def _search_keys(self) -> list[list[int]]:
        keys = [self.answer_begins, self.stop[0]]
        key, end = self.tokenizer(keys, add_special_tokens=False)["input_ids"]
        # Some tokenizers cut a text otherwise where it stands alone.
        asked = self.prompt(PROBE["instruction"])
        before, whole = encode_prompts(
            [asked.removesuffix(self.answer_begins), asked], self.tokenizer
        )
        if whole[: len(before)] == before:
            key = whole[len(before) :]
        return [key, end]

    def encode_conversation(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[int]]:
        """Tokenise a conversation and label each answer of the assistant, with its end.

        The ids are those that `apply_chat_template` gives, up to the last end of turn.
        """
        turns = []
        for place, turn in enumerate(_checked(messages)):
            content = turn["content"]
            if turn["role"] == "assistant":
                self._refuse_marks(content, f"Turn {place}")
                content = content.strip()
            turns.append({**turn, "content": self.neutralise(content)})
        if turns[0]["role"] != "system" and self.writes_system:
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        stretches, text = [], ""
        for place, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self._chat(turns[:place], ask=True)
            answer = self._answer_after(
                prompt, self._chat(turns[: place + 1], ask=False)
            )
            if not prompt.startswith(text):
                raise TemplateError(
                    f"The chat template writes turn {place - 1} otherwise once it is "
                    "past: train on the turns of this conversation one by one."
                )
            text = prompt + answer
            stretches += [prompt, text]
        borders = encode_prompts(stretches, self.tokenizer)
        ids = borders[-1]
        labels = [IGNORED] * len(ids)
        for turn, (start, end) in enumerate(
            zip(borders[::2], borders[1::2], strict=True)
        ):
            for number, border in ((2 * turn, start), (2 * turn + 1, end)):
                if ids[: len(border)] != border:
                    before = stretches[number]
                    where = f"Answer {turn} of the conversation"
                    raise _straddles(where, before, text[len(before) :])
            labels[len(start) : len(end)] = ids[len(start) : len(end)]
        return _row(ids, labels)


# --- making one -----------------------------------------------------------------------


def template_for(
    settings: HasTemplate, tokenizer: PreTrainedTokenizerBase
) -> InstructionTemplate | ChatTemplate:
    """Return the template that a model's settings name.

    First used in lesson 03, section 3.

    Args:
        settings: their `template` is "instruction", "chat", or "auto": the chat
            template where the tokenizer brings one.
        tokenizer: of the model.

    Raises:
        TemplateError: if the settings name something else, or the tokenizer has no
            chat template that can be used.
    """
    kind, has_chat = settings.template, has_chat_template(tokenizer)
    if kind == "auto":
        kind = "chat" if has_chat else "instruction"
    if kind == "chat":
        return chat_template(tokenizer, settings.system_prompt)
    if kind != "instruction":
        raise TemplateError(
            f"The settings of {settings.name} say template={kind!r}: give 'instruction'"
            ", 'chat' or 'auto'."
        )
    if has_chat:
        warnings.warn(
            f"{settings.name} has a chat template, which it was tuned in, and its "
            "settings say template='instruction': it has to learn another frame, and "
            "a plain server would ask in its own. Set template='chat'.",
            stacklevel=2,
        )
    return instruction_template(tokenizer)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def instruction_template(tokenizer: PreTrainedTokenizerBase) -> InstructionTemplate:
    """Return the course's instruction template for a tokenizer.

    First used in lesson 03, section 3.
    """
    marks = _longest_first(tokenizer.all_special_tokens)
    return InstructionTemplate("instruction", tokenizer, "", (END_KEY,), marks)


def chat_template(
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str = SYSTEM_PROMPT,
    source: str | None = None,
) -> ChatTemplate:
    """Return a tokenizer's own chat template, with a system prompt of our choice.

    Everything about it is found by rendering: which token ends a turn, whether it
    writes a system turn of its own (ours takes its place) or refuses one (ours then
    begins the first question), and whether it writes the beginning-of-sequence token.

    Args:
        tokenizer: of the model.
        system_prompt: "" for none.
        source: of the template, if not the tokenizer's.

    Raises:
        TemplateError: if there is none, or no token ends its answers.
    """
    if source is None:
        if not has_chat_template(tokenizer):
            raise TemplateError(
                "The tokenizer has no chat template: set template='instruction'."
            )
        source = tokenizer.get_chat_template()
    own = source.partition(OWN_BEGINS)[2] or source
    question = {"role": "user", "content": "course-question"}
    system = {"role": "system", "content": "course-system"}

    plain = _tried(tokenizer, [question], own)
    with_system = _tried(tokenizer, [system, question], own) or ""
    supported = "course-system" in with_system and "course-question" in with_system
    if plain is None and not supported:
        raise TemplateError(
            "The chat template cannot write a question and the beginning of its "
            "answer: set template='instruction'."
        )
    begins = encode_prompts([""], tokenizer)[0]
    start = tokenizer.decode(begins) if begins else ""
    head = with_system.partition("course-system")[0]
    # A system turn by default lies between what opens and what closes one.
    adds_default = supported and plain is not None and bool(head.removeprefix(start))
    adds_default = adds_default and plain.startswith(head)
    writes_system = bool(system_prompt) or adds_default
    before = ""
    if writes_system:
        before += (
            "{%- if messages and messages[0]['role'] != 'system' -%}\n"
            "{%- set messages = [{'role': 'system', 'content': "
            f"{_jinja_text(system_prompt)}}}] + messages -%}}\n"
            "{%- endif -%}\n"
        )
    if not supported:
        before += (
            "{%- if messages and messages[0]['role'] == 'system' -%}\n"
            "{%- set messages = [{'role': messages[1]['role'], 'content': "
            "messages[0]['content'] + '\\n\\n' + messages[1]['content']}] "
            "+ messages[2:] -%}\n"
            "{%- endif -%}\n"
        )
    if "date_string" in own:
        before += DATE
    elif "strftime_now" in own:
        warnings.warn(
            "The chat template writes today's date: the endpoint will ask with other "
            "tokens than the model was trained on.",
            stacklevel=3,
        )
    if start and not (plain or with_system).startswith(start):
        # The tokenizer begins every text with it; the model was trained so.
        before += "{{- bos_token -}}\n"
    source = before + OWN_BEGINS + own if before else own

    turns = [system, question] if writes_system else [question]
    ask = render_chat(tokenizer, turns, source, ask=True)
    answer = {"role": "assistant", "content": "course-answer"}
    whole = render_chat(tokenizer, [*turns, answer], source, ask=False)
    tail = whole.partition("course-answer")[2]
    ends = _first_token(tail, tokenizer)
    if not whole.startswith(ask) or ends is None:
        raise TemplateError(
            f"The chat template writes {_short(tail)} after an answer, where no token "
            "ends it, or does not continue the prompt with it: set "
            "template='instruction', or give a template that does."
        )
    stop, length = ends
    skeleton = re.sub("course-(system|question|answer)", "\0", whole)
    marks = {*TAG.findall(skeleton), *tokenizer.all_special_tokens, stop}
    marks |= {piece for piece in _added(tokenizer) if piece in skeleton or "|" in piece}
    pieces = [piece.strip() for piece in skeleton.split("\0")]
    marks |= {piece for piece in pieces if not TAG.search(piece) and len(piece) > 2}
    begun = ask.rpartition("course-question")[2]
    unasked = _tried(tokenizer, turns, source, ask=False) or ""
    generation = ask.removeprefix(unasked) if ask.startswith(unasked) else ""
    template = ChatTemplate(
        name="chat",
        tokenizer=tokenizer,
        system_prompt=system_prompt,
        stop=(stop,),
        marks=_longest_first(marks),
        source=source,
        answer_begins=generation or begun,
        answer_ends=tail[:length],
        tail=tail,
        writes_system=writes_system,
        _start=start,
    )
    template.preprocess_batch(
        {name: [text] for name, text in template.add_text(PROBE).items()}, None
    )
    return template


def warn_of_other_frame(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """Warn if a row is in another frame than the tokenizer's chat template.

    Args:
        tokenizer: of the model that is to be trained.
        ids: of a row of the training set.
    """
    if not has_chat_template(tokenizer):
        return
    try:
        answers = chat_template(tokenizer).find_answers(list(ids))
    except TemplateError:
        return  # it cannot be used, so another frame it must be
    if all(label == IGNORED for label in answers):
        warnings.warn(
            "The model has a chat template, and the rows are in another frame, which "
            "it has to learn first: it begins "
            f"{_short(tokenizer.decode(list(ids)[:40]))}. Make the rows with "
            "`template_for(settings, tokenizer)` and template='chat'.",
            stacklevel=3,
        )


PROBE = {"instruction": "What is it?", "response": "It is a service.", "context": "So."}


def load_template(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase
) -> InstructionTemplate | ChatTemplate:
    """Return the template that an adapter's folder names.

    First used in lesson 05, section 1.

    Args:
        folder: which holds course_template.json.
        tokenizer: of the model.

    Raises:
        TemplateError: if there is no such file, or it is damaged, or it describes
            another template than this tokenizer gives.
    """
    folder = Path(folder)
    saved = read_description(folder)
    if saved["name"] == "instruction":
        template = instruction_template(tokenizer)
    else:
        template = chat_template(
            tokenizer, saved["system_prompt"], saved["chat_template"]
        )
    wrong = [
        key
        for key, value in template.describe().items()
        if key != "marks" and saved.get(key) != value
    ]
    if wrong:
        raise TemplateError(
            f"{folder.name}/{TEMPLATE_FILE} says {wrong[0]}="
            f"{_short(str(saved.get(wrong[0])))}, which this tokenizer or this version "
            "of the course does not give: load the tokenizer beside it, or save the "
            "adapter again with save_adapter."
        )
    return template


def read_description(folder: Path) -> dict[str, Any]:
    """Return what course_template.json says, checked for form.

    Raises:
        TemplateError: if it is missing, cannot be read, or lacks something.
    """
    where = f"{folder.name}/{TEMPLATE_FILE}"
    try:
        saved = json.loads((folder / TEMPLATE_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TemplateError(
            f"{where} cannot be read ({_reason(error)}), so that nobody can tell in "
            "which template the adapter was tuned: save it again with save_adapter."
        ) from None
    problem = wrong_description(saved)
    if problem:
        raise TemplateError(f"{where} {problem}: save it again with save_adapter.")
    return saved


def wrong_description(saved: Any) -> str | None:
    """Say what is wrong with the content of a course_template.json; None if nothing."""
    if not isinstance(saved, dict) or saved.get("version") != TEMPLATE_VERSION:
        return f"is not of version {TEMPLATE_VERSION}"
    wanted = dict.fromkeys(("system_prompt", "prompt", "prompt_with_context"), str)
    wanted |= {"stop": list, "marks": list}
    if saved.get("name") == "chat":
        wanted |= {"chat_template": str, "writes_system": bool}
    elif saved.get("name") != "instruction":
        return f"names the template {saved.get('name')!r}, which is none"
    for key, kind in wanted.items():
        if not isinstance(saved.get(key), kind):
            return f"has no {key}"
        if kind is list and not all(isinstance(x, str) and x for x in saved[key]):
            return f"has a {key} that is no list of texts"
    return None


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, str]],
    source: str,
    ask: bool,
) -> str:
    """Return a chat as a Jinja template writes it.

    Args:
        tokenizer: knows the tokens that a template names.
        turns: `role` and `content` of each.
        source: the template.
        ask: whether the beginning of the assistant's turn follows.
    """
    return tokenizer.apply_chat_template(
        list(turns), chat_template=source, tokenize=False, add_generation_prompt=ask
    )


def _tried(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, str]],
    source: str,
    ask: bool = True,
) -> str | None:
    """Return a chat as a template writes it; None where it refuses."""
    from jinja2 import TemplateError as Refusal

    try:
        return render_chat(tokenizer, turns, source, ask)
    except Refusal:
        return None


def _added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the tokens that were added to the vocabulary whole."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def _first_token(
    text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, int] | None:
    """Return the first added token in a text, and where it ends; None if none is."""
    found = [
        (text.index(token), -len(token), token)
        for token in (*_added(tokenizer), *tokenizer.all_special_tokens)
        if token.strip() and token in text
    ]
    if not found:
        return None
    place, length, token = min(found)
    return token, place - length


def _longest_first(marks: Any) -> tuple[str, ...]:
    marks = {mark for mark in marks if len(mark) > 1 and mark.strip() == mark}
    return tuple(sorted(marks, key=lambda mark: (-len(mark), mark)))


def _jinja_text(text: str) -> str:
    """Return a text as Jinja reads it between quotes, whatever it holds."""
    escaped = text.encode("unicode_escape").decode("ascii")
    for character in "'{}%#":
        escaped = escaped.replace(character, f"\\x{ord(character):02x}")
    return f"'{escaped}'"


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the turns of a conversation.

    Raises:
        TemplateError: naming the turn that is out of order, or no text.
    """
    turns = [dict(turn) for turn in messages]
    first = bool(turns) and turns[0].get("role") == "system"
    for place, turn in enumerate(turns):
        wanted = "user" if (place - first) % 2 == 0 else "assistant"
        if place == 0 and first:
            wanted = "system"
        content = turn.get("content")
        if turn.get("role") != wanted:
            raise TemplateError(
                f"Turn {place} has the role {turn.get('role')!r}, where {wanted!r} was "
                "expected: user and assistant speak by turns, after a system turn at "
                "most. Correct the order, or leave the conversation out."
            )
        if not isinstance(content, str) or not content.strip():
            raise TemplateError(
                f"Turn {place} says {content!r}: write its content as text, or leave "
                "the conversation out."
            )
    if not turns or turns[-1]["role"] != "assistant":
        raise TemplateError(
            f"The conversation of {len(turns)} turns does not end with an answer of "
            "the assistant: nothing could be learned from its end."
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _straddles(where: str, before: str, after: str) -> TemplateError:
    """Say that whoever asks, and tokenises the prompt alone, sends other tokens."""
    return TemplateError(
        f"{where}: a token straddles the border of an answer, at "
        f"{before[-20:] + after[:20]!r}. Change the text there, or set "
        "template='instruction'."
    )


def _row(ids: list[int], labels: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _short(text: str) -> str:
    return repr(text if len(text) <= QUOTE else text[:QUOTE] + "…")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
