"""A bundle on this machine: opened, measured together, judged, written into rows.

Who calls whom: `bench` names the field (entries) and asks for the kind of figures that was requested: `warm` opens the
field, counts accuracy where labelled data is at hand, and times all contestants of a batch size in the same interleaved
rounds (contestants, measure, in the load shape of scenarios), which `judging` turns into rows and verdicts; `cold` starts
fresh processes; `profile` asks the runtime's own profiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from kit.bench import cold, judging, profile, warm
from kit.bench.conditions import Watch
from kit.bench.entries import Field, OnProgress
from kit.bench.request import Request
from kit.bench.results import KIND, SCHEMA_VERSION, Control, Results
from kit.bundle import Bundle
from kit.choices import CPU_FORMATS, Precision, Provider
from kit.runtime import providers, registry
from kit.system import machine

__all__ = ["Request", "advice", "bench"]


def bench(
    bundle: Bundle,
    request: Request,
    *,
    on_progress: OnProgress = lambda _what, _share: None,
    on_estimate: Callable[[float], None] = lambda _: None,
) -> Results:
    """Measure a bundle.

    Args:
        bundle: With one exported variant or more.
        request: What to measure.
        on_progress: Told what is being done and the share done of all, 0 to 1.
        on_estimate: Told once how many seconds the measuring will take.

    Raises:
        UsageError: A variant that the bundle does not have, or none exported yet.
    """
    budget = request.plan.budget_seconds
    deadline = None if budget is None else time.perf_counter_ns() + int(budget * 1e9)
    field = _field(bundle, request)
    on_gpu = any(provider is not Provider.CPU for provider in field.providers)
    watch = Watch(request.device_id if on_gpu else None, children=request.cold)
    on_progress("opening", 0.0)
    held: tuple[Control, ...] = ()
    if request.cold:
        rows = cold.rows(bundle, field, request.plan, deadline, on_progress, on_estimate)
    elif request.profile is not None:
        rows = profile.rows(bundle, field, request.sizes, request.profile, on_progress)
    else:
        groups = warm.groups(bundle, field, request, deadline, on_progress, on_estimate, watch.sample)
        rows, held = judging.judge(groups), judging.controls(groups)
    return Results(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        seed=request.plan.seed,
        arguments={"bundle": bundle.name, **request.described()},
        rows=rows,
        controls=held,
        conditions=watch.conditions(),
    )


def advice(bundle: Bundle, request: Request) -> tuple[str, ...]:
    """Return what should be known before measuring: sentences about INT8 on a GPU, where it is going to be measured there."""
    providers_asked = request.providers or providers.working(device_id=request.device_id)
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


def _field(bundle: Bundle, request: Request) -> Field:
    ids = dict.fromkeys(request.variants or (variant.id for variant in bundle.variants))
    if request.contenders:
        wanted: tuple[Provider, ...] = tuple(dict.fromkeys(one.options.provider for one in request.contenders))
        return Field(variants=(), runtimes=(), providers=wanted, threads=1, contenders=request.contenders)
    wanted = request.providers or providers.working(device_id=request.device_id)
    if not wanted:
        providers.require(Provider.CPU)
    return Field(
        variants=tuple(bundle.variant(variant_id) for variant_id in ids) or (bundle.variant(),),
        runtimes=registry.chosen(request.runtimes),
        providers=wanted,
        threads=request.threads,
        device_id=request.device_id,
        allow_fallback=request.allow_fallback,
        contenders=request.contenders,
        modes=request.modes,
        tf32=request.tf32,
        cuda_graph=request.cuda_graph,
        gpu_memory_limit_bytes=request.gpu_memory_limit_bytes,
        only_able=request.providers is None,
    )
