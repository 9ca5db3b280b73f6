"""Numbers in words: the same wherever people read them."""

from __future__ import annotations


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return `1 thread` or `1,024 threads`; `nouns` is the plural if that is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def times(speedup: float, low: float | None = None, high: float | None = None) -> str:
    """Return `1.74x`, or `1.74x [1.70, 1.78]` with its interval: how many times as fast as the baseline.

    Slower is below 1: `0.60x`, and never `1.67x slower`.
    """
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{speedup:.2f}x{interval}"


def percent(share: float, digits: int = 0) -> str:
    """Return `98.5 %` for a share of 1, with so many digits behind the point."""
    return f"{100 * share:.{digits}f} %"
