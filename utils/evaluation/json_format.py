"""A format task: a support message in, JSON by a schema out; prompts and scores.

The data are `data/support_messages.csv`; `data/README.md` says by which rules topic and
urgency were given. An answer counts only if the whole of it is JSON by `SCHEMA`: a
program that reads it has no use for anything else.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, portable_name
from utils.dataset.faqs import DataError
from utils.helpers import DEFAULT_SEED

if TYPE_CHECKING:
    import pandas

MESSAGES_DATA = ROOT / "data" / "support_messages.csv"
TOPICS = ("training", "endpoint", "billing", "access", "data", "notebook")
URGENCIES = ("low", "normal", "high")
FIELDS = ("topic", "urgency", "resource")
"""The keys of an answer, in the order in which the model writes them."""

PARTS = ("train", "validation", "test")
COLUMNS = ("instruction", "response", *FIELDS, "part")
# Of nine rows in a row six train, one validates and two test; see `message_parts`.
PART_CYCLE = (
    *("train", "train", "test", "train", "train"),
    *("validation", "train", "train", "test"),
)

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "topic": {"enum": list(TOPICS)},
        "urgency": {"enum": list(URGENCIES)},
        "resource": {"type": "string", "minLength": 1},
    },
    "required": list(FIELDS),
    "additionalProperties": False,
}
"""The JSON Schema of an answer. That `resource` is copied, no schema can say."""

FORMAT_INSTRUCTION = (
    'Turn the message into JSON with the keys "topic", "urgency" and "resource".'
)
"""All that a tuned model is told: tuning has taught it the rest."""

BEST_INSTRUCTION = f"""\
You sort the messages that users send to the support of a machine learning platform.
Answer with one JSON object and nothing else: no explanation and no code fence. It has \
exactly three keys, in this order:
- "topic": one of {json.dumps(list(TOPICS))[1:-1]}.
  training: training or tuning jobs. endpoint: models that are deployed and asked. \
billing: costs, invoices, budgets. access: rights, roles, logins. data: buckets, \
tables, files, data sets. notebook: notebooks and their servers.
- "urgency": one of {json.dumps(list(URGENCIES))[1:-1]}.
  high: production is down or wrong, money is being burned, data leak or are lost, or \
there is a deadline today. low: the writer says that there is no hurry, or is only \
curious. normal: everything else.
- "resource": the name of the job, endpoint, bucket, table, file, notebook, role or \
invoice that the main problem is about, copied from the message character by character.
The JSON Schema: {json.dumps(SCHEMA)}"""
"""For a model that was not tuned: schema and rules; `best_messages` adds examples."""

RULES = BEST_INSTRUCTION.partition("\nThe JSON Schema")[0]
"""The same without the schema, which small models repeat in place of an answer."""

SHORT_INSTRUCTION = (
    f"Turn each message into JSON with the keys {', '.join(map(json.dumps, FIELDS))}. "
    f'"topic" is one of {", ".join(TOPICS)}. "urgency" is one of '
    f'{", ".join(URGENCIES)}. "resource" is the name of the thing that the message is '
    "about, copied from it. Answer with the JSON only."
)
"""What there is to know, in four sentences."""


class FormatAnswerError(DataError):
    """Answers and rows that do not belong together; the message says what to do."""


class _NotStrict(ValueError):
    """A text that Python's reader takes and the JSON standard does not."""


# --- reading and scoring answers ---


def target_json(topic: str, urgency: str, resource: str) -> str:
    """Return the answer that a model is trained to give."""
    values = (topic, urgency, resource)
    return json.dumps(dict(zip(FIELDS, values, strict=True)), ensure_ascii=False)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's pairs as a dictionary; Python would keep the last of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NotStrict("repeated key")
    return found


def _no_constant(name: str) -> None:
    raise _NotStrict(name)


def parse_answer(text: str) -> dict[str, Any] | None:
    """Return the JSON object that an answer is, or None if it is anything else.

    Strict, as a program that reads the answer has to be: the whole text is one object.
    White space around it is all that may be added. Text before or after it, a second
    object, single quotes, a comma too many, a repeated key and NaN or Infinity give
    None. So does a code fence (three backticks around the object), although a person
    would see what is meant: whoever wants to accept fences has to take them off
    knowingly, for every system that is compared. Whether the object keeps to `SCHEMA`
    is not asked here; see `format_scores`.
    """
    try:
        found = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):  # too deeply nested for the reader
        return None
    return found if isinstance(found, dict) else None


def _is_valid(found: dict[str, Any] | None) -> bool:
    from jsonschema import Draft202012Validator

    return found is not None and Draft202012Validator(SCHEMA).is_valid(found)


FAULTS = (
    "empty",
    "code fence",
    "text around the JSON",
    "no strict JSON",
    "another shape",
)
"""What `answer_fault` tells apart."""


def answer_fault(text: str) -> str:
    """Return why an answer is not valid, as one of `FAULTS`; "" if it is valid.

    "text around the JSON": an object by the schema stands in it, but not alone, as in
    "Sure! {…}". "no strict JSON": broken, single quotes, a repeated key, NaN, or no
    JSON at all. "another shape": JSON, but not by the schema.
    """
    found = parse_answer(text)
    if _is_valid(found):
        return ""
    bare = text.strip()
    if not bare:
        return "empty"
    if "```" in bare:
        return "code fence"
    start, end = bare.find("{"), bare.rfind("}")
    # Of two objects one after the other, the first is looked at.
    inner = (bare[start : end + 1], bare[start : bare.find("}") + 1])
    if any(one != bare and _is_valid(parse_answer(one)) for one in inner):
        return "text around the JSON"
    try:
        json.loads(
            bare, object_pairs_hook=_without_repeats, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        return "no strict JSON"
    return "another shape"


def _records(rows: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a table, or of anything that yields mappings."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return rows.to_dict("records")
    return list(rows)


def format_scores(
    answers: Sequence[str], rows: pandas.DataFrame | Iterable[Mapping[str, Any]]
) -> pandas.DataFrame:
    """Say of each answer whether it is valid, exact, and right in each field.

    A field can be right in an answer that is not valid by the schema, such as one with
    a fourth key; in one that is no JSON object nothing is right. The order of the keys
    does not count. Strings are compared character by character.

    First used in lesson 02, section 3.

    Args:
        answers: one a row, as the model gave them.
        rows: with `topic`, `urgency` and `resource`, as `load_messages` returns them.

    Returns:
        One row an answer, all columns truth values: `valid` (JSON by `SCHEMA`),
        `exact` (valid, and all fields right), `topic`, `urgency`, `resource`. The
        columns' means are the shares.

    Raises:
        FormatAnswerError: if there are none, or not as many answers as rows, or one is
            no text, or a row lacks a field.
    """
    import pandas

    expected = _records(rows)
    if len(answers) != len(expected) or not expected:
        raise FormatAnswerError(
            f"{len(answers)} answers for {len(expected)} rows: give one answer a row, "
            "in the rows' order, and at least one."
        )
    scores = []
    for number, (answer, row) in enumerate(zip(answers, expected, strict=True), 1):
        if not isinstance(answer, str):
            raise FormatAnswerError(
                f"Answer {number} is {answer!r}, not text: give what the model wrote, "
                "before any parsing."
            )
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise FormatAnswerError(
                f"Row {number} has no {', '.join(missing)}: give rows of "
                f"{MESSAGES_DATA.name}, as load_messages returns them."
            )
        found = parse_answer(answer)
        # A list or number is never equal to the text that is expected.
        right = {name: (found or {}).get(name) == row[name] for name in FIELDS}
        valid = _is_valid(found)
        scores.append({"valid": valid, "exact": valid and all(right.values()), **right})
    return pandas.DataFrame(scores, columns=["valid", "exact", *FIELDS])


# --- prompts ---


def tuned_prompt(message: str) -> str:
    """Return the question that a model is tuned on and asked: short, without rules.

    A template (the model's chat template, or the course's) goes around it.
    """
    return f"{FORMAT_INSTRUCTION}\n\n{message}"


def training_rows(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the rows with `tuned_prompt` of the message as their instruction."""
    return [
        {**row, "instruction": tuned_prompt(row["instruction"])}
        for row in _records(rows)
    ]


def choose_examples(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]],
    count: int = 6,
    seed: int = DEFAULT_SEED,
) -> list[dict[str, Any]]:
    """Draw worked examples from the train part, over topics and urgencies in turn.

    The first six have six topics and each urgency twice.

    Args:
        rows: of any parts; only those with `part` "train" are drawn.
        count: how many.
        seed: of the draw.

    Raises:
        FormatAnswerError: if the train part has too few rows.
    """
    train = [dict(row) for row in _records(rows) if row.get("part") == "train"]
    if not 0 <= count <= len(train):
        raise FormatAnswerError(
            f"{count} examples are wanted of {len(train)} rows in the train part: give "
            "a count between 0 and that, and rows with their column part."
        )
    generator = random.Random(seed)
    generator.shuffle(train)
    chosen: list[dict[str, Any]] = []
    turn = 0
    while len(chosen) < count:
        # Every six turns the urgencies move on by one against the topics.
        topic = TOPICS[turn % len(TOPICS)]
        urgency = URGENCIES[(turn + turn // len(TOPICS)) % len(URGENCIES)]
        fitting = [r for r in train if (r["topic"], r["urgency"]) == (topic, urgency)]
        turn += 1
        # A small file may lack a pair of topic and urgency: then anything goes.
        if not fitting and turn > len(TOPICS) * len(URGENCIES):
            fitting = train
        if fitting:
            chosen.append(fitting[0])
            train.remove(fitting[0])
    generator.shuffle(chosen)
    return chosen


def few_shot_messages(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]],
    count: int = 6,
    seed: int = DEFAULT_SEED,
) -> list[dict[str, str]]:
    """Return worked examples as turns of a chat: a message, then its JSON.

    Args:
        rows: of any parts; only train rows are drawn (`choose_examples`).
        count: examples, of two turns each.
        seed: of the draw.

    Raises:
        FormatAnswerError: if the train part has too few rows.
    """
    turns = []
    for row in choose_examples(rows, count, seed):
        turns.append({"role": "user", "content": row["instruction"]})
        turns.append({"role": "assistant", "content": row["response"]})
    return turns


def best_messages(
    message: str,
    examples: Sequence[Mapping[str, str]] = (),
    instruction: str = BEST_INSTRUCTION,
) -> list[dict[str, str]]:
    """Return the chat for a model that was not tuned: rules, examples, the message.

    Render it with the tokenizer: `apply_chat_template(…, add_generation_prompt=True)`.

    Args:
        message: of the user.
        examples: turns, from `few_shot_messages`.
        instruction: that the chat begins with.
    """
    return [
        {"role": "system", "content": instruction},
        *(dict(turn) for turn in examples),
        {"role": "user", "content": message},
    ]


def best_prompt(message: str, examples: Sequence[Mapping[str, str]] = ()) -> str:
    """Return the same as one text, for a template that knows one question only.

    Args:
        message: of the user.
        examples: turns, from `few_shot_messages`.
    """
    heading = {"user": "Message", "assistant": "JSON"}
    shown = [f"{heading[turn['role']]}: {turn['content']}" for turn in examples]
    blocks = [f"{m}\n{a}" for m, a in zip(shown[::2], shown[1::2], strict=True)]
    return "\n\n".join([BEST_INSTRUCTION, *blocks, f"Message: {message}\nJSON:"])


def candidates(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]],
) -> dict[str, Callable[[str], list[dict[str, str]]]]:
    """Return ways to ask a model that was not tuned: name → message → turns of a chat.

    Which one is best is a question to the validation part, model by model.

    Args:
        rows: of any parts; examples are drawn from the train part.
    """
    rows = _records(rows)
    six, twelve = few_shot_messages(rows, 6), few_shot_messages(rows, 12)

    def one_text(message: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": best_prompt(message, six)}]

    return {
        "rules, schema and six examples, one text": one_text,
        "rules and six examples, as turns": lambda message: best_messages(
            message, six, RULES
        ),
        "four sentences, no examples": lambda message: best_messages(
            message, (), SHORT_INSTRUCTION
        ),
        "four sentences and six examples, as turns": lambda message: best_messages(
            message, six, SHORT_INSTRUCTION
        ),
        "four sentences and twelve examples, as turns": lambda message: best_messages(
            message, twelve, SHORT_INSTRUCTION
        ),
    }


# --- the file ---


def message_parts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the part of each row: two thirds train, 1/9 validates and 2/9 test.

    A fixed rule without a seed: the rows are sorted by topic, urgency (as texts) and
    the SHA-256 of the message, and `PART_CYCLE` is dealt out along that order. So every
    topic and urgency is shared out alike, and the order of the file does not matter.
    """
    records = list(rows)

    def place(number: int) -> tuple[str, str, str]:
        row = records[number]
        digest = hashlib.sha256(row["instruction"].encode()).hexdigest()
        return row["topic"], row["urgency"], digest

    parts = [""] * len(records)
    for turn, number in enumerate(sorted(range(len(records)), key=place)):
        parts[number] = PART_CYCLE[turn % len(PART_CYCLE)]
    return parts


def load_messages(path: str | Path = MESSAGES_DATA) -> pandas.DataFrame:
    """Read a file of support messages with their JSON, and check every row.

    First used in lesson 02, section 3.

    Args:
        path: CSV with the columns `instruction` (the message), `response` (its JSON),
            `topic`, `urgency`, `resource` and `part`.

    Returns:
        The rows as text; the index is the row's number in a spreadsheet, from 2 on.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if a row is not what it should be, naming the row, what was found
            and what to do.
    """
    import pandas

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {portable_name(path)}: restore data/{MESSAGES_DATA.name}"
            " from the repository, or give the path of your own."
        )
    try:
        # "NA" and "None" may be names: nothing but an empty cell is empty.
        frame = pandas.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (ValueError, UnicodeError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(
            f"{path.name} cannot be read as CSV in UTF-8 ({error}): save it as such."
        ) from None
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(
            f"{path.name} has no column {', '.join(missing)}: its columns must be "
            f"{', '.join(COLUMNS)}."
        )
    if frame.empty:
        raise DataError(f"{path.name} has no rows: give at least one message.")
    frame.index = pandas.RangeIndex(2, len(frame) + 2)
    for number, row in frame.iterrows():
        fault = _row_fault(row)
        if fault:
            raise DataError(f"{path.name}, row {number}: {fault}")
    repeated = frame["instruction"].duplicated()
    if repeated.any():
        number = frame.index[repeated][0]
        first = frame.index[frame["instruction"] == frame.at[number, "instruction"]][0]
        raise DataError(
            f"{path.name}, row {number}: the message of row {first} stands here again. "
            "Remove one of the two."
        )
    return frame


def _row_fault(row: Mapping[str, str]) -> str:
    """Return what is wrong with a row and what to do; "" if nothing is."""
    if not row["instruction"].strip():
        return "the message (instruction) is empty. Write it, or remove the row."
    for name, known in (("topic", TOPICS), ("urgency", URGENCIES), ("part", PARTS)):
        if row[name] not in known:
            return f"{name} is {row[name]!r}. Write one of {', '.join(known)}."
    count = row["instruction"].count(row["resource"]) if row["resource"] else 0
    if count != 1:
        return (
            f"the resource {row['resource']!r} stands {count} times in the message. "
            "Copy it from there character by character, and let it occur once."
        )
    wanted = target_json(row["topic"], row["urgency"], row["resource"])
    if row["response"] != wanted:
        return (
            f"the response is {row['response']!r}, its columns say {wanted!r}. Make "
            "them agree, with the spaces of json.dumps."
        )
    return ""
