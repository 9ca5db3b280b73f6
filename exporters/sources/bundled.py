"""A bundle as a source: its module, if an installed package knows the architecture, else its baseline's graph."""

from __future__ import annotations

import dataclasses
from typing import Any

from exporters.sources.base import Original
from exporters.sources.onnx_file import OnnxOriginal
from kit.bundle import Bundle
from kit.bundle.manifest import Provenance
from kit.errors import UsageError
from kit.system.packages import entry_points, load_plug, plugged
from kit.tasks import registry

GROUP = "kit.architectures"


def open_bundle(bundle: Bundle, *, name: str | None = None) -> Original:
    """Take a bundle as an original. Its signature and its task stay.

    Raises:
        UsageError: It has neither an architecture that an installed package knows nor a baseline.
    """
    task = registry.task_of(bundle)
    module = _rebuilt(bundle)
    record = bundle.manifest.original
    if module is not None:
        from exporters.sources.module import open_module

        return open_module(
            module,
            name=name or bundle.name,
            record=record or Provenance(kind="architecture", name=type(module).__name__),
            signature=bundle.signature,
            task=task,
        )
    if bundle.baseline is None:
        raise UsageError(
            f"{bundle.name} holds weights and no graph, and no installed package knows its architecture",
            hint="install the package that made it, or name the model it was made of",
        )
    bundle.model(bundle.baseline)  # checks it, and that no weights lie in files of nobody's
    path = bundle.check(bundle.baseline.graph)
    found = OnnxOriginal(path, name=name or bundle.name, task=task, axes=bundle.signature.axes)
    found.signature = dataclasses.replace(bundle.signature)
    found.record = record or found.record
    return found


def _rebuilt(bundle: Bundle) -> Any:
    for entry in entry_points(GROUP):
        rebuild = load_plug(entry)
        with plugged(entry):
            module = rebuild(bundle)
        if module is not None:
            return module
    return None
