"""Everything docs/performance.md says of the CPU, measured anew: about ten minutes on two idle cores.

    python scripts/performance.py --json performance.json

One results file comes out, with the rows of one and of two threads; what the engine's own layers cost, the limits, and
how threads share an engine are printed, and kept in its `limits`. `--only paths` measures one part.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ceilings
import numpy as np
import onnxruntime

import kit
from kit.bench import stats
from kit.bench.cases import Case
from kit.bench.measure import Call, Plan, Timings, measure
from kit.bench.request import Request
from kit.bench.results import Results, Row
from kit.bench.run import bench
from kit.bundle import Bundle
from kit.choices import Mode
from kit.runtime.base import Binding, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner

BUNDLE = Path(__file__).parents[1] / "artifacts" / "mnist-mlp"
SIZES = (1, 64, 1024)
POINTS = tuple({"batch": size} for size in SIZES)
OURS = (("int8-pixel", "onnxruntime", Mode.HOST), ("int8-qdq", "openvino", Mode.HOST))
"""What `kit tune` chooses among at these sizes: bound inputs, in either runtime."""

OTHERS = (
    ("fp32", "onnxruntime-plain"),
    ("int8-qdq", "onnxruntime-plain"),
    ("int8-dynamic", "onnxruntime-plain"),
    ("fp32", "pytorch"),
    ("fp32", "pytorch-compile"),
    ("fp32", "openvino"),
)
_MOST_BALLAST_BYTES = 16 * 2**20
_MEMORY = """
import sys, os, psutil, kit, kit.engine, numpy, onnxruntime
def held(): return psutil.Process().memory_info().rss
before = held()
engine = kit.load(sys.argv[1], variant=sys.argv[2], provider="cpu")
engine.predict(numpy.zeros((28, 28), numpy.uint8))
print(held() - before, held())
"""


def main() -> None:
    """Measure the parts that are asked for."""
    parts: dict[str, Callable[[Bundle], dict[str, float]]] = {
        "paths": paths,
        "products": products,
        "sharing": sharing,
        "memory": memory,
        "options": session_options,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--only", choices=["rows", "cold", *parts], action="append")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = with_dynamic(Path(folder))
        limits: dict[str, float] = {}
        for name, part in parts.items():
            if not asked.only or name in asked.only:
                print(f"\n## {name}\n", flush=True)
                limits |= part(bundle)
        found = None
        if not asked.only or "cold" in asked.only:
            found = cold(bundle)
        if not asked.only or "rows" in asked.only:
            warm = rows(bundle)
            found = dataclasses.replace(warm, rows=warm.rows + (found.rows if found else ()))
        if found is not None and asked.json is not None:
            dataclasses.replace(found, limits=limits).save(asked.json)


def with_dynamic(folder: Path) -> Bundle:
    """Copy the published bundle and add the dynamic INT8 variant that others would use."""
    line = [str(Path(sys.executable).with_name("kit")), "export", "--precision", "int8", "--quantization", "dynamic"]
    copied = folder / BUNDLE.name
    shutil.copytree(BUNDLE, copied)
    subprocess.run([*line, str(copied)], check=True, capture_output=True)
    return kit.find(copied)


def rows(bundle: Bundle) -> Results:
    """Bench the engine beside what a user would otherwise pick, on one thread and on two."""
    found: list[Results] = []
    for threads in (1, 2):
        options = RunnerOptions(threads=threads)
        cases = [
            *(Case(variant=variant, runtime=runtime, options=options) for variant, runtime in OTHERS),
            *(Case(variant=variant, runtime=runtime, options=options, mode=mode) for variant, runtime, mode in OURS),
        ]
        request = Request(cases=tuple(cases), points=POINTS, plan=Plan(budget_seconds=150 * threads))
        found.append(bench(bundle, request))
        print(f"\n## {threads} thread(s): p50 in us, and the fastest of kit's against the fastest of the others\n")
        for size in SIZES:
            print(versus([row for row in found[-1].rows if row.samples == size]), flush=True)
        for control in found[-1].controls:
            print(f"baseline against itself, {control.at or control.sizes}: {control.comparison}")
    return dataclasses.replace(
        found[0], rows=found[0].rows + found[1].rows, controls=found[0].controls + found[1].controls
    )


def versus(own: list[Row]) -> str:
    """Compare kit's fastest way at a batch size with the fastest other one, paired by rounds."""
    timed = [row for row in own if row.latency is not None]
    ours = {(variant, runtime) for variant, runtime, _ in OURS}

    def p50(row: Row) -> float:
        return row.latency.p50_us if row.latency else float("inf")

    kits = min((row for row in timed if (row.variant, row.runtime) in ours), key=p50)
    outside = [row for row in timed if (row.variant, row.runtime) not in ours or row.runtime == "openvino"]
    other = min((row for row in outside if row is not kits), key=p50)
    assert kits.latency is not None
    assert other.latency is not None
    found = stats.compare(np.array(other.latency.medians_us), np.array(kits.latency.medians_us))
    table = ", ".join(f"{row.variant} {row.runtime} {p50(row):,.1f}" for row in timed)
    return (
        f"batch {kits.samples}: {table}\n  {kits.variant} in {kits.runtime} against {other.variant} in {other.runtime}: "
        f"{found.speedup:.2f}x [{found.low:.2f}, {found.high:.2f}]"
    )


def paths(bundle: Bundle) -> dict[str, float]:
    """Time each layer of a call at batch 1 against the bare call of the same file, and the machine's floor."""
    variant = bundle.variant("int8-pixel")
    model = bundle.read(variant.graph)
    pixels = _pixels(bundle)[:1]
    weights = sum(one.size for one in _weights(model))

    def bare() -> Call:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(pixels.copy())]
        values += [onnxruntime.OrtValue.ortvalue_from_numpy(np.empty((1, 10), np.float32))]
        binding.bind_ortvalue_input("pixels", values[0])
        binding.bind_ortvalue_output("logits", values[1])

        def call(keep: object = values) -> None:  # noqa: ARG001 - their memory is bound
            session.run_with_iobinding(binding)

        return call

    def plain() -> Call:
        runner = OnnxRuntimeRunner(model, binds=False)
        return lambda: runner.run({"pixels": pixels})

    def engine(name: str) -> Callable[[], Call]:
        def opened() -> Call:
            one = kit.load(bundle.origin, variant="int8-pixel", provider="cpu")
            bound = one.bind()
            bound.copy_in(pixels)

            def predict() -> object:
                found = one.predict(pixels)
                return found.labels, found.probabilities

            calls: dict[str, Call] = {
                "bound.compute()": bound.compute,
                "bound.run(pixels)": lambda: bound.run(pixels),
                "engine.predict(pixels)": predict,
            }
            return calls[name]

        return opened

    makers: dict[str, Callable[[], Call]] = {
        "bare run_with_iobinding": bare,
        "session.run": plain,
        **{name: engine(name) for name in ("bound.compute()", "bound.run(pixels)", "engine.predict(pixels)")},
        "an empty call, bound": ceilings.empty_call,
        "reading the weights once": lambda: ceilings.reading(weights),
    }
    timed = _timed(makers)
    first = timed["bare run_with_iobinding"].medians_us()
    for name, one in timed.items():
        ratio = stats.compare(one.medians_us(), first)
        low, high = stats.median_interval(one.medians_us())
        print(
            f"{name:28} p50 {np.median(one.medians_us()):7.2f} us [{low:.2f}, {high:.2f}]  "
            f"{ratio.speedup:.3f} of the bare call [{ratio.low:.3f}, {ratio.high:.3f}]"
        )
    for above, below in (("bound.run(pixels)", "bound.compute()"), ("engine.predict(pixels)", "bound.run(pixels)")):
        more = timed[above].medians_us() - timed[below].medians_us()
        low, high = stats.median_interval(more)
        print(f"{above} takes {np.median(more):.2f} us more than {below} [{low:.2f}, {high:.2f}]")
    floor = sum(
        float(np.median(timed[one].medians_us())) for one in ("an empty call, bound", "reading the weights once")
    )
    call = float(np.median(timed["bound.compute()"].medians_us()))
    print(f"floor {floor:.2f} us ({weights:,} bytes of weights); bound.compute() is {call / floor:.2f} times that")
    return {f"{name} us": round(float(np.median(one.medians_us())), 3) for name, one in timed.items()} | {
        "floor us": round(floor, 3)
    }


def _pixels(bundle: Bundle) -> np.ndarray:
    return bundle.golden()[0].inputs["pixels"]


def _weights(model: bytes) -> list[np.ndarray]:
    import onnx
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(one) for one in onnx.load_from_string(model).graph.initializer]
    return [one.view(np.uint8).ravel() if one.dtype == np.int8 else np.zeros(0, np.uint8) for one in arrays]


def products(_bundle: Bundle) -> dict[str, float]:
    """Find the best rate of integer products over shapes and runtimes, on one thread and on two."""
    best: dict[str, float] = {}
    for threads in (1, 2):
        rates = {}
        for name, operations, call in ceilings.products(threads):
            call()
            times = []
            for _ in range(12):
                time.sleep(0.03)  # until the threads of the one before are quiet
                call()
                started = time.perf_counter_ns()
                call()
                call()
                times.append((time.perf_counter_ns() - started) / 2)
            rates[name] = operations / statistics.median(times)
        for name, rate in rates.items():
            print(f"{threads} thread(s), {name:30} {rate:7.1f} GOP/s")
        top = max(rates, key=lambda one: rates[one])
        print(f"best: {top}, {rates[top]:.1f} GOP/s\n")
        best[f"int8 product, {threads} thread(s), GOP/s"] = round(rates[top], 1)
    return best


def sharing(bundle: Bundle) -> dict[str, float]:
    """Time one engine alone and two that share it, each in a thread of its own."""
    found = {}
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(kit.load(bundle.origin, variant="int8-pixel", provider="cpu"))
        engines = [engine, stack.enter_context(engine.share())]
        for size in (1, 8, 64, 1024):
            pixels = _pixels(bundle)[np.arange(size) % 256]
            bounds = [one.bind(batch=size) for one in engines]
            single, double = [], []
            for _ in range(15):
                single.append(_rate([bound_run(bounds[0], pixels)]))
                double.append(_rate([bound_run(one, pixels) for one in bounds]))
            gains = [two / one for one, two in zip(single, double, strict=True)]
            low, high = stats.median_interval(np.array(gains))
            found[f"two threads share an engine, batch {size}, times"] = round(statistics.median(gains), 3)
            print(
                f"batch {size:5}: {size * statistics.median(single):12,.0f} samples/s in one thread, "
                f"{size * statistics.median(double):12,.0f} in two: {statistics.median(gains):.2f}x [{low:.2f}, {high:.2f}]"
            )
    return found


def bound_run(bound: Binding, pixels: np.ndarray) -> Call:
    """Return the call of a binding on pixels."""
    return lambda: bound.run(pixels)


def _rate(calls: list[Call], seconds: float = 0.2) -> float:
    """Return calls a second of all threads together."""
    counts = [0] * len(calls)
    until = time.perf_counter() + seconds

    def work(index: int) -> None:
        call = calls[index]
        while time.perf_counter() < until:
            call()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    started = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(counts) / (time.perf_counter() - started)


def memory(bundle: Bundle) -> dict[str, float]:
    """Measure what a loaded engine adds to a fresh process that has imported what it needs."""
    found = {}
    for variant in ("fp32", "int8-qdq", "int8-pixel"):
        line = [sys.executable, "-c", _MEMORY, str(bundle.origin), variant]
        answers = [subprocess.run(line, check=True, capture_output=True, text=True).stdout.split() for _ in range(7)]
        added, held = (statistics.median(int(one[place]) for one in answers) / 1e6 for place in (0, 1))
        print(f"{variant:12} adds {added:6.1f} MB to the process, which then holds {held:6.1f} MB")
        found[f"{variant} adds, MB"] = round(added, 2)
    return found


def session_options(bundle: Bundle) -> dict[str, float]:
    """Bench session options against the default, in kit's own way, at three batch sizes."""
    ways = [
        RunnerOptions(),
        RunnerOptions(arena=True),
        RunnerOptions(prepacking=False),
        RunnerOptions(optimization="extended"),
    ]
    ways += [RunnerOptions(threads=2), RunnerOptions(threads=2, spinning=False)]
    for variant in ("fp32", "int8-pixel"):
        cases = tuple(Case(variant=variant, runtime="onnxruntime", options=way) for way in ways)
        for few in (cases[:4], (cases[0], *cases[4:])):  # pools of threads disturb the others
            request = Request(cases=few, points=POINTS, plan=Plan(budget_seconds=40), counts_scores=False)
            for row in bench(bundle, request).rows:
                p50 = row.latency.p50_us if row.latency else float("nan")
                said = row.verdict.describe() if row.verdict else ""
                print(f"{variant:12} batch {row.samples:5} {row.session:28} {p50:10,.1f} us  {said}", flush=True)
    return {}


def cold(bundle: Bundle) -> Results:
    """Start fresh processes, from their start to the first prediction."""
    request = Request(variants=("fp32", "int8-qdq", "int8-pixel"), cold=True)
    found = bench(bundle, request)
    print("\n## cold start\n")
    for row in found.rows:
        if row.cold is not None:
            stages = json.dumps(row.cold.stages_ms)
            print(
                f"{row.variant:12} {row.cold.total_ms:.0f} ms [{row.cold.low_ms:.0f}, {row.cold.high_ms:.0f}] {stages}"
            )
    return found


def _timed(makers: dict[str, Callable[[], Call]]) -> dict[str, Timings]:
    """Time calls whose models are opened anew every few rounds, wherever in memory they come to lie."""

    def renewal(make: Callable[[], Call]) -> Callable[[], Call]:
        def renew() -> Call:
            ballast = np.ones(random.randrange(_MOST_BALLAST_BYTES), np.uint8)
            call = make()
            del ballast
            return call

        return renew

    timings = measure(
        [make() for make in makers.values()], Plan(rounds=200), renewals=[renewal(make) for make in makers.values()]
    )
    return dict(zip(makers, timings, strict=True))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
