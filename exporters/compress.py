"""`kit compress`: a smaller dense network that gives the original's answers, so much faster, in a bundle of its own.

How small is measured, not guessed: networks of falling width are benched beside the original on this machine, and the widest
that is surely fast enough is taken. Its units are those of the original that matter most (prune), fitted again to the
original's answers on distorted views; what comes out is exported and gated like any model, and held to the original's top-1,
image by image. Only for the dense networks that `kit train` makes.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from exporters import candidates, pipeline, sources, workbench
from exporters.bars import hold
from exporters.candidates import Candidate
from exporters.gate import Passed
from exporters.options import DEFAULT_OPSET, ExportOptions
from exporters.prune import dispensable_border, prune
from exporters.search import trial
from exporters.sources.base import Original
from exporters.workbench import Workbench
from kit import bundle as bundles
from kit import datasets, tuning
from kit.bench.measure import Plan
from kit.bench.results import Results
from kit.bundle import Bundle, Staged, Variant
from kit.bundle.manifest import MANIFEST, Provenance, check_name
from kit.choices import Precision, VariantFormat
from kit.errors import CheckFailed, DatasetUnavailable, UsageError
from kit.lab import models, records
from kit.lab.blueprint import ARCHITECTURE, Blueprint
from kit.lab.data.strokes import draw_digits
from kit.lab.models import Mlp
from kit.lab.records import Origin, Speedup, TrainingRecord
from kit.lab.training import confidence
from kit.lab.training.distill import distill
from kit.lab.training.recipe import Recipe, recipe
from kit.lab.training.threads import quickest, rehearsal
from kit.lab.training.trained import answers
from kit.lab.training.world import World, world
from kit.metrics import Score
from kit.runtime.base import RunnerOptions
from kit.samples import Splits
from kit.system import files, machine
from kit.system.progress import OnProgress, silent
from kit.system.wording import percent
from kit.tensors import BATCH
from kit.tuning import Judgement

MULTIPLE = 16
"""Hidden layers have a multiple of so many units: what a vector holds."""

_AT_ONCE = 5
_SHOWN = 10_000
_LEAST_STEPS, _LEAST_BATCH = 100, 32  # a few images give few steps an epoch: smaller batches, and smaller steps
_ORIGINAL = "original"
_VALIDATION, _TEST = "validation", "test"

Smaller = Callable[[tuple[int, ...]], Mlp]


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How small, and how good.

    Attributes:
        target_speedup: How many times as fast as the original's fp32 the new fp32 must be, at every batch size.
        max_loss: Largest loss of top-1 against the original's fp32, 0.001 for 0.1 points.
        epochs: Of the fitting, each of as many views as there are training images.
    """

    target_speedup: float = 3.0
    batch_sizes: tuple[int, ...] = (1, 64)
    threads: int = 1
    max_loss: float = 0.001
    epochs: int = 200
    seed: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse what cannot be reached or measured."""
        if not self.target_speedup > 1:
            raise UsageError(f"the target must be above 1, found {self.target_speedup:g}")
        if not self.batch_sizes or min(self.batch_sizes) < 1 or self.epochs < 1:
            raise UsageError("batch sizes and epochs must be 1 or more")
        if not self.max_loss >= 0:
            raise UsageError(f"the allowed loss must not be negative, found {self.max_loss}")
        RunnerOptions(threads=self.threads)  # refuses too many


@dataclass(frozen=True, kw_only=True)
class CompressReport:
    """What was published.

    Attributes:
        judgement: All variants of both, measured in one run, the original's fp32 as the baseline.
        weights: How many the original has, and the new network.
    """

    bundle: Bundle
    passed: tuple[Passed, ...]
    judgement: Judgement
    results: Results
    origin: Origin
    weights: tuple[int, int]


def compress(
    bundle: Bundle,
    out: Path,
    options: CompressOptions,
    *,
    data_dir: Path | None = None,
    on_progress: OnProgress = silent,
) -> CompressReport:
    """Make a smaller bundle of a dense network that kit trained; that stays, and `out` is replaced if it is a bundle.

    Raises:
        UsageError: The network is not a dense one, or `out` holds other things.
        DatasetUnavailable: The data set it was trained on is not here.
        CheckFailed: No width is fast enough.
        GateFailed: The smaller network loses too much; nothing was written.
    """
    _check_destination(bundle, out)
    with workbench.staging_beside(out) as folder:
        on_progress("reading data")
        model = _Trained.of(bundle, data_dir)
        bench = workbench.for_bundle(bundle, folder, opset=DEFAULT_OPSET, data=model.splits, on_progress=on_progress)
        crop = model.crop()

        def smaller(hidden: tuple[int, ...]) -> Mlp:
            return prune(model.module, hidden, crop, model.shown, model.blueprint.normalization)

        hidden = _widest(model, bench, smaller, options, on_progress)
        chosen = _recipe(model, hidden, crop, options)
        fitted, seconds, device = _fitted(model, smaller(hidden), chosen, on_progress)
        blueprint = _calibrated(model, fitted, chosen.model)
        new = _own_bench(fitted, blueprint, out.name, bundle, model, folder, options, on_progress)
        against = {new.baseline.variant.id: _against(new.baseline, model, bench, options.max_loss)}
        exported = ExportOptions(
            precisions=(Precision.FP32, Precision.INT8), formats=(VariantFormat.QDQ, VariantFormat.PIXEL)
        )
        passed = pipeline.make(new, exported, on_progress)
        for one in passed[1:]:
            against[one.variant.id] = _against(one, model, bench, options.max_loss)
        on_progress("measuring both")
        results = _measure(bench, _both(bundle, bench, passed, against), options, on_progress)
        _check_reached(results, new.baseline.variant.id, options)
        first = against[new.baseline.variant.id]
        record = _record(model.record, chosen, first.get(_VALIDATION), seconds, device)
        origin = _origin(
            bundle, model, hidden, crop, first[_TEST], _speedups(results, new.baseline.variant.id), results
        )
        on_progress("publishing")
        published = bundles.create(
            out,
            name=out.name,
            signature=new.signature,
            golden=new.golden,
            items=bundle.items(),
            tools=machine.tool_versions(),
            task=blueprint.task,
            original=Provenance(kind=ARCHITECTURE, name=blueprint.architecture),
            weights=models.save_weights(fitted),
            variants=tuple(one.staged for one in passed),
            attachments=records.attachments(training=record, origin=origin),
        )
    return CompressReport(
        bundle=published,
        passed=passed,
        judgement=tuning.judge(results),
        results=results,
        origin=origin,
        weights=(_weights(model.module), _weights(fitted)),
    )


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What is compressed: the network with its weights, and the images it was trained on.

    `pixels`, uint8 `[N, height, width]`, are all that the smaller network may learn from.
    """

    module: Mlp
    blueprint: Blueprint
    record: TrainingRecord
    splits: Splits
    pixels: torch.Tensor

    @classmethod
    def of(cls, bundle: Bundle, data_dir: Path | None) -> _Trained:
        blueprint, record, module = Blueprint.of(bundle), records.training_record(bundle), models.original(bundle)
        if blueprint is None or record is None or module is None:
            raise UsageError(
                f"bundle {bundle.name!r} was not made by kit train, and nothing else can be compressed",
                hint=f"quantize it: kit export {bundle.name} --precision int8",
            )
        if not isinstance(module, Mlp) or module.crop:
            raise UsageError(
                f"{blueprint.architecture} cannot be compressed: kit prunes dense networks, once",
                hint="start from an mlp-... that kit train made",
            )
        splits = datasets.of(bundle, data_dir=data_dir)
        if splits is None or splits.train is None:
            raise DatasetUnavailable(
                f"the data set {record.dataset!r}, which {bundle.name!r} was trained on, is not on this machine",
                hint="say where it is: --data-dir FOLDER",
            )
        # what the original was trained on, the smaller network may see as well
        parts = (splits.train, splits.validation) if _has_seen_all(splits) else (splits.train,)
        images = np.concatenate([next(iter(group.inputs.values())) for part in parts for group in part])
        drawn, signs = (int(record.recipe.get(name, 0)) for name in ("drawn", "signs"))
        drawings = draw_digits(drawn, signs=signs, seed=record.seed).images
        pixels = torch.from_numpy(np.concatenate([images, drawings]) if len(drawings) else images)
        return cls(module=module, blueprint=blueprint, record=record, splits=splits, pixels=pixels)

    @property
    def shown(self) -> torch.Tensor:
        # enough to see what the units do
        return self.pixels[:_SHOWN]

    def crop(self) -> int:
        height, width = self.blueprint.shape
        return dispensable_border(self.module, self.shown, self.blueprint.normalization, height=height, width=width)


def _check_destination(bundle: Bundle, out: Path) -> None:
    """Refuse, before anything is made, what could not be written at the end."""
    try:
        check_name(out.name)
    except ValueError as error:
        raise UsageError(str(error), hint="choose another --out") from error
    if out.resolve() in {bundle.folder.resolve(), bundle.origin.resolve()}:
        raise UsageError(
            f"{out} is the bundle that is to be compressed", hint="choose another --out: it stays as it is"
        )
    bundles.refuse_foreign(out)
    files.check_writable(out / MANIFEST)


def _widest(
    model: _Trained,
    bench: Workbench,
    smaller: Smaller,
    options: CompressOptions,
    on_progress: OnProgress,
) -> tuple[int, ...]:
    """Return the widest hidden layers, in the original's proportions, that are surely fast enough in every batch."""
    hidden = model.module.sizes[1:-1]
    firsts = list(range(MULTIPLE, hidden[0], MULTIPLE)) or [max(hidden[0] // 2, 1)]
    low, high = -1, len(firsts)  # fast enough at `low` and below, too slow at `high` and above
    fastest = 0.0
    while high - low > 1:
        places = sorted({round(place) for place in np.linspace(low, high, min(_AT_ONCE, high - low - 1) + 2)[1:-1]})
        tried = {place: _scaled(hidden, firsts[place]) for place in places}
        on_progress("measuring widths " + ", ".join("-".join(map(str, one)) for one in tried.values()))
        measured = [_renamed(bench.baseline.variant, _ORIGINAL, bench.baseline.folder)]
        for place, sizes in tried.items():
            made = _written(smaller(sizes), model.blueprint, bench.source.folder)
            variant = dataclasses.replace(bench.baseline.variant, graph=made.files.graph, data=made.files.data)
            measured.append(_renamed(variant, f"width-{place}", made.files.folder))
        results = _measure(bench, measured, options, silent)
        for place in places:
            speedups = _speedups(results, f"width-{place}")
            slowest = min((one.low for one in speedups), default=0.0)
            fastest = max(fastest, slowest)
            if slowest < options.target_speedup:
                high = place
                break  # a wider one that seems faster owes it to noise
            low = place
    if low < 0:
        raise CheckFailed(
            f"no width of this network is {options.target_speedup:g} times as fast here at batch "
            f"{' and '.join(map(str, options.batch_sizes))}; {fastest:.2f} times was the most",
            hint="use a lower --target-speedup, or larger --batch-size: for one image the call itself takes its time",
        )
    return _scaled(hidden, firsts[low])


def _scaled(hidden: Sequence[int], first: int) -> tuple[int, ...]:
    share = first / hidden[0]
    return tuple(min(size, max(MULTIPLE, round(size * share / MULTIPLE) * MULTIPLE)) for size in hidden)


def _written(module: nn.Module, blueprint: Blueprint, folder: Path) -> Candidate:
    original = _opened(module, blueprint, _ORIGINAL)
    try:
        return candidates.baseline(original.write(Path(tempfile.mkdtemp(dir=folder)), opset=DEFAULT_OPSET))
    finally:
        original.close()


def _opened(module: nn.Module, blueprint: Blueprint, name: str) -> Original:
    return sources.open_source(
        models.from_pixels(module, blueprint.normalization),
        name=name,
        signature=blueprint.signature,
        inputs=None,
        task=None,
        weights=None,
    )


def _recipe(model: _Trained, hidden: tuple[int, ...], crop: int, options: CompressOptions) -> Recipe:
    """Return how the smaller network is fitted: as the record recipe's student, undistorted if the original was."""
    base = recipe("record", dataset=model.record.dataset)
    assert base.teaching is not None  # it has teachers
    teaching, distortion = base.teaching, base.distortion
    if model.record.recipe.get("augment") == "False":
        teaching = dataclasses.replace(teaching, views=1, calm_views=0)
        distortion = distortion.times(0.0)
    batch_size = min(base.batch_size, max(_LEAST_BATCH, len(model.pixels) // _LEAST_STEPS))
    return dataclasses.replace(
        base,
        model=models.mlp_name(hidden, crop=crop),
        batch_size=batch_size,
        lr=base.lr * math.sqrt(batch_size / base.batch_size),
        epochs=options.epochs,
        seed=options.seed,
        distortion=distortion,
        teaching=teaching,
        confidence=None,
    )


def _fitted(model: _Trained, student: Mlp, chosen: Recipe, on_progress: OnProgress) -> tuple[nn.Module, float, str]:
    """Return the smaller network, fitted to the original's answers, the seconds that took, and where."""
    started = time.perf_counter()
    with world("auto") as here:
        _choose_threads(model, chosen, here, on_progress)
        fitted = distill(
            student,
            model.module,
            model.pixels,
            chosen,
            model.blueprint.normalization,
            world=here,
            on_progress=lambda what, share=None: on_progress(f"{what} ({percent(share or 0.0)})"),
        )
        device = f"{here.device.type} {'bfloat16' if chosen.bf16 and here.has_fast_bf16() else 'float32'}"
    return fitted, time.perf_counter() - started, device


def _choose_threads(model: _Trained, chosen: Recipe, here: World, on_progress: OnProgress) -> None:
    most = torch.get_num_threads()
    if most == 1 or here.size > 1 or here.device.type != "cpu":
        return
    on_progress("choosing threads")
    blueprint = model.blueprint
    quickest(
        rehearsal(model.pixels, chosen, here, outputs=len(blueprint.labels), normalization=blueprint.normalization),
        most,
    )


def _calibrated(model: _Trained, fitted: nn.Module, architecture: str) -> Blueprint:
    blueprint = dataclasses.replace(model.blueprint, architecture=architecture)
    if _has_seen_all(model.splits):
        return blueprint
    (held,) = model.splits.validation
    (pixels,), targets = held.inputs.values(), held.targets or {}
    temperature, threshold, _ = confidence.fit(answers(fitted, blueprint, pixels), targets["labels"])
    return dataclasses.replace(blueprint, temperature=temperature, abstain_below=threshold)


def _own_bench(
    fitted: nn.Module,
    blueprint: Blueprint,
    name: str,
    bundle: Bundle,
    model: _Trained,
    folder: Path,
    options: CompressOptions,
    on_progress: OnProgress,
) -> Workbench:
    return workbench.of(
        _opened(fitted, blueprint, name),
        folder,
        opset=DEFAULT_OPSET,
        golden=[dataclasses.replace(group, expected=None) for group in bundle.golden()],
        data=model.splits,
        task=blueprint.task,
        max_loss=max(options.max_loss, 1e-9),
        on_progress=on_progress,
    )


def _against(one: Passed, model: _Trained, bench: Workbench, max_loss: float) -> dict[str, Score]:
    """Hold a new variant to the original's fp32; return the scores by split."""
    # If the original was trained on all images, only the test split tells what either reads, not remembers.
    bar = dataclasses.replace(bench.proof.bars[0], max_loss=max_loss)
    scores = {}
    for split in (_TEST,) if _has_seen_all(model.splits) else (_VALIDATION, _TEST):
        values, before = one.values[split][0], bench.baseline.values[split][0]
        assert values is not None  # the data have labels
        scores[split] = hold(
            bar,
            values,
            before,
            name=f"{one.variant.id} of the smaller network",
            dataset=model.splits.dataset,
            split=split,
            hint="nothing was published; use a lower --target-speedup, more --epochs, or allow more with --max-drop",
        )
    return scores


def _has_seen_all(splits: Splits) -> bool:
    """Whether the original was trained on all images, those that the gate calls validation too."""
    return splits.validation_name != _VALIDATION


def _both(
    bundle: Bundle, bench: Workbench, passed: Sequence[Passed], against: Mapping[str, Mapping[str, Score]]
) -> list[Staged]:
    """Return the variants of both bundles under names that tell them apart, the new ones scored against the original."""
    first = bench.baseline
    found = [_renamed(first.variant, f"{_ORIGINAL}-{first.variant.id}", first.folder)]
    for variant in bundle.variants:
        if variant.precision is Precision.INT8:
            bundle.model(variant)  # checks the sha256 of its files
            found.append(_renamed(variant, f"{_ORIGINAL}-{variant.id}", bundle.folder))
    for one in passed:
        scored = dataclasses.replace(one.variant, scores=(against[one.variant.id][_TEST],))
        found.append(Staged(variant=scored, folder=one.folder))
    return found


def _measure(
    bench: Workbench, variants: Sequence[Staged], options: CompressOptions, on_progress: OnProgress
) -> Results:
    return trial.measure(
        _ORIGINAL,
        bench.signature,
        bench.golden,
        variants,
        bench.source.folder,
        points=[{BATCH: size} for size in options.batch_sizes],
        threads=options.threads,
        plan=options.plan,
        on_progress=on_progress,
    )


def _renamed(variant: Variant, name: str, folder: Path) -> Staged:
    return Staged(variant=dataclasses.replace(variant, id=name), folder=folder)


def _check_reached(results: Results, variant: str, options: CompressOptions) -> None:
    reached = min((one.speedup for one in _speedups(results, variant)), default=0.0)
    if reached < options.target_speedup:
        raise CheckFailed(
            f"fitted and measured once more it is {reached:.2f} times as fast, not {options.target_speedup:g}: the machine "
            "was less steady than it seemed while the widths were measured",
            hint="nothing was published; try again with nothing else running, or use a lower --target-speedup",
        )


def _speedups(results: Results, variant: str) -> tuple[Speedup, ...]:
    """Return how many times as fast as the baseline a variant was; empty if that could not be measured."""
    rows = [row for row in results.rows if row.variant == variant]
    found = [row.verdict.comparison for row in rows if row.verdict and row.verdict.comparison]
    if len(found) < len(rows):
        return ()
    return tuple(
        Speedup(batch_size=row.samples, threads=row.threads, speedup=one.speedup, low=one.low, high=one.high)
        for row, one in zip(rows, found, strict=True)
    )


def _record(
    before: TrainingRecord, chosen: Recipe, validation: Score | None, seconds: float, device: str
) -> TrainingRecord:
    return TrainingRecord(
        dataset=before.dataset,
        recipe=chosen.described(),
        seed=before.seed,  # of the split, which must stay the same
        validation_fraction=before.validation_fraction,
        validation=validation,
        epochs_run=chosen.epochs,
        best_epoch=chosen.epochs,
        interrupted=False,
        train_seconds=round(seconds, 3),
        device=device,
    )


def _origin(
    bundle: Bundle,
    model: _Trained,
    hidden: tuple[int, ...],
    crop: int,
    against: Score,
    speedups: tuple[Speedup, ...],
    results: Results,
) -> Origin:
    original = bundle.manifest.original
    assert original is not None  # the network was rebuilt from it
    assert original.weights is not None
    height, width = model.blueprint.shape
    return Origin(
        bundle=bundle.name,
        weights_sha256=original.weights.sha256,
        architecture=model.blueprint.architecture,
        pixels_left_out=height * width - (height - 2 * crop) * (width - 2 * crop),
        units_left=tuple(hidden),
        score=against,
        speedups=speedups,
        machine=results.machine.describe(),
    )


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
