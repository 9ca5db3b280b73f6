"""What a page has counted on many samples, in a process of its own (worker.py), and kept for next time."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from apps.demo.explain import picture_of
from apps.demo.samples import bundle_of, known_task, names_of, splits_of
from apps.demo.worker import Answer, Job
from kit import datasets as registered
from kit import metrics
from kit.bundle import Bundle, Variant
from kit.errors import StorageUnavailable, UsageError
from kit.metrics import Metric, Values
from kit.runtime import registry
from kit.runtime.base import BATCH_BYTES, Runner, RunnerOptions
from kit.samples import Samples
from kit.samples import count as count_samples
from kit.system import files, serial
from kit.system.npz import open_npz
from kit.tasks.base import Task, scored_output
from kit.tasks.classification import Classes
from kit.tensors import Tensors

GOLDEN = ""
"""Stands for the golden samples where a data set is named."""

_COUNTED = "counted-3"  # of the files that keep what was counted; with another number, older ones are not read
_MOST_SHOWN = 1000
_FOR_ALL = ("agreement", "cosine", "max-error")


def datasets(job: Job) -> dict[str, Any]:
    """Return `names`, the data sets at hand that fit a bundle; GOLDEN, its own samples, is always among them. Asked: `path`."""
    splits = splits_of(bundle_of(job), job)
    return {"names": [*([splits.dataset] if splits else []), GOLDEN]}


def count(job: Job) -> Answer:
    """Score every variant on a data set's test samples, in ONNX Runtime on the CPU; kept for next time.

    Asked: `path`, `dataset` (GOLDEN: the golden samples), `again` (count though it is kept), `only_kept` (count nothing; `kept`
    says whether there was any).
    Returns `variants`: of each its `scores`; `samples`; `against`, whose answers stand for right ones where no labels are
    known. Of classifiers with two arrays more: `labels` int64 `[N]`, `answers` int64 `[variants, N]`, `sure` float32
    `[variants, N]` (probabilities of the answers), `numbers` int64 `[m]` of the samples that any variant misreads or that they
    disagree on, and `pictures` `[m, *shape]` of those, if an input is a picture.
    """
    bundle, name = bundle_of(job), str(job.asked["dataset"])
    place = _kept_path(bundle, name)
    if not job.asked.get("again") and (found := _kept(place)) is not None:
        return Answer({**found.told, "kept": True}, found.arrays)
    if job.asked.get("only_kept"):
        return Answer({"kept": False})
    job.on_progress(f"Reading {name or 'golden samples'}", 0.0)
    found = _counted(bundle, _groups(bundle, name, job), name, job)
    _keep(place, found)
    return Answer({**found.told, "kept": False}, found.arrays)


def _groups(bundle: Bundle, name: str, job: Job) -> tuple[Samples, ...]:
    if name == GOLDEN:
        return bundle.golden()
    splits = splits_of(bundle, job)
    if splits is not None and splits.dataset == name:
        return splits.test
    if name not in registered.names():  # never a path: what a page names, a stranger may have written
        raise UsageError(f"{name} is no data set of this model", hint="choose the golden samples")
    test = registered.load(name, known_task(bundle), bundle.signature).test
    names, labels = names_of(bundle), _targets(test)
    if names and labels is not None and int(labels.max(initial=0)) >= len(names):
        raise UsageError(f"{name} has {int(labels.max()) + 1} classes, this model {len(names)} of its own")
    return test


@dataclass(frozen=True)
class _Asked:
    """What one variant answered."""

    outputs: list[dict[str, NDArray[Any]]]
    labels: NDArray[np.int64] | None
    sure: NDArray[np.float32] | None


def _counted(bundle: Bundle, groups: Sequence[Samples], name: str, job: Job) -> Answer:
    task, baseline = known_task(bundle), bundle.baseline or bundle.variants[0]
    ordered = [baseline, *(one for one in bundle.variants if one.id != baseline.id)]
    wanted = _metrics(task, groups)
    scores: dict[str, list[dict[str, Any]]] = {}
    classes: dict[str, _Asked] = {}
    before: dict[str, Values] = {}
    against = "labels" if _targets(groups) is not None else "the original"
    for place, variant in enumerate(ordered):

        def told(share: float, place: int = place, variant: Variant = variant) -> None:
            job.on_progress(variant.id, (place + share) / len(ordered))

        asked = _ask(bundle, variant, groups, task, told)
        if any(group.expected is None for group in groups):  # a data set: the baseline stands for the original
            groups = [replace(group, expected=own) for group, own in zip(groups, asked.outputs, strict=True)]
        scores[variant.id] = []
        for metric in wanted:
            try:
                values = metrics.evaluate(
                    metric,
                    asked.outputs,
                    groups,
                    signature=bundle.signature,
                    output=scored_output(task, bundle.signature),
                )
                scored = metrics.score(
                    metric, values, dataset=name or "golden samples", split="test", baseline=before.get(metric.name)
                )
            except (UsageError, ValueError):  # it does not suit these outputs
                continue
            before.setdefault(metric.name, values)
            scores[variant.id].append(serial.encode(scored))
        classes[variant.id] = replace(asked, outputs=[])
    told_of = [{"variant": one.id, "scores": scores[one.id]} for one in bundle.variants]
    summary = {
        "variants": told_of,
        "samples": count_samples(groups, bundle.signature),
        "against": against,
        "classes": list(names_of(bundle)),
    }
    return Answer(summary, _of_classes(bundle, groups, task, [classes[one.id] for one in bundle.variants]))


def _metrics(task: Task, groups: Sequence[Samples]) -> list[Metric]:
    """Return the task's metrics and those that compare with the original, as far as the samples allow."""
    has_targets = all(group.targets for group in groups)
    found = [metrics.find(name) for name in dict.fromkeys((*task.metrics, *_FOR_ALL))]
    return [one for one in found if has_targets or not one.needs_targets]


def _ask(
    bundle: Bundle, variant: Variant, groups: Sequence[Samples], task: Task, on_share: Callable[[float], None]
) -> _Asked:
    total, done = count_samples(groups, bundle.signature), 0
    outputs, labels, sure = [], [], []
    with registry.open_runner(registry.DEFAULT, bundle, variant, RunnerOptions()) as runner:
        for group in groups:
            pieces = []
            for piece in _pieces(runner, group.inputs):
                pieces.append(runner.run(piece))
                done += runner.signature.rows(piece)
                on_share(min(done / total, 1.0))
            outputs.append(bundle.signature.join(pieces))
            found = task.decode(outputs[-1], group.inputs)
            if isinstance(found, Classes):
                labels.append(found.labels)
                sure.append(found.probabilities.max(axis=1))
    if not labels:
        return _Asked(outputs, None, None)
    return _Asked(outputs, np.concatenate(labels).astype(np.int64), np.concatenate(sure).astype(np.float32))


def _pieces(runner: Runner, inputs: Tensors) -> Iterator[dict[str, NDArray[Any]]]:
    rows = runner.signature.rows_within(BATCH_BYTES // 8, runner.signature.sizes(inputs))
    yield from runner.signature.split(inputs, rows)


def _targets(groups: Sequence[Samples]) -> NDArray[np.int64] | None:
    """Return the label of each sample; None if labels are not known, or not one for each sample."""
    found = [(group.targets or {}).get("labels") for group in groups]
    known = [one for one in found if one is not None and one.ndim == 1 and one.dtype.kind in "iu"]
    return np.concatenate(known).astype(np.int64) if len(known) == len(groups) else None


def _of_classes(
    bundle: Bundle, groups: Sequence[Samples], task: Task, asked: Sequence[_Asked]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of `count` for a classifier; none for others."""
    read, sure = (
        [one.labels for one in asked if one.labels is not None],
        [one.sure for one in asked if one.sure is not None],
    )
    if len(read) != len(asked):
        return {}
    labels = _targets(groups)
    if labels is None:
        decoded = [task.decode(group.expected or {}, group.inputs) for group in groups]
        labels = np.concatenate([one.labels for one in decoded if isinstance(one, Classes)])
    answers = np.stack(read)
    numbers = np.flatnonzero((answers != labels).any(axis=0) | (answers != answers[0]).any(axis=0))[:_MOST_SHOWN]
    arrays: dict[str, NDArray[Any]] = {
        "labels": labels,
        "answers": answers,
        "sure": np.stack(sure),
        "numbers": numbers.astype(np.int64),
    }
    name = picture_of(bundle.signature)
    if name is not None and len(groups) == 1:
        arrays["pictures"] = bundle.signature.take({name: groups[0].inputs[name]}, numbers)[name]
    return arrays


def _kept_path(bundle: Bundle, dataset: str) -> Path:
    parts = [
        _COUNTED,
        dataset or bundle.manifest.golden.file.sha256,
        str(bundle.manifest.task),
        *(ref.sha256 for one in bundle.variants for ref in one.files()),
        str(bundle.manifest.baseline),
        registry.DEFAULT,
    ]
    name = hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]
    return Path(platformdirs.user_cache_dir("kit")) / "counted" / f"{name}.npz"


def _kept(path: Path) -> Answer | None:
    try:
        with path.open("rb") as file, open_npz(file) as found:
            told = json.loads(str(found["meta"]))
            return Answer(told, {name: found[name] for name in found.files if name != "meta"})
    except (OSError, ValueError, RecursionError):
        return None


def _keep(path: Path, found: Answer) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, meta=np.array(json.dumps(found.told)), **found.arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, buffer.getvalue())
    except (OSError, StorageUnavailable):
        return  # counted again next time
