"""Words that come from files, as text and nothing else: what a stranger wrote must not become Markdown, links or pictures."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import streamlit as st

from kit.errors import KitError

_SPECIAL = re.compile(r"([\\`*_\[\]<>$:~#|&])")
# Addresses become links, and names between colons pictures, after escapes are undone: only a sign between the letters helps.
_JOINER = "\u2060"  # word joiner: it takes no room and no line breaks at it
_ADDRESS = re.compile(r"(?i)(www(?=\.)|:(?=//|\S+:)|@(?=[-\w]))")


def plain(text: object) -> str:
    """Return a text that Markdown shows as it is, without links."""
    return _SPECIAL.sub(r"\\\1", _ADDRESS.sub(rf"\1{_JOINER}", str(text)))


def problem(error: KitError) -> str:
    """Return an error and what to do about it."""
    return f"{plain(error)}  \n{plain(error.hint)}"


def table(frame: pd.DataFrame) -> None:
    """Draw a table of texts, its first column the index."""
    shown = frame.map(plain)
    shown.index = pd.Index([plain(one) for one in frame.index], name=frame.index.name)
    st.table(shown)


def progress(bar: Any, what: str, share: float | None) -> None:
    """Move a progress bar; one whose share is unknown stands at its beginning."""
    bar.progress(min(max(share or 0.0, 0.0), 1.0), plain(what))
