"""Everything that wants a GPU, in one run of less than five minutes and one results file.

    python scripts/gpu.py --json cuda.json [--device-id 0]

Batch 1 to 65,536: host to host and device-resident, plain and as a CUDA graph, fp32, TF32 and fp16, beside PyTorch (eager, as a
CUDA graph, compiled) and the CPU; cold starts; and the rate of matrix products on the same GPU in the same run, in `limits`.
What is printed is read from the results: samples a second, the share of the matmul rate, and where the GPU overtakes the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from itertools import pairwise, starmap
from pathlib import Path

import torch

import kit
from kit.bench import sweep
from kit.bench.cases import Case
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Results, Row
from kit.bench.run import bench
from kit.bundle import Bundle
from kit.choices import Mode, Precision, Provider
from kit.lab.blueprint import Blueprint
from kit.lab.models import mlp_name
from kit.runtime import providers
from kit.runtime.base import RunnerOptions

BUNDLE = Path(__file__).parents[1] / "artifacts" / "mnist-mlp"
SMALL, MIDDLE, LARGE = (1,), (8, 64, 512, 4096), (16384, 65536)
SECONDS = {SMALL: 60, MIDDLE: 70, LARGE: 70}
_MATRIX = 8192
_RATES = {"fp32": (torch.float32, "highest"), "tf32": (torch.float32, "high"), "fp16": (torch.float16, "high")}


def main() -> None:
    """Measure all of it and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument("--device-id", type=int, default=0)
    asked = parser.parse_args()
    providers.require(Provider.CUDA, device_id=asked.device_id)
    bundle = kit.find(BUNDLE)
    parts = [
        bench(
            bundle,
            Request(
                cases=cases(sizes, asked.device_id),
                points=tuple({"batch": size} for size in sizes),
                plan=Plan(budget_seconds=SECONDS[sizes]),
            ),
        )
        for sizes in (SMALL, MIDDLE, LARGE)
    ]
    cold = Request(
        providers=(Provider.CUDA,),
        variants=("fp32", "fp16"),
        cold=True,
        runner=RunnerOptions(device_id=asked.device_id),
        plan=Plan(budget_seconds=45),
    )
    parts.append(bench(bundle, cold))
    limits = dict(starmap(rate, [(name, asked.device_id) for name in _RATES]))
    found = dataclasses.replace(
        parts[0],
        rows=tuple(row for part in parts for row in part.rows),
        controls=tuple(control for part in parts for control in part.controls),
        limits=limits,
    )
    found.save(asked.json)
    show(bundle, found)


def cases(sizes: tuple[int, ...], device_id: int) -> tuple[Case, ...]:
    """Return what is measured at these batch sizes."""

    def on_gpu(*, graph: bool = False, tf32: bool = False) -> RunnerOptions:
        return RunnerOptions(provider=Provider.CUDA, device_id=device_id, cuda_graph=graph, tf32=tf32)

    def of(variant: str, runtime: str, options: RunnerOptions, mode: Mode = Mode.DEVICE) -> Case:
        return Case(variant=variant, runtime=runtime, options=options, mode=mode)

    measured = [
        of("fp32", "onnxruntime", on_gpu(), Mode.HOST),
        of("fp32", "onnxruntime", on_gpu()),
        of("fp32", "onnxruntime", on_gpu(graph=True)),
        of("fp32", "onnxruntime", on_gpu(graph=True, tf32=True)),
        of("fp16", "onnxruntime", on_gpu(), Mode.HOST),
        of("fp16", "onnxruntime", on_gpu(graph=True)),
        of("fp32", "pytorch", on_gpu()),
        of("fp32", "pytorch", on_gpu(graph=True)),
        of("fp32", "pytorch", on_gpu(graph=True, tf32=True)),
        of("fp16", "pytorch", on_gpu(graph=True)),
        of("fp32", "pytorch-compile", on_gpu(graph=True)),
        of("fp16", "pytorch-compile", on_gpu(graph=True)),
    ]
    if sizes is LARGE:
        return tuple(measured)
    on_cpu = [of(variant, "onnxruntime", RunnerOptions(), Mode.HOST) for variant in ("fp32", "int8-pixel")]
    return (*on_cpu, *measured)


def rate(name: str, device_id: int) -> tuple[str, float]:
    """Return the name and the rate of the largest square product, in TFLOP/s, the median of ten."""
    dtype, precision = _RATES[name]
    torch.set_float32_matmul_precision(precision)
    milliseconds = []
    with torch.cuda.device(device_id):
        left, right = (torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=dtype) for _ in range(2))
        for _ in range(3):
            left @ right
        for _ in range(10):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            left @ right
            ended.record()
            torch.cuda.synchronize()
            milliseconds.append(began.elapsed_time(ended))
    return f"matmul_{name}_tflops", 2 * _MATRIX**3 / statistics.median(milliseconds) / 1e9


def show(bundle: Bundle, found: Results) -> None:
    """Print each row, its share of the matmul rate, and who overtakes whom."""
    print(found.machine.describe())
    for name, value in found.limits.items():
        print(f"{name} {value:,.1f}")
    for row in found.rows:
        if row.cold is not None:
            print(f"cold {row.variant} {row.place}: {row.cold.total_ms:,.0f} ms, {row.cold.stages_ms}")
        elif row.latency is None:
            print(f"{row.variant} {row.place} {row.point}: {row.status}, {row.reason}")
        else:
            verdict = row.verdict.describe() if row.verdict else ""
            print(
                f"{row.variant:10} {row.place:44} batch {row.samples:6} {row.latency.p50_us:12,.1f} us "
                f"{row.latency.samples_per_second:15,.0f} samples/s {share(bundle, found, row):7} {verdict}"
            )
    for crossing in sweep.crossovers(found):
        print(crossing.describe())
    for size in (*SMALL, *MIDDLE):
        timed = [row for row in found.rows if row.samples == size and row.latency is not None]
        print(
            f"batch {size}: fastest on the CPU {_fastest(timed, Provider.CPU)}, on the GPU {_fastest(timed, Provider.CUDA)}"
        )
    for said in found.remarks():
        print(said)


def _fastest(rows: list[Row], provider: Provider) -> str:
    """Name the quickest row there whose inputs come from host memory, as those of most callers do."""
    own = {
        f"{row.variant} {row.place}": row.latency.p50_us
        for row in rows
        if row.latency is not None and row.ran_on is provider and row.mode is Mode.HOST
    }
    name = min(own, key=lambda one: own[one], default="")
    return f"{name} {own[name]:,.1f} us" if name else "none"


def share(bundle: Bundle, found: Results, row: Row) -> str:
    """Return how much of the rate of its own kind of product a row on the GPU reaches."""
    if row.ran_on is not Provider.CUDA or row.latency is None:
        return ""
    kind = "fp16" if row.precision is Precision.FP16 else "tf32" if "TF32" in row.session else "fp32"
    blueprint = Blueprint.of(bundle)
    assert blueprint is not None  # the published bundle
    hidden = [int(one) for one in blueprint.architecture.split("-")[1:]]
    assert mlp_name(tuple(hidden)) == blueprint.architecture  # a dense network: its products are all its arithmetic
    widths = [28 * 28, *hidden, len(blueprint.labels)]
    operations = sum(2 * above * below for above, below in pairwise(widths))
    return f"{operations * row.latency.samples_per_second / found.limits[f'matmul_{kind}_tflops'] / 1e12:.1%}"


if __name__ == "__main__":
    main()
