"""The process of a training job: started, heard, stopped, and never left behind.

A job has one for each of its instances. The command runs under a supervisor
(`training_supervisor`), which ends whatever it has started when it ends, when it is
told to, and when this process is gone. It gets an environment that is made for it and
no variable besides: what it logs holds no secret of this process.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from utils.offline_aws.logs import KeptLines
from utils.offline_aws.training_supervisor import KILL, KILLED, STOP

ROOT = Path(__file__).resolve().parents[2]  # the supervisor is a module of ours
# Seconds from SIGTERM to SIGKILL: botocore's model of StopTrainingJob.
STOP_GRACE = 120
MOST_ROUNDS = 100  # of looking for processes that go on starting others
KILL_TIMEOUT = 20  # seconds in which a supervisor has to end what it is to kill


class JobProcess(KeptLines):
    """The process of one instance; each line that it writes is kept until shipped."""

    def __init__(self, heard: Callable[[int, str], None]):
        super().__init__()
        self._hear = heard
        self.process: subprocess.Popen | None = None
        self.folder: Path | None = None
        self._lock = threading.Lock()

    def heard(self, moment: int, text: str) -> None:
        """Let the job look at a line."""
        self._hear(moment, text)

    def start(
        self,
        command: list[str],
        environment: dict[str, str],
        working: Path,
        folder: Path,
        stream: str,
    ) -> None:
        """Start it.

        Args:
            command: with its arguments.
            environment: all of it.
            working: the folder that it runs in.
            folder: the job's temporary one, which dies with it.
            stream: where its lines go to.
        """
        self.folder = folder
        changed = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(working), *command]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "utils.offline_aws.training_supervisor"),
                *(str(STOP_GRACE), str(folder), *changed),
            ],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # An interrupt in the notebook is not meant for the job.
            start_new_session=True,
        )
        threading.Thread(
            target=self.keep_lines, args=(self.process.stdout, stream), daemon=True
        ).start()

    def poll(self) -> int | None:
        """Return its code, as a shell would; None while it runs."""
        code = self.process.poll()
        if code is None or code >= 0:
            return code
        self._end_orphans()  # the supervisor itself was killed
        return KILLED

    def stop(self) -> None:
        """Ask it to end: SIGTERM, and SIGKILL when STOP_GRACE is over."""
        self._order(STOP)

    def kill(self) -> None:
        """End it at once, as if its machine were taken away."""
        self._order(KILL)
        try:
            self.process.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.poll()

    def close(self) -> None:
        """Give back what it held, once it has ended."""
        self.wait_for_end_of_log()
        self.stop_listening()
        with contextlib.suppress(OSError, AttributeError):  # it may never have started
            self.process.stdin.close()

    def _order(self, order: bytes) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(order)
            self.process.stdin.flush()

    def _end_orphans(self) -> None:
        """Kill what a killed supervisor has left: a variable tells whose it is."""
        for _ in range(MOST_ROUNDS):
            found = False
            for one in psutil.process_iter():
                with contextlib.suppress(psutil.Error, OSError):
                    base = one.environ().get("SAGEMAKER_BASE_DIR", "")
                    if base.startswith(f"{self.folder}/"):
                        one.kill()
                        found = True
            if not found:
                return
