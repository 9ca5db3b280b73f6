"""MNN behind the Runner protocol. The only room that imports MNN."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.errors import BundleInvalid, KitError, MemoryShort
from kit.runtime import signatures
from kit.runtime.base import Binding, RunnerOptions, bind_arrays, refuse_varying
from kit.runtime.converted import Converter
from kit.runtime.sized import SizedRunner
from kit.system import packages
from kit.system.muted import STDOUT, muted
from kit.tensors import Signature, Sizes

CONVERTER = Converter(name="MNN", distribution="mnn", module=__name__, suffix=".mnn")

_OUT_OF_MEMORY = 1  # of MNN's error codes
_INT32 = np.iinfo(np.int32)


def needed() -> Any:
    """Return the module MNN, or raise PackageMissing with the line that installs it."""
    with muted(STDOUT):
        return packages.needed("MNN", distribution="mnn", purpose="the runtime mnn", extra="runtimes")


def convert(source: Path, target: Path) -> None:
    """Write a copy of an ONNX file in MNN's format; called in a child."""
    # its native part alone: the script `mnnconvert` around it installs a package and sends what it did to MNN's makers
    tool = importlib.import_module("_tools")
    tool.mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "kit"]
    )


class MnnRunner(SizedRunner):
    """A model as MNN's converter made it, opened for each size of its inputs; of `options`, the threads are used.

    MNN has no integers of 64 bits and no floats of 16 at its borders: they are 32 bits wide inside, and numbers that do
    not fit are refused.

    Raises:
        BundleInvalid: MNN does not open it, or it has other inputs or outputs.
        Unavailable: An output's size depends on the values.
    """

    runtime = "mnn"

    def __init__(self, model: Path, options: RunnerOptions, *, signature: Signature) -> None:
        self._mnn = needed()
        super().__init__(signature)
        refuse_varying(signature)
        self._model = model
        self._options = options
        self._interpreter()

    def _interpreter(self) -> Any:
        try:
            return self._mnn.Interpreter(str(self._model))
        except Exception as error:
            raise _failure(error) from error

    def _prepared(self, sizes: Sizes) -> Binding:
        with muted(STDOUT):
            return self._opened(sizes)

    def _opened(self, sizes: Sizes) -> Binding:
        # one for each size: the sessions of an interpreter are freed with it alone
        interpreter = self._interpreter()
        try:
            session = interpreter.createSession({"backend": "CPU", "numThread": self._options.threads})
            given = interpreter.getSessionInputAll(session)
            _refuse_other("inputs", given, [spec.name for spec in self.signature.inputs])
            inputs = self.signature.zeros(sizes)
            for name, array in inputs.items():
                interpreter.resizeTensor(given[name], array.shape)
            interpreter.resizeSession(session)
            made = interpreter.getSessionOutputAll(session)
            _refuse_other("outputs", made, self._outputs)
            call = _Call(self._mnn, interpreter, session)
            bound = {name: call.give(given[name], array) for name, array in inputs.items()}
            call()  # sizes that follow from the inputs are certain after a run
            outputs = {spec.name: call.take(made[spec.name], spec.dtype) for spec in self.signature.outputs}
        except Exception as error:
            raise _failure(error) from error
        signatures.check_outputs(outputs, self.signature, sizes)
        return bind_arrays(bound, outputs, call)

    def share(self) -> Self:
        """Return a runner that opens the model once more: a session is for one thread."""
        return type(self)(self._model, self._options, signature=self.signature)


class _Call:
    """Runs a session; what goes in and out lies in host tensors, whatever layout the session has."""

    def __init__(self, mnn: Any, interpreter: Any, session: Any) -> None:
        self._mnn, self._interpreter, self._session = mnn, interpreter, session
        self._before: list[Callable[[], object]] = []
        self._after: list[Callable[[], object]] = []

    def give(self, tensor: Any, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array that the session reads an input from: the given one, if MNN has no such dtype."""
        host = self._mnn.Tensor(tensor, self._mnn.Tensor_DimensionType_Caffe)
        view: NDArray[Any] = host.getNumpyData()
        if view.shape != array.shape:
            raise BundleInvalid(f"MNN has an input of {list(view.shape)} for {list(array.shape)}")
        if view.dtype != array.dtype:
            self._before.append(lambda: _narrow(view, array))
        self._before.append(lambda: tensor.copyFrom(host))
        view[...] = 0
        return view if view.dtype == array.dtype else array

    def take(self, tensor: Any, dtype: str) -> NDArray[Any]:
        host = self._mnn.Tensor(tensor, self._mnn.Tensor_DimensionType_Caffe)
        view: NDArray[Any] = host.getNumpyData()
        self._after.append(lambda: tensor.copyToHostTensor(host))
        tensor.copyToHostTensor(host)
        if view.dtype == dtype or not _is_widened(view.dtype, np.dtype(dtype)):
            return view
        array: NDArray[Any] = view.astype(dtype)
        self._after.append(lambda: np.copyto(array, view, casting="unsafe"))
        return array

    def __call__(self) -> None:
        for step in self._before:
            step()
        code = self._interpreter.runSession(self._session)
        if code == _OUT_OF_MEMORY:
            raise MemoryShort("MNN has too little memory for the model", hint="use smaller inputs")
        if code:
            raise BundleInvalid(f"MNN cannot run the model: its error code is {code}", hint="use --runtime onnxruntime")
        for step in self._after:
            step()


def _narrow(view: NDArray[Any], array: NDArray[Any]) -> None:
    if view.dtype == np.int32 and array.dtype.itemsize > 2 and array.size:
        least, most = int(array.min()), int(array.max())
        if least < _INT32.min or most > _INT32.max:
            raise BundleInvalid(
                f"MNN has integers of 32 bits, and the inputs go from {least:,} to {most:,}",
                hint="use --runtime onnxruntime",
            )
    np.copyto(view, array, casting="unsafe")


def _is_widened(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether MNN's dtype stands for another one: float32 for any real number, int32 for any whole one and for truth."""
    return (found == np.float32 and wanted.kind == "f") or (found.kind in "iu" and wanted.kind in "iub")


def _refuse_other(what: str, found: dict[str, Any], wanted: Sequence[str]) -> None:
    if set(found) != set(wanted):
        raise BundleInvalid(
            f"MNN has the {what} {sorted(found)}, expected {sorted(wanted)}", hint="use --runtime onnxruntime"
        )


def _failure(error: Exception) -> KitError:
    if isinstance(error, KitError):
        return error
    if isinstance(error, MemoryError):
        return MemoryShort("MNN has too little memory for the model", hint="use smaller inputs")
    reason = " ".join(str(error).split()) or type(error).__name__
    return BundleInvalid(f"MNN does not accept the model: {reason}", hint="use --runtime onnxruntime")
