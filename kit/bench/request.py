"""What is asked of the bench, checked before anything is opened."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from kit.bench.entries import Contender
from kit.bench.measure import Plan
from kit.bench.scenarios import Load, Scenario
from kit.choices import Mode, Provider
from kit.errors import UsageError
from kit.runtime import registry


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        providers: Where; None for every provider that works here.
        variants: Ids; None for all.
        runtimes: Names of kit.runtime.registry, or `all`.
        batch_sizes: Samples in one call; None for what suits the scenario.
        sweep: Double the batch size until throughput no longer grows.
        load: How queries arrive.
        threads: Threads one operator may use.
        device_id: Index of the GPU.
        allow_fallback: Measure on the CPU what cannot run where it was asked to, and mark those rows.
        data_dir: Where labelled data lies.
        plan: How long.
        cold: Measure fresh processes, from their start to the first prediction, and nothing else.
        profile: Measure where the time goes, by node, and write traces into this folder; nothing else.
        modes: Where input and output lie.
        tf32: Let a GPU round the inputs of float32 products to 10 bits.
        cuda_graph: Record the kernels of each batch size once and replay them, on CUDA.
        gpu_memory_limit_bytes: The most ONNX Runtime may take of a GPU's memory.
        contenders: Measure these alone, each opened in its own way, in place of variants, runtimes, providers and threads.
        counts_accuracy: Count accuracy anew where labelled data is at hand; else the manifest's stands in the rows.
    """

    providers: tuple[Provider, ...] | None = None
    variants: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] = (registry.DEFAULT,)
    batch_sizes: tuple[int, ...] | None = None
    sweep: bool = False
    load: Load = dataclasses.field(default_factory=Load)
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False
    data_dir: Path | None = None
    plan: Plan = dataclasses.field(default_factory=Plan)
    cold: bool = False
    profile: Path | None = None
    modes: tuple[Mode, ...] = (Mode.HOST,)
    tf32: bool = False
    cuda_graph: bool = False
    gpu_memory_limit_bytes: int | None = None
    contenders: tuple[Contender, ...] = ()
    counts_accuracy: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, or would change nothing."""
        if self.batch_sizes is not None and (not self.batch_sizes or min(self.batch_sizes) < 1):
            raise UsageError("batch sizes must be 1 or more", hint="use --batch-size 1 for single samples")
        if self.sweep and self.batch_sizes is not None:
            raise UsageError("a sweep chooses its batch sizes itself", hint="leave the others out")
        if self.cold or self.profile is not None:
            self._check_special()
        self._check_gpu()
        offline = self.load.scenario is Scenario.OFFLINE
        if offline and self.batch_sizes is not None and max(self.batch_sizes) > self.load.samples:
            raise UsageError(
                f"Offline serves {self.load.samples:,} samples: no batch of them can be larger",
                hint=f"use --batch-size {self.load.samples} or less",
            )
        if offline and Mode.DEVICE in self.modes:
            raise UsageError(
                "Offline serves more samples than one bound batch holds", hint="use --mode host, or another scenario"
            )
        if self.sweep and self.load.scenario is Scenario.SERVER:
            raise UsageError(
                "a sweep looks for throughput; the Server scenario has the rate it is given",
                hint="use --batch-size 1 or another, or --scenario Offline",
            )

    def _check_gpu(self) -> None:
        """Refuse what no provider that was asked for can do."""
        limited = self.gpu_memory_limit_bytes is not None
        on_gpu = {"--tf32": self.tf32, "--gpu-memory-limit": limited, "--cuda-graph": self.cuda_graph}
        for name, is_asked in on_gpu.items():
            if is_asked and Provider.CUDA not in (self.providers or ()):
                raise UsageError(f"{name} changes nothing without CUDA", hint="add --provider cuda")
        if self.cuda_graph and self.allow_fallback:
            raise UsageError("a CUDA graph holds all nodes or none", hint="leave --allow-fallback out")
        if self.cuda_graph and self.profile is not None:
            raise UsageError("a replayed graph has no nodes to profile", hint="leave --cuda-graph out")

    def _check_special(self) -> None:
        """Refuse what says nothing to fresh processes or to a profiler."""
        if self.cold and self.profile is not None:
            raise UsageError("--cold and --profile are two kinds of figures", hint="ask for one at a time")
        name = "--cold" if self.cold else "--profile"
        if self.load.scenario is not Scenario.SINGLE_STREAM:
            raise UsageError(f"{name} knows no load shape", hint="leave --scenario out")
        if self.modes != (Mode.HOST,):
            raise UsageError(f"{name} hands pixels over from host memory", hint="leave --mode out")
        if self.data_dir is not None:
            raise UsageError(f"{name} counts no accuracy and reads no data", hint="leave --data-dir out")
        if self.cold and (self.sweep or self.batch_sizes not in {None, (1,)}):
            raise UsageError("--cold measures the first prediction, of one sample", hint="leave --batch-size out")
        if self.profile is not None and self.sweep:
            raise UsageError("--profile needs batch sizes by name", hint="use --batch-size 1 or another")
        if self.profile is not None and self.plan.budget_seconds is not None:
            raise UsageError("--profile makes a fixed number of calls, whatever the budget", hint="leave --budget out")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes by name, or those of the scenario."""
        return self.batch_sizes or self.load.default_batch_sizes()

    def described(self) -> dict[str, str]:
        """Return what was asked, as the results keep it; without folders, which are this machine's."""
        budget = self.plan.budget_seconds
        return {
            "providers": " ".join(self.providers) if self.providers else "auto",
            "variants": " ".join(self.variants) if self.variants else "all",
            "runtimes": " ".join(self.runtimes),
            "batch_sizes": "sweep" if self.sweep else " ".join(map(str, self.sizes)),
            "scenario": str(self.load.scenario),
            "rate": f"{self.load.rate:g}" if self.load.rate else "",
            "threads": str(self.threads),
            "device_id": str(self.device_id),
            "modes": " ".join(self.modes),
            "tf32": str(self.tf32),
            "cuda_graph": str(self.cuda_graph),
            "gpu_memory_limit_bytes": str(self.gpu_memory_limit_bytes or ""),
            "allow_fallback": str(self.allow_fallback),
            "rounds": str(self.plan.rounds),
            "turn_ms": f"{self.plan.turn_ms:g}",
            "budget_seconds": f"{budget:g}" if budget else "",
            "kind": "cold" if self.cold else "profile" if self.profile is not None else "warm",
        }
