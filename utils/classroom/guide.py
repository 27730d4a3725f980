"""The figures and the links of the instructors' guide, notebooks/guide.md.

    python -m utils.classroom guide

What a notebook takes stands in its title's table and in the README, what a machine
costs in data/aws/prices.csv. The guide's table is computed from these, and its links
lead to the section in which a cell stands now. A test compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat

from utils.classroom.account_check import NEEDED
from utils.course import ROOT, CourseError
from utils.deployment.prices import Price, read_snapshot
from utils.files import write_text

GUIDE = ROOT / "notebooks" / "guide.md"
LEARNERS = 40
STUDIO = ("ml.m5.xlarge", "ml.g5.xlarge")  # a space for the course, without or with GPU
TABLE = re.compile(r"(<!-- costs -->\n).*?(<!-- /costs -->)", re.DOTALL)
ROW = re.compile(
    r"^\| \[\w+\]\(notebooks/(?P<path>[\w/]+)\.ipynb\) \|.*\| (?P<seconds>\d+) s \|$",
    re.MULTILINE,
)
MINUTES = re.compile(r"\*\*time\*\* \| (\d+) minutes")
MEMORY = re.compile(r"\*\*needs\*\* \|[^|]*?(\d+) GB")
SECTION = re.compile(r"^## (?P<number>\d+) · (?P<title>.+)$", re.MULTILINE)
# In the guide: [02, section 4](…), cell `context-seen`.
PLACE = re.compile(
    r"\[(?P<lesson>\d\d), section \d+\]\([^)]*\), cell `(?P<cell>[\w-]+)`"
)


class GuideError(CourseError):
    """The guide names something that is not there."""


@dataclass(frozen=True)
class Needs:
    """What one notebook takes.

    Attributes:
        path: from the folder of the notebooks, without its suffix.
        minutes: to read and to try.
        seconds: of computing, on the machine of the README.
        memory: gigabytes, with the default model.
    """

    path: str
    minutes: int
    seconds: int
    memory: int

    @property
    def name(self) -> str:
        """As `utils.run` takes it: a lesson's number, an experiment's path."""
        return self.path if "/" in self.path else self.path[:2]


def read_needs(root: Path = ROOT) -> list[Needs]:
    """Return what each notebook takes, in the README's order.

    Raises:
        GuideError: if a notebook's first cell does not say it.
    """
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = []
    for row in ROW.finditer(readme):
        first = nbformat.read(
            root / "notebooks" / f"{row['path']}.ipynb", as_version=4
        ).cells[0]
        minutes, memory = MINUTES.search(first.source), MEMORY.search(first.source)
        if minutes is None or memory is None:
            raise GuideError(
                f"{row['path']}: its first cell must say **needs** in GB and **time** "
                "in minutes, in the table below the title."
            )
        numbers = int(minutes[1]), int(row["seconds"]), int(memory[1])
        found.append(Needs(row["path"], *numbers))
    return found


def aws_cost(needs: Needs, prices: dict[str, Price], learners: int = 1) -> float | None:
    """Return US dollars for what a notebook starts on the real AWS; None for nothing.

    Its endpoints are taken to stand as long as it takes; one that is forgotten stands
    longer. Training jobs take minutes each and are not counted.

    Args:
        needs: of the notebook.
        prices: by item.
        learners: each with machines of their own.
    """
    hourly = 0.0
    for kind, use, each, notebook in NEEDED:
        if notebook == needs.name and "training" not in use:
            hourly += each * prices[kind].usd
    return hourly * needs.minutes / 60 * learners or None


def known_prices() -> dict[str, Price]:
    """Return the prices of the snapshot by item."""
    return {price.item: price for price in read_snapshot()}


def table(root: Path = ROOT) -> str:
    """Return the guide's tables of times and costs in Markdown."""
    prices = known_prices()
    lines = [
        "| notebook | to read and try | computing | memory | on AWS, one learner | "
        f"on AWS, {LEARNERS} learners |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for needs in read_needs(root):
        one, all_of_them = (
            _dollars(aws_cost(needs, prices, count)) for count in (1, LEARNERS)
        )
        lines.append(
            f"| [{needs.path.rpartition('/')[2]}]({needs.path}.ipynb) | "
            f"{needs.minutes} min | {needs.seconds} s | {needs.memory} GB | "
            f"{one} | {all_of_them} |"
        )
    lines += [
        "",
        f"| an hour of a space in Studio | one learner | {LEARNERS} learners |",
        "|:--|--:|--:|",
    ]
    for kind in STUDIO:
        usd = prices[kind].usd
        lines.append(f"| {kind} | {_dollars(usd)} | {_dollars(usd * LEARNERS)} |")
    lines += ["", *_sources(prices)]
    return "\n".join(lines) + "\n"


def _dollars(usd: float | None) -> str:
    return "nothing" if usd is None else f"${usd:,.2f}"


def _sources(prices: dict[str, Price]) -> Iterator[str]:
    yield "The prices, without taxes and storage:\n"
    for item in STUDIO:
        yield f"- {prices[item]}."


# --- links ----------------------------------------------------------------------------


@cache
def _cells(path: Path) -> list[tuple[str, str]]:
    """Return id and text of each cell of a notebook."""
    return [(one.id, one.source) for one in nbformat.read(path, as_version=4).cells]


def section_of(path: Path, cell: str) -> tuple[int, str]:
    """Return number and heading of the section in which a cell stands.

    Args:
        path: of the notebook.
        cell: its id.

    Raises:
        GuideError: if there is no such cell, or it stands before the first section.
    """
    section = None
    for one, text in _cells(path):
        headings = list(SECTION.finditer(text))
        if one == cell:
            if headings and not text[: headings[0].start()].strip():
                section = headings[0]
            if section is not None:
                return int(section["number"]), section[0].removeprefix("## ")
            break
        section = headings[-1] if headings else section
    raise GuideError(f"{path.name} has no cell {cell!r} in a section: name another.")


def lesson_path(number: str, root: Path = ROOT) -> Path:
    """Return the path of a lesson.

    Raises:
        GuideError: if there is none with this number.
    """
    for path in (root / "notebooks").glob(f"{number}_*.ipynb"):
        return path
    raise GuideError(f"There is no lesson {number}: name another.")


def with_links(text: str, root: Path = ROOT) -> str:
    """Return the guide with each link leading to the section of its cell.

    Args:
        text: of the guide.
        root: of the repository.
    """

    def place(found: re.Match[str]) -> str:
        path = lesson_path(found["lesson"], root)
        number, heading = section_of(path, found["cell"])
        link = f"{path.name}#{heading.replace(' ', '-')}"
        return f"[{found['lesson']}, section {number}]({link}), cell `{found['cell']}`"

    return PLACE.sub(place, text)


def up_to_date(text: str, root: Path = ROOT) -> str:
    """Return the guide with its table and links as they should be now.

    Raises:
        GuideError: if the place of the table is missing, or a cell is.
    """
    if not TABLE.search(text):
        raise GuideError(
            "The guide has no <!-- costs --> … <!-- /costs -->: restore it."
        )
    made = table(root)
    text = TABLE.sub(lambda old: f"{old[1]}\n{made}\n{old[2]}", text)
    return with_links(text, root)


def write(guide: Path = GUIDE, root: Path = ROOT) -> None:
    """Bring the guide up to date."""
    write_text(guide, up_to_date(guide.read_text(encoding="utf-8"), root))
