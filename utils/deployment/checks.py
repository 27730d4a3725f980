"""Finds what is wrong with a DJL artifact before it costs money.

`validate` knows the traps that end in "did not pass the ping health check", or in an
endpoint that never leaves `Creating`, and says for each what to do.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import difflib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from utils.course import CourseError
from utils.djl_python.layout import (
    DESCRIPTIONS,
    ENGINES,
    VLLM_HANDLER,
    LoadError,
    ServedModel,
    find_models,
    java_integer,
    parse_properties,
    read_description,
    unpack,
    visible,
)

HEAVY_CALLS = ("from_pretrained", "pipeline", "snapshot_download", "load_model")
ADAPTERS_FOLDER = "adapters"  # where the image's own handler looks for several
LORA_RANK_LIMIT = 16  # where no option says otherwise
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
FILE_LIMIT = 20 * 2**30  # bytes; larger models are better named by an S3 prefix


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SERVER_KEYS = _words(
    """
    engine batch_size max_batch_delay max_idle_time job_queue_size minWorkers maxWorkers
    gpu.minWorkers gpu.maxWorkers load_on_devices reserved_memory_mb required_memory_mb
    """
)
DJL_OPTIONS = _words(
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
OWN_OPTIONS = _words(
    """
    base_model base_revision adapter_checkpoint adapter_name max_new_tokens
    """
)
# Without a number in these the server ends; in a time-out it takes its own.
NUMBERS = _words(
    """
    batch_size max_batch_delay max_idle_time job_queue_size minWorkers maxWorkers
    gpu.minWorkers gpu.maxWorkers reserved_memory_mb required_memory_mb
    tensor_parallel_degree pipeline_parallel_degree
    """
)
TIMEOUTS = frozenset(["predict_timeout", "model_loading_timeout"])
MAY_BE_ZERO = frozenset(["max_batch_delay", "reserved_memory_mb", "required_memory_mb"])
# What the server takes for granted where a model.py is there.
ASSUMED = {"engine": "Python", "option.entryPoint": "model.py"}
GZIP_MAGIC = b"\x1f\x8b"
# The least that the image of DJL Serving 0.36.0 holds.
IMAGE_VERSIONS = {"torch": "2.11.0", "transformers": "4.56", "peft": "0.19.1"}
# Packages of the LMI image that an entry point may import, beside Python's own.
IN_IMAGE = _words(
    """
    djl_python torch transformers peft tokenizers safetensors huggingface_hub accelerate
    numpy scipy pandas PIL requests urllib3 yaml tqdm packaging filelock sentencepiece
    protobuf google einops vllm boto3 botocore datasets regex jinja2 pydantic psutil
    pyarrow fastapi aiohttp typing_extensions
    """
)
RESOLVE_TIMEOUT = 300  # seconds that pip may take


class ArtifactError(CourseError, ValueError):
    """An artifact that cannot be built, or must not be deployed."""


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


def validate(path: Path, load: bool = True, resolve: bool = False) -> Report:
    """Checks an artifact under the server's own rules.

    Args:
        path: a folder, or a `model.tar.gz`.
        load: also load it as the server would, in a process of its own, if nothing
            was found that would stop it. It takes as long as loading takes.
        resolve: also ask pip whether a requirements.txt can be met; nothing is
            installed, but the package index is asked.

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
        models = _check_store(store, report)
        for model in models if resolve else []:
            _check_resolution(model.folder, report)
        can_load = report.ok and not any(map(_is_of_image, models))
        if load and can_load:
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


def _check_store(store: Path, report: Report) -> list[ServedModel]:
    """The layout: which folder is the model, and is it one. Returns the models."""
    try:
        models = find_models(store, environment={})
    except LoadError as error:
        report.error("serving.properties", str(error), "Correct the line")
        return []
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
    return models


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
    with contextlib.suppress(LoadError):  # of what is reported elsewhere
        _check_entry_point(model, report)
    _check_requirements(model.folder, report)
    _check_parts(model, report)
    _check_description(model.folder, report)


def _check_description(folder: Path, report: Report) -> None:
    """The server reads the model's own description itself, whatever the handler."""
    try:
        read_description(folder)
    except LoadError as error:
        name = next(n for n in DESCRIPTIONS if (folder / n).is_file())
        if name not in {finding.where for finding in report.errors}:
            report.error(
                name,
                f"ends the server, which reads it whatever the handler does: {error}",
                "Move it into a folder",
            )


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


def _check_resolution(folder: Path, report: Report) -> None:
    """Asks pip for what the container would ask it for; installs nothing."""
    path = folder / "requirements.txt"
    if not path.is_file():
        return
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    command += ["--disable-pip-version-check", "-r", path.name]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT
        )
        said = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"ERROR: no answer within {RESOLVE_TIMEOUT} s"
    errors = [x for x in said.splitlines() if x.startswith("ERROR: ")]
    if said:
        reason = (errors or said.split("\n"))[0].removeprefix("ERROR: ").strip()
        report.warning(
            path.name,
            f"pip cannot meet it ({reason}): the model is served without the packages",
            "Correct the pins, or leave the file out",
        )


def _check_properties(model: ServedModel, report: Report) -> None:
    _check_properties_file(model.folder, report)
    for key, value in model.properties.items():
        name = key.removeprefix("option.")
        known = DJL_OPTIONS | OWN_OPTIONS if name != key else SERVER_KEYS
        # What is read by nobody can do no harm.
        say = report.error if name in known else report.warning
        if value != value.strip():
            say(key, f"the value {value!r} keeps its trailing space", "Delete it")
        elif value[:1] in ("'", '"'):
            say(key, f"the quotes are part of the value {value}", "Delete the quotes")
        if name not in known:
            _report_unknown(key, name, report)
        if name in known & (NUMBERS | TIMEOUTS):
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
    path = folder / "serving.properties"
    if not path.is_file():
        names = {file.name.lower(): file for file in visible(folder) if file.is_file()}
        for similar in difflib.get_close_matches(path.name, names, 1, 0.8):
            text = names[similar].read_text("latin-1")
            # Lines that say what is assumed anyway are no loss.
            say = report.error
            with contextlib.suppress(LoadError):
                if parse_properties(text).items() <= ASSUMED.items():
                    say = report.warning
            say(
                names[similar].name,
                "is not read: the server looks for serving.properties",
                "Rename it",
            )
        return
    data = path.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        report.error(
            path.name,
            "begins with a byte-order mark, which becomes part of the first key",
            "Save it as UTF-8 without one",
        )
    lines = data.decode("latin-1").splitlines()
    keys = [next(iter(parse_properties(line)), "") for line in lines]
    for key in sorted({key for key in keys if key and keys.count(key) > 1}):
        report.warning(key, "is there twice: the last one wins", "Delete one of them")
    for number, line in enumerate(lines, 1):
        if not line.isascii() and line.lstrip()[:1] not in ("#", "!"):
            report.warning(
                f"{path.name}, line {number}",
                "Java reads the file as Latin-1, so that other characters change",
                r"Write them as \uXXXX",
            )


def _report_unknown(key: str, name: str, report: Report) -> None:
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
    report.warning(key, what, remedy)


def _check_number(key: str, value: str, report: Report) -> None:
    name = key.removeprefix("option.")
    if name == "tensor_parallel_degree" and value == "max":
        return
    number = java_integer(value)
    if number is None and name in TIMEOUTS:
        report.warning(
            key,
            f"expected whole seconds, found {value!r}: the server takes its own limit",
            "Correct the value",
        )
    elif number is None:
        report.error(
            key, f"expected a whole number, found {value!r}", "Correct the value"
        )
    elif number < (0 if name in MAY_BE_ZERO else 1):
        report.error(key, f"{value} is too small", "Write 1 or more")


def _check_entry_point(model: ServedModel, report: Report) -> None:
    name = model.entry_point
    if name == VLLM_HANDLER:
        _check_no_code(model, report)
        return
    path = model.folder / name
    if not name.endswith(".py"):
        path = model.folder / (name.replace(".", "/") + ".py")
    if not path.is_file():
        named = "entryPoint" in model.options
        if _is_of_image(model) and (named or "model_id" in model.options):
            report.warning(
                "option.entryPoint",
                f"{name} is a module of the image: it cannot be looked at here",
                "Try it in the container",
            )
        else:
            missing = name if named else "model.py"
            report.error(
                "option.entryPoint",
                f"{missing} is not in the archive",
                "Pack the file, or correct the name",
            )
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        report.error(name, f"does not parse: {error}", "Correct the file")
        return
    _check_imports(tree, path, report)
    _check_calls(tree, path.name, report)
    _check_handler(tree, model, report)


def _is_of_image(model: ServedModel) -> bool:
    """Whether the handler is a module of the image that has no stand-in here."""
    name = model.entry_point
    own = name.endswith(".py") or name == VLLM_HANDLER
    return not own and name.partition(".")[0] in IN_IMAGE


def _check_no_code(model: ServedModel, report: Report) -> None:
    """An artifact that the image's own handler serves."""
    if not model.async_mode:
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
    for module in sorted(beside & (IN_IMAGE | sys.stdlib_module_names)):
        report.error(
            path.name,
            f"`import {module}` would find the artifact's own {module}, not the "
            "package of that name",
            "Rename the file or folder",
        )
    for module in _imported(tree):
        if module in beside | IN_IMAGE | sys.stdlib_module_names:
            continue
        if module == "utils":
            report.error(
                path.name,
                "imports `utils`, which is of this repository",
                "Make the entry point self-contained",
            )
            continue
        # What is installed here may be in the image as well: its list is not complete.
        say = report.warning if importlib.util.find_spec(module) else report.error
        say(
            path.name,
            f"imports `{module}`, which the image is not known to have",
            f"Do without, or pack {module} beside {path.name}",
        )


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
    async_mode = model.async_mode
    if async_mode and isinstance(found, ast.FunctionDef):
        given = model.options.get("async_mode")
        cause = "a config.json at the root"
        if (given or "").lower() == "true":
            cause = "option.async_mode=true"
        elif given is not None:
            cause += f", whatever option.async_mode={given} says,"
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
