"""tract behind the Runner protocol. The only room that imports tract."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.bundle import graph_file
from kit.errors import BundleInvalid, KitError, MemoryShort, Unavailable
from kit.runtime import signatures
from kit.runtime.base import Binding, RunnerOptions, bind_arrays
from kit.runtime.sized import SizedRunner
from kit.system import packages
from kit.tensors import Signature, Sizes

_OTHER = "use --runtime onnxruntime"


class TractRunner(SizedRunner):
    """An ONNX model that tract optimizes for each size of its inputs. It computes on one thread.

    Args:
        model: Path of the ONNX file; weights may lie beside it.
        options: One thread.
        signature: What the model takes and gives.

    Raises:
        BundleInvalid: tract does not accept the model.
        Unavailable: More threads are asked for.
    """

    runtime = "tract"

    def __init__(self, model: Path, options: RunnerOptions, *, signature: Signature) -> None:
        self._tract = packages.needed("tract", distribution="tract", purpose="the runtime tract", extra="runtimes")
        if options.threads > 1:
            raise Unavailable("tract computes on one thread", hint="leave --threads out")
        graph_file.refuse_unsound(model)
        super().__init__(signature)
        self._model = model
        self._options = options
        self._loaded()

    def _loaded(self) -> Any:
        try:
            return self._tract.onnx().load(str(self._model))
        except Exception as error:
            raise _failure(error) from error

    def _prepared(self, sizes: Sizes) -> Binding:
        inputs = self.signature.zeros(sizes)
        model = self._loaded()
        try:
            names = [model.input_name(place) for place in range(model.input_count())]
            for place, name in enumerate(names):
                model.set_input_fact(place, _fact(inputs[name]))
            for place in range(model.output_count()):
                model.set_output_fact(place, None)  # the sizes in the file may be names, which a number contradicts
            runnable = model.into_model().into_runnable()
            arrays = [inputs[name] for name in names]
            outputs = self._named(runnable.run(arrays))
        except Exception as error:
            raise _failure(error) from error
        signatures.check_outputs(outputs, self.signature, sizes)

        def compute() -> None:
            try:
                found = runnable.run(arrays)
            except Exception as error:
                raise _failure(error) from error
            for name, array in self._named(found).items():
                np.copyto(outputs[name], array)

        return bind_arrays(inputs, outputs, compute)

    def _named(self, found: list[Any]) -> dict[str, NDArray[Any]]:
        return {spec.name: tensor.to_numpy() for spec, tensor in zip(self.signature.outputs, found, strict=True)}

    def share(self) -> Self:
        """Return a runner that optimizes for itself."""
        return type(self)(self._model, self._options, signature=self.signature)


def _fact(array: NDArray[Any]) -> str:
    """Return what tract calls an input of this shape and dtype: `8,3,224,224,f32`."""
    kind = "bool" if array.dtype == np.bool_ else f"{array.dtype.kind}{8 * array.dtype.itemsize}"
    return ",".join([*map(str, array.shape), kind])


def _failure(error: Exception) -> KitError:
    if isinstance(error, KitError):
        return error
    if isinstance(error, MemoryError):
        return MemoryShort("tract has too little memory for the model", hint="use smaller inputs")
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return BundleInvalid(f"tract does not accept the model: {reason}", hint=_OTHER)
