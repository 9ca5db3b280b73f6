"""A real `kit serve` in a process of its own, on a free port, and the few ways in which tests ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "a-key-of-the-tests-0123456789"
_PROGRAM = """
import json, sys
from pathlib import Path
from apps.serve.server import Settings, serve
said = json.loads(sys.argv[1])
sys.exit(serve(Settings(port=0, **{**said, "sources": tuple(said["sources"])}), lambda at, names: print("on", at, flush=True)))
"""
"""The same server as `kit serve`, with settings that the command line does not offer, such as a watch without pauses."""


def until(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return what a condition gives once it is true; fail if it never is."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    log_file: Path
    context: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def connection(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        if self.context is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request over a connection of its own; a body that is no bytes is sent as JSON."""
        with contextlib.closing(self.connection()) as connection:
            return ask(connection, method, path, body, **headers)

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return self.ask("POST", path, b"" if body is None else body, **headers)

    def infer(self, name: str, values: Mapping[str, Any], **headers: str) -> Reply:
        return self.post(f"/v2/models/{name}/infer", question(values), **headers)

    def socket(self, sent: bytes = b"") -> socket.socket:
        """Return a bare connection, to be closed by whoever asked."""
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        opened.sendall(sent)
        return opened

    def is_ready(self) -> bool:
        return self.get("/v2/health/ready").status == 200

    def figure(self, name: str, **labels: str) -> float:
        """Return the sum of a figure of /metrics over the labels that are not named."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                own = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= own.items():
                    total += float(found[3])
        return total

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """Send a request over an open connection; `x_api_key` names the header X-API-Key."""
    if body is not None and not isinstance(body, bytes | bytearray):
        body = json.dumps(body).encode()
        headers = {"content_type": "application/json", **headers}
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


_NAMES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}


def question(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol's body for arrays by name."""
    return {
        "inputs": [
            {
                "name": name,
                "datatype": _NAMES[array.dtype.name],
                "shape": list(array.shape),
                "data": array.reshape(-1).tolist(),
            }
            for name, array in values.items()
        ]
    }


@contextlib.contextmanager
def serving(
    folder: Path,
    *arguments: object,
    settings: Mapping[str, Any] | None = None,
    wait: bool = True,
    context: ssl.SSLContext | None = None,
    **environment: str,
) -> Iterator[Server]:
    """Run `kit serve` with arguments, or the server with settings; wait until it is ready, unless told not to."""
    if settings is None:
        line = [str(Path(sys.executable).with_name("kit")), "serve", *map(str, arguments), "--port", "0"]
    else:
        line = [sys.executable, "-P", "-c", _PROGRAM, json.dumps({**settings, "sources": list(map(str, arguments))})]
    log_file = folder / "serve.log"
    with (
        log_file.open("w") as log,
        subprocess.Popen(
            line,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **{f"XDG_{one}_HOME": str(folder / one) for one in ("CACHE", "DATA")}, **environment},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            found = re.search(r"on (https?://\S+)", process.stdout.readline())
            assert found is not None, log_file.read_text()
            server = Server(process, found[1], log_file, context)
            if wait:
                until(server.is_ready)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=20)
                finally:
                    process.kill()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
