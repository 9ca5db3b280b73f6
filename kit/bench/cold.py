"""The cold start: fresh processes, from their start to the first prediction, and what takes the time.

`rows` starts processes that run this file as a module; contestants take turns in random order, as in the warm bench. The
files are in the system's cache after the first process, which is not counted. Run as a module this file is such a process:
it does what a program does that opens a bundle, and prints the moments as JSON. The clock is the system's own, so that
parent and child read the same one.
"""

from __future__ import annotations

import time

_BEGAN = time.perf_counter_ns()  # before anything else is imported: what came before is Python's own start

import dataclasses  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:  # the child imports these when their turn comes, and is timed
    from kit.bench.entries import Entry, Field, OnProgress
    from kit.bench.measure import Plan
    from kit.bench.results import ColdStart, Row
    from kit.bundle import Bundle

PROCESSES = 20
_PATIENCE_SECONDS = 300
_HINT = "see whether the model runs at all: kit verify"
STAGES = ("start Python", "import kit", "read bundle", "open model", "first run")
"""What happens between the start of a process and its first answer, in order."""


def rows(
    bundle: Bundle,
    field: Field,
    plan: Plan,
    deadline_ns: int | None,
    on_progress: OnProgress,
    on_estimate: Callable[[float], None],
) -> tuple[Row, ...]:
    """Measure the cold start of every variant in every runtime on every provider.

    Args:
        bundle: What to open.
        field: Who is to stand.
        plan: Gives the order's seed; `PROCESSES` are started for each, unless a budget ends them.
        deadline_ns: When to stop, however many processes have run, by `time.perf_counter_ns`.
        on_progress: Told what is being done and the share done of all.
        on_estimate: Told how many seconds it will take.
    """
    from kit.bench.entries import entries
    from kit.bench.measure import interleave

    on_progress("first processes", 0.0)
    stand = entries(bundle, field)
    started = time.perf_counter()
    first = [_start(bundle, entry) for entry in stand]
    running = [index for index, one in enumerate(first) if "error" not in one]
    spent = time.perf_counter() - started
    left = None if deadline_ns is None else max((deadline_ns - time.perf_counter_ns()) / 1e9, 0.0)
    on_estimate(PROCESSES * spent * len(running) / max(len(stand), 1) if left is None else left)
    turns = interleave(
        lambda index, _: _start(bundle, stand[running[index]]),
        len(running),
        dataclasses.replace(plan, rounds=PROCESSES),
        deadline_ns=deadline_ns,
        on_round=lambda share: on_progress("fresh processes", share),
        clock=time.perf_counter_ns,
    )
    measured = dict(zip(running, turns, strict=True))
    return tuple(_row(entry, first[index], measured.get(index, [])) for index, entry in enumerate(stand))


def _start(bundle: Bundle, entry: Entry) -> dict[str, Any]:
    """Run one process; return its moments, or its error."""
    from kit.system import serial

    row, options = entry.row, entry.options
    asked = {
        "bundle": str(bundle.origin.resolve()),
        "variant": row.variant,
        "runtime": row.runtime,
        "options": serial.encode(options),
    }
    started = time.perf_counter_ns()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"a process gave no answer within {_PATIENCE_SECONDS} s", "hint": _HINT, "code": 4}
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"a process ended with code {done.returncode}: {last}", "hint": _HINT, "code": 4}
    return {**found, "started": started}


def _row(entry: Entry, first: dict[str, Any], answers: list[dict[str, Any]]) -> Row:
    from kit.bench.results import Status
    from kit.choices import Provider

    row = dataclasses.replace(entry.row, batch_size=1)
    failed = next((one for one in (first, *answers) if "error" in one), None)
    if failed is not None:
        status = Status.UNAVAILABLE if failed["code"] == 3 else Status.FAILED
        return dataclasses.replace(row, status=status, reason=failed["error"], fix=failed["hint"])
    return dataclasses.replace(
        row,
        status=Status.FALLBACK if first["fallback_reason"] else Status.OK,
        reason=first["fallback_reason"],
        fix=first["fallback_fix"],
        ran_on=Provider(first["provider"]),
        placement=first["placement"],
        cold=_summary(answers),
    )


def _summary(answers: list[dict[str, Any]]) -> ColdStart:
    import numpy as np

    from kit.bench.results import ColdStart
    from kit.bench.stats import median_interval

    moments = np.array([[one["started"], *one["moments"]] for one in answers], np.int64)  # (processes, stages + 1)
    stages_ms = np.diff(moments, axis=1) / 1e6
    totals_ms = (moments[:, -1] - moments[:, 0]) / 1e6
    low, high = median_interval(totals_ms)
    peaks = [one["peak_memory_bytes"] for one in answers if one["peak_memory_bytes"]]
    return ColdStart(
        processes=len(answers),
        total_ms=float(np.median(totals_ms)),
        low_ms=low,
        high_ms=high,
        stages_ms=dict(zip(STAGES, np.median(stages_ms, axis=0).round(3).tolist(), strict=True)),
        peak_memory_bytes=int(np.median(peaks)) if peaks else None,
        totals_ms=tuple(totals_ms.round(3).tolist()),
    )


def _child(asked: dict[str, Any]) -> dict[str, Any]:
    """Do what a fresh program does; return the moments at which each stage ended."""
    moments = [_BEGAN]
    from kit import bundle as bundles
    from kit.errors import KitError
    from kit.runtime import registry
    from kit.runtime.base import RunnerOptions
    from kit.system import serial

    moments.append(time.perf_counter_ns())
    try:
        bundle = bundles.find(asked["bundle"])
        variant = bundle.variant(asked["variant"])
        bundle.read(variant.artifact)
        pixels = bundle.golden().pixels[:1]
        moments.append(time.perf_counter_ns())
        options = serial.decode(RunnerOptions, asked["options"])
        with registry.open_runner(asked["runtime"], bundle, variant, options) as runner:
            moments.append(time.perf_counter_ns())
            runner.run(pixels)
            moments.append(time.perf_counter_ns())
            placement = runner.placement.describe() if runner.placement.total else runner.provider.value
    except KitError as error:
        return {"error": str(error), "hint": error.hint, "code": error.exit_code}
    from kit.bench.meters import high_water_bytes

    return {
        "moments": moments,
        "provider": runner.provider.value,
        "placement": placement,
        "fallback_reason": runner.fallback_reason,
        "fallback_fix": getattr(runner, "fallback_fix", ""),
        "peak_memory_bytes": high_water_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))  # noqa: T201 - the answer to the parent
