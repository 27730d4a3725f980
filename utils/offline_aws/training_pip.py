"""The `pip` of a training job here: it installs nothing, and says what is missing.

A job on AWS has an image of its own, which pip may change. A job here runs with the
learner's environment, which must stay as it is. So this stands before pip: what a job
asks for is compared with what is installed. If all of it is there, the job goes on;
else it fails, with a reason in its failure file. Questions (list, show, freeze) go to
the real pip.

It imports nothing of ours: a copy of it runs in the job, as `pip/__main__.py`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

FAILURE = Path("/opt/ml/output/failure")
QUESTIONS = {"list", "freeze", "show", "check", "help", "--version", "-V", "--help"}
# Options of `pip install` that have a value of their own.
WITH_VALUE = {
    *("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--timeout"),
    *("--trusted-host", "--proxy", "--retries", "--cache-dir", "--progress-bar"),
    *("-t", "--target", "--prefix", "--root", "--platform", "--python-version"),
    *("--no-binary", "--only-binary", "--upgrade-strategy", "-C", "--config-settings"),
    *("--log", "--cert", "--client-cert", "--src", "--exists-action", "--abi"),
}


def main(arguments: list[str]) -> int:
    """Answer a call of pip; return the code with which it ends."""
    if not arguments or QUESTIONS & set(arguments[:1]):
        return ask_the_real_one(arguments)
    if arguments[0] != "install":
        return refuse([f"`pip {arguments[0]}` would change it"])
    missing = []
    for wanted in asked_for(arguments[1:]):
        if fault := fault_of(wanted):
            missing.append(fault)
        else:
            print(f"Requirement already satisfied: {wanted}")
    return refuse(missing) if missing else 0


def refuse(faults: list[str]) -> int:
    """Write why the job cannot go on to its log and to its failure file."""
    text = (
        f"A job of the offline AWS cannot install packages: {'; '.join(faults)}. It "
        "runs with this machine's Python environment, which stays as it is. Install "
        "there what is missing, or change the job's requirements. With "
        "COURSE_AWS=real the job installs it into its image."
    )
    print(text, file=sys.stderr, flush=True)
    if FAILURE.parent.is_dir() and not FAILURE.exists():
        FAILURE.write_text(text, "utf-8")
    return 1


def asked_for(arguments: list[str]) -> Iterator[str]:
    """Yield each requirement that a call of `pip install` names, files opened."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-r", "--requirement"):
            yield from in_file(Path(value if equals else rest.pop(0)))
        elif word.startswith("-r") and len(word) > 2 and not word.startswith("--"):
            yield from in_file(Path(word[2:]))
        elif name in ("-e", "--editable"):
            yield value if equals else rest.pop(0)
        elif name in ("-c", "--constraint") or name in WITH_VALUE:
            if not equals and rest:
                rest.pop(0)
        elif not word.startswith("-"):
            yield word


def in_file(path: Path) -> Iterator[str]:
    """Yield each requirement of a file, and of the files that it names."""
    try:
        text = path.read_text("utf-8-sig").replace("\\\n", " ")
    except OSError as error:
        yield f"{path} ({error.strerror})"
        return
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#") or not line:
            continue
        line = line.partition(" #")[0].partition(" --hash")[0].strip()
        if line.startswith(("-r ", "--requirement ", "--requirement=")):
            name = line.replace("=", " ", 1).split(None, 1)[1]
            yield from in_file(path.parent / name)
        elif line.startswith("-e "):
            yield line[3:].strip()
        elif not line.startswith("-"):
            yield line


def fault_of(wanted: str, seen: frozenset[str] = frozenset()) -> str | None:
    """Say why a requirement is not met by what is installed; None if it is."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(wanted)
    except InvalidRequirement:
        return f"{wanted!r} is no package with a version, so it cannot be looked up"
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    if requirement.url is not None:
        return f"{wanted!r} comes from an address"
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{wanted} is asked for, and {requirement.name} {found} is installed"
    return _fault_of_extras(requirement, seen)


def _fault_of_extras(requirement: object, seen: frozenset[str]) -> str | None:
    """Say which package of an extra, such as datasets[audio], is missing."""
    from packaging.requirements import Requirement

    name = requirement.name
    if not requirement.extras or str(requirement) in seen:
        return None
    for line in importlib.metadata.requires(name) or ():
        needed = Requirement(line)
        if needed.marker is None:
            continue
        for extra in requirement.extras:
            if needed.marker.evaluate({"extra": extra}):
                needed.marker = None
                fault = fault_of(str(needed), seen | {str(requirement)})
                if fault is not None:
                    return f"{requirement}: {fault}"
    return None


def ask_the_real_one(arguments: list[str]) -> int:
    """Run the pip of the environment, which lies behind this one."""
    environment = dict(os.environ)
    own = str(Path(__file__).resolve().parents[1])
    paths = environment.pop("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in paths if path and os.path.realpath(path) != own]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    os.chdir(os.environ.get("HOME", "/"))
    os.execve(sys.executable, [sys.executable, "-m", "pip", *arguments], environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
