"""A server of static pages on loopback, for the browser of this machine alone."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from kit.errors import Unavailable

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".onnx": "application/octet-stream",
}
"""By ending; a module of JavaScript is refused by browsers under another name."""

ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""With these headers a page may have threads, and a clock of 5 us."""

_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_CHUNK = 2**20


class Pages:
    """Serves files until it is closed.

    Args:
        find: From the path of a request, without its first slash, to a file or its bytes; None for what is not there.
        port: 0 for any free one.

    Raises:
        Unavailable: The port is taken.
    """

    def __init__(self, find: Callable[[str], Path | bytes | None], *, port: int = 0) -> None:
        class Handler(_Handler):
            pass

        Handler.find = staticmethod(find)
        try:
            self._server = _Server(("127.0.0.1", port), Handler)
        except OSError as error:
            raise Unavailable(
                f"port {port} cannot be used: {error.strerror or error}", hint="take another: --port 0 is any free one"
            ) from error
        self.address = f"http://localhost:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when it is closed by another thread, or interrupted."""
        while self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def below(folder: Path) -> Callable[[str], Path | None]:
    """Return how `Pages` finds the files of a folder, and none outside it."""
    root = folder.resolve()

    def find(name: str) -> Path | None:
        path = (root / (name or "index.html")).resolve()
        if path.is_dir():
            path /= "index.html"
        return path if path.is_relative_to(root) and path.is_file() else None

    return find


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a browser that went away is no news; anything else is a defect
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    find: Callable[[str], Path | bytes | None]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: Any) -> None:
        """Say nothing: what a browser asks for is no news."""

    def _answer(self, *, with_body: bool) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in _NAMES:  # a page of elsewhere whose name points here
            self._end(HTTPStatus.FORBIDDEN)
            return
        name = unquote(urlsplit(self.path).path).removeprefix("/")
        found = self.find(name)
        if found is None:
            self._end(HTTPStatus.NOT_FOUND)
            return
        size = len(found) if isinstance(found, bytes) else found.stat().st_size
        ending = Path(name if isinstance(found, bytes) else found.name).suffix
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES.get(ending, "application/octet-stream"))
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-cache")
        for header, value in ISOLATION.items():
            self.send_header(header, value)
        self.end_headers()
        if with_body:
            self._send(found)

    def _send(self, found: Path | bytes) -> None:
        if isinstance(found, bytes):
            self.wfile.write(found)
            return
        with found.open("rb") as file:
            while part := file.read(_CHUNK):
                self.wfile.write(part)

    def _end(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
