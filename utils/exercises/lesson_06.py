"""Checks for the exercises of lesson 06, deployment."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.exercises.frame import Wrong, exercise, read_number, require_type

# Below these, drawing is as good as taking the likeliest token.
LEAST_FOR_A_DRAW = {"temperature": 0.2, "top_p": 0.2, "top_k": 2}
FORGOTTEN_HOURS = 62  # Friday 18:00 to Monday 8:00


@exercise("the text of a serving.properties, in three quotation marks")
def check_serving_properties(text: str) -> str:
    """Check a serving.properties: adapter in `lora`, base in `base`, batches of 4.

    First used in lesson 06, section 2.
    """
    from utils.djl_python.layout import ENGINES, LoadError, parse_properties

    require_type(str, text, "text")
    try:
        found = parse_properties(text)
    except LoadError as problem:
        raise Wrong(str(problem)) from None
    for key, value in found.items():
        if value != value.strip():
            raise Wrong(f"{key} ends in a space, which would stay part of the value.")
        if value[:1] in ("'", '"'):
            raise Wrong(f"the quotation marks of {key} would stay part of the value.")
    if "engine" not in found:
        raise Wrong("which engine? The first line names it.")
    if found["engine"] != "Python":
        known = found["engine"].lower() in map(str.lower, ENGINES)
        more = " Its name is written with a capital." if known else ""
        raise Wrong(f"the server knows no engine {found['engine']!r}.{more}")
    for option, value in {
        "option.base_model": "base",
        "option.adapter_checkpoint": "lora",
        "batch_size": "4",
    }.items():
        bare = option.removeprefix("option.")
        if option not in found and option != bare and bare in found:
            raise Wrong(f"write {option}: without the prefix it is the server's.")
        if option not in found and f"option.{option}" in found:
            raise Wrong(f"{option} is read by the server itself: no prefix.")
        if found.get(option) != value:
            raise Wrong(f"{option} should be {value!r}, found {found.get(option)!r}.")
    if found.get("option.rolling_batch") != "disable":
        raise Wrong(
            "one line is missing: the one that keeps the server out of asynchronous "
            "mode, whatever lies in the archive."
        )
    for finding in _findings_with(text):
        raise Wrong(f"{finding.where}: {finding.what}. {finding.remedy}.")
    return "the server would start, load both folders and gather four requests."


def _findings_with(properties: str) -> list[Any]:
    """Return what `artifact.validate` finds in an archive with these properties."""
    from utils.deployment import artifact

    no_tensors = b"\2" + bytes(7) + b"{}"  # the shortest safetensors file there is
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        (folder / "lora").mkdir()
        (folder / "serving.properties").write_text(properties, "utf-8")
        (folder / "model.py").write_bytes(artifact.ENTRY_POINT.read_bytes())
        for file in ("base/config.json", "base/tokenizer.json"):
            (folder / file).write_text("{}")
        (folder / "base/model.safetensors").write_bytes(no_tensors)
        (folder / "lora/adapter_config.json").write_text("{}")
        (folder / "lora/adapter_model.safetensors").write_bytes(no_tensors)
        return artifact.validate(folder, load=False).findings


@exercise("a dictionary with inputs and parameters")
def check_payload(
    payload: Mapping[str, Any], ask: Callable[..., Any], question: str
) -> str:
    """Check a request for up to 20 new tokens, sampled, and the same when sent again.

    First used in lesson 06, section 8.

    Args:
        payload: the learner's answer.
        ask: sends a payload to the endpoint and returns its reply.
        question: what is to be asked.
    """
    require_type(Mapping, payload, "a dictionary")
    if payload.get("inputs") != question:
        raise Wrong('"inputs" holds the question, as it stands in `question`.')
    parameters = payload.get("parameters")
    if not isinstance(parameters, Mapping):
        raise Wrong('how to decode goes into a dictionary under "parameters".')
    foreign = {"max_tokens", "max_length", "n_tokens"} & set(parameters)
    if foreign:
        raise Wrong(f"{foreign.pop()!r} is another service's name: max_new_tokens.")
    given = {name: value for name, value in parameters.items() if value is not None}
    empty = sorted(set(parameters) - set(given))
    if empty:
        raise Wrong(f"{empty[0]} is None, which counts as not given.")
    budget = given.get("max_new_tokens")
    if type(budget) is not int or not 1 <= budget <= 20:
        raise Wrong(
            "the budget is max_new_tokens, a whole number from 1 to 20; without it "
            "the endpoint takes its own."
        )
    if given.get("do_sample") is False:
        raise Wrong("do_sample=False is greedy: nothing is drawn.")
    if not {"do_sample", "temperature", "top_p", "top_k"} & set(given):
        raise Wrong("this is greedy: nothing is drawn. Ask for a temperature.")
    for name, least in LEAST_FOR_A_DRAW.items():
        value = given.get(name)
        if isinstance(value, int | float) and value < least:
            raise Wrong(
                f"{name}={value} leaves next to nothing to draw from but the likeliest "
                f"token, which is greedy again: give at least {least}."
            )
    if "seed" not in given:
        raise Wrong("sent twice, this gets two answers: give it a seed.")
    try:
        first, second = ask(dict(payload)), ask(dict(payload))
    except Exception as problem:
        response = getattr(problem, "response", {})
        raise Wrong(response.get("OriginalMessage", str(problem))) from None
    if first != second:
        raise Wrong("the endpoint gave two different answers.")
    return "sampled, short, and the same twice."


@exercise("an amount in US dollars")
def check_forgotten_endpoint(cost: float, price: float) -> str:
    """Check what an endpoint costs from Friday 18:00 to Monday 8:00.

    First used in lesson 06, section 5.

    Args:
        cost: the learner's answer, in US dollars.
        price: of an hour.
    """
    found = read_number(cost, "an amount in US dollars")
    for hours, hint in {
        14: "Saturday and Sunday are billed too.",
        38: "that is one day too few: Saturday and Sunday have 24 hours each.",
        1: "that is one hour; the endpoint is there for a whole weekend.",
        48: "Friday evening and Monday morning are billed too.",
        86: "that is one day too many.",
    }.items():
        if abs(found - hours * price) < 0.005 * price:
            raise Wrong(hint)
    if abs(found - FORGOTTEN_HOURS) < 0.005:
        raise Wrong("those are the hours; each has a price.")
    if found < 0.1 * price:
        raise Wrong("not the questions are billed but the hours in which it is there.")
    if abs(found - FORGOTTEN_HOURS * price) > 0.005 * FORGOTTEN_HOURS * price:
        raise Wrong(
            f"{found:.2f} would be {found / price:.1f} hours. Count those from Friday "
            "18:00 to midnight, two whole days, and Monday's until 8:00."
        )
    return f"{FORGOTTEN_HOURS} hours, for three questions. Hence the teardown."
