"""What a view is: the ways in which a visitor may ask a model of some task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from apps.demo import words
from apps.demo.visitor import Visitor
from apps.demo.worker import Answer
from kit.bundle import Bundle
from kit.errors import KitError
from kit.tensors import Tensors


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked, as apps.demo.jobs.predict takes it; `right`: the right answer in words, if it is known."""

    asked: dict[str, Any]
    arrays: Tensors = field(default_factory=dict)
    right: str = ""

    @property
    def digest(self) -> str:
        """What differs if the question does."""
        found = hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode())
        for name, array in self.arrays.items():
            found.update(name.encode() + array.tobytes())
        return found.hexdigest()


Take = Callable[[Visitor, Bundle], Question | None]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """One way to ask: `take` draws what is needed and returns the question; `invitation` stands while that is None."""

    take: Take
    invitation: str


@dataclass(frozen=True, kw_only=True)
class View:
    """The ways to ask a model; `example` is an item as Python source, empty if its task has no items."""

    sources: dict[str, Asking]
    example: str = ""


def examples(visitor: Visitor) -> list[Any]:
    """Return the raw items that travel in the bundle in sight, plain values; none if they cannot be read."""
    key = f"examples {visitor.path}"
    if key not in visitor.results:
        try:
            visitor.results[key] = visitor.ask("jobs:examples", {"path": visitor.path}).told["raw"]
        except KitError as error:
            st.caption(words.problem(error))
            return []
    found: list[Any] = visitor.results[key]
    return found


def sample(visitor: Visitor, asked: dict[str, Any]) -> Answer | None:
    """Return a sample, drawn once; None, with the reason on the page, if there is none or the visitor's process is at work."""
    key = f"sample {sorted(asked.items())}"
    if key not in visitor.results:
        if visitor.errand is not None and visitor.errand[1].is_running:
            st.caption("It is drawn when the present work has ended.")
            return None
        try:
            visitor.results[key] = visitor.ask("jobs:sample", asked)
        except KitError as error:
            st.error(words.problem(error))
            return None
    found: Answer = visitor.results[key]
    return found


def next_draw(name: str) -> int:
    """Draw a button for another sample; return the number of the draw."""
    if st.button(name, icon=":material/shuffle:") or "draw" not in st.session_state:
        st.session_state["draw"] = st.session_state.get("draw", -1) + 1
    number: int = st.session_state["draw"]
    return number
