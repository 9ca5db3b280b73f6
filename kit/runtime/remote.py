"""A model behind HTTP as a runtime, so that the bench measures a server in the same rounds as everything else.

The runtime's name is the server's address: `http://127.0.0.1:8080`, or `http://.../v2/models/NAME` if the model is called
otherwise there than here. What is sent is the Open Inference Protocol v2 with the binary extension; KIT_API_KEY is the key.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from kit.bundle import Bundle
from kit.bundle.manifest import Variant
from kit.choices import Provider
from kit.errors import BadInput, KitError, ProviderUnavailable, Unavailable, UsageError
from kit.runtime.base import BaseRunner, Placement, RunnerOptions
from kit.tensors import DATATYPES, Signature, Tensors

KEY = "KIT_API_KEY"
CONNECTIONS = 64
"""Requests in flight when queries come by themselves."""

_SECONDS = 60.0
_HEADER = "inference-header-content-length"
_NUMPY = {named: dtype for dtype, named in DATATYPES.items()}


class RemoteRunner(BaseRunner):
    """A model of a server, which must run the same variant of the same bundle, on the provider of `options`.

    `address` is that of the server, or of its model.

    Raises:
        Unavailable: The server cannot be reached, or runs another model.
        ProviderUnavailable: It runs it on another provider.
    """

    def __init__(self, address: str, bundle: Bundle, variant: Variant, options: RunnerOptions) -> None:
        self._parts = urlsplit(address)
        if not self._parts.hostname:
            raise UsageError(f"{address} is no address of a server", hint="such as http://127.0.0.1:8080")
        named = self._parts.path.rstrip("/").rpartition("/v2/models/")[2]
        self._name = named or bundle.name
        self.runtime = address
        self.signature: Signature = bundle.signature
        self._connection = self._connect()
        about = self._about()
        if about.get("sha256") != variant.graph.sha256:
            raise Unavailable(
                f"the server runs {about.get('variant') or 'another model'}, and not this {variant.id}",
                hint=f"kit serve {bundle.origin} --variant {variant.id}",
            )
        self.provider = Provider.parse(str(about.get("provider")))
        if self.provider is not options.provider:
            raise ProviderUnavailable(
                f"the server runs it on {self.provider}", hint=f"measure it so: --provider {self.provider.value}"
            )
        self.placement = Placement({self.provider.value: 1})

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Ask, and wait for the answer."""
        body, length = binary_question(tensors)
        headers = {**_headers(), "content-type": "application/octet-stream", _HEADER: str(length)}
        try:
            self._connection.request("POST", f"/v2/models/{self._name}/infer", body, headers)
            answer = self._connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unavailable(f"the server does not answer: {error}") from error
        if answer.status != http.HTTPStatus.OK:
            raise _refusal(answer.status, said)
        return _outputs(said, int(answer.headers.get(_HEADER, len(said))))

    def answered_at(self, tensors: Tensors, due_ns: Sequence[int], clock: Callable[[], int]) -> NDArray[np.int64]:
        """Ask at given moments, whether or not earlier questions are answered; return the latencies in nanoseconds.

        `due_ns` are moments of `clock`, in nanoseconds and in order; the inputs are the same each time.
        """
        body, length = binary_question(tensors)
        lines = [
            f"POST /v2/models/{self._name}/infer HTTP/1.1",
            f"Host: {self._parts.netloc}",
            f"Content-Length: {len(body)}",
            f"{_HEADER}: {length}",
            *(f"{name}: {value}" for name, value in _headers().items()),
        ]
        raw = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        return asyncio.run(_ask_at(self._parts, raw, due_ns, clock))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=_SECONDS)

    def _about(self) -> Mapping[str, Any]:
        try:
            self._connection.request("GET", f"/v1/models/{self._name}/schema", headers=_headers())
            answer = self._connection.getresponse()
            said = answer.read()
            found = json.loads(said)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(
                f"no kit serve answers at {self._parts.netloc}: {error}", hint=f"start one: kit serve {self._name}"
            ) from error
        if answer.status != http.HTTPStatus.OK:
            raise _refusal(answer.status, said)
        return found if isinstance(found, dict) else {}


def binary_question(inputs: Tensors) -> tuple[bytes, int]:
    """Return the body of a request with the binary extension, and the length of its JSON."""
    parts = [np.ascontiguousarray(array).tobytes() for array in inputs.values()]
    described = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(part)},
        }
        for (name, array), part in zip(inputs.items(), parts, strict=True)
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    return b"".join((head, *parts)), len(head)


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _refusal(status: int, said: bytes) -> Exception:
    try:
        message = str(json.loads(said)["error"])
    except (ValueError, KeyError, TypeError):
        message = ""
    told = f"the server refuses with {status}" + (f": {message}" if message else "")
    if status == http.HTTPStatus.UNAUTHORIZED:
        return Unavailable(told, hint=f"give the key: {KEY}=... kit bench")
    return Unavailable(told) if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR else BadInput(told)


def _outputs(said: bytes, length: int) -> dict[str, NDArray[Any]]:
    place, found = length, {}
    for one in json.loads(said[:length])["outputs"]:
        dtype = np.dtype(_NUMPY[one["datatype"]])
        size = one["parameters"]["binary_data_size"]
        found[one["name"]] = np.frombuffer(said[place : place + size], dtype).reshape(one["shape"]).copy()
        place += size
    return found


async def _ask_at(parts: Any, raw: bytes, due_ns: Sequence[int], clock: Callable[[], int]) -> NDArray[np.int64]:
    """Send a request at each moment over as many connections as are busy, CONNECTIONS at most; the rest wait for one."""
    latencies = np.empty(len(due_ns), np.int64)
    free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
    opened: list[Any] = []

    async def connection() -> Any:
        if free.empty() and len(opened) < CONNECTIONS:
            secure = {"ssl": True} if parts.scheme == "https" else {}
            made = await asyncio.open_connection(parts.hostname, parts.port or (443 if secure else 80), **secure)
            opened.append(made)
            return made
        return await free.get()

    async def ask(place: int) -> None:
        reader, writer = await connection()
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        said = await reader.readexactly(_length_of(head))
        latencies[place] = clock() - due_ns[place]
        free.put_nowait((reader, writer))
        if not head.startswith(b"HTTP/1.1 200"):
            status = int(head.split(b" ", 2)[1])
            raise _refusal(status, said)

    try:
        async with asyncio.TaskGroup() as group:
            for place, moment in enumerate(due_ns):
                ahead = (moment - clock()) / 1e9
                await asyncio.sleep(max(ahead - 1e-3, 0))
                while clock() < moment:  # noqa: ASYNC110 - a sleep ends late, and nothing happens that an event could tell
                    await asyncio.sleep(0)
                group.create_task(ask(place))
    except* (OSError, asyncio.IncompleteReadError) as errors:
        raise Unavailable(f"the server does not answer: {errors.exceptions[0]}") from errors
    except* KitError as errors:
        raise errors.exceptions[0] from None
    finally:
        for _, writer in opened:
            writer.close()
    return latencies


def _length_of(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise Unavailable("the server's answer has no length")
