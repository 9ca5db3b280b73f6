"""Clients for scripts/serving.py: they keep their connections, and look whose answer each answer is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import kit

SAMPLES = 64


class Questions:
    """Requests for single digits, and their right answers."""

    def __init__(self, variant: str) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES, 28, 28), dtype=np.uint8)
        with kit.load("mnist-mlp", variant=variant) as engine:
            self.expected = engine.run({"pixels": pixels})["logits"]
        self.json = [self._body(one, binary=False) for one in pixels]
        self.binary = [self._body(one, binary=True) for one in pixels]

    @staticmethod
    def _body(one: np.ndarray, *, binary: bool) -> tuple[bytes, int | None]:
        asked: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [1, 28, 28]}
        if not binary:
            return json.dumps({"inputs": [{**asked, "data": one.reshape(-1).tolist()}]}).encode(), None
        asked["parameters"] = {"binary_data_size": one.nbytes}
        head = json.dumps({"inputs": [asked], "parameters": {"binary_data_output": True}}).encode()
        return head + one.tobytes(), len(head)

    def requests(self, path: str, *, binary: bool) -> list[bytes]:
        """Return whole HTTP requests."""
        made = []
        for body, length in self.binary if binary else self.json:
            kind = "application/octet-stream" if binary else "application/json"
            beside = f"Inference-Header-Content-Length: {length}\r\n" if length else ""
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n{beside}"
            made.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return made

    def is_right(self, number: int, head: bytes, body: bytes) -> bool:
        """Whether an answer belongs to a question."""
        lower = head.lower()
        place = lower.find(b"inference-header-content-length:")
        if place >= 0:
            length = int(lower[place + 32 :].split(b"\r\n", 1)[0])
            logits = np.frombuffer(body, np.float32, offset=length)
        else:
            logits = np.array(json.loads(body)["outputs"][0]["data"]).reshape(-1)
        return bool(np.abs(logits - self.expected[number]).max() < 1e-2)


class Client(asyncio.Protocol):
    """A connection that asks one question after the other; or, with `pace`, when it is told to."""

    def __init__(self, asked: Sequence[bytes], questions: Questions, first: int, until: float) -> None:
        self.asked, self.questions, self.number, self.until = asked, questions, first, until
        self.latencies: list[float] = []
        self.wrong = 0
        self.buffer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Ask the first question."""
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.number = (self.number + 7) % SAMPLES
        self.began = time.perf_counter()
        self.transport.write(self.asked[self.number])

    def data_received(self, data: bytes) -> None:
        """Look at an answer when it is whole, and ask the next question."""
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end]
        lower = head.lower() + b"\r\n"
        place = lower.find(b"\ncontent-length:")
        length = int(lower[place + 16 :].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        now = time.perf_counter()
        self.latencies.append(now - self.began)
        body, self.buffer = self.buffer[end + 4 : end + 4 + length], b""
        if b" 200 " not in head[:16] or not self.questions.is_right(self.number, head, body):
            self.wrong += 1
        if now >= self.until:
            self.transport.close()
            self.done.set_result(None)
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Count a connection that the server closed."""
        if not self.done.done():
            self.wrong += 1
            self.done.set_result(None)


async def closed_loop(
    port: int, asked: Sequence[bytes], questions: Questions, clients: int, seconds: float
) -> list[Client]:
    """Let clients ask, each as soon as it has its answer."""
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    made = []
    for number in range(clients):
        _, client = await loop.create_connection(
            lambda number=number: Client(asked, questions, number, until), "127.0.0.1", port
        )
        made.append(client)
    await asyncio.gather(*(client.done for client in made))
    return made


class Waiting(asyncio.Protocol):
    """A connection that asks when it is told to, and notes how long after its moment the answer was there."""

    def __init__(self, free: list[Waiting], latencies: list[float]) -> None:
        self.free, self.latencies, self.buffer = free, latencies, b""

    def connection_made(self, transport: Any) -> None:
        """Be ready to ask."""
        self.transport = transport
        self.free.append(self)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that was due at a moment."""
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note a whole answer."""
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lower = self.buffer[:end].lower() + b"\r\n"
        length = int(lower[lower.find(b"\ncontent-length:") + 16 :].split(b"\r\n", 1)[0])
        if len(self.buffer) >= end + 4 + length:
            self.latencies.append(time.perf_counter() - self.due)
            self.buffer = b""
            self.free.append(self)


async def open_loop(port: int, asked: Sequence[bytes], rate: float, seconds: float) -> list[float]:
    """Send requests at random moments, whether or not the ones before are answered; latencies from when they were due."""
    rng = np.random.default_rng(1)
    free: list[Waiting] = []
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Waiting(free, latencies), "127.0.0.1", port) for _ in range(SAMPLES)]
    due = time.perf_counter() + 0.05 + np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    for number, moment in enumerate(due.tolist()):
        while time.perf_counter() < moment or not free:  # noqa: ASYNC110 - a sleep of microseconds ends late
            await asyncio.sleep(0)
        free.pop().ask(asked[number % SAMPLES], moment)
    while len(latencies) < len(due):  # noqa: ASYNC110 - the last answers
        await asyncio.sleep(0.001)
    for transport, _ in made:
        transport.close()
    return latencies


async def hammer(port: int, asked: bytes, clients: int, seconds: float) -> tuple[int, float]:
    """Return how many answers came, and in which time."""
    started = time.perf_counter()
    until = started + seconds

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < until:
            writer.write(asked)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b" 200 " in head[:16], head
            await reader.readexactly(int(head.split(b"\ncontent-length:")[1].split(b"\r\n")[0]))
            count += 1
        writer.close()
        return count

    counts = await asyncio.gather(*(one() for _ in range(clients)))
    return sum(counts), time.perf_counter() - started
