"""Many items: a plain loop, one process of kit, two, and Ray with two nodes on the same two cores.

    python scripts/scaling.py [--network BUNDLE] [--rounds 5] [--json scaling.json]

Each way answers the same items in every round, one way after the other; what counts is the wall clock of the whole command,
beside that of the same command with one chunk of items, so that starting and answering can be told apart. Memory is the sum
over all processes that the command started, by the operating system, pages that are shared counted once. The cluster is started
before, on 127.0.0.2 and 127.0.0.3, with one CPU each; reading, the driver and Ray's own processes share the two cores with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from PIL import Image, ImageFilter

import kit
from kit.system.machine import this_machine, tool_versions

KIT = str(Path(sys.executable).with_name("kit"))
CHUNK = 64

LOOP = """
import csv, sys
from pathlib import Path
import kit
engine = kit.load(sys.argv[1])
with open("loop.csv", "w") as file:
    rows = csv.writer(file)
    for path in sorted(Path(sys.argv[2]).iterdir()):
        said = engine.predict(path)
        rows.writerow([path, said.names[0], float(said.probabilities.max())])
"""

LOOP_OF_TENSORS = """
import csv, sys
import numpy as np
import kit
engine = kit.load(sys.argv[1])
pixels = np.load(sys.argv[2])["pixels"]
with open("loop.csv", "w") as file:
    rows = csv.writer(file)
    for row in pixels:
        rows.writerow(engine.run({"pixels": row[None]})["logits"][0].tolist())
"""

NODES = """
import sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"node_ip_address": "127.0.0.2", "num_cpus": 1, "include_dashboard": False})
made.add_node(node_ip_address="127.0.0.3", num_cpus=1)
print(made.address, flush=True)
sys.stdin.read()
made.shutdown()
"""


@dataclass
class Case:
    """Items and the model that answers them; `few` is the same with one chunk of items."""

    name: str
    model: str
    source: Path
    few: Path
    items: int
    loop: str = LOOP


@dataclass
class Way:
    """A way to answer, and what was measured of it: seconds of all items and of few, megabytes."""

    name: str
    options: tuple[str, ...] = ()
    is_loop: bool = False
    seconds: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def line(self, case: Case, source: Path) -> list[str]:
        """Return the command."""
        if self.is_loop:
            return [sys.executable, "-P", "-c", case.loop, case.model, str(source)]
        return [KIT, "predict", case.model, str(source), "-o", "out.csv", *self.options]

    def rate(self, case: Case) -> float:
        """Items a second once it has started."""
        return (case.items - CHUNK) / max(median(self.seconds) - median(self.start), 1e-9)


def run(line: Sequence[str], folder: Path, *, also: int | None = None) -> tuple[float, float]:
    """Run a command; return seconds and the most megabytes of it, its children and, if given, another tree of processes."""
    started = time.perf_counter()
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.5):
            most = max(most, sum(map(_megabytes, [process.pid, *([also] if also else [])])))

    watching = threading.Thread(target=watch)
    watching.start()
    _, said = process.communicate()
    spent = time.perf_counter() - started
    done.set()
    watching.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)}: {said}")
    return spent, most


def _megabytes(pid: int) -> float:
    total = 0.0
    with contextlib.suppress(psutil.Error):
        tree = psutil.Process(pid)
        for one in (tree, *tree.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += getattr(one.memory_full_info(), "pss", 0) / 1e6
    return total


@contextlib.contextmanager
def nodes() -> Iterator[tuple[str, int]]:
    """Run a cluster of two nodes; gives its address and the number of its process."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(60)


def drawings(folder: Path, count: int) -> Path:
    """Write drawings of digits, 280x280 and of two levels as from a canvas: the bundle's golden samples, enlarged."""
    folder.mkdir()
    digits = kit.find("mnist-mlp").golden()[0].inputs["pixels"]
    for number in range(count):
        digit = Image.fromarray(digits[number % len(digits)]).resize((280, 280), Image.Resampling.BICUBIC)
        digit.point(lambda level: 255 * (level > 110)).convert("RGBA").save(folder / f"{number:06}.png")
    return folder


def photographs(folder: Path, count: int) -> Path:
    """Write pictures with the size and the detail of photographs: 500x375 JPEG, about 40 kB."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        noise = Image.fromarray(random.integers(0, 256, (47, 63, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noise.filter(ImageFilter.GaussianBlur(1)).save(folder / f"{number:06}.jpg", quality=90)
    return folder


def few(source: Path, folder: Path) -> Path:
    """Return a folder with the first chunk of pictures."""
    folder.mkdir()
    for path in sorted(source.iterdir())[:CHUNK]:
        shutil.copy(path, folder)
    return folder


def cases(folder: Path, network: str | None) -> Iterator[Case]:
    """Make what is answered."""
    digits = drawings(folder / "drawings", 4000)
    yield Case("digits as pictures", "mnist-mlp", digits, few(digits, folder / "drawings-few"), 4000)
    mlp = next(one for one in kit.find("mnist-mlp").variants if one.precision == "fp32")
    graph = folder / "mlp.onnx"
    shutil.copy(kit.find("mnist-mlp").path(mlp.graph), graph)
    pixels = np.random.default_rng(0).integers(0, 256, (200_000, 28, 28), np.uint8)
    np.savez(folder / "pixels.npz", pixels=pixels)
    np.savez(folder / "pixels-few.npz", pixels=pixels[:CHUNK])
    yield Case(
        "digits as tensors", str(graph), folder / "pixels.npz", folder / "pixels-few.npz", len(pixels), LOOP_OF_TENSORS
    )
    if network:
        photos = photographs(folder / "photographs", 800)
        yield Case(f"photographs, {kit.find(network).name}", network, photos, few(photos, folder / "photos-few"), 800)


def main() -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="a bundle that reads pictures, for long items")
    parser.add_argument("--only", default="", help="cases whose names begin like this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as work, nodes() as (address, pid):
        folder = Path(work)
        for case in cases(folder, asked.network and str(Path(asked.network).resolve())):
            if not case.name.startswith(asked.only):
                continue
            ways = [
                Way("a plain loop", is_loop=True),
                Way("kit, one process", ("--workers", "1")),
                Way("kit, two processes", ("--workers", "2")),
                Way("kit on Ray, two nodes", ("--ray", address, "--workers", "2")),
            ]
            for _ in range(asked.rounds):
                for way in ways:
                    way.start.append(run(way.line(case, case.few), folder)[0])
                    spent, memory = run(
                        way.line(case, case.source), folder, also=pid if "--ray" in way.options else None
                    )
                    way.seconds.append(spent)
                    way.memory.append(memory)
            for way in ways:
                print(
                    f"{case.name:32} {way.name:24} {way.rate(case):10,.0f} a second   start {median(way.start):5.1f} s   "
                    f"all {median(way.seconds):6.1f} s [{min(way.seconds):.1f}, {max(way.seconds):.1f}]   "
                    f"{median(way.memory):7,.0f} MB",
                    flush=True,
                )
            found.append(
                {
                    "case": case.name,
                    "items": case.items,
                    "ways": [
                        {
                            "name": way.name,
                            "seconds": way.seconds,
                            "start": way.start,
                            "memory_mb": way.memory,
                            "per_second": way.rate(case),
                        }
                        for way in ways
                    ],
                }
            )
    if asked.json:
        about = {"machine": this_machine().describe(), "versions": tool_versions(), "found": found}
        asked.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
