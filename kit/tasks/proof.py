"""The proof of the way in: raw items that travel in a bundle with the tensors they must become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kit.bundle import Items
from kit.tasks.base import Task

MOST_ITEMS = 3


def items_of(task: Task | None, raw: Sequence[Any] = ()) -> Items | None:
    """Return a few raw items with the tensors that each of them becomes alone; None for a task without a way in.

    The task knows the signature already. `raw` items are what its `raw` gives; without any, it makes some up.

    Raises:
        BadInput, UsageError: An item cannot be encoded.
    """
    if task is None:
        return None
    chosen = list(raw[:MOST_ITEMS]) or task.raw(None, MOST_ITEMS)
    if not chosen:
        return None
    return Items(raw=chosen, tensors=tuple(dict(task.encode([task.item(one)])) for one in chosen))
