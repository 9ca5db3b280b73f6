"""Words that come from files, as text and nothing else: what a stranger wrote must not become Markdown, links or pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from apps.demo import places
from kit.errors import KitError

_VISITORS_PATH = re.compile(rf"[^\s'\"]*{re.escape(places.VISITORS)}[^\s'\"/\\]*[/\\](?:\d+[/\\])?")
_SPECIAL = re.compile(r"([\\`*_\[\]<>$:~#|&])")
# Addresses become links, and names between colons pictures, after escapes are undone: only a sign between the letters helps.
_JOINER = "\u2060"  # word joiner: it takes no room and no line breaks at it
_ADDRESS = re.compile(r"(?i)(www(?=\.)|:(?=//|\S+:)|@(?=[-\w]))")


def plain(text: object) -> str:
    """Return a text that Markdown shows as it is, without links."""
    return _SPECIAL.sub(r"\\\1", _ADDRESS.sub(rf"\1{_JOINER}", str(text)))


def problem(error: KitError) -> str:
    """Return an error and what to do about it, as text that Markdown shows as it is."""
    return plain(sentence(error))


def bold(text: object) -> str:
    """Return a text that Markdown shows in bold, and otherwise as it is."""
    return f"**{plain(text)}**"


def sentence(error: KitError) -> str:
    """Return an error and what to do about it as text: sentences, without the paths of visitors' folders."""
    said = [str(error), error.hint] if error.hint else [str(error)]
    found = " ".join(f"{one[:1].upper()}{one[1:]}{'' if one.endswith(('.', '!', '?')) else '.'}" for one in said)
    return _VISITORS_PATH.sub("", found)


def refusal(name: str, error: KitError) -> str:
    """Return why an upload is not opened; that it is refused is said once, with the name that its sender knows."""
    text = str(error)
    why = sentence(type(error)(text.partition(" is refused: ")[2] or text, hint=error.hint))
    return f"{name} is refused: {why[:1].lower()}{why[1:]}"


def ink() -> str:
    """Return the colour of letters in charts, on the ground that the visitor's page has."""
    return "#fafafa" if st.context.theme.type == "dark" else "#1f2933"


def table(rows: Sequence[Mapping[str, object]]) -> None:
    """Draw a table: rows of texts by column, the same columns in each; the first column names the rows."""
    import pandas as pd  # it takes most of a second, and the first answer needs no table

    shown = pd.DataFrame([{plain(name): plain(text) for name, text in row.items()} for row in rows])
    st.table(shown.set_index(shown.columns[0]))


def progress(bar: Any, what: str, share: float | None) -> None:
    """Move a progress bar; one whose share is unknown stands at its beginning."""
    bar.progress(min(max(share or 0.0, 0.0), 1.0), plain(what))
