"""OpenVINO behind the Runner protocol. The only room that imports openvino."""

from __future__ import annotations

import io
from functools import partial
from typing import Any, Self

import numpy as np

from kit.choices import Provider
from kit.errors import BundleInvalid, UsageError
from kit.runtime.base import BaseRunner, Binding, Logits, Pixels, Placement, RunnerOptions


class OpenVinoRunner(BaseRunner):
    """An ONNX model compiled by OpenVINO for the CPU, for each batch size anew, with its hint for latency.

    Inputs and outputs are bound: one passed to each call costs 30 to 50 us in Python.

    Raises:
        BundleInvalid: OpenVINO does not accept the model.
    """

    runtime = "openvino"
    provider = Provider.CPU
    fallback_reason = ""

    def __init__(self, model: bytes, options: RunnerOptions) -> None:
        import openvino

        self._core: Any = openvino.Core()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._model = model
        self._options = options
        self._bindings: dict[tuple[int, ...], Binding] = {}
        self.placement = Placement({})
        self._read()

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`; the first of a batch size compiles."""
        if self._core is None:
            raise UsageError("this runner was closed")
        bound = self._bindings.get(pixels.shape)
        if bound is None:
            bound = self._bindings[pixels.shape] = self.bind(pixels.shape)
        return bound.run(pixels).copy()

    def _read(self) -> Any:
        try:
            return self._core.read_model(io.BytesIO(self._model))
        except RuntimeError as error:
            raise BundleInvalid(f"OpenVINO does not accept the model: {str(error).splitlines()[0]}") from error

    def bind(self, shape: tuple[int, ...]) -> Binding:
        """Compile for inputs of one shape, `(N, *input shape)`, and bind buffers."""
        import openvino

        if self._core is None:
            raise UsageError("this runner was closed")
        model = self._read()
        model.reshape(shape)  # static shapes are several times faster at batch 1 than a dynamic batch
        request = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        buffer = np.zeros(shape, np.uint8)
        request.set_input_tensor(openvino.Tensor(buffer, shared_memory=True))
        logits: Logits = request.get_output_tensor(0).data
        return Binding(buffer, logits, partial(request.infer, share_outputs=True))

    def share(self) -> Self:
        """Return a runner that compiles for itself: one compiled for latency serves one request at a time."""
        return type(self)(self._model, self._options)

    def close(self) -> None:
        """Free the compiled models."""
        self._core = None
        self._bindings.clear()
