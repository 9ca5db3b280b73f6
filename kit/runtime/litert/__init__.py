"""LiteRT, the runtime of phones, with XNNPACK behind the Runner protocol. The only room that imports ai_edge_litert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.errors import BundleInvalid
from kit.runtime import signatures
from kit.runtime.base import OneToOne, RunnerOptions
from kit.runtime.litert.dense import converted
from kit.runtime.sized import SizedRunner
from kit.system.muted import STDERR, muted
from kit.tensors import Signature, Sizes, Tensors

_SIGN = np.uint8(128)


class LiteRtRunner(SizedRunner):
    """A network of dense layers in LiteRT, for each number of samples anew. The sizes used last stay open.

    `model` is the ONNX file's bytes, or its path if weights lie in files beside it; of `options`, the threads are used.

    Raises:
        Unavailable: It is more than dense layers.
        BundleInvalid: LiteRT does not accept it.
    """

    runtime = "litert"

    def __init__(self, model: bytes | Path, options: RunnerOptions, *, signature: Signature) -> None:
        import onnx

        super().__init__(signature)
        self._given = model
        self._model: Any = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
        self._options = options
        self._input = signature.inputs[0].name
        self._last: OneToOne | None = None
        converted(self._model, batch=1)  # refuses what is more than dense layers, before anybody waits for it

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the output; the first call of a size converts the network."""
        last = self._last
        if last is not None and len(tensors) == 1:  # a call may take 7 us: no loop, no other look-up
            array = tensors.get(self._input)
            if array is not None and array.shape == last.shape and array.dtype is last.dtype:
                return {self._outputs[0]: last.run_fitting(array).copy()}
        found = super().run(tensors)
        bound = self._bindings.get(tuple([array.shape for array in tensors.values()]))
        self._last = bound if isinstance(bound, OneToOne) else None
        return found

    def _prepared(self, sizes: Sizes) -> OneToOne:
        inputs = self.signature.zeros(sizes)
        ((name, place),) = inputs.items()
        interpreter = _opened(converted(self._model, batch=len(place)), self._options.threads)
        given = interpreter.tensor(interpreter.get_input_details()[0]["index"])()
        made = interpreter.tensor(interpreter.get_output_details()[0]["index"])()
        output = self.signature.outputs[0]
        outputs = {output.name: made.reshape(output.sized(sizes))}
        signatures.check_outputs(outputs, self.signature, sizes)
        # The public way refuses to run as long as somebody holds a view of its tensors. These stay where they are.
        invoke = interpreter._interpreter.Invoke  # noqa: SLF001
        if place.dtype == np.uint8:
            return _Signed(inputs, outputs, given.view(np.uint8).reshape(place.shape), invoke)
        return OneToOne({name: given.reshape(place.shape)}, outputs, invoke)

    def share(self) -> Self:
        """Return a runner with interpreters of its own: one serves one call at a time."""
        return type(self)(self._given, self._options, signature=self.signature)

    def close(self) -> None:
        """Free the interpreters."""
        self._last = None
        super().close()


class _Signed(OneToOne):
    """Values of uint8 that LiteRT reads as int8, 128 less: they change their sign on the way, without another copy."""

    __slots__ = ("_invoke", "_place")

    def __init__(
        self, inputs: Tensors, outputs: Tensors, place: NDArray[np.uint8], invoke: Callable[[], object]
    ) -> None:
        super().__init__(inputs, outputs, self._computed)
        self._place, self._invoke = place, invoke

    def run_fitting(self, array: NDArray[Any]) -> NDArray[Any]:
        np.bitwise_xor(array, _SIGN, self._place)
        self._invoke()
        return self._output

    def _computed(self) -> None:
        self.run_fitting(self._input)


def _opened(data: bytes, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        with muted(STDERR):  # it says there that it made a delegate
            interpreter = Interpreter(model_content=data, num_threads=threads)
            interpreter.allocate_tensors()
            interpreter.invoke()  # once, so that the library's own buffers are made
    except (RuntimeError, ValueError) as error:
        told = (str(error).splitlines() or ["it does not say why"])[0]
        raise BundleInvalid(f"LiteRT does not accept the model: {told}", hint="use --runtime onnxruntime") from error
    return interpreter
