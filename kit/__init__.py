"""kit: put a trained model on machines that are not yours.

    import kit

    prediction = kit.load("mnist-mlp").predict("photo.jpg")
    print(prediction.names, prediction.probabilities, prediction.provider)

`import kit` is light: it imports neither torch nor onnxruntime.
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
    from kit.tensors import Axis, Signature, TensorSpec

__version__ = "0.1.0"

_LAZY = {
    "Bundle": "kit.bundle",
    "Engine": "kit.engine",
    "Prediction": "kit.engine",
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
    "DatasetInvalid",
    "DatasetUnavailable",
    "Engine",
    "GateFailed",
    "KitError",
    "MemoryShort",
    "PackageMissing",
    "PictureInvalid",
    "Precision",
    "Prediction",
    "Provider",
    "ProviderUnavailable",
    "QuantizationScheme",
    "Samples",
    "Signature",
    "Splits",
    "StorageUnavailable",
    "TensorSpec",
    "Unavailable",
    "UsageError",
    "VerifyFailed",
    "__version__",
    "find",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import the rooms behind the door when they are first asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
