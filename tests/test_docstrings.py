"""Docstrings lead back to the lessons: where a function is shown, or first used."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

from support.shown import SENTENCE, sentences
from utils.course import ROOT

SENTENCES = sentences()


@pytest.mark.parametrize("target", SENTENCES)
def test_a_docstring_names_the_lesson_that_shows_it(target: str) -> None:
    module, _, name = target.partition(":")
    text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    found = SENTENCE.findall(text)
    wanted = SENTENCES[target]
    assert found == [wanted], f'{target}: its docstring must hold "{wanted}"'


def test_no_docstring_names_a_lesson_that_does_not_use_it() -> None:
    stale = []
    for path in sorted((ROOT / "utils").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if SENTENCE.search(text) and f"{module}:{node.name}" not in SENTENCES:
                    stale.append(f"{module}:{node.name}")
    assert not stale, f"remove the sentence from {', '.join(stale)}"


def test_lessons_show_and_use_what_they_should() -> None:
    assert SENTENCES["utils.training.adapters:save_adapter"].startswith(
        "First used in lesson 04"
    )
    assert len(SENTENCES) > 80
