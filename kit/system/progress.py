"""How long work tells what it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from kit.system.wording import percent


class OnProgress(Protocol):
    """A function that is told what is being done, and the share that is done of all: 0 to 1, or None if that is unknown."""

    def __call__(self, what: str, share: float | None = None, /) -> None:
        """Take note of it."""


def silent(_what: str, _share: float | None = None, /) -> None:
    """Tell nobody."""


def duration(seconds: float) -> str:
    """Return `12 s`, `1 min 22 s` or `3 h 5 min`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


class Watch:
    """How much of some work is done, and how long the rest will take if it goes on like this.

    `whole` is all of the work, in any unit; `clock` gives seconds.
    """

    def __init__(
        self, what: str, whole: float, on_progress: OnProgress, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._whole, self._on_progress, self._clock = what, whole, on_progress, clock
        self._started, self._done = clock(), 0.0

    def add(self, work: float) -> None:
        """Count work that is done."""
        self._done += work

    def tell(self) -> None:
        """Tell how far it is: `rounding layers, 40 %, about 12 s left`."""
        share = min(self._done / self._whole, 1.0) if self._whole else 0.0
        spent = self._clock() - self._started
        left = f", about {duration(spent * (1 - share) / share)} left" if share > 0 else ""
        self._on_progress(f"{self._what}, {percent(share)}{left}")
