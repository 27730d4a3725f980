"""Which files of the repository become pages, and the page that leads to them.

The pages are the README, all notebooks, and every document that one of them links to.
Other linked files, such as a policy in JSON, come along to be downloaded. The layout of
the repository is kept, so a link that works there works on the site.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import nbformat

from utils.course import CourseError
from utils.files import write_text

PAGES = (".md", ".ipynb")
FIRST = (
    "README.md",
    "notebooks/getting_unstuck.md",
    "notebooks/glossary.md",
    "CONTRIBUTING.md",
)
ORIGINS = "origins.json"  # beside the pages: page to where its outputs are from
ROAD_MAP = "Road map"  # the section of the README that the index shows
README_TITLE = "Installation, switches and measurements"
CODE = re.compile(r"^(```+|~~~+).*?^\1|(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL | re.M)
LINK = re.compile(r"\]\((?P<to>[^()\s]+)[^()]*\)|<(?:img|a)\s[^>]*?\"(?P<raw>[^\"]+)\"")
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


class SiteError(CourseError):
    """The site cannot be built from these files."""


@dataclass(frozen=True)
class Pages:
    """What the site is made of: paths from the root of the repository.

    Attributes:
        lessons: notebooks of the main road, in order.
        experiments: the others.
        documents: the other pages, in the order in which they are linked.
        files: what is linked and is no page.
    """

    lessons: tuple[str, ...]
    experiments: tuple[str, ...]
    documents: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def notebooks(self) -> tuple[str, ...]:
        """Lessons, then experiments, then any other that is linked."""
        others = [page for page in self.documents if page.endswith(".ipynb")]
        return (*self.lessons, *self.experiments, *others)

    @property
    def all(self) -> tuple[str, ...]:
        """Everything that Sphinx needs to find."""
        return self.lessons + self.experiments + self.documents + self.files


def prose(path: Path) -> str:
    """Return the Markdown of a document, or of all cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def without_code(text: str) -> str:
    """Return Markdown without what is set as code."""
    return CODE.sub("", text)


def title(path: Path) -> str:
    """Return the first heading of a page; its name where there is none."""
    found = TITLE.search(without_code(prose(path)))
    return found[1].strip() if found else path.stem


def find_pages(root: Path) -> Pages:
    """Follow the links from the README and the notebooks to everything they need.

    What is linked and not there is left out here: Sphinx names the page and the line.

    Args:
        root: of the repository.

    Raises:
        SiteError: if there is no README or no notebook.
    """
    notebooks = root / "notebooks"
    lessons = _found(notebooks.glob("[0-9][0-9]_*.ipynb"), root)
    experiments = _found((notebooks / "experiments").glob("*.ipynb"), root)
    if not lessons or not (root / FIRST[0]).is_file():
        raise SiteError(
            f"{root} holds no README.md, or no notebooks/NN_….ipynb: give the folder "
            "of the course."
        )
    waiting = [*FIRST, *lessons, *experiments]
    seen: dict[str, None] = {}
    while waiting:
        page = waiting.pop(0)
        if page in seen or not (root / page).is_file():
            continue
        seen[page] = None
        if page.endswith(PAGES):
            waiting += _linked(root, page)
    others = [page for page in seen if page not in (*lessons, *experiments)]
    return Pages(
        tuple(lessons),
        tuple(experiments),
        tuple(page for page in others if page.endswith(PAGES)),
        tuple(page for page in others if not page.endswith(PAGES)),
    )


def write_source(root: Path, pages: Pages, source: Path) -> None:
    """Copy what the site is made of, and write its index.

    Args:
        root: of the repository.
        pages: of it.
        source: an empty folder, from which Sphinx builds.

    Raises:
        SiteError: if the README has no section "Road map".
    """
    for path in pages.all:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, source / path)
    write_text(source / "index.md", index(root, pages))


def index(root: Path, pages: Pages) -> str:
    """Return the first page in Markdown: what the README says first, then the way.

    Introduction, picture, road map and the tables with the times are the README's own,
    so they cannot differ from it.

    Args:
        root: of the repository.
        pages: of it.

    Raises:
        SiteError: if the README has no section "Road map".
    """
    readme = (root / FIRST[0]).read_text(encoding="utf-8")
    introduction, *sections = re.split(r"^## ", readme, flags=re.MULTILINE)
    found = [text for text in sections if text.partition("\n")[0].strip() == ROAD_MAP]
    if not found:
        raise SiteError(
            f'README.md has no section "## {ROAD_MAP}", from which the index of the '
            "site takes the tables: give it one."
        )
    # On a narrow page the names of notebooks break where words end.
    road_map = re.sub(
        r"(?<=\[)\d\d_\w+(?=\]\()",
        lambda name: name[0].replace("_", "_<wbr>"),
        found[0].strip(),
    )
    further = "\n".join(f"- [{_label(root, p)}]({p})" for p in pages.documents)
    # Sections of the README that this page does not show.
    introduction = introduction.replace("](#", f"]({FIRST[0]}#")
    return "\n\n".join(
        [
            introduction.strip(),
            f"## {road_map}",
            f"## More pages\n\n{further}",
            *_contents(root, pages),
            "",
        ]
    )


def _contents(root: Path, pages: Pages) -> Iterator[str]:
    """Yield the tables of contents that Sphinx shows at the side."""
    groups = (
        ("Lessons", pages.lessons),
        ("Experiments", pages.experiments),
        ("More pages", pages.documents),
    )
    for caption, paths in groups:
        if paths:
            lines = "\n".join(f"{_label(root, path)} <{path}>" for path in paths)
            yield f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```"


def _label(root: Path, path: str) -> str:
    """How a page is called at the side: a notebook with its number."""
    if path == FIRST[0]:
        return README_TITLE
    label = title(root / path)
    number = re.search(r"/(\d\d)_[^/]*\.ipynb$", path)
    if not number:
        return label
    return f"{number[1]} · " + re.sub(r"^Experiment \d\d · ", "", label)


def _linked(root: Path, page: str) -> Iterator[str]:
    """Files that a page links to, as paths from the root."""
    folder = (root / page).parent
    for found in LINK.finditer(without_code(prose(root / page))):
        target = unquote((found["to"] or found["raw"]).partition("#")[0])
        if not target or re.match(r"\w+:|/", target):
            continue
        path = (folder / target).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            yield path.relative_to(root.resolve()).as_posix()


def _found(paths: Iterator[Path], root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in paths)
