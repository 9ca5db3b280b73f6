"""OpenVINO behind the Runner protocol. The only room that imports openvino."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import BundleInvalid, UsageError
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement, RunnerOptions
from kit.spec import Provider


@dataclass(frozen=True)
class _Bound:
    """A request whose input and output lie where they are: an input passed to each call costs 30 to 50 us in Python."""

    request: Any
    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]


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
        self._requests: dict[tuple[int, ...], _Bound] = {}
        self.placement = Placement({})
        self._read()

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`; the first of a batch size compiles."""
        if self._core is None:
            raise UsageError("this runner was closed")
        bound = self._requests.get(pixels.shape)
        if bound is None:
            bound = self._requests[pixels.shape] = self._compile(pixels.shape)
        np.copyto(bound.pixels, pixels)
        bound.request.infer(share_outputs=True)
        return bound.logits.copy()  # the next call overwrites the buffer

    def _read(self) -> Any:
        try:
            return self._core.read_model(io.BytesIO(self._model))
        except RuntimeError as error:
            raise BundleInvalid(f"OpenVINO does not accept the model: {str(error).splitlines()[0]}") from error

    def _compile(self, shape: tuple[int, ...]) -> _Bound:
        import openvino

        model = self._read()
        model.reshape(shape)  # static shapes are several times faster at batch 1 than a dynamic batch
        request = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        buffer = np.empty(shape, np.uint8)
        request.set_input_tensor(openvino.Tensor(buffer, shared_memory=True))
        return _Bound(request=request, pixels=buffer, logits=request.get_output_tensor(0).data)

    def close(self) -> None:
        """Free the compiled models."""
        self._core = None
        self._requests.clear()
