"""Spoilt requests for a real server: `python -m tests.fuzz.serve --count 5000 [--seed 0]`.

Each is answered, none with a failure of the server's own, and another client gets its right answers meanwhile. Exit code 1 if
not. The binary protocol, JSON, what people send, and gRPC take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
from tritonclient.grpc import service_pb2 as pb

from tests import graphs
from tests.fuzz import mutations
from tests.helpers.serving import Server, ask, free_port, question, serving

KINDS = ("json", "binary", "people", "grpc")
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_CLEAN = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
_MODEL = "mixed"

Rng = np.random.Generator


@contextlib.contextmanager
def fuzzed(folder: Path) -> Iterator[tuple[Server, int]]:
    """Run a server of models of several dtypes; gives it and its port of gRPC."""
    made = graphs.bundle(graphs.mixed(), folder / _MODEL, name=_MODEL).folder
    other = graphs.bundle(graphs.times(2), folder / "times", name="times").folder
    port = free_port()
    with serving(folder, made, other, "--grpc-port", port, "--timeout", "5s") as server:
        yield server, port


def fuzz(server: Server, port: int, count: int, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[int, str]:
    """Send so many spoilt requests, and return what was not answered cleanly, by number; -1 for the other client."""
    problems: dict[int, str] = {}
    ended = threading.Event()
    with contextlib.closing(_Asker(server, port)) as asker:
        other = threading.Thread(target=_watch, args=(server, ended, problems))
        other.start()
        try:
            for number in range(count):
                problem = asker.problem(kinds[number % len(kinds)], np.random.default_rng((seed, number)))
                if problem:
                    problems[number] = problem
        finally:
            ended.set()
            other.join()
    if server.process.poll() is not None:
        problems[count] = f"the server ended with {server.process.returncode}"
    return problems


def _watch(server: Server, ended: threading.Event, problems: dict[int, str]) -> None:
    """Ask as an honest client does, and check every answer."""
    rng = np.random.default_rng(0)
    with contextlib.closing(server.connection()) as connection:
        while not ended.is_set():
            values = rng.normal(size=(int(rng.integers(1, 9)), 3)).astype(np.float32)
            reply = ask(connection, "POST", "/v2/models/times/infer", question({"x": values}))
            found = reply.json()["outputs"][0]["data"] if reply.status == 200 else []
            if not np.array_equal(np.array(found, np.float32), 2 * values.reshape(-1)):
                problems[-1] = f"another client got {reply.status}: {reply.body[:200]!r}"
                return


class _Asker:
    def __init__(self, server: Server, port: int) -> None:
        self._server = server
        self._connection = server.connection(timeout=10)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._infer = self._channel.unary_unary(_METHOD, lambda data: data, lambda data: data)

    def close(self) -> None:
        self._connection.close()
        self._channel.close()

    def problem(self, kind: str, rng: Rng) -> str:
        """Send one spoilt request; return what is wrong with its answer."""
        if kind == "grpc":
            return self._grpc(rng)
        body, headers = _BODIES[kind](rng)
        path = f"/v1/models/{_MODEL}/predict" if kind == "people" else f"/v2/models/{_MODEL}/infer"
        try:
            reply = ask(self._connection, "POST", path, body, **headers)
        except (OSError, http.client.HTTPException) as error:  # a length that is no number ends the connection
            self._connection.close()
            return "" if isinstance(error, ConnectionError | http.client.HTTPException) else f"{error!r}"
        if reply.status not in {200, 400, 413, 415}:
            return f"{reply.status}: {reply.body[:200]!r}"
        if reply.status != 200 and set(json.loads(reply.body)) != {"error"}:
            return f"an error without its words: {reply.body[:200]!r}"
        return ""

    def _grpc(self, rng: Rng) -> str:
        try:
            self._infer(_message(rng), timeout=10)
        except grpc.RpcError as error:
            if error.code().name not in _CLEAN:
                return f"{error.code().name}: {error.details()}"
        return ""


def _arrays(rng: Rng) -> dict[str, Any]:
    rows = int(rng.integers(1, 4))
    return {
        "half": rng.normal(size=(rows, 2)).astype(np.float16),
        "factor": np.array(rng.normal(), np.float32),
        "flags": rng.integers(0, 2, rows).astype(bool),
        "count": rng.integers(-9, 9, rows),
    }


_NAMES = {"half": "FP16", "factor": "FP32", "flags": "BOOL", "count": "INT64"}


def _described(rng: Rng) -> dict[str, Any]:
    return {
        "id": "1",
        "inputs": [
            {"name": name, "datatype": _NAMES[name], "shape": list(array.shape), "data": array.reshape(-1).tolist()}
            for name, array in _arrays(rng).items()
        ],
        "outputs": [{"name": "product", "parameters": {"binary_data": False}}],
    }


def _json(rng: Rng) -> tuple[bytes, dict[str, str]]:
    plain = orjson.dumps(_described(rng))
    return (mutations.of_bytes if rng.integers(0, 4) == 0 else _spoilt)(plain, rng), {}


def _spoilt(data: bytes, rng: Rng) -> bytes:
    """Return a JSON document with a value, a size or a name that does not belong."""
    tree = json.loads(data)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = places[int(rng.integers(0, len(places)))]
        choices = (*mutations.HOSTILE, [0, *[2**31 - 1] * 9], [2**31 - 1] * 9, [0] * 40, -1, "product", [[1], [2]])
        if rng.integers(0, 5) == 0:
            del holder[key]
        else:
            holder[key] = choices[int(rng.integers(0, len(choices)))]
    if rng.integers(0, 20) == 0:
        return b"[" * 100_000
    if rng.integers(0, 10) == 0 and isinstance(tree.get("inputs"), list):
        for one in tree["inputs"]:
            if isinstance(one, dict):
                one |= {"shape": [0, *[2**31 - 1] * int(rng.integers(1, 30))], "data": []}
    return json.dumps(tree).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _binary(rng: Rng) -> tuple[bytes, dict[str, str]]:
    described, parts = _described(rng), []
    for one, array in zip(described["inputs"], _arrays(rng).values(), strict=True):
        raw = array.tobytes()
        del one["data"]
        one["parameters"] = {"binary_data_size": len(raw)}
        parts.append(raw)
    head, tail = orjson.dumps(described), b"".join(parts)
    match int(rng.integers(0, 4)):
        case 0:
            head = _spoilt(head, rng)
        case 1:
            tail = mutations.of_bytes(tail, rng)
        case 2:
            tail = b""
        case _:
            tail = rng.bytes(len(tail))
    told = str(len(head))
    if rng.integers(0, 4) == 0:
        told = str(
            rng.choice(["-1", "0", "x", "1e3", str(2**63), str(len(head) + 1), str(len(head) // 2), " 5", "\u00b2"])
        )
    return head + tail, {"inference_header_content_length": told}


def _people(rng: Rng) -> tuple[bytes, dict[str, str]]:
    item = {name: array.tolist() for name, array in _arrays(rng).items()}
    kind = str(rng.choice(["application/json", "image/png", "text/plain", "x", "application/json; charset=latin-1"]))
    return _spoilt(orjson.dumps({"items": [item, item]}), rng), {"content_type": kind}


_BODIES: Mapping[str, Callable[[Rng], tuple[bytes, dict[str, str]]]] = {
    "json": _json,
    "binary": _binary,
    "people": _people,
}


def _message(rng: Rng) -> bytes:
    """Return a message of gRPC with a field, or bytes, that do not belong."""
    asked = pb.ModelInferRequest(model_name=_MODEL, id="1")
    as_raw = bool(rng.integers(0, 2))
    for name, array in _arrays(rng).items():
        asked.inputs.add(name=name, datatype=_NAMES[name], shape=array.shape)
        if as_raw:
            asked.raw_input_contents.append(array.tobytes())
        else:
            asked.inputs[-1].contents.fp32_contents.extend(float(one) for one in array.reshape(-1))
    if rng.integers(0, 3) == 0:
        return mutations.of_bytes(asked.SerializeToString(), rng)
    _spoil_field(asked, rng)
    return bytes(asked.SerializeToString())


def _spoil_field(asked: Any, rng: Rng) -> None:
    one = asked.inputs[int(rng.integers(0, len(asked.inputs)))]
    raw = asked.raw_input_contents
    match int(rng.integers(0, 9)):
        case 0:
            one.name = str(rng.choice(["", "half", "flags", "a" * 10_000, "\x00"]))
        case 1:
            one.datatype = str(rng.choice(["", "BYTES", "FP32", "BF16", "bool"]))
        case 2:
            one.shape[:] = [int(size) for size in rng.choice([-1, 0, 1, 2**31 - 1, 2**62], int(rng.integers(0, 40)))]
        case 3:
            one.contents.int64_contents.extend([2**63 - 1, -1])
        case 4:
            one.parameters["shared_memory_region"].string_param = "/etc/passwd"
        case 5:
            raw[:] = [rng.bytes(int(rng.integers(0, 40))) for _ in asked.inputs]
        case 6:
            raw[:] = [b""] * len(asked.inputs)
            one.shape[:] = [0, *[2**31 - 1] * int(rng.integers(1, 30))]
        case 7:
            asked.outputs.add(name=str(rng.choice(["", "product", "nothing"])))
        case _:
            asked.model_version = str(rng.choice(["0", "-1", "1", "x", "1" * 10_000]))


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.serve")
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, fuzzed(Path(folder)) as (server, port):
        problems = fuzz(server, port, asked.count, asked.seed)
    for number, problem in problems.items():
        print(f"{number}: {problem}")  # noqa: T201 - a command
    print(f"{asked.count - len(problems):,} of {asked.count:,} answered cleanly, seed {asked.seed}")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
