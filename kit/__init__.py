"""kit: put a trained model on machines that are not yours.

    import kit

    prediction = kit.load("mnist-mlp").predict("photo.jpg")
    print(prediction.names, prediction.probabilities, prediction.provider)

`import kit` is light: it imports neither numpy nor a runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kit.choices import Precision, Provider, QuantizationScheme
from kit.errors import (
    BadInput,
    BundleInvalid,
    BundleNotFound,
    CheckFailed,
    DatasetInvalid,
    DatasetUnavailable,
    GateFailed,
    KitError,
    MemoryShort,
    PackageMissing,
    PictureInvalid,
    ProviderUnavailable,
    StorageUnavailable,
    Unavailable,
    UsageError,
    VerifyFailed,
)

if TYPE_CHECKING:
    from kit.bundle import Bundle
    from kit.engine import Engine, load
    from kit.ready import find
    from kit.samples import Samples, Splits
    from kit.tasks.base import Prediction
    from kit.tasks.classification import Classes
    from kit.tasks.image import ImageClassification
    from kit.tasks.table import Table
    from kit.tasks.tensors import PlainTensors
    from kit.tasks.text import TextClassification, TextEmbedding, Vectors
    from kit.tensors import Axis, Signature, TensorSpec

__version__ = "0.1.0"

_LAZY = {
    "Axis": "kit.tensors",
    "Bundle": "kit.bundle",
    "Classes": "kit.tasks.classification",
    "Engine": "kit.engine",
    "ImageClassification": "kit.tasks.image",
    "PlainTensors": "kit.tasks.tensors",
    "Prediction": "kit.tasks.base",
    "Samples": "kit.samples",
    "Signature": "kit.tensors",
    "Splits": "kit.samples",
    "Table": "kit.tasks.table",
    "TensorSpec": "kit.tensors",
    "TextClassification": "kit.tasks.text",
    "TextEmbedding": "kit.tasks.text",
    "Vectors": "kit.tasks.text",
    "find": "kit.ready",
    "load": "kit.engine",
}

__all__ = [
    "Axis",
    "BadInput",
    "Bundle",
    "BundleInvalid",
    "BundleNotFound",
    "CheckFailed",
    "Classes",
    "DatasetInvalid",
    "DatasetUnavailable",
    "Engine",
    "GateFailed",
    "ImageClassification",
    "KitError",
    "MemoryShort",
    "PackageMissing",
    "PictureInvalid",
    "PlainTensors",
    "Precision",
    "Prediction",
    "Provider",
    "ProviderUnavailable",
    "QuantizationScheme",
    "Samples",
    "Signature",
    "Splits",
    "StorageUnavailable",
    "Table",
    "TensorSpec",
    "TextClassification",
    "TextEmbedding",
    "Unavailable",
    "UsageError",
    "Vectors",
    "VerifyFailed",
    "__version__",
    "find",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
