"""Small tables for notebooks, in HTML: whatever a cell holds is text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a title above it; the first cell of each row names it."""
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{body}</tbody></table>"
