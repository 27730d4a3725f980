"""Builds the artifact that a DJL endpoint serves, and checks it before it costs money.

`build` writes a folder and packs it as `model.tar.gz`; `validate` knows the traps that
end in "did not pass the ping health check" and says for each what to do. From the
command line: `python -m utils.artifact check build/model.tar.gz`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gzip
import json
import re
import shutil
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from utils.course import CourseError
from utils.djl_python.layout import (
    ENGINES,
    LoadError,
    ServedModel,
    find_models,
    parse_properties,
    unpack,
    visible,
)

ENTRY_POINT = Path(__file__).with_name("deployment_model.py")
BASE_FOLDER = "base"
ADAPTER_FOLDER = "adapter"
HEAVY_CALLS = ("from_pretrained", "pipeline", "snapshot_download", "load_model")
ADAPTERS_FOLDER = "adapters"  # where the image's own handler looks for several
VLLM_HANDLER = "djl_python.lmi_vllm.vllm_async_service"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
LORA_RANK_LIMIT = 16  # where no option says otherwise
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
FILE_LIMIT = 20 * 2**30  # bytes; larger models are better named by an S3 prefix

SERVER_KEYS = [
    "engine",
    "batch_size",
    "max_batch_delay",
    "max_idle_time",
    "job_queue_size",
    "minWorkers",
    "maxWorkers",
    "load_on_devices",
    "gpu.minWorkers",
    "gpu.maxWorkers",
    "reserved_memory_mb",
]
DJL_OPTIONS = [
    "entryPoint",
    "handler",
    "model_id",
    "revision",
    "predict_timeout",
    "model_loading_timeout",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
    "rolling_batch",
    "max_rolling_batch_size",
    "async_mode",
    "enable_venv",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
    "dtype",
    "trust_remote_code",
    "task",
    "quantize",
    "max_model_len",
    "gpu_memory_utilization",
    "parallel_loading",
    "mpi_mode",
    "output_formatter",
    "device_map",
    "low_cpu_mem_usage",
    "load_in_8bit",
    "load_in_4bit",
    "s3url",
    "engine",
    "modelName",
    "enforce_eager",
    "max_rolling_batch_prefill_tokens",
]
OWN_OPTIONS = [
    "base_model",
    "base_revision",
    "adapter_checkpoint",
    "adapter_name",
    "max_new_tokens",
]
NUMBERS = [
    "batch_size",
    "max_batch_delay",
    "job_queue_size",
    "minWorkers",
    "maxWorkers",
    "predict_timeout",
    "model_loading_timeout",
]
MAY_BE_ZERO = ["max_batch_delay"]
GZIP_MAGIC = b"\x1f\x8b"
# The least that the image of DJL Serving 0.36.0 holds.
IMAGE_VERSIONS = {"torch": "2.11.0", "transformers": "4.56", "peft": "0.19.1"}
# Packages of the LMI image that an entry point may import, beside Python's own.
IN_IMAGE = [
    "djl_python",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "accelerate",
    "numpy",
    "scipy",
    "pandas",
    "PIL",
    "requests",
    "urllib3",
    "yaml",
    "tqdm",
    "packaging",
    "filelock",
    "sentencepiece",
    "protobuf",
    "google",
    "einops",
    "vllm",
    "boto3",
    "botocore",
    "datasets",
    "regex",
    "jinja2",
    "pydantic",
    "psutil",
    "pyarrow",
    "fastapi",
    "aiohttp",
]


class ArtifactError(CourseError, ValueError):
    """An artifact that cannot be built, or must not be deployed."""


# --- building ------------------------------------------------------------------------


def build(
    base: str | Path,
    adapter: Path | None,
    folder: Path,
    archive: Path,
    *,
    base_revision: str | None = None,
    adapter_name: str = "adapter",
    entry_point: Path = ENTRY_POINT,
    options: Mapping[str, str | int] | None = None,
) -> Path:
    """Writes the artifact's folder and packs it.

    Nothing half written is left behind: both appear under their names only when they
    are complete. The same input gives the same bytes.

    Args:
        base: a folder, which is packed, or a hub id, which the endpoint downloads.
        adapter: what peft saved, with its tokenizer; None for the base alone.
        folder: where the artifact is laid out; replaced if it exists.
        archive: the `model.tar.gz` to write.
        base_revision: the hub's version of the base.
        adapter_name: what a request may call the adapter.
        entry_point: packed as model.py.
        options: further lines of serving.properties, which override the usual ones.

    Returns:
        `archive`.

    Raises:
        ArtifactError: if base or adapter lack a file that serving needs.
    """
    with _unfinished(folder) as unfinished:
        local = Path(base) if Path(base).is_dir() else None
        properties: dict[str, str | int] = {
            "engine": "Python",
            "option.entryPoint": "model.py",
            # Without this line a config.json at the root would switch to asynchronous
            # mode, in which this handler never becomes ready.
            "option.rolling_batch": "disable",
            "option.base_model": BASE_FOLDER if local else str(base),
            "batch_size": 8,
            "max_batch_delay": 20,
        }
        if local:
            _copy_base(local, unfinished / BASE_FOLDER)
        elif base_revision:
            properties["option.base_revision"] = base_revision
        if adapter is not None:
            _copy_adapter(adapter, unfinished / ADAPTER_FOLDER)
            properties["option.adapter_checkpoint"] = ADAPTER_FOLDER
            properties["option.adapter_name"] = adapter_name
        _write_properties(unfinished, properties | dict(options or {}))
        shutil.copyfile(entry_point, unfinished / "model.py")
    return pack(folder, archive)


def build_without_code(
    base: Path,
    adapters: Path | Mapping[str, Path],
    folder: Path,
    archive: Path,
    *,
    dtype: str = "float32",
    options: Mapping[str, str | int] | None = None,
) -> Path:
    """Writes an artifact with no Python file: the image's own handler serves it.

    That handler is vLLM, which batches continuously: a request joins those that are
    being answered, and does not wait for a batch to end. It knows nothing of this
    course's template: the client builds the prompt, and names `do_sample: false` for
    a greedy answer.

    Args:
        base: the folder of a model.
        adapters: one adapter, which is merged into the base; or several by name,
            which stay beside it, so that each request can say which it wants
            (`{"inputs": …, "adapters": name}`; without it the base answers).
        folder: where the artifact is laid out; replaced if it exists.
        archive: the `model.tar.gz` to write.
        dtype: in which base and adapter are added up and saved; a shorter type halves
            the archive and rounds the sum.
        options: further lines of serving.properties, which override the usual ones.

    Returns:
        `archive`.

    Raises:
        ArtifactError: if base or adapter lack a file that serving needs.
    """
    properties: dict[str, str | int] = {
        "engine": "Python",
        "option.entryPoint": VLLM_HANDLER,
        "option.async_mode": "true",
        "option.rolling_batch": "disable",
    }
    with _unfinished(folder) as unfinished:
        if isinstance(adapters, Mapping):
            _copy_base(base, unfinished)
            for name, adapter in adapters.items():
                _copy_adapter(adapter, unfinished / ADAPTERS_FOLDER / name)
            configs = unfinished.glob(f"{ADAPTERS_FOLDER}/*/adapter_config.json")
            ranks = [json.loads(path.read_text("utf-8"))["r"] for path in configs]
            if not 1 <= max(ranks, default=0) <= max(LORA_RANKS):
                raise ArtifactError(
                    f"the largest r of the adapters is {max(ranks, default=0)}: vLLM "
                    f"serves at least one adapter, of up to {max(LORA_RANKS)}"
                )
            properties |= {
                "option.enable_lora": "true",
                "option.max_loras": len(adapters),
                # vLLM takes these values only.
                "option.max_lora_rank": min(r for r in LORA_RANKS if r >= max(ranks)),
            }
        else:
            _merge(base, adapters, unfinished, dtype)
        _let_answers_end(unfinished)
        _write_properties(unfinished, properties | dict(options or {}))
    return pack(folder, archive)


def _merge(base: Path, adapter: Path, target: Path, dtype: str) -> None:
    """Adds the adapter's matrices to those of the base and saves the sum."""
    for name in ADAPTER_FILES:
        _require(adapter, name, "an adapter's folder, saved by peft's save_pretrained")
    _require_base(base)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(target)
    tokenizer = adapter if (adapter / "tokenizer.json").is_file() else base
    _copy(tokenizer, target, TOKENIZER_FILES)
    _fit_for_older_readers(target)


def _let_answers_end(folder: Path) -> None:
    """Makes the template's end key end an answer, where it is one token.

    With a handler of one's own that is its task; here the configuration says it.
    """
    from transformers import AutoTokenizer

    from utils.helpers import END_KEY

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    end = tokenizer(END_KEY, add_special_tokens=False)["input_ids"]
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    ends = [tokenizer.eos_token_id, *(end if len(end) == 1 else [])]
    settings["eos_token_id"] = [number for number in ends if number is not None]
    _write_json(path, settings)


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when it is complete."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_properties(folder: Path, properties: Mapping[str, str | int]) -> None:
    lines = [f"{key}={value}" for key, value in properties.items()]
    (folder / "serving.properties").write_text("\n".join(lines) + "\n", "utf-8")


def pack(folder: Path, archive: Path) -> Path:
    """Packs a folder's content, not the folder itself, with fixed times and owners."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_name(archive.name + ".part")
    try:
        with (
            unfinished.open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in sorted(folder.rglob("*")):
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                if path.is_dir():
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
                else:
                    member.size, member.mode = path.stat().st_size, 0o644
                    with path.open("rb") as file:
                        tar.addfile(member, file)
        unfinished.replace(archive)
    finally:
        unfinished.unlink(missing_ok=True)
    return archive


def _copy_base(source: Path, target: Path) -> None:
    _require_base(source)
    target.mkdir(exist_ok=True)
    _copy(source, target, (*MODEL_FILES, *TOKENIZER_FILES))
    for path in sorted(source.glob("*.safetensors")):
        shutil.copyfile(path, target / path.name)
    _fit_for_older_readers(target)


def _require_base(source: Path) -> None:
    _require(source, "config.json", "a model's folder")
    _require(source, "tokenizer.json", "a model's folder")
    if not any(source.glob("*.safetensors")):
        raise ArtifactError(
            f"{source.name} has no *.safetensors: save the model with save_pretrained"
        )


def _copy_adapter(source: Path, target: Path) -> None:
    for name in ADAPTER_FILES:
        _require(source, name, "an adapter's folder, saved by peft's save_pretrained")
    target.mkdir(parents=True)
    _copy(source, target, (*ADAPTER_FILES, *TOKENIZER_FILES))
    # peft notes the path of the base on the machine that trained: no use elsewhere.
    # Older versions warn of fields they do not know; those that say nothing are None.
    path = target / "adapter_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["base_model_name_or_path"] = BASE_FOLDER
    _write_json(path, {k: v for k, v in settings.items() if v is not None})
    _fit_for_older_readers(target)


def _require(folder: Path, name: str, kind: str) -> None:
    if not (folder / name).is_file():
        raise ArtifactError(f"{folder.name}/{name} is missing: expected {kind}")


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _fit_for_older_readers(folder: Path) -> None:
    """Adds what transformers 4.56 to 4.57 look for and 5.x no longer writes.

    They know no class `TokenizersBackend`, take `extra_special_tokens` for a table of
    names, and read the rotary share from `rotary_pct` only, without which they compute
    other logits and say nothing.
    """
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        settings = json.loads(tokenizer.read_text("utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        extra = settings.get("extra_special_tokens")
        if isinstance(extra, list):
            del settings["extra_special_tokens"]
            settings["additional_special_tokens"] = extra
        _write_json(tokenizer, settings)
    config = folder / "config.json"
    if config.is_file():
        settings = json.loads(config.read_text("utf-8"))
        rope = settings.get("rope_parameters") or {}
        if settings.get("model_type") == "gpt_neox" and rope:
            settings.setdefault("rotary_pct", rope.get("partial_rotary_factor", 0.25))
            settings.setdefault("rotary_emb_base", rope.get("rope_theta", 10_000))
        _write_json(config, settings)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def entry_point_source(name: str, path: Path = ENTRY_POINT) -> str:
    """The source of one function of the entry point, which cannot be imported here.

    Raises:
        ArtifactError: if it has no such function.
    """
    source = path.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if getattr(node, "name", None) == name:
            return textwrap.dedent(ast.get_source_segment(source, node, padded=True))
    raise ArtifactError(f"{path.name} has no function {name}")


# --- checking ------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Something to know before deploying.

    Attributes:
        level: "error" if the endpoint would not start or not answer, else "warning".
        where: the file, or the option of serving.properties.
        what: what was found, and what it would lead to.
        remedy: what to do.
    """

    level: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}. {self.remedy}."


@dataclass
class Report:
    """What `validate` found."""

    name: str
    files: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def ok(self) -> bool:
        """Whether the endpoint can be expected to start; warnings do not count."""
        return not self.errors

    def require_ok(self) -> Report:
        """
        Raises:
            ArtifactError: with every error, if there is one.
        """
        if not self.ok:
            raise ArtifactError("\n".join(map(str, self.errors)))
        return self

    def __str__(self) -> str:
        verdict = "can be deployed" if self.ok else "would not serve"
        count = f"{len(self.files)} files"
        return "\n".join(
            [f"{self.name}: {verdict} ({count})", *map(str, self.findings)]
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        verdict = "✓ can be deployed" if self.ok else "✗ would not serve"
        lines = [f"**{self.name}**: {verdict}"]
        if self.findings:
            lines += ["", "| level | where | found | remedy |", "|:--|:--|:--|:--|"]
            lines += [
                f"| {f.level} | `{f.where}` | {f.what} | {f.remedy} |"
                for f in self.findings
            ]
        return "\n".join(lines)

    def error(self, where: str, what: str, remedy: str) -> None:
        self.findings.append(Finding("error", where, what, remedy))

    def warning(self, where: str, what: str, remedy: str) -> None:
        self.findings.append(Finding("warning", where, what, remedy))


def validate(path: Path, load: bool = True) -> Report:
    """Checks an artifact under the server's own rules.

    Args:
        path: a folder, or a `model.tar.gz`.
        load: also load it as the server would, in a process of its own, if nothing
            was found that would stop it. It takes as long as loading takes.

    Returns:
        a report; nothing is raised for what is wrong with the artifact.

    Raises:
        ArtifactError: if there is nothing at `path`.
    """
    path = Path(path)
    report = Report(path.name)
    if not path.exists():
        raise ArtifactError(f"{path.name} is missing: build the artifact first")
    with tempfile.TemporaryDirectory() as temporary:
        store = path
        if path.is_file():
            _check_members(path, report)
            if not report.ok:
                return report
            try:
                store = unpack(path, Path(temporary))
            except LoadError as error:
                report.error(path.name, str(error), "Pack it again")
                return report
        for file in sorted(store.rglob("*")):
            if file.is_file() and not file.is_symlink():
                report.files[file.relative_to(store).as_posix()] = file.stat().st_size
        _check_links(store, report)
        _check_files(report)
        _check_store(store, report)
        if load and report.ok:
            _try_to_load(store, Path(temporary) / "trial", report)
    return report


def _check_members(path: Path, report: Report) -> None:
    """Looks at the archive's table before anything is written to the disk."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError, EOFError) as error:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic[:2] == b"PK":
            what = "is a zip archive, which SageMaker does not unpack"
        elif magic[:2] == GZIP_MAGIC:
            what = f"is no gzipped tar: cut off or damaged ({error})"
        elif not magic:
            what = "is no gzipped tar: the file is empty"
        elif tarfile.is_tarfile(path):
            what = "is a tar that is not gzipped"
        else:
            what = f"is no gzipped tar ({error})"
        report.error(
            path.name,
            what,
            "Pack it with `tar -C artifact -czf model.tar.gz .`",
        )
        return
    seen: set[str] = set()
    for member in members:
        name = PurePosixPath(member.name)
        if member.isfile() and str(name) in seen:
            report.error(
                member.name,
                "is in the archive twice: the last one wins, silently",
                "Pack it anew instead of appending to it",
            )
        seen.add(str(name))
        if member.size > FILE_LIMIT:
            _report_size(member.name, member.size, report)
        if name.is_absolute() or ".." in name.parts:
            report.error(
                member.name,
                "the path leaves the archive",
                "Pack the folder's content with relative names",
            )
        elif member.issym() or member.islnk():
            report.error(
                member.name,
                f"is a link to {member.linkname}, which the container does not have",
                "Pack the file itself (tar -h follows links)",
            )
        elif not (member.isfile() or member.isdir()):
            report.error(member.name, "is neither file nor folder", "Leave it out")


def _report_size(name: str, size: int, report: Report) -> None:
    report.error(
        name,
        f"has {size / 2**30:.1f} GiB, which takes minutes to unpack",
        "Leave it on S3 or the hub and name it by an option",
    )


def _check_links(store: Path, report: Report) -> None:
    """A folder may hold links; packed by tar they would lead nowhere."""
    for path in sorted(store.rglob("*")):
        if path.is_symlink():
            report.error(
                path.relative_to(store).as_posix(),
                f"is a link to {path.readlink()}, which stays on this machine",
                "Put the file itself there",
            )


def _check_files(report: Report) -> None:
    for name, size in report.files.items():
        last = PurePosixPath(name).name
        if size > FILE_LIMIT:
            _report_size(name, size, report)
        if last.endswith(".safetensors") and not size:
            report.error(name, "is empty", "Copy it again")
        if last.endswith(PICKLED):
            report.warning(
                name,
                "pickled weights run code when they are loaded",
                "Save as safetensors (save_pretrained does)",
            )
        if last.startswith("._") or last == ".DS_Store":
            report.warning(
                name,
                "macOS added it; the server ignores it",
                "Pack with COPYFILE_DISABLE=1",
            )


def _check_store(store: Path, report: Report) -> None:
    """The layout: which folder is the model, and is it one."""
    try:
        models = find_models(store, environment={})
    except LoadError as error:
        report.error("serving.properties", str(error), "Correct the line")
        return
    if not models:
        report.error(
            "archive",
            "is empty: the server starts, but every request gets 400",
            "Pack serving.properties and model.py at its root",
        )
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        report.error(
            "archive",
            f"has {len(models)} folders at its root ({names}), so that each is a "
            'model and /invocations answers 400 "Parameter model_name is required."',
            "Put serving.properties beside them at the root: then they are its parts",
        )
    for model in models:
        _check_model(model, store, report)


def _check_model(model: ServedModel, store: Path, report: Report) -> None:
    if model.folder != store:
        report.warning(
            model.folder.relative_to(store).as_posix(),
            "the model lies in a folder, which works as long as nothing is beside it",
            "Pack the folder's content: `tar -C folder -czf model.tar.gz .`",
        )
    try:
        engine = model.engine
    except LoadError:
        inner = [
            path.name
            for path in visible(model.folder)
            if path.is_dir() and any(path.glob("*.py"))
        ]
        hint = f"; the file beside the folder {inner[0]} hides it" if inner else ""
        report.error(
            "archive",
            f'has files at its root but no model.py and no engine{hint}: "Failed to '
            'detect engine of the model"',
            "Put serving.properties and model.py at the root",
        )
        return
    _check_properties(model, report)
    if engine not in ENGINES:
        right = next((e for e in ENGINES if e.lower() == engine.strip().lower()), None)
        report.error(
            "engine",
            f'{engine!r} is no engine of this server: "Deep learning engine not found"',
            f"Write engine={right or 'Python'}",
        )
    elif engine == "MPI":
        report.error(
            "engine",
            "MPI starts workers with mpirun and needs GPUs",
            "Write engine=Python",
        )
    _check_entry_point(model, report)
    _check_requirements(model.folder, report)
    _check_parts(model, report)


def _check_requirements(folder: Path, report: Report) -> None:
    """What pip would say when the container starts; the server only logs it."""
    path = folder / "requirements.txt"
    if not path.is_file():
        return
    report.warning(
        path.name,
        "pip runs when the container starts; a failure is only logged and the "
        "model is served without the packages",
        "Leave it out: the image has torch, transformers and peft",
    )
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import Version

    pins: dict[str, Requirement] = {}
    for number, raw in enumerate(path.read_text("utf-8").splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", raw).strip()
        where = f"{path.name}, line {number}"
        if not text or text.startswith("-"):
            continue
        if text.endswith(".whl"):
            if "://" not in text and not (folder / text).is_file():
                report.warning(where, f"{text} is not in the archive", "Pack it")
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            report.warning(
                where,
                f"{text!r} is no requirement ({reason}): pip installs nothing at all",
                "Correct the line",
            )
            continue
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        exact = [s.version for s in wanted.specifier if s.operator == "=="]
        earlier = pins.setdefault(name, wanted)
        clash = [v for v in exact if "*" not in v and v not in earlier.specifier]
        if clash:
            report.warning(
                where,
                f"{text} and {earlier} cannot both be met: pip installs nothing at all",
                "Keep one of them",
            )
        least = IMAGE_VERSIONS.get(name)
        if any("*" not in v and Version(v) < Version(least or "0") for v in exact):
            report.warning(
                where,
                f"{text} is older than the image's {name} ({least}), which the rest of "
                "the image was built with",
                "Do without the pin",
            )


def _check_properties(model: ServedModel, report: Report) -> None:
    _check_properties_file(model.folder, report)
    for key, value in model.properties.items():
        name = key.removeprefix("option.")
        known = DJL_OPTIONS + OWN_OPTIONS if name != key else SERVER_KEYS
        # What is read by nobody can do no harm.
        say = report.error if name in known else report.warning
        if value != value.strip():
            say(key, f"the value {value!r} keeps its trailing space", "Delete it")
        elif value[:1] in ("'", '"'):
            say(key, f"the quotes are part of the value {value}", "Delete the quotes")
        if name not in known:
            _report_unknown(key, name, report)
        if name in NUMBERS:
            _check_number(key, value, report)
    least, most = (model.options.get(k, "") for k in ("minWorkers", "maxWorkers"))
    if least.isdecimal() and most.isdecimal() and int(least) > int(most):
        report.error(
            "minWorkers",
            f"{least} is more than maxWorkers={most}",
            "Raise maxWorkers, or lower minWorkers",
        )
    if "model_id" in model.options and model.entry_point.endswith(".py"):
        report.warning(
            "option.model_id",
            "with a handler of one's own it can switch on asynchronous mode, in which "
            "the endpoint hangs in Creating",
            "Name the base by another option (base_model)",
        )


def _check_properties_file(folder: Path, report: Report) -> None:
    """What is lost when the file is read as a table."""
    names = [path.name for path in visible(folder) if path.is_file()]
    here = [name for name in names if name.lower() == "serving.properties"]
    similar = difflib.get_close_matches("serving.properties", names, 1, 0.8)
    if not here and similar:
        report.error(
            similar[0],
            "is not read: the server looks for serving.properties",
            "Rename it",
        )
    if not here:
        return
    text = (folder / here[0]).read_text("utf-8")
    if text.startswith("\ufeff"):
        report.error(
            here[0],
            "begins with a byte-order mark, which becomes part of the first key",
            "Save it as UTF-8 without one",
        )
    keys = [next(iter(parse_properties(line)), "") for line in text.splitlines()]
    for key in sorted({key for key in keys if key and keys.count(key) > 1}):
        report.warning(key, "is there twice: the last one wins", "Delete one of them")


def _report_unknown(key: str, name: str, report: Report) -> None:
    what = "is an option that nothing here reads"
    known = DJL_OPTIONS + OWN_OPTIONS
    if name == key and name in known:
        remedy = f"Write option.{name}"
    elif name != key and name in SERVER_KEYS:
        what = "is read by the server under another name"
        remedy = f"Write {name}, without `option.`"
    elif name == "adapters":
        what = "is no option: adapters are found by their folder"
        remedy = "Set option.enable_lora=true and put them into adapters/"
    else:
        near = difflib.get_close_matches(name, known + SERVER_KEYS, 1, 0.75)
        remedy = f"Check the spelling: did you mean {near[0]}" if near else "Delete it"
    report.warning(key, what, remedy)


def _check_number(key: str, value: str, report: Report) -> None:
    if not re.fullmatch(r"-?\d+", value.strip()):
        report.error(
            key, f"expected a whole number, found {value!r}", "Correct the value"
        )
    elif int(value) < (0 if key in MAY_BE_ZERO else 1):
        report.error(key, f"{value} is too small", "Write 1 or more")


def _check_entry_point(model: ServedModel, report: Report) -> None:
    name = model.entry_point
    path = model.folder / name
    if name == VLLM_HANDLER:
        _check_no_code(model, report)
        return
    if not name.endswith(".py"):
        report.warning(
            "option.entryPoint",
            f"{name} is a module of the image: it cannot be looked at here",
            "Try it in the container",
        )
        return
    if not path.is_file():
        report.error(
            "option.entryPoint",
            f"{name} is not in the archive",
            "Pack the file, or correct the name",
        )
        return
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError) as error:
        report.error(name, f"does not parse: {error}", "Correct the file")
        return
    _check_imports(tree, path, report)
    _check_handler(tree, model, report)
    _check_calls(tree, path.name, report)


def _check_no_code(model: ServedModel, report: Report) -> None:
    """An artifact that the image's own handler serves."""
    if model.options.get("async_mode", "").lower() != "true":
        report.error(
            "option.async_mode",
            f"{model.entry_point} is an asynchronous handler and is not told so",
            "Write option.async_mode=true",
        )
    if "model_id" not in model.options:
        for name in ("config.json", "tokenizer.json"):
            if not (model.folder / name).is_file():
                report.error(
                    name,
                    "is missing at the root, where the image's own handler looks",
                    "Put the merged model beside serving.properties",
                )
        if not any(model.folder.glob("*.safetensors")):
            report.error(
                "*.safetensors",
                "there are none at the root, where the image's own handler looks",
                "Put the merged model beside serving.properties",
            )
    folder = model.folder / ADAPTERS_FOLDER
    adapters = visible(folder) if folder.is_dir() else []
    if adapters and model.options.get("enable_lora", "").lower() != "true":
        report.error(
            "option.enable_lora",
            f"{ADAPTERS_FOLDER}/ is there and would not be read",
            "Write option.enable_lora=true",
        )
    limit = model.options.get("max_lora_rank", str(LORA_RANK_LIMIT))
    for adapter in adapters:
        rank = (_read_json(adapter / "adapter_config.json", report) or {}).get("r", 0)
        if limit.isdecimal() and rank > int(limit):
            report.error(
                "option.max_lora_rank",
                f"the adapter {adapter.name} has r={rank}, above the limit of {limit}",
                f"Write option.max_lora_rank={rank}",
            )
        _check_adapter_files(adapter, f"{ADAPTERS_FOLDER}/{adapter.name}", report)
        _check_fit(model.folder, adapter, report)


def _check_calls(tree: ast.Module, name: str, report: Report) -> None:
    """Calls that are wrong where they stand."""
    for node in _calls(tree.body, into_functions=False):
        if _called(node) in HEAVY_CALLS:
            report.warning(
                name,
                f"line {node.lineno} calls {_called(node)} while the file is imported, "
                "which happens three times",
                "Load in the handler, at the request without content",
            )
    for node in _calls(tree.body, into_functions=True):
        if _called(node) in ("os._exit", "os.abort", "os.kill"):
            report.warning(
                name,
                f"line {node.lineno} calls {_called(node)}: a worker that ends inside "
                "a request leaves the model FAILED for good",
                "Return Output().error(…)",
            )


def _calls(body: Sequence[ast.AST], into_functions: bool) -> Iterator[ast.Call]:
    for node in body:
        if isinstance(node, ast.Call):
            yield node
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        if into_functions or not isinstance(node, functions):
            yield from _calls(list(ast.iter_child_nodes(node)), into_functions)


def _called(node: ast.Call) -> str:
    """`os._exit` for os._exit(1), `from_pretrained` for a.b.from_pretrained(…)."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return getattr(function, "id", "")
    owner = function.value
    plain = f"{owner.id}.{function.attr}" if isinstance(owner, ast.Name) else ""
    return plain if plain.startswith("os.") else function.attr


def _check_imports(tree: ast.Module, path: Path, report: Report) -> None:
    beside = {file.stem for file in visible(path.parent) if _is_module(file)}
    for module in sorted(beside & {*IN_IMAGE, *sys.stdlib_module_names}):
        report.error(
            path.name,
            f"`import {module}` would find the artifact's own {module}, not the "
            "package of that name",
            "Rename the file or folder",
        )
    for module in _imported(tree):
        if module in sys.stdlib_module_names or module in beside | set(IN_IMAGE):
            continue
        if module == "utils":
            what = "imports `utils`, which is of this repository"
            remedy = "Make the entry point self-contained"
        else:
            what = f"imports `{module}`, which is not in the image"
            remedy = f"Do without, or pack {module} beside {path.name}"
        report.error(path.name, what, remedy)


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Top-level names of the modules that are imported when the file is."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def _check_handler(tree: ast.Module, model: ServedModel, report: Report) -> None:
    handler, name = model.handler, model.entry_point
    found = next((node for node in tree.body if handler in _names(node)), None)
    if found is None:
        report.error(
            name, f"has no function `{handler}`", "Define it, or set option.handler"
        )
        return
    if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        _check_signature(found, name, report)
    is_async = isinstance(found, ast.AsyncFunctionDef)
    try:
        async_mode = model.async_mode
    except LoadError:
        return  # a number that is none: reported already
    if async_mode and isinstance(found, ast.FunctionDef):
        cause = "option.async_mode=true"
        if "async_mode" not in model.options:
            cause = "a config.json at the root"
        report.error(
            name,
            f"{cause} switches on asynchronous mode, in which `def {handler}` never "
            "gets ready: the worker restarts for ever and the endpoint hangs",
            "Set option.rolling_batch=disable and move config.json into a folder",
        )
    if is_async and not async_mode:
        report.error(
            name,
            f"`async def {handler}` needs option.async_mode=true",
            "Write `def`, or set the option",
        )


def _check_signature(
    function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, report: Report
) -> None:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    needed = len(positional) - len(given.defaults)
    if needed > 1 or not (positional or given.vararg):
        report.error(
            name,
            f"`{function.name}` takes {needed} arguments; the server passes one",
            f"Write def {function.name}(inputs)",
        )


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


def _check_parts(model: ServedModel, report: Report) -> None:
    """Base, adapter and tokenizer, as this course's entry point looks for them."""
    options = model.options
    base_name, adapter_name = (
        options.get("base_model"),
        options.get("adapter_checkpoint"),
    )
    if adapter_name and not base_name:
        report.warning(
            "option.base_model",
            "is missing beside option.adapter_checkpoint: the course's entry point "
            "would not load, and another one was not checked",
            "Name the folder of the base, or its id on the hub",
        )
        adapter_name = None
    base = model.folder / base_name if base_name else None
    adapter = model.folder / adapter_name if adapter_name else None
    if base and not base.is_dir() and base_name.count("/") != 1:
        report.error(
            "option.base_model",
            f"{base_name} is no folder of the archive and no id of the hub",
            "Pack the base, or name it as owner/name",
        )
    base_is_here = base is not None and base.is_dir()
    if base_is_here and not any(base.glob("*.safetensors")):
        report.error(base_name, "has no *.safetensors", "Pack the base's weights")
    if base_is_here and not (base / "config.json").is_file():
        report.error(base_name, "has no config.json", "Pack the base's configuration")
    if adapter:
        _check_adapter_files(adapter, adapter_name, report)
        settings = _read_json(adapter / "adapter_config.json", report) or {}
        if settings.get("peft_type", "LORA") != "LORA":
            report.warning(
                f"{adapter_name}/adapter_config.json",
                f"peft_type {settings['peft_type']} is not LORA: vLLM cannot serve it, "
                "and whether it fits the base was not checked",
                "Compare its answers before you deploy",
            )
    for folder in {model.folder, base, adapter} - {None}:
        _check_saved(folder, model.folder, report)
    places = [folder for folder in (base, adapter) if folder and folder.is_dir()]
    if base_is_here and not any((p / "tokenizer.json").is_file() for p in places):
        report.error(
            "tokenizer.json",
            "is neither with the base nor with the adapter",
            "Save the tokenizer beside the adapter",
        )
    if adapter and base_is_here:
        _check_fit(base, adapter, report)


def _check_adapter_files(adapter: Path, name: str, report: Report) -> None:
    for file in ADAPTER_FILES:
        if not (adapter / file).is_file():
            report.error(
                f"{name}/{file}",
                "is missing, so that the base would answer untuned or not at all",
                "Pack what peft's save_pretrained wrote",
            )


def _check_saved(folder: Path, root: Path, report: Report) -> None:
    """What transformers saved: can it be read, by older versions as well."""
    prefix = folder.relative_to(root).as_posix() + "/"
    prefix = prefix.removeprefix("./")
    config = _read_json(folder / "config.json", report, prefix) or {}
    rope = config.get("rope_parameters")
    if config.get("model_type") == "gpt_neox" and rope and "rotary_pct" not in config:
        report.warning(
            f"{prefix}config.json",
            "has no rotary_pct, without which transformers 4 computes other logits and "
            "says nothing",
            "Write rotary_pct beside rope_parameters (`build` does)",
        )
    tokenizer = _read_json(folder / "tokenizer_config.json", report, prefix) or {}
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        report.warning(
            f"{prefix}tokenizer_config.json",
            "names TokenizersBackend, a class that transformers 4 does not have",
            "Write PreTrainedTokenizerFast (`build` does)",
        )
    index = _read_json(folder / "model.safetensors.index.json", report, prefix) or {}
    for name in sorted(set(index.get("weight_map", {}).values())):
        if not (folder / name).is_file():
            report.error(
                f"{prefix}{name}",
                "is named by model.safetensors.index.json and is not there",
                "Pack every part of the weights",
            )


def _read_json(path: Path, report: Report, prefix: str = "") -> dict | None:
    """The object in a file; None if there is no such file, or none in it."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        found = f"is no JSON ({error})"
    else:
        if isinstance(value, dict):
            return value
        found = f"holds a {type(value).__name__} where an object was expected"
    finding = Finding("error", prefix + path.name, found, "Save it again")
    if finding not in report.findings:
        report.findings.append(finding)
    return None


def _check_fit(base: Path, adapter: Path, report: Report) -> None:
    """Compares the shapes of LoRA's matrices with those of the layers they change."""
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        return
    path = None
    try:
        layers = {}
        for path in sorted(base.glob("*.safetensors")):
            layers |= safetensors_shapes(path)
        path = weights
        matrices = safetensors_shapes(weights)
    except (OSError, ValueError) as error:
        report.error(
            path.name if path else weights.name,
            f"cannot be read as safetensors ({error})",
            "Save it again",
        )
        return
    pattern = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
    for name, shape in matrices.items():
        match = pattern.fullmatch(name)
        if match is None or not layers:
            continue
        layer, side = match[1], match[2]
        full = layers.get(f"{layer}.weight")
        wanted = full and (full[1] if side == "A" else full[0])
        actual = shape[1] if side == "A" else shape[0]
        if wanted != actual:
            known = f"has {wanted}" if full else "is not there"
            report.error(
                f"{adapter.name}/{weights.name}",
                f"does not fit the base: {name} expects {actual} features of "
                f"{layer}, which {known}",
                "Pack the base on which the adapter was trained",
            )
            return


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Name and shape of each tensor, read from the file's header alone.

    Raises:
        ValueError: if the file has no such header, or is shorter than it says.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError("no header")
        header = json.loads(file.read(length))
    ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
    missing = 8 + length + max(ends, default=0) - path.stat().st_size
    if missing > 0:
        raise ValueError(f"{missing} bytes are missing at its end")
    return {
        name: entry["shape"] for name, entry in header.items() if name != "__metadata__"
    }


def _try_to_load(store: Path, trial: Path, report: Report) -> None:
    """Loads a copy of the artifact as the server would."""
    from utils.djl_python.server import Server

    shutil.copytree(store, trial / "model")
    server = Server(trial / "model", allow_requirements=True)
    try:
        server.load(give_up_after=1)
    except LoadError as error:
        last = next((x.strip() for x in reversed(server.log_tail) if x.strip()), "")
        what = str(error).rstrip(".")
        if last and last not in what:
            what += f" (the worker's last words: {last})"
        report.error("loading", what, "Correct what the worker's log says")
    finally:
        server.stop()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m utils.artifact", description="Check a DJL artifact."
    )
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="say what would go wrong with it")
    check.add_argument("path", type=Path, help="folder or model.tar.gz")
    check.add_argument(
        "--no-load", action="store_true", help="only look at the files; do not load"
    )
    options = parser.parse_args(arguments)
    try:
        report = validate(options.path, load=not options.no_load)
    except ArtifactError as error:
        parser.exit(2, f"{error}\n")
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
