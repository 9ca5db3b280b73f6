"""The cold start: fresh processes, from their start to the first prediction, and what takes the time.

`rows` starts processes that run this file as a module; cases take turns in random order, as in the warm bench. The
files are in the system's cache after the first process, which is not counted. Run as a module this file is such a process:
it does what a program does that opens a bundle, and prints the moments as JSON. The clock is the system's own, so that
parent and child read the same one.
"""

from __future__ import annotations

import time

_BEGAN = time.perf_counter_ns()  # before anything else is imported: what came before is Python's own start

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:  # the child imports these when their turn comes, and is timed
    from kit.bench.cases import OpenCase
    from kit.bench.request import Request
    from kit.bench.results import ColdStart, Row
    from kit.bundle import Bundle
    from kit.system.progress import OnProgress
    from kit.tensors import Sizes

PROCESSES = 20
_PATIENCE_SECONDS = 300
_HINT = "see whether the model runs at all: kit verify"
STAGES = ("start Python", "import kit", "read bundle", "open model", "first run")
"""What happens between the start of a process and its first answer, in order."""


def rows(
    bundle: Bundle,
    request: Request,
    deadline_ns: int | None,
    on_progress: OnProgress,
    on_estimate: Callable[[float], None],
) -> tuple[Row, ...]:
    """Measure the cold start of every case, by PROCESSES fresh processes each, or fewer where the deadline ends them.

    `deadline_ns` is by `time.perf_counter_ns`; `on_estimate` is told how many seconds it will take.
    """
    from kit.bench.cases import Subject, prepare
    from kit.bench.measure import interleave
    from kit.bench.points import described, telling

    on_progress("first processes", 0.0)
    (sizes,) = request.points_of(bundle.signature)
    label = described(sizes, telling([sizes]))
    prepared = prepare(Subject(bundle, ()), request.cases_of(bundle), names_session=bool(request.cases))
    cases = [one.at(sizes, label) for one in prepared]
    with _known(bundle, sizes) as known:
        started = time.perf_counter()
        first = [_start(one, known) for one in cases]
        running = [index for index, one in enumerate(first) if "error" not in one]
        spent = time.perf_counter() - started
        left = None if deadline_ns is None else max((deadline_ns - time.perf_counter_ns()) / 1e9, 0.0)
        on_estimate(PROCESSES * spent * len(running) / max(len(cases), 1) if left is None else left)
        turns = interleave(
            lambda index, _: _start(cases[running[index]], known),
            len(running),
            dataclasses.replace(request.plan, rounds=PROCESSES),
            deadline_ns=deadline_ns,
            on_round=lambda share: on_progress("fresh processes", share),
            clock=time.perf_counter_ns,
        )
    measured = dict(zip(running, turns, strict=True))
    return tuple(_row(one, first[index], measured.get(index, [])) for index, one in enumerate(cases))


@contextlib.contextmanager
def _known(bundle: Bundle, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Give what a process cannot read from a bundle: of a ready model, whose inputs took a search, manifest and inputs."""
    import numpy as np

    from kit.bench.cases import Subject
    from kit.ready import ReadyModel
    from kit.system import serial

    if not isinstance(bundle, ReadyModel):
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        inputs: dict[str, Any] = Subject.of(bundle).inputs(sizes)
        np.savez(path, **{f"input_{place}": array for place, array in enumerate(inputs.values())})
        yield {"manifest": serial.encode(bundle.manifest), "inputs": str(path)}


def _start(one: OpenCase, known: dict[str, Any]) -> dict[str, Any]:
    """Run one process; return its moments, or its error."""
    from kit.system import serial

    asked = {
        "bundle": str(one.subject.bundle.origin.resolve()),
        "variant": one.case.variant,
        "runtime": one.case.runtime,
        "options": serial.encode(one.case.options),
        "sizes": one.row.sizes,
        **known,
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


def _row(one: OpenCase, first: dict[str, Any], answers: list[dict[str, Any]]) -> Row:
    from kit.bench.results import Status
    from kit.choices import Provider

    failed = next((answer for answer in (first, *answers) if "error" in answer), None)
    if failed is not None:
        status = Status.UNAVAILABLE if failed["code"] == 3 else Status.FAILED
        return one.changed(status=status, reason=failed["error"], fix=failed["hint"]).row
    return one.changed(
        status=Status.FALLBACK if first["fallback_reason"] else Status.OK,
        reason=first["fallback_reason"],
        fix=first["fallback_fix"],
        ran_on=Provider(first["provider"]),
        placement=first["placement"],
        cold=_summary(answers),
    ).row


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
    from kit.errors import KitError
    from kit.runtime import registry
    from kit.runtime.base import RunnerOptions
    from kit.system import serial

    moments.append(time.perf_counter_ns())
    try:
        bundle, inputs = _read(asked)
        variant = bundle.variant(asked["variant"])
        bundle.model(variant)
        moments.append(time.perf_counter_ns())
        options = serial.decode(RunnerOptions, asked["options"])
        with registry.open_runner(asked["runtime"], bundle, variant, options) as runner:
            moments.append(time.perf_counter_ns())
            runner.run(inputs)
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


def _read(asked: dict[str, Any]) -> tuple[Bundle, dict[str, Any]]:
    if "manifest" in asked:
        import numpy as np

        from kit.bundle.manifest import Manifest
        from kit.ready import ReadyModel
        from kit.system import serial

        manifest = serial.decode(Manifest, asked["manifest"])
        with np.load(asked["inputs"]) as arrays:
            inputs = {spec.name: arrays[f"input_{place}"] for place, spec in enumerate(manifest.signature.inputs)}
        return ReadyModel(Path(asked["bundle"]).parent, manifest), inputs
    from kit.bundle import find
    from kit.samples import nearest

    bundle = find(asked["bundle"])
    return bundle, nearest(bundle.golden(), bundle.signature, asked["sizes"]).resized(bundle.signature, asked["sizes"])


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))  # noqa: T201 - the answer to the parent
