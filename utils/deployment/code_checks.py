"""Checks of the entry point, which is read and never executed."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.deployment.async_checks import async_faults
from utils.deployment.findings import (
    VLLM_HANDLER,
    Finding,
    ServedModel,
    error,
    layout,
    warning,
)
from utils.deployment.image import IN_IMAGE

HEAVY_CALLS = ("from_pretrained", "pipeline", "snapshot_download", "load_model")


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
    if is_of_image(model) and (named or "model_id" in model.options):
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


def is_of_image(model: ServedModel) -> bool:
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
    # Python prefers a package of the name elsewhere to a folder without __init__.py.
    hiding = {name for name in beside if not _is_bare_folder(path.with_name(name))}
    for module in sorted(hiding & (IN_IMAGE | sys.stdlib_module_names)):
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


def _is_bare_folder(path: Path) -> bool:
    return (
        path.is_dir()
        and not (path / "__init__.py").is_file()
        and not path.with_name(f"{path.name}.py").is_file()
    )


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


def check_asynchronous(model: ServedModel) -> Iterator[Finding]:
    """Find what ends a worker, or leaves clients waiting, in asynchronous mode.

    What the server makes of each form was recorded (tests/data/djl_conformance.json,
    `async_…`). Replies are followed through functions of the entry point only.
    """
    if not model.async_mode:
        return
    if model.batch_size != 1:
        yield error(
            "batch_size",
            f"{model.batch_size} in asynchronous mode: requests that come together "
            'all get 400 "Batch output size mismatch"',
            "Write batch_size=1; the handler may gather requests itself",
        )
    tree = _parsed(model)
    if tree is not None:
        yield from async_faults(tree, model.handler, model.entry_point)
