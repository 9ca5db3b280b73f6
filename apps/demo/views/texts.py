"""Texts in: one's own, or the examples that travel in the bundle."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from apps.demo.views import arrays
from apps.demo.views.base import Asking, Question, View, examples
from apps.demo.visitor import Visitor
from kit.bundle import Bundle

MAX_CHARACTERS = 20_000
_MOST_TEXTS = 16
_OWN = "one of your own"
_SHOWN = 70


def view(bundle: Bundle) -> View:  # noqa: ARG001 - all models of this task have the same one
    """Return the view of a model that reads one text at a time."""
    return View(
        sources={
            "Write": Asking(take=_one, invitation="Write a text, or choose an example."),
            "Random": Asking(take=arrays.random, invitation="There is no sample to draw from."),
        },
        example='"a sentence"',
    )


def view_of_many(bundle: Bundle) -> View:  # noqa: ARG001
    """Return the view of a model that turns texts into vectors, which are compared with each other."""
    return View(
        sources={
            "Write": Asking(take=_many, invitation="Write some texts, one on each line."),
            "Random": Asking(take=arrays.random, invitation="There is no sample to draw from."),
        },
        example='"a sentence"',
    )


def _one(visitor: Visitor, bundle: Bundle) -> Question | None:  # noqa: ARG001
    known = examples(visitor)
    places = list(range(-1, len(known)))
    place = st.selectbox(
        "Example",
        places,
        index=min(1, len(places) - 1),
        format_func=lambda place: _OWN if place < 0 else _shortened(_as_text(known[place])),
    )
    chosen = known[place] if place >= 0 else ""
    text = _box("Text", f"{visitor.path} {place}", _as_text(chosen))
    return Question({"kind": "items", "raw": [_as_raw(text, chosen)]}) if text.strip() else None


def _many(visitor: Visitor, bundle: Bundle) -> Question | None:  # noqa: ARG001
    known = [one for one in examples(visitor) if isinstance(one, str)]
    text = _box("Texts, one on each line", f"{visitor.path} all", "\n".join(one.replace("\n", " ") for one in known))
    lines = [line for line in text.splitlines() if line.strip()][:_MOST_TEXTS]
    return Question({"kind": "items", "raw": lines}) if lines else None


def _box(label: str, name: str, text: str) -> str:
    """Draw a box for text; what is written into it outlives a visit to another tab."""
    kept: dict[str, str] = st.session_state.setdefault("texts", {})
    found = st.text_area(label, kept.get(name, text), height=160, max_chars=MAX_CHARACTERS, key=f"text {name}") or ""
    kept[name] = found
    return found


def _as_text(raw: Any) -> str:
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)


def _as_raw(text: str, example: Any) -> Any:
    if isinstance(example, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
