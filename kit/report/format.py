"""Number formats that tables, pages and the terminal share."""

from __future__ import annotations

from kit.bundle.records import Accuracy

NONE = "–"  # noqa: RUF001 - an en dash: Markdown takes a hyphen for a list


def microseconds(value: float | None) -> str:
    """Return `12.3`, `123` or `12,345`."""
    if value is None:
        return NONE
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    """Return ` [390, 410]`, with its leading space, or nothing where there is no interval."""
    return "" if low is None or high is None else f" [{low:,.0f}, {high:,.0f}]"


def size(value: int) -> str:
    """Return `587 kB` or `2.27 MB`."""
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def percent(accuracy: Accuracy | None, source: str = "") -> str:
    """Return `98.45 %`, with `*` when the figure is the manifest's."""
    if accuracy is None:
        return NONE
    return f"{100 * accuracy.top1:.2f} %" + ("*" if source == "manifest" else "")
