"""A real `kit serve` in a process of its own, on a port that was free."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60.0


@dataclass
class Served:
    """A server that runs.

    Attributes:
        process: Of `kit serve`.
        address: Such as `http://127.0.0.1:40123`.
        said: Its first lines on stdout.
        log: File of its stderr.
        grpc: `HOST:PORT`; empty without.
    """

    process: subprocess.Popen[str]
    address: str
    said: str
    log: Path
    grpc: str = ""

    @property
    def host(self) -> str:
        """Host and port of HTTP."""
        return self.address.partition("//")[2]

    def status(self, path: str) -> int:
        """Return the status of a GET."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def get(self, path: str) -> str:
        """Return the body of a GET."""
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def figure(self, start: str) -> float:
        """Return the sum of the lines of /metrics that start so."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(start)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str, ready: bool = True, grpc: bool = False, **environment: str
) -> Iterator[Served]:
    """Run `kit serve` in a folder until the block ends; with `ready`, from the moment its models are."""
    port = str(_free_port()) if grpc else ""
    line = [str(Path(sys.executable).with_name("kit")), "serve", "--port", "0", *arguments]
    log = folder / "serve.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*line, *(["--grpc-port", port] if grpc else [])],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            found = re.search(r"https?://\S+:\d+", first)
            assert found, first + log.read_text()
            said = first + "".join(process.stdout.readline() for _ in range(4 if grpc else 3))
            served = Served(process, found[0], said, log, f"127.0.0.1:{port}" if grpc else "")
            if ready:
                until(lambda: served.status("/v2/health/ready") == 200, served)
            yield served
        finally:
            process.kill()


def until(holds: object, served: Served | None = None, *, patience: float = PATIENCE) -> None:
    """Wait until a condition holds; fails after a while, with the server's log."""
    assert callable(holds)
    end = time.monotonic() + patience
    while not holds():
        told = served.log.read_text() if served else ""
        assert time.monotonic() < end, f"it never came true\n{told}"
        assert served is None or served.process.poll() is None, f"the server ended\n{told}"
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
