"""OpenVINO behind the Runner protocol. The only room that imports openvino."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit.bundle import graph_file
from kit.errors import BundleInvalid, KitError, MemoryShort, Unavailable
from kit.runtime import signatures
from kit.runtime.base import Binding, RunnerOptions, bind_arrays
from kit.runtime.sized import SizedRunner
from kit.tensors import Signature, Sizes, Tensors

_CAPABILITIES, _BF16 = "OPTIMIZATION_CAPABILITIES", "BF16"


class OpenVinoRunner(SizedRunner):
    """An ONNX model compiled by OpenVINO for the CPU, for each size anew, with its hint for latency.

    `model` is the ONNX file's bytes, or its path if weights lie in files beside it; of `options`, threads and `bf16`
    are used. Inputs and outputs are bound: one passed to each call costs 30 to 50 us in Python.

    Raises:
        BundleInvalid: OpenVINO does not accept the model.
        Unavailable: This CPU does not compute in bfloat16.
    """

    runtime = "openvino"

    def __init__(self, model: bytes | Path, options: RunnerOptions, *, signature: Signature) -> None:
        import openvino

        graph_file.refuse_unsound(model)
        super().__init__(signature)
        self._core: Any = openvino.Core()
        if options.bf16 and _BF16 not in self._core.get_property("CPU", _CAPABILITIES):
            raise Unavailable("this CPU does not compute in bfloat16", hint="leave --bf16 out")
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if options.bf16 else "f32",
        }
        self._model = model
        self._options = options
        self._read()

    def _prepared(self, sizes: Sizes) -> Binding:
        import openvino

        inputs = self.signature.zeros(sizes)
        model = self._read()
        try:
            # static shapes are several times faster at batch 1 than a dynamic batch
            model.reshape({name: openvino.PartialShape(list(array.shape)) for name, array in inputs.items()})
            compiled = self._core.compile_model(model, "CPU", self._settings)
            request = compiled.create_infer_request()
            for name, array in inputs.items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
            ports = {name: _port(compiled, name) for name in self._outputs}
            call = partial(_translated, partial(request.infer, share_outputs=True))
            if any(port.partial_shape.is_dynamic for port in ports.values()):
                return _Resized(inputs, {name: np.zeros(0) for name in ports}, call, request, ports)
            outputs = {name: request.get_tensor(port).data for name, port in ports.items()}
        except Exception as error:  # a defect of the file comes as whatever the binding makes of it
            raise _failure(error) from error
        signatures.check_outputs(outputs, self.signature, sizes)
        return bind_arrays(inputs, outputs, call)

    def _read(self) -> Any:
        model = self._model
        try:
            return self._core.read_model(model if isinstance(model, Path) else io.BytesIO(model))
        except Exception as error:
            raise _failure(error) from error

    def share(self) -> Self:
        """Return a runner that compiles for itself: one compiled for latency serves one request at a time."""
        return type(self)(self._model, self._options, signature=self.signature)

    def close(self) -> None:
        """Free the compiled models."""
        super().close()
        self._core = None


class _Resized(Binding):
    """Inputs that stay, and outputs whose size is known after the call alone."""

    __slots__ = ("_ports", "_request")

    def __init__(self, inputs: Tensors, outputs: Tensors, call: Any, request: Any, ports: dict[str, Any]) -> None:
        super().__init__(inputs, outputs, call)
        self._request, self._ports = request, ports

    def copy_out(self) -> Any:
        arrays = tuple(self._request.get_tensor(port).data for port in self._ports.values())
        return arrays[0] if len(arrays) == 1 else arrays


def _port(compiled: Any, name: str) -> Any:
    for port in compiled.outputs:
        if name in port.get_names():
            return port
    raise BundleInvalid(f"the graph has no output {name!r}")


def _translated(call: Any) -> None:
    try:
        call()
    except Exception as error:
        raise _failure(error) from error


def _failure(error: Exception) -> KitError:
    if isinstance(error, KitError):
        return error
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check "))] or lines
    reason = " ".join(told[:2]) or type(error).__name__
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):
        return MemoryShort(f"OpenVINO has too little memory for the model: {reason}", hint="use smaller inputs")
    return BundleInvalid(f"OpenVINO does not accept the model: {reason}", hint="use --runtime onnxruntime")
