"""What stands in a bench: a bundle's variants opened in runtimes on providers, each with the row it will fill.

One that cannot run is an entry without a runner, whose row says why. Accuracy is counted here too, where labelled data is
at hand, so that no figure of speed stands without one of accuracy.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit import data as datasets
from kit.accuracy import accuracy
from kit.bench.meters import PeakMemory
from kit.bench.results import Row, Status
from kit.bundle import Bundle
from kit.data import Split
from kit.errors import KitError, Unavailable
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions, logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.spec import Accuracy, Precision, Provider, Variant

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Field:
    """Who is to stand: every variant in every runtime on every provider.

    Attributes:
        threads: Threads one operator may use.
        device_id: Index of the GPU.
        allow_fallback: Let the CPU stand in where a provider cannot run; the row then says so.
    """

    variants: tuple[Variant, ...]
    runtimes: tuple[str, ...]
    providers: tuple[Provider, ...]
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False

    def options(self, provider: Provider) -> RunnerOptions:
        """Return what is asked of a runner there."""
        return RunnerOptions(
            provider=provider, threads=self.threads, device_id=self.device_id, allow_fallback=self.allow_fallback
        )


@dataclass(frozen=True)
class Entry:
    """A variant in a runtime on a provider: an open runner, or the reason there is none, and the row it fills."""

    row: Row
    runner: Runner | None

    @property
    def name(self) -> str:
        """How other rows refer to it."""
        return f"{self.row.variant} {self.row.runtime} {self.row.ran_on or self.row.provider}"

    def failed(self, error: KitError) -> Entry:
        """Return the entry without its runner, its row saying why."""
        status = Status.UNAVAILABLE if isinstance(error, Unavailable) else Status.FAILED
        return Entry(dataclasses.replace(self.row, status=status, reason=str(error), fix=error.hint), None)


def entries(bundle: Bundle, field: Field) -> list[Entry]:
    """Return who stands, in the order of the table, none of them open."""
    return [
        Entry(_row(bundle, variant, runtime, provider, field.threads), None)
        for provider in field.providers
        for runtime in field.runtimes
        for variant in field.variants
        if registry.can_run(runtime, variant)
    ]


def open_entries(bundle: Bundle, field: Field, stack: contextlib.ExitStack) -> list[Entry]:
    """Open all that can run, strict about the provider; `stack` closes them."""
    return [_open(bundle, entry, field.options(entry.row.provider), stack) for entry in entries(bundle, field)]


def _row(bundle: Bundle, variant: Variant, runtime: str, provider: Provider, threads: int) -> Row:
    return Row(
        bundle=bundle.name,
        variant=variant.id,
        precision=variant.precision,
        sha256=variant.artifact.sha256,
        size_bytes=variant.artifact.size_bytes,
        runtime=runtime,
        provider=provider,
        batch_size=0,
        threads=threads,
        mode="host",
        status=Status.OK,
        accuracy=variant.accuracy,
        accuracy_source="manifest" if variant.accuracy else "",
    )


def _open(bundle: Bundle, entry: Entry, options: RunnerOptions, stack: contextlib.ExitStack) -> Entry:
    row = entry.row
    try:
        with PeakMemory() as memory:
            runner = stack.enter_context(
                registry.open_runner(row.runtime, bundle, bundle.variant(row.variant), options)
            )
    except KitError as error:
        return entry.failed(error)
    return Entry(
        dataclasses.replace(
            row,
            status=Status.FALLBACK if runner.fallback_reason else Status.OK,
            reason=runner.fallback_reason,
            ran_on=runner.provider,
            placement=runner.placement.describe() if runner.placement.total else runner.provider.value,
            memory_bytes=memory.added_bytes,
        ),
        runner,
    )


def count_accuracy(bundle: Bundle, opened: list[Entry], data_dir: Path | None, on_progress: OnProgress) -> list[Entry]:
    """Replace the manifest's accuracy by one counted now, where the test images are at hand."""
    training = bundle.manifest.training
    dataset = datasets.at_hand(training.dataset, data_dir=data_dir) if training else None
    if dataset is None or not any(entry.runner for entry in opened):
        return opened
    on_progress(f"accuracy on {len(dataset.test):,} images", 0.0)
    baseline = _fp32_logits(bundle, dataset.test)
    return [_with_accuracy(entry, dataset.name, dataset.test, baseline) for entry in opened]


def _fp32_logits(bundle: Bundle, test: Split) -> NDArray[np.float32] | None:
    """Compute what flips are counted against, even where fp32 itself is not measured."""
    for variant in bundle.variants:
        if variant.precision is Precision.FP32:
            with OnnxRuntimeRunner(bundle.read(variant.artifact)) as runner:
                return logits_of(runner, test.images)
    return None


def _with_accuracy(entry: Entry, name: str, test: Split, baseline: NDArray[np.float32] | None) -> Entry:
    if entry.runner is None:
        return entry
    try:
        logits = logits_of(entry.runner, test.images)
    except KitError as error:
        return entry.failed(error)
    found: Accuracy = accuracy(logits, test.labels, dataset=name, split="test", baseline=baseline)
    right = base64.b64encode(np.packbits(logits.argmax(axis=1) == test.labels).tobytes()).decode()
    row = dataclasses.replace(entry.row, accuracy=found, accuracy_source="live", correct_images=right)
    return Entry(row, entry.runner)


def pixels(bundle: Bundle, size: int) -> NDArray[np.uint8]:
    """Return real inputs, the golden samples repeated: a batch uint8 `[size, *input shape]`."""
    golden = bundle.golden().pixels
    return np.ascontiguousarray(golden[np.arange(size) % len(golden)])
