"""Rows become features and outputs become classes or numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kit.bundle.manifest import TaskRef
from kit.errors import BadInput, DatasetInvalid, UsageError
from kit.tasks.registry import open_task
from kit.tasks.table import Table
from kit.tensors import Signature, TensorSpec

PEOPLE = "age,smoker,score,other\n59,no,1.5,x\n40,yes,-2,y\n"
MATRIX = Signature(
    inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 2)),),
    outputs=(TensorSpec(name="score", dtype="float32", shape=("batch", 1)),),
)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text(PEOPLE)
    return path


def regression() -> Table:
    task = Table(columns=("age", "smoker"), categories={"smoker": ("no", "yes")}, target="score")
    task.check(MATRIX)
    return task


def test_rows_become_one_matrix_in_the_order_of_the_columns(people: Path) -> None:
    task = regression()
    rows = [item for _, item in task.read(str(people))]
    features = task.encode(rows)["features"]
    assert features.tolist() == [[59.0, 0.0], [40.0, 1.0]]
    assert features.dtype == np.float32
    assert task.encode([[59, "no"]])["features"].tolist() == [[59.0, 0.0]]
    assert task.raw(people, 1) == [{"age": "59", "smoker": "no"}]


def test_each_column_may_be_an_input_of_its_own() -> None:
    task = Table(columns=("age", "smoker"), categories={"smoker": ("no", "yes")})
    task.check(
        Signature(
            inputs=(
                TensorSpec(name="smoker", dtype="int64", shape=("batch",)),
                TensorSpec(name="age", dtype="float32", shape=("batch", 1)),
            ),
            outputs=MATRIX.outputs,
        )
    )
    tensors = task.encode([{"age": 59, "smoker": "yes"}])
    assert {name: array.tolist() for name, array in tensors.items()} == {"smoker": [1], "age": [[59.0]]}


def test_a_regression_gives_numbers_by_name(people: Path) -> None:
    task = regression()
    (group,) = task.samples(people, MATRIX)
    assert (group.targets or {})["score"].tolist() == [[1.5], [-2.0]]
    answer = task.decode({"score": np.array([[1.25], [2.5]], np.float32)}, group.inputs)
    assert answer.records() == [{"score": 1.25}, {"score": 2.5}]
    assert task.metrics[0] == "r2"


def test_a_classification_gives_labels(tmp_path: Path) -> None:
    task = Table(columns=("x",), labels=("benign", "malignant"), target="diagnosis")
    given = Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 1)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    )
    path = tmp_path / "cells.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"x": 1, "diagnosis": "malignant"}, {"x": 2, "diagnosis": 0}])))
    (group,) = task.samples(path, given)
    assert (group.targets or {})["labels"].tolist() == [1, 0]
    answer = task.decode({"logits": np.array([[0.0, 3.0]], np.float32)}, {})
    assert answer.records()[0]["label"] == "malignant"


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "people.parquet"
    parquet.write_table(pyarrow.table({"age": [59, 40], "smoker": ["no", "yes"], "score": [1.5, -2.0]}), path)
    (group,) = regression().samples(path, MATRIX)
    assert group.inputs["features"].tolist() == [[59.0, 0.0], [40.0, 1.0]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": 59}, "row 1 has no value for 'smoker'"),
        ({"age": "", "smoker": "no"}, "row 1 has no value for 'age'"),
        ({"age": "old", "smoker": "no"}, "row 1: age is no number: 'old'"),
        ({"age": "nan", "smoker": "no"}, "row 1: age is nan"),
        ({"age": 59, "smoker": "maybe"}, "row 1: smoker has no category 'maybe'"),
    ],
)
def test_a_value_that_is_missing_or_wrong_names_row_and_column(row: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        regression().encode([row])


def test_what_does_not_fit_is_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 columns .* do not fit the inputs features: float32 \[batch, 2\]"):
        Table(columns=("a", "b", "c")).check(MATRIX)
    with pytest.raises(ValueError, match="different names"):
        Table(columns=("a", "a"))
    with pytest.raises(UsageError, match="row 1 is int"):
        regression().encode([3])
    bad = tmp_path / "bad.csv"
    bad.write_text("age,smoker,score\n1,no,high\n")
    with pytest.raises(DatasetInvalid, match="a target is no number"):
        regression().samples(bad, MATRIX)
    bad.write_text("age,smoker\n1,no,3\n")
    with pytest.raises(BadInput, match="line 2 has another number of columns"):
        regression().samples(bad, MATRIX)
    with pytest.raises(BadInput, match="there is no file"):
        list(regression().read(str(people.with_name("none.csv"))))


def test_it_opens_again_from_what_a_manifest_holds(people: Path) -> None:
    options = json.loads(json.dumps(regression().options()))
    again = open_task(TaskRef(name="table@1", options=options), {}, MATRIX)
    assert again.options() == regression().options()
    assert again.samples(people, MATRIX)[0].inputs["features"].shape == (2, 2)
