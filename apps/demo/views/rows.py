"""Rows of a table in: an example that travels in the bundle, whose cells can be changed."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from apps.demo import words
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
    values = _edited(columns, f"row {visitor.path} {place}")
    if values is None:
        return None
    return Question(
        {"kind": "items", "raw": [dict(zip(raw, values, strict=True)) if isinstance(raw, dict) else values]}
    )


def _edited(columns: dict[str, Any], key: str) -> list[Any] | None:
    """Draw a row upright, whose cells can be changed; None, with the reason on the page, for a cell that cannot be read."""
    import pandas as pd

    are_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in columns.values())
    cells = list(columns.values()) if are_numbers else [_as_text(one) for one in columns.values()]
    upright = pd.DataFrame({"value": cells}, index=pd.Index(list(columns), name="column"))
    edited = st.data_editor(upright.astype(float) if are_numbers else upright, key=key, width="stretch")
    values = []
    for (name, example), cell in zip(columns.items(), edited["value"], strict=True):
        try:
            values.append(None if cell is None or pd.isna(cell) else _plain(cell, example))
        except ValueError:
            st.warning(words.plain(f"{name}: {cell} is no value like {_as_text(example)}."), icon=":material/error:")
            return None
    return values


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(cell: Any, example: Any) -> Any:
    """Return a cell as a plain value of the kind that its example is of; raises ValueError if it is none."""
    if example is None or isinstance(example, str):
        return str(cell)
    if isinstance(example, bool) or not isinstance(example, (int, float)):
        return json.loads(str(cell))
    number = float(cell)
    return int(number) if isinstance(example, int) and number.is_integer() else number
