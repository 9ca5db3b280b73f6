"""Answers as their items come: the first at once, by this process; if there are many, by others on all cores after it.

with kit.load("mnist-mlp") as engine:
    for answer in stream.answers(engine, engine.task.read("scans/"), helpers=Helpers(opening, 8)):
        print(answer.name, answer.prediction)
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from kit.bulk.answering import Opening
from kit.bulk.crew import end_with_parent, pool
from kit.engine import Engine
from kit.errors import KitError
from kit.tasks.base import Prediction

PATIENCE_SECONDS = 2.0
"""After so long helpers are started: they need about a second to open the model."""

_AHEAD = 4  # items for each helper that are on their way


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an item: a prediction, or why there is none."""

    name: str
    prediction: Prediction | None = None
    problem: KitError | None = None


@dataclass(frozen=True, kw_only=True)
class Helpers:
    """Processes that answer beside this one, started if there are items left after `patience_seconds`."""

    opening: Opening
    count: int
    patience_seconds: float = PATIENCE_SECONDS


def answers(engine: Engine, items: Iterator[tuple[str, Any]], *, helpers: Helpers | None = None) -> Generator[Answer]:
    """Give the answers to items in their order, each as soon as it is known; without helpers this process answers all.

    `items` are as the task reads them, each with its name; in place of what cannot be read, the error.

    Raises:
        MemoryShort: A helper was ended from outside.
    """
    started = time.monotonic()
    for name, item in items:
        yield _answered(engine, name, item)
        if helpers is not None and time.monotonic() - started >= helpers.patience_seconds:
            yield from _helped(engine, items, helpers)
            return


def _answered(engine: Engine, name: str, item: Any) -> Answer:
    found = _predicted(engine, item)
    return Answer(name, problem=found) if isinstance(found, KitError) else Answer(name, found)


def _predicted(engine: Engine, item: Any) -> Prediction | KitError:
    if isinstance(item, KitError):
        return item
    try:
        return engine.predict([item])
    except KitError as error:
        return error


def _helped(engine: Engine, items: Iterator[tuple[str, Any]], helpers: Helpers) -> Iterator[Answer]:
    """Go on with helpers; until one of them is there, and if it cannot be, without."""
    first = next(items, None)
    if first is None:
        return
    items = itertools.chain([first], items)
    with pool(helpers.count, _open, (helpers.opening,), hint="give fewer items at once, or -o FILE") as executor:
        there = executor.submit(_is_open)
        while not there.done():
            following = next(items, None)
            if following is None:
                return
            yield _answered(engine, *following)
        if there.result():
            yield from _of_helpers(executor, items, _AHEAD * helpers.count)
            return
    for name, item in items:  # it does not open in another process, for want of memory perhaps: this one goes on
        yield _answered(engine, name, item)


def _of_helpers(executor: ProcessPoolExecutor, items: Iterator[tuple[str, Any]], most: int) -> Iterator[Answer]:
    waiting: collections.deque[tuple[str, Future[Prediction | KitError]]] = collections.deque()
    for name, item in items:
        waiting.append((name, executor.submit(_predict, item)))
        while waiting and (len(waiting) > most or waiting[0][1].done()):
            yield _awaited(*waiting.popleft())
    for name, future in waiting:
        yield _awaited(name, future)


def _awaited(name: str, future: Future[Prediction | KitError]) -> Answer:
    found = future.result()
    return Answer(name, problem=found) if isinstance(found, KitError) else Answer(name, found)


_engine: Engine | KitError | None = None


def _open(opening: Opening) -> None:
    global _engine  # noqa: PLW0603 - the one engine of this process
    end_with_parent()
    try:
        _engine = opening.open()
    except KitError as error:  # raised here, it would be said to be a process that was killed
        _engine = error


def _is_open() -> bool:
    return isinstance(_engine, Engine)


def _predict(item: Any) -> Prediction | KitError:
    if isinstance(_engine, KitError):
        raise _engine
    assert _engine is not None
    return _predicted(_engine, item)
