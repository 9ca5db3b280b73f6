"""A .pt2 file, as torch.export saves a program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from exporters.sources import archive, torch_export
from exporters.sources.module import TorchOriginal, open_program
from exporters.sources.names import bundle_name
from kit.bundle.manifest import Provenance
from kit.errors import BadInput
from kit.system import files
from kit.tasks.base import Task
from kit.tensors import Axis, Signature

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def open_file(
    path: Path,
    *,
    name: str | None = None,
    signature: Signature | None = None,
    task: Task | None = None,
    axes: Mapping[str, Axis] | None = None,
) -> TorchOriginal:
    """Take a saved program as an original.

    Raises:
        BadInput: It is not there, damaged, or this torch cannot read it.
        UsageError: Reading it would run code of its own.
    """
    if not path.is_file():
        raise BadInput(f"there is no file {str(path)!r}")
    archive.check(path)
    return open_program(
        _loaded(path),
        name=name or bundle_name(path.stem),
        record=Provenance(kind="program", name=path.name, sha256=files.sha256(path)),
        signature=signature,
        task=task,
        axes=axes,
    )


def _loaded(path: Path) -> Any:
    try:
        with torch_export.silence(), _no_pickles():
            return torch.export.load(str(path))
    except Exception as error:  # torch raises whatever its own readers do
        raise BadInput(
            f"torch {torch.__version__.partition('+')[0]} cannot read {path.name}: {torch_export.root_cause(error)}",
            hint="save it with this version: torch.export.save(program, 'model.pt2')",
        ) from error


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """Hold torch to weights: its reader of programs unpickles some entries otherwise, and a pickle may hold code."""
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"  # torch.load heeds it, whatever its caller asks for
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before
