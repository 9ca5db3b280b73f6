"""OpenVINO behind the Runner protocol. The only room that imports openvino."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from kit.errors import BundleInvalid, UsageError
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement, RunnerOptions
from kit.spec import Provider


class OpenVinoRunner(ClosingRunner):
    """An ONNX model compiled by OpenVINO for the CPU, for each batch size anew, with its hint for latency.

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
        self._requests: dict[tuple[int, ...], Any] = {}
        self.placement = Placement({})
        self._read()

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`; the first of a batch size compiles."""
        if self._core is None:
            raise UsageError("this runner was closed")
        request = self._requests.get(pixels.shape)
        if request is None:
            request = self._requests[pixels.shape] = self._compile(pixels.shape)
        (logits,) = request.infer([pixels], share_inputs=True, share_outputs=True).values()
        return np.array(logits, np.float32)  # a copy: the shared buffer is overwritten by the next call

    def _read(self) -> Any:
        try:
            return self._core.read_model(io.BytesIO(self._model))
        except RuntimeError as error:
            raise BundleInvalid(f"OpenVINO does not accept the model: {str(error).splitlines()[0]}") from error

    def _compile(self, shape: tuple[int, ...]) -> Any:
        model = self._read()
        model.reshape(shape)  # static shapes are several times faster at batch 1 than a dynamic batch
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()

    def close(self) -> None:
        """Free the compiled models."""
        self._core = None
        self._requests.clear()
