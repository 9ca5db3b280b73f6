"""ONNX's reference evaluator behind the Runner protocol: slow, in plain numpy, an oracle for what a graph means."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from kit.errors import BundleInvalid
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement
from kit.spec import Provider


class ReferenceRunner(ClosingRunner):
    """An ONNX model in the reference evaluator.

    Raises:
        BundleInvalid: It has operators the evaluator does not know.
    """

    runtime = "onnx-reference"
    provider = Provider.CPU
    fallback_reason = ""

    def __init__(self, model: bytes) -> None:
        loaded = onnx.load_from_string(model)
        self._input = loaded.graph.input[0].name
        self.placement = Placement({})
        try:
            self._evaluator = ReferenceEvaluator(loaded)
        except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
            raise BundleInvalid(f"the reference evaluator does not accept the model: {error}") from error

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`."""
        try:
            (logits,) = self._evaluator.run(None, {self._input: pixels})
        except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
            raise BundleInvalid(f"the reference evaluator cannot run the model: {error}") from error
        return np.asarray(logits, np.float32)

    def close(self) -> None:
        """Nothing is held beyond the graph."""
