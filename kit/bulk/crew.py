"""Who answers chunks on this machine: this process, or several, each with an engine of its own."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from kit.bulk.answering import Answered, Answering, Opening
from kit.bulk.chunks import Chunk, Reading
from kit.bulk.forms import FORMS
from kit.errors import KitError, MemoryShort

_MOST_ON_WINDOWS = 61


class Crew(Protocol):
    """Answers chunks in their order, taking new ones only as fast as they are answered.

    Attributes:
        workers: How many answer.
        notes: What a person should know of them.
    """

    workers: int
    notes: Sequence[str]

    def answers(self, reading: Reading) -> Generator[Answered]:
        """Give the answers to each chunk that is left."""


class Alone:
    """This process."""

    workers = 1
    notes: Sequence[str] = ()

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def answers(self, reading: Reading) -> Generator[Answered]:
        """Give the answers to each chunk."""
        for chunk in reading.left:
            yield self._answering.answer(chunk)


class Processes:
    """Some processes of this machine. What is on its way is bounded, so that memory is.

    Args:
        opening: How each opens its engine.
        suffix: Of the form that they write.
        count: How many.
    """

    notes: Sequence[str] = ()

    def __init__(self, opening: Opening, suffix: str, count: int) -> None:
        self._opening, self._suffix = opening, suffix
        self.workers = min(count, _MOST_ON_WINDOWS) if sys.platform == "win32" else count

    def answers(self, reading: Reading) -> Generator[Answered]:
        """Give the answers to each chunk.

        Raises:
            MemoryShort: A process was ended from outside.
        """
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),  # a fork would inherit the runtime's threads, broken
            initializer=_open,
            initargs=(self._opening, self._suffix),
        )
        waiting: collections.deque[Future[Answered]] = collections.deque()
        try:
            for chunk in reading.left:
                waiting.append(pool.submit(_answer, chunk))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise MemoryShort(
                "a worker process ended: killed by the system or by somebody, perhaps for want of memory",
                hint="give the same command again, perhaps with fewer --workers: it goes on where it stopped; "
                'a script of your own needs `if __name__ == "__main__":` around its call',
            ) from error
        finally:
            for process in set(multiprocessing.active_children()) - others:  # they hold nothing that could be lost
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


_answering: Answering | KitError | None = None


def _open(opening: Opening, suffix: str) -> None:
    global _answering  # noqa: PLW0603 - the one engine of this process
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _answering = Answering(opening, FORMS[suffix]())
    except KitError as error:  # raised here, it would be said to be a process that was killed
        _answering = error


def _end_with_parent() -> None:
    """End when the process that started this one does, however it was ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(chunk: Chunk) -> Answered:
    if isinstance(_answering, KitError):
        raise _answering
    assert _answering is not None
    return _answering.answer(chunk)
