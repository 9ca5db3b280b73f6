"""Tensors in: golden samples, or an .npz of one's own. Every model can be asked this way."""

from __future__ import annotations

import numpy as np
import streamlit as st

from apps.demo import words
from apps.demo.views.base import Asking, Question, View, next_draw, sample
from apps.demo.visitor import Visitor
from kit.bundle import Bundle
from kit.tensors import Axis, Tensors, TensorSpec

MAX_FILE_MB = 100
_FIRST_VALUES = 6


def view(bundle: Bundle) -> View:  # noqa: ARG001 - all models have the same one
    """Return the view of a model without a task that people's things go through."""
    return View(
        sources={
            "Golden samples": Asking(take=golden, invitation="There are no golden samples to ask about."),
            "File": Asking(take=uploaded, invitation="Choose an .npz that holds an array for each input, by its name."),
        }
    )


def golden(visitor: Visitor, bundle: Bundle) -> Question | None:
    """Ask about golden samples, one after the other."""
    return drawn(visitor, bundle, {"golden": True})


def random(visitor: Visitor, bundle: Bundle) -> Question | None:
    """Ask about a sample of the model's data set if it is at hand, else a golden one."""
    return drawn(visitor, bundle, {})


def drawn(visitor: Visitor, bundle: Bundle, which: dict[str, bool]) -> Question | None:
    """Draw a sample, and show it as tensors."""
    asked = {"path": visitor.path, "number": next_draw("Another sample"), **which}
    found = sample(visitor, asked)
    if found is None:
        return None
    right = str(found.told["right"])
    _inputs(bundle, found.arrays)
    st.caption(words.plain(f"{found.told['source']}{f' · right: {right}' if right else ''}"))
    return Question({"kind": "sample", **asked}, right=right)


def uploaded(visitor: Visitor, bundle: Bundle) -> Question | None:  # noqa: ARG001
    """Ask about the arrays of a file."""
    file = st.file_uploader(
        "File of arrays",
        type=["npz"],
        max_upload_size=MAX_FILE_MB,
        help=f"numpy.savez(FILE, NAME=array, ...), up to {MAX_FILE_MB} MB",
    )
    _wanted(bundle)
    return None if file is None else Question({"kind": "file"}, {"file": np.frombuffer(file.getvalue(), np.uint8)})


def _wanted(bundle: Bundle) -> None:
    signature = bundle.signature
    words.table(
        [{"input": spec.name, "takes": spec.describe(), "": _bounds(spec, signature.axes)} for spec in signature.inputs]
    )


def _bounds(spec: TensorSpec, axes: dict[str, Axis]) -> str:
    said = [f"{size}: {axes[size].describe()}" for size in spec.shape if isinstance(size, str)]
    return "; ".join([*said, *([f"values below {spec.below}"] if spec.below is not None else [])])


def _inputs(bundle: Bundle, inputs: Tensors) -> None:
    rows = []
    for spec in bundle.signature.inputs:
        array = inputs[spec.name]
        first = array.reshape(-1)[:_FIRST_VALUES]
        told = ", ".join(f"{one:.3g}" if array.dtype.kind == "f" else str(one) for one in first)
        rows.append(
            {
                "input": spec.name,
                "is": f"{array.dtype} {list(array.shape)}",
                "begins": told + (" …" if array.size > len(first) else ""),
            }
        )
    words.table(rows)
