"""Bench variants that are not published: side by side, in a bundle that is thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from exporters.workbench import OnStep
from kit import bundle as bundles
from kit.bench.entries import Contender
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Results
from kit.bench.run import bench
from kit.bundle import Bundle
from kit.bundle.records import Variant
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.system import machine


def measure(
    bundle: Bundle,
    variants: Sequence[tuple[Variant, bytes]],
    *,
    batch_sizes: tuple[int, ...],
    threads: int,
    plan: Plan,
    on_step: OnStep = lambda _: None,
) -> Results:
    """Measure variants with their bytes in ONNX Runtime on the CPU, in the same rounds.

    Args:
        bundle: What they take and give, and the pixels they are given.
        variants: The first of fp32 is the baseline.
        batch_sizes: Images in one call.
        threads: Threads one operator may use.
        plan: How long.
        on_step: Told what is being done.
    """
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        trial = bundles.create(
            Path(folder) / bundle.name,
            spec=bundle.spec,
            golden=bundle.golden(),
            tools=machine.tool_versions(),
            variants=tuple(variants),
        )
        options = RunnerOptions(threads=threads)
        request = Request(
            contenders=tuple(
                Contender(variant=one.id, runtime=registry.DEFAULT, options=options) for one in trial.variants
            ),
            batch_sizes=batch_sizes,
            plan=plan,
            counts_accuracy=False,
        )
        return bench(trial, request, on_progress=lambda what, share: on_step(f"measuring: {what}, {share:.0%}"))
