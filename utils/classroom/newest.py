"""Do the notebooks run with the newest versions of everything? `make newest`.

    python -m utils.classroom newest                  resolve, install, run all lessons
    python -m utils.classroom newest --resolve-only   only say what would change
    python -m utils.classroom newest 01 02            only these notebooks

It works in a folder of its own: a copy of the repository without the pins, and an
environment that holds the newest versions that fit together. `.venv`, the pins and the
notebooks' outputs stay as they are.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from utils.course import ROOT, CourseError
from utils.fetch import WHEELS, model_folder
from utils.files import write_text

PIN = re.compile(r"^([\w.-]+)(\[[^]]*\])?==([^\s;]+)", re.MULTILINE)
# With the course's own reason in requirements.txt: a later one cannot work.
HELD = ("setuptools",)
COPIED = ("utils", "data", "notebooks", "README.md", "pyproject.toml", "LICENSE")
LAST_LINES = 3
# Settings that would lead the scratch environment back to this one.
NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COURSE_BUILD")
# A line of `pip config list`, such as "global.index-url='https://…'".
SETTING = re.compile(r"""^\S+\.([a-z-]+)=(["'].*["'])$""", re.MULTILINE)
# pip's setting → uv's option, or the environment variable that uv reads.
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
}
VARIABLES = {"cert": "SSL_CERT_FILE", "proxy": "HTTPS_PROXY"}


class NewestError(CourseError):
    """The newest versions cannot be tried."""


@dataclass(frozen=True)
class Done:
    """What a command came to.

    Attributes:
        code: its exit code.
        output: what it printed.
    """

    code: int
    output: str


Run = Callable[[Sequence[str], Path, Mapping[str, str]], Done]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Outcome:
    """How a notebook fared.

    Attributes:
        notebook: its name, as `utils.run` takes it.
        error: the end of what was printed; "" if it ran to its end.
    """

    notebook: str
    error: str = ""

    def __str__(self) -> str:
        return f"{'[FAIL]' if self.error else '[OK]  '} {self.notebook}" + (
            f": {self.error}" if self.error else ""
        )


def run_command(
    command: Sequence[str], folder: Path, environ: Mapping[str, str]
) -> Done:
    """Run a command to its end.

    Args:
        command: program and arguments.
        folder: to run it in.
        environ: its environment variables, all of them.
    """
    done = subprocess.run(
        list(command),
        cwd=folder,
        env=dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    return Done(done.returncode, done.stdout)


def at_least(requirements: str) -> str:
    """Return requirements.txt with its exact versions as the least ones.

    The pins themselves fit together, so that there is always an answer, and no package
    goes back to have the newest of another.

    Args:
        requirements: its text.
    """

    def least(pin: re.Match[str]) -> str:
        return pin[0] if pin[1] in HELD else f"{pin[1]}{pin[2] or ''}>={pin[3]}"

    return PIN.sub(least, requirements)


def with_pins(requirements: str, versions: Mapping[str, str]) -> str:
    """Return requirements.txt with other versions.

    Args:
        requirements: its text.
        versions: normalised name → version.
    """

    def newer(pin: re.Match[str]) -> str:
        version = versions.get(canonicalize_name(pin[1]), pin[3])
        return f"{pin[1]}{pin[2] or ''}=={version}"

    return PIN.sub(newer, requirements)


class Trial:
    """One trial in a folder of its own.

    Args:
        folder: is made anew.
        root: of the repository.
        run: runs a command.
        pip_arguments: for `pip install`, such as an index for CPU builds.
        say: gets lines of progress.
    """

    def __init__(
        self,
        folder: Path,
        root: Path = ROOT,
        run: Run = run_command,
        pip_arguments: Sequence[str] = (),
        say: Say = print,
    ) -> None:
        self.folder, self.root, self._run, self._say = folder, root, run, say
        self.pip_arguments = list(pip_arguments)
        self.copy = folder / "course"
        self.python = folder / "environment" / "bin" / "python"
        self.resolved = folder / "resolved.txt"
        self.pinned = (root / "requirements.txt").read_text(encoding="utf-8")

    def _environ(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON}
        return {**kept, "PIP_USER": "0", **more}

    def prepare(self) -> None:
        """Copy the repository, and make an empty environment beside it.

        Raises:
            NewestError: if the environment cannot be made.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.copy.mkdir(parents=True)
        for name in COPIED:
            source = self.root / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
                shutil.copytree(source, self.copy / name, ignore=ignored)
            elif source.is_file():
                shutil.copy(source, self.copy / name)
        write_text(self.copy / "requirements.txt", at_least(self.pinned))
        command = [sys.executable, "-m", "venv", str(self.folder / "environment")]
        self._checked(command, "No environment could be made")

    def resolve(self) -> dict[str, str]:
        """Find the newest versions that fit together, with uv; only uv is installed.

        pip's own search takes twenty minutes here, uv's some seconds.

        Returns:
            Normalised name → version of everything that would be installed.

        Raises:
            NewestError: if there are none that fit together, with uv's reason.
        """
        self._pip("uv")
        settings = self._settings_of_pip()
        command = [str(self.python.with_name("uv")), "pip", "compile", "--quiet"]
        command += ["--python", str(self.python), "--output-file", str(self.resolved)]
        # As pip: of all indexes the newest version, not the first index that has one.
        command += ["--index-strategy", "unsafe-best-match"]
        for name, values in settings.items():
            if name in OPTIONS:
                command += [word for one in values for word in (OPTIONS[name], one)]
        command += [*self.pip_arguments, "requirements.txt"]
        variables = {
            VARIABLES[name]: values[-1]
            for name, values in settings.items()
            if name in VARIABLES and values
        }
        self._checked(command, "No versions fit together", **variables)
        found = PIN.findall(self.resolved.read_text(encoding="utf-8"))
        return {canonicalize_name(name): version for name, _, version in found}

    def _settings_of_pip(self) -> dict[str, list[str]]:
        """Return pip's settings of all kinds; uv reads none of them."""
        command = [str(self.python), "-m", "pip", "config", "list"]
        done = self._run(command, self.copy, self._environ())
        found = SETTING.findall(done.output)
        return {name: ast.literal_eval(value).split() for name, value in found}

    def changes(self, versions: Mapping[str, str]) -> list[str]:
        """Return a line for each pin that would change.

        Args:
            versions: what `resolve` returned.
        """
        lines = []
        for name, _, pin in PIN.findall(self.pinned):
            newest = versions.get(canonicalize_name(name), pin).partition("+")[0]
            if newest != pin:
                lines.append(f"{name} {pin} → {newest}")
        return lines

    def install(self, versions: Mapping[str, str]) -> None:
        """Install these versions, and lend the environment the models that are here.

        Args:
            versions: what `resolve` returned.

        Raises:
            NewestError: if pip cannot.
        """
        text = with_pins(self.pinned, versions)
        write_text(self.copy / "requirements.txt", text)
        pins = [f"{name}=={version}\n" for name, version in versions.items()]
        write_text(self.resolved, "".join(pins))
        self._pip("-c", str(self.resolved), "-r", "requirements.txt")
        models = self.folder / "environment" / "course_models"
        models.mkdir(exist_ok=True)
        for name in WHEELS:
            if model_folder(name).is_dir():
                (models / name).symlink_to(model_folder(name))

    def try_notebooks(self, wanted: Sequence[str] = ()) -> list[Outcome]:
        """Run notebooks one by one, in order; one that fails does not end it.

        Args:
            wanted: as `utils.run` takes them; all by default. A later lesson reads what
                an earlier one has written.
        """
        outcomes = []
        for name in wanted or notebook_names(self.root):
            self._say(f"{name} …")
            done = self._run(
                [str(self.python), "-m", "utils.run", name],
                self.copy,
                self._environ(COURSE_BUILD=str(self.folder / "build")),
            )
            outcome = Outcome(name, last_lines(done.output) if done.code else "")
            self._say(str(outcome))
            outcomes.append(outcome)
        return outcomes

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "install", "--quiet", *arguments]
        command += ["--disable-pip-version-check", *self.pip_arguments]
        self._checked(command, "pip cannot install what is needed")

    def _checked(self, command: Sequence[str], failure: str, **more: str) -> None:
        folder = self.copy if self.copy.is_dir() else self.root
        done = self._run(command, folder, self._environ(**more))
        if done.code:
            said = done.output[-2000:]
            raise NewestError(f"{failure}. The end of what was said:\n{said}")


def notebook_names(root: Path) -> list[str]:
    """Return the notebooks in order, as `utils.run` takes them."""
    folder = root / "notebooks"
    lessons = sorted(path.stem for path in folder.glob("[0-9][0-9]_*.ipynb"))
    experiments = sorted(
        path.stem for path in folder.glob("experiments/[0-9][0-9]_*.ipynb")
    )
    return [*lessons, *(f"experiments/{name}" for name in experiments)]


def last_lines(output: str, most: int = LAST_LINES) -> str:
    """Return the last lines of an output as one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " / ".join(lines[-most:]) or "no word of why"


def try_newest(
    trial: Trial, wanted: Sequence[str] = (), resolve_only: bool = False
) -> tuple[list[str], list[Outcome]]:
    """Resolve, install and run.

    Args:
        trial: where and how.
        wanted: notebooks; all by default.
        resolve_only: whether to stop before anything is installed.

    Returns:
        What changes, a line for each pin, and how the notebooks fared.

    Raises:
        NewestError: if nothing could be tried.
    """
    known = notebook_names(trial.root)
    for one in wanted:
        names = [one, Path(one).stem, f"{one}_"]
        if one != "experiments" and not any(
            name in names or name.startswith(names[2]) for name in known
        ):
            raise NewestError(f"There is no notebook {one}: {', '.join(known)}.")
    trial.prepare()
    versions = trial.resolve()
    changes = trial.changes(versions)
    if resolve_only:
        return changes, []
    trial.install(versions)
    return changes, trial.try_notebooks(wanted)
