"""A Ray cluster as kit needs it: found or refused in seconds, the same kit on every node, and bundles that arrive whole.

cluster = connect("auto")
cluster.check(workers=8, cpus_each=1)
package = ship(bundle)             # bytes, or a reference into Ray's object store
path = arrive(package)             # on any node, checked by its hash
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import ready
from kit.bundle import packing
from kit.bundle.packed import SUFFIX, cache_folder
from kit.bundle.read import Bundle
from kit.errors import BundleInvalid, KitError, Unavailable, UsageError
from kit.system import files, packages
from kit.system.machine import this_machine
from kit.system.muted import STDERR, muted

AUTO = "auto"
SECONDS = 90.0
"""The longest that a cluster may take to say who it is: a node that is new, or busy, loads ONNX Runtime first."""

_PROBE_SECONDS = 5.0
_NEWS_SECONDS = 3.0
_INLINE_BYTES = 2**23
_MOST_BYTES = 2**31
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "ai-edge-litert", "mnn", "numpy")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine: its id and address, versions of kit, Python and what computes, its CPU with vector instructions."""

    name: str
    versions: Mapping[str, str]
    cpu: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """A bundle on its way: the name and the sha256 of the file it becomes.

    Attributes:
        content: Its bytes, or a reference to them in Ray's object store; None if the nodes find it themselves.
        path: Where it lies on the node that sends it, and perhaps on all of them.
    """

    name: str
    sha256: str
    content: Any
    path: str


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process belongs to: the package `ray`, and the nodes that are alive."""

    ray: Any
    nodes: tuple[Node, ...]

    def places(self, *, cpus_each: int, gpus_each: int = 0) -> int:
        """Return how many workers fit on what no job holds now, which nodes tell some moments after they were asked."""
        whole = sum(int(one["Resources"].get("CPU", 0)) // cpus_each for one in self.ray.nodes() if one["Alive"])
        return _waited(lambda: _places_in(_free_by_node(self.ray), cpus_each, gpus_each), whole)

    def check(self, *, workers: int, cpus_each: int, gpus_each: int = 0) -> None:
        """Refuse at once what Ray would wait for without end.

        Raises:
            Unavailable: The workers cannot be placed now; the message says what is missing.
        """
        places = _waited(lambda: _places_in(_free_by_node(self.ray), cpus_each, gpus_each), workers)
        if places < workers:
            free = _free_by_node(self.ray)
            have = ", ".join(
                f"{one['CPU']:g} CPUs" + (f" and {one['GPU']:g} GPUs" if one["GPU"] else "") for one in free
            )
            each = f"{cpus_each} CPU{'s' * (cpus_each != 1)}" + (f" and {gpus_each} GPU" if gpus_each else "")
            raise Unavailable(
                f"the cluster cannot place {workers} worker{'s' * (workers != 1)} of {each}: free on its "
                f"{len(free)} node{'s' * (len(free) != 1)}: {have or 'nothing'}",
                hint=f"--workers {places}"
                if places
                else "wait for other jobs, or add nodes: ray start --address ADDRESS",
            )

    def notes(self) -> list[str]:
        """Return what a person should know: that the nodes do not compute with the same, if so."""
        kinds = sorted({node.cpu for node in self.nodes})
        if len(kinds) == 1:
            return []
        return [
            "the nodes have different CPUs, so that quantized models may answer slightly differently: "
            + "; ".join(kinds)
        ]


def connect(address: str) -> Cluster:
    """Join a cluster, unless this process belongs to one already.

    Args:
        address: Such as `10.0.0.1:6379`, or `auto` for the one that runs on this machine.

    Raises:
        PackageMissing: Ray is not installed.
        Unavailable: There is no such cluster, or a node of it does not answer.
        UsageError: Its nodes have other versions of kit, of Python, or of what computes.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what its core says of every actor is no news for people
    ray = _ray()
    if not ray.is_initialized():
        _probe(address)
        try:
            with muted(STDERR):  # it says there which level it was told to say nothing below
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().splitlines()
            raise Unavailable(
                f"there is no Ray cluster at {address!r}: {said[0] if said else type(error).__name__}",
                hint="start one: ray start --head",
            ) from error
    nodes = tuple(_asked(ray))
    _check_same(nodes)
    return Cluster(ray, nodes)


def ship(bundle: Bundle) -> Package:
    """Put a bundle where all nodes can get it.

    Raises:
        Unavailable: It is too large for that, and no file that all nodes may share.
        UsageError: A ready .onnx with weights in other files.
    """
    origin = bundle.origin
    if isinstance(bundle, ready.ReadyModel) and bundle.variants[0].data:
        raise UsageError(
            f"the weights of {origin.name} lie in other files", hint=f"make a bundle of it: kit export {origin}"
        )
    size = sum(ref.size_bytes for ref in bundle.manifest.files())
    if size > _MOST_BYTES:
        if origin.is_dir():
            raise Unavailable(
                f"{bundle.name} has {size / 1e9:.1f} GB, more than is sent from node to node",
                hint=f"pack it where all nodes see it, and give that file: kit pack {origin} -o /shared/",
            )
        return Package(name=origin.name, sha256=files.sha256(origin), content=None, path=str(origin.resolve()))
    content = packing.packed_bytes(bundle) if origin.is_dir() else origin.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{bundle.name}-{digest[:8]}{SUFFIX}" if origin.is_dir() else origin.name
    # A reference ends with the process that made it, and replicas may begin after that.
    held = content if len(content) <= _INLINE_BYTES else _ray().put(content)
    return Package(name=name, sha256=digest, content=held, path=str(origin.resolve()))


def arrive(package: Package) -> Path:
    """Return a bundle's file on this node: the shared one, one that came before, or one that is fetched now.

    Raises:
        BundleInvalid: It is not what was sent.
        StorageUnavailable: There is no room for it.
    """
    shared = Path(package.path)
    if shared.is_file() and files.sha256(shared) == package.sha256:
        return shared
    path = cache_folder() / "shipped" / package.sha256 / package.name
    if path.is_file() and files.sha256(path) == package.sha256:
        return path
    if package.content is None:
        raise BundleInvalid(
            f"{package.path} is not on {platform.node()}, or another file than where this began",
            hint="put it on storage that all nodes see under this path",
        )
    content = package.content if isinstance(package.content, bytes) else _ray().get(package.content)
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise BundleInvalid(f"{package.name} did not arrive whole on {platform.node()}", hint="try it again")
    files.write(path, content)
    return path


def _ray() -> Any:
    return packages.needed("ray", distribution="ray", purpose="a cluster", extra="ray")


def of_error(error: Exception) -> Exception:
    """Return the error of kit that one of Ray's wraps, else the error itself."""
    seen: set[int] = set()
    found: Any = error
    while found is not None and id(found) not in seen:
        if isinstance(found, KitError):
            return found
        seen.add(id(found))
        found = getattr(found, "cause", None) or found.__cause__
    return error


def _probe(address: str) -> None:
    """Refuse in seconds an address where nobody listens: Ray asks it for minutes."""
    from ray._private import services

    where = address
    try:
        where = services.canonicalize_bootstrap_address_or_die(
            address
        )  # of 127.0.0.1, Ray makes the machine's own address
        host, _, port = where.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS):
            return
    except (OSError, ValueError) as error:
        meant = "" if address in {AUTO, where} else f", which Ray takes for {where}"
        raise Unavailable(
            f"there is no Ray cluster at {address!r}{meant}: {getattr(error, 'strerror', None) or error}",
            hint="start one: ray start --head",
        ) from error


def _asked(ray: Any) -> list[Node]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [one for one in ray.nodes() if one["Alive"]]
    look: Callable[[], tuple[dict[str, str], str]] = _what_this_is
    asked = {}
    for one in alive:
        here = NodeAffinitySchedulingStrategy(node_id=one["NodeID"], soft=False)
        asked[ray.remote(look).options(num_cpus=0, scheduling_strategy=here, max_retries=0).remote()] = one
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS)
    if silent:
        names = ", ".join(_name(asked[one]) for one in silent)
        raise Unavailable(f"the nodes {names} do not answer within {SECONDS:.0f} s", hint="look at them: ray status")
    nodes = []
    for one in answered:
        try:
            versions, cpu = ray.get(one)
        except Exception as error:  # whatever Ray wraps: that kit is not installed there, most of all
            said = str(error).strip().splitlines()
            raise Unavailable(
                f"the node {_name(asked[one])} cannot run kit: {said[-1] if said else type(error).__name__}",
                hint=f"install it there: pip install {packages.DISTRIBUTION}=={packages.version(packages.DISTRIBUTION)}",
            ) from error
        nodes.append(Node(name=_name(asked[one]), versions=versions, cpu=cpu))
    return sorted(nodes, key=lambda node: node.name)


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['NodeID'][:8]} ({one['NodeManagerAddress']})"


def _what_this_is() -> tuple[dict[str, str], str]:
    versions = {"kit": packages.version(packages.DISTRIBUTION) or "", "Python": platform.python_version()}
    versions |= {name: found for name in _PACKAGES if (found := packages.version(name))}
    machine = this_machine()
    return versions, f"{machine.cpu}, {' '.join(machine.cpu_flags)}"


def _check_same(nodes: tuple[Node, ...]) -> None:
    own, _ = _what_this_is()
    everybody = {"this process": own, **{node.name: node.versions for node in nodes}}
    for name in sorted({one for versions in everybody.values() for one in versions}):
        found = {where: versions.get(name, "none") for where, versions in everybody.items()}
        if len(set(found.values())) > 1:
            said = "; ".join(f"{where}: {version}" for where, version in found.items())
            raise UsageError(f"the versions of {name} differ: {said}", hint=f"install the same {name} on all nodes")


def _free_by_node(ray: Any) -> list[dict[str, float]]:
    from ray._private.state import available_resources_per_node

    found: Any = available_resources_per_node()  # type: ignore[no-untyped-call]
    alive = [one["NodeID"] for one in ray.nodes() if one["Alive"]]
    return [{kind: float(found.get(one, {}).get(kind, 0.0)) for kind in ("CPU", "GPU")} for one in alive]


def _places_in(free: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    return sum(min(int(one["CPU"] // max(cpus, 1)), int(one["GPU"] // gpus) if gpus else sys.maxsize) for one in free)


def _waited(look: Callable[[], int], wanted: int) -> int:
    """Return what is found once it is as much as wanted, or after some seconds."""
    end = time.monotonic() + _NEWS_SECONDS
    while (found := look()) < wanted and time.monotonic() < end:
        time.sleep(0.1)
    return found
