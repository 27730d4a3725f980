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


COUNTED = {"text": "how long"}  # a request, and its reply:
COUNTS = {"length": len(COUNTED["text"])}


@exercise("the source of a handler, in three quotation marks")
def check_handler(source: str) -> str:
    """Check an asynchronous handler that counts the characters of `text`.

    It is served as `model.py`, and asked with a text, without one, and again.

    First used in lesson 06, section 1.
    """
    from utils.deployment import artifact
    from utils.deployment.serving import ServingError, serve_locally

    require_type(str, source, "text")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.py").write_text(source, "utf-8")
        options = "engine=Python\noption.async_mode=true\n"
        (folder / "serving.properties").write_text(options, "utf-8")
        for finding in artifact.validate(folder).errors:
            raise Wrong(f"{finding.where}: {finding.what}. {finding.remedy}.")
        try:
            with serve_locally(folder) as server:
                _counts(server.ask(COUNTED))
                for bad in ({}, {"text": None}, {"text": [1, 2]}, [], 3):
                    _is_refused(server, bad)
                _counts(server.ask(COUNTED))
        except ServingError as problem:
            raise Wrong(str(problem)) from None
    return "it counts, refuses what it cannot count with 400, and goes on serving."


def _counts(reply: Any) -> None:
    if reply != COUNTS:
        raise Wrong(f"{COUNTED} should be answered {COUNTS}, found {reply}.")


def _is_refused(server: Any, bad: Any) -> None:
    """Ask for what cannot be answered, which has to be a 400."""
    from utils.deployment.serving import ServingError

    try:
        reply = server.ask(bad)
    except ServingError as problem:
        if "status 400" in str(problem):
            return
        raise Wrong(
            f"the request {bad} has to get status 400, with the reason. {problem}"
        ) from None
    raise Wrong(f"the request {bad} has to get status 400, found the reply {reply}.")


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
