"""Who answers chunks on this machine: this process, or several, each with an engine of its own."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import signal
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol

from kit.bulk.answering import Answered, Answering, Opening
from kit.bulk.chunks import Chunk
from kit.bulk.forms import FORMS
from kit.errors import MemoryShort

Pair = tuple[Chunk, Answered]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What gives the chunks, for a crew that reads elsewhere.

    Attributes:
        sources: Paths.
        rows: Of a chunk.
        skip: Chunks that are answered.
    """

    sources: Sequence[str]
    rows: int
    skip: int


class Crew(Protocol):
    """Answers chunks in their order, taking new ones only as fast as they are answered."""

    def answers(self, chunks: Iterator[Chunk], reading: Reading) -> Generator[Pair]:
        """Give each chunk's names and answers.

        Args:
            chunks: Those that are left.
            reading: How to read them anew.
        """


class Alone:
    """This process."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def answers(self, chunks: Iterator[Chunk], reading: Reading) -> Generator[Pair]:  # noqa: ARG002 - the protocol's
        """Give each chunk with its answers."""
        for chunk in chunks:
            yield chunk, self._answering.answer(chunk)


class Processes:
    """Some processes of this machine. What is on its way is bounded, so that memory is.

    Args:
        opening: How each opens its engine.
        suffix: Of the form that they write.
        count: How many.
    """

    def __init__(self, opening: Opening, suffix: str, count: int) -> None:
        self._opening, self._suffix, self._count = opening, suffix, count

    def answers(self, chunks: Iterator[Chunk], reading: Reading) -> Generator[Pair]:  # noqa: ARG002 - the protocol's
        """Give each chunk with its answers.

        Raises:
            MemoryShort: A process was ended from outside.
        """
        pool = ProcessPoolExecutor(
            self._count,
            mp_context=multiprocessing.get_context("spawn"),  # a fork would inherit the runtime's threads, broken
            initializer=_open,
            initargs=(self._opening, self._suffix),
        )
        waiting: collections.deque[tuple[Chunk, Future[Answered]]] = collections.deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_answer, chunk)))
                if len(waiting) > 2 * self._count:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise MemoryShort(
                "a worker process ended: killed by the system or by somebody, perhaps for want of memory",
                hint="give the same command again, perhaps with fewer --workers: it goes on where it stopped",
            ) from error
        finally:
            for process in multiprocessing.active_children():  # they hold nothing that could be lost
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


_answering: Answering | None = None


def _open(opening: Opening, suffix: str) -> None:
    global _answering  # noqa: PLW0603 - the one engine of this process
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    _answering = Answering(opening, FORMS[suffix]())


def _answer(chunk: Chunk) -> Answered:
    assert _answering is not None
    return _answering.answer(chunk)
