"""Rows of a table in: an example that travels in the bundle, whose cells can be changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from apps.demo.views import arrays
from apps.demo.views.base import Asking, Question, View, examples
from apps.demo.visitor import Visitor
from kit.bundle import Bundle


def view(bundle: Bundle) -> View:
    """Return the view of a model that reads rows; one without example rows is asked by tensors."""
    if bundle.manifest.golden.items is None:
        return arrays.view(bundle)
    return View(
        sources={
            "Row": Asking(take=_row, invitation="Fill in the row."),
            "Random": Asking(take=arrays.random, invitation="There is no sample to draw from."),
        }
    )


def _row(visitor: Visitor, bundle: Bundle) -> Question | None:  # noqa: ARG001
    known = [one for one in examples(visitor) if isinstance(one, (dict, list))]
    if not known:
        return None
    place = 0
    if len(known) > 1:
        place = st.selectbox("Example", range(len(known)), format_func=lambda place: f"row {place + 1}")
    raw = known[place]
    columns = {str(name): value for name, value in (raw.items() if isinstance(raw, dict) else enumerate(raw))}
    import pandas as pd

    upright = pd.DataFrame({"value": columns.values()}, index=pd.Index(list(columns), name="column"), dtype=object)
    shown = upright if any(isinstance(one, str) for one in columns.values()) else upright.astype(float)
    edited = st.data_editor(shown, key=f"row {visitor.path} {place}", width="stretch")
    values = [_plain(new, old) for new, old in zip(edited["value"], columns.values(), strict=True)]
    return Question(
        {"kind": "items", "raw": [dict(zip(raw, values, strict=True)) if isinstance(raw, dict) else values]}
    )


def _plain(value: Any, example: Any) -> Any:
    """Return a cell as a plain value of the kind that its example is of; None if it is empty."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(example, bool):
        return bool(value)
    if isinstance(example, int) and float(value).is_integer():
        return int(value)
    return float(value) if isinstance(example, (int, float)) else str(value)
