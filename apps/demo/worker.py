"""Work in a process of its own, with limits of time, processor time and memory; it can be stopped at any moment.

A parent starts `Worker()` and asks it to call functions by name. The child keeps a dict, its state, from one call to the next,
so that what was opened stays open. Both sides speak JSON lines, each followed by the raw bytes of the arrays it announces:
nothing that a process which reads strangers' files might send back is executed here. When the parent ends, or forgets the
worker, the child ends, and with it every process it has started (apps.demo.group).

    with Worker(Limits(memory_bytes=4 * 10**9)) as worker:
        answer = worker.ask("apps.demo.jobs:open_bundle", {"path": "artifacts/mnist-mlp"}, seconds=30)

A task is a function `task(job: Job) -> Answer | dict`; errors of kit's tree arrive as what they are.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from apps.demo import group
from kit import errors
from kit.errors import KitError, MemoryShort, Unavailable, UsageError
from kit.system.progress import OnProgress, silent
from kit.tensors import Tensors

Message = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""Plain JSON values, and arrays by name."""

_GLANCE_SECONDS = 0.1
_MOST_ARRAYS = 256
_MOST_ARRAY_BYTES = 2**30
_LONGEST_LINE = 2**26
_KINDS = frozenset({"progress", "done", "error"})
_OUT_OF_CPU = int(getattr(signal, "SIGXCPU", 0)) or 24


@dataclass(frozen=True)
class Answer:
    """What a task gives back: plain JSON values, and arrays by name."""

    told: dict[str, Any] = field(default_factory=dict)
    arrays: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What a task is given, in the child.

    Attributes:
        asked: Plain JSON values.
        arrays: By name.
        state: Kept from one call to the next.
        on_progress: Tells the parent what is being done, and its share of all.
    """

    asked: dict[str, Any]
    arrays: Tensors
    state: dict[str, Any]
    on_progress: OnProgress


class _ReportedError(Exception):
    """Carries an error that the child told, after which it waits for the next question."""

    def __init__(self, error: KitError) -> None:
        super().__init__(str(error))
        self.error = error


class WorkerStopped(Unavailable):
    """The process was stopped, ended by itself, or took longer than it may."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a worker and all processes it starts may take; 0 for as much as there is.

    Attributes:
        memory_bytes: All of them together, while a question is answered. On Linux the system refuses each twice as much.
        cpu_seconds: Of processor time, each of them, from its start; where the system can limit it.
        gives_way: Whether other processes come first where processors are short, on POSIX systems.
    """

    memory_bytes: int = 0
    cpu_seconds: int = 0
    gives_way: bool = False

    def __post_init__(self) -> None:
        if self.memory_bytes < 0 or self.cpu_seconds < 0:
            raise ValueError("a limit is 0 or more")


NO_LIMITS = Limits()


class Worker:
    """A child process that calls functions by name, one at a time; started at once, ended beyond its `limits`."""

    def __init__(self, limits: Limits = NO_LIMITS) -> None:
        self._limits = limits
        # By its name, not as a script: tasks import this module as well, and must get the same classes.
        asked = f"{os.getpid()}, {limits.memory_bytes}, {limits.cpu_seconds}, {limits.gives_way}"
        self._process = group.start([sys.executable, "-P", "-c", f"from {__name__} import serve; serve({asked})"])
        self._answers: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=_read_all, args=(self._process.stdout, self._answers), daemon=True).start()
        self._asking = threading.Lock()
        self._end = weakref.finalize(self, _end, self._process)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        alive = self._process.poll() is None
        if not alive:
            self.stop()  # what it has started may outlive it
        return alive

    def ask(
        self,
        task: str,
        values: dict[str, Any] | None = None,
        arrays: Tensors | None = None,
        *,
        seconds: float = math.inf,
        on_progress: OnProgress = silent,
    ) -> Answer:
        """Call a task in the child and wait for its answer.

        Args:
            task: `module:function`.
            values: Plain JSON values.
            arrays: Numpy arrays of plain dtypes, by name.
            seconds: The longest it may take; the process is ended then.
            on_progress: Told what the task tells.

        Raises:
            WorkerStopped: It took too long or too much processor time, was stopped, or ended.
            MemoryShort: It took more memory than it may.
            KitError: What the task raised, of the same class.
        """
        with self._asking:
            try:
                return self._answer({"task": task, "values": values or {}}, arrays or {}, seconds, on_progress)
            except _ReportedError as reported:
                raise reported.error from None
            except BaseException:  # whoever stops listening must not get this answer to the next question
                self.stop()
                raise

    def _answer(self, question: dict[str, Any], arrays: Tensors, seconds: float, on_progress: OnProgress) -> Answer:
        try:
            _write(self._pipe(), question, arrays)
        except UsageError as error:  # nothing of it was sent
            raise _ReportedError(error) from error
        except (OSError, ValueError) as error:
            raise WorkerStopped("the process has ended", hint="try again") from error
        until = time.monotonic() + seconds
        while True:
            found = self._next(until, seconds)
            if found is None:
                continue
            message, given = found
            if message["kind"] == "progress":
                share = message["share"]
                on_progress(str(message["what"]), None if share is None else float(share))
            elif message["kind"] == "error":
                raise _ReportedError(_raised(message))
            else:
                return Answer(message["values"], given)

    def stop(self) -> None:
        """End the process and all it has started now; whoever waits for it is told."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None  # asked for above
        return self._process.stdin

    def _next(self, until: float, seconds: float) -> Message | None:
        """Return the next message; None when it is time to look at the clock and the memory again."""
        if time.monotonic() > until:
            raise WorkerStopped(f"it took longer than {seconds:g} s and was ended")
        most = self._limits.memory_bytes
        if most and group.resident_bytes(self._process.pid) > most:
            raise MemoryShort(f"it took more than {most / 1e9:.1f} GB of memory and was ended")
        try:
            found = self._answers.get(timeout=_GLANCE_SECONDS)
        except queue.Empty:
            return None
        if found is None:
            self.stop()
            self._answers.put(None)  # for whoever asks next
            code = self._process.returncode
            if code == -_OUT_OF_CPU:
                raise WorkerStopped(f"it took more than {self._limits.cpu_seconds} s of processor time and was ended")
            raise WorkerStopped(f"the process ended with code {code}", hint="try again")
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    group.end(process)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def _read_all(pipe: IO[bytes], answers: queue.SimpleQueue[Message | None]) -> None:
    """Pass on all that the child says; None when it says no more, or something that is no message."""
    try:
        with contextlib.suppress(Exception):  # what is no message ends the talk, whatever is wrong with it
            while (found := _read(pipe)) is not None and found[0].get("kind") in _KINDS:
                answers.put(found)
    finally:
        answers.put(None)


def _write(pipe: IO[bytes], message: dict[str, Any], arrays: Tensors | None = None) -> None:
    plain = {name: np.asarray(one, order="C") for name, one in (arrays or {}).items()}
    _refuse_large(plain)
    told = [{"name": name, "dtype": one.dtype.str, "shape": one.shape} for name, one in plain.items()]
    line = json.dumps({**message, "arrays": told})  # what cannot be said fails before anything is written
    pipe.write(line.encode() + b"\n")
    for one in plain.values():
        pipe.write(one.reshape(-1).view(np.uint8).data if one.size else b"")
    pipe.flush()


def _refuse_large(arrays: Tensors) -> None:
    large = next((name for name, one in arrays.items() if one.nbytes > _MOST_ARRAY_BYTES), None)
    if large is not None:
        raise UsageError(f"{large} has {arrays[large].nbytes:,} bytes, more than the {_MOST_ARRAY_BYTES:,} that fit")
    if len(arrays) > _MOST_ARRAYS:
        raise UsageError(f"{len(arrays)} arrays are more than the {_MOST_ARRAYS} that fit into one question")


def _read(pipe: IO[bytes]) -> Message | None:
    """Return a message and its arrays, None at the end; raises ValueError if it is no message."""
    line = pipe.readline(_LONGEST_LINE)
    if not line:
        return None
    message = json.loads(line)
    arrays: dict[str, NDArray[Any]] = {}
    if len(message["arrays"]) > _MOST_ARRAYS:
        raise ValueError("too many arrays")
    for one in message["arrays"]:
        dtype, shape = np.dtype(str(one["dtype"])), tuple(map(int, one["shape"]))
        if dtype.hasobject:
            raise ValueError("no plain array")
        size = dtype.itemsize * math.prod(shape)
        if not 0 <= size <= _MOST_ARRAY_BYTES:
            raise ValueError("an array that is too large")
        data = pipe.read(size)
        arrays[str(one["name"])] = np.frombuffer(data, dtype).reshape(shape)
    return message, arrays


def _raised(message: dict[str, Any]) -> KitError:
    """Return the error of kit's tree that the child named; its code stands for it where the class is not kit's own."""
    kind = getattr(errors, str(message["name"]), None)
    if not (isinstance(kind, type) and issubclass(kind, KitError)):
        kind = KitError
    return kind(str(message["text"]), hint=str(message["hint"]))


def serve(parent: int, memory_bytes: int, cpu_seconds: int, gives_way: bool) -> None:
    """Answer the process `parent`, within `Limits`, until it says no more. What a task prints is discarded."""
    # stdout carries the answers
    group.end_with(parent)
    answers, questions = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    _limit(memory_bytes, cpu_seconds)
    if gives_way:
        group.give_way()
    state: dict[str, Any] = {}

    def progress(what: str, share: float | None = None, /) -> None:
        _write(answers, {"kind": "progress", "what": what, "share": share})

    while (found := _read(questions)) is not None:
        message, arrays = found
        try:
            module, name = message["task"].split(":")
            done = getattr(importlib.import_module(module), name)(Job(message["values"], arrays, state, progress))
            answer = done if isinstance(done, Answer) else Answer(done)
            _write(answers, {"kind": "done", "values": answer.told}, answer.arrays)
        except KitError as error:
            _write(answers, {"kind": "error", "name": type(error).__name__, "text": str(error), "hint": error.hint})
        except MemoryError:
            text = "there is not enough memory for it"
            _write(answers, {"kind": "error", "name": "MemoryShort", "text": text, "hint": "try something smaller"})
        except Exception as error:  # noqa: BLE001 - the border: a defect must reach the parent as words
            text = f"a defect of kit: {type(error).__name__}: {error}"
            _write(answers, {"kind": "error", "name": "KitError", "text": text, "hint": "please report it"})


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Have the system refuse more, where it can; libraries ask for more memory than they use, so it gets twice that."""
    if sys.platform == "win32":
        return
    import resource

    if cpu_seconds:  # the processes it starts inherit it; a second later the system kills what did not listen
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    if memory_bytes and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (2 * memory_bytes, 2 * memory_bytes))
