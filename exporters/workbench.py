"""The workbench: a trained module, what its candidates are made of, and what each of them is held against.

Who calls whom: whoever makes candidates (pipeline, choose, blame, compress) sets one up, `for_bundle` or `for_module`:
PyTorch's answers, the fp32 graph and its passage through the gate; then each candidate comes to `examine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exporters import candidates
from exporters.candidates import Source
from exporters.gate import Candidate, LabelledData, Passed, Reference, examine
from exporters.sources import module as onnx_graph
from kit.bundle import Bundle, GoldenSamples
from kit.bundle.records import ModelSpec
from kit.errors import GateFailed, UsageError
from kit.lab import data as datasets
from kit.lab import models
from kit.runtime.pytorch import reference_logits

SEEN_FRACTION = 0.1
"""Where all images were trained on, so many of them have to do for the gate, and are called by their name."""

OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """One module, ready to make candidates of.

    Attributes:
        source: What they are made of.
        reference: PyTorch's answers.
        data: Labelled images; None where there are none.
        fp32: The baseline, which has passed the gate.
    """

    source: Source
    reference: Reference
    data: LabelledData | None
    fp32: Passed

    def examine(self, candidate: Candidate, max_drop_points: float) -> Passed:
        """Pass a candidate through the gate.

        Raises:
            GateFailed: A check said no.
        """
        return examine(
            candidate,
            self.source.spec,
            self.reference,
            data=self.data,
            baseline=self.fp32,
            max_drop_points=max_drop_points,
        )


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was published, and the figures each candidate passed with."""

    bundle: Bundle
    passed: tuple[Passed, ...]


def for_bundle(bundle: Bundle, *, opset: int, data_dir: Path | None, on_step: OnStep) -> Workbench:
    """Set up a trained bundle, with the data set that its training record names.

    Raises:
        UsageError: It holds no weights or training record, or a module kit cannot rebuild.
        DatasetUnavailable: The data set it was trained on, which the gate needs, is not here.
        GateFailed: The module cannot be exported.
    """
    weights, record = bundle.manifest.weights, bundle.manifest.training
    if weights is None or record is None or not models.is_known(bundle.spec.architecture):
        raise UsageError(
            f"bundle {bundle.name!r} was not made by kit train: kit cannot rebuild {bundle.spec.architecture!r}",
            hint="export its module from Python: exporters.export(module, spec, out=...)",
        )
    on_step("reading data")
    bundle.read(weights)  # checks the sha256 before anything is made of it
    module = models.load_trained(bundle.spec, bundle.path(weights))
    dataset = datasets.load(record.dataset, data_dir=data_dir)
    fraction = record.validation_fraction or SEEN_FRACTION
    fitted, held_out = datasets.validation_indices(len(dataset.train), fraction=fraction, seed=record.seed)
    data = LabelledData(
        dataset=dataset.name,
        train=dataset.train.take(fitted),
        validation=dataset.train.take(held_out),
        test=dataset.test,
        validation_name="validation" if record.validation_fraction else "train",
    )
    return for_module(module, bundle.spec, bundle.golden(), opset=opset, data=data, on_step=on_step)


def for_module(
    module: nn.Module,
    spec: ModelSpec,
    golden: GoldenSamples,
    *,
    opset: int,
    data: LabelledData | None,
    on_step: OnStep,
) -> Workbench:
    """Set up any module.

    Raises:
        UsageError: The data do not fit the spec.
        GateFailed: The module cannot be exported, or does not agree with itself afterwards.
    """
    if data is not None:
        _check_data(data, spec)
    on_step("PyTorch reference")
    reference = Reference(
        golden=golden,
        validation=answers(module, spec, data.validation.images) if data else None,
        test=answers(module, spec, data.test.images) if data else None,
    )
    on_step("fp32: export")
    graph = onnx_graph.to_onnx(module, spec, opset=opset)
    source = Source(
        model=graph.model,
        spec=spec,
        normalization_folded=graph.normalization_folded,
        train=data.train if data else None,
        dataset=data.dataset if data else "",
    )
    on_step("fp32: checks")
    fp32 = examine(candidates.fp32(source), spec, reference, data=data, baseline=None, max_drop_points=0.0)
    return Workbench(source=source, reference=reference, data=data, fp32=fp32)


def answers(module: nn.Module, spec: ModelSpec, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Ask PyTorch; a module that cannot answer a batch cannot be exported either."""
    try:
        return reference_logits(module, spec, pixels)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise GateFailed(f"PyTorch cannot run the module on pixels {pixels.shape[1:]}: {reason}") from error


def _check_data(data: LabelledData, spec: ModelSpec) -> None:
    """Raise UsageError unless images and labels fit the spec."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if split is None:
            continue
        found = f"{split.images.dtype} {split.images.shape}"
        if split.images.dtype != np.uint8 or split.images.shape[1:] != spec.input.shape or len(split) == 0:
            raise UsageError(f"{name} images must be {spec.input.describe()}, found {found}")
        if split.labels.min() < 0 or split.labels.max() >= len(spec.labels):
            span = f"{split.labels.min()}..{split.labels.max()}"
            raise UsageError(f"{name} labels must lie in 0..{len(spec.labels) - 1}, found {span}")
