"""What the checks of an artifact share: findings, the report, where the parts lie.

The rooms of the checks reach the stand-in's rules through this one only.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils.course import CourseError
from utils.djl_python import layout
from utils.djl_python.archives import archive_faults, unpack
from utils.djl_python.layout import VLLM_HANDLER, Finding, LoadError, ServedModel
from utils.temporary import temporary_folder

__all__ = [
    "VLLM_HANDLER",
    "Finding",
    "LoadError",
    "ServedModel",
    "archive_faults",
    "layout",
    "temporary_folder",
    "unpack",
]

ADAPTERS_FOLDER = "adapters"  # where the image's own handler looks for several
ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_SETTINGS, "adapter_model.safetensors")
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


error = Finding
warning = functools.partial(Finding, level="warning")


class Leak(Finding):
    """A secret in an archive; the finding names its place and kind, not its value."""


class ArtifactError(CourseError, ValueError):
    """An artifact that is missing, or cannot be built."""


@dataclass
class Report:
    """What `validate` found.

    Attributes:
        name: of the folder or the archive.
        files: size in bytes of each file, by its path in the artifact.
        findings: what to know, in the order of the checks.
        unchecked: what was not looked at, each as half a sentence.
    """

    name: str
    files: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Return what would keep the endpoint from starting or answering.

        A secret counts as well: it would do no harm to the endpoint.
        """
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

    @property
    def verdict(self) -> str:
        """Return the whole in a few words."""
        if self.ok:
            installs = any(f.where == layout.REQUIREMENTS for f in self.findings)
            return f"can be deployed{', on AWS only' if installs else ''}"
        leaks = all(isinstance(finding, Leak) for finding in self.errors)
        return "must not be uploaded" if leaks else "would not serve"

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.verdict} ({len(self.files)} files)"]
        lines += map(str, self.findings)
        lines += [f"not checked: {what}" for what in self.unchecked]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        lines = [f"**{self.name}**: {'✓' if self.ok else '✗'} {self.verdict}"]
        if self.findings:
            lines += ["", "| level | where | found | remedy |", "|:--|:--|:--|:--|"]
            lines += [
                f"| {f.level} | `{f.where}` | {f.what} | {f.remedy} |"
                for f in self.findings
            ]
        if self.unchecked:
            lines += ["", f"Not checked: {'; '.join(self.unchecked)}."]
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


def base_of(model: ServedModel) -> Path | None:
    """Return where the base would lie in the archive; None if it is not named."""
    name = model.options.get("base_model")
    return model.folder / name if name else None


def packed_base(model: ServedModel) -> Path | None:
    """Return where the base lies in the archive; None if it does not."""
    base = base_of(model)
    return base if base and base.is_dir() else None


def adapter_of(model: ServedModel) -> Path | None:
    """Return where the adapter should lie; None if it, or its base, is not named."""
    name = model.options.get("adapter_checkpoint")
    return model.folder / name if name and base_of(model) else None


def adapters_of(model: ServedModel) -> list[Path]:
    """Return the folders of the adapters that the image's own handler would load."""
    folder = model.folder / ADAPTERS_FOLDER
    if model.entry_point != VLLM_HANDLER or not folder.is_dir():
        return []
    return layout.visible(folder)


def saved_folders(model: ServedModel) -> list[Path]:
    """Return the folders that hold what transformers or peft saved, each once."""
    folders = (model.folder, base_of(model), adapter_of(model))
    return list(dict.fromkeys(folder for folder in folders if folder))


def relative(path: Path, model: ServedModel) -> str:
    """Return a path as the archive names it, or in full if it lies elsewhere."""
    inside = path.is_relative_to(model.folder)
    return (path.relative_to(model.folder) if inside else path).as_posix()


def read_object(path: Path) -> dict:
    """Return the object in a file, {} where there is none; `check_json` says why."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_adapter_files(adapter: Path, name: str) -> Iterator[Finding]:
    """Find that an adapter's folder is not there, or lacks a file."""
    missing = [file for file in ADAPTER_FILES if not (adapter / file).is_file()]
    places = [name] if not adapter.is_dir() else [f"{name}/{file}" for file in missing]
    for place in places:
        yield error(
            place,
            "is missing, so that the base would answer untuned or not at all",
            "Pack what peft's save_pretrained wrote",
        )
