"""A stand-in of the web app's API by its contract, for tests of the page.

It serves the page under the same policy as the gateway, answers as the app does, and
gives any odd reply that a test puts into `PageServer.replies`.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from utils.course import ROOT

PAGE = ROOT / "utils" / "web" / "page"
KEY = "key-of-the-page-tests-7f3a9c"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; frame-ancestors 'self'; base-uri 'self'"
VERSIONS = {
    "versions": [
        {"name": "base", "description": "SmolLM2 as it was published."},
        {"name": "tuned", "description": "SmolLM2 with the course's LoRA adapter."},
    ],
    "live": ["base", "tuned"],
}

Chunk = tuple[float, bytes]
"""Seconds to wait, then what is sent in one piece."""


@dataclass
class Reply:
    """What is sent for one request; `breaks` ends the connection within the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterable[Chunk] = ()
    breaks: bool = False


@dataclass
class Request:
    """What the page has sent; `left` is set when it went before the reply's end."""

    method: str
    path: str
    headers: Message
    body: Any
    left: threading.Event = field(default_factory=threading.Event)


def json_reply(status: int, body: Any, **headers: str) -> Reply:
    """Return a reply in JSON; `retry_after` becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named["content-type"] = "application/json"
    return Reply(status, named, [(0, json.dumps(body).encode())])


def problem(status: int, code: str, *fields: dict[str, str], **headers: str) -> Reply:
    """Return an error of the contract's shape."""
    return json_reply(status, error_body(code, *fields), **headers)


def error_body(code: str, *fields: dict[str, str]) -> dict[str, Any]:
    """Return the body of an error."""
    message = f"The service's own words for {code}."
    found = {"code": code, "message": message, "request_id": uuid.uuid4().hex}
    return {"error": found | {"fields": list(fields)}}


def event(name: str, data: Any) -> bytes:
    """Return one server-sent event."""
    line = json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {line}\n\n".encode()


def start(version: str = "tuned", *sources: str) -> bytes:
    """Return the first event of a stream."""
    named = {"request_id": uuid.uuid4().hex, "version": version, "variant": version}
    return event("start", named | {"sources": [{"id": name} for name in sources]})


def end(finish_reason: str = "stop") -> bytes:
    """Return the last event of a stream."""
    tokens = {"prompt": 21, "completion": 34}
    named = {"finish_reason": finish_reason, "tokens": tokens, "latency_ms": 1234.5}
    return event("end", named)


def stream(*chunks: bytes | Chunk, breaks: bool = False) -> Reply:
    """Return a reply that sends these chunks, each as it is."""
    timed = [chunk if isinstance(chunk, tuple) else (0, chunk) for chunk in chunks]
    return Reply(200, {"content-type": "text/event-stream"}, timed, breaks)


def whole(text: str, version: str = "tuned", *sources: str) -> Reply:
    """Return an answer, streamed in pieces of seven characters."""
    cuts = range(0, len(text), 7)
    pieces = [event("piece", {"text": text[cut : cut + 7]}) for cut in cuts]
    return stream(start(version, *sources), *pieces, end())


class PageServer:
    """Serve the page and the API on a free port of this machine until the block ends.

    Without a scripted reply an answer repeats its question. `replies` are taken first,
    one a request to `/api/generate`; `replies_to` holds those for other paths.
    """

    def __init__(self, key: str | None = KEY) -> None:
        self.key = key or ""
        self.forget()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> PageServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def forget(self) -> None:
        """Start anew: nothing is scripted, and nothing was asked."""
        self.replies: list[Reply] = []
        self.replies_to: dict[str, list[Reply]] = {}
        self.requests: list[Request] = []
        self.feedback: dict[str, dict[str, Any]] = {}

    def asked(self, path: str = "/api/generate") -> list[Request]:
        """Return the requests to a path, in the order in which they came."""
        return [request for request in self.requests if request.path == path]

    def reply(self, request: Request) -> Reply:
        """Return what the service answers to a request."""
        if self.key and request.headers["x-api-key"] != self.key:
            return problem(403, "forbidden")
        scripted = self.replies_to.get(request.path, [])
        if request.path == "/api/generate":
            scripted = self.replies
        if scripted:
            return scripted.pop(0)
        match request.path:
            case "/api/versions":
                return json_reply(200, VERSIONS)
            case "/api/generate":
                return self.answer(request.body)
            case "/api/feedback":
                return self._store(request.body)
        return problem(404, "not_found")

    def answer(self, body: dict[str, Any]) -> Reply:
        """Return the reply to a question where none is scripted."""
        version = body["version"] or "tuned"
        return whole(f"{version} repeats: {body['question']}", version, "sm-0012")

    def _store(self, body: dict[str, Any]) -> Reply:
        self.feedback[body["request_id"]] = body
        return json_reply(200, {"request_id": body["request_id"], "stored": True})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._take(None)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                self._take(json.loads(self.rfile.read(length)))

            def _take(self, body: Any) -> None:
                request = Request(self.command, self.path, self.headers, body)
                server.requests.append(request)
                if self.path.startswith("/api/"):
                    reply = server.reply(request)
                else:
                    reply = page_file(self.path)
                try:
                    self._send(reply)
                except OSError:
                    request.left.set()
                    self.close_connection = True

            def _send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                self.send_header("cache-control", "no-store")
                self.send_header("transfer-encoding", "chunked")
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for chunk in sent_in_time(reply.chunks):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                if reply.breaks:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

        return Handler


def sent_in_time(chunks: Iterable[Chunk]) -> Iterator[bytes]:
    """Yield what is sent, each after its seconds."""
    for seconds, chunk in chunks:
        time.sleep(seconds)
        yield chunk


def page_file(path: str) -> Reply:
    """Return a file of the page, with the headers of the gateway."""
    file = PAGE / (path.removeprefix("/") or "index.html")
    if file.parent != PAGE or not file.is_file():
        return problem(404, "not_found")
    headers = {
        "content-type": TYPES[file.suffix],
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Reply(200, headers, [(0, Path(file).read_bytes())])


def chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return None


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, which asks nobody else for anything."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield started
        started.close()
