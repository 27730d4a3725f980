"""Checks of serving.properties."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Iterator
from pathlib import Path

from utils.deployment.findings import (
    Finding,
    LoadError,
    ServedModel,
    error,
    layout,
    warning,
)
from utils.deployment.image import words

SERVER_KEYS = words(
    """
    engine batch_size max_batch_delay max_idle_time job_queue_size minWorkers maxWorkers
    gpu.minWorkers gpu.maxWorkers load_on_devices reserved_memory_mb required_memory_mb
    """
)
DJL_OPTIONS = words(
    """
    entryPoint handler model_id revision predict_timeout model_loading_timeout
    tensor_parallel_degree pipeline_parallel_degree rolling_batch max_rolling_batch_size
    max_rolling_batch_prefill_tokens async_mode enable_venv enable_lora max_loras
    max_lora_rank max_cpu_loras dtype trust_remote_code task quantize max_model_len
    gpu_memory_utilization enforce_eager parallel_loading mpi_mode output_formatter
    device_map low_cpu_mem_usage load_in_8bit load_in_4bit s3url engine modelName env
    pythonExecutable
    """
)
OWN_OPTIONS = words(
    """
    base_model base_revision adapter_checkpoint adapter_name max_new_tokens notes
    encoder
    """
)
MAY_BE_ZERO = frozenset(["max_batch_delay", "reserved_memory_mb", "required_memory_mb"])
# What the server takes for granted where a model.py is there.
ASSUMED = {"engine": "Python", "option.entryPoint": "model.py"}


def check_properties_file(model: ServedModel) -> Iterator[Finding]:
    """Find what is lost when the file is read as a table of keys and values."""
    path = model.folder / layout.PROPERTIES
    if not path.is_file():
        yield from _check_similar_name(model.folder)
        return
    data = path.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        yield error(
            path.name,
            "begins with a byte-order mark, which becomes part of the first key",
            "Save it as UTF-8 without one",
        )
    entries = list(layout.read_entries(data.decode("latin-1")))
    keys = [entry.key for entry in entries]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield warning(key, "is there twice: the last one wins", "Delete one of them")
    for entry in entries:
        if not entry.source.isascii():
            yield warning(
                f"{path.name}, line {entry.line}",
                "Java reads the file as Latin-1, so that other characters change",
                r"Write them as \uXXXX",
            )


def _check_similar_name(folder: Path) -> Iterator[Finding]:
    """Find a file that was meant to be serving.properties."""
    files = [file for file in layout.visible(folder) if file.is_file()]
    names = {file.name.lower(): file for file in files}
    for similar in difflib.get_close_matches(layout.PROPERTIES, names, 1, 0.8):
        try:
            lines = layout.parse_properties(names[similar].read_text("latin-1"))
            # Lines that say what is assumed anyway are no loss.
            level = "warning" if lines.items() <= ASSUMED.items() else "error"
        except LoadError:
            level = "error"
        yield Finding(
            names[similar].name,
            f"is not read: the server looks for {layout.PROPERTIES}",
            "Rename it",
            level,
        )


def check_properties(model: ServedModel) -> Iterator[Finding]:
    """Find values with blanks or quotes, and keys that nothing reads."""
    for key, value in model.properties.items():
        known = _is_known(key)
        # The value of a key that nothing reads does no harm.
        level = "error" if known else "warning"
        if value != value.strip():
            what = f"the value {value!r} keeps its trailing space"
            yield Finding(key, what, "Delete it", level)
        elif value[:1] in ("'", '"'):
            what = f"the quotes are part of the value {value}"
            yield Finding(key, what, "Delete the quotes", level)
        if not known:
            yield _unknown(key)


def _is_known(key: str) -> bool:
    name = key.removeprefix("option.")
    return name in (DJL_OPTIONS | OWN_OPTIONS if name != key else SERVER_KEYS)


def _unknown(key: str) -> Finding:
    name = key.removeprefix("option.")
    what = "is an option that nothing here reads"
    known = DJL_OPTIONS | OWN_OPTIONS
    if name == key and name in known:
        remedy = f"Write option.{name}"
    elif name != key and name in SERVER_KEYS:
        what = "is read by the server under another name"
        remedy = f"Write {name}, without `option.`"
    elif name == "adapters":
        what = "is no option: adapters are found by their folder"
        remedy = "Set option.enable_lora=true and put them into adapters/"
    else:
        near = difflib.get_close_matches(name, sorted(known | SERVER_KEYS), 1, 0.75)
        remedy = f"Check the spelling: did you mean {near[0]}" if near else "Delete it"
    return warning(key, what, remedy)


def check_sizes(model: ServedModel) -> Iterator[Finding]:
    """Find numbers that are too small, or contradict each other."""
    for key, value in model.properties.items():
        number = layout.java_integer(value)
        if key not in layout.WHOLE_NUMBERS + layout.TIMEOUTS or number is None:
            continue
        if number < (0 if key in MAY_BE_ZERO else 1):
            yield error(key, f"{value} is too small", "Write 1 or more")
    least, most = (model.options.get(k, "") for k in ("minWorkers", "maxWorkers"))
    if least.isdecimal() and most.isdecimal() and int(least) > int(most):
        yield error(
            "minWorkers",
            f"{least} is more than maxWorkers={most}",
            "Raise maxWorkers, or lower minWorkers",
        )


def check_model_id(model: ServedModel) -> Iterator[Finding]:
    """Find the option model_id together with a handler in the archive."""
    if "model_id" in model.options and model.entry_point.endswith(".py"):
        yield warning(
            "option.model_id",
            "with a handler of one's own it can switch on asynchronous mode, in which "
            "the endpoint hangs in Creating",
            "Name the base by another option (base_model)",
        )


def check_trust(model: ServedModel) -> Iterator[Finding]:
    """Find the option that runs code which came with a model."""
    if model.options.get("trust_remote_code", "").strip().lower() == "true":
        yield warning(
            "option.trust_remote_code",
            "true runs the Python files that come with the model, with everything "
            "that the container's role may do",
            "Delete it; if the model needs it, read those files and pin their revision",
        )
