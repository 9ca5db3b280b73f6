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
import psutil
from numpy.typing import NDArray

from kit.accuracy import accuracy
from kit.bench.meters import PeakMemory
from kit.bench.results import Row, Status
from kit.bundle import Bundle
from kit.bundle.records import Accuracy, Variant
from kit.choices import CPU_FORMATS, Mode, Precision, Provider
from kit.errors import KitError, MemoryShort, Unavailable
from kit.lab import data as datasets
from kit.lab.data import Split
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions, logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner

OnProgress = Callable[[str, float], None]

_NO_TIME = Unavailable("the time was up before it was opened", hint="give more: --budget, or leave other runtimes out")
_BYTES_A_PIXEL = 5  # the pixel itself, and the float32 that the graph makes of it: more is sure to follow


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A variant in a runtime, opened in a way of its own."""

    variant: str
    runtime: str
    options: RunnerOptions
    mode: Mode = Mode.HOST


@dataclass(frozen=True, kw_only=True)
class Field:
    """Who is to stand: every variant in every runtime on every provider, or the contenders that are named.

    Attributes:
        contenders: Those and no others; empty for all.
        modes: Where input and output lie.
        tf32: Let a GPU round the inputs of float32 products.
        cuda_graph: Record and replay the kernels, on CUDA.
        gpu_memory_limit_bytes: The most ONNX Runtime may take of a GPU's memory.
        only_able: Leave out formats whose operators a GPU lacks, there, instead of saying so in a row.
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
    contenders: tuple[Contender, ...] = ()
    modes: tuple[Mode, ...] = (Mode.HOST,)
    tf32: bool = False
    cuda_graph: bool = False
    gpu_memory_limit_bytes: int | None = None
    only_able: bool = False

    @property
    def most_threads(self) -> int:
        """The most threads that anyone uses."""
        return max([self.threads, *(one.options.threads for one in self.contenders)])

    def options(self, provider: Provider) -> RunnerOptions:
        """Return what is asked of a runner there."""
        on_gpu = provider is Provider.CUDA
        return RunnerOptions(
            provider=provider,
            threads=self.threads,
            device_id=self.device_id,
            allow_fallback=self.allow_fallback,
            tf32=self.tf32 and on_gpu,
            cuda_graph=self.cuda_graph and on_gpu,
            gpu_memory_limit_bytes=self.gpu_memory_limit_bytes if on_gpu else None,
        )


@dataclass(frozen=True)
class Entry:
    """A variant in a runtime on a provider: an open runner, or the reason there is none, and the row it fills."""

    row: Row
    runner: Runner | None
    options: RunnerOptions

    @property
    def name(self) -> str:
        """How other rows refer to it."""
        return f"{self.row.variant} {self.row.place}"

    def failed(self, error: KitError) -> Entry:
        """Return the entry without its runner, its row saying why."""
        status = Status.UNAVAILABLE if isinstance(error, Unavailable) else Status.FAILED
        fix = error.hint or f"see what runs here: kit verify {self.row.bundle} --runtime all"
        return Entry(dataclasses.replace(self.row, status=status, reason=str(error), fix=fix), None, self.options)


def entries(bundle: Bundle, field: Field) -> list[Entry]:
    """Return who stands, in the order of the table, none of them open."""
    if field.contenders:
        return [
            Entry(
                _row(bundle, bundle.variant(one.variant), one.runtime, one.options, one.mode, own=True),
                None,
                one.options,
            )
            for one in field.contenders
        ]
    return [
        Entry(_row(bundle, variant, runtime, field.options(provider), mode), None, field.options(provider))
        for mode in field.modes
        for provider in field.providers
        for runtime in field.runtimes
        for variant in field.variants
        if registry.can_run(runtime, variant, provider)
        and not (field.only_able and provider is not Provider.CPU and variant.format in CPU_FORMATS)
    ]


def open_entries(
    bundle: Bundle, field: Field, stack: contextlib.ExitStack, *, time_is_up: Callable[[], bool] = lambda: False
) -> list[Entry]:
    """Open all that can run, strict about the provider; `stack` closes them.

    What takes long is a runtime's first opening, which may import PyTorch: when the time is up no further one is begun.
    """
    opened: list[Entry] = []
    for entry in entries(bundle, field):
        runtimes = {one.row.runtime for one in opened if one.runner}
        if runtimes and entry.row.runtime not in runtimes and time_is_up():
            opened.append(entry.failed(_NO_TIME))
        else:
            opened.append(_open(bundle, entry, stack))
    return opened


def _row(
    bundle: Bundle, variant: Variant, runtime: str, options: RunnerOptions, mode: Mode, *, own: bool = False
) -> Row:
    return Row(
        bundle=bundle.name,
        variant=variant.id,
        precision=variant.precision,
        sha256=variant.artifact.sha256,
        size_bytes=variant.artifact.size_bytes,
        runtime=runtime,
        provider=options.provider,
        batch_size=0,
        threads=options.threads,
        session=options.describe_session() if own or not options.is_usual else "",
        mode=mode,
        status=Status.OK,
        accuracy=variant.accuracy,
        accuracy_source="manifest" if variant.accuracy else "",
    )


def _open(bundle: Bundle, entry: Entry, stack: contextlib.ExitStack) -> Entry:
    row = entry.row
    try:
        with PeakMemory() as memory:
            runner = stack.enter_context(
                registry.open_runner(row.runtime, bundle, bundle.variant(row.variant), entry.options)
            )
    except KitError as error:
        return entry.failed(error)
    return Entry(
        dataclasses.replace(
            row,
            status=Status.FALLBACK if runner.fallback_reason else Status.OK,
            reason=runner.fallback_reason,
            fix=getattr(runner, "fallback_fix", ""),
            ran_on=runner.provider,
            placement=runner.placement.describe() if runner.placement.total else runner.provider.value,
            memory_bytes=memory.added_bytes,
        ),
        runner,
        entry.options,
    )


def count_accuracy(
    bundle: Bundle,
    opened: list[Entry],
    data_dir: Path | None,
    on_progress: OnProgress,
    *,
    time_is_up: Callable[[], bool] = lambda: False,
) -> list[Entry]:
    """Replace the manifest's accuracy by one counted now, where the test images are at hand and the time is."""
    training = bundle.manifest.training
    dataset = datasets.at_hand(training.dataset, data_dir=data_dir) if training else None
    if dataset is None or time_is_up() or not any(entry.runner for entry in opened):
        return opened
    on_progress(f"accuracy on {len(dataset.test):,} images", 0.0)
    baseline = _fp32_logits(bundle, dataset.test)
    return [entry if time_is_up() else _with_accuracy(entry, dataset.name, dataset.test, baseline) for entry in opened]


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
    return Entry(row, entry.runner, entry.options)


def pixels(bundle: Bundle, size: int) -> NDArray[np.uint8]:
    """Return real inputs, the golden samples repeated: a batch uint8 `[size, *input shape]`.

    Raises:
        MemoryShort: So many do not fit into the memory that is free.
    """
    golden = bundle.golden().pixels
    needed, free = size * golden[0].size * _BYTES_A_PIXEL, psutil.virtual_memory().available
    if needed > free:
        raise MemoryShort(
            f"a batch of {size:,} needs {needed / 1e9:,.1f} GB at least, and {free / 1e9:,.1f} GB are free",
            hint="use a smaller --batch-size",
        )
    return np.ascontiguousarray(golden[np.arange(size) % len(golden)])
