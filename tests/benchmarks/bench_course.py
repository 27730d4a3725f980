"""How long the two commands take and how much memory they hold.

    .venv/bin/python tests/benchmarks/bench_course.py           # make run, make test
    .venv/bin/python tests/benchmarks/bench_course.py --fresh   # in a new clone
    .venv/bin/python tests/benchmarks/bench_course.py 08 09     # these notebooks

Prints one line a command: seconds on the clock and the peak of the memory that all
its processes hold together (proportional set size, sampled every second; resident set
size where the system does not tell); what the commands print goes to the standard
error. Close other programs first.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_SECONDS = 1
MEBIBYTE = 2**20


def held_memory(process: psutil.Process) -> int:
    """Bytes that a process and all its descendants hold now."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                info = one.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
    return total


def measure(command: list[str], folder: Path) -> tuple[float, float, int]:
    """Seconds, peak MiB and exit code of a command."""
    started, peak = time.monotonic(), 0
    # The caller's settings of the course must not decide what is measured.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COURSE_")}
    with psutil.Popen(
        command, cwd=folder, env=environment, stdout=sys.stderr
    ) as process:
        while process.poll() is None:
            peak = max(peak, held_memory(process))
            time.sleep(SAMPLE_SECONDS)
    return time.monotonic() - started, peak / MEBIBYTE, process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="install a new clone")
    parser.add_argument(
        "notebooks", nargs="*", metavar="NN", help="one by one, in place of make"
    )
    options = parser.parse_args()
    commands = [["make", "run"], ["make", "test"]]
    if options.fresh and options.notebooks:
        parser.error("--fresh measures the two commands: leave the notebooks out")
    if options.notebooks:
        run = [str(ROOT / ".venv" / "bin" / "python"), "-m", "utils.run"]
        commands = [[*run, one] for one in options.notebooks]
    with tempfile.TemporaryDirectory() as scratch:
        folder = ROOT
        if options.fresh:
            folder = Path(scratch) / "course"
            subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
            commands.insert(0, ["make", ".venv/installed"])
        failed = 0
        for command in commands:
            seconds, peak, code = measure(command, folder)
            failed |= code
            outcome = "" if code == 0 else f"  failed with exit code {code}"
            name = " ".join(command[-2:])
            print(f"{name:22} {seconds:6.0f} s {peak:8,.0f} MiB{outcome}", flush=True)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
