"""Find what is wrong with a DJL artifact before it costs money.

`validate` knows the traps that end in "did not pass the ping health check", or in an
endpoint that never leaves `Creating`, and says for each what to do. What the server
itself refuses stands in `utils.djl_python.layout`; everything else is checked here.

To add a check, write a function that takes the artifact, or one model of it, and yields
a `Finding` for each fault, and add its name to `ARCHIVE_CHECKS` or `MODEL_CHECKS`.
"""

from __future__ import annotations

import ast
import codecs
import difflib
import functools
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from utils.course import CourseError
from utils.deployment.adapter_checks import fit_of
from utils.djl_python import layout
from utils.djl_python.layout import VLLM_HANDLER, Finding, LoadError, ServedModel

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HEAVY_CALLS = ("from_pretrained", "pipeline", "snapshot_download", "load_model")
ADAPTERS_FOLDER = "adapters"  # where the image's own handler looks for several
LORA_RANK_LIMIT = 16  # where no option says otherwise
ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_SETTINGS, "adapter_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
TOKENIZER_SETTINGS = "tokenizer_config.json"
TEMPLATE_FILE = "course_template.json"  # what the adapter was tuned in
CHAT_TEMPLATE = "chat_template.jinja"
WEIGHTS_INDEX = "model.safetensors.index.json"
SAVED_JSON = (
    "config.json",
    TOKENIZER_SETTINGS,
    WEIGHTS_INDEX,
    ADAPTER_SETTINGS,
    TEMPLATE_FILE,
)
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
MAY_BE_ZERO = frozenset(["max_batch_delay", "reserved_memory_mb", "required_memory_mb"])
# What the server takes for granted where a model.py is there.
ASSUMED = {"engine": "Python", "option.entryPoint": "model.py"}
GZIP_MAGIC = b"\x1f\x8b"
# The least that the container image (`artifact.DJL_VERSION`) holds.
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
# Where the image's own handler looks for a model.
AT_THE_ROOT = "at the root, where the image's own handler looks"

error = Finding
warning = functools.partial(Finding, level="warning")


class ArtifactError(CourseError, ValueError):
    """An artifact that is missing, or cannot be built."""


@dataclass
class Report:
    """What `validate` found.

    Attributes:
        name: of the folder or the archive.
        files: size in bytes of each file, by its path in the artifact.
        findings: what to know, in the order of the checks.
    """

    name: str
    files: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Return what would keep the endpoint from starting or answering."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def ok(self) -> bool:
        """Return whether the endpoint can be expected to start, warnings or not."""
        return not self.errors

    def collect(self, findings: Iterable[Finding]) -> None:
        """Add findings, each once, and the rule that stops a check half way."""
        try:
            for finding in findings:
                self._add(finding)
        except LoadError as broken:
            if broken.finding is None:
                raise
            self._add(broken.finding)

    def _add(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)

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


class Artifact:
    """An unpacked artifact.

    Attributes:
        store: the folder.
        files: size in bytes of each file, by its path in the folder.
        models: what the server would take for its models.
        unreadable: why they cannot be told, None if they can.
    """

    def __init__(self, store: Path):
        self.store = store
        self.files = {
            path.relative_to(store).as_posix(): path.stat().st_size
            for path in sorted(store.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        self.models: list[ServedModel] = []
        self.unreadable: Finding | None = None
        try:
            self.models = layout.find_models(store, environment={})
        except LoadError as broken:
            self.unreadable = broken.finding


def validate(path: Path, load: bool = False, resolve: bool = False) -> Report:
    """Check an artifact under the server's own rules.

    Nothing in the artifact is executed unless `load` asks for it.

    Args:
        path: a folder, or a `model.tar.gz`.
        load: also load it as the server would, in a process of its own without this
            machine's keys and tokens, if nothing was found that would stop it, and
            see that its answers depend on its adapter. It runs the archive's code,
            and takes as long as loading takes.
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
        raise ArtifactError(f"{path.name} is missing. Build the artifact first.")
    with tempfile.TemporaryDirectory() as temporary:
        store = path
        if path.is_file():
            report.collect(check_members(path))
            if not report.ok:
                return report
            try:
                store = layout.unpack(path, Path(temporary))
            except LoadError as broken:
                report.collect([broken.finding])
                return report
        artifact = Artifact(store)
        report.files = artifact.files
        for check in ARCHIVE_CHECKS:
            report.collect(check(artifact))
        for model in filter(_has_engine, artifact.models):
            for check in MODEL_CHECKS:
                report.collect(check(model))
            if resolve:
                report.collect(check_resolution(model))
        if load and report.ok and not any(map(_is_of_image, artifact.models)):
            report.collect(_try_artifact(artifact, Path(temporary) / "trial"))
    return report


def _has_engine(model: ServedModel) -> bool:
    """Return whether there is a model to look at; `check_layout` reports if not."""
    try:
        return bool(model.engine)
    except LoadError:
        return False


# --- the archive ---


def check_members(path: Path) -> Iterator[Finding]:
    """Look at the archive's table before anything is written to the disk."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError, EOFError) as problem:
        yield error(
            path.name,
            _instead_of_an_archive(path, problem),
            "Pack it with `tar -C artifact -czf model.tar.gz .`",
        )
        return
    seen: set[str] = set()
    for member in members:
        name = str(PurePosixPath(member.name))
        if member.isfile() and name in seen:
            yield error(
                member.name,
                "is in the archive twice: the last one wins, silently",
                "Pack it anew instead of appending to it",
            )
        seen.add(name)
        yield from _check_size(member.name, member.size)
        yield from _check_member(member)


def _instead_of_an_archive(path: Path, problem: Exception) -> str:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"PK":
        return "is a zip archive, which SageMaker does not unpack"
    if magic[:2] == GZIP_MAGIC:
        return f"is no gzipped tar: cut off or damaged ({problem})"
    if not magic:
        return "is no gzipped tar: the file is empty"
    if tarfile.is_tarfile(path):
        return "is a tar that is not gzipped"
    return f"is no gzipped tar ({problem})"


def _check_member(member: tarfile.TarInfo) -> Iterator[Finding]:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        yield error(
            member.name,
            "the path leaves the archive",
            "Pack the folder's content with relative names",
        )
    elif member.issym() or member.islnk():
        yield error(
            member.name,
            f"is a link to {member.linkname}, which the container does not have",
            "Pack the file itself (tar -h follows links)",
        )
    elif not (member.isfile() or member.isdir()):
        yield error(member.name, "is neither file nor folder", "Leave it out")


def _check_size(name: str, size: int) -> Iterator[Finding]:
    if size > FILE_LIMIT:
        yield error(
            name,
            f"has {size / 2**30:.1f} GiB, which takes minutes to unpack",
            "Leave it on S3 or the hub and name it by an option",
        )


def check_links(artifact: Artifact) -> Iterator[Finding]:
    """Find links in a folder: packed by tar they would lead nowhere."""
    for path in sorted(artifact.store.rglob("*")):
        if path.is_symlink():
            yield error(
                path.relative_to(artifact.store).as_posix(),
                f"is a link to {path.readlink()}, which stays on this machine",
                "Put the file itself there",
            )


def check_files(artifact: Artifact) -> Iterator[Finding]:
    """Find files that are too large, empty, unsafe, or there by accident."""
    for name, size in artifact.files.items():
        last = PurePosixPath(name).name
        yield from _check_size(name, size)
        if last.endswith(".safetensors") and not size:
            yield error(name, "is empty", "Copy it again")
        if last.endswith(PICKLED):
            yield warning(
                name,
                "pickled weights run code when they are loaded",
                "Save as safetensors (save_pretrained does)",
            )
        if last.startswith("._") or last == ".DS_Store":
            yield warning(
                name,
                "macOS added it; the server ignores it",
                "Pack with COPYFILE_DISABLE=1",
            )


def check_layout(artifact: Artifact) -> Iterator[Finding]:
    """Find an archive that holds no model, or several, or one in a folder."""
    if artifact.unreadable:
        yield artifact.unreadable
        return
    models = artifact.models
    if not models:
        yield error(
            "archive",
            "is empty: the server starts, but every request gets 400",
            "Pack serving.properties and model.py at its root",
        )
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        yield error(
            "archive",
            f"has {len(models)} folders at its root ({names}), so that each is a "
            'model and /invocations answers 400 "Parameter model_name is required."',
            "Put serving.properties beside them at the root: then they are its parts",
        )
    for model in models:
        if model.folder != artifact.store:
            yield warning(
                model.folder.relative_to(artifact.store).as_posix(),
                "the model lies in a folder, which works as long as nothing is beside "
                "it",
                "Pack the folder's content: `tar -C folder -czf model.tar.gz .`",
            )
        try:
            _ = model.engine
        except LoadError as broken:
            yield broken.finding


# --- serving.properties ---


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


# --- the entry point ---


def check_entry_point(model: ServedModel) -> Iterator[Finding]:
    """Find an entry point that is missing or does not parse."""
    name = model.entry_point
    path = _entry_file(model)
    if name == VLLM_HANDLER:
        return
    if path.is_file():
        try:
            ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as problem:
            yield error(name, f"does not parse: {problem}", "Correct the file")
        return
    named = "entryPoint" in model.options
    if _is_of_image(model) and (named or "model_id" in model.options):
        yield warning(
            "option.entryPoint",
            f"{name} is a module of the image: it cannot be looked at here",
            "Try it in the container",
        )
    else:
        yield error(
            "option.entryPoint",
            f"{name if named else 'model.py'} is not in the archive",
            "Pack the file, or correct the name",
        )


def _entry_file(model: ServedModel) -> Path:
    name = model.entry_point
    if not name.endswith(".py"):
        name = name.replace(".", "/") + ".py"
    return model.folder / name


def _parsed(model: ServedModel) -> ast.Module | None:
    """Return the parsed entry point, or None where `check_entry_point` reports it."""
    try:
        return ast.parse(_entry_file(model).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _is_of_image(model: ServedModel) -> bool:
    """Return whether the handler is a module of the image, with no stand-in here."""
    name = model.entry_point
    own = name.endswith(".py") or name == VLLM_HANDLER
    return not own and name.partition(".")[0] in IN_IMAGE


def check_imports(model: ServedModel) -> Iterator[Finding]:
    """Find imports that fail in the container, or find another module there."""
    tree, path = _parsed(model), _entry_file(model)
    if tree is None:
        return
    beside = {file.stem for file in layout.visible(path.parent) if _is_module(file)}
    for module in sorted(beside & (IN_IMAGE | sys.stdlib_module_names)):
        yield error(
            path.name,
            f"`import {module}` would find the artifact's own {module}, not the "
            "package of that name",
            "Rename the file or folder",
        )
    for module in _imported(tree):
        if module in beside | IN_IMAGE | sys.stdlib_module_names:
            continue
        if module == "utils":
            yield error(
                path.name,
                "imports `utils`, which is of this repository",
                "Make the entry point self-contained",
            )
            continue
        # What is installed here may be in the image as well: its list is not complete.
        yield Finding(
            path.name,
            f"imports `{module}`, which the image is not known to have",
            f"Do without, or pack {module} beside {path.name}",
            "warning" if importlib.util.find_spec(module) else "error",
        )


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level names of the modules that are imported with the file."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def check_calls(model: ServedModel) -> Iterator[Finding]:
    """Find calls that are wrong where they stand."""
    tree, name = _parsed(model), _entry_file(model).name
    if tree is None:
        return
    for node in _calls(tree.body, into_functions=False):
        if _called(node) in HEAVY_CALLS:
            yield warning(
                name,
                f"line {node.lineno} calls {_called(node)} while the file is imported, "
                "which happens three times",
                "Load in the handler, at the request without content",
            )
    for node in _calls(tree.body, into_functions=True):
        if _called(node) in ("os._exit", "os.abort", "os.kill"):
            yield warning(
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
    """Return `os._exit` for os._exit(1), `from_pretrained` for a.b.from_pretrained."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return getattr(function, "id", "")
    owner = function.value
    plain = f"{owner.id}.{function.attr}" if isinstance(owner, ast.Name) else ""
    return plain if plain.startswith("os.") else function.attr


def check_handler(model: ServedModel) -> Iterator[Finding]:
    """Find a handler that is missing, or that the server cannot call."""
    tree, handler, name = _parsed(model), model.handler, model.entry_point
    if tree is None:
        return
    found = next((node for node in tree.body if handler in _names(node)), None)
    if found is None:
        what = f"has no function `{handler}`"
        yield error(name, what, "Define it, or set option.handler")
    if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _check_signature(found, name)
    if isinstance(found, ast.FunctionDef) and model.async_mode:
        yield layout.never_ready(model)
    if isinstance(found, ast.AsyncFunctionDef) and not model.async_mode:
        yield error(
            name,
            f"`async def {handler}` needs option.async_mode=true",
            "Write `def`, or set the option",
        )


def _check_signature(
    function: ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[Finding]:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    needed = len(positional) - len(given.defaults)
    if needed > 1 or not (positional or given.vararg):
        yield error(
            name,
            f"`{function.name}` takes {needed} arguments; the server passes one",
            f"Write def {function.name}(inputs)",
        )


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


# --- artifacts without code ---


def check_no_code(model: ServedModel) -> Iterator[Finding]:
    """Find what the image's own handler would miss."""
    if model.entry_point != VLLM_HANDLER:
        return
    if not model.async_mode:
        yield error(
            "option.async_mode",
            f"{model.entry_point} is an asynchronous handler and is not told so",
            "Write option.async_mode=true",
        )
    if "model_id" in model.options:
        return
    remedy = "Put the merged model beside serving.properties"
    for name in ("config.json", "tokenizer.json"):
        if not (model.folder / name).is_file():
            yield error(name, f"is missing {AT_THE_ROOT}", remedy)
    if not any(model.folder.glob("*.safetensors")):
        yield error("*.safetensors", f"there are none {AT_THE_ROOT}", remedy)


def check_adapters(model: ServedModel) -> Iterator[Finding]:
    """Find adapters that the image's own handler would not load."""
    if model.entry_point != VLLM_HANDLER:
        return
    adapters = _adapters(model)
    if adapters and model.options.get("enable_lora", "").lower() != "true":
        yield error(
            "option.enable_lora",
            f"{ADAPTERS_FOLDER}/ is there and would not be read",
            "Write option.enable_lora=true",
        )
    limit = model.options.get("max_lora_rank", str(LORA_RANK_LIMIT))
    for adapter in adapters:
        rank = _read_object(adapter / ADAPTER_SETTINGS).get("r", 0)
        if limit.isdecimal() and rank > int(limit):
            yield error(
                "option.max_lora_rank",
                f"the adapter {adapter.name} has r={rank}, above the limit of {limit}",
                f"Write option.max_lora_rank={rank}",
            )
        yield from _check_adapter_files(adapter, f"{ADAPTERS_FOLDER}/{adapter.name}")


def _adapters(model: ServedModel) -> list[Path]:
    folder = model.folder / ADAPTERS_FOLDER
    if model.entry_point != VLLM_HANDLER or not folder.is_dir():
        return []
    return layout.visible(folder)


# --- requirements.txt ---


def check_requirements(model: ServedModel) -> Iterator[Finding]:
    """Find lines of requirements.txt at which pip fails or downgrades the image."""
    from packaging.requirements import InvalidRequirement, Requirement

    pins: dict[str, Requirement] = {}
    for number, text in _requirement_lines(model.folder):
        where = f"{layout.REQUIREMENTS}, line {number}"
        if text.endswith(".whl"):
            if "://" not in text and not (model.folder / text).is_file():
                yield warning(where, f"{text} is not in the archive", "Pack it")
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement as problem:
            reason = str(problem).splitlines()[0]
            yield warning(
                where,
                f"{text!r} is no requirement ({reason}): pip installs nothing at all",
                "Correct the line",
            )
            continue
        earlier = pins.setdefault(_normalised(wanted.name), wanted)
        yield from _check_pin(where, wanted, earlier)


def _requirement_lines(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that names a package."""
    path = folder / layout.REQUIREMENTS
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    for number, raw in enumerate(lines, 1):
        text = re.sub(r"(^|\s)#.*", "", raw).strip()
        if text and not text.startswith("-"):
            yield number, text


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_pin(
    where: str, wanted: Requirement, earlier: Requirement
) -> Iterator[Finding]:
    """Compare a requirement with an earlier one of the package, and with the image."""
    from packaging.version import Version

    name = _normalised(wanted.name)
    versions = [spec.version for spec in wanted.specifier if spec.operator == "=="]
    exact = [version for version in versions if "*" not in version]
    if any(version not in earlier.specifier for version in exact):
        yield warning(
            where,
            f"{wanted} and {earlier} cannot both be met: pip installs nothing at all",
            "Keep one of them",
        )
    least = IMAGE_VERSIONS.get(name, "0")
    if any(Version(version) < Version(least) for version in exact):
        yield warning(
            where,
            f"{wanted} is older than the image's {name} ({least}), which the rest of "
            "the image was built with",
            "Do without the pin",
        )


def check_resolution(model: ServedModel) -> Iterator[Finding]:
    """Ask pip for what the container would ask it for, and install nothing."""
    path = model.folder / layout.REQUIREMENTS
    if not path.is_file():
        return
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    command += ["--disable-pip-version-check", "-r", path.name]
    try:
        done = subprocess.run(
            command,
            cwd=model.folder,
            capture_output=True,
            text=True,
            timeout=RESOLVE_TIMEOUT,
        )
        said = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"ERROR: no answer within {RESOLVE_TIMEOUT} s"
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    if said:
        reason = (errors or said.split("\n"))[0].removeprefix("ERROR: ").strip()
        yield warning(
            path.name,
            f"pip cannot meet it ({reason}): the model is served without the packages",
            "Correct the pins, or leave the file out",
        )


# --- base, adapter and tokenizer, as the course's entry point looks for them ---


def _base(model: ServedModel) -> Path | None:
    """Return where the base would lie in the archive; None if it is not named."""
    name = model.options.get("base_model")
    return model.folder / name if name else None


def _packed_base(model: ServedModel) -> Path | None:
    base = _base(model)
    return base if base and base.is_dir() else None


def _adapter(model: ServedModel) -> Path | None:
    """Return where the adapter should lie; None if it, or its base, is not named."""
    name = model.options.get("adapter_checkpoint")
    return model.folder / name if name and _base(model) else None


def check_base(model: ServedModel) -> Iterator[Finding]:
    """Find a base that is not named, or not there, or not complete."""
    name = model.options.get("base_model")
    if model.options.get("adapter_checkpoint") and not name:
        yield warning(
            "option.base_model",
            "is missing beside option.adapter_checkpoint: the course's entry point "
            "would not load, and another one was not checked",
            "Name the folder of the base, or its id on the hub",
        )
    base = _packed_base(model)
    if name:
        yield from _inside("option.base_model", name)
    if name and not base and name.count("/") != 1:
        yield error(
            "option.base_model",
            f"{name} is no folder of the archive and no id of the hub",
            "Pack the base, or name it as owner/name",
        )
    if base and not any(base.glob("*.safetensors")):
        yield error(name, "has no *.safetensors", "Pack the base's weights")
    if base and not (base / "config.json").is_file():
        yield error(name, "has no config.json", "Pack the base's configuration")


def _inside(key: str, name: str) -> Iterator[Finding]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        yield error(
            key,
            f"{name} leads out of the archive, to a folder of this machine",
            "Pack the folder, and name it as it is called in the archive",
        )


def check_adapter(model: ServedModel) -> Iterator[Finding]:
    """Find an adapter that is not complete, or that vLLM could not serve."""
    adapter, name = _adapter(model), model.options.get("adapter_checkpoint")
    if not adapter:
        return
    yield from _inside("option.adapter_checkpoint", name)
    yield from _check_adapter_files(adapter, name)
    kind = _read_object(adapter / ADAPTER_SETTINGS).get("peft_type", "LORA")
    if kind != "LORA":
        yield warning(
            f"{name}/{ADAPTER_SETTINGS}",
            f"peft_type {kind} is not LORA: vLLM cannot serve it, and whether it fits "
            "the base was not checked",
            "Compare its answers before you deploy",
        )


def _check_adapter_files(adapter: Path, name: str) -> Iterator[Finding]:
    for file in ADAPTER_FILES:
        if not (adapter / file).is_file():
            yield error(
                f"{name}/{file}",
                "is missing, so that the base would answer untuned or not at all",
                "Pack what peft's save_pretrained wrote",
            )


def check_tokenizer(model: ServedModel) -> Iterator[Finding]:
    """Find that neither base nor adapter brings a tokenizer."""
    base, adapter = _packed_base(model), _adapter(model)
    places = [folder for folder in (base, adapter) if folder]
    if base and not any((place / "tokenizer.json").is_file() for place in places):
        yield error(
            "tokenizer.json",
            "is neither with the base nor with the adapter",
            "Save the tokenizer beside the adapter",
        )


def check_template(model: ServedModel) -> Iterator[Finding]:
    """Find that questions would be asked in another template than was trained."""
    from utils.templates import wrong_description

    folders = [folder for folder in (_adapter(model), _packed_base(model)) if folder]
    own_code = bool(folders)
    folders = folders or [model.folder]
    chats = [f / CHAT_TEMPLATE for f in folders if (f / CHAT_TEMPLATE).is_file()]
    places = [folder / TEMPLATE_FILE for folder in (*folders, model.folder)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if chats and own_code:
            yield error(
                _relative(places[0], model),
                "is missing, and the tokenizer has a chat template: the entry point "
                "would ask in the instruction template",
                "Save the adapter with save_adapter, or pass `template` to build",
            )
        return
    saved, where = _read_object(path), _relative(path, model)
    problem = wrong_description(saved)
    if problem and saved:  # `check_json` speaks of what is no object
        yield error(where, problem, "Save the adapter again with save_adapter")
    if problem:
        return
    if not chats:
        if saved["name"] == "chat":
            yield warning(
                _relative(path.parent / CHAT_TEMPLATE, model),
                "is missing, so that a plain server has no template for its chat route",
                "Save the adapter again with save_adapter",
            )
    elif saved["name"] == "instruction":
        yield warning(
            _relative(chats[0], model),
            "is there, and the model was tuned in the instruction template: a plain "
            "server's chat route would ask in the other",
            "Tune it in its chat template",
        )
    elif chats[0].read_text("utf-8") != saved["chat_template"]:
        yield warning(
            _relative(chats[0], model),
            f"is another chat template than {TEMPLATE_FILE} holds: a plain server "
            "would ask otherwise than was trained",
            "Save the adapter again with save_adapter",
        )


# --- saved files ---


def _saved_folders(model: ServedModel) -> list[Path]:
    """Return the folders that hold what transformers or peft saved, each once."""
    folders = (model.folder, _base(model), _adapter(model))
    return list(dict.fromkeys(folder for folder in folders if folder))


def check_json(model: ServedModel) -> Iterator[Finding]:
    """Find settings that are no JSON object."""
    saved = [folder / name for folder in _saved_folders(model) for name in SAVED_JSON]
    saved += [adapter / ADAPTER_SETTINGS for adapter in _adapters(model)]
    for path in saved:
        # What describes the model at the root is the server's to refuse.
        if not path.is_file() or path == layout.description_file(model.folder):
            continue
        try:
            value = json.loads(path.read_text("utf-8"))
        except ValueError as problem:
            found = f"is no JSON ({problem})"
        else:
            if isinstance(value, dict):
                continue
            found = f"holds a {type(value).__name__} where an object was expected"
        yield error(_relative(path, model), found, "Save it again")


def _relative(path: Path, model: ServedModel) -> str:
    """Return a path as the archive names it, or in full if it lies elsewhere."""
    inside = path.is_relative_to(model.folder)
    return (path.relative_to(model.folder) if inside else path).as_posix()


def _read_object(path: Path) -> dict:
    """Return the object in a file, {} where there is none; `check_json` says why."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_saved(model: ServedModel) -> Iterator[Finding]:
    """Find what older versions of transformers would misread, and missing weights."""
    for folder in _saved_folders(model):
        config = _read_object(folder / "config.json")
        rope = config.get("rope_parameters")
        is_neox = config.get("model_type") == "gpt_neox"
        if is_neox and rope and "rotary_pct" not in config:
            yield warning(
                _relative(folder / "config.json", model),
                "has no rotary_pct, without which transformers 4 computes other logits "
                "and says nothing",
                "Write rotary_pct beside rope_parameters (`build` does)",
            )
        tokenizer = _read_object(folder / TOKENIZER_SETTINGS)
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            yield warning(
                _relative(folder / TOKENIZER_SETTINGS, model),
                "names TokenizersBackend, a class that transformers 4 does not have",
                "Write PreTrainedTokenizerFast (`build` does)",
            )
        weights = _read_object(folder / WEIGHTS_INDEX).get("weight_map", {})
        for name in sorted(set(weights.values())):
            if not (folder / name).is_file():
                yield error(
                    _relative(folder / name, model),
                    f"is named by {WEIGHTS_INDEX} and is not there",
                    "Pack every part of the weights",
                )


def check_fit(model: ServedModel) -> Iterator[Finding]:
    """Find base, adapters and tokenizer that do not fit together."""
    if model.entry_point == VLLM_HANDLER:
        base = model.folder
        pairs = [(adapter, base) for adapter in _adapters(model)]
        described = (base / "config.json").is_file()
        pairs = pairs or ([(None, base)] if described else [])
    else:
        base, adapter = _packed_base(model), _adapter(model)
        # The entry point takes the adapter's tokenizer where there is one.
        own = adapter and (adapter / "tokenizer.json").is_file()
        pairs = [(adapter, adapter if own else base)] if base else []
    for adapter, tokenizer in pairs:
        yield from fit_of(base, adapter, tokenizer / "tokenizer.json")


# --- loading ---


def _try_artifact(artifact: Artifact, trial: Path) -> Iterator[Finding]:
    """Load a copy of the artifact and ask it; see `utils.deployment.trial`."""
    from utils.deployment.trial import try_to_load

    adapters: dict[str, Path] = {}
    base = None
    for model in artifact.models:  # an artifact without an error has one at most
        if model.entry_point == VLLM_HANDLER:
            # Where lora is off, `check_adapters` says so.
            adapters = {folder.name: folder for folder in _adapters(model)}
            base = None if "model_id" in model.options else model.folder
        elif adapter := _adapter(model):
            adapters = {model.options.get("adapter_name") or "adapter": adapter}
            base = _packed_base(model)
    yield from try_to_load(artifact.store, trial, adapters, base)


# --- the list ---

ARCHIVE_CHECKS: tuple[Callable[[Artifact], Iterator[Finding]], ...] = (
    check_links,
    check_files,
    check_layout,
)
MODEL_CHECKS: tuple[Callable[[ServedModel], Iterator[Finding]], ...] = (
    check_properties_file,
    check_properties,
    layout.whole_numbers,
    check_sizes,
    check_model_id,
    layout.known_engine,
    check_entry_point,
    check_imports,
    check_calls,
    check_handler,
    check_no_code,
    check_adapters,
    layout.no_requirements,
    check_requirements,
    check_base,
    check_adapter,
    check_json,
    check_saved,
    check_tokenizer,
    check_template,
    check_fit,
    layout.readable_description,
)
