"""A bundle on this machine: opened, measured, compared, written into rows.

results = bench(find("mnist-mlp"), Request(points=({"batch": 1}, {"batch": 64})))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from kit.bench import cold, judging, profile, warm
from kit.bench.conditions import Watch
from kit.bench.request import Request
from kit.bench.results import KIND, SCHEMA_VERSION, Control, Results, Row
from kit.bundle import Bundle, renewed
from kit.choices import CPU_FORMATS, Precision, Provider
from kit.runtime import providers
from kit.system import machine
from kit.system.progress import OnProgress, silent

__all__ = ["Request", "advice", "bench"]


def bench(
    bundle: Bundle,
    request: Request,
    *,
    on_progress: OnProgress = silent,
    on_estimate: Callable[[float], None] = lambda _: None,
) -> Results:
    """Measure a bundle.

    `on_progress` is told what is being done and the share done of all, 0 to 1; `on_estimate` is told once how many
    seconds the measuring will take.

    Raises:
        UsageError: A variant, an axis or a size that the bundle does not have, or no variant exported yet.
    """
    bundle = renewed(bundle) or bundle
    budget = request.plan.budget_seconds
    deadline = None if budget is None else time.perf_counter_ns() + int(budget * 1e9)
    on_gpu = any(one.options.provider is not Provider.CPU for one in request.cases_of(bundle))
    watch = Watch(request.runner.device_id if on_gpu else None, children=request.cold)
    on_progress("opening", 0.0)
    rows: tuple[Row, ...]
    controls: tuple[Control, ...] = ()
    left_out: tuple[str, ...] = ()
    if request.cold:
        rows = cold.rows(bundle, request, deadline, on_progress, on_estimate)
    elif request.profile is not None:
        rows = profile.rows(bundle, request, request.profile, on_progress)
    else:
        found = warm.run(bundle, request, deadline, on_progress, on_estimate, watch.sample)
        rows, controls, left_out = judging.judge(found.groups), judging.controls(found.groups), found.left_out
    return Results(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        seed=request.plan.seed,
        arguments={"bundle": bundle.name, **request.described()},
        rows=rows,
        controls=controls,
        conditions=watch.conditions(),
        left_out=left_out,
    )


def advice(bundle: Bundle, request: Request) -> tuple[str, ...]:
    """Return what should be known before measuring: sentences about INT8 on a GPU, if it is going to be measured there."""
    providers_asked = request.providers or providers.working(device_id=request.runner.device_id)
    wanted = [bundle.variant(one) for one in request.variants] if request.variants else list(bundle.variants)
    integers = [one for one in wanted if one.precision is Precision.INT8]
    if Provider.CUDA not in providers_asked or not integers:
        return ()
    said = [
        "INT8 on CUDA is no integer arithmetic: the CUDA provider turns QDQ files back into float, node by node (see the "
        "placement). For a GPU use fp16"
        + (
            ": --variant fp16."
            if any(one.id == "fp16" for one in bundle.variants)
            else f": kit export {bundle.name} --precision fp16."
        )
    ]
    if Provider.TENSORRT not in providers_asked:
        said[0] += " TensorRT, where it is installed, runs QDQ files in INT8: --provider tensorrt."
    only_cpu = [one.id for one in integers if one.format in CPU_FORMATS]
    if only_cpu and request.providers:
        said.append(f"{', '.join(only_cpu)}: the operators have kernels on the CPU alone.")
    return tuple(said)
