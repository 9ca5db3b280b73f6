"""What a manifest says: the model as named tensors, its files, how they were made, and what was proved of them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.metrics import Fidelity, Score
from kit.tensors import Signature

SCHEMA_VERSION = 3
"""3: named tensors, tasks, scores of any metric, weights in files of their own. 1 and 2 are read (kit.bundle.migrations)."""

MANIFEST = "manifest.json"


def _refuse_negative(value: Golden | Calibration | Quantization | Needs, *but: str) -> None:
    """Refuse counts below nothing in a dataclass; other whole numbers are named in `but`."""
    for one in dataclasses.fields(value):
        number = getattr(value, one.name)
        if one.name not in but and isinstance(number, int) and number < 0:
            raise ValueError(f"{one.name} is {number}, and counts things")


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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) or self.size_bytes < 0:
            raise ValueError(f"{self.file!r} has no sha256 of 64 hexadecimal digits, or an impossible size")


@dataclass(frozen=True, kw_only=True)
class TaskRef:
    """The task of a model: which plug knows it, and what it has to know.

    Attributes:
        name: With its version, such as `image-classification@1`.
        options: Plain JSON values that only the plug understands.
        files: What it needs beside them, such as a tokenizer, by role.
        package: That registers the plug, for the message if it is not installed; empty for kit's own.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRef] = field(default_factory=dict)
    package: str = ""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model came from, and what its variants were compared with.

    Attributes:
        kind: `module`, `architecture`, `factory`, `program`, `huggingface`, or `onnx`: then ONNX Runtime itself answered.
        name: Of the class, the architecture, the function or the file; never a path.
        weights: Its weights in the bundle; None if only the variants hold them.
        sha256: Of the file it was made of; empty if there was none.
    """

    kind: str
    name: str
    weights: FileRef | None = None
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Samples with the original's answers, in groups of one size, and raw items with the tensors they must become.

    Attributes:
        source: Where they come from and under which licence.
        items: Raw items and their tensors, JSON and npz in one; None if the task has no way in, or there were none.
    """

    file: FileRef
    samples: int = 0
    source: str = ""
    items: FileRef | None = None

    def __post_init__(self) -> None:
        _refuse_negative(self)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where static activation ranges came from; `indices_sha256` is of sorted int64 indices into the training set."""

    method: CalibrationMethod
    dataset: str
    split: str
    samples: int
    indices_sha256: str
    seed: int

    def __post_init__(self) -> None:
        _refuse_negative(self, "seed")


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
        smoothed: Whether part of the range of layers' inputs was moved into their weights before (Xiao et al. 2022, arXiv
            2211.10438).
        adjusted: Whether weights were rounded for the sake of their layer's output, not each to its nearest, and biases moved
            with them (Frantar et al. 2022, arXiv 2210.17323; Nagel et al. 2019).
        fine_tuned: Whether weights were trained before, so that the model answers as before with integers of them (Jacob et al.
            2018, arXiv 1712.05877).
        weights_quantized: Single weights that became integers; embedding tables and recurrent layers count like any other.
        weights_total: Single weights in all; 0 if they were not counted.
        macs_quantized: Multiply-adds of one call of the usual sizes that are done with integers.
        macs_total: Multiply-adds in all; 0 if they were not counted.
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
    smoothed: bool = False
    adjusted: bool = False
    fine_tuned: bool = False
    weights_quantized: int = 0
    weights_total: int = 0
    macs_quantized: int = 0
    macs_total: int = 0

    def __post_init__(self) -> None:
        _refuse_negative(self)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What must be there to run a variant.

    Attributes:
        onnxruntime: Oldest ONNX Runtime that reads the operator set and the file format of these versions.
        domains: Operator domains beyond ONNX's own; empty means portable ONNX.
    """

    opset: int
    ir_version: int
    onnxruntime: str
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _refuse_negative(self)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of the model.

    Attributes:
        id: `fp32`, `fp16`, `int8-qdq`, `int8-pixel`, `int8-dynamic`, `int4`, ...
        data: Its weights, if they lie beside it; the graph names these files and no others.
        fidelity: Against the original on the golden samples, output by output, when it was published.
        remarks: What its export could not decide, or left as it was, in words.
    """

    id: str
    precision: Precision
    format: VariantFormat
    graph: FileRef
    data: tuple[FileRef, ...] = ()
    needs: Needs
    fidelity: tuple[Fidelity, ...] = ()
    scores: tuple[Score, ...] = ()
    quantization: Quantization | None = None
    remarks: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of graph and weights."""
        return self.graph.size_bytes + sum(one.size_bytes for one in self.data)

    def files(self) -> tuple[FileRef, ...]:
        """Graph and weights."""
        return (self.graph, *self.data)

    def score(self, metric: str | None = None, *, split: str = "test") -> Score | None:
        """Return its score on a split: of a metric, or the first there is; None if there is none."""
        fitting = (one for one in self.scores if one.split == split and metric in {None, one.metric})
        return next(fitting, None)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        baseline: Id of the variant that others are compared with.
        default: Id of the variant that is opened when none is named.
        attachments: Other files by role: `card` (Markdown), `training` and `origin` (JSON, for the lab alone).
    """

    schema_version: int
    name: str
    signature: Signature
    task: TaskRef | None = None
    original: Provenance | None = None
    golden: Golden
    baseline: str | None = None
    default: str | None = None
    variants: tuple[Variant, ...] = ()
    attachments: dict[str, FileRef] = field(default_factory=dict)
    tools: dict[str, str]

    def __post_init__(self) -> None:
        check_name(self.name)
        ids = [variant.id for variant in self.variants]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two variants have the same id: {ids}")
        for role, chosen in (("default", self.default), ("baseline", self.baseline)):
            if (chosen not in ids) if ids else (chosen is not None):
                raise ValueError(f"the {role} variant {chosen!r} is none of {ids}")

    def files(self) -> tuple[FileRef, ...]:
        """Every file the manifest names."""
        weights = self.original.weights if self.original else None
        optional = (weights, self.golden.items)
        task = self.task.files.values() if self.task else ()
        return (
            *(one for one in optional if one is not None),
            self.golden.file,
            *task,
            *self.attachments.values(),
            *(one for variant in self.variants for one in variant.files()),
        )
