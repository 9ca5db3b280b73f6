"""Names of bundles for things that have names of other kinds."""

from __future__ import annotations

import re


def bundle_name(text: str) -> str:
    """Return a bundle's name for a class or a file: `TinyBert` becomes `tiny-bert`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", text).lower()
    return re.sub(r"[^a-z0-9._-]+", "-", words).strip("-._")[:100] or "model"
