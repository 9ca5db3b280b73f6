"""fp32 ONNX -> INT8 ONNX in QDQ by NNCF, OpenVINO's own quantizer: one more candidate of `--precision auto`, where it is here.

It smooths, calibrates and corrects biases in its own way (github.com/openvinotoolkit/nncf). What it makes is held to the same
gate as everything else, and opens in the same runtimes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx

from exporters.formats.base import (
    EveryLayer,
    Source,
    count,
    excluded_layers,
    is_convolutional,
    is_dense,
)
from exporters.formats.calibration import calibration_reader, draw
from exporters.formats.counting import count_weights
from exporters.graph.files import save
from exporters.graph.rules import drop_unused_initializers, strip
from kit.bundle.manifest import Quantization
from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import GateFailed
from kit.samples import count as count_samples

SAMPLES = 300
"""Calibration samples, as its documentation advises."""

_PACKAGE = "nncf"
_OPT_OUT = "NNCF_CI"  # read when it is imported: nothing is sent then


def is_here() -> bool:
    """Whether NNCF is installed."""
    return find_spec(_PACKAGE) is not None


@dataclass(frozen=True, kw_only=True)
class NncfInt8(EveryLayer):
    """Activation ranges from calibration samples, made by NNCF."""

    seed: int = 0
    precision = Precision.INT8
    form = VariantFormat.QDQ

    def refusal(self, model: onnx.ModelProto) -> str:
        """Say why a model cannot be quantized."""
        return super().refusal(model) if is_here() else "nncf is not installed"

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization:
        """Write the model; see exporters.formats.base.Format."""
        there = count_samples(source.train, source.signature) if source.train else None
        most = None if there is None else min(SAMPLES, there)
        drawn = draw(source, method=CalibrationMethod.MINMAX, samples=most, seed=self.seed)
        batches = calibration_reader(source.model, source.signature, drawn.samples).all
        kept = [layer.node.name for layer in excluded_layers(source.model, exclude)]
        with _silent():
            import nncf

            is_transformer = not is_dense(source.model) and not is_convolutional(source.model)
            try:
                made = nncf.quantize(
                    onnx.load(source.path),
                    nncf.Dataset(batches),
                    subset_size=len(batches),
                    model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
                    ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
                )
            except Exception as error:  # it raises whatever it met, and what onnx and numpy raise inside it
                raise GateFailed(f"NNCF failed: {type(error).__name__}: {error}") from error
        drop_unused_initializers(made)
        strip(made)
        save(made, target.parent, target.name)
        done, layers = count(source.model, made, exclude)
        weights_done, weights = count_weights(source.model, made)
        return Quantization(
            scheme=QuantizationScheme.STATIC,
            activation_dtype="uint8",
            weight_dtype="int8",
            weight_bits=8,
            per_channel=True,
            layers_quantized=done,
            layers_total=layers,
            layers_excluded=exclude,
            calibration=drawn.record,
            weights_quantized=weights_done,
            weights_total=weights,
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep its bars and advice from the terminal, and let it send nothing."""
    before = os.environ.get(_OPT_OUT)
    os.environ[_OPT_OUT] = "1"
    level = logging.getLogger(_PACKAGE).level
    logging.getLogger(_PACKAGE).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger(_PACKAGE).setLevel(level)
        if before is None:
            del os.environ[_OPT_OUT]
        else:
            os.environ[_OPT_OUT] = before
