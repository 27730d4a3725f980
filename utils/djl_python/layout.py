"""Which folder of an archive is the model, and what its `serving.properties` say.

The rules are those that DJL Serving 0.36.0 was seen to follow; `utils.deployment.artifact` uses
the same functions to warn before anything is deployed.
"""

import json
import logging
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENGINES = ("Python", "MPI")
STORE_NAME = "model"  # SageMaker unpacks the archive into /opt/ml/model
CAUSAL_LM = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# The image takes the first of these at the root for the description of the model.
DESCRIPTIONS = ("config.json", "adapter_config.json", "model_index.json", "params.json")
# Handlers that the image brings, for artifacts without code.
VLLM_HANDLER = "djl_python.lmi_vllm.vllm_async_service"
TRANSFORMERS_HANDLER = "djl_python.huggingface"
JAVA_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")

log = logging.getLogger("djl_serving")


class LoadError(Exception):
    """The model does not load, so the server ends; the text says why."""


class HangError(LoadError):
    """The model does not load and the server tries again for ever: the port stays
    shut, and an endpoint stays in `Creating` until its health check times out."""


@dataclass(frozen=True)
class ServedModel:
    """One model of the store, with the settings that the server itself reads."""

    name: str
    folder: Path
    properties: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, str]:
        """What reaches Python at the warm-up: every key, `option.` taken off.

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
        """The engine's name as written, or "Python" where files speak for themselves.

        Raises:
            LoadError: if nothing tells.
        """
        if "engine" in self.properties:
            return self.properties["engine"]
        signs = ("model.py", f"{self.name}.py", "config.json")
        if "model_id" in self.options or any(
            (self.folder / name).is_file() for name in signs
        ):
            return "Python"
        raise LoadError(f"Failed to detect engine of the model: {self.folder}")

    @property
    def entry_point(self) -> str:
        """The file or module with the handler; of the image where nothing says more."""
        if "entryPoint" in self.options:
            return self.options["entryPoint"]
        if (self.folder / "model.py").is_file():
            return "model.py"
        return VLLM_HANDLER if self.async_mode else TRANSFORMERS_HANDLER

    @property
    def handler(self) -> str:
        return self.options.get("handler", "handle")

    # These three the server reads under their plain names only.

    @property
    def batch_size(self) -> int:
        return _number(self.properties, "batch_size", 1)

    @property
    def max_batch_delay(self) -> float:
        """Seconds that a request waits for others to fill the batch."""
        return _number(self.properties, "max_batch_delay", 100) / 1000

    @property
    def job_queue_size(self) -> int:
        return _number(self.properties, "job_queue_size", 1000)

    @property
    def workers(self) -> int:
        """Processes started. The real server may start more under load."""
        return max(1, _number(self.options, "minWorkers", 1))

    @property
    def predict_timeout(self) -> int:
        return self._seconds("predict_timeout", 240)

    @property
    def model_loading_timeout(self) -> int:
        return self._seconds("model_loading_timeout", 1200)

    @property
    def async_mode(self) -> bool:
        """Whether the handler must be `async def`.

        In images for large models the config.json of a causal language model at the
        root switches it on, even against option.async_mode=false, unless batch_size is
        above 1 or rolling_batch has a value other than "auto".
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
        """A time-out; one that is no number is only logged."""
        try:
            return _number(self.options, key, default)
        except LoadError as error:
            log.warning("%s: %d s instead", error, default)
            return default


def java_integer(text: str) -> int | None:
    """A whole number as Java reads it, without blanks and of 32 bits, else None."""
    number = int(text) if JAVA_INTEGER.fullmatch(text) else 2**31
    return number if -(2**31) <= number < 2**31 else None


def _number(settings: Mapping[str, str], key: str, default: int) -> int:
    if key not in settings:
        return default
    number = java_integer(settings[key])
    if number is None:
        raise LoadError(
            f"serving.properties: {key}={settings[key]!r} is no whole number "
            f'(java.lang.NumberFormatException: For input string: "{settings[key]}")'
        )
    return number


def parse_properties(text: str) -> dict[str, str]:
    r"""Reads Java properties.

    `#` and `!` start a comment line; key and value are parted by `=`, `:` or white
    space; white space around the separator is dropped, *trailing* white space and
    quotes stay in the value; a final backslash continues a line; `\n`, `\t` and
    `\uXXXX` are escapes; the last of two equal keys wins.

    Raises:
        LoadError: for a broken `\uXXXX`.
    """
    properties: dict[str, str] = {}
    pending = ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, raw in enumerate(lines):
        line = raw.lstrip(" \t\f")
        if not pending and (not line or line[0] in "#!"):
            continue
        line = pending + line
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2 and number < len(lines) - 1:
            pending = line[:-1]
            continue
        pending = ""
        key, value = _split(line)
        properties[_unescape(key)] = _unescape(value)
    return properties


def _split(line: str) -> tuple[str, str]:
    """Parts a logical line at the first separator that no backslash protects."""
    position = 0
    while position < len(line) and line[position] not in "=: \t\f":
        position += 2 if line[position] == "\\" else 1
    rest = line[position:].lstrip(" \t\f")
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(" \t\f")
    return line[:position], rest


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    letters = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
    result, position = [], 0
    while position < len(text):
        character = text[position]
        position += 1
        if character != "\\" or position == len(text):
            result.append("" if character == "\\" else character)
            continue
        escape = text[position]
        position += 1
        if escape == "u":
            digits = text[position : position + 4]
            try:
                result.append(chr(int(digits, 16)))
            except ValueError:
                raise LoadError(
                    rf"serving.properties: \u{digits} is no Unicode escape "
                    "(java.lang.IllegalArgumentException: Malformed \\uxxxx encoding)"
                ) from None
            position += 4
        else:
            result.append(letters.get(escape, escape))
    return "".join(result)


def read_properties(folder: Path) -> dict[str, str]:
    """The `serving.properties` of a model; in Latin-1, as Java reads them."""
    path = folder / "serving.properties"
    return parse_properties(path.read_text("latin-1")) if path.is_file() else {}


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, without dot files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def find_models(
    store: Path, environment: Mapping[str, str] = os.environ
) -> list[ServedModel]:
    """The models of an unpacked archive.

    A visible plain file at the root makes the root the model; otherwise every folder
    is a model of its own name.
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


def check_engine(model: ServedModel) -> None:
    """
    Raises:
        LoadError: if the server has no such engine, as the real one words it.
    """
    if model.engine not in ENGINES:
        raise LoadError(f"Deep learning engine not found: {model.engine}")
    if model.engine == "MPI":
        raise LoadError(
            "engine=MPI starts its workers with mpirun and needs GPUs, which are not "
            "here (the real server on a machine without them: / by zero). "
            "Use engine=Python."
        )


def read_description(folder: Path) -> dict:
    """What the model says of itself at the root, {} if nothing.

    Raises:
        LoadError: if it cannot be read, as the server's source words it.
    """
    path = next((folder / n for n in DESCRIPTIONS if (folder / n).is_file()), None)
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
        raise LoadError(
            f"Invalid huggingface model id: null (the {path.name} at the root is no "
            "JSON object that describes a model)"
        )
    return description


def unpack(archive: Path, target: Path) -> Path:
    """Unpacks a model.tar.gz into `target`/model, as SageMaker does.

    Raises:
        LoadError: if the file is no gzipped tar or a member would leave the folder.
    """
    store = target / STORE_NAME
    store.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(store, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        shutil.rmtree(store, ignore_errors=True)
        raise LoadError(f"{archive.name} could not be unpacked: {error}") from error
    return store
