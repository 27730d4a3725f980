"""Writes CONTRIBUTING.md's map of `utils/` from the docstrings of the packages.

.venv/bin/python tests/support/house_map.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from utils.course import ROOT
from utils.files import write_text

PAGE = ROOT / "CONTRIBUTING.md"
UTILS = ROOT / "utils"
HEADING = "## The map of `utils/`\n\n"


def docstring(package: Path) -> str:
    """The docstring of a package's `__init__.py`; "" if it has none."""
    code = (package / "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(code)) or ""


def lines_of(package: Path) -> list[str]:
    """The list in a package's docstring, with the lines that go on from another."""
    return re.findall(r"^(?:- |  ).+", docstring(package), re.MULTILINE)


def whole_map(utils: Path = UTILS) -> str:
    """The map, and under each lesson's wing the list of its files."""
    shown = []
    for line in docstring(utils).splitlines()[2:]:
        shown.append(line)
        wing = re.match(r"- `(\w+)`: lesson \d\d", line)
        if wing:
            shown += ["  " + inner for inner in lines_of(utils / wing[1])]
    return "\n".join(shown) + "\n"


def with_map(page: str) -> str:
    """Return a page with the map as it should be, which ends it."""
    return page.partition(HEADING)[0] + HEADING + whole_map()


if __name__ == "__main__":
    write_text(PAGE, with_map(PAGE.read_text(encoding="utf-8")))
