"""What an archive means to the server, and the rules by which the server refuses it.

The rules are those that DJL Serving 0.36.0 was seen to follow. Each is written once, as
a `Finding`: the stand-in's server raises it as a `LoadError`, and the course's check of
an artifact collects it before anything is deployed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import javaproperties

ENGINES = ("Python", "MPI")
STORE_NAME = "model"  # SageMaker unpacks the archive into /opt/ml/model
PROPERTIES = "serving.properties"
REQUIREMENTS = "requirements.txt"
CAUSAL_LM = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# The image takes the first of these at the root for the description of the model.
DESCRIPTIONS = ("config.json", "adapter_config.json", "model_index.json", "params.json")
# Handlers that the image brings, for artifacts without code.
VLLM_HANDLER = "djl_python.lmi_vllm.vllm_async_service"
TRANSFORMERS_HANDLER = "djl_python.huggingface"
JAVA_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
# Without a whole number in these the server ends …
WHOLE_NUMBERS = (
    "batch_size",
    "max_batch_delay",
    "max_idle_time",
    "job_queue_size",
    "minWorkers",
    "maxWorkers",
    "gpu.minWorkers",
    "gpu.maxWorkers",
    "reserved_memory_mb",
    "required_memory_mb",
    "option.tensor_parallel_degree",
    "option.pipeline_parallel_degree",
)
# … and in these it takes its own limit.
TIMEOUTS = ("option.predict_timeout", "option.model_loading_timeout")
TENSOR_PARALLEL_MAX = ("option.tensor_parallel_degree", "max")

log = logging.getLogger("djl_serving")


# --- findings ---


@dataclass(frozen=True)
class Finding:
    """Something to know about an artifact before deploying it.

    Attributes:
        where: the file, or the option of serving.properties.
        what: what was found, and what it would lead to.
        remedy: what to do.
        level: "error" if the endpoint would not start or not answer, else "warning".
    """

    where: str
    what: str
    remedy: str
    level: str = "error"

    @property
    def sentences(self) -> str:
        """Return the finding as a text, without its level."""
        return f"{self.where}: {self.what}. {self.remedy}."

    def __str__(self) -> str:
        return f"{self.level}: {self.sentences}"


class LoadError(Exception):
    """The model does not load, so the server ends; the text says why.

    Attributes:
        finding: the rule that was broken, None where the reason is the model's own.
    """

    def __init__(self, reason: str | Finding):
        self.finding = reason if isinstance(reason, Finding) else None
        super().__init__(reason.sentences if isinstance(reason, Finding) else reason)


class HangError(LoadError):
    """The model does not load and the server tries again for ever.

    The port stays shut, and an endpoint stays in `Creating` until its health check
    times out.
    """


# --- serving.properties ---


class Entry(NamedTuple):
    """A key with its value, and the lines of serving.properties that hold them."""

    line: int
    key: str
    value: str
    source: str


def read_entries(text: str) -> Iterator[Entry]:
    r"""Yield each key of a serving.properties, in order, repeated ones included.

    As in Java, *trailing* white space and quotes stay in the value.

    Raises:
        LoadError: if a `\uXXXX` is broken.
    """
    line = 1
    try:
        for element in javaproperties.parse(text):
            if isinstance(element, javaproperties.KeyValue):
                yield Entry(line, element.key, element.value, element.source)
            line += len(re.findall(r"\r\n?|\n", element.source))
    except javaproperties.InvalidUEscapeError as error:
        finding = Finding(
            f"{PROPERTIES}, line {line}",
            f'{error.escape} is no Unicode escape: "Malformed \\uxxxx encoding."',
            r"Write \\ for a backslash, or \u and four hexadecimal digits",
        )
        raise LoadError(finding) from None


def parse_properties(text: str) -> dict[str, str]:
    r"""Return the keys and values of a serving.properties; the last of equal keys wins.

    Raises:
        LoadError: if a `\uXXXX` is broken.
    """
    return {entry.key: entry.value for entry in read_entries(text)}


def read_properties(folder: Path) -> dict[str, str]:
    r"""Read the serving.properties of a model, in Latin-1 as Java does.

    Returns:
        its keys and values; none if there is no such file.

    Raises:
        LoadError: if a `\uXXXX` is broken.
    """
    path = folder / PROPERTIES
    return parse_properties(path.read_text("latin-1")) if path.is_file() else {}


def java_integer(text: str) -> int | None:
    """Return a whole number as Java reads it (no blanks, 32 bits), else None."""
    number = int(text) if JAVA_INTEGER.fullmatch(text) else 2**31
    return number if -(2**31) <= number < 2**31 else None


def _no_number(key: str, value: str) -> Finding:
    return Finding(
        key,
        f'expected a whole number, found {value!r}: "java.lang.NumberFormatException"',
        "Correct the value",
    )


def _no_seconds(key: str, value: str) -> Finding:
    return Finding(
        key,
        f"expected whole seconds, found {value!r}: the server takes its own limit",
        "Correct the value",
        "warning",
    )


def _number(settings: Mapping[str, str], key: str, default: int) -> int:
    number = java_integer(settings[key]) if key in settings else default
    if number is None:
        raise LoadError(_no_number(key, settings[key]))
    return number


# --- models of an archive ---


@dataclass(frozen=True)
class ServedModel:
    """One model of the store, with the settings that the server itself reads."""

    name: str
    folder: Path
    properties: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, str]:
        """Return what reaches Python at the warm-up: every key without its `option.`.

        Variables `OPTION_X` of the container fill gaps; they do not override.
        """
        options = {
            key.removeprefix("option."): value for key, value in self.properties.items()
        }
        for name, value in self.environment.items():
            if name.startswith("OPTION_") and value:
                key = name.removeprefix("OPTION_").lower()
                options.setdefault("entryPoint" if key == "entrypoint" else key, value)
        return options

    @property
    def engine(self) -> str:
        """Return the engine's name as written, or "Python" where the files imply it.

        Raises:
            LoadError: if neither a line nor a file tells.
        """
        if "engine" in self.properties:
            return self.properties["engine"]
        signs = ("model.py", f"{self.name}.py", "config.json")
        if "model_id" in self.options or any(
            (self.folder / name).is_file() for name in signs
        ):
            return "Python"
        raise LoadError(_no_engine(self))

    @property
    def entry_point(self) -> str:
        """Return the file or module with the handler, the image's own by default."""
        if "entryPoint" in self.options:
            return self.options["entryPoint"]
        if (self.folder / "model.py").is_file():
            return "model.py"
        return VLLM_HANDLER if self.async_mode else TRANSFORMERS_HANDLER

    @property
    def handler(self) -> str:
        """Return the name of the function that answers."""
        return self.options.get("handler", "handle")

    # These three the server reads under their plain names only.

    @property
    def batch_size(self) -> int:
        """Return how many requests are handed over at once, at most."""
        return _number(self.properties, "batch_size", 1)

    @property
    def max_batch_delay(self) -> float:
        """Return how many seconds a request waits for others to fill the batch."""
        return _number(self.properties, "max_batch_delay", 100) / 1000

    @property
    def job_queue_size(self) -> int:
        """Return how many requests may wait."""
        return _number(self.properties, "job_queue_size", 1000)

    @property
    def workers(self) -> int:
        """Return the number of processes; the real server may start more under load."""
        return max(1, _number(self.options, "minWorkers", 1))

    @property
    def predict_timeout(self) -> int:
        """Return how many seconds a request may take."""
        return self._seconds("predict_timeout", 240)

    @property
    def model_loading_timeout(self) -> int:
        """Return how many seconds loading may take."""
        return self._seconds("model_loading_timeout", 1200)

    @property
    def async_mode(self) -> bool:
        """Return whether the handler must be `async def`.

        In images for large models the config.json of a causal language model at the
        root switches it on, even against option.async_mode=false, unless batch_size is
        above 1 or rolling_batch has a value other than "auto".

        Raises:
            LoadError: if batch_size or the config.json cannot be read.
        """
        rolling_batch = self.options.get("rolling_batch", "auto")
        if rolling_batch == "auto" and self.batch_size <= 1:
            description = read_description(self.folder)
            classes = description.get("architectures") or []
            classes = [*classes, *(description.get("auto_map") or {})]
            if any(str(name).endswith(CAUSAL_LM) for name in classes):
                return True
        return self.options.get("async_mode", "").lower() == "true"

    def _seconds(self, key: str, default: int) -> int:
        value = self.options.get(key, str(default))
        number = java_integer(value)
        if number is None:
            log.warning("%s", _no_seconds(f"option.{key}", value))
            return default
        return number


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted, without dot files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def find_models(
    store: Path, environment: Mapping[str, str] = os.environ
) -> list[ServedModel]:
    """Find the models of an unpacked archive.

    A visible plain file at the root makes the root the model; otherwise every folder
    is a model of its own name.

    Args:
        store: the folder of the unpacked archive.
        environment: the container's variables.

    Raises:
        LoadError: if a serving.properties cannot be read.
    """
    entries = visible(store)
    if any(path.is_file() for path in entries):
        return [ServedModel(STORE_NAME, store, read_properties(store), environment)]
    models = []
    for entry in entries:
        folder = entry
        while (inner := visible(folder)) and len(inner) == 1 and inner[0].is_dir():
            folder = inner[0]
        models.append(
            ServedModel(entry.name, folder, read_properties(folder), environment)
        )
    return models


def description_file(folder: Path) -> Path | None:
    """Return the file that the server takes for the model's description, if any."""
    return next((folder / n for n in DESCRIPTIONS if (folder / n).is_file()), None)


def read_description(folder: Path) -> dict:
    """Return what the model says of itself at the root, {} if nothing.

    Raises:
        LoadError: if it cannot be read; the server reads it whatever the handler does.
    """
    path = description_file(folder)
    if path is None:
        return {}
    try:
        text = path.read_text("utf-8")
        value = json.loads(text) if text.strip() else None
    except ValueError:
        value = ""
    description = {} if value is None else value
    if not isinstance(description, dict) or not isinstance(
        description.get("architectures"), list | None
    ):
        raise LoadError(_no_description(path.name))
    return description


# --- rules of the server ---


def whole_numbers(model: ServedModel) -> Iterator[Finding]:
    """Find settings that must be whole numbers and are not."""
    for key, value in model.properties.items():
        if java_integer(value) is not None:
            continue
        if key in TIMEOUTS:
            yield _no_seconds(key, value)
        elif key in WHOLE_NUMBERS and (key, value) != TENSOR_PARALLEL_MAX:
            yield _no_number(key, value)


def known_engine(model: ServedModel) -> Iterator[Finding]:
    """Find an engine that the server does not have, or not on this hardware."""
    engine = model.engine
    if engine not in ENGINES:
        right = next((e for e in ENGINES if e.lower() == engine.strip().lower()), None)
        yield Finding(
            "engine",
            f'{engine!r} is no engine of this server: "Deep learning engine not found"',
            f"Write engine={right or 'Python'}",
        )
    elif engine == "MPI":
        yield Finding(
            "engine",
            "MPI starts workers with mpirun and needs GPUs",
            "Write engine=Python",
        )


def readable_description(model: ServedModel) -> Iterator[Finding]:
    """Find a description at the root that the server cannot read."""
    try:
        read_description(model.folder)
    except LoadError as error:
        yield error.finding


def no_requirements(model: ServedModel) -> Iterator[Finding]:
    """Find a requirements.txt, which the server serves without if pip fails."""
    if (model.folder / REQUIREMENTS).is_file():
        yield Finding(
            REQUIREMENTS,
            "pip installs it when the container starts; a failure is only logged, and "
            "the model is served without the packages. Offline nothing is installed, "
            "so that the offline AWS refuses the archive",
            "Leave it out: the image has torch, transformers and peft",
            "warning",
        )


# What the server looks at before it starts a worker, in this order.
STARTING_RULES = (known_engine, readable_description, whole_numbers)


def never_ready(model: ServedModel) -> Finding:
    """Return what to say of a handler that is not asynchronous where it must be.

    The server cannot see it in advance: it shows when the worker calls the handler.
    """
    given = model.options.get("async_mode")
    cause = "a config.json at the root"
    remedy = "Set option.rolling_batch=disable and move config.json into a folder"
    if (given or "").lower() == "true":
        cause = "option.async_mode=true"
        remedy = f"Write `async def {model.handler}`, or take that option out"
    elif given is not None:
        cause += f", whatever option.async_mode={given} says,"
    return Finding(
        model.entry_point,
        f"{cause} switches on asynchronous mode, in which `def {model.handler}` never "
        "gets ready: the worker restarts for ever and the endpoint hangs",
        remedy,
    )


def _no_engine(model: ServedModel) -> Finding:
    folders = [path for path in visible(model.folder) if path.is_dir()]
    inner = [path.name for path in folders if any(path.glob("*.py"))]
    hint = f"; the file beside the folder {inner[0]} hides it" if inner else ""
    return Finding(
        "archive",
        f'has files at its root but no model.py and no engine{hint}: "Failed to '
        'detect engine of the model"',
        "Put serving.properties and model.py at the root",
    )


def _no_description(name: str) -> Finding:
    return Finding(
        name,
        'ends the server, which reads it whatever the handler does: "Invalid '
        f'huggingface model id: null" (the {name} at the root is no JSON object that '
        "describes a model)",
        "Move it into a folder",
    )
