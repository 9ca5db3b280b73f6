"""Items of all sources in pieces of some dozens, each with its name: light ones, such as the path of a picture."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.errors import BadInput, KitError, Unavailable
from kit.tasks.base import Task
from kit.tasks.images.folders import count_below
from kit.tasks.rows import STDIN, count_rows
from kit.tensors import Signature

_BYTES = 4 * 2**20
_MOST_ROWS = 1024
_NAMED = 3
_ROWS = 64  # of pictures and texts: a second or so of work


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items that follow each other.

    Attributes:
        items: What the task reads; in place of what cannot be read, the error.
        fingerprint: Of the names, and of items that are no files: whether a source still gives what it gave before.
    """

    index: int
    names: tuple[str, ...]
    items: tuple[Any, ...]
    fingerprint: bytes


class Reading:
    """The chunks of some sources that are left to read, in `left`; `skipped` is how many were passed over before."""

    def __init__(self, task: Task, sources: Sequence[str], rows: int) -> None:
        self.sources, self.rows, self.skipped = sources, rows, 0
        self.left = chunks(task, sources, rows)

    def skip(self, count: int) -> Seen:
        """Pass over chunks that are answered; return what they were."""
        seen = Seen()
        for chunk in itertools.islice(self.left, count):
            seen.add(chunk.fingerprint)
        self.skipped += count
        return seen


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


def chunks(task: Task, sources: Sequence[str], rows: int, *, start: int = 0) -> Iterator[Chunk]:
    """Give all items of sources, `rows` in each chunk, the last one smaller, from one chunk on."""
    items = itertools.islice(_items(task, sources), start * rows, None)
    for index in itertools.count(start):
        taken = list(itertools.islice(items, rows))
        if not taken:
            return
        yield Chunk(index, tuple(name for name, _ in taken), tuple(item for _, item in taken), _fingerprint(taken))


def check_sources(task: Task, sources: Sequence[str]) -> None:
    """Refuse sources of which none is there: most likely they are mistyped. Where some are, the others become bad items.

    Raises:
        BadInput: There is nothing that could be read.
    """
    if getattr(task, "takes_text", False):  # the words themselves are texts
        return
    if not any(source == STDIN or Path(source).exists() for source in sources):
        named = ", ".join(repr(source) for source in sources[:_NAMED]) + (", ..." if len(sources) > _NAMED else "")
        raise BadInput(f"there is no file or folder {named}", hint="look at the path")


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
        for part in _parts(item):
            found.update(part)
    return found.digest()


def _parts(item: Any) -> Iterator[bytes]:
    """Give what tells an item from another of the same name; nothing of files, which would have to be read for it."""
    if isinstance(item, Path | KitError):
        return
    if isinstance(item, bytes):
        yield item
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield _written(key)
            yield value.tobytes() if isinstance(value, np.ndarray) else _written(value)
    else:
        yield _written(item)


def _written(value: Any) -> bytes:
    return repr(value).encode(errors="backslashreplace") + b"\0"


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
