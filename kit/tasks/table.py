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

from kit.errors import BadInput, DatasetInvalid, UsageError
from kit.samples import Samples
from kit.tasks.base import Prediction, Prologue
from kit.tasks.batches import has_rows_first
from kit.tasks.classification import METRICS, SCORES, Classifier
from kit.tasks.rows import rows_of, rows_or_errors
from kit.tensors import Signature, Tensors, TensorSpec


@dataclass(kw_only=True, slots=True, eq=False, repr=False)
class Estimates(Prediction):
    """Numbers for each row: `values`, float `[N, outputs]`, in the order of `names`."""

    values: NDArray[np.floating[Any]]
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def _count(self) -> int:
        return len(self)

    def _cells(self, most: int) -> list[tuple[str, str]]:
        rows = self.values[:most].tolist()
        return [(", ".join(self.names), ", ".join(f"{value:.4g}" for value in row)) for row in rows]

    def records(self) -> list[dict[str, Any]]:
        """Return the values of each row by name."""
        return [dict(zip(self.names, row, strict=True)) for row in self.values.tolist()]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the values alone."""
        return {"values": self.values}


class Table:
    """Rows to a class, or to numbers.

    Args:
        columns: In the order of the model's features: one input for all, or an input of its own for some or each.
        categories: Words of a column and, by their place, the numbers they become.
        labels: Names of the classes; empty for a regression.
        outputs: Names of the numbers of a regression; empty for the output's own.
        target: Column of a data set that holds the right answer; for several numbers, their names are the columns.
        temperature: For classes, as `abstain_below` and `scores`: see kit.tasks.classification.Classifier.

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
        temperature: float = 1.0,
        abstain_below: float | None = None,
        scores: str = SCORES[0],
    ) -> None:
        self.columns = tuple(map(str, columns))
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"a table needs columns of different names, found {self.columns}")
        self.categories = {name: tuple(map(str, words)) for name, words in (categories or {}).items()}
        unknown = [name for name in self.categories if name not in self.columns]
        if unknown:
            raise ValueError(f"there is no column {unknown[0]!r} that could have categories")
        self._classifier = (
            Classifier(labels, temperature=temperature, abstain_below=abstain_below, scores=scores) if labels else None
        )
        self.labels = self._classifier.labels if self._classifier else ()
        self.outputs = tuple(outputs)
        self.target = target
        self.files: Mapping[str, Path] = {}
        self.metrics: Sequence[str] = METRICS if self.labels else ("r2", "rmse")
        self._inputs: tuple[TensorSpec, ...] = ()
        self._output = ""
        self._has_batch = True
        self._columns_of: dict[str, tuple[str, ...]] = {}

    @property
    def output(self) -> str:
        """Name of the output that holds the scores or the numbers; empty before `check`."""
        return self._output

    @classmethod
    def open(cls, name: str, options: Mapping[str, Any], files: Mapping[str, Path], signature: Signature) -> Self:  # noqa: ARG003 - `check` reads the signature
        """Make it of what a manifest holds."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return what travels in the manifest."""
        given: dict[str, Any] = {"columns": list(self.columns)}
        given |= (
            {"categories": {name: list(words) for name, words in self.categories.items()}} if self.categories else {}
        )
        given |= {"labels": list(self.labels)} if self.labels else {}
        given |= {"outputs": list(self.outputs)} if self.outputs else {}
        given |= self._classifier.options() if self._classifier else {}
        return given | ({"target": self.target} if self.target != "target" else {})

    def check(self, signature: Signature) -> None:
        """Raise UsageError unless the model takes these columns, and gives scores or numbers."""
        self._columns_of = self._matched(signature)
        self._inputs, self._has_batch = signature.inputs, signature.batch is not None
        if self._classifier:
            self._classifier.check(signature)
            self._output = self._classifier.output
            return
        floats = [spec for spec in signature.outputs if spec.is_float and _has_numbers(spec, signature)]
        if not floats:
            found = ", ".join(f"{spec.name}: {spec.describe()}" for spec in signature.outputs)
            raise UsageError(f"a regression needs an output of real numbers, found {found}", hint="name its labels")
        self._output = floats[0].name

    def _matched(self, signature: Signature) -> dict[str, tuple[str, ...]]:
        """Return the columns of each input: its own, or for one matrix all those that have no input of their own."""
        own = {spec.name: (spec.name,) for spec in signature.inputs if spec.name in self.columns}
        rest = tuple(name for name in self.columns if name not in own)
        others = [spec for spec in signature.inputs if spec.name not in own]
        fits = (
            len(others) == 1
            and len(others[0].shape) == 2
            and has_rows_first(others[0], signature)
            and others[0].shape[1] != signature.batch
            and _may_be(others[0].shape[1], len(rest))
        )
        if (
            any(not _is_column(signature.input(name), signature) for name in own)
            or bool(rest) != bool(others)
            or (rest and not fits)
        ):
            found = ", ".join(f"{name}: {spec}" for name, spec in signature.described().items())
            raise UsageError(
                f"{len(self.columns)} columns ({', '.join(self.columns[:8])}) do not fit the inputs {found}",
                hint=f"one input [{signature.batch or 1}, columns], an input for each column by its name, or both",
            )
        return own | {spec.name: rest for spec in others}

    def read(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give the rows of a CSV, JSON-lines or Parquet file, or of stdin; in place of a line that is none, the error."""
        for number, row in enumerate(rows_or_errors(argument), start=1):
            yield f"{argument}:{number}", row

    def encode(self, items: Sequence[Any]) -> Tensors:
        """Return the features of rows, which are mappings by column, or sequences in the order of the columns."""
        if not self._columns_of:
            raise UsageError("the task does not know its model yet", hint="call check(signature) first")
        if not items:
            raise UsageError("there is nothing to predict", hint="give one row or more")
        if len(items) > 1 and not self._has_batch:
            raise UsageError("this model takes one row in a call", hint="predict them one by one")
        table = [self._numbers(item, place) for place, item in enumerate(items, start=1)]
        return {spec.name: self._input(spec, table) for spec in self._inputs}

    def _input(self, spec: TensorSpec, table: Sequence[Sequence[int | float]]) -> NDArray[Any]:
        """Return some columns of a table; whole numbers are exact, since ids above 2**53 are no float64."""
        columns = self._columns_of[spec.name]
        places = [self.columns.index(name) for name in columns]
        values = [[row[place] for place in places] for row in table]
        if spec.is_float:
            array = np.array(values, np.float64).astype(spec.dtype)
        else:
            array = np.array(_whole(spec, values, columns), spec.dtype)
        if spec.name in self.columns:
            array = array.reshape((len(table), *[1] * (len(spec.shape) - 1)) if spec.shape else ())
        return array

    def decode(self, outputs: Tensors, inputs: Tensors) -> Prediction:
        """Return the class of each row, or its numbers."""
        if self._classifier:
            return self._classifier.decode(outputs, inputs)
        found = outputs[self._output]
        values = found.reshape(len(found) if found.ndim else 1, -1)
        names = self.outputs if len(self.outputs) == values.shape[1] else ()
        if not names:
            names = (
                (self._output,)
                if values.shape[1] == 1
                else tuple(f"{self._output}.{n}" for n in range(values.shape[1]))
            )
        return Estimates(values=values, names=names, outputs=outputs, inputs=inputs)

    def samples(self, source: Path, signature: Signature) -> tuple[Samples, ...]:
        """Read rows, with their targets if the file has the column.

        Raises:
            DatasetInvalid: It holds something else, or a target that the model does not have.
        """
        self.check(signature)
        rows: list[dict[str, Any]] = []
        try:
            rows.extend(rows_of(source))
            groups = [rows] if self._has_batch else [[row] for row in rows]
            inputs = [self.encode(group) for group in groups if group]
        except BadInput as error:
            raise DatasetInvalid(f"{source.name}: {error}", hint=error.hint) from error
        if not rows:
            raise DatasetInvalid(f"{source.name} holds no rows")
        wanted = self.outputs if len(self.outputs) > 1 else (self.target,)
        targets = self._targets(rows, wanted, source.name) if all(name in rows[0] for name in wanted) else None
        if targets is None or self._has_batch:
            return tuple(Samples(inputs=one, targets=targets, source=source.name) for one in inputs)
        return tuple(
            Samples(
                inputs=one,
                targets={name: array[place : place + 1] for name, array in targets.items()},
                source=source.name,
            )
            for place, one in enumerate(inputs)
        )

    def raw(self, source: Path | None, most: int) -> list[Any]:
        """Return the first rows, the columns that the model takes alone; some that were made up if there is no data set."""
        if source is None:
            return [self._made_up(number) for number in range(most)]
        rows = itertools.islice(rows_of(source), most)
        return [{name: row[name] for name in self.columns if name in row} for row in rows]

    def _made_up(self, number: int) -> dict[str, Any]:
        words = self.categories
        return {
            name: words[name][number % len(words[name])] if words.get(name) else (number + place) % 2
            for place, name in enumerate(self.columns)
        }

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

    def _numbers(self, item: Any, place: int) -> list[int | float]:
        if isinstance(item, Mapping):
            missing = next((name for name in self.columns if _is_missing(item.get(name))), None)
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

    def _number(self, name: str, value: Any, place: int) -> int | float:
        words = self.categories.get(name)
        if words is not None:
            if str(value) not in words:
                raise BadInput(
                    f"row {place}: {name} has no category {value!r}", hint=f"it has: {', '.join(words[:12])}"
                )
            return words.index(str(value))
        try:
            number = _parsed(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"row {place}: {name} is no number: {value!r}") from error
        if not math.isfinite(number):
            raise BadInput(f"row {place}: {name} is {number}", hint="fill it in, or leave the row out")
        return number

    def _targets(
        self, rows: Sequence[Mapping[str, Any]], wanted: Sequence[str], name: str
    ) -> dict[str, NDArray[Any]] | None:
        if self._classifier:
            labels = self._classifier.labels_of([row.get(wanted[0]) for row in rows], name)
            return None if labels is None else {"labels": labels}
        try:
            values = np.array([[float(row[one]) for one in wanted] for row in rows], np.float32)
        except (TypeError, ValueError, KeyError) as error:
            raise DatasetInvalid(f"{name}: a target is no number: {error}") from error
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0]) + 1
            raise DatasetInvalid(f"{name}, row {row}: a target is no finite number")
        return {self._output: values}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _may_be(size: int | str, count: int) -> bool:
    return isinstance(size, str) or size == count


def _parsed(value: Any) -> int | float:
    """Return a number, exact if it is whole."""
    number = float(value)
    if isinstance(value, float) or not math.isfinite(number):
        return number
    try:
        whole = int(value)
    except ValueError:  # 1.5 as a word
        return number
    return whole if isinstance(value, str) or whole == value else number


def _is_column(spec: TensorSpec, signature: Signature) -> bool:
    if not spec.shape:
        return signature.batch is None
    one_each = len(spec.shape) == 1 or (len(spec.shape) == 2 and _may_be(spec.shape[1], 1))
    return one_each and has_rows_first(spec, signature) and signature.batch not in spec.shape[1:]


def _has_numbers(spec: TensorSpec, signature: Signature) -> bool:
    if signature.batch is None:
        return True
    return has_rows_first(spec, signature) and signature.batch not in spec.shape[1:]


def _whole(spec: TensorSpec, values: Sequence[Sequence[int | float]], columns: Sequence[str]) -> list[list[int]]:
    """Return whole numbers; what an input of whole numbers cannot hold is refused by row and column."""
    low, high = (0, 1) if spec.dtype == "bool" else (int(np.iinfo(spec.dtype).min), int(np.iinfo(spec.dtype).max))
    if spec.below is not None:
        low, high = 0, spec.below - 1
    for number, row in enumerate(values, start=1):
        for name, value in zip(columns, row, strict=True):
            if value != int(value) or not low <= value <= high:
                raise BadInput(f"row {number}: {name} is {value}, not a whole number from {low:,} to {high:,}")
    return [[int(value) for value in row] for row in values]
