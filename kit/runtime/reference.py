"""ONNX's reference evaluator behind the Runner protocol: slow, in plain numpy, an oracle for what a graph means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.reference import ReferenceEvaluator
from threadpoolctl import threadpool_limits

from kit.choices import Provider
from kit.errors import BundleInvalid
from kit.runtime.base import BaseRunner, Logits, Pixels, Placement, RunnerOptions


class ReferenceRunner(BaseRunner):
    """An ONNX model in the reference evaluator. While it is open, numpy's matrix library has `options.threads` threads.

    Raises:
        BundleInvalid: It is no ONNX file, or has operators the evaluator does not know.
    """

    runtime = "onnx-reference"
    provider = Provider.CPU
    fallback_reason = ""

    def __init__(self, model: bytes, options: RunnerOptions) -> None:
        try:
            loaded = onnx.load_from_string(model)
        except DecodeError as error:
            raise BundleInvalid(f"this is no ONNX file: {error}") from error
        self._input = loaded.graph.input[0].name
        self.placement = Placement({})
        try:
            self._evaluator = ReferenceEvaluator(loaded)
        except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
            raise BundleInvalid(f"the reference evaluator does not accept the model: {error}") from error
        self._limit: Any = threadpool_limits(limits=options.threads, user_api="blas")

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`."""
        try:
            (logits,) = self._evaluator.run(None, {self._input: pixels})
        except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
            raise BundleInvalid(f"the reference evaluator cannot run the model: {error}") from error
        return np.asarray(logits, np.float32)

    def close(self) -> None:
        """Give the matrix library its threads back."""
        self._limit.restore_original_limits()
