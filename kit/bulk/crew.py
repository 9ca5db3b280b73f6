"""Who answers chunks on this machine: this process, or several, each with an engine of its own."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from kit.bulk.answering import Answered, Answering, Opening
from kit.bulk.chunks import Chunk, Reading
from kit.bulk.forms import FORMS
from kit.errors import KitError, MemoryShort

_MOST_ON_WINDOWS = 61
_starting = threading.Lock()  # two pools that start at once would take each other's processes for their own


class Crew(Protocol):
    """Answers chunks in their order, taking new ones only as fast as they are answered; `notes` are for a person."""

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
    """Some processes of this machine. What is on its way is bounded, so that memory is."""

    notes: Sequence[str] = ()

    def __init__(self, opening: Opening, suffix: str, count: int) -> None:
        self._opening, self._suffix = opening, suffix
        self.workers = min(count, _MOST_ON_WINDOWS) if sys.platform == "win32" else count

    def answers(self, reading: Reading) -> Generator[Answered]:
        """Give the answers to each chunk.

        Raises:
            MemoryShort: A process was ended from outside.
        """
        hint = "give the same command again, perhaps with fewer --workers: it goes on where it stopped"
        waiting: collections.deque[Future[Answered]] = collections.deque()
        with pool(self.workers, _open, (self._opening, self._suffix), hint=hint) as executor:
            for chunk in reading.left:
                waiting.append(executor.submit(_answer, chunk))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@contextlib.contextmanager
def pool(
    count: int, initializer: Callable[..., None], arguments: tuple[Any, ...], *, hint: str
) -> Iterator[ProcessPoolExecutor]:
    """Start processes that Ctrl-C does not reach, and end them at once when the block is left.

    Raises:
        MemoryShort: A process was ended from outside; `hint` says what to do then.
    """
    own: set[BaseProcess] = set()
    executor = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would inherit the runtime's threads, broken
        initializer=initializer,
        initargs=arguments,
    )
    try:
        with _starting, _interrupts_held():
            others = set(multiprocessing.active_children())
            for _ in range(count):  # each starts a process, since none is idle yet
                executor.submit(_nothing)
            own = set(multiprocessing.active_children()) - others
        yield executor
    except BrokenProcessPool as error:
        raise MemoryShort(
            "a worker process ended: killed by the system or by somebody, perhaps for want of memory",
            hint=f'{hint}; a script of your own needs `if __name__ == "__main__":` around its call',
        ) from error
    finally:
        for process in own:  # they hold nothing that could be lost
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait for a moment: what is started meanwhile is started whole, and never gets it where it can be masked."""
    if threading.current_thread() is not threading.main_thread():  # which is the one that is interrupted
        with _masked():
            yield
        return
    noted: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        with _masked():
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if handler is None else handler)
    if noted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _masked() -> Iterator[None]:
    """Keep SIGINT from this thread and from the processes that it starts."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else it is started now, and lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _nothing() -> None:
    """Do nothing."""


_answering: Answering | KitError | None = None


def _open(opening: Opening, suffix: str) -> None:
    global _answering  # noqa: PLW0603 - the one engine of this process
    end_with_parent()
    try:
        _answering = Answering(opening, FORMS[suffix]())
    except KitError as error:  # raised here, it would be said to be a process that was killed
        _answering = error


def end_with_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end when that does, however it was ended."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(chunk: Chunk) -> Answered:
    if isinstance(_answering, KitError):
        raise _answering
    assert _answering is not None
    return _answering.answer(chunk)
