"""Rows of a table in, a class or numbers out.

task = Table(columns=("age", "bmi", "smoker"), categories={"smoker": ("no", "yes")}, outputs=("progression",))
task.encode([{"age": 59, "bmi": 32.1, "smoker": "no"}])  # {"features": float32 [1, 3]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.errors import BadInput, BundleInvalid, DatasetInvalid, UsageError
from kit.samples import Samples
from kit.tasks.base import Prediction, Prologue
from kit.tasks.classification import Classes, check_labels, probabilities
from kit.tasks.rows import rows_of
from kit.tasks.text import label_of
from kit.tensors import Signature, Tensors, TensorSpec


@dataclass(kw_only=True, slots=True, eq=False)
class Values(Prediction):
    """Numbers for each row.

    Attributes:
        values: float `[N, outputs]`.
        names: What they are called.
    """

    values: NDArray[np.floating[Any]]
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def records(self) -> list[dict[str, Any]]:
        """Return the values of each row by name."""
        return [dict(zip(self.names, row, strict=True)) for row in self.values.tolist()]


class Table:
    """Rows to a class, or to numbers.

    Args:
        columns: What the model takes, in the order of its features; one input for all, or an input for each.
        categories: Words of a column and, by their place, the numbers they become.
        labels: Names of the classes; empty for a regression.
        outputs: Names of the numbers of a regression; empty for the output's own.
        target: Column of a data set that holds the right answer; for several numbers, their names are the columns.

    Raises:
        ValueError: Columns that cannot be told apart.
    """

    name = "table@1"
    prologue: Prologue | None = None

    def __init__(
        self,
        *,
        columns: Sequence[str],
        categories: Mapping[str, Sequence[str]] | None = None,
        labels: Sequence[str] = (),
        outputs: Sequence[str] = (),
        target: str = "target",
    ) -> None:
        self.columns = tuple(map(str, columns))
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"a table needs columns of different names, found {self.columns}")
        self.categories = {name: tuple(map(str, words)) for name, words in (categories or {}).items()}
        unknown = [name for name in self.categories if name not in self.columns]
        if unknown:
            raise ValueError(f"there is no column {unknown[0]!r} that could have categories")
        self.labels = check_labels(labels) if labels else ()
        self.outputs = tuple(outputs)
        self.target = target
        self.files: Mapping[str, Path] = {}
        self.metrics: Sequence[str] = ("top-1", "agreement") if self.labels else ("r2", "rmse")
        self._inputs: tuple[TensorSpec, ...] = ()
        self._output = ""

    @classmethod
    def open(cls, name: str, options: Mapping[str, Any], files: Mapping[str, Path], signature: Signature) -> Self:  # noqa: ARG003 - `check` reads the signature
        """Make it of what a manifest holds."""
        if name != cls.name:
            raise BundleInvalid(f"this kit knows {cls.name}, not {name}", hint="install a newer kit")
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return what travels in the manifest."""
        given: dict[str, Any] = {"columns": list(self.columns)}
        given |= (
            {"categories": {name: list(words) for name, words in self.categories.items()}} if self.categories else {}
        )
        given |= {"labels": list(self.labels)} if self.labels else {}
        given |= {"outputs": list(self.outputs)} if self.outputs else {}
        return given | ({"target": self.target} if self.target != "target" else {})

    def check(self, signature: Signature) -> None:
        """Raise UsageError unless the model takes these columns, and gives scores or numbers."""
        named = {spec.name for spec in signature.inputs}
        is_matrix = len(signature.inputs) == 1 and len(signature.inputs[0].shape) == 2
        if is_matrix and signature.inputs[0].shape[1] in {len(self.columns)} | {
            size for size in signature.inputs[0].shape if isinstance(size, str)
        }:
            pass
        elif named != set(self.columns):
            found = ", ".join(f"{name}: {spec}" for name, spec in signature.described().items())
            raise UsageError(
                f"{len(self.columns)} columns ({', '.join(self.columns[:8])}) do not fit the inputs {found}",
                hint="one input [batch, columns], or an input for each column by its name",
            )
        floats = [spec for spec in signature.outputs if spec.is_float]
        scores = [spec for spec in floats if spec.shape[1:] == (len(self.labels),)]
        chosen = scores if self.labels else floats
        if not chosen:
            found = ", ".join(f"{spec.name}: {spec.describe()}" for spec in signature.outputs)
            raise UsageError(f"{len(self.labels) or 'no'} labels do not fit the output {found}")
        self._inputs, self._output = signature.inputs, chosen[0].name

    def read(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give the rows of a CSV, JSON-lines or Parquet file, or of stdin."""
        for number, row in enumerate(rows_of(argument), start=1):
            yield f"{argument}:{number}", row

    def encode(self, items: Sequence[Any]) -> Tensors:
        """Return the features of rows, which are mappings by column, or sequences in the order of the columns."""
        table = np.array([self._numbers(item, place) for place, item in enumerate(items, start=1)], np.float64)
        if len(self._inputs) == 1 and len(self._inputs[0].shape) == 2:
            return {self._inputs[0].name: np.ascontiguousarray(table, self._inputs[0].dtype)}
        return {
            spec.name: np.ascontiguousarray(
                table[:, self.columns.index(spec.name)].reshape(-1, *[1] * (len(spec.shape) - 1)), spec.dtype
            )
            for spec in self._inputs
        }

    def decode(self, outputs: Tensors, inputs: Tensors) -> Prediction:
        """Return the class of each row, or its numbers."""
        found = outputs[self._output]
        if self.labels:
            return Classes(
                labels=found.argmax(axis=1),
                probabilities=probabilities(found, 1.0),
                logits=found,
                classes=self.labels,
                outputs=outputs,
                inputs=inputs,
            )
        values = found.reshape(len(found), -1)
        names = self.outputs if len(self.outputs) == values.shape[1] else ()
        if not names:
            names = (
                (self._output,)
                if values.shape[1] == 1
                else tuple(f"{self._output}.{n}" for n in range(values.shape[1]))
            )
        return Values(values=values, names=names, outputs=outputs, inputs=inputs)

    def samples(self, source: Path, signature: Signature) -> tuple[Samples, ...]:
        """Read rows, with their targets if the file has the column.

        Raises:
            DatasetInvalid: It holds something else, or a target that the model does not have.
        """
        self.check(signature)
        rows = list(rows_of(source))
        if not rows:
            raise DatasetInvalid(f"{source.name} holds no rows")
        wanted = self.outputs if len(self.outputs) > 1 else (self.target,)
        targets: dict[str, NDArray[Any]] | None = None
        if all(name in rows[0] for name in wanted):
            targets = self._targets(rows, wanted, source.name)
        return (Samples(inputs=self.encode(rows), targets=targets, source=source.name),)

    def raw(self, source: Path | None, most: int) -> list[Any]:
        """Return the first rows, the columns that the model takes alone; without a data set none."""
        if source is None:
            return []
        rows = itertools.islice(rows_of(source), most)
        return [{name: row[name] for name in self.columns if name in row} for row in rows]

    def item(self, raw: Any) -> Any:
        """Return the row."""
        return raw

    def snippet(self, path: str) -> str:
        """Return the lines that run a variant with ONNX Runtime alone; empty if each column is an input."""
        if len(self._inputs) != 1:
            return ""
        (spec,) = self._inputs
        return (
            "import numpy as np\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{path}")\n'
            f"row = [0.0] * {len(self.columns)}  # {', '.join(self.columns[:8])}\n"
            f'outputs = session.run(["{self._output}"], {{"{spec.name}": np.array([row], np.{spec.dtype})}})\n'
        )

    def _numbers(self, item: Any, place: int) -> list[float]:
        if isinstance(item, Mapping):
            missing = next((name for name in self.columns if item.get(name) in {None, ""}), None)
            if missing is not None:
                raise BadInput(f"row {place} has no value for {missing!r}", hint="fill it in, or leave the row out")
            values = [item[name] for name in self.columns]
        elif isinstance(item, Sequence) and not isinstance(item, str) and len(item) == len(self.columns):
            values = list(item)
        else:
            raise UsageError(
                f"row {place} is {type(item).__name__}", hint=f"give {len(self.columns)} values, or a mapping by column"
            )
        return [self._number(name, value, place) for name, value in zip(self.columns, values, strict=True)]

    def _number(self, name: str, value: Any, place: int) -> float:
        words = self.categories.get(name)
        if words is not None:
            if str(value) not in words:
                raise BadInput(
                    f"row {place}: {name} has no category {value!r}", hint=f"it has: {', '.join(words[:12])}"
                )
            return float(words.index(str(value)))
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise BadInput(f"row {place}: {name} is no number: {value!r}") from error
        if not math.isfinite(number):
            raise BadInput(f"row {place}: {name} is {number}", hint="fill it in, or leave the row out")
        return number

    def _targets(self, rows: Sequence[Mapping[str, Any]], wanted: Sequence[str], name: str) -> dict[str, NDArray[Any]]:
        if self.labels:
            labels = [label_of(row[wanted[0]], self.labels, f"{name}, row {n}") for n, row in enumerate(rows, start=1)]
            if None in labels:
                raise DatasetInvalid(f"{name}: row {labels.index(None) + 1} has no label")
            return {"labels": np.array(labels, np.int64)}
        try:
            values = np.array([[float(row[one]) for one in wanted] for row in rows], np.float32)
        except (TypeError, ValueError) as error:
            raise DatasetInvalid(f"{name}: a target is no number: {error}") from error
        return {self._output: values}
