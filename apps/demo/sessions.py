"""Who is here: a bounded number of visitors, each with processes that end when the browser has gone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from apps.demo.settings import Settings
from apps.demo.visitor import Visitor

COOKIE = "kit-demo"
"""A name that the server gives each browser, so that a page that is loaded anew finds what it had."""

MOST_VISITORS = 16
"""At a time; each may hold a process with models open in every runtime."""


class Sessions:
    """Visitors by the session of their browser, as long as anyone else holds them; `most` of them at a time."""

    def __init__(self, most: int = MOST_VISITORS) -> None:
        self._most = most
        self._visitors: weakref.WeakValueDictionary[str, Visitor] = weakref.WeakValueDictionary()
        self._browsers: dict[str, str] = {}
        self._missed: dict[str, int] = {}
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._visitors)

    def holds(self, session: str, visitor: Visitor) -> bool:
        """Whether this visitor is here."""
        return self._visitors.get(session) is visitor

    def is_elsewhere(self, session: str, visitor: Visitor) -> bool:
        """Whether another page of the same browser has taken this visitor over."""
        return any(one is visitor and name != session for name, one in list(self._visitors.items()))

    def admit(self, session: str, make: Callable[[], Visitor], *, browser: str = "") -> Visitor | None:
        """Return a new visitor, or None if too many are here; `browser` is what its page is known by when it is loaded anew."""
        with self._changing:
            if session not in self._visitors and len(self._visitors) >= self._most:
                return None
            found = self._visitors[session] = make()
            self._browsers[session] = browser
            return found

    def back(self, session: str, browser: str, is_active: Callable[[str], bool]) -> Visitor | None:
        """Return the visitor whose page this browser has loaded anew; None if it had none, or still shows it elsewhere."""
        with self._changing:
            self._browsers = {one: name for one, name in self._browsers.items() if one in self._visitors}
            left = [one for one, name in self._browsers.items() if browser and name == browser and not is_active(one)]
            if not left:
                return None
            found = self._visitors.pop(left[-1], None)  # the page that was left last
            if found is not None:
                self._visitors[session] = found
                self._browsers[session] = browser
            return found

    def dismiss(self, is_active: Callable[[str], bool], *, patience: int = 0) -> list[Visitor]:
        """Return visitors who have gone and are no longer counted: what runs for them is to be ended.

        Args:
            is_active: Whether a session has a browser that looks at it.
            patience: How many times in a row a session may be found without one; it may come back.
        """
        with self._changing:
            missed = {session: self._missed.get(session, 0) + 1 for session in self._visitors if not is_active(session)}
            left = {session for session, times in missed.items() if times > patience}
            self._missed = {session: times for session, times in missed.items() if session not in left}
            found = [self._visitors.pop(session, None) for session in left]
        return [one for one in found if one is not None]


everyone = Sessions()


def here(settings: Settings) -> Visitor | None:
    """Return this visitor's things; None if too many others are here."""
    kept: Visitor | None = st.session_state.get("visitor")
    context = get_script_run_ctx()
    session = context.session_id if context else ""
    if kept is not None and everyone.holds(session, kept):
        return kept

    if kept is not None and everyone.is_elsewhere(session, kept):
        kept = None

    def make() -> Visitor:
        return kept or Visitor(settings.bundle, artifacts_only=settings.artifacts_only)

    browser = str(st.context.cookies.get(COOKIE, ""))
    found = None
    if kept is None and runtime.exists():
        found = everyone.back(session, browser, runtime.get_instance().is_active_session)
    found = found or everyone.admit(session, make, browser=browser)
    if found is None and runtime.exists():  # those who lost their connection may come back, but have to make room
        for visitor in everyone.dismiss(runtime.get_instance().is_active_session):
            visitor.leave()
        found = everyone.admit(session, make, browser=browser)
    if found is not None:
        st.session_state["visitor"] = found
    return found


def gone(patience: int) -> list[Visitor]:
    """Return the visitors whose browser was not there so many times in a row."""
    return everyone.dismiss(runtime.get_instance().is_active_session, patience=patience) if runtime.exists() else []
