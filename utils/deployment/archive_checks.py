"""Checks of the archive itself: its members, its files, its layout.

What must not be unpacked is said by `utils.djl_python.archives`, for the server too.
"""

from __future__ import annotations

import ast
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.deployment.findings import (
    Artifact,
    Finding,
    LoadError,
    archive_faults,
    error,
    warning,
)

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
FILE_LIMIT = 20 * 2**30  # bytes; larger models are better named by an S3 prefix
# What other containers read: a path in the archive, as a pattern → whose it is.
FOREIGN: dict[str, str] = {
    "code/inference.py": "SageMaker's Hugging Face and PyTorch containers",
    "code/requirements.txt": "SageMaker's Hugging Face and PyTorch containers",
    "code/*.py": "SageMaker's framework containers",
    "*.mar": "TorchServe",
    "MAR-INF/MANIFEST.json": "TorchServe",
    "*/config.pbtxt": "Triton Inference Server",
    "config.pbtxt": "Triton Inference Server",
    "saved_model.pb": "TensorFlow Serving",
    "*/saved_model.pb": "TensorFlow Serving",
    "MLmodel": "MLflow",
    "*/MLmodel": "MLflow",
    "model-settings.json": "MLServer",
    "bentofile.yaml": "BentoML",
    "bento.yaml": "BentoML",
    "Dockerfile": "a container image of one's own",
    "nginx.conf": "a container image of one's own",
    "wsgi.py": "a container image of one's own",
    "Modelfile": "Ollama",
    "*.gguf": "llama.cpp and Ollama",
}
# Functions and classes by which other containers find a handler → whose they are.
FOREIGN_HANDLERS = {
    "model_fn": "SageMaker's Hugging Face and PyTorch containers",
    "predict_fn": "SageMaker's Hugging Face and PyTorch containers",
    "transform_fn": "SageMaker's Hugging Face and PyTorch containers",
    "EndpointHandler": "Hugging Face's Inference Endpoints",
    "BaseHandler": "TorchServe",
    "TritonPythonModel": "Triton Inference Server",
}
FOREIGN_FILES = ("inference.py", "handler.py")


def check_members(path: Path) -> Iterator[Finding]:
    """Look at the archive's table before anything is written to the disk."""
    members: list[tarfile.TarInfo] = []
    yield from archive_faults(path, members)
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


def check_foreign_layouts(artifact: Artifact) -> Iterator[Finding]:
    """Find files that another container would read, and this one never does.

    One finding for each kind of container, with the files that gave it away.
    """
    named = {model.entry_point for model in artifact.models}
    found: dict[str, list[str]] = {}
    for name in artifact.files:
        if name in named:
            continue
        path = PurePosixPath(name)
        owners = [owner for pattern, owner in FOREIGN.items() if _fits(path, pattern)]
        owners += _owners_of_handler(artifact.store / name)
        if owners:
            found.setdefault(owners[0], []).append(name)
    for owner, names in found.items():
        yield warning(
            names[0],
            f"is laid out for {owner}: this container never reads "
            f"{'it' if len(names) == 1 else ', '.join(names)} by itself",
            "Write model.py with handle(inputs) beside serving.properties, or deploy "
            "the archive with the other container's image",
        )


def _fits(path: PurePosixPath, pattern: str) -> bool:
    """Return whether a path has as many parts as a pattern and matches them."""
    parts = pattern.count("/") + 1
    if pattern.startswith("*/"):  # in whatever folder
        return len(path.parts) >= parts and path.match(pattern)
    return len(path.parts) == parts and path.match(pattern)


def _owners_of_handler(path: Path) -> list[str]:
    """Return whose handler a file of Python holds, by the names in it."""
    if path.name not in FOREIGN_FILES and path.parent.name != "code":
        return []
    if path.suffix != ".py":
        return []
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    names = [node.name for node in tree.body if hasattr(node, "name")]
    names += [
        getattr(base, "id", getattr(base, "attr", ""))
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    ]
    return [FOREIGN_HANDLERS[name] for name in names if name in FOREIGN_HANDLERS]
