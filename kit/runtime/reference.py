"""ONNX's reference evaluator behind the Runner protocol: slow, in plain numpy, an oracle for what a graph means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from threadpoolctl import threadpool_limits

from kit.bundle import graph_file
from kit.choices import Provider
from kit.errors import BundleInvalid, KitError, MemoryShort, UsageError
from kit.runtime import signatures
from kit.runtime.base import BaseRunner, Placement, RunnerOptions
from kit.tensors import Signature, Tensors, TensorSpec


class ReferenceRunner(BaseRunner):
    """An ONNX model in the reference evaluator. While it is open, numpy's matrix library has `options.threads` threads.

    `model` is the ONNX file's bytes, or its path if weights lie in files beside it.

    Raises:
        BundleInvalid: It is no ONNX file, or has operators the evaluator does not know.
    """

    runtime = "onnx-reference"
    provider = Provider.CPU

    def __init__(self, model: bytes | Path, options: RunnerOptions, *, signature: Signature) -> None:
        graph_file.refuse_unsound(model)
        try:
            loaded = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
        except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
            raise BundleInvalid(f"this is no ONNX file: {error}") from error
        self.signature = signature
        self._outputs = [spec.name for spec in signature.outputs]
        self.placement = Placement({})
        try:
            self._evaluator: Any = ReferenceEvaluator(loaded)
        except Exception as error:  # it is written for sound files: what others make it raise is anything
            raise _failure(error, "does not accept") from error
        self._limit: Any = threadpool_limits(limits=options.threads, user_api="blas")

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs."""
        if self._evaluator is None:
            raise UsageError("this runner was closed")
        sizes = self.signature.check(tensors)
        try:
            with np.errstate(all="ignore"):  # other runtimes do not speak of overflows either
                found = self._evaluator.run(self._outputs, dict(tensors))
            pairs = zip(self.signature.outputs, map(np.asarray, found), strict=True)
            outputs = {spec.name: _cast(value, spec) for spec, value in pairs}
        except Exception as error:
            raise _failure(error, "cannot run") from error
        signatures.check_outputs(outputs, self.signature, sizes)
        return outputs

    def close(self) -> None:
        """Give the matrix library its threads back."""
        self._evaluator = None
        self._limit.restore_original_limits()


def _cast(value: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Return an output in the signature's dtype: the evaluator widens some floats, but makes no other kind of number of any."""
    return value.astype(spec.dtype, copy=True) if np.can_cast(value.dtype, spec.dtype, "same_kind") else value


def _failure(error: Exception, what: str) -> KitError:
    if isinstance(error, KitError):
        return error
    if isinstance(error, MemoryError):
        return MemoryShort("the reference evaluator has too little memory", hint="use smaller inputs")
    return BundleInvalid(
        f"the reference evaluator {what} the model: {' '.join(str(error).split()) or type(error).__name__}"
    )
