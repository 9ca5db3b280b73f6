"""The address of the page names the bundle in sight and the tab, so that links, reloading and going back work.

What the page was started with needs no name. An address opens what this page lists or this visitor has opened, and nothing
else: it may come from anyone.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps.demo import places
from apps.demo.visitor import Visitor
from kit.bundle import Bundle
from kit.errors import BundleNotFound

TAB = "tab"
"""Of the session's state: the tab in sight."""

_BUNDLE = "bundle"


def known(visitor: Visitor) -> dict[str, str]:
    """Return the paths of all bundles that this visitor may choose by name."""
    named = places.listed() | visitor.checked | visitor.opened
    if visitor.told and visitor.told not in named.values():
        named = {_free(Path(visitor.told).stem, named): visitor.told, **named}
    return named


def follow(visitor: Visitor) -> Bundle:
    """Put the bundle in sight that the address names, and return it.

    Raises:
        BundleNotFound: None of this page's has that name.
        KitError: It cannot be opened.
    """
    asked = st.query_params.get(_BUNDLE)
    path = known(visitor).get(asked) if asked else visitor.told or None
    if asked and path is None:
        if asked.endswith(f"({places.UPLOADED})"):
            raise BundleNotFound(
                f"{asked.removesuffix(f' ({places.UPLOADED})')} was uploaded, and is gone",
                hint="what is uploaded stays as long as its visitor; upload it again",
            )
        raise BundleNotFound(f"this page has no bundle {asked!r}", hint="choose another one")
    if path is not None and path != visitor.path:
        place = visitor.place(path)
        visitor.choose(place, visitor.look(place))
    return visitor.bundle()


def name(visitor: Visitor) -> None:
    """Have the address name the bundle in sight."""
    if visitor.path == visitor.told:
        st.query_params.pop(_BUNDLE, None)
        return
    names = [name for name, path in known(visitor).items() if path == visitor.path]
    if not names:
        names = [_free(Path(visitor.path).stem, known(visitor))]
        visitor.opened[names[0]] = visitor.path
    st.query_params[_BUNDLE] = names[0]


def follow_tab(tabs: tuple[str, ...]) -> None:
    """Open the tab that the address names; the first, if it names none. Called before the tabs are drawn."""
    asked = st.query_params.get(TAB, tabs[0])
    if asked in tabs and st.session_state.get(TAB) != asked:
        st.session_state[TAB] = asked


def name_tab() -> None:
    """Have the address name the tab that was just opened: a step that the browser can go back."""
    st.query_params[TAB] = st.session_state[TAB]


def _free(name: str, taken: dict[str, str]) -> str:
    number, found = 1, name
    while found in taken:
        number, found = number + 1, f"{name} {number + 1}"
    return found
