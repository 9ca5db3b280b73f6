"""Work that takes longer than a look: it goes on in a thread while the page is drawn, says how far it is, and can be stopped.

What is there within `PATIENCE_SECONDS` is drawn at once; anything else shows its progress, an estimate and a button to cancel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import streamlit as st

from apps.demo import words
from apps.demo.visitor import Visitor
from kit.errors import KitError
from kit.system.progress import OnProgress

PATIENCE_SECONDS = 0.8
"""How long a page is held for an answer."""

_GLANCE_SECONDS = 0.5
_TELLING_SHARE = 0.1
"""Of the work: from here on the time of the rest follows from that of the beginning."""

_APART = ("check", "look")
"""How the keys of work begin that has a process of its own."""

_MOST_ENDED = 4
T = TypeVar("T")


class Errand(Generic[T]):
    """One piece of work. The page looks at its fields every half second.

    Args:
        do: Does it; told how far it is by the function it is given.
        end: Ends what does it, at once; `do` then raises.
        about_seconds: How long it may take in all; 0 if nobody knows.
    """

    def __init__(self, do: Callable[[OnProgress], T], end: Callable[[], None], *, about_seconds: float = 0.0) -> None:
        self.what, self.stopped = "Starting", False
        self._share = 0.0
        self._do, self._end, self._about = do, end, about_seconds
        self._found: T | None = None
        self._problem: KitError | None = None
        self._started = time.monotonic()
        self._moving = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether there is anything to wait for."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it has ended."""
        self._thread.join(seconds)
        return not self.is_running

    def stop(self) -> None:
        """End it; what it found until now is lost."""
        self.stopped = True
        self._end()

    def result(self) -> T | None:
        """Return what was found; None if it was stopped. Raises KitError with the reason if it failed."""
        if self._problem is not None and not self.stopped:
            raise self._problem
        return self._found

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1: by the clock where it is known how long it may take, else as it tells itself."""
        return min(self._spent() / self._about, 1.0) if self._about else self._share

    def describe(self) -> str:
        """Return what is being done, for how long, and how long that may take."""
        spent = self._spent()
        about = self._about
        if not about and self._share > _TELLING_SHARE:  # what was spent before it began, such as waiting, comes once
            about = self._moving + (spent - self._moving) / self._share
        return f"{self.what} · {spent:,.0f} s" + (f" of about {max(about, spent):,.0f} s" if about else "")

    def _spent(self) -> float:
        return time.monotonic() - self._started

    def _run(self) -> None:
        try:
            self._found = self._do(self._told)
        except KitError as error:
            self._problem = error
        except Exception as error:  # noqa: BLE001 - the border of a thread: nobody else would hear of it
            self._problem = KitError(f"a defect of kit: {type(error).__name__}: {error}", hint="please report it")

    def _told(self, what: str, share: float | None = None, /) -> None:
        if share and not self._share:
            self._moving = self._spent()
        self.what, self._share = what, self._share if share is None else share


def within(
    visitor: Visitor,
    key: Hashable,
    do: Callable[[OnProgress], T],
    *,
    about_seconds: float = 0.0,
    end: Callable[[], None] | None = None,
    where: str = "tab",
) -> T | None:
    """Return what work finds if that is soon; else draw its progress and return None, as after it was stopped.

    Args:
        visitor: Whose it is: one piece of work at a time.
        key: What tells it from other work; it has to be the same in each drawing of the page.
        do: Does it; told how far it is by the function it is given.
        about_seconds: How long it may take; 0 if nobody knows.
        end: Ends what does it; the process that runs the visitor's models, if nothing is said.
        where: It is drawn: two places of a page may show the same work.

    Raises:
        KitError: It failed.
    """
    if visitor.stopped == key:
        st.info("Stopped.", icon=":material/stop_circle:")
        if st.button("Try again", icon=":material/refresh:", key=f"again {where}"):
            visitor.stopped = None
            st.rerun()
        return None
    if key not in visitor.ended:
        if visitor.errand is None:
            visitor.errand, visitor.wanted = (key, Errand(do, end or visitor.forget, about_seconds=about_seconds)), None
        kept, running = visitor.errand
        if kept != key:
            visitor.wanted = key
        if not running.wait(PATIENCE_SECONDS):
            watch(running, where)
            return None
        visitor.errand = None
        visitor.ended = dict([*visitor.ended.items(), (kept, running)][-_MOST_ENDED:])
        if kept != key:  # whoever asked for that comes back for it
            return within(visitor, key, do, about_seconds=about_seconds, end=end, where=where)
    ended = visitor.ended.pop(key)
    if ended.stopped:
        visitor.stopped = key
        return within(visitor, key, do, about_seconds=about_seconds, end=end, where=where)
    found: T | None = ended.result()
    return found


def other_work(visitor: Visitor, *kinds: str) -> bool:
    """Draw other work that goes on in the process of the visitor's models; return whether there is any.

    Whoever asked that process now would wait until it has ended. `kinds`: how keys begin whose work is drawn elsewhere.
    """
    if visitor.errand is None or not visitor.errand[1].is_running:
        return False
    kind = visitor.errand[0][0] if isinstance(visitor.errand[0], tuple) else ""
    if kind in {*kinds, *_APART}:
        return False
    watch(visitor.errand[1], "tab")
    return True


def is_on(visitor: Visitor, key: Hashable) -> bool:
    """Whether this work goes on, waits for other work, or was stopped by its visitor."""
    waits = key in {visitor.stopped, visitor.wanted} or key in visitor.ended
    return waits or (visitor.errand is not None and visitor.errand[0] == key)


@st.fragment(run_every=_GLANCE_SECONDS)
def watch(running: Errand[Any], where: str) -> None:
    """Look at work again and again; when it has ended the page is drawn anew. `where` tells its places on a page apart."""
    if not running.is_running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        words.progress(st.progress(0.0), running.describe(), running.share)
        if st.button("Cancel", icon=":material/stop:", key=f"cancel {where}"):
            running.stop()
