"""Which layer is to blame: what quantizing each layer does, by itself and left out, and the fewest to leave in float.

`blame` makes a model in which only one layer is quantized, and one in which only that layer is not, for every layer.
`fewest_excluded` looks for the smallest set of layers to leave in float, by what the bars allow on the validation split, or on
the golden samples if there is no data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters import candidates, staging
from exporters.bars import Bar
from exporters.candidates import Candidate, VariantRecipe
from exporters.gate import ANSWER_BYTES, answer
from exporters.graph.rules import ACTIVATIONS, Layer, follow, layers
from exporters.options import ExportOptions
from exporters.workbench import Workbench, for_bundle, staging_beside
from kit import metrics
from kit import samples as sampling
from kit.bundle import Bundle
from kit.errors import GateFailed, UsageError
from kit.metrics import Metric, Score, Values
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples, Splits
from kit.system.progress import OnProgress, silent
from kit.system.wording import counted
from kit.tensors import Tensors, row_slices

_MOST_SETS = 60  # sets of one size that are tried; of more, those of the layers that helped most by themselves

_FEW_LAYERS = 12  # up to here sets of layers are tried in all combinations

_GROUPS = 8  # of neighbouring layers, which are tried alone before single layers are
_MOST_ALONE = 40  # such trials, however many layers a model has
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LayerBlame:
    """What quantizing one layer does.

    Attributes:
        own_sqnr_db: Of the layer's output, with only this layer quantized: signal to quantization noise, in decibels.
        alone_sqnr_db: Of the model's outputs, the worst of them, with only this layer quantized.
        without_sqnr_db: The same with every layer quantized but this one.
        alone: Score of the first metric with only this layer quantized; None if it says nothing of the samples.
        without: The same with every layer quantized but this one.
    """

    layer: str
    own_sqnr_db: float
    alone_sqnr_db: float
    without_sqnr_db: float
    alone: Score | None
    without: Score | None


@dataclass(frozen=True, kw_only=True)
class Blame:
    """All layers of a model, and all of them quantized together.

    Attributes:
        samples: What was looked at, such as `6,000 samples of mnist validation`.
        sqnr_db: Signal to quantization noise of the model's outputs, the worst of them, in decibels.
        together: Score of the first metric.
    """

    variant: str
    samples: str
    sqnr_db: float
    together: Score | None
    rows: tuple[LayerBlame, ...]


def blame_bundle(
    bundle: Bundle,
    options: ExportOptions,
    *,
    data: Splits | None = None,
    data_dir: Path | None = None,
    metric: str | Metric | None = None,
    on_progress: OnProgress = silent,
) -> Blame:
    """Show what quantizing each layer of a bundle's model does, in the one way that the options name.

    Raises:
        UsageError: There is nothing to tell apart, or static INT8 has no data to calibrate with.
        GateFailed: A layer cannot be quantized.
    """
    recipe = candidates.recipes(options)[0]
    with staging_beside(bundle.folder if bundle.packed is None else bundle.packed) as folder:
        bench = for_bundle(
            bundle,
            folder,
            opset=options.opset,
            data=data,
            data_dir=data_dir,
            metric=metric,
            max_loss=options.max_loss,
            on_progress=on_progress,
        )
        return blame(recipe, bench, on_progress)


def blame(recipe: VariantRecipe, bench: Workbench, on_progress: OnProgress = silent) -> Blame:
    """Quantize each layer alone, and all others without it; the recipe is int8 or int4, and can leave layers in float.

    Raises:
        UsageError: There are fewer than two layers to tell apart.
        GateFailed: A layer cannot be quantized.
    """
    model = bench.source.model
    every = {layer.name: layer for layer in reversed(layers(model))}  # one that runs twice, by its first run
    unable = recipe.format.unable(model)
    found = [layer for layer in reversed(every.values()) if layer.name not in unable]
    if len(found) < 2:
        raise UsageError(f"the model has {counted(len(found), 'layer')} to quantize: there is nothing to tell apart")
    trial = Trial(bench)
    names = [layer.name for layer in found]
    on_progress("all layers")
    whole = trial.of(recipe, unable)
    rows = []
    for layer in found:
        on_progress(layer.name)
        only = recipe.make(bench.source, (*unable, *(name for name in names if name != layer.name)))
        try:
            alone, own = trial.judged(only.files.path), trial.own_sqnr_db(recipe, only, layer)
        finally:
            only.discard()
        without = trial.of(recipe, (*unable, layer.name))
        rows.append(
            LayerBlame(
                layer=layer.name,
                own_sqnr_db=own,
                alone_sqnr_db=alone.sqnr_db,
                without_sqnr_db=without.sqnr_db,
                alone=alone.first,
                without=without.first,
            )
        )
    return Blame(
        variant=recipe.id, samples=trial.samples, sqnr_db=whole.sqnr_db, together=whole.first, rows=tuple(rows)
    )


def fewest_excluded(
    recipe: VariantRecipe,
    bench: Workbench,
    on_progress: OnProgress = silent,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[str, ...]:
    """Return the smallest set of layers to leave in float for the bars to be met; empty if none need be.

    Judged on the validation split, as the gate does, or on the golden samples if there is no data. Of several sets of
    one size the one that loses least is taken. Of more than _FEW_LAYERS layers, those go first that lose most when
    nothing else is quantized. `is_over` tells whether the time is up.

    Raises:
        GateFailed: Even with one layer quantized more is lost, or the time was up before a set was found.
    """
    unable = recipe.format.unable(bench.source.model)  # they stay in float in any case
    every = list(dict.fromkeys(layer.name for layer in layers(bench.source.model)))
    names = [name for name in every if name not in unable]
    trial = Trial(bench)

    def refuse_late() -> None:
        if is_over():
            raise GateFailed(
                f"the time was up before it was known which layers of {recipe.id} to leave in float",
                hint="give it more with --budget",
            )

    def tried(chosen: tuple[str, ...]) -> Result:
        refuse_late()
        on_progress(f"{recipe.id}: without {_named(chosen)}")
        return trial.of(recipe, _in_order(every, chosen, unable))

    if tried(()).excess <= 0:
        return _in_order(every, unable)
    if len(names) <= _FEW_LAYERS:
        found = _smallest(names, tried)
    else:

        def alone(some: tuple[str, ...]) -> tuple[float, float]:
            refuse_late()
            on_progress(f"{recipe.id}: {_named(some)} alone")
            return trial.of(recipe, tuple(other for other in every if other not in some)).badness

        found = _fewest_first(_worst_first(names, alone), tried)
    if found:
        return _in_order(every, found, unable)
    raise GateFailed(
        f"{recipe.id} loses more than is allowed, even with all layers but one in float",
        hint="nothing was published; allow more with --max-loss, or try another --precision",
    )


def _smallest(names: Sequence[str], tried: Callable[[tuple[str, ...]], Result]) -> tuple[str, ...]:
    """Return the smallest set that will do; empty if none will."""
    order = names
    for size in range(1, len(names)):
        sets = itertools.islice(itertools.combinations(order, size), _MOST_SETS)
        results = {chosen: tried(chosen) for chosen in sets}
        best = min(results, key=lambda chosen: results[chosen].badness)
        if results[best].excess <= 0:
            return best
        if size == 1:
            order = [one[0] for one in sorted(results, key=lambda chosen: results[chosen].badness)]
    return ()


def _worst_first(names: Sequence[str], alone: Callable[[tuple[str, ...]], tuple[float, float]]) -> list[str]:
    """Return layers by what they lose when nothing else is quantized, in _MOST_ALONE trials at most, however many there are.

    Neighbours are tried together, and of those that lose most the halves, until they are single layers. What is not told apart
    in the end keeps the order of the network.
    """
    size = max(math.ceil(len(names) / _GROUPS), 1)
    groups = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    open_ones = [(alone(group), group) for group in groups]
    trials, order = len(groups), list[str]()
    while open_ones:
        worst = max(range(len(open_ones)), key=lambda place: (open_ones[place][0], -place))
        group = open_ones[worst][1]
        if len(group) == 1 or trials + 2 > _MOST_ALONE:
            order += group
            open_ones.pop(worst)
            continue
        middle = len(group) // 2
        open_ones[worst : worst + 1] = [(alone(half), half) for half in (group[:middle], group[middle:])]
        trials += 2
    return order


def _fewest_first(order: Sequence[str], tried: Callable[[tuple[str, ...]], Result]) -> tuple[str, ...]:
    """Return as few of the first layers as will do, twice as many each time and then halfway back; empty if none will."""
    too_few, enough = 0, 1
    while tried(tuple(order[:enough])).excess > 0:
        if enough == len(order) - 1:
            return ()
        too_few, enough = enough, min(2 * enough, len(order) - 1)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if tried(tuple(order[:middle])).excess > 0:
            too_few = middle
        else:
            enough = middle
    return tuple(order[:enough])


def _named(chosen: Sequence[str]) -> str:
    more = f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else ""
    return ", ".join(chosen[:_SHOWN]) + more if chosen else "exceptions"


def _in_order(every: Sequence[str], *chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in every if any(name in some for some in chosen))


@dataclass(frozen=True)
class Result:
    """A candidate against the original and the baseline.

    Attributes:
        scores: Of each bar; None if it says nothing of the samples.
        excess: By how much the worst of them loses more than is allowed; 0 or less if all are met.
    """

    sqnr_db: float
    scores: tuple[Score | None, ...]
    excess: float

    @property
    def first(self) -> Score | None:
        """Of the first metric that says something."""
        return next((score for score in self.scores if score is not None), None)

    @property
    def badness(self) -> tuple[float, float]:
        """What one of two candidates has less of: loss beyond what is allowed, then noise."""
        return max(self.excess, 0.0), -self.sqnr_db


@dataclass
class _Noise:
    """Powers of a signal and of the noise on it, summed piece by piece."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: NDArray[np.floating], noisy: NDArray[np.floating]) -> None:
        exact, noisy = np.atleast_1d(exact, noisy)
        for rows in row_slices(exact.shape):
            ones = exact[rows].astype(np.float64)
            self.signal += float((ones**2).sum())
            self.noise += float(((noisy[rows].astype(np.float64) - ones) ** 2).sum())

    @property
    def db(self) -> float:
        return math.inf if self.noise == 0 else 10 * math.log10(max(self.signal, 1e-300) / self.noise)


@dataclass
class Trial:
    """The samples that candidates are tried on."""

    bench: Workbench
    samples: str = field(init=False)

    def __post_init__(self) -> None:
        proof = self.bench.proof
        if proof.data is None:
            self._key, self._named, self._groups = "golden", "golden samples", proof.golden
            self._bars: tuple[Bar, ...] = proof.golden_bars
            self.samples = f"{sampling.count(self._groups, proof.signature):,} golden samples"
        else:
            self._key, self._named = proof.data.validation_name, proof.data.dataset
            self._groups, self._bars = proof.data.validation, proof.bars
            count = sampling.count(self._groups, proof.signature)
            self.samples = f"{count:,} samples of {self._named} {self._key}"

    def of(self, recipe: VariantRecipe, exclude: tuple[str, ...]) -> Result:
        """Make a candidate, judge it, and throw it away."""
        candidate = recipe.make(self.bench.source, exclude)
        try:
            return self.judged(candidate.files.path)
        finally:
            candidate.discard()

    def judged(self, path: Path) -> Result:
        """Hold a candidate's answers against the baseline's."""
        signature = self.bench.signature
        with OnnxRuntimeRunner(path, binds=False) as runner:
            answers = answer(runner, self._groups, signature)
        before = self.bench.baseline.values[self._key]
        scores = tuple(self._score(bar, base, answers) for bar, base in zip(self._bars, before, strict=True))
        excesses = [
            score.loss - bar.allowed(score) - 1e-9
            for bar, score in zip(self._bars, scores, strict=True)
            if score is not None
        ]
        return Result(_sqnr_db(self._groups, answers), scores, max(excesses, default=0.0))

    def _score(self, bar: Bar, base: Values | None, answers: Sequence[Tensors]) -> Score | None:
        values = bar.values(self._groups, answers, self.bench.signature)
        if values is None or base is None:
            return None
        try:
            return metrics.score(bar.metric, values, dataset=self._named, split=self._key, baseline=base)
        except (UsageError, ValueError) as error:
            raise GateFailed(f"{bar.metric.name} is {values.whole:.3g} on {self._named} {self._key}") from error

    def own_sqnr_db(self, recipe: VariantRecipe, quantized: Candidate, layer: Layer) -> float:
        """Compare what a layer gives to the next one, in float and quantized."""
        # Quantizers join an activation with its layer and leave it to the range of the quantized tensor, ending at 0
        # as ReLU does: what the layer gives in float is cut off likewise.
        source = self.bench.source
        model = recipe.format.prepared(source.model)
        behind = follow(model, layer.node.output[0])[:1]
        activation = behind[0].op_type if behind and behind[0].op_type in ACTIVATIONS else ""
        tensor = str(behind[0].output[0] if activation else layer.node.output[0])
        there = staging.read(quantized.files.path)
        if tensor not in {name for node in there.graph.node for name in node.output}:
            return math.nan  # the quantizer gave it another name
        exact_path = staging.cut(model, [tensor], source.path.parent, quantized.files.folder / "exact")
        noisy_path = staging.cut(there, [tensor], quantized.files.folder, quantized.files.folder / "noisy")
        found = _Noise()
        with OnnxRuntimeRunner(exact_path, binds=False) as exact, OnnxRuntimeRunner(noisy_path, binds=False) as noisy:
            for piece in sampling.batches(self._groups, self.bench.signature, ANSWER_BYTES):
                given = {spec.name: piece[spec.name] for spec in exact.signature.inputs}
                signal = exact.run(given)[tensor]
                low = signal.min() if activation else -np.inf
                high = signal.max() if activation == "Clip" else np.inf
                found.add(signal, np.clip(noisy.run(given)[tensor], low, high))
        return found.db


def _sqnr_db(groups: Sequence[Samples], answers: Sequence[Tensors]) -> float:
    by_output: dict[str, _Noise] = {}
    for group, outputs in zip(groups, answers, strict=True):
        for name, exact in (group.expected or {}).items():
            if exact.dtype.kind == "f" and exact.shape == outputs[name].shape:
                by_output.setdefault(name, _Noise()).add(exact, outputs[name])
    return min((noise.db for noise in by_output.values()), default=math.inf)
