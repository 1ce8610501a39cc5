"""A registry of few words in this process: serves an OCI layout, or whatever a test has it say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
#: (method, path, headers) -> an answer, or None for that of a registry
Say = Callable[[str, str, Mapping[str, str]], Answer | None]


class Stub(ThreadingHTTPServer):
    """Serves until the test ends.

    Attributes:
        say: asked before the layout.
        seen: (method and path, Authorization) of every request.
    """

    daemon_threads = True

    def __init__(self, layout: Path | None = None, say: Say | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.layout = layout
        self.say = say
        self.seen: list[tuple[str, str]] = []
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def ref(self, name: str = "x:1") -> str:
        """The place of an image here."""
        return f"docker://{self.host}/{name}"

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """What is said to a request."""
        self.seen.append((f"{method} {path}", headers.get("Authorization", "")))
        told = self.say(method, path, headers) if self.say is not None else None
        if told is not None:
            return told
        if self.layout is None:
            return 404, {}, b"{}"
        what = path.rpartition("/")[2]
        if "/manifests/" in path:
            (entry,) = json.loads((self.layout / "index.json").read_text())["manifests"]
            what = what if what.startswith("sha256:") else entry["digest"]
            data = (self.layout / "blobs/sha256" / what[7:]).read_bytes()
            return 200, {"Content-Type": str(entry["mediaType"])}, data
        if "/blobs/" in path:
            return 200, {}, (self.layout / "blobs/sha256" / what[7:]).read_bytes()
        return 200, {}, b"{}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, data = self.server.answer(self.command, self.path, dict(self.headers))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _answer
