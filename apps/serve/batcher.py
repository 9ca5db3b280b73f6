"""What has arrived goes into one call: batches without a timer.

While the model runs, questions wait; when it is free, all that wait and fit each other are one call. An idle model answers at
once. Questions fit each other if they agree in every size but that of the batch axis, or if the model's task says with what
shorter ones are filled up.

```python
batcher = Batcher(run, signature, limits)
answer = await batcher.ask(tensors)  # {"logits": ...}; the batch it ran in is answer.rows_in_call
```
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.serve.refusals import full, late
from kit.runtime.base import joins
from kit.tensors import Signature, Tensors, along

_MOST_KINDS = 256
_LEAST_SWEEP = 0.005

Run = Callable[[Tensors], dict[str, NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds a model's queue.

    Attributes:
        most_rows: Samples in one call.
        most_waiting: Questions that wait; the next one is refused.
        timeout: Seconds until a question that has not run is refused; None for never.
        delay: Seconds to wait for others after the first question; 0 for none.
    """

    most_rows: int = 64
    most_waiting: int = 1024
    timeout: float | None = 30.0
    delay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How shorter questions are filled up to share a call: along `axis`, each input with its value."""

    axis: str
    values: Mapping[str, float]


@dataclass(slots=True, eq=False)
class Answer:
    """Outputs of one question by name, samples of the whole call, the time it waited, and the time of the call."""

    outputs: Tensors
    rows_in_call: int
    queue_us: float
    run_us: float

    def timing(self) -> bytes:
        """Return it as the header Server-Timing has it, in milliseconds."""
        return b"queue;dur=%.3f, model;dur=%.3f" % (self.queue_us / 1e3, self.run_us / 1e3)


@dataclass(slots=True, eq=False)
class _Waiting:
    tensors: Tensors
    rows: int
    kind: Any
    future: asyncio.Future[Answer]
    arrived_ns: int = field(default_factory=perf_counter_ns)
    deadline: float = 0.0


class Batcher:
    """The queue of one model. Lives in one event loop.

    Args:
        run: Computes a call; in the event loop, or in `executor`.
        signature: Of the model.
        limits: Of the queue.
        executor: Where calls run; None: in the event loop, which is right for calls of some microseconds alone.
        padding: How sizes other than the batch are evened out; None for not at all.
        on_call: Told of the rows and microseconds of each call.
    """

    def __init__(
        self,
        run: Run,
        signature: Signature,
        limits: Limits,
        *,
        executor: Executor | None = None,
        padding: Padding | None = None,
        on_call: Callable[[int, float], None] = lambda _rows, _us: None,
    ) -> None:
        self._run = run
        self._signature = signature
        self._limits = limits
        self._executor = executor
        self._padding = padding
        self._on_call = on_call
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._is_busy = False
        self._is_planned = False
        self._sweep: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._kinds: dict[Any, tuple[Any, int]] = {}
        self._joins = (
            signature.batch is not None
            and joins(signature)
            and all(signature.batch in spec.shape for spec in signature.inputs)  # no question's value is another's
        )
        axis = signature.axes[signature.batch] if self._joins and signature.batch else None
        self._places = (
            {spec.name: spec.shape.index(signature.batch) for spec in signature.outputs} if self._joins else {}
        )
        self._most_rows = min(limits.most_rows, axis.most or limits.most_rows) if axis else 1

    @property
    def waiting(self) -> int:
        """Questions that have not begun to run."""
        return len(self._waiting)

    def submit(self, tensors: Tensors) -> asyncio.Future[Answer]:
        """Take a question; its answer is the future's. A cancelled future is not computed.

        Raises:
            UsageError: The tensors do not fit the signature.
            Refused: 503: too many wait.
        """
        kind, rows = self._kind_of(tensors)
        if len(self._waiting) >= self._limits.most_waiting:
            self._drop_cancelled()
            if len(self._waiting) >= self._limits.most_waiting:
                raise full("too many requests wait for this model")
        item = _Waiting(tensors, rows, kind, self._loop.create_future())
        timeout = self._limits.timeout
        if timeout is not None:
            item.deadline = perf_counter() + timeout
            if self._sweep is None:
                self._sweep = self._loop.call_later(timeout, self._refuse_late)
        self._waiting.append(item)
        self._idle.clear()
        if not self._is_busy and not self._is_planned:
            self._is_planned = True
            if self._limits.delay:
                self._loop.call_later(self._limits.delay, self._next)
            else:
                self._loop.call_soon(self._next)
        return item.future

    async def ask(self, tensors: Tensors) -> Answer:
        """Return the answer to a question; raises as `submit` does, and Refused 504 at the deadline."""
        return await self.submit(tensors)

    async def drained(self) -> None:
        """Wait until every question that was taken is answered."""
        await self._idle.wait()

    def _kind_of(self, tensors: Tensors) -> tuple[Any, int]:
        """Return what questions must share to share a call, and the rows; held to the signature once for each shape."""
        shapes = tuple([(name, array.shape, array.dtype) for name, array in tensors.items()])
        found = self._kinds.get(shapes)
        if found is None:
            sizes = self._signature.check(tensors)
            batch = self._signature.batch
            rows = 1 if batch is None else sizes.pop(batch)
            if self._padding is not None and self._padding.axis in sizes:
                sizes[self._padding.axis] = sizes[self._padding.axis].bit_length()  # at most twice its own length
            kind = tuple(sorted(sizes.items())) if self._joins and rows else None
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            found = self._kinds[shapes] = kind, rows
        return found

    def _drop_cancelled(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.future.done())

    def _refuse_late(self) -> None:
        self._sweep = None
        now = perf_counter()
        kept: deque[_Waiting] = deque()
        for one in self._waiting:
            if one.future.done():
                continue
            if one.deadline <= now:
                one.future.set_exception(late())
            else:
                kept.append(one)
        self._waiting = kept
        if kept:
            self._sweep = self._loop.call_later(max(kept[0].deadline - now, _LEAST_SWEEP), self._refuse_late)
        self._mark_idle()

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows = 0
        waiting = self._waiting
        while waiting:
            one = waiting.popleft()
            if one.future.done():
                continue
            if not taken:
                taken.append(one)
                rows = one.rows
                if one.kind is None:
                    break
            elif one.kind == taken[0].kind and rows + one.rows <= self._most_rows:
                taken.append(one)
                rows += one.rows
            else:
                left.append(one)
            if rows >= self._most_rows:
                break
        if left:
            left.extend(waiting)
            self._waiting = left
        return taken

    def _next(self) -> None:
        self._is_planned = False
        if self._is_busy:
            return
        taken = self._take()
        if not taken:
            self._mark_idle()
            return
        started = perf_counter_ns()
        self._is_busy = True
        if self._executor is None:
            try:
                outputs: Any = self._call([one.tensors for one in taken])
            except Exception as error:  # noqa: BLE001 - each question gets it, and the queue goes on
                outputs = error
            self._deliver(taken, outputs, started)
        else:
            running = self._loop.run_in_executor(self._executor, self._call, [one.tensors for one in taken])
            running.add_done_callback(lambda done: self._deliver(taken, done.exception() or done.result(), started))

    def _deliver(self, taken: Sequence[_Waiting], outputs: Any, started_ns: int) -> None:
        run_us = (perf_counter_ns() - started_ns) / 1e3
        rows = sum(one.rows for one in taken)
        self._is_busy = False
        self._on_call(rows, run_us)
        if isinstance(outputs, BaseException) and len(taken) > 1:
            self._alone(taken)  # one question's values must not fail another's
        else:
            start = 0
            for one in taken:
                if not one.future.done():
                    if isinstance(outputs, BaseException):
                        one.future.set_exception(outputs)
                    else:
                        own = outputs if len(taken) == 1 else self._part(outputs, start, one)
                        queue_us = (started_ns - one.arrived_ns) / 1e3
                        one.future.set_result(Answer(own, rows, queue_us, run_us))
                start += one.rows
        if self._waiting:
            self._is_planned = True
            self._loop.call_soon(self._next)
        else:
            self._mark_idle()

    def _alone(self, taken: Sequence[_Waiting]) -> None:
        for one in taken:
            one.kind = None
        self._waiting.extendleft(reversed(taken))

    def _call(self, pieces: Sequence[Tensors]) -> dict[str, NDArray[Any]]:
        if len(pieces) == 1:
            return self._run(pieces[0])
        return self._run(self._joined(pieces))

    def _joined(self, pieces: Sequence[Tensors]) -> dict[str, NDArray[Any]]:
        batch = self._signature.batch
        together = {}
        for spec in self._signature.inputs:
            parts = [piece[spec.name] for piece in pieces]
            if self._padding is not None and self._padding.axis in spec.shape:
                parts = filled_up(parts, spec.shape.index(self._padding.axis), self._padding.values[spec.name])
            together[spec.name] = np.concatenate(parts, axis=spec.shape.index(batch))
        return together

    def _part(self, outputs: Tensors, start: int, one: _Waiting) -> dict[str, NDArray[Any]]:
        """Return the answer to one question of a call: its rows, and of padded axes its own length."""
        rows = slice(start, start + one.rows)
        own = {name: along(outputs[name], place, rows) for name, place in self._places.items()}
        if self._padding is None:
            return own
        axis = self._padding.axis
        filled = next(spec for spec in self._signature.inputs if axis in spec.shape)
        length = one.tensors[filled.name].shape[filled.shape.index(axis)]
        for spec in self._signature.outputs:
            if axis in spec.shape:
                place: list[Any] = [slice(None)] * spec.shape.index(axis)
                own[spec.name] = own[spec.name][(*place, slice(length))]
        return own

    def _mark_idle(self) -> None:
        if not self._waiting and not self._is_busy:
            self._idle.set()


def filled_up(parts: Sequence[NDArray[Any]], axis: int, value: float) -> list[NDArray[Any]]:
    """Return arrays of the size of the largest along an axis, the rest filled with a value."""
    longest = max(part.shape[axis] for part in parts)
    filled = []
    for part in parts:
        if part.shape[axis] == longest:
            filled.append(part)
            continue
        shape = list(part.shape)
        shape[axis] = longest
        whole = np.full(shape, value, part.dtype)
        whole[(*[slice(None)] * axis, slice(part.shape[axis]))] = part
        filled.append(whole)
    return filled
