"""What a request costs: kit serve beside a bare server, MLServer and LitServe, on Linux with two cores or more.

python scripts/serving.py --rounds 7 --seconds 3 --json serving.json
python scripts/serving.py --only soak --soak 600

Servers run on one core, the client on another. In each round every server answers for some seconds, one after the other, so
that what the machine does meanwhile meets all of them. The client keeps its connections and checks that every answer is that
of its own question. CPU is what the server's processes used, by the operating system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import uvloop
from serving_client import Questions, closed_loop, hammer, open_loop
from serving_rivals import FLOOR, LITSERVE, MLSERVER

import kit
from kit.runtime.remote import binary_question

SERVER_CORE, CLIENT_CORE = 0, 1
PATIENCE = 60
VARIANTS = ("fp32", "int8-pixel")


@dataclass
class Case:
    """How a server is asked."""

    name: str
    clients: int
    binary: bool


CASES = (Case("JSON, 8 clients", 8, binary=False), Case("binary, 64 clients", 64, binary=True))


@dataclass
class Server:
    """A server that runs, and what was measured of it by case."""

    name: str
    process: psutil.Process
    port: int
    path: str = "/v2/models/mnist-mlp/infer"
    speaks_binary: bool = True
    found: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """Return what its processes have used."""
        used = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                used += times.user + times.system
        return used


def measure(server: Server, case: Case, questions: Questions, seconds: float) -> None:
    """Measure one server for some seconds and keep what was found."""
    asked = questions.requests(server.path, binary=case.binary)
    used, started = server.cpu_seconds(), time.perf_counter()
    clients = uvloop.run(closed_loop(server.port, asked, questions, case.clients, seconds))
    spent, used = time.perf_counter() - started, server.cpu_seconds() - used
    latencies = np.concatenate([client.latencies for client in clients])
    wrong = sum(client.wrong for client in clients)
    server.found.setdefault(case.name, []).append(
        {
            "cpu_us": used / len(latencies) * 1e6,
            "per_second": len(latencies) / spent,
            "p50_us": float(np.quantile(latencies, 0.5)) * 1e6,
            "p99_us": float(np.quantile(latencies, 0.99)) * 1e6,
            "wrong": wrong,
        }
    )


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(name: str, line: Sequence[str], port: int, ready: str, folder: Path, **about: Any) -> Iterator[Server]:
    """Run a server on its core until the block ends; raises RuntimeError with its log if it does not come up."""
    log = folder / f"{name.replace(' ', '-')}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            list(line),
            stdout=out,
            stderr=out,
            cwd=folder,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),  # noqa: PLW1509 - there is one thread
        )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            address = f"http://127.0.0.1:{port}{ready}"
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
                if answer.status == 200:
                    break
            with contextlib.suppress(OSError):  # a server without such a route lives as well
                if not ready and socket.create_connection(("127.0.0.1", port), 1).close() is None:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.1)
        yield Server(name, psutil.Process(process.pid), port, **about)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)  # LitServe's workers outlive it
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()


def environment(cache: Path, name: str, *packages: str) -> Path:
    """Return the interpreter of an environment of a rival's own."""
    folder = cache / name
    python = folder / "bin" / "python"
    if not python.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        uv = shutil.which("uv") or "uv"
        subprocess.run([uv, "venv", "-q", "--python", version, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True)
    return python


def servers(
    variant: str, folder: Path, cache: Path, stack: contextlib.ExitStack, wanted: Sequence[str]
) -> list[Server]:
    """Start every server; one that does not start is said and left out."""
    model = folder / "model.onnx"
    bundle = kit.load("mnist-mlp", variant=variant).bundle
    shutil.copyfile(bundle.check(bundle.variant(variant).graph), model)
    (folder / "floor.py").write_text(FLOOR)
    (folder / "digits.py").write_text(MLSERVER)
    (folder / "lit.py").write_text(LITSERVE)
    found = []

    def begin(name: str, make: Callable[[int], Sequence[str | Path]], ready: str, **about: Any) -> None:
        if name not in wanted:
            return
        port = free_port()
        try:
            line = [str(one) for one in make(port)]
            found.append(stack.enter_context(started(name, line, port, ready, folder, **about)))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"{name} did not start: {str(error)[-300:]}", file=sys.stderr)

    def mlserver(port: int) -> Sequence[str | Path]:
        python = environment(cache, "mlserver", "mlserver==1.7.1", "onnxruntime", "setuptools<81")
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {**ports, "parallel_workers": 0, "debug": False}
        (folder / "settings.json").write_text(json.dumps(settings))
        about = {"name": "mnist-mlp", "implementation": "digits.Digits", "parameters": {"uri": str(model)}}
        (folder / "model-settings.json").write_text(json.dumps(about))
        return (python.with_name("mlserver"), "start", ".")

    program = Path(sys.executable).with_name("kit")
    begin("bare server", lambda port: (sys.executable, "floor.py", port, variant), "")
    begin(
        "kit serve",
        lambda port: (program, "serve", "mnist-mlp", "--port", port, "--variant", variant),
        "/v2/health/ready",
    )
    begin("MLServer", mlserver, "/v2/health/ready", speaks_binary=False)
    begin(
        "LitServe",
        lambda port: (environment(cache, "litserve", "litserve", "onnxruntime"), "lit.py", port, model),
        "/health",
        path="/predict",
        speaks_binary=False,
    )
    return found


def compare(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all servers in rounds; print and return what was found."""
    questions = Questions(variant)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = servers(variant, Path(folder), options.cache, stack, options.servers.split(","))
        for number in range(options.rounds + 1):  # the first warms up
            for case in CASES:
                for server in running:
                    if server.speaks_binary or not case.binary:
                        measure(server, case, questions, options.seconds if number else 1.0)
                        if not number:
                            server.found[case.name].clear()
        found = {server.name: server.found for server in running}
    for case in CASES:
        floor = found.get("bare server", {}).get(case.name)
        for name, by_case in found.items():
            rows = by_case.get(case.name)
            if rows:
                told = figures(rows)
                ratio = (
                    f"{median(a['cpu_us'] / b['cpu_us'] for a, b in zip(rows, floor, strict=True)):.2f} of the bare server's"
                    if floor
                    else ""
                )
                print(f"{variant:11} {case.name:19} {name:12} {told}  {ratio}")
    return found


def figures(rows: Sequence[dict[str, float]]) -> str:
    """Return medians, and the spread of the CPU."""
    cpu = [row["cpu_us"] for row in rows]
    return (
        f"CPU {median(cpu):7.1f} us [{min(cpu):.1f}, {max(cpu):.1f}]  {median(row['per_second'] for row in rows):7,.0f}/s  "
        f"p50 {median(row['p50_us'] for row in rows):7,.0f} us  p99 {median(row['p99_us'] for row in rows):7,.0f} us  "
        f"wrong {sum(row['wrong'] for row in rows):.0f}"
    )


def loaded(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the tail at 70 % of the most that a server answers, beside the bare server's at the same rate."""
    questions = Questions(variant)
    case = CASES[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = servers(variant, Path(folder), options.cache, stack, ["bare server", "kit serve"])
        for server in running:
            measure(server, case, questions, 3.0)
        rate = 0.7 * min(server.found[case.name][0]["per_second"] for server in running)
        rows: dict[str, list[list[float]]] = {server.name: [] for server in running}
        for _ in range(options.rounds):
            for server in running:
                asked = questions.requests(server.path, binary=False)
                latencies = uvloop.run(open_loop(server.port, asked, rate, options.seconds))
                rows[server.name].append([float(np.quantile(latencies, share)) * 1e6 for share in (0.5, 0.99)])
    found = {}
    for name, by_round in rows.items():
        p50, p99 = (median(row[place] for row in by_round) for place in (0, 1))
        found[name] = {"rate": rate, "p50_us": p50, "p99_us": p99}
        print(f"{variant} {name}: at {rate:,.0f}/s p50 {p50:,.0f} us, p99 {p99:,.0f} us, {p99 / p50:.1f} times")
    return found


def large(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a larger model at 8 clients, as a share of what its engine gives alone at the batch that was formed."""
    source = options.large
    found: dict[str, Any] = {}
    with kit.load(source) as engine, tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        signature, name = engine.signature, engine.bundle.name
        inputs = kit_inputs(signature)
        program = Path(sys.executable).with_name("kit")
        port = free_port()
        place = Path(source).resolve() if Path(source).exists() else source
        line = [str(program), "serve", f"model={place}", "--port", str(port)]
        stack.enter_context(started("kit serve", line, port, "/v2/health/ready", Path(folder)))
        body, head = binary_question(inputs)
        asked = (
            f"POST /v2/models/model/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nInference-Header-Content-Length: {head}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        uvloop.run(hammer(port, asked, 8, 2.0))
        shares = []
        for _ in range(options.rounds):
            before = rows_and_calls(port)
            answered, spent = uvloop.run(hammer(port, asked, 8, options.seconds))
            rows, calls = (now - then for now, then in zip(rows_and_calls(port), before, strict=True))
            size = max(round(rows / calls), 1)
            os.sched_setaffinity(0, {SERVER_CORE})
            alone = engine_rate(engine, inputs, size, options.seconds / 2)
            os.sched_setaffinity(0, {CLIENT_CORE})
            shares.append((answered / spent, alone, size))
    share = median(one / other for one, other, _ in shares)
    size = median(size for _, _, size in shares)
    print(
        f"{name}: {median(one for one, _, _ in shares):,.1f}/s at 8 clients, {share:.1%} of the engine at batch {size:.0f}"
    )
    found[name] = {"share": share, "batch": size, "rounds": shares}
    return found


def kit_inputs(signature: Any) -> dict[str, np.ndarray]:
    """Return one seeded sample of usual sizes."""
    from kit.samples import seeded

    sizes = signature.usual_sizes()
    return dict(seeded(signature, sizes={**sizes, signature.batch: 1}).inputs)


def rows_and_calls(port: int) -> tuple[float, float]:
    """Return samples and calls so far, from the metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return tuple(  # type: ignore[return-value]
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"kit_call_rows_{name}{{"))
        for name in ("sum", "count")
    )


def engine_rate(engine: Any, inputs: dict[str, np.ndarray], size: int, seconds: float) -> float:
    """Return samples a second of the engine alone."""
    batch = {
        spec.name: np.concatenate([inputs[spec.name]] * size, axis=spec.shape.index(engine.signature.batch))
        for spec in engine.signature.inputs
    }
    engine.run(batch)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        engine.run(batch)
        count += size
    return count / (time.perf_counter() - began)


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Ask for a long time, in both forms, and watch the server's memory."""
    questions = Questions("fp32")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        (server,) = servers("fp32", Path(folder), options.cache, stack, ["kit serve"])
        memory, answered, wrong = [], 0, 0
        turns = 20
        for number in range(turns):
            case = CASES[number % 2]
            measure(server, case, questions, options.soak / turns)
            row = server.found[case.name][-1]
            answered += round(row["per_second"] * options.soak / turns)
            wrong += int(row["wrong"])
            memory.append(server.process.memory_info().rss / 1e6)
    print(
        f"soak of {options.soak:,.0f} s: {answered:,} answers, {wrong} lost or mixed; memory "
        f"{memory[0]:.1f} MB after a twentieth, {memory[len(memory) // 2]:.1f} MB half way, {memory[-1]:.1f} MB at the end"
    )
    return {"seconds": options.soak, "answers": answered, "wrong": wrong, "memory_mb": memory}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each server in each round")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds")
    parser.add_argument("--servers", default="bare server,kit serve,MLServer,LitServe")
    parser.add_argument("--only", choices=("compare", "tail", "large", "soak"), action="append")
    parser.add_argument("--large", help="a bundle or .onnx for the part `large`")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "kit-serving", help="rivals' environments"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.only or ["compare", "tail", "soak"]
    os.sched_setaffinity(0, {CLIENT_CORE})
    found: dict[str, Any] = {}
    if "compare" in parts:
        found["compare"] = {variant: compare(variant, options) for variant in VARIANTS}
    if "tail" in parts:
        found["tail"] = {variant: loaded(variant, options) for variant in VARIANTS}
    if "large" in parts:
        found["large"] = large(options)
    if "soak" in parts:
        found["soak"] = soak(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
