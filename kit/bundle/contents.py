"""What a bundle holds: the manifest and the golden samples, as values. Touches no file."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.bundle.records import FileRef, ModelSpec, Origin, TrainingRecord, Variant
from kit.errors import BundleInvalid

SCHEMA_VERSION = 2
"""2: variants of more precisions and formats than fp32 and int8 as QDQ or dynamic; 1 is read as it is."""

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        card: The model card, Markdown: data, recipe, accuracy, known failures.
        origin: What it was compressed from; None for a model that was trained by itself.
    """

    schema_version: int
    spec: ModelSpec
    golden: FileRef
    tools: dict[str, str]
    weights: FileRef | None = None
    training: TrainingRecord | None = None
    variants: tuple[Variant, ...] = ()
    default_variant: str | None = None
    card: FileRef | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        """Refuse variants that cannot be told apart, and a default that is none of them."""
        ids = [variant.id for variant in self.variants]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two variants have the same id: {ids}")
        if (self.default_variant not in ids) if ids else (self.default_variant is not None):
            raise ValueError(f"the default variant {self.default_variant!r} is none of {ids}")

    def files(self) -> tuple[FileRef, ...]:
        """Every file the manifest names."""
        optional = (one for one in (self.weights, self.card) if one is not None)
        return (*optional, self.golden, *(variant.artifact for variant in self.variants))


@dataclass(frozen=True, kw_only=True)
class GoldenSamples:
    """Inputs with the answers PyTorch gave, to prove a bundle where there is neither data nor torch.

    Attributes:
        pixels: uint8 `[N, *input shape]`.
        labels: int64 `[N]`, -1 where unknown.
        logits: float32 `[N, classes]`, from the PyTorch module in fp32 on a CPU.
        source: Where the pictures come from and under which licence.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    source: str


def check_golden(golden: GoldenSamples, spec: ModelSpec) -> None:
    """Raise BundleInvalid unless the golden samples fit the ModelSpec."""
    count = len(golden.pixels)
    shapes = (golden.pixels.shape[1:], golden.labels.shape, golden.logits.shape)
    expected = (spec.input.shape, (count,), (count, *spec.output.shape))
    dtypes = (str(golden.pixels.dtype), str(golden.logits.dtype))
    if count == 0 or shapes != expected or dtypes != (spec.input.dtype, spec.output.dtype):
        raise BundleInvalid(f"golden samples {shapes} {dtypes} do not fit the model {expected}")
    if golden.labels.min() < -1 or golden.labels.max() >= len(spec.labels):
        raise BundleInvalid(f"golden samples have labels that are none of the model's {len(spec.labels)} classes")


def golden_bytes(golden: GoldenSamples) -> bytes:
    """Serialise golden samples as a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        pixels=golden.pixels,
        labels=golden.labels,
        logits=golden.logits,
        source=np.array(golden.source),
    )
    return buffer.getvalue()


def golden_from_bytes(data: bytes, spec: ModelSpec) -> GoldenSamples:
    """Read what `golden_bytes` wrote.

    Raises:
        BundleInvalid: It is something else, or does not fit the ModelSpec.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            golden = GoldenSamples(
                pixels=arrays["pixels"],
                labels=arrays["labels"],
                logits=arrays["logits"],
                source=str(arrays["source"]),
            )
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleInvalid(f"the file of golden samples holds none: {error}") from error
    check_golden(golden, spec)
    return golden
