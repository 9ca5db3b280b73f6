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
from kit.errors import BundleInvalid, MemoryShort, UsageError
from kit.runtime.base import BaseRunner, Placement, RunnerOptions
from kit.tensors import Signature, Tensors

_THEIRS = (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


class ReferenceRunner(BaseRunner):
    """An ONNX model in the reference evaluator. While it is open, numpy's matrix library has `options.threads` threads.

    Args:
        model: The ONNX file's bytes, or its path if weights lie in files beside it.
        options: Threads.
        signature: What the model takes and gives.

    Raises:
        BundleInvalid: It is no ONNX file, or has operators the evaluator does not know.
    """

    runtime = "onnx-reference"
    provider = Provider.CPU

    def __init__(self, model: bytes | Path, options: RunnerOptions, *, signature: Signature) -> None:
        graph_file.refuse_external(model)
        try:
            loaded = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
        except (DecodeError, OSError, onnx.checker.ValidationError) as error:
            raise BundleInvalid(f"this is no ONNX file: {error}") from error
        self.signature = signature
        self._outputs = [spec.name for spec in signature.outputs]
        self.placement = Placement({})
        try:
            self._evaluator: Any = ReferenceEvaluator(loaded)
        except _THEIRS as error:
            raise BundleInvalid(f"the reference evaluator does not accept the model: {error}") from error
        self._limit: Any = threadpool_limits(limits=options.threads, user_api="blas")

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs."""
        if self._evaluator is None:
            raise UsageError("this runner was closed")
        self.signature.check(tensors)
        try:
            with np.errstate(all="ignore"):  # other runtimes do not speak of overflows either
                found = self._evaluator.run(self._outputs, dict(tensors))
        except MemoryError as error:
            raise MemoryShort("the reference evaluator has too little memory", hint="use smaller inputs") from error
        except _THEIRS as error:
            raise BundleInvalid(f"the reference evaluator cannot run the model: {error}") from error
        pairs = zip(self.signature.outputs, found, strict=True)
        return {spec.name: np.array(value, spec.dtype) for spec, value in pairs}

    def close(self) -> None:
        """Give the matrix library its threads back."""
        self._evaluator = None
        self._limit.restore_original_limits()
