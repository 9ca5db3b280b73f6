"""How long work tells what it is doing."""

from __future__ import annotations

from typing import Protocol


class OnProgress(Protocol):
    """A function that is told what is being done, and the share that is done of all: 0 to 1, or None if that is unknown."""

    def __call__(self, what: str, share: float | None = None, /) -> None:
        """Take note of it."""


def silent(_what: str, _share: float | None = None, /) -> None:
    """Tell nobody."""
