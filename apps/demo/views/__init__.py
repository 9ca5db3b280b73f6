"""What a visitor may ask a model, by its task: pictures, texts, rows of a table; tensors for every other."""

from __future__ import annotations

from collections.abc import Callable

from apps.demo.views import arrays, pictures, rows, texts
from apps.demo.views.base import Asking, Question, View
from kit.bundle import Bundle

__all__ = ["Asking", "Question", "View", "view_of"]

_VIEWS: dict[str, Callable[[Bundle], View]] = {
    "image-classification": pictures.view,
    "text-classification": texts.view,
    "text-embedding": texts.view_of_many,
    "table": rows.view,
}


def view_of(bundle: Bundle) -> View:
    """Return the view of a bundle's task, by its name without the version."""
    task = bundle.manifest.task
    name = task.name.partition("@")[0] if task else ""
    return _VIEWS.get(name, arrays.view)(bundle)
