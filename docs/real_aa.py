"""A/A on this machine: one file opened twice and compared, again and again.

    uv run python -m docs.real_aa [BUNDLE] [REPETITIONS]

Whatever is called FASTER or SLOWER here is called so wrongly.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial

from kit.bench.entries import pixels
from kit.bench.measure import Plan, measure
from kit.bench.stats import compare, judge
from kit.bundle import find
from kit.machine import this_machine
from kit.runtime.onnxruntime import OnnxRuntimeRunner


def main() -> None:
    """Repeat, count, and say where."""
    bundle = find(sys.argv[1] if len(sys.argv) > 1 else None)
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    print(this_machine().describe())
    for variant in bundle.variants:
        for size in (1, 64):
            batch = pixels(bundle, size)
            outcomes: Counter[str] = Counter()
            ratios = []
            for repetition in range(repetitions):
                model = bundle.read(variant.artifact)
                with OnnxRuntimeRunner(model) as one, OnnxRuntimeRunner(model) as other:
                    calls = [partial(one.run, batch), partial(other.run, batch)]
                    first, second = measure(calls, Plan(seed=repetition))
                found = compare(first.medians_us(), second.medians_us())
                outcomes[judge([found])[0]] += 1
                ratios.append(found.speedup)
            counts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
            print(
                f"{variant.id}, batch {size}: {counts}; ratios from {min(ratios):.3f} to {max(ratios):.3f}", flush=True
            )


main()
