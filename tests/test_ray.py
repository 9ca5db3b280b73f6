"""A cluster of two nodes on loopback: the same answers as one process, whatever is killed, and a service that is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from kit.bundle import Bundle, open_folder
from kit.cluster import Cluster, Node, Package, _check_same, _what_this_is, arrive
from kit.errors import BundleInvalid, UsageError
from tests.conftest import Kit
from tests.helpers.stepping import Stepping

pytest.importorskip("ray", reason="needs kit's extra ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="two nodes on one machine need Linux's loopback addresses"),
    pytest.mark.xdist_group("ray"),
]

MANY = 640
NODES = """
import sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"node_ip_address": "127.0.0.2", "num_cpus": 1, "include_dashboard": False})
other = made.add_node(node_ip_address="127.0.0.3", num_cpus=1)
print(made.address, flush=True)
for line in sys.stdin:
    if line.strip() == "kill":
        made.remove_node(other, allow_graceful=False)
    if line.strip() == "add":
        other = made.add_node(node_ip_address="127.0.0.3", num_cpus=1)
    print("done", flush=True)
made.shutdown()
"""
"""Keeps two nodes, kills the second when it is told to."""


class Nodes:
    """A cluster in a process of its own: what Ray leaves behind ends with it."""

    def __init__(self, program: Stepping) -> None:
        self._program = program
        self.address = program.line()

    def tell(self, what: str) -> None:
        """Kill or add the second node."""
        self._program.go(what)
        assert self._program.line() == "done"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with _cluster(tmp_path_factory) as found:
        yield found


@pytest.fixture
def fresh_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Nodes none of which was killed before."""
    with _cluster(tmp_path_factory) as found:
        yield found


@contextlib.contextmanager
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    with Stepping(NODES, env=environment, log=tmp_path_factory.mktemp("ray") / "log") as program:
        yield Nodes(program)
        children = psutil.Process(program.process.pid).children(recursive=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.communicate(timeout=30)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Pictures that take a while to decode, so that what is killed is killed at work; two differ, and one is none."""
    folder = tmp_path / "scans"
    folder.mkdir()
    random = np.random.default_rng(1)
    for number in range(2):
        small = Image.fromarray(random.integers(0, 256, (12, 15), np.uint8))
        small.resize((1500, 1200), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.jpg")
    for number in range(MANY):
        (folder / f"{number:04}.jpg").hardlink_to(tmp_path / f"{number % 2}.jpg")
    (folder / "0017.jpg").unlink()
    (folder / "0017.jpg").write_text("no picture")
    return folder


@pytest.fixture
def wanted(kit: Kit, tiny: Bundle, scans: Path, tmp_path: Path) -> bytes:
    found = kit("predict", str(tiny.folder), scans.name, "missing.png", "-o", "one.jsonl", "--workers", "1")
    assert found.returncode == 4, found.stderr
    return (tmp_path / "one.jsonl").read_bytes()


def test_a_cluster_gives_what_one_process_gives(
    kit: Kit, nodes: Nodes, tiny: Bundle, wanted: bytes, tmp_path: Path
) -> None:
    asked = ("predict", str(tiny.folder), "scans", "missing.png", "-o", "out.jsonl", "--ray", nodes.address)
    found = kit(*asked)
    assert found.returncode == 4, found.stderr
    assert "2 items have no answer" in found.stderr
    assert "2 actors" in found.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


PROGRAM = """
import sys
from pathlib import Path
from kit import bulk
from kit.bulk import output, run
output._SYNC_SECONDS = run._UPDATES_SECONDS = 0.0
def told(done, whole):
    print(done, flush=True)
    sys.stdin.readline()
bulk.predict(sys.argv[1], ["scans", "missing.png"], Path("out.jsonl"), ray=sys.argv[2], workers=2, on_rows=told)
"""


@pytest.mark.parametrize("victim", ["actor", "node"])
def test_what_is_killed_midway_loses_and_doubles_nothing(
    nodes: Nodes, tiny: Bundle, wanted: bytes, tmp_path: Path, victim: str
) -> None:
    with Stepping(PROGRAM, str(tiny.folder), nodes.address, cwd=tmp_path) as running:
        assert int(running.line()) == 64
        if victim == "node":
            nodes.tell("kill")
        else:
            actors = [
                one
                for one in psutil.process_iter(["cmdline"])
                if "ray::MapWorker" in " ".join(one.info["cmdline"] or [])
            ]
            assert actors
            actors[0].send_signal(signal.SIGKILL)
        try:
            assert running.finish(timeout=120) == 0
        finally:
            if victim == "node":
                nodes.tell("add")
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_what_cannot_be_placed_is_said_in_seconds(kit: Kit, nodes: Nodes, tiny: Bundle, scans: Path) -> None:
    found = kit("predict", str(tiny.folder), scans.name, "-o", "out.csv", "--ray", nodes.address, "--workers", "9")
    assert found.returncode == 3
    assert "cannot place 9 workers of 1 CPU" in found.stderr
    assert "--workers 2" in found.stderr


def test_no_cluster_is_said(kit: Kit, tiny: Bundle, scans: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        found = kit("predict", str(tiny.folder), scans.name, "-o", "out.csv", "--ray", address)
    assert found.returncode == 3, found.stderr
    assert "there is no Ray cluster" in found.stderr


def test_an_actor_that_cannot_open_the_bundle_says_why(nodes: Nodes, tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    program = f"""
import dataclasses
from pathlib import Path
from kit import bulk, cluster
from kit.errors import BundleInvalid
ship = cluster.ship
cluster.ship = lambda *given: dataclasses.replace(ship(*given), sha256="0" * 64)
try:
    bulk.predict({str(tiny.folder)!r}, ["scans"], Path("out.csv"), ray={nodes.address!r})
except BundleInvalid as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "did not arrive whole" in found.stdout, found.stderr
    assert scans.is_dir()


def test_versions_that_differ_are_named() -> None:
    own = _what_this_is()[0]
    _check_same((Node(name="a", versions=own, cpu=""),))
    with pytest.raises(UsageError, match=r"versions of onnxruntime differ.*b \(10\.0\.0\.2\): 0\.1"):
        _check_same((Node(name="b (10.0.0.2)", versions={**own, "onnxruntime": "0.1"}, cpu=""),))


def test_cpus_that_differ_are_noticed() -> None:
    same = [Node(name=name, versions={}, cpu="x86, avx2") for name in "ab"]
    assert Cluster(None, tuple(same)).notes() == []
    other = Node(name="c", versions={}, cpu="x86, avx2 avx512_vnni")
    (note,) = Cluster(None, (*same, other)).notes()
    assert note.endswith(": x86, avx2; x86, avx2 avx512_vnni")


def test_a_bundle_that_is_not_shared_and_was_not_sent_is_refused(tmp_path: Path) -> None:
    package = Package(name="a.kit", sha256="0" * 64, content=None, path=str(tmp_path / "a.kit"))
    with pytest.raises(BundleInvalid, match="is not on"):
        arrive(package)


class _Clients:
    """Ask without a pause, and keep what went wrong."""

    def __init__(self, address: str, question: bytes) -> None:
        self.problems: list[str] = []
        self.hashes: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address, question)) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self, address: str, question: bytes) -> None:
        while not self._stop.is_set():
            try:
                request = urllib.request.Request(address, question, {"content-type": "application/json"})
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.hashes.append(answer.read().decode())
            except (OSError, urllib.error.HTTPError) as error:
                self.problems.append(repr(error))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_service_is_replaced_without_a_lost_request(fresh_nodes: Nodes, tiny: Bundle, tmp_path: Path) -> None:
    second = open_folder(Path(shutil.copytree(tiny.folder, tmp_path / "second")))
    served = tmp_path / "served"
    shutil.copytree(tiny.folder, served)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("kit"))
    running = subprocess.Popen(
        [program, "serve", f"digits={served}", "--ray", fresh_nodes.address, "--port", str(port), "--watch"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    try:
        said = running.stdout.readline()
        assert f"digits on http://127.0.0.1:{port}" in said, running.communicate(timeout=60)[1]
        base = f"http://127.0.0.1:{port}"
        assert urllib.request.urlopen(f"{base}/v2/health/ready", timeout=60).status == 200
        with urllib.request.urlopen(f"{base}/v2/models/digits", timeout=60) as answer:
            described: dict[str, Any] = json.load(answer)
        assert described["inputs"][0]["name"] == "pixels"
        pixels = tiny.golden()[0].inputs["pixels"][:1]
        question = json.dumps(
            {
                "inputs": [
                    {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
                ]
            }
        ).encode()
        clients = _Clients(f"{base}/v2/models/digits/infer", question)
        try:
            # A manifest written anew is another file: the model is proved and takes the old one's place.
            manifest = served / "manifest.json"
            fresh = tmp_path / "fresh.json"
            fresh.write_bytes((second.folder / "manifest.json").read_bytes())
            fresh.replace(manifest)
            said = running.stderr.readline()
            while "replaced" not in said:
                assert said, "the server ended"
                said = running.stderr.readline()
        finally:
            clients.stop()
        assert not clients.problems
        assert len(clients.hashes) > 4
        assert len({json.dumps(json.loads(one)["outputs"]) for one in clients.hashes}) == 1
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 0
