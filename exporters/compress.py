"""`kit compress`: a smaller dense network that gives the original's answers, so much faster, in a bundle of its own.

How small is measured, not guessed: networks of falling width are benched beside the original on this machine, and the widest
that is surely fast enough is taken. Its units are those of the original that matter most (prune), fitted again to the
original's answers on distorted views (kit.lab.training); what comes out is exported and gated like any model, and held to
the original's accuracy, image by image.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from exporters import pipeline, workbench
from exporters.gate import Passed, check_accuracy
from exporters.options import DEFAULT_OPSET, ExportOptions
from exporters.prune import dispensable_border, prune
from exporters.search import trial
from exporters.sources import module as onnx_graph
from exporters.workbench import OnStep, Workbench
from kit import bundle as bundles
from kit import tuning
from kit.accuracy import accuracy
from kit.bench.measure import Plan
from kit.bench.results import Results
from kit.bundle import Bundle, GoldenSamples
from kit.bundle.contents import MANIFEST
from kit.bundle.records import Accuracy, ModelSpec, Origin, Speedup, TrainingRecord, Variant, check_name
from kit.choices import Precision, VariantFormat
from kit.errors import CheckFailed, UsageError
from kit.lab import models
from kit.lab.models import Mlp
from kit.lab.training import confidence
from kit.lab.training.distill import distill
from kit.lab.training.recipe import Recipe, recipe
from kit.lab.training.world import world
from kit.runtime.base import RunnerOptions
from kit.system import files, machine
from kit.tuning import Judgement

MULTIPLE = 16
"""Hidden layers have a multiple of so many units: what a vector holds."""

_AT_ONCE = 5
_SHOWN = 10_000
_LEAST_STEPS, _LEAST_BATCH = 100, 32  # a few images give few steps an epoch: smaller batches, and smaller steps
_ORIGINAL = "original"

Smaller = Callable[[tuple[int, ...]], Mlp]


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How small, and how good.

    Attributes:
        target_speedup: How many times as fast as the original's fp32 the new fp32 must be, at every batch size.
        batch_sizes: Images in one call.
        threads: Threads one operator may use.
        max_drop_points: Largest loss of top-1 against the original's fp32, in percentage points.
        epochs: Of the fitting, each of as many views as there are training images.
        seed: Of views and order.
        plan: How long to measure.
    """

    target_speedup: float = 3.0
    batch_sizes: tuple[int, ...] = (1, 64)
    threads: int = 1
    max_drop_points: float = 0.1
    epochs: int = 200
    seed: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse what cannot be reached or measured."""
        if not self.target_speedup > 1:
            raise UsageError(f"the target must be above 1, found {self.target_speedup:g}")
        if not self.batch_sizes or min(self.batch_sizes) < 1 or self.epochs < 1:
            raise UsageError("batch sizes and epochs must be 1 or more")
        if not self.max_drop_points >= 0:
            raise UsageError(f"the allowed drop must not be negative, found {self.max_drop_points}")
        RunnerOptions(threads=self.threads)  # refuses too many


@dataclass(frozen=True, kw_only=True)
class CompressReport:
    """What was published.

    Attributes:
        bundle: The new one.
        passed: Its variants, as they passed the gate.
        judgement: All variants of both, measured in one run, the original's fp32 as the baseline.
        results: That run.
        weights: Of the original and of the new network.
    """

    bundle: Bundle
    passed: tuple[Passed, ...]
    judgement: Judgement
    results: Results
    weights: tuple[int, int]


def compress(
    bundle: Bundle,
    out: Path,
    options: CompressOptions,
    *,
    data_dir: Path | None = None,
    on_step: OnStep = lambda _: None,
) -> CompressReport:
    """Make a smaller bundle of a trained one.

    Args:
        bundle: Of a dense network that kit trained; it is not changed.
        out: Folder of the new bundle; replaced if it is one.
        options: How small, and how good.
        data_dir: Where data sets lie.
        on_step: Told what is being done.

    Raises:
        UsageError: The network is not a dense one, or `out` holds other things.
        DatasetUnavailable: The data set it was trained on is not here.
        CheckFailed: No width is fast enough.
        GateFailed: The smaller network loses too much; nothing was written.
    """
    _check_destination(bundle, out)
    bench = workbench.for_bundle(bundle, opset=DEFAULT_OPSET, data_dir=data_dir, on_step=on_step)
    assert bench.data is not None  # a bundle that kit trained names its data set
    assert bench.data.train is not None
    assert bundle.manifest.weights is not None
    original = models.load_trained(bundle.spec, bundle.path(bundle.manifest.weights))
    if not isinstance(original, Mlp) or original.crop:
        raise UsageError(
            f"{bundle.spec.architecture} cannot be compressed: kit prunes dense networks, once",
            hint="start from an mlp-... that kit train made",
        )
    height, width = bundle.spec.input.shape
    images = bench.data.train.images
    if _has_seen_all(bench):  # so may the smaller network
        images = np.concatenate([images, bench.data.validation.images])
    pixels = torch.from_numpy(images)
    normalization = bundle.spec.normalization
    shown = pixels[:_SHOWN]
    crop = dispensable_border(original, shown, normalization, height=height, width=width)

    def smaller(hidden: tuple[int, ...]) -> Mlp:
        return prune(original, hidden, crop, shown, normalization)

    hidden = _widest(bundle, bench, smaller, original.sizes[1:-1], options, on_step)
    chosen = _recipe(bundle, hidden, crop, len(pixels), options)
    started = time.perf_counter()
    with world("auto") as here:
        fitted = distill(
            smaller(hidden),
            original,
            pixels,
            chosen,
            normalization,
            world=here,
            on_step=lambda what, share: on_step(f"{what} ({share:.0%})"),
        )
        device = f"{here.device.type} {'bfloat16' if chosen.bf16 and here.has_fast_bf16() else 'float32'}"
    seconds = time.perf_counter() - started
    spec = dataclasses.replace(bundle.spec, name=out.name, architecture=chosen.model)
    new = _own_bench(fitted, spec, bundle, bench, on_step)
    against = _against(new.fp32, bench, options.max_drop_points)
    exported = ExportOptions(
        precisions=(Precision.FP32, Precision.INT8),
        formats=(VariantFormat.QDQ, VariantFormat.PIXEL),
        max_drop_points=max(options.max_drop_points, 1e-9),
    )
    passed = pipeline.make(new, exported, on_step)
    for one in passed[1:]:
        _against(one, bench, options.max_drop_points)
    on_step("measuring both")
    results = _measure(bundle, _both(bundle, bench, passed), options, on_step)
    reached = min((one.speedup for one in _speedups(results, "fp32")), default=0.0)
    if reached < options.target_speedup:
        raise CheckFailed(
            f"fitted and measured once more it is {reached:.2f} times as fast, not {options.target_speedup:g}: the machine was "
            "less steady than the widths' measurement made believe",
            hint="nothing was published; try again with nothing else running, or use a lower --target-speedup",
        )
    on_step("publishing")
    published = bundles.create(
        out,
        spec=new.source.spec,
        golden=new.reference.golden,
        tools=machine.tool_versions(),
        weights=models.save_weights(fitted),
        training=_record(bundle, chosen, against[0], seconds, device),
        variants=tuple((one.variant, one.data) for one in passed),
        origin=_origin(bundle, original, hidden, crop, against[1], results),
    )
    counts = (_weights(original), _weights(fitted))
    return CompressReport(
        bundle=published, passed=passed, judgement=tuning.judge(results), results=results, weights=counts
    )


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
    bundle: Bundle,
    bench: Workbench,
    smaller: Smaller,
    hidden: Sequence[int],
    options: CompressOptions,
    on_step: OnStep,
) -> tuple[int, ...]:
    """Return the widest hidden layers, in the original's proportions, that are surely fast enough at every batch size.

    Networks of several widths stand in one run, then those between the widest that was fast enough and the next.

    Raises:
        CheckFailed: None is.
    """
    firsts = list(range(MULTIPLE, hidden[0], MULTIPLE)) or [max(hidden[0] // 2, 1)]
    low, high = -1, len(firsts)  # fast enough at `low` and below, too slow at `high` and above
    fastest = 0.0
    while high - low > 1:
        places = sorted({round(place) for place in np.linspace(low, high, min(_AT_ONCE, high - low - 1) + 2)[1:-1]})
        tried = {place: _scaled(hidden, firsts[place]) for place in places}
        on_step("measuring widths " + ", ".join("-".join(map(str, one)) for one in tried.values()))
        standing = [(_renamed(bench.fp32.variant, _ORIGINAL), bench.fp32.data)]
        for place, sizes in tried.items():
            model = onnx_graph.to_onnx(smaller(sizes).eval(), bundle.spec).model
            data = model.SerializeToString(deterministic=True)
            standing.append((_renamed(bench.fp32.variant, f"width-{place}"), data))
        results = _measure(bundle, standing, options, lambda _: None)
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
    """Return hidden layers in the same proportions, the first as wide as given, in multiples of 16 where there are so many."""
    share = first / hidden[0]
    return tuple(min(size, max(MULTIPLE, round(size * share / MULTIPLE) * MULTIPLE)) for size in hidden)


def _recipe(bundle: Bundle, hidden: tuple[int, ...], crop: int, images: int, options: CompressOptions) -> Recipe:
    """Return how the smaller network is fitted: as the record recipe's student, undistorted where the original was."""
    record = bundle.manifest.training
    assert record is not None  # the workbench looked
    base = recipe("record", dataset=record.dataset)
    assert base.teaching is not None  # it has teachers
    teaching, distortion = base.teaching, base.distortion
    if record.recipe.get("augment") == "False":
        teaching = dataclasses.replace(teaching, views=1, calm_views=0)
        distortion = distortion.times(0.0)
    batch_size = min(base.batch_size, max(_LEAST_BATCH, images // _LEAST_STEPS))
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


def _own_bench(fitted: nn.Module, spec: ModelSpec, bundle: Bundle, bench: Workbench, on_step: OnStep) -> Workbench:
    """Set up the new network: its own answers on the golden samples and, where images were held out, its own temperature."""
    assert bench.data is not None  # as in `compress`
    held = bench.data.validation
    if not _has_seen_all(bench):
        logits = workbench.answers(fitted, spec, held.images)
        temperature, threshold, _ = confidence.fit(logits, held.labels)
        spec = dataclasses.replace(spec, temperature=temperature, abstain_below=threshold)
    before = bundle.golden()
    golden = GoldenSamples(
        pixels=before.pixels,
        labels=before.labels,
        logits=workbench.answers(fitted, spec, before.pixels),
        source=before.source,
    )
    return workbench.for_module(fitted, spec, golden, opset=DEFAULT_OPSET, data=bench.data, on_step=on_step)


def _against(one: Passed, bench: Workbench, max_drop_points: float) -> tuple[Accuracy | None, Accuracy | None]:
    """Hold a new variant to the original's fp32 on validation and test.

    Where the original was trained on all images, only the test split tells what either can read and not what it remembers.

    Raises:
        GateFailed: It loses too much.
    """
    assert one.logits is not None  # there is labelled data
    assert bench.fp32.logits is not None
    logits = (None, one.logits[1]) if _has_seen_all(bench) else one.logits
    return check_accuracy(
        f"{one.variant.id} of the smaller network",
        bench.data,
        logits,
        bench.fp32.logits,
        max_drop_points,
        hint="nothing was published; use a lower --target-speedup, more --epochs, or allow more with --max-drop",
    )


def _has_seen_all(bench: Workbench) -> bool:
    """Whether the original was trained on all images, those that the gate calls validation too."""
    return bench.data is not None and bench.data.validation_name != "validation"


def _both(bundle: Bundle, bench: Workbench, passed: Sequence[Passed]) -> list[tuple[Variant, bytes]]:
    """Return the variants of both bundles under names that tell them apart, the new ones' accuracy against the original's."""
    found = [(_renamed(bench.fp32.variant, f"{_ORIGINAL}-fp32"), bench.fp32.data)]
    found += [
        (_renamed(variant, f"{_ORIGINAL}-{variant.id}"), bundle.read(variant.artifact))
        for variant in bundle.variants
        if variant.precision is Precision.INT8
    ]
    assert bench.data is not None  # as in `compress`
    assert bench.fp32.logits is not None
    test, base = bench.data.test, bench.fp32.logits[1]
    for one in passed:
        assert one.logits is not None
        figures = accuracy(one.logits[1], test.labels, dataset=bench.data.dataset, split="test", baseline=base)
        found.append((dataclasses.replace(one.variant, accuracy=figures), one.data))
    return found


def _measure(
    bundle: Bundle, variants: Sequence[tuple[Variant, bytes]], options: CompressOptions, on_step: OnStep
) -> Results:
    return trial.measure(
        bundle,
        variants,
        batch_sizes=options.batch_sizes,
        threads=options.threads,
        plan=options.plan,
        on_step=on_step,
    )


def _renamed(variant: Variant, name: str) -> Variant:
    return dataclasses.replace(variant, id=name)


def _speedups(results: Results, variant: str) -> tuple[Speedup, ...]:
    """Return how many times as fast as the baseline a variant was; empty where that could not be measured."""
    rows = [row for row in results.rows if row.variant == variant]
    found = [row.verdict.comparison for row in rows if row.verdict and row.verdict.comparison]
    if len(found) < len(rows):
        return ()
    return tuple(
        Speedup(batch_size=row.batch_size, threads=row.threads, speedup=one.speedup, low=one.low, high=one.high)
        for row, one in zip(rows, found, strict=True)
    )


def _record(bundle: Bundle, chosen: Recipe, validation: Accuracy | None, seconds: float, device: str) -> TrainingRecord:
    before = bundle.manifest.training
    assert before is not None  # the workbench looked
    return TrainingRecord(
        dataset=before.dataset,
        recipe=chosen.described(),
        seed=before.seed,  # of the split, which must stay the same
        validation_fraction=before.validation_fraction,
        validation=validation if before.validation_fraction else None,
        epochs_run=chosen.epochs,
        best_epoch=chosen.epochs,
        interrupted=False,
        train_seconds=round(seconds, 3),
        device=device,
    )


def _origin(
    bundle: Bundle,
    original: Mlp,
    hidden: tuple[int, ...],
    crop: int,
    against: Accuracy | None,
    results: Results,
) -> Origin:
    assert bundle.manifest.weights is not None  # as in `compress`
    return Origin(
        bundle=bundle.name,
        weights_sha256=bundle.manifest.weights.sha256,
        architecture=bundle.spec.architecture,
        pixels_left_out=original.sizes[0]
        - (bundle.spec.input.shape[0] - 2 * crop) * (bundle.spec.input.shape[1] - 2 * crop),
        units_left=tuple(hidden),
        accuracy=against,
        speedups=_speedups(results, "fp32"),
        machine=results.machine.describe(),
    )


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
