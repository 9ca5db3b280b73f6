"""What a page has done in a process of its own (worker.py): models opened and kept open, asked, benched, checked.

Each task takes a Job and returns plain values and arrays by name. Contestants are a variant in a runtime, named by their number
in the list that `open_bundle` returned. What is counted on many samples is in counting.py.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.demo import explain, graphs, samples
from apps.demo.worker import Answer, Job
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.run import bench
from kit.bundle import Bundle, Variant, unpack
from kit.choices import Provider
from kit.errors import BundleInvalid, KitError, UsageError
from kit.metrics.fidelity import Fidelity, compare_tensors
from kit.runtime import providers, registry
from kit.runtime.base import Runner, RunnerOptions, run_in_batches
from kit.system import serial
from kit.tasks.base import Task
from kit.tasks.classification import Classes
from kit.tensors import Tensors
from kit.verify import verify

CALLS = 30
"""The latency shown is the median of so many calls, or of as many as PATIENCE_SECONDS allow: one alone measures the page."""

PATIENCE_SECONDS = 0.5
_FIRST_VALUES = 8
_GLANCE_SIDE = 64
_COLOURFUL = 25
"""Mean saturation of a picture, of 255, from which on it is one in colours and no yellowish paper."""


@dataclass(frozen=True)
class _Contestant:
    bundle: Bundle
    variant: Variant
    runner: Runner


def open_bundle(job: Job) -> dict[str, Any]:
    """Open a bundle's variants in runtimes.

    Asked: `path`, `runtimes` (names; those that cannot run say why), `threads`. What is open already stays so.
    Returns `contestants`: variant, runtime, provider, nodes, problem and fix of each, by number.
    """
    bundle, kept = samples.bundle_of(job), job.state.setdefault("open", {})
    stand: list[_Contestant | None] = []
    told: list[dict[str, Any]] = []
    threads = int(job.asked.get("threads", 1))
    wanted = [(name, one) for name in job.asked["runtimes"] for one in bundle.variants if registry.can_run(name, one)]
    for place, (runtime, variant) in enumerate(wanted):
        job.on_progress(f"Opening {variant.id} in {runtime}", place / len(wanted))
        key = (str(bundle.origin), variant.graph.sha256, runtime, threads, str(bundle.manifest.task))
        problem = fix = ""
        try:
            if key not in kept:
                options = RunnerOptions(threads=threads)
                kept[key] = _Contestant(bundle, variant, registry.open_runner(runtime, bundle, variant, options))
        except KitError as error:
            problem, fix = str(error), error.hint
        found: _Contestant | None = kept.get(key)
        stand.append(found)
        told.append(
            {
                "variant": variant.id,
                "runtime": runtime,
                "provider": str(found.runner.provider) if found else "",
                "nodes": found.runner.placement.describe() if found and found.runner.placement.total else "",
                "problem": problem,
                "fix": fix,
            }
        )
    job.state["stand"] = stand
    job.state["problems"] = [one["problem"] for one in told if one["problem"]]
    return {"contestants": told}


def predict(job: Job) -> Answer:
    """Ask every contestant.

    Asked: `kind`, and what goes with it: `picture` (array `file`: an encoded picture, uint8 `[n]`), `items` (`raw`: plain
    values that the model's task knows), `file` (array `file`: an .npz, uint8 `[n]`), or `sample` (what `sample` was asked).
    Returns `kind` of the answers (`classes`, `vectors` or `tensors`), `against` (who the answers are compared with), and
    `answers`, for each contestant that runs: number, the median latency of some calls in microseconds, its records, its
    fidelity and a summary of its outputs; for classes the names of `classes` and for each answer `label` and `unsure`. The
    arrays are what the model saw, `input NAME`, and for each answer `probabilities NUMBER` or `vectors NUMBER`.
    """
    running = [(number, one) for number, one in enumerate(job.state["stand"]) if one is not None]
    if not running:
        reasons = "; ".join(dict.fromkeys(job.state["problems"]))
        raise UsageError(f"no variant could be opened: {reasons}")
    bundle = running[0][1].bundle
    task = _task(bundle, job)
    inputs, expected = _question(job, bundle, task)
    against = "the original" if expected is not None else f"{running[0][1].variant.id} · {running[0][1].runner.runtime}"
    answers, arrays = [], {f"input {name}": array for name, array in inputs.items()}
    kind = "tensors"
    about: dict[str, Any] = {
        "has_colours": job.asked["kind"] == "picture" and _has_colours(job.arrays["file"].tobytes())
    }
    for number, one in running:
        outputs, times_us = _timed(one.runner, inputs)
        expected = outputs if expected is None else expected
        found = task.decode(outputs, inputs)
        told = {
            "number": number,
            "calls": len(times_us),
            "latency_us": statistics.median(times_us),
            "fidelity": [serial.encode(each) for each in _fidelity(expected, outputs)],
            "outputs": [_summary(name, array) for name, array in outputs.items()],
        }
        if isinstance(found, Classes):
            kind, about["classes"] = "classes", list(found.classes)
            told |= {"label": int(found.labels[0]), "unsure": bool(found.unsure[0])}
            arrays[f"probabilities {number}"] = found.probabilities
        elif isinstance(vectors := getattr(found, "vectors", None), np.ndarray) and vectors.ndim == 2:
            kind = "vectors"
            arrays[f"vectors {number}"] = vectors
        else:
            told |= {"records": _short(found.records())}
        answers.append(told)
    return Answer({"kind": kind, "against": against, "answers": answers, **about}, arrays)


def _task(bundle: Bundle, job: Job) -> Task:
    key = f"task {bundle.origin} {bundle.manifest.task}"
    if key not in job.state:
        job.state[key] = samples.known_task(bundle)
    found: Task = job.state[key]
    return found


def _question(job: Job, bundle: Bundle, task: Task) -> tuple[Tensors, Tensors | None]:
    kind = job.asked["kind"]
    if kind == "sample":
        drawn = samples.draw(bundle, job)
        return drawn.samples.inputs, drawn.samples.expected
    if kind == "file":
        return samples.from_file(job.arrays["file"].tobytes(), bundle.signature), None
    items = [job.arrays["file"].tobytes()] if kind == "picture" else [task.item(raw) for raw in job.asked["raw"]]
    return bundle.signature.arrays(task.encode(items)), None


def _has_colours(picture: bytes) -> bool:
    with Image.open(io.BytesIO(picture)) as opened:
        opened.thumbnail((_GLANCE_SIDE, _GLANCE_SIDE))
        saturation = np.asarray(opened.convert("RGB").convert("HSV"))[..., 1]
    return float(saturation.mean()) > _COLOURFUL


def _timed(runner: Runner, inputs: Tensors) -> tuple[dict[str, NDArray[Any]], list[float]]:
    """Return the outputs, and how long some calls took in microseconds."""
    times: list[float] = []
    until = time.perf_counter() + PATIENCE_SECONDS
    while not times or (len(times) < CALLS and time.perf_counter() < until):
        started = time.perf_counter_ns()
        outputs = runner.run(inputs)
        times.append((time.perf_counter_ns() - started) / 1e3)
    return outputs, times


def _fidelity(expected: Tensors, outputs: Tensors) -> tuple[Fidelity, ...]:
    """Compare outputs; those whose size differs from the other's, as boxes may, cannot be."""
    same = [name for name, array in outputs.items() if name in expected and array.shape == expected[name].shape]
    found: list[Fidelity] = []
    for name in same:
        with contextlib.suppress(ValueError):  # figures that are no numbers say nothing
            found += compare_tensors({name: expected[name]}, {name: outputs[name]})
    return tuple(found)


def _summary(name: str, array: NDArray[Any]) -> dict[str, Any]:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    told: dict[str, Any] = {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "first": [_plain(one) for one in array.reshape(-1)[:_FIRST_VALUES]],
        "strange": int(array.size - finite.size),
    }
    if finite.size:
        wide = finite.astype(np.float64)
        told |= {
            "least": float(wide.min()),
            "most": float(wide.max()),
            "mean": float(wide.mean()),
            "spread": float(wide.std()),
        }
    return told


def _plain(value: Any) -> str:
    return f"{value:.4g}" if np.asarray(value).dtype.kind == "f" else str(value)


def _short(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{str(name): str(value)[:200] for name, value in record.items()} for record in records[:_FIRST_VALUES]]


def occlude(job: Job) -> Answer:
    """Find where a contestant looked. Asked: `number`. Arrays: its inputs, by name; `heat` float32 `[height, width]` out."""
    one: _Contestant = job.state["stand"][job.asked["number"]]
    task = _task(one.bundle, job)
    inputs = one.bundle.signature.arrays(job.arrays)
    name = explain.picture_of(one.bundle.signature)
    if name is None:
        raise UsageError("none of its inputs is a picture")

    def shares(pictures: NDArray[Any]) -> NDArray[np.float32]:
        given = {name: pictures, **_repeated(inputs, name, len(pictures), one.bundle)}
        found = task.decode(run_in_batches(one.runner, given), given)
        if not isinstance(found, Classes):
            raise UsageError("only answers that are classes can be explained")
        return found.probabilities

    spec = one.bundle.signature.input(name)
    found = explain.occlusion(shares, inputs[name][0], **explain.patches(inputs[name].shape[1:], spec.dtype))
    return Answer({"label": found.label, "patches": found.patches}, {"heat": found.heat})


def _repeated(inputs: Tensors, left_out: str, times: int, bundle: Bundle) -> Mapping[str, NDArray[Any]]:
    rows = np.zeros(times, np.int64)
    return bundle.signature.take({name: array for name, array in inputs.items() if name != left_out}, rows)


def measure(job: Job) -> dict[str, Any]:
    """Bench a bundle. Returns the results as JSON text.

    Asked: `path`, and `request`: `providers`, `runtimes`, `variants`, `points` (sizes of the axes; null if an axis is swept),
    `sweep` (that axis, or null), `threads`, `budget_seconds`.
    """
    asked = job.asked["request"]
    points = asked["points"]
    request = Request(
        providers=tuple(map(Provider.parse, asked["providers"])),
        runtimes=tuple(asked["runtimes"]),
        variants=tuple(asked["variants"]),
        points=None if points is None else tuple({str(k): int(v) for k, v in one.items()} for one in points),
        sweep=asked["sweep"],
        runner=RunnerOptions(threads=int(asked["threads"])),
        plan=Plan(budget_seconds=float(asked["budget_seconds"])),
    )
    return {"results": bench(samples.bundle_of(job), request, on_progress=job.on_progress).to_json()}


def check(job: Job) -> dict[str, Any]:
    """Check a packed bundle from anyone before it is used: its frame and hashes, its graphs, its golden samples.

    Asked: `path`, and `into`, the folder it is unpacked into; what is refused does not stay there. Returns the bundle's name
    and what was checked, a sentence each.

    Raises:
        BundleInvalid: It is refused; the message says why.
    """
    job.on_progress("Hashes and sizes", 0.1)
    bundle = unpack(Path(job.asked["path"]), Path(job.asked["into"]))
    try:
        return _checked(bundle, job)
    except BaseException:
        shutil.rmtree(bundle.folder, ignore_errors=True)
        raise


def _checked(bundle: Bundle, job: Job) -> dict[str, Any]:
    if not bundle.variants:
        raise BundleInvalid(f"{bundle.name} holds no variant")
    for place, variant in enumerate(bundle.variants):
        job.on_progress(f"Graph of {variant.id}", 0.2 + 0.3 * place / len(bundle.variants))
        try:
            _read_graph(bundle, variant)
        except BundleInvalid as error:
            raise BundleInvalid(f"{variant.id}: {error}", hint=error.hint) from error
    job.on_progress("Golden samples", 0.6)
    found = verify(bundle)
    failed = [one for one in found.variants if not one.ok]
    said = [
        f"{one.variant}: {one.problem or (one.verdict.reason if one.verdict else 'it did not run')}" for one in failed
    ]
    if not found.ok:
        wrong = [one.problem for one in found.files if not one.ok]
        raise BundleInvalid(f"it does not do here what its manifest promises: {'; '.join([*wrong, *said])}")
    return {
        "name": bundle.name,
        "checked": [
            f"{len(found.files)} files, all as its manifest names them",
            f"{len(found.variants)} variants: no weights in files of others, no operators of others",
            f"all {len(found.variants)} agree with their golden samples ({found.golden_source})",
        ],
    }


def _read_graph(bundle: Bundle, variant: Variant) -> graphs.GraphView:
    return graphs.read(bundle.check(variant.graph), files=[one.file for one in variant.data])


def sample(job: Job) -> Answer:
    """Draw a sample: a test sample of the bundle's data set if that is at hand, else a golden one.

    Asked: `path`, `number` (of the draw; the same number gives the same sample), `golden` (draw golden ones alone). Returns its
    `source`, and `right`, the right answer in words, empty if nobody knows it; the arrays are its inputs.
    """
    drawn = samples.draw(samples.bundle_of(job), job)
    return Answer({"source": drawn.source, "right": drawn.right}, drawn.samples.inputs)


def examples(job: Job) -> dict[str, Any]:
    """Return `raw`, the items that travel in a bundle as plain values. Asked: `path`."""
    bundle = samples.bundle_of(job)
    found = bundle.items()
    return {"raw": list(found.raw) if found else []}


def graph(job: Job) -> dict[str, Any]:
    """Read a variant's graph. Asked: `path`, `variant`. Returns its picture in Graphviz's language, operators and opsets."""
    bundle = samples.bundle_of(job)
    found = _read_graph(bundle, bundle.variant(job.asked["variant"]))
    return {
        "dot": found.dot(),
        "operators": found.operators,
        "opsets": found.opsets,
        "inputs": list(found.inputs),
        "outputs": list(found.outputs),
        "nodes": len(found.nodes),
        "not_drawn": max(len(found.drawn) - graphs.MOST_DRAWN, 0),
    }


def doctor(job: Job) -> dict[str, Any]:  # noqa: ARG001 - every task takes one
    """Prove what runs here. Returns the report of each provider: whether it works, why not, what mends it."""
    return {"providers": [serial.encode(providers.prove(one)) for one in (Provider.CPU, Provider.CUDA)]}
