"""Items of all sources in pieces of some dozens, each with its name: light ones, such as the path of a picture."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.errors import KitError, Unavailable
from kit.tasks.base import Task
from kit.tasks.images.folders import count_below
from kit.tasks.rows import STDIN, count_rows
from kit.tensors import Signature

_BYTES = 4 * 2**20
_MOST_ROWS = 1024
_ROWS = 64  # of pictures and texts: a second or so of work


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items that follow each other.

    Attributes:
        index: From 0 upwards.
        names: Of the items.
        items: What the task reads; in place of what cannot be read, the error.
        fingerprint: Of the names, and of items that are no files: whether a source still gives what it gave before.
    """

    index: int
    names: tuple[str, ...]
    items: tuple[Any, ...]
    fingerprint: bytes


class Seen:
    """A fingerprint of all chunks so far."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, fingerprint: bytes) -> None:
        """Take note of a chunk."""
        self._hash.update(fingerprint)

    def digest(self) -> str:
        """Return it, in hexadecimal digits."""
        return self._hash.hexdigest()


def chunk_rows(task: Task, signature: Signature) -> int:
    """Return how many items make a chunk: as many as are worth sending to a process, and few enough to wait for."""
    if getattr(task, "takes_bytes", False) or getattr(task, "takes_text", False):
        return _ROWS
    return max(1, min(_MOST_ROWS, signature.rows_within(_BYTES, signature.usual_sizes())))


def chunks(task: Task, sources: Sequence[str], rows: int) -> Iterator[Chunk]:
    """Give all items of sources, `rows` in each chunk, the last one smaller."""
    items = _items(task, sources)
    for index in itertools.count():
        taken = list(itertools.islice(items, rows))
        if not taken:
            return
        yield Chunk(index, tuple(name for name, _ in taken), tuple(item for _, item in taken), _fingerprint(taken))


def _items(task: Task, sources: Sequence[str]) -> Iterator[tuple[str, Any]]:
    one_by_one = getattr(task, "read_rows", task.read)
    for source in sources:
        try:
            for name, item in one_by_one(source):
                yield printable(name), item
        except Unavailable:  # of this machine: no answer to any item
            raise
        except KitError as error:
            yield printable(source), error


def printable(text: str) -> str:
    """Return a text that every form can hold: bytes that are no UTF-8, as file names may have, are written as escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _fingerprint(taken: Sequence[tuple[str, Any]]) -> bytes:
    found = hashlib.sha256()
    for name, item in taken:
        found.update(name.encode() + b"\0")
        if isinstance(item, bytes):
            found.update(item)
        elif isinstance(item, Mapping):
            for key, value in item.items():
                content = (
                    value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode(errors="backslashreplace")
                )
                found.update(repr(key).encode(errors="backslashreplace") + content + b"\0")
        elif not isinstance(item, Path | KitError):
            found.update(repr(item).encode(errors="backslashreplace"))
    return found.digest()


def count(task: Task, sources: Sequence[str]) -> int | None:
    """Return about how many items there are, without reading them; None if that cannot be known."""
    total = 0
    for source in sources:
        path = Path(source)
        if source == STDIN:
            return None
        if path.is_dir():
            try:
                total += count_below(path)
            except OSError:
                return None
        elif getattr(task, "takes_bytes", False) or not path.is_file():
            total += 1
        else:
            found = count_rows(path)
            if found is None:
                return None
            total += found
    return total
