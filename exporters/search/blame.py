"""Which layer is to blame: what quantizing each layer does, by itself and left out, and the fewest to leave in float.

`blame` makes a model in which only one layer is quantized, and one in which only that layer is not, for every layer.
`fewest_excluded` looks for the smallest set of layers to leave in float, by the drop on the validation split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from exporters import candidates
from exporters.candidates import Plan
from exporters.gate import allowed_flips
from exporters.graph.rules import Layer, follow, layers
from exporters.options import ExportOptions
from exporters.workbench import OnStep, Workbench, for_bundle
from kit.accuracy import accuracy
from kit.bundle import Bundle
from kit.bundle.records import Accuracy
from kit.errors import GateFailed, UsageError
from kit.runtime.base import logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner

_MOST_SETS = 60
"""Sets of one size that are all tried; of more, those of the layers that helped most by themselves."""


@dataclass(frozen=True, kw_only=True)
class LayerBlame:
    """What quantizing one layer does.

    Attributes:
        layer: Its name, as `--exclude-layer` takes it.
        own_sqnr_db: Of the layer's output, with only this layer quantized: signal to quantization noise, in decibels.
        alone_sqnr_db: Of the logits, with only this layer quantized.
        without_sqnr_db: Of the logits, with every layer quantized but this one.
        alone: Accuracy with only this layer quantized; None without labelled data.
        without: Accuracy with every layer quantized but this one.
    """

    layer: str
    own_sqnr_db: float
    alone_sqnr_db: float
    without_sqnr_db: float
    alone: Accuracy | None
    without: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class Blame:
    """All layers of a model, and all of them quantized together.

    Attributes:
        variant: Id of what would be published.
        images: What was looked at, such as `6,000 images of mnist validation`.
    """

    variant: str
    images: str
    sqnr_db: float
    together: Accuracy | None
    rows: tuple[LayerBlame, ...]


def blame_bundle(
    bundle: Bundle, options: ExportOptions, *, data_dir: Path | None = None, on_step: OnStep = lambda _: None
) -> Blame:
    """Show what quantizing each layer of a trained bundle does, in the one way that the options name.

    Raises:
        UsageError: There is nothing to tell apart, or kit cannot rebuild the module.
        DatasetUnavailable: The data set it was trained on is not here.
        GateFailed: A layer cannot be quantized.
    """
    plan = candidates.plans(options)[0]
    return blame(plan, for_bundle(bundle, opset=options.opset, data_dir=data_dir, on_step=on_step), on_step)


def blame(plan: Plan, bench: Workbench, on_step: OnStep = lambda _: None) -> Blame:
    """Quantize each layer alone, and all others without it.

    Args:
        plan: What to make: int8 or int4, in a format that can leave layers in float.
        bench: The model, and labelled images if there are any; else its golden samples are looked at.
        on_step: Told what is being done.

    Raises:
        UsageError: There are fewer than two layers to tell apart.
        GateFailed: A layer cannot be quantized.
    """
    every = {
        layer.name: layer for layer in reversed(layers(bench.source.model))
    }  # one that runs twice, by its first run
    unable = plan.unable(bench.source.model)
    found = [layer for layer in reversed(every.values()) if layer.name not in unable]
    if len(found) < 2:
        raise UsageError(f"the model has {len(found)} layer(s) to quantize: there is nothing to tell apart")
    trial = _Trial(bench)
    names = [layer.name for layer in found]
    on_step("all layers")
    whole = trial.of(plan.make(bench.source, unable).model)
    rows = []
    for layer in found:
        on_step(layer.name)
        only = plan.make(bench.source, (*unable, *(name for name in names if name != layer.name))).model
        alone, without = trial.of(only), trial.of(plan.make(bench.source, (*unable, layer.name)).model)
        rows.append(
            LayerBlame(
                layer=layer.name,
                own_sqnr_db=_own_sqnr_db(trial, plan.prepare(bench.source.model), only, layer),
                alone_sqnr_db=alone.sqnr_db,
                without_sqnr_db=without.sqnr_db,
                alone=alone.accuracy,
                without=without.accuracy,
            )
        )
    return Blame(variant=plan.id, images=trial.images, sqnr_db=whole.sqnr_db, together=whole.accuracy, rows=tuple(rows))


def fewest_excluded(
    plan: Plan, bench: Workbench, max_drop_points: float, on_step: OnStep = lambda _: None
) -> tuple[str, ...]:
    """Return the smallest set of layers to leave in float for the drop to be allowed; empty where none need be.

    Judged on the validation split, as the gate does. Of several sets of one size the one that loses least is taken.

    Raises:
        UsageError: There is no labelled data.
        GateFailed: Even with one layer quantized more is lost.
    """
    if bench.data is None:
        raise UsageError(
            "--exclude-layer auto needs labelled data", hint="name the layers, or pass data=LabelledData(...)"
        )
    unable = plan.unable(bench.source.model)  # they stay in float in any case
    every = list(dict.fromkeys(layer.name for layer in layers(bench.source.model)))
    names = [name for name in every if name not in unable]
    trial = _Trial(bench)
    order: Sequence[str] = names
    for size in range(len(names)):
        results: dict[tuple[str, ...], _Result] = {}
        for chosen in itertools.islice(itertools.combinations(order, size), _MOST_SETS):
            on_step(f"{plan.id}: without {', '.join(chosen) or 'exceptions'}")
            results[chosen] = trial.of(plan.make(bench.source, _in_order(every, chosen, unable)).model)
        best = min(results, key=lambda chosen: results[chosen].badness)
        if results[best].lost <= allowed_flips(max_drop_points, len(bench.data.validation)):
            return _in_order(every, best, unable)
        if size == 1:
            order = [one[0] for one in sorted(results, key=lambda chosen: results[chosen].badness)]
    raise GateFailed(
        f"{plan.id} loses more than the allowed {max_drop_points:g} points of top-1, even with all layers but one in float",
        hint="nothing was published; allow more with --max-drop, or try another --precision",
    )


def _in_order(every: Sequence[str], *chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in every if any(name in some for some in chosen))


@dataclass(frozen=True)
class _Result:
    """A model against fp32."""

    sqnr_db: float
    accuracy: Accuracy | None

    @property
    def lost(self) -> int:
        """Images lost, less those gained."""
        return 0 if self.accuracy is None else self.accuracy.flips_to_wrong - self.accuracy.flips_to_right

    @property
    def badness(self) -> tuple[int, float]:
        return self.lost, -self.sqnr_db


class _Trial:
    """The images that models are tried on, and fp32's logits on them."""

    def __init__(self, bench: Workbench) -> None:
        self._labels: NDArray[np.int64] | None = None
        self._named = ("", "")
        self._pixels = bench.reference.golden.pixels
        self.images = f"{len(self._pixels):,} golden samples"
        if bench.data is not None:
            self._pixels, self._labels = bench.data.validation.images, bench.data.validation.labels
            self._named = (bench.data.dataset, bench.data.validation_name)
            self.images = f"{len(self._pixels):,} images of {' '.join(self._named)}"
        self._fp32 = self.run(bench.source.model)

    def run(self, model: onnx.ModelProto) -> NDArray[np.float32]:
        with OnnxRuntimeRunner(model.SerializeToString()) as runner:
            return logits_of(runner, self._pixels)

    def of(self, model: onnx.ModelProto) -> _Result:
        logits = self.run(model)
        found = None
        if self._labels is not None:
            dataset, split = self._named
            found = accuracy(logits, self._labels, dataset=dataset, split=split, baseline=self._fp32)
        return _Result(_sqnr_db(self._fp32, logits), found)


def _sqnr_db(signal: NDArray[np.float32], noisy: NDArray[np.float32]) -> float:
    """Return ten times the decimal logarithm of signal power over noise power; infinite without noise."""
    exact = signal.astype(np.float64)
    noise = float(((noisy - exact) ** 2).sum())
    return math.inf if noise == 0 else 10 * math.log10(max(float((exact**2).sum()), 1e-300) / noise)


def _own_sqnr_db(trial: _Trial, model: onnx.ModelProto, quantized: onnx.ModelProto, layer: Layer) -> float:
    """Compare what a layer gives to the next one, in fp32 and quantized.

    Quantizers join an activation with its layer and leave it to the range of the quantized tensor, which ends at 0 as ReLU
    does: what the layer gives in float is cut off likewise.
    """
    behind = follow(model, layer.node.output[0])[:1]
    activation = behind[0].op_type if behind and behind[0].op_type in {"Relu", "Clip"} else ""
    tensor = str(behind[0].output[0] if activation else layer.node.output[0])
    signal, noisy = trial.run(_up_to(model, tensor)), trial.run(_up_to(quantized, tensor))
    low = signal.min() if activation else -np.inf
    high = signal.max() if activation == "Clip" else np.inf
    return _sqnr_db(signal, np.clip(noisy, low, high))


def _up_to(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """Return the model with a tensor inside it as its only output."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    return part
