"""Models in the formats of other runtimes: made by their own converters, kept in the user's cache.

A converter gets a copy of the graph in a folder of its own, and works in a process of its own with limits of time and memory:
some write beside their input or over it, and some crash. What it made whole is kept under the hashes of the model's files and
the version of the converter; of what it did not finish nothing stays. The folder `converted` of the cache may be removed
whenever nothing is being opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kit.bundle import graph_file
from kit.bundle.manifest import FileRef
from kit.errors import BundleInvalid, StorageUnavailable, Unavailable
from kit.runtime import child
from kit.system import files, packages

SECONDS = 120.0
"""For a conversion, besides what the size of the model takes."""

_BYTES_PER_SECOND = 5e6
_COPIES = 3  # the model's own, what becomes of it, and what the converter writes besides
_OTHER = "use --runtime onnxruntime"
_STAMP = re.compile(r"^\[[\d:]+\] :\d+: ")  # the time and a line of the converter's own source


@dataclass(frozen=True, kw_only=True)
class Converter:
    """What makes another format of an ONNX file.

    Attributes:
        distribution: The package that holds it: another version makes other files.
        module: Of kit: its `convert(source, target)` is called in a child, which may print what goes wrong.
    """

    name: str
    distribution: str
    module: str
    suffix: str


def folder() -> Path:
    """Return the part of the user's cache that holds converted models."""
    return platformdirs.user_cache_path("kit") / "converted"


def converted(converter: Converter, path: Path, refs: Sequence[FileRef], *, seconds: float = SECONDS) -> Path:
    """Return what a converter, whose package must be here, makes of an ONNX file: as made before, or made now.

    Weights lie beside `path`; `refs` are its files, checked: the result is found by their hashes. `seconds` are for the
    conversion, besides what the size takes.

    Raises:
        BundleInvalid: It does not accept the model, crashes on it, or is not done in time.
        StorageUnavailable: The cache cannot be written.
        Unavailable: No process is to be had.
    """
    version = packages.version(converter.distribution) or ""
    words = [converter.name, version, *(ref.sha256 for ref in refs)]
    key = hashlib.sha256("|".join(words).encode()).hexdigest()[:32]
    kept = folder() / f"{key}{converter.suffix}"
    if kept.is_file():
        return kept
    size_bytes = sum(ref.size_bytes for ref in refs)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.check_room(kept.parent, _COPIES * size_bytes, what=f"making a model for {converter.name}")
        with _room(kept.parent) as room:
            made = _made(converter, path, room, seconds + size_bytes / _BYTES_PER_SECOND)
            files.install(made, kept)
    except OSError as error:
        raise StorageUnavailable(
            f"a model for {converter.name} cannot be kept in {kept.parent}: {error.strerror or error}",
            hint="free some space there",
        ) from error
    return kept


@contextlib.contextmanager
def _room(parent: Path) -> Iterator[Path]:
    """Give a folder of its own, which goes with all that was left in it; one of a killed process is swept by the next."""
    files.sweep(parent)
    room = parent / files.partial_name()
    room.mkdir()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _made(converter: Converter, path: Path, room: Path, seconds: float) -> Path:
    source, target = room / "model.onnx", room / f"made{converter.suffix}"
    shutil.copyfile(path, source)
    for weights in graph_file.weights_beside(path):
        shutil.copyfile(weights, room / weights.name)
    question = {"module": converter.module, "source": str(source), "target": str(target)}
    try:
        done = child.ask(__name__, question, seconds=seconds, folder=room)
    except subprocess.TimeoutExpired as error:
        raise BundleInvalid(
            f"{converter.name} does not convert {path.name} within {seconds:.0f} s", hint=_OTHER
        ) from error
    except OSError as error:
        raise Unavailable(f"there is no process to convert {path.name} in: {error}", hint=_OTHER) from error
    if by := child.ended_by(done):
        raise BundleInvalid(
            f"the converter of {converter.name} crashes on {path.name}: it was ended by {by}", hint=_OTHER
        )
    if done.returncode or not target.is_file() or not target.stat().st_size:
        told = _told((done.stdout + b"\n" + done.stderr).decode(errors="replace"))
        raise BundleInvalid(f"{converter.name} does not convert {path.name}: {told}", hint=_OTHER)
    return target


def _told(output: str) -> str:
    lines = [" ".join(_STAMP.sub("", line).split()) for line in output.splitlines() if line.strip()]
    wrong = [line for line in lines if any(word in line.lower() for word in ("error", "not support", "unsupported"))]
    return (wrong or lines or ["it does not say why"])[-1][:300]


if __name__ == "__main__":
    asked = child.asked()
    importlib.import_module(asked["module"]).convert(Path(asked["source"]), Path(asked["target"]))
