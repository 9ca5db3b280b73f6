"""What belongs to one visitor: the bundle in sight, the process that runs it, what was uploaded. Nothing of it is shared.

A bundle of this machine is run in a process without limits; one that was uploaded in a process that may take LIMIT_BYTES of
memory and, for each question, LIMIT_SECONDS, after it was checked in one of the same kind.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.demo.explain import plane_of
from apps.demo.worker import Answer, Worker
from kit import ready
from kit.bundle import Bundle
from kit.bundle.packed import SUFFIX
from kit.errors import StorageUnavailable
from kit.runtime import registry
from kit.system.progress import OnProgress, silent
from kit.tensors import Tensors

LIMIT_BYTES = 2 * 10**9
LIMIT_SECONDS = 30.0
MAX_UPLOAD_MB = 200
FIRST_RUNTIMES = ("onnxruntime", "openvino")
"""Those that are open from the start, where they are installed; PyTorch takes some seconds to import."""

_PATIENT_SECONDS = 600.0


@dataclass(frozen=True)
class Contestant:
    """A variant in a runtime, open or with the reason why it is not."""

    number: int
    variant: str
    runtime: str
    provider: str
    nodes: str
    problem: str
    fix: str

    @property
    def name(self) -> str:
        """What it is called among the others."""
        return f"{self.variant} · {self.runtime}"


@dataclass
class Visitor:
    """One visitor's own things."""

    path: str
    uploads: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="kit-demo-")))
    bench: Any = None
    results: dict[str, Any] = field(default_factory=dict)
    _worker: Worker | None = None
    _stamp: str = ""
    _uploads: int = 0
    _ready: tuple[tuple[str, int, int], Bundle] | None = None
    _opened: dict[tuple[str, tuple[str, ...]], list[Contestant]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take what was uploaded away when the visitor is gone."""
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def is_strange(self) -> bool:
        """Whether the bundle in sight was uploaded."""
        return Path(self.path).is_relative_to(self.folder)

    def bundle(self) -> Bundle:
        """Open the bundle or the ready model in sight; raises what `find` raises."""
        path = Path(self.path)
        if not ready.is_ready(path):
            return ready.find(self.path)
        found = path.stat()
        stamp = (self.path, found.st_mtime_ns, found.st_size)
        if self._ready is None or self._ready[0] != stamp:  # it is run to find out what it takes: once is enough
            self._ready = (stamp, ready.find(self.path))
        return self._ready[1]

    @property
    def stamp(self) -> str:
        """What differs if the bundle in sight was exported again."""
        return self._stamp

    def choose(self, path: str) -> None:
        """Put another bundle in sight; its questions go to a process of its own."""
        if path != self.path:
            self.path = path
            self._start_over()

    def notice(self, bundle: Bundle) -> None:
        """Forget what was found of a bundle that has been exported again."""
        stamp = " ".join(
            [
                str(bundle.signature),
                str(bundle.manifest.task),
                *(ref.sha256 for one in bundle.variants for ref in one.files()),
            ]
        )
        if self._stamp and stamp != self._stamp:
            self._start_over()
        self._stamp = stamp

    def _start_over(self) -> None:
        self.results = {}
        self._stamp = ""
        if self.bench is not None:
            self.bench.stop()
            self.bench = None
        self.forget()

    def forget(self) -> None:
        """End the process; the next question starts another."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = None
        self._opened = {}

    def ready(self) -> None:
        """Start the process, so that it has started when the first question comes."""
        if self._worker is None or not self._worker.is_alive:
            self._opened = {}
            self._worker = self.new_worker()

    def new_worker(self, *, for_long: bool = False) -> Worker:
        """Start a process that may run the bundle in sight; one that works for long ends with its visitor."""
        worker = Worker(memory_bytes=LIMIT_BYTES if self.is_strange else None)
        if for_long:
            weakref.finalize(self, worker.stop)
        return worker

    def ask(
        self,
        task: str,
        values: dict[str, Any] | None = None,
        arrays: Tensors | None = None,
        *,
        on_progress: OnProgress = silent,
    ) -> Answer:
        """Have a task done, such as `jobs:predict` of apps.demo; raises KitError with the reason if that fails."""
        self.ready()
        assert self._worker is not None  # just started
        return self._worker.ask(
            f"apps.demo.{task}", values, arrays, seconds=self.patience_seconds, on_progress=on_progress
        )

    @property
    def patience_seconds(self) -> float:
        """How long one question may take."""
        return LIMIT_SECONDS if self.is_strange else _PATIENT_SECONDS

    def contestants(self, runtimes: tuple[str, ...]) -> list[Contestant]:
        """Open every variant in these runtimes, unless they are open already."""
        self.ready()
        key = (self.path, runtimes)
        if key not in self._opened:
            told = self.ask("jobs:open_bundle", {"path": self.path, "runtimes": list(runtimes)}).told["contestants"]
            self._opened = {key: [Contestant(number, **one) for number, one in enumerate(told)]}
        return self._opened[key]

    def keep_upload(self, name: str, data: bytes) -> tuple[str, str]:
        """Write an upload into a folder of its own; return its path and where it may be unpacked.

        Raises:
            StorageUnavailable: It cannot be written.
        """
        self._uploads += 1
        folder = self.folder / str(self._uploads)
        path = folder / f"upload{SUFFIX}"
        try:
            folder.mkdir(parents=True)
            path.write_bytes(data)
        except OSError as error:
            raise StorageUnavailable(f"the upload cannot be kept: {error.strerror or error}") from error
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", Path(name).stem)[-60:].strip("._-") or "bundle"
        return str(path), str(folder / re.sub(r"-[0-9a-f]{8}$", "", stem))


def here(path: str) -> Visitor:
    """Return this visitor's things; `path` is the bundle that is in sight at first."""
    found: Visitor | None = st.session_state.get("visitor")
    if found is None:
        found = st.session_state["visitor"] = Visitor(path)
    return found


def installed_runtimes() -> tuple[str, ...]:
    """Return the runtimes that are quick and installed here: without the reference evaluator."""
    left_out = {"onnx-reference", "onnxruntime-plain"}
    return tuple(name for name in registry.names() if name not in left_out and registry.is_here(name))


def pixels_of(picture: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """Return a picture to be shown, enlarged by whole factors to about `side`, so that each pixel stays a square.

    Args:
        picture: `[height, width]`, `[channels, height, width]` or `[height, width, channels]`; real numbers are stretched to
            what can be seen.
        side: In pixels.

    Returns:
        uint8 `[height, width]`, or `[height, width, 3]` of three or four channels.
    """
    rows, columns = plane_of(picture.shape)
    shown: NDArray[Any] = np.moveaxis(picture, (rows, columns), (0, 1))
    if shown.ndim == 3:
        shown = shown[..., :3] if shown.shape[2] >= 3 else shown[..., 0]
    if shown.dtype != np.uint8:
        low, high = float(shown.min(initial=0)), float(shown.max(initial=0))
        shown = 255 * (shown.astype(np.float32) - low) / max(high - low, 1e-6)
    factor = max(side // max(shown.shape[:2]), 1)
    return shown.astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
