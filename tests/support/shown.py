"""Which lesson shows or uses which function of `utils`, read from the notebooks.

An experiment counts for what no lesson shows or uses.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from utils.run import NOTEBOOKS, find_notebooks, is_experiment

SECTION = re.compile(r"^## (?P<number>\d+) · ", re.MULTILINE)
SENTENCE = re.compile(
    r"(?:Shown|First used) in (?:lesson \d\d|experiment \d\d_\w+), "
    r"(?:section \d+|before section 1)\."
)


def sentences(folder: Path = NOTEBOOKS) -> dict[str, str]:
    """Return "module:name" → the sentence that its docstring has to hold.

    "Shown" where a lesson shows the source, or that of one of its methods; else "First
    used", in the first lesson whose code names it; else the same of the experiments.
    Functions and classes count, constants have no docstring.
    """
    paths = find_notebooks(folder)
    lessons = [path for path in paths if not is_experiment(path)]
    experiments = [path for path in paths if is_experiment(path)]
    found = _sentences_of(experiments) | _sentences_of(lessons)
    return {
        target: sentence
        for target, sentence in sorted(found.items())
        if _has_docstring(_object(target))
    }


def _sentences_of(notebooks: list[Path]) -> dict[str, str]:
    """Return the sentences for what these notebooks show or use."""
    used: dict[str, str] = {}
    shown: dict[str, str] = {}
    for notebook in notebooks:
        for place, tree, imported in _cells(notebook):
            for name, target in imported.items():
                if _named(tree, name):
                    used.setdefault(target, f"First used in {place}.")
            for call in ast.walk(tree):
                if not isinstance(call, ast.Call) or not _is_show_source(call):
                    continue
                for argument in call.args:
                    names = ast.unparse(argument).split(".")
                    target = imported.get(names[0])
                    if target and inspect.ismodule(_object(target)):
                        target = f"{_object(target).__name__}:{names[1]}"
                    if target:
                        shown.setdefault(target, f"Shown in {place}.")
    return used | shown


def _cells(notebook: Path) -> Iterator[tuple[str, ast.Module, dict[str, str]]]:
    """Yield each code cell with its place and what is imported from `utils` by then."""
    kind = "experiment" if is_experiment(notebook) else "lesson"
    name = notebook.stem if is_experiment(notebook) else notebook.name[:2]
    place, imported = f"{kind} {name}, before section 1", {}
    for cell in nbformat.read(notebook, nbformat.NO_CONVERT).cells:
        if cell.cell_type == "markdown":
            for section in SECTION.finditer(cell.source):
                place = f"{kind} {name}, section {section['number']}"
            continue
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
                for alias in node.names:
                    target = f"{node.module}:{alias.name}"
                    imported[alias.asname or alias.name] = target
        yield place, tree, imported


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "utils"


def _named(tree: ast.Module, name: str) -> bool:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return any(node.id == name for node in nodes)


def _is_show_source(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "show_source"


def _object(target: str) -> object:
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


def _has_docstring(thing: object) -> bool:
    return inspect.isfunction(thing) or inspect.isclass(thing)
