"""A server that answers each request as its body says, for tests of who asks."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class EchoServer:
    """Echoes bodies, on a free port of this machine, until the block ends.

    A body's field `status` is the reply's; `seconds` is how long it takes, or each
    piece of a stream; `stream` asks for so many pieces; with `breaks` the reply ends
    within its body; with `alone` requests are worked on one at a time.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/invocations"

    def __enter__(self) -> EchoServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with server._lock:
                    server.connections += 1

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with server._lock:
                    server.paths.append(self.path)
                    server.bodies.append(body)
                    server._now += 1
                    server.most = max(server.most, server._now)
                try:
                    self._answer(body)
                finally:
                    with server._lock:
                        server._now -= 1

            def _answer(self, body: bytes) -> None:
                asked = json.loads(body)
                asked = asked if isinstance(asked, dict) else {}
                seconds = asked.get("seconds", 0)
                if asked.get("stream"):
                    self._stream(asked["stream"], seconds, asked.get("breaks"))
                    return
                if asked.get("alone"):
                    with server._alone:
                        time.sleep(seconds)
                else:
                    time.sleep(seconds)
                self.send_response(asked.get("status", 200))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if asked.get("breaks"):
                    self.close_connection = True
                    body = body[:1]
                self.wfile.write(body)

            def _stream(self, pieces: int, seconds: float, breaks: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/jsonlines")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for number in range(pieces):
                    line = json.dumps({"outputs": f"{number} "}).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.flush()
                    if breaks:
                        self.close_connection = True
                        return
                    time.sleep(seconds)
                self.wfile.write(b"0\r\n\r\n")

        return Handler
