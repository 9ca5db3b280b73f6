"""What a manifest records: the model, its files, and how they were made and checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from kit.choices import BATCH, CalibrationMethod, Precision, QuantizationScheme, VariantFormat


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, dtype (as numpy spells it) and shape of a tensor, without the dynamic batch that stands before it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a shape that is not all positive sizes; the batch is implied, not listed."""
        if not self.shape or any(size < 1 for size in self.shape):
            raise ValueError(f"shape {self.shape} must list the positive sizes after the batch")

    def describe(self) -> str:
        """Return `uint8 [batch, 28, 28]`."""
        return f"{self.dtype} [{', '.join([BATCH, *map(str, self.shape)])}]"


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """`(pixel / 255 - mean) / std`, which the graph does itself."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        """Refuse a standard deviation that cannot divide."""
        if not (self.std > 0 and math.isfinite(self.std) and math.isfinite(self.mean)):
            raise ValueError(f"mean and std must be finite and std positive, found {self.mean} and {self.std}")

    @property
    def scale(self) -> float:
        """Factor from a raw pixel to the normalised value."""
        return 1.0 / (255.0 * self.std)

    @property
    def shift(self) -> float:
        """Offset of the normalised value: what a pixel of 0 becomes."""
        return -self.mean / self.std


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything a stranger needs to use the model.

    Attributes:
        name: Name of the bundle, a plain folder name.
        architecture: What kit.lab.models rebuilds for PyTorch parity, or the class name of a module kit does not know.
        task: `image-classification`, the one task so far.
        input: Raw pixels the graph takes.
        output: Raw scores (logits) the graph gives, one for each label.
        labels: Names of the classes, in the order of the output.
        pipeline: Named, versioned pipeline of kit.tasks.images; empty for a model that takes pixels only.
        normalization: Folded into the graph.
        temperature: Divides the logits before softmax.
        abstain_below: Probability under which a prediction should be treated as "unsure"; None for never.
    """

    name: str
    architecture: str
    input: TensorSpec
    output: TensorSpec
    labels: tuple[str, ...]
    pipeline: str
    normalization: Normalization
    task: str = "image-classification"
    temperature: float = 1.0
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no later room could use."""
        check_name(self.name)
        if self.output.shape != (len(self.labels),):
            raise ValueError(f"{len(self.labels)} labels do not fit the output {self.output.describe()}")
        if self.input.dtype != "uint8":
            raise ValueError(f"the input must be raw uint8 pixels, found {self.input.dtype}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive, found {self.temperature}")


def check_name(name: str) -> str:
    """Return `name` if it can be a bundle's folder name everywhere.

    Raises:
        ValueError: It cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"{name!r} is no bundle name: use letters, digits, '.', '_' and '-'")
    return name


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file of a bundle: its name carries the first 8 hex digits of its sha256."""

    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where static activation ranges came from.

    `indices_sha256` hashes the sorted int64 indices of the samples into the training set.
    """

    method: CalibrationMethod
    dataset: str
    split: str
    samples: int
    indices_sha256: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the integer weights were made.

    Attributes:
        activation_dtype: What the layers compute with.
        weight_bits: Used, of those the dtype has.
        per_channel: Whether each output of a layer has a scale of its own.
        layers_excluded: Names of the layers that were left in float.
        block_size: Weights of one output that share a scale; 0 where the whole output, or the whole layer, does.
        equalized: Whether the ranges of neighbouring layers were evened out before (Nagel et al. 2019, arXiv 1906.04721).
    """

    scheme: QuantizationScheme
    activation_dtype: str
    weight_dtype: str
    weight_bits: int
    per_channel: bool
    layers_quantized: int
    layers_total: int
    layers_excluded: tuple[str, ...] = ()
    calibration: Calibration | None = None
    block_size: int = 0
    equalized: bool = False


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 on a named split, and what changed against the fp32 variant on the same images.

    Attributes:
        flips_to_wrong: Images the fp32 variant reads correctly and this one does not.
        flips_to_right: The other way round. Both are 0 for the fp32 variant itself.
        agreeing: Images on which both give the same class, right or wrong; None in bundles of earlier versions.
    """

    dataset: str
    split: str
    images: int
    correct: int
    flips_to_wrong: int = 0
    flips_to_right: int = 0
    agreeing: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts that do not fit together."""
        if not 0 <= self.correct <= self.images or self.images == 0:
            raise ValueError(f"{self.correct} correct of {self.images} images")

    @property
    def top1(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.correct / self.images

    @property
    def drop_points(self) -> float:
        """Percentage points lost against fp32; negative for a gain."""
        return 100.0 * (self.flips_to_wrong - self.flips_to_right) / self.images


@dataclass(frozen=True, kw_only=True)
class ParityRecord:
    """How far a variant's logits were from PyTorch's when it was published, on the golden samples."""

    images: int
    max_abs_error: float
    rms_error: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file of a bundle.

    Attributes:
        id: `fp32`, `fp16`, `int8-qdq`, `int8-pixel`, `int8-dynamic`, `int4`, ...
        artifact: The file.
        opset: Version of the ONNX operator set.
        ir_version: Version of the ONNX file format.
        domains: Operator domains beyond ONNX's own; empty means portable ONNX.
        min_onnxruntime: Oldest ONNX Runtime that reads this opset and IR version.
        normalization_folded: The first layer's weights hold the normalisation, so that it costs nothing.
    """

    id: str
    artifact: FileRef
    precision: Precision
    format: VariantFormat
    opset: int
    ir_version: int
    domains: tuple[str, ...]
    min_onnxruntime: str
    normalization_folded: bool
    parity: ParityRecord
    quantization: Quantization | None = None
    validation: Accuracy | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times as fast as something else, with the 95 % interval."""

    batch_size: int
    threads: int
    speedup: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The bundle that a compressed one was made of.

    Attributes:
        bundle: Its name.
        weights_sha256: Of its weights.
        architecture: Before.
        pixels_left_out: Inputs that carried nothing.
        units_left: Of each hidden layer.
        accuracy: Top-1 of the new fp32 on the test split, and its flips against the original's fp32.
        speedups: Of the new fp32 against the original's, in one run.
        machine: Where that was measured.
    """

    bundle: str
    weights_sha256: str
    architecture: str
    pixels_left_out: int
    units_left: tuple[int, ...]
    accuracy: Accuracy | None
    speedups: tuple[Speedup, ...]
    machine: str


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What a model's probabilities are worth, found on the validation split.

    Attributes:
        expected_error: Expected calibration error at the published temperature: how far the probability of the answer is from
            the share of right answers, the mean over 15 bins of equal count.
        expected_error_raw: The same at temperature 1.
        answered: Share of images at or above the abstain threshold.
        answered_top1: Share of right answers among those.
    """

    expected_error: float
    expected_error_raw: float
    answered: float
    answered_top1: float


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Where the weights came from.

    Attributes:
        recipe: The recipe's fields by name, enough to train again.
        validation: Top-1 of the kept weights on the validation split; None where all images were trained on.
        epochs_run: Fewer than the recipe's when training was interrupted.
        history: One row for each epoch: epoch, loss, validation_top1 (unless nothing was held out), learning_rate, seconds.
        confidence: None where nothing was held out.
        device: Where it was trained and in which precision, such as `cpu bfloat16`.
    """

    dataset: str
    recipe: dict[str, str]
    seed: int
    validation_fraction: float
    validation: Accuracy | None
    epochs_run: int
    best_epoch: int
    interrupted: bool
    train_seconds: float
    history: tuple[dict[str, float], ...] = field(default=())
    confidence: Confidence | None = None
    device: str = ""
