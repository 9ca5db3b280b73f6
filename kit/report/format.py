"""Number formats that tables, pages and the terminal share."""

from __future__ import annotations

from kit.metrics import Better, Score

NONE = "–"  # noqa: RUF001 - an en dash: Markdown takes a hyphen for a list


def microseconds(value: float | None) -> str:
    """Return `12.3`, `123` or `12,345`."""
    if value is None:
        return NONE
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    """Return ` [390, 410]`, with its leading space, or nothing if there is no interval."""
    return "" if low is None or high is None else f" [{low:,.0f}, {high:,.0f}]"


def size(value: int) -> str:
    """Return `512 B`, `587 kB`, `2.27 MB` or `1.30 GB`: a kB has 1,000 bytes."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} GB"
    if value >= 1e6:
        return f"{value / 1e6:.2f} MB"
    return f"{value / 1e3:.0f} kB" if value >= 1e3 else f"{value} B"


def value(number: float | None, unit: str = "") -> str:
    """Return `98.45 %` for a share of 1, `0.0123 mm` for anything else."""
    if number is None:
        return NONE
    return f"{100 * number:.2f} %" if unit == "%" else f"{number:.4g} {unit}".rstrip()


def score(found: Score | None, source: str = "") -> str:
    """Return a score's value, `98.45 %`, with `*` if it is the manifest's."""
    return NONE if found is None else value(found.value, found.unit) + ("*" if source == "manifest" else "")


def about(found: Score) -> str:
    """Return `top-1 (higher is better): mnist test, 10,000 samples`."""
    direction = "higher" if found.better is Better.HIGHER else "lower"
    unit = f" in {found.unit}" if found.unit not in {"", "%"} else ""
    split = "" if found.dataset.split()[:1] == [found.split] else found.split  # golden samples are no split of theirs
    where = f"{found.dataset} {split}".strip()
    return f"{found.metric}{unit} ({direction} is better): {where}, {found.samples:,} samples"
