"""What a page has done in a process of its own (worker.py): models opened and kept open, asked, counted, benched, checked.

Each task takes a Job and returns plain values and arrays. Contestants are a variant in a runtime, named by their number in the
list that `open_bundle` returned. A page knows nothing more than this of how models are run.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import statistics
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from apps.demo import explain, graphs
from apps.demo.worker import Answer, Job
from kit.accuracy import accuracy, probabilities
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.run import bench
from kit.bundle import Bundle, find, unpack
from kit.bundle.records import Variant
from kit.choices import Provider
from kit.engine import Engine
from kit.errors import BundleInvalid, KitError, StorageUnavailable, UsageError
from kit.lab import data
from kit.lab.data import Split
from kit.runtime import providers, registry
from kit.runtime.base import RunnerOptions
from kit.system import files, serial
from kit.verify import verify

CALLS = 30
"""The latency shown is the median of this many: a single call measures the page, not the model."""

_BATCH = 500
_COUNTED = "accuracy-2"  # of the files that keep what was counted; another number, and older ones are not read
_MOST_PICTURES = 1000


def open_bundle(job: Job) -> dict[str, Any]:
    """Open a bundle's variants in runtimes.

    Asked: `path`, `runtimes` (names; those that cannot run say why), `threads`. What is open already stays so.
    Returns `contestants`: variant, runtime, provider, nodes, problem and fix of each, by number.
    """
    bundle, kept = find(job.asked["path"]), job.state.setdefault("engines", {})
    stand, told = [], []
    threads = int(job.asked.get("threads", 1))
    for runtime in job.asked["runtimes"]:
        for variant in (one for one in bundle.variants if registry.can_run(runtime, one)):
            job.on_progress(f"opening {variant.id} in {runtime}", 0.0)
            key = (str(bundle.origin), variant.artifact.sha256, runtime, threads, str(bundle.spec))
            problem = fix = ""
            try:
                if key not in kept:
                    options = RunnerOptions(threads=threads)
                    kept[key] = Engine(bundle, variant, registry.open_runner(runtime, bundle, variant, options))
            except KitError as error:
                problem, fix = str(error), error.hint
            engine: Engine | None = kept.get(key)
            stand.append(engine)
            told.append(
                {
                    "variant": variant.id,
                    "runtime": runtime,
                    "provider": str(engine.provider) if engine else "",
                    "nodes": engine.placement.describe() if engine and engine.placement.total else "",
                    "problem": problem,
                    "fix": fix,
                }
            )
    job.state["stand"] = stand
    return {"contestants": told}


def predict(job: Job) -> Answer:
    """Ask every contestant.

    Arrays: encoded bytes of a picture uint8 `[n]`, or pixels uint8 `[*input shape]` where `kind` says `pixels`.
    Returns `answers`, for each contestant that runs: number, label, unsure and the median latency in microseconds; and the
    arrays: what the model saw, uint8 `[*input shape]`, and the probabilities float32 `[answers, classes]`.
    """
    running = [(number, one) for number, one in enumerate(job.state["stand"]) if one is not None]
    if not running:
        raise UsageError("nothing is open to be asked")
    given = job.arrays[0]
    first = running[0][1]
    pixels = first.pixels(given if job.asked["kind"] == "pixels" else given.tobytes())
    told, shares = [], []
    for number, engine in running:
        found = [engine.predict(pixels) for _ in range(CALLS)]
        shares.append(found[-1].probabilities[0])
        told.append(
            {
                "number": number,
                "label": int(found[-1].labels[0]),
                "unsure": bool(found[-1].unsure[0]),
                "latency_us": statistics.median(one.latency_us for one in found),
            }
        )
    return Answer({"answers": told}, (pixels[0], np.stack(shares)))


def occlude(job: Job) -> Answer:
    """Find where a contestant looked. Asked: `number`. Arrays: pixels in, heat float32 `[height, width]` out."""
    engine: Engine = job.state["stand"][job.asked["number"]]
    found = explain.occlusion(
        lambda pixels: engine.predict(pixels).logits, job.arrays[0], temperature=engine.spec.temperature
    )
    return Answer({"label": found.label, "patches": found.patches}, (found.heat,))


def count(job: Job) -> Answer:
    """Count the accuracy of every variant on a data set's test images, in ONNX Runtime on the CPU; kept for next time.

    Asked: `path`, `dataset`, `again` (count though it is kept), `only_kept` (count nothing; `kept` says whether there was any).
    Returns for each variant its Accuracy; and the arrays: labels int64 `[N]`, answers int64 `[variants, N]`, probabilities of
    them float32 `[variants, N]`, numbers of the images that any variant misreads or that they disagree on int64 `[m]`, and
    those images uint8 `[m, *shape]`.
    """
    bundle, name = find(job.asked["path"]), str(job.asked["dataset"])
    kept = _kept_path(bundle, name)
    if not job.asked.get("again") and (found := _kept(kept)) is not None:
        return Answer({**_summary(bundle, name, found), "kept": True}, found)
    if job.asked.get("only_kept"):
        return Answer({"kept": False})
    job.on_progress(f"reading {name}", 0.0)
    test = data.load(name).test
    shape = bundle.spec.input.shape
    if not _fits(test, bundle):
        raise UsageError(f"{name} has images {test.images.shape[1:]}, this model takes {shape} of its own classes")
    answers, sure = [], []
    for place, variant in enumerate(bundle.variants):

        def told(share: float, place: int = place, variant: Variant = variant) -> None:
            job.on_progress(variant.id, (place + share) / len(bundle.variants))

        logits = _logits(bundle, variant, test.images, told)
        shares = probabilities(logits, bundle.spec.temperature)
        answers.append(shares.argmax(axis=1))
        sure.append(shares.max(axis=1))
    read = np.stack(answers).astype(np.int64)
    interesting = np.flatnonzero((read != test.labels).any(axis=0) | (read != read[0]).any(axis=0))[:_MOST_PICTURES]
    arrays = (test.labels.astype(np.int64), read, np.stack(sure), interesting, test.images[interesting])
    _keep(kept, arrays)
    return Answer({**_summary(bundle, name, arrays), "kept": False}, arrays)


def measure(job: Job) -> dict[str, Any]:
    """Bench a bundle. Returns the results as JSON text.

    Asked: `path`, and `request`: `providers`, `runtimes`, `variants`, `batch_sizes` (null where it is a `sweep`), `threads`,
    `budget_seconds`.
    """
    asked = job.asked["request"]
    request = Request(
        providers=tuple(map(Provider.parse, asked["providers"])),
        runtimes=tuple(asked["runtimes"]),
        variants=tuple(asked["variants"]),
        batch_sizes=None if asked["batch_sizes"] is None else tuple(asked["batch_sizes"]),
        sweep=bool(asked["sweep"]),
        threads=int(asked["threads"]),
        plan=Plan(budget_seconds=float(asked["budget_seconds"])),
    )
    return {"results": bench(find(job.asked["path"]), request, on_progress=job.on_progress).to_json()}


def check(job: Job) -> dict[str, Any]:
    """Check a packed bundle from anyone before it is used: its frame and hashes, its graphs, its golden samples.

    Asked: `path`, and `into`, the folder it is unpacked into; what is refused does not stay there. Returns the bundle's name
    and what was checked, a sentence each.

    Raises:
        BundleInvalid: It is refused; the message says why.
    """
    job.on_progress("hashes and sizes", 0.1)
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
        job.on_progress(f"graph of {variant.id}", 0.2 + 0.3 * place / len(bundle.variants))
        try:
            graphs.read(bundle.read(variant.artifact))
        except BundleInvalid as error:
            raise BundleInvalid(f"{variant.id}: {error}", hint=error.hint) from error
    job.on_progress("golden samples", 0.6)
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
            f"{len(found.variants)} variants: no weights outside of them, no operators of others",
            f"all {len(found.variants)} agree with their golden samples ({found.golden_source})",
        ],
    }


def _fits(test: Split, bundle: Bundle) -> bool:
    classes = int(test.labels.max(initial=0)) + 1
    return test.images.shape[1:] == bundle.spec.input.shape and classes <= len(bundle.spec.labels)


def _logits(bundle: Bundle, variant: Variant, images: np.ndarray, on_share: Callable[[float], None]) -> np.ndarray:
    parts = []
    with registry.open_runner(registry.DEFAULT, bundle, variant, RunnerOptions()) as runner:
        for start in range(0, len(images), _BATCH):
            parts.append(runner.run(images[start : start + _BATCH]))
            on_share(min(start + _BATCH, len(images)) / len(images))
    return np.concatenate(parts)


def _summary(bundle: Bundle, name: str, arrays: tuple[np.ndarray, ...]) -> dict[str, Any]:
    labels, read = arrays[0], arrays[1]
    classes = len(bundle.spec.labels)
    told = []
    baseline: np.ndarray | None = None
    for variant, answers in zip(bundle.variants, read, strict=True):
        # accuracy() takes logits; one-hot answers say the same
        found = accuracy(
            np.eye(classes, dtype=np.float32)[answers], labels, dataset=name, split="test", baseline=baseline
        )
        baseline = np.eye(classes, dtype=np.float32)[answers] if baseline is None else baseline
        told.append({"variant": variant.id, "accuracy": serial.encode(found)})
    return {"variants": told}


def _kept_path(bundle: Bundle, dataset: str) -> Path:
    parts = [
        _COUNTED,
        dataset,
        str(bundle.spec.temperature),
        *(one.artifact.sha256 for one in bundle.variants),
        registry.DEFAULT,
    ]
    name = hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]
    return Path(platformdirs.user_cache_dir("kit")) / "counted" / f"{name}.npz"


def _kept(path: Path) -> tuple[np.ndarray, ...] | None:
    """Read what was counted before; None where there is nothing, or nothing whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = tuple(found[f"arr_{index}"] for index in range(5))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return arrays


def _keep(path: Path, arrays: tuple[np.ndarray, ...]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, *arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, buffer.getvalue())
    except (OSError, StorageUnavailable):
        return  # counted again next time


def sample(job: Job) -> Answer:
    """Draw a picture: a test image of the bundle's data set where that is at hand, else a golden sample.

    Asked: `path`, `number` (of the draw; the same number gives the same picture). Returns `label` (-1 where nobody knows) and
    `source`; and the pixels uint8 `[*input shape]`.
    """
    bundle, number = find(job.asked["path"]), int(job.asked["number"])
    training = bundle.manifest.training
    name = training.dataset if training else ""
    if f"test {name}" not in job.state:
        found = data.at_hand(name) if name else None
        job.state[f"test {name}"] = found.test if found and _fits(found.test, bundle) else None
    test = job.state[f"test {name}"]
    pick = np.random.default_rng(number).integers
    if test is not None:
        index = int(pick(len(test)))
        source, pixels, label = f"{name} test image {index:,}", test.images[index], int(test.labels[index])
    else:
        golden = bundle.golden()
        index = int(pick(len(golden.pixels)))
        source, pixels, label = f"golden sample {index}", golden.pixels[index], int(golden.labels[index])
    return Answer({"label": label, "source": source}, (pixels,))


def graph(job: Job) -> dict[str, Any]:
    """Read a variant's graph. Asked: `path`, `variant`. Returns its picture in Graphviz's language, operators and opsets."""
    bundle = find(job.asked["path"])
    found = graphs.read(bundle.read(bundle.variant(job.asked["variant"]).artifact))
    return {
        "dot": found.dot(),
        "operators": found.operators,
        "opsets": found.opsets,
        "inputs": list(found.inputs),
        "outputs": list(found.outputs),
        "nodes": len(found.nodes),
    }


def doctor(job: Job) -> dict[str, Any]:  # noqa: ARG001 - every task takes one
    """Prove what runs here. Returns the report of each provider: whether it works, why not, what mends it."""
    return {"providers": [serial.encode(providers.prove(one)) for one in (Provider.CPU, Provider.CUDA)]}
