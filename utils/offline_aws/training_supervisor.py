"""What a training job's machine is here: a process that ends all that the job started.

usage: python -m utils.offline_aws.training_supervisor GRACE FOLDER COMMAND…

It starts the job's command in a session of its own and ends as that ends. A container
ends with its first process, and with it everything in it; so here, whatever the command
has left is killed. torchrun's workers have sessions of their own, which no signal to a
group reaches: they are found as descendants, of which this process is the keeper
(PR_SET_CHILD_SUBREAPER of prctl(2), Linux only).

A byte on standard input is an order: STOP is SIGTERM and, after a while, SIGKILL; KILL
is SIGKILL at once. When standard input closes, the offline AWS has been killed: the job
is killed as well, and its folder removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from utils.temporary import clear_dead

PREFIX = "course-trained-"  # of the folder of a job in the temporary folder
STOP, KILL = b"T", b"K"
KILLED = 128 + signal.SIGKILL  # as a shell, and Docker, call it
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # likewise
POLL = 0.02  # seconds between looks at what is killed
STOP_POLL = 0.1  # and at what is asked to end, which may take two minutes
END_TIMEOUT = 10  # seconds in which what is killed has to be gone
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TOOLKIT = "course/train.py"  # where a copy of `training_toolkit` lies in a job's disk
# The SDK's drivers wait for the script, and print what it writes; so does the toolkit.
# They are not asked to stop, so that what the script says while it stops is still read.
DRIVERS = ("sm_drivers", TOOLKIT)


class Supervisor:
    """Runs one command, and ends it with all that it has started."""

    def __init__(self, grace: float, folder: Path):
        self.grace, self.folder = grace, folder
        self.stopping = threading.Event()
        self.orphaned = threading.Event()

    def run(self, command: list[str]) -> int:
        """Run a command to its end; return its code, as a shell would."""
        keep_descendants()
        try:
            job = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            print(f"The command cannot be run: {error}", flush=True)
            missing = isinstance(error, FileNotFoundError)
            return NOT_FOUND if missing else NOT_EXECUTABLE
        threading.Thread(target=self.obey, daemon=True).start()
        code = job.wait()
        if self.stopping.is_set():
            # Who was not asked to stop, such as a shell, may end before the script.
            ends = time.monotonic() + self.grace
            while living() and time.monotonic() < ends:
                time.sleep(STOP_POLL)
        kill_all(job.pid)
        if self.orphaned.is_set():
            self.clear()
        return code if code >= 0 else 128 - code

    def obey(self) -> None:
        """Follow the orders that come, until the one who gives them is gone."""
        while True:
            order = os.read(0, 1)
            if order == STOP:
                if not self.stopping.is_set():
                    self.stopping.set()
                    threading.Thread(target=self.stop, daemon=True).start()
                continue
            if not order:
                self.orphaned.set()
            kill_all()
            if not order:
                return

    def stop(self) -> None:
        """Ask all to end, and end them when the time is over.

        A driver may start its script only now, which is then asked as well; what a
        process starts that has been asked, it starts to end well.
        """
        known: set[psutil.Process] = set()
        ends = time.monotonic() + self.grace
        while time.monotonic() < ends:
            before = set(known)
            for one in living():
                with contextlib.suppress(psutil.Error):
                    if one in known or is_driver(one):
                        continue
                    known.add(one)
                    if one.parent() not in before:
                        one.terminate()
            time.sleep(STOP_POLL)
        kill_all()

    def clear(self) -> None:
        """Remove the job's folder; its lock may be given back a moment from now."""
        ends = time.monotonic() + END_TIMEOUT
        while self.folder.exists() and time.monotonic() < ends:
            clear_dead(self.folder.parent, PREFIX)
            time.sleep(POLL)


def keep_descendants() -> None:
    """Become the parent of whatever loses its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def living() -> list[psutil.Process]:
    """Return all descendants that have not ended."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def is_driver(process: psutil.Process) -> bool:
    """Say whether a process only waits for a script."""
    return any(driver in word for word in process.cmdline() for driver in DRIVERS)


def kill_all(group: int | None = None) -> None:
    """Kill all descendants, those included that start while this goes on.

    Args:
        group: a process group of theirs, where descendants can be lost sight of.
    """
    ends = time.monotonic() + END_TIMEOUT
    while time.monotonic() < ends:
        if group is not None:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        alive = living()
        if not alive:
            return
        for one in alive:
            with contextlib.suppress(psutil.Error):
                one.kill()
        time.sleep(POLL)


def main(arguments: list[str]) -> int:
    """Run a command; return the code with which this process ends."""
    grace, folder, *command = arguments
    return Supervisor(float(grace), Path(folder)).run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
