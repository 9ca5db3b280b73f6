"""Named tensors: what a model takes and gives, and which of its sizes may differ from call to call. Imports no runtime.

signature = Signature(
    inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=30522),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    axes={"batch": Axis(), "sequence": Axis(most=512, typical=(16, 128))},
)
signature.check({"input_ids": ids})  # {"batch": 8, "sequence": 16}, or a UsageError that names tensor, axis and bound
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from kit.errors import MemoryShort, UsageError

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by the name of the input or output."""

Sizes = Mapping[str, int]
"""Sizes of the named axes."""

BATCH = "batch"
"""The usual name of the axis along which samples are independent of each other."""

_NEVER_SHORT_BYTES = 64 * 2**20
_VALUES_AT_ONCE = 2**20  # of an array that is gone through in pieces

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")
"""What a tensor at the border may be, as numpy spells it."""

DATATYPES = {
    **{dtype: dtype.upper() for dtype in DTYPES},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""What the Open Inference Protocol and Triton call them."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A size that may differ from call to call.

    Attributes:
        most: Largest size; None for no bound.
        typical: Sizes that export proves and the bench measures; the first is the usual one.
    """

    least: int = 1
    most: int | None = None
    multiple_of: int = 1
    typical: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.least < 0 or self.multiple_of < 1 or (self.most is not None and self.most < self.least):
            raise ValueError(f"an axis cannot have {self.describe()}")
        if self.most and self._least_possible > self.most:
            raise ValueError(f"an axis of {self.describe()} has no size at all")
        for size in self.typical:
            if problem := self.problem(size):
                raise ValueError(f"the typical size {size} is impossible: {problem}")

    def problem(self, size: int) -> str:
        """Return why a size is impossible; empty if it is possible."""
        if size < self.least:
            return f"{size} is less than {self.least}"
        if self.most is not None and size > self.most:
            return f"{size} is more than {self.most}"
        if size % self.multiple_of:
            return f"{size} is no multiple of {self.multiple_of}"
        return ""

    def describe(self) -> str:
        """Return `1 to 512`, `8 or more, multiples of 8`."""
        span = f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
        return span if self.multiple_of == 1 else f"{span}, multiples of {self.multiple_of}"

    @property
    def usual(self) -> int:
        """The first typical size, else the smallest possible one that is not 0."""
        if self.typical:
            return self.typical[0]
        return self._least_possible

    @property
    def _least_possible(self) -> int:
        return math.ceil(max(self.least, 1) / self.multiple_of) * self.multiple_of


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or an output.

    Attributes:
        dtype: As numpy spells it, one of DTYPES.
        shape: Sizes; a name stands for an axis that may differ, and () is a scalar.
        varies: For outputs whose size depends on values, such as the boxes that are found: never bound ahead.
        below: For integer inputs: values lie in 0..below-1, such as the size of a vocabulary; None if unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    varies: bool = False
    below: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tensor needs a name")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name} is {self.dtype}; a tensor must be one of: {', '.join(DTYPES)}")
        if any(not size if isinstance(size, str) else size < 0 for size in self.shape):
            raise ValueError(f"{self.name} has an impossible shape: {self.shape}")
        if self.below is not None and self.below < 1:
            raise ValueError(f"{self.name} can have no value below {self.below}")

    def describe(self) -> str:
        """Return `int64 [batch, sequence]`."""
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    def sized(self, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape with its axes at these sizes."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers."""
        return self.dtype.startswith("float")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model takes and gives, in the order of the graph.

    Attributes:
        axes: Bounds and typical sizes of every axis that a shape names; one that is left out is 1 or more.
        batch: The axis along which samples do not depend on each other; None: one call is one sample.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, Axis] = field(default_factory=dict)
    batch: str | None = BATCH

    def __post_init__(self) -> None:
        for specs in (self.inputs, self.outputs):
            names = [spec.name for spec in specs]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"inputs and outputs need names of their own, found {names}")
        used = {size for spec in (*self.inputs, *self.outputs) for size in spec.shape if isinstance(size, str)}
        object.__setattr__(self, "axes", {name: self.axes.get(name, Axis()) for name in sorted(used | set(self.axes))})
        if self.batch is not None and not any(self.batch in spec.shape for spec in self.inputs):
            raise ValueError(f"no input has the batch axis {self.batch!r}")

    def input(self, name: str) -> TensorSpec:
        """Return an input by name."""
        return next(spec for spec in self.inputs if spec.name == name)

    def output(self, name: str) -> TensorSpec:
        """Return an output by name."""
        return next(spec for spec in self.outputs if spec.name == name)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """The axes of the inputs, the batch first."""
        names = dict.fromkeys(size for spec in self.inputs for size in spec.shape if isinstance(size, str))
        return tuple(sorted(names, key=lambda name: name != self.batch))

    def describe(self) -> str:
        """Return `pixels uint8 [batch, 28, 28] -> logits float32 [batch, 10]`."""
        takes, gives = (
            ", ".join(f"{spec.name} {spec.describe()}" for spec in specs) for specs in (self.inputs, self.outputs)
        )
        return f"{takes} -> {gives}"

    def described(self) -> dict[str, str]:
        """Return `{"pixels": "uint8 [batch, 28, 28]"}` of the inputs."""
        return {spec.name: spec.describe() for spec in self.inputs}

    def usual_sizes(self, **given: int) -> dict[str, int]:
        """Return a size for every axis of the inputs: the given ones, else the usual ones.

        Raises:
            UsageError: An axis that does not exist, or a size that it cannot have.
        """
        for name, size in given.items():
            if name not in self.dynamic:
                known = ", ".join(self.dynamic) or "none: all its sizes are fixed"
                raise UsageError(f"the model has no axis {name!r}", hint=f"its axes are: {known}")
            if problem := self.axes[name].problem(size):
                raise UsageError(f"the axis {name} cannot have this size: {problem}")
        return {name: given.get(name, self.axes[name].usual) for name in self.dynamic}

    def zeros(self, sizes: Sizes) -> dict[str, NDArray[Any]]:
        """Return inputs of these sizes, all zero; raises MemoryShort if the free memory does not hold them."""
        self.check_room(sizes)
        return {spec.name: np.zeros(spec.sized(sizes), spec.dtype) for spec in self.inputs}

    def check_room(self, sizes: Sizes) -> None:
        """Raise MemoryShort unless inputs of these sizes, not yet made, fit into the memory that is free."""
        needed = sum(math.prod(spec.sized(sizes)) * np.dtype(spec.dtype).itemsize for spec in self.inputs)
        if needed <= _NEVER_SHORT_BYTES:
            return
        free = psutil.virtual_memory().available
        if needed > free:
            said = ", ".join(f"{name} {size:,}" for name, size in sizes.items()) or "fixed sizes"
            raise MemoryShort(
                f"inputs of {said} take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free",
                hint="give smaller sizes",
            )

    def nbytes(self, sizes: Sizes) -> int:
        """Return the bytes of inputs and outputs at these sizes; axes of outputs alone count as their usual size."""
        known = {name: axis.usual for name, axis in self.axes.items()} | dict(sizes)
        return sum(
            math.prod(spec.sized(known)) * np.dtype(spec.dtype).itemsize for spec in (*self.inputs, *self.outputs)
        )

    def arrays(self, tensors: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return inputs as contiguous arrays in the order of the graph, checked.

        Lists, numbers and arrays of any layout are taken; the dtype must be right, but whole numbers in a list fit any.

        Raises:
            UsageError: A tensor is missing, unknown, or has another dtype, rank or size than the model takes.
        """
        self._check_names(tensors)
        arrays = {spec.name: _as_array(tensors[spec.name], spec) for spec in self.inputs}
        self.check(arrays)
        return arrays

    def check(self, tensors: Tensors) -> dict[str, int]:
        """Return the sizes of the axes of inputs.

        Raises:
            UsageError: A tensor is missing, unknown, or has another dtype, rank or size than the model takes.
        """
        return self._checked(tensors, self.axes)

    def sizes(self, tensors: Tensors) -> dict[str, int]:
        """Return the sizes as `check` does, but for any number of samples: the batch bounds a call, not a data set."""
        return self._checked(tensors, {**self.axes, **({} if self.batch is None else {self.batch: Axis(least=0)})})

    def _checked(self, tensors: Tensors, axes: Mapping[str, Axis]) -> dict[str, int]:
        self._check_names(tensors)
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            self._check_one(spec, tensors[spec.name], sizes, axes)
        return sizes

    def _check_names(self, tensors: Mapping[str, Any]) -> None:
        names = {spec.name for spec in self.inputs}
        if names != set(tensors):
            missing, unknown = sorted(names - set(tensors)), sorted(set(tensors) - names)
            problem = f"the input {missing[0]!r} is missing" if missing else f"there is no input {unknown[0]!r}"
            raise UsageError(
                problem, hint="the model takes " + ", ".join(f"{k}: {v}" for k, v in self.described().items())
            )

    def _check_one(
        self, spec: TensorSpec, array: NDArray[Any], sizes: dict[str, int], axes: Mapping[str, Axis]
    ) -> None:
        if getattr(array, "dtype", None) != spec.dtype or array.ndim != len(spec.shape):
            held = f"{array.dtype} {list(array.shape)}" if hasattr(array, "dtype") else type(array).__name__
            raise UsageError(
                f"{spec.name} must be {spec.describe()}, found {held}",
                hint=f"give an array of {spec.dtype} with {len(spec.shape)} axes",
            )
        for wanted, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(wanted, int):
                if size != wanted:
                    raise UsageError(
                        f"{spec.name} must be {spec.describe()}, found {list(array.shape)}: {size} for {wanted}"
                    )
            elif sizes.setdefault(wanted, size) != size:
                raise UsageError(f"{spec.name} has {size} along {wanted!r} where another input has {sizes[wanted]}")
            elif problem := axes[wanted].problem(size):
                raise UsageError(
                    f"{spec.name}: along {wanted!r} {problem}", hint=f"{wanted} is {self.axes[wanted].describe()}"
                )

    def rows(self, tensors: Tensors) -> int:
        """Return how many samples inputs hold: their size along the batch axis, or 1 without one."""
        if self.batch is None:
            return 1
        spec = next(spec for spec in self.inputs if self.batch in spec.shape)
        return int(tensors[spec.name].shape[spec.shape.index(self.batch)])

    def take(self, tensors: Tensors, rows: slice | NDArray[np.integer[Any]]) -> dict[str, NDArray[Any]]:
        """Return some samples of inputs or outputs; tensors without a batch axis stay whole. A slice copies nothing."""
        specs = {spec.name: spec for spec in (*self.outputs, *self.inputs)}
        return {name: along(array, self._place(specs.get(name)), rows) for name, array in tensors.items()}

    def split(self, tensors: Tensors, most_rows: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Give inputs in pieces of `most_rows` samples or fewer, none copied; whole if there is no batch axis.

        The pieces are of about one size, none below the least of the batch axis, each a multiple of what it asks for.
        """
        count = self.rows(tensors)
        if self.batch is None or count <= most_rows:
            yield dict(tensors)
            return
        axis = self.axes[self.batch]
        unit = axis.multiple_of
        units = math.ceil(count / unit)
        pieces = math.ceil(units / max(most_rows // unit, 1))
        pieces = min(pieces, max(units // math.ceil(max(axis.least, 1) / unit), 1))
        ends = [min(unit * (units * number // pieces), count) for number in range(1, pieces + 1)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield self.take(tensors, slice(start, end))

    def join(self, pieces: Sequence[Tensors]) -> dict[str, NDArray[Any]]:
        """Return the outputs of pieces as those of the whole.

        Raises:
            UsageError: An output has no batch axis, so that it belongs to a whole call and not to its samples.
        """
        if len(pieces) == 1:
            return dict(pieces[0])
        specs = {spec.name: spec for spec in self.outputs}
        joined = {}
        for name in pieces[0]:
            place = self._place(specs[name])
            if place is None:
                raise UsageError(f"the output {name!r} has no axis {self.batch!r}: run smaller inputs one by one")
            try:
                joined[name] = np.concatenate([piece[name] for piece in pieces], axis=place)
            except ValueError as error:
                raise UsageError(
                    f"the size of {name!r} depends on the values: the answers to pieces cannot be joined",
                    hint="run smaller inputs one by one",
                ) from error
        return joined

    def rows_within(self, most_bytes: int, sizes: Sizes) -> int:
        """Return how many samples of these sizes fit into so many bytes: as few as the batch axis allows at least."""
        if self.batch is None:
            return 1
        axis = self.axes[self.batch]
        rows = most_bytes // max(self.nbytes({**sizes, self.batch: 1}), 1)
        rows = rows if axis.most is None else min(rows, axis.most)
        return max(1, axis.least, rows // axis.multiple_of * axis.multiple_of, axis.multiple_of)

    def _place(self, spec: TensorSpec | None) -> int | None:
        """Return which axis of a tensor is the batch; tensors that are no input or output have it first."""
        if self.batch is None:
            return None
        if spec is None:
            return 0
        return spec.shape.index(self.batch) if self.batch in spec.shape else None


def along(array: NDArray[Any], axis: int | None, rows: slice | NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return some rows along an axis; the array itself if the axis is None."""
    if axis is None:
        return array
    if axis == 0:
        return array[rows]
    place: list[Any] = [slice(None)] * axis
    return array[(*place, rows)]


def row_slices(shape: Sequence[int]) -> Iterator[slice]:
    """Give an array of this shape in rows of few values, so that what is computed of them takes little room."""
    rows = max(_VALUES_AT_ONCE // max(math.prod(shape[1:]), 1), 1)
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def native(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the byte order of this machine; a copy only if it has another."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def ordered(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as torch takes it: in the byte order of this machine, no axis running backwards."""
    array = native(array)
    return array.copy(order="C") if any(stride < 0 for stride in array.strides) else array


def _as_array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return a value as a contiguous array; plain Python numbers take the dtype of the tensor if they fit."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(native(value)) if value.ndim else native(value)
    try:
        array = np.asarray(value)
        if array.dtype != spec.dtype and array.dtype.kind in "biuf":
            cast = array.astype(spec.dtype)
            if cast.dtype.kind == "f" or np.array_equal(cast, array):  # 1.7 is no id
                array = cast
    except (ValueError, TypeError) as error:
        raise UsageError(f"{spec.name} must be {spec.describe()}: {error}") from error
    return np.ascontiguousarray(array) if array.ndim else array
