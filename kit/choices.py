"""What users choose among, as enums: strings become these at the door and nowhere else."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from kit.errors import UsageError

BATCH = "batch"
"""Name of the dynamic first dimension of inputs and outputs."""

FEW_BITS = 7
"""Of int8 weights: as many as any CPU adds up without saturating; there are 8."""


class _Choice(StrEnum):
    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the member called `text`, in any case.

        Raises:
            UsageError: There is no such member.
        """
        try:
            return cls(str(text).lower())
        except ValueError:
            known = ", ".join(cls)
            raise UsageError(f"unknown {cls.__name__.lower()} {text!r}", hint=f"choose one of: {known}") from None


class Provider(_Choice):
    """ONNX Runtime execution provider, by the short name people type."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class Precision(_Choice):
    """Number format of the weights a variant computes with."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


class QuantizationScheme(_Choice):
    """When activation ranges are found: from calibration samples, or anew in each call.

    `weights` makes integers of weights in blocks, and leaves what becomes of activations to the operator.
    """

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHTS = "weights"


class VariantFormat(_Choice):
    """How a variant's graph expresses its precision.

    `qdq` is float operators between QuantizeLinear and DequantizeLinear, which every runtime reads; `qoperator` is integer
    operators as ONNX Runtime's quantizer writes them; `pixel` a bare chain of integer layers from raw pixels on;
    `weight-only` float arithmetic on weights of a few bits in blocks.
    """

    FLOAT = "float"
    QDQ = "qdq"
    QOPERATOR = "qoperator"
    PIXEL = "pixel"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"


CPU_FORMATS = frozenset({VariantFormat.QOPERATOR, VariantFormat.PIXEL, VariantFormat.DYNAMIC})
"""Formats with operators for which ONNX Runtime has kernels on the CPU alone."""


class Mode(_Choice):
    """Where input and output of a measured call lie."""

    HOST = "host"
    """In host memory: inputs are handed over and outputs handed back, copies included."""
    DEVICE = "device"
    """Where the model runs, bound in place: the call alone."""


class Goal(_Choice):
    """What a model is chosen for: the quickest answer to one sample, or the most samples in a second."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


class CalibrationMethod(_Choice):
    """How activation ranges follow from what the samples showed.

    The whole range; the range that loses the least information (entropy, Migacz 2017); all but a share of the outermost; or the
    range that makes the least squared error.
    """

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"
    MSE = "mse"
