"""The address of the repository, which a fork changes with one command.

    python -m utils.classroom address https://github.com/you/your-fork

The README's button for Colab, and the cell that a hosted notebook begins with, name the
repository. The README is where the address stands; the command writes it there.
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.course import ROOT, CourseError
from utils.files import write_text

README = ROOT / "README.md"
HOSTED = "utils/classroom/hosted.py"
FOLDER = "fine-tuning-course"  # in the home folder of a hosted place
# The one line: where the button leads.
BUTTON = re.compile(
    r"^\[colab\]: https://colab\.research\.google\.com/github/(?P<repository>[^/\s]+/"
    r"[^/\s]+)/blob/(?P<branch>[^/\s]+)/(?P<path>\S+)$",
    re.MULTILINE,
)
CELL = re.compile(
    r"(?<=^```python\n)# Colab and Studio Lab:.*?(?=^```$)", re.MULTILINE | re.DOTALL
)
ADDRESS = re.compile(r"(?:https://)?github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


class AddressError(CourseError):
    """An address that cannot be used, or a README without its button."""


def first_cell(repository: str) -> str:
    """Return the cell with which a hosted notebook begins; a second run is harmless.

    A notebook within a clone, as in Studio Lab, uses that one.

    Args:
        repository: what git clones, such as "https://github.com/you/your-fork".
    """
    return f'''\
# Colab and Studio Lab: run this cell first. It installs the course.
import runpy
import subprocess
from pathlib import Path

here, script = Path.cwd(), "{HOSTED}"
clones = [here, *here.parents, Path.home() / "{FOLDER}"]
course = next((one for one in clones if (one / script).is_file()), clones[-1])
if not (course / script).is_file():
    address = "{repository}"
    subprocess.run(["git", "clone", "--depth=1", address, course], check=True)
runpy.run_path(str(course / script), run_name="__main__")
'''


def button(readme: str) -> re.Match[str]:
    """Return the README's line that says where the button leads.

    Raises:
        AddressError: if there is none.
    """
    found = BUTTON.search(readme)
    if found is None:
        raise AddressError(
            "README.md has no line `[colab]: https://colab.research.google.com/github/"
            "OWNER/REPOSITORY/blob/main/notebooks/…`: restore it."
        )
    return found


def repository(readme: str | None = None) -> str:
    """Return the repository's address, as the README has it.

    Args:
        readme: its text; read by default.
    """
    text = README.read_text(encoding="utf-8") if readme is None else readme
    return f"https://github.com/{button(text)['repository']}"


def with_address(readme: str, address: str | None = None) -> str:
    """Return the README with an address wherever it names the repository.

    Args:
        readme: its text.
        address: such as "https://github.com/you/your-fork"; the one that its button has
            by default.

    Raises:
        AddressError: if it is no repository on GitHub, where Colab finds notebooks.
    """
    found = ADDRESS.fullmatch(address or repository(readme))
    if found is None:
        raise AddressError(
            f"{address!r} is no repository on GitHub: give its address, such as "
            "https://github.com/you/your-fork."
        )
    line = button(readme)
    start, end = line.span("repository")
    readme = readme[:start] + found[1] + readme[end:]
    cell = first_cell(f"https://github.com/{found[1]}")
    return CELL.sub(lambda _: cell, readme)


def set_address(address: str, readme: Path = README) -> None:
    """Write an address into the README."""
    text = with_address(readme.read_text(encoding="utf-8"), address)
    write_text(readme, text)
