"""ONNX Runtime's IO binding as a Binding: in host memory for the CPU, on the device for CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.runtime.base import Binding, bind_arrays
from kit.tensors import Tensors

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"
Translate = Callable[[Exception], Exception]
"""Turns what ONNX Runtime raises into kit's own."""


class DeviceBinding(Binding):
    """Inputs and outputs in the memory of a device, at addresses that stay: what a CUDA graph needs.

    `compute` is the call alone, and waits for its end; `copy_in` and `copy_out` carry arrays over. `inputs` says what was
    bound; filling it in place changes nothing.
    """

    __slots__ = ("_device_inputs", "_device_outputs", "_translate")

    def __init__(
        self,
        inputs: Tensors,
        outputs: Tensors,
        call: Callable[[], object],
        *,
        on_device: tuple[tuple[Any, ...], tuple[Any, ...]],
        translate: Translate,
    ) -> None:
        super().__init__(inputs, outputs, call)
        self._device_inputs, self._device_outputs = on_device
        self._translate = translate

    def copy_in(self, *arrays: NDArray[Any]) -> None:
        """Copy inputs to the device."""
        self.check(*arrays)
        with translating(self._translate):
            for place, array in zip(self._device_inputs, arrays, strict=True):
                place.update_inplace(np.asarray(array, order="C"))

    def copy_out(self) -> Any:
        """Copy outputs from the device."""
        with translating(self._translate):
            for place, value in zip(self._made, self._device_outputs, strict=True):
                np.copyto(place, value.numpy())
        return super().copy_out()


@contextlib.contextmanager
def translating(translate: Translate) -> Iterator[None]:
    """Raise kit's errors in place of ONNX Runtime's."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise translate(error) from error


def bind_host(session: Any, ort: Any, inputs: Tensors, outputs: Tensors, translate: Translate) -> Binding:
    """Bind arrays that the CPU reads and writes where they are; the outputs have the model's own shapes and dtypes."""
    values = [
        {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()}
        for tensors in (inputs, outputs)
    ]
    return bind_arrays(inputs, outputs, _call(session, values[0], values[1], ort.RunOptions(), translate))


def bind_device(
    session: Any,
    ort: Any,
    inputs: Tensors,
    outputs: Tensors,
    translate: Translate,
    *,
    device: tuple[str, int],
    graph_id: int | None = None,
) -> DeviceBinding:
    """Bind memory of a device, such as `("cuda", 0)`, for tensors like these arrays; the inputs get their values.

    With a `graph_id`, the first call is recorded as a CUDA graph of that number, and replayed from then on.
    """
    kind, index = device
    held, made = (
        {
            name: ort.OrtValue.ortvalue_from_shape_and_type(one.shape, one.dtype.type, kind, index)
            for name, one in tensors.items()
        }
        for tensors in (inputs, outputs)
    )
    for name, array in inputs.items():
        held[name].update_inplace(array)
    options = ort.RunOptions()
    if graph_id is not None:
        options.add_run_config_entry(_GRAPH_ID, str(graph_id))
    call = _call(session, held, made, options, translate)
    on_device = (tuple(held.values()), tuple(made.values()))
    return DeviceBinding(inputs, outputs, call, on_device=on_device, translate=translate)


def without_graph(ort: Any) -> Any:
    """Return options of a call that is not to be recorded."""
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
    return options


def _call(
    session: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], options: Any, translate: Translate
) -> Callable[[], None]:
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    run = _bound_run(session, binding, options)

    def call() -> None:  # without the context manager, which takes a microsecond
        try:
            run()
        except Exception as error:
            raise translate(error) from error

    return call


def _bound_run(session: Any, binding: Any, options: Any) -> Callable[[], object]:
    # The public method looks into the run options by way of Python exceptions, 30 us a call, and without options the
    # call makes them anew, 0.9 us (1.31, docs/performance.md): the method behind it is called with options that stay.
    inner, bound = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return partial(session.run_with_iobinding, binding, options)
    return partial(inner.run_with_iobinding, bound, options)
