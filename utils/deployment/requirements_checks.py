"""Checks of requirements.txt."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.deployment.findings import Finding, ServedModel, layout, warning
from utils.deployment.image import IMAGE_VERSIONS

if TYPE_CHECKING:
    from packaging.requirements import Requirement

RESOLVE_TIMEOUT = 300  # seconds that pip may take


def check_requirements(model: ServedModel) -> Iterator[Finding]:
    """Find lines of requirements.txt at which pip fails or downgrades the image."""
    from packaging.requirements import InvalidRequirement, Requirement

    pins: dict[str, Requirement] = {}
    for number, text in _requirement_lines(model.folder):
        where = f"{layout.REQUIREMENTS}, line {number}"
        if text.endswith(".whl"):
            if "://" not in text and not (model.folder / text).is_file():
                yield warning(where, f"{text} is not in the archive", "Pack it")
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement as problem:
            reason = str(problem).splitlines()[0]
            yield warning(
                where,
                f"{text!r} is no requirement ({reason}): pip installs nothing at all",
                "Correct the line",
            )
            continue
        earlier = pins.setdefault(_normalised(wanted.name), wanted)
        yield from _check_pin(where, wanted, earlier)


def _requirement_lines(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that names a package."""
    path = folder / layout.REQUIREMENTS
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    for number, raw in enumerate(lines, 1):
        text = re.sub(r"(^|\s)#.*", "", raw).strip()
        if text and not text.startswith("-"):
            yield number, text


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_pin(
    where: str, wanted: Requirement, earlier: Requirement
) -> Iterator[Finding]:
    """Compare a requirement with an earlier one of the package, and with the image."""
    from packaging.version import Version

    name = _normalised(wanted.name)
    versions = [spec.version for spec in wanted.specifier if spec.operator == "=="]
    exact = [version for version in versions if "*" not in version]
    if any(version not in earlier.specifier for version in exact):
        yield warning(
            where,
            f"{wanted} and {earlier} cannot both be met: pip installs nothing at all",
            "Keep one of them",
        )
    least = IMAGE_VERSIONS.get(name, "0")
    if any(Version(version) < Version(least) for version in exact):
        yield warning(
            where,
            f"{wanted} is older than the image's {name} ({least}), which the rest of "
            "the image was built with",
            "Do without the pin",
        )


def check_resolution(model: ServedModel) -> Iterator[Finding]:
    """Ask pip for what the container would ask it for, and install nothing."""
    path = model.folder / layout.REQUIREMENTS
    if not path.is_file():
        return
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    command += ["--disable-pip-version-check", "-r", path.name]
    try:
        done = subprocess.run(
            command,
            cwd=model.folder,
            capture_output=True,
            text=True,
            timeout=RESOLVE_TIMEOUT,
        )
        said = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"ERROR: no answer within {RESOLVE_TIMEOUT} s"
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    if said:
        reason = (errors or said.split("\n"))[0].removeprefix("ERROR: ").strip()
        yield warning(
            path.name,
            f"pip cannot meet it ({reason}): the model is served without the packages",
            "Correct the pins, or leave the file out",
        )
