"""Which folder of an archive is the model, and what its `serving.properties` say.

The rules are those that DJL Serving 0.36.0 was seen to follow; `utils.artifact` uses
the same functions to warn before anything is deployed.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENGINES = ("Python", "MPI")
STORE_NAME = "model"  # SageMaker unpacks the archive into /opt/ml/model
CAUSAL_LM = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


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
            if name.startswith("OPTION_"):
                key = name.removeprefix("OPTION_").lower()
                options.setdefault("entryPoint" if key == "entrypoint" else key, value)
        return options

    @property
    def engine(self) -> str:
        """The engine's name as written, or "Python" where model.py speaks for itself.

        Raises:
            LoadError: if nothing tells.
        """
        if "engine" in self.properties:
            return self.properties["engine"]
        if any((self.folder / f"{stem}.py").is_file() for stem in ("model", self.name)):
            return "Python"
        raise LoadError(f"Failed to detect engine of the model: {self.folder}")

    @property
    def entry_point(self) -> str:
        return self.options.get("entryPoint", "model.py")

    @property
    def handler(self) -> str:
        return self.options.get("handler", "handle")

    @property
    def batch_size(self) -> int:
        return self._number("batch_size", 1)

    @property
    def max_batch_delay(self) -> float:
        """Seconds that a request waits for others to fill the batch."""
        return self._number("max_batch_delay", 100) / 1000

    @property
    def job_queue_size(self) -> int:
        return self._number("job_queue_size", 1000)

    @property
    def workers(self) -> int:
        """Processes started. The real server may start more under load."""
        return max(1, self._number("minWorkers", 1))

    @property
    def predict_timeout(self) -> int:
        return self._number("predict_timeout", 240)

    @property
    def model_loading_timeout(self) -> int:
        return self._number("model_loading_timeout", 1200)

    @property
    def async_mode(self) -> bool:
        """Whether the handler must be `async def`.

        In images for large models the config.json of a causal language model at the
        root switches it on, unless rolling_batch is "disable" or batch_size above 1.
        """
        wanted = self.options.get("async_mode")
        if wanted is not None:
            return wanted.strip().lower() == "true"
        if self.options.get("rolling_batch") == "disable" or self.batch_size > 1:
            return False
        try:
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
            architectures = config.get("architectures") or []
        except (OSError, ValueError, AttributeError):
            return False
        return any(str(name).endswith(CAUSAL_LM) for name in architectures)

    def _number(self, key: str, default: int) -> int:
        value = self.options.get(key)
        if value is None:
            return default
        try:
            return int(value)
        except ValueError:
            raise LoadError(
                f"serving.properties: {key}={value!r} is no whole number "
                f'(java.lang.NumberFormatException: For input string: "{value}")'
            ) from None


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
    """The `serving.properties` of a model; the file's name may have any case."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.lower() == "serving.properties":
            try:
                return parse_properties(path.read_text("utf-8"))
            except UnicodeDecodeError as error:
                raise LoadError(f"{path.name} is not UTF-8: {error}") from error
    return {}


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


def check_config(model: ServedModel) -> None:
    """The image reads a config.json at the root, whatever the handler does with it.

    Raises:
        LoadError: if it cannot be read, as the server's source words it.
    """
    path = model.folder / "config.json"
    if not path.is_file():
        return
    try:
        text = path.read_text("utf-8")
        readable = not text.strip() or isinstance(json.loads(text), dict | None)
    except ValueError:
        readable = False
    if not readable:
        raise LoadError(
            f"Invalid huggingface model id: {model.options.get('model_id', 'null')} "
            "(the config.json at the root is no JSON object)"
        )


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
