"""A/A on this machine: one file measured as two, compared again and again as the bench does.

    uv run python -m scripts.real_aa [BUNDLE] [REPETITIONS]

Whatever is called FASTER or SLOWER here is called so wrongly. Each is opened anew every few rounds, as in the bench; the lines
`opened once` show what happens otherwise.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter

from kit.bench.cases import Case, Subject, open_all, prepare
from kit.bench.measure import Plan, measure
from kit.bench.queries import Queries
from kit.bench.scenarios import Load
from kit.bench.stats import compare, judge
from kit.bundle import Bundle, find
from kit.system.machine import this_machine


def main() -> None:
    """Repeat, count, and say where."""
    bundle = find(sys.argv[1] if len(sys.argv) > 1 else None)
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    print(this_machine().describe())
    for renewed in (True, False):
        for variant in bundle.variants:
            for size in (1, 64):
                how = "" if renewed else ", opened once"
                print(
                    f"{variant.id}, batch {size}{how}: {repeat(bundle, variant.id, size, repetitions, renewed)}",
                    flush=True,
                )


def repeat(bundle: Bundle, variant: str, size: int, repetitions: int, renewed: bool) -> str:
    """Compare a variant with itself; return the verdicts, counted, and the range of the ratios."""
    subject = Subject.of(bundle)
    prepared = prepare(subject, [Case(variant=variant)])
    sizes = bundle.signature.usual_sizes(batch=size)
    outcomes: Counter[str] = Counter()
    ratios = []
    for repetition in range(repetitions):
        with contextlib.ExitStack() as stack:
            (opened,) = open_all(prepared, stack)
            pair = [Queries(opened, sizes, Load(), own=True) for _ in range(2)]
            for one in pair:
                stack.callback(one.close)
            renewals = [one.renew for one in pair] if renewed else []
            first, second = measure([one.call for one in pair], Plan(seed=repetition), renewals=renewals)
        found = compare(first.medians_us(), second.medians_us())
        outcomes[judge([found])[0]] += 1
        ratios.append(found.speedup)
    counts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    return f"{counts}; ratios from {min(ratios):.3f} to {max(ratios):.3f}"


main()
