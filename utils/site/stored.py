"""What a notebook has stored: the site shows it, and executes nothing.

A page without outputs, or with those of another day than one believes, misleads in
silence. So a notebook whose outputs are not all there is refused, and each page says
from which commit they are. Whether a fresh run would give the same, `make test` says.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import nbformat


@dataclass(frozen=True)
class Origin:
    """Where a page's outputs come from.

    Attributes:
        commit: the last one that changed the notebook, shortened; "" if unknown.
        date: of this commit, as YYYY-MM-DD; "" if unknown.
        changed: whether the file differs from what is committed.
    """

    commit: str = ""
    date: str = ""
    changed: bool = False

    def __str__(self) -> str:
        """Return one sentence for readers of the page."""
        if not self.commit:
            return (
                "The outputs are those stored in the notebook; their date is unknown."
            )
        stored = f"The outputs are those stored on {self.date} (commit {self.commit})"
        return stored + (", changed since without a commit." if self.changed else ".")


def faults(notebook: Path) -> list[str]:
    """Return what keeps a notebook from being shown, one sentence for each cell.

    Args:
        notebook: path of the file.
    """
    found = []
    cells = nbformat.read(notebook, as_version=4).cells
    for number, cell in enumerate(cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            found.append(f"cell {number} was not executed")
        elif any(output.output_type == "error" for output in cell.outputs):
            found.append(f"cell {number} has stored an error")
    return found


def origin(path: str, root: Path) -> Origin:
    """Return where a file's outputs come from, as git says.

    Args:
        path: of the notebook, from the root.
        root: of the repository. In a folder that git does not know, all is unknown.
    """
    head = _git(root, "log", "-1", "--format=%h %cs", "--", path).split()
    if len(head) != 2:
        return Origin()
    commit, date = head
    changed = bool(_git(root, "status", "--porcelain", "--", path))
    return Origin(commit, date, changed)


def _git(root: Path, *arguments: str) -> str:
    """Return what git prints; "" where there is no git, or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
