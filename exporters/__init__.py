"""The workshop: a model in, checked artifacts out.

import exporters

report = exporters.export("model.onnx", out="artifacts/my-model")
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {
    "AutoOptions": "search.choose",
    "ExportOptions": "options",
    "ExportReport": "workbench",
    "export": "pipeline",
    "export_auto": "search.choose",
    "export_bundle": "pipeline",
}
__all__ = list(_ROOMS)


def __getattr__(name: str) -> Any:
    """Import torch and onnx only when something is exported."""
    if name in _ROOMS:
        # import_module, because the function `export` has the name of its room.
        return getattr(importlib.import_module(f"exporters.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'exporters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
