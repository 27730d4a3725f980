"""Builds the site: gathers the pages, lets Sphinx render them, follows every link."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.course import ROOT
from utils.files import replace_folder, write_json
from utils.site import links, stored
from utils.site.pages import ORIGINS, Pages, SiteError, find_pages, write_source
from utils.temporary import temporary_folder

SEARCH = "searchindex.js"  # which every site has
SHOWN = 20  # faults in a message
# myst-nb counts the lines of a notebook's cell from 10000 times the cell's number.
CELL_LINES = 10_000


@dataclass(frozen=True)
class Site:
    """A built site.

    Attributes:
        index: path of its first page.
        pages: what it was built from.
        origins: of each notebook, by its path from the root.
    """

    index: Path
    pages: Pages
    origins: dict[str, stored.Origin]


def build_site(folder: Path, root: Path = ROOT) -> Site:
    """Build the site anew; what was in the folder before is replaced at the end.

    Nothing is kept from an earlier build, so no page can show an output that its
    notebook has no more.

    Args:
        folder: where the site belongs.
        root: of the repository.

    Raises:
        SiteError: if the folder holds anything but a site, a notebook lacks outputs, a
            link leads nowhere, something would be loaded from another host, or Sphinx
            warns of anything else.
        FileError: if the disk is full or may not be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / SEARCH).is_file():
        raise SiteError(
            f"{folder} holds something that is no site, and building would replace it: "
            "give an empty folder or a new one."
        )
    pages = find_pages(root)
    missing = [
        f"{path}: {fault}"
        for path in pages.notebooks
        for fault in stored.faults(root / path)
    ]
    if missing:
        raise SiteError(
            f"The site shows stored outputs, and some are missing.\n{_listed(missing)}"
            "\nStore them with `python -m utils.run --in-place NN`."
        )
    origins = {path: stored.origin(path, root) for path in pages.notebooks}

    def write(place: Path) -> None:
        _render(root, pages, origins, place)
        if found := links.faults(place):
            raise SiteError(
                f"Links of the site are wrong.\n{_listed(found)}\nCorrect them in the "
                "page that has them."
            )

    replace_folder(folder, write)
    return Site(folder / "index.html", pages, origins)


def _render(
    root: Path, pages: Pages, origins: dict[str, stored.Origin], place: Path
) -> None:
    """Let Sphinx write the pages to a folder, in a process of its own."""
    with temporary_folder() as work:
        # Not in its place at once: myst-nb writes a folder of its own beside it.
        source, built = work / "source", work / "built"
        source.mkdir()
        write_source(root, pages, source)
        said = {path.rpartition(".")[0]: str(one) for path, one in origins.items()}
        write_json(source / ORIGINS, said)
        python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "sphinx", "-b", "html", "-q", "--no-color"),
                *("--fail-on-warning", "-c", str(Path(__file__).parent)),
                *("-d", str(work / "doctrees"), str(source), str(built)),
            ],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(python_path),
                "PYTHONIOENCODING": "utf-8",
            },
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            raise SiteError(
                "Sphinx does not build the site. It says:\n"
                + _readable(done.stderr or done.stdout, source)
            )
        # Without templates that are no pages, and what a next build would read.
        left_out = shutil.ignore_patterns("*-macros.html", ".buildinfo")
        shutil.copytree(built, place, ignore=left_out, dirs_exist_ok=True)


def _readable(log: str, source: Path) -> str:
    """Sphinx's warnings with places as a reader of the repository knows them."""

    def place(found: re.Match[str]) -> str:
        cell, line = divmod(int(found["line"]), CELL_LINES)
        return f"{found['page']}, cell {cell}, line {line}:"

    log = log.replace(f"{source.resolve()}/", "").replace(f"{source}/", "")
    return re.sub(r"(?P<page>\S+\.ipynb):(?P<line>\d+):", place, log).strip()


def _listed(faults: list[str]) -> str:
    lines = [f"- {fault}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"- and {len(faults) - SHOWN} more")
    return "\n".join(lines)
