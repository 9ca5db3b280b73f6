"""One version of a model that is served: an open engine, proved on its golden samples, and the queue in front of it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, cast

import numpy as np

from apps.serve.batcher import Batcher, Limits, Padding, filled_up
from apps.serve.metrics import ModelFigures
from apps.serve.refusals import Refused
from kit import engine as engines
from kit import verify
from kit.engine import Engine
from kit.errors import BundleInvalid, KitError, PackageMissing
from kit.runtime.base import Runner, run_in_batches
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import Signature, Tensors

log = logging.getLogger("kit.serve")

INLINE_UP_TO_US = 300.0
"""Calls up to this run in the event loop: handing them to a thread would cost about as much, and all wait for them anyway."""

_TIMED_CALLS = 7


@dataclass(frozen=True, kw_only=True)
class How:
    """How models are opened; None: as `kit tune` chose here, or the library's default."""

    variant: str | None = None
    runtime: str | None = None
    provider: str | None = None
    threads: int | None = None
    device_id: int = 0
    allow_fallback: bool = False
    limits: Limits = field(default_factory=Limits)


class Model:
    """A model that answers. Made by `opened` in any thread; `start` in the event loop gives it its queue.

    Attributes:
        call_us: Median time of a call of the usual sizes, measured when it was opened.
        proof: What the golden samples said, for the log.
        items: The thread in which its task reads items and answers: tasks are for one thread at a time.
    """

    def __init__(self, name: str, version: str, engine: Engine, how: How) -> None:
        self.name = name
        self.version = version
        self.engine = engine
        self.signature: Signature = engine.signature
        self.how = how
        self.head = {"model_name": name, "model_version": version}
        self.sha256 = engine.variant.graph.sha256
        self.task = _task(engine)
        self.padding: Padding | None = None
        self.call_us = math.inf
        self.proof = ""
        self.batcher: Batcher | None = None
        self.figures: ModelFigures | None = None
        self._executor: ThreadPoolExecutor | None = None
        self.items = ThreadPoolExecutor(1, thread_name_prefix=f"kit-items-{name}")
        self._users = 0
        axis = self.signature.axes[self.signature.batch] if self.signature.batch else None
        self._is_plain = axis is None or (axis.least <= 1 and axis.multiple_of == 1)

    @classmethod
    def opened(cls, name: str, version: str, path: Path | str, how: How) -> Model:
        """Open a bundle or a ready .onnx, prove it on its golden samples, and time it.

        Raises:
            VerifyFailed: It does not give here what its bundle promises.
            KitError: It cannot be opened.
        """
        engine = engines.load(
            path,
            variant=how.variant,
            runtime=how.runtime,
            provider=how.provider,
            threads=how.threads,
            device_id=how.device_id,
            allow_fallback=how.allow_fallback,
        )
        try:
            model = cls(name, version, engine, how)
            golden = engine.bundle.golden()
            model.proof = model._prove(golden)
            model.padding = model._find_padding(golden)
            model.call_us = model._time(golden)
        except BaseException:
            engine.close()
            raise
        return model

    @property
    def is_inline(self) -> bool:
        """Whether calls run in the event loop."""
        return self.call_us <= INLINE_UP_TO_US

    @property
    def queue(self) -> Batcher:
        """Where questions go; there is one after `start`."""
        assert self.batcher is not None
        return self.batcher

    def start(self, figures: ModelFigures) -> None:
        """Begin to take questions, in the running event loop."""
        self.figures = figures
        if not self.is_inline:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"kit-{self.name}")
        self.batcher = Batcher(
            self._answer,
            self.signature,
            self.how.limits,
            executor=self._executor,
            padding=self.padding,
            on_call=figures.on_call,
        )

    @contextlib.contextmanager
    def used(self) -> Iterator[Model]:
        """Keep it open for the length of a block, in the event loop."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1

    @property
    def is_used(self) -> bool:
        """Whether a request still needs it."""
        return self._users > 0

    async def retire(self, pause: Callable[[float], Any]) -> None:
        """Answer what was taken, then close; `pause` is awaited while requests still hold it."""
        while self.is_used:
            await pause(0.01)
        if self.batcher is not None:
            await self.batcher.drained()
        self.close()

    def close(self) -> None:
        """Free the engine and its thread."""
        self.items.shutdown(wait=True, cancel_futures=True)
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self.engine.close()
        self.batcher = None  # which holds the model in turn: what was frozen is freed by counting alone

    def describe(self) -> dict[str, Any]:
        """Return how it runs, for the log and the metrics."""
        return {
            "model": self.name,
            "version": self.version,
            "variant": self.engine.variant.id,
            "runtime": self.engine.runtime,
            "provider": self.engine.provider.value,
            "placement": self.engine.placement.describe(),
            "sha256": self.sha256,
            "call_us": round(self.call_us, 1),
            "runs_in": "the event loop" if self.is_inline else "a thread",
            "pads": "" if self.padding is None else self.padding.axis,
        }

    def _answer(self, tensors: Tensors) -> dict[str, Any]:
        try:
            return self._run(tensors)
        except BundleInvalid as error:  # the runtime's words are for the log: they name its source files, and nodes
            log.warning("not run", extra={"fields": {"model": self.name, "problem": str(error)[:1000]}})
            said = "the model cannot run on these values"
            raise Refused(HTTPStatus.BAD_REQUEST, said, cause="model") from error

    def _run(self, tensors: Tensors) -> dict[str, Any]:
        return self.engine.run(tensors) if self._is_plain else run_in_batches(cast("Runner", self.engine), tensors)

    def _prove(self, golden: tuple[Samples, ...]) -> str:
        answers = [self._run(group.inputs) for group in golden]
        verify.prove(self.engine.bundle, self.engine.variant, golden, answers)
        rows = sum(self.signature.rows(group.inputs) for group in golden)
        return f"{rows} golden samples answered as promised"

    def _find_padding(self, golden: tuple[Samples, ...]) -> Padding | None:
        """Return what the task says of filling up, if the golden samples are answered as promised when filled up."""
        said = getattr(self.task, "padding", None)
        if said is None or self.signature.batch is None:
            return None
        padding = Padding(axis=said[0], values=said[1])
        axis = self.signature.axes[padding.axis]
        try:
            answers: list[Tensors] = []
            for group in golden:
                own = self.signature.sizes(group.inputs)[padding.axis]
                wanted = min(2 * own, axis.most or 2 * own) // axis.multiple_of * axis.multiple_of
                outputs = self._run(self._filled(group.inputs, padding, max(wanted, own)))
                answers.append(self._cut(outputs, padding, own))
            passed = verify.judged(self.engine.bundle, self.engine.variant, golden, answers).passed
        except KitError:
            return None
        return padding if passed else None

    def _filled(self, inputs: Tensors, padding: Padding, size: int) -> Tensors:
        filled = {}
        for spec in self.signature.inputs:
            array = inputs[spec.name]
            if padding.axis in spec.shape:
                place = spec.shape.index(padding.axis)
                shape = list(array.shape)
                shape[place] = size
                array = filled_up([array, np.empty(shape, array.dtype)], place, padding.values[spec.name])[0]
            filled[spec.name] = array
        return filled

    def _cut(self, outputs: Tensors, padding: Padding, size: int) -> Tensors:
        cut = {}
        for spec in self.signature.outputs:
            array = outputs[spec.name]
            if padding.axis in spec.shape:
                array = np.take(array, range(size), axis=spec.shape.index(padding.axis))
            cut[spec.name] = array
        return cut

    def _time(self, golden: tuple[Samples, ...]) -> float:
        inputs = self.signature.take(golden[0].inputs, slice(0, 1)) if self._is_plain else golden[0].inputs
        times = []
        for _ in range(_TIMED_CALLS):
            started = perf_counter_ns()
            self._run(inputs)
            times.append((perf_counter_ns() - started) / 1e3)
        return median(times)


def _task(engine: Engine) -> Task | None:
    """Return the bundle's task; None if no installed package knows it: tensors always work."""
    with contextlib.suppress(PackageMissing):
        return engine.task
    return None


def platform_of(described: Mapping[str, Any]) -> str:
    """Return the protocol's word for what runs a model, such as `onnxruntime_onnx`."""
    return f"{str(described['runtime']).replace('-', '_')}_onnx"
