"""ONNX Runtime's IO binding as a Binding: in host memory for the CPU, on the device for CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from kit.runtime.base import Binding, Logits, Pixels

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"
Translate = Callable[[Exception], Exception | None]
"""Turns ONNX Runtime's exceptions into kit's; None for others."""


class DeviceBinding(Binding):
    """Input and output in the memory of a device, at addresses that stay: what a CUDA graph needs.

    `compute` is the call alone, and waits for its end; `copy_in` and `copy_out` carry pixels and logits over. `pixels` says
    what was bound; filling it in place changes nothing.
    """

    __slots__ = ("_input", "_output", "_translate")

    def __init__(
        self,
        pixels: Pixels,
        logits: Logits,
        call: Callable[[], object],
        *,
        on_device: tuple[Any, ...],
        translate: Translate,
    ) -> None:
        super().__init__(pixels, logits, call)
        self._input, self._output = on_device
        self._translate = translate

    def copy_in(self, pixels: Pixels) -> None:
        """Copy pixels to the device."""
        self.check(pixels)
        with translating(self._translate):
            self._input.update_inplace(pixels)

    def copy_out(self) -> Logits:
        """Copy logits from the device."""
        with translating(self._translate):
            np.copyto(self.logits, self._output.numpy())
        return self.logits


@contextlib.contextmanager
def translating(translate: Translate) -> Iterator[None]:
    """Raise kit's errors in place of ONNX Runtime's."""
    try:
        yield
    except Exception as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


def bind_host(session: Any, ort: Any, pixels: Pixels, logits: Logits, translate: Translate) -> Binding:
    """Bind arrays that the CPU reads and writes where they are; `logits` has the shape and dtype of the model's output."""
    values = (ort.OrtValue.ortvalue_from_numpy(pixels), ort.OrtValue.ortvalue_from_numpy(logits))
    return Binding(pixels, logits, _call(session, values, ort.RunOptions(), translate))


def bind_device(
    session: Any,
    ort: Any,
    pixels: Pixels,
    logits: Logits,
    translate: Translate,
    *,
    device: tuple[str, int],
    graph_id: int | None = None,
) -> DeviceBinding:
    """Bind memory of a device for an input and an output like these arrays.

    Args:
        session: The model.
        ort: The onnxruntime package.
        pixels: What the input is like, and its first value.
        logits: What the output is like.
        translate: Of errors.
        device: Kind and index, such as `("cuda", 0)`.
        graph_id: Record the first call as a CUDA graph of that number, and replay it from then on.
    """
    kind, index = device
    values: tuple[Any, ...] = tuple(
        ort.OrtValue.ortvalue_from_shape_and_type(one.shape, one.dtype.type, kind, index) for one in (pixels, logits)
    )
    values[0].update_inplace(pixels)
    options = ort.RunOptions()
    if graph_id is not None:
        options.add_run_config_entry(_GRAPH_ID, str(graph_id))
    call = _call(session, values, options, translate)
    return DeviceBinding(pixels, logits, call, on_device=values, translate=translate)


def without_graph(ort: Any) -> Any:
    """Return options of a call that is not to be recorded."""
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
    return options


def _call(session: Any, values: tuple[Any, ...], options: Any, translate: Translate) -> Callable[[], None]:
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, values[0])
    binding.bind_ortvalue_output(session.get_outputs()[0].name, values[1])
    run = _bound_run(session, binding, options)

    def call() -> None:  # without the context manager, which takes a microsecond
        try:
            run()
        except Exception as error:
            ours = translate(error)
            if ours is None:
                raise
            raise ours from error

    return call


def _bound_run(session: Any, binding: Any, options: Any) -> Callable[[], object]:
    """Return the call with all its arguments.

    The public method looks into the run options by way of Python exceptions, 30 us a call, and without options the call makes
    them anew, 0.9 us (1.31, docs/performance.md): the method behind it is called with options that stay.
    """
    inner, bound = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return partial(session.run_with_iobinding, binding, options)
    return partial(inner.run_with_iobinding, bound, options)
