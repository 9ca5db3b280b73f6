"""Plain tensors: what a model takes and gives, and nothing more. Every model has this task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.errors import BadInput, DatasetInvalid, UsageError
from kit.samples import Samples
from kit.system.npz import open_npz
from kit.tasks.base import Prediction, Prologue
from kit.tasks.inputs import refuse_special
from kit.tensors import Signature, Tensors

_TARGET = "target."


class PlainTensors:
    """Named arrays in, named arrays out: from .npz and .json files."""

    name = "tensors@1"
    metrics: Sequence[str] = ("r2", "cosine")
    prologue: Prologue | None = None

    def __init__(self, signature: Signature | None = None) -> None:
        self.files: Mapping[str, Path] = {}
        self._signature = signature

    @classmethod
    def open(
        cls,
        name: str,  # noqa: ARG003 - there is one version
        options: Mapping[str, Any],  # noqa: ARG003 - and it has none
        files: Mapping[str, Path],  # noqa: ARG003
        signature: Signature,
    ) -> Self:
        """Make it for a signature."""
        return cls(signature)

    def options(self) -> dict[str, Any]:
        """Return nothing: there is nothing to choose."""
        return {}

    def check(self, signature: Signature) -> None:
        """Take any model."""
        self._signature = signature

    def read(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give the arrays of a .npz or .json file."""
        yield argument, arrays_of(Path(argument), self._signature)

    def read_rows(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give the samples of a .npz or .json file one by one, each with a batch of 1; all at once without a batch axis.

        Raises:
            BadInput: It holds no named arrays, or not those that the model takes.
        """
        arrays = arrays_of(Path(argument), self._signature)
        signature = self._signature
        if signature is None or signature.batch is None:
            yield argument, arrays
            return
        try:
            inputs = samples_of(arrays, signature, argument).inputs
        except DatasetInvalid as error:
            raise BadInput(str(error), hint=error.hint) from error
        for row in range(signature.rows(inputs)):
            yield f"{argument}:{row + 1}", signature.take(inputs, slice(row, row + 1))

    def encode(self, items: Sequence[Any]) -> Tensors:
        """Return named arrays as they are; several items are joined along the batch axis."""
        strange = next((item for item in items if not isinstance(item, Mapping)), None)
        if strange is not None or not items:
            raise UsageError(
                f"an item is named arrays, found {type(strange).__name__ if items else 'nothing'}",
                hint='give a dict: {"NAME": array}',
            )
        if len(items) == 1 or self._signature is None:
            return dict(items[0]) if self._signature is None else self._signature.arrays(items[0])
        signature = self._signature
        items = [signature.arrays(item) for item in items]
        if signature.batch is None:
            raise UsageError("this model has no batch axis: it takes one item in a call")
        return {
            spec.name: np.concatenate([item[spec.name] for item in items], axis=spec.shape.index(signature.batch))
            if signature.batch in spec.shape
            else items[0][spec.name]
            for spec in signature.inputs
        }

    def decode(self, outputs: Tensors, inputs: Tensors) -> Prediction:
        """Return the outputs as they are."""
        return Prediction(outputs=outputs, inputs=inputs)

    def samples(self, source: Path, signature: Signature) -> tuple[Samples, ...]:
        """Read a .npz whose arrays are called as the inputs; others are targets, `target.NAME` or NAME."""
        try:
            arrays = arrays_of(source, signature)
        except BadInput as error:
            raise DatasetInvalid(str(error), hint=error.hint) from error
        return (samples_of(arrays, signature, source.name),)

    def raw(self, source: Path | None, most: int) -> list[Any]:  # noqa: ARG002 - there are no things before the tensors
        """Return nothing: tensors have no way in to prove."""
        return []

    def item(self, raw: Any) -> Any:
        """Return named arrays for a JSON object of lists."""
        return _of_json(raw, self._signature)

    def snippet(self, path: str) -> str:
        """Return the lines that run a variant with ONNX Runtime alone."""
        given = ""
        if self._signature is not None:
            sizes = self._signature.usual_sizes()
            given = ", ".join(
                f'"{spec.name}": np.zeros({spec.sized(sizes)}, np.{spec.dtype if spec.dtype != "bool" else "bool_"})'
                for spec in self._signature.inputs
            )
        return (
            "import numpy as np\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{path}")\noutputs = session.run(None, {{{given}}})\n'
        )


def arrays_of(path: Path, signature: Signature | None = None) -> dict[str, NDArray[Any]]:
    """Read named arrays from a .npz, or from a .json object of lists, in the dtypes of a signature if one is given.

    Raises:
        BadInput: There is no such file, it is a pipe, or it holds something else.
    """
    suffix = path.suffix.lower()
    refuse_special(path)
    try:
        if suffix == ".json":
            return _of_json(json.loads(path.read_bytes()), signature)
        if suffix == ".npy":
            raise BadInput(
                f"{path} holds one array without a name", hint="save named arrays: numpy.savez(FILE, NAME=array)"
            )
        with path.open("rb") as file, open_npz(file) as held:
            return {name: held[name] for name in held.files}
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {str(path)!r}", hint="give named arrays: a .npz or .json file") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{path} holds no named arrays: {error}", hint="save them: numpy.savez(FILE, NAME=array)"
        ) from error


def _of_json(plain: Any, signature: Signature | None) -> dict[str, NDArray[Any]]:
    """Return lists as arrays, in the dtypes of a signature if they fit."""
    if not isinstance(plain, dict):
        raise BadInput(f"named arrays are an object of lists, found {type(plain).__name__}")
    dtypes = {} if signature is None else {spec.name: spec.dtype for spec in signature.inputs}
    arrays = {}
    for name, value in plain.items():
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError) as error:
            raise BadInput(f"{name} is no array: its lists differ in length") from error
        if array.dtype.kind not in "biuf":
            raise BadInput(f"{name} holds no numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(dtypes.get(name, array.dtype))
        fits = cast.dtype.kind == "f" or np.array_equal(cast, array)
        arrays[name] = cast if fits else array
    return arrays


def samples_of(arrays: Mapping[str, NDArray[Any]], signature: Signature, name: str) -> Samples:
    """Tell inputs from targets among named arrays; raise DatasetInvalid if an input is missing or does not fit."""
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and names[0] not in arrays and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    missing = [one for one in names if one not in arrays]
    if missing:
        raise DatasetInvalid(
            f"{name} lacks the input {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}",
            hint=f"the model takes {', '.join(f'{key}: {value}' for key, value in signature.described().items())}",
        )
    inputs = {one: arrays[one] for one in names}
    try:
        signature.sizes(inputs)
    except UsageError as error:
        raise DatasetInvalid(f"{name}: {error}", hint=error.hint) from error
    targets = {one.removeprefix(_TARGET): array for one, array in arrays.items() if one not in names}
    return Samples(inputs=inputs, targets=targets or None, source=name)
