"""ONNX Runtime's own profiler: where the time of a call goes, node by node, with a trace for Perfetto."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from kit.choices import Provider
from kit.runtime.base import Placement, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tensors import Signature, Tensors


@dataclass(frozen=True)
class ProfiledNode:
    """One node of the final graph, after the providers fused it; `mean_us` of one call."""

    name: str
    operator: str
    provider: str
    mean_us: float


@dataclass(frozen=True)
class Profiled:
    """What ONNX Runtime's profiler saw.

    Attributes:
        nodes: The longest first.
        run_us: Mean of a whole call, without Python.
        kernels: Final nodes by provider; `placement` counts them before fusion.
        provider: Where it truly ran.
        trace: In Chrome's trace format, which Perfetto opens.
    """

    nodes: tuple[ProfiledNode, ...]
    run_us: float
    kernels: Placement
    placement: Placement
    provider: Provider
    trace: bytes
    fallback_reason: str = ""
    fallback_fix: str = ""


def profile(
    model: bytes | Path,
    options: RunnerOptions,
    tensors: Tensors,
    *,
    calls: int,
    warmup: int = 20,
    signature: Signature | None = None,
) -> Profiled:
    """Run a model under the profiler; the means leave `warmup` calls out. Raises what OnnxRuntimeRunner does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxRuntimeRunner(model, options, signature=signature, profile_into=Path(folder)) as runner,
    ):
        for _ in range(warmup + calls):
            runner.run(tensors)
        trace = runner.end_profiling()
        events = json.loads(trace)
        nodes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                provider = event["args"]["provider"].removesuffix("ExecutionProvider").lower()
                name = event["name"].removesuffix("_kernel_time")
                nodes[name, event["args"]["op_name"], provider].append(float(event["dur"]))
        runs = [float(event["dur"]) for event in events if event["name"] == "model_run"]
        kernels: dict[str, int] = defaultdict(int)
        for _, _, provider in nodes:
            kernels[provider] += 1
        seen = [ProfiledNode(*key, mean_us=_mean(durations[warmup:])) for key, durations in nodes.items()]
        return Profiled(
            nodes=tuple(sorted(seen, key=lambda node: -node.mean_us)),
            run_us=_mean(runs[warmup:]),
            kernels=Placement(dict(kernels)),
            placement=runner.placement,
            provider=runner.provider,
            trace=trace,
            fallback_reason=runner.fallback_reason,
            fallback_fix=runner.fallback_fix,
        )


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
