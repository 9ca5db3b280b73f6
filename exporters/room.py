"""Is there room: what would not fit on the disk or into memory is refused before minutes are spent."""

from __future__ import annotations

from pathlib import Path

import psutil

from kit.bundle import graph_file
from kit.errors import MemoryShort
from kit.system import files

_HELD = 1.5  # copies of the weights in memory when a file is exported: one, and what a session makes of it
_HELD_BY_TORCH = 2.5
_LEAST_BYTES = 256 * 2**20  # smaller models fit wherever kit does


def check(source: str, out: Path, *, weights: Path | None, variants: int) -> None:
    """Refuse a model whose files, as many as `variants` copies of its weights, would not fit.

    Nothing is known of a factory without weights.

    Raises:
        StorageUnavailable: There is less room on the disk than its files need.
        MemoryShort: There is less free memory than its weights need.
    """
    size = _bytes(Path(source)) if Path(source).exists() else 0
    size += _bytes(weights) if weights is not None and weights.exists() else 0
    if size < _LEAST_BYTES:
        return
    files.check_room(out, variants * size, what=f"a bundle of {Path(source).name}")
    held = _HELD if Path(source).suffix.lower() == ".onnx" else _HELD_BY_TORCH
    free = psutil.virtual_memory().available
    if held * size > free:
        raise MemoryShort(
            f"exporting {Path(source).name} needs about {held * size / 1e9:,.1f} GB of memory, "
            f"and {free / 1e9:,.1f} GB are free",
            hint="end other programs, or export it on a machine with more memory",
        )


def _bytes(path: Path) -> int:
    """Return the size of a file and of the weights beside it, or of the weights in a folder."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.iterdir() if one.suffix.lower() == ".safetensors")
    beside = graph_file.weights_beside(path) if path.suffix.lower() == ".onnx" else ()
    return sum(one.stat().st_size for one in (path, *beside))
