"""An engine and what it says of a chunk: what runs in each worker, wherever that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from kit import ready, verify
from kit.bulk.chunks import Chunk, printable
from kit.bulk.forms import FIRST, LAST, Form, Record
from kit.bundle import Bundle, with_fresh
from kit.engine import Engine, open_engine
from kit.errors import BundleInvalid, KitError, MemoryShort, Unavailable
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions, joins, run_in_batches
from kit.runtime.choice import choice_for
from kit.samples import Samples
from kit.tasks.base import Prediction, Task
from kit.tensors import Tensors

_CALL_BYTES = 2**19  # of inputs and outputs: convolutions on a CPU like few pictures in a call, small layers many rows
_MOST_ROWS = 1024
_FEW_CLASSES = 100
_PROVED_ROWS = 8
_TEXTS = 32  # in a call: of about one length, so that little is filled up


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How every worker opens the model.

    Attributes:
        origin: Path of a bundle, a packed bundle or a ready .onnx.
        sha256: Of the variant's graph: a worker that finds another one refuses.
        probabilities: Whether a classifier's answers hold those of all classes; None: of a hundred classes or fewer.
    """

    origin: str
    variant: str
    sha256: str
    runtime: str
    options: RunnerOptions
    probabilities: bool | None = None

    @classmethod
    def of_engine(cls, engine: Engine, options: RunnerOptions | None = None) -> Opening:
        """Return how to open an engine once more elsewhere; without `options` as `kit tune` chose, on one thread."""
        chosen = engine.choice.options if engine.choice else RunnerOptions()
        return cls(
            origin=str(engine.bundle.origin),
            variant=engine.variant.id,
            sha256=engine.variant.graph.sha256,
            runtime=engine.runtime,
            options=options or replace(chosen, threads=1),
        )

    @classmethod
    def of(
        cls,
        model: str | Path | None,
        *,
        variant: str | None = None,
        runtime: str | None = None,
        options: RunnerOptions | None = None,
        probabilities: bool | None = None,
    ) -> Opening:
        """Decide once for all workers; what is not asked for is as `kit tune` chose here, on one thread for each worker.

        Raises:
            BundleNotFound, BundleInvalid, UsageError.
        """
        bundle = ready.find(model)
        choice = choice_for(bundle) if variant is None and runtime is None and options is None else None
        if choice is not None:
            variant, runtime, options = choice.variant, choice.runtime, replace(choice.options, threads=1)
        chosen = bundle.variant(variant)
        return cls(
            origin=str(bundle.origin),
            variant=chosen.id,
            sha256=chosen.graph.sha256,
            runtime=runtime or registry.DEFAULT,
            options=options or RunnerOptions(),
            probabilities=probabilities,
        )

    def open(self) -> Engine:
        """Open the model.

        Raises:
            BundleInvalid: The variant is another than when this was decided.
            KitError: It cannot be opened.
        """

        def opened(bundle: Bundle) -> Engine:
            if bundle.variant(self.variant).graph.sha256 != self.sha256:
                raise BundleInvalid(f"{self.origin} has another {self.variant} than when this began", hint="begin anew")
            return open_engine(bundle, self.variant, options=self.options, runtime=self.runtime)

        return with_fresh(ready.find(self.origin), opened)


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a chunk: the answers in the form of the output, and how many of its items have none.

    `first_problem` is name and reason of the first item without an answer; empty if all have one.
    """

    index: int
    rows: int
    refused: int
    content: bytes
    fingerprint: bytes
    first_problem: str = ""


class Answering:
    """An open engine that answers chunks. For one thread.

    Raises:
        BundleInvalid: The variant is not the one that was asked for.
        VerifyFailed: It does not answer here what its bundle promises.
        KitError: It cannot be opened.
    """

    def __init__(self, opening: Opening, form: Form) -> None:
        self.engine = opening.open()
        self._form = form
        try:
            self.task: Task = self.engine.task
            self.has_probabilities = _has_probabilities(self.task, opening.probabilities)
            self._joins = joins(self.engine.signature)
            golden = self._golden()
            self._prove(golden)
            form.columns_of(self._first_answer(golden))
        except BaseException:
            self.engine.close()
            raise

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def answer(self, chunk: Chunk) -> Answered:
        """Return the answers to a chunk, with the reason in the place of each that has none."""
        found: dict[int, Record] = {}
        reasons = {place: _reason(item, None) for place, item in enumerate(chunk.items) if isinstance(item, KitError)}
        for places in self._calls(chunk, [place for place in range(len(chunk.items)) if place not in reasons]):
            for place, answer in zip(places, self._together([chunk.items[place] for place in places]), strict=True):
                if isinstance(answer, str):
                    reasons[place] = answer
                else:
                    found[place] = answer
        rows = [
            {FIRST: name} | ({LAST: reasons[place]} if place in reasons else found[place])
            for place, name in enumerate(chunk.names)
        ]
        first = min(reasons, default=None)
        problem = "" if first is None else f"{chunk.names[first]}: {reasons[first]}"
        return Answered(chunk.index, len(rows), len(reasons), self._form.encode(rows), chunk.fingerprint, problem)

    def _calls(self, chunk: Chunk, places: list[int]) -> Iterator[list[int]]:
        signature = self.engine.signature
        if signature.batch is None or not self._joins:
            most = 1
        elif getattr(self.task, "takes_text", False):
            most = _TEXTS
            places = sorted(places, key=lambda place: len(str(chunk.items[place])))
        else:
            most = min(signature.rows_within(_CALL_BYTES, signature.usual_sizes()), _MOST_ROWS)
        for start in range(0, len(places), most):
            yield places[start : start + most]

    def _together(self, items: Sequence[Any]) -> list[Record | str]:
        """Answer items in one call; one by one if that does not do, so that only those at fault have a reason instead."""
        try:
            return [*self._predicted(items)]
        except (KitError, ValueError, TypeError) as error:
            if isinstance(error, Unavailable) and not isinstance(error, MemoryShort):
                raise  # it is this machine's fault, and no answer to anything
            if len(items) == 1:
                return [_reason(error, items[0])]
        return [record for item in items for record in self._together([item])]

    def _predicted(self, items: Sequence[Any]) -> list[Record]:
        inputs = self.task.encode(items)
        outputs = self._run(inputs)
        return self._records(self.task.decode(outputs, inputs), len(items))

    def _run(self, inputs: Tensors) -> Tensors:
        # Whole multiples that the batch axis asks for are made here; the engine alone would refuse other numbers.
        return run_in_batches(cast("Runner", self.engine), inputs, most_bytes=_CALL_BYTES)

    def _records(self, prediction: Prediction, count: int) -> list[Record]:
        """Return one record for each item; tensors as they are, without the batch."""
        records = prediction.records()
        if type(prediction) is Prediction and self._joins:
            signature, outputs = self.engine.signature, prediction.outputs
            axes = {spec.name: spec.shape.index(signature.batch) for spec in signature.outputs if signature.batch}
            records = [
                {name: np.take(array, row, axis=axes[name]).tolist() for name, array in outputs.items()}
                for row in range(count)
            ]
        if not self.has_probabilities:
            for record in records:
                record.pop("probabilities", None)
        return [{apart(name): value for name, value in record.items()} for record in records]

    def _prove(self, golden: Sequence[Samples]) -> None:
        if golden:
            answers = [self._few_at_a_time(group.inputs) for group in golden]
            verify.prove(self.engine.bundle, self.engine.variant, golden, answers)

    def _few_at_a_time(self, inputs: Tensors) -> Tensors:
        """Run inputs in small calls: what a large one takes of memory is not given back."""
        signature = self.engine.signature
        if signature.batch is None or not self._joins:
            return self._run(inputs)
        return signature.join([self._run(one) for one in signature.split(inputs, _PROVED_ROWS)])

    def _golden(self) -> tuple[Samples, ...]:
        """Return the golden samples; none for a ready model that took none of the inputs that were tried."""
        bundle = self.engine.bundle
        return () if isinstance(bundle, ready.ReadyModel) and not bundle.samples else bundle.golden()

    def _first_answer(self, golden: Sequence[Samples]) -> Record:
        """Return the answer to a golden sample, or to zeros: which columns there are."""
        signature = self.engine.signature
        inputs = signature.take(golden[0].inputs, slice(0, 1)) if golden else signature.zeros(signature.usual_sizes())
        return self._records(self.task.decode(self._run(inputs), inputs), 1)[0]


def _has_probabilities(task: Task, asked: bool | None) -> bool:
    return len(getattr(task, "labels", ())) <= _FEW_CLASSES if asked is None else asked


def apart(name: str) -> str:
    """Return what a value is called in a row: outputs may be called as the columns that every row has."""
    return f"output.{name}" if name in {FIRST, LAST} else name


def _reason(error: Exception, item: Any) -> str:
    """Return why an item has no answer, in the same words whether it came as a path or as bytes: the row names it."""
    said = printable(str(error) or type(error).__name__)
    return said.replace(printable(str(item)), "the picture", 1) if isinstance(item, Path) else said
