"""What is asked of the bench, checked before anything is opened."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from kit.bench import points
from kit.bench.cases import Case, every_case
from kit.bench.measure import Plan
from kit.bench.scenarios import Load, Scenario
from kit.bundle import Bundle
from kit.choices import Mode, Provider
from kit.errors import UsageError
from kit.metrics import Metric
from kit.runtime import providers, registry
from kit.runtime.base import RunnerOptions
from kit.system import serial
from kit.tensors import Signature


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        providers: Where; None for every provider that works here.
        variants: Ids; None for all.
        runtimes: Names of kit.runtime.registry, or `all`.
        points: Sizes of axes by name, `({"batch": 1}, {"batch": 8, "sequence": 128})`. Axes that a point leaves out have
            their usual size, and the batch those that suit the scenario; None for one point without any.
        sweep: Double the size along this axis, the batch until throughput no longer grows; None for no sweep.
        runner: How models are opened. `providers` decide where; what only CUDA knows is left out elsewhere.
        data_dir: Where labelled data lies.
        metric: Count this metric, in place of those that the bundle names.
        cold: Measure fresh processes, from their start to the first prediction, and nothing else.
        profile: Measure where the time goes, by node, and write traces into this folder; nothing else.
        cases: Measure these alone, each opened in its own way, in place of variants, runtimes, providers and runner.
        counts_scores: Count scores if labelled data is at hand; else the manifest's stand in the rows.
    """

    providers: tuple[Provider, ...] | None = None
    variants: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] = (registry.DEFAULT,)
    points: tuple[dict[str, int], ...] | None = None
    sweep: str | None = None
    load: Load = dataclasses.field(default_factory=Load)
    runner: RunnerOptions = dataclasses.field(default_factory=RunnerOptions)
    data_dir: Path | None = None
    metric: Metric | None = None
    plan: Plan = dataclasses.field(default_factory=Plan)
    cold: bool = False
    profile: Path | None = None
    modes: tuple[Mode, ...] = (Mode.HOST,)
    cases: tuple[Case, ...] = ()
    counts_scores: bool = True

    def __post_init__(self) -> None:
        if self.points is not None and not self.points:
            raise UsageError("there is no point to measure", hint="leave the points out for the usual ones")
        if self.sweep is not None:
            self._check_sweep(self.sweep)
        if self.cold or self.profile is not None:
            self._check_special()
        self._check_gpu()
        if self.load.scenario is Scenario.OFFLINE and Mode.DEVICE in self.modes:
            raise UsageError(
                "Offline serves more samples than one bound batch holds",
                hint="measure in host mode, or in another scenario",
            )

    def _check_sweep(self, axis: str) -> None:
        given = self.points or ({},)
        if len(given) > 1 or axis in given[0]:
            raise UsageError(
                f"a sweep over {axis} chooses its sizes itself", hint="give one size for other axes at most"
            )
        if self.load.scenario is Scenario.SERVER:
            raise UsageError(
                "a sweep looks for throughput; the Server scenario has the rate it is given",
                hint="give one size, or choose the scenario Offline",
            )

    def _check_gpu(self) -> None:
        options = self.runner
        for name in ("tf32", "cuda_graph", "gpu_memory_limit_bytes"):
            if getattr(options, name) and Provider.CUDA not in (self.providers or ()) and not self.cases:
                raise UsageError(f"{name} changes nothing without CUDA", hint="measure on the provider cuda")
        if options.bf16 and registry.BF16_RUNTIME not in (self.runtimes or ()) and not self.cases:
            raise UsageError(
                f"bf16 changes nothing without {registry.BF16_RUNTIME}", hint=f"use --runtime {registry.BF16_RUNTIME}"
            )
        if options.cuda_graph and self.profile is not None:
            raise UsageError("a replayed graph has no nodes to profile", hint="leave cuda_graph out")

    def _check_special(self) -> None:
        if self.cold and self.profile is not None:
            raise UsageError("a cold start and a profile are two kinds of figures", hint="ask for one at a time")
        name = "a cold start" if self.cold else "a profile"
        if self.load.scenario is not Scenario.SINGLE_STREAM:
            raise UsageError(f"{name} has no load shape", hint="leave the scenario out")
        if self.modes != (Mode.HOST,):
            raise UsageError(f"{name} takes its inputs from host memory", hint="leave the mode out")
        if self.data_dir is not None or self.metric is not None:
            raise UsageError(f"{name} counts no scores and reads no data", hint="leave data folder and metric out")
        if self.cold and (self.sweep is not None or len(self.points or ()) > 1):
            raise UsageError("a cold start is measured at one size", hint="leave the sizes out, or give one")
        if self.profile is not None and self.sweep is not None:
            raise UsageError("a profile needs sizes by name", hint="give one or more in place of the sweep")
        if self.profile is not None and self.plan.budget_seconds is not None:
            raise UsageError(
                "a profile makes a fixed number of calls, whatever the budget", hint="leave the budget out"
            )

    def points_of(self, signature: Signature) -> tuple[dict[str, int], ...]:
        """Return the size of every axis at every point, for a model; of a sweep, where it begins.

        Raises:
            UsageError: An axis that does not exist, a size that it cannot have, or more samples than a load has.
        """
        usual = (1,) if self.cold else self.load.batch_sizes(signature.axes.get(signature.batch or ""))
        if self.sweep is not None:
            if self.sweep not in signature.dynamic:
                signature.usual_sizes(**{self.sweep: 1})  # raises, and names the axes there are
            usual = usual[:1]
        found = points.points(signature, self.points, usual)
        rows = [1 if signature.batch is None else one[signature.batch] for one in found]
        if self.points is not None and self.load.scenario is Scenario.OFFLINE and max(rows) > self.load.samples:
            raise UsageError(
                f"Offline serves {self.load.samples:,} samples: no batch of them can be larger",
                hint=f"use a batch of {self.load.samples} or less",
            )
        if self.cold and self.points is not None and rows[0] != 1:
            raise UsageError("a cold start ends with the first prediction, of one sample", hint="leave the batch out")
        return found

    def cases_of(self, bundle: Bundle) -> tuple[Case, ...]:
        """Return what is measured of a bundle, in the order of the table.

        Raises:
            UsageError: A variant that the bundle does not have, or a runtime that does not exist.
        """
        if self.cases:
            return tuple(dict.fromkeys(self.cases))
        ids = dict.fromkeys(self.variants or (variant.id for variant in bundle.variants))
        wanted = self.providers or providers.working(device_id=self.runner.device_id)
        if not wanted:
            providers.require(Provider.CPU)
        return every_case(
            tuple(bundle.variant(one) for one in ids) or (bundle.variant(),),
            registry.chosen(self.runtimes, bundle),
            wanted,
            options=self.runner,
            modes=self.modes,
            only_able=self.providers is None,
        )

    def described(self) -> dict[str, str]:
        """Return what was asked, as the results keep it; without folders, which are this machine's."""
        budget = self.plan.budget_seconds
        options = serial.encode(self.runner)
        del options["provider"]
        return {
            "providers": " ".join(self.providers) if self.providers else "auto",
            "variants": " ".join(self.variants) if self.variants else "all",
            "runtimes": " ".join(self.runtimes),
            "points": "; ".join(map(points.described, self.points)) if self.points else "usual",
            "sweep": self.sweep or "",
            "scenario": str(self.load.scenario),
            "rate": f"{self.load.rate:g}" if self.load.rate else "",
            **{name: "" if value is None else str(value) for name, value in options.items()},
            "modes": " ".join(self.modes),
            "metric": self.metric.name if self.metric else "",
            "rounds": str(self.plan.rounds),
            "turn_ms": f"{self.plan.turn_ms:g}",
            "budget_seconds": f"{budget:g}" if budget else "",
            "kind": "cold" if self.cold else "profile" if self.profile is not None else "warm",
        }
