"""The cases of a benchmark: variants in runtimes, each opened in one way, with the row that it fills.

A case that cannot run is one without a runner, whose row says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from numpy.typing import NDArray

from kit.bench.meters import PeakMemory
from kit.bench.points import described
from kit.bench.results import Row, Status
from kit.bench.scores import published
from kit.bundle import Bundle, Variant
from kit.choices import CPU_FORMATS, Mode, Provider
from kit.errors import KitError, MemoryShort, Unavailable
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions
from kit.samples import Samples, nearest
from kit.tensors import Sizes

_NO_TIME = Unavailable("the time was up before it was opened", hint="give a larger budget, or leave other runtimes out")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A variant in a runtime, opened in one way."""

    variant: str
    runtime: str = registry.DEFAULT
    options: RunnerOptions = dataclasses.field(default_factory=RunnerOptions)
    mode: Mode = Mode.HOST


def every_case(
    variants: Sequence[Variant],
    runtimes: Sequence[str],
    providers: Sequence[Provider],
    *,
    options: RunnerOptions | None = None,
    modes: Sequence[Mode] = (Mode.HOST,),
    only_able: bool = False,
) -> tuple[Case, ...]:
    """Return every variant in every runtime on every provider that takes its format, in the order of the table.

    The provider of `options` does not count. `only_able` leaves out formats whose operators a GPU lacks, there.
    """
    return tuple(
        Case(variant=variant.id, runtime=runtime, options=_on(options or RunnerOptions(), provider, runtime), mode=mode)
        for mode in modes
        for provider in providers
        for runtime in runtimes
        for variant in variants
        if registry.can_run(runtime, variant, provider)
        and not (only_able and provider is not Provider.CPU and variant.format in CPU_FORMATS)
    )


def _on(options: RunnerOptions, provider: Provider, runtime: str) -> RunnerOptions:
    """Return the options for a provider and a runtime; what only CUDA, or another runtime, knows is left out."""
    if options.bf16 and runtime != registry.BF16_RUNTIME:
        options = dataclasses.replace(options, bf16=False)
    if provider is Provider.CUDA:
        return dataclasses.replace(options, provider=provider)
    return dataclasses.replace(options, provider=provider, tf32=False, cuda_graph=False, gpu_memory_limit_bytes=None)


@dataclass(frozen=True)
class Subject:
    """What is measured: a bundle, and its golden samples, which every input is made of."""

    bundle: Bundle
    groups: tuple[Samples, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Subject:
        """Read the golden samples of a bundle, once for a whole run."""
        return cls(bundle, bundle.golden())

    def inputs(self, sizes: Sizes) -> dict[str, NDArray[Any]]:
        """Return inputs of these sizes, made of the golden samples whose sizes are nearest.

        Raises:
            MemoryShort: They do not fit into the memory that is free.
        """
        needed, free = self.bundle.signature.nbytes(sizes), psutil.virtual_memory().available
        if needed > free:
            raise MemoryShort(
                f"inputs and outputs of {described(sizes)} take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free",
                hint="measure smaller sizes",
            )
        signature = self.bundle.signature
        return nearest(self.groups, signature, sizes).resized(signature, sizes)

    def rows(self, sizes: Sizes) -> int:
        """Return how many samples one call answers at these sizes."""
        batch = self.bundle.signature.batch
        return 1 if batch is None else sizes.get(batch, 1)


@dataclass(frozen=True)
class OpenCase:
    """A case with its open runner, or the reason there is none, and the row that it fills."""

    subject: Subject
    case: Case
    row: Row
    runner: Runner | None = None

    @property
    def name(self) -> str:
        """How other rows refer to it."""
        return f"{self.row.variant} {self.row.place}"

    @property
    def is_baseline(self) -> bool:
        """Whether this is the bundle's baseline in ONNX Runtime on the CPU."""
        return (
            self.row.variant == self.subject.bundle.manifest.baseline
            and self.row.runtime == registry.DEFAULT
            and self.row.provider is Provider.CPU
        )

    @property
    def variant(self) -> Variant:
        """What it runs."""
        return self.subject.bundle.variant(self.case.variant)

    def open(self) -> Runner:
        """Open the model once more.

        Raises:
            KitError: It cannot run here, or a file was altered.
        """
        return registry.open_runner(self.case.runtime, self.subject.bundle, self.variant, self.case.options)

    def changed(self, **fields: Any) -> OpenCase:
        """Return the case with other fields in its row."""
        return dataclasses.replace(self, row=dataclasses.replace(self.row, **fields))

    def at(self, sizes: Sizes, label: str) -> OpenCase:
        """Return the case with a row for these sizes."""
        return self.changed(sizes=dict(sizes), samples=self.subject.rows(sizes), at=label)

    def failed(self, error: KitError) -> OpenCase:
        """Return the case without its runner, its row saying why."""
        status = Status.UNAVAILABLE if isinstance(error, Unavailable) else Status.FAILED
        fix = error.hint or f"see what runs here: kit verify {self.row.bundle} --runtime all"
        return dataclasses.replace(self.changed(status=status, reason=str(error), fix=fix), runner=None)


def prepare(subject: Subject, cases: Sequence[Case], *, names_session: bool = False) -> list[OpenCase]:
    """Return cases with empty rows, none of them open; with `names_session` every row says how its model is opened."""
    return [OpenCase(subject, case, _row(subject.bundle, case, names_session=names_session)) for case in cases]


def open_all(
    prepared: Sequence[OpenCase], stack: contextlib.ExitStack, *, time_is_up: Callable[[], bool] = lambda: False
) -> list[OpenCase]:
    """Open all that can run, strict about the provider; `stack` closes them.

    What takes long is a runtime's first opening, which may import PyTorch: when the time is up no further one is begun.
    """
    opened: list[OpenCase] = []
    for one in prepared:
        runtimes = {other.row.runtime for other in opened if other.runner}
        if runtimes and one.row.runtime not in runtimes and time_is_up():
            opened.append(one.failed(_NO_TIME))
        else:
            opened.append(_open(one, stack))
    return opened


def _row(bundle: Bundle, case: Case, *, names_session: bool) -> Row:
    variant, options = bundle.variant(case.variant), case.options
    scores = published(variant)
    return Row(
        bundle=bundle.name,
        variant=variant.id,
        precision=variant.precision,
        sha256=variant.graph.sha256,
        size_bytes=variant.size_bytes,
        runtime=case.runtime,
        provider=options.provider,
        threads=options.threads,
        session=options.describe_session() if names_session or not options.is_usual else "",
        mode=case.mode,
        status=Status.OK,
        scores=scores,
        score_source="manifest" if scores else "",
    )


def _open(one: OpenCase, stack: contextlib.ExitStack) -> OpenCase:
    try:
        with PeakMemory() as memory:
            runner = stack.enter_context(one.open())
    except KitError as error:
        return one.failed(error)
    opened = one.changed(
        status=Status.FALLBACK if runner.fallback_reason else Status.OK,
        reason=runner.fallback_reason,
        fix=getattr(runner, "fallback_fix", ""),
        ran_on=runner.provider,
        placement=runner.placement.describe() if runner.placement.total else runner.provider.value,
        memory_bytes=memory.added_bytes,
    )
    return dataclasses.replace(opened, runner=runner)
